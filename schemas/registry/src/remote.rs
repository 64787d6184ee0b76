//! Client of a registry with Confluent's REST API: Confluent's own, Karapace, or Apicurio (`ccompat` path).
//!
//! Calls block the calling thread for at most attempts × timeout plus the pauses. All calls are idempotent, so all are
//! retried. Errors contain the URL and the operation, but never credentials.

mod attempt;
mod config;
mod manage;

pub use config::{Auth, Config};

use crate::{Error, Level, Registered, Registry, Result, Version};
use attempt::{About, Failure, Shared};
use reqwest::Method;
use schema_registry_converter::async_impl::schema_registry::{SrSettings, perform_sr_call};
use schema_registry_converter::schema_registry_common::{RawRegisteredSchema, SrCall};
use schemas::ids::SchemaId;
use serde_json::{Value, json};
use service::backoff::Backoff;
use std::fmt;
use std::sync::{Arc, mpsc};
use std::time::Duration;

const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A registry at a URL.
pub struct Remote {
    shared: Arc<Shared>,
    /// Runs the connections on one thread. `None` only during `Drop`.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Remote {
    /// Creates a client, without connecting.
    ///
    /// # Errors
    /// [`Error::Rejected`] if the URL is not valid or contains credentials, which belong in [`Config::auth`].
    pub fn new(config: Config) -> Result<Self> {
        let url = config.url.trim_end_matches('/').to_owned();
        let parsed = reqwest::Url::parse(&url)
            .map_err(|e| config_error("(the configured URL)", &format!("not a valid URL: {e}")))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(config_error(
                "(the configured URL)",
                "it must start with http:// or https://",
            ));
        }
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(config_error(
                "(the configured URL)",
                "it contains credentials; configure user and password separately",
            ));
        }
        let failed = |e: &dyn fmt::Display| config_error(&url, &e.to_string());
        let client = reqwest::Client::builder()
            .timeout(config.timeout)
            .build()
            .map_err(|e| failed(&e))?;
        let mut settings = SrSettings::new_builder(url.clone());
        settings.set_timeout(config.timeout);
        match &config.auth {
            Auth::None => {}
            Auth::Basic { user, password } => {
                settings.set_basic_authorization(user, Some(password));
            }
            Auth::Bearer(token) => {
                settings.set_token_authorization(token);
            }
        }
        let settings = settings.build().map_err(|e| failed(&e))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(2)
            .thread_name("schema-registry")
            .enable_all()
            .build()
            .map_err(|e| failed(&e))?;
        let shared = Shared {
            url,
            auth: config.auth,
            attempts: config.attempts.max(1),
            client,
            settings,
        };
        Ok(Remote {
            shared: Arc::new(shared),
            runtime: Some(runtime),
        })
    }

    /// Runs a call on the client's thread and waits for the result. Retries temporary failures.
    fn call<T, F>(&self, about: &About<'_>, call: impl Fn(Arc<Shared>) -> F + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send,
    {
        let stopped = || self.shared.unavailable(about, "the client's thread has stopped");
        let runtime = self.runtime.as_ref().ok_or_else(stopped)?;
        let shared = self.shared.clone();
        let (sender, receiver) = mpsc::sync_channel(1);
        runtime.spawn(async move {
            let mut backoff = Backoff::new(PAUSE_MIN, PAUSE_MAX);
            let result = loop {
                match call(shared.clone()).await {
                    Err(failure) if failure.is_temporary() && backoff.attempts() + 1 < shared.attempts => {
                        tokio::time::sleep(backoff.next_delay()).await;
                    }
                    result => break result,
                }
            };
            // The caller waits for the result, so sending fails only if the calling thread has ended.
            let _ = sender.send(result);
        });
        let result = receiver.recv().map_err(|_| stopped())?;
        result.map_err(|failure| self.shared.error(about, failure))
    }

    /// Runs a call that schema_registry_converter supports.
    fn converter(&self, about: &About<'_>, call: Call) -> Result<RawRegisteredSchema> {
        self.call(about, move |shared| {
            let call = call.clone();
            async move {
                perform_sr_call(&shared.settings, call.borrow())
                    .await
                    .map_err(|e| Failure::of(&e))
            }
        })
    }

    /// Runs any other call; the response is JSON.
    fn request(&self, about: &About<'_>, method: Method, path: String, body: Option<Value>) -> Result<Value> {
        self.call(about, move |shared| {
            let (method, path, body) = (method.clone(), path.clone(), body.clone());
            async move { shared.send(method, &path, body).await }
        })
    }

    fn unexpected_response(&self, about: &About<'_>, answer: &impl fmt::Debug) -> Error {
        Error::Rejected {
            registry: self.shared.url.clone(),
            attempted: about.attempted.to_owned(),
            code: 0,
            reason: format!("unexpected response from the schema registry: {answer:?}; check the registry URL"),
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // The drop may happen in an async task, where waiting for the thread would cause a panic.
            runtime.shutdown_background();
        }
    }
}

