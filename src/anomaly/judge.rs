//! Which residuals are too large (the paper's equation 2).

/// What the spread of residuals is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sigma {
    /// 1.4826 medians of the distance to the median: what anomalies do not move.
    Mad,
    /// The sample's standard deviation.
    Stddev,
}

/// The median absolute deviation of normal noise, as a part of its standard deviation, inverted.
const MAD_TO_SIGMA: f64 = 1.4826;
/// The mean absolute deviation of normal noise, likewise.
const MEAN_DEVIATION_TO_SIGMA: f64 = 1.2533;
/// A spread below this part of the largest value is not noise: it is what passes and rounding leave of values that repeat themselves.
const ROUNDING: f64 = 1e-7;

/// The median, NaN of nothing. Reorders `values`, which hold no NaN.
pub fn median(values: &mut [f64]) -> f64 {
    let length = values.len();
    if length == 0 {
        return f64::NAN;
    }
    let (below, upper, _) = values.select_nth_unstable_by(length / 2, f64::total_cmp);
    let upper = *upper;
    if length % 2 == 1 {
        return upper;
    }
    let lower = below.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    f64::midpoint(lower, upper)
}

/// The spread of the residuals that are not NaN; 0 when they are all alike, as far as numbers of the size of `scale` can tell.
///
/// Where more than half of the residuals are the same, the median deviation is 0 and says nothing: the mean deviation takes its place.
pub fn spread(residuals: &[f64], sigma: Sigma, scale: f64) -> f64 {
    let mut known: Vec<f64> = residuals.iter().copied().filter(|residual| !residual.is_nan()).collect();
    let noise = |sigma: f64| if sigma > ROUNDING * scale { sigma } else { 0.0 };
    match sigma {
        Sigma::Stddev => {
            if known.len() < 2 {
                return 0.0;
            }
            let mean = known.iter().sum::<f64>() / known.len() as f64;
            let squares: f64 = known.iter().map(|residual| (residual - mean).powi(2)).sum();
            noise((squares / (known.len() - 1) as f64).sqrt())
        }
        Sigma::Mad => {
            if known.is_empty() {
                return 0.0;
            }
            let centre = median(&mut known);
            for residual in &mut known {
                *residual = (*residual - centre).abs();
            }
            let mean = known.iter().sum::<f64>() / known.len() as f64;
            let mad = noise(MAD_TO_SIGMA * median(&mut known));
            if mad > 0.0 { mad } else { noise(MEAN_DEVIATION_TO_SIGMA * mean) }
        }
    }
}

/// Size of a residual in thresholds; more than 1 is an anomaly. 0 where there is no spread.
pub fn severity(residual: f64, threshold: f64) -> f64 {
    if threshold > 0.0 || residual.is_nan() { residual.abs() / threshold } else { 0.0 }
}
