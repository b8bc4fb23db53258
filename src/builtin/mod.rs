//! Steps of ensembles that need no model file: what stands before and behind models, written once.
//!
//! Each takes and yields named tensors as a model does. What it is to do is said once, in its [`Settings`]; files that it
//! needs are read when it is opened. It knows nothing of calls or of the graph it is part of: whoever runs it decides
//! where, by how much work it says a run is, and does a long run piece by piece.

pub mod files;
pub mod image;
mod pool;
mod softmax;
pub mod tokenize;
mod top_k;

pub use pool::{MeanPool, Normalize};
pub use softmax::Softmax;
pub use top_k::TopK;

use crate::{
    error::Error,
    tensor::{DataType, Signature, Tensor, TensorError, TensorSpec, Tensors},
};
use std::{
    borrow::Cow,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

/// What the names of built-in steps begin with; no model's name has a `/`.
pub const PREFIX: &str = "builtin/";

/// What there is, without [`PREFIX`].
pub const NAMES: [&str; 6] = ["image", "mean_pool", "normalize", "softmax", "tokenize", "top_k"];

/// A step that is built in.
pub trait Builtin: Send + Sync + fmt::Debug {
    /// What it takes and yields, where `fed` tells what is known of a tensor that feeds an input.
    ///
    /// # Errors
    ///
    /// For operators, in plain words: an input whose tensor cannot be taken, or of which too little is known.
    fn signature(&self, fed: &Fed<'_>) -> Result<Signature, String>;

    /// How much work a run on `inputs` is, as bytes that would be read to do it.
    fn work(&self, inputs: &[Tensor]) -> usize {
        inputs.iter().map(|input| input.data().len()).sum()
    }

    /// Begins a run. `inputs` are in the signature's order and fit it; the result is in the order of its outputs.
    fn begin(self: Arc<Self>, inputs: Tensors) -> Pieces;
}

/// A run that was begun: each call does a piece of it, and the last has what it yields. Not to be called after that, nor
/// after an error.
///
/// # Errors
///
/// [`Error::InvalidTensor`] names the input by the step's own name for it; [`Error::Cancelled`] if nobody waits any more.
pub type Pieces = Box<dyn FnMut(&Wanted<'_>) -> Result<Option<Tensors>, Error> + Send>;

/// Whether anybody still waits for what is made. A piece that takes long asks again and again.
pub type Wanted<'a> = dyn Fn() -> bool + 'a;

/// What is known of the tensor that feeds an input; `None`: nothing.
pub type Fed<'a> = dyn Fn(&str) -> Option<TensorSpec> + 'a;

/// What a built-in step is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settings {
    /// Soft-max over the last axis.
    Softmax,
    /// The best classes of the last axis.
    TopK {
        /// How many, at least 1.
        k: usize,
        /// A file of the classes' names, line n for class n.
        labels: Option<PathBuf>,
    },
    /// The mean over the tokens that a mask keeps.
    MeanPool,
    /// L2 normalisation of the last axis.
    Normalize,
    /// Text to tokens.
    Tokenize(tokenize::Settings),
    /// Pictures to tensors.
    Image(image::Settings),
}

impl Settings {
    /// Its name, without [`PREFIX`].
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Softmax => "softmax",
            Self::TopK { .. } => "top_k",
            Self::MeanPool => "mean_pool",
            Self::Normalize => "normalize",
            Self::Tokenize(_) => "tokenize",
            Self::Image(_) => "image",
        }
    }

    /// Makes the step; `folder` is that of the ensemble, in which its files lie. Reads files.
    ///
    /// # Errors
    ///
    /// For operators, in plain words: a file that is not there or is not what it should be.
    pub fn open(&self, folder: &Path) -> Result<Arc<dyn Builtin>, String> {
        // Readers of files are those of others, and some panic on files that nobody would write.
        let made = catch_unwind(AssertUnwindSafe(|| self.make(folder)));
        made.unwrap_or_else(|_| Err("making it panicked: one of its files is not what it should be".to_owned()))
    }

    fn make(&self, folder: &Path) -> Result<Arc<dyn Builtin>, String> {
        Ok(match self {
            Self::Softmax => Arc::new(Softmax),
            Self::TopK { k, labels } => Arc::new(TopK::open(*k, labels.as_deref(), folder)?),
            Self::MeanPool => Arc::new(MeanPool),
            Self::Normalize => Arc::new(Normalize),
            Self::Tokenize(settings) => Arc::new(tokenize::Tokenize::open(settings, folder)?),
            Self::Image(settings) => Arc::new(image::Image(settings.clone())),
        })
    }
}

