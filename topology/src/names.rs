//! Names: which are allowed, and which was probably meant.
//!
//! Guarantees: an allowed name is a legal part of a Kafka topic's name and of a bucket's name as it stands.
//! Never: changes a name.

/// Longest name, in characters. Topic names (249) are made of two of them and a prefix.
pub const NAME_CHARS_MAX: usize = 63;

/// Says why a name is not allowed, with the fix.
pub(crate) fn refused(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some(String::from("write a name: a letter, then letters, digits, `_` or `-`"));
    }
    if name.chars().count() > NAME_CHARS_MAX {
        return Some(format!("use at most {NAME_CHARS_MAX} characters"));
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.chars().all(legal) {
        let meant: String = name.chars().map(|c| if legal(c) { c } else { '_' }).collect();
        let meant = meant.trim_start_matches(|c: char| !c.is_ascii_alphabetic());
        let example = if meant.is_empty() { String::new() } else { format!(", such as `{meant}`") };
        return Some(format!("use a letter, then letters, digits, `_` or `-`{example}"));
    }
    None
}

/// The candidate that was probably meant, if one is near enough.
pub(crate) fn nearest<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let allowed = match name.chars().count() {
        0..=2 => 1,
        3..=5 => 2,
        n => n / 3,
    };
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&name.to_lowercase(), &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The fix for an unknown name: what was probably meant, else what there is.
pub(crate) fn known<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str> + Clone, none: &str) -> String {
    if let Some(meant) = nearest(name, candidates.clone()) {
        return format!("did you mean `{meant}`?");
    }
    let mut all: Vec<&str> = candidates.into_iter().collect();
    if all.is_empty() {
        return String::from(none);
    }
    let more = all.len().saturating_sub(12);
    all.truncate(12);
    let list = all.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("known: {list} and {more} more") } else { format!("known: {list}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_the_name_that_was_meant() {
        let columns = ["id", "customer_id", "status", "total_cents"];
        assert_eq!(nearest("custmer_id", columns), Some("customer_id"));
        assert_eq!(nearest("Status", columns), Some("status"));
        assert_eq!(nearest("price", columns), None);
        assert_eq!(known("price", columns, ""), "known: `id`, `customer_id`, `status`, `total_cents`");
        assert_eq!(known("price", [], "declare one"), "declare one");
    }

    #[test]
    fn a_name_is_a_letter_and_then_letters_digits_underscores_and_dashes() {
        for good in ["a", "shop", "edge-1", "order_viewed", "A9"] {
            assert_eq!(refused(good), None, "{good}");
        }
        for bad in ["", "1st", "a.b", "~close", "a b", "été"] {
            assert!(refused(bad).is_some(), "{bad}");
        }
        assert!(refused(&"a".repeat(64)).is_some());
    }
}
