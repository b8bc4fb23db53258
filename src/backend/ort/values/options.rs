//! Options of sessions and of runs, and what a session tells of itself: the calls for which ort has nothing that fits.

use super::check;
use crate::backend::{Provider, ProviderKind};
use ort::{
    AsPointer, Error,
    memory::{Allocator, MemoryInfo},
    session::{Session, builder::SessionBuilder},
    sys,
};
use std::{
    collections::BTreeMap,
    ffi::{CStr, CString, c_char},
    ptr::{self, NonNull},
    slice,
};

/// What one run at a time goes by, so that it can be ended.
pub(in crate::backend::ort) struct RunOptions(NonNull<sys::OrtRunOptions>);

// SAFETY: ONNX Runtime's run options hold a flag that any thread may set while a run reads it; that is what it is for.
unsafe impl Send for RunOptions {}
// SAFETY: as above; nothing else of them is changed once they are shared.
unsafe impl Sync for RunOptions {}

/// ONNX Runtime's name for a provider.
pub(in crate::backend::ort) const fn name(kind: ProviderKind) -> &'static CStr {
    match kind {
        ProviderKind::Cpu => c"CPUExecutionProvider",
        ProviderKind::Cuda => c"CUDAExecutionProvider",
        ProviderKind::TensorRt => c"TensorrtExecutionProvider",
        ProviderKind::TensorRtRtx => c"NvTensorRTRTXExecutionProvider",
        ProviderKind::OpenVino => c"OpenVINOExecutionProvider",
        ProviderKind::CoreMl => c"CoreMLExecutionProvider",
        ProviderKind::DirectMl => c"DmlExecutionProvider",
        ProviderKind::MiGraphX => c"MIGraphXExecutionProvider",
        ProviderKind::Qnn => c"QNNExecutionProvider",
        ProviderKind::Xnnpack => c"XnnpackExecutionProvider",
        ProviderKind::WebGpu => c"WebGpuExecutionProvider",
        ProviderKind::VitisAi => c"VitisAIExecutionProvider",
    }
}

/// The providers that the loaded library was built with, by ONNX Runtime's names.
pub(in crate::backend::ort) fn available_providers() -> Result<Vec<String>, Error> {
    let (mut names, mut count) = (ptr::null_mut(), 0);
    // SAFETY: both are out-parameters.
    check(unsafe { (ort::api().GetAvailableProviders)(&mut names, &mut count) })?;
    if names.is_null() {
        return Ok(Vec::new());
    }
    let length = usize::try_from(count).unwrap_or(0);
    // SAFETY: so many pointers to strings that end with NUL; all are copied before they are released, once.
    let found = unsafe { slice::from_raw_parts(names, length) };
    let found = found.iter().map(|name| unsafe { text(*name) }).collect();
    // SAFETY: as above.
    check(unsafe { (ort::api().ReleaseAvailableProviders)(names, count) })?;
    Ok(found)
}

/// Adds a provider other than the CPU to what a session will use, after those that it has.
pub(in crate::backend::ort) fn append(builder: &mut SessionBuilder, provider: &Provider) -> Result<(), Error> {
    let keep = |text: &String| CString::new(text.as_str()).map_err(|_| Error::new("an option with a NUL in it"));
    let keys = provider.options.iter().map(|(key, _)| keep(key)).collect::<Result<Vec<_>, _>>()?;
    let values = provider.options.iter().map(|(_, value)| keep(value)).collect::<Result<Vec<_>, _>>()?;
    let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();
    let (keys_at, values_at) = (pointers(&keys), pointers(&values));
    let (api, session, count) = (ort::api(), builder.ptr_mut(), keys.len());
    match provider.kind {
        // These two have options of types of their own.
        ProviderKind::Cuda => {
            let mut options = ptr::null_mut();
            // SAFETY: an out-parameter.
            check(unsafe { (api.CreateCUDAProviderOptions)(&mut options) })?;
            // SAFETY: the options have just been made, the arrays have `count` strings that end with NUL, and the session
            // copies what it is given, so that the options can be released, once.
            unsafe {
                let update = (api.UpdateCUDAProviderOptions)(options, keys_at.as_ptr(), values_at.as_ptr(), count);
                let appended = check(update)
                    .and_then(|()| check((api.SessionOptionsAppendExecutionProvider_CUDA_V2)(session, options)));
                (api.ReleaseCUDAProviderOptions)(options);
                appended
            }
        }
        ProviderKind::TensorRt => {
            let mut options = ptr::null_mut();
            // SAFETY: an out-parameter.
            check(unsafe { (api.CreateTensorRTProviderOptions)(&mut options) })?;
            // SAFETY: as above.
            unsafe {
                let update = (api.UpdateTensorRTProviderOptions)(options, keys_at.as_ptr(), values_at.as_ptr(), count);
                let appended = check(update)
                    .and_then(|()| check((api.SessionOptionsAppendExecutionProvider_TensorRT_V2)(session, options)));
                (api.ReleaseTensorRTProviderOptions)(options);
                appended
            }
        }
        kind => {
            // SAFETY: the arrays have `count` strings that end with NUL, which are copied.
            check(unsafe {
                (api.SessionOptionsAppendExecutionProvider)(
                    session,
                    name(kind).as_ptr(),
                    keys_at.as_ptr(),
                    values_at.as_ptr(),
                    count,
                )
            })
        }
    }
}

