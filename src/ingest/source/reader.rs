//! One broker: asks for messages of the partitions that it leads, and gives them to their lanes.
//!
//! *Invariants*: (1) a partition whose lane is full is not asked for, and never waits until others have messages; (2) a source that finds
//! nothing holds little room while it waits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

use super::Running;
use super::options::OutOfRange;
use super::piece::{self, Chunk};
use crate::error::{Error, Result, SqlState};
use crate::kafka::api::{At, Fetch, Fetched};
use crate::kafka::batch::Aborted;
use crate::kafka::{Connection, KafkaError, Refusal};

/// What is asked for where the last answer brought nothing.
const IDLE_BYTES: usize = 64 * 1024;

/// Time between two questions that the broker answers at once, while a lane is full.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// How long a broker may say that a partition ends before the offset that is asked for. A new leader may, for a moment; where it stays so
/// the topic was made anew, which not every broker answers with an error.
const BEHIND_FOR: Duration = Duration::from_secs(5);

/// A partition that is followed.
#[derive(Debug)]
pub struct Follow {
    /// Its number.
    pub partition: i32,
    /// The offset that is asked for next.
    pub offset: i64,
    /// Its lane.
    pub sender: mpsc::Sender<Chunk>,
    /// Since when the broker says that it ends before that.
    pub behind: Option<Instant>,
}

/// A broker's partitions.
#[derive(Debug)]
pub struct Reader {
    /// The source.
    pub running: Arc<Running>,
    /// To the broker.
    pub connection: Connection,
    /// What it leads.
    pub follows: Vec<Follow>,
    /// Told when a lane has place again.
    pub taken: Arc<Notify>,
    /// Ends it.
    pub over: CancellationToken,
}

impl Reader {
    /// Reads until it is over or something fails.
    pub async fn run(mut self) -> Result<()> {
        let over = self.over.clone();
        tokio::select! {
            () = over.cancelled() => Ok(()),
            failed = self.read() => failed,
        }
    }

    async fn read(&mut self) -> Result<()> {
        let limits = self.running.parts.limits.kafka.clone();
        let bytes_most = limits.fetch_bytes.min(limits.in_flight_bytes_max / 2).max(1);
        let mut bytes = IDLE_BYTES.min(bytes_most);
        loop {
            let wanted = self.wanted().await;
            if self.follows.iter().any(|follow| follow.sender.is_closed()) {
                // The lane knows why.
                return Ok(());
            }
            let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
            let room = Arc::clone(&self.running.shared.room_bytes).acquire_many_owned(permits).await;
            let mut room = room.map_err(|_| Error::internal("the room of sources is closed"))?;
            // A lane that is full now is free in a moment: its partition must not wait for messages of the others.
            let all = wanted.len() == self.follows.len();
            let asked = Fetch {
                topic: &self.running.options.topic,
                partitions: &wanted,
                wait_ms: if all { i32::try_from(limits.wait_ms).unwrap_or(i32::MAX) } else { 0 },
                bytes_max: bytes,
                partition_bytes_max: (bytes / wanted.len().clamp(1, 4)).max(IDLE_BYTES.min(bytes)),
            };
            let fetched = self.connection.fetch(&asked).await?;
            let brought: usize = fetched.iter().map(|part| part.records.len()).sum();
            self.running.parts.metrics.source_received.inc_by(brought as u64);
            for part in fetched {
                self.give(part, &mut room).await?;
            }
            drop(room);
            if brought == 0 && !all {
                // Without an answer that waits, this is what keeps it from asking without a pause.
                let _ = tokio::time::timeout(ASK_EVERY, self.taken.notified()).await;
            }
            if self.follows.iter().all(|follow| follow.behind.is_none()) {
                self.running.status.works();
            }
            self.follows.rotate_left(1);
            // A poll of one that is idle holds little; one that has much to read asks for much.
            bytes = match brought {
                0 if all => IDLE_BYTES.min(bytes_most),
                _ if brought * 2 >= bytes => (bytes * 4).min(bytes_most),
                _ => bytes,
            };
        }
    }

