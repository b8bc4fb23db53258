//! An inference request that has arrived: counted by the memory budget until the last of its tensors is gone.
//!
//! What counted it on its way in ends with its stream; from there on the request waits, in a queue or for a run.

use super::single::Decoding;
use crate::{
    call::Operation,
    error::Error,
    frontend::{
        Connection, Frontend,
        body::{self, Counted, Reservation},
    },
    wire::proto::{self, inference::ModelInferRequest},
};
use prost::Message;
use std::sync::Arc;

/// An inference request that is not decoded yet.
pub(super) struct Input {
    message: ModelInferRequest,
    reservation: Option<Reservation>,
}

// === impl Input ===

impl Input {
    /// Counts `message` for as long as it, or a tensor of it, lives.
    ///
    /// # Errors
    ///
    /// [`Error::Overloaded`] if the memory budget has no room.
    pub(super) fn hold(connection: &Connection, message: ModelInferRequest) -> Result<Self, Error> {
        // Elements of typed contents are wide already: a zero is one byte on the wire and eight here.
        let bytes = message.encoded_len().max(proto::weight(&message));
        let reservation = connection.frontend.memory.reserve_large(bytes)?;
        Ok(Self { message, reservation })
    }

    /// The operation that it asks for, decoded off the lane if that is much work: raw tensors are cut out of the message,
    /// typed ones are made anew, element by element.
    ///
    /// Resolves to what [`proto::decode_infer`] answers, or [`Error::Overloaded`] if too much is being decoded.
    pub(super) fn decoding(self, connection: &Arc<Connection>) -> Decoding<Operation> {
        let work = if proto::is_typed(&self.message) { self.message.encoded_len() } else { 0 };
        if body::is_small(work) {
            return Decoding::Now(self.decode(&connection.frontend));
        }
        let connection = Arc::clone(connection);
        Decoding::Later(Box::pin(body::offload(work, move || self.decode(&connection.frontend))))
    }

    fn decode(self, frontend: &Frontend) -> Result<Operation, Error> {
        let request = proto::decode_infer(self.message, &frontend.settings.wire)?;
        frontend.memory.hold_inputs(request, Counted::by(self.reservation)).map(Operation::Infer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::Limit,
        frontend::{self, grpc::fixture::world},
        wire::proto::inference::{InferTensorContents, model_infer_request::InferInputTensor},
    };
    use bytes::Bytes;

    const LARGE: usize = 100_000;

    fn message(typed: bool) -> ModelInferRequest {
        of_length(LARGE, typed)
    }

    fn of_length(length: usize, typed: bool) -> ModelInferRequest {
        let contents = InferTensorContents { uint_contents: vec![7; length], ..InferTensorContents::default() };
        let input = InferInputTensor {
            name: "X".into(),
            datatype: "UINT8".into(),
            shape: vec![length as i64],
            contents: typed.then_some(contents),
            ..InferInputTensor::default()
        };
        let raw = if typed { Vec::new() } else { vec![Bytes::from(vec![7; length])] };
        ModelInferRequest {
            model_name: "m".into(),
            inputs: vec![input],
            raw_input_contents: raw,
            ..ModelInferRequest::default()
        }
    }

    #[tokio::test]
    async fn a_request_is_counted_while_it_waits_and_runs() {
        let world = world(frontend::Settings::default(), |_| async { Err(Error::Cancelled) });
        let frontend = &world.connection.frontend;
        for typed in [false, true] {
            let input = Input::hold(&world.connection, message(typed)).unwrap();
            assert!(frontend.memory.used() >= LARGE);
            let decoded = input.decoding(&world.connection).wait().await;
            let Operation::Infer(request) = decoded.unwrap() else { panic!("asked") };
            assert!(frontend.memory.used() >= LARGE);
            assert_eq!(request.inputs.tensors().unwrap()[0].tensor.data(), &vec![7; LARGE]);
            drop(request);
            assert_eq!(frontend.memory.used(), 0);
        }
    }

    #[tokio::test]
    async fn typed_contents_count_with_what_they_take_here_and_not_on_the_wire() {
        let world = world(frontend::Settings::default(), |_| async { Err(Error::Cancelled) });
        let contents = InferTensorContents { int64_contents: vec![0; 10_000], ..InferTensorContents::default() };
        let mut message = message(true);
        (message.inputs[0].datatype, message.inputs[0].shape) = ("INT64".into(), vec![10_000]);
        message.inputs[0].contents = Some(contents);
        assert!(message.encoded_len() < 11_000);
        let memory = &world.connection.frontend.memory;
        let input = Input::hold(&world.connection, message).unwrap();
        assert_eq!(memory.used(), 80_000);
        let request = input.decoding(&world.connection).wait().await.unwrap();
        assert_eq!(memory.used(), 80_000);
        drop(request);
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test]
    async fn only_many_typed_contents_are_decoded_off_the_lane() {
        let world = world(frontend::Settings::default(), |_| async { Err(Error::Cancelled) });
        for (length, typed, elsewhere) in [(LARGE, true, false), (10 * LARGE, true, true), (10 * LARGE, false, false)] {
            let decoding =
                Input::hold(&world.connection, of_length(length, typed)).unwrap().decoding(&world.connection);
            assert_eq!(matches!(decoding, Decoding::Later(_)), elsewhere, "{length} {typed}");
            let Operation::Infer(request) = decoding.wait().await.unwrap() else { panic!("asked") };
            assert_eq!(request.inputs.tensors().unwrap()[0].tensor.data().len(), length);
        }
    }

    #[tokio::test]
    async fn a_request_beyond_the_budget_is_refused() {
        let mut settings = frontend::Settings::default();
        settings.concurrency.memory = LARGE;
        let world = world(settings, |_| async { Err(Error::Cancelled) });
        let held = Input::hold(&world.connection, message(false));
        assert!(matches!(held.map(drop), Err(Error::Overloaded { limit: Limit::Memory })));
    }
}
