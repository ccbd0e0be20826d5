//! Which stored state a reader needs: filters over key columns to slots, time groups and a mask.
//!
//! *Place*: `read` asks. A filter that is not over keys is left to the plan above.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, ScalarValue};
use datafusion::execution::context::ExecutionProps;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};

use super::blocks::Block;
use super::failure::{arrow_failure, failure};
use super::slots::slot_of;
use super::spec::Spec;
use super::window::{NULL_GROUP, ONE_GROUP};
use crate::error::Result;

/// What filters over keys leave.
#[derive(Debug)]
pub(super) struct Pruning {
    /// Exactly the filters over keys, to be applied to state rows.
    predicate: Option<Arc<dyn PhysicalExpr>>,
    /// Slots that can hold a match, ascending; none for all.
    slots: Option<Vec<u8>>,
    /// Least and greatest bucket that can match, in the time key's unit; none where nothing bounds it.
    buckets: (Option<i64>, Option<i64>),
}

/// A filter over output columns as one over keys (`k0`, `k1`, ...), or none where it reads anything else.
pub(super) fn over_keys(spec: &Spec, filter: &Expr) -> Option<Expr> {
    let mut foreign = false;
    let rewritten = filter
        .clone()
        .transform(|node| {
            Ok(match &node {
                Expr::Column(column) => {
                    let output = spec.finish.schema.index_of(&column.name).ok();
                    match output.and_then(|output| spec.finish.output_keys[output]) {
                        Some(key) => Transformed::yes(Expr::Column(Column::from_name(format!("k{key}")))),
                        None => {
                            foreign = true;
                            Transformed::new(node, false, TreeNodeRecursion::Stop)
                        }
                    }
                }
                Expr::OuterReferenceColumn(..) | Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) => {
                    foreign = true;
                    Transformed::new(node, false, TreeNodeRecursion::Stop)
                }
                _ => Transformed::no(node),
            })
        })
        .ok()?;
    (!foreign && !rewritten.data.is_volatile()).then_some(rewritten.data)
}

impl Pruning {
    /// Reads the filters of a scan.
    pub(super) fn new(spec: &Spec, filters: &[Expr], props: &ExecutionProps) -> Result<Pruning> {
        let mut conjuncts = Vec::new();
        for filter in filters {
            if let Some(filter) = over_keys(spec, filter) {
                split(filter, &mut conjuncts);
            }
        }
        let buckets = bounds(spec, &conjuncts);
        let slots = slots(spec, &conjuncts)?;
        let predicate = match conjuncts.into_iter().reduce(Expr::and) {
            None => None,
            Some(filter) => {
                let schema = DFSchema::try_from(Arc::clone(&spec.key_schema)).map_err(failure)?;
                Some(create_physical_expr(&filter, &schema, props, &PhysicalPlanningContext::default()).map_err(failure)?)
            }
        };
        Ok(Pruning { predicate, slots, buckets })
    }

    /// Whether a time group can hold a match.
    pub(super) fn wants_group(&self, spec: &Spec, group: i64) -> bool {
        let Some(time) = &spec.time else { return group == ONE_GROUP };
        let (least, greatest) = self.buckets;
        if group == NULL_GROUP {
            // A bound is never true of NULL.
            return least.is_none() && greatest.is_none();
        }
        least.is_none_or(|least| time.group(least) <= group) && greatest.is_none_or(|greatest| group <= time.group(greatest))
    }

    /// Whether a block of a wanted group can hold a match.
    pub(super) fn wants_block(&self, block: &Block) -> bool {
        let (least, greatest) = self.buckets;
        least.is_none_or(|least| least <= block.entry.bucket_max)
            && greatest.is_none_or(|greatest| block.entry.bucket_min <= greatest)
            && match &self.slots {
                None => true,
                Some(slots) => slots.iter().any(|slot| (block.name.slot..=block.entry.slot_last).contains(slot)),
            }
    }

    /// The slot ranges to read of rows sorted by slot, within `first..=last`.
    pub(super) fn slot_ranges(&self, first: u8, last: u8) -> Vec<(u8, u8)> {
        match &self.slots {
            None => vec![(first, last)],
            Some(slots) => slots.iter().filter(|slot| (first..=last).contains(*slot)).map(|slot| (*slot, *slot)).collect(),
        }
    }

    /// The rows that match, from their key columns; none when there is nothing to test.
    pub(super) fn mask(&self, spec: &Spec, keys: &[ArrayRef], rows: usize) -> Result<Option<BooleanArray>> {
        let Some(predicate) = &self.predicate else { return Ok(None) };
        let options = RecordBatchOptions::new().with_row_count(Some(rows)).with_match_field_names(false);
        let batch = RecordBatch::try_new_with_options(Arc::clone(&spec.key_schema), keys.to_vec(), &options).map_err(arrow_failure)?;
        let mask = predicate.evaluate(&batch).and_then(|value| value.into_array(rows)).map_err(failure)?;
        Ok(Some(mask.as_boolean().clone()))
    }
}

