//! Operators: literals of unknown type, dates and intervals, uuid, json, checked arithmetic.

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::metadata::FieldMetadata;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, Operator};

use super::bytes;
use super::casts::{as_text, constant, to};
use super::sql_type;
use crate::error::{Error, SqlState};
use crate::query::functions::{arithmetic, decimal, is_text, json, session, time, type_name, zone};
use crate::types::SqlType;
use crate::types::text::parse_scalar;
use crate::types::zone::Zone;

/// What became of an operator.
pub enum Outcome {
    /// It is this expression now.
    Changed(Expr),
    /// DataFusion's own typing is right.
    Same(Expr, Expr),
}

/// `operator does not exist: text = integer`.
pub fn undefined(operator: &str, left: &DataType, right: &DataType) -> Error {
    Error::new(SqlState::UNDEFINED_FUNCTION, format!("operator does not exist: {} {operator} {}", type_name(left), type_name(right)))
        .hint("No operator matches the given name and argument types. You might need to add explicit type casts.")
}

/// The same of operands.
pub fn undefined_for(operator: &str, left: &Expr, right: &Expr, schema: &DFSchema) -> Result<Error> {
    let of = |operand: &Expr| match unknown(operand).is_some() || open(operand) {
        true => Ok(DataType::Null),
        false => super::narrowed(operand.clone()).get_type(schema),
    };
    Ok(undefined(operator, &of(left)?, &of(right)?))
}

/// A condition of `what`, as in `argument of NOT must be type boolean`; a string literal is read as one.
pub fn condition(what: &str, condition: Expr, schema: &DFSchema) -> Result<Expr> {
    // Most conditions are seen to be one; the type of a long chain would be looked for at each of its links.
    let seen = match &condition {
        Expr::BinaryExpr(binary) => binary.op == Operator::And || binary.op == Operator::Or || compares(binary.op),
        Expr::Not(_) | Expr::IsNull(_) | Expr::IsNotNull(_) | Expr::InList(_) | Expr::Between(_) | Expr::Like(_) => true,
        other => open(other),
    };
    if seen {
        return Ok(condition);
    }
    if let Some(text) = unknown(&condition) {
        return constant(text, &SqlType::Boolean);
    }
    match super::narrowed(condition.clone()).get_type(schema)? {
        DataType::Boolean | DataType::Null => Ok(condition),
        other => {
            let message = format!("argument of {what} must be type boolean, not type {}", type_name(&other));
            Err(Error::new(SqlState::DATATYPE_MISMATCH, message).into())
        }
    }
}

/// `- x`. 42883 for what has no sign, 42725 for a literal that could be a number as well as an interval.
pub fn negative(operand: Expr, schema: &DFSchema) -> Result<Expr> {
    if unknown(&operand).is_some() {
        let error = Error::new(SqlState("42725"), "operator is not unique: - unknown");
        return Err(error.hint("Could not choose a best candidate operator. You might need to add explicit type casts.").into());
    }
    let data_type = if open(&operand) { DataType::Null } else { operand.get_type(schema)? };
    // Arrow would give the least of the integers again; of a literal nothing can overflow.
    let zero = match data_type {
        DataType::Int16 => Some(ScalarValue::Int16(Some(0))),
        DataType::Int32 => Some(ScalarValue::Int32(Some(0))),
        DataType::Int64 => Some(ScalarValue::Int64(Some(0))),
        _ => None,
    };
    if let (Some(zero), Some(function)) = (zero, arithmetic::checked(&Operator::Minus))
        && !matches!(&operand, Expr::Literal(value, _) if !is_least(value))
    {
        return Ok(function.call(vec![Expr::Literal(zero, None), operand]));
    }
    match data_type.is_numeric() || data_type.is_null() || matches!(data_type, DataType::Interval(_)) {
        true => Ok(Expr::Negative(Box::new(operand))),
        false => {
            let message = format!("operator does not exist: - {}", type_name(&data_type));
            let error = Error::new(SqlState::UNDEFINED_FUNCTION, message);
            Err(error.hint("No operator matches the given name and argument type. You might need to add an explicit type cast.").into())
        }
    }
}

fn is_least(value: &ScalarValue) -> bool {
    matches!(value, ScalarValue::Int16(Some(i16::MIN)) | ScalarValue::Int32(Some(i32::MIN)) | ScalarValue::Int64(Some(i64::MIN)))
}

