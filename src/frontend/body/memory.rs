//! The budget of bytes that bodies and outputs may hold (`limits.concurrency.memory`).
//!
//! Bodies of up to [`FREE`] bytes are not counted: the slots of the stack bound how many there are,
//! and counting each would cost every small call two atomic operations and an allocation for little.

use crate::{
    error::{Error, Limit},
    tensor::view,
};
use bytes::Bytes;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Up to this many bytes are not counted: 4,096 slots hold at most 256 MiB of them, the budget once more.
pub(super) const FREE: usize = 64 * 1024;

/// What messages may take beyond the budget while they arrive: four of the largest, as `limits.size.message` has it.
///
/// A message for which there is no room is refused by its `id` (contract 06 section C6), which is known only once it is
/// there; without an end to this, its session would have to end instead.
const OVERDRAFT: usize = 64 << 20;

/// Bytes of bodies and outputs held by all connections. Cloning shares the budget.
///
/// What it has no room for now is refused with [`Error::Overloaded`], and what it could never have room for, were it
/// empty, with [`Error::NeverFits`].
#[derive(Clone, Debug)]
pub struct Memory {
    used: Arc<AtomicUsize>,
    budget: usize,
    /// Bytes by which `budget` may be exceeded.
    overdraft: usize,
    /// Bytes that whoever asks holds already, and goes on holding.
    beside: usize,
}

impl Memory {
    /// A budget of `budget` bytes.
    pub fn new(budget: usize) -> Self {
        Self { used: Arc::default(), budget, overdraft: 0, beside: 0 }
    }

    /// The same budget for messages that arrive, which may overdraw it a little to be refused by their `id`.
    #[must_use]
    pub fn for_arrivals(&self) -> Self {
        Self { overdraft: OVERDRAFT, ..self.clone() }
    }

    /// The same budget for what is needed together with something of `held` bytes that is there already: both must fit.
    #[must_use]
    pub fn beside(&self, held: usize) -> Self {
        let beside = if held > FREE { held } else { 0 };
        Self { beside, ..self.clone() }
    }

    fn limit(&self) -> usize {
        self.budget.saturating_add(self.overdraft)
    }

    /// Why there is no room for `bytes`.
    fn refusal(&self, bytes: usize) -> Error {
        let bytes = bytes.saturating_add(self.beside);
        if bytes > self.limit() {
            Error::NeverFits { bytes: bytes as u64, budget: self.budget as u64 }
        } else {
            Error::Overloaded { limit: Limit::Memory }
        }
    }

    /// Bytes that are held now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether `bytes` more would fit now. Nothing is taken.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.used().checked_add(bytes).is_some_and(|total| total <= self.limit())
    }

    /// Refuses what is about to be made and would not fit: a text that takes seconds to write, and more memory than there
    /// is to be, is not to be found too large afterwards. Nothing is taken.
    ///
    /// # Errors
    ///
    /// As [`Memory`] if the budget does not have `bytes` now.
    pub fn expect(&self, bytes: usize) -> Result<(), Error> {
        // Small ones are never counted.
        if bytes <= FREE || self.has_room(bytes) { Ok(()) } else { Err(self.refusal(bytes)) }
    }

    /// Takes `bytes` out of the budget until the reservation is dropped.
    ///
    /// # Errors
    ///
    /// As [`Memory`] if the budget does not have them.
    pub fn reserve(&self, bytes: usize) -> Result<Reservation, Error> {
        let mut reservation = Reservation { memory: self.clone(), bytes: 0 };
        reservation.grow(bytes)?;
        Ok(reservation)
    }

    /// Counts `bytes` for as long as any slice of them lives; small ones are passed through uncounted.
    ///
    /// # Errors
    ///
    /// As [`Memory`] if the budget does not have them.
    pub fn hold(&self, bytes: Bytes) -> Result<Bytes, Error> {
        if bytes.len() <= FREE {
            return Ok(bytes);
        }
        let reservation = self.reserve(bytes.len())?;
        Ok(reservation.keep(bytes))
    }

    /// Counts `pieces` together for as long as any slice of them lives; uncounted if all of them are small together.
    ///
    /// # Errors
    ///
    /// As [`Memory`] if the budget does not have them.
    pub fn hold_all(&self, pieces: &mut [Bytes]) -> Result<(), Error> {
        let total = pieces.iter().map(Bytes::len).sum();
        if let Some(reservation) = self.reserve_large(total)? {
            reservation.keep_all(pieces);
        }
        Ok(())
    }

    /// Counts each of `pieces` for as long as any slice of it lives, if there is room for all of them; small ones are left
    /// uncounted.
    ///
    /// # Errors
    ///
    /// As [`Memory`] if the budget does not have them.
    pub fn hold_each(&self, pieces: &mut [Bytes]) -> Result<(), Error> {
        self.expect(pieces.iter().map(Bytes::len).filter(|length| *length > FREE).sum())?;
        for piece in pieces {
            *piece = self.hold(std::mem::take(piece))?;
        }
        Ok(())
    }

    /// As [`Memory::hold_all`] for the values of `named`.
    ///
    /// # Errors
    ///
    /// As [`Memory`] if the budget does not have them.
    pub fn hold_named(&self, named: &mut [(Arc<str>, Bytes)]) -> Result<(), Error> {
        let mut pieces: Vec<_> = named.iter_mut().map(|(_, value)| std::mem::take(value)).collect();
        self.hold_all(&mut pieces)?;
        for ((_, value), held) in named.iter_mut().zip(pieces) {
            *value = held;
        }
        Ok(())
    }

    /// As [`Memory::reserve`]; `None` for what is too small to be counted.
    ///
    /// # Errors
    ///
    /// As [`Memory`] if the budget does not have them.
    pub fn reserve_large(&self, bytes: usize) -> Result<Option<Reservation>, Error> {
        (bytes > FREE).then(|| self.reserve(bytes)).transpose()
    }

    /// Makes `reservation` cover `total` bytes of what arrives in pieces, once they are too many to go uncounted.
    ///
    /// # Errors
    ///
    /// As [`Memory`] if the budget does not have them; what was taken before stays taken.
    pub fn cover(&self, reservation: &mut Option<Reservation>, total: usize) -> Result<(), Error> {
        match reservation {
            Some(reservation) => reservation.grow(total.saturating_sub(reservation.bytes)),
            None => {
                *reservation = self.reserve_large(total)?;
                Ok(())
            }
        }
    }
}

