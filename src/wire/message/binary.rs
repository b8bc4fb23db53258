//! Binary frames: a length, a JSON message, and raw tensors on multiples of 8 (contract 06 C4).

use super::{
    envelope::{Envelope, number},
    skim::{Items, Members},
};
use crate::error::Error;
use bytes::Bytes;

/// Bytes of the length that a frame begins with.
pub(super) const LENGTH: usize = 4;
/// Tensors begin at multiples of this, counted from the start of the frame.
const ALIGNMENT: usize = 8;

/// A binary frame, cut into its parts.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The JSON message.
    pub json: Bytes,
    /// Everything behind it, padding included.
    pub tail: Bytes,
}

impl Frame {
    /// Cuts `frame` into its parts.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidRequest`] if the JSON message would be longer than the frame.
    pub fn cut(frame: &Bytes) -> Result<Self, Error> {
        let Some((length, rest)) = frame.split_first_chunk::<LENGTH>() else {
            let found = frame.len();
            return Err(Error::invalid(format!("the binary frame has {found} bytes, expected a length of 4 at least")));
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > rest.len() {
            let most = rest.len();
            return Err(Error::invalid(format!("the JSON part is to have {length} bytes, the frame has {most} more")));
        }
        Ok(Self { json: frame.slice(LENGTH..LENGTH + length), tail: frame.slice(LENGTH + length..) })
    }

    /// Where the tail begins, counted from the start of the frame.
    pub fn offset(&self) -> usize {
        LENGTH + self.json.len()
    }

    /// Checks that the tail is exactly what the message announces.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidRequest`] with both lengths.
    pub fn check(&self, envelope: &Envelope<'_>) -> Result<(), Error> {
        let Some((end, padded)) = self.announced(envelope) else {
            return Err(Error::invalid("the announced tensors are longer than any frame"));
        };
        let found = self.offset() + self.tail.len();
        if end == found || padded == found {
            return Ok(());
        }
        Err(Error::invalid(format!("the binary frame has {found} bytes, its message announces {end}")))
    }

    /// Where the last announced tensor ends, if empty ones have no place of their own and if they have. Lengths that
    /// are no numbers announce nothing: the decoder names them.
    fn announced(&self, envelope: &Envelope<'_>) -> Option<(usize, usize)> {
        let mut end = self.offset();
        let mut padded = end;
        let Some(Ok(mut inputs)) = envelope.inputs.map(Items::of) else { return Some((end, padded)) };
        while let Ok(Some(input)) = inputs.next() {
            let Ok(mut members) = Members::of(input) else { continue };
            while let Ok(Some((name, value))) = members.next() {
                if let (b"byte_length", Some(length)) = (name, number(value)) {
                    let length = usize::try_from(length).ok()?;
                    padded = end.checked_next_multiple_of(ALIGNMENT)?.checked_add(length)?;
                    end = if length == 0 { end } else { padded };
                }
            }
        }
        Some((end, padded))
    }
}

/// Zeros after `length` bytes, up to the next place for a tensor.
pub(super) fn padding(length: usize) -> &'static [u8] {
    &[0; ALIGNMENT][..length.wrapping_neg() % ALIGNMENT]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(json: &str, tail: &[u8]) -> Bytes {
        let mut frame = u32::try_from(json.len()).unwrap().to_le_bytes().to_vec();
        frame.extend_from_slice(json.as_bytes());
        frame.extend_from_slice(padding(frame.len()));
        frame.extend_from_slice(tail);
        frame.into()
    }

    fn check(frame: &Bytes) -> Result<(), Error> {
        let frame = Frame::cut(frame)?;
        frame.check(&Envelope::peek(&frame.json)?)
    }

    #[test]
    fn lengths_must_sum_up_exactly() {
        let two = r#"{"type":"infer","inputs":[{"byte_length":3},{"data":[1]},{"byte_length":8}]}"#;
        assert!(check(&frame(two, &[0; 16])).is_ok());
        for length in [0, 11, 15, 17, 24] {
            assert!(check(&frame(two, &vec![0; length])).is_err(), "{length}");
        }
        let none = r#"{"type":"cancel","id":"abc"}"#;
        let mut exact = u32::try_from(none.len()).unwrap().to_le_bytes().to_vec();
        exact.extend_from_slice(none.as_bytes());
        assert!(check(&exact.clone().into()).is_ok());
        exact.push(0);
        assert!(check(&exact.into()).is_err());
    }

    #[test]
    fn an_empty_tensor_may_have_a_place_of_its_own() {
        let json = r#"{"type":"infer","inputs":[{"byte_length":3},{"byte_length":0}]}"#;
        for length in [3, 8] {
            assert!(check(&frame(json, &vec![0; length])).is_ok(), "{length}");
        }
        for length in [0, 4, 7, 9, 16] {
            assert!(check(&frame(json, &vec![0; length])).is_err(), "{length}");
        }
    }

    #[test]
    fn a_header_larger_than_the_frame_is_refused() {
        assert!(Frame::cut(&Bytes::from_static(&[2, 0, 0, 0, b'{'])).is_err());
        assert!(Frame::cut(&Bytes::from_static(&[255, 255, 255, 255])).is_err());
        assert!(Frame::cut(&Bytes::from_static(&[0, 0, 0])).is_err());
        let empty = Frame::cut(&Bytes::from_static(&[0, 0, 0, 0])).unwrap();
        assert!(empty.json.is_empty() && empty.tail.is_empty());
    }

    #[test]
    fn lengths_that_overflow_are_refused() {
        let json = r#"{"type":"infer","inputs":[{"byte_length":18446744073709551615},{"byte_length":9}]}"#;
        assert!(check(&frame(json, &[0; 16])).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = check(&bytes.into());
        }
    }
}
