//! The routed plan: `merge(UNION ALL(states, states of raw rows))`, or only the first of the two.
//!
//! *Place*: [`super`], for the view that was chosen.
//!
//! *Invariant*: the output has the names, types and order of columns of the aggregation that it replaces.

use std::sync::Arc;

use arrow::datatypes::{Field, FieldRef, Schema};
use datafusion::common::metadata::FieldMetadata;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{Column, DFSchema, Result, ScalarValue, TableReference, internal_err};
use datafusion::datasource::provider_as_source;
use datafusion::datasource::source_as_provider;
use datafusion::execution::context::SessionState;
use datafusion::execution::memory_pool::MemoryLimit;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::utils::{conjunction, disjunction};
use datafusion::logical_expr::{Aggregate, Expr, ExprSchemable, Filter, LogicalPlan, LogicalPlanBuilder, Projection, lit};

use super::cover::Cover;
use super::prove::{Part, Proof};
use super::query::Range;
use super::shape::Shape;
use crate::query::provider::rows::Rows;
use crate::query::provider::states::ViewStates;
use crate::query::provider::view::unqualified;
use crate::types::LSN_COLUMN;
use crate::view::{Bucket, Gives, Takes, UNITING_GROWTH, Version, rollup, row_arguments};

/// Microseconds of a day.
const DAY_US: i64 = 86_400_000_000;

/// What is put together.
pub struct Rewrite<'a> {
    /// The aggregation that is replaced.
    pub shape: &'a Shape<'a>,
    /// How the view answers it.
    pub proof: &'a Proof,
    /// Which rows come from where.
    pub cover: &'a Cover,
    /// The view's state.
    pub version: &'a Arc<Version>,
    /// The name under which `proof` has the states.
    pub relation: &'a TableReference,
    /// DataFusion's state.
    pub session: &'a Arc<SessionState>,
}

