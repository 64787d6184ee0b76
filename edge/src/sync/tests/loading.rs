//! Polls before the first snapshot of a view has ended.

use super::*;

#[tokio::test]
async fn first_complete_page_waits_for_the_first_snapshot() {
    let harness = harness();
    let identity = user("1", &["table:1"]);
    let state = |page: &Value| (page["complete"].clone(), page["stale"].clone());
    let loading = (json!(false), json!(["orders"]));
    // Nothing was written yet.
    let (page, first) = harness.page(&identity, SyncRequest::default()).await;
    assert_eq!(state(&page), loading);
    let wait_ms = page["poll_after_ms"].as_u64().unwrap();
    assert!((1_600..=2_400).contains(&wait_ms), "{wait_ms}");
    harness.commit(&[("table:1", 1, Some("{}"))]);
    let (page, second) = harness.page(&identity, after(&first)).await;
    assert_eq!(state(&page), loading, "a part of the table");
    // A long poll waits, and ends with a page and not with 304, because the device has no complete state.
    let began = Instant::now();
    let (page, third) = harness.page(&identity, waiting(&second, SECOND)).await;
    assert_eq!((state(&page), page["changes"].clone()), (loading, json!([])));
    assert!(began.elapsed() >= SECOND);
    let request = waiting(&third, 20 * SECOND);
    let (answer, ()) = tokio::join!(harness.page(&identity, request), async {
        until(|| harness.polls.context.replica.notifier().waiting() == 1).await;
        harness.loaded(true);
    });
    assert_eq!(state(&answer.0), (json!(true), json!([])));
    assert!(began.elapsed() < 10 * SECOND, "the end of the snapshot wakes the poll");
    let same = harness.poll(&identity, after(&answer.1)).await.unwrap();
    assert_eq!(same, SyncResponse::NotModified);
}

#[tokio::test]
async fn view_that_is_not_loaded_does_not_stop_a_device_with_a_complete_state() {
    let harness = harness();
    let identity = user("1", &["table:1"]);
    harness.loaded(true);
    let cursor = harness.synced(&identity).await;
    // A view that was removed and added again.
    harness.loaded(false);
    let (page, cursor) = harness.page(&identity, after(&cursor)).await;
    assert_eq!(
        (page["complete"].clone(), page["stale"].clone()),
        (json!(true), json!(["orders"]))
    );
    let same = harness.poll(&identity, after(&cursor)).await.unwrap();
    assert_eq!(same, SyncResponse::NotModified);
    let (fresh, _) = harness.page(&identity, SyncRequest::default()).await;
    assert_eq!(fresh["complete"], json!(false), "a device without state waits");
}
