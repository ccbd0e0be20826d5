//! What UPDATE, DELETE and ON CONFLICT have in common: finding the rows, changing them unless somebody else has, RETURNING.
//!
//! *Place*: `command::{update, delete, conflict}`.
//!
//! *Way of a statement*: a query over one snapshot gives the rows with their LSNs; they are locked; when one is gone since, the
//! statement is evaluated again over a newer snapshot (READ COMMITTED) or fails (REPEATABLE READ, 40001); then the old rows and the new ones go to the
//! store in one transaction, which checks once more.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, RecordBatch, UInt64Array};
use arrow::compute::{filter_record_batch, take_record_batch};
use arrow::datatypes::Int64Type;
use datafusion::common::ScalarValue;
use futures::TryStreamExt;
use sqlparser::ast;
use tokio_util::sync::CancellationToken;

use crate::catalog::Table;
use crate::command::Response;
use crate::error::{Error, Result, SqlState};
use crate::query::provider::ROWS_SCHEMA;
use crate::query::route::ROUTE;
use crate::query::{Bound, Context};
use crate::session::{Session, engine_error};
use crate::sql::Statement;
use crate::sql::statement::quote_identifier;
use crate::store::rows::stale;
use crate::store::snapshot::compact_strings;
use crate::store::{HotBatch, TableState};
use crate::types::LSN_COLUMN;

/// OID of a relation that exists for one statement.
pub const TRANSIENT_OID: u32 = u32::MAX;

/// How often a statement has been evaluated.
#[derive(Debug, Default)]
pub struct Attempts(usize);

impl Attempts {
    /// Evaluate once more; 40001 where the transaction keeps its first snapshot, and after `limits.store.retries_max` times.
    pub fn again(&mut self, session: &Session) -> Result<()> {
        self.0 += 1;
        if session.vars.repeatable_read() {
            return Err(stale());
        }
        if self.0 > session.services.config.limits.store.retries_max {
            session.services.metrics.limit_hit("limits.store.retries_max");
            return Err(stale());
        }
        Ok(())
    }

    /// Whether a refused transaction is to be evaluated again.
    pub fn retries(&mut self, session: &Session, error: &Error) -> Result<bool> {
        if error.state() != SqlState::SERIALIZATION_FAILURE || session.vars.repeatable_read() {
            return Ok(false);
        }
        self.again(session).map(|()| true)
    }
}

/// `SELECT items, target._lsn FROM target, from... WHERE selection`.
pub fn selection(
    table: &Table,
    alias: Option<&str>,
    mut items: Vec<ast::SelectItem>,
    from: &[ast::TableWithJoins],
    selection: Option<ast::Expr>,
) -> Result<ast::Query> {
    let shown = quote_identifier(alias.unwrap_or(&table.name));
    let name = table.name.replace('"', "\"\"");
    let text = format!("SELECT {shown}.\"{LSN_COLUMN}\" FROM \"{ROWS_SCHEMA}\".\"{name}\" AS {shown}");
    let mut query = crate::sql::parse_query(&text)?;
    let ast::SetExpr::Select(select) = query.body.as_mut() else { return Err(Error::internal("a SELECT is none")) };
    items.append(&mut select.projection);
    select.projection = items;
    select.from.extend_from_slice(from);
    select.selection = selection;
    Ok(query)
}

/// A column of the target.
pub fn column(table: &Table, alias: Option<&str>, index: usize) -> ast::Expr {
    let quoted = |name: &str| ast::Ident::with_quote('"', name);
    ast::Expr::CompoundIdentifier(vec![quoted(alias.unwrap_or(&table.name)), quoted(&table.columns[index].name)])
}

/// An item of a projection under a name of its own.
pub fn item(expression: ast::Expr, number: usize) -> ast::SelectItem {
    ast::SelectItem::ExprWithAlias { expr: expression, alias: ast::Ident::with_quote('"', format!("c{number}")) }
}

/// Whether a name in the statement is the target's.
pub fn is_target(table: &Table, alias: Option<&str>, qualifier: &ast::Ident) -> bool {
    let name = if qualifier.quote_style.is_some() { qualifier.value.clone() } else { qualifier.value.to_ascii_lowercase() };
    name == alias.unwrap_or(&table.name)
}

