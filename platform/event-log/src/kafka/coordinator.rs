//! Groups and their committed offsets, asked of their coordinators through a client of its own.
//!
//! Two faults of the library (2.12.1) would end the process when brokers come and go. `rd_kafka_admin_coord_request` fails
//! an assertion when a request has passed its time limit and its coordinator is reached only then: so that limit is never
//! reached; who waits here has a shorter patience, and a client that was waited for in vain is thrown away with all that
//! it has under way. `rd_kafka_handle_OffsetFetch` (librdkafka issue 5040) reads a null pointer on a client that has no group of its own when a
//! coordinator answers that it is none any more: so this client is a consumer with a group, which it never joins.
//!
//! Guarantees: a broker that is down or comes back costs an error at most. Never: a member of a group.

use super::admin::retry;
use super::client::admin::{Admin as Raw, Group};
use super::client::list::{Entry, List};
use super::client::{Code, ClientError, Handle, ClientKind, Queue};
use super::{Config, errors, settings};
use crate::{Committed, Error, GroupInfo, MemberInfo, Offset, Result, TopicPartition};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The longest limit that the library takes.
const LIBRARY_LIMIT: Duration = Duration::from_secs(60 * 60);
/// How long an answer is waited for at first. The library forgets a request that finds no coordinator at its first look,
/// as on a cluster whose first group this is, so that waiting longer for that one would not help.
const WAIT_FIRST: Duration = Duration::from_millis(500);

/// What stands for an answer that leaves a partition out; it is asked for again.
const MISSING_ANSWER: Code = Code::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE;

/// Asks coordinators.
#[derive(Debug)]
pub struct Coordinators {
    config: Config,
    client: Mutex<Option<Arc<Handle>>>,
}

impl Coordinators {
    /// Nothing is connected before the first question.
    pub fn new(config: &Config) -> Coordinators {
        Coordinators {
            config: config.clone(),
            client: Mutex::default(),
        }
    }

    /// The client; a new one has this group.
    fn client(&self, group: &str) -> Result<Arc<Handle>> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*client {
            // Nobody else looks at what it has to say, and says what it may have forgotten.
            let errors = Queue::main(client);
            while errors.poll(Duration::ZERO).is_some() {}
            client.remind();
            return Ok(client.clone());
        }
        let made = Handle::new(ClientKind::Consumer, &settings::coordinators(&self.config, group));
        Ok(client.insert(made.map_err(errors::setting_error)?).clone())
    }

    /// Throws a client away, unless another has taken its place already.
    fn forget(&self, used: &Arc<Handle>) {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let own = client.take_if(|client| Arc::ptr_eq(client, used));
        drop(client);
        drop(own);
    }

    /// Repeats a request while it may help, with a patience that grows, within the time limit.
    fn ask<T>(&self, group: &str, request: impl Fn(&Raw<'_>) -> Result<T, ClientError>) -> Result<Result<T, ClientError>> {
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
            // Before some broker answers nothing is asked: it would only be waited for in vain.
            if let Err(mut found) = raw(left).await_any_broker() {
                found.text = client.reach().explain(&found.text);
                return Ok(Err(found));
            }
            let asked = retry(&raw(wait.min(left)), wait.min(left), &request);
            match asked {
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
        let found = self.ask(group, |raw| {
            let entries = raw.committed(group, Some(&wanted), true)?;
            entries.iter().try_for_each(|entry| ClientError::check(entry.code))?;
            // "Not told" must never pass for "none".
            let told = |at: &TopicPartition| entries.iter().any(|entry| entry.at == *at);
            let all = if partitions.iter().all(told) {
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
        let found = self.ask(group, |raw| {
            let entries = raw.set_committed(group, &wanted)?;
            entries.iter().try_for_each(|entry| ClientError::check(entry.code))
        })?;
        found.map_err(|found| set_error(group, &found))
    }

    /// See [`crate::EventLog::groups`].
    pub fn groups(&self) -> Result<Vec<GroupInfo>> {
        let names = self.ask(&self.config.client_id, |raw| raw.groups())?;
        let mut names = names.map_err(|found| errors::request_error("list groups", &found))?;
        names.sort();
        let mut groups = Vec::with_capacity(names.len());
        for name in names {
            // One that is not found has ended since it was listed.
            groups.extend(self.group_info(&name)?);
        }
        Ok(groups)
    }

    /// A group with its members' partitions and without its offsets; `None` when there is none of this name.
    pub fn assignment(&self, name: &str) -> Result<Option<GroupInfo>> {
        match self.ask(name, |raw| raw.group(name))? {
            Ok(group) => Ok(Some(info(group, Vec::new()))),
            Err(found) if found.code == Code::RD_KAFKA_RESP_ERR_GROUP_ID_NOT_FOUND => Ok(None),
            Err(found) => Err(errors::request_error(format!("describe group {name}"), &found)),
        }
    }

    /// See [`crate::EventLog::group_info`].
    pub fn group_info(&self, name: &str) -> Result<Option<GroupInfo>> {
        let found = self.ask(name, |raw| Ok((raw.group(name)?, raw.committed(name, None, false)?)))?;
        match found {
            Ok((group, offsets)) => Ok(Some(info(group, offsets))),
            Err(found) if found.code == Code::RD_KAFKA_RESP_ERR_GROUP_ID_NOT_FOUND => Ok(None),
            Err(found) => Err(errors::request_error(format!("describe group {name}"), &found)),
        }
    }
}

/// What it means that a group's offsets could not be set.
pub fn set_error(group: &str, found: &ClientError) -> Error {
    let attempted = format!("set offsets of group {group}");
    match found.code {
        Code::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID | Code::RD_KAFKA_RESP_ERR_NON_EMPTY_GROUP => Error::Refused {
            attempted,
            reason: "it has live members; stop them first".to_owned(),
        },
        _ => errors::request_error(attempted, found),
    }
}

fn info(group: Group, offsets: Vec<Entry>) -> GroupInfo {
    let member = |(client, instance, partitions): (String, String, Vec<Entry>)| MemberInfo {
        name: if instance.is_empty() {
            client
        } else {
            format!("{client}/{instance}")
        },
        instance: (!instance.is_empty()).then_some(instance),
        partitions: partitions.into_iter().map(|entry| entry.at).collect(),
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
