//! States of `cohort_rows()` with fewer rows: those of one user and activity that tell the metric the same are one.
//!
//! *Place*: where states are kept ([`Kernel::settle`](super::super::gather::Kernel::settle)); `cohort::lower` says what the metric makes
//! of each value.
//!
//! *Invariant*: whatever rows are gathered besides, [`super::rows`] gives the same cells as of all rows. So a user has no more rows than
//! activity dates, times the values that the metric has to tell apart.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, Decimal128Array, Int16Array, Int32Array, Int64Array, UInt32Array, make_comparator,
};
use arrow::compute::{SortOptions, take};
use arrow::datatypes::{DataType, Decimal128Type, DecimalType, Int16Type, Int32Type, Int64Type};
use arrow::row::{RowConverter, SortField};
use datafusion::common::Result;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::utils::find_aggregate_exprs;

use super::super::gather::Rows;

/// What the metric makes of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Rows with other values are other rows.
    Apart,
    /// It is added up, and nothing else.
    Added,
    /// The least counts, and nothing else.
    Least,
    /// The greatest counts, and nothing else.
    Greatest,
}

/// How a metric takes its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uses {
    /// By value.
    pub values: Vec<Use>,
    /// Whether it matters how many rows are alike.
    pub counts: bool,
}

/// Aggregates that more rows of the same values do not change.
const OF_VALUES: [&str; 6] = ["min", "max", "bool_and", "bool_or", "bit_and", "bit_or"];
/// Those that they change, in whatever order they come.
const OF_ROWS: [&str; 9] = ["count", "sum", "avg", "stddev", "stddev_pop", "var", "var_pop", "median", "regr_count"];

impl Uses {
    /// Of a metric over columns of values: `place` gives the number of the value that an expression is, and `types` what it is of. None
    /// where the order of rows may matter.
    pub fn of(metric: &Expr, types: &[DataType], place: impl Fn(&Expr) -> Option<usize>) -> Option<Uses> {
        let mut uses: Vec<Option<Use>> = vec![None; types.len()];
        let mut counts = false;
        let mut note = |value: Option<usize>, found: Use| {
            if let Some(own) = value.and_then(|value| uses.get_mut(value)) {
                *own = Some(if own.is_none_or(|known| known == found) { found } else { Use::Apart });
            }
        };
        let mut summed = Vec::new();
        for aggregate in find_aggregate_exprs([metric]) {
            let Expr::AggregateFunction(AggregateFunction { func, params }) = &aggregate else { return None };
            let of_values = params.distinct || OF_VALUES.contains(&func.name());
            if !params.order_by.is_empty() || !(of_values || OF_ROWS.contains(&func.name())) {
                return None;
            }
            note(params.filter.as_deref().and_then(&place), Use::Apart);
            let [argument] = params.args.as_slice() else {
                params.args.iter().for_each(|argument| note(place(argument), Use::Apart));
                counts |= !of_values;
                continue;
            };
            let value = place(argument);
            match (func.name(), params.distinct) {
                ("min", _) => note(value, Use::Least),
                ("max", _) => note(value, Use::Greatest),
                ("sum", false) if value.is_some_and(|value| can_be_added(&types[value])) => {
                    note(value, Use::Added);
                    summed.extend(value);
                }
                _ => {
                    note(value, Use::Apart);
                    counts |= !of_values;
                }
            }
        }
        // Added up as one of several things that count, a value is told apart, and how often matters.
        counts |= summed.iter().any(|value| uses[*value] != Some(Use::Added));
        Some(Uses { values: uses.into_iter().map(|own| own.unwrap_or(Use::Apart)).collect(), counts })
    }

    /// The values that a row which stands for several has once.
    pub fn added(&self) -> impl Iterator<Item = usize> + '_ {
        self.values.iter().enumerate().filter(|(_, own)| **own == Use::Added).map(|(value, _)| value)
    }
}

/// Types whose sums are the same in any order.
fn can_be_added(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Int16 | DataType::Int32 | DataType::Int64 | DataType::Decimal128(_, _))
}

