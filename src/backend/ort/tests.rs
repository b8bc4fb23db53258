//! What the edge promises, with the real ONNX Runtime and the tiny models in `tests/models`.

use super::*;
use crate::{
    backend::{Arena, Optimization, Provider, SessionOptions},
    error::Error,
    tensor::{DataType, Shape, Tensor, view},
};
use bytes::Bytes;
use std::{path::PathBuf, process::Command, slice::from_ref, sync::mpsc, time::Duration};

fn runtime() -> Runtime {
    Runtime::load(None).unwrap_or_else(|error| panic!("{error}"))
}

fn path(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(model).join("1/model.onnx")
}

fn open(model: &str) -> Box<dyn Backend> {
    let path = path(&format!("tests/models/good/{model}"));
    runtime().open(&path, &SessionSettings::default()).unwrap_or_else(|error| panic!("{error}"))
}

fn refusal(model: &str) -> String {
    let path = path(&format!("tests/models/bad/{model}"));
    runtime().open(&path, &SessionSettings::default()).unwrap_err().0
}

fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::of(DataType::Fp32, Shape::new(shape.iter().copied()), values.to_vec()).unwrap()
}

/// The same tensor over bytes that lie on no alignment.
fn unaligned(tensor: &Tensor) -> Tensor {
    let shifted = view::aligned_copy(&[&[0_u8][..], tensor.data()].concat()).slice(1..);
    Tensor::new(tensor.dtype(), tensor.shape().clone(), shifted).unwrap()
}

#[test]
fn one_runtime_serves_the_process_and_names_its_version() {
    let runtime = runtime();
    assert!(runtime.version().starts_with("1."), "{}", runtime.version());
    assert!(Arc::ptr_eq(&runtime.0, &Runtime::load(None).unwrap().0));
    assert!(Arc::ptr_eq(&runtime.0, &Runtime::load(Some(runtime.library())).unwrap().0));
    let error = Runtime::load(Some(Path::new("/nowhere/libonnxruntime.so"))).unwrap_err().to_string();
    assert!(error.contains("`/nowhere/libonnxruntime.so` does not exist"), "{error}");
}

#[test]
fn every_datatype_comes_back_as_it_went_in() {
    for dtype in DataType::ALL {
        let mut model = open(&format!("echo_{}", dtype.name().to_lowercase()));
        assert_eq!(model.signature().inputs[0].dtype, Some(dtype));
        assert_eq!(model.signature().inputs[0].dims, [None]);
        let input = match dtype {
            DataType::Bytes => Tensor::strings([3].into(), ["a\0b", "", "größe"]).unwrap(),
            DataType::Bool => Tensor::new(dtype, [3].into(), Bytes::from_static(&[1, 0, 1])).unwrap(),
            // 1.5, -2.0 and something else in every type: 1.5 differs between the two half precisions.
            DataType::Fp16 => Tensor::of(dtype, [3].into(), vec![0x3e00_u16, 0xc000, 0x3c01]).unwrap(),
            DataType::Bf16 => Tensor::of(dtype, [3].into(), vec![0x3fc0_u16, 0xc000, 0x3f81]).unwrap(),
            DataType::Fp32 => floats(&[3], &[1.5, -2.0, f32::MIN_POSITIVE]),
            DataType::Fp64 => Tensor::of(dtype, [3].into(), vec![1.5, -2.0, f64::MAX]).unwrap(),
            _ => {
                let bytes: Vec<u8> = (0..3 * dtype.size().unwrap()).map(|n| 0xf0 | n as u8).collect();
                Tensor::new(dtype, [3].into(), view::aligned_copy(&bytes)).unwrap()
            }
        };
        assert_eq!(model.run(from_ref(&input)).unwrap()[..], *from_ref(&input), "{dtype}");
        if dtype != DataType::Bytes {
            assert_eq!(model.run(&[unaligned(&input)]).unwrap()[..], [input], "{dtype}, unaligned");
        }
        let empty = Tensor::new(dtype, [0].into(), Bytes::new()).unwrap();
        assert_eq!(model.run(from_ref(&empty)).unwrap()[..], [empty], "{dtype}, empty");
    }
}

