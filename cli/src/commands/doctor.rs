//! `trunkline doctor`: looks for what is wrong, and says the command that mends it.

use crate::admin_api::{Ask, Performer, Said};
use crate::args::{self, Output};
use crate::{Failed, backends, print};
use anyhow::Result;
use serde::Serialize;

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    ok: bool,
    found: String,
    mend: String,
}

fn fine(check: &'static str, found: impl Into<String>) -> Finding {
    Finding {
        check,
        ok: true,
        found: found.into(),
        mend: String::new(),
    }
}

fn bad(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding {
        check,
        ok: false,
        found: found.into(),
        mend: mend.into(),
    }
}

/// Looks at the log, the registry, the topology and the database, as far as they are named.
pub fn run(output: Output, doctor: &args::Doctor) -> Result<()> {
    let mut findings = Vec::new();
    if let Some(file) = &doctor.topology {
        findings.push(match topology::load(file) {
            Ok(outcome) if outcome.report.errors() == 0 => fine("topology", format!("{} is right", file.display())),
            Ok(outcome) => bad(
                "topology",
                format!("{} has {} errors", file.display(), outcome.report.errors()),
                format!("trunkline topology check {}", file.display()),
            ),
            Err(error) => bad("topology", service::chain(&error), "name the file with --topology"),
        });
    }
    match backends::performer(&doctor.target) {
        Ok(performer) => look_at_log(&performer, &mut findings),
        Err(error) => findings.push(bad(
            "log",
            format!("{error:#}"),
            "start it, or name it with --kafka or --data",
        )),
    }
    if let Some(url) = &doctor.postgres {
        findings.extend(look_at_postgres(url));
    }
    let healthy = findings.iter().all(|f| f.ok);
    print::list(output, &findings, &["", "check", "found", "mend it with"], |f| {
        vec![
            if f.ok { "ok" } else { "!!" }.into(),
            f.check.into(),
            f.found.clone(),
            f.mend.clone(),
        ]
    })?;
    if healthy { Ok(()) } else { Err(Failed.into()) }
}

fn look_at_log(performer: &Performer, findings: &mut Vec<Finding>) {
    let mut names = Vec::new();
    let asked = performer.ask(Ask::Topics, &mut |said| {
        if let Said::Item(topic) = said {
            names.push(
                topic
                    .get("name")
                    .and_then(|n| n.as_str())
                    .unwrap_or_default()
                    .to_owned(),
            );
        }
        Ok(true)
    });
    match asked {
        Ok(()) => findings.push(fine("log", format!("reached; {} topics", names.len()))),
        Err(error) => {
            findings.push(bad("log", format!("{error:#}"), "check that it runs, and its address"));
            return;
        }
    }
    findings.push(if names.iter().any(|n| n == topology::VIEW_LOG) {
        fine("view.log", "exists")
    } else {
        bad(
            "view.log",
            "does not exist yet",
            "start a node: it creates the topology's topics",
        )
    });
    for dlq in names.iter().filter(|n| n.ends_with(".dlq")) {
        let mut waiting = 0;
        let counted = performer.ask(Ask::Topic(dlq.clone()), &mut |said| {
            if let Said::Item(topic) = said {
                waiting = topic
                    .get("offsets")
                    .and_then(serde_json::Value::as_i64)
                    .unwrap_or_default();
            }
            Ok(true)
        });
        if counted.is_ok() && waiting > 0 {
            let show = format!("trunkline topics tail {dlq} --from-start");
            findings.push(bad("dead letters", format!("{dlq} holds records"), show));
        }
    }
    let mut behind = Vec::new();
    let asked = performer.ask(Ask::Lag(None), &mut |said| {
        if let Said::Item(lag) = said
            && lag
                .get("lag_ms")
                .and_then(serde_json::Value::as_i64)
                .is_some_and(|ms| ms > 60_000)
        {
            let field = |name: &str| lag.get(name).map(ToString::to_string).unwrap_or_default();
            behind.push(format!("{}/{}", field("topic"), field("partition")));
        }
        Ok(true)
    });
    findings.push(match asked {
        Ok(()) if behind.is_empty() => fine("lag", "no group is more than a minute behind"),
        Ok(()) => bad(
            "lag",
            format!("more than a minute behind: {}", behind.join(", ")),
            "trunkline lag",
        ),
        Err(error) => bad("lag", format!("{error:#}"), "trunkline lag"),
    });
}

fn look_at_postgres(url: &str) -> Vec<Finding> {
    match connectors::discover::settings(url) {
        Ok(settings) => settings
            .into_iter()
            .map(|s| {
                if s.ok {
                    fine("postgres", s.found)
                } else {
                    bad("postgres", s.found, s.fix)
                }
            })
            .collect(),
        Err(error) => vec![bad(
            "postgres",
            service::chain(&error),
            "check the URL, and that the database runs",
        )],
    }
}
