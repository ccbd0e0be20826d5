//! Catalog queries of clients in the words that the planner knows.
//!
//! *Place*: `query::bind` calls [`query`] on a statement before everything else.
//!
//! What is rewritten, all of it without changing the answer:
//! - `OPERATOR(pg_catalog.~)` and types written with `pg_catalog.`; `= ANY ('{a,b}')` with a literal array; LIKE with an escape
//!   character other than the backslash; `generate_subscripts` as a series;
//! - `regclass` and its like: the value is an OID where it is compared and a name where it is text or a result column;
//! - a SELECT from a catalog that is always empty here (policies, publications, ...) has no rows, whatever else it says,
//!   so the shapes in it that cannot be planned do not matter;
//! - columns of type regproc are names where they are shown and OIDs where they are compared ([`procedures`]), and the elements of
//!   int2vector and oidvector are counted from 0 ([`vectors`]);
//! - `_pg_expandarray` as the elements and the places of its array ([`expand`]);
//! - what a query asks of domains and composite types, of which there are none ([`types`]);
//! - scalar subqueries over catalogs, which look up by key: conditions on the outer query become a CASE around them, and the
//!   value an aggregate, since only then a planner may take it for one row; `ARRAY(SELECT ...)` becomes an aggregate too.

mod empty;
mod expand;
mod procedures;
mod subquery;
mod types;
mod vectors;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use sqlparser::ast::{
    ArrayElemTypeDef, BinaryOperator, CastKind, DataType, DuplicateTreatment, Expr, Function, FunctionArg, FunctionArgExpr,
    FunctionArgumentList, FunctionArguments, Ident, ObjectName, Query, SelectItem, SetExpr, TableFactor, TimezoneInfo, Value,
    ValueWithSpan, Visit, VisitMut, Visitor, VisitorMut,
};

use super::{pg_catalog, relation};
use crate::catalog::Oid;
use crate::query::system::PG_CATALOG;
use empty::empty_body;
use subquery::{array_function, array_subquery, over_catalogs, scalar, unnests};

/// Aggregates that catalog queries use: a SELECT with one of them has a row even of nothing.
const AGGREGATES: [&str; 8] = ["count", "sum", "min", "max", "array_agg", "string_agg", "bool_or", "bool_and"];

/// Types whose values are OIDs and are shown as names.
const REGISTERED: [&str; 5] = ["regclass", "regtype", "regnamespace", "regrole", "regproc"];

/// Rewrites a query in place.
pub fn query(query: &mut Query) {
    let mut rewrite = Rewrite::default();
    let _ = Visit::visit(query, &mut rewrite.catalogs);
    let _ = VisitMut::visit(query, &mut rewrite);
    if let SetExpr::Select(select) = query.body.as_mut() {
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item
                && is_registered(expr)
            {
                *expr = shown(std::mem::replace(expr, null()));
            }
        }
    }
}

/// The catalogs by the names that the query has for them.
#[derive(Default)]
struct Catalogs(BTreeMap<String, Oid>);

impl Visitor for Catalogs {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, alias, .. } = factor
            && let Some(catalog) = system_name(name).and_then(|name| relation::relation(PG_CATALOG, &name))
        {
            let known_as = alias.as_ref().map_or_else(|| catalog.name.to_owned(), |alias| folded(&alias.name));
            self.0.insert(known_as, catalog.oid);
        }
        ControlFlow::Continue(())
    }
}

#[derive(Default)]
struct Rewrite {
    catalogs: Catalogs,
}

impl Rewrite {
    /// `l.tableoid`: the catalog that a row is of.
    fn table_oid(&self, expr: &mut Expr) {
        if let Expr::CompoundIdentifier(parts) = expr
            && let [table, column] = parts.as_slice()
            && folded(column) == "tableoid"
            && let Some(oid) = self.catalogs.0.get(&folded(table))
        {
            let number = Expr::Value(Value::Number(oid.to_string(), false).into());
            let data_type = DataType::Custom(ObjectName::from(vec![Ident::new("oid")]), Vec::new());
            *expr = Expr::Cast { kind: CastKind::Cast, expr: Box::new(number), data_type, array: false, format: None };
        }
    }
}

