//! HOP in a view: a row becomes one row for each window that it belongs to.
//!
//! *Place*: `compile` makes an [`Expansion`], `apply` runs it, once for all views that hop alike.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, NullArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::common::{DFSchema, ScalarValue, exec_datafusion_err};
use datafusion::error::Result;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{Expr, ExprSchemable};

use super::compile::Planner;
use super::failure::failure;
use super::source::no_view;
use super::spec::Expression;
use super::window;
use crate::error::Error;

/// Name of the column that holds a window's start in expanded rows; no column of a table has it.
pub(super) const WINDOW_COLUMN: &str = "\u{1}window";

/// Expanded rows that are held at a time: a longer batch is expanded in slices.
const EXPANDED_ROWS_MAX: usize = 262_144;

/// What a view does to a row before it groups it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Expansion {
    /// The list of the starts of a row's windows, over the table's columns.
    pub(super) starts: Expression,
    /// Where the start stands in expanded rows, and with it how many of the table's columns stand before it: as many as the table
    /// had when the view was compiled.
    pub(super) position: usize,
    /// Windows of a row, at most.
    pub(super) windows: usize,
    /// Expanded rows for which this is not true do not count.
    pub(super) filter: Option<Expression>,
}

impl Expansion {
    /// Compiles a call of HOP over a table's rows, and a filter over expanded rows; gives what plans expressions over those. 22023 for
    /// windows that cannot be.
    pub(super) fn compile<'a>(rows: Planner<'a>, hop: &Expr, filter: Option<Expr>) -> Result<(Planner<'a>, Option<Expansion>), Error> {
        let Expr::ScalarFunction(call) = hop else { return Err(Error::internal("HOP is no call")) };
        let starts = rows.session.scalar_functions().get("hop_starts").ok_or_else(|| Error::internal("hop_starts() is missing"))?;
        let of = |args: Vec<Expr>| Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(starts), args));
        let mut args = call.args.iter().map(|argument| rows.simplify(argument.clone())).collect::<Result<Vec<_>, _>>()?;
        let width = |argument: usize| args.get(argument).and_then(window::literal).and_then(window::interval_us);
        // The function says itself what is wrong with its windows.
        let time = call.args[0].get_type(&rows.schema).map_err(failure)?;
        let mut sample = args.clone();
        sample[0] = Expr::Literal(ScalarValue::TimestampMicrosecond(Some(0), None).cast_to(&time).map_err(failure)?, None);
        let empty = RecordBatch::new_empty(Arc::new(rows.schema.as_arrow().clone()));
        rows.physical(&of(sample))?.evaluate(&empty).map_err(failure)?;
        let (Some(slide), Some(size)) = (width(1), width(2)) else {
            return Err(no_view("HOP with a slide or size that is not a constant", "Write the intervals into the query."));
        };
        let windows = usize::try_from((size - 1) / slide + 1).unwrap_or(usize::MAX);
        let starts = Expression::new(rows.physical(&of(std::mem::take(&mut args)))?);
        let position = rows.schema.fields().len();
        let mut fields: Vec<_> = rows.schema.fields().iter().cloned().collect();
        fields.push(Arc::new(Field::new(WINDOW_COLUMN, time, true)));
        let schema = DFSchema::try_from(Schema::new(fields)).map_err(failure)?;
        let rows = Planner::new(rows.session, schema);
        let filter = filter.map(|filter| rows.expression(filter)).transpose()?;
        Ok((rows, Some(Expansion { starts, position, windows, filter })))
    }

    /// What it evaluates: the starts, then the filter.
    pub(super) fn expressions(&self) -> impl Iterator<Item = &Expression> {
        std::iter::once(&self.starts).chain(&self.filter)
    }

    /// Rows that may be expanded at once.
    pub(super) fn rows_max(&self) -> usize {
        (EXPANDED_ROWS_MAX / self.windows.max(1)).max(1)
    }

    /// One row per row and window, with the columns for which `needed` holds; the others are of type Null, in place.
    pub(super) fn expand(&self, rows: &RecordBatch, needed: impl Fn(usize) -> bool) -> Result<RecordBatch> {
        let lists = self.starts.physical.evaluate(rows)?.into_array(rows.num_rows())?;
        let lists = lists.as_list_opt::<i32>().ok_or_else(|| exec_datafusion_err!("window starts are not a list"))?;
        let offsets = lists.value_offsets();
        let (first, last) = (offsets[0] as usize, offsets[offsets.len() - 1] as usize);
        let starts = lists.values().slice(first, last - first);
        let repeated: UInt64Array =
            offsets.windows(2).enumerate().flat_map(|(row, pair)| std::iter::repeat_n(row as u64, (pair[1] - pair[0]) as usize)).collect();
        let count = repeated.len();
        let absent: ArrayRef = Arc::new(NullArray::new(count));
        let mut fields = Vec::with_capacity(self.position + 1);
        let mut columns = Vec::with_capacity(self.position + 1);
        for (index, (column, field)) in rows.columns().iter().zip(rows.schema_ref().fields()).take(self.position).enumerate() {
            if needed(index) {
                fields.push(Arc::clone(field));
                columns.push(arrow::compute::take(column, &repeated, None)?);
            } else {
                fields.push(Arc::new(Field::new(field.name(), DataType::Null, true)));
                columns.push(Arc::clone(&absent));
            }
        }
        fields.push(Arc::new(Field::new(WINDOW_COLUMN, starts.data_type().clone(), true)));
        columns.push(starts);
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?)
    }
}
