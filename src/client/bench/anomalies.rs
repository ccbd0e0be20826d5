//! ANOMALIES and FORECAST over many series of hours: how many a second, what is found of what was planted, how good a forecast is.
//!
//! A series has a level of its own, the curve of a day, quieter weekends and the noise of counts. One point in five hundred is planted:
//! a quarter of what it would be, or two and a half times that. The last day is held back from the forecast and compared with it.

use std::collections::HashSet;
use std::fmt::Write;
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_postgres::SimpleQueryMessage;

use super::super::Result;
use super::super::event::{TIME_CHARS, write_time};
use super::super::wire::Connection;
use super::report::Report;
use super::{AnomaliesArgs, Target, expect, schema};
use crate::clock::{Clock, Micros, SystemClock};

const HOUR_US: i64 = 3_600_000_000;
/// Hours of a week, the period of the series.
const WEEK: u64 = 168;
/// Points of which one is planted.
const PLANTED_ONE_IN: u32 = 500;
/// Hours that are forecast.
const HORIZON: u64 = 24;
/// Rows in a COPY.
const COPY_ROWS: u64 = 200_000;

pub async fn run(target: &Target, control: &Connection, args: AnomaliesArgs) -> Result<Report> {
    let AnomaliesArgs { series, points } = args;
    let mut report = Report::new("anomalies", &format!("{series} series of {points} hours, period {WEEK}"));
    schema::drop(control).await?;
    control.run(schema::SERIES).await?;
    let end = SystemClock.now().div_euclid(HOUR_US) * HOUR_US;
    control.run("SET TimeZone = 'UTC'").await?;
    let start = end - points as i64 * HOUR_US;
    let begin = Instant::now();
    let planted = load(control, target.seed, args, start).await?;
    report.number("set_up", begin.elapsed().as_secs_f64(), "s");
    expect("rows of the table", (series * points) as i64, control.number("SELECT count(*) FROM bench_series").await?)?;

    for method in ["classical", "stl"] {
        let call =
            format!("ANOMALIES(bench_series, time := at, value := n, partition_by := [series], period := {WEEK}, method := '{method}')");
        let begin = Instant::now();
        let rows = control.number(&format!("SELECT count(is_anomaly) FROM {call}")).await?;
        let rate = series as f64 / begin.elapsed().as_secs_f64();
        expect("points judged", (series * points) as i64, rows)?;
        report.number(&format!("{method}_rate"), rate, "series/s");
        let found = found(control, &format!("SELECT series, time FROM {call} WHERE is_anomaly")).await?;
        let hits = found.intersection(&planted).count() as f64;
        report.number(&format!("{method}_precision"), 100.0 * hits / found.len().max(1) as f64, "% of what was found was planted");
        report.number(&format!("{method}_recall"), 100.0 * hits / planted.len().max(1) as f64, "% of what was planted was found");
    }
    forecast(control, args, end, &mut report).await?;
    report.checked("every point of every series was judged, every held-back point forecast");
    Ok(report)
}

/// Sends the series: the planted points, as the server shows them.
async fn load(control: &Connection, seed: u64, args: AnomaliesArgs, start: Micros) -> Result<HashSet<String>> {
    let copy = control.client.prepare("COPY bench_series (series, at, n) FROM STDIN (FORMAT csv)").await?;
    let mut random = StdRng::seed_from_u64(seed);
    let mut planted = HashSet::new();
    let (mut lines, mut rows) = (String::new(), 0);
    for series in 0..args.series {
        let level = random.random_range(30.0..300.0);
        for point in 0..args.points {
            let (hour, day) = (point % 24, point / 24 % 7);
            let curve = 1.0 + 0.6 * (std::f64::consts::TAU * (hour as f64 - 9.0) / 24.0).sin();
            let mut expected = level * curve * if day > 4 { 0.75 } else { 1.0 };
            let mut time = [0; TIME_CHARS];
            write_time(start + point as i64 * HOUR_US, &mut time);
            let time = String::from_utf8_lossy(&time[..19]).into_owned();
            if random.random_range(0..PLANTED_ONE_IN) == 0 {
                expected *= if random.random_bool(0.5) { 0.25 } else { 2.5 };
                planted.insert(format!("s{series} {time}"));
            }
            // The noise of a count.
            let (radius, angle): (f64, f64) =
                (random.random_range(f64::MIN_POSITIVE..1.0), random.random_range(0.0..std::f64::consts::TAU));
            let count = expected + expected.sqrt() * (-2.0 * radius.ln()).sqrt() * angle.cos();
            // Writing to a string cannot fail.
            let _ = writeln!(lines, "s{series},{time}+00,{:.0}", count.max(0.0));
            rows += 1;
            if rows % COPY_ROWS == 0 {
                control.copy(&copy, std::mem::take(&mut lines).into()).await?;
            }
        }
    }
    if !lines.is_empty() {
        control.copy(&copy, lines.into()).await?;
    }
    Ok(planted)
}

/// Series and times of an answer.
async fn found(control: &Connection, query: &str) -> Result<HashSet<String>> {
    let rows = control.client.simple_query(query).await?.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(format!("{} {}", row.get(0)?, row.get(1)?.get(..19)?)),
        _ => None,
    });
    Ok(rows.collect())
}

/// The last day of each series, forecast from the rest and compared; also with the day a week before.
async fn forecast(control: &Connection, args: AnomaliesArgs, end: Micros, report: &mut Report) -> Result<()> {
    let mut cut = [0; TIME_CHARS];
    write_time(end - HORIZON as i64 * HOUR_US, &mut cut);
    let cut = String::from_utf8_lossy(&cut).into_owned();
    let query = format!(
        "SELECT count(*), round(avg(abs(f.forecast - b.n))::numeric, 3), round(avg(abs(w.n - b.n))::numeric, 3),
                round(100 * avg(CASE WHEN b.n BETWEEN f.lower AND f.upper THEN 1 ELSE 0 END), 2)
         FROM FORECAST((SELECT * FROM bench_series WHERE at < '{cut}'), time := at, value := n, partition_by := [series],
                       period := {WEEK}, horizon := {HORIZON}) AS f
         JOIN bench_series AS b ON b.series = f.series AND b.at = f.time
         JOIN bench_series AS w ON w.series = f.series AND w.at = f.time - INTERVAL '7 days'"
    );
    let begin = Instant::now();
    let messages = control.client.simple_query(&query).await?;
    let rate = args.series as f64 / begin.elapsed().as_secs_f64();
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let number = |index: usize| row.and_then(|row| row.get(index)).and_then(|text| text.parse::<f64>().ok()).unwrap_or(f64::NAN);
    expect("points forecast", (args.series * HORIZON) as i64, number(0) as i64)?;
    report.number("forecast_rate", rate, "series/s");
    report.number("forecast_error", number(1), "mean absolute error");
    report.number("naive_error", number(2), "mean absolute error of the same hour a week before");
    report.number("interval_coverage", number(3), "% of points within the 95 % interval");
    Ok(())
}
