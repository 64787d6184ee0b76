//! Edges and devices of the simulation: real replicas that read `view.log`, die at their failpoints, lose batches and
//! are built anew; devices whose pages get lost, come twice, come late, and come from any replica.
//!
//! Checked at every page, commit, 304 and complete replica: I1, I2, I4–I6, I9–I11 of the design.
//! Never: a device that knows more than its pages and its cursor's text.

use super::oracle::Oracle;
use super::{BUCKETS, DELETE_RETENTION, HORIZON, LAG, MARGIN, PARTITIONS, REFRESH, bucket_of, partition_of, scope_of};
use event_log::{Millis, Offset, TopicPartition};
use std::collections::{BTreeMap, BTreeSet};
use streams::driver::simulation::{Broker, Disk, Rng, batch, mortal};
use streams::{StoreName, Stores};
use views::cursor::{Cursor, Key, Keyring, Owner};
use views::replica::{Options, Times};
use views::{Answer, Bucket, BucketId, Page, Replica, Request, row_hash};

type Verdict<T = ()> = Result<T, String>;

/// Where each partition stands.
type Closed = BTreeMap<i32, Offset>;
/// A bucket's rows by (view, key): version and JSON.
type Rows = BTreeMap<(String, String), ([u8; 17], Vec<u8>)>;

fn id(bucket: char) -> BucketId {
    BucketId::of(&bucket_of(bucket))
}

/// One edge's replica.
struct Edge {
    disk: Disk,
    replica: Replica,
    down_until: Millis,
}

impl Edge {
    fn over(disk: Disk, now: Millis) -> Verdict<Edge> {
        let name = StoreName {
            application: "edge".to_owned(),
            store: "views".to_owned(),
            partition: 0,
        };
        let store = disk.open(&name).map_err(|e| e.to_string())?;
        let times = Times {
            compaction_lag_ms: LAG,
            delete_retention_ms: DELETE_RETENTION,
            margin_ms: MARGIN,
            refresh_ms: REFRESH,
            proof_ms: i64::MAX / 4,
        };
        // Rows beyond some two are spilled and a closing is applied row by row, so that every path through the store is
        // taken and a replica may be killed between two pieces.
        let options = Options {
            partitions: (0..PARTITIONS).collect(),
            times,
            log: 5,
            held_bytes_max: 200,
            flush_bytes: 150,
            now,
        };
        let replica = Replica::open(store, options).map_err(|e| format!("a replica does not open: {e}"))?;
        Ok(Edge {
            disk,
            replica,
            down_until: 0,
        })
    }
}

/// A page on its way, with what was asked.
struct Answered {
    asked: Option<String>,
    text: String,
    page: Page,
    claims: &'static str,
}

/// One device.
struct Device {
    who: char,
    claims: &'static str,
    cursor: Option<String>,
    /// The cursor came with a page that said `complete`: what the device holds is shown to its user.
    whole: bool,
    /// Views that the last page named as stale.
    stale: BTreeSet<String>,
    rows: BTreeMap<BucketId, Rows>,
    committed: Option<Closed>,
    asleep_until: Millis,
    rows_max: usize,
    late: Option<Answered>,
}

impl Device {
    fn new(number: usize) -> Self {
        Device {
            who: if number.is_multiple_of(2) { 'P' } else { 'Q' },
            claims: "a",
            cursor: None,
            whole: false,
            stale: BTreeSet::new(),
            rows: BTreeMap::new(),
            committed: None,
            asleep_until: 0,
            rows_max: number + 1,
            late: None,
        }
    }

    /// Applies a page in the order that the protocol gives, and stores the cursor with it.
    fn apply(&mut self, page: &Page, cursor: &str) {
        if page.reset_all {
            self.rows.clear();
        }
        for bucket in &page.drops {
            self.rows.remove(bucket);
        }
        for (bucket, _) in &page.resets {
            self.rows.insert(*bucket, Rows::new());
        }
        for change in &page.changes {
            let parts = change.parts();
            let rows = self.rows.entry(change.bucket).or_default();
            let key = (parts.view.to_owned(), parts.key.to_owned());
            match parts.json {
                Some(json) => drop(rows.insert(key, (parts.version, json.to_vec()))),
                None => drop(rows.remove(&key)),
            }
        }
        self.cursor = Some(cursor.to_owned());
        self.whole = page.complete;
        self.stale = page.stale.iter().cloned().collect();
    }

