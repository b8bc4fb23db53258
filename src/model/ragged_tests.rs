//! What may be said of ragged inputs, and what is refused.

use super::*;
use crate::{
    model::{Batching, InputSettings},
    tensor::DataType,
};
use serde_json::json;

fn spec(name: &str, dtype: DataType, dims: &[Option<usize>]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype: Some(dtype), dims: dims.to_vec() }
}

/// Packed ids and their kinds, [total], where each text begins and how long it is, [texts], and a weight of each, [texts];
/// the state of each id, [total, 4], and of each text, [texts, 4].
fn packed() -> (Signature, AxisNames) {
    let signature = Signature {
        inputs: vec![
            spec("starts", DataType::Int32, &[None]),
            spec("ids", DataType::Int64, &[None]),
            spec("kinds", DataType::Int64, &[None]),
            spec("counts", DataType::Fp32, &[None]),
            spec("weight", DataType::Fp32, &[None]),
        ],
        outputs: vec![
            spec("states", DataType::Fp32, &[None, Some(4)]),
            spec("pooled", DataType::Fp32, &[None, Some(4)]),
        ],
    };
    let axis = |name: &str| vec![Some(name.into())];
    let inputs = ["texts", "total", "total", "texts", "texts"].map(axis).into();
    (signature, AxisNames { inputs, outputs: ["total", "texts"].map(axis).into() })
}

fn ragged(made: &[(Marks, &str)], outputs: &[&str]) -> InputSettings {
    let made = made.iter().map(|(marks, name)| (*marks, (*name).into())).collect();
    let outputs = outputs.iter().map(|output| (*output).into()).collect();
    InputSettings { ragged: Some(RaggedSettings { made, outputs }), ..InputSettings::default() }
}

fn settings(inputs: &[(&str, InputSettings)]) -> ModelSettings {
    let inputs = inputs.iter().map(|(name, input)| ((*name).into(), input.clone())).collect();
    ModelSettings { inputs, ..ModelSettings::default() }
}

fn usual() -> ModelSettings {
    settings(&[("ids", ragged(&[(Marks::Starts, "starts"), (Marks::Counts, "counts")], &[]))])
}

fn refusal(settings: &ModelSettings) -> String {
    let (signature, names) = packed();
    shapes(settings, &signature, &names).unwrap_err()
}

#[test]
fn callers_see_rows_and_their_lengths() {
    let (signature, names) = packed();
    let shapes = shapes(&usual(), &signature, &names).unwrap();
    let seen =
        |specs: &[TensorSpec]| specs.iter().map(|spec| (spec.name.to_string(), spec.dims.len())).collect::<Vec<_>>();
    let expected =
        |specs: &[(&str, usize)]| specs.iter().map(|(name, rank)| ((*name).to_owned(), *rank)).collect::<Vec<_>>();
    assert_eq!(seen(&shapes.signature.inputs), expected(&[("ids", 2), ("kinds", 2), ("weight", 1)]));
    assert_eq!(seen(&shapes.signature.outputs), expected(&[("states", 3), ("pooled", 2)]));
    assert!(shapes.signature.is_batchable() && !crate::model::decision::is_even(&shapes.signature));
    let ragged = shapes.ragged().unwrap();
    assert_eq!((&ragged.outputs[..], ragged.max_elements), (&[Some(0), None][..], 64 * 256));
    let run = ragged.run.iter().map(|source| match source {
        Source::Sent(place) => place.to_string(),
        Source::Made(made) => made.name.to_string(),
    });
    assert_eq!(run.collect::<Vec<_>>(), ["starts", "0", "1", "counts", "2"]);
    assert_eq!(
        shapes.lines,
        [
            "`ids`, `kinds`: rows of any lengths run together, one behind the other, up to 16384 elements",
            "`starts` is not sent: it says where each row begins in `ids`, `kinds`",
            "`counts` is not sent: it says how long each row is in `ids`, `kinds`",
            "`states` is cut by the lengths of `ids`, `kinds`",
            "`pooled` has one row for each row",
        ]
    );
}

