//! Refreshed views each of whose windows depends on the rows of that window alone: only the windows that got rows are recomputed.
//!
//! *Place*: `recomputed` asks for every refreshed view; `store::refresh` restricts the query.
//!
//! Let f be a time bucket (`TUMBLE`, `date_trunc`, `date_bin` with literals) of the event time t of one table. A plan is *local* when
//! its rows with bucket b, a column of its output, are what it gives over those rows of the table alone for which f(t) = b. Then
//! its rows with buckets in a range are what it gives over the rows with f(t) in that range. By induction:
//!
//! | plan | local when |
//! |---|---|
//! | scan of the table, filter, projection, join with plain tables that keeps no row of theirs | always: a row comes of one row |
//! | aggregation, DISTINCT | a key is the bucket |
//! | window functions | each is PARTITION BY the bucket, among others |
//! | join of local plans | an equality of their buckets is among its conditions; an outer join has the bucket of the side it keeps |
//! | UNION ALL | all branches are, with the bucket in the same column |
//!
//! Anything else, a subquery in an expression or LIMIT above all, is recomputed whole.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, JoinType, ScalarValue, TableReference};
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Distinct, Expr, LogicalPlan, LogicalPlanBuilder, Operator, lit};

use super::failure::{arrow_failure, failure};
use crate::catalog::{Catalog, Oid, Table, TableKind};
use crate::error::{Error, Result};

/// How a view's windows are cut.
#[derive(Clone, Debug)]
pub struct Local {
    /// The event table.
    pub table: Oid,
    name: String,
    /// Its event time.
    time: String,
    time_type: DataType,
    /// The bucket over a column `t`.
    bucket: Expr,
    /// The output column that is the bucket.
    pub column: usize,
}

/// Buckets are stored and recomputed in groups of this length, microseconds.
pub const GROUP_US: i64 = 86_400_000_000;

const T: &str = "t";

/// What is known of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Time,
    Bucket,
    Other,
}

/// What is known of a plan.
enum Reads {
    /// No rows of event tables.
    Plain,
    /// It is local, or its rows come of one row each: the kinds of its columns.
    Local(Vec<Kind>),
    /// Nothing.
    Unknown,
}

impl Local {
    /// How the windows of a plan are cut, if it is local.
    pub fn of(catalog: &Catalog, plan: &LogicalPlan) -> Option<Local> {
        let tables = scanned(catalog, plan)?;
        let [table] = tables.as_slice() else { return None };
        let time = table.columns.get(table.watermark?.column).filter(|time| !time.nullable)?;
        let mut local = Local {
            table: table.oid,
            name: table.name.clone(),
            time: time.name.clone(),
            time_type: time.sql_type.arrow(),
            bucket: lit(true),
            column: 0,
        };
        if !matches!(local.time_type, DataType::Timestamp(TimeUnit::Microsecond, _)) {
            return None;
        }
        for bucket in buckets(plan) {
            local.bucket = bucket;
            if let Reads::Local(kinds) = local.reads(catalog, plan)
                && let Some(column) = kinds.iter().position(|kind| *kind == Kind::Bucket)
            {
                return Some(Local { column, ..local });
            }
        }
        None
    }

