//! Faults of the host: a full disk, a read-only disk, and two processes with one instance name. The disks are mounted
//! for the test. At the end of each case, every record must have been counted once.

use super::child::{ProcessConfig, process_config};
use super::harness::{on_both, until_cause, until_failure};
use super::{LIMIT, ProcessHarness};
use crate::support::{self, Disk, wait_for};

#[test]
fn full_disk_stops_process_until_space_is_freed() {
    on_both(|harness| {
        let disk = Disk::mount(48);
        let mut thread = harness.start_in(disk.path());
        harness.write(&harness.input, 0, &[("a", "")]);
        harness.settle(&mut thread);
        let keys: Vec<String> = (0..120).map(|key| format!("k{key:03}")).collect();
        let records: Vec<(&str, &str)> = keys.iter().map(|key| (key.as_str(), "state 500000")).collect();
        for few in records.chunks(10) {
            harness.write(&harness.input, 0, few);
        }
        let text = until_failure(&mut thread, "No space left on device");
        assert!(text.contains("state store failed"), "{text}");
        assert!(text.contains("fix the underlying I/O problem and restart"), "{text}");
        drop(thread);
        // A restart without free space fails again, and no record is dead-lettered.
        let mut thread = harness.start_in(disk.path());
        until_failure(&mut thread, "No space left on device");
        drop(thread);
        disk.grow(512);
        let mut thread = harness.start_in(disk.path());
        harness.settle(&mut thread);
        let want: Vec<String> = keys.iter().map(|key| format!("{key}=1")).collect();
        assert_eq!(harness.out(0), [&["a=1".to_owned()], want.as_slice()].concat());
        harness.write(&harness.input, 0, &[("a", ""), ("k000", ""), ("k119", "")]);
        harness.settle(&mut thread);
        assert_eq!(
            harness.out(0).get(121..),
            Some(&["a=2", "k000=2", "k119=2"].map(str::to_owned)[..])
        );
        thread.finish().expect("shut down");
    });
}

#[test]
fn read_only_directory_stops_task_until_writable() {
    on_both(|harness| {
        let disk = Disk::mount(64);
        harness.write(&harness.input, 0, &[("a", "")]);
        let mut thread = harness.start_in(disk.path());
        harness.settle(&mut thread);
        thread.finish().expect("shut down");
        disk.read_only(true);
        harness.write(&harness.input, 0, &[("a", "")]);
        let mut thread = harness.start_in(disk.path());
        let cause = until_cause(&mut thread, "task count/0: stopped");
        assert!(cause.contains("Read-only file system"), "{cause}");
        assert!(
            cause.contains(&disk.path().join(&harness.application).display().to_string()),
            "{cause}"
        );
        // The task retries without a restart.
        disk.read_only(false);
        harness.settle(&mut thread);
        assert_eq!(harness.out(0), ["a=1", "a=2"]);
        thread.finish().expect("shut down");
    });
}

#[cfg(feature = "external")]
#[test]
fn duplicate_instance_name_stops_first_process() {
    let (first, second) = (
        tempfile::tempdir().expect("a directory"),
        tempfile::tempdir().expect("a directory"),
    );
    let mut harness = ProcessHarness::new(process_config(support::kafka(), first.path().join("stores")));
    harness.write(60);
    let mut one = harness.config.spawn("");
    harness.check();
    let duplicate = ProcessConfig {
        dir: second.path().join("stores"),
        ..harness.config.clone()
    };
    let mut two = duplicate.spawn("");
    // The first process is fenced at its next commit, which needs input.
    wait_for("the first process to end", LIMIT, || {
        harness.write(3);
        (!one.is_alive()).then_some(())
    });
    assert!(!one.ended("the first process to end").success());
    let words = one.log_tail();
    assert!(words.contains("fenced: another process runs as"), "{words}");
    assert!(words.contains("give each process a unique instance name"), "{words}");
    harness.write(60);
    harness.check();
    assert!(two.is_alive(), "{}", two.log_tail());
}
