//! `verus demo`: live shop traffic, and queries worth trying on it.
//!
//! *Place*: called by `main`. [`server`] starts and stops a server, [`traffic`] makes the events, [`queries`] says what to ask.
//!
//! *Invariants*: (1) a server that was started here is stopped here, also after a failure; (2) nothing is created or dropped:
//! events go into the shipped commerce schema's table `events`, so an existing server's are only added to.

mod queries;
mod server;
mod traffic;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;

use super::event::{COLUMNS, Form};
use super::wire::{Address, Connection};
use super::{Error, Result};
use crate::clock::{Clock, Micros, SystemClock};
use crate::task::{Runtimes, Spawner};
use server::Server;
use traffic::{Plan, Traffic};

/// Starts a server, gives it some hours of a shop's history, and sends live traffic until Ctrl-C.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Send to a server that runs already instead of starting one
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["data_dir", "listen", "http"])]
    connect: Option<String>,
    /// Data directory of the server that is started
    #[arg(long, value_name = "DIR", default_value = "./verus-demo")]
    data_dir: PathBuf,
    /// Its address of the PostgreSQL protocol
    #[arg(long, value_name = "HOST:PORT", env = "LISTEN", default_value = "127.0.0.1:5432")]
    listen: String,
    /// Its address of /health and /metrics
    #[arg(long, value_name = "HOST:PORT", env = "HTTP", default_value = "127.0.0.1:8080")]
    http: String,
    /// Password of user verus
    #[arg(long, env = "VERUS_PASSWORD", hide_env_values = true, value_name = "PASSWORD")]
    password: Option<String>,
    /// Events per second, as the mean of a week
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Hours of history that are sent first
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=720))]
    history: u32,
    /// Stop after so many seconds of live traffic
    #[arg(long)]
    seconds: Option<u64>,
    /// Start of the random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Events in a COPY of the history.
const HISTORY_CHUNK: usize = 10_000;
/// Between two COPYs of live events.
const LIVE_EVERY: Duration = Duration::from_millis(100);
const HOUR_US: i64 = 3_600_000_000;

/// Runs `verus demo`.
pub fn demo(args: &DemoArgs) -> Result<()> {
    let runtimes = Runtimes::start(2)?;
    let spawner = runtimes.spawner();
    let outcome = runtimes.block_on(async {
        tokio::select! {
            outcome = run(args, &spawner) => outcome,
            _ = tokio::signal::ctrl_c() => {
                println!("\nstopping");
                Ok(())
            }
        }
    });
    // What `run` held, the server included, is gone by now.
    runtimes.shutdown();
    outcome
}

async fn run(args: &DemoArgs, spawner: &Spawner) -> Result<()> {
    let place = args.connect.as_ref().unwrap_or(&args.listen);
    let address = address(place, args.password.clone())?;
    let mut server = match args.connect {
        Some(_) => None,
        None => Some(Server::start(&args.data_dir, &args.listen, &args.http, args.password.as_deref())?),
    };
    let client = match &mut server {
        Some(server) => server.ready(&address, spawner).await?,
        None => Connection::open(&address, "verus demo", spawner).await?,
    };
    let reader = Connection::open(&address, "verus demo", spawner).await?;
    if client.number("SELECT count(*) FROM verus.views WHERE view_name = 'mv_revenue_by_day'").await? == 0 {
        return Err(Error::Setup("the server has no commerce schema: start it without --no-template on a new directory".to_owned()));
    }
    let now = SystemClock.now();
    // On a directory of an earlier run history goes on where that one ended.
    let newest = client.number("SELECT (extract(epoch FROM max(event_time)) * 1000000)::bigint FROM events").await?;
    let from = (now - i64::from(args.history) * HOUR_US).max(newest.saturating_add(1));
    let plan = Plan::around(now);
    let mut traffic = Traffic::new(args.seed ^ now as u64, args.rate, from, plan.clone());
    history(&client, &mut traffic).await?;
    println!("planted anomalies:");
    for line in plan.lines() {
        println!("  {line}");
    }
    println!("\nfive queries worth trying:   psql -h {} -p {} -U verus verus", address.host, address.port);
    for (title, query) in queries::QUERIES {
        println!("\n-- {title}\n{query}");
    }
    println!();
    live(&client, &reader, &mut traffic, args.seconds).await
}

