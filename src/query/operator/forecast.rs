//! `FORECAST(input, time := ..., value := ..., ...)`: the points to come, with prediction intervals.
//!
//! Seasons by MSTL go on as they last were, the rest by exponential smoothing. The arithmetic is [`crate::anomaly::forecast`]'s.

use datafusion::common::Result;
use datafusion::logical_expr::LogicalPlan;

use super::series::analysis::Horizon;
use super::series::{Analysis, lower};
use super::{Argument, Call, Operator};

/// Steps that are forecast at most.
const HORIZON_MAX: i64 = 100_000;
/// Steps unless something else is asked for: a day of hours.
const HORIZON: usize = 24;
/// Probability of an interval unless something else is asked for.
const LEVEL: f64 = 0.95;

/// The operator.
#[derive(Debug)]
pub struct Forecast;

impl Operator for Forecast {
    fn name(&self) -> &'static str {
        "FORECAST"
    }

    fn arguments(&self) -> &'static [Argument] {
        const ARGUMENTS: &[Argument] = &[
            lower::TIME,
            lower::VALUE,
            lower::PARTITION_BY,
            lower::PERIOD,
            Argument::optional("horizon"),
            Argument::optional("level"),
            lower::FILL,
        ];
        ARGUMENTS
    }

    fn example(&self) -> &'static str {
        "FORECAST((SELECT window_start, count(*) AS orders FROM mv_orders_by_hour GROUP BY 1), time := window_start, value := orders, horizon := 24)"
    }

    fn plan(&self, call: Call<'_>) -> Result<LogicalPlan> {
        let periods = lower::periods(&call)?;
        let steps = call.integer("horizon", 1..=HORIZON_MAX)?.and_then(|steps| usize::try_from(steps).ok()).unwrap_or(HORIZON);
        let level = call.number("level")?.unwrap_or(LEVEL);
        if level <= 0.0 || level >= 1.0 {
            return Err(call.wrong("level", format!("must be between 0 and 1, not {level}")).into());
        }
        lower::lower(call, self.name(), Analysis::Forecast(Horizon { periods, steps, level }))
    }
}
