//! Cuts, flips, rollover and truncation of the log.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::error::SqlState;

const SEGMENT: u64 = 4096;

/// Payloads as the log of (first, next, bytes); columns full of NULLs are long runs of zeros.
fn payload(seed: u64, length: usize) -> Vec<u8> {
    if seed.is_multiple_of(3) { vec![0; length] } else { (0..length).map(|at| (seed as usize * 31 + at * 7) as u8).collect() }
}

fn fill(dir: &Path, lengths: &[usize], segment_bytes_max: u64) -> Vec<(u64, u64, Vec<u8>)> {
    let mut wal = Wal::open(dir, segment_bytes_max, 0, &mut |_| Ok(())).unwrap();
    let mut lsn = wal.next_lsn().unwrap_or(1);
    let mut records = Vec::new();
    for (index, length) in lengths.iter().enumerate() {
        let (next, bytes) = (lsn + 1 + index as u64 % 3, payload(lsn, *length));
        let (head, tail) = bytes.split_at(length / 2);
        wal.append(lsn, next, &[head, tail]).unwrap();
        wal.sync().unwrap();
        records.push((lsn, next, bytes));
        lsn = next;
    }
    records
}

fn read(dir: &Path, from_lsn: u64) -> Result<Vec<(u64, u64, Vec<u8>)>> {
    let mut records = Vec::new();
    Wal::open(dir, SEGMENT, from_lsn, &mut |record| {
        records.push((record.first_lsn, record.next_lsn, record.payload));
        Ok(())
    })?;
    Ok(records)
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn reads_back_over_segments_and_goes_on() {
    let dir = TempDir::new().unwrap();
    let mut records = fill(dir.path(), &[10, 0, 3000, 2000, 5, 9000, 1], SEGMENT);
    assert!(segments(dir.path()).len() >= 3);
    assert_eq!(read(dir.path(), 0).unwrap(), records);
    records.extend(fill(dir.path(), &[100, 4000, 7], SEGMENT));
    assert_eq!(read(dir.path(), 0).unwrap(), records);
    let from = records[4].0;
    assert_eq!(read(dir.path(), from).unwrap(), records[4..]);
}

#[test]
fn truncation_deletes_whole_segments_below() {
    let dir = TempDir::new().unwrap();
    let records = fill(dir.path(), &[3000; 12], SEGMENT);
    let mut wal = Wal::open(dir.path(), SEGMENT, 0, &mut |_| Ok(())).unwrap();
    let keep = records[7].0;
    wal.cut_before(keep).unwrap().remove().unwrap();
    assert!(wal.first_lsn().unwrap() <= keep && wal.first_lsn().unwrap() > records[3].0);
    assert_eq!(wal.bytes(), segments(dir.path()).iter().map(|path| fs::metadata(path).unwrap().len()).sum::<u64>());
    assert_eq!(read(dir.path(), keep).unwrap(), records[7..]);
    wal.cut_before(u64::MAX).unwrap().remove().unwrap();
    assert_eq!(segments(dir.path()).len(), 1);
    assert_eq!(wal.next_lsn(), records.last().map(|record| record.1));
}

#[test]
fn every_cut_of_the_tail_recovers_the_whole_records() {
    let dir = TempDir::new().unwrap();
    let records = fill(dir.path(), &[30, 0, 700, 81], u64::MAX);
    let path = segments(dir.path()).remove(0);
    let whole = fs::read(&path).unwrap();
    for cut in 0..=whole.len() {
        let copy = TempDir::new().unwrap();
        let file = copy.path().join(path.file_name().unwrap());
        // Half of the cuts leave the file at its full length: allocated, never written.
        let sector = cut.next_multiple_of(512).min(whole.len());
        let mut left = whole[..cut].to_vec();
        if cut > 64 && cut == sector {
            left.resize(whole.len(), 0);
        }
        fs::write(&file, &left).unwrap();
        let found = read(copy.path(), 0).unwrap();
        let mut end = SEGMENT_HEADER;
        let expected = records.iter().take_while(|record| {
            end += RECORD_HEADER + record.2.len() + padding(record.2.len() as u64).len();
            end <= cut
        });
        assert_eq!(found, expected.cloned().collect::<Vec<_>>(), "cut at {cut}");
        let mut again = found;
        again.extend(fill(copy.path(), &[20], u64::MAX));
        assert_eq!(read(copy.path(), 0).unwrap(), again, "appending after a cut at {cut}");
    }
}

#[test]
fn lost_middle_of_a_synced_log_is_damage() {
    let dir = TempDir::new().unwrap();
    fill(dir.path(), &[2000, 2000, 2000], u64::MAX);
    let path = segments(dir.path()).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    bytes[2560..3072].fill(0);
    fs::write(&path, &bytes).unwrap();
    assert_eq!(read(dir.path(), 0).unwrap_err().state(), SqlState::DATA_CORRUPTED);
    assert_eq!(fs::read(&path).unwrap(), bytes, "nothing is changed");
}

#[test]
fn a_missing_segment_is_damage() {
    let dir = TempDir::new().unwrap();
    fill(dir.path(), &[3000; 8], SEGMENT);
    fs::remove_file(&segments(dir.path())[1]).unwrap();
    assert_eq!(read(dir.path(), 0).unwrap_err().state(), SqlState::DATA_CORRUPTED);
}

#[test]
fn unsynced_records_may_be_lost_in_any_order() {
    let dir = TempDir::new().unwrap();
    let mut wal = Wal::open(dir.path(), SEGMENT, 0, &mut |_| Ok(())).unwrap();
    for lsn in 1..5 {
        wal.append(lsn, lsn + 1, &[&payload(1, 1000)]).unwrap();
    }
    let path = segments(dir.path()).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    bytes[1536..2048].fill(0);
    fs::write(&path, &bytes).unwrap();
    assert_eq!(read(dir.path(), 0).unwrap().len(), 1);
}

#[test]
fn wrong_order_is_refused_and_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let mut wal = Wal::open(dir.path(), SEGMENT, 0, &mut |_| Ok(())).unwrap();
    wal.append(5, 8, &[b"a"]).unwrap();
    for (first, next) in [(5, 8), (9, 10), (8, 8), (8, 7)] {
        assert_eq!(wal.append(first, next, &[b"b"]).unwrap_err().state(), SqlState::INTERNAL_ERROR);
    }
    wal.append(8, 9, &[b"c"]).unwrap();
    assert_eq!(read(dir.path(), 0).unwrap().len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A flipped bit is never accepted and never taken for a torn tail, be it in the last record.
    #[test]
    fn every_flip_is_an_error(lengths in prop::collection::vec(0_usize..1500, 1..8), at in any::<prop::sample::Index>(), bit in 0..8) {
        let dir = TempDir::new().unwrap();
        fill(dir.path(), &lengths, SEGMENT);
        let path = at.get(&segments(dir.path())).clone();
        let mut bytes = fs::read(&path).unwrap();
        let position = at.index(bytes.len());
        bytes[position] ^= 1_u8 << bit;
        fs::write(&path, &bytes).unwrap();
        let error = read(dir.path(), 0).unwrap_err();
        prop_assert_eq!(error.state(), SqlState::DATA_CORRUPTED);
        let name = path.display().to_string();
        prop_assert!(error.report().message.contains(&name));
        prop_assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}
