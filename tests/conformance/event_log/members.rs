//! Several members of one group: what each is told when others come, go, or take its name.

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

/// What a member is told, in order.
#[derive(Default)]
struct Told {
    events: Vec<Event>,
    held: Vec<TopicPartition>,
}

impl Told {
    fn poll(&mut self, consumer: &mut dyn GroupConsumer) {
        match consumer.poll(&mut RecordBatch::default(), 1_000, SHORT).expect("poll") {
            Event::Idle | Event::Records => {}
            event => {
                match &event {
                    Event::Assigned(partitions) => self.held.extend(partitions.iter().cloned()),
                    Event::Revoked(gone) | Event::Lost(gone) => self.held.retain(|at| !gone.contains(at)),
                    Event::Idle | Event::Records => unreachable!("handled above"),
                }
                self.held.sort();
                self.events.push(event);
            }
        }
    }
}

/// Polls both until each holds a share of so many partitions; the first is told to give up what it held.
fn share(
    first: &mut dyn GroupConsumer,
    second: &mut dyn GroupConsumer,
    held: &[TopicPartition],
    all: usize,
) -> (Told, Told) {
    let (mut a, mut b) = (
        Told {
            held: held.to_vec(),
            ..Told::default()
        },
        Told::default(),
    );
    support::wait_for("the partitions to be shared", LIMIT, || {
        a.poll(first);
        b.poll(second);
        (!b.held.is_empty() && !a.held.is_empty() && a.held.len() + b.held.len() == all).then_some(())
    });
    (a, b)
}

/// When a member joins, the one that holds everything is told `Revoked` first, gives up with its next poll, and each
/// ends with a contiguous share. The classic protocol takes everything and deals anew, the newer one takes what moves.
pub fn a_second_member_takes_its_share(harness: &Harness) {
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
    let mut shares = [a.held, b.held];
    shares.sort();
    assert_eq!(shares, [parts(&topic, 0..2), parts(&topic, 2..4)]);
    first.close().unwrap();
    second.close().unwrap();
}

/// `Revoked` is returned before the partitions are given up: what was read of them can still be committed.
pub fn a_commit_still_fits_while_partitions_are_revoked(harness: &Harness) {
    let (topic, group, output) = (harness.topic(2), support::unique("group"), harness.line());
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
    let mut session = harness.any_session();
    session.begin().unwrap();
    session.send(&batch(&output, &["in time"])).unwrap();
    committed(session.commit(Some((&member, &[(revoked[0].clone(), 4)]))));
    share(&mut *first, &mut *second, &stays, all.len());
    assert_eq!(harness.committed_offset(&group, &revoked[0]), Some(4));
    first.close().unwrap();
    second.close().unwrap();
}

/// A membership from before a rebalance is worth nothing after it for what has moved: the commit is aborted, with its
/// records. For a partition that stays, brokers of the newer protocol take it (KIP-1251).
pub fn a_member_of_an_old_generation_cannot_commit(harness: &Harness) {
    let (topic, group, output) = (harness.topic(2), support::unique("group"), harness.line());
    let all = parts(&topic, 0..2);
    let (mut first, stale) = harness.group_metadata(&group, &topic);
    let mut second = harness.join(&group, &[&topic]);
    share(&mut *first, &mut *second, &all, all.len());
    let mut has_moved = |at: &&TopicPartition| second.pause(std::slice::from_ref(*at)).is_ok();
    let moved = all.iter().find(|at| has_moved(at)).expect("one of the two has moved");
    let kept = all.iter().find(|at| *at != moved).expect("there are two");
    let mut session = harness.any_session();
    session.begin().unwrap();
    session.send(&batch(&output, &["stale"])).unwrap();
    outdated(harness, &session.commit(Some((&stale, &[(moved.clone(), 9)]))));
    assert_eq!(harness.committed_offset(&group, moved), None);
    session.init_transactions().unwrap();
    session.begin().unwrap();
    session.send(&batch(&output, &["fresh"])).unwrap();
    let fresh = first.group_metadata().unwrap();
    assert!(fresh.generation > stale.generation);
    committed(session.commit(Some((&fresh, &[(kept.clone(), 1)]))));
    assert_eq!(harness.committed_offset(&group, kept), Some(1));
    assert_eq!(texts(&harness.committed(&output)), ["fresh"]);
    first.close().unwrap();
    second.close().unwrap();
}

