//! Views of operators that follow entities are equal to their queries after every commit: random calls, made before, between and after
//! the rows; ties in time, rows late, very late and twice, statements of random size, random DELETEs, clean stops and kills.
//!
//! A failure prints the seed of its case; `VERUS_PROPERTY_SEED=n VERUS_PROPERTY_CASES=1` runs that case alone.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::harness::{Options, Rows, SOON, Server, Session};

const TABLE: &str = "CREATE TABLE events (id bigint NOT NULL, at timestamptz NOT NULL, store text, user_id text, session_id text, \
                     event_type text, source text, quantity integer, revenue numeric(12,2), order_id text, \
                     WATERMARK FOR at AS at - INTERVAL '1 hour') WITH (partition_by = 'store', dedup_key = 'id', dedup_window = '1 day')";

const KINDS: [&str; 5] = ["view", "cart", "pay", "purchase", "other"];

/// A condition that a step, an exclusion or a filter can be.
const CONDITIONS: [&str; 8] = [
    "event_type = 'view'",
    "event_type = 'cart'",
    "event_type = 'pay'",
    "event_type = 'purchase'",
    "event_type IN ('view', 'cart')",
    "quantity > 2",
    "source = 'mail'",
    "source IS NULL",
];

fn funnel(random: &mut StdRng) -> String {
    let conditions = |random: &mut StdRng, count: usize| -> String {
        (0..count).map(|_| *CONDITIONS.choose(random).unwrap()).collect::<Vec<_>>().join(", ")
    };
    let steps = random.random_range(1..5);
    let mut call = format!("SELECT * FROM FUNNEL(events, steps := [{}]", conditions(random, steps));
    let maybe = |random: &mut StdRng, call: &mut String, option: &str| {
        if random.random_bool(0.4) {
            call.push_str(", ");
            call.push_str(option);
        }
    };
    let window = *["INTERVAL '3 minutes'", "INTERVAL '20 minutes'", "INTERVAL '3 hours'"].choose(random).unwrap();
    maybe(random, &mut call, &format!("window := {window}"));
    maybe(random, &mut call, "window_from := 'first'");
    let by = *["user_id", "[store, user_id]", "upper(session_id)"].choose(random).unwrap();
    maybe(random, &mut call, &format!("by := {by}"));
    let groups = *["[source]", "[store, source]", "[quantity % 2]", "[event_type]"].choose(random).unwrap();
    maybe(random, &mut call, &format!("group_by := {groups}"));
    let attribution = *["first", "last", "step_1"].choose(random).unwrap();
    maybe(random, &mut call, &format!("attribution := '{attribution}'"));
    let mode = *["ordered", "strict", "any"].choose(random).unwrap();
    maybe(random, &mut call, &format!("mode := '{mode}'"));
    maybe(random, &mut call, "repeat := false");
    let excluded = conditions(random, 1);
    maybe(random, &mut call, &format!("exclude := [{excluded}]"));
    let same = *["[source]", "[quantity]", "[store, source]"].choose(random).unwrap();
    maybe(random, &mut call, &format!("having_same := {same}"));
    maybe(random, &mut call, "filters := [quantity < 7]");
    maybe(random, &mut call, "format := 'wide'");
    call + ")"
}

