//! Triton's model configuration: written from a report, read from text and JSON (contract 02 section 10).
//!
//! One schema, `proto/open_inference.proto`, serves all forms; `prost-reflect` knows protobuf's text and JSON. What a
//! configuration means for a model is not known here.

mod read;

pub use read::{ConfigError, parse_config_json, parse_config_text};

use super::{DESCRIPTOR, inference as pb};
use crate::{
    call::{ConfigReport, ImageFormat, RaggedReport, ServedVersions, StepReport},
    tensor::{DataType, Marks, TensorSpec},
};
use bytes::Bytes;
use pb::{
    batch_input, batch_output, model_config::SchedulingChoice, model_input::Format, model_instance_group::Kind,
    model_queue_policy::TimeoutAction, model_version_policy as policy,
};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
    time::Duration,
};

/// The schema. Made when first asked for: most servers never are.
static SCHEMA: LazyLock<MessageDescriptor> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(DESCRIPTOR).expect("the build script wrote it; a test reads it");
    pool.get_message_by_name("inference.ModelConfig").expect("the schema has it; a test asks for it")
});

/// Writes a model's configuration as JSON: names as in the schema, 64-bit integers as numbers, every plain field.
pub fn encode_config_json(report: &ConfigReport) -> Bytes {
    let config = encode_config(report);
    let bytes = config.encode_to_vec();
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .stringify_64_bit_integers(false)
        // Messages that are not set stay away; what is within those that are is all there.
        .skip_default_fields(false);
    let mut out = Vec::with_capacity(1024);
    let written = DynamicMessage::decode(SCHEMA.clone(), bytes.as_slice())
        .ok()
        .and_then(|message| message.serialize_with_options(&mut serde_json::Serializer::new(&mut out), &options).ok());
    debug_assert!(written.is_some(), "what was encoded by one schema is decoded by the same");
    out.into()
}

/// Converts a model's configuration.
pub fn encode_config(report: &ConfigReport) -> pb::ModelConfig {
    let batches = report.max_rows.is_some();
    let is_ensemble = !report.steps.is_empty();
    let max_rows = report.max_rows.map_or(0, |rows| i32::try_from(rows).unwrap_or(i32::MAX));
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    // As Triton completes a configuration that prefers nothing.
    let preferred = match report.preferred.as_slice() {
        [] => vec![max_rows],
        sizes => sizes.iter().map(|size| i32::try_from(*size).unwrap_or(i32::MAX)).collect(),
    };
    let (timeout, delays) = report.timeout;
    let queue = timeout.map(|timeout| pb::ModelQueuePolicy {
        timeout_action: (if delays { TimeoutAction::Delay } else { TimeoutAction::Reject }).into(),
        default_timeout_microseconds: micros(timeout),
        ..pb::ModelQueuePolicy::default()
    });
    // Triton says 0 where there are no levels.
    let (levels, default) = match report.priorities {
        (0 | 1, _) => (0, 0),
        (levels, default) => (levels.into(), default.into()),
    };
    let label = |spec: &TensorSpec| {
        let file = report.labels.iter().find(|(output, _)| *output == spec.name);
        file.map_or_else(String::new, |(_, file)| file.as_ref().into())
    };
    let format = |spec: &TensorSpec| {
        let found = report.notes.formats.iter().find(|(input, _)| *input == spec.name);
        found.map_or(Format::None, |(_, format)| match format {
            ImageFormat::Nhwc => Format::Nhwc,
            ImageFormat::Nchw => Format::Nchw,
        })
    };
    pb::ModelConfig {
        name: report.name.as_ref().into(),
        platform: report.platform.as_ref().into(),
        backend: (if is_ensemble { "" } else { "onnxruntime" }).into(),
        version_policy: Some(pb::ModelVersionPolicy { policy_choice: Some(versions(&report.versions)) }),
        max_batch_size: Some(max_rows),
        input: report
            .signature
            .inputs
            .iter()
            .map(|spec| pb::ModelInput {
                name: spec.name.as_ref().into(),
                data_type: data_type(spec.dtype).into(),
                format: format(spec).into(),
                dims: dims(spec, batches),
                allow_ragged_batch: report.ragged.inputs.contains(&spec.name),
                ..pb::ModelInput::default()
            })
            .collect(),
        output: report
            .signature
            .outputs
            .iter()
            .map(|spec| pb::ModelOutput {
                name: spec.name.as_ref().into(),
                data_type: data_type(spec.dtype).into(),
                dims: dims(spec, batches),
                label_filename: label(spec),
                ..pb::ModelOutput::default()
            })
            .collect(),
        batch_input: batch_inputs(&report.ragged),
        batch_output: batch_outputs(&report.ragged),
        instance_group: instances(report),
        default_model_filename: (if is_ensemble { "" } else { report.file.as_ref() }).into(),
        metric_tags: texts(&report.notes.tags, str::to_owned),
        parameters: texts(&report.notes.parameters, |text| pb::ModelParameter { string_value: text.into() }),
        model_transaction_policy: Some(pb::ModelTransactionPolicy { decoupled: report.decoupled }),
        scheduling_choice: ensemble(&report.steps).or_else(|| {
            batches.then(|| {
                SchedulingChoice::DynamicBatching(pb::ModelDynamicBatching {
                    preferred_batch_size: preferred,
                    max_queue_delay_microseconds: micros(report.max_delay),
                    preserve_ordering: report.preserve_order,
                    default_queue_policy: queue,
                    priority_levels: levels,
                    default_priority_level: default,
                    ..pb::ModelDynamicBatching::default()
                })
            })
        }),
        // There only where it is on, as Triton has it.
        response_cache: report.caches.then_some(pb::ModelResponseCache { enable: true }),
        ..pb::ModelConfig::default()
    }
}

