//! The outbox: a table in Odoo in which automations note changes, within the transaction of the user who makes them.
//!
//! The automations (`automation`) write it, the gateway only reads it. A row names a record and its state. It commits
//! and rolls back with the change. So the gateway learns of states that no poll sees, because the next one followed
//! at once.

use serde_json::{Value, json};

/// Fields that each row has: model and number of the record, and its state at that moment; no state if it was deleted.
pub(super) const FIELDS: [&str; 3] = ["x_model", "x_record", "x_state"];
/// The transaction of a row. Rules that an earlier version installed do not write it.
pub(super) const TRANSACTION: &str = "x_transaction";
/// State of a cancelled record: all models of Odoo use this word.
const CANCELLED: &str = "cancel";
/// Rows per read.
pub(super) const ROWS_MAX: usize = 1000;

/// Name of the model that holds the outbox of a gateway.
pub(super) fn model_of(gateway: &str) -> String {
    let letter = |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '_' };
    format!("x_forebay_{}", gateway.chars().map(letter).collect::<String>())
}

/// A state that a record had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OutboxRow {
    /// Number of the row; rises with each change of one record.
    pub(super) id: i64,
    /// Model of the record, as this Odoo calls it.
    pub(super) model: String,
    /// Number of the record.
    pub(super) record: i64,
    /// State of the record; `None` if it was deleted, or has no state.
    pub(super) state: Option<String>,
    /// Start of the transaction: seconds since 1970.
    pub(super) at: i64,
    /// Start of the transaction in microseconds, as Odoo writes it; equal for the rows of a record from one transaction.
    pub(super) transaction: Option<String>,
}

/// The rows of an answer.
pub(super) fn rows(answer: &Value) -> Vec<OutboxRow> {
    let row = |given: &Value| {
        let at = given.get("create_date").and_then(Value::as_str).and_then(crate::odoo::read_time)?;
        Some(OutboxRow {
            id: given.get("id")?.as_i64()?,
            model: given.get("x_model")?.as_str()?.to_owned(),
            record: given.get("x_record")?.as_i64()?,
            state: given.get("x_state").and_then(Value::as_str).map(str::to_owned),
            at: at.0.div_euclid(1_000_000),
            transaction: given.get(TRANSACTION).and_then(Value::as_str).map(str::to_owned),
        })
    };
    answer.as_array().into_iter().flatten().filter_map(row).collect()
}

/// The conditions for rows behind a row, of a model and its records if they are given.
pub(super) fn domain(of: Option<(&str, &[i64])>, after: i64) -> Vec<Value> {
    let mut domain = vec![json!(["id", ">", after])];
    if let Some((model, records)) = of {
        domain.extend([json!(["x_model", "=", model]), json!(["x_record", "in", records])]);
    }
    domain
}

/// The rows without the states that a record had on the way only, within one transaction. Odoo computes a state anew
/// after each step of a transaction: an order that is being cancelled is `to_close` for a moment, because its work
/// orders are cancelled first. Such a state counts if the transaction continued from it: not if it ended in a
/// cancellation, or where it had begun.
fn without_detours(rows: &[OutboxRow]) -> Vec<&OutboxRow> {
    let mut kept: Vec<&OutboxRow> = Vec::new();
    let of_one = |a: &OutboxRow, b: &OutboxRow| a.transaction.is_some() && a.transaction == b.transaction;
    for transaction in rows.chunk_by(of_one) {
        let Some((last, passed)) = transaction.split_last() else { continue };
        let is_detour =
            last.state.as_deref() == Some(CANCELLED) || kept.last().is_some_and(|before| before.state == last.state);
        kept.extend(passed.iter().filter(|_| !is_detour));
        kept.push(last);
    }
    kept
}

