//! What a query is compared with to see whether a view can answer it: the view's keys, filter and aggregate calls as expressions
//! over its table, in a normal form.
//!
//! *Place*: made once with the [`super::Spec`]; `query::route` brings queries into the same form by [`Normalizer`].
//!
//! *Invariant*: two expressions that are equal in the normal form have the same value for every row. The converse does not hold,
//! and costs a route, never an answer.

use std::sync::Arc;

use arrow::datatypes::{DataType, IntervalUnit, TimeUnit};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::utils::split_conjunction_owned;
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, LogicalPlan, Operator, lit};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;

use super::aggregate::{Aggregate, Lowering};
use super::compile::Reading;
use super::failure::failure;
use super::source;
use crate::catalog::bind::Binder;
use crate::catalog::{Catalog, Table};
use crate::error::Result;

/// Microseconds of a day.
const DAY_US: i64 = 86_400_000_000;
const SECOND_US: i64 = 1_000_000;

/// What queries are compared with.
#[derive(Debug)]
pub struct Matching {
    /// The grouping expressions over the table's columns.
    pub keys: Vec<Expr>,
    /// Conjuncts of the filter over the table's columns.
    pub filters: Vec<Expr>,
    /// The aggregate calls over the table's columns, in the order of [`super::Spec::aggregates`].
    pub calls: Vec<AggregateFunction>,
    /// The keys that are time buckets of fixed width, finest first.
    pub buckets: Vec<Bucket>,
    /// Generated columns of the table and what they are generated from.
    pub generated: Vec<(String, Expr)>,
    /// The table's event time.
    pub event_time: String,
    /// Normal forms over the table.
    pub normalizer: Normalizer,
    /// The defining query, bound to no snapshot; none when it reads another view: its windows stay in the state then.
    pub plan: Option<LogicalPlan>,
}

/// A key whose value is the start of the bucket that the event time falls in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Index among the keys.
    pub key: usize,
    /// Where buckets begin and how wide they are.
    pub grain: Grain,
    /// Whether the key is a date (days) rather than a timestamp (microseconds).
    pub is_date: bool,
}

/// A grid on the time axis: points `offset_us + n * width_us`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grain {
    /// More than nothing.
    pub width_us: i64,
    /// Of one point; between 0 and the width.
    pub offset_us: i64,
}

impl Grain {
    /// A grid through a point.
    pub fn new(width_us: i64, through_us: i64) -> Option<Grain> {
        (width_us > 0).then(|| Grain { width_us, offset_us: through_us.rem_euclid(width_us) })
    }

    /// Whether every point of `coarse` is one of this grid.
    pub fn divides(&self, coarse: Grain) -> bool {
        coarse.width_us % self.width_us == 0 && (coarse.offset_us - self.offset_us) % self.width_us == 0
    }

    /// The last point at or before a time; none outside of the range of times.
    pub fn floor(&self, time_us: i64) -> Option<i64> {
        time_us.checked_sub(time_us.checked_sub(self.offset_us)?.rem_euclid(self.width_us))
    }

    /// The first point at or after a time; none outside of the range of times.
    pub fn ceil(&self, time_us: i64) -> Option<i64> {
        let floor = self.floor(time_us)?;
        if floor == time_us { Some(floor) } else { floor.checked_add(self.width_us) }
    }
}

/// Brings expressions over one table's (unqualified) columns into the normal form.
pub struct Normalizer {
    schema: Arc<DFSchema>,
    simplifier: ExprSimplifier,
}

impl std::fmt::Debug for Normalizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Normalizer").finish_non_exhaustive()
    }
}

impl Normalizer {
    /// For the columns of a table.
    pub fn new(session: &SessionState, table: &Table) -> Result<Normalizer> {
        let schema = Arc::new(DFSchema::try_from(table.schema()).map_err(failure)?);
        let context =
            SimplifyContext::builder().with_schema(Arc::clone(&schema)).with_config_options(Arc::clone(session.config_options())).build();
        Ok(Normalizer { schema, simplifier: ExprSimplifier::new(context) })
    }

    /// The table's columns.
    pub fn schema(&self) -> &DFSchema {
        &self.schema
    }

    /// An expression of the same type and value.
    pub fn expression(&self, expr: Expr) -> Result<Expr> {
        if matches!(expr, Expr::Column(_) | Expr::Literal(..)) {
            return Ok(expr);
        }
        let before = expr.get_type(&self.schema).map_err(failure)?;
        let simple = self.simplifier.simplify(expr.clone()).map_err(failure)?;
        let same = simple.get_type(&self.schema).is_ok_and(|after| after == before);
        Ok(if same { simple } else { expr })
    }

