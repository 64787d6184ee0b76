//! Tests of groups with the consumer protocol: only partitions that move to another member are revoked, and each
//! partition has one owner.

use super::super::{JoinError, Joining};
use super::*;
use std::sync::Arc;

fn joining(id: MemberId, instance: Option<&str>) -> Joining {
    Joining {
        id,
        instance: instance.map(str::to_owned),
        topics: vec![("t".into(), 4)],
        timeout_ms: 1_000,
        signal: Arc::default(),
        incremental: true,
    }
}

fn add_member(group: &mut Group, id: MemberId, instance: Option<&str>, now: Millis) {
    assert_eq!(group.join(joining(id, instance), now), Ok(()));
}

fn of(partitions: impl IntoIterator<Item = i32>) -> Vec<TopicPartition> {
    partitions.into_iter().map(|p| TopicPartition::new("t", p)).collect()
}

fn event(group: &mut Group, id: MemberId, now: Millis) -> Option<Event> {
    group.event(id, now).expect("the member is in the group")
}

#[test]
fn second_member_gets_half_incrementally() {
    let mut group = Group::new();
    add_member(&mut group, 1, None, 0);
    assert_eq!(event(&mut group, 1, 0), Some(Event::Assigned(of(0..4))));
    add_member(&mut group, 2, None, 10);
    assert_eq!(event(&mut group, 2, 10), None, "nothing is free yet");
    assert_eq!(event(&mut group, 1, 20), Some(Event::Revoked(of(2..4))));
    assert_eq!(
        event(&mut group, 2, 20),
        None,
        "partitions are released by the next poll"
    );
    assert_eq!(
        group.check_commit(1, group.generation_of(1)),
        Ok(()),
        "a commit is still possible"
    );
    assert_eq!(
        event(&mut group, 1, 30),
        None,
        "unmoved partitions are not assigned again"
    );
    assert_eq!(event(&mut group, 2, 30), Some(Event::Assigned(of(2..4))));
    assert_eq!(group.state(), "Stable");
    group.leave(2, 40);
    assert_eq!(event(&mut group, 1, 40), Some(Event::Assigned(of(2..4))));
}

#[test]
fn old_generation_is_rejected_without_fencing() {
    let mut group = Group::new();
    add_member(&mut group, 1, None, 0);
    event(&mut group, 1, 0);
    let before = group.generation_of(1);
    add_member(&mut group, 2, None, 10);
    assert_eq!(group.check_commit(1, before), Ok(()), "the member has not polled yet");
    event(&mut group, 1, 20);
    let rejection = group.check_commit(1, before).expect_err("the generation has risen");
    assert!(!rejection.fenced, "{}", rejection.reason);
    assert_eq!(group.check_commit(1, group.generation_of(1)), Ok(()));
}

#[test]
fn silent_member_loses_all_partitions() {
    let mut group = Group::new();
    add_member(&mut group, 1, None, 0);
    event(&mut group, 1, 0);
    let generation = group.generation_of(1);
    add_member(&mut group, 2, None, 100);
    let late = 100 + REVOCATION_TIMEOUT_MS;
    assert_eq!(group.deadline(), Some(late));
    assert_eq!(event(&mut group, 2, late - 1), None);
    assert_eq!(event(&mut group, 2, late), Some(Event::Assigned(of(0..4))));
    assert!(
        group
            .check_commit(1, generation)
            .err()
            .is_some_and(|rejection| rejection.fenced)
    );
    assert_eq!(event(&mut group, 1, late), Some(Event::Lost(of(0..4))));
    assert_eq!(event(&mut group, 2, late), Some(Event::Revoked(of(0..2))));
    assert_eq!(event(&mut group, 2, late), None);
    assert_eq!(event(&mut group, 1, late), Some(Event::Assigned(of(0..2))));
}

#[test]
fn instance_name_is_occupied_until_member_leaves() {
    let mut group = Group::new();
    add_member(&mut group, 1, Some("a"), 0);
    event(&mut group, 1, 0);
    assert_eq!(group.join(joining(2, Some("a")), 10), Err(JoinError::Occupied));
    assert_eq!(group.check_commit(1, group.generation_of(1)), Ok(()));
    group.leave(1, 20);
    add_member(&mut group, 3, Some("a"), 30);
    assert_eq!(event(&mut group, 3, 30), Some(Event::Assigned(of(0..4))));
}

#[test]
fn static_membership_ends_with_session() {
    let mut group = Group::new();
    add_member(&mut group, 1, Some("a"), 0);
    add_member(&mut group, 2, Some("b"), 0);
    assert_eq!(event(&mut group, 1, 0), Some(Event::Assigned(of(0..2))));
    assert_eq!(event(&mut group, 2, 0), Some(Event::Assigned(of(2..4))));
    group.leave(1, 10);
    assert_eq!(event(&mut group, 2, 20), None, "the membership is kept");
    add_member(&mut group, 3, Some("a"), 500);
    assert_eq!(event(&mut group, 3, 500), Some(Event::Assigned(of(0..2))));
    assert_eq!(event(&mut group, 2, 500), None);
    group.leave(3, 600);
    assert_eq!(event(&mut group, 2, 1_599), None);
    assert_eq!(event(&mut group, 2, 1_600), Some(Event::Assigned(of(0..2))));
}

#[test]
fn group_uses_one_protocol_at_a_time() {
    let mut group = Group::new();
    add_member(&mut group, 1, Some("a"), 0);
    let other = |id| Joining {
        incremental: false,
        ..joining(id, Some("b"))
    };
    assert_eq!(group.join(other(2), 0), Err(JoinError::ProtocolMismatch));
    group.leave(1, 10);
    assert_eq!(group.join(other(3), 20), Ok(()), "no member uses the first protocol");
    assert_eq!(event(&mut group, 3, 20), Some(Event::Assigned(of(0..4))));
}
