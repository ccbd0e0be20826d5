//! Classical additive decomposition: a centred moving average, then the mean of each phase.
//!
//! The same numbers as statsmodels' `seasonal_decompose(x, model="additive", period=p)`. There is no trend, and so no residual,
//! for half a period at each end.

use super::{Decomposition, moving};

/// Decomposes a series of at least two periods; `None` when it is shorter or `period` is below 2.
pub fn decompose(values: &[f64], period: usize) -> Option<Decomposition> {
    let length = values.len();
    if period < 2 || length < period.checked_mul(2)? {
        return None;
    }
    let trend = trend(values, period);
    let mut phases = Vec::with_capacity(period);
    for phase in 0..period {
        let (mut sum, mut count) = (0.0, 0_u32);
        for index in (phase..length).step_by(period).filter(|index| !trend[*index].is_nan()) {
            sum += values[index] - trend[index];
            count += 1;
        }
        phases.push(sum / f64::from(count));
    }
    let centre = phases.iter().sum::<f64>() / period as f64;
    let seasonal: Vec<f64> = (0..length).map(|index| phases[index % period] - centre).collect();
    let residual = values.iter().zip(&trend).zip(&seasonal).map(|((value, trend), seasonal)| value - trend - seasonal).collect();
    Some(Decomposition { trend, seasonal, residual })
}

/// The centred moving average; that of an even period is the mean of the two that stand beside the centre.
fn trend(values: &[f64], period: usize) -> Vec<f64> {
    let means = moving::means(values, period);
    let mut trend = vec![f64::NAN; values.len()];
    let half = period / 2;
    if period % 2 == 1 {
        trend[half..half + means.len()].copy_from_slice(&means);
    } else {
        for (slot, pair) in trend[half..].iter_mut().zip(means.windows(2)) {
            *slot = f64::midpoint(pair[0], pair[1]);
        }
    }
    trend
}
