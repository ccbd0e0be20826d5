//! Erasure requests: what was deleted stays deleted, whatever happens to the server.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::harness::{Options, SOON, Server, Session};

/// Erased events are sent again: before a restart, after one that replays the deletion, and after one whose log has been cut.
#[tokio::test(flavor = "multi_thread")]
async fn an_erased_event_that_is_sent_again_is_a_duplicate() {
    for key in ["bigint", "text", "uuid"] {
        let mut server = Server::start_with(Options::busy()).await;
        let mut session = server.connect().await;
        session
            .rows(&format!(
                "CREATE TABLE events (id {key}, at timestamptz NOT NULL, who text, WATERMARK FOR at AS at - INTERVAL '5 minutes') \
                 WITH (dedup_key = 'id', dedup_window = '1 hour')"
            ))
            .await;
        let value = |id: u32| match key {
            "uuid" => format!("'{}'", uuid::Uuid::from_u128(id.into())),
            "text" => format!("'event {id}'"),
            _ => id.to_string(),
        };
        let insert = |ids: std::ops::Range<u32>, who: &str| {
            let rows: Vec<String> = ids.map(|id| format!("({}, '2024-05-01 12:{:02}:00+00', '{who}')", value(id), 10 + id)).collect();
            format!("INSERT INTO events VALUES {}", rows.join(", "))
        };
        session.rows(&insert(0..40, "ada")).await;
        // A row that is late: its key is in the companion only, and goes from there.
        let late = format!("INSERT INTO events VALUES ({}, '2024-05-01 12:05:00+00', 'eve')", value(50));
        session.rows(&late).await;
        session.rows("INSERT INTO events VALUES (NULL, '2024-05-01 12:50:00+00', 'bob')").await;
        assert_eq!(session.value("SELECT count(*) FROM \"events$late\"").await, "1");
        session.rows("DELETE FROM events WHERE who = 'ada'").await;
        session.rows("DELETE FROM \"events$late\"").await;
        for round in 0..4 {
            session.rows(&insert(0..40, "ada")).await;
            session.rows(&late).await;
            assert_eq!(session.value("SELECT count(*) FROM events WHERE who <> 'bob'").await, "0", "{key}, round {round}: they came back");
            assert_eq!(session.value("SELECT count(*) FROM \"events$late\"").await, "0", "{key}, round {round}");
            // From the second round on the log is cut: the rows and the record of their deletion go.
            for _ in 0..round * 3 {
                session.rows("INSERT INTO events VALUES (NULL, '2024-05-01 12:50:00+00', 'bob')").await;
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
            server.kill();
            server.restart().await;
            session = server.connect().await;
        }
        // What has left the window is as new, and an emptied table has nothing to remember.
        session.rows("INSERT INTO events VALUES (NULL, '2024-05-01 14:50:00+00', 'bob')").await;
        session.rows("SET verus.late_rows = 'apply'").await;
        session.rows(&insert(0..1, "ada")).await;
        assert_eq!(session.value("SELECT count(*) FROM events WHERE who = 'ada'").await, "1", "{key}: beyond the window");
        session.rows("TRUNCATE events").await;
        session.rows(&insert(0..40, "ada")).await;
        assert_eq!(session.value("SELECT count(*) FROM events").await, "40", "{key}: an emptied table");
        tokio::time::sleep(Duration::from_millis(200)).await;
        session.rows("DELETE FROM events WHERE who = 'ada'").await;
        session.rows("TRUNCATE events").await;
        server.kill();
        server.restart().await;
        session = server.connect().await;
        session.rows(&insert(0..40, "ada")).await;
        assert_eq!(session.value("SELECT count(*) FROM events").await, "40", "{key}: an emptied table, after a restart");
    }
}

const EVENTS: &str = "CREATE TABLE events (id bigint NOT NULL, at timestamptz NOT NULL, shop text, n integer, \
                      WATERMARK FOR at AS at - INTERVAL '1 hour') WITH (partition_by = 'shop')";

/// Rows of shops a to d, ten a shop and minute.
async fn fill(session: &Session, minutes: std::ops::Range<u32>) {
    for minute in minutes {
        let rows: Vec<String> = (0..40)
            .map(|row| {
                let shop = ["a", "b", "c", "d"][row % 4];
                format!("({}, '2024-05-01 12:{minute:02}:{row:02}+00', '{shop}', {})", minute as usize * 40 + row, row % 7)
            })
            .collect();
        session.rows(&format!("INSERT INTO events VALUES {}", rows.join(", "))).await;
    }
}

async fn newest(session: &Session) -> u64 {
    session.value("SELECT max(snapshot_lsn) FROM verus.views").await.parse().unwrap()
}

/// Tries until something holds.
async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let begin = Instant::now();
    while !holds().await {
        assert!(begin.elapsed() < SOON, "it never came true: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A subscriber that comes back hears of the groups that a deletion has removed, or is told that this is not known any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_subscription_misses_no_removed_group() {
    let mut server = Server::start_with(Options::busy()).await;
    let mut session = server.connect().await;
    session.rows(EVENTS).await;
    session.rows("CREATE MATERIALIZED VIEW shops AS SELECT shop, count(*) AS n, sum(n) AS total FROM events GROUP BY shop").await;
    fill(&session, 0..5).await;
    let before = newest(&session).await;
    session.rows("DELETE FROM events WHERE shop = 'b'").await;
    let after = newest(&session).await;
    let resumed = |from: u64| format!("SUBSCRIBE TO shops WITH (from_lsn = {from}, up_to = {after}, progress = false)");
    for round in 0..2 {
        eventually("the removed group is forgotten", async || match session.copy_out(&resumed(before)).await {
            Ok(changes) => {
                assert!(changes.lines().any(|line| line.contains("\tdelete\tb\t")), "round {round}: {changes}");
                false
            }
            Err(error) => {
                assert_eq!((error.state.as_str(), error.hint.as_str()), ("55000", "Subscribe anew, with its snapshot."));
                true
            }
        })
        .await;
        assert_eq!(session.copy_out(&resumed(after)).await.unwrap(), "", "round {round}: nothing has changed since");
        server.kill();
        server.restart().await;
        session = server.connect().await;
    }
}

/// Soon after a deletion queries are answered from the view again.
#[tokio::test(flavor = "multi_thread")]
async fn queries_are_routed_to_a_view_again_after_a_deletion() {
    let server = Server::start_with(Options::busy()).await;
    let session = server.connect().await;
    session.rows(EVENTS).await;
    let view = "SELECT shop, TUMBLE(at, INTERVAL '1 minute') AS minute, count(*) AS n, sum(n) AS total, array_agg(id) AS ids FROM events GROUP BY shop, minute";
    session.rows(&format!("CREATE MATERIALIZED VIEW minutes AS {view}")).await;
    fill(&session, 0..10).await;
    for (round, condition) in ["shop = 'b'", "n = 3", "id < 100", "shop = 'c' AND n > 2"].into_iter().enumerate() {
        session.rows(&format!("DELETE FROM events WHERE {condition}")).await;
        session.assert_view("minutes", view, condition).await;
        session.rows("SET verus.route = 'auto'").await;
        let query = "SELECT shop, count(*), sum(n) FROM events GROUP BY shop ORDER BY shop";
        eventually("routed to the view", async || {
            let plan = session.rows(&format!("EXPLAIN (ROUTE) {query}")).await;
            plan[0][0] == "Route: view"
        })
        .await;
        let routed = session.rows(query).await;
        session.rows("SET verus.route = 'scan'").await;
        assert_eq!(routed, session.rows(query).await, "{condition}");
        session.assert_view("minutes", view, condition).await;
        fill(&session, 10 + round as u32 * 3..12 + round as u32 * 3).await;
    }
}

const WIDE: &str = "CREATE TABLE events (id bigint NOT NULL, batch bigint NOT NULL, at timestamptz NOT NULL, who text NOT NULL, n integer, \
                    WATERMARK FOR at AS at - INTERVAL '5 minutes') WITH (partition_by = 'who', dedup_key = 'id', dedup_window = '2 hours')";

/// Views of every kind that a deletion has to correct, with their options.
const VIEWS: &[(&str, &str, &str)] = &[
    ("total", "", "SELECT count(*) AS n, sum(n) AS sum FROM events"),
    (
        "minutes",
        "WITH (ttl = '10 minutes')",
        "SELECT who, TUMBLE(at, INTERVAL '1 minute') AS minute, count(*) AS n, sum(n) AS sum FROM events GROUP BY who, minute",
    ),
    (
        "hours",
        "WITH (ttl = '1 hour')",
        "SELECT date_trunc('hour', at) AS hour, count(*) AS n, count(DISTINCT who) AS people FROM events GROUP BY 1",
    ),
    ("teams_now", "", "SELECT team, count(*) AS n, sum(n) AS sum FROM events LEFT JOIN teams ON member = who GROUP BY team"),
    ("team_hours", "", "SELECT team, date_trunc('hour', at) AS hour, count(*) AS n FROM events JOIN teams ON member = who GROUP BY 1, 2"),
    (
        "sessions",
        "",
        "SELECT who, SESSION(at, INTERVAL '40 seconds') AS start, count(*) AS n, sum(n) AS sum FROM events GROUP BY who, start",
    ),
    ("everybody", "", "SELECT SESSION(at, INTERVAL '15 seconds') AS start, count(*) AS n, max(n) AS most FROM events GROUP BY start"),
];

const PEOPLE: [&str; 5] = ["ada", "bob", "cyd", "dan", "eve"];
const BATCH_ROWS: u64 = 20;

async fn wide_tables(session: &Session) {
    session.rows(WIDE).await;
    session.rows("CREATE TABLE teams (member text, team text)").await;
    session.rows("INSERT INTO teams VALUES ('ada', 'red'), ('bob', 'red'), ('bob', 'blue'), ('cyd', 'blue')").await;
    for (view, options, query) in VIEWS {
        session.rows(&format!("CREATE MATERIALIZED VIEW {view} {options} AS {query}")).await;
    }
}

async fn check_views(session: &Session, what: &str) {
    for (view, _, query) in VIEWS {
        session.assert_view(view, query, what).await;
    }
}

/// Rows of everybody, half a minute of them; each batch begins half a minute after the one before.
fn batch(number: u64) -> String {
    let rows: Vec<String> = (0..BATCH_ROWS)
        .map(|row| {
            let at = chrono::DateTime::from_timestamp(1_714_557_600 + (number * 30 + row * 7 % 31) as i64, 0).unwrap().to_rfc3339();
            let (id, who) = (number * BATCH_ROWS + row, PEOPLE[((number + row) % 5) as usize]);
            format!("({id}, {number}, '{at}', '{who}', {})", (number + row) % 9)
        })
        .collect();
    format!("INSERT INTO events VALUES {}", rows.join(", "))
}

#[tokio::test(flavor = "multi_thread")]
async fn views_that_join_have_sessions_or_a_ttl_are_corrected() {
    let mut server = Server::start_with(Options::busy()).await;
    let mut session = server.connect().await;
    wide_tables(&session).await;
    let mut next = 0;
    let conditions = [
        "who = 'ada'",
        "batch % 3 = 1",
        "at < '2024-05-01 10:05:00+00'",
        "n = 4",
        "who = 'bob' AND at >= '2024-05-01 10:20:00+00'",
        "id % 2 = 0",
        "true",
    ];
    for (round, condition) in conditions.into_iter().enumerate() {
        for _ in 0..40 {
            session.rows(&batch(next)).await;
            next += 1;
        }
        // Who was joined as they came is joined anew.
        if round % 2 == 1 {
            session.rows("UPDATE teams SET team = 'green' WHERE member = 'cyd'; UPDATE teams SET member = 'dan' WHERE team = 'red'").await;
        }
        session.rows(&format!("DELETE FROM events WHERE {condition}")).await;
        check_views(&session, condition).await;
        // Before and after the next checkpoint.
        for pause_ms in [0, 300] {
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            session.rows(&batch(next)).await;
            next += 1;
            check_views(&session, condition).await;
            server.kill();
            server.restart().await;
            session = server.connect().await;
            check_views(&session, &format!("{condition}, after a kill")).await;
        }
        session.rows("REFRESH MATERIALIZED VIEW teams_now").await;
        session.rows("DELETE FROM events WHERE batch % 7 = 3").await;
        session.rows("DELETE FROM events WHERE batch % 7 = 5").await;
        check_views(&session, &format!("{condition}, twice more")).await;
    }
    let plan = session.rows("EXPLAIN (ROUTE) SELECT who, count(*) FROM events GROUP BY who").await;
    assert!(plan[0][0].starts_with("Route: "), "{plan:?}");
}

/// What a client knows of a batch: whether it was written, whether it was erased; none where no answer came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Known {
    written: Option<bool>,
    erased: Option<bool>,
}

/// Kills the server while one client writes, another erases, and windows leave view state; nothing erased comes back, whole batches are
/// there or not, and every view equals its query.
#[tokio::test(flavor = "multi_thread")]
async fn deletions_and_evictions_survive_kills() {
    let kills: usize = std::env::var("VERUS_TEST_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    let mut random = StdRng::seed_from_u64(7);
    let mut server = Server::start_with(Options::busy()).await;
    wide_tables(&server.connect().await).await;
    let known: Arc<Mutex<Vec<Known>>> = Arc::default();
    for round in 0..kills {
        let (writer, eraser) = (server.connect().await, server.connect().await);
        let writing = tokio::spawn({
            let known = Arc::clone(&known);
            async move {
                loop {
                    let number = known.lock().unwrap().len();
                    known.lock().unwrap().push(Known { written: None, erased: Some(false) });
                    let Ok(_) = writer.query(&batch(number as u64)).await else { return };
                    known.lock().unwrap()[number].written = Some(true);
                }
            }
        });
        let erasing = tokio::spawn({
            let known = Arc::clone(&known);
            let mut random = StdRng::seed_from_u64(round as u64);
            async move {
                loop {
                    let there = |known: &Known| *known == Known { written: Some(true), erased: Some(false) };
                    let candidates: Vec<usize> =
                        known.lock().unwrap().iter().enumerate().filter(|(_, known)| there(known)).map(|(number, _)| number).collect();
                    let Some(number) = candidates.choose(&mut random).copied() else {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        continue;
                    };
                    known.lock().unwrap()[number].erased = None;
                    let Ok(_) = eraser.query(&format!("DELETE FROM events WHERE batch = {number}")).await else { return };
                    known.lock().unwrap()[number].erased = Some(true);
                }
            }
        });
        tokio::time::sleep(Duration::from_millis(random.random_range(150..900))).await;
        server.kill();
        writing.await.expect("the writer did not panic");
        erasing.await.expect("the eraser did not panic");
        server.restart().await;
        let session = server.connect().await;
        let found = session.rows("SELECT batch, count(*) FROM events GROUP BY batch").await;
        let counts: BTreeMap<usize, u64> = found.iter().map(|row| (row[0].parse().unwrap(), row[1].parse().unwrap())).collect();
        let mut settled = known.lock().unwrap().clone();
        for (number, known) in settled.iter_mut().enumerate() {
            let count = counts.get(&number).copied().unwrap_or(0);
            let place = format!("round {round}, batch {number}: {known:?}");
            match (known.written, known.erased) {
                (Some(true), Some(false)) => assert_eq!(count, BATCH_ROWS, "{place}"),
                (Some(false), _) | (_, Some(true)) => assert_eq!(count, 0, "{place}"),
                _ => assert!(count == 0 || count == BATCH_ROWS, "{place}: {count}"),
            }
            if known.written.is_none() {
                known.written = Some(count > 0);
            }
            if known.erased.is_none() {
                known.erased = Some(count == 0);
            }
        }
        check_views(&session, &format!("round {round}")).await;
        // The newest erased batches are still within the window.
        for (number, _) in settled.iter().enumerate().rev().filter(|(_, known)| known.erased == Some(true)).take(3) {
            session.rows(&batch(number as u64)).await;
            assert_eq!(
                session.value(&format!("SELECT count(*) FROM events WHERE batch = {number}")).await,
                "0",
                "round {round}, batch {number}"
            );
        }
        *known.lock().unwrap() = settled;
    }
    let erased = known.lock().unwrap().iter().filter(|known| known.written == Some(true) && known.erased == Some(true)).count();
    assert!(erased > 0, "nothing was erased: the test tested nothing");
    println!("{kills} kills, {} batches, {erased} of them erased", known.lock().unwrap().len());
}
