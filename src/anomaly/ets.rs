//! Exponential smoothing without a season: a level; a level and a trend; a level and a trend that fades.
//!
//! The models ETS(A,N,N), ETS(A,A,N) and ETS(A,Ad,N) of Hyndman, Koehler, Ord and Snyder, *Forecasting with Exponential Smoothing*
//! (2008): parameters by least squares of the one-step errors, the model by the corrected information criterion of Akaike.

/// Points that the first level and trend are taken from.
const START_POINTS: usize = 10;
/// Steps of the search for parameters; it ends earlier when it stands still.
const SEARCH_STEPS_MAX: usize = 200;
/// Errors that differ by less (as a part) are the same to the search.
const SEARCH_TOLERANCE: f64 = 1e-8;
/// Bounds of the factor by which a trend fades.
const FADE: (f64, f64) = (0.8, 0.98);

/// Which states a model has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Level.
    Level,
    /// Level and trend.
    Trend,
    /// Level and a trend that fades.
    Damped,
}

/// A fitted model, at the end of its series.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    /// Its states.
    pub kind: Kind,
    alpha: f64,
    beta: f64,
    fade: f64,
    level: f64,
    trend: f64,
    /// Variance of a one-step error.
    pub variance: f64,
}

impl Model {
    /// The model that explains a series best. A short series has a level only.
    pub fn fit(values: &[f64]) -> Model {
        let kinds: &[Kind] = if values.len() < START_POINTS { &[Kind::Level] } else { &[Kind::Level, Kind::Trend, Kind::Damped] };
        let mut best: Option<(f64, Model)> = None;
        for kind in kinds {
            let (criterion, model) = fit_kind(values, *kind);
            if best.is_none_or(|(known, _)| criterion < known) {
                best = Some((criterion, model));
            }
        }
        match best {
            Some((_, model)) => model,
            None => start(values, Kind::Level),
        }
    }

    /// The value expected `steps` (from 1) after the end of the series.
    pub fn mean(&self, steps: usize) -> f64 {
        self.level + self.trend * self.reach(steps)
    }

    /// Variance of the value `steps` (from 1) after the end of the series, for each of 1 to `horizon`.
    pub fn variances(&self, horizon: usize) -> Vec<f64> {
        let mut factor = 1.0;
        (1..=horizon)
            .map(|step| {
                let variance = self.variance * factor;
                factor += (self.alpha + self.beta * self.reach(step)).powi(2);
                variance
            })
            .collect()
    }

    /// How much of the trend has come to bear after so many steps.
    fn reach(&self, steps: usize) -> f64 {
        match self.kind {
            Kind::Level => 0.0,
            Kind::Trend => steps as f64,
            Kind::Damped => self.fade * (1.0 - self.fade.powi(i32::try_from(steps).unwrap_or(i32::MAX))) / (1.0 - self.fade),
        }
    }

    /// Runs through a series; the sum of its squared one-step errors.
    fn run(&mut self, values: &[f64]) -> f64 {
        let fade = if self.kind == Kind::Damped { self.fade } else { 1.0 };
        let mut squares = 0.0;
        for value in values {
            let trend = fade * self.trend;
            let error = value - self.level - trend;
            self.level += trend + self.alpha * error;
            self.trend = trend + self.beta * error;
            squares += error * error;
        }
        squares
    }
}

/// Before the first point, with parameters at rest.
fn start(values: &[f64], kind: Kind) -> Model {
    let first = &values[..values.len().min(START_POINTS)];
    let (mut level, mut trend) = (first.iter().sum::<f64>() / first.len().max(1) as f64, 0.0);
    if kind != Kind::Level && first.len() > 1 {
        let centre = (first.len() - 1) as f64 / 2.0;
        let distance = |index: usize| index as f64 - centre;
        let products: f64 = first.iter().enumerate().map(|(index, value)| distance(index) * value).sum();
        let squares: f64 = (0..first.len()).map(|index| distance(index).powi(2)).sum();
        trend = products / squares;
        level -= trend * (centre + 1.0);
    }
    Model { kind, alpha: 0.0, beta: 0.0, fade: 1.0, level, trend, variance: 0.0 }
}

