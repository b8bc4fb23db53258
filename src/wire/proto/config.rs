//! Triton's model configuration: written from a report, read from text and JSON (contract 02 section 10).
//!
//! One schema, `proto/open_inference.proto`, serves all forms; `prost-reflect` knows protobuf's text and JSON. What a
//! configuration means for a model is not known here.

use super::{DESCRIPTOR, inference as pb};
use crate::{
    call::{ConfigReport, ImageFormat, ServedVersions},
    tensor::{DataType, TensorSpec},
};
use bytes::Bytes;
use pb::{
    model_config::SchedulingChoice, model_input::Format, model_instance_group::Kind, model_version_policy as policy,
};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, LazyLock},
};

/// Why a text is no model configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

/// The schema. Made when first asked for: most servers never are.
static SCHEMA: LazyLock<MessageDescriptor> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(DESCRIPTOR).expect("the build script wrote it; a test reads it");
    pool.get_message_by_name("inference.ModelConfig").expect("the schema has it; a test asks for it")
});

/// Reads protobuf text: a `config.pbtxt`.
///
/// # Errors
///
/// [`ConfigError`] says where it is malformed, or which field is unknown.
pub fn parse_config_text(text: &str) -> Result<pb::ModelConfig, ConfigError> {
    // The parser recurses once per level, and no configuration is this deep.
    check_depth(text)?;
    let text = with_colons(text);
    let message = DynamicMessage::parse_text_format(SCHEMA.clone(), &text);
    typed(&message.map_err(|error| ConfigError(located(&text, &error.to_string())))?)
}

/// Reads JSON: the configuration that a load call brings. Names are taken in both spellings, as protobuf's JSON has it.
///
/// # Errors
///
/// [`ConfigError`] says where it is malformed, or which field is unknown.
pub fn parse_config_json(text: &str) -> Result<pb::ModelConfig, ConfigError> {
    let error = |error: serde_json::Error| ConfigError(error.to_string());
    let mut reader = serde_json::Deserializer::from_str(text);
    let message = DynamicMessage::deserialize(SCHEMA.clone(), &mut reader).map_err(error)?;
    reader.end().map_err(error)?;
    typed(&message)
}

/// The parser's words for a text that ends too early.
const ENDED: &str = "reached end of input";

/// The error of `text` with its line. The parser does not tell where it stopped, but a text that is cut off before that
/// place has no other fault than to end there.
fn located(text: &str, error: &str) -> String {
    if error.contains(ENDED) {
        return error.to_owned();
    }
    let ends: Vec<usize> = text
        .split_inclusive('\n')
        .scan(0, |end, line| {
            *end += line.len();
            Some(*end)
        })
        .collect();
    let line = ends.partition_point(|end| match DynamicMessage::parse_text_format(SCHEMA.clone(), &text[..*end]) {
        Ok(_) => true,
        Err(error) => error.to_string().contains(ENDED),
    });
    format!("line {}: {error}", line + 1)
}

/// Deepest nesting of messages in a text.
const DEPTH: usize = 64;

fn check_depth(text: &str) -> Result<(), ConfigError> {
    let mut depth = 0_usize;
    for byte in text.bytes() {
        // Brackets in strings and comments count too: they would have to be many to do harm.
        match byte {
            b'{' | b'<' | b'[' => depth += 1,
            b'}' | b'>' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH {
            return Err(ConfigError(format!("nested deeper than {DEPTH} levels")));
        }
    }
    Ok(())
}

/// The same text with a colon between each name and the list behind it: `input [ … ]` is how everybody writes lists of
/// messages, and the one form that the parser does not know.
fn with_colons(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 64);
    // The last character that is neither space nor comment, and the quote of the string that is open.
    let (mut last, mut quote, mut comment, mut escaped) = (' ', None, false, false);
    for c in text.chars() {
        match (quote, comment) {
            (Some(open), _) => {
                if c == open && !escaped {
                    quote = None;
                }
                escaped = c == '\\' && !escaped;
            }
            (None, true) => comment = c != '\n',
            (None, false) => match c {
                '"' | '\'' => quote = Some(c),
                '#' => comment = true,
                '[' if last.is_ascii_alphanumeric() || last == '_' => out.push(':'),
                _ => {}
            },
        }
        if !comment && !c.is_whitespace() {
            last = c;
        }
        out.push(c);
    }
    out
}

