//! The inputs of a request, typed by their sender or only by the model.
//!
//! Most protocols name the type and shape of each tensor. Some do not: the JSON of contract 03 and a raw body (contract
//! 02 section 1.4) mean something only beside a model's signature, and whether the caller may know that there is such a
//! model is decided first. So their decoder travels with the call, like [`Pending`](super::Pending), and the router
//! hands it the signature.

use super::NamedTensor;
use crate::{error::Error, tensor::Signature};
use futures_util::future::BoxFuture;
use std::{fmt, sync::Arc};

/// The inputs of a request.
#[derive(Debug)]
pub enum Inputs {
    /// In the order they came in; names may repeat until the signature is checked.
    Tensors(Vec<NamedTensor>),
    /// Bytes whose types only the model knows.
    Untyped(Untyped),
}

/// What a model takes, for whoever types inputs.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Its inputs and outputs.
    pub signature: Arc<Signature>,
    /// Whether the first dimension of every input counts rows.
    pub batches: bool,
    /// The labels of each output's classes, in the signature's order; line n is class n.
    pub labels: Arc<[Option<Labels>]>,
}

/// The labels of an output's classes: line n is class n.
pub type Labels = Arc<[Arc<str>]>;

/// Inputs that wait for a signature. Polled below the layers, so what it waits for counts against the deadline.
pub struct Untyped(Box<Read>);

type Read = dyn FnOnce(Expected) -> BoxFuture<'static, Result<Vec<NamedTensor>, Error>> + Send;

// === impl Inputs ===

impl Inputs {
    /// The tensors, if their sender typed them.
    pub fn tensors(&self) -> Option<&[NamedTensor]> {
        match self {
            Self::Tensors(tensors) => Some(tensors),
            Self::Untyped(_) => None,
        }
    }
}

impl From<Vec<NamedTensor>> for Inputs {
    fn from(tensors: Vec<NamedTensor>) -> Self {
        Self::Tensors(tensors)
    }
}

// === impl Untyped ===

impl Untyped {
    /// Inputs that `read` types at once: small ones, or ones that need no parsing.
    pub fn new(read: impl FnOnce(Expected) -> Result<Vec<NamedTensor>, Error> + Send + 'static) -> Self {
        Self::later(move |expected| std::future::ready(read(expected)))
    }

    /// Inputs that `read` types in its own time, perhaps on another thread.
    pub fn later<F>(read: impl FnOnce(Expected) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<Vec<NamedTensor>, Error>> + Send + 'static,
    {
        Self(Box::new(move |expected| Box::pin(read(expected))))
    }

    /// The tensors that they are to a model that takes `expected`.
    ///
    /// # Errors
    ///
    /// The codec's own: what was found and what the model expects.
    pub fn read(self, expected: Expected) -> BoxFuture<'static, Result<Vec<NamedTensor>, Error>> {
        (self.0)(expected)
    }
}

impl fmt::Debug for Untyped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Untyped")
    }
}
