//! What the newer group protocol (KIP-848) asks of the library and of the brokers, and what its errors mean.
//!
//! Guarantees: a library that cannot speak it is refused before anything is joined; one with known faults is used with a
//! warning that names them. Never: a change of the protocol by itself.

use super::client::{Code, ClientError};
use crate::{Error, GroupConfig, GroupProtocol, Result};
use std::sync::Once;
use std::time::Duration;

/// The first version in which the protocol is more than a preview.
const SPOKEN: (u8, u8, u8) = (2, 12, 0);
/// The first version without the faults that are known here.
const SOUND: (u8, u8, u8) = (2, 15, 0);
/// How often an instance name that is another's is asked for.
pub const ASK_AGAIN: Duration = Duration::from_millis(500);
/// A member that was refused sooner after it had joined is refused for good.
pub const JOINED_FOR: Duration = Duration::from_secs(5);

/// Refuses a library that does not speak the protocol, and warns once of one that speaks it badly.
pub fn check(version: (u8, u8, u8)) -> Result<()> {
    static WARNED: Once = Once::new();
    let text = format!("{}.{}.{}", version.0, version.1, version.2);
    if version < SPOKEN {
        return Err(Error::Refused {
            attempted: "join a group with group.protocol=consumer".to_owned(),
            reason: format!(
                "the linked librdkafka {text} speaks it as a preview at the most; link 2.12 or newer, or set \
                 group_protocol = \"classic\""
            ),
        });
    }
    if version < SOUND {
        WARNED.call_once(|| {
            tracing::warn!(
                target: "event_log::kafka",
                librdkafka = text,
                "group.protocol=consumer before librdkafka 2.15: a member that did not poll for max.poll.interval.ms is \
                 refused when it comes back (it is made anew here), one whose group the brokers have forgotten may go on \
                 without a word, and permanent errors of the heartbeat are tried for ever; link 2.15 or newer, or set \
                 group_protocol = \"classic\""
            );
        });
    }
    Ok(())
}

/// What a fatal error of a member means.
#[derive(Debug)]
pub enum Meaning {
    /// Its instance name is another member's.
    Occupied,
    /// It can come back as a new member.
    Rejoin(&'static str),
    /// The brokers do not take it.
    Refused(Error),
    /// What it says.
    Final,
}

/// Says what a fatal error means for a member of this group.
pub fn meaning(group: &GroupConfig, fatal: &ClientError) -> Meaning {
    use Code as C;
    if group.protocol != GroupProtocol::Consumer {
        return Meaning::Final;
    }
    match fatal.code {
        C::RD_KAFKA_RESP_ERR_UNRELEASED_INSTANCE_ID => Meaning::Occupied,
        C::RD_KAFKA_RESP_ERR_INVALID_REQUEST => {
            Meaning::Rejoin("it had not polled for max.poll.interval.ms, which the library mends from 2.15 on")
        }
        C::RD_KAFKA_RESP_ERR_GROUP_ID_NOT_FOUND => Meaning::Rejoin("the brokers have forgotten the group"),
        C::RD_KAFKA_RESP_ERR_UNSUPPORTED_VERSION
        | C::RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE
        | C::RD_KAFKA_RESP_ERR_UNSUPPORTED_ASSIGNOR => Meaning::Refused(unspoken(group, fatal)),
        _ => Meaning::Final,
    }
}

fn unspoken(group: &GroupConfig, fatal: &ClientError) -> Error {
    Error::Refused {
        attempted: format!("join group {} with group.protocol=consumer", group.group),
        reason: format!(
            "{}; the brokers must be Apache Kafka 4.0 or newer with the feature group.version=1, `consumer` among \
             their group.coordinator.rebalance.protocols and `range` among their group.consumer.assignors; change that, \
             or set group_protocol = \"classic\"",
            fatal.text
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_does_not_speak_it_is_refused_with_the_fix() {
        let error = check((2, 11, 1)).expect_err("a preview is not used").to_string();
        assert!(
            error.contains("2.11.1") && error.contains("group_protocol = \"classic\""),
            "{error}"
        );
        check((2, 12, 0)).expect("the first that speaks it");
        check((2, 15, 0)).expect("the first without known faults");
        check(super::super::client::version()).expect("the linked one speaks it");
    }

    #[test]
    fn only_the_newer_protocol_reads_more_into_an_error() {
        let mut group = GroupConfig {
            group: "g".to_owned(),
            instance: Some("i".to_owned()),
            topics: Vec::new(),
            session_timeout: Duration::from_secs(1),
            protocol: GroupProtocol::Consumer,
        };
        let taken = ClientError::new(Code::RD_KAFKA_RESP_ERR_UNRELEASED_INSTANCE_ID);
        assert!(matches!(meaning(&group, &taken), Meaning::Occupied));
        let unspoken = ClientError::new(Code::RD_KAFKA_RESP_ERR_UNSUPPORTED_VERSION);
        let Meaning::Refused(error) = meaning(&group, &unspoken) else {
            panic!("a broker that does not speak it is refused");
        };
        assert!(error.to_string().contains("group_protocol = \"classic\""), "{error}");
        group.protocol = GroupProtocol::Classic;
        assert!(matches!(meaning(&group, &taken), Meaning::Final));
    }
}
