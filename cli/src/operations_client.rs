//! Sends requests of operators to the process in which the log is open: this process, or a running `trunkline dev`.

use crate::admin_client::{self, AdminClient};
use crate::args::Target;
use crate::backends;
use crate::config::Registry;
use crate::connection::Connection;
use crate::data_dir::{self, DataDir, DataDirError};
use crate::operations_api::{Operations, PATH, Request, Response, fetch_from};
use crate::running_dev;
use anyhow::{Context, Result, anyhow, bail};
use event_log::SharedEventLog;
use event_log::embedded::Durability;
use operations::FetchSchema;
use serde_json::Value;
use service::clock;
use std::sync::{Arc, OnceLock};

/// Executes requests.
pub enum Client {
    /// Execute the requests in this process.
    Local(Operations),
    /// In the process with this admin URL.
    Remote(AdminClient, String),
}

impl Client {
    /// Connects to the Kafka of `target`, else opens the embedded log of its data directory. If a running `dev` has the
    /// log open, requests are sent to that process. Connecting creates nothing.
    pub fn connect(target: &Target) -> Result<Self> {
        let clock = clock::system();
        let Connection { kafka, registry, .. } = Connection::of(target)?;
        let local = |log: SharedEventLog| {
            Client::Local(Operations {
                fetch: fetch_lazily(registry, log.clone()),
                log,
                clock: clock.clone(),
            })
        };
        if let Some(kafka) = kafka {
            return Ok(local(backends::kafka_log(&kafka)?));
        }
        let data = target.data.as_path();
        if !data.join("log").exists() {
            bail!(
                "there is no log in {}; start `trunkline dev` there, or choose a log with --data, --kafka, --config or \
                 --profile",
                data.display()
            );
        }
        match DataDir::claim(data, data_dir::OPTION) {
            // Locked until the command ends, so that `dev --fresh` does not rename the directory meanwhile.
            Ok(data) => drop(data.keep()),
            Err(DataDirError::InUse { .. }) => return Self::remote(target),
            Err(error) => return Err(error.into()),
        }
        // Ctrl-C ends a command without closing the log. With synced commits this is no possible loss.
        match backends::embedded_log(data, &clock, Durability::Commit) {
            Ok(log) => Ok(local(log)),
            Err(event_log::Error::Rejected { .. }) => Self::remote(target),
            Err(error) => Err(error).with_context(|| format!("cannot open the log in {}", data.display())),
        }
    }

    /// Sends requests to the running `trunkline dev` of the data directory.
    fn remote(target: &Target) -> Result<Self> {
        let url = running_dev::read(&target.data)?.admin;
        Ok(Client::Remote(AdminClient::new(target, None)?, url))
    }

    /// Executes a request and passes its responses to `receive`, which returns false to stop. A failed request is an
    /// error; `receive` never sees [`Response::Error`].
    pub fn request(&self, request: Request, receive: &mut dyn FnMut(Response) -> Result<bool>) -> Result<()> {
        let mut result = Ok(());
        let mut on_response = |response: Response| {
            let received = match response {
                Response::Error(text) => Err(anyhow!(text)),
                response => receive(response),
            };
            received.unwrap_or_else(|error| {
                result = Err(error);
                false
            })
        };
        match self {
            Client::Local(operations) => operations.execute(request, &|| false, &mut on_response),
            Client::Remote(client, url) => post(client, url, &request, &mut on_response)?,
        }
        result
    }

    /// All items of a response.
    pub fn collect(&self, request: Request) -> Result<Vec<Value>> {
        let mut items = Vec::new();
        self.request(request, &mut |response| {
            if let Response::Item(item) = response {
                items.push(item);
            }
            Ok(true)
        })?;
        Ok(items)
    }
}

/// Fetches schemas from the registry, which is opened for the first schema: most commands need none.
fn fetch_lazily(registry: Registry, log: SharedEventLog) -> FetchSchema {
    let opened: OnceLock<Result<FetchSchema, String>> = OnceLock::new();
    Arc::new(move |id| {
        let fetch = opened.get_or_init(|| match backends::existing_registry(&registry, &log) {
            Ok(Some(registry)) => Ok(fetch_from(registry)),
            Ok(None) => Err(String::from(
                "the log contains no schema registry; name one with --registry",
            )),
            Err(error) => Err(format!("{error:#}")),
        });
        fetch.as_ref().map_err(String::clone)?(id)
    })
}

fn post(
    client: &AdminClient,
    url: &str,
    request: &Request,
    on_response: &mut dyn FnMut(Response) -> bool,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let sent = client.post(&format!("{url}{PATH}"), request).await;
        let mut answer = sent.with_context(|| format!("cannot reach the `trunkline dev` at {url}"))?;
        if !answer.status().is_success() {
            return Err(admin_client::error_of(url, answer).await);
        }
        let mut buffer: Vec<u8> = Vec::new();
        while let Some(chunk) = answer
            .chunk()
            .await
            .context("the response is incomplete; run the command again")?
        {
            buffer.extend_from_slice(&chunk);
            while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                let response = serde_json::from_slice(&line)
                    .context("cannot parse the response; the process may run another version of trunkline")?;
                if !on_response(response) {
                    return Ok(());
                }
            }
        }
        Ok(())
    })
}
