//! Padding by itself, and through the queue and a run: every answer is that of the call alone.

use super::*;
use crate::{
    backend::Backend,
    call::ModelKey,
    schedule::{BatchPolicy, BatchQueue, Layout, Plan, Verdict, run, testing},
    telemetry::metrics::Metrics,
    tensor::{DataType, Signature, TensorSpec},
};
use proptest::prelude::*;
use std::time::Instant;

/// Takes `ids` and `mask`, [rows, seq], and yields `each`, [rows, seq]: twice the masked ids, and `sum`, [rows].
/// What is filled up has the id -7, which it refuses where the mask does not say so.
#[derive(Debug)]
struct Masked {
    signature: Arc<Signature>,
    rows: Option<usize>,
    shapes: Vec<Vec<usize>>,
    /// An element less along `seq` than there should be.
    short: bool,
}

const FILL: i64 = -7;

impl Masked {
    fn new(rows: Option<usize>) -> Self {
        Self { signature: signature(), rows, shapes: Vec::new(), short: false }
    }
}

impl Backend for Masked {
    fn signature(&self) -> &Arc<Signature> {
        &self.signature
    }

    fn run(&mut self, inputs: &[Tensor]) -> Result<Tensors, Error> {
        let dims = inputs[0].shape().dims().to_vec();
        assert!(self.rows.is_none_or(|rows| rows == dims[0]), "{dims:?}");
        self.shapes.push(dims.clone());
        let values =
            |at: usize| inputs[at].data().chunks_exact(8).map(bytemuck::pod_read_unaligned).collect::<Vec<i64>>();
        let (ids, mask) = (values(0), values(1));
        if ids.iter().zip(&mask).any(|(id, mask)| *id == FILL && *mask != 0) {
            return Err(Error::backend("what was filled up is not masked"));
        }
        let each: Vec<i64> = ids.iter().zip(&mask).map(|(id, mask)| 2 * id * mask).collect();
        let sums: Vec<i64> = each.chunks(dims[1].max(1)).map(|row| row.iter().sum()).collect();
        let sums = if dims[1] == 0 { vec![0; dims[0]] } else { sums };
        let cut = usize::from(self.short);
        let each = each[..dims[0] * (dims[1] - cut)].to_vec();
        let tensor = |shape, values| Tensor::of(DataType::Int64, shape, values).unwrap();
        Ok([tensor([dims[0], dims[1] - cut].into(), each), tensor([dims[0]].into(), sums)].into_iter().collect())
    }
}

fn signature() -> Arc<Signature> {
    let spec = |name: &str, dims: &[Option<usize>]| TensorSpec {
        name: name.into(),
        dtype: Some(DataType::Int64),
        dims: dims.to_vec(),
    };
    Arc::new(Signature {
        inputs: vec![spec("ids", &[None, None]), spec("mask", &[None, None])],
        outputs: vec![spec("each", &[None, None]), spec("sum", &[None])],
    })
}

fn padding(reach: Reach, rows: Option<usize>) -> Arc<Layout> {
    let input = |name: &str, element: i64| PaddedInput {
        name: name.into(),
        axes: vec![(1, 0)],
        element: element.to_le_bytes().to_vec().into(),
    };
    let mut padding = Padding::new(reach);
    padding.axes = vec!["seq".into()];
    padding.inputs = vec![input("ids", FILL), input("mask", 0)];
    padding.outputs = vec![vec![(1, 0)], Vec::new()];
    padding.rows = rows;
    Arc::new(Layout::Padded(padding))
}

fn of(layout: &Layout) -> &Padding {
    layout.padding().unwrap()
}

fn plan(padding: &Arc<Layout>) -> Plan {
    let key = Arc::new(ModelKey { name: "masked".into(), version: "1".into() });
    Plan {
        metrics: Metrics::new().model(&key),
        key,
        signature: signature(),
        policy: BatchPolicy { enabled: true, max_rows: of(padding).rows.unwrap_or(8), ..BatchPolicy::default() },
        layout: Some(Arc::clone(padding)),
        ..testing::plan()
    }
}

/// Inputs whose ids are told apart by `seed`, with some that the caller has masked itself.
fn inputs(rows: usize, length: usize, seed: usize) -> Tensors {
    let tensor = |values| Tensor::of(DataType::Int64, [rows, length].into(), values).unwrap();
    let count = rows * length;
    let ids = (0..count).map(|at| (seed * 1000 + at) as i64).collect();
    let mask = (0..count).map(|at| i64::from(!(seed + at).is_multiple_of(5))).collect();
    [tensor(ids), tensor(mask)].into_iter().collect()
}

