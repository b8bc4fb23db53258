//! `model.yaml` and `config.pbtxt`, alone and together.

use super::*;
use crate::{
    config::{
        raw::{Amount, Rows, Switch, Versions},
        units::{Number, Size},
    },
    model::{InputSettings, Pad, RaggedSettings},
    tensor::Marks,
};
use std::{path::PathBuf, time::Duration};

/// A model's folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn load(files: &[(&str, &str)], config: Option<&str>) -> Result<ModelConfig, String> {
    let folder = folder(files);
    load_model("m", folder.path(), config, &raw::ModelDefaults::default()).map_err(|problems| problems.in_one_line())
}

fn yaml(text: &str, defaults: &raw::ModelDefaults) -> Result<ModelConfig, Problems> {
    load_model("m", folder(&[(OURS, text)]).path(), None, defaults)
}

#[test]
fn what_depends_on_another_key_goes_by_the_models_own_unless_it_was_written() {
    let default = |defaults: &str, text: &str| {
        let path = folder(&[("a.yaml", &format!("version: 1\nmodels: {{ defaults: {{ batching: {defaults} }} }}\n"))]);
        let config = crate::config::Config::load(Some(&path.path().join("a.yaml")), Default::default()).unwrap();
        yaml(text, &config.models.written).unwrap().defaults.batching.default_priority
    };
    // The lowest that the defaults have, in so many words: it stays that one where there are more.
    assert_eq!(default("{ priorities: 3, default_priority: 3 }", "batching: { priorities: 5 }"), 3);
    assert_eq!(default("{ priorities: 3 }", "batching: { priorities: 5 }"), 5);
    assert_eq!(default("{ priorities: 3, default_priority: 2 }", ""), 2);
}

#[test]
fn a_model_wins_over_the_defaults_key_by_key() {
    let mut defaults = raw::ModelDefaults { instances: Amount::Exactly(3), ..raw::ModelDefaults::default() };
    defaults.batching.max_queue = Number(7);
    let text = "versions: { latest: 2 }\nbatching: { max_rows: 8 }\nclass_labels: { logits: labels.txt }\n";
    let model = yaml(text, &defaults).unwrap();
    assert_eq!(model.defaults.versions, Versions::Latest(2));
    assert_eq!(model.defaults.instances, Amount::Exactly(3));
    assert_eq!((model.defaults.batching.max_rows, model.defaults.batching.max_queue), (8, 7));
    assert!(model.class_labels["logits"].ends_with("labels.txt"));
    let unchanged = yaml("", &defaults).unwrap();
    assert_eq!(unchanged.defaults, validate::model_defaults(&defaults));
}

