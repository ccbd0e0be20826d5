//! Decompositions against statsmodels (`tests/expected/decomposition.py`), and what they do at the edges.

use super::Decomposition;
use super::decompose::{Judge, Method, Settings, Unjudged};
use super::forecast::forecast;
use super::grid::{Fill, Grid, Spacing, Step, Unfilled};
use super::judge::{Sigma, median, severity, spread};
use super::mstl::Mstl;
use super::period::{NotFound, detect, detect_all};
use super::stl::{Season, Stl};
use super::{classical, moving};
use crate::types::zone::Zone;

/// Largest difference from statsmodels, as a part of the largest value.
const TOLERANCE: f64 = 1e-9;
/// The season by statsmodels' defaults.
const STATSMODELS: Season = Season::lines(7);
const STATSMODELS_MSTL: Season = Season::lines(11);

/// The values of a series, and what is expected of a method: rows of trend, seasonal and residual.
struct Expected {
    columns: Vec<String>,
    rows: Vec<Vec<Option<f64>>>,
}

impl Expected {
    fn read(text: &str) -> Expected {
        let mut lines = text.lines();
        let columns = lines.next().expect("a header").split(',').map(str::to_owned).collect();
        let cell = |cell: &str| (!cell.is_empty()).then(|| cell.parse().expect("a number"));
        Expected { columns, rows: lines.map(|line| line.split(',').map(cell).collect()).collect() }
    }

    fn values(&self) -> Vec<f64> {
        self.rows.iter().map(|row| row[0].expect("every value is given")).collect()
    }

    fn check(&self, series: &str, method: &str, found: &Decomposition) {
        let scale = self.values().iter().fold(1.0_f64, |scale, value| scale.max(value.abs()));
        for (part, found) in [("trend", &found.trend), ("seasonal", &found.seasonal), ("residual", &found.residual)] {
            let name = format!("{method}_{part}");
            let column = self.columns.iter().position(|column| *column == name).expect("the column is there");
            assert_eq!(found.len(), self.rows.len());
            for (index, (row, found)) in self.rows.iter().zip(found).enumerate() {
                let Some(expected) = row[column] else { continue };
                let same = expected.is_nan() && found.is_nan() || (expected - found).abs() <= TOLERANCE * scale;
                assert!(same, "{series}: {name}[{index}] is {found}, statsmodels says {expected}");
            }
        }
    }
}

fn check(series: &str, text: &str, period: usize, periods: &[usize]) {
    let expected = Expected::read(text);
    let values = expected.values();
    expected.check(series, "classical", &classical::decompose(&values, period).expect("two periods"));
    let stl = Stl::new(values.len(), period, STATSMODELS).expect("two periods");
    expected.check(series, "stl", &stl.decompose(&values));
    let stl = Stl::new(values.len(), period, Season::DEFAULT).expect("two periods");
    expected.check(series, "means", &stl.decompose(&values));
    if !periods.is_empty() {
        expected.check(series, "mstl", &Mstl::new(values.len(), periods, STATSMODELS_MSTL).expect("two periods").decompose(&values));
    }
}

macro_rules! expected {
    ($name:literal) => {
        include_str!(concat!("../../tests/expected/decomposition_", $name, ".csv"))
    };
}

#[test]
fn decompositions_are_those_of_statsmodels() {
    check("nile", expected!("nile"), 10, &[10]);
    check("sunspots", expected!("sunspots"), 11, &[11, 80]);
    check("realgdp", expected!("realgdp"), 4, &[4]);
    check("elnino", expected!("elnino"), 12, &[12, 60]);
    check("co2", expected!("co2"), 52, &[52]);
    check("ecom", expected!("ecom"), 24, &[24, 168]);
    check("shortest_even", expected!("shortest_even"), 2, &[]);
    check("shortest_odd", expected!("shortest_odd"), 3, &[]);
    check("two_periods", expected!("two_periods"), 10, &[]);
}

#[test]
fn moving_sums_of_any_width() {
    let values: Vec<f64> = (0..23).map(|index| f64::from(index * index % 7)).collect();
    for width in 1..=23 {
        let expected: Vec<f64> = values.windows(width).map(|window| window.iter().sum()).collect();
        assert_eq!(moving::sums(&values, width), expected, "{width}");
    }
    assert!(moving::sums(&values, 24).is_empty());
    assert!(moving::sums(&values, 0).is_empty());
}

