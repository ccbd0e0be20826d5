//! Deltas to blocks, blocks to fewer blocks, a table's rows to a new view's blocks.
//!
//! *Place*: `store::background` calls it; each step fills a batch that the caller writes, and then tells the version.
//!
//! *Invariants*: (1) a block of one run has rows of one time group, sorted by slot, and no key of another block of its run;
//! (2) only runs that are neighbours in LSN order are merged, so states stay in order; (3) bytes that are written ahead of the
//! batch (merges and backfills, whose size is not bounded) are listed as condemned until it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::UInt8Array;
use arrow::record_batch::RecordBatch;

use super::block::{self, Header};
use super::blocks::{Block, BlockName, Blocks, Entry, Meta};
use super::delta::{self, DELTA_FAN_IN, Delta, Work, mergeable_tail};
use super::failure::{arrow_failure, to_text};
use super::groups::{indices, voiding};
use super::portion::{Portion, Source, has_large, merged};
use super::slots::{Place, places};
use super::spec::Spec;
use super::version::{Coverage, Version};
use crate::clock::Micros;
use crate::error::{Error, Result};
use crate::state::Batch;

/// The outcome of [`Version::checkpoint`] or [`Backfill::finish`].
#[derive(Debug)]
pub struct Checkpoint {
    /// Every row with an LSN below this is in blocks once the batch is written.
    pub applied_lsn: u64,
    pub(super) blocks: Vec<Arc<Block>>,
    pub(super) replaced: Vec<Arc<Block>>,
    pub(super) poison: Option<Error>,
    pub(super) changes_from: u64,
    /// Of everything below the applied LSN.
    pub(super) work: Work,
    /// Which rows the state then has.
    pub(super) coverage: Coverage,
}

impl Checkpoint {
    /// Gives up blocks that were written ahead.
    pub fn abandon(&self) {
        self.blocks.iter().for_each(|block| block.release());
    }
}

/// The outcome of [`Version::merge`].
#[derive(Debug)]
pub struct Merged {
    pub(super) group: i64,
    pub(super) blocks: Vec<Arc<Block>>,
    pub(super) replaced: Vec<Arc<Block>>,
    pub(super) changes_from: u64,
    pub(super) coverage: Coverage,
}

/// Blocks of one time group that are to be merged.
#[derive(Debug)]
pub struct Mergeable {
    group: i64,
    sources: Vec<Arc<Block>>,
    /// Whether the group's oldest are among them.
    oldest: bool,
    /// Whether these are all of its blocks.
    whole: bool,
}

impl Mergeable {
    /// Whether groups have all their states in it but those of newer deltas.
    pub fn is_whole(&self) -> bool {
        self.whole
    }
}

/// Runs of a time group are merged when there are this many of a size.
const RUN_FAN_IN: usize = 4;

/// What a merge or backfill holds at a time: state rows, or the items of their lists where these are more.
const MERGE_ROWS: usize = 131_072;

/// A block is cut earlier when its rows are large (value lists).
const BLOCK_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes in a batch after which a merge or backfill writes ahead.
const AHEAD_BYTES: usize = 8 * 1024 * 1024;

const SLOTS: usize = 256;

