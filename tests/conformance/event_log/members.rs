//! Several members of a group: their events when members join, leave, or use the same instance name.

use super::harness::{Harness, LIMIT, SHORT, assigned, batch, committed, fenced, outdated, records, texts};
use crate::support;
use event_log::{Error, Event, GroupConfig, GroupConsumer, GroupProtocol, Outcome, RecordBatch, TopicPartition};
use std::sync::Arc;
use std::time::Duration;

fn parts(topic: &Arc<str>, numbers: impl IntoIterator<Item = i32>) -> Vec<TopicPartition> {
    numbers
        .into_iter()
        .map(|p| TopicPartition::new(topic.clone(), p))
        .collect()
}

/// Events of a member, in order.
#[derive(Default)]
struct Events {
    events: Vec<Event>,
    assigned: Vec<TopicPartition>,
}

impl Events {
    fn poll(&mut self, consumer: &mut dyn GroupConsumer) {
        match consumer.poll(&mut RecordBatch::default(), 1_000, SHORT).expect("poll") {
            Event::Idle | Event::Records => {}
            event => {
                match &event {
                    Event::Assigned(partitions) => self.assigned.extend(partitions.iter().cloned()),
                    Event::Revoked(gone) | Event::Lost(gone) => self.assigned.retain(|at| !gone.contains(at)),
                    Event::Idle | Event::Records => unreachable!("handled above"),
                }
                self.assigned.sort();
                self.events.push(event);
            }
        }
    }
}

/// Polls both members until each owns this number of partitions. The first member must get a revocation.
fn share(
    first: &mut dyn GroupConsumer,
    second: &mut dyn GroupConsumer,
    assigned: &[TopicPartition],
    all: usize,
) -> (Events, Events) {
    let (mut a, mut b) = (
        Events {
            assigned: assigned.to_vec(),
            ..Events::default()
        },
        Events::default(),
    );
    support::wait_for("the partitions to be shared", LIMIT, || {
        a.poll(first);
        b.poll(second);
        (!b.assigned.is_empty() && !a.assigned.is_empty() && a.assigned.len() + b.assigned.len() == all).then_some(())
    });
    (a, b)
}

/// When a member joins, the owner of all partitions gets `Revoked`, and gives them up with the next poll. In the end,
/// each member has a contiguous range. The classic protocol revokes all partitions, the consumer protocol only those
/// that move.
pub fn second_member_gets_its_share(harness: &Harness) {
    let (topic, group) = (harness.topic(4), support::unique("group"));
    let all = parts(&topic, 0..4);
    let mut first = harness.join(&group, &[&topic]);
    assert_eq!(assigned(&mut *first), all);
    let mut second = harness.join(&group, &[&topic]);
    let (a, b) = share(&mut *first, &mut *second, &all, all.len());
    let as_it_should_be = match (harness.protocol, &a.events[..]) {
        (GroupProtocol::Classic, [Event::Revoked(gone), Event::Assigned(_)]) => gone.len() == all.len(),
        (GroupProtocol::Consumer, [Event::Revoked(gone)]) => gone.len() == all.len() / 2,
        _ => false,
    };
    assert!(as_it_should_be, "{:?}", a.events);
    assert!(matches!(&b.events[..], [Event::Assigned(_)]), "{:?}", b.events);
    let mut shares = [a.assigned, b.assigned];
    shares.sort();
    assert_eq!(shares, [parts(&topic, 0..2), parts(&topic, 2..4)]);
    first.close().unwrap();
    second.close().unwrap();
}

