//! ALTER TABLE ... ADD COLUMN, ALTER COLUMN ... SET DEFAULT and ALTER MATERIALIZED VIEW ... SET.

use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Schema};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::physical_expr_common::physical_expr::is_volatile;
use futures::TryStreamExt;
use tokio_util::sync::CancellationToken;

use crate::catalog::{Change, Check, Column, Table, TableKind, View};
use crate::command::{Response, create_table, options, relation};
use crate::error::{Error, Result, SqlState};
use crate::ingest::defaults;
use crate::query::Context;
use crate::session::{Session, engine_error};
use crate::sql::Statement;
use crate::sql::statement::{AddColumn, AlterTable, Name};
use crate::store::Transaction;
use crate::types::text::{Style, Writer, parse_scalar};
use crate::types::zone::Zone;

/// Attempts at an ALTER TABLE whose proof is overtaken by new rows, before the client is told to try again.
const ATTEMPTS_MAX: usize = 5;

/// `ALTER TABLE name {ADD [COLUMN] [IF NOT EXISTS] column | ALTER [COLUMN] name {SET DEFAULT expression | DROP DEFAULT}} [, ...]`. Rows that are there get the default's value as of now,
/// or NULL; no row is rewritten for that. 23502 and 23514 when they break the column's rules.
pub async fn table(session: &mut Session, statement: &AlterTable, cancel: CancellationToken) -> Result<Response> {
    for _ in 1..ATTEMPTS_MAX {
        match attempt(session, statement, cancel.clone()).await {
            Err(error) if error.state() == SqlState::SERIALIZATION_FAILURE => {}
            outcome => return outcome,
        }
    }
    attempt(session, statement, cancel).await
}

async fn attempt(session: &mut Session, statement: &AlterTable, cancel: CancellationToken) -> Result<Response> {
    let snapshot = session.snapshot()?;
    let catalog = Arc::clone(&snapshot.catalog);
    let table = relation::writable(&catalog, &statement.name)?;
    let has_rows = snapshot.tables.get(&table.oid).is_some_and(|state| state.hot_rows() > 0 || !state.files().is_empty());
    let mut widened = Table::clone(&table);
    let mut late = table.late_oid.and_then(|oid| catalog.table(oid)).map(|late| Table::clone(late));
    // True when it matters which rows there are.
    let mut depends = false;
    for added in &statement.columns {
        let Some(column) = new_column(session, &widened, added, has_rows)? else { continue };
        depends |= added.column.generated.is_some() || (column.fill.is_none() && (!column.nullable || column.default.is_some()));
        if let Some(late) = &mut late {
            late.columns.push(Column { nullable: true, default: None, generated: None, ..column.clone() });
        }
        widened.columns.push(column);
        for (given, expression) in &added.column.checks {
            let base = format!("{}_{}_check", table.name, added.column.name);
            create_table::add_check(&mut widened.checks, given.as_deref(), base, expression)?;
        }
    }
    for (name, default) in &statement.defaults {
        set_default(&mut widened, name, default.as_ref())?;
    }
    if widened.columns.len() == table.columns.len() && statement.defaults.is_empty() {
        return Ok(Response::Done("ALTER TABLE".to_owned()));
    }
    create_table::prove(session, &widened)?;
    let widened = Arc::new(widened);
    let mut changes = vec![Change::AlterTable(Arc::clone(&widened))];
    changes.extend(late.map(|late| Change::AlterTable(Arc::new(late))));
    for check in &widened.checks[table.checks.len()..] {
        depends |= prove_check(session, &table, &widened, check, &changes, cancel.clone()).await?;
    }
    let unwritten = if depends { vec![(table.oid, snapshot.next_lsn)] } else { Vec::new() };
    session.submit(Transaction { changes, unwritten, ..Transaction::default() }).await?;
    Ok(Response::Done("ALTER TABLE".to_owned()))
}

/// ALTER COLUMN ... SET DEFAULT or DROP DEFAULT: of rows to come.
fn set_default(table: &mut Table, name: &str, default: Option<&String>) -> Result<()> {
    let relation = table.name.clone();
    let Some(column) = table.columns.iter_mut().find(|column| column.name == name) else {
        return Err(Error::new(SqlState::UNDEFINED_COLUMN, format!("column \"{name}\" of relation \"{relation}\" does not exist")));
    };
    if column.generated.is_some() {
        return Err(Error::syntax(format!("column \"{name}\" of relation \"{relation}\" is a generated column")));
    }
    column.default = default.cloned();
    Ok(())
}

/// The column to be added to `table`, none when it is there and that is allowed.
fn new_column(session: &mut Session, table: &Table, added: &AddColumn, has_rows: bool) -> Result<Option<Column>> {
    let mut column = create_table::column(&added.column)?;
    let name = &column.name;
    if table.column(name).is_some() {
        let message = format!("column \"{name}\" of relation \"{}\" already exists", table.name);
        if !added.if_not_exists {
            return Err(Error::new(SqlState::DUPLICATE_COLUMN, message));
        }
        session.warn(SqlState::DUPLICATE_COLUMN, format!("{message}, skipping"));
        return Ok(None);
    }
    if table.kind == TableKind::Event && create_table::LATE_COLUMNS.contains(&name.as_str()) {
        return Err(Error::new(SqlState::DUPLICATE_COLUMN, format!("column \"{name}\" exists in \"{}$late\"", table.name)));
    }
    if column.generated.is_some() && has_rows {
        return Err(Error::unsupported(format!("generated column \"{name}\" cannot be added to a table that has rows"))
            .detail("Its value would have to be computed for every row that is there.")
            .hint("Compute it in queries or in a view, or declare it when the table is created."));
    }
    column.fill = fill(session, table, &column, has_rows)?;
    if !column.nullable && column.fill.is_none() && has_rows {
        let message = format!("column \"{}\" of relation \"{}\" contains null values", column.name, table.name);
        return Err(Error::new(SqlState::NOT_NULL_VIOLATION, message)
            .detail("The rows that are already there hold NULL in a column that is added without a default."));
    }
    Ok(Some(column))
}

