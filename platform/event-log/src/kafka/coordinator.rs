//! Requests to group coordinators: descriptions of groups and committed offsets, through a client that joins no group.
//!
//! Two bugs of librdkafka 2.12.1 that would abort the process when brokers restart determine how the client is used:
//!
//! - `rd_kafka_admin_coord_request` fails an assertion if its coordinator becomes reachable after the request timed out.
//!   So the request timeout is set to the maximum, this module waits for a shorter time, and a client with a pending
//!   request is discarded together with the request.
//! - `rd_kafka_handle_OffsetFetch` (librdkafka issue 5040) dereferences a null pointer if a coordinator answers "not
//!   coordinator" to a client without a group. So the client is a consumer with a `group.id`, which it never joins.

use super::admin::retry;
use super::client::admin::Admin as Raw;
use super::client::admin_results::{Group, GroupMember};
use super::client::list::{Entry, List};
use super::client::{ClientError, ClientKind, Code, Handle, Queue};
use super::config::Config;
use super::{errors, settings};
use crate::{Committed, Error, GroupInfo, MemberInfo, Offset, Result, TopicPartition, in_parallel};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The largest timeout that librdkafka accepts.
const LIBRARY_LIMIT: Duration = Duration::from_secs(60 * 60);
/// First time to wait for a response. librdkafka loses a request if the first coordinator lookup fails, as on a cluster
/// that has never had a group. Waiting longer for that request would not help.
const WAIT_FIRST: Duration = Duration::from_millis(500);

/// Error code for a partition that is missing in the response; it causes the request to be repeated.
const MISSING_ANSWER: Code = Code::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE;

/// Sends requests to coordinators.
#[derive(Debug)]
pub struct Coordinators {
    config: Config,
    client: Mutex<Option<Arc<Handle>>>,
}

impl Coordinators {
    /// Creates an object that creates its client with the first request.
    pub fn new(config: &Config) -> Coordinators {
        Coordinators {
            config: config.clone(),
            client: Mutex::default(),
        }
    }

