//! A query of an event table has the same answer whichever way it is routed: random views (with and without data, with `ttl`),
//! random queries near to them, rows hot and cold, late and very late, retention, stops and kills.
//!
//! Both answers are taken in one repeatable-read transaction, so on one snapshot. A failure prints the seed of its round;
//! `VERUS_ROUTING_SEED=n VERUS_ROUTING_CASES=1` runs that round alone.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::harness::{Options, Server, Session};
use crate::property::{AGGREGATES, Event, FILTERS, copy, insert, nearly};

/// Queries of one round, which is one server.
const QUERIES: u64 = 120;

/// Keys that views are grouped by.
const KEYS: &[&str] = &["store", "source", "kind", "quantity", "upper(store)", "user_id"];

/// Windows that views are grouped by, each with coarser ones and functions that it decides.
const WINDOWS: &[(&str, &[&str])] = &[
    (
        "TUMBLE(at, INTERVAL '1' MINUTE)",
        &["TUMBLE(at, INTERVAL '5' MINUTE)", "date_trunc('hour', at)", "at::date", "day", "extract(minute FROM at)"],
    ),
    (
        "date_trunc('hour', at)",
        &["date_trunc('day', at)", "date_trunc('week', at)", "TUMBLE(at, INTERVAL '3' HOUR)", "extract(hour FROM at)", "day"],
    ),
    (
        "TUMBLE(at, INTERVAL '1' HOUR, INTERVAL '20' MINUTE)",
        &["TUMBLE(at, INTERVAL '2' HOUR, INTERVAL '20' MINUTE)", "TUMBLE_END(at, INTERVAL '1' HOUR, INTERVAL '20' MINUTE)"],
    ),
    (
        "date_bin(INTERVAL '7 minutes', at, timestamptz '2024-01-01 00:00:00+00')",
        &["date_bin(INTERVAL '14 minutes', at, timestamptz '2024-01-01 00:07:00+00')"],
    ),
    ("day", &["date_trunc('month', day)", "at::date", "date_trunc('week', at)", "extract(dow FROM at)"]),
    ("date_trunc('day', at)", &["date_trunc('month', at)", "day", "extract(year FROM at)"]),
];

/// Filters that queries have beside a view's own.
const LEFTOVERS: &[&str] = &[
    "store = 's1'",
    "source IS NOT NULL",
    "kind <> 'purchase'",
    "store IN ('s0', 's3') OR source = 'mail'",
    "quantity BETWEEN 2 AND 6",
    "day > '2024-05-01'",
];

struct View {
    name: String,
    query: String,
    keys: Vec<String>,
    window: Option<usize>,
    aggregates: Vec<(String, bool)>,
    filter: Option<&'static str>,
    /// A view of the same query whose windows stay in its state.
    twin: Option<String>,
}

impl View {
    fn random(random: &mut StdRng, name: String) -> View {
        let count = random.random_range(0..4);
        let keys: Vec<String> = KEYS.choose_multiple(random, count).map(|key| (*key).to_owned()).collect();
        let window = random.random_bool(0.8).then(|| random.random_range(0..WINDOWS.len()));
        let count = random.random_range(1..7);
        let aggregates: Vec<(String, bool)> =
            AGGREGATES.choose_multiple(random, count).map(|(text, inexact)| ((*text).to_owned(), *inexact)).collect();
        let filter = random.random_bool(0.4).then(|| *FILTERS.choose(random).expect("not empty"));
        let mut grouped = keys.clone();
        grouped.extend(window.map(|window| WINDOWS[window].0.to_owned()));
        let query = select(&grouped, &aggregates, &filter.map(str::to_owned).into_iter().collect::<Vec<_>>());
        View { name, query, keys, window, aggregates, filter, twin: None }
    }
}

fn select(keys: &[String], aggregates: &[(String, bool)], filters: &[String]) -> String {
    let columns = keys.iter().enumerate().map(|(index, key)| format!("{key} AS k{index}"));
    let values = aggregates.iter().enumerate().map(|(index, (aggregate, _))| format!("{aggregate} AS a{index}"));
    let list: Vec<String> = columns.chain(values).collect();
    let filter = if filters.is_empty() {
        String::new()
    } else {
        format!(" WHERE {}", filters.iter().map(|filter| format!("({filter})")).collect::<Vec<_>>().join(" AND "))
    };
    let ordinals: Vec<String> = (1..=keys.len()).map(|ordinal| ordinal.to_string()).collect();
    let group = if keys.is_empty() { String::new() } else { format!(" GROUP BY {}", ordinals.join(", ")) };
    format!("SELECT {} FROM events{filter}{group}", list.join(", "))
}

struct Query {
    text: String,
    keys: usize,
    inexact: Vec<bool>,
}

