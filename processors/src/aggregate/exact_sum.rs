//! Exact sums of doubles. Values can be added and subtracted in any order, and only the result is rounded.
//!
//! A sum is stored as a list of non-overlapping doubles, in ascending order of magnitude (Shewchuk, "Adaptive Precision
//! Floating-Point Arithmetic", 1997): the addition of two doubles gives the rounded sum and the exact error. The result
//! does not depend on the order of the values, and after a value is subtracted, no rounding error remains. Values from
//! 2^960 on are summed in units of 2^128, so that no intermediate result overflows.

use crate::declarative::{read_array, read_number, read_signed, write_number, write_signed};

/// 2^960. The sum of 2^63 smaller values is finite.
const HUGE: f64 = f64::from_bits((1023 + 960) << 52);
/// 2^-128. The sum of 2^63 values in units of 2^128 is finite.
const SCALE: f64 = f64::from_bits((1023 - 128) << 52);
/// 2^128.
const UNIT: f64 = f64::from_bits((1023 + 128) << 52);
/// Number that is written before a sum with huge values. No sum has so many parts.
const HAS_HUGE: u64 = u64::MAX;

/// An exact sum.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExactSum {
    parts: Parts,
    /// Sum of the values from [`HUGE`] on, in units of 2^128.
    huge: Parts,
    nans: i64,
    infinite: i64,
    negative_infinite: i64,
}

/// Non-overlapping doubles in ascending order of magnitude.
#[derive(Debug, Clone, Default, PartialEq)]
struct Parts(Vec<f64>);

impl Parts {
    fn add(&mut self, value: f64) {
        let mut carry = value;
        let mut kept = 0;
        for at in 0..self.0.len() {
            let Some(part) = self.0.get(at).copied() else { break };
            let (larger, smaller) = if carry.abs() < part.abs() {
                (part, carry)
            } else {
                (carry, part)
            };
            let sum = larger + smaller;
            let rest = smaller - (sum - larger);
            if rest != 0.0
                && let Some(slot) = self.0.get_mut(kept)
            {
                *slot = rest;
                kept += 1;
            }
            carry = sum;
        }
        self.0.truncate(kept);
        if carry != 0.0 {
            self.0.push(carry);
        }
    }

    /// The sum, rounded to the nearest double, ties to even.
    fn rounded(&self) -> f64 {
        let mut parts = self.0.iter().rev().copied();
        let mut sum = parts.next().unwrap_or(0.0);
        let mut rest = 0.0;
        for part in parts.by_ref() {
            let before = sum;
            sum = before + part;
            rest = part - (sum - before);
            if rest != 0.0 {
                break;
            }
        }
        // If the sum is half way between two doubles, the smaller parts decide the rounding.
        if let Some(below) = parts.next()
            && ((rest < 0.0 && below < 0.0) || (rest > 0.0 && below > 0.0))
        {
            let twice = rest * 2.0;
            let next = sum + twice;
            if next - sum == twice {
                sum = next;
            }
        }
        sum
    }

    fn write(&self, out: &mut Vec<u8>) {
        write_number(out, u64::try_from(self.0.len()).unwrap_or(u64::MAX));
        for part in &self.0 {
            out.extend_from_slice(&part.to_bits().to_be_bytes());
        }
    }

    fn read(count: u64, rest: &mut &[u8]) -> Option<Self> {
        let part = |_| Some(f64::from_bits(u64::from_be_bytes(read_array(rest)?)));
        (0..count).map(part).collect::<Option<_>>().map(Parts)
    }
}

impl ExactSum {
    /// Adds a value (`by` = 1), or subtracts it (`by` = -1).
    pub fn add(&mut self, value: f64, by: i64) {
        let signed = if by < 0 { -value } else { value };
        if value.is_nan() {
            self.nans += by;
        } else if value == f64::INFINITY {
            self.infinite += by;
        } else if value == f64::NEG_INFINITY {
            self.negative_infinite += by;
        } else if value.abs() >= HUGE {
            self.huge.add(signed * SCALE);
        } else {
            self.parts.add(signed);
        }
    }

    /// The sum, rounded to the nearest double, ties to even; infinite if it exceeds the range of doubles.
    pub fn sum(&self) -> f64 {
        self.divided_by(1.0)
    }

