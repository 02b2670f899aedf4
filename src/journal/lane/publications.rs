//! The publications that stored events refer to.

use crate::contract::{Publication, Renderer};
use crate::journal::store::disk::{Disk, RealDisk, make_folder, read_whole};
use crate::journal::store::error::JournalError;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;

/// Name of the folder of publications.
pub const PUBLICATIONS: &str = "publications";

/// Publications that stored events refer to, by number.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    pub(crate) list: Vec<Option<Arc<Published>>>,
}

/// A publication and its numbers in this journal.
#[derive(Debug)]
pub struct Published {
    /// Number of the publication, as stored in records.
    pub number: u32,
    /// Number of its stream; all versions with the same major version share it.
    pub stream: u32,
    /// Publication as central sees it.
    pub publication: Publication,
    pub renderer: Renderer,
}

impl Published {
    /// Whether `wanted` names its stream, with or without version; a `*` at the end matches any rest.
    pub fn is_named(&self, wanted: &str) -> bool {
        let names = [self.publication.stream.as_str(), self.renderer.stream_id()];
        match wanted.strip_suffix('*') {
            Some(start) => names.iter().any(|name| name.starts_with(start)),
            None => names.contains(&wanted),
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(in crate::journal) struct PublicationFile {
    pub number: u32,
    pub stream: u32,
    pub publication: Publication,
}

impl Catalog {
    pub(super) fn put(&mut self, file: PublicationFile) {
        let index = file.number as usize;
        if self.list.len() <= index {
            self.list.resize(index + 1, None);
        }
        let renderer = Renderer::new(&file.publication);
        self.list[index] = Some(Arc::new(Published {
            number: file.number,
            stream: file.stream,
            publication: file.publication,
            renderer,
        }));
    }
}

pub(super) fn load_catalog(disk: &dyn Disk, folder: &Path) -> Result<Catalog, JournalError> {
    let folder = folder.join(PUBLICATIONS);
    make_folder(disk, &folder).map_err(|error| JournalError::io(&folder, error))?;
    let mut catalog = Catalog::default();
    for (name, _) in disk.list(&folder).map_err(|error| JournalError::io(&folder, error))? {
        if !name.ends_with(".json") {
            continue;
        }
        let path = folder.join(&name);
        let bytes = read_whole(disk, &path).map_err(|error| JournalError::io(&path, error))?;
        let file: PublicationFile = serde_json::from_slice(&bytes)
            .map_err(|error| JournalError::Damaged { file: path.clone(), reason: error.to_string() })?;
        catalog.put(file);
    }
    Ok(catalog)
}

/// The publications of a journal, in the order of their numbers. Only reads files: the gateway may be running.
pub fn publications_in(folder: &Path) -> Result<Vec<Publication>, JournalError> {
    let publications = folder.join(PUBLICATIONS);
    match std::fs::metadata(&publications) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(JournalError::io(&publications, error)),
    }
    let catalog = load_catalog(&RealDisk, folder)?;
    Ok(catalog.list.iter().flatten().map(|known| known.publication.clone()).collect())
}
