//! Which groups of a view changed between two versions, and what they are now.
//!
//! *Place*: `query::follow` asks for a subscriber that has seen one version and is to be shown a newer one.
//!
//! *How*: state since an LSN is in the deltas and blocks that end behind it; their keys are the *candidates*. They are cut into
//! parts of bounded size, and of each part the candidates' states, and no others, are merged from both versions, evaluated and
//! compared. What deltas and blocks were merged with older ones in between only adds candidates, which turn out equal.
//!
//! *Invariants*: (1) a group whose output differs between the versions is a candidate; (2) of two known versions only groups whose
//! output differs come out; against a bare LSN all candidates do, with their present values; (3) where state was replaced rather
//! than added to, or removed groups have left it, every group of both versions is a candidate; against a bare LSN it is refused; (4) cost and memory go with the candidates, not with the view.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, new_null_array};
use arrow::compute::FilterBuilder;
use arrow::datatypes::{Schema, SchemaRef, UInt64Type};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use arrow::row::{RowConverter, SortField};
use datafusion::error::Result as DataFusionResult;
use datafusion::execution::context::SessionState;
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::logical_expr::Expr;
use datafusion::physical_expr::PhysicalExpr;

use super::blocks::Block;
use super::checkpoint::{chunk_of, slot_range};
use super::delta::Delta;
use super::failure::{arrow_failure, failure};
use super::finish::{Projected, declared};
use super::groups::indices;
use super::members::{Members, Side, take};
use super::prune::Pruning;
use super::slots::{Place, places};
use super::version::Version;
use crate::error::{Error, Result, SqlState};

/// Candidates of a part, about.
const PART_ROWS: usize = 65_536;

/// What a subscriber has seen.
#[derive(Clone, Debug)]
pub enum Since {
    /// A version, which was the newest as of an LSN.
    Version(Arc<Version>, u64),
    /// Everything up to an LSN, in an earlier connection or run of the server.
    Lsn(u64),
}

/// What became of the groups of a [`Changed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// They are new or have new values.
    Update,
    /// They are gone.
    Delete,
}

/// Some groups that changed.
#[derive(Debug)]
pub struct Changed {
    /// What became of them.
    pub change: ChangeKind,
    /// The view's columns, all nullable. Of deleted groups only the keys have values, unless the view hides some of its keys:
    /// then these are the rows that no longer hold.
    pub rows: RecordBatch,
}

/// Which groups and rows a subscriber wants.
#[derive(Debug)]
pub struct Selection {
    pruning: Pruning,
    /// Over output columns.
    predicate: Option<Arc<dyn PhysicalExpr>>,
}

impl Selection {
    /// `filters` over output columns, of which those over keys alone spare work; `predicate` is all of them.
    pub fn new(version: &Version, session: &SessionState, filters: &[Expr], predicate: Option<Arc<dyn PhysicalExpr>>) -> Result<Selection> {
        Ok(Selection { pruning: Pruning::new(&version.spec, session, filters, version.kept())?, predicate })
    }
}

impl Version {
    /// Whether the output columns tell groups apart: each key is one of them, unchanged.
    pub fn shows_keys(&self) -> bool {
        let outputs = &self.spec.finish.output_keys;
        (0..self.spec.keys.len()).all(|key| outputs.contains(&Some(key)))
    }

    /// What changed from `since` to this version. 55000 when that cannot be told from an LSN alone.
    pub fn changes(self: &Arc<Self>, since: Since, selection: &Arc<Selection>, reservation: MemoryReservation) -> Result<Changes> {
        if let Some(error) = &self.poison {
            return Err(error.clone());
        }
        // A new fragment can join sessions into one with another start: their keys are not those of the state's rows.
        if self.spec.session.is_some() {
            return Err(Error::internal("state does not tell how sessions have changed"));
        }
        let (old, since) = match since {
            Since::Version(old, lsn) => (Some(old), lsn),
            Since::Lsn(lsn) => {
                self.can_resume(lsn)?;
                (None, lsn)
            }
        };
        let whole = match &old {
            Some(old) if old.spec.fingerprint != self.spec.fingerprint || old.spec.schema() != self.spec.schema() => {
                return Err(self.not_told("Its definition has changed."));
            }
            // A group that was removed may have left the state without a trace since the old version.
            Some(old) => old.replacements != self.replacements || since < self.changes_from() || !Arc::ptr_eq(&old.spec, &self.spec),
            None => false,
        };
        let fields: Vec<_> = self.spec.schema().fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect();
        let mut changes = Changes {
            projected: self.spec.finish.project(None)?,
            schema: Arc::new(Schema::new(fields)),
            new: Arc::clone(self),
            old,
            selection: Arc::clone(selection),
            candidates: Vec::new(),
            parts: VecDeque::new(),
            ready: VecDeque::new(),
            reservation,
        };
        changes.find(since, whole);
        changes.divide().map_err(failure)?;
        Ok(changes)
    }

