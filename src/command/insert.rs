//! INSERT.
//!
//! Two ways: literal VALUES are decoded straight from the text; any other source is a query whose columns are cast to the
//! target's types. Both end in `ingest::Pipeline` and one commit.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, new_null_array};
use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::common::ScalarValue;
use futures::TryStreamExt;
use sqlparser::ast;
use tokio_util::sync::CancellationToken;

use crate::catalog::{Column, LateRows, Table};
use crate::command::rows::Rows;
use crate::command::{Response, conflict, modify, relation};
use crate::error::{Error, Result, SqlState};
use crate::ingest::{Pipeline, defaults};
use crate::query::Bound;
use crate::query::typing::assign::NAME as ASSIGNMENT;
use crate::session::{Session, engine_error};
use crate::sql::Statement;
use crate::sql::statement::{Insert, InsertLiterals, quote_identifier};
use crate::store::{Committed, Transaction, Write};
use crate::types::SqlType;
use crate::types::zone::Zone;

/// Types the source of an INSERT (`$n` takes its column's type) and its RETURNING columns, for `command::prepare`:
/// `Prepared { bound: plan, parameters: plan.parameters, schema: returning }`.
pub fn bind(session: &mut Session, statement: &Insert, declared: &[Option<SqlType>]) -> Result<(Bound, Option<SchemaRef>)> {
    let context = session.context()?;
    let table = relation::writable(&context.snapshot.catalog, &statement.table)?;
    let columns = targets(&table, &statement.columns)?;
    let mut declared = declared.to_vec();
    let source = source(&table, statement, &columns, &mut declared)?;
    let used = modify::parameters_of(&source);
    let mut bound = session.services.engine.bind(&context, &Statement::Query(Box::new(source)), &declared).map_err(mismatch)?;
    if let Some(clause) = &statement.on_conflict {
        conflict::bind(session, &context, &table, statement.alias.as_deref(), clause, &declared, &used, &mut bound)?;
    }
    let width = bound.schema.fields().len();
    if statement.source.is_none() || (statement.columns.is_empty() && width < columns.len()) {
        // DEFAULT VALUES gives none. Without a list, fewer values than columns are allowed: the rest gets its defaults.
    } else if width != columns.len() {
        return Err(count_mismatch(width > columns.len()));
    }
    let returning = match &statement.returning {
        None => None,
        Some(items) => {
            let selection = returning(&table, statement.alias.as_deref(), items)?;
            Some(session.services.engine.bind(&context, &selection, &[])?.schema)
        }
    };
    Ok((bound, returning))
}

/// Any INSERT; `bound` is what [`bind`] gave.
pub async fn execute(
    session: &mut Session,
    statement: &Insert,
    bound: &Bound,
    parameters: &[ScalarValue],
    cancel: CancellationToken,
) -> Result<Response> {
    let context = session.context()?;
    let table = relation::writable(&context.snapshot.catalog, &statement.table)?;
    let mut columns = targets(&table, &statement.columns)?;
    columns.truncate(statement.source.as_ref().map_or(0, |_| bound.schema.fields().len()));
    let pipeline = pipeline(session, &table, &columns)?;
    let mut rows = Rows::new(session, &table);
    if statement.returning.is_some() {
        rows = rows.in_memory();
    }
    if statement.source.is_none() {
        // DEFAULT VALUES: a row without a source column.
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(1));
        let empty = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &options);
        rows.add(vec![pipeline.complete(empty.map_err(|error| Error::internal(error.to_string()))?)?]).await?;
    } else {
        let mut stream = session.services.engine.run(&context, bound, parameters, cancel.clone()).await?;
        while let Some(batch) = stream.try_next().await.map_err(engine_error)? {
            rows.add(vec![pipeline.complete(nulls_typed(&table, &columns, batch)?)?]).await?;
        }
    }
    let committed = match &statement.on_conflict {
        Some(clause) => {
            let bound = conflict::Upsert { table: &table, alias: statement.alias.as_deref(), clause, types: &bound.parameters, parameters };
            bound.execute(session, rows.kept().to_vec(), cancel.clone()).await?
        }
        None => rows.commit(session, &table, statement.returning.is_some()).await?,
    };
    match &statement.returning {
        None => Ok(done(&committed)),
        Some(items) => {
            let selection = returning(&table, statement.alias.as_deref(), items)?;
            modify::returned(session, &context, &table, &committed.rows, &selection, "INSERT", cancel).await
        }
    }
}

