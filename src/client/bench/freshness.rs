//! From sending events to seeing them in a view.
//!
//! Each COPY holds one purchase of a store that nobody else writes to. Once it is acknowledged, another connection reads that
//! store's orders from the view, and one more from the table's rows: all of them must be there at once.

use std::time::{Duration, Instant};

use super::super::event::{COLUMNS, Form};
use super::super::wire::Connection;
use super::super::{Error, Result};
use super::chunk::{Plan, Pool, Traffic};
use super::report::Report;
use super::{FreshnessArgs, Target, expect, schema};
use crate::clock::{Clock, SystemClock};

const MARKER_STORE: u32 = 999_999;

/// The table's own rows are looked at after one COPY in so many.
const TABLE_EVERY: i64 = 10;

/// Seconds of events kept ready.
const POOL_SECONDS: u64 = 2;

/// What was found while events came in.
#[derive(Default)]
pub struct Freshness {
    acknowledged: Vec<Duration>,
    /// From sending until a view shows the events.
    pub visible: Vec<Duration>,
    /// From sending until the table itself shows them.
    pub in_table: Vec<Duration>,
    events: i64,
    purchases: i64,
}

pub async fn run(target: &Target, control: &Connection, args: FreshnessArgs) -> Result<Report> {
    let FreshnessArgs { rate, chunk, views, seconds } = args;
    let mut report = Report::new("freshness", &format!("{views} views, {rate} events/s in COPYs of {chunk} for {seconds} s"));
    schema::create(control, views).await?;
    let begin = Instant::now();
    let mut found = follow(target, args, Traffic::default()).await?;
    let achieved = found.events as f64 / begin.elapsed().as_secs_f64();
    report.number("events_per_second", achieved, "");
    if achieved < rate as f64 * 0.95 {
        println!("  the server, this client or the machine did not keep up with {rate} events/s");
    }
    report.times("acknowledgement", &mut found.acknowledged);
    report.times("send_to_visible", &mut found.visible);
    report.times("send_to_table", &mut found.in_table);
    expect("rows of the table", found.events, control.number("SELECT count(*) FROM bench_events").await?)?;
    let of_view = format!("SELECT sum(n)::bigint FROM {}", schema::REVENUE);
    expect("purchases of the view", found.purchases, control.number(&of_view).await?)?;
    let sent = found.visible.len();
    report.checked(&format!("{sent} of {sent} acknowledged COPYs were in the view and the table at once; {} events", found.events));
    Ok(report)
}

/// Sends events at a rate, and looks for those of each COPY as soon as it is acknowledged: in a view and in the table's rows.
pub async fn follow(target: &Target, args: FreshnessArgs, traffic: Traffic) -> Result<Freshness> {
    let FreshnessArgs { rate, chunk, seconds, .. } = args;
    let (sender, of_view, of_table) = (target.connect().await?, target.connect().await?, target.connect().await?);
    let copy = sender.client.prepare(&format!("COPY bench_events ({COLUMNS}) FROM STDIN (FORMAT csv)")).await?;
    let (store, view) = (format!("store_{MARKER_STORE}"), schema::REVENUE);
    let look = of_view.client.prepare(&format!("SELECT sum(n)::bigint FROM {view} WHERE store_id = '{store}'")).await?;
    of_table.run("SET verus.route = 'scan'").await?;
    let scan = format!("SELECT count(*) FROM bench_events WHERE store_id = '{store}' AND event_type = 'purchase'");
    let scan = of_table.client.prepare(&scan).await?;
    let now = SystemClock.now();
    let plan = Plan {
        seed: target.seed,
        start: now,
        form: Form::Csv,
        total: rate * POOL_SECONDS,
        chunk,
        connections: 1,
        marker: Some(MARKER_STORE),
        traffic,
    };
    let Some(mut pool) = Pool::make(plan).into_iter().next() else { return Err(Error::Setup("no events".to_owned())) };

    let mut found = Freshness::default();
    let mut sent = 0;
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(chunk as f64 / rate as f64));
    let begin = Instant::now();
    while begin.elapsed().as_secs() < seconds {
        ticks.tick().await;
        let (chunk, later) = pool.next_at(SystemClock.now());
        let data = chunk.data(later);
        let at = Instant::now();
        let accepted = sender.copy(&copy, data).await?;
        found.acknowledged.push(at.elapsed());
        sent += 1;
        let viewed: i64 = of_view.client.query_one(&look, &[]).await?.get(0);
        found.visible.push(at.elapsed());
        expect("orders of the marker store in the view right after the acknowledgement", sent, viewed)?;
        // Rarely, or reading rows would be most of what the machine does.
        if sent % TABLE_EVERY == 1 {
            let scanned: i64 = of_table.client.query_one(&scan, &[]).await?.get(0);
            found.in_table.push(at.elapsed());
            expect("orders of the marker store in the table right after the acknowledgement", sent, scanned)?;
        }
        expect("rows of a COPY", chunk.events(), accepted as i64)?;
        found.events += chunk.events();
        found.purchases += chunk.purchases;
    }
    Ok(found)
}
