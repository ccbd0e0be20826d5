//! States of `cohort_rows()` with fewer rows: those of one user and activity that tell the metric the same are one.
//!
//! *Place*: where states are kept ([`Fewer`]); `cohort::lower` says what the metric makes of each value.
//!
//! *Invariant*: whatever rows are gathered besides, [`super::rows`] gives the same cells as of all rows. So a user has no more rows than
//! activity dates, times the values that the metric has to tell apart.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, Decimal128Array, Int16Array, Int32Array, Int64Array, PrimitiveArray, UInt32Array,
    make_comparator,
};
use arrow::compute::{SortOptions, cast, take};
use arrow::datatypes::{DECIMAL128_MAX_PRECISION, DataType, Decimal128Type, Fields, Int32Type};
use arrow::row::{RowConverter, SortField};
use datafusion::common::Result;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::utils::find_aggregate_exprs;

use super::super::gather::{Fewer, Rows};
use super::rows::CohortRows;
use crate::error::{Error, SqlState};

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
const OF_ROWS: [&str; 8] = ["count", "sum", "avg", "stddev", "stddev_pop", "var", "var_pop", "median"];

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
}

/// Types whose sums are the same in any order.
fn can_be_added(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Int16 | DataType::Int32 | DataType::Int64 | DataType::Decimal128(_, _))
}

/// The type of the number of rows that one stands for.
const COUNT: DataType = DataType::Int32;

/// The type that values are added up in: as many digits as there are, so that no sum of values fails to fit.
fn wide(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Decimal128(_, scale) => DataType::Decimal128(DECIMAL128_MAX_PRECISION, *scale),
        _ => DataType::Decimal128(DECIMAL128_MAX_PRECISION, 0),
    }
}

impl CohortRows {
    /// What becomes of a column behind the groups'; how many rows each is comes after the values, and is added up.
    fn use_of(&self, column: usize) -> Use {
        let own = self.uses.as_ref().and_then(|uses| uses.values.get(column - self.values_from()));
        own.copied().unwrap_or(Use::Added)
    }

    fn is_value(&self, column: usize, wanted: Use) -> bool {
        column >= self.values_from() && self.use_of(column) == wanted
    }

    fn counts(&self) -> bool {
        self.uses.as_ref().is_some_and(|uses| uses.counts)
    }
}

impl Fewer for CohortRows {
    fn types(&self, arguments: &[DataType]) -> Vec<DataType> {
        let own = |(column, own): (usize, &DataType)| if self.is_value(column, Use::Added) { wide(own) } else { own.clone() };
        arguments.iter().enumerate().map(own).chain(self.counts().then_some(COUNT)).collect()
    }

    fn enter(&self, arguments: Vec<ArrayRef>, rows: usize) -> Result<Vec<ArrayRef>> {
        let own = |(column, own): (usize, ArrayRef)| match self.is_value(column, Use::Added) {
            true => Ok(cast(&own, &wide(own.data_type()))?),
            false => Ok(own),
        };
        let mut columns = arguments.into_iter().enumerate().map(own).collect::<Result<Vec<_>>>()?;
        if self.counts() {
            columns.push(Arc::new(Int32Array::from_value(1, rows)));
        }
        Ok(columns)
    }

