//! One session: an instance of a model, and one run of it.
//!
//! Names are looked up once, when the model is opened; a run knows only positions. How a value is made or read is not
//! known here but in [`values`].

use super::{
    Runtime,
    builder::Built,
    files::Files,
    values::{self, INLINE, RunOptions, Value},
};
use crate::{
    backend::{Arena, Backend, OpenError, ProviderKind, SessionSettings},
    error::Error,
    tensor::{AxisNames, DataType, Signature, Tensor, TensorSpec, Tensors},
};
use ort::{
    session::Session,
    value::{Outlet, TensorElementType, ValueType},
};
use smallvec::SmallVec;
use std::{
    collections::BTreeMap,
    ffi::CString,
    sync::Arc,
    time::{Duration, Instant},
};

/// Bytes of scratch memory that an instance keeps per input between runs: enough that ordinary inputs are copied into
/// memory that is there, little enough that one large one does not stay for ever.
const KEPT_SCRATCH: usize = 4 << 20;

/// What instances of one model share.
///
/// Several threads run one session at a time, if it uses nothing but the CPU. ONNX Runtime promises that: `InferenceSession::Run`
/// is "thread-safe" in its header, its maintainers say the same where they are asked (onnxruntime#114, #13571), and Triton
/// shares sessions between instances for the asking. What is known to break it are other providers (DirectML says that it does
/// not support it, onnxruntime#22147), and it is for those that ort takes `&mut Session`; they are opened once per instance.
/// Nothing else lets instances share weights without keeping them twice: a container of pre-packed weights holds only those
/// of initialisers that are handed in from outside, which stay in memory beside what was packed of them.
pub(super) struct Opened {
    session: Session,
    runtime: Runtime,
    signature: Arc<Signature>,
    input_names: Vec<CString>,
    output_names: Vec<CString>,
    weight_bytes: u64,
    grows: Option<&'static str>,
    /// Every input and output has a type that V2 can name.
    is_servable: bool,
    arena: Arena,
    is_cpu_only: bool,
    notes: Vec<String>,
}

/// An instance of a model in ONNX Runtime.
pub(super) struct OrtBackend {
    opened: Arc<Opened>,
    /// One per input, for bytes that cannot be read where they are. Words, so that they lie on 8.
    scratch: Vec<Vec<u64>>,
    /// For a run that somebody may want to end: one that keeps its memory, and one that gives it back.
    options: Arc<[RunOptions; 2]>,
    /// For one that nobody ends and that gives its memory back; where it keeps it, the defaults will do.
    shrinking: RunOptions,
    shrink: Shrink,
    /// The next run goes by `options`.
    armed: bool,
    /// Ends it.
    stop: Arc<dyn Fn() + Send + Sync>,
}

/// When an instance gives memory back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shrink {
    Never,
    /// After each run.
    Always,
    /// After the first run from then on.
    At(Instant),
}

/// How often memory goes back where it does so by itself. Not after each run: fresh pages cost more than many a run
/// (`benches/plateau.py` answers a third of the calls then).
const EVERY: Duration = Duration::from_secs(5);

// === impl Opened ===

impl Opened {
    /// A session that was made as `settings` say; `note` says what there is to know of it besides.
    pub(super) fn new(
        built: Built,
        runtime: Runtime,
        files: &Files,
        settings: &SessionSettings,
        note: Option<&str>,
    ) -> Result<Self, OpenError> {
        let Built { session, providers, passed_over } = built;
        let names =
            |outlets: &[Outlet]| outlets.iter().map(|outlet| CString::new(outlet.name())).collect::<Result<_, _>>();
        let unnamed = |_| OpenError("an input or output has a name with a NUL in it".to_owned());
        let input_names: Vec<_> = names(session.inputs()).map_err(unnamed)?;
        let output_names = names(session.outputs()).map_err(unnamed)?;
        let signature = Signature {
            inputs: session.inputs().iter().map(spec).collect(),
            outputs: session.outputs().iter().map(spec).collect(),
        };
        let is_servable = signature.inputs.iter().chain(&signature.outputs).all(|spec| spec.dtype.is_some());
        let arena = policy(settings, &signature);
        let mut notes = passed_over;
        notes.extend(note.map(ToOwned::to_owned));
        notes.push(memory_note(arena));
        notes.extend(files.grows.map(|operator| format!("its work grows with the values of inputs: {operator}")));
        if settings.explain {
            notes.extend(nodes_note(&session));
        }
        let is_cpu_only = providers.iter().all(|kind| *kind == ProviderKind::Cpu);
        Ok(Self {
            session,
            runtime,
            signature: Arc::new(signature),
            input_names,
            output_names,
            weight_bytes: files.bytes,
            grows: files.grows,
            is_servable,
            arena,
            is_cpu_only,
            notes,
        })
    }
}

