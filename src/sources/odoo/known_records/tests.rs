//! Known records over changes, crashes, deletions and returns.

use super::super::change_event::{EventContext, Occasion};
use super::*;
use serde_json::json;

const SCOPE: IdScope<'_> = IdScope { database: "plant", model: "mrp.production", stream: "production.order", epoch: 0 };

fn section() -> Section {
    toml::from_str(
        "model = \"mrp.production\"\nfields = [\"state\", \"lot\"]\nstate = \"state\"\nlast_states = [\"done\"]",
    )
    .expect("a section")
}

fn row_with(record: Value, write_date: i64) -> Row {
    let record = record.as_object().cloned().expect("an object");
    Row { id: 7, write_date, create_date: 5, write_uid: 2, record, ..Row::default() }
}

fn row(state: &str, write_date: i64) -> Row {
    row_with(json!({"state": state}), write_date)
}

fn with<T>(work: impl FnOnce(&EventContext<'_>) -> T) -> T {
    let section = section();
    work(&EventContext { system_of_record: "odoo", section: &section, own_id: 5 })
}

/// The events that a row makes, applied as if they had their receipts.
fn report_all(known: &mut KnownRecords, row: &Row, occasion: Occasion, epoch: u32) -> Vec<ChangeEvent> {
    let scope = IdScope { epoch, ..SCOPE };
    match with(|context| known.compare(row, occasion, context, &scope)) {
        Comparison::Unchanged => Vec::new(),
        Comparison::Unreported(after) => {
            known.update(7, Some(after));
            Vec::new()
        }
        Comparison::Changed(events) => {
            events.iter().for_each(|event| known.update(7, Some(event.after.clone())));
            events
        }
    }
}

fn report(known: &mut KnownRecords, state: &str, write_date: i64) -> Option<ChangeEvent> {
    let mut events = report_all(known, &row(state, write_date), Occasion::Written, 0);
    assert!(events.len() < 2, "{events:?}");
    events.pop()
}

fn delete(known: &mut KnownRecords) -> ChangeEvent {
    let event = with(|context| known.deletion(7, context, &SCOPE)).expect("a deletion");
    known.update(7, Some(event.after.clone()));
    event
}

fn hide(known: &mut KnownRecords) -> ChangeEvent {
    let event = with(|context| known.hiding(7, "access", context, &SCOPE)).expect("an event");
    known.update(7, Some(event.after.clone()));
    event
}

/// The same records, as notes and as the journal hold them.
fn restored(known: &mut KnownRecords) -> KnownRecords {
    known.dirty.insert(0);
    let notes = known.take_notes("p/").into_iter().map(|(name, note)| (name, note.expect("a note"))).collect();
    KnownRecords::restore(notes, Pool::default())
}

fn followed<'a>(events: impl IntoIterator<Item = &'a ChangeEvent>) -> KnownRecords {
    let mut known = KnownRecords::default();
    events.into_iter().for_each(|event| known.apply(&event.id, &event.payload));
    known
}

#[test]
fn a_value_that_comes_back_within_a_second_has_another_id_and_a_crash_repeats_none() {
    let mut known = KnownRecords::default();
    let events: Vec<_> =
        ["draft", "confirmed", "draft"].iter().map(|state| report(&mut known, state, 10).expect("an event")).collect();
    let ids: BTreeSet<_> = events.iter().map(|event| event.id.clone()).collect();
    assert_eq!(ids.len(), 3);
    assert!(report(&mut known, "draft", 10).is_none(), "it is known");
    assert!(report(&mut known, "draft", 11).is_none(), "a write that changes nothing is nothing");
    assert!(report(&mut restored(&mut known), "draft", 11).is_none(), "the notes hold it");
    assert!(report(&mut followed(&events), "draft", 10).is_none(), "the journal holds it");
    assert_eq!(report(&mut KnownRecords::default(), "draft", 10).map(|event| event.id), Some(events[0].id.clone()));
    // What comes next has the same id, whichever of them the gateway continues with.
    let next = report(&mut restored(&mut known), "done", 12).expect("an event").id;
    assert_eq!(report(&mut followed(&events), "done", 12).expect("an event").id, next);
    assert_eq!(report(&mut known, "done", 12).expect("an event").id, next);
}

