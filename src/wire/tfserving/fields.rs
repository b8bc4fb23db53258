//! The fields of requests that can repeat: what [`weigh`](crate::wire::weight::weigh) walks.
//!
//! A test compares them with the schema.

use super::pb::{self, serving};
use crate::wire::weight::{Field, Weighed};

const SHAPE: &[Field] = &[Field::texts::<pb::tensor_shape_proto::Dim>(2).most_dimensions()];

const TENSOR: &[Field] = &[
    Field::message(2, SHAPE),
    Field::bytes(4),
    Field::fixed::<f32>(5),
    Field::fixed::<f64>(6),
    Field::varints::<i32>(7),
    Field::byte_strings(8),
    Field::varints::<i64>(10),
    Field::varints::<bool>(11),
    Field::varints::<i32>(13),
    Field::varints::<u32>(16),
    Field::varints::<u64>(17),
];

const INPUT: &[Field] = &[Field::message(2, TENSOR)];

impl Weighed for serving::PredictRequest {
    const FIELDS: &'static [Field] = &[
        Field::messages::<(String, pb::TensorProto)>(2, INPUT).most_tensors("inputs"),
        Field::texts::<String>(3).most_tensors("outputs"),
    ];
}

impl Weighed for serving::GetModelMetadataRequest {
    const FIELDS: &'static [Field] = &[Field::texts::<String>(2).most_tensors("metadata fields")];
}

impl Weighed for serving::GetModelStatusRequest {}
