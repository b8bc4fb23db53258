//! Callers for a time, and what became of their requests.

use super::{
    client::{Client, Failure},
    pace::{Pace, Queue},
};
use crate::call::Timing;
use hdrhistogram::Histogram;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// The longest latency that is told from longer ones, in nanoseconds: an hour.
const LONGEST: u64 = 3_600_000_000_000;

/// Significant decimal digits of a latency.
const DIGITS: u8 = 3;

/// How long answers are waited for at the end of a phase.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// What became of the requests of one phase.
#[derive(Debug)]
pub(super) struct Recorder {
    end: Instant,
    /// Nanoseconds of requests that were answered, and of those that were due and not sent.
    latency: Histogram<u64>,
    /// The same of queue and run, where each answer tells.
    stages: Option<Box<(Histogram<u64>, Histogram<u64>)>>,
    /// Requests that were answered.
    answers: u64,
    /// Those of them that were answered before the end.
    in_time: u64,
    unsent: u64,
    errors: BTreeMap<String, u64>,
    deserted: bool,
}

// === impl Recorder ===

impl Recorder {
    /// A recorder for requests until `end`.
    pub(super) fn new(end: Instant) -> Self {
        Self {
            end,
            latency: histogram(),
            stages: None,
            answers: 0,
            in_time: 0,
            unsent: 0,
            errors: BTreeMap::new(),
            deserted: false,
        }
    }

    /// Counts a request that was due at `since` and over at `now`. Only answers have a latency: a server that refuses
    /// quickly is not a fast one.
    pub(super) fn record(&mut self, since: Instant, now: Instant, outcome: Result<Option<Timing>, Failure>) {
        let timing = match outcome {
            Ok(timing) => timing,
            Err(failure) => return self.fail(failure.code().to_owned(), 1),
        };
        self.latency.saturating_record(nanos(now.saturating_duration_since(since)));
        self.answers += 1;
        self.in_time += u64::from(now <= self.end);
        if let Some(Timing { queue, compute }) = timing {
            let stages = self.stages.get_or_insert_with(|| Box::new((histogram(), histogram())));
            stages.0.saturating_record(nanos(queue));
            stages.1.saturating_record(nanos(compute));
        }
    }

    /// Counts requests that failed with `code`.
    pub(super) fn fail(&mut self, code: String, count: u64) {
        if count > 0 {
            *self.errors.entry(code).or_default() += count;
        }
    }

    /// Counts requests that were due and that nobody came to send; `waits` are how long they had waited by the end.
    pub(super) fn unsent(&mut self, waits: &[Duration]) {
        self.unsent += waits.len() as u64;
        waits.iter().for_each(|wait| self.latency.saturating_record(nanos(*wait)));
    }

    /// Latencies in nanoseconds.
    pub(super) fn latency(&self) -> &Histogram<u64> {
        &self.latency
    }

    /// Nanoseconds of queue and run, where each answer told.
    pub(super) fn stages(&self) -> Option<(&Histogram<u64>, &Histogram<u64>)> {
        self.stages.as_deref().map(|(queue, run)| (queue, run))
    }

    /// Requests that were answered, after the end too.
    pub(super) fn answers(&self) -> u64 {
        self.answers
    }

    /// Requests that were answered before the end.
    pub(super) fn in_time(&self) -> u64 {
        self.in_time
    }

    /// Requests that were due and not sent.
    pub(super) fn unsent_count(&self) -> u64 {
        self.unsent
    }

    /// Whether no caller was left at the end: the rate is then that of a part of the time.
    pub(super) fn is_deserted(&self) -> bool {
        self.deserted
    }

    /// Requests that failed, by code.
    pub(super) fn errors(&self) -> &BTreeMap<String, u64> {
        &self.errors
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, DIGITS).expect("the bounds and digits are in range")
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Lets every client ask for `length`, then waits for the last answers. Gives back the clients that still can ask.
pub(super) async fn phase(clients: Vec<Client>, pace: Pace, length: Duration) -> (Vec<Client>, Recorder) {
    let queue = Arc::new(Queue::new(pace, Instant::now(), length));
    let recorder = Arc::new(Mutex::new(Recorder::new(queue.end())));
    let mut callers = JoinSet::new();
    for client in clients {
        callers.spawn(call(client, Arc::clone(&queue), Arc::clone(&recorder)));
    }
    let mut left = Vec::with_capacity(callers.len());
    let all = async {
        while let Some(ended) = callers.join_next().await {
            // A caller that panicked has failed a request and nothing else.
            match ended {
                Ok(Some(client)) => left.push(client),
                Ok(None) => {}
                Err(_) => locked(&recorder).fail("panicked".to_owned(), 1),
            }
        }
    };
    let late = tokio::time::timeout_at((queue.end() + PATIENCE).into(), all).await.is_err();
    let waiting = callers.len() as u64;
    callers.shutdown().await;
    let waits = queue.unsent().await;
    let mut recorder = locked(&recorder);
    recorder.unsent(&waits);
    recorder.deserted = left.is_empty();
    if late {
        recorder.fail("no_answer".to_owned(), waiting);
    }
    let end = recorder.end;
    (left, std::mem::replace(&mut *recorder, Recorder::new(end)))
}

/// One caller: `None` once its connection is lost.
async fn call(mut client: Client, queue: Arc<Queue>, recorder: Arc<Mutex<Recorder>>) -> Option<Client> {
    let mut now = Instant::now();
    while let Some(since) = queue.take(now).await {
        let outcome = client.exchange(None).await;
        now = Instant::now();
        let lost = matches!(outcome, Err(Failure::Broken(_)));
        locked(&recorder).record(since, now, outcome);
        if lost && !client.mend().await {
            return None;
        }
    }
    Some(client)
}

/// One thread records, so nobody ever waits here.
fn locked(recorder: &Mutex<Recorder>) -> MutexGuard<'_, Recorder> {
    recorder.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::pace::Rate;

