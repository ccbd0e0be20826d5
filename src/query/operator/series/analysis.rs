//! What is computed of one series, and the columns that it gives.

use std::fmt;

use arrow::datatypes::DataType;

use crate::anomaly::decompose::{Judge, Method, Settings, Unjudged};
use crate::anomaly::forecast;
use crate::anomaly::grid::{Filled, Step};
use crate::anomaly::judge::{Sigma, severity};
use crate::anomaly::mstl::Mstl;
use crate::anomaly::period::{self, NotFound};
use crate::anomaly::stl::Season;
use crate::error::{Error, SqlState};
use crate::types::zone::Zone;

/// How a season that is to go on is smoothed: what it has grown by lately, it goes on growing by.
const SEASON: Season = Season::lines(35);
/// Fewest points that are forecast from.
const FORECAST_POINTS_MIN: usize = 3;

/// What is computed of each series.
#[derive(Clone, Debug, PartialEq)]
pub enum Analysis {
    /// Decomposition and judgement of every point.
    Anomalies(Settings),
    /// Points to come.
    Forecast(Horizon),
}

/// How far is forecast.
#[derive(Clone, Debug, PartialEq)]
pub struct Horizon {
    /// Lengths of the seasons, rising; empty when they are to be found.
    pub periods: Vec<usize>,
    /// Steps.
    pub steps: usize,
    /// Probability that a value lies in its interval, between 0 and 1.
    pub level: f64,
}

impl Analysis {
    /// The columns after the time.
    pub fn columns(&self) -> Vec<(&'static str, DataType)> {
        let numbers: &[&str] = match self {
            Analysis::Anomalies(_) => &["actual", "expected", "trend", "seasonal", "residual", "severity"],
            Analysis::Forecast(_) => &["forecast", "lower", "upper"],
        };
        let mut columns: Vec<_> = numbers.iter().map(|name| (*name, DataType::Float64)).collect();
        if matches!(self, Analysis::Anomalies(_)) {
            columns.push(("is_anomaly", DataType::Boolean));
        }
        columns
    }

    /// Something that computes it, series after series.
    pub fn worker(&self) -> Worker {
        match self {
            Analysis::Anomalies(settings) => Worker::Anomalies(Box::new(Judge::new(settings.clone()))),
            Analysis::Forecast(horizon) => Worker::Forecast(horizon.clone(), None),
        }
    }
}

impl fmt::Display for Analysis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let periods = |periods: &[usize]| match periods {
            [] => "detected".to_owned(),
            given => given.iter().map(usize::to_string).collect::<Vec<_>>().join("+"),
        };
        match self {
            Analysis::Anomalies(settings) => {
                let method = match settings.method {
                    Method::Stl => "stl",
                    Method::Classical => "classical",
                    Method::Mstl => "mstl",
                };
                let sigma = match settings.sigma {
                    Sigma::Mad => "mad",
                    Sigma::Stddev => "stddev",
                };
                write!(f, "method={method}, period={}, sensitivity={}", periods(&settings.periods), settings.sensitivity)?;
                let by = if settings.season.lines { "lines" } else { "means" };
                write!(f, ", sigma={sigma}, seasonal={} {by}, robust={}", settings.season.cycles, settings.robust)
            }
            Analysis::Forecast(horizon) => {
                write!(f, "period={}, horizon={}, level={}", periods(&horizon.periods), horizon.steps, horizon.level)
            }
        }
    }
}

/// Rows of one series: times, the number columns (NaN is NULL), flags where there is a flag column.
#[derive(Debug, Default)]
pub struct Rows {
    /// One a row.
    pub times: Vec<i64>,
    /// One a column.
    pub numbers: Vec<Vec<f64>>,
    /// Of the last column.
    pub flags: Vec<bool>,
}

/// Computes series after series, keeping what those of one length share.
#[derive(Debug)]
pub enum Worker {
    /// See [`Analysis::Anomalies`].
    Anomalies(Box<Judge>),
    /// See [`Analysis::Forecast`], with the seasons of the last length.
    Forecast(Horizon, Option<(usize, Vec<usize>, Mstl)>),
}

