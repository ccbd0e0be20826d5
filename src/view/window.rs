//! Which key of a view is its time bucket.
//!
//! *Place*: `compile` asks; blocks are cut and pruned by it. It decides only where state is kept, never what it is: a key
//! that is not recognised costs pruning, not correctness.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Date32Type, TimeUnit, TimestampMicrosecondType};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, ScalarValue};
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::utils::conjunction;

use super::expand::WINDOW_COLUMN;
use super::failure::failure;
use crate::catalog::Table;
use crate::error::Result;

const SECOND_US: i64 = 1_000_000;
const DAY_US: i64 = 86_400 * SECOND_US;

/// Buckets of one block group: few enough that a range prunes well, enough that a block is worth its index entry.
const BUCKETS_PER_GROUP: i64 = 64;

/// The group of rows whose bucket is NULL.
pub(super) const NULL_GROUP: i64 = i64::MIN;

/// The group of a view without a time bucket.
pub(super) const ONE_GROUP: i64 = 0;

/// A timestamp or date typed key that derives from the event time.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TimeKey {
    /// Index among the keys.
    pub(super) key: usize,
    /// Fixed width of a bucket in microseconds; none for months, years and bare columns.
    pub(super) width_us: Option<i64>,
    /// Blocks hold whole multiples of this, in the key's own unit (microseconds or days).
    pub(super) span: i64,
}

impl TimeKey {
    /// The block group of a bucket in the key's unit.
    pub(super) fn group(&self, bucket: i64) -> i64 {
        bucket.div_euclid(self.span)
    }
}

/// The calls of HOP in an expression.
pub(super) fn hops(expr: &Expr) -> Result<Vec<Expr>> {
    let mut calls = Vec::new();
    expr.apply(|node| {
        if is_call(node, "hop") {
            calls.push(node.clone());
        }
        Ok(TreeNodeRecursion::Continue)
    })
    .map_err(failure)?;
    Ok(calls)
}

/// An expression with the start of a row's window, a column of expanded rows, in place of the call.
pub(super) fn over_windows(expr: Expr) -> Result<Expr> {
    expr.transform_up(|node| {
        Ok(match is_call(&node, "hop") {
            true => Transformed::yes(Expr::Column(Column::new_unqualified(WINDOW_COLUMN))),
            false => Transformed::no(node),
        })
    })
    .data()
    .map_err(failure)
}

/// Filters over rows, and filters over windows with the start in place of the call.
pub(super) fn split(filters: &[Expr]) -> Result<(Option<Expr>, Option<Expr>)> {
    let (mut of_rows, mut of_windows) = (Vec::new(), Vec::new());
    for filter in filters {
        match hops(filter)?.is_empty() {
            true => of_rows.push(filter.clone()),
            false => of_windows.push(over_windows(filter.clone())?),
        }
    }
    Ok((conjunction(of_rows), conjunction(of_windows)))
}

/// Time and gap of a key that is a session's start.
pub(super) fn session(key: &Expr) -> Option<(&Expr, &Expr)> {
    match key {
        Expr::Alias(alias) => session(&alias.expr),
        Expr::ScalarFunction(call) if call.func.name() == "session" => call.args.first().zip(call.args.get(1)),
        _ => None,
    }
}

fn is_call(expr: &Expr, name: &str) -> bool {
    matches!(expr, Expr::ScalarFunction(call) if call.func.name() == name)
}

/// Finds the time bucket among the keys: the narrowest one. They are over the table's columns or over expanded rows, whose
/// windows start by the expression `window`. Windows that overlap have no width: rows cannot be told from a bucket.
pub(super) fn detect(table: &Table, keys: &[Expr], types: &[DataType], window: Option<&Expr>) -> Option<TimeKey> {
    let event_time = &table.columns.get(table.watermark?.column)?.name;
    let mut best: Option<TimeKey> = None;
    for (key, (expr, data_type)) in keys.iter().zip(types).enumerate() {
        let days = match data_type {
            DataType::Timestamp(TimeUnit::Microsecond, _) => false,
            DataType::Date32 => true,
            _ => continue,
        };
        let mut reads = Reads { table, event_time, window, found: false, foreign: false };
        reads.walk(expr);
        if !reads.found || reads.foreign {
            continue;
        }
        // A bucket of local time has no fixed place on the time line.
        let width_us = width(expr, data_type).filter(|_| window.is_none() && !in_zone(expr));
        let span_us = width_us.map_or(DAY_US, |width| width.saturating_mul(BUCKETS_PER_GROUP));
        let span = if days { BUCKETS_PER_GROUP } else { span_us.max(1) };
        let narrower = best.as_ref().is_none_or(|best| width_us.unwrap_or(i64::MAX) < best.width_us.unwrap_or(i64::MAX));
        if narrower {
            best = Some(TimeKey { key, width_us, span });
        }
    }
    best
}

