//! Group metadata of a member on Kafka.

use super::client::group_metadata::ClientGroupMetadata;

/// The membership under which records were read.
#[derive(Debug)]
pub(crate) struct KafkaGroupMetadata {
    /// librdkafka's group metadata.
    pub(crate) metadata: ClientGroupMetadata,
    /// Whether the generation may rise without an event (KIP-848), so that a rejected generation does not mean that the
    /// member lost its partitions.
    pub(crate) generation_rises: bool,
}
