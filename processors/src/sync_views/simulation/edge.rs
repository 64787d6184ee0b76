//! Edges and devices of the simulation: real replicas that read `view.log`, crash at their failpoints, lose unsynced
//! batches and are rebuilt; devices whose pages are lost, repeated or delayed, and come from any replica.
//!
//! Each page, commit, 304 and complete replica is checked against I1, I2, I4 to I6 and I9 to I11 of
//! docs/protocol/view-sync.md. A device uses only its pages and the text of its cursor.

use super::oracle::Oracle;
use super::page::{CheckResult, check, check_page, id, oldest};
use super::{BUCKETS, DELETE_RETENTION, HORIZON, LAG, MARGIN, PARTITIONS, REFRESH, SNAPSHOT_VIEWS};
use super::{bucket_of, partition_of, scope_of};
use event_log::{Millis, Offset, TopicPartition};
use std::collections::{BTreeMap, BTreeSet};
use streams::{StoreName, Stores};
use streams_test::simulation::{Broker, Disk, Rng, crash_at};
use views::cursor::{Key, Keyring, Owner};
use views::replica::{Options, Times};
use views::{Bucket, BucketId, DeltaRequest, DeltaResult, Page, Replica, SnapshotView, row_hash};

/// T of each partition.
type EndMarkers = BTreeMap<i32, Offset>;
/// A bucket's rows by (view, key): version and JSON.
type Rows = BTreeMap<(String, String), ([u8; 17], Vec<u8>)>;

/// An edge with its replica.
struct Edge {
    disk: Disk,
    replica: Replica,
    down_until: Millis,
}

impl Edge {
    fn over(disk: Disk, now: Millis) -> CheckResult<Edge> {
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
        // With these limits, pending rows beyond about two are kept in the store only, and a transaction is applied row
        // by row. So all ways through the store are tested, and crashes between two pieces.
        let options = Options {
            partitions: (0..PARTITIONS).collect(),
            times,
            log: 5,
            pending_bytes_max: 400,
            flush_bytes: 150,
            now,
        };
        let replica = Replica::open(store, options).map_err(|e| format!("opening a replica failed: {e}"))?;
        Ok(Edge {
            disk,
            replica,
            down_until: 0,
        })
    }
}

/// Limits for one read of a replica.
struct ReadLimit {
    /// Maximum number of records to read.
    records: usize,
    /// Number of the failpoint at which it crashes.
    crashes_at: Option<u32>,
    /// Number of batches that the crash loses.
    lost: usize,
}

impl ReadLimit {
    const ALL: ReadLimit = ReadLimit {
        records: usize::MAX,
        crashes_at: None,
        lost: 0,
    };
}

/// A poll of a device.
#[derive(Clone, Copy)]
struct Poll {
    device: usize,
    edge: usize,
    /// Whether the response may be lost, delayed or repeated.
    lossy: bool,
}

/// A page in flight, with the cursor of its request.
struct Delivery {
    requested: Option<String>,
    text: String,
    page: Page,
    claims: &'static str,
}

/// One device.
struct Device {
    who: char,
    claims: &'static str,
    cursor: Option<String>,
    /// Whether the cursor came with a complete page, so that the device shows its rows to the user.
    complete: bool,
    /// Stale views of the last page.
    stale: BTreeSet<String>,
    rows: BTreeMap<BucketId, Rows>,
    committed: Option<EndMarkers>,
    /// The buckets that it has had in a complete state.
    settled: BTreeSet<BucketId>,
    asleep_until: Millis,
    rows_max: usize,
    late: Option<Delivery>,
}

impl Device {
    fn new(number: usize) -> Self {
        Device {
            who: if number.is_multiple_of(2) { 'P' } else { 'Q' },
            claims: "a",
            cursor: None,
            complete: false,
            stale: BTreeSet::new(),
            rows: BTreeMap::new(),
            committed: None,
            settled: BTreeSet::new(),
            asleep_until: 0,
            rows_max: number + 1,
            late: None,
        }
    }

    /// Applies a page in the order of docs/protocol/device-sync.md, and stores its cursor.
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
        self.complete = page.complete;
        self.stale = page.stale.iter().cloned().collect();
    }

    /// The bucket's hash, computed from the rows of the device.
    fn hash(&self, bucket: BucketId) -> u128 {
        let rows = self.rows.get(&bucket).into_iter().flatten();
        rows.fold(0, |sum, ((view, key), (version, _))| {
            sum.wrapping_add(row_hash(view, key.as_bytes(), version))
        })
    }
}

/// Edges, devices, and the oracles that they are compared with.
pub struct Readers {
    pub oracles: Vec<Oracle>,
    edges: Vec<Edge>,
    devices: Vec<Device>,
    keys: Keyring,
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

