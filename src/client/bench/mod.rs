//! `verus bench`: measures a server over the wire.
//!
//! *Place*: called by `main`. One file a measurement; [`chunk`] makes the events, [`schema`] the table and the views, [`report`] the output.
//!
//! *Invariants*: (1) the same options and seed send the same events; (2) every run checks that the server holds what it has
//! acknowledged, and fails where it does not; (3) only the tables `bench_events` and `bench_series` and
//! their views are touched.

mod alerts;
mod anomalies;
mod ask;
pub mod chunk;
mod cohort;
mod freshness;
mod funnel;
mod http;
mod ingest;
mod kafka;
mod paper;
mod query;
mod report;
pub mod schema;

use clap::{Args, Subcommand, ValueEnum};

use super::wire::{Address, Connection};
use super::{Error, Result};
use crate::task::{Runtimes, Spawner};
use report::Report;

/// Measures a server over the wire, with a table `bench_events` of its own that is made anew and dropped.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
    /// Host of the server
    #[arg(long, global = true, default_value = "127.0.0.1")]
    host: String,
    /// Port of the server's PostgreSQL protocol
    #[arg(long, global = true, default_value_t = 5432)]
    port: u16,
    /// Password of user verus
    #[arg(long, global = true, env = "VERUS_PASSWORD", hide_env_values = true, value_name = "PASSWORD")]
    password: Option<String>,
    /// Token for events over HTTP, where the server has a password
    #[arg(long, global = true, env = "VERUS_INGEST_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// Start of the random numbers: equal seeds send equal events
    #[arg(long, global = true, default_value_t = 1)]
    seed: u64,
    /// End with all figures in one line of JSON
    #[arg(long, global = true)]
    json: bool,
    /// Leave the table and its views in place
    #[arg(long, global = true)]
    keep: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Events accepted per second, with views maintained
    Ingest(IngestArgs),
    /// Latency of a dashboard's query over a million groups, on the view, routed to it and merged with rows
    Query(QueryArgs),
    /// Events accepted per second over HTTP: bodies of many events, then single ones
    Http(HttpArgs),
    /// Events read from Kafka per second: from a broker in the memory of this process
    Kafka(KafkaArgs),
    /// From sending events to seeing them in a view
    Freshness(FreshnessArgs),
    /// From a window's close to its webhook, and what watching costs ingestion
    Alerts(AlertsArgs),
    /// Series taken apart, judged and forecast per second; what is found of what was planted
    Anomalies(AnomaliesArgs),
    /// Weekly cohorts over half a year, by COHORT_ANALYSIS and by Listing 10's SQL, and ATTRIBUTION
    Cohort(CohortArgs),
    /// Latency of the paper's conversion funnel
    Funnel(FunnelArgs),
    /// The paper's tables 1, 2 and 3 for its small, medium and large merchant, beside the paper's figures
    Paper(PaperArgs),
    /// All of them: ingest with 1, 5, 15 and 30 views, query at rest and under ingestion, freshness, anomalies; not cohorts, funnels and the
    /// paper's tables
    All,
}

/// How events are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// A COPY statement a chunk
    Copy,
    /// Literal INSERT statements of 1000 rows, ten under way at a time
    Insert,
    /// One COPY statement a connection
    Single,
}

#[derive(Clone, Copy, Debug, Args)]
struct IngestArgs {
    /// Events to send, rounded up to whole chunks
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    rows: u64,
    /// Events in a COPY
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    chunk: u64,
    /// Connections that send
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=64))]
    connections: u64,
    /// Materialized views over the table; up to 30
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=30))]
    views: u64,
    /// Stores that the events come from
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    stores: u32,
    /// How events are sent
    #[arg(long, value_enum, default_value_t = Mode::Copy)]
    mode: Mode,
    /// The table drops events whose id it has seen within a quarter of an hour
    #[arg(long)]
    dedup: bool,
}

#[derive(Clone, Copy, Debug, Args)]
struct HttpArgs {
    /// Port of the server's HTTP
    #[arg(long, default_value_t = 8080)]
    http_port: u16,
    /// Events to send in bodies of many
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    rows: u64,
    /// Events in a body
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    body: u64,
    /// Connections that send them
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=64))]
    connections: u64,
    /// Events to send one by one
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    single_rows: u64,
    /// Connections that send those
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=200))]
    single_connections: u64,
    /// Materialized views over the table; up to 30
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=30))]
    views: u64,
    /// Stores that the events come from
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    stores: u32,
    /// The table drops events whose id it has seen within a quarter of an hour
    #[arg(long)]
    dedup: bool,
}

#[derive(Clone, Copy, Debug, Args)]
struct KafkaArgs {
    /// Events in the topic, rounded up to whole batches
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    rows: u64,
    /// Partitions of the topic
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=256))]
    partitions: u64,
    /// Messages in a batch of the producer's
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    batch: u64,
    /// Materialized views over the table; up to 30
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=30))]
    views: u64,
    /// Stores that the events come from
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    stores: u32,
    /// The producer compresses with zstd
    #[arg(long)]
    zstd: bool,
    /// The table drops events whose id it has seen within a quarter of an hour
    #[arg(long)]
    dedup: bool,
}

#[derive(Clone, Copy, Debug, Args)]
struct QueryArgs {
    /// Stores of the view that is read
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    stores: u64,
    /// Minutes of the view that is read; a group for each store and minute
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(60..=10_000))]
    minutes: u64,
    /// Rows of the table; page views are added to the purchases, one for each group
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=1_000_000_000))]
    rows: u64,
    /// Materialized views over the table; up to 30
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=30))]
    views: u64,
    /// Queries of each kind
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    queries: u64,
    /// Events per second that another connection sends meanwhile
    #[arg(long, default_value_t = 0, value_name = "RATE", value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    ingest: u64,
}

