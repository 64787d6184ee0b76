//! Restarts after topics, state or declarations have changed, and records that cannot be processed. The application
//! reports the cause and the fix, and never continues with less state than it had. Each case applies the fix and checks
//! the output.

use super::harness::{Harness, on_both, until_cause};
use crate::support;
use event_log::{OffsetSpec, TimestampPolicy, TopicConfig, TopicPartition, TopicSpec};
use std::time::Duration;
use streams::offsets;

#[test]
fn mismatched_partition_counts_are_rejected() {
    on_both(|harness| {
        let three = support::unique("three");
        harness.topic(&three, 3, &[]);
        let text = harness.start_error(vec![harness.sub("count", &[&harness.input, &three], "counts")]);
        assert!(
            text.contains(&format!("{} has 2 and {three} has 3", harness.input)),
            "{text}"
        );
        assert!(text.contains("repartition"), "{text}");
        // A dead letter is written to the partition with the same number as the record's partition.
        let dead_letters = event_log::dead_letter_topic(&three);
        harness.topic(&dead_letters, 2, &[]);
        let text = harness.start_error(vec![harness.sub("count", &[&three], "other")]);
        assert!(
            text.contains(&format!("{dead_letters} has 2 partitions but its input has 3")),
            "{text}"
        );
        assert!(text.contains("add the missing partitions"), "{text}");
        // The same as if partitions had been added to the input: keys, and therefore their state, belong to other
        // partitions.
        compacted(harness, &harness.changelog("counts", 0).topic, 1);
        let text = harness.start_error(vec![harness.sub("count", &[&harness.input], "counts")]);
        assert!(text.contains("it has 1 partitions but the inputs have 2"), "{text}");
        assert!(text.contains("rename the store"), "{text}");
    });
}

fn compacted(harness: &Harness, name: &str, partitions: i32) {
    let mut config = TopicConfig::new(event_log::Cleanup::Compact);
    config.timestamps = TimestampPolicy::LogAppendTime;
    let spec = TopicSpec {
        name: name.to_owned(),
        partitions,
        replication: None,
        config,
    };
    assert_eq!(harness.log.create_topics(&[spec]).expect("create a topic"), [true]);
}

#[test]
fn renamed_sub_topology_keeps_its_state() {
    on_both(|harness| {
        harness.write(&harness.input, 0, &[("a", ""), ("a", "")]);
        let mut thread = harness.start("counts");
        harness.settle(&mut thread);
        thread.finish().expect("shut down");
        harness.write(&harness.input, 0, &[("a", "")]);
        let mut thread = harness
            .try_start(vec![harness.sub("renamed", &[&harness.input], "counts")])
            .expect("start the thread");
        assert_eq!(thread.orphaned_state(), Vec::<String>::new());
        harness.settle(&mut thread);
        assert_eq!(harness.out(0), ["a=1", "a=2", "a=3"]);
        thread.finish().expect("shut down");
    });
}

/// The thread rejoins as the same static member within its session timeout.
#[test]
fn added_input_is_read_after_restart() {
    on_both(|harness| {
        harness.write(&harness.input, 0, &[("a", "")]);
        let mut thread = harness.start("counts");
        harness.settle(&mut thread);
        thread.finish().expect("shut down");
        let added = support::unique("added");
        harness.topic(&added, 2, &[]);
        harness.write(&added, 0, &[("b", "")]);
        let both = || {
            let more = harness.sub("more", &[&added], "more");
            vec![harness.sub("count", &[&harness.input], "counts"), more]
        };
        let mut thread = harness.try_start(both()).expect("start the thread");
        harness.settle(&mut thread);
        assert_eq!(harness.out(0), ["a=1", "b=1"]);
        support::wait_for("readiness", Duration::from_secs(30), || {
            thread.turn().expect("process");
            thread.causes().is_empty().then_some(())
        });
        thread.finish().expect("shut down");
    });
}