/// What `auto` means for a model. Of rows there are at most so many; any other dimension that is free is the caller's
/// to choose, and an arena that kept what the largest of them needed would be theirs as well.
fn policy(settings: &SessionSettings, signature: &Signature) -> Arena {
    let is_free = |spec: &TensorSpec| spec.dims.iter().skip(1).any(Option::is_none);
    let has_free_lengths = settings.ragged || signature.inputs.iter().any(is_free);
    if settings.arena == Arena::Auto && !has_free_lengths { Arena::Keep } else { settings.arena }
}

fn memory_note(arena: Arena) -> String {
    match arena {
        Arena::Auto => {
            format!("memory of runs goes back every {EVERY:?}: callers choose dimensions besides the rows")
        }
        Arena::Shrink => "memory of runs goes back after each".to_owned(),
        Arena::None => "memory of runs is the system's, tensor by tensor".to_owned(),
        Arena::Keep => "memory of runs is kept for the next ones".to_owned(),
    }
}

/// Which provider runs what.
fn nodes_note(session: &Session) -> Vec<String> {
    let Ok(assigned) = values::assignments(session) else {
        return vec!["ONNX Runtime does not tell where nodes run".to_owned()];
    };
    let line = |(provider, operators): (String, BTreeMap<String, usize>)| {
        let nodes: usize = operators.values().sum();
        let operators: Vec<_> = operators
            .into_iter()
            .map(|(operator, count)| if count == 1 { operator } else { format!("{count} {operator}") })
            .collect();
        let nodes = if nodes == 1 { "1 node".to_owned() } else { format!("{nodes} nodes") };
        format!("{provider} runs {nodes}: {}", operators.join(", "))
    };
    assigned.into_iter().map(line).collect()
}

// === impl OrtBackend ===

impl OrtBackend {
    /// An instance of what was opened.
    pub(super) fn of(opened: Arc<Opened>) -> Result<Self, OpenError> {
        let failed = |error: ort::Error| OpenError(format!("no run options: {}", error.message()));
        let plain = || RunOptions::new().map_err(failed);
        let shrinking = || RunOptions::new().and_then(RunOptions::shrinking).map_err(failed);
        let options = Arc::new([plain()?, shrinking()?]);
        let ended = Arc::clone(&options);
        let stop: Arc<dyn Fn() + Send + Sync> = Arc::new(move || ended.iter().for_each(RunOptions::terminate));
        let scratch = vec![Vec::new(); opened.input_names.len()];
        let shrink = Shrink::new(opened.arena, Instant::now());
        Ok(Self { opened, scratch, options, shrinking: shrinking()?, shrink, armed: false, stop })
    }
}

// === impl Shrink ===

impl Shrink {
    fn new(arena: Arena, now: Instant) -> Self {
        match arena {
            Arena::Keep | Arena::None => Self::Never,
            Arena::Shrink => Self::Always,
            Arena::Auto => Self::At(now + EVERY),
        }
    }

    /// Whether the run that begins now gives back what it does not need any more.
    fn is_due(&mut self, now: impl FnOnce() -> Instant) -> bool {
        match self {
            Self::Never => false,
            Self::Always => true,
            Self::At(due) => {
                let now = now();
                let is_due = now >= *due;
                if is_due {
                    *due = now + EVERY;
                }
                is_due
            }
        }
    }
}