impl Version {
    /// Writes the deltas that end at or before `next_lsn`, the LSN up to which this version was applied, as blocks, and the
    /// applied LSN into `batch`. The caller writes the batch and then calls [`Version::checkpointed`] on the newest version.
    pub fn checkpoint(&self, next_lsn: u64, batch: &mut Batch) -> Result<Checkpoint> {
        self.sealed_lsn.fetch_max(next_lsn, Ordering::AcqRel);
        let count = self.deltas.iter().take_while(|delta| delta.next_lsn <= next_lsn).count();
        let (deltas, later) = self.deltas.split_at(count);
        let applied_lsn = later.first().map_or(next_lsn, |delta| delta.first_lsn.min(next_lsn)).max(self.applied_lsn());
        let mut writer = Writer::new(&self.spec, &self.home);
        match deltas {
            [] => {}
            [only] => writer.add(&self.counting(only)?, batch)?,
            several => match delta::merge(&self.spec, several) {
                Ok(merged) => writer.add(&self.counting(&merged)?, batch)?,
                // States that do not merge are kept apart: who reads their group hears why.
                Err(_) => {
                    for delta in several {
                        writer.next_run();
                        writer.add(&self.counting(delta)?, batch)?;
                    }
                }
            },
        }
        for block in writer.blocks.iter().chain(&self.unlisted) {
            block.list(batch)?;
        }
        self.shadowed.iter().for_each(|block| block.condemn(batch));
        let mut work = self.work;
        work += delta::work_of(deltas);
        let changes_from = self.changes_from();
        Meta::new(&self.spec, applied_lsn, changes_from, self.poison.as_ref().map(to_text), work, self.coverage())
            .put(self.spec.view.oid, batch)?;
        let (replaced, poison) = (self.shadowed.clone(), self.poison.clone());
        Ok(Checkpoint { applied_lsn, blocks: writer.blocks, replaced, poison, changes_from, work, coverage: self.coverage() })
    }

    /// A delta without rows of evicted windows: the table's rows answer for them.
    fn counting(&self, delta: &Delta) -> Result<Delta> {
        Ok(Delta { rows: self.without_evicted(&delta.rows)?, ..delta.clone() })
    }

    /// The blocks of one time group that has marked ones or too many, if any has.
    pub fn mergeable(&self) -> Option<Mergeable> {
        // Blocks that are not listed yet wait for their checkpoint.
        if self.is_ahead() {
            return None;
        }
        let (group, sources, oldest) = self.resolvable().or_else(|| self.neighbours())?;
        let whole = self.blocks.get(&group).is_some_and(|blocks| blocks.len() == sources.len());
        Some(Mergeable { group, sources, oldest, whole })
    }

    /// All blocks of the largest time group.
    pub fn whole(&self) -> Option<Mergeable> {
        let bytes = |blocks: &[Arc<Block>]| blocks.iter().map(|block| u64::from(block.entry.bytes)).sum::<u64>();
        let largest = self.blocks.iter().filter(|(_, blocks)| !blocks.is_empty()).max_by_key(|(_, blocks)| bytes(blocks));
        let (group, blocks) = largest.filter(|_| !self.is_ahead())?;
        Some(Mergeable { group: *group, sources: blocks.clone(), oldest: true, whole: true })
    }

    /// Merges blocks, those that are whole under a horizon where there is one: see [`Spec::settles`]. `batch` comes empty. The caller
    /// writes it and then calls [`Version::merged`] on the newest version. Bytes are partly written ahead.
    pub fn merge(&self, merging: Mergeable, horizon: Option<Micros>, batch: &mut Batch) -> Result<Merged> {
        let Mergeable { group, sources, oldest, whole } = merging;
        let horizon = horizon.filter(|_| whole);
        // Over nothing older there is nothing to void: groups that were removed leave no trace, and the others no mark.
        let marked_lsn = sources.iter().map(|block| block.entry.marked_lsn).max().unwrap_or(0);
        let mut changes_from = self.changes_from();
        let first_lsn = sources.iter().map(|block| block.entry.first_lsn).min().unwrap_or(0);
        let next_lsn = sources.iter().map(|block| block.entry.next_lsn).max().unwrap_or(0);
        let weight: usize = sources.iter().map(|block| block.entry.weight()).sum();
        let chunks = weight.div_ceil(MERGE_ROWS).clamp(1, SLOTS);
        let mut writer = Writer { horizon, ..Writer::new(&self.spec, &self.home) };
        for chunk in 0..chunks {
            let (first, last) = slot_range(chunk, chunks);
            let inside = |block: &&Arc<Block>| block.name.slot <= last && block.entry.slot_last >= first;
            let parts: Vec<Source<'_>> = sources.iter().filter(inside).map(|block| Source::Block(block, (first, last))).collect();
            merged(&self.spec, &parts, oldest, |part| {
                if oldest && part.has_removed {
                    changes_from = changes_from.max(marked_lsn);
                }
                let marked_lsn = if oldest || !part.portion.is_first() { 0 } else { marked_lsn };
                writer.add_portion(&Delta { marked_lsn, ..Delta::new(part.rows, first_lsn, next_lsn) }, part.portion, batch)?;
                writer.write_ahead(batch)
            })?;
        }
        let coverage = Coverage { horizon_us: self.coverage().horizon_us.max(horizon), ..self.coverage() };
        if changes_from > self.changes_from() || coverage != self.coverage() {
            Meta::new(&self.spec, self.applied_lsn(), changes_from, self.poison.as_ref().map(to_text), self.work, coverage)
                .put(self.spec.view.oid, batch)?;
        }
        writer.blocks.iter().try_for_each(|block| block.list(batch))?;
        sources.iter().for_each(|block| block.condemn(batch));
        Ok(Merged { group, blocks: writer.blocks, replaced: sources, changes_from, coverage })
    }