    /// A predicate's conjuncts, comparisons with the literal at the right.
    pub fn conjuncts(&self, predicate: Expr) -> Result<Vec<Expr>> {
        let mut conjuncts = Vec::new();
        for conjunct in split_conjunction_owned(self.expression(predicate)?) {
            match conjunct {
                Expr::Between(between) if !between.negated => {
                    conjuncts.push(binary(*between.expr.clone(), Operator::GtEq, *between.low));
                    conjuncts.push(binary(*between.expr, Operator::LtEq, *between.high));
                }
                Expr::Literal(ScalarValue::Boolean(Some(true)), _) => {}
                other => conjuncts.push(turned(other)),
            }
        }
        Ok(conjuncts)
    }

    /// A call with its arguments in normal form; `count` of a column that is never NULL counts rows.
    pub fn call(&self, call: &AggregateFunction) -> Result<AggregateFunction> {
        let mut call = call.clone();
        for argument in &mut call.params.args {
            *argument = self.expression(std::mem::take(argument))?;
        }
        for order in &mut call.params.order_by {
            order.expr = self.expression(std::mem::take(&mut order.expr))?;
        }
        if let Some(filter) = call.params.filter.take() {
            let simple = self.expression(*filter)?;
            if !matches!(simple, Expr::Literal(ScalarValue::Boolean(Some(true)), _)) {
                call.params.filter = Some(Box::new(simple));
            }
        }
        if call.func.name() == "count" && !call.params.distinct && call.params.order_by.is_empty() {
            let never_null = match call.params.args.as_slice() {
                [Expr::Literal(value, _)] => !value.is_null(),
                [Expr::Column(column)] => self.schema.field_with_unqualified_name(&column.name).is_ok_and(|field| !field.is_nullable()),
                _ => false,
            };
            if never_null {
                call.params.args = vec![lit(1_i64)];
            }
        }
        Ok(call)
    }

    /// The accumulators of a call over the table's columns.
    pub fn aggregate(&self, session: &SessionState, call: &AggregateFunction, output: &DataType) -> Result<Arc<Aggregate>> {
        lower(session, &self.schema, call, output)
    }
}

/// The accumulators of a call over the columns of `schema`.
pub(super) fn lower(session: &SessionState, schema: &DFSchema, call: &AggregateFunction, output: &DataType) -> Result<Arc<Aggregate>> {
    let context = PhysicalPlanningContext::default();
    let lowering = Lowering { binder: None, props: session.execution_props(), schema, context: &context, is_shaped: false };
    Ok(Arc::new(Aggregate::lower(call, output, &lowering)?))
}

fn binary(left: Expr, op: Operator, right: Expr) -> Expr {
    Expr::BinaryExpr(BinaryExpr::new(Box::new(left), op, Box::new(right)))
}

/// A comparison with the literal at the right.
fn turned(expr: Expr) -> Expr {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if matches!(*left, Expr::Literal(..)) && !matches!(*right, Expr::Literal(..)) => {
            match op.swap() {
                Some(swapped) => Expr::BinaryExpr(BinaryExpr { left: right, op: swapped, right: left }),
                None => Expr::BinaryExpr(BinaryExpr { left, op, right }),
            }
        }
        other => other,
    }
}

/// Whether a key puts one row into several groups, or groups by what other rows there are: such groups are not to be rolled up.
fn has_repeating_window(key: &Expr) -> bool {
    let repeating = |node: &Expr| matches!(node, Expr::ScalarFunction(call) if matches!(call.func.name(), "hop" | "hop_end" | "session" | "session_end"));
    key.exists(|node| Ok(repeating(node))).unwrap_or(true)
}