fn cohort(random: &mut StdRng) -> String {
    let unit = *["hour", "day", "minute"].choose(random).unwrap();
    let first =
        *["first_purchase_date", "first_event_date", "MIN(at)", "MIN(at) FILTER (WHERE quantity > 2)", "at"].choose(random).unwrap();
    let metric = *[
        "COUNT(*)",
        "COUNT(DISTINCT order_id)",
        "SUM(revenue)",
        "SUM(quantity)",
        "AVG(quantity)",
        "MAX(revenue)",
        "MIN(source)",
        "SUM(revenue) FILTER (WHERE event_type = 'purchase')",
        "COUNT(*) - COUNT(DISTINCT source)",
        "SUM(revenue) / COUNT(*)",
        "COUNT(order_id)",
        "SUM(quantity) - MAX(quantity)",
        "SUM(quantity) + COUNT(quantity) FILTER (WHERE source = 'mail')",
    ]
    .choose(random)
    .unwrap();
    let mut call = format!(
        "SELECT * FROM COHORT_ANALYSIS(events, cohort_date := DATE_TRUNC('{unit}', {first}), activity_date := DATE_TRUNC('{unit}', at), \
         user_id := user_id, metric := {metric}"
    );
    let mut maybe = |random: &mut StdRng, option: &str| {
        if random.random_bool(0.35) {
            call.push_str(", ");
            call.push_str(option);
        }
    };
    let filters = *["[event_type = 'purchase']", "[store <> 's1']", "[at >= '2024-05-01 11:00:00+00']"].choose(random).unwrap();
    maybe(random, &format!("filters := {filters}"));
    let groups = *["[source]", "[store, source]", "[quantity % 2]"].choose(random).unwrap();
    maybe(random, &format!("group_by := {groups}"));
    maybe(random, "fill := true");
    maybe(random, "retention := 'on_or_after'");
    if metric.starts_with("COUNT") || metric.starts_with("SUM") {
        maybe(random, "cumulative := true");
    }
    maybe(random, "lookback := INTERVAL '2 hours'");
    call + ")"
}

fn attribution(random: &mut StdRng) -> String {
    let model = *["last", "first", "linear", "position", "time_decay", "markov"].choose(random).unwrap();
    let lookback = *["2 hours", "30 days"].choose(random).unwrap();
    format!(
        "SELECT * FROM ATTRIBUTION(events, conversion := event_type = 'purchase', value := revenue, touch := source IS NOT NULL, \
         channel := source, by := user_id, lookback := INTERVAL '{lookback}', model := '{model}')"
    )
}

fn call(random: &mut StdRng) -> String {
    match random.random_range(0..8) {
        0..4 => funnel(random),
        4..7 => cohort(random),
        _ => attribution(random),
    }
}

/// Rows as COPY takes them, about a time in seconds.
fn rows(random: &mut StdRng, count: usize, id: &mut u64, now: i64) -> String {
    let mut text = String::new();
    for _ in 0..count {
        let repeated = random.random_bool(0.03) && *id > 1;
        let number = if repeated { random.random_range(1..*id) } else { *id };
        *id += u64::from(!repeated);
        // Whole minutes, so that many are of one time; now and then very late.
        let at = now + 60 * if random.random_bool(0.1) { -random.random_range(0..600) } else { random.random_range(-20..1) };
        let user = random.random_range(0..12);
        let values = [
            format!("u{user}"),
            format!("x{user}-{}", random.random_range(0..3)),
            ["mail", "ads", "web"].choose(random).unwrap().to_string(),
            random.random_range(0..9).to_string(),
            format!("{}.{:02}", random.random_range(0..90), random.random_range(10..100)),
            format!("o{}", random.random_range(0..40)),
        ];
        let [user, session, source, quantity, revenue, order] =
            values.map(|value| if random.random_bool(0.85) { value } else { "\\N".to_owned() });
        let fields = [
            number.to_string(),
            chrono::DateTime::from_timestamp(at, 0).unwrap().to_rfc3339(),
            format!("s{}", random.random_range(0..3)),
            user,
            session,
            KINDS.choose(random).unwrap().to_string(),
            source,
            quantity,
            revenue,
            order,
        ];
        text.push_str(&fields.join("\t"));
        text.push('\n');
    }
    text
}

struct View {
    name: String,
    query: String,
    /// WITH NO DATA: only CHECK knows what it is to be.
    is_partial: bool,
}

async fn create(session: &Session, random: &mut StdRng, views: &mut Vec<View>) {
    let (name, query) = (format!("v{}", views.len()), call(random));
    let is_partial = random.random_bool(0.15);
    session.rows(&format!("CREATE MATERIALIZED VIEW {name} AS {query} WITH {}DATA", if is_partial { "NO " } else { "" })).await;
    views.push(View { name, query, is_partial });
}

fn sorted(mut rows: Rows) -> Rows {
    rows.sort();
    rows
}

