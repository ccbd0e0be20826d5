//! Groups with their accumulators: interning keys, taking in rows or states, giving out states or values.
//!
//! *Place*: `delta`, `checkpoint` and `read` merge with it; `apply` interns with it.
//!
//! *Replacing*: after rows of a table were deleted, the states of their groups are made anew (`replace`), and their rows are marked:
//! what is older is void. States come oldest first, so a marked row gives its group a fresh accumulator. Nothing of this costs
//! anything where no row is marked.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, StringViewArray, StringViewBuilder, UInt8Array, UInt64Array, new_empty_array, new_null_array,
};
use arrow::compute::{concat, concat_batches, take};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt8Type};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::error::Result;
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;

use super::failure::from_text;
use super::portion::Portion;
use super::session::{Session, Sessions, Span};
use super::spec::Spec;

/// Name of the column of failed groups' errors, after the states in a batch that has any.
pub(super) const ERROR_COLUMN: &str = "error";

/// Name of the column of [`Mark`]s, last in a batch that replaces older states.
const MARK_COLUMN: &str = "mark";

/// Assigns group numbers to key tuples.
pub(super) struct Interner {
    /// None for views without keys: one group.
    values: Option<Box<dyn GroupValues>>,
    count: usize,
}

impl Interner {
    pub(super) fn new(keys: &SchemaRef) -> Result<Self> {
        let values = if keys.fields().is_empty() { None } else { Some(new_group_values(Arc::clone(keys), &GroupOrdering::None)?) };
        Ok(Self { values, count: 0 })
    }

    /// Puts each row's group number into `groups`.
    pub(super) fn intern(&mut self, keys: &[ArrayRef], rows: usize, groups: &mut Vec<usize>) -> Result<()> {
        match &mut self.values {
            Some(values) => {
                if rows == 0 {
                    groups.clear();
                } else {
                    values.intern(keys, groups)?;
                }
                self.count = values.len();
            }
            None => {
                groups.clear();
                groups.resize(rows, 0);
                self.count = self.count.max(usize::from(rows > 0));
            }
        }
        Ok(())
    }

    /// Groups so far.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Each group's keys, in the order of numbers. Afterwards there are no groups.
    pub(super) fn emit(&mut self) -> Result<Vec<ArrayRef>> {
        self.count = 0;
        let Some(values) = &mut self.values else { return Ok(Vec::new()) };
        let keys = values.emit(EmitTo::All)?;
        // It forgets the keys, but not what it found them by.
        values.clear_shrink(0);
        Ok(keys)
    }

    /// Bytes held.
    pub(super) fn size(&self) -> usize {
        self.values.as_ref().map_or(0, |values| values.size())
    }
}

/// What a state row means for older states of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Mark {
    /// It is added to them.
    Adds = 0,
    /// They are void: it is the whole state.
    Replaces = 1,
    /// They are void, and the group is no more. Where there are sessions: all that is older of the same other keys is void, and such
    /// rows come before those that are added anew.
    Removes = 2,
}

impl Mark {
    pub(super) fn of(byte: u8) -> Mark {
        match byte {
            0 => Mark::Adds,
            1 => Mark::Replaces,
            _ => Mark::Removes,
        }
    }
}

/// The columns of a state batch after the states.
pub(super) struct Extras<'a> {
    errors: Option<&'a StringViewArray>,
    pub(super) marks: Option<&'a UInt8Array>,
}

impl<'a> Extras<'a> {
    pub(super) fn of(columns: &'a [ArrayRef]) -> Self {
        let errors = columns.iter().find_map(|column| column.as_string_view_opt());
        let marks = columns.iter().find_map(|column| column.as_primitive_opt::<UInt8Type>());
        Self { errors, marks }
    }
}

/// Which accumulator a group has, once some state has replaced older ones: the old accumulator stays behind, unused.
struct Remap {
    /// By the number of the group's key; none for a group that is no more.
    accumulator_of: Vec<Option<usize>>,
    /// By the number of the group's key: whether what is older than all this is void.
    replaces: Vec<bool>,
    /// Accumulators, used or not.
    count: usize,
}

