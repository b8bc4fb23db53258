//! Ragged inputs by themselves, and through the queue and a run: every answer is that of the call alone.

use super::*;
use crate::{
    backend::Backend,
    call::ModelKey,
    schedule::{BatchPolicy, BatchQueue, Layout, Plan, Verdict, run, testing},
    telemetry::metrics::Metrics,
    tensor::{Shape, Signature},
};
use proptest::prelude::*;
use std::time::Instant;

/// Takes `bounds`, [rows + 1], `values`, [total, 2], and `scale`, [rows], and yields `each`, [total, 2]: the values by the
/// scale of their row, and `sum`, [rows].
#[derive(Debug)]
struct Bags {
    signature: Arc<Signature>,
    /// The bounds of each run.
    runs: Vec<Vec<i32>>,
    /// An element more in `each` than there should be.
    long: bool,
}

impl Bags {
    fn new() -> Self {
        Self { signature: Arc::default(), runs: Vec::new(), long: false }
    }
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.data().chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()
}

impl Backend for Bags {
    fn signature(&self) -> &Arc<Signature> {
        &self.signature
    }

    fn run(&mut self, inputs: &[Tensor]) -> Result<Tensors, Error> {
        let bounds: Vec<i32> = inputs[0].data().chunks_exact(4).map(bytemuck::pod_read_unaligned).collect();
        let (values, scales) = (numbers(&inputs[1]), numbers(&inputs[2]));
        assert_eq!(inputs[1].shape().dims(), [*bounds.last().unwrap() as usize, 2]);
        assert_eq!(inputs[2].shape().dims(), [bounds.len() - 1]);
        if values.contains(&-1.0) {
            return Err(Error::backend("as the value says"));
        }
        let (mut each, mut sums) = (Vec::new(), Vec::new());
        for (row, scale) in bounds.windows(2).zip(&scales) {
            let row: Vec<f32> =
                values[2 * row[0] as usize..2 * row[1] as usize].iter().map(|value| scale * value).collect();
            sums.push(row.iter().sum::<f32>());
            each.extend(row);
        }
        each.extend([0.0; 2].iter().filter(|_| self.long));
        self.runs.push(bounds);
        let tensor = |shape: Shape, values| Tensor::of(DataType::Fp32, shape, values).unwrap();
        let (total, rows) = (each.len() / 2, sums.len());
        Ok([tensor([total, 2].into(), each), tensor([rows].into(), sums)].into_iter().collect())
    }
}

fn spec(name: &str, dims: &[Option<usize>]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype: Some(DataType::Fp32), dims: dims.to_vec() }
}

/// The model as its callers see it.
fn signature() -> Arc<Signature> {
    Arc::new(Signature {
        inputs: vec![spec("values", &[None, None, Some(2)]), spec("scale", &[None])],
        outputs: vec![spec("each", &[None, None, Some(2)]), spec("sum", &[None])],
    })
}

fn ragged(max_elements: usize) -> Ragged {
    let input = |name: &str, axis| RaggedInput { name: name.into(), axis };
    let bounds = Made { name: "bounds".into(), axis: 0, what: Marks::Bounds, dtype: DataType::Int32 };
    Ragged {
        axes: vec!["total".into()],
        inputs: vec![input("values", Some(0)), input("scale", None)],
        run: vec![Source::Made(bounds), Source::Sent(0), Source::Sent(1)],
        outputs: vec![Some(0), None],
        max_elements,
    }
}

fn plan(max_rows: usize, max_elements: usize) -> Plan {
    let key = Arc::new(ModelKey { name: "bags".into(), version: "1".into() });
    let max = Some(max_elements);
    Plan {
        metrics: Metrics::new().model(&key),
        key,
        signature: signature(),
        policy: BatchPolicy { enabled: true, max_rows, max_elements: max, even: false, ..BatchPolicy::default() },
        layout: Some(Arc::new(Layout::Ragged(ragged(max_elements)))),
        ..testing::plan()
    }
}

/// Inputs whose values are told apart by `seed`.
fn inputs(rows: usize, length: usize, seed: usize) -> Tensors {
    let values = (0..2 * rows * length).map(|at| (100 * seed + at) as f32).collect();
    let scales = (0..rows).map(|row| (1 + row) as f32).collect();
    let tensor = |shape: Shape, values: Vec<f32>| Tensor::of(DataType::Fp32, shape, values).unwrap();
    [tensor([rows, length, 2].into(), values), tensor([rows].into(), scales)].into_iter().collect()
}

/// What the model makes of a call by itself, as its caller sees it.
fn alone(rows: usize, length: usize, seed: usize) -> Tensors {
    let found = Bags::new().run(&ragged(1).alone(&inputs(rows, length, seed)).unwrap()).unwrap();
    [batch::split(&found[0], rows, length).unwrap(), found[1].clone()].into_iter().collect()
}

fn job(plan: &Plan, inputs: Tensors) -> (Job, testing::Receiver) {
    testing::job_of(inputs, plan.layout.clone())
}

