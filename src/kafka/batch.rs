//! Record batches (message format 2): how messages lie in an answer to Fetch.
//!
//! Bytes: `base offset i64 | length i32 | leader epoch i32 | magic i8 | crc32c u32 | attributes i16 | last offset delta i32 | first
//! timestamp i64 | greatest timestamp i64 | producer id i64 | epoch i16 | first sequence i32 | count i32 | records`, the checksum over
//! what follows it. A record, its numbers zigzag: `length | attributes i8 | timestamp delta | offset delta | key length | key | value
//! length | value | headers`.

use std::borrow::Cow;
use std::collections::HashSet;

use super::codec::Codec;
use super::wire::{Reader, Writer};
use super::{KafkaError, Result};

/// Bytes before the records.
const HEAD_BYTES: usize = 61;

/// Bytes before what `length` counts.
const LENGTH_BYTES: usize = 12;

/// Where what the checksum covers begins.
const CHECKED_FROM: usize = 21;

/// The only message format that is read: since Kafka 0.11.
const MAGIC: i8 = 2;

const TRANSACTIONAL: i16 = 1 << 4;
const CONTROL: i16 = 1 << 5;

/// One batch, its records still compressed.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Offset of the first record that was written into it.
    pub base_offset: i64,
    /// Offset of the last one, which compaction may have taken out.
    pub last_offset: i64,
    attributes: i16,
    producer: i64,
    count: usize,
    body: &'a [u8],
}

/// Takes the next batch off the front of `records`; none at the end, where a broker may have cut one off.
pub fn next<'a>(records: &mut &'a [u8]) -> Result<Option<Batch<'a>>> {
    let mut reader = Reader::new(records);
    if records.len() < LENGTH_BYTES {
        return Ok(None);
    }
    let base_offset = reader.i64()?;
    let length = usize::try_from(reader.i32()?).map_err(|_| KafkaError::Malformed("a batch has a negative length"))?;
    let Some(whole) = records.get(..LENGTH_BYTES + length) else { return Ok(None) };
    let damaged = |reason: String| KafkaError::Damaged { offset: base_offset, reason };
    if whole.len() <= LENGTH_BYTES + 4 {
        return Err(damaged("it is too short".to_owned()));
    }
    reader.i32()?;
    let magic = reader.i8()?;
    if magic != MAGIC {
        return Err(damaged(format!("its message format is {magic}, and {MAGIC} is read, which brokers write since Kafka 0.11")));
    }
    if whole.len() < HEAD_BYTES {
        return Err(damaged("it is too short".to_owned()));
    }
    let checksum = reader.i32()? as u32;
    if crc32c::crc32c(&whole[CHECKED_FROM..]) != checksum {
        return Err(damaged("its checksum does not fit".to_owned()));
    }
    let attributes = reader.i16()?;
    let last_offset = base_offset.saturating_add(i64::from(reader.i32()?));
    reader.take(16)?;
    let producer = reader.i64()?;
    reader.take(6)?;
    let count = usize::try_from(reader.i32()?).unwrap_or(0);
    *records = &records[whole.len()..];
    Ok(Some(Batch { base_offset, last_offset, attributes, producer, count, body: &whole[HEAD_BYTES..] }))
}

/// Steps over a batch without reading more than its head: what follows it, and its last offset; none where no whole batch follows.
pub fn step(records: &[u8]) -> Option<(&[u8], i64)> {
    let mut reader = Reader::new(records);
    let base_offset = reader.i64().ok()?;
    let length = usize::try_from(reader.i32().ok()?).ok()?;
    let rest = records.get(LENGTH_BYTES.checked_add(length)?..)?;
    reader.take(CHECKED_FROM + 2 - LENGTH_BYTES).ok()?;
    let delta = reader.i32().ok()?;
    Some((rest, base_offset.checked_add(delta.into())?))
}