/// `Revoked` is returned before the partitions are given up, so records read from them can still be committed.
pub fn commit_succeeds_during_revocation(harness: &Harness) {
    let (topic, group, output) = (harness.topic(2), support::unique("group"), harness.partition());
    let all = parts(&topic, 0..2);
    let mut first = harness.join(&group, &[&topic]);
    assigned(&mut *first);
    let mut second = harness.join(&group, &[&topic]);
    let mut batch_read = RecordBatch::default();
    let revoked = support::wait_for("Revoked", LIMIT, || {
        assert_eq!(
            second.poll(&mut RecordBatch::default(), 1_000, SHORT).unwrap(),
            Event::Idle
        );
        let event = first.poll(&mut batch_read, 1_000, SHORT).unwrap();
        (event != Event::Idle).then_some(event)
    });
    let Event::Revoked(mut revoked) = revoked else {
        panic!("{revoked:?}");
    };
    revoked.sort();
    let moves = match harness.protocol {
        GroupProtocol::Classic => all.clone(),
        GroupProtocol::Consumer => revoked.iter().take(1).cloned().collect(),
    };
    assert_eq!(revoked, moves);
    let stays: Vec<_> = all.iter().filter(|at| !revoked.contains(at)).cloned().collect();
    let member = first.group_metadata().unwrap();
    let mut producer = harness.any_producer();
    producer.begin().unwrap();
    producer.send(&batch(&output, &["in time"])).unwrap();
    committed(producer.commit(Some((&member, &[(revoked[0].clone(), 4)]))));
    share(&mut *first, &mut *second, &stays, all.len());
    assert_eq!(harness.committed_offset(&group, &revoked[0]), Some(4));
    first.close().unwrap();
    second.close().unwrap();
}

/// Group metadata from before a rebalance does not permit a commit for partitions that have moved. For partitions that
/// stay, brokers with the consumer protocol accept it (KIP-1251).
pub fn old_generation_cannot_commit(harness: &Harness) {
    let (topic, group, output) = (harness.topic(2), support::unique("group"), harness.partition());
    let all = parts(&topic, 0..2);
    let (mut first, stale) = harness.group_metadata(&group, &topic);
    let mut second = harness.join(&group, &[&topic]);
    share(&mut *first, &mut *second, &all, all.len());
    let mut has_moved = |at: &&TopicPartition| second.pause(std::slice::from_ref(*at)).is_ok();
    let moved = all.iter().find(|at| has_moved(at)).expect("one of the two has moved");
    let kept = all.iter().find(|at| *at != moved).expect("there are two");
    let mut producer = harness.any_producer();
    producer.begin().unwrap();
    producer.send(&batch(&output, &["stale"])).unwrap();
    outdated(harness, &producer.commit(Some((&stale, &[(moved.clone(), 9)]))));
    assert_eq!(harness.committed_offset(&group, moved), None);
    producer.init_transactions().unwrap();
    producer.begin().unwrap();
    producer.send(&batch(&output, &["fresh"])).unwrap();
    let fresh = first.group_metadata().unwrap();
    assert!(fresh.generation > stale.generation);
    committed(producer.commit(Some((&fresh, &[(kept.clone(), 1)]))));
    assert_eq!(harness.committed_offset(&group, kept), Some(1));
    assert_eq!(texts(&harness.committed(&output)), ["fresh"]);
    first.close().unwrap();
    second.close().unwrap();
}

/// With the consumer protocol, partitions that stay with their member are read without interruption: they are not
/// started again, and no record is read twice.
pub fn unmoved_partitions_are_read_during_rebalance(harness: &Harness) {
    let (topic, group) = (harness.topic(4), support::unique("group"));
    let all = parts(&topic, 0..4);
    let mut first = harness.join(&group, &[&topic]);
    assert_eq!(assigned(&mut *first), all);
    for at in &all {
        harness.append(at, &["0", "1", "2"]);
        first.start(at, 0).unwrap();
    }
    assert_eq!(records(&mut *first, 12).len(), 12);
    let mut second = harness.join(&group, &[&topic]);
    let (mut assigned, mut next, mut events) = (all.clone(), vec![3; 4], 0);
    let mut batch_read = RecordBatch::default();
    // Records are appended until the second member has its share, and for some time after that.
    let mut read_after = 0;
    support::wait_for("the rest to be read on beside the change", LIMIT, || {
        for at in &assigned {
            harness.append(at, &["more"]);
        }
        match second.poll(&mut RecordBatch::default(), 1_000, SHORT).unwrap() {
            Event::Assigned(partitions) => events += partitions.len(),
            event => assert_eq!(event, Event::Idle),
        }
        match first.poll(&mut batch_read, 1 << 20, SHORT).unwrap() {
            Event::Revoked(gone) => assigned.retain(|at| !gone.contains(at)),
            Event::Records => {
                for record in batch_read.iter() {
                    assert!(
                        assigned.contains(record.partition()),
                        "{} was revoked",
                        record.partition()
                    );
                    let place = usize::try_from(record.partition().partition).unwrap();
                    assert_eq!(record.offset(), next[place], "{}", record.partition());
                    next[place] += 1;
                    read_after += usize::from(events == 2);
                }
            }
            event => assert_eq!(event, Event::Idle, "unmoved partitions are not assigned again"),
        }
        (read_after >= 20).then_some(())
    });
    assert_eq!((assigned.len(), events), (2, 2));
    first.close().unwrap();
    second.close().unwrap();
}

