//! Alerts: from the close of a window to the delivery of its webhook, and what watching costs ingestion.
//!
//! A store of its own sends a minute's events at a time, three of each kind and one of each in turn. The alerts look at all stores and fire for that
//! one alone, so that each of its minutes that closes makes every alert over minutes fire or resolve.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use parking_lot::Mutex;
use serde_json::Value;
use tokio_postgres::Statement;

use super::super::event::{COLUMNS, Event, Form, TIME_CHARS, write_time};
use super::super::wire::Connection;
use super::super::{Error, Result};
use super::chunk::{Plan, Traffic};
use super::ingest::Acknowledged;
use super::report::Report;
use super::{AlertsArgs, Mode, Target, expect, ingest, schema};
use crate::clock::{Clock, Micros, SystemClock};

const MINUTE_US: Micros = 60_000_000;
/// How late rows of the table may be: a window closes so much after its end.
const LATENESS_US: Micros = 60 * MINUTE_US;
const STORE: u32 = 999_999;
const KINDS: [&str; 5] = ["purchase", "payment_failed", "checkout_start", "add_to_cart", "page_view"];
/// Counts that no other store reaches in a minute.
const NEVER: u32 = 1_000_000;
/// Event time between two events of the costs' runs: about as fast as the clock at half a million events a second.
const STEP_US: i64 = 2;
/// Events of the hour before.
const WARM_ROWS: u64 = 1_000_000;
/// From one closed window to the next.
const EVERY: Duration = Duration::from_secs(1);
/// How long the last messages may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks for them.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Messages as they came: alert, instance and window; of several with one id the first counts.
type Received = Arc<Mutex<HashMap<String, (Instant, String)>>>;

pub async fn run(target: &Target, control: &Connection, args: AlertsArgs) -> Result<Vec<Report>> {
    let outcome = both(target, control, args).await;
    let cleared = clear(control).await;
    let reports = outcome?;
    cleared.map(|()| reports)
}

async fn both(target: &Target, control: &Connection, args: AlertsArgs) -> Result<Vec<Report>> {
    Ok(vec![delivery(target, control, args).await?, cost(target, control, args).await?])
}

/// Windows close one by one while other events come in; each message is timed.
async fn delivery(target: &Target, control: &Connection, args: AlertsArgs) -> Result<Report> {
    let AlertsArgs { alerts, views, windows, .. } = args;
    let mut report = Report::new("alerts", &format!("{alerts} alerts over {views} views, {windows} windows closed one by one"));
    clear(control).await?;
    schema::create(control, views).await?;
    let received = Received::default();
    let address = receive(target, Arc::clone(&received)).await?;
    let channel =
        format!("CREATE NOTIFICATION CHANNEL bench_hook TYPE webhook WITH (url = 'http://{address}/', messages_per_minute = '60000')");
    control.run(&channel).await?;
    control.run("TEST NOTIFICATION CHANNEL bench_hook").await.map_err(|error| {
        Error::Wrong(format!("the server cannot send to {address} (it has to be on this machine, with --allow-private-channels): {error}"))
    })?;
    let copy = control.client.prepare(&format!("COPY bench_events ({COLUMNS}) FROM STDIN (FORMAT csv)")).await?;
    let first = SystemClock.now().div_euclid(MINUTE_US) * MINUTE_US - 2 * LATENESS_US;
    let warm = LATENESS_US / MINUTE_US + 2;
    for minute in 0..warm {
        send(control, &copy, first, minute).await?;
    }
    let watched = create(control, alerts, views).await?;
    evaluated_once(control, alerts).await?;
    // What the first evaluations have told is not counted.
    let waiting = "SELECT count(*) FROM verus.notifications WHERE state = 'pending'";
    wait_until(|| async { Ok(control.number(waiting).await? == 0) }).await?;
    received.lock().clear();
    let mut closed = HashMap::new();
    for minute in warm..warm + windows as i64 {
        send(control, &copy, first, minute).await?;
        closed.insert(shown(first + minute * MINUTE_US - LATENESS_US - MINUTE_US), Instant::now());
        tokio::time::sleep(EVERY).await;
    }
    let expected: usize = watched.iter().map(|instances| instances * windows as usize).sum();
    wait_until(|| async { Ok(received.lock().len() >= expected) }).await.ok();
    let messages = received.lock().clone();
    expect("messages of closed windows", expected as i64, messages.len() as i64)?;
    let mut times = Vec::with_capacity(messages.len());
    for (at, window) in messages.values() {
        let closed = closed.get(window).ok_or_else(|| Error::Wrong(format!("a message about {window}, which had not closed")))?;
        times.push(at.saturating_duration_since(*closed));
    }
    report.times("close_to_delivered", &mut times);
    report.checked(&format!("{expected} messages came, each once"));
    Ok(report)
}

