//! A view's state as of one snapshot.
//!
//! *Place*: every snapshot holds one per view. `store::commit` extends it, `store::background` checkpoints and merges it.
//!
//! *Invariants*: (1) a row up to the snapshot's LSN is in exactly one delta or block of the version; (2) deltas are in LSN order
//! and all above the blocks; (3) deltas of a checkpoint under way are not merged with later ones. Where one was all the same (the
//! checkpoint was made of an older version), the checkpoint's blocks are left out of the version and unlisted by the next one.
//!
//! *Locking*: of one view, a checkpoint, merge or backfill (from computing it over writing its batch to publishing the version)
//! must not overlap with another one or with [`Version::drop_state`]; the store does them one after the other. Deltas may come
//! and versions be read at any time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};

use super::blocks::{Block, Blocks, delete_meta};
use super::checkpoint::{Checkpoint, Merged};
use super::delta::{self, DELTA_FAN_IN, DELTA_RUN_MAX, Delta, MERGED_WEIGHT_MAX, MergedDeltas, Work, mergeable_tail};
use super::evict::Evicted;
use super::failure;
use super::fold::Fold;
use super::spec::Spec;
use crate::catalog::Oid;
use crate::clock::Micros;
use crate::error::{Error, Result};
use crate::state::Batch;

/// A view's state as of one snapshot: immutable, cheap to clone and to extend.
#[derive(Clone, Debug)]
pub struct Version {
    /// The compiled view.
    pub spec: Arc<Spec>,
    pub(super) home: Arc<Blocks>,
    /// By time group; each in LSN order.
    pub(super) blocks: Arc<BTreeMap<i64, Vec<Arc<Block>>>>,
    pub(super) deltas: Vec<Arc<Delta>>,
    pub(super) poison: Option<Error>,
    applied_lsn: u64,
    /// See [`Version::changes_from`].
    changes_from: u64,
    /// Counts how often the state was replaced rather than added to.
    pub(super) replacements: u64,
    must_rebuild: bool,
    /// What it took to make the blocks.
    pub(super) work: Work,
    coverage: Coverage,
    /// State rows in blocks, and whether a group in them failed or replaces older state.
    block_rows: u64,
    block_failed: bool,
    /// Deltas below this LSN are being written: not to be merged with later ones. All versions of the view share it.
    pub(super) sealed_lsn: Arc<AtomicU64>,
    /// Blocks on disk whose rows are also in deltas here, or were replaced: unlisted by the next checkpoint.
    pub(super) shadowed: Vec<Arc<Block>>,
    /// Blocks that the next checkpoint lists, and the LSN of the commit that brought them: until then the log holds it.
    pub(super) unlisted: Vec<Arc<Block>>,
    pub(super) rebuilt_lsn: Option<u64>,
    /// The upper aggregation of a nested view. All versions of the view share it.
    pub(super) fold: Arc<Fold>,
}

/// Which of its table's rows a view's state has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// All but those of these windows, which the table's rows answer for.
    #[serde(default)]
    pub evicted: Option<Evicted>,
    /// States may have left out what decides nothing for rows that are not older than this event time, microseconds.
    #[serde(default)]
    pub horizon_us: Option<Micros>,
}

/// Sizes of a view's state, for system views and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Blocks in RocksDB.
    pub blocks: usize,
    /// Groups in each block, added up: at least the number of groups.
    pub block_rows: u64,
    /// Bytes of blocks.
    pub block_bytes: u64,
    /// Deltas in memory.
    pub deltas: usize,
    /// State rows in deltas.
    pub delta_rows: u64,
    /// Bytes of deltas.
    pub delta_bytes: u64,
}

impl Version {
    /// A view without rows, for one that is being created or emptied.
    pub fn new(spec: Arc<Spec>, home: &Arc<Blocks>) -> Version {
        Version {
            spec,
            home: Arc::clone(home),
            blocks: Arc::default(),
            deltas: Vec::new(),
            poison: None,
            applied_lsn: 0,
            changes_from: 0,
            replacements: 0,
            must_rebuild: false,
            work: Work::default(),
            coverage: Coverage::default(),
            block_rows: 0,
            block_failed: false,
            sealed_lsn: Arc::default(),
            shadowed: Vec::new(),
            unlisted: Vec::new(),
            rebuilt_lsn: None,
            fold: Arc::default(),
        }
    }

    pub(super) fn with_all_windows(mut self) -> Version {
        self.coverage.evicted = None;
        self
    }

    pub(super) fn with_whole_states(mut self) -> Version {
        self.coverage.horizon_us = None;
        self
    }

    /// Which rows the state has.
    pub fn coverage(&self) -> Coverage {
        self.coverage
    }