#[test]
fn fields_of_linked_records_stay_known_while_the_record_does_not_change() {
    let mut known = KnownRecords::default();
    let full = json!({"id": 9, "name": "Saw", "default_code": "P-SAW"});
    let read = |known: &mut KnownRecords, lot: Value, state: &str| {
        report_all(known, &row_with(json!({"state": state, "lot": lot}), 10), Occasion::Written, 0)
    };
    assert_eq!(read(&mut known, full.clone(), "draft").len(), 1);
    for poll in [json!({"id": 9, "name": "Saw"}), json!(9), json!({"id": 9, "name": "New saw"})] {
        assert!(read(&mut known, poll.clone(), "draft").is_empty());
        known.each(|_, _, record| assert_eq!(record["lot"]["default_code"], "P-SAW", "{poll}"));
    }
    known.each(|_, _, record| assert_eq!(record["lot"]["name"], "New saw"));
    let changed = read(&mut known, json!({"id": 10, "name": "Drill"}), "draft");
    assert_eq!(changed[0].payload["record"]["lot"], json!({"id": 10, "name": "Drill"}));
}

#[test]
fn a_state_that_a_backup_brings_back_is_reported_under_a_new_id() {
    let mut known = KnownRecords::default();
    let confirmed = report(&mut known, "confirmed", 10).expect("an event");
    let done = report(&mut known, "done", 20).expect("an event");
    let back = report(&mut known, "confirmed", 10).expect("an event");
    assert_eq!(back.payload["changed"]["state"], json!({"from": "done", "to": "confirmed"}));
    assert_eq!(back.payload["rewound"], json!(true));
    assert_eq!(done.payload.get("rewound"), None);
    assert_ne!(back.id, confirmed.id, "or it would be dropped as a repeat");
}

#[test]
fn what_is_gone_is_reported_once_and_what_comes_back_is_reported_again() {
    let mut known = KnownRecords::default();
    let reported = report(&mut known, "done", 10).expect("an event");
    let gone = delete(&mut known);
    assert_ne!(gone.id, reported.id);
    assert_eq!((&gone.payload["event"], &gone.payload["record"]["state"]), (&json!("deleted"), &json!("done")));
    assert!(with(|context| known.deletion(7, context, &SCOPE)).is_none());
    assert_eq!((known.len(), known.contains(7), known.ids_after(0, 9)), (0, false, vec![]));
    let back = report(&mut restored(&mut known), "done", 10).expect("an event");
    assert_eq!((&back.payload["event"], &back.payload["record"]["state"]), (&json!("visible"), &json!("done")));
    assert!(back.id != reported.id && back.id != gone.id, "or it would be dropped as a repeat");
    let mut known = followed([&reported, &gone]);
    assert_eq!(report(&mut known, "done", 10).expect("an event").id, back.id, "the journal holds it");
    assert!(report(&mut known, "done", 10).is_none());
}

#[test]
fn what_is_hidden_is_not_deleted_and_is_reported_when_it_is_visible_again() {
    let mut known = KnownRecords::default();
    let reported = report(&mut known, "draft", 10).expect("an event");
    let hidden = hide(&mut known);
    assert_eq!((&hidden.payload["event"], &hidden.payload["reason"]), (&json!("hidden"), &json!("access")));
    assert!(with(|context| known.hiding(7, "access", context, &SCOPE)).is_none(), "once");
    assert_eq!((known.len(), known.standing(7)), (1, Some(Standing::Hidden)));
    let mut seen = 0;
    known.each(|_, _, _| seen += 1);
    assert_eq!(seen, 0, "nobody watches what nobody sees");
    for mut known in [restored(&mut known), followed([&reported, &hidden])] {
        let same = report(&mut known, "draft", 10).expect("an event, although nothing has changed");
        assert_eq!(same.payload["events"], json!(["visible"]));
        assert!(same.id != reported.id && same.id != hidden.id);
        assert!(report(&mut known, "draft", 10).is_none());
        let again = hide(&mut known);
        assert_ne!(again.id, hidden.id);
        let changed = report(&mut known, "done", 11).expect("an event");
        assert_eq!(changed.payload["changed"]["state"], json!({"from": "draft", "to": "done"}));
        hide(&mut known);
        assert_eq!(delete(&mut known).payload["record"]["state"], "done");
    }
}