    /// The sum divided by a number of values.
    pub fn divided_by(&self, count: f64) -> f64 {
        if self.nans > 0 || (self.infinite > 0 && self.negative_infinite > 0) {
            return f64::NAN;
        }
        if self.infinite > 0 {
            return f64::INFINITY;
        }
        if self.negative_infinite > 0 {
            return f64::NEG_INFINITY;
        }
        if self.huge.0.is_empty() {
            return self.parts.rounded() / count;
        }
        let mut all = self.huge.clone();
        for part in &self.parts.0 {
            let scaled = part * SCALE;
            // A part that is too small for this unit can still decide the rounding.
            all.add(if scaled == 0.0 {
                f64::from_bits(1).copysign(*part)
            } else {
                scaled
            });
        }
        // The division comes first, because a mean can be in range although the sum is not.
        all.rounded() / count * UNIT
    }

    /// Appends the encoded sum.
    pub fn write(&self, out: &mut Vec<u8>) {
        if !self.huge.0.is_empty() {
            write_number(out, HAS_HUGE);
            self.huge.write(out);
        }
        self.parts.write(out);
        for count in [self.nans, self.infinite, self.negative_infinite] {
            write_signed(out, count);
        }
    }

    /// Decodes the output of [`Self::write`].
    pub fn read(rest: &mut &[u8]) -> Option<Self> {
        let mut count = read_number(rest)?;
        let mut huge = Parts::default();
        if count == HAS_HUGE {
            huge = Parts::read(read_number(rest)?, rest)?;
            count = read_number(rest)?;
        }
        Some(ExactSum {
            parts: Parts::read(count, rest)?,
            huge,
            nans: read_signed(rest)?,
            infinite: read_signed(rest)?,
            negative_infinite: read_signed(rest)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sum_is_independent_of_order_and_undone_values(
            values in prop::collection::vec(any::<f64>(), 0..20),
            others in prop::collection::vec(any::<f64>(), 0..20),
        ) {
            let mut direct = ExactSum::default();
            values.iter().for_each(|value| direct.add(*value, 1));
            let mut detour = ExactSum::default();
            others.iter().for_each(|value| detour.add(*value, 1));
            values.iter().rev().for_each(|value| detour.add(*value, 1));
            others.iter().for_each(|value| detour.add(*value, -1));
            prop_assert_eq!(detour.sum().to_bits(), direct.sum().to_bits());
            let mut bytes = Vec::new();
            direct.write(&mut bytes);
            prop_assert_eq!(ExactSum::read(&mut bytes.as_slice()).unwrap().sum().to_bits(), direct.sum().to_bits());
        }
    }

    #[test]
    fn greatest_values_are_summed_exactly() {
        let greatest = f64::MAX;
        let mut sum = ExactSum::default();
        for value in [greatest, 1.5, HUGE] {
            sum.add(value, 1);
        }
        assert_eq!(sum.sum(), greatest);
        sum.add(greatest, 1);
        // Beyond the range of doubles, but the mean of the four values is not.
        assert_eq!(sum.sum(), f64::INFINITY);
        assert_eq!(sum.divided_by(4.0), greatest / 2.0);
        let mut bytes = Vec::new();
        sum.write(&mut bytes);
        assert_eq!(ExactSum::read(&mut bytes.as_slice()), Some(sum.clone()));
        for cut in 0..bytes.len() {
            assert_eq!(ExactSum::read(&mut &bytes[..cut]), None, "{cut} bytes");
        }
        [greatest, greatest, HUGE]
            .into_iter()
            .for_each(|value| sum.add(value, -1));
        assert_eq!(sum.sum(), 1.5);
        sum.add(-greatest, 1);
        assert_eq!(sum.sum(), -greatest);
    }

    #[test]
    fn small_value_survives_a_large_one() {
        let mut sum = ExactSum::default();
        for value in [1e100, 1.0, 0.1, -1e100] {
            sum.add(value, 1);
        }
        assert_eq!(sum.sum(), 1.1);
        sum.add(f64::INFINITY, 1);
        assert_eq!(sum.sum(), f64::INFINITY);
        sum.add(f64::NEG_INFINITY, 1);
        assert!(sum.sum().is_nan());
        sum.add(f64::NEG_INFINITY, -1);
        sum.add(f64::INFINITY, -1);
        assert_eq!(sum.sum(), 1.1);
    }

    #[test]
    fn tie_is_decided_by_smaller_parts() {
        let mut sum = ExactSum::default();
        for value in [1.0, f64::EPSILON / 2.0, 1e-40] {
            sum.add(value, 1);
        }
        assert_eq!(sum.sum(), 1.0 + f64::EPSILON);
    }
}
