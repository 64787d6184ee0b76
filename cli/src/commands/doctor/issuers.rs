//! Compares the issuers of all edges. An edge rejects memberships without an issuer if it accepts several, but it does not
//! know what other edges of its topology accept.

use super::finding::{Finding, bad, good, warning};
use crate::issuers_api::{EdgeIssuers, Issuer, PATH};
use crate::processes::Processes;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Reads the issuers of a process; `None` if it has no edge.
pub fn of_process(processes: &Processes, url: &str) -> Result<Option<EdgeIssuers>, Finding> {
    let (_, mut answer) = processes.get(url, &PATH, "").map_err(|error| {
        let found = format!("the issuers of {url} are not checked: {error:#}");
        warning("issuers", found, "run the same version of trunkline in all processes")
    })?;
    let edge = answer.get_mut("edge").map(Value::take).unwrap_or_default();
    serde_json::from_value(edge).map_err(|error| {
        let found = format!("the issuers of {url} are not checked: {error}");
        warning("issuers", found, "run the same version of trunkline in all processes")
    })
}

/// Compares the edges of each topology.
pub fn check(edges: &[EdgeIssuers]) -> Vec<Finding> {
    let mut topologies: BTreeMap<&str, Vec<&EdgeIssuers>> = BTreeMap::new();
    for edge in edges {
        topologies.entry(&edge.topology).or_default().push(edge);
    }
    topologies.values().flat_map(|edges| check_topology(edges)).collect()
}

fn check_topology(edges: &[&EdgeIssuers]) -> Vec<Finding> {
    let accepted: BTreeSet<&Issuer> = edges.iter().flat_map(|edge| &edge.issuers).collect();
    let mut findings = Vec::new();
    for (alias, used) in groups(accepted.iter().map(|accepted| (&*accepted.alias, *accepted))) {
        let found = format!(
            "issuer `{alias}` is a different one on different edges: {}; they treat users with the same subject as the same \
             user",
            places(edges, &used)
        );
        let fix = "give each issuer its own alias in edge.issuers, the same on all edges, and adjust the memberships";
        findings.push(bad("issuers", found, fix));
    }
    for (issuer, used) in groups(accepted.iter().map(|accepted| (&*accepted.issuer, *accepted))) {
        let found = format!(
            "issuer {issuer} has different aliases on different edges: {}; they treat its users as different users",
            places(edges, &used)
        );
        findings.push(bad("issuers", found, "use the same alias in edge.issuers on all edges"));
    }
    let issuers: BTreeSet<&str> = accepted.iter().map(|accepted| &*accepted.issuer).collect();
    let open: BTreeSet<&str> = edges
        .iter()
        .flat_map(|edge| &edge.memberships_without_issuer)
        .map(|open| &**open)
        .collect();
    if issuers.len() > 1 && !open.is_empty() {
        let found = format!(
            "the memberships of `{}` name no issuer, but the edges accept several: {}; they may use the same subject for \
             different users",
            open.into_iter().collect::<Vec<_>>().join("`, `"),
            places(edges, &accepted.iter().copied().collect::<Vec<_>>())
        );
        let fix =
            "add `issuer` to these memberships, one membership for each issuer, or use the same issuer on all edges";
        findings.push(bad("issuers", found, fix));
    }
    if findings.is_empty() {
        let issuers = issuers.into_iter().collect::<Vec<_>>().join(", ");
        findings.push(good("issuers", format!("edges accept tokens of {issuers}")));
    }
    findings
}

/// The names with several issuers.
fn groups<'i>(all: impl Iterator<Item = (&'i str, &'i Issuer)>) -> BTreeMap<&'i str, Vec<&'i Issuer>> {
    let mut groups: BTreeMap<&str, Vec<&Issuer>> = BTreeMap::new();
    for (name, issuer) in all {
        groups.entry(name).or_default().push(issuer);
    }
    groups.retain(|_, issuers| issuers.len() > 1);
    groups
}

/// Issuers with the nodes that accept them.
fn places(edges: &[&EdgeIssuers], issuers: &[&Issuer]) -> String {
    let place = |issuer: &&Issuer| {
        let nodes: BTreeSet<&str> = edges
            .iter()
            .filter(|edge| edge.issuers.contains(issuer))
            .map(|edge| &*edge.node)
            .collect();
        let nodes: Vec<&str> = nodes.into_iter().collect();
        format!("{} = {} on {}", issuer.alias, issuer.issuer, nodes.join(", "))
    };
    issuers.iter().map(place).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(node: &str, issuers: &[(&str, &str)], open: &[&str]) -> EdgeIssuers {
        EdgeIssuers {
            topology: "shop".to_owned(),
            node: node.to_owned(),
            issuers: issuers
                .iter()
                .map(|(alias, issuer)| Issuer {
                    alias: (*alias).to_owned(),
                    issuer: (*issuer).to_owned(),
                })
                .collect(),
            memberships_without_issuer: open.iter().map(|bucket| (*bucket).to_owned()).collect(),
        }
    }

    fn problems(edges: &[EdgeIssuers]) -> Vec<String> {
        let findings = check(edges).into_iter().filter(|finding| !finding.ok);
        findings.map(|finding| finding.found).collect()
    }

    #[test]
    fn membership_without_issuer_is_a_problem_if_edges_accept_different_issuers() {
        let (a, b) = ("https://a.example", "https://b.example");
        let edges = [
            edge("edge-1", &[("main", a)], &["customer/{sub}"]),
            edge("edge-2", &[("partner", b)], &["customer/{sub}"]),
        ];
        let found = problems(&edges);
        assert_eq!(found.len(), 1);
        let expected = "the memberships of `customer/{sub}` name no issuer, but the edges accept several: main = \
                        https://a.example on edge-1; partner = https://b.example on edge-2;";
        assert!(found[0].starts_with(expected), "{}", found[0]);
        let named = edges.clone().map(|edge| EdgeIssuers {
            memberships_without_issuer: Vec::new(),
            ..edge
        });
        assert_eq!(problems(&named), [""; 0]);
        assert_eq!(problems(&[edges[0].clone(), edges[0].clone()]), [""; 0]);
        let other = EdgeIssuers {
            topology: "other".to_owned(),
            ..edges[1].clone()
        };
        assert_eq!(
            problems(&[edges[0].clone(), other]),
            [""; 0],
            "topologies share no users"
        );
        assert!(check(&[]).is_empty(), "no edge");
    }

    #[test]
    fn alias_and_issuer_belong_together_on_all_edges() {
        let (a, b) = ("https://a.example", "https://b.example");
        let found = problems(&[edge("edge-1", &[("main", a)], &[]), edge("edge-2", &[("main", b)], &[])]);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("issuer `main` is a different one"), "{}", found[0]);
        let found = problems(&[
            edge("edge-1", &[("main", a)], &[]),
            edge("edge-2", &[("other", a)], &[]),
        ]);
        assert_eq!(found.len(), 1);
        assert!(
            found[0].starts_with("issuer https://a.example has different aliases"),
            "{}",
            found[0]
        );
    }
}
