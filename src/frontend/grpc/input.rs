//! An inference request that has arrived: counted by the memory budget until the last of its tensors is gone.
//!
//! What counted it on its way in ends with its stream; from there on the request waits, in a queue or for a run.

use super::{parse::Parsed, single::Decoding};
use crate::{
    call::Operation,
    error::Error,
    frontend::{
        Connection, Frontend,
        body::{self, Counted},
    },
    wire::proto::{self, inference::ModelInferRequest},
};
use std::sync::Arc;

/// An inference request that is not decoded yet.
pub(super) struct Input(Parsed<ModelInferRequest>);

// === impl Input ===

impl Input {
    /// It, counted for as long as it, or a tensor of it, lives.
    pub(super) const fn of(parsed: Parsed<ModelInferRequest>) -> Self {
        Self(parsed)
    }

    /// The operation that it asks for, decoded off the lane if that is much work: raw tensors are cut out of the message,
    /// and some of them looked through; typed ones are made anew, element by element.
    ///
    /// Resolves to what [`proto::decode_infer`] answers, or [`Error::Overloaded`] if too much is being decoded.
    pub(super) fn decoding(self, connection: &Arc<Connection>) -> Decoding<Operation> {
        let work = if proto::is_typed(&self.0.message) { self.0.length } else { proto::raw_work(&self.0.message) };
        if self.0.off_lane || body::is_small(work) {
            return Decoding::Now(self.decode(&connection.frontend));
        }
        let connection = Arc::clone(connection);
        Decoding::Later(Box::pin(body::offload(work, move || self.decode(&connection.frontend))))
    }

    fn decode(self, frontend: &Frontend) -> Result<Operation, Error> {
        let Parsed { message, whole, made, .. } = self.0;
        // Tensors are what was made, or slices of the message; what the other one counts is counted until they are there.
        let (theirs, _other) = if proto::is_typed(&message) { (made, whole) } else { (whole, made) };
        let request = proto::decode_infer(message, &frontend.settings.wire)?;
        frontend.memory.hold_inputs(request, Counted::by(theirs)).map(Operation::Infer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        frontend::{
            self,
            grpc::{fixture::world, parse::parse},
        },
        wire::proto::inference::{InferTensorContents, model_infer_request::InferInputTensor},
    };
    use bytes::Bytes;
    use prost::Message;

    fn parsed(connection: &Arc<Connection>, message: &ModelInferRequest) -> Decoding<Input> {
        parse(connection, message.encode_to_vec().into(), |_, parsed| Decoding::Now(Ok(Input::of(parsed))))
    }

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
            let input = parsed(&world.connection, &message(typed)).wait().await.unwrap();
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
        let input = parsed(&world.connection, &message).wait().await.unwrap();
        assert!((80_000..85_000).contains(&memory.used()), "{}", memory.used());
        let request = input.decoding(&world.connection).wait().await.unwrap();
        assert_eq!(memory.used(), 80_000);
        drop(request);
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test]
    async fn only_many_typed_contents_and_what_is_looked_through_are_decoded_off_the_lane() {
        let world = world(frontend::Settings::default(), |_| async { Err(Error::Cancelled) });
        let raw = |datatype: &str, contents: Vec<u8>, elements: usize| {
            let mut message = of_length(elements, false);
            message.inputs[0].datatype = datatype.into();
            message.raw_input_contents = vec![contents.into()];
            message
        };
        for (message, elsewhere) in [
            (of_length(LARGE, true), [false, false]),
            // Already there, it is not sent away once more.
            (of_length(10 * LARGE, true), [true, false]),
            (of_length(10 * LARGE, false), [false, false]),
            (raw("BOOL", vec![1; 10 * LARGE], 10 * LARGE), [false, true]),
            (raw("BYTES", vec![0; 4 * LARGE], LARGE), [false, true]),
            (raw("BYTES", vec![0; 4000], 1000), [false, false]),
        ] {
            let parsed = parsed(&world.connection, &message);
            let parsed_elsewhere = matches!(parsed, Decoding::Later(_));
            let decoding = parsed.wait().await.unwrap().decoding(&world.connection);
            let found = [parsed_elsewhere, matches!(decoding, Decoding::Later(_))];
            assert_eq!(found, elsewhere, "{} {:?}", message.inputs[0].datatype, message.inputs[0].shape);
            let Operation::Infer(request) = decoding.wait().await.unwrap() else { panic!("asked") };
            assert!(request.inputs.tensors().unwrap()[0].tensor.data().len() >= 4000);
        }
        assert_eq!(world.connection.frontend.memory.used(), 0);
    }

    #[tokio::test]
    async fn a_request_beyond_the_budget_is_refused() {
        let mut settings = frontend::Settings::default();
        settings.concurrency.memory = LARGE;
        let world = world(settings, |_| async { Err(Error::Cancelled) });
        let held = parsed(&world.connection, &message(false)).wait().await;
        assert!(matches!(held.map(drop), Err(Error::NeverFits { .. })));
    }
}