#[test]
fn another_record_with_the_same_number_is_a_deletion_and_a_new_record() {
    let mut known = KnownRecords::default();
    report(&mut known, "done", 10).expect("an event");
    let other = Row { create_date: 30, ..row("draft", 30) };
    let events = report_all(&mut known, &other, Occasion::Visible, 0);
    let names: Vec<_> = events.iter().map(|event| event.payload["event"].clone()).collect();
    assert_eq!(names, ["deleted", "created"]);
    assert_eq!(events[1].payload["changed"], json!({}), "nothing changed from the one to the other");
    assert!(report_all(&mut known, &other, Occasion::Visible, 0).is_empty());
}

#[test]
fn a_field_that_cannot_be_read_for_a_while_is_compared_with_what_it_was() {
    let with_lot = |lot: i64| row_with(json!({"state": "draft", "lot": lot}), 10);
    let mut known = KnownRecords::default();
    let first = report_all(&mut known, &with_lot(4), Occasion::Written, 0);
    assert_eq!(first.len(), 1);
    assert!(report_all(&mut known, &row("draft", 10), Occasion::Written, 0).is_empty(), "the right is gone");
    let changed = report_all(&mut known, &row("done", 11), Occasion::Written, 0);
    assert_eq!(changed[0].payload["record"].get("lot"), None, "nobody knows what it is now");
    for mut known in [restored(&mut known), followed(first.iter().chain(&changed))] {
        let same = row_with(json!({"state": "done", "lot": 4}), 11);
        assert!(report_all(&mut known, &same, Occasion::Written, 0).is_empty(), "it is what it was");
        let other = row_with(json!({"state": "done", "lot": 5}), 11);
        let reported = report_all(&mut known, &other, Occasion::Written, 0);
        assert_eq!(reported[0].payload["changed"], json!({"lot": {"from": 4, "to": 5}}));
    }
}

#[test]
fn a_field_that_is_new_is_reported_if_it_has_a_value() {
    let mut known = KnownRecords::default();
    report(&mut known, "draft", 10).expect("an event");
    let empty = row_with(json!({"state": "draft", "lot": null}), 10);
    assert!(report_all(&mut known, &empty, Occasion::Written, 0).is_empty());
    let mut known = KnownRecords::default();
    report(&mut known, "draft", 10).expect("an event");
    let reported = report_all(&mut known, &row_with(json!({"state": "draft", "lot": 4}), 10), Occasion::Written, 0);
    assert_eq!((&reported[0].payload["changed"], &reported[0].payload["learned"]), (&json!({}), &json!(["lot"])));
}

#[test]
fn a_load_that_is_asked_for_reports_each_record_once_more_and_only_once() {
    let mut known = KnownRecords::default();
    let first = report_all(&mut known, &row("draft", 10), Occasion::FirstLoad, 0);
    assert!(report_all(&mut known, &row("draft", 10), Occasion::FirstLoad, 0).is_empty());
    let again = report_all(&mut known, &row("draft", 10), Occasion::Again, 1);
    assert_eq!(again[0].payload["event"], "loaded");
    assert_ne!(again[0].id, first[0].id, "or it would be dropped as a repeat");
    assert!(report_all(&mut known, &row("draft", 10), Occasion::Again, 1).is_empty(), "after a crash in between");
    let mut lost = followed(&first);
    assert_eq!(
        report_all(&mut lost, &row("draft", 10), Occasion::Again, 1)[0].id,
        again[0].id,
        "or before it was durable"
    );
    assert_eq!(
        report_all(&mut known, &row("done", 11), Occasion::Again, 2)[0].payload["changed"]["state"]["from"],
        "draft"
    );
}

