//! The state of the listener.

use super::access::Credentials;
use super::admission::Admission;
use super::appender::Appender;
use super::config::Config;
use crate::sources::http::HttpSourceHandle;
use schemas::ids::SchemaId;
use schemas::schema::Schema;
use std::collections::BTreeMap;
use std::sync::Arc;

/// An event topic.
#[derive(Debug, Clone)]
pub struct EventTopic {
    /// The topic as named in the URL: `event.<name>`.
    pub name: String,
    /// The topic.
    pub topic: Arc<str>,
    /// The schema of its records.
    pub schema: Arc<Schema>,
    /// The schema's registry id.
    pub id: SchemaId,
    /// Indices of the key fields.
    pub key: Vec<usize>,
    /// Largest record that the topic accepts, in bytes.
    pub record_bytes_max: usize,
}

/// The state of the listener.
pub struct Ingest {
    /// Stores events of requests without an idempotency key.
    pub appender: Appender,
    /// Event topics.
    pub events: Vec<EventTopic>,
    /// Stores events of requests with an idempotency key; `None` if there are no event topics.
    pub keyed_events: Option<HttpSourceHandle>,
    /// HTTP sources by their topics as named in the URL: `change.<source>`.
    pub sources: BTreeMap<String, HttpSourceHandle>,
    /// The credentials of the configuration.
    pub credentials: Arc<Credentials>,
    /// Configuration.
    pub config: Config,
}

impl Ingest {
    pub(super) fn event(&self, topic: &str) -> Option<&EventTopic> {
        self.events.iter().find(|event| event.name == topic)
    }

    /// The topics that accept records.
    pub(super) fn topics(&self) -> impl Iterator<Item = &str> {
        let events = self.events.iter().map(|event| event.name.as_str());
        events.chain(self.sources.keys().map(String::as_str))
    }
}

/// State of the routes.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) ingest: Arc<Ingest>,
    pub(super) admission: Admission,
}
