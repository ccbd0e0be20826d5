//! `generate_series` in FROM: integers, bigints, timestamps.
//!
//! *Place*: planned with the types of its arguments, evaluated when the plan is run and parameters are known. Rows are
//! made batch by batch, never all at once.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, IntervalMonthDayNano, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::{ColumnarValue, Expr, ExprSchemable, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::memory::{LazyBatchGenerator, LazyMemoryExec};
use parking_lot::RwLock;

use crate::error::{Error, SqlState};
use crate::query::functions::{undefined, zone};
use crate::query::typing::{casts, operators};
use crate::types::SqlType;
use crate::types::zone::Zone;

/// Rows of one batch.
const BATCH_ROWS: usize = 8_192;

/// A bound written as a string literal has the type of the other, and a step is an interval, where one bound is a time.
pub fn typed(mut arguments: Vec<Expr>) -> Result<Vec<Expr>> {
    let empty = DFSchema::empty();
    let bounds = arguments.iter().take(2).map(|bound| bound.get_type(&empty)).collect::<Result<Vec<_>>>()?;
    let times = bounds.into_iter().find(|bound| matches!(bound, DataType::Timestamp(_, _) | DataType::Date32));
    if let Some(time) = &times {
        for bound in arguments.iter_mut().take(2) {
            *bound = operators::literal_as(bound.clone(), &SqlType::of_arrow(time))?;
        }
    }
    if matches!(times, Some(DataType::Timestamp(_, _) | DataType::Date32))
        && let Some(step @ Expr::Literal(_, None)) = arguments.get_mut(2)
        && let Expr::Literal(value, None) = &*step
        && let Some(text) = value.try_as_str().flatten()
    {
        *step = casts::constant(text, &SqlType::Interval)?;
    }
    Ok(arguments)
}

/// The schema of a call, from the types of its arguments.
pub fn schema(arguments: &[Expr]) -> Result<SchemaRef, Error> {
    let empty = DFSchema::empty();
    let mut types = Vec::with_capacity(arguments.len());
    for argument in arguments {
        types.push(argument.get_type(&empty).map_err(crate::query::error::from_datafusion)?);
    }
    let integer = |data_type: &DataType| data_type.is_integer() || matches!(data_type, DataType::Null);
    let item = match types.as_slice() {
        [_, _] | [_, _, _] if types.iter().all(integer) => {
            match types.iter().any(|data_type| matches!(data_type, DataType::Int64 | DataType::UInt64 | DataType::UInt32)) {
                true => DataType::Int64,
                false => DataType::Int32,
            }
        }
        [DataType::Timestamp(_, None), DataType::Timestamp(_, _), DataType::Interval(_)] => SqlType::Timestamp.arrow(),
        [DataType::Timestamp(_, Some(_)), DataType::Timestamp(_, _), DataType::Interval(_)] => SqlType::Timestamptz.arrow(),
        [DataType::Date32, DataType::Date32, DataType::Interval(_)] => SqlType::Timestamptz.arrow(),
        _ => return Err(undefined("generate_series", &types)),
    };
    Ok(Arc::new(Schema::new(vec![Field::new("generate_series", item, true)])))
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Number(i64),
    Interval(IntervalMonthDayNano),
}

/// A series with its bounds.
#[derive(Debug)]
pub struct Series {
    generator: Generator,
    schema: SchemaRef,
}

impl Series {
    /// Evaluates the arguments, which are constants by now. Instants advance by the clocks of the session's zone.
    pub fn new(arguments: &[Expr], state: &SessionState, schema: SchemaRef, time_zone: &str) -> Result<Self, Error> {
        let item = schema.field(0).data_type().clone();
        let zone = if matches!(item, DataType::Timestamp(_, Some(_))) { zone::parse(time_zone)? } else { Zone::UTC };
        let values = arguments.iter().map(|argument| evaluate(argument, state)).collect::<Result<Vec<_>, _>>()?;
        let bound = |value: &ScalarValue| -> Result<Option<i64>, Error> {
            let cast = value.cast_to(&item).and_then(|value| value.cast_to(&DataType::Int64));
            match cast.map_err(crate::query::error::from_datafusion)? {
                ScalarValue::Int64(number) => Ok(number),
                _ => Err(Error::internal("a bound of generate_series is not a number")),
            }
        };
        let step = match values.get(2) {
            None => Some(Step::Number(1)),
            Some(ScalarValue::IntervalMonthDayNano(interval)) => interval.map(Step::Interval),
            Some(number) => bound(number)?.map(Step::Number),
        };
        let zero = match step {
            Some(Step::Number(number)) => number == 0,
            Some(Step::Interval(interval)) => interval.months == 0 && interval.days == 0 && interval.nanoseconds / 1_000 == 0,
            None => false,
        };
        if zero {
            return Err(Error::new(SqlState::INVALID_PARAMETER_VALUE, "step size cannot equal zero"));
        }
        let (start, stop) = match values.as_slice() {
            [start, stop, ..] => (bound(start)?, bound(stop)?),
            _ => return Err(Error::internal("generate_series without bounds")),
        };
        let generator = match (start, stop, step) {
            (Some(start), Some(stop), Some(step)) => {
                Generator { schema: Arc::clone(&schema), start, next: Some(start), index: 0, stop, step, zone }
            }
            // A NULL argument gives no rows.
            _ => Generator { schema: Arc::clone(&schema), start: 0, next: None, index: 0, stop: 0, step: Step::Number(1), zone },
        };
        Ok(Self { generator, schema })
    }
}

