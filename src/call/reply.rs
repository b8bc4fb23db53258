//! What a call comes to: a whole answer, or a stream of chunks.

use super::{
    ModelKey, NamedTensor, Observer, Parameters, Report,
    stream::ReplyStream,
    watch::{End, Watch},
};
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
                if let Self::Infer(response) = &whole {
                    watch.whole(response);
                }
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

impl InferResponse {
    /// Bytes of its outputs.
    pub fn bytes(&self) -> usize {
        self.outputs.iter().map(|output| output.tensor.data().len()).sum()
    }
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
