//! `providers` and `session`: what of ONNX Runtime's settings may be set, and by whom.

use super::THREADS;
use crate::{
    backend::ProviderKind,
    config::{
        Problems,
        raw::{self, Mode, Provider},
    },
};

/// Entries of ONNX Runtime's session configuration that change how a model runs, and neither what this server relies on nor
/// which files are read or written: `onnxruntime_session_options_config_keys.h` has what each means.
const ENTRIES: [&str; 18] = [
    "mlas.enable_gemm_fastmath_arm64_bfloat16",
    "optimization.disable_specified_optimizers",
    "optimization.enable_cast_chain_elimination",
    "optimization.enable_gelu_approximation",
    "session.disable_aot_function_inlining",
    "session.disable_cpu_ep_fallback",
    "session.disable_double_qdq_remover",
    "session.disable_prepacking",
    "session.disable_quant_qdq",
    "session.dynamic_block_base",
    "session.enable_quant_qdq_cleanup",
    "session.inter_op.allow_spinning",
    "session.intra_op.allow_spinning",
    "session.intra_op_thread_affinities",
    "session.qdq_matmulnbits_accuracy_level",
    "session.set_denormal_as_zero",
    "session.strict_shape_type_inference",
    "session.use_device_allocator_for_initializers",
];

/// What names of providers' options have in them that name files: libraries to load and folders to write to.
const OF_FILES: [&str; 7] = ["path", "file", "dir", "folder", "library", "dump", "config"];

/// Longest value of an option.
const LONGEST: usize = 1024;

/// Checks `providers`. `prefix` ends with a dot, or is empty for a model's own file: that may come with the model, so that
/// options which name files are not for it to set.
pub(super) fn providers(prefix: &str, providers: &[Provider], problems: &mut Problems) {
    let path = format!("{prefix}providers");
    // What was refused in it has left the list.
    if providers.is_empty() {
        problems.missing(path.clone(), "the list is empty, expected [cpu]");
    }
    for (at, provider) in providers.iter().enumerate() {
        let (kind, path) = (provider.kind, format!("{path}[{at}]"));
        if providers[..at].iter().any(|before| before.kind == kind) {
            problems.push(path.clone(), format!("`{kind}` is in the list already"));
        }
        if at > 0 && providers[at - 1].kind == ProviderKind::Cpu {
            problems.push(
                path.clone(),
                format!("`{kind}` is behind cpu, which runs everything, so it would never be used"),
            );
        }
        if kind == ProviderKind::Cpu && !provider.options.is_empty() {
            problems.push(path.clone(), "cpu has no options; `threads`, `arena` and `session` are the model's");
        }
        for (key, value) in &provider.options {
            let path = format!("{path}.{kind}.{key}");
            let low = key.to_ascii_lowercase();
            if prefix.is_empty() && OF_FILES.iter().any(|word| low.contains(word)) {
                let text = "names a file, and a model's own file must not; write it in models.defaults";
                problems.push(path, text);
            } else {
                check_value(path, &value.0, problems);
            }
        }
    }
}

/// Checks `session`, which is at `path`.
pub(super) fn options(path: &str, session: &raw::Session, problems: &mut Problems) {
    let threads = session.inter_op_threads.0;
    if threads > THREADS {
        problems.push(format!("{path}.inter_op_threads"), format!("{threads} is above {THREADS}"));
    }
    if threads > 1 && session.execution_mode == Mode::Sequential {
        let text = "has no effect with execution_mode sequential; write parallel";
        problems.push(format!("{path}.inter_op_threads"), text);
    }
    for (key, value) in &session.entries {
        let path = format!("{path}.entries.{key}");
        if ENTRIES.contains(&key.as_str()) {
            check_value(path, &value.0, problems);
        } else {
            problems.push(path, format!("is not among the entries that may be set: {}", ENTRIES.join(", ")));
        }
    }
}

