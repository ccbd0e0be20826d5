//! Reading the log back: order, checksums, and the torn tail.
//!
//! *Place*: [`super::Wal::open`] calls it and cuts the tail. It only reads, but for removing a last segment that never came to be.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::record::{BadSegment, FORMAT, RECORD_HEADER, RECORD_MAGIC, RecordHeader, SEGMENT_HEADER, SegmentHeader, ZeroSectors, padding};
use super::{RECORD_BYTES_MAX, Record, SUFFIX, Segment, WalError};
use crate::error::Result;

const READ_BYTES: usize = 256 * 1024;

/// What is in the log.
pub(super) struct Recovered {
    /// With their sizes up to the last whole record.
    pub segments: Vec<Segment>,
    /// Of the last segment.
    pub salt: Option<u64>,
    pub next_lsn: Option<u64>,
    /// The last segment is longer than its records.
    pub torn: bool,
}

/// Reads every segment of `dir` in order. Records with `next_lsn > from_lsn` go to `replay`.
pub(super) fn scan(dir: &Path, from_lsn: u64, replay: &mut dyn FnMut(Record) -> Result<()>) -> Result<Recovered> {
    let mut recovered = Recovered { segments: Vec::new(), salt: None, next_lsn: None, torn: false };
    let files = list(dir)?;
    for (index, (first_lsn, path)) in files.iter().enumerate() {
        let last = index + 1 == files.len();
        if let Some(expected) = recovered.next_lsn
            && expected != *first_lsn
        {
            return Err(damaged(path, 0, format!("it should begin at LSN {expected}")).into());
        }
        let mut reader = SegmentReader::open(path, last)?;
        let Some(header) = reader.header(*first_lsn)? else {
            // Its creation was cut short, before anything was written to it.
            fs::remove_file(path).map_err(WalError::io("remove", path))?;
            continue;
        };
        reader.next_lsn = *first_lsn;
        while let Some(record) = reader.record(header.salt, from_lsn)? {
            if let Some(record) = record {
                replay(record)?;
            }
        }
        recovered.next_lsn = Some(reader.next_lsn);
        recovered.salt = Some(header.salt);
        recovered.torn = reader.position < reader.length;
        recovered.segments.push(Segment { first_lsn: *first_lsn, path: path.clone(), bytes: reader.position });
    }
    Ok(recovered)
}

fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>, WalError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(WalError::io("read", dir))? {
        let path = entry.map_err(WalError::io("read", dir))?.path();
        if path.extension().is_none_or(|extension| extension != SUFFIX) {
            continue;
        }
        let first_lsn = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        let first_lsn = first_lsn.ok_or_else(|| damaged(&path, 0, "its name is not an LSN".to_owned()))?;
        files.push((first_lsn, path));
    }
    files.sort_unstable();
    Ok(files)
}

fn damaged(path: &Path, offset: u64, what: String) -> WalError {
    WalError::Damaged { path: path.to_owned(), offset, what }
}

struct SegmentReader<'a> {
    path: &'a Path,
    file: BufReader<File>,
    length: u64,
    /// End of the last whole record.
    position: u64,
    next_lsn: u64,
    /// Only the last segment may have a torn tail.
    last: bool,
}

impl<'a> SegmentReader<'a> {
    fn open(path: &'a Path, last: bool) -> Result<Self, WalError> {
        let file = File::open(path).map_err(WalError::io("open", path))?;
        let length = file.metadata().map_err(WalError::io("read", path))?.len();
        Ok(Self { path, file: BufReader::with_capacity(READ_BYTES, file), length, position: 0, next_lsn: 0, last })
    }

    /// None where the segment never came to be.
    fn header(&mut self, first_lsn: u64) -> Result<Option<SegmentHeader>, WalError> {
        let mut bytes = [0; SEGMENT_HEADER];
        let present = self.length.min(SEGMENT_HEADER as u64) as usize;
        self.read(&mut bytes[..present])?;
        if self.last && self.length <= SEGMENT_HEADER as u64 && (present < SEGMENT_HEADER || bytes == [0; SEGMENT_HEADER]) {
            return Ok(None);
        }
        let header = SegmentHeader::decode(&bytes).map_err(|bad| match bad {
            BadSegment::Damaged => damaged(self.path, 0, "segment header is invalid".to_owned()),
            BadSegment::Format(found) => WalError::Format { path: self.path.to_owned(), found, known: FORMAT },
        })?;
        if header.first_lsn != first_lsn {
            return Err(damaged(self.path, 0, format!("its header says that it begins at LSN {}", header.first_lsn)));
        }
        self.position = SEGMENT_HEADER as u64;
        Ok(Some(header))
    }