impl VisitorMut for Rewrite {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        types::arrays_only(query);
        if empty_body(&mut query.body) {
            // It may name columns that are no longer there.
            query.order_by = None;
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        types::no_domains(expr);
        expand::fields(expr);
        vectors::subscripted(expr);
        // The rows themselves are compared, not a list of them.
        if let Expr::AnyOp { right, .. } | Expr::AllOp { right, .. } = expr
            && let Some(subquery) = array_subquery(right)
        {
            **right = Expr::Subquery(Box::new(subquery.clone()));
        }
        // psql adds the options of the TOAST table, which no table has here.
        if let Expr::BinaryOp { left, op: BinaryOperator::StringConcat, right } = expr
            && matches!(array_subquery(right), Some(subquery) if unnests(subquery))
        {
            *expr = std::mem::replace(left.as_mut(), null());
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        self.table_oid(expr);
        match expr {
            Expr::BinaryOp { left, op, right } => {
                if let BinaryOperator::PGCustomBinaryOperator(parts) = op
                    && let Some(plain) = parts.last().and_then(|name| operator(name))
                {
                    *op = plain;
                }
                if matches!(op, BinaryOperator::Eq | BinaryOperator::NotEq) {
                    compare(left, right);
                }
            }
            Expr::InList { expr, list, .. } => list.iter_mut().for_each(|item| compare(expr, item)),
            Expr::Cast { expr: inner, data_type, .. } => {
                *data_type = plain_type(data_type);
                let replaced = std::mem::replace(inner.as_mut(), null());
                match registered_type(data_type) {
                    Some(name) => *expr = call(name, vec![replaced]),
                    None if matches!(data_type, DataType::Text) && is_registered(&replaced) => *expr = shown(replaced),
                    None => {
                        **inner = replaced;
                        procedures::cast(inner, data_type);
                    }
                }
            }
            Expr::AnyOp { left, compare_op: BinaryOperator::Eq, right, .. } => {
                if let Some(list) = literal_array(right) {
                    let left = std::mem::replace(left.as_mut(), null());
                    *expr = Expr::InList { expr: Box::new(left), list, negated: false };
                }
            }
            Expr::Subquery(subquery) if over_catalogs(subquery) => {
                let subquery = subquery.clone();
                *expr = scalar(subquery);
            }
            Expr::Function(function) => {
                if let Some(other) = array_function(function)
                    .or_else(|| vectors::bounds(function))
                    .or_else(|| subscripts(function))
                    .or_else(|| listed_setting(function))
                {
                    *expr = other;
                } else {
                    literal_setting(function);
                }
            }
            Expr::Like { pattern, escape_char, .. } | Expr::ILike { pattern, escape_char, .. } => escape_by_backslash(pattern, escape_char),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

// -- names ------------------------------------------------------------------------------------------

fn operator(name: &str) -> Option<BinaryOperator> {
    Some(match name {
        "~" => BinaryOperator::PGRegexMatch,
        "~*" => BinaryOperator::PGRegexIMatch,
        "!~" => BinaryOperator::PGRegexNotMatch,
        "!~*" => BinaryOperator::PGRegexNotIMatch,
        "~~" => BinaryOperator::PGLikeMatch,
        "!~~" => BinaryOperator::PGNotLikeMatch,
        "~~*" => BinaryOperator::PGILikeMatch,
        "!~~*" => BinaryOperator::PGNotILikeMatch,
        "=" => BinaryOperator::Eq,
        "<>" | "!=" => BinaryOperator::NotEq,
        "<" => BinaryOperator::Lt,
        "<=" => BinaryOperator::LtEq,
        ">" => BinaryOperator::Gt,
        ">=" => BinaryOperator::GtEq,
        "+" => BinaryOperator::Plus,
        "-" => BinaryOperator::Minus,
        "*" => BinaryOperator::Multiply,
        "/" => BinaryOperator::Divide,
        "||" => BinaryOperator::StringConcat,
        _ => return None,
    })
}

/// The last part of a name that has no schema, or the schema `pg_catalog`.
fn system_name(name: &ObjectName) -> Option<String> {
    let idents: Vec<&Ident> = name.0.iter().map(|part| part.as_ident()).collect::<Option<_>>()?;
    match idents.as_slice() {
        [name] => Some(folded(name)),
        [schema, name] if folded(schema) == PG_CATALOG => Some(folded(name)),
        _ => None,
    }
}

fn folded(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

/// `pg_catalog.int4` is `int4`; types that have a keyword are written with it.
fn plain_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Array(ArrayElemTypeDef::SquareBracket(element, size)) => {
            DataType::Array(ArrayElemTypeDef::SquareBracket(Box::new(plain_type(element)), *size))
        }
        DataType::Custom(name, modifiers) => match system_name(name).as_deref() {
            Some("text" | "char" | "name" | "cstring" | "regprocedure" | "pg_node_tree") => DataType::Text,
            Some("bool") => DataType::Boolean,
            Some("int2") => DataType::SmallInt(None),
            Some("int4") => DataType::Integer(None),
            Some("int8") => DataType::BigInt(None),
            Some("float4") => DataType::Real,
            Some("float8") => DataType::DoublePrecision,
            Some("varchar" | "bpchar") => DataType::Varchar(None),
            Some("timestamptz") => DataType::Timestamp(None, TimezoneInfo::Tz),
            Some("timestamp") => DataType::Timestamp(None, TimezoneInfo::None),
            Some("date") => DataType::Date,
            Some("xid" | "cid") => DataType::Custom(ObjectName::from(vec![Ident::new("oid")]), Vec::new()),
            Some("oidvector") => array_of(DataType::Custom(ObjectName::from(vec![Ident::new("oid")]), Vec::new())),
            Some("int2vector") => array_of(DataType::SmallInt(None)),
            Some(other) => DataType::Custom(ObjectName::from(vec![Ident::new(other)]), modifiers.clone()),
            None => data_type.clone(),
        },
        other => other.clone(),
    }
}

fn array_of(element: DataType) -> DataType {
    DataType::Array(ArrayElemTypeDef::SquareBracket(Box::new(element), None))
}

// -- regclass and its like --------------------------------------------------------------------------

fn registered_type(data_type: &DataType) -> Option<&'static str> {
    let name = match data_type {
        DataType::Regclass => "regclass".to_owned(),
        DataType::Custom(name, _) => system_name(name)?,
        _ => return None,
    };
    REGISTERED.into_iter().find(|known| *known == name)
}

/// The argument of a cast to such a type, rewritten as a call.
fn registered_argument(expr: &Expr) -> Option<(&'static str, &Expr)> {
    let Expr::Function(function) = expr else { return None };
    let name = system_name(&function.name)?;
    let name = REGISTERED.into_iter().find(|known| *known == name)?;
    match arguments(function)?.as_slice() {
        [argument] => Some((name, argument)),
        _ => None,
    }
}

/// The argument of a cast to `regclass` or its like, which is a call by now.
pub fn registered(expr: &Expr) -> Option<&Expr> {
    registered_argument(expr).map(|(_, argument)| argument)
}

fn is_registered(expr: &Expr) -> bool {
    registered_argument(expr).is_some()
}

/// A value that is shown: the name, whether the argument was a name or an OID.
fn shown(expr: Expr) -> Expr {
    match registered_argument(&expr) {
        // The function gives an OID for text, so it is called again for the name.
        Some((name, argument)) if is_text(argument) => call(name, vec![expr]),
        _ => expr,
    }
}

/// A value that is compared: the OID.
fn compared(expr: &Expr) -> Option<Expr> {
    let (_, argument) = registered_argument(expr)?;
    if is_text(argument) { Some(expr.clone()) } else { Some(argument.clone()) }
}

/// Both sides of a comparison with such a value are OIDs.
fn compare(left: &mut Expr, right: &mut Expr) {
    procedures::compare(left, right);
    for (one, other) in [(0, 1), (1, 0)] {
        let sides = [&*left, &*right];
        let (Some((name, _)), Some(literal)) = (registered_argument(sides[one]), literal_text(sides[other])) else { continue };
        if literal.parse::<u32>().is_err() {
            let wrapped = call(name, vec![sides[other].clone()]);
            *(if other == 0 { &mut *left } else { &mut *right }) = wrapped;
        }
    }
    for side in [left, right] {
        if let Some(oid) = compared(side) {
            *side = oid;
        }
    }
}

/// Whether an expression is text by its form: columns that are cast to these types are OIDs.
fn is_text(expr: &Expr) -> bool {
    match expr {
        Expr::Nested(inner) => is_text(inner),
        column if procedures::is_procedure(column) => true,
        Expr::BinaryOp { op: BinaryOperator::StringConcat, .. } => true,
        Expr::Cast { data_type, .. } => matches!(data_type, DataType::Text | DataType::Varchar(_)),
        Expr::Function(function) => matches!(system_name(&function.name).as_deref(), Some("quote_ident" | "concat" | "format")),
        Expr::Value(value) => matches!(&value.value, Value::SingleQuotedString(_) | Value::EscapedStringLiteral(_) | Value::Placeholder(_)),
        _ => false,
    }
}

fn literal_text(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(text) | Value::EscapedStringLiteral(text), .. }) => Some(text),
        _ => None,
    }
}

