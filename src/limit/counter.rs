//! A policy with its buckets: which calls it counts, under which keys.

use super::{
    cell::Cell,
    gcra::Rate,
    policy::{By, Policy, Subject, Unit},
    table::Table,
};
use crate::{
    call::{Intent, Quota},
    error::Allowance,
};
use foldhash::fast::RandomState;
use std::{hash::BuildHasher, num::NonZeroU64, slice, sync::Arc, time::Duration};

/// A policy with its buckets.
#[derive(Debug)]
pub(super) struct Counter {
    policy: Policy,
    /// A bit per intent.
    intents: u8,
    pub(super) needs_body: bool,
    pub(super) rate: Rate,
    pub(super) allowance: Arc<Allowance>,
    buckets: Buckets,
    /// Salts the keys that clients read.
    salt: RandomState,
}

/// Keys are proven identities and groups, and names of models that such an identity is granted, so a fast hasher is
/// enough: nobody else can choose them so that they collide.
#[derive(Debug)]
enum Buckets {
    One(Table<Arc<str>, Cell, RandomState>),
    Two(Table<(Arc<str>, Arc<str>), Cell, RandomState>),
}

/// What a policy counts a call under.
#[derive(Clone, Copy, Debug)]
pub(super) enum Key<'a> {
    One(&'a Arc<str>),
    Two(&'a Arc<str>, &'a Arc<str>),
}

// === impl Counter ===

impl Counter {
    /// Nothing is counted yet. `salt`: that of a policy whose keys clients know already.
    pub(super) fn new(policy: Policy, cap: usize, salt: Option<RandomState>) -> Self {
        let scale = NonZeroU64::new(policy.unit.scale()).unwrap_or(NonZeroU64::MIN);
        let (limit, burst) = (policy.limit.saturating_mul(scale), policy.burst.saturating_mul(scale));
        Self {
            intents: policy.intents.iter().fold(0, |bits, intent| bits | bit(*intent)),
            needs_body: policy.needs_body(),
            rate: Rate::new(limit, policy.per, burst),
            allowance: Arc::new(policy.allowance()),
            buckets: match policy.by {
                By::IdentityAndModel => Buckets::Two(Table::new(cap)),
                By::Identity | By::Group | By::Model => Buckets::One(Table::new(cap)),
            },
            salt: salt.unwrap_or_default(),
            policy,
        }
    }

    pub(super) const fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(super) const fn salt(&self) -> RandomState {
        self.salt
    }

    /// From now on there are at most `cap` buckets.
    pub(super) fn set_cap(&self, cap: usize) {
        match &self.buckets {
            Buckets::One(table) => table.set_cap(cap),
            Buckets::Two(table) => table.set_cap(cap),
        }
    }

    pub(super) const fn unit(&self) -> Unit {
        self.policy.unit
    }

    /// The keys under which this call is counted; none if it is not.
    pub(super) fn keys<'a>(&'a self, subject: Subject<'a>) -> impl Iterator<Item = Key<'a>> {
        let counts = self.intents & bit(subject.intent) != 0
            && (!self.needs_body || self.policy.counts_model(subject.model.map(|model| &**model)));
        let only = self.policy.only.as_ref();
        let is_counted = move |name: &&Arc<str>| only.is_none_or(|only| only == *name);
        let identity = subject.identity.id();
        let (names, model) = match self.policy.by {
            _ if !counts => (&[][..], None),
            By::Identity => (slice::from_ref(identity), None),
            By::Group => (subject.identity.groups(), None),
            By::Model => (subject.model.map(slice::from_ref).unwrap_or_default(), None),
            By::IdentityAndModel => match subject.model {
                Some(model) => (slice::from_ref(identity), Some(model)),
                None => (&[][..], None),
            },
        };
        names.iter().filter(is_counted).map(move |name| match model {
            Some(model) => Key::Two(name, model),
            None => Key::One(name),
        })
    }

    /// The cell of `key`, made if there is none.
    pub(super) fn cell(&self, key: Key<'_>, now: u64) -> Arc<Cell> {
        match (&self.buckets, key) {
            (Buckets::One(table), Key::One(name)) => table.entry(name, now),
            (Buckets::Two(table), Key::Two(one, two)) => table.entry(&(Arc::clone(one), Arc::clone(two)), now),
            // The kind of key and of table are both the policy's.
            (Buckets::One(_), Key::Two(..)) | (Buckets::Two(_), Key::One(_)) => Arc::default(),
        }
    }

    /// A salted hash of `key`, which clients may read.
    pub(super) fn partition(&self, key: Key<'_>) -> u64 {
        match key {
            Key::One(name) => self.salt.hash_one(name),
            Key::Two(one, two) => self.salt.hash_one((one, two)),
        }
    }

    /// What the quota of `key` is kept under where it is shared.
    pub(super) fn shared_key(&self, key: Key<'_>) -> Box<str> {
        let name = &self.policy.name;
        match key {
            Key::One(key) => format!("sluicegate:rate:{name}:{key}"),
            // A length, so that no two pairs are written alike.
            Key::Two(one, two) => format!("sluicegate:rate:{name}:{}:{one}:{two}", one.len()),
        }
        .into()
    }

    /// What headers say of a key: its theoretical arrival time is `tat` at this `rate`, and `more` units lie here besides.
    pub(super) fn quota(&self, rate: Rate, tat: u64, more: u64, now: u64) -> Quota {
        let scale = self.policy.unit.scale();
        let left = rate.left(tat, now).saturating_add(more) / scale;
        let next = left.saturating_add(1).saturating_mul(scale);
        let is_full = next > rate.left(0, now);
        let more_in = if is_full { Duration::ZERO } else { rate.wait(tat, next.saturating_sub(more), now) };
        Quota { allowance: Arc::clone(&self.allowance), partition: 0, left, charged: 0, more_in }
    }

    /// Units that may come at once, as buckets hold them.
    pub(super) fn burst(&self) -> u64 {
        self.policy.burst.get().saturating_mul(self.policy.unit.scale())
    }

    /// Looks at every cell.
    pub(super) fn each(&self, look: impl FnMut(&Arc<Cell>)) {
        match &self.buckets {
            Buckets::One(table) => table.each(look),
            Buckets::Two(table) => table.each(look),
        }
    }

    pub(super) fn sweep(&self, now: u64) {
        match &self.buckets {
            Buckets::One(table) => table.sweep(now),
            Buckets::Two(table) => table.sweep(now),
        }
    }

    pub(super) fn len(&self) -> usize {
        match &self.buckets {
            Buckets::One(table) => table.len(),
            Buckets::Two(table) => table.len(),
        }
    }
}

const fn bit(intent: Intent) -> u8 {
    1 << intent as u8
}
