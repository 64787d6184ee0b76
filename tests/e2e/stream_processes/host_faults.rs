//! The machine under the runtime: a disk that is full or may not be written, and a twin of the same name.
//!
//! Guarantees: the disk is a real one, mounted for the test; each case ends with all records counted once. Never: a store
//! that only says that it is full.

use super::child::{Part, part};
use super::harness::{on_both, until_cause, until_trouble};
use super::{LIMIT, Line};
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
        let text = until_trouble(&mut thread, "No space left on device");
        assert!(text.contains("state store failed"), "{text}");
        assert!(text.contains("fix the underlying I/O problem and restart"), "{text}");
        drop(thread);
        // As long as there is no room it is refused again, and nothing is given up for it.
        let mut thread = harness.start_in(disk.path());
        until_trouble(&mut thread, "No space left on device");
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
        thread.finish().expect("a clean end");
    });
}

#[test]
fn read_only_directory_stops_task_until_writable() {
    on_both(|harness| {
        let disk = Disk::mount(64);
        harness.write(&harness.input, 0, &[("a", "")]);
        let mut thread = harness.start_in(disk.path());
        harness.settle(&mut thread);
        thread.finish().expect("a clean end");
        disk.read_only(true);
        harness.write(&harness.input, 0, &[("a", "")]);
        let mut thread = harness.start_in(disk.path());
        let cause = until_cause(&mut thread, "task count/0: stopped");
        assert!(cause.contains("Read-only file system"), "{cause}");
        assert!(
            cause.contains(&disk.path().join(&harness.application).display().to_string()),
            "{cause}"
        );
        // It looks again by itself.
        disk.read_only(false);
        harness.settle(&mut thread);
        assert_eq!(harness.out(0), ["a=1", "a=2"]);
        thread.finish().expect("a clean end");
    });
}

#[cfg(feature = "external")]
#[test]
fn duplicate_instance_name_stops_first_process() {
    let (first, second) = (
        tempfile::tempdir().expect("a directory"),
        tempfile::tempdir().expect("a directory"),
    );
    let mut line = Line::new(part(support::kafka(), first.path().join("stores")));
    line.write(60);
    let mut one = line.part.spawn("");
    line.check();
    let twin = Part {
        dir: second.path().join("stores"),
        ..line.part.clone()
    };
    let mut two = twin.spawn("");
    // With work in hand the first one meets the second at its next commit.
    wait_for("the first process to end", LIMIT, || {
        line.write(3);
        (!one.is_alive()).then_some(())
    });
    assert!(!one.ended("the first process ends").success());
    let words = one.last_words();
    assert!(words.contains("fenced: another process runs as"), "{words}");
    assert!(words.contains("give each process a unique instance name"), "{words}");
    line.write(60);
    line.check();
    assert!(two.is_alive(), "{}", two.last_words());
}