/// Bytes taken out of the budget. Dropping it gives them back.
#[derive(Debug)]
pub struct Reservation {
    memory: Memory,
    bytes: usize,
}

impl Reservation {
    /// Bytes that it covers.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes `more` bytes.
    ///
    /// # Errors
    ///
    /// As [`Memory`] if the budget does not have them; what was taken before stays taken.
    pub fn grow(&mut self, more: usize) -> Result<(), Error> {
        let limit = self.memory.limit();
        self.memory
            .used
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| {
                used.checked_add(more).filter(|total| *total <= limit)
            })
            .map_err(|_| self.memory.refusal(self.bytes.saturating_add(more)))?;
        self.bytes += more;
        Ok(())
    }

    /// Makes it cover `total` bytes, whatever it covered before.
    ///
    /// # Errors
    ///
    /// As [`Memory`] if the budget does not have them; what was taken before stays taken.
    pub fn fit(&mut self, total: usize) -> Result<(), Error> {
        match total.checked_sub(self.bytes) {
            Some(more) => self.grow(more),
            None => {
                self.memory.used.fetch_sub(self.bytes - total, Ordering::AcqRel);
                self.bytes = total;
                Ok(())
            }
        }
    }

    /// `owner`'s bytes, whose last slice gives the reservation back.
    pub fn keep(self, owner: impl AsRef<[u8]> + Send + 'static) -> Bytes {
        view::kept_with(owner, self)
    }

    /// Gives the reservation back with the last slice of `pieces`.
    pub fn keep_all(self, pieces: &mut [Bytes]) {
        let shared = Arc::new(self);
        for piece in pieces {
            let owner = std::mem::take(piece);
            *piece = view::kept_with(owner, Arc::clone(&shared));
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_given_back_when_their_last_slice_is_gone() {
        let memory = Memory::new(3 * FREE);
        let held = memory.hold(Bytes::from(vec![1; 2 * FREE])).unwrap();
        let slice = held.slice(8..16);
        drop(held);
        assert_eq!(memory.used(), 2 * FREE);
        assert!(matches!(memory.hold(Bytes::from(vec![1; 2 * FREE])), Err(Error::Overloaded { limit: Limit::Memory })));
        assert!(memory.has_room(FREE) && !memory.has_room(FREE + 1));
        assert!(memory.expect(FREE).is_ok() && memory.expect(FREE + 1).is_err());
        drop(slice);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn pieces_are_counted_together_until_the_last_one_is_gone() {
        let memory = Memory::new(3 * FREE);
        let mut pieces = vec![Bytes::from(vec![1; FREE]), Bytes::from_static(b"ab"), Bytes::new()];
        memory.hold_all(&mut pieces).unwrap();
        assert_eq!((memory.used(), &pieces[1][..]), (FREE + 2, &b"ab"[..]));
        let slice = pieces[1].slice(1..);
        drop(pieces);
        assert_eq!(memory.used(), FREE + 2);
        drop(slice);
        assert_eq!(memory.used(), 0);
        memory.hold_all(&mut [Bytes::from(vec![1; FREE])]).unwrap();
        assert!(memory.hold_all(&mut [Bytes::from(vec![1; 2 * FREE]), Bytes::from(vec![1; 2 * FREE])]).is_err());
    }

    #[test]
    fn pieces_that_go_one_by_one_are_counted_one_by_one_and_must_fit_together() {
        let memory = Memory::new(4 * FREE);
        let mut pieces = [2 * FREE, FREE, FREE + 1].map(|length| Bytes::from(vec![1; length]));
        memory.hold_each(&mut pieces).unwrap();
        assert_eq!(memory.used(), 3 * FREE + 1);
        let [first, small, _last] = pieces;
        drop((first, small));
        assert_eq!(memory.used(), FREE + 1);
        let refused = memory.hold_each(&mut [2 * FREE, 2 * FREE].map(|length| Bytes::from(vec![1; length])));
        assert!(matches!(refused, Err(Error::Overloaded { .. })));
        let refused = memory.hold_each(&mut [2 * FREE, 3 * FREE].map(|length| Bytes::from(vec![1; length])));
        assert!(matches!(refused, Err(Error::NeverFits { .. })));
        assert_eq!(memory.used(), FREE + 1, "a refusal keeps nothing");
    }

    #[test]
    fn what_arrives_is_covered_once_it_is_large() {
        let memory = Memory::new(2 * FREE);
        let mut reservation = None;
        memory.cover(&mut reservation, FREE).unwrap();
        assert!(reservation.is_none());
        for total in [FREE + 1, FREE + 5, FREE + 2, 2 * FREE] {
            memory.cover(&mut reservation, total).unwrap();
        }
        assert_eq!(memory.used(), 2 * FREE);
        assert!(memory.cover(&mut reservation, 2 * FREE + 1).is_err());
        drop(reservation);
        assert_eq!(memory.used(), 0);
    }

    /// What is said of `refused`: that there is no room now, or never with so many bytes.
    fn never<T: std::fmt::Debug>(refused: Result<T, Error>) -> Option<u64> {
        match refused.unwrap_err() {
            Error::Overloaded { limit: Limit::Memory } => None,
            Error::NeverFits { bytes, budget } => {
                assert_eq!(budget, 3 * FREE as u64);
                Some(bytes)
            }
            error => panic!("{error:?}"),
        }
    }

    #[test]
    fn what_does_not_fit_now_may_come_again_and_what_never_fits_is_too_large() {
        let memory = Memory::new(3 * FREE);
        let held = memory.reserve(2 * FREE).unwrap();
        for bytes in [2 * FREE, 3 * FREE] {
            assert_eq!(never(memory.reserve(bytes)), None);
            assert_eq!(never(memory.expect(bytes)), None);
        }
        let (beyond, told) = (3 * FREE + 1, Some(3 * FREE as u64 + 1));
        assert_eq!(never(memory.reserve(beyond)), told);
        assert_eq!(never(memory.expect(beyond)), told);
        assert_eq!(never(memory.hold(Bytes::from(vec![1; beyond]))), told);
        assert_eq!(never(memory.hold_all(&mut [Bytes::from(vec![1; beyond - 1]), Bytes::from_static(b"a")])), told);
        assert_eq!(never(memory.cover(&mut None, beyond)), told);
        drop(held);
        let mut grows = memory.reserve(2 * FREE).unwrap();
        assert_eq!(never(grows.grow(FREE + 1)), told);
        assert_eq!(never(grows.fit(beyond)), told);
        assert_eq!(never(grows.grow(usize::MAX)), Some(u64::MAX));
        assert_eq!(never(memory.reserve(FREE + 1)), None);
    }

    #[test]
    fn what_is_needed_together_must_fit_together() {
        let memory = Memory::new(3 * FREE);
        let held = memory.reserve(2 * FREE).unwrap();
        assert_eq!(never(memory.reserve(2 * FREE)), None);
        assert_eq!(never(memory.beside(held.bytes()).reserve(2 * FREE)), Some(4 * FREE as u64));
        let mut more = memory.beside(held.bytes()).reserve(FREE).unwrap();
        assert_eq!(never(more.grow(1)), Some(3 * FREE as u64 + 1));
    }

    #[test]
    fn a_message_that_arrives_never_fits_beyond_what_may_be_overdrawn() {
        let arrivals = Memory::new(3 * FREE).for_arrivals();
        let held = arrivals.reserve(3 * FREE + OVERDRAFT).unwrap();
        assert_eq!(never(arrivals.reserve(4 * FREE)), None);
        assert_eq!(never(arrivals.reserve(held.bytes() + 1)), Some(held.bytes() as u64 + 1));
    }

    #[test]
    fn a_refused_growth_takes_nothing() {
        let memory = Memory::new(10);
        let mut reservation = memory.reserve(8).unwrap();
        assert!(reservation.grow(3).is_err() && reservation.grow(usize::MAX).is_err());
        assert_eq!(memory.used(), 8);
        drop(reservation);
        assert_eq!(memory.used(), 0);
    }
}