async fn assert_equal(session: &Session, random: &mut StdRng, views: &[View], what: &str) {
    for view in views {
        if !view.is_partial {
            let kept = sorted(session.rows(&format!("SELECT * FROM {}", view.name)).await);
            let expected = sorted(session.rows(&view.query).await);
            assert_eq!(kept, expected, "{what}: {} is not its query {}", view.name, view.query);
        }
        if view.is_partial || random.random_bool(0.1) {
            let check = session.rows(&format!("CHECK MATERIALIZED VIEW {}", view.name)).await;
            assert_eq!((check[0][2].as_str(), check[0][3].as_str()), ("0", "t"), "{what}: {check:?} of {}", view.query);
        }
    }
}

async fn case(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut server = Server::start_with(Options::busy()).await;
    let mut session = server.connect().await;
    session.rows(TABLE).await;
    let (mut views, mut id, mut now) = (Vec::new(), 1, 1_714_557_600);
    for _ in 0..3 {
        create(&session, &mut random, &mut views).await;
    }
    for step in 0..24 {
        let what = format!("seed {seed}, step {step}");
        match random.random_range(0..14) {
            0 => {
                server.kill();
                server.restart().await;
                session = server.connect().await;
            }
            1 => {
                let predicate = match random.random_range(0..3) {
                    0 => format!("user_id = 'u{}'", random.random_range(0..12)),
                    1 => format!("id % 7 = {}", random.random_range(0..7)),
                    _ => format!("source = 'mail' AND quantity = {}", random.random_range(0..9)),
                };
                session.rows(&format!("DELETE FROM events WHERE {predicate}")).await;
            }
            2 if views.len() < 7 => create(&session, &mut random, &mut views).await,
            3 if random.random_bool(0.3) => drop(session.rows("TRUNCATE events").await),
            _ => {
                let late = *["divert", "apply", "apply"].choose(&mut random).unwrap();
                session.rows(&format!("SET verus.late_rows = '{late}'")).await;
                let count = *[1, 3, 20, 80, 400].choose(&mut random).unwrap();
                now += random.random_range(0..40) * 60;
                let text = rows(&mut random, count, &mut id, now);
                session.copy("COPY events FROM STDIN", &text).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
            }
        }
        assert_equal(&session, &mut random, &views, &what).await;
    }
    let kept = session.rows("SELECT maintenance, maintenance_reason FROM verus.views").await;
    assert!(kept.iter().all(|row| row[0] == "incremental"), "seed {seed}: {kept:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_of_an_operator_equals_its_query() {
    let number = |name: &str, default: u64| std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default);
    let first = number("VERUS_PROPERTY_SEED", 1);
    for seed in first..first + number("VERUS_PROPERTY_CASES", 3) {
        case(seed).await;
    }
}

const START: i64 = 1_714_557_600;

/// Views of a user who looks, and never buys: a row a second, in a store.
fn looks(id: i64, from: i64, count: i64, store: &str) -> String {
    let row = |number: i64| {
        let at = chrono::DateTime::from_timestamp(from + number, 0).unwrap().to_rfc3339();
        format!("{}\t{at}\t{store}\tu1\tx1\tview\t\\N\t1\t1.00\t\\N\n", id + number)
    };
    (0..count).map(row).collect()
}

