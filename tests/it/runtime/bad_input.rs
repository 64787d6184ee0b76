//! What an application meets when it starts again and topics, state or declarations are not as they were: it says what
//! is wrong and what to do, and never goes on with less state than it had.
//!
//! Guarantees: each case ends with its way out taken, and with the right output. Never: an ending that only a look at the
//! log shows.

use super::bench::{Bench, on_both, until_cause};
use crate::world;
use event_log::{OffsetSpec, TimestampPolicy, TopicConfig, TopicPartition, TopicSpec};
use std::time::Duration;
use streams::offsets;

#[test]
fn partition_counts_that_do_not_fit_are_refused_with_both_numbers_and_the_fix() {
    on_both(|bench| {
        let three = world::unique("three");
        bench.topic(&three, 3, &[]);
        let text = bench.refusal(vec![bench.sub("count", &[&bench.input, &three], "counts")]);
        assert!(
            text.contains(&format!("{} has 2, {three} has 3", bench.input)),
            "{text}"
        );
        assert!(text.contains("repartition"), "{text}");
        // A dead letter keeps its record's partition.
        let letters = streams::dead_letter_topic(&three);
        bench.topic(&letters, 2, &[]);
        let text = bench.refusal(vec![bench.sub("count", &[&three], "other")]);
        assert!(
            text.contains(&format!("{letters} has 2 partitions and its topic 3")),
            "{text}"
        );
        assert!(text.contains("add the missing ones"), "{text}");
        // As after partitions were added to the input: the keys are in other partitions now, and so would be the state.
        compacted(bench, &bench.changelog("counts", 0).topic, 1);
        let text = bench.refusal(vec![bench.sub("count", &[&bench.input], "counts")]);
        assert!(text.contains("it has 1 partitions and the inputs have 2"), "{text}");
        assert!(text.contains("give the store another name"), "{text}");
    });
}

fn compacted(bench: &Bench, name: &str, partitions: i32) {
    let mut config = TopicConfig::new(event_log::Cleanup::Compact);
    config.timestamps = TimestampPolicy::LogAppendTime;
    let spec = TopicSpec {
        name: name.to_owned(),
        partitions,
        replication: None,
        config,
    };
    assert_eq!(bench.log.create_topics(&[spec]).expect("create a topic"), [true]);
}

#[test]
fn a_sub_topology_with_another_name_keeps_its_state() {
    on_both(|bench| {
        bench.write(&bench.input, 0, &[("a", ""), ("a", "")]);
        let mut thread = bench.start("counts");
        bench.settle(&mut thread);
        thread.finish().expect("a clean end");
        bench.write(&bench.input, 0, &[("a", "")]);
        let mut thread = bench
            .try_start(vec![bench.sub("renamed", &[&bench.input], "counts")])
            .expect("it starts");
        assert_eq!(thread.leftovers(), Vec::<String>::new());
        bench.settle(&mut thread);
        assert_eq!(bench.out(0), ["a=1", "a=2", "a=3"]);
        thread.finish().expect("a clean end");
    });
}

/// The thread comes back as the static member that it was, within its session timeout.
#[test]
fn an_input_added_between_two_runs_is_read() {
    on_both(|bench| {
        bench.write(&bench.input, 0, &[("a", "")]);
        let mut thread = bench.start("counts");
        bench.settle(&mut thread);
        thread.finish().expect("a clean end");
        let added = world::unique("added");
        bench.topic(&added, 2, &[]);
        bench.write(&added, 0, &[("b", "")]);
        let both = || {
            let more = bench.sub("more", &[&added], "more");
            vec![bench.sub("count", &[&bench.input], "counts"), more]
        };
        let mut thread = bench.try_start(both()).expect("it starts");
        bench.settle(&mut thread);
        assert_eq!(bench.out(0), ["a=1", "b=1"]);
        world::wait_for("readiness", Duration::from_secs(30), || {
            thread.turn().expect("it goes on");
            thread.causes().is_empty().then_some(())
        });
        thread.finish().expect("a clean end");
    });
}

