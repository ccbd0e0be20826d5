//! Large sets of distinct values, cut by the values' hashes, so that one portion of them is held at a time.
//!
//! *Place*: `checkpoint` cuts what it writes, so that no block is larger than a portion of a set; `read` and `members` count a portion
//! after the other where sets are large.
//!
//! A group's state is cut to several state rows with its keys. The first portion's row has the states of the other aggregates, the
//! error and the mark; in the rows of later portions the other aggregates have the state of no rows, and there is none where a group
//! has no value of the portion. They merge to the whole like any states, so that only who wants to hold less has to know of portions.
//!
//! *Invariants*: (1) a portion is a range of the hashes' highest byte, and the number of portions a power of two: they nest; (2) a
//! block that has marks counts for all portions, so that what is void in one is void in each.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, ListArray, UInt64Array};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::compute::{filter, take};
use arrow::datatypes::{DataType, Int64Type};
use arrow::record_batch::RecordBatch;
use arrow::row::{RowConverter, SortField};
use datafusion::common::internal_err;
use datafusion::error::{DataFusionError, Result};
use serde::{Deserialize, Serialize};

use super::blocks::Block;
use super::failure::failure;
use super::groups::{Extras, Groups, Interner, Mark, indices, state_batch};
use super::slots::value_hashes;
use super::spec::Spec;

// Unit tests have small sets, which are cut all the same.

/// Bytes of sets that are counted together: what is made of them can take several times as much.
const COUNTED_BYTES: usize = if cfg!(test) { 256 } else { 32 * 1024 * 1024 };

/// A row whose set has so many values is cut when it is written.
const LARGE_VALUES: usize = if cfg!(test) { 16 } else { 65_536 };

/// Bytes of large sets that are written together.
const WRITTEN_BYTES: usize = if cfg!(test) { 128 } else { 2 * 1024 * 1024 };

/// Portions at most.
const PORTIONS_MAX: usize = 256;

/// The values whose hash begins with a byte from `first` to `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Portion {
    pub(super) first: u8,
    pub(super) last: u8,
}

impl Default for Portion {
    fn default() -> Portion {
        Portion::ALL
    }
}

fn portions(bytes: usize, portion_bytes: usize) -> usize {
    bytes.div_ceil(portion_bytes).clamp(1, PORTIONS_MAX).next_power_of_two()
}

impl Portion {
    /// All values.
    pub(super) const ALL: Portion = Portion { first: 0, last: u8::MAX };

    /// So many portions, a power of two.
    pub(super) fn cut(count: usize) -> impl Iterator<Item = Portion> {
        let width = PORTIONS_MAX / count;
        (0..count).map(move |index| Portion { first: (index * width) as u8, last: ((index + 1) * width - 1) as u8 })
    }

    /// In how many portions sets of so many bytes are counted.
    pub(super) fn to_count(bytes: usize) -> usize {
        portions(bytes, COUNTED_BYTES)
    }

    /// How many such portions there are.
    pub(super) fn count(self) -> usize {
        PORTIONS_MAX / (usize::from(self.last - self.first) + 1)
    }

    /// Whether it has what is no set.
    pub(super) fn is_first(self) -> bool {
        self.first == 0
    }

    fn has(self, hash: u64) -> bool {
        (self.first..=self.last).contains(&((hash >> 56) as u8))
    }

    /// Whether some value can be in both.
    pub(super) fn meets(self, other: Portion) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// This portion of state rows that have the portion `held`: columns of the state schema and perhaps errors and marks. `needed` says
    /// which of them are looked at. Rows of later portions keep their marks.
    pub(super) fn of(
        self,
        held: Portion,
        spec: &Spec,
        columns: &[ArrayRef],
        rows: usize,
        needed: &[bool],
    ) -> Result<(Vec<ArrayRef>, usize)> {
        let is_needed = |column: usize| needed.get(column).copied().unwrap_or(true);
        let mut columns = columns.to_vec();
        let is_inside = self.first <= held.first && held.last <= self.last;
        for set in spec.sets().filter(|set| !is_inside && is_needed(*set)) {
            columns[set] = Arc::new(self.of_lists(columns[set].as_list::<i32>())?);
        }
        if self.is_first() { Ok((columns, rows)) } else { later(spec, columns, rows, &is_needed) }
    }

