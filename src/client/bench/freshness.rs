//! From sending events to seeing them in a view.
//!
//! Each COPY holds one purchase of a store that nobody else writes to. Once it is acknowledged, another connection reads that
//! store's orders from the view: all of them must be there at once.

use std::time::{Duration, Instant};

use super::super::event::{COLUMNS, Form};
use super::super::wire::Connection;
use super::super::{Error, Result};
use super::chunk::Pool;
use super::report::Report;
use super::{FreshnessArgs, Target, expect, schema};
use crate::clock::{Clock, SystemClock};

const MARKER_STORE: u32 = 999_999;

/// Seconds of events kept ready.
const POOL_SECONDS: u64 = 2;

pub async fn run(target: &Target, control: &Connection, args: FreshnessArgs) -> Result<Report> {
    let FreshnessArgs { rate, chunk, views, seconds } = args;
    let mut report = Report::new("freshness", &format!("{views} views, {rate} events/s in COPYs of {chunk} for {seconds} s"));
    schema::create(control, views).await?;
    let (sender, reader) = (target.connect().await?, target.connect().await?);
    let copy = sender.client.prepare(&format!("COPY bench_events ({COLUMNS}) FROM STDIN (FORMAT csv)")).await?;
    let view = schema::REVENUE;
    let look = format!("SELECT sum(n)::bigint FROM {view} WHERE store_id = 'store_{MARKER_STORE}'");
    let look = reader.client.prepare(&look).await?;
    let pools = Pool::make(target.seed, SystemClock.now(), Form::Csv, rate * POOL_SECONDS, chunk, 1, Some(MARKER_STORE));
    let Some(mut pool) = pools.into_iter().next() else { return Err(Error::Setup("no events".to_owned())) };

    let (mut acknowledged, mut visible): (Vec<Duration>, Vec<Duration>) = (Vec::new(), Vec::new());
    let (mut events, mut purchases, mut sent) = (0, 0, 0);
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(chunk as f64 / rate as f64));
    let begin = Instant::now();
    while begin.elapsed().as_secs() < seconds {
        ticks.tick().await;
        let (chunk, later) = pool.next_at(SystemClock.now());
        let data = chunk.data(later);
        let at = Instant::now();
        let accepted = sender.copy(&copy, data).await?;
        acknowledged.push(at.elapsed());
        sent += 1;
        let found: i64 = reader.client.query_one(&look, &[]).await?.get(0);
        visible.push(at.elapsed());
        expect("orders of the marker store in the view right after the acknowledgement", sent, found)?;
        expect("rows of a COPY", chunk.events(), accepted as i64)?;
        events += chunk.events();
        purchases += chunk.purchases;
    }
    let achieved = events as f64 / begin.elapsed().as_secs_f64();
    report.number("events_per_second", achieved, "");
    if achieved < rate as f64 * 0.95 {
        println!("  the server, this client or the machine did not keep up with {rate} events/s");
    }
    report.times("acknowledgement", &mut acknowledged);
    report.times("send_to_visible", &mut visible);
    expect("rows of the table", events, control.number("SELECT count(*) FROM bench_events").await?)?;
    expect("purchases of the view", purchases, control.number(&format!("SELECT sum(n)::bigint FROM {view}")).await?)?;
    report.checked(&format!("{sent} of {sent} acknowledged COPYs were in the view at once; {events} events"));
    Ok(report)
}