/// The parameters that a tree names.
pub fn parameters_of(tree: &impl ast::Visit) -> BTreeSet<usize> {
    struct Find(BTreeSet<usize>);
    impl ast::Visitor for Find {
        type Break = ();
        fn pre_visit_value(&mut self, value: &ast::ValueWithSpan) -> ControlFlow<()> {
            if let ast::Value::Placeholder(name) = &value.value {
                self.0.extend(name.strip_prefix('$').and_then(|number| number.parse::<usize>().ok()));
            }
            ControlFlow::Continue(())
        }
    }
    let mut find = Find(BTreeSet::new());
    let _ = tree.visit(&mut find);
    find.0
}

/// The rows that a bound query finds, LSN last: each row of the target once, in the first form that it is found in.
pub async fn found(
    session: &Session,
    context: &Context,
    bound: &Bound,
    parameters: &[ScalarValue],
    cancel: CancellationToken,
) -> Result<Vec<RecordBatch>> {
    let mut stream = session.services.engine.run(context, bound, parameters, cancel).await?;
    let bytes_max = session.services.config.limits.store.statement_bytes_max;
    let mut bytes = 0;
    let mut rows = Vec::new();
    let mut seen = std::collections::HashSet::new();
    while let Some(batch) = stream.try_next().await.map_err(engine_error)? {
        let lsns = batch.columns().last().and_then(|column| column.as_primitive_opt::<Int64Type>());
        let lsns = lsns.ok_or_else(|| Error::internal("rows without LSNs"))?;
        let first: BooleanArray = lsns.values().iter().map(|lsn| Some(seen.insert(*lsn))).collect();
        let batch = match first.true_count() {
            0 => continue,
            all if all == first.len() => batch,
            _ => filter_record_batch(&batch, &first).map_err(|error| Error::internal(error.to_string()))?,
        };
        let batch = compact(&batch)?;
        bytes += batch.get_array_memory_size();
        if bytes > bytes_max {
            session.services.metrics.limit_hit("limits.store.statement_bytes_max");
            return Err(Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "the statement's rows are too large")
                .detail(format!("A statement can change {bytes_max} bytes of rows."))
                .hint("Split it into several statements."));
        }
        rows.push(batch);
    }
    Ok(rows)
}

/// The rows in buffers of their own size: a few rows of a batch would keep, and count, what it had room for.
fn compact(batch: &RecordBatch) -> Result<RecordBatch> {
    let rows = UInt64Array::from_iter_values(0..batch.num_rows() as u64);
    compact_strings(&take_record_batch(batch, &rows).map_err(|error| Error::internal(error.to_string()))?)
}

/// Some columns of batches.
pub fn columns(batches: &[RecordBatch], range: std::ops::Range<usize>) -> Result<Vec<RecordBatch>> {
    let indexes: Vec<usize> = range.collect();
    batches.iter().map(|batch| batch.project(&indexes).map_err(|error| Error::internal(error.to_string()))).collect()
}

/// Answers RETURNING: a query over the target's name, which there stands for some rows.
pub async fn returned(
    session: &Session,
    context: &Context,
    table: &Arc<Table>,
    rows: &[RecordBatch],
    selection: &Statement,
    tag: &'static str,
    cancel: CancellationToken,
) -> Result<Response> {
    let context = over_rows(context, table, rows)?;
    let bound = session.services.engine.bind(&context, selection, &[])?;
    let stream = session.services.engine.run(&context, &bound, &[], cancel).await?;
    Ok(Response::Rows { schema: Arc::clone(&bound.schema), stream, tag })
}

/// The context in which a table holds nothing but some rows. The table need not exist otherwise.
pub fn over_rows(context: &Context, table: &Arc<Table>, rows: &[RecordBatch]) -> Result<Context> {
    let mut snapshot = (*context.snapshot).clone();
    let mut state = TableState::empty(Arc::clone(table));
    let mut lsn = 0;
    for batch in rows.iter().filter(|batch| batch.num_rows() > 0) {
        state.push(HotBatch::new(batch, lsn)?)?;
        lsn += batch.num_rows() as u64;
    }
    snapshot.tables.insert(table.oid, Arc::new(state));
    if !snapshot.catalog.table(table.oid).is_some_and(|known| Arc::ptr_eq(known, table)) {
        snapshot.catalog = Arc::new(snapshot.catalog.with_relation(Arc::clone(table)));
    }
    // Views have other rows than these.
    let mut settings = Arc::clone(&context.settings);
    Arc::make_mut(&mut settings).insert(ROUTE.to_owned(), "scan".to_owned());
    Ok(Context { snapshot: Arc::new(snapshot), settings, ..context.clone() })
}
