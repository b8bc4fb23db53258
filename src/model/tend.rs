//! Looks after the runs of all models, and the answers that they keep: what takes too long is ended, what does not end
//! replaced, what is too old let go of.

use super::{Repository, State};
use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

/// How often; runs have limits of seconds and more.
const EVERY: Duration = Duration::from_millis(500);

/// Looks after what `repository` serves, for ever. A version that has been replaced is not looked after: its runs are those that
/// were under way, and nothing new waits for them; its answers go with it.
pub async fn tend(repository: Arc<Repository>) -> Infallible {
    loop {
        tokio::time::sleep(EVERY).await;
        for (_, _, state) in repository.states() {
            if let State::Ready(model) = state {
                model.tend(Instant::now());
            }
        }
    }
}
