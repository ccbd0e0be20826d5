//! Groups with their accumulators: interning keys, taking in rows or states, giving out states or values.
//!
//! *Place*: `delta`, `checkpoint` and `read` merge with it; `apply` interns with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringViewBuilder, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::error::Result;
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;

use super::failure::from_text;
use super::session::{Sessions, Span};
use super::spec::Spec;

/// Name of the column of failed groups' errors, last in a state batch that has any.
pub(super) const ERROR_COLUMN: &str = "error";

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
        match &mut self.values {
            Some(values) => values.emit(EmitTo::All),
            None => Ok(Vec::new()),
        }
    }

    /// Bytes held.
    pub(super) fn size(&self) -> usize {
        self.values.as_ref().map_or(0, |values| values.size())
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
    errors: BTreeMap<usize, String>,
    /// Of a view with sessions: fragments wait until all are there, for each may join two others.
    fragments: Vec<(Vec<ArrayRef>, usize)>,
    fragment_bytes: usize,
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
        Ok(Self { spec, wanted, interner, accumulators, ids, errors, fragments: Vec::new(), fragment_bytes: 0 })
    }

    /// Takes in state rows: the columns of the spec's state schema and perhaps errors. Columns of unwanted aggregates are
    /// not looked at, they may be anything.
    pub(super) fn merge(&mut self, columns: &[ArrayRef], rows: usize) -> Result<()> {
        if rows == 0 {
            return Ok(());
        }
        if self.spec.session.is_some() {
            self.keep(columns, rows)?;
            return Ok(());
        }
        let keys = self.spec.key_schema.fields().len();
        let mut ids = std::mem::take(&mut self.ids);
        self.interner.intern(&columns[..keys], rows, &mut ids)?;
        let total = self.interner.len();
        self.accumulate(columns, &ids, total)?;
        self.ids = ids;
        Ok(())
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
        let mut sessions = Sessions::new(self.spec, session)?;
        let fragments = std::mem::take(&mut self.fragments);
        let count = self.spec.key_schema.fields().len();
        for (columns, rows) in &fragments {
            sessions.add(&columns[..count], &columns[session.last], *rows)?;
        }
        let (groups, keys, total) = sessions.join()?;
        let (mut next, mut seen) = (0, 0);
        for (columns, rows) in &fragments {
            let ids = &groups[next..next + rows];
            seen = ids.iter().map(|id| id + 1).max().unwrap_or(0).max(seen);
            self.accumulate(columns, ids, seen)?;
            next += rows;
        }
        Ok((keys, total))
    }

    fn accumulate(&mut self, columns: &[ArrayRef], ids: &[usize], total: usize) -> Result<()> {
        let mut column = self.spec.key_schema.fields().len();
        for (aggregate, accumulator) in self.spec.aggregates.iter().zip(&mut self.accumulators) {
            let width = aggregate.state.len();
            if let Some(accumulator) = accumulator {
                accumulator.merge_batch(&columns[column..column + width], ids, total)?;
            }
            column += width;
        }
        if let Some(errors) = columns.get(column) {
            let errors = errors.as_string_view();
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

    /// All states as one batch.
    pub(super) fn states(mut self) -> Result<RecordBatch> {
        debug_assert!(self.wanted.iter().all(|wanted| *wanted), "states are given out whole");
        let (mut columns, rows) = self.keys()?;
        for accumulator in self.accumulators.iter_mut().flatten() {
            columns.extend(accumulator.state(EmitTo::All)?);
        }
        state_batch(self.spec, columns, rows, &self.errors)
    }

    /// Keys and, for wanted aggregates, values, or the first failed group's error. Without keys there is one group even over no rows, as SQL has it.
    pub(super) fn values(mut self) -> Result<(Vec<ArrayRef>, Vec<Option<ArrayRef>>, usize)> {
        if self.interner.values.is_none() && self.interner.len() == 0 {
            let wanted = self.spec.aggregates.iter().zip(&self.wanted);
            let values =
                wanted.map(|(aggregate, wanted)| wanted.then(|| aggregate.over_nothing()).transpose()).collect::<Result<Vec<_>>>()?;
            return Ok((Vec::new(), values, 1));
        }
        let (keys, rows) = self.keys()?;
        if let Some(error) = self.errors.into_values().next() {
            return Err(from_text(&error).into());
        }
        let values = self
            .accumulators
            .iter_mut()
            .map(|accumulator| accumulator.as_mut().map(|accumulator| accumulator.evaluate(EmitTo::All)).transpose())
            .collect::<Result<Vec<_>>>()?;
        Ok((keys, values, rows))
    }
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
