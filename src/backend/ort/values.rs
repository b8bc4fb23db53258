//! Tensors to ONNX Runtime's values and back, without copies where memory allows.
//!
//! The only unsafe code of the crate: everything that ONNX Runtime is given or gives by pointer passes through here.
//! It goes to the C API itself and not through ort's own values, because those cannot carry strings with a NUL in
//! them nor half precision, and look up memory and allocators for every output of every run. What a model wants or
//! what a client sent is not known here; the checks are those that memory safety needs.
#![allow(unsafe_code)]

// Here for the lint, which allows unsafe code in this module alone.
mod memory;
mod options;

pub(super) use memory::{collapse, return_large_blocks};
pub(super) use options::{RunOptions, append, arena_bytes, assignments, available_providers, name};

use crate::tensor::{DataType, Shape, push_string, view};
use bytes::Bytes;
use ort::{AsPointer, Error, memory::Allocator, memory::MemoryInfo, session::Session, sys};
use smallvec::SmallVec;
use std::{
    ffi::{CStr, CString, c_void},
    marker::PhantomData,
    path::Path,
    ptr::{self, NonNull},
    slice,
};

/// Inputs or outputs held without an allocation; models have one or two of each.
pub(super) const INLINE: usize = 4;

/// Sets `ORT_DISABLE_TELEMETRY=1` for this process. To be called first thing in `main`.
///
/// Official builds of ONNX Runtime carry a client that sends usage data, and it reads this variable when the
/// library's environment is made. Returns false, having done nothing, unless it is certain that there is no other thread:
/// where the system does not say (macOS), the environment's own switch, which [`Runtime`](super::Runtime) sets, has to do.
#[must_use = "false means that the variable is not set"]
#[allow(clippy::disallowed_methods, reason = "this is the one place, and it checks that there are no other threads")]
pub fn disable_telemetry() -> bool {
    let alone = std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1);
    if !alone {
        return false;
    }
    // SAFETY: no other thread reads or writes the environment meanwhile, for there is none.
    unsafe { std::env::set_var(super::TELEMETRY_VARIABLE, "1") };
    true
}

/// The version of the ONNX Runtime in the library at `path` (or of that name in the system's library path).
///
/// The library stays loaded. An error is why there is none.
pub(super) fn load_version(path: &Path) -> Result<String, String> {
    // SAFETY: loading a library runs its initialisers. The path comes from the operator or from beside the executable;
    // whoever may write there may replace the executable too.
    let library = unsafe { libloading::Library::new(path) }.map_err(|error| {
        // What the system said is in the source; the error itself says only that loading failed.
        std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
    })?;
    // SAFETY: a symbol of this name has had this signature in every ONNX Runtime.
    let entry = unsafe { library.get::<unsafe extern "C" fn() -> *const sys::OrtApiBase>(b"OrtGetApiBase") }
        .map_err(|_| "exports no `OrtGetApiBase`, so it is not ONNX Runtime".to_owned())?;
    // SAFETY: as above; the pointer is checked before it is read, and what it points to is constant.
    let version = unsafe {
        let base = entry().as_ref().ok_or("returned no API")?;
        CStr::from_ptr((base.GetVersionString)())
    };
    let version = version.to_string_lossy().into_owned();
    // Never unloaded: ONNX Runtime is not made for it.
    std::mem::forget(library);
    Ok(version)
}

/// A value of ONNX Runtime. One made over borrowed memory lives no longer than that.
pub(super) struct Value<'memory> {
    pointer: NonNull<sys::OrtValue>,
    memory: PhantomData<&'memory [u8]>,
}

/// What an output turned out to be.
pub(super) struct Described {
    pub(super) dtype: Option<DataType>,
    pub(super) shape: Shape,
}

// === impl Value ===

// SAFETY: a value is memory and a description of it. Nothing here changes either once the value is shared, and
// releasing it from another thread is what ONNX Runtime's allocators are locked for.
unsafe impl Send for Value<'_> {}
// SAFETY: as above.
unsafe impl Sync for Value<'_> {}

impl Drop for Value<'_> {
    fn drop(&mut self) {
        // SAFETY: we own it, and it is released once.
        unsafe { (ort::api().ReleaseValue)(self.pointer.as_ptr()) }
    }
}

