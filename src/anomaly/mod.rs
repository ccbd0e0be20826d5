//! Arithmetic of time series: decomposition into trend, season and residual, what a residual says, forecasts.
//!
//! *Place*: pure functions over numbers, without SQL, Arrow or I/O; `query::operator` feeds them series by series.
//!
//! *Invariants*: (1) nothing here is random, so that the same series gives the same numbers everywhere; (2) work and memory are
//! bounded by the length of a series, which the caller bounds; (3) no input makes these functions panic.

pub mod classical;
pub mod decompose;
pub mod ets;
pub mod forecast;
pub mod grid;
pub mod judge;
pub mod loess;
pub mod moving;
pub mod mstl;
pub mod period;
pub mod replace;
pub mod stl;

#[cfg(test)]
mod tests;

/// A series as the sum of three (the paper's equation 1). Each part has the length of the series; NaN where a method has no value.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decomposition {
    /// The slow part.
    pub trend: Vec<f64>,
    /// What repeats, all periods together.
    pub seasonal: Vec<f64>,
    /// What is left.
    pub residual: Vec<f64>,
}
