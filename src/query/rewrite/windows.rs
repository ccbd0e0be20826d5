//! The table form of windows: `FROM TUMBLE(events, event_time, INTERVAL '1 minute' [, offset])`.
//!
//! *Place*: `rewrite` calls it for every table factor; it becomes a subquery that adds `window_start` and `window_end`.

use sqlparser::ast::{Expr, FunctionArg, FunctionArgExpr, Ident, TableAlias, TableFactor};

use super::{folded, last_name};
use crate::error::{Error, Result};
use crate::sql::statement::quote_identifier;

/// The 0A000 for windows that do not exist yet; `name` is the function's.
pub(super) fn refused(name: &str) -> Error {
    Error::unsupported(format!("{} windows are not supported yet", name.trim_end_matches("_end").to_uppercase())).hint("Use TUMBLE.")
}

/// Replaces the table form by its subquery, and leaves any other factor as it is.
pub(super) fn table_form(factor: &mut TableFactor) -> Result<()> {
    let (arguments, name, alias) = match factor {
        TableFactor::Table { name, alias, args: Some(arguments), .. } => (&arguments.args, name, alias),
        TableFactor::Function { name, alias, args, .. } => (&*args, name, alias),
        _ => return Ok(()),
    };
    match last_name(name).as_deref() {
        Some("tumble") => {}
        Some(other @ ("hop" | "session")) => return Err(refused(other)),
        _ => return Ok(()),
    }
    let usage = || {
        Error::syntax("TUMBLE in FROM takes a table, its time column, the window size and perhaps an offset")
            .hint("For example FROM TUMBLE(events, event_time, INTERVAL '1 minute').")
    };
    let expressions: Option<Vec<&Expr>> = arguments.iter().map(positional).collect();
    let expressions = expressions.ok_or_else(usage)?;
    let [source, rest @ ..] = expressions.as_slice() else { return Err(usage()) };
    let source: &Expr = source;
    if !(2..=3).contains(&rest.len()) {
        return Err(usage());
    }
    let (from, own_name) = match source {
        Expr::Identifier(ident) => (source.to_string(), folded(ident)),
        Expr::CompoundIdentifier(idents) => (source.to_string(), idents.last().map(folded).ok_or_else(usage)?),
        Expr::Subquery(query) => (format!("({query}) AS source"), "tumble".to_owned()),
        _ => return Err(usage()),
    };
    let window = rest.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let text = format!("SELECT *, tumble({window}) AS window_start, tumble_end({window}) AS window_end FROM {from}");
    let alias = alias.take().unwrap_or_else(|| TableAlias {
        explicit: true,
        name: Ident::with_quote('"', own_name.clone()),
        columns: Vec::new(),
        at: None,
    });
    let wrapped = crate::sql::parse_query(&format!("SELECT * FROM ({text}) AS {}", quote_identifier(&own_name)))?;
    let sqlparser::ast::SetExpr::Select(mut select) = *wrapped.body else { return Err(usage()) };
    let mut derived = select.from.pop().ok_or_else(usage)?.relation;
    if let TableFactor::Derived { alias: own, .. } = &mut derived {
        *own = Some(alias);
    }
    *factor = derived;
    Ok(())
}

fn positional(argument: &FunctionArg) -> Option<&Expr> {
    match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expression)) => Some(expression),
        _ => None,
    }
}