/// Types an operator whose operands DataFusion would refuse or read differently.
pub fn typed(left: Expr, operator: Operator, right: Expr, schema: &DFSchema) -> Result<Outcome> {
    if matches!(operator, Operator::And | Operator::Or) {
        return Ok(Outcome::Same(left, right));
    }
    let (left, right) = (super::narrowed(left), super::narrowed(right));
    if open(&left) || open(&right) {
        return settled(left, operator, right, schema);
    }
    let (left_type, right_type) = (left.get_type(schema)?, right.get_type(schema)?);
    if let Some(expression) = document(&left, operator, &right, schema, (&left_type, &right_type))? {
        return Ok(Outcome::Changed(expression));
    }
    if operator == Operator::StringConcat
        && let Some(expression) = bytes::concatenation(&left, &right, schema)?
    {
        return Ok(Outcome::Changed(expression));
    }
    if compares(operator) {
        return comparison(left, operator, right, schema, &left_type, &right_type);
    }
    if operator == Operator::StringConcat {
        return concatenation((left, &left_type), (right, &right_type), schema);
    }
    temporal(left, operator, right, &left_type, &right_type)
}

/// Gives a parameter the type that its operator asks for; of comparisons DataFusion finds it.
fn settled(left: Expr, operator: Operator, right: Expr, schema: &DFSchema) -> Result<Outcome> {
    let as_type = |parameter: Expr, sql_type: &SqlType| match parameter {
        Expr::Placeholder(Placeholder { id, field: None }) => {
            Expr::Placeholder(Placeholder { id, field: Some(sql_type.field("", true).into()) })
        }
        other => other,
    };
    let both_open = open(&left) && open(&right);
    let other = if both_open { None } else { Some(sql_type(if open(&left) { &right } else { &left }, schema)?) };
    let target = match (operator, &other) {
        _ if json::operator(&operator).is_some() && !open(&left) => Some(SqlType::Text),
        (Operator::StringConcat, None | Some(SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_))) => Some(SqlType::Text),
        (Operator::StringConcat, Some(SqlType::Bytea)) => Some(SqlType::Bytea),
        (Operator::Plus, Some(SqlType::Timestamp | SqlType::Timestamptz | SqlType::Date)) => Some(SqlType::Interval),
        (Operator::Multiply | Operator::Divide, Some(SqlType::Interval)) => Some(SqlType::Double),
        (Operator::Plus | Operator::Minus | Operator::Multiply | Operator::Divide | Operator::Modulo, Some(known)) => Some(known.clone()),
        _ => None,
    };
    match target {
        Some(target) => typed(as_type(left, &target), operator, as_type(right, &target), schema),
        None => Ok(Outcome::Same(left, right)),
    }
}

/// Operators of json and jsonb, by the types of their operands.
fn document(left: &Expr, operator: Operator, right: &Expr, schema: &DFSchema, types: (&DataType, &DataType)) -> Result<Option<Expr>> {
    let is_document = |expression: &Expr, data_type: &DataType| -> Result<bool> {
        Ok(is_text(data_type) && matches!(sql_type(expression, schema)?, SqlType::Json | SqlType::Jsonb))
    };
    let arguments = || vec![left.clone(), right.clone()];
    if let Some(function) = json::operator(&operator) {
        let applies = is_text(types.0) || types.0.is_null();
        return Ok(applies.then(|| function.call(arguments())));
    }
    Ok(match operator {
        Operator::ArrowAt if is_text(types.0) && is_text(types.1) => {
            json::operator(&Operator::AtArrow).map(|function| function.call(vec![right.clone(), left.clone()]))
        }
        Operator::HashMinus if is_text(types.0) => Some(json::edit::minus_path().call(arguments())),
        Operator::Minus if is_document(left, types.0)? => Some(json::edit::minus().call(arguments())),
        Operator::StringConcat
            if (is_document(left, types.0)? && (is_document(right, types.1)? || unknown(right).is_some()))
                || (is_document(right, types.1)? && unknown(left).is_some()) =>
        {
            Some(json::edit::concat().call(arguments()))
        }
        _ => None,
    })
}

