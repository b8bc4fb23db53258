//! Looks after the runs of all models, and the answers that they keep: what takes too long is ended, what does not end
//! replaced, what is too old let go of.

use super::Repository;
use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

/// How often; runs have limits of seconds and more.
const EVERY: Duration = Duration::from_millis(500);

/// Looks after what `repository` serves, for ever, and after what it served for as long as calls wait in it.
pub async fn tend(repository: Arc<Repository>) -> Infallible {
    loop {
        tokio::time::sleep(EVERY).await;
        look(&repository, Instant::now());
    }
}

fn look(repository: &Repository, now: Instant) {
    repository.running().iter().for_each(|model| model.tend(now));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{State, testing::finish},
        schedule::{
            Plan,
            testing::{Script, job, plan_of},
        },
    };

    #[test]
    fn runs_of_a_version_that_was_replaced_or_unloaded_have_their_limit_too() {
        let (name, version) = ("m".into(), "1".into());
        for after in [Some(crate::model::testing::model("m", "1")), None] {
            let (repository, script) = (Repository::default(), Script::default());
            let plan = Plan { run_limit: Some(Duration::from_secs(60)), ..plan_of(&script) };
            let model = finish(plan, &script, None);
            repository.set(&name, &version, &State::Ready(Arc::clone(&model)));
            let gate = script.close_gate();
            let (hangs, hanging) = job(1, 1.0);
            model.scheduler.submit(hangs).unwrap();
            script.wait_for_runs(1);
            match after {
                Some(after) => repository.set(&name, &version, &State::Ready(after)),
                None => drop(repository.retire(&name, &version)),
            }
            for seconds in [100, 200] {
                look(&repository, Instant::now() + Duration::from_secs(seconds));
            }
            let answer = hanging.blocking_recv().unwrap();
            assert!(matches!(answer, Err(crate::error::Error::Internal(_))), "{answer:?}");
            drop(gate);
            // What no call holds is looked after no more.
            let running = repository.running().len();
            drop(model);
            assert_eq!(repository.running().len(), running - 1);
        }
    }
}
