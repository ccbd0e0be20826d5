//! ATTRIBUTION gives each channel what a plain evaluation of every conversion gives it, and all of the value: over random events, for
//! every model, from memory and from files.

use std::collections::BTreeMap;

use chrono::DateTime;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::harness::{Options, Server, Session};

const DAY: i64 = 86_400;
const CHANNELS: [&str; 4] = ["ads", "mail", "search", "social"];

/// One event, in the order of arrival.
#[derive(Clone, Debug)]
struct Event {
    at: i64,
    user: Option<u32>,
    buys: bool,
    channel: Option<usize>,
    cents: Option<i64>,
}

fn events(random: &mut StdRng, count: usize) -> Vec<Event> {
    (0..count)
        .map(|_| Event {
            // Whole days often, so that times are equal.
            at: 1_700_000_000 + random.random_range(0..60) * DAY + if random.random_bool(0.5) { random.random_range(0..DAY) } else { 0 },
            user: random.random_bool(0.97).then(|| random.random_range(0..40)),
            buys: random.random_bool(0.3),
            channel: random.random_bool(0.6).then(|| random.random_range(0..CHANNELS.len())),
            cents: random.random_bool(0.9).then(|| random.random_range(-1_000..20_000)),
        })
        .collect()
}

/// The shares of a path's touches, oldest first, each with its age in seconds.
fn shares(model: &str, ages: &[i64]) -> Vec<f64> {
    let count = ages.len();
    let mut shares: Vec<f64> = match model {
        "first" => (0..count).map(|place| f64::from(u8::from(place == 0))).collect(),
        "last" => (0..count).map(|place| f64::from(u8::from(place + 1 == count))).collect(),
        "linear" => vec![1.0; count],
        "time_decay" => ages.iter().map(|age| 0.5_f64.powf(*age as f64 / (3 * DAY) as f64)).collect(),
        _ if count < 3 => vec![1.0; count],
        _ => (0..count).map(|place| if place == 0 || place + 1 == count { 0.4 } else { 0.2 / (count - 2) as f64 }).collect(),
    };
    let all: f64 = shares.iter().sum();
    shares.iter_mut().for_each(|share| *share /= all);
    shares
}

/// By channel: conversions, cents, and conversions that it has part in.
type Given = BTreeMap<Option<usize>, (f64, f64, f64)>;

/// What each channel is given, and the value of all.
fn expected(model: &str, events: &[Event], lookback: i64) -> (Given, i64) {
    let mut given = Given::new();
    let mut total = 0;
    for (arrival, conversion) in events.iter().enumerate().filter(|(_, event)| event.buys) {
        let cents = conversion.cents.unwrap_or(0);
        total += cents;
        let mut touches: Vec<(i64, usize, usize)> = events
            .iter()
            .enumerate()
            .filter(|(place, touch)| {
                let own = *place == arrival;
                let of_user = own || (touch.user.is_some() && touch.user == conversion.user);
                of_user && (touch.at, *place) <= (conversion.at, arrival) && touch.at >= conversion.at - lookback
            })
            .filter_map(|(place, touch)| Some((touch.at, place, touch.channel?)))
            .collect();
        touches.sort_unstable();
        let mut give = |channel, share: f64| {
            let sum = given.entry(channel).or_default();
            *sum = (sum.0 + share, sum.1 + share * cents as f64, sum.2 + 1.0);
        };
        if touches.is_empty() {
            give(None, 1.0);
        }
        let ages: Vec<i64> = touches.iter().map(|(at, ..)| conversion.at - at).collect();
        for ((_, _, channel), share) in touches.iter().zip(shares(model, &ages)) {
            give(Some(*channel), share);
        }
    }
    (given, total)
}

async fn check(session: &Session, events: &[Event], when: &str) {
    for model in ["first", "last", "linear", "position", "time_decay", "markov"] {
        for days in [1, 10] {
            let what = format!("{when}, {model}, {days} days");
            let half_life = if model == "time_decay" { ", half_life := INTERVAL '3 days'" } else { "" };
            let rows = session
                .rows(&format!(
                    "SELECT channel, conversions, (attributed_value * 100)::bigint FROM ATTRIBUTION(e, conversion := buys, value := revenue, \
                     touch := channel IS NOT NULL, channel := channel, by := who, lookback := INTERVAL '{days} days', \
                     model := '{model}'{half_life})"
                ))
                .await;
            let (expected, total) = expected(model, events, days * DAY);
            let found: BTreeMap<Option<usize>, (f64, i64)> = rows
                .iter()
                .map(|row| (CHANNELS.iter().position(|name| *name == row[0]), (row[1].parse().unwrap(), row[2].parse().unwrap())))
                .collect();
            assert_eq!(found.values().map(|(_, cents)| cents).sum::<i64>(), total, "{what}: {found:?}");
            let conversions: f64 = found.values().map(|(conversions, _)| conversions).sum();
            let all = events.iter().filter(|event| event.buys).count() as f64;
            assert!((conversions - all).abs() < 1e-6, "{what}: {conversions} conversions of {all}");
            let untouched = expected.get(&None).copied().unwrap_or_default();
            let without = found.get(&None).copied().unwrap_or_default();
            assert!((without.0 - untouched.0).abs() < 1e-9 && without.1 == untouched.1 as i64, "{what}: {without:?}, not {untouched:?}");
            if model == "markov" {
                continue;
            }
            for (channel, (conversions, cents, parts)) in expected {
                let own = found.get(&channel).copied().unwrap_or_default();
                // A unit for each conversion that was divided.
                let close = (own.0 - conversions).abs() <= parts * 1e-9 + 1e-9 && (own.1 as f64 - cents).abs() <= parts + 1e-6;
                assert!(close, "{what}: {channel:?} has {own:?}, not {conversions} and {cents}");
                if matches!(model, "first" | "last") {
                    assert!((own.1 as f64 - cents).abs() < 1e-6, "{what}: {channel:?} has {own:?}, not {cents}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn equals_a_plain_evaluation_and_gives_all_away() {
    let seed = std::env::var("VERUS_PROPERTY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    eprintln!("VERUS_PROPERTY_SEED={seed}");
    let events = events(&mut StdRng::seed_from_u64(seed), 800);
    let options = Options { env: vec![("VERUS_LIMITS_STORE_FLUSH_AGE_MS", "60000".to_owned())], ..Options::default() };
    let mut server = Server::start_with(options).await;
    let session = server.connect().await;
    let create = "CREATE TABLE e (at timestamptz NOT NULL, who integer, buys boolean, channel text, revenue numeric(12,2), \
                  WATERMARK FOR at AS at - INTERVAL '1 day')";
    session.rows(create).await;
    let or_null = |value: Option<String>| value.unwrap_or_else(|| "\\N".to_owned());
    let text: String = events
        .iter()
        .map(|event| {
            let money = |cents: i64| format!("{}{}.{:02}", if cents < 0 { "-" } else { "" }, cents.abs() / 100, cents.abs() % 100);
            format!(
                "{}\t{}\t{}\t{}\t{}\n",
                DateTime::from_timestamp(event.at, 0).unwrap().format("%F %T+00"),
                or_null(event.user.map(|user| user.to_string())),
                event.buys,
                or_null(event.channel.map(|channel| CHANNELS[channel].to_owned())),
                or_null(event.cents.map(money)),
            )
        })
        .collect();
    session.copy("COPY e FROM STDIN", &text).await.unwrap_or_else(|error| panic!("{error} {}", error.detail));
    check(&session, &events, "in memory").await;
    server.restart_from_files("e").await;
    check(&server.connect().await, &events, "from files").await;
}
