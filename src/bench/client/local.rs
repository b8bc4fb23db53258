//! A caller without a protocol: it submits to the scheduler of a model in this process.

use super::Failure;
use crate::{
    call::{Facts, Timing},
    model::Model,
    schedule::{Company, Job, ReplyTo},
    tensor::Tensors,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// How long a job may wait for its run.
const PATIENCE: Duration = Duration::from_secs(30);

/// One caller of the engine.
pub(in crate::bench) struct Local {
    model: Arc<Model>,
    inputs: Tensors,
    rows: usize,
}

impl Local {
    /// A caller that runs `model` on `inputs`, which bring `rows` rows to a batch.
    pub(in crate::bench) fn new(model: Arc<Model>, inputs: Tensors, rows: usize) -> Self {
        Self { model, inputs, rows }
    }

    pub(in crate::bench) async fn exchange(&mut self) -> Result<Timing, Failure> {
        let (sender, receiver) = oneshot::channel();
        let queued = Instant::now();
        let job = Job {
            inputs: self.inputs.clone(),
            rows: self.rows,
            priority: 0,
            turn: 0,
            company: Company::default(),
            layout: None,
            deadline: queued + PATIENCE,
            queued,
            reply: ReplyTo::Once(sender.into()),
            facts: Arc::new(Facts::default()),
        };
        let refused = |error: crate::error::Error| Failure::Refused(error.code().name().to_owned());
        self.model.scheduler.submit(job).map_err(refused)?;
        match receiver.await {
            Ok(answer) => answer.map(|answer| answer.timing).map_err(refused),
            // The queue drops jobs whose deadline has passed.
            Err(_) => Err(Failure::Refused("deadline_exceeded".to_owned())),
        }
    }
}
