//! MSTL: STL for several periods at once.
//!
//! Bandara, Hyndman and Bergmeir, *MSTL: A Seasonal-Trend Decomposition Algorithm for Time Series with Multiple Seasonal Patterns*
//! (2021). The same numbers as statsmodels' `MSTL(x, periods, windows=(s, s + 4, ...)).fit()`: the shorter period first, each with a seasonal
//! smoother of four more cycles, two rounds.

use super::Decomposition;
use super::stl::{Season, Stl};

/// Rounds over the periods, when there are several.
const ROUNDS: usize = 2;

/// MSTL for series of one length.
#[derive(Clone, Debug)]
pub struct Mstl {
    periods: Vec<Stl>,
}

impl Mstl {
    /// For series of at least two of the longest period; `periods` rise; `season` is for the shortest. `None` when the series are shorter or there is no period.
    pub fn new(points: usize, periods: &[usize], season: Season) -> Option<Self> {
        let periods: Vec<Stl> = periods
            .iter()
            .enumerate()
            .map(|(index, period)| Stl::new(points, *period, Season { cycles: season.cycles + 4 * index, ..season }))
            .collect::<Option<_>>()?;
        if periods.is_empty() { None } else { Some(Self { periods }) }
    }

    /// Lengths of the seasons.
    pub fn periods(&self) -> Vec<usize> {
        self.periods.iter().map(|stl| stl.shape().1).collect()
    }

    /// What smoothing makes of noise of variance 1: the variance of what it leaves, and that of the last values of all seasons.
    pub fn noise(&self) -> (f64, f64) {
        let each = self.periods.iter().map(Stl::noise);
        each.fold((1.0, 0.0), |(left, last), (next_left, next_last)| (left * next_left, last + next_last))
    }

    /// Decomposes a series of that length. The seasons are added up.
    pub fn decompose(&self, values: &[f64]) -> Decomposition {
        let (seasons, trend) = self.take_apart(values);
        let mut seasonal = vec![0.0; values.len()];
        for season in &seasons {
            for (sum, season) in seasonal.iter_mut().zip(season) {
                *sum += season;
            }
        }
        let residual = values.iter().zip(&trend).zip(&seasonal).map(|((value, trend), seasonal)| value - trend - seasonal).collect();
        Decomposition { trend, seasonal, residual }
    }

    /// The seasons of a series of that length, each for itself.
    pub fn seasons(&self, values: &[f64]) -> Vec<Vec<f64>> {
        self.take_apart(values).0
    }

    fn take_apart(&self, values: &[f64]) -> (Vec<Vec<f64>>, Vec<f64>) {
        let mut rest = values.to_vec();
        let mut seasons: Vec<Vec<f64>> = vec![vec![0.0; values.len()]; self.periods.len()];
        let mut trend = Vec::new();
        let rounds = if self.periods.len() == 1 { 1 } else { ROUNDS };
        for _ in 0..rounds {
            for (stl, season) in self.periods.iter().zip(&mut seasons) {
                for (rest, season) in rest.iter_mut().zip(season.iter()) {
                    *rest += season;
                }
                let part = stl.decompose(&rest);
                *season = part.seasonal;
                for (rest, season) in rest.iter_mut().zip(season.iter()) {
                    *rest -= season;
                }
                trend = part.trend;
            }
        }
        (seasons, trend)
    }
}
