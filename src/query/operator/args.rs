//! The arguments of one call of an operator: checked against what the operator declares, typed by accessors.
//!
//! *Place*: made by [`super::Operators`], used by each operator's `plan`.
//!
//! A value is an expression over the input, a list `[a, b]` of such, or a constant. Every error names the argument as
//! `argument "x" of OPERATOR`, from which `sql::position` finds its place in the statement.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::datatypes::{DataType, IntervalMonthDayNano, IntervalMonthDayNanoType};
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::planner::RelationPlannerContext;
use datafusion::logical_expr::{Expr, ExprSchemable};
use sqlparser::ast::{self, FunctionArg, FunctionArgExpr, Value};

use super::Operator;
use super::input::{self, Input};
use crate::error::{Error, SqlState};
use crate::query::aliases;
use crate::query::functions::{Function, interval, is_text, type_name, undefined};
use crate::query::names;
use crate::query::typing::{self, casts, operators};
use crate::types::SqlType;
use crate::types::text::parse_scalar;
use crate::types::zone::Zone;

/// An argument that an operator knows.
#[derive(Clone, Copy, Debug)]
pub struct Argument {
    /// As it is written before `:=`.
    pub name: &'static str,
    /// Whether a call without it is wrong.
    pub required: bool,
}

impl Argument {
    /// One that has to be given.
    pub const fn required(name: &'static str) -> Self {
        Self { name, required: true }
    }

    /// One that has a default.
    pub const fn optional(name: &'static str) -> Self {
        Self { name, required: false }
    }
}

/// One call of an operator.
pub struct Call<'a> {
    /// What it reads.
    pub input: Input,
    operator: &'static dyn Operator,
    given: Vec<(&'static str, ast::Expr)>,
    context: &'a mut dyn RelationPlannerContext,
}

impl std::fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call").field("operator", &self.operator).field("given", &self.given).finish_non_exhaustive()
    }
}