/// An input or output; a free dimension is `None`.
fn spec(name: &str, dtype: DataType, dims: impl IntoIterator<Item = Option<usize>>) -> TensorSpec {
    TensorSpec { name: name.into(), dtype: Some(dtype), dims: dims.into_iter().collect() }
}

/// The dimensions of the FP32 tensor that feeds `name`, which any rank from 1 up will do for.
fn floats_fed(fed: &Fed<'_>, name: &str) -> Result<Vec<Option<usize>>, String> {
    let found =
        fed(name).ok_or_else(|| format!("`{name}` may have any shape; say which in the ensemble's `inputs`"))?;
    if found.dtype != Some(DataType::Fp32) {
        return Err(format!("`{name}` has datatype {}, expected FP32", found.dtype_name()));
    }
    if found.dims.is_empty() {
        return Err(format!("`{name}` is a single value, expected one axis at least"));
    }
    Ok(found.dims)
}

/// The numbers of an FP32 tensor: where they lie, if they lie so that they can be read there.
fn floats(tensor: &Tensor) -> Cow<'_, [f32]> {
    let copied = || tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    tensor.try_elements().map_or_else(|| Cow::Owned(copied()), Cow::Borrowed)
}

/// `x` and `y`, both FP32 of the shape that feeds `x`: what [`each_row`] takes and yields.
fn each_row_signature(fed: &Fed<'_>) -> Result<Signature, String> {
    let dims = floats_fed(fed, "x")?;
    let of = |name| vec![spec(name, DataType::Fp32, dims.iter().copied())];
    Ok(Signature { inputs: of("x"), outputs: of("y") })
}

/// `x` with each row of its last axis changed in place.
fn each_row(x: &Tensor, change: impl FnMut(&mut [f32])) -> Result<Tensors, Error> {
    let mut values = floats(x).into_owned();
    values.chunks_mut(last_axis(x).max(1)).for_each(change);
    Ok([yielded(Tensor::of(DataType::Fp32, x.shape().clone(), values))?].into())
}

/// The length of the last axis; 1 for a single value.
fn last_axis(tensor: &Tensor) -> usize {
    tensor.shape().dims().last().copied().unwrap_or(1)
}

/// What a step yields is checked like anything else; that it does not fit would be our own mistake.
fn yielded(made: Result<Tensor, TensorError>) -> Result<Tensor, Error> {
    made.map_err(|error| Error::internal(format!("a built-in step yielded what {error}")))
}

#[cfg(test)]
mod testing {
    use super::*;
    use crate::tensor::Shape;

    pub(super) fn tensor(dims: &[usize], values: &[f32]) -> Tensor {
        Tensor::of(DataType::Fp32, Shape::new(dims.iter().copied()), values.to_vec()).unwrap()
    }

    pub(super) fn integers(tensor: &Tensor) -> Vec<i64> {
        tensor.data().as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
    }

    /// All of a run.
    pub(super) fn run(step: impl Builtin + 'static, inputs: &[Tensor]) -> Result<Tensors, Error> {
        let mut pieces = Arc::new(step).begin(inputs.iter().cloned().collect());
        loop {
            if let Some(outputs) = pieces(&|| true)? {
                return Ok(outputs);
            }
        }
    }

    pub(super) fn near(found: &Tensor, expected: &[f32]) {
        let found = floats(found);
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() <= 1e-6, "{found:?}, expected {expected:?}");
        }
    }
}
