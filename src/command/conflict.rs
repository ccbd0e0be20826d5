//! INSERT ... ON CONFLICT.
//!
//! *Place*: `command::insert` gives the rows that are to be inserted, with defaults and rules applied; they are looked up in the
//! constraints' keys, those that conflict are left out (DO NOTHING) or joined with the rows that they conflict with (DO UPDATE).
//!
//! *Invariant*: what is decided here is checked again by the sequencer: a key that somebody else took meanwhile, or a row that
//! somebody else changed, makes the statement look again.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray, Int64Array, RecordBatch, UInt64Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::Int64Type;
use datafusion::common::ScalarValue;
use sqlparser::ast;
use tokio_util::sync::CancellationToken;

use crate::catalog::{Column, Table, TableKind};
use crate::command::{insert, modify, update};
use crate::error::{Error, Result, SqlState};
use crate::query::{Bound, Context};
use crate::session::Session;
use crate::sql::Statement;
use crate::sql::statement::{ConflictTarget, ConflictUpdate, OnConflict};
use crate::store::unique::{self, Holder};
use crate::store::{Committed, Delete, Transaction, Write};
use crate::types::SqlType;

/// The name by which DO UPDATE calls the row that was to be inserted.
const EXCLUDED: &str = "excluded";

/// Hidden columns of `excluded`: the row that it conflicts with, and its place among the rows to be inserted.
const CONFLICTING: &str = "\u{1}row";
const PLACE: &str = "\u{1}place";

/// Checks the clause and types its parameters; `bound` is the source, whose parameters are `used`.
#[allow(clippy::too_many_arguments, reason = "the parts of one statement's binding")]
pub fn bind(
    session: &Session,
    context: &Context,
    table: &Arc<Table>,
    alias: Option<&str>,
    clause: &OnConflict,
    declared: &[Option<SqlType>],
    used: &BTreeSet<usize>,
    bound: &mut Bound,
) -> Result<()> {
    arbiters(table, clause)?;
    let Some(change) = &clause.update else { return Ok(()) };
    let mut types: Vec<Option<SqlType>> = declared.to_vec();
    types.resize(types.len().max(bound.parameters.len()), None);
    for (index, known) in types.iter_mut().enumerate().filter(|(index, _)| used.contains(&(index + 1))) {
        *known = bound.parameters.get(index).cloned();
    }
    let query = query(table, alias, change, &mut types)?;
    let context = modify::over_rows(context, &Arc::new(excluded(table)), &[])?;
    let typed = session.services.engine.bind(&context, &Statement::Query(Box::new(query)), &types).map_err(insert::mismatch)?;
    bound.parameters = typed.parameters;
    Ok(())
}

/// A clause over its table, with the parameters' values.
#[derive(Debug)]
pub struct Upsert<'a> {
    /// Target.
    pub table: &'a Arc<Table>,
    /// Its alias.
    pub alias: Option<&'a str>,
    /// ON CONFLICT.
    pub clause: &'a OnConflict,
    /// Types of the parameters.
    pub types: &'a [SqlType],
    /// Their values.
    pub parameters: &'a [ScalarValue],
}

/// What becomes of the rows.
struct Plan {
    /// To be inserted, and their places.
    fresh: Vec<usize>,
    /// Those that conflict: place and LSN of the row that is there.
    conflicting: Vec<(usize, u64)>,
}

