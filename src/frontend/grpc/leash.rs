//! What ends a stream that answers beside the stack, however long its client would listen: drain, and `grpc-timeout`.

use crate::{
    error::{Error, Stage},
    frontend::{Connection, Phase},
};
use std::time::Duration;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// Ends a stream for reasons that are not its own.
#[derive(Debug)]
pub(super) struct Leash {
    phase: watch::Receiver<Phase>,
    deadline: Option<Instant>,
}

impl Leash {
    /// A leash of at most `timeout`, if the client gave one.
    pub(super) fn new(connection: &Connection, timeout: Option<Duration>) -> Self {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        Self { phase: connection.frontend.phase.clone(), deadline }
    }

    /// Returns why the stream has to end, when it has to.
    pub(super) async fn pulled(&mut self) -> Error {
        let late = async {
            match self.deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // A process without a phase is on its way out too.
            _ = self.phase.wait_for(|phase| *phase != Phase::Serving) => Error::ShuttingDown,
            () = late => Error::DeadlineExceeded { stage: Stage::Streaming },
        }
    }
}
