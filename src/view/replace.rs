//! States made anew for the groups that lose rows: merged aggregates cannot be subtracted.
//!
//! *Place*: `store::erase` makes one for each view of a table that rows are deleted from, shows it the rows that remain, and
//! commits the delta that comes of it with the deletion.
//!
//! *Invariant*: the delta has exactly the groups of the deleted rows, each with its whole state as of the delta's LSN, or marked
//! as removed where no row of it remains; what is older is void. So the caller shows every remaining row of these groups, oldest
//! first; rows of other groups do no harm. Sessions join and part: there a group is all sessions of the same other keys.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, new_null_array};
use arrow::compute::{concat, filter_record_batch};
use arrow::record_batch::RecordBatchOptions;
use arrow::row::{RowConverter, SortField};

use super::apply::apply;
use super::delta::{self, DELTA_FAN_IN, Delta, mergeable_tail};
use super::failure::{arrow_failure, failure};
use super::groups::{Groups, Mark, marked};
use super::spec::Spec;
use crate::error::Result;

/// The groups of one view that lose rows, and what remains of them so far.
#[derive(Debug)]
pub struct Replacement {
    spec: Arc<Spec>,
    /// None for a view without keys but perhaps sessions, which has one group.
    converter: Option<RowConverter>,
    /// The groups, as [`RowConverter`] writes their keys.
    groups: HashSet<Box<[u8]>>,
    /// Their keys, by column.
    keys: Vec<ArrayRef>,
    count: usize,
    parts: Vec<Arc<Delta>>,
}

impl Replacement {
    /// For rows (table schema, without LSN) that are deleted; none when the view does not count any of them.
    pub fn new(spec: &Arc<Spec>, gone: &[RecordBatch]) -> Result<Option<Replacement>> {
        let width = spec.key_schema.fields().len();
        let start = spec.session.as_ref().map(|session| session.key);
        let fields = spec.key_schema.fields().iter().enumerate().filter(|(key, _)| Some(*key) != start);
        let fields: Vec<SortField> = fields.map(|(_, field)| SortField::new(field.data_type().clone())).collect();
        let converter = if fields.is_empty() { None } else { Some(RowConverter::new(fields).map_err(arrow_failure)?) };
        let mut replacement =
            Replacement { spec: Arc::clone(spec), converter, groups: HashSet::new(), keys: Vec::new(), count: 0, parts: Vec::new() };
        let mut found: Vec<Vec<ArrayRef>> = Vec::new();
        for rows in gone {
            let deltas = apply(std::slice::from_ref(spec), rows, 0, 0, 0)?;
            for delta in deltas.into_iter().flatten() {
                let fresh = replacement.take_new(&delta.rows)?;
                let rows = filter_record_batch(&delta.rows, &fresh).map_err(arrow_failure)?;
                replacement.count += rows.num_rows();
                found.push(rows.columns()[..width].to_vec());
            }
        }
        if width == 0 {
            replacement.count = usize::from(!found.is_empty());
        }
        for column in 0..width {
            let parts: Vec<&dyn arrow::array::Array> = found.iter().map(|columns| columns[column].as_ref()).collect();
            if !parts.is_empty() {
                replacement.keys.push(concat(&parts).map_err(arrow_failure)?);
            }
        }
        Ok((replacement.count > 0).then_some(replacement))
    }

    /// The view.
    pub fn spec(&self) -> &Arc<Spec> {
        &self.spec
    }

    /// Shows rows that remain (table schema, without LSN), newer than those shown before.
    pub fn add(&mut self, rows: &RecordBatch) -> Result<()> {
        for delta in apply(std::slice::from_ref(&self.spec), rows, 0, 0, 1)?.into_iter().flatten() {
            let own = self.own(&delta.rows)?;
            let rows = filter_record_batch(&delta.rows, &own).map_err(arrow_failure)?;
            if rows.num_rows() > 0 {
                self.parts.push(Arc::new(Delta { rows, ..delta }));
            }
        }
        let sizes: Vec<usize> = self.parts.iter().map(|part| part.weight()).collect();
        if let Some(start) = mergeable_tail(&sizes, DELTA_FAN_IN)
            && let Ok(merged) = delta::merge(&self.spec, &self.parts[start..])
        {
            self.parts.truncate(start);
            self.parts.push(Arc::new(merged));
        }
        Ok(())
    }

    /// Bytes of state held.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.bytes()).sum::<usize>() + self.groups.iter().map(|group| group.len()).sum::<usize>()
    }

    /// The delta of the commit at `lsn`.
    pub fn finish(&self, lsn: u64) -> Result<Delta> {
        let spec = &self.spec;
        let mut columns = self.keys.clone();
        columns.extend(spec.state_schema.fields()[columns.len()..].iter().map(|field| new_null_array(field.data_type(), self.count)));
        let options = RecordBatchOptions::new().with_row_count(Some(self.count)).with_match_field_names(false);
        let removed = RecordBatch::try_new_with_options(Arc::clone(&spec.state_schema), columns, &options).map_err(arrow_failure)?;
        let removed = marked(removed, std::iter::repeat_n(Mark::Removes, self.count)).map_err(failure)?;
        let mut groups = Groups::new(spec).map_err(failure)?;
        groups.merge(removed.columns(), self.count).map_err(failure)?;
        for part in &self.parts {
            groups.merge(part.rows.columns(), part.rows.num_rows()).map_err(failure)?;
        }
        let poison = self.parts.iter().find_map(|part| part.poison.clone());
        Ok(Delta { poison, ..Delta::correction(groups.states().map_err(failure)?, lsn) })
    }

    /// Which rows are of groups not yet known; they are known then.
    fn take_new(&mut self, rows: &RecordBatch) -> Result<BooleanArray> {
        let Some(encoded) = self.encoded(rows)? else { return Ok(BooleanArray::from(vec![true; rows.num_rows()])) };
        Ok(encoded.into_iter().map(|key| Some(self.groups.insert(key))).collect())
    }

    /// Which rows are of the groups.
    fn own(&self, rows: &RecordBatch) -> Result<BooleanArray> {
        let Some(encoded) = self.encoded(rows)? else { return Ok(BooleanArray::from(vec![true; rows.num_rows()])) };
        Ok(encoded.iter().map(|key| Some(self.groups.contains(key))).collect())
    }

    fn encoded(&self, rows: &RecordBatch) -> Result<Option<Vec<Box<[u8]>>>> {
        let Some(converter) = &self.converter else { return Ok(None) };
        let keys = &rows.columns()[..self.spec.key_schema.fields().len()];
        let encoded = match &self.spec.session {
            Some(session) => converter.convert_columns(&session.without_start(keys)),
            None => converter.convert_columns(keys),
        };
        let encoded = encoded.map_err(arrow_failure)?;
        Ok(Some(encoded.iter().map(|key| Box::from(key.as_ref())).collect()))
    }
}
