//! Conformance suite of the event log: every case runs with every backend and tests a property on which callers may
//! rely.
//!
//! If a case fails with one backend, that backend has a defect; callers have no special cases. Each case creates its
//! own topics, groups and transactional ids, so that all cases can share a broker, and waits for states instead of
//! sleeping. `durable` and `killed_cleaner` test what only a log in a directory guarantees: it can be reopened, and it
//! survives `kill -9`.

mod compaction;
mod durable;
#[cfg(feature = "external")]
mod full_disk;
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

use harness::Backend;

/// Defines a test for each case and backend, named `log::backend::suite::case`, with the given group protocol.
macro_rules! suite {
    (on [$($(#[$attribute:meta])* $backend:ident = $which:expr),*] by $protocol:ident; $cases:tt) => {
        $( suite!(one [$(#[$attribute])*] $backend, $which, $protocol; $cases); )*
    };
    (one [$(#[$attribute:meta])*] $backend:ident, $which:expr, $protocol:ident; { $($part:ident: [$($case:ident),* $(,)?],)* }) => {
        $(#[$attribute])*
        mod $backend {
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
    on [in_memory = Backend::Memory, on_disk = Backend::Disk, #[cfg(feature = "external")] on_kafka = Backend::Kafka] by Classic;
    {
        topics: [
            topic_is_created_once_and_described,
            what_kafka_rejects_is_rejected,
            altering_a_setting_keeps_the_others,
            deleted_topic_id_is_not_reused,
            missing_topic_is_unknown_topic,
            log_epoch_is_stable,
        ],
        records: [
            records_are_read_as_written,
            log_append_time_replaces_timestamps,
            partition_keeps_record_order,
            keys_select_partitions_like_java_client,
            append_returns_offsets,
            batches_appended_together_have_their_own_results,
            batch_larger_than_queue_is_written,
            producer_flush_returns_offsets,
            record_over_topic_limit_is_rejected,
            small_polls_return_every_record_once,
            append_wakes_blocked_poll,
        ],
        offsets: [
            offset_lookups_find_start_end_and_times,
            position_passes_control_and_aborted_records,
            reader_starts_at_requested_offset,
            offset_above_end_is_out_of_range,
            retention_by_time_moves_the_start,
            retention_by_size_moves_the_start,
            offsets_set_from_outside_are_kept,
            groups_are_listed_with_state_and_offsets,
        ],
        transactions: [
            open_transaction_is_hidden_from_read_committed,
            open_transaction_holds_last_stable_offset,
            aborted_transaction_leaves_no_records,
            control_record_takes_one_offset_per_partition,
            transaction_over_topics_is_atomic,
            two_producers_interleave_in_a_partition,
            empty_transaction_commits,
            consumed_offsets_become_visible_with_the_commit,
            aborted_offsets_are_never_visible,
            transaction_may_contain_offsets_only,
            committed_offsets_include_acknowledged_commits,
            many_small_transactions_remain_unchanged,
        ],
        compaction: [
            compaction_keeps_newest_records_unchanged,
            reader_gets_newest_of_each_key_in_order,
            tombstone_expires,
            open_transaction_blocks_compaction,
            aborted_record_supersedes_nothing,
            young_records_are_not_compacted,
            compact_delete_removes_old_records,
            readers_and_members_pass_compaction_gaps,
            record_without_key_is_rejected,
            record_without_key_affects_its_partition_only,
            min_lag_above_max_lag_is_rejected,
        ],
        transactional_producers: [
            second_producer_fences_first,
            fenced_producer_may_reinitialize,
            idle_fenced_producer_fails_on_send_or_commit,
            opening_producer_ends_dead_transaction,
            timed_out_transaction_is_aborted,
            producer_continues_after_abort,
            aborted_flushed_transaction_leaves_control_record,
            rejected_record_forces_abort,
            unknown_topic_fails_transaction,
            producer_has_one_transaction_at_a_time,
        ],
        groups: [
            assignment_precedes_records,
            member_reads_from_start_offset,
            resumed_partition_continues_after_last_record,
            group_reads_committed_records_only,
            start_outside_partition_is_out_of_range,
            out_of_range_partition_leaves_others_alone,
            unreadable_partition_is_reported_once,
            paused_partition_reports_no_error,
            deleted_topic_leaves_others_alone,
            commit_wakes_blocked_member,
        ],
        members: [
            second_member_gets_its_share,
            commit_succeeds_during_revocation,
            old_generation_cannot_commit,
            member_commits_offsets_without_transaction,
            partitions_of_left_member_are_reassigned,
            same_instance_name_fences_first_member,
            replaced_member_cannot_commit_offsets,
            static_member_restarts_without_rebalance,
            static_member_restarts_with_more_topics,
            static_member_restarts_with_fewer_topics,
            static_members_co_partition_new_topic,
            absent_static_member_loses_partitions,
            topics_are_shared_by_subscribers_only,
        ],
    }
}

// The consumer protocol (KIP-848): the same cases, except for those in which the protocols differ.
suite! {
    on [in_memory_kip848 = Backend::Memory, on_disk_kip848 = Backend::Disk, #[cfg(feature = "external")] on_kafka_kip848 = Backend::Kafka] by Consumer;
    {
        groups: [
            assignment_precedes_records,
            member_reads_from_start_offset,
            resumed_partition_continues_after_last_record,
            group_reads_committed_records_only,
            start_outside_partition_is_out_of_range,
            out_of_range_partition_leaves_others_alone,
            unreadable_partition_is_reported_once,
            paused_partition_reports_no_error,
            deleted_topic_leaves_others_alone,
            commit_wakes_blocked_member,
        ],
        members: [
            second_member_gets_its_share,
            unmoved_partitions_are_read_during_rebalance,
            silent_generation_change_costs_one_commit,
            commit_succeeds_during_revocation,
            old_generation_cannot_commit,
            member_commits_offsets_without_transaction,
            partitions_of_left_member_are_reassigned,
            instance_name_belongs_to_its_member,
            static_member_restarts_without_rebalance,
            static_member_restarts_with_more_topics,
            static_member_restarts_with_fewer_topics,
            static_members_co_partition_new_topic,
            absent_static_member_loses_partitions,
            topics_are_shared_by_subscribers_only,
        ],
    }
}