#[test]
fn any_byte_but_zero_is_true() {
    let input = Tensor::new(DataType::Bool, [4].into(), Bytes::from_static(&[0, 1, 2, 255])).unwrap();
    assert_eq!(&open("echo_bool").run(&[input]).unwrap()[0].data()[..], [0, 1, 1, 1]);
}

#[test]
fn strings_of_any_bytes_pass() {
    let strings = [&b"\xff\xfe"[..], b"\0", b"\0\0a\0", &[b'x'; 100_000]];
    let input = Tensor::strings([4].into(), strings).unwrap();
    assert_eq!(open("echo_bytes").run(from_ref(&input)).unwrap()[..], [input]);
}

#[test]
fn a_scalar_has_no_dimensions() {
    let mut model = open("scalar");
    assert!(model.signature().inputs[0].dims.is_empty() && !model.signature().is_batchable());
    assert_eq!(model.run(&[floats(&[], &[21.0])]).unwrap()[..], [floats(&[], &[42.0])]);
}

#[test]
fn fixed_axes_are_named_and_free_ones_are_not() {
    assert_eq!(open("fixed").signature().inputs[0].dims, [Some(1), Some(4)]);
    let signature = Arc::clone(open("mlp_4_16_3").signature());
    assert_eq!(signature.inputs[0].dims, [None, Some(4)]);
    assert_eq!(signature.outputs[0].dims, [None, Some(3)]);
    assert!(signature.is_batchable());
}

#[test]
fn inputs_and_outputs_keep_the_order_of_the_signature() {
    let mut model = open("two_by_two");
    let names =
        |specs: &[crate::tensor::TensorSpec]| specs.iter().map(|spec| spec.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(&model.signature().inputs), ["a", "b"]);
    assert_eq!(names(&model.signature().outputs), ["sum", "difference"]);
    let b = Tensor::of(DataType::Int32, [1, 2].into(), vec![10_i32, 20]).unwrap();
    let outputs = model.run(&[floats(&[1, 2], &[1.0, 2.0]), b]).unwrap();
    assert_eq!(outputs[..], [floats(&[1, 2], &[11.0, 22.0]), floats(&[1, 2], &[-9.0, -18.0])]);
}

#[test]
fn an_output_may_have_a_shape_that_depends_on_the_data() {
    let mut model = open("nonzero");
    let outputs = model.run(&[floats(&[4], &[0.0, 1.0, 0.0, 1.0])]).unwrap();
    assert_eq!(outputs[0].try_elements::<i64>().unwrap(), [1, 3]);
    let outputs = model.run(&[floats(&[2], &[0.0, 0.0])]).unwrap();
    assert_eq!(outputs[0].shape().dims(), [1, 0]);
}

#[test]
fn outputs_outlive_the_session_and_are_shared() {
    let mut model = open("echo_fp32");
    let input = floats(&[1000], &[7.0; 1000]);
    let first = model.run(from_ref(&input)).unwrap().remove(0);
    let second = model.run(&[floats(&[1000], &[8.0; 1000])]).unwrap().remove(0);
    drop(model);
    let third = std::thread::spawn(move || first.clone()).join().unwrap();
    assert_eq!(third, input);
    assert!(second.try_elements::<f32>().unwrap().iter().all(|value| *value == 8.0));
}

#[test]
fn an_output_that_is_the_input_has_memory_of_its_own() {
    let mut model = open("passthrough");
    let input = floats(&[4], &[1.0, 2.0, 3.0, 4.0]);
    let range = input.data().as_ptr_range();
    let output = model.run(from_ref(&input)).unwrap().remove(0);
    assert!(!range.contains(&output.data().as_ptr()));
    drop(input);
    assert_eq!(output, floats(&[4], &[1.0, 2.0, 3.0, 4.0]));
}

