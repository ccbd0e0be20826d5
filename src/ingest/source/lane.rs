//! One partition: what was fetched is decoded and committed, in order.
//!
//! *Invariants*: (1) the next piece is decoded while one is committed, and committed after it; (2) a message that breaks a rule is in
//! `verus.rejected_events` by the commit that steps over it; (3) what passes (a full memory, an altered table) is waited for, and nothing is
//! left out because of it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures::future::OptionFuture;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;

use super::Running;
use super::piece::{Chunk, Piece, Pieces};
use crate::catalog::Table;
use crate::error::{Error, Result, SqlState};
use crate::event::RefusedEvent;
use crate::ingest::events::{Events, Taken};
use crate::ingest::ledger::{self, Origin};
use crate::store::progress::{Progress, Step};
use crate::store::{Transaction, Write};

/// Time before something of this server's is tried again.
const WAIT: Duration = Duration::from_millis(200);

/// A partition of a running source.
#[derive(Debug)]
pub struct Lane {
    running: Arc<Running>,
    partition: i32,
}

/// Messages decoded under a table's definition.
struct Decoded {
    table: Arc<Table>,
    taken: Taken,
}

/// A piece on its way, with its place.
struct Work {
    piece: Piece,
    decoded: Result<Decoded>,
    _place: OwnedSemaphorePermit,
    /// Of the chunk, which may be longer than the piece.
    _room: Arc<Option<OwnedSemaphorePermit>>,
}

impl Lane {
    /// Of one partition.
    pub fn new(running: Arc<Running>, partition: i32) -> Arc<Lane> {
        Arc::new(Lane { running, partition })
    }

    /// Works until the queue is closed or the source stops. `taken` is told whenever there is place in the queue.
    pub async fn run(self: Arc<Self>, mut queue: mpsc::Receiver<Chunk>, taken: Arc<tokio::sync::Notify>) -> Result<()> {
        let mut pending: Option<JoinHandle<Result<()>>> = None;
        loop {
            let chunk = tokio::select! {
                biased;
                () = self.running.stop.cancelled() => break,
                Some(done) = OptionFuture::from(pending.as_mut()) => {
                    pending = None;
                    joined(done)?;
                    continue;
                }
                chunk = queue.recv() => chunk,
            };
            let Some(mut chunk) = chunk else { break };
            taken.notify_one();
            let room = Arc::new(chunk.room.take());
            let limits = &self.running.parts.limits.kafka;
            let mut pieces = Pieces::new(&chunk, limits);
            while let Some(piece) = pieces.next()? {
                let place = tokio::select! {
                    () = self.running.stop.cancelled() => return wait(pending).await,
                    place = Arc::clone(&self.running.shared.places).acquire_owned() => place,
                };
                let place = place.map_err(|_| Error::internal("the places of commits are closed"))?;
                let decoded = self.decode(&piece, 0..piece.spans.len());
                wait(pending.take()).await?;
                let work = Work { piece, decoded, _place: place, _room: Arc::clone(&room) };
                pending = Some(self.running.parts.spawner.cpu(Arc::clone(&self).commit(work)));
            }
        }
        wait(pending).await
    }

    fn decode(&self, piece: &Piece, range: Range<usize>) -> Result<Decoded> {
        let parts = &self.running.parts;
        let catalog = parts.store.catalog();
        let table = catalog.table(self.running.source.table);
        let table = table.ok_or_else(|| Error::new(SqlState::UNDEFINED_TABLE, "the table of the source was dropped"))?;
        let events = Events::new(&*parts.binder, table, parts.clock.now())?;
        let taken = events.take_messages(&piece.text, &piece.spans[range])?;
        Ok(Decoded { table: Arc::clone(table), taken })
    }

