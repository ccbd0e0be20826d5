//! The write-ahead log: segment files of checksummed records.
//!
//! *Place*: written by `store::commit`, read by `store::recover`. Knows nothing of tables.
//!
//! *Invariants*: (1) records are contiguous: each begins at the LSN where the one before it ends; (2) a segment is synced
//! before the next one is made, so that only the last can have a torn tail; (3) what has been read by [`Wal::open`] is durable
//! when it returns, so that nothing can be built on a record that a second crash would take away.
//!
//! *On failure*: a record that could not be written is taken back, and the log goes on (a full disk is an error of the
//! statement). A failed sync, or a record that cannot be taken back, closes the log for good: what is on disk is no longer
//! known, and the page cache may pass off lost pages as clean.

mod error;
mod record;
mod recover;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crc32fast::Hasher;

use crate::error::Result;
pub use error::WalError;
use record::{RECORD_HEADER, RecordHeader, SEGMENT_HEADER, SegmentHeader, ZeroSectors, padding};

/// Greatest payload of one record. Recovery holds one record in memory.
pub const RECORD_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;

/// Records up to this size are copied together and written by one call.
const GATHER_BYTES_MAX: usize = 256 * 1024;

const SUFFIX: &str = "wal";

/// One record of the log, as recovery sees it.
#[derive(Debug)]
pub struct Record {
    /// First LSN of the record.
    pub first_lsn: u64,
    /// One past its last LSN; a record without rows takes one LSN.
    pub next_lsn: u64,
    /// The bytes given to [`Wal::append`].
    pub payload: Vec<u8>,
}

/// The open log.
#[derive(Debug)]
pub struct Wal {
    dir: PathBuf,
    segment_bytes_max: u64,
    /// In LSN order; the last is the one written to.
    segments: Vec<Segment>,
    active: Option<Active>,
    /// Where the log ends, once it has a segment.
    next_lsn: Option<u64>,
    durable_lsn: u64,
    poison: Option<String>,
    gather: Vec<u8>,
}

/// Segments that are no longer needed. If their files stay, the next start finds them below what it reads, and they are cut again.
#[derive(Debug)]
pub struct Cut {
    dir: PathBuf,
    /// Oldest first.
    paths: Vec<PathBuf>,
}

impl Cut {
    /// Deletes the files, oldest first, so that what a crash leaves has no gap. Takes long on some file systems. One cut is removed
    /// before the next one.
    pub fn remove(self) -> Result<()> {
        for path in &self.paths {
            fs::remove_file(path).map_err(WalError::io("remove", path))?;
        }
        if self.paths.is_empty() { Ok(()) } else { Ok(sync_dir(&self.dir)?) }
    }
}

#[derive(Debug)]
struct Segment {
    first_lsn: u64,
    path: PathBuf,
    bytes: u64,
}

#[derive(Debug)]
struct Active {
    /// Shared with whoever syncs it.
    file: Arc<File>,
    salt: u64,
    /// Something was written since the last sync.
    dirty: bool,
}

impl Wal {
    /// Opens the log in `dir` (made if missing), cuts a torn tail, and calls `replay` for every record with
    /// `next_lsn > from_lsn`, in order, one in memory at a time. Damage before the tail is an error (XX001) and nothing is
    /// changed. An empty directory is an empty log: the caller compares [`Wal::next_lsn`] with its own positions.
    pub fn open(dir: &Path, segment_bytes_max: u64, from_lsn: u64, replay: &mut dyn FnMut(Record) -> Result<()>) -> Result<Wal> {
        make_dir(dir)?;
        let recovered = recover::scan(dir, from_lsn, replay)?;
        let mut wal = Wal {
            dir: dir.to_owned(),
            segment_bytes_max,
            segments: recovered.segments,
            active: None,
            next_lsn: recovered.next_lsn,
            durable_lsn: recovered.next_lsn.unwrap_or(0),
            poison: None,
            gather: Vec::new(),
        };
        if let (Some(last), Some(salt)) = (wal.segments.last(), recovered.salt) {
            let file = OpenOptions::new().read(true).write(true).open(&last.path).map_err(WalError::io("open", &last.path))?;
            if recovered.torn {
                file.set_len(last.bytes).map_err(WalError::io("truncate", &last.path))?;
            }
            file.sync_all().map_err(WalError::io("fsync", &last.path))?;
            wal.active = Some(Active { file: Arc::new(file), salt, dirty: false });
        }
        sync_dir(dir)?;
        Ok(wal)
    }

