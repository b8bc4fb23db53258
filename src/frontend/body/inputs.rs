//! Inputs that a body became, counted by the memory budget until the last of them is gone.
//!
//! The end of every decoding, whatever the surface: a tensor made of text is up to four times as long (`0,` becomes eight
//! bytes of INT64), and it is what waits in queues and runs, long after the body that it came in.

use super::memory::{FREE, Memory, Reservation};
use crate::{
    call::{InferRequest, Inputs, NamedTensor, Parameter, Untyped},
    error::Error,
};
use bytes::Bytes;
use std::{ops::Range, sync::Arc};

/// Bytes of tensors for each byte of a body, at most: an element takes two bytes of text at least, and eight of memory at
/// most.
const GROWTH: usize = 4;

/// What the budget counts already of a request that is being decoded.
#[derive(Debug, Default)]
pub struct Counted {
    /// Where a body lies that counts itself; what is a slice of it needs no more.
    body: Range<usize>,
    /// Bytes that are kept with any slice of it: more than the body, where that is a part of a message.
    kept: usize,
    /// What was taken for the message, and becomes its tensors'.
    reservation: Option<Reservation>,
}

// === impl Counted ===

impl Counted {
    /// `body`, as it was read: its slices keep it, and what counts it.
    pub fn of(body: &Bytes) -> Self {
        Self::part_of(body, body.len())
    }

    /// `body`, a part of a message of `length` bytes that counts itself as a whole.
    pub fn part_of(body: &Bytes, length: usize) -> Self {
        let start = body.as_ptr().addr();
        Self { body: start..start + body.len(), kept: length, reservation: None }
    }

    /// `reservation`, for as long as decoding takes.
    pub fn by(reservation: Option<Reservation>) -> Self {
        Self { body: 0..0, kept: 0, reservation }
    }

    /// Whether `tensor` lies in the body. Of a body that is gone there is nothing: what was made before it went lies
    /// elsewhere.
    fn has(&self, tensor: &NamedTensor) -> bool {
        self.body.contains(&tensor.tensor.data().as_ptr().addr())
    }
}

// === impl Memory ===

impl Memory {
    /// Counts the inputs of `request` until the last of them is gone; those that only the model types once it has. The
    /// body must have been let go of, or both are counted while this is asked.
    ///
    /// # Errors
    ///
    /// As [`Memory`] if the budget does not have them, at once or when they are typed.
    pub fn hold_inputs(&self, request: InferRequest, counted: Counted) -> Result<InferRequest, Error> {
        let text = text(&request);
        let inputs = match request.inputs {
            Inputs::Tensors(mut tensors) => {
                self.hold_tensors(&mut tensors, text, counted)?;
                Inputs::Tensors(tensors)
            }
            // It cannot become so much that it is counted.
            Inputs::Untyped(inputs) if counted.reservation.is_none() && counted.body.len() < FREE / GROWTH => {
                Inputs::Untyped(inputs)
            }
            Inputs::Untyped(inputs) => {
                let memory = self.clone();
                Inputs::Untyped(Untyped::later(move |expected| async move {
                    let mut tensors = inputs.read(expected).await?;
                    memory.hold_tensors(&mut tensors, text, counted)?;
                    Ok(tensors)
                }))
            }
        };
        Ok(InferRequest { inputs, ..request })
    }

    /// Counts `tensors`, and `text` bytes that wait with them.
    fn hold_tensors(&self, tensors: &mut [NamedTensor], text: usize, counted: Counted) -> Result<(), Error> {
        let made = tensors.iter().filter(|tensor| !counted.has(tensor)).map(|tensor| tensor.tensor.data().len());
        let bytes = text + made.sum::<usize>();
        if bytes <= FREE {
            return Ok(());
        }
        let reservation = match counted.reservation {
            Some(mut reservation) => {
                reservation.fit(bytes)?;
                reservation
            }
            // Tensors that are slices of the body keep it.
            None if tensors.iter().any(|tensor| counted.has(tensor)) => self.beside(counted.kept).reserve(bytes)?,
            None => self.reserve(bytes)?,
        };
        let (reservation, body) = (Arc::new(reservation), Counted { reservation: None, ..counted });
        for (place, tensor) in tensors.iter_mut().enumerate() {
            // The first one stands for the text too.
            if place == 0 || !body.has(tensor) {
                tensor.tensor.keep_with(Arc::clone(&reservation));
            }
        }
        Ok(())
    }
}

