//! UPDATE.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::ScalarValue;
use sqlparser::ast;
use tokio_util::sync::CancellationToken;

use crate::catalog::{Column, Table};
use crate::command::{Response, insert, modify, relation};
use crate::error::{Error, Result, SqlState};
use crate::query::{Bound, Context};
use crate::session::Session;
use crate::sql::Statement;
use crate::sql::statement::{Assignment, Update};
use crate::store::{Delete, Transaction, Write};
use crate::types::SqlType;

/// A statement over its table, ready to be bound.
struct Shape {
    table: Arc<Table>,
    /// New values of the columns that are not generated, then the old row where keys need it, then what RETURNING wants of FROM,
    /// then the LSN.
    source: ast::Query,
    /// Columns that are not generated.
    targets: Vec<usize>,
    /// RETURNING over the new row, with other names for what it wants of FROM.
    returning: Option<Vec<ast::SelectItem>>,
    /// What RETURNING wants of FROM.
    wanted: usize,
}

/// Types a statement and its RETURNING columns.
pub fn bind(session: &mut Session, statement: &Update, declared: &[Option<SqlType>]) -> Result<(Bound, Option<SchemaRef>)> {
    let context = session.context()?;
    let mut declared = declared.to_vec();
    let shape = shape(&context, statement, &mut declared)?;
    let engine = &session.services.engine;
    let bound = engine.bind(&context, &Statement::Query(Box::new(shape.source.clone())), &declared).map_err(insert::mismatch)?;
    let schema = match &shape.returning {
        None => None,
        Some(items) => {
            let row = Arc::new(shape.row(&bound));
            let context = modify::over_rows(&context, &row, &[])?;
            Some(engine.bind(&context, &insert::returning(&row, statement.alias.as_deref(), items)?, &[])?.schema)
        }
    };
    Ok((bound, schema))
}

/// Runs a bound statement.
pub async fn execute(
    session: &mut Session,
    statement: &Update,
    bound: &Bound,
    parameters: &[ScalarValue],
    cancel: CancellationToken,
) -> Result<Response> {
    let mut attempts = modify::Attempts::default();
    loop {
        let context = session.context()?;
        let shape = shape(&context, statement, &mut Vec::new())?;
        let (table, width) = (&shape.table, shape.targets.len());
        let pipeline = insert::pipeline(session, table, &shape.targets)?;
        let found = modify::found(session, &context, bound, parameters, cancel.clone()).await?;
        let last = bound.schema.fields().len();
        let rows = modify::columns(&found, 0..width)?.into_iter().map(|rows| pipeline.complete(rows)).collect::<Result<Vec<_>>>()?;
        let old = if table.unique.is_empty() {
            modify::columns(&found, last - 1..last)?
        } else {
            let mut columns: Vec<usize> = (width..width + table.columns.len()).collect();
            columns.push(last - 1);
            let project = |batch: &RecordBatch| batch.project(&columns).map_err(|error| Error::internal(error.to_string()));
            found.iter().map(project).collect::<Result<_>>()?
        };
        let delete = Delete::new(table, &context.snapshot, &old)?;
        let count = delete.rows.len();
        if count > 0 {
            if !session.lock_rows(&delete).await? {
                attempts.again(session)?;
                continue;
            }
            let write = Write { table: table.oid, rows: rows.clone(), late_rows: table.options.late_rows };
            let transaction = Transaction { deletes: vec![delete], writes: vec![write], ..Transaction::default() };
            if let Err(error) = session.submit(transaction).await {
                if attempts.retries(session, &error)? {
                    continue;
                }
                return Err(error);
            }
        }
        let Some(items) = &shape.returning else { return Ok(Response::Done(format!("UPDATE {count}"))) };
        let row = Arc::new(shape.row(bound));
        let extra = modify::columns(&found, last - 1 - shape.wanted..last - 1)?;
        let widened = rows.iter().zip(&extra).map(|(rows, extra)| widen(&row, rows, extra)).collect::<Result<Vec<_>>>()?;
        let selection = insert::returning(&row, statement.alias.as_deref(), items)?;
        return modify::returned(session, &context, &row, &widened, &selection, "UPDATE", cancel).await;
    }
}

fn widen(row: &Table, rows: &RecordBatch, extra: &RecordBatch) -> Result<RecordBatch> {
    let columns = [rows.columns(), extra.columns()].concat();
    RecordBatch::try_new(row.schema(), columns).map_err(|error| Error::internal(error.to_string()))
}

impl Shape {
    /// The new row as RETURNING sees it: the table's columns, then what it wants of FROM.
    fn row(&self, bound: &Bound) -> Table {
        let mut row = Table::clone(&self.table);
        row.oid = modify::TRANSIENT_OID;
        let last = bound.schema.fields().len() - 1;
        for (number, field) in bound.schema.fields()[last - self.wanted..last].iter().enumerate() {
            let sql_type = SqlType::of_field(field);
            row.columns.push(Column { name: wanted_name(number), sql_type, nullable: true, default: None, generated: None, fill: None });
        }
        row
    }
}

