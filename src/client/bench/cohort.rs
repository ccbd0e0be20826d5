//! Weekly cohorts of half a year of events: COHORT_ANALYSIS and Listing 10's SQL, of all stores and of one, and kept as a view; and
//! ATTRIBUTION.
//!
//! Each cohort question is asked both ways of the same rows; a run fails where the two differ.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::event::Form;
use super::super::wire::Connection;
use super::super::{Error, Result};
use super::chunk::{Plan, Traffic};
use super::report::Report;
use super::{CohortArgs, Mode, Target, expect, ingest, schema};
use crate::clock::{Clock, SystemClock};

const HALF_YEAR_US: i64 = 182 * 86_400_000_000;
const STORES: u32 = 1_000;
const CHUNK: u64 = 10_000;
/// One store's questions are asked so many times more often.
const STORE_MORE: u64 = 10;

/// By the operator; `{store}` is a filter that begins with a comma, or nothing.
const OPERATOR: &str = "SELECT cohort_date, period, active_users, metric FROM COHORT_ANALYSIS(bench_events,
    cohort_date := DATE_TRUNC('week', first_purchase_date), activity_date := DATE_TRUNC('week', event_time),
    user_id := user_id, metric := COUNT(DISTINCT order_id), filters := [event_type = 'purchase'{store}]) ORDER BY 1, 2";

/// By Listing 10; `{store}` is a condition that begins with AND, or nothing.
const LISTING: &str = "WITH cohorts AS (
        SELECT user_id, DATE_TRUNC('week', MIN(event_time)) AS cohort_week FROM bench_events
        WHERE event_type = 'purchase'{store} GROUP BY user_id),
    activity AS (
        SELECT e.user_id, c.cohort_week, DATE_TRUNC('week', e.event_time) AS activity_week, e.order_id
        FROM bench_events e JOIN cohorts c ON e.user_id = c.user_id WHERE e.event_type = 'purchase'{store})
    SELECT cohort_week, DATE_DIFF('week', cohort_week, activity_week) AS weeks_since_cohort, COUNT(DISTINCT user_id) AS active_users,
        COUNT(DISTINCT order_id) AS orders
    FROM activity GROUP BY cohort_week, weeks_since_cohort ORDER BY 1, 2";

const ATTRIBUTION: &str = "SELECT * FROM ATTRIBUTION(bench_events, conversion := event_type = 'purchase', value := revenue,
    channel := utm_source, by := user_id, lookback := INTERVAL '30 days', model := 'linear')";

pub async fn run(target: &Target, control: &Connection, args: CohortArgs) -> Result<Report> {
    let CohortArgs { rows, queries } = args;
    let mut report = Report::new("cohort", &format!("{rows} events of half a year, {STORES} stores, {queries} queries"));
    schema::create(control, 1).await?;
    let traffic = Traffic { stores: STORES, step_us: HALF_YEAR_US / rows as i64 };
    let start = SystemClock.now() - HALF_YEAR_US;
    let plan = Plan { seed: target.seed, start, form: Form::Csv, total: rows, chunk: CHUNK, connections: 1, marker: None, traffic };
    let (sum, _) = ingest::send(target, plan, Mode::Copy).await?;
    ingest::check(control, &sum).await?;
    let reader = target.connect().await?;
    reader.run("SET verus.route = 'scan'").await?;
    let mut random = StdRng::seed_from_u64(target.seed);
    let mut times: [Vec<Duration>; 4] = Default::default();
    for turn in 0..queries * (STORE_MORE + 1) {
        let whole = turn < queries;
        let store = if whole { None } else { Some(random.random_range(1..=STORES)) };
        let filter = |with: &str| store.map_or_else(String::new, |store| format!("{with} store_id = 'store_{store}'"));
        let (own, own_time) = timed(&reader, &OPERATOR.replace("{store}", &filter(","))).await?;
        let (listing, listing_time) = timed(&reader, &LISTING.replace("{store}", &filter(" AND"))).await?;
        if own != listing {
            return Err(Error::Wrong(format!("COHORT_ANALYSIS{} differs from Listing 10", filter(" of"))));
        }
        let from = if whole { 0 } else { 2 };
        times[from].push(own_time);
        times[from + 1].push(listing_time);
    }
    for (name, mut times) in ["cohort_all", "listing_10_all", "cohort_store", "listing_10_store"].into_iter().zip(times) {
        report.times(name, &mut times);
    }
    let mut times = Vec::new();
    for _ in 0..queries {
        times.push(timed(&reader, ATTRIBUTION).await?.1);
    }
    report.times("attribution_all", &mut times);
    report.checked("counts and revenue; COHORT_ANALYSIS and Listing 10 gave the same cells");
    maintained(target, &reader, traffic, queries * STORE_MORE, &mut report).await?;
    Ok(report)
}

/// Rows of a commit between two readings of the view.
const COMMIT_ROWS: u64 = 100;

/// The cohorts of all stores as a view: how long it takes to be built, and to be read after each commit.
async fn maintained(target: &Target, reader: &Connection, traffic: Traffic, queries: u64, report: &mut Report) -> Result<()> {
    let query = OPERATOR.replace("{store}", "").replace(" ORDER BY 1, 2", "");
    let begin = Instant::now();
    reader.run(&format!("CREATE MATERIALIZED VIEW bench_cohorts AS {query}")).await?;
    report.number("view_built", begin.elapsed().as_secs_f64(), "s");
    timed(reader, "SELECT * FROM bench_cohorts").await?;
    let mut times = Vec::new();
    // Closer than commits follow each other: no row is late.
    let traffic = Traffic { step_us: 1, ..traffic };
    for query in 1..=queries {
        let (seed, start) = (target.seed.wrapping_add(query), SystemClock.now() + query as i64);
        let plan = Plan { seed, start, form: Form::Csv, total: COMMIT_ROWS, chunk: COMMIT_ROWS, connections: 1, marker: None, traffic };
        ingest::send(target, plan, Mode::Copy).await?;
        times.push(timed(reader, "SELECT * FROM bench_cohorts").await?.1);
    }
    report.times("view_after_commit", &mut times);
    let differing = format!("SELECT count(*) FROM ({query} EXCEPT SELECT * FROM bench_cohorts) AS missing");
    expect("cells that the view has not", 0, reader.number(&differing).await?)?;
    report.checked("the view has the operator's cells");
    Ok(())
}

/// The rows of an answer as text, and how long it took.
async fn timed(reader: &Connection, sql: &str) -> Result<(Vec<String>, Duration)> {
    let begin = Instant::now();
    let messages = reader.client.simple_query(sql).await?;
    let took = begin.elapsed();
    let rows = messages.into_iter().filter_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|column| row.get(column).unwrap_or_default()).collect::<Vec<_>>().join("|"))
        }
        _ => None,
    });
    Ok((rows.collect(), took))
}