/// The default's value as of now, as text; none for NULL.
fn fill(session: &Session, table: &Table, column: &Column, has_rows: bool) -> Result<Option<String>> {
    let Some(default) = &column.default else { return Ok(None) };
    // What it is computed from is not known of the rows that are there, which hold NULL.
    if defaults::is_of_row(table, default)? {
        return Ok(None);
    }
    let none = Arc::new(Schema::empty());
    let bound = session.services.binder.bind_expressions(&none, std::slice::from_ref(default), &[Some(column.sql_type.arrow())])?;
    let expression = bound.first().ok_or_else(|| Error::internal("a default was not bound"))?;
    if is_volatile(expression) {
        return match has_rows {
            false => Ok(None),
            true => Err(Error::unsupported(format!(
                "column \"{}\" with a volatile default cannot be added to a table that has rows",
                column.name
            ))
            .detail("Each row that is there would get a value of its own.")
            .hint("Add the column with a constant default, or create the table anew and copy the rows.")),
        };
    }
    let options = RecordBatchOptions::new().with_row_count(Some(1));
    let one = RecordBatch::try_new_with_options(none, Vec::new(), &options).map_err(|error| Error::internal(error.to_string()))?;
    let value = expression.evaluate(&one).and_then(|value| value.into_array(1)).map_err(engine_error)?;
    let writer = Writer::new(value.as_ref(), &column.sql_type, &Style::default())?;
    if writer.is_null(0) {
        return Ok(None);
    }
    let mut text = Vec::new();
    writer.write(0, &mut text);
    let text = String::from_utf8(text).map_err(|_| Error::internal("a value's text is not UTF-8"))?;
    // Too long for its type is an error now, as it would be for a row.
    parse_scalar(&column.sql_type, &text, &Zone::UTC)?;
    Ok(Some(text))
}

/// 23514 when a row that is there breaks a new check. True when that had to be asked of the rows.
async fn prove_check(
    session: &mut Session,
    table: &Table,
    widened: &Arc<Table>,
    check: &Check,
    changes: &[Change],
    cancel: CancellationToken,
) -> Result<bool> {
    let context = session.context()?;
    let snapshot = session.services.store.overlay(&context.snapshot, changes, &[], &[], None)?;
    // Over the new columns alone it holds for all rows or for none.
    let added = &widened.columns[table.columns.len()..];
    let schema = Arc::new(Schema::new(added.iter().map(|column| column.sql_type.field(&column.name, true)).collect::<Vec<_>>()));
    let text = std::slice::from_ref(&check.expression);
    if let Ok(bound) = session.services.binder.bind_expressions(&schema, text, &[Some(DataType::Boolean)]) {
        let columns = added.iter().map(|column| column.filled(1)).collect::<Result<Vec<_>>>()?;
        let one = RecordBatch::try_new(schema, columns).map_err(|error| Error::internal(error.to_string()))?;
        let held = bound[0].evaluate(&one).and_then(|value| value.into_array(1)).map_err(engine_error)?;
        let fails = held.as_boolean_opt().is_some_and(|held| held.is_valid(0) && !held.value(0));
        if !fails {
            return Ok(false);
        }
    }
    let name = Name { schema: None, name: widened.name.clone() };
    let query = format!("SELECT 1 FROM {name} WHERE NOT ({}) LIMIT 1", check.expression);
    let statement = Statement::Query(Box::new(crate::sql::parse_query(&query)?));
    let context = Context { snapshot, ..context };
    let engine = Arc::clone(&session.services.engine);
    let bound = engine.bind(&context, &statement, &[])?;
    let mut rows = engine.run(&context, &bound, &[], cancel).await?;
    while let Some(batch) = rows.try_next().await.map_err(engine_error)? {
        if batch.num_rows() > 0 {
            let message = format!("check constraint \"{}\" of relation \"{}\" is violated by some row", check.name, widened.name);
            return Err(Error::new(SqlState::CHECK_VIOLATION, message));
        }
    }
    Ok(true)
}

/// `ALTER MATERIALIZED VIEW name SET (ttl = '...', refresh_interval = '...')`.
pub async fn view(session: &mut Session, name: &Name, given: &[(String, String)]) -> Result<Response> {
    let catalog = Arc::clone(&session.snapshot()?.catalog);
    let view = relation::view(&catalog, name)?;
    let given = options::view(given, &view)?;
    let (ttl_us, refresh_us) = (given.ttl_us.or(view.ttl_us), given.refresh_us.or(view.refresh_us));
    let altered = View { ttl_us, refresh_us, ..View::clone(&view) };
    session.submit(Transaction { changes: vec![Change::AlterView(Arc::new(altered))], ..Transaction::default() }).await?;
    Ok(Response::Done("ALTER MATERIALIZED VIEW".to_owned()))
}
