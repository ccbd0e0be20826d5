//! A block's bytes.
//!
//! *Place*: `checkpoint` encodes, `blocks` decodes.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | `VBLK` |
//! | 4 | 2 | format version |
//! | 6 | 2 | zero |
//! | 8 | 4 | CRC-32 of everything from offset 12 |
//! | 12 | 4 | rows |
//! | 16 | 8 | fingerprint of the view's filter, keys and aggregates |
//! | 24 | 8 | first LSN |
//! | 32 | 8 | one past the last LSN |
//! | 40 | 24 | DataFusion's version, padded with zeros |
//! | 64 | | an Arrow IPC stream of one batch: `slot` (UInt8), keys, states, perhaps `error`; sorted by slot |
//!
//! Numbers are little-endian. The header is 64 bytes so that the Arrow buffers behind it stay aligned.

use std::sync::{Arc, OnceLock};

use arrow::array::{Array, ArrayRef, AsArray, ListArray, StructArray, UInt8Array};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Schema, UInt8Type};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;

use super::failure::arrow_failure;
use crate::error::{Error, Result, SqlState};

/// Version of a block's layout. Another one on disk means: rebuild.
pub(super) const FORMAT: u16 = 1;

const MAGIC: &[u8; 4] = b"VBLK";
const HEADER_BYTES: usize = 64;

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) fingerprint: u64,
    pub(super) first_lsn: u64,
    pub(super) next_lsn: u64,
}

/// A block in memory.
#[derive(Debug)]
pub(super) struct Decoded {
    /// Each row's slot, ascending.
    pub(super) slots: ScalarBuffer<u8>,
    /// Keys, states, perhaps errors.
    pub(super) columns: Vec<ArrayRef>,
    /// Memory held.
    pub(super) bytes: usize,
    /// Of each row's place, if they ascend within slots: for who looks groups up, see `members`.
    pub(super) hashes: OnceLock<Option<Vec<u64>>>,
}

impl Decoded {
    /// The rows whose slot lies in `first..=last`.
    pub(super) fn range(&self, first: u8, last: u8) -> std::ops::Range<usize> {
        let start = self.slots.partition_point(|slot| *slot < first);
        let end = self.slots.partition_point(|slot| *slot <= last);
        start..end
    }
}

/// Encodes rows (sorted by slot) with their slots.
pub(super) fn encode(header: Header, slots: UInt8Array, rows: &RecordBatch) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + 4096);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&[0; 6]);
    bytes.extend_from_slice(&(rows.num_rows() as u32).to_le_bytes());
    bytes.extend_from_slice(&header.fingerprint.to_le_bytes());
    bytes.extend_from_slice(&header.first_lsn.to_le_bytes());
    bytes.extend_from_slice(&header.next_lsn.to_le_bytes());
    let version = datafusion::DATAFUSION_VERSION.as_bytes();
    bytes.extend_from_slice(&version[..version.len().min(HEADER_BYTES - 40)]);
    bytes.resize(HEADER_BYTES, 0);
    write_stream(&mut bytes, slots, rows).map_err(arrow_failure)?;
    let crc = crc32fast::hash(&bytes[12..]);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    Ok(bytes)
}

fn write_stream(bytes: &mut Vec<u8>, slots: UInt8Array, rows: &RecordBatch) -> Result<(), ArrowError> {
    let mut fields = vec![Arc::new(Field::new("slot", DataType::UInt8, false))];
    let mut columns: Vec<ArrayRef> = vec![Arc::new(slots)];
    for (field, column) in rows.schema_ref().fields().iter().zip(rows.columns()) {
        let column = compact(column)?;
        fields.push(Arc::new(field.as_ref().clone().with_data_type(column.data_type().clone())));
        columns.push(column);
    }
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?;
    let mut writer = StreamWriter::try_new(bytes, batch.schema_ref())?;
    writer.write(&batch)?;
    writer.finish()
}

