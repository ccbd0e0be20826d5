//! Keys on disk: a sorted file, with a filter in memory that answers nearly every question about keys that are not in it.
//!
//! On disk: pages of 256 keys of 16 bytes, little-endian, in order; the last page may be shorter. In memory, about 1.4 bytes a
//! key: each page's first key and CRC-32, and a Bloom filter whose bits of one key lie in one cache line. Files have no names: the
//! system takes them with the process. What they hold is read back from the rows at the next start.
//!
//! *On failure*: a page whose checksum does not fit is an error (XX001), never a wrong answer.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result, SqlState};

const KEY_BYTES: usize = size_of::<u128>();
const PAGE_KEYS: usize = 256;
const PAGE_BYTES: usize = PAGE_KEYS * KEY_BYTES;

/// Sorted keys in a file.
#[derive(Debug)]
pub(super) struct Run {
    file: File,
    keys: usize,
    pages: Vec<Page>,
    filter: Filter,
}

#[derive(Debug)]
struct Page {
    first: u128,
    crc: u32,
}

impl Run {
    /// Writes keys that come in order, without repetitions, to a file in `dir`; `count` is at least their number.
    pub(super) fn write(dir: &Path, count: usize, keys: impl Iterator<Item = Result<u128>>) -> Result<Run> {
        let file = unnamed(dir).map_err(|error| failed("create", &error))?;
        let mut run = Run { file, keys: 0, pages: Vec::with_capacity(count.div_ceil(PAGE_KEYS)), filter: Filter::new(count) };
        let mut out = BufWriter::with_capacity(16 * PAGE_BYTES, &run.file);
        let mut page = Vec::with_capacity(PAGE_BYTES);
        let mut first = 0;
        for key in keys {
            let key = key?;
            if page.is_empty() {
                first = key;
            }
            page.extend_from_slice(&key.to_le_bytes());
            run.filter.add(key);
            run.keys += 1;
            if page.len() == PAGE_BYTES {
                run.pages.push(Page { first, crc: crc32fast::hash(&page) });
                out.write_all(&page).map_err(|error| failed("write", &error))?;
                page.clear();
            }
        }
        if !page.is_empty() {
            run.pages.push(Page { first, crc: crc32fast::hash(&page) });
            out.write_all(&page).map_err(|error| failed("write", &error))?;
        }
        out.flush().map_err(|error| failed("write", &error))?;
        drop(out);
        Ok(run)
    }

    /// Writes the keys of several runs as one. A key may be in more than one of them.
    pub(super) fn merge(dir: &Path, runs: &[Run]) -> Result<Run> {
        let mut heads: Vec<Reader<'_>> = runs.iter().map(Reader::new).collect::<Result<_>>()?;
        let merged = std::iter::from_fn(|| {
            let least = heads.iter().filter_map(Reader::key).min()?;
            for head in heads.iter_mut().filter(|head| head.key() == Some(least)) {
                if let Err(error) = head.advance() {
                    return Some(Err(error));
                }
            }
            Some(Ok(least))
        });
        Run::write(dir, runs.iter().map(Run::len).sum(), merged)
    }

    pub(super) fn len(&self) -> usize {
        self.keys
    }

    /// Memory of filter and index.
    pub(super) fn bytes(&self) -> usize {
        self.filter.bits.capacity() * size_of::<u64>() + self.pages.capacity() * size_of::<Page>()
    }

    pub(super) fn contains(&self, key: u128) -> Result<bool> {
        if !self.filter.may_have(key) {
            return Ok(false);
        }
        let after = self.pages.partition_point(|page| page.first <= key);
        let Some(number) = after.checked_sub(1) else { return Ok(false) };
        Ok(self.page(number)?.binary_search(&key).is_ok())
    }

    fn page(&self, number: usize) -> Result<Vec<u128>> {
        let keys = PAGE_KEYS.min(self.keys - number * PAGE_KEYS);
        let mut bytes = vec![0; keys * KEY_BYTES];
        self.file.read_exact_at(&mut bytes, (number * PAGE_BYTES) as u64).map_err(|error| failed("read", &error))?;
        if crc32fast::hash(&bytes) != self.pages[number].crc {
            return Err(Error::new(SqlState::DATA_CORRUPTED, "the keys seen lately are damaged on disk")
                .hint("Restart the server: it reads them again from the rows."));
        }
        Ok(bytes.as_chunks::<KEY_BYTES>().0.iter().map(|key| u128::from_le_bytes(*key)).collect())
    }
}

