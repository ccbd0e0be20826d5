//! The upper aggregation of a nested view, taken apart: what it makes of an entity, and what it adds up.
//!
//! *Place*: `nested` compiles one for each view whose upper aggregation can be kept; `fold` keeps it.
//!
//! Between the two aggregations there are filters, projections and the unnesting of one list, each of which looks at one row: what an
//! entity brings to the upper aggregation depends on the entity alone. Anything else between them, an aggregate that cannot be taken back,
//! GROUPING SETS: then the view is computed from its entities whenever it is read.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, UInt64Array};
use arrow::compute::{FilterBuilder, take};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use arrow::row::{RowConverter, SortField};
use datafusion::common::{DFSchema, NullHandling};
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_expr::PhysicalExpr;

use super::aggregate::{Aggregate, Lowering};
use super::compile::Planner;
use super::failure::{arrow_failure, failure};
use super::source::check;
use super::tally::Tally;
use crate::error::{Error, Result};

/// See the module.
#[derive(Debug)]
pub(super) struct Layer {
    stages: Vec<Stage>,
    keys: Vec<Arc<dyn PhysicalExpr>>,
    pub(super) aggregates: Vec<Arc<Aggregate>>,
    /// Of the keys, as the aggregation has them.
    pub(super) key_types: Vec<DataType>,
    /// Of the aggregation's output.
    pub(super) schema: SchemaRef,
}

/// One plan node between the aggregations; columns by position.
#[derive(Debug)]
enum Stage {
    Filter(Arc<dyn PhysicalExpr>),
    Project(Vec<Arc<dyn PhysicalExpr>>),
    /// A row for each item of a list, none where there is none.
    Unnest(usize),
}

/// What entities bring to the upper aggregation: keys, then the arguments of each aggregate, then its filter where it has one.
#[derive(Debug)]
pub(super) struct Contributions {
    pub(super) columns: Vec<ArrayRef>,
    pub(super) rows: usize,
}

impl Layer {
    /// Of the aggregation `upper`; `between` are the nodes from there down to the lower one, whose output has `schema`. None where it
    /// cannot be kept.
    pub(super) fn compile(session: &SessionState, upper: &LogicalPlan, between: &[&LogicalPlan], schema: &DFSchema) -> Option<Layer> {
        Self::made(session, upper, between, schema).ok().flatten()
    }

    fn made(session: &SessionState, upper: &LogicalPlan, between: &[&LogicalPlan], schema: &DFSchema) -> Result<Option<Layer>> {
        let LogicalPlan::Aggregate(aggregate) = upper else { return Ok(None) };
        let mut stages = Vec::new();
        let mut schema = schema;
        for node in between.iter().rev() {
            let planner = Planner::new(session, schema.clone());
            let physical = |expr: &Expr| {
                check(expr)?;
                Ok::<_, Error>(planner.expression(expr.clone().unalias_nested().data)?.physical)
            };
            match node {
                LogicalPlan::Filter(filter) => stages.push(Stage::Filter(physical(&filter.predicate)?)),
                LogicalPlan::Projection(projection) => {
                    stages.push(Stage::Project(projection.expr.iter().map(physical).collect::<Result<_>>()?));
                }
                LogicalPlan::SubqueryAlias(_) => {}
                LogicalPlan::Unnest(unnest) => match unnest.list_type_columns.as_slice() {
                    [(column, list)]
                        if list.depth == 1
                            && unnest.struct_type_columns.is_empty()
                            && matches!(unnest.options.null_handling, NullHandling::Drop)
                            && unnest.dependency_indices.iter().enumerate().all(|(output, input)| output == *input) =>
                    {
                        stages.push(Stage::Unnest(*column));
                    }
                    _ => return Ok(None),
                },
                _ => return Ok(None),
            }
            schema = node.schema();
        }
        let planner = Planner::new(session, schema.clone());
        let mut keys = Vec::new();
        for expr in &aggregate.group_expr {
            check(expr)?;
            keys.push(planner.expression(expr.clone().unalias_nested().data)?.physical);
        }
        let mut aggregates = Vec::new();
        for (index, expr) in aggregate.aggr_expr.iter().enumerate() {
            check(expr)?;
            let Expr::AggregateFunction(call) = expr.clone().unalias_nested().data else { return Ok(None) };
            let output = aggregate.schema.field(keys.len() + index).data_type();
            let lowering =
                Lowering { binder: None, props: planner.props, schema: &planner.schema, context: planner.context(), is_shaped: true };
            let aggregate = Aggregate::lower(&call, output, &lowering)?;
            if !Tally::fits(&aggregate) {
                return Ok(None);
            }
            aggregates.push(Arc::new(aggregate));
        }
        let key_types: Vec<DataType> = aggregate.schema.fields()[..keys.len()].iter().map(|field| field.data_type().clone()).collect();
        let fields: Vec<_> = key_types.iter().cloned().map(SortField::new).collect();
        let layer = Layer { stages, keys, aggregates, key_types, schema: super::nested::groups_schema(&aggregate.schema) };
        // What is the same on both sides is found by its bytes.
        let whole: Vec<_> = layer.contribution_types().map(SortField::new).collect();
        Ok((RowConverter::supports_fields(&fields) && RowConverter::supports_fields(&whole)).then_some(layer))
    }