    /// The groups of the buckets of times, first and last.
    pub fn groups(&self, session: &SessionState, (first, last): (i64, i64)) -> Result<(i64, i64)> {
        let schema = Arc::new(Schema::new(vec![Field::new(T, self.time_type.clone(), false)]));
        let zone = match &self.time_type {
            DataType::Timestamp(_, zone) => zone.clone(),
            _ => None,
        };
        let times = TimestampMicrosecondArray::from(vec![first, last]).with_timezone_opt(zone);
        let rows = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(times)]).map_err(arrow_failure)?;
        let bucket = session.create_physical_expr(self.bucket.clone(), &DFSchema::try_from(schema).map_err(failure)?).map_err(failure)?;
        let values = bucket.evaluate(&rows).and_then(|value| value.into_array(2)).map_err(failure)?;
        let groups = group_numbers(&values)?;
        Ok((groups[0], groups[1]))
    }

    /// The plan over the rows whose buckets lie in some groups, first to last.
    pub fn restrict(&self, plan: LogicalPlan, (first, last): (i64, i64)) -> Result<LogicalPlan> {
        let from = first.saturating_mul(GROUP_US);
        let to = last.saturating_add(1).saturating_mul(GROUP_US);
        let restricted = plan.transform_up(|node| match node {
            LogicalPlan::TableScan(scan) if scan.table_name.table() == self.name => {
                let time = Expr::Column(Column::new(Some(scan.table_name.clone()), &self.time));
                let bucket = at(&self.bucket, &time)?;
                let mut predicate = bucket.clone().gt_eq(self.literal(from)).and(bucket.lt(self.literal(to)));
                if self.begins_before() {
                    // It says nothing new, but prunes files.
                    predicate = predicate.and(time.gt_eq(self.literal(from)));
                }
                Ok(Transformed::yes(LogicalPlanBuilder::from(LogicalPlan::TableScan(scan)).filter(predicate)?.build()?))
            }
            other => Ok(Transformed::no(other)),
        });
        restricted.data().map_err(failure)
    }

    /// Whether no time is before its bucket; of `date_bin` not relied on, for times before its origin.
    fn begins_before(&self) -> bool {
        matches!(&self.bucket, Expr::ScalarFunction(call) if call.func.name() != "date_bin")
    }

    fn literal(&self, micros: i64) -> Expr {
        let zone = match &self.time_type {
            DataType::Timestamp(_, zone) => zone.clone(),
            _ => None,
        };
        Expr::Literal(ScalarValue::TimestampMicrosecond(Some(micros), zone), None)
    }

    fn reads(&self, catalog: &Catalog, plan: &LogicalPlan) -> Reads {
        if plan.expressions().iter().any(has_subquery) {
            return Reads::Unknown;
        }
        match plan {
            LogicalPlan::TableScan(scan) => self.scan(catalog, &scan.table_name, plan.schema()),
            LogicalPlan::SubqueryAlias(alias) => self.reads(catalog, &alias.input),
            LogicalPlan::Filter(filter) => self.reads(catalog, &filter.input),
            LogicalPlan::Sort(sort) if sort.fetch.is_none() => self.reads(catalog, &sort.input),
            LogicalPlan::Projection(projection) => self.map(catalog, &projection.input, &projection.expr),
            LogicalPlan::Aggregate(aggregate) => {
                let keys = self.map(catalog, &aggregate.input, &aggregate.group_expr);
                let Reads::Local(mut kinds) = by_bucket(keys) else { return Reads::Unknown };
                kinds.iter_mut().filter(|kind| **kind == Kind::Time).for_each(|kind| *kind = Kind::Other);
                kinds.resize(plan.schema().fields().len(), Kind::Other);
                Reads::Local(kinds)
            }
            LogicalPlan::Distinct(Distinct::All(input)) => by_bucket(self.reads(catalog, input)),
            LogicalPlan::Distinct(Distinct::On(on)) => match by_bucket(self.map(catalog, &on.input, &on.on_expr)) {
                Reads::Local(_) => by_bucket(self.map(catalog, &on.input, &on.select_expr)),
                other => other,
            },
            LogicalPlan::Window(window) => self.window(catalog, plan, &window.input, &window.window_expr),
            LogicalPlan::Join(join) => self.join(catalog, join),
            LogicalPlan::Union(union) => {
                let branches: Vec<Reads> = union.inputs.iter().map(|input| self.reads(catalog, input)).collect();
                branches.into_iter().reduce(both).map_or(Reads::Unknown, by_bucket)
            }
            LogicalPlan::EmptyRelation(_) | LogicalPlan::Values(_) => Reads::Plain,
            _ => Reads::Unknown,
        }
    }

    fn scan(&self, catalog: &Catalog, name: &TableReference, schema: &DFSchema) -> Reads {
        if name.table() == self.name {
            let kind = |name: &String| if *name == self.time { Kind::Time } else { Kind::Other };
            return Reads::Local(schema.fields().iter().map(|field| kind(field.name())).collect());
        }
        match catalog.table_named(name.table()).map(|table| table.kind) {
            Some(TableKind::Plain) => Reads::Plain,
            Some(TableKind::Event | TableKind::Late) | None => Reads::Unknown,
        }
    }

    /// Expressions over an input.
    fn map(&self, catalog: &Catalog, input: &LogicalPlan, expressions: &[Expr]) -> Reads {
        match self.reads(catalog, input) {
            Reads::Local(kinds) => Reads::Local(expressions.iter().map(|expr| self.kind(expr, input.schema(), &kinds)).collect()),
            other => other,
        }
    }

    fn kind(&self, expr: &Expr, schema: &DFSchema, kinds: &[Kind]) -> Kind {
        match expr {
            Expr::Column(column) => schema.index_of_column(column).ok().and_then(|index| kinds.get(index).copied()).unwrap_or(Kind::Other),
            Expr::Alias(alias) => self.kind(&alias.expr, schema, kinds),
            _ => match bucket_of(expr) {
                Some((bucket, time)) if bucket == self.bucket && self.kind(&time, schema, kinds) == Kind::Time => Kind::Bucket,
                _ => Kind::Other,
            },
        }
    }

    fn window(&self, catalog: &Catalog, plan: &LogicalPlan, input: &LogicalPlan, expressions: &[Expr]) -> Reads {
        let Reads::Local(mut kinds) = by_bucket(self.reads(catalog, input)) else { return Reads::Unknown };
        let partitioned = |expr: &Expr| match expr.clone().unalias() {
            Expr::WindowFunction(call) => call.params.partition_by.iter().any(|key| self.kind(key, input.schema(), &kinds) == Kind::Bucket),
            _ => false,
        };
        if !expressions.iter().all(partitioned) {
            return Reads::Unknown;
        }
        kinds.resize(plan.schema().fields().len(), Kind::Other);
        Reads::Local(kinds)
    }

    fn join(&self, catalog: &Catalog, join: &datafusion::logical_expr::Join) -> Reads {
        let other = |side: &LogicalPlan| vec![Kind::Other; side.schema().fields().len()];
        match (self.reads(catalog, &join.left), self.reads(catalog, &join.right), join.join_type) {
            (Reads::Plain, Reads::Plain, _) => Reads::Plain,
            (Reads::Local(left), Reads::Plain, JoinType::Inner | JoinType::Left) => Reads::Local([left, other(&join.right)].concat()),
            (Reads::Plain, Reads::Local(right), JoinType::Inner | JoinType::Right) => Reads::Local([other(&join.left), right].concat()),
            (Reads::Local(left), Reads::Local(right), kind @ (JoinType::Inner | JoinType::Left | JoinType::Right)) => {
                let on = join.on.iter().any(|(one, two)| {
                    self.kind(one, join.left.schema(), &left) == Kind::Bucket && self.kind(two, join.right.schema(), &right) == Kind::Bucket
                });
                let (width, all) = (left.len(), [left.clone(), right.clone()].concat());
                let filter =
                    join.filter.iter().flat_map(split_conjunction).any(|conjunct| self.joins_buckets(conjunct, &join.schema, width, &all));
                if !on && !filter {
                    return Reads::Unknown;
                }
                by_bucket(Reads::Local(match kind {
                    JoinType::Left => [left, other(&join.right)].concat(),
                    JoinType::Right => [other(&join.left), right].concat(),
                    _ => all,
                }))
            }
            _ => Reads::Unknown,
        }
    }

    /// Whether a condition is an equality of a bucket of the left and one of the right.
    fn joins_buckets(&self, conjunct: &Expr, schema: &DFSchema, width: usize, kinds: &[Kind]) -> bool {
        let Expr::BinaryExpr(equal) = conjunct else { return false };
        let is_left = |expr: &Expr| expr.column_refs().iter().all(|column| schema.index_of_column(column).is_ok_and(|index| index < width));
        let is_right =
            |expr: &Expr| expr.column_refs().iter().all(|column| schema.index_of_column(column).is_ok_and(|index| index >= width));
        let sides = (is_left(&equal.left) && is_right(&equal.right)) || (is_right(&equal.left) && is_left(&equal.right));
        let bucket = |expr: &Expr| self.kind(expr, schema, kinds) == Kind::Bucket;
        equal.op == Operator::Eq && sides && bucket(&equal.left) && bucket(&equal.right)
    }
}