fn split(filter: Expr, conjuncts: &mut Vec<Expr>) {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            split(*left, conjuncts);
            split(*right, conjuncts);
        }
        Expr::Alias(alias) => split(*alias.expr, conjuncts),
        other => conjuncts.push(other),
    }
}

/// `key op literal`, whichever side the key is on.
fn comparison(conjunct: &Expr) -> Option<(usize, Operator, &ScalarValue)> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = conjunct else { return None };
    match (key(left), right.as_ref(), left.as_ref(), key(right)) {
        (Some(index), Expr::Literal(value, _), ..) => Some((index, *op, value)),
        (.., Expr::Literal(value, _), Some(index)) => Some((index, op.swap()?, value)),
        _ => None,
    }
}

fn key(expression: &Expr) -> Option<usize> {
    match expression {
        Expr::Column(column) => column.name.strip_prefix('k')?.parse().ok(),
        _ => None,
    }
}

/// Bounds on the time key from comparisons with constants.
fn bounds(spec: &Spec, conjuncts: &[Expr]) -> (Option<i64>, Option<i64>) {
    let Some(time) = &spec.time else { return (None, None) };
    let (mut least, mut greatest): (Option<i64>, Option<i64>) = (None, None);
    let mut at_least = |value: i64| least = Some(least.map_or(value, |known| known.max(value)));
    let mut at_most = |value: i64| greatest = Some(greatest.map_or(value, |known| known.min(value)));
    for conjunct in conjuncts {
        if let Expr::Between(between) = conjunct
            && !between.negated
            && key(&between.expr) == Some(time.key)
        {
            if let Expr::Literal(value, _) = between.low.as_ref() {
                number(value).into_iter().for_each(&mut at_least);
            }
            if let Expr::Literal(value, _) = between.high.as_ref() {
                number(value).into_iter().for_each(&mut at_most);
            }
            continue;
        }
        let Some((index, op, value)) = comparison(conjunct) else { continue };
        let Some(value) = (index == time.key).then(|| number(value)).flatten() else { continue };
        match op {
            Operator::Eq => {
                at_least(value);
                at_most(value);
            }
            Operator::Gt | Operator::GtEq => at_least(value),
            Operator::Lt | Operator::LtEq => at_most(value),
            _ => {}
        }
    }
    (least, greatest)
}

/// A constant in the time key's unit: coercion has made its type the key's.
fn number(value: &ScalarValue) -> Option<i64> {
    match value {
        ScalarValue::TimestampMicrosecond(value, _) => *value,
        ScalarValue::Date32(value) => value.map(i64::from),
        _ => None,
    }
}

/// Most slots that are looked up one by one.
const SLOTS_MAX: usize = 64;

/// The slots that equalities on the slot keys leave.
fn slots(spec: &Spec, conjuncts: &[Expr]) -> Result<Option<Vec<u8>>> {
    if spec.slot_keys.is_empty() {
        return Ok(None);
    }
    let mut choices: Vec<Vec<ScalarValue>> = Vec::with_capacity(spec.slot_keys.len());
    for slot_key in &spec.slot_keys {
        let Some(values) = conjuncts.iter().find_map(|conjunct| constants(conjunct, *slot_key)) else { return Ok(None) };
        choices.push(values);
    }
    let combinations = choices.iter().map(Vec::len).try_fold(1_usize, usize::checked_mul).unwrap_or(usize::MAX);
    if combinations > SLOTS_MAX {
        return Ok(None);
    }
    let mut found = Vec::with_capacity(combinations);
    for combination in 0..combinations {
        let mut rest = combination;
        let mut keys = Vec::with_capacity(choices.len());
        for (values, slot_key) in choices.iter().zip(&spec.slot_keys) {
            let value = &values[rest % values.len()];
            rest /= values.len();
            let wanted: &DataType = spec.key_schema.field(*slot_key).data_type();
            if value.data_type() != *wanted {
                return Ok(None);
            }
            keys.push(value.to_array().map_err(failure)?);
        }
        found.push(slot_of(&keys));
    }
    found.sort_unstable();
    found.dedup();
    Ok(Some(found))
}

/// The values that a conjunct allows for a key; none when it does not name them. An empty list matches nothing.
fn constants(conjunct: &Expr, wanted: usize) -> Option<Vec<ScalarValue>> {
    if let Some((index, Operator::Eq, value)) = comparison(conjunct) {
        return (index == wanted && !value.is_null()).then(|| vec![value.clone()]);
    }
    match conjunct {
        Expr::InList(list) if !list.negated && key(&list.expr) == Some(wanted) => list
            .list
            .iter()
            .map(|item| match item {
                Expr::Literal(value, _) if !value.is_null() => Some(value.clone()),
                _ => None,
            })
            .collect(),
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            let mut values = constants(left, wanted)?;
            values.extend(constants(right, wanted)?);
            Some(values)
        }
        _ => None,
    }
}