/// The states that a record passed between the known one and the present one, in order. `rows` are those of the record.
/// `known` is the state and the `write_date` of the known record, `None` for a record that was not known.
pub(super) fn passed(rows: &[OutboxRow], known: Option<(&str, i64)>, present: &str) -> Vec<OutboxRow> {
    let rows = without_detours(rows);
    let since = match known {
        // Rows of the same second belong before or after the known state; the first one with it tells.
        Some((state, at)) => {
            let is_known = |row: &&OutboxRow| row.at >= at && row.state.as_deref() == Some(state);
            let after = rows.iter().position(is_known).map(|index| index + 1);
            after.unwrap_or_else(|| rows.iter().position(|row| row.at > at).unwrap_or(rows.len()))
        }
        None => 0,
    };
    let mut last = known.map(|(state, _)| state.to_owned());
    let mut passed: Vec<OutboxRow> = Vec::new();
    for row in &rows[since..] {
        if row.state.is_some() && row.state != last {
            last.clone_from(&row.state);
            passed.push((*row).clone());
        }
    }
    // The rows are read after the record: what follows the present state is reported once it was read.
    if let Some(index) = passed.iter().rposition(|row| row.state.as_deref() == Some(present)) {
        passed.truncate(index);
    }
    passed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: i64, state: &str, at: i64) -> OutboxRow {
        OutboxRow {
            id,
            model: "mrp.production".into(),
            record: 7,
            state: Some(state.to_owned()),
            at,
            transaction: None,
        }
    }

    fn check(rows: &[(&str, i64)], known: Option<(&str, i64)>, present: &str, expected: &[&str]) {
        let rows: Vec<OutboxRow> = rows.iter().zip(1..).map(|((state, at), id)| row(id, state, *at)).collect();
        let states: Vec<String> = passed(&rows, known, present).into_iter().filter_map(|row| row.state).collect();
        assert_eq!(states, expected, "{rows:?} {known:?} {present}");
    }

    #[test]
    fn states_between_two_reads_are_found_in_order() {
        let life = [("draft", 1), ("confirmed", 2), ("progress", 3), ("to_close", 4), ("done", 5)];
        check(&life, Some(("draft", 1)), "done", &["confirmed", "progress", "to_close"]);
        check(&life, Some(("confirmed", 2)), "progress", &[]);
        check(&life, Some(("confirmed", 2)), "done", &["progress", "to_close"]);
        check(&life, None, "done", &["draft", "confirmed", "progress", "to_close"]);
        check(&life, None, "draft", &[]);
        let returned = [("draft", 1), ("confirmed", 2), ("draft", 3)];
        check(&returned, Some(("draft", 1)), "draft", &["confirmed"]);
        check(&returned, Some(("draft", 1)), "confirmed", &[]);
        // Written by SQL, which no automation notes.
        check(&returned, Some(("draft", 1)), "done", &["confirmed", "draft"]);
        check(&[], Some(("draft", 1)), "done", &[]);
        // All within one second, and written several times.
        let quick = [("draft", 1), ("draft", 1), ("confirmed", 1), ("progress", 1), ("progress", 1), ("done", 1)];
        check(&quick, Some(("draft", 1)), "done", &["confirmed", "progress"]);
        check(&quick, Some(("progress", 1)), "done", &[]);
        // The known state was written before the automations were installed.
        check(&[("progress", 9), ("done", 10)], Some(("draft", 3)), "done", &["progress"]);
        check(&[("progress", 2), ("done", 10)], Some(("draft", 3)), "done", &[]);
    }

    #[test]
    fn a_state_on_the_way_to_a_cancellation_is_not_reported() {
        let check = |rows: &[(&str, &str)], known: &str, present: &str, expected: &[&str]| {
            let rows: Vec<OutboxRow> = (rows.iter().zip(1..))
                .map(|((state, transaction), id)| OutboxRow {
                    transaction: Some((*transaction).to_owned()),
                    ..row(id, state, 5)
                })
                .collect();
            let states: Vec<String> =
                passed(&rows, Some((known, 1)), present).into_iter().filter_map(|row| row.state).collect();
            assert_eq!(states, expected, "{rows:?} {known} {present}");
        };
        check(&[("to_close", "b"), ("cancel", "b")], "confirmed", "cancel", &[]);
        check(&[("confirmed", "a"), ("to_close", "b"), ("cancel", "b")], "draft", "cancel", &["confirmed"]);
        check(
            &[("confirmed", "a"), ("progress", "b"), ("confirmed", "b"), ("done", "c")],
            "draft",
            "done",
            &["confirmed"],
        );
        // Whoever produces at once from a draft releases and starts the order in the same transaction.
        check(&[("confirmed", "a"), ("progress", "a"), ("done", "a")], "draft", "done", &["confirmed", "progress"]);
        // The transactions of two people do not mix.
        check(
            &[("progress", "b"), ("to_close", "c"), ("cancel", "d")],
            "confirmed",
            "cancel",
            &["progress", "to_close"],
        );
    }

    #[test]
    fn a_gateway_has_a_table_of_its_own() {
        assert_eq!(model_of("GW-01.plant"), "x_forebay_gw_01_plant");
        let answer = json!([{"id": 4, "x_model": "m", "x_record": 7, "x_state": "done", "create_date": "2026-11-23 03:18:40"},
            {"id": 5, "x_model": "m", "x_record": 8, "x_state": false, "create_date": "2026-11-23 03:18:41"}, {"id": "x"}]);
        let read = rows(&answer);
        assert_eq!((read.len(), read[0].record, read[1].state.as_ref()), (2, 7, None));
    }
}
