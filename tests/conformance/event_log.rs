//! The conformance suite of the log: every case runs on every home, and says what callers may rely on.
//!
//! A case that passes on one home and not on another is a defect of that home, never a special case in a caller.
//! Guarantees: a case makes its own topics, groups and transactional ids, so that all can share one broker; it waits
//! for states, never for time to pass. What only a log in a directory promises (reopening, kill -9) is in `durable`
//! and `killed_cleaner`.
//! Never: a home that is skipped.

mod compaction;
mod durable;
mod groups;
mod harness;
mod killed_cleaner;
mod killed_process;
mod members;
mod offsets;
mod records;
mod topics;
mod transactional_producers;
mod transactions;

use harness::Home;

/// Makes a test of each case for each home, named `event_log::home::suite::case`; groups are by the protocol named.
macro_rules! suite {
    (on [$($(#[$attribute:meta])* $home:ident = $which:expr),*] by $protocol:ident; $cases:tt) => {
        $( suite!(one [$(#[$attribute])*] $home, $which, $protocol; $cases); )*
    };
    (one [$(#[$attribute:meta])*] $home:ident, $which:expr, $protocol:ident; { $($part:ident: [$($case:ident),* $(,)?],)* }) => {
        $(#[$attribute])*
        mod $home {
            $( mod $part {
                $( #[test]
                fn $case() {
                    use super::super::*;
                    harness::run($which, event_log::GroupProtocol::$protocol, $part::$case);
                } )*
            } )*
        }
    };
}

suite! {
    on [in_memory = Home::Memory, on_disk = Home::Disk, #[cfg(feature = "external")] on_kafka = Home::Kafka] by Classic;
    {
        topics: [
            a_topic_is_created_once_and_described,
            what_kafka_refuses_is_refused,
            altering_one_setting_leaves_the_others,
            a_deleted_topic_is_gone_and_its_id_is_never_used_again,
            what_does_not_exist_is_an_unknown_topic,
            the_log_keeps_its_incarnation,
        ],
        records: [
            records_read_back_as_they_were_written,
            the_broker_stamps_where_the_topic_says_so,
            records_of_a_partition_keep_their_order,
            keys_choose_partitions_as_javas_client_does,
            an_append_says_where_its_records_are,
            a_batch_larger_than_any_queue_is_written_whole,
            an_appender_says_at_a_flush_where_everything_is,
            a_record_over_the_topics_limit_is_refused,
            small_polls_return_every_record_once,
            a_blocked_poll_is_woken_by_an_append,
        ],
        offsets: [
            start_end_and_times_are_looked_up,
            a_position_passes_markers_and_aborted_records,
            a_reader_starts_where_it_is_told,
            an_offset_behind_the_end_is_out_of_range,
            retention_by_time_moves_the_start,
            retention_by_size_moves_the_start,
            explicit_offsets_are_kept_for_the_group,
            groups_are_listed_with_state_and_offsets,
        ],
        transactions: [
            nothing_of_an_open_transaction_is_seen_by_committed_readers,
            an_open_transaction_holds_the_stable_offset_back,
            an_aborted_transaction_leaves_offsets_and_no_records,
            a_marker_takes_one_offset_in_each_touched_partition,
            a_transaction_over_topics_is_visible_together,
            two_sessions_interleave_in_one_partition,
            an_empty_transaction_commits,
            consumed_offsets_become_visible_with_the_commit,
            offsets_of_an_aborted_transaction_are_never_seen,
            a_transaction_may_hold_offsets_alone,
            committed_offsets_are_never_behind_an_acknowledged_commit,
            many_small_transactions_stay_as_they_were,
        ],
        compaction: [
            superseded_records_go_and_the_newest_stay_as_they_were,
            a_reader_from_the_start_gets_the_newest_of_each_key_in_order,
            a_tombstone_goes_after_its_time,
            an_open_transaction_holds_the_cleaner_back,
            an_aborted_record_shadows_nothing_and_goes,
            young_records_are_left_alone,
            a_topic_that_is_compacted_and_deleted_forgets_what_is_old,
            readers_and_members_pass_the_gaps,
            a_record_without_a_key_is_refused,
            a_record_without_a_key_costs_no_other_partition_a_record,
            a_lag_longer_than_the_longest_is_refused,
        ],
        transactional_producers: [
            a_second_session_of_an_id_fences_the_first,
            a_fenced_session_may_take_over_again,
            a_session_that_is_fenced_while_idle_learns_it_when_it_sends_or_commits,
            opening_a_session_ends_the_transaction_of_a_dead_one,
            a_transaction_that_is_open_too_long_is_aborted,
            after_an_abort_the_session_goes_on,
            a_flushed_transaction_leaves_a_mark_when_it_is_aborted,
            a_refused_record_lets_the_transaction_only_abort,
            an_unknown_topic_fails_the_transaction,
            a_session_has_one_transaction_at_a_time,
        ],
        groups: [
            assigned_comes_first_and_nothing_is_read_before_start,
            a_member_reads_from_where_it_was_started,
            a_paused_partition_goes_on_behind_the_last_record,
            a_group_reads_committed_records_only,
            a_start_outside_the_partition_is_out_of_range,
            a_partition_out_of_range_leaves_the_others_where_they_are,
            a_blocked_member_is_woken_by_a_commit,
        ],
        members: [
            a_second_member_takes_its_share,
            a_commit_still_fits_while_partitions_are_revoked,
            a_member_of_an_old_generation_cannot_commit,
            a_member_commits_offsets_outside_a_transaction,
            partitions_of_a_member_that_left_go_to_the_others,
            the_same_instance_name_fences_the_one_before,
            a_member_that_has_lost_its_seat_commits_no_offsets,
            a_static_member_restarts_without_a_rebalance,
            a_static_member_restarts_with_one_more_topic,
            a_static_member_restarts_with_one_topic_less,
            static_members_share_a_new_topic_as_the_old_one,
            a_static_member_that_does_not_come_back_loses_its_partitions,
            members_of_different_topics_share_only_what_both_want,
        ],
    }
}

// The newer group protocol: whatever does not follow from its nature is the same.
suite! {
    on [in_memory_newer = Home::Memory, on_disk_newer = Home::Disk, #[cfg(feature = "external")] on_kafka_newer = Home::Kafka] by Consumer;
    {
        groups: [
            assigned_comes_first_and_nothing_is_read_before_start,
            a_member_reads_from_where_it_was_started,
            a_paused_partition_goes_on_behind_the_last_record,
            a_group_reads_committed_records_only,
            a_start_outside_the_partition_is_out_of_range,
            a_partition_out_of_range_leaves_the_others_where_they_are,
            a_blocked_member_is_woken_by_a_commit,
        ],
        members: [
            a_second_member_takes_its_share,
            what_stays_goes_on_being_read_while_others_move,
            a_generation_that_rose_by_itself_costs_at_most_one_commit,
            a_commit_still_fits_while_partitions_are_revoked,
            a_member_of_an_old_generation_cannot_commit,
            a_member_commits_offsets_outside_a_transaction,
            partitions_of_a_member_that_left_go_to_the_others,
            an_instance_name_is_the_members_that_has_it,
            a_static_member_restarts_without_a_rebalance,
            a_static_member_restarts_with_one_more_topic,
            a_static_member_restarts_with_one_topic_less,
            static_members_share_a_new_topic_as_the_old_one,
            a_static_member_that_does_not_come_back_loses_its_partitions,
            members_of_different_topics_share_only_what_both_want,
        ],
    }
}