impl<'a> Call<'a> {
    /// Plans the input and checks which arguments there are.
    pub(super) fn new(
        operator: &'static dyn Operator,
        arguments: Vec<FunctionArg>,
        context: &'a mut dyn RelationPlannerContext,
    ) -> Result<Self> {
        let mut arguments = arguments.into_iter();
        let source = match arguments.next() {
            Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(source))) => source,
            _ => return Err(missing(operator, "an input").into()),
        };
        let mut given: Vec<(&'static str, ast::Expr)> = Vec::new();
        for argument in arguments {
            let (name, value) = match argument {
                FunctionArg::Named { name, arg: FunctionArgExpr::Expr(value), .. } => (name, value),
                other => {
                    let error = Error::syntax(format!("after the input, {} takes named arguments, not \"{other}\"", operator.name()));
                    return Err(error.hint(format!("For example {}.", operator.example())).into());
                }
            };
            let name = if name.quote_style.is_some() { name.value } else { name.value.to_lowercase() };
            let Some(known) = operator.arguments().iter().find(|known| known.name == name) else {
                return Err(unknown(operator, &name).into());
            };
            if given.iter().any(|(other, _)| *other == known.name) {
                return Err(Error::syntax(format!("argument \"{name}\" of {} is given more than once", operator.name())).into());
            }
            given.push((known.name, value));
        }
        if let Some(absent) = operator.arguments().iter().find(|known| known.required && !given.iter().any(|(name, _)| *name == known.name))
        {
            return Err(missing(operator, &format!("the argument \"{}\"", absent.name)).into());
        }
        let plan = aliases::told_apart(context.plan(input::relation(source, operator.name())?)?)?;
        let input = Input::of(typing::apply(plan)?)?;
        Ok(Self { input, operator, given, context })
    }

    /// An argument as it was written, for what needs its text or is planned over other columns.
    pub fn syntax(&self, name: &'static str) -> Option<&ast::Expr> {
        self.given.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// The items of a list as they were written; one expression is a list of one. Empty where it is not given.
    pub fn items(&self, name: &'static str) -> Vec<ast::Expr> {
        match self.syntax(name) {
            None => Vec::new(),
            Some(ast::Expr::Array(list)) => list.elem.clone(),
            Some(one) => vec![one.clone()],
        }
    }

    /// Plans and types an expression over any columns. Aggregates are left in it.
    pub fn planned(&mut self, expression: ast::Expr, schema: &DFSchema) -> Result<Expr> {
        let planned = self.context.sql_to_expr(expression, schema)?;
        Ok(typing::expression(planned, schema)?.data)
    }

    /// An argument over the input's columns.
    pub fn expression(&mut self, name: &'static str) -> Result<Option<Expr>> {
        match self.syntax(name).cloned() {
            Some(ast::Expr::Array(_)) => Err(self.wrong(name, "must be one expression, not a list").into()),
            Some(value) => self.over_input(name, value).map(Some),
            None => Ok(None),
        }
    }

    /// A list of expressions over the input's columns.
    pub fn expressions(&mut self, name: &'static str) -> Result<Vec<Expr>> {
        self.items(name).into_iter().map(|item| self.over_input(name, item)).collect()
    }

    /// A list of conditions on the input's rows.
    pub fn conditions(&mut self, name: &'static str) -> Result<Vec<Expr>> {
        let items = self.expressions(name)?;
        items.into_iter().map(|item| self.boolean(name, item)).collect()
    }

    /// One condition on the input's rows.
    pub fn condition(&mut self, name: &'static str) -> Result<Option<Expr>> {
        let item = self.expression(name)?;
        item.map(|item| self.boolean(name, item)).transpose()
    }

    /// The column or expression of the rows' times: the argument, or the input's event time.
    pub fn time(&mut self, name: &'static str) -> Result<Expr> {
        let time = match (self.expression(name)?, &self.input.event_time) {
            (Some(time), _) => time,
            (None, Some(column)) => Expr::Column(column.clone()),
            (None, None) => {
                let error = missing(self.operator, &format!("the argument \"{name}\"")).detail("The input has no event time of its own.");
                return Err(error.into());
            }
        };
        match time.get_type(self.input.schema())? {
            DataType::Timestamp(_, _) => Ok(time),
            DataType::Date32 => Ok(casts::to(time, SqlType::Timestamp.arrow())),
            other => Err(self.mismatch(name, "timestamp", &other).into()),
        }
    }

    /// A yes or no, constant.
    pub fn flag(&self, name: &'static str, default: bool) -> Result<bool> {
        let value = match self.syntax(name) {
            None => return Ok(default),
            Some(ast::Expr::Value(value)) => &value.value,
            Some(_) => return Err(self.not_constant(name).into()),
        };
        match value {
            Value::Boolean(flag) => Ok(*flag),
            Value::SingleQuotedString(text) => match parse_scalar(&SqlType::Boolean, text, &Zone::UTC) {
                Ok(ScalarValue::Boolean(Some(flag))) => Ok(flag),
                _ => Err(self.wrong(name, "must be true or false").into()),
            },
            Value::Placeholder(_) => Err(self.not_constant(name).into()),
            _ => Err(self.wrong(name, "must be true or false").with_state(SqlState::DATATYPE_MISMATCH).into()),
        }
    }

    /// One of some words, constant: its place among `known`. The first is the default.
    pub fn choice(&self, name: &'static str, known: &[&str]) -> Result<usize> {
        let Some(value) = self.syntax(name) else { return Ok(0) };
        let listed = || format!("Known are {}.", known.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(", "));
        let text = match value {
            ast::Expr::Value(value) => match &value.value {
                Value::SingleQuotedString(text) => text.to_lowercase(),
                Value::Placeholder(_) => return Err(self.not_constant(name).hint(listed()).into()),
                other => {
                    return Err(self.wrong(name, format!("must be a string, not {other}")).with_state(SqlState::DATATYPE_MISMATCH).into());
                }
            },
            _ => return Err(self.not_constant(name).hint(listed()).into()),
        };
        let place = known.iter().position(|word| *word == text);
        place.ok_or_else(|| self.wrong(name, format!("cannot be \"{text}\"")).hint(listed()).into())
    }

    /// A whole number within bounds, constant.
    pub fn integer(&self, name: &'static str, bounds: std::ops::RangeInclusive<i64>) -> Result<Option<i64>> {
        let Some(number) = self.number_text(name)? else { return Ok(None) };
        match number.parse::<i64>() {
            Ok(number) if bounds.contains(&number) => Ok(Some(number)),
            _ => {
                let limits = format!("must be a whole number from {} to {}, not {number}", bounds.start(), bounds.end());
                Err(self.wrong(name, limits).into())
            }
        }
    }

    /// A finite number, constant.
    pub fn number(&self, name: &'static str) -> Result<Option<f64>> {
        let Some(number) = self.number_text(name)? else { return Ok(None) };
        match number.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(Some(number)),
            _ => Err(self.wrong(name, format!("must be a number, not {number}")).into()),
        }
    }

    fn number_text(&self, name: &'static str) -> Result<Option<String>> {
        let (sign, value) = match self.syntax(name) {
            None => return Ok(None),
            Some(ast::Expr::UnaryOp { op: ast::UnaryOperator::Minus, expr }) => ("-", expr.as_ref()),
            Some(value) => ("", value),
        };
        match value {
            ast::Expr::Value(value) => match &value.value {
                Value::Number(number, _) => Ok(Some(format!("{sign}{number}"))),
                Value::Placeholder(_) => Err(self.not_constant(name).into()),
                other => Err(self.wrong(name, format!("must be a number, not {other}")).with_state(SqlState::DATATYPE_MISMATCH).into()),
            },
            _ => Err(self.not_constant(name).into()),
        }
    }

    /// An interval that is the same for all rows: a literal or parameter, or made of such. Calendar months are left in it.
    pub fn interval(&mut self, name: &'static str) -> Result<Option<Expr>> {
        let Some(value) = self.expression(name)? else { return Ok(None) };
        if !value.column_refs().is_empty() || value.is_volatile() {
            return Err(self.not_constant(name).into());
        }
        let value = self.of_type(name, value, &SqlType::Interval)?;
        match literal(&value) {
            Some(interval) if interval::microseconds(interval) <= 0 => Err(not_positive(name, self.operator.name()).into()),
            _ => Ok(Some(value)),
        }
    }

    /// The same without months, whose lengths differ.
    pub fn fixed_interval(&mut self, name: &'static str) -> Result<Option<Expr>> {
        let value = self.interval(name)?;
        match value.as_ref().and_then(literal) {
            Some(interval) if interval.months != 0 => {
                Err(self.wrong(name, "must have a fixed length: months and years are not allowed").into())
            }
            _ => Ok(value),
        }
    }

    /// The same in microseconds (bigint), more than nothing: a day is 24 hours and a month 30 days, as where PostgreSQL compares
    /// intervals. What is known only when the statement runs is checked then.
    pub fn interval_us(&mut self, name: &'static str) -> Result<Option<Expr>> {
        let Some(value) = self.interval(name)? else { return Ok(None) };
        Ok(Some(match literal(&value).and_then(|interval| i64::try_from(interval::microseconds(interval)).ok()) {
            // A literal alone would be taken for one that was written, and so for an integer where it fits.
            Some(us) => casts::to(Expr::Literal(ScalarValue::Int64(Some(us)), None), DataType::Int64),
            None => positive_us().call(vec![value, text(name), text(self.operator.name())]),
        }))
    }

    /// 22023 about an argument, as `argument "x" of OPERATOR ...`.
    pub fn wrong(&self, name: &'static str, what: impl std::fmt::Display) -> Error {
        Error::new(SqlState::INVALID_PARAMETER_VALUE, format!("argument \"{name}\" of {} {what}", self.operator.name()))
    }

    fn not_constant(&self, name: &'static str) -> Error {
        self.wrong(name, "must be a constant")
    }

    fn mismatch(&self, name: &'static str, wanted: &str, found: &DataType) -> Error {
        self.wrong(name, format!("must be type {wanted}, not type {}", type_name(found))).with_state(SqlState::DATATYPE_MISMATCH)
    }

    fn over_input(&mut self, name: &'static str, value: ast::Expr) -> Result<Expr> {
        let schema = Arc::clone(self.input.schema());
        let value = self.planned(value, &schema)?;
        let misplaced = |what: &str| {
            let message = format!("{what} are not allowed in argument \"{name}\" of {}", self.operator.name());
            Err(Error::new(SqlState::GROUPING_ERROR, message).into())
        };
        if value.exists(|expr| Ok(matches!(expr, Expr::AggregateFunction(_))))? {
            return misplaced("aggregate functions");
        }
        if value.exists(|expr| Ok(matches!(expr, Expr::WindowFunction(_))))? {
            return misplaced("window functions");
        }
        Ok(value)
    }

    /// A condition. A literal that is none is more often a value to compare with than a misspelt truth.
    fn boolean(&self, name: &'static str, condition: Expr) -> Result<Expr> {
        let literal = operators::unknown(&condition).map(str::to_owned);
        self.of_type(name, condition, &SqlType::Boolean).map_err(|error| match literal {
            Some(text) => {
                let wrong = self.mismatch(name, "boolean", &DataType::Utf8View);
                wrong.hint(format!("Write a condition, such as event_type = '{text}'.")).into()
            }
            None => error,
        })
    }

    /// The names of the columns that a list of expressions becomes, as in a select list. 42701 where one is there twice, or among those
    /// that the operator has.
    pub fn names(&self, name: &'static str, own: &[&str]) -> Result<Vec<String>> {
        let names: Vec<String> = self.items(name).iter().map(names::of).collect();
        match names.iter().enumerate().find(|(place, name)| own.contains(&name.as_str()) || names[..*place].contains(name)) {
            Some((_, twice)) => {
                let message = format!("column \"{twice}\" specified more than once");
                let detail = format!("The columns of {}'s result are named as in a select list.", self.operator.name());
                let error = Error::new(SqlState::DUPLICATE_COLUMN, message).detail(detail);
                Err(error.hint(format!("Give it another name in a subquery, which is what {} reads.", self.operator.name())).into())
            }
            None => Ok(names),
        }
    }

    /// The value, which has the type, or is an untyped literal or parameter that takes it.
    fn of_type(&self, name: &'static str, value: Expr, wanted: &SqlType) -> Result<Expr> {
        let found = value.get_type(self.input.schema())?;
        match value {
            Expr::Placeholder(Placeholder { id, field: None }) => {
                Ok(Expr::Placeholder(Placeholder { id, field: Some(Arc::new(wanted.field("", true))) }))
            }
            Expr::Literal(value, _) if value.is_null() => Ok(Expr::Literal(ScalarValue::try_from(&wanted.arrow())?, None)),
            Expr::Literal(value, _) if is_text(&found) => match value.try_as_str().flatten() {
                Some(text) => casts::constant(text, wanted),
                None => Err(self.mismatch(name, &wanted.to_string(), &found).into()),
            },
            value if found == wanted.arrow() => Ok(value),
            _ => Err(self.mismatch(name, &wanted.to_string(), &found).into()),
        }
    }
}

