//! Durations, sizes, rates and numbers as people write them.
//!
//! Each is a type of its own, so that a limit of zero, or one without a unit, cannot be written down at all.

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Visitor},
};
use std::{fmt, marker::PhantomData, num::NonZeroU64, str::FromStr, time::Duration};

/// The longest duration: beyond it, sums with the clock could overflow.
const LONGEST: u128 = 365 * 86_400 * NANOS;
/// The largest size, 1 PiB.
const LARGEST: u128 = 1 << 50;
/// The fastest rate per second; see [`crate::limit::gcra::Rate::new`].
const FASTEST: u128 = 1_000_000_000_000;
const NANOS: u128 = 1_000_000_000;

/// A duration above zero: `30s`, `200ms`, `10m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A duration that may be zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delay(pub Duration);

/// How long a batch waits to be complete: `auto`, which is `None`, or a duration that may be zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxDelay(pub Option<Duration>);

/// A number of bytes above zero: `64MiB`, `8KiB`, `1MB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub usize);

/// So many in each period: `100/s`, `100/10s`, `1000000/day`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub count: NonZeroU64,
    /// In how long.
    pub per: Duration,
}

/// A whole number above zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number(pub usize);

/// A value that people write as text with a unit.
trait Unit: FromStr<Err = String> {
    /// Completes "expected …".
    const EXPECTED: &str;
    /// What to write instead of this bare number.
    fn instead_of(number: &str) -> String;
}

const TIMES: [(&str, u128); 10] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", NANOS),
    ("m", 60 * NANOS),
    ("min", 60 * NANOS),
    ("h", 3_600 * NANOS),
    ("hour", 3_600 * NANOS),
    ("d", 86_400 * NANOS),
    ("day", 86_400 * NANOS),
];

const SIZES: [(&str, u128); 7] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];

// === reading ===

/// A duration that may be zero, of a unit that says what else it may be.
fn duration<U: Unit>(text: &str) -> Result<Duration, String> {
    let nanos = measure(text, &TIMES, LONGEST, U::EXPECTED, U::instead_of, "365d")?;
    let seconds = u64::try_from(nanos / NANOS).expect("at most a year");
    Ok(Duration::new(seconds, u32::try_from(nanos % NANOS).expect("below a second")))
}

impl FromStr for Delay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        duration::<Self>(text).map(Self)
    }
}

impl FromStr for MaxDelay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self(None)),
            text => duration::<Self>(text).map(|delay| Self(Some(delay))),
        }
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse()? {
            Delay(Duration::ZERO) => Err(format!("{text} is zero; a limit is switched off nowhere by zero")),
            Delay(duration) => Ok(Self(duration)),
        }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match measure(text, &SIZES, LARGEST, Self::EXPECTED, Self::instead_of, "1PiB")? {
            0 => Err(format!("{text} is zero; a limit is switched off nowhere by zero")),
            bytes => usize::try_from(bytes).map(Self).map_err(|_| format!("{text} is beyond this machine's memory")),
        }
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not {}", Self::EXPECTED);
        let Some((count, per)) = text.split_once('/') else {
            let number = text.parse::<f64>().is_ok();
            return Err(if number { format!("{text} has no unit; {}", Self::instead_of(text)) } else { wrong() });
        };
        let count: u64 = count.trim().parse().map_err(|_| wrong())?;
        let count =
            NonZeroU64::new(count).ok_or_else(|| format!("{text} is zero; take the rate out to switch it off"))?;
        let per = per.trim();
        let per = if per.starts_with(|c: char| c.is_ascii_digit()) { per.to_owned() } else { format!("1{per}") };
        let Span(per) = per.parse().map_err(|_| wrong())?;
        if u128::from(count.get()) * NANOS > FASTEST * per.as_nanos() {
            return Err(format!("{text} is above {FASTEST}/s"));
        }
        Ok(Self { count, per })
    }
}

impl Unit for Delay {
    const EXPECTED: &str = "a duration such as 200ms, 30s or 10m";

    fn instead_of(number: &str) -> String {
        match number.parse::<f64>() {
            Ok(seconds) if seconds < 1.0 => format!("write {}ms or {number}s", seconds * 1_000.0),
            _ => format!("write {number}s or {number}ms"),
        }
    }
}

