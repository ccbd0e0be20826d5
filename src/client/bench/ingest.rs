//! Events accepted per second, with views maintained.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

use super::super::event::{COLUMNS, Form};
use super::super::wire::Connection;
use super::super::{Error, Result};
use super::chunk::{Chunk, Plan, Pool, Traffic};
use super::report::Report;
use super::{IngestArgs, Mode, Target, expect, schema};

/// 2026-01-01 00:00:00 UTC: the same events whenever it runs.
const START_US: i64 = 1_767_225_600_000_000;

const INSERT_ROWS: u64 = 1_000;
const INSERTS_UNDER_WAY: usize = 10;

/// How long flush and compaction may take to settle before bytes are counted, and how often that is looked at.
const SETTLE_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Files that have not changed for this long have settled.
const SETTLED_LOOKS: u32 = 8;

/// What the connections were told.
#[derive(Default)]
pub struct Acknowledged {
    /// Events in all.
    pub events: i64,
    purchases: i64,
    cents: i64,
    /// Of each statement.
    pub times: Vec<Duration>,
}

impl Acknowledged {
    /// Adds a chunk that was accepted whole.
    pub fn add(&mut self, chunk: &Chunk) {
        self.events += chunk.events();
        self.purchases += chunk.purchases;
        self.cents += chunk.cents;
    }

    /// Both together.
    pub fn and(mut self, mut other: Acknowledged) -> Acknowledged {
        self.times.append(&mut other.times);
        let (events, purchases, cents) = (self.events + other.events, self.purchases + other.purchases, self.cents + other.cents);
        Acknowledged { events, purchases, cents, times: self.times }
    }
}

pub async fn run(target: &Target, control: &Connection, args: IngestArgs) -> Result<Report> {
    let IngestArgs { rows, chunk, connections, views, stores, mode, dedup } = args;
    match dedup {
        true => schema::create_with_dedup(control, views).await?,
        false => schema::create(control, views).await?,
    }
    let (form, chunk) = match mode {
        Mode::Copy | Mode::Single => (Form::Csv, chunk),
        Mode::Insert => (Form::Literal, INSERT_ROWS),
    };
    let how = match mode {
        Mode::Copy => format!("COPY of {chunk} rows"),
        Mode::Insert => format!("INSERT of {chunk} rows"),
        Mode::Single => format!("one COPY of {rows} rows in all"),
    };
    let keys = if dedup { ", dedup_key" } else { "" };
    let mut report = Report::new("ingest", &format!("{views} views, {stores} stores, {how}, {connections} connections{keys}"));
    let traffic = Traffic { stores, ..Traffic::default() };
    let plan = Plan { seed: target.seed, start: START_US, form, total: rows, chunk, connections, marker: None, traffic };
    let (mut sum, seconds) = send(target, plan, mode).await?;
    report.number("events", sum.events as f64, "acknowledged");
    report.number("events_per_second", sum.events as f64 / seconds, "");
    report.times("acknowledgement", &mut sum.times);
    let peak = control.number("SELECT value::bigint FROM verus.metrics WHERE name = 'verus_resident_memory_peak_bytes'").await?;
    report.number("server_memory_peak", (peak as f64 / 1_048_576.0).round(), "MiB since its start");
    check(control, &sum).await?;
    bytes_on_disk(control, sum.events, &mut report).await?;
    report.checked(&format!("count, and purchases and revenue by view: {} events, {} purchases", sum.events, sum.purchases));
    Ok(report)
}

/// Sends what is planned over its connections, all at once: what was acknowledged, and the seconds that took.
pub async fn send(target: &Target, plan: Plan, mode: Mode) -> Result<(Acknowledged, f64)> {
    let connections = plan.connections;
    let statements = plan.total.div_ceil(plan.chunk).max(connections);
    let pools = Pool::make(plan);
    let mut senders = Vec::new();
    for _ in 0..connections {
        senders.push(target.connect().await?);
    }
    let begin = Instant::now();
    let sending = senders.iter().zip(pools).enumerate().map(|(index, (sender, pool))| {
        // The first connections send one statement more where they do not share out evenly.
        let own = statements / connections + u64::from((index as u64) < statements % connections);
        async move {
            match mode {
                Mode::Copy => copy(sender, pool, own).await,
                Mode::Insert => insert(sender, pool, own).await,
                Mode::Single => single(sender, pool, own).await,
            }
        }
    });
    let parts = futures::future::try_join_all(sending).await?;
    let seconds = begin.elapsed().as_secs_f64();
    Ok((parts.into_iter().fold(Acknowledged::default(), Acknowledged::and), seconds))
}