fn shape(context: &Context, statement: &Update, declared: &mut Vec<Option<SqlType>>) -> Result<Shape> {
    let table = relation::updatable(&context.snapshot.catalog, &statement.table)?;
    let alias = statement.alias.as_deref();
    let targets: Vec<usize> = (0..table.columns.len()).filter(|index| table.columns[*index].generated.is_none()).collect();
    let values = assigned(&table, alias, &statement.assignments, declared)?;
    let mut expressions: Vec<ast::Expr> = Vec::new();
    for index in &targets {
        expressions.push(values[*index].clone().unwrap_or_else(|| modify::column(&table, alias, *index)));
    }
    if !table.unique.is_empty() {
        expressions.extend((0..table.columns.len()).map(|index| modify::column(&table, alias, index)));
    }
    let mut wanted = Vec::new();
    let returning = match &statement.returning {
        Some(items) if !statement.from.is_empty() => Some(own_names(&table, alias, items, &mut wanted)?),
        items => items.clone(),
    };
    let count = wanted.len();
    expressions.extend(wanted);
    let items = expressions.into_iter().enumerate().map(|(number, expression)| modify::item(expression, number)).collect();
    let source = modify::selection(&table, alias, items, &statement.from, statement.selection.clone())?;
    Ok(Shape { table, source, targets, returning, wanted: count })
}

/// The assigned values by column, cast to its type. 42703 for an unknown column, 42601 for one named twice, 428C9 for a generated one.
pub fn assigned(
    table: &Table,
    alias: Option<&str>,
    assignments: &[Assignment],
    declared: &mut Vec<Option<SqlType>>,
) -> Result<Vec<Option<ast::Expr>>> {
    let mut values: Vec<Option<ast::Expr>> = vec![None; table.columns.len()];
    let mut seen = vec![false; table.columns.len()];
    for Assignment { column: name, value } in assignments {
        let index = table.column(name).ok_or_else(|| {
            let error = Error::new(SqlState::UNDEFINED_COLUMN, format!("column \"{name}\" of relation \"{}\" does not exist", table.name));
            let qualified = name == alias.unwrap_or(&table.name);
            if qualified { error.hint("SET target columns cannot be qualified with the relation name.") } else { error }
        })?;
        if std::mem::replace(&mut seen[index], true) {
            return Err(Error::syntax(format!("multiple assignments to same column \"{name}\"")));
        }
        let column = &table.columns[index];
        let value = match value {
            Some(_) if column.generated.is_some() => {
                return Err(Error::new(SqlState::GENERATED_ALWAYS, format!("column \"{name}\" can only be updated to DEFAULT"))
                    .detail(format!("Column \"{name}\" is a generated column.")));
            }
            Some(value) => value.clone(),
            None => insert::default_of(table, index)?,
        };
        if let Some(number) = insert::parameter(&value) {
            declared.resize(declared.len().max(number), None);
            declared[number - 1].get_or_insert_with(|| column.sql_type.clone());
        }
        values[index] = Some(insert::assigned(value, column)?);
    }
    Ok(values)
}

fn wanted_name(number: usize) -> String {
    format!("\u{1}f{number}")
}

/// RETURNING items in which columns of FROM have names of the new row; `wanted` takes these columns.
fn own_names(table: &Table, alias: Option<&str>, items: &[ast::SelectItem], wanted: &mut Vec<ast::Expr>) -> Result<Vec<ast::SelectItem>> {
    let foreign = |expression: &ast::Expr| match expression {
        ast::Expr::Identifier(ident) => {
            let name = if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_ascii_lowercase() };
            table.column(&name).is_none()
        }
        ast::Expr::CompoundIdentifier(parts) => parts.first().is_some_and(|first| !modify::is_target(table, alias, first)),
        _ => false,
    };
    let mut replaced = Vec::with_capacity(items.len());
    for item in items {
        let mut item = item.clone();
        match &item {
            ast::SelectItem::Wildcard(_) => {
                return Err(Error::unsupported("RETURNING * of an UPDATE with FROM is not supported").hint("Name the columns."));
            }
            ast::SelectItem::QualifiedWildcard(ast::SelectItemQualifiedWildcardKind::ObjectName(name), _) => {
                let own = name.0.last().and_then(ast::ObjectNamePart::as_ident).is_some_and(|ident| modify::is_target(table, alias, ident));
                if !own {
                    return Err(
                        Error::unsupported(format!("RETURNING {name}.* of an UPDATE with FROM is not supported")).hint("Name the columns.")
                    );
                }
                // The row has more columns than the table: those that are wanted of FROM.
                replaced.extend((0..table.columns.len()).map(|index| ast::SelectItem::UnnamedExpr(modify::column(table, alias, index))));
                continue;
            }
            ast::SelectItem::UnnamedExpr(expression) if foreign(expression) => {
                let name = match expression {
                    ast::Expr::CompoundIdentifier(parts) => parts.last().cloned(),
                    ast::Expr::Identifier(ident) => Some(ident.clone()),
                    _ => None,
                };
                if let Some(alias) = name {
                    item = ast::SelectItem::ExprWithAlias { expr: expression.clone(), alias };
                }
            }
            _ => {}
        }
        let _: std::ops::ControlFlow<()> = ast::visit_expressions_mut(&mut item, |expression| {
            if foreign(expression) {
                let number = wanted.iter().position(|known| known == expression).unwrap_or_else(|| {
                    wanted.push(expression.clone());
                    wanted.len() - 1
                });
                *expression = ast::Expr::Identifier(ast::Ident::with_quote('"', wanted_name(number)));
            }
            std::ops::ControlFlow::Continue(())
        });
        replaced.push(item);
    }
    Ok(replaced)
}
