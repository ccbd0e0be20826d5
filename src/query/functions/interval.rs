//! Intervals as PostgreSQL orders and sums them: a month is 30 days and a day 24 hours where two are compared.
//!
//! *Place*: `query::typing::intervals` puts [`key`] around intervals that are compared, sorted or grouped, and takes [`sum`] and
//! [`average`] for the aggregates.

use std::hash::{Hash, Hasher};
use std::mem::size_of_val;
use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, AsArray, Decimal128Array};
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, ReversedUDAF, ScalarUDF, Signature, Volatility};

use super::{Function, last_step, undefined};
use crate::error::{Error, SqlState};

const DAY_US: i128 = 86_400_000_000;
const MONTH_DAYS: i128 = 30;

/// The one Arrow type of intervals.
pub const TYPE: DataType = DataType::Interval(IntervalUnit::MonthDayNano);

/// The functions.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    vec![
        key().udf(),
        Function::new("justify_days", one("justify_days"), |args, _| mapped(args, |value| carry(value, false, true))).udf(),
        Function::new("justify_hours", one("justify_hours"), |args, _| mapped(args, |value| carry(value, true, false))).udf(),
        Function::new("justify_interval", one("justify_interval"), |args, _| mapped(args, |value| carry(value, true, true))).udf(),
    ]
}

/// What an interval is compared by: its microseconds, as a numeric.
pub fn key() -> Function {
    Function::new(
        "interval_key",
        |types| match types {
            [DataType::Interval(_)] => Ok((vec![TYPE], DataType::Decimal128(38, 0))),
            _ => Err(undefined("interval_key", types)),
        },
        |args, result| {
            let values = args[0].as_primitive::<IntervalMonthDayNanoType>();
            let keys: Decimal128Array = values.iter().map(|value| value.map(microseconds)).collect();
            Ok(Arc::new(keys.with_data_type(result.clone())) as ArrayRef)
        },
    )
}

/// Its length as PostgreSQL compares it: a month is 30 days, a day 24 hours.
pub fn microseconds(value: IntervalMonthDayNano) -> i128 {
    (i128::from(value.months) * MONTH_DAYS + i128::from(value.days)) * DAY_US + i128::from(value.nanoseconds / 1_000)
}

fn one(name: &'static str) -> fn(&[DataType]) -> Result<super::Typed, Error> {
    match name {
        "justify_days" => |types| of_interval("justify_days", types),
        "justify_hours" => |types| of_interval("justify_hours", types),
        _ => |types| of_interval("justify_interval", types),
    }
}

fn of_interval(name: &str, types: &[DataType]) -> Result<super::Typed, Error> {
    match types {
        [DataType::Interval(_)] => Ok((vec![TYPE], TYPE)),
        _ => Err(undefined(name, types)),
    }
}

fn mapped(args: &[ArrayRef], function: fn(IntervalMonthDayNano) -> Option<IntervalMonthDayNano>) -> Result<ArrayRef, Error> {
    let values = args[0].as_primitive::<IntervalMonthDayNanoType>();
    let values = values.try_unary::<_, IntervalMonthDayNanoType, Error>(|value| function(value).ok_or_else(out_of_range))?;
    Ok(Arc::new(values))
}

/// Whole days of the time into days, whole months of the days into months, all of one sign where both are carried.
fn carry(value: IntervalMonthDayNano, hours: bool, days: bool) -> Option<IntervalMonthDayNano> {
    const DAY_NS: i64 = 86_400_000_000_000;
    const MONTH: i32 = 30;
    let (mut months, mut day, mut time) = (value.months, value.days, value.nanoseconds);
    if hours {
        day = day.checked_add(i32::try_from(time / DAY_NS).ok()?)?;
        time %= DAY_NS;
    }
    if days {
        months = months.checked_add(day / MONTH)?;
        day %= MONTH;
    }
    if days && ((months > 0 && (day < 0 || (day == 0 && time < 0))) || (months < 0 && (day > 0 || (day == 0 && time > 0)))) {
        let sign = months.signum();
        months -= sign;
        day += sign * MONTH;
    }
    if hours && ((day > 0 && time < 0) || (day < 0 && time > 0)) {
        let sign = day.signum();
        day -= sign;
        time += i64::from(sign) * DAY_NS;
    }
    Some(IntervalMonthDayNano::new(months, day, time))
}