fn job(padding: &Arc<Layout>, inputs: Tensors) -> (Job, testing::Receiver) {
    testing::job_of(inputs, Some(Arc::clone(padding)))
}

fn joins(padding: &Arc<Layout>, one: usize, other: usize) -> bool {
    let (one, other) = (inputs(1, one, 1), inputs(1, other, 2));
    assert_eq!(padding.joins(&one, &other), padding.joins(&other, &one));
    padding.joins(&one, &other)
}

#[test]
fn how_far_calls_are_filled_up_is_said_as_it_is_configured() {
    let said = [Reach::Worth, Reach::Ratio(205), Reach::Lengths(vec![8, 64])].map(|reach| reach.to_string());
    assert_eq!(said, ["auto", "{ ratio: 2.05 }", "{ lengths: [8, 64] }"]);
}

#[test]
fn what_an_element_is_worth_says_who_runs_together() {
    let padding = padding(Reach::Worth, None);
    assert!(joins(&padding, 5, 5) && !joins(&padding, 5, 6), "nothing was measured yet");
    of(&padding).set_worth(10);
    assert!(joins(&padding, 5, 15) && !joins(&padding, 5, 16));
    let rows = |short, long| padding.joins(&inputs(short, 5, 1), &inputs(long, 10, 2));
    assert!(rows(2, 9) && !rows(3, 1), "every row that is filled up counts");
    of(&padding).set_worth(usize::MAX);
    assert!(joins(&padding, 1, 4000) && !joins(&padding, 0, 1), "nobody knows where nothing ends");
}

#[test]
fn a_ratio_bounds_what_is_wasted() {
    let padding = padding(Reach::Ratio(150), None);
    assert!(joins(&padding, 10, 15) && !joins(&padding, 10, 16));
}

#[test]
fn with_lengths_each_run_has_one_of_them() {
    let padding = padding(Reach::Lengths(vec![4, 16]), None);
    assert!(joins(&padding, 1, 4) && joins(&padding, 5, 16) && !joins(&padding, 4, 5));
    assert!(joins(&padding, 17, 17) && !joins(&padding, 17, 18), "what is longer is not filled up");
    let shape = |length| padding.alone(inputs(1, length, 1)).unwrap()[0].shape().dims().to_vec();
    assert_eq!([shape(3), shape(4), shape(17)], [[1, 4], [1, 4], [1, 17]]);
}

#[test]
fn several_axes_are_worth_what_they_make_together() {
    let mut images = Padding::new(Reach::Worth);
    images.axes = vec!["height".into(), "width".into()];
    images.inputs = vec![PaddedInput { name: "x".into(), axes: vec![(2, 0), (3, 1)], element: vec![0; 4].into() }];
    images.set_worth(6);
    let image = |channels: usize, height: usize, width: usize| -> Tensors {
        let zeros = vec![0.0_f32; channels * height * width];
        [Tensor::of(DataType::Fp32, [1, channels, height, width].into(), zeros).unwrap()].into()
    };
    // Both become 3 × 4: two more than the one, four more than the other.
    assert!(!images.joins(&image(3, 3, 3), &image(3, 2, 4)), "3 + 4 are more than 6");
    assert!(images.joins(&image(3, 3, 4), &image(3, 2, 3)));
    assert!(!images.joins(&image(3, 3, 4), &image(1, 3, 4)), "channels are not filled up");
}

#[test]
fn what_would_be_filled_up_with_far_more_than_was_sent_is_refused() {
    // Zeros that nobody reads: only shapes count here.
    let inputs = |rows: usize, length: usize| -> Tensors {
        let data = Bytes::from(vec![0; rows * length * 8]);
        let tensor = || Tensor::new(DataType::Int64, [rows, length].into(), data.clone()).unwrap();
        [tensor(), tensor()].into_iter().collect()
    };
    let check = |reach, rows, sent| {
        let padding = padding(reach, rows);
        let (job, _answer) = job(&padding, sent);
        of(&padding).check(&job).map_err(|error| error.to_string())
    };
    let steps = || Reach::Lengths(vec![16, 64]);
    let far = "far more than what was sent";
    // 32 MiB of each input, and 480 MiB that would fill it up.
    let error = check(steps(), None, inputs(1 << 22, 1)).unwrap_err();
    assert_eq!(error, format!("tensor `ids` has shape [4194304, 1] and would be filled up to [4194304, 16], {far}"));
    assert!(check(steps(), None, inputs(1 << 21, 1)).unwrap_err().contains("`mask`"), "all inputs together");
    assert_eq!(check(steps(), None, inputs(1 << 20, 1)), Ok(()), "240 MiB");
    // As much again is added, however much that is.
    assert_eq!(check(steps(), None, inputs(1 << 22, 8)), Ok(()));
    // Nothing is added to what has its length already, or is longer than all.
    assert_eq!(check(steps(), None, inputs(1 << 16, 65)), Ok(()));
    // Rows are filled up as well.
    assert!(check(Reach::Worth, Some(64), inputs(1, 1 << 20)).unwrap_err().contains(&format!("[64, 1048576], {far}")));
    assert_eq!(check(Reach::Worth, Some(64), inputs(1, 1 << 16)), Ok(()));
}