    /// Whether blocks have marks, which only a merge with what they void can resolve.
    pub fn is_marked(&self) -> bool {
        self.blocks.values().flatten().any(|block| block.entry.marked_lsn > 0)
    }

    /// The marked blocks of a time group with all older ones that share slots with them, which are its oldest in these slots.
    fn resolvable(&self) -> Option<(i64, Vec<Arc<Block>>, bool)> {
        let (group, blocks) = self.blocks.iter().find(|(_, blocks)| blocks.iter().any(|block| block.entry.marked_lsn > 0))?;
        let newest = blocks.iter().rposition(|block| block.entry.marked_lsn > 0)?;
        let older = &blocks[..=newest];
        let mut slots = [false; SLOTS];
        let held = |block: &Block| usize::from(block.name.slot)..=usize::from(block.entry.slot_last);
        older.iter().filter(|block| block.entry.marked_lsn > 0).for_each(|block| slots[held(block)].fill(true));
        // A block goes whole, so that its other slots follow: no state may pass one of the same group that lies between.
        let mut chosen = 0;
        loop {
            let touched: Vec<&Arc<Block>> = older.iter().filter(|block| slots[held(block)].contains(&true)).collect();
            if touched.len() == chosen {
                return Some((*group, touched.into_iter().cloned().collect(), true));
            }
            chosen = touched.len();
            touched.iter().for_each(|block| slots[held(block)].fill(true));
        }
    }

    /// Neighbouring runs of a time group that are to be one: of the group with most runs; and whether its oldest is among them.
    fn neighbours(&self) -> Option<(i64, Vec<Arc<Block>>, bool)> {
        let mut best: Option<(usize, i64, Vec<Arc<Block>>, bool)> = None;
        for (group, blocks) in self.blocks.iter() {
            let runs: Vec<_> = blocks.chunk_by(|a, b| a.entry.run == b.entry.run).collect();
            if runs.len() < RUN_FAN_IN || best.as_ref().is_some_and(|(count, ..)| *count >= runs.len()) {
                continue;
            }
            let sizes: Vec<usize> = runs.iter().map(|run| run.iter().map(|block| block.entry.bytes as usize).sum()).collect();
            if let Some(start) = mergeable_tail(&sizes, RUN_FAN_IN) {
                best = Some((runs.len(), *group, runs[start..].concat(), start == 0));
            }
        }
        best.map(|(_, group, blocks, oldest)| (group, blocks, oldest))
    }
}

/// The slots of chunk `chunk` of `chunks`, inclusive.
pub(super) fn slot_range(chunk: usize, chunks: usize) -> (u8, u8) {
    ((chunk * SLOTS / chunks) as u8, ((chunk + 1) * SLOTS / chunks - 1) as u8)
}

/// The chunk of `chunks` that a slot falls into: the inverse of [`slot_range`].
pub(super) fn chunk_of(slot: u8, chunks: usize) -> usize {
    ((usize::from(slot) + 1) * chunks - 1) / SLOTS
}

/// Cuts and encodes state rows.
pub(super) struct Writer<'a> {
    spec: &'a Spec,
    home: &'a Arc<Blocks>,
    /// States have all rows, and none comes that is older: see [`Spec::settles`].
    horizon: Option<Micros>,
    run: u64,
    pub(super) blocks: Vec<Arc<Block>>,
    /// Bytes put into the batch since the last write ahead.
    pending_bytes: usize,
    /// Blocks not yet written ahead.
    ahead: usize,
}