    /// The bucket's hash as the device computes it.
    fn hash(&self, bucket: BucketId) -> u128 {
        let rows = self.rows.get(&bucket).into_iter().flatten();
        rows.fold(0, |sum, ((view, key), (version, _))| {
            sum.wrapping_add(row_hash(view, key.as_bytes(), version))
        })
    }
}

/// Edges, devices, and the oracles that they are held against.
pub struct Readers {
    pub oracles: Vec<Oracle>,
    edges: Vec<Edge>,
    devices: Vec<Device>,
    keys: Keyring,
}

fn hold(is: bool, text: impl FnOnce() -> String) -> Verdict {
    if is { Ok(()) } else { Err(text()) }
}

impl Readers {
    pub fn new(now: Millis) -> Self {
        let edges = (0..3).map(|_| Edge::over(Disk::default(), now));
        Readers {
            oracles: (0..PARTITIONS).map(Oracle::new).collect(),
            edges: edges.map(|edge| edge.expect("an empty replica opens")).collect(),
            devices: (0..3).map(Device::new).collect(),
            keys: Keyring::new(&[Key { id: 1, secret: [7; 32] }]).expect("a key of 32 bytes"),
        }
    }

    fn rebuild(&mut self, i: usize, now: Millis) -> Verdict {
        self.edges[i] = Edge::over(Disk::default(), now)?;
        Ok(())
    }

    /// A replica that died opens again over what its disk still has.
    fn reopen(&mut self, i: usize, lost: usize, now: Millis) -> Verdict {
        self.edges[i].disk.lose(lost);
        self.edges[i] = Edge::over(self.edges[i].disk.clone(), now)?;
        Ok(())
    }

    /// A replica reads on; with `dies` it dies at the failpoint of that number, if it passes so many.
    pub fn read(&mut self, broker: &mut Broker, i: usize, most: usize, dies: Option<u32>, lost: usize) -> Verdict {
        let now = broker.now();
        if self.edges[i].replica.expired(now) {
            broker.note("replica too old");
            self.rebuild(i, now)?;
        }
        for p in 0..PARTITIONS {
            let at = TopicPartition::new("view.log", p);
            let replica = &self.edges[i].replica;
            let position = replica.positions().iter().find(|(n, _)| *n == p).map_or(0, |(_, o)| *o);
            let (batch, after) = batch(broker, &at, position, most);
            let (end, stable) = (broker.part(&at).end(), broker.part(&at).stable());
            let done = mortal(dies, || -> Verdict {
                let applied = replica.apply(p, batch.iter(), now).map_err(|e| e.to_string())?;
                hold(applied.refused == 0, || "a replica refuses a record".to_owned())?;
                if applied.need_end {
                    replica.set_end(p, end).map_err(|e| e.to_string())?;
                }
                if after >= stable {
                    replica.at_end(p, after, end, now).map_err(|e| e.to_string())?;
                }
                Ok(())
            });
            match done {
                Ok(done) => done?,
                Err(point) => {
                    broker.note(point);
                    return self.reopen(i, lost, now);
                }
            }
        }
        self.check_replica(i, now)
    }

    /// I6: what a complete replica shows against the oracle.
    fn check_replica(&self, i: usize, now: Millis) -> Verdict {
        let replica = &self.edges[i].replica;
        for health in replica.health(now).iter().filter(|health| health.not_ready.is_none()) {
            let p = usize::try_from(health.partition).unwrap();
            let state = self.oracles[p].state(health.closed)?;
            for bucket in BUCKETS.into_iter().filter(|b| partition_of(*b) == health.partition) {
                let rows = replica.rows(health.partition, id(bucket)).map_err(|e| e.to_string())?;
                let live = |c: &views::Change| {
                    let parts = c.parts();
                    let key = (parts.view.to_owned(), parts.key.to_owned());
                    Some((key, (c.offset, parts.version, parts.json?.to_vec())))
                };
                let got: BTreeMap<_, _> = rows.iter().filter_map(live).collect();
                let name = bucket_of(bucket);
                let want: BTreeMap<_, _> = state
                    .rows
                    .iter()
                    .filter(|((of, ..), _)| *of == name)
                    .map(|((_, view, key), s)| ((view.clone(), key.clone()), (s.offset, s.version, s.json.clone())))
                    .collect();
                let at = health.closed;
                hold(got == want, || {
                    format!("I6: replica {i}, bucket {name}, T {at}: replica {got:?}, oracle {want:?}")
                })?;
            }
        }
        Ok(())
    }

