//! Shapes: how many elements there are, without overflow.

use smallvec::SmallVec;
use std::fmt;

/// The dimensions of a tensor, outermost first. A scalar has none.
///
/// Up to four dimensions are held without an allocation.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Shape(SmallVec<[usize; 4]>);

impl Shape {
    /// A shape with these dimensions.
    pub fn new(dims: impl IntoIterator<Item = usize>) -> Self {
        Self(dims.into_iter().collect())
    }

    /// The dimensions, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.0
    }

    /// The number of dimensions; 0 for a scalar.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// The number of elements; `None` if the product overflows `usize`.
    ///
    /// The product is taken over all dimensions that are not zero first, so that
    /// `[usize::MAX, usize::MAX, 0]` overflows here just as `[usize::MAX, usize::MAX]` does:
    /// such a shape is nonsense whichever way round it is written.
    pub fn elements(&self) -> Option<usize> {
        let product = self.0.iter().filter(|dim| **dim != 0).try_fold(1_usize, |n, dim| n.checked_mul(*dim))?;
        Some(if self.0.contains(&0) { 0 } else { product })
    }

    /// The same shape with another first dimension. A scalar stays one.
    #[must_use]
    pub fn with_rows(&self, rows: usize) -> Self {
        let mut dims = self.0.clone();
        if let Some(first) = dims.first_mut() {
            *first = rows;
        }
        Self(dims)
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0.as_slice(), f)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0.as_slice(), f)
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        Self::new(dims)
    }
}

impl From<SmallVec<[usize; 4]>> for Shape {
    fn from(dims: SmallVec<[usize; 4]>) -> Self {
        Self(dims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_never_wrap() {
        assert_eq!(Shape::from([2, 3]).elements(), Some(6));
        assert_eq!(Shape::default().elements(), Some(1));
        assert_eq!(Shape::from([3, 0]).elements(), Some(0));
        assert_eq!(Shape::from([usize::MAX, 2]).elements(), None);
        assert_eq!(Shape::from([usize::MAX, 2, 0]).elements(), None);
    }
}