/// The group of each of a column's buckets, which are never NULL.
pub(super) fn group_numbers(buckets: &ArrayRef) -> Result<Vec<i64>> {
    let values = buckets.as_primitive_opt::<TimestampMicrosecondType>().filter(|values| values.null_count() == 0);
    let values = values.ok_or_else(|| Error::internal("a window of a refreshed view has no time"))?;
    Ok(values.values().iter().map(|bucket| bucket.div_euclid(GROUP_US)).collect())
}

/// Local as far as the bucket is among the columns.
fn by_bucket(reads: Reads) -> Reads {
    match reads {
        Reads::Local(kinds) if kinds.contains(&Kind::Bucket) => Reads::Local(kinds),
        Reads::Plain => Reads::Plain,
        _ => Reads::Unknown,
    }
}

/// Two branches of a UNION ALL.
fn both(one: Reads, other: Reads) -> Reads {
    match (one, other) {
        (Reads::Plain, Reads::Plain) => Reads::Plain,
        (Reads::Local(one), Reads::Local(other)) => {
            let kinds = one.into_iter().zip(other).map(|(one, other)| if one == other { one } else { Kind::Other });
            Reads::Local(kinds.collect())
        }
        _ => Reads::Unknown,
    }
}

fn has_subquery(expr: &Expr) -> bool {
    let is_subquery =
        |node: &Expr| matches!(node, Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) | Expr::SetComparison(_));
    expr.exists(|node| Ok(is_subquery(node))).unwrap_or(true)
}