impl<'memory> Value<'memory> {
    /// A tensor over `data`, which is not copied. `memory` describes the CPU's.
    ///
    /// `None` if `data` cannot be read in place: it does not lie on the type's alignment, or holds a boolean that is
    /// neither 0 nor 1. Not for strings.
    pub(super) fn borrow(
        memory: &MemoryInfo<'_>,
        dtype: DataType,
        shape: &Shape,
        data: &'memory [u8],
    ) -> Result<Option<Self>, Error> {
        let size = dtype.size().ok_or_else(|| Error::new("strings cannot be borrowed"))?;
        if shape.elements().and_then(|elements| elements.checked_mul(size)) != Some(data.len()) {
            return Err(Error::new("the bytes of a tensor do not have the length that its shape asks for"));
        }
        if !view::is_aligned(data, size) || (dtype == DataType::Bool && data.iter().any(|byte| *byte > 1)) {
            return Ok(None);
        }
        let dims = wire_dims(shape);
        let mut value = ptr::null_mut();
        // SAFETY: the lengths are those of the slices, the bytes have been checked to be `shape` elements of `dtype`,
        // aligned and valid, and outlive the value. ONNX Runtime takes a mutable pointer because outputs may be
        // handed in the same way; inputs it only reads.
        let status = unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                memory.ptr(),
                data.as_ptr().cast_mut().cast::<c_void>(),
                data.len(),
                dims.as_ptr(),
                dims.len(),
                element_type(dtype),
                &mut value,
            )
        };
        check(status)?;
        Ok(Some(Self::own(value)?))
    }

    fn own(pointer: *mut sys::OrtValue) -> Result<Self, Error> {
        let pointer = NonNull::new(pointer).ok_or_else(|| Error::new("expected a value, found null"))?;
        Ok(Self { pointer, memory: PhantomData })
    }
}