impl Matching {
    /// From a view's expressions over its table; none when queries are not to be routed to it.
    pub(super) fn new(
        session: &SessionState,
        table: &Table,
        plan: Option<LogicalPlan>,
        keys: &[Expr],
        filters: &[Expr],
        calls: Vec<AggregateFunction>,
    ) -> Result<Option<Matching>> {
        if keys.iter().any(has_repeating_window) {
            return Ok(None);
        }
        let normalizer = Normalizer::new(session, table)?;
        let event_time = table.watermark.and_then(|watermark| table.columns.get(watermark.column));
        let event_time = event_time.map(|column| column.name.clone()).unwrap_or_default();
        let keys = keys.iter().map(|key| normalizer.expression(key.clone())).collect::<Result<Vec<_>>>()?;
        let mut conjuncts = Vec::new();
        for filter in filters {
            conjuncts.extend(normalizer.conjuncts(filter.clone())?);
        }
        let calls = calls.iter().map(|call| normalizer.call(call)).collect::<Result<Vec<_>>>()?;
        let mut matching =
            Matching { keys, filters: conjuncts, calls, buckets: Vec::new(), generated: Vec::new(), event_time, normalizer, plan };
        matching.find_buckets();
        Ok(Some(matching))
    }

    /// Learns what the table's generated columns are generated from.
    pub(super) fn bind_generated(&mut self, binder: &dyn Binder, catalog: &Arc<Catalog>, table: &Table) -> Result<()> {
        for column in &table.columns {
            let Some(text) = &column.generated else { continue };
            let name = table.name.replace('"', "\"\"");
            let plan = binder.bind_query(catalog, &format!("SELECT {text} FROM \"{name}\""))?;
            let Some(expr) = source::fold(&Reading { binder, catalog }, &plan)?.outputs.pop() else { continue };
            let expr = self.normalizer.expression(expr)?;
            let field = self.normalizer.schema.field_with_unqualified_name(&column.name).map_err(failure)?;
            // An assignment may convert: only what has the column's own type stands for it.
            if expr.get_type(&self.normalizer.schema).is_ok_and(|found| found == *field.data_type()) {
                self.generated.push((column.name.clone(), expr));
            }
        }
        self.find_buckets();
        Ok(())
    }

    fn find_buckets(&mut self) {
        let mut buckets: Vec<Bucket> = Vec::new();
        for (key, expr) in self.keys.iter().enumerate() {
            let Ok(kind) = expr.get_type(&self.normalizer.schema) else { continue };
            let is_date = kind == DataType::Date32;
            if (is_date || matches!(kind, DataType::Timestamp(TimeUnit::Microsecond, _)))
                && let Some(grain) = self.starts(expr)
            {
                buckets.push(Bucket { key, grain, is_date });
            }
        }
        buckets.sort_by_key(|bucket| bucket.grain.width_us);
        self.buckets = buckets;
    }

    /// The grid of an expression that gives the start of the event time's bucket on it: as a timestamp or as a date.
    pub fn starts(&self, expr: &Expr) -> Option<Grain> {
        match expr {
            Expr::ScalarFunction(call) if call.func.name() == "tumble_end" => None,
            Expr::Column(column) => match self.generated.iter().find(|(name, _)| *name == column.name) {
                Some((_, generated)) => self.starts(generated),
                None => (column.name == self.event_time).then_some(Grain { width_us: 1, offset_us: 0 }),
            },
            other => {
                let (grain, constant) = self.grain(other)?;
                constant.then_some(grain)
            }
        }
    }