/// The rows of each user that are left, with their number: columns as `rows` has them.
///
/// `entries` is the row of each user that the groups are taken from, if any; `of_entries` the columns that are known of it alone, after
/// which the metric's values come. With `uses.counts`, the last column says how many rows each is.
pub fn settled(rows: &Rows, entries: &[Option<u32>], of_entries: Range<usize>, uses: &Uses) -> Result<(Vec<ArrayRef>, Vec<usize>)> {
    let columns = &rows.columns;
    let first_value = of_entries.end;
    // What is behind the values is how many rows each is.
    let use_of = |column: usize| uses.values.get(column - first_value).copied().unwrap_or(Use::Added);
    let apart = |column: &usize| *column == 0 || (*column >= first_value && use_of(*column) == Use::Apart);
    let compared: Vec<ArrayRef> = (0..columns.len()).filter(apart).map(|column| Arc::clone(&columns[column])).collect();
    let fields = compared.iter().map(|column| SortField::new(column.data_type().clone())).collect();
    let keys = RowConverter::new(fields)?.convert_columns(&compared)?;
    let added = (first_value..columns.len()).filter(|column| use_of(*column) == Use::Added);
    let mut groups = Groups { sums: added.map(|column| (column, Sums::new(&columns[column]))).collect(), ..Groups::default() };
    let mut lengths = Vec::with_capacity(rows.entities());
    let mut own: Vec<u32> = Vec::new();
    for entity in 0..rows.entities() {
        let entry = entries.get(entity).copied().flatten();
        own.clear();
        // Without an activity a row is left out, but it may be the one that says the groups.
        own.extend(rows.of(entity).iter().filter(|row| columns[0].is_valid(**row as usize) || entry == Some(**row)));
        // Stable: of the alike the first to come stays.
        own.sort_by(|a, b| keys.row(*a as usize).cmp(&keys.row(*b as usize)));
        let before = groups.ends.len();
        for alike in own.chunk_by(|a, b| keys.row(*a as usize) == keys.row(*b as usize)) {
            // A sum that its type cannot hold stays in parts.
            if !groups.add(alike, entry) {
                for row in alike.chunks(1) {
                    groups.add(row, entry);
                }
            }
        }
        lengths.push(groups.ends.len() - before);
    }
    let (firsts, own_entries) = (groups.firsts(), UInt32Array::from(std::mem::take(&mut groups.entries)));
    let settled = columns.iter().enumerate().map(|(index, column)| {
        Ok(match index {
            0 => take(column, &firsts, None)?,
            _ if of_entries.contains(&index) => take(column, &own_entries, None)?,
            _ => match use_of(index) {
                Use::Apart => take(column, &firsts, None)?,
                Use::Least => take(column, &groups.extreme(column, false)?, None)?,
                Use::Greatest => take(column, &groups.extreme(column, true)?, None)?,
                Use::Added => groups.sums.get(&index).map_or_else(|| Ok(Arc::clone(column)), |sums| sums.array(column.data_type()))?,
            },
        })
    });
    Ok((settled.collect::<Result<_>>()?, lengths))
}

/// Rows that are alike, group by group.
#[derive(Default)]
struct Groups<'a> {
    rows: Vec<u32>,
    /// Where each group ends.
    ends: Vec<usize>,
    /// Of each group the row that is its user's entry, if one is.
    entries: Vec<Option<u32>>,
    /// By column.
    sums: BTreeMap<usize, Sums<'a>>,
}

impl Groups<'_> {
    /// Adds a group, if its sums fit.
    fn add(&mut self, alike: &[u32], entry: Option<u32>) -> bool {
        let sums: Option<Vec<Option<i128>>> = self.sums.values().map(|sums| sums.of(alike)).collect();
        let Some(found) = sums else { return false };
        self.sums.values_mut().zip(found).for_each(|(sums, sum)| sums.found.push(sum));
        self.rows.extend_from_slice(alike);
        self.ends.push(self.rows.len());
        self.entries.push(entry.filter(|entry| alike.contains(entry)));
        true
    }

    fn each(&self) -> impl Iterator<Item = &[u32]> {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        begins.zip(&self.ends).map(|(begin, end)| &self.rows[begin..*end])
    }

    fn firsts(&self) -> UInt32Array {
        self.each().map(|rows| rows.first().copied()).collect()
    }

    /// The row with the least or greatest value, NULL where there is none.
    fn extreme(&self, column: &ArrayRef, greatest: bool) -> Result<UInt32Array> {
        let order = SortOptions { descending: greatest, nulls_first: false };
        let compare = make_comparator(column.as_ref(), column.as_ref(), order)?;
        Ok(self.each().map(|rows| rows.iter().copied().min_by(|a, b| compare(*a as usize, *b as usize))).collect())
    }
}

/// The sums of a column that [`can_be_added`].
struct Sums<'a> {
    value: Box<dyn Fn(usize) -> i128 + 'a>,
    column: &'a ArrayRef,
    /// By group, none of nothing but NULLs.
    found: Vec<Option<i128>>,
}

impl<'a> Sums<'a> {
    fn new(column: &'a ArrayRef) -> Self {
        let value: Box<dyn Fn(usize) -> i128> = match column.data_type() {
            DataType::Int16 => Box::new(value_of::<Int16Type>(column)),
            DataType::Int32 => Box::new(value_of::<Int32Type>(column)),
            DataType::Int64 => Box::new(value_of::<Int64Type>(column)),
            DataType::Decimal128(_, _) => Box::new(value_of::<Decimal128Type>(column)),
            _ => Box::new(|_| 0),
        };
        Self { value, column, found: Vec::new() }
    }

