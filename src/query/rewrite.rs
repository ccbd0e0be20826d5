//! What is put in DataFusion's words before planning: column names, HAVING over windows, AT TIME ZONE, series.
//!
//! *Place*: first step of `query::bind`, on the syntax tree.
//!
//! *Invariant*: a name that is made unique here gets a suffix that begins with [`SUFFIX`], which no client sees.

use std::ops::ControlFlow;

use sqlparser::ast::{
    self, AccessExpr, BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, Ident,
    ObjectName, ObjectNamePart, Query, Select, SelectItem, SetExpr, Subscript, TableAlias, TableAliasColumnDef, TableFactor, VisitMut,
    VisitorMut,
};

use super::functions::cast::WRITTEN;
use super::functions::chain::{self, TERMS_MIN};
use super::functions::like;
use super::functions::make::INTERVAL_PARTS;
use super::{names, sets, using};
use crate::error::{Error, Result, SqlState};

mod clauses;
mod having;
mod keys;
mod lists;
mod members;
mod present;
mod rows;
mod shadow;
mod top;
mod truth;
mod values;
mod windows;

/// Begins the part of a name that only makes it unique.
pub const SUFFIX: char = '\u{1}';

/// Rewrites a query in place.
pub fn query(query: &mut Query) -> Result<()> {
    finish(query.visit(&mut Rewrite::default()))
}

/// Rewrites an expression in place.
pub fn expression(expression: &mut Expr) -> Result<()> {
    finish(expression.visit(&mut Rewrite::default()))
}

/// The name that a client sees.
pub fn shown(name: &str) -> &str {
    name.split(SUFFIX).next().unwrap_or(name)
}

