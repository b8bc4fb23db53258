//! Typed views of bytes, and bytes of typed values.
//!
//! Bytes cut out of a socket buffer often do not lie on an element's alignment. So reading them
//! as elements is a question ([`elements`]) and never a cast; the check is bytemuck's.

use bytemuck::Pod;
use bytes::Bytes;

/// The elements, if `data` lies on `T`'s alignment and holds a whole number of them.
pub fn elements<T: Pod>(data: &[u8]) -> Option<&[T]> {
    bytemuck::try_cast_slice(data).ok()
}

/// The bytes of `values`, shared and not copied; aligned for `T` by construction.
///
/// Little-endian on every platform that this crate builds for (checked below).
pub fn bytes_of<T: Pod + Send>(values: Vec<T>) -> Bytes {
    if values.is_empty() {
        return Bytes::new();
    }
    Bytes::from_owner(Owned(values))
}

/// Copies `data` into memory that is aligned for every element type (8 bytes).
pub fn aligned_copy(data: &[u8]) -> Bytes {
    let mut words = vec![0_u64; data.len().div_ceil(8)];
    bytemuck::cast_slice_mut(&mut words)[..data.len()].copy_from_slice(data);
    bytes_of(words).slice(..data.len())
}

/// `owner`'s bytes, whose last slice lets go of `companion` too.
pub fn kept_with(owner: impl AsRef<[u8]> + Send + 'static, companion: impl Send + 'static) -> Bytes {
    Bytes::from_owner(Kept { owner, _companion: companion })
}

/// True if the bytes lie on `alignment`, a power of two.
pub fn is_aligned(data: &[u8], alignment: usize) -> bool {
    data.as_ptr().addr() & (alignment - 1) == 0
}

struct Owned<T>(Vec<T>);

impl<T: Pod> AsRef<[u8]> for Owned<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

struct Kept<T, C> {
    owner: T,
    _companion: C,
}

impl<T: AsRef<[u8]>, C> AsRef<[u8]> for Kept<T, C> {
    fn as_ref(&self) -> &[u8] {
        self.owner.as_ref()
    }
}

// Tensors are little-endian on the wire and are never swapped (contract 00 section 1).
const _: () = assert!(cfg!(target_endian = "little"), "only little-endian targets are supported");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unaligned_bytes_are_refused_and_their_copy_is_not() {
        let floats = bytes_of(vec![1.0_f32, 2.0, 3.0]);
        assert_eq!(elements::<f32>(&floats), Some(&[1.0, 2.0, 3.0][..]));
        let mut shifted = vec![0_u8];
        shifted.extend_from_slice(&floats);
        let shifted = Bytes::from(shifted);
        let first = if is_aligned(&shifted, 4) { 1 } else { 0 };
        let cut = &shifted[first..];
        let cut = if is_aligned(cut, 4) { &shifted[first + 1..first + 9] } else { &cut[..8] };
        assert!(elements::<f32>(cut).is_none());
        assert!(elements::<f32>(&aligned_copy(cut)).is_some());
    }

    #[test]
    fn a_copy_keeps_its_length() {
        assert_eq!(&aligned_copy(b"abc")[..], b"abc");
        assert!(aligned_copy(b"").is_empty());
    }
}
