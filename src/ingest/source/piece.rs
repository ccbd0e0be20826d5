//! Fetched batches as text to decode: messages one after the other, in pieces that are committed one by one.
//!
//! *Invariants*: (1) pieces follow each other without a gap, and the last one reaches to the end of what was fetched, markers and
//! compacted messages included; (2) a piece holds at most `commit_messages_max` messages and, unless it is one message alone, not more than
//! `commit_bytes` and a message.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use crate::config::limits::KafkaLimits;
use crate::error::{Error, SqlState};
use crate::event::RefusedEvent;
use crate::kafka::batch::{self, Aborted};
use crate::kafka::wire::Reader;
use crate::kafka::{KafkaError, Result};

/// What one answer brought of a partition.
#[derive(Debug)]
pub struct Chunk {
    /// Batches.
    pub records: Bytes,
    /// Transactions that were given up.
    pub aborted: Aborted,
    /// The offset that was asked for.
    pub from: i64,
    /// One past the last offset of the batches.
    pub to: i64,
    /// Offsets that are stepped over, because the broker has no messages for them any more.
    pub lost: u64,
    /// Its room in memory; none where there is nothing in it.
    pub room: Option<OwnedSemaphorePermit>,
}

/// Messages that are committed together.
#[derive(Debug, Default)]
pub struct Piece {
    /// All of them.
    pub text: String,
    /// Where in the text each one is.
    pub spans: Vec<Range<usize>>,
    /// The offset of each one.
    pub offsets: Vec<i64>,
    /// Those that are not text: the position is the offset.
    pub refused: Vec<RefusedEvent>,
    /// Messages without a value.
    pub tombstones: u64,
    /// See [`Chunk::lost`].
    pub lost: u64,
    /// The first offset.
    pub from: i64,
    /// One past the last.
    pub to: i64,
}

impl Piece {
    fn is_full(&self, limits: &KafkaLimits) -> bool {
        self.text.len() >= limits.commit_bytes || self.spans.len() + self.refused.len() >= limits.commit_messages_max
    }

    fn add(&mut self, offset: i64, value: &[u8]) {
        let start = self.text.len();
        match std::str::from_utf8(value) {
            Ok(text) => {
                self.text.push_str(text);
                self.spans.push(start..self.text.len());
                self.offsets.push(offset);
            }
            Err(error) => {
                let bytes: String = value[error.valid_up_to()..].iter().take(4).map(|byte| format!(" 0x{byte:02x}")).collect();
                self.text.push_str(&String::from_utf8_lossy(value));
                let message = format!("invalid byte sequence for encoding \"UTF8\":{bytes}");
                self.refused.push(RefusedEvent {
                    position: usize::try_from(offset).unwrap_or(0),
                    span: start..self.text.len(),
                    error: Error::new(SqlState::CHARACTER_NOT_IN_REPERTOIRE, message),
                });
            }
        }
        // Nothing reads across it; it keeps a message apart from the next one for whoever looks at the text.
        self.text.push('\n');
    }
}

/// The pieces of a chunk.
#[derive(Debug)]
pub struct Pieces<'a> {
    limits: &'a KafkaLimits,
    rest: &'a [u8],
    aborted: Aborted,
    /// The batch being read: itself, its records, bytes and messages of it that are read.
    open: Option<(batch::Batch<'a>, Cow<'a, [u8]>, usize, usize)>,
    from: i64,
    to: i64,
    lost: u64,
    done: bool,
}

