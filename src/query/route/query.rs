//! An aggregation of a query in the normal form in which views are compared with it.
//!
//! *Place*: made once for a query by [`super`], from its [`Shape`].

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};

use super::shape::Shape;
use crate::error::Result;
use crate::view::{Matching, Normalizer};

/// Microseconds of a day.
const DAY_US: i64 = 86_400_000_000;

/// Event times from `low` to before `high`, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The least, `i64::MIN` for no bound.
    pub low: i64,
    /// One past the greatest, `i64::MAX` for no bound.
    pub high: i64,
}

impl Range {
    /// All times.
    pub const ALL: Range = Range { low: i64::MIN, high: i64::MAX };

    /// What is in both.
    pub fn and(self, other: Range) -> Range {
        Range { low: self.low.max(other.low), high: self.high.min(other.high) }
    }

    /// Whether nothing is in it.
    pub fn is_empty(self) -> bool {
        self.low >= self.high
    }
}

/// A query's aggregation, ready to be compared.
pub struct Query {
    /// Grouping expressions over the table's columns.
    pub keys: Vec<Expr>,
    /// Aggregates over the table's columns.
    pub calls: Vec<AggregateFunction>,
    /// All conjuncts over the table's columns.
    pub filters: Vec<Expr>,
    /// For each conjunct the event times that it lets through, if that is all that it says.
    pub ranges: Vec<Option<Range>>,
}

impl Query {
    /// Brings a shape into normal form. `matching` is any view's of the table: the table's own part of it is used.
    pub fn new(session: &SessionState, shape: &Shape<'_>, matching: &Matching) -> Result<Query> {
        let own;
        let normalizer = match matching.normalizer.schema().fields().len() == shape.table.table.columns.len() {
            true => &matching.normalizer,
            // The table has grown since the view was made.
            false => {
                own = Normalizer::new(session, &shape.table.table)?;
                &own
            }
        };
        let keys = shape.group_over_table.iter().map(|key| normalizer.expression(key.clone())).collect::<Result<_>>()?;
        let calls = shape.calls_over_table.iter().map(|call| normalizer.call(call)).collect::<Result<_>>()?;
        let mut filters = Vec::new();
        for filter in &shape.filters {
            filters.extend(normalizer.conjuncts(filter.clone())?);
        }
        let ranges = filters.iter().map(|filter| range(matching, filter)).collect();
        Ok(Query { keys, calls, filters, ranges })
    }
}

/// The event times for which a comparison holds.
fn range(matching: &Matching, conjunct: &Expr) -> Option<Range> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = conjunct else { return None };
    let Expr::Literal(value, _) = right.as_ref() else { return None };
    let grain = matching.starts(left)?;
    let value = match value {
        ScalarValue::TimestampMicrosecond(Some(value), _) => *value,
        ScalarValue::Date32(Some(days)) if value.data_type() == DataType::Date32 => i64::from(*days).checked_mul(DAY_US)?,
        _ => return None,
    };
    let next = || grain.floor(value)?.checked_add(grain.width_us);
    Some(match op {
        Operator::GtEq => Range { low: grain.ceil(value)?, high: i64::MAX },
        Operator::Gt => Range { low: next()?, high: i64::MAX },
        Operator::Lt => Range { low: i64::MIN, high: grain.ceil(value)? },
        Operator::LtEq => Range { low: i64::MIN, high: next()? },
        Operator::Eq if grain.floor(value)? == value => Range { low: value, high: next()? },
        // No bucket begins there.
        Operator::Eq => Range { low: 0, high: 0 },
        _ => return None,
    })
}