/// With the newer protocol what stays is not even interrupted: it is read on from where it was, without a new start, and
/// nothing of it comes twice.
pub fn what_stays_goes_on_being_read_while_others_move(harness: &Harness) {
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
    let (mut held, mut next, mut told) = (all.clone(), vec![3; 4], 0);
    let mut batch_read = RecordBatch::default();
    // Records keep coming, a few at a time, until the second one has its share and long after.
    let mut read_after = 0;
    support::wait_for("the rest to be read on beside the change", LIMIT, || {
        for at in &held {
            harness.append(at, &["more"]);
        }
        match second.poll(&mut RecordBatch::default(), 1_000, SHORT).unwrap() {
            Event::Assigned(partitions) => told += partitions.len(),
            event => assert_eq!(event, Event::Idle),
        }
        match first.poll(&mut batch_read, 1 << 20, SHORT).unwrap() {
            Event::Revoked(gone) => held.retain(|at| !gone.contains(at)),
            Event::Records => {
                for record in batch_read.iter() {
                    assert!(held.contains(record.partition()), "{} was revoked", record.partition());
                    let place = usize::try_from(record.partition().partition).unwrap();
                    assert_eq!(record.offset(), next[place], "{}", record.partition());
                    next[place] += 1;
                    read_after += usize::from(told == 2);
                }
            }
            event => assert_eq!(event, Event::Idle, "what stays is not assigned anew"),
        }
        (read_after >= 20).then_some(())
    });
    assert_eq!((held.len(), told), (2, 2));
    first.close().unwrap();
    second.close().unwrap();
}

/// A member that is told nothing may yet be of a newer generation, as others come and go: a membership that is asked for
/// before each commit is taken, but for one that the news has overtaken on its way, which costs an abort and no fence.
pub fn a_generation_that_rose_by_itself_costs_at_most_one_commit(harness: &Harness) {
    let (topic, other, group, output) = (
        harness.topic(1),
        harness.topic(2),
        support::unique("group"),
        harness.line(),
    );
    let (mut first, before) = harness.group_metadata(&group, &topic);
    let mut second = harness.join(&group, &[&other]);
    assert_eq!(assigned(&mut *second), parts(&other, 0..2));
    let at = TopicPartition::new(topic.clone(), 0);
    let mut session = harness.any_session();
    let mut aborted = 0;
    support::wait_for("the generation to rise", LIMIT, || {
        let event = first.poll(&mut RecordBatch::default(), 1_000, SHORT).unwrap();
        assert_eq!(event, Event::Idle, "nothing of the first one's moves");
        let member = first.group_metadata().unwrap();
        session.begin().unwrap();
        session.send(&batch(&output, &["x"])).unwrap();
        match session.commit(Some((&member, &[(at.clone(), 1)]))) {
            Outcome::Committed(_) => {}
            Outcome::Aborted { fenced: false, .. } => {
                aborted += 1;
                session.init_transactions().unwrap();
            }
            outcome => panic!("{outcome:?}"),
        }
        (member.generation > before.generation).then_some(())
    });
    assert!(aborted <= 1, "{aborted} commits were aborted");
    first.close().unwrap();
    second.close().unwrap();
}

