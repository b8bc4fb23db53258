//! Whether the work of a model may grow with the values that it is given, and not only with their number.
//!
//! A run on zeros says nothing of such a model: the number of rounds of a loop, or the size of a tensor that is made, is an
//! input's value. Those that follow from weights and from shapes alone are found by following names through the graph: a value
//! is known if all that it is made of is known, and a shape always is, because the sizes of inputs are looked at with each
//! call. What a nested graph yields, or is given by what it is in, is not followed and taken to be unknown.

use std::collections::HashSet;

/// A node of the graph, by what it is called in the model.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) operator: Vec<u8>,
    pub(super) inputs: Vec<Vec<u8>>,
    pub(super) outputs: Vec<Vec<u8>>,
    /// It holds graphs of its own, or may: what they yield is not followed.
    pub(super) has_graph: bool,
}

/// Operators whose work or output grows with the values of these inputs (ONNX 1.19, and those of ONNX Runtime that loop).
///
/// Not among them: what is bounded by the sizes of its inputs, though values choose within that (`NonZero`, `Compress`,
/// `Slice`, `TopK`, `Gather`, `NonMaxSuppression`, `Scan`, whose rounds are an axis).
const SIZED: [(&str, &[usize]); 17] = [
    ("Loop", &[0]),
    ("ConstantOfShape", &[0]),
    ("Expand", &[1]),
    ("Range", &[0, 1, 2]),
    ("Tile", &[1, 2]),
    ("Resize", &[1, 2, 3]),
    ("Upsample", &[1]),
    ("Pad", &[1]),
    ("OneHot", &[1]),
    ("CenterCropPad", &[1]),
    ("Col2Im", &[1, 2]),
    ("MaxUnpool", &[2]),
    ("AffineGrid", &[1]),
    ("DFT", &[1]),
    ("BlackmanWindow", &[0]),
    ("HannWindow", &[0]),
    ("HammingWindow", &[0]),
];

/// Operators that go on until they have found an end.
const ENDLESS: [&str; 4] = ["BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch"];

/// Those whose output says how large their input is, and nothing of what is in it.
const OF_SHAPES: [&[u8]; 2] = [b"Shape", b"Size"];

/// The first operator among `nodes`, which are in the order of the model, that makes work of values which callers send; the
/// names in `known` are weights.
pub(super) fn grows_with_values(nodes: &[Node], mut known: HashSet<Vec<u8>>) -> Option<&'static str> {
    let mut found = None;
    for node in nodes {
        let is_known = |at: usize| node.inputs.get(at).is_none_or(|name| name.is_empty() || known.contains(name));
        if found.is_none() {
            found = node.grows(is_known);
        }
        let is_of_shapes = OF_SHAPES.contains(&&*node.operator);
        if !node.has_graph && (is_of_shapes || (0..node.inputs.len()).all(is_known)) {
            known.extend(node.outputs.iter().cloned());
        }
    }
    found
}

// === impl Node ===

impl Node {
    fn grows(&self, is_known: impl Fn(usize) -> bool) -> Option<&'static str> {
        if let Some(name) = ENDLESS.into_iter().find(|name| name.as_bytes() == self.operator) {
            return Some(name);
        }
        let (name, sizes) = SIZED.into_iter().find(|(name, _)| name.as_bytes() == self.operator)?;
        // A loop that is given no number of rounds goes on for as long as its condition says.
        let has_no_end = name == "Loop" && self.inputs.first().is_none_or(Vec::is_empty);
        (has_no_end || !sizes.iter().all(|at| is_known(*at))).then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(operator: &str, inputs: &[&str], output: &str) -> Node {
        let bytes = |name: &&str| name.as_bytes().to_vec();
        let has_graph = matches!(operator, "Loop" | "If" | "Scan");
        Node {
            operator: operator.into(),
            inputs: inputs.iter().map(bytes).collect(),
            outputs: vec![output.into()],
            has_graph,
        }
    }

    fn grows(nodes: &[Node]) -> Option<&'static str> {
        grows_with_values(nodes, HashSet::from([b"w".to_vec()]))
    }

    #[test]
    fn a_size_that_is_an_input_grows_and_one_that_is_a_weight_or_a_shape_does_not() {
        for (operator, before) in [("Expand", 1), ("ConstantOfShape", 0), ("Tile", 1), ("Loop", 0), ("OneHot", 1)] {
            let of = |size: &str| {
                let inputs: Vec<&str> = std::iter::repeat_n("x", before).chain([size]).collect();
                node(operator, &inputs, "y")
            };
            assert_eq!(grows(&[of("w")]), None, "{operator}");
            assert_eq!(grows(&[of("n")]), Some(operator));
            assert_eq!(grows(&[node("Shape", &["x"], "s"), of("s")]), None, "{operator}");
            let made = [node("Shape", &["x"], "s"), node("Mul", &["s", "w"], "m"), of("m")];
            assert_eq!(grows(&made), None, "{operator}");
            let mixed = [node("Shape", &["x"], "s"), node("Mul", &["s", "n"], "m"), of("m")];
            assert_eq!(grows(&mixed), Some(operator));
        }
    }

    #[test]
    fn a_loop_without_a_number_of_rounds_grows_and_so_does_what_nested_graphs_yield() {
        assert_eq!(grows(&[node("Loop", &["", "w"], "y")]), Some("Loop"));
        assert_eq!(grows(&[node("If", &["w"], "s"), node("Expand", &["x", "s"], "y")]), Some("Expand"));
        assert_eq!(grows(&[node("Constant", &[], "c"), node("Range", &["c", "c", "w"], "y")]), None);
        assert_eq!(grows(&[node("Resize", &["x", "", "w"], "y")]), None);
        assert_eq!(grows(&[node("BeamSearch", &["x"], "y")]), Some("BeamSearch"));
        assert_eq!(grows(&[node("MatMul", &["x", "w"], "y"), node("NonZero", &["y"], "z")]), None);
    }
}
