//! Listing 9's dashboard query over a view of a million groups, for random stores, as text and as a prepared statement.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;

use super::super::Result;
use super::super::event::{COLUMNS, Form};
use super::super::wire::Connection;
use super::chunk::Pool;
use super::report::Report;
use super::{QueryArgs, Target, expect, schema};
use crate::clock::{Clock, SystemClock};

/// Rows of one INSERT of the set-up.
const SETUP_ROWS: u64 = 100_000;

/// How often the other connection sends, in a second.
const SENDS_PER_SECOND: u64 = 10;

pub async fn run(target: &Target, control: &Connection, args: QueryArgs) -> Result<Report> {
    let QueryArgs { stores, minutes, queries, ingest } = args;
    let meanwhile = if ingest == 0 { "at rest".to_owned() } else { format!("while {ingest} events/s come in") };
    let mut report = Report::new("query", &format!("{} groups, {queries} queries, {meanwhile}", stores * minutes));
    let begin = Instant::now();
    set_up(control, stores, minutes).await?;
    report.number("set_up", begin.elapsed().as_secs_f64(), "s");
    let done = CancellationToken::new();
    let sender = target.connect().await?;
    let reader = target.connect().await?;
    let measured = async {
        let outcome = measure(&reader, target.seed, stores, queries, &mut report).await;
        done.cancel();
        outcome
    };
    let (outcome, sent) = tokio::join!(measured, send(&sender, target.seed, ingest, &done));
    outcome?;
    let (events, purchases, seconds) = sent?;
    if ingest > 0 {
        report.number("ingested_meanwhile", events as f64 / seconds, "events/s");
    }
    let rows = (stores * minutes) as i64;
    expect("rows of the table", rows + events, control.number("SELECT count(*) FROM bench_events").await?)?;
    let of_view = format!("SELECT sum(n)::bigint FROM {}", schema::REVENUE);
    expect("purchases of the view", rows + purchases, control.number(&of_view).await?)?;
    report.checked("every answer had the last hour's rows; table and view hold what was acknowledged");
    Ok(report)
}

/// A purchase for each store and minute up to now.
async fn set_up(control: &Connection, stores: u64, minutes: u64) -> Result<()> {
    schema::create(control, 1).await?;
    control.run("SET verus.late_rows = 'apply'").await?;
    let rows = stores * minutes;
    for from in (0..rows).step_by(SETUP_ROWS as usize) {
        let to = (from + SETUP_ROWS).min(rows) - 1;
        let fill = format!(
            "INSERT INTO bench_events (event_id, event_type, event_time, user_id, session_id, store_id, order_id, quantity, revenue)
             SELECT gen_random_uuid(), 'purchase', date_trunc('minute', now()) - (i / {stores}) * INTERVAL '1 minute',
                    'u' || (i % 5000), 's' || i, 'store_' || (i % {stores} + 1), 'o' || i, 1, 9.99
             FROM generate_series({from}, {to}) AS g(i)"
        );
        control.run(&fill).await?;
    }
    control.run("RESET verus.late_rows").await?;
    let groups = control.number(&format!("SELECT count(*) FROM {}", schema::REVENUE)).await?;
    // now() may step into the next minute between two statements, which leaves one out.
    let least = rows.saturating_sub(rows.div_ceil(SETUP_ROWS) * stores) as i64;
    if groups < least { expect("groups of the view", rows as i64, groups) } else { Ok(()) }
}

async fn measure(reader: &Connection, seed: u64, stores: u64, queries: u64, report: &mut Report) -> Result<()> {
    let listing = |store: &str| {
        format!(
            "SELECT w, sum(n) AS orders, sum(revenue) AS revenue FROM {}
             WHERE store_id = {store} AND w >= now() - INTERVAL '1' HOUR GROUP BY w ORDER BY w",
            schema::REVENUE
        )
    };
    let prepared = reader.client.prepare(&listing("$1")).await?;
    let mut random = StdRng::seed_from_u64(seed);
    let (mut simple, mut with_parameters): (Vec<Duration>, Vec<Duration>) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    for _ in 0..queries {
        let store = format!("store_{}", random.random_range(1..=stores));
        let text = listing(&format!("'{store}'"));
        let sent = Instant::now();
        let messages = reader.client.simple_query(&text).await?;
        simple.push(sent.elapsed());
        let rows = messages.iter().filter(|message| matches!(message, tokio_postgres::SimpleQueryMessage::Row(_))).count();
        expect_an_hour(rows, begin)?;
    }
    for _ in 0..queries {
        let store = format!("store_{}", random.random_range(1..=stores));
        let sent = Instant::now();
        let rows = reader.client.query(&prepared, &[&store]).await?;
        with_parameters.push(sent.elapsed());
        expect_an_hour(rows.len(), begin)?;
    }
    report.times("simple_query", &mut simple);
    report.times("prepared_statement", &mut with_parameters);
    Ok(())
}

/// An answer has a row for each minute of the last hour, but for those that passed since the set-up.
fn expect_an_hour(rows: usize, begin: Instant) -> Result<()> {
    // Set-up and what it left out at the turns of minutes.
    let passed = begin.elapsed().as_secs() / 60 + 10;
    if (60_u64.saturating_sub(passed)..=61).contains(&(rows as u64)) { Ok(()) } else { expect("minutes of an answer", 60, rows as i64) }
}

/// Sends events at `rate` until `done`: events, purchases among them, and seconds.
async fn send(sender: &Connection, seed: u64, rate: u64, done: &CancellationToken) -> Result<(i64, i64, f64)> {
    if rate == 0 {
        return Ok((0, 0, 1.0));
    }
    let statement = sender.client.prepare(&format!("COPY bench_events ({COLUMNS}) FROM STDIN (FORMAT csv)")).await?;
    let now = SystemClock.now();
    let chunk = rate.div_ceil(SENDS_PER_SECOND);
    let pools = Pool::make(seed, now, Form::Csv, chunk * SENDS_PER_SECOND, chunk, 1, None);
    let Some(mut pool) = pools.into_iter().next() else { return Ok((0, 0, 1.0)) };
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(chunk as f64 / rate as f64));
    let begin = Instant::now();
    let (mut events, mut purchases) = (0, 0);
    while !done.is_cancelled() {
        ticks.tick().await;
        let (chunk, later) = pool.next_at(SystemClock.now());
        let data = chunk.data(later);
        events += sender.copy(&statement, data).await? as i64;
        purchases += chunk.purchases;
    }
    Ok((events, purchases, begin.elapsed().as_secs_f64()))
}