    fn recorder() -> (Instant, Recorder) {
        let start = Instant::now();
        (start, Recorder::new(start + Duration::from_secs(1)))
    }

    fn at(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    fn close(found: u64, millis: f64) -> bool {
        (found as f64 / 1e6 - millis).abs() <= millis * 0.001
    }

    #[test]
    fn only_answers_have_a_latency_and_each_code_is_counted() {
        let (start, mut recorder) = recorder();
        recorder.record(start, at(start, 5), Ok(None));
        recorder.record(start, at(start, 1), Err(Failure::Refused("overloaded".into())));
        recorder.record(start, at(start, 2), Err(Failure::Refused("overloaded".into())));
        recorder.record(start, at(start, 3), Err(Failure::Broken("reset".into())));
        assert_eq!((recorder.answers(), recorder.latency().len()), (1, 1));
        assert!(close(recorder.latency().max(), 5.0));
        let errors: Vec<_> = recorder.errors().iter().map(|(code, count)| (&**code, *count)).collect();
        assert_eq!(errors, [("connection", 1), ("overloaded", 2)]);
    }

    #[test]
    fn an_answer_after_the_end_has_a_latency_and_is_not_counted_as_throughput() {
        let (start, mut recorder) = recorder();
        recorder.record(at(start, 900), at(start, 1000), Ok(None));
        recorder.record(at(start, 900), at(start, 1100), Ok(None));
        assert_eq!((recorder.answers(), recorder.in_time(), recorder.latency().len()), (2, 1, 2));
    }

    #[test]
    fn stages_are_there_where_answers_tell_them() {
        let (start, mut recorder) = recorder();
        recorder.record(start, at(start, 5), Ok(None));
        assert!(recorder.stages().is_none());
        let timing = Timing { queue: Duration::from_millis(1), compute: Duration::from_millis(3) };
        recorder.record(start, at(start, 5), Ok(Some(timing)));
        let (queue, run) = recorder.stages().unwrap();
        assert!(close(queue.max(), 1.0) && close(run.max(), 3.0));
    }

    /// A server that takes a millisecond for each request, one after the other, and stops for 400 ms after 200 ms. One
    /// caller asks 500 times a second for a second: what each way of counting says of it.
    #[test]
    fn a_pause_of_the_server_is_charged_to_all_who_were_due_in_it() {
        let rate: Rate = "500".parse().unwrap();
        let (start, mut open) = recorder();
        let (_, mut naive) = recorder();
        let (mut free, end) = (Duration::ZERO, Duration::from_secs(1));
        let mut sent = 0;
        while rate.due(sent) < end && free < end {
            let due = rate.due(sent);
            let begun = due.max(free);
            let paused = begun >= Duration::from_millis(200) && free < Duration::from_millis(600);
            free = begun.max(if paused { Duration::from_millis(600) } else { begun }) + Duration::from_millis(1);
            open.record(start + due, start + free, Ok(None));
            naive.record(start + begun, start + free, Ok(None));
            sent += 1;
        }
        assert_eq!(sent, 500);
        let at = |recorder: &Recorder, quantile| recorder.latency().value_at_quantile(quantile) as f64 / 1e6;
        // The backlog of 200 requests is worked off at a millisecond each.
        assert!((at(&open, 0.99) - 395.0).abs() < 10.0, "{}", at(&open, 0.99));
        assert!(at(&open, 0.5) > 20.0, "{}", at(&open, 0.5));
        assert!(at(&naive, 0.99) < 1.1, "one request saw the pause, and was forgiven: {}", at(&naive, 0.99));
    }

    #[test]
    fn requests_that_were_never_sent_are_in_the_tail() {
        let (start, mut recorder) = recorder();
        for _ in 0..90 {
            recorder.record(start, at(start, 1), Ok(None));
        }
        recorder.unsent(&[Duration::from_millis(500); 10]);
        assert_eq!((recorder.answers(), recorder.unsent_count()), (90, 10));
        assert!(close(recorder.latency().value_at_quantile(0.95), 500.0));
    }
}