    /// Commits a piece: whole where that is possible, else the part of it that fits and each message that does not on its own.
    async fn commit(self: Arc<Self>, work: Work) -> Result<()> {
        let Work { piece, decoded, .. } = &work;
        let mut first = Some(decoded.as_ref());
        let mut open = Vec::from([Range { start: 0, end: piece.spans.len() }]);
        while let Some(range) = open.pop() {
            loop {
                let again;
                let decoded = match first.take() {
                    Some(decoded) => decoded.map_err(Error::clone),
                    None => {
                        again = self.decode(piece, range.clone());
                        again.as_ref().map_err(Error::clone)
                    }
                };
                let outcome = match decoded {
                    Ok(decoded) => self.submit(piece, &range, Some(decoded), None).await,
                    Err(error) => Err(error),
                };
                let error = match outcome {
                    Ok(()) => break,
                    Err(error) => error,
                };
                match kind(&error) {
                    Kind::Again => {}
                    Kind::Wait => self.wait_for(&error).await?,
                    Kind::Messages if range.len() > 1 => {
                        let middle = range.start + range.len() / 2;
                        open.extend([middle..range.end, range.start..middle]);
                        break;
                    }
                    Kind::Messages if range.len() == 1 => {
                        self.refuse(piece, &range, &error).await?;
                        break;
                    }
                    Kind::Messages | Kind::Fatal => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Commits a message as refused.
    async fn refuse(&self, piece: &Piece, range: &Range<usize>, error: &Error) -> Result<()> {
        loop {
            match self.submit(piece, range, None, Some(error)).await {
                Err(error) if matches!(kind(&error), Kind::Wait | Kind::Again) => self.wait_for(&error).await?,
                outcome => return outcome,
            }
        }
    }

    async fn wait_for(&self, error: &Error) -> Result<()> {
        let parts = &self.running.parts;
        if self.running.status.waits(error, parts.clock.now()) {
            tracing::warn!(source = self.running.source.name, %error, "a source waits");
        }
        tokio::select! {
            () = self.running.stop.cancelled() => Err(stopped()),
            () = tokio::time::sleep(WAIT) => Ok(()),
        }
    }

    /// One transaction: the rows of messages, those that were refused, and the offset after them.
    async fn submit(&self, piece: &Piece, range: &Range<usize>, decoded: Option<&Decoded>, error: Option<&Error>) -> Result<()> {
        let parts = &self.running.parts;
        let (from, to) = bounds(piece, range);
        let numbered =
            |position: usize| piece.offsets.get(range.start + position).map_or(0, |offset| usize::try_from(*offset).unwrap_or(0));
        let mut refused: Vec<RefusedEvent> = piece.refused.iter().filter(|one| within(one.position, from, to)).cloned().collect();
        if let Some(Decoded { taken, .. }) = decoded {
            refused.extend(taken.refused.iter().map(|one| RefusedEvent { position: numbered(one.position), ..one.clone() }));
        }
        if let Some(error) = error {
            refused.push(RefusedEvent { position: numbered(0), span: piece.spans[range.start].clone(), error: error.clone() });
        }
        refused.sort_by_key(|one| one.position);
        let mut notes = Vec::new();
        if !refused.is_empty() {
            if !self.running.shared.room().has_room() {
                self.running.shared.room().look();
                return Err(Error::new(SqlState::INSUFFICIENT_RESOURCES, "verus.rejected_events is full")
                    .hint("The source goes on when older rows have gone; DELETE makes room at once."));
            }
            let origin = Origin {
                table_name: decoded.map_or_else(|| self.table_name(), |decoded| decoded.table.name.clone()),
                source: self.running.source.name.clone(),
                client: None,
                request: Some(format!("{}/{}", self.running.options.topic, self.partition)),
            };
            let now = parts.clock.now();
            notes.push(ledger::rejected(&parts.store, &parts.limits.ingest, &origin, &piece.text, &refused, now).await?);
        }
        let rows = decoded.filter(|decoded| !decoded.taken.rows.is_empty());
        let writes =
            rows.map(|Decoded { table, taken }| Write { table: table.oid, rows: taken.rows.clone(), late_rows: table.options.late_rows });
        let is_first = range.start == 0;
        let count = |count: u64| if is_first { count } else { 0 };
        let (tombstones, lost) = (count(piece.tombstones), count(piece.lost));
        let step = Step { partition: self.partition, from: Some(from), to, rejected: refused.len() as u64, tombstones, lost };
        let progress = Some(Progress { source: self.running.source.oid, steps: vec![step] });
        parts.store.commit(Transaction { writes: writes.into_iter().collect(), notes, progress, ..Transaction::default() }).await?;
        let metrics = &parts.metrics;
        metrics.source_messages.inc_by(range.len() as u64 + tombstones);
        metrics.source_tombstones.inc_by(tombstones);
        metrics.source_offsets_lost.inc_by(lost);
        metrics.source_messages_rejected.inc_by(refused.len() as u64);
        if !refused.is_empty() {
            self.running.shared.room().look();
        }
        Ok(())
    }

    fn table_name(&self) -> String {
        let catalog = self.running.parts.store.catalog();
        catalog.table(self.running.source.table).map_or_else(String::new, |table| table.name.clone())
    }
}

/// The offsets that a part of a piece stands for: pieces and parts follow each other without a gap.
fn bounds(piece: &Piece, range: &Range<usize>) -> (i64, i64) {
    let from = if range.start == 0 { piece.from } else { piece.offsets[range.start] };
    let to = piece.offsets.get(range.end).copied().unwrap_or(piece.to);
    (from, to)
}

fn within(position: usize, from: i64, to: i64) -> bool {
    i64::try_from(position).is_ok_and(|offset| (from..to).contains(&offset))
}

/// What an error of a commit is about.
enum Kind {
    /// The table was altered: once more.
    Again,
    /// This server: later.
    Wait,
    /// The messages.
    Messages,
    /// The source stops, or an attempt has failed.
    Fatal,
}

fn kind(error: &Error) -> Kind {
    match error.state() {
        SqlState::SERIALIZATION_FAILURE => Kind::Again,
        state if state.0.starts_with("53") => Kind::Wait,
        SqlState::UNDEFINED_TABLE => Kind::Fatal,
        state if ["21", "22", "23", "42", "54", "0A"].iter().any(|class| state.0.starts_with(class)) => Kind::Messages,
        _ => Kind::Fatal,
    }
}

fn stopped() -> Error {
    Error::new(SqlState::ADMIN_SHUTDOWN, "the source stops")
}

async fn wait(pending: Option<JoinHandle<Result<()>>>) -> Result<()> {
    match pending {
        Some(pending) => joined(pending.await),
        None => Ok(()),
    }
}

fn joined(done: std::result::Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    done.map_err(|_| Error::internal("a commit of a source ended by a panic"))?
}
