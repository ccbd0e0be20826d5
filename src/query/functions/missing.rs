//! A function that does not exist, until the types of its arguments are known: PostgreSQL's error names them.
//!
//! *Place*: `query::scope` gives it to the SQL planner for a name that nothing has; it refuses as soon as it is asked for its type.

use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

use super::undefined;
use crate::error::{Error, SqlState};
use crate::types::SqlType;

/// Letters in which a name may differ from one that is meant.
const DISTANCE_MAX: usize = 2;

#[derive(Debug, PartialEq, Eq, Hash)]
struct Missing {
    name: String,
    /// The name that may have been meant.
    nearest: Option<String>,
    signature: Signature,
}

/// A function of a name that is none of `known`.
pub fn function<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Arc<ScalarUDF> {
    let near = known.map(|other| (strsim::damerau_levenshtein(name, other), other)).min();
    let nearest = near.filter(|(distance, other)| *distance <= DISTANCE_MAX && *distance < other.len()).map(|(_, other)| other.to_owned());
    let signature = Signature::variadic_any(Volatility::Immutable);
    Arc::new(ScalarUDF::new_from_impl(Missing { name: name.to_owned(), nearest, signature }))
}

impl Missing {
    fn error(&self, types: &[String]) -> Error {
        let message = format!("function {}({}) does not exist", self.name, types.join(", "));
        let error = Error::new(SqlState::UNDEFINED_FUNCTION, message);
        match &self.nearest {
            Some(nearest) => error.hint(format!("Perhaps you meant {nearest}().")),
            None => error.hint("No function matches the given name and argument types. You might need to add explicit type casts."),
        }
    }
}

impl ScalarUDFImpl for Missing {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Err(undefined(&self.name, types).into())
    }

    /// Literals have the types that PostgreSQL gives them, which the plan's have only once it is typed.
    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let types = args.arg_fields.iter().zip(args.scalar_arguments).map(|(field, literal)| match literal {
            Some(ScalarValue::Int64(Some(number))) if i32::try_from(*number).is_ok() => SqlType::Integer.to_string(),
            Some(ScalarValue::Utf8(_) | ScalarValue::Utf8View(_)) if field.metadata().is_empty() => "unknown".to_owned(),
            _ if field.data_type().is_null() => "unknown".to_owned(),
            _ => match SqlType::of_field(field) {
                SqlType::Numeric(_) => "numeric".to_owned(),
                SqlType::Varchar(_) => "character varying".to_owned(),
                other => other.to_string(),
            },
        });
        Err(self.error(&types.collect::<Vec<_>>()).into())
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Err(self.error(&[]).into())
    }
}