/// The event tables that a plan scans; none where it scans a view.
fn scanned<'a>(catalog: &'a Catalog, plan: &LogicalPlan) -> Option<Vec<&'a Arc<Table>>> {
    let mut tables: Vec<&Arc<Table>> = Vec::new();
    let mut views = false;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            let name = scan.table_name.table();
            views |= catalog.view_named(name).is_some();
            let table = catalog.table_named(name).filter(|table| table.kind != TableKind::Plain);
            tables.extend(table.filter(|table| tables.iter().all(|known| known.oid != table.oid)));
        }
        Ok(TreeNodeRecursion::Continue)
    })
    .ok()?;
    (!views).then_some(tables)
}

/// The different buckets in a plan.
fn buckets(plan: &LogicalPlan) -> Vec<Expr> {
    let mut found: Vec<Expr> = Vec::new();
    let walked = plan.apply(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                found.extend(bucket_of(expr).map(|(bucket, _)| bucket).filter(|bucket| !found.contains(bucket)));
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    if walked.is_ok() { found } else { Vec::new() }
}

/// A time bucket over a column `t`, and what stands in its place.
fn bucket_of(expr: &Expr) -> Option<(Expr, Expr)> {
    let Expr::ScalarFunction(call) = expr else { return None };
    let position = match call.func.name() {
        "tumble" => 0,
        "date_trunc" | "date_bin" => 1,
        _ => return None,
    };
    let time = call.args.get(position)?.clone();
    let mut others = call.args.iter().enumerate().filter(|(index, _)| *index != position);
    if !others.all(|(_, argument)| matches!(argument, Expr::Literal(..))) {
        return None;
    }
    let mut bucket = call.clone();
    bucket.args[position] = Expr::Column(Column::new_unqualified(T));
    Some((Expr::ScalarFunction(bucket), time))
}

/// A bucket over a time.
fn at(bucket: &Expr, time: &Expr) -> datafusion::error::Result<Expr> {
    let placed = bucket.clone().transform_up(|node| match node {
        Expr::Column(_) => Ok(Transformed::yes(time.clone())),
        other => Ok(Transformed::no(other)),
    });
    placed.data()
}
