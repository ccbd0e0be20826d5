//! Functions of json and jsonb that give a set of rows, as lists: `query::rewrite` and `query::lateral` unnest them.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ListArray, StringViewBuilder, StructArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Fields};
use datafusion::logical_expr::ScalarUDF;

use super::super::text::strings;
use super::super::{Function, Typed, is_text, undefined};
use super::type_of;
use super::walk::{self, Kind};
use crate::error::{Error, SqlState};

/// The functions: each gives a list with the set's rows.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    vec![
        Function::new("json_object_keys", |types| list("json_object_keys", types, text()), keys).udf(),
        Function::new("jsonb_object_keys", |types| list("jsonb_object_keys", types, text()), keys).udf(),
        Function::new(
            "json_array_elements",
            |types| list("json_array_elements", types, value(false)),
            |args, result| items(args, result, false),
        )
        .udf(),
        Function::new(
            "jsonb_array_elements",
            |types| list("jsonb_array_elements", types, value(true)),
            |args, result| items(args, result, false),
        )
        .udf(),
        Function::new(
            "json_array_elements_text",
            |types| list("json_array_elements_text", types, text()),
            |args, result| items(args, result, true),
        )
        .udf(),
        Function::new(
            "jsonb_array_elements_text",
            |types| list("jsonb_array_elements_text", types, text()),
            |args, result| items(args, result, true),
        )
        .udf(),
        Function::new("json_each", |types| list("json_each", types, pair(value(false))), |args, result| pairs(args, result, false)).udf(),
        Function::new("jsonb_each", |types| list("jsonb_each", types, pair(value(true))), |args, result| pairs(args, result, false)).udf(),
        Function::new("json_each_text", |types| list("json_each_text", types, pair(text())), |args, result| pairs(args, result, true))
            .udf(),
        Function::new("jsonb_each_text", |types| list("jsonb_each_text", types, pair(text())), |args, result| pairs(args, result, true))
            .udf(),
    ]
}

fn text() -> Field {
    Field::new("value", DataType::Utf8View, true)
}

fn value(binary: bool) -> Field {
    type_of(binary).field("value", true)
}

fn pair(value: Field) -> Field {
    Field::new("pair", DataType::Struct(Fields::from(vec![Field::new("key", DataType::Utf8View, true), value])), true)
}

fn list(name: &str, types: &[DataType], item: Field) -> Result<Typed, Error> {
    match types {
        [document] if is_text(document) || document.is_null() => {
            Ok((vec![DataType::Utf8View], DataType::List(Arc::new(item.with_name("item")))))
        }
        _ => Err(undefined(name, types)),
    }
}

/// Lists of parts, one for each document, filled by `part`.
fn lists(
    args: &[ArrayRef],
    result: &DataType,
    mut part: impl FnMut(&str) -> Result<usize, Error>,
    finish: impl FnOnce() -> ArrayRef,
) -> Result<ArrayRef, Error> {
    let documents = strings(&args[0])?;
    let mut lengths = Vec::with_capacity(documents.len());
    for document in &documents {
        lengths.push(document.map(&mut part).transpose()?.unwrap_or(0));
    }
    let DataType::List(item) = result else { return Err(Error::internal("a set of rows is no list")) };
    let nulls: Option<NullBuffer> = documents.nulls().cloned();
    let list = ListArray::try_new(Arc::clone(item), OffsetBuffer::from_lengths(lengths), finish(), nulls);
    list.map(|list| Arc::new(list) as ArrayRef).map_err(|error| Error::internal(error.to_string()))
}

fn refused(what: &str, document: &str) -> Result<Error, Error> {
    let found = match walk::kind(document)? {
        Kind::Array => "an array",
        Kind::Object => "an object",
        _ => "a scalar",
    };
    Ok(Error::new(SqlState::INVALID_PARAMETER_VALUE, format!("cannot {what} {found}")))
}

fn keys(args: &[ArrayRef], result: &DataType) -> Result<ArrayRef, Error> {
    let values = std::cell::RefCell::new(StringViewBuilder::new());
    let part = |document: &str| {
        if walk::kind(document)? != Kind::Object {
            return Err(refused("call json_object_keys on", document)?);
        }
        walk::parts(document)?.try_fold(0, |count, part| {
            values.borrow_mut().append_value(part?.0);
            Ok(count + 1)
        })
    };
    lists(args, result, part, || Arc::new(values.borrow_mut().finish()))
}

fn items(args: &[ArrayRef], result: &DataType, as_text: bool) -> Result<ArrayRef, Error> {
    let values = std::cell::RefCell::new(StringViewBuilder::new());
    let part = |document: &str| {
        if walk::kind(document)? != Kind::Array {
            return Err(refused("extract elements from", document)?);
        }
        walk::parts(document)?.try_fold(0, |count, part| {
            let (_, item) = part?;
            match as_text {
                true => values.borrow_mut().append_option(walk::as_text(item)?),
                false => values.borrow_mut().append_value(item),
            }
            Ok(count + 1)
        })
    };
    lists(args, result, part, || Arc::new(values.borrow_mut().finish()))
}

fn pairs(args: &[ArrayRef], result: &DataType, as_text: bool) -> Result<ArrayRef, Error> {
    let builders = std::cell::RefCell::new((StringViewBuilder::new(), StringViewBuilder::new()));
    let part = |document: &str| {
        if walk::kind(document)? != Kind::Object {
            return Err(refused("deconstruct", document)?);
        }
        walk::parts(document)?.try_fold(0, |count, part| {
            let (key, value) = part?;
            let mut builders = builders.borrow_mut();
            builders.0.append_value(key);
            match as_text {
                true => builders.1.append_option(walk::as_text(value)?),
                false => builders.1.append_value(value),
            }
            Ok(count + 1)
        })
    };
    let DataType::List(item) = result else { return Err(Error::internal("a set of rows is no list")) };
    let DataType::Struct(fields) = item.data_type().clone() else { return Err(Error::internal("a pair is no struct")) };
    lists(args, result, part, || {
        let mut builders = builders.borrow_mut();
        let columns: Vec<ArrayRef> = vec![Arc::new(builders.0.finish()), Arc::new(builders.1.finish())];
        let nulls = None;
        // Both builders got one value for each pair.
        Arc::new(StructArray::new(fields, columns, nulls))
    })
}
