//! Failpoints: named places where a test makes the process die as by kill -9.
//!
//! `TRUNKLINE_FAILPOINTS=name=kill` dies at the first hit of `name`, `name=kill@3` at the third; several are separated
//! by commas. Guarantees: without the variable a hit costs one load. Never: a clean-up before the death.

use crate::config;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;

struct Armed {
    at: u64,
    hits: AtomicU64,
}

static ARMED: OnceLock<HashMap<String, Armed>> = OnceLock::new();

/// Passes a failpoint, or dies there.
pub fn hit(name: &'static str) {
    let armed = ARMED.get_or_init(|| parse(&config::env("TRUNKLINE_FAILPOINTS").unwrap_or_default()));
    if armed.is_empty() {
        return;
    }
    let Some(point) = armed.get(name) else { return };
    if point.hits.fetch_add(1, Ordering::SeqCst) + 1 == point.at {
        eprintln!("failpoint {name}: dying here");
        std::process::abort();
    }
}

fn parse(text: &str) -> HashMap<String, Armed> {
    let entries = text.split(',').filter_map(|entry| {
        let (name, action) = entry.split_once('=')?;
        let at = match action.strip_prefix("kill")? {
            "" => 1,
            count => count.strip_prefix('@')?.parse().ok()?,
        };
        Some((name.trim().to_owned(), Armed { at, hits: AtomicU64::new(0) }))
    });
    entries.collect()
}
