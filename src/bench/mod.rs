//! `sluicegate bench`: how fast a running server answers, or the engine in this process.
//!
//! The client shares its machine with what it measures, so it is built to be cheap: one thread (on a terminal a second one
//! writes a line twice a second), one event loop, requests written once before the first is sent. Of an answer only the
//! status is looked at, except for the very first of each source, which is checked as a whole.
//!
//! Two ways to ask. In a *closed loop* so many callers each send their next request when the last is answered: that
//! tells how much a server can do. In an *open loop* requests are due at a steady rate, whether or not earlier ones are
//! answered, and their latency counts from the moment they were due: a server that stops for a second is charged with
//! every request that was due in it, which a closed loop forgives (coordinated omission).
//!
//! ```text
//! arguments -> what was asked for        input   -> a request in every form      client/ -> one caller of each surface
//! source    -> what is measured          pace    -> when requests are due        measure -> callers for a time
//! inquire   -> metadata and statistics   check   -> the first answer             report  -> tables and JSON
//! ```

mod address;
mod arguments;
mod bare;
mod check;
mod client;
mod engine;
mod input;
mod inquire;
mod measure;
mod pace;
mod progress;
mod report;
mod source;

pub use arguments::Arguments;

use measure::{PATIENCE, Recorder};
use pace::Pace;
use progress::Progress;
use report::{Asked, Report, Run};
use source::Source;
use std::{fmt, time::Duration};
use tokio::{runtime, task::JoinSet};

/// Polls between two looks at the sockets: as on a lane, so that the answers of one turn are taken in one turn.
const EVENT_INTERVAL: u32 = 256;

/// Why nothing can be measured, in words for whoever asked for it.
#[derive(Debug, PartialEq, Eq)]
pub struct BenchError(String);

/// What was measured.
#[derive(Debug)]
pub struct Outcome {
    /// A table, or JSON if that was asked for; ends with a line break.
    pub text: String,
    /// False if a run had not a single answer, or all its callers lost their connections before its end.
    pub answered: bool,
}

/// How long each part of a run lasts.
#[derive(Clone, Copy, Debug)]
struct Lengths {
    warmup: Duration,
    measured: Duration,
}

// === impl BenchError ===

impl BenchError {
    fn new(error: impl fmt::Display) -> Self {
        Self(error.to_string())
    }
}

impl fmt::Display for BenchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BenchError {}

/// Measures what `arguments` ask for. Blocks; this thread becomes the client, and with `--engine` the engine's lane too.
///
/// # Errors
///
/// [`BenchError`] if there is no server at the address, the model is unknown, its inputs cannot be made up, or the first
/// answer is none.
pub fn run(arguments: &Arguments) -> Result<Outcome, BenchError> {
    let report = if arguments.bare {
        bare::run(arguments)?
    } else {
        let mut runtime = runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().event_interval(EVENT_INTERVAL).build().map_err(BenchError::new)?;
        if arguments.engine { engine::run(&runtime, arguments)? } else { runtime.block_on(servers(arguments))? }
    };
    let answered = report.runs.iter().all(|run| run.answers > 0 && !run.deserted);
    let text = if arguments.json { report.json() } else { report.table() };
    Ok(Outcome { text, answered })
}

async fn servers(arguments: &Arguments) -> Result<Report, BenchError> {
    // While there is a task to run, the runtime looks at its sockets and does not wait for them. To wake a thread that
    // waits takes the kernel microseconds, and it is the server that pays for them, with each answer to a client that has
    // caught up. Clients on other machines cost it nothing of the kind.
    let mut spinning = JoinSet::new();
    if arguments.spin {
        spinning.spawn(spin());
    }
    let mut sources = Vec::new();
    for address in arguments.url.iter().chain(&arguments.against) {
        let source = Source::server(address, arguments);
        sources.push(patiently(&address.to_string(), source).await?);
    }
    campaign(&sources, arguments).await
}

/// What `server` does, if it does it at all: one that takes connections and says nothing must not hold its caller for ever.
async fn patiently<T>(server: &str, work: impl Future<Output = Result<T, BenchError>>) -> Result<T, BenchError> {
    let silent = |_| BenchError(format!("{server}: no answer within {PATIENCE:?}"));
    tokio::time::timeout(PATIENCE, work).await.map_err(silent)?
}

async fn spin() {
    loop {
        tokio::task::yield_now().await;
    }
}

/// Every number of callers, every round, every source: sources take turns within a round, so that all see the same
/// machine, and who comes first changes, so that none always has the cooler core.
async fn campaign(sources: &[Source], arguments: &Arguments) -> Result<Report, BenchError> {
    let lengths = Lengths { warmup: arguments.warmup.0, measured: arguments.duration.0 };
    let pace = arguments.pace();
    let rounds = arguments.rounds.get();
    let mut first = Vec::with_capacity(sources.len());
    for source in sources {
        first.push(patiently(source.name(), source.first()).await?);
    }
    let total = sources.len() * rounds * arguments.concurrency.len();
    let progress = Progress::start(total, lengths.warmup + lengths.measured);
    let mut runs = Vec::with_capacity(total);
    for callers in arguments.concurrency.iter().map(|callers| callers.get()) {
        for round in 1..=rounds {
            let mut order: Vec<_> = (0..sources.len()).collect();
            if round % 2 == 0 {
                order.reverse();
            }
            let begun = runs.len();
            for index in order {
                let source = &sources[index];
                progress.next(&format!("{}, {callers} callers, round {round}", source.name()));
                let (recorder, stages) = once(source, callers, pace, lengths).await?;
                let asked = Asked { name: source.name(), source: index, callers, round, rows: source.rows() };
                runs.push(Run::new(asked, &recorder, stages, lengths.measured));
            }
            runs[begun..].sort_by_key(|run| run.source);
        }
    }
    progress.end();
    let sources = sources.iter().zip(first).map(|(source, answer)| (source.name().to_owned(), answer)).collect();
    Ok(Report::new(arguments, sources, runs))
}

/// One run: connects, warms up, measures.
async fn once(
    source: &Source,
    callers: usize,
    pace: Pace,
    lengths: Lengths,
) -> Result<(Recorder, Option<inquire::Stages>), BenchError> {
    let mut clients = patiently(source.name(), source.connect(callers)).await?;
    if !lengths.warmup.is_zero() {
        (clients, _) = measure::phase(clients, pace, lengths.warmup).await;
    }
    let before = source.tally().await;
    let (_, recorder) = measure::phase(clients, pace, lengths.measured).await;
    let after = source.tally().await;
    let stages = before.zip(after).and_then(|(before, after)| after.since(before));
    Ok((recorder, stages))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_says_nothing_is_not_waited_for_for_ever() {
        let silent = patiently::<()>("http://a:1", std::future::pending()).await.unwrap_err();
        assert_eq!(silent.to_string(), "http://a:1: no answer within 30s");
        assert_eq!(patiently("http://a:1", async { Ok(7) }).await, Ok(7));
    }
}