/// Inputs that are made of each batch. Triton has no word for where rows begin without where the last one ends.
fn batch_inputs(ragged: &RaggedReport) -> Vec<pb::BatchInput> {
    let kind = |marks| match marks {
        Marks::Counts => Some(batch_input::Kind::BatchElementCount),
        Marks::Ends => Some(batch_input::Kind::BatchAccumulatedElementCount),
        Marks::Bounds => Some(batch_input::Kind::BatchAccumulatedElementCountWithZero),
        Marks::Starts => None,
    };
    let input = |(name, marks, dtype, of): &(Arc<str>, Marks, DataType, Arc<str>)| {
        Some(pb::BatchInput {
            kind: kind(*marks)?.into(),
            target_name: vec![name.as_ref().into()],
            data_type: data_type(Some(*dtype)).into(),
            source_input: vec![of.as_ref().into()],
        })
    };
    ragged.made.iter().filter_map(input).collect()
}

/// Outputs that are cut by the lengths of an input.
fn batch_outputs(ragged: &RaggedReport) -> Vec<pb::BatchOutput> {
    let output = |(name, of): &(Arc<str>, Arc<str>)| pb::BatchOutput {
        kind: batch_output::Kind::BatchScatterWithInputShape.into(),
        target_name: vec![name.as_ref().into()],
        source_input: vec![of.as_ref().into()],
    };
    ragged.outputs.iter().map(output).collect()
}

/// An ensemble has none: its models have.
fn instances(report: &ConfigReport) -> Vec<pb::ModelInstanceGroup> {
    let group = pb::ModelInstanceGroup {
        name: report.name.as_ref().into(),
        kind: Kind::Cpu.into(),
        count: i32::try_from(report.instances).unwrap_or(i32::MAX),
        ..pb::ModelInstanceGroup::default()
    };
    if report.steps.is_empty() { vec![group] } else { Vec::new() }
}

/// What an ensemble is made of. Where no version is named Triton writes -1, and so for a label, which it has not.
fn ensemble(steps: &[StepReport]) -> Option<SchedulingChoice> {
    let map = |list: &[(Arc<str>, Arc<str>)]| texts(list, str::to_owned);
    let step = |step: &StepReport| pb::model_ensembling::Step {
        model_name: step.model.as_ref().into(),
        model_version: step.version.as_ref().and_then(|version| version.parse().ok()).unwrap_or(-1),
        input_map: map(&step.inputs),
        output_map: map(&step.outputs),
        ..pb::model_ensembling::Step::default()
    };
    let choice = || pb::ModelEnsembling { step: steps.iter().map(step).collect(), ..pb::ModelEnsembling::default() };
    (!steps.is_empty()).then(|| SchedulingChoice::EnsembleScheduling(choice()))
}

fn texts<T>(named: &[(Arc<str>, Arc<str>)], value: impl Fn(&str) -> T) -> HashMap<String, T> {
    named.iter().map(|(name, text)| (name.as_ref().into(), value(text))).collect()
}

