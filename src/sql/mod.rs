//! Text to statements: the dialect, a thin statement parser around sqlparser's, literal INSERTs recognised early.
//!
//! *Place*: called by `pg` (simple and extended) and by `query` for the SQL texts kept in the catalog. Knows no catalog.
//!
//! *Invariants*: (1) syntax that nobody claims is an error with a position; (2) [`Statement`] is the allow-list: what has no
//! variant cannot run; (3) text size, token count and nesting depth are capped before sqlparser recurses (54001).

pub mod statement;

use std::sync::Arc;

use crate::error::Result;
pub use statement::Statement;

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

/// Parses a query text: zero or more statements separated by semicolons. 42601 with a 1-based position.
pub fn parse(text: &str) -> Result<Vec<Parsed>> {
    let _ = text;
    unimplemented!()
}

/// Parses the SQL text of a SELECT kept in the catalog.
pub fn parse_query(text: &str) -> Result<sqlparser::ast::Query> {
    let _ = text;
    unimplemented!()
}

/// Parses the SQL text of an expression kept in the catalog (DEFAULT, CHECK, generated).
pub fn parse_expression(text: &str) -> Result<sqlparser::ast::Expr> {
    let _ = text;
    unimplemented!()
}
