//! Functions about the server and the values: version(), pg_typeof(), gen_random_uuid(), pg_sleep().

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, FixedSizeBinaryBuilder, StringViewArray};
use arrow::datatypes::DataType;
use async_trait::async_trait;
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::async_udf::AsyncScalarUDFImpl;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

use super::{Function, type_name, undefined};
use crate::error::{Error, SqlState};
use crate::types::SqlType;

/// The version of PostgreSQL whose behaviour clients may expect.
pub const POSTGRES_VERSION: &str = "16.6";

/// The functions.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    let version = Function::new("version", |types| nullary("version", types, DataType::Utf8View), |_, _| Ok(text(&version())));
    let type_of = Function::new(
        "pg_typeof",
        |types| Ok((types.to_vec(), DataType::Utf8View)),
        |args, _| Ok(Arc::new(StringViewArray::from_iter_values(vec![type_name(args[0].data_type()); args[0].len()])) as ArrayRef),
    );
    vec![
        version.udf(),
        type_of.udf(),
        Arc::new(ScalarUDF::new_from_impl(RandomUuid::new("gen_random_uuid"))),
        Arc::new(ScalarUDF::new_from_impl(RandomUuid::new("uuid"))),
    ]
}

/// The answer of version().
pub fn version() -> String {
    format!("PostgreSQL {POSTGRES_VERSION} (Verus {}) on {}-{}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH, std::env::consts::OS)
}

fn text(value: &str) -> ArrayRef {
    Arc::new(StringViewArray::from_iter_values([value]))
}

fn nullary(name: &str, types: &[DataType], result: DataType) -> Result<(Vec<DataType>, DataType), Error> {
    if types.is_empty() { Ok((Vec::new(), result)) } else { Err(undefined(name, types)) }
}

/// `gen_random_uuid()`: a version 4 UUID for each row.
#[derive(Debug, PartialEq, Eq, Hash)]
struct RandomUuid {
    name: &'static str,
    signature: Signature,
}

impl RandomUuid {
    fn new(name: &'static str) -> Self {
        Self { name, signature: Signature::nullary(Volatility::Volatile) }
    }
}

impl ScalarUDFImpl for RandomUuid {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(SqlType::Uuid.arrow())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let mut values = FixedSizeBinaryBuilder::with_capacity(args.number_rows, 16);
        for _ in 0..args.number_rows {
            values.append_value(uuid::Uuid::new_v4().as_bytes())?;
        }
        Ok(ColumnarValue::Array(Arc::new(values.finish())))
    }
}

/// `pg_sleep(seconds)`: waits without holding a thread, so that cancelling ends it at once.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Sleep {
    signature: Signature,
}

impl Default for Sleep {
    fn default() -> Self {
        Self { signature: Signature::exact(vec![DataType::Float64], Volatility::Volatile) }
    }
}

impl ScalarUDFImpl for Sleep {
    fn name(&self) -> &str {
        "pg_sleep"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8View)
    }

    fn invoke_with_args(&self, _args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Err(Error::unsupported("pg_sleep() is allowed in the select list only").into())
    }
}

#[async_trait]
impl AsyncScalarUDFImpl for Sleep {
    async fn invoke_async_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let seconds = args.args[0].to_array(args.number_rows)?;
        for row in 0..seconds.len() {
            if let ScalarValue::Float64(Some(seconds)) = ScalarValue::try_from_array(&seconds, row)? {
                let pause = Duration::try_from_secs_f64(seconds.max(0.0))
                    .map_err(|_| Error::new(SqlState::INVALID_PARAMETER_VALUE, "pg_sleep() needs a finite number of seconds"))?;
                tokio::time::sleep(pause).await;
            }
        }
        Ok(ColumnarValue::Array(Arc::new(StringViewArray::from_iter_values(vec![""; args.number_rows]))))
    }
}
