//! The bytes of a segment: headers, checksums, and how a torn write is told from damage.
//!
//! All integers are little-endian. A segment is a [`SegmentHeader`] of 32 bytes followed by records, each a
//! [`RecordHeader`] of 40 bytes, the payload, and one to eight bytes 0x55 up to the next multiple of eight.
//!
//! | segment header | bytes | | record header | bytes |
//! |---|---|---|---|---|
//! | `VERUSWAL` | 0..8 | | `VREC` | 0..4 |
//! | format version | 8..12 | | payload length | 4..8 |
//! | CRC-32 of the other fields | 12..16 | | first LSN | 8..16 |
//! | first LSN (also the file's name) | 16..24 | | LSNs below this were durable when this was written | 16..24 |
//! | salt | 24..32 | | number of LSNs | 24..28 |
//! | | | | zero sectors | 28..32 |
//! | | | | CRC-32 of payload and padding | 32..36 |
//! | | | | CRC-32 of the salt and of bytes 0..36 | 36..40 |
//!
//! *Torn or damaged.* The log is only ever extended, so what a crash leaves of an unfinished write is bytes that are
//! missing (beyond the end of the file) or zero (allocated, never written), by whole sectors. Everything else is damage. The
//! number of sectors that are zero by right is kept in the header, since columns full of NULLs are long runs of zeros; those
//! that a record shares with its neighbours never are, because headers and padding are not zero.
//! A durable LSN in a later header proves that what precedes it had been synced, whatever it looks like now. The salt, new for
//! every segment, keeps the bytes of a log that somebody stored in a table from passing for a record.

use crc32fast::Hasher;

/// Format version of the segments written.
pub(super) const FORMAT: u32 = 1;
/// Bytes of a segment's header.
pub(super) const SEGMENT_HEADER: usize = 32;
/// Bytes of a record's header.
pub(super) const RECORD_HEADER: usize = 40;
/// First bytes of a record.
pub(super) const RECORD_MAGIC: [u8; 4] = *b"VREC";

const SEGMENT_MAGIC: [u8; 8] = *b"VERUSWAL";
const ALIGN: u64 = 8;
/// What a disk writes whole or not at all.
const SECTOR: u64 = 512;

/// The start of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub first_lsn: u64,
    pub salt: u64,
}

/// Why a segment header cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadSegment {
    Damaged,
    Format(u32),
}

impl SegmentHeader {
    pub fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let mut bytes = [0; SEGMENT_HEADER];
        bytes[..8].copy_from_slice(&SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first_lsn.to_le_bytes());
        bytes[24..].copy_from_slice(&self.salt.to_le_bytes());
        let crc = Self::crc(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8; SEGMENT_HEADER]) -> Result<Self, BadSegment> {
        if bytes[..8] != SEGMENT_MAGIC || u32_at(bytes, 12) != Self::crc(bytes) {
            return Err(BadSegment::Damaged);
        }
        match u32_at(bytes, 8) {
            FORMAT => Ok(Self { first_lsn: u64_at(bytes, 16), salt: u64_at(bytes, 24) }),
            other => Err(BadSegment::Format(other)),
        }
    }

    fn crc(bytes: &[u8; SEGMENT_HEADER]) -> u32 {
        let mut hasher = Hasher::new();
        hasher.update(&bytes[..12]);
        hasher.update(&bytes[16..]);
        hasher.finalize()
    }
}

/// The start of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub length: u32,
    pub first_lsn: u64,
    pub durable_lsn: u64,
    pub count: u32,
    pub zero_sectors: u32,
    pub payload_crc: u32,
}

impl RecordHeader {
    pub fn encode(&self, salt: u64) -> [u8; RECORD_HEADER] {
        let mut bytes = [0; RECORD_HEADER];
        bytes[..4].copy_from_slice(&RECORD_MAGIC);
        bytes[4..8].copy_from_slice(&self.length.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.first_lsn.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.durable_lsn.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.count.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.zero_sectors.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = Self::crc(&bytes, salt);
        bytes[36..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// None where magic or checksum do not fit.
    pub fn decode(bytes: &[u8; RECORD_HEADER], salt: u64) -> Option<Self> {
        if bytes[..4] != RECORD_MAGIC || u32_at(bytes, 36) != Self::crc(bytes, salt) {
            return None;
        }
        Some(Self {
            length: u32_at(bytes, 4),
            first_lsn: u64_at(bytes, 8),
            durable_lsn: u64_at(bytes, 16),
            count: u32_at(bytes, 24),
            zero_sectors: u32_at(bytes, 28),
            payload_crc: u32_at(bytes, 32),
        })
    }

    pub fn next_lsn(&self) -> u64 {
        self.first_lsn.saturating_add(u64::from(self.count))
    }

    fn crc(bytes: &[u8; RECORD_HEADER], salt: u64) -> u32 {
        let mut hasher = Hasher::new();
        hasher.update(&salt.to_le_bytes());
        hasher.update(&bytes[..36]);
        hasher.finalize()
    }
}

/// What follows a payload of `length` bytes. Never empty, so that the last sector of a record is never zero by right.
pub(super) fn padding(length: u64) -> &'static [u8] {
    const PADDING: [u8; ALIGN as usize] = [0x55; ALIGN as usize];
    &PADDING[(length % ALIGN) as usize..]
}

/// Counts the sectors of a file that hold nothing but zeros, among those that a run of bytes begins in or covers.
#[derive(Debug)]
pub(super) struct ZeroSectors {
    position: u64,
    zero_so_far: bool,
    count: u32,
}

impl ZeroSectors {
    /// A run that begins at `position` of the file.
    pub fn starting_at(position: u64) -> Self {
        Self { position, zero_so_far: true, count: 0 }
    }

    /// A payload that begins at `position`: what its header shares a sector with is not zero.
    pub fn after_header(position: u64) -> Self {
        Self { position, zero_so_far: position.is_multiple_of(SECTOR), count: 0 }
    }

    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(bytes.len().min((SECTOR - self.position % SECTOR) as usize));
            self.zero_so_far = self.zero_so_far && part.iter().all(|byte| *byte == 0);
            self.position += part.len() as u64;
            if self.position.is_multiple_of(SECTOR) {
                self.count += u32::from(self.zero_so_far);
                self.zero_so_far = true;
            }
            bytes = rest;
        }
    }

    pub fn finish(self) -> u32 {
        self.count + u32::from(self.zero_so_far && !self.position.is_multiple_of(SECTOR))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
