//! What a call comes to: a whole answer, or a stream of chunks.

use super::{
    Identity, ModelKey, NamedTensor, Observer, Parameters,
    stream::ReplyStream,
    watch::{End, Watch},
};
use crate::tensor::Signature;
use std::{sync::Arc, time::Duration};

/// What a call comes to.
#[derive(Debug)]
pub enum Reply {
    /// The outputs of one run.
    Infer(InferResponse),
    /// Pieces, until the stream ends.
    Stream(ReplyStream),
    /// The answer to a question.
    Report(Report),
}

impl Reply {
    /// Hands `watch` the rest of this exchange: now, if there is none; else chunk by chunk.
    #[must_use]
    pub fn watched_by<O: Observer + 'static>(self, mut watch: Watch<O>) -> Self {
        match self {
            Self::Stream(mut stream) => {
                stream.observe(Box::new(watch));
                Self::Stream(stream)
            }
            whole => {
                watch.end(End::Complete);
                whole
            }
        }
    }
}

/// The outputs of one run.
#[derive(Clone, Debug)]
pub struct InferResponse {
    /// The model and the version that ran.
    pub model: Arc<ModelKey>,
    /// The client's own id, if it gave one.
    pub client_id: Option<Arc<str>>,
    /// Outputs in the order requested; otherwise in the model's order.
    pub outputs: Vec<NamedTensor>,
    /// What the server says about this answer.
    pub parameters: Parameters,
    /// How long it waited and ran.
    pub timing: Timing,
}

/// How long a job waited and ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// From submission to the start of the run.
    pub queue: Duration,
    /// The run itself, of the whole batch.
    pub compute: Duration,
}

/// One piece of a streaming reply.
#[derive(Clone, Debug)]
pub enum Chunk {
    /// Outputs of one step.
    Tensors(InferResponse),
}

/// The answer to an [`Inspect`](super::Inspect).
#[derive(Clone, Debug)]
pub enum Report {
    /// Who the caller is.
    Caller(Arc<Identity>),
    /// What the server is.
    Server(ServerReport),
    /// Names of the models the caller may know of, sorted.
    Models(Vec<Arc<str>>),
    /// Inputs and outputs of a model.
    Model(ModelReport),
    /// Whether a model can run now.
    Ready {
        /// Its name.
        model: Arc<str>,
        /// The answer.
        ready: bool,
    },
}

/// What the server is (contract 01 section 2.1).
#[derive(Clone, Copy, Debug)]
pub struct ServerReport {
    /// The product's name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Names of the V2 extensions that are implemented, and of no others.
    pub extensions: &'static [&'static str],
}

/// What a model is (contract 01 section 2.2).
#[derive(Clone, Debug)]
pub struct ModelReport {
    /// Its name.
    pub name: Arc<str>,
    /// Versions that may be requested now; only the one asked for, if one was.
    pub versions: Vec<Arc<str>>,
    /// `onnxruntime_onnx` unless configured otherwise.
    pub platform: Arc<str>,
    /// Its inputs and outputs.
    pub signature: Arc<Signature>,
}
