//! `ANOMALIES(input, time := ..., value := ..., ...)`: series taken apart and judged (the paper's section 4.4).
//!
//! y = trend + seasonal + residual; a point is an anomaly where |residual| > sensitivity * sigma. The arithmetic is [`crate::anomaly`]'s.

use datafusion::common::Result;
use datafusion::logical_expr::LogicalPlan;

use super::series::{Analysis, lower};
use super::{Argument, Call, Operator};
use crate::anomaly::decompose::{Method, Settings};
use crate::anomaly::judge::Sigma;
use crate::anomaly::stl::Season;

/// Fewest and most cycles that a season is smoothed over.
const SEASONAL_RANGE: std::ops::RangeInclusive<i64> = 7..=9_999;

/// The operator.
#[derive(Debug)]
pub struct Anomalies;

impl Operator for Anomalies {
    fn name(&self) -> &'static str {
        "ANOMALIES"
    }

    fn arguments(&self) -> &'static [Argument] {
        const ARGUMENTS: &[Argument] = &[
            lower::TIME,
            lower::VALUE,
            lower::PARTITION_BY,
            lower::PERIOD,
            Argument::optional("sensitivity"),
            Argument::optional("method"),
            lower::FILL,
            Argument::optional("sigma"),
            Argument::optional("seasonal"),
            Argument::optional("robust"),
        ];
        ARGUMENTS
    }

    fn example(&self) -> &'static str {
        "ANOMALIES((SELECT window_start, count(*) AS orders FROM mv_orders_by_hour GROUP BY 1), time := window_start, value := orders, period := 168)"
    }

    fn plan(&self, call: Call<'_>) -> Result<LogicalPlan> {
        let method = [Method::Stl, Method::Classical, Method::Mstl][call.choice("method", &["stl", "classical", "mstl"])?];
        let periods = lower::periods(&call)?;
        if periods.len() > 1 && method != Method::Mstl {
            return Err(call.wrong("period", "must be one number unless method := 'mstl'").into());
        }
        let natural = if method == Method::Classical { Sigma::Stddev } else { Sigma::Mad };
        let sigma = match call.syntax("sigma") {
            Some(_) => [Sigma::Mad, Sigma::Stddev][call.choice("sigma", &["mad", "stddev"])?],
            None => natural,
        };
        let sensitivity = call.number("sensitivity")?.unwrap_or(3.0);
        if sensitivity <= 0.0 {
            return Err(call.wrong("sensitivity", format!("must be more than 0, not {sensitivity}")).into());
        }
        let seasonal = call.integer("seasonal", SEASONAL_RANGE)?;
        if seasonal.is_some_and(|cycles| cycles % 2 == 0) {
            return Err(call.wrong("seasonal", "must be an odd number of cycles").into());
        }
        for name in ["seasonal", "robust"] {
            if method == Method::Classical && call.syntax(name).is_some() {
                return Err(call.wrong(name, "means nothing with method := 'classical'").into());
            }
        }
        let robust = call.flag("robust", method != Method::Classical)?;
        let season = seasonal.and_then(|cycles| usize::try_from(cycles).ok()).map_or(Season::DEFAULT, Season::lines);
        let settings = Settings { method, periods, season, robust, sigma, sensitivity };
        lower::lower(call, self.name(), Analysis::Anomalies(settings))
    }
}
