//! Exclusive use of a data directory by one process, with and without `--fresh`.

use crate::support::{Dev, wait_for};
use event_log::embedded::{Config, EmbeddedLog};
use event_log::{Cleanup, TopicConfig, TopicSpec};
use serde_json::{Value, json};
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// A process that is killed on drop.
struct Started(Child);

impl Started {
    fn new(command: &mut Command) -> Started {
        Started(command.stderr(Stdio::piped()).spawn().expect("the binary starts"))
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().expect("poll the exit status")
    }

    /// Waits for the end; returns the exit code and standard error.
    fn end(mut self) -> (Option<i32>, String) {
        let status = wait_for("the process to end", LIMIT, || self.ended());
        let mut output = String::new();
        let mut stderr = self.0.stderr.take().expect("it is piped");
        stderr.read_to_string(&mut output).expect("it is text");
        (status.code(), output)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn post_customer(dev: &Dev, data: &Path, id: i64) {
    let token = std::fs::read_to_string(data.join("ingest.token")).unwrap();
    let change = json!({"table": "customers", "op": "put", "row": {"id": id, "name": "Ada"}});
    wait_for("a post to be stored", LIMIT, || {
        let sent = reqwest::blocking::Client::new()
            .post(format!("{}/v1/ingest/change.shop", dev.url("ingest")))
            .bearer_auth(token.trim())
            .json(&json!({ "changes": [change] }))
            .send()
            .unwrap();
        // The response is 503 until the source is running.
        assert!(!sent.status().is_client_error(), "{}", sent.text().unwrap());
        sent.status().is_success().then_some(())
    });
}

/// Names in a directory, sorted.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn second_dev_is_rejected_and_leaves_data_intact() {
    let parent = tempfile::tempdir().unwrap();
    // The error contains the resolved path.
    let data = parent.path().canonicalize().unwrap().join("data");
    let link = parent.path().join("link");
    std::fs::create_dir(&data).unwrap();
    std::os::unix::fs::symlink(&data, &link).unwrap();
    let mut dev = Dev::start(&data, &["--orders-per-s", "0"]);
    post_customer(&dev, &data, 1);
    let before = names(parent.path());
    let ways: [(&Path, &[&str]); 4] = [
        (&data, &[]),
        (&data, &["--fresh"]),
        (&link, &["--fresh"]),
        (Path::new("data/../link/."), &["--fresh"]),
    ];
    for (named, more) in ways {
        let mut second = Dev::command(named);
        let (code, output) = Started::new(second.args(more).current_dir(parent.path())).end();
        assert_eq!(code, Some(1), "{named:?} {more:?}: {output}");
        let holder = format!("is in use by process {}; stop it", dev.pid());
        let parts = [
            named.to_str().unwrap(),
            data.to_str().unwrap(),
            &holder,
            "another directory with --data DIR",
        ];
        for part in parts {
            assert!(
                output.contains(part),
                "{named:?} {more:?}: {part:?} is not in: {output}"
            );
        }
    }
    assert_eq!(names(parent.path()), before, "a directory was moved");
    post_customer(&dev, &data, 2);
    dev.kill();
    dev.restart();
    assert_eq!(dev.records("shop.change.shop").len(), 2);
}

#[test]
fn concurrent_fresh_starts_yield_one_new_directory() {
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let mut dev = Dev::start(&data, &["--orders-per-s", "0"]);
    post_customer(&dev, &data, 1);
    dev.kill();
    drop(dev);
    let fresh = || Started::new(Dev::command(&data).args(["--fresh", "--orders-per-s", "0"]));
    let mut both = vec![fresh(), fresh()];
    let first = wait_for("one process to end", LIMIT, || {
        both.iter_mut().position(|p| p.ended().is_some())
    });
    let (code, output) = both.swap_remove(first).end();
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains("is in use by"), "{output}");
    let mut winner = both.remove(0);
    wait_for("the other process to listen", LIMIT, || {
        assert!(winner.ended().is_none(), "both ended: {output}");
        let text = std::fs::read(data.join("dev.json")).ok()?;
        let running: Value = serde_json::from_slice(&text).ok()?;
        // Until the directory is renamed, the file is that of the killed process.
        (running["pid"] == winner.0.id()).then_some(())
    });
    let moved: Vec<String> = names(parent.path())
        .into_iter()
        .filter(|n| n.contains(".aside-"))
        .collect();
    assert_eq!(moved, ["data.aside-1"]);
    drop(winner);
    // The moved directory is intact.
    let old = Dev::start(&parent.path().join("data.aside-1"), &["--orders-per-s", "0"]);
    assert_eq!(old.records("shop.change.shop").len(), 1);
}

#[test]
fn directory_of_an_older_version_is_refused() {
    for name in ["view.log", "shop.sync-views.changelog.change.shop"] {
        let parent = tempfile::tempdir().unwrap();
        let data = parent.path().canonicalize().unwrap().join("data");
        let log = EmbeddedLog::open(Config::new(Some(data.join("log")), Arc::new(|| 0))).unwrap();
        let topic = TopicSpec {
            name: name.to_owned(),
            partitions: 1,
            replication: None,
            config: TopicConfig::new(Cleanup::Compact),
        };
        log.create_topics(&[topic]).unwrap();
        drop(log);
        let (code, output) = Started::new(&mut Dev::command(&data)).end();
        assert_eq!(code, Some(1), "{output}");
        let log = data.join("log");
        let topic = format!("has topic {name}");
        for part in [log.to_str().unwrap(), &topic, "trunkline dev --fresh", "--data DIR"] {
            assert!(output.contains(part), "{part:?} is not in: {output}");
        }
        drop(Dev::start(&data, &["--fresh", "--orders-per-s", "0"]));
        assert_eq!(names(parent.path()), ["data", "data.aside-1", "data.log"]);
    }
}