impl Upsert<'_> {
    /// Inserts what does not conflict and does what the clause says with the rest. The rows that were inserted or updated come back.
    pub async fn execute(&self, session: &mut Session, rows: Vec<RecordBatch>, cancel: CancellationToken) -> Result<Committed> {
        let rows = concat_batches(&self.table.schema(), &rows).map_err(|error| Error::internal(error.to_string()))?;
        let constraints = arbiters(self.table, self.clause)?;
        let keys = unique::keys(self.table, &rows)?;
        let mut attempts = modify::Attempts::default();
        loop {
            let context = session.context()?;
            let Some(plan) = self.plan(session, &context, &constraints, &keys, rows.num_rows())? else {
                // Its commit is being written: the row shows in a moment.
                attempts.again(session)?;
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            };
            let (delete, changed) = self.changed(session, &context, &rows, &plan, cancel.clone()).await?;
            let mut places: Vec<usize> = plan.fresh.clone();
            let mut parts = vec![take(&rows, &plan.fresh)?];
            for (place, rows) in changed {
                places.push(place);
                parts.push(rows);
            }
            let written = in_order(&self.table.schema(), &parts, &places)?;
            if let Some(delete) = &delete
                && !session.lock_rows(delete).await?
            {
                attempts.again(session)?;
                continue;
            }
            if written.num_rows() == 0 {
                return Ok(Committed::default());
            }
            let write = Write { table: self.table.oid, rows: vec![written.clone()], late_rows: self.table.options.late_rows };
            let transaction = Transaction { deletes: delete.into_iter().collect(), writes: vec![write], ..Transaction::default() };
            match session.submit(transaction).await {
                Ok(committed) => return Ok(Committed { rows: vec![written], ..committed }),
                // The key was taken since it was looked up.
                Err(error) if error.state() == SqlState::UNIQUE_VIOLATION && self.is_taken(session, &constraints, &keys, &plan)? => {
                    attempts.again(session)?;
                }
                Err(error) if attempts.retries(session, &error)? => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sorts the rows out; none when a row that one conflicts with is not visible yet.
    fn plan(
        &self,
        session: &mut Session,
        context: &Context,
        constraints: &[usize],
        keys: &unique::Keys,
        rows: usize,
    ) -> Result<Option<Plan>> {
        let mut holders = session.key_holders(self.table, keys, constraints)?;
        // A table without constraints has no keys: nothing can conflict.
        holders.resize(rows, None);
        let mut plan = Plan { fresh: Vec::new(), conflicting: Vec::new() };
        let mut seen: Vec<HashSet<unique::Key>> = vec![HashSet::new(); constraints.len()];
        for (place, holder) in holders.into_iter().enumerate() {
            let mut repeated = false;
            for (seen, constraint) in seen.iter_mut().zip(constraints) {
                repeated |= keys[*constraint][place].is_some_and(|key| !seen.insert(key));
            }
            match holder {
                _ if repeated && self.clause.update.is_some() => {
                    return Err(Error::new(
                        SqlState::CARDINALITY_VIOLATION,
                        "ON CONFLICT DO UPDATE command cannot affect row a second time",
                    )
                    .hint("Ensure that no rows proposed for insertion within the same command have duplicate constrained values."));
                }
                Some(Holder::Committed(lsn)) if lsn >= context.snapshot.committed_lsn() => return Ok(None),
                Some(Holder::Committed(lsn) | Holder::Own(lsn)) => plan.conflicting.push((place, lsn)),
                None if repeated => {}
                None => plan.fresh.push(place),
            }
        }
        Ok(Some(plan))
    }

    /// Whether a row that was to be inserted conflicts by now.
    fn is_taken(&self, session: &mut Session, constraints: &[usize], keys: &unique::Keys, plan: &Plan) -> Result<bool> {
        let holders = session.key_holders(self.table, keys, constraints)?;
        Ok(plan.fresh.iter().any(|place| holders[*place].is_some()))
    }

    /// The rows that DO UPDATE replaces, and the new ones with their places.
    async fn changed(
        &self,
        session: &mut Session,
        context: &Context,
        rows: &RecordBatch,
        plan: &Plan,
        cancel: CancellationToken,
    ) -> Result<(Option<Delete>, Vec<(usize, RecordBatch)>)> {
        let table = self.table;
        let (Some(change), false) = (&self.clause.update, plan.conflicting.is_empty()) else { return Ok((None, Vec::new())) };
        let (places, lsns): (Vec<usize>, Vec<u64>) = plan.conflicting.iter().copied().unzip();
        let mut columns = take(rows, &places)?.columns().to_vec();
        columns.push(Arc::new(Int64Array::from_iter_values(lsns.iter().map(|lsn| *lsn as i64))));
        columns.push(Arc::new(Int64Array::from_iter_values(places.iter().map(|place| *place as i64))));
        let relation = Arc::new(excluded(table));
        let proposed = RecordBatch::try_new(relation.schema(), columns).map_err(|error| Error::internal(error.to_string()))?;
        let over = modify::over_rows(context, &relation, &[proposed])?;
        let mut types: Vec<Option<SqlType>> = self.types.iter().cloned().map(Some).collect();
        let mut query = query(table, self.alias, change, &mut types)?;
        narrow(&mut query, table, self.alias, &lsns)?;
        let bound = session.services.engine.bind(&over, &Statement::Query(Box::new(query)), &types)?;
        let found = modify::found(session, &over, &bound, self.parameters, cancel).await?;
        let targets: Vec<usize> = (0..table.columns.len()).filter(|index| table.columns[*index].generated.is_none()).collect();
        let (width, last) = (targets.len(), bound.schema.fields().len() - 1);
        let pipeline = insert::pipeline(session, table, &targets)?;
        let mut changed = Vec::new();
        for (new, place) in modify::columns(&found, 0..width)?.into_iter().zip(modify::columns(&found, width..width + 1)?) {
            let new = pipeline.complete(new)?;
            let places = place.column(0).as_primitive_opt::<Int64Type>().ok_or_else(|| Error::internal("rows without places"))?;
            changed.extend(places.values().iter().enumerate().map(|(row, place)| (*place as usize, new.slice(row, 1))));
        }
        let delete = Delete::new(table, &context.snapshot, &modify::columns(&found, width + 1..last + 1)?)?;
        Ok(((!delete.rows.is_empty()).then_some(delete), changed))
    }
}

/// The constraints that the clause is about, by their place in the table. 42P10 where there is none, 42704 for an unknown name.
fn arbiters(table: &Table, clause: &OnConflict) -> Result<Vec<usize>> {
    if table.kind != TableKind::Plain {
        return Err(Error::unsupported(format!("ON CONFLICT is not supported on event table \"{}\"", table.name))
            .hint("Event tables drop duplicates with WITH (dedup_key = 'column')."));
    }
    match &clause.target {
        None => Ok((0..table.unique.len()).collect()),
        Some(ConflictTarget::Constraint(name)) => {
            let found = table.unique.iter().position(|unique| unique.name == *name);
            found.map(|index| vec![index]).ok_or_else(|| {
                Error::new(SqlState::UNDEFINED_OBJECT, format!("constraint \"{name}\" for table \"{}\" does not exist", table.name))
            })
        }
        Some(ConflictTarget::Columns(names)) => {
            let column = |name: &String| {
                table.column(name).ok_or_else(|| Error::new(SqlState::UNDEFINED_COLUMN, format!("column \"{name}\" does not exist")))
            };
            let wanted: BTreeSet<usize> = names.iter().map(column).collect::<Result<_>>()?;
            let matches = |unique: &&crate::catalog::Unique| unique.columns.iter().copied().collect::<BTreeSet<_>>() == wanted;
            let found = table.unique.iter().position(|unique| matches(&unique));
            found.map(|index| vec![index]).ok_or_else(|| {
                Error::new(
                    SqlState::INVALID_COLUMN_REFERENCE,
                    "there is no unique or exclusion constraint matching the ON CONFLICT specification",
                )
            })
        }
    }
}

/// The relation `excluded`.
fn excluded(table: &Table) -> Table {
    let mut excluded = Table::clone(table);
    excluded.oid = modify::TRANSIENT_OID;
    excluded.name = EXCLUDED.to_owned();
    for name in [CONFLICTING, PLACE] {
        let sql_type = SqlType::BigInt;
        excluded.columns.push(Column { name: name.to_owned(), sql_type, nullable: true, default: None, generated: None, fill: None });
    }
    excluded
}

/// New values, place, the old row and its LSN, of the rows that conflict and that WHERE admits.
fn query(table: &Table, alias: Option<&str>, change: &ConflictUpdate, types: &mut Vec<Option<SqlType>>) -> Result<ast::Query> {
    if alias.unwrap_or(&table.name) == EXCLUDED {
        return Err(
            Error::new(SqlState("42712"), "table name \"excluded\" specified more than once").hint("Give the target another alias.")
        );
    }
    let values = update::assigned(table, alias, &change.assignments, types)?;
    let targets = (0..table.columns.len()).filter(|index| table.columns[*index].generated.is_none());
    let mut expressions: Vec<ast::Expr> =
        targets.map(|index| values[index].clone().unwrap_or_else(|| modify::column(table, alias, index))).collect();
    expressions.push(crate::sql::parse_expression(&format!("{EXCLUDED}.\"{PLACE}\""))?);
    expressions.extend((0..table.columns.len()).map(|index| modify::column(table, alias, index)));
    let items = expressions.into_iter().enumerate().map(|(number, expression)| modify::item(expression, number)).collect();
    let lsn = lsn_of(table, alias);
    let mut condition = crate::sql::parse_expression(&format!("{lsn} = {EXCLUDED}.\"{CONFLICTING}\""))?;
    if let Some(selection) = &change.selection {
        condition = and(condition, selection.clone());
    }
    let from = crate::sql::parse_query(&format!("SELECT 1 FROM {EXCLUDED}"))?;
    let ast::SetExpr::Select(from) = *from.body else { return Err(Error::internal("a SELECT is none")) };
    modify::selection(table, alias, items, &from.from, Some(condition))
}

/// Tells the scan which rows are wanted, so that it need not read all.
fn narrow(query: &mut ast::Query, table: &Table, alias: Option<&str>, lsns: &[u64]) -> Result<()> {
    let (Some(least), Some(greatest)) = (lsns.iter().min(), lsns.iter().max()) else { return Ok(()) };
    let lsn = lsn_of(table, alias);
    let bounds = crate::sql::parse_expression(&format!("{lsn} BETWEEN CAST({least} AS bigint) AND CAST({greatest} AS bigint)"))?;
    if let ast::SetExpr::Select(select) = query.body.as_mut()
        && let Some(condition) = select.selection.take()
    {
        select.selection = Some(and(bounds, condition));
    }
    Ok(())
}

fn lsn_of(table: &Table, alias: Option<&str>) -> String {
    format!("{}.\"{}\"", crate::sql::statement::quote_identifier(alias.unwrap_or(&table.name)), crate::types::LSN_COLUMN)
}

fn and(left: ast::Expr, right: ast::Expr) -> ast::Expr {
    let nested = |expression| Box::new(ast::Expr::Nested(Box::new(expression)));
    ast::Expr::BinaryOp { left: nested(left), op: ast::BinaryOperator::And, right: nested(right) }
}

fn take(rows: &RecordBatch, places: &[usize]) -> Result<RecordBatch> {
    let indices = UInt64Array::from_iter_values(places.iter().map(|place| *place as u64));
    take_record_batch(rows, &indices).map_err(|error| Error::internal(error.to_string()))
}

/// All rows of `parts`, which have these places, in the order of their places.
fn in_order(schema: &arrow::datatypes::SchemaRef, parts: &[RecordBatch], places: &[usize]) -> Result<RecordBatch> {
    let all = concat_batches(schema, parts).map_err(|error| Error::internal(error.to_string()))?;
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_by_key(|row| places[*row]);
    take(&all, &order)
}