/// An owned [`SrCall`].
#[derive(Clone)]
enum Call {
    ById(u32),
    Latest(String),
    Version(String, u32),
    Register(String, String),
    LookUp(String, String),
}

impl Call {
    fn borrow(&self) -> SrCall<'_> {
        match self {
            Call::ById(id) => SrCall::GetById(*id),
            Call::Latest(subject) => SrCall::GetLatest(subject),
            Call::Version(subject, version) => SrCall::GetBySubjectAndVersion(subject, *version),
            Call::Register(subject, body) => SrCall::PostNew(subject, body),
            Call::LookUp(subject, body) => SrCall::PostForVersion(subject, body),
        }
    }
}

fn config_error(url: &str, reason: &str) -> Error {
    let attempted = "create the client".to_owned();
    Error::Rejected {
        registry: url.to_owned(),
        attempted,
        code: 0,
        reason: reason.to_owned(),
    }
}

/// Percent-encodes a subject as a path segment.
fn encoded(subject: &str) -> String {
    let mut out = String::with_capacity(subject.len());
    for byte in subject.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn body_of(schema: &str) -> Value {
    json!({"schema": schema, "schemaType": "AVRO"})
}

fn numbers(value: &Value) -> Option<Vec<u32>> {
    value
        .as_array()?
        .iter()
        .map(|n| u32::try_from(n.as_u64()?).ok())
        .collect()
}

fn texts(value: &Value) -> Option<Vec<String>> {
    value
        .as_array()?
        .iter()
        .map(|text| text.as_str().map(str::to_owned))
        .collect()
}

impl Registry for Remote {
    fn register(&self, subject: &str, schema: &str) -> Result<SchemaId> {
        let about = About::subject("register a schema", subject);
        let answer = self.converter(&about, Call::Register(encoded(subject), body_of(schema).to_string()))?;
        answer
            .id
            .map(SchemaId)
            .ok_or_else(|| self.unexpected_response(&about, &answer))
    }

    fn lookup(&self, subject: &str, schema: &str) -> Result<Registered> {
        let about = About::subject("look up a schema", subject);
        let answer = self.converter(&about, Call::LookUp(encoded(subject), body_of(schema).to_string()))?;
        registered(subject, &answer, Some(schema)).ok_or_else(|| self.unexpected_response(&about, &answer))
    }

    fn by_id(&self, id: SchemaId) -> Result<Arc<str>> {
        let about = About::id("get a schema by id", id);
        let answer = self.converter(&about, Call::ById(id.0))?;
        match answer.schema {
            Some(schema) => Ok(schema.into()),
            None => Err(self.unexpected_response(&about, &answer)),
        }
    }

    fn uses(&self, id: SchemaId) -> Result<Vec<(String, u32)>> {
        let about = About::id("list the subjects of a schema", id);
        let answer = self.request(&about, Method::GET, format!("/schemas/ids/{id}/versions"), None)?;
        let uses = answer.as_array().and_then(|list| {
            let one = |item: &Value| {
                let version = u32::try_from(item.get("version")?.as_u64()?).ok()?;
                Some((item.get("subject")?.as_str()?.to_owned(), version))
            };
            list.iter().map(one).collect()
        });
        uses.ok_or_else(|| self.unexpected_response(&about, &answer))
    }

    fn subjects(&self) -> Result<Vec<String>> {
        let about = About::subject("list subjects", "");
        let answer = self.request(&about, Method::GET, "/subjects".to_owned(), None)?;
        let mut subjects = texts(&answer).ok_or_else(|| self.unexpected_response(&about, &answer))?;
        subjects.sort();
        Ok(subjects)
    }

    fn versions(&self, subject: &str) -> Result<Vec<u32>> {
        let about = About::subject("list the versions of a subject", subject);
        let path = format!("/subjects/{}/versions", encoded(subject));
        let answer = self.request(&about, Method::GET, path, None)?;
        numbers(&answer).ok_or_else(|| self.unexpected_response(&about, &answer))
    }

    fn version(&self, subject: &str, version: Version) -> Result<Registered> {
        let mut about = About::subject("get a version of a subject", subject);
        about.version = version.to_string();
        let call = match version {
            Version::Latest => Call::Latest(encoded(subject)),
            Version::Number(number) => Call::Version(encoded(subject), number),
        };
        let answer = self.converter(&about, call)?;
        registered(subject, &answer, None).ok_or_else(|| self.unexpected_response(&about, &answer))
    }

    fn test_compatibility(&self, subject: &str, version: Version, schema: &str) -> Result<Vec<String>> {
        let mut about = About::subject("test a schema's compatibility", subject);
        about.version = version.to_string();
        let path = format!(
            "/compatibility/subjects/{}/versions/{version}?verbose=true",
            encoded(subject)
        );
        let answer = self.request(&about, Method::POST, path, Some(body_of(schema)))?;
        match answer.get("is_compatible").and_then(Value::as_bool) {
            Some(true) => Ok(Vec::new()),
            Some(false) => {
                let messages = answer.get("messages").and_then(texts).unwrap_or_default();
                let none = || {
                    vec![format!(
                        "the registry reports an incompatibility with version {version} without details"
                    )]
                };
                Ok(if messages.is_empty() { none() } else { messages })
            }
            None => Err(self.unexpected_response(&about, &answer)),
        }
    }

    fn level(&self, subject: Option<&str>) -> Result<Option<Level>> {
        let about = About::subject("read a compatibility level", subject.unwrap_or_default());
        let path = subject.map_or_else(
            || "/config".to_owned(),
            |subject| format!("/config/{}", encoded(subject)),
        );
        match self.request(&about, Method::GET, path, None) {
            Ok(answer) => {
                let word = answer.get("compatibilityLevel").or_else(|| answer.get("compatibility"));
                let word = word
                    .and_then(Value::as_str)
                    .ok_or_else(|| self.unexpected_response(&about, &answer))?;
                Ok(Some(word.parse()?))
            }
            // A subject that does not exist has no compatibility level either.
            Err(Error::NoLevel { .. } | Error::SubjectNotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn set_level(&self, subject: Option<&str>, level: Level) -> Result<()> {
        let about = About::subject("set a compatibility level", subject.unwrap_or_default());
        let path = subject.map_or_else(
            || "/config".to_owned(),
            |subject| format!("/config/{}", encoded(subject)),
        );
        self.request(&about, Method::PUT, path, Some(json!({"compatibility": level.name()})))
            .map(drop)
    }

    fn description(&self) -> String {
        self.shared.url.clone()
    }
}

/// Converts a response. `sent` is the schema of the request, used if the registry omits the schema from the response.
fn registered(subject: &str, answer: &RawRegisteredSchema, sent: Option<&str>) -> Option<Registered> {
    Some(Registered {
        subject: subject.to_owned(),
        version: answer.version?,
        id: SchemaId(answer.id?),
        schema: answer.schema.as_deref().or(sent)?.to_owned(),
    })
}

/// Reads a version from JSON.
fn registered_json(subject: &str, answer: &Value) -> Option<Registered> {
    let number = |name: &str| u32::try_from(answer.get(name)?.as_u64()?).ok();
    Some(Registered {
        subject: subject.to_owned(),
        version: number("version")?,
        id: SchemaId(number("id")?),
        schema: answer.get("schema")?.as_str()?.to_owned(),
    })
}

#[cfg(test)]
mod tests;
