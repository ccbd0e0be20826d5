//! Types of parameters that the client left open.
//!
//! *Place*: `query::bind` asks in this order: what the client declared, what the text says ([`places`]: a cast, the argument of a function
//! whose type is known, a time zone), what the operators around it say once they are planned ([`inferred`]), and text, as in PostgreSQL.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Expr, LogicalPlan};
use sqlparser::ast::{self, Visit, VisitMut};

use super::catalogs::rewrite::registered;
use super::error::from_datafusion;
use super::functions::cast::WRITTEN;
use super::provider::{Relation, Unresolved};
use crate::error::{Error, Result, SqlState};
use crate::types::SqlType;

/// Most parameters of a statement (they are counted in 16 bits on the wire).
const PARAMETERS_MAX: usize = 65_535;

/// Functions with arguments of one type: name, argument, type.
static ARGUMENTS: [(&str, usize, SqlType); 72] = [
    ("ascii", 0, SqlType::Text),
    ("btrim", 0, SqlType::Text),
    ("btrim", 1, SqlType::Text),
    ("char_length", 0, SqlType::Text),
    ("chr", 0, SqlType::Integer),
    ("date_bin", 0, SqlType::Interval),
    ("date_bin", 1, SqlType::Timestamptz),
    ("date_bin", 2, SqlType::Timestamptz),
    ("date_diff", 0, SqlType::Text),
    ("date_part", 0, SqlType::Text),
    ("date_trunc", 0, SqlType::Text),
    ("date_trunc", 2, SqlType::Text),
    ("decode", 0, SqlType::Text),
    ("decode", 1, SqlType::Text),
    ("encode", 0, SqlType::Bytea),
    ("encode", 1, SqlType::Text),
    ("get_byte", 0, SqlType::Bytea),
    ("get_byte", 1, SqlType::Integer),
    ("hop", 1, SqlType::Interval),
    ("hop", 2, SqlType::Interval),
    ("initcap", 0, SqlType::Text),
    ("lag", 1, SqlType::Integer),
    ("lead", 1, SqlType::Integer),
    ("left", 0, SqlType::Text),
    ("left", 1, SqlType::Integer),
    ("length", 0, SqlType::Text),
    ("lower", 0, SqlType::Text),
    ("lpad", 0, SqlType::Text),
    ("lpad", 1, SqlType::Integer),
    ("lpad", 2, SqlType::Text),
    ("ltrim", 0, SqlType::Text),
    ("ltrim", 1, SqlType::Text),
    ("make_date", 0, SqlType::Integer),
    ("make_date", 1, SqlType::Integer),
    ("make_date", 2, SqlType::Integer),
    ("md5", 0, SqlType::Text),
    ("nth_value", 1, SqlType::Integer),
    ("ntile", 0, SqlType::Integer),
    ("regexp_match", 1, SqlType::Text),
    ("regexp_replace", 1, SqlType::Text),
    ("regexp_replace", 2, SqlType::Text),
    ("repeat", 0, SqlType::Text),
    ("repeat", 1, SqlType::Integer),
    ("replace", 1, SqlType::Text),
    ("replace", 2, SqlType::Text),
    ("reverse", 0, SqlType::Text),
    ("right", 0, SqlType::Text),
    ("right", 1, SqlType::Integer),
    ("round", 1, SqlType::Integer),
    ("rpad", 0, SqlType::Text),
    ("rpad", 1, SqlType::Integer),
    ("rpad", 2, SqlType::Text),
    ("rtrim", 0, SqlType::Text),
    ("rtrim", 1, SqlType::Text),
    ("session", 1, SqlType::Interval),
    ("set_byte", 0, SqlType::Bytea),
    ("set_byte", 1, SqlType::Integer),
    ("set_byte", 2, SqlType::Integer),
    ("split_part", 1, SqlType::Text),
    ("split_part", 2, SqlType::Integer),
    ("starts_with", 1, SqlType::Text),
    ("string_agg", 1, SqlType::Text),
    ("strpos", 1, SqlType::Text),
    ("substr", 1, SqlType::Integer),
    ("substr", 2, SqlType::Integer),
    ("to_char", 1, SqlType::Text),
    ("to_date", 0, SqlType::Text),
    ("to_date", 1, SqlType::Text),
    ("tumble", 1, SqlType::Interval),
    ("timezone", 0, SqlType::Text),
    ("trunc", 1, SqlType::Integer),
    ("upper", 0, SqlType::Text),
];

/// The number of a parameter.
fn number(expression: &ast::Expr) -> Option<usize> {
    match expression {
        ast::Expr::Value(value) => match &value.value {
            ast::Value::Placeholder(name) => name.strip_prefix('$')?.parse().ok(),
            _ => None,
        },
        ast::Expr::Nested(inner) => number(inner),
        _ => None,
    }
}

