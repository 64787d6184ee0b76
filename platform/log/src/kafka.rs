//! Apache Kafka (being built).

/// A consumer's group metadata.
#[derive(Debug)]
pub struct GroupMetadata;
