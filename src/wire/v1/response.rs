//! Answers to predictions: rows, columns, and the bare object of `POST /predict` (contract 03 section 3).

use super::{Form, Names};
use crate::{
    call::NamedTensor,
    error::Error,
    tensor::{DataType, Tensor},
    wire::{
        NonFinite, Settings,
        json::{
            half::{BF16, FP16},
            write_integer, write_list, write_non_finite, write_string,
        },
    },
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;

/// Outputs of this ending are binary data, whatever is in them: a rule of TensorFlow Serving's.
const BINARY: &str = "_bytes";

/// Encodes the answer to `:predict` in the form of its request: one output is bare, several are objects.
///
/// # Errors
///
/// [`Error::InvalidRequest`] if outputs have no rows in common and rows were asked for; [`Error::InvalidTensor`] for
/// numbers that are not finite, where `json.non_finite` refuses them.
pub fn encode_predict(outputs: &[NamedTensor], form: Form, settings: &Settings) -> Result<Bytes, Error> {
    let mut out = Vec::with_capacity(estimate(outputs));
    out.extend_from_slice(match form {
        Form::Rows => b"{\"predictions\":",
        Form::Columns => b"{\"outputs\":",
    });
    match (form, outputs) {
        (Form::Rows, outputs) => rows(&mut out, outputs, settings)?,
        (Form::Columns, [output]) => whole(&mut out, output, settings)?,
        (Form::Columns, outputs) => object(&mut out, outputs, &super::request::OWN, settings)?,
    }
    out.push(b'}');
    Ok(out.into())
}

/// Encodes the answer to `POST /predict`: an object from the client's names of outputs to tensors.
///
/// # Errors
///
/// As [`encode_predict`].
pub fn encode_object(outputs: &[NamedTensor], names: &Names, settings: &Settings) -> Result<Bytes, Error> {
    let mut out = Vec::with_capacity(estimate(outputs));
    object(&mut out, outputs, names, settings)?;
    Ok(out.into())
}

/// Enough room for nearly every answer: `0.123456789,` for four bytes is the common longest.
fn estimate(outputs: &[NamedTensor]) -> usize {
    32 + outputs.iter().map(|output| output.name.len() + 8 + output.tensor.data().len() * 4).sum::<usize>()
}

fn rows(out: &mut Vec<u8>, outputs: &[NamedTensor], settings: &Settings) -> Result<(), Error> {
    let mut writers = Vec::with_capacity(outputs.len());
    let mut first = None;
    for NamedTensor { name, tensor } in outputs {
        let Some((n, dims)) = tensor.shape().dims().split_first() else {
            return Err(no_rows(&format!("output `{name}` has no dimensions")));
        };
        let (expected, of) = *first.get_or_insert((*n, name));
        if *n != expected {
            return Err(no_rows(&format!("output `{name}` has {n} rows, output `{of}` has {expected}")));
        }
        writers.push((name, dims, Writer::of(name, tensor, settings)));
    }
    let n = first.map_or(0, |(n, _)| n);
    match writers.as_mut_slice() {
        [(_, dims, writer)] => write_list(out, 0..n, |out, _| writer.value(out, dims)),
        writers => write_list(out, 0..n, |out, _| {
            out.push(b'{');
            for (at, (name, dims, writer)) in writers.iter_mut().enumerate() {
                write_name(out, at, name);
                writer.value(out, dims);
            }
            out.push(b'}');
        }),
    }
    writers.iter().try_for_each(|(name, _, writer)| finite(name, &**writer))
}

/// Why rows cannot be answered, and what to ask for instead.
pub(super) fn no_rows(why: &str) -> Error {
    Error::invalid(format!("{why}, so the answer has no rows: send `inputs` instead of `instances`"))
}

fn object(out: &mut Vec<u8>, outputs: &[NamedTensor], names: &Names, settings: &Settings) -> Result<(), Error> {
    out.push(b'{');
    for (at, output) in outputs.iter().enumerate() {
        write_name(out, at, names.of_output(&output.name));
        whole(out, output, settings)?;
    }
    out.push(b'}');
    Ok(())
}

fn whole(out: &mut Vec<u8>, NamedTensor { name, tensor }: &NamedTensor, settings: &Settings) -> Result<(), Error> {
    let mut writer = Writer::of(name, tensor, settings);
    writer.value(out, tensor.shape().dims());
    finite(name, &*writer)
}

fn write_name(out: &mut Vec<u8>, at: usize, name: &str) {
    if at > 0 {
        out.push(b',');
    }
    write_string(out, name);
    out.push(b':');
}

/// Refuses what was written if some of it stands for nothing.
pub(super) fn finite(name: &str, writer: &dyn Write) -> Result<(), Error> {
    match writer.is_faithful() {
        true => Ok(()),
        false => {
            Err(Error::tensor(name, "has numbers that are not finite and so no JSON form (`json.non_finite: refuse`)"))
        }
    }
}

/// Writes the values of a tensor, one after the other.
pub(super) trait Write {
    /// Writes the next value, of these dimensions, as nested lists.
    fn value(&mut self, out: &mut Vec<u8>, dims: &[usize]);
    /// Whether everything so far had a form.
    fn is_faithful(&self) -> bool;
}

/// Makes a [`Write`] for each type.
pub(super) struct Writer;

/// Elements that are left, and how one is written; false if it has no form.
struct Elements<I, F> {
    left: I,
    write: F,
    faithful: bool,
}

impl<I: Iterator, F: Fn(&mut Vec<u8>, I::Item) -> bool> Elements<I, F> {
    fn boxed<'a>(left: I, write: F) -> Box<dyn Write + 'a>
    where
        I: 'a,
        F: 'a,
    {
        Box::new(Self { left, write, faithful: true })
    }
}

impl<I: Iterator, F: Fn(&mut Vec<u8>, I::Item) -> bool> Write for Elements<I, F> {
    fn value(&mut self, out: &mut Vec<u8>, dims: &[usize]) {
        // As deep as a model's output has dimensions: not a client's to choose.
        match dims {
            [] => {
                if let Some(element) = self.left.next() {
                    self.faithful &= (self.write)(out, element);
                }
            }
            [n, inner @ ..] => write_list(out, 0..*n, |out, _| self.value(out, inner)),
        }
    }

    fn is_faithful(&self) -> bool {
        self.faithful
    }
}

impl Writer {
    /// The values of the output `name`.
    pub(super) fn of<'a>(name: &str, tensor: &'a Tensor, settings: &Settings) -> Box<dyn Write + 'a> {
        let how = settings.non_finite;
        let data = tensor.data();
        macro_rules! integers {
            ($type:ty) => {
                Elements::boxed(data.as_chunks().0.iter(), |out, bytes| {
                    write_integer(out, <$type>::from_le_bytes(*bytes));
                    true
                })
            };
        }
        let half = |half: crate::wire::json::half::Half| {
            Elements::boxed(data.as_chunks().0.iter(), move |out, bytes| {
                single(out, half.value(u16::from_le_bytes(*bytes)), how)
            })
        };
        match tensor.dtype() {
            DataType::Bool => Elements::boxed(data.iter(), |out, byte| {
                out.extend_from_slice(if *byte == 0 { b"false" } else { b"true" });
                true
            }),
            DataType::Uint8 => integers!(u8),
            DataType::Uint16 => integers!(u16),
            DataType::Uint32 => integers!(u32),
            DataType::Uint64 => integers!(u64),
            DataType::Int8 => integers!(i8),
            DataType::Int16 => integers!(i16),
            DataType::Int32 => integers!(i32),
            DataType::Int64 => integers!(i64),
            DataType::Fp16 => half(FP16),
            DataType::Bf16 => half(BF16),
            DataType::Fp32 => Elements::boxed(data.as_chunks().0.iter(), move |out, bytes| {
                single(out, f32::from_le_bytes(*bytes), how)
            }),
            DataType::Fp64 => Elements::boxed(data.as_chunks().0.iter(), move |out, bytes| {
                let value = f64::from_le_bytes(*bytes);
                match value.is_finite() {
                    true => out.extend_from_slice(ryu::Buffer::new().format_finite(value).as_bytes()),
                    false => return write_non_finite(out, value, how),
                }
                true
            }),
            DataType::Bytes => {
                let binary = name.ends_with(BINARY);
                Elements::boxed(tensor.iter_strings(), move |out, string| {
                    match std::str::from_utf8(string) {
                        Ok(text) if !binary => write_string(out, text),
                        _ => base64(out, string),
                    }
                    true
                })
            }
        }
    }
}

fn single(out: &mut Vec<u8>, value: f32, how: NonFinite) -> bool {
    match value.is_finite() {
        true => out.extend_from_slice(ryu::Buffer::new().format_finite(value).as_bytes()),
        false => return write_non_finite(out, value.into(), how),
    }
    true
}

fn base64(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(b"{\"b64\":\"");
    out.extend_from_slice(STANDARD.encode(bytes).as_bytes());
    out.extend_from_slice(b"\"}");
}