    fn rebuild(&mut self, i: usize, now: Millis) -> CheckResult {
        self.edges[i] = Edge::over(Disk::default(), now)?;
        Ok(())
    }

    /// Reopens a crashed replica with the data that survived on its disk.
    fn reopen(&mut self, i: usize, lost: usize, now: Millis) -> CheckResult {
        self.edges[i].disk.lose(lost);
        self.edges[i] = Edge::over(self.edges[i].disk.clone(), now)?;
        Ok(())
    }

    /// Lets a replica read and apply records.
    fn read(&mut self, broker: &mut Broker, i: usize, limit: &ReadLimit) -> CheckResult {
        let now = broker.now();
        if self.edges[i].replica.expired(now) {
            broker.note("replica too old");
            self.rebuild(i, now)?;
        }
        for p in 0..PARTITIONS {
            let at = TopicPartition::new("shop.view.log", p);
            let replica = &self.edges[i].replica;
            let position = replica.positions().iter().find(|(n, _)| *n == p).map_or(0, |(_, o)| *o);
            let (batch, after) = broker.batch(&at, position, limit.records);
            let (end, stable) = (broker.part(&at).end(), broker.part(&at).stable());
            let done = crash_at(limit.crashes_at, || -> CheckResult {
                let applied = if limit.records == usize::MAX {
                    replica.apply(p, batch.iter(), now)
                } else {
                    replica.apply_piece(p, batch.iter(), now)
                };
                let applied = applied.map_err(|e| e.to_string())?;
                check(applied.rejected == 0, || "a replica rejects a record".to_owned())?;
                if applied.need_end {
                    replica.set_end(p, end).map_err(|e| e.to_string())?;
                }
                if after >= stable && !applied.is_partial {
                    replica.at_end(p, after, end, now).map_err(|e| e.to_string())?;
                }
                Ok(())
            });
            match done {
                Ok(done) => done?,
                Err(point) => {
                    broker.note(point);
                    return self.reopen(i, limit.lost, now);
                }
            }
        }
        self.check_replica(i, now)
    }

