//! The seal of a journal: its format, its environment and the name of its gateway.
//!
//! Promise: a gateway of another environment or name, or one that is too old for the format, opens no journal.

use super::publications::PUBLICATIONS;
use crate::journal::store::disk::{Disk, make_folder, read_whole, write_whole};
use crate::journal::store::error::JournalError;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Journal format that this version writes, and the newest that it opens.
pub const FORMAT: u64 = 3;
/// Name of the file with the seal.
pub(in crate::journal) const SEAL: &str = "journal.toml";

/// The format of a journal and the environment that it belongs to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seal {
    #[serde(default)]
    pub format: u64,
    /// Environment; a gateway of another environment cannot open the journal.
    pub environment: String,
    /// Name of the gateway, which is part of every event; `None` in journals that have never been opened with one.
    #[serde(default)]
    pub name: Option<String>,
}

impl Seal {
    /// Reads the seal of a journal without taking its lock; `None` if there is none or this user may not read it.
    pub fn of(folder: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(folder.join(SEAL)).ok()?;
        toml::from_str(&text).ok()
    }

    /// Reads the seal in the folder of a journal.
    pub(in crate::journal) fn read(disk: &dyn Disk, folder: &Path) -> Result<Self, JournalError> {
        let path = folder.join(SEAL);
        let text = read_whole(disk, &path).map_err(|error| JournalError::io(&path, error))?;
        toml::from_str(&String::from_utf8_lossy(&text))
            .map_err(|error| JournalError::Damaged { file: path, reason: error.message().to_owned() })
    }

    /// Compares the seal of a journal with this one; seals a new journal.
    pub(super) fn check(&self, disk: &dyn Disk, folder: &Path) -> Result<(), JournalError> {
        let path = folder.join(SEAL);
        let found = match Self::read(disk, folder) {
            Ok(found) => found,
            Err(error) if error.is_not_found() => {
                let publications = folder.join(PUBLICATIONS);
                make_folder(disk, &publications).map_err(|error| JournalError::io(&publications, error))?;
                return self.write(disk, &path);
            }
            Err(error) => return Err(error),
        };
        if found.format > FORMAT {
            return Err(JournalError::Newer { file: path, format: found.format, newest: FORMAT });
        }
        if found.environment != self.environment {
            return Err(JournalError::Sealed {
                folder: folder.to_owned(),
                sealed: found.environment,
                wanted: self.environment.clone(),
            });
        }
        if let (Some(sealed), Some(wanted)) = (&found.name, &self.name)
            && sealed != wanted
        {
            let (sealed, wanted) = (sealed.clone(), wanted.clone());
            return Err(JournalError::Named { folder: folder.to_owned(), sealed, wanted });
        }
        if found.format < FORMAT || found.name.is_none() && self.name.is_some() {
            // From now on an older Forebay refuses a journal of a newer format.
            self.write(disk, &path)?;
        }
        Ok(())
    }

    fn write(&self, disk: &dyn Disk, path: &Path) -> Result<(), JournalError> {
        let name = self.name.as_ref().map(|name| format!("name = {name:?}\n")).unwrap_or_default();
        let text = format!(
            "# The seal of this journal. Forebay checks it at every start.\nformat = {FORMAT}\nenvironment = {:?}\n{name}",
            self.environment
        );
        write_whole(disk, path, text.as_bytes()).map_err(|error| JournalError::io(path, error))
    }
}
