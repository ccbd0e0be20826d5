//! `CREATE TABLE [IF NOT EXISTS] name (column type [constraint ...], [CONSTRAINT n] CHECK (...), PRIMARY KEY (...),
//! WATERMARK FOR column AS expression) [WITH (option = value, ...)]`.

use sqlparser::ast::{self, ColumnOption, GeneratedAs, GeneratedExpressionMode};
use sqlparser::parser::Parser;
use sqlparser::tokenizer::Token;

use super::{ColumnDefinition, CreateTable, Statement, UniqueDefinition};
use crate::error::{Error, Result, SqlState};
use crate::sql::reader::{Reader, fold};
use crate::sql::sql_type;

pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Statement> {
    reader.expect(&["CREATE", "TABLE"])?;
    let if_not_exists = reader.accept(&["IF", "NOT", "EXISTS"]);
    let name = reader.name()?;
    if reader.sees(&["AS"]) {
        return Err(Error::unsupported("CREATE TABLE AS is not supported").hint("Create the table, then INSERT ... SELECT."));
    }
    if reader.sees(&["PARTITION", "OF"]) || reader.sees(&["OF"]) {
        return Err(Error::unsupported("CREATE TABLE OF is not supported"));
    }
    let mut table = CreateTable {
        name,
        if_not_exists,
        columns: Vec::new(),
        checks: Vec::new(),
        unique: Vec::new(),
        watermark: None,
        options: Vec::new(),
    };
    reader.expect_token(&Token::LParen)?;
    if !reader.sees_token(&Token::RParen) {
        reader.separated(|reader| element(reader, &mut table))?;
    }
    reader.expect_token(&Token::RParen)?;
    if reader.accept(&["WITH"]) {
        table.options = reader.options()?;
    }
    for clause in ["INHERITS", "PARTITION", "USING", "TABLESPACE", "AS"] {
        if reader.sees(&[clause]) {
            let hint = "Verus orders and prunes by the option partition_by: WITH (partition_by = 'column').";
            let error = Error::unsupported(format!("CREATE TABLE ... {clause} is not supported"));
            return Err(if clause == "PARTITION" { error.hint(hint) } else { error });
        }
    }
    Ok(Statement::CreateTable(table))
}

/// A column, a constraint or the watermark.
fn element(reader: &mut Reader<'_>, table: &mut CreateTable) -> Result<()> {
    if reader.sees(&["WATERMARK", "FOR"]) {
        return watermark(reader, table);
    }
    let constraint = if reader.accept(&["CONSTRAINT"]) { Some(reader.identifier()?) } else { None };
    match reader.word(0).as_deref() {
        Some("CHECK") => {
            reader.expect(&["CHECK"])?;
            reader.expect_token(&Token::LParen)?;
            let expression = reader.run(Parser::parse_expr)?;
            reader.expect_token(&Token::RParen)?;
            reader.accept(&["NO", "INHERIT"]);
            table.checks.push((constraint, expression.to_string()));
        }
        Some("PRIMARY") => {
            reader.expect(&["PRIMARY", "KEY"])?;
            if !reader.sees_token(&Token::LParen) {
                return Err(reader.unexpected());
            }
            let columns = reader.column_list()?;
            no_index_options(reader)?;
            add_unique(table, UniqueDefinition { name: constraint, columns, primary: true })?;
        }
        Some("UNIQUE") => {
            reader.expect(&["UNIQUE"])?;
            if reader.accept(&["NULLS", "NOT", "DISTINCT"]) {
                return Err(Error::unsupported("UNIQUE NULLS NOT DISTINCT is not supported"));
            }
            reader.accept(&["NULLS", "DISTINCT"]);
            if !reader.sees_token(&Token::LParen) {
                return Err(reader.unexpected());
            }
            let columns = reader.column_list()?;
            no_index_options(reader)?;
            add_unique(table, UniqueDefinition { name: constraint, columns, primary: false })?;
        }
        Some(word @ ("FOREIGN" | "EXCLUDE" | "LIKE")) if constraint.is_some() || follows_constraint(reader, word) => {
            return Err(Error::unsupported(format!("{word} in CREATE TABLE is not supported")));
        }
        _ if constraint.is_some() => return Err(reader.unexpected()),
        _ => {
            let column = column(reader, table)?;
            table.columns.push(column);
        }
    }
    Ok(())
}

/// `exclude` and `like` may be column names, so look behind them.
fn follows_constraint(reader: &Reader<'_>, word: &str) -> bool {
    match word {
        "EXCLUDE" => reader.word(1).as_deref() == Some("USING"),
        "LIKE" => reader.word(1).is_some(),
        _ => true,
    }
}

fn watermark(reader: &mut Reader<'_>, table: &mut CreateTable) -> Result<()> {
    reader.expect(&["WATERMARK", "FOR"])?;
    let place = reader.raise(Error::new(SqlState::INVALID_TABLE_DEFINITION, "a table has at most one WATERMARK"));
    let column = reader.identifier()?;
    reader.expect(&["AS"])?;
    let expression = reader.run(Parser::parse_expr)?;
    match table.watermark.replace((column, expression)) {
        Some(_) => Err(place),
        None => Ok(()),
    }
}