#[test]
fn outputs_that_are_weights_have_memory_of_their_own() {
    let mut model = open("constant");
    let input = floats(&[1], &[0.0]);
    let (first, second) = (model.run(from_ref(&input)).unwrap(), model.run(from_ref(&input)).unwrap());
    drop(model);
    for (first, second) in first.iter().zip(&second) {
        assert_ne!(first.data().as_ptr(), second.data().as_ptr());
        assert_eq!(first.try_elements::<f32>().unwrap(), [1.0, 2.0, 3.0]);
    }
}

#[test]
fn weights_in_a_file_beside_the_model_are_read_and_counted() {
    let mut model = open("external_data");
    let outputs = model.run(&[floats(&[1, 4], &[0.0; 4])]).unwrap();
    assert_eq!(outputs[..], [floats(&[1, 4], &[1.0, 2.0, 3.0, 4.0])]);
    let size = std::fs::metadata(path("tests/models/good/external_data")).unwrap().len();
    assert_eq!(model.weight_bytes(), size + 16);
}

#[test]
fn types_that_v2_cannot_name_open_and_do_not_run() {
    for (name, input) in [("float8", None), ("sequence", Some(DataType::Fp32))] {
        let mut model = open(name);
        assert_eq!(model.signature().inputs[0].dtype, input);
        let one = Tensor::new(DataType::Uint8, [1].into(), Bytes::from_static(&[0])).unwrap();
        assert!(matches!(model.run(&[one]), Err(Error::Unimplemented(_))), "{name}");
    }
}

#[test]
fn a_run_that_fails_says_nothing_to_the_client() {
    let mut model = open("mlp_4_16_3");
    let error = model.run(&[floats(&[1, 5], &[0.0; 5])]).unwrap_err();
    assert_eq!(error.to_string(), "inference failed");
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("invalid dimensions"));
    assert!(matches!(model.run(&[]), Err(Error::Backend(_))));
    let wrong_type = Tensor::of(DataType::Int32, [1, 4].into(), vec![0_i32; 4]).unwrap();
    assert!(matches!(model.run(&[wrong_type]), Err(Error::Backend(_))));
    // And leaves the instance usable.
    assert!(model.run(&[floats(&[1, 4], &[0.0; 4])]).is_ok());
}

#[test]
fn models_that_are_none_are_refused_with_a_reason() {
    for (model, reason) in [
        ("corrupt", "is not an ONNX model"),
        ("empty", "holds no graph"),
        ("text", "git lfs pull"),
        ("unknown_operator", "Frobnicate"),
        ("external_escape", "keeps weights in `../secret.bin`, which is outside the model's folder"),
        ("external_absolute", "keeps weights in `/etc/hostname`, which is outside the model's folder"),
    ] {
        let text = refusal(model);
        assert!(text.contains(reason), "{model}: {text}");
    }
}

#[test]
fn the_shipped_models_work() {
    let settings = SessionSettings::default();
    let mut digits = runtime().open(&path("models/digits"), &settings).unwrap();
    let request = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/digits/example.json")).unwrap();
    let request: serde_json::Value = serde_json::from_slice(&request).unwrap();
    let pixels = request["inputs"][0]["data"].as_array().unwrap().iter().map(|n| n.as_f64().unwrap() as f32);
    let outputs = digits.run(&[floats(&[1, 64], &pixels.collect::<Vec<_>>())]).unwrap();
    let scores = outputs[0].try_elements::<f32>().unwrap();
    let best = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(digit, _)| digit);
    assert_eq!(best, Some(9), "the image shows a nine: {scores:?}");

    let mut text_length = runtime().open(&path("models/text_length"), &settings).unwrap();
    assert!(text_length.signature().is_batchable());
    let texts = Tensor::strings([3].into(), ["a\0b", "", "größe"]).unwrap();
    assert_eq!(text_length.run(&[texts]).unwrap()[0].try_elements::<i64>().unwrap()[..], [3, 0, 5]);
}

