//! `SESSIONIZE(events, by := user_id, gap := INTERVAL '30' MINUTE [, time := event_time])`: the input's rows with their sessions.
//!
//! Output: the input's columns, then `session_number bigint` (from 1, per value of `by`) and `session_start` (of the type of `time`).
//! A session goes on while each row follows the one before within `gap`, exactly `gap` included, as with SESSION in GROUP BY. Rows
//! without a time or without `by` are kept and have no session.
//!
//! Lowered to window functions: a row begins a session where the row before is more than `gap` ago; counted, that is the session's
//! number; the newest such time so far is its start.

use datafusion::common::{Column, Result, ScalarValue};
use datafusion::functions_aggregate::count::count_udaf;
use datafusion::functions_aggregate::min_max::max_udaf;
use datafusion::functions_window::lead_lag::lag;
use datafusion::logical_expr::expr::WindowFunction;
use datafusion::logical_expr::{
    Expr, ExprFunctionExt, ExprSchemable, LogicalPlan, LogicalPlanBuilder, WindowFrame, WindowFrameBound, WindowFrameUnits,
    WindowFunctionDefinition, when,
};

use super::{Argument, Call, Operator};
use crate::error::{Error, SqlState};
use crate::query::functions::window::session_break;
use crate::query::rewrite::SUFFIX;

const NUMBER: &str = "session_number";
const START: &str = "session_start";

/// The operator.
#[derive(Debug)]
pub struct Sessionize;

impl Operator for Sessionize {
    fn name(&self) -> &'static str {
        "SESSIONIZE"
    }

    fn arguments(&self) -> &'static [Argument] {
        const { &[Argument::required("by"), Argument::required("gap"), Argument::optional("time")] }
    }

    fn example(&self) -> &'static str {
        "SESSIONIZE(events, by := user_id, gap := INTERVAL '30' MINUTE)"
    }

    fn plan(&self, mut call: Call<'_>) -> Result<LogicalPlan> {
        let by = call.expressions("by")?;
        let gap = call.fixed_interval("gap")?.ok_or_else(|| Error::internal("a session without a gap"))?;
        let time = call.time("time")?;
        let columns = call.input.columns();
        if let Some(taken) = columns.iter().find(|column| column.name == NUMBER || column.name == START) {
            return Err(Error::new(
                SqlState::DUPLICATE_COLUMN,
                format!("column \"{}\" of the input is one that SESSIONIZE adds", taken.name),
            )
            .hint("Give it another name in a subquery.")
            .into());
        }
        let order = vec![time.clone().sort(true, false), call.input.order().sort(true, false)];
        let rows = |expr: Expr| -> Result<Expr> {
            let so_far = WindowFrame::new_bounds(
                WindowFrameUnits::Rows,
                WindowFrameBound::Preceding(ScalarValue::UInt64(None)),
                WindowFrameBound::CurrentRow,
            );
            expr.partition_by(by.clone()).order_by(order.clone()).window_frame(so_far).build()
        };
        let (before, begins, number, start) =
            (format!("{SUFFIX}before"), format!("{SUFFIX}begins"), format!("{SUFFIX}number"), format!("{SUFFIX}start"));
        let column = |name: &str| Expr::Column(Column::new_unqualified(name));
        let none = |expr: &Expr, schema| {
            Ok::<_, datafusion::error::DataFusionError>(Expr::Literal(ScalarValue::try_from(&expr.get_type(schema)?)?, None))
        };
        let previous = LogicalPlanBuilder::from(call.input.plan.clone())
            .window(vec![rows(lag(time.clone(), Some(1), None))?.alias(&before)])?
            .build()?;
        let mut kept: Vec<Expr> = columns.iter().cloned().map(Expr::Column).collect();
        kept.extend(call.input.arrival.clone().map(Expr::Column));
        kept.push(session_break().call(vec![time.clone(), column(&before), gap]).alias(&begins));
        let over = |function, name: &str| {
            rows(Expr::from(WindowFunction::new(WindowFunctionDefinition::AggregateUDF(function), vec![column(&begins)])))
                .map(|expr| expr.alias(name))
        };
        let numbered = LogicalPlanBuilder::from(previous)
            .project(kept)?
            .window(vec![over(count_udaf(), &number)?, over(max_udaf(), &start)?])?
            .build()?;
        let mut missing = time.clone().is_null();
        for key in by.iter().cloned() {
            missing = missing.or(key.is_null());
        }
        let schema = numbered.schema();
        let mut shown: Vec<Expr> = columns.iter().map(|shown| Expr::Column(shown.clone()).alias(&shown.name)).collect();
        for (value, name) in [(column(&number), NUMBER), (column(&start), START)] {
            shown.push(when(missing.clone(), none(&value, schema)?).otherwise(value)?.alias(name));
        }
        LogicalPlanBuilder::from(numbered).project(shown)?.build()
    }
}