#[test]
fn renamed_store_stops_tasks_until_resolved() {
    on_both(|harness| {
        harness.write(&harness.input, 0, &[("a", ""), ("a", "")]);
        harness.write(&harness.input, 1, &[("b", "")]);
        let mut thread = harness.start("counts");
        harness.settle(&mut thread);
        thread.finish().expect("shut down");
        let mut thread = harness.start("renamed");
        let orphaned = thread.orphaned_state().join("; ");
        assert!(orphaned.contains(&*harness.changelog("counts", 0).topic), "{orphaned}");
        assert!(
            orphaned.contains(
                &harness
                    .dir
                    .path()
                    .join(&harness.application)
                    .join("counts")
                    .display()
                    .to_string()
            )
        );
        let cause = until_cause(&mut thread, "task count/0: stopped");
        assert!(cause.contains("contains no state"), "{cause}");
        assert!(cause.contains("declare its former name"), "{cause}");
        assert!(
            cause.contains(&format!("trunkline offsets accept {} renamed/0", harness.application)),
            "{cause}"
        );
        assert!(
            cause.contains(&format!(
                "trunkline offsets reset --to-earliest {} renamed/0",
                harness.application
            )),
            "{cause}"
        );
        until_cause(&mut thread, "task count/1: stopped");
        thread.finish().expect("shut down");
        assert_eq!(harness.out(0), ["a=1", "a=2"], "a stopped task wrote output");
        // Operator commands: task 0 processes everything again, task 1 continues without state.
        harness.wait_group_empty();
        let (zero, one) = (harness.changelog("renamed", 0), harness.changelog("renamed", 1));
        let at = |partition| TopicPartition::new(harness.input.as_str(), partition);
        offsets::reset_to_earliest(&*harness.log, &harness.application, &zero, &[at(0)]).expect("reset");
        offsets::accept(&*harness.log, &harness.application, &one, &[at(1)]).expect("accept");
        harness.write(&harness.input, 1, &[("b", "")]);
        let mut thread = harness.start("renamed");
        harness.settle(&mut thread);
        assert_eq!(harness.out(0), ["a=1", "a=2", "a=1", "a=2"]);
        assert_eq!(harness.out(1), ["b=1", "b=1"]);
        thread.finish().expect("shut down");
        // The store with the former name does not contain the records that only the renamed store has processed.
        let mut thread = harness.start("counts");
        let cause = until_cause(&mut thread, "task count/1: stopped");
        assert!(cause.contains("up to 1, but the committed offset is 2"), "{cause}");
    });
}

#[test]
fn replaced_input_stops_tasks_until_accepted() {
    on_both(|harness| {
        let more = support::unique("more");
        harness.topic(&more, 2, &[]);
        harness.write(&harness.input, 0, &[("a", ""), ("a", "")]);
        harness.write(&more, 0, &[("b", "")]);
        let declared = |first: &str, second: &str| {
            vec![
                harness.sub("one", &[first], "ones"),
                harness.sub("two", &[second], "twos"),
            ]
        };
        let mut thread = harness
            .try_start(declared(&harness.input, &more))
            .expect("start the thread");
        harness.settle(&mut thread);
        thread.finish().expect("shut down");
        let before = harness.out(0).len();
        let mut thread = harness
            .try_start(declared(&more, &harness.input))
            .expect("start the thread");
        let cause = until_cause(&mut thread, "task one/0: stopped");
        assert!(cause.contains(&format!("built from {}/0", harness.input)), "{cause}");
        assert!(cause.contains(&format!("reads {more}/0")), "{cause}");
        let way = format!("trunkline offsets accept {} ones/0 --input {more}", harness.application);
        assert!(cause.contains(&way), "{cause}");
        until_cause(&mut thread, "task two/1: stopped");
        thread.finish().expect("shut down");
        // With the original inputs, the tasks continue.
        harness.write(&harness.input, 0, &[("a", "")]);
        let mut thread = harness
            .try_start(declared(&harness.input, &more))
            .expect("start the thread");
        harness.settle(&mut thread);
        assert_eq!(harness.out(0).get(before..), Some(&["a=3".to_owned()][..]));
        thread.finish().expect("shut down");
        // After the exchange of the inputs is accepted, the state continues with the other topic.
        for (store, input) in [("ones", &more), ("twos", &harness.input)] {
            for partition in 0..2 {
                let at = TopicPartition::new(input.as_str(), partition);
                let changelog = harness.changelog(store, partition);
                offsets::accept(&*harness.log, &harness.application, &changelog, &[at]).expect("accept");
            }
        }
        harness.write(&more, 0, &[("a", "")]);
        let mut thread = harness
            .try_start(declared(&more, &harness.input))
            .expect("start the thread");
        harness.settle(&mut thread);
        assert_eq!(harness.out(0).last().map(String::as_str), Some("a=4"));
        thread.finish().expect("shut down");
    });
}

