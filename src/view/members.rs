//! The states of some groups, and no others, gathered from a version.
//!
//! *Place*: `changes` compares what two versions have of the groups that may have changed.
//!
//! *Invariant*: memory goes with the groups that are asked for: states of others are passed over, and what the table of groups learns
//! of them is forgotten from time to time.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, UInt64Array};
use arrow::compute::FilterBuilder;
use datafusion::error::Result as DataFusionResult;
use datafusion::execution::memory_pool::MemoryReservation;

use super::block::Decoded;
use super::blocks::Block;
use super::failure::failure;
use super::groups::{Groups, Interner, indices};
use super::portion::{Portion, counted};
use super::slots::{Place, places};
use super::spec::Spec;
use super::version::Version;
use crate::error::Result;

/// Other groups' keys that the table of candidates may take up before it is made anew.
const STRANGERS_MAX: usize = if cfg!(test) { 16 } else { 65_536 };

/// Candidates are few where a block has so many rows for each.
const SPARSE: usize = 8;

/// The hashes of a block's rows, if they ascend within each slot.
fn hashes(spec: &Spec, block: &Decoded) -> Option<Vec<u64>> {
    let keys = &block.columns[..spec.key_schema.fields().len()];
    let hashes: Vec<u64> = places(spec, keys, block.slots.len()).iter().map(|place| place.hash).collect();
    let ascend = (1..hashes.len()).all(|row| (hashes[row - 1] as u8, hashes[row - 1]) <= (hashes[row] as u8, hashes[row]));
    ascend.then_some(hashes)
}

/// The candidates of a part: groups 0 to `count` of the interner.
pub(super) struct Members {
    interner: Interner,
    pub(super) count: usize,
    touched: BTreeMap<i64, Touched>,
    /// Of the candidates' places.
    hashes: HashSet<u64>,
    ids: Vec<usize>,
}

/// Where the candidates of a time group are.
struct Touched {
    slots: [bool; 256],
    low: i64,
    high: i64,
}

impl Members {
    /// None yet.
    pub(super) fn new(spec: &Spec) -> DataFusionResult<Members> {
        Ok(Members {
            interner: Interner::new(&spec.key_schema)?,
            count: 0,
            touched: BTreeMap::new(),
            hashes: HashSet::new(),
            ids: Vec::new(),
        })
    }

    /// Adds candidates by their keys.
    pub(super) fn add(&mut self, spec: &Spec, keys: &[ArrayRef], count: usize) -> DataFusionResult<()> {
        if count == 0 {
            return Ok(());
        }
        for place in places(spec, keys, count) {
            let touched = self.touched.entry(place.group).or_insert(Touched { slots: [false; 256], low: i64::MAX, high: i64::MIN });
            touched.slots[usize::from(place.slot)] = true;
            self.hashes.insert(place.hash);
            touched.low = touched.low.min(place.bucket);
            touched.high = touched.high.max(place.bucket);
        }
        self.interner.intern(keys, count, &mut self.ids)?;
        self.count = self.interner.len();
        Ok(())
    }

    /// The candidates' keys by number; the interner is empty afterwards.
    pub(super) fn keys(&mut self) -> DataFusionResult<Vec<ArrayRef>> {
        Ok(self.interner.emit()?.iter().map(|keys| keys.slice(0, self.count)).collect())
    }

    /// The numbers of rows' groups, and which rows are candidates.
    fn find(&mut self, keys: &[ArrayRef], count: usize) -> DataFusionResult<BooleanArray> {
        if self.interner.len() > self.count + STRANGERS_MAX {
            let keys = self.keys()?;
            self.interner.intern(&keys, self.count, &mut self.ids)?;
        }
        self.interner.intern(keys, count, &mut self.ids)?;
        Ok(self.ids.iter().map(|id| Some(*id < self.count)).collect())
    }
}

impl Touched {
    fn meets(&self, block: &Block) -> bool {
        let entry = &block.entry;
        entry.bucket_min <= self.high && entry.bucket_max >= self.low && (block.name.slot..=entry.slot_last).any(|slot| self.has(slot))
    }

    fn has(&self, slot: u8) -> bool {
        self.slots[usize::from(slot)]
    }

    /// Touched slots from `first` to `last`, neighbours together.
    fn runs(&self, first: u8, last: u8) -> Vec<(u8, u8)> {
        let mut runs: Vec<(u8, u8)> = Vec::new();
        for slot in (first..=last).filter(|slot| self.has(*slot)) {
            match runs.last_mut() {
                Some(run) if run.1 + 1 == slot => run.1 = slot,
                _ => runs.push((slot, slot)),
            }
        }
        runs
    }
}

/// The candidates that one version has.
pub(super) struct Side {
    /// Per aggregate, a value for each group; none without groups.
    pub(super) values: Vec<ArrayRef>,
    /// The groups' numbers.
    pub(super) groups: Vec<usize>,
}

struct Gathering<'a, 'g> {
    spec: &'a Spec,
    /// Of their sets.
    portion: Portion,
    merged: &'g mut Groups<'a>,
    /// State rows taken in.
    rows: usize,
}