impl Backend for OrtBackend {
    fn signature(&self) -> &Arc<Signature> {
        &self.opened.signature
    }

    fn axis_names(&self) -> AxisNames {
        AxisNames {
            inputs: self.opened.session.inputs().iter().map(axis_names).collect(),
            outputs: self.opened.session.outputs().iter().map(axis_names).collect(),
        }
    }

    fn interruptible(&mut self) -> Option<Arc<dyn Fn() + Send + Sync>> {
        self.options.iter().for_each(RunOptions::reset);
        self.armed = true;
        Some(Arc::clone(&self.stop))
    }

    fn run(&mut self, inputs: &[Tensor]) -> Result<Tensors, Error> {
        let Self { opened, scratch, options, shrinking, shrink, armed, .. } = self;
        let options = match (std::mem::take(armed), shrink.is_due(Instant::now)) {
            (true, shrinks) => Some(&options[usize::from(shrinks)]),
            (false, true) => Some(&*shrinking),
            (false, false) => None,
        };
        if !opened.is_servable {
            return Err(Error::Unimplemented("the model has inputs or outputs of types that V2 cannot name".into()));
        }
        let memory = opened.runtime.memory();
        let mut values: SmallVec<[Value<'_>; INLINE]> = SmallVec::new();
        for (tensor, scratch) in inputs.iter().zip(&mut *scratch) {
            let value = match tensor.dtype() {
                DataType::Bytes => Value::strings(tensor.shape(), tensor.iter_strings()),
                _ => borrow(memory, tensor, scratch),
            };
            values.push(value.map_err(|error| failed(&error))?);
        }
        let outputs = values::run(&opened.session, options, &opened.input_names, &values, &opened.output_names)
            .map_err(|error| failed(&error))?;
        let outputs = outputs
            .into_iter()
            .zip(&opened.signature.outputs)
            .map(|(value, spec)| tensor(value, spec, &values))
            .collect::<Result<Tensors, _>>();
        drop(values);
        for scratch in scratch.iter_mut().filter(|scratch| size_of_val(scratch.as_slice()) > KEPT_SCRATCH) {
            *scratch = Vec::new();
        }
        outputs
    }

    fn weight_bytes(&self) -> u64 {
        self.opened.weight_bytes
    }

    fn memory_bytes(&self) -> Option<u64> {
        // Weights are in the arena too, if there is one.
        let arena = values::arena_bytes(&self.opened.session, &self.opened.runtime.0.arena);
        Some(arena.unwrap_or(0).max(self.opened.weight_bytes))
    }

    fn another(&self) -> Option<Result<Box<dyn Backend>, OpenError>> {
        let opened = self.opened.is_cpu_only.then(|| Arc::clone(&self.opened))?;
        Some(Self::of(opened).map(|instance| Box::new(instance) as Box<dyn Backend>))
    }

    fn grows_with_values(&self) -> bool {
        self.opened.grows.is_some()
    }

    fn notes(&self) -> Vec<String> {
        self.opened.notes.clone()
    }
}

/// A value over the tensor's own bytes, or over a copy in `scratch` where those cannot be read in place.
fn borrow<'a>(
    memory: &ort::memory::MemoryInfo<'_>,
    tensor: &'a Tensor,
    scratch: &'a mut Vec<u64>,
) -> Result<Value<'a>, ort::Error> {
    if let Some(value) = Value::borrow(memory, tensor.dtype(), tensor.shape(), tensor.data())? {
        return Ok(value);
    }
    let words = tensor.data().len().div_ceil(8);
    if scratch.len() < words {
        scratch.resize(words, 0);
    }
    let copy = &mut bytemuck::cast_slice_mut(scratch)[..tensor.data().len()];
    copy.copy_from_slice(tensor.data());
    if tensor.dtype() == DataType::Bool {
        // Any byte but 0 is true (contract 01 section 3.1).
        copy.iter_mut().for_each(|byte| *byte = u8::from(*byte != 0));
    }
    Value::borrow(memory, tensor.dtype(), tensor.shape(), copy)?
        .ok_or_else(|| ort::Error::new("a copy of an input is not aligned"))
}

