//! The consumer rebalance protocol (KIP-848): version requirements, and the meaning of its fatal errors.

use super::client::{ClientError, Code, Version};
use crate::{Error, GroupConfig, GroupProtocol, Result};
use std::sync::Once;
use std::time::Duration;

/// First librdkafka version in which the protocol is generally available.
const SUPPORTED_FROM: Version = Version::new(2, 12, 0);
/// First librdkafka version without the bugs listed in [`check`].
const FIXED_FROM: Version = Version::new(2, 15, 0);
/// Interval for joining again while another member has the instance name.
pub const OCCUPIED_RETRY: Duration = Duration::from_millis(500);
/// A member that fails sooner after it joined does not rejoin.
pub const REJOIN_AFTER: Duration = Duration::from_secs(5);

/// Rejects a librdkafka without the protocol, and warns once about a version with known bugs.
pub fn check(version: Version) -> Result<()> {
    static WARNED: Once = Once::new();
    if version < SUPPORTED_FROM {
        return Err(Error::Rejected {
            attempted: "join a group with group.protocol=consumer".to_owned(),
            reason: format!(
                "the linked librdkafka {version} has it as a preview only; link librdkafka 2.12 or newer, or set \
                 group_protocol = \"classic\""
            ),
        });
    }
    if version < FIXED_FROM {
        WARNED.call_once(|| {
            tracing::warn!(
                target: "event_log::kafka",
                librdkafka = %version,
                "group.protocol=consumer has known bugs before librdkafka 2.15: a member that exceeded \
                 max.poll.interval.ms is rejected when it polls again (it rejoins as a new member), a member whose group was \
                 deleted on the brokers may not notice, and permanent heartbeat errors are retried forever; link \
                 librdkafka 2.15 or newer, or set group_protocol = \"classic\""
            );
        });
    }
    Ok(())
}

/// Meaning of a member's fatal error.
#[derive(Debug)]
pub enum Meaning {
    /// Another member has the instance name.
    Occupied,
    /// The member can rejoin as a new one.
    Rejoin(&'static str),
    /// The brokers do not support the request.
    Rejected(Error),
    /// No special meaning.
    Final,
}

/// Returns the meaning of a fatal error for a member of this group.
pub fn meaning(group: &GroupConfig, fatal: &ClientError) -> Meaning {
    use Code as C;
    if group.protocol != GroupProtocol::Consumer {
        return Meaning::Final;
    }
    match fatal.code {
        C::RD_KAFKA_RESP_ERR_UNRELEASED_INSTANCE_ID => Meaning::Occupied,
        C::RD_KAFKA_RESP_ERR_INVALID_REQUEST => {
            Meaning::Rejoin("it exceeded max.poll.interval.ms (fixed in librdkafka 2.15)")
        }
        C::RD_KAFKA_RESP_ERR_GROUP_ID_NOT_FOUND => Meaning::Rejoin("the group no longer exists on the brokers"),
        C::RD_KAFKA_RESP_ERR_UNSUPPORTED_VERSION
        | C::RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE
        | C::RD_KAFKA_RESP_ERR_UNSUPPORTED_ASSIGNOR => Meaning::Rejected(unsupported(group, fatal)),
        _ => Meaning::Final,
    }
}

fn unsupported(group: &GroupConfig, fatal: &ClientError) -> Error {
    Error::Rejected {
        attempted: format!("join group {} with group.protocol=consumer", group.group),
        reason: format!(
            "{}; it requires Apache Kafka 4.0 or newer with group.version=1, `consumer` in \
             group.coordinator.rebalance.protocols and `range` in group.consumer.assignors; change the brokers' \
             configuration, or set group_protocol = \"classic\"",
            fatal.text
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsupported_librdkafka_is_rejected_with_fix() {
        let error = check(Version::new(2, 11, 1))
            .expect_err("preview is rejected")
            .to_string();
        assert!(
            error.contains("2.11.1") && error.contains("group_protocol = \"classic\""),
            "{error}"
        );
        check(Version::new(2, 12, 0)).expect("first supported version");
        check(Version::new(2, 15, 0)).expect("first version without known bugs");
        check(super::super::client::version()).expect("linked version");
    }

    #[test]
    fn only_consumer_protocol_reinterprets_fatal_errors() {
        let mut group = GroupConfig {
            group: "g".to_owned(),
            instance: Some("i".to_owned()),
            topics: Vec::new(),
            session_timeout: Duration::from_secs(1),
            protocol: GroupProtocol::Consumer,
        };
        let taken = ClientError::new(Code::RD_KAFKA_RESP_ERR_UNRELEASED_INSTANCE_ID);
        assert!(matches!(meaning(&group, &taken), Meaning::Occupied));
        let unsupported = ClientError::new(Code::RD_KAFKA_RESP_ERR_UNSUPPORTED_VERSION);
        let Meaning::Rejected(error) = meaning(&group, &unsupported) else {
            panic!("an unsupported broker is rejected");
        };
        assert!(error.to_string().contains("group_protocol = \"classic\""), "{error}");
        group.protocol = GroupProtocol::Classic;
        assert!(matches!(meaning(&group, &taken), Meaning::Final));
    }
}
