//! Quotas and slots that several processes share, kept in Redis or Valkey.
//!
//! One task owns the one connection. It takes orders from a bounded channel, sends all that wait in one round trip, and
//! hands out what was granted; when the connection fails it makes a new one, for as long as it takes. What is decided
//! while it is away is the limiter's business, and what slots are is that of [`shared_slots`](super::shared_slots). The
//! rate is the same GCRA as in [`gcra`](super::gcra), in a script, by the server's clock; times that travel are relative,
//! so that clocks need not agree.

use super::{
    gcra::{Rate, nanos},
    lease::{Draw, Lease},
    redis_address::{Address, Loss},
    shared_slots::SlotOrder,
};
use crate::trust::Trust;
use redis::{RedisError, aio::MultiplexedConnection};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

/// Orders on their way; one beyond them is not made, and its calls are decided as if Redis were away.
const ORDERS: usize = 4096;
/// Orders in one round trip.
const TOGETHER: usize = 128;
/// How long Redis may take to answer, or to be connected to, before it counts as away.
const PATIENCE: Duration = Duration::from_millis(500);
/// Reasons that are remembered as told.
const REASONS: usize = 8;
/// First and longest pause between two attempts to connect.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How long nobody leases slots after it came back, perhaps without its data: until then the others have reconnected and
/// told what is in use. [`RETRY`] and [`PATIENCE`] at their longest, and a little for the telling. A process that starts
/// just then knows nothing of it and does not wait.
const SETTLE: Duration = Duration::from_secs(2);
/// Times begin in 2025, so that microseconds keep their precision in a double.
///
/// A key remembers when it was born. Whoever has seen an earlier one (the server came back without its data) brings what it
/// knows of it: the highest of these is the base, and what was granted or owed since comes on top.
const SCRIPT: &str = r"
local one, tolerance, need, want, debt, back, ahead, known, seen = unpack(ARGV)
one, tolerance, need, want = tonumber(one), tonumber(tolerance), tonumber(need), tonumber(want)
debt, back, ahead = tonumber(debt), tonumber(back), tonumber(ahead)
known, seen = tonumber(known), tonumber(seen)
local time = redis.call('TIME')
local now = (tonumber(time[1]) - 1735689600) * 1000000 + tonumber(time[2])
local stored = redis.call('HMGET', KEYS[1], 'tat', 'born', 'base')
local tat, born, base = tonumber(stored[1] or now), tonumber(stored[2] or now), tonumber(stored[3] or now)
if seen ~= born and now + known > math.max(base, now) then
  tat = math.max(tat, now) + now + known - math.max(base, now)
  base = now + known
end
tat = math.max(tat - math.min(back * one, ahead), now) + debt * one
local granted, wait = 0, 0
local room = math.max(math.floor((now + tolerance - tat) / one + 0.000001), 0)
if need > 0 and need * one > tolerance then
  if tat <= now then granted = need else wait = tat - now end
elseif room >= need then
  granted = math.min(math.max(need, want), room)
else
  wait = tat + need * one - now - tolerance
end
tat = tat + granted * one
if tat > now then
  redis.call('HSET', KEYS[1], 'tat', string.format('%.3f', tat), 'born', string.format('%.0f', born),
    'base', string.format('%.3f', base))
  redis.call('PEXPIRE', KEYS[1], math.ceil((tat - now) / 1000) + 1000)
else
  redis.call('DEL', KEYS[1])
end
return { granted, math.ceil(tat - now), math.ceil(wait), born }
";

/// Where shared limits are, and what happens without them (`limits.shared`).
#[derive(Clone, Debug)]
pub struct Settings {
    /// `redis://…`, or `rediss://…` over TLS; may hold a password.
    pub url: Secret,
    /// Who vouches for its certificate, over TLS.
    pub trust: Trust,
    /// What happens while it is away.
    pub when_away: WhenAway,
    /// How long slots stay a process's own after it was last heard of.
    pub lease: Duration,
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Box<str>);

/// What happens to calls while shared limits are away.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum WhenAway {
    /// Each process grants this share of each limit, by itself.
    Share(f64),
    /// Calls that a shared limit counts are refused.
    Refuse,
}

/// Shared limits, for those who draw and lease. Clones share one connection.
#[derive(Clone, Debug)]
pub struct Shared {
    pub(super) when_away: WhenAway,
    pub(super) lease: Duration,
    orders: mpsc::Sender<Order>,
    presence: Arc<Presence>,
    pub(super) start: Instant,
}

/// What everybody may know of the connection.
#[derive(Debug, Default)]
struct Presence {
    present: AtomicBool,
    /// Counts connections.
    epoch: AtomicU64,
    /// From when on slots may be leased, in nanoseconds since start.
    settles: AtomicU64,
}

