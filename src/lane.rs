//! Lanes: single-threaded runtimes, each with its own connections and no work stealing.
//!
//! A connection stays on the lane it was dealt to, with its TLS, parsing and encoding. The runs of
//! small models happen on the lane too (`schedule::turn`); those of large ones on threads of their own.
//! Lanes know nothing of listeners: the control runtime deals sockets to them.

use crate::{
    frontend::{
        Frontend,
        accept::{self, Accepted},
    },
    schedule::turn,
    shutdown::Open,
};
use std::{
    io,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};
use tokio::{runtime, sync::mpsc};

/// Sockets that wait for one lane. Beyond it the next lane is tried, then the socket is closed.
const DEALT: usize = 1024;

/// Polls between two looks at the sockets. tokio's default of 61 cuts the turn of 64 ready
/// connections in two: p99/p50 was 1.6 to 1.8, and 1.3 at this value (architecture section 10).
const EVENT_INTERVAL: u32 = 256;

/// How lanes are run (`runtime.kind`, `runtime.lanes`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settings {
    /// This many single-threaded runtimes.
    Lanes(NonZeroUsize),
    /// One runtime whose this many threads steal work. There are no turns.
    WorkStealing(NonZeroUsize),
}

/// A socket on its way to a lane.
struct Deal {
    accepted: Accepted,
    frontend: Arc<Frontend>,
}

/// All lanes of the process. Dropping it stops them and everything on them.
#[derive(Debug)]
pub struct Lanes {
    dealers: Vec<mpsc::Sender<Deal>>,
    threads: Vec<thread::JoinHandle<()>>,
    next: AtomicUsize,
    turns: Option<turn::Lanes>,
}