/// What PostgreSQL lets follow a key's columns and Verus has nothing for.
fn no_index_options(reader: &Reader<'_>) -> Result<()> {
    for clause in ["INCLUDE", "USING", "WITH", "DEFERRABLE", "INITIALLY"] {
        if reader.sees(&[clause]) {
            return Err(Error::unsupported(format!("{clause} of a PRIMARY KEY or UNIQUE constraint is not supported")));
        }
    }
    Ok(())
}

fn add_unique(table: &mut CreateTable, unique: UniqueDefinition) -> Result<()> {
    if unique.primary && table.unique.iter().any(|other| other.primary) {
        let message = format!("multiple primary keys for table \"{}\" are not allowed", table.name.name);
        return Err(Error::new(SqlState::INVALID_TABLE_DEFINITION, message));
    }
    table.unique.push(unique);
    Ok(())
}

/// A column with its constraints; a PRIMARY KEY or UNIQUE goes to `table`.
fn column(reader: &mut Reader<'_>, table: &mut CreateTable) -> Result<ColumnDefinition> {
    let (column, keys) = column_definition(reader)?;
    keys.into_iter().try_for_each(|unique| add_unique(table, unique))?;
    Ok(column)
}

/// Reads `name type [constraint ...]`, for CREATE TABLE and ADD COLUMN; also gives PRIMARY KEY and UNIQUE where they
/// are among them.
pub(super) fn column_definition(reader: &mut Reader<'_>) -> Result<(ColumnDefinition, Vec<UniqueDefinition>)> {
    if reader.sees_reserved() {
        return Err(reader.unexpected());
    }
    let parsed = reader.run(Parser::parse_column_def)?;
    let name = fold(&parsed.name.value, parsed.name.quote_style);
    let mut keys: Vec<UniqueDefinition> = Vec::new();
    let mut nullable = None;
    let mut column = ColumnDefinition {
        sql_type: sql_type(&parsed.data_type)?,
        name,
        not_null: false,
        default: None,
        generated: None,
        checks: Vec::new(),
    };
    for option in parsed.options {
        let constraint = option.name.map(|name| fold(&name.value, name.quote_style));
        match option.option {
            ColumnOption::NotNull => set_nullable(&mut nullable, false, &column.name)?,
            ColumnOption::Null => set_nullable(&mut nullable, true, &column.name)?,
            ColumnOption::Default(expression) if column.default.is_none() => column.default = Some(expression.to_string()),
            ColumnOption::Default(_) => return Err(twice("default values", &column.name)),
            ColumnOption::Check(check) => column.checks.push((constraint, check.expr.to_string())),
            ColumnOption::Generated { generated_as, generation_expr, generation_expr_mode, .. } if column.generated.is_none() => {
                column.generated = Some(generated(&generated_as, generation_expr, generation_expr_mode.as_ref())?);
            }
            ColumnOption::Generated { .. } => return Err(twice("generation clauses", &column.name)),
            ColumnOption::PrimaryKey(key) if key.characteristics.is_none() => {
                keys.push(UniqueDefinition { name: constraint, columns: vec![column.name.clone()], primary: true });
            }
            ColumnOption::Unique(key)
                if key.characteristics.is_none() && !matches!(key.nulls_distinct, ast::NullsDistinctOption::NotDistinct) =>
            {
                keys.push(UniqueDefinition { name: constraint, columns: vec![column.name.clone()], primary: false });
            }
            ColumnOption::Unique(_) => return Err(Error::unsupported("this form of UNIQUE on a column is not supported")),
            other => {
                let text = other.to_string();
                let word = text.split([' ', '(']).next().unwrap_or_default().to_ascii_uppercase();
                return Err(Error::unsupported(format!("{word} on a column is not supported")));
            }
        }
    }
    let primary = keys.iter().any(|key| key.primary);
    if primary && nullable == Some(true) {
        return Err(Error::syntax(format!("conflicting NULL/NOT NULL declarations for column \"{}\"", column.name)));
    }
    column.not_null = nullable == Some(false) || primary;
    if column.default.is_some() && column.generated.is_some() {
        return Err(Error::syntax(format!("both default and generation expression specified for column \"{}\"", column.name)));
    }
    Ok((column, keys))
}

fn set_nullable(nullable: &mut Option<bool>, wanted: bool, column: &str) -> Result<()> {
    match nullable.replace(wanted) {
        Some(before) if before != wanted => Err(Error::syntax(format!("conflicting NULL/NOT NULL declarations for column \"{column}\""))),
        _ => Ok(()),
    }
}

fn twice(what: &str, column: &str) -> Error {
    Error::syntax(format!("multiple {what} specified for column \"{column}\""))
}

/// Only `GENERATED ALWAYS AS (expression) STORED`.
fn generated(generated_as: &GeneratedAs, expression: Option<ast::Expr>, mode: Option<&GeneratedExpressionMode>) -> Result<String> {
    let stored = matches!(generated_as, GeneratedAs::ExpStored) || mode == Some(&GeneratedExpressionMode::Stored);
    match (generated_as, expression) {
        (GeneratedAs::Always | GeneratedAs::ExpStored, Some(expression)) if stored => Ok(expression.to_string()),
        (GeneratedAs::Always | GeneratedAs::ExpStored, Some(_)) => {
            Err(Error::unsupported("virtual generated columns are not supported").hint("Write GENERATED ALWAYS AS (...) STORED."))
        }
        _ => Err(Error::unsupported("identity columns are not supported").hint("Let the client number the rows, or use a uuid.")),
    }
}