impl Rewrite<'_> {
    /// The plan in the aggregation's place; none where the view's sets of distinct values are too large to be put together.
    pub fn plan(&self) -> Result<Option<LogicalPlan>> {
        if self.cover.is_whole()
            && let Some(groups) = self.groups()?
        {
            return self.named(groups).map(Some);
        }
        if self.has_too_large_sets()? {
            return Ok(None);
        }
        if self.cover.is_whole() {
            let grouped = self.grouped_states(Gives::Value)?;
            return self.named(grouped).map(Some);
        }
        let states = Arc::new(self.numbered(self.grouped_states(Gives::States)?)?);
        let raw = Arc::new(self.numbered(self.grouped_rows()?)?);
        let both = LogicalPlanBuilder::from(states).union(Arc::unwrap_or_clone(raw))?.build()?;
        let column = |index: usize| Expr::Column(Column::new_unqualified(format!("c{index}")));
        let keys = self.proof.keys.len();
        let group = (0..keys).map(column).collect();
        let calls = self.proof.parts.iter().enumerate();
        let calls = calls.map(|(index, part)| (self.call(part, Takes::States, Gives::Value, index, vec![column(keys + index)]), None));
        let grouped = grouped(both, group, calls.collect())?;
        self.named(grouped).map(Some)
    }

    /// Whether sets that are to be united may take more memory than there is. A set of one group cannot be spilled.
    fn has_too_large_sets(&self) -> Result<bool> {
        let unites = |part: &Part| part.takes == Takes::States && part.aggregate.is_set();
        let MemoryLimit::Finite(limit) = self.session.runtime_env().memory_pool.memory_limit() else { return Ok(false) };
        if !self.proof.parts.iter().any(unites) {
            return Ok(false);
        }
        let size = self.version.size();
        if (size.block_bytes + size.delta_bytes) as usize * UNITING_GROWTH <= limit {
            return Ok(false);
        }
        let filters = self.proof.filters.iter().chain(&self.in_state()?).map(unqualified).collect::<Result<Vec<_>>>()?;
        Ok(self.version.state_bytes(self.session, filters)? * UNITING_GROWTH > limit)
    }

    fn call(&self, part: &Part, takes: Takes, gives: Gives, index: usize, arguments: Vec<Expr>) -> Expr {
        let field = self.shape.schema.field(self.proof.keys.len() + index);
        let function = rollup(&part.aggregate, takes, gives, field);
        Expr::AggregateFunction(AggregateFunction::new_udf(function, arguments, false, None, Vec::new(), None))
    }

    /// The view's groups, where they are those of the query: nothing is left to be merged.
    fn groups(&self) -> Result<Option<Grouped>> {
        let spec = &self.version.spec;
        let column = |expr: &Expr, of: char| match expr {
            Expr::Column(column) => column.name.strip_prefix(of).and_then(|index| index.parse::<usize>().ok()),
            _ => None,
        };
        let states = spec.states_schema();
        let width = states.fields().len() - spec.aggregates().len();
        let keys: Option<Vec<usize>> = self.proof.keys.iter().map(|key| column(key, 'k')).collect();
        let Some(keys) = keys.filter(|keys| (0..width).all(|key| keys.contains(&key))) else { return Ok(None) };
        let mut fields: Vec<FieldRef> = states.fields()[..width].to_vec();
        let value = |(index, aggregate): (usize, &Arc<crate::view::Aggregate>)| {
            Arc::new(Field::new(format!("v{index}"), aggregate.output().clone(), true))
        };
        fields.extend(spec.aggregates().iter().enumerate().map(value));
        let mut positions = keys;
        for (index, part) in self.proof.parts.iter().enumerate() {
            let [argument] = part.arguments.as_slice() else { return Ok(None) };
            let state = column(argument, 's').filter(|_| part.takes == Takes::States && part.filter.is_none());
            let Some(position) = state.map(|state| width + state) else { return Ok(None) };
            let field = self.shape.schema.field(self.proof.keys.len() + index);
            if fields[position].data_type() != field.data_type() {
                return Ok(None);
            }
            fields[position] = Arc::new(fields[position].as_ref().clone().with_nullable(field.is_nullable()));
            positions.push(position);
        }
        let provider = ViewStates::merged(Arc::clone(self.version), Arc::clone(self.session), Arc::new(Schema::new(fields)));
        let plan = self.filtered(provider)?;
        let outputs = positions.into_iter().map(|position| Expr::Column(Column::from(plan.schema().qualified_field(position))));
        Ok(Some(Grouped { outputs: outputs.collect(), plan }))
    }

    /// What counts of a view.
    fn filtered(&self, provider: ViewStates) -> Result<LogicalPlan> {
        let scan = LogicalPlanBuilder::scan(self.relation.clone(), provider_as_source(Arc::new(provider)), None)?.build()?;
        let mut filters = self.proof.filters.clone();
        filters.extend(self.in_state()?);
        Ok(match conjunction(filters) {
            Some(filter) => LogicalPlan::Filter(Filter::try_new(filter, Arc::new(scan))?),
            None => scan,
        })
    }

    /// State rows that count, grouped as the query wants it.
    fn grouped_states(&self, gives: Gives) -> Result<Grouped> {
        let input = self.filtered(ViewStates::new(Arc::clone(self.version), Arc::clone(self.session)))?;
        let calls = self.proof.parts.iter().enumerate();
        let calls = calls.map(|(index, part)| (self.call(part, part.takes, gives, index, part.arguments.clone()), part.filter.clone()));
        grouped(input, self.proof.keys.clone(), calls.collect())
    }

    /// The buckets that are read from state; none for all.
    fn in_state(&self) -> Result<Vec<Expr>> {
        if self.cover.state == [Range::ALL] {
            return Ok(Vec::new());
        }
        let Some(bucket) = self.proof.bucket else { return internal_err!("a range of state without a bucket") };
        let column = Column::new(Some(self.relation.clone()), format!("k{}", bucket.key));
        let kind = self.version.spec.states_schema().field(bucket.key).data_type().clone();
        let value = |time: i64| bucket_value(&bucket, time, &kind);
        let mut ranges = Vec::new();
        for range in &self.cover.state {
            ranges.push(between(&Expr::Column(column.clone()), *range, &value)?);
        }
        match ranges.len() {
            1 => Ok(ranges.remove(0)),
            _ => Ok(disjunction(ranges.into_iter().filter_map(conjunction)).into_iter().collect()),
        }
    }

    /// The rows that are not in the state, grouped by the query's own expressions.
    fn grouped_rows(&self) -> Result<Grouped> {
        let input = Arc::clone(self.shape.input).as_ref().clone().transform_down(|node| self.only_uncovered(node)).data()?;
        let mut calls = Vec::with_capacity(self.proof.parts.len());
        for (index, (part, call)) in self.proof.parts.iter().zip(&self.shape.calls).enumerate() {
            let arguments = row_arguments(call, input.schema())?;
            let filter = call.params.filter.as_deref().cloned();
            calls.push((self.call(part, Takes::Rows, Gives::States, index, arguments), filter));
        }
        grouped(input, self.shape.group.clone(), calls)
    }

    /// Puts the filter for uncovered rows above the scan.
    fn only_uncovered(&self, node: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
        let LogicalPlan::TableScan(scan) = node else { return Ok(Transformed::no(node)) };
        let table = &self.shape.table.table;
        let Some(time) = table.watermark.and_then(|watermark| table.columns.get(watermark.column)) else {
            return internal_err!("a routed table without event time");
        };
        let column = |name: &str| Expr::Column(Column::new(Some(scan.table_name.clone()), name));
        let kind = time.sql_type.arrow();
        let at = |time_us: i64| Ok(timestamp(time_us, &kind));
        let event_time = column(&time.name);
        let mut uncovered = Vec::new();
        for range in &self.cover.raw {
            uncovered.extend(conjunction(between(&event_time, *range, &at)?));
        }
        if self.cover.raw.len() < 2 && self.cover.raw.contains(&Range::ALL) {
            return Ok(Transformed::no(LogicalPlan::TableScan(scan)));
        }
        let Some(lsn) = self.cover.below_lsn else {
            let Some(filter) = disjunction(uncovered) else { return Ok(Transformed::no(LogicalPlan::TableScan(scan))) };
            let filter = Filter::try_new(filter, Arc::new(LogicalPlan::TableScan(scan)))?;
            return Ok(Transformed::new(LogicalPlan::Filter(filter), true, datafusion::common::tree_node::TreeNodeRecursion::Jump));
        };
        uncovered.push(column(LSN_COLUMN).lt(lit(i64::try_from(lsn).unwrap_or(i64::MAX))));
        let provider = source_as_provider(&scan.source)?;
        let Some(rows) = provider.downcast_ref::<Rows>() else { return internal_err!("a routed table is no table") };
        let shown: Vec<Expr> = scan.projected_schema.columns().into_iter().map(Expr::Column).collect();
        let wide = LogicalPlanBuilder::scan(scan.table_name.clone(), provider_as_source(Arc::new(rows.with_lsn())), None)?.build()?;
        let Some(filter) = disjunction(uncovered) else { return internal_err!("no row is uncovered") };
        let filter = LogicalPlan::Filter(Filter::try_new(filter, Arc::new(wide))?);
        let shown = LogicalPlan::Projection(Projection::try_new(shown, Arc::new(filter))?);
        Ok(Transformed::new(shown, true, datafusion::common::tree_node::TreeNodeRecursion::Jump))
    }

    /// The output columns as `c0`, `c1`, ...: what a union needs.
    fn numbered(&self, grouped: Grouped) -> Result<LogicalPlan> {
        let columns = grouped.outputs.iter().enumerate().map(|(index, column)| column.clone().alias(format!("c{index}"))).collect();
        Ok(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(grouped.plan))?))
    }

    /// The output columns as the aggregation has them.
    fn named(&self, grouped: Grouped) -> Result<LogicalPlan> {
        let mut columns = Vec::with_capacity(grouped.outputs.len());
        for (column, (qualifier, field)) in grouped.outputs.into_iter().zip(self.shape.schema.iter()) {
            let found = column.get_type(grouped.plan.schema())?;
            if found != *field.data_type() {
                return internal_err!("a routed column {} has type {found}, not {}", field.name(), field.data_type());
            }
            let metadata = (!field.metadata().is_empty()).then(|| FieldMetadata::new_from_field(field));
            columns.push(column.alias_qualified_with_metadata(qualifier.cloned(), field.name(), metadata));
        }
        Ok(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(grouped.plan))?))
    }
}