fn text(value: &str) -> Expr {
    Expr::Literal(ScalarValue::Utf8View(Some(value.to_owned())), None)
}

fn literal(value: &Expr) -> Option<IntervalMonthDayNano> {
    match value {
        Expr::Literal(ScalarValue::IntervalMonthDayNano(interval), _) => *interval,
        _ => None,
    }
}

/// How much a name that was meant resembles the one that was written, from 0 to 1.
const SIMILAR: f64 = 0.75;

fn missing(operator: &dyn Operator, what: &str) -> Error {
    Error::new(SqlState::UNDEFINED_FUNCTION, format!("{} needs {what}", operator.name()))
        .hint(format!("For example {}.", operator.example()))
}

fn unknown(operator: &dyn Operator, name: &str) -> Error {
    let known: Vec<&str> = operator.arguments().iter().map(|argument| argument.name).collect();
    let nearest = known.iter().max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
    let nearest = nearest.filter(|nearest| strsim::jaro_winkler(nearest, name) >= SIMILAR);
    let nearest = nearest.map_or_else(String::new, |nearest| format!("Perhaps you mean \"{nearest}\". "));
    Error::new(SqlState::UNDEFINED_FUNCTION, format!("there is no argument \"{name}\" of {}", operator.name()))
        .hint(format!("{nearest}Known are {}.", known.join(", ")))
}

