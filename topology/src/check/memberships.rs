//! Checks memberships and issuers.

use super::buckets::KnownBucket;
use super::context::Context;
use super::known_inputs::KnownInput;
use super::{buckets, known_inputs};
use crate::checked::Membership;
use crate::model::{self, At, Declared};
use crate::names;
use crate::problem::Problem;
use crate::template::Template;

/// Claims that describe the token, not its subject.
const OF_THE_TOKEN: [&str; 6] = ["iss", "aud", "exp", "nbf", "iat", "jti"];

pub(super) fn issuer_names(cx: &Context<'_>, declared: &[model::Issuer]) -> Vec<String> {
    cx.unique(declared.iter().map(|issuer| &issuer.name), "issuer");
    for issuer in declared {
        cx.name(&issuer.name, "issuer");
        cx.unique(issuer.claims.iter().flat_map(|claims| claims.iter()), "claim");
    }
    declared.iter().map(|issuer| issuer.name.value.clone()).collect()
}

pub(super) fn check_memberships(
    cx: &Context<'_>,
    declared: &Declared,
    buckets: &[KnownBucket],
    known: &[KnownInput],
) -> Vec<Membership> {
    let mut memberships: Vec<Membership> = Vec::with_capacity(declared.memberships.len());
    for (index, membership) in declared.memberships.iter().enumerate() {
        let same = |other: &&model::Membership| {
            other.bucket.value == membership.bucket.value
                && other.issuer.as_ref().map(|i| &i.value) == membership.issuer.as_ref().map(|i| &i.value)
                && other.from.as_ref().map(|f| &f.value) == membership.from.as_ref().map(|f| &f.value)
        };
        if let Some(first) = declared.memberships.iter().take(index).find(same) {
            let message = format!("membership of `{}` is declared twice", membership.bucket.value);
            let problem = Problem::warning(membership.bucket.span.clone(), message).label("declared again here");
            cx.add(
                problem
                    .also(first.bucket.span.clone(), "first declared here")
                    .help("remove one of them"),
            );
        }
        let Some(template) = cx.template(&membership.bucket) else {
            continue;
        };
        let bucket = buckets::find_bucket(cx, &membership.bucket, &template, buckets);
        if membership.from.is_some() || membership.principal.is_some() {
            reject_rows(cx, membership, &template, known);
            continue;
        }
        check_claims(cx, membership, &template, &declared.issuers);
        if let Some(bucket) = bucket {
            let issuer = membership.issuer.as_ref().map(|issuer| issuer.value.clone());
            memberships.push(Membership {
                bucket,
                template,
                issuer,
            });
        }
    }
    memberships
}

fn check_claims(cx: &Context<'_>, membership: &model::Membership, template: &Template, issuers: &[model::Issuer]) {
    if let Some(wanted) = &membership.issuer
        && issuers.iter().all(|issuer| issuer.name.value != wanted.value)
    {
        let names = issuers.iter().map(|issuer| issuer.name.as_str());
        cx.unknown(
            wanted,
            "issuer",
            names,
            &format!("declare the issuer: [[issuer]] name = \"{}\"", wanted.value),
        );
        return;
    }
    if membership.issuer.is_none() && issuers.len() > 1 {
        let message = format!(
            "the membership of `{}` names no issuer, but the topology has several",
            membership.bucket.value
        );
        let problem = Problem::error(membership.bucket.span.clone(), message);
        cx.add(problem.help(
            "add `issuer = \"…\"`, one membership for each issuer; they can use one subject for different users",
        ));
    }
    let giving: Vec<&model::Issuer> = issuers
        .iter()
        .filter(|issuer| {
            membership
                .issuer
                .as_ref()
                .is_none_or(|only| only.value == issuer.name.value)
        })
        .collect();
    // A claim can be reported as unknown only if all relevant issuers declare their claims.
    let all_known = !giving.is_empty() && giving.iter().all(|issuer| issuer.claims.is_some());
    let given: Vec<&str> = giving
        .iter()
        .flat_map(|i| i.claims.iter())
        .flat_map(|c| c.iter())
        .map(|c| c.as_str())
        .collect();
    for (claim, span) in template.params() {
        let place = cx.inside(&membership.bucket, span);
        let first = claim.split('.').next().unwrap_or(claim);
        if OF_THE_TOKEN.contains(&claim) {
            let message = format!("claim `{claim}` cannot select the bucket of a user, because it describes the token");
            cx.add(Problem::warning(place, message).help("use a claim that describes the user, such as `sub`"));
        } else if all_known && claim != "sub" && !given.contains(&claim) && !given.contains(&first) {
            let all: Vec<&str> = given.iter().copied().chain(["sub"]).collect();
            let problem = Problem::error(place, format!("no issuer declares the claim `{claim}`"));
            let help = names::known(claim, all, "");
            cx.add(problem.help(format!(
                "{help}; if the issuer provides it, add it to the issuer's `claims`"
            )));
        }
    }
}

/// Checks a membership from rows. It is then rejected, because memberships from rows are not supported.
fn reject_rows(cx: &Context<'_>, membership: &model::Membership, template: &Template, known: &[KnownInput]) {
    let Some(from) = &membership.from else {
        let span = membership
            .principal
            .as_ref()
            .map_or(membership.bucket.span.clone(), |p| p.span.clone());
        let problem = Problem::error(span, "`principal` is only valid together with `from`");
        cx.add(problem.help("add `from = \"<source>.<table>\"`, or remove `principal`"));
        return;
    };
    let principal = match &membership.principal {
        Some(principal) => Some(principal),
        None => {
            let problem = Problem::error(from.span.clone(), "a membership with `from` needs a `principal`");
            cx.add(
                problem.help("add `principal = \"{user_id}\"`, where `user_id` is the column that identifies the user"),
            );
            None
        }
    };
    if let Some(input) = known_inputs::find_input(cx, from, known).filter(|input| input.complete) {
        let column_exists = |name: &str| input.row.fields.iter().any(|field| field.name == name);
        let mut params: Vec<At<String>> = template
            .params()
            .map(|(name, span)| At {
                value: String::from(name),
                span: cx.inside(&membership.bucket, span),
            })
            .collect();
        params.extend(principal.and_then(|p| {
            let name = p.strip_prefix('{')?.strip_suffix('}')?;
            Some(At {
                value: String::from(name),
                span: p.span.clone(),
            })
        }));
        for param in params.iter().filter(|param| !column_exists(param)) {
            let names = input.row.fields.iter().map(|field| field.name.as_str());
            cx.unknown(
                param,
                &format!("column of `{}` named", from.value),
                names,
                "it has no columns",
            );
        }
    }
    let problem = Problem::error(from.span.clone(), "memberships from rows are not supported");
    cx.add(problem.help("use token claims: remove `from` and `principal`, and write `bucket = \"user:{sub}\"`"));
}
