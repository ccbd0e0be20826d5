//! Looking up rows of plain tables for rows of an event table: `FROM events e JOIN products p ON p.id = e.product_id`.
//!
//! *Place*: `source` finds the joins of a definition ([`Side`]), `compile` makes a [`Join`] of them, `store::enrich` runs it when rows
//! are committed and keeps what was found in the log record.
//!
//! *Invariants*: (1) what a row is joined with is decided once, at its commit, and logged: a replay does not look up again;
//! (2) looking up cannot fail on account of a row: keys are columns and casts that keep every value, anything else is
//! evaluated after the join, where a row that fails marks its group.
//!
//! The rows after the join have the table's columns, then those columns of the plain tables that the view reads, named
//! `<side>.<column>`.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, NullArray, UInt32Array};
use arrow::compute::{concat_batches, filter_record_batch, take};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt32Type};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use arrow::row::{RowConverter, SortField};
use datafusion::common::Column;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Expr, Operator};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::utils::collect_columns;
use xxhash_rust::xxh3::xxh3_64;

use super::combine::keeps_values;
use super::failure::{arrow_failure, failure};
use crate::catalog::{Oid, Table};
use crate::error::{Error, Result};

/// A plain table in a view's FROM.
#[derive(Clone, Debug)]
pub(super) struct Side {
    pub(super) table: Arc<Table>,
    /// LEFT JOIN: a row without a match stays.
    pub(super) outer: bool,
    /// Equal pairs: over the rows so far, over the plain table's columns.
    pub(super) keys: Vec<(Expr, Expr)>,
    /// What a row of the plain table must satisfy to match; of an outer join only.
    pub(super) filters: Vec<Expr>,
}

/// The joins of one view.
#[derive(Debug)]
pub struct Join {
    steps: Vec<Step>,
    /// Columns of the event table.
    width: usize,
    /// The event table's columns, then the looked-up ones.
    schema: SchemaRef,
    /// The row number, then the looked-up columns.
    found: SchemaRef,
    /// Equal for joins that find the same.
    identity: u64,
}

/// One plain table to look up in.
#[derive(Debug)]
pub struct Step {
    /// The plain table.
    pub table: Oid,
    outer: bool,
    left: Vec<Arc<dyn PhysicalExpr>>,
    right: Vec<Arc<dyn PhysicalExpr>>,
    filters: Vec<Arc<dyn PhysicalExpr>>,
    types: Vec<DataType>,
    /// Which of its columns are read.
    columns: Vec<usize>,
    /// Equal for steps that need the same [`Lookup`].
    identity: u64,
}

/// A plain table's rows by key, as of one version of the table.
#[derive(Debug)]
pub struct Lookup {
    columns: Vec<ArrayRef>,
    converter: RowConverter,
    /// By key the first row.
    first: HashMap<Box<[u8]>, u32>,
    /// For each row the next one with the same key; `u32::MAX` ends.
    next: Vec<u32>,
}

const END: u32 = u32::MAX;

/// The name of a plain table's column in the rows after the join.
pub(super) fn name_of(side: usize, column: &str) -> String {
    format!("{side}.{column}")
}

/// An expression over a plain table's columns, over the rows after the join.
pub(super) fn after(side: usize, expr: &Expr) -> Result<Expr> {
    renamed(expr, |name| Some(name_of(side, name)))
}

/// An expression over the rows after the join that reads one side only, over that side's columns.
fn before(side: usize, expr: &Expr) -> Result<Expr> {
    let prefix = name_of(side, "");
    renamed(expr, |name| name.strip_prefix(&prefix).map(str::to_owned))
}

fn renamed(expr: &Expr, rename: impl Fn(&str) -> Option<String>) -> Result<Expr> {
    expr.clone()
        .transform_up(|node| match node {
            Expr::Column(column) => match rename(&column.name) {
                Some(name) => Ok(Transformed::yes(Expr::Column(Column::new_unqualified(name)))),
                None => Ok(Transformed::no(Expr::Column(column))),
            },
            other => Ok(Transformed::no(other)),
        })
        .data()
        .map_err(failure)
}

/// Whether an expression reads a side, and whether it reads anything else.
fn reads(side: usize, expr: &Expr) -> (bool, bool) {
    let prefix = name_of(side, "");
    let (mut own, mut other) = (false, false);
    let walked = expr.apply(|node| {
        if let Expr::Column(column) = node {
            if column.name.starts_with(&prefix) { own = true } else { other = true }
        }
        Ok(TreeNodeRecursion::Continue)
    });
    if walked.is_ok() { (own, other) } else { (true, true) }
}