/// `||` of a text and a value of another type, which is written as a cast to text writes it.
fn concatenation(left: (Expr, &DataType), right: (Expr, &DataType), schema: &DFSchema) -> Result<Outcome> {
    let is_written = |data_type: &DataType| {
        !is_text(data_type) && !matches!(data_type, DataType::Null | DataType::List(_) | DataType::Binary | DataType::BinaryView)
    };
    let (left, right) = match (is_text(left.1), is_text(right.1)) {
        (true, false) if is_written(right.1) => (left.0, as_text(right.0, right.1, schema)?),
        (false, true) if is_written(left.1) => (as_text(left.0, left.1, schema)?, right.0),
        _ => return Ok(Outcome::Same(left.0, right.0)),
    };
    Ok(Outcome::Changed(Expr::BinaryExpr(BinaryExpr::new(Box::new(left), Operator::StringConcat, Box::new(right)))))
}

/// A value compared with `subject` (of BETWEEN, IN): a string literal is read as the subject's type.
pub fn operand(value: Expr, subject: &Expr, schema: &DFSchema) -> Result<Expr> {
    match typed(subject.clone(), Operator::Eq, value.clone(), schema)? {
        Outcome::Changed(Expr::BinaryExpr(BinaryExpr { right, .. })) => Ok(*right),
        _ => Ok(value),
    }
}

/// A value compared with the one column of a subquery: a string literal is read as the column's type.
pub fn member(value: Expr, operator: Operator, subquery: &DFSchema, schema: &DFSchema) -> Result<Expr> {
    let [field] = subquery.fields().iter().as_slice() else { return Ok(value) };
    if field.data_type().is_null() {
        return Ok(value);
    }
    let metadata = (!field.metadata().is_empty()).then(|| FieldMetadata::from(field.metadata().clone()));
    // Some value of the column that is no literal of unknown type.
    let other = Expr::Literal(ScalarValue::try_from(field.data_type())?, metadata);
    match typed(value.clone(), operator, other, schema)? {
        Outcome::Changed(Expr::BinaryExpr(BinaryExpr { left, .. })) => Ok(*left),
        Outcome::Same(left, _) => Ok(left),
        Outcome::Changed(_) => Ok(value),
    }
}

/// A string literal as a constant of the type that its place asks for; anything else as it is.
pub fn literal_as(value: Expr, target: &SqlType) -> Result<Expr> {
    match unknown(&value) {
        Some(text) => constant(text, target),
        None => Ok(value),
    }
}

/// A parameter whose type is not known yet.
pub fn open(expression: &Expr) -> bool {
    matches!(expression, Expr::Placeholder(placeholder) if placeholder.field.is_none())
}

/// Whether an operator compares.
pub fn compares(operator: Operator) -> bool {
    matches!(
        operator,
        Operator::Eq
            | Operator::NotEq
            | Operator::Lt
            | Operator::LtEq
            | Operator::Gt
            | Operator::GtEq
            | Operator::IsDistinctFrom
            | Operator::IsNotDistinctFrom
    )
}

/// The text of a string literal, whose type PostgreSQL leaves open.
pub fn unknown(expression: &Expr) -> Option<&str> {
    match expression {
        Expr::Literal(value, metadata) if metadata.as_ref().is_none_or(|metadata| metadata.is_empty()) => value.try_as_str().flatten(),
        _ => None,
    }
}

fn comparison(
    left: Expr,
    operator: Operator,
    right: Expr,
    schema: &DFSchema,
    left_type: &DataType,
    right_type: &DataType,
) -> Result<Outcome> {
    let rebuilt = |left: Expr, right: Expr| Outcome::Changed(Expr::BinaryExpr(BinaryExpr::new(Box::new(left), operator, Box::new(right))));
    if matches!(left_type, DataType::Null) || matches!(right_type, DataType::Null) {
        return Ok(Outcome::Same(left, right));
    }
    match (is_text(left_type), is_text(right_type)) {
        (true, true) => Ok(Outcome::Same(left, right)),
        (false, true) => match unknown(&right) {
            Some(text) => {
                let right = compared(text, sql_type(&left, schema)?)?;
                Ok(rebuilt(left, right))
            }
            None if strict(left_type) => Err(undefined(&operator.to_string(), left_type, right_type).into()),
            None => Ok(Outcome::Same(left, right)),
        },
        (true, false) => match unknown(&left) {
            Some(text) => {
                let left = compared(text, sql_type(&right, schema)?)?;
                Ok(rebuilt(left, right))
            }
            None if strict(right_type) => Err(undefined(&operator.to_string(), left_type, right_type).into()),
            None => Ok(Outcome::Same(left, right)),
        },
        (false, false) => match (left_type, right_type) {
            (DataType::Timestamp(_, Some(_)), DataType::Timestamp(_, None) | DataType::Date32) => {
                let right = instant(right, right_type);
                Ok(rebuilt(left, right))
            }
            (DataType::Timestamp(_, None) | DataType::Date32, DataType::Timestamp(_, Some(_))) => {
                let left = instant(left, left_type);
                Ok(rebuilt(left, right))
            }
            (a, b) if family(a) != family(b) => Err(undefined(&operator.to_string(), left_type, right_type).into()),
            _ => Ok(Outcome::Same(left, right)),
        },
    }
}