impl Worker {
    /// The rows of a series, or why it cannot be judged. `step` is none for a series of one point.
    pub fn compute(&mut self, series: Filled, step: Option<Step>, zone: Zone) -> Result<Rows, Unjudged> {
        match self {
            Worker::Anomalies(judge) => {
                let judged = judge.judge(&series.values)?;
                let parts = judged.parts;
                let severities: Vec<f64> = parts.residual.iter().map(|residual| severity(*residual, judged.threshold)).collect();
                let expected = parts.trend.iter().zip(&parts.seasonal).map(|(trend, seasonal)| trend + seasonal).collect();
                Ok(Rows {
                    times: series.times,
                    // Where nothing is expected, nothing is an anomaly.
                    flags: severities.iter().map(|severity| *severity > 1.0).collect(),
                    numbers: vec![series.values, expected, parts.trend, parts.seasonal, parts.residual, severities],
                })
            }
            Worker::Forecast(horizon, kept) => {
                let values = &series.values;
                let (Some(step), Some(last)) = (step, series.times.last().copied()) else {
                    return Err(Unjudged::TooShort { needed: FORECAST_POINTS_MIN, period: 0 });
                };
                if values.len() < FORECAST_POINTS_MIN {
                    return Err(Unjudged::TooShort { needed: FORECAST_POINTS_MIN, period: 0 });
                }
                // A series without a season has a forecast as well.
                let periods = match horizon.periods.as_slice() {
                    [] => period::detect_all(values).unwrap_or_default(),
                    given => given.to_vec(),
                };
                let same = |(points, known, _): &(usize, Vec<usize>, Mstl)| *points == values.len() && *known == periods;
                if let Some(longest) = periods.last()
                    && !kept.as_ref().is_some_and(same)
                {
                    let short = Unjudged::TooShort { needed: longest.saturating_mul(2), period: *longest };
                    *kept = Some((values.len(), periods.clone(), Mstl::new(values.len(), &periods, SEASON).ok_or(short)?));
                }
                let seasons = kept.as_ref().filter(|_| !periods.is_empty()).map(|(_, _, mstl)| mstl);
                let forecast = forecast::forecast(values, seasons, horizon.steps, horizon.level);
                let times = (1..=horizon.steps).map(|count| i64::try_from(count).ok().and_then(|count| step.after(last, count, zone)));
                // What would lie beyond the calendar is not forecast.
                let times: Vec<i64> = times.map_while(|time| time).collect();
                let cut = |mut numbers: Vec<f64>| {
                    numbers.truncate(times.len());
                    numbers
                };
                let numbers = vec![cut(forecast.mean), cut(forecast.lower), cut(forecast.upper)];
                Ok(Rows { times, numbers, flags: Vec::new() })
            }
        }
    }

    /// The rows of a series that cannot be judged: what it is, without judgement. A forecast has none.
    pub fn unjudged(&self, series: Filled) -> Rows {
        match self {
            Worker::Anomalies(_) => {
                let unknown = || vec![f64::NAN; series.values.len()];
                let mut numbers: Vec<Vec<f64>> = (0..5).map(|_| unknown()).collect();
                let flags = vec![false; series.values.len()];
                numbers.insert(0, series.values);
                Rows { times: series.times, numbers, flags }
            }
            Worker::Forecast(..) => Rows { numbers: vec![Vec::new(); 3], ..Rows::default() },
        }
    }
}

/// 22023: why no series could be judged. `points` is the length of the one that `reason` is about.
pub fn failure(operator: &str, reason: Unjudged, points: usize) -> Error {
    let error = |message: String| Error::new(SqlState::INVALID_PARAMETER_VALUE, message);
    match reason {
        Unjudged::TooShort { needed, period: 0 } => {
            error(format!("{operator} needs at least {needed} points, the series has {points}")).hint("Read a longer time.")
        }
        Unjudged::TooShort { needed, period } => {
            error(format!("{operator} needs two periods of {period} points, {needed} in all, the series has {points}"))
                .hint("Read a longer time, or give a shorter period := N.")
        }
        Unjudged::NoPeriod(reason) => error("no period could be detected".to_owned())
            .detail(match reason {
                NotFound::TooShort => {
                    format!("The series has {points} points, at least {} are needed to look for one.", period::POINTS_MIN)
                }
                NotFound::Constant => "The values of the series do not vary but for a trend.".to_owned(),
                NotFound::Weak(None) => "The autocorrelation of the series has no peak.".to_owned(),
                NotFound::Weak(Some((lag, correlation))) => format!(
                    "The best candidate is {lag} points, with an autocorrelation of {correlation:.2}; at least {:.2} is needed.",
                    period::correlation_min(points)
                ),
            })
            .hint("Give the number of points after which the series repeats itself, such as period := 24 for hours of a day."),
    }
}
