//! Exact sums of doubles: what is added can be taken back, in any order, and the sum is rounded once, when it is asked.
//!
//! A sum is a list of doubles that do not overlap, the least first (Shewchuk, "Adaptive Precision Floating-Point
//! Arithmetic", 1997): adding one to another gives the rounded sum and the exact rest.
//! Guarantees: the same values give the same sum whatever their order; a value that was taken back leaves no trace.
//! Never: an overflow on the way: values from 2^960 on count as infinite.

use crate::declared::values::{read_array, read_number, read_signed, write_number, write_signed};

/// 2^960: from here on a value counts as infinite; 2^63 smaller ones still have a finite sum.
const HUGE: f64 = f64::from_bits((1023 + 960) << 52);

/// An exact sum.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Exact {
    parts: Vec<f64>,
    nans: i64,
    infinite: i64,
    infinite_below: i64,
}

impl Exact {
    /// Adds a value (`by` = 1), or takes it back (`by` = -1).
    pub fn add(&mut self, value: f64, by: i64) {
        if value.is_nan() {
            self.nans += by;
        } else if value >= HUGE {
            self.infinite += by;
        } else if value <= -HUGE {
            self.infinite_below += by;
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
        if self.nans > 0 || (self.infinite > 0 && self.infinite_below > 0) {
            return f64::NAN;
        }
        if self.infinite > 0 {
            return f64::INFINITY;
        }
        if self.infinite_below > 0 {
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
        // Exactly half way between two doubles, what lies below decides.
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

    /// Appends its bytes.
    pub fn write(&self, out: &mut Vec<u8>) {
        write_number(out, u64::try_from(self.parts.len()).unwrap_or(u64::MAX));
        for part in &self.parts {
            out.extend_from_slice(&part.to_bits().to_be_bytes());
        }
        for count in [self.nans, self.infinite, self.infinite_below] {
            write_signed(out, count);
        }
    }

    /// Reads its bytes.
    pub fn read(rest: &mut &[u8]) -> Option<Self> {
        let mut parts = Vec::new();
        for _ in 0..read_number(rest)? {
            parts.push(f64::from_bits(u64::from_be_bytes(read_array(rest)?)));
        }
        Some(Exact {
            parts,
            nans: read_signed(rest)?,
            infinite: read_signed(rest)?,
            infinite_below: read_signed(rest)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_order_does_not_matter_and_what_is_taken_back_leaves_no_trace(
            values in prop::collection::vec(any::<f64>(), 0..20),
            others in prop::collection::vec(any::<f64>(), 0..20),
        ) {
            let mut straight = Exact::default();
            values.iter().for_each(|value| straight.add(*value, 1));
            let mut around = Exact::default();
            others.iter().for_each(|value| around.add(*value, 1));
            values.iter().rev().for_each(|value| around.add(*value, 1));
            others.iter().for_each(|value| around.add(*value, -1));
            prop_assert_eq!(around.sum().to_bits(), straight.sum().to_bits());
            let mut bytes = Vec::new();
            straight.write(&mut bytes);
            prop_assert_eq!(Exact::read(&mut bytes.as_slice()).unwrap().sum().to_bits(), straight.sum().to_bits());
        }
    }

    #[test]
    fn a_small_value_survives_a_great_one() {
        let mut sum = Exact::default();
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
    fn a_tie_is_decided_by_what_lies_below() {
        let mut sum = Exact::default();
        for value in [1.0, f64::EPSILON / 2.0, 1e-40] {
            sum.add(value, 1);
        }
        assert_eq!(sum.sum(), 1.0 + f64::EPSILON);
    }
}
