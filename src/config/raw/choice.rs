//! Values that are a word or something else: `auto` or a number, `all` or a list.

use crate::config::units::Number;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, SeqAccess, Visitor, value},
};
use std::{collections::BTreeMap, fmt, marker::PhantomData, path::PathBuf};

/// `auto`, or a number from 1 up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Amount {
    /// As many as fit.
    #[default]
    Auto,
    /// So many.
    Exactly(usize),
}

/// `auto`, `true` or `false`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Switch {
    /// As it fits.
    #[default]
    Auto,
    /// Yes.
    On,
    /// No.
    Off,
}

/// Which versions of a model are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Versions {
    /// The highest so many.
    Latest(usize),
    /// All.
    All,
    /// These.
    Listed(Vec<u64>),
}

/// Which models are loaded at start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Load {
    /// All.
    #[default]
    All,
    /// None.
    None,
    /// These.
    Named(Vec<String>),
}

/// One folder or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths(pub Vec<PathBuf>);

/// One name or several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names(pub Vec<String>);

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

/// Where ONNX Runtime runs a model; others than the CPU come later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Provider;

impl Default for Versions {
    fn default() -> Self {
        Self::Latest(1)
    }
}

impl Default for Paths {
    fn default() -> Self {
        Self(vec![PathBuf::from("models")])
    }
}

/// What such a value may be; each type says which of these it takes.
trait Choice: Sized {
    const EXPECTED: &str;

    fn word(_: &str) -> Option<Self> {
        None
    }
    fn flag(_: bool) -> Option<Self> {
        None
    }
    fn number(_: Number) -> Option<Self> {
        None
    }
    fn list<'de, A: SeqAccess<'de>>(_: A) -> Result<Option<Self>, A::Error> {
        Ok(None)
    }
    fn map<'de, A: MapAccess<'de>>(_: A) -> Result<Option<Self>, A::Error> {
        Ok(None)
    }
}

struct Chooser<T>(PhantomData<T>);

impl<'de, T: Choice> Visitor<'de> for Chooser<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<T, E> {
        T::word(word).ok_or_else(|| E::custom(format!("`{word}` is not valid, expected {}", T::EXPECTED)))
    }

    fn visit_bool<E: de::Error>(self, flag: bool) -> Result<T, E> {
        T::flag(flag).ok_or_else(|| E::invalid_type(de::Unexpected::Bool(flag), &self))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        let counted = Number::deserialize(value::U64Deserializer::<E>::new(number))?;
        T::number(counted).ok_or_else(|| E::invalid_type(de::Unexpected::Unsigned(number), &self))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        Number::deserialize(value::I64Deserializer::<E>::new(number)).and_then(|counted| {
            T::number(counted).ok_or_else(|| E::invalid_type(de::Unexpected::Signed(number), &self))
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<T, A::Error> {
        T::list(list)?.ok_or_else(|| de::Error::invalid_type(de::Unexpected::Seq, &self))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::map(map)?.ok_or_else(|| de::Error::invalid_type(de::Unexpected::Map, &self))
    }
}

macro_rules! deserialize_choice {
    ($($choice:ty),*) => {$(
        impl<'de> Deserialize<'de> for $choice {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Chooser(PhantomData))
            }
        }
    )*};
}

deserialize_choice!(Amount, Switch, Versions, Load, Paths, Names, Pad, Rows, Provider);

impl Choice for Amount {
    const EXPECTED: &str = "auto or a number from 1 up";

    fn word(word: &str) -> Option<Self> {
        (word == "auto").then_some(Self::Auto)
    }

    fn number(number: Number) -> Option<Self> {
        Some(Self::Exactly(number.0))
    }
}

impl Choice for Switch {
    const EXPECTED: &str = "auto, true or false";

    fn word(word: &str) -> Option<Self> {
        (word == "auto").then_some(Self::Auto)
    }

    fn flag(flag: bool) -> Option<Self> {
        Some(if flag { Self::On } else { Self::Off })
    }
}

impl Choice for Versions {
    const EXPECTED: &str = "{ latest: 1 }, all or a list of numbers";

    fn word(word: &str) -> Option<Self> {
        (word == "all").then_some(Self::All)
    }

    fn list<'de, A: SeqAccess<'de>>(list: A) -> Result<Option<Self>, A::Error> {
        let numbers: Vec<Number> = Vec::deserialize(value::SeqAccessDeserializer::new(list))?;
        Ok(Some(Self::Listed(numbers.into_iter().filter_map(|number| u64::try_from(number.0).ok()).collect())))
    }

    fn map<'de, A: MapAccess<'de>>(map: A) -> Result<Option<Self>, A::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Latest {
            latest: Number,
        }
        let Latest { latest } = Latest::deserialize(value::MapAccessDeserializer::new(map))?;
        Ok(Some(Self::Latest(latest.0)))
    }
}

impl Choice for Load {
    const EXPECTED: &str = "all, none or a list of names";

    fn word(word: &str) -> Option<Self> {
        match word {
            "all" => Some(Self::All),
            "none" => Some(Self::None),
            _ => None,
        }
    }

    fn list<'de, A: SeqAccess<'de>>(list: A) -> Result<Option<Self>, A::Error> {
        Vec::deserialize(value::SeqAccessDeserializer::new(list)).map(|names| Some(Self::Named(names)))
    }
}

impl Choice for Paths {
    const EXPECTED: &str = "a folder or a list of folders";

    fn word(word: &str) -> Option<Self> {
        Some(Self(vec![word.into()]))
    }

    fn list<'de, A: SeqAccess<'de>>(list: A) -> Result<Option<Self>, A::Error> {
        Vec::deserialize(value::SeqAccessDeserializer::new(list)).map(|paths| Some(Self(paths)))
    }
}

impl Choice for Names {
    const EXPECTED: &str = "a name or a list of names";

    fn word(word: &str) -> Option<Self> {
        Some(Self(vec![word.to_owned()]))
    }

    fn list<'de, A: SeqAccess<'de>>(list: A) -> Result<Option<Self>, A::Error> {
        Vec::deserialize(value::SeqAccessDeserializer::new(list)).map(|names| Some(Self(names)))
    }
}

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

impl Choice for Provider {
    const EXPECTED: &str = "cpu; other providers are not available in this version";

    fn word(word: &str) -> Option<Self> {
        (word == "cpu").then_some(Self)
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Exactly(number) => number.serialize(serializer),
        }
    }
}

impl Serialize for Switch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::On => serializer.serialize_bool(true),
            Self::Off => serializer.serialize_bool(false),
        }
    }
}

impl Serialize for Versions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Latest(number) => BTreeMap::from([("latest", number)]).serialize(serializer),
            Self::All => serializer.serialize_str("all"),
            Self::Listed(numbers) => numbers.serialize(serializer),
        }
    }
}

impl Serialize for Load {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.serialize_str("all"),
            Self::None => serializer.serialize_str("none"),
            Self::Named(names) => names.serialize(serializer),
        }
    }
}

impl Serialize for Paths {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [path] => path.serialize(serializer),
            paths => paths.serialize(serializer),
        }
    }
}

impl Serialize for Names {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [name] => name.serialize(serializer),
            names => names.serialize(serializer),
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

impl Serialize for Provider {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("cpu")
    }
}
