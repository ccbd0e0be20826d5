//! Batches, scans and reopening of the state store.

use std::fs::OpenOptions;

use tempfile::TempDir;

use super::*;
use crate::error::SqlState;

const MEMORY: usize = 8 * 1024 * 1024;

fn pairs(state: &State, family: Family, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    state
        .scan(family, prefix, &mut |key, value| {
            found.push((key.to_vec(), value.to_vec()));
            Ok(())
        })
        .unwrap();
    found
}

fn put(state: &State, family: Family, key: &[u8], value: impl Into<Vec<u8>>) {
    let mut batch = Batch::default();
    batch.put(family, key, value);
    state.write(batch).unwrap();
}

#[test]
fn batches_scans_and_prefixes() {
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path(), MEMORY).unwrap();
    let mut batch = Batch::default();
    for key in [&b"a"[..], b"b\x00", b"b\xff", b"b\xff\xff", b"c", b"\xff", b"\xff\xff\x01"] {
        batch.put(Family::Index, key, key);
    }
    batch.put(Family::Index, b"gone", b"x");
    batch.delete(Family::Index, b"gone");
    batch.put(Family::Meta, b"a", b"meta");
    state.write(batch).unwrap();

    let keys = |prefix: &[u8]| pairs(&state, Family::Index, prefix).into_iter().map(|pair| pair.0).collect::<Vec<_>>();
    assert_eq!(keys(b"b"), [b"b\x00".to_vec(), b"b\xff".to_vec(), b"b\xff\xff".to_vec()]);
    assert_eq!(keys(b"\xff").len(), 2);
    assert_eq!(keys(b"").len(), 7);
    let many = state.get_many(Family::Index, &[b"c".to_vec(), b"none".to_vec(), b"a".to_vec()]).unwrap();
    assert_eq!(many, [Some(b"c".to_vec()), None, Some(b"a".to_vec())]);

    state.delete_prefix(Family::Index, b"b\xff").unwrap();
    state.delete_prefix(Family::Index, b"\xff").unwrap();
    assert_eq!(keys(b""), [b"a".to_vec(), b"b\x00".to_vec(), b"c".to_vec()]);
    assert_eq!(state.get(Family::Meta, b"a").unwrap().as_deref(), Some(&b"meta"[..]));
}

#[test]
fn reopens_and_refuses_a_second_opener() {
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path(), MEMORY).unwrap();
    put(&state, Family::Meta, b"k", b"v");
    assert_eq!(State::open(dir.path(), MEMORY).unwrap_err().state(), SqlState::OBJECT_IN_USE);
    state.sync().unwrap();
    drop(state);
    let state = State::open(dir.path(), MEMORY).unwrap();
    assert_eq!(state.get(Family::Meta, b"k").unwrap().as_deref(), Some(&b"v"[..]));
}

/// Cuts the newest file of RocksDB's own log.
fn cut_log(dir: &Path, keep: impl Fn(u64) -> u64) {
    let logs = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut logs: Vec<_> = logs.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect();
    logs.sort();
    let file = OpenOptions::new().write(true).open(logs.last().unwrap()).unwrap();
    file.set_len(keep(file.metadata().unwrap().len())).unwrap();
}

#[test]
fn a_torn_unsynced_tail_is_dropped_and_a_lost_synced_one_is_damage() {
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path(), MEMORY).unwrap();
    put(&state, Family::Meta, b"a", b"1");
    state.sync().unwrap();
    put(&state, Family::Meta, b"b", vec![7; 1000]);
    drop(state);
    cut_log(dir.path(), |length| length - 10);
    let state = State::open(dir.path(), MEMORY).unwrap();
    assert_eq!(pairs(&state, Family::Meta, b""), [(b"a".to_vec(), b"1".to_vec())]);

    put(&state, Family::Meta, b"c", vec![7; 1000]);
    state.sync().unwrap();
    drop(state);
    cut_log(dir.path(), |length| length - 10);
    assert_eq!(State::open(dir.path(), MEMORY).unwrap_err().state(), SqlState::DATA_CORRUPTED);
}

#[test]
fn space_of_deleted_blocks_comes_back() {
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path(), MEMORY).unwrap();
    // Incompressible, so that sizes on disk are known.
    let block = |seed: u64| {
        let mut word = seed;
        let words = std::iter::repeat_with(|| {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (word >> 56) as u8
        });
        words.take(256 * 1024).collect::<Vec<u8>>()
    };
    // Each block replaces the one before it, as merges do; eight stay.
    for seed in 1..400_u64 {
        let mut batch = Batch::default();
        batch.put(Family::Blocks, seed.to_be_bytes(), block(seed));
        batch.delete(Family::Blocks, seed.saturating_sub(8).to_be_bytes());
        state.write(batch).unwrap();
    }
    assert_eq!(state.get(Family::Blocks, &399_u64.to_be_bytes()).unwrap(), Some(block(399)));
    assert!(state.bytes() < 64 << 20, "{} bytes for 2 MiB of live blocks", state.bytes());
    state.delete_prefix(Family::Blocks, b"").unwrap();
    assert!(state.bytes() < 16 << 20, "{} bytes for none", state.bytes());
}