impl<'a> Batch<'a> {
    /// A marker of the end of a transaction: no messages of anybody's.
    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// Its records, decompressed to at most `bytes_max`.
    pub fn records(&self, bytes_max: usize) -> Result<Cow<'a, [u8]>> {
        let codec = Codec::of(self.attributes)
            .ok_or_else(|| KafkaError::Damaged { offset: self.base_offset, reason: "its compression is not known".to_owned() })?;
        codec.decompress(self.body, self.base_offset, bytes_max)
    }

    /// How many messages `records` holds.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Reads the next message of what [`Batch::records`] gave.
    #[inline]
    pub fn message<'r>(&self, records: &mut Reader<'r>) -> Result<Message<'r>> {
        let damaged = |reason: &str| KafkaError::Damaged { offset: self.base_offset, reason: reason.to_owned() };
        let length = usize::try_from(records.varint()?).map_err(|_| damaged("a record has a negative length"))?;
        let end = records.position() + length;
        records.i8()?;
        records.varint()?;
        let offset = self.base_offset.saturating_add(records.varint()?);
        let key = part(records)?;
        let value = part(records)?;
        // Headers have no meaning here.
        let rest = end.checked_sub(records.position()).ok_or_else(|| damaged("a record is longer than its length"))?;
        records.take(rest)?;
        Ok(Message { offset, key, value })
    }
}

/// A key or a value; none for null.
#[inline]
fn part<'r>(records: &mut Reader<'r>) -> Result<Option<&'r [u8]>> {
    match usize::try_from(records.varint()?) {
        Ok(length) => records.take(length).map(Some),
        Err(_) => Ok(None),
    }
}

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its place in the partition.
    pub offset: i64,
    /// Which it is compacted by.
    pub key: Option<&'a [u8]>,
    /// None for a tombstone.
    pub value: Option<&'a [u8]>,
}

/// Which batches of an answer belong to transactions that were given up (KIP-98): from the first offset that the answer names on, those
/// of the producer, until its marker.
#[derive(Clone, Debug, Default)]
pub struct Aborted {
    /// First offset and producer, the last offset first.
    waiting: Vec<(i64, i64)>,
    active: HashSet<i64>,
}

impl Aborted {
    /// Of an answer's list: producer and first offset.
    pub fn new(listed: &[(i64, i64)]) -> Aborted {
        let mut waiting: Vec<_> = listed.iter().map(|(producer, offset)| (*offset, *producer)).collect();
        waiting.sort_unstable_by(|a, b| b.cmp(a));
        Aborted { waiting, active: HashSet::new() }
    }

    /// Whether the messages of the next batch count.
    pub fn admits(&mut self, batch: &Batch<'_>) -> bool {
        while let Some((offset, producer)) = self.waiting.last().copied()
            && offset <= batch.last_offset
        {
            self.waiting.pop();
            self.active.insert(producer);
        }
        if batch.is_control() {
            // Commit or abort: either way the producer's next transaction is another one.
            self.active.remove(&batch.producer);
            return false;
        }
        batch.attributes & TRANSACTIONAL == 0 || !self.active.contains(&batch.producer)
    }
}

/// Key and value of a message.
pub type Pair<'a> = (Option<&'a [u8]>, Option<&'a [u8]>);

/// What is written into a batch.
#[derive(Clone, Copy, Debug)]
pub struct Written<'a> {
    /// Offset of the first message.
    pub base_offset: i64,
    /// Milliseconds since 1970, of all messages.
    pub timestamp_ms: i64,
    /// Compression.
    pub codec: Codec,
    /// The producer of a transaction.
    pub transaction: Option<i64>,
    /// Key and value of each message.
    pub messages: &'a [Pair<'a>],
}

/// Writes a batch as a producer does.
pub fn encode(written: &Written<'_>) -> std::io::Result<Vec<u8>> {
    let mut records = Writer::default();
    let mut record = Writer::default();
    for (index, (key, value)) in written.messages.iter().enumerate() {
        record.0.clear();
        record.i8(0).varint(0).varint(index as i64);
        for part in [key, value] {
            match part {
                Some(part) => record.varint(part.len() as i64).raw(part),
                None => record.varint(-1),
            };
        }
        record.varint(0);
        records.varint(record.0.len() as i64).raw(&record.0);
    }
    let attributes = written.codec as i16 | if written.transaction.is_some() { TRANSACTIONAL } else { 0 };
    Ok(frame(written, attributes, &written.codec.compress(&records.0)?))
}

/// Writes the marker that ends a transaction.
pub fn encode_marker(base_offset: i64, producer: i64, commit: bool) -> Vec<u8> {
    let mut record = Writer::default();
    record.i8(0).varint(0).varint(0).varint(4).i16(0).i16(i16::from(commit)).varint(6).i16(0).i32(0).varint(0);
    let mut records = Writer::default();
    records.varint(record.0.len() as i64).raw(&record.0);
    let written = Written { base_offset, timestamp_ms: 0, codec: Codec::None, transaction: Some(producer), messages: &[(None, None)] };
    frame(&written, TRANSACTIONAL | CONTROL, &records.0)
}

