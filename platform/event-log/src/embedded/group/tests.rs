//! Tests of groups with the classic protocol: order of events, who may commit, and one owner per partition.

use super::*;

fn joining(id: MemberId, instance: Option<&str>, partitions: u32) -> Joining {
    Joining {
        id,
        instance: instance.map(str::to_owned),
        topics: vec![("t".into(), partitions)],
        timeout_ms: 1_000,
        signal: Arc::default(),
        incremental: false,
    }
}

fn add_member(group: &mut Group, joining: Joining, now: Millis) {
    assert_eq!(group.join(joining, now), Ok(()));
}

fn of(partitions: impl IntoIterator<Item = i32>) -> Vec<TopicPartition> {
    partitions.into_iter().map(|p| TopicPartition::new("t", p)).collect()
}

fn event(group: &mut Group, id: MemberId, now: Millis) -> Option<Event> {
    group.event(id, now).expect("the member is in the group")
}

#[test]
fn single_member_gets_all_partitions() {
    let mut group = Group::new();
    add_member(&mut group, joining(1, None, 3), 0);
    assert_eq!(
        group
            .check_commit(1, group.generation_of(1))
            .err()
            .map(|rejection| rejection.reason),
        Some("the group metadata has generation -1, but the current generation is 1".into())
    );
    assert_eq!(event(&mut group, 1, 0), Some(Event::Assigned(of(0..3))));
    assert_eq!(event(&mut group, 1, 0), None);
    assert_eq!(
        (group.state(), group.check_commit(1, group.generation_of(1)).err()),
        ("Stable", None)
    );
}

#[test]
fn second_member_gets_half_after_revocation() {
    let mut group = Group::new();
    add_member(&mut group, joining(1, None, 3), 0);
    event(&mut group, 1, 0);
    let before = group.generation_of(1);
    add_member(&mut group, joining(2, None, 3), 10);
    assert_eq!(event(&mut group, 2, 10), None, "nothing is free yet");
    assert_eq!(event(&mut group, 1, 20), Some(Event::Revoked(of(0..3))));
    assert_eq!(group.check_commit(1, before), Ok(()), "a commit is still possible");
    assert_eq!(event(&mut group, 1, 30), Some(Event::Assigned(of(0..2))));
    assert_eq!(event(&mut group, 2, 30), Some(Event::Assigned(of(2..3))));
    assert!(group.check_commit(1, before).is_err(), "the old generation is over");
    group.leave(2, 40);
    assert_eq!(event(&mut group, 1, 40), Some(Event::Revoked(of(0..2))));
    assert_eq!(event(&mut group, 1, 40), Some(Event::Assigned(of(0..3))));
}

#[test]
fn silent_member_loses_partitions() {
    let mut group = Group::new();
    add_member(&mut group, joining(1, None, 2), 0);
    event(&mut group, 1, 0);
    add_member(&mut group, joining(2, None, 2), 100);
    let late = 100 + REVOCATION_TIMEOUT_MS;
    assert_eq!(group.deadline(), Some(late));
    assert_eq!(event(&mut group, 2, late - 1), None);
    assert_eq!(event(&mut group, 2, late), Some(Event::Assigned(of(0..2))));
    assert!(group.check_commit(1, 1).is_err());
    assert_eq!(event(&mut group, 1, late), Some(Event::Lost(of(0..2))));
    assert_eq!(event(&mut group, 2, late), Some(Event::Revoked(of(0..2))));
    assert_eq!(event(&mut group, 2, late), Some(Event::Assigned(of(1..2))));
    assert_eq!(event(&mut group, 1, late), Some(Event::Assigned(of(0..1))));
}

#[test]
fn static_member_restarts_without_rebalance() {
    let mut group = Group::new();
    add_member(&mut group, joining(1, Some("a"), 2), 0);
    add_member(&mut group, joining(2, Some("b"), 2), 0);
    assert_eq!(event(&mut group, 1, 0), Some(Event::Assigned(of(0..1))));
    assert_eq!(event(&mut group, 2, 0), Some(Event::Assigned(of(1..2))));
    group.leave(1, 10);
    assert_eq!(event(&mut group, 2, 20), None, "the membership is kept");
    add_member(&mut group, joining(3, Some("a"), 2), 500);
    assert_eq!(event(&mut group, 3, 500), Some(Event::Assigned(of(0..1))));
    assert_eq!(event(&mut group, 2, 500), None);
    group.leave(3, 600);
    assert_eq!(event(&mut group, 2, 1_599), None);
    assert_eq!(event(&mut group, 2, 1_600), Some(Event::Revoked(of(1..2))));
    assert_eq!(event(&mut group, 2, 1_600), Some(Event::Assigned(of(0..2))));
}

