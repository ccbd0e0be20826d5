//! The length of the season of a series, found by its autocorrelation.
//!
//! A line is taken off, outliers are clipped, and the series is compared with itself shifted by each lag up to half its length. A
//! period is a lag at which the likeness has a peak. Of peaks that are about as good as the best the
//! shortest is taken: 24 rather than 48; 168 rather than 24 where weekends differ.

use super::judge;

/// Fewest points in which a period is looked for.
pub const POINTS_MIN: usize = 8;
/// Least autocorrelation that is taken for a season.
const CORRELATION_MIN: f64 = 0.3;
/// The same for short series, in standard errors: noise of `n` points is correlated by 1 / sqrt(n).
const ERRORS_MIN: f64 = 2.5;
/// How far the autocorrelation must have fallen before a peak.
const DIP_MIN: f64 = 0.2;
/// A shorter period is taken when it is so good compared with the best.
const AS_GOOD_AS: f64 = 0.9;
/// Multiples of a lag that are looked at.
const MULTIPLES_MAX: usize = 6;
/// Most seasons of one series.
pub const SEASONS_MAX: usize = 3;
/// Deviations from the median beyond which a value is clipped.
const CLIP_SIGMAS: f64 = 5.0;

/// Why no period was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NotFound {
    /// Fewer points than [`POINTS_MIN`].
    TooShort,
    /// All values on one line.
    Constant,
    /// The best lag and its autocorrelation, when there is one.
    Weak(Option<(usize, f64)>),
}

/// The one period that explains the series best.
pub fn detect(values: &[f64]) -> Result<usize, NotFound> {
    let prepared = prepare(values)?;
    let peaks = peaks(&prepared);
    let best = best(&peaks, correlation_min(values.len()))?;
    let as_good = |(_, score): &&(usize, f64)| *score >= AS_GOOD_AS * best;
    peaks.iter().find(as_good).map(|(lag, _)| *lag).ok_or(NotFound::Weak(None))
}

/// All periods, rising: the shortest first, then what is left without it.
pub fn detect_all(values: &[f64]) -> Result<Vec<usize>, NotFound> {
    let mut rest = prepare(values)?;
    let mut periods: Vec<usize> = Vec::new();
    while periods.len() < SEASONS_MAX {
        let peaks = peaks(&rest);
        let least = correlation_min(values.len());
        let strong = match best(&peaks, least) {
            Ok(best) => best.min(2.0 * least),
            Err(_) if !periods.is_empty() => break,
            Err(reason) => return Err(reason),
        };
        let Some((period, _)) = peaks.iter().find(|(_, score)| *score >= least.max(AS_GOOD_AS * strong)) else { break };
        // A season that grows or fades leaves itself behind.
        if periods.iter().any(|known| known.abs_diff(*period) * 10 <= *known) {
            break;
        }
        periods.push(*period);
        without_phases(&mut rest, *period);
    }
    periods.sort_unstable();
    Ok(periods)
}

fn best(peaks: &[(usize, f64)], least: f64) -> Result<f64, NotFound> {
    let best = peaks.iter().copied().max_by(|left, right| left.1.total_cmp(&right.1));
    match best {
        Some((_, score)) if score >= least => Ok(score),
        other => Err(NotFound::Weak(other)),
    }
}

/// The series without its line; outliers are clipped before, so that they do not turn the line, and after.
fn prepare(values: &[f64]) -> Result<Vec<f64>, NotFound> {
    let length = values.len();
    if length < POINTS_MIN {
        return Err(NotFound::TooShort);
    }
    let scale = values.iter().fold(0.0_f64, |scale, value| scale.max(value.abs()));
    let mut rest = values.to_vec();
    clip(&mut rest, scale)?;
    let centre = (length - 1) as f64 / 2.0;
    let mean = rest.iter().sum::<f64>() / length as f64;
    let (mut products, mut squares) = (0.0, 0.0);
    for (index, value) in rest.iter().enumerate() {
        let distance = index as f64 - centre;
        products += distance * (value - mean);
        squares += distance * distance;
    }
    let slope = products / squares;
    for (index, value) in rest.iter_mut().enumerate() {
        *value -= mean + slope * (index as f64 - centre);
    }
    clip(&mut rest, scale)?;
    Ok(rest)
}

