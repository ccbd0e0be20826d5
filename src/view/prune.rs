//! What filters over a view's key columns say: which rows count, and which blocks can hold them.
//!
//! *Place*: `read` asks before it merges anything.
//!
//! *Invariants*: a filter that is over keys alone is applied exactly to state rows, because it is true or false for a whole
//! group; bounds derived from it are never narrower than it.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, ScalarValue};
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{BinaryExpr, Expr, Operator, Volatility};
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};

use super::blocks::Block;
use super::failure::failure;
use super::slots::slot_of;
use super::spec::Spec;
use super::window::NULL_GROUP;
use crate::error::Result;

/// What a scan's filters come to.
#[derive(Debug)]
pub(super) struct Pruning {
    /// Over state rows, whose first columns are the keys. None keeps all.
    pub(super) predicate: Option<Arc<dyn PhysicalExpr>>,
    /// Slots that can hold matching rows, ascending; none: all.
    pub(super) slots: Option<Vec<u8>>,
    /// Least and greatest bucket in the time key's unit, inclusive.
    pub(super) low: i64,
    pub(super) high: i64,
    /// Whether all filters are in the predicate.
    pub(super) exact: bool,
}

/// A filter over output columns, rewritten over key columns `k0`, `k1`, ...; none when it needs anything else.
pub(super) fn over_keys(spec: &Spec, filter: &Expr) -> Option<Expr> {
    let mut plain = true;
    filter
        .apply(|node| {
            plain = match node {
                Expr::ScalarFunction(call) => call.func.signature().volatility == Volatility::Immutable,
                Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) | Expr::SetComparison(_) => false,
                Expr::OuterReferenceColumn(..) | Expr::Placeholder(_) => false,
                Expr::Column(column) => key_of(spec, column).is_some(),
                _ => true,
            };
            Ok(if plain { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
        })
        .ok()?;
    if !plain {
        return None;
    }
    filter
        .clone()
        .transform_up(|node| match &node {
            Expr::Column(column) => Ok(match key_of(spec, column) {
                Some(key) => Transformed::yes(Expr::Column(Column::new_unqualified(format!("k{key}")))),
                None => Transformed::no(node),
            }),
            _ => Ok(Transformed::no(node)),
        })
        .data()
        .ok()
}

fn key_of(spec: &Spec, column: &Column) -> Option<usize> {
    let key = spec.finish.output_keys[spec.finish.schema.index_of(&column.name).ok()?];
    // A session's start is known only when its fragments are joined.
    key.filter(|key| spec.session.as_ref().is_none_or(|session| session.key != *key))
}

impl Pruning {
    /// Reads the filters of a scan; `kept`, over keys, is one more.
    pub(super) fn new(spec: &Spec, session: &SessionState, filters: &[Expr], kept: Option<Expr>) -> Result<Pruning> {
        let mut over: Vec<Expr> = filters.iter().filter_map(|filter| over_keys(spec, filter)).collect();
        let exact = over.len() == filters.len();
        over.extend(kept);
        Ok(Pruning { exact, ..Self::of_keys(spec, session, over)? })
    }

    /// Of filters that are over key columns `k0`, `k1`, ... already.
    pub(super) fn of_keys(spec: &Spec, session: &SessionState, filters: Vec<Expr>) -> Result<Pruning> {
        let mut pruning = Pruning { predicate: None, slots: None, low: i64::MIN, high: i64::MAX, exact: true };
        let Some(all) = conjunction(filters) else { return Ok(pruning) };
        let schema = DFSchema::try_from(Arc::clone(&spec.key_schema)).map_err(failure)?;
        let context = PhysicalPlanningContext::default();
        pruning.predicate = Some(create_physical_expr(&all, &schema, session.execution_props(), &context).map_err(failure)?);
        let conjuncts = split_conjunction(&all);
        pruning.slots = slots(spec, &conjuncts);
        if let Some(time) = &spec.time {
            let name = format!("k{}", time.key);
            for conjunct in &conjuncts {
                pruning.narrow(&name, conjunct, spec.key_schema.field(time.key).data_type());
            }
        }
        Ok(pruning)
    }

    fn narrow(&mut self, name: &str, conjunct: &Expr, data_type: &DataType) {
        match conjunct {
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                let (op, value) = match (bound(left, name, right), bound(right, name, left)) {
                    (Some(value), _) => (Some(*op), value),
                    (None, Some(value)) => (op.swap(), value),
                    (None, None) => return,
                };
                let (Some(op), Some(value)) = (op, in_unit(value, data_type)) else { return };
                match op {
                    Operator::Eq => {
                        self.low = self.low.max(value);
                        self.high = self.high.min(value);
                    }
                    Operator::Gt => self.low = self.low.max(value.saturating_add(1)),
                    Operator::GtEq => self.low = self.low.max(value),
                    Operator::Lt => self.high = self.high.min(value.saturating_sub(1)),
                    Operator::LtEq => self.high = self.high.min(value),
                    _ => {}
                }
            }
            Expr::Between(between) if !between.negated => {
                if let Some(low) = bound(&between.expr, name, &between.low).and_then(|value| in_unit(value, data_type)) {
                    self.low = self.low.max(low);
                }
                if let Some(high) = bound(&between.expr, name, &between.high).and_then(|value| in_unit(value, data_type)) {
                    self.high = self.high.min(high);
                }
            }
            _ => {}
        }
    }

    /// Whether buckets of a range (its end not in it, in the time key's unit) can hold matching rows.
    pub(super) fn reaches(&self, from: i64, to: i64) -> bool {
        self.low < to && from <= self.high
    }

    /// Whether every bucket, and NULL, is in bounds.
    fn unbounded(&self) -> bool {
        self.low == i64::MIN && self.high == i64::MAX
    }

    /// Whether a block can hold matching rows.
    pub(super) fn admits(&self, block: &Block) -> bool {
        let entry = &block.entry;
        let in_time = self.unbounded() || (block.name.group != NULL_GROUP && entry.bucket_min <= self.high && entry.bucket_max >= self.low);
        in_time && self.slots.as_ref().is_none_or(|slots| slots.iter().any(|slot| (block.name.slot..=entry.slot_last).contains(slot)))
    }

    /// About how many of a block's rows are in the slots asked for.
    pub(super) fn rows(&self, block: &Block) -> usize {
        self.share(block, block.entry.rows as usize)
    }

    /// About how much it is to hold these rows.
    pub(super) fn weight(&self, block: &Block) -> usize {
        self.share(block, block.entry.weight())
    }

    /// About how many bytes they have.
    pub(super) fn bytes(&self, block: &Block) -> usize {
        self.share(block, block.entry.bytes as usize)
    }

    fn share(&self, block: &Block, rows: usize) -> usize {
        let Some(slots) = &self.slots else { return rows };
        let wanted = slots.iter().filter(|slot| (block.name.slot..=block.entry.slot_last).contains(slot)).count();
        let held = usize::from(block.entry.slot_last - block.name.slot) + 1;
        (rows * wanted).div_ceil(held)
    }
}