fn fit_kind(values: &[f64], kind: Kind) -> (f64, Model) {
    let start = start(values, kind);
    let with = |parameters: &[f64]| {
        let mut model = start;
        model.alpha = between(parameters[0], 1e-4, 0.9999);
        if let Some(beta) = parameters.get(1) {
            model.beta = between(*beta, 1e-4, 0.9999) * model.alpha;
        }
        if let Some(fade) = parameters.get(2) {
            model.fade = between(*fade, FADE.0, FADE.1);
        }
        model
    };
    let first: &[f64] = match kind {
        Kind::Level => &[-1.0],
        Kind::Trend => &[-1.0, -2.0],
        Kind::Damped => &[-1.0, -2.0, 1.0],
    };
    let parameters = search(first, |parameters| with(parameters).run(values));
    let mut model = with(&parameters);
    let squares = model.run(values);
    // The level's start is a parameter as well, and the trend's.
    let count = values.len() as f64;
    let free = (2 * parameters.len()) as f64 + f64::from(u8::from(kind == Kind::Level)) - f64::from(u8::from(kind == Kind::Damped));
    model.variance = squares / (count - free).max(1.0);
    let correction = if count > free + 1.0 { 2.0 * free * (free + 1.0) / (count - free - 1.0) } else { f64::INFINITY };
    (count * (squares / count).max(f64::MIN_POSITIVE).ln() + 2.0 * free + correction, model)
}

/// Any number as one between two.
fn between(free: f64, low: f64, high: f64) -> f64 {
    low + (high - low) / (1.0 + (-free).exp())
}

/// The point at which `error` is least, found by the simplex search of Nelder and Mead (1965).
fn search(first: &[f64], error: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let dimensions = first.len();
    let mut simplex: Vec<(f64, Vec<f64>)> = Vec::with_capacity(dimensions + 1);
    simplex.push((error(first), first.to_vec()));
    for dimension in 0..dimensions {
        let mut corner = first.to_vec();
        corner[dimension] += 1.5;
        simplex.push((error(&corner), corner));
    }
    for _ in 0..SEARCH_STEPS_MAX {
        simplex.sort_by(|left, right| left.0.total_cmp(&right.0));
        let (best, worst) = (simplex[0].0, simplex[dimensions].0);
        if worst - best <= SEARCH_TOLERANCE * best.abs() {
            break;
        }
        let centre: Vec<f64> = (0..dimensions)
            .map(|axis| simplex[..dimensions].iter().map(|(_, corner)| corner[axis]).sum::<f64>() / dimensions as f64)
            .collect();
        let towards = |factor: f64| {
            let corner: Vec<f64> =
                centre.iter().zip(&simplex[dimensions].1).map(|(centre, worst)| centre + factor * (worst - centre)).collect();
            (error(&corner), corner)
        };
        let reflected = towards(-1.0);
        let replacement = if reflected.0 < best {
            let expanded = towards(-2.0);
            Some(if expanded.0 < reflected.0 { expanded } else { reflected })
        } else if reflected.0 < simplex[dimensions - 1].0 {
            Some(reflected)
        } else {
            let contracted = if reflected.0 < worst { towards(-0.5) } else { towards(0.5) };
            (contracted.0 < worst.min(reflected.0)).then_some(contracted)
        };
        match replacement {
            Some(replacement) => simplex[dimensions] = replacement,
            None => {
                let (_, nearest) = simplex[0].clone();
                for (value, corner) in &mut simplex[1..] {
                    for (coordinate, nearest) in corner.iter_mut().zip(&nearest) {
                        *coordinate = f64::midpoint(*coordinate, *nearest);
                    }
                    *value = error(corner);
                }
            }
        }
    }
    simplex.sort_by(|left, right| left.0.total_cmp(&right.0));
    simplex.swap_remove(0).1
}
