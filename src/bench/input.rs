//! One request, in every form that a surface takes.

use super::{
    BenchError,
    arguments::{Arguments, NamedShape},
};
use crate::{
    call::{ModelRef, NamedTensor},
    model,
    tensor::{Shape, Signature, TensorSpec},
    wire::{
        Settings, Wishes,
        json::{self, Dialect},
        proto::inference::{ModelInferRequest, model_infer_request as message},
    },
};
use bytes::Bytes;
use std::{fs, sync::Arc};

/// What each request says.
#[derive(Clone, Debug)]
pub(super) struct Payload {
    inputs: Vec<NamedTensor>,
    /// Outputs that are asked for; none: all.
    outputs: Vec<Arc<str>>,
    /// The body as it was given, for the one surface that takes it so.
    body: Option<Bytes>,
}

// === impl Payload ===

impl Payload {
    /// Inputs that are made up as `arguments` say: the same each time.
    ///
    /// # Errors
    ///
    /// [`BenchError`] names an input that a shape does not fit or that cannot be made up.
    pub(super) fn made(signature: &Signature, arguments: &Arguments) -> Result<Self, BenchError> {
        let shapes = &arguments.shapes;
        if let Some(stray) = shapes.iter().find(|shape| signature.inputs.iter().all(|spec| spec.name != shape.input)) {
            let names: Vec<_> = signature.inputs.iter().map(|spec| format!("`{}`", spec.name)).collect();
            let names = names.join(", ");
            return Err(BenchError(format!("the model has no input `{}`; it has {names}", stray.input)));
        }
        let twice = |(at, shape): &(usize, &NamedShape)| shapes[..*at].iter().any(|other| other.input == shape.input);
        if let Some((_, shape)) = shapes.iter().enumerate().find(twice) {
            return Err(BenchError(format!("input `{}` has two shapes", shape.input)));
        }
        let inputs = (1..).zip(&signature.inputs).map(|(seed, spec)| {
            let wrong = |reason: String| BenchError(format!("input `{}`: {reason}", spec.name));
            let given = shapes.iter().find(|shape| shape.input == spec.name).map(|shape| &*shape.dims);
            let dims = dims(spec, given, arguments.rows.get()).map_err(wrong)?;
            let dtype = spec.dtype.ok_or_else(|| wrong("is of a type that the protocol cannot carry".to_owned()))?;
            let tensor = model::made_up(dtype, Shape::new(dims), arguments.fill.into(), seed).map_err(wrong)?;
            Ok(NamedTensor { name: Arc::clone(&spec.name), tensor })
        });
        Ok(Self { inputs: inputs.collect::<Result<_, _>>()?, outputs: Vec::new(), body: None })
    }

    /// What `arguments` ask for: the requests in the files that `--data` names, else one that is made up for the model, whose
    /// signature is asked for then.
    ///
    /// # Errors
    ///
    /// As [`Payload::made`]; [`BenchError`] if a file is no request, or has other rows than the first.
    pub(super) async fn all(
        arguments: &Arguments,
        signature: impl AsyncFnOnce() -> Result<Signature, BenchError>,
    ) -> Result<Vec<Self>, BenchError> {
        if arguments.data.is_empty() {
            return Ok(vec![Self::made(&signature().await?, arguments)?]);
        }
        let payloads: Vec<_> = arguments.data.iter().map(|path| Self::read(path)).collect::<Result<_, _>>()?;
        let rows = payloads.first().map_or(0, Self::rows);
        match payloads.iter().zip(&arguments.data).find(|(payload, _)| payload.rows() != rows) {
            // Answers are counted, and rates are told in rows.
            Some((other, path)) => {
                let (path, found) = (path.display(), other.rows());
                Err(BenchError(format!("`{path}`: has {found} rows, expected {rows} as in the first")))
            }
            None => Ok(payloads),
        }
    }

    /// The V2 request in a file.
    ///
    /// # Errors
    ///
    /// [`BenchError`] if there is none or it is no request.
    fn read(path: &std::path::Path) -> Result<Self, BenchError> {
        let wrong = |reason: String| BenchError(format!("`{}`: {reason}", path.display()));
        let body = Bytes::from(fs::read(path).map_err(|error| wrong(error.to_string()))?);
        let request = json::decode_request(&body, Dialect::V2, None, &Settings::default());
        let request = request.map_err(|error| wrong(error.to_string()))?;
        let outputs = request.outputs.into_iter().map(|output| output.name).collect();
        Ok(Self { inputs: request.inputs, outputs, body: Some(body) })
    }

    /// The inputs.
    pub(super) fn inputs(&self) -> &[NamedTensor] {
        &self.inputs
    }

