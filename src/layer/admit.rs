//! Bounds the calls in flight, and with them the bodies held, until each reply is over.
//!
//! Does not queue: what finds no slot is refused. It knows nothing of memory or of a model's own queue.

use super::{Guarded, per_identity::PerIdentity, pool::Pool};
use crate::{
    call::{Call, Identity, Intent, Observer, Reply, Watch},
    error::{Cap, Error},
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
    identities: Option<PerIdentity>,
    /// Shares of a full queue, by group.
    weights: HashMap<Arc<str>, NonZeroU32>,
}

/// One slot. Dropping it gives it back.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
    intent: Intent,
    identity: Option<Arc<str>>,
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
            identities: per_identity.map(PerIdentity::new),
            weights: HashMap::default(),
        }
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

    /// Takes a slot for one call of `identity`, now or not at all.
    ///
    /// # Errors
    ///
    /// [`Error::Overloaded`] if none is free, [`Error::RateLimited`] if `identity` has all that it may have.
    pub fn try_acquire(self: &Arc<Self>, identity: &Identity, intent: Intent) -> Result<Slot, Error> {
        let (pool, what) = self.pool(intent);
        if !pool.take() {
            return Err(Error::Overloaded { what });
        }
        // From here on the slot is held: an early return gives it back.
        let mut slot = Slot { slots: Arc::clone(self), intent, identity: None };
        if let Some(identities) = self.identities.as_ref().filter(|_| intent != Intent::Inspect) {
            if !identities.take(identity.id()) {
                return Err(Error::RateLimited { retry_after: RETRY_AFTER, cap: Cap::Calls });
            }
            slot.identity = Some(Arc::clone(identity.id()));
        }
        Ok(slot)
    }

    /// Slots in use, for work and for looking.
    pub fn in_use(&self) -> (usize, usize) {
        (self.calls.taken(), self.inspect.taken())
    }

    fn pool(&self, intent: Intent) -> (&Pool, &'static str) {
        match intent {
            Intent::Inspect | Intent::Metrics => (&self.inspect, "inspect calls in flight"),
            Intent::Infer | Intent::Generate | Intent::Manage => (&self.calls, "calls in flight"),
        }
    }
}

// === impl Slot ===

impl Drop for Slot {
    fn drop(&mut self) {
        if let (Some(identities), Some(identity)) = (&self.slots.identities, self.identity.take()) {
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
    S: Service<Call<Arc<Identity>, I>, Response = Reply, Error = Error>,
{
    type Response = Reply;
    type Error = Error;
    type Future = Guarded<S::Future, Slot>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Call<Arc<Identity>, I>) -> Self::Future {
        match self.slots.try_acquire(&call.sender, call.head.intent) {
            Ok(slot) => {
                let watch = Watch::new(slot);
                call.head.facts.set_share(self.slots.share(&call.sender));
                Guarded::below(self.inner.call(call), Some(watch))
            }
            Err(error) => Guarded::refused(error),
        }
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

    #[tokio::test]
    async fn a_call_beyond_the_last_slot_is_refused_and_dropping_one_makes_room() {
        let slots = slots(2, None);
        let mut service = AdmitLayer::new(Arc::clone(&slots)).layer(Below::silent());
        let held = (service.call(decoded("a", infer())), service.call(decoded("b", infer())));
        let error = service.call(decoded("c", infer())).await.unwrap_err();
        assert!(matches!(error, Error::Overloaded { what: "calls in flight" }));
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
        assert!(matches!(error, Error::Overloaded { what: "inspect calls in flight" }));
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
        let other = slots.try_acquire(&identity("b"), Intent::Infer).unwrap();
        drop((held, other));
        assert!(slots.identities.as_ref().unwrap().is_empty(), "nobody in flight, nobody remembered");
        assert!(slots.try_acquire(&identity("a"), Intent::Infer).is_ok());
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
        assert!(slots.identities.as_ref().unwrap().is_empty());
    }
}
