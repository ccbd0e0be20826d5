//! Forecasts with prediction intervals: seasons by MSTL go on as they last were, the rest by exponential smoothing.
//!
//! The method that Hyndman and Athanasopoulos, *Forecasting: Principles and Practice*, call forecasting with decomposition (STL + ETS).
//! An interval comes from three sources: the one-step errors of the smoothed rest, how they add up with the distance, and how well the
//! last cycle of the season is known. The errors are larger than they look, because the seasonal smoother has fitted a part of them;
//! both corrections follow from the weights of the smoother ([`super::loess::Cycles::noise`]).

use super::ets::Model;
use super::mstl::Mstl;

/// What comes after a series, one entry a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Forecast {
    /// Expected values.
    pub mean: Vec<f64>,
    /// Lower ends of the intervals.
    pub lower: Vec<f64>,
    /// Upper ends.
    pub upper: Vec<f64>,
}

/// Forecasts `horizon` steps; intervals hold the value with probability `level`, between 0 and 1. `seasons` fits the length of the series;
/// none is for a series without a season. What has never been below 0 is not forecast below 0.
pub fn forecast(values: &[f64], seasons: Option<&Mstl>, horizon: usize, level: f64) -> Forecast {
    let (parts, periods, (shrinkage, edge)) = match seasons {
        Some(mstl) => (mstl.seasons(values), mstl.periods(), mstl.noise()),
        None => (Vec::new(), Vec::new(), (1.0, 0.0)),
    };
    let mut rest = values.to_vec();
    for part in &parts {
        for (rest, season) in rest.iter_mut().zip(part) {
            *rest -= season;
        }
    }
    let model = Model::fit(&rest);
    let floor = if values.iter().all(|value| *value >= 0.0) { 0.0 } else { f64::NEG_INFINITY };
    let width = quantile(f64::midpoint(1.0, level));
    let noise = model.variance / shrinkage;
    let mut forecast = Forecast::default();
    for (index, variance) in model.variances(horizon).into_iter().enumerate() {
        let seasons = parts.iter().zip(&periods).map(|(part, period)| part[part.len() - period + index % period]);
        let mean = model.mean(index + 1) + seasons.sum::<f64>();
        let half = width * (variance / shrinkage + noise * edge).sqrt();
        forecast.mean.push(mean.max(floor));
        forecast.lower.push((mean - half).max(floor));
        forecast.upper.push((mean + half).max(floor));
    }
    forecast
}

/// The quantile of the standard normal distribution at `probability`, to 1e-8 (Acklam's rational approximation).
fn quantile(probability: f64) -> f64 {
    const TAIL: f64 = 0.024_25;
    const A: [f64; 6] = [
        -3.969_683_028_665_376e1,
        2.209_460_984_245_205e2,
        -2.759_285_104_469_687e2,
        1.383_577_518_672_69e2,
        -3.066_479_806_614_716e1,
        2.506_628_277_459_239,
    ];
    const B: [f64; 5] =
        [-5.447_609_879_822_406e1, 1.615_858_368_580_409e2, -1.556_989_798_598_866e2, 6.680_131_188_771_972e1, -1.328_068_155_288_572e1];
    const C: [f64; 6] = [
        -7.784_894_002_430_293e-3,
        -3.223_964_580_411_365e-1,
        -2.400_758_277_161_838,
        -2.549_732_539_343_734,
        4.374_664_141_464_968,
        2.938_163_982_698_783,
    ];
    const D: [f64; 4] = [7.784_695_709_041_462e-3, 3.224_671_290_700_398e-1, 2.445_134_137_142_996, 3.754_408_661_907_416];
    let polynomial = |coefficients: &[f64], at: f64| coefficients.iter().fold(0.0, |sum, coefficient| sum * at + coefficient);
    let tail = |probability: f64| {
        let at = (-2.0 * probability.ln()).sqrt();
        polynomial(&C, at) / (polynomial(&D, at) * at + 1.0)
    };
    if probability < TAIL {
        tail(probability)
    } else if probability > 1.0 - TAIL {
        -tail(1.0 - probability)
    } else {
        let at = probability - 0.5;
        let square = at * at;
        polynomial(&A, square) * at / (polynomial(&B, square) * square + 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn quantiles_of_the_normal_distribution() {
        for (probability, expected) in
            [(0.5, 0.0), (0.975, 1.959_963_985), (0.995, 2.575_829_304), (0.01, -2.326_347_874), (0.9, 1.281_551_566)]
        {
            assert!((quantile(probability) - expected).abs() < 1e-7, "{probability}");
        }
    }
}
