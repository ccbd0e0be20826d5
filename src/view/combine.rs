//! An aggregate over a view's groups as an aggregate over the rows of its table, where they are the same.
//!
//! *Place*: `compile` asks for a view over a view. What is refused here is computed from the lower view's groups when it is read.
//!
//! Let a group of the upper view be the union of groups of the lower one (its keys and filters are over the lower keys, so it is).
//! Then, with x over the rows:
//!
//! | over the groups | over the rows | because |
//! |---|---|---|
//! | `sum(sum(x))` | `sum(x)` | a sum of NULLs is NULL on both sides |
//! | `sum(count(x))` | `sum(CASE WHEN x IS NOT NULL THEN 1 ELSE 0 END)` | it is 0, not NULL, where no x is there |
//! | `min(min(x))`, `max(max(x))`, `bool_and`, `bool_or` | `min(x)`, ... | |
//! | `f(key)`, f not caring how often it sees a value | `f(key)` | a group has at least one row |
//!
//! `count(*)`, `avg` and others see each group once, whatever its rows are: they are not aggregates over rows.

use arrow::datatypes::DataType;
use datafusion::common::DFSchema;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::{Cast, Expr, ExprSchemable, lit, when};

use super::failure::failure;
use super::source::{has_aggregate, no_view};
use crate::catalog::Table;
use crate::error::Result;

/// Aggregates that do not care how often they see a value.
const IDEMPOTENT: [&str; 7] = ["min", "max", "bool_and", "bool_or", "bit_and", "bit_or", "approx_distinct"];

/// `call` has a view's outputs in it as expressions and aggregate calls over the rows of `table`. 0A000 when it is no aggregate
/// over the rows.
pub(super) fn over_groups(call: AggregateFunction, view: &str, table: &Table) -> Result<AggregateFunction> {
    let refused = no_view(&format!("{}() over the groups of view \"{view}\"", call.func.name()), "Aggregate when reading the view.");
    let parameters = &call.params;
    let name = call.func.name().to_ascii_lowercase();
    if parameters.filter.as_ref().is_some_and(|filter| has_aggregate(filter)) || !parameters.order_by.is_empty() {
        return Err(refused);
    }
    if !parameters.args.iter().any(has_aggregate) {
        let counts_values = parameters.distinct && matches!(name.as_str(), "count" | "sum" | "avg");
        return if counts_values || IDEMPOTENT.contains(&name.as_str()) { Ok(call) } else { Err(refused) };
    }
    let [argument] = parameters.args.as_slice() else { return Err(refused) };
    let Some(inner) = inner(argument, &DFSchema::try_from(table.schema()).map_err(failure)?)? else { return Err(refused) };
    let distinct = inner.params.distinct || (parameters.distinct && !IDEMPOTENT.contains(&name.as_str()));
    if distinct || !inner.params.order_by.is_empty() || inner.params.null_treatment.is_some() {
        return Err(refused);
    }
    let inner_filter = inner.params.filter.as_deref().cloned();
    let (row, filter) = match (name.as_str(), inner.func.name()) {
        ("sum", "count") => (counted(inner)?, None),
        ("sum", "sum") | ("min", "min") | ("max", "max") | ("bool_and", "bool_and") | ("bool_or", "bool_or") => {
            (summed(inner, table)?, inner_filter)
        }
        _ => return Err(refused),
    };
    let argument = in_place(argument, row);
    let mut call = call;
    call.params.args = vec![argument];
    call.params.filter = match (call.params.filter.take(), filter) {
        (Some(outer), Some(inner)) => Some(Box::new(outer.and(inner))),
        (outer, inner) => outer.or(inner.map(Box::new)),
    };
    Ok(call)
}

/// The aggregate call that an argument is, but for casts that keep every value.
fn inner<'a>(argument: &'a Expr, schema: &DFSchema) -> Result<Option<&'a AggregateFunction>> {
    Ok(match argument {
        Expr::AggregateFunction(call) => Some(call),
        Expr::Alias(alias) => inner(&alias.expr, schema)?,
        Expr::Cast(cast) if keeps_values(&cast.expr.get_type(schema).map_err(failure)?, cast.field.data_type()) => {
            inner(&cast.expr, schema)?
        }
        _ => None,
    })
}

/// Whether a cast between two types keeps every value.
pub(super) fn keeps_values(from: &DataType, to: &DataType) -> bool {
    const fn digits(integer: &DataType) -> Option<u8> {
        match integer {
            DataType::Int16 => Some(5),
            DataType::Int32 => Some(10),
            DataType::Int64 => Some(19),
            _ => None,
        }
    }
    match (from, to) {
        (DataType::Decimal128(precision, scale), DataType::Decimal128(wide, wide_scale)) => {
            wide_scale >= scale && i16::from(*wide) - i16::from(*wide_scale) >= i16::from(*precision) - i16::from(*scale)
        }
        (from, DataType::Decimal128(precision, scale)) => {
            digits(from).is_some_and(|digits| i16::from(*precision) - i16::from(*scale) >= i16::from(digits))
        }
        (from, to) => from == to || matches!((digits(from), digits(to)), (Some(from), Some(to)) if from <= to),
    }
}

/// What `count(...) FILTER (...)` adds for a row: 1 or 0, never NULL.
fn counted(inner: &AggregateFunction) -> Result<Expr> {
    let present = inner.params.args.iter().map(|argument| argument.clone().is_not_null());
    let filter = inner.params.filter.as_ref().map(|filter| filter.as_ref().clone().is_true());
    let counts = present.chain(filter).reduce(Expr::and).unwrap_or_else(|| lit(true));
    when(counts, lit(1_i64)).otherwise(lit(0_i64)).map_err(failure)
}

/// A row's argument in the type of the inner aggregate, so that the outer one has the type that it has over the groups.
fn summed(inner: &AggregateFunction, table: &Table) -> Result<Expr> {
    let schema = DFSchema::try_from(table.schema()).map_err(failure)?;
    let output = Expr::AggregateFunction(inner.clone()).get_type(&schema).map_err(failure)?;
    let argument = inner.params.args.first().cloned().unwrap_or_else(|| lit(true));
    match argument.get_type(&schema).map_err(failure)? == output {
        true => Ok(argument),
        false => Ok(Expr::Cast(Cast::new(Box::new(argument), output))),
    }
}

/// `argument` with `row` where its aggregate call stands.
fn in_place(argument: &Expr, row: Expr) -> Expr {
    match argument {
        Expr::Cast(cast) => Expr::Cast(Cast { expr: Box::new(in_place(&cast.expr, row)), ..cast.clone() }),
        Expr::Alias(alias) => in_place(&alias.expr, row),
        _ => row,
    }
}
