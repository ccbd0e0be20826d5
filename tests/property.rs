//! A view equals its query over the accepted rows, whatever happens: random views (made before, between and after the rows; joined
//! with a plain table; over other views), rows in random order, late, very late and twice, statements of random size by INSERT and COPY,
//! random DELETEs, clean stops and kills.
//!
//! What is accepted is not taken from the server: [`Model`] decides it by SQL.md's rules. A failure prints the seed of its case;
//! `VERUS_PROPERTY_SEED=n VERUS_PROPERTY_CASES=1` runs that case alone.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::harness::{Options, SOON, Server, Session};

const LATENESS_SECONDS: i64 = 300;

/// Aggregates over the columns of [`Event`], and whether two orders of adding may differ in the last digits.
pub const AGGREGATES: &[(&str, bool)] = &[
    ("count(*)", false),
    ("count(revenue)", false),
    ("sum(revenue)", false),
    ("sum(quantity)", false),
    ("avg(quantity)", false),
    ("avg(revenue)", false),
    ("min(at)", false),
    ("max(revenue)", false),
    ("min(source)", false),
    ("max(user_id)", false),
    ("count(DISTINCT user_id)", false),
    ("count(DISTINCT source)", false),
    ("sum(DISTINCT quantity)", false),
    ("count(*) FILTER (WHERE kind = 'purchase')", false),
    ("sum(revenue) FILTER (WHERE source IS NULL)", false),
    ("bool_and(quantity > 1)", false),
    ("bool_or(source = 'mail')", false),
    ("string_agg(user_id, ',' ORDER BY at, id)", false),
    ("array_agg(quantity ORDER BY id)", false),
    ("array_agg(quantity)", false),
    ("string_agg(user_id, ',')", false),
    ("array_agg(DISTINCT quantity)", false),
    ("string_agg(DISTINCT user_id, ',')", false),
    ("first_value(user_id ORDER BY at, id)", false),
    ("approx_distinct(user_id)", false),
    ("median(quantity)", false),
    ("sum(score)", true),
    ("avg(score)", true),
    ("stddev(score)", true),
    ("var_pop(quantity)", true),
];

const KEYS: &[&str] = &[
    "store",
    "source",
    "kind",
    "quantity % 3",
    "upper(store)",
    "TUMBLE(at, INTERVAL '1' MINUTE)",
    "TUMBLE(at, INTERVAL '1' HOUR)",
    "TUMBLE(at, INTERVAL '1 hour', INTERVAL '25 minutes')",
    "TUMBLE(at AT TIME ZONE 'America/New_York', INTERVAL '1' DAY)",
    "date_trunc('day', at, 'Asia/Kolkata')",
    "date_trunc('hour', at AT TIME ZONE zone)",
    "date_trunc('hour', at)",
    "date_trunc('day', at)",
    "date_bin(INTERVAL '7 minutes', at, timestamptz '2024-01-01 00:00:00+00')",
];

/// Keys over the table that is joined.
const JOINED_KEYS: &[&str] = &["region", "coalesce(rank, 0) % 2", "store", "TUMBLE(at, INTERVAL '1' HOUR)"];

const JOINS: &[&str] = &[
    "events JOIN places ON place = store",
    "events LEFT JOIN places ON events.store = places.place",
    "events, places WHERE place = store",
    "places JOIN events ON place = store AND rank > 1",
    "events LEFT JOIN places ON place = store AND region <> 'north'",
];

/// Windows that overlap or depend on other rows: at most one of them is a view's key.
const WINDOWS: &[&str] = &[
    "HOP(at, INTERVAL '5' MINUTE, INTERVAL '1' HOUR)",
    "HOP(at, INTERVAL '7 minutes', INTERVAL '30 minutes', INTERVAL '2 minutes')",
    "HOP(at AT TIME ZONE 'Europe/Berlin', INTERVAL '1 hour', INTERVAL '20 minutes')",
    "SESSION(at, INTERVAL '20' SECOND)",
    "SESSION(at, INTERVAL '5' SECOND)",
    "SESSION(at, INTERVAL '10' MINUTE)",
];

