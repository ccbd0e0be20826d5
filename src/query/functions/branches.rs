//! COALESCE, GREATEST, LEAST, NULLIF as the SQL planner meets them: with arguments whose types do not meet yet.
//!
//! *Place*: they stand for DataFusion's functions of the same names until `query::typing` has given the arguments one type. DataFusion's
//! own would refuse `coalesce('2024-01-01', current_date)` before that.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::functions::core;
use datafusion::logical_expr::ScalarUDF;

use super::{Function, Typed, is_text, undefined};
use crate::error::Error;

/// The functions.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    ["coalesce", "greatest", "least", "nullif"].into_iter().map(|name| Function::new(name, any, |_, _| Err(untyped())).udf()).collect()
}

fn untyped() -> Error {
    Error::internal("branches were not typed")
}

/// The first type that is not open.
fn any(types: &[DataType]) -> Result<Typed, Error> {
    let open = |data_type: &&DataType| data_type.is_null() || is_text(data_type);
    match types.iter().find(|data_type| !open(data_type)).or(types.first()) {
        Some(result) => Ok((types.to_vec(), result.clone())),
        None => Err(undefined("coalesce", types)),
    }
}

/// DataFusion's function in place of one of these; any other one as it is.
pub fn real(function: Arc<ScalarUDF>) -> Arc<ScalarUDF> {
    if function.inner().downcast_ref::<Function>().is_none() {
        return function;
    }
    match function.name() {
        "coalesce" => core::coalesce(),
        "greatest" => core::greatest(),
        "least" => core::least(),
        "nullif" => core::nullif(),
        _ => function,
    }
}
