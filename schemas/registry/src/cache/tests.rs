//! Cache tests with a registry that counts its calls.

use super::*;
use std::sync::atomic::{AtomicU32, Ordering};

/// Contains schemas 1 and 2, counts calls, and can be unavailable.
#[derive(Default)]
struct Fake {
    calls: AtomicU32,
    gone: std::sync::atomic::AtomicBool,
}

impl Manage for Fake {
    fn list_subjects(&self, _: Deleted) -> Result<Vec<String>> {
        Ok(vec![])
    }
    fn list_versions(&self, _: &str, _: Deleted) -> Result<Vec<u32>> {
        Ok(vec![])
    }
    fn any_version(&self, subject: &str, version: Version) -> Result<Registered> {
        self.version(subject, version)
    }
    fn delete_subject(&self, _: &str, _: Deletion) -> Result<Vec<u32>> {
        Ok(vec![1])
    }
    fn delete_version(&self, _: &str, _: Version, _: Deletion) -> Result<u32> {
        Ok(1)
    }
    fn remove_level(&self, _: Option<&str>) -> Result<Level> {
        Ok(Level::Full)
    }
    fn mode(&self, _: Option<&str>) -> Result<Option<Mode>> {
        Ok(None)
    }
    fn set_mode(&self, _: Option<&str>, _: Mode) -> Result<()> {
        Ok(())
    }
    fn remove_mode(&self, _: &str) -> Result<Mode> {
        Ok(Mode::ReadOnly)
    }
}

impl Registry for Fake {
    fn register(&self, _: &str, _: &str) -> Result<SchemaId> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        Ok(SchemaId(1))
    }
    fn lookup(&self, subject: &str, _: &str) -> Result<Registered> {
        Err(Error::SubjectNotFound {
            subject: subject.to_owned(),
        })
    }
    fn by_id(&self, id: SchemaId) -> Result<Arc<str>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.gone.load(Ordering::SeqCst) {
            return Err(Error::Unavailable {
                registry: "fake".into(),
                attempted: "x".into(),
                reason: "gone".into(),
            });
        }
        match id.0 {
            1 => Ok("\"long\"".into()),
            2 => Ok("message Protobuf {}".into()),
            _ => Err(Error::SchemaNotFound { id: Some(id) }),
        }
    }
    fn uses(&self, _: SchemaId) -> Result<Vec<(String, u32)>> {
        Ok(vec![])
    }
    fn subjects(&self) -> Result<Vec<String>> {
        Ok(vec![])
    }
    fn versions(&self, _: &str) -> Result<Vec<u32>> {
        Ok(vec![])
    }
    fn version(&self, subject: &str, _: Version) -> Result<Registered> {
        Err(Error::SubjectNotFound {
            subject: subject.to_owned(),
        })
    }
    fn test_compatibility(&self, _: &str, _: Version, _: &str) -> Result<Vec<String>> {
        Ok(vec![])
    }
    fn level(&self, _: Option<&str>) -> Result<Option<Level>> {
        Ok(None)
    }
    fn set_level(&self, _: Option<&str>, _: Level) -> Result<()> {
        Ok(())
    }
    fn description(&self) -> String {
        "fake".to_owned()
    }
}

fn fetch_from_eight_threads(catalog: &Catalog, id: u32) -> Vec<Result<Arc<Schema>>> {
    let start = std::sync::Barrier::new(8);
    std::thread::scope(|scope| {
        let fetch = || {
            start.wait();
            catalog.schema(SchemaId(id))
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(fetch)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn schema_is_fetched_once() {
    let fake = Arc::new(Fake::default());
    let catalog = Catalog::new(fake.clone());
    let found = fetch_from_eight_threads(&catalog, 1);
    assert!(found.iter().all(|schema| schema.as_ref().unwrap().text() == "\"long\""));
    fake.gone.store(true, Ordering::SeqCst);
    assert_eq!(&*catalog.by_id(SchemaId(1)).unwrap(), "\"long\"");
    assert_eq!(fake.calls.load(Ordering::SeqCst), 1);
}

#[test]
fn missing_schema_is_cached_for_a_while() {
    let fake = Arc::new(Fake::default());
    let catalog = Catalog::new(fake.clone());
    let found = fetch_from_eight_threads(&catalog, 9);
    assert!(
        found
            .iter()
            .all(|result| matches!(result, Err(Error::SchemaNotFound { id: Some(SchemaId(9)) })))
    );
    assert_eq!(fake.calls.load(Ordering::SeqCst), 1);
}

#[test]
fn recovered_registry_is_called_again() {
    let fake = Arc::new(Fake::default());
    fake.gone.store(true, Ordering::SeqCst);
    let catalog = Catalog::new(fake.clone());
    assert!(matches!(catalog.schema(SchemaId(1)), Err(Error::Unavailable { .. })));
    fake.gone.store(false, Ordering::SeqCst);
    let limit = Instant::now() + Duration::from_secs(10);
    while catalog.schema(SchemaId(1)).is_err() {
        assert!(Instant::now() < limit, "the schema was not requested again");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(
        fake.calls.load(Ordering::SeqCst),
        2,
        "no call while the failure was fresh"
    );
}

#[test]
fn registration_is_cached() {
    let fake = Arc::new(Fake::default());
    let catalog = Catalog::new(fake.clone());
    let schema = Arc::new(Schema::parse("\"long\"").unwrap());
    for _ in 0..3 {
        assert_eq!(catalog.register_schema("s", &schema), Ok(SchemaId(1)));
    }
    assert_eq!(catalog.schema(SchemaId(1)).unwrap().text(), "\"long\"");
    assert_eq!(
        fake.calls.load(Ordering::SeqCst),
        1,
        "and the schema is known without a call"
    );
}

#[test]
fn schema_of_another_type_has_a_text() {
    let catalog = Catalog::new(Arc::new(Fake::default()));
    assert!(matches!(catalog.schema(SchemaId(2)), Err(Error::InvalidSchema { .. })));
    assert_eq!(&*catalog.by_id(SchemaId(2)).unwrap(), "message Protobuf {}");
}

#[test]
fn deleted_schema_is_registered_again() {
    let fake = Arc::new(Fake::default());
    let catalog = Catalog::new(fake.clone());
    let register = || {
        catalog.register("s", "\"long\"").unwrap();
        fake.calls.load(Ordering::SeqCst)
    };
    assert_eq!((register(), register()), (1, 1));
    catalog.delete_version("s", Version::Latest, Deletion::Soft).unwrap();
    assert_eq!((register(), register()), (2, 2));
    catalog.delete_subject("s", Deletion::Soft).unwrap();
    assert_eq!(register(), 3);
}
