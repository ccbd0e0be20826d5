//! Whether a routed aggregation has the same answer as the scan that it replaces.
//!
//! *Place*: `verus.verify_route` runs it before the query, [`super::shadow`] now and then beside one.
//!
//! Both sides are run on one snapshot and compared by group, not at the end of the query: LIMIT, ties of ORDER BY and the like cannot
//! make equal answers look different. Floating point results may differ by as much as another order of adding makes.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Float32Type, Float64Type};
use arrow::row::{RowConverter, SortField};
use datafusion::common::ScalarValue;
use datafusion::execution::TaskContext;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use futures::StreamExt;

use crate::error::{Error, Result, SqlState};
use crate::query::error::from_datafusion;
use crate::view::Spec;

/// One routed aggregation.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The view.
    pub spec: Arc<Spec>,
    /// What the query says.
    pub scan: LogicalPlan,
    /// What is run instead.
    pub routed: LogicalPlan,
    /// How many of the first columns are groups' keys.
    pub keys: usize,
    /// For each column whether its value is an approximation by contract.
    pub approximate: Vec<bool>,
}

/// Steps between neighbouring numbers that two orders of adding may lie apart, relative to the greatest value of the column.
const ULPS: f64 = 16_777_216.0;

/// Runs both plans and compares. The text says how they differ; none when they do not. 54000 for more than `groups_max` groups.
pub async fn compare(
    pair: &Pair,
    scan: Arc<dyn ExecutionPlan>,
    routed: Arc<dyn ExecutionPlan>,
    task: &Arc<TaskContext>,
    groups_max: usize,
) -> Result<Option<String>> {
    let expected = collect(scan, task, groups_max).await?;
    let actual = collect(routed, task, groups_max).await?;
    difference(pair.keys, &pair.approximate, &expected, &actual)
}

async fn collect(plan: Arc<dyn ExecutionPlan>, task: &Arc<TaskContext>, groups_max: usize) -> Result<RecordBatch> {
    let schema = plan.schema();
    let mut stream = execute_stream(plan, Arc::clone(task)).map_err(from_datafusion)?;
    let (mut batches, mut rows) = (Vec::new(), 0);
    while let Some(batch) = stream.next().await {
        let batch = batch.map_err(from_datafusion)?;
        rows += batch.num_rows();
        if rows > groups_max {
            return Err(Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, format!("more than {groups_max} groups cannot be verified"))
                .hint("SET verus.verify_route = off, or ask for fewer groups."));
        }
        batches.push(batch);
    }
    concat_batches(&schema, &batches).map_err(|error| Error::internal(error.to_string()))
}

/// How two results differ.
fn difference(keys: usize, approximate: &[bool], expected: &RecordBatch, actual: &RecordBatch) -> Result<Option<String>> {
    if expected.num_rows() != actual.num_rows() {
        return Ok(Some(format!("{} groups by the rows, {} by the view", expected.num_rows(), actual.num_rows())));
    }
    let Some(places) = places(keys, expected, actual)? else {
        return Ok(Some("the groups differ".to_owned()));
    };
    for column in keys..expected.num_columns() {
        if approximate.get(column).copied().unwrap_or(false) {
            continue;
        }
        let (one, other) = (expected.column(column), actual.column(column));
        let tolerance = tolerance(one);
        for (row, place) in places.iter().enumerate() {
            if !equal(one, row, other, *place, tolerance)? {
                let shown = |array: &ArrayRef, row: usize| {
                    ScalarValue::try_from_array(array, row).map_or_else(|_| "?".to_owned(), |value| value.to_string())
                };
                let name = expected.schema_ref().field(column).name().clone();
                return Ok(Some(format!("{name} is {} by the rows, {} by the view", shown(one, row), shown(other, *place))));
            }
        }
    }
    Ok(None)
}

/// For each row of `expected` the row of `actual` with the same keys; none when they do not pair up.
fn places(keys: usize, expected: &RecordBatch, actual: &RecordBatch) -> Result<Option<Vec<usize>>> {
    if keys == 0 {
        return Ok(Some((0..expected.num_rows()).collect()));
    }
    let failed = |error: arrow::error::ArrowError| Error::internal(format!("groups cannot be compared: {error}"));
    let fields = expected.columns()[..keys].iter().map(|column| SortField::new(column.data_type().clone())).collect();
    let converter = RowConverter::new(fields).map_err(failed)?;
    let known = converter.convert_columns(&actual.columns()[..keys]).map_err(failed)?;
    let mut rows = HashMap::with_capacity(known.num_rows());
    for (index, row) in known.iter().enumerate() {
        rows.insert(row.owned(), index);
    }
    let wanted = converter.convert_columns(&expected.columns()[..keys]).map_err(failed)?;
    Ok(wanted.iter().map(|row| rows.get(&row.owned()).copied()).collect())
}

