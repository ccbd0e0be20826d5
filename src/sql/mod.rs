//! Text to statements: the dialect, a thin statement parser around sqlparser's, literal INSERTs recognised early.
//!
//! *Place*: called by `pg` (simple and extended) and by `query` for the SQL texts kept in the catalog. Knows no catalog.
//!
//! A text's way: `literals` (the short way) or `split` -> `tokens` -> `depth` -> `reader` -> `statement::*`, one file a statement;
//! expressions, types and queries inside it are sqlparser's, checked by `query` and `type_name`.
//!
//! *Invariants*: (1) syntax that nobody claims is an error with a position; (2) [`Statement`] is the allow-list: what has no
//! variant cannot run; (3) text size, token count and nesting depth are capped before sqlparser recurses (54001).

mod depth;
pub mod dialect;
pub mod lift;
mod literals;
pub mod position;
mod query;
mod reader;
pub mod secret;
mod split;
pub mod statement;
mod tokens;
mod type_name;

use std::sync::Arc;

use crate::error::Result;
use reader::Reader;
pub use statement::{Statement, quote_identifier};
pub use type_name::sql_type;

/// One statement of a query text.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// What it says.
    pub statement: Arc<Statement>,
    /// Its own text, without the semicolon.
    pub text: Arc<str>,
    /// Character offset of `text` in the whole query text, for error positions.
    pub offset: u32,
}

/// Parses a query text: zero or more statements separated by semicolons. 42601 with a 1-based position. An error anywhere
/// refuses the whole text, as in PostgreSQL.
pub fn parse(text: &str) -> Result<Vec<Parsed>> {
    let mut statements = Vec::new();
    let mut at = 0;
    loop {
        let begin = at + text[at..].len() - text[at..].trim_ascii_start().len();
        if let Some((insert, end)) = literals::scan(&text[begin..]) {
            let end = begin + end;
            statements.push(parsed(text, begin..end, Statement::InsertLiterals(insert)));
            // What follows is blank, or a semicolon that `split` passes over.
            at = end;
            continue;
        }
        let Some((range, next)) = split::next_statement(text, at)? else { return Ok(statements) };
        let statement = parse_one(&text[range.clone()], position_of(text, range.start) - 1)?;
        statements.push(parsed(text, range, statement));
        at = next;
    }
}

fn parsed(text: &str, range: std::ops::Range<usize>, statement: Statement) -> Parsed {
    Parsed { offset: position_of(text, range.start) - 1, text: Arc::from(&text[range]), statement: Arc::new(statement) }
}

/// Parses a text that is one statement, `offset` characters into what the client sent.
fn parse_one(text: &str, offset: u32) -> Result<Statement> {
    let mut reader = Reader::new(text, offset)?;
    let statement = statement::parse(&mut reader)?;
    reader.finish()?;
    Ok(statement)
}

/// Parses the SQL text of a SELECT kept in the catalog.
pub fn parse_query(text: &str) -> Result<sqlparser::ast::Query> {
    let mut reader = Reader::new(text, 0)?;
    let query = reader.query()?;
    reader.finish()?;
    Ok(*query)
}

/// Parses the SQL text of an expression kept in the catalog (DEFAULT, CHECK, generated).
pub fn parse_expression(text: &str) -> Result<sqlparser::ast::Expr> {
    let mut reader = Reader::new(text, 0)?;
    let expression = reader.run(|parser| parser.parse_expr())?;
    reader.finish()?;
    Ok(expression)
}

/// The 1-based character position of a byte, as error messages give it.
fn position_of(text: &str, byte: usize) -> u32 {
    u32::try_from(text[..byte].chars().count()).unwrap_or(u32::MAX - 1) + 1
}

#[cfg(test)]
mod tests;