/// Runs all of these calls, rows and lengths, by a queue. The bounds of each run, and the answers.
fn through(plan: &Plan, calls: &[(usize, usize)]) -> (Vec<Vec<i32>>, Vec<Tensors>) {
    let mut queue = BatchQueue::new(plan.policy);
    let mut backend = Bags::new();
    let mut receivers = Vec::new();
    for (seed, (rows, length)) in calls.iter().enumerate() {
        let (job, receiver) = job(plan, inputs(*rows, *length, seed));
        queue.push(job).unwrap();
        receivers.push(receiver);
    }
    while let Verdict::Run(mut jobs) = queue.next(Instant::now(), 1) {
        run::run(&mut backend, &mut jobs, plan, None);
    }
    let answers = receivers.into_iter().map(|mut receiver| {
        let answer = receiver.try_recv().unwrap().unwrap();
        answer.outputs.into_iter().map(|output| output.tensor).collect()
    });
    let answers = answers.collect();
    (backend.runs, answers)
}

#[test]
fn calls_of_any_lengths_are_one_run_that_knows_where_each_row_is() {
    let (runs, answers) = through(&plan(64, 100), &[(1, 3), (2, 0), (1, 1), (2, 2)]);
    assert_eq!(runs, [[0, 3, 3, 3, 4, 6, 8]]);
    assert_eq!(answers[3], alone(2, 2, 3));
    assert_eq!((answers[3][0].shape().dims(), answers[1][0].shape().dims()), (&[2, 2, 2][..], &[2, 0, 2][..]));
}

#[test]
fn a_batch_ends_with_its_elements_or_its_rows_and_one_call_may_have_more() {
    let (runs, _) = through(&plan(4, 10), &[(1, 4), (1, 6), (1, 1), (2, 1), (2, 1), (1, 50), (1, 1)]);
    let sizes: Vec<_> = runs.iter().map(|bounds| (bounds.len() - 1, *bounds.last().unwrap())).collect();
    assert_eq!(sizes, [(2, 10), (3, 3), (2, 2), (1, 50), (1, 1)]);
}

#[test]
fn cost_is_known_by_elements() {
    let plan = plan(64, 1000);
    through(&plan, &[(1, 600), (1, 300)]);
    assert!(plan.cost.per_row(9).is_none(), "one run is too few");
    (0..2).for_each(|_| drop(through(&plan, &[(1, 600), (1, 300)])));
    assert!(plan.cost.per_row(9).is_some() && plan.cost.per_row(1).is_none(), "900 elements, and two rows");
}

#[test]
fn inputs_of_one_axis_must_have_rows_of_one_length() {
    let mut two = ragged(10);
    two.inputs[1] = RaggedInput { name: "weights".into(), axis: Some(0) };
    let plan = plan(8, 10);
    let tensor =
        |rows, length| Tensor::of(DataType::Fp32, [rows, length].into(), vec![0.0_f32; rows * length]).unwrap();
    let (right, _a) = job(&plan, [tensor(2, 3), tensor(2, 3)].into_iter().collect());
    assert!(two.check(&right).is_ok());
    let (wrong, _b) = job(&plan, [tensor(2, 3), tensor(2, 4)].into_iter().collect());
    let error = two.check(&wrong).unwrap_err().to_string();
    assert_eq!(error, "tensor `weights` has rows of 4 elements, expected 3 as in tensor `values`");
}

#[test]
fn what_cannot_be_counted_is_refused() {
    let mut real = ragged(10);
    real.run[0] = Source::Made(Made { name: "ends".into(), axis: 0, what: Marks::Ends, dtype: DataType::Fp32 });
    real.inputs.truncate(1);
    let plan = plan(8, 10);
    let flags = |length| Tensor::new(DataType::Bool, [1, length].into(), vec![0; length].into()).unwrap();
    let (largest, _a) = job(&plan, [flags(1 << 24)].into());
    assert!(real.check(&largest).is_ok());
    let (larger, _b) = job(&plan, [flags((1 << 24) + 1)].into());
    let error = real.check(&larger).unwrap_err().to_string();
    assert_eq!(error, "tensor `values` has shape [1, 16777217], expected at most 16777216 elements in all rows");
}

#[test]
fn jobs_of_other_inner_shapes_run_apart() {
    let ragged = ragged(10);
    let wide = |inner: usize| -> Tensors {
        let values = Tensor::of(DataType::Fp32, [1, 2, inner].into(), vec![0.0_f32; 2 * inner]).unwrap();
        [values, inputs(1, 1, 0)[1].clone()].into_iter().collect()
    };
    assert!(ragged.joins(&wide(2), &inputs(3, 7, 0)) && ragged.joins(&inputs(3, 7, 0), &wide(2)));
    assert!(!ragged.joins(&wide(3), &inputs(3, 7, 0)));
}