/// Telemetry (decision 7). In a process of its own, as `main` sets it up, everything that ONNX Runtime does is watched:
/// without the two switches it starts a thread that collects and sends.
#[test]
#[cfg(target_os = "linux")]
fn no_connection_is_tried() {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "backend::ort::tests::watched_child", "--nocapture", "--test-threads=1"])
        .env(TELEMETRY_VARIABLE, "1")
        .env("SLUICEGATE_TEST_WATCH", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && text.contains("watched: no sockets, no threads"), "{text}");
}

/// The child of the test above; does nothing when run among the others.
#[test]
#[cfg(target_os = "linux")]
fn watched_child() {
    if std::env::var_os("SLUICEGATE_TEST_WATCH").is_none() {
        return;
    }
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let (stop, stopped) = mpsc::channel::<()>();
    let watcher = std::thread::spawn(move || {
        let mut sockets = Vec::new();
        // Sampled, because a socket may be closed again at once: every half millisecond.
        while stopped.recv_timeout(Duration::from_micros(500)) == Err(mpsc::RecvTimeoutError::Timeout) {
            for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
                let target = std::fs::read_link(entry.path()).unwrap_or_default();
                if target.to_string_lossy().starts_with("socket:") {
                    sockets.push(target);
                }
            }
        }
        sockets
    });
    let before = threads();
    let mut model = open("mlp_4_16_3");
    for _ in 0..100 {
        model.run(&[floats(&[1, 4], &[0.0; 4])]).unwrap();
    }
    let (_silent, silence) = mpsc::channel::<()>();
    let _ = silence.recv_timeout(Duration::from_secs(1));
    let after = threads();
    drop(stop);
    assert_eq!(watcher.join().unwrap(), Vec::<PathBuf>::new());
    assert_eq!(before, after, "onnx runtime has started threads");
    println!("watched: no sockets, no threads");
}

#[test]
fn a_model_says_whether_its_work_grows_with_values() {
    assert!(open("countdown").grows_with_values());
    assert!(open("countdown").notes().iter().any(|note| note.contains("grows with the values of inputs: Loop")));
    for model in ["mlp_4_16_3", "nonzero", "two_by_two", "outer"] {
        assert!(!open(model).grows_with_values(), "{model}");
    }
}

#[test]
fn a_run_is_ended_from_another_thread_and_the_next_one_is_not() {
    let mut model = open("countdown");
    let steps = |count: i64| Tensor::of(DataType::Int64, Shape::new([1]), vec![count]).unwrap();
    // For some hours, if nobody ends it.
    let endless = steps(1 << 40);
    let stop = model.interruptible().unwrap();
    let (running, runs) = mpsc::channel::<()>();
    let stopper = std::thread::spawn(move || {
        runs.recv().unwrap();
        std::thread::park_timeout(Duration::from_millis(20));
        stop();
    });
    running.send(()).unwrap();
    assert!(matches!(model.run(from_ref(&endless)), Err(Error::Backend(_))));
    stopper.join().unwrap();
    for armed in [false, true] {
        let _stop = armed.then(|| model.interruptible().unwrap());
        let sum = model.run(from_ref(&steps(10))).unwrap();
        assert_eq!(view::elements::<i64>(sum[0].data()), Some(&[45][..]), "{armed}");
    }
}

#[test]
fn instances_that_share_a_session_run_at_the_same_time_and_answer_as_one_alone() {
    for threads in [1, 2] {
        let settings = SessionSettings { threads, sharers: 4, ..SessionSettings::default() };
        let path = path("tests/models/good/mlp_4_16_3");
        let first = runtime().open(&path, &settings).unwrap();
        let mut instances: Vec<_> = (1..4).map(|_| first.another().unwrap().unwrap()).collect();
        instances.push(first);
        let input = |seed: usize| {
            let rows = 1 + seed % 7;
            let values: Vec<f32> = (0..rows * 4).map(|n| ((n * 31 + seed * 17) % 64) as f32 / 8.0 - 4.0).collect();
            floats(&[rows, 4], &values)
        };
        let alone: Vec<_> = (0..50).map(|seed| open("mlp_4_16_3").run(&[input(seed)]).unwrap()).collect();
        std::thread::scope(|scope| {
            for instance in &mut instances {
                scope.spawn(|| {
                    for round in 0..1000 {
                        let seed = round % alone.len();
                        assert_eq!(instance.run(&[input(seed)]).unwrap(), alone[seed], "{threads} threads");
                    }
                });
            }
        });
    }
}