impl Query {
    /// One that a view might answer.
    fn near(random: &mut StdRng, view: &View, now: i64) -> Query {
        let mut keys: Vec<String> = view.keys.iter().filter(|_| random.random_bool(0.6)).cloned().collect();
        if random.random_bool(0.15) {
            keys.extend(KEYS.choose(random).map(|key| (*key).to_owned()).filter(|key| !keys.contains(key)));
        }
        if let Some(window) = view.window
            && random.random_bool(0.7)
        {
            let (own, coarser) = WINDOWS[window];
            let key = if random.random_bool(0.4) { own } else { coarser.choose(random).expect("not empty") };
            keys.push(key.to_owned());
        }
        let mut aggregates: Vec<(String, bool)> = view.aggregates.iter().filter(|_| random.random_bool(0.6)).cloned().collect();
        if random.random_bool(0.3) {
            let more: &[(&str, bool)] = &[
                ("count(*)", false),
                ("avg(revenue)", false),
                ("count(DISTINCT store)", false),
                ("max(source)", false),
                ("count(*) FILTER (WHERE store = 's2')", false),
                ("count(store)", false),
            ];
            aggregates.extend(more.choose(random).map(|(text, inexact)| ((*text).to_owned(), *inexact)));
        }
        if aggregates.is_empty() {
            aggregates.push(("count(*)".to_owned(), false));
        }
        let mut filters: Vec<String> = view.filter.iter().filter(|_| random.random_bool(0.9)).map(|filter| (*filter).to_owned()).collect();
        if random.random_bool(0.3) {
            filters.extend(LEFTOVERS.choose(random).map(|filter| (*filter).to_owned()));
        }
        if random.random_bool(0.5) {
            filters.extend(times(random, now));
        }
        let inexact = keys.iter().map(|_| false).chain(aggregates.iter().map(|(_, inexact)| *inexact)).collect();
        Query { text: select(&keys, &aggregates, &filters), keys: keys.len(), inexact }
    }

    /// Compares the two routes; whether a view had part in the answer.
    async fn check(&self, random: &mut StdRng, session: &Session, what: &str) -> bool {
        session.rows("BEGIN ISOLATION LEVEL REPEATABLE READ").await;
        let plan = session.rows(&format!("EXPLAIN (ROUTE) {}", self.text)).await;
        let verified = random.random_bool(0.1);
        if verified {
            session.rows("SET LOCAL verus.verify_route = on").await;
        }
        let routed = session.rows(&self.text).await;
        session.rows("SET LOCAL verus.route = 'scan'").await;
        let scanned = session.rows(&self.text).await;
        session.rows("COMMIT").await;
        same(&routed, &scanned, self.keys, &self.inexact, &format!("{what}: {}\n  {plan:?}", self.text));
        !plan.first().is_some_and(|line| line[0].starts_with("Route: scan"))
    }
}

/// A range of event time, on bounds of windows or between them.
fn times(random: &mut StdRng, now: i64) -> Vec<String> {
    let at = |random: &mut StdRng| {
        let time = now - random.random_range(-600..12_000);
        let grain = *[1, 60, 3600, 86_400].choose(random).expect("not empty");
        let time = chrono::DateTime::from_timestamp(time - time.rem_euclid(grain), 0).expect("in range");
        format!("timestamptz '{}'", time.to_rfc3339())
    };
    let (one, other) = (at(random), at(random));
    match random.random_range(0..7) {
        0 => vec![format!("at >= {one}")],
        1 => vec![format!("at < {one}")],
        2 => vec![format!("at BETWEEN least({one}, {other}) AND greatest({one}, {other})")],
        3 => vec![format!("date_trunc('hour', at) >= {one}")],
        4 => vec![format!("at > {one}"), format!("at <= {other}")],
        5 => vec![format!("at = {one}")],
        _ => vec![format!("at >= {one} - INTERVAL '2 hours'"), format!("at < {one}")],
    }
}

fn same(one: &[Vec<String>], other: &[Vec<String>], keys: usize, inexact: &[bool], what: &str) {
    let (mut one, mut other) = (one.to_vec(), other.to_vec());
    one.sort_by(|a, b| a[..keys].cmp(&b[..keys]));
    other.sort_by(|a, b| a[..keys].cmp(&b[..keys]));
    assert_eq!(one.len(), other.len(), "{what}: number of groups\n  routed: {one:?}\n  scan:   {other:?}");
    for (a, b) in one.iter().zip(&other) {
        let equal = a.iter().zip(b).zip(inexact).all(|((a, b), inexact)| a == b || (*inexact && nearly(a, b)));
        assert!(equal, "{what}\n  routed: {a:?}\n  scan:   {b:?}");
    }
}

async fn create(random: &mut StdRng, session: &Session, step: usize) -> View {
    let mut view = View::random(random, format!("v{step}"));
    let ttl = view.window.is_some() && random.random_bool(0.5);
    if ttl {
        // The twin first: rows between the two would be in one of them only, but nothing else writes here.
        let twin = format!("t{step}");
        session.rows(&format!("CREATE MATERIALIZED VIEW {twin} AS {}", view.query)).await;
        view.twin = Some(twin);
    }
    let options = if ttl { format!(" WITH (ttl = '{} minutes')", random.random_range(5..240)) } else { String::new() };
    let data = if !ttl && random.random_bool(0.3) { " WITH NO DATA" } else { "" };
    session.rows(&format!("CREATE MATERIALIZED VIEW {}{options} AS {}{data}", view.name, view.query)).await;
    view
}