    /// State rows, at least as many as groups.
    pub fn state_rows(&self) -> u64 {
        self.block_rows + self.deltas.iter().map(|delta| delta.rows.num_rows() as u64).sum::<u64>()
    }

    /// Whether state rows cannot be added up as they are: a row failed (who reads its group, or, for a failed key, anything, hears
    /// why), or groups replace older state after a deletion.
    pub fn has_failed(&self) -> bool {
        let width = self.spec.state_schema.fields().len();
        self.poison.is_some() || self.block_failed || self.deltas.iter().any(|delta| delta.rows.num_columns() > width)
    }

    fn set_blocks(&mut self, blocks: BTreeMap<i64, Vec<Arc<Block>>>) {
        self.block_rows = blocks.values().flatten().map(|block| block.entry.groups()).sum();
        self.block_failed = blocks.values().flatten().any(|block| block.entry.failed);
        self.blocks = Arc::new(blocks);
    }

    /// Loads the live blocks' index of a view from RocksDB. Blocks of another format, DataFusion version or fingerprint
    /// are discarded, and the version says that it has to be rebuilt; so it does when a view that is ready has no position.
    pub fn open(spec: Arc<Spec>, home: &Arc<Blocks>) -> Result<Version> {
        let view = spec.view.oid;
        let meta = home.meta(view)?;
        let blocks = home.list(view)?;
        let mut version = Version::new(Arc::clone(&spec), home);
        match meta {
            Some(meta) if meta.fits(&spec) => {
                version.applied_lsn = meta.applied_lsn;
                version.changes_from = meta.changes_from;
                version.work = meta.work;
                version.poison = meta.poison.as_deref().map(failure::from_text);
                version.coverage = meta.coverage;
                version.set_blocks(with_blocks(BTreeMap::new(), blocks));
            }
            other => {
                // What the state was to have is still known.
                version.coverage = other.as_ref().map(|meta| meta.coverage).unwrap_or_default();
                version.must_rebuild = other.is_some() || spec.view.ready;
                discard(home, view, &blocks)?;
            }
        }
        Ok(version)
    }

    /// The view without its state, which is deleted: it has to be made again from the table's rows.
    pub fn discarded(&self) -> Result<Version> {
        let blocks: Vec<Arc<Block>> = self.blocks.values().flatten().chain(&self.shadowed).cloned().collect();
        discard(&self.home, self.spec.view.oid, &blocks)?;
        let (coverage, must_rebuild) = (self.coverage, true);
        Ok(Version { coverage, must_rebuild, ..Version::new(Arc::clone(&self.spec), &self.home) })
    }

    /// The version whose blocks, and deltas up to the LSN at which it was sealed, are replaced by `state`, made of the rows that the
    /// commit at `lsn` leaves. `before` is what was sealed. Bytes are on disk, but listed only by the next checkpoint.
    pub fn rebuilt(&self, state: &Checkpoint, before: &Version, lsn: u64) -> Version {
        let mut next = self.clone();
        next.unlisted.iter().for_each(|block| block.release());
        let listed = self.blocks.values().flatten().filter(|block| !self.unlisted.iter().any(|other| Arc::ptr_eq(other, block)));
        next.shadowed.extend(listed.cloned());
        next.unlisted.clone_from(&state.blocks);
        next.rebuilt_lsn = Some(lsn);
        next.deltas.retain(|delta| delta.next_lsn > state.applied_lsn);
        next.set_blocks(with_blocks(BTreeMap::new(), state.blocks.iter().cloned()));
        // What failed before may have been deleted.
        let since = next.deltas.iter().find_map(|delta| delta.poison.clone());
        next.poison = state.poison.clone().or(since).or_else(|| self.poison.clone().filter(|_| before.poison.is_none()));
        next.work = state.work;
        next.replaced_at(lsn)
    }

    /// Whether what is on disk has to follow soon: see [`Version::rebuilt`].
    pub fn is_ahead(&self) -> bool {
        self.rebuilt_lsn.is_some()
    }

    /// How often the state was replaced rather than added to.
    pub fn replacements(&self) -> u64 {
        self.replacements
    }

    /// Whether the state has to be made again from the table's rows, by a [`super::Backfill`].
    pub fn must_rebuild(&self) -> bool {
        self.must_rebuild
    }

    /// Every row with an LSN below this is in the blocks in RocksDB.
    pub fn applied_lsn(&self) -> u64 {
        self.applied_lsn
    }

    /// Whether every row with an LSN below [`Version::applied_lsn`] is in the blocks that this version reads, and in no delta.
    pub fn is_in_blocks(&self) -> bool {
        self.shadowed.is_empty() && self.deltas.iter().all(|delta| delta.first_lsn >= self.applied_lsn)
    }

    /// From which LSN on the groups that changed can be told: since then state was only added to, and no group has left without a
    /// trace. Whoever makes, empties or replaces state says so by [`Version::replaced_at`], a merge that drops removed groups by itself.
    pub fn changes_from(&self) -> u64 {
        self.changes_from
    }