#[test]
fn a_store_with_another_name_stops_its_tasks_until_somebody_says_how_to_go_on() {
    on_both(|bench| {
        bench.write(&bench.input, 0, &[("a", ""), ("a", "")]);
        bench.write(&bench.input, 1, &[("b", "")]);
        let mut thread = bench.start("counts");
        bench.settle(&mut thread);
        thread.finish().expect("a clean end");
        let mut thread = bench.start("renamed");
        let leftovers = thread.leftovers().join("; ");
        assert!(leftovers.contains(&*bench.changelog("counts", 0).topic), "{leftovers}");
        assert!(
            leftovers.contains(
                &bench
                    .dir
                    .path()
                    .join(&bench.application)
                    .join("counts")
                    .display()
                    .to_string()
            )
        );
        let cause = until_cause(&mut thread, "task count/0: stopped");
        assert!(cause.contains("holds no state at all"), "{cause}");
        assert!(cause.contains("declare its former name"), "{cause}");
        assert!(
            cause.contains(&format!("trunkline offsets accept {} renamed/0", bench.application)),
            "{cause}"
        );
        assert!(
            cause.contains(&format!("trunkline offsets reset --to-earliest {} renamed/0", bench.application)),
            "{cause}"
        );
        until_cause(&mut thread, "task count/1: stopped");
        thread.finish().expect("a clean end");
        assert_eq!(bench.out(0), ["a=1", "a=2"], "nothing went on");
        // The one task processes all of it again, the other goes on with nothing; both by an explicit word.
        bench.vacated();
        let (zero, one) = (bench.changelog("renamed", 0), bench.changelog("renamed", 1));
        let at = |partition| TopicPartition::new(bench.input.as_str(), partition);
        offsets::again(&*bench.log, &bench.application, &zero, &[at(0)]).expect("again");
        offsets::accept(&*bench.log, &bench.application, &one, &[at(1)]).expect("accept");
        bench.write(&bench.input, 1, &[("b", "")]);
        let mut thread = bench.start("renamed");
        bench.settle(&mut thread);
        assert_eq!(bench.out(0), ["a=1", "a=2", "a=1", "a=2"]);
        assert_eq!(bench.out(1), ["b=1", "b=1"]);
        thread.finish().expect("a clean end");
        // Under its former name everything is as it was, and behind: what the other store saw in between is not in it.
        let mut thread = bench.start("counts");
        let cause = until_cause(&mut thread, "task count/1: stopped");
        assert!(cause.contains("up to 1, and the committed offset is 2"), "{cause}");
    });
}

#[test]
fn inputs_that_were_exchanged_stop_their_tasks_until_it_is_accepted() {
    on_both(|bench| {
        let more = world::unique("more");
        bench.topic(&more, 2, &[]);
        bench.write(&bench.input, 0, &[("a", ""), ("a", "")]);
        bench.write(&more, 0, &[("b", "")]);
        let declared =
            |first: &str, second: &str| vec![bench.sub("one", &[first], "ones"), bench.sub("two", &[second], "twos")];
        let mut thread = bench.try_start(declared(&bench.input, &more)).expect("it starts");
        bench.settle(&mut thread);
        thread.finish().expect("a clean end");
        let before = bench.out(0).len();
        let mut thread = bench.try_start(declared(&more, &bench.input)).expect("it starts");
        let cause = until_cause(&mut thread, "task one/0: stopped");
        assert!(cause.contains(&format!("made from {}/0", bench.input)), "{cause}");
        assert!(cause.contains(&format!("reads {more}/0")), "{cause}");
        let way = format!("trunkline offsets accept {} ones/0 --input {more}", bench.application);
        assert!(cause.contains(&way), "{cause}");
        until_cause(&mut thread, "task two/1: stopped");
        thread.finish().expect("a clean end");
        // Exchanged back, nothing has happened.
        bench.write(&bench.input, 0, &[("a", "")]);
        let mut thread = bench.try_start(declared(&bench.input, &more)).expect("it starts");
        bench.settle(&mut thread);
        assert_eq!(bench.out(0).get(before..), Some(&["a=3".to_owned()][..]));
        thread.finish().expect("a clean end");
        // And where it is meant, the state goes on from the other topic.
        for (store, input) in [("ones", &more), ("twos", &bench.input)] {
            for partition in 0..2 {
                let at = TopicPartition::new(input.as_str(), partition);
                let changelog = bench.changelog(store, partition);
                offsets::accept(&*bench.log, &bench.application, &changelog, &[at]).expect("accept");
            }
        }
        bench.write(&more, 0, &[("a", "")]);
        let mut thread = bench.try_start(declared(&more, &bench.input)).expect("it starts");
        bench.settle(&mut thread);
        assert_eq!(bench.out(0).last().map(String::as_str), Some("a=4"));
        thread.finish().expect("a clean end");
    });
}

#[test]
fn an_input_that_is_read_no_more_takes_nothing_from_the_state() {
    on_both(|bench| {
        let more = world::unique("more");
        bench.topic(&more, 2, &[]);
        bench.write(&more, 0, &[("a", "")]);
        let both = || vec![bench.sub("count", &[&bench.input, &more], "counts")];
        let mut thread = bench.try_start(both()).expect("it starts");
        bench.settle(&mut thread);
        thread.finish().expect("a clean end");
        bench.write(&bench.input, 0, &[("a", "")]);
        let mut thread = bench.start("counts");
        bench.settle(&mut thread);
        thread.finish().expect("a clean end");
        // It comes back, and goes on where it was left.
        bench.write(&more, 0, &[("a", "")]);
        let mut thread = bench.try_start(both()).expect("it starts");
        bench.settle(&mut thread);
        assert_eq!(bench.out(0), ["a=1", "a=2", "a=3"]);
        thread.finish().expect("a clean end");
    });
}