fn finish(flow: ControlFlow<Error>) -> Result<()> {
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

/// How many queries the visit is inside of.
#[derive(Default)]
struct Rewrite {
    depth: usize,
    scopes: shadow::Scopes,
    /// Subqueries that had no alias.
    without_alias: usize,
}

impl VisitorMut for Rewrite {
    type Break = Error;

    fn post_visit_query(&mut self, query: &mut Query) -> ControlFlow<Error> {
        self.depth -= 1;
        values::open(query);
        self.scopes.leave();
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Error> {
        self.depth += 1;
        if let Err(error) = lists::in_with(query) {
            return ControlFlow::Break(error);
        }
        self.scopes.enter(query);
        keys::order_by_position(query);
        if self.depth == 1 {
            keys::order_by_input(query);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<Error> {
        if let Err(error) = having::after_windows(select) {
            return ControlFlow::Break(error);
        }
        series_in_list(select);
        if let Err(error) = present::counted(select) {
            return ControlFlow::Break(error);
        }
        truth::in_select(select);
        if let Err(error) = select.selection.as_mut().map_or(Ok(()), members::filter) {
            return ControlFlow::Break(error);
        }
        if let Err(error) = tests_in_list(select) {
            return ControlFlow::Break(error);
        }
        if let Err(error) = keys::no_aggregates(select) {
            return ControlFlow::Break(error);
        }
        if let Err(error) = keys::ordinals_in_sets(select) {
            return ControlFlow::Break(error);
        }
        windows::group_by_session_end(select);
        name_columns(select);
        top::numbered(select);
        if let Err(error) = using::mark(select) {
            return ControlFlow::Break(error);
        }
        sets::rewrite(select);
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<Error> {
        name_series(factor);
        lists::without_alias(factor, &mut self.without_alias);
        match windows::input(factor).and_then(|()| windows::table_form(factor)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
    }

    fn pre_visit_expr(&mut self, expression: &mut Expr) -> ControlFlow<Error> {
        flatten(expression);
        truth::inside(expression);
        match expression {
            Expr::Function(function) => clauses::misplaced(function).map_or(ControlFlow::Continue(()), ControlFlow::Break),
            _ => ControlFlow::Continue(()),
        }
    }

    fn post_visit_expr(&mut self, expression: &mut Expr) -> ControlFlow<Error> {
        match rewritten(expression) {
            Ok(Some(other)) => {
                *expression = other;
                ControlFlow::Continue(())
            }
            Ok(None) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
    }
}

fn rewritten(expression: &Expr) -> Result<Option<Expr>> {
    Ok(match expression {
        Expr::AtTimeZone { timestamp, time_zone } => Some(call("timezone", vec![(**time_zone).clone(), (**timestamp).clone()])),
        // Collation is bytewise whatever its name.
        Expr::Collate { expr, .. } => Some((**expr).clone()),
        Expr::Cast { expr, data_type, .. } => Some(match registered(data_type) {
            Some(function) => call(function, vec![(**expr).clone()]),
            None => written(floating(expression).as_ref().unwrap_or(expression), data_type)?,
        }),
        Expr::Function(function) => {
            let end = windows::end_of_start(function);
            end.or_else(|| renamed(function))
                .or_else(|| array_lower(function))
                .or_else(|| make_interval(function))
                .or_else(|| unqualified(function))
        }
        Expr::BinaryOp { left, op: BinaryOperator::PGOverlap, right } => {
            Some(call("array_has_any", vec![(**left).clone(), (**right).clone()]))
        }
        Expr::Like { any: true, negated, expr, pattern, escape_char } => like_any(*negated, expr, pattern, escape_char.as_ref(), false),
        Expr::ILike { any: true, negated, expr, pattern, escape_char } => like_any(*negated, expr, pattern, escape_char.as_ref(), true),
        Expr::Like { any: false, negated, expr, pattern, escape_char: Some(escape) } => {
            let (expr, pattern) = (expr.clone(), Box::new(escaped(pattern, escape)));
            Some(Expr::Like { any: false, negated: *negated, expr, pattern, escape_char: None })
        }
        Expr::ILike { any: false, negated, expr, pattern, escape_char: Some(escape) } => {
            let (expr, pattern) = (expr.clone(), Box::new(escaped(pattern, escape)));
            Some(Expr::ILike { any: false, negated: *negated, expr, pattern, escape_char: None })
        }
        Expr::Interval(interval) => interval_cast(interval),
        Expr::Identifier(ident) if ident.quote_style.is_none() && ident.value.eq_ignore_ascii_case("current_schema") => {
            Some(call("current_schema", Vec::new()))
        }
        Expr::SimilarTo { negated, expr, pattern, escape_char } => Some(similar(*negated, expr, pattern, escape_char.as_ref())),
        Expr::BinaryOp { left, op: BinaryOperator::PGExp, right } => Some(call("power", vec![(**left).clone(), (**right).clone()])),
        Expr::BinaryOp { left, op: BinaryOperator::PGStartsWith, right } => {
            Some(call("starts_with", vec![(**left).clone(), (**right).clone()]))
        }
        Expr::UnaryOp { op: ast::UnaryOperator::BitwiseNot, expr } => Some(complement(expr)),
        Expr::UnaryOp { op: op @ (ast::UnaryOperator::Not | ast::UnaryOperator::Minus), expr } => before_literal(*op, expr)?,
        Expr::CompoundFieldAccess { root, access_chain } => sliced(root, access_chain),
        Expr::IsNull(expr) => rows::is_null(expr, false),
        Expr::IsNotNull(expr) => rows::is_null(expr, true),
        Expr::UnaryOp { op, expr } => prefix(*op).map(|function| call(function, vec![(**expr).clone()])),
        Expr::Substring { expr, substring_from: Some(pattern), substring_for: None, .. } if is_string(pattern) => {
            Some(call("substring_regex", vec![(**expr).clone(), (**pattern).clone()]))
        }
        Expr::BinaryOp { left, op, right } => rows::comparison(left, op, right)?,
        Expr::InList { expr, list, negated } => rows::in_list(expr, list, *negated)?,
        Expr::AnyOp { left, compare_op, right, is_some } => members::any(left, compare_op, right, *is_some)?,
        Expr::AllOp { left, compare_op, right } => members::all(left, compare_op, right)?,
        Expr::InSubquery { expr, subquery, negated } => members::row_in(expr, subquery, *negated)?,
        _ => None,
    })
}

/// A cast with its type where names of expressions show it.
fn written(cast: &Expr, data_type: &ast::DataType) -> Result<Expr> {
    let target = crate::sql::sql_type(data_type)?.to_string();
    Ok(call(WRITTEN, vec![cast.clone(), Expr::value(ast::Value::SingleQuotedString(target))]))
}

/// The lower bound of every array that is not empty is 1.
fn array_lower(function: &Function) -> Option<Expr> {
    if last_name(&function.name).as_deref() != Some("array_lower") {
        return None;
    }
    let length = Function { name: ObjectName(vec![ObjectNamePart::Identifier(Ident::new("array_length"))]), ..function.clone() };
    let one = Expr::value(ast::Value::Number("1".to_owned(), false));
    let empty = Expr::IsNull(Box::new(Expr::Function(length)));
    Some(Expr::Case {
        case_token: ast::helpers::attached_token::AttachedToken::empty(),
        end_token: ast::helpers::attached_token::AttachedToken::empty(),
        operand: None,
        conditions: vec![ast::CaseWhen { condition: empty, result: Expr::value(ast::Value::Null) }],
        else_result: Some(Box::new(one)),
    })
}

/// `make_interval(days => 10)` with its arguments in order.
fn make_interval(function: &Function) -> Option<Expr> {
    let FunctionArguments::List(list) = &function.args else { return None };
    if last_name(&function.name).as_deref() != Some("make_interval") {
        return None;
    }
    let named = |argument: &FunctionArg| match argument {
        FunctionArg::Named { name, arg: FunctionArgExpr::Expr(value), .. } => Some((folded(name), value.clone())),
        FunctionArg::ExprNamed { name: Expr::Identifier(name), arg: FunctionArgExpr::Expr(value), .. } => {
            Some((folded(name), value.clone()))
        }
        _ => None,
    };
    let named: Vec<(String, Expr)> = list.args.iter().map(named).collect::<Option<_>>()?;
    if named.is_empty() || named.iter().any(|(name, _)| !INTERVAL_PARTS.contains(&name.as_str())) {
        return None;
    }
    let zero = || Expr::value(ast::Value::Number("0".to_owned(), false));
    let part = |wanted: &&str| named.iter().find(|(name, _)| name == wanted).map_or_else(zero, |(_, value)| value.clone());
    Some(call("make_interval", INTERVAL_PARTS.iter().map(part).collect()))
}

/// Functions that DataFusion has under another name, or whose name means something else there.
fn renamed(function: &Function) -> Option<Expr> {
    let name = match last_name(&function.name)?.as_str() {
        "ceiling" => "ceil",
        "array_remove" => "array_remove_all",
        "array_replace" => "array_replace_all",
        "array_upper" => "array_length",
        _ => return None,
    };
    Some(Expr::Function(Function { name: ObjectName(vec![ObjectNamePart::Identifier(Ident::new(name))]), ..function.clone() }))
}

/// `x LIKE ANY (ARRAY[...])` as alternatives.
fn like_any(negated: bool, text: &Expr, patterns: &Expr, escape: Option<&ast::ValueWithSpan>, insensitive: bool) -> Option<Expr> {
    let patterns = match patterns {
        Expr::Array(array) => &array.elem,
        Expr::Nested(inner) => return like_any(negated, text, inner, escape, insensitive),
        _ => return None,
    };
    let one = |pattern: &Expr| {
        let pattern = escape.map_or_else(|| pattern.clone(), |escape| escaped(pattern, escape));
        let (expr, pattern, escape_char) = (Box::new(text.clone()), Box::new(pattern), None);
        match insensitive {
            false => Expr::Like { negated, any: false, expr, pattern, escape_char },
            true => Expr::ILike { negated, any: false, expr, pattern, escape_char },
        }
    };
    let any = patterns.iter().map(one).reduce(|left, right| Expr::BinaryOp {
        left: Box::new(left),
        op: BinaryOperator::Or,
        right: Box::new(right),
    });
    any.map(|any| Expr::Nested(Box::new(any)))
}

/// A pattern with the backslash as its escape character, which is the only one that DataFusion knows.
fn escaped(pattern: &Expr, escape: &ast::ValueWithSpan) -> Expr {
    call(like::ESCAPE, vec![pattern.clone(), Expr::Value(escape.clone())])
}

/// Intervals in forms that DataFusion's parser does not read are read by Verus's own.
fn interval_cast(interval: &ast::Interval) -> Option<Expr> {
    let Expr::Value(value) = interval.value.as_ref() else { return None };
    let ast::Value::SingleQuotedString(text) = &value.value else { return None };
    let own = text.contains(':') || text.trim_start().starts_with('P');
    if !own || interval.leading_field.is_some() {
        return None;
    }
    let data_type = ast::DataType::Interval { fields: None, precision: None };
    Some(Expr::Cast { kind: ast::CastKind::Cast, expr: interval.value.clone(), data_type, array: false, format: None })
}

/// A long chain of arithmetic as one call.
fn flatten(expression: &mut Expr) {
    let sign = |op: &BinaryOperator| {
        Some(match op {
            BinaryOperator::Plus => '+',
            BinaryOperator::Minus => '-',
            BinaryOperator::Multiply => '*',
            BinaryOperator::Divide => '/',
            BinaryOperator::Modulo => '%',
            _ => return None,
        })
    };
    let (mut terms, mut spine) = (1, &*expression);
    while let Expr::BinaryOp { left, op, .. } = spine
        && sign(op).is_some()
    {
        terms += 1;
        spine = left;
    }
    if terms < TERMS_MIN {
        return;
    }
    let (mut arguments, mut signs) = (Vec::with_capacity(terms + 1), Vec::with_capacity(terms));
    let null = || Expr::value(ast::Value::Null);
    let mut rest = std::mem::replace(expression, null());
    for _ in 1..terms {
        let Expr::BinaryOp { left, op, right } = rest else { break };
        signs.extend(sign(&op));
        arguments.push(*right);
        rest = *left;
    }
    arguments.push(rest);
    arguments.push(Expr::value(ast::Value::SingleQuotedString(signs.into_iter().rev().collect())));
    arguments.reverse();
    *expression = call(chain::NAME, arguments);
}

/// `text SIMILAR TO pattern`.
fn similar(negated: bool, text: &Expr, pattern: &Expr, escape: Option<&ast::ValueWithSpan>) -> Expr {
    let escape = escape.map(|escape| Expr::Value(escape.clone()));
    let test = call("similar_to", [text.clone(), pattern.clone()].into_iter().chain(escape).collect());
    if negated { Expr::UnaryOp { op: ast::UnaryOperator::Not, expr: Box::new(test) } } else { test }
}

/// NOT and a sign before a literal: a string is read as a condition, and is no number more than an interval.
fn before_literal(op: ast::UnaryOperator, literal: &Expr) -> Result<Option<Expr>> {
    let Expr::Value(value) = literal else { return Ok(None) };
    match (op, &value.value) {
        (ast::UnaryOperator::Not, ast::Value::SingleQuotedString(_)) => {
            let expr = Box::new(Expr::Cast {
                kind: ast::CastKind::Cast,
                expr: Box::new(literal.clone()),
                data_type: ast::DataType::Boolean,
                array: false,
                format: None,
            });
            Ok(Some(Expr::UnaryOp { op, expr }))
        }
        (ast::UnaryOperator::Not, ast::Value::Number(text, _)) => {
            let integer = if text.parse::<i32>().is_ok() { "integer" } else { "numeric" };
            let message = format!("argument of NOT must be type boolean, not type {integer}");
            Err(Error::new(SqlState::DATATYPE_MISMATCH, message))
        }
        (ast::UnaryOperator::Minus, ast::Value::SingleQuotedString(_)) => {
            let error = Error::new(SqlState("42725"), "operator is not unique: - unknown");
            Err(error.hint("Could not choose a best candidate operator. You might need to add explicit type casts."))
        }
        _ => Ok(None),
    }
}

/// `~x`: every bit the other way.
fn complement(value: &Expr) -> Expr {
    let one = Expr::value(ast::Value::Number("1".to_owned(), false));
    let ones = Expr::UnaryOp { op: ast::UnaryOperator::Minus, expr: Box::new(one) };
    let value = Expr::Nested(Box::new(value.clone()));
    Expr::Nested(Box::new(Expr::BinaryOp { left: Box::new(value), op: BinaryOperator::PGBitwiseXor, right: Box::new(ones) }))
}

/// `list[:2]` and `list[2:]` with both bounds.
fn sliced(root: &Expr, chain: &[AccessExpr]) -> Option<Expr> {
    let open = |access: &AccessExpr| match access {
        AccessExpr::Subscript(Subscript::Slice { lower_bound, upper_bound, .. }) => lower_bound.is_none() || upper_bound.is_none(),
        _ => false,
    };
    if !chain.iter().any(open) {
        return None;
    }
    let mut chain = chain.to_vec();
    for access in &mut chain {
        if let AccessExpr::Subscript(Subscript::Slice { lower_bound, upper_bound, .. }) = access {
            lower_bound.get_or_insert_with(|| Expr::value(ast::Value::Number("1".to_owned(), false)));
            upper_bound.get_or_insert_with(|| Expr::value(ast::Value::Number(i32::MAX.to_string(), false)));
        }
    }
    Some(Expr::CompoundFieldAccess { root: Box::new(root.clone()), access_chain: chain })
}

/// Operators before a number that are functions.
fn prefix(operator: ast::UnaryOperator) -> Option<&'static str> {
    match operator {
        ast::UnaryOperator::PGSquareRoot => Some("sqrt"),
        ast::UnaryOperator::PGCubeRoot => Some("cbrt"),
        ast::UnaryOperator::PGAbs => Some("abs"),
        _ => None,
    }
}

fn is_string(expression: &Expr) -> bool {
    matches!(expression, Expr::Value(value) if matches!(value.value, ast::Value::SingleQuotedString(_) | ast::Value::EscapedStringLiteral(_)))
}

/// `pg_catalog.f(x)` is `f(x)`.
fn unqualified(function: &Function) -> Option<Expr> {
    let [schema, name] = function.name.0.as_slice() else { return None };
    let schema = schema.as_ident()?;
    if !schema.value.eq_ignore_ascii_case("pg_catalog") {
        return None;
    }
    Some(Expr::Function(Function { name: ObjectName(vec![name.clone()]), ..function.clone() }))
}

/// A number with an exponent that is cast to a floating-point type: its text, since no numeric may hold it.
fn floating(cast: &Expr) -> Option<Expr> {
    let Expr::Cast { expr, data_type, .. } = cast else { return None };
    let Expr::Value(ast::ValueWithSpan { value: ast::Value::Number(text, _), .. }) = expr.as_ref() else { return None };
    let float = matches!(crate::sql::sql_type(data_type), Ok(crate::types::SqlType::Double | crate::types::SqlType::Real));
    if !float || !text.contains(['e', 'E']) {
        return None;
    }
    let mut cast = cast.clone();
    if let Expr::Cast { expr, .. } = &mut cast {
        **expr = Expr::value(ast::Value::SingleQuotedString(text.clone()));
    }
    Some(cast)
}

/// Types whose values are looked up in the catalogs: `'events'::regclass` is `regclass('events')`.
fn registered(data_type: &ast::DataType) -> Option<&'static str> {
    const TYPES: [&str; 7] = ["regclass", "regtype", "regproc", "regprocedure", "regnamespace", "regrole", "regoper"];
    let name = match data_type {
        ast::DataType::Regclass => "regclass".to_owned(),
        ast::DataType::Custom(name, _) => last_name(name)?,
        _ => return None,
    };
    TYPES.iter().find(|known| **known == name).copied()
}

fn last_name(name: &ObjectName) -> Option<String> {
    let ident = name.0.last()?.as_ident()?;
    Some(if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() })
}

fn call(name: &str, arguments: Vec<Expr>) -> Expr {
    let args = arguments.into_iter().map(|argument| FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))).collect();
    Expr::Function(Function {
        name: ObjectName(vec![ObjectNamePart::Identifier(Ident::new(name))]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList { duplicate_treatment: None, args, clauses: Vec::new() }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

fn folded(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

/// Gives each column of the select list PostgreSQL's name, and makes repeated ones unique.
fn name_columns(select: &mut Select) {
    let has_wildcard = select.projection.iter().any(|item| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..)));
    let mut seen: Vec<(Option<String>, String)> = Vec::new();
    for (index, item) in select.projection.iter_mut().enumerate() {
        let (qualifier, name, plain) = match item {
            SelectItem::UnnamedExpr(Expr::Identifier(ident)) => (None, folded(ident), true),
            SelectItem::UnnamedExpr(Expr::CompoundIdentifier(idents)) => {
                let qualifier = idents.len().checked_sub(2).and_then(|index| idents.get(index)).map(folded);
                (qualifier, idents.last().map(folded).unwrap_or_default(), true)
            }
            SelectItem::UnnamedExpr(expression) => (None, names::of(expression), false),
            SelectItem::ExprWithAlias { alias, .. } => (None, folded(alias), false),
            _ => continue,
        };
        let repeated = seen.iter().any(|known| known.1 == name && (known.0 == qualifier || known.0.is_none() || qualifier.is_none()));
        let unique = if repeated || (has_wildcard && plain) { format!("{name}{SUFFIX}{index}") } else { name.clone() };
        seen.push((qualifier, name.clone()));
        if plain && unique == name {
            continue;
        }
        let alias = Ident::with_quote('"', unique);
        *item = match std::mem::replace(item, SelectItem::UnnamedExpr(Expr::Identifier(Ident::new("")))) {
            SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => SelectItem::ExprWithAlias { expr, alias },
            other => other,
        };
    }
}

/// EXISTS and IN as values are counts: DataFusion knows them in conditions only.
fn tests_in_list(select: &mut Select) -> Result<()> {
    /// Of the subqueries that the visit is inside of, the conditions are conditions.
    struct Count(usize);
    impl VisitorMut for Count {
        type Break = Error;
        fn pre_visit_query(&mut self, _: &mut Query) -> ControlFlow<Error> {
            self.0 += 1;
            ControlFlow::Continue(())
        }
        fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<Error> {
            self.0 -= 1;
            ControlFlow::Continue(())
        }
        fn post_visit_expr(&mut self, expression: &mut Expr) -> ControlFlow<Error> {
            if self.0 > 0 {
                return ControlFlow::Continue(());
            }
            let counted = match expression {
                Expr::Exists { subquery, negated } => {
                    let op = if *negated { BinaryOperator::Eq } else { BinaryOperator::Gt };
                    let zero = Expr::value(ast::Value::Number("0".to_owned(), false));
                    let count = Expr::BinaryOp { left: Box::new(count_of(subquery)), op, right: Box::new(zero) };
                    Ok(Some(Expr::Nested(Box::new(count))))
                }
                Expr::AnyOp { left, compare_op: BinaryOperator::Eq, right, .. } => members::counted_of(left, right, false),
                Expr::AllOp { left, compare_op: BinaryOperator::NotEq, right } => members::counted_of(left, right, true),
                Expr::InSubquery { expr, subquery, negated } => members::counted(expr, subquery, *negated),
                _ => Ok(None),
            };
            match counted {
                Ok(None) => {}
                Ok(Some(counted)) => *expression = counted,
                Err(error) => return ControlFlow::Break(error),
            }
            ControlFlow::Continue(())
        }
    }
    for item in &mut select.projection {
        let (SelectItem::UnnamedExpr(expression) | SelectItem::ExprWithAlias { expr: expression, .. }) = &mut *item else { continue };
        let name = names::of(expression);
        finish(expression.visit(&mut Count(0)))?;
        // The column is called as it was written.
        if let SelectItem::UnnamedExpr(expression) = item
            && names::of(expression) != name
        {
            let alias = Ident::with_quote('"', name);
            *item = SelectItem::ExprWithAlias { expr: expression.clone(), alias };
        }
    }
    Ok(())
}

/// `(SELECT count(*) FROM ... WHERE ...)`, or around the query where it is more than that.
fn count_of(query: &Query) -> Expr {
    let plain = query.limit_clause.is_none() && query.with.is_none() && query.fetch.is_none();
    if let SetExpr::Select(select) = query.body.as_ref()
        && plain
        && select.distinct.is_none()
        && select.having.is_none()
        && matches!(&select.group_by, ast::GroupByExpr::Expressions(keys, _) if keys.is_empty())
        && !select
            .projection
            .iter()
            .any(|item| matches!(item, SelectItem::UnnamedExpr(Expr::Function(_)) | SelectItem::ExprWithAlias { .. }))
    {
        let star = FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: vec![FunctionArg::Unnamed(FunctionArgExpr::Wildcard)],
            clauses: Vec::new(),
        });
        if let Expr::Function(count) = call("count", Vec::new()) {
            let mut counting = query.clone();
            counting.order_by = None;
            let count = Expr::Function(Function { args: star, ..count });
            if let SetExpr::Select(select) = counting.body.as_mut() {
                select.projection = vec![SelectItem::UnnamedExpr(count)];
            }
            return Expr::Subquery(Box::new(counting));
        }
    }
    let text = "SELECT count(*) FROM (SELECT 1) AS counted";
    // The text is a constant of this module.
    let Ok(mut counting) = crate::sql::parse_query(text) else { return Expr::Subquery(Box::new(query.clone())) };
    if let SetExpr::Select(select) = counting.body.as_mut()
        && let Some(table) = select.from.first_mut()
        && let TableFactor::Derived { subquery, .. } = &mut table.relation
    {
        **subquery = query.clone();
    }
    Expr::Subquery(Box::new(counting))
}

/// `SELECT generate_series(1, 3)` is one row a value.
fn series_in_list(select: &mut Select) {
    if series_alone(select) {
        return;
    }
    for item in &mut select.projection {
        let expression = match item {
            SelectItem::UnnamedExpr(expression) | SelectItem::ExprWithAlias { expr: expression, .. } => expression,
            _ => continue,
        };
        if let Expr::Function(function) = expression
            && let Some(name) = last_name(&function.name)
            && name != "unnest"
            && sets::gives_rows(&name)
        {
            let alias = Ident::with_quote('"', name.as_str());
            let series = expression.clone();
            *item = match item {
                SelectItem::ExprWithAlias { alias, .. } => {
                    SelectItem::ExprWithAlias { expr: unnested(&name, series), alias: alias.clone() }
                }
                _ => SelectItem::ExprWithAlias { expr: unnested(&name, series), alias },
            };
        }
    }
}

/// A list as rows, with the SQL type that unnesting loses.
fn unnested(function: &str, list: Expr) -> Expr {
    let rows = call("unnest", vec![list]);
    match function {
        "jsonb_array_elements" => call("as_jsonb", vec![rows]),
        "json_array_elements" => call("as_json", vec![rows]),
        _ => rows,
    }
}

/// A series that is all that a SELECT gives comes from FROM, which knows series of every type.
fn series_alone(select: &mut Select) -> bool {
    if !select.from.is_empty() {
        return false;
    }
    let [item] = select.projection.as_mut_slice() else { return false };
    let (expression, alias) = match item {
        SelectItem::UnnamedExpr(expression) => (expression, Ident::with_quote('"', "generate_series")),
        SelectItem::ExprWithAlias { expr, alias } => (expr, alias.clone()),
        _ => return false,
    };
    let Expr::Function(function) = expression else { return false };
    let FunctionArguments::List(list) = &function.args else { return false };
    if last_name(&function.name).as_deref() != Some("generate_series") {
        return false;
    }
    let relation = TableFactor::Function {
        lateral: false,
        name: function.name.clone(),
        args: list.args.clone(),
        with_ordinality: false,
        alias: Some(TableAlias { explicit: true, columns: vec![column(&alias)], name: alias.clone(), at: None }),
    };
    *item = SelectItem::UnnamedExpr(Expr::Identifier(alias));
    select.from.push(ast::TableWithJoins { relation, joins: Vec::new() });
    true
}

/// The column of `FROM generate_series(...) AS n` is called `n`.
fn name_series(factor: &mut TableFactor) {
    let (TableFactor::Table { name, alias, args: Some(_), .. } | TableFactor::Function { name, alias, .. }) = factor else { return };
    let Some(function) = last_name(name) else { return };
    if function != "generate_series" {
        return;
    }
    match alias {
        Some(alias) if alias.columns.is_empty() => alias.columns = vec![column(&alias.name)],
        Some(_) => {}
        None => {
            let name = Ident::with_quote('"', function);
            *alias = Some(TableAlias { explicit: true, columns: vec![column(&name)], name, at: None });
        }
    }
}

fn column(name: &Ident) -> TableAliasColumnDef {
    TableAliasColumnDef { name: name.clone(), data_type: None }
}
