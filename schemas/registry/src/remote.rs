//! Client of a registry that speaks Confluent's REST API: Confluent's own, Karapace, Apicurio under its ccompat path.
//!
//! Guarantees: a call ends within attempts × time limit; only what may be repeated without harm is repeated (all of
//! these calls may); errors name the URL and what was attempted. May be called from any thread, and blocks it.
//! Never: a password or token in a message or in `Debug`.

mod attempt;

use crate::{Error, Level, Registered, Registry, Result, Version};
use attempt::{About, Failure, Shared};
use reqwest::Method;
use schema_registry_converter::async_impl::schema_registry::{SrSettings, perform_sr_call};
use schema_registry_converter::schema_registry_common::{RawRegisteredSchema, SrCall};
use schemas::ids::SchemaId;
use serde_json::{Value, json};
use std::fmt;
use std::sync::{Arc, mpsc};
use std::time::Duration;

const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// How to reach a registry.
#[derive(Clone)]
pub struct Config {
    /// Base URL, with its path if it has one: `http://127.0.0.1:8081`, `https://host/apis/ccompat/v7`.
    pub url: String,
    /// Credentials.
    pub auth: Auth,
    /// Time limit of one attempt. 5 s by default.
    pub timeout: Duration,
    /// Attempts while the registry is out of reach or answers 429 or 5xx. 4 by default, with pauses of 0.1, 0.2, 0.4 s.
    pub attempts: u32,
}

/// Credentials for a registry.
#[derive(Clone, Default)]
pub enum Auth {
    /// None.
    #[default]
    None,
    /// HTTP basic authentication.
    Basic {
        /// User, or API key.
        user: String,
        /// Password, or API secret.
        password: String,
    },
    /// A bearer token.
    Bearer(String),
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Auth::None => "none",
            Auth::Basic { .. } => "basic",
            Auth::Bearer(_) => "bearer",
        })
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Config({}, {:?})", self.url, self.auth)
    }
}

impl Config {
    /// A registry at this URL, without credentials.
    pub fn new(url: &str) -> Self {
        Config {
            url: url.to_owned(),
            auth: Auth::None,
            timeout: Duration::from_secs(5),
            attempts: 4,
        }
    }
}

/// A registry behind a URL.
pub struct Remote {
    shared: Arc<Shared>,
    /// One thread that drives the connections. Only `Drop` takes it out.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Remote {
    /// Prepares a client; does not connect yet.
    ///
    /// # Errors
    /// [`Error::Refused`] when the URL is none, or holds credentials (they belong in [`Config::auth`]).
    pub fn new(config: Config) -> Result<Self> {
        let url = config.url.trim_end_matches('/').to_owned();
        let parsed =
            reqwest::Url::parse(&url).map_err(|e| unusable("(the configured URL)", &format!("it is no URL: {e}")))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(unusable(
                "(the configured URL)",
                "it must begin with http:// or https://",
            ));
        }
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(unusable(
                "(the configured URL)",
                "it holds credentials; give user and password beside it",
            ));
        }
        let failed = |e: &dyn fmt::Display| unusable(&url, &e.to_string());
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

    /// Runs a call on the inner thread and waits for it, again while the registry is out of reach.
    fn call<T, F>(&self, about: &About<'_>, call: impl Fn(Arc<Shared>) -> F + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send,
    {
        let stopped = || self.shared.unavailable(about, "its thread has stopped");
        let runtime = self.runtime.as_ref().ok_or_else(stopped)?;
        let shared = self.shared.clone();
        let (sender, receiver) = mpsc::sync_channel(1);
        runtime.spawn(async move {
            let mut pause = FIRST_PAUSE;
            let mut attempt = 1;
            let result = loop {
                match call(shared.clone()).await {
                    Err(failure) if failure.is_passing() && attempt < shared.attempts => {
                        tokio::time::sleep(pause).await;
                        pause *= 2;
                        attempt += 1;
                    }
                    result => break result,
                }
            };
            // The caller waits for it: a send can only fail when its thread is gone.
            let _ = sender.send(result);
        });
        let result = receiver.recv().map_err(|_| stopped())?;
        result.map_err(|failure| self.shared.error(about, failure))
    }

    /// A call that the converter's client has.
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

    /// Any other call: an answer of JSON.
    fn request(&self, about: &About<'_>, method: Method, path: String, body: Option<Value>) -> Result<Value> {
        self.call(about, move |shared| {
            let (method, path, body) = (method.clone(), path.clone(), body.clone());
            async move { shared.send(method, &path, body).await }
        })
    }

    fn strange(&self, about: &About<'_>, answer: &impl fmt::Debug) -> Error {
        Error::Refused {
            registry: self.shared.url.clone(),
            attempted: about.attempted.to_owned(),
            code: 0,
            reason: format!("the answer is not what Confluent's API gives: {answer:?}"),
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // May happen inside an async task, where waiting for the thread is not allowed.
            runtime.shutdown_background();
        }
    }
}