impl<'a> Writer<'a> {
    pub(super) fn new(spec: &'a Spec, home: &'a Arc<Blocks>) -> Self {
        Self { spec, home, horizon: None, run: home.number(), blocks: Vec::new(), pending_bytes: 0, ahead: 0 }
    }

    /// What is added from here may overlap with what was added before.
    pub(super) fn next_run(&mut self) {
        self.run = self.home.number();
    }

    /// Sorts, cuts and encodes rows whose keys are distinct.
    pub(super) fn add(&mut self, delta: &Delta, batch: &mut Batch) -> Result<()> {
        if !has_large(self.spec, &delta.rows)? {
            return self.add_portion(delta, Portion::ALL, batch);
        }
        let spec = self.spec;
        merged(spec, &[Source::Rows(&delta.rows)], false, |part| {
            let marked_lsn = if part.portion.is_first() { delta.marked_lsn } else { 0 };
            self.add_portion(&Delta { rows: part.rows, marked_lsn, ..delta.clone() }, part.portion, batch)
        })
    }

    /// Sorts, cuts and encodes rows whose keys are distinct, and that have values of one portion.
    pub(super) fn add_portion(&mut self, delta: &Delta, portion: Portion, batch: &mut Batch) -> Result<()> {
        let settled = self.horizon.map(|horizon| self.spec.settled(&delta.rows, horizon)).transpose()?;
        let delta = &Delta { rows: settled.unwrap_or_else(|| delta.rows.clone()), ..delta.clone() };
        let keys = self.spec.key_schema.fields().len();
        let rows = delta.rows.num_rows();
        let places = places(self.spec, &delta.rows.columns()[..keys], rows);
        let mut order: Vec<u32> = (0..rows as u32).collect();
        match voiding(&delta.rows) {
            None => order.sort_unstable_by_key(|row| places[*row as usize]),
            // What voids older states comes before what is added to none.
            Some(voids) => order.sort_unstable_by_key(|row| (places[*row as usize], !voids[*row as usize])),
        }
        let row_bytes = delta.rows.get_array_memory_size() / rows.max(1) + 1;
        let rows_max = self.home.rows_max.min(BLOCK_BYTES_MAX / row_bytes).max(1);
        let mut start = 0;
        while start < rows {
            let end = cut(&order, &places, start, rows_max);
            self.encode(delta, portion, &order[start..end], &places, batch)?;
            start = end;
        }
        Ok(())
    }

    fn encode(&mut self, delta: &Delta, portion: Portion, order: &[u32], places: &[Place], batch: &mut Batch) -> Result<()> {
        let sorted: Vec<Place> = order.iter().map(|row| places[*row as usize]).collect();
        let rows = take(&delta.rows, order)?;
        let header = Header { fingerprint: self.spec.fingerprint, first_lsn: delta.first_lsn, next_lsn: delta.next_lsn };
        let bytes = block::encode(header, UInt8Array::from_iter_values(sorted.iter().map(|place| place.slot)), &rows)?;
        let (first, last) = (sorted[0], sorted[sorted.len() - 1]);
        let name = BlockName { group: first.group, slot: first.slot, number: self.home.number() };
        let entry = Entry {
            slot_last: last.slot,
            run: self.run,
            first_lsn: delta.first_lsn,
            next_lsn: delta.next_lsn,
            bucket_min: sorted.iter().map(|place| place.bucket).min().unwrap_or(0),
            bucket_max: sorted.iter().map(|place| place.bucket).max().unwrap_or(0),
            rows: order.len() as u32,
            bytes: u32::try_from(bytes.len()).map_err(|_| Error::internal("a block of view state exceeds 4 GiB"))?,
            crc: block::crc(&bytes),
            failed: delta.rows.num_columns() > self.spec.state_schema.fields().len(),
            marked_lsn: delta.marked_lsn,
            portion: if delta.marked_lsn > 0 { Portion::ALL } else { portion },
        };
        let block = self.home.block(self.spec.view.oid, name, entry);
        self.pending_bytes += bytes.len();
        block.put(bytes, batch);
        self.blocks.push(block);
        Ok(())
    }