impl Remap {
    /// The accumulator of each row, none for rows that remove their group.
    fn assign(&mut self, keys: &[usize], known: usize, marks: Option<&UInt8Array>) -> Vec<Option<usize>> {
        self.accumulator_of.resize(known.max(self.accumulator_of.len()), None);
        self.replaces.resize(known.max(self.replaces.len()), false);
        let mut assigned = Vec::with_capacity(keys.len());
        for (row, key) in keys.iter().enumerate() {
            let mark = marks.map_or(Mark::Adds, |marks| Mark::of(marks.value(row)));
            if mark != Mark::Adds {
                self.accumulator_of[*key] = None;
                self.replaces[*key] = true;
            }
            if mark == Mark::Removes {
                assigned.push(None);
                continue;
            }
            let accumulator = self.accumulator_of[*key].unwrap_or(self.count);
            if accumulator == self.count {
                self.count += 1;
                self.accumulator_of[*key] = Some(accumulator);
            }
            assigned.push(Some(accumulator));
        }
        assigned
    }
}

/// Merges states of one view.
pub(super) struct Groups<'a> {
    spec: &'a Spec,
    /// Which aggregates are merged; the others' columns are left alone.
    wanted: Vec<bool>,
    interner: Interner,
    accumulators: Vec<Option<Box<dyn GroupsAccumulator>>>,
    ids: Vec<usize>,
    /// By accumulator.
    errors: BTreeMap<usize, String>,
    /// Of a view with sessions: fragments wait until all are there, for each may join two others.
    fragments: Vec<(Vec<ArrayRef>, usize)>,
    fragment_bytes: usize,
    /// None while nothing has been replaced: then groups and accumulators have the same numbers.
    remap: Option<Remap>,
    /// Of a view with sessions: the keys of rows that void what is older of their other keys.
    voids: Vec<ArrayRef>,
}

impl<'a> Groups<'a> {
    /// All aggregates.
    pub(super) fn new(spec: &'a Spec) -> Result<Self> {
        Self::with(spec, vec![true; spec.aggregates.len()])
    }

    /// Some aggregates.
    pub(super) fn with(spec: &'a Spec, wanted: Vec<bool>) -> Result<Self> {
        let accumulators = spec
            .aggregates
            .iter()
            .zip(&wanted)
            .map(|(aggregate, wanted)| wanted.then(|| aggregate.accumulator()).transpose())
            .collect::<Result<Vec<_>>>()?;
        let interner = Interner::new(&spec.key_schema)?;
        let (ids, errors) = (Vec::new(), BTreeMap::new());
        Ok(Self {
            spec,
            wanted,
            interner,
            accumulators,
            ids,
            errors,
            fragments: Vec::new(),
            fragment_bytes: 0,
            remap: None,
            voids: Vec::new(),
        })
    }

    /// Takes in state rows, which are newer than all before: the columns of the spec's state schema and perhaps errors and marks.
    /// Columns of unwanted aggregates are not looked at, they may be anything.
    pub(super) fn merge(&mut self, columns: &[ArrayRef], rows: usize) -> Result<()> {
        if rows == 0 {
            return Ok(());
        }
        if self.spec.session.is_some() {
            self.keep(columns, rows)?;
            return Ok(());
        }
        let keys = self.spec.key_schema.fields().len();
        let extras = Extras::of(&columns[self.spec.state_schema.fields().len()..]);
        let known = self.interner.len();
        let mut ids = std::mem::take(&mut self.ids);
        self.interner.intern(&columns[..keys], rows, &mut ids)?;
        if self.remap.is_none() && extras.marks.is_some() {
            let own = (0..known).map(Some).collect();
            self.remap = Some(Remap { accumulator_of: own, replaces: vec![false; known], count: known });
        }
        let Some(remap) = &mut self.remap else {
            let total = self.interner.len();
            self.accumulate(columns, &ids, total, extras.errors)?;
            self.ids = ids;
            return Ok(());
        };
        let assigned = remap.assign(&ids, self.interner.len(), extras.marks);
        let total = remap.count;
        self.ids = ids;
        let kept: Vec<usize> = assigned.iter().flatten().copied().collect();
        if kept.len() == rows {
            return self.accumulate(columns, &kept, total, extras.errors);
        }
        let rows = indices(assigned.iter().enumerate().filter(|(_, accumulator)| accumulator.is_some()).map(|(row, _)| row));
        let mut living = columns.to_vec();
        let mut column = keys;
        for (aggregate, wanted) in self.spec.aggregates.iter().zip(&self.wanted) {
            for state in column..column + aggregate.state.len() {
                if *wanted {
                    living[state] = take(&columns[state], &rows, None)?;
                }
            }
            column += aggregate.state.len();
        }
        let errors = extras.errors.map(|errors| take(errors, &rows, None)).transpose()?;
        self.accumulate(&living, &kept, total, errors.as_ref().map(|errors| errors.as_string_view()))
    }