impl Side {
    /// Merges the states that a version has of the candidates.
    pub(super) fn gather(version: &Version, members: &mut Members, reservation: &MemoryReservation) -> Result<Side> {
        let spec = version.spec.as_ref();
        let mut taken = 0;
        let merged = counted(spec, &vec![true; spec.aggregates.len()], 1, |portion, merged| {
            let mut gathering = Gathering { spec, portion, merged, rows: 0 };
            gathering.blocks(version, members, reservation)?;
            gathering.deltas(version, members, reservation)?;
            taken = gathering.rows.max(taken);
            Ok(())
        });
        let (keys, merged, rows) = merged.map_err(failure)?;
        // The one group of a view without keys exists even without rows.
        let keyless = spec.keys.is_empty();
        if taken == 0 && !keyless {
            return Ok(Side { values: Vec::new(), groups: Vec::new() });
        }
        let mut values = Vec::with_capacity(merged.len());
        for (aggregate, merged) in spec.aggregates.iter().zip(merged.into_iter().flatten()) {
            values.push(aggregate.checked(&merged)?);
        }
        if keyless {
            return Ok(Side { values, groups: vec![0] });
        }
        members.interner.intern(&keys, rows, &mut members.ids).map_err(failure)?;
        Ok(Side { values, groups: members.ids.clone() })
    }
}

impl Gathering<'_, '_> {
    fn blocks(&mut self, version: &Version, members: &mut Members, reservation: &MemoryReservation) -> DataFusionResult<()> {
        let mut found = Vec::new();
        for (group, touched) in &members.touched {
            let blocks = version.blocks.get(group).into_iter().flatten().filter(|block| block.entry.portion.meets(self.portion));
            for block in blocks.filter(|block| touched.meets(block)) {
                found.push((Arc::clone(block), touched.runs(block.name.slot, block.entry.slot_last)));
            }
        }
        for (block, runs) in found {
            let decoded = block.read(self.spec.fingerprint)?;
            for (first, last) in runs {
                let range = decoded.range(first, last);
                if members.hashes.len() * SPARSE < decoded.slots.len()
                    && let Some(hashes) = decoded.hashes.get_or_init(|| hashes(self.spec, &decoded))
                {
                    // A few of many: only theirs are looked at.
                    let mut chosen = Vec::new();
                    for hash in members.hashes.iter().filter(|hash| (first..=last).contains(&(**hash as u8))) {
                        let own = decoded.range(*hash as u8, *hash as u8);
                        let from = own.start + hashes[own.clone()].partition_point(|other| other < hash);
                        chosen.extend((from..own.end).take_while(|row| hashes[*row] == *hash));
                    }
                    chosen.sort_unstable();
                    let columns = take(&decoded.columns, &chosen, decoded.slots.len())?;
                    self.take_in(members, block.entry.portion, &columns, chosen.len())?;
                    continue;
                }
                let columns: Vec<_> = decoded.columns.iter().map(|column| column.slice(range.start, range.len())).collect();
                self.take_in(members, block.entry.portion, &columns, range.len())?;
            }
            self.reserve(members, reservation)?;
        }
        Ok(())
    }

    fn deltas(&mut self, version: &Version, members: &mut Members, reservation: &MemoryReservation) -> DataFusionResult<()> {
        let width = self.spec.key_schema.fields().len();
        for delta in &version.deltas {
            let count = delta.rows.num_rows();
            let places = places(self.spec, &delta.rows.columns()[..width], count);
            let touched = |place: &Place| members.touched.get(&place.group).is_some_and(|touched| touched.has(place.slot));
            let chosen: Vec<usize> = (0..count).filter(|row| touched(&places[*row])).collect();
            let columns = take(delta.rows.columns(), &chosen, count)?;
            self.take_in(members, Portion::ALL, &columns, chosen.len())?;
            self.reserve(members, reservation)?;
        }
        Ok(())
    }

    /// Merges the states of candidates among some rows, which have one portion of their sets.
    fn take_in(&mut self, members: &mut Members, held: Portion, columns: &[ArrayRef], count: usize) -> DataFusionResult<()> {
        if count == 0 {
            return Ok(());
        }
        let width = self.spec.key_schema.fields().len();
        let wanted = members.find(&columns[..width], count)?;
        let filter = FilterBuilder::new(&wanted).optimize().build();
        if filter.count() == 0 {
            return Ok(());
        }
        let columns = columns.iter().map(|column| filter.filter(column)).collect::<Result<Vec<_>, _>>()?;
        self.rows += filter.count();
        self.merged.merge_portion(self.portion, held, &columns, filter.count())
    }

    fn reserve(&self, members: &Members, reservation: &MemoryReservation) -> DataFusionResult<()> {
        reservation.try_resize(members.interner.size() + self.merged.size())
    }
}

/// The chosen rows of `count`.
pub(super) fn take(columns: &[ArrayRef], chosen: &[usize], count: usize) -> DataFusionResult<Vec<ArrayRef>> {
    if chosen.len() == count {
        return Ok(columns.to_vec());
    }
    let chosen: UInt64Array = indices(chosen.iter().copied());
    columns.iter().map(|column| Ok(arrow::compute::take(column, &chosen, None)?)).collect()
}
