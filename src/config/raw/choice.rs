//! Values that are a word or something else: `auto` or a number, `all` or a list.

use crate::{
    backend::ProviderKind,
    config::units::{Number, Size, Span},
};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, SeqAccess, Visitor, value},
};
use std::{collections::BTreeMap, fmt, marker::PhantomData, path::PathBuf, time::Duration};

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

/// Where ONNX Runtime runs a model: a name, or a name with options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// Which.
    pub kind: ProviderKind,
    /// Its options, by ONNX Runtime's names.
    pub options: BTreeMap<String, Word>,
}

/// A text, a number or a flag, as a text: `true` is `1`, as ONNX Runtime has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word(pub String);

/// `auto`, or so many bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Memory {
    /// A share of what there is.
    #[default]
    Auto,
    /// So many.
    Exactly(usize),
}

/// `auto`, `never`, or after so long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Limit {
    /// When nobody can be waiting any more.
    #[default]
    Auto,
    /// Not at all.
    Never,
    /// After so long.
    After(Duration),
}

/// What a model is run on before it is ready.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Warmup {
    /// What is made up.
    #[default]
    Auto,
    /// Nothing.
    Off,
    /// What is made up, and then these files of V2 requests.
    Files(Vec<PathBuf>),
}

/// A version of a model, as text or as a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Version(pub u64);

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
pub(super) trait Choice: Sized {
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
    /// A number that counts nothing: zero and below are as good.
    fn digits(_: i128) -> Option<Self> {
        None
    }
    fn list<'de, A: SeqAccess<'de>>(_: A) -> Result<Option<Self>, A::Error> {
        Ok(None)
    }
    fn map<'de, A: MapAccess<'de>>(_: A) -> Result<Option<Self>, A::Error> {
        Ok(None)
    }
}

/// Reads one.
pub(super) struct Chooser<T>(pub(super) PhantomData<T>);

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
        if let Some(value) = T::digits(i128::from(number)) {
            return Ok(value);
        }
        let counted = Number::deserialize(value::U64Deserializer::<E>::new(number))?;
        T::number(counted).ok_or_else(|| E::invalid_type(de::Unexpected::Unsigned(number), &self))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        if let Some(value) = T::digits(i128::from(number)) {
            return Ok(value);
        }
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

pub(super) use deserialize_choice;

deserialize_choice!(Amount, Switch, Versions, Load, Paths, Names, Warmup, Version, Provider, Word, Memory, Limit);

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

impl Choice for Warmup {
    const EXPECTED: &str = "auto, off or a list of files";

    fn word(word: &str) -> Option<Self> {
        match word {
            "auto" => Some(Self::Auto),
            "off" => Some(Self::Off),
            _ => None,
        }
    }

    fn list<'de, A: SeqAccess<'de>>(list: A) -> Result<Option<Self>, A::Error> {
        Vec::deserialize(value::SeqAccessDeserializer::new(list)).map(|files| Some(Self::Files(files)))
    }
}

impl Choice for Version {
    const EXPECTED: &str = "a version: a positive integer without leading zeros";

    fn word(word: &str) -> Option<Self> {
        let decimal = word.bytes().all(|byte| byte.is_ascii_digit()) && !word.starts_with('0');
        word.parse().ok().filter(|_| decimal).map(Self)
    }

    fn number(number: Number) -> Option<Self> {
        u64::try_from(number.0).ok().map(Self)
    }
}

impl Choice for Provider {
    const EXPECTED: &str = "cpu, cuda, tensorrt, tensorrt_rtx, openvino, coreml, directml, migraphx, qnn, xnnpack, webgpu or \
                            vitisai; or one with options, as in { cuda: { device_id: 0 } }";

    fn word(word: &str) -> Option<Self> {
        ProviderKind::named(word).map(|kind| Self { kind, options: BTreeMap::new() })
    }

    fn map<'de, A: MapAccess<'de>>(mut map: A) -> Result<Option<Self>, A::Error> {
        let Some((name, options)) = map.next_entry::<String, BTreeMap<String, Word>>()? else { return Ok(None) };
        let named = Self::word(&name);
        let other = map.next_key::<String>()?;
        match (named, other) {
            (Some(provider), None) => Ok(Some(Self { options, ..provider })),
            (Some(_), Some(other)) => Err(de::Error::custom(format!(
                "`{name}` and `{other}` are two providers, expected one in each element"
            ))),
            (None, _) => Err(de::Error::custom(format!("`{name}` is not valid, expected {}", Self::EXPECTED))),
        }
    }
}

impl Choice for Word {
    const EXPECTED: &str = "a text, a number, true or false";

    fn word(word: &str) -> Option<Self> {
        Some(Self(word.to_owned()))
    }

    fn flag(flag: bool) -> Option<Self> {
        Some(Self(u8::from(flag).to_string()))
    }

    fn digits(number: i128) -> Option<Self> {
        Some(Self(number.to_string()))
    }
}

impl Choice for Memory {
    const EXPECTED: &str = "auto or a size with a unit, as in 4GiB";

    fn word(word: &str) -> Option<Self> {
        match word {
            "auto" => Some(Self::Auto),
            size => size.parse().ok().map(|Size(bytes)| Self::Exactly(bytes)),
        }
    }
}

impl Choice for Limit {
    const EXPECTED: &str = "auto, never or a duration with a unit, as in 30s";

    fn word(word: &str) -> Option<Self> {
        match word {
            "auto" => Some(Self::Auto),
            "never" => Some(Self::Never),
            span => span.parse().ok().map(|Span(span)| Self::After(span)),
        }
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

impl Serialize for Warmup {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Off => serializer.serialize_str("off"),
            Self::Files(files) => files.serialize(serializer),
        }
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl Serialize for Provider {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.options.is_empty() {
            true => serializer.serialize_str(self.kind.name()),
            false => BTreeMap::from([(self.kind.name(), &self.options)]).serialize(serializer),
        }
    }
}

impl Serialize for Word {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl Serialize for Memory {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Exactly(bytes) => Size(*bytes).serialize(serializer),
        }
    }
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Never => serializer.serialize_str("never"),
            Self::After(span) => Span(*span).serialize(serializer),
        }
    }
}