    /// The same with one portion of the sets of rows that have the portion `held`, and with what is no set if it is the first.
    pub(super) fn merge_portion(&mut self, portion: Portion, held: Portion, columns: &[ArrayRef], rows: usize) -> Result<()> {
        if portion == Portion::ALL {
            return self.merge(columns, rows);
        }
        let (columns, rows) = portion.of(held, self.spec, columns, rows, &self.columns_wanted())?;
        self.merge(&columns, rows)
    }

    /// Keeps fragments of sessions.
    fn keep(&mut self, columns: &[ArrayRef], rows: usize) -> Result<()> {
        for (column, wanted) in columns.iter().zip(self.columns_wanted()) {
            self.fragment_bytes += if wanted { column.to_data().get_slice_memory_size()? } else { 0 };
        }
        self.fragment_bytes += rows * size_of::<Span>();
        self.fragments.push((columns.to_vec(), rows));
        Ok(())
    }

    /// Which columns of the state schema are looked at.
    fn columns_wanted(&self) -> Vec<bool> {
        let mut wanted = vec![true; self.spec.key_schema.fields().len()];
        for (aggregate, accumulator) in self.spec.aggregates.iter().zip(&self.accumulators) {
            wanted.extend(std::iter::repeat_n(accumulator.is_some(), aggregate.state.len()));
        }
        wanted
    }

    /// The groups' keys and how many there are. Joins the fragments of sessions.
    fn keys(&mut self) -> Result<(Vec<ArrayRef>, usize)> {
        let Some(session) = &self.spec.session else {
            let rows = self.interner.len();
            return Ok((self.interner.emit()?, rows));
        };
        let count = self.spec.key_schema.fields().len();
        let mut fragments = std::mem::take(&mut self.fragments);
        if fragments.iter().any(|(columns, _)| self.marks(columns).is_some()) {
            self.voids = without_void(self.spec, session, &mut fragments)?;
        }
        let mut sessions = Sessions::new(self.spec, session)?;
        for (columns, rows) in &fragments {
            sessions.add(&columns[..count], &columns[session.last], *rows)?;
        }
        let (groups, keys, total) = sessions.join()?;
        let (mut next, mut seen) = (0, 0);
        for (columns, rows) in &fragments {
            let ids = &groups[next..next + rows];
            seen = ids.iter().map(|id| id + 1).max().unwrap_or(0).max(seen);
            let errors = Extras::of(&columns[self.spec.state_schema.fields().len()..]).errors;
            self.accumulate(columns, ids, seen, errors)?;
            next += rows;
        }
        Ok((keys, total))
    }