/// The elements of `'{a,b}'`, with or without a cast to an array type.
fn literal_array(expr: &Expr) -> Option<Vec<Expr>> {
    let text = match expr {
        Expr::Nested(inner) => return literal_array(inner),
        Expr::Cast { expr, data_type: DataType::Array(_), .. } => literal_text(expr)?,
        other => literal_text(other)?,
    };
    let elements = text.trim().strip_prefix('{')?.strip_suffix('}')?;
    if elements.contains(['{', '\\']) || elements.trim().is_empty() {
        return None;
    }
    let unquoted = |element: &str| match element.strip_prefix('"') {
        Some(quoted) => quoted.strip_suffix('"').map(str::to_owned),
        None => Some(element.to_owned()),
    };
    elements.split(',').map(|element| unquoted(element.trim()).map(|element| string(&element))).collect()
}

/// `generate_subscripts(array, 1)` is the series of its positions.
fn subscripts(function: &Function) -> Option<Expr> {
    if system_name(&function.name).as_deref() != Some("generate_subscripts") {
        return None;
    }
    let array = (*arguments(function)?.first()?).clone();
    Some(positions(array))
}

/// The numbers from 1 to an array's length.
fn positions(array: Expr) -> Expr {
    let length = call("array_length", vec![array]);
    let length = Expr::Cast { kind: CastKind::Cast, expr: Box::new(length), data_type: DataType::BigInt(None), array: false, format: None };
    call("generate_series", vec![Expr::Value(Value::Number("1".to_owned(), false).into()), length])
}