    /// Writes what the batch has so far when it is large, listed as condemned.
    fn write_ahead(&mut self, batch: &mut Batch) -> Result<()> {
        if self.pending_bytes < AHEAD_BYTES {
            return Ok(());
        }
        let mut ahead = std::mem::take(batch);
        self.blocks[self.ahead..].iter().for_each(|block| block.condemn(&mut ahead));
        self.home.state.write(ahead)?;
        self.ahead = self.blocks.len();
        self.pending_bytes = 0;
        Ok(())
    }
}

/// Where the block that starts at `start` ends: before the next time group, at most `rows_max` rows on, between slots if it can.
fn cut(order: &[u32], places: &[Place], start: usize, rows_max: usize) -> usize {
    let place = |position: usize| places[order[position] as usize];
    let group = place(start).group;
    let rest = order[start..].partition_point(|row| places[*row as usize].group == group);
    if rest <= rows_max {
        return start + rest;
    }
    // Blocks of about the same size rather than full ones and a small rest.
    let end = start + rest.div_ceil(rest.div_ceil(rows_max));
    let boundary = (start + 1..=end).rev().find(|position| place(*position).slot != place(*position - 1).slot);
    boundary.unwrap_or(end)
}

fn take(rows: &RecordBatch, order: &[u32]) -> Result<RecordBatch> {
    let columns =
        arrow::compute::take_arrays(rows.columns(), &indices(order.iter().map(|row| *row as usize)), None).map_err(arrow_failure)?;
    let options = arrow::record_batch::RecordBatchOptions::new().with_row_count(Some(order.len())).with_match_field_names(false);
    RecordBatch::try_new_with_options(rows.schema(), columns, &options).map_err(arrow_failure)
}

/// Makes a view's state from rows that are already in its table, in bounded memory.
///
/// The store streams the rows through [`super::apply`] with this one spec, in any number of batches, oldest first, and adds
/// the deltas; [`Backfill::finish`] then fills the batch that makes the state live. Until that is written nothing is: what an
/// interrupted backfill leaves behind is deleted when the view is opened or forgotten.
#[derive(Debug)]
pub struct Backfill {
    version: Version,
    deltas: Vec<Arc<Delta>>,
    /// Of the deltas.
    weight: usize,
    blocks: Vec<Arc<Block>>,
    replaces: bool,
    /// Blocks that the new ones stand in for.
    replaced: Vec<Arc<Block>>,
    poison: Option<Error>,
    work: Work,
}

impl Backfill {
    /// For the view of `version`, whose rows it does not look at.
    pub fn new(version: &Version) -> Backfill {
        let (deltas, blocks, replaced) = (Vec::new(), Vec::new(), Vec::new());
        Backfill {
            version: version.clone().with_whole_states(),
            deltas,
            weight: 0,
            blocks,
            replaces: false,
            replaced,
            poison: None,
            work: Work::default(),
        }
    }

    /// For a view that has state already, all of which is to be replaced.
    pub fn replacing(version: &Version) -> Backfill {
        let replaced = version.blocks.values().flatten().chain(&version.shadowed).cloned().collect();
        Backfill { replaced, replaces: true, ..Backfill::new(version) }
    }

    /// Whether it takes the place of state that readers know.
    pub fn replaces(&self) -> bool {
        self.replaces
    }

    /// For windows of the view of `version` that come back into its state.
    pub fn back(version: &Version) -> Backfill {
        Self::new(&version.clone().with_all_windows())
    }

    /// The blocks of all rows that were added, not listed yet.
    pub(super) fn blocks(mut self, batch: &mut Batch) -> Result<Vec<Arc<Block>>> {
        let last = self.write(0, 0, batch)?;
        self.blocks.extend(last);
        Ok(self.blocks)
    }

