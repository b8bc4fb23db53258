//! What a call asks of a model, as far as it decides the answer, and the name that it is found by.
//!
//! The model and its version are not in it: each version that is loaded has a cache and a key of its own.

use crate::tensor::{DataType, Tensor, Tensors};
use bytes::Bytes;
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use std::sync::Arc;

/// What a call asks. Two that are equal have the same answer, and may know it of each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    /// The identity among whose calls answers are shared; `None`: among all who may call the model.
    pub(super) scope: Option<Arc<str>>,
    /// What the model runs on, in the signature's order, with what the call left out.
    pub(super) inputs: Tensors,
}

/// What a [`Question`] is found by: 256 bits.
pub(super) type Hash = [u8; 32];

/// Makes hashes of questions.
///
/// HMAC-SHA-256 of `ring`, which verifies our tokens: processors have instructions for it (about 1 GB/s and more), and
/// whoever does not know the key, which is made when the cache is, cannot find two questions with one hash. Should there be
/// two all the same, they are told apart: see [`Question`]'s `==`.
#[derive(Debug)]
pub(super) enum Hashing {
    Keyed(hmac::Key),
    /// One hash for all, so that tests see what becomes of two questions with the same.
    #[cfg(test)]
    Same,
}

// === impl Hashing ===

impl Hashing {
    /// Under a new key. `None` if the system has no randomness to give, which is not to be worked around.
    pub(super) fn keyed() -> Option<Self> {
        let mut key: Hash = [0; 32];
        SystemRandom::new().fill(&mut key).ok()?;
        Some(Self::Keyed(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    pub(super) fn hash(&self, question: &Question) -> Hash {
        let key = match self {
            Self::Keyed(key) => key,
            #[cfg(test)]
            Self::Same => return [0; 32],
        };
        let mut context = hmac::Context::with_key(key);
        // Each part is told by its length or comes with it, so no two questions are the same row of bytes.
        let number = |number: usize, context: &mut hmac::Context| context.update(&(number as u64).to_le_bytes());
        match &question.scope {
            None => context.update(&[0]),
            Some(identity) => {
                context.update(&[1]);
                number(identity.len(), &mut context);
                context.update(identity.as_bytes());
            }
        }
        for input in &question.inputs {
            context.update(&[place(input.dtype())]);
            number(input.shape().rank(), &mut context);
            input.shape().dims().iter().for_each(|dim| number(*dim, &mut context));
            number(input.data().len(), &mut context);
            context.update(input.data());
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(context.sign().as_ref());
        hash
    }
}

fn place(dtype: DataType) -> u8 {
    DataType::ALL.iter().position(|known| *known == dtype).map_or(u8::MAX, |place| place as u8)
}

// === impl Question ===

impl Question {
    /// Bytes of its inputs.
    pub(super) fn bytes(&self) -> usize {
        self.inputs.iter().map(|input| input.data().len()).sum()
    }

    /// The same in memory of its own: what is kept for long must not hold the body of a request, of which it may be a small
    /// part.
    pub(super) fn compact(&self) -> Self {
        Self { scope: self.scope.clone(), inputs: self.inputs.iter().map(compact).collect() }
    }
}

/// A tensor in memory of its own.
pub(super) fn compact(tensor: &Tensor) -> Tensor {
    let data = Bytes::copy_from_slice(tensor.data());
    // The same bytes are of the same type and shape.
    Tensor::new(tensor.dtype(), tensor.shape().clone(), data).unwrap_or_else(|_| tensor.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Shape;
    use proptest::prelude::*;

    fn question(scope: Option<&str>, inputs: impl IntoIterator<Item = Tensor>) -> Question {
        Question { scope: scope.map(Arc::from), inputs: inputs.into_iter().collect() }
    }

    fn bytes(shape: impl Into<Shape>, data: &[u8]) -> Tensor {
        Tensor::new(DataType::Uint8, shape.into(), Bytes::copy_from_slice(data)).unwrap()
    }

    #[test]
    fn whatever_decides_the_answer_is_in_the_hash() {
        let signed = Tensor::new(DataType::Int8, [2].into(), Bytes::from_static(&[1, 2])).unwrap();
        let questions = [
            question(None, [bytes([2], &[1, 2])]),
            question(Some(""), [bytes([2], &[1, 2])]),
            question(Some("a"), [bytes([2], &[1, 2])]),
            question(Some("b"), [bytes([2], &[1, 2])]),
            question(None, [signed]),
            question(None, [bytes([1, 2], &[1, 2])]),
            question(None, [bytes([2, 1], &[1, 2])]),
            question(None, [bytes([2], &[2, 1])]),
            question(None, [bytes([1], &[1]), bytes([1], &[2])]),
            question(None, [Tensor::strings([2].into(), ["a", "bc"]).unwrap()]),
            question(None, [Tensor::strings([2].into(), ["ab", "c"]).unwrap()]),
            question(None, []),
        ];
        let hashing = Hashing::keyed().unwrap();
        for (at, one) in questions.iter().enumerate() {
            for (place, other) in questions.iter().enumerate() {
                assert_eq!(hashing.hash(one) == hashing.hash(other), at == place, "{one:?} and {other:?}");
                assert_eq!(one == other, at == place, "{one:?} and {other:?}");
            }
        }
    }

    #[test]
    fn each_cache_has_a_key_of_its_own() {
        let question = question(None, [bytes([2], &[1, 2])]);
        assert_ne!(Hashing::keyed().unwrap().hash(&question), Hashing::keyed().unwrap().hash(&question));
    }

    proptest! {
        #[test]
        fn equal_questions_and_no_others_have_one_hash(
            one in prop::collection::vec(prop::collection::vec(0_u8..2, 0..3), 0..3),
            other in prop::collection::vec(prop::collection::vec(0_u8..2, 0..3), 0..3),
            scopes in prop::array::uniform2(prop::option::of("[ab]{0,2}")),
        ) {
            let made = |scope: &Option<String>, inputs: &[Vec<u8>]| {
                question(scope.as_deref(), inputs.iter().map(|data| bytes([data.len()], data)))
            };
            let (one, other) = (made(&scopes[0], &one), made(&scopes[1], &other));
            let hashing = Hashing::keyed().unwrap();
            prop_assert_eq!(hashing.hash(&one) == hashing.hash(&other), one == other);
            prop_assert_eq!(hashing.hash(&one), hashing.hash(&one.compact()));
        }
    }
}
