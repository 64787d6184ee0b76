//! Metrics of stored records. Label values are bounded: names of the configuration and of the topology.

/// Counts records that are stored.
pub(super) fn stored(credential: &str, topic: &str, records: usize, bytes: usize) {
    let count = |name: &'static str, value: usize| {
        let labels = [("credential", credential.to_owned()), ("topic", topic.to_owned())];
        metrics::counter!(name, &labels).increment(u64::try_from(value).unwrap_or(u64::MAX));
    };
    count("trunkline_ingest_records_total", records);
    count("trunkline_ingest_bytes_total", bytes);
}