    /// Lists with those of their values that are in the portion.
    fn of_lists(self, lists: &ListArray) -> Result<ListArray> {
        let offsets = lists.value_offsets();
        let (start, end) = (offsets[0] as usize, offsets[lists.len()] as usize);
        let values = lists.values().slice(start, end - start);
        let mask: BooleanArray = value_hashes(&values).into_iter().map(|hash| Some(self.has(hash))).collect();
        if mask.true_count() == mask.len() {
            return Ok(lists.clone());
        }
        let mut kept = Vec::with_capacity(offsets.len());
        let (mut count, mut at) = (0_i32, 0);
        for offset in offsets {
            let to = *offset as usize - start;
            count += mask.slice(at, to - at).true_count() as i32;
            at = to;
            kept.push(count);
        }
        let DataType::List(item) = lists.data_type() else { return Ok(lists.clone()) };
        let offsets = OffsetBuffer::new(ScalarBuffer::from(kept));
        Ok(ListArray::try_new(Arc::clone(item), offsets, filter(&values, &mask)?, None)?)
    }
}

/// State rows as those of a later portion: without what is no set, and without rows that then have nothing.
fn later(spec: &Spec, columns: Vec<ArrayRef>, rows: usize, is_needed: &dyn Fn(usize) -> bool) -> Result<(Vec<ArrayRef>, usize)> {
    let mut counts = vec![false; rows];
    for set in spec.sets().filter(|set| is_needed(*set)) {
        let lengths = columns[set].as_list::<i32>().offsets().lengths();
        counts.iter_mut().zip(lengths).for_each(|(counts, length)| *counts |= length > 0);
    }
    let marks = Extras::of(&columns[spec.state_schema.fields().len()..]).marks.cloned();
    if let Some(marks) = &marks {
        counts.iter_mut().zip(marks.values()).for_each(|(counts, mark)| *counts |= Mark::of(*mark) != Mark::Adds);
    }
    let chosen = indices(counts.iter().enumerate().filter(|(_, counts)| **counts).map(|(row, _)| row));
    let taken = |index: usize| {
        if is_needed(index) { Ok(take(&columns[index], &chosen, None)?) } else { Ok::<_, DataFusionError>(Arc::clone(&columns[index])) }
    };
    let mut output = (0..spec.key_schema.fields().len()).map(taken).collect::<Result<Vec<_>>>()?;
    let nothing = UInt64Array::from_value(0, chosen.len());
    for aggregate in &spec.aggregates {
        let first = output.len();
        let own = first..first + aggregate.state.len();
        if aggregate.is_set() || !own.clone().any(is_needed) {
            output.extend(own.map(taken).collect::<Result<Vec<_>>>()?);
            continue;
        }
        for state in aggregate.state_of_nothing()? {
            output.push(take(&state, &nothing, None)?);
        }
    }
    if let Some(marks) = marks {
        output.push(take(&marks, &chosen, None)?);
    }
    Ok((output, chosen.len()))
}

/// The groups that have large sets, among rows that are to be written.
struct Large<'a> {
    spec: &'a Spec,
    /// None for a view without keys.
    converter: Option<RowConverter>,
    keys: HashSet<Box<[u8]>>,
    bytes: usize,
}

