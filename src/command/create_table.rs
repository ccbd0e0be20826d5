//! CREATE TABLE.

use std::sync::Arc;

use datafusion::physical_expr_common::physical_expr::is_volatile;
use sqlparser::ast;

use crate::catalog::{Change, Check, Column, Oid, Table, TableKind, TableOptions, Unique, Watermark};
use crate::command::{Response, options, relation};
use crate::error::{Error, Result, SqlState};
use crate::ingest::defaults;
use crate::session::Session;
use crate::sql::statement::{ColumnDefinition, CreateTable, UniqueDefinition};
use crate::store::Transaction;
use crate::types::SqlType;
use crate::types::text::interval::interval;

/// `CREATE TABLE [IF NOT EXISTS] name (columns, constraints, [WATERMARK FOR ...]) [WITH (...)]`. With a WATERMARK it is an event
/// table and gets its `$late` companion in the same commit.
pub async fn execute(session: &mut Session, statement: &CreateTable) -> Result<Response> {
    relation::creatable(&statement.name)?;
    let catalog = Arc::clone(&session.snapshot()?.catalog);
    let name = &statement.name.name;
    if catalog.table_named(name).is_some() || catalog.view_named(name).is_some() {
        let message = format!("relation \"{name}\" already exists");
        if !statement.if_not_exists {
            return Err(Error::new(SqlState::DUPLICATE_TABLE, message));
        }
        session.warn(SqlState::DUPLICATE_TABLE, format!("{message}, skipping"));
        return Ok(Response::Done("CREATE TABLE".to_owned()));
    }
    let store = Arc::clone(&session.services.store);
    let mut table = define(statement, store.allocate_oid())?;
    prove(session, &table)?;
    let mut changes = Vec::new();
    if table.watermark.is_some() {
        if let Some(column) = table.columns.iter().find(|column| LATE_COLUMNS.contains(&column.name.as_str())) {
            return Err(Error::new(
                SqlState::DUPLICATE_COLUMN,
                format!("column name \"{}\" conflicts with a column of \"{name}$late\"", column.name),
            ));
        }
        let late = companion(&table, store.allocate_oid());
        if catalog.table_named(&late.name).is_some() || catalog.view_named(&late.name).is_some() {
            return Err(Error::new(SqlState::DUPLICATE_TABLE, format!("relation \"{}\" already exists", late.name)));
        }
        table.late_oid = Some(late.oid);
        changes.push(Change::CreateTable(Arc::new(late)));
    }
    changes.push(Change::CreateTable(Arc::new(table)));
    session.submit(Transaction { changes, ..Transaction::default() }).await?;
    Ok(Response::Done("CREATE TABLE".to_owned()))
}

/// What a `$late` companion has besides the columns of its table.
pub const LATE_COLUMNS: [&str; 3] = ["lateness", "arrived_at", "disposition"];

fn define(statement: &CreateTable, oid: Oid) -> Result<Table> {
    let name = statement.name.name.clone();
    let mut columns: Vec<Column> = Vec::with_capacity(statement.columns.len());
    let mut checks = Vec::new();
    for definition in &statement.columns {
        if columns.iter().any(|column| column.name == definition.name) {
            return Err(Error::new(SqlState::DUPLICATE_COLUMN, format!("column \"{}\" specified more than once", definition.name)));
        }
        columns.push(column(definition)?);
        for (given, expression) in &definition.checks {
            add_check(&mut checks, given.as_deref(), format!("{name}_{}_check", definition.name), expression)?;
        }
    }
    if columns.is_empty() {
        return Err(Error::unsupported("a table needs a column"));
    }
    for (given, expression) in &statement.checks {
        add_check(&mut checks, given.as_deref(), format!("{name}_check"), expression)?;
    }
    let unique = unique(statement, &mut columns)?;
    let watermark = statement.watermark.as_ref().map(|(column, expression)| watermark(&columns, column, expression)).transpose()?;
    if let Some(watermark) = watermark {
        columns[watermark.column].nullable = false;
    }
    let options = options::table(&statement.options, &columns, watermark.is_some())?;
    for key in [options.partition_by, options.dedup_key].into_iter().flatten() {
        if matches!(columns[key].sql_type, SqlType::Array(_) | SqlType::Json | SqlType::Jsonb | SqlType::Interval) {
            let column = &columns[key];
            return Err(Error::new(
                SqlState::DATATYPE_MISMATCH,
                format!("column \"{}\" of type {} cannot be a key", column.name, column.sql_type),
            ));
        }
    }
    if watermark.is_some() && !unique.is_empty() {
        let what = if unique.iter().any(|unique| unique.primary) { "PRIMARY KEY" } else { "UNIQUE" };
        return Err(Error::unsupported(format!("{what} is not supported on an event table"))
            .hint("Event tables drop duplicates with WITH (dedup_key = 'column')."));
    }
    let primary_key = unique.iter().find(|unique| unique.primary).map(|unique| unique.columns.clone()).unwrap_or_default();
    let kind = if watermark.is_some() { TableKind::Event } else { TableKind::Plain };
    Ok(Table { oid, name, kind, columns, checks, primary_key, unique, watermark, options, late_oid: None })
}

