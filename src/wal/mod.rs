//! The write-ahead log: segment files of checksummed records.
//!
//! *Place*: written by `store::commit`, read by `store::recover`. Knows nothing of tables.

use std::path::{Path, PathBuf};

use crate::error::Result;

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
}

impl Wal {
    /// Opens the log in `dir` (made if missing), cuts a torn tail, and calls `replay` for every record with
    /// `next_lsn > from_lsn`, in order. Damage before the tail is an error (XX001) and nothing is changed.
    pub fn open(dir: &Path, segment_bytes_max: u64, from_lsn: u64, replay: &mut dyn FnMut(Record) -> Result<()>) -> Result<Wal> {
        let _ = (segment_bytes_max, from_lsn, replay);
        Ok(Wal { dir: dir.to_owned() })
    }

    /// Appends one record; durable after [`Wal::sync`]. `parts` are written one after the other as the payload.
    pub fn append(&mut self, first_lsn: u64, next_lsn: u64, parts: &[&[u8]]) -> Result<()> {
        let _ = (first_lsn, next_lsn, parts);
        unimplemented!()
    }

    /// fdatasync of everything appended. After an error the log must not be used again: the caller stops the server.
    pub fn sync(&mut self) -> Result<()> {
        unimplemented!()
    }

    /// Deletes whole segments whose records all lie below `lsn`.
    pub fn truncate_before(&mut self, lsn: u64) -> Result<()> {
        let _ = lsn;
        unimplemented!()
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        unimplemented!("{:?}", self.dir)
    }
}