/// The tensor in an output, which must be of the type that the model declared.
fn tensor(value: Value<'static>, spec: &TensorSpec, inputs: &[Value<'_>]) -> Result<Tensor, Error> {
    let found = value.describe().map_err(|error| failed(&error))?;
    let (Some(dtype), true) = (found.dtype, found.dtype == spec.dtype) else {
        let found = found.dtype.map_or("a type that V2 cannot name", DataType::name);
        return Err(Error::backend(format!("output `{}` is {found}, expected {}", spec.name, spec.dtype_name())));
    };
    let too_large = || Error::backend(format!("output `{}` has a shape whose size overflows", spec.name));
    let elements = found.shape.elements().ok_or_else(too_large)?;
    let data = match dtype.size() {
        Some(size) => value.into_bytes(elements.checked_mul(size).ok_or_else(too_large)?, inputs),
        None => value.into_strings(elements),
    };
    let data = data.map_err(|error| failed(&error))?;
    Tensor::new(dtype, found.shape, data).map_err(|error| Error::backend(format!("output `{}` {error}", spec.name)))
}

/// Its text may name files and nodes of the model: for the log only.
fn failed(error: &ort::Error) -> Error {
    Error::backend(error.message())
}

fn spec(outlet: &Outlet) -> TensorSpec {
    let (dtype, dims) = match outlet.dtype() {
        ValueType::Tensor { ty, shape, .. } => {
            (data_type(*ty), shape.iter().map(|dim| usize::try_from(*dim).ok()).collect())
        }
        ValueType::Sequence(_) | ValueType::Map { .. } | ValueType::Optional(_) => (None, Vec::new()),
    };
    TensorSpec { name: outlet.name().into(), dtype, dims }
}

/// ONNX's `dim_param`, where there is one.
fn axis_names(outlet: &Outlet) -> Vec<Option<Arc<str>>> {
    match outlet.dtype() {
        ValueType::Tensor { dimension_symbols, .. } => {
            dimension_symbols.iter().map(|name| (!name.is_empty()).then(|| name.as_str().into())).collect()
        }
        ValueType::Sequence(_) | ValueType::Map { .. } | ValueType::Optional(_) => Vec::new(),
    }
}

fn data_type(kind: TensorElementType) -> Option<DataType> {
    Some(match kind {
        TensorElementType::Bool => DataType::Bool,
        TensorElementType::Uint8 => DataType::Uint8,
        TensorElementType::Uint16 => DataType::Uint16,
        TensorElementType::Uint32 => DataType::Uint32,
        TensorElementType::Uint64 => DataType::Uint64,
        TensorElementType::Int8 => DataType::Int8,
        TensorElementType::Int16 => DataType::Int16,
        TensorElementType::Int32 => DataType::Int32,
        TensorElementType::Int64 => DataType::Int64,
        TensorElementType::Float16 => DataType::Fp16,
        TensorElementType::Bfloat16 => DataType::Bf16,
        TensorElementType::Float32 => DataType::Fp32,
        TensorElementType::Float64 => DataType::Fp64,
        TensorElementType::String => DataType::Bytes,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_back_after_no_run_after_each_or_every_few_seconds() {
        let start = Instant::now();
        let due = |arena: Arena| {
            let mut shrink = Shrink::new(arena, start);
            [0, 6, 7, 11, 60].map(|seconds| shrink.is_due(|| start + Duration::from_secs(seconds)))
        };
        assert_eq!(due(Arena::Keep), [false; 5]);
        assert_eq!(due(Arena::None), [false; 5]);
        assert_eq!(due(Arena::Shrink), [true; 5]);
        assert_eq!(due(Arena::Auto), [false, true, false, true, true]);
    }
}
