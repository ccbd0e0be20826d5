//! COPY FROM STDIN: a stream of bytes, cut into chunks of whole lines that are decoded and completed in parallel.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::record_batch::RecordBatch;
use bytes::{Bytes, BytesMut};
use tokio::task::JoinHandle;

use crate::error::{Error, Result, SqlState};
use crate::event::cut::LineEnd;
use crate::event::{Cutter, Decoder, Failure};
use crate::ingest::Pipeline;
use crate::sql::statement::{CopyFormat, CopyOptions};
use crate::task::Spawner;
use crate::types::zone::Zone;

/// A chunk is decoded when so much has come: enough to be worth a task, little enough to begin while the rest comes.
const CHUNK_BYTES: usize = 512 * 1024;

/// One COPY FROM STDIN: bytes in, completed batches out. Decodes whole lines in parallel on the cpu runtime; at most
/// `in_flight_bytes_max` undecoded bytes are held, so a fast client waits.
#[derive(Debug)]
pub struct CopyLoad {
    rules: Arc<Rules>,
    spawner: Spawner,
    cutter: Cutter,
    /// What has not been cut yet.
    buffer: BytesMut,
    /// Length of the buffer at which a cut is tried.
    cut_at: usize,
    /// No chunk has been cut yet.
    first: bool,
    in_flight: VecDeque<JoinHandle<Result<Completed, Failure>>>,
    in_flight_bytes_max: usize,
    /// Bytes that have come.
    bytes: usize,
    bytes_max: Option<usize>,
    batches: Vec<RecordBatch>,
    /// Memory of the batches.
    held_bytes: usize,
    /// Lines of the chunks collected.
    lines: u64,
    /// `\.` came.
    ended: bool,
}

/// What the decoding tasks share.
#[derive(Debug)]
struct Rules {
    decoder: Decoder,
    pipeline: Arc<Pipeline>,
    rows: Arc<AtomicU64>,
}

/// A chunk done.
#[derive(Debug)]
struct Completed {
    batch: RecordBatch,
    lines: u64,
    ended: bool,
}

impl Rules {
    fn chunk(&self, chunk: &[u8], line_end: LineEnd, first: bool) -> Result<Completed, Failure> {
        let decoded = self.decoder.decode(chunk, line_end, first)?;
        let batch = self
            .pipeline
            .complete_rows(decoded.batch)
            .map_err(|refusal| self.decoder.refuse(chunk, line_end, first, refusal.row, refusal.error))?;
        self.rows.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
        Ok(Completed { batch, lines: decoded.lines, ended: decoded.ended })
    }
}

impl CopyLoad {
    /// Starts a load. 22023 for an unknown time zone, 42703 and 42P10 for a FORCE option's column.
    pub fn new(
        pipeline: Arc<Pipeline>,
        options: CopyOptions,
        time_zone: String,
        spawner: Spawner,
        in_flight_bytes_max: usize,
    ) -> Result<CopyLoad> {
        let cutter = Cutter::new(&options);
        let zone = Zone::parse(&time_zone)?;
        for name in options.force_null.iter().chain(&options.force_not_null).filter(|name| *name != "*") {
            if pipeline.table().column(name).is_none() {
                let table = &pipeline.table().name;
                return Err(Error::new(SqlState::UNDEFINED_COLUMN, format!("column \"{name}\" of relation \"{table}\" does not exist")));
            }
        }
        let decoder = Decoder::new(&pipeline.table().name, pipeline.targets().to_vec(), options, zone)?.with_told(pipeline.told());
        Ok(CopyLoad {
            rules: Arc::new(Rules { decoder, pipeline, rows: Arc::default() }),
            spawner,
            cutter,
            buffer: BytesMut::new(),
            cut_at: CHUNK_BYTES,
            first: true,
            in_flight: VecDeque::new(),
            in_flight_bytes_max,
            bytes: 0,
            bytes_max: None,
            batches: Vec::new(),
            held_bytes: 0,
            lines: 0,
            ended: false,
        })
    }

    /// With a bound on the bytes of the whole load (54000 beyond it), for one whose rows are not taken from it on the way.
    #[must_use]
    pub fn with_bytes_max(mut self, statement_bytes_max: usize) -> CopyLoad {
        self.bytes_max = Some(statement_bytes_max);
        self
    }

