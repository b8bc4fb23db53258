//! `models`, and `NAME/model.yaml`, as people write them.

use super::choice::{Amount, Load, Pad, Paths, Provider, Rows, Switch, Versions};
use crate::config::units::{Delay, Number};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// Which models, and how.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Models {
    pub directory: Paths,
    pub control: Control,
    pub load: Load,
    pub required: Vec<String>,
    pub defaults: ModelDefaults,
}

/// When models are looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "all but fixed come later")]
pub enum Control {
    #[default]
    Fixed,
    Watch,
    Explicit,
}

/// What each model may say for itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct ModelDefaults {
    pub versions: Versions,
    pub instances: Amount,
    pub threads: Amount,
    pub execution: Execution,
    pub batching: Batching,
    pub providers: Vec<Provider>,
}

/// How calls are run together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Batching {
    pub enabled: Switch,
    pub max_rows: Number,
    pub max_delay: Delay,
    pub max_queue: Number,
    pub priorities: Number,
    pub default_priority: Amount,
    pub rows: Rows,
    pub pad: Pad,
}

/// `NAME/model.yaml`: the keys of `models.defaults` and its own. serde's `flatten` would lose the refusal of unknown
/// keys, so they are repeated.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct ModelFile {
    pub versions: Versions,
    pub instances: Amount,
    pub threads: Amount,
    pub execution: Execution,
    pub batching: Batching,
    pub providers: Vec<Provider>,
    pub class_labels: BTreeMap<String, PathBuf>,
    pub inputs: BTreeMap<String, Input>,
}

/// What is said of one input of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in docs/models.md")]
pub struct Input {
    /// A number, a flag or a text.
    pub pad: Option<Value>,
    pub mask: Option<String>,
    pub optional: bool,
}

/// Where a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Execution {
    /// On the lane if it is short enough, else on threads.
    #[default]
    Auto,
    /// On the lane, one batch per turn of the event loop.
    Turn,
    /// On threads of its own.
    Thread,
}

// === defaults (architecture section 11) ===

impl Default for ModelDefaults {
    fn default() -> Self {
        Self {
            versions: Versions::default(),
            instances: Amount::Auto,
            threads: Amount::Auto,
            execution: Execution::Auto,
            batching: Batching::default(),
            providers: vec![Provider],
        }
    }
}

impl Default for Batching {
    fn default() -> Self {
        Self {
            enabled: Switch::Auto,
            max_rows: Number(64),
            max_delay: Delay(Duration::ZERO),
            max_queue: Number(1024),
            priorities: Number(1),
            default_priority: Amount::Auto,
            rows: Rows::Auto,
            pad: Pad::Auto,
        }
    }
}