impl Unit for Span {
    const EXPECTED: &str = Delay::EXPECTED;

    fn instead_of(number: &str) -> String {
        Delay::instead_of(number)
    }
}

impl Unit for MaxDelay {
    const EXPECTED: &str = "auto or a duration such as 200ms, 30s or 10m";

    fn instead_of(number: &str) -> String {
        Delay::instead_of(number)
    }
}

impl Unit for Size {
    const EXPECTED: &str = "a size such as 8KiB or 64MiB";

    fn instead_of(number: &str) -> String {
        format!("write {number}B, {number}KiB or {number}MiB")
    }
}

impl Unit for Rate {
    const EXPECTED: &str = "a rate such as 100/s or 1000000/day";

    fn instead_of(number: &str) -> String {
        format!("write {number}/s")
    }
}

/// A decimal number and one of `units`, in the smallest unit.
fn measure(
    text: &str,
    units: &[(&str, u128)],
    most: u128,
    expected: &str,
    instead_of: fn(&str) -> String,
    most_text: &str,
) -> Result<u128, String> {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = (&text[..end], text[end..].trim_start());
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if text.starts_with('-') {
        return Err(format!("{text} is negative, expected {expected}"));
    }
    // Twelve digits each way are more than anyone means and far from overflow.
    if whole.is_empty() || number.ends_with('.') || fraction.contains('.') || whole.len().max(fraction.len()) > 12 {
        return Err(format!("`{text}` is not {expected}"));
    }
    if unit.is_empty() {
        return Err(format!("{text} has no unit; {}", instead_of(text)));
    }
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        let names: Vec<&str> = units.iter().map(|(name, _)| *name).collect();
        return Err(format!("{text} has the unit `{unit}`, expected one of {}", names.join(", ")));
    };
    let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| format!("`{text}` is not {expected}"))?;
    let scale = 10_u128.pow(u32::try_from(fraction.len()).expect("at most twelve"));
    let value = digits * factor / scale;
    if digits != 0 && value == 0 {
        return Err(format!("{text} is too small"));
    }
    if value > most { Err(format!("{text} is above {most_text}")) } else { Ok(value) }
}

struct Reader<T>(PhantomData<T>);

impl<T: Unit> Visitor<'_> for Reader<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        Err(E::custom(format!("{number} has no unit; {}", T::instead_of(&number.to_string()))))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        Err(E::custom(format!("{number} is not {}", T::EXPECTED)))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        Err(E::custom(format!("{number} has no unit; {}", T::instead_of(&number.to_string()))))
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Numbers;

        impl Visitor<'_> for Numbers {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number from 1 up")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Number, E> {
                match usize::try_from(number) {
                    Ok(0) => Err(E::custom("0 is not allowed, expected a whole number from 1 up")),
                    Ok(number) if number <= 1 << 40 => Ok(Number(number)),
                    Ok(_) | Err(_) => Err(E::custom(format!("{number} is too large"))),
                }
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Number, E> {
                match u64::try_from(number) {
                    Ok(number) => self.visit_u64(number),
                    Err(_) => Err(E::custom(format!("{number} is negative, expected a whole number from 1 up"))),
                }
            }
        }

        deserializer.deserialize_any(Numbers)
    }
}

// === writing ===

impl fmt::Display for Delay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        let units =
            [("h", 3_600 * NANOS), ("m", 60 * NANOS), ("s", NANOS), ("ms", 1_000_000), ("us", 1_000), ("ns", 1)];
        match units.into_iter().find(|(_, unit)| nanos != 0 && nanos.is_multiple_of(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", nanos / unit),
            None => f.write_str("0ms"),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Delay(self.0).fmt(f)
    }
}

impl fmt::Display for MaxDelay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("auto"),
            Some(delay) => Delay(delay).fmt(f),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
        let (name, unit) = units.into_iter().find(|(_, unit)| self.0.is_multiple_of(*unit)).unwrap_or(("B", 1));
        write!(f, "{}{name}", self.0 / unit)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per = Delay(self.per).to_string();
        let single = per.strip_prefix('1').filter(|unit| !unit.starts_with(|c: char| c.is_ascii_digit()));
        write!(f, "{}/{}", self.count, single.unwrap_or(&per))
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