    fn can_resume(&self, lsn: u64) -> Result<()> {
        if lsn < self.changes_from() {
            let from = self.changes_from();
            let what = "It was created, emptied or built again, or groups of it were deleted";
            return Err(self.not_told(&format!("{what}, before {from}, which is the earliest.")));
        }
        if !self.shows_keys() {
            return Err(self.not_told("Its columns do not tell all its groups apart, so a changed one cannot be named."));
        }
        Ok(())
    }

    fn not_told(&self, detail: &str) -> Error {
        let message = format!("changes of materialized view \"{}\" since then cannot be told", self.spec.view.name);
        Error::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message).detail(detail).hint("Subscribe anew, with its snapshot.")
    }
}

/// State rows among which candidates are.
#[derive(Debug)]
enum Source {
    Block(Arc<Block>),
    Delta(Arc<Delta>, Vec<Place>),
}

/// A range of time groups and slots, inclusive.
#[derive(Clone, Copy, Debug)]
struct Part {
    groups: (i64, i64),
    slots: (u8, u8),
}

impl Part {
    const ALL: Part = Part { groups: (i64::MIN, i64::MAX), slots: (0, u8::MAX) };

    fn has(&self, place: &Place) -> bool {
        (self.groups.0..=self.groups.1).contains(&place.group) && (self.slots.0..=self.slots.1).contains(&place.slot)
    }
}

/// The changes, part by part: deletes of a part before its updates.
#[derive(Debug)]
pub struct Changes {
    new: Arc<Version>,
    /// None where only the LSN is known.
    old: Option<Arc<Version>>,
    selection: Arc<Selection>,
    projected: Projected,
    schema: SchemaRef,
    candidates: Vec<Source>,
    parts: VecDeque<Part>,
    ready: VecDeque<Changed>,
    reservation: MemoryReservation,
}

impl Iterator for Changes {
    type Item = Result<Changed>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(changed) = self.ready.pop_front() {
                return Some(Ok(changed));
            }
            let part = self.parts.pop_front()?;
            let outcome = self.part(part);
            self.reservation.free();
            if let Err(error) = outcome {
                self.parts.clear();
                return Some(Err(error));
            }
        }
    }
}

