//! Windows in the syntax tree: ends in terms of starts, and the table form `FROM TUMBLE(events, event_time, INTERVAL '1 minute')`.
//!
//! *Place*: `rewrite` calls it for every select, expression and table factor. The table form becomes a subquery that adds
//! `window_start` and `window_end`.

use std::ops::ControlFlow;

use sqlparser::ast::{
    self, ExcludeSelectItem, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, GroupByExpr, Ident,
    Query, Select, SelectItem, SetExpr, TableAlias, TableFactor, Value, Visit,
};

use super::lists::all_of;
use super::{SUFFIX, call, folded, last_name};
use crate::error::{Error, Result};
use crate::query::operator;
use crate::sql::statement::quote_identifier;

/// `TUMBLE_END(time, size, ...)` is `window_end(tumble(time, size, ...), size)`, and `HOP_END` likewise.
pub(super) fn end_of_start(function: &Function) -> Option<Expr> {
    let (start, size) = match last_name(&function.name)?.as_str() {
        "tumble_end" => ("tumble", 1),
        "hop_end" => ("hop", 2),
        _ => return None,
    };
    let FunctionArguments::List(FunctionArgumentList { args, .. }) = &function.args else { return None };
    let args: Option<Vec<Expr>> = args.iter().map(|argument| positional(argument).cloned()).collect();
    let args = args?;
    let size = args.get(size)?.clone();
    Some(call("window_end", vec![call(start, args), size]))
}

/// Adds `SESSION_END(...)` of the select list to GROUP BY, where it belongs: a session has one end.
pub(super) fn group_by_session_end(select: &mut Select) {
    let GroupByExpr::Expressions(keys, _) = &mut select.group_by else { return };
    if keys.is_empty() {
        return;
    }
    let mut found = SessionEnds { depth: 0, calls: Vec::new() };
    let _ = select.projection.visit(&mut found);
    let _ = select.having.visit(&mut found);
    let grouped = |end: &Expr, key: &Expr| match key {
        Expr::Value(value) => match &value.value {
            Value::Number(ordinal, _) => {
                ordinal.parse::<usize>().ok().and_then(|ordinal| select.projection.get(ordinal.wrapping_sub(1))).is_some_and(
                    |item| matches!(item, SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } if expr == end),
                )
            }
            _ => false,
        },
        Expr::Identifier(name) => select
            .projection
            .iter()
            .any(|item| matches!(item, SelectItem::ExprWithAlias { expr, alias } if expr == end && folded(alias) == folded(name))),
        key => key == end,
    };
    for end in found.calls {
        if !keys.iter().any(|key| grouped(&end, key)) {
            keys.push(end);
        }
    }
}

/// Calls of `session_end` outside of subqueries.
struct SessionEnds {
    depth: usize,
    calls: Vec<Expr>,
}

impl ast::Visitor for SessionEnds {
    type Break = ();

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expression: &Expr) -> ControlFlow<()> {
        if let Expr::Function(function) = expression
            && self.depth == 0
            && last_name(&function.name).as_deref() == Some("session_end")
            && !self.calls.contains(expression)
        {
            self.calls.push(expression.clone());
        }
        ControlFlow::Continue(())
    }
}

/// Replaces the table form that is the input of an operator by its subquery.
pub(super) fn input(factor: &mut TableFactor) -> Result<()> {
    match factor {
        TableFactor::Table { name, args: Some(arguments), .. } if operator::is_called(name) => form_in(&mut arguments.args),
        TableFactor::Function { name, args, .. } if operator::is_called(name) => form_in(args),
        _ => Ok(()),
    }
}

fn form_in(arguments: &mut [FunctionArg]) -> Result<()> {
    let Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(input))) = arguments.first_mut() else { return Ok(()) };
    let Expr::Function(Function { name, args: FunctionArguments::List(list), .. }) = input else { return Ok(()) };
    if operator::is_called(name) {
        return form_in(&mut list.args);
    }
    let alias = None;
    let mut factor = TableFactor::Function { lateral: false, name: name.clone(), args: list.args.clone(), with_ordinality: false, alias };
    table_form(&mut factor)?;
    if matches!(factor, TableFactor::Derived { .. }) {
        *input = Expr::Subquery(Box::new(all_of(factor)?));
    }
    Ok(())
}

/// Replaces the table form by its subquery, and leaves any other factor as it is.
pub(super) fn table_form(factor: &mut TableFactor) -> Result<()> {
    let (arguments, name, alias) = match factor {
        TableFactor::Table { name, alias, args: Some(arguments), .. } => (&arguments.args, name, alias),
        TableFactor::Function { name, alias, args, .. } => (&*args, name, alias),
        _ => return Ok(()),
    };
    let form = match last_name(name).as_deref() {
        Some("tumble") => Form::Tumble,
        Some("hop") => Form::Hop,
        Some("session") => Form::Session,
        _ => return Ok(()),
    };
    let (own_name, query) = form.subquery(arguments)?;
    let alias = alias.take().unwrap_or_else(|| TableAlias {
        explicit: true,
        name: Ident::with_quote('"', own_name),
        columns: Vec::new(),
        at: None,
    });
    *factor = TableFactor::Derived { lateral: false, subquery: Box::new(query), alias: Some(alias), sample: None };
    Ok(())
}

