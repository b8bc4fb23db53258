//! Each field of a model configuration, and what becomes of it.

use super::*;
use crate::{
    call::ImageFormat,
    model::{Fill, SampleInput},
    tensor::{DataType, TensorSpec},
    wire::proto::parse_config_text,
};

fn read_text(text: &str) -> (Said, Vec<String>) {
    let config = parse_config_text(text).unwrap_or_else(|error| panic!("{error}"));
    let mut problems = Problems::new("");
    let said = read(&config, "m", "config.pbtxt", &mut problems);
    (said, problems.list.into_iter().map(|problem| format!("{}: {}", problem.path, problem.text)).collect())
}

fn said(text: &str) -> Said {
    let (said, problems) = read_text(text);
    assert_eq!(problems, [""; 0], "{text}");
    said
}

/// Said without a warning.
fn plain(text: &str) -> Said {
    let said = said(text);
    assert_eq!(said.warnings, [""; 0], "{text}");
    said
}

fn only_problem(text: &str) -> String {
    let (_, problems) = read_text(text);
    assert_eq!(problems.len(), 1, "{text}: {problems:?}");
    problems.into_iter().next().unwrap()
}

fn only_warning(text: &str) -> String {
    let said = said(text);
    assert_eq!(said.warnings.len(), 1, "{text}: {:?}", said.warnings);
    said.warnings.into_iter().next().unwrap()
}

#[test]
fn an_empty_configuration_says_nothing() {
    let said = plain("");
    assert!(said.enabled.is_none() && said.max_rows.is_none() && said.instances.is_none() && said.versions.is_none());
    assert!(said.declared.is_none() && said.file.is_none() && said.samples.is_empty());
}

#[test]
fn it_must_be_this_model_and_an_onnx_model() {
    plain("name: \"m\" platform: \"onnxruntime_onnx\" backend: \"onnxruntime\"");
    plain("backend: \"onnxruntime_onnx\"");
    assert_eq!(only_problem("name: \"n\""), "name: is `n`, and the model is `m`");
    assert!(only_problem("platform: \"tensorrt_plan\"").contains("`tensorrt_plan`, expected `onnxruntime_onnx`"));
    assert!(only_problem("backend: \"python\"").contains("`python`, expected `onnxruntime`"));
}

#[test]
fn a_batch_size_switches_batching_on_or_off() {
    let on = plain("max_batch_size: 8");
    assert_eq!((on.enabled.unwrap().value, on.max_rows.unwrap().value), (Switch::On, Number(8)));
    let off = plain("max_batch_size: 0");
    assert_eq!(off.enabled.unwrap().value, Switch::Off);
    assert!(off.max_rows.is_none());
    assert!(only_problem("max_batch_size: -2").starts_with("max_batch_size: is -2"));
}

#[test]
fn tensors_are_declared_with_the_rows_that_the_file_leaves_out() {
    let tensors = "input [{ name: \"x\" data_type: TYPE_STRING dims: [ -1, 4 ] }] output [{ name: \"y\" dims: [] }]";
    let dims = [None, Some(4)];
    let spec = |dims: &[_]| TensorSpec { name: "x".into(), dtype: Some(DataType::Bytes), dims: dims.to_vec() };
    let batched = plain(&format!("max_batch_size: 2 {tensors}")).declared.unwrap();
    assert_eq!(batched.inputs, [spec(&[None, None, Some(4)])]);
    assert_eq!((batched.outputs[0].dtype, &*batched.outputs[0].dims), (None, &[][..]), "nothing is said of it");
    for text in [tensors, &format!("max_batch_size: 0 {tensors}")] {
        assert_eq!(plain(text).declared.unwrap().inputs, [spec(&dims)]);
    }
    for (text, problem) in [
        ("input [{ dims: [ 1 ] }]", "input[0]: has no name"),
        ("input [{ name: \"x\" }, { name: \"x\" }]", "input[1]: `x` is there twice"),
        ("output [{ name: \"y\" dims: [ 0 ] }]", "output[0].dims: has 0, expected -1 or a number above 0"),
        ("output [{ name: \"y\" dims: [ -2 ] }]", "output[0].dims: has -2, expected -1 or a number above 0"),
        ("input [{ name: \"x\" dims: [ 1 ] reshape { shape: [ ] } }]", "input[0].reshape: would show callers"),
        ("output [{ name: \"y\" dims: [ 1 ] reshape { shape: [ ] } }]", "output[0].reshape: would show callers"),
    ] {
        assert!(only_problem(text).starts_with(problem), "{}", only_problem(text));
    }
}

