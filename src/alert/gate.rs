//! Which windows are closed, as a function inside a plan.
//!
//! *Place*: `plan` puts it above windows, `evaluate` sets the [`Gate`] before a run.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use arrow::array::{Array, AsArray, BooleanArray};
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

use super::plan::starts;
use super::span::Span;
use crate::clock::Micros;

/// Until when windows are closed.
#[derive(Clone, Debug, Default)]
pub struct Until {
    /// Of each partition.
    pub partitions: HashMap<String, Micros>,
    /// Of the partition whose key is NULL, where there is one.
    pub unnamed: Option<Micros>,
    /// Of all partitions, for rows that do not tell theirs.
    pub all: Micros,
    /// When it was so; none for what is no table's.
    pub found_at: Option<Instant>,
}

impl Until {
    /// Nothing is closed.
    pub fn never() -> Until {
        Until::everywhere(i64::MIN)
    }

    /// The same time for everything.
    pub fn everywhere(time: Micros) -> Until {
        Until { all: time, ..Until::default() }
    }

    /// Of one partition, where it is known.
    pub fn known(&self, partition: Option<&str>) -> Option<Micros> {
        partition.map_or(self.unnamed, |name| self.partitions.get(name).copied())
    }

    /// Of one partition.
    pub fn of(&self, partition: Option<&str>) -> Micros {
        self.known(partition).unwrap_or(self.all)
    }

    /// All partitions.
    pub fn each(&self) -> impl Iterator<Item = (Option<&str>, Micros)> {
        let named = self.partitions.iter().map(|(name, closed)| (Some(name.as_str()), *closed));
        named.chain(self.unnamed.map(|closed| (None, closed)))
    }
}

/// What a plan asks.
#[derive(Debug)]
pub struct Gate(ArcSwap<Until>);

impl Default for Gate {
    fn default() -> Self {
        Gate(ArcSwap::from_pointee(Until::never()))
    }
}

impl Gate {
    /// Opens windows up to a time. What was found before what is set changes nothing: it is of an evaluation that was given up.
    pub fn set(&self, until: &Arc<Until>) {
        self.0.rcu(|present| Arc::clone(if present.found_at <= until.found_at { until } else { present }));
    }
}

/// `window_is_closed(partition, start)`.
pub fn closed_function(gate: &Arc<Gate>, span: Span) -> ScalarUDF {
    ScalarUDF::new_from_impl(Closed { gate: Arc::clone(gate), span, signature: Signature::any(2, Volatility::Stable) })
}

#[derive(Debug)]
struct Closed {
    gate: Arc<Gate>,
    span: Span,
    signature: Signature,
}

impl ScalarUDFImpl for Closed {
    fn name(&self) -> &str {
        "window_is_closed"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let until = self.gate.0.load_full();
        let (partitions, windows) = (args.args[0].to_array(args.number_rows)?, args.args[1].to_array(args.number_rows)?);
        let partitions = partitions.as_string_view();
        let closed = starts(&windows).into_iter().enumerate().map(|(row, start)| {
            let limit = match until.partitions.is_empty() || partitions.is_null(row) {
                true => until.all,
                false => until.of(Some(partitions.value(row))),
            };
            start.map(|start| self.span.end(start) <= limit)
        });
        Ok(ColumnarValue::Array(Arc::new(closed.collect::<BooleanArray>())))
    }
}

impl PartialEq for Closed {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.gate, &other.gate) && self.span == other.span
    }
}

impl Eq for Closed {}

impl Hash for Closed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.gate).hash(state);
    }
}