/// The generation can rise without an event when other members join or leave. Group metadata that is requested before
/// each commit is accepted, except if the commit overlaps with the change. Such a commit is aborted without fencing, at
/// most once per change.
pub fn silent_generation_change_costs_one_commit(harness: &Harness) {
    let (topic, other, group, output) = (
        harness.topic(1),
        harness.topic(2),
        support::unique("group"),
        harness.partition(),
    );
    let (mut first, before) = harness.group_metadata(&group, &topic);
    let mut second = harness.join(&group, &[&other]);
    assert_eq!(assigned(&mut *second), parts(&other, 0..2));
    let at = TopicPartition::new(topic.clone(), 0);
    let mut producer = harness.any_producer();
    let mut aborted = 0;
    support::wait_for("the generation to rise", LIMIT, || {
        let event = first.poll(&mut RecordBatch::default(), 1_000, SHORT).unwrap();
        assert_eq!(event, Event::Idle, "nothing of the first one's moves");
        let member = first.group_metadata().unwrap();
        producer.begin().unwrap();
        producer.send(&batch(&output, &["x"])).unwrap();
        match producer.commit(Some((&member, &[(at.clone(), 1)]))) {
            Outcome::Committed(_) => {}
            Outcome::Aborted { fenced: false, .. } => {
                aborted += 1;
                producer.init_transactions().unwrap();
            }
            outcome => panic!("{outcome:?}"),
        }
        (member.generation > before.generation).then_some(())
    });
    assert!(aborted <= 1, "{aborted} commits were aborted");
    first.close().unwrap();
    second.close().unwrap();
}

/// A member commits offsets without a transaction, and the next member finds them.
pub fn member_commits_offsets_without_transaction(harness: &Harness) {
    let (topic, group) = (harness.topic(2), support::unique("group"));
    let all = parts(&topic, 0..2);
    let mut first = harness.join(&group, &[&topic]);
    assert_eq!(assigned(&mut *first), all);
    first.start(&all[0], 0).unwrap();
    first.commit(&[(all[0].clone(), 3), (all[1].clone(), 4)]).unwrap();
    assert_eq!(harness.committed_offset(&group, &all[0]), Some(3));
    first.commit(&[(all[0].clone(), 5)]).unwrap();
    assert_eq!(harness.committed_offset(&group, &all[0]), Some(5));
    assert_eq!(harness.committed_offset(&group, &all[1]), Some(4));
    // A commit is still possible while partitions are being revoked.
    let mut second = harness.join(&group, &[&topic]);
    let mut batch_read = RecordBatch::default();
    support::wait_for("Revoked", LIMIT, || {
        second.poll(&mut RecordBatch::default(), 1_000, SHORT).unwrap();
        match first.poll(&mut batch_read, 1_000, SHORT).unwrap() {
            Event::Revoked(_) => Some(()),
            _ => None,
        }
    });
    first.commit(&[(all[0].clone(), 6), (all[1].clone(), 7)]).unwrap();
    assert_eq!(harness.committed_offset(&group, &all[1]), Some(7));
    first.close().unwrap();
    second.close().unwrap();
}

/// A member that was replaced by another member with its name cannot commit offsets.
pub fn replaced_member_cannot_commit_offsets(harness: &Harness) {
    let (topic, group) = (harness.topic(2), support::unique("group"));
    let all = parts(&topic, 0..2);
    let mut first = harness.join_as(&group, Some("node-1"), &[&topic]);
    assert_eq!(assigned(&mut *first), all);
    let mut second = harness.join_as(&group, Some("node-1"), &[&topic]);
    assert_eq!(assigned(&mut *second), all);
    let error = first
        .commit(&[(all[0].clone(), 9)])
        .expect_err("the member was replaced");
    assert!(matches!(error, Error::Fenced { .. }), "{error:?}");
    assert_eq!(harness.committed_offset(&group, &all[0]), None);
    second.commit(&[(all[0].clone(), 1)]).unwrap();
    assert_eq!(harness.committed_offset(&group, &all[0]), Some(1));
    second.close().unwrap();
}

