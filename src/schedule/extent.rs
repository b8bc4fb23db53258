//! How much a job or a batch is: what bounds it, and what it costs by.
//!
//! For most models both are rows. Rows of a ragged model differ in length, and what its runs cost goes with the elements of
//! all rows together; so there are two bounds.

use super::BatchPolicy;
use crate::tensor::{DataType, Signature, TensorSpec};

/// How much a job or a batch is, or how much a batch may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Rows.
    pub rows: usize,
    /// What its cost is known by: its rows, or the elements of ragged inputs.
    pub size: usize,
}

// === impl Extent ===

impl Extent {
    /// So many rows of a model whose runs cost by their rows.
    pub const fn of_rows(rows: usize) -> Self {
        Self { rows, size: rows }
    }

    /// Both together.
    #[must_use]
    pub(super) fn plus(self, other: Self) -> Self {
        Self { rows: self.rows.saturating_add(other.rows), size: self.size.saturating_add(other.size) }
    }

    /// What is left without `other`.
    #[must_use]
    pub(super) fn minus(self, other: Self) -> Self {
        Self { rows: self.rows.saturating_sub(other.rows), size: self.size.saturating_sub(other.size) }
    }

    /// The same with one row at least: what counts as a job that runs.
    #[must_use]
    pub(super) fn or_one(self) -> Self {
        Self { rows: self.rows.max(1), ..self }
    }

    /// True if it is more than `room` by either.
    pub(super) fn exceeds(self, room: Self) -> bool {
        self.rows > room.rows || self.size > room.size
    }

    /// True if nothing more fits into `room`.
    pub(super) fn fills(self, room: Self) -> bool {
        self.rows >= room.rows || self.size >= room.size
    }

    /// The first batch of `room` out of so much, whose rows are taken to be alike.
    #[must_use]
    pub(super) fn within(self, room: Self) -> Self {
        let rows = self.rows.min(room.rows);
        let part = (self.size as u128 * rows as u128).checked_div(self.rows as u128).unwrap_or_default();
        Self { rows, size: usize::try_from(part).unwrap_or(usize::MAX).min(room.size) }
    }
}

impl BatchPolicy {
    /// Room for as much as a batch may be.
    pub(super) fn room(&self) -> Extent {
        self.room_of(self.max_rows)
    }

    /// Room for so many rows.
    pub(super) fn room_of(&self, rows: usize) -> Extent {
        Extent { rows, size: self.max_elements.unwrap_or(rows) }
    }
}

/// Bytes of one row in the smallest shape that a model takes.
pub(super) fn least_row(signature: &Signature) -> usize {
    let bytes = |spec: &TensorSpec| {
        let elements = spec.dims.iter().skip(1).map(|dim| dim.unwrap_or(1)).fold(1, usize::saturating_mul);
        // An empty string is its length.
        elements.saturating_mul(spec.dtype.and_then(DataType::size).unwrap_or(4))
    };
    signature.inputs.iter().map(bytes).fold(0, usize::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_by_rows_is_bounded_by_rows() {
        let policy = BatchPolicy { max_rows: 8, ..BatchPolicy::default() };
        assert_eq!(policy.room(), Extent::of_rows(8));
        assert_eq!(Extent::of_rows(20).within(policy.room()), Extent::of_rows(8));
        assert_eq!(Extent::of_rows(5).within(policy.room()), Extent::of_rows(5));
        assert_eq!(Extent::default().within(policy.room()), Extent::default());
        assert!(Extent::of_rows(8).fills(policy.room()) && !Extent::of_rows(8).exceeds(policy.room()));
    }

    #[test]
    fn either_bound_bounds() {
        let room = BatchPolicy { max_rows: 8, max_elements: Some(100), ..BatchPolicy::default() }.room();
        let extent = |rows, size| Extent { rows, size };
        assert!(extent(9, 1).exceeds(room) && extent(1, 101).exceeds(room) && !extent(8, 100).exceeds(room));
        assert!(extent(8, 0).fills(room) && extent(1, 100).fills(room) && !extent(7, 99).fills(room));
        // Of 16 rows of 10 elements, 8 fit; of rows of 50, so many that they have 100.
        assert_eq!(extent(16, 160).within(room), extent(8, 80));
        assert_eq!(extent(4, 200).within(room), extent(4, 100));
        assert_eq!(extent(3, 4).plus(extent(usize::MAX, 1)).minus(extent(1, 9)), extent(usize::MAX - 1, 0));
    }
}
