//! Accumulators: what a group stores for each aggregate function. A value that was added can be removed again.
//!
//! For `min`, `max`, `first` and `latest` over a table, the state has an index of all values in their order. When the
//! best value is removed, the first entry of the index is the next best value, so that the group's rows are never
//! scanned.

use super::exact_sum::ExactSum;
use crate::declarative::{
    read, read_array, read_byte, read_bytes, read_signed, write_bytes, write_signed, write_sortable,
};
use schemas::codec::Datum;
use std::ops::ControlFlow;
use streams::{Result, State};
use topology::Function;

/// Longest text of a table's row that `min` and `max` compare, in bytes, because it is part of a state key.
pub const TEXT_BYTES_MAX: usize = 1024;

/// The best value so far.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Best {
    /// The group has no value.
    #[default]
    Nothing,
    /// The best value.
    Known {
        /// Bytes by which the value is compared; the value with the smallest bytes is the best.
        rank: Vec<u8>,
        /// Key of the row that has this value.
        row: Vec<u8>,
        /// The value, encoded.
        value: Vec<u8>,
    },
    /// The best value was removed; the first entry of the index is the next best value.
    Unknown,
}

/// An accumulator.
#[derive(Debug, Clone, PartialEq)]
pub enum Accumulator {
    /// Number of values or rows.
    Count(i64),
    /// Exact sum of the integers, and how many there are.
    Ints(i128, i64),
    /// Exact sum of the doubles, and how many there are.
    Doubles(ExactSum, i64),
    /// The best value by rank.
    Best(Best),
}

/// A value that is added to a group or removed from it.
pub struct Value<'s> {
    /// 1 to add the value, -1 to remove it.
    pub by: i64,
    /// The value.
    pub datum: &'s Datum<'s>,
    /// The value, encoded.
    pub raw: &'s [u8],
    /// Order of the row in its group.
    pub order: u128,
    /// Key of the row; empty for an event.
    pub row: &'s [u8],
}

/// The index of a field of a group.
pub struct Index<'i> {
    /// Prefix of its keys: `["x",field,"window",group…,"`.
    pub prefix: &'i [u8],
    /// The task's state.
    pub state: &'i mut State,
}

impl Accumulator {
    /// An accumulator without values.
    pub fn new(function: Function, of_doubles: bool) -> Accumulator {
        match function {
            Function::Count => Accumulator::Count(0),
            Function::Avg if of_doubles => Accumulator::Doubles(ExactSum::default(), 0),
            Function::SumInt | Function::Avg => Accumulator::Ints(0, 0),
            Function::SumDouble => Accumulator::Doubles(ExactSum::default(), 0),
            Function::Min | Function::Max | Function::First | Function::Latest => Accumulator::Best(Best::Nothing),
        }
    }

    /// Adds or removes a value; `index` is set for tables. Returns whether the value is included: for tables, `min` and
    /// `max` ignore texts of more than [`TEXT_BYTES_MAX`].
    pub fn update(&mut self, function: Function, value: &Value<'_>, index: Option<Index<'_>>) -> bool {
        match (self, value.datum) {
            (_, Datum::Null) => {}
            (Accumulator::Count(count), Datum::Bool(false)) if function == Function::Count => *count += 0,
            (Accumulator::Count(count), _) => *count += value.by,
            (Accumulator::Ints(sum, count), Datum::Long(number)) => {
                *sum += i128::from(*number) * i128::from(value.by);
                *count += value.by;
            }
            (Accumulator::Doubles(sum, count), Datum::Double(number)) => {
                sum.add(*number, value.by);
                *count += value.by;
            }
            (Accumulator::Best(best), datum) => {
                let mut rank = Vec::new();
                match function {
                    Function::First => rank.extend_from_slice(&value.order.to_be_bytes()),
                    Function::Latest => rank.extend_from_slice(&(!value.order).to_be_bytes()),
                    _ if !write_sortable(&mut rank, datum) => {}
                    Function::Max => rank.iter_mut().for_each(|byte| *byte = !*byte),
                    _ => {}
                }
                if rank.len() > TEXT_BYTES_MAX && index.is_some() {
                    return false;
                }
                best.update(rank, value, index);
            }
            _ => {}
        }
        true
    }

    /// The result; null without values. `None` if it is out of the range of its type.
    pub fn value<'a>(&'a self, function: Function) -> Option<Datum<'a>> {
        Some(match self {
            Accumulator::Count(count) => Datum::Long(*count),
            Accumulator::Ints(_, 0) | Accumulator::Doubles(_, 0) => Datum::Null,
            Accumulator::Ints(sum, count) if function == Function::Avg => {
                Datum::Double(to_f64(*sum) / count_to_f64(*count))
            }
            Accumulator::Ints(sum, _) => Datum::Long(i64::try_from(*sum).ok()?),
            Accumulator::Doubles(sum, count) if function == Function::Avg => {
                Datum::Double(sum.divided_by(count_to_f64(*count)))
            }
            Accumulator::Doubles(sum, _) => Datum::Double(sum.sum()),
            Accumulator::Best(Best::Known { value, .. }) => read(&mut value.as_slice())?,
            Accumulator::Best(_) => Datum::Null,
        })
    }

    /// Appends the encoded accumulator.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Accumulator::Count(count) => write_signed(out, *count),
            Accumulator::Ints(sum, count) => {
                // Most sums fit in 64 bits.
                match i64::try_from(*sum) {
                    Ok(sum) => {
                        out.push(0);
                        write_signed(out, sum);
                    }
                    Err(_) => {
                        out.push(1);
                        out.extend_from_slice(&sum.to_be_bytes());
                    }
                }
                write_signed(out, *count);
            }
            Accumulator::Doubles(sum, count) => {
                sum.write(out);
                write_signed(out, *count);
            }
            Accumulator::Best(Best::Known { rank, row, value }) => {
                out.push(1);
                [rank, row, value].into_iter().for_each(|bytes| write_bytes(out, bytes));
            }
            Accumulator::Best(Best::Nothing) => out.push(0),
            Accumulator::Best(Best::Unknown) => out.push(2),
        }
    }

    /// Decodes the output of [`Self::write`] for the same function.
    pub fn read(function: Function, of_doubles: bool, rest: &mut &[u8]) -> Option<Accumulator> {
        Some(match Accumulator::new(function, of_doubles) {
            Accumulator::Count(_) => Accumulator::Count(read_signed(rest)?),
            Accumulator::Ints(..) => {
                let sum = match read_byte(rest)? {
                    0 => i128::from(read_signed(rest)?),
                    _ => i128::from_be_bytes(read_array(rest)?),
                };
                Accumulator::Ints(sum, read_signed(rest)?)
            }
            Accumulator::Doubles(..) => Accumulator::Doubles(ExactSum::read(rest)?, read_signed(rest)?),
            Accumulator::Best(_) => Accumulator::Best(match read_byte(rest)? {
                0 => Best::Nothing,
                1 => Best::Known {
                    rank: read_bytes(rest)?.to_vec(),
                    row: read_bytes(rest)?.to_vec(),
                    value: read_bytes(rest)?.to_vec(),
                },
                _ => Best::Unknown,
            }),
        })
    }
}

