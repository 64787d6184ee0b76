//! Sends requests of operators to the process in which the log is open: this process, or a running `trunkline dev`.

use crate::args::Target;
use crate::backends::{self, Backends};
use crate::config::Registry;
use crate::data_dir::{self, DataDir, DataDirError};
use crate::operations_api::{Operations, PATH, Request, Response};
use crate::running_dev;
use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use service::clock;

/// Executes requests.
pub enum Client {
    /// Execute the requests in this process.
    Local(Operations),
    /// In the process with this admin URL.
    Remote(String),
}

impl Client {
    /// Connects to the Kafka of `target`, else opens the embedded log of its data directory. If a running `dev` has the
    /// log open, requests are sent to that process.
    pub fn connect(target: &Target) -> Result<Self> {
        let clock = clock::system();
        let registry = Registry {
            url: target.registry.clone(),
            user: None,
            password: None,
            listen: None,
        };
        if let Some(brokers) = &target.kafka {
            let log = backends::plain_kafka_log(brokers)?;
            let registry = backends::registry(&registry, &log)?;
            return Ok(Client::Local(Backends::new(log, registry, clock, None).operations()));
        }
        let data = target.data.as_path();
        if !data.join("log").exists() {
            bail!(
                "there is no log in {}; start `trunkline dev` there, or choose a log with --data or --kafka",
                data.display()
            );
        }
        match DataDir::claim(data, data_dir::OPTION) {
            // Locked until the command ends, so that `dev --fresh` does not rename the directory meanwhile.
            Ok(data) => drop(data.keep()),
            Err(DataDirError::InUse { .. }) => return Ok(Client::Remote(running_dev::read(data)?.admin)),
            Err(error) => return Err(error.into()),
        }
        match backends::embedded_log(data, &clock) {
            Ok(log) => {
                let registry = backends::registry(&registry, &log)?;
                Ok(Client::Local(Backends::new(log, registry, clock, None).operations()))
            }
            Err(event_log::Error::Refused { .. }) => Ok(Client::Remote(running_dev::read(data)?.admin)),
            Err(error) => Err(error).with_context(|| format!("cannot open the log in {}", data.display())),
        }
    }

    /// Executes a request and passes its responses to `receive`, which returns false to stop. If the request fails,
    /// returns an error; [`Response::Error`] is not passed to `receive`.
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
            Client::Local(operations) => operations.execute(request, &mut on_response),
            Client::Remote(url) => post(url, &request, &mut on_response)?,
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

fn post(url: &str, request: &Request, on_response: &mut dyn FnMut(Response) -> bool) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = reqwest::Client::new();
        let sent = client.post(format!("{url}{PATH}")).json(request).send().await;
        let mut answer =
            sent.with_context(|| format!("cannot reach the `trunkline dev` at {url}; check that it is running"))?;
        if !answer.status().is_success() {
            let status = answer.status();
            bail!("{url} answered {status}: {}", answer.text().await.unwrap_or_default());
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