/// Bytes of what a request brings besides its inputs, and has no other limit than its body.
fn text(request: &InferRequest) -> usize {
    let values = request.parameters.iter().map(|(name, value)| match value {
        Parameter::String(text) => name.len() + text.len(),
        Parameter::Bool(_) | Parameter::Int(_) | Parameter::Uint(_) | Parameter::Double(_) => name.len(),
    });
    values.sum::<usize>() + request.client_id.as_ref().map_or(0, |id| id.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::{Expected, ModelRef},
        tensor::{DataType, Shape, Signature, Tensor},
    };

    fn tensor(data: Bytes) -> NamedTensor {
        NamedTensor { name: "x".into(), tensor: Tensor::new(DataType::Uint8, Shape::new([data.len()]), data).unwrap() }
    }

    fn request(inputs: Inputs) -> InferRequest {
        InferRequest::new(ModelRef { name: "m".into(), version: None }, inputs)
    }

    #[test]
    fn only_what_was_made_is_counted_beside_the_body_until_its_last_slice_is_gone() {
        let memory = Memory::new(10 * FREE);
        let body = memory.hold(Bytes::from(vec![1; 2 * FREE])).unwrap();
        let counted = Counted::of(&body);
        let tensors = vec![tensor(body.slice(FREE..)), tensor(vec![0; 3 * FREE].into()), tensor(vec![0; 8].into())];
        drop(body);
        let held = memory.hold_inputs(request(tensors.into()), counted).unwrap();
        assert_eq!(memory.used(), 5 * FREE + 8);
        let slice = held.inputs.tensors().unwrap()[2].tensor.data().slice(1..2);
        drop(held);
        assert_eq!(memory.used(), 3 * FREE + 8);
        drop(slice);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn what_never_fits_beside_the_message_that_a_slice_keeps_is_told_from_what_has_no_room_now() {
        let memory = Memory::new(6 * FREE);
        for (length, never) in [(FREE, false), (4 * FREE, true)] {
            let _message = memory.reserve(4 * FREE).unwrap();
            let tail = Bytes::from(vec![1; FREE]);
            let made = tensor(vec![0; 3 * FREE].into());
            let counted = Counted::part_of(&tail, length);
            let refused = memory.hold_inputs(request(vec![tensor(tail), made].into()), counted).unwrap_err();
            assert_eq!(matches!(refused, Error::NeverFits { .. }), never, "{refused:?}");
        }
    }

    #[test]
    fn a_long_id_is_counted_for_as_long_as_the_inputs_wait() {
        let memory = Memory::new(4 * FREE);
        let body = Bytes::from(vec![1; 64]);
        let mut long = request(vec![tensor(body.clone())].into());
        long.client_id = Some("x".repeat(FREE).into());
        long.parameters.push(("y".into(), Parameter::String("x".repeat(FREE).into())));
        let held = memory.hold_inputs(long, Counted::of(&body)).unwrap();
        assert_eq!(memory.used(), 2 * FREE + 1);
        drop(held);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn what_was_taken_for_a_message_becomes_what_its_tensors_need() {
        let memory = Memory::new(3 * FREE);
        for (taken, made, used) in [(2 * FREE, 3 * FREE, 3 * FREE), (3 * FREE, 2 * FREE, 2 * FREE), (2 * FREE, 8, 0)] {
            let counted = Counted::by(memory.reserve_large(taken).unwrap());
            let held = memory.hold_inputs(request(vec![tensor(vec![0; made].into())].into()), counted).unwrap();
            assert_eq!(memory.used(), used);
            drop(held);
            assert_eq!(memory.used(), 0);
        }
        let counted = Counted::by(memory.reserve_large(2 * FREE).unwrap());
        assert!(memory.hold_inputs(request(vec![tensor(vec![0; 4 * FREE].into())].into()), counted).is_err());
        assert_eq!(memory.used(), 0, "a refusal keeps nothing");
    }

    #[tokio::test]
    async fn what_only_the_model_types_is_counted_once_it_has() {
        let memory = Memory::new(3 * FREE);
        for (made, fits) in [(3 * FREE, true), (4 * FREE, false)] {
            let body = Bytes::from(vec![1; FREE]);
            let counted = Counted::of(&body);
            let inputs = Untyped::new(move |_| Ok(vec![tensor(vec![0; made].into())]));
            let held = memory.hold_inputs(request(Inputs::Untyped(inputs)), counted).unwrap();
            assert_eq!(memory.used(), 0);
            let Inputs::Untyped(inputs) = held.inputs else { panic!("nobody typed them") };
            let signature = Arc::new(Signature { inputs: Vec::new(), outputs: Vec::new() });
            let typed = inputs.read(Expected { signature, batches: false, labels: Arc::new([]) }).await;
            assert_eq!((typed.is_ok(), memory.used()), (fits, if fits { made } else { 0 }));
        }
    }
}
