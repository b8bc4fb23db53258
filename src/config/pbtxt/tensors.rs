//! Inputs and outputs: what the model is held against, and what clients read of them.

use super::{Reader, Word, shown};
use crate::{
    call::ImageFormat,
    config::validate::{OUTSIDE, is_inside},
    tensor::{Signature, TensorSpec},
    wire::proto::{decode_data_type, inference::model_input::Format},
};
use std::{path::PathBuf, sync::Arc};

/// Why a `reshape` cannot be ignored.
const RESHAPE: &str = "would show callers another shape than the model has, and tensors are not reshaped here";

impl Reader<'_> {
    pub(super) fn tensors(&mut self) {
        let mut declared = Signature::default();
        for (at, input) in self.config.input.iter().enumerate() {
            let path = format!("input[{at}]");
            if input.reshape.is_some() {
                self.problem(format!("{path}.reshape"), RESHAPE);
            }
            for (said, field, text) in [
                (
                    input.optional,
                    "optional",
                    "has no effect: `inputs` in model.yaml says what may be left out, and what stands for it",
                ),
                (input.is_shape_tensor, "is_shape_tensor", "has no effect: ONNX Runtime reads shapes as other tensors"),
                (input.is_non_linear_format_io, "is_non_linear_format_io", "has no effect: tensors are row-major"),
            ] {
                if said {
                    self.warn(&format!("{path}.{field}"), text);
                }
            }
            self.format(&path, &input.name, input.format, input.dims.len());
            self.tensor(path, &input.name, input.data_type, &input.dims, &mut declared.inputs);
        }
        for (at, output) in self.config.output.iter().enumerate() {
            let path = format!("output[{at}]");
            if output.reshape.is_some() {
                self.problem(format!("{path}.reshape"), RESHAPE);
            }
            for (said, field, text) in [
                (
                    output.is_shape_tensor,
                    "is_shape_tensor",
                    "has no effect: ONNX Runtime writes shapes as other tensors",
                ),
                (output.is_non_linear_format_io, "is_non_linear_format_io", "has no effect: tensors are row-major"),
            ] {
                if said {
                    self.warn(&format!("{path}.{field}"), text);
                }
            }
            self.labels(&path, &output.name, &output.label_filename);
            self.tensor(path, &output.name, output.data_type, &output.dims, &mut declared.outputs);
        }
        if declared != Signature::default() {
            self.said.declared = Some(declared);
        }
    }

    /// Adds what is said of one tensor to `specs`, with the rows that the file leaves out.
    fn tensor(&mut self, path: String, name: &str, number: i32, dims: &[i64], specs: &mut Vec<TensorSpec>) {
        if name.is_empty() {
            return self.problem(path, "has no name");
        }
        if specs.iter().any(|spec| *spec.name == *name) {
            return self.problem(path, format!("`{}` is there twice", shown(name)));
        }
        let dtype = decode_data_type(number);
        if dtype.is_none() && number != 0 {
            self.problem(format!("{path}.data_type"), format!("is {number}, which is no type"));
        }
        let mut known = Vec::with_capacity(dims.len() + 1);
        // Without dimensions nothing is said of the shape.
        if self.counts_rows() && !dims.is_empty() {
            known.push(None);
        }
        for dim in dims {
            match usize::try_from(*dim) {
                Ok(size @ 1..) => known.push(Some(size)),
                _ if *dim == -1 => known.push(None),
                _ => {
                    return self.problem(format!("{path}.dims"), format!("has {dim}, expected -1 or a number above 0"));
                }
            }
        }
        specs.push(TensorSpec { name: name.into(), dtype, dims: known });
    }

    fn format(&mut self, path: &str, name: &str, number: i32, dims: usize) {
        let format = match Format::try_from(number) {
            Ok(Format::None) => return,
            Ok(Format::Nhwc) => ImageFormat::Nhwc,
            Ok(Format::Nchw) => ImageFormat::Nchw,
            Err(_) => return self.problem(format!("{path}.format"), format!("is {number}, which is no format")),
        };
        // Beside the rows: height, width and channels, in some order. Without `max_batch_size` rows may be among them.
        if !(matches!(dims, 0 | 3) || (dims == 4 && !self.counts_rows())) {
            let text = format!("is that of an image, and `dims` has {dims} dimensions, expected 3");
            return self.problem(format!("{path}.format"), text);
        }
        self.said.notes.formats.push((Arc::from(name), format));
    }

    fn labels(&mut self, path: &str, output: &str, file: &str) {
        if file.is_empty() {
            return;
        }
        let place = PathBuf::from(file);
        if !is_inside(&place) {
            return self.problem(format!("{path}.label_filename"), format!("`{}` {OUTSIDE}", shown(file)));
        }
        self.said.labels.insert(output.to_owned(), Word::new(place, format!("label_filename: {file}")));
    }
}
