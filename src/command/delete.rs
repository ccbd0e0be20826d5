//! DELETE.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use sqlparser::ast;
use tokio_util::sync::CancellationToken;

use crate::catalog::{Table, TableKind};
use crate::command::{Response, insert, modify, relation};
use crate::error::{Error, Result};
use crate::query::{Bound, Context};
use crate::session::Session;
use crate::sql::Statement;
use crate::sql::statement::Delete;
use crate::store::{self, Transaction};
use crate::types::SqlType;

/// A statement over its table, ready to be bound.
struct Shape {
    table: Arc<Table>,
    /// What RETURNING gives, then the old row where keys or views need it, then the LSN.
    source: ast::Query,
}

/// Types a statement and its RETURNING columns.
pub fn bind(session: &mut Session, statement: &Delete, declared: &[Option<SqlType>]) -> Result<(Bound, Option<SchemaRef>)> {
    let context = session.context()?;
    let shape = shape(&context, statement)?;
    let engine = &session.services.engine;
    let bound = engine.bind(&context, &Statement::Query(Box::new(shape.source.clone())), declared).map_err(insert::mismatch)?;
    let schema = statement.returning.as_ref().map(|_| Arc::new(Schema::new(bound.schema.fields()[..shape.returned(&bound)].to_vec())));
    Ok((bound, schema))
}

/// Runs a bound statement.
pub async fn execute(
    session: &mut Session,
    statement: &Delete,
    bound: &Bound,
    parameters: &[ScalarValue],
    cancel: CancellationToken,
) -> Result<Response> {
    let mut attempts = modify::Attempts::default();
    loop {
        let context = session.context()?;
        let shape = shape(&context, statement)?;
        let (table, returned) = (&shape.table, shape.returned(bound));
        let found = modify::found(session, &context, bound, parameters, cancel.clone()).await?;
        let old = modify::columns(&found, returned..bound.schema.fields().len())?;
        let delete = store::Delete::new(table, &context.snapshot, &old)?;
        let count = delete.rows.len();
        if count > 0 {
            if !session.lock_rows(&delete).await? {
                attempts.again(session)?;
                continue;
            }
            if let Err(error) = session.submit(Transaction { deletes: vec![delete], ..Transaction::default() }).await {
                if attempts.retries(session, &error)? {
                    continue;
                }
                return Err(error);
            }
        }
        if statement.returning.is_none() {
            return Ok(Response::Done(format!("DELETE {count}")));
        }
        let schema = Arc::new(Schema::new(bound.schema.fields()[..returned].to_vec()));
        let shown = |batch: &RecordBatch| RecordBatch::try_new(Arc::clone(&schema), batch.columns()[..returned].to_vec());
        let rows: Vec<_> = found.iter().map(|batch| shown(batch).map_err(Into::into)).collect();
        let stream = Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&schema), futures::stream::iter(rows)));
        return Ok(Response::Rows { schema, stream, tag: "DELETE" });
    }
}

impl Shape {
    /// Columns that RETURNING gives.
    fn returned(&self, bound: &Bound) -> usize {
        let old = if keeps_old(&self.table) { self.table.columns.len() } else { 0 };
        bound.schema.fields().len() - 1 - old
    }
}

fn shape(context: &Context, statement: &Delete) -> Result<Shape> {
    let table = relation::table(&context.snapshot.catalog, &statement.table)?;
    let alias = statement.alias.as_deref();
    let mut items = returned_items(&table, alias, statement)?;
    if keeps_old(&table) {
        items.extend((0..table.columns.len()).map(|index| modify::item(modify::column(&table, alias, index), index)));
    }
    let source = modify::selection(&table, alias, items, &statement.using, statement.selection.clone())?;
    Ok(Shape { table, source })
}

/// Whether the deleted rows themselves are needed: for keys, or for the views that count them.
fn keeps_old(table: &Table) -> bool {
    !table.unique.is_empty() || table.kind != TableKind::Plain
}

/// RETURNING's items, the target's columns written out: its LSN is not to be among them.
fn returned_items(table: &Table, alias: Option<&str>, statement: &Delete) -> Result<Vec<ast::SelectItem>> {
    let own = || (0..table.columns.len()).map(|index| ast::SelectItem::UnnamedExpr(modify::column(table, alias, index)));
    let mut items = Vec::new();
    for item in statement.returning.iter().flatten() {
        match item {
            ast::SelectItem::Wildcard(_) => {
                items.extend(own());
                let joined = statement
                    .using
                    .iter()
                    .flat_map(|item| std::iter::once(&item.relation).chain(item.joins.iter().map(|join| &join.relation)));
                for relation in joined {
                    items.push(every_column(relation)?);
                }
            }
            ast::SelectItem::QualifiedWildcard(ast::SelectItemQualifiedWildcardKind::ObjectName(name), _)
                if name.0.last().and_then(ast::ObjectNamePart::as_ident).is_some_and(|ident| modify::is_target(table, alias, ident)) =>
            {
                items.extend(own());
            }
            other => items.push(other.clone()),
        }
    }
    Ok(items)
}

/// `name.*` of a relation in USING.
fn every_column(relation: &ast::TableFactor) -> Result<ast::SelectItem> {
    let name = match relation {
        ast::TableFactor::Table { alias: Some(alias), .. } | ast::TableFactor::Derived { alias: Some(alias), .. } => {
            ast::ObjectName(vec![ast::ObjectNamePart::Identifier(alias.name.clone())])
        }
        ast::TableFactor::Table { name, .. } => ast::ObjectName(name.0.last().cloned().into_iter().collect()),
        _ => return Err(Error::unsupported("RETURNING * with this USING clause is not supported").hint("Name the columns.")),
    };
    let kind = ast::SelectItemQualifiedWildcardKind::ObjectName(name);
    Ok(ast::SelectItem::QualifiedWildcard(kind, ast::WildcardAdditionalOptions::default()))
}