#[test]
fn removed_input_leaves_state_unchanged() {
    on_both(|harness| {
        let more = support::unique("more");
        harness.topic(&more, 2, &[]);
        harness.write(&more, 0, &[("a", "")]);
        let both = || vec![harness.sub("count", &[&harness.input, &more], "counts")];
        let mut thread = harness.try_start(both()).expect("start the thread");
        harness.settle(&mut thread);
        thread.finish().expect("shut down");
        harness.write(&harness.input, 0, &[("a", "")]);
        let mut thread = harness.start("counts");
        harness.settle(&mut thread);
        thread.finish().expect("shut down");
        // The input is added again and continues at its committed offset.
        harness.write(&more, 0, &[("a", "")]);
        let mut thread = harness.try_start(both()).expect("start the thread");
        harness.settle(&mut thread);
        assert_eq!(harness.out(0), ["a=1", "a=2", "a=3"]);
        thread.finish().expect("shut down");
    });
}

/// Replaces the input by a topic of the same name with more records than were processed.
fn recreate_input(harness: &Harness) {
    harness.log.delete_topic(&harness.input).expect("delete the input");
    harness.topic(&harness.input, 2, &[]);
    let records = [("b", ""), ("b", ""), ("c", ""), ("c", ""), ("c", "")];
    harness.write(&harness.input, 0, &records);
}

const RECREATED: [&str; 8] = ["a=1", "a=2", "a=3", "b=1", "b=2", "c=1", "c=2", "c=3"];

#[test]
fn input_recreated_between_runs_is_read_from_its_first_record() {
    on_both(|harness| {
        harness.write(&harness.input, 0, &[("a", ""), ("a", ""), ("a", "")]);
        let mut thread = harness.start("counts");
        harness.settle(&mut thread);
        thread.finish().expect("shut down");
        recreate_input(harness);
        let mut thread = harness.start("counts");
        harness.settle(&mut thread);
        assert_eq!(harness.out(0), RECREATED);
        thread.finish().expect("shut down");
    });
}

#[test]
fn input_recreated_during_a_run_stops_its_tasks_until_a_restart() {
    on_both(|harness| {
        harness.write(&harness.input, 0, &[("a", ""), ("a", ""), ("a", "")]);
        let mut thread = harness.start("counts");
        harness.settle(&mut thread);
        recreate_input(harness);
        thread.check_inputs();
        let cause = until_cause(&mut thread, "task count/0: stopped");
        let text = format!(
            "topic {} was deleted and created again; restart the process",
            harness.input
        );
        assert!(cause.contains(&text), "{cause}");
        assert_eq!(harness.out(0).len(), 3, "the new topic was read at the old position");
        thread.finish().expect("shut down");
        let mut thread = harness.start("counts");
        harness.settle(&mut thread);
        assert_eq!(harness.out(0), RECREATED);
        thread.finish().expect("shut down");
    });
}