    /// I1, I2, I3, I5: what a device holds against the oracle.
    fn check_device(&self, d: usize, claims: &str, closed: &Closed, why: &str) -> Verdict {
        let device = &self.devices[d];
        let may: BTreeSet<BucketId> = claims.chars().map(id).collect();
        let has: BTreeSet<BucketId> = device.rows.keys().copied().collect();
        hold(has == may, || {
            format!("I5, {why}: device {d} has {has:?}, may read {may:?}")
        })?;
        for bucket in claims.chars() {
            let p = partition_of(bucket);
            let at = closed.get(&p).copied().unwrap_or(-1);
            let state = self.oracles[usize::try_from(p).unwrap()].state(at)?;
            let name = bucket_of(bucket);
            let want: Rows = state
                .rows
                .iter()
                .filter(|((of, ..), _)| *of == name)
                .map(|((_, view, key), s)| ((view.clone(), key.clone()), (s.version, s.json.clone())))
                .collect();
            let got = &device.rows[&id(bucket)];
            hold(*got == want, || {
                format!("I2, {why}: device {d}, bucket {name}, T {at}: device {got:?}, oracle {want:?}")
            })?;
        }
        Ok(())
    }

    /// One poll; whether it brought the device to a complete state. `lossy` lets the answer get lost, come late or twice.
    pub fn poll(&mut self, broker: &mut Broker, rng: &mut Rng, d: usize, i: usize, lossy: bool) -> Verdict<bool> {
        let now = broker.now();
        if lossy && rng.chance(0.2) {
            self.edges[i].replica.prune(now, 100).map_err(|e| e.to_string())?;
        }
        let (device, edge) = (&self.devices[d], &self.edges[i]);
        let bucket = |b: char| Bucket::new(bucket_of(b), scope_of(b), PARTITIONS);
        let readable: Vec<Bucket> = device.claims.chars().map(bucket).collect();
        let owner = Owner::new(&device.who.to_string(), &d.to_string());
        let cursor = device.cursor.as_deref().and_then(|c| self.keys.open(c));
        let known = cursor.clone().filter(|c| c.owner == owner);
        let request = Request {
            owner,
            readable: &readable,
            cursor,
            rules: 1,
            rows_max: if lossy { device.rows_max } else { 5 },
            bytes_max: 1 << 20,
            now,
            patient: lossy && rng.chance(0.5),
        };
        let reads = edge.disk.reads();
        let answer = views::delta(&edge.replica, &request).map_err(|e| e.to_string())?;
        let health = edge.replica.health(now);
        let closed: Closed = health.iter().map(|h| (h.partition, h.closed)).collect();
        match answer {
            Answer::NotReady(_) => broker.note("not ready"),
            Answer::Behind => broker.note("behind"),
            Answer::NotModified => {
                broker.note("not modified");
                hold(edge.disk.reads() == reads, || {
                    "an idle poll has read the store".to_owned()
                })?;
                hold(device.whole, || {
                    format!("liveness: device {d} gets 304 for pages that it was never told to commit")
                })?;
                let reads = |p: &i32| known.as_ref().is_some_and(|c| c.points.contains_key(p));
                let read: Closed = closed.clone().into_iter().filter(|(p, _)| reads(p)).collect();
                hold(request.patient || self.stale(&read)? == device.stale, || {
                    format!("stale views: 304 for device {d}, which knows of {:?}", device.stale)
                })?;
                self.check_device(d, device.claims, &closed, "304")?;
                return Ok(true);
            }
            Answer::Page(page) => {
                broker.note(if page.complete { "complete" } else { "page" });
                check_page(&page, known.as_ref(), device.claims, now)?;
                let answered = Answered {
                    asked: device.cursor.clone(),
                    text: self.keys.seal(&page.cursor),
                    claims: device.claims,
                    page: *page,
                };
                return self.arrive(broker, rng, d, answered, lossy);
            }
        }
        Ok(false)
    }