/// `current_setting('name'::varchar)` names a setting as much as without the cast.
fn literal_setting(function: &mut Function) {
    if system_name(&function.name).as_deref() == Some("current_setting")
        && let FunctionArguments::List(list) = &mut function.args
        && let Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))) = list.args.first_mut()
        && let Some(name) = constant_text(argument)
    {
        *argument = string(&name);
    }
}

/// `current_setting(s.name)`, as psql asks for each row of `pg_settings`, is the value that the row has.
fn listed_setting(function: &Function) -> Option<Expr> {
    if system_name(&function.name).as_deref() != Some("current_setting") {
        return None;
    }
    match *arguments(function)?.first()? {
        Expr::CompoundIdentifier(parts) => match parts.as_slice() {
            [table, name] if folded(name) == "name" => Some(Expr::CompoundIdentifier(vec![table.clone(), Ident::new("setting")])),
            _ => None,
        },
        _ => None,
    }
}

/// A constant pattern with the backslash as its escape character.
fn escape_by_backslash(pattern: &mut Expr, escape: &mut Option<ValueWithSpan>) {
    let Some(Value::SingleQuotedString(character)) = escape.as_ref().map(|escape| &escape.value) else { return };
    let mut characters = character.chars();
    let (Some(text), Some(character), None) = (constant_text(pattern), characters.next(), characters.next()) else { return };
    let mut plain = String::with_capacity(text.len() + 2);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            letter if letter == character => {
                plain.push('\\');
                plain.extend(letters.next());
            }
            '\\' => plain.push_str("\\\\"),
            letter => plain.push(letter),
        }
    }
    (*pattern, *escape) = (string(&plain), None);
}

/// The text of a literal, of a cast of one to a character type, or of several joined by `||`.
fn constant_text(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Nested(inner) => constant_text(inner),
        Expr::Cast { expr, data_type: DataType::Text | DataType::Varchar(_), .. } => constant_text(expr),
        Expr::BinaryOp { left, op: BinaryOperator::StringConcat, right } => Some(constant_text(left)? + &constant_text(right)?),
        other => literal_text(other).map(str::to_owned),
    }
}

// -- pieces -----------------------------------------------------------------------------------------

fn null() -> Expr {
    Expr::Value(Value::Null.into())
}

fn string(text: &str) -> Expr {
    Expr::Value(Value::SingleQuotedString(text.to_owned()).into())
}

fn arguments(function: &Function) -> Option<Vec<&Expr>> {
    let FunctionArguments::List(list) = &function.args else { return None };
    let plain = |argument| match argument {
        &FunctionArg::Unnamed(FunctionArgExpr::Expr(ref expr)) => Some(expr),
        _ => None,
    };
    list.args.iter().map(plain).collect()
}

fn call(name: &str, arguments: Vec<Expr>) -> Expr {
    let args = arguments.into_iter().map(|argument| FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))).collect();
    let list = FunctionArgumentList { duplicate_treatment: None::<DuplicateTreatment>, args, clauses: Vec::new() };
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(list),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

fn conjuncts(condition: Expr) -> Vec<Expr> {
    match condition {
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => [conjuncts(*left), conjuncts(*right)].concat(),
        other => vec![other],
    }
}

fn conjunction(conditions: Vec<Expr>) -> Option<Expr> {
    conditions.into_iter().reduce(|left, right| Expr::BinaryOp { left: Box::new(left), op: BinaryOperator::And, right: Box::new(right) })
}

/// Whether there is an aggregate outside of subqueries.
fn aggregates<T: Visit>(tree: &T) -> bool {
    struct Find(bool, usize);
    impl Visitor for Find {
        type Break = ();
        fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.1 += 1;
            ControlFlow::Continue(())
        }
        fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.1 -= 1;
            ControlFlow::Continue(())
        }
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            if let Expr::Function(function) = expr
                && self.1 == 0
                && system_name(&function.name).is_some_and(|name| AGGREGATES.contains(&name.as_str()))
            {
                self.0 = true;
            }
            ControlFlow::Continue(())
        }
    }
    let mut find = Find(false, 0);
    let _ = tree.visit(&mut find);
    find.0
}