    /// The version whose state took the place of another one, which is to be seen up to `lsn`.
    #[must_use]
    pub fn replaced_at(mut self, lsn: u64) -> Version {
        self.changes_from = self.changes_from.max(lsn.saturating_add(1));
        self.replacements += 1;
        self
    }

    /// The version with one more delta, which must follow those it has. Neighbours are merged beside the commits, by [`Version::tidy`];
    /// here only where so many are owed that readers would feel them.
    pub fn with_delta(&self, delta: Delta) -> Result<Version> {
        let mut next = self.clone();
        next.poison = next.poison.or_else(|| delta.poison.clone());
        if delta.rows.num_rows() == 0 {
            return Ok(next);
        }
        next.deltas.push(Arc::new(delta));
        if let Some(merged) = next.merge_tail(DELTA_RUN_MAX) {
            next.replace_run(&merged);
        }
        Ok(next)
    }

    /// Merges the newest deltas if enough of them are of a size, so that their number stays logarithmic: for [`Version::tidied`].
    pub fn tidy(&self) -> Option<MergedDeltas> {
        self.merge_tail(DELTA_FAN_IN)
    }

    /// The version with merged deltas in the place of those they were made of; none where those are not as they were.
    pub fn tidied(&self, merged: &MergedDeltas) -> Option<Version> {
        let mut next = self.clone();
        next.replace_run(merged).then_some(next)
    }

    /// Merges the newest deltas of a size if there are `least` of them. None of them may be in a checkpoint that is being written.
    fn merge_tail(&self, least: usize) -> Option<MergedDeltas> {
        let sealed = self.sealed_lsn.load(Ordering::Acquire);
        let open = self.deltas.iter().rposition(|delta| delta.next_lsn <= sealed || delta.weight() >= MERGED_WEIGHT_MAX);
        let open = open.map_or(0, |last| last + 1);
        let sizes: Vec<usize> = self.deltas[open..].iter().map(|delta| delta.weight()).collect();
        let start = open + mergeable_tail(&sizes, DELTA_FAN_IN)?;
        let run = self.deltas[start..].to_vec();
        // A merge that fails (an accumulator's overflow) leaves them as they are: readers will hear of it.
        let merged = (run.len() >= least).then(|| delta::merge(&self.spec, &run))?.ok()?;
        Some(MergedDeltas { run, merged: Arc::new(merged) })
    }

    fn replace_run(&mut self, MergedDeltas { run, merged }: &MergedDeltas) -> bool {
        let sealed = self.sealed_lsn.load(Ordering::Acquire);
        let Some(at) = run.first().and_then(|first| self.deltas.iter().position(|delta| Arc::ptr_eq(delta, first))) else { return false };
        let end = (at + run.len()).min(self.deltas.len());
        let present = &self.deltas[at..end];
        let same = present.len() == run.len() && present.iter().zip(run).all(|(delta, known)| Arc::ptr_eq(delta, known));
        if !same || present.iter().any(|delta| delta.next_lsn <= sealed) {
            return false;
        }
        self.deltas.splice(at..end, [Arc::clone(merged)]);
        true
    }

    /// The deltas as those of one commit: for a version that was made to take in rows before they had LSNs.
    pub fn as_commit(&self, first_lsn: u64, next_lsn: u64) -> Vec<Delta> {
        let mut deltas: Vec<Delta> = self.deltas.iter().map(|delta| Delta { first_lsn, next_lsn, ..Delta::clone(delta) }).collect();
        if deltas.is_empty() && self.poison.is_some() {
            let rows = RecordBatch::new_empty(Arc::clone(&self.spec.state_schema));
            deltas.push(Delta::new(rows, first_lsn, next_lsn));
        }
        if let Some(first) = deltas.first_mut() {
            first.poison = first.poison.take().or_else(|| self.poison.clone());
        }
        deltas
    }

    /// A version that cannot be read: every reader hears `error`.
    #[must_use]
    pub fn failing(&self, error: Error) -> Version {
        Version { poison: Some(error), ..self.clone() }
    }