async fn copy(sender: &Connection, mut pool: Pool, statements: u64) -> Result<Acknowledged> {
    let statement = sender.client.prepare(&format!("COPY bench_events ({COLUMNS}) FROM STDIN (FORMAT csv)")).await?;
    let mut sum = Acknowledged::default();
    for _ in 0..statements {
        let (chunk, later) = pool.next_chunk();
        let data = chunk.data(later);
        let begin = Instant::now();
        let accepted = sender.copy(&statement, data).await?;
        sum.times.push(begin.elapsed());
        expect("rows of a COPY", chunk.events(), accepted as i64)?;
        sum.events += chunk.events();
        sum.purchases += chunk.purchases;
        sum.cents += chunk.cents;
    }
    Ok(sum)
}

/// All chunks in one statement.
async fn single(sender: &Connection, mut pool: Pool, chunks: u64) -> Result<Acknowledged> {
    let statement = sender.client.prepare(&format!("COPY bench_events ({COLUMNS}) FROM STDIN (FORMAT csv)")).await?;
    let mut sum = Acknowledged::default();
    let begin = Instant::now();
    let data = (0..chunks).map(|_| {
        let (chunk, later) = pool.next_chunk();
        sum.events += chunk.events();
        sum.purchases += chunk.purchases;
        sum.cents += chunk.cents;
        chunk.data(later)
    });
    let accepted = sender.copy_all(&statement, data).await?;
    expect("rows of the COPY", sum.events, accepted as i64)?;
    sum.times.push(begin.elapsed());
    Ok(sum)
}

async fn insert(sender: &Connection, mut pool: Pool, statements: u64) -> Result<Acknowledged> {
    let head = Arc::new(format!("INSERT INTO bench_events ({COLUMNS}) VALUES "));
    let mut sum = Acknowledged::default();
    let prepared = (0..statements).map(|_| {
        let (chunk, later) = pool.next_chunk();
        sum.events += chunk.events();
        sum.purchases += chunk.purchases;
        sum.cents += chunk.cents;
        (chunk.data(later), Arc::clone(&head))
    });
    // Ten statements are sent before the first is answered; the server takes them in order.
    let answers = stream::iter(prepared).map(|(rows, head)| async move {
        let text = statement_text(&head, &rows)?;
        let begin = Instant::now();
        sender.client.batch_execute(&text).await?;
        Ok::<_, Error>(begin.elapsed())
    });
    let times = answers.buffered(INSERTS_UNDER_WAY).try_collect().await?;
    Ok(Acknowledged { times, ..sum })
}

/// The statement; its rows end with a comma.
fn statement_text(head: &str, rows: &Bytes) -> Result<String> {
    let rows = std::str::from_utf8(rows).map_err(|error| Error::Wrong(error.to_string()))?;
    Ok(format!("{head}{}", rows.trim_end_matches(',')))
}

/// The table and the view must hold what was acknowledged, no less and no more.
pub async fn check(control: &Connection, sum: &Acknowledged) -> Result<()> {
    let view = schema::REVENUE;
    expect("rows of the table", sum.events, control.number("SELECT count(*) FROM bench_events").await?)?;
    expect("purchases of the view", sum.purchases, control.number(&format!("SELECT sum(n)::bigint FROM {view}")).await?)?;
    expect("cents of the view", sum.cents, control.number(&format!("SELECT (sum(revenue) * 100)::bigint FROM {view}")).await?)
}

/// Waits for the files to settle and counts their bytes.
async fn bytes_on_disk(control: &Connection, events: i64, report: &mut Report) -> Result<()> {
    let begin = Instant::now();
    let mut last = (0, 0);
    let mut same = 0;
    while begin.elapsed() < SETTLE_WITHIN && same < SETTLED_LOOKS {
        tokio::time::sleep(LOOK_EVERY).await;
        let of_files = |what: &str| format!("SELECT coalesce(sum({what}), 0)::bigint FROM verus.files WHERE table_name = 'bench_events'");
        let found = (control.number(&of_files("rows")).await?, control.number(&of_files("bytes")).await?);
        same = if found == last && found.0 == events { same + 1 } else { 0 };
        last = found;
    }
    if last.0 == 0 {
        println!("  nothing was flushed within {} s, so bytes per event are unknown", SETTLE_WITHIN.as_secs());
        return Ok(());
    }
    report.number("bytes_per_event", last.1 as f64 / last.0 as f64, "on disk");
    if last.0 != events {
        report.number("flushed", 100.0 * last.0 as f64 / events as f64, "% of the events: the files have not settled");
    }
    Ok(())
}
