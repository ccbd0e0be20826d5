//! Operators of json and jsonb: `->`, `->>`, `#>`, `#>>`, `@>`, `?`.
//!
//! *Place*: `query::typing::operator` maps the operators to these functions. Documents are text, parsed at each use.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, StringViewBuilder};
use arrow::datatypes::{DataType, Int64Type};
use datafusion::logical_expr::{Operator, ScalarUDF};
use serde_json::Value;

use super::text::strings;
use super::{Function, Typed, is_text, undefined};
use crate::error::{Error, SqlState};

/// The functions, by name.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    [Operator::Arrow, Operator::LongArrow, Operator::HashArrow, Operator::HashLongArrow, Operator::AtArrow, Operator::Question]
        .iter()
        .filter_map(operator)
        .map(Function::udf)
        .collect()
}

/// The function of an operator on JSON.
pub fn operator(operator: &Operator) -> Option<Function> {
    Some(match operator {
        Operator::Arrow => Function::new("json_get", member_types, |args, _| extract(args, member, false)),
        Operator::LongArrow => Function::new("json_get_text", member_types, |args, _| extract(args, member, true)),
        Operator::HashArrow => Function::new("json_path", path_types, |args, _| extract(args, path, false)),
        Operator::HashLongArrow => Function::new("json_path_text", path_types, |args, _| extract(args, path, true)),
        Operator::AtArrow => {
            Function::new("json_contains", test_types, |args, _| test(args, |document, other| Ok(contains(document, &document_of(other)?))))
        }
        Operator::Question => Function::new("json_has", test_types, |args, _| test(args, |document, key| Ok(has(document, key)))),
        _ => return None,
    })
}

fn member_types(types: &[DataType]) -> Result<Typed, Error> {
    match types {
        [document, key] if is_text(document) && is_text(key) => Ok((vec![DataType::Utf8View, DataType::Utf8View], DataType::Utf8View)),
        [document, index] if is_text(document) && index.is_integer() => Ok((vec![DataType::Utf8View, DataType::Int64], DataType::Utf8View)),
        _ => Err(undefined("json_get", types)),
    }
}

fn path_types(types: &[DataType]) -> Result<Typed, Error> {
    match types {
        [document, path] if is_text(document) && is_text(path) => Ok((vec![DataType::Utf8View, DataType::Utf8View], DataType::Utf8View)),
        _ => Err(undefined("json_path", types)),
    }
}

fn test_types(types: &[DataType]) -> Result<Typed, Error> {
    match types {
        [document, other] if is_text(document) && is_text(other) => Ok((vec![DataType::Utf8View, DataType::Utf8View], DataType::Boolean)),
        _ => Err(undefined("json_contains", types)),
    }
}

fn document_of(text: &str) -> Result<Value, Error> {
    serde_json::from_str(text).map_err(|error| {
        Error::new(SqlState::INVALID_TEXT_REPRESENTATION, "invalid input syntax for type json").detail(format!("{error}."))
    })
}

enum Key<'a> {
    Name(&'a str),
    Index(i64),
}

type Step = for<'v> fn(&'v Value, &Key<'_>) -> Option<&'v Value>;

fn member<'v>(document: &'v Value, key: &Key<'_>) -> Option<&'v Value> {
    match (document, key) {
        (Value::Object(members), Key::Name(name)) => members.get(*name),
        (Value::Array(items), Key::Index(index)) => {
            let index = if *index < 0 { i64::try_from(items.len()).ok()?.checked_add(*index)? } else { *index };
            items.get(usize::try_from(index).ok()?)
        }
        _ => None,
    }
}

/// A path is a text array's text form: `{a,0,b}`.
fn path<'v>(document: &'v Value, key: &Key<'_>) -> Option<&'v Value> {
    let Key::Name(text) = key else { return None };
    let inner = text.trim().strip_prefix('{')?.strip_suffix('}')?;
    if inner.trim().is_empty() {
        return Some(document);
    }
    inner.split(',').map(|step| step.trim().trim_matches('"')).try_fold(document, |value, step| match value {
        Value::Array(_) => member(value, &Key::Index(step.parse().ok()?)),
        _ => member(value, &Key::Name(step)),
    })
}

fn extract(args: &[ArrayRef], step: Step, as_text: bool) -> Result<ArrayRef, Error> {
    let documents = strings(&args[0])?;
    let names = if args[1].data_type() == &DataType::Int64 { None } else { Some(strings(&args[1])?) };
    let mut values = StringViewBuilder::with_capacity(documents.len());
    for row in 0..documents.len() {
        if documents.is_null(row) || args[1].is_null(row) {
            values.append_null();
            continue;
        }
        let document = document_of(documents.value(row))?;
        let key = match &names {
            Some(names) => Key::Name(names.value(row)),
            None => Key::Index(args[1].as_primitive::<Int64Type>().value(row)),
        };
        match step(&document, &key) {
            None => values.append_null(),
            Some(Value::Null) if as_text => values.append_null(),
            Some(Value::String(text)) if as_text => values.append_value(text),
            Some(value) => values.append_value(value.to_string()),
        }
    }
    Ok(Arc::new(values.finish()))
}

fn test(args: &[ArrayRef], check: fn(&Value, &str) -> Result<bool, Error>) -> Result<ArrayRef, Error> {
    let (documents, others) = (strings(&args[0])?, strings(&args[1])?);
    let values = documents.iter().zip(others.iter()).map(|pair| match pair {
        (Some(document), Some(other)) => check(&document_of(document)?, other).map(Some),
        _ => Ok(None),
    });
    Ok(Arc::new(values.collect::<Result<BooleanArray, Error>>()?))
}

fn contains(document: &Value, other: &Value) -> bool {
    match (document, other) {
        (Value::Object(members), Value::Object(wanted)) => {
            wanted.iter().all(|(name, value)| members.get(name).is_some_and(|member| contains(member, value)))
        }
        (Value::Array(items), Value::Array(wanted)) => wanted.iter().all(|value| items.iter().any(|item| contains(item, value))),
        (Value::Array(items), scalar) if !scalar.is_object() => items.contains(scalar),
        (a, b) => a == b,
    }
}

fn has(document: &Value, key: &str) -> bool {
    match document {
        Value::Object(members) => members.contains_key(key),
        Value::Array(items) => items.iter().any(|item| item.as_str() == Some(key)),
        Value::String(text) => text == key,
        _ => false,
    }
}