/// What is refreshed: most of them window by window, some whole. The number of columns, by which rows are ordered.
const REFRESHED: &[(&str, usize)] = &[
    (
        "SELECT store, TUMBLE(at, INTERVAL '1' HOUR) AS h, sum(revenue) AS s, \
         rank() OVER (PARTITION BY TUMBLE(at, INTERVAL '1' HOUR) ORDER BY sum(quantity), store) AS r FROM events GROUP BY 1, 2",
        4,
    ),
    (
        "SELECT a.h, count(*) AS n FROM (SELECT DISTINCT date_trunc('hour', at) AS h, user_id FROM events) a \
         JOIN (SELECT DISTINCT date_trunc('hour', at) AS h, user_id FROM events) b ON a.h = b.h AND a.user_id < b.user_id GROUP BY 1",
        2,
    ),
    (
        "SELECT a.h, a.n, b.m FROM (SELECT date_trunc('day', at) AS h, count(*) AS n FROM events WHERE kind = 'page_view' GROUP BY 1) a \
         LEFT JOIN (SELECT date_trunc('day', at) AS h, count(*) AS m FROM events WHERE quantity > 7 GROUP BY 1) b ON a.h = b.h",
        3,
    ),
    ("SELECT DISTINCT ON (date_trunc('day', at), store) date_trunc('day', at) AS d, store, id FROM events ORDER BY 1, store, id", 3),
    ("SELECT TUMBLE(at, INTERVAL '1' MINUTE) AS m, region, count(*) AS n FROM events JOIN places ON quantity < rank GROUP BY 1, 2", 3),
    ("SELECT date_trunc('hour', at) AS h, kind FROM events UNION SELECT date_trunc('hour', at), source FROM events", 2),
    ("SELECT id, row_number() OVER (ORDER BY id) AS r FROM events ORDER BY id DESC LIMIT 20", 2),
    ("SELECT avg(n) AS n FROM (SELECT store, count(*) AS n FROM events GROUP BY store) AS counts", 1),
];

pub const FILTERS: &[&str] = &[
    "kind = 'purchase'",
    "revenue > 10",
    "source IS NOT NULL",
    "store IN ('s0', 's2') AND quantity < 5",
    "kind LIKE 'p%' OR revenue IS NULL",
];

#[derive(Clone, Debug)]
pub struct Event {
    id: u64,
    at: i64,
    store: String,
    user_id: Option<String>,
    source: Option<&'static str>,
    kind: &'static str,
    quantity: Option<i32>,
    cents: Option<i64>,
    score: f64,
    zone: &'static str,
}

impl Event {
    pub fn random(random: &mut StdRng, id: u64, now: i64) -> Event {
        let sometimes = |random: &mut StdRng| random.random_bool(0.85);
        Event {
            id,
            // Mostly in order, often a little late, now and then very late, seldom ahead.
            at: now
                + match random.random_range(0..10) {
                    0..5 => random.random_range(0..20),
                    5..8 => -random.random_range(0..LATENESS_SECONDS),
                    8 => -random.random_range(0..20_000),
                    _ => random.random_range(0..1_000),
                },
            store: format!("s{}", random.random_range(0..4)),
            user_id: sometimes(random).then(|| format!("u{}", random.random_range(0..30))),
            source: sometimes(random).then(|| *["google", "mail", "ads"].choose(random).expect("not empty")),
            kind: ["page_view", "purchase", "add_to_cart"].choose(random).expect("not empty"),
            quantity: sometimes(random).then(|| random.random_range(0..9)),
            cents: sometimes(random).then(|| random.random_range(-500..50_000)),
            score: random.random_range(-1000.0..1000.0),
            zone: ["UTC", "America/New_York", "Australia/Lord_Howe"].choose(random).expect("not empty"),
        }
    }

