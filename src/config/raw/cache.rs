//! `cache`: whether and how a model keeps answers, as people write it.

use super::choice::{Choice, Chooser, deserialize_choice};
use crate::{
    config::units::{Size, Span},
    model,
};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, value},
};
use std::{marker::PhantomData, time::Duration};

/// Whether answers are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Cache {
    /// They are not.
    #[default]
    Off,
    /// They are, like this.
    On(Keep),
}

/// How they are kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Keep {
    pub memory: Size,
    pub age: Span,
    pub scope: Scope,
}

/// Among whom answers are shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The calls of one identity.
    #[default]
    Identity,
    /// All who may call the model.
    Model,
}

deserialize_choice!(Cache);

impl Choice for Cache {
    const EXPECTED: &str = "off or { memory: 64MiB, age: 10m, scope: identity }";

    fn word(word: &str) -> Option<Self> {
        (word == "off").then_some(Self::Off)
    }

    fn map<'de, A: MapAccess<'de>>(map: A) -> Result<Option<Self>, A::Error> {
        Keep::deserialize(value::MapAccessDeserializer::new(map)).map(|keep| Some(Self::On(keep)))
    }
}

impl Serialize for Cache {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_str("off"),
            Self::On(keep) => keep.serialize(serializer),
        }
    }
}

impl Default for Keep {
    fn default() -> Self {
        // Architecture section 11.
        Self { memory: Size(64 << 20), age: Span(Duration::from_secs(600)), scope: Scope::Identity }
    }
}

impl Cache {
    /// As the program sees it.
    pub fn settings(self) -> Option<model::CacheSettings> {
        let Self::On(Keep { memory, age, scope }) = self else { return None };
        let scope = match scope {
            Scope::Identity => model::CacheScope::Identity,
            Scope::Model => model::CacheScope::Model,
        };
        Some(model::CacheSettings { memory: memory.0, age: age.0, scope })
    }
}