fn clip(values: &mut [f64], scale: f64) -> Result<(), NotFound> {
    let spread = judge::spread(values, judge::Sigma::Mad, scale);
    if spread == 0.0 {
        return Err(NotFound::Constant);
    }
    let middle = judge::median(&mut values.to_vec());
    for value in values {
        *value = value.clamp(middle - CLIP_SIGMAS * spread, middle + CLIP_SIGMAS * spread);
    }
    Ok(())
}

fn without_phases(values: &mut [f64], period: usize) {
    for phase in 0..period {
        let indices = || (phase..values.len()).step_by(period);
        let mean = indices().map(|index| values[index]).sum::<f64>() / indices().count() as f64;
        for index in indices().collect::<Vec<_>>() {
            values[index] -= mean;
        }
    }
}

/// The least autocorrelation that is taken for a season in a series of so many points.
pub fn correlation_min(points: usize) -> f64 {
    CORRELATION_MIN.max(ERRORS_MIN / (points.max(1) as f64).sqrt())
}

/// Lags at which the autocorrelation has a peak, rising, with their autocorrelations.
fn peaks(values: &[f64]) -> Vec<(usize, f64)> {
    let correlation = autocorrelation(values);
    let last = values.len() / 2;
    let mut lowest = f64::INFINITY;
    let mut peaks: Vec<(usize, f64)> = Vec::new();
    for lag in 1..last + 1 {
        let here = correlation[lag];
        let is_peak = lag > 1 && here > correlation[lag - 1] && correlation.get(lag + 1).is_none_or(|next| here >= *next);
        // A period of 2 has no room for a dip between.
        if is_peak && here - lowest.min(correlation[lag - 1]) >= DIP_MIN {
            // Noise moves a peak by one; its multiples tell.
            let near = (lag - 1).max(2)..=(lag + 1).min(last);
            let multiples = (last / near.end()).clamp(1, MULTIPLES_MAX);
            let scored = near.map(|lag| (lag, mean_of_multiples(&correlation, lag, multiples)));
            if let Some((lag, _)) = scored.max_by(|left, right| left.1.total_cmp(&right.1))
                && peaks.last().is_none_or(|known| known.0 != lag)
            {
                peaks.push((lag, correlation[lag]));
            }
        }
        lowest = lowest.min(here);
    }
    peaks
}

/// The mean autocorrelation of a lag and its multiples.
fn mean_of_multiples(correlation: &[f64], lag: usize, multiples: usize) -> f64 {
    (1..=multiples).map(|multiple| correlation[multiple * lag]).sum::<f64>() / multiples as f64
}

/// Autocorrelation at lags 0 to half the length, each from as many pairs as there are.
fn autocorrelation(values: &[f64]) -> Vec<f64> {
    let length = values.len();
    let size = (2 * length).next_power_of_two();
    let mean = values.iter().sum::<f64>() / length as f64;
    let mut spectrum: Vec<(f64, f64)> = values.iter().map(|value| (value - mean, 0.0)).collect();
    spectrum.resize(size, (0.0, 0.0));
    transform(&mut spectrum);
    for entry in &mut spectrum {
        *entry = (entry.0 * entry.0 + entry.1 * entry.1, 0.0);
    }
    transform(&mut spectrum);
    let variance = spectrum[0].0 / length as f64;
    (0..=length / 2).map(|lag| spectrum[lag].0 / (length - lag) as f64 / variance).collect()
}

/// The discrete Fourier transform of a power of two of complex numbers, in place (Cooley and Tukey).
fn transform(values: &mut [(f64, f64)]) {
    let size = values.len();
    let shift = size.leading_zeros() + 1;
    for index in 0..size {
        let other = index.reverse_bits().checked_shr(shift).unwrap_or(0);
        if other > index {
            values.swap(index, other);
        }
    }
    let roots: Vec<(f64, f64)> = (0..size / 2)
        .map(|index| {
            let angle = -std::f64::consts::TAU * index as f64 / size as f64;
            (angle.cos(), angle.sin())
        })
        .collect();
    let mut width = 2;
    while width <= size {
        let step = size / width;
        for block in values.chunks_exact_mut(width) {
            let (low, high) = block.split_at_mut(width / 2);
            for (index, (low, high)) in low.iter_mut().zip(high).enumerate() {
                let (cosine, sine) = roots[index * step];
                let turned = (high.0 * cosine - high.1 * sine, high.0 * sine + high.1 * cosine);
                *high = (low.0 - turned.0, low.1 - turned.1);
                *low = (low.0 + turned.0, low.1 + turned.1);
            }
        }
        width *= 2;
    }
}
