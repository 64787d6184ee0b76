//! The version of a row: the source position of the change that wrote it.
//!
//! The order of versions is also the order of their 17 bytes and of their 34 hexadecimal digits. A newer format is
//! rejected.

use std::fmt;
use std::str::FromStr;

/// The format that is written, and the newest format that can be read.
pub const FORMAT: u8 = 1;

/// Length of a version in bytes.
pub const LENGTH: usize = 17;

/// The version of a row: source epoch, position, and ordinal in the source transaction at that position. For an event,
/// it consists of topic epoch and offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version {
    /// Source epoch, which increases each time the source starts over; for an event the topic epoch.
    pub source_epoch: u32,
    /// Commit LSN of the source transaction, or an offset.
    pub position: u64,
    /// Ordinal in the source transaction, from 0.
    pub ordinal: u32,
}

/// Why bytes or text are not a version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// Wrong length.
    #[error("expected a version of {LENGTH} bytes, got {0}")]
    Length(usize),
    /// A newer version of Trunkline wrote it.
    #[error(
        "the row version has format {found}, but this version of trunkline reads formats up to {FORMAT}; upgrade \
         trunkline"
    )]
    Newer {
        /// The format found.
        found: u8,
    },
    /// Text that is not hexadecimal, or an LSN that is not `hex/hex`.
    #[error("{0:?} is not a version in hexadecimal digits")]
    Text(String),
}

impl Version {
    /// The version as bytes, in the order of versions.
    pub fn to_bytes(self) -> [u8; LENGTH] {
        let mut out = [FORMAT; LENGTH];
        out[1..5].copy_from_slice(&self.source_epoch.to_be_bytes());
        out[5..13].copy_from_slice(&self.position.to_be_bytes());
        out[13..].copy_from_slice(&self.ordinal.to_be_bytes());
        out
    }

    /// Parses the output of [`Version::to_bytes`].
    ///
    /// # Errors
    /// [`VersionError::Newer`] for another format byte, [`VersionError::Length`] for a length other than 17.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, VersionError> {
        if let Some(&found) = bytes.first().filter(|b| **b != FORMAT) {
            return Err(VersionError::Newer { found });
        }
        let length = VersionError::Length(bytes.len());
        let bytes: &[u8; LENGTH] = bytes.try_into().map_err(|_| length)?;
        let [_, i0, i1, i2, i3, p0, p1, p2, p3, p4, p5, p6, p7, o0, o1, o2, o3] = *bytes;
        Ok(Version {
            source_epoch: u32::from_be_bytes([i0, i1, i2, i3]),
            position: u64::from_be_bytes([p0, p1, p2, p3, p4, p5, p6, p7]),
            ordinal: u32::from_be_bytes([o0, o1, o2, o3]),
        })
    }

    /// Appends the 34 hexadecimal digits, without quotes.
    pub fn write_hex(self, out: &mut Vec<u8>) {
        for byte in self.to_bytes() {
            crate::json::push_hex(out, byte);
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{FORMAT:02x}{:08x}{:016x}{:08x}",
            self.source_epoch, self.position, self.ordinal
        )
    }
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let wrong = || VersionError::Text(text.chars().take(64).collect());
        if text.len() != 2 * LENGTH || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(wrong());
        }
        let mut bytes = [0; LENGTH];
        for (at, byte) in bytes.iter_mut().enumerate() {
            let digits = text.get(2 * at..2 * at + 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Version::from_bytes(&bytes)
    }
}

/// A position in PostgreSQL's WAL, in PostgreSQL's notation: `0/16B3748`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Appends the text form.
    pub fn write(self, out: &mut Vec<u8>) {
        write_upper_hex(out, self.0 >> 32);
        out.push(b'/');
        write_upper_hex(out, self.0 & 0xffff_ffff);
    }

    /// Parses the text form; `None` for anything else.
    pub fn from_text(text: &[u8]) -> Option<Self> {
        let slash = text.iter().position(|b| *b == b'/')?;
        let high = parse_hex(text.get(..slash)?)?;
        let low = parse_hex(text.get(slash + 1..)?)?;
        Some(Lsn(u64::from(high) << 32 | u64::from(low)))
    }
}

fn write_upper_hex(out: &mut Vec<u8>, value: u64) {
    let digits = (64 - value.leading_zeros()).div_ceil(4).max(1);
    for at in (0..digits).rev() {
        // Four bits fit into a byte.
        let nibble = u8::try_from(value >> (4 * at) & 15).unwrap_or_default();
        out.push(if nibble < 10 { b'0' + nibble } else { b'A' + nibble - 10 });
    }
}

fn parse_hex(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    digits
        .iter()
        .try_fold(0, |sum, digit| Some(sum << 4 | char::from(*digit).to_digit(16)?))
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        Lsn::from_text(text.as_bytes()).ok_or_else(|| VersionError::Text(text.chars().take(64).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn version() -> impl Strategy<Value = Version> {
        let small = prop_oneof![0u32..3, any::<u32>()];
        let position = prop_oneof![0u64..3, any::<u64>()];
        (small.clone(), position, small).prop_map(|(source_epoch, position, ordinal)| Version {
            source_epoch,
            position,
            ordinal,
        })
    }

    proptest! {
        #[test]
        fn bytes_and_text_compare_as_versions_do(a in version(), b in version()) {
            prop_assert_eq!(a.cmp(&b), a.to_bytes().cmp(&b.to_bytes()));
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        }

        #[test]
        fn bytes_and_text_read_back(a in version()) {
            prop_assert_eq!(Version::from_bytes(&a.to_bytes()).unwrap(), a);
            prop_assert_eq!(a.to_string().parse::<Version>().unwrap(), a);
            let mut hex = Vec::new();
            a.write_hex(&mut hex);
            prop_assert_eq!(String::from_utf8(hex).unwrap(), a.to_string());
        }

        #[test]
        fn an_lsn_reads_back(value: u64) {
            let mut out = Vec::new();
            Lsn(value).write(&mut out);
            prop_assert_eq!(String::from_utf8(out.clone()).unwrap(), Lsn(value).to_string());
            prop_assert_eq!(Lsn::from_text(&out), Some(Lsn(value)));
        }
    }

    #[test]
    fn postgresql_notation_is_parsed() {
        assert_eq!("0/16B3748".parse::<Lsn>().unwrap(), Lsn(0x16b_3748));
        assert_eq!("A/0".parse::<Lsn>().unwrap().to_string(), "A/0");
        for wrong in ["", "/", "0/", "0/123456789", "0-1", "g/0"] {
            assert!(wrong.parse::<Lsn>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn newer_format_is_rejected_with_both_numbers() {
        let mut bytes = Version::default().to_bytes();
        bytes[0] = 2;
        let text = Version::from_bytes(&bytes).unwrap_err().to_string();
        assert_eq!(
            text,
            "the row version has format 2, but this version of trunkline reads formats up to 1; upgrade trunkline"
        );
        assert_eq!(Version::from_bytes(&[1]), Err(VersionError::Length(1)));
        assert_eq!(Version::from_bytes(&[]), Err(VersionError::Length(0)));
    }
}