    fn fits(&self, sum: i128) -> bool {
        match self.column.data_type() {
            DataType::Int16 => i16::try_from(sum).is_ok(),
            DataType::Int32 => i32::try_from(sum).is_ok(),
            DataType::Int64 => i64::try_from(sum).is_ok(),
            DataType::Decimal128(precision, _) => Decimal128Type::is_valid_decimal_precision(sum, *precision),
            _ => false,
        }
    }

    /// The sum of some rows; none where it does not fit.
    fn of(&self, rows: &[u32]) -> Option<Option<i128>> {
        let mut values = rows.iter().map(|row| *row as usize).filter(|row| self.column.is_valid(*row)).map(&self.value);
        let Some(first) = values.next() else { return Some(None) };
        let sum = values.try_fold(first, i128::checked_add)?;
        (rows.len() == 1 || self.fits(sum)).then_some(Some(sum))
    }

    fn array(&self, data_type: &DataType) -> Result<ArrayRef> {
        let found = || self.found.iter().copied();
        Ok(match data_type {
            DataType::Int16 => Arc::new(found().map(|sum| sum.map(|sum| sum as i16)).collect::<Int16Array>()),
            DataType::Int32 => Arc::new(found().map(|sum| sum.map(|sum| sum as i32)).collect::<Int32Array>()),
            DataType::Int64 => Arc::new(found().map(|sum| sum.map(|sum| sum as i64)).collect::<Int64Array>()),
            _ => Arc::new(found().collect::<Decimal128Array>().with_data_type(data_type.clone())),
        })
    }
}

