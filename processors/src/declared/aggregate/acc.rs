//! What a group keeps of its rows, one accumulator an aggregate.
//!
//! Guarantees: taking a value back undoes adding it. Over a table the least, greatest, first and latest values stand
//! in the state in their order, so that the next best is one look-up away when the best is taken back.
//! Never: a scan over a group's rows.

use super::exact::Exact;
use crate::declared::values::{
    read, read_array, read_byte, read_bytes, read_signed, write_bytes, write_signed, write_sortable,
};
use schemas::codec::Datum;
use std::ops::ControlFlow;
use streams::{Result, State};
use topology::Function;

/// Longest text of a table's row that is compared for a minimum or maximum, in bytes: it stands in a state key.
pub const TEXT_BYTES_MAX: usize = 1024;

/// The best value so far.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Best {
    /// There is none.
    #[default]
    Nothing,
    /// It is this one.
    Known {
        /// What it is compared by.
        rank: Vec<u8>,
        /// The row that gave it.
        row: Vec<u8>,
        /// The value, as written in contributions.
        value: Vec<u8>,
    },
    /// It was taken back: the first one of the index is next.
    Unknown,
}

/// An accumulator.
#[derive(Debug, Clone, PartialEq)]
pub enum Acc {
    /// Values, or rows.
    Count(i64),
    /// Exact sum of integers, and how many.
    Ints(i128, i64),
    /// Exact sum of doubles, and how many.
    Doubles(Exact, i64),
    /// The best value by rank.
    Best(Best),
}

/// One value on its way in or out of a group.
pub struct Step<'s> {
    /// 1 to add it, -1 to take it back.
    pub by: i64,
    /// The value.
    pub datum: &'s Datum<'s>,
    /// The value as written.
    pub raw: &'s [u8],
    /// Order of its row.
    pub order: u128,
    /// The row; empty for an event.
    pub row: &'s [u8],
}

/// Where a field of a group has its index.
pub struct Index<'i> {
    /// `["x",field,"window",group…,"`: what its keys begin with.
    pub prefix: &'i [u8],
    /// The task's state.
    pub state: &'i mut State,
}

impl Acc {
    /// An accumulator of nothing.
    pub fn new(function: Function, of_doubles: bool) -> Acc {
        match function {
            Function::Count => Acc::Count(0),
            Function::Avg if of_doubles => Acc::Doubles(Exact::default(), 0),
            Function::SumInt | Function::Avg => Acc::Ints(0, 0),
            Function::SumDouble => Acc::Doubles(Exact::default(), 0),
            Function::Min | Function::Max | Function::First | Function::Latest => Acc::Best(Best::Nothing),
        }
    }

    /// Takes a value in or back; `index` is there for tables. Returns why it is left out, if it is.
    pub fn take(&mut self, function: Function, step: &Step<'_>, index: Option<Index<'_>>) -> Option<String> {
        match (self, step.datum) {
            (_, Datum::Null) => {}
            (Acc::Count(count), Datum::Bool(false)) if function == Function::Count => *count += 0,
            (Acc::Count(count), _) => *count += step.by,
            (Acc::Ints(sum, count), Datum::Long(value)) => {
                *sum += i128::from(*value) * i128::from(step.by);
                *count += step.by;
            }
            (Acc::Doubles(sum, count), Datum::Double(value)) => {
                sum.add(*value, step.by);
                *count += step.by;
            }
            (Acc::Best(best), datum) => {
                let mut rank = Vec::new();
                match function {
                    Function::First => rank.extend_from_slice(&step.order.to_be_bytes()),
                    Function::Latest => rank.extend_from_slice(&(!step.order).to_be_bytes()),
                    _ if !write_sortable(&mut rank, datum) => {}
                    Function::Max => rank.iter_mut().for_each(|byte| *byte = !*byte),
                    _ => {}
                }
                if rank.len() > TEXT_BYTES_MAX && index.is_some() {
                    return Some(format!(
                        "a text of more than {TEXT_BYTES_MAX} bytes is left out of min and max"
                    ));
                }
                best.take(rank, step, index);
            }
            _ => {}
        }
        None
    }

