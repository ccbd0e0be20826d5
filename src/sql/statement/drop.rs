//! `DROP {TABLE | MATERIALIZED VIEW} [IF EXISTS] name, ... [CASCADE | RESTRICT]`, `TRUNCATE [TABLE] [ONLY] name, ...`,
//! `ALTER TABLE t ADD [COLUMN] [IF NOT EXISTS] column [, ADD ...]`, `ALTER MATERIALIZED VIEW v SET (option = value, ...)`.

use sqlparser::tokenizer::Token;

use super::{AddColumn, AlterTable, Drop, Statement, alert, create_table, refuse_known, source};
use crate::error::{Error, Result};
use crate::sql::reader::Reader;

pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Statement> {
    if reader.accept(&["TRUNCATE"]) {
        return truncate(reader);
    }
    if reader.accept(&["ALTER", "TABLE"]) {
        return alter_table(reader);
    }
    if reader.accept(&["ALTER", "MATERIALIZED", "VIEW"]) {
        return alter_view(reader);
    }
    if reader.sees(&["DROP", "ALERT"]) || reader.sees(&["DROP", "NOTIFICATION", "CHANNEL"]) {
        return alert::drop(reader);
    }
    if reader.sees(&["DROP", "SOURCE"]) {
        return source::drop(reader);
    }
    if reader.sees(&["ALTER", "SOURCE"]) {
        return source::alter(reader);
    }
    if reader.sees(&["ALTER", "ALERT"]) {
        return alert::alter(reader);
    }
    if reader.accept(&["DROP", "TABLE"]) {
        return drop(reader, false);
    }
    if reader.accept(&["DROP", "MATERIALIZED", "VIEW"]) {
        return drop(reader, true);
    }
    let known = [
        "AGGREGATE",
        "CAST",
        "COLLATION",
        "DATABASE",
        "DEFAULT",
        "DOMAIN",
        "EXTENSION",
        "FOREIGN",
        "FUNCTION",
        "INDEX",
        "NOTIFICATION",
        "OWNED",
        "POLICY",
        "PROCEDURE",
        "PUBLICATION",
        "ROLE",
        "RULE",
        "SCHEMA",
        "SEQUENCE",
        "SERVER",
        "STATISTICS",
        "SYSTEM",
        "TRIGGER",
        "TYPE",
        "USER",
        "VIEW",
    ];
    let verb = if reader.sees(&["DROP"]) { "DROP" } else { "ALTER" };
    refuse_known(reader, verb, &known)
}

fn drop(reader: &mut Reader<'_>, view: bool) -> Result<Statement> {
    let if_exists = reader.accept(&["IF", "EXISTS"]);
    let names = reader.separated(Reader::name)?;
    let cascade = cascade(reader);
    Ok(Statement::Drop(Drop { view, if_exists, names, cascade }))
}

fn cascade(reader: &mut Reader<'_>) -> bool {
    reader.accept_one(&["CASCADE", "RESTRICT"]) == Some("CASCADE")
}

fn truncate(reader: &mut Reader<'_>) -> Result<Statement> {
    reader.accept(&["TABLE"]);
    let names = reader.separated(|reader| {
        reader.accept(&["ONLY"]);
        reader.name()
    })?;
    if reader.accept(&["RESTART", "IDENTITY"]) || reader.accept(&["CONTINUE", "IDENTITY"]) {
        // There are no sequences to restart.
    }
    cascade(reader);
    Ok(Statement::Truncate(names))
}

fn alter_table(reader: &mut Reader<'_>) -> Result<Statement> {
    if reader.accept(&["IF", "EXISTS"]) {
        return Err(Error::unsupported("ALTER TABLE IF EXISTS is not supported"));
    }
    reader.accept(&["ONLY"]);
    let name = reader.name()?;
    let (mut columns, mut defaults) = (Vec::new(), Vec::new());
    loop {
        if reader.sees(&["ALTER"]) {
            defaults.push(alter_column(reader)?);
        } else {
            columns.push(add_column(reader)?);
        }
        if !reader.accept_token(&Token::Comma) {
            return Ok(Statement::AlterTable(AlterTable { name, columns, defaults }));
        }
    }
}

/// `ALTER [COLUMN] name {SET DEFAULT expression | DROP DEFAULT}`.
fn alter_column(reader: &mut Reader<'_>) -> Result<(String, Option<String>)> {
    reader.expect(&["ALTER"])?;
    reader.accept(&["COLUMN"]);
    let name = reader.identifier()?;
    if reader.accept(&["DROP", "DEFAULT"]) {
        return Ok((name, None));
    }
    if !reader.accept(&["SET", "DEFAULT"]) {
        return Err(Error::unsupported("ALTER TABLE ... ALTER COLUMN is only supported with SET DEFAULT and DROP DEFAULT"));
    }
    Ok((name, Some(reader.run(|parser| parser.parse_expr())?.to_string())))
}

fn add_column(reader: &mut Reader<'_>) -> Result<AddColumn> {
    let constraint = ["CONSTRAINT", "PRIMARY", "UNIQUE", "CHECK", "FOREIGN", "EXCLUDE"];
    let adds_constraint = reader.sees(&["ADD"]) && reader.word(1).is_some_and(|word| constraint.contains(&word.as_str()));
    if adds_constraint || !reader.sees(&["ADD"]) {
        let known =
            ["ADD", "ALTER", "ATTACH", "CLUSTER", "DETACH", "DISABLE", "DROP", "ENABLE", "INHERIT", "OWNER", "RENAME", "RESET", "SET"];
        return match reader.word(0) {
            Some(word) if known.contains(&word.as_str()) => {
                let what = if adds_constraint { "ADD of a constraint".to_owned() } else { word };
                Err(Error::unsupported(format!("ALTER TABLE ... {what} is not supported"))
                    .hint("ALTER TABLE can add a column and change a default."))
            }
            _ => Err(reader.unexpected()),
        };
    }
    reader.expect(&["ADD"])?;
    reader.accept(&["COLUMN"]);
    let if_not_exists = reader.accept(&["IF", "NOT", "EXISTS"]);
    let (column, keys) = create_table::column_definition(reader)?;
    if !keys.is_empty() {
        return Err(Error::unsupported("adding a primary key is not supported"));
    }
    Ok(AddColumn { if_not_exists, column })
}

fn alter_view(reader: &mut Reader<'_>) -> Result<Statement> {
    let name = reader.name()?;
    if let Some(word @ ("RENAME" | "OWNER" | "RESET" | "ALTER" | "CLUSTER" | "DEPENDS")) = reader.word(0).as_deref() {
        return Err(Error::unsupported(format!("ALTER MATERIALIZED VIEW ... {word} is not supported")));
    }
    reader.expect(&["SET"])?;
    Ok(Statement::AlterView { name, options: reader.options()? })
}
