//! `traffic`: to which versions calls go that name none.

use super::choice::Version;
use crate::{
    config::units::{Number, Size, Span},
    model,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// To which versions calls go that name none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in docs/models.md")]
pub struct Traffic {
    /// From versions to weights.
    pub split: BTreeMap<String, Number>,
    pub header: Option<String>,
    pub sticky: Option<String>,
    pub shadow: Option<Shadow>,
}

/// A version that is tried on copies of calls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in docs/models.md")]
pub struct Shadow {
    pub to: Option<Version>,
    pub share: f64,
    pub queue: Number,
    pub memory: Size,
    pub in_flight: Number,
    pub timeout: Span,
}

impl Default for Shadow {
    fn default() -> Self {
        let model::Shadow { queue, memory, in_flight, timeout, .. } = model::Shadow::default();
        Self {
            to: None,
            share: 1.0,
            queue: Number(queue),
            memory: Size(memory),
            in_flight: Number(in_flight),
            timeout: Span(timeout),
        }
    }
}
