//! Numbers out of JSON tokens: exact for integers, correctly rounded for floats.
//!
//! The usual way, over a double, is wrong twice: integers above 2^53 change their value, and a decimal
//! rounded to a double and then to a single may end up one step off. So tokens are read as what the
//! tensor holds (contract 00 section 6).

use std::str::FromStr;

/// A number as written: `mantissa * 10^exponent`, as long as that is all of it.
#[derive(Clone, Copy, Debug)]
pub(in crate::wire) struct Decimal {
    negative: bool,
    mantissa: u64,
    exponent: i32,
    /// It has more digits than `mantissa` can hold: look at the text again.
    cut: bool,
    /// It has neither a fraction nor an exponent.
    whole: bool,
}

/// Digits that always fit into a `u64`.
const DIGITS: usize = 19;

/// Powers of ten that a double holds exactly.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];

/// The number at the start of `bytes`, and the length of its token; `None` if there is none.
///
/// Always inlined, as its helper is: the loop over elements is a quarter faster for it (measured at 768 floats).
#[inline(always)]
pub(in crate::wire) fn scan(bytes: &[u8]) -> Option<(Decimal, usize)> {
    let negative = bytes.first() == Some(&b'-');
    let start = usize::from(negative);
    let mut number = Decimal { negative, mantissa: 0, exponent: 0, cut: false, whole: true };
    let mut count = 0;
    let mut at = match bytes.get(start)? {
        // Nothing but a fraction or an exponent may follow a zero.
        b'0' => start + 1,
        b'1'..=b'9' => digits(bytes, start, &mut number, &mut count),
        _ => return None,
    };
    if bytes.get(at) == Some(&b'.') {
        let fraction = at + 1;
        at = digits(bytes, fraction, &mut number, &mut count);
        if at == fraction {
            return None;
        }
        number.whole = false;
        number.exponent = i32::try_from(at - fraction).map_or(i32::MIN / 2, |digits| -digits);
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        let (exponent, end) = exponent(bytes, at + 1)?;
        number.whole = false;
        number.exponent = number.exponent.saturating_add(exponent);
        at = end;
    }
    Some((number, at))
}

/// Adds the digits from `at` on to `number`; where they end.
#[inline(always)]
fn digits(bytes: &[u8], mut at: usize, number: &mut Decimal, count: &mut usize) -> usize {
    // Eight at a time: most floats have more, and one multiplication is cheaper than eight.
    while let Some(eight) = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let word = u64::from_le_bytes(*eight);
        if !are_digits(word) || *count + 8 > DIGITS {
            break;
        }
        number.mantissa = number.mantissa * 100_000_000 + eight_digits(word);
        *count += 8;
        at += 8;
    }
    while let Some(digit @ b'0'..=b'9') = bytes.get(at) {
        if *count < DIGITS {
            number.mantissa = number.mantissa * 10 + u64::from(digit - b'0');
            *count += 1;
        } else {
            number.cut = true;
        }
        at += 1;
    }
    at
}

/// True if all eight bytes are digits: both nibbles are looked at in all bytes at once.
fn are_digits(word: u64) -> bool {
    const HIGH: u64 = 0xF0F0_F0F0_F0F0_F0F0;
    const ZERO: u64 = 0x3030_3030_3030_3030;
    const SIX: u64 = 0x0606_0606_0606_0606;
    word & HIGH == ZERO && word.wrapping_add(SIX) & HIGH == ZERO
}

/// The value of eight digits, the first one in the lowest byte: pairs, then fours, then all.
fn eight_digits(word: u64) -> u64 {
    const PAIRS: u64 = 0x00FF_00FF_00FF_00FF;
    const FOURS: u64 = 0x0000_FFFF_0000_FFFF;
    let word = word & 0x0F0F_0F0F_0F0F_0F0F;
    let word = word.wrapping_mul(10).wrapping_add(word >> 8) & PAIRS;
    let word = word.wrapping_mul(100).wrapping_add(word >> 16) & FOURS;
    word.wrapping_mul(10_000).wrapping_add(word >> 32) & 0xFFFF_FFFF
}

fn exponent(bytes: &[u8], at: usize) -> Option<(i32, usize)> {
    let negative = bytes.get(at) == Some(&b'-');
    let start = at + usize::from(matches!(bytes.get(at), Some(b'+' | b'-')));
    let mut end = start;
    let mut value = 0_i32;
    while let Some(digit @ b'0'..=b'9') = bytes.get(end) {
        // A saturated exponent is beyond every type; a quarter of the range leaves room for sums.
        value = value.saturating_mul(10).saturating_add(i32::from(digit - b'0')).min(i32::MAX / 4);
        end += 1;
    }
    (end > start).then_some((if negative { -value } else { value }, end))
}

