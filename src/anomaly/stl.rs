//! STL: seasonal-trend decomposition by loess.
//!
//! Cleveland, Cleveland, McRae and Terpenning, *STL: A Seasonal-Trend Decomposition Procedure Based on Loess*, Journal of Official
//! Statistics 6 (1990). The same numbers as statsmodels' `STL(x, period, seasonal=s, seasonal_deg=d).fit()`: every
//! point fitted (jumps of 1), five passes.
//!
//! A [`Stl`] holds what depends on the length alone and serves all series of that length.

use super::Decomposition;
use super::loess::{Cycles, Loess};
use super::moving;

/// Passes over season and trend.
const PASSES: usize = 5;
/// How the season is smoothed from cycle to cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Season {
    /// Cycles of a window, odd, at least 7.
    pub cycles: usize,
    /// By local lines, as in statsmodels by default, or by local means (`seasonal_deg=0`).
    pub lines: bool,
}

impl Season {
    /// Unless something else is asked for. A line through few cycles follows its first and last ones so closely that an anomaly there is
    /// taken for season, and that another week looks wrong in its place.
    pub const DEFAULT: Season = Season { cycles: 35, lines: false };

    /// Local lines over so many cycles.
    pub const fn lines(cycles: usize) -> Season {
        Season { cycles, lines: true }
    }
}

/// STL for series of one length and period.
#[derive(Clone, Debug)]
pub struct Stl {
    points: usize,
    period: usize,
    trend: Loess,
    low_pass: Loess,
    /// Smoothers of the phases that have one cycle more, and of the others.
    cycles: [Cycles; 2],
}

impl Stl {
    /// For series of at least two periods. `None` when the series are shorter or `period` is below 2.
    pub fn new(points: usize, period: usize, season: Season) -> Option<Self> {
        if period < 2 || points < period.checked_mul(2)? {
            return None;
        }
        let whole = points / period;
        Some(Self {
            points,
            period,
            trend: Loess::new(points, trend_span(period, season.cycles)),
            low_pass: Loess::new(points, odd(period + 1)),
            cycles: [Cycles::new(whole + 1, season.cycles, season.lines), Cycles::new(whole, season.cycles, season.lines)],
        })
    }

    /// Length and period that it was made for.
    pub fn shape(&self) -> (usize, usize) {
        (self.points, self.period)
    }

    /// See [`Cycles::noise`].
    pub fn noise(&self) -> (f64, f64) {
        self.cycles[1].noise()
    }

    /// Decomposes a series of that length.
    pub fn decompose(&self, values: &[f64]) -> Decomposition {
        let mut trend = vec![0.0; self.points];
        let mut seasonal = vec![0.0; self.points];
        let mut rest = vec![0.0; self.points];
        let mut cycles = vec![0.0; self.points + 2 * self.period];
        let mut low = vec![0.0; self.points];
        for _ in 0..PASSES {
            subtract(values, &trend, &mut rest);
            self.smooth_cycles(&rest, &mut cycles);
            let filtered = moving::means(&moving::means(&moving::means(&cycles, self.period), self.period), 3);
            self.low_pass.smooth(&filtered, &mut low);
            subtract(&cycles[self.period..], &low, &mut seasonal);
            subtract(values, &seasonal, &mut rest);
            self.trend.smooth(&rest, &mut trend);
        }
        let residual = values.iter().zip(&trend).zip(&seasonal).map(|((value, trend), seasonal)| value - trend - seasonal).collect();
        Decomposition { trend, seasonal, residual }
    }

    /// The smoothed cycle-subseries, from one period before the series to one after it.
    fn smooth_cycles(&self, rest: &[f64], cycles: &mut [f64]) {
        let longer = self.points % self.period;
        let [more, fewer] = &self.cycles;
        more.smooth(rest, self.period, longer, cycles);
        fewer.smooth(&rest[longer..], self.period, self.period - longer, &mut cycles[longer..]);
    }
}

/// Points of the trend's smoother: the smallest odd number from 1.5 periods / (1 - 1.5 / seasonal) on.
fn trend_span(period: usize, seasonal: usize) -> usize {
    odd((1.5 * period as f64 / (1.0 - 1.5 / seasonal as f64)).ceil() as usize)
}

fn odd(number: usize) -> usize {
    number | 1
}

fn subtract(left: &[f64], right: &[f64], difference: &mut [f64]) {
    for ((slot, left), right) in difference.iter_mut().zip(left).zip(right) {
        *slot = left - right;
    }
}