/// A conjunct over the rows after the join as a pair of keys of a side: over the rows before it, over the side's columns.
pub(super) fn key_pair(side: usize, conjunct: &Expr) -> Result<Option<(Expr, Expr)>> {
    let Expr::BinaryExpr(equal) = conjunct else { return Ok(None) };
    if equal.op != Operator::Eq {
        return Ok(None);
    }
    for (rows, own) in [(&equal.left, &equal.right), (&equal.right, &equal.left)] {
        if reads(side, rows) == (false, true) && reads(side, own) == (true, false) && is_key(rows) && is_key(own) {
            return Ok(Some((rows.as_ref().clone(), before(side, own)?)));
        }
    }
    Ok(None)
}

/// A condition that a side's rows alone decide, over its columns.
pub(super) fn own_condition(side: usize, conjunct: &Expr) -> Result<Option<Expr>> {
    match reads(side, conjunct) == (true, false) && cannot_fail(conjunct) {
        true => before(side, conjunct).map(Some),
        false => Ok(None),
    }
}

fn is_key(expr: &Expr) -> bool {
    match expr {
        Expr::Column(_) => true,
        Expr::Alias(alias) => is_key(&alias.expr),
        // The type of what is cast is looked at when the join is made.
        Expr::Cast(cast) => is_key(&cast.expr),
        _ => false,
    }
}

/// Comparisons of columns and literals: nothing that raises an error for some value.
fn cannot_fail(expr: &Expr) -> bool {
    let safe = |node: &Expr| match node {
        Expr::Column(_)
        | Expr::Literal(..)
        | Expr::Alias(_)
        | Expr::Not(_)
        | Expr::IsNull(_)
        | Expr::IsNotNull(_)
        | Expr::IsTrue(_)
        | Expr::IsFalse(_)
        | Expr::IsNotTrue(_)
        | Expr::IsNotFalse(_)
        | Expr::Between(_)
        | Expr::InList(_) => true,
        Expr::BinaryExpr(binary) => binary.op.supports_propagation() || matches!(binary.op, Operator::And | Operator::Or),
        _ => false,
    };
    expr.exists(|node| Ok(!safe(node))).is_ok_and(|unsafe_part| !unsafe_part)
}

/// Whether keys of a type are equal exactly when their bytes are.
fn has_bytes(data_type: &DataType) -> bool {
    data_type.is_integer()
        || matches!(
            data_type,
            DataType::Boolean
                | DataType::Decimal128(..)
                | DataType::Utf8
                | DataType::Utf8View
                | DataType::Date32
                | DataType::Timestamp(..)
                | DataType::FixedSizeBinary(_)
        )
}

/// Makes the joins of a view, whose expressions over the rows after it are `read`. `physical` makes physical expressions over a schema.
/// None where a join has no key, or one of a type that is not compared by its bytes.
pub(super) fn make<'a>(
    table: &Table,
    sides: &[Side],
    read: impl Iterator<Item = &'a Expr>,
    physical: impl Fn(&Expr, &SchemaRef) -> Result<Arc<dyn PhysicalExpr>>,
) -> Result<Option<Join>> {
    let columns = |expr: &Expr| expr.column_refs().into_iter().map(|column| column.name.clone()).collect::<Vec<_>>();
    let mut names: Vec<String> = read.flat_map(columns).collect();
    names.extend(sides.iter().flat_map(|side| &side.keys).flat_map(|(rows, _)| columns(rows)));
    let mut fields: Vec<_> = table.schema().fields().iter().cloned().collect();
    let width = fields.len();
    let mut steps = Vec::new();
    for (number, side) in sides.iter().enumerate() {
        let rows = Arc::new(Schema::new(fields.clone()));
        let own = side.table.schema();
        let Some(step) = step(number, side, &names, &rows, &own, &physical)? else { return Ok(None) };
        for column in &step.columns {
            let field = own.field(*column);
            fields.push(Arc::new(Field::new(name_of(number, field.name()), field.data_type().clone(), true)));
        }
        steps.push(step);
    }
    let mut found = vec![Arc::new(Field::new("row", DataType::UInt32, false))];
    found.extend(fields[width..].iter().cloned());
    let identity = xxh3_64(format!("{:?} {steps:?} {found:?}", table.oid).as_bytes());
    Ok(Some(Join { steps, width, schema: Arc::new(Schema::new(fields)), found: Arc::new(Schema::new(found)), identity }))
}