#[test]
fn what_clients_read_is_kept_for_them() {
    let text = "max_batch_size: 1 input [{ name: \"x\" format: FORMAT_NHWC dims: [ 2, 2, 3 ] }] \
        parameters { key: \"b\" value { string_value: \"2\" } } parameters { key: \"a\" value { string_value: \"1\" } } \
        metric_tags { key: \"site\" value: \"east\" }";
    let Notes { formats, parameters, tags } = plain(text).notes;
    assert_eq!(formats, [("x".into(), ImageFormat::Nhwc)]);
    assert_eq!(parameters, [("a".into(), "1".into()), ("b".into(), "2".into())]);
    assert_eq!(tags, [("site".into(), "east".into())]);
    let problem = only_problem("max_batch_size: 1 input [{ name: \"x\" format: FORMAT_NCHW dims: [ 4 ] }]");
    assert_eq!(problem, "input[0].format: is that of an image, and `dims` has 1 dimensions, expected 3");
    let obeyed = only_warning("parameters { key: \"intra_op_thread_count\" value { string_value: \"4\" } }");
    assert!(obeyed.contains("`threads` in model.yaml"), "{obeyed}");
    for (name, key) in super::OBEYED {
        let warning = only_warning(&format!("parameters {{ key: \"{name}\" value {{ string_value: \"1\" }} }}"));
        assert!(warning.contains(&format!("`{key}` in model.yaml")) || key.is_empty(), "{warning}");
    }
}

#[test]
fn labels_lie_in_the_models_folder() {
    let text = |file: &str| format!("output [{{ name: \"y\" label_filename: \"{file}\" }}]");
    assert_eq!(plain(&text("a/labels.txt")).labels["y"].value, PathBuf::from("a/labels.txt"));
    for file in ["../labels.txt", "/etc/passwd", "a/../../b", "./x"] {
        assert!(only_problem(&text(file)).starts_with("output[0].label_filename: `"), "{file}");
    }
}

#[test]
fn dynamic_batching_is_a_delay_and_a_queue() {
    let text = "dynamic_batching { max_queue_delay_microseconds: 100 default_queue_policy { max_queue_size: 7 } }";
    let found = plain(text);
    assert_eq!(found.max_delay.unwrap().value.0, Some(Duration::from_micros(100)));
    assert_eq!(found.max_queue.unwrap().value, Number(7));
    let found = plain("dynamic_batching { priority_levels: 3 default_priority_level: 2 }");
    assert_eq!(found.priorities.unwrap().value, Number(3));
    assert_eq!(found.default_priority.unwrap().value, Amount::Exactly(2));
    let silent = plain("max_batch_size: 4 dynamic_batching { preferred_batch_size: [ 4 ] }");
    assert!(silent.max_delay.is_none() && silent.max_queue.is_none() && silent.preferred.is_none());
    assert!(silent.timeout.is_none() && silent.when_late.is_none() && silent.preserve_order.is_none());
    let found = plain("max_batch_size: 4 dynamic_batching { preferred_batch_size: [ 4, 2 ] preserve_ordering: true }");
    assert_eq!(found.preferred.unwrap().value, [Number(2), Number(4)]);
    assert!(found.preserve_order.unwrap().value);
    let queue = "default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 5 }";
    let found = plain(&format!("dynamic_batching {{ {queue} }}"));
    assert_eq!(found.timeout.unwrap().value, Some(Span(Duration::from_micros(5))));
    assert_eq!(found.when_late.unwrap().value, WhenLate::Delay);
    assert!(only_problem("dynamic_batching { preferred_batch_size: [ 2, -1 ] }").contains("expected 1 or above"));
    for field in [
        "priority_queue_policy { key: 1 value { max_queue_size: 1 } }",
        "default_queue_policy { allow_timeout_override: true }",
    ] {
        let warning = only_warning(&format!("dynamic_batching {{ {field} }}"));
        let name: String = field.chars().take_while(|c| *c != ':' && *c != ' ').collect();
        assert!(warning.starts_with(&format!("config.pbtxt dynamic_batching.{name}")), "{warning}");
        assert!(warning.contains("has no effect: "), "{warning}");
    }
    assert!(only_warning("max_batch_size: 0 dynamic_batching { }").contains("one by one"));
    let long = format!("dynamic_batching {{ max_queue_delay_microseconds: {} }}", u64::MAX);
    assert!(only_problem(&long).contains("above 365d"));
}