impl Changes {
    /// Whether there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.parts.is_empty()
    }

    fn find(&mut self, since: u64, whole: bool) {
        let versions = [Some(&self.new), self.old.as_ref().filter(|_| whole)];
        for version in versions.into_iter().flatten() {
            for block in version.blocks.values().flatten() {
                if (whole || block.entry.next_lsn > since) && self.selection.pruning.admits(block) {
                    self.candidates.push(Source::Block(Arc::clone(block)));
                }
            }
            for delta in version.deltas.iter().filter(|delta| whole || delta.next_lsn > since) {
                let keys = &delta.rows.columns()[..self.new.spec.key_schema.fields().len()];
                self.candidates.push(Source::Delta(Arc::clone(delta), places(&self.new.spec, keys, delta.rows.num_rows())));
            }
        }
        // The one group of a view without keys exists even without rows.
        if whole && self.new.spec.keys.is_empty() {
            self.parts.push_back(Part::ALL);
        }
    }

    fn divide(&mut self) -> DataFusionResult<()> {
        if self.candidates.is_empty() || !self.parts.is_empty() {
            return Ok(());
        }
        let mut weights: BTreeMap<i64, usize> = BTreeMap::new();
        for source in &self.candidates {
            match source {
                Source::Block(block) => *weights.entry(block.name.group).or_default() += block.entry.rows as usize,
                Source::Delta(_, places) => places.iter().for_each(|place| *weights.entry(place.group).or_default() += 1),
            }
        }
        if weights.values().sum::<usize>() <= PART_ROWS || self.new.spec.keys.is_empty() {
            self.parts.push_back(Part::ALL);
            return Ok(());
        }
        let mut open = 0;
        for (group, rows) in weights {
            if let Some(last) = self.parts.back_mut()
                && open + rows <= PART_ROWS
                && last.slots == Part::ALL.slots
            {
                last.groups.1 = group;
                open += rows;
                continue;
            }
            let chunks = rows.div_ceil(PART_ROWS).clamp(1, 256);
            open = if chunks == 1 { rows } else { usize::MAX / 2 };
            for chunk in 0..chunks {
                debug_assert_eq!(chunk_of(slot_range(chunk, chunks).0, chunks), chunk, "slot ranges are disjoint");
                self.parts.push_back(Part { groups: (group, group), slots: slot_range(chunk, chunks) });
            }
        }
        Ok(())
    }

    /// Shows the output rows of the candidates in the new version and in the old one, part by part.
    pub(super) fn each_pair(mut self, mut show: impl FnMut(&RecordBatch, &RecordBatch) -> Result<()>) -> Result<()> {
        while let Some(part) = self.parts.pop_front() {
            let Some(Sides { new, old: Some(old), .. }) = self.sides(part)? else { continue };
            self.reservation.free();
            show(&new.batch, &old.batch)?;
        }
        Ok(())
    }

    /// Compares the candidates of a part and puts what differs into `ready`.
    fn part(&mut self, part: Part) -> Result<()> {
        match self.sides(part)? {
            Some(Sides { new, old, keys, count }) => self.compare(&new, old.as_ref(), &keys, count),
            None => Ok(()),
        }
    }

    /// What both versions have of the candidates of a part; none where there are none.
    fn sides(&self, part: Part) -> Result<Option<Sides>> {
        let mut members = self.members(part).map_err(failure)?;
        let keyless = self.new.spec.keys.is_empty();
        if members.count == 0 && !keyless {
            return Ok(None);
        }
        members.count = members.count.max(usize::from(keyless));
        let new = Side::gather(&self.new, &mut members, &self.reservation)?;
        let old = self.old.as_ref().map(|old| Side::gather(old, &mut members, &self.reservation)).transpose()?;
        let keys = members.keys().map_err(failure)?;
        let new = self.outputs(&new, &keys)?;
        let old = old.map(|old| self.outputs(&old, &keys)).transpose()?;
        Ok(Some(Sides { new, old, keys, count: members.count }))
    }

    fn members(&self, part: Part) -> DataFusionResult<Members> {
        let spec = &self.new.spec;
        let mut members = Members::new(spec)?;
        let width = spec.key_schema.fields().len();
        for source in &self.candidates {
            let (keys, count) = match source {
                Source::Block(block) => {
                    let (first, last) = (part.slots.0.max(block.name.slot), part.slots.1.min(block.entry.slot_last));
                    if first > last || !(part.groups.0..=part.groups.1).contains(&block.name.group) {
                        continue;
                    }
                    let decoded = block.read(spec.fingerprint)?;
                    let range = decoded.range(first, last);
                    let keys: Vec<_> = decoded.columns[..width].iter().map(|column| column.slice(range.start, range.len())).collect();
                    (keys, range.len())
                }
                Source::Delta(delta, places) => {
                    let chosen: Vec<usize> = (0..places.len()).filter(|row| part.has(&places[*row])).collect();
                    (take(&delta.rows.columns()[..width], &chosen, places.len())?, chosen.len())
                }
            };
            let (keys, count) = self.admitted(keys, count)?;
            members.add(spec, &keys, count)?;
        }
        Ok(members)
    }

    /// The keys that the selection wants.
    fn admitted(&self, keys: Vec<ArrayRef>, count: usize) -> DataFusionResult<(Vec<ArrayRef>, usize)> {
        let Some(predicate) = self.selection.pruning.predicate.as_ref().filter(|_| count > 0) else { return Ok((keys, count)) };
        let options = RecordBatchOptions::new().with_row_count(Some(count)).with_match_field_names(false);
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.new.spec.key_schema), keys, &options)?;
        let mask = predicate.evaluate(&batch)?.into_array(count)?;
        let filter = FilterBuilder::new(mask.as_boolean()).optimize().build();
        let keys = batch.columns().iter().map(|column| filter.filter(column)).collect::<Result<_, _>>()?;
        Ok((keys, filter.count()))
    }

    /// A side's output rows with the numbers of their groups.
    fn outputs(&self, side: &Side, keys: &[ArrayRef]) -> Result<Outputs> {
        let rows = side.groups.len();
        if rows == 0 {
            return Ok(Outputs { batch: RecordBatch::new_empty(Arc::clone(&self.projected.schema)), groups: Vec::new() });
        }
        let mut order: Vec<usize> = (0..rows).collect();
        order.sort_unstable_by_key(|row| side.groups[*row]);
        let numbers = indices(order.iter().map(|row| side.groups[*row]));
        let order = indices(order);
        let keys = keys.iter().map(|column| (column, &numbers));
        let values = side.values.iter().map(|column| (column, &order));
        let columns = keys.chain(values).map(|(column, rows)| arrow::compute::take(column, rows, None).map(Some).map_err(arrow_failure));
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let mut marks: Option<ArrayRef> = Some(Arc::new(numbers));
        let mut batch = self.new.spec.finish.run_marked(&self.projected, columns, rows, &mut marks)?;
        if let (Some(predicate), Some(numbers)) = (&self.selection.predicate, &marks) {
            let mask = predicate.evaluate(&batch).and_then(|mask| mask.into_array(batch.num_rows())).map_err(failure)?;
            let filter = FilterBuilder::new(mask.as_boolean()).optimize().build();
            marks = Some(filter.filter(numbers).map_err(arrow_failure)?);
            batch = filter.filter_record_batch(&batch).map_err(arrow_failure)?;
        }
        let groups = marks.map(|marks| marks.as_primitive::<UInt64Type>().values().to_vec()).unwrap_or_default();
        Ok(Outputs { batch, groups })
    }

    fn compare(&mut self, new: &Outputs, old: Option<&Outputs>, keys: &[ArrayRef], count: usize) -> Result<()> {
        let shows_keys = self.new.shows_keys();
        let (mut updated, mut gone): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
        // Rows of the old output whose group has other values now: the only way to name them where keys are hidden.
        let mut replaced: Vec<usize> = Vec::new();
        match old {
            None => {
                updated.extend(0..new.groups.len());
                gone.extend((0..count).filter(|group| new.groups.binary_search(&(*group as u64)).is_err()));
            }
            Some(old) => {
                let equal = Equal::new(&new.batch, &old.batch)?;
                for (row, group) in new.groups.iter().enumerate() {
                    match old.groups.binary_search(group) {
                        Ok(before) if equal.rows(row, before) => {}
                        Ok(before) => {
                            updated.push(row);
                            replaced.push(before);
                        }
                        Err(_) => updated.push(row),
                    }
                }
                let lost = old.groups.iter().enumerate().filter(|(_, group)| new.groups.binary_search(group).is_err());
                if shows_keys {
                    gone.extend(lost.map(|(_, group)| *group as usize));
                } else {
                    replaced.extend(lost.map(|(row, _)| row));
                }
            }
        }
        if shows_keys {
            self.deleted(keys, &gone)?;
        } else if let Some(old) = old.filter(|_| !replaced.is_empty()) {
            let columns = take(old.batch.columns(), &replaced, old.batch.num_rows()).map_err(failure)?;
            self.put(ChangeKind::Delete, columns, replaced.len())?;
        }
        if !updated.is_empty() {
            let columns = take(new.batch.columns(), &updated, new.batch.num_rows()).map_err(failure)?;
            self.put(ChangeKind::Update, columns, updated.len())?;
        }
        Ok(())
    }

    fn deleted(&mut self, keys: &[ArrayRef], groups: &[usize]) -> Result<()> {
        if groups.is_empty() {
            return Ok(());
        }
        let chosen = indices(groups.iter().copied());
        let columns = self.schema.fields().iter().zip(&self.new.spec.finish.output_keys).map(|(field, key)| match key {
            Some(key) => declared(&arrow::compute::take(&keys[*key], &chosen, None).map_err(arrow_failure)?, field.data_type()),
            None => Ok(new_null_array(field.data_type(), groups.len())),
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        self.put(ChangeKind::Delete, columns, groups.len())
    }

    fn put(&mut self, change: ChangeKind, columns: Vec<ArrayRef>, count: usize) -> Result<()> {
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        let rows = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options).map_err(arrow_failure)?;
        self.ready.push_back(Changed { change, rows });
        Ok(())
    }
}