/// A call of the converter's client, owned.
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

fn unusable(url: &str, reason: &str) -> Error {
    let attempted = "set its client up".to_owned();
    Error::Refused {
        registry: url.to_owned(),
        attempted,
        code: 0,
        reason: reason.to_owned(),
    }
}

/// A subject as one part of a path.
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
        answer.id.map(SchemaId).ok_or_else(|| self.strange(&about, &answer))
    }

    fn lookup(&self, subject: &str, schema: &str) -> Result<Registered> {
        let about = About::subject("look a schema up", subject);
        let answer = self.converter(&about, Call::LookUp(encoded(subject), body_of(schema).to_string()))?;
        registered(subject, &answer, Some(schema)).ok_or_else(|| self.strange(&about, &answer))
    }

    fn by_id(&self, id: SchemaId) -> Result<Arc<str>> {
        let about = About::id("get a schema by its id", id);
        let answer = self.converter(&about, Call::ById(id.0))?;
        match answer.schema {
            Some(schema) => Ok(schema.into()),
            None => Err(self.strange(&about, &answer)),
        }
    }

    fn uses(&self, id: SchemaId) -> Result<Vec<(String, u32)>> {
        let about = About::id("list the uses of a schema", id);
        let answer = self.request(&about, Method::GET, format!("/schemas/ids/{id}/versions"), None)?;
        let uses = answer.as_array().and_then(|list| {
            let one = |item: &Value| {
                let version = u32::try_from(item.get("version")?.as_u64()?).ok()?;
                Some((item.get("subject")?.as_str()?.to_owned(), version))
            };
            list.iter().map(one).collect()
        });
        uses.ok_or_else(|| self.strange(&about, &answer))
    }

    fn subjects(&self) -> Result<Vec<String>> {
        let about = About::subject("list the subjects", "");
        let answer = self.request(&about, Method::GET, "/subjects".to_owned(), None)?;
        let mut subjects = texts(&answer).ok_or_else(|| self.strange(&about, &answer))?;
        subjects.sort();
        Ok(subjects)
    }

    fn versions(&self, subject: &str) -> Result<Vec<u32>> {
        let about = About::subject("list the versions of a subject", subject);
        let path = format!("/subjects/{}/versions", encoded(subject));
        let answer = self.request(&about, Method::GET, path, None)?;
        numbers(&answer).ok_or_else(|| self.strange(&about, &answer))
    }

    fn version(&self, subject: &str, version: Version) -> Result<Registered> {
        let mut about = About::subject("get a version of a subject", subject);
        about.version = version.to_string();
        let call = match version {
            Version::Latest => Call::Latest(encoded(subject)),
            Version::Number(number) => Call::Version(encoded(subject), number),
        };
        let answer = self.converter(&about, call)?;
        registered(subject, &answer, None).ok_or_else(|| self.strange(&about, &answer))
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
                        "the registry says only that it is incompatible with version {version}"
                    )]
                };
                Ok(if messages.is_empty() { none() } else { messages })
            }
            None => Err(self.strange(&about, &answer)),
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
                    .ok_or_else(|| self.strange(&about, &answer))?;
                Ok(Some(word.parse()?))
            }
            // A subject that does not exist has no level of its own either.
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
        self.request(&about, Method::PUT, path, Some(json!({"compatibility": level.word()})))
            .map(drop)
    }

    fn describe_self(&self) -> String {
        self.shared.url.clone()
    }
}

/// An answer as a version; `sent` stands in where a registry leaves the schema out.
fn registered(subject: &str, answer: &RawRegisteredSchema, sent: Option<&str>) -> Option<Registered> {
    Some(Registered {
        subject: subject.to_owned(),
        version: answer.version?,
        id: SchemaId(answer.id?),
        schema: answer.schema.as_deref().or(sent)?.to_owned(),
    })
}

#[cfg(test)]
mod tests;