#[test]
fn instances_on_the_cpu_are_counted_together() {
    let count = |text: &str| said(text).instances.map(|word| word.value);
    assert_eq!(count("instance_group [{ count: 2 }, { count: 3 kind: KIND_CPU }, { }]"), Some(Amount::Exactly(6)));
    assert_eq!(count("instance_group [{ count: 2 kind: KIND_GPU }]"), None);
    assert_eq!(count("instance_group [{ count: 2 }, { count: 8 kind: KIND_MODEL }]"), Some(Amount::Exactly(2)));
    let gpu = only_warning("instance_group [{ count: 2 kind: KIND_GPU gpus: [ 0 ] }]");
    assert!(
        gpu.starts_with("config.pbtxt instance_group[0].kind: is KIND_GPU, and the count is not taken: `providers`"),
        "{gpu}"
    );
    for field in ["profile: \"a\"", "passive: true", "host_policy: \"a\"", "gpus: 1", "rate_limiter { priority: 1 }"] {
        let warning = only_warning(&format!("instance_group [{{ {field} }}]"));
        assert!(warning.contains("has no effect"), "{warning}");
    }
    assert!(only_problem("instance_group [{ count: -1 }]").starts_with("instance_group[0].count: is -1"));
    assert!(only_problem("instance_group [{ count: 1000 }, { count: 25 }]").contains("1025 instances"));
}

#[test]
fn versions_are_chosen() {
    let versions = |text: &str| plain(&format!("version_policy: {{ {text} }}")).versions.map(|word| word.value);
    assert_eq!(versions("all { }"), Some(Versions::All));
    assert_eq!(versions("latest { }"), Some(Versions::Latest(1)));
    assert_eq!(versions("latest { num_versions: 3 }"), Some(Versions::Latest(3)));
    assert_eq!(versions("specific: { versions: [ 1, 3 ] }"), Some(Versions::Listed(vec![1, 3])));
    assert_eq!(versions(""), None);
    assert!(only_problem("version_policy: { specific { } }").contains("is empty"));
    assert!(only_problem("version_policy: { specific { versions: [ 0 ] } }").contains("below 1"));
}

#[test]
fn another_file_has_a_plain_name() {
    assert_eq!(plain("default_model_filename: \"net.onnx\"").file.as_deref(), Some("net.onnx"));
    for name in ["../x.onnx", "a/b.onnx", ".hidden", "/x", "a b"] {
        assert!(only_problem(&format!("default_model_filename: \"{name}\"")).contains("plain name"), "{name}");
    }
}