/// Whether an expression reads the event time, or a column generated from it, and nothing else. The zone that a time is put in
/// may come from a column: it moves a bucket by hours, and buckets only decide where state is kept.
struct Reads<'a> {
    table: &'a Table,
    event_time: &'a str,
    window: Option<&'a Expr>,
    found: bool,
    foreign: bool,
}

impl Reads<'_> {
    fn walk(&mut self, expr: &Expr) {
        match expr {
            Expr::Column(column) if column.name == WINDOW_COLUMN => match self.window {
                Some(Expr::ScalarFunction(hop)) => hop.args.iter().for_each(|argument| self.walk(argument)),
                _ => self.foreign = true,
            },
            Expr::Column(column) => {
                let known = self.table.columns.iter().find(|candidate| candidate.name == column.name);
                let generated = known.and_then(|column| column.generated.as_ref()).is_some_and(|text| text.contains(self.event_time));
                let own = column.name == self.event_time || generated;
                self.found |= own;
                self.foreign |= !own;
            }
            Expr::ScalarFunction(call) => {
                let zone = zone_argument(call.func.name());
                let others = call.args.iter().enumerate().filter(|(index, _)| Some(*index) != zone);
                others.for_each(|(_, argument)| self.walk(argument));
            }
            other => {
                let walked = other.apply_children(|child| {
                    self.walk(child);
                    Ok(TreeNodeRecursion::Continue)
                });
                self.foreign |= walked.is_err();
            }
        }
    }
}

/// Which argument of a function is a time zone.
fn zone_argument(function: &str) -> Option<usize> {
    match function {
        "timezone_local" | "timezone_instant" => Some(0),
        "date_trunc_in_zone" => Some(2),
        _ => None,
    }
}

fn width(expr: &Expr, data_type: &DataType) -> Option<i64> {
    match expr {
        Expr::Alias(alias) => width(&alias.expr, data_type),
        Expr::Cast(cast) => {
            let inner = width(&cast.expr, data_type);
            if *data_type == DataType::Date32 { Some(inner.unwrap_or(DAY_US).max(DAY_US)) } else { inner }
        }
        Expr::ScalarFunction(call) => {
            let literal = |index: usize| call.args.get(index).and_then(literal);
            match call.func.name() {
                "tumble" => literal(1).and_then(interval_us),
                "date_bin" => literal(0).and_then(interval_us),
                "date_trunc" => literal(0).and_then(|unit| unit_us(unit.try_as_str()??)),
                _ => None,
            }
        }
        _ if *data_type == DataType::Date32 => Some(DAY_US),
        _ => None,
    }
}

fn in_zone(expr: &Expr) -> bool {
    expr.exists(|node| Ok(matches!(node, Expr::ScalarFunction(call) if zone_argument(call.func.name()).is_some()))).unwrap_or(true)
}

pub(super) fn literal(expr: &Expr) -> Option<&ScalarValue> {
    match expr {
        Expr::Literal(value, _) => Some(value),
        Expr::Alias(alias) => literal(&alias.expr),
        _ => None,
    }
}

pub(super) fn interval_us(value: &ScalarValue) -> Option<i64> {
    let width = match value {
        ScalarValue::IntervalMonthDayNano(Some(interval)) if interval.months == 0 => {
            i64::from(interval.days).checked_mul(DAY_US)?.checked_add(interval.nanoseconds / 1_000)?
        }
        ScalarValue::IntervalDayTime(Some(interval)) => {
            i64::from(interval.days).checked_mul(DAY_US)?.checked_add(i64::from(interval.milliseconds) * 1_000)?
        }
        ScalarValue::DurationMicrosecond(Some(width)) => *width,
        _ => return None,
    };
    (width > 0).then_some(width)
}

fn unit_us(unit: &str) -> Option<i64> {
    Some(match unit.to_ascii_lowercase().as_str() {
        "microsecond" | "microseconds" => 1,
        "millisecond" | "milliseconds" => 1_000,
        "second" => SECOND_US,
        "minute" => 60 * SECOND_US,
        "hour" => 3_600 * SECOND_US,
        "day" => DAY_US,
        "week" => 7 * DAY_US,
        _ => return None,
    })
}

/// A time key's values in its own unit; none where NULL.
pub(super) fn buckets(array: &ArrayRef) -> Vec<Option<i64>> {
    match array.data_type() {
        DataType::Timestamp(TimeUnit::Microsecond, _) => array.as_primitive::<TimestampMicrosecondType>().iter().collect(),
        DataType::Date32 => array.as_primitive::<Date32Type>().iter().map(|day| day.map(i64::from)).collect(),
        _ => vec![None; array.len()],
    }
}