/// The partitions of a member that leaves are assigned to the remaining members.
pub fn partitions_of_left_member_are_reassigned(harness: &Harness) {
    let (topic, group) = (harness.topic(3), support::unique("group"));
    let all = parts(&topic, 0..3);
    let mut first = harness.join(&group, &[&topic]);
    assigned(&mut *first);
    let mut second = harness.join(&group, &[&topic]);
    let (_, mut b) = share(&mut *first, &mut *second, &all, all.len());
    first.close().unwrap();
    support::wait_for("everything to be the second's", LIMIT, || {
        b.poll(&mut *second);
        (b.assigned == all).then_some(())
    });
    harness.append(&all[2], &["x"]);
    second.start(&all[2], 0).unwrap();
    assert_eq!(texts(&records(&mut *second, 1)), ["x"]);
    second.close().unwrap();
}

/// Another process with the same instance name takes over; polls and commits of the first member are fenced.
pub fn same_instance_name_fences_first_member(harness: &Harness) {
    let (topic, group, output) = (harness.topic(2), support::unique("group"), harness.partition());
    let all = parts(&topic, 0..2);
    let mut first = harness.join_as(&group, Some("node-1"), &[&topic]);
    assert_eq!(assigned(&mut *first), all);
    let before = first.group_metadata().unwrap();
    let mut second = harness.join_as(&group, Some("node-1"), &[&topic]);
    assert_eq!(assigned(&mut *second), all);
    let mut producer = harness.any_producer();
    producer.begin().unwrap();
    producer.send(&batch(&output, &["stale"])).unwrap();
    fenced(&producer.commit(Some((&before, &[(all[0].clone(), 9)]))));
    let error = support::wait_for("the first to be fenced", LIMIT, || {
        first.poll(&mut RecordBatch::default(), 1_000, SHORT).err()
    });
    assert!(matches!(error, Error::Fenced { .. }), "{error:?}");
    producer.init_transactions().unwrap();
    producer.begin().unwrap();
    let member = second.group_metadata().unwrap();
    committed(producer.commit(Some((&member, &[(all[0].clone(), 1)]))));
    assert_eq!(harness.committed_offset(&group, &all[0]), Some(1));
    assert_eq!(harness.committed(&output), []);
    second.close().unwrap();
}

/// With the consumer protocol an instance name belongs to its member: another process with the same name gets an error
/// until that member has left, and does not disturb it.
pub fn instance_name_belongs_to_its_member(harness: &Harness) {
    let (topic, group, output) = (harness.topic(2), support::unique("group"), harness.partition());
    let all = parts(&topic, 0..2);
    let mut first = harness.join_as(&group, Some("node-1"), &[&topic]);
    assert_eq!(assigned(&mut *first), all);
    let mut second = harness.join_as(&group, Some("node-1"), &[&topic]);
    let error = support::wait_for("the error of the second member", LIMIT, || {
        assert_eq!(
            first.poll(&mut RecordBatch::default(), 1_000, SHORT).unwrap(),
            Event::Idle
        );
        second.poll(&mut RecordBatch::default(), 1_000, SHORT).err()
    });
    assert!(matches!(error, Error::Occupied { .. }), "{error:?}");
    assert_eq!(error.action(), event_log::ErrorAction::Retry);
    let mut producer = harness.any_producer();
    producer.begin().unwrap();
    producer.send(&batch(&output, &["first"])).unwrap();
    let member = first.group_metadata().unwrap();
    committed(producer.commit(Some((&member, &[(all[0].clone(), 1)]))));
    first.close().unwrap();
    let mut batch_read = RecordBatch::default();
    let taken = support::wait_for("the second to have the name", LIMIT, || {
        match second.poll(&mut batch_read, 1_000, SHORT) {
            Ok(Event::Assigned(partitions)) => Some(partitions.len()),
            Ok(event) => {
                assert_eq!(event, Event::Idle);
                None
            }
            Err(error) => {
                assert!(matches!(error, Error::Occupied { .. }), "{error:?}");
                None
            }
        }
    });
    assert_eq!(taken, all.len());
    harness.append(&all[1], &["x"]);
    second.start(&all[1], 0).unwrap();
    assert_eq!(texts(&records(&mut *second, 1)), ["x"]);
    second.close().unwrap();
}