fn versions(served: &ServedVersions) -> policy::PolicyChoice {
    match served {
        ServedVersions::Latest(count) => {
            let num_versions = u32::try_from(*count).unwrap_or(u32::MAX);
            policy::PolicyChoice::Latest(policy::Latest { num_versions })
        }
        ServedVersions::All => policy::PolicyChoice::All(policy::All {}),
        ServedVersions::Only(versions) => {
            let versions = versions.iter().filter_map(|version| i64::try_from(*version).ok()).collect();
            policy::PolicyChoice::Specific(policy::Specific { versions })
        }
    }
}

/// The dimensions of one row where rows are batched, all of them elsewhere (contract 01 section 2.2).
fn dims(spec: &TensorSpec, batches: bool) -> Vec<i64> {
    spec.wire_dims().skip(usize::from(batches)).collect()
}

fn data_type(dtype: Option<DataType>) -> pb::DataType {
    match dtype {
        None => pb::DataType::TypeInvalid,
        Some(DataType::Bool) => pb::DataType::TypeBool,
        Some(DataType::Uint8) => pb::DataType::TypeUint8,
        Some(DataType::Uint16) => pb::DataType::TypeUint16,
        Some(DataType::Uint32) => pb::DataType::TypeUint32,
        Some(DataType::Uint64) => pb::DataType::TypeUint64,
        Some(DataType::Int8) => pb::DataType::TypeInt8,
        Some(DataType::Int16) => pb::DataType::TypeInt16,
        Some(DataType::Int32) => pb::DataType::TypeInt32,
        Some(DataType::Int64) => pb::DataType::TypeInt64,
        Some(DataType::Fp16) => pb::DataType::TypeFp16,
        Some(DataType::Bf16) => pb::DataType::TypeBf16,
        Some(DataType::Fp32) => pb::DataType::TypeFp32,
        Some(DataType::Fp64) => pb::DataType::TypeFp64,
        Some(DataType::Bytes) => pb::DataType::TypeString,
    }
}