impl<'a> Large<'a> {
    fn new(spec: &'a Spec) -> Result<Large<'a>> {
        let fields: Vec<_> = spec.key_schema.fields().iter().map(|field| SortField::new(field.data_type().clone())).collect();
        let converter = if fields.is_empty() || !spec.has_sets() { None } else { Some(RowConverter::new(fields)?) };
        Ok(Large { spec, converter, keys: HashSet::new(), bytes: 0 })
    }

    /// Looks at rows that have a portion of their sets.
    fn look(&mut self, columns: &[ArrayRef], portion: Portion) -> Result<()> {
        let mut found = Vec::new();
        for set in self.spec.sets() {
            let lists = columns[set].as_list::<i32>();
            for (row, length) in lists.offsets().lengths().enumerate() {
                if length > 0 && (length >= LARGE_VALUES || !portion.is_first()) {
                    self.bytes += values_bytes(&lists.value(row));
                    found.push(row);
                }
            }
        }
        let rows = indices(found);
        let keys = self.encoded(&columns[..self.spec.key_schema.fields().len()], &rows)?;
        self.keys.extend(keys);
        Ok(())
    }

    fn encoded(&self, keys: &[ArrayRef], rows: &UInt64Array) -> Result<Vec<Box<[u8]>>> {
        let Some(converter) = &self.converter else { return Ok(vec![Box::default(); rows.len()]) };
        let keys = keys.iter().map(|key| take(key, rows, None)).collect::<std::result::Result<Vec<_>, _>>()?;
        Ok(converter.convert_columns(&keys)?.iter().map(|key| Box::from(key.as_ref())).collect())
    }

    /// In how many portions the groups are written.
    fn portions(&self) -> usize {
        portions(self.bytes, WRITTEN_BYTES)
    }

    /// The numbers of rows of other groups, and of these.
    fn split(&self, columns: &[ArrayRef], rows: usize) -> Result<(UInt64Array, UInt64Array)> {
        let keys = self.encoded(&columns[..self.spec.key_schema.fields().len()], &indices(0..rows))?;
        let (large, small): (Vec<usize>, Vec<usize>) = (0..rows).partition(|row| self.keys.contains(&keys[*row]));
        Ok((indices(small), indices(large)))
    }
}

/// Whether some of the rows have sets that are cut when they are written.
pub(super) fn has_large(spec: &Spec, rows: &RecordBatch) -> crate::error::Result<bool> {
    let mut large = Large::new(spec).map_err(failure)?;
    large.look(rows.columns(), Portion::ALL).map_err(failure)?;
    Ok(large.portions() > 1)
}

/// State rows that are put together with others, oldest first.
pub(super) enum Source<'a> {
    /// Those of a block in slots from one to another.
    Block(&'a Arc<Block>, (u8, u8)),
    Rows(&'a RecordBatch),
}

impl Source<'_> {
    fn portion(&self) -> Portion {
        match self {
            Source::Block(block, _) => block.entry.portion,
            Source::Rows(_) => Portion::ALL,
        }
    }

    fn read(&self, spec: &Spec) -> crate::error::Result<(Vec<ArrayRef>, usize)> {
        match self {
            Source::Rows(rows) => Ok((rows.columns().to_vec(), rows.num_rows())),
            Source::Block(block, (first, last)) => {
                let decoded = block.read(spec.fingerprint)?;
                let range = decoded.range(*first, *last);
                Ok((decoded.columns.iter().map(|column| column.slice(range.start, range.len())).collect(), range.len()))
            }
        }
    }
}

/// State rows of a portion.
pub(super) struct Written {
    pub(super) portion: Portion,
    pub(super) rows: RecordBatch,
    /// Whether a group was removed that has not come back.
    pub(super) has_removed: bool,
}

/// Puts state rows together for who writes them: first the groups whose sets are small, whole, then those with large ones in portions. `oldest` says that
/// there are no older ones, so that nothing need be marked.
pub(super) fn merged(
    spec: &Spec,
    sources: &[Source<'_>],
    oldest: bool,
    mut write: impl FnMut(Written) -> crate::error::Result<()>,
) -> crate::error::Result<()> {
    let mut large = Large::new(spec).map_err(failure)?;
    for source in sources.iter().filter(|_| spec.has_sets()) {
        large.look(&source.read(spec)?.0, source.portion()).map_err(failure)?;
    }
    let mut write_groups = |portion: Portion, groups: Groups<'_>| {
        if groups.is_empty() {
            return Ok(());
        }
        let has_removed = portion.is_first() && groups.has_removed();
        // What is void is marked with the first portion.
        let mut rows = groups.states_over(oldest || !portion.is_first()).map_err(failure)?;
        if !portion.is_first() {
            let (columns, count) = later(spec, rows.columns().to_vec(), rows.num_rows(), &|_| true).map_err(failure)?;
            rows = state_batch(spec, columns, count, &BTreeMap::new()).map_err(failure)?;
        }
        write(Written { portion, rows, has_removed })
    };
    let portions = large.portions();
    // Of each source the rows of large groups: of a later portion all.
    let mut of_large: Vec<Option<UInt64Array>> = Vec::with_capacity(sources.len());
    let mut groups = Groups::new(spec).map_err(failure)?;
    for source in sources {
        if portions > 1 && !source.portion().is_first() {
            of_large.push(None);
            continue;
        }
        let (columns, rows) = source.read(spec)?;
        if portions == 1 {
            groups.merge(&columns, rows).map_err(failure)?;
            continue;
        }
        let (small, large) = large.split(&columns, rows).map_err(failure)?;
        groups.merge(&taken(&columns, &small).map_err(failure)?, small.len()).map_err(failure)?;
        of_large.push(Some(large));
    }
    write_groups(Portion::ALL, groups)?;
    for portion in Portion::cut(portions).filter(|_| portions > 1) {
        let mut groups = Groups::new(spec).map_err(failure)?;
        for (source, chosen) in sources.iter().zip(&of_large).filter(|(source, _)| source.portion().meets(portion)) {
            let (columns, rows) = source.read(spec)?;
            let merged = match chosen {
                None => groups.merge_portion(portion, source.portion(), &columns, rows),
                Some(chosen) => {
                    taken(&columns, chosen).and_then(|columns| groups.merge_portion(portion, source.portion(), &columns, chosen.len()))
                }
            };
            merged.map_err(failure)?;
        }
        write_groups(portion, groups)?;
    }
    Ok(())
}

fn taken(columns: &[ArrayRef], rows: &UInt64Array) -> Result<Vec<ArrayRef>> {
    if columns.first().is_some_and(|column| column.len() == rows.len()) {
        return Ok(columns.to_vec());
    }
    columns.iter().map(|column| Ok(take(column, rows, None)?)).collect()
}

/// What groups have: keys, values of the wanted aggregates, and how many groups there are.
type Values = (Vec<ArrayRef>, Vec<Option<ArrayRef>>, usize);

/// The values of groups that `merge` takes in, their sets in so many portions or, where memory does not suffice, in more.
pub(super) fn counted<'a>(
    spec: &'a Spec,
    wanted: &[bool],
    mut portions: usize,
    mut merge: impl FnMut(Portion, &mut Groups<'a>) -> Result<()>,
) -> Result<Values> {
    loop {
        let exhausted = match counted_in(spec, wanted, portions, &mut merge) {
            Err(error) if matches!(error.find_root(), DataFusionError::ResourcesExhausted(_)) => error,
            outcome => return outcome,
        };
        portions = match spec.has_sets() && portions < PORTIONS_MAX {
            true => (portions * 4).min(PORTIONS_MAX),
            false => return Err(exhausted),
        };
    }
}

fn counted_in<'a>(
    spec: &'a Spec,
    wanted: &[bool],
    portions: usize,
    merge: &mut dyn FnMut(Portion, &mut Groups<'a>) -> Result<()>,
) -> Result<Values> {
    let mut cut = Portion::cut(portions);
    let mut groups = Groups::with(spec, wanted.to_vec())?;
    merge(cut.next().unwrap_or(Portion::ALL), &mut groups)?;
    let (keys, mut values, rows) = groups.values()?;
    if portions == 1 {
        return Ok((keys, values, rows));
    }
    let mut places = Interner::new(&spec.key_schema)?;
    let mut ids = Vec::new();
    places.intern(&keys, rows, &mut ids)?;
    let sets: Vec<bool> = spec.aggregates.iter().zip(wanted).map(|(aggregate, wanted)| *wanted && aggregate.is_set()).collect();
    for portion in cut {
        let mut groups = Groups::with(spec, sets.clone())?;
        merge(portion, &mut groups)?;
        let (keys, counts, count) = groups.values()?;
        places.intern(&keys, count, &mut ids)?;
        if places.len() > rows {
            return internal_err!("a group has values of a later portion alone");
        }
        for (sum, counts) in values.iter_mut().zip(&counts).filter_map(|(sum, counts)| Some((sum.as_mut()?, counts.as_ref()?))) {
            let mut summed = sum.as_primitive::<Int64Type>().values().to_vec();
            ids.iter().zip(counts.as_primitive::<Int64Type>().values()).for_each(|(id, count)| summed[*id] += count);
            *sum = Arc::new(Int64Array::from(summed));
        }
    }
    Ok((keys, values, rows))
}

impl Spec {
    /// Positions in the state schema of the sets of distinct values that can be cut.
    pub(super) fn sets(&self) -> impl Iterator<Item = usize> {
        // Fragments of a session are joined before what they have is known.
        let aggregates = if self.session.is_some() { &[] } else { self.aggregates.as_slice() };
        let mut column = self.key_schema.fields().len();
        aggregates.iter().filter_map(move |aggregate| {
            let own = column;
            column += aggregate.state.len();
            aggregate.is_set().then_some(own)
        })
    }

    /// Whether there are any.
    pub(super) fn has_sets(&self) -> bool {
        self.sets().next().is_some()
    }

    /// Bytes of the values in those sets of state rows that are needed, about.
    pub(super) fn set_bytes(&self, columns: &[ArrayRef], rows: usize, needed: &[bool]) -> usize {
        let bytes = |set: usize| {
            let lists = columns[set].as_list::<i32>().slice(0, rows);
            let (start, end) = (lists.value_offsets()[0] as usize, lists.value_offsets()[rows] as usize);
            values_bytes(&lists.values().slice(start, end - start))
        };
        self.sets().filter(|set| needed[*set]).map(bytes).sum()
    }
}

/// Bytes of an array's values.
pub(super) fn values_bytes(values: &ArrayRef) -> usize {
    match values.as_string_view_opt() {
        Some(views) => views.lengths().map(|length| size_of::<u128>() + if length > 12 { length as usize } else { 0 }).sum(),
        None => values.to_data().get_slice_memory_size().unwrap_or(0),
    }
}