fn address(place: &str, password: Option<String>) -> Result<Address> {
    let refused = || Error::Setup(format!("\"{place}\" is not HOST:PORT"));
    let (host, port) = place.rsplit_once(':').ok_or_else(refused)?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(Address { host, port: port.parse().map_err(|_| refused())?, password })
}

fn copy_statement() -> String {
    format!("COPY events ({COLUMNS}) FROM STDIN (FORMAT csv)")
}

/// Sends what happened until now.
async fn history(client: &Connection, traffic: &mut Traffic) -> Result<()> {
    // History comes hours late: every view counts it all the same.
    client.run("SET verus.late_rows = 'apply'").await?;
    let copy = client.client.prepare(&copy_statement()).await?;
    let begin = Instant::now();
    let mut said = begin;
    let mut sent = 0;
    loop {
        let mut lines = Vec::with_capacity(HISTORY_CHUNK * 300);
        let batch = traffic.until(SystemClock.now(), HISTORY_CHUNK, |event| {
            event.write(Form::Csv, &mut lines);
        });
        if batch.events > 0 {
            sent += client.copy(&copy, lines.into()).await?;
        }
        let over = batch.events < HISTORY_CHUNK as i64;
        if over || said.elapsed() > Duration::from_secs(2) {
            said = Instant::now();
            let rate = sent as f64 / begin.elapsed().as_secs_f64();
            println!("history: {sent} events, {rate:.0} a second{}", if over { ", done\n" } else { "" });
        }
        if over {
            break;
        }
    }
    client.run("RESET verus.late_rows").await
}

/// Sends what happens, and looks each second whether all of it is in a view.
async fn live(client: &Connection, reader: &Connection, traffic: &mut Traffic, seconds: Option<u64>) -> Result<()> {
    let copy = client.client.prepare(&copy_statement()).await?;
    let look = reader.client.prepare("SELECT coalesce(sum(order_count), 0)::bigint FROM mv_revenue_by_day").await?;
    let mut expected: i64 = reader.client.query_one(&look, &[]).await?.get(0);
    let begin = Instant::now();
    let (mut said, mut events) = (begin, 0);
    let mut ticks = tokio::time::interval(LIVE_EVERY);
    while seconds.is_none_or(|seconds| begin.elapsed().as_secs() < seconds) {
        ticks.tick().await;
        let mut lines = Vec::new();
        let now: Micros = SystemClock.now();
        let batch = traffic.until(now, usize::MAX, |event| {
            event.write(Form::Csv, &mut lines);
        });
        if batch.events == 0 {
            continue;
        }
        let sent = Instant::now();
        client.copy(&copy, lines.into()).await?;
        let acknowledged = sent.elapsed();
        events += batch.events;
        expected += batch.orders;
        if said.elapsed() < Duration::from_secs(1) {
            continue;
        }
        let found: i64 = reader.client.query_one(&look, &[]).await?.get(0);
        let visible = sent.elapsed();
        let rate = events as f64 / said.elapsed().as_secs_f64();
        // Somebody else may send as well, so more orders than these are no wonder.
        let state = if found >= expected { "all in the view".to_owned() } else { format!("{} missing in the view", expected - found) };
        println!(
            "{rate:>8.0} events/s   acknowledged in {:>6.1} ms   sent to visible {:>6.1} ms   {found} orders, {state}",
            acknowledged.as_secs_f64() * 1e3,
            visible.as_secs_f64() * 1e3
        );
        (said, events, expected) = (Instant::now(), 0, found);
    }
    Ok(())
}