#[test]
fn what_would_be_served_wrongly_is_refused() {
    for (text, path) in [
        ("model_transaction_policy { decoupled: true }", "model_transaction_policy.decoupled"),
        ("sequence_batching { }", "sequence_batching"),
        (
            "platform: \"ensemble\" ensemble_scheduling { step [{ model_name: \"a\" model_namespace: \"b\" }] }",
            "ensemble_scheduling.step[0].model_namespace",
        ),
        ("model_operations { op_library_filename: \"a.so\" }", "model_operations"),
    ] {
        assert!(only_problem(text).starts_with(&format!("{path}: ")), "{}", only_problem(text));
    }
    plain("model_transaction_policy { decoupled: false } model_operations { }");
}

#[test]
fn ragged_batches_are_those_of_model_yaml() {
    let text = |batches: &str| {
        format!("max_batch_size: 8 input [{{ name: \"x\" dims: [ -1 ] allow_ragged_batch: true }}] {batches}")
    };
    let made = |kind: &str, target: &str| {
        format!("{{ kind: {kind} target_name: \"{target}\" data_type: TYPE_INT32 source_input: \"x\" }}")
    };
    let all = format!(
        "batch_input [ {}, {}, {} ] batch_output [ {{ target_name: \"y\" source_input: \"x\" }} ]",
        made("BATCH_ELEMENT_COUNT", "n"),
        made("BATCH_ACCUMULATED_ELEMENT_COUNT", "e"),
        made("BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO", "b"),
    );
    let found = plain(&text(&all));
    let ragged = raw::Ragged {
        counts: Some("n".into()),
        starts: None,
        ends: Some("e".into()),
        bounds: Some("b".into()),
        outputs: vec!["y".into()],
    };
    assert_eq!(found.ragged["x"].value, ragged);
    // The model's own inputs must be of that type.
    let declared = found.declared.unwrap().inputs;
    let target = TensorSpec { name: "e".into(), dtype: Some(DataType::Int32), dims: Vec::new() };
    assert_eq!((declared.len(), &declared[2]), (4, &target));
    assert_eq!(plain(&text("")).ragged["x"].value, raw::Ragged::default());
    let shape = made("BATCH_ITEM_SHAPE", "n");
    let twice = format!("{}, {}", made("BATCH_ELEMENT_COUNT", "n"), made("BATCH_ELEMENT_COUNT", "m"));
    let other = made("BATCH_ELEMENT_COUNT", "n").replace("\"x\"", "\"z\"");
    let bytes = made("BATCH_ELEMENT_COUNT", "n").replace("INT32", "STRING");
    for (batches, problem) in [
        (format!("batch_input [{shape}]"), "batch_input[0].kind: is BATCH_ITEM_SHAPE, which is not made here"),
        (format!("batch_input [{twice}]"), "batch_input[1]: says the same"),
        (format!("batch_input [{other}]"), "batch_input[0].source_input: `z` is no input with `allow_ragged_batch"),
        (format!("batch_input [{bytes}]"), "batch_input[0].data_type: is BYTES, expected INT32 or INT64 or FP32"),
        ("batch_input [{ source_input: \"x\" }]".into(), "batch_input[0]: has 0 target_name and 1 source_input"),
        ("batch_output [{ source_input: \"z\" target_name: \"y\" }]".into(), "batch_output[0].source_input: `z`"),
    ] {
        assert!(only_problem(&text(&batches)).starts_with(problem), "{}", only_problem(&text(&batches)));
    }
    let alone = "max_batch_size: 0 input [{ name: \"x\" allow_ragged_batch: true }]";
    assert!(only_problem(alone).starts_with("input[0].allow_ragged_batch: is true, and `max_batch_size` is 0"));
}

