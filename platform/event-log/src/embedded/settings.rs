//! Topic settings with Kafka's names, defaults and limits.
//!
//! Values that Kafka 4 rejects are rejected. Settings of segments are accepted and described but have no effect, because
//! the embedded log has no segments.

use crate::{Cleanup, Error, Millis, Result, TimestampPolicy, TopicConfig};
use std::collections::BTreeMap;

enum Kind {
    Int(i64, i64),
    Ratio,
    Bool,
    OneOf(&'static [&'static str]),
    Cleanup,
    Any,
}

struct Setting {
    name: &'static str,
    default: &'static str,
    kind: Kind,
}

const fn setting(name: &'static str, default: &'static str, kind: Kind) -> Setting {
    Setting { name, default, kind }
}

const FROM_0: Kind = Kind::Int(0, i64::MAX);
const FROM_1: Kind = Kind::Int(1, i64::MAX);
const INT_FROM_0: Kind = Kind::Int(0, 2_147_483_647);
const UNLIMITED: &str = "9223372036854775807";

static SETTINGS: [Setting; 33] = [
    setting("cleanup.policy", "delete", Kind::Cleanup),
    setting("compression.gzip.level", "-1", Kind::Int(-1, 9)),
    setting("compression.lz4.level", "9", Kind::Int(1, 17)),
    setting(
        "compression.type",
        "producer",
        Kind::OneOf(&["uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"]),
    ),
    setting("compression.zstd.level", "3", Kind::Int(-131_072, 22)),
    setting("delete.retention.ms", "86400000", FROM_0),
    setting("file.delete.delay.ms", "60000", FROM_0),
    setting("flush.messages", UNLIMITED, FROM_1),
    setting("flush.ms", UNLIMITED, FROM_0),
    setting("follower.replication.throttled.replicas", "", Kind::Any),
    setting("index.interval.bytes", "4096", INT_FROM_0),
    setting("leader.replication.throttled.replicas", "", Kind::Any),
    setting("local.retention.bytes", "-2", Kind::Int(-2, i64::MAX)),
    setting("local.retention.ms", "-2", Kind::Int(-2, i64::MAX)),
    setting("max.compaction.lag.ms", UNLIMITED, FROM_1),
    setting("max.message.bytes", "1048588", INT_FROM_0),
    setting("message.timestamp.after.max.ms", "3600000", FROM_0),
    setting("message.timestamp.before.max.ms", UNLIMITED, FROM_0),
    setting(
        "message.timestamp.type",
        "CreateTime",
        Kind::OneOf(&["CreateTime", "LogAppendTime"]),
    ),
    setting("min.cleanable.dirty.ratio", "0.5", Kind::Ratio),
    setting("min.compaction.lag.ms", "0", FROM_0),
    setting("min.insync.replicas", "1", Kind::Int(1, 2_147_483_647)),
    setting("preallocate", "false", Kind::Bool),
    setting("remote.log.copy.disable", "false", Kind::Bool),
    setting("remote.log.delete.on.disable", "false", Kind::Bool),
    setting("remote.storage.enable", "false", Kind::Bool),
    setting("retention.bytes", "-1", Kind::Int(-1, i64::MAX)),
    setting("retention.ms", "604800000", Kind::Int(-1, i64::MAX)),
    setting("segment.bytes", "1073741824", Kind::Int(1_048_576, 2_147_483_647)),
    setting("segment.index.bytes", "10485760", Kind::Int(4, 2_147_483_647)),
    setting("segment.jitter.ms", "0", FROM_0),
    setting("segment.ms", "604800000", FROM_1),
    setting("unclean.leader.election.enable", "false", Kind::Bool),
];

/// Accepted but not included in descriptions, as in Kafka.
static HIDDEN: [Setting; 1] = [setting(
    "internal.segment.bytes",
    "1073741824",
    Kind::Int(1, 2_147_483_647),
)];

impl Setting {
    fn rejection(&self, value: &str) -> Option<String> {
        let fine = match self.kind {
            Kind::Int(least, greatest) => {
                let number = value.parse::<i64>();
                if number.is_ok_and(|n| (least..=greatest).contains(&n)) {
                    return None;
                }
                return Some(format!(
                    "`{}` must be a whole number between {least} and {greatest}, not `{value}`",
                    self.name
                ));
            }
            Kind::Ratio => value.parse::<f64>().is_ok_and(|n| (0.0..=1.0).contains(&n)),
            Kind::Bool => matches!(value, "true" | "false"),
            Kind::OneOf(values) => values.contains(&value),
            Kind::Cleanup => value.split(',').all(|part| matches!(part.trim(), "delete" | "compact")),
            Kind::Any => true,
        };
        (!fine).then(|| format!("`{}` must not be `{value}`", self.name))
    }
}

/// Checks settings and returns the error of the first invalid one.
pub(super) fn check(topic: &str, settings: &BTreeMap<String, String>) -> Result<()> {
    for (name, value) in settings {
        let known = SETTINGS.iter().chain(&HIDDEN).find(|s| s.name == name);
        let reason = match known {
            None => Some(format!("`{name}` is not a topic setting of Kafka")),
            Some(setting) => setting.rejection(value),
        };
        if let Some(reason) = reason {
            return Err(Error::InvalidTopic {
                topic: topic.to_owned(),
                reason,
            });
        }
    }
    let rules = Rules::of(settings);
    if rules.min_compaction_lag_ms > rules.max_compaction_lag_ms {
        return Err(Error::InvalidTopic {
            topic: topic.to_owned(),
            reason: "`min.compaction.lag.ms` must not exceed `max.compaction.lag.ms`".to_owned(),
        });
    }
    Ok(())
}