/// The array with string data of its own rows only: a view array's slice would carry all of its buffers along.
fn compact(array: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    Ok(match array.data_type() {
        DataType::Utf8View => Arc::new(array.as_string_view().gc()),
        DataType::BinaryView => Arc::new(array.as_binary_view().gc()),
        DataType::List(item) => {
            let list = array.as_list::<i32>();
            let offsets = list.value_offsets();
            let (first, last) = (offsets[0], offsets[list.len()]);
            let values = compact(&list.values().slice(first as usize, (last - first) as usize))?;
            let offsets: Vec<i32> = offsets.iter().map(|offset| offset - first).collect();
            let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
            Arc::new(ListArray::try_new(Arc::clone(item), offsets, values, list.nulls().cloned())?)
        }
        DataType::Struct(fields) => {
            let structs = array.as_struct();
            let columns = structs.columns().iter().map(compact).collect::<Result<Vec<_>, _>>()?;
            Arc::new(StructArray::try_new_with_length(fields.clone(), columns, structs.nulls().cloned(), structs.len())?)
        }
        _ => Arc::clone(array),
    })
}

/// The CRC in a block's header.
pub(super) fn crc(bytes: &[u8]) -> u32 {
    number(bytes, 8)
}

fn number(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..offset + 4).and_then(|slice| slice.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// Checks and decodes a block. XX001 when it is not what was written.
pub(super) fn decode(bytes: Vec<u8>, crc_expected: u32, fingerprint: u64) -> Result<Decoded> {
    let damaged = |what: &str| Error::new(SqlState::DATA_CORRUPTED, format!("a block of view state is damaged: {what}"));
    if bytes.len() < HEADER_BYTES || &bytes[..4] != MAGIC {
        return Err(damaged("no header"));
    }
    if crc(&bytes) != crc_expected || crc32fast::hash(&bytes[12..]) != crc_expected {
        return Err(damaged("checksum mismatch"));
    }
    if bytes[4..6] != FORMAT.to_le_bytes() || bytes[16..24] != fingerprint.to_le_bytes() {
        return Err(damaged("it belongs to another version of the view"));
    }
    let held = bytes.len();
    let rows = number(&bytes, 12) as usize;
    let mut buffer = Buffer::from_vec(bytes).slice(HEADER_BYTES);
    let batch = StreamDecoder::new().decode(&mut buffer).map_err(|error| damaged(&error.to_string()))?.ok_or_else(|| damaged("no rows"))?;
    let (_, mut columns, _) = batch.into_parts();
    if columns.is_empty() || columns[0].data_type() != &DataType::UInt8 || columns[0].len() != rows {
        return Err(damaged("unexpected columns"));
    }
    let slots = columns.remove(0).as_primitive::<UInt8Type>().values().clone();
    Ok(Decoded { slots, columns, bytes: held, hashes: OnceLock::new() })
}

#[cfg(test)]
mod tests {
    use arrow::array::StringViewArray;

    use super::*;

    #[test]
    fn blocks_round_trip_and_damage_is_found() {
        let strings: ArrayRef = Arc::new(StringViewArray::from(vec!["a string that is longer than a view", "b"]));
        let rows = RecordBatch::try_from_iter([("k0", Arc::clone(&strings))]).unwrap();
        let header = Header { fingerprint: 7, first_lsn: 1, next_lsn: 9 };
        let bytes = encode(header, UInt8Array::from(vec![3, 200]), &rows).unwrap();
        let decoded = decode(bytes.clone(), crc(&bytes), 7).unwrap();
        assert_eq!(&decoded.columns[0], &strings);
        assert_eq!((decoded.range(0, 3), decoded.range(4, 199), decoded.range(200, 255)), (0..1, 1..1, 1..2));
        let mut damaged = bytes.clone();
        let last = damaged.len() - 20;
        damaged[last] ^= 1;
        assert_eq!(decode(damaged, crc(&bytes), 7).unwrap_err().state(), SqlState::DATA_CORRUPTED);
        assert_eq!(decode(bytes[..40].to_vec(), crc(&bytes), 7).unwrap_err().state(), SqlState::DATA_CORRUPTED);
    }
}
