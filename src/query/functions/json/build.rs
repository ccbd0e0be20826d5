//! Functions that build documents: to_jsonb, jsonb_build_object, jsonb_build_array, jsonb_object, and what jsonb_agg is made of.
//!
//! *Place*: `query::typing` gives the functions of [`NAMES`] the session's time zone as their last argument, as [`zoned`] calls;
//! `query::typing::planner` makes the aggregates out of [`element`], `array_agg` and [`collected`].

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringViewBuilder};
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};

use super::super::text::strings;
use super::super::{Function, is_text, undefined, zone};
use super::{type_of, walk};
use crate::error::{Error, SqlState};
use crate::types::SqlType;
use crate::types::text::json::normalize_jsonb;
use crate::types::text::{Style, Writer};

/// What a function builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Shape {
    /// One value; NULL stays NULL.
    Value,
    /// One value; NULL is `null`.
    Element,
    Object,
    Array,
    /// `"key": value`, a member without its braces.
    Member,
}

/// The functions by name: what they build, and whether it is jsonb.
const NAMES: [(&str, Shape, bool); 8] = [
    ("to_json", Shape::Value, false),
    ("to_jsonb", Shape::Value, true),
    ("array_to_json", Shape::Value, false),
    ("row_to_json", Shape::Value, false),
    ("json_build_object", Shape::Object, false),
    ("jsonb_build_object", Shape::Object, true),
    ("json_build_array", Shape::Array, false),
    ("jsonb_build_array", Shape::Array, true),
];

/// The functions.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    let named = NAMES.iter().map(|(name, shape, binary)| Build::new(name, *shape, *binary).udf());
    named.chain([collected(true).udf(), collected(false).udf(), object("json_object", false), object("jsonb_object", true)]).collect()
}

/// A function of [`NAMES`] as the typing rules call it, with the session's time zone behind its arguments; none for another one.
pub fn zoned(function: &ScalarFunction, zone: Expr) -> Option<Expr> {
    let build = function.func.inner().downcast_ref::<Build>().filter(|build| !build.zoned)?;
    let args = function.args.iter().cloned().chain([zone]).collect();
    Some(Expr::ScalarFunction(ScalarFunction::new_udf(Build { zoned: true, ..build.clone() }.udf(), args)))
}

/// A value as an aggregate collects it: NULL is `null`.
pub fn element(value: Expr, binary: bool) -> Expr {
    let build = Build::new(if binary { "jsonb_element" } else { "json_element" }, Shape::Element, binary);
    Expr::ScalarFunction(ScalarFunction::new_udf(build.udf(), vec![value]))
}

/// A member as an aggregate collects it.
pub fn member(key: Expr, value: Expr, binary: bool) -> Expr {
    let build = Build::new(if binary { "jsonb_member" } else { "json_member" }, Shape::Member, binary);
    Expr::ScalarFunction(ScalarFunction::new_udf(build.udf(), vec![key, value]))
}

/// The document that a list of collected elements or members is: `(list, whether they are members)`.
pub fn collected(binary: bool) -> Function {
    let types = |types: &[DataType]| match types {
        [DataType::List(item), DataType::Boolean] if is_text(item.data_type()) => {
            Ok((vec![super::text_list(), DataType::Boolean], DataType::Utf8View))
        }
        _ => Err(undefined("json_collected", types)),
    };
    match binary {
        true => Function::new("jsonb_collected", types, |args, _| collect(args, true)).giving(SqlType::Jsonb),
        false => Function::new("json_collected", types, |args, _| collect(args, false)).giving(SqlType::Json),
    }
}

fn collect(args: &[ArrayRef], binary: bool) -> Result<ArrayRef, Error> {
    let lists = args[0].as_list::<i32>();
    let mut values = StringViewBuilder::with_capacity(lists.len());
    for row in 0..lists.len() {
        if lists.is_null(row) {
            values.append_null();
            continue;
        }
        let members = args[1].as_boolean().value(row);
        let items = strings(&lists.value(row))?;
        let items: Vec<&str> = items.iter().flatten().collect();
        let text = if members { format!("{{ {} }}", items.join(", ")) } else { format!("[{}]", items.join(", ")) };
        values.append_value(finished(text, binary)?);
    }
    Ok(Arc::new(values.finish()))
}

fn finished(text: String, binary: bool) -> Result<String, Error> {
    if !binary {
        return Ok(text);
    }
    let mut out = String::with_capacity(text.len());
    normalize_jsonb(&text, &mut out)?;
    Ok(out)
}

/// `json_object('{a,1,b,2}')`, `json_object(keys, values)`.
fn object(name: &'static str, binary: bool) -> Arc<ScalarUDF> {
    let types = |types: &[DataType]| {
        let list = |data_type: &DataType| matches!(data_type, DataType::List(item) if is_text(item.data_type())) || is_text(data_type);
        match types.len() {
            1 | 2 if types.iter().all(list) => Ok((
                types.iter().map(|each| if is_text(each) { DataType::Utf8View } else { super::text_list() }).collect(),
                DataType::Utf8View,
            )),
            _ => Err(undefined("json_object", types)),
        }
    };
    match binary {
        true => Function::new(name, types, |args, _| object_of(args, true)).giving(SqlType::Jsonb).udf(),
        false => Function::new(name, types, |args, _| object_of(args, false)).giving(SqlType::Json).udf(),
    }
}