/// The constant that a string literal is when compared with a value of a type. A number that the type cannot hold can
/// still be compared with it; what is no number is refused in the type's own name.
fn compared(text: &str, sql_type: SqlType) -> Result<Expr> {
    let wide = comparable(sql_type.clone());
    match constant(text, &wide) {
        Err(error) if wide != sql_type => Err(match crate::query::error::from_datafusion(error) {
            error if error.state() == SqlState::INVALID_TEXT_REPRESENTATION => reworded(text, &sql_type).into(),
            error => error.into(),
        }),
        other => other,
    }
}

fn reworded(text: &str, sql_type: &SqlType) -> Error {
    let name = type_name(&sql_type.arrow());
    Error::new(SqlState::INVALID_TEXT_REPRESENTATION, format!("invalid input syntax for type {name}: \"{text}\""))
}

/// A numeric column of few digits is compared with a literal of any; widths do not matter to the comparison.
fn comparable(sql_type: SqlType) -> SqlType {
    match sql_type {
        SqlType::SmallInt | SqlType::Integer => SqlType::BigInt,
        SqlType::Numeric(Some((_, scale))) => SqlType::Numeric(Some((38, scale.max(6)))),
        SqlType::Real => SqlType::Double,
        other => other,
    }
}

fn strict(data_type: &DataType) -> bool {
    family(data_type) != Family::Other
}

#[derive(PartialEq, Eq)]
enum Family {
    Number,
    Boolean,
    Time,
    Interval,
    TimeOfDay,
    Uuid,
    Other,
}

fn family(data_type: &DataType) -> Family {
    match data_type {
        DataType::Boolean => Family::Boolean,
        DataType::Timestamp(_, _) | DataType::Date32 => Family::Time,
        DataType::Interval(_) => Family::Interval,
        DataType::Time64(_) => Family::TimeOfDay,
        DataType::FixedSizeBinary(16) => Family::Uuid,
        number if number.is_numeric() => Family::Number,
        _ => Family::Other,
    }
}

fn wall_clock() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, None)
}

/// The instant of a timestamp or date in the session's zone.
fn instant(expression: Expr, data_type: &DataType) -> Expr {
    let wall = if matches!(data_type, DataType::Date32) { to(expression, wall_clock()) } else { expression };
    zone::to_instant(session::time_zone(), wall)
}