#[derive(Clone, Copy, Debug, Args)]
struct FreshnessArgs {
    /// Events per second
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rate: u64,
    /// Events in a COPY
    #[arg(long, default_value_t = 2_500, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    chunk: u64,
    /// Materialized views over the table; up to 30
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=30))]
    views: u64,
    /// How long
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
}

#[derive(Clone, Copy, Debug, Args)]
struct AlertsArgs {
    /// Alerts whose messages are timed
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=9_999))]
    alerts: u64,
    /// Alerts that ingestion is measured with
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=9_999))]
    watched: u64,
    /// Windows that close, one a second
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    windows: u64,
    /// Materialized views over the table; up to 30
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=30))]
    views: u64,
    /// Events of each run with and without alerts
    #[arg(long, default_value_t = 4_000_000, value_parser = clap::value_parser!(u64).range(10_000..=1_000_000_000))]
    rows: u64,
}

#[derive(Clone, Copy, Debug, Args)]
struct AnomaliesArgs {
    /// Series
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    series: u64,
    /// Hours of each
    #[arg(long, default_value_t = 2_016, value_parser = clap::value_parser!(u64).range(500..=100_000))]
    points: u64,
}

#[derive(Clone, Copy, Debug, Args)]
struct CohortArgs {
    /// Events of the half year
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(10_000..=1_000_000_000))]
    rows: u64,
    /// Queries of each kind over all stores; ten times as many over one
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    queries: u64,
}

#[derive(Clone, Copy, Debug, Args)]
struct FunnelArgs {
    /// Events, ten a session
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(10..=1_000_000_000))]
    rows: u64,
    /// Queries of each kind
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    queries: u64,
}

#[derive(Clone, Copy, Debug, Args)]
struct PaperArgs {
    /// Events of the large merchant; the others have what their four weeks bring, and no more than that
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(10_000..=1_000_000_000))]
    rows: u64,
    /// Only this merchant
    #[arg(long, value_enum)]
    merchant: Option<Merchant>,
    /// Queries of each kind
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    queries: u64,
}

/// The merchants of the paper's section 5.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Merchant {
    /// 10 thousand events a day, 5 views
    Small,
    /// 1 million events a day, 15 views
    Medium,
    /// 100 million events a day, 30 views
    Large,
}

/// What every measurement needs.
struct Target {
    address: Address,
    token: Option<String>,
    spawner: Spawner,
    seed: u64,
}

impl Target {
    async fn connect(&self) -> Result<Connection> {
        Connection::open(&self.address, "verus bench", &self.spawner).await
    }
}

/// Runs `verus bench`.
pub fn bench(args: &BenchArgs) -> Result<()> {
    let runtimes = Runtimes::start(2)?;
    let target = Target {
        address: Address { host: args.host.clone(), port: args.port, password: args.password.clone() },
        token: args.token.clone(),
        spawner: runtimes.spawner(),
        seed: args.seed,
    };
    let outcome = runtimes.block_on(async {
        let control = target.connect().await?;
        let outcome = run(&target, &control, &args.what).await;
        // Also after a failure, whose error is the one to tell.
        let dropped = if args.keep { Ok(()) } else { schema::drop(&control).await };
        let reports = outcome?;
        dropped.map(|()| reports)
    });
    runtimes.shutdown();
    let reports = outcome?;
    if args.json {
        println!("{}", serde_json::Value::Array(reports.iter().map(Report::json).collect()));
    }
    Ok(())
}

async fn run(target: &Target, control: &Connection, what: &What) -> Result<Vec<Report>> {
    let ingest =
        |views| IngestArgs { rows: 1_000_000, chunk: 10_000, connections: 1, views, stores: 1_000, mode: Mode::Copy, dedup: false };
    let query = |ingest| QueryArgs { stores: 2_000, minutes: 500, rows: 0, views: 1, queries: 2_000, ingest };
    let mut reports = Vec::new();
    match what {
        What::Ingest(args) => reports.push(ingest::run(target, control, *args).await?),
        What::Http(args) => reports.append(&mut http::run(target, control, *args).await?),
        What::Kafka(args) => reports.push(kafka::run(target, control, *args).await?),
        What::Query(args) => reports.push(query::run(target, control, *args).await?),
        What::Alerts(args) => reports.append(&mut alerts::run(target, control, *args).await?),
        What::Anomalies(args) => reports.push(anomalies::run(target, control, *args).await?),
        What::Freshness(args) => reports.push(freshness::run(target, control, *args).await?),
        What::Cohort(args) => reports.push(cohort::run(target, control, *args).await?),
        What::Funnel(args) => reports.push(funnel::run(control, *args).await?),
        What::Paper(args) => reports.append(&mut paper::run(target, control, *args).await?),
        What::All => {
            for views in [1, 5, 15, 30] {
                reports.push(ingest::run(target, control, ingest(views)).await?);
            }
            for rate in [0, 10_000] {
                reports.push(query::run(target, control, query(rate)).await?);
            }
            let freshness = FreshnessArgs { rate: 50_000, chunk: 2_500, views: 5, seconds: 20 };
            reports.push(freshness::run(target, control, freshness).await?);
            reports.push(anomalies::run(target, control, AnomaliesArgs { series: 1_000, points: 2_016 }).await?);
        }
    }
    Ok(reports)
}

/// Fails where the server does not hold what it acknowledged.
fn expect(what: &str, expected: i64, found: i64) -> Result<()> {
    if expected == found { Ok(()) } else { Err(Error::Wrong(format!("{what}: {found} where {expected} were acknowledged"))) }
}