/// Gives columns that hold nothing but NULL, which the planner leaves without a type of their own, the target's type.
fn nulls_typed(table: &Table, columns: &[usize], batch: RecordBatch) -> Result<RecordBatch> {
    let schema = table.schema();
    let untyped = |(array, column): (&ArrayRef, &usize)| {
        array.data_type() != schema.field(*column).data_type() && array.logical_null_count() == array.len()
    };
    if !batch.columns().iter().zip(columns).any(untyped) {
        return Ok(batch);
    }
    let arrays = batch.columns().iter().zip(columns).map(|(array, column)| match untyped((array, column)) {
        true => new_null_array(schema.field(*column).data_type(), array.len()),
        false => Arc::clone(array),
    });
    let arrays: Vec<ArrayRef> = arrays.collect();
    let fields: Vec<_> = batch
        .schema()
        .fields()
        .iter()
        .zip(&arrays)
        .map(|(field, array)| Field::new(field.name(), array.data_type().clone(), true))
        .collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(|error| Error::internal(error.to_string()))
}

/// `INSERT INTO t [(columns)] VALUES` with literals only; `text` is the statement's text (`Parsed::text`).
pub async fn literals(session: &mut Session, statement: &InsertLiterals, text: &str) -> Result<Response> {
    let catalog = Arc::clone(&session.snapshot()?.catalog);
    let table = relation::writable(&catalog, &statement.table)?;
    let mut columns = targets(&table, &statement.columns)?;
    if statement.columns.is_empty() {
        // Without a list, fewer values than columns are allowed: the rest gets its defaults.
        columns.truncate(statement.width);
    }
    let list = &text[statement.rows.clone()];
    let pipeline = pipeline(session, &table, &columns)?;
    let rows = pipeline.literals(list)?;
    let committed = commit(session, &table, vec![rows], false).await?;
    Ok(done(&committed))
}

/// The target columns as indexes into the table. 42703 for an unknown one, 42701 for one named twice.
pub fn targets(table: &Table, names: &[String]) -> Result<Vec<usize>> {
    if names.is_empty() {
        return Ok((0..table.columns.len()).filter(|index| table.columns[*index].generated.is_none()).collect());
    }
    let mut columns = Vec::with_capacity(names.len());
    for name in names {
        let index = table.column(name).ok_or_else(|| {
            Error::new(SqlState::UNDEFINED_COLUMN, format!("column \"{name}\" of relation \"{}\" does not exist", table.name))
        })?;
        if columns.contains(&index) {
            return Err(Error::new(SqlState::DUPLICATE_COLUMN, format!("column \"{name}\" specified more than once")));
        }
        columns.push(index);
    }
    Ok(columns)
}

/// The table's rules, as this session reads dates and times.
pub fn pipeline(session: &mut Session, table: &Arc<Table>, columns: &[usize]) -> Result<Pipeline> {
    let now = session.context()?.now;
    let zone = Zone::parse(session.vars.time_zone())?;
    Ok(Pipeline::new(&*session.services.binder, table, columns, now)?.in_zone(zone))
}

/// The same for COPY with the DEFAULT option, whose rows may ask for the default of a column that they have.
pub fn pipeline_with_defaults(session: &mut Session, table: &Arc<Table>, columns: &[usize]) -> Result<Pipeline> {
    let now = session.context()?.now;
    let zone = Zone::parse(session.vars.time_zone())?;
    Ok(Pipeline::with_defaults(&*session.services.binder, table, columns, now)?.in_zone(zone))
}