/// The number of the highest parameter. 42P02 for what is no parameter's name.
pub fn count(query: &ast::Query) -> Result<usize> {
    struct Find(usize, Option<String>);
    impl ast::Visitor for Find {
        type Break = ();
        fn pre_visit_value(&mut self, value: &ast::ValueWithSpan) -> ControlFlow<()> {
            if let ast::Value::Placeholder(name) = &value.value {
                match name.strip_prefix('$').and_then(|number| number.parse::<usize>().ok()) {
                    Some(number @ 1..=PARAMETERS_MAX) => self.0 = self.0.max(number),
                    _ => self.1 = Some(name.clone()),
                }
            }
            ControlFlow::Continue(())
        }
    }
    let mut find = Find(0, None);
    let _ = Visit::visit(query, &mut find);
    match find.1 {
        Some(name) => Err(Error::new(SqlState::UNDEFINED_PARAMETER, format!("there is no parameter {name}"))),
        None => Ok(find.0),
    }
}

/// Fills in the types of parameters whose place says it.
pub fn places(query: &ast::Query, types: &mut [Option<SqlType>]) {
    struct Find<'a>(&'a mut [Option<SqlType>]);
    impl Find<'_> {
        fn found(&mut self, expression: &ast::Expr, sql_type: SqlType) {
            if let Some(open @ None) = number(expression).and_then(|number| self.0.get_mut(number.wrapping_sub(1))) {
                *open = Some(sql_type);
            }
        }
    }
    impl ast::Visitor for Find<'_> {
        type Break = ();
        fn pre_visit_expr(&mut self, expression: &ast::Expr) -> ControlFlow<()> {
            match expression {
                ast::Expr::Cast { expr, data_type, .. } => {
                    if let Ok(sql_type) = crate::sql::sql_type(data_type) {
                        self.found(expr, sql_type);
                    }
                }
                ast::Expr::AtTimeZone { time_zone, .. } => self.found(time_zone, SqlType::Text),
                ast::Expr::Substring { substring_from, substring_for, .. } => {
                    substring_from.iter().chain(substring_for).for_each(|place| self.found(place, SqlType::Integer));
                }
                ast::Expr::Function(call) => {
                    let name = call.name.to_string().to_ascii_lowercase();
                    for (index, argument) in arguments(&call.args).enumerate() {
                        if let Some((.., sql_type)) = ARGUMENTS.iter().find(|(of, place, _)| *of == name && *place == index) {
                            self.found(argument, sql_type.clone());
                        }
                    }
                }
                // A cast to regclass and its like is a call by now, of the object's name.
                _ => {}
            }
            if let Some(name) = registered(expression) {
                self.found(name, SqlType::Text);
            }
            ControlFlow::Continue(())
        }

        /// Arguments of `generate_series` are of the type of the one that has one; of times the last is an interval.
        fn pre_visit_table_factor(&mut self, factor: &ast::TableFactor) -> ControlFlow<()> {
            let (name, args) = match factor {
                ast::TableFactor::Table { name, args: Some(list), .. } => (name, &list.args),
                ast::TableFactor::Function { name, args, .. } => (name, args),
                _ => return ControlFlow::Continue(()),
            };
            if !name.to_string().eq_ignore_ascii_case("generate_series") {
                return ControlFlow::Continue(());
            }
            let args: Vec<_> = args.iter().filter_map(argument).collect();
            let cast = args.iter().take(2).find_map(|argument| match argument {
                ast::Expr::Cast { data_type, .. } => crate::sql::sql_type(data_type).ok(),
                // A written cast is the first argument of the call that names it.
                ast::Expr::Function(call) if call.name.to_string() == WRITTEN => match arguments(&call.args).next() {
                    Some(ast::Expr::Cast { data_type, .. }) => crate::sql::sql_type(data_type).ok(),
                    _ => None,
                },
                _ => None,
            });
            if let Some(sql_type) = cast {
                for (index, argument) in args.into_iter().enumerate() {
                    let times = matches!(sql_type, SqlType::Timestamp | SqlType::Timestamptz | SqlType::Date);
                    self.found(argument, if times && index == 2 { SqlType::Interval } else { sql_type.clone() });
                }
            }
            ControlFlow::Continue(())
        }
    }
    let _ = Visit::visit(query, &mut Find(types));
}

fn arguments(arguments: &ast::FunctionArguments) -> impl Iterator<Item = &ast::Expr> {
    let list = match arguments {
        ast::FunctionArguments::List(list) => list.args.as_slice(),
        _ => &[],
    };
    list.iter().filter_map(argument)
}

fn argument(argument: &ast::FunctionArg) -> Option<&ast::Expr> {
    match argument {
        ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Expr(expression)) => Some(expression),
        _ => None,
    }
}