/// Reads a run from its beginning.
struct Reader<'a> {
    run: &'a Run,
    page: usize,
    keys: Vec<u128>,
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(run: &'a Run) -> Result<Self> {
        let keys = if run.keys == 0 { Vec::new() } else { run.page(0)? };
        Ok(Self { run, page: 0, keys, at: 0 })
    }

    fn key(&self) -> Option<u128> {
        self.keys.get(self.at).copied()
    }

    fn advance(&mut self) -> Result<()> {
        self.at += 1;
        if self.at == self.keys.len() && self.page + 1 < self.run.pages.len() {
            self.page += 1;
            self.keys = self.run.page(self.page)?;
            self.at = 0;
        }
        Ok(())
    }
}

/// A Bloom filter of 512-bit blocks: one key's bits are in one cache line. With ten bits a key about one in a hundred keys that
/// are not there passes.
#[derive(Debug)]
struct Filter {
    bits: Vec<u64>,
    blocks: u64,
}

const BITS_PER_KEY: usize = 10;
const BLOCK_BITS: usize = 512;
const BLOCK_WORDS: usize = BLOCK_BITS / 64;
const PROBES: u32 = 6;

impl Filter {
    fn new(keys: usize) -> Self {
        let blocks = (keys * BITS_PER_KEY).div_ceil(BLOCK_BITS).max(1);
        Self { bits: vec![0; blocks * BLOCK_WORDS], blocks: blocks as u64 }
    }

    /// Keys are spread evenly, so their own bits serve: the high half chooses the block, the low half the bits in it.
    fn place(&self, key: u128) -> (usize, u64) {
        let block = ((u128::from((key >> 64) as u64) * u128::from(self.blocks)) >> 64) as usize;
        (block * BLOCK_WORDS, (key as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn add(&mut self, key: u128) {
        let (block, mut bits) = self.place(key);
        for _ in 0..PROBES {
            let bit = (bits >> 55) as usize;
            self.bits[block + bit / 64] |= 1 << (bit % 64);
            bits <<= 9;
        }
    }

    fn may_have(&self, key: u128) -> bool {
        let (block, mut bits) = self.place(key);
        (0..PROBES).all(|_| {
            let bit = (bits >> 55) as usize;
            bits <<= 9;
            self.bits[block + bit / 64] & (1 << (bit % 64)) != 0
        })
    }
}

/// A new file whose name is gone already.
fn unnamed(dir: &Path) -> io::Result<File> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    std::fs::create_dir_all(dir)?;
    let path = dir.join(format!("keys-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

fn failed(action: &str, error: &io::Error) -> Error {
    let state = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => SqlState::DISK_FULL,
        _ => SqlState::IO_ERROR,
    };
    Error::new(state, format!("could not {action} a file of keys: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u128) -> u128 {
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
    }

    fn run(dir: &Path, numbers: impl Iterator<Item = u128>) -> Run {
        let mut keys: Vec<u128> = numbers.map(key).collect();
        keys.sort_unstable();
        Run::write(dir, keys.len(), keys.into_iter().map(Ok)).unwrap()
    }

    #[test]
    fn a_run_has_its_keys_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let (even, odd) = (run(dir.path(), (0..20_000).step_by(2)), run(dir.path(), (1..20_000).step_by(2)));
        let overlapping = run(dir.path(), 0..300);
        let all = Run::merge(dir.path(), &[even, odd, overlapping]).unwrap();
        assert_eq!(all.len(), 20_000);
        assert!((0..20_000).all(|number| all.contains(key(number)).unwrap()));
        let passed = (20_000..120_000).filter(|number| all.filter.may_have(key(*number))).count();
        assert!(passed < 3_000, "{passed} of 100,000 pass the filter");
        assert!((20_000..120_000).all(|number| !all.contains(key(number)).unwrap()));
        assert!(all.bytes() < 2 * all.len(), "{} bytes", all.bytes());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "files have no names");
    }

    #[test]
    fn damage_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let run = run(dir.path(), 0..1_000);
        run.file.write_all_at(&[7], 600 * KEY_BYTES as u64).unwrap();
        let outcomes: Vec<_> = (0..1_000).map(|number| run.contains(key(number))).collect();
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_err()).count(), PAGE_KEYS);
        assert!(outcomes.iter().flatten().all(|found| *found));
    }
}
