//! Checks buckets and their scopes. No two declared buckets can produce the same bucket name.

use super::context::Context;
use crate::checked::{Bucket, Segment, resolve};
use crate::model::{self, At};
use crate::names;
use crate::problem::Problem;
use crate::template::{Part, Template};

/// First word that is reserved for buckets of a single device.
const RESERVED: &str = "device";

/// A declared bucket. Its declaration may contain errors.
pub(super) struct KnownBucket {
    pub(super) name: At<String>,
    pub(super) pattern: Option<Template>,
    pub(super) bucket: Option<Bucket>,
}

pub(super) fn check_buckets(cx: &Context<'_>, declared: &[model::Bucket]) -> Vec<KnownBucket> {
    let mut known: Vec<KnownBucket> = Vec::with_capacity(declared.len());
    for bucket in declared {
        let pattern = cx.template(&bucket.name);
        if let Some(pattern) = &pattern {
            check_pattern(cx, &bucket.name, pattern, &known);
        }
        let checked = pattern.as_ref().and_then(|pattern| check_bucket(cx, bucket, pattern));
        known.push(KnownBucket {
            name: bucket.name.clone(),
            pattern,
            bucket: checked,
        });
    }
    known
}

fn check_pattern(cx: &Context<'_>, name: &At<String>, pattern: &Template, before: &[KnownBucket]) {
    if pattern.kind() == RESERVED {
        let message = format!(
            "bucket `{}` begins with `{RESERVED}`, which is reserved for buckets of a single device",
            name.value
        );
        cx.add(
            Problem::error(name.span.clone(), message).help("rename the bucket so that it begins with another word"),
        );
    }
    let params: Vec<(&str, _)> = pattern.params().collect();
    for (at, (param, span)) in params.iter().enumerate() {
        if params.iter().take(at).any(|(other, _)| other == param) {
            let message = format!("bucket `{}` uses the parameter `{param}` twice", name.value);
            cx.add(Problem::error(cx.inside(name, span), message).help("give each parameter a different name"));
        }
    }
    let overlaps = |other: &&KnownBucket| other.pattern.as_ref().is_some_and(|other| other.overlaps(pattern));
    if let Some(other) = before.iter().find(overlaps) {
        let message = format!(
            "buckets `{}` and `{}` can produce the same bucket name",
            other.name.value, name.value
        );
        let problem = Problem::error(name.span.clone(), message).label("conflicts with the bucket above");
        cx.add(
            problem
                .also(other.name.span.clone(), "declared here")
                .help("begin one of them with a different word"),
        );
    }
}

fn check_bucket(cx: &Context<'_>, declared: &model::Bucket, pattern: &Template) -> Option<Bucket> {
    // A parameter of the scope refers to the part of the bucket name with the same index.
    let part_of = |wanted: &str| {
        pattern
            .parts()
            .iter()
            .position(|part| matches!(part, Part::Param(name, _) if name == wanted))
    };
    let Some(scope_text) = &declared.scope else {
        let scope = pattern.parts().iter().enumerate().map(|(at, part)| match part {
            Part::Word(word) => Segment::Literal(word.clone()),
            Part::Param(..) => Segment::Param(at),
        });
        return Some(Bucket {
            pattern: pattern.clone(),
            scope: scope.collect(),
        });
    };
    let scope = cx.template(scope_text)?;
    let mut good = true;
    for (param, span) in scope.params() {
        if part_of(param).is_none() {
            let message = format!(
                "the scope of bucket `{}` uses `{param}`, which is not a parameter of the bucket",
                declared.name.value
            );
            let own = pattern.params().map(|(name, _)| name);
            let none = "the bucket has no parameters, so its scope must be a constant";
            let help = format!(
                "{}; a scope may only use the parameters of its bucket",
                names::known(param, own.collect::<Vec<_>>(), none)
            );
            cx.add(Problem::error(cx.inside(scope_text, span), message).help(help));
            good = false;
        }
    }
    let scope = resolve(&scope, part_of)?;
    good.then(|| Bucket {
        pattern: pattern.clone(),
        scope,
    })
}

/// The declared bucket that a template matches. Reports an error if there is none.
pub(super) fn find_bucket(
    cx: &Context<'_>,
    text: &At<String>,
    template: &Template,
    buckets: &[KnownBucket],
) -> Option<usize> {
    let shaped = |known: &KnownBucket| {
        known
            .pattern
            .as_ref()
            .is_some_and(|pattern| pattern.same_shape(template))
    };
    if let Some(at) = buckets.iter().position(shaped) {
        return Some(at);
    }
    let message = format!("no declared bucket matches `{}`", text.value);
    let same_kind = buckets
        .iter()
        .find(|known| known.pattern.as_ref().is_some_and(|p| p.kind() == template.kind()));
    let help = match same_kind {
        Some(known) => format!(
            "the declared bucket is `{}`: use the same words, with a parameter in the same places",
            known.name.value
        ),
        None => {
            let kinds: Vec<&str> = buckets
                .iter()
                .filter_map(|known| known.pattern.as_ref())
                .map(Template::kind)
                .collect();
            match names::nearest(template.kind(), kinds) {
                Some(meant) => {
                    format!("did you mean `{meant}:…`? Otherwise declare the bucket: [[bucket]] name = \"{template}\"")
                }
                None => format!("declare the bucket: [[bucket]] name = \"{template}\""),
            }
        }
    };
    cx.add(Problem::error(text.span.clone(), message).help(help));
    None
}

/// Warns about buckets without views and buckets without memberships.
pub(super) fn warn_unused_buckets(
    cx: &Context<'_>,
    buckets: &[KnownBucket],
    views: &[model::View],
    memberships: &[model::Membership],
) {
    let shaped = |text: &At<String>, pattern: &Template| {
        Template::parse(text).is_ok_and(|template| template.same_shape(pattern))
    };
    for known in buckets {
        let Some(pattern) = &known.pattern else { continue };
        let filled = views.iter().any(|view| shaped(&view.bucket, pattern));
        let open = memberships.iter().any(|membership| shaped(&membership.bucket, pattern));
        let name = &known.name.value;
        if !filled {
            let problem = Problem::warning(
                known.name.span.clone(),
                format!("no view writes rows to bucket `{name}`"),
            );
            cx.add(problem.help(format!("add a view with `bucket = \"{name}\"`, or remove the bucket")));
        } else if !open {
            let problem = Problem::warning(
                known.name.span.clone(),
                format!("no membership grants access to bucket `{name}`, so no device can read it"),
            );
            let claim = pattern
                .params()
                .next()
                .map_or("", |_| ", with claims of the token as its parameters");
            cx.add(problem.help(format!("add a [[membership]] with `bucket = \"{name}\"`{claim}")));
        }
    }
}