fn evaluate(argument: &Expr, state: &SessionState) -> Result<ScalarValue, Error> {
    let schema = DFSchema::empty();
    let value = state
        .create_physical_expr(argument.clone(), &schema)
        .and_then(|expression| expression.evaluate(&RecordBatch::new_empty(Arc::new(Schema::empty()))))
        .map_err(crate::query::error::from_datafusion)?;
    match value {
        ColumnarValue::Scalar(value) => Ok(value),
        ColumnarValue::Array(array) if !array.is_empty() => {
            ScalarValue::try_from_array(&array, 0).map_err(crate::query::error::from_datafusion)
        }
        ColumnarValue::Array(_) => Err(Error::unsupported("an argument of generate_series is not a constant")),
    }
}

#[async_trait]
impl TableProvider for Series {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Temporary
    }

    async fn scan(
        &self,
        _session: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let generator: Arc<RwLock<dyn LazyBatchGenerator>> = Arc::new(RwLock::new(self.generator.clone()));
        let plan = LazyMemoryExec::try_new(Arc::clone(&self.schema), vec![generator])?;
        Ok(Arc::new(plan.with_projection(projection.cloned())))
    }
}

#[derive(Clone, Debug)]
struct Generator {
    schema: SchemaRef,
    start: i64,
    next: Option<i64>,
    index: i32,
    stop: i64,
    step: Step,
    /// Whose days and months are counted.
    zone: Zone,
}

impl fmt::Display for Generator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generate_series: start={}, stop={}", self.start, self.stop)
    }
}

impl Generator {
    fn rises(&self) -> bool {
        match self.step {
            Step::Number(number) => number > 0,
            Step::Interval(interval) => interval.months > 0 || interval.days > 0 || interval.nanoseconds > 0,
        }
    }

    /// The value after `value`; months and days are counted from the start, so that the 31st comes back after a short month, and an
    /// hour that the clocks skipped after its day.
    fn after(&mut self, value: i64) -> Option<i64> {
        self.index = self.index.checked_add(1)?;
        match self.step {
            Step::Number(number) => value.checked_add(number),
            Step::Interval(interval) => zone::later(self.start, interval, self.index, self.zone),
        }
    }

    fn array(&self, values: Vec<i64>) -> Result<ArrayRef> {
        let item = self.schema.field(0).data_type();
        Ok(match item {
            DataType::Int32 => {
                let values = values.into_iter().map(|value| i32::try_from(value).unwrap_or(i32::MAX)).collect::<Vec<_>>();
                Arc::new(Int32Array::from(values))
            }
            DataType::Int64 => Arc::new(Int64Array::from(values)),
            _ => Arc::new(TimestampMicrosecondArray::from(values).with_data_type(item.clone())),
        })
    }
}

impl LazyBatchGenerator for Generator {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn generate_next_batch(&mut self) -> Result<Option<RecordBatch>> {
        let mut values = Vec::new();
        while let Some(value) = self.next {
            let past = if self.rises() { value > self.stop } else { value < self.stop };
            if past {
                self.next = None;
                break;
            }
            if values.len() == BATCH_ROWS {
                break;
            }
            values.push(value);
            self.next = self.after(value);
        }
        if values.is_empty() {
            return Ok(None);
        }
        Ok(Some(RecordBatch::try_new(Arc::clone(&self.schema), vec![self.array(values)?])?))
    }

    fn reset_state(&self) -> Arc<RwLock<dyn LazyBatchGenerator>> {
        Arc::new(RwLock::new(Generator { next: Some(self.start), index: 0, ..self.clone() }))
    }
}