    fn values(&self) -> [Option<String>; 10] {
        [
            Some(self.id.to_string()),
            Some(chrono::DateTime::from_timestamp(self.at, 0).expect("in range").to_rfc3339()),
            Some(self.store.clone()),
            self.user_id.clone(),
            self.source.map(str::to_owned),
            Some(self.kind.to_owned()),
            self.quantity.map(|quantity| quantity.to_string()),
            self.cents.map(|cents| format!("{}{}.{:02}", if cents < 0 { "-" } else { "" }, cents.abs() / 100, cents.abs() % 100)),
            Some(self.score.to_string()),
            Some(self.zone.to_owned()),
        ]
    }
}

/// What the table and its late companion have to hold, by SQL.md section 2 and 3.
#[derive(Default)]
struct Model {
    accepted: BTreeMap<u64, Event>,
    /// Deleted again: their keys are still known.
    erased: BTreeSet<u64>,
    late: BTreeSet<u64>,
    newest: BTreeMap<String, i64>,
}

impl Model {
    /// One statement: duplicates first, then lateness by the watermarks from before it.
    fn commit(&mut self, events: &[Event]) {
        let watermarks = self.newest.clone();
        for event in events {
            if self.accepted.contains_key(&event.id) || self.erased.contains(&event.id) {
                continue;
            }
            if watermarks.get(&event.store).is_some_and(|newest| event.at < newest - LATENESS_SECONDS) {
                self.late.insert(event.id);
                continue;
            }
            let newest = self.newest.entry(event.store.clone()).or_insert(event.at);
            *newest = event.at.max(*newest);
            self.accepted.insert(event.id, event.clone());
        }
    }

    /// Deletes what a condition says; the number of rows.
    fn delete(&mut self, condition: impl Fn(&Event) -> bool) -> usize {
        let gone: Vec<u64> = self.accepted.values().filter(|event| condition(event)).map(|event| event.id).collect();
        gone.iter().for_each(|id| drop(self.accepted.remove(id)));
        self.erased.extend(&gone);
        gone.len()
    }
}