    /// Rows of each request: the first dimension of its first input.
    pub(super) fn rows(&self) -> usize {
        self.inputs.first().map_or(1, |input| input.tensor.rows())
    }

    /// A V2 body as JSON.
    ///
    /// # Errors
    ///
    /// [`BenchError`] for types that have no JSON form.
    pub(super) fn json(&self) -> Result<Bytes, BenchError> {
        if let Some(body) = &self.body {
            return Ok(body.clone());
        }
        let mut out = Vec::new();
        out.push(b'{');
        self.write(&mut out, Dialect::V2, &Wishes::default())?;
        out.push(b'}');
        Ok(out.into())
    }

    /// A V2 body with raw tensors, which asks for such outputs, and how much of it is JSON.
    ///
    /// # Errors
    ///
    /// As [`Payload::json`].
    pub(super) fn binary(&self) -> Result<(Bytes, usize), BenchError> {
        let mut out = br#"{"parameters":{"binary_data_output":true},"#.to_vec();
        let tensors = self.write(&mut out, Dialect::V2, &Wishes { binary: true, outputs: Vec::new() })?;
        out.push(b'}');
        let json = out.len();
        tensors.iter().for_each(|tensor| out.extend_from_slice(tensor));
        Ok((out.into(), json))
    }

    /// A V2 message of gRPC, with raw tensors.
    pub(super) fn message(&self, model: &ModelRef) -> ModelInferRequest {
        let input = |NamedTensor { name, tensor }: &NamedTensor| message::InferInputTensor {
            name: name.to_string(),
            datatype: tensor.dtype().name().to_owned(),
            shape: tensor.shape().dims().iter().map(|dim| i64::try_from(*dim).unwrap_or(i64::MAX)).collect(),
            ..Default::default()
        };
        let output =
            |name: &Arc<str>| message::InferRequestedOutputTensor { name: name.to_string(), ..Default::default() };
        ModelInferRequest {
            model_name: model.name.to_string(),
            model_version: model.version.as_deref().unwrap_or_default().to_owned(),
            inputs: self.inputs.iter().map(input).collect(),
            outputs: self.outputs.iter().map(output).collect(),
            raw_input_contents: self.inputs.iter().map(|input| input.tensor.data().clone()).collect(),
            ..Default::default()
        }
    }

    /// A message of `sluicegate.v1`; that its inputs have a JSON form was seen when it was first made.
    pub(super) fn line(&self, model: &ModelRef, id: &str) -> Vec<u8> {
        let mut out = br#"{"type":"infer","id":"#.to_vec();
        json::write_string(&mut out, id);
        out.extend_from_slice(br#","model":"#);
        json::write_string(&mut out, &model.name);
        if let Some(version) = &model.version {
            out.extend_from_slice(br#","version":"#);
            json::write_string(&mut out, version);
        }
        out.push(b',');
        // Messages have a form for every type.
        let _ = self.write(&mut out, Dialect::Message, &Wishes::default());
        out.push(b'}');
        out
    }

    /// The members `inputs` and, if any were asked for, `outputs`.
    fn write(&self, out: &mut Vec<u8>, dialect: Dialect, wishes: &Wishes) -> Result<Vec<Bytes>, BenchError> {
        if !self.outputs.is_empty() {
            out.extend_from_slice(br#""outputs":["#);
            for (index, name) in self.outputs.iter().enumerate() {
                out.extend_from_slice(if index == 0 { br#"{"name":"# } else { br#",{"name":"# });
                json::write_string(out, name);
                out.push(b'}');
            }
            out.extend_from_slice(b"],");
        }
        out.extend_from_slice(br#""inputs":"#);
        json::write_outputs(out, &self.inputs, dialect, wishes, &Settings::default()).map_err(BenchError::new)
    }
}

/// The shape of an input: `given`, or `rows` in a free first dimension and 1 in every other free one.
fn dims(spec: &TensorSpec, given: Option<&[usize]>, rows: usize) -> Result<Vec<usize>, String> {
    let Some(given) = given else {
        let dims = spec.dims.iter().enumerate();
        return Ok(dims.map(|(axis, dim)| dim.unwrap_or(if axis == 0 { rows } else { 1 })).collect());
    };
    let fits = given.len() == spec.dims.len()
        && given.iter().zip(&spec.dims).all(|(given, wanted)| wanted.is_none_or(|wanted| wanted == *given));
    match fits {
        true => Ok(given.to_vec()),
        false => {
            let wanted: Vec<_> = spec.wire_dims().map(|dim| dim.to_string()).collect();
            Err(format!("has shape [{}], and {given:?} does not fit it", wanted.join(", ")))
        }
    }
}

#[cfg(test)]
#[path = "input_tests.rs"]
mod tests;
