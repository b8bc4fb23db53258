//! How calls of different lengths run together, as people write it: a word or bounds.

use super::choice::{Choice, Chooser, deserialize_choice};
use crate::config::units::Number;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, value},
};
use std::{collections::BTreeMap, marker::PhantomData};

/// Which calls of different lengths run together.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Pad {
    /// Those that cost less together than apart.
    #[default]
    Auto,
    /// None.
    Off,
    /// Those whose lengths differ by this factor at most.
    Ratio(f64),
    /// Those that are filled up to the same of these lengths.
    Lengths(Vec<usize>),
}

/// How many rows a run has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rows {
    /// As many as there are, where the model's first dimension is free.
    #[default]
    Auto,
    /// As many as the model's first dimension says, filled up.
    Fixed,
}

deserialize_choice!(Pad, Rows);

impl Choice for Pad {
    const EXPECTED: &str = "auto, off, { ratio: 2 } or { lengths: [16, 32] }";

    fn word(word: &str) -> Option<Self> {
        match word {
            "auto" => Some(Self::Auto),
            "off" => Some(Self::Off),
            _ => None,
        }
    }

    fn map<'de, A: MapAccess<'de>>(map: A) -> Result<Option<Self>, A::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Bounds {
            ratio: Option<f64>,
            lengths: Option<Vec<Number>>,
        }
        Ok(match Bounds::deserialize(value::MapAccessDeserializer::new(map))? {
            Bounds { ratio: Some(ratio), lengths: None } => Some(Self::Ratio(ratio)),
            Bounds { ratio: None, lengths: Some(lengths) } => {
                Some(Self::Lengths(lengths.into_iter().map(|length| length.0).collect()))
            }
            _ => None,
        })
    }
}

impl Choice for Rows {
    const EXPECTED: &str = "auto or fixed";

    fn word(word: &str) -> Option<Self> {
        match word {
            "auto" => Some(Self::Auto),
            "fixed" => Some(Self::Fixed),
            _ => None,
        }
    }
}

impl Serialize for Pad {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Off => serializer.serialize_str("off"),
            Self::Ratio(ratio) => BTreeMap::from([("ratio", ratio)]).serialize(serializer),
            Self::Lengths(lengths) => BTreeMap::from([("lengths", lengths)]).serialize(serializer),
        }
    }
}

impl Serialize for Rows {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::Auto => "auto",
            Self::Fixed => "fixed",
        })
    }
}