    /// The value: null of nothing. `None` when it leaves the range of its type.
    pub fn value<'a>(&'a self, function: Function) -> Option<Datum<'a>> {
        Some(match self {
            Acc::Count(count) => Datum::Long(*count),
            Acc::Ints(_, 0) | Acc::Doubles(_, 0) => Datum::Null,
            Acc::Ints(sum, count) if function == Function::Avg => Datum::Double(ratio(wide(*sum), *count)),
            Acc::Ints(sum, _) => Datum::Long(i64::try_from(*sum).ok()?),
            Acc::Doubles(sum, count) if function == Function::Avg => Datum::Double(ratio(sum.sum(), *count)),
            Acc::Doubles(sum, _) => Datum::Double(sum.sum()),
            Acc::Best(Best::Known { value, .. }) => read(&mut value.as_slice())?,
            Acc::Best(_) => Datum::Null,
        })
    }

    /// Appends its bytes.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Acc::Count(count) => write_signed(out, *count),
            Acc::Ints(sum, count) => {
                // Most sums are small.
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
            Acc::Doubles(sum, count) => {
                sum.write(out);
                write_signed(out, *count);
            }
            Acc::Best(Best::Known { rank, row, value }) => {
                out.push(1);
                [rank, row, value].into_iter().for_each(|bytes| write_bytes(out, bytes));
            }
            Acc::Best(Best::Nothing) => out.push(0),
            Acc::Best(Best::Unknown) => out.push(2),
        }
    }

    /// Reads the bytes of an accumulator of the same function.
    pub fn read(function: Function, of_doubles: bool, rest: &mut &[u8]) -> Option<Acc> {
        Some(match Acc::new(function, of_doubles) {
            Acc::Count(_) => Acc::Count(read_signed(rest)?),
            Acc::Ints(..) => {
                let sum = match read_byte(rest)? {
                    0 => i128::from(read_signed(rest)?),
                    _ => i128::from_be_bytes(read_array(rest)?),
                };
                Acc::Ints(sum, read_signed(rest)?)
            }
            Acc::Doubles(..) => Acc::Doubles(Exact::read(rest)?, read_signed(rest)?),
            Acc::Best(_) => Acc::Best(match read_byte(rest)? {
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
    fn take(&mut self, rank: Vec<u8>, step: &Step<'_>, index: Option<Index<'_>>) {
        if let Some(index) = index {
            let key = index_key(index.prefix, &rank, step.row);
            if step.by > 0 {
                index.state.put(&key, step.raw.to_vec());
            } else {
                index.state.delete(&key);
            }
        }
        let place = (rank.as_slice(), step.row);
        match self {
            Best::Known { rank: best, row, .. } if step.by < 0 => {
                if (best.as_slice(), row.as_slice()) == place {
                    *self = Best::Unknown;
                }
                return;
            }
            Best::Known { rank: best, row, .. } if (best.as_slice(), row.as_slice()) <= place => return,
            Best::Nothing | Best::Known { .. } if step.by > 0 => {}
            _ => return,
        }
        *self = Best::Known {
            rank,
            row: step.row.to_vec(),
            value: step.raw.to_vec(),
        };
    }

    /// Looks the best one up in the index, if it is not known.
    pub fn settle(&mut self, prefix: &[u8], state: &State) -> Result<()> {
        if *self != Best::Unknown {
            return Ok(());
        }
        *self = Best::Nothing;
        state.scan(prefix, &mut |key, value| {
            if let Some((rank, row)) = key.get(prefix.len()..).and_then(index_place) {
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

/// `…"rank in hexadecimal digits",row…]`: a rank's end stands before its continuation, as `"` before digits.
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

fn index_place(tail: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
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
    reason = "an average is a double: the sum is rounded to one"
)]
fn wide(sum: i128) -> f64 {
    sum as f64
}

#[expect(
    clippy::as_conversions,
    clippy::cast_precision_loss,
    reason = "exact up to 2^53 rows"
)]
fn ratio(sum: f64, count: i64) -> f64 {
    sum / count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accumulator_reads_back() {
        let best = Best::Known {
            rank: vec![1],
            row: b"7".to_vec(),
            value: vec![3, 2],
        };
        let cases = [
            (Function::Count, false, Acc::Count(-3)),
            (Function::SumInt, false, Acc::Ints(5, 2)),
            (Function::Avg, false, Acc::Ints(i128::from(i64::MAX) * 4, 2)),
            (Function::SumDouble, true, Acc::Doubles(Exact::default(), 0)),
            (Function::Min, false, Acc::Best(best)),
            (Function::Latest, false, Acc::Best(Best::Unknown)),
        ];
        for (function, of_doubles, acc) in cases {
            let mut out = Vec::new();
            acc.write(&mut out);
            let mut rest = out.as_slice();
            assert_eq!(Acc::read(function, of_doubles, &mut rest), Some(acc));
            assert!(rest.is_empty());
        }
    }

    #[test]
    fn an_index_key_says_rank_and_row() {
        for row in [&b""[..], b"17,\"a\""] {
            let key = index_key(b"[\"x\",\"", &[0, 0xfe], row);
            assert_eq!(index_place(&key[6..]), Some((vec![0, 0xfe], row.to_vec())));
        }
    }
}