/// A random DELETE: some rows of one store, of one user, of a time, or nearly all.
async fn delete(session: &Session, model: &mut Model, random: &mut StdRng, now: i64) {
    let number = random.random_range(0..30);
    let (sql, count) = match random.random_range(0..10) {
        0..4 => {
            let user = format!("u{number}");
            (format!("user_id = '{user}'"), model.delete(|event| event.user_id.as_ref() == Some(&user)))
        }
        4..7 => {
            let (store, quantity) = (format!("s{}", number % 4), i32::from(number as u8 % 9));
            let sql = format!("store = '{store}' AND quantity = {quantity}");
            (sql, model.delete(|event| event.store == store && event.quantity == Some(quantity)))
        }
        7..9 => {
            let (from, to) = (now - 300, now - 200);
            let sql = format!("at >= to_timestamp({from}) AND at < to_timestamp({to})");
            (sql, model.delete(|event| event.at >= from && event.at < to))
        }
        _ => (format!("id % 5 <> {}", number % 5), model.delete(|event| event.id % 5 != number % 5)),
    };
    let deleted =
        session.client.execute(&format!("DELETE FROM events WHERE {sql}"), &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    assert_eq!(deleted as usize, count, "DELETE WHERE {sql}");
}

#[derive(Clone)]
struct View {
    name: String,
    query: String,
    refreshed: bool,
    /// The view that it reads.
    over: Option<String>,
    /// Its output columns: what each is of, `k` for keys and `a` for aggregates.
    columns: Vec<(String, String)>,
    /// The first columns are the keys.
    keys: usize,
    /// Per column: compare as numbers, not as texts.
    inexact: Vec<bool>,
}

impl View {
    fn random(random: &mut StdRng, name: String) -> View {
        let count = random.random_range(0..4);
        let mut keys: Vec<&str> = KEYS.choose_multiple(random, count).copied().collect();
        if random.random_bool(0.5) {
            keys.push(WINDOWS.choose(random).expect("not empty"));
        }
        let count = random.random_range(1..6);
        let mut aggregates: Vec<&(&str, bool)> = AGGREGATES.choose_multiple(random, count).collect();
        if keys.iter().any(|key| key.starts_with("SESSION")) {
            // A view puts the fragments of a session together one after the other.
            aggregates.retain(|(aggregate, _)| !["array_agg(quantity)", "string_agg(user_id, ',')"].contains(aggregate));
            aggregates.push(&AGGREGATES[0]);
        }
        let columns = keys.iter().enumerate().map(|(index, key)| format!("{key} AS k{index}"));
        let values = aggregates.iter().enumerate().map(|(index, (aggregate, _))| format!("{aggregate} AS a{index}"));
        let list: Vec<String> = columns.chain(values).collect();
        let filter = if random.random_bool(0.5) { format!(" WHERE {}", FILTERS.choose(random).expect("not empty")) } else { String::new() };
        let ordinals: Vec<String> = (1..=keys.len()).map(|ordinal| ordinal.to_string()).collect();
        let group = if keys.is_empty() { String::new() } else { format!(" GROUP BY {}", ordinals.join(", ")) };
        let inexact = keys.iter().map(|_| false).chain(aggregates.iter().map(|(_, inexact)| *inexact)).collect();
        let from = "events".to_owned() + &filter;
        View::of(name, &list, &from, &group, (keys.len(), inexact))
    }

    fn of(name: String, list: &[String], from: &str, group: &str, (keys, inexact): (usize, Vec<bool>)) -> View {
        let named = |item: &String| item.rsplit_once(" AS ").map(|(of, name)| (name.to_owned(), of.to_owned())).expect("an alias");
        let columns = list.iter().map(named).collect();
        View { name, query: format!("SELECT {} FROM {from}{group}", list.join(", ")), refreshed: false, over: None, columns, keys, inexact }
    }

    fn refreshed(random: &mut StdRng, name: String) -> View {
        let (query, width) = REFRESHED.choose(random).expect("not empty");
        let inexact = vec![false; *width];
        View { name, query: (*query).to_owned(), refreshed: true, over: None, columns: Vec::new(), keys: *width, inexact }
    }

    /// Rows joined with a plain table, which does not change.
    fn joined(random: &mut StdRng, name: String) -> View {
        let count = random.random_range(1..3);
        let keys: Vec<&str> = JOINED_KEYS.choose_multiple(random, count).copied().collect();
        let aggregates = ["count(*)", "sum(rank)", "sum(revenue)", "count(DISTINCT region)", "max(rank)", "count(region)", "avg(quantity)"];
        let count = random.random_range(1..5);
        let aggregates: Vec<&str> = aggregates.choose_multiple(random, count).copied().collect();
        let columns = keys.iter().enumerate().map(|(index, key)| format!("{key} AS k{index}"));
        let values = aggregates.iter().enumerate().map(|(index, aggregate)| format!("{aggregate} AS a{index}"));
        let list: Vec<String> = columns.chain(values).collect();
        let ordinals: Vec<String> = (1..=keys.len()).map(|ordinal| ordinal.to_string()).collect();
        let from = JOINS.choose(random).expect("not empty");
        let group = format!(" GROUP BY {}", ordinals.join(", "));
        let inexact = vec![false; list.len()];
        View::of(name, &list, from, &group, (keys.len(), inexact))
    }

    /// An aggregation of another view's groups.
    fn above(random: &mut StdRng, name: String, lower: &View) -> View {
        let (keys, values) = lower.columns.split_at(lower.keys);
        let count = random.random_range(0..=keys.len());
        let mut list: Vec<String> = Vec::new();
        for (index, (key, of)) in keys.choose_multiple(random, count).enumerate() {
            let coarser = of.contains("at,") || of.contains("at)") || of.contains(", at");
            let key = if coarser && random.random_bool(0.5) { format!("date_trunc('day', {key})") } else { key.clone() };
            list.push(format!("{key} AS k{index}"));
        }
        let keys = list.len();
        let mut inexact = vec![false; keys];
        let numeric = ["count", "sum", "avg", "median", "approx", "stddev", "var"];
        list.push(format!("count(*) AS a{}", list.len()));
        inexact.push(false);
        for ((value, of), lower_inexact) in values.iter().zip(&lower.inexact[lower.keys..]) {
            let functions: &[&str] = match numeric.iter().any(|start| of.starts_with(start)) {
                true => &["sum", "min", "max", "avg", "count"],
                false if of.starts_with("min") || of.starts_with("max") => &["min", "max", "count"],
                false => &["count"],
            };
            let function = functions.choose(random).expect("not empty");
            list.push(format!("{function}({value}) AS a{}", list.len()));
            inexact.push(*lower_inexact || of.starts_with("avg") || of.starts_with("stddev") || of.starts_with("var"));
        }
        let filter = match random.random_bool(0.3) {
            true => format!(" WHERE {} IS NOT NULL", lower.columns.choose(random).expect("not empty").0),
            false => String::new(),
        };
        let ordinals: Vec<String> = (1..=keys).map(|ordinal| ordinal.to_string()).collect();
        let group = if keys == 0 { String::new() } else { format!(" GROUP BY {}", ordinals.join(", ")) };
        let from = lower.name.clone() + &filter;
        View { over: Some(lower.name.clone()), ..View::of(name, &list, &from, &group, (keys, inexact)) }
    }

    async fn check(&self, session: &Session, what: &str) {
        if self.refreshed {
            session.rows(&format!("REFRESH MATERIALIZED VIEW {}", self.name)).await;
        }
        // The table itself must answer: another view could.
        session.rows("SET verus.route = 'scan'").await;
        let mut expected = session.rows(&self.query).await;
        let mut actual = session.rows(&format!("SELECT * FROM {}", self.name)).await;
        // By key alone: the values of inexact columns must not decide the order.
        expected.sort_by(|a, b| a[..self.keys].cmp(&b[..self.keys]));
        actual.sort_by(|a, b| a[..self.keys].cmp(&b[..self.keys]));
        assert_eq!(actual.len(), expected.len(), "{what}: number of rows of {} AS {}", self.name, self.query);
        for (actual, expected) in actual.iter().zip(&expected) {
            let equal = actual.iter().zip(expected).zip(&self.inexact).all(|((a, b), inexact)| a == b || (*inexact && nearly(a, b)));
            assert!(equal, "{what}: {} AS {}\n  view:  {actual:?}\n  query: {expected:?}", self.name, self.query);
        }
    }
}

pub fn nearly(a: &str, b: &str) -> bool {
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(a), Ok(b)) => (a - b).abs() <= 1e-6 + 1e-9 * a.abs().max(b.abs()),
        _ => false,
    }
}

