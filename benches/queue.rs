//! The batching policy alone: 64 jobs in, one batch out, as a turn of a lane under load has it.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use sluicegate::{
    call::Facts,
    schedule::{BatchPolicy, BatchQueue, Company, Cost, Job, ReplyTo, Verdict},
    tensor::{DataType, Shape, Tensor},
};
use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

const JOBS: usize = 64;

/// Jobs whose callers wait: the receivers keep them from being abandoned.
fn jobs(
    now: Instant,
) -> (Vec<Job>, Vec<oneshot::Receiver<Result<sluicegate::schedule::Answer, sluicegate::error::Error>>>) {
    let tensor = Tensor::of(DataType::Fp32, Shape::new([1, 4]), vec![0_f32; 4]).expect("the length is right");
    (0..JOBS)
        .map(|_| {
            let (sender, receiver) = oneshot::channel();
            let job = Job {
                inputs: [tensor.clone()].into(),
                rows: 1,
                priority: 0,
                deadline: now + Duration::from_secs(3600),
                queued: now,
                reply: ReplyTo::Once(sender.into()),
                facts: Arc::new(Facts::default()),
                turn: 0,
                company: Company::default(),
                layout: None,
            };
            (job, receiver)
        })
        .unzip()
}

fn queue(criterion: &mut Criterion) {
    let now = Instant::now();
    let mut group = criterion.benchmark_group("queue");
    group.throughput(Throughput::Elements(JOBS as u64));
    // As warm-up seeds it for a small model: microseconds by rows.
    let cost = Arc::new(Cost::default());
    (0..7_u32).for_each(|size| cost.seed(1 << size, Duration::from_micros(5 + u64::from(size))));
    for (name, max_rows) in [("one batch of 64", 64), ("eight batches of 8", 8)] {
        let policy = BatchPolicy { enabled: true, max_rows, ..BatchPolicy::default() };
        let mut queue = BatchQueue::with_cost(policy, Arc::clone(&cost));
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || jobs(now),
                |(jobs, receivers)| {
                    for job in jobs {
                        queue.push(job).expect("there is room");
                    }
                    let mut batches = Vec::with_capacity(JOBS);
                    while let Verdict::Run(batch) = queue.next(black_box(now), 1) {
                        cost.observe(batch.len(), Duration::from_micros(10));
                        batches.push(batch);
                    }
                    // Dropped outside the measurement.
                    (batches, receivers)
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, queue);
criterion_main!(benches);
