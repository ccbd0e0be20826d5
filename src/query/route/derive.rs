//! Expressions over a table, computed from a view's keys instead.
//!
//! *Place*: [`super::prove`] derives grouping, leftover filters and arguments.
//!
//! *Invariant*: a derived expression over a state row has the value that the expression has for every row of the table that went
//! into that state row.

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{Column, TableReference};
use datafusion::logical_expr::{BinaryExpr, Cast, Expr, ExprSchemable, Operator, Volatility};

use crate::view::{Bucket, Matching};

/// Derives for one view.
pub struct Keys<'a> {
    matching: &'a Matching,
    /// Of the scan of states.
    relation: &'a TableReference,
}

impl<'a> Keys<'a> {
    /// For the view of `matching`, whose states are scanned as `relation`.
    pub fn new(matching: &'a Matching, relation: &'a TableReference) -> Self {
        Self { matching, relation }
    }

    /// A key's column in the scan of states.
    pub fn key(&self, index: usize) -> Expr {
        Expr::Column(Column::new(Some(self.relation.clone()), format!("k{index}")))
    }

    /// The name of the scan of states.
    pub fn relation(&self) -> &TableReference {
        self.relation
    }

    /// An aggregate's states in the scan of states.
    pub fn state(&self, index: usize) -> Expr {
        Expr::Column(Column::new(Some(self.relation.clone()), format!("s{index}")))
    }

    /// The expression over the view's keys; none when they do not determine it.
    pub fn derive(&self, expr: &Expr) -> Option<Expr> {
        if let Some(index) = self.matching.keys.iter().position(|key| key == expr) {
            return Some(self.key(index));
        }
        if let Some((grain, _)) = self.matching.grain(expr)
            && let Some(bucket) = self.matching.buckets.iter().find(|bucket| bucket.grain.divides(grain))
        {
            return self.over_bucket(expr, bucket);
        }
        match expr {
            Expr::Literal(..) => Some(expr.clone()),
            Expr::Column(column) => {
                if let Some(value) = self.pinned(expr) {
                    return Some(value);
                }
                let (_, generated) = self.matching.generated.iter().find(|(name, _)| *name == column.name)?;
                self.derive(generated)
            }
            Expr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => None,
            Expr::ScalarFunction(_)
            | Expr::BinaryExpr(_)
            | Expr::Cast(_)
            | Expr::TryCast(_)
            | Expr::Case(_)
            | Expr::Not(_)
            | Expr::Negative(_)
            | Expr::IsNull(_)
            | Expr::IsNotNull(_)
            | Expr::IsTrue(_)
            | Expr::IsFalse(_)
            | Expr::IsUnknown(_)
            | Expr::IsNotTrue(_)
            | Expr::IsNotFalse(_)
            | Expr::IsNotUnknown(_)
            | Expr::Between(_)
            | Expr::InList(_)
            | Expr::Like(_)
            | Expr::SimilarTo(_)
            | Expr::Alias(_) => self.children(expr),
            _ => None,
        }
    }

    /// The one value that the view's filter lets a column be.
    fn pinned(&self, column: &Expr) -> Option<Expr> {
        let kind = column.get_type(self.matching.normalizer.schema()).ok()?;
        self.matching.filters.iter().find_map(|filter| match filter {
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) if left.as_ref() == column => match right.as_ref() {
                // Equal floating point numbers need not be the same.
                Expr::Literal(value, _) if !value.is_null() && value.data_type() == kind && !kind.is_floating() => {
                    Some(right.as_ref().clone())
                }
                _ => None,
            },
            _ => None,
        })
    }

    fn children(&self, expr: &Expr) -> Option<Expr> {
        let mut whole = true;
        let derived = expr.clone().map_children(|child| {
            Ok(match self.derive(&child) {
                Some(derived) => Transformed::yes(derived),
                None => {
                    whole = false;
                    Transformed::no(child)
                }
            })
        });
        derived.ok().filter(|_| whole).map(|derived| derived.data)
    }

    /// A function of the event time that is constant on a bucket, of the bucket's start.
    fn over_bucket(&self, expr: &Expr, bucket: &Bucket) -> Option<Expr> {
        let schema = self.matching.normalizer.schema();
        let time = Column::new_unqualified(&self.matching.event_time);
        let kind = Expr::Column(time.clone()).get_type(schema).ok()?;
        let key = self.key(bucket.key);
        let same = self.matching.keys[bucket.key].get_type(schema).ok()? == kind;
        let start = if same { key } else { Expr::Cast(Cast::new(Box::new(key), kind)) };
        let expanded = self.matching.expanded(expr.clone()).ok()?;
        expanded
            .transform_up(|node| match node {
                Expr::Column(column) if column.name == time.name => Ok(Transformed::yes(start.clone())),
                other => Ok(Transformed::no(other)),
            })
            .data()
            .ok()
    }
}