/// PRIMARY KEY and UNIQUE, the key first; its columns become NOT NULL. 42703 for an unknown column, 42701 for one named twice,
/// 42704 for a type without equality.
fn unique(statement: &CreateTable, columns: &mut [Column]) -> Result<Vec<Unique>> {
    let mut found: Vec<Unique> = Vec::new();
    let mut definitions: Vec<&UniqueDefinition> = statement.unique.iter().collect();
    definitions.sort_by_key(|definition| !definition.primary);
    for definition in definitions {
        let what = if definition.primary { "primary key" } else { "unique" };
        let mut indexes = Vec::new();
        for name in &definition.columns {
            let index = columns
                .iter()
                .position(|column| column.name == *name)
                .ok_or_else(|| Error::new(SqlState::UNDEFINED_COLUMN, format!("column \"{name}\" named in key does not exist")))?;
            if indexes.contains(&index) {
                return Err(Error::new(SqlState::DUPLICATE_COLUMN, format!("column \"{name}\" appears twice in {what} constraint")));
            }
            if columns[index].sql_type == SqlType::Json {
                return Err(Error::new(
                    SqlState::UNDEFINED_OBJECT,
                    "data type json has no default operator class for access method \"btree\"",
                ));
            }
            columns[index].nullable &= !definition.primary;
            indexes.push(index);
        }
        let table = &statement.name.name;
        let base = match definition.primary {
            true => format!("{table}_pkey"),
            false => format!("{table}_{}_key", definition.columns.join("_")),
        };
        let taken = |name: &str, found: &[Unique]| found.iter().any(|unique| unique.name == name);
        let name = match &definition.name {
            Some(given) if taken(given, &found) => {
                return Err(Error::new(SqlState::DUPLICATE_TABLE, format!("relation \"{given}\" already exists")));
            }
            Some(given) => given.clone(),
            None => std::iter::once(base.clone())
                .chain((1..).map(|number| format!("{base}{number}")))
                .find(|name| !taken(name, &found))
                .unwrap_or(base),
        };
        // PostgreSQL, too, makes one index of two equal constraints.
        if !found.iter().any(|unique| unique.columns == indexes && definition.name.is_none()) {
            found.push(Unique { name, columns: indexes, primary: definition.primary });
        }
    }
    Ok(found)
}

/// A column as declared. 42611 for a default beside a generation expression, 42601 for a reserved name.
pub fn column(definition: &ColumnDefinition) -> Result<Column> {
    if definition.name == crate::types::LSN_COLUMN {
        return Err(Error::new(
            SqlState::DUPLICATE_COLUMN,
            format!("column name \"{}\" conflicts with a system column name", definition.name),
        ));
    }
    if definition.default.is_some() && definition.generated.is_some() {
        return Err(Error::syntax(format!("both default and generation expression specified for column \"{}\"", definition.name)));
    }
    Ok(Column {
        name: definition.name.clone(),
        sql_type: definition.sql_type.clone(),
        nullable: !definition.not_null,
        default: definition.default.clone(),
        generated: definition.generated.clone(),
        fill: None,
    })
}

/// Names a constraint as PostgreSQL does: the given name, or the first free of `base`, `base1`, `base2`.
pub fn add_check(checks: &mut Vec<Check>, given: Option<&str>, base: String, expression: &str) -> Result<()> {
    let taken = |name: &str, checks: &[Check]| checks.iter().any(|check| check.name == name);
    let name = match given {
        Some(given) if taken(given, checks) => {
            return Err(Error::new(SqlState::DUPLICATE_OBJECT, format!("check constraint \"{given}\" already exists")));
        }
        Some(given) => given.to_owned(),
        None => {
            let mut name = base.clone();
            let mut number = 0;
            while taken(&name, checks) {
                number += 1;
                name = format!("{base}{number}");
            }
            name
        }
    };
    checks.push(Check { name, expression: expression.to_owned() });
    Ok(())
}