fn object_of(args: &[ArrayRef], binary: bool) -> Result<ArrayRef, Error> {
    let mut values = StringViewBuilder::with_capacity(args[0].len());
    for row in 0..args[0].len() {
        if args.iter().any(|arg| arg.is_null(row)) {
            values.append_null();
            continue;
        }
        let lists = args.iter().map(|arg| elements(arg, row)).collect::<Result<Vec<_>, Error>>()?;
        let pairs: Vec<(Option<String>, Option<String>)> = match <[_; 2]>::try_from(lists) {
            Ok([keys, values]) if keys.len() == values.len() => keys.into_iter().zip(values).collect(),
            Ok(_) => return Err(Error::new(SqlState("2202E"), "mismatched array dimensions")),
            Err(mut one) => {
                let list = one.pop().unwrap_or_default();
                if list.len() % 2 == 1 {
                    return Err(Error::new(SqlState("2202E"), "array must have even number of elements"));
                }
                list.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
            }
        };
        let mut members = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            let key = key.ok_or_else(|| Error::new(SqlState("22004"), "null value not allowed for object key"))?;
            let mut member = String::new();
            walk::quote(&key, &mut member);
            member.push_str(if binary { ": " } else { " : " });
            match value {
                Some(value) => walk::quote(&value, &mut member),
                None => member.push_str("null"),
            }
            members.push(member);
        }
        values.append_value(finished(format!("{{{}}}", members.join(", ")), binary)?);
    }
    Ok(Arc::new(values.finish()))
}

fn elements(array: &ArrayRef, row: usize) -> Result<Vec<Option<String>>, Error> {
    if is_text(array.data_type()) {
        let mut found = Vec::new();
        crate::types::text::array::elements(strings(array)?.value(row), |element| {
            found.push(element.map(str::to_owned));
            Ok(())
        })?;
        return Ok(found);
    }
    let items = strings(&array.as_list::<i32>().value(row))?;
    Ok(items.iter().map(|item| item.map(str::to_owned)).collect())
}

/// A function that builds documents.
#[derive(Clone, Debug)]
struct Build {
    name: &'static str,
    shape: Shape,
    binary: bool,
    /// Whether the last argument is the session's time zone.
    zoned: bool,
    signature: Signature,
}

impl Build {
    fn new(name: &'static str, shape: Shape, binary: bool) -> Self {
        let signature = match shape {
            Shape::Object | Shape::Array => {
                Signature::one_of(vec![TypeSignature::VariadicAny, TypeSignature::Nullary], Volatility::Immutable)
            }
            _ => Signature::variadic_any(Volatility::Immutable),
        };
        Self { name, shape, binary, zoned: false, signature }
    }

    fn udf(self) -> Arc<ScalarUDF> {
        Arc::new(ScalarUDF::new_from_impl(self))
    }

    fn row(&self, values: &[Cell], row: usize) -> Result<Option<String>, Error> {
        let mut out = String::new();
        match self.shape {
            Shape::Value if values[0].is_null(row) => return Ok(None),
            Shape::Value | Shape::Element => values[0].append(row, self.binary, &mut out)?,
            Shape::Array => {
                out.push('[');
                for (index, value) in values.iter().enumerate() {
                    out.push_str(if index > 0 { ", " } else { "" });
                    value.append(row, self.binary, &mut out)?;
                }
                out.push(']');
            }
            Shape::Member => member_of(&values[0], &values[1], row, self.binary, &mut out)?,
            Shape::Object => {
                if values.len() % 2 == 1 {
                    let name = self.name;
                    return Err(Error::new(SqlState::INVALID_PARAMETER_VALUE, "argument list must have even number of elements")
                        .hint(format!("The arguments of {name}() must consist of alternating keys and values.")));
                }
                out.push('{');
                for (index, pair) in values.chunks(2).enumerate() {
                    out.push_str(if index > 0 { ", " } else { "" });
                    member_of(&pair[0], &pair[1], row, self.binary, &mut out)?;
                }
                out.push('}');
            }
        }
        match self.binary && self.shape != Shape::Member {
            true => finished(out, true).map(Some),
            false => Ok(Some(out)),
        }
    }
}

fn member_of(key: &Cell, value: &Cell, row: usize, binary: bool, out: &mut String) -> Result<(), Error> {
    if key.is_null(row) {
        let message = if binary { "argument 1: key must not be null" } else { "null value not allowed for object key" };
        return Err(Error::new(SqlState::INVALID_PARAMETER_VALUE, message));
    }
    walk::quote(&key.text(row), out);
    out.push_str(if binary { ": " } else { " : " });
    value.append(row, binary, out)
}

/// A column of values that become JSON.
struct Cell {
    array: ArrayRef,
    sql_type: SqlType,
    style: Style,
    inner: Inner,
}

enum Inner {
    Scalar(Writer),
    List,
    Struct(Vec<(String, Cell)>),
}