/// Which provider runs how many nodes of which operators; asks for a session that was told to keep it in mind.
pub(in crate::backend::ort) fn assignments(
    session: &Session,
) -> Result<BTreeMap<String, BTreeMap<String, usize>>, Error> {
    let (api, mut found) = (ort::api(), BTreeMap::<String, BTreeMap<String, usize>>::new());
    let (mut parts, mut count) = (ptr::null(), 0);
    // SAFETY: both are out-parameters; what they point to belongs to the session, which outlives this.
    check(unsafe { (api.Session_GetEpGraphAssignmentInfo)(session.ptr(), &mut parts, &mut count) })?;
    for index in 0..count {
        let (mut provider, mut nodes, mut length) = (ptr::null(), ptr::null(), 0);
        // SAFETY: there are `count` parts, each valid as long as the session; the rest are out-parameters.
        unsafe {
            let part = *parts.add(index);
            check((api.EpAssignedSubgraph_GetEpName)(part, &mut provider))?;
            check((api.EpAssignedSubgraph_GetNodes)(part, &mut nodes, &mut length))?;
        }
        // SAFETY: a string that ends with NUL, or null.
        let operators = found.entry(unsafe { text(provider) }).or_default();
        for node in 0..length {
            let mut operator = ptr::null();
            // SAFETY: there are `length` nodes, as valid as the part.
            unsafe { check((api.EpAssignedNode_GetOperatorType)(*nodes.add(node), &mut operator))? };
            // SAFETY: as for the provider.
            *operators.entry(unsafe { text(operator) }).or_default() += 1;
        }
    }
    Ok(found)
}

/// Bytes that a session's arena in `memory` has from the system; `None` if it has no arena, or one that does not tell.
pub(in crate::backend::ort) fn arena_bytes(session: &Session, memory: &MemoryInfo<'_>) -> Option<u64> {
    let allocator = Allocator::new(session, memory.clone()).ok()?;
    let mut stats = ptr::null_mut();
    // SAFETY: an out-parameter; the allocator lives.
    check(unsafe { (ort::api().AllocatorGetStats)(allocator.ptr(), &mut stats) }).ok()?;
    // SAFETY: the pairs are ours until they are released, once, and null stands for a key that is not there.
    unsafe {
        let value = (ort::api().GetKeyValue)(stats, c"TotalAllocated".as_ptr());
        let bytes = if value.is_null() { None } else { text(value).parse().ok() };
        (ort::api().ReleaseKeyValuePairs)(stats);
        bytes
    }
}

/// A copy of a string of the library; empty for null.
///
/// # Safety
///
/// What it points to ends with NUL.
unsafe fn text(string: *const c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}

// === impl RunOptions ===

impl RunOptions {
    pub(in crate::backend::ort) fn new() -> Result<Self, Error> {
        let mut options = ptr::null_mut();
        // SAFETY: an out-parameter.
        check(unsafe { (ort::api().CreateRunOptions)(&mut options) })?;
        NonNull::new(options).map(Self).ok_or_else(|| Error::new("expected run options, found null"))
    }

    /// Gives back to the system, at the end of each run, what the CPU's arena does not need any more.
    pub(in crate::backend::ort) fn shrinking(self) -> Result<Self, Error> {
        // SAFETY: the options are ours and not shared yet; both strings are constants that end with NUL.
        check(unsafe {
            (ort::api().AddRunConfigEntry)(
                self.0.as_ptr(),
                c"memory.enable_memory_arena_shrinkage".as_ptr(),
                c"cpu:0".as_ptr(),
            )
        })?;
        Ok(self)
    }

    /// Ends the run that goes by these, and every later one until [`RunOptions::reset`].
    pub(in crate::backend::ort) fn terminate(&self) {
        // SAFETY: the options are ours and live. It fails for null only.
        let _ = check(unsafe { (ort::api().RunOptionsSetTerminate)(self.0.as_ptr()) });
    }

    pub(in crate::backend::ort) fn reset(&self) {
        // SAFETY: as above.
        let _ = check(unsafe { (ort::api().RunOptionsUnsetTerminate)(self.0.as_ptr()) });
    }

    pub(super) fn pointer(&self) -> *const sys::OrtRunOptions {
        self.0.as_ptr()
    }
}

impl Drop for RunOptions {
    fn drop(&mut self) {
        // SAFETY: we own them, and they are released once.
        unsafe { (ort::api().ReleaseRunOptions)(self.0.as_ptr()) }
    }
}