impl Value<'static> {
    /// A tensor of copies of `strings`, of any bytes, NUL included.
    pub(super) fn strings<'a>(shape: &Shape, strings: impl Iterator<Item = &'a [u8]>) -> Result<Self, Error> {
        let dims = wire_dims(shape);
        let mut value = ptr::null_mut();
        // SAFETY: the lengths are those of the slices. The default allocator is a constant of the library.
        let status = unsafe {
            let mut allocator = Allocator::default();
            let kind = sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING;
            (ort::api().CreateTensorAsOrtValue)(allocator.ptr_mut(), dims.as_ptr(), dims.len(), kind, &mut value)
        };
        check(status)?;
        let value = Self::own(value)?;
        for (index, string) in strings.enumerate() {
            let mut buffer = ptr::null_mut();
            // SAFETY: the value is a tensor of strings that nobody else has seen; an index beyond it is an error.
            let status = unsafe {
                (ort::api().GetResizedStringTensorElementBuffer)(
                    value.pointer.as_ptr(),
                    index,
                    string.len(),
                    &mut buffer,
                )
            };
            check(status)?;
            if !string.is_empty() {
                // SAFETY: the buffer has just been given this length and is the element's own.
                unsafe { ptr::copy_nonoverlapping(string.as_ptr(), buffer.cast::<u8>(), string.len()) };
            }
        }
        Ok(value)
    }

    /// Type and shape of an output; an error if it is no tensor.
    pub(super) fn describe(&self) -> Result<Described, Error> {
        let mut kind = sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
        let mut dims = ptr::null();
        let mut rank = 0;
        // SAFETY: all are out-parameters. The reference to the dimensions is valid as long as the value.
        let status = unsafe {
            (ort::api().GetTensorElementTypeAndShapeDataReference)(
                self.pointer.as_ptr(),
                &mut kind,
                &mut dims,
                &mut rank,
            )
        };
        check(status)?;
        let dims = if rank == 0 || dims.is_null() {
            &[]
        } else {
            // SAFETY: `rank` dimensions, see above.
            unsafe { slice::from_raw_parts(dims, rank) }
        };
        let shape = dims.iter().map(|dim| usize::try_from(*dim)).collect::<Result<SmallVec<[usize; INLINE]>, _>>();
        let shape = shape.map_err(|_| Error::new("an output has a negative dimension"))?;
        Ok(Described { dtype: data_type(kind), shape: Shape::new(shape) })
    }

    /// The bytes of a tensor of `length` bytes that is no string; the value lives as long as they.
    ///
    /// Bytes that lie within one of `inputs` are copied: such an output (a graph that passes an input through) is no
    /// memory of its own, and the input's ends with the run.
    pub(super) fn into_bytes(self, length: usize, inputs: &[Value<'_>]) -> Result<Bytes, Error> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        let mut found = 0;
        // SAFETY: an out-parameter; for strings and for what is no tensor this is an error.
        check(unsafe { (ort::api().GetTensorSizeInBytes)(self.pointer.as_ptr(), &mut found) })?;
        if found != length {
            return Err(Error::new(format!("an output has {found} bytes, expected {length}")));
        }
        self.require_cpu()?;
        let data = self.data()?;
        let buffer = Buffer { _value: self, data, length };
        let is_within = |input: &Value<'_>| input.data().is_ok_and(|start| input.covers(start, data));
        if inputs.iter().any(is_within) {
            return Ok(Bytes::copy_from_slice(buffer.as_ref()));
        }
        Ok(Bytes::from_owner(buffer))
    }

    /// The strings of a tensor of `count`, each with its length before it.
    pub(super) fn into_strings(self, count: usize) -> Result<Bytes, Error> {
        let mut length = 0;
        // SAFETY: an out-parameter; for what is no tensor of strings this is an error.
        check(unsafe { (ort::api().GetStringTensorDataLength)(self.pointer.as_ptr(), &mut length) })?;
        let mut text = vec![0_u8; length];
        let mut starts = vec![0_usize; count];
        // SAFETY: the lengths are those of the buffers; ONNX Runtime refuses any that do not fit the tensor.
        let status = unsafe {
            (ort::api().GetStringTensorContent)(
                self.pointer.as_ptr(),
                text.as_mut_ptr().cast::<c_void>(),
                length,
                starts.as_mut_ptr(),
                count,
            )
        };
        check(status)?;
        let mut data = Vec::with_capacity(length + 4 * count);
        for (index, start) in starts.iter().enumerate() {
            let end = starts.get(index + 1).copied().unwrap_or(length);
            let string = text.get(*start..end).ok_or_else(|| Error::new("strings of an output overlap"))?;
            push_string(&mut data, string).map_err(|_| Error::new("an output has a string above 4 GiB"))?;
        }
        Ok(data.into())
    }
}

impl Value<'_> {
    fn data(&self) -> Result<NonNull<u8>, Error> {
        let mut data = ptr::null_mut();
        // SAFETY: an out-parameter; the memory stays where it is as long as the value lives.
        check(unsafe { (ort::api().GetTensorMutableData)(self.pointer.as_ptr(), &mut data) })?;
        NonNull::new(data.cast::<u8>()).ok_or_else(|| Error::new("a tensor has no memory"))
    }

    /// True if `address` lies in this value's memory, which begins at `start`.
    fn covers(&self, start: NonNull<u8>, address: NonNull<u8>) -> bool {
        let mut length = 0;
        // SAFETY: an out-parameter. Strings have no size: that is an error, and they are never shared.
        let status = unsafe { (ort::api().GetTensorSizeInBytes)(self.pointer.as_ptr(), &mut length) };
        check(status).is_ok() && (start.addr().get()..start.addr().get() + length).contains(&address.addr().get())
    }

    /// An error if the CPU cannot read this value's memory.
    fn require_cpu(&self) -> Result<(), Error> {
        let mut memory = ptr::null();
        // SAFETY: an out-parameter; what it points to belongs to the value.
        check(unsafe { (ort::api().GetTensorMemoryInfo)(self.pointer.as_ptr(), &mut memory) })?;
        if memory.is_null() {
            return Err(Error::new("an output has memory of an unknown kind"));
        }
        let mut device = sys::OrtMemoryInfoDeviceType::OrtMemoryInfoDeviceType_GPU;
        // SAFETY: the description is valid (see above), and this only reads it. Pinned memory counts as the device's
        // and says only by its type that the host may read it.
        let readable = unsafe {
            (ort::api().MemoryInfoGetDeviceType)(memory, &mut device);
            device == sys::OrtMemoryInfoDeviceType::OrtMemoryInfoDeviceType_CPU
                || (ort::api().MemoryInfoGetDeviceMemType)(memory)
                    == sys::OrtDeviceMemoryType::OrtDeviceMemoryType_HOST_ACCESSIBLE
        };
        if readable { Ok(()) } else { Err(Error::new("an output lies in memory that the CPU cannot read")) }
    }
}

