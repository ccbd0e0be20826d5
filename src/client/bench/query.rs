//! The dashboard's question over a view of a million groups: of the view, and of the table in words that the planner routes to the view;
//! as text and as a prepared statement. And Listing 7 over the table's rows.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::super::Result;
use super::super::event::{COLUMNS, Form};
use super::super::wire::Connection;
use super::ask::{self, Asking};
use super::chunk::{Plan, Pool, Traffic};
use super::report::Report;
use super::{QueryArgs, Target, expect, schema};
use crate::clock::{Clock, SystemClock};

/// Rows of one INSERT of the set-up.
const SETUP_ROWS: u64 = 100_000;

/// How often the other connection sends, in a second.
const SENDS_PER_SECOND: u64 = 10;

/// Listing 7 reads rows, which takes longer: it is asked so many times less often.
const AD_HOC_LESS: u64 = 10;

/// Minutes that the run may take before an answer's oldest minutes have no orders any more.
const SLACK_MINUTES: u64 = 15;

pub async fn run(target: &Target, control: &Connection, args: QueryArgs) -> Result<Report> {
    let QueryArgs { stores, minutes, rows, views, queries, ingest } = args;
    let (groups, rows) = (stores * minutes, rows.max(stores * minutes));
    let meanwhile = if ingest == 0 { "at rest".to_owned() } else { format!("while {ingest} events/s come in") };
    let mut report = Report::new("query", &format!("{rows} rows, {views} views, {groups} groups, {queries} queries, {meanwhile}"));
    let begin = Instant::now();
    schema::create(control, views).await?;
    set_up(control, stores, minutes, rows).await?;
    report.number("set_up", begin.elapsed().as_secs_f64(), "s");
    let done = CancellationToken::new();
    let sender = target.connect().await?;
    let reader = target.connect().await?;
    let least = 60_u64.saturating_sub(begin.elapsed().as_secs() / 60 + SLACK_MINUTES);
    let asking = Asking { seed: target.seed, stores, times: queries, minutes: Some(least as usize) };
    let measured = async {
        let outcome = measure(&reader, asking, &mut report).await;
        done.cancel();
        outcome
    };
    let (outcome, sent) = tokio::join!(measured, send(&sender, target.seed, ingest, &done));
    outcome?;
    let (events, purchases, seconds) = sent?;
    if ingest > 0 {
        report.number("ingested_meanwhile", events as f64 / seconds, "events/s");
    }
    expect("rows of the table", rows as i64 + events, control.number("SELECT count(*) FROM bench_events").await?)?;
    let of_view = format!("SELECT sum(n)::bigint FROM {}", schema::REVENUE);
    expect("purchases of the view", groups as i64 + purchases, control.number(&of_view).await?)?;
    report.checked("the routes; every answer had the last hour's rows; table and view hold what was acknowledged");
    Ok(report)
}

/// A purchase for each store and minute up to now, and as many page views of the same time as make up `rows`.
async fn set_up(control: &Connection, stores: u64, minutes: u64, rows: u64) -> Result<()> {
    control.run("SET verus.late_rows = 'apply'").await?;
    let purchases = stores * minutes;
    for from in (0..purchases).step_by(SETUP_ROWS as usize) {
        let to = (from + SETUP_ROWS).min(purchases) - 1;
        let fill = format!(
            "INSERT INTO bench_events (event_id, event_type, event_time, user_id, session_id, store_id, order_id, quantity, revenue)
             SELECT gen_random_uuid(), 'purchase', date_trunc('minute', now()) - (i / {stores}) * INTERVAL '1 minute',
                    'u' || (i % 5000), 's' || i, 'store_' || (i % {stores} + 1), 'o' || i, 1, 9.99
             FROM generate_series({from}, {to}) AS g(i)"
        );
        control.run(&fill).await?;
    }
    for from in (purchases..rows).step_by(SETUP_ROWS as usize) {
        let to = (from + SETUP_ROWS).min(rows) - 1;
        // A prime's multiples visit the stores in another order than the time goes.
        let fill = format!(
            "INSERT INTO bench_events (event_id, event_type, event_time, user_id, session_id, store_id, device_type, page, product_category)
             SELECT gen_random_uuid(), 'page_view', date_trunc('minute', now()) - (i % {minutes}) * INTERVAL '1 minute' - INTERVAL '1 second',
                    'u' || (i % 5000), 's' || (i / 5), 'store_' || (i::bigint * 7919 % {stores} + 1),
                    CASE WHEN i % 3 = 0 THEN 'desktop' ELSE 'mobile' END, '/products', 'category ' || (i % 20)
             FROM generate_series({from}, {to}) AS g(i)"
        );
        control.run(&fill).await?;
    }
    control.run("RESET verus.late_rows").await?;
    let groups = control.number(&format!("SELECT count(*) FROM {}", schema::REVENUE)).await?;
    // now() may step into the next minute between two statements, which leaves one out.
    let least = purchases.saturating_sub(purchases.div_ceil(SETUP_ROWS) * stores) as i64;
    if groups < least { expect("groups of the view", purchases as i64, groups) } else { Ok(()) }
}

async fn measure(reader: &Connection, asking: Asking, report: &mut Report) -> Result<()> {
    for question in [ask::DASHBOARD, ask::ROUTED, ask::MERGED] {
        report.times(question.name, &mut question.as_text(reader, asking).await?);
        report.times(&format!("{}_prepared", question.name), &mut question.prepared(reader, asking).await?);
    }
    let ad_hoc = Asking { times: (asking.times / AD_HOC_LESS).max(1), ..asking };
    report.times(ask::SIMPLE.name, &mut ask::SIMPLE.as_text(reader, ad_hoc).await?);
    // What routing adds to planning: the same text planned with and without it.
    report.times("planning_routed", &mut ask::ROUTED.planned(reader, ad_hoc).await?);
    reader.run("SET verus.route = 'scan'").await?;
    report.times("planning_scan", &mut ask::ROUTED.planned(reader, ad_hoc).await?);
    reader.run("RESET verus.route").await
}

/// Sends events at `rate` until `done`: events, purchases among them, and seconds.
async fn send(sender: &Connection, seed: u64, rate: u64, done: &CancellationToken) -> Result<(i64, i64, f64)> {
    if rate == 0 {
        return Ok((0, 0, 1.0));
    }
    let statement = sender.client.prepare(&format!("COPY bench_events ({COLUMNS}) FROM STDIN (FORMAT csv)")).await?;
    let now = SystemClock.now();
    let chunk = rate.div_ceil(SENDS_PER_SECOND);
    let (form, total, traffic) = (Form::Csv, chunk * SENDS_PER_SECOND, Traffic::default());
    let plan = Plan { seed, start: now, form, total, chunk, connections: 1, marker: None, traffic };
    let Some(mut pool) = Pool::make(plan).into_iter().next() else { return Ok((0, 0, 1.0)) };
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