#[test]
fn what_has_no_effect_is_said() {
    for (text, path) in [
        ("optimization { graph { level: 1 } }", "optimization"),
        ("cc_model_filenames { key: \"8.0\" value: \"a.onnx\" }", "cc_model_filenames"),
        ("model_repository_agents { agents [{ name: \"checksum\" }] }", "model_repository_agents"),
        ("runtime: \"other.so\"", "runtime"),
        ("model_metrics { metric_control [{ metric_identifier { family: \"a\" } }] }", "model_metrics"),
        ("input [{ name: \"x\" optional: true }]", "input[0].optional"),
        ("input [{ name: \"x\" is_shape_tensor: true }]", "input[0].is_shape_tensor"),
        ("input [{ name: \"x\" is_non_linear_format_io: true }]", "input[0].is_non_linear_format_io"),
        ("output [{ name: \"y\" is_shape_tensor: true }]", "output[0].is_shape_tensor"),
        ("output [{ name: \"y\" is_non_linear_format_io: true }]", "output[0].is_non_linear_format_io"),
    ] {
        assert!(
            only_warning(text).starts_with(&format!("config.pbtxt {path}: has no effect")),
            "{}",
            only_warning(text)
        );
    }
}

#[test]
fn an_ensemble_of_tritons_keeps_no_answers() {
    let step =
        "step { model_name: \"a\" input_map { key: \"x\" value: \"x\" } output_map { key: \"y\" value: \"y\" } }";
    let text = format!("platform: \"ensemble\" ensemble_scheduling {{ {step} }} response_cache {{ enable: true }}");
    let warning = only_warning(&text);
    assert!(
        warning.starts_with("config.pbtxt response_cache: has no effect: an ensemble keeps no answers"),
        "{warning}"
    );
}

#[test]
fn samples_have_whole_shapes() {
    let sample = |fields: &str, data: &str| {
        format!(
            "model_warmup [{{ {fields} inputs {{ key: \"x\" value {{ data_type: TYPE_INT64 dims: [ 4 ] {data} }} }} }}]"
        )
    };
    let found =
        plain(&format!("max_batch_size: 8 {}", sample("name: \"a\" batch_size: 2 count: 3", "zero_data: true")));
    let input = |dims: &[usize], fill| SampleInput {
        name: "x".into(),
        dtype: DataType::Int64,
        dims: dims.to_vec(),
        fill,
        given: None,
    };
    assert_eq!(
        found.samples,
        [Sample { name: "a".into(), inputs: vec![input(&[2, 4], Fill::Zeros)], outputs: Vec::new(), runs: 3 }]
    );
    let found = plain(&sample("", "random_data: true"));
    assert_eq!(
        found.samples,
        [Sample { name: "0".into(), inputs: vec![input(&[4], Fill::Random)], outputs: Vec::new(), runs: 1 }]
    );
    let file = sample("", "input_data_file: \"raw\"");
    assert!(only_warning(&file).contains("inputs[`x`].input_data_file: `raw` is not read"), "{}", only_warning(&file));
    assert_eq!(said(&file).samples[0].inputs[0].fill, Fill::Random);
    for (text, problem) in [
        (sample("", ""), "model_warmup[0].inputs[`x`]: has no data"),
        (sample("batch_size: 2", "zero_data: true"), "model_warmup[0].batch_size: is 2, expected 1"),
        (
            format!("max_batch_size: 2 {}", sample("batch_size: 3", "zero_data: true")),
            "model_warmup[0].batch_size: is 3",
        ),
        (sample("count: 1001", "zero_data: true"), "model_warmup[0].count: is 1001"),
        (sample("", "zero_data: true").replace("[ 4 ]", "[ -1 ]"), "model_warmup[0].inputs[`x`].dims: has a number"),
        (sample("", "zero_data: true").replace("TYPE_INT64", "TYPE_INVALID"), "model_warmup[0].inputs[`x`].data_type"),
    ] {
        assert!(only_problem(&text).starts_with(problem), "{}", only_problem(&text));
    }
}

#[test]
fn warnings_have_an_end() {
    let groups = "{ passive: true },".repeat(500);
    let warnings = said(&format!("instance_group [{} {{ }}]", groups)).warnings;
    assert_eq!(
        (warnings.len(), &*warnings[WARNINGS]),
        (WARNINGS + 1, "config.pbtxt has more that does not apply here")
    );
}