    /// The next record (none inside where it lies below `from_lsn`), or none at the end.
    fn record(&mut self, salt: u64, from_lsn: u64) -> Result<Option<Option<Record>>, WalError> {
        let left = self.length - self.position;
        if left == 0 {
            return Ok(None);
        }
        let mut bytes = [0; RECORD_HEADER];
        let present = left.min(RECORD_HEADER as u64) as usize;
        self.read(&mut bytes[..present])?;
        let Some(header) = RecordHeader::decode(&bytes, salt).filter(|_| present == RECORD_HEADER) else {
            let zeros = present < RECORD_HEADER || has_zero_sector(self.position, &bytes);
            return self.bad("record header is invalid", zeros, salt).map(|()| None);
        };
        if header.first_lsn != self.next_lsn || header.count == 0 {
            return Err(damaged(self.path, self.position, format!("record begins at LSN {}, not {}", header.first_lsn, self.next_lsn)));
        }
        let size = u64::from(header.length) + padding(u64::from(header.length)).len() as u64;
        if u64::from(header.length) > RECORD_BYTES_MAX {
            return Err(damaged(self.path, self.position, format!("record of {} bytes is too large", header.length)));
        }
        if size > left - RECORD_HEADER as u64 {
            return self.bad("record is incomplete", true, salt).map(|()| None);
        }
        let mut payload = vec![0; size as usize];
        self.read(&mut payload)?;
        if crc32fast::hash(&payload) != header.payload_crc {
            let mut zero_sectors = ZeroSectors::after_header(self.position + RECORD_HEADER as u64);
            zero_sectors.update(&payload);
            return self.bad("record checksum does not match", zero_sectors.finish() > header.zero_sectors, salt).map(|()| None);
        }
        self.position += RECORD_HEADER as u64 + size;
        self.next_lsn = header.next_lsn();
        if self.next_lsn <= from_lsn {
            return Ok(Some(None));
        }
        payload.truncate(header.length as usize);
        Ok(Some(Some(Record { first_lsn: header.first_lsn, next_lsn: self.next_lsn, payload })))
    }

    /// Judges the record at `position`: fine as a torn tail, else an error. `unwritten` says that bytes of it are missing or zero.
    fn bad(&mut self, what: &str, unwritten: bool, salt: u64) -> Result<(), WalError> {
        if !self.last || !unwritten {
            return Err(damaged(self.path, self.position, what.to_owned()));
        }
        match self.durable_beyond(salt)? {
            Some(later) => Err(damaged(self.path, self.position, format!("{what}, but the record at offset {later} was written after it"))),
            None => Ok(()),
        }
    }

    /// The offset of a later record whose header says that the one at `position` had been synced.
    fn durable_beyond(&mut self, salt: u64) -> Result<Option<u64>, WalError> {
        let mut start = self.position + 1;
        self.file.seek(SeekFrom::Start(start)).map_err(WalError::io("read", self.path))?;
        let mut window = Vec::with_capacity(2 * READ_BYTES);
        while start + RECORD_HEADER as u64 <= self.length {
            let more = (self.length - start - window.len() as u64).min(READ_BYTES as u64);
            (&mut self.file).take(more).read_to_end(&mut window).map_err(WalError::io("read", self.path))?;
            for at in memchr::memmem::find_iter(&window, &RECORD_MAGIC) {
                let Some(bytes) = window.get(at..at + RECORD_HEADER).and_then(|bytes| bytes.try_into().ok()) else { break };
                if RecordHeader::decode(bytes, salt).is_some_and(|header| header.durable_lsn > self.next_lsn) {
                    return Ok(Some(start + at as u64));
                }
            }
            if start + window.len() as u64 >= self.length {
                break;
            }
            // A header may lie across the edge of two reads.
            let consumed = window.len().saturating_sub(RECORD_HEADER - 1);
            window.drain(..consumed);
            start += consumed as u64;
        }
        Ok(None)
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), WalError> {
        self.file.read_exact(bytes).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => damaged(self.path, self.position, "file became shorter while it was read".to_owned()),
            _ => WalError::Io { action: "read", path: self.path.to_owned(), source },
        })
    }
}

fn has_zero_sector(position: u64, bytes: &[u8]) -> bool {
    let mut zero_sectors = ZeroSectors::starting_at(position);
    zero_sectors.update(bytes);
    zero_sectors.finish() > 0
}
