//! A device for tests: polls over HTTP and applies pages as `/openapi.json` describes.
//!
//! It compares the bucket hashes of each complete page with its own rows (invariant I10).

use super::harness::{Running, eventually};
use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::Value;
use std::collections::BTreeMap;

/// Rows of a bucket: (view, key as JSON) → (version, row).
type Rows = BTreeMap<(String, String), (String, Value)>;

/// A device.
pub struct Device {
    http: reqwest::Client,
    token: String,
    id: String,
    pub cursor: Option<String>,
    buckets: BTreeMap<String, Rows>,
    names: BTreeMap<String, String>,
    pub resets_all: usize,
}

impl Device {
    pub fn new(token: &str, id: &str) -> Self {
        let (buckets, names) = (BTreeMap::new(), BTreeMap::new());
        let http = reqwest::Client::new();
        Device {
            http,
            token: token.into(),
            id: id.into(),
            cursor: None,
            buckets,
            names,
            resets_all: 0,
        }
    }

    /// A poll with the current cursor.
    pub fn request(&self, edge: &Running, more: &str) -> RequestBuilder {
        let cursor = self.cursor.as_deref().unwrap_or_default();
        let url = edge.url(&format!("/v1/sync?cursor={cursor}{more}"));
        self.http
            .get(url)
            .bearer_auth(&self.token)
            .header("trunkline-device", &self.id)
    }

    /// Sends a poll and returns the response.
    pub async fn get(&self, edge: &Running, more: &str) -> Response {
        self.request(edge, more).send().await.expect("an answer")
    }

    /// Polls once and applies the page. Returns whether it was complete, or `None` for 304.
    pub async fn poll(&mut self, edge: &Running, more: &str) -> Option<bool> {
        let answer = self.get(edge, more).await;
        match answer.status() {
            StatusCode::NOT_MODIFIED => {
                assert!(answer.bytes().await.expect("no body").is_empty());
                None
            }
            StatusCode::OK => Some(self.apply(&answer.json().await.expect("a page"))),
            other => panic!("{other}: {}", answer.text().await.unwrap_or_default()),
        }
    }

    /// Polls until a complete page or 304. Retries 503.
    pub async fn sync(&mut self, edge: &Running, limit: usize) {
        loop {
            let answer = eventually("a response other than 503", async || {
                let answer = self.get(edge, &format!("&limit={limit}")).await;
                (answer.status() != StatusCode::SERVICE_UNAVAILABLE).then_some(answer)
            })
            .await;
            match answer.status() {
                StatusCode::NOT_MODIFIED => return,
                StatusCode::OK if self.apply(&answer.json().await.expect("a page")) => return,
                StatusCode::OK => {}
                other => panic!("{other}"),
            }
        }
    }

    fn apply(&mut self, page: &Value) -> bool {
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let list = |name: &str| page[name].as_array().expect("a list").clone();
        if page.get("reset_all").is_some() {
            self.buckets.clear();
            self.resets_all += 1;
        }
        for bucket in list("drops") {
            self.buckets.remove(&text(&bucket));
        }
        for reset in list("resets") {
            self.names.insert(text(&reset["bucket"]), text(&reset["name"]));
            self.buckets.insert(text(&reset["bucket"]), Rows::new());
        }
        for change in list("changes") {
            let rows = self
                .buckets
                .get_mut(&text(&change["bucket"]))
                .expect("a bucket that was begun");
            let place = (text(&change["view"]), change["key"].to_string());
            match change["op"].as_str() {
                Some("put") => drop(rows.insert(place, (text(&change["version"]), change["row"].clone()))),
                Some("delete") => drop(rows.remove(&place)),
                other => panic!("{other:?}"),
            }
        }
        self.cursor = Some(text(&page["cursor"]));
        for hash in page.get("hashes").and_then(Value::as_array).into_iter().flatten() {
            assert_eq!(
                hash["hash"],
                self.hash(&text(&hash["bucket"])),
                "hash of a bucket on the device"
            );
        }
        page["complete"].as_bool().expect("a truth value")
    }

    fn hash(&self, bucket: &str) -> Value {
        let mut sum = 0_u128;
        for ((view, key), (version, _)) in &self.buckets[bucket] {
            let bytes: Vec<u8> = (0..17)
                .map(|at| u8::from_str_radix(&version[2 * at..2 * at + 2], 16).expect("hex"))
                .collect();
            let key = key
                .strip_prefix('[')
                .and_then(|k| k.strip_suffix(']'))
                .expect("an array");
            sum = sum.wrapping_add(views::row_hash(
                view,
                key.as_bytes(),
                &bytes.try_into().expect("17 bytes"),
            ));
        }
        Value::from(format!("{sum:032x}"))
    }

    /// Rows by bucket name and key.
    pub fn shows(&self) -> BTreeMap<String, BTreeMap<String, Value>> {
        let rows = |rows: &Rows| {
            rows.iter()
                .map(|((_, key), (_, row))| (key.clone(), row.clone()))
                .collect()
        };
        self.buckets
            .iter()
            .map(|(id, all)| (self.names[id].clone(), rows(all)))
            .collect()
    }

    /// Rows of a bucket.
    pub fn bucket(&self, name: &str) -> BTreeMap<String, Value> {
        self.shows().remove(name).unwrap_or_default()
    }
}