    /// Returns the client, creating it with this group id if necessary.
    fn client(&self, group: &str) -> Result<Arc<Handle>> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*client {
            // Nothing else polls this client's queue or adds its bootstrap servers again.
            let errors = Queue::main(client);
            while errors.poll(Duration::ZERO).is_some() {}
            client.remind();
            return Ok(client.clone());
        }
        let made = Handle::new(ClientKind::Consumer, &settings::coordinators(&self.config, group));
        Ok(client.insert(made.map_err(errors::setting_error)?).clone())
    }

    /// Discards a client, unless it has already been replaced.
    fn forget(&self, used: &Arc<Handle>) {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let own = client.take_if(|client| Arc::ptr_eq(client, used));
        drop(client);
        drop(own);
    }

    /// Repeats a request within the request timeout while a retry may succeed. The wait for each response doubles.
    fn request_with_retry<T>(
        &self,
        group: &str,
        request: impl Fn(&Raw<'_>) -> Result<T, ClientError>,
    ) -> Result<Result<T, ClientError>> {
        let end = Instant::now() + self.config.request_timeout;
        let mut wait = WAIT_FIRST;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let client = self.client(group)?;
            let raw = |wait| Raw {
                handle: &client,
                timeout: LIBRARY_LIMIT,
                wait,
            };
            // Without a connected broker, the request would time out and the client would have to be discarded.
            if let Err(mut found) = raw(left).await_any_broker() {
                found.text = client.connectivity().explain(&found.text);
                return Ok(Err(found));
            }
            let response = retry(&raw(wait.min(left)), wait.min(left), &request);
            match response {
                Err(found) if errors::is_unavailable(&found) => {
                    if errors::is_timeout(found.code) {
                        self.forget(&client);
                    }
                    if wait >= left {
                        return Ok(Err(found));
                    }
                    wait *= 2;
                }
                done => return Ok(done),
            }
        }
    }

    /// See [`crate::EventLog::committed`].
    pub fn committed(&self, group: &str, partitions: &[TopicPartition]) -> Result<Committed> {
        let wanted = List::of(partitions.iter().map(|at| (at, 0)));
        let found = self.request_with_retry(group, |raw| {
            let entries = raw.committed(group, Some(&wanted), true)?;
            entries.iter().try_for_each(|entry| ClientError::check(entry.code))?;
            // A partition missing from the response must not count as a partition without a committed offset.
            let is_present = |at: &TopicPartition| entries.iter().any(|entry| entry.at == *at);
            let all = if partitions.iter().all(is_present) {
                Code::RD_KAFKA_RESP_ERR_NO_ERROR
            } else {
                MISSING_ANSWER
            };
            ClientError::check(all).map(|()| entries)
        })?;
        let entries = found.map_err(|found| {
            if found.code == Code::RD_KAFKA_RESP_ERR_UNSTABLE_OFFSET_COMMIT {
                let group = group.to_owned();
                return Error::Undecided { group };
            }
            errors::request_error(format!("fetch offsets of group {group}"), &found)
        })?;
        let found: BTreeMap<_, _> = entries.into_iter().map(|e| (e.at, e.offset)).collect();
        let offset = |at| found.get(at).copied().filter(|offset| *offset >= 0);
        Ok(partitions.iter().map(|at| (at.clone(), offset(at))).collect())
    }

    /// See [`crate::EventLog::set_committed`].
    pub fn set_committed(&self, group: &str, offsets: &[(TopicPartition, Offset)]) -> Result<()> {
        let wanted = List::of(offsets.iter().map(|(at, offset)| (at, *offset)));
        let found = self.request_with_retry(group, |raw| {
            let entries = raw.set_committed(group, &wanted)?;
            entries.iter().try_for_each(|entry| ClientError::check(entry.code))
        })?;
        found.map_err(|found| set_error(group, &found))
    }

    /// See [`crate::EventLog::groups`].
    pub fn groups(&self) -> Result<Vec<GroupInfo>> {
        let names = self.request_with_retry(&self.config.client_id, |raw| raw.groups())?;
        let mut names = names.map_err(|found| errors::request_error("list groups", &found))?;
        names.sort();
        let found: Result<Vec<_>> = in_parallel(&names, |name| self.group_info(name)).into_iter().collect();
        // If a group is not found, it was deleted after it was listed.
        Ok(found?.into_iter().flatten().collect())
    }

    /// Describes a group without its committed offsets; `None` if it does not exist.
    pub fn assignment(&self, name: &str) -> Result<Option<GroupInfo>> {
        match self.request_with_retry(name, |raw| raw.group(name))? {
            Ok(group) => Ok(Some(info(group, Vec::new()))),
            Err(found) if found.code == Code::RD_KAFKA_RESP_ERR_GROUP_ID_NOT_FOUND => Ok(None),
            Err(found) => Err(errors::request_error(format!("describe group {name}"), &found)),
        }
    }

    /// See [`crate::EventLog::group_info`].
    pub fn group_info(&self, name: &str) -> Result<Option<GroupInfo>> {
        let found = self.request_with_retry(name, |raw| Ok((raw.group(name)?, raw.committed(name, None, false)?)))?;
        match found {
            Ok((group, offsets)) => Ok(Some(info(group, offsets))),
            Err(found) if found.code == Code::RD_KAFKA_RESP_ERR_GROUP_ID_NOT_FOUND => Ok(None),
            Err(found) => Err(errors::request_error(format!("describe group {name}"), &found)),
        }
    }
}

/// Converts the error of setting committed offsets.
pub fn set_error(group: &str, found: &ClientError) -> Error {
    let attempted = format!("set offsets of group {group}");
    match found.code {
        Code::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID | Code::RD_KAFKA_RESP_ERR_NON_EMPTY_GROUP => Error::Rejected {
            attempted,
            reason: "the group has active members; stop them first".to_owned(),
        },
        _ => errors::request_error(attempted, found),
    }
}

fn info(group: Group, offsets: Vec<Entry>) -> GroupInfo {
    let member = |member: GroupMember| MemberInfo {
        name: if member.instance_id.is_empty() {
            member.client_id
        } else {
            format!("{}/{}", member.client_id, member.instance_id)
        },
        instance: (!member.instance_id.is_empty()).then_some(member.instance_id),
        partitions: member.partitions.into_iter().map(|entry| entry.at).collect(),
    };
    let offsets = offsets
        .into_iter()
        .filter(|entry| entry.offset >= 0)
        .map(|entry| (entry.at, entry.offset));
    GroupInfo {
        group: group.name,
        state: group.state,
        members: group.members.into_iter().map(member).collect(),
        committed: offsets.collect(),
    }
}