    /// One CopyData message, cut anywhere. After an error the load is of no use.
    pub async fn push(&mut self, bytes: Bytes) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        self.bytes = self.bytes.saturating_add(bytes.len());
        if self.bytes > self.bytes_max.unwrap_or(usize::MAX) {
            return Err(Error::new(
                SqlState::PROGRAM_LIMIT_EXCEEDED,
                format!("COPY of more than {} bytes in one statement", self.bytes_max.unwrap_or(usize::MAX)),
            )
            .detail("Its rows have to be kept in memory until the transaction ends.")
            .hint("Run the COPY as the first change of a transaction, or split the data over several."));
        }
        self.buffer.extend_from_slice(&bytes);
        while self.buffer.len() >= self.cut_at {
            let length = self.cutter.cut(&self.buffer);
            if length == 0 {
                self.refuse_endless_line()?;
                // So that a long line is not searched from its start for each message.
                self.cut_at = (self.buffer.len() * 2).min(self.in_flight_bytes_max + 1);
                break;
            }
            self.cut_at = CHUNK_BYTES;
            let chunk = self.buffer.split_to(length).freeze();
            self.dispatch(chunk).await?;
        }
        Ok(())
    }

    fn refuse_endless_line(&self) -> Result<()> {
        if self.buffer.len() <= self.in_flight_bytes_max {
            return Ok(());
        }
        Err(Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "a line of COPY data is too long")
            .detail(format!("At most {} bytes are held until a line ends.", self.in_flight_bytes_max))
            .context(format!("COPY {}", self.rules.decoder.relation())))
    }

    /// Hands a chunk to the cpu runtime, once there is room.
    async fn dispatch(&mut self, chunk: Bytes) -> Result<()> {
        let in_flight_max = (self.in_flight_bytes_max / CHUNK_BYTES).max(2);
        while self.in_flight.len() >= in_flight_max || self.in_flight.front().is_some_and(JoinHandle::is_finished) {
            self.collect_one().await?;
        }
        let rules = Arc::clone(&self.rules);
        let (line_end, first) = (self.cutter.line_end(), self.first);
        self.first = false;
        self.in_flight.push_back(self.spawner.cpu(async move { rules.chunk(&chunk, line_end, first) }));
        Ok(())
    }

    async fn collect_one(&mut self) -> Result<()> {
        let Some(handle) = self.in_flight.pop_front() else { return Ok(()) };
        let done = handle.await.map_err(|error| Error::internal(format!("decoding COPY data failed: {error}")))?;
        self.accept(done)
    }

    fn accept(&mut self, done: Result<Completed, Failure>) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        let done = done.map_err(|failure| failure.at(self.rules.decoder.relation(), self.lines))?;
        self.lines += done.lines;
        self.ended = done.ended;
        if done.batch.num_rows() > 0 {
            self.held_bytes += done.batch.get_array_memory_size();
            self.batches.push(done.batch);
        }
        Ok(())
    }

    /// Counts the rows that have been completed.
    pub fn rows(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.rules.rows)
    }

    /// Memory of the completed rows.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Gives the completed rows away, in order; [`CopyLoad::finish`] has those that come after.
    pub fn take(&mut self) -> Vec<RecordBatch> {
        self.held_bytes = 0;
        std::mem::take(&mut self.batches)
    }

    /// CopyDone: the rest, and all rows in order. Errors name the line ("COPY events, line 3, column revenue: ...").
    pub async fn finish(mut self) -> Result<Vec<RecordBatch>> {
        let rest = std::mem::take(&mut self.buffer);
        // The last chunk is decoded here, beside those still in flight; a small load has no other.
        let last = if rest.is_empty() || self.ended {
            None
        } else {
            let line_end = self.cutter.finish(&rest);
            Some(self.rules.chunk(&rest, line_end, self.first))
        };
        while !self.in_flight.is_empty() {
            self.collect_one().await?;
        }
        if let Some(done) = last {
            self.accept(done)?;
        }
        if self.rules.decoder.options().format == CopyFormat::Binary && !self.ended {
            return Err(Error::new(SqlState::BAD_COPY_FILE_FORMAT, "unexpected EOF in COPY data").context(format!(
                "COPY {}, line {}",
                self.rules.decoder.relation(),
                self.lines + 1
            )));
        }
        Ok(std::mem::take(&mut self.batches))
    }
}

impl Drop for CopyLoad {
    /// A load given up leaves no work behind.
    fn drop(&mut self) {
        self.in_flight.drain(..).for_each(|handle| handle.abort());
    }
}