    /// Invariant I6: compares a complete replica with the oracle.
    fn check_replica(&self, i: usize, now: Millis) -> CheckResult {
        let replica = &self.edges[i].replica;
        for health in replica.health(now).iter().filter(|health| health.not_ready.is_none()) {
            let p = usize::try_from(health.partition).unwrap();
            let state = self.oracles[p].state(health.end_marker)?;
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
                let at = health.end_marker;
                check(got == want, || {
                    format!(
                        "I6: complete replica {i} differs from the log in bucket {name} at T {at}: replica {got:?}, \
                         oracle {want:?}"
                    )
                })?;
            }
        }
        Ok(())
    }

    /// Invariants I1, I2, I3 and I5: compares the rows of a device with the oracle.
    fn check_device(&self, d: usize, claims: &str, end_markers: &EndMarkers, after: &str) -> CheckResult {
        let device = &self.devices[d];
        let may: BTreeSet<BucketId> = claims.chars().map(id).collect();
        let has: BTreeSet<BucketId> = device.rows.keys().copied().collect();
        check(has == may, || {
            format!("I5: after a {after}, device {d} has buckets {has:?} but may read {may:?}")
        })?;
        for bucket in claims.chars() {
            let p = partition_of(bucket);
            let at = end_markers.get(&p).copied().unwrap_or(-1);
            let state = self.oracles[usize::try_from(p).unwrap()].state(at)?;
            let name = bucket_of(bucket);
            let want: Rows = state
                .rows
                .iter()
                .filter(|((of, ..), _)| *of == name)
                .map(|((_, view, key), s)| ((view.clone(), key.clone()), (s.version, s.json.clone())))
                .collect();
            let got = &device.rows[&id(bucket)];
            check(*got == want, || {
                format!(
                    "I2: after a {after}, bucket {name} of device {d} is not its state at T {at}: device {got:?}, \
                     oracle {want:?}"
                )
            })?;
        }
        Ok(())
    }

    /// A poll; returns whether the device is complete after it. With `lossy`, the response may be lost, delayed or
    /// repeated.
    fn poll(&mut self, broker: &mut Broker, rng: &mut Rng, poll: Poll) -> CheckResult<bool> {
        let Poll {
            device: d,
            edge: i,
            lossy,
        } = poll;
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
        let request = DeltaRequest {
            owner,
            readable: &readable,
            snapshot_views: &SNAPSHOT_VIEWS.map(|view| SnapshotView {
                name: view.into(),
                writers: 1,
            }),
            cursor,
            rows_max: if lossy { device.rows_max } else { 5 },
            bytes_max: 1 << 20,
            now,
            patient: lossy && rng.chance(0.5),
        };
        let reads = edge.disk.reads();
        let answer = views::delta(&edge.replica, &request).map_err(|e| e.to_string())?;
        let health = edge.replica.health(now);
        let end_markers: EndMarkers = health.iter().map(|h| (h.partition, h.end_marker)).collect();
        match answer {
            DeltaResult::NotReady(_) => broker.note("not ready"),
            DeltaResult::Behind => broker.note("behind"),
            DeltaResult::Loading => {
                broker.note("loading");
                check(request.patient, || format!("device {d} cannot wait"))?;
            }
            DeltaResult::NotModified => {
                broker.note("not modified");
                check(edge.disk.reads() == reads, || "an idle poll read the store".to_owned())?;
                check(device.complete, || {
                    format!("I1: device {d} got 304 although its last page was not complete")
                })?;
                let reads = |p: &i32| known.as_ref().is_some_and(|c| c.points.contains_key(p));
                let read: EndMarkers = end_markers.clone().into_iter().filter(|(p, _)| reads(p)).collect();
                check(request.patient || self.stale(&read)? == device.stale, || {
                    format!(
                        "device {d} got 304 although its stale views {:?} are outdated",
                        device.stale
                    )
                })?;
                self.check_device(d, device.claims, &end_markers, "304")?;
                return Ok(true);
            }
            DeltaResult::Page(page) => {
                broker.note(if page.complete { "complete" } else { "page" });
                check_page(&page, known.as_ref(), device.claims, now)?;
                let delivery = Delivery {
                    requested: device.cursor.clone(),
                    text: self.keys.seal(&page.cursor),
                    claims: device.claims,
                    page: *page,
                };
                return self.arrive(broker, rng, poll, delivery);
            }
        }
        Ok(false)
    }

    fn arrive(&mut self, broker: &mut Broker, rng: &mut Rng, poll: Poll, page: Delivery) -> CheckResult<bool> {
        let Poll { device: d, lossy, .. } = poll;
        if lossy && rng.chance(0.1) {
            broker.note("page lost");
            let late = rng.chance(0.5).then_some(page);
            self.devices[d].late = late;
            return Ok(false);
        }
        let complete = page.page.complete;
        let falls_asleep = lossy && !complete && rng.chance(0.04);
        self.apply_page(d, &page)?;
        if falls_asleep {
            self.devices[d].asleep_until = broker.now() + rng.pick(&[700, 3000, 8000]);
        }
        if rng.chance(0.1) {
            broker.note("page repeated");
            self.devices[d].apply(&page.page, &page.text);
        }
        Ok(complete)
    }

    /// A delayed page arrives. The device applies it only if it is the response to the device's current cursor.
    fn arrive_late(&mut self, broker: &mut Broker, rng: &mut Rng, d: usize) -> CheckResult {
        let Some(page) = self.devices[d].late.take() else {
            return Ok(());
        };
        if page.requested != self.devices[d].cursor {
            broker.note("page out of order");
            return Ok(());
        }
        broker.note("page late");
        self.apply_page(d, &page)?;
        if !page.page.complete && rng.chance(0.04) {
            self.devices[d].asleep_until = broker.now() + rng.pick(&[700, 3000, 8000]);
        }
        Ok(())
    }

    fn apply_page(&mut self, d: usize, delivery: &Delivery) -> CheckResult {
        let Delivery { page, text, claims, .. } = delivery;
        let device = &mut self.devices[d];
        let owner = |text: &String| self.keys.open(text).map(|c| c.owner);
        if device.cursor.as_ref().and_then(owner) != Some(page.cursor.owner) {
            device.committed = None;
        }
        device.apply(page, text);
        let begins_again = |id: &BucketId| page.reset_all || page.resets.iter().any(|(reset, _)| reset == id);
        device.settled.retain(|id| !begins_again(id));
        if !page.complete {
            return Ok(());
        }
        for (bucket, hash) in &page.hashes {
            let own = device.hash(*bucket);
            check(own == *hash, || {
                format!("I10: device {d} computed another hash of bucket {bucket} than its page has")
            })?;
        }
        let end_markers: EndMarkers = page
            .cursor
            .points
            .iter()
            .map(|(p, point)| (*p, point.end_marker))
            .collect();
        for (p, before) in device.committed.replace(end_markers.clone()).unwrap_or_default() {
            check(end_markers.get(&p).is_none_or(|now| *now >= before), || {
                format!("I4: T of device {d} in partition {p} decreased")
            })?;
        }
        let stale = self.stale(&end_markers)?;
        let unloaded = self.unloaded(&end_markers)?;
        let device = &mut self.devices[d];
        let is_settled = device.rows.keys().all(|id| device.settled.contains(id));
        check(is_settled || unloaded.is_empty(), || {
            format!("the first complete page of device {d} was sent before views are loaded: {unloaded:?}")
        })?;
        device.settled = device.rows.keys().copied().collect();
        let sent = &device.stale;
        check(*sent == stale, || {
            format!("stale views of device {d}: page {sent:?}, oracle {stale:?}")
        })?;
        self.check_device(d, claims, &end_markers, "commit")
    }

    /// The views that are not loaded at T of any of the partitions.
    fn unloaded(&self, end_markers: &EndMarkers) -> CheckResult<BTreeSet<String>> {
        let mut unloaded = BTreeSet::new();
        for (p, at) in end_markers {
            unloaded.extend(self.oracles[usize::try_from(*p).unwrap()].state(*at)?.unloaded());
        }
        Ok(unloaded)
    }

    /// The stale views at T of each partition; a view that is not loaded is stale.
    fn stale(&self, end_markers: &EndMarkers) -> CheckResult<BTreeSet<String>> {
        let mut stale = self.unloaded(end_markers)?;
        for (p, at) in end_markers {
            let state = self.oracles[usize::try_from(*p).unwrap()].state(*at)?;
            stale.extend(state.stale.iter().map(|(view, _)| view.clone()));
        }
        Ok(stale)
    }

    /// A random action of an edge or a device.
    pub fn step(&mut self, broker: &mut Broker, rng: &mut Rng) -> CheckResult {
        let (i, d, now) = (rng.below(3), rng.below(3), broker.now());
        let up = self.edges[i].down_until <= now;
        match rng.below(100) {
            0..30 if up => {
                let (records, crashes) = (rng.pick(&[1, 3, 99, 99]), rng.chance(0.075));
                let limit = ReadLimit {
                    records,
                    crashes_at: crashes.then(|| u32::try_from(rng.below(6)).unwrap()),
                    lost: rng.below(4),
                };
                self.read(broker, i, &limit)?;
            }
            30..75 if up && self.devices[d].asleep_until <= now => {
                let poll = Poll {
                    device: d,
                    edge: i,
                    lossy: true,
                };
                let complete = self.poll(broker, rng, poll)?;
                // Within a round, a rebuilt replica may have another T than the replica that began the round.
                if !complete && rng.chance(0.05) {
                    let other = rng.below(3);
                    broker.note("replica wiped");
                    self.rebuild(other, now)?;
                    self.read(broker, other, &ReadLimit::ALL)?;
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
                // Sleeps until the cursor is almost beyond the horizon. Pending records are older than the cursor.
                let cursor = self.devices[d].cursor.as_deref().and_then(|c| self.keys.open(c));
                if let Some(cursor) = cursor {
                    let wakes = oldest(&cursor).saturating_add(HORIZON - rng.pick(&[30, 150, 400]));
                    self.devices[d].asleep_until = wakes.min(now + HORIZON);
                }
            }
            94 if rng.chance(0.2) => self.move_bucket(rng, d),
            92 if rng.chance(0.3) => self.devices[d].who = if self.devices[d].who == 'P' { 'Q' } else { 'P' },
            _ => {}
        }
        Ok(())
    }

    /// Lets the cursor of a device state that a bucket was read from another partition, as after a change of its scope.
    fn move_bucket(&mut self, rng: &mut Rng, d: usize) {
        let cursor = self.devices[d].cursor.as_deref().and_then(|c| self.keys.open(c));
        let Some(mut cursor) = cursor.filter(|c| c.round.is_none() && !c.covered.is_empty()) else {
            return;
        };
        let at = rng.below(cursor.covered.len());
        cursor.covered[at].partition = 1 - cursor.covered[at].partition;
        self.devices[d].cursor = Some(self.keys.seal(&cursor));
    }

    /// When faults have ended, every replica is complete, and every device reaches the state of the log (I1, I13).
    pub fn verify(&mut self, broker: &mut Broker, rng: &mut Rng) -> CheckResult {
        let now = broker.now();
        for i in 0..self.edges.len() {
            if rng.chance(0.3) {
                self.rebuild(i, now)?;
            }
            self.read(broker, i, &ReadLimit::ALL)?;
            for health in self.edges[i].replica.health(now) {
                let ready = health.not_ready.is_none() && !health.has_pending_rows;
                check(ready, || {
                    format!("I13: replica {i} is not complete although the log is idle: {health:?}")
                })?;
            }
        }
        for d in 0..self.devices.len() {
            let mut complete = false;
            for _ in 0..300 {
                let poll = Poll {
                    device: d,
                    edge: rng.below(3),
                    lossy: false,
                };
                complete = self.poll(broker, rng, poll)?;
                if complete {
                    break;
                }
            }
            check(complete, || format!("I1: device {d} got no complete page in 300 polls"))?;
        }
        Ok(())
    }
}
