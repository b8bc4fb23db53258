//! Makes sessions: what settings become for ONNX Runtime, and which of the providers asked for it really uses.
//!
//! Providers are tried in the order in which they stand. One that cannot be used is passed over and the log says why, as
//! long as a later one can: only when none is left is it an error, which names those that the library has.

use super::{
    Runtime,
    files::{self, Files},
    optimized::Graph,
    values,
};
use crate::backend::{Arena, Optimization, Provider, ProviderKind, SessionSettings};
use ort::{
    ep,
    session::{
        Session,
        builder::{AutoDevicePolicy, GraphOptimizationLevel, SessionBuilder},
    },
};
use std::{path::Path, sync::Arc};

/// A session, and the providers that took the model, best first.
pub(super) struct Built {
    pub(super) session: Session,
    pub(super) providers: Vec<ProviderKind>,
    /// Why others did not, a sentence each.
    pub(super) passed_over: Vec<String>,
}

/// Makes a session of the model at `path`, which has these `files` and whose graph is treated as `graph` says.
pub(super) fn build(
    runtime: &Runtime,
    path: &Path,
    files: &Files,
    settings: &SessionSettings,
    graph: Graph<'_>,
) -> Result<Built, String> {
    let mut passed_over = Vec::new();
    let mut wanted: &[Provider] = &settings.providers;
    let external = files::read_external(path, files).map_err(|error| error.0)?;
    let apart = files::set_apart(path, files).map_err(|error| {
        format!(
            "a graph within it has weights outside it, which cannot be copied to where they stay as they are: {error}"
        )
    })?;
    let from =
        apart.as_ref().map_or_else(|| path.to_owned(), |apart| apart.path().join(path.file_name().unwrap_or_default()));
    loop {
        let mut builder = options(runtime, settings, graph)?;
        for (location, data) in &external {
            builder = builder
                .with_external_initializer_file_in_memory(location, Arc::clone(data))
                .map_err(|error| error.to_string())?;
        }
        let providers = register(runtime, &mut builder, &mut wanted, &mut passed_over)?;
        let Some((last, before)) = providers.split_last() else {
            return Err(format!("{}; this library has {}", passed_over.join("; "), runtime.providers().join(", ")));
        };
        if before.is_empty() && *last == ProviderKind::Cpu {
            // Whatever else a library may have found on this machine, it was not asked for.
            builder = builder.with_auto_device(AutoDevicePolicy::PreferCPU).map_err(|error| error.to_string())?;
        }
        match builder.commit_from_file(&from) {
            Ok(session) => return Ok(Built { session, providers, passed_over }),
            // A provider may be there and of no use, because the device or another library is missing: known only now.
            Err(error) if providers[0] != ProviderKind::Cpu && wanted.len() > 1 => {
                passed_over.push(format!("`{}` cannot take the model: {error}", wanted[0].kind));
                wanted = &wanted[1..];
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Adds those of `wanted` that the library has, down to the CPU, which runs whatever is left and is always there. Leaves
/// `wanted` at the first that was added.
fn register(
    runtime: &Runtime,
    builder: &mut SessionBuilder,
    wanted: &mut &[Provider],
    passed_over: &mut Vec<String>,
) -> Result<Vec<ProviderKind>, String> {
    let mut added = Vec::new();
    let mut first = None;
    for (at, provider) in wanted.iter().enumerate() {
        let kind = provider.kind;
        let refused = if kind == ProviderKind::Cpu {
            None
        } else if !runtime.has(kind) {
            Some(format!("provider `{kind}` is not in this ONNX Runtime"))
        } else {
            values::append(builder, provider).err().map(|error| format!("provider `{kind}` is refused: {error}"))
        };
        match refused {
            // It is asked again whenever one before it cannot take the model.
            Some(reason) if passed_over.contains(&reason) => {}
            Some(reason) => passed_over.push(reason),
            None => {
                added.push(kind);
                first.get_or_insert(at);
            }
        }
        if kind == ProviderKind::Cpu {
            break;
        }
    }
    *wanted = &wanted[first.unwrap_or(0)..];
    Ok(added)
}

fn options(runtime: &Runtime, settings: &SessionSettings, graph: Graph<'_>) -> Result<SessionBuilder, String> {
    let SessionSettings { threads, sharers, options, .. } = settings;
    // Each run has the thread that calls, and those of the pool besides; so however many share the session, together they
    // have what was meant for them.
    let pool = sharers.max(&1) * (threads.max(&1) - 1) + 1;
    let level = match options.optimization {
        // Once more would find next to nothing, and take as long to look for it.
        _ if matches!(graph, Graph::Optimized) => GraphOptimizationLevel::Disable,
        Optimization::Disabled => GraphOptimizationLevel::Disable,
        Optimization::Basic => GraphOptimizationLevel::Level1,
        Optimization::Extended => GraphOptimizationLevel::Level2,
        Optimization::Layout => GraphOptimizationLevel::Level3,
        Optimization::All => GraphOptimizationLevel::All,
    };
    let build = |builder: SessionBuilder| {
        let mut builder = builder
            .with_intra_threads(pool)?
            .with_inter_threads(options.parallel.unwrap_or(1))?
            .with_parallel_execution(options.parallel.is_some())?
            // Spinning threads take the cores that sockets need (architecture section 10).
            .with_intra_op_spinning(false)?
            .with_inter_op_spinning(false)?
            // A plan of memory is kept for every shape that ever came in: clients choose shapes, so it would grow without
            // bound. It gains nothing either: looking it up costs a small model 5 % of its run.
            .with_memory_pattern(false)?
            .with_optimization_level(level)?;
        if settings.arena == Arena::None {
            builder = builder.with_execution_providers([ep::CPU::default().with_arena_allocator(false).build()])?;
        }
        if settings.explain {
            builder = builder.with_config_entry("session.record_ep_graph_assignment_info", "1")?;
        }
        if let Graph::Keep(unfinished) = graph {
            let (path, weights) = unfinished.target();
            builder = builder.with_optimized_model_path(path)?;
            if let Some(name) = weights {
                builder =
                    builder
                        .with_config_entry("session.optimized_model_external_initializers_file_name", name)?
                        .with_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")?;
            }
        }
        for (key, value) in &options.entries {
            builder = builder.with_config_entry(key, value)?;
        }
        Ok::<_, ort::Error<SessionBuilder>>(builder)
    };
    let builder = runtime.builder().map_err(|error| error.to_string())?;
    build(builder).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::Open,
        tensor::{DataType, Tensor},
    };
    use std::fs;

    #[cfg(target_os = "linux")]
    #[test]
    fn weights_beside_a_model_may_be_cut_off_while_it_is_served_whichever_graph_they_are_of() {
        for (model, file) in [("external_data", "weights.bin"), ("external_nested", "weights.bin")] {
            let folder = tempfile::tempdir().unwrap();
            for name in ["model.onnx", file] {
                let from =
                    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/good").join(model).join("1").join(name);
                fs::copy(from, folder.path().join(name)).unwrap();
            }
            let runtime = Runtime::load(None).unwrap();
            let mut opened = runtime.open(&folder.path().join("model.onnx"), &SessionSettings::default()).unwrap();
            let maps = fs::read_to_string("/proc/self/maps").unwrap();
            assert!(!maps.contains(folder.path().to_str().unwrap()), "{model} is mapped");
            fs::File::options().write(true).open(folder.path().join(file)).unwrap().set_len(0).unwrap();
            let input = Tensor::of(DataType::Fp32, [1, 4].into(), vec![1_f32; 4]).unwrap();
            let expected = Tensor::of(DataType::Fp32, [1, 4].into(), vec![2_f32, 3.0, 4.0, 5.0]).unwrap();
            assert_eq!(opened.run(&[input]).unwrap()[..], [expected], "{model}");
        }
    }
}
