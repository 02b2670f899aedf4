//! Overlay: a file that is never changed; writes to it stay in memory.
//!
//! Promise: the file below is never written.
//!
//! redb repairs a file in order to open it. Read-only commands (`verify`, `export` of a stopped journal, `salvage`) let it
//! repair this overlay instead.
//!
//! Not here: a bound. A repair writes the header and the allocator's state, a few of many pages.

use super::disk::{DiskFile, Identity};
use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::io;

/// Size of a page in the overlay; redb's pages have this size or a multiple of it.
const PAGE_BYTES: u64 = 4096;

/// A file and the pages written over it.
#[derive(Debug)]
pub(super) struct Overlay {
    file: Box<dyn DiskFile>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    length: u64,
    /// Length of the part of the file that is still visible.
    below: u64,
    pages: BTreeMap<u64, Vec<u8>>,
}

impl Overlay {
    /// Creates an overlay over a file.
    pub(super) fn new(file: Box<dyn DiskFile>) -> io::Result<Self> {
        let length = file.length()?;
        Ok(Self { file, state: Mutex::new(State { length, below: length, pages: BTreeMap::new() }) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Content of a page of the file; zeros behind its end.
    fn below(&self, state: &State, page: u64) -> io::Result<Vec<u8>> {
        let mut content = vec![0; PAGE_BYTES as usize];
        let from = page * PAGE_BYTES;
        let there = state.below.saturating_sub(from).min(PAGE_BYTES) as usize;
        if there > 0 {
            self.file.read(from, &mut content[..there])?;
        }
        Ok(content)
    }
}

impl DiskFile for Overlay {
    fn length(&self) -> io::Result<u64> {
        Ok(self.lock().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.lock();
        let end = offset + out.len() as u64;
        if end > state.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let there = state.below.saturating_sub(offset).min(out.len() as u64) as usize;
        out[there..].fill(0);
        if there > 0 {
            self.file.read(offset, &mut out[..there])?;
        }
        for (page, content) in state.pages.range(offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES)) {
            let start = page * PAGE_BYTES;
            let (from, to) = (start.max(offset), (start + PAGE_BYTES).min(end));
            out[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&content[(from - start) as usize..(to - start) as usize]);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        let end = offset + data.len() as u64;
        for page in offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES) {
            if !state.pages.contains_key(&page) {
                let content = self.below(&state, page)?;
                state.pages.insert(page, content);
            }
            let start = page * PAGE_BYTES;
            let (from, to) = (start.max(offset), (start + PAGE_BYTES).min(end));
            if let Some(content) = state.pages.get_mut(&page) {
                content[(from - start) as usize..(to - start) as usize]
                    .copy_from_slice(&data[(from - offset) as usize..(to - offset) as usize]);
            }
        }
        state.length = state.length.max(end);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut state = self.lock();
        state.below = state.below.min(length);
        state.pages.split_off(&length.div_ceil(PAGE_BYTES));
        if let Some(content) = state.pages.get_mut(&(length / PAGE_BYTES)) {
            content[(length % PAGE_BYTES) as usize..].fill(0);
        }
        state.length = length;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync_and_reread(&self) -> io::Result<()> {
        Ok(())
    }

    fn identity(&self) -> io::Result<Identity> {
        self.file.identity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug)]
    struct Fixed(Vec<u8>);

    impl DiskFile for Fixed {
        fn length(&self) -> io::Result<u64> {
            Ok(self.0.len() as u64)
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            let from = offset as usize;
            out.copy_from_slice(&self.0[from..from + out.len()]);
            Ok(())
        }
        fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
            unreachable!("the file is never changed")
        }
        fn set_len(&self, _: u64) -> io::Result<()> {
            unreachable!("the file is never changed")
        }
        fn sync(&self) -> io::Result<()> {
            unreachable!("the file is never changed")
        }
        fn sync_and_reread(&self) -> io::Result<()> {
            unreachable!("the file is never changed")
        }
        fn identity(&self) -> io::Result<Identity> {
            Ok(Identity(0, 0))
        }
    }

    proptest! {
        #[test]
        fn it_reads_as_a_file_that_was_written(
            steps in proptest::collection::vec((any::<bool>(), 0u64..20_000, proptest::collection::vec(any::<u8>(), 1..9000)), 0..12)
        ) {
            let mut model: Vec<u8> = (0..10_000u32).map(|at| at as u8 | 1).collect();
            let overlay = Overlay::new(Box::new(Fixed(model.clone()))).expect("made");
            for (is_write, at, data) in steps {
                if is_write {
                    overlay.write(at, &data).expect("written");
                    let end = at as usize + data.len();
                    model.resize(model.len().max(end), 0);
                    model[at as usize..end].copy_from_slice(&data);
                } else {
                    overlay.set_len(at).expect("set");
                    model.resize(at as usize, 0);
                }
                let mut whole = vec![7; overlay.length().expect("known") as usize];
                overlay.read(0, &mut whole).expect("read");
                prop_assert!(whole == model, "after {at}");
            }
        }
    }
}
