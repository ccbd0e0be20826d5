//! Series by series: what ANOMALIES and FORECAST are lowered to.
//!
//! *Place*: the operators project their input to partition columns, time and value (double precision) and put a [`node::Series`] over
//! it; [`plan::Planner`] makes two physical nodes of that.
//!
//! - [`exec::Observed`] sees every time of the input as it passes, below the sort, and so learns the grid of all series together.
//! - [`exec::SeriesExec`] gets its rows hashed by the partition columns and sorted by them and time, both by DataFusion, which spills. Each of
//!   its streams holds one series at a time: fills its gaps, computes, gives rows out. So series run in parallel, one a core, in memory
//!   that is bounded by the longest series.
//!
//! *Invariants*: (1) the sort between the two is never optimized away, because [`exec::Observed`] claims no order: a series is not filled
//! before all times have been seen; (2) filters above are not pushed below, because they would change the grid and its end.

pub mod analysis;
pub mod exec;
pub mod lower;
pub mod node;
pub mod plan;
pub mod stream;
pub mod trace;

use std::fmt;
use std::hash::{Hash, Hasher};

pub use analysis::Analysis;

use crate::anomaly::grid::Fill;

/// What is done with the rows of the input.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// The operator's name, for errors and EXPLAIN.
    pub operator: &'static str,
    /// How many columns come first that tell the series apart; then come time and value.
    pub keys: usize,
    /// What stands in gaps.
    pub fill: Fill,
    /// What is computed.
    pub analysis: Analysis,
}

impl Eq for Spec {}

impl Hash for Spec {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Numbers that are not whole have no hash; equal specs have equal texts.
        self.to_string().hash(state);
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fill = format!("{:?}", self.fill).to_lowercase();
        write!(f, "{}, fill={fill}", self.analysis)
    }
}