fn step(
    number: usize,
    side: &Side,
    names: &[String],
    rows: &SchemaRef,
    own: &SchemaRef,
    physical: &impl Fn(&Expr, &SchemaRef) -> Result<Arc<dyn PhysicalExpr>>,
) -> Result<Option<Step>> {
    let (mut left, mut right, mut types) = (Vec::new(), Vec::new(), Vec::new());
    for (over_rows, over_own) in &side.keys {
        let (over_rows, over_own) = (physical(over_rows, rows)?, physical(over_own, own)?);
        let data_type = over_rows.data_type(rows).map_err(failure)?;
        let same = data_type == over_own.data_type(own).map_err(failure)?;
        if !same || !has_bytes(&data_type) || !casts_keep_values(&over_rows, rows)? || !casts_keep_values(&over_own, own)? {
            return Ok(None);
        }
        left.push(over_rows);
        right.push(over_own);
        types.push(data_type);
    }
    if left.is_empty() {
        return Ok(None);
    }
    let filters = side.filters.iter().map(|filter| physical(filter, own)).collect::<Result<Vec<_>>>()?;
    let columns: Vec<usize> =
        (0..own.fields().len()).filter(|column| names.contains(&name_of(number, own.field(*column).name()))).collect();
    let identity = xxh3_64(format!("{} {right:?} {filters:?} {columns:?}", side.table.oid).as_bytes());
    Ok(Some(Step { table: side.table.oid, outer: side.outer, left, right, filters, types, columns, identity }))
}

/// Whether a key is a column in casts that keep every value.
fn casts_keep_values(key: &Arc<dyn PhysicalExpr>, schema: &Schema) -> Result<bool> {
    let mut key = Arc::clone(key);
    loop {
        let Some(inner) = key.children().first().map(|inner| Arc::clone(inner)) else { return Ok(true) };
        let (from, to) = (inner.data_type(schema).map_err(failure)?, key.data_type(schema).map_err(failure)?);
        let text = |data_type: &DataType| matches!(data_type, DataType::Utf8 | DataType::Utf8View);
        let kept = keeps_values(&from, &to) || (text(&from) && text(&to));
        if !kept {
            return Ok(false);
        }
        key = inner;
    }
}

impl Step {
    /// Equal for steps that need the same [`Lookup`].
    pub fn identity(&self) -> u64 {
        self.identity
    }

    /// Puts a plain table's rows (all of its columns) in order for looking up.
    pub fn lookup(&self, schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Lookup> {
        let mut rows = concat_batches(schema, batches).map_err(arrow_failure)?;
        for filter in &self.filters {
            let mask = filter.evaluate(&rows).and_then(|mask| mask.into_array(rows.num_rows())).map_err(failure)?;
            rows = filter_record_batch(&rows, mask.as_boolean()).map_err(arrow_failure)?;
        }
        let converter = RowConverter::new(self.types.iter().cloned().map(SortField::new).collect()).map_err(arrow_failure)?;
        let keys = evaluate(&self.right, &rows)?;
        let bytes = converter.convert_columns(&keys).map_err(arrow_failure)?;
        let mut first: HashMap<Box<[u8]>, u32> = HashMap::with_capacity(rows.num_rows());
        let mut next = vec![END; rows.num_rows()];
        // From the last to the first, so that a key's rows come in the order of the table.
        for row in (0..rows.num_rows()).rev() {
            if keys.iter().all(|key| key.is_valid(row))
                && let Some(later) = first.insert(bytes.row(row).as_ref().into(), row as u32)
            {
                next[row] = later;
            }
        }
        let columns = self.columns.iter().map(|column| Arc::clone(rows.column(*column))).collect();
        Ok(Lookup { columns, converter, first, next })
    }
}

fn evaluate(keys: &[Arc<dyn PhysicalExpr>], rows: &RecordBatch) -> Result<Vec<ArrayRef>> {
    let one = |key: &Arc<dyn PhysicalExpr>| key.evaluate(rows).and_then(|value| value.into_array(rows.num_rows())).map_err(failure);
    keys.iter().map(one).collect()
}

impl Join {
    /// The plain tables, in the order in which they are looked up.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The event table's columns, then the looked-up ones.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Of what [`Join::find`] gives.
    pub fn found_schema(&self) -> &SchemaRef {
        &self.found
    }