/// The task's half.
#[derive(Debug)]
pub struct Link {
    address: Address,
    orders: mpsc::Receiver<Order>,
    presence: Arc<Presence>,
    told: watch::Sender<bool>,
    /// What was last said of it; nothing before the first attempt to connect has ended.
    said: Option<bool>,
    /// Why it was said to be away, since it was last said to be there: what it refuses for, each reason once.
    reasons: Vec<String>,
    /// It refused what it was asked: it is said to be there when it has obeyed, and not when it is connected to.
    refused: bool,
    start: Instant,
}

/// What a script answers: what was granted; of a draw also how far ahead the theoretical arrival time is, how long to wait,
/// in microseconds, and which incarnation of the key that is of.
type Answer = (u64, u64, u64, u64);

/// Something to be asked.
#[derive(Debug)]
pub(super) enum Order {
    Draw { lease: Arc<Lease>, rate: Rate, draw: Draw },
    Slots(SlotOrder),
}

// === impl Settings ===

impl Settings {
    /// # Errors
    ///
    /// What is wrong with the address, without the address: it may hold a password.
    pub fn check(&self) -> Result<(), String> {
        Address::new(self).map(drop)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

// === impl Shared ===

impl Shared {
    /// The handle, and the task that it sends to. Times are counted from `start`.
    ///
    /// # Errors
    ///
    /// Why the address is none, without the address: it may hold a password.
    pub fn new(settings: &Settings, start: Instant) -> Result<(Self, Link), String> {
        let address = Address::new(settings)?;
        let (orders, receiver) = mpsc::channel(ORDERS);
        // Away until it has been seen: the first calls do not wait for a connection that may never be.
        let presence = Arc::new(Presence::default());
        let told = watch::Sender::new(false);
        let link = Link {
            address,
            orders: receiver,
            presence: Arc::clone(&presence),
            told,
            said: None,
            reasons: Vec::new(),
            refused: false,
            start,
        };
        let Settings { when_away, lease, .. } = *settings;
        Ok((Self { when_away, lease, orders, presence, start }, link))
    }

    /// Whether it is of use to ask.
    pub(super) fn is_present(&self) -> bool {
        self.presence.present.load(Ordering::Acquire)
    }

    /// Which connection is there, or was there last.
    pub(super) fn epoch(&self) -> u64 {
        self.presence.epoch.load(Ordering::Acquire)
    }

    /// Whether slots may be leased: it is there, and all who share them have had the time to tell what they use.
    pub(super) fn is_settled(&self, now: u64) -> bool {
        self.is_present() && now >= self.presence.settles.load(Ordering::Acquire)
    }

    /// Whether there is room for what can wait.
    pub(super) fn has_room(&self) -> bool {
        self.orders.capacity() > ORDERS / 2
    }

    /// Sends a draw on its way; never waits.
    pub(super) fn send(&self, lease: &Arc<Lease>, rate: Rate, draw: Draw) {
        self.send_order(Order::Draw { lease: Arc::clone(lease), rate, draw });
    }

    /// Sends an order on its way; never waits.
    pub(super) fn send_order(&self, order: Order) {
        if let Err(error) = self.orders.try_send(order) {
            error.into_inner().failed();
        }
    }

    /// Nanoseconds since start.
    pub(super) fn now(&self) -> u64 {
        nanos(self.start.elapsed())
    }
}

// === impl Link ===

impl Link {
    /// Whether Redis is there, now and from now on.
    pub fn presence(&self) -> watch::Receiver<bool> {
        self.told.subscribe()
    }

    /// Serves orders until nobody can make one any more.
    pub async fn serve(mut self) {
        let mut pause = RETRY.0;
        loop {
            match self.connect().await {
                Ok(connection) => {
                    self.arrived();
                    match self.obey(connection).await {
                        Ok(()) => return,
                        Err(error) => {
                            let loss = Loss::from(error);
                            if !self.refused {
                                pause = RETRY.0;
                            }
                            self.refused |= loss.is_refusal();
                            self.lost(&loss);
                        }
                    }
                }
                Err(loss) => self.lost(&loss),
            }
            if !self.refuse_for(pause).await {
                return;
            }
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// A connection to a server that answers, and lets us run scripts.
    async fn connect(&self) -> Result<MultiplexedConnection, Loss> {
        let mut connection = self.address.connect(PATIENCE).await?;
        let _: () = redis::cmd("PING").query_async(&mut connection).await?;
        let _: redis::Value = redis::cmd("EVAL").arg("return 1").arg(0).query_async(&mut connection).await?;
        Ok(connection)
    }

    /// Ok once nobody can ask any more.
    async fn obey(&mut self, mut connection: MultiplexedConnection) -> Result<(), RedisError> {
        loop {
            let first = match timeout(RETRY.1, self.orders.recv()).await {
                Ok(Some(order)) => order,
                Ok(None) => return Ok(()),
                Err(_) => {
                    // Nobody asks: whether it is still there is told before somebody needs it.
                    let _: () = redis::cmd("PING").query_async(&mut connection).await?;
                    continue;
                }
            };
            let mut orders = vec![first];
            while orders.len() < TOGETHER
                && let Ok(order) = self.orders.try_recv()
            {
                orders.push(order);
            }
            let now = self.now();
            let mut pipeline = redis::pipe();
            orders.iter().for_each(|order| _ = pipeline.add_command(order.command(now)));
            match pipeline.query_async::<Vec<Answer>>(&mut connection).await {
                Ok(answers) if answers.len() == orders.len() => {
                    let now = self.now();
                    orders.into_iter().zip(answers).for_each(|(order, answer)| order.answered(answer, now));
                    self.obeyed();
                }
                Ok(_) => {
                    orders.into_iter().for_each(Order::failed);
                    return Err((redis::ErrorKind::UnexpectedReturnType, "as many answers as questions").into());
                }
                Err(error) => {
                    // Before anybody hears of it: nobody is to ask again.
                    self.presence.present.store(false, Ordering::Release);
                    orders.into_iter().for_each(Order::failed);
                    return Err(error);
                }
            }
        }
    }

    /// Fails orders for as long as `pause`; false once nobody can make one any more.
    async fn refuse_for(&mut self, pause: Duration) -> bool {
        let until = sleep(pause);
        tokio::pin!(until);
        loop {
            tokio::select! {
                () = &mut until => return true,
                order = self.orders.recv() => match order {
                    Some(order) => order.failed(),
                    None => return false,
                },
            }
        }
    }

    /// It is connected to: orders are sent from now on.
    fn arrived(&mut self) {
        if self.presence.epoch.fetch_add(1, Ordering::AcqRel) > 0 {
            self.presence.settles.store(self.now().saturating_add(nanos(SETTLE)), Ordering::Release);
        }
        self.presence.present.store(true, Ordering::Release);
        if !self.refused {
            self.say_there();
        }
    }

    /// It did what it was asked.
    fn obeyed(&mut self) {
        if std::mem::take(&mut self.refused) {
            self.say_there();
        }
    }

    fn say_there(&mut self) {
        self.told.send_replace(true);
        self.reasons.clear();
        if self.said.replace(true) != Some(true) {
            tracing::info!("shared limits: Redis is there, limits are shared");
        }
    }

    fn lost(&mut self, loss: &Loss) {
        self.presence.present.store(false, Ordering::Release);
        self.told.send_replace(false);
        let why = loss.why();
        // A refusal is news beside another reason, but once: whoever is connected to and refused would be told for ever.
        let is_new = loss.is_refusal() && self.reasons.len() < REASONS && self.reasons.iter().all(|told| *told != why);
        // One that is not there from the start is news too: a wrong address or password never goes away by itself.
        if self.said.replace(false) != Some(false) || is_new {
            tracing::warn!(why = &*why, "shared limits: Redis is away, each process decides by itself");
        } else {
            tracing::debug!(why = &*why, "shared limits: Redis is still away");
        }
        if is_new {
            self.reasons.push(why.into_owned());
        }
    }

    fn now(&self) -> u64 {
        nanos(self.start.elapsed())
    }
}

impl Order {
    fn command(&self, now: u64) -> redis::Cmd {
        let (lease, rate, draw) = match self {
            Self::Draw { lease, rate, draw } => (lease, rate, *draw),
            Self::Slots(order) => return order.command(),
        };
        let (one, tolerance) = rate.micros();
        let Draw { need, want, debt, back, until, tat, seen } = draw;
        let relative = |moment: u64| moment.saturating_sub(now) / 1000;
        let mut command = redis::cmd("EVAL");
        command.arg(SCRIPT).arg(1).arg(&*lease.key);
        // As text, so that small fractions of a microsecond are not lost.
        command.arg(format!("{one:.9}")).arg(format!("{tolerance:.3}"));
        command.arg(need).arg(want).arg(debt).arg(back).arg(relative(until)).arg(relative(tat)).arg(seen);
        command
    }

    fn answered(self, (granted, ahead, wait, born): Answer, now: u64) {
        match self {
            Self::Draw { lease, draw, .. } => {
                let [ahead, wait] = [ahead, wait].map(Duration::from_micros);
                lease.granted(draw, granted, ahead, wait, born, now);
            }
            Self::Slots(order) => order.answered(granted, now),
        }
    }

    fn failed(self) {
        match self {
            Self::Draw { lease, draw, .. } => lease.failed(draw),
            Self::Slots(order) => order.failed(),
        }
    }
}

impl From<SlotOrder> for Order {
    fn from(order: SlotOrder) -> Self {
        Self::Slots(order)
    }
}

#[cfg(test)]
#[path = "redis_tests.rs"]
mod tests;
