//! COHORT_ANALYSIS is what Listing 10's SQL and a plain evaluation say, over random events, for every option; the same over files, and
//! as a materialized view.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Datelike, Duration, NaiveDate};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::harness::{Options, Rows, Server, Session};

/// One event, in the order of arrival.
#[derive(Clone, Debug)]
struct Event {
    at: i64,
    kind: &'static str,
    user: Option<u32>,
    store: &'static str,
    source: Option<&'static str>,
    order: u32,
    cents: Option<i64>,
}

fn events(random: &mut StdRng, count: usize) -> Vec<Event> {
    // Mondays, first days of months and single seconds among them.
    let begin = NaiveDate::from_ymd_opt(2024, 1, 1).unwrap().and_hms_opt(0, 0, 0).unwrap().and_utc().timestamp();
    (0..count)
        .map(|_| {
            let day = random.random_range(0..150_i64);
            let second = if random.random_range(0..4) == 0 { 0 } else { random.random_range(0..86_400) };
            Event {
                at: begin + day * 86_400 + second,
                kind: if random.random_bool(0.6) { "purchase" } else { "page_view" },
                user: random.random_bool(0.95).then(|| random.random_range(0..60)),
                store: if random.random_bool(0.7) { "s1" } else { "s2" },
                source: [None, Some("ads"), Some("mail")][random.random_range(0..3)],
                order: random.random_range(0..80),
                cents: random.random_bool(0.9).then(|| random.random_range(-500..5_000)),
            }
        })
        .collect()
}

fn money(cents: i64) -> String {
    format!("{}{}.{:02}", if cents < 0 { "-" } else { "" }, cents.abs() / 100, cents.abs() % 100)
}

/// What is asked for.
#[derive(Clone, Debug)]
struct Case {
    unit: &'static str,
    first: &'static str,
    purchases_only: bool,
    group: bool,
    fill: bool,
    on_or_after: bool,
    cumulative: bool,
    distinct: bool,
    /// Days after the first event at which the range begins, and how far is looked back.
    range: Option<(i64, Option<i64>)>,
}

impl Case {
    fn random(random: &mut StdRng) -> Case {
        let mut flag = || random.random_bool(0.5);
        let (purchases_only, group, fill, on_or_after, cumulative, distinct) = (flag(), flag(), flag(), flag(), flag(), flag());
        Case {
            unit: ["day", "week", "month"][random.random_range(0..3)],
            first: ["first_purchase_date", "first_event_date", "MIN(at)", "MIN(at) FILTER (WHERE kind = 'page_view')"]
                [random.random_range(0..4)],
            purchases_only,
            group,
            fill,
            on_or_after,
            cumulative,
            distinct,
            range: random
                .random_bool(0.4)
                .then(|| (random.random_range(20..80), random.random_bool(0.7).then(|| random.random_range(1..60)))),
        }
    }

    fn begin(days: i64) -> i64 {
        NaiveDate::from_ymd_opt(2024, 1, 1).unwrap().and_hms_opt(12, 0, 0).unwrap().and_utc().timestamp() + days * 86_400
    }

    fn sql(&self) -> String {
        let mut filters = vec!["store = 's1'".to_owned()];
        if self.purchases_only {
            filters.push("event_type = 'purchase'".to_owned());
        }
        let mut options = String::new();
        if let Some((from, lookback)) = self.range {
            filters.push(format!("at >= '{}'", DateTime::from_timestamp(Self::begin(from), 0).unwrap().format("%F %T+00")));
            options += &lookback.map_or_else(String::new, |days| format!(", lookback := INTERVAL '{days} days'"));
        }
        if self.group {
            options += ", group_by := [source]";
        }
        if self.fill {
            options += ", fill := true";
        }
        if self.on_or_after {
            options += ", retention := 'on_or_after'";
        }
        if self.cumulative {
            options += ", cumulative := true";
        }
        format!(
            "COHORT_ANALYSIS(e, cohort_date := DATE_TRUNC('{unit}', {first}), activity_date := DATE_TRUNC('{unit}', at), user_id := user_id, \
             metric := {metric}, filters := [{filters}]{options})",
            unit = self.unit,
            first = self.first.replace("kind", "event_type"),
            metric = if self.distinct { "COUNT(DISTINCT order_id)" } else { "SUM(revenue)" },
            filters = filters.join(", "),
        )
    }

