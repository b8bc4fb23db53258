//! A line on a terminal that says how far a bench has come.

use std::{
    io::{self, IsTerminal, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How often the line is written: nothing that a measurement would notice.
const EVERY: Duration = Duration::from_millis(500);

/// Characters of the bar.
const WIDTH: usize = 24;

/// What is shown, if standard error is a terminal.
#[derive(Debug)]
pub(super) struct Progress {
    shown: Option<Shown>,
}

#[derive(Debug)]
struct Shown {
    labels: mpsc::Sender<String>,
    over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

// === impl Progress ===

impl Progress {
    /// Begins a bench of `runs` runs that take `each`.
    pub(super) fn start(runs: usize, each: Duration) -> Self {
        let shown = io::stderr().is_terminal().then(|| Shown::start(runs, each)).flatten();
        Self { shown }
    }

    /// The next run begins.
    pub(super) fn next(&self, label: &str) {
        if let Some(shown) = &self.shown {
            // Fails only if the line's thread is gone, and then nobody reads it.
            let _ = shown.labels.send(label.to_owned());
        }
    }

    /// All runs are over: the line is wiped.
    pub(super) fn end(self) {
        if let Some(shown) = self.shown {
            shown.over.store(true, Ordering::Release);
            drop(shown.labels);
            let _ = shown.thread.join();
        }
    }
}

impl Shown {
    fn start(runs: usize, each: Duration) -> Option<Self> {
        let (labels, receiver) = mpsc::channel::<String>();
        let over = Arc::new(AtomicBool::new(false));
        let write = {
            let over = Arc::clone(&over);
            move || {
                let (mut label, mut run, mut begun) = (String::new(), 0, Instant::now());
                while !over.load(Ordering::Acquire) {
                    match receiver.recv_timeout(EVERY) {
                        Ok(next) => (label, run, begun) = (next, run + 1, Instant::now()),
                        Err(mpsc::RecvTimeoutError::Timeout) => {}
                        Err(mpsc::RecvTimeoutError::Disconnected) => break,
                    }
                    let line = line(run, runs, begun.elapsed(), each, &label);
                    let _ = write!(io::stderr(), "\r\x1b[K{line}").and_then(|()| io::stderr().flush());
                }
                let _ = write!(io::stderr(), "\r\x1b[K");
            }
        };
        // Without a thread there is no line; the bench does not need one.
        let thread = std::thread::Builder::new().name("progress".to_owned()).spawn(write).ok()?;
        Some(Self { labels, over, thread })
    }
}

/// `[======                  ]  25 %  8 s left  …`, in run number `run` of `runs`, which began `since` ago.
fn line(run: usize, runs: usize, since: Duration, each: Duration, label: &str) -> String {
    let part = if each.is_zero() { 0.0 } else { (since.as_secs_f64() / each.as_secs_f64()).min(1.0) };
    let done = ((run.saturating_sub(1) as f64 + part) / runs.max(1) as f64).min(1.0);
    let filled = (done * WIDTH as f64) as usize;
    let left = each.mul_f64((1.0 - done) * runs as f64).as_secs_f64().ceil();
    format!("[{:WIDTH$}] {:3.0} %  {left} s left  {label}", "=".repeat(filled), done * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_it_has_come_and_what_is_left() {
        let each = Duration::from_secs(4);
        let text = line(2, 4, Duration::from_secs(2), each, "a, 8 callers");
        assert_eq!(text, "[=========               ]  38 %  10 s left  a, 8 callers");
        assert!(line(4, 4, Duration::from_secs(9), each, "").starts_with("[========================] 100 %  0 s left"));
        assert!(line(0, 0, Duration::ZERO, Duration::ZERO, "").contains("  0 %"));
    }
}
