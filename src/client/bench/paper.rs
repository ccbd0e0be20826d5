//! The paper's tables 1, 2 and 3 (sections 5.2 to 5.4), its figures beside those of this server.
//!
//! The paper's merchants differ in events a day and in views. Each gets four weeks of events here; the large merchant's 2.8 billion are
//! thinned to `--rows`, spread over the same four weeks, and come in at its peak rate while freshness is measured. The paper ran on
//! 16 nodes, and its columnar storage shows events in batches: here a row is in the table as soon as it is in the views.

use std::time::Duration;

use super::super::Result;
use super::super::event::Form;
use super::super::wire::Connection;
use super::ask::{self, Asking, Question};
use super::chunk::{Plan, Traffic};
use super::report::Report;
use super::{FreshnessArgs, IngestArgs, Merchant, Mode, PaperArgs, Target, freshness, ingest, schema};
use crate::clock::{Clock, SystemClock};

const WEEKS_US: i64 = 4 * 7 * 86_400_000_000;

/// Table 1: partitions and events per second. A partition is a store here.
const THROUGHPUT: [(u32, &str); 3] = [(1, "8,500"), (10, "52,000"), (100, "485,000")];
const THROUGHPUT_VIEWS: u64 = 5;
const THROUGHPUT_ROWS: u64 = 1_000_000;

/// Table 2: milliseconds, p50, p95 and p99. The last but one asks as Listing 9 does; all but the first are asked of the table.
const LATENCY: [(Question, &str); 6] = [
    (ask::DASHBOARD, "18 / 45 / 82 ms"),
    (ask::ROUTED, "18 / 45 / 82 ms"),
    (ask::MERGED, "125 / 280 / 520 ms"),
    (ask::SIMPLE, "850 / 2,100 / 4,500 ms"),
    (ask::COMPLEX, "3,200 / 8,500 / 15,000 ms"),
    (ask::COHORTS, "5,500 / 12,000 / 25,000 ms"),
];

/// Queries over all rows take so long that fewer of them must do.
const COMPLEX_LESS: u64 = 25;

/// Table 3.
const VIEWS_FRESH: &str = "1,200 / 2,800 / 5,100 ms";
const TABLE_FRESH: &str = "45,000 / 120,000 / 180,000 ms";
const FRESHNESS_SECONDS: u64 = 20;
const COPIES_PER_SECOND: u64 = 20;

/// The large merchant's peak is 50,000 events/s where 100 million a day are 1,157; the others' peaks are as high over their average.
const PEAK_PER_DAY: u64 = 2_000;

const CHUNK: u64 = 10_000;

impl Merchant {
    fn name(self) -> &'static str {
        match self {
            Merchant::Small => "small",
            Merchant::Medium => "medium",
            Merchant::Large => "large",
        }
    }

    /// Events a day, views, and stores (of which the paper says nothing).
    fn size(self) -> (u64, u64, u32) {
        match self {
            Merchant::Small => (10_000, 5, 1),
            Merchant::Medium => (1_000_000, 15, 20),
            Merchant::Large => (100_000_000, 30, 1_000),
        }
    }
}

pub async fn run(target: &Target, control: &Connection, args: PaperArgs) -> Result<Vec<Report>> {
    let mut reports = Vec::new();
    if args.merchant.is_none() {
        for (stores, figure) in THROUGHPUT {
            let (rows, views) = (THROUGHPUT_ROWS, THROUGHPUT_VIEWS);
            let ingest = IngestArgs { rows, chunk: CHUNK, connections: 1, views, stores, mode: Mode::Copy, dedup: false };
            let mut report = ingest::run(target, control, ingest).await?;
            report.paper("events_per_second", &format!("{figure} events/s"));
            reports.push(report);
        }
    }
    for merchant in [Merchant::Small, Merchant::Medium, Merchant::Large] {
        if args.merchant.is_none_or(|only| only == merchant) {
            reports.push(of_merchant(target, control, args, merchant).await?);
        }
    }
    Ok(reports)
}

async fn of_merchant(target: &Target, control: &Connection, args: PaperArgs, merchant: Merchant) -> Result<Report> {
    let (per_day, views, stores) = merchant.size();
    let total = (per_day * 28).min(args.rows);
    let title =
        format!("{} merchant, {per_day} events a day, {views} views, {stores} stores; {total} events of four weeks", merchant.name());
    let mut report = Report::new("paper", &title);
    schema::create(control, views).await?;
    let traffic = Traffic { stores, step_us: WEEKS_US / total as i64 };
    let start = SystemClock.now() - WEEKS_US;
    let plan = Plan { seed: target.seed, start, form: Form::Csv, total, chunk: CHUNK, connections: 1, marker: None, traffic };
    let (mut sum, seconds) = ingest::send(target, plan, Mode::Copy).await?;
    report.number("history_per_second", sum.events as f64 / seconds, "events/s");
    report.times("acknowledgement", &mut sum.times);
    ingest::check(control, &sum).await?;

    let reader = target.connect().await?;
    for (question, figure) in LATENCY {
        let times = if question.name == ask::COMPLEX.name { (args.queries / COMPLEX_LESS).max(1) } else { args.queries };
        let asking = Asking { seed: target.seed, stores: u64::from(stores), times, minutes: None };
        let mut times: Vec<Duration> = question.as_text(&reader, asking).await?;
        report.times(question.name, &mut times);
        report.paper(question.name, figure);
    }

    let rate = (per_day / PEAK_PER_DAY).max(COPIES_PER_SECOND);
    let follow = FreshnessArgs { rate, chunk: rate / COPIES_PER_SECOND, views, seconds: FRESHNESS_SECONDS };
    let mut found = freshness::follow(target, follow, traffic).await?;
    report.number("freshness_at", rate as f64, "events/s");
    report.times("views_fresh", &mut found.visible);
    report.paper("views_fresh", VIEWS_FRESH);
    report.times("table_fresh", &mut found.in_table);
    report.paper("table_fresh", TABLE_FRESH);
    report.checked("counts and revenue; routes; every COPY was in the view and the table when it was acknowledged");
    Ok(report)
}
