//! Generated protobuf types and their conversions (contract 01 section 4).
//!
//! Raw tensors are moved, never copied: they are slices of the received message. What gRPC puts around
//! a message, and which method it came with, is the front-end's business.

use super::{
    Settings, json,
    reserved::{self, Form, Options},
    shared, weight,
};
use crate::{
    call::{
        InferRequest, InferResponse, ModelRef, ModelReport, NamedTensor, Parameter, Parameters, RequestedOutput,
        ServerReport,
    },
    error::Error,
    tensor::{DataType, Shape, TensorSpec},
};
use bytes::Bytes;
use inference::{
    InferParameter, ModelInferRequest, infer_parameter::ParameterChoice, model_infer_request::InferInputTensor,
    model_infer_response::InferOutputTensor, model_metadata_response::TensorMetadata,
};
use std::{collections::HashMap, sync::Arc};

mod config;
mod fields;
mod manage;
#[cfg(test)]
mod tests;
mod typed;

pub use config::{
    ConfigError, decode_data_type, encode_config, encode_config_json, parse_config_json, parse_config_text,
};
pub(super) use manage::index_state;
pub use manage::{
    check_repository, decode_load, decode_logging, decode_trace, decode_unload, encode_index, encode_logging,
    encode_statistics, encode_trace,
};

/// The generated types of `proto/open_inference.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, missing_debug_implementations)]
pub mod inference {
    include!(concat!(env!("OUT_DIR"), "/inference.rs"));
}

/// The file descriptors of everything in `proto/`, encoded, as gRPC reflection serves them.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// What of an inference request there are no more than `limits.size.tensors` of, each.
const TENSORS: &str = "inputs or outputs";

/// Converts a decoded gRPC message (contract 01 section 4).
///
/// # Errors
///
/// [`Error::InvalidRequest`] or [`Error::InvalidTensor`], naming what was found and what was expected.
pub fn decode_infer(message: ModelInferRequest, settings: &Settings) -> Result<InferRequest, Error> {
    if message.inputs.len() > settings.tensors || message.outputs.len() > settings.tensors {
        return Err(weight::too_many_tensors(TENSORS, settings));
    }
    if message.model_name.is_empty() {
        return Err(Error::invalid("`model_name` is empty"));
    }
    let mut options = Options::default();
    check_count(message.parameters.len())?;
    for (name, value) in message.parameters {
        let value = parameter(&name, value)?;
        options.take(Form::Grpc, &name, value)?;
    }
    options.check()?;
    let inputs = inputs(message.inputs, message.raw_input_contents, settings)?;
    let mut outputs: Vec<RequestedOutput> = Vec::with_capacity(message.outputs.len());
    for mut output in message.outputs {
        check_tensor_parameters(&output.parameters)?;
        if outputs.iter().any(|other| *other.name == *output.name) {
            return Err(Error::tensor(output.name, "is requested twice, expected once"));
        }
        let classes = output.parameters.remove(reserved::CLASSIFICATION);
        let classes =
            classes.map(|value| reserved::classes(&parameter(reserved::CLASSIFICATION, value)?)).transpose()?;
        outputs.push(RequestedOutput { name: output.name.into(), classes });
    }
    Ok(InferRequest {
        model: ModelRef { name: message.model_name.into(), version: given(message.model_version) },
        client_id: given(message.id),
        inputs: inputs.into(),
        outputs,
        timeout: options.timeout,
        priority: options.priority,
        parameters: options.parameters,
    })
}

/// In proto3 an empty string and none are the same on the wire.
fn given(text: String) -> Option<Arc<str>> {
    (!text.is_empty()).then(|| text.into())
}

fn check_count(parameters: usize) -> Result<(), Error> {
    if parameters > json::MEMBERS { Err(weight::too_many_parameters()) } else { Ok(()) }
}

fn check_tensor_parameters(parameters: &HashMap<String, InferParameter>) -> Result<(), Error> {
    parameters.keys().try_for_each(|name| reserved::check_tensor_parameter(name))
}

fn parameter(name: &str, value: InferParameter) -> Result<Parameter, Error> {
    Ok(match value.parameter_choice {
        Some(ParameterChoice::BoolParam(flag)) => Parameter::Bool(flag),
        Some(ParameterChoice::Int64Param(number)) => Parameter::Int(number),
        Some(ParameterChoice::StringParam(text)) => Parameter::String(text.into()),
        Some(ParameterChoice::DoubleParam(number)) => Parameter::Double(number),
        Some(ParameterChoice::Uint64Param(number)) => Parameter::Uint(number),
        None => return Err(Error::invalid(format!("parameter `{name}` has no value"))),
    })
}

fn inputs(
    tensors: Vec<InferInputTensor>,
    contents: Vec<Bytes>,
    settings: &Settings,
) -> Result<Vec<NamedTensor>, Error> {
    let is_raw = !contents.is_empty();
    if is_raw && contents.len() != tensors.len() {
        let (found, expected) = (contents.len(), tensors.len());
        return Err(Error::invalid(format!(
            "`raw_input_contents` has {found} entries for {expected} inputs, expected one each"
        )));
    }
    let mut contents = contents.into_iter();
    let mut inputs: Vec<NamedTensor> = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        if inputs.iter().any(|other| *other.name == *tensor.name) {
            return Err(Error::tensor(tensor.name, "is there twice, expected once"));
        }
        inputs.push(input(tensor, contents.next(), settings)?);
    }
    Ok(inputs)
}