#[test]
fn a_contract_may_refuse_a_record_with_an_impossible_value() {
    let mut row = row_with(json!({"state": "draft", "lot": null}), 10);
    row.invalid.insert("lot".into(), "NaN".into());
    let mut known = KnownRecords::default();
    let reported = report_all(&mut known, &row, Occasion::Written, 0);
    assert_eq!((&reported[0].payload["invalid"], &reported[0].refusal), (&json!({"lot": "NaN"}), &None));
    let mut section = section();
    section.on_invalid = crate::contract::odoo::OnInvalid::DeadLetter;
    let context = EventContext { system_of_record: "odoo", section: &section, own_id: 5 };
    let Comparison::Changed(events) = KnownRecords::default().compare(&row, Occasion::Written, &context, &SCOPE) else {
        panic!("no event")
    };
    assert!(events[0].refusal.as_ref().is_some_and(|why| why.starts_with("record.lot: NaN")), "{events:?}");
}

#[test]
fn records_of_all_contracts_share_one_bound_and_what_has_ended_makes_room() {
    let section: Section = toml::from_str(
        "model = \"account.move\"\nfields = [\"state\", \"payment\"]\nended_when = { payment = [\"paid\"] }",
    )
    .expect("a section");
    let pool = Pool::default();
    let (mut invoices, mut orders) = (KnownRecords::new(Arc::clone(&pool)), KnownRecords::new(Arc::clone(&pool)));
    let put = |known: &mut KnownRecords, id: i64, payment: &str| {
        let row = Row { id, ..row_with(json!({"state": "posted", "payment": payment}), 10) };
        let entry = known.of_row(&row, [1; 16]);
        known.update(id, Some(entry));
    };
    for id in 0..10 {
        put(&mut invoices, id, if id < 4 { "paid" } else { "open" });
        put(&mut orders, id, "open");
    }
    let all = pool.load(Ordering::Relaxed);
    let one = all / 20;
    assert_eq!(all, 20 * one, "all take the same");
    put(&mut invoices, 9, "open");
    assert_eq!(pool.load(Ordering::Relaxed), all, "the same record takes no more");
    let room_for_18 = 18 * one + 1;
    assert!(invoices.is_full(room_for_18) && orders.is_full(room_for_18));
    let limits = |settled, ended, stale| ForgetLimits { settled, ended, stale };
    assert_eq!(orders.forget(&section, &limits(11, 0, 0), room_for_18), 0, "none of them has ended");
    assert_eq!(invoices.forget(&section, &limits(10, 0, 0), room_for_18), 0, "the next poll would find them new");
    assert_eq!(invoices.forget(&section, &limits(11, 0, 0), room_for_18), 2, "no more than has to");
    assert!(!orders.is_full(room_for_18));
    assert_eq!(invoices.forget(&section, &limits(11, 11, 0), usize::MAX), 2, "the others that were paid long ago");
    assert_eq!(invoices.forget(&section, &limits(11, 0, 11), usize::MAX), 6, "nobody has written them for too long");
    drop(orders);
    assert_eq!(pool.load(Ordering::Relaxed), 0);
}

#[test]
fn a_record_takes_little_more_than_its_values() {
    let mut known = KnownRecords::default();
    for id in 0..1000 {
        let record =
            json!({"name": format!("WH/MO/{id:05}"), "state": "confirmed", "product_qty": 12.0, "origin": null});
        let row = Row { id, ..row_with(record, 10) };
        let entry = known.of_row(&row, [1; 16]);
        known.update(id, Some(entry));
    }
    let each = known.pool.load(Ordering::Relaxed) / 1000;
    assert!(each < RECORD_BYTES + 60, "{each}: the names of the fields are stored once");
    assert!(size_of::<(i64, KnownRecord)>() <= 72, "{}", size_of::<(i64, KnownRecord)>());
}
