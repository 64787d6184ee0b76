//! A device that polls an edge and applies pages as docs/protocol/device-sync.md specifies.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Identity of a row: bucket, view, key.
pub type RowId = (String, String, String);

pub struct Phone {
    client: reqwest::blocking::Client,
    token: String,
    device: String,
    cursor: Option<String>,
    /// Rows on the device.
    pub rows: BTreeMap<RowId, Value>,
    /// Views that lack changes at the moment.
    pub stale: BTreeSet<String>,
    /// Number of complete pages without stale views.
    pub complete: usize,
    /// Whether the last page was complete, and the stale views in it; `None` before the first page.
    pub page: Option<(bool, Vec<String>)>,
    /// Summary of the last response.
    pub last: String,
}

/// Result of a poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polled {
    /// A complete page without stale views: the device has the state of one instant.
    Complete,
    /// A page that is not complete, or one that names stale views. Before the first snapshot of a table has ended, its
    /// views are stale.
    Part,
    /// 304: no changes.
    Same,
    /// 503, or no response.
    Later,
}

impl Phone {
    pub fn new(device: &str, token: &str) -> Phone {
        let client = reqwest::blocking::Client::builder()
            .timeout(Duration::from_secs(20))
            .build()
            .unwrap();
        let (token, device) = (token.to_owned(), device.to_owned());
        Phone {
            client,
            token,
            device,
            cursor: None,
            rows: BTreeMap::new(),
            stale: BTreeSet::new(),
            complete: 0,
            page: None,
            last: String::new(),
        }
    }

    /// Polls an edge; panics on any status but 200, 304 and 503.
    pub fn poll(&mut self, edge: &str, wait_s: u32) -> Polled {
        let mut url = format!("{edge}/v1/sync?limit=5000&wait={wait_s}");
        if let Some(cursor) = &self.cursor {
            url.push_str(&format!("&cursor={cursor}"));
        }
        let sent = self
            .client
            .get(url)
            .bearer_auth(&self.token)
            .header("trunkline-device", &self.device)
            .send();
        let Ok(response) = sent else {
            self.last = format!("{edge} does not respond");
            return Polled::Later;
        };
        let status = response.status().as_u16();
        let Ok(body) = response.bytes() else {
            self.last = format!("{edge}: {status}, the body is incomplete");
            return Polled::Later;
        };
        let head = String::from_utf8_lossy(body.get(..200).unwrap_or(&body));
        self.last = format!("{edge}: {status}, {} bytes: {head}", body.len());
        match status {
            200 => self.apply(&serde_json::from_slice(&body).expect("a page is JSON")),
            304 => Polled::Same,
            503 => Polled::Later,
            _ => panic!("the edge returned {status}: {}", String::from_utf8_lossy(&body)),
        }
    }

    fn apply(&mut self, page: &Value) -> Polled {
        let list = |name: &str| page[name].as_array().cloned().unwrap_or_default();
        let text = |of: &Value| of.as_str().expect("a text").to_owned();
        if page["reset_all"] == Value::Bool(true) {
            self.rows.clear();
        }
        for bucket in list("drops") {
            self.rows.retain(|(b, ..), _| *b != text(&bucket));
        }
        for reset in list("resets") {
            self.rows.retain(|(b, ..), _| *b != text(&reset["bucket"]));
        }
        for change in list("changes") {
            let id = (
                text(&change["bucket"]),
                text(&change["view"]),
                change["key"].to_string(),
            );
            match text(&change["op"]).as_str() {
                "put" => drop(self.rows.insert(id, change["row"].clone())),
                _ => drop(self.rows.remove(&id)),
            }
        }
        self.cursor = Some(text(&page["cursor"]));
        let is_complete = page["complete"] == Value::Bool(true);
        self.stale = list("stale").iter().map(text).collect();
        self.page = Some((is_complete, self.stale.iter().cloned().collect()));
        if is_complete && self.stale.is_empty() {
            self.complete += 1;
            return Polled::Complete;
        }
        Polled::Part
    }

    /// The rows of a view.
    pub fn view<'a>(&'a self, view: &'a str) -> impl Iterator<Item = &'a Value> {
        self.rows
            .iter()
            .filter(move |((_, v, _), _)| v == view)
            .map(|(_, row)| row)
    }
}