#[test]
fn deleted_changelog_stops_tasks_and_keeps_store() {
    on_both(|harness| {
        harness.write(&harness.input, 0, &[("a", ""), ("a", "")]);
        let mut thread = harness.start("counts");
        harness.settle(&mut thread);
        thread.finish().expect("shut down");
        harness
            .log
            .delete_topic(&harness.changelog("counts", 0).topic)
            .expect("delete the changelog");
        let mut thread = harness.start("counts");
        let cause = until_cause(&mut thread, "task count/0: stopped");
        assert!(cause.contains("contains no state"), "{cause}");
        assert!(cause.contains("trunkline offsets reset --to-earliest"), "{cause}");
        thread.finish().expect("shut down");
        let stores = std::fs::read_dir(harness.dir.path().join(&harness.application).join("counts"));
        let quarantined = stores.expect("stores").filter(|entry| {
            entry
                .as_ref()
                .is_ok_and(|entry| entry.file_name().to_string_lossy().contains(".aside-"))
        });
        assert_eq!(quarantined.count(), 2, "both stores are quarantined");
        harness.wait_group_empty();
        let reset = |partition| {
            let input = TopicPartition::new(harness.input.as_str(), partition);
            let changelog = harness.changelog("counts", partition);
            offsets::reset_to_earliest(&*harness.log, &harness.application, &changelog, &[input])
        };
        reset(0).expect("reset");
        reset(1).expect("reset");
        let mut thread = harness.start("counts");
        harness.settle(&mut thread);
        assert_eq!(harness.out(0), ["a=1", "a=2", "a=1", "a=2"]);
        thread.finish().expect("shut down");
        // A reset of a store that has state is rejected.
        let text = service::chain(&reset(0).expect_err("it has state"));
        assert!(text.contains("contains state"), "{text}");
    });
}

#[cfg(feature = "external")]
#[test]
fn truncated_changelog_is_not_restored() {
    let harness = Harness::kafka();
    let servers = harness.kafka.clone().expect("it is Kafka");
    harness.write(&harness.input, 0, &[("a", ""), ("b", "")]);
    let mut thread = harness.start("counts");
    harness.settle(&mut thread);
    harness.write(&harness.input, 0, &[("b", "")]);
    harness.settle(&mut thread);
    thread.finish().expect("shut down");
    let changelog = harness.changelog("counts", 0);
    let end = harness.log.offset(&changelog, OffsetSpec::LogEnd).expect("the end");
    // Kafka rejects DeleteRecords for a topic with cleanup.policy=compact.
    let policy = |policy: &str| {
        let setting = ("cleanup.policy".to_owned(), policy.to_owned());
        harness
            .log
            .alter_topic(&changelog.topic, &[setting])
            .expect("alter the topic");
    };
    policy("compact,delete");
    support::delete_records(&servers, &changelog.topic, changelog.partition, end - 3);
    policy("compact");
    assert_eq!(
        harness.log.offset(&changelog, OffsetSpec::Earliest).expect("the start"),
        end - 3
    );
    // The store is complete and the task continues.
    harness.write(&harness.input, 0, &[("a", "")]);
    let mut thread = harness.start("counts");
    harness.settle(&mut thread);
    assert_eq!(harness.out(0), ["a=1", "b=1", "b=2", "a=2"]);
    thread.finish().expect("shut down");
    // Without the store, a part of the state would be missing.
    let store = harness.dir.path().join(&harness.application).join("counts/0");
    let kept = harness.dir.path().join("kept");
    std::fs::rename(&store, &kept).expect("move the store");
    harness.write(&harness.input, 0, &[("a", "")]);
    let mut thread = harness.start("counts");
    let cause = until_cause(&mut thread, "task count/0: stopped");
    assert!(cause.contains(&format!("starts at offset {}", end - 3)), "{cause}");
    assert!(cause.contains("put back the store's directory"), "{cause}");
    assert!(cause.contains("rename the store"), "{cause}");
    drop(thread);
    // The fix: restore the directory of the store.
    std::fs::remove_dir_all(&store).expect("remove the empty store");
    std::fs::rename(&kept, &store).expect("move the store back");
    let mut thread = harness.start("counts");
    harness.settle(&mut thread);
    assert_eq!(harness.out(0), ["a=1", "b=1", "b=2", "a=2", "a=3"]);
    thread.finish().expect("shut down");
}

#[cfg(feature = "external")]
#[test]
fn expired_offsets_are_recovered_from_state() {
    let harness = Harness::kafka();
    let servers = harness.kafka.clone().expect("it is Kafka");
    harness.write(&harness.input, 0, &[("a", ""), ("a", "")]);
    let mut thread = harness.start("counts");
    harness.settle(&mut thread);
    thread.finish().expect("shut down");
    harness.wait_group_empty();
    support::delete_group(&servers, &harness.application);
    let at = TopicPartition::new(harness.input.as_str(), 0);
    let committed = harness.log.committed(&harness.application, std::slice::from_ref(&at));
    assert_eq!(committed.expect("the offsets").get(&at), Some(&None));
    harness.write(&harness.input, 0, &[("a", "")]);
    let mut thread = harness.start("counts");
    harness.settle(&mut thread);
    assert_eq!(harness.out(0), ["a=1", "a=2", "a=3"]);
    // The offsets are committed immediately, including those of partitions without input.
    let all = [at, TopicPartition::new(harness.input.as_str(), 1)];
    let committed = harness.log.committed(&harness.application, &all).expect("the offsets");
    assert_eq!(committed.values().copied().collect::<Vec<_>>(), [Some(3), Some(0)]);
    thread.finish().expect("shut down");
}