/// `+ - * /` on dates, timestamps and intervals.
fn temporal(left: Expr, operator: Operator, right: Expr, left_type: &DataType, right_type: &DataType) -> Result<Outcome> {
    use DataType::{Date32, Interval, Timestamp};
    use Operator::{Divide, Minus, Multiply, Plus};
    let add_days = |date: Expr, days: Expr| time::add_days().call(vec![date, to(days, DataType::Int64)]);
    let midnight = |date: Expr| to(date, wall_clock());
    let plain = |left: Expr, right: Expr| Expr::BinaryExpr(BinaryExpr::new(Box::new(left), operator, Box::new(right)));
    Ok(Outcome::Changed(match (left_type, operator, right_type) {
        (Date32, Plus, days) if days.is_integer() => add_days(left, right),
        (days, Plus, Date32) if days.is_integer() => add_days(right, left),
        (Date32, Minus, days) if days.is_integer() => add_days(left, Expr::Negative(Box::new(to(right, DataType::Int64)))),
        (Date32, Minus, Date32) => time::subtract_dates().call(vec![left, right]),
        (Date32, Minus, text) if is_text(text) && unknown(&right).is_some() => {
            let right = constant(unknown(&right).unwrap_or_default(), &SqlType::Date)?;
            time::subtract_dates().call(vec![left, right])
        }
        (Date32, Plus | Minus, Interval(_)) => plain(midnight(left), right),
        (Interval(_), Plus, Date32) => plain(left, midnight(right)),
        (Timestamp(_, Some(_)), Plus | Minus, Interval(_)) if !fixed(&right) => zone::shifted(left, right, operator == Minus),
        (Interval(_), Plus, Timestamp(_, Some(_))) if !fixed(&left) => zone::shifted(right, left, false),
        (Timestamp(_, None), Minus, Timestamp(_, None)) | (Timestamp(_, Some(_)), Minus, Timestamp(_, Some(_))) => {
            time::subtract().call(vec![left, right])
        }
        (Timestamp(_, Some(_)), Minus, Timestamp(_, None) | Date32) => {
            let right = instant(right, right_type);
            time::subtract().call(vec![left, right])
        }
        (Timestamp(_, None) | Date32, Minus, Timestamp(_, Some(_))) => {
            let left = instant(left, left_type);
            time::subtract().call(vec![left, right])
        }
        (Timestamp(_, None), Minus, Date32) => time::subtract().call(vec![left, midnight(right)]),
        (Date32, Minus, Timestamp(_, None)) => time::subtract().call(vec![midnight(left), right]),
        // As PostgreSQL has it a literal has the type of the other; a length, which it would refuse, is one.
        (Timestamp(_, _), Minus, text) if is_text(text) && unknown(&right).and_then(|text| moment(text, left_type)).is_some() => {
            let right = unknown(&right).and_then(|text| moment(text, left_type)).unwrap_or(right);
            time::subtract().call(vec![left, right])
        }
        (Timestamp(_, _) | Date32, Plus | Minus, text) if is_text(text) && unknown(&right).is_some() => {
            let right = constant(unknown(&right).unwrap_or_default(), &SqlType::Interval)?;
            match left_type {
                Date32 => plain(midnight(left), right),
                Timestamp(_, Some(_)) if !fixed(&right) => zone::shifted(left, right, operator == Minus),
                _ => plain(left, right),
            }
        }
        (Interval(_), Multiply, number) if number.is_numeric() => time::scale().call(vec![left, to(right, DataType::Float64)]),
        (number, Multiply, Interval(_)) if number.is_numeric() => time::scale().call(vec![right, to(left, DataType::Float64)]),
        (Interval(_), Divide, number) if number.is_numeric() => {
            let one = Expr::Literal(ScalarValue::Float64(Some(1.0)), None);
            let inverse = match arithmetic::checked(&Divide) {
                Some(function) => function.call(vec![one, to(right, DataType::Float64)]),
                None => return Err(Error::internal("no checked division").into()),
            };
            time::scale().call(vec![left, inverse])
        }
        (text, Plus | Minus | Multiply | Divide | Operator::Modulo, number) if is_text(text) && number.is_numeric() => match unknown(&left)
        {
            Some(literal) => plain(number_constant(literal, number)?, right),
            None => return Err(undefined(&operator.to_string(), left_type, right_type).into()),
        },
        (number, Plus | Minus | Multiply | Divide | Operator::Modulo, text) if is_text(text) && number.is_numeric() => {
            match unknown(&right) {
                Some(literal) => plain(left, number_constant(literal, number)?),
                None => return Err(undefined(&operator.to_string(), left_type, right_type).into()),
            }
        }
        (Timestamp(_, _) | Date32, Plus | Minus | Multiply | Divide, number) if number.is_numeric() => {
            return Err(undefined(&operator.to_string(), left_type, right_type).into());
        }
        (number, Plus | Minus | Multiply | Divide, Timestamp(_, _) | Date32) if number.is_numeric() => {
            return Err(undefined(&operator.to_string(), left_type, right_type).into());
        }
        _ if no_arithmetic(left_type, operator, right_type) => {
            return Err(undefined(&operator.to_string(), left_type, right_type).into());
        }
        _ => return Ok(Outcome::Same(left, right)),
    }))
}

