//! Bounds the calls in flight, and with them the bodies held, until each reply is over.
//!
//! Does not queue: what finds no slot is refused. It knows nothing of memory or of a model's own queue. Where identities
//! have slots over several processes, a call may have to wait until those are asked, for a bounded time.

use super::{
    per_identity::PerIdentity,
    pool::Pool,
    rate_limit::{Charged, go_on},
};
use crate::{
    call::{Call, Identity, Intent, Observer, Reply},
    error::{Cap, Error, Limit},
    limit::{
        Outcome,
        shared_slots::{SharedSlot, SharedSlots},
    },
};
use foldhash::HashMap;
use std::{
    num::NonZeroU32,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tower::{Layer, Service};

/// What an identity at its own cap waits before it tries again: its calls end when they end, so the least that the
/// protocols can say (contract 10 section 2).
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The slots of the process (`limits.concurrency`, contract 10 section 5). One for all lanes.
#[derive(Debug)]
pub struct Slots {
    calls: Pool,
    inspect: Pool,
    identities: Option<Identities>,
    /// Shares of a full queue, by group.
    weights: HashMap<Arc<str>, NonZeroU32>,
}

/// Where the slots of identities are counted.
#[derive(Debug)]
enum Identities {
    /// In this process.
    Own(PerIdentity),
    /// In all that share them.
    Shared(Arc<SharedSlots>),
}

/// One slot. Dropping it gives it back.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
    intent: Intent,
    identity: Option<Counted>,
}

/// What an identity holds with a slot.
#[derive(Debug)]
enum Counted {
    Own(Arc<str>),
    Shared { _slot: SharedSlot },
}

/// Makes [`Admit`].
#[derive(Clone, Debug)]
pub struct AdmitLayer {
    slots: Arc<Slots>,
}

/// Holds a slot until the reply is over, which for a stream is not when it starts.
#[derive(Clone, Debug)]
pub struct Admit<S> {
    inner: S,
    slots: Arc<Slots>,
}

// === impl Slots ===

impl Slots {
    /// `calls` slots for work, `inspect` more that only [`Intent::Inspect`] and [`Intent::Metrics`] use, so that operators can look during
    /// overload, and at most `per_identity` slots for work per identity.
    pub fn new(calls: usize, inspect: usize, per_identity: Option<usize>) -> Self {
        Self {
            calls: Pool::new(calls),
            inspect: Pool::new(inspect),
            identities: per_identity.map(|limit| Identities::Own(PerIdentity::new(limit))),
            weights: HashMap::default(),
        }
    }

    /// The same, with slots of identities that are counted over several processes together.
    #[must_use]
    pub fn sharing(self, identities: Arc<SharedSlots>) -> Self {
        Self { identities: Some(Identities::Shared(identities)), ..self }
    }

    /// The same, with shares of a full queue for members of groups (`limits.weights`); the largest of an identity counts,
    /// and 1 where it has none.
    #[must_use]
    pub fn with_weights(mut self, weights: impl IntoIterator<Item = (Arc<str>, NonZeroU32)>) -> Self {
        self.weights = weights.into_iter().collect();
        self
    }

    /// How many times as much as others `identity` gets of a full queue.
    fn share(&self, identity: &Identity) -> u32 {
        if self.weights.is_empty() {
            return 1;
        }
        identity.groups().iter().filter_map(|group| self.weights.get(group)).max().map_or(1, |weight| weight.get())
    }

    /// Takes a slot for one call of `identity`, now or not at all; later only where other processes have to be asked.
    ///
    /// Refuses with [`Error::Overloaded`] if none is free, and with [`Error::RateLimited`] if `identity` has all that it may
    /// have.
    pub fn acquire(self: &Arc<Self>, identity: &Identity, intent: Intent) -> Outcome<Slot> {
        let (pool, limit) = self.pool(intent);
        if !pool.take() {
            return Outcome::Refused(Error::Overloaded { limit });
        }
        // From here on the slot is held: an early return gives it back.
        let mut slot = Slot { slots: Arc::clone(self), intent, identity: None };
        match self.identities.as_ref().filter(|_| intent != Intent::Inspect) {
            None => {}
            Some(Identities::Own(identities)) => {
                if !identities.take(identity.id()) {
                    return Outcome::Refused(Error::RateLimited { retry_after: RETRY_AFTER, cap: Cap::Calls });
                }
                slot.identity = Some(Counted::Own(Arc::clone(identity.id())));
            }
            Some(Identities::Shared(identities)) => match identities.take(identity.id()) {
                Outcome::Free => {}
                Outcome::Charged(shared) => slot.identity = Some(Counted::Shared { _slot: shared }),
                Outcome::Refused(error) => return Outcome::Refused(error),
                Outcome::Later(decision) => {
                    return Outcome::Later(Box::pin(async move {
                        slot.identity = decision.await?.map(|shared| Counted::Shared { _slot: shared });
                        Ok(Some(slot))
                    }));
                }
            },
        }
        Outcome::Charged(slot)
    }

