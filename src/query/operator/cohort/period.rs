//! The periods of a cohort analysis: the unit that `activity_date` truncates to, how periods are numbered, when one has ended.
//!
//! *Place*: `cohort` finds the [`Period`] in the argument, `cohort::lower` puts its expressions into the plan.

use arrow::datatypes::{DataType, IntervalMonthDayNano};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, Result, ScalarValue};
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};

use crate::query::functions::{session, time, zone};
use crate::query::typing::casts::to;
use crate::types::SqlType;

/// Names of DATE_TRUNC, as written and as typed.
const TRUNCATIONS: [&str; 2] = ["date_trunc", time::TRUNCATE_IN_ZONE];

/// What periods are.
#[derive(Clone, Debug)]
pub struct Period {
    /// As DATE_TRUNC and DATE_DIFF know it, in the singular.
    pub unit: &'static str,
    /// Months, days and nanoseconds of one.
    length: IntervalMonthDayNano,
    /// The zone whose clocks say when one begins: a constant; none for that of the session.
    zone: Option<Expr>,
}

/// What is truncated, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Truncation {
    /// The unit's literal, lower case.
    pub unit: String,
    /// What is truncated.
    pub argument: Expr,
    zone: Option<Expr>,
}

/// The calls of DATE_TRUNC in an expression with different arguments.
pub fn truncations(expression: &Expr) -> Result<Vec<Truncation>> {
    let mut found: Vec<Truncation> = Vec::new();
    expression.apply(|node| {
        if let Expr::ScalarFunction(call) = node
            && TRUNCATIONS.contains(&call.func.name())
            && let [Expr::Literal(unit, _), argument, rest @ ..] = call.args.as_slice()
            && let Some(unit) = unit.try_as_str().flatten()
        {
            let one = Truncation { unit: unit.to_lowercase(), argument: argument.clone(), zone: rest.first().cloned() };
            if !found.contains(&one) {
                found.push(one);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found)
}

/// The names that DATE_TRUNC has for a unit, the one that DATE_DIFF has, and its months, days and nanoseconds.
type Unit = (&'static [&'static str], &'static str, (i32, i32, i64));

const UNITS: [Unit; 11] = [
    (&["microsecond", "microseconds"], "microsecond", (0, 0, 1_000)),
    (&["millisecond", "milliseconds"], "millisecond", (0, 0, 1_000_000)),
    (&["second", "seconds"], "second", (0, 0, 1_000_000_000)),
    (&["minute", "minutes"], "minute", (0, 0, 60_000_000_000)),
    (&["hour", "hours"], "hour", (0, 0, 3_600_000_000_000)),
    (&["day", "days"], "day", (0, 1, 0)),
    (&["week", "weeks"], "week", (0, 7, 0)),
    (&["month", "months"], "month", (1, 0, 0)),
    (&["quarter"], "quarter", (3, 0, 0)),
    (&["year", "years"], "year", (12, 0, 0)),
    (&["decade", "decades"], "decade", (120, 0, 0)),
];

/// The units, for hints.
pub fn units() -> String {
    UNITS.iter().map(|(_, unit, _)| *unit).collect::<Vec<_>>().join(", ")
}

impl Period {
    /// That of a truncation; none when periods of its unit cannot be numbered.
    pub fn of(truncation: &Truncation) -> Option<Period> {
        let (_, unit, (months, days, nanoseconds)) = UNITS.iter().find(|(names, ..)| names.contains(&truncation.unit.as_str()))?;
        let zone = truncation.zone.clone().or_else(|| zone_of(&truncation.argument));
        let zone = zone.filter(|zone| *zone != session::time_zone() && zone.column_refs().is_empty());
        Some(Period { unit, length: IntervalMonthDayNano::new(*months, *days, *nanoseconds), zone })
    }

    /// The number of a period: how many begin after `cohort` until `activity` (integer).
    pub fn number(&self, cohort: (Expr, &DataType), activity: (Expr, &DataType)) -> Expr {
        let unit = Expr::Literal(ScalarValue::Utf8View(Some(self.unit.to_owned())), None);
        to(time::difference().call(vec![unit, self.local(cohort), self.local(activity)]), DataType::Int32)
    }

    /// Whether a cohort's date is always the first of its user's activity dates: `date` truncates the least value of what `activity`
    /// truncates, in the same way. Dates do not go back where the clocks do.
    pub fn begins_with(&self, date: &Expr, activity: &Expr) -> Result<bool> {
        let truncates_column = match activity {
            Expr::ScalarFunction(call) => TRUNCATIONS.contains(&call.func.name()) && matches!(call.args.get(1), Some(Expr::Column(_))),
            _ => false,
        };
        if !truncates_column || self.length.months + self.length.days == 0 {
            return Ok(false);
        }
        let row = date.clone().transform_down(|node| match node {
            Expr::AggregateFunction(mut call)
                if call.func.name() == "min" && call.params.filter.is_none() && call.params.args.len() == 1 =>
            {
                Ok(Transformed::new(call.params.args.remove(0), true, TreeNodeRecursion::Jump))
            }
            other => Ok(Transformed::no(other)),
        })?;
        Ok(row.transformed && row.data == *activity)
    }

    /// Whether a cohort's period has ended by the clock (boolean). `aligned`: the cohort's dates are beginnings of such periods.
    pub fn has_ended(&self, cohort: (Expr, &DataType), period: Expr, aligned: bool) -> Expr {
        let start = self.local(cohort);
        let unit = Expr::Literal(ScalarValue::Utf8View(Some(self.unit.to_owned())), None);
        let start = if aligned { start } else { time::truncate().call(vec![unit, start]) };
        let next = BinaryExpr::new(Box::new(period), Operator::Plus, Box::new(Expr::Literal(ScalarValue::Int32(Some(1)), None)));
        let length = Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(self.length)), None);
        let distance = time::scale().call(vec![length, to(Expr::BinaryExpr(next), DataType::Float64)]);
        let end = Expr::BinaryExpr(BinaryExpr::new(Box::new(start), Operator::Plus, Box::new(distance)));
        let now = zone::to_local(self.zone.clone().unwrap_or_else(session::time_zone), session::clock());
        Expr::BinaryExpr(BinaryExpr::new(Box::new(end), Operator::LtEq, Box::new(now)))
    }

    /// A date or time as the clocks of the periods' zone show it (timestamp).
    fn local(&self, (date, data_type): (Expr, &DataType)) -> Expr {
        match data_type {
            DataType::Timestamp(_, Some(_)) => zone::to_local(self.zone.clone().unwrap_or_else(session::time_zone), date),
            DataType::Date32 => to(date, SqlType::Timestamp.arrow()),
            _ => date,
        }
    }
}

/// The zone of an `AT TIME ZONE` that gives a local time.
fn zone_of(argument: &Expr) -> Option<Expr> {
    let mut found = None;
    let _ = argument.apply(|node| {
        Ok(match node {
            Expr::ScalarFunction(call) if call.func.name() == zone::LOCAL => {
                found = call.args.first().cloned();
                TreeNodeRecursion::Stop
            }
            _ => TreeNodeRecursion::Continue,
        })
    });
    found
}

/// The only column of dates or times that is truncated, if there is one.
pub fn time_column(truncation: &Truncation) -> Option<Column> {
    let columns = truncation.argument.column_refs();
    match columns.into_iter().collect::<Vec<_>>().as_slice() {
        [one] => Some((*one).clone()),
        _ => None,
    }
}