    fn settle(&self, rows: &Rows) -> Result<(Vec<ArrayRef>, Vec<usize>)> {
        let columns = &rows.columns;
        let entries = if self.groups > 0 { self.entries(rows)? } else { Vec::new() };
        let apart = |column: &usize| *column == 0 || self.is_value(*column, Use::Apart);
        let compared: Vec<ArrayRef> = (0..columns.len()).filter(apart).map(|column| Arc::clone(&columns[column])).collect();
        let fields = compared.iter().map(|column| SortField::new(column.data_type().clone())).collect();
        let keys = RowConverter::new(fields)?.convert_columns(&compared)?;
        let mut groups = Groups::default();
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
                groups.add(alike, entry);
            }
            lengths.push(groups.ends.len() - before);
        }
        let firsts = groups.firsts();
        let settled = columns.iter().enumerate().map(|(index, column)| {
            Ok(match index {
                0 => take(column, &firsts, None)?,
                // What is known of the entry alone.
                _ if index < self.values_from() => take(column, &UInt32Array::from(groups.entries.clone()), None)?,
                _ => match self.use_of(index) {
                    Use::Apart => take(column, &firsts, None)?,
                    Use::Least => take(column, &groups.extreme(column, false)?, None)?,
                    Use::Greatest => take(column, &groups.extreme(column, true)?, None)?,
                    Use::Added => groups.sums(column)?,
                },
            })
        });
        Ok((settled.collect::<Result<_>>()?, lengths))
    }

    fn leave(&self, rows: &Rows, arguments: &Fields) -> Result<(Vec<ArrayRef>, Vec<usize>)> {
        let counts = self.counts().then(|| rows.columns[arguments.len()].as_primitive::<Int32Type>().values());
        let mut added: Vec<(usize, Parts<'_>)> = (0..arguments.len())
            .filter(|column| self.is_value(*column, Use::Added))
            .map(|column| (column, Parts::new(&rows.columns[column], arguments[column].data_type())))
            .collect();
        let (mut whole, mut lengths) = (Vec::with_capacity(rows.columns[0].len()), Vec::with_capacity(rows.entities()));
        for entity in 0..rows.entities() {
            let before = whole.len();
            for row in rows.of(entity).iter().map(|row| *row as usize) {
                // So many values have this sum that its parts are not more.
                let parts = added.iter().map(|(_, parts)| parts.of(row)).max().unwrap_or(1);
                let count = counts.map_or(parts, |counts| usize::try_from(counts[row]).unwrap_or(0).max(parts));
                whole.extend(std::iter::repeat_n(row as u32, count));
                added.iter_mut().for_each(|(_, parts)| parts.add(row, count));
            }
            lengths.push(whole.len() - before);
        }
        let whole = UInt32Array::from(whole);
        let mut columns =
            rows.columns[..arguments.len()].iter().map(|column| Ok(take(column, &whole, None)?)).collect::<Result<Vec<_>>>()?;
        for (column, parts) in added {
            columns[column] = parts.array(arguments[column].data_type())?;
        }
        Ok((columns, lengths))
    }
}

/// Rows that are alike, group by group.
#[derive(Default)]
struct Groups {
    rows: Vec<u32>,
    /// Where each group ends.
    ends: Vec<usize>,
    /// Of each group the row that is its user's entry, if one is.
    entries: Vec<Option<u32>>,
}

impl Groups {
    fn add(&mut self, alike: &[u32], entry: Option<u32>) {
        self.rows.extend_from_slice(alike);
        self.ends.push(self.rows.len());
        self.entries.push(entry.filter(|entry| alike.contains(entry)));
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

    /// The sums of a column of a [`wide`] type, or of [`COUNT`]s: NULL of nothing but NULLs.
    fn sums(&self, column: &ArrayRef) -> Result<ArrayRef> {
        Ok(match column.as_primitive_opt::<Decimal128Type>() {
            Some(values) => Arc::new(self.added(values, i128::checked_add)?.with_data_type(column.data_type().clone())),
            None => Arc::new(self.added(column.as_primitive::<Int32Type>(), i32::checked_add)?),
        })
    }

    fn added<T: ArrowPrimitiveType>(
        &self,
        column: &PrimitiveArray<T>,
        add: fn(T::Native, T::Native) -> Option<T::Native>,
    ) -> Result<PrimitiveArray<T>> {
        let sum = |rows: &[u32]| {
            let mut values = rows.iter().map(|row| *row as usize).filter(|row| column.is_valid(*row)).map(|row| column.value(row));
            values.next().map(|first| values.try_fold(first, add).ok_or_else(too_large)).transpose()
        };
        Ok(self.each().map(sum).collect::<Result<Vec<_>, _>>()?.into_iter().collect())
    }
}

fn too_large() -> Error {
    Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "a user has too many rows in one period")
}

/// Sums of a [`wide`] type as values of the argument's, of which there may have to be several.
struct Parts<'a> {
    sums: &'a PrimitiveArray<Decimal128Type>,
    /// The least and the greatest value.
    least: i128,
    most: i128,
    found: Vec<Option<i128>>,
}

