//! Whether a query's filter keeps only rows that a view's filter keeps.
//!
//! *Place*: [`super::prove`]. Both sides are conjuncts in normal form over the table's columns.
//!
//! *Invariant*: true means that every row for which all of the query's conjuncts are true makes the view's conjunct true; NULL is
//! not true on either side.

use std::cmp::Ordering;

use datafusion::common::ScalarValue;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};

/// Whether the conjuncts `query` imply `view`.
pub fn implied(query: &[Expr], view: &Expr) -> bool {
    if query.contains(view) {
        return true;
    }
    match view {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) if implied(query, left) || implied(query, right) => return true,
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => return implied(query, left) && implied(query, right),
        Expr::IsNotNull(inner) => return query.iter().any(|conjunct| is_strict_in(conjunct, inner)),
        _ => {}
    }
    let Some((subject, wanted)) = Values::of(view) else { return false };
    query.iter().filter_map(Values::of).any(|(other, given)| other == subject && wanted.holds(&given))
        || bounds_hold(query, subject, &wanted)
}

/// What a conjunct lets an expression be.
enum Values<'a> {
    /// One of these.
    Among(Vec<&'a ScalarValue>),
    /// None of these.
    NotAmong(Vec<&'a ScalarValue>),
    /// `op` and the bound: `<`, `<=`, `>`, `>=`.
    Bound(Operator, &'a ScalarValue),
}

impl<'a> Values<'a> {
    fn of(conjunct: &'a Expr) -> Option<(&'a Expr, Values<'a>)> {
        match conjunct {
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => match op {
                Operator::Or => {
                    let (subject, one) = Values::of(left)?;
                    let (other, two) = Values::of(right)?;
                    match (one, two) {
                        (Values::Among(mut one), Values::Among(two)) if subject == other => {
                            one.extend(two);
                            Some((subject, Values::Among(one)))
                        }
                        _ => None,
                    }
                }
                _ => {
                    let value = literal(right)?;
                    let values = match op {
                        Operator::Eq => Values::Among(vec![value]),
                        Operator::NotEq => Values::NotAmong(vec![value]),
                        Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq => Values::Bound(*op, value),
                        _ => return None,
                    };
                    Some((left.as_ref(), values))
                }
            },
            Expr::InList(list) => {
                let values = list.list.iter().map(literal).collect::<Option<Vec<_>>>()?;
                Some((list.expr.as_ref(), if list.negated { Values::NotAmong(values) } else { Values::Among(values) }))
            }
            _ => None,
        }
    }

    /// Whether everything that `given` allows is allowed here.
    fn holds(&self, given: &Values<'_>) -> bool {
        match (self, given) {
            (_, Values::Among(given)) => given.iter().all(|value| self.allows(value)),
            (Values::NotAmong(wanted), Values::NotAmong(given)) => wanted.iter().all(|value| given.contains(value)),
            (Values::NotAmong(wanted), Values::Bound(op, bound)) => wanted.iter().all(|value| compare(value, *op, bound) == Some(false)),
            (Values::Bound(wanted, limit), Values::Bound(op, bound)) => within(*op, bound, *wanted, limit),
            _ => false,
        }
    }

    fn allows(&self, value: &ScalarValue) -> bool {
        match self {
            Values::Among(values) => values.contains(&value),
            Values::NotAmong(values) => values.iter().all(|other| compare(value, Operator::Eq, other) == Some(false)),
            Values::Bound(op, bound) => compare(value, *op, bound) == Some(true),
        }
    }
}

/// `x op bound` implies `x wanted limit`.
fn within(op: Operator, bound: &ScalarValue, wanted: Operator, limit: &ScalarValue) -> bool {
    let order = bound.partial_cmp(limit);
    match (op, wanted) {
        (Operator::Lt, Operator::Lt | Operator::LtEq) | (Operator::LtEq, Operator::LtEq) => {
            matches!(order, Some(Ordering::Less | Ordering::Equal))
        }
        (Operator::LtEq, Operator::Lt) => order == Some(Ordering::Less),
        (Operator::Gt, Operator::Gt | Operator::GtEq) | (Operator::GtEq, Operator::GtEq) => {
            matches!(order, Some(Ordering::Greater | Ordering::Equal))
        }
        (Operator::GtEq, Operator::Gt) => order == Some(Ordering::Greater),
        _ => false,
    }
}

/// Whether two bounds of the query leave only one value, which is allowed.
fn bounds_hold(query: &[Expr], subject: &Expr, wanted: &Values<'_>) -> bool {
    let bound = |wanted: Operator| {
        query.iter().filter_map(Values::of).find_map(|(other, values)| match values {
            Values::Bound(op, value) if op == wanted && other == subject => Some(value),
            _ => None,
        })
    };
    match (bound(Operator::GtEq), bound(Operator::LtEq)) {
        (Some(low), Some(high)) if low == high => wanted.allows(low),
        _ => false,
    }
}

fn compare(value: &ScalarValue, op: Operator, other: &ScalarValue) -> Option<bool> {
    if value.data_type() != other.data_type() {
        return None;
    }
    let order = value.partial_cmp(other)?;
    Some(match op {
        Operator::Eq => order == Ordering::Equal,
        Operator::Lt => order == Ordering::Less,
        Operator::LtEq => order != Ordering::Greater,
        Operator::Gt => order == Ordering::Greater,
        Operator::GtEq => order != Ordering::Less,
        _ => return None,
    })
}

fn literal(expr: &Expr) -> Option<&ScalarValue> {
    match expr {
        Expr::Literal(value, _) if !value.is_null() => Some(value),
        _ => None,
    }
}

/// Whether a conjunct can only be true where `subject` is not NULL.
fn is_strict_in(conjunct: &Expr, subject: &Expr) -> bool {
    match conjunct {
        Expr::IsNotNull(inner) => inner.as_ref() == subject,
        Expr::Like(like) => like.expr.as_ref() == subject,
        Expr::InList(list) => list.expr.as_ref() == subject && list.list.iter().all(|value| matches!(value, Expr::Literal(..))),
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match op {
            Operator::Eq | Operator::NotEq | Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq => {
                left.as_ref() == subject || right.as_ref() == subject
            }
            Operator::Or => is_strict_in(left, subject) && is_strict_in(right, subject),
            Operator::And => is_strict_in(left, subject) || is_strict_in(right, subject),
            _ => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use datafusion::logical_expr::{Expr, col, lit};

    use super::implied;

    fn check(query: &[Expr], view: Expr, expected: bool) {
        assert_eq!(implied(query, &view), expected, "{query:?} => {view}");
    }

    #[test]
    fn what_implies_what() {
        let kind = |value: &str| col("kind").eq(lit(value));
        check(&[kind("a")], kind("a"), true);
        check(&[kind("a")], kind("b"), false);
        check(&[], kind("a"), false);
        check(&[kind("a")], col("kind").in_list(vec![lit("a"), lit("b")], false), true);
        check(&[kind("a").or(kind("b"))], col("kind").in_list(vec![lit("a"), lit("b"), lit("c")], false), true);
        check(&[kind("a").or(kind("d"))], col("kind").in_list(vec![lit("a"), lit("b")], false), false);
        check(&[kind("a")], kind("a").or(kind("b")), true);
        check(&[kind("a")], col("kind").not_eq(lit("b")), true);
        check(&[kind("a")], col("kind").is_not_null(), true);
        check(&[col("kind").is_null()], col("kind").is_not_null(), false);
        check(&[col("x").gt(lit(5))], col("x").gt_eq(lit(5)), true);
        check(&[col("x").gt_eq(lit(5))], col("x").gt(lit(5)), false);
        check(&[col("x").lt(lit(5))], col("x").lt(lit(6)), true);
        check(&[col("x").lt(lit(5))], col("x").gt(lit(1)), false);
        check(&[col("x").eq(lit(5))], col("x").gt(lit(1)), true);
        check(&[col("x").gt(lit(5))], col("x").not_eq(lit(5)), true);
        check(&[col("x").gt(lit(5))], col("x").not_eq(lit(6)), false);
        // Types that do not compare imply nothing.
        check(&[col("x").eq(lit(5_i64))], col("x").gt(lit(1_i32)), false);
    }
}