fn frame(written: &Written<'_>, attributes: i16, records: &[u8]) -> Vec<u8> {
    let count = i32::try_from(written.messages.len()).unwrap_or(i32::MAX);
    let mut checked = Writer::default();
    checked.i16(attributes).i32(count - 1).i64(written.timestamp_ms).i64(written.timestamp_ms);
    checked.i64(written.transaction.unwrap_or(-1)).i16(if written.transaction.is_some() { 0 } else { -1 }).i32(-1).i32(count);
    checked.raw(records);
    let mut batch = Writer::default();
    batch.i64(written.base_offset).count(CHECKED_FROM - LENGTH_BYTES + checked.0.len()).i32(-1).i8(MAGIC);
    batch.i32(crc32c::crc32c(&checked.0) as i32).raw(&checked.0);
    batch.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(base_offset: i64, codec: Codec, transaction: Option<i64>, values: &[Option<&[u8]>]) -> Vec<u8> {
        let messages: Vec<_> = values.iter().map(|value| (Some(b"key".as_slice()), *value)).collect();
        encode(&Written { base_offset, timestamp_ms: 1, codec, transaction, messages: &messages }).unwrap()
    }

    fn read(mut records: &[u8], aborted: &[(i64, i64)]) -> Vec<(i64, Option<Vec<u8>>)> {
        let mut aborted = Aborted::new(aborted);
        let mut found = Vec::new();
        while let Some(batch) = next(&mut records).unwrap() {
            if !aborted.admits(&batch) {
                continue;
            }
            let bytes = batch.records(1 << 20).unwrap();
            let mut reader = Reader::new(&bytes);
            for _ in 0..batch.count() {
                let message = batch.message(&mut reader).unwrap();
                found.push((message.offset, message.value.map(<[u8]>::to_vec)));
            }
            assert_eq!(reader.left(), 0);
        }
        found
    }

    #[test]
    fn messages_come_back_in_order() {
        for codec in [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Zstd] {
            let mut records = written(7, codec, None, &[Some(b"{}"), None, Some(b"")]);
            records.extend(written(10, codec, None, &[Some(b"[]")]));
            let whole = records.len();
            records.extend(&written(11, codec, None, &[Some(b"cut off")])[..40]);
            let expected = vec![(7, Some(b"{}".to_vec())), (8, None), (9, Some(Vec::new())), (10, Some(b"[]".to_vec()))];
            assert_eq!(read(&records, &[]), expected, "{codec:?}");
            assert_eq!(read(&records[..whole], &[]), expected, "{codec:?}");
        }
    }

    #[test]
    fn of_transactions_only_what_was_committed_is_read() {
        let mut records = written(0, Codec::None, Some(1), &[Some(b"given up")]);
        records.extend(written(1, Codec::None, Some(2), &[Some(b"committed")]));
        records.extend(written(2, Codec::None, None, &[Some(b"alone")]));
        records.extend(encode_marker(3, 1, false));
        records.extend(encode_marker(4, 2, true));
        records.extend(written(5, Codec::None, Some(1), &[Some(b"the next")]));
        records.extend(encode_marker(6, 1, true));
        let offsets: Vec<i64> = read(&records, &[(1, 0)]).into_iter().map(|(offset, _)| offset).collect();
        assert_eq!(offsets, [1, 2, 5]);
    }

    #[test]
    fn damage_is_found() {
        let good = written(3, Codec::None, None, &[Some(b"value")]);
        for at in [CHECKED_FROM, HEAD_BYTES + 3, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(matches!(next(&mut bad.as_slice()), Err(KafkaError::Damaged { offset: 3, .. })), "{at}");
        }
        let mut old = good.clone();
        old[16] = 1;
        assert!(next(&mut old.as_slice()).unwrap_err().to_string().contains("message format is 1"));
        // No panic, whatever comes: the length may lie.
        for length in 0..60_i32 {
            let mut short = good.clone();
            short[8..12].copy_from_slice(&length.to_be_bytes());
            assert!(next(&mut short.as_slice()).is_err(), "{length}");
        }
    }
}