#[test]
fn inputs_that_contradict_each_other_are_refused() {
    let padding = padding(Reach::Ratio(200), Some(4));
    let (mut wrong, _receiver) = job(&padding, inputs(1, 5, 1));
    wrong.inputs[1] = inputs(1, 6, 1)[1].clone();
    let error = padding.check(&wrong).unwrap_err().to_string();
    assert_eq!(error, "tensor `mask` has 6 along `seq`, expected 5 as in tensor `ids`");
    let (large, _receiver) = job(&padding, inputs(5, 5, 1));
    assert_eq!(padding.check(&large).unwrap_err().to_string(), "tensor `ids` has 5 rows, expected at most 4");
    let (right, _receiver) = job(&padding, inputs(4, 5, 1));
    assert!(padding.check(&right).is_ok());
}

#[test]
fn outputs_that_cannot_be_cut_back_are_an_error_and_no_wrong_answer() {
    let padding = padding(Reach::Lengths(vec![8]), None);
    let plan = plan(&padding);
    let mut backend = Masked { short: true, ..Masked::new(None) };
    let (jobs, receivers): (Vec<_>, Vec<_>) = (0..2).map(|seed| job(&padding, inputs(1, 5, seed))).unzip();
    let mut jobs = jobs;
    run::run(&mut backend, &mut jobs, &plan, None);
    assert_eq!(backend.shapes, [[2, 8], [1, 8], [1, 8]]);
    for mut receiver in receivers {
        assert!(matches!(receiver.try_recv().unwrap(), Err(Error::Backend(_))));
    }
}

#[test]
fn what_is_filled_up_is_counted() {
    let (padding, metrics) = (padding(Reach::Ratio(200), Some(4)), Metrics::new());
    let plan = Plan { metrics: metrics.model(&plan(&padding).key), ..plan(&padding) };
    let (jobs, _receivers): (Vec<_>, Vec<_>) =
        [3, 5].map(|length| job(&padding, inputs(1, length, 1))).into_iter().unzip();
    let mut jobs = jobs;
    run::run(&mut Masked::new(Some(4)), &mut jobs, &plan, None);
    let page = metrics.render();
    // Two inputs of four rows of five; callers sent three and five of each.
    for (kind, count) in [("input", 16), ("padding", 24)] {
        let line = format!("sluicegate_batch_elements_total{{kind=\"{kind}\",model=\"masked\"}} {count}");
        assert!(page.contains(&line), "{line}: {page}");
    }
}

fn reaches() -> impl Strategy<Value = Reach> {
    prop_oneof![
        Just(Reach::Worth),
        (100_u32..400).prop_map(Reach::Ratio),
        prop::collection::btree_set(1_usize..40, 1..5).prop_map(|steps| Reach::Lengths(steps.into_iter().collect())),
    ]
}

proptest! {
    #[test]
    fn every_answer_is_that_of_the_call_alone(
        calls in prop::collection::vec((1_usize..4, 0_usize..40), 1..24),
        reach in reaches(),
        worth in 0_usize..40,
        rows in prop::option::of(4_usize..9),
    ) {
        let padding = padding(reach, rows);
        of(&padding).set_worth(worth);
        let plan = plan(&padding);
        let mut queue = BatchQueue::new(plan.policy);
        let mut backend = Masked::new(rows);
        let mut receivers = Vec::new();
        for (seed, (rows, length)) in calls.iter().enumerate() {
            let (job, receiver) = job(&padding, inputs(*rows, *length, seed));
            queue.push(job).unwrap();
            receivers.push(receiver);
        }
        while let Verdict::Run(mut jobs) = queue.next(Instant::now(), 1) {
            run::run(&mut backend, &mut jobs, &plan, None);
        }
        for (seed, ((rows, length), mut receiver)) in calls.iter().zip(receivers).enumerate() {
            let answer = receiver.try_recv().unwrap().unwrap();
            let alone = Masked::new(None).run(&inputs(*rows, *length, seed)).unwrap();
            let found: Tensors = answer.outputs.into_iter().map(|output| output.tensor).collect();
            prop_assert_eq!(found, alone);
        }
    }
}
