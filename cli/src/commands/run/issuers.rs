//! Compares the issuers that an edge accepts with the memberships of the topology.
//!
//! The topology declares which claims grant access to which buckets; the configuration lists the issuers whose tokens
//! are accepted. With several issuers, a membership without an issuer would allow a token of one issuer to read rows
//! that belong to a user of another issuer.

use anyhow::{Result, bail};
use topology::Membership;

/// Rejects memberships without an issuer if the edge has several issuers, and issuer names that are only in the
/// topology or only in the configuration.
pub fn check(memberships: &[Membership], edge: &edge::Config) -> Result<()> {
    let aliases: Vec<&str> = edge.issuers.iter().map(|issuer| issuer.alias.as_str()).collect();
    let configured = aliases.join(", ");
    for membership in memberships {
        let bucket = &membership.template;
        match membership.issuer.as_deref() {
            None if aliases.len() > 1 => bail!(
                "the membership of `{bucket}` names no issuer, but edge.issuers has several ({configured}), which may use \
                 the same subject for different users; add `issuer` to the membership, and one membership for each issuer"
            ),
            Some(issuer) if !aliases.contains(&issuer) => bail!(
                "the membership of `{bucket}` is for issuer `{issuer}`, which is not an alias in edge.issuers ({configured}); \
                 add it there, or correct the name on one side"
            ),
            _ => {}
        }
    }
    let is_used = |alias: &&&str| {
        let mut opened_by = memberships.iter().map(|membership| membership.issuer.as_deref());
        memberships.is_empty() || opened_by.any(|issuer| issuer.is_none_or(|issuer| issuer == **alias))
    };
    match aliases.iter().find(|alias| !is_used(alias)) {
        Some(unused) => bail!(
            "issuer `{unused}` of edge.issuers is in no membership of the topology, so its tokens would grant access to no bucket; add \
             a [[membership]] with issuer = \"{unused}\", or remove the issuer"
        ),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge::config::{Algorithm, IssuerConfig};

    fn check_with(aliases: &[&str], memberships: &[Option<&str>]) -> Result<(), String> {
        let template = topology::samples::SHOP
            .check()
            .topology
            .unwrap()
            .memberships
            .remove(0)
            .template;
        let memberships: Vec<Membership> = memberships
            .iter()
            .map(|issuer| Membership {
                bucket: 0,
                template: template.clone(),
                issuer: issuer.map(str::to_owned),
            })
            .collect();
        let issuer = |alias: &&str| IssuerConfig::new(alias, "https://id.example.com/", "app", &[Algorithm::RS256]);
        let edge = edge::Config {
            issuers: aliases.iter().map(issuer).collect(),
            ..edge::Config::default()
        };
        check(&memberships, &edge).map_err(|error| error.to_string())
    }

    #[test]
    fn membership_without_issuer_needs_a_single_issuer() {
        assert_eq!(check_with(&["main"], &[None]), Ok(()));
        assert_eq!(check_with(&["main"], &[]), Ok(()));
        assert_eq!(
            check_with(&["main", "partner"], &[Some("main"), Some("partner")]),
            Ok(())
        );
        let error = check_with(&["main", "partner"], &[Some("main"), None]).unwrap_err();
        assert!(
            error.contains("names no issuer") && error.contains("(main, partner)"),
            "{error}"
        );
    }

    #[test]
    fn names_on_one_side_only_are_rejected() {
        let error = check_with(&["main"], &[Some("Main")]).unwrap_err();
        assert!(
            error.contains("issuer `Main`, which is not an alias in edge.issuers (main)"),
            "{error}"
        );
        let error = check_with(&["main", "partner"], &[Some("main")]).unwrap_err();
        assert!(
            error.contains("issuer `partner` of edge.issuers is in no membership"),
            "{error}"
        );
    }
}
