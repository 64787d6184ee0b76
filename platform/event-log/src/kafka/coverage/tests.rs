//! Results of comparing the description of a group with a member, case by case.

use super::*;

const MEMBER: &str = "node-2";

fn coverage(topics: &[(&str, usize)], protocol: GroupProtocol) -> Coverage {
    let group = GroupConfig {
        group: "g".to_owned(),
        instance: Some(MEMBER.to_owned()),
        topics: Vec::new(),
        session_timeout: Duration::from_secs(10),
        protocol,
    };
    Coverage::new(
        &group,
        topics.iter().map(|(name, count)| ((*name).into(), *count)).collect(),
    )
}

fn partitions(assigned: &[(&str, i32)]) -> Vec<TopicPartition> {
    let each = assigned.iter();
    each.map(|(topic, partition)| TopicPartition::new(*topic, *partition))
        .collect()
}

/// A group of members by instance name and partitions.
fn group(state: &str, members: &[(&str, &[(&str, i32)])]) -> GroupInfo {
    let member = |(instance, assigned): &(&str, &[(&str, i32)])| MemberInfo {
        name: (*instance).to_owned(),
        instance: Some((*instance).to_owned()),
        partitions: partitions(assigned),
    };
    GroupInfo {
        group: "g".to_owned(),
        state: state.to_owned(),
        members: members.iter().map(member).collect(),
        committed: BTreeMap::new(),
    }
}

/// Result for `node-2`, which subscribes to topics `a` and `b` with two partitions each, in a stable group.
fn found(members: &[(&str, &[(&str, i32)])]) -> (Vec<Arc<str>>, bool) {
    let own = members.iter().find(|(instance, _)| *instance == MEMBER);
    let assigned = own.map_or_else(Vec::new, |(_, assigned)| partitions(assigned));
    match coverage(&[("a", 2), ("b", 2)], GroupProtocol::Classic).judge(&group("Stable", members), &assigned) {
        Verdict::Decided { uncovered, stale } => (uncovered, stale),
        Verdict::Undecided => panic!("undecided"),
    }
}

#[test]
fn range_assignment_is_covered() {
    let alone = found(&[(MEMBER, &[("a", 0), ("a", 1), ("b", 0), ("b", 1)])]);
    assert_eq!(alone, (vec![], false));
    let shared = found(&[("node-1", &[("a", 0), ("b", 0)]), (MEMBER, &[("a", 1), ("b", 1)])]);
    assert_eq!(shared, (vec![], false));
    let idle = found(&[
        ("node-0", &[("a", 0), ("b", 0)]),
        ("node-1", &[("a", 1), ("b", 1)]),
        (MEMBER, &[]),
    ]);
    assert_eq!(idle, (vec![], false));
}

#[test]
fn unassigned_topic_is_uncovered() {
    let missing = found(&[(MEMBER, &[("a", 0), ("a", 1)])]);
    assert_eq!(missing, (vec!["b".into()], true));
    let part = found(&[(MEMBER, &[("a", 0), ("a", 1), ("b", 0)])]);
    assert_eq!(part, (vec!["b".into()], true));
}

#[test]
fn unsubscribed_topic_is_stale() {
    let more = found(&[(MEMBER, &[("a", 0), ("a", 1), ("b", 0), ("b", 1), ("gone", 0)])]);
    assert_eq!(more, (vec![], true));
}

#[test]
fn share_of_another_member_is_stale() {
    let all = found(&[("node-1", &[("a", 0), ("b", 0), ("b", 1)]), (MEMBER, &[("a", 1)])]);
    assert_eq!(all, (vec![], true));
    let later = found(&[
        ("node-1", &[("a", 0), ("b", 0)]),
        (MEMBER, &[("a", 1)]),
        ("node-3", &[("b", 1)]),
    ]);
    assert_eq!(later, (vec![], true));
}

#[test]
fn description_of_other_assignment_is_undecided() {
    let coverage = coverage(&[("a", 2)], GroupProtocol::Classic);
    let assigned = partitions(&[("a", 0), ("a", 1)]);
    for undecided in [
        group("PreparingRebalance", &[(MEMBER, &[("a", 0), ("a", 1)])]),
        group("Stable", &[(MEMBER, &[("a", 0)])]),
        group("Stable", &[("node-1", &[("a", 0), ("a", 1)])]),
    ] {
        assert_eq!(coverage.judge(&undecided, &assigned), Verdict::Undecided);
    }
}

#[test]
fn forced_rebalances_are_limited() {
    let mut coverage = coverage(&[("a", 1), ("b", 1)], GroupProtocol::Classic);
    let assigned = partitions(&[("a", 0)]);
    let stale = || Verdict::Decided {
        uncovered: vec!["b".into()],
        stale: true,
    };
    assert_eq!(coverage.unassigned(&assigned), ["b".into()]);
    let forced = (0..10).filter(|_| coverage.decide(stale())).count();
    assert_eq!(forced, 3);
    assert_eq!(coverage.unassigned(&assigned), ["b".into()]);
    let covered = Verdict::Decided {
        uncovered: vec![],
        stale: false,
    };
    assert!(!coverage.decide(covered));
    assert_eq!((coverage.unassigned(&[]), coverage.due()), (vec![], None));
}

#[test]
fn consumer_protocol_forces_no_rebalance() {
    let mut coverage = coverage(&[("a", 1)], GroupProtocol::Consumer);
    let stale = Verdict::Decided {
        uncovered: vec!["a".into()],
        stale: true,
    };
    assert!(!coverage.decide(stale));
    assert_eq!(coverage.unassigned(&[]), ["a".into()]);
}
