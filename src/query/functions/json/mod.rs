//! json and jsonb: operators, functions that read documents, functions that build them.
//!
//! *Place*: `query::typing::operators` maps the operators to [`operator`]'s functions. Documents are text; [`walk`] finds
//! their parts by place, so that nothing is rebuilt that is only read.

pub mod build;
pub mod edit;
pub mod sets;
pub mod walk;

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int32Array, StringViewBuilder};
use arrow::datatypes::{DataType, Field, Int64Type};
use datafusion::logical_expr::{Operator, ScalarUDF};

use super::text::strings;
use super::{Function, Typed, is_text, undefined};
use crate::error::{Error, SqlState};
use crate::types::SqlType;
use crate::types::text::array::elements;
use walk::Kind;

/// The functions, by name.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    let operators = [
        Operator::Arrow,
        Operator::LongArrow,
        Operator::HashArrow,
        Operator::HashLongArrow,
        Operator::AtArrow,
        Operator::Question,
        Operator::QuestionPipe,
        Operator::QuestionAnd,
    ];
    let mut functions: Vec<_> = operators.iter().filter_map(operator).map(Function::udf).collect();
    functions.extend(readers().into_iter().map(Function::udf));
    functions.extend(edit::all());
    functions.extend(sets::all());
    functions.extend(build::all());
    functions
}

/// The function of an operator on JSON.
pub fn operator(operator: &Operator) -> Option<Function> {
    Some(match operator {
        Operator::Arrow => Function::new("json_get", member_types, |args, _| extract(args, member, false)).like_first(),
        Operator::LongArrow => Function::new("json_get_text", member_types, |args, _| extract(args, member, true)),
        Operator::HashArrow => Function::new("json_path", path_types, |args, _| extract(args, path, false)).like_first(),
        Operator::HashLongArrow => Function::new("json_path_text", path_types, |args, _| extract(args, path, true)),
        Operator::AtArrow => Function::new("json_contains", test_types, |args, _| test(args, contains)),
        Operator::Question => Function::new("json_has", test_types, |args, _| test(args, has)),
        Operator::QuestionPipe => Function::new("json_has_any", list_types, |args, _| test_keys(args, |found, _| found > 0)),
        Operator::QuestionAnd => Function::new("json_has_all", list_types, |args, _| test_keys(args, |found, wanted| found == wanted)),
        _ => return None,
    })
}

fn readers() -> Vec<Function> {
    let mut functions = Vec::new();
    macro_rules! both {
        ($json:literal, $jsonb:literal, $types:expr, $body:expr) => {
            functions.push(Function::new($json, |types| $types($json, types), $body));
            functions.push(Function::new($jsonb, |types| $types($jsonb, types), $body));
        };
    }
    both!("json_array_length", "jsonb_array_length", counted, |args, _| {
        let lengths = strings(&args[0])?;
        let lengths = lengths.iter().map(|document| document.map(length).transpose());
        Ok(Arc::new(lengths.collect::<Result<Int32Array, Error>>()?) as ArrayRef)
    });
    both!("json_typeof", "jsonb_typeof", named, |args, _| {
        texts(&args[0], |document| Ok(Some(Cow::Borrowed(walk::kind(document)?.name()))))
    });
    both!("json_extract_path_text", "jsonb_extract_path_text", steps, |args, _| by_steps(args, true));
    functions.push(
        Function::new("json_extract_path", |types| steps("json_extract_path", types), |args, _| by_steps(args, false))
            .giving(SqlType::Json),
    );
    functions.push(
        Function::new("jsonb_extract_path", |types| steps("jsonb_extract_path", types), |args, _| by_steps(args, false))
            .giving(SqlType::Jsonb),
    );
    functions
}

/// Whether a function's first argument is a document.
pub fn reads(name: &str) -> bool {
    const OTHERS: [&str; 10] = [
        "json_object",
        "jsonb_object",
        "json_build_object",
        "jsonb_build_object",
        "json_build_array",
        "jsonb_build_array",
        "json_element",
        "json_member",
        "json_collected",
        "jsonb_collected",
    ];
    name.starts_with("json") && !OTHERS.contains(&name)
}

/// One document.
fn document(name: &str, types: &[DataType], result: DataType) -> Result<Typed, Error> {
    match types {
        [document] if is_text(document) || document.is_null() => Ok((vec![DataType::Utf8View], result)),
        _ => Err(undefined(name, types)),
    }
}

fn counted(name: &str, types: &[DataType]) -> Result<Typed, Error> {
    document(name, types, DataType::Int32)
}

fn named(name: &str, types: &[DataType]) -> Result<Typed, Error> {
    document(name, types, DataType::Utf8View)
}