/// The candidates of a part in both versions.
struct Sides {
    new: Outputs,
    old: Option<Outputs>,
    keys: Vec<ArrayRef>,
    count: usize,
}

/// Output rows and the numbers of their groups, ascending.
struct Outputs {
    batch: RecordBatch,
    groups: Vec<u64>,
}

/// Compares rows of two outputs to the last bit, NULLs equal.
struct Equal {
    new: Option<(arrow::row::Rows, arrow::row::Rows)>,
}

impl Equal {
    fn new(new: &RecordBatch, old: &RecordBatch) -> Result<Equal> {
        let fields: Vec<_> = new.columns().iter().map(|column| SortField::new(column.data_type().clone())).collect();
        // What cannot be compared counts as changed.
        if !RowConverter::supports_fields(&fields) {
            return Ok(Equal { new: None });
        }
        let converter = RowConverter::new(fields).map_err(arrow_failure)?;
        let rows = |batch: &RecordBatch| converter.convert_columns(batch.columns()).map_err(arrow_failure);
        Ok(Equal { new: Some((rows(new)?, rows(old)?)) })
    }

    fn rows(&self, new: usize, old: usize) -> bool {
        self.new.as_ref().is_some_and(|(news, olds)| news.row(new) == olds.row(old))
    }
}