#[test]
fn strings_lie_one_behind_the_other_too() {
    let mut texts = ragged(10);
    (texts.inputs, texts.run) = (vec![texts.inputs[0].clone()], vec![Source::Sent(0)]);
    let row = |strings: &[&str]| -> Tensors {
        [Tensor::strings([1, strings.len()].into(), strings.iter().map(|string| string.as_bytes())).unwrap()].into()
    };
    let (a, b) = (row(&["a", "bcd"]), row(&["", "e", "f"]));
    let laid = texts.lay(&[&a, &b]).unwrap();
    assert_eq!((laid.rows, &laid.lengths[..]), (2, &[5][..]));
    let mut cuts = Cuts::new(&texts);
    for inputs in [&a, &b] {
        cuts.next(inputs);
        assert_eq!(cuts.part(0, &laid.inputs[0], batch::rows).unwrap(), inputs[0]);
    }
}

#[test]
fn an_output_that_does_not_fit_is_no_answer_and_costs_nobody_else_theirs() {
    let plan = plan(8, 100);
    let mut backend = Bags { long: true, ..Bags::new() };
    let (mut jobs, receivers): (Vec<_>, Vec<_>) = (0..2).map(|seed| job(&plan, inputs(1, 3, seed))).unzip();
    let ran = run::run(&mut backend, &mut jobs, &plan, None);
    assert!(matches!(ran, run::Ran::Sound(_)) && backend.runs.len() == 3, "together, and each alone");
    for mut receiver in receivers {
        let error = receiver.try_recv().unwrap().unwrap_err();
        assert_eq!(error.code(), crate::error::Code::Internal);
        let why = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(
            why,
            "model `bags/1`: output 0 has shape [4, 2], expected 3 in its first dimension, one for each element along `total`"
        );
    }
    // What one caller sends fails its own call and no other.
    let mut bad = inputs(1, 1, 0);
    bad[0] = Tensor::of(DataType::Fp32, [1, 1, 2].into(), vec![-1.0_f32, 0.0]).unwrap();
    let (mut jobs, mut receivers): (Vec<_>, Vec<_>) =
        [inputs(1, 3, 1), bad].map(|inputs| job(&plan, inputs)).into_iter().unzip();
    run::run(&mut Bags::new(), &mut jobs, &plan, None);
    assert!(receivers[1].try_recv().unwrap().is_err());
    assert_eq!(receivers[0].try_recv().unwrap().unwrap().outputs[0].tensor, alone(1, 3, 1)[0]);
}

#[test]
fn a_call_alone_is_shared_and_several_are_copied_once() {
    let (ragged, large) = (ragged(1), inputs(1, 1 << 16, 0));
    let bytes = large[0].data().len() as u64;
    let mut laid = None;
    let allocated = |work: &mut dyn FnMut()| allocation_counter::measure(work).bytes_total;
    let copied = allocated(&mut || laid = Some(ragged.lay(&[&large]).unwrap()));
    assert!(copied < 4096, "{copied}");
    assert_eq!(laid.unwrap().inputs[1].data().as_ptr(), large[0].data().as_ptr());
    let copied = allocated(&mut || drop(ragged.lay(&[&large, &large]).unwrap()));
    assert!((2 * bytes..2 * bytes + 8192).contains(&copied), "{copied}");
}

proptest! {
    #[test]
    fn every_answer_is_that_of_the_call_alone(
        calls in prop::collection::vec((0_usize..4, 0_usize..40), 1..24),
        max_rows in 1_usize..12,
        max_elements in 1_usize..200,
    ) {
        let (runs, answers) = through(&plan(max_rows, max_elements), &calls);
        for (seed, ((rows, length), found)) in calls.iter().zip(answers).enumerate() {
            prop_assert_eq!(found, alone(*rows, *length, seed));
        }
        let most = calls.iter().map(|(rows, length)| rows * length).max().unwrap_or(0).max(max_elements);
        for bounds in runs {
            prop_assert!(*bounds.last().unwrap() as usize <= most && bounds.len() - 1 <= max_rows.max(3));
        }
    }

    #[test]
    fn what_is_laid_is_cut_apart_as_it_was(
        rows in prop::collection::vec((0_usize..4, 0_usize..9, 0_usize..9), 1..9),
    ) {
        // Two inputs of lengths of their own, each its own output.
        let mut two = ragged(1);
        two.axes.push("other".into());
        two.inputs[1].axis = Some(1);
        two.run.remove(0);
        two.outputs = vec![Some(0), Some(1)];
        let tensor = |rows, length, seed| {
            Tensor::of(DataType::Int32, [rows, length].into(), (0..rows * length).map(|at| (seed + at) as i32).collect())
        };
        let jobs: Vec<Tensors> = rows.iter().enumerate().map(|(seed, (rows, a, b))| {
            [tensor(*rows, *a, 100 * seed), tensor(*rows, *b, 1000 * seed)].map(Result::unwrap).into_iter().collect()
        }).collect();
        let laid = two.lay(&jobs.iter().collect::<Vec<_>>()).unwrap();
        prop_assert!(two.misfit(&laid, &laid.inputs).is_none());
        let mut cuts = Cuts::new(&two);
        for job in &jobs {
            cuts.next(job);
            for (at, input) in job.iter().enumerate() {
                prop_assert_eq!(&cuts.part(at, &laid.inputs[at], batch::rows).unwrap(), input);
            }
        }
    }
}