/// A literal as a moment of a type; none where it is not one.
fn moment(text: &str, data_type: &DataType) -> Option<Expr> {
    // Of an instant the session's zone is not known yet, but whether it is one.
    parse_scalar(&SqlType::Timestamp, text, &Zone::UTC).ok()?;
    let sql_type = if matches!(data_type, DataType::Timestamp(_, Some(_))) { SqlType::Timestamptz } else { SqlType::Timestamp };
    constant(text, &sql_type).ok()
}

/// Pairs of types that an operator of arithmetic does not take, apart from those that have become something else by then.
fn no_arithmetic(left: &DataType, operator: Operator, right: &DataType) -> bool {
    use Operator::{Divide, Minus, Modulo, Multiply, Plus};
    let time = |data_type: &DataType| matches!(data_type, DataType::Timestamp(_, _) | DataType::Date32);
    let interval = |data_type: &DataType| matches!(data_type, DataType::Interval(_));
    let other = |data_type: &DataType| matches!(data_type, DataType::Boolean | DataType::FixedSizeBinary(16));
    if !matches!(operator, Plus | Minus | Multiply | Divide | Modulo) || left.is_null() || right.is_null() {
        return false;
    }
    if other(left) || other(right) {
        return true;
    }
    match operator {
        Plus => (time(left) && time(right)) || (interval(left) && right.is_numeric()) || (left.is_numeric() && interval(right)),
        Minus => (interval(left) && (time(right) || right.is_numeric())) || (left.is_numeric() && interval(right)),
        _ => (time(left) || interval(left)) && !is_text(right) || (time(right) || interval(right)) && !is_text(left),
    }
}

/// Whether an interval is as long in every time zone.
fn fixed(interval: &Expr) -> bool {
    matches!(interval, Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(value)), _) if value.months == 0 && value.days == 0)
}

fn number_constant(text: &str, data_type: &DataType) -> Result<Expr> {
    constant(text, &SqlType::of_arrow(data_type))
}

/// Integer and float arithmetic checked, numeric division with PostgreSQL's digits.
pub fn arithmetic(left: Expr, operator: Operator, right: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let plain = |left: Expr, right: Expr| Transformed::no(Expr::BinaryExpr(BinaryExpr::new(Box::new(left), operator, Box::new(right))));
    let Some(function) = arithmetic::checked(&operator) else {
        return Ok(plain(left, right));
    };
    let (left_type, right_type) = (left.get_type(schema)?, right.get_type(schema)?);
    let cast =
        |expression: Expr, from: &DataType, target: &DataType| if from == target { expression } else { to(expression, target.clone()) };
    if let Some(common) = common_type(&left_type, &right_type) {
        return Ok(Transformed::yes(function.call(vec![cast(left, &left_type, &common), cast(right, &right_type, &common)])));
    }
    if operator == Operator::Divide
        && let (Some(left_target), Some(right_target)) = (as_decimal(&left_type), as_decimal(&right_type))
    {
        let arguments = vec![cast(left, &left_type, &left_target), cast(right, &right_type, &right_target)];
        return Ok(Transformed::yes(decimal::divide().call(arguments)));
    }
    Ok(plain(left, right))
}

/// The type in which two integers, or a float and a number, are calculated.
pub fn common_type(left: &DataType, right: &DataType) -> Option<DataType> {
    let rank = |data_type: &DataType| {
        Some(match data_type {
            DataType::Int8 | DataType::UInt8 | DataType::Int16 => 1,
            DataType::UInt16 | DataType::Int32 => 2,
            DataType::UInt32 | DataType::Int64 | DataType::UInt64 => 3,
            _ => return None,
        })
    };
    if left.is_floating() || right.is_floating() {
        let number = |data_type: &DataType| data_type.is_numeric();
        return match (left, right) {
            (DataType::Float32, DataType::Float32) => Some(DataType::Float32),
            _ if number(left) && number(right) => Some(DataType::Float64),
            _ => None,
        };
    }
    Some(match rank(left)?.max(rank(right)?) {
        1 => DataType::Int16,
        2 => DataType::Int32,
        _ => DataType::Int64,
    })
}

/// The numeric type of an operand of a division with at least one numeric.
fn as_decimal(data_type: &DataType) -> Option<DataType> {
    Some(match data_type {
        DataType::Decimal128(_, _) => data_type.clone(),
        DataType::Int16 => DataType::Decimal128(5, 0),
        DataType::Int32 => DataType::Decimal128(10, 0),
        DataType::Int64 => DataType::Decimal128(19, 0),
        _ => return None,
    })
}