/// Ingestion with all alerts and without them, in turn: event time runs about as fast as the clock, and a minute of every store closes.
async fn cost(target: &Target, control: &Connection, args: AlertsArgs) -> Result<Report> {
    let AlertsArgs { watched, views, rows, .. } = args;
    let mut report = Report::new("alerts_cost", &format!("{rows} events into {views} views, with {watched} alerts and without"));
    let mut rates = [Vec::new(), Vec::new()];
    let mut evaluated = 0;
    for round in 0..6 {
        let with = round % 2 == 1;
        clear(control).await?;
        schema::create(control, views).await?;
        // A little before a minute ends.
        let start = SystemClock.now().div_euclid(MINUTE_US) * MINUTE_US - 2_000_000;
        let earlier = warm(target, start).await?;
        if with {
            control.run("CREATE NOTIFICATION CHANNEL bench_hook TYPE notify WITH (channel = 'bench')").await?;
            create(control, watched, views).await?;
            evaluated_once(control, watched).await?;
        }
        let evaluations = "SELECT sum(evaluations)::bigint FROM verus.alerts";
        let before = if with { control.number(evaluations).await? } else { 0 };
        let plan = |start, total, step_us| {
            let traffic = Traffic { step_us, ..Traffic::default() };
            Plan { seed: target.seed, start, form: Form::Csv, total, chunk: 10_000, connections: 1, marker: None, traffic }
        };
        let (sum, seconds) = ingest::send(target, plan(start, rows, STEP_US), Mode::Copy).await?;
        if with {
            evaluated += control.number(evaluations).await? - before;
        }
        rates[usize::from(with)].push(sum.events as f64 / seconds);
        ingest::check(control, &sum.and(earlier)).await?;
    }
    let best = |rates: &[f64]| rates.iter().copied().fold(0.0, f64::max);
    let [without, with] = [best(&rates[0]), best(&rates[1])];
    report.number("events_per_second", without, "without alerts, the best of three");
    report.number("watched_events_per_second", with, "with them, the best of three");
    report.number("slower", 100.0 * (1.0 - with / without), "%");
    report.number("evaluations", evaluated as f64, "in all three");
    report.checked("count, and purchases and revenue by view, in each of six runs");
    Ok(report)
}

/// An hour of events before `start`, so that windows close from then on.
async fn warm(target: &Target, start: Micros) -> Result<Acknowledged> {
    let step_us = (LATENESS_US + 10 * MINUTE_US) / WARM_ROWS as i64;
    let traffic = Traffic { step_us, ..Traffic::default() };
    let (seed, start) = (target.seed + 1, start - WARM_ROWS as i64 * step_us);
    let plan = Plan { seed, start, form: Form::Csv, total: WARM_ROWS, chunk: 10_000, connections: 1, marker: None, traffic };
    Ok(ingest::send(target, plan, Mode::Copy).await?.0)
}