impl Cell {
    fn new(array: ArrayRef, field: &FieldRef, style: Style) -> Result<Cell, Error> {
        let sql_type = SqlType::of_field(field);
        let inner = match array.data_type() {
            DataType::List(_) => Inner::List,
            DataType::Struct(fields) => {
                let columns = array.as_struct().columns().iter().zip(fields);
                let cells = columns.map(|(column, field)| Ok((field.name().clone(), Cell::new(Arc::clone(column), field, style)?)));
                Inner::Struct(cells.collect::<Result<_, Error>>()?)
            }
            _ => Inner::Scalar(Writer::new(&array, &sql_type, &style)?),
        };
        Ok(Cell { array, sql_type, style, inner })
    }

    fn is_null(&self, row: usize) -> bool {
        self.array.data_type().is_null() || self.array.is_null(row)
    }

    fn text(&self, row: usize) -> String {
        let mut text = Vec::new();
        if let Inner::Scalar(writer) = &self.inner {
            writer.write(row, &mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    fn append(&self, row: usize, binary: bool, out: &mut String) -> Result<(), Error> {
        if self.is_null(row) {
            out.push_str("null");
            return Ok(());
        }
        match &self.inner {
            Inner::List => {
                let list = self.array.as_list::<i32>();
                let DataType::List(item) = self.array.data_type() else { return Err(Error::internal("a list is none")) };
                let items = Cell::new(list.value(row), item, self.style)?;
                out.push('[');
                for index in 0..items.array.len() {
                    out.push_str(match (index > 0, binary) {
                        (false, _) => "",
                        (true, true) => ", ",
                        (true, false) => ",",
                    });
                    items.append(index, binary, out)?;
                }
                out.push(']');
            }
            Inner::Struct(members) => {
                out.push('{');
                for (index, (name, value)) in members.iter().enumerate() {
                    out.push_str(if index > 0 { "," } else { "" });
                    walk::quote(name, out);
                    out.push(':');
                    value.append(row, binary, out)?;
                }
                out.push('}');
            }
            Inner::Scalar(_) => self.scalar(row, out),
        }
        Ok(())
    }

    fn scalar(&self, row: usize, out: &mut String) {
        let text = self.text(row);
        match &self.sql_type {
            SqlType::Boolean => out.push_str(if text == "t" { "true" } else { "false" }),
            SqlType::Json | SqlType::Jsonb => out.push_str(&text),
            SqlType::Real | SqlType::Double if matches!(text.as_str(), "NaN" | "Infinity" | "-Infinity") => walk::quote(&text, out),
            number if number.arrow().is_numeric() && *number != SqlType::Oid => out.push_str(&text),
            // ISO 8601 has a T where SQL has a blank, and minutes in every offset.
            SqlType::Timestamp => walk::quote(&text.replacen(' ', "T", 1), out),
            SqlType::Timestamptz => {
                let text = text.replacen(' ', "T", 1);
                let offset = text.rfind(['+', '-']).map_or("", |at| &text[at..]);
                let minutes = if offset.len() == 3 { ":00" } else { "" };
                walk::quote(&format!("{text}{minutes}"), out);
            }
            _ => walk::quote(&text, out),
        }
    }
}

impl PartialEq for Build {
    fn eq(&self, other: &Self) -> bool {
        (self.name, self.binary, self.zoned) == (other.name, other.binary, other.zoned)
    }
}

impl Eq for Build {}

impl Hash for Build {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.name, self.binary, self.zoned).hash(state);
    }
}

impl ScalarUDFImpl for Build {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8View)
    }

    fn return_field_from_args(&self, _args: ReturnFieldArgs) -> Result<FieldRef> {
        Ok(Arc::new(match self.shape {
            Shape::Element | Shape::Member => SqlType::Text.field(self.name, true),
            _ => type_of(self.binary).field(self.name, true),
        }))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let (mut values, fields) = (args.args, args.arg_fields);
        let zone = match values.pop() {
            Some(ColumnarValue::Scalar(zone)) if self.zoned => zone::parse(zone.try_as_str().flatten().unwrap_or("UTC"))?,
            _ => return Err(Error::internal(format!("{}() was not given its time zone", self.name)).into()),
        };
        let style = Style { time_zone: zone, ..Style::default() };
        let constant = values.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let rows = if constant { 1 } else { args.number_rows };
        if values.is_empty() && self.shape != Shape::Object && self.shape != Shape::Array {
            return Err(undefined(self.name, &[]).into());
        }
        let cells =
            values.into_iter().zip(&fields).map(|(value, field)| -> Result<Cell> { Ok(Cell::new(value.into_array(rows)?, field, style)?) });
        let cells = cells.collect::<Result<Vec<_>>>()?;
        let mut texts = StringViewBuilder::with_capacity(rows);
        for row in 0..rows {
            texts.append_option(self.row(&cells, row)?);
        }
        let texts: ArrayRef = Arc::new(texts.finish());
        match constant {
            true => Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&texts, 0)?)),
            false => Ok(ColumnarValue::Array(texts)),
        }
    }
}
