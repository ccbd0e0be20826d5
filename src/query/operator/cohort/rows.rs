//! A user's rows in the order of their periods, marked so that users can be counted by adding up marks.
//!
//! *Place*: `cohort::lower` gathers rows by user with this kernel and unnests them; above it nothing needs to be distinct by user.
//!
//! Arguments: the activity date; with groups, when a row came (a time, then the order of arrival, NULL where rows come in it), whether it can be the user's
//! entry, and the groups' values; and what the metric needs. Rows without an activity date are left out.
//!
//! *Invariants*: (1) of a user's rows exactly one is `opening`, and one of each activity date `active`; the last of these is `closing`;
//! (2) the groups are those of the user's first entry, on all of the user's rows.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, BooleanBufferBuilder, Int64Array, UInt32Array, make_comparator};
use arrow::compute::{SortOptions, cast, take};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Int64Type};
use datafusion::common::Result;

use super::super::gather::{Fewer, Kernel, Rows};
use super::settled::Uses;
use crate::error::Error;

/// The date of the activity.
pub const ACTIVITY: &str = "activity";
/// Whether a row is the first of its user and activity date.
pub const ACTIVE: &str = "active";
/// Whether a row is its user's first.
pub const OPENING: &str = "opening";
/// Whether a row is the first of its user's last activity date.
pub const CLOSING: &str = "closing";

/// Arguments before the groups: activity; time, arrival, entry.
const BEFORE_GROUPS: usize = 4;

/// The name of a group's value.
pub fn group(index: usize) -> String {
    format!("group{index}")
}

/// The name of a value that the metric needs.
pub fn value(index: usize) -> String {
    format!("value{index}")
}

/// See the module.
#[derive(Debug)]
pub struct CohortRows {
    /// Number of groups.
    pub groups: usize,
    /// How the metric takes its values; none where every row counts in its place.
    pub uses: Option<Uses>,
}

impl CohortRows {
    /// Where the metric's values begin.
    pub fn values_from(&self) -> usize {
        if self.groups == 0 { 1 } else { BEFORE_GROUPS + self.groups }
    }

    /// The row of each entity that its groups are taken from.
    pub fn entries(&self, rows: &Rows) -> Result<Vec<Option<u32>>> {
        let ascending = SortOptions { descending: false, nulls_first: false };
        let mut order = Vec::new();
        // Rows of one time without an order of arrival: by the values, so that every run gives the same; where they come in it (all
        // NULL), the first.
        let as_they_come = rows.columns[2].null_count() == rows.columns[2].len();
        let values = &rows.columns[BEFORE_GROUPS..BEFORE_GROUPS + self.groups];
        for column in [&rows.columns[1], &rows.columns[2]].into_iter().chain(if as_they_come { &[] } else { values }) {
            order.push(make_comparator(column.as_ref(), column.as_ref(), ascending)?);
        }
        let is_entry = rows.columns[3].as_boolean();
        let before = |a: u32, b: u32| {
            order.iter().map(|compare| compare(a as usize, b as usize)).find(|outcome| outcome.is_ne()).unwrap_or(Ordering::Equal)
        };
        let entry = |entity| {
            let rows = rows.of(entity).iter().copied();
            rows.filter(|row| is_entry.is_valid(*row as usize) && is_entry.value(*row as usize)).min_by(|a, b| before(*a, *b))
        };
        Ok((0..rows.entities()).map(entry).collect())
    }
}

impl Kernel for CohortRows {
    fn name(&self) -> &'static str {
        "cohort_rows"
    }

    fn fields(&self, arguments: &[FieldRef]) -> Result<Fields> {
        let like =
            |name: String, field: &FieldRef| Field::new(name, field.data_type().clone(), true).with_metadata(field.metadata().clone());
        let mark = |name: &str| Field::new(name, DataType::Boolean, true);
        let activity = arguments.first().ok_or_else(|| Error::internal("rows without an activity"))?;
        let mut fields = vec![like(ACTIVITY.to_owned(), activity), mark(ACTIVE), mark(OPENING), mark(CLOSING)];
        if self.groups > 0 {
            let groups = arguments[BEFORE_GROUPS..].iter().take(self.groups);
            fields.extend(groups.enumerate().map(|(index, field)| like(group(index), field)));
        }
        let values = arguments.iter().skip(self.values_from());
        fields.extend(values.enumerate().map(|(index, field)| like(value(index), field)));
        Ok(fields.into())
    }

    fn fewer(&self) -> Option<&dyn Fewer> {
        self.uses.is_some().then_some(self)
    }

    fn finish(&self, rows: &Rows, _fields: &Fields) -> Result<(Vec<ArrayRef>, Vec<usize>)> {
        let activity = &rows.columns[0];
        let numbers = match activity.data_type() {
            // Days first become numbers of 32 bits.
            DataType::Date32 => cast(&cast(activity, &DataType::Int32)?, &DataType::Int64)?,
            _ => cast(activity, &DataType::Int64)?,
        };
        let numbers: &Int64Array = numbers.as_primitive::<Int64Type>();
        let entries = if self.groups > 0 { self.entries(rows)? } else { Vec::new() };
        let count = activity.len();
        let mut order: Vec<u32> = Vec::with_capacity(count);
        let mut entry_of: Vec<Option<u32>> = Vec::with_capacity(if self.groups > 0 { count } else { 0 });
        let mut lengths = Vec::with_capacity(rows.entities());
        let marks = || BooleanBufferBuilder::new(count);
        let (mut active, mut opening, mut closing) = (marks(), marks(), marks());
        for entity in 0..rows.entities() {
            let from = order.len();
            order.extend(rows.of(entity).iter().filter(|row| numbers.is_valid(**row as usize)));
            let own = &mut order[from..];
            own.sort_unstable_by_key(|row| numbers.value(*row as usize));
            let date = |place: usize| numbers.value(own[place] as usize);
            for place in 0..own.len() {
                let first = place == 0 || date(place) != date(place - 1);
                active.append(first);
                opening.append(place == 0);
                closing.append(first && date(place) == date(own.len() - 1));
            }
            lengths.push(own.len());
            if let Some(entry) = entries.get(entity) {
                entry_of.extend(std::iter::repeat_n(*entry, own.len()));
            }
        }
        let order = UInt32Array::from(order);
        let mark = |mut builder: BooleanBufferBuilder| Arc::new(BooleanArray::new(builder.finish(), None)) as ArrayRef;
        let mut columns = vec![take(activity, &order, None)?, mark(active), mark(opening), mark(closing)];
        if self.groups > 0 {
            let entries = UInt32Array::from(entry_of);
            for column in &rows.columns[BEFORE_GROUPS..BEFORE_GROUPS + self.groups] {
                columns.push(take(column, &entries, None)?);
            }
        }
        for column in &rows.columns[self.values_from()..] {
            columns.push(take(column, &order, None)?);
        }
        Ok((columns, lengths))
    }
}