    /// Slots in use, for work and for looking.
    pub fn in_use(&self) -> (usize, usize) {
        (self.calls.taken(), self.inspect.taken())
    }

    fn pool(&self, intent: Intent) -> (&Pool, Limit) {
        match intent {
            Intent::Inspect | Intent::Metrics => (&self.inspect, Limit::Inspect),
            Intent::Infer | Intent::Generate | Intent::Manage => (&self.calls, Limit::Calls),
        }
    }
}

// === impl Slot ===

impl Drop for Slot {
    fn drop(&mut self) {
        // One that is shared gives itself back.
        if let (Some(Identities::Own(identities)), Some(Counted::Own(identity))) =
            (&self.slots.identities, self.identity.take())
        {
            identities.give_back(identity);
        }
        self.slots.pool(self.intent).0.give_back();
    }
}

/// No behaviour, only a lifetime.
impl Observer for Slot {}

// === impl Admit ===

impl AdmitLayer {
    /// Takes slots out of `slots`.
    pub const fn new(slots: Arc<Slots>) -> Self {
        Self { slots }
    }
}

impl<S> Layer<S> for AdmitLayer {
    type Service = Admit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Admit { inner, slots: Arc::clone(&self.slots) }
    }
}

impl<S, I> Service<Call<Arc<Identity>, I>> for Admit<S>
where
    S: Service<Call<Arc<Identity>, I>, Response = Reply, Error = Error> + Clone + Send + 'static,
    S::Future: Send,
    I: Send + 'static,
{
    type Response = Reply;
    type Error = Error;
    type Future = Charged<S::Future, Slot>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Call<Arc<Identity>, I>) -> Self::Future {
        let outcome = self.slots.acquire(&call.sender, call.head.intent);
        if !matches!(outcome, Outcome::Refused(_)) {
            call.head.facts.set_share(self.slots.share(&call.sender));
        }
        go_on(outcome, &mut self.inner, call)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::{Inspect, Scope},
        error::Code,
        layer::fixture::{Below, chunk, decoded, identity, infer, inspect, stream, streamed, whole},
    };
    use futures_util::FutureExt;
    use std::sync::Mutex;
    use tower::ServiceExt;

    fn slots(calls: usize, per_identity: Option<usize>) -> Arc<Slots> {
        Arc::new(Slots::new(calls, 1, per_identity))
    }

    fn acquired(slots: &Arc<Slots>, id: &str) -> Option<Slot> {
        match slots.acquire(&identity(id), Intent::Infer) {
            Outcome::Charged(slot) => Some(slot),
            Outcome::Free | Outcome::Refused(_) | Outcome::Later(_) => None,
        }
    }

    fn nobody_is_counted(slots: &Slots) -> bool {
        matches!(&slots.identities, Some(Identities::Own(identities)) if identities.is_empty())
    }

    #[tokio::test]
    async fn a_call_beyond_the_last_slot_is_refused_and_dropping_one_makes_room() {
        let slots = slots(2, None);
        let mut service = AdmitLayer::new(Arc::clone(&slots)).layer(Below::silent());
        let held = (service.call(decoded("a", infer())), service.call(decoded("b", infer())));
        let error = service.call(decoded("c", infer())).await.unwrap_err();
        assert!(matches!(error, Error::Overloaded { limit: Limit::Calls }));
        assert_eq!(slots.in_use(), (2, 0));
        drop(held);
        assert_eq!(slots.in_use(), (0, 0));
    }

    #[tokio::test]
    async fn looking_uses_a_reserve_of_its_own() {
        let slots = slots(1, None);
        let mut service = AdmitLayer::new(Arc::clone(&slots)).layer(Below::silent());
        let _work = service.call(decoded("a", infer()));
        let _look = service.call(decoded("a", inspect(Inspect::Models)));
        assert_eq!(slots.in_use(), (1, 1));
        let error = service.call(decoded("a", inspect(Inspect::Models))).await.unwrap_err();
        assert!(matches!(error, Error::Overloaded { limit: Limit::Inspect }));
    }

    #[tokio::test]
    async fn a_slot_is_free_when_a_whole_reply_is_there_and_when_the_call_failed() {
        let slots = slots(1, None);
        let layer = AdmitLayer::new(Arc::clone(&slots));
        layer.layer(Below::answering(|| Ok(whole()))).oneshot(decoded("a", infer())).await.unwrap();
        assert_eq!(slots.in_use().0, 0);
        layer.layer(Below::answering(|| Err(Error::Cancelled))).oneshot(decoded("a", infer())).await.unwrap_err();
        assert_eq!(slots.in_use().0, 0);
    }

    #[tokio::test]
    async fn a_slot_is_held_while_streaming() {
        let slots = slots(1, None);
        let (sender, reply) = stream();
        let reply = Mutex::new(Some(reply));
        let below = Below::answering(move || Ok(reply.lock().unwrap().take().unwrap()));
        let service = AdmitLayer::new(Arc::clone(&slots)).layer(below);
        let mut stream = streamed(service.oneshot(decoded("a", infer())).await.unwrap());
        sender.send(Ok(chunk())).await.unwrap();
        assert!(stream.next().await.unwrap().is_ok());
        assert_eq!(slots.in_use().0, 1);
        drop(sender);
        assert!(stream.next().await.is_none());
        assert_eq!(slots.in_use().0, 0);
    }

    #[tokio::test]
    async fn an_identity_at_its_own_cap_is_rate_limited_and_others_are_not() {
        let slots = slots(9, Some(1));
        let mut service = AdmitLayer::new(Arc::clone(&slots)).layer(Below::silent());
        let held = service.call(decoded("a", infer()));
        assert_eq!(service.call(decoded("a", infer())).await.unwrap_err().code(), Code::RateLimited);
        assert_eq!(slots.in_use().0, 1, "the refused call took no slot");
        let other = acquired(&slots, "b").unwrap();
        drop((held, other));
        assert!(nobody_is_counted(&slots), "nobody in flight, nobody remembered");
        assert!(acquired(&slots, "a").is_some());
    }

    #[tokio::test]
    async fn the_largest_share_of_an_identitys_groups_is_told_to_the_queue() {
        let weight = |group: &str, weight| (Arc::from(group), NonZeroU32::new(weight).unwrap());
        let slots = Slots::new(9, 1, None).with_weights([weight("paid", 4), weight("staff", 2)]);
        for (groups, expected) in [(&[][..], 1), (&["staff", "paid", "other"], 4), (&["other"], 1)] {
            let groups = groups.iter().map(|group| Arc::from(*group)).collect();
            assert_eq!(slots.share(&Identity::proven("a", groups, Scope::Granted)), expected);
        }
        let mut service = AdmitLayer::new(Arc::new(slots)).layer(Below::silent());
        let mut call = decoded("a", infer());
        call.sender = Arc::new(Identity::proven("a", vec!["staff".into()], Scope::Granted));
        let facts = Arc::clone(&call.head.facts);
        let _held = service.call(call);
        assert_eq!(facts.share(), 2);
    }

    #[tokio::test]
    async fn a_hundred_thousand_random_cancels_leak_no_slot() {
        let slots = slots(40, Some(20));
        let mut service = AdmitLayer::new(Arc::clone(&slots)).layer(Below::silent());
        // SplitMix64, seeded: what fails is found again.
        let mut state = 7_u64;
        let mut random = move |below: usize| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            usize::try_from((mixed ^ (mixed >> 27)) % below as u64).unwrap()
        };
        let (mut in_flight, mut cancelled) = (Vec::new(), 0);
        while cancelled < 100_000 {
            let mut call = Box::pin(service.call(decoded(["a", "b", "c"][random(3)], infer())));
            if (&mut call).now_or_never().is_none() {
                in_flight.push(call);
            }
            assert_eq!(slots.in_use().0, in_flight.len());
            while random(2) == 0 && !in_flight.is_empty() {
                drop(in_flight.swap_remove(random(in_flight.len())));
                cancelled += 1;
            }
        }
        drop(in_flight);
        assert_eq!(slots.in_use(), (0, 0));
        assert!(nobody_is_counted(&slots));
    }
}