/// Makes a query of which only the types of parameters are wanted: `x = ANY ($1)` becomes `x = $1`. The numbers of these parameters,
/// which are arrays of what is found for them.
pub fn probe(query: &mut ast::Query, types: &[Option<SqlType>]) -> Vec<usize> {
    struct Unwrap<'a>(&'a [Option<SqlType>], Vec<usize>);
    impl ast::VisitorMut for Unwrap<'_> {
        type Break = ();
        fn pre_visit_expr(&mut self, expression: &mut ast::Expr) -> ControlFlow<()> {
            let (ast::Expr::AnyOp { left, compare_op, right, .. } | ast::Expr::AllOp { left, compare_op, right }) = expression else {
                return ControlFlow::Continue(());
            };
            let open = number(right).filter(|number| self.0.get(number.wrapping_sub(1)).is_some_and(Option::is_none));
            if let Some(number) = open {
                self.1.push(number);
                *expression = ast::Expr::BinaryOp { left: left.clone(), op: compare_op.clone(), right: right.clone() };
            }
            ControlFlow::Continue(())
        }
    }
    let mut unwrap = Unwrap(types, Vec::new());
    let _ = VisitMut::visit(query, &mut unwrap);
    unwrap.1
}

/// Types that the planner found for parameters, by number.
pub fn inferred(plan: &LogicalPlan) -> Result<BTreeMap<usize, SqlType>> {
    let mut types: BTreeMap<usize, SqlType> = BTreeMap::new();
    let mut conflict = None;
    plan.apply_with_subqueries(|plan| {
        for (placeholder, sql_type) in counted(plan) {
            types.entry(placeholder).or_insert(sql_type);
        }
        plan.apply_expressions(|expression| {
            expression.apply(|expression| {
                if let Expr::Placeholder(placeholder) = expression
                    && let Some(field) = &placeholder.field
                    && !matches!(field.data_type(), DataType::Null)
                    && let Ok(number) = placeholder.id.trim_start_matches('$').parse::<usize>()
                {
                    let found = SqlType::of_field(field);
                    if let Some(known) = types.insert(number, found.clone())
                        && known.oid() != found.oid()
                    {
                        conflict = Some((number, known, found));
                    }
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })
    .map_err(from_datafusion)?;
    match conflict {
        Some((number, known, found)) if !widens(&known, &found) => {
            Err(Error::new(SqlState("42P08"), format!("inconsistent types deduced for parameter ${number}"))
                .detail(format!("{known} versus {found}")))
        }
        Some((number, known, found)) => {
            types.insert(number, if rank(&known) > rank(&found) { known } else { found });
            Ok(types)
        }
        None => Ok(types),
    }
}

/// Parameters of LIMIT, OFFSET and generate_series, whose place says their type.
fn counted(plan: &LogicalPlan) -> Vec<(usize, SqlType)> {
    let number = |expression: &Expr| match expression {
        Expr::Placeholder(placeholder) if placeholder.field.is_none() => placeholder.id.trim_start_matches('$').parse::<usize>().ok(),
        _ => None,
    };
    match plan {
        LogicalPlan::Limit(limit) => {
            let counts = limit.skip.iter().chain(&limit.fetch);
            counts.filter_map(|count| Some((number(count)?, SqlType::BigInt))).collect()
        }
        LogicalPlan::TableScan(scan) => match scan.source.downcast_ref::<Unresolved>() {
            Some(Unresolved { relation: Relation::Series(arguments), .. }) => {
                let item = SqlType::of_arrow(scan.source.schema().field(0).data_type());
                let of = |index| match item {
                    SqlType::Timestamp | SqlType::Timestamptz if index == 2 => SqlType::Interval,
                    _ => item.clone(),
                };
                arguments.iter().enumerate().filter_map(|(index, argument)| Some((number(argument)?, of(index)))).collect()
            }
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

fn rank(sql_type: &SqlType) -> u8 {
    match sql_type {
        SqlType::SmallInt => 1,
        SqlType::Integer => 2,
        SqlType::BigInt => 3,
        SqlType::Numeric(_) => 4,
        SqlType::Real => 5,
        SqlType::Double => 6,
        SqlType::Varchar(_) | SqlType::Char(_) | SqlType::Name => 1,
        SqlType::Text => 2,
        _ => 0,
    }
}

fn widens(one: &SqlType, other: &SqlType) -> bool {
    let number = |sql_type: &SqlType| sql_type.arrow().is_numeric();
    let text = |sql_type: &SqlType| matches!(sql_type, SqlType::Varchar(_) | SqlType::Char(_) | SqlType::Name | SqlType::Text);
    (number(one) && number(other)) || (text(one) && text(other))
}