#[test]
fn ending_the_run_of_one_instance_does_not_end_that_of_another() {
    let mut one = open("countdown");
    let mut other = one.another().unwrap().unwrap();
    let steps = |count: i64| Tensor::of(DataType::Int64, Shape::new([1]), vec![count]).unwrap();
    let (ended, stays) = (one.interruptible().unwrap(), other.interruptible().unwrap());
    std::thread::scope(|scope| {
        let endless = scope.spawn(|| one.run(from_ref(&steps(1 << 40))));
        assert!(other.run(from_ref(&steps(10_000))).is_ok());
        while !endless.is_finished() {
            ended();
            std::thread::yield_now();
        }
        assert!(endless.join().unwrap().is_err());
    });
    drop(stays);
}

#[test]
fn memory_is_kept_given_back_or_never_pooled_as_the_arena_says() {
    let held = |arena: Arena| {
        let settings = SessionSettings { arena, ..SessionSettings::default() };
        let mut model = runtime().open(&path("tests/models/good/outer"), &settings).unwrap();
        // [1, 2048] becomes 2048 x 2048 on the way: 16 MiB.
        for columns in [16, 2048, 16] {
            model.run(&[floats(&[1, columns], &vec![1.0; columns])]).unwrap();
        }
        model.memory_bytes().unwrap()
    };
    assert!(held(Arena::Keep) > 16 << 20);
    assert!(held(Arena::Shrink) < 4 << 20);
    assert!(held(Arena::None) < 4 << 20);
    let notes = |model: &str| open(model).notes().join("; ");
    assert!(notes("outer").contains("callers choose dimensions besides the rows"), "{}", notes("outer"));
    assert!(notes("mlp_4_16_3").contains("kept for the next ones"), "{}", notes("mlp_4_16_3"));
}

#[test]
fn a_provider_that_is_not_there_is_passed_over_or_said_to_be_missing() {
    let path = path("tests/models/good/mlp_4_16_3");
    let cuda = Provider { kind: ProviderKind::Cuda, options: vec![("device_id".to_owned(), "0".to_owned())] };
    assert!(!runtime().has(ProviderKind::Cuda), "this test is for a library without it");
    let alone = SessionSettings { providers: vec![cuda.clone()], ..SessionSettings::default() };
    let error = runtime().open(&path, &alone).unwrap_err().0;
    assert!(
        error.contains("provider `cuda` is not in this ONNX Runtime; this library has ") && error.contains("cpu"),
        "{error}"
    );
    let first = SessionSettings { providers: vec![cuda, Provider::CPU], explain: true, ..SessionSettings::default() };
    let mut model = runtime().open(&path, &first).unwrap();
    assert!(model.run(&[floats(&[1, 4], &[0.0; 4])]).is_ok());
    let notes = model.notes();
    assert_eq!(notes[0], "provider `cuda` is not in this ONNX Runtime");
    assert!(notes.iter().any(|note| note.starts_with("CPUExecutionProvider runs ")), "{notes:?}");
}

#[test]
fn options_reach_onnx_runtime() {
    let open = |model: &str, options: SessionOptions| {
        let path = path(&format!("tests/models/good/{model}"));
        runtime().open(&path, &SessionSettings { threads: 2, options, explain: true, ..SessionSettings::default() })
    };
    let nodes = |optimization| {
        let notes = open("constant", SessionOptions { optimization, ..SessionOptions::default() }).unwrap().notes();
        notes.into_iter().find(|note| note.starts_with("CPUExecutionProvider runs "))
    };
    // Told to, it folds the node that only copies a weight.
    assert_eq!(nodes(Optimization::Disabled).as_deref(), Some("CPUExecutionProvider runs 1 node: Identity"));
    assert_eq!(nodes(Optimization::All), None);
    let parallel = SessionOptions { parallel: Some(2), ..SessionOptions::default() };
    assert!(open("mlp_4_16_3", parallel).unwrap().run(&[floats(&[1, 4], &[0.0; 4])]).is_ok());
    let entry = |value: &str| SessionOptions {
        entries: vec![("session.intra_op_thread_affinities".to_owned(), value.to_owned())],
        ..SessionOptions::default()
    };
    let error = open("mlp_4_16_3", entry("nonsense")).unwrap_err().0;
    assert!(error.contains("cannot be loaded"), "{error}");
}