#[test]
fn answers_are_kept_as_either_file_says() {
    let theirs = |enable: bool| format!("response_cache {{ enable: {enable} }}");
    let keep = |memory: usize| raw::Cache::On(raw::Keep { memory: Size(memory), ..raw::Keep::default() });
    let read = |ours: &str, theirs: &str, default: raw::Cache| {
        let folder = folder(&[(OURS, ours), (THEIRS, theirs)]);
        let defaults = raw::ModelDefaults { cache: default, ..raw::ModelDefaults::default() };
        load_model("m", folder.path(), None, &defaults).map(|model| model.defaults.cache)
    };
    let off = raw::Cache::Off;
    for (ours, theirs, default, expected) in [
        ("", theirs(true), off, keep(64 << 20)),
        ("", theirs(true), keep(7), keep(7)),
        ("", theirs(false), keep(7), off),
        ("cache: { memory: 5B }", theirs(true), off, keep(5)),
        ("cache: off", theirs(false), keep(7), off),
        ("cache: off", String::new(), keep(7), off),
        ("cache: {}", String::new(), keep(7), keep(7)),
        ("cache: { age: 10m }", String::new(), keep(7), keep(7)),
    ] {
        assert_eq!(read(ours, &theirs, default).unwrap(), expected, "{ours} {theirs} {default:?}");
    }
    for (ours, theirs, text) in [
        ("cache: off", theirs(true), "cache: is off and contradicts `response_cache { enable: true }` in config.pbtxt"),
        ("cache: {}", theirs(false), "cache: is on and contradicts `response_cache { enable: false }` in config.pbtxt"),
    ] {
        let problem = read(ours, &theirs, off).unwrap_err().to_string();
        assert!(problem.contains(text), "{problem}");
    }
    // A configuration that a call brings stands for all that it could have said.
    let brought = |json: &str| load(&[(OURS, "cache: {}")], Some(json)).unwrap().defaults.cache;
    assert_eq!((brought("{}"), brought(r#"{"response_cache":{"enable":true}}"#)), (off, keep(64 << 20)));
}

#[test]
fn an_ensemble_keeps_no_answers() {
    let graph = "ensemble: { steps: [{ model: a, inputs: { x: x }, outputs: { y: y } }] }\n";
    let defaults = raw::ModelDefaults { cache: raw::Cache::On(raw::Keep::default()), ..raw::ModelDefaults::default() };
    // It is not what the defaults are about.
    yaml(graph, &defaults).unwrap();
    yaml(&format!("cache: off\n{graph}"), &defaults).unwrap();
    let problem = yaml(&format!("cache: {{}}\n{graph}"), &defaults).unwrap_err().to_string();
    assert!(problem.contains("cache: is not for an ensemble"), "{problem}");
}

#[test]
fn problems_of_a_model_are_all_named() {
    let text = "versions: []\nbatching: { max_row: 1, pad: some }\ncache: { age: 0s }\nstate: {}\n\
                class_labels: { a: ../x, b: /etc/passwd }\n";
    let problems = yaml(text, &raw::ModelDefaults::default()).unwrap_err();
    assert_eq!(problems.list.len(), 7, "{problems}");
    assert!(problems.to_string().contains("model.yaml: `state` is not available in this version"), "{problems}");
}

#[test]
fn what_is_said_of_inputs_and_padding_is_read() {
    let text = "inputs: { ids: { pad: 0, mask: attention_mask }, kind: { pad: -inf, optional: true }, other: {} }\n\
                batching: { pad: { lengths: [16, 64] }, rows: fixed }\n";
    let model = yaml(text, &raw::ModelDefaults::default()).unwrap();
    let inputs: Vec<_> = model.inputs.iter().map(|(name, input)| (&**name, input)).collect();
    let [("ids", ids), ("kind", kind), ("other", other)] = inputs[..] else { panic!("{inputs:?}") };
    assert_eq!((ids.pad.clone(), ids.mask.as_deref(), ids.optional), (Some(0.into()), Some("attention_mask"), false));
    assert_eq!((kind.pad.clone(), kind.mask.as_deref(), kind.optional), (Some("-inf".into()), None, true));
    assert_eq!(*other, InputSettings::default());
    assert_eq!((&model.defaults.pad, model.defaults.rows), (&Pad::Lengths(vec![16, 64]), Rows::Fixed));
    // What the defaults say holds for a model that is silent.
    let mut defaults = raw::ModelDefaults::default();
    defaults.batching.pad = raw::Pad::Ratio(1.25);
    assert_eq!(yaml("threads: 1\n", &defaults).unwrap().defaults.pad, Pad::Ratio(125));
    assert_eq!(yaml("batching: { pad: off }\n", &defaults).unwrap().defaults.pad, Pad::Off);
}

#[test]
fn ragged_inputs_are_read_from_either_file() {
    let ours = "inputs: { x: { ragged: { ends: e, bounds: b, outputs: [y] } }, z: { ragged: {} } }\n\
                batching: { max_elements: 4096 }\n";
    let model = yaml(ours, &raw::ModelDefaults::default()).unwrap();
    let ragged = |at: usize| model.inputs[at].1.ragged.clone().unwrap();
    assert_eq!(ragged(0).made, [(Marks::Ends, "e".into()), (Marks::Bounds, "b".into())]);
    assert_eq!((&ragged(0).outputs[..], ragged(1)), (&["y".into()][..], RaggedSettings::default()));
    assert_eq!(model.defaults.batching.max_elements, Amount::Exactly(4096));
    let defaults = raw::ModelDefaults::default();
    for (text, says) in [
        ("batching: { max_elements: 0 }", "batching.max_elements"),
        ("inputs: { x: { ragged: { begins: e } } }", "inputs.x.ragged.begins: unknown key"),
        (
            "inputs: { x: { ragged: { ends: e, counts: e } } }",
            "inputs.x.ragged.ends: `e` is the input for `counts` too",
        ),
    ] {
        let error = yaml(text, &defaults).unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
    let theirs = "max_batch_size: 8\ninput [{ name: \"x\" dims: [ -1 ] allow_ragged_batch: true }]\n\
        batch_input [{ kind: BATCH_ELEMENT_COUNT target_name: \"n\" data_type: TYPE_INT32 source_input: \"x\" }]\n";
    let counts = "inputs: { x: { ragged: { counts: n } }, w: { ragged: {} } }\n";
    let both = load(&[(THEIRS, theirs), (OURS, counts)], None).unwrap();
    assert_eq!(both.inputs[1].1.ragged.clone().unwrap().made, [(Marks::Counts, "n".into())]);
    assert_eq!(load(&[(THEIRS, theirs)], None).unwrap().inputs, both.inputs[1..]);
    let error = load(&[(THEIRS, theirs), (OURS, ours)], None).unwrap_err().to_string();
    let says =
        "inputs.x.ragged: is about other inputs or outputs and contradicts `allow_ragged_batch: true` in config.pbtxt";
    assert!(error.contains(says), "{error}");
}

#[test]
fn padding_that_bounds_nothing_is_refused() {
    for (text, says) in [
        ("batching: { pad: { ratio: 0.5 } }", "batching.pad: the ratio is 0.5, expected 1 to 1000"),
        ("batching: { pad: { ratio: 2000 } }", "batching.pad: the ratio is 2000"),
        ("batching: { pad: { lengths: [] } }", "batching.pad: has 0 lengths, expected 1 to 256"),
        ("batching: { pad: { lengths: [16, 8] } }", "batching.pad: the lengths do not ascend"),
        ("batching: { pad: { lengths: [0] } }", "batching.pad"),
        ("batching: { pad: { ratio: 2, lengths: [8] } }", "batching.pad"),
        ("batching: { pad: 2 }", "expected auto, off, { ratio: 2 } or { lengths: [16, 32] }"),
        ("batching: { rows: 8 }", "expected auto or fixed"),
        ("batching: { rows: fixed, enabled: false }", "batching.rows: `fixed` fills rows up"),
        ("inputs: { ids: { pad: [1] } }", "inputs.ids.pad: is several values"),
        ("inputs: { ids: { padd: 1 } }", "inputs.ids.padd: unknown key"),
    ] {
        let error = yaml(text, &raw::ModelDefaults::default()).unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn a_folder_that_says_nothing_has_the_defaults() {
    assert_eq!(load(&[], None).unwrap().defaults, crate::config::ModelDefaults::default());
}

#[test]
fn ours_decides_what_theirs_is_silent_about() {
    let theirs = "max_batch_size: 8\noutput [{ name: \"y\" dims: [ 3 ] label_filename: \"a.txt\" }]\n";
    let ours = "threads: 2\ninstances: 3\nbatching: { max_queue: 9 }\nclass_labels: { z: b.txt }\n";
    let model = load(&[(THEIRS, theirs), (OURS, ours)], None).unwrap();
    assert_eq!((model.defaults.threads, model.defaults.instances), (Amount::Exactly(2), Amount::Exactly(3)));
    let batching = model.defaults.batching;
    assert_eq!((batching.enabled, batching.max_rows, batching.max_queue), (Switch::On, 8, 9));
    let labels: Vec<_> = model.class_labels.iter().map(|(name, path)| (&**name, path.file_name().unwrap())).collect();
    assert_eq!(labels, [("y", "a.txt".as_ref()), ("z", "b.txt".as_ref())]);
}

#[test]
fn what_both_say_must_be_the_same() {
    let theirs = "max_batch_size: 8\ninstance_group [{ count: 2 kind: KIND_CPU }]\nversion_policy: { all { } }\n\
        dynamic_batching { max_queue_delay_microseconds: 100 priority_levels: 2 default_priority_level: 1\n\
        preferred_batch_size: [ 4, 2 ] preserve_ordering: true default_queue_policy { max_queue_size: 7\n\
        timeout_action: DELAY default_timeout_microseconds: 5000 } }\n\
        output [{ name: \"y\" label_filename: \"a.txt\" }]\n";
    let same = "instances: 2\nversions: all\nclass_labels: { y: a.txt }\n\
        batching: { enabled: true, max_rows: 8, max_delay: 0.1ms, max_queue: 7, priorities: 2, default_priority: 1,\n\
        preferred: [2, 4], timeout: 5ms, when_late: delay, preserve_order: true }\n";
    let model = load(&[(THEIRS, theirs), (OURS, same)], None).unwrap();
    assert_eq!(model.defaults.batching.max_delay, Some(Duration::from_micros(100)));
    for (ours, complaint) in [
        ("batching: { max_rows: 4 }", "batching.max_rows: is 4 and contradicts `max_batch_size: 8` in config.pbtxt"),
        ("batching: { enabled: false }", "batching.enabled: is false and contradicts `max_batch_size: 8`"),
        (
            "batching: { max_delay: 1ms }",
            "batching.max_delay: is 1ms and contradicts `max_queue_delay_microseconds: 100`",
        ),
        ("batching: { max_queue: 1 }", "batching.max_queue: is 1 and contradicts `max_queue_size: 7`"),
        ("batching: { priorities: 3 }", "batching.priorities: is 3 and contradicts `priority_levels: 2`"),
        (
            "batching: { default_priority: 2 }",
            "batching.default_priority: is 2 and contradicts `default_priority_level: 1`",
        ),
        ("batching: { preferred: [2] }", "batching.preferred: is [2] and contradicts `preferred_batch_size: [2, 4]`"),
        ("batching: { timeout: 1s }", "batching.timeout: is 1s and contradicts `default_timeout_microseconds: 5000`"),
        ("batching: { when_late: reject }", "batching.when_late: is reject and contradicts `timeout_action: DELAY`"),
        (
            "batching: { preserve_order: false }",
            "batching.preserve_order: is false and contradicts `preserve_ordering: true`",
        ),
        ("instances: auto", "instances: is auto and contradicts `instance_group[0].count: 2`"),
        ("versions: [1, 3]", "versions: is [1,3] and contradicts `version_policy: { all }`"),
        ("class_labels: { y: b.txt }", "class_labels.y: is b.txt and contradicts `label_filename: a.txt`"),
    ] {
        let error = load(&[(THEIRS, theirs), (OURS, ours)], None).unwrap_err();
        assert!(error.starts_with(&format!("model.yaml {complaint}")), "{error}");
    }
}

#[test]
fn sizes_that_no_batch_can_have_are_not_preferred_and_lanes_keep_no_order() {
    let many = format!("batching: {{ preferred: {:?} }}", (1..18).collect::<Vec<_>>());
    for (text, complaint) in [
        ("batching: { max_rows: 8, preferred: [8, 16] }", "batching.preferred[1]: 16 is above 8 (`max_rows`)"),
        ("batching: { preferred: [0] }", "batching.preferred[0]: 0"),
        (&*many, "batching.preferred: has 17 sizes, expected 16 at most"),
        ("batching: { timeout: 0s }", "batching.timeout: 0s is zero"),
        ("batching: { when_late: wait }", "batching.when_late: "),
        (
            "execution: turn\nbatching: { preserve_order: true }",
            "batching.preserve_order: is not for `execution: turn`",
        ),
    ] {
        let error = yaml(text, &raw::ModelDefaults::default()).unwrap_err().to_string();
        assert!(error.contains(complaint), "{error}");
    }
    let batching = yaml("batching: { preferred: [16, 8] }", &raw::ModelDefaults::default()).unwrap().defaults.batching;
    assert_eq!((batching.preferred, batching.timeout), (vec![8, 16], None));
}

#[test]
fn what_a_call_brings_stands_for_both() {
    let files =
        [(THEIRS, "this is no configuration"), (OURS, "threads: 2\nbatching: { max_rows: 4 }\nversions: all\n")];
    let model = load(&files, Some(r#"{"max_batch_size":16}"#)).unwrap();
    assert_eq!((model.defaults.batching.max_rows, model.defaults.threads), (16, Amount::Exactly(2)));
    assert_eq!(model.defaults.versions, Versions::default(), "what it is silent about is as by default");
    let error = load(&files, Some(r#"{"max_batch_size":-1,"colour":"red"}"#)).unwrap_err();
    assert!(error.starts_with("config: ") && error.contains("colour"), "{error}");
    let error = load(&files, Some(r#"{"max_batch_size":-1}"#)).unwrap_err();
    assert_eq!(error, "config max_batch_size: is -1, expected 0 or above");
}

#[test]
fn both_files_problems_are_named_and_no_path_of_this_machine() {
    let error = load(&[(THEIRS, "name: \"n\""), (OURS, "thread: 2\n")], None).unwrap_err();
    assert_eq!(
        error,
        "config.pbtxt name: is `n`, and the model is `m`; model.yaml thread: unknown key; the nearest valid one is `threads`"
    );
    let error = load(&[(THEIRS, "\n\ncolour: 1\n")], None).unwrap_err();
    assert!(error.starts_with("config.pbtxt: line 3: ") && error.contains("colour"), "{error}");
}

#[test]
fn many_problems_are_not_all_told_in_one_line() {
    let error = load(&[(THEIRS, &"input { }\n".repeat(20))], None).unwrap_err();
    assert!(error.starts_with("config.pbtxt input[0]: has no name; ") && error.ends_with("; and 12 more"), "{error}");
}

#[test]
fn only_small_files_of_text_are_read() {
    for file in [THEIRS, OURS] {
        let large = "#".repeat(LARGEST + 1);
        assert_eq!(load(&[(file, &large)], None).unwrap_err(), format!("{file}: is larger than 1 MiB"));
        assert!(load(&[(file, &large[1..])], None).is_ok());
        let folder = tempfile::tempdir().unwrap();
        let read = |folder: &Path| {
            let read = load_model("m", folder, None, &raw::ModelDefaults::default());
            read.map_err(|problems| problems.in_one_line()).unwrap_err()
        };
        fs::write(folder.path().join(file), [0xFF]).unwrap();
        assert_eq!(read(folder.path()), format!("{file}: is not UTF-8"));
        fs::remove_file(folder.path().join(file)).unwrap();
        // Opening it would wait for a writer.
        let made = std::process::Command::new("mkfifo").arg(folder.path().join(file)).status().unwrap();
        assert!(made.success());
        assert_eq!(read(folder.path()), format!("{file}: is not a regular file"));
    }
    let large = format!("{{\"name\":\"{}\"}}", "m".repeat(LARGEST));
    assert_eq!(load(&[], Some(&large)).unwrap_err(), "config: is larger than 1 MiB");
}

#[test]
fn what_is_shipped_as_an_example_is_read() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/models/config.pbtxt");
    let text = fs::read_to_string(path).unwrap();
    let model = load(&[(THEIRS, &text)], None).unwrap();
    assert_eq!(model.defaults.batching.max_rows, 16);
    assert_eq!(model.samples.len(), 1);
    assert_eq!(model.warnings.len(), 2, "{:?}", model.warnings);
}

#[test]
fn what_is_wrong_with_a_setting_is_said_of_the_file_that_has_it() {
    let theirs = "max_batch_size: 8\ndynamic_batching { preferred_batch_size: [ 16, 4 ] }";
    let error = load(&[(THEIRS, theirs)], None).unwrap_err();
    let path = "config.pbtxt dynamic_batching.preferred_batch_size";
    assert_eq!(error, format!("{path}: 16 is above 8 (`max_batch_size`): no batch has so many rows"));
    let error = load(&[(OURS, "batching: { max_rows: 8, preferred: [4, 16] }\n")], None).unwrap_err();
    assert_eq!(error, "model.yaml batching.preferred[1]: 16 is above 8 (`max_rows`): no batch has so many rows");
}
