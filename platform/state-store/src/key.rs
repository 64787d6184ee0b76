//! Keys and ranges of keys.

/// Maximum length of a key in bytes: the limit of fjall. The minimum is 1.
pub const KEY_BYTES_MAX: usize = 65_535;

/// Whether a store accepts a key of this length.
pub fn takes_key(key: &[u8]) -> bool {
    (1..=KEY_BYTES_MAX).contains(&key.len())
}

/// The keys from `from` up to but not including `to`.
#[derive(Debug, Clone, Copy)]
pub struct KeyRange<'a> {
    /// The first key of the range; if empty, the first key of the keyspace.
    pub from: &'a [u8],
    /// The end of the range (exclusive); `None` for no end.
    pub to: Option<&'a [u8]>,
}

impl<'a> KeyRange<'a> {
    /// All keys of a keyspace.
    pub const ALL: Self = Self { from: b"", to: None };

    /// The keys in `from..to`.
    pub fn new(from: &'a [u8], to: Option<&'a [u8]>) -> Self {
        Self { from, to }
    }

    /// Whether the range can contain no key. Ordered maps panic on such bounds.
    pub fn is_empty(&self) -> bool {
        self.to.is_some_and(|to| to <= self.from)
    }
}
