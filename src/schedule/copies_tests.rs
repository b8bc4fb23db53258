//! What a batch copies of its calls' tensors: counted in what the thread that runs it allocates.

use super::{run, testing};
use crate::{backend::fake::Fake, tensor::Tensor};
use std::ops::Range;

/// Bytes of all inputs together; those of the outputs are as many.
const BATCH: usize = 1 << 20;
/// Bytes of a row.
const ROW: usize = 16;

/// Runs `jobs` jobs of the same size together. How many batches fit into what that allocated, and the answers.
fn together(jobs: usize) -> (u64, Vec<Tensor>) {
    let (mut fake, plan) = (Fake::new(), testing::plan());
    // The first run makes what the fake keeps.
    let (mut all, mut receivers) = (vec![testing::job(1, 0.0).0], Vec::new());
    run::run(&mut fake, &mut all, &plan, None);
    for mark in 0..jobs {
        let (job, receiver) = testing::job(BATCH / ROW / jobs, mark as f32);
        all.push(job);
        receivers.push(receiver);
    }
    let counted = allocation_counter::measure(|| {
        run::run(&mut fake, &mut all, &plan, None);
    });
    assert_eq!(fake.control().batches(), [1, BATCH / ROW]);
    let answers = receivers.into_iter().map(|mut receiver| {
        let mut answer = receiver.try_recv().unwrap().unwrap();
        answer.outputs.remove(0).tensor
    });
    (counted.bytes_total / BATCH as u64, answers.collect())
}

/// The memory that the rows lie in.
fn memory(answer: &Tensor) -> Range<*const u8> {
    answer.data().as_ptr_range()
}

#[test]
fn a_call_alone_is_read_where_it_lies() {
    // The fake's own output is the one.
    assert_eq!(together(1).0, 1);
}

#[test]
fn calls_are_laid_together_once_and_share_the_output() {
    for jobs in [2, 8] {
        let (copies, answers) = together(jobs);
        assert_eq!(copies, 2, "the batch and the fake's output");
        assert!(answers.windows(2).all(|pair| memory(&pair[0]).end == memory(&pair[1]).start), "{jobs}");
    }
}

#[test]
fn rows_below_an_eighth_of_their_batch_do_not_keep_it() {
    let (copies, answers) = together(16);
    assert_eq!(copies, 3, "the batch, the fake's output, and the rows of each call");
    for (mark, answer) in answers.iter().enumerate() {
        assert_eq!(testing::mark(answer), 2.0 * mark as f32);
    }
}