#[test]
fn short_series_have_no_decomposition() {
    for (points, period) in [(0, 2), (3, 2), (10, 1), (10, 0), (13, 7), (usize::MAX, usize::MAX)] {
        assert!(Stl::new(points, period, Season::DEFAULT).is_none(), "{points} {period}");
    }
    assert!(classical::decompose(&[1.0; 13], 7).is_none());
    assert!(Mstl::new(10, &[2, 6], STATSMODELS_MSTL).is_none());
    assert!(Mstl::new(10, &[], STATSMODELS_MSTL).is_none());
}

#[test]
fn spread_is_robust_and_never_rounding() {
    assert!(median(&mut []).is_nan());
    assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
    assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), 2.5);
    let residuals = [1.0, -1.0, 2.0, -2.0, f64::NAN, 0.0, 100.0];
    assert!((spread(&residuals, Sigma::Mad, 100.0) - 1.4826 * 1.5).abs() < 1e-12);
    // pandas.Series([1, -1, 2, -2, nan, 0, 100]).std()
    assert!((spread(&residuals, Sigma::Stddev, 100.0) - 40.849_316_599_75).abs() < 1e-9);
    // More than half are alike: the mean deviation is left.
    assert!((spread(&[0.0, 0.0, 0.0, 0.0, 8.0], Sigma::Mad, 8.0) - 1.2533 * 1.6).abs() < 1e-12);
    assert_eq!(spread(&[1e-13, -1e-13, 2e-13], Sigma::Mad, 1e3), 0.0);
    assert_eq!(spread(&[1.0, 1.0], Sigma::Stddev, 1e3), 0.0);
    assert_eq!(severity(-6.0, 3.0), 2.0);
    assert_eq!(severity(1e-12, 0.0), 0.0);
    assert!(severity(f64::NAN, 0.0).is_nan());
}

/// A season of `period`, a trend and noise that is the same each time.
fn season(points: usize, period: usize) -> Vec<f64> {
    let mut state = 12_345_u64;
    (0..points)
        .map(|index| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let noise = (state >> 40) as f64 / f64::from(1 << 24) - 0.5;
            let angle = std::f64::consts::TAU * (index % period) as f64 / period as f64;
            100.0 + 0.05 * index as f64 + 20.0 * angle.sin() + 8.0 * noise
        })
        .collect()
}

fn settings(method: Method) -> Settings {
    Settings { method, periods: vec![24], season: Season::DEFAULT, robust: true, sigma: Sigma::Mad, sensitivity: 3.0 }
}

#[test]
fn planted_anomalies_are_found_to_the_newest_point() {
    for (method, sigma, last) in [(Method::Stl, Sigma::Mad, 599), (Method::Mstl, Sigma::Mad, 599), (Method::Classical, Sigma::Stddev, 500)]
    {
        let mut values = season(600, 24);
        values[100] += 60.0;
        values[last] -= 60.0;
        let judged = Judge::new(Settings { sigma, ..settings(method) }).judge(&values).expect("a season");
        let found = |index: usize| severity(judged.parts.residual[index], judged.threshold) > 1.0;
        let all: Vec<usize> = (0..600).filter(|index| found(*index)).collect();
        assert_eq!(all, [100, last], "{method:?}");
    }
}

#[test]
fn an_outage_casts_no_shadow() {
    // One phase of few cycles has lost everything once: the same phase of other cycles is as it was.
    let mut values: Vec<f64> = (0..54_u32).map(|day| f64::from(200 + day % 7 * 10 + day * 17 % 5)).collect();
    values[30] = 0.0;
    for robust in [true, false] {
        let judged = Judge::new(Settings { periods: vec![7], robust, ..settings(Method::Stl) }).judge(&values).expect("a season");
        let found = (0..values.len()).filter(|index| severity(judged.parts.residual[*index], judged.threshold) > 1.0).count();
        assert_eq!(found == 1, robust, "{found}");
    }
}