    /// Partitions whose lanes have place, at least one.
    async fn wanted(&self) -> Vec<(i32, i64)> {
        loop {
            let taken = self.taken.notified();
            let ready = self.follows.iter().filter(|follow| follow.sender.capacity() > 0 || follow.sender.is_closed());
            let ready: Vec<_> = ready.map(|follow| (follow.partition, follow.offset)).collect();
            if !ready.is_empty() {
                return ready;
            }
            tokio::select! {
                () = taken => {}
                // A lane that has ended tells nobody.
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
        }
    }

    async fn give(&mut self, part: Fetched, room: &mut OwnedSemaphorePermit) -> Result<()> {
        let Some(index) = self.follows.iter().position(|follow| follow.partition == part.partition) else { return Ok(()) };
        let what = || format!("partition {} of topic \"{}\"", part.partition, self.running.options.topic);
        if part.code == Refusal::OFFSET_OUT_OF_RANGE.0 {
            return self.step_over(index).await;
        }
        KafkaError::of_code(part.code, what)?;
        self.running.status.heard(part.partition, part.high_watermark, part.log_start);
        let follow = &mut self.follows[index];
        if part.high_watermark < follow.offset {
            let since = *follow.behind.get_or_insert_with(Instant::now);
            return if since.elapsed() < BEHIND_FOR { Ok(()) } else { self.step_over(index).await };
        }
        follow.behind = None;
        if part.records.is_empty() {
            return Ok(());
        }
        let to = piece::end(&part.records).ok_or(KafkaError::Malformed("it holds no whole batch"))?;
        if to <= follow.offset {
            return Err(KafkaError::Malformed("its batches lie before the offset that was asked for").into());
        }
        let held = room.split(part.records.len().min(room.num_permits()));
        let chunk = Chunk { records: part.records, aborted: Aborted::new(&part.aborted), from: follow.offset, to, lost: 0, room: held };
        follow.offset = to;
        // A lane that has ended knows why.
        let _ = follow.sender.send(chunk).await;
        Ok(())
    }

    /// The broker does not have the next message: what `out_of_range` says.
    async fn step_over(&mut self, index: usize) -> Result<()> {
        let topic = self.running.options.topic.clone();
        let Follow { partition, offset, .. } = self.follows[index];
        let mut bound = async |at| {
            let found = self.connection.offsets(&topic, &[(partition, at)]).await?;
            let offset = found.first().and_then(|(_, offset)| *offset);
            offset.ok_or_else(|| Error::from(KafkaError::Malformed("an offset is missing")))
        };
        let (start, end) = (bound(At::Earliest).await?, bound(At::Latest).await?);
        if (start..=end).contains(&offset) {
            // It has it again: an election was under way.
            return Err(KafkaError::Refused {
                what: format!("partition {partition} of topic \"{topic}\""),
                refusal: Refusal::OFFSET_OUT_OF_RANGE,
            }
            .into());
        }
        let to = match self.running.options.out_of_range {
            OutOfRange::Earliest => start,
            OutOfRange::Latest => end,
            OutOfRange::Fail => {
                let message =
                    format!("partition {partition} of topic \"{topic}\" has no offset {offset}: the broker keeps {start} to {end}");
                let detail = match offset < start {
                    true => format!("{} messages were removed before they were read.", start - offset),
                    false => "The topic was made anew or has lost messages.".to_owned(),
                };
                let hint = format!(
                    "ALTER SOURCE {} SET (out_of_range = 'earliest') goes on with what there is.",
                    crate::sql::statement::quote_identifier(&self.running.source.name)
                );
                return Err(Error::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message).detail(detail).hint(hint));
            }
        };
        let lost = u64::try_from(to - offset).unwrap_or(0);
        tracing::warn!(
            source = self.running.source.name,
            partition,
            from = offset,
            to,
            "a source steps over messages that the broker has not"
        );
        let follow = &mut self.follows[index];
        let chunk = Chunk { records: bytes::Bytes::new(), aborted: Aborted::default(), from: offset, to, lost, room: None };
        (follow.offset, follow.behind) = (to, None);
        let _ = follow.sender.send(chunk).await;
        Ok(())
    }
}