pub async fn insert(session: &Session, events: &[Event]) {
    let quote = |value: Option<String>| value.map_or("NULL".to_owned(), |text| format!("'{text}'"));
    let tuples: Vec<String> = events.iter().map(|event| format!("({})", event.values().map(quote).join(", "))).collect();
    let columns = "(id, at, store, user_id, source, kind, quantity, revenue, score, zone)";
    session.rows(&format!("INSERT INTO events {columns} VALUES {}", tuples.join(", "))).await;
}

pub async fn copy(session: &Session, events: &[Event]) {
    let line = |event: &Event| event.values().map(|value| value.unwrap_or("\\N".to_owned())).join("\t") + "\n";
    let text: String = events.iter().map(line).collect();
    session
        .copy("COPY events (id, at, store, user_id, source, kind, quantity, revenue, score, zone) FROM STDIN", &text)
        .await
        .unwrap_or_else(|error| panic!("{error} {}", error.detail));
}

async fn check(session: &Session, model: &Model, views: &[View], what: &str) {
    let ids = |rows: Vec<Vec<String>>| rows.into_iter().map(|row| row[0].parse::<u64>().expect("an id")).collect::<Vec<_>>();
    let accepted = ids(session.rows("SELECT id FROM events ORDER BY id").await);
    assert_eq!(accepted, model.accepted.keys().copied().collect::<Vec<_>>(), "{what}: accepted rows");
    let late: BTreeSet<u64> = ids(session.rows("SELECT id FROM \"events$late\"").await).into_iter().collect();
    assert_eq!(late, model.late, "{what}: very late rows");
    for view in views {
        view.check(session, what).await;
    }
}