    fn marks<'c>(&self, columns: &'c [ArrayRef]) -> Option<&'c UInt8Array> {
        Extras::of(&columns[self.spec.state_schema.fields().len()..]).marks
    }

    /// The states of sessions, after the rows that void what is older of their other keys.
    fn after_voids(&self, states: RecordBatch) -> Result<RecordBatch> {
        let count = self.voids.first().map_or(0, |keys| keys.len());
        let nulls = |field: &Arc<Field>| new_null_array(field.data_type(), count);
        let mut columns = self.voids.clone();
        columns.extend(states.schema_ref().fields()[columns.len()..].iter().map(nulls));
        let options = RecordBatchOptions::new().with_row_count(Some(count)).with_match_field_names(false);
        let voids = RecordBatch::try_new_with_options(states.schema(), columns, &options)?;
        let (voids, added) = (marked(voids, std::iter::repeat_n(Mark::Removes, count))?, states.num_rows());
        let states = marked(states, std::iter::repeat_n(Mark::Adds, added))?;
        Ok(concat_batches(&voids.schema(), [&voids, &states])?)
    }

    /// Merges the states of rows into accumulators `ids` of `total`.
    fn accumulate(&mut self, columns: &[ArrayRef], ids: &[usize], total: usize, errors: Option<&StringViewArray>) -> Result<()> {
        let mut column = self.spec.key_schema.fields().len();
        for (aggregate, accumulator) in self.spec.aggregates.iter().zip(&mut self.accumulators) {
            let width = aggregate.state.len();
            if let Some(accumulator) = accumulator {
                accumulator.merge_batch(&columns[column..column + width], ids, total)?;
            }
            column += width;
        }
        if let Some(errors) = errors {
            for (row, id) in ids.iter().enumerate() {
                if errors.is_valid(row) {
                    self.errors.entry(*id).or_insert_with(|| errors.value(row).to_owned());
                }
            }
        }
        Ok(())
    }

    /// Bytes held.
    pub(super) fn size(&self) -> usize {
        self.interner.size()
            + self.accumulators.iter().flatten().map(|accumulator| accumulator.size()).sum::<usize>()
            + self.ids.capacity() * size_of::<usize>()
            + self.fragment_bytes
    }

    /// Whether no state has come.
    pub(super) fn is_empty(&self) -> bool {
        self.interner.len() == 0 && self.fragments.is_empty()
    }

    /// Whether every group is removed.
    fn is_void(&self) -> bool {
        self.remap.as_ref().is_some_and(|remap| remap.count == 0)
    }

    /// Whether a group was removed and has not come back.
    pub(super) fn has_removed(&self) -> bool {
        let gone = |remap: &Remap| (0..remap.replaces.len()).any(|key| remap.replaces[key] && remap.accumulator_of[key].is_none());
        self.remap.as_ref().is_some_and(gone)
    }

    /// All states as one batch, with marks where some of it replaces older states.
    pub(super) fn states(self) -> Result<RecordBatch> {
        self.states_over(false)
    }

    /// As [`Groups::states`]; `oldest` says that there are no older states, so that nothing need be marked.
    pub(super) fn states_over(mut self, oldest: bool) -> Result<RecordBatch> {
        debug_assert!(self.wanted.iter().all(|wanted| *wanted), "states are given out whole");
        let (mut columns, rows) = self.keys()?;
        let keys = columns.len();
        if self.is_void() {
            columns.extend(self.spec.state_schema.fields()[keys..].iter().map(|field| new_empty_array(field.data_type())));
        } else {
            for accumulator in self.accumulators.iter_mut().flatten() {
                columns.extend(accumulator.state(EmitTo::All)?);
            }
        }
        let Some(remap) = &self.remap else {
            let states = state_batch(self.spec, columns, rows, &self.errors)?;
            return if oldest || self.voids.is_empty() { Ok(states) } else { self.after_voids(states) };
        };
        let shown: Vec<usize> = (0..rows).filter(|key| remap.accumulator_of[*key].is_some() || (remap.replaces[*key] && !oldest)).collect();
        let key_rows = indices(shown.iter().copied());
        let accumulators: UInt64Array = shown.iter().map(|key| remap.accumulator_of[*key].map(|accumulator| accumulator as u64)).collect();
        for (index, column) in columns.iter_mut().enumerate() {
            *column = match index < keys {
                true => take(column, &key_rows, None)?,
                false if remap.count == 0 => new_null_array(column.data_type(), shown.len()),
                false => take(column, &accumulators, None)?,
            };
        }
        let errors = shown.iter().enumerate().filter_map(|(row, key)| Some((row, self.errors.get(&remap.accumulator_of[*key]?)?.clone())));
        let batch = state_batch(self.spec, columns, shown.len(), &errors.collect())?;
        if oldest || !shown.iter().any(|key| remap.replaces[*key]) {
            return Ok(batch);
        }
        let mark = |key: &usize| match (remap.replaces[*key], remap.accumulator_of[*key]) {
            (false, _) => Mark::Adds,
            (true, Some(_)) => Mark::Replaces,
            (true, None) => Mark::Removes,
        };
        marked(batch, shown.iter().map(mark))
    }

    /// Keys and, for wanted aggregates, values, or the first failed group's error. Without keys there is one group even over no rows, as SQL has it.
    pub(super) fn values(mut self) -> Result<(Vec<ArrayRef>, Vec<Option<ArrayRef>>, usize)> {
        let removed = self.remap.as_ref().is_some_and(|remap| remap.accumulator_of.iter().all(Option::is_none));
        if self.interner.values.is_none() && (self.interner.len() == 0 || removed) {
            let wanted = self.spec.aggregates.iter().zip(&self.wanted);
            let values =
                wanted.map(|(aggregate, wanted)| wanted.then(|| aggregate.over_nothing()).transpose()).collect::<Result<Vec<_>>>()?;
            return Ok((Vec::new(), values, 1));
        }
        let (mut keys, rows) = self.keys()?;
        let failed = match &self.remap {
            None => self.errors.values().next(),
            Some(remap) => remap.accumulator_of.iter().flatten().find_map(|accumulator| self.errors.get(accumulator)),
        };
        if let Some(error) = failed {
            return Err(from_text(error).into());
        }
        // Accumulators that no group ever had need not know the types of their columns.
        let void = self.is_void() || rows == 0;
        let evaluated = self.spec.aggregates.iter().zip(&mut self.accumulators).map(|(aggregate, accumulator)| match accumulator {
            None => Ok(None),
            Some(_) if void => Ok(Some(aggregate.over_nothing()?.slice(0, 0))),
            Some(accumulator) => accumulator.evaluate(EmitTo::All).map(Some),
        });
        let mut values = evaluated.collect::<Result<Vec<_>>>()?;
        let Some(remap) = &self.remap else { return Ok((keys, values, rows)) };
        let (shown, accumulators): (Vec<usize>, Vec<usize>) =
            remap.accumulator_of.iter().enumerate().filter_map(|(key, accumulator)| Some((key, (*accumulator)?))).unzip();
        let (key_rows, accumulators) = (indices(shown.iter().copied()), indices(accumulators));
        for key in &mut keys {
            *key = take(key, &key_rows, None)?;
        }
        for value in values.iter_mut().flatten() {
            *value = take(value, &accumulators, None)?;
        }
        Ok((keys, values, shown.len()))
    }
}

