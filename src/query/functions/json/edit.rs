//! Functions that change jsonb documents: `||`, `-`, `#-`, jsonb_set, jsonb_strip_nulls, jsonb_pretty.
//!
//! Results are put together as text and brought to jsonb's form at the end.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringViewBuilder};
use arrow::datatypes::{DataType, Int64Type};
use datafusion::logical_expr::ScalarUDF;

use super::super::text::strings;
use super::super::{Function, Typed, is_text, undefined};
use super::walk::{self, Kind};
use super::{keys_of, steps_of, text_list, texts};
use crate::error::{Error, SqlState};
use crate::types::SqlType;
use crate::types::text::json::normalize_jsonb;

/// The functions.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    vec![
        concat().udf(),
        minus().udf(),
        minus_path().udf(),
        Function::new("jsonb_set", set_types, set).giving(SqlType::Jsonb).udf(),
        Function::new(
            "jsonb_strip_nulls",
            |types| super::document("jsonb_strip_nulls", types, DataType::Utf8View),
            |args, _| {
                texts(&args[0], |document| {
                    let mut out = String::with_capacity(document.len());
                    strip(document.trim(), &mut out)?;
                    canonical(&out).map(Some)
                })
            },
        )
        .giving(SqlType::Jsonb)
        .udf(),
        Function::new(
            "jsonb_pretty",
            |types| super::document("jsonb_pretty", types, DataType::Utf8View),
            |args, _| {
                texts(&args[0], |document| {
                    let mut out = String::with_capacity(document.len() * 2);
                    pretty(&canonical(document)?, 0, &mut out)?;
                    Ok(Some(Cow::Owned(out)))
                })
            },
        )
        .udf(),
    ]
}

fn canonical(text: &str) -> Result<Cow<'static, str>, Error> {
    let mut out = String::with_capacity(text.len() + 8);
    normalize_jsonb(text, &mut out)?;
    Ok(Cow::Owned(out))
}

fn two_documents(types: &[DataType]) -> Result<Typed, Error> {
    match types {
        [left, right] if is_text(left) && is_text(right) => Ok((vec![DataType::Utf8View; 2], DataType::Utf8View)),
        _ => Err(undefined("operator ||", types)),
    }
}

/// `jsonb || jsonb`.
pub fn concat() -> Function {
    Function::new("jsonb_concat", two_documents, |args, _| {
        each(args, |left, right, _| {
            let inner = |text: &str| -> String { text.trim()[1..text.trim().len() - 1].to_owned() };
            let (left, right) = (left.trim(), right.trim());
            let (of_left, of_right) = (walk::kind(left)?, walk::kind(right)?);
            if of_left == Kind::Object && of_right == Kind::Object {
                return canonical(&format!("{{{}}}", joined(&[inner(left), inner(right)])));
            }
            let list = |text: &str, kind: Kind| if kind == Kind::Array { inner(text) } else { text.to_owned() };
            canonical(&format!("[{}]", joined(&[list(left, of_left), list(right, of_right)])))
        })
    })
    .giving(SqlType::Jsonb)
}

fn joined(parts: &[String]) -> String {
    parts.iter().filter(|part| !part.trim().is_empty()).cloned().collect::<Vec<_>>().join(", ")
}

/// `jsonb - text`, `jsonb - integer`, `jsonb - text[]`.
pub fn minus() -> Function {
    Function::new(
        "jsonb_delete",
        |types| match types {
            [document, key] if is_text(document) && is_text(key) => Ok((vec![DataType::Utf8View; 2], DataType::Utf8View)),
            [document, index] if is_text(document) && index.is_integer() => {
                Ok((vec![DataType::Utf8View, DataType::Int64], DataType::Utf8View))
            }
            [document, DataType::List(key)] if is_text(document) && is_text(key.data_type()) => {
                Ok((vec![DataType::Utf8View, text_list()], DataType::Utf8View))
            }
            _ => Err(undefined("operator -", types)),
        },
        |args, _| {
            let names = if is_text(args[1].data_type()) { Some(strings(&args[1])?) } else { None };
            rows(args, |document, row| {
                if walk::kind(document)? == Kind::Object && args[1].data_type() == &DataType::Int64 {
                    return Err(invalid("cannot delete from object using integer index"));
                }
                if !matches!(walk::kind(document)?, Kind::Object | Kind::Array) {
                    return Err(invalid("cannot delete from scalar"));
                }
                let keys = match (&names, args[1].data_type()) {
                    (Some(names), _) => vec![Cow::Borrowed(names.value(row))],
                    (None, DataType::Int64) => Vec::new(),
                    _ => keys_of(&args[1], row)?,
                };
                let index = match args[1].data_type() {
                    DataType::Int64 => position(document, args[1].as_primitive::<Int64Type>().value(row))?,
                    _ => None,
                };
                without(document, &keys, index).map(Cow::Owned)
            })
        },
    )
    .giving(SqlType::Jsonb)
}

