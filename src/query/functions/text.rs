//! Casts from and to text, by PostgreSQL's text format of each type.
//!
//! *Place*: `query::typing` replaces casts whose source or target is a string by [`Parse`] and [`Format`]; the formats
//! themselves are `types::text`'s.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringViewArray, StringViewBuilder};
use arrow::compute::cast;
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

use super::zone;
use crate::error::Error;
use crate::types::SqlType;
use crate::types::text::{Style, Writer, parse_scalar};
use crate::types::zone::Zone;

/// Text to a value: `(text, time zone)`.
#[derive(Debug)]
pub struct Parse {
    target: SqlType,
    name: String,
    signature: Signature,
}

/// A value to text: `(value, time zone)`.
#[derive(Debug)]
pub struct Format {
    source: SqlType,
    signature: Signature,
}

/// A cast of a text expression. `zone` is an expression, because the session's is known only when the plan is run.
pub fn parse(text: Expr, target: SqlType, zone: Expr) -> Expr {
    let function = Parse { name: format!("{target}_in"), target, signature: Signature::any(2, Volatility::Immutable) };
    Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(ScalarUDF::new_from_impl(function)), vec![text, zone]))
}

/// Whether a call is such a cast.
pub fn is_parse(call: &ScalarFunction) -> bool {
    call.func.inner().downcast_ref::<Parse>().is_some()
}

/// A cast of an expression of type `source` to text.
pub fn format(value: Expr, source: SqlType, zone: Expr) -> Expr {
    let function = Format { source, signature: Signature::any(2, Volatility::Immutable) };
    Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(ScalarUDF::new_from_impl(function)), vec![value, zone]))
}

/// The values of a string array of any kind.
pub fn strings(array: &ArrayRef) -> Result<StringViewArray, Error> {
    let views = cast(array, &DataType::Utf8View).map_err(|error| Error::internal(error.to_string()))?;
    Ok(views.as_string_view().clone())
}

fn zone_of(value: &ColumnarValue) -> Result<Zone> {
    match value {
        ColumnarValue::Scalar(zone) => Ok(zone::parse(zone.try_as_str().flatten().unwrap_or("UTC"))?),
        ColumnarValue::Array(_) => Err(Error::internal("the time zone of a cast is not a constant").into()),
    }
}

impl ScalarUDFImpl for Parse {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(self.target.arrow())
    }

    fn return_field_from_args(&self, _args: ReturnFieldArgs) -> Result<FieldRef> {
        Ok(Arc::new(self.target.field(&self.name, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let zone = zone_of(&args.args[1])?;
        match &args.args[0] {
            ColumnarValue::Scalar(value) => Ok(ColumnarValue::Scalar(match value.try_as_str().flatten() {
                Some(text) => parse_scalar(&self.target, text, &zone)?,
                None => ScalarValue::try_from(self.target.arrow())?,
            })),
            ColumnarValue::Array(array) => {
                let texts = strings(array)?;
                let null = ScalarValue::try_from(self.target.arrow())?;
                let values = texts.iter().map(|text| match text {
                    Some(text) => parse_scalar(&self.target, text, &zone),
                    None => Ok(null.clone()),
                });
                let values = values.collect::<Result<Vec<_>, Error>>()?;
                if values.is_empty() {
                    return Ok(ColumnarValue::Array(arrow::array::new_empty_array(&self.target.arrow())));
                }
                Ok(ColumnarValue::Array(ScalarValue::iter_to_array(values)?))
            }
        }
    }
}

impl ScalarUDFImpl for Format {
    fn name(&self) -> &str {
        "text"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8View)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let style = Style { time_zone: zone_of(&args.args[1])?, ..Style::default() };
        let constant = matches!(args.args[0], ColumnarValue::Scalar(_));
        let array = args.args[0].to_array(if constant { 1 } else { args.number_rows })?;
        let writer = Writer::new(&array, &self.source, &style)?;
        let mut texts = StringViewBuilder::with_capacity(array.len());
        let mut text = Vec::new();
        for row in 0..array.len() {
            if writer.is_null(row) {
                texts.append_null();
            } else {
                text.clear();
                writer.write(row, &mut text);
                texts.append_value(String::from_utf8_lossy(&text));
            }
        }
        let texts: ArrayRef = Arc::new(texts.finish());
        match constant {
            true => Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&texts, 0)?)),
            false => Ok(ColumnarValue::Array(texts)),
        }
    }
}

impl PartialEq for Parse {
    fn eq(&self, other: &Self) -> bool {
        self.target == other.target
    }
}

impl Eq for Parse {}

impl Hash for Parse {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Format {}

impl Hash for Format {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.source.hash(state);
    }
}
