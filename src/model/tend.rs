//! Looks after the runs of all models: what takes too long is ended, what does not end replaced.

use super::{Repository, State};
use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

/// How often; runs have limits of seconds and more.
const EVERY: Duration = Duration::from_millis(500);

/// Looks after what `repository` serves, for ever. A version that has been replaced is not looked after: its runs are those that
/// were under way, and nothing new waits for them.
pub async fn tend(repository: Arc<Repository>) -> Infallible {
    loop {
        tokio::time::sleep(EVERY).await;
        for (_, _, state) in repository.states() {
            if let State::Ready(model) = state {
                model.scheduler.tend(Instant::now());
            }
        }
    }
}