/// Random shapes, in a process of its own, whose memory nobody else's test changes: it reaches a plateau, and what the largest
/// shape needed is not kept. The long form is `benches/plateau.py`.
#[test]
#[cfg(target_os = "linux")]
fn memory_stops_growing_under_random_shapes() {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "backend::ort::tests::plateau_child", "--nocapture", "--test-threads=1"])
        .env(TELEMETRY_VARIABLE, "1")
        .env("SLUICEGATE_TEST_PLATEAU", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && text.contains("plateau: "), "{text}");
}

/// The child of the test above; does nothing when run among the others.
#[test]
#[cfg(target_os = "linux")]
fn plateau_child() {
    if std::env::var_os("SLUICEGATE_TEST_PLATEAU").is_none() {
        return;
    }
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/statm").unwrap();
        status.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4 / 1024
    };
    let settings = SessionSettings { arena: Arena::Shrink, ..SessionSettings::default() };
    let mut model = runtime().open(&path("tests/models/good/outer"), &settings).unwrap();
    let mut seed = 7_u64;
    let mut random = move |below: u64| {
        // Knuth's constants: the low bits are poor and are not used.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((seed >> 33) % below) as usize
    };
    let mut most = [0; 3];
    // By the number of runs and not by the clock, so that a busy machine does not change what is compared.
    for third in &mut most {
        for _ in 0..200 {
            let (rows, power) = (1 + random(4), 1 + random(10));
            let columns = 1 + random(1 << power);
            model.run(&[floats(&[rows, columns], &vec![0.5; rows * columns])]).unwrap();
            *third = resident().max(*third);
        }
    }
    model.run(&[floats(&[1, 1], &[0.5])]).unwrap();
    let (after, held) = (resident(), model.memory_bytes().unwrap() >> 20);
    println!("plateau: {most:?} MiB, {after} MiB afterwards, {held} MiB of them in the arena");
    assert!(most[2] <= most[1] + most[1] / 10 + 8, "it still grows: {most:?} MiB");
    assert!(held < 4, "the arena still has {held} MiB");
}

#[test]
fn files_are_what_the_list_beside_them_says_or_are_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["model.onnx", "weights.bin"] {
        std::fs::copy(path("tests/models/good/external_data").with_file_name(file), folder.path().join(file)).unwrap();
    }
    let model = folder.path().join("model.onnx");
    let open = || runtime().open(&model, &SessionSettings::default()).map(drop).map_err(|error| error.0);
    let line = |file: &str| {
        let digest = Digests::default().of(&folder.path().join(file)).unwrap();
        format!("{}  {file}\n", sums::hex(&digest))
    };
    let list = |text: String| std::fs::write(folder.path().join(sums::LIST), text).unwrap();
    assert_eq!(open(), Ok(()), "without a list");
    list(line("model.onnx") + &line("weights.bin"));
    assert_eq!(open(), Ok(()));
    list(line("model.onnx"));
    assert!(open().unwrap_err().ends_with("is not what was published: `SHA256SUMS` has no line for `weights.bin`"));
    list(line("model.onnx") + &line("weights.bin"));
    let weights = folder.path().join("weights.bin");
    let mut changed = std::fs::read(&weights).unwrap();
    changed[0] ^= 1;
    std::fs::write(&weights, changed).unwrap();
    assert!(open().unwrap_err().contains("`weights.bin` has the SHA-256"));
    list(String::from("what"));
    assert!(open().unwrap_err().contains("`SHA256SUMS` line 1: expected 64"));
}