#[test]
fn same_instance_name_fences_first_member() {
    let mut group = Group::new();
    add_member(&mut group, joining(1, Some("a"), 2), 0);
    event(&mut group, 1, 0);
    let generation = group.generation_of(1);
    add_member(&mut group, joining(2, Some("a"), 2), 10);
    assert_eq!(group.event(1, 10), Err(MemberReplaced));
    assert!(group.check_commit(1, generation).is_err());
    assert_eq!(event(&mut group, 2, 10), Some(Event::Assigned(of(0..2))));
    assert_eq!(group.check_commit(2, group.generation_of(2)), Ok(()));
}

#[test]
fn ranges_are_contiguous() {
    assert_eq!(range(&[7, 8], 5), [(7, 0), (7, 1), (7, 2), (8, 3), (8, 4)]);
    assert_eq!(range(&[7, 8, 9], 2), [(7, 0), (8, 1)]);
    assert_eq!(range(&[], 2), []);
}

#[test]
fn no_partition_has_two_owners() {
    run_randomly(false);
}

#[test]
fn no_partition_has_two_owners_incremental() {
    run_randomly(true);
}

/// Polls a member and records which partitions it may read.
fn poll(group: &mut Group, id: MemberId, now: Millis, reads: &mut BTreeMap<MemberId, Vec<TopicPartition>>) {
    match group.event(id, now) {
        Ok(Some(Event::Assigned(owned))) => reads.entry(id).or_default().extend(owned),
        Ok(Some(Event::Revoked(gone) | Event::Lost(gone))) => {
            reads.entry(id).or_default().retain(|at| !gone.contains(at));
        }
        Err(MemberReplaced) => drop(reads.remove(&id)),
        Ok(_) => {}
    }
}

/// Members that join, leave and poll at random, with either protocol.
fn run_randomly(incremental: bool) {
    let seed = u64::from_le_bytes(*uuid::Uuid::new_v4().as_bytes().first_chunk().expect("16 bytes"));
    println!("seed {seed}");
    let mut random = seed | 1;
    let mut next = move |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let mut group = Group::new();
    let (mut now, mut ids, mut last) = (0, Vec::new(), 0);
    // Partitions that each member may read according to its events.
    let mut reads: BTreeMap<MemberId, Vec<TopicPartition>> = BTreeMap::new();
    for _ in 0..20_000 {
        // Mostly short steps; sometimes one that exceeds all timeouts.
        let step = if next(10) == 0 { 200_000 } else { 300 };
        now += Millis::try_from(next(step)).expect("small");
        match next(20) {
            0 if ids.len() < 5 => {
                last += 1;
                let name = format!("i{}", next(4));
                let joining = Joining {
                    incremental,
                    ..joining(last, (next(2) == 0).then_some(name.as_str()), 7)
                };
                match group.join(joining, now) {
                    Ok(()) => ids.push(last),
                    Err(error) => assert!(incremental && error == JoinError::Occupied, "{error:?}"),
                }
            }
            1 if !ids.is_empty() => {
                let at = usize::try_from(next(ids.len().try_into().expect("small"))).expect("small");
                let id = ids.swap_remove(at);
                group.leave(id, now);
                reads.remove(&id);
            }
            _ if !ids.is_empty() => {
                let at = usize::try_from(next(ids.len().try_into().expect("small"))).expect("small");
                let id = ids[at];
                poll(&mut group, id, now, &mut reads);
            }
            _ => {}
        }
        let valid = reads
            .iter()
            .filter(|(id, _)| group.check_commit(**id, group.generation_of(**id)).is_ok());
        let mut all: Vec<&TopicPartition> = valid.flat_map(|(_, owned)| owned).collect();
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count, "two members that may commit read one partition");
    }
    if incremental {
        // After all members have polled, active members own all partitions except those that are reserved for static
        // members that left.
        for id in ids.iter().cycle().take(ids.len() * 4) {
            poll(&mut group, *id, now, &mut reads);
        }
        let read: usize = ids.iter().filter_map(|id| reads.get(id)).map(Vec::len).sum();
        let away = group.members.values().filter(|member| member.left_at.is_some());
        let kept: usize = away.map(|member| member.target.len()).sum();
        assert!(ids.is_empty() || read + kept == 7, "{read} read, {kept} kept");
    }
    while let Some(id) = ids.pop() {
        group.leave(id, now);
    }
    group.tick(now + 1_001);
    assert!(group.is_unused());
}