/// Runs a session once: inputs in the order of their names, outputs in that of theirs.
///
/// Several threads may run one session at a time where it uses the CPU alone: see [`super::session`].
pub(super) fn run(
    session: &Session,
    options: Option<&RunOptions>,
    input_names: &[CString],
    inputs: &[Value<'_>],
    output_names: &[CString],
) -> Result<SmallVec<[Value<'static>; INLINE]>, Error> {
    if input_names.len() != inputs.len() {
        return Err(Error::new(format!("found {} inputs, expected {}", inputs.len(), input_names.len())));
    }
    let input_pointers: SmallVec<[_; INLINE]> = input_names.iter().map(|name| name.as_ptr()).collect();
    let output_pointers: SmallVec<[_; INLINE]> = output_names.iter().map(|name| name.as_ptr()).collect();
    let values: SmallVec<[*const sys::OrtValue; INLINE]> =
        inputs.iter().map(|input| input.pointer.as_ptr().cast_const()).collect();
    let mut outputs: SmallVec<[*mut sys::OrtValue; INLINE]> = SmallVec::from_elem(ptr::null_mut(), output_names.len());
    // SAFETY: the arrays have the lengths that are given, names end with NUL, values live until this returns, and
    // outputs are null, so that ONNX Runtime allocates them.
    let status = unsafe {
        (ort::api().Run)(
            session.ptr().cast_mut(),
            options.map_or(ptr::null(), RunOptions::pointer),
            input_pointers.as_ptr(),
            values.as_ptr(),
            values.len(),
            output_pointers.as_ptr(),
            output_pointers.len(),
            outputs.as_mut_ptr(),
        )
    };
    // All owned before anything can fail, a null among them included, so that none is leaked.
    let outputs: SmallVec<[Result<Value<'static>, Error>; INLINE]> = outputs.into_iter().map(Value::own).collect();
    check(status)?;
    outputs.into_iter().collect()
}

/// The memory of an output, kept alive for as long as any slice of it.
struct Buffer {
    _value: Value<'static>,
    data: NonNull<u8>,
    length: usize,
}

// SAFETY: the pointer is into the value, which may be sent and shared; see there.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `length` readable bytes, as ONNX Runtime said, initialised by the run that made them, and never
        // written again; they stay in place as long as the value, which we own.
        unsafe { slice::from_raw_parts(self.data.as_ptr(), self.length) }
    }
}

fn check(status: sys::OrtStatusPtr) -> Result<(), Error> {
    // SAFETY: every status here comes straight from a call of the API and is used once.
    unsafe { Error::result_from_status(status) }
}

fn wire_dims(shape: &Shape) -> SmallVec<[i64; INLINE]> {
    // No dimension is that large: its elements lie in memory, and a zero beside it makes ONNX Runtime refuse it.
    shape.dims().iter().map(|dim| i64::try_from(*dim).unwrap_or(i64::MAX)).collect()
}

fn element_type(dtype: DataType) -> sys::ONNXTensorElementDataType {
    use sys::ONNXTensorElementDataType as T;
    match dtype {
        DataType::Bool => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
        DataType::Uint8 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        DataType::Uint16 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
        DataType::Uint32 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
        DataType::Uint64 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,
        DataType::Int8 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
        DataType::Int16 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
        DataType::Int32 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        DataType::Int64 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        DataType::Fp16 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        DataType::Bf16 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
        DataType::Fp32 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        DataType::Fp64 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
        DataType::Bytes => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING,
    }
}

fn data_type(kind: sys::ONNXTensorElementDataType) -> Option<DataType> {
    DataType::ALL.into_iter().find(|dtype| element_type(*dtype) == kind)
}
