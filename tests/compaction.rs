//! The state gives its room back, and loses nothing by it: whatever the moment at which the power goes.

use crate::common::fault_disk::{Fault, FaultDisk, Unsynced};
use crate::power_cut::open;
use forebay::journal::{Change, Disk, Journal};
use std::time::Duration;

const KEPT: usize = 20;

fn length(disk: &FaultDisk) -> usize {
    let length = std::cell::Cell::new(0);
    disk.damage("state.redb", |content| length.set(content.len()));
    length.get()
}

/// A state that has grown to 6 MB, of which next to nothing is live.
fn grown(disk: &FaultDisk) -> Journal {
    let journal = open(disk).expect("opens");
    let notes = journal.notes("test");
    let large = (0..6).map(|number| Change::Put(format!("large/{number}"), vec![number; 1 << 20]));
    notes.change(large.collect()).expect("written");
    let kept = (0..KEPT).map(|number| Change::Put(format!("kept/{number:02}"), vec![number as u8; 100]));
    notes.change([Change::RemoveAll("large/".into())].into_iter().chain(kept).collect()).expect("written");
    journal
}

fn check(disk: &FaultDisk, more: usize, what: &str) {
    let journal = open(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut found = Vec::new();
    journal.notes("test").each("", |name, value| found.push((name.to_owned(), value.to_vec()))).expect("read");
    let wanted = (0..KEPT + more).map(|number| (format!("kept/{number:02}"), vec![number as u8; 100]));
    assert_eq!(found, wanted.collect::<Vec<_>>(), "{what}");
    journal.close(Duration::ZERO);
}

#[test]
fn a_power_cut_while_the_state_is_compacted_loses_no_note() {
    let mut cuts = 0;
    for unsynced in [Unsynced::Dropped, Unsynced::Kept, Unsynced::Random(7), Unsynced::Random(8)] {
        for operation in 1.. {
            let disk = FaultDisk::default();
            let journal = grown(&disk);
            disk.cut_at(operation, unsynced);
            let notes = journal.notes("test");
            let compacted = notes.compact();
            // What is written into the new file is as safe as in the old one.
            let more = Change::Put(format!("kept/{KEPT:02}"), vec![KEPT as u8; 100]);
            let written = compacted.is_ok() && notes.change(vec![more]).is_ok();
            let is_over = !disk.is_off();
            disk.cut(unsynced);
            drop(journal);
            let what = format!("cut at operation {operation}, unsynced {unsynced:?}");
            // A note that was not answered for may be there.
            if written || !disk.is_off() {
                check(&disk.restart(), 1, &what);
            } else {
                let journal = open(&disk.restart()).unwrap_or_else(|error| panic!("{what}: {error}"));
                let mut count = 0;
                journal.notes("test").each("kept/", |_, _| count += 1).expect("read");
                assert!(count >= KEPT, "{what}: {count}");
                journal.close(Duration::ZERO);
            }
            cuts += 1;
            if is_over {
                break;
            }
        }
    }
    println!("{cuts} cuts");
}

#[test]
fn a_state_that_has_shed_what_it_held_becomes_small_while_it_works_and_at_a_start() {
    let disk = FaultDisk::default();
    let journal = grown(&disk);
    journal.notes("test").compact().expect("compacted");
    journal.close(Duration::ZERO);
    drop(journal);
    assert!(length(&disk) < 4 << 20, "{}", length(&disk));
    check(&disk, 0, "compacted while it worked");

    // A clean stop may cut free pages off the end of the file; a kill leaves all of them.
    let disk = FaultDisk::default();
    let journal = grown(&disk);
    let killed = disk.kill();
    drop(journal);
    let disk = killed;
    let before = length(&disk);
    check(&disk, 0, "compacted at the start");
    assert!(before > 4 << 20 && length(&disk) < 4 << 20, "{before}, then {}", length(&disk));
}

#[test]
fn a_state_that_cannot_be_compacted_works_on() {
    for fault in [Fault::Full, Fault::Sync, Fault::SyncFolder, Fault::NoFreeBytes] {
        let disk = FaultDisk::default();
        let journal = grown(&disk);
        if fault == Fault::SyncFolder {
            disk.fail(Some(fault));
        } else {
            disk.fail_at("state.tmp", Some(fault));
        }
        // Without room for a copy it is not tried.
        assert_eq!(journal.notes("test").compact().is_err(), fault != Fault::NoFreeBytes, "{fault:?}");
        disk.fail(None);
        let more = Change::Put(format!("kept/{KEPT:02}"), vec![KEPT as u8; 100]);
        journal.notes("test").change(vec![more]).expect("written");
        disk.cut(Unsynced::Dropped);
        drop(journal);
        check(&disk.restart(), 1, &format!("{fault:?}"));
    }
}

#[test]
fn a_state_whose_file_is_removed_is_safe_also_where_the_name_of_the_new_one_was_not_synced() {
    let disk = FaultDisk::default();
    let journal = open(&disk).expect("opens");
    let notes = journal.notes("test");
    let kept = |number: usize| vec![Change::Put(format!("kept/{number:02}"), vec![number as u8; 100])];
    notes.change((0..KEPT - 1).flat_map(kept).collect()).expect("written");
    let path = disk.damage("state.redb", |_| ());
    disk.remove(&path).expect("removed");
    disk.sync_folder(path.parent().expect("a folder")).expect("synced");
    disk.fail(Some(Fault::SyncFolder));
    notes.change(kept(KEPT - 1)).expect_err("the new file's name may be lost with the power");
    disk.fail(None);
    notes.change(kept(KEPT)).expect("written");
    disk.cut(Unsynced::Dropped);
    drop(journal);
    check(&disk.restart(), 1, "removed");
}

#[test]
fn notes_are_read_after_a_write_that_failed() {
    for fault in [Fault::Full, Fault::Sync] {
        let disk = FaultDisk::default();
        let journal = open(&disk).expect("opens");
        let notes = journal.notes("test");
        let kept = |number: usize| vec![Change::Put(format!("kept/{number:02}"), vec![number as u8; 100])];
        notes.change((0..KEPT).flat_map(kept).collect()).expect("written");
        disk.fail_at("state.redb", Some(fault));
        notes.change(vec![Change::Put("large".into(), vec![7; 4 << 20])]).expect_err("the disk fails");
        assert_eq!(notes.read("kept/01").expect("read while it fails"), Some(vec![1; 100]), "{fault:?}");
        disk.fail(None);
        assert_eq!(notes.all("kept/").expect("read").len(), KEPT, "{fault:?}");
        notes.change(kept(KEPT)).expect("written");
        assert_eq!(notes.all("kept/").expect("read").len(), KEPT + 1, "{fault:?}");
        disk.cut(Unsynced::Dropped);
        drop(journal);
        check(&disk.restart(), 1, &format!("{fault:?}"));
    }
}

#[test]
fn a_state_one_of_whose_fsyncs_failed_is_written_into_a_new_file() {
    let kept = |number: usize| vec![Change::Put(format!("kept/{number:02}"), vec![number as u8; 100])];
    for unsynced in [Unsynced::Dropped, Unsynced::Random(7), Unsynced::Random(8)] {
        for number in 1.. {
            let disk = FaultDisk::default();
            let journal = open(&disk).expect("opens");
            let notes = journal.notes("test");
            notes.change((0..KEPT - 1).flat_map(kept).collect()).expect("written");
            disk.fail_sync("state.redb", number);
            let written = notes.change(kept(KEPT - 1));
            if !disk.has_failed() {
                assert!(number > 1, "a commit syncs");
                break;
            }
            written.expect_err("an fsync has failed");
            // The pages of that fsync never get to the disk by this file, and no later fsync says so.
            for more in [KEPT - 1, KEPT] {
                notes.change(kept(more)).expect("written");
            }
            disk.cut(unsynced);
            drop(journal);
            check(&disk.restart(), 1, &format!("fsync {number}, {unsynced:?}"));
        }
    }
}
