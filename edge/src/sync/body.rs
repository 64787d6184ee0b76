//! Encodes a page as the JSON body that `/openapi.json` describes, with the fields in the order in which a device applies
//! them.
//!
//! Rows are copied from `view.log` as the JSON bytes that sync-views wrote. They are neither parsed nor encoded again, so
//! that a page costs little CPU and numbers keep their exact form.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use views::{BucketId, Change, Page};

/// Characters of a bucket id: 8 bytes in base64 without padding.
const BUCKET_CHARS: usize = 11;

/// Encodes a page; `cursor` is the sealed cursor.
pub fn write(page: &Page, cursor: &str, poll_after_ms: u64) -> Vec<u8> {
    let rows: usize = page
        .changes
        .iter()
        .map(|c| 96 + c.parts().json.map_or(0, <[u8]>::len))
        .sum();
    let mut out = Vec::with_capacity(256 + cursor.len() + rows + 64 * page.resets.len());
    out.extend_from_slice(b"{\"cursor\":");
    string(&mut out, cursor);
    out.extend_from_slice(if page.complete {
        b",\"complete\":true"
    } else {
        b",\"complete\":false"
    });
    if page.reset_all {
        out.extend_from_slice(b",\"reset_all\":true");
    }
    list(&mut out, "drops", &page.drops, |out, id| bucket(out, *id));
    list(&mut out, "resets", &page.resets, |out, (id, name)| {
        out.extend_from_slice(b"{\"bucket\":");
        bucket(out, *id);
        out.extend_from_slice(b",\"name\":");
        string(out, name);
        out.push(b'}');
    });
    list(&mut out, "changes", &page.changes, change);
    list(&mut out, "stale", &page.stale, |out, view| string(out, view));
    if page.complete && !page.hashes.is_empty() {
        list(&mut out, "hashes", &page.hashes, |out, (id, hash)| {
            out.extend_from_slice(b"{\"bucket\":");
            bucket(out, *id);
            out.extend_from_slice(b",\"hash\":\"");
            hex(out, &hash.to_be_bytes());
            out.extend_from_slice(b"\"}");
        });
    }
    // Always 0, because device writes (invariant I7) are not built.
    out.extend_from_slice(b",\"acked_through\":0,\"poll_after_ms\":");
    out.extend_from_slice(poll_after_ms.to_string().as_bytes());
    out.push(b'}');
    out
}

fn change(out: &mut Vec<u8>, change: &Change) {
    let parts = change.parts();
    out.extend_from_slice(b"{\"bucket\":");
    bucket(out, change.bucket);
    out.extend_from_slice(b",\"view\":");
    string(out, parts.view);
    out.extend_from_slice(b",\"key\":[");
    out.extend_from_slice(parts.key.as_bytes());
    out.extend_from_slice(if parts.json.is_some() {
        b"],\"op\":\"put\""
    } else {
        b"],\"op\":\"delete\""
    });
    out.extend_from_slice(b",\"version\":\"");
    hex(out, &parts.version);
    out.push(b'"');
    if let Some(row) = parts.json {
        out.extend_from_slice(b",\"row\":");
        out.extend_from_slice(row);
    }
    out.push(b'}');
}

fn list<T>(out: &mut Vec<u8>, name: &str, items: &[T], mut item: impl FnMut(&mut Vec<u8>, &T)) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":[");
    for (index, each) in items.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        item(out, each);
    }
    out.push(b']');
}

fn bucket(out: &mut Vec<u8>, id: BucketId) {
    let mut text = [0; BUCKET_CHARS];
    let written = URL_SAFE_NO_PAD.encode_slice(id.0.to_be_bytes(), &mut text);
    debug_assert_eq!(written, Ok(BUCKET_CHARS));
    out.push(b'"');
    out.extend_from_slice(&text);
    out.push(b'"');
}

fn hex(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        for nibble in [byte >> 4, byte & 0xf] {
            out.push(DIGITS.get(usize::from(nibble)).copied().unwrap_or(b'0'));
        }
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a string has a JSON form, and writing to a vector cannot fail");
}