/// A member commits offsets without a transaction, and the next one finds them.
pub fn a_member_commits_offsets_outside_a_transaction(harness: &Harness) {
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
    // While partitions are given up a commit still fits.
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

/// A member whose seat is another's commits nothing.
pub fn a_member_that_has_lost_its_seat_commits_no_offsets(harness: &Harness) {
    let (topic, group) = (harness.topic(2), support::unique("group"));
    let all = parts(&topic, 0..2);
    let mut first = harness.join_as(&group, Some("node-1"), &[&topic]);
    assert_eq!(assigned(&mut *first), all);
    let mut second = harness.join_as(&group, Some("node-1"), &[&topic]);
    assert_eq!(assigned(&mut *second), all);
    let error = first.commit(&[(all[0].clone(), 9)]).expect_err("the seat is gone");
    assert!(matches!(error, Error::Fenced { .. }), "{error:?}");
    assert_eq!(harness.committed_offset(&group, &all[0]), None);
    second.commit(&[(all[0].clone(), 1)]).unwrap();
    assert_eq!(harness.committed_offset(&group, &all[0]), Some(1));
    second.close().unwrap();
}

/// The partitions of a member that leaves go to those that stay.
pub fn partitions_of_a_member_that_left_go_to_the_others(harness: &Harness) {
    let (topic, group) = (harness.topic(3), support::unique("group"));
    let all = parts(&topic, 0..3);
    let mut first = harness.join(&group, &[&topic]);
    assigned(&mut *first);
    let mut second = harness.join(&group, &[&topic]);
    let (_, mut b) = share(&mut *first, &mut *second, &all, all.len());
    first.close().unwrap();
    support::wait_for("everything to be the second's", LIMIT, || {
        b.poll(&mut *second);
        (b.held == all).then_some(())
    });
    harness.append(&all[2], &["x"]);
    second.start(&all[2], 0).unwrap();
    assert_eq!(texts(&records(&mut *second, 1)), ["x"]);
    second.close().unwrap();
}

/// Another process under the same instance name takes the seat: the one before is fenced, in its poll and in its
/// commits.
pub fn the_same_instance_name_fences_the_one_before(harness: &Harness) {
    let (topic, group, output) = (harness.topic(2), support::unique("group"), harness.line());
    let all = parts(&topic, 0..2);
    let mut first = harness.join_as(&group, Some("node-1"), &[&topic]);
    assert_eq!(assigned(&mut *first), all);
    let before = first.group_metadata().unwrap();
    let mut second = harness.join_as(&group, Some("node-1"), &[&topic]);
    assert_eq!(assigned(&mut *second), all);
    let mut session = harness.any_session();
    session.begin().unwrap();
    session.send(&batch(&output, &["stale"])).unwrap();
    fenced(&session.commit(Some((&before, &[(all[0].clone(), 9)]))));
    let error = support::wait_for("the first to be fenced", LIMIT, || {
        first.poll(&mut RecordBatch::default(), 1_000, SHORT).err()
    });
    assert!(matches!(error, Error::Fenced { .. }), "{error:?}");
    session.init_transactions().unwrap();
    session.begin().unwrap();
    let member = second.group_metadata().unwrap();
    committed(session.commit(Some((&member, &[(all[0].clone(), 1)]))));
    assert_eq!(harness.committed_offset(&group, &all[0]), Some(1));
    assert_eq!(harness.committed(&output), []);
    second.close().unwrap();
}

/// With the newer protocol an instance name is the member's that has it: another process under the same name waits, and
/// says so, until that one has left; the one that has it is not disturbed.
pub fn an_instance_name_is_the_members_that_has_it(harness: &Harness) {
    let (topic, group, output) = (harness.topic(2), support::unique("group"), harness.line());
    let all = parts(&topic, 0..2);
    let mut first = harness.join_as(&group, Some("node-1"), &[&topic]);
    assert_eq!(assigned(&mut *first), all);
    let mut second = harness.join_as(&group, Some("node-1"), &[&topic]);
    let error = support::wait_for("the second to be told", LIMIT, || {
        assert_eq!(
            first.poll(&mut RecordBatch::default(), 1_000, SHORT).unwrap(),
            Event::Idle
        );
        second.poll(&mut RecordBatch::default(), 1_000, SHORT).err()
    });
    assert!(matches!(error, Error::Occupied { .. }), "{error:?}");
    assert_eq!(error.action(), event_log::ErrorAction::Retry);
    let mut session = harness.any_session();
    session.begin().unwrap();
    session.send(&batch(&output, &["first"])).unwrap();
    let member = first.group_metadata().unwrap();
    committed(session.commit(Some((&member, &[(all[0].clone(), 1)]))));
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

/// A static member that comes back within its session timeout has its partitions again, and the others are not
/// disturbed.
pub fn a_static_member_restarts_without_a_rebalance(harness: &Harness) {
    let (topic, group) = (harness.topic(2), support::unique("group"));
    let all = parts(&topic, 0..2);
    let mut first = harness.join_as(&group, Some("node-1"), &[&topic]);
    assigned(&mut *first);
    let mut second = harness.join_as(&group, Some("node-2"), &[&topic]);
    let (a, mut b) = share(&mut *first, &mut *second, &all, all.len());
    let (share_of_first, told) = (a.held, b.events.len());
    first.close().unwrap();
    b.poll(&mut *second);
    let mut first = harness.join_as(&group, Some("node-1"), &[&topic]);
    assert_eq!(assigned(&mut *first), share_of_first);
    for _ in 0..5 {
        b.poll(&mut *second);
    }
    assert_eq!(b.events.len(), told, "{:?}", b.events);
    first.close().unwrap();
    second.close().unwrap();
}

/// A static member's seat is kept for its session timeout and no longer: then its partitions go to the others.
pub fn a_static_member_that_does_not_come_back_loses_its_partitions(harness: &Harness) {
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
    assert_eq!(b.held.len(), 1, "the seat is kept at first");
    support::wait_for("everything to be the second's", LIMIT, || {
        b.poll(&mut *second);
        (b.held == all).then_some(())
    });
    let mut session = harness.any_session();
    session.begin().unwrap();
    let outcome = session.commit(Some((&stale, &[(all[0].clone(), 9)])));
    assert!(matches!(outcome, Outcome::Aborted { .. }), "{outcome:?}");
    assert_eq!(harness.committed_offset(&group, &all[0]), None);
    second.close().unwrap();
}

/// Each topic is shared by those that subscribed to it, and by nobody else.
pub fn members_of_different_topics_share_only_what_both_want(harness: &Harness) {
    let (both, one, group) = (harness.topic(2), harness.topic(2), support::unique("group"));
    let mut first = harness.join(&group, &[&both]);
    assert_eq!(assigned(&mut *first), parts(&both, 0..2));
    let mut second = harness.join(&group, &[&both, &one]);
    let (mut a, mut b) = share(&mut *first, &mut *second, &parts(&both, 0..2), 4);
    // By the newer protocol the second is given the topic that is its alone before one partition of the other moves.
    support::wait_for("one of the two to move", LIMIT, || {
        a.poll(&mut *first);
        b.poll(&mut *second);
        ((a.held.len(), b.held.len()) == (1, 3)).then_some(())
    });
    assert_eq!(*a.held[0].topic, *both);
    assert!(parts(&one, 0..2).iter().all(|at| b.held.contains(at)), "{:?}", b.held);
    first.close().unwrap();
    second.close().unwrap();
}

/// Polls a member until it holds exactly these partitions, and starts each at 0 when it is assigned.
fn hold(consumer: &mut dyn GroupConsumer, told: &mut Told, wanted: &[TopicPartition]) {
    support::wait_for("the member to hold what it should", LIMIT, || {
        let before = told.events.len();
        told.poll(consumer);
        if told.events.len() > before
            && let Some(Event::Assigned(partitions)) = told.events.last()
        {
            partitions.iter().for_each(|at| consumer.start(at, 0).unwrap());
        }
        (told.held == wanted).then_some(())
    });
}

/// A static member that comes back within its session timeout and subscribes to one more topic reads that topic too.
/// Kafka's classic protocol alone would leave the old assignment in place (KAFKA-12759).
pub fn a_static_member_restarts_with_one_more_topic(harness: &Harness) {
    let (old, new, group) = (harness.topic(2), harness.topic(2), support::unique("group"));
    let mut member = harness.join_as(&group, Some("node-1"), &[&old]);
    assert_eq!(assigned(&mut *member), parts(&old, 0..2));
    member.close().unwrap();
    let mut member = harness.join_as(&group, Some("node-1"), &[&old, &new]);
    let mut all = [parts(&old, 0..2), parts(&new, 0..2)].concat();
    all.sort();
    hold(&mut *member, &mut Told::default(), &all);
    harness.append(&parts(&new, [1])[0], &["x"]);
    assert_eq!(texts(&records(&mut *member, 1)), ["x"]);
    assert_eq!(member.unassigned(), &[] as &[Arc<str>]);
    member.close().unwrap();
}

/// A static member that comes back without one of its topics does not keep the partitions of that topic.
pub fn a_static_member_restarts_with_one_topic_less(harness: &Harness) {
    let (kept, dropped, group) = (harness.topic(2), harness.topic(2), support::unique("group"));
    let mut member = harness.join_as(&group, Some("node-1"), &[&kept, &dropped]);
    assert_eq!(assigned(&mut *member).len(), 4);
    member.close().unwrap();
    let mut member = harness.join_as(&group, Some("node-1"), &[&kept]);
    let mut told = Told::default();
    hold(&mut *member, &mut told, &parts(&kept, 0..2));
    harness.append(&parts(&kept, [1])[0], &["x"]);
    assert_eq!(texts(&records(&mut *member, 1)), ["x"]);
    let info = harness.log.group_info(&group).unwrap().expect("the group");
    let held: Vec<_> = info.members.into_iter().flat_map(|member| member.partitions).collect();
    assert!(held.iter().all(|at| at.topic == kept), "{held:?}");
    member.close().unwrap();
}

/// Static members that are restarted one after the other with one more topic end with the same partitions of each, as a
/// task needs that reads both.
pub fn static_members_share_a_new_topic_as_the_old_one(harness: &Harness) {
    let (old, new, group) = (harness.topic(2), harness.topic(2), support::unique("group"));
    let all = parts(&old, 0..2);
    let mut first = harness.join_as(&group, Some("node-1"), &[&old]);
    assert_eq!(assigned(&mut *first), all);
    let mut second = harness.join_as(&group, Some("node-2"), &[&old]);
    let (_, mut b) = share(&mut *first, &mut *second, &all, all.len());
    first.close().unwrap();
    let mut first = harness.join_as(&group, Some("node-1"), &[&old, &new]);
    let mut a = Told::default();
    support::wait_for("the first to have the new topic alone", LIMIT, || {
        a.poll(&mut *first);
        b.poll(&mut *second);
        parts(&new, 0..2).iter().all(|at| a.held.contains(at)).then_some(())
    });
    second.close().unwrap();
    let mut second = harness.join_as(&group, Some("node-2"), &[&old, &new]);
    let mut b = Told::default();
    support::wait_for("equal shares of both topics", LIMIT, || {
        a.poll(&mut *first);
        b.poll(&mut *second);
        let numbers = |told: &Told, topic: &Arc<str>| -> Vec<i32> {
            let of_topic = told.held.iter().filter(|at| at.topic == *topic);
            of_topic.map(|at| at.partition).collect()
        };
        let equal = |told: &Told| numbers(told, &old).len() == 1 && numbers(told, &old) == numbers(told, &new);
        (equal(&a) && equal(&b)).then_some(())
    });
    first.close().unwrap();
    second.close().unwrap();
}