impl Best {
    fn update(&mut self, rank: Vec<u8>, value: &Value<'_>, index: Option<Index<'_>>) {
        if let Some(index) = index {
            let key = index_key(index.prefix, &rank, value.row);
            if value.by > 0 {
                index.state.put(&key, value.raw.to_vec());
            } else {
                index.state.delete(&key);
            }
        }
        let candidate = (rank.as_slice(), value.row);
        match self {
            Best::Known { rank: best, row, .. } if value.by < 0 => {
                if (best.as_slice(), row.as_slice()) == candidate {
                    *self = Best::Unknown;
                }
                return;
            }
            Best::Known { rank: best, row, .. } if (best.as_slice(), row.as_slice()) <= candidate => return,
            Best::Nothing | Best::Known { .. } if value.by > 0 => {}
            _ => return,
        }
        *self = Best::Known {
            rank,
            row: value.row.to_vec(),
            value: value.raw.to_vec(),
        };
    }

    /// Reads the best value from the index if it is unknown.
    pub fn resolve(&mut self, prefix: &[u8], state: &State) -> Result<()> {
        if *self != Best::Unknown {
            return Ok(());
        }
        *self = Best::Nothing;
        state.scan(prefix, &mut |key, value| {
            if let Some((rank, row)) = key.get(prefix.len()..).and_then(parse_index_key) {
                *self = Best::Known {
                    rank,
                    row,
                    value: value.to_vec(),
                };
            }
            ControlFlow::Break(())
        })
    }
}

/// `…"rank in hexadecimal",row…]`. A rank that is a prefix of another rank sorts before it, because `"` is less than
/// any digit.
fn index_key(prefix: &[u8], rank: &[u8], row: &[u8]) -> Vec<u8> {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    let mut key = Vec::with_capacity(prefix.len() + 2 * rank.len() + row.len() + 3);
    key.extend_from_slice(prefix);
    for byte in rank {
        for nibble in [byte >> 4, byte & 15] {
            key.extend(DIGITS.get(usize::from(nibble)));
        }
    }
    key.push(b'"');
    if !row.is_empty() {
        key.push(b',');
        key.extend_from_slice(row);
    }
    key.push(b']');
    key
}

fn parse_index_key(tail: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let end = tail.iter().position(|byte| *byte == b'"')?;
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = tail.get(..end)?.chunks_exact(2);
    let rank: Option<Vec<u8>> = pairs
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect();
    let row = tail.get(end + 1..)?.strip_suffix(b"]")?;
    Some((rank?, row.strip_prefix(b",").unwrap_or(row).to_vec()))
}

#[expect(
    clippy::as_conversions,
    clippy::cast_precision_loss,
    reason = "an average is a double, so the sum is rounded"
)]
fn to_f64(sum: i128) -> f64 {
    sum as f64
}

#[expect(
    clippy::as_conversions,
    clippy::cast_precision_loss,
    reason = "exact up to 2^53 rows"
)]
fn count_to_f64(count: i64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accumulator_round_trips() {
        let best = Best::Known {
            rank: vec![1],
            row: b"7".to_vec(),
            value: vec![3, 2],
        };
        let cases = [
            (Function::Count, false, Accumulator::Count(-3)),
            (Function::SumInt, false, Accumulator::Ints(5, 2)),
            (Function::Avg, false, Accumulator::Ints(i128::from(i64::MAX) * 4, 2)),
            (Function::SumDouble, true, Accumulator::Doubles(ExactSum::default(), 0)),
            (Function::Min, false, Accumulator::Best(best)),
            (Function::Latest, false, Accumulator::Best(Best::Unknown)),
        ];
        for (function, of_doubles, accumulator) in cases {
            let mut out = Vec::new();
            accumulator.write(&mut out);
            let mut rest = out.as_slice();
            assert_eq!(Accumulator::read(function, of_doubles, &mut rest), Some(accumulator));
            assert!(rest.is_empty());
        }
    }

    #[test]
    fn index_key_round_trips() {
        for row in [&b""[..], b"17,\"a\""] {
            let key = index_key(b"[\"x\",\"", &[0, 0xfe], row);
            assert_eq!(parse_index_key(&key[6..]), Some((vec![0, 0xfe], row.to_vec())));
        }
    }
}