/// Submits rows and tells the client what became of those that were not accepted. With `returning` the others come back.
pub async fn commit(session: &mut Session, table: &Table, rows: Vec<RecordBatch>, returning: bool) -> Result<Committed> {
    let late_rows: LateRows = session.vars.late_rows().unwrap_or(table.options.late_rows);
    let write = Write { table: table.oid, rows, late_rows };
    let committed = session.submit(Transaction { writes: vec![write], returning, ..Transaction::default() }).await?;
    notices(session, table, &committed);
    Ok(committed)
}

/// Tells the client what became of rows that were not accepted.
pub fn notices(session: &mut Session, table: &Table, committed: &Committed) {
    let rows = |count: u64| if count == 1 { "1 row".to_owned() } else { format!("{count} rows") };
    let were = |count: u64| if count == 1 { "was" } else { "were" };
    if committed.late > 0 {
        session.notice_late(&table.name, committed.late);
    }
    if committed.duplicates > 0 {
        let text = format!("{} with a known dedup_key {} dropped", rows(committed.duplicates), were(committed.duplicates));
        session.warn(SqlState("00000"), text);
    }
}

fn done(committed: &Committed) -> Response {
    Response::Done(format!("INSERT 0 {}", committed.accepted))
}

/// A cast that does not exist is, in an assignment, a type that does not fit (42804).
pub fn mismatch(error: Error) -> Error {
    if error.state() != SqlState("42846") {
        return error;
    }
    Error::new(SqlState::DATATYPE_MISMATCH, format!("expression does not fit its column: {error}"))
        .hint("You will need to rewrite or cast the expression.")
}

fn count_mismatch(too_many: bool) -> Error {
    Error::syntax(match too_many {
        true => "INSERT has more expressions than target columns",
        false => "INSERT has more target columns than expressions",
    })
}

/// The source as a query whose columns have the target's types.
fn source(table: &Table, statement: &Insert, columns: &[usize], declared: &mut Vec<Option<SqlType>>) -> Result<ast::Query> {
    let Some(source) = &statement.source else { return crate::sql::parse_query("SELECT NULL WHERE false") };
    let mut source = (**source).clone();
    if let ast::SetExpr::Values(values) = source.body.as_mut() {
        let width = values.rows.first().map_or(0, |row| row.content.len());
        for row in &mut values.rows {
            if row.content.len() != width {
                return Err(Error::syntax("VALUES lists must all be the same length"));
            }
            if width > columns.len() {
                return Err(count_mismatch(true));
            }
            for (expression, column) in row.content.iter_mut().zip(columns) {
                let sql_type = &table.columns[*column].sql_type;
                if is_default(expression) {
                    *expression = default_of(table, *column)?;
                }
                if let Some(number) = parameter(expression) {
                    declared.resize(declared.len().max(number), None);
                    declared[number - 1].get_or_insert_with(|| sql_type.clone());
                }
                *expression = assigned(expression.clone(), &table.columns[*column])?;
            }
        }
        return Ok(source);
    }
    let mut width = columns.len();
    if let ast::SetExpr::Select(select) = source.body.as_mut()
        && select.projection.iter().all(|item| !is_wildcard(item))
    {
        width = select.projection.len();
        if width > columns.len() {
            return Err(count_mismatch(true));
        }
        let plain = select.distinct.is_none();
        for (item, column) in select.projection.iter_mut().zip(columns).filter(|_| plain) {
            let (ast::SelectItem::UnnamedExpr(expression) | ast::SelectItem::ExprWithAlias { expr: expression, .. }) = item else {
                continue;
            };
            let sql_type = &table.columns[*column].sql_type;
            if let Some(number) = parameter(expression) {
                declared.resize(declared.len().max(number), None);
                declared[number - 1].get_or_insert_with(|| sql_type.clone());
            }
            // Literals of the list itself are not text yet.
            if is_literal(expression) {
                *expression = cast(expression.clone(), sql_type)?;
            }
        }
    }
    let names: Vec<String> = (0..width).map(|index| format!("c{index}")).collect();
    let items: Vec<String> = names
        .iter()
        .zip(columns)
        .map(|(name, column)| {
            let name = crate::sql::parse_expression(name)?;
            assigned(name, &table.columns[*column]).map(|assigned| assigned.to_string())
        })
        .collect::<Result<_>>()?;
    crate::sql::parse_query(&format!("SELECT {} FROM ({source}) AS source ({})", items.join(", "), names.join(", ")))
}

