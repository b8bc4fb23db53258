//! One session: an instance of a model, and one run of it.
//!
//! Names are looked up once, when the model is opened; a run knows only positions. How a value is made or read is not
//! known here but in [`values`].

use super::{
    Runtime,
    values::{self, INLINE, RunOptions, Value},
};
use crate::{
    backend::{Backend, OpenError},
    error::Error,
    tensor::{AxisNames, DataType, Signature, Tensor, TensorSpec, Tensors},
};
use ort::{
    session::Session,
    value::{Outlet, TensorElementType, ValueType},
};
use smallvec::SmallVec;
use std::{ffi::CString, sync::Arc};

/// Bytes of scratch memory that an instance keeps per input between runs: enough that ordinary inputs are copied into
/// memory that is there, little enough that one large one does not stay for ever.
const KEPT_SCRATCH: usize = 4 << 20;

/// An instance of a model in ONNX Runtime.
pub(super) struct OrtBackend {
    session: Session,
    runtime: Runtime,
    signature: Arc<Signature>,
    input_names: Vec<CString>,
    output_names: Vec<CString>,
    /// One per input, for bytes that cannot be read where they are. Words, so that they lie on 8.
    scratch: Vec<Vec<u64>>,
    weight_bytes: u64,
    /// For a run that somebody may want to end.
    options: Arc<RunOptions>,
    /// The next run goes by `options`.
    armed: bool,
    /// Ends it.
    stop: Arc<dyn Fn() + Send + Sync>,
    /// Every input and output has a type that V2 can name.
    is_servable: bool,
}

impl OrtBackend {
    pub(super) fn new(session: Session, runtime: Runtime, weight_bytes: u64) -> Result<Self, OpenError> {
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
        let scratch = vec![Vec::new(); input_names.len()];
        let signature = Arc::new(signature);
        let options = RunOptions::new().map_err(|error| OpenError(format!("no run options: {}", error.message())))?;
        let options = Arc::new(options);
        let ended = Arc::clone(&options);
        let stop: Arc<dyn Fn() + Send + Sync> = Arc::new(move || ended.terminate());
        Ok(Self {
            session,
            runtime,
            signature,
            input_names,
            output_names,
            scratch,
            weight_bytes,
            options,
            armed: false,
            stop,
            is_servable,
        })
    }
}

impl Backend for OrtBackend {
    fn signature(&self) -> &Arc<Signature> {
        &self.signature
    }

    fn axis_names(&self) -> AxisNames {
        AxisNames {
            inputs: self.session.inputs().iter().map(axis_names).collect(),
            outputs: self.session.outputs().iter().map(axis_names).collect(),
        }
    }

    fn interruptible(&mut self) -> Option<Arc<dyn Fn() + Send + Sync>> {
        self.options.reset();
        self.armed = true;
        Some(Arc::clone(&self.stop))
    }

    fn run(&mut self, inputs: &[Tensor]) -> Result<Tensors, Error> {
        let options = std::mem::take(&mut self.armed).then_some(&*self.options);
        if !self.is_servable {
            return Err(Error::Unimplemented("the model has inputs or outputs of types that V2 cannot name".into()));
        }
        let memory = self.runtime.memory();
        let mut values: SmallVec<[Value<'_>; INLINE]> = SmallVec::new();
        for (tensor, scratch) in inputs.iter().zip(&mut self.scratch) {
            let value = match tensor.dtype() {
                DataType::Bytes => Value::strings(tensor.shape(), tensor.iter_strings()),
                _ => borrow(memory, tensor, scratch),
            };
            values.push(value.map_err(|error| failed(&error))?);
        }
        let outputs = values::run(&mut self.session, options, &self.input_names, &values, &self.output_names)
            .map_err(|error| failed(&error))?;
        let outputs = outputs
            .into_iter()
            .zip(&self.signature.outputs)
            .map(|(value, spec)| tensor(value, spec, &values))
            .collect::<Result<Tensors, _>>();
        drop(values);
        for scratch in self.scratch.iter_mut().filter(|scratch| size_of_val(scratch.as_slice()) > KEPT_SCRATCH) {
            *scratch = Vec::new();
        }
        outputs
    }

    fn weight_bytes(&self) -> u64 {
        self.weight_bytes
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