#[test]
fn axes_without_names_are_said() {
    let (signature, _) = packed();
    let nameless = AxisNames::default();
    let said = settings(&[
        ("ids", ragged(&[(Marks::Starts, "starts")], &["states"])),
        ("kinds", ragged(&[(Marks::Counts, "counts")], &[])),
    ]);
    let shapes = shapes(&said, &signature, &nameless).unwrap();
    let ragged = shapes.ragged().unwrap();
    assert_eq!((ragged.axes.len(), &ragged.outputs[..]), (2, &[Some(0), None][..]));
    let declared = ragged.declared(&shapes.signature, &signature);
    assert_eq!(declared.inputs.len(), 5, "a configuration may speak of what is made too");
}

#[test]
fn a_bound_is_one_that_can_be_counted_to() {
    let (signature, names) = packed();
    let with = |max_elements| {
        let batching = Batching { max_elements, max_rows: 1 << 20, ..Batching::default() };
        shapes(&ModelSettings { batching, ..usual() }, &signature, &names)
    };
    assert_eq!(with(None).unwrap().ragged().unwrap().max_elements, 1 << 24);
    assert_eq!(with(Some(100)).unwrap().ragged().unwrap().max_elements, 100);
    let error = with(Some((1 << 24) + 1)).unwrap_err();
    assert!(error.starts_with("`batching.max_elements` is 16777217, and"), "{error}");
}

#[test]
fn what_contradicts_the_model_or_itself_is_refused() {
    let ids = |made: &[(Marks, &str)], outputs: &[&str]| settings(&[("ids", ragged(made, outputs))]);
    let padded = |name, input: InputSettings| {
        let mut all = usual();
        all.inputs.push((Arc::from(name), input));
        all
    };
    let pad = InputSettings { pad: Some(json!(0)), ..InputSettings::default() };
    let silent = InputSettings::default();
    let off = Batching { enabled: Some(false), ..Batching::default() };
    for (settings, says) in [
        (
            settings(&[("id", ragged(&[], &[]))]),
            "`inputs.id.ragged`: the model has no input `id`; it has `starts`, `ids`",
        ),
        (ids(&[(Marks::Ends, "end")], &[]), "`inputs.ids.ragged.ends`: the model has no input `end`"),
        (
            ids(&[], &["state"]),
            "`inputs.ids.ragged.outputs`: the model has no output `state`; it has `states`, `pooled`",
        ),
        (ids(&[(Marks::Ends, "ids")], &[]), "something else is said of it too"),
        (ids(&[(Marks::Ends, "kinds")], &[]), "`inputs`: `kinds` has the axis `total` of a ragged input"),
        (ids(&[(Marks::Ends, "starts"), (Marks::Starts, "starts")], &[]), "`starts` is made of the lengths twice"),
        (padded("starts", silent), "`starts` is made of the lengths, and something else is said"),
        (padded("weight", pad), "`inputs.weight`: `pad`, `mask` and `optional` are not for a model with `ragged`"),
        (ModelSettings { fixed_rows: true, ..usual() }, "`batching.rows: fixed` is not for a model with `ragged`"),
        (ModelSettings { batching: off, ..usual() }, "with `batching.max_rows: 1` calls run one by one"),
    ] {
        assert!(refusal(&settings).contains(says), "{says}: {}", refusal(&settings));
    }
}

#[test]
fn what_is_made_is_a_list_of_numbers_and_rows_are_free() {
    let (mut signature, names) = packed();
    let mut refusal = |change: &dyn Fn(&mut Signature)| {
        let before = signature.clone();
        change(&mut signature);
        let error = shapes(&usual(), &signature, &names).unwrap_err();
        signature = before;
        error
    };
    assert_eq!(
        refusal(&|found| found.inputs[0].dims.push(Some(1))),
        "`inputs.ids.ragged.starts`: `starts` is INT32 of shape [-1, 1], expected INT32 or INT64 or FP32 of shape [-1]"
    );
    assert!(
        refusal(&|found| found.inputs[3].dtype = Some(DataType::Uint8)).contains("`counts` is UINT8 of shape [-1]")
    );
    let fixed = |name: &str| format!("`{name}` has shape [8], expected a free first dimension");
    assert!(refusal(&|found| found.inputs[1].dims = vec![Some(8)]).ends_with(&fixed("ids")));
    assert!(refusal(&|found| found.inputs[4].dims = vec![Some(8)]).ends_with(&fixed("weight")));
    assert!(refusal(&|found| found.outputs[1].dims = vec![Some(8)]).ends_with(&fixed("pooled")));
}
