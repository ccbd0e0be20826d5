//! Aggregates that are made of others: percentile_disc, mode, jsonb_agg, jsonb_object_agg.
//!
//! *Place*: they are registered by name so that the SQL planner knows them; `query::typing::planner` asks [`planned`] for what
//! stands for a call: a function of an `array_agg`. So whatever keeps and merges `array_agg` keeps these.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, UInt64Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, Float64Type};
use datafusion::common::{Result, ScalarValue};
use datafusion::functions_aggregate::array_agg::array_agg_udaf;
use datafusion::logical_expr::expr::{AggregateFunction, NullTreatment, Sort};
use datafusion::logical_expr::function::AccumulatorArgs;
use datafusion::logical_expr::planner::RawAggregateExpr;
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, Expr, ScalarUDF, Signature, TypeSignature, Volatility};

use super::{Function, json, undefined};
use crate::error::{Error, SqlState};

const NAMES: [&str; 6] = ["percentile_disc", "mode", "json_agg", "jsonb_agg", "json_object_agg", "jsonb_object_agg"];

/// The names, for the SQL planner.
pub fn names() -> Vec<Arc<AggregateUDF>> {
    NAMES.iter().map(|name| Arc::new(AggregateUDF::new_from_impl(Name::new(name)))).collect()
}

/// The functions over lists.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    vec![at_fraction().udf(), most_common().udf()]
}

/// What stands for a call of one of [`names`]; any other call comes back.
pub fn planned(call: RawAggregateExpr) -> Result<Result<Expr, RawAggregateExpr>> {
    let name = call.func.name().to_owned();
    if !NAMES.contains(&name.as_str()) {
        return Ok(Err(call));
    }
    let binary = name.starts_with("jsonb");
    let RawAggregateExpr { args, distinct, filter, order_by, .. } = call;
    let flag = |value: bool| Expr::Literal(ScalarValue::Boolean(Some(value)), None);
    Ok(Ok(match (name.as_str(), args.as_slice()) {
        ("percentile_disc", [value, fraction]) => {
            let list = collected(value.clone(), false, Some(present(value, filter)), order_by);
            at_fraction().call(vec![list, fraction.clone()])
        }
        ("mode", [value]) => most_common().call(vec![collected(value.clone(), false, Some(present(value, filter)), order_by)]),
        ("percentile_disc" | "mode", _) => {
            let message = format!("WITHIN GROUP is required for ordered-set aggregate {name}");
            return Err(Error::new(SqlState::WRONG_OBJECT_TYPE, message).into());
        }
        ("json_agg" | "jsonb_agg", [value]) => {
            let list = collected(json::build::element(value.clone(), binary), distinct, filter, order_by);
            json::build::collected(binary).call(vec![list, flag(false)])
        }
        ("json_object_agg" | "jsonb_object_agg", [key, value]) => {
            let list = collected(json::build::member(key.clone(), value.clone(), binary), distinct, filter, order_by);
            json::build::collected(binary).call(vec![list, flag(true)])
        }
        _ => return Err(undefined(&name, &[]).into()),
    }))
}

fn collected(value: Expr, distinct: bool, filter: Option<Box<Expr>>, order_by: Vec<Sort>) -> Expr {
    Expr::AggregateFunction(AggregateFunction::new_udf(array_agg_udaf(), vec![value], distinct, filter, order_by, None::<NullTreatment>))
}

/// The filter of a call that leaves out NULLs.
fn present(value: &Expr, filter: Option<Box<Expr>>) -> Box<Expr> {
    let present = Expr::IsNotNull(Box::new(value.clone()));
    Box::new(match filter {
        Some(filter) => present.and(*filter),
        None => present,
    })
}