    fn truncated(&self, at: i64) -> NaiveDate {
        let day = DateTime::from_timestamp(at, 0).unwrap().date_naive();
        match self.unit {
            "day" => day,
            "week" => day - Duration::days(i64::from(day.weekday().num_days_from_monday())),
            _ => day.with_day(1).unwrap(),
        }
    }

    fn period(&self, cohort: NaiveDate, date: NaiveDate) -> i64 {
        match self.unit {
            "day" => (date - cohort).num_days(),
            "week" => (date - cohort).num_days() / 7,
            _ => i64::from((date.year() - cohort.year()) * 12) + i64::from(date.month0()) - i64::from(cohort.month0()),
        }
    }

    /// What the operator answers, the share apart, evaluated user by user.
    fn expected(&self, events: &[Event]) -> Rows {
        let of_first = |event: &Event| match self.first {
            "first_purchase_date" => event.kind == "purchase",
            "first_event_date" | "MIN(at)" => true,
            _ => event.kind == "page_view",
        };
        let kept = events.iter().filter(|event| event.store == "s1" && (!self.purchases_only || event.kind == "purchase"));
        let mut users: BTreeMap<u32, Vec<&Event>> = BTreeMap::new();
        for event in kept {
            if let Some(user) = event.user {
                users.entry(user).or_default().push(event);
            }
        }
        let from = self.range.map_or(i64::MIN, |(days, _)| Self::begin(days));
        let back = self.range.and_then(|(_, lookback)| lookback).map_or(from, |days| from - days * 86_400);
        type Key = (Option<Option<&'static str>>, NaiveDate);
        #[derive(Default)]
        struct Cell {
            active: BTreeSet<u32>,
            orders: BTreeSet<u32>,
            cents: Option<i64>,
        }
        let mut sizes: BTreeMap<Key, usize> = BTreeMap::new();
        let mut cells: BTreeMap<Key, BTreeMap<i64, Cell>> = BTreeMap::new();
        let mut newest = None;
        for (user, rows) in &users {
            let within: Vec<&&Event> = rows.iter().filter(|event| event.at >= from).collect();
            if rows.iter().any(|event| event.at >= back && event.at < from && of_first(event)) {
                continue;
            }
            // The first to arrive of equal times, since `min_by_key` gives the first.
            let Some(first) = within.iter().filter(|event| of_first(event)).min_by_key(|event| event.at) else { continue };
            let cohort = self.truncated(first.at);
            let key = (self.group.then_some(first.source), cohort);
            *sizes.entry(key).or_default() += 1;
            for event in within {
                let date = self.truncated(event.at);
                let period = self.period(cohort, date);
                if period < 0 {
                    continue;
                }
                newest = newest.max(Some(date));
                let cell = cells.entry(key).or_default().entry(period).or_default();
                cell.active.insert(*user);
                cell.orders.insert(event.order);
                if let Some(cents) = event.cents {
                    *cell.cents.get_or_insert(0) += cents;
                }
            }
        }
        let mut rows = Rows::new();
        for (key, mut periods) in cells {
            // Users that come again later count in a period without an event.
            if self.fill || self.on_or_after {
                for period in 0..=self.period(key.1, newest.unwrap()) {
                    periods.entry(period).or_insert_with(|| Cell { cents: Some(0), ..Cell::default() });
                }
            }
            let (mut orders, mut cents) = (0, None);
            let later: Vec<BTreeSet<u32>> =
                periods.keys().map(|period| periods.range(period..).flat_map(|(_, cell)| cell.active.iter().copied()).collect()).collect();
            for ((period, cell), later) in periods.iter().zip(later) {
                let active = if self.on_or_after { later.len() } else { cell.active.len() };
                if !self.cumulative {
                    (orders, cents) = (0, None);
                }
                orders += cell.orders.len();
                cents = if cell.cents.is_some() { Some(cents.unwrap_or(0) + cell.cents.unwrap_or(0)) } else { cents };
                let metric = match self.distinct {
                    true => orders.to_string(),
                    false => cents.map_or_else(|| "NULL".to_owned(), money),
                };
                if active == 0 && !self.fill {
                    continue;
                }
                let mut row: Vec<String> = key.0.iter().map(|source| source.unwrap_or("NULL").to_owned()).collect();
                row.extend([format!("{} 00:00:00+00", key.1), period.to_string(), sizes[&key].to_string(), active.to_string(), metric]);
                row.extend([(active as f64 / sizes[&key] as f64).to_string(), "t".to_owned()]);
                rows.push(row);
            }
        }
        rows.sort();
        rows
    }
}

async fn filled(server: &Server, events: &[Event], view: &str) -> Session {
    let session = server.connect().await;
    session
        .rows(
            "CREATE TABLE e (at timestamptz NOT NULL, event_type text, user_id integer, store text, source text, order_id integer, \
             revenue numeric(12,2), WATERMARK FOR at AS at - INTERVAL '1 day') WITH (partition_by = 'store')",
        )
        .await;
    session.rows(&format!("CREATE MATERIALIZED VIEW v AS SELECT * FROM {view}")).await;
    let text: String = events
        .iter()
        .map(|event| {
            let or_null = |value: Option<String>| value.unwrap_or_else(|| "\\N".to_owned());
            format!(
                "{}\t{}\t{}\t{}\t{}\t{}\t{}\n",
                DateTime::from_timestamp(event.at, 0).unwrap().format("%F %T+00"),
                event.kind,
                or_null(event.user.map(|user| user.to_string())),
                event.store,
                or_null(event.source.map(str::to_owned)),
                event.order,
                or_null(event.cents.map(money)),
            )
        })
        .collect();
    session.copy("COPY e FROM STDIN", &text).await.unwrap_or_else(|error| panic!("{error} {}", error.detail));
    session
}

async fn sorted(session: &Session, query: &str) -> Rows {
    let mut rows = session.rows(query).await;
    rows.sort();
    rows
}

async fn check(session: &Session, cases: &[Case], events: &[Event], when: &str) {
    for case in cases {
        let actual = sorted(session, &format!("SELECT * FROM {}", case.sql())).await;
        let expected = case.expected(events);
        if let Some((actual, expected)) = actual.iter().zip(&expected).find(|(a, e)| a != e) {
            panic!("{when}: {}\n{actual:?} instead of {expected:?}", case.sql());
        }
        assert_eq!(actual.len(), expected.len(), "{when}: {}", case.sql());
    }
}

/// Listing 10 for a unit.
fn listing(unit: &str) -> String {
    format!(
        "WITH cohorts AS (SELECT user_id, DATE_TRUNC('{unit}', MIN(at)) AS cohort FROM e WHERE event_type = 'purchase' AND store = 's1' \
         GROUP BY user_id), activity AS (SELECT e.user_id, c.cohort, DATE_TRUNC('{unit}', e.at) AS activity, e.order_id FROM e \
         JOIN cohorts c ON e.user_id = c.user_id WHERE e.event_type = 'purchase' AND e.store = 's1') \
         SELECT cohort, DATE_DIFF('{unit}', cohort, activity) AS periods, COUNT(DISTINCT user_id), COUNT(DISTINCT order_id) \
         FROM activity GROUP BY cohort, periods"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn equals_listing_10_and_a_plain_evaluation() {
    let seed = std::env::var("VERUS_PROPERTY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    eprintln!("VERUS_PROPERTY_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let events = events(&mut random, 900);
    let cases: Vec<Case> = (0..40).map(|_| Case::random(&mut random)).collect();
    let options = Options { env: vec![("VERUS_LIMITS_STORE_FLUSH_AGE_MS", "60000".to_owned())], ..Options::default() };
    let mut server = Server::start_with(options).await;
    let session = filled(&server, &events, &cases[0].sql()).await;
    check(&session, &cases, &events, "in memory").await;
    for unit in ["day", "week", "month"] {
        let own = sorted(
            &session,
            &format!(
                "SELECT cohort_date, period, active_users, metric FROM COHORT_ANALYSIS(e, cohort_date := DATE_TRUNC('{unit}', \
                 first_purchase_date), activity_date := DATE_TRUNC('{unit}', at), user_id := user_id, \
                 metric := COUNT(DISTINCT order_id), filters := [store = 's1', event_type = 'purchase'])"
            ),
        )
        .await;
        assert_eq!(own, sorted(&session, &listing(unit)).await, "{unit}");
    }
    assert_eq!(sorted(&session, "SELECT * FROM v").await, cases[0].expected(&events), "the view of {}", cases[0].sql());
    server.restart_from_files("e").await;
    let session = server.connect().await;
    check(&session, &cases, &events, "from files").await;
    assert_eq!(sorted(&session, "SELECT * FROM v").await, cases[0].expected(&events), "the view after a restart");
}