/// Which rows of a state batch void older ones without adding anything; none where none does.
pub(super) fn voiding(rows: &RecordBatch) -> Option<Vec<bool>> {
    let marks = rows
        .columns()
        .last()?
        .as_primitive_opt::<UInt8Type>()
        .filter(|_| rows.schema_ref().fields().last().is_some_and(|field| field.name() == MARK_COLUMN))?;
    Some(marks.values().iter().map(|mark| Mark::of(*mark) == Mark::Removes).collect())
}

/// Takes those fragments away that a later row of their other keys voids, and these rows too; their keys, each of the other keys once.
fn without_void(spec: &Spec, session: &Session, fragments: &mut Vec<(Vec<ArrayRef>, usize)>) -> Result<Vec<ArrayRef>> {
    let (width, states) = (spec.key_schema.fields().len(), spec.state_schema.fields().len());
    let mut others = session.others(spec)?;
    let mut numbers: Vec<Vec<usize>> = Vec::with_capacity(fragments.len());
    // By the number of the other keys where the last void is: batch, then row.
    let mut void: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
    for (batch, (columns, rows)) in fragments.iter().enumerate() {
        let mut ids = Vec::new();
        others.intern(&session.without_start(&columns[..width]), *rows, &mut ids)?;
        if let Some(marks) = Extras::of(&columns[states..]).marks {
            let voiding = (0..*rows).filter(|row| Mark::of(marks.value(*row)) != Mark::Adds);
            void.extend(voiding.map(|row| (ids[row], (batch, row))));
        }
        numbers.push(ids);
    }
    let mut keys: Vec<Vec<ArrayRef>> = Vec::new();
    for (batch, (columns, rows)) in fragments.iter_mut().enumerate() {
        let last = |row: usize| void.get(&numbers[batch][row]).copied();
        let voids = indices((0..*rows).filter(|row| last(*row) == Some((batch, *row))));
        if !voids.is_empty() {
            keys.push(columns[..width].iter().map(|column| take(column, &voids, None)).collect::<Result<_, _>>()?);
        }
        let kept = indices((0..*rows).filter(|row| last(*row).is_none_or(|last| (batch, *row) > last)));
        if kept.len() < *rows {
            *columns = columns.iter().map(|column| take(column, &kept, None)).collect::<Result<_, _>>()?;
            *rows = kept.len();
        }
    }
    fragments.retain(|(_, rows)| *rows > 0);
    let column = |key: usize| concat(&keys.iter().map(|columns| columns[key].as_ref()).collect::<Vec<_>>());
    Ok((0..width).map(column).collect::<Result<_, _>>()?)
}

