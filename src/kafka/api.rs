//! Requests and their answers, one pair of functions each.

use bytes::Bytes;

use super::wire::{Reader, Writer};
use super::{Address, KafkaError, Result};

/// Requests by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// Writes batches.
    Produce = 0,
    /// Reads batches.
    Fetch = 1,
    /// Offsets by time.
    ListOffsets = 2,
    /// Topics, partitions, brokers.
    Metadata = 3,
    /// Chooses a SASL mechanism.
    SaslHandshake = 17,
    /// What the broker speaks.
    ApiVersions = 18,
    /// A step of a SASL mechanism.
    SaslAuthenticate = 36,
}

impl Api {
    /// Its name, and the versions that are spoken here.
    pub fn spoken(self) -> (&'static str, i16, i16) {
        match self {
            Api::Produce => ("Produce 3", 3, 3),
            Api::Fetch => ("Fetch 4 to 10", 4, 10),
            Api::ListOffsets => ("ListOffsets 2", 2, 2),
            Api::Metadata => ("Metadata 4", 4, 4),
            Api::SaslHandshake => ("SaslHandshake 1", 1, 1),
            Api::ApiVersions => ("ApiVersions 0", 0, 0),
            Api::SaslAuthenticate => ("SaslAuthenticate 0", 0, 0),
        }
    }
}

/// Reads the answer to ApiVersions: number, least and greatest version of each request.
pub fn versions(answer: &[u8]) -> Result<Vec<(i16, i16, i16)>> {
    let mut reader = Reader::new(answer);
    KafkaError::of_code(reader.i16()?, || "the broker's versions".to_owned())?;
    reader.each(|reader| Ok((reader.i16()?, reader.i16()?, reader.i16()?)))
}

/// A topic, as a broker knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topic {
    /// Broker by number.
    pub brokers: Vec<(i32, Address)>,
    /// By number.
    pub partitions: Vec<Partition>,
}

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number.
    pub index: i32,
    /// The broker that leads it; none while there is an election.
    pub leader: Option<i32>,
}

/// Asks for a topic, which is not made where it is not there.
pub fn metadata(topic: &str) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.count(1).string(topic).i8(0);
    writer.0
}

/// Reads the answer to [`metadata`].
pub fn topic(name: &str, answer: &[u8]) -> Result<Topic> {
    let mut reader = Reader::new(answer);
    reader.i32()?;
    let brokers = reader.each(|reader| {
        let node = reader.i32()?;
        let address = Address { host: reader.string()?.to_owned(), port: u16::try_from(reader.i32()?).unwrap_or(0) };
        reader.nullable()?;
        Ok((node, address))
    })?;
    reader.nullable()?;
    reader.i32()?;
    let topics = reader.each(|reader| {
        let code = reader.i16()?;
        let found = reader.string()?.to_owned();
        reader.i8()?;
        let partitions = reader.each(|reader| {
            reader.i16()?;
            let index = reader.i32()?;
            let leader = Some(reader.i32()?).filter(|leader| *leader >= 0);
            reader.each(Reader::i32)?;
            reader.each(Reader::i32)?;
            Ok(Partition { index, leader })
        })?;
        Ok((code, found, partitions))
    })?;
    let Some((code, _, mut partitions)) = topics.into_iter().find(|(_, found, _)| found == name) else {
        return Err(KafkaError::Malformed("the topic is not in it"));
    };
    KafkaError::of_code(code, || format!("topic \"{name}\""))?;
    partitions.sort_unstable_by_key(|partition| partition.index);
    Ok(Topic { brokers, partitions })
}

/// Which offset is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The first that there is.
    Earliest,
    /// After the last that is committed.
    Latest,
    /// The first one with this timestamp or a later one, milliseconds since 1970.
    Time(i64),
}

impl At {
    /// As the protocol has it.
    pub fn timestamp(self) -> i64 {
        match self {
            At::Latest => -1,
            At::Earliest => -2,
            // Negative ones have meanings of their own.
            At::Time(ms) => ms.max(0),
        }
    }
}

/// Only what is committed.
const READ_COMMITTED: i8 = 1;

/// Asks for offsets of partitions.
pub fn list_offsets(topic: &str, partitions: &[(i32, At)]) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.i32(-1).i8(READ_COMMITTED).count(1).string(topic).count(partitions.len());
    for (partition, at) in partitions {
        writer.i32(*partition).i64(at.timestamp());
    }
    writer.0
}

/// Reads the answer to [`list_offsets`]: partition and offset; none where there is no message so late.
pub fn offsets(topic: &str, answer: &[u8]) -> Result<Vec<(i32, Option<i64>)>> {
    let mut reader = Reader::new(answer);
    reader.i32()?;
    let topics = reader.each(|reader| {
        reader.string()?;
        reader.each(|reader| {
            let partition = reader.i32()?;
            let code = reader.i16()?;
            reader.i64()?;
            let offset = reader.i64()?;
            KafkaError::of_code(code, || format!("partition {partition} of topic \"{topic}\""))?;
            Ok((partition, Some(offset).filter(|offset| *offset >= 0)))
        })
    })?;
    Ok(topics.into_iter().flatten().collect())
}

/// What to fetch.
#[derive(Clone, Copy, Debug)]
pub struct Fetch<'a> {
    /// The topic.
    pub topic: &'a str,
    /// Partition and the offset from which on.
    pub partitions: &'a [(i32, i64)],
    /// How long the broker may wait for messages.
    pub wait_ms: i32,
    /// Bytes of the whole answer; a first batch that is longer comes all the same.
    pub bytes_max: usize,
    /// Bytes of one partition.
    pub partition_bytes_max: usize,
}