/// The literal that a column is compared with.
fn bound<'a>(column: &Expr, name: &str, value: &'a Expr) -> Option<&'a ScalarValue> {
    match (column, value) {
        (Expr::Column(column), Expr::Literal(value, _)) if column.name == name && !value.is_null() => Some(value),
        _ => None,
    }
}

/// A literal in the time key's unit; none when it is of another type, so that nothing is rounded.
fn in_unit(value: &ScalarValue, data_type: &DataType) -> Option<i64> {
    match (value, data_type) {
        (ScalarValue::TimestampMicrosecond(Some(value), _), DataType::Timestamp(TimeUnit::Microsecond, _)) => Some(*value),
        (ScalarValue::Date32(Some(value)), DataType::Date32) => Some(i64::from(*value)),
        _ => None,
    }
}

/// The slots that equality of all slot keys allows.
fn slots(spec: &Spec, conjuncts: &[&Expr]) -> Option<Vec<u8>> {
    let mut choices: Vec<Vec<ArrayRef>> = Vec::new();
    for key in &spec.slot_keys {
        let name = format!("k{key}");
        let data_type = spec.key_schema.field(*key).data_type();
        let values = conjuncts.iter().find_map(|conjunct| values(conjunct, &name))?;
        let arrays = values
            .into_iter()
            .map(|value| value.cast_to(data_type).ok().filter(|cast| !cast.is_null())?.to_array_of_size(1).ok())
            .collect::<Option<Vec<_>>>()?;
        choices.push(arrays);
    }
    // One key with any number of values, or several with one each.
    let mut slots: Vec<u8> = match choices.as_slice() {
        [] => return None,
        [values] => values.iter().map(|value| slot_of(std::slice::from_ref(value))).collect(),
        several if several.iter().all(|values| values.len() == 1) => {
            vec![slot_of(&several.iter().map(|values| Arc::clone(&values[0])).collect::<Vec<_>>())]
        }
        _ => return None,
    };
    slots.sort_unstable();
    slots.dedup();
    Some(slots)
}

/// The literals that a conjunct lets a column be.
fn values<'a>(conjunct: &'a Expr, name: &str) -> Option<Vec<&'a ScalarValue>> {
    match conjunct {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => {
            bound(left, name, right).or_else(|| bound(right, name, left)).map(|value| vec![value])
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            let mut all = values(left, name)?;
            all.extend(values(right, name)?);
            Some(all)
        }
        Expr::InList(list) if !list.negated => list.list.iter().map(|value| bound(&list.expr, name, value)).collect(),
        _ => None,
    }
}