fn check_value(path: String, value: &str, problems: &mut Problems) {
    if value.len() > LONGEST || value.contains('\0') {
        problems.push(path, format!("is longer than {LONGEST} bytes or has a NUL in it"));
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        backend::ProviderKind,
        config::{Config, Limit, Memory, ModelDefaults, load_model, raw},
    };
    use std::time::Duration;

    fn read(models: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.yaml");
        std::fs::write(&path, format!("version: 1\nmodels: {models}\n")).unwrap();
        Config::load(Some(&path), Default::default()).map_err(|problems| problems.in_one_line())
    }

    fn defaults(text: &str) -> Result<ModelDefaults, String> {
        read(&format!("{{ defaults: {text} }}")).map(|config| config.models.defaults)
    }

    fn of_a_model(text: &str) -> Result<ModelDefaults, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("model.yaml"), text).unwrap();
        let read = load_model("m", folder.path(), None, &raw::ModelDefaults::default());
        read.map(|model| model.defaults).map_err(|problems| problems.in_one_line())
    }

    #[test]
    fn providers_are_words_or_have_options_of_any_form() {
        let text =
            "{ providers: [{ cuda: { device_id: 0, use_tf32: true, arena_extend_strategy: kSameAsRequested } }, cpu] }";
        let providers = defaults(text).unwrap().providers;
        let options: Vec<_> = providers[0].options.iter().map(|(key, value)| (&**key, &*value.0)).collect();
        assert_eq!(options, [("arena_extend_strategy", "kSameAsRequested"), ("device_id", "0"), ("use_tf32", "1")]);
        assert_eq!(providers.iter().map(|one| one.kind).collect::<Vec<_>>(), [ProviderKind::Cuda, ProviderKind::Cpu]);
    }

    #[test]
    fn providers_that_make_no_sense_are_named() {
        for (text, wrong) in [
            ("[]", "providers: the list is empty, expected [cpu]"),
            ("[gpu]", "`gpu` is not valid, expected cpu, cuda, "),
            ("[{ gpu: {} }]", "`gpu` is not valid, expected cpu, cuda, "),
            ("[{ cuda: {}, cpu: {} }]", "two providers"),
            ("[cuda, cuda]", "providers[1]: `cuda` is in the list already"),
            ("[cpu, cuda]", "providers[1]: `cuda` is behind cpu"),
            ("[{ cpu: { a: 1 } }]", "providers[0]: cpu has no options"),
        ] {
            let problem = defaults(&format!("{{ providers: {text} }}")).unwrap_err();
            assert!(problem.contains(wrong), "{text}: {problem}");
        }
    }

    #[test]
    fn a_model_sets_no_options_that_name_files() {
        let text = "providers: [{ qnn: { backend_path: evil.so } }, cpu]";
        assert!(of_a_model(text).unwrap_err().contains("qnn.backend_path: names a file"));
        assert!(defaults(&format!("{{ {text} }}")).is_ok());
        assert_eq!(of_a_model("providers: [{ cuda: { device_id: 1 } }]").unwrap().providers.len(), 1);
    }

    #[test]
    fn only_entries_that_are_harmless_are_passed_on() {
        let session = defaults("{ session: { entries: { session.set_denormal_as_zero: 1 } } }").unwrap().session;
        assert_eq!(session.entries["session.set_denormal_as_zero"].0, "1");
        for entry in
            ["session.optimized_model_filepath: x", "ep.context_file_path: x", "session.intra_op_num_threads: 64"]
        {
            let problem = of_a_model(&format!("session: {{ entries: {{ {entry} }} }}")).unwrap_err();
            assert!(problem.contains("is not among the entries that may be set"), "{problem}");
        }
        let problem = defaults("{ session: { inter_op_threads: 2 } }").unwrap_err();
        assert!(problem.contains("has no effect with execution_mode sequential"), "{problem}");
    }

    #[test]
    fn limits_are_words_or_have_units() {
        assert_eq!(defaults("{ run_limit: 30s }").unwrap().run_limit, Limit::After(Duration::from_secs(30)));
        assert_eq!(of_a_model("run_limit: never").unwrap().run_limit, Limit::Never);
        assert_eq!(read("{ memory: 4GiB }").unwrap().models.memory, Memory::Exactly(4 << 30));
        for (text, expected) in [
            ("{ defaults: { run_limit: 0s } }", "expected auto, never or a duration"),
            ("{ defaults: { run_limit: 30 } }", "expected auto, never or a duration"),
            ("{ memory: 0B }", "expected auto or a size"),
            ("{ memory: 100 }", "expected auto or a size"),
        ] {
            let problem = read(text).unwrap_err();
            assert!(problem.contains(expected), "{text}: {problem}");
        }
    }
}