/// A static member that restarts within its session timeout gets its partitions back without a rebalance.
pub fn static_member_restarts_without_rebalance(harness: &Harness) {
    let (topic, group) = (harness.topic(2), support::unique("group"));
    let all = parts(&topic, 0..2);
    let mut first = harness.join_as(&group, Some("node-1"), &[&topic]);
    assigned(&mut *first);
    let mut second = harness.join_as(&group, Some("node-2"), &[&topic]);
    let (a, mut b) = share(&mut *first, &mut *second, &all, all.len());
    let (share_of_first, events) = (a.assigned, b.events.len());
    first.close().unwrap();
    b.poll(&mut *second);
    let mut first = harness.join_as(&group, Some("node-1"), &[&topic]);
    assert_eq!(assigned(&mut *first), share_of_first);
    for _ in 0..5 {
        b.poll(&mut *second);
    }
    assert_eq!(b.events.len(), events, "{:?}", b.events);
    first.close().unwrap();
    second.close().unwrap();
}

/// The partitions of a static member that does not return are assigned to others after its session timeout.
pub fn absent_static_member_loses_partitions(harness: &Harness) {
    let (topic, group) = (harness.topic(2), support::unique("group"));
    let all = parts(&topic, 0..2);
    let join = |instance: &str| {
        let config = GroupConfig {
            group: group.clone(),
            instance: Some(instance.to_owned()),
            topics: vec![topic.clone()],
            session_timeout: Duration::from_secs(2),
            protocol: harness.protocol,
        };
        harness.log.group(config).expect("join the group")
    };
    let mut first = join("node-1");
    assigned(&mut *first);
    let mut second = join("node-2");
    let (_, mut b) = share(&mut *first, &mut *second, &all, all.len());
    let stale = first.group_metadata().unwrap();
    first.close().unwrap();
    b.poll(&mut *second);
    assert_eq!(b.assigned.len(), 1, "the static membership is kept at first");
    support::wait_for("everything to be the second's", LIMIT, || {
        b.poll(&mut *second);
        (b.assigned == all).then_some(())
    });
    let mut producer = harness.any_producer();
    producer.begin().unwrap();
    let outcome = producer.commit(Some((&stale, &[(all[0].clone(), 9)])));
    assert!(matches!(outcome, Outcome::Aborted { .. }), "{outcome:?}");
    assert_eq!(harness.committed_offset(&group, &all[0]), None);
    second.close().unwrap();
}

/// Each topic is shared only by the members that subscribe to it.
pub fn topics_are_shared_by_subscribers_only(harness: &Harness) {
    let (both, one, group) = (harness.topic(2), harness.topic(2), support::unique("group"));
    let mut first = harness.join(&group, &[&both]);
    assert_eq!(assigned(&mut *first), parts(&both, 0..2));
    let mut second = harness.join(&group, &[&both, &one]);
    let (mut a, mut b) = share(&mut *first, &mut *second, &parts(&both, 0..2), 4);
    // With the consumer protocol, the second member gets its own topic before a partition of the shared topic moves.
    support::wait_for("one of the two to move", LIMIT, || {
        a.poll(&mut *first);
        b.poll(&mut *second);
        ((a.assigned.len(), b.assigned.len()) == (1, 3)).then_some(())
    });
    assert_eq!(*a.assigned[0].topic, *both);
    assert!(
        parts(&one, 0..2).iter().all(|at| b.assigned.contains(at)),
        "{:?}",
        b.assigned
    );
    first.close().unwrap();
    second.close().unwrap();
}

