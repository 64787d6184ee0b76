//! Maps librdkafka errors to [`Error`].
//!
//! An error code that is not listed is `Unavailable` if librdkafka reports it as retriable, otherwise `Rejected`.

use super::client::{ClientError, Code, SettingError};
use crate::Error;
use std::sync::Arc;

/// Converts the error of a request.
pub fn request_error(attempted: impl Into<String>, error: &ClientError) -> Error {
    let (attempted, reason) = (attempted.into(), error.text.clone());
    if is_unavailable(error) {
        return Error::Unavailable { attempted, reason };
    }
    Error::Rejected {
        attempted,
        reason: format!("{reason}{}", fix(error.code)),
    }
}

/// Converts the error of a request for a topic.
pub fn topic_error(topic: &str, attempted: impl Into<String>, error: &ClientError) -> Error {
    use Code as C;
    let topic = topic.to_owned();
    match error.code {
        C::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
        | C::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC
        | C::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION
        | C::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_ID => Error::UnknownTopic { topic },
        C::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED => Error::AccessDenied {
            topic,
            reason: error.text.clone(),
        },
        C::RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION
        | C::RD_KAFKA_RESP_ERR_INVALID_PARTITIONS
        | C::RD_KAFKA_RESP_ERR_INVALID_REPLICATION_FACTOR
        | C::RD_KAFKA_RESP_ERR_INVALID_CONFIG
        | C::RD_KAFKA_RESP_ERR_INVALID_REQUEST
        | C::RD_KAFKA_RESP_ERR_POLICY_VIOLATION
        | C::RD_KAFKA_RESP_ERR__INVALID_ARG => Error::InvalidTopic {
            topic,
            reason: error.text.clone(),
        },
        _ => request_error(attempted, error),
    }
}

/// Converts the error of a subscribed topic; `None` if the error names none of these. librdkafka's event contains the name
/// of the topic only in its text, between colons.
pub fn subscription_error(topics: &[Arc<str>], error: &ClientError) -> Option<Error> {
    let mut topics = topics.iter();
    let topic = topics.find(|topic| error.text.contains(&format!(": {topic}: ")))?;
    Some(topic_error(topic, "read", error))
}

/// Converts the error of a rejected setting. The setting's value may be a secret and is omitted.
pub fn setting_error(error: SettingError) -> Error {
    let attempted = if error.setting.is_empty() {
        "start a Kafka client with these settings".to_owned()
    } else {
        format!("use Kafka setting {}", error.setting)
    };
    Error::Rejected {
        attempted,
        reason: error.reason,
    }
}

/// Returns whether another producer or member took over.
pub fn is_fenced(code: Code) -> bool {
    use Code as C;
    matches!(
        code,
        C::RD_KAFKA_RESP_ERR__FENCED
            | C::RD_KAFKA_RESP_ERR_PRODUCER_FENCED
            | C::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH
            | C::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID
            | C::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION
            | C::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID
            | C::RD_KAFKA_RESP_ERR_FENCED_MEMBER_EPOCH
            | C::RD_KAFKA_RESP_ERR_STALE_MEMBER_EPOCH
            | C::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS
    )
}

/// Returns whether the only problem is an outdated or unknown member generation.
pub fn is_stale_member(code: Code) -> bool {
    use Code as C;
    matches!(
        code,
        C::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION
            | C::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID
            | C::RD_KAFKA_RESP_ERR_FENCED_MEMBER_EPOCH
            | C::RD_KAFKA_RESP_ERR_STALE_MEMBER_EPOCH
    )
}

/// Returns whether the call timed out, so that its request may still be in flight.
pub fn is_timeout(code: Code) -> bool {
    use Code as C;
    matches!(
        code,
        C::RD_KAFKA_RESP_ERR__TIMED_OUT
            | C::RD_KAFKA_RESP_ERR__TIMED_OUT_QUEUE
            | C::RD_KAFKA_RESP_ERR__MSG_TIMED_OUT
            | C::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT
    )
}

/// Returns whether the brokers' state is the cause and not the request.
pub fn is_unavailable(error: &ClientError) -> bool {
    use Code as C;
    error.retriable
        || is_timeout(error.code)
        || matches!(
            error.code,
            C::RD_KAFKA_RESP_ERR__TRANSPORT
                | C::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN
                | C::RD_KAFKA_RESP_ERR__RESOLVE
                | C::RD_KAFKA_RESP_ERR__WAIT_COORD
                | C::RD_KAFKA_RESP_ERR__WAIT_CACHE
                | C::RD_KAFKA_RESP_ERR__ISR_INSUFF
                | C::RD_KAFKA_RESP_ERR__NODE_UPDATE
                | C::RD_KAFKA_RESP_ERR__DESTROY_BROKER
                | C::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE
                | C::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION
                | C::RD_KAFKA_RESP_ERR_FENCED_LEADER_EPOCH
                | C::RD_KAFKA_RESP_ERR_UNKNOWN_LEADER_EPOCH
                | C::RD_KAFKA_RESP_ERR_BROKER_NOT_AVAILABLE
                | C::RD_KAFKA_RESP_ERR_REPLICA_NOT_AVAILABLE
                | C::RD_KAFKA_RESP_ERR_NETWORK_EXCEPTION
                | C::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS
                | C::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE
                | C::RD_KAFKA_RESP_ERR_NOT_COORDINATOR
                | C::RD_KAFKA_RESP_ERR_NOT_CONTROLLER
                | C::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS
                | C::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND
                | C::RD_KAFKA_RESP_ERR_CONCURRENT_TRANSACTIONS
                | C::RD_KAFKA_RESP_ERR_UNSTABLE_OFFSET_COMMIT
                | C::RD_KAFKA_RESP_ERR_OFFSET_NOT_AVAILABLE
                | C::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR
                | C::RD_KAFKA_RESP_ERR_THROTTLING_QUOTA_EXCEEDED
        )
}

/// Returns the fix for errors that operators encounter, to append to the message.
fn fix(code: Code) -> &'static str {
    use Code as C;
    match code {
        C::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED
        | C::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED
        | C::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED
        | C::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED => "; grant the required ACL to this user",
        C::RD_KAFKA_RESP_ERR__AUTHENTICATION | C::RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED => {
            "; check sasl.mechanism, sasl.username and sasl.password"
        }
        C::RD_KAFKA_RESP_ERR__SSL => "; check ssl.ca.location and that the listener uses TLS",
        C::RD_KAFKA_RESP_ERR_INVALID_TRANSACTION_TIMEOUT => {
            "; it must not exceed the broker's transaction.max.timeout.ms"
        }
        C::RD_KAFKA_RESP_ERR_INVALID_SESSION_TIMEOUT => {
            "; it must be between the broker's group.min.session.timeout.ms and group.max.session.timeout.ms"
        }
        _ => "",
    }
}