/// An aggregation, and where its outputs are: equal expressions are computed once.
struct Grouped {
    plan: LogicalPlan,
    outputs: Vec<Expr>,
}

fn grouped(input: LogicalPlan, group: Vec<Expr>, calls: Vec<(Expr, Option<Expr>)>) -> Result<Grouped> {
    let mut positions = Vec::with_capacity(group.len() + calls.len());
    let mut keys: Vec<Expr> = Vec::with_capacity(group.len());
    for key in group {
        positions.push(position(&mut keys, key));
    }
    let mut aggregates: Vec<Expr> = Vec::with_capacity(calls.len());
    let mut places = Vec::with_capacity(calls.len());
    for (mut call, filter) in calls {
        if let Expr::AggregateFunction(call) = &mut call {
            call.params.filter = filter.map(Box::new);
        }
        places.push(position(&mut aggregates, call));
    }
    // sum(x) and sum(DISTINCT x) have one name: a later one gets another.
    for index in 1..aggregates.len() {
        let name = aggregates[index].schema_name().to_string();
        if aggregates[..index].iter().any(|earlier| earlier.schema_name().to_string() == name) {
            aggregates[index] = aggregates[index].clone().alias(format!("{name} {index}"));
        }
    }
    let count = keys.len();
    positions.extend(places.into_iter().map(|place| count + place));
    let plan = LogicalPlan::Aggregate(Aggregate::try_new(Arc::new(input), keys, aggregates)?);
    let schema: &DFSchema = plan.schema();
    let outputs = positions.into_iter().map(|position| Expr::Column(Column::from(schema.qualified_field(position)))).collect();
    Ok(Grouped { plan, outputs })
}