#[test]
fn an_ensemble_of_tritons_is_the_same_graph() {
    let text = "platform: \"ensemble\" max_batch_size: 8\n\
        input [{ name: \"text\" data_type: TYPE_STRING dims: [] }]\n\
        output [{ name: \"logits\" data_type: TYPE_FP32 dims: [10] }]\n\
        ensemble_scheduling { step [\n\
        { model_name: \"a\" model_version: -1 input_map { key: \"x\" value: \"text\" } output_map { key: \"y\" value: \"h\" } },\n\
        { model_name: \"b\" model_version: 2 input_map { key: \"x\" value: \"h\" } output_map { key: \"y\" value: \"logits\" } }\n\
        ] }";
    let said = said(text);
    let ensemble = said.ensemble.unwrap().value;
    let steps: Vec<_> = ensemble.steps.iter().map(|step| (&*step.model, step.version.is_some())).collect();
    assert_eq!(steps, [("a", false), ("b", true)]);
    assert_eq!(ensemble.steps[1].inputs["x"], "h");
    let logits = ensemble.outputs.unwrap()["logits"].clone();
    assert_eq!((logits.datatype.as_deref(), logits.shape), (Some("FP32"), Some(vec![-1, 10])));
    assert_eq!(ensemble.inputs.unwrap().len(), 1);
}

/// Configurations that tests, documents and people have written, which mutations start from: all fields that are read.
const SEEDS: [&str; 4] = [
    include_str!("../../../tests/models/config.pbtxt"),
    "name: \"m\" platform: \"ensemble\" max_batch_size: 8 input [{ name: \"x\" data_type: TYPE_FP32 dims: [ -1, 4 ] }] \
     output [{ name: \"y\" data_type: TYPE_FP32 dims: [ 4 ] }] ensemble_scheduling { step [{ model_name: \"a\" \
     model_version: -1 input_map { key: \"x\" value: \"x\" } output_map { key: \"y\" value: \"y\" } }] }",
    "instance_group [{ count: 2 kind: KIND_GPU gpus: [ 0 ] }, { passive: true }] version_policy: { specific: { versions: [ 1 ] } } \
     dynamic_batching { preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 100 priority_levels: 2 \
     default_queue_policy { timeout_action: DELAY max_queue_size: 7 } }",
    "model_warmup [{ name: \"a\" batch_size: 1 count: 3 inputs { key: \"x\" value { data_type: TYPE_INT64 dims: [ 4 ] \
     zero_data: true } } }] parameters { key: \"execution_mode\" value { string_value: \"1\" } } optimization { graph \
     { level: -1 } execution_accelerators { gpu_execution_accelerator [{ name: \"tensorrt\" }] } }",
];

proptest::proptest! {
    /// Each time others (`PROPTEST_CASES` makes it as many as one has time for).
    #[test]
    fn configurations_that_are_damaged_anywhere_are_read_or_refused(
        seed: proptest::sample::Index,
        edits in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), 0_usize..6, "[ -~]{0,6}|-?[0-9]{1,20}"), 1..5),
    ) {
        let mut text: Vec<char> = seed.get(&SEEDS).chars().collect();
        for (at, cut, instead) in edits {
            let at = at.index(text.len() + 1);
            let end = (at + cut).min(text.len());
            text.splice(at..end, instead.chars());
        }
        let text: String = text.into_iter().collect();
        if let Ok(config) = parse_config_text(&text) {
            let mut problems = Problems::new("");
            let said = read(&config, "m", "config.pbtxt", &mut problems);
            proptest::prop_assert!(said.warnings.len() <= WARNINGS + 1);
        }
    }
}

#[test]
fn every_seed_is_a_configuration() {
    for seed in SEEDS {
        assert!(parse_config_text(seed).is_ok(), "{seed}");
    }
}