/// A state batch with a mark for each row.
pub(super) fn marked(batch: RecordBatch, marks: impl Iterator<Item = Mark>) -> Result<RecordBatch> {
    let mut fields: Vec<_> = batch.schema_ref().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(MARK_COLUMN, DataType::UInt8, false)));
    let rows = batch.num_rows();
    let mut columns = batch.columns().to_vec();
    columns.push(Arc::new(UInt8Array::from_iter_values(marks.map(|mark| mark as u8))));
    let options = RecordBatchOptions::new().with_row_count(Some(rows)).with_match_field_names(false);
    Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?)
}

/// A state batch from its columns, with an error column where there are errors.
pub(super) fn state_batch(spec: &Spec, mut columns: Vec<ArrayRef>, rows: usize, errors: &BTreeMap<usize, String>) -> Result<RecordBatch> {
    for (column, field) in columns.iter_mut().zip(spec.state_schema.fields()) {
        if column.data_type() != field.data_type() && !column.data_type().equals_datatype(field.data_type()) {
            *column = arrow::compute::cast(column, field.data_type())?;
        }
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows)).with_match_field_names(false);
    if errors.is_empty() {
        return Ok(RecordBatch::try_new_with_options(Arc::clone(&spec.state_schema), columns, &options)?);
    }
    let mut builder = StringViewBuilder::with_capacity(rows);
    for row in 0..rows {
        builder.append_option(errors.get(&row));
    }
    columns.push(Arc::new(builder.finish()));
    Ok(RecordBatch::try_new_with_options(with_errors(&spec.state_schema), columns, &options)?)
}

/// The state schema with the fields of those of `columns` that come after the states: errors and marks.
pub(super) fn with_extras(schema: &SchemaRef, columns: &[ArrayRef]) -> SchemaRef {
    let extras = columns[schema.fields().len()..].iter().map(|column| match column.data_type() {
        DataType::UInt8 => Field::new(MARK_COLUMN, DataType::UInt8, false),
        other => Field::new(ERROR_COLUMN, other.clone(), true),
    });
    let extras: Vec<_> = extras.map(Arc::new).collect();
    Arc::new(Schema::new(schema.fields().iter().cloned().chain(extras).collect::<Vec<_>>()))
}

/// The state schema with the error column.
pub(super) fn with_errors(schema: &SchemaRef) -> SchemaRef {
    let mut fields: Vec<_> = schema.fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(ERROR_COLUMN, DataType::Utf8View, true)));
    Arc::new(Schema::new(fields))
}

/// Row numbers as `take` wants them.
pub(super) fn indices(rows: impl IntoIterator<Item = usize>) -> UInt64Array {
    UInt64Array::from_iter_values(rows.into_iter().map(|row| row as u64))
}
