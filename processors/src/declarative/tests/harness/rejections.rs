//! Records and timers whose effects the log rejects.

use super::{Harness, InputRecord, tx_header};
use schemas::codec::Datum;
use streams::{RejectedTimer, State};

impl Harness {
    /// An event whose effects the log rejects.
    pub fn reject(&mut self, name: &str, row: &[Datum<'_>]) {
        let record = self.event_of(name, row, 1);
        self.give_up(record);
    }

    /// A TRUNCATE whose effects the log rejects.
    pub fn reject_truncate(&mut self, table: &str) {
        self.position += 1;
        let record = InputRecord {
            topic: self.topology.names().change("shop"),
            key: format!("[\"{table}\"]").into_bytes(),
            value: None,
            headers: vec![tx_header(self.position, 0, true)],
            at: i64::try_from(self.position).unwrap(),
        };
        self.give_up(record);
    }

    fn give_up(&mut self, record: InputRecord) {
        self.fed.entry(record.topic.clone()).or_default().push(record.clone());
        let batch = self.next(&record);
        self.driver_of(&record.topic).give_up(&batch).unwrap();
    }

    /// Lets a millisecond pass in the first sub-topology. If `is_rejected`, the log rejects the steps of its timers.
    /// Returns the number of dead letters.
    pub fn tick_rejecting(&mut self, is_rejected: impl Fn(&State) -> bool) -> usize {
        self.now += 1;
        let (now, (_, driver)) = (self.now, &mut self.subs[0]);
        driver.advance(now).unwrap();
        if !is_rejected(driver.state()) {
            return 0;
        }
        driver.abort().unwrap();
        let reactions = driver.reject_timers(now).unwrap();
        let letters = reactions.iter().filter(|of| **of == RejectedTimer::DeadLetter);
        letters.count()
    }
}
