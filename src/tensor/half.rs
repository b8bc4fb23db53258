//! FP16 and BF16 as numbers (contract 01 section 3.1).

/// How a small float is laid out: bits of its fraction, and its smallest normal exponent.
#[derive(Clone, Copy, Debug)]
pub struct Half {
    fraction: i32,
    smallest: i32,
    infinity: u16,
}

/// IEEE half precision.
pub const FP16: Half = Half { fraction: 10, smallest: -14, infinity: 0x7C00 };
/// The upper half of an `f32`.
pub const BF16: Half = Half { fraction: 7, smallest: -126, infinity: 0x7F80 };

impl Half {
    /// NaN, quiet.
    pub const fn nan(self) -> u16 {
        self.infinity | 1 << (self.fraction - 1)
    }

    /// Infinity, above zero.
    pub const fn infinity(self) -> u16 {
        self.infinity
    }

    /// The nearest half to `value`, ties to even; `None` if it is beyond the largest one.
    pub fn of(self, value: f64) -> Option<u16> {
        let magnitude = value.abs();
        let exponent = ((magnitude.to_bits() >> 52) as i32 - 1023).max(self.smallest);
        // Scaled by a power of two, which is exact, until one unit in the last place is 1.
        let units = (magnitude * 2.0_f64.powi(self.fraction - exponent)).round_ties_even();
        if units > f64::from(1 << (self.fraction + 1)) {
            return None;
        }
        // A carry out of the fraction runs into the exponent, as it should.
        let bits = ((exponent - self.smallest) << self.fraction) + units as i32;
        let bits = u16::try_from(bits).ok().filter(|bits| *bits < self.infinity)?;
        Some(if value.is_sign_negative() { bits | 0x8000 } else { bits })
    }

    /// The value of `bits`.
    pub fn value(self, bits: u16) -> f32 {
        let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
        let field = i32::from(bits & 0x7FFF) >> self.fraction;
        let fraction = i32::from(bits) & ((1 << self.fraction) - 1);
        if bits & 0x7FFF >= self.infinity {
            return if fraction == 0 { sign * f32::INFINITY } else { f32::NAN };
        }
        let (units, exponent) = if field == 0 { (fraction, 1) } else { (fraction + (1 << self.fraction), field) };
        // Over a double: the smallest BF16 is below the smallest power that `powi` gives as a single.
        (f64::from(units) * 2.0_f64.powi(exponent - 1 + self.smallest - self.fraction)) as f32 * sign
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_contract() {
        assert_eq!(FP16.of(1.5).unwrap().to_le_bytes(), [0x00, 0x3E]);
        assert_eq!(FP16.of(-2.0).unwrap().to_le_bytes(), [0x00, 0xC0]);
        assert_eq!(BF16.of(1.5).unwrap().to_le_bytes(), [0xC0, 0x3F]);
        assert_eq!(BF16.of(-2.0).unwrap().to_le_bytes(), [0x00, 0xC0]);
    }

    #[test]
    fn every_half_is_read_back() {
        for half in [FP16, BF16] {
            for bits in 0..=u16::MAX {
                let value = half.value(bits);
                if value.is_finite() {
                    assert_eq!(half.of(value.into()), Some(bits), "{half:?} {bits:#06x} {value}");
                }
            }
        }
        assert_eq!(BF16.value(0x3FC0), f32::from_bits(0x3FC0_0000));
        assert!(FP16.value(FP16.nan()).is_nan() && BF16.value(BF16.nan()).is_nan());
    }

    #[test]
    fn ties_go_to_even_and_too_large_is_none() {
        assert_eq!(FP16.of(2049.0), FP16.of(2048.0));
        assert_eq!(FP16.of(2051.0), FP16.of(2052.0));
        assert_eq!(FP16.of(65519.0), FP16.of(65504.0));
        assert_eq!(FP16.of(65520.0), None);
        assert_eq!(FP16.of(f64::INFINITY), None);
        assert_eq!(FP16.of(1e-10), Some(0));
        assert_eq!(BF16.of(3.5e38), None);
    }
}