async fn evaluated_once(control: &Connection, alerts: u64) -> Result<()> {
    let all = "SELECT count(*) FROM verus.alerts WHERE alert_name LIKE 'bench_a%' AND evaluations > 0";
    wait_until(|| async { Ok(control.number(all).await? == alerts as i64) }).await
}

/// Makes alerts over the views in turn. For those over minutes of a store: the instances that the store of its own has.
async fn create(control: &Connection, alerts: u64, views: u64) -> Result<Vec<usize>> {
    let views: Vec<_> = schema::measured(views).collect();
    let mut watched = Vec::new();
    for alert in 0..alerts {
        let (name, keys, measure) = &views[alert as usize % views.len()];
        let minutes = keys.contains(&"store_id") && keys.iter().any(|key| key.contains("MINUTE"));
        let limit = match minutes {
            true => format!("CASE WHEN store_id = 'store_{STORE}' THEN 2 ELSE {NEVER} END"),
            false => format!("{NEVER} * 1000"),
        };
        let columns: Vec<_> = keys.iter().map(|key| key.rsplit(' ').next().unwrap_or(key)).collect();
        let columns = columns.join(", ");
        control
            .run(&format!(
                "CREATE ALERT bench_a{alert:04} AS SELECT {columns}, {measure} AS measure FROM {name} WHERE {measure} > {limit} \
                 WITH NOTIFICATION bench_hook"
            ))
            .await?;
        if minutes {
            watched.push(if keys.contains(&"event_type") { KINDS.len() } else { 1 });
        }
    }
    Ok(watched)
}

/// The events of one minute.
async fn send(control: &Connection, copy: &Statement, first: Micros, minute: i64) -> Result<()> {
    let mut data = Vec::new();
    for kind in KINDS {
        for number in 0..if minute % 2 == 0 { 3 } else { 1 } {
            let (user, session, time) = (number, u64::from(number), first + minute * MINUTE_US + i64::from(number));
            let event = Event {
                kind,
                user,
                session,
                time,
                store: STORE,
                device: "mobile",
                source: "google",
                cents: 100,
                quantity: 1,
                ..Event::default()
            };
            event.write(Form::Csv, &mut data);
        }
    }
    control.copy(copy, data.into()).await?;
    Ok(())
}

/// A time as messages show it.
fn shown(time: Micros) -> String {
    let mut text = [0; TIME_CHARS];
    write_time(time, &mut text);
    String::from_utf8_lossy(&text[..19]).replace(' ', "T") + "Z"
}

/// Listens for messages. Its address.
async fn receive(target: &Target, received: Received) -> Result<std::net::SocketAddr> {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let router = Router::new().fallback(take).with_state(received);
    drop(target.spawner.io(async move { axum::serve(listener, router).await }));
    Ok(address)
}

async fn take(State(received): State<Received>, body: String) -> StatusCode {
    let now = Instant::now();
    let Ok(message) = serde_json::from_str::<Value>(&body) else { return StatusCode::BAD_REQUEST };
    let text = |field: &str| message.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    received.lock().entry(text("id")).or_insert((now, text("window_start")));
    StatusCode::OK
}

/// Waits for something, but not for ever.
async fn wait_until<F: Future<Output = Result<bool>>>(mut holds: impl FnMut() -> F) -> Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        if holds().await? {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Err(Error::Wrong(format!("what was waited for did not happen within {} s", PATIENCE.as_secs())))
}

/// Drops the alerts and the channel of this or an earlier run.
async fn clear(control: &Connection) -> Result<()> {
    let names = control.client.query("SELECT alert_name::text FROM verus.alerts WHERE alert_name LIKE 'bench_a%'", &[]).await?;
    let names: HashSet<String> = names.iter().map(|row| row.get(0)).collect();
    for name in names {
        control.run(&format!("DROP ALERT {name}")).await?;
    }
    control.run("DROP NOTIFICATION CHANNEL IF EXISTS bench_hook").await
}