/// How far values of a column may lie apart: nothing for exact types.
fn tolerance(values: &ArrayRef) -> f64 {
    let greatest = |values: &mut dyn Iterator<Item = f64>| values.map(f64::abs).filter(|value| value.is_finite()).fold(1.0, f64::max);
    match values.data_type() {
        DataType::Float64 => greatest(&mut values.as_primitive::<Float64Type>().iter().flatten()) * f64::EPSILON * ULPS,
        DataType::Float32 => {
            greatest(&mut values.as_primitive::<Float32Type>().iter().flatten().map(f64::from)) * f64::from(f32::EPSILON) * 64.0
        }
        _ => 0.0,
    }
}

fn equal(one: &ArrayRef, row: usize, other: &ArrayRef, place: usize, tolerance: f64) -> Result<bool> {
    if one.is_null(row) || other.is_null(place) {
        return Ok(one.is_null(row) && other.is_null(place));
    }
    let near = |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance;
    Ok(match (one.data_type(), other.data_type()) {
        (DataType::Float64, DataType::Float64) => {
            near(one.as_primitive::<Float64Type>().value(row), other.as_primitive::<Float64Type>().value(place))
        }
        (DataType::Float32, DataType::Float32) => {
            near(one.as_primitive::<Float32Type>().value(row).into(), other.as_primitive::<Float32Type>().value(place).into())
        }
        _ => {
            let value = |array: &ArrayRef, row| ScalarValue::try_from_array(array, row).map_err(from_datafusion);
            value(one, row)? == value(other, place)?
        }
    })
}

/// The error for a client that asked for verification.
pub fn mismatch(view: &str, difference: &str) -> Error {
    Error::new(SqlState::DATA_CORRUPTED, format!("materialized view \"{view}\" gives another answer than its table"))
        .detail(format!("{difference}."))
        .hint("SET verus.route = 'scan' answers from the table; CHECK MATERIALIZED VIEW and REFRESH MATERIALIZED VIEW tell more.")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringViewArray};

    use super::difference;

    fn batch(keys: &[Option<&str>], counts: &[i64], sums: &[Option<f64>]) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable([
            ("k", Arc::new(keys.iter().copied().collect::<StringViewArray>()) as ArrayRef, true),
            ("n", Arc::new(Int64Array::from(counts.to_vec())) as ArrayRef, true),
            ("s", Arc::new(sums.iter().copied().collect::<Float64Array>()) as ArrayRef, true),
        ])
        .expect("a batch")
    }

    fn check(one: &RecordBatch, other: &RecordBatch, expected: Option<&str>) {
        assert_eq!(difference(1, &[false, false, false], one, other).expect("comparable").as_deref(), expected);
    }

    #[test]
    fn groups_are_paired_and_compared() {
        let one = batch(&[Some("a"), None], &[1, 2], &[Some(1000.0), None]);
        check(&one, &batch(&[None, Some("a")], &[2, 1], &[None, Some(1000.0 + 1e-9)]), None);
        check(&one, &batch(&[None, Some("a")], &[2, 3], &[None, Some(1000.0)]), Some("n is 1 by the rows, 3 by the view"));
        check(&one, &batch(&[None, Some("a")], &[2, 1], &[Some(0.0), Some(1000.0)]), Some("s is NULL by the rows, 0 by the view"));
        check(&one, &batch(&[None, Some("a")], &[2, 1], &[None, Some(1000.1)]), Some("s is 1000 by the rows, 1000.1 by the view"));
        check(&one, &batch(&[Some("a"), Some("b")], &[1, 2], &[Some(1000.0), None]), Some("the groups differ"));
        check(&one, &batch(&[Some("a")], &[1], &[Some(1000.0)]), Some("2 groups by the rows, 1 by the view"));
        let nothing = batch(&[], &[], &[]);
        check(&nothing, &nothing, None);
    }
}