    fn arrive(&mut self, broker: &mut Broker, rng: &mut Rng, d: usize, page: Answered, lossy: bool) -> Verdict<bool> {
        if lossy && rng.chance(0.1) {
            broker.note("page lost");
            let late = rng.chance(0.5).then_some(page);
            self.devices[d].late = late;
            return Ok(false);
        }
        let complete = page.page.complete;
        self.take(broker.now(), rng, d, &page, lossy)?;
        if rng.chance(0.1) {
            broker.note("page repeated");
            self.devices[d].apply(&page.page, &page.text);
        }
        Ok(complete)
    }

    /// A page that was late arrives: the device takes it only as the answer to the cursor that it holds.
    fn arrive_late(&mut self, broker: &mut Broker, rng: &mut Rng, d: usize) -> Verdict {
        let Some(page) = self.devices[d].late.take() else {
            return Ok(());
        };
        if page.asked != self.devices[d].cursor {
            broker.note("page out of order");
            return Ok(());
        }
        broker.note("page late");
        self.take(broker.now(), rng, d, &page, true)
    }

    fn take(&mut self, now: Millis, rng: &mut Rng, d: usize, answered: &Answered, lossy: bool) -> Verdict {
        let Answered { page, text, claims, .. } = answered;
        let device = &mut self.devices[d];
        let owner = |text: &String| self.keys.open(text).map(|c| c.owner);
        if device.cursor.as_ref().and_then(owner) != Some(page.cursor.owner) {
            device.committed = None;
        }
        device.apply(page, text);
        if !page.complete {
            if lossy && rng.chance(0.04) {
                device.asleep_until = now + rng.pick(&[700, 3000, 8000]);
            }
            return Ok(());
        }
        for (bucket, hash) in &page.hashes {
            let own = device.hash(*bucket);
            hold(own == *hash, || format!("I10: hash of {bucket} on device {d}"))?;
        }
        let closed: Closed = page.cursor.points.iter().map(|(p, point)| (*p, point.closed)).collect();
        for (p, before) in device.committed.replace(closed.clone()).unwrap_or_default() {
            hold(closed.get(&p).is_none_or(|now| *now >= before), || {
                format!("I4: T of device {d} went back in partition {p}")
            })?;
        }
        let stale = self.stale(&closed)?;
        let said = &self.devices[d].stale;
        hold(*said == stale, || {
            format!("stale views: page {said:?}, oracle {stale:?}")
        })?;
        self.check_device(d, claims, &closed, "commit")
    }

    /// The views that are stale where the partitions stand.
    fn stale(&self, closed: &Closed) -> Verdict<BTreeSet<String>> {
        let mut stale = BTreeSet::new();
        for (p, at) in closed {
            let state = self.oracles[usize::try_from(*p).unwrap()].state(*at)?;
            stale.extend(state.stale.iter().map(|(view, _)| view.clone()));
        }
        Ok(stale)
    }