/// The type with this number in the schema; `None` for numbers that are none.
pub fn decode_data_type(number: i32) -> Option<DataType> {
    DataType::ALL.into_iter().find(|dtype| i32::from(data_type(Some(*dtype))) == number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{call::Notes, tensor::Signature};

    fn report() -> ConfigReport {
        let spec =
            |name: &str| TensorSpec { name: name.into(), dtype: Some(DataType::Fp32), dims: vec![None, Some(4)] };
        ConfigReport {
            name: "m".into(),
            platform: "onnxruntime_onnx".into(),
            max_rows: Some(64),
            signature: Arc::new(Signature { inputs: vec![spec("x")], outputs: vec![spec("y")] }),
            decoupled: false,
            instances: 2,
            max_delay: Duration::from_micros(500),
            preferred: vec![8, 16],
            preserve_order: true,
            timeout: (Some(Duration::from_millis(2)), true),
            priorities: (3, 2),
            versions: ServedVersions::Latest(1),
            labels: vec![("y".into(), "labels.txt".into())],
            caches: true,
            file: "net.onnx".into(),
            notes: Notes {
                formats: vec![("x".into(), ImageFormat::Nchw)],
                parameters: vec![("team".into(), "vision".into())],
                tags: vec![("site".into(), "east".into())],
            },
            steps: Vec::new(),
            ragged: RaggedReport::default(),
        }
    }

    #[test]
    fn json_has_numbers_names_and_every_plain_field() {
        let json: serde_json::Value = serde_json::from_slice(&encode_config_json(&report())).unwrap();
        assert_eq!(json["max_batch_size"], 64);
        assert_eq!(json["input"][0]["dims"], serde_json::json!([4]));
        assert_eq!(json["input"][0]["data_type"], "TYPE_FP32");
        assert_eq!(json["input"][0]["format"], "FORMAT_NCHW");
        assert_eq!(json["input"][0]["optional"], false);
        assert_eq!(json["output"][0]["label_filename"], "labels.txt");
        assert_eq!(json["instance_group"][0]["count"], 2);
        assert_eq!(json["instance_group"][0]["gpus"], serde_json::json!([]));
        assert_eq!(json["dynamic_batching"]["max_queue_delay_microseconds"], 500);
        assert_eq!(json["dynamic_batching"]["preferred_batch_size"], serde_json::json!([8, 16]));
        assert_eq!(json["dynamic_batching"]["preserve_ordering"], true);
        let queue = &json["dynamic_batching"]["default_queue_policy"];
        assert_eq!((&queue["timeout_action"], &queue["default_timeout_microseconds"]), (&"DELAY".into(), &2000.into()));
        assert_eq!(json["dynamic_batching"]["priority_levels"], 3);
        assert_eq!(json["dynamic_batching"]["default_priority_level"], 2);
        assert_eq!(json["model_transaction_policy"]["decoupled"], false);
        assert_eq!(json["version_policy"]["latest"]["num_versions"], 1);
        assert_eq!(json["parameters"]["team"]["string_value"], "vision");
        assert_eq!(
            (&json["metric_tags"]["site"], &json["default_model_filename"]),
            (&"east".into(), &"net.onnx".into())
        );
        assert_eq!(json["response_cache"]["enable"], true);
        assert!(json.get("ensemble_scheduling").is_none() && json.get("optimization").is_none());
    }

    #[test]
    fn what_is_ragged_is_told_in_tritons_words() {
        let ragged = RaggedReport {
            inputs: vec!["x".into()],
            made: Marks::ALL.map(|marks| (marks.name().into(), marks, DataType::Int32, "x".into())).into(),
            outputs: vec![("y".into(), "x".into())],
        };
        let json: serde_json::Value =
            serde_json::from_slice(&encode_config_json(&ConfigReport { ragged, ..report() })).unwrap();
        assert_eq!(json["input"][0]["allow_ragged_batch"], true);
        let kinds: Vec<_> = json["batch_input"].as_array().unwrap().iter().map(|input| &input["kind"]).collect();
        let expected =
            ["BATCH_ELEMENT_COUNT", "BATCH_ACCUMULATED_ELEMENT_COUNT", "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO"];
        assert_eq!(kinds, expected);
        let counts = serde_json::json!({
            "kind": "BATCH_ELEMENT_COUNT", "target_name": ["counts"], "data_type": "TYPE_INT32", "source_input": ["x"]
        });
        assert_eq!(json["batch_input"][0], counts);
        let scattered = serde_json::json!({
            "kind": "BATCH_SCATTER_WITH_INPUT_SHAPE", "target_name": ["y"], "source_input": ["x"]
        });
        assert_eq!(json["batch_output"], serde_json::json!([scattered]));
    }

    #[test]
    fn without_batches_dims_are_whole() {
        let config = encode_config(&ConfigReport { max_rows: None, ..report() });
        assert_eq!((config.max_batch_size, config.input[0].dims.as_slice()), (Some(0), &[-1, 4][..]));
        assert!(config.scheduling_choice.is_none());
        assert!(encode_config(&ConfigReport { caches: false, ..report() }).response_cache.is_none());
        let json: serde_json::Value =
            serde_json::from_slice(&encode_config_json(&ConfigReport { max_rows: None, ..report() })).unwrap();
        assert_eq!(json["max_batch_size"], 0, "there, and a number");
    }

    #[test]
    fn what_is_written_is_read_back() {
        let json = encode_config_json(&report());
        assert_eq!(parse_config_json(std::str::from_utf8(&json).unwrap()).unwrap(), encode_config(&report()));
    }

    #[test]
    fn a_batch_size_of_0_is_told_from_none() {
        let text = |text| parse_config_text(text).unwrap().max_batch_size;
        assert_eq!((text("max_batch_size: 0"), text("")), (Some(0), None));
        let json = |text| parse_config_json(text).unwrap().max_batch_size;
        assert_eq!((json(r#"{"max_batch_size":0}"#), json("{}")), (Some(0), None));
    }

    #[test]
    fn types_are_found_by_their_numbers() {
        for dtype in DataType::ALL {
            assert_eq!(decode_data_type(data_type(Some(dtype)).into()), Some(dtype));
        }
        assert_eq!((decode_data_type(0), decode_data_type(99)), (None, None));
    }

    #[test]
    fn text_and_json_are_read_alike() {
        let text = r#"
            name: "m"  # a comment
            max_batch_size: 8
            input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
            dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100 }
            parameters { key: "a" value: { string_value: "b" } }
        "#;
        let json = r#"{"name":"m","max_batch_size":8,"input":[{"name":"x","data_type":"TYPE_FP32","dims":["4"]}],
            "dynamic_batching":{"preferred_batch_size":[4,8],"maxQueueDelayMicroseconds":"100"},
            "parameters":{"a":{"string_value":"b"}}}"#;
        assert_eq!(parse_config_text(text).unwrap(), parse_config_json(json).unwrap());
    }
}
