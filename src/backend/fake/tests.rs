//! What tests may rely on when they use a fake.

use super::*;
use std::{panic, thread};

const PATIENCE: Duration = Duration::from_secs(10);

fn numbers() -> Vec<Tensor> {
    vec![Tensor::of(DataType::Fp32, [1, 4].into(), vec![1.0_f32, 2.0, 3.0, 4.0]).unwrap()]
}

#[test]
fn numbers_are_doubled_wherever_they_lie() {
    let aligned = Fake::new().run(&numbers()).unwrap();
    assert_eq!(aligned[0].try_elements::<f32>().unwrap(), [2.0, 4.0, 6.0, 8.0]);
    let mut shifted = vec![0];
    shifted.extend_from_slice(numbers()[0].data());
    let data = bytes::Bytes::from(shifted).slice(1..);
    let unaligned = Tensor::new(DataType::Fp32, [1, 4].into(), data).unwrap();
    assert_eq!(Fake::new().run(&[unaligned]).unwrap(), aligned);
}

#[test]
fn strings_are_echoed() {
    let strings = vec![Tensor::strings([2].into(), ["a\0b", ""]).unwrap()];
    assert_eq!(Fake::echo_bytes().run(&strings).unwrap(), strings);
}

#[test]
fn behaviour_changes_while_in_use_and_for_all_clones() {
    let mut fake = Fake::new();
    let mut other = fake.clone();
    fake.control().set(Behaviour::Fail);
    assert!(matches!(other.run(&numbers()), Err(Error::Backend(_))));
    fake.control().release();
    assert!(fake.run(&numbers()).is_ok());
    assert_eq!((fake.control().started(), fake.control().finished()), (2, 1));
    assert_eq!(fake.control().batches(), [1, 1]);
}

#[test]
fn a_panic_leaves_the_control_usable() {
    let mut fake = Fake::new().panicking();
    assert!(panic::catch_unwind(panic::AssertUnwindSafe(|| fake.run(&numbers()))).is_err());
    fake.control().release();
    assert!(fake.run(&numbers()).is_ok());
}

#[test]
fn a_blocked_run_waits_for_its_release() {
    let mut fake = Fake::new().blocking();
    let control = fake.control();
    let run = thread::spawn(move || fake.run(&numbers()));
    assert!(control.wait_started(1, PATIENCE));
    assert_eq!(control.finished(), 0);
    control.release();
    assert!(run.join().unwrap().is_ok());
    assert_eq!(control.finished(), 1);
    assert!(!control.wait_started(2, Duration::ZERO));
}

#[test]
fn a_slow_run_takes_its_time() {
    let start = std::time::Instant::now();
    Fake::new().slow(Duration::from_millis(20)).run(&numbers()).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(20));
}

#[test]
fn a_streaming_fake_answers_until_it_is_told_to_stop() {
    let mut fake = Fake::new().streaming(3, Duration::ZERO);
    assert!(fake.is_decoupled() && !Fake::new().is_decoupled());
    let mut answers = Vec::new();
    fake.stream(&numbers(), &mut |outputs| {
        answers.push(outputs);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(answers.len(), 3);
    fake.stream(&numbers(), &mut |_| ControlFlow::Break(())).unwrap();
    assert_eq!(fake.control().emitted(), 3);
}

#[test]
fn fakes_are_opened_by_name() {
    let open = FakeOpen::new().with("text", Fake::echo_bytes()).refusing("broken", "no such file");
    let signature = |path: &str| {
        let backend = open.open(Path::new(path), &SessionSettings::default())?;
        Ok(backend.signature().inputs[0].dtype)
    };
    assert_eq!(signature("models/text/1/model.onnx"), Ok(Some(DataType::Bytes)));
    assert_eq!(signature("models/other/3/model.onnx"), Ok(Some(DataType::Fp32)));
    assert_eq!(signature("models/broken/1/model.onnx"), Err(OpenError("no such file".into())));
    assert_eq!(open.opened(), ["text", "other"]);
}