fn typed(message: &DynamicMessage) -> Result<pb::ModelConfig, ConfigError> {
    pb::ModelConfig::decode(message.encode_to_vec().as_slice()).map_err(|error| ConfigError(error.to_string()))
}

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
    let max_rows = report.max_rows.map_or(0, |rows| i32::try_from(rows).unwrap_or(i32::MAX));
    let delay = u64::try_from(report.max_delay.as_micros()).unwrap_or(u64::MAX);
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
        backend: "onnxruntime".into(),
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
        instance_group: vec![pb::ModelInstanceGroup {
            name: report.name.as_ref().into(),
            kind: Kind::Cpu.into(),
            count: i32::try_from(report.instances).unwrap_or(i32::MAX),
            ..pb::ModelInstanceGroup::default()
        }],
        default_model_filename: report.file.as_ref().into(),
        metric_tags: texts(&report.notes.tags, str::to_owned),
        parameters: texts(&report.notes.parameters, |text| pb::ModelParameter { string_value: text.into() }),
        model_transaction_policy: Some(pb::ModelTransactionPolicy { decoupled: report.decoupled }),
        scheduling_choice: batches.then(|| {
            SchedulingChoice::DynamicBatching(pb::ModelDynamicBatching {
                preferred_batch_size: vec![max_rows],
                max_queue_delay_microseconds: delay,
                priority_levels: levels,
                default_priority_level: default,
                ..pb::ModelDynamicBatching::default()
            })
        }),
        ..pb::ModelConfig::default()
    }
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
    use std::time::Duration;

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
            priorities: (3, 2),
            versions: ServedVersions::Latest(1),
            labels: vec![("y".into(), "labels.txt".into())],
            file: "net.onnx".into(),
            notes: Notes {
                formats: vec![("x".into(), ImageFormat::Nchw)],
                parameters: vec![("team".into(), "vision".into())],
                tags: vec![("site".into(), "east".into())],
            },
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
        assert_eq!(json["dynamic_batching"]["priority_levels"], 3);
        assert_eq!(json["dynamic_batching"]["default_priority_level"], 2);
        assert_eq!(json["model_transaction_policy"]["decoupled"], false);
        assert_eq!(json["version_policy"]["latest"]["num_versions"], 1);
        assert_eq!(json["parameters"]["team"]["string_value"], "vision");
        assert_eq!(
            (&json["metric_tags"]["site"], &json["default_model_filename"]),
            (&"east".into(), &"net.onnx".into())
        );
        assert!(json.get("ensemble_scheduling").is_none() && json.get("optimization").is_none());
    }

    #[test]
    fn without_batches_dims_are_whole() {
        let config = encode_config(&ConfigReport { max_rows: None, ..report() });
        assert_eq!((config.max_batch_size, config.input[0].dims.as_slice()), (Some(0), &[-1, 4][..]));
        assert!(config.scheduling_choice.is_none());
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

    #[test]
    fn a_list_needs_no_colon_and_strings_and_comments_are_left_alone() {
        assert_eq!(
            with_colons("dims [1] a: [2] # b [\n c [\"d [\\\" [\"]"),
            "dims :[1] a: [2] # b [\n c :[\"d [\\\" [\"]"
        );
    }

    #[test]
    fn what_is_malformed_is_named() {
        let text = |text| parse_config_text(text).unwrap_err().to_string();
        let unknown = text("name: \"m\"\n# more\ninput [\n  { colour: 1 }\n]\n");
        assert!(unknown.starts_with("line 4: ") && unknown.contains("colour"), "{unknown}");
        assert!(text("max_batch_size: 1\nmax_batch_size: many\n").starts_with("line 2: "));
        assert!(text("name: ").contains(ENDED) && text("\ninput {\n").contains(ENDED));
        assert!(parse_config_text(&"a{".repeat(100_000)).unwrap_err().to_string().contains("deeper"));
        assert!(parse_config_json(r#"{"colour":1}"#).unwrap_err().to_string().contains("colour"));
        assert!(parse_config_json("{} {}").is_err());
    }
}