#[test]
fn a_changelog_that_was_deleted_stops_its_tasks_and_keeps_the_store() {
    on_both(|bench| {
        bench.write(&bench.input, 0, &[("a", ""), ("a", "")]);
        let mut thread = bench.start("counts");
        bench.settle(&mut thread);
        thread.finish().expect("a clean end");
        bench
            .log
            .delete_topic(&bench.changelog("counts", 0).topic)
            .expect("delete the changelog");
        let mut thread = bench.start("counts");
        let cause = until_cause(&mut thread, "task count/0: stopped");
        assert!(cause.contains("holds no state at all"), "{cause}");
        assert!(cause.contains("trunkline offsets reset --to-earliest"), "{cause}");
        thread.finish().expect("a clean end");
        let stores = std::fs::read_dir(bench.dir.path().join(&bench.application).join("counts"));
        let aside = stores.expect("stores").filter(|entry| {
            entry
                .as_ref()
                .is_ok_and(|entry| entry.file_name().to_string_lossy().contains(".aside-"))
        });
        assert_eq!(aside.count(), 2, "nothing is wiped");
        bench.vacated();
        let again = |partition| {
            let input = TopicPartition::new(bench.input.as_str(), partition);
            let changelog = bench.changelog("counts", partition);
            offsets::again(&*bench.log, &bench.application, &changelog, &[input])
        };
        again(0).expect("again");
        again(1).expect("again");
        let mut thread = bench.start("counts");
        bench.settle(&mut thread);
        assert_eq!(bench.out(0), ["a=1", "a=2", "a=1", "a=2"]);
        thread.finish().expect("a clean end");
        // What has state is not begun again by mistake.
        let text = service::chain(&again(0).expect_err("it has state"));
        assert!(text.contains("holds state"), "{text}");
    });
}

#[test]
fn a_changelog_without_its_beginning_is_never_restored_in_part() {
    let bench = Bench::kafka();
    let servers = bench.kafka.clone().expect("it is Kafka");
    bench.write(&bench.input, 0, &[("a", ""), ("b", "")]);
    let mut thread = bench.start("counts");
    bench.settle(&mut thread);
    bench.write(&bench.input, 0, &[("b", "")]);
    bench.settle(&mut thread);
    thread.finish().expect("a clean end");
    let changelog = bench.changelog("counts", 0);
    let end = bench.log.offset(&changelog, OffsetSpec::LogEnd).expect("the end");
    // Kafka refuses that of a topic that is compacted alone.
    let policy = |policy: &str| {
        let setting = ("cleanup.policy".to_owned(), policy.to_owned());
        bench
            .log
            .alter_topic(&changelog.topic, &[setting])
            .expect("alter the topic");
    };
    policy("compact,delete");
    world::delete_records(&servers, &changelog.topic, changelog.partition, end - 3);
    policy("compact");
    assert_eq!(
        bench.log.offset(&changelog, OffsetSpec::Earliest).expect("the start"),
        end - 3
    );
    // The store has it all, and goes on; it is a whole one's last copy, which is said.
    bench.write(&bench.input, 0, &[("a", "")]);
    let mut thread = bench.start("counts");
    bench.settle(&mut thread);
    assert_eq!(bench.out(0), ["a=1", "b=1", "b=2", "a=2"]);
    thread.finish().expect("a clean end");
    // Without the store a part of the state would be missing.
    let store = bench.dir.path().join(&bench.application).join("counts/0");
    let kept = bench.dir.path().join("kept");
    std::fs::rename(&store, &kept).expect("move the store");
    bench.write(&bench.input, 0, &[("a", "")]);
    let mut thread = bench.start("counts");
    let cause = until_cause(&mut thread, "task count/0: stopped");
    assert!(cause.contains(&format!("begins at offset {}", end - 3)), "{cause}");
    assert!(cause.contains("put its store's directory back"), "{cause}");
    assert!(cause.contains("another name"), "{cause}");
    drop(thread);
    // The way out: the copy comes back.
    std::fs::remove_dir_all(&store).expect("remove the empty store");
    std::fs::rename(&kept, &store).expect("move the store back");
    let mut thread = bench.start("counts");
    bench.settle(&mut thread);
    assert_eq!(bench.out(0), ["a=1", "b=1", "b=2", "a=2", "a=3"]);
    thread.finish().expect("a clean end");
}