    /// Equal for joins that find the same.
    pub fn identity(&self) -> u64 {
        self.identity
    }

    /// Looks up: for each row after the join the number of the row that it comes from, and the looked-up columns.
    pub fn find(&self, rows: &RecordBatch, lookups: &[Arc<Lookup>]) -> Result<RecordBatch> {
        let mut from: Vec<u32> = (0..rows.num_rows() as u32).collect();
        let mut found: Vec<ArrayRef> = Vec::new();
        for (number, (step, lookup)) in self.steps.iter().zip(lookups).enumerate() {
            let so_far = match number {
                0 => rows.clone(),
                _ => self.assemble(rows, &UInt32Array::from(from.clone()), &found, |column| {
                    step.left.iter().any(|key| collect_columns(key).iter().any(|read| read.index() == column))
                })?,
            };
            let (left, right) = step.matches(&so_far, lookup)?;
            let left = UInt32Array::from(left);
            from = left.values().iter().map(|row| from[*row as usize]).collect();
            found = found.iter().map(|column| take(column, &left, None)).collect::<Result<_, _>>().map_err(arrow_failure)?;
            for column in &lookup.columns {
                found.push(take(column, &right, None).map_err(arrow_failure)?);
            }
        }
        let columns: Vec<ArrayRef> = std::iter::once(Arc::new(UInt32Array::from(from)) as ArrayRef).chain(found).collect();
        RecordBatch::try_new(Arc::clone(&self.found), columns).map_err(arrow_failure)
    }

    /// The rows after the join, from the rows before it and what [`Join::find`] gave. Columns that are not `needed` are of type Null.
    pub fn rows(&self, rows: &RecordBatch, found: &RecordBatch, needed: impl Fn(usize) -> bool) -> Result<RecordBatch> {
        let from = found.column(0).as_primitive::<UInt32Type>();
        self.assemble(rows, from, &found.columns()[1..], needed)
    }

    fn assemble(&self, rows: &RecordBatch, from: &UInt32Array, found: &[ArrayRef], needed: impl Fn(usize) -> bool) -> Result<RecordBatch> {
        let count = from.len();
        let in_place = count == rows.num_rows() && from.values().iter().enumerate().all(|(index, row)| index == *row as usize);
        let absent: ArrayRef = Arc::new(NullArray::new(count));
        let mut columns = Vec::with_capacity(self.width + found.len());
        for index in 0..self.width {
            columns.push(match (needed(index), in_place) {
                (false, _) => Arc::clone(&absent),
                (true, true) => Arc::clone(rows.column(index)),
                (true, false) => take(rows.column(index), from, None).map_err(arrow_failure)?,
            });
        }
        columns.extend(found.iter().cloned());
        let fields: Vec<_> = columns
            .iter()
            .zip(self.schema.fields())
            .map(|(column, field)| Field::new(field.name(), column.data_type().clone(), true))
            .collect();
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options).map_err(arrow_failure)
    }
}

impl Step {
    /// Pairs of matching rows; no second member where an outer join finds nothing.
    fn matches(&self, rows: &RecordBatch, lookup: &Lookup) -> Result<(Vec<u32>, UInt32Array)> {
        let keys = evaluate(&self.left, rows)?;
        let bytes = lookup.converter.convert_columns(&keys).map_err(arrow_failure)?;
        let mut left = Vec::with_capacity(rows.num_rows());
        let mut right: Vec<Option<u32>> = Vec::with_capacity(rows.num_rows());
        for row in 0..rows.num_rows() {
            let valid = keys.iter().all(|key| key.is_valid(row));
            let mut at = valid.then(|| lookup.first.get(bytes.row(row).as_ref())).flatten().copied();
            if at.is_none() && self.outer {
                left.push(row as u32);
                right.push(None);
            }
            while let Some(matched) = at {
                if left.len() >= u32::MAX as usize {
                    return Err(Error::internal("a join has too many rows"));
                }
                left.push(row as u32);
                right.push(Some(matched));
                at = Some(lookup.next[matched as usize]).filter(|next| *next != END);
            }
        }
        Ok((left, UInt32Array::from(right)))
    }
}