#[test]
fn record_with_oversized_output_is_dead_lettered() {
    on_both(|harness| {
        // Larger than max.message.bytes of the changelog and of the output.
        let (state, out) = ("state 1100000", "out 1100000");
        harness.write(&harness.input, 0, &[("a", ""), ("b", state), ("c", out), ("a", "")]);
        let mut thread = harness.start("counts");
        harness.settle(&mut thread);
        assert_eq!(harness.out(0), ["a=1", "a=2"]);
        let dead_letters = harness.read(&event_log::dead_letter_topic(&harness.input), 0);
        assert_eq!(dead_letters, [format!("b={state}"), format!("c={out}")]);
        thread.finish().expect("shut down");
        // A restored store contains nothing of the dead-lettered records.
        std::fs::remove_dir_all(harness.dir.path().join(&harness.application)).expect("lose the stores");
        harness.write(&harness.input, 0, &[("b", ""), ("c", "")]);
        let mut thread = harness.start("counts");
        harness.settle(&mut thread);
        assert_eq!(harness.out(0), ["a=1", "a=2", "b=1", "c=1"]);
        thread.finish().expect("shut down");
    });
}

#[cfg(feature = "external")]
#[test]
fn oversized_dead_letter_is_written_without_body() {
    let harness = Harness::kafka();
    harness.topic(
        &event_log::dead_letter_topic(&harness.input),
        2,
        &[("max.message.bytes", "2000")],
    );
    let long = "k".repeat(3000);
    harness.write(&harness.input, 0, &[("a", ""), (&long, "out 1100000"), ("a", "")]);
    let mut thread = harness.start("counts");
    harness.settle(&mut thread);
    assert_eq!(harness.out(0), ["a=1", "a=2"]);
    assert_eq!(
        harness.read(&event_log::dead_letter_topic(&harness.input), 0),
        ["null=null"]
    );
    thread.finish().expect("shut down");
}

#[test]
fn record_with_invalid_state_key_is_dead_lettered() {
    on_both(|harness| {
        let long = "k".repeat(65_536);
        harness.write(&harness.input, 0, &[("a", ""), (&long, ""), ("a", "")]);
        let mut thread = harness.start("counts");
        harness.settle(&mut thread);
        assert_eq!(harness.out(0), ["a=1", "a=2"]);
        let dead_letters = harness.read(&event_log::dead_letter_topic(&harness.input), 0);
        assert_eq!(dead_letters, [format!("{long}=")]);
        thread.finish().expect("shut down");
        // The process restarts, also after its stores were deleted.
        std::fs::remove_dir_all(harness.dir.path().join(&harness.application)).expect("lose the stores");
        harness.write(&harness.input, 0, &[("a", "")]);
        let mut thread = harness.start("counts");
        harness.settle(&mut thread);
        assert_eq!(harness.out(0), ["a=1", "a=2", "a=3"]);
        thread.finish().expect("shut down");
    });
}

#[test]
fn missing_output_topic_stops_task_until_created() {
    on_both(|harness| {
        harness.log.delete_topic(&harness.output).expect("delete the output");
        harness.write(&harness.input, 0, &[("a", "")]);
        let mut thread = harness.start("counts");
        let cause = until_cause(&mut thread, "task count/0: stopped");
        let fix = format!("topic {} does not exist; create it", harness.output);
        assert!(cause.contains(&fix), "{cause}");
        harness.topic(&harness.output, 2, &[]);
        harness.settle(&mut thread);
        assert_eq!(harness.out(0), ["a=1"]);
        thread.finish().expect("shut down");
    });
}
