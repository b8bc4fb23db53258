//! An inference request that has arrived: counted by the memory budget until the last of its tensors is gone.
//!
//! What counted it on its way in ends with its stream; from there on the request waits, in a queue or for a run.

use crate::{
    call::{Inputs, NamedTensor, Operation},
    error::Error,
    frontend::{Connection, body::Reservation},
    tensor::Tensor,
    wire::{
        Settings,
        proto::{self, inference::ModelInferRequest},
    },
};
use bytes::Bytes;
use prost::Message;

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
        let reservation = connection.frontend.memory.reserve_large(message.encoded_len())?;
        Ok(Self { message, reservation })
    }

    /// The operation that it asks for.
    ///
    /// # Errors
    ///
    /// As [`proto::decode_infer`].
    pub(super) fn decode(mut self, settings: &Settings) -> Result<Operation, Error> {
        let raw = &mut self.message.raw_input_contents;
        match self.reservation {
            Some(reservation) if raw.is_empty() => {
                let mut request = proto::decode_infer(self.message, settings)?;
                if let Inputs::Tensors(inputs) = &mut request.inputs {
                    keep(reservation, inputs)?;
                }
                Ok(Operation::Infer(request))
            }
            Some(reservation) => {
                reservation.keep_all(raw);
                proto::decode_infer(self.message, settings).map(Operation::Infer)
            }
            None => proto::decode_infer(self.message, settings).map(Operation::Infer),
        }
    }
}

/// Counts `inputs` until the last of them is gone: typed contents become bytes only when they are decoded.
pub(super) fn keep(reservation: Reservation, inputs: &mut [NamedTensor]) -> Result<(), Error> {
    let mut data: Vec<Bytes> = inputs.iter().map(|input| input.tensor.data().clone()).collect();
    reservation.keep_all(&mut data);
    for (input, data) in inputs.iter_mut().zip(data) {
        let held = Tensor::new(input.tensor.dtype(), input.tensor.shape().clone(), data);
        input.tensor = held.map_err(|error| Error::tensor(&*input.name, error.to_string()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        frontend::{self, grpc::fixture::world},
        wire::proto::inference::{InferTensorContents, model_infer_request::InferInputTensor},
    };

    const LARGE: usize = 100_000;

    fn message(typed: bool) -> ModelInferRequest {
        let contents = InferTensorContents { uint_contents: vec![7; LARGE], ..InferTensorContents::default() };
        let input = InferInputTensor {
            name: "X".into(),
            datatype: "UINT8".into(),
            shape: vec![LARGE as i64],
            contents: typed.then_some(contents),
            ..InferInputTensor::default()
        };
        let raw = if typed { Vec::new() } else { vec![Bytes::from(vec![7; LARGE])] };
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
            let Operation::Infer(request) = input.decode(&frontend.settings.wire).unwrap() else { panic!("asked") };
            assert!(frontend.memory.used() >= LARGE);
            assert_eq!(request.inputs.tensors().unwrap()[0].tensor.data(), &vec![7; LARGE]);
            drop(request);
            assert_eq!(frontend.memory.used(), 0);
        }
    }

    #[tokio::test]
    async fn a_request_beyond_the_budget_is_refused() {
        let mut settings = frontend::Settings::default();
        settings.concurrency.memory = LARGE;
        let world = world(settings, |_| async { Err(Error::Cancelled) });
        let held = Input::hold(&world.connection, message(false));
        assert!(matches!(held.map(drop), Err(Error::Overloaded { what: "memory" })));
    }
}
