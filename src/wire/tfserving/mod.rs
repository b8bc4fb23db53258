//! TensorFlow Serving's messages over gRPC: generated types and their conversions.
//!
//! The same operations as its REST routes (contract 03), in protobuf. What gRPC puts around a message, and which method
//! it came with, is the front-end's business.

mod fields;
mod tensor;
#[cfg(test)]
mod tests;

pub use tensor::{Contents, contents, decode_inputs, raw_work, weight};

use super::v1::{METHOD, SIGNATURE, version_status};
use crate::{
    call::{InferResponse, ModelRef, ModelReport, RequestedOutput, VersionsReport},
    error::Error,
    tensor::TensorSpec,
};
use pb::serving::model_spec::VersionChoice;
use prost::Message;
use std::collections::HashMap;

/// The generated types of `proto/tfserving/tensorflow.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, missing_debug_implementations)]
pub mod pb {
    include!(concat!(env!("OUT_DIR"), "/tensorflow.rs"));

    /// The generated types of `proto/tfserving/error.proto`.
    pub mod error {
        include!(concat!(env!("OUT_DIR"), "/tensorflow.error.rs"));
    }

    /// The generated types of `proto/tfserving/serving.proto`.
    pub mod serving {
        include!(concat!(env!("OUT_DIR"), "/tensorflow.serving.rs"));
    }
}

/// The one field of metadata that there is (contract 03 section 6).
const FIELD: &str = "signature_def";
/// What it is, as `Any` names it.
const FIELD_TYPE: &str = "type.googleapis.com/tensorflow.serving.SignatureDefMap";

/// The model and the outputs that a request to predict is about.
///
/// # Errors
///
/// [`Error::InvalidRequest`] without a name, and for a signature that is not the one that models have.
pub fn about(
    spec: Option<pb::serving::ModelSpec>,
    outputs: Vec<String>,
) -> Result<(ModelRef, Vec<RequestedOutput>), Error> {
    let signature = spec.as_ref().map_or("", |spec| &spec.signature_name);
    if !matches!(signature, "" | SIGNATURE) {
        let signature: String = signature.chars().take(64).collect();
        return Err(Error::invalid(format!("signature `{signature}` is unknown, expected `{SIGNATURE}`")));
    }
    Ok((model(spec)?, outputs.into_iter().map(RequestedOutput::from).collect()))
}

/// The model that a request is about.
///
/// # Errors
///
/// [`Error::InvalidRequest`] without a name.
pub fn model(spec: Option<pb::serving::ModelSpec>) -> Result<ModelRef, Error> {
    let spec = spec.unwrap_or_default();
    if spec.name.is_empty() {
        return Err(Error::invalid("`model_spec.name` is empty, expected a model's name"));
    }
    Ok(match spec.version_choice {
        None => ModelRef { name: spec.name.into(), version: None },
        Some(VersionChoice::Version(version)) => {
            ModelRef { name: spec.name.into(), version: Some(version.to_string().into()) }
        }
        Some(VersionChoice::VersionLabel(label)) => ModelRef::labelled(spec.name, &label),
    })
}

/// Refuses fields of metadata that there are not.
///
/// # Errors
///
/// [`Error::InvalidRequest`]; also where none is asked for.
pub fn check_fields(fields: &[String]) -> Result<(), Error> {
    if fields.is_empty() {
        return Err(Error::invalid(format!("`metadata_field` is empty, expected `{FIELD}`")));
    }
    match fields.iter().find(|field| *field != FIELD) {
        None => Ok(()),
        Some(field) => {
            let field: String = field.chars().take(64).collect();
            Err(Error::invalid(format!("metadata field `{field}` is unknown, expected `{FIELD}`")))
        }
    }
}

/// Converts a response.
pub fn encode_predict(response: &InferResponse, contents: Contents) -> pb::serving::PredictResponse {
    let outputs = response.outputs.iter();
    pb::serving::PredictResponse {
        outputs: outputs.map(|output| (output.name.to_string(), tensor::encode(&output.tensor, contents))).collect(),
        model_spec: Some(model_spec(&response.model.name, &response.model.version, SIGNATURE)),
    }
}

/// Converts the states of versions.
pub fn encode_status(report: &VersionsReport) -> pb::serving::GetModelStatusResponse {
    use pb::serving::{ModelVersionStatus, StatusProto, model_version_status::State};
    let versions = report.versions.iter().map(|(version, state, reason)| {
        let (state, code, text) = version_status(*state, reason);
        let code = pb::error::Code::from_str_name(code).unwrap_or(pb::error::Code::Unknown);
        ModelVersionStatus {
            version: number(version).unwrap_or_default(),
            state: State::from_str_name(state).unwrap_or_default().into(),
            status: Some(StatusProto { error_code: code.into(), error_message: text.to_owned() }),
        }
    });
    pb::serving::GetModelStatusResponse { model_version_status: versions.collect() }
}

/// Converts metadata: the one signature that a model has.
pub fn encode_metadata(report: &ModelReport) -> pb::serving::GetModelMetadataResponse {
    let specs = |specs: &[TensorSpec]| specs.iter().map(|spec| (spec.name.to_string(), info(spec))).collect();
    let signature = pb::SignatureDef {
        inputs: specs(&report.signature.inputs),
        outputs: specs(&report.signature.outputs),
        method_name: METHOD.to_owned(),
    };
    let map = pb::serving::SignatureDefMap { signature_def: HashMap::from([(SIGNATURE.to_owned(), signature)]) };
    let any = prost_types::Any { type_url: FIELD_TYPE.to_owned(), value: map.encode_to_vec() };
    pb::serving::GetModelMetadataResponse {
        model_spec: Some(model_spec(&report.name, &report.version, "")),
        metadata: HashMap::from([(FIELD.to_owned(), any)]),
    }
}

fn model_spec(name: &str, version: &str, signature: &str) -> pb::serving::ModelSpec {
    pb::serving::ModelSpec {
        name: name.to_owned(),
        version_choice: number(version).map(VersionChoice::Version),
        signature_name: signature.to_owned(),
    }
}

/// A version as this protocol counts them. All that are loaded from folders are numbers.
fn number(version: &str) -> Option<i64> {
    version.parse().ok()
}

fn info(spec: &TensorSpec) -> pb::TensorInfo {
    let dim = |size| pb::tensor_shape_proto::Dim { size, name: String::new() };
    pb::TensorInfo {
        encoding: Some(pb::tensor_info::Encoding::Name(format!("{}:0", spec.name))),
        dtype: tensor::dtype_of(spec.dtype).into(),
        tensor_shape: Some(pb::TensorShapeProto { dim: spec.wire_dims().map(dim).collect(), unknown_rank: false }),
    }
}
