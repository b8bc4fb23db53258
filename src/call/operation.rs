//! What a call asks for, decoded and free of any protocol.

use crate::tensor::Tensor;
use bytes::Bytes;
use std::{fmt, sync::Arc, time::Duration};

/// What a call asks for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Operation {
    /// Run a model.
    Infer(InferRequest),
    /// Look at something.
    Inspect(Inspect),
}

impl Operation {
    /// The model it is about, if it is about one.
    pub fn model(&self) -> Option<&ModelRef> {
        match self {
            Self::Infer(request) => Some(&request.model),
            Self::Inspect(Inspect::Model(model) | Inspect::Ready(model)) => Some(model),
            Self::Inspect(Inspect::Caller | Inspect::Server | Inspect::Models) => None,
        }
    }
}

/// A model as a client names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelRef {
    /// Its name.
    pub name: Arc<str>,
    /// Its version; absent: the server chooses (contract 01 section 5).
    pub version: Option<Arc<str>>,
}

/// A model as the repository knows it. May be a metric label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelKey {
    /// Its name.
    pub name: Arc<str>,
    /// The version that runs.
    pub version: Arc<str>,
}

impl fmt::Display for ModelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.name, self.version)
    }
}

/// A request to run a model once.
#[derive(Clone, Debug)]
pub struct InferRequest {
    /// Which model.
    pub model: ModelRef,
    /// The client's own id, echoed. An empty one counts as absent (contract 01 section 2.3).
    pub client_id: Option<Arc<str>>,
    /// Inputs in the order they came in; names may repeat until the signature is checked.
    pub inputs: Vec<NamedTensor>,
    /// Instead of inputs: the bytes of the one input that the model has, whose type and shape only the model knows
    /// (contract 02 section 1.4).
    pub raw: Option<Bytes>,
    /// Names of the outputs wanted, in order; empty: all, in the model's order.
    pub outputs: Vec<Arc<str>>,
    /// A wish found in the body; `Decode` can only shorten the deadline by it.
    pub timeout: Option<Duration>,
    /// 0: the model's default; 1: highest (contract 02).
    pub priority: u32,
    /// Everything else the client said, by name.
    pub parameters: Parameters,
}

impl InferRequest {
    /// A request for all outputs with no wishes.
    pub fn new(model: ModelRef, inputs: Vec<NamedTensor>) -> Self {
        Self {
            model,
            client_id: None,
            inputs,
            raw: None,
            outputs: Vec::new(),
            timeout: None,
            priority: 0,
            parameters: Parameters::new(),
        }
    }
}

/// A tensor with its name.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// The name of the input or output.
    pub name: Arc<str>,
    /// Its value.
    pub tensor: Tensor,
}

/// Named parameters, in the order they were written. Few, so a list beats a map.
pub type Parameters = Vec<(Arc<str>, Parameter)>;

/// The value of a parameter (contract 01 section 4.1, `InferParameter`).
#[derive(Clone, Debug, PartialEq)]
pub enum Parameter {
    /// `true` or `false`.
    Bool(bool),
    /// An integer that fits into 64 bits with a sign.
    Int(i64),
    /// An integer above `i64::MAX`.
    Uint(u64),
    /// Any other number.
    Double(f64),
    /// Text.
    String(Arc<str>),
}

/// A question about the server, a model or the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inspect {
    /// Who am I? Allowed to every identity that has any grant, never charged (architecture section 5.2).
    Caller,
    /// Name, version and extensions of the server.
    Server,
    /// Names of the models the caller may know of.
    Models,
    /// Inputs and outputs of a model.
    Model(ModelRef),
    /// Whether a model can run now.
    Ready(ModelRef),
}