async fn write(random: &mut StdRng, session: &Session, now: &mut i64, next_id: &mut u64) {
    let count = random.random_range(1..150);
    let mut events = Vec::with_capacity(count);
    for _ in 0..count {
        *now += random.random_range(0..12);
        *next_id += 1;
        events.push(Event::random(random, *next_id, *now));
    }
    let late = if random.random_bool(0.3) { "apply" } else { "divert" };
    session.rows(&format!("SET verus.late_rows = '{late}'")).await;
    if random.random_bool(0.5) { insert(session, &events).await } else { copy(session, &events).await }
}

/// One server; how many of its queries had a view's part in the answer.
async fn round(seed: u64, queries: u64) -> u64 {
    let mut random = StdRng::seed_from_u64(seed);
    let mut server = Server::start_with(Options::busy()).await;
    let mut session = server.connect().await;
    let retention = if random.random_bool(0.3) { ", retention = '150 minutes'" } else { "" };
    session
        .rows(&format!(
            "CREATE TABLE events (id bigint NOT NULL, at timestamptz NOT NULL, store text NOT NULL, user_id text, source text, kind text, \
             quantity integer, revenue numeric(12,2), score double precision, zone text, day date GENERATED ALWAYS AS (at::date) STORED, \
             WATERMARK FOR at AS at - INTERVAL '5 minutes') WITH (partition_by = 'store', dedup_key = 'id'{retention})"
        ))
        .await;
    let mut views: Vec<View> = Vec::new();
    let (mut now, mut next_id) = (1_714_557_600, 0);
    let (mut done, mut routed, mut step) = (0, 0, 0);
    while done < queries {
        step += 1;
        let what = format!("seed {seed}, step {step}");
        match random.random_range(0..20) {
            0..4 if views.len() < 6 => views.push(create(&mut random, &session, step).await),
            4 if views.len() > 2 => {
                let view = views.swap_remove(random.random_range(0..views.len()));
                for name in [Some(view.name), view.twin].into_iter().flatten() {
                    session.rows(&format!("DROP MATERIALIZED VIEW {name}")).await;
                }
            }
            5 if random.random_bool(0.4) => {
                server.kill();
                server.restart().await;
                session = server.connect().await;
            }
            6 if views.iter().any(|view| view.twin.is_some()) => {
                let view = views.iter().filter(|view| view.twin.is_some()).collect::<Vec<_>>();
                let name = &view.choose(&mut random).expect("not empty").name;
                let minutes = random.random_range(5..240);
                session.rows(&format!("ALTER MATERIALIZED VIEW {name} SET (ttl = '{minutes} minutes')")).await;
            }
            7 if next_id > 0 => {
                let condition = match random.random_range(0..3) {
                    0 => format!("user_id = 'u{}'", random.random_range(0..20)),
                    1 => format!("at < to_timestamp({})", now - random.random_range(0..20_000)),
                    _ => format!("id % 50 = {}", random.random_range(0..50)),
                };
                // Rows that a view counts together with rows that retention has removed stay.
                if let Err(error) = session.query(&format!("DELETE FROM events WHERE {condition}")).await {
                    assert_eq!(error.state, "55000", "{what}: {error}");
                }
            }
            8..12 => write(&mut random, &session, &mut now, &mut next_id).await,
            _ if views.is_empty() || next_id == 0 => write(&mut random, &session, &mut now, &mut next_id).await,
            _ => {
                for _ in 0..4 {
                    let view = views.choose(&mut random).expect("not empty");
                    let query = Query::near(&mut random, view, now);
                    routed += u64::from(query.check(&mut random, &session, &what).await);
                    done += 1;
                }
                for view in &views {
                    let Some(twin) = &view.twin else { continue };
                    session.rows("BEGIN ISOLATION LEVEL REPEATABLE READ").await;
                    let kept = session.rows(&format!("SELECT * FROM {twin}")).await;
                    let merged = session.rows(&format!("SELECT * FROM {}", view.name)).await;
                    session.rows("COMMIT").await;
                    let keys = view.keys.len() + 1;
                    let inexact: Vec<bool> = (0..keys).map(|_| false).chain(view.aggregates.iter().map(|(_, inexact)| *inexact)).collect();
                    same(&merged, &kept, keys, &inexact, &format!("{what}: {} and its twin AS {}", view.name, view.query));
                }
            }
        }
    }
    routed
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_gives_the_same_answer() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let cases = variable("VERUS_ROUTING_CASES").unwrap_or(2 * QUERIES);
    let first = variable("VERUS_ROUTING_SEED").unwrap_or(1);
    let (mut done, mut routed) = (0, 0);
    for seed in first.. {
        if done >= cases {
            break;
        }
        println!("seed {seed}");
        routed += round(seed, QUERIES).await;
        done += QUERIES;
    }
    println!("{done} queries, {routed} of them with a view's part in the answer");
    assert!(routed * 4 > done, "only {routed} of {done} queries were routed: the test shows little");
}