/// `WATERMARK FOR column AS column [- INTERVAL '...']`.
fn watermark(columns: &[Column], name: &str, expression: &ast::Expr) -> Result<Watermark> {
    let column = columns
        .iter()
        .position(|column| column.name == name)
        .ok_or_else(|| Error::new(SqlState::UNDEFINED_COLUMN, format!("column \"{name}\" named in WATERMARK does not exist")))?;
    let declared = &columns[column];
    if !matches!(declared.sql_type, SqlType::Timestamp | SqlType::Timestamptz) {
        return Err(Error::new(
            SqlState::DATATYPE_MISMATCH,
            format!("WATERMARK column \"{name}\" must be of type timestamp or timestamp with time zone, not {}", declared.sql_type),
        ));
    }
    if declared.generated.is_some() {
        return Err(Error::new(SqlState::INVALID_TABLE_DEFINITION, format!("WATERMARK column \"{name}\" cannot be generated")));
    }
    let shape = || {
        Error::new(SqlState::INVALID_TABLE_DEFINITION, format!("WATERMARK expression must be {name} or {name} - INTERVAL '...'"))
            .hint(format!("For example WATERMARK FOR {name} AS {name} - INTERVAL '5 minutes'."))
    };
    let is_column = |expression: &ast::Expr| match expression {
        ast::Expr::Identifier(ident) => ident.value == name || (ident.quote_style.is_none() && ident.value.to_lowercase() == name),
        _ => false,
    };
    let lateness = match expression {
        own if is_column(own) => return Ok(Watermark { column, lateness_us: 0 }),
        ast::Expr::BinaryOp { left, op: ast::BinaryOperator::Minus, right } if is_column(left) => match right.as_ref() {
            ast::Expr::Interval(ast::Interval { value, leading_field, .. }) => match (value.as_ref(), leading_field) {
                (ast::Expr::Value(value), unit) => {
                    let text = match &value.value {
                        ast::Value::SingleQuotedString(text) | ast::Value::Number(text, _) => text.clone(),
                        _ => return Err(shape()),
                    };
                    unit.as_ref().map_or(text.clone(), |unit| format!("{text} {unit}"))
                }
                _ => return Err(shape()),
            },
            _ => return Err(shape()),
        },
        _ => return Err(shape()),
    };
    match options::microseconds(interval(&lateness)?) {
        Some(lateness_us) if lateness_us >= 0 => Ok(Watermark { column, lateness_us }),
        _ => Err(Error::new(SqlState::INVALID_PARAMETER_VALUE, "WATERMARK lateness must not be negative")),
    }
}

/// Binds every expression of the table, so that errors come now and not with the first row.
pub fn prove(session: &Session, table: &Table) -> Result<()> {
    let binder = &session.services.binder;
    let schema = table.schema();
    let none = Arc::new(arrow::datatypes::Schema::empty());
    for column in &table.columns {
        let target = [Some(column.sql_type.arrow())];
        if let Some(default) = &column.default {
            let over = if defaults::is_of_row(table, default)? { defaults::schema(table) } else { Arc::clone(&none) };
            binder.bind_expressions(&over, std::slice::from_ref(default), &target)?;
        }
        if let Some(generated) = &column.generated {
            let own = table.columns.iter().filter(|other| other.generated.is_some()).map(|other| other.name.as_str());
            refuse_references(generated, own)?;
            let bound = binder.bind_expressions(&schema, std::slice::from_ref(generated), &target)?;
            if bound.iter().any(is_volatile) {
                return Err(Error::new(SqlState::INVALID_OBJECT_DEFINITION, "generation expression is not immutable"));
            }
        }
    }
    for check in &table.checks {
        let bound = binder.bind_expressions(&schema, std::slice::from_ref(&check.expression), &[None])?;
        let found = bound[0].data_type(&schema).map_err(|error| Error::internal(error.to_string()))?;
        if !matches!(found, arrow::datatypes::DataType::Boolean | arrow::datatypes::DataType::Null) {
            let found = SqlType::of_arrow(&found);
            return Err(Error::new(SqlState::DATATYPE_MISMATCH, format!("argument of CHECK must be type boolean, not type {found}")));
        }
    }
    Ok(())
}

/// A generated column must not build on another (42P17), as in PostgreSQL: their order would decide the value.
fn refuse_references<'a>(expression: &str, generated: impl Iterator<Item = &'a str>) -> Result<()> {
    let tree = crate::sql::parse_expression(expression)?;
    let mut names = Vec::new();
    let _: std::ops::ControlFlow<()> = ast::visit_expressions(&tree, |expression| {
        if let ast::Expr::Identifier(ident) = expression {
            names.push(ident.value.clone());
        }
        std::ops::ControlFlow::Continue(())
    });
    for name in generated {
        if names.iter().any(|found| found == name) {
            return Err(Error::new(
                SqlState::INVALID_OBJECT_DEFINITION,
                format!("cannot use generated column \"{name}\" in column generation expression"),
            )
            .detail("A generated column cannot reference another generated column."));
        }
    }
    Ok(())
}

/// The table that records an event table's very late rows: its columns without rules, then how late, when, and what became of it.
pub fn companion(table: &Table, oid: Oid) -> Table {
    let plain = |name: &str, sql_type: SqlType| Column {
        name: name.to_owned(),
        sql_type,
        nullable: true,
        default: None,
        generated: None,
        fill: None,
    };
    let mut columns: Vec<Column> = table.columns.iter().map(|column| plain(&column.name, column.sql_type.clone())).collect();
    let types = [SqlType::Interval, SqlType::Timestamptz, SqlType::Text];
    columns.extend(LATE_COLUMNS.iter().zip(types).map(|(name, sql_type)| plain(name, sql_type)));
    Table {
        oid,
        name: format!("{}$late", table.name),
        kind: TableKind::Late,
        columns,
        checks: Vec::new(),
        primary_key: Vec::new(),
        unique: Vec::new(),
        watermark: None,
        options: TableOptions { compression: table.options.compression, ..TableOptions::default() },
        late_oid: None,
    }
}
