//! Exact sums of doubles. Values can be added and subtracted in any order, and only the result is rounded.
//!
//! A sum is stored as a list of non-overlapping doubles, in ascending order of magnitude (Shewchuk, "Adaptive Precision
//! Floating-Point Arithmetic", 1997): the addition of two doubles gives the rounded sum and the exact error. The result
//! does not depend on the order of the values, and after a value is subtracted, no rounding error remains. Values from
//! 2^960 on count as infinite, so that no intermediate result overflows.

use crate::declarative::{read_array, read_number, read_signed, write_number, write_signed};

/// 2^960. Greater values count as infinite; the sum of 2^63 smaller ones is still finite.
const HUGE: f64 = f64::from_bits((1023 + 960) << 52);

/// An exact sum.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExactSum {
    parts: Vec<f64>,
    nans: i64,
    infinite: i64,
    negative_infinite: i64,
}

impl ExactSum {
    /// Adds a value (`by` = 1), or subtracts it (`by` = -1).
    pub fn add(&mut self, value: f64, by: i64) {
        if value.is_nan() {
            self.nans += by;
        } else if value >= HUGE {
            self.infinite += by;
        } else if value <= -HUGE {
            self.negative_infinite += by;
        } else {
            self.add_finite(if by < 0 { -value } else { value });
        }
    }

    fn add_finite(&mut self, value: f64) {
        let mut carry = value;
        let mut kept = 0;
        for at in 0..self.parts.len() {
            let Some(part) = self.parts.get(at).copied() else { break };
            let (larger, smaller) = if carry.abs() < part.abs() {
                (part, carry)
            } else {
                (carry, part)
            };
            let sum = larger + smaller;
            let rest = smaller - (sum - larger);
            if rest != 0.0
                && let Some(slot) = self.parts.get_mut(kept)
            {
                *slot = rest;
                kept += 1;
            }
            carry = sum;
        }
        self.parts.truncate(kept);
        if carry != 0.0 {
            self.parts.push(carry);
        }
    }

    /// The sum, rounded to the nearest double, ties to even.
    pub fn sum(&self) -> f64 {
        if self.nans > 0 || (self.infinite > 0 && self.negative_infinite > 0) {
            return f64::NAN;
        }
        if self.infinite > 0 {
            return f64::INFINITY;
        }
        if self.negative_infinite > 0 {
            return f64::NEG_INFINITY;
        }
        let mut parts = self.parts.iter().rev().copied();
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

    /// Appends the encoded sum.
    pub fn write(&self, out: &mut Vec<u8>) {
        write_number(out, u64::try_from(self.parts.len()).unwrap_or(u64::MAX));
        for part in &self.parts {
            out.extend_from_slice(&part.to_bits().to_be_bytes());
        }
        for count in [self.nans, self.infinite, self.negative_infinite] {
            write_signed(out, count);
        }
    }

    /// Decodes the output of [`Self::write`].
    pub fn read(rest: &mut &[u8]) -> Option<Self> {
        let mut parts = Vec::new();
        for _ in 0..read_number(rest)? {
            parts.push(f64::from_bits(u64::from_be_bytes(read_array(rest)?)));
        }
        Some(ExactSum {
            parts,
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
