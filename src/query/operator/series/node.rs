//! The logical node of a computation over series.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use datafusion::common::{DFSchema, DFSchemaRef, Result};
use datafusion::logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNodeCore};

use super::Spec;
use crate::error::{Error, SqlState};

/// The name of the output's column of times.
const TIME: &str = "time";

/// Series of the input, each computed by itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Series {
    /// Keys, time, value.
    pub input: LogicalPlan,
    /// The session's time zone, by whose clocks days and months are counted.
    pub zone: Expr,
    /// The statement's time, at which windows are still open.
    pub now: Expr,
    /// What is computed.
    pub spec: Arc<Spec>,
    schema: DFSchemaRef,
}

impl Series {
    /// Over an input whose columns are keys, time and value. 42701 when a key is called like a column of the result.
    pub fn new(input: LogicalPlan, (zone, now): (Expr, Expr), spec: Arc<Spec>) -> Result<Self> {
        let schema = schema(&input, &spec)?;
        Ok(Self { input, zone, now, spec, schema })
    }
}

fn schema(input: &LogicalPlan, spec: &Spec) -> Result<DFSchemaRef> {
    let fields = input.schema().fields();
    let (Some(keys), Some(time)) = (fields.get(..spec.keys), fields.get(spec.keys)) else {
        return Err(Error::internal("a computation over series without a time").into());
    };
    let mut columns = keys.to_vec();
    columns.push(Arc::new(Field::new(TIME, time.data_type().clone(), false).with_metadata(time.metadata().clone())));
    for (name, data_type) in spec.analysis.columns() {
        columns.push(Arc::new(Field::new(name, data_type.clone(), data_type != DataType::Boolean)));
    }
    if let Some(twice) =
        columns.iter().enumerate().find(|(index, field)| columns[..*index].iter().any(|other| other.name() == field.name()))
    {
        let message = format!("column \"{}\" of the result of {} is there more than once", twice.1.name(), spec.operator);
        return Err(Error::new(SqlState::DUPLICATE_COLUMN, message)
            .hint("Give the column of partition_by another name in a subquery.")
            .into());
    }
    Ok(Arc::new(DFSchema::from_unqualified_fields(columns.into(), Default::default())?))
}

impl PartialOrd for Series {
    fn partial_cmp(&self, _: &Self) -> Option<Ordering> {
        None
    }
}

impl UserDefinedLogicalNodeCore for Series {
    fn name(&self) -> &str {
        self.spec.operator
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        vec![self.zone.clone(), self.now.clone()]
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.spec.operator, self.spec)
    }

    fn with_exprs_and_inputs(&self, mut exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        match (exprs.pop(), exprs.pop(), inputs.pop()) {
            (Some(now), Some(zone), Some(input)) => Series::new(input, (zone, now), Arc::clone(&self.spec)),
            _ => Err(Error::internal("a computation over series without its input").into()),
        }
    }
}
