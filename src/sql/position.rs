//! Where a name of an error stands in a statement: `LINE 1: SELECT nope ...  ^`.
//!
//! *Place*: `command::prepare` asks for the position of an error of planning, which knows names but no places.

use std::ops::ControlFlow;

use sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArguments, Ident, ObjectName, Query, TableFactor, TableFunctionArgs, Visit, Visitor,
};
use sqlparser::tokenizer::Location;

use crate::error::{Error, SqlState};

/// The error with the 1-based position of the name that it complains of, where the query has that name. `text` is the query's,
/// `offset` characters into what the client sent.
pub fn located(error: Error, query: &Query, text: &str, offset: u32) -> Error {
    if error.report().position.is_some() {
        return error;
    }
    let Some(names) = named(&error) else { return error };
    let mut find = Find { names, found: None };
    let _ = query.visit(&mut find);
    match find.found.and_then(|place| character(text, place)) {
        Some(at) => error.position(offset + at),
        None => error,
    }
}

/// What an error complains of.
enum Names {
    Column(Vec<String>),
    Table(String),
    /// A qualifier without a table.
    Qualifier(String),
    Function(String),
    /// A named argument of an operator in FROM; the last one of the name.
    Argument(String),
}

fn named(error: &Error) -> Option<Names> {
    let report = error.report();
    let message = report.message.as_str();
    let quoted = || message.split('"').nth(1).map(str::to_owned);
    if let Some((_, rest)) = message.split_once("argument \"")
        && let Some((name, rest)) = rest.split_once('"')
        && rest.starts_with(" of ")
    {
        return Some(Names::Argument(name.to_owned()));
    }
    match report.state {
        SqlState::UNDEFINED_COLUMN => match message.strip_prefix("column ")?.strip_suffix(" does not exist")? {
            name if name.starts_with('"') => Some(Names::Column(vec![quoted()?])),
            name => Some(Names::Column(name.split('.').map(str::to_owned).collect())),
        },
        SqlState::AMBIGUOUS_COLUMN | SqlState::GROUPING_ERROR => Some(Names::Column(quoted()?.split('.').map(str::to_owned).collect())),
        SqlState::UNDEFINED_TABLE if message.starts_with("missing FROM-clause") => quoted().map(Names::Qualifier),
        SqlState::UNDEFINED_TABLE => quoted().map(Names::Table),
        SqlState::UNDEFINED_FUNCTION => {
            let call = message.strip_prefix("function ")?;
            Some(Names::Function(call.split(['(', ' ']).next()?.to_owned()))
        }
        _ => None,
    }
}

struct Find {
    names: Names,
    found: Option<Location>,
}

fn folded(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

fn start(ident: &Ident) -> Option<Location> {
    // A name that a rewrite made has no place.
    (ident.span.start.line > 0).then_some(ident.span.start)
}

impl Find {
    fn stop(&mut self, ident: &Ident) -> ControlFlow<()> {
        self.found = start(ident);
        if self.found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn arguments(&mut self, args: &[FunctionArg]) {
        let Names::Argument(wanted) = &self.names else { return };
        for arg in args {
            if let FunctionArg::Named { name, .. } = arg
                && folded(name) == *wanted
            {
                self.found = start(name);
            }
        }
    }

    fn function(&mut self, name: &ObjectName) -> ControlFlow<()> {
        match (&self.names, name.0.first().and_then(|part| part.as_ident()), name.0.last().and_then(|part| part.as_ident())) {
            (Names::Function(wanted), Some(first), Some(last)) if folded(last) == *wanted => self.stop(first),
            _ => ControlFlow::Continue(()),
        }
    }
}

impl Visitor for Find {
    type Break = ();

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        let idents: Vec<&Ident> = relation.0.iter().filter_map(|part| part.as_ident()).collect();
        let whole = idents.iter().map(|ident| folded(ident)).collect::<Vec<_>>().join(".");
        match (&self.names, idents.first()) {
            (Names::Table(wanted), Some(first)) if *wanted == whole => self.stop(first),
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        match factor {
            TableFactor::Table { name, args: Some(TableFunctionArgs { args, .. }), .. } | TableFactor::Function { name, args, .. } => {
                self.arguments(args);
                self.function(name)
            }
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_expr(&mut self, expression: &Expr) -> ControlFlow<()> {
        match (&self.names, expression) {
            (Names::Column(wanted), Expr::Identifier(ident)) if wanted.len() == 1 && folded(ident) == wanted[0] => self.stop(ident),
            (Names::Column(wanted), Expr::CompoundIdentifier(idents)) => {
                let names: Vec<String> = idents.iter().map(folded).collect();
                match (names.ends_with(wanted), idents.first()) {
                    (true, Some(first)) => self.stop(first),
                    _ => ControlFlow::Continue(()),
                }
            }
            (Names::Qualifier(wanted), Expr::CompoundIdentifier(idents)) if idents.len() > 1 => {
                match idents.get(idents.len() - 2).is_some_and(|table| folded(table) == *wanted) {
                    true => self.stop(&idents[0]),
                    false => ControlFlow::Continue(()),
                }
            }
            (Names::Function(_), Expr::Function(function)) => self.function(&function.name),
            // An operator that is the input of another.
            (Names::Argument(_), Expr::Function(Function { args: FunctionArguments::List(list), .. })) => {
                self.arguments(&list.args);
                ControlFlow::Continue(())
            }
            _ => ControlFlow::Continue(()),
        }
    }
}

/// The 1-based character of a line and column.
fn character(text: &str, place: Location) -> Option<u32> {
    let lines = usize::try_from(place.line).ok()?.checked_sub(1)?;
    let before: usize = text.split_inclusive('\n').take(lines).map(|line| line.chars().count()).sum();
    u32::try_from(before).ok()?.checked_add(u32::try_from(place.column).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, state: SqlState, message: &str, expected: Option<u32>) {
        let query = crate::sql::parse_query(text).unwrap();
        assert_eq!(located(Error::new(state, message), &query, text, 0).report().position, expected, "{text}");
    }

    #[test]
    fn names_are_found_where_they_stand() {
        check("SELECT nope FROM t", SqlState::UNDEFINED_COLUMN, "column \"nope\" does not exist", Some(8));
        check("SELECT 1,\n t.nope FROM t", SqlState::UNDEFINED_COLUMN, "column t.nope does not exist", Some(12));
        check("SELECT * FROM nope", SqlState::UNDEFINED_TABLE, "relation \"nope\" does not exist", Some(15));
        check("SELECT * FROM s.nope", SqlState::UNDEFINED_TABLE, "relation \"s.nope\" does not exist", Some(15));
        check("SELECT x.a FROM t", SqlState::UNDEFINED_TABLE, "missing FROM-clause entry for table \"x\"", Some(8));
        check("SELECT 1 + nope(1)", SqlState::UNDEFINED_FUNCTION, "function nope(integer) does not exist", Some(12));
        check("SELECT 1", SqlState::UNDEFINED_COLUMN, "column \"nope\" does not exist", None);
        let wrong = "argument \"gap\" of SESSIONIZE must be a constant";
        check("SELECT * FROM SESSIONIZE(e, gap := 1)", SqlState::INVALID_PARAMETER_VALUE, wrong, Some(29));
        check("SELECT * FROM FUNNEL(SESSIONIZE(e, gap := 1))", SqlState::INVALID_PARAMETER_VALUE, wrong, Some(36));
    }
}