impl<'a> Pieces<'a> {
    /// Of a chunk.
    pub fn new(chunk: &'a Chunk, limits: &'a KafkaLimits) -> Pieces<'a> {
        let aborted = chunk.aborted.clone();
        Pieces { limits, rest: &chunk.records, aborted, open: None, from: chunk.from, to: chunk.to, lost: chunk.lost, done: false }
    }

    /// The next piece; none at the end.
    pub fn next(&mut self) -> Result<Option<Piece>> {
        if self.done {
            return Ok(None);
        }
        let capacity = self.limits.commit_bytes.min(self.rest.len().saturating_mul(4));
        let mut piece = Piece { from: self.from, lost: self.lost, text: String::with_capacity(capacity), ..Piece::default() };
        self.lost = 0;
        loop {
            if self.fill(&mut piece)? {
                self.from = piece.to;
                return Ok(Some(piece));
            }
            match batch::next(&mut self.rest)? {
                None => {
                    self.done = true;
                    piece.to = self.to;
                    return Ok(Some(piece));
                }
                Some(batch) if self.aborted.admits(&batch) => {
                    self.open = Some((batch, batch.records(self.limits.batch_bytes_max)?, 0, 0));
                }
                Some(_) => {}
            }
        }
    }

    /// Takes messages of the open batch until it ends, or the piece is full (true).
    fn fill(&mut self, piece: &mut Piece) -> Result<bool> {
        let Some((batch, records, read, count)) = &mut self.open else { return Ok(false) };
        let rest = records.get(*read..).unwrap_or_default();
        let mut reader = Reader::new(rest);
        while *count < batch.count() {
            let message = batch.message(&mut reader)?;
            *count += 1;
            // The batch may begin before the offset that was asked for.
            if message.offset < piece.from.max(self.from) {
                continue;
            }
            if message.offset >= self.to {
                return Err(KafkaError::Damaged { offset: batch.base_offset, reason: "a message lies beyond its end".to_owned() });
            }
            match message.value {
                Some(value) => piece.add(message.offset, value),
                None => piece.tombstones += 1,
            }
            if piece.is_full(self.limits) {
                piece.to = message.offset + 1;
                *read += reader.position();
                return Ok(true);
            }
        }
        self.open = None;
        Ok(false)
    }
}

/// One past the last offset of the whole batches in an answer; none where there is none.
pub fn end(records: &[u8]) -> Option<i64> {
    // Only their heads are looked at; checksums are verified when they are read.
    let (mut rest, mut end) = (records, None);
    while let Some((after, last)) = batch::step(rest) {
        rest = after;
        end = Some(last + 1);
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::batch::{Written, encode, encode_marker};
    use crate::kafka::codec::Codec;

    fn chunk(from: i64) -> Chunk {
        let messages: Vec<Vec<u8>> = (0..10).map(|number| format!("{{\"n\":{number}}}").into_bytes()).collect();
        let mut pairs: Vec<_> = messages.iter().map(|message| (None, Some(message.as_slice()))).collect();
        pairs[3].1 = None;
        pairs[5].1 = Some(b"\"\xff\"");
        let written = Written { base_offset: 0, timestamp_ms: 0, codec: Codec::Zstd, transaction: None, messages: &pairs };
        let mut records = encode(&written).unwrap();
        records.extend(encode_marker(10, 1, true));
        let to = end(&records).unwrap();
        Chunk { records: records.into(), aborted: Aborted::default(), from, to, lost: 0, room: None }
    }

    #[test]
    fn pieces_follow_each_other() {
        for (from, messages_max, expected) in [
            (0, 100, vec![(0, 11, 8, 1, 1)]),
            (2, 100, vec![(2, 11, 6, 1, 1)]),
            (0, 4, vec![(0, 5, 4, 0, 1), (5, 9, 3, 1, 0), (9, 11, 1, 0, 0)]),
            (0, 9, vec![(0, 10, 8, 1, 1), (10, 11, 0, 0, 0)]),
        ] {
            let limits = KafkaLimits { commit_messages_max: messages_max, ..KafkaLimits::default() };
            let chunk = chunk(from);
            let mut pieces = Pieces::new(&chunk, &limits);
            let mut found = Vec::new();
            while let Some(piece) = pieces.next().unwrap() {
                for (span, offset) in piece.spans.iter().zip(&piece.offsets) {
                    assert_eq!(piece.text[span.clone()], format!("{{\"n\":{offset}}}"));
                }
                found.push((piece.from, piece.to, piece.spans.len(), piece.refused.len(), piece.tombstones));
            }
            assert_eq!(found, expected, "{from} {messages_max}");
        }
    }
}
