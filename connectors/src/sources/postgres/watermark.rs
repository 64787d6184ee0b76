//! Watermarks: logical messages before and after the statement that reads a chunk of a snapshot.
//!
//! Their place in the stream shows which transactions may have committed while the chunk was read.

/// Prefix of the logical messages.
pub(super) const PREFIX: &str = "trunkline.watermark";

/// Which of the two watermarks of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// Before the chunk was read.
    Low,
    /// After the chunk was read.
    High,
}

/// A watermark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Watermark {
    /// The session that reads chunks. It is unique, so that watermarks of an earlier session, which the slot sends
    /// again after a restart, are ignored.
    pub(super) session: String,
    /// Number of the chunk in the session.
    pub(super) number: u64,
    pub(super) level: Level,
}

impl Watermark {
    /// The content of the logical message.
    pub(super) fn content(&self) -> String {
        let level = match self.level {
            Level::Low => "low",
            Level::High => "high",
        };
        format!("{} {} {level}", self.session, self.number)
    }

    /// Parses a logical message; `None` if it is not a watermark.
    pub(super) fn parse(prefix: &str, content: &[u8]) -> Option<Self> {
        if prefix != PREFIX {
            return None;
        }
        let mut parts = std::str::from_utf8(content).ok()?.rsplitn(3, ' ');
        let level = match parts.next()? {
            "low" => Level::Low,
            "high" => Level::High,
            _ => return None,
        };
        let number = parts.next()?.parse().ok()?;
        Some(Watermark {
            session: parts.next()?.to_owned(),
            number,
            level,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watermarks_round_trip_and_other_messages_are_ignored() {
        for level in [Level::Low, Level::High] {
            let mark = Watermark {
                session: String::from("trunkline_shop 4711"),
                number: 12,
                level,
            };
            assert_eq!(Watermark::parse(PREFIX, mark.content().as_bytes()), Some(mark));
        }
        for (prefix, content) in [
            ("trunkline.heartbeat", "s 1 low"),
            (PREFIX, "s low"),
            (PREFIX, "s 1 middle"),
            (PREFIX, ""),
        ] {
            assert_eq!(Watermark::parse(prefix, content.as_bytes()), None, "{content}");
        }
    }
}