/// Returns the settings that a configuration specifies.
pub(super) fn given(config: &TopicConfig) -> BTreeMap<String, String> {
    let mut settings = config.other.clone();
    let mut put = |name: &str, value: String| settings.insert(name.to_owned(), value);
    let cleanup = match config.cleanup {
        Cleanup::Delete => "delete",
        Cleanup::Compact => "compact",
        Cleanup::CompactDelete => "compact,delete",
    };
    put("cleanup.policy", cleanup.to_owned());
    let timestamps = match config.timestamps {
        TimestampPolicy::CreateTime => "CreateTime",
        TimestampPolicy::LogAppendTime => "LogAppendTime",
    };
    put("message.timestamp.type", timestamps.to_owned());
    let numbers = [
        ("retention.ms", config.retention_ms),
        ("retention.bytes", config.retention_bytes),
        ("min.compaction.lag.ms", config.min_compaction_lag_ms),
        ("delete.retention.ms", config.delete_retention_ms),
        ("max.message.bytes", config.max_message_bytes),
    ];
    for (name, number) in numbers {
        if let Some(number) = number {
            put(name, number.to_string());
        }
    }
    settings
}

/// Returns all settings, including defaults.
pub(super) fn all(given: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = SETTINGS
        .iter()
        .map(|s| (s.name.to_owned(), s.default.to_owned()))
        .collect();
    all.extend(given.iter().map(|(name, value)| (name.clone(), value.clone())));
    all
}

/// Parsed settings that appending and cleaning use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub log_append: bool,
    pub message_bytes_max: usize,
    pub timestamp_ahead_max: Millis,
    pub timestamp_behind_max: Millis,
    /// `cleanup.policy` contains `delete`.
    pub deletes: bool,
    /// `cleanup.policy` contains `compact`.
    pub compacts: bool,
    pub min_compaction_lag_ms: Millis,
    pub max_compaction_lag_ms: Millis,
    /// `min.cleanable.dirty.ratio`, from 0 to 1.
    pub dirty_ratio_min: f64,
    pub delete_retention_ms: Millis,
    /// −1 keeps records forever.
    pub retention_ms: i64,
    /// −1 means no limit.
    pub retention_bytes: i64,
}

impl Rules {
    /// Parses settings that were checked before.
    pub fn of(given: &BTreeMap<String, String>) -> Rules {
        let all = all(given);
        let text = |name: &str| all.get(name).map(String::as_str).unwrap_or_default();
        let number = |name: &str| text(name).parse().unwrap_or(i64::MAX);
        Rules {
            log_append: text("message.timestamp.type") == "LogAppendTime",
            message_bytes_max: usize::try_from(number("max.message.bytes")).unwrap_or(usize::MAX),
            timestamp_ahead_max: number("message.timestamp.after.max.ms"),
            timestamp_behind_max: number("message.timestamp.before.max.ms"),
            deletes: text("cleanup.policy").contains("delete"),
            compacts: text("cleanup.policy").contains("compact"),
            min_compaction_lag_ms: number("min.compaction.lag.ms"),
            max_compaction_lag_ms: number("max.compaction.lag.ms"),
            dirty_ratio_min: text("min.cleanable.dirty.ratio").parse().unwrap_or(1.0),
            delete_retention_ms: number("delete.retention.ms"),
            retention_ms: number("retention.ms"),
            retention_bytes: number("retention.bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_values_are_checked_as_in_kafka() {
        let cases = [
            ("retention.ms", "-1", true),
            ("retention.ms", "-2", false),
            ("retention.ms", "soon", false),
            ("cleanup.policy", "compact,delete", true),
            ("cleanup.policy", "shred", false),
            ("min.cleanable.dirty.ratio", "0.01", true),
            ("min.cleanable.dirty.ratio", "2", false),
            ("segment.bytes", "1024", false),
            ("retention.hours", "1", false),
        ];
        for (name, value, fine) in cases {
            let settings = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            assert_eq!(check("t", &settings).is_ok(), fine, "{name}={value}");
        }
    }

    #[test]
    fn min_lag_above_max_lag_is_rejected() {
        let settings = |least: &str, most: &str| {
            let pair = [("min.compaction.lag.ms", least), ("max.compaction.lag.ms", most)];
            pair.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
        };
        assert!(check("t", &settings("5", "5")).is_ok());
        assert!(check("t", &settings("6", "5")).is_err());
    }

    #[test]
    fn every_default_is_valid() {
        for setting in SETTINGS.iter().chain(&HIDDEN) {
            assert_eq!(setting.rejection(setting.default), None);
        }
    }

    #[test]
    fn rules_contain_defaults() {
        let rules = Rules::of(&given(&TopicConfig::new(Cleanup::Compact)));
        assert!(rules.compacts && !rules.deletes && !rules.log_append);
        assert_eq!(
            (rules.min_compaction_lag_ms, rules.delete_retention_ms),
            (0, 86_400_000)
        );
        assert_eq!((rules.retention_ms, rules.message_bytes_max), (604_800_000, 1_048_588));
    }
}