/// The slow and certain way.
#[cold]
fn parse<T: FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

impl Decimal {
    /// The nearest single, ties to even; `None` if it is beyond the largest one. `text` is the token.
    pub(in crate::wire) fn single(&self, text: &[u8]) -> Option<f32> {
        if let Some(double) = self.nearly() {
            // `double` is at most 1.5 units in the last place off. Unless a border between two singles
            // lies that near, rounding it gives what rounding the exact value gives.
            const BELOW: u64 = (1 << 29) - 1;
            if (double.to_bits() & BELOW).abs_diff(1 << 28) > 2 {
                let single = double as f32;
                return single.is_finite().then_some(if self.negative { -single } else { single });
            }
        }
        parse(text).filter(|single: &f32| single.is_finite())
    }

    /// The nearest double, ties to even; `None` if it is beyond the largest one. `text` is the token.
    pub(in crate::wire) fn double(&self, text: &[u8]) -> Option<f64> {
        match self.nearly() {
            // Both operands are exact, so the one rounding of the operation is the only one.
            Some(double) if self.mantissa <= 1 << 53 => Some(if self.negative { -double } else { double }),
            _ => parse(text).filter(|double: &f64| double.is_finite()),
        }
    }

    /// Its magnitude within 1.5 units in the last place, if that is cheap. Never beyond the normal
    /// range of a single at the lower end: it is 0 or at least 1e-22.
    fn nearly(&self) -> Option<f64> {
        if self.cut {
            return None;
        }
        let power = POWERS.get(usize::try_from(self.exponent.unsigned_abs()).ok()?)?;
        let mantissa = self.mantissa as f64;
        Some(if self.exponent < 0 { mantissa / power } else { mantissa * power })
    }

    /// The exact integer; `None` if it is none, or has more digits than any integer type. `text` is the token.
    pub(in crate::wire) fn integer(&self, text: &[u8]) -> Option<i128> {
        if self.whole && !self.cut {
            let magnitude = i128::from(self.mantissa);
            return Some(if self.negative { -magnitude } else { magnitude });
        }
        self.exact(text)
    }