    /// For a function of the event time: the grid between whose points it is constant, and whether the grid's intervals are exactly
    /// its buckets (weeks and months are only known to change at midnight).
    pub fn grain(&self, expr: &Expr) -> Option<(Grain, bool)> {
        match expr {
            Expr::Column(column) => {
                let (_, generated) = self.generated.iter().find(|(name, _)| *name == column.name)?;
                self.grain(generated)
            }
            Expr::Cast(cast) if *cast.field.data_type() == DataType::Date32 && self.is_event_time(&cast.expr) => {
                Some((Grain::new(DAY_US, 0)?, true))
            }
            Expr::ScalarFunction(call) => {
                let literal = |index: usize| match call.args.get(index) {
                    Some(Expr::Literal(value, _)) => Some(value),
                    _ => None,
                };
                let time = |index: usize| call.args.get(index).is_some_and(|argument| self.is_event_time(argument));
                match call.func.name() {
                    "tumble" | "tumble_end" if time(0) => {
                        let offset = if call.args.len() > 2 { interval_us(literal(2)?)? } else { 0 };
                        Some((Grain::new(interval_us(literal(1)?)?, offset)?, true))
                    }
                    "date_bin" if time(1) => {
                        let origin = if call.args.len() > 2 { timestamp_us(literal(2)?)? } else { 0 };
                        Some((Grain::new(interval_us(literal(0)?)?, origin)?, true))
                    }
                    "date_trunc" if time(1) && call.args.len() == 2 => unit(literal(0)?.try_as_str()??),
                    "date_part" | "extract" if time(1) => part(literal(0)?.try_as_str()??),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// Whether an expression is the event time, or the same number in another timestamp type.
    fn is_event_time(&self, expr: &Expr) -> bool {
        match expr {
            Expr::Column(column) => column.name == self.event_time,
            Expr::Cast(cast) => {
                matches!(cast.field.data_type(), DataType::Timestamp(TimeUnit::Microsecond, _)) && self.is_event_time(&cast.expr)
            }
            _ => false,
        }
    }

    /// An expression with every generated column written out.
    pub fn expanded(&self, expr: Expr) -> Result<Expr> {
        if self.generated.is_empty() {
            return Ok(expr);
        }
        expr.transform_up(|node| match &node {
            Expr::Column(column) => match self.generated.iter().find(|(name, _)| *name == column.name) {
                Some((_, generated)) => Ok(Transformed::yes(generated.clone())),
                None => Ok(Transformed::no(node)),
            },
            _ => Ok(Transformed::no(node)),
        })
        .data()
        .map_err(failure)
    }
}

/// Length of an interval literal without months.
fn interval_us(value: &ScalarValue) -> Option<i64> {
    match value {
        ScalarValue::IntervalMonthDayNano(Some(interval)) if interval.months == 0 && interval.nanoseconds % 1_000 == 0 => {
            i64::from(interval.days).checked_mul(DAY_US)?.checked_add(interval.nanoseconds / 1_000)
        }
        other if matches!(other.data_type(), DataType::Interval(IntervalUnit::DayTime)) => match other {
            ScalarValue::IntervalDayTime(Some(interval)) => {
                i64::from(interval.days).checked_mul(DAY_US)?.checked_add(i64::from(interval.milliseconds) * 1_000)
            }
            _ => None,
        },
        _ => None,
    }
}

/// A timestamp literal.
pub(super) fn timestamp_us(value: &ScalarValue) -> Option<i64> {
    match value {
        ScalarValue::TimestampMicrosecond(value, _) => *value,
        _ => None,
    }
}

/// The grid of `date_trunc`'s unit.
fn unit(unit: &str) -> Option<(Grain, bool)> {
    const WEEK_BEGINS_US: i64 = 4 * DAY_US;
    let grain = |width, through| Grain::new(width, through);
    Some(match unit.to_ascii_lowercase().as_str() {
        "microsecond" | "microseconds" => (grain(1, 0)?, true),
        "millisecond" | "milliseconds" => (grain(1_000, 0)?, true),
        "second" => (grain(SECOND_US, 0)?, true),
        "minute" => (grain(60 * SECOND_US, 0)?, true),
        "hour" => (grain(3_600 * SECOND_US, 0)?, true),
        "day" => (grain(DAY_US, 0)?, true),
        // 1970-01-05 was a Monday.
        "week" => (grain(7 * DAY_US, WEEK_BEGINS_US)?, true),
        "month" | "quarter" | "year" | "decade" | "century" | "millennium" => (grain(DAY_US, 0)?, false),
        _ => return None,
    })
}

/// The grid of `date_part`'s field: it does not change between its points.
fn part(field: &str) -> Option<(Grain, bool)> {
    let width = match field.to_ascii_lowercase().as_str() {
        "minute" => 60 * SECOND_US,
        "hour" => 3_600 * SECOND_US,
        "day" | "dow" | "doy" | "isodow" | "week" | "month" | "quarter" | "year" | "isoyear" => DAY_US,
        _ => return None,
    };
    Some((Grain::new(width, 0)?, false))
}

#[cfg(test)]
mod tests {
    use super::Grain;

    #[test]
    fn grids_divide_and_round() {
        let (five, fifteen) = (Grain::new(5, 0).expect("a grid"), Grain::new(15, 10).expect("a grid"));
        assert!(five.divides(fifteen) && !fifteen.divides(five));
        assert!(!five.divides(Grain::new(15, 3).expect("a grid")));
        assert_eq!((fifteen.floor(-1), fifteen.ceil(-1)), (Some(-5), Some(10)));
        assert_eq!((fifteen.floor(10), fifteen.ceil(10)), (Some(10), Some(10)));
        assert_eq!((five.floor(i64::MIN), five.ceil(i64::MAX)), (None, None));
        assert_eq!(Grain::new(0, 0), None);
    }
}