macro_rules! serde_as_text {
    ($($unit:ty),*) => {$(
        impl<'de> Deserialize<'de> for $unit {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Reader(PhantomData))
            }
        }

        impl Serialize for $unit {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}

serde_as_text!(Span, Delay, MaxDelay, Size, Rate);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{from_value, json};

    #[test]
    fn durations() {
        for (text, millis) in [("200ms", 200), ("0.2s", 200), ("30s", 30_000), ("10m", 600_000), ("2h", 7_200_000)] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_millis(millis))), "{text}");
        }
        assert_eq!("1d".parse(), Ok(Span(Duration::from_secs(86_400))));
        assert_eq!("50us".parse(), Ok(Span(Duration::from_micros(50))));
        assert_eq!("0ms".parse(), Ok(Delay(Duration::ZERO)));
        for (text, delay) in [("auto", None), ("0ms", Some(Duration::ZERO)), ("2ms", Some(Duration::from_millis(2)))] {
            assert_eq!(text.parse(), Ok(MaxDelay(delay)));
            assert_eq!(MaxDelay(delay).to_string(), text);
        }
        assert!("never".parse::<MaxDelay>().unwrap_err().contains("auto or a duration"));
        for wrong in
            ["", "s", "1x", "-1s", "0s", "1.s", ".5s", "1.2.3s", "366d", "1e3s", "9999999999999s", "0.0000000001s"]
        {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_bare_number_says_what_to_write() {
        let error = from_value::<Span>(json!(0.2)).unwrap_err().to_string();
        assert_eq!(error, "0.2 has no unit; write 200ms or 0.2s");
        let error = from_value::<Span>(json!("30")).unwrap_err().to_string();
        assert_eq!(error, "30 has no unit; write 30s or 30ms");
        assert!(from_value::<Size>(json!(64)).unwrap_err().to_string().contains("64MiB"));
        assert!(from_value::<Rate>(json!(100)).unwrap_err().to_string().contains("100/s"));
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("64MiB", 64 << 20), ("8KiB", 8192), ("1MB", 1_000_000), ("1.5 KiB", 1536), ("7B", 7)] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for wrong in ["64", "0B", "-1B", "64mib", "9999999GiB"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates() {
        let rate = |count, seconds| Rate { count: NonZeroU64::new(count).unwrap(), per: Duration::from_secs(seconds) };
        assert_eq!("100/s".parse(), Ok(rate(100, 1)));
        assert_eq!("100/10s".parse(), Ok(rate(100, 10)));
        assert_eq!("1000000/day".parse(), Ok(rate(1_000_000, 86_400)));
        for wrong in ["0/s", "-1/s", "1/", "/s", "1.5/s", "100", "10/0s", "9999999999999/s", "1/fortnight"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn numbers_start_at_one() {
        assert_eq!(from_value::<Number>(json!(1)).unwrap(), Number(1));
        for wrong in [json!(0), json!(-1), json!(1.5), json!("1"), json!(u64::MAX)] {
            assert!(from_value::<Number>(wrong.clone()).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,24}") {
            let _ = (text.parse::<Span>(), text.parse::<Size>(), text.parse::<Rate>());
        }

        #[test]
        fn what_is_written_is_read_back(number in 1usize..365, time in 0usize..6, size in 0usize..4) {
            let unit = ["ns", "us", "ms", "s", "m", "h"][time];
            let span: Span = format!("{number}{unit}").parse().unwrap();
            prop_assert_eq!(span.to_string().parse(), Ok(span));
            let unit = ["B", "KiB", "MiB", "GiB"][size];
            let size: Size = format!("{number}{unit}").parse().unwrap();
            prop_assert_eq!(size.to_string().parse(), Ok(size));
            let rate: Rate = format!("{number}/{number}{}", ["s", "m", "h", "d"][time % 4]).parse().unwrap();
            prop_assert_eq!(rate.to_string().parse(), Ok(rate));
        }
    }
}