    /// The version after a checkpoint's or [`super::Backfill`]'s batch was written: its deltas replaced by the new blocks.
    /// Deltas that came meanwhile stay.
    pub fn checkpointed(&self, checkpoint: &Checkpoint) -> Version {
        let mut next = self.clone();
        let applied = checkpoint.applied_lsn;
        next.applied_lsn = next.applied_lsn.max(applied);
        next.changes_from = next.changes_from.max(checkpoint.changes_from);
        next.must_rebuild = false;
        next.coverage = checkpoint.coverage;
        next.poison = next.poison.or_else(|| checkpoint.poison.clone());
        checkpoint.replaced.iter().for_each(|block| block.release());
        next.shadowed.retain(|block| !checkpoint.replaced.iter().any(|gone| Arc::ptr_eq(gone, block)));
        if next.rebuilt_lsn.is_some_and(|rebuilt| rebuilt < applied) {
            next.unlisted.clear();
            next.rebuilt_lsn = None;
        }
        if next.deltas.iter().any(|delta| delta.first_lsn < applied && applied < delta.next_lsn) {
            next.shadowed.extend(checkpoint.blocks.iter().cloned());
            return next;
        }
        next.work = checkpoint.work;
        next.deltas.retain(|delta| delta.next_lsn > applied);
        let mut blocks = self.blocks.as_ref().clone();
        if !checkpoint.replaced.is_empty() {
            for present in blocks.values_mut() {
                present.retain(|block| !checkpoint.replaced.iter().any(|gone| Arc::ptr_eq(gone, block)));
            }
        }
        next.set_blocks(with_blocks(blocks, checkpoint.blocks.iter().cloned()));
        next
    }

    /// Keeps deltas below an LSN apart from later ones, for a backfill that is to replace them. Called where the snapshot with that
    /// LSN is the newest and no other can be published meanwhile.
    pub fn seal(&self, next_lsn: u64) {
        self.sealed_lsn.fetch_max(next_lsn, Ordering::AcqRel);
    }

    /// The version after a merge's batch was written.
    pub fn merged(&self, merged: &Merged) -> Version {
        let mut blocks = self.blocks.as_ref().clone();
        if let Some(present) = blocks.get_mut(&merged.group) {
            present.retain(|block| !merged.replaced.iter().any(|gone| gone.name == block.name));
        }
        merged.replaced.iter().for_each(|block| block.release());
        let mut next = self.clone();
        next.changes_from = next.changes_from.max(merged.changes_from);
        next.coverage = merged.coverage;
        next.set_blocks(with_blocks(blocks, merged.blocks.iter().cloned()));
        next
    }

    /// For DROP and TRUNCATE: removes position and index of the view in `batch`. After it was written, call
    /// [`Version::dropped`]; the bytes go by [`Blocks::sweep`] when the last reader is done.
    pub fn drop_state(&self, batch: &mut Batch) {
        delete_meta(self.spec.view.oid, batch);
        self.blocks.values().flatten().chain(&self.shadowed).for_each(|block| block.condemn(batch));
    }

    /// See [`Version::drop_state`].
    pub fn dropped(&self) {
        self.blocks.values().flatten().chain(&self.shadowed).for_each(|block| block.release());
    }

    /// Least LSN that only the log holds besides memory; none when everything is on disk.
    pub fn first_delta_lsn(&self) -> Option<u64> {
        self.deltas.iter().map(|delta| delta.first_lsn).chain(self.rebuilt_lsn).min()
    }

    /// What it took to apply the rows so far. It outlives a restart; a rebuild begins anew.
    pub fn work(&self) -> Work {
        let mut work = self.work;
        work += delta::work_of(&self.deltas);
        work
    }

    /// Sizes for system views and metrics.
    pub fn size(&self) -> Size {
        let mut size = Size { deltas: self.deltas.len(), ..Size::default() };
        for delta in &self.deltas {
            size.delta_rows += delta.rows.num_rows() as u64;
            size.delta_bytes += delta.bytes() as u64;
        }
        for block in self.blocks.values().flatten() {
            size.blocks += 1;
            size.block_rows += block.entry.groups();
            size.block_bytes += u64::from(block.entry.bytes);
        }
        size
    }
}

/// Deletes a view's position and blocks.
fn discard(home: &Blocks, view: Oid, blocks: &[Arc<Block>]) -> Result<()> {
    let mut batch = Batch::default();
    delete_meta(view, &mut batch);
    blocks.iter().for_each(|block| block.condemn(&mut batch));
    home.state.write(batch)?;
    blocks.iter().for_each(|block| block.release());
    Ok(())
}

fn with_blocks(mut groups: BTreeMap<i64, Vec<Arc<Block>>>, blocks: impl IntoIterator<Item = Arc<Block>>) -> BTreeMap<i64, Vec<Arc<Block>>> {
    let mut touched = Vec::new();
    for block in blocks {
        touched.push(block.name.group);
        groups.entry(block.name.group).or_default().push(block);
    }
    touched.dedup();
    for group in touched {
        if let Some(blocks) = groups.get_mut(&group) {
            // What a group's first portion voids is older than its later portions.
            let order = |block: &Arc<Block>| (block.entry.first_lsn, block.entry.run, block.entry.portion.first);
            blocks.sort_by_key(|block| (order(block), block.name.slot, block.name.number));
        }
    }
    groups.retain(|_, blocks| !blocks.is_empty());
    groups
}