    /// Appends one record; durable after [`Wal::sync`]. `parts` are written one after the other as the payload. On an error
    /// the log is as before, and the LSNs are free.
    pub fn append(&mut self, first_lsn: u64, next_lsn: u64, parts: &[&[u8]]) -> Result<()> {
        self.check_open()?;
        let expected = self.next_lsn.unwrap_or(first_lsn);
        let count = next_lsn.checked_sub(first_lsn).and_then(|count| u32::try_from(count).ok()).filter(|count| *count > 0);
        let (true, Some(count)) = (first_lsn == expected, count) else {
            return Err(WalError::OutOfOrder { first_lsn, next_lsn, expected }.into());
        };
        let bytes = parts.iter().map(|part| part.len() as u64).sum::<u64>();
        let length = u32::try_from(bytes).ok().filter(|_| bytes <= RECORD_BYTES_MAX);
        let length = length.ok_or(WalError::TooLarge { bytes, max: RECORD_BYTES_MAX })?;

        if self.segments.last().is_none_or(|last| last.bytes >= self.segment_bytes_max && last.first_lsn < first_lsn) {
            self.roll(first_lsn)?;
        }
        let (Some(segment), Some(active)) = (self.segments.last_mut(), self.active.as_mut()) else {
            return Err(crate::error::Error::internal("the log has no segment to write to"));
        };
        let pad = padding(bytes);
        let (mut crc, mut zero_sectors) = (Hasher::new(), ZeroSectors::after_header(segment.bytes + RECORD_HEADER as u64));
        for part in parts.iter().copied().chain([pad]) {
            crc.update(part);
            zero_sectors.update(part);
        }
        let header = RecordHeader {
            length,
            first_lsn,
            durable_lsn: self.durable_lsn,
            count,
            zero_sectors: zero_sectors.finish(),
            payload_crc: crc.finalize(),
        }
        .encode(active.salt);
        let size = RECORD_HEADER as u64 + bytes + pad.len() as u64;
        let whole = [header.as_slice()].into_iter().chain(parts.iter().copied()).chain([pad]);
        active.dirty = true;
        if let Err(source) = write_at(&active.file, segment.bytes, size, whole, &mut self.gather) {
            let error = WalError::Io { action: "write to", path: segment.path.clone(), source };
            // A half-written record followed by a good one would be damage to the next start.
            if active.file.set_len(segment.bytes).is_err() {
                self.poison = Some(error.to_string());
            }
            return Err(error.into());
        }
        segment.bytes += size;
        self.next_lsn = Some(next_lsn);
        Ok(())
    }

    /// fdatasync of everything appended. After an error the log must not be used again: the caller stops the server.
    pub fn sync(&mut self) -> Result<()> {
        let outcome = self.unsynced().map_or(Ok(()), |file| file.sync_data());
        self.synced(outcome)
    }

    /// The file with what is not durable yet, for another thread to sync; nothing may be appended until [`Wal::synced`] hears the outcome.
    pub fn unsynced(&self) -> Option<Arc<File>> {
        self.active.as_ref().filter(|active| active.dirty).map(|active| Arc::clone(&active.file))
    }

    /// The second half of [`Wal::sync`]: what `sync_data` of [`Wal::unsynced`] gave.
    pub fn synced(&mut self, outcome: std::io::Result<()>) -> Result<()> {
        self.check_open()?;
        if let (Err(source), Some(segment)) = (outcome, self.segments.last()) {
            let error = WalError::Io { action: "fsync", path: segment.path.clone(), source };
            self.poison = Some(error.to_string());
            return Err(error.into());
        }
        if let Some(active) = &mut self.active {
            active.dirty = false;
        }
        self.durable_lsn = self.next_lsn.unwrap_or(self.durable_lsn);
        Ok(())
    }

    /// Takes whole segments whose records all lie below `lsn` out of the log; [`Cut::remove`] deletes their files. The segment that is
    /// written to always stays.
    pub fn cut_before(&mut self, lsn: u64) -> Result<Cut> {
        self.check_open()?;
        let count = self.segments.iter().skip(1).take_while(|following| following.first_lsn <= lsn).count();
        let paths = self.segments.drain(..count).map(|segment| segment.path).collect();
        Ok(Cut { dir: self.dir.clone(), paths })
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// The oldest LSN that the log still holds, none for an empty log.
    pub fn first_lsn(&self) -> Option<u64> {
        self.segments.first().map(|segment| segment.first_lsn)
    }

    /// One past the newest LSN, none for a log that never had a record.
    pub fn next_lsn(&self) -> Option<u64> {
        self.next_lsn
    }

    fn check_open(&self) -> Result<(), WalError> {
        match &self.poison {
            Some(reason) => Err(WalError::Poisoned(reason.clone())),
            None => Ok(()),
        }
    }

    /// Starts a new segment. The old one is synced first (invariant 2).
    fn roll(&mut self, first_lsn: u64) -> Result<()> {
        self.sync()?;
        let path = self.dir.join(format!("{first_lsn:020}.{SUFFIX}"));
        let header = SegmentHeader { first_lsn, salt: rand::random() };
        match create(&self.dir, &path, &header) {
            Ok(file) => {
                self.active = Some(Active { file: Arc::new(file), salt: header.salt, dirty: false });
                self.segments.push(Segment { first_lsn, path, bytes: SEGMENT_HEADER as u64 });
                Ok(())
            }
            Err(error) => {
                if fs::remove_file(&path).is_err() && path.exists() {
                    self.poison = Some(error.to_string());
                }
                Err(error.into())
            }
        }
    }
}

fn create(dir: &Path, path: &Path, header: &SegmentHeader) -> Result<File, WalError> {
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(path).map_err(WalError::io("create", path))?;
    file.write_all(&header.encode()).map_err(WalError::io("write to", path))?;
    file.sync_all().map_err(WalError::io("fsync", path))?;
    sync_dir(dir)?;
    Ok(file)
}

/// Writes `parts` of `size` bytes in all, by one call when they are small.
fn write_at<'a>(file: &File, at: u64, size: u64, parts: impl Iterator<Item = &'a [u8]>, gather: &mut Vec<u8>) -> std::io::Result<()> {
    if size <= GATHER_BYTES_MAX as u64 {
        gather.clear();
        parts.for_each(|part| gather.extend_from_slice(part));
        return file.write_all_at(gather, at);
    }
    let mut position = at;
    for part in parts {
        file.write_all_at(part, position)?;
        position += part.len() as u64;
    }
    Ok(())
}

fn make_dir(dir: &Path) -> Result<(), WalError> {
    if !dir.is_dir() {
        fs::create_dir_all(dir).map_err(WalError::io("create", dir))?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_dir(parent)?;
        }
    }
    Ok(())
}

fn sync_dir(dir: &Path) -> Result<(), WalError> {
    File::open(dir).and_then(|file| file.sync_all()).map_err(WalError::io("fsync", dir))
}