/// Polls a member until it owns exactly these partitions, and starts each at 0 when it is assigned.
fn wait_assigned(consumer: &mut dyn GroupConsumer, events: &mut Events, wanted: &[TopicPartition]) {
    support::wait_for("the member to have its partitions", LIMIT, || {
        let before = events.events.len();
        events.poll(consumer);
        if events.events.len() > before
            && let Some(Event::Assigned(partitions)) = events.events.last()
        {
            partitions.iter().for_each(|at| consumer.start(at, 0).unwrap());
        }
        (events.assigned == wanted).then_some(())
    });
}

/// A static member that restarts with one more topic reads that topic too. With Kafka's classic protocol alone, it
/// would keep its old assignment (KAFKA-12759).
pub fn static_member_restarts_with_more_topics(harness: &Harness) {
    let (old, new, group) = (harness.topic(2), harness.topic(2), support::unique("group"));
    let mut member = harness.join_as(&group, Some("node-1"), &[&old]);
    assert_eq!(assigned(&mut *member), parts(&old, 0..2));
    member.close().unwrap();
    let mut member = harness.join_as(&group, Some("node-1"), &[&old, &new]);
    let mut all = [parts(&old, 0..2), parts(&new, 0..2)].concat();
    all.sort();
    wait_assigned(&mut *member, &mut Events::default(), &all);
    harness.append(&parts(&new, [1])[0], &["x"]);
    assert_eq!(texts(&records(&mut *member, 1)), ["x"]);
    assert_eq!(member.unassigned(), &[] as &[Arc<str>]);
    member.close().unwrap();
}

/// A static member that restarts without one of its topics loses the partitions of that topic.
pub fn static_member_restarts_with_fewer_topics(harness: &Harness) {
    let (kept, dropped, group) = (harness.topic(2), harness.topic(2), support::unique("group"));
    let mut member = harness.join_as(&group, Some("node-1"), &[&kept, &dropped]);
    assert_eq!(assigned(&mut *member).len(), 4);
    member.close().unwrap();
    let mut member = harness.join_as(&group, Some("node-1"), &[&kept]);
    let mut events = Events::default();
    wait_assigned(&mut *member, &mut events, &parts(&kept, 0..2));
    harness.append(&parts(&kept, [1])[0], &["x"]);
    assert_eq!(texts(&records(&mut *member, 1)), ["x"]);
    let info = harness.log.group_info(&group).unwrap().expect("the group");
    let assigned: Vec<_> = info.members.into_iter().flat_map(|member| member.partitions).collect();
    assert!(assigned.iter().all(|at| at.topic == kept), "{assigned:?}");
    member.close().unwrap();
}

/// After static members restart one after the other with one more topic, each has the same partition numbers of both
/// topics. A task that reads both topics depends on this.
pub fn static_members_co_partition_new_topic(harness: &Harness) {
    let (old, new, group) = (harness.topic(2), harness.topic(2), support::unique("group"));
    let all = parts(&old, 0..2);
    let mut first = harness.join_as(&group, Some("node-1"), &[&old]);
    assert_eq!(assigned(&mut *first), all);
    let mut second = harness.join_as(&group, Some("node-2"), &[&old]);
    let (_, mut b) = share(&mut *first, &mut *second, &all, all.len());
    first.close().unwrap();
    let mut first = harness.join_as(&group, Some("node-1"), &[&old, &new]);
    let mut a = Events::default();
    support::wait_for("the first to have the new topic alone", LIMIT, || {
        a.poll(&mut *first);
        b.poll(&mut *second);
        parts(&new, 0..2).iter().all(|at| a.assigned.contains(at)).then_some(())
    });
    second.close().unwrap();
    let mut second = harness.join_as(&group, Some("node-2"), &[&old, &new]);
    let mut b = Events::default();
    support::wait_for("equal shares of both topics", LIMIT, || {
        a.poll(&mut *first);
        b.poll(&mut *second);
        let numbers = |events: &Events, topic: &Arc<str>| -> Vec<i32> {
            let of_topic = events.assigned.iter().filter(|at| at.topic == *topic);
            of_topic.map(|at| at.partition).collect()
        };
        let equal =
            |events: &Events| numbers(events, &old).len() == 1 && numbers(events, &old) == numbers(events, &new);
        (equal(&a) && equal(&b)).then_some(())
    });
    first.close().unwrap();
    second.close().unwrap();
}
