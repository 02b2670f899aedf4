//! The registry on a real journal.

use super::super::outbound::{Progress, Subscription};
use super::table::ClientEntry;
use super::takeover::LEAVE_WAIT_MAX;
use super::*;
use crate::clock;
use crate::ingest::StoredEvents;
use crate::journal::{Config, Journal, RealDisk, Seal};
use crate::local::Local;
use std::sync::Arc;

fn open(folder: &std::path::Path) -> Arc<Registry> {
    let config = Config::of_notes(folder.join("journal"));
    let seal = Seal { format: 1, environment: "test".into(), name: None };
    let journal = Arc::new(Journal::open(&config, &seal, Arc::new(RealDisk)).expect("opens"));
    let local = Arc::new(Local::open(Arc::clone(&journal), 0).expect("opens"));
    Registry::open(StoredEvents::new(journal), local).expect("opens")
}

const QUOTAS: Quotas = Quotas { sessions: 10, sessions_of_name: 3, bytes: 1 << 20, bytes_of_name: 10_000 };

fn request(share: &str, expiry: u32) -> SessionRequest<'_> {
    SessionRequest { user: "", share, is_clean: false, expiry, will_bytes: 0, quotas: QUOTAS }
}

fn subscription(filter: &str) -> Subscription {
    Subscription { filter: filter.into(), qos: 1, id: None }
}

async fn written(registry: &Registry, wait_for: u64) {
    registry.written().wait_for(|written| *written >= wait_for).await.expect("written");
}

#[test]
fn no_two_clients_have_the_same_key() {
    let keys = [
        Key::new("devices", None, "a"),
        Key::new("devices", Some(""), "a"),
        Key::new("devices", Some("a"), ""),
        Key::new("devices", Some("a/b"), "c"),
        Key::new("devices", Some("a"), "b/c"),
        Key::new("devices", None, "1:a/b"),
        Key::new("devices/1:a", None, "b"),
        Key::new("devices", Some("-"), "a"),
    ];
    let different: std::collections::BTreeSet<_> = keys.iter().collect();
    assert_eq!(different.len(), keys.len());
    assert!(keys.iter().all(|key| key.source().starts_with("devices")));
    assert_eq!(keys[6].source(), "devices/1:a");
    let clients: Vec<_> = keys.iter().map(Key::client).collect();
    assert_eq!(clients, ["a", "a", "", "c", "b/c", "1:a/b", "b", "a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_ends_half_way_frees_its_place_and_keeps_the_session() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let registry = open(folder.path());
    let key = Key::new("devices", None, "press");
    for (expiry, is_present) in [(0, false), (0, false), (60, false), (60, true), (60, true)] {
        let began = clock::instant();
        let entered = registry.open_session(&key, request("a", expiry)).await.expect("a session");
        assert_eq!(entered.is_present, is_present);
        assert!(clock::instant().duration_since(began) < LEAVE_WAIT_MAX / 2, "nobody is waited for");
        // Never left: the task was cancelled, or panicked.
        drop(entered);
    }
    assert_eq!(registry.persistent(), 1);
    registry.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleeping_session_is_on_the_disk_alone_and_comes_back_whole() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let key = Key::new("devices", Some("press"), "panel");
    let registry = open(folder.path());
    let entered = registry.open_session(&key, request("press", 60)).await.expect("a session");
    written(&registry, entered.wait_for).await;
    for (filter, is_new) in [("b/#", true), ("a/+", true), ("b/#", false)] {
        assert!(registry.subscribed(&key, &subscription(filter), is_new, QUOTAS));
    }
    let wait_for = registry.save_progress(&key, Progress { last_id: 77, ..Progress::default() });
    written(&registry, wait_for).await;
    let number = entered.session.number;
    drop(entered);
    let wait_for = registry.request_write(&mut registry.table());
    written(&registry, wait_for).await;
    let bytes = {
        let table = registry.table();
        let entry = &table.clients[&key];
        assert!(entry.unwritten.is_none() && entry.unanswered.is_none() && size_of::<ClientEntry>() < 200, "{entry:?}");
        table.bytes
    };
    registry.close();
    drop(registry);
    let registry = open(folder.path());
    let counted = registry.table().bytes;
    assert_eq!((counted, registry.persistent()), (bytes, 1), "counted as before");
    let entered = registry.open_session(&key, request("press", 60)).await.expect("a session");
    assert!(entered.is_present && entered.session.number == number);
    assert_eq!(entered.session.outbound.subscriptions(), [subscription("a/+"), subscription("b/#")]);
    assert_eq!(entered.session.outbound.progress().last_id, 77);
    drop(entered);
    let other = Key::new("devices", Some("robot"), "panel");
    assert!(
        !registry.open_session(&other, request("robot", 60)).await.expect("a session").is_present,
        "it is somebody else's"
    );
    registry.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_name_has_its_share_and_gets_it_back() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let registry = open(folder.path());
    let client = |number: usize| Key::new("devices", Some("press"), &number.to_string());
    for number in 0..3 {
        drop(registry.open_session(&client(number), request("press", 60)).await.expect("a session"));
    }
    let refused = registry.open_session(&client(3), request("press", 60)).await.expect_err("one too many");
    assert!(matches!(refused, NoSession::TooMany(why) if why.contains("sessions_per_name_max")), "{refused:?}");
    drop(
        registry.open_session(&client(3), request("press", 0)).await.expect("a session that ends with its connection"),
    );
    let other = Key::new("devices", Some("robot"), "0");
    drop(registry.open_session(&other, request("robot", 60)).await.expect("another name has a share of its own"));
    let entered = registry.open_session(&client(0), request("press", 60)).await.expect("its own session");
    let long = "x".repeat(1000);
    let takes =
        |number: usize| registry.subscribed(&client(0), &subscription(&format!("{number}{long}")), true, QUOTAS);
    let taken = (0..10).take_while(|number| takes(*number)).count();
    assert!((2..5).contains(&taken), "{taken} filters of a kilobyte in the ten of the share");
    (0..taken).for_each(|number| registry.unsubscribed(&client(0), &format!("{number}{long}")));
    assert!(takes(0), "what was given back can be had again");
    drop(entered);
    // A clean start with no expiry ends it.
    drop(
        registry
            .open_session(&client(0), SessionRequest { is_clean: true, ..request("press", 0) })
            .await
            .expect("a session"),
    );
    drop(registry.open_session(&client(3), request("press", 60)).await.expect("there is room again"));
    registry.close();
}
