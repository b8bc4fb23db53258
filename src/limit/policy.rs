//! What a policy counts, and whose: plain data, as the configuration says it.

use crate::{
    call::{Identity, Intent, Operation, Work, pattern},
    error::Allowance,
};
use std::{num::NonZeroU64, sync::Arc, time::Duration};

/// The longest name that a model can have; a longer one is no model's, and no key of a table.
const LONGEST_NAME: usize = 128;

/// One entry of `limits.rate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its name, unique among policies.
    pub name: Arc<str>,
    /// Whose calls are counted together.
    pub by: By,
    /// The only identity, group or model it counts; `None` for each of them.
    pub only: Option<Arc<str>>,
    /// Patterns of the models it counts; empty for all.
    pub models: Vec<Arc<str>>,
    /// What it counts.
    pub unit: Unit,
    /// Units in each `per`.
    pub limit: NonZeroU64,
    /// The period of `limit`.
    pub per: Duration,
    /// Units that may come at once.
    pub burst: NonZeroU64,
    /// Intents it counts.
    pub intents: Vec<Intent>,
}

/// Whose calls are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Those of one identity.
    Identity,
    /// Those of all members of a group; a member of several is counted in each.
    Group,
    /// Those of one model, whoever sends them.
    Model,
    /// Those of one identity to one model.
    IdentityAndModel,
}

/// What a policy counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unit {
    /// Calls; a stream is one.
    #[default]
    Calls,
    /// Rows of inputs.
    Rows,
    /// Bytes of tensors, in and out.
    Bytes,
    /// Elements of tensors, in and out.
    Elements,
    /// Milliseconds of runs, whatever ran in the same batch.
    ComputeMs,
}

// === impl Policy ===

impl Policy {
    /// The intents that count where a policy names none: all but `inspect` (contract 10 section 2).
    pub fn default_intents() -> Vec<Intent> {
        Intent::ALL.into_iter().filter(|intent| *intent != Intent::Inspect).collect()
    }

    /// True if it cannot be charged before the body is read: the model and the size of a call are known only then.
    pub fn needs_body(&self) -> bool {
        self.unit != Unit::Calls || !self.models.is_empty() || matches!(self.by, By::Model | By::IdentityAndModel)
    }

    /// What headers and errors say of it.
    pub(super) fn allowance(&self) -> Allowance {
        Allowance {
            name: (&*self.name).into(),
            limit: self.limit.get(),
            per: self.per,
            burst: self.burst.get(),
            unit: self.unit.name(),
        }
    }

    /// Whether it counts calls to this model.
    pub(super) fn counts_model(&self, model: Option<&str>) -> bool {
        match model {
            Some(name) if name.len() > LONGEST_NAME => false,
            Some(name) => self.models.is_empty() || self.models.iter().any(|pattern| pattern::fits(pattern, name)),
            None => self.models.is_empty(),
        }
    }
}

// === impl Unit ===

impl Unit {
    /// The word of the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Calls => "calls",
            Self::Rows => "rows",
            Self::Bytes => "bytes",
            Self::Elements => "elements",
            Self::ComputeMs => "compute_ms",
        }
    }

    /// How many of what a bucket holds make one unit: compute time is kept in microseconds, because many runs take less
    /// than a millisecond.
    pub(super) const fn scale(self) -> u64 {
        match self {
            Self::ComputeMs => 1000,
            Self::Calls | Self::Rows | Self::Bytes | Self::Elements => 1,
        }
    }

    /// What `work` is charged in advance. At least one, so that a quota that is used up refuses.
    pub(super) fn of(self, work: Work) -> u64 {
        let units = match self {
            Self::Calls => 1,
            Self::Rows => work.rows,
            Self::Bytes => work.bytes,
            Self::Elements => work.elements,
            // Nobody knows yet; settled when it has run.
            Self::ComputeMs => self.scale(),
        };
        units.max(1)
    }
}

/// Who a call is from and about, as far as policies ask.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject<'a> {
    pub(super) identity: &'a Identity,
    pub(super) intent: Intent,
    pub(super) model: Option<&'a Arc<str>>,
}

/// What an operation is, before anything of it has run.
pub(super) fn intent_of(operation: &Operation) -> Intent {
    match operation {
        Operation::Infer(_) => Intent::Infer,
        Operation::Inspect(_) => Intent::Inspect,
        Operation::Manage(_) => Intent::Manage,
    }
}

/// What an operation brings.
pub(super) fn work_of(operation: &Operation) -> Work {
    match operation {
        Operation::Infer(request) => match request.inputs.tensors() {
            Some(inputs) => Work::of(inputs.iter().map(|input| &input.tensor)),
            // Typed by the model only; settled when it has run.
            None => Work { rows: 1, ..Work::default() },
        },
        Operation::Inspect(_) | Operation::Manage(_) => Work::default(),
    }
}
