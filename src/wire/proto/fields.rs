//! The fields of requests that can repeat: what [`weigh`](crate::wire::weight::weigh) walks.
//!
//! A test compares them with the schema.

use super::inference as pb;
use crate::wire::weight::{Field, Weighed};
use pb::{
    InferParameter, ModelRepositoryParameter,
    model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
};

/// An entry of a map to `T`.
type Entry<T> = (String, T);

/// `map<string, InferParameter>`.
const fn parameters(number: u32) -> Field {
    Field::texts::<Entry<InferParameter>>(number).most_parameters()
}

/// `map<string, ModelRepositoryParameter>`: files are shared with the message.
const fn files(number: u32) -> Field {
    const VALUE: &[Field] = &[Field::bytes(4)];
    const ENTRY: &[Field] = &[Field::message(2, VALUE)];
    Field::messages::<Entry<ModelRepositoryParameter>>(number, ENTRY).most_parameters()
}

const CONTENTS: &[Field] = &[
    Field::varints::<bool>(1),
    Field::varints::<i32>(2),
    Field::varints::<i64>(3),
    Field::varints::<u32>(4),
    Field::varints::<u64>(5),
    Field::fixed::<f32>(6),
    Field::fixed::<f64>(7),
    Field::byte_strings(8),
];

const INPUT: &[Field] = &[Field::varints::<i64>(3).most_dimensions(), parameters(4), Field::message(5, CONTENTS)];

impl Weighed for pb::ModelInferRequest {
    const FIELDS: &'static [Field] = &[
        parameters(4),
        Field::messages::<InferInputTensor>(5, INPUT).most_tensors(super::TENSORS),
        Field::messages::<InferRequestedOutputTensor>(6, &[parameters(2)]).most_tensors(super::TENSORS),
        Field::byte_strings(7).most_tensors("entries in `raw_input_contents`"),
    ];
}

impl Weighed for pb::RepositoryModelLoadRequest {
    const FIELDS: &'static [Field] = &[files(3)];
}

impl Weighed for pb::RepositoryModelUnloadRequest {
    const FIELDS: &'static [Field] = &[files(3)];
}

impl Weighed for pb::TraceSettingRequest {
    const FIELDS: &'static [Field] = {
        const VALUE: &[Field] = &[Field::texts::<String>(1)];
        const ENTRY: &[Field] = &[Field::message(2, VALUE)];
        &[Field::messages::<Entry<pb::trace_setting_request::SettingValue>>(1, ENTRY).most_parameters()]
    };
}

impl Weighed for pb::LogSettingsRequest {
    const FIELDS: &'static [Field] =
        &[Field::texts::<Entry<pb::log_settings_request::SettingValue>>(1).most_parameters()];
}

impl Weighed for pb::CudaSharedMemoryRegisterRequest {
    const FIELDS: &'static [Field] = &[Field::bytes(2)];
}

/// Messages in which nothing repeats.
macro_rules! plain {
    ($($message:ident),* $(,)?) => { $(impl Weighed for pb::$message {})* };
}

plain! {
    ServerLiveRequest, ServerReadyRequest, ModelReadyRequest, ServerMetadataRequest, ModelMetadataRequest,
    ModelConfigRequest, ModelStatisticsRequest, RepositoryIndexRequest, SystemSharedMemoryStatusRequest,
    SystemSharedMemoryRegisterRequest, SystemSharedMemoryUnregisterRequest, CudaSharedMemoryStatusRequest,
    CudaSharedMemoryUnregisterRequest,
}
