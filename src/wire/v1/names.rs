//! Other names for the tensors of a model (`rest.predict`, contract 03 section 2.5).

use std::sync::Arc;

/// What clients call some of a model's inputs and outputs. What is not renamed keeps its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The client's name of an input, and the model's.
    pub inputs: Vec<(Arc<str>, Arc<str>)>,
    /// The client's name of an output, and the model's.
    pub outputs: Vec<(Arc<str>, Arc<str>)>,
}

impl Names {
    /// What clients call the input `name`.
    pub fn of_input<'a>(&'a self, name: &'a str) -> &'a str {
        theirs(&self.inputs, name)
    }

    /// What clients call the output `name`.
    pub fn of_output<'a>(&'a self, name: &'a str) -> &'a str {
        theirs(&self.outputs, name)
    }
}

fn theirs<'a>(names: &'a [(Arc<str>, Arc<str>)], ours: &'a str) -> &'a str {
    names.iter().find(|(_, name)| &**name == ours).map_or(ours, |(name, _)| name)
}