fn out_of_range() -> Error {
    Error::new(SqlState::DATETIME_FIELD_OVERFLOW, "interval out of range")
}

/// `sum(interval)`.
pub fn sum() -> Arc<AggregateUDF> {
    static SUM: LazyLock<Arc<AggregateUDF>> = LazyLock::new(|| Arc::new(AggregateUDF::new_from_impl(Total::new("sum"))));
    Arc::clone(&SUM)
}

/// `avg(interval)`.
pub fn average() -> Arc<AggregateUDF> {
    static AVERAGE: LazyLock<Arc<AggregateUDF>> = LazyLock::new(|| Arc::new(AggregateUDF::new_from_impl(Total::new("avg"))));
    Arc::clone(&AVERAGE)
}

/// `avg` as the SQL planner meets it, of intervals as well: `query::typing` puts the one or the other in its place.
pub fn untyped_average() -> Arc<AggregateUDF> {
    Arc::new(AggregateUDF::new_from_impl(Average { signature: Signature::any(1, Volatility::Immutable) }))
}

/// The average of numbers in place of [`untyped_average`]; any other aggregate as it is.
pub fn real(function: Arc<AggregateUDF>) -> Arc<AggregateUDF> {
    match function.inner().downcast_ref::<Average>() {
        Some(_) => last_step::average(),
        None => function,
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Average {
    signature: Signature,
}

impl AggregateUDFImpl for Average {
    fn name(&self) -> &str {
        "avg"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types {
            [DataType::Interval(_)] => Ok(TYPE),
            [decimal @ DataType::Decimal128(_, _)] => last_step::average().return_type(std::slice::from_ref(decimal)),
            [number] if number.is_numeric() || number.is_null() => Ok(DataType::Float64),
            _ => Err(undefined("avg", types).into()),
        }
    }

    fn accumulator(&self, _args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Err(Error::internal("an average was not typed").into())
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Total {
    name: &'static str,
    signature: Signature,
}

impl Total {
    fn new(name: &'static str) -> Self {
        Self { name, signature: Signature::exact(vec![TYPE], Volatility::Immutable) }
    }
}

impl Hash for Total {
    fn hash<H: Hasher>(&self, state: &mut H) {
        ("interval", self.name).hash(state);
    }
}

impl AggregateUDFImpl for Total {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(TYPE)
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        if args.is_distinct {
            return Err(Error::unsupported(format!("{}(DISTINCT interval) is not supported", self.name)).into());
        }
        Ok(Box::new(Sum { average: self.name == "avg", ..Sum::default() }))
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        self.accumulator(args)
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let parts = ["count", "months", "days", "microseconds"];
        Ok(parts.iter().map(|part| Arc::new(Field::new(format!("{}[{part}]", args.name), DataType::Int64, true))).collect())
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }
}

/// Rows, months, days and microseconds so far.
#[derive(Debug, Default)]
struct Sum {
    average: bool,
    count: i64,
    parts: [i64; 3],
}

impl Sum {
    fn add(&mut self, value: IntervalMonthDayNano, sign: i64) -> Result<()> {
        let parts = [i64::from(value.months), i64::from(value.days), value.nanoseconds / 1_000];
        self.count += sign;
        self.merge(parts.map(|part| part * sign))
    }

    fn merge(&mut self, parts: [i64; 3]) -> Result<()> {
        for (sum, part) in self.parts.iter_mut().zip(parts) {
            *sum = sum.checked_add(part).ok_or_else(out_of_range)?;
        }
        Ok(())
    }

    fn each(&mut self, values: &[ArrayRef], sign: i64) -> Result<()> {
        values[0].as_primitive::<IntervalMonthDayNanoType>().iter().flatten().try_for_each(|value| self.add(value, sign))
    }

    /// Fractions of months become days of a thirtieth, those of days time, as PostgreSQL divides an interval.
    fn value(&self) -> Option<IntervalMonthDayNano> {
        let [months, days, micros] = self.parts.map(i128::from);
        let count = i128::from(if self.average { self.count } else { 1 });
        let whole_months = months / count;
        let days_us = (months % count) * MONTH_DAYS * DAY_US + days * DAY_US;
        let whole_days = days_us / count / DAY_US;
        let rest = days_us - whole_days * DAY_US * count + micros;
        let rounded = (rest * 2 + count * rest.signum()) / (count * 2);
        let nanos = i64::try_from(rounded).ok()?.checked_mul(1_000)?;
        Some(IntervalMonthDayNano::new(i32::try_from(whole_months).ok()?, i32::try_from(whole_days).ok()?, nanos))
    }
}

impl Accumulator for Sum {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.each(values, 1)
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.each(values, -1)
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let [count, months, days, micros] = [0, 1, 2, 3].map(|part: usize| states[part].as_primitive::<Int64Type>());
        for row in 0..count.len() {
            self.count += count.value(row);
            self.merge([months.value(row), days.value(row), micros.value(row)])?;
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        if self.count == 0 {
            return Ok(ScalarValue::IntervalMonthDayNano(None));
        }
        Ok(ScalarValue::IntervalMonthDayNano(Some(self.value().ok_or_else(out_of_range)?)))
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let numbers = [self.count, self.parts[0], self.parts[1], self.parts[2]];
        Ok(numbers.into_iter().map(|number| ScalarValue::Int64(Some(number))).collect())
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000_000_000;

    fn sum_of(values: &[(i32, i32, i64)], average: bool) -> IntervalMonthDayNano {
        let mut sum = Sum { average, ..Sum::default() };
        for (months, days, hours) in values {
            sum.add(IntervalMonthDayNano::new(*months, *days, hours * HOUR), 1).unwrap();
        }
        sum.value().unwrap()
    }

    #[test]
    fn a_month_is_thirty_days() {
        assert_eq!(microseconds(IntervalMonthDayNano::new(1, 0, 0)), microseconds(IntervalMonthDayNano::new(0, 30, 0)));
        assert_eq!(microseconds(IntervalMonthDayNano::new(0, 1, 0)), microseconds(IntervalMonthDayNano::new(0, 0, 24 * HOUR)));
    }

    #[test]
    fn averages_carry_down() {
        assert_eq!(sum_of(&[(1, 0, 0), (0, 0, 0)], true), IntervalMonthDayNano::new(0, 15, 0));
        assert_eq!(sum_of(&[(0, 1, 0), (0, 0, 0)], true), IntervalMonthDayNano::new(0, 0, 12 * HOUR));
        assert_eq!(sum_of(&[(0, 0, 1), (0, 0, 2)], true), IntervalMonthDayNano::new(0, 0, 3 * HOUR / 2));
        assert_eq!(sum_of(&[(1, 2, 3), (4, 5, 6)], false), IntervalMonthDayNano::new(5, 7, 9 * HOUR));
    }

    #[test]
    fn justified_parts_have_one_sign() {
        assert_eq!(carry(IntervalMonthDayNano::new(1, 0, -HOUR), true, true), Some(IntervalMonthDayNano::new(0, 29, 23 * HOUR)));
        assert_eq!(carry(IntervalMonthDayNano::new(0, 35, 0), false, true), Some(IntervalMonthDayNano::new(1, 5, 0)));
    }
}
