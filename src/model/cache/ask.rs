//! The way of a call through the cache of its model.

use super::{
    Cache, CacheScope, Entered, Question,
    flight::{Claim, Lead, Ticket, Told},
};
use crate::{
    call::{Cached, Head, Timing},
    error::{Error, Stage},
    model::{Model, router::unanswered},
    offload::{is_small, offload},
    schedule::{Answer, Company, Hearer, Job, ReplyTo},
    tensor::Tensors,
};
use futures_util::future::BoxFuture;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// A call whose inputs are checked and complete.
#[derive(Debug)]
pub(in crate::model) struct Asked {
    pub(in crate::model) model: Arc<Model>,
    pub(in crate::model) head: Head,
    /// The identity that asks.
    pub(in crate::model) asker: Arc<str>,
    pub(in crate::model) inputs: Tensors,
    pub(in crate::model) rows: usize,
    pub(in crate::model) priority: u32,
}

/// An answer, now or soon.
pub(in crate::model) enum Found {
    /// It was kept.
    Kept(Answer),
    /// A run yields it: dropping the future leaves it to others who wait for it.
    Coming(BoxFuture<'static, Result<Answer, Error>>),
}

/// A call that waits, or leads.
struct Call {
    cache: Arc<Cache>,
    model: Arc<Model>,
    head: Head,
    rows: usize,
    priority: u32,
    /// How long it took to look for an answer.
    looked: Duration,
}

impl Cache {
    /// Answers a call, or has its model do it. What is small is on its way to the model when this returns.
    ///
    /// # Errors
    ///
    /// As [`Scheduler::submit`](crate::schedule::Scheduler::submit).
    pub(in crate::model) fn answer(self: &Arc<Self>, asked: Asked) -> Result<Found, Error> {
        let Asked { model, head, asker, inputs, rows, priority } = asked;
        let scope = match self.settings.scope {
            CacheScope::Identity => Some(asker),
            CacheScope::Model => None,
        };
        let question = Question { scope, inputs };
        let call = Call { cache: Arc::clone(self), model, head, rows, priority, looked: Duration::ZERO };
        let (begun, bytes, claim) = (Instant::now(), question.bytes(), call.claim());
        if is_small(bytes) {
            let entered = self.enter(question, claim);
            return call.go(entered, begun);
        }
        // Much to hash and to compare: not on a lane.
        let cache = Arc::clone(self);
        Ok(Found::Coming(Box::pin(async move {
            let (again, there) = (question.clone(), Arc::clone(&cache));
            let entered = offload(bytes, move || Ok(there.enter(question, claim))).await;
            // A cache is there to save time: where there is none to look, the call runs by itself.
            let entered = entered.unwrap_or_else(|_| cache.apart(again, claim));
            match call.go(entered, begun)? {
                Found::Kept(answer) => Ok(answer),
                Found::Coming(answer) => answer.await,
            }
        })))
    }
}

impl Call {
    fn claim(&self) -> Claim {
        let level = self.model.scheduler.policy().priorities.level(self.priority);
        Claim { level, deadline: self.head.deadline }
    }

    /// Goes on from what there is.
    fn go(mut self, entered: Entered, begun: Instant) -> Result<Found, Error> {
        let now = Instant::now();
        self.looked = now - begun;
        if let Some(trace) = self.head.facts.trace.get() {
            trace.note("cache", begun, now);
        }
        Ok(match entered {
            Entered::Kept(entry) => {
                self.spared(Cached::Hit, Duration::ZERO);
                let timing = Timing { queue: Duration::ZERO, compute: Duration::ZERO };
                Found::Kept(Answer { outputs: entry.outputs.clone(), timing })
            }
            Entered::Coming(ticket) => {
                self.head.facts.set_cached(Cached::Shared);
                Found::Coming(Box::pin(self.wait(ticket, false)))
            }
            Entered::Lead(lead) => {
                let ticket = self.lead(lead)?;
                Found::Coming(Box::pin(self.wait(ticket, true)))
            }
        })
    }

    /// Has the model run for this call, and for all who ask the same meanwhile.
    fn lead(&self, lead: Lead) -> Result<Ticket, Error> {
        let Self { cache, model, head, rows, priority, looked } = self;
        head.facts.set_cached(Cached::Miss);
        cache.metrics.missed(*looked);
        let inputs = lead.question().inputs.clone();
        let (ticket, all) = lead.take(&head.facts, self.claim())?;
        let job = Job {
            inputs,
            rows: *rows,
            priority: *priority,
            deadline: head.deadline,
            queued: Instant::now(),
            reply: ReplyTo::Once(Hearer::Many(all)),
            facts: Arc::clone(&head.facts),
            turn: 0,
            layout: None,
            company: Company::default(),
        };
        // A job that is refused is dropped, and somebody else leads.
        model.scheduler.submit(job)?;
        Ok(ticket)
    }

    async fn wait(self, mut ticket: Ticket, mut leads: bool) -> Result<Answer, Error> {
        let begun = Instant::now();
        loop {
            match ticket.told().await {
                Some(Told::Lead(lead)) => (ticket, leads) = (self.lead(lead)?, true),
                Some(Told::Answer(answer)) if leads => return answer,
                Some(Told::Answer(answer)) => {
                    let now = Instant::now();
                    if let Some(trace) = self.head.facts.trace.get() {
                        trace.note("shared", begun, now);
                    }
                    // It waited, and the run was another's: so it is not charged for it.
                    let timing = Timing { queue: now - begun, compute: Duration::ZERO };
                    return match answer {
                        Ok(Answer { outputs, .. }) => {
                            self.spared(Cached::Shared, timing.queue);
                            Ok(Answer { outputs, timing })
                        }
                        Err(error) => {
                            // What failed was the run.
                            self.head.facts.reach(Stage::Running);
                            Err(error)
                        }
                    };
                }
                None => return Err(unanswered(&self.head)),
            }
        }
    }

    /// It was answered without a run of its own, after it had waited for so long.
    fn spared(&self, cached: Cached, waited: Duration) {
        let facts = &self.head.facts;
        facts.set_cached(cached);
        // As far as calls come that are answered at once: what it was charged is settled, with no time for the run.
        facts.reach(Stage::Running);
        self.cache.metrics.spared(cached, waited, self.looked);
    }
}