/// Which table form.
#[derive(Clone, Copy)]
enum Form {
    Tumble,
    Hop,
    Session,
}

impl Form {
    fn usage(self) -> Error {
        match self {
            Form::Tumble => Error::syntax("TUMBLE in FROM takes a table, its time column, the window size and perhaps an offset")
                .hint("For example FROM TUMBLE(events, event_time, INTERVAL '1 minute')."),
            Form::Hop => Error::syntax("HOP in FROM takes a table, its time column, the slide, the window size and perhaps an offset")
                .hint("For example FROM HOP(events, event_time, INTERVAL '5 minutes', INTERVAL '1 hour')."),
            Form::Session => Error::syntax("SESSION in FROM takes a table, its time column, the gap and what sessions are kept apart by")
                .hint("For example FROM SESSION(events, event_time, INTERVAL '30 minutes', partition_by := [user_id])."),
        }
    }

    /// The source's name and the query that stands for the form.
    fn subquery(self, arguments: &[FunctionArg]) -> Result<(String, Query)> {
        let named = arguments.iter().filter(|argument| positional(argument).is_none());
        let partition = match (self, named.collect::<Vec<_>>().as_slice()) {
            (_, []) => None,
            (Form::Session, [argument]) => Some(partition(argument).ok_or_else(|| self.usage())?),
            _ => return Err(self.usage()),
        };
        let expressions: Vec<&Expr> = arguments.iter().filter_map(positional).collect();
        let [source, rest @ ..] = expressions.as_slice() else { return Err(self.usage()) };
        let (from, own_name) = match source {
            Expr::Identifier(ident) => (source.to_string(), folded(ident)),
            Expr::CompoundIdentifier(idents) => (source.to_string(), idents.last().map(folded).ok_or_else(|| self.usage())?),
            Expr::Subquery(query) => (format!("({query}) AS source"), "source".to_owned()),
            _ => return Err(self.usage()),
        };
        let window = rest.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let query = match (self, rest.len()) {
            (Form::Tumble, 2..=3) => {
                self.select(&format!("*, tumble({window}) AS window_start, tumble_end({window}) AS window_end"), &from)
            }
            (Form::Hop, 3..=4) => self.select(&format!("*, hop({window}) AS window_start, hop_end({window}) AS window_end"), &from),
            (Form::Session, 2) => {
                let partition = partition.ok_or_else(|| {
                    Error::syntax("SESSION in FROM needs to know what sessions are kept apart by").hint(
                        "Add partition_by := [column, ...], or [] for one sequence of sessions, or use SESSION(time, gap) in GROUP BY.",
                    )
                })?;
                self.sessions(&from, &own_name, rest, &partition)
            }
            _ => return Err(self.usage()),
        }?;
        Ok((own_name, query))
    }

    fn select(self, list: &str, from: &str) -> Result<Query> {
        crate::sql::parse_query(&format!("SELECT {list} FROM {from}"))
    }

    /// A session begins where the row before is too long ago; the newest beginning so far is the row's session.
    fn sessions(self, from: &str, own_name: &str, rest: &[&Expr], partition: &[String]) -> Result<Query> {
        let [time, gap] = rest else { return Err(self.usage()) };
        let source = quote_identifier(own_name);
        let before = quote_identifier(&format!("{SUFFIX}before"));
        let keys = partition.join(", ");
        let by = if partition.is_empty() { String::new() } else { format!("PARTITION BY {keys} ") };
        let text = format!(
            "SELECT *, window_end(max({time}) OVER (PARTITION BY {keys}{comma}window_start), {gap}) AS window_end FROM (\
             SELECT *, CASE WHEN {time} IS NOT NULL THEN max(session_break({time}, {before}, {gap})) OVER ({by}ORDER BY {time}) END \
             AS window_start FROM (SELECT *, lag({time}) OVER ({by}ORDER BY {time}) AS {before} FROM {from}) AS {source}) AS {source}",
            comma = if partition.is_empty() { "" } else { ", " },
        );
        let mut query = crate::sql::parse_query(&text)?;
        if let SetExpr::Select(select) = query.body.as_mut()
            && let Some(SelectItem::Wildcard(options)) = select.projection.first_mut()
        {
            let hidden = Ident::with_quote('"', format!("{SUFFIX}before"));
            options.opt_exclude = Some(ExcludeSelectItem::Multiple(vec![hidden.into()]));
        }
        Ok(query)
    }
}

/// The expressions of `partition_by := [a, b]`, as text.
fn partition(argument: &FunctionArg) -> Option<Vec<String>> {
    let (name, value) = match argument {
        FunctionArg::Named { name, arg: FunctionArgExpr::Expr(value), .. } => (folded(name), value),
        FunctionArg::ExprNamed { name: Expr::Identifier(name), arg: FunctionArgExpr::Expr(value), .. } => (folded(name), value),
        _ => return None,
    };
    match value {
        Expr::Array(list) if name == "partition_by" => Some(list.elem.iter().map(ToString::to_string).collect()),
        one if name == "partition_by" => Some(vec![one.to_string()]),
        _ => None,
    }
}

fn positional(argument: &FunctionArg) -> Option<&Expr> {
    match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expression)) => Some(expression),
        _ => None,
    }
}