/// A document and the names of a path.
fn steps(name: &str, types: &[DataType]) -> Result<Typed, Error> {
    match types.len() > 1 && types.iter().all(is_text) {
        true => Ok((vec![DataType::Utf8View; types.len()], DataType::Utf8View)),
        false => Err(undefined(name, types)),
    }
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
        [document, DataType::List(step)] if is_text(document) && is_text(step.data_type()) => {
            Ok((vec![DataType::Utf8View, text_list()], DataType::Utf8View))
        }
        _ => Err(undefined("json_path", types)),
    }
}

/// `text[]`.
pub fn text_list() -> DataType {
    DataType::List(Arc::new(Field::new("item", DataType::Utf8View, true)))
}

fn list_types(types: &[DataType]) -> Result<Typed, Error> {
    match types {
        [document, DataType::List(key)] if is_text(document) && is_text(key.data_type()) => {
            Ok((vec![DataType::Utf8View, text_list()], DataType::Boolean))
        }
        [document, literal] if is_text(document) && is_text(literal) => {
            Ok((vec![DataType::Utf8View, DataType::Utf8View], DataType::Boolean))
        }
        _ => Err(undefined("json_has_any", types)),
    }
}

fn test_types(types: &[DataType]) -> Result<Typed, Error> {
    match types {
        [document, other] if is_text(document) && is_text(other) => Ok((vec![DataType::Utf8View, DataType::Utf8View], DataType::Boolean)),
        _ => Err(undefined("json_contains", types)),
    }
}

/// Applies a function to each text.
pub fn texts<'a>(array: &'a ArrayRef, function: impl Fn(&str) -> Result<Option<Cow<'_, str>>, Error> + 'a) -> Result<ArrayRef, Error> {
    let documents = strings(array)?;
    let mut values = StringViewBuilder::with_capacity(documents.len());
    for document in &documents {
        match document.map(&function).transpose()?.flatten() {
            Some(value) => values.append_value(value),
            None => values.append_null(),
        }
    }
    Ok(Arc::new(values.finish()))
}

fn length(document: &str) -> Result<i32, Error> {
    match walk::kind(document)? {
        Kind::Array => {
            let count = walk::parts(document)?.try_fold(0_i32, |count, part| part.map(|_| count.saturating_add(1)))?;
            Ok(count)
        }
        Kind::Object => Err(Error::new(SqlState::INVALID_PARAMETER_VALUE, "cannot get array length of a non-array")),
        _ => Err(Error::new(SqlState::INVALID_PARAMETER_VALUE, "cannot get array length of a scalar")),
    }
}

enum Key<'a> {
    Name(&'a str),
    Index(i64),
    Path(Vec<Cow<'a, str>>),
}

type Step = for<'v> fn(&'v str, &Key<'_>) -> Result<Option<&'v str>, Error>;

fn member<'v>(document: &'v str, key: &Key<'_>) -> Result<Option<&'v str>, Error> {
    match key {
        Key::Name(name) => walk::member(document, name),
        Key::Index(index) => walk::item(document, *index),
        Key::Path(steps) => walk::path(document, steps),
    }
}

/// A path as an array's text form: `{a,0,b}`.
fn path<'v>(document: &'v str, key: &Key<'_>) -> Result<Option<&'v str>, Error> {
    match key {
        Key::Name(text) => walk::path(document, &steps_of(text)?),
        other => member(document, other),
    }
}

/// The elements of a text array's text form.
pub fn steps_of(text: &str) -> Result<Vec<Cow<'static, str>>, Error> {
    let mut steps = Vec::new();
    elements(text, |step| {
        steps.push(Cow::Owned(step.unwrap_or_default().to_owned()));
        Ok(())
    })?;
    Ok(steps)
}

/// The elements of a row of a `text[]`.
pub fn keys_of(lists: &ArrayRef, row: usize) -> Result<Vec<Cow<'static, str>>, Error> {
    let keys = strings(&lists.as_list::<i32>().value(row))?;
    Ok(keys.iter().map(|key| Cow::Owned(key.unwrap_or_default().to_owned())).collect())
}

fn extract(args: &[ArrayRef], step: Step, as_text: bool) -> Result<ArrayRef, Error> {
    let documents = strings(&args[0])?;
    let names = if is_text(args[1].data_type()) { Some(strings(&args[1])?) } else { None };
    let mut values = StringViewBuilder::with_capacity(documents.len());
    for row in 0..documents.len() {
        if documents.is_null(row) || args[1].is_null(row) {
            values.append_null();
            continue;
        }
        let key = match (&names, args[1].data_type()) {
            (Some(names), _) => Key::Name(names.value(row)),
            (None, DataType::Int64) => Key::Index(args[1].as_primitive::<Int64Type>().value(row)),
            _ => Key::Path(keys_of(&args[1], row)?),
        };
        let value = step(documents.value(row), &key)?;
        append(&mut values, value, as_text)?;
    }
    Ok(Arc::new(values.finish()))
}