fn input(tensor: InferInputTensor, contents: Option<Bytes>, settings: &Settings) -> Result<NamedTensor, Error> {
    let name: Arc<str> = tensor.name.into();
    let wrong = |reason: String| Error::tensor(Arc::clone(&name), reason);
    check_tensor_parameters(&tensor.parameters)?;
    let dtype = DataType::parse(&tensor.datatype).ok_or_else(|| {
        let found: String = tensor.datatype.chars().take(24).collect();
        wrong(format!("has datatype `{found}`, expected a V2 name such as `FP32`"))
    })?;
    if tensor.shape.len() > settings.rank {
        return Err(wrong(weight::too_many_dimensions(tensor.shape.len(), settings)));
    }
    if let Some(dim) = tensor.shape.iter().find(|dim| usize::try_from(**dim).is_err()) {
        return Err(wrong(format!("has a dimension of `{dim}`, expected an integer from 0 on")));
    }
    let shape = Shape::new(tensor.shape.iter().map(|dim| usize::try_from(*dim).unwrap_or_default()));
    match (contents, tensor.contents) {
        (Some(_), Some(_)) => Err(wrong("has both raw and typed contents, expected one".to_owned())),
        (Some(data), None) => shared(name, dtype, shape, data),
        (None, typed) => {
            let tensor = typed::tensor(dtype, shape, typed.unwrap_or_default()).map_err(wrong)?;
            Ok(NamedTensor { name, tensor })
        }
    }
}

/// Whether a request brings its tensors as typed contents.
pub fn is_typed(message: &ModelInferRequest) -> bool {
    message.raw_input_contents.is_empty() && !message.inputs.is_empty()
}

/// The work of converting the raw tensors of a request, bytes: those of types that are looked through. Others are as they
/// came.
pub fn raw_work(message: &ModelInferRequest) -> usize {
    let raw = message.inputs.iter().zip(&message.raw_input_contents);
    let walked = raw.filter(|(input, _)| matches!(&*input.datatype, "BYTES" | "BOOL"));
    walked.map(|(_, contents)| contents.len()).sum()
}

/// Converts a response: `raw_output_contents` has one entry per output, or none if the outputs are `typed`.
///
/// What has no typed form (FP16, BF16) makes all of them raw: the protocol has no mixture (contract 01 section 4.2).
pub fn encode_infer(response: InferResponse, typed: bool) -> inference::ModelInferResponse {
    let typed = typed && response.outputs.iter().all(|output| typed::has_form(output.tensor.dtype()));
    let mut outputs = Vec::with_capacity(response.outputs.len());
    let mut raw_output_contents = Vec::with_capacity(if typed { 0 } else { response.outputs.len() });
    for NamedTensor { name, tensor } in response.outputs {
        outputs.push(InferOutputTensor {
            name: name.as_ref().into(),
            datatype: tensor.dtype().name().into(),
            shape: tensor.shape().dims().iter().map(|dim| i64::try_from(*dim).unwrap_or(i64::MAX)).collect(),
            parameters: HashMap::new(),
            contents: typed.then(|| typed::contents(&tensor)),
        });
        if !typed {
            raw_output_contents.push(tensor.data().clone());
        }
    }
    inference::ModelInferResponse {
        model_name: response.model.name.as_ref().into(),
        model_version: response.model.version.as_ref().into(),
        id: response.client_id.as_deref().unwrap_or_default().into(),
        parameters: encode_parameters(response.parameters),
        outputs,
        raw_output_contents,
    }
}

fn encode_parameters(parameters: Parameters) -> HashMap<String, InferParameter> {
    let encode = |(name, value): (Arc<str>, Parameter)| {
        let choice = match value {
            Parameter::Bool(flag) => ParameterChoice::BoolParam(flag),
            Parameter::Int(number) => ParameterChoice::Int64Param(number),
            Parameter::Uint(number) => ParameterChoice::Uint64Param(number),
            Parameter::Double(number) => ParameterChoice::DoubleParam(number),
            Parameter::String(text) => ParameterChoice::StringParam(text.as_ref().into()),
        };
        (name.as_ref().into(), InferParameter { parameter_choice: Some(choice) })
    };
    parameters.into_iter().map(encode).collect()
}

/// Converts model metadata.
pub fn encode_model(report: &ModelReport) -> inference::ModelMetadataResponse {
    inference::ModelMetadataResponse {
        name: report.name.as_ref().into(),
        versions: report.versions.iter().map(|version| version.as_ref().into()).collect(),
        platform: report.platform.as_ref().into(),
        inputs: report.signature.inputs.iter().map(encode_spec).collect(),
        outputs: report.signature.outputs.iter().map(encode_spec).collect(),
        properties: HashMap::new(),
    }
}

fn encode_spec(spec: &TensorSpec) -> TensorMetadata {
    TensorMetadata {
        name: spec.name.as_ref().into(),
        datatype: spec.dtype_name().into(),
        shape: spec.wire_dims().collect(),
    }
}

/// Converts server metadata.
pub fn encode_server(report: &ServerReport) -> inference::ServerMetadataResponse {
    inference::ServerMetadataResponse {
        name: report.name.into(),
        version: report.version.into(),
        extensions: report.extensions.iter().map(|extension| (*extension).into()).collect(),
    }
}
