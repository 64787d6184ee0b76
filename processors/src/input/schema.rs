//! Access to the schemas of records by their registry ids.

use event_log::ErrorAction;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Fetches a schema's text by its registry id.
pub type FetchSchema = Arc<dyn Fn(u32) -> Result<String, Unavailable> + Send + Sync>;

/// How long a record waits for the registry to know its schema. A registry that follows another one knows a new schema a
/// moment later than the producer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Maximum number of unknown ids that are remembered.
const UNKNOWN_MAX: usize = 1024;

/// A schema could not be fetched.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{reason}")]
pub struct Unavailable {
    /// Why.
    pub reason: String,
    /// `Retry` if the registry is unreachable; `DeadLetter` if it does not know the id.
    pub action: ErrorAction,
}

/// Makes the records of an unknown schema wait for some seconds before they become dead letters.
pub fn patient(fetch: FetchSchema) -> FetchSchema {
    let patience = Mutex::new(Patience::default());
    Arc::new(move |id| {
        let fetched = fetch(id);
        let mut patience = patience.lock().unwrap_or_else(PoisonError::into_inner);
        patience.apply(id, fetched, Instant::now())
    })
}

/// When ids were unknown for the first time.
#[derive(Debug, Default)]
struct Patience {
    unknown: HashMap<u32, Instant>,
}

impl Patience {
    fn apply(&mut self, id: u32, fetched: Result<String, Unavailable>, now: Instant) -> Result<String, Unavailable> {
        match fetched {
            Ok(text) => {
                self.unknown.remove(&id);
                Ok(text)
            }
            Err(error) if error.action == ErrorAction::DeadLetter => {
                if self.unknown.len() >= UNKNOWN_MAX && !self.unknown.contains_key(&id) {
                    self.unknown.clear();
                }
                let since = *self.unknown.entry(id).or_insert(now);
                Err(if now.saturating_duration_since(since) < PATIENCE {
                    let reason = format!("{}; waiting for the registry to know it", error.reason);
                    let action = ErrorAction::Retry;
                    Unavailable { reason, action }
                } else {
                    error
                })
            }
            Err(error) => Err(error),
        }
    }
}

/// The schemas with which the records of one table or event type were written, each bound to what is read from them.
#[derive(Debug)]
pub struct BoundSchemas<B> {
    bound: HashMap<u32, Arc<B>>,
    /// Ids that can never be bound, with the reason.
    incompatible: HashMap<u32, String>,
    /// Ids that the registry did not know at the last `prepare`, with the reason. They are fetched again each time,
    /// because a schema may be registered later.
    unknown: HashMap<u32, String>,
}

impl<B> Default for BoundSchemas<B> {
    fn default() -> Self {
        BoundSchemas {
            bound: HashMap::new(),
            incompatible: HashMap::new(),
            unknown: HashMap::new(),
        }
    }
}

impl<B> BoundSchemas<B> {
    /// Fetches and binds a schema unless it is known.
    pub fn prepare(
        &mut self,
        id: u32,
        fetch: &FetchSchema,
        bind: impl FnOnce(&str) -> Result<B, String>,
    ) -> Result<(), Unavailable> {
        if self.bound.contains_key(&id) || self.incompatible.contains_key(&id) {
            return Ok(());
        }
        match fetch(id) {
            Ok(text) => {
                self.bind(id, &text, bind);
            }
            Err(error) if error.action == ErrorAction::DeadLetter => {
                if self.unknown.len() >= UNKNOWN_MAX {
                    self.unknown.clear();
                }
                self.unknown.insert(id, error.reason);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Binds a schema whose text is known.
    pub fn bind(&mut self, id: u32, text: &str, bind: impl FnOnce(&str) -> Result<B, String>) {
        self.unknown.remove(&id);
        match bind(text) {
            Ok(bound) => drop(self.bound.insert(id, Arc::new(bound))),
            Err(reason) => drop(self.incompatible.insert(id, format!("schema {id}: {reason}"))),
        }
    }

    /// The binding of a schema that was prepared, or why it cannot be used.
    pub fn get(&self, id: u32) -> Result<&Arc<B>, String> {
        self.bound.get(&id).ok_or_else(|| {
            let reason = self.incompatible.get(&id).or(self.unknown.get(&id));
            reason.map_or_else(|| format!("schema {id} is unknown"), Clone::clone)
        })
    }
}

/// The schema id of a framed value.
pub fn schema_id(value: &[u8]) -> Option<u32> {
    match value.first_chunk::<5>() {
        Some([0, a, b, c, d]) => Some(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unknown() -> Result<String, Unavailable> {
        Err(Unavailable {
            reason: String::from("schema 7 is not registered"),
            action: ErrorAction::DeadLetter,
        })
    }

    fn action(result: &Result<String, Unavailable>) -> Option<ErrorAction> {
        result.as_ref().err().map(|error| error.action)
    }

    #[test]
    fn unknown_schema_is_retried_for_some_seconds() {
        let (mut patience, start) = (Patience::default(), Instant::now());
        for (ms, expected) in [
            (0, ErrorAction::Retry),
            (4_999, ErrorAction::Retry),
            (5_000, ErrorAction::DeadLetter),
            (90_000, ErrorAction::DeadLetter),
        ] {
            let result = patience.apply(7, unknown(), start + Duration::from_millis(ms));
            assert_eq!(action(&result), Some(expected), "{ms} ms");
        }
        // A schema that is registered later is used, and an unknown id waits independently of others.
        let later = start + Duration::from_secs(90);
        assert_eq!(action(&patience.apply(7, Ok(String::from("x")), later)), None);
        assert_eq!(action(&patience.apply(8, unknown(), later)), Some(ErrorAction::Retry));
        let down = Err(Unavailable {
            reason: String::from("down"),
            action: ErrorAction::Retry,
        });
        assert_eq!(action(&patience.apply(9, down, later)), Some(ErrorAction::Retry));
        assert_eq!(patience.unknown.len(), 1);
    }

    #[test]
    fn unknown_schema_is_fetched_again_and_an_incompatible_one_is_not() {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let seen = calls.clone();
        let fetch: FetchSchema = Arc::new(move |id| {
            let mut calls = seen.lock().unwrap();
            calls.push(id);
            match (id, calls.iter().filter(|call| **call == id).count()) {
                (1, 1) => unknown(),
                _ => Ok(format!("text {id}")),
            }
        });
        let bind = |text: &str| match text {
            "text 2" => Err(String::from("a is int, but the reader wants string")),
            text => Ok(text.to_owned()),
        };
        let mut schemas = BoundSchemas::default();
        let prepare = |schemas: &mut BoundSchemas<String>, id| schemas.prepare(id, &fetch, bind).unwrap();
        [1, 2].into_iter().for_each(|id| prepare(&mut schemas, id));
        assert_eq!(schemas.get(1).unwrap_err(), "schema 7 is not registered");
        assert_eq!(
            schemas.get(2).unwrap_err(),
            "schema 2: a is int, but the reader wants string"
        );
        assert_eq!(schemas.get(3).unwrap_err(), "schema 3 is unknown");
        [1, 1, 2].into_iter().for_each(|id| prepare(&mut schemas, id));
        assert_eq!(**schemas.get(1).unwrap(), "text 1");
        assert_eq!(*calls.lock().unwrap(), [1, 2, 1]);
    }
}
