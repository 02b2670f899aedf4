//! Why a known record is not in an answer: it is deleted, it cannot be seen, or it is no record of the contract any more.
//!
//! Promise: a record counts as deleted only if Odoo says so regardless of the rights of the account.

use super::absence::{Absence, IDS_PER_SEARCH};
use super::{ModelReader, ids};
use crate::odoo::{OdooError, Refusal};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Calls that a decision about many records may take; those that stay undecided come next time.
const CALLS_MAX: usize = 60;

impl ModelReader {
    /// The records among `ids` that the account can see, whether or not the contract's domain matches them.
    pub(in super::super) async fn visible(&self, wanted: &[i64]) -> Result<BTreeSet<i64>, OdooError> {
        let arguments = json!({"domain": [["id", "in", wanted]], "order": "id", "limit": wanted.len()});
        Ok(ids(&self.call("search", None, arguments).await?).into_iter().collect())
    }

    /// Says why each of these records is not in an answer, as far as that can be decided now.
    pub(in super::super) async fn absences(&self, absent: &[i64]) -> Result<Vec<(i64, Absence)>, OdooError> {
        let mut found = Vec::new();
        for chunk in absent.chunks(IDS_PER_SEARCH) {
            let visible = self.visible(chunk).await?;
            found.extend(visible.iter().map(|id| (*id, Absence::Left)));
            let invisible: Vec<i64> = chunk.iter().copied().filter(|id| !visible.contains(id)).collect();
            found.extend(self.invisible(&invisible).await?);
        }
        Ok(found)
    }

    /// Distinguishes records that are deleted from those that the account may not see. Record rules hide both from a
    /// search.
    pub(in super::super) async fn invisible(&self, wanted: &[i64]) -> Result<Vec<(i64, Absence)>, OdooError> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(existing) = self.existing(wanted).await? {
            let absence = |id: i64| if existing.contains(&id) { Absence::Hidden } else { Absence::Deleted };
            return Ok(wanted.iter().map(|id| (*id, absence(*id))).collect());
        }
        let mut decided = Vec::new();
        let mut stack = vec![wanted];
        let mut calls = 0;
        while let Some(part) = stack.pop() {
            calls += 2;
            if calls > CALLS_MAX {
                break;
            }
            match self.all_alike(part).await? {
                Some(absence) => decided.extend(part.iter().map(|id| (*id, absence))),
                None if part.len() > 1 => {
                    let (left, right) = part.split_at(part.len() / 2);
                    stack.extend([right, left]);
                }
                // A single record that is neither: it changes at this moment.
                None => {}
            }
        }
        Ok(decided)
    }

    /// The records that exist, if this version has a method that says so: up to 18.
    async fn existing(&self, wanted: &[i64]) -> Result<Option<BTreeSet<i64>>, OdooError> {
        if self.learnt.as_ref().is_none_or(|learnt| learnt.major >= VERSION_EXISTS_PRIVATE) {
            return Ok(None);
        }
        match self.call("exists", Some(wanted), json!({})).await {
            Ok(answer) => {
                let given = answer.value.as_array();
                let ids: Option<BTreeSet<i64>> = given.and_then(|ids| ids.iter().map(Value::as_i64).collect());
                Ok(ids)
            }
            Err(OdooError::Refused { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether all of these records are deleted, or all of them exist; `None` if there are both, or if one is visible.
    ///
    /// A read leaves out deleted records, and is refused if one exists that a record rule hides. A check of rights is
    /// refused if one is deleted.
    async fn all_alike(&self, part: &[i64]) -> Result<Option<Absence>, OdooError> {
        match self.call("read", Some(part), json!({"fields": ["write_date"]})).await {
            Ok(answer) if answer.value.as_array().is_some_and(Vec::is_empty) => return Ok(Some(Absence::Deleted)),
            Ok(_) => return Ok(None),
            Err(error) if error.is_access() && part.len() == 1 => return Ok(Some(Absence::Hidden)),
            Err(OdooError::Refused { why: Refusal::Missing, .. }) if part.len() == 1 => {
                return Ok(Some(Absence::Deleted));
            }
            Err(OdooError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
        match self.call("has_access", Some(part), json!({"operation": "read"})).await {
            Ok(answer) if answer.value == Value::Bool(false) => Ok(Some(Absence::Hidden)),
            Ok(_) | Err(OdooError::Refused { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// From this version on, `exists` cannot be called from outside.
const VERSION_EXISTS_PRIVATE: u32 = 19;