fn position(document: &str, index: i64) -> Result<Option<usize>, Error> {
    let count = walk::parts(document)?.count();
    Ok(match usize::try_from(index) {
        Ok(index) => Some(index),
        Err(_) => count.checked_sub(usize::try_from(index.unsigned_abs()).unwrap_or(usize::MAX)),
    })
}

fn without(document: &str, keys: &[Cow<'_, str>], index: Option<usize>) -> Result<String, Error> {
    let object = walk::kind(document)? == Kind::Object;
    let mut kept = Vec::new();
    for (at, part) in walk::parts(document)?.enumerate() {
        let (key, value) = part?;
        let named = match object {
            true => keys.contains(&key),
            false => walk::kind(value)? == Kind::String && keys.contains(&walk::string(value)?),
        };
        if !named && Some(at) != index {
            kept.push(member(object, &key, value));
        }
    }
    Ok(enclosed(object, &kept))
}

fn member(object: bool, key: &str, value: &str) -> String {
    let mut out = String::with_capacity(key.len() + value.len() + 4);
    if object {
        walk::quote(key, &mut out);
        out.push_str(": ");
    }
    out.push_str(value);
    out
}

fn enclosed(object: bool, parts: &[String]) -> String {
    let parts = parts.join(", ");
    if object { format!("{{{parts}}}") } else { format!("[{parts}]") }
}

/// `jsonb #- text[]`.
pub fn minus_path() -> Function {
    Function::new("jsonb_delete_path", super::path_types, |args, _| {
        let names = if is_text(args[1].data_type()) { Some(strings(&args[1])?) } else { None };
        rows(args, |document, row| {
            let steps = match &names {
                Some(names) => steps_of(names.value(row))?,
                None => keys_of(&args[1], row)?,
            };
            replaced(document, &steps, None, false).map(Cow::Owned)
        })
    })
    .giving(SqlType::Jsonb)
}

fn set_types(types: &[DataType]) -> Result<Typed, Error> {
    let path = |data_type: &DataType| match data_type {
        DataType::List(key) if is_text(key.data_type()) => Some(text_list()),
        text if is_text(text) => Some(DataType::Utf8View),
        _ => None,
    };
    match types {
        [document, steps, value, rest @ ..] if is_text(document) && is_text(value) && rest.len() < 2 => {
            let steps = path(steps).ok_or_else(|| undefined("jsonb_set", types))?;
            let mut coerced = vec![DataType::Utf8View, steps, DataType::Utf8View];
            coerced.extend(rest.iter().map(|_| DataType::Boolean));
            Ok((coerced, DataType::Utf8View))
        }
        _ => Err(undefined("jsonb_set", types)),
    }
}

fn set(args: &[ArrayRef], _: &DataType) -> Result<ArrayRef, Error> {
    let names = if is_text(args[1].data_type()) { Some(strings(&args[1])?) } else { None };
    let values = strings(&args[2])?;
    rows(args, |document, row| {
        let steps = match &names {
            Some(names) => steps_of(names.value(row))?,
            None => keys_of(&args[1], row)?,
        };
        let create = args.get(3).is_none_or(|create| create.as_boolean().value(row));
        if !matches!(walk::kind(document)?, Kind::Object | Kind::Array) {
            return Err(invalid("cannot set path in scalar"));
        }
        replaced(document, &steps, Some(values.value(row)), create).map(Cow::Owned)
    })
}

/// The document with the value at a path replaced, or left out where there is no value.
fn replaced(document: &str, steps: &[Cow<'_, str>], value: Option<&str>, create: bool) -> Result<String, Error> {
    let Some((step, rest)) = steps.split_first() else { return Ok(document.to_owned()) };
    let kind = walk::kind(document)?;
    let object = match kind {
        Kind::Object => true,
        Kind::Array => false,
        _ => return Ok(document.to_owned()),
    };
    let index = match object {
        true => None,
        false => {
            let index: i64 = step
                .trim()
                .parse()
                .map_err(|_| Error::new(SqlState::INVALID_TEXT_REPRESENTATION, format!("path element is not an integer: \"{step}\"")))?;
            position(document, index)?
        }
    };
    let (mut parts, mut found) = (Vec::new(), false);
    for (at, part) in walk::parts(document)?.enumerate() {
        let (key, part) = part?;
        if (object && key == *step) || (!object && Some(at) == index) {
            found = true;
            match (rest.is_empty(), value) {
                (true, None) => {}
                (true, Some(value)) => parts.push(member(object, &key, value)),
                (false, _) => parts.push(member(object, &key, &replaced(part, rest, value, create)?)),
            }
        } else {
            parts.push(member(object, &key, part));
        }
    }
    if let Some(value) = value.filter(|_| !found && create && rest.is_empty()) {
        let first = !object && index.is_none();
        parts.insert(if first { 0 } else { parts.len() }, member(object, step, value));
    }
    Ok(enclosed(object, &parts))
}

fn strip(document: &str, out: &mut String) -> Result<(), Error> {
    let object = match walk::kind(document)? {
        Kind::Object => true,
        Kind::Array => false,
        _ => {
            out.push_str(document);
            return Ok(());
        }
    };
    let mut parts = Vec::new();
    for part in walk::parts(document)? {
        let (key, value) = part?;
        if object && walk::kind(value)? == Kind::Null {
            continue;
        }
        let mut inner = String::with_capacity(value.len());
        strip(value, &mut inner)?;
        parts.push(member(object, &key, &inner));
    }
    out.push_str(&enclosed(object, &parts));
    Ok(())
}

fn pretty(document: &str, depth: usize, out: &mut String) -> Result<(), Error> {
    let object = match walk::kind(document)? {
        Kind::Object => true,
        Kind::Array => false,
        _ => {
            out.push_str(document);
            return Ok(());
        }
    };
    let (open, close) = if object { ('{', '}') } else { ('[', ']') };
    let indent = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("    ", depth));
    };
    out.push(open);
    for (index, part) in walk::parts(document)?.enumerate() {
        let (key, value) = part?;
        if index > 0 {
            out.push(',');
        }
        indent(out, depth + 1);
        if object {
            walk::quote(&key, out);
            out.push_str(": ");
        }
        pretty(value, depth + 1, out)?;
    }
    indent(out, depth);
    out.push(close);
    Ok(())
}

fn invalid(message: &str) -> Error {
    Error::new(SqlState::INVALID_PARAMETER_VALUE, message)
}

/// One jsonb for each row whose arguments are all there.
fn rows(args: &[ArrayRef], function: impl Fn(&str, usize) -> Result<Cow<'static, str>, Error>) -> Result<ArrayRef, Error> {
    let documents = strings(&args[0])?;
    let mut values = StringViewBuilder::with_capacity(documents.len());
    for row in 0..documents.len() {
        if args.iter().any(|arg| arg.is_null(row)) {
            values.append_null();
        } else {
            values.append_value(canonical(&function(documents.value(row), row)?)?);
        }
    }
    Ok(Arc::new(values.finish()))
}

fn each(args: &[ArrayRef], function: impl Fn(&str, &str, usize) -> Result<Cow<'static, str>, Error>) -> Result<ArrayRef, Error> {
    let others = strings(&args[1])?;
    rows(args, |document, row| function(document, others.value(row), row))
}