fn position(known: &mut Vec<Expr>, expr: Expr) -> usize {
    known.iter().position(|other| *other == expr).unwrap_or_else(|| {
        known.push(expr);
        known.len() - 1
    })
}

/// `column >= low` and `column < high`, as far as there are bounds.
fn between(column: &Expr, range: Range, value: &dyn Fn(i64) -> Result<ScalarValue>) -> Result<Vec<Expr>> {
    let mut bounds = Vec::new();
    if range.low != i64::MIN {
        bounds.push(column.clone().gt_eq(Expr::Literal(value(range.low)?, None)));
    }
    if range.high != i64::MAX {
        bounds.push(column.clone().lt(Expr::Literal(value(range.high)?, None)));
    }
    Ok(bounds)
}

fn timestamp(time_us: i64, kind: &arrow::datatypes::DataType) -> ScalarValue {
    let zone = match kind {
        arrow::datatypes::DataType::Timestamp(_, zone) => zone.clone(),
        _ => None,
    };
    ScalarValue::TimestampMicrosecond(Some(time_us), zone)
}

/// A bound as the bucket's key has it.
fn bucket_value(bucket: &Bucket, time_us: i64, kind: &arrow::datatypes::DataType) -> Result<ScalarValue> {
    if !bucket.is_date {
        return Ok(timestamp(time_us, kind));
    }
    match i32::try_from(time_us.div_euclid(DAY_US)) {
        Ok(days) if time_us.rem_euclid(DAY_US) == 0 => Ok(ScalarValue::Date32(Some(days))),
        _ => internal_err!("a bucket does not begin at midnight"),
    }
}
