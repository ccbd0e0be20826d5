//! From merged aggregates to a view's output: HAVING, projections, declared types.
//!
//! *Place*: `compile` makes it from the plan above the aggregation; `read` runs it.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, NullArray};
use arrow::compute::{CastOptions, FilterBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::utils::collect_columns;

use super::failure::{arrow_failure, failure};
use crate::error::{Error, Result, SqlState};
use crate::types::SqlType;

/// What happens to merged aggregates.
#[derive(Debug)]
pub(super) struct Finish {
    /// The view's columns.
    pub(super) schema: SchemaRef,
    /// For each output column the key that it is, unchanged, or none.
    pub(super) output_keys: Vec<Option<usize>>,
    /// In order; columns by position.
    pub(super) stages: Vec<Stage>,
    /// Keys and aggregates.
    pub(super) inputs: usize,
}

/// One plan node above the aggregation.
#[derive(Debug)]
pub(super) enum Stage {
    /// Keeps the rows for which it is true.
    Filter(Arc<dyn PhysicalExpr>),
    /// Replaces the columns.
    Project(Vec<Arc<dyn PhysicalExpr>>),
}

/// A [`Finish`] for some output columns: what it reads and computes.
#[derive(Debug)]
pub(super) struct Projected {
    /// Output columns, in order.
    outputs: Vec<usize>,
    /// Which columns are needed before stage i; last: after all stages.
    needed: Vec<Vec<bool>>,
    /// The output columns' schema.
    pub(super) schema: SchemaRef,
}

impl Projected {
    /// Whether a column of keys and aggregates is read.
    pub(super) fn reads(&self, column: usize) -> bool {
        self.needed.first().is_some_and(|needed| needed[column])
    }
}

impl Finish {
    /// Keys and aggregates as they are, under the names and in the types of a schema.
    pub(super) fn nothing(schema: SchemaRef, keys: usize) -> Finish {
        let inputs = schema.fields().len();
        let output_keys = (0..inputs).map(|column| (column < keys).then_some(column)).collect();
        Finish { schema, output_keys, stages: Vec::new(), inputs }
    }

    /// Plans the computation of some output columns, all without a projection.
    pub(super) fn project(&self, projection: Option<&Vec<usize>>) -> Result<Projected> {
        let outputs: Vec<usize> = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        let schema = Arc::new(self.schema.project(&outputs).map_err(arrow_failure)?);
        let mut needed = vec![vec![false; self.schema.fields().len()]];
        for output in &outputs {
            needed[0][*output] = true;
        }
        for (position, stage) in self.stages.iter().enumerate().rev() {
            let after = &needed[0];
            let width = self.width_before(position);
            let mut before = match stage {
                Stage::Filter(_) => after.clone(),
                Stage::Project(_) => vec![false; width],
            };
            let read = |expr: &Arc<dyn PhysicalExpr>, before: &mut Vec<bool>| {
                for column in collect_columns(expr) {
                    before[column.index()] = true;
                }
            };
            match stage {
                Stage::Filter(predicate) => read(predicate, &mut before),
                Stage::Project(expressions) => {
                    expressions.iter().zip(after).filter(|(_, wanted)| **wanted).for_each(|(expr, _)| read(expr, &mut before));
                }
            }
            needed.insert(0, before);
        }
        Ok(Projected { outputs, needed, schema })
    }

    fn width_before(&self, position: usize) -> usize {
        self.stages[..position]
            .iter()
            .rev()
            .find_map(|stage| match stage {
                Stage::Project(expressions) => Some(expressions.len()),
                Stage::Filter(_) => None,
            })
            .unwrap_or(self.inputs)
    }

    /// Runs the stages over keys and aggregates (none where not needed).
    pub(super) fn run(&self, projected: &Projected, columns: Vec<Option<ArrayRef>>, rows: usize) -> Result<RecordBatch> {
        self.run_marked(projected, columns, rows, &mut None)
    }

    /// The same. `marks` has an entry for each row; what is left of it belongs to the rows that come out.
    pub(super) fn run_marked(
        &self,
        projected: &Projected,
        columns: Vec<Option<ArrayRef>>,
        rows: usize,
        marks: &mut Option<ArrayRef>,
    ) -> Result<RecordBatch> {
        let mut batch = sparse(columns, rows)?;
        for (stage, needed) in self.stages.iter().zip(&projected.needed[1..]) {
            batch = match stage {
                Stage::Filter(predicate) => {
                    let mask = predicate.evaluate(&batch).and_then(|mask| mask.into_array(batch.num_rows())).map_err(failure)?;
                    let filter = FilterBuilder::new(mask.as_boolean()).optimize().build();
                    if let Some(marks) = marks {
                        *marks = filter.filter(marks).map_err(arrow_failure)?;
                    }
                    filter.filter_record_batch(&batch).map_err(arrow_failure)?
                }
                Stage::Project(expressions) => {
                    let columns = expressions
                        .iter()
                        .zip(needed)
                        .map(|(expr, needed)| {
                            needed.then(|| expr.evaluate(&batch).and_then(|value| value.into_array(batch.num_rows()))).transpose()
                        })
                        .collect::<datafusion::error::Result<Vec<_>>>()
                        .map_err(failure)?;
                    sparse(columns, batch.num_rows())?
                }
            };
        }
        let columns = projected
            .outputs
            .iter()
            .zip(projected.schema.fields())
            .map(|(output, field)| declared(batch.column(*output), field.data_type()))
            .collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(Arc::clone(&projected.schema), columns, &options).map_err(arrow_failure)
    }
}

/// A batch whose missing columns are of type Null.
fn sparse(columns: Vec<Option<ArrayRef>>, rows: usize) -> Result<RecordBatch> {
    let absent: ArrayRef = Arc::new(NullArray::new(rows));
    let columns: Vec<ArrayRef> = columns.into_iter().map(|column| column.unwrap_or_else(|| Arc::clone(&absent))).collect();
    let fields: Vec<_> =
        columns.iter().enumerate().map(|(index, column)| Field::new(format!("c{index}"), column.data_type().clone(), true)).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options).map_err(arrow_failure)
}

/// A column in its declared type.
pub(super) fn declared(column: &ArrayRef, data_type: &DataType) -> Result<ArrayRef> {
    if column.data_type() == data_type {
        return Ok(Arc::clone(column));
    }
    let options = CastOptions { safe: false, ..CastOptions::default() };
    arrow::compute::cast_with_options(column, data_type, &options).map_err(|error| {
        Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, format!("{} out of range", SqlType::of_arrow(data_type))).detail(error.to_string())
    })
}