#[test]
fn offsets_that_have_expired_are_taken_from_the_state() {
    let bench = Bench::kafka();
    let servers = bench.kafka.clone().expect("it is Kafka");
    bench.write(&bench.input, 0, &[("a", ""), ("a", "")]);
    let mut thread = bench.start("counts");
    bench.settle(&mut thread);
    thread.finish().expect("a clean end");
    bench.vacated();
    world::delete_group(&servers, &bench.application);
    let at = TopicPartition::new(bench.input.as_str(), 0);
    let committed = bench.log.committed(&bench.application, std::slice::from_ref(&at));
    assert_eq!(committed.expect("the offsets").get(&at), Some(&None));
    bench.write(&bench.input, 0, &[("a", "")]);
    let mut thread = bench.start("counts");
    bench.settle(&mut thread);
    assert_eq!(bench.out(0), ["a=1", "a=2", "a=3"]);
    // They are written down at once, also where nothing came.
    let all = [at, TopicPartition::new(bench.input.as_str(), 1)];
    let committed = bench.log.committed(&bench.application, &all).expect("the offsets");
    assert_eq!(committed.values().copied().collect::<Vec<_>>(), [Some(3), Some(0)]);
    thread.finish().expect("a clean end");
}

#[test]
fn a_record_of_which_something_too_large_is_made_is_given_up_alone() {
    on_both(|bench| {
        // Larger than the changelog takes, and larger than the output takes: the limit is that of all topics here.
        let (state, out) = ("state 1100000", "out 1100000");
        bench.write(&bench.input, 0, &[("a", ""), ("b", state), ("c", out), ("a", "")]);
        let mut thread = bench.start("counts");
        bench.settle(&mut thread);
        assert_eq!(bench.out(0), ["a=1", "a=2"]);
        let letters = bench.read(&streams::dead_letter_topic(&bench.input), 0);
        assert_eq!(letters, [format!("b={state}"), format!("c={out}")]);
        thread.finish().expect("a clean end");
        // A restored store knows nothing of what was given up.
        std::fs::remove_dir_all(bench.dir.path().join(&bench.application)).expect("lose the stores");
        bench.write(&bench.input, 0, &[("b", ""), ("c", "")]);
        let mut thread = bench.start("counts");
        bench.settle(&mut thread);
        assert_eq!(bench.out(0), ["a=1", "a=2", "b=1", "c=1"]);
        thread.finish().expect("a clean end");
    });
}

#[test]
fn a_dead_letter_that_is_too_large_itself_goes_without_its_body() {
    let bench = Bench::kafka();
    bench.topic(
        &streams::dead_letter_topic(&bench.input),
        2,
        &[("max.message.bytes", "2000")],
    );
    let long = "k".repeat(3000);
    bench.write(&bench.input, 0, &[("a", ""), (&long, "out 1100000"), ("a", "")]);
    let mut thread = bench.start("counts");
    bench.settle(&mut thread);
    assert_eq!(bench.out(0), ["a=1", "a=2"]);
    assert_eq!(bench.read(&streams::dead_letter_topic(&bench.input), 0), ["null=null"]);
    thread.finish().expect("a clean end");
}

#[test]
fn a_record_with_a_state_key_that_no_store_takes_is_given_up_alone() {
    on_both(|bench| {
        let long = "k".repeat(65_536);
        bench.write(&bench.input, 0, &[("a", ""), (&long, ""), ("a", "")]);
        let mut thread = bench.start("counts");
        bench.settle(&mut thread);
        assert_eq!(bench.out(0), ["a=1", "a=2"]);
        let letters = bench.read(&streams::dead_letter_topic(&bench.input), 0);
        assert_eq!(letters, [format!("{long}=")]);
        thread.finish().expect("a clean end");
        // The process starts again, also without its stores.
        std::fs::remove_dir_all(bench.dir.path().join(&bench.application)).expect("lose the stores");
        bench.write(&bench.input, 0, &[("a", "")]);
        let mut thread = bench.start("counts");
        bench.settle(&mut thread);
        assert_eq!(bench.out(0), ["a=1", "a=2", "a=3"]);
        thread.finish().expect("a clean end");
    });
}

#[test]
fn an_output_topic_that_is_gone_stops_the_task_until_it_is_made() {
    on_both(|bench| {
        bench.log.delete_topic(&bench.output).expect("delete the output");
        bench.write(&bench.input, 0, &[("a", "")]);
        let mut thread = bench.start("counts");
        let cause = until_cause(&mut thread, "task count/0: stopped");
        let fix = format!("topic {} does not exist; create it", bench.output);
        assert!(cause.contains(&fix), "{cause}");
        bench.topic(&bench.output, 2, &[]);
        bench.settle(&mut thread);
        assert_eq!(bench.out(0), ["a=1"]);
        thread.finish().expect("a clean end");
    });
}
