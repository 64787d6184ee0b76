//! Byte prefixes of state keys.

/// Prefix of the keys that the runtime reserves for itself.
pub(crate) const RESERVED: &[u8] = b"[\"~";

/// Smallest key above all keys with this prefix; `None` if there is none.
pub(crate) fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|b| *b != u8::MAX)?;
    let mut end = prefix.get(..=last)?.to_vec();
    if let Some(byte) = end.last_mut() {
        *byte += 1;
    }
    Some(end)
}