    /// Types of [`Contributions::columns`].
    pub(super) fn contribution_types(&self) -> impl Iterator<Item = DataType> {
        let own = self
            .aggregates
            .iter()
            .flat_map(|aggregate| aggregate.argument_types.iter().cloned().chain(aggregate.filter.as_ref().map(|_| DataType::Boolean)));
        self.key_types.iter().cloned().chain(own)
    }

    /// What entities bring: rows of the lower aggregation's output.
    pub(super) fn contributions(&self, entities: &RecordBatch) -> Result<Contributions> {
        let mut batch = positional(entities.columns().to_vec(), entities.num_rows())?;
        for stage in &self.stages {
            batch = stage.run(&batch)?;
        }
        let rows = batch.num_rows();
        let evaluated = |expr: &Arc<dyn PhysicalExpr>| expr.evaluate(&batch).and_then(|value| value.into_array(rows)).map_err(failure);
        let mut columns = self.keys.iter().map(evaluated).collect::<Result<Vec<_>>>()?;
        for (column, kind) in columns.iter_mut().zip(&self.key_types) {
            *column = super::finish::declared(column, kind)?;
        }
        for aggregate in &self.aggregates {
            for expression in aggregate.arguments.iter().chain(&aggregate.filter) {
                columns.push(evaluated(&expression.physical)?);
            }
        }
        Ok(Contributions { columns, rows })
    }
}

impl Stage {
    fn run(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let evaluated = |expr: &Arc<dyn PhysicalExpr>| expr.evaluate(batch).and_then(|value| value.into_array(batch.num_rows()));
        match self {
            Stage::Filter(predicate) => {
                let mask = evaluated(predicate).map_err(failure)?;
                FilterBuilder::new(mask.as_boolean()).optimize().build().filter_record_batch(batch).map_err(arrow_failure)
            }
            Stage::Project(expressions) => {
                let columns = expressions.iter().map(evaluated).collect::<datafusion::error::Result<Vec<_>>>().map_err(failure)?;
                positional(columns, batch.num_rows())
            }
            Stage::Unnest(column) => {
                let lists = batch.column(*column).as_list_opt::<i32>().ok_or_else(|| Error::internal("what is unnested is no list"))?;
                let (mut owners, mut items) = (Vec::new(), Vec::new());
                for row in (0..lists.len()).filter(|row| lists.is_valid(*row)) {
                    for item in lists.value_offsets()[row]..lists.value_offsets()[row + 1] {
                        owners.push(row as u64);
                        items.push(item as u64);
                    }
                }
                let rows = owners.len();
                let (owners, items) = (UInt64Array::from(owners), UInt64Array::from(items));
                let taken = |(index, values): (usize, &ArrayRef)| match index == *column {
                    true => take(lists.values(), &items, None),
                    false => take(values, &owners, None),
                };
                let columns = batch.columns().iter().enumerate().map(taken).collect::<Result<Vec<_>, _>>().map_err(arrow_failure)?;
                positional(columns, rows)
            }
        }
    }
}

/// A batch whose columns have no names.
fn positional(columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let fields = columns.iter().enumerate().map(|(index, column)| Field::new(format!("c{index}"), column.data_type().clone(), true));
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields.collect::<Vec<_>>())), columns, &options).map_err(arrow_failure)
}