#[test]
fn a_pure_season_has_no_anomalies() {
    let values: Vec<f64> = (0..200).map(|index| f64::from(index % 7)).collect();
    for method in [Method::Stl, Method::Classical, Method::Mstl] {
        let judged = Judge::new(Settings { periods: vec![7], ..settings(method) }).judge(&values).expect("a season");
        assert!(
            judged.parts.residual.iter().all(|residual| residual.is_nan() || severity(*residual, judged.threshold) <= 1.0),
            "{method:?}"
        );
    }
}

#[test]
fn too_little_history_says_how_much_is_needed() {
    let found = Judge::new(settings(Method::Stl)).judge(&season(47, 24));
    assert_eq!(found.err(), Some(Unjudged::TooShort { needed: 48, period: 24 }));
}

#[test]
fn periods_are_found() {
    for period in [4, 7, 12, 24, 48, 168] {
        assert_eq!(detect(&season(period * 8 + 3, period)), Ok(period), "{period}");
    }
    let week: Vec<f64> =
        season(24 * 70, 24).iter().enumerate().map(|(hour, value)| if hour / 24 % 7 > 4 { value * 0.88 } else { *value }).collect();
    assert_eq!(detect(&week), Ok(168));
    assert_eq!(detect_all(&week), Ok(vec![24, 168]));
    let co2 = Expected::read(expected!("co2")).values();
    assert_eq!(detect(&co2), Ok(52));
    let sunspots = Expected::read(expected!("sunspots")).values();
    assert_eq!(detect(&sunspots), Ok(11));
    let elnino = Expected::read(expected!("elnino")).values();
    assert_eq!(detect(&elnino), Ok(12));
    // Outliers do not hide it.
    let mut spiked = season(24 * 20, 24);
    spiked[100] = 1e6;
    spiked[333] = -1e6;
    assert_eq!(detect(&spiked), Ok(24));
}

#[test]
fn where_there_is_no_period_the_reason_is_said() {
    assert_eq!(detect(&[1.0; 7]), Err(NotFound::TooShort));
    let line: Vec<f64> = (0..100).map(|index| f64::from(index) * 0.1).collect();
    assert_eq!(detect(&line), Err(NotFound::Constant));
    let noise: Vec<f64> = season(500, 7).iter().zip(season(500, 7).iter().skip(1)).map(|(_, _)| 0.0).collect();
    assert_eq!(detect(&noise), Err(NotFound::Constant));
    let mut state = 7_u64;
    let noise: Vec<f64> = (0..1000)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64
        })
        .collect();
    assert!(matches!(detect(&noise), Err(NotFound::Weak(_))), "{:?}", detect(&noise));
    let walk: Vec<f64> = noise
        .iter()
        .scan(0.0, |sum, step| {
            *sum += step - f64::from(1 << 23);
            Some(*sum)
        })
        .collect();
    assert!(matches!(detect(&walk), Err(NotFound::Weak(_))), "{:?}", detect(&walk));
}

const HOUR: i64 = 3_600_000_000;

fn spacing(zone: Zone, times: &[i64]) -> Spacing {
    let mut spacing = Spacing::new(zone);
    times.iter().for_each(|time| spacing.add(*time));
    spacing
}

#[test]
fn steps_are_found_through_gaps() {
    let utc = Zone::UTC;
    assert_eq!(spacing(utc, &[]).step(), None);
    assert_eq!(spacing(utc, &[HOUR, HOUR]).step(), None);
    assert_eq!(spacing(utc, &[5 * HOUR, 0, 2 * HOUR]).step(), Some(Step::Micros(HOUR)));
    assert_eq!(spacing(utc, &[0, 24 * HOUR, 72 * HOUR]).step(), Some(Step::Micros(24 * HOUR)));
    let mut merged = spacing(utc, &[0, 4 * HOUR]);
    merged.merge(&spacing(utc, &[6 * HOUR, 10 * HOUR]));
    assert_eq!((merged.step(), merged.newest()), (Some(Step::Micros(2 * HOUR)), Some(10 * HOUR)));
    // 2024-01-01, 2024-03-01, 2024-04-01.
    let months = [1_704_067_200_000_000, 1_709_251_200_000_000, 1_711_929_600_000_000];
    assert_eq!(spacing(utc, &months).step(), Some(Step::Months(1)));
    assert_eq!(Step::Months(1).after(months[0], 2, utc), Some(months[1]));
    assert_eq!(Step::Months(1).count(months[0], months[2], utc), Some(3));
    assert_eq!(Step::Months(1).count(months[0], months[2] - 1, utc), Some(2));
}