impl<'a> Parts<'a> {
    fn new(sums: &'a ArrayRef, data_type: &DataType) -> Self {
        let (least, most) = match data_type {
            DataType::Int16 => (i16::MIN.into(), i16::MAX.into()),
            DataType::Int32 => (i32::MIN.into(), i32::MAX.into()),
            DataType::Int64 => (i64::MIN.into(), i64::MAX.into()),
            DataType::Decimal128(precision, _) => {
                let most = 10_i128.pow((*precision).into()) - 1;
                (-most, most)
            }
            _ => (i128::MIN, i128::MAX),
        };
        Self { sums: sums.as_primitive(), least, most, found: Vec::with_capacity(sums.len()) }
    }

    /// How many values a row's sum takes.
    fn of(&self, row: usize) -> usize {
        let sum = if self.sums.is_null(row) { 0 } else { self.sums.value(row) };
        let bound = if sum < 0 { self.least } else { self.most };
        usize::try_from(sum.unsigned_abs().div_ceil(bound.unsigned_abs()).max(1)).unwrap_or(usize::MAX)
    }

    /// A row's sum as `count` values, the last of which are NULL.
    fn add(&mut self, row: usize, count: usize) {
        let mut left = self.sums.is_valid(row).then(|| self.sums.value(row));
        for _ in 0..count {
            let part = left.map(|left| left.clamp(self.least, self.most));
            self.found.push(part);
            left = left.zip(part).map(|(left, part)| left - part).filter(|left| *left != 0);
        }
    }

    fn array(self, data_type: &DataType) -> Result<ArrayRef> {
        let found = self.found.into_iter();
        Ok(match data_type {
            DataType::Int16 => Arc::new(found.map(|part| part.map(|part| part as i16)).collect::<Int16Array>()),
            DataType::Int32 => Arc::new(found.map(|part| part.map(|part| part as i32)).collect::<Int32Array>()),
            DataType::Int64 => Arc::new(found.map(|part| part.map(|part| part as i64)).collect::<Int64Array>()),
            _ => Arc::new(found.collect::<Decimal128Array>().with_data_type(data_type.clone())),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use arrow::array::{BooleanArray, ListArray};
    use arrow::datatypes::Int64Type;
    use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
    use proptest::prelude::*;

    use super::*;
    use crate::query::operator::gather::{gather, kept};
    use crate::query::operator::tests as shared;

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
        shared::accumulator(&function, arrays)
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

    /// Sums that the arguments' type cannot hold come as several values, the same ones however they were added up.
    #[test]
    fn sums_come_in_parts_where_they_do_not_fit() {
        let uses = Uses { values: vec![Use::Added, Use::Added, Use::Added, Use::Added], counts: false };
        let kernel = CohortRows { groups: 0, uses: Some(uses) };
        let row = |value: i64| Row { user: 0, activity: Some(1), time: 0, counted: true, group: None, values: [Some(value); 4] };
        for (values, expected) in [
            (vec![i64::MAX - 1, 1], vec![Some(i64::MAX)]),
            (vec![i64::MAX, 1, 2], vec![Some(i64::MAX), Some(3)]),
            (vec![i64::MIN], vec![Some(i64::MIN)]),
            (vec![i64::MAX, i64::MIN, i64::MIN, i64::MIN, 2, -5], vec![Some(i64::MIN), Some(i64::MIN), Some(-4)]),
        ] {
            let all = arrays(&values.iter().copied().map(row).collect::<Vec<_>>(), false);
            for cut in 0..values.len() {
                let mut whole = accumulator(&kernel, &all, true);
                for (from, to) in [(0, cut), (cut, values.len())] {
                    let mut part = accumulator(&kernel, &all, true);
                    let own: Vec<ArrayRef> = all.iter().map(|array| array.slice(from, to - from)).collect();
                    part.update_batch(&own, &vec![0; to - from], None, 1).unwrap();
                    whole.merge_batch(&part.state(EmitTo::All).unwrap(), &[0], 1).unwrap();
                }
                let lists = whole.evaluate(EmitTo::All).unwrap();
                let rows = lists.as_list::<i32>().value(0);
                let found: Vec<_> = rows.as_struct().column(4).as_primitive::<Int64Type>().iter().collect();
                assert_eq!(found, expected, "{values:?} {cut}");
            }
        }
    }
}
