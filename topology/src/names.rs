//! Names: which are allowed, and which was probably meant.
//!
//! Guarantees: the rule is that of `schemas::ids`; an allowed name is a legal part of a Kafka topic's name and of a
//! bucket's name as it stands.
//! Never: changes a name.

use schemas::ids::ViewName;

/// Says why a declared name is not allowed, with the fix.
pub(crate) fn refused(name: &str) -> Option<String> {
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

/// The candidate that was probably meant, if one is near enough.
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

/// The fix for an unknown name: what was probably meant, else what there is, else `none`.
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
        format!("known: {list} and {more} more")
    } else {
        format!("known: {list}")
    }
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
        assert_eq!(
            known("price", columns, ""),
            "known: `id`, `customer_id`, `status`, `total_cents`"
        );
        assert_eq!(known("price", [], "declare one"), "declare one");
    }

    #[test]
    fn a_refused_name_comes_with_one_that_is_allowed() {
        assert_eq!(refused("edge-1"), None);
        assert!(refused("order viewed").unwrap().ends_with("such as `order_viewed`"));
        assert!(refused("").is_some() && refused("~close").is_some() && refused(&"a".repeat(64)).is_some());
    }
}