async fn case(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut server = Server::start_with(Options::busy()).await;
    let mut session = server.connect().await;
    session
        .rows(&format!(
            "CREATE TABLE events (id bigint NOT NULL, at timestamptz NOT NULL, store text NOT NULL, user_id text, source text, kind text, \
             quantity integer, revenue numeric(12,2), score double precision, zone text, WATERMARK FOR at AS at - INTERVAL '{LATENESS_SECONDS} seconds') \
             WITH (partition_by = 'store', dedup_key = 'id')"
        ))
        .await;
    session.rows("CREATE TABLE places (place text, region text, rank integer)").await;
    session.rows("INSERT INTO places VALUES ('s0', 'north', 1), ('s1', 'south', 2), ('s1', 'west', 3), ('s2', NULL, NULL)").await;
    let mut model = Model::default();
    let mut views: Vec<View> = Vec::new();
    let mut now = 1_714_557_600;
    let mut next_id = 0;
    // The clock of each store is so far from that of the one before.
    let apart = *[0, 0, 30_000, 40 * 86_400].choose(&mut random).expect("not empty");
    for step in 0..30 {
        let what = format!("seed {seed}, step {step}");
        match random.random_range(0..20) {
            0..5 if views.len() < 8 => {
                let name = format!("v{step}");
                let incremental: Vec<&View> = views.iter().filter(|view| !view.refreshed).collect();
                let lower = incremental.choose(&mut random).map(|view| (*view).clone());
                let view = match (random.random_range(0..6), lower) {
                    (5, _) => View::refreshed(&mut random, name),
                    (0, _) => View::joined(&mut random, name),
                    (1 | 2, Some(lower)) => View::above(&mut random, name, &lower),
                    _ => View::random(&mut random, name),
                };
                session.rows(&format!("CREATE MATERIALIZED VIEW {} AS {}", view.name, view.query)).await;
                views.push(view);
            }
            5 if !views.is_empty() => {
                let view = views.swap_remove(random.random_range(0..views.len()));
                session.rows(&format!("DROP MATERIALIZED VIEW {} CASCADE", view.name)).await;
                let mut gone = vec![view.name];
                while let Some(at) = views.iter().position(|view| view.over.as_ref().is_some_and(|over| gone.contains(over))) {
                    gone.push(views.swap_remove(at).name);
                }
            }
            8..11 => {
                delete(&session, &mut model, &mut random, now).await;
            }
            6 | 7 => {
                if random.random_bool(0.5) {
                    server.kill();
                } else {
                    assert!(server.terminate(SOON).await.success(), "{what}: a clean stop");
                }
                server.restart().await;
                session = server.connect().await;
            }
            _ => {
                let count = random.random_range(1..200);
                let mut events: Vec<Event> = Vec::with_capacity(count);
                for _ in 0..count {
                    now += random.random_range(0..5);
                    // Some again: of this statement, or of an earlier one.
                    let again: Vec<&Event> =
                        events.iter().chain(model.accepted.values().rev().take(500)).filter(|_| random.random_bool(0.01)).collect();
                    let repeated = again.first().filter(|_| next_id % 10 == 0).map(|event| (*event).clone());
                    next_id += 1;
                    events.push(repeated.unwrap_or_else(|| {
                        let event = Event::random(&mut random, next_id, now);
                        let number: i64 = event.store[1..].parse().expect("a store's number");
                        Event { at: event.at + apart * number, ..event }
                    }));
                }
                if random.random_bool(0.5) {
                    insert(&session, &events).await;
                } else {
                    copy(&session, &events).await;
                }
                model.commit(&events);
            }
        }
        if step % 3 == 2 {
            check(&session, &model, &views, &what).await;
        }
    }
    check(&session, &model, &views, &format!("seed {seed}, the end")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_view_equals_its_query() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let cases = variable("VERUS_PROPERTY_CASES").unwrap_or(6);
    let first = variable("VERUS_PROPERTY_SEED").unwrap_or(1);
    for seed in first..first + cases {
        println!("seed {seed}");
        case(seed).await;
    }
}