    /// Something that happens to edges and devices.
    pub fn moment(&mut self, broker: &mut Broker, rng: &mut Rng) -> Verdict {
        let (i, d, now) = (rng.below(3), rng.below(3), broker.now());
        let up = self.edges[i].down_until <= now;
        match rng.below(100) {
            0..30 if up => {
                let (most, dies) = (rng.pick(&[1, 3, 99, 99]), rng.chance(0.075));
                let (dies, lost) = (dies.then(|| u32::try_from(rng.below(6)).unwrap()), rng.below(4));
                self.read(broker, i, most, dies, lost)?;
            }
            30..75 if up && self.devices[d].asleep_until <= now => {
                let complete = self.poll(broker, rng, d, i, true)?;
                // In the middle of a round: a replica that is new knows other closings than the one that began it.
                if !complete && rng.chance(0.05) {
                    let other = rng.below(3);
                    broker.note("replica wiped");
                    self.rebuild(other, now)?;
                    self.read(broker, other, usize::MAX, None, 0)?;
                }
            }
            75..78 => self.arrive_late(broker, rng, d)?,
            78..80 => self.edges[i].down_until = now + rng.pick(&[100, 900, 3000, 9000, 15_000]),
            80 if rng.chance(0.3) => {
                broker.note("replica wiped");
                self.rebuild(i, now)?;
            }
            81 => self.reopen(i, rng.below(6), now)?,
            82..84 => drop(self.edges[i].replica.prune(now, 100).map_err(|e| e.to_string())?),
            84..88 => self.devices[d].claims = rng.pick(&["", "a", "c", "ac", "b"]),
            88..91 => self.devices[d].rows_max = rng.pick(&[1, 1, 2, 3, 5]),
            91 => self.devices[d].asleep_until = now + rng.pick(&[300, 2000, 8000, 11_000]),
            93 => {
                // Until its cursor is as old as it may be: what was held back then is older still.
                let cursor = self.devices[d].cursor.as_deref().and_then(|c| self.keys.open(c));
                if let Some(cursor) = cursor {
                    let wakes = oldest(&cursor).saturating_add(HORIZON - rng.pick(&[30, 150, 400]));
                    self.devices[d].asleep_until = wakes.min(now + HORIZON);
                }
            }
            92 if rng.chance(0.3) => self.devices[d].who = if self.devices[d].who == 'P' { 'Q' } else { 'P' },
            _ => {}
        }
        Ok(())
    }

    /// Faults have ended: every replica is complete, and every device comes to the same state.
    pub fn verify(&mut self, broker: &mut Broker, rng: &mut Rng) -> Verdict {
        let now = broker.now();
        for i in 0..self.edges.len() {
            if rng.chance(0.3) {
                self.rebuild(i, now)?;
            }
            self.read(broker, i, usize::MAX, None, 0)?;
            for health in self.edges[i].replica.health(now) {
                let ready = health.not_ready.is_none() && !health.holds_back;
                hold(ready, || {
                    format!("liveness: replica {i} at the end of a quiet log: {health:?}")
                })?;
            }
        }
        for d in 0..self.devices.len() {
            let mut complete = false;
            for _ in 0..300 {
                let i = rng.below(3);
                complete = self.poll(broker, rng, d, i, false)?;
                if complete {
                    break;
                }
            }
            hold(complete, || format!("liveness: device {d} never completes"))?;
        }
        Ok(())
    }
}

/// I5, I9 and I11: a page holds no bucket that may not be read and no row twice; it begins anew when the cursor is older
/// than the horizon or none of ours, and never otherwise.
fn check_page(page: &Page, cursor: Option<&Cursor>, claims: &str, now: Millis) -> Verdict {
    let may: BTreeSet<BucketId> = claims.chars().map(id).collect();
    let named = page.resets.iter().map(|r| r.0);
    let mut named = named.chain(page.changes.iter().map(|c| c.bucket));
    hold(named.all(|b| may.contains(&b)), || {
        "I5: a page holds an unreadable bucket".to_owned()
    })?;
    let mut seen = BTreeSet::new();
    let fresh = |c: &views::Change| seen.insert((c.bucket, c.parts().view.to_owned(), c.parts().key.to_owned()));
    let once = page.changes.iter().all(fresh);
    hold(once, || "I11: a page holds a row twice".to_owned())?;
    let old = cursor.is_none_or(|c| oldest(c) < now - HORIZON);
    hold(page.reset_all == old, || {
        format!("I9, I11: reset of everything {}, called for {old}", page.reset_all)
    })
}

/// The oldest time of a cursor, of its base and of its round.
fn oldest(cursor: &Cursor) -> Millis {
    let round = cursor.round.iter().flat_map(|r| r.points.values());
    let times = cursor.points.values().chain(round).map(|p| p.time);
    times.min().unwrap_or(Millis::MAX)
}
