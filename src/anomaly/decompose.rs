//! One series through the chosen method, judged.
//!
//! *Place*: the operator ANOMALIES holds one [`Judge`] a stream; it keeps what series of the same length share.
//!
//! A robust decomposition puts what would have been in the place of the anomalies and repeats itself ([`super::replace`]).

use super::judge::{self, Sigma};
use super::mstl::Mstl;
use super::period::{self, NotFound};
use super::replace::Replaced;
use super::stl::{Season, Stl};
use super::{Decomposition, classical};

/// How often a robust decomposition is repeated at most.
const REFITS_MAX: usize = 20;

/// How a series is taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// [`super::stl`].
    Stl,
    /// [`super::classical`].
    Classical,
    /// [`super::mstl`].
    Mstl,
}

/// What the series of a query are judged by.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// How a series is taken apart.
    pub method: Method,
    /// Lengths of the seasons, rising, at least 2; empty when they are to be found.
    pub periods: Vec<usize>,
    /// How the season is smoothed (not for `Classical`).
    pub season: Season,
    /// Whether anomalies are kept out of trend and season (not for `Classical`).
    pub robust: bool,
    /// What spread is measured by.
    pub sigma: Sigma,
    /// Spreads beyond which a residual is an anomaly, above 0.
    pub sensitivity: f64,
}

/// Why a series cannot be judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unjudged {
    /// It needs so many points for the given period.
    TooShort {
        /// Points needed: two periods.
        needed: usize,
        /// The period.
        period: usize,
    },
    /// No period was given and none was found.
    NoPeriod(NotFound),
}

/// A series taken apart, with the threshold of its residuals.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Its parts.
    pub parts: Decomposition,
    /// A larger residual is an anomaly; 0 when the residuals have no spread.
    pub threshold: f64,
}

/// Judges series after series.
#[derive(Debug)]
pub struct Judge {
    settings: Settings,
    kept: Kept,
}

/// What the last series and the next one share when they are of the same length.
#[derive(Debug, Default)]
struct Kept {
    stl: Option<Stl>,
    mstl: Option<(usize, Vec<usize>, Mstl)>,
}

impl Judge {
    /// A judge without anything kept yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings, kept: Kept::default() }
    }

    /// Takes a series apart and measures its residuals.
    pub fn judge(&mut self, values: &[f64]) -> Result<Judged, Unjudged> {
        let periods = match self.settings.periods.as_slice() {
            [] if self.settings.method == Method::Mstl => period::detect_all(values).map_err(Unjudged::NoPeriod)?,
            [] => vec![period::detect(values).map_err(Unjudged::NoPeriod)?],
            given => given.to_vec(),
        };
        let longest = periods.last().copied().unwrap_or_default();
        let short = Unjudged::TooShort { needed: longest.saturating_mul(2), period: longest };
        let scale = values.iter().fold(0.0_f64, |scale, value| scale.max(value.abs()));
        let threshold = |parts: &Decomposition| self.settings.sensitivity * judge::spread(&parts.residual, self.settings.sigma, scale);
        let refits = if self.settings.robust && self.settings.method != Method::Classical { REFITS_MAX } else { 0 };
        let mut parts = self.kept.parts(&self.settings, values, &periods).ok_or(short)?;
        let mut limit = threshold(&parts);
        let mut replaced = Replaced::new(values, longest);
        for _ in 0..refits {
            if !replaced.next(&parts, limit) {
                break;
            }
            parts = self.kept.parts(&self.settings, &replaced.values, &periods).ok_or(short)?;
            for (index, residual) in parts.residual.iter_mut().enumerate() {
                *residual = values[index] - parts.trend[index] - parts.seasonal[index];
            }
            limit = threshold(&parts);
        }
        Ok(Judged { parts, threshold: limit })
    }
}

impl Kept {
    fn parts(&mut self, settings: &Settings, values: &[f64], periods: &[usize]) -> Option<Decomposition> {
        let longest = periods.last().copied()?;
        match settings.method {
            Method::Classical => classical::decompose(values, longest),
            Method::Stl => {
                let kept = self.stl.take().filter(|stl| stl.shape() == (values.len(), longest));
                let stl = match kept {
                    Some(stl) => stl,
                    None => Stl::new(values.len(), longest, settings.season)?,
                };
                Some(self.stl.insert(stl).decompose(values))
            }
            Method::Mstl => {
                let kept = self.mstl.take().filter(|(points, known, _)| *points == values.len() && known == periods);
                let kept = match kept {
                    Some(kept) => kept,
                    None => (values.len(), periods.to_vec(), Mstl::new(values.len(), periods, settings.season)?),
                };
                Some(self.mstl.insert(kept).2.decompose(values))
            }
        }
    }
}