/// Sends a row a second of a user who looks until a view with a window has small states beside one without. Gives the next second.
async fn look_until_small(session: &Session, tables: &[&str], mut next: i64, (small, whole): (&str, &str)) -> i64 {
    let is_small = format!(
        "SELECT a.state_bytes * 5 < b.state_bytes FROM verus.views a, verus.views b WHERE a.view_name = '{small}' AND b.view_name = '{whole}'"
    );
    let begin = Instant::now();
    while begin.elapsed() < SOON {
        for table in tables {
            session.copy(&format!("COPY {table} FROM STDIN"), &looks(next, START + next, 200, "s1")).await.unwrap();
        }
        next += 200;
        if next >= 10_000 && session.value(&is_small).await == "t" {
            return next;
        }
        // States become smaller when they are merged, beside the commits.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{:?}", session.rows("SELECT view_name, state_bytes FROM verus.views").await);
}

fn looking(table: &str, window: &str) -> String {
    format!("SELECT * FROM FUNNEL({table}, steps := [event_type = 'view', event_type = 'purchase']{window}, by := user_id)")
}

const WINDOW: &str = ", window := INTERVAL '5 minutes'";

/// Of an entity that comes for long, a view with a window keeps what the window and the lateness reach; rows that are older bring the rest
/// back: those that are applied though very late, and those of another store, after a kill too.
#[tokio::test(flavor = "multi_thread")]
async fn states_are_bounded_by_window_and_lateness() {
    let mut server = Server::start_with(Options::busy()).await;
    let mut session = server.connect().await;
    session.rows(&TABLE.replace("1 hour", "1 minute")).await;
    let bounded = looking("events", WINDOW);
    session.rows(&format!("CREATE MATERIALIZED VIEW bounded AS {bounded}")).await;
    session.rows(&format!("CREATE MATERIALIZED VIEW whole AS {}", looking("events", ""))).await;
    let mut next = 0;
    for (turn, older) in [looks(-1, START - 90_000, 1, "s1"), looks(-2, START - 90_001, 1, "s2")].into_iter().enumerate() {
        next = look_until_small(&session, &["events"], next, ("bounded", "whole")).await;
        session.assert_view("bounded", &bounded, "cut").await;
        if turn > 0 {
            server.kill();
            server.restart().await;
            session = server.connect().await;
        }
        session.rows("SET verus.late_rows = 'apply'").await;
        if turn == 0 {
            session.rows("BEGIN").await;
            session.rows("SELECT * FROM bounded").await;
            session.copy("COPY events FROM STDIN", &older).await.unwrap();
            assert_eq!(session.failure("SELECT * FROM bounded").await.state, "0A000");
            session.rows("ROLLBACK").await;
            assert!(!server.log().contains("older rows came"), "{}", server.log());
        }
        session.copy("COPY events FROM STDIN", &older).await.unwrap();
        if turn == 0 {
            assert!(server.log().contains("older rows came"), "{}", server.log());
        }
        // What had been left out decides.
        let purchase = looks(-10 - turn as i64, START + 100 + 1_000 * turn as i64, 1, "s1").replace("view", "purchase");
        session.copy("COPY events FROM STDIN", &purchase).await.unwrap();
        session.assert_view("bounded", &bounded, "late").await;
        assert_eq!(session.value("SELECT entities FROM bounded WHERE step = 2").await, "1");
    }
}

/// Where retention removes rows, states get back what they have left out while the rows are there: late rows count as in a table that keeps
/// all rows.
#[tokio::test(flavor = "multi_thread")]
async fn states_are_whole_before_retention_removes_rows() {
    let server = Server::start_with(Options::busy()).await;
    let session = server.connect().await;
    let table = TABLE.replace("1 hour", "1 minute").replace(", dedup_key = 'id', dedup_window = '1 day'", "");
    session.rows(&table).await;
    session.rows(&table.replace("TABLE events", "TABLE short").replace("'store')", "'store', retention = '20 days')")).await;
    let tables = ["events", "short"];
    for table in tables {
        session.rows(&format!("CREATE MATERIALIZED VIEW of_{table} AS {}", looking(table, WINDOW))).await;
    }
    session.rows(&format!("CREATE MATERIALIZED VIEW whole AS {}", looking("events", ""))).await;
    let next = look_until_small(&session, &tables, 0, ("of_short", "whole")).await;
    session.rows("SET verus.late_rows = 'apply'").await;
    let apply = async |rows: &str| {
        for table in tables {
            session.copy(&format!("COPY {table} FROM STDIN"), rows).await.unwrap();
        }
    };
    apply(&looks(next, START + next + 25 * 86_400, 1, "s1")).await;
    session.until(&format!("SELECT count(*) < {next} FROM short")).await;
    assert!(server.log().contains("before retention"), "{}", server.log());
    // A purchase within the window of a look whose row is gone; one of another user, before the look.
    for second in [100, 2_000] {
        apply(&looks(-second, START + second, 1, "s1").replace("view", "purchase")).await;
        apply(&looks(-second - 1, START + second, 1, "s1").replace("view", "purchase").replace("u1", "u2")).await;
        apply(&looks(-second - 2, START + second - 30, 1, "s1").replace("u1", "u2")).await;
        assert_eq!(session.rows("SELECT * FROM of_short").await, session.rows("SELECT * FROM of_events").await, "{second}");
    }
    assert_eq!(session.value("SELECT entities FROM of_short WHERE step = 2").await, "2");
}
