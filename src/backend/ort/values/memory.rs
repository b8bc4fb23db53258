//! What the C library and the system are told of the memory that ONNX Runtime takes from them.

use std::{ffi::c_void, io, ops::Range, ptr};

/// Has the C library give large blocks back to the system when they are freed; ONNX Runtime's memory comes from it.
///
/// glibc raises the size from which a block is a mapping of its own to that of the largest one freed so far, up to 32 MiB. From
/// then on what a run frees stays in a heap, between what others have: 250 MiB instead of 75 after half a minute of
/// `benches/plateau.py`. With a size that is said it stays at that. Elsewhere nothing is done.
pub(in crate::backend::ort) fn return_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// `M_MMAP_THRESHOLD` of `malloc.h`.
        const MMAP_THRESHOLD: i32 = -3;
        /// Large enough that a mapping is little beside filling it.
        const BYTES: i32 = 1 << 20;
        unsafe extern "C" {
            fn mallopt(parameter: i32, value: i32) -> i32;
        }
        // SAFETY: the function's declaration in `malloc.h`; it takes the allocator's own lock.
        if unsafe { mallopt(MMAP_THRESHOLD, BYTES) } == 0 {
            tracing::warn!("the system's allocator cannot be told to give large blocks back");
        }
    }
}

/// Has the system lay these addresses in huge pages now, which takes a copy of them; memory says the same afterwards.
///
/// # Errors
///
/// The system's: it does not know how (before Linux 6.1), has no such pages left, or holds one of these just now.
pub(in crate::backend::ort) fn collapse(piece: &Range<usize>) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        /// `MADV_COLLAPSE` of `linux/mman.h`.
        const COLLAPSE: i32 = 25;
        unsafe extern "C" {
            fn madvise(address: *mut c_void, length: usize, advice: i32) -> i32;
        }
        // SAFETY: the function's declaration in `sys/mman.h`. The system moves pages under a lock of its own and changes
        // nothing that is written in them; addresses at which nothing is mapped are an error.
        match unsafe { madvise(ptr::without_provenance_mut(piece.start), piece.len(), COLLAPSE) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = piece;
        Err(io::ErrorKind::Unsupported.into())
    }
}