fn append(values: &mut StringViewBuilder, value: Option<&str>, as_text: bool) -> Result<(), Error> {
    match value {
        None => values.append_null(),
        Some(value) if as_text => values.append_option(walk::as_text(value)?),
        Some(value) => values.append_value(value),
    }
    Ok(())
}

/// `jsonb_extract_path(document, step, ...)`.
fn by_steps(args: &[ArrayRef], as_text: bool) -> Result<ArrayRef, Error> {
    let texts = args.iter().map(strings).collect::<Result<Vec<_>, _>>()?;
    let [documents, steps @ ..] = texts.as_slice() else { return Err(Error::internal("a path needs a document")) };
    let mut values = StringViewBuilder::with_capacity(documents.len());
    for row in 0..documents.len() {
        if texts.iter().any(|text| text.is_null(row)) {
            values.append_null();
            continue;
        }
        let steps: Vec<_> = steps.iter().map(|step| Cow::Borrowed(step.value(row))).collect();
        append(&mut values, walk::path(documents.value(row), &steps)?, as_text)?;
    }
    Ok(Arc::new(values.finish()))
}

fn test(args: &[ArrayRef], check: fn(&str, &str) -> Result<bool, Error>) -> Result<ArrayRef, Error> {
    let (documents, others) = (strings(&args[0])?, strings(&args[1])?);
    let values = documents.iter().zip(others.iter()).map(|pair| match pair {
        (Some(document), Some(other)) => check(document, other).map(Some),
        _ => Ok(None),
    });
    Ok(Arc::new(values.collect::<Result<BooleanArray, Error>>()?))
}

fn test_keys(args: &[ArrayRef], enough: fn(usize, usize) -> bool) -> Result<ArrayRef, Error> {
    let documents = strings(&args[0])?;
    let names = if is_text(args[1].data_type()) { Some(strings(&args[1])?) } else { None };
    let values = (0..documents.len()).map(|row| {
        if documents.is_null(row) || args[1].is_null(row) {
            return Ok(None);
        }
        let keys = match &names {
            Some(names) => steps_of(names.value(row))?,
            None => keys_of(&args[1], row)?,
        };
        let found = keys.iter().map(|key| has(documents.value(row), key)).collect::<Result<Vec<_>, _>>()?;
        Ok(Some(enough(found.iter().filter(|found| **found).count(), keys.len())))
    });
    Ok(Arc::new(values.collect::<Result<BooleanArray, Error>>()?))
}

fn contains(document: &str, other: &str) -> Result<bool, Error> {
    let (kind, wanted) = (walk::kind(document)?, walk::kind(other)?);
    // An array contains a scalar that is one of its items; this holds at the top alone.
    if kind == Kind::Array && !matches!(wanted, Kind::Array | Kind::Object) {
        return any_item(document, other);
    }
    within(document, other)
}

fn any_item(document: &str, other: &str) -> Result<bool, Error> {
    for item in walk::parts(document)? {
        if within(item?.1, other)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn within(document: &str, other: &str) -> Result<bool, Error> {
    let (kind, wanted) = (walk::kind(document)?, walk::kind(other)?);
    if kind != wanted {
        return Ok(false);
    }
    match kind {
        Kind::Object => {
            for part in walk::parts(other)? {
                let (name, value) = part?;
                match walk::member(document, &name)? {
                    Some(member) if within(member, value)? => {}
                    _ => return Ok(false),
                }
            }
            Ok(true)
        }
        Kind::Array => {
            for part in walk::parts(other)? {
                if !any_item(document, part?.1)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        Kind::String => Ok(walk::string(document.trim())? == walk::string(other.trim())?),
        Kind::Number => Ok(same_number(document, other)),
        Kind::Boolean | Kind::Null => Ok(document.trim() == other.trim()),
    }
}

/// 1 and 1.0 are one number.
fn same_number(left: &str, right: &str) -> bool {
    let trimmed = |text: &str| match text.trim().split_once('.') {
        Some((whole, fraction)) if !fraction.contains(['e', 'E']) => match fraction.trim_end_matches('0') {
            "" => whole.to_owned(),
            fraction => format!("{whole}.{fraction}"),
        },
        _ => text.trim().to_owned(),
    };
    trimmed(left).cmp(&trimmed(right)) == Ordering::Equal
}

fn has(document: &str, key: &str) -> Result<bool, Error> {
    match walk::kind(document)? {
        Kind::Object => Ok(walk::member(document, key)?.is_some()),
        Kind::Array => {
            for part in walk::parts(document)? {
                let (_, item) = part?;
                if walk::kind(item)? == Kind::String && walk::string(item)? == key {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Kind::String => Ok(walk::string(document.trim())? == key),
        _ => Ok(false),
    }
}

/// The SQL type of a document that a function gives.
pub fn type_of(binary: bool) -> SqlType {
    if binary { SqlType::Jsonb } else { SqlType::Json }
}
