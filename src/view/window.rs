//! Which key of a view is its time bucket.
//!
//! *Place*: `compile` asks; blocks are cut and pruned by it. It decides only where state is kept, never what it is: a key
//! that is not recognised costs pruning, not correctness.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Date32Type, TimeUnit, TimestampMicrosecondType};
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::Expr;

use crate::catalog::Table;

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

/// Finds the time bucket among the keys (over the table's columns): the narrowest one.
pub(super) fn detect(table: &Table, keys: &[Expr], types: &[DataType]) -> Option<TimeKey> {
    let event_time = &table.columns.get(table.watermark?.column)?.name;
    let mut best: Option<TimeKey> = None;
    for (key, (expr, data_type)) in keys.iter().zip(types).enumerate() {
        let days = match data_type {
            DataType::Timestamp(TimeUnit::Microsecond, _) => false,
            DataType::Date32 => true,
            _ => continue,
        };
        if !derives(table, expr, event_time) {
            continue;
        }
        let width_us = width(expr, data_type);
        let span_us = width_us.map_or(DAY_US, |width| width.saturating_mul(BUCKETS_PER_GROUP));
        let span = if days { BUCKETS_PER_GROUP } else { span_us.max(1) };
        let narrower = best.as_ref().is_none_or(|best| width_us.unwrap_or(i64::MAX) < best.width_us.unwrap_or(i64::MAX));
        if narrower {
            best = Some(TimeKey { key, width_us, span });
        }
    }
    best
}

/// Whether an expression reads the event time, or a column generated from it, and nothing else.
fn derives(table: &Table, expr: &Expr, event_time: &str) -> bool {
    let mut found = false;
    let mut foreign = false;
    let walked = expr.apply(|node| {
        if let Expr::Column(column) = node {
            let generated = table
                .columns
                .iter()
                .find(|candidate| candidate.name == column.name)
                .and_then(|candidate| candidate.generated.as_ref())
                .is_some_and(|text| text.contains(event_time));
            if column.name == event_time || generated {
                found = true;
            } else {
                foreign = true;
            }
        }
        Ok(TreeNodeRecursion::Continue)
    });
    walked.is_ok() && found && !foreign
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

fn literal(expr: &Expr) -> Option<&ScalarValue> {
    match expr {
        Expr::Literal(value, _) => Some(value),
        Expr::Alias(alias) => literal(&alias.expr),
        _ => None,
    }
}

fn interval_us(value: &ScalarValue) -> Option<i64> {
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