    /// The same by the digits of the text, for `1.0`, `1e3`, `0.5e1` and 20 digits.
    #[cold]
    fn exact(&self, text: &[u8]) -> Option<i128> {
        let mut magnitude = 0_i128;
        // Zeros count only once another digit follows: those at the end are part of the exponent.
        let mut zeros = 0_u32;
        let mut fraction = 0_i32;
        let mut in_fraction = false;
        let mut written = 0;
        for byte in text.iter().copied() {
            match byte {
                b'.' => in_fraction = true,
                b'0'..=b'9' => {
                    fraction = fraction.saturating_add(i32::from(in_fraction));
                    if byte == b'0' {
                        zeros += u32::from(magnitude != 0);
                        continue;
                    }
                    let shift = 10_i128.checked_pow(zeros + 1)?;
                    magnitude = magnitude.checked_mul(shift)?.checked_add(i128::from(byte - b'0'))?;
                    zeros = 0;
                }
                b'e' | b'E' => {
                    written = exponent(text, text.iter().position(|byte| matches!(byte, b'e' | b'E'))? + 1)?.0;
                    break;
                }
                _ => {}
            }
        }
        if magnitude == 0 {
            return Some(0);
        }
        let power = i64::from(zeros) + i64::from(written) - i64::from(fraction);
        let power = u32::try_from(power).ok()?;
        let magnitude = magnitude.checked_mul(10_i128.checked_pow(power)?)?;
        Some(if self.negative { -magnitude } else { magnitude })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn single(text: &str) -> Option<f32> {
        scan(text.as_bytes()).unwrap().0.single(text.as_bytes())
    }

    fn double(text: &str) -> Option<f64> {
        scan(text.as_bytes()).unwrap().0.double(text.as_bytes())
    }

    fn integer(text: &str) -> Option<i128> {
        scan(text.as_bytes()).unwrap().0.integer(text.as_bytes())
    }

    #[test]
    fn a_token_ends_where_the_grammar_says() {
        for (text, length) in [("1,", 1), ("-0.5e+10]", 8), ("01", 1), ("12345678901234567890 ", 20), ("0e0", 3)] {
            assert_eq!(scan(text.as_bytes()).map(|(_, length)| length), Some(length), "{text}");
        }
        for text in ["", "-", "+1", ".5", "1.", "1.e3", "1e", "1e+", "NaN", "-Infinity", "x"] {
            assert!(scan(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn integers_are_exact() {
        assert_eq!(integer("9007199254740993"), Some(9_007_199_254_740_993));
        assert_eq!(integer("18446744073709551615"), Some(u64::MAX.into()));
        assert_eq!(integer("-9223372036854775808"), Some(i64::MIN.into()));
        for one in ["1", "1.0", "1.000", "10e-1", "0.1e1", "1e0", "0.0001e4", "1E+0"] {
            assert_eq!(integer(one), Some(1), "{one}");
        }
        for zero in ["0", "-0", "0.0", "-0e99", "0e-99999999999"] {
            assert_eq!(integer(zero), Some(0), "{zero}");
        }
        assert_eq!(integer("-12.5e1"), Some(-125));
        assert_eq!(integer("100e-2"), Some(1));
        for none in ["1.5", "1e-1", "105e-2", "1e99", "1e99999999999", "1e-99999999999", "0.1"] {
            assert_eq!(integer(none), None, "{none}");
        }
    }

    #[test]
    fn a_single_is_rounded_once() {
        // 1 + 2^-24 + 2^-60: just above the border between 1 and the next single. A double loses the
        // last bit, lies on the border, and would be rounded to even: down.
        let text = "1.00000005960464477626";
        assert_eq!(text.parse::<f64>().unwrap() as f32, 1.0);
        assert_eq!(single(text), Some(1.000_000_1));
        assert_eq!(single("1.000000059604644775390625"), Some(1.0), "a tie goes to even");
        assert_eq!(single("0.10000000149011612"), Some(0.1));
        assert_eq!(single("1e-45"), Some(1e-45));
        assert_eq!(single("-0").map(f32::to_bits), Some((-0.0_f32).to_bits()));
    }

    #[test]
    fn beyond_the_largest_is_no_number() {
        assert_eq!(single("3.4028235e38"), Some(f32::MAX));
        assert_eq!(single("3.5e38"), None);
        assert_eq!(single("9999999999999999999e21"), None);
        assert_eq!(double("1.7976931348623157e308"), Some(f64::MAX));
        assert_eq!(double("1e999"), None);
        assert_eq!(double("1e-999"), Some(0.0));
    }

    proptest! {
        #[test]
        fn any_token_is_the_number_that_the_standard_library_reads(
            text in r"-?(0|[1-9][0-9]{0,22})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?"
        ) {
            prop_assert_eq!(scan(text.as_bytes()).map(|(_, length)| length), Some(text.len()));
            let expected: f32 = text.parse().unwrap();
            prop_assert_eq!(single(&text).map(f32::to_bits), expected.is_finite().then_some(expected.to_bits()));
            let expected: f64 = text.parse().unwrap();
            prop_assert_eq!(double(&text).map(f64::to_bits), expected.is_finite().then_some(expected.to_bits()));
        }

        #[test]
        fn what_is_printed_is_read_back(single_bits: u32, double_bits: u64, whole: i64) {
            let value = f32::from_bits(single_bits);
            if value.is_finite() {
                prop_assert_eq!(single(ryu::Buffer::new().format(value)).map(f32::to_bits), Some(single_bits));
            }
            let value = f64::from_bits(double_bits);
            if value.is_finite() {
                prop_assert_eq!(double(ryu::Buffer::new().format(value)).map(f64::to_bits), Some(double_bits));
            }
            prop_assert_eq!(integer(&whole.to_string()), Some(whole.into()));
        }

        #[test]
        fn a_single_next_to_a_border_is_rounded_once(bits in 0x2000_0000_u32..0x6000_0000, above: bool, digits in 16_usize..30) {
            // The border above a single, printed with some digits cut off: just above or below it.
            let border = (f64::from(f32::from_bits(bits)) + f64::from(f32::from_bits(bits + 1))) / 2.0;
            let text = format!("{border:.digits$e}");
            let text = if above { text.replace('e', "1e") } else { text };
            prop_assert_eq!(single(&text), text.parse().ok());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            if let Some((number, length)) = scan(&bytes) {
                let text = &bytes[..length];
                let _ = (number.single(text), number.double(text), number.integer(text));
            }
        }
    }
}