#[test]
fn days_of_a_zone_are_days_on_all_days() {
    let berlin = Zone::parse("Europe/Berlin").expect("a zone");
    // Midnights around 2024-03-31, which has 23 hours.
    let days = [1_711_666_800_000_000, 1_711_753_200_000_000, 1_711_839_600_000_000, 1_711_922_400_000_000, 1_712_008_800_000_000];
    let step = spacing(berlin, &days).step().expect("a step");
    assert_eq!(step, Step::Local(24 * HOUR));
    let times: Vec<i64> = (0..5).filter_map(|count| step.after(days[0], count, berlin)).collect();
    assert_eq!(times, days);
    assert_eq!(step.count(days[0], days[4], berlin), Some(4));
    assert_eq!(spacing(berlin, &[days[2], days[2] + HOUR, days[3]]).step(), Some(Step::Micros(HOUR)));
}

fn grid(fill: Fill) -> Grid {
    Grid { step: Some(Step::Micros(1)), zone: Zone::UTC, fill, until: Some(9), points_max: 100 }
}

#[test]
fn gaps_are_filled() {
    let (times, values) = ([2, 3, 6, 7], [1.0, 2.0, 5.0, f64::NAN]);
    let filled = |fill| {
        let filled = grid(fill).fill(&times, &values).expect("a grid");
        (filled.times.first().copied(), filled.values)
    };
    assert_eq!(filled(Fill::Zero), (Some(2), vec![1.0, 2.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0]));
    assert_eq!(filled(Fill::Previous), (Some(2), vec![1.0, 2.0, 2.0, 2.0, 5.0, 5.0, 5.0, 5.0]));
    assert_eq!(filled(Fill::Linear), (Some(2), vec![1.0, 2.0, 3.0, 4.0, 5.0]));
    assert_eq!(filled(Fill::None), (Some(2), vec![1.0, 2.0, 5.0]));
    assert_eq!(grid(Fill::Zero).fill(&[1, 1], &[1.0, 2.0]), Err(Unfilled::Twice(1)));
    assert_eq!(grid(Fill::Zero).fill(&[-1000, 1], &[1.0, 2.0]), Err(Unfilled::TooLong(1010)));
    assert_eq!(grid(Fill::Linear).fill(&[1], &[f64::NAN]).map(|filled| filled.times.len()), Ok(0));
}

#[test]
fn forecasts_go_on_with_season_and_trend() {
    let values = season(24 * 28 + 24, 24);
    let (history, future) = values.split_at(24 * 28);
    let mstl = Mstl::new(history.len(), &[24], STATSMODELS_MSTL).expect("two periods");
    let forecast = forecast(history, Some(&mstl), 24, 0.95);
    let error: f64 = forecast.mean.iter().zip(future).map(|(mean, value)| (mean - value).abs()).sum::<f64>() / 24.0;
    assert!(error < 3.5, "{error}");
    let inside = (0..24).filter(|step| (forecast.lower[*step]..=forecast.upper[*step]).contains(&future[*step])).count();
    assert!(inside >= 21, "{inside}");
}

#[test]
fn forecasts_without_a_season() {
    let line: Vec<f64> = (0..50).map(|index| 3.0 * f64::from(index) + 7.0).collect();
    let found = forecast(&line, None, 3, 0.9);
    for (step, mean) in found.mean.iter().enumerate() {
        assert!((mean - (157.0 + 3.0 * step as f64)).abs() < 0.5, "{mean}");
    }
    let few = forecast(&[5.0, 5.0], None, 2, 0.95);
    assert_eq!(few.mean, [5.0, 5.0]);
    // What was never negative is not forecast so.
    let falling: Vec<f64> = (0..20).rev().map(f64::from).collect();
    assert!(forecast(&falling, None, 30, 0.95).lower.iter().all(|lower| *lower >= 0.0));
}