/// A string literal or NULL, whose type is open.
fn is_literal(expression: &ast::Expr) -> bool {
    match expression {
        ast::Expr::Value(value) => matches!(
            value.value,
            ast::Value::SingleQuotedString(_) | ast::Value::EscapedStringLiteral(_) | ast::Value::DollarQuotedString(_) | ast::Value::Null
        ),
        ast::Expr::Nested(inner) => is_literal(inner),
        _ => false,
    }
}

/// An expression as it is assigned to a column: literals and parameters are read as its type, anything else is cast where PostgreSQL
/// would.
pub fn assigned(expression: ast::Expr, column: &Column) -> Result<ast::Expr> {
    if is_literal(&expression) || parameter(&expression).is_some() {
        return cast(expression, &column.sql_type);
    }
    let mut tree = crate::sql::parse_expression(&format!(
        "{ASSIGNMENT}(NULL, CAST(NULL AS {}), {})",
        assignment_type(&column.sql_type),
        ast::Value::SingleQuotedString(column.name.clone())
    ))?;
    if let ast::Expr::Function(ast::Function { args: ast::FunctionArguments::List(list), .. }) = &mut tree
        && let Some(first) = list.args.first_mut()
    {
        *first = ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Expr(expression));
    }
    Ok(tree)
}

/// `*` or `t.*`.
pub fn is_wildcard(item: &ast::SelectItem) -> bool {
    matches!(item, ast::SelectItem::Wildcard(_) | ast::SelectItem::QualifiedWildcard(..))
}

fn is_default(expression: &ast::Expr) -> bool {
    matches!(expression, ast::Expr::Identifier(ident) if ident.quote_style.is_none() && ident.value.eq_ignore_ascii_case("default"))
}

/// The column's default as an expression.
pub fn default_of(table: &Table, column: usize) -> Result<ast::Expr> {
    let column = &table.columns[column];
    match &column.default {
        Some(text) if defaults::is_of_row(table, text)? => {
            Err(Error::unsupported(format!("the default of column \"{}\" is computed from its row", column.name))
                .hint("Leave the column out of the statement's columns."))
        }
        Some(text) => crate::sql::parse_expression(text),
        None => crate::sql::parse_expression("NULL"),
    }
}

/// The number of a parameter that stands alone.
pub fn parameter(expression: &ast::Expr) -> Option<usize> {
    match expression {
        ast::Expr::Value(value) => match &value.value {
            ast::Value::Placeholder(name) => name.strip_prefix('$')?.parse().ok().filter(|number| (1..=65_535).contains(number)),
            _ => None,
        },
        _ => None,
    }
}

/// The type that a value is cast to on assignment. Strings are not cut to their column's length here: too long is an error, which the pipeline gives.
fn assignment_type(sql_type: &SqlType) -> String {
    match sql_type {
        SqlType::Varchar(_) | SqlType::Char(_) | SqlType::Name => "text".to_owned(),
        other => other.to_string(),
    }
}

/// A value cast to its column's type.
pub fn cast(expression: ast::Expr, sql_type: &SqlType) -> Result<ast::Expr> {
    let mut tree = crate::sql::parse_expression(&format!("CAST(NULL AS {})", assignment_type(sql_type)))?;
    if let ast::Expr::Cast { expr, .. } = &mut tree {
        **expr = expression;
    }
    Ok(tree)
}

/// `SELECT items FROM table [AS alias]`.
pub fn returning(table: &Table, alias: Option<&str>, items: &[ast::SelectItem]) -> Result<Statement> {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    let alias = alias.map_or(String::new(), |alias| format!(" AS {}", quote_identifier(alias)));
    let text = format!("SELECT {} FROM {}{alias}", items.join(", "), quote_identifier(&table.name));
    Ok(Statement::Query(Box::new(crate::sql::parse_query(&text)?)))
}