    /// Adds rows. LSNs of the deltas do not matter, their order does.
    pub fn add(&mut self, delta: Delta) -> Result<()> {
        self.poison = self.poison.take().or_else(|| delta.poison.clone());
        self.weight += delta.weight();
        self.work += delta.work;
        self.deltas.push(Arc::new(delta));
        let sizes: Vec<usize> = self.deltas.iter().map(|delta| delta.weight()).collect();
        if let Some(start) = mergeable_tail(&sizes, DELTA_FAN_IN)
            && let Ok(merged) = delta::merge(&self.version.spec, &self.deltas[start..])
        {
            self.deltas.truncate(start);
            self.deltas.push(Arc::new(merged));
            self.weight = self.deltas.iter().map(|delta| delta.weight()).sum();
        }
        if self.weight > 2 * MERGE_ROWS {
            let mut batch = Batch::default();
            let blocks = self.write(0, 0, &mut batch)?;
            blocks.iter().for_each(|block| block.condemn(&mut batch));
            self.version.home.state.write(batch)?;
            self.blocks.extend(blocks);
        }
        Ok(())
    }

    /// Writes the state of every row below `next_lsn`, but does not list it: for [`Version::rebuilt`], else [`Checkpoint::abandon`].
    pub fn ahead(mut self, next_lsn: u64) -> Result<Checkpoint> {
        let mut batch = Batch::default();
        let last = self.write(0, next_lsn, &mut batch)?;
        last.iter().for_each(|block| block.condemn(&mut batch));
        self.version.home.state.write(batch)?;
        self.blocks.extend(last);
        let (changes_from, coverage) = (self.version.changes_from(), self.version.coverage());
        let (blocks, poison, work) = (self.blocks, self.poison, self.work);
        Ok(Checkpoint { applied_lsn: next_lsn, blocks, replaced: Vec::new(), poison, changes_from, work, coverage })
    }

    /// Puts the state of every row below `next_lsn` and that LSN into `batch`. After writing it, [`Version::checkpointed`] on
    /// the newest version, whose deltas begin at `next_lsn`.
    pub fn finish(mut self, next_lsn: u64, batch: &mut Batch) -> Result<Checkpoint> {
        let blocks = self.write(0, next_lsn, batch)?;
        self.blocks.extend(blocks);
        self.blocks.iter().try_for_each(|block| block.list(batch))?;
        let spec = &self.version.spec;
        self.replaced.iter().for_each(|block| block.condemn(batch));
        // State that took the place of unreadable state is new from here on; a created view's is as old as the view.
        let changes_from = if self.version.must_rebuild() { next_lsn } else { self.version.changes_from() };
        Meta::new(spec, next_lsn, changes_from, self.poison.as_ref().map(to_text), self.work, self.version.coverage())
            .put(spec.view.oid, batch)?;
        let coverage = self.version.coverage();
        let (blocks, replaced, poison) = (self.blocks, self.replaced, self.poison);
        Ok(Checkpoint { applied_lsn: next_lsn, blocks, replaced, poison, changes_from, work: self.work, coverage })
    }

    fn write(&mut self, first_lsn: u64, next_lsn: u64, batch: &mut Batch) -> Result<Vec<Arc<Block>>> {
        let deltas = std::mem::take(&mut self.deltas);
        self.weight = 0;
        if deltas.is_empty() {
            return Ok(Vec::new());
        }
        let merged = delta::merge(&self.version.spec, &deltas)?;
        let mut writer = Writer::new(&self.version.spec, &self.version.home);
        let rows = self.version.without_evicted(&merged.rows)?;
        writer.add(&Delta::new(rows, first_lsn, next_lsn), batch)?;
        Ok(writer.blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::{chunk_of, slot_range};

    #[test]
    fn chunks_cover_the_slots() {
        for chunks in [1, 2, 3, 7, 100, 255, 256] {
            let mut next = 0;
            for chunk in 0..chunks {
                let (first, last) = slot_range(chunk, chunks);
                assert_eq!(usize::from(first), next);
                for slot in first..=last {
                    assert_eq!(chunk_of(slot, chunks), chunk);
                }
                next = usize::from(last) + 1;
            }
            assert_eq!(next, 256);
        }
    }
}