fn not_positive(argument: &str, operator: &str) -> Error {
    Error::new(SqlState::INVALID_PARAMETER_VALUE, format!("argument \"{argument}\" of {operator} must be a positive interval"))
}

/// `positive_us(interval, argument, operator)`: its microseconds. 22023 unless there are some.
fn positive_us() -> Function {
    Function::new(
        "positive_us",
        |types| match types {
            [DataType::Interval(_), DataType::Utf8View, DataType::Utf8View] => {
                Ok((vec![interval::TYPE, DataType::Utf8View, DataType::Utf8View], DataType::Int64))
            }
            _ => Err(undefined("positive_us", types)),
        },
        |args, _| {
            let (values, argument, operator) =
                (args[0].as_primitive::<IntervalMonthDayNanoType>(), args[1].as_string_view(), args[2].as_string_view());
            let lengths: Result<Int64Array, Error> = (0..values.len())
                .map(|row| {
                    let us = if values.is_valid(row) { interval::microseconds(values.value(row)) } else { 0 };
                    match i64::try_from(us) {
                        Ok(us @ 1..) => Ok(Some(us)),
                        _ => Err(not_positive(argument.value(row), operator.value(row))),
                    }
                })
                .collect();
            Ok(Arc::new(lengths?) as ArrayRef)
        },
    )
}
