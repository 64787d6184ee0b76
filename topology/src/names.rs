//! Validation of declared names, and suggestions for unknown ones.
//!
//! The rule is the same as in `schemas::ids`: a valid name can be part of a Kafka topic name and of a bucket name
//! without escaping.

use schemas::ids::ViewName;

/// A name that no topology has: the prefix of names that belong to no topology, such as the transactional id of the schema
/// registry.
pub(crate) const RESERVED_TOPOLOGY: &str = "trunkline";

/// Returns the fix for a name that is not allowed; `None` for an allowed name.
pub(crate) fn rejected(name: &str) -> Option<String> {
    let error = ViewName::new(name).err()?;
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let meant: String = name.chars().take(40).map(|c| if legal(c) { c } else { '_' }).collect();
    let meant = meant.trim_start_matches(|c: char| !c.is_ascii_alphabetic());
    let example = if meant.is_empty() {
        String::new()
    } else {
        format!(", such as `{meant}`")
    };
    Some(format!("{}{example}", error.reason))
}

/// The candidate that is most similar, if it is so similar that the name is probably a misspelling of it.
pub(crate) fn nearest<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let allowed = match name.chars().count() {
        0..=2 => 1,
        3..=5 => 2,
        n => n / 3,
    };
    candidates
        .into_iter()
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&name.to_lowercase(), &candidate.to_lowercase()),
                candidate,
            )
        })
        .filter(|(distance, candidate)| *distance <= allowed && *distance < candidate.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The fix for an unknown name: the most similar candidate, else the list of candidates, else `none`.
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
    let list = all
        .iter()
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ");
    if more > 0 {
        format!("available: {list} and {more} more")
    } else {
        format!("available: {list}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_name_is_suggested() {
        let columns = ["id", "customer_id", "status", "total_cents"];
        assert_eq!(nearest("custmer_id", columns), Some("customer_id"));
        assert_eq!(nearest("Status", columns), Some("status"));
        assert_eq!(nearest("price", columns), None);
        assert_eq!(
            known("price", columns, ""),
            "available: `id`, `customer_id`, `status`, `total_cents`"
        );
        assert_eq!(known("price", [], "declare one"), "declare one");
    }

    #[test]
    fn rejected_name_has_a_valid_example() {
        assert_eq!(rejected("edge-1"), None);
        assert!(rejected("order viewed").unwrap().ends_with("such as `order_viewed`"));
        assert!(rejected("").is_some() && rejected("~end").is_some() && rejected(&"a".repeat(64)).is_some());
    }
}