/// The values of a column, NULL or not.
fn value_of<T: ArrowPrimitiveType<Native: Into<i128>>>(column: &ArrayRef) -> impl Fn(usize) -> i128 {
    let values = column.as_primitive::<T>().values();
    |row| values[row].into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use arrow::array::{BooleanArray, ListArray};
    use arrow::datatypes::{Field, FieldRef, Schema};
    use datafusion::logical_expr::function::AccumulatorArgs;
    use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
    use proptest::prelude::*;

    use super::super::rows::CohortRows;
    use super::*;
    use crate::query::operator::gather::{gather, kept};

    const USERS: usize = 2;

    #[derive(Clone, Debug)]
    struct Row {
        user: usize,
        activity: Option<i64>,
        time: i64,
        counted: bool,
        group: Option<i64>,
        values: [Option<i64>; 4],
    }

    fn row() -> impl Strategy<Value = Row> {
        let value = || prop::option::weighted(0.8, -3..3_i64);
        let values = [value(), value(), value(), value()];
        (0..USERS, prop::option::weighted(0.9, 0..4_i64), 0..9_i64, any::<bool>(), prop::option::of(0..3_i64), values)
            .prop_map(|(user, activity, time, counted, group, values)| Row { user, activity, time, counted, group, values })
    }

    fn arrays(rows: &[Row], grouped: bool) -> Vec<ArrayRef> {
        let numbers = |of: &dyn Fn(&Row) -> Option<i64>| Arc::new(rows.iter().map(of).collect::<Int64Array>()) as ArrayRef;
        let mut arrays = vec![numbers(&|row| row.activity)];
        if grouped {
            let counted: BooleanArray = rows.iter().map(|row| Some(row.counted)).collect();
            arrays.extend([numbers(&|row| Some(row.time)), numbers(&|_| None), Arc::new(counted) as ArrayRef, numbers(&|row| row.group)]);
        }
        arrays.extend((0..4).map(|value| numbers(&|row| row.values[value])));
        arrays
    }

    fn accumulator(kernel: &CohortRows, arrays: &[ArrayRef], keeps: bool) -> Box<dyn GroupsAccumulator> {
        let kernel = CohortRows { groups: kernel.groups, uses: kernel.uses.clone() };
        let function = gather(Arc::new(kernel));
        let function = if keeps { kept(&function).unwrap() } else { function };
        let fields: Vec<FieldRef> = arrays.iter().map(|array| Arc::new(Field::new("", array.data_type().clone(), true))).collect();
        let args = AccumulatorArgs {
            return_field: function.return_field(&fields).unwrap(),
            schema: &Schema::empty(),
            ignore_nulls: false,
            order_bys: &[],
            is_reversed: false,
            name: "rows",
            is_distinct: false,
            exprs: &[],
            expr_fields: &fields,
        };
        function.create_groups_accumulator(args).unwrap()
    }

    /// What a cell is made of.
    #[derive(Debug, Default, PartialEq)]
    struct Cell {
        marks: [usize; 3],
        groups: BTreeSet<Option<i64>>,
        apart: BTreeMap<Option<i64>, usize>,
        added: Option<i64>,
        least: Option<i64>,
        greatest: Option<i64>,
    }

    fn cells(lists: &ListArray, uses: &Uses, grouped: bool) -> Vec<BTreeMap<i64, Cell>> {
        let cells_of = |user: usize| {
            let rows = lists.value(user);
            let rows = rows.as_struct();
            let number = |column: usize, row: usize| {
                let column = rows.column(column).as_primitive::<Int64Type>();
                column.is_valid(row).then(|| column.value(row))
            };
            let mut cells: BTreeMap<i64, Cell> = BTreeMap::new();
            for row in 0..rows.len() {
                let cell = cells.entry(number(0, row).unwrap()).or_default();
                (0..3).for_each(|mark| cell.marks[mark] += usize::from(rows.column(mark + 1).as_boolean().value(row)));
                let values = if grouped { 5 } else { 4 };
                if grouped {
                    cell.groups.insert(number(4, row));
                }
                let alike = cell.apart.entry(number(values, row)).or_default();
                *alike = if uses.counts { *alike + 1 } else { 1 };
                cell.added = [cell.added, number(values + 1, row)].into_iter().flatten().reduce(|a, b| a + b);
                cell.least = [cell.least, number(values + 2, row)].into_iter().flatten().min();
                cell.greatest = [cell.greatest, number(values + 3, row)].into_iter().flatten().max();
            }
            cells
        };
        (0..lists.len()).map(cells_of).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_048))]
        #[test]
        fn cells_are_the_same_of_fewer_rows(
            rows in prop::collection::vec(row(), 0..20), cuts in prop::collection::vec(0..20_usize, 0..3), grouped in any::<bool>(), counts in any::<bool>()
        ) {
            let uses = Uses { values: vec![Use::Apart, Use::Added, Use::Least, Use::Greatest], counts };
            let kernel = CohortRows { groups: usize::from(grouped), uses: Some(uses.clone()) };
            let all = arrays(&rows, grouped);
            let owners: Vec<usize> = rows.iter().map(|row| row.user).collect();
            let [expected, at_once] = [false, true].map(|keeps| {
                let mut whole = accumulator(&kernel, &all, keeps);
                whole.update_batch(&all, &owners, None, USERS).unwrap();
                whole.evaluate(EmitTo::All).unwrap()
            });
            let mut bounds: Vec<usize> = cuts.iter().map(|cut| cut % (rows.len() + 1)).chain([0, rows.len()]).collect();
            bounds.sort_unstable();
            let mut states: Option<Vec<ArrayRef>> = None;
            for part in bounds.windows(2) {
                let mut next = accumulator(&kernel, &all, true);
                if let Some(states) = &states {
                    next.merge_batch(states, &(0..USERS).collect::<Vec<_>>(), USERS).unwrap();
                }
                let own: Vec<ArrayRef> = all.iter().map(|array| array.slice(part[0], part[1] - part[0])).collect();
                next.update_batch(&own, &owners[part[0]..part[1]], None, USERS).unwrap();
                states = Some(next.state(EmitTo::All).unwrap());
            }
            let states = states.unwrap();
            let mut last = accumulator(&kernel, &all, true);
            last.merge_batch(&states, &(0..USERS).collect::<Vec<_>>(), USERS).unwrap();
            let found = last.evaluate(EmitTo::All).unwrap();
            // However the rows were divided, not only the same cells.
            prop_assert_eq!(&found, &at_once);
            prop_assert_eq!(cells(found.as_list(), &uses, grouped), cells(expected.as_list(), &uses, grouped));
            // As many rows as can be told apart, and those that only say the groups.
            let lists = states[0].as_list::<i32>();
            for user in 0..USERS {
                let own = rows.iter().filter(|row| row.user == user && row.activity.is_some());
                let apart: BTreeSet<_> = own.map(|row| (row.activity, row.values[0])).collect();
                prop_assert!(lists.value(user).len() <= apart.len() + 1);
            }
        }
    }

    #[test]
    fn what_does_not_fit_stays() {
        let uses = Uses { values: vec![Use::Added, Use::Added, Use::Added, Use::Added], counts: false };
        let kernel = CohortRows { groups: 0, uses: Some(uses) };
        let row = |value: i64| Row { user: 0, activity: Some(1), time: 0, counted: true, group: None, values: [Some(value); 4] };
        for (values, left) in [([i64::MAX - 1, 1], 1), ([i64::MAX, 1], 2)] {
            let all = arrays(&values.map(row), false);
            let mut gathered = accumulator(&kernel, &all, true);
            gathered.update_batch(&all, &[0, 0], None, 1).unwrap();
            let states = gathered.state(EmitTo::All).unwrap();
            assert_eq!(states[0].as_list::<i32>().value(0).len(), left);
        }
    }
}