/// A partition's part of an answer.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The partition.
    pub partition: i32,
    /// The error code.
    pub code: i16,
    /// One past the last message that all replicas have.
    pub high_watermark: i64,
    /// One past the last message that is committed: no more is read.
    pub stable_offset: i64,
    /// The first message that is kept, where the broker says so.
    pub log_start: Option<i64>,
    /// Transactions that were given up: producer and first offset.
    pub aborted: Vec<(i64, i64)>,
    /// The batches, the last one perhaps cut off.
    pub records: Bytes,
}

/// Asks for messages.
pub fn fetch(version: i16, wanted: &Fetch<'_>) -> Vec<u8> {
    let bytes = |bytes: usize| i32::try_from(bytes).unwrap_or(i32::MAX);
    let mut writer = Writer::default();
    writer.i32(-1).i32(wanted.wait_ms).i32(1).i32(bytes(wanted.bytes_max)).i8(READ_COMMITTED);
    if version >= 7 {
        // No session: every request says all.
        writer.i32(0).i32(-1);
    }
    writer.count(1).string(wanted.topic).count(wanted.partitions.len());
    for (partition, offset) in wanted.partitions {
        writer.i32(*partition);
        if version >= 9 {
            writer.i32(-1);
        }
        writer.i64(*offset);
        if version >= 5 {
            writer.i64(-1);
        }
        writer.i32(bytes(wanted.partition_bytes_max));
    }
    if version >= 7 {
        writer.count(0);
    }
    writer.0
}

/// Reads the answer to [`fetch`].
pub fn fetched(version: i16, answer: &Bytes) -> Result<Vec<Fetched>> {
    let mut reader = Reader::new(answer);
    reader.i32()?;
    if version >= 7 {
        KafkaError::of_code(reader.i16()?, || "reading messages".to_owned())?;
        reader.i32()?;
    }
    let topics = reader.each(|reader| {
        reader.string()?;
        reader.each(|reader| {
            let (partition, code, high_watermark, stable_offset) = (reader.i32()?, reader.i16()?, reader.i64()?, reader.i64()?);
            let log_start = if version >= 5 { Some(reader.i64()?).filter(|start| *start >= 0) } else { None };
            let aborted = reader.each(|reader| Ok((reader.i64()?, reader.i64()?)))?;
            let records = answer.slice_ref(reader.bytes()?);
            Ok(Fetched { partition, code, high_watermark, stable_offset, log_start, aborted, records })
        })
    })?;
    Ok(topics.into_iter().flatten().collect())
}

/// Writes a batch to a partition; it is acknowledged when all replicas have it.
pub fn produce(topic: &str, partition: i32, batch: &[u8]) -> Vec<u8> {
    const TIMEOUT_MS: i32 = 30_000;
    const ALL_REPLICAS: i16 = -1;
    let mut writer = Writer::default();
    writer.nullable(None).i16(ALL_REPLICAS).i32(TIMEOUT_MS).count(1).string(topic).count(1).i32(partition).bytes(batch);
    writer.0
}

/// Reads the answer to [`produce`]: the offset of the batch's first message.
pub fn produced(topic: &str, answer: &[u8]) -> Result<i64> {
    let mut reader = Reader::new(answer);
    let topics = reader.each(|reader| {
        reader.string()?;
        reader.each(|reader| {
            let partition = reader.i32()?;
            KafkaError::of_code(reader.i16()?, || format!("partition {partition} of topic \"{topic}\""))?;
            let offset = reader.i64()?;
            reader.i64()?;
            Ok(offset)
        })
    })?;
    topics.into_iter().flatten().next().ok_or(KafkaError::Malformed("the partition is not in it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_cut_off_anywhere_are_errors() {
        let mut metadata = Writer::default();
        metadata.i32(0).count(1).i32(7).string("kafka-7").i32(9092).nullable(None).nullable(Some("cluster")).i32(7);
        metadata.count(1).i16(0).string("t").i8(0).count(2);
        for (index, leader) in [(1, -1), (0, 7)] {
            metadata.i16(0).i32(index).i32(leader).count(1).i32(7).count(1).i32(7);
        }
        let found = topic("t", &metadata.0).unwrap();
        assert_eq!(found.brokers, [(7, Address { host: "kafka-7".to_owned(), port: 9092 })]);
        let expected = [Partition { index: 0, leader: Some(7) }, Partition { index: 1, leader: None }];
        assert_eq!(found.partitions, expected);
        for cut in 0..metadata.0.len() {
            assert!(topic("t", &metadata.0[..cut]).is_err(), "{cut}");
        }
        let mut answer = Writer::default();
        answer.i32(0).i16(0).i32(0).count(1).string("t").count(1);
        answer.i32(3).i16(0).i64(100).i64(90).i64(5).count(1).i64(8).i64(60).bytes(b"batches");
        let found = fetched(10, &Bytes::from(answer.0.clone())).unwrap();
        assert_eq!((found[0].partition, found[0].high_watermark, found[0].stable_offset, found[0].log_start), (3, 100, 90, Some(5)));
        assert_eq!((found[0].aborted.as_slice(), found[0].records.as_ref()), ([(8, 60)].as_slice(), b"batches".as_slice()));
        for cut in 0..answer.0.len() {
            assert!(fetched(10, &Bytes::copy_from_slice(&answer.0[..cut])).is_err(), "{cut}");
        }
    }
}