/// The first of a sorted list's elements whose place is at least a fraction of it.
fn at_fraction() -> Function {
    Function::new(
        "list_at_fraction",
        |types| match types {
            [DataType::List(item), fraction] if fraction.is_numeric() || fraction.is_null() => {
                Ok((vec![types[0].clone(), DataType::Float64], item.data_type().clone()))
            }
            [DataType::List(item), DataType::List(fraction)] if fraction.data_type().is_numeric() => {
                let fractions = DataType::List(Arc::new(Field::new("item", DataType::Float64, true)));
                Ok((vec![types[0].clone(), fractions], DataType::List(Arc::clone(item))))
            }
            _ => Err(undefined("percentile_disc", types.get(1..).unwrap_or_default())),
        },
        |args, result| {
            let lists = args[0].as_list::<i32>();
            if let DataType::List(_) = args[1].data_type() {
                return Err(
                    Error::unsupported("percentile_disc() of several fractions is not supported").hint("Call it once for each fraction.")
                );
            }
            let fractions: &Float64Array = args[1].as_primitive::<Float64Type>();
            picked(lists, result, |row, items| match fractions.is_null(row) {
                true => Ok(None),
                false => place(fractions.value(row), items.len()),
            })
        },
    )
}

fn place(fraction: f64, count: usize) -> Result<Option<usize>, Error> {
    if !(0.0..=1.0).contains(&fraction) {
        return Err(Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, format!("percentile value {fraction} is not between 0 and 1")));
    }
    // At least the first, at most the last: the product lies between 0 and the count.
    Ok(count.checked_sub(1).map(|last| ((fraction * count as f64).ceil() as usize).saturating_sub(1).min(last)))
}

/// The most frequent of a sorted list's elements, the first of several.
fn most_common() -> Function {
    Function::new(
        "list_mode",
        |types| match types {
            [DataType::List(item)] => Ok((types.to_vec(), item.data_type().clone())),
            _ => Err(undefined("mode", types)),
        },
        |args, result| picked(args[0].as_list::<i32>(), result, |_, items| longest_run(items)),
    )
}

fn longest_run(items: &ArrayRef) -> Result<Option<usize>, Error> {
    let parts = arrow::compute::partition(std::slice::from_ref(items)).map_err(|error| Error::internal(error.to_string()))?;
    let mut longest: Option<std::ops::Range<usize>> = None;
    for run in parts.ranges() {
        if longest.as_ref().is_none_or(|longest| run.len() > longest.len()) {
            longest = Some(run);
        }
    }
    Ok(longest.map(|run| run.start))
}

/// One element of each list, chosen by its place.
fn picked(
    lists: &arrow::array::ListArray,
    result: &DataType,
    choose: impl Fn(usize, &ArrayRef) -> Result<Option<usize>, Error>,
) -> Result<ArrayRef, Error> {
    let mut places = Vec::with_capacity(lists.len());
    for row in 0..lists.len() {
        let start = u64::try_from(lists.value_offsets()[row]).unwrap_or(0);
        places.push(match lists.is_null(row) {
            true => None,
            false => choose(row, &lists.value(row))?.map(|place| start + place as u64),
        });
    }
    let values = take(lists.values(), &UInt64Array::from(places), None).map_err(|error| Error::internal(error.to_string()))?;
    arrow::compute::cast(&values, result).map_err(|error| Error::internal(error.to_string()))
}

/// The name of an aggregate that is planned as others.
#[derive(Debug, PartialEq, Eq)]
struct Name {
    name: &'static str,
    signature: Signature,
}

impl Name {
    fn new(name: &'static str) -> Self {
        let signature = Signature::one_of(vec![TypeSignature::VariadicAny, TypeSignature::Nullary], Volatility::Immutable);
        Self { name, signature }
    }
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl AggregateUDFImpl for Name {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(types.first().cloned().unwrap_or(DataType::Null))
    }

    fn accumulator(&self, _args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Err(Error::unsupported(format!("{}() is not supported as a window function", self.name)).into())
    }

    fn supports_within_group_clause(&self) -> bool {
        matches!(self.name, "percentile_disc" | "mode")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_find_their_place() {
        let found: Vec<_> = [0.0, 0.25, 0.26, 0.5, 1.0].iter().map(|fraction| place(*fraction, 4).unwrap()).collect();
        assert_eq!(found, [Some(0), Some(0), Some(1), Some(1), Some(3)]);
        assert_eq!(place(0.5, 0).unwrap(), None);
        assert!(place(1.5, 4).is_err());
    }
}
