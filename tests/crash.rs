//! Kills the server while clients write, over and over, and looks at what is left.
//!
//! Four writers send batches by INSERT, COPY, transactions and prepared statements. Each row carries its writer, batch and
//! place in the batch, so that after each restart every batch can be found: acknowledged ones whole and exactly once, those
//! without an answer whole or absent (and the same ever after), those that were never committed absent. Every view equals its
//! query. Every fourth restart is itself killed during recovery.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::harness::{Options, Server, Session, SqlError};

const WRITERS: usize = 4;

const VIEWS: &[(&str, &str)] = &[
    (
        "by_minute",
        "SELECT writer, TUMBLE(at, INTERVAL '1' MINUTE) AS minute, count(*) AS n, sum(revenue) AS revenue, count(DISTINCT batch) AS batches \
         FROM events GROUP BY writer, minute",
    ),
    ("by_hour", "SELECT date_trunc('hour', at) AS hour, count(*) AS n, min(seq) AS low, max(seq) AS high FROM events GROUP BY 1"),
    ("by_batch", "SELECT writer, batch, count(*) AS n, count(DISTINCT seq) AS seqs FROM events WHERE seq >= 0 GROUP BY writer, batch"),
    ("total", "SELECT count(*) AS n, sum(revenue) AS revenue FROM events"),
    ("by_day", "SELECT writer, date_trunc('day', minute) AS day, sum(n) AS n, sum(revenue) AS revenue FROM by_minute GROUP BY 1, 2"),
    ("batches", "SELECT writer, count(*) AS batches, max(n) AS largest FROM by_batch GROUP BY writer"),
    (
        "by_team",
        "SELECT team, date_trunc('hour', at) AS hour, count(*) AS n, sum(revenue) AS revenue FROM events LEFT JOIN teams ON member = writer GROUP BY 1, 2",
    ),
];

/// What a writer knows about a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The server said OK, or a check after a restart found it.
    There,
    /// The answer never came.
    Open,
    /// It was never committed, or a check after a restart found nothing.
    Absent,
}

#[derive(Clone, Copy, Debug)]
struct Batch {
    rows: usize,
    fate: Fate,
}

struct Writer {
    number: usize,
    batches: BTreeMap<usize, Batch>,
    random: StdRng,
}

impl Writer {
    /// The rows of a batch as texts: event id, writer, batch, place, time, revenue. Times rise with the batch number, at most
    /// four minutes out of order within one, so that no row is ever very late.
    fn rows(&mut self, batch: usize, count: usize) -> Vec<[String; 6]> {
        let begin = 1_714_500_000 + batch as i64 * 7;
        (0..count)
            .map(|seq| {
                let at = begin - self.random.random_range(0..240);
                let id = uuid::Uuid::from_u128(((self.number as u128) << 96) | ((batch as u128) << 32) | seq as u128);
                let at = chrono::DateTime::from_timestamp(at, 0).expect("in range").to_rfc3339();
                let cents = self.random.random_range(0..100_000);
                [
                    id.to_string(),
                    self.number.to_string(),
                    batch.to_string(),
                    seq.to_string(),
                    at,
                    format!("{}.{:02}", cents / 100, cents % 100),
                ]
            })
            .collect()
    }

    /// Writes until the connection breaks or `stop` is set.
    async fn write(&mut self, port: u16, stop: &AtomicBool) {
        let Ok(session) = Session::open(port).await else { return };
        while !stop.load(Ordering::Relaxed) {
            let batch = self.batches.len();
            let count = if self.number == 3 { 1 } else { self.random.random_range(1..120) };
            let rows = self.rows(batch, count);
            // Until the answer comes, the batch may or may not be there.
            self.batches.insert(batch, Batch { rows: count, fate: Fate::Open });
            let (result, committing) = match self.number {
                0 => (insert(&session, &rows).await, true),
                1 => (copy(&session, &rows).await, true),
                2 => transaction(&session, &rows).await,
                _ => (prepared(&session, &rows).await, true),
            };
            let fate = match result {
                Ok(()) => Fate::There,
                Err(error) => {
                    assert!(matches!(&error.state[..2], "08" | "57"), "only a broken connection is expected: {error} {}", error.detail);
                    if committing { Fate::Open } else { Fate::Absent }
                }
            };
            self.batches.insert(batch, Batch { rows: count, fate });
            if fate != Fate::There {
                return;
            }
        }
    }
}

fn literals(rows: &[[String; 6]]) -> String {
    let tuples: Vec<String> =
        rows.iter().map(|[id, writer, batch, seq, at, revenue]| format!("('{id}', {writer}, {batch}, {seq}, '{at}', {revenue})")).collect();
    format!("INSERT INTO events (event_id, writer, batch, seq, at, revenue) VALUES {}", tuples.join(", "))
}

async fn insert(session: &Session, rows: &[[String; 6]]) -> Result<(), SqlError> {
    session.query(&literals(rows)).await.map(drop)
}

async fn copy(session: &Session, rows: &[[String; 6]]) -> Result<(), SqlError> {
    let text: String = rows.iter().map(|row| row.join(",") + "\n").collect();
    let copied = session.copy("COPY events (event_id, writer, batch, seq, at, revenue) FROM STDIN WITH (FORMAT csv)", &text).await?;
    assert_eq!(copied, rows.len() as u64);
    Ok(())
}

/// The outcome, and whether COMMIT had been sent.
async fn transaction(session: &Session, rows: &[[String; 6]]) -> (Result<(), SqlError>, bool) {
    let (first, second) = rows.split_at(rows.len() / 2);
    for statement in ["BEGIN".to_owned(), literals_or_nothing(first), literals_or_nothing(second)] {
        if let Err(error) = session.query(&statement).await {
            return (Err(error), false);
        }
    }
    (session.query("COMMIT").await.map(drop), true)
}

fn literals_or_nothing(rows: &[[String; 6]]) -> String {
    if rows.is_empty() { String::new() } else { literals(rows) }
}

async fn prepared(session: &Session, rows: &[[String; 6]]) -> Result<(), SqlError> {
    let [id, writer, batch, seq, at, revenue] = &rows[0];
    let statement = session
        .client
        .prepare(
            "INSERT INTO events (event_id, writer, batch, seq, at, revenue) \
             VALUES ($1::uuid, $2::integer, $3::bigint, $4::integer, $5::timestamptz, $6::text::numeric)",
        )
        .await?;
    let id: uuid::Uuid = id.parse().expect("a uuid");
    let numbers = (writer.parse::<i32>().expect("int"), batch.parse::<i64>().expect("bigint"), seq.parse::<i32>().expect("int"));
    let at = chrono::DateTime::parse_from_rfc3339(at).expect("a time").with_timezone(&chrono::Utc);
    let count = session.client.execute(&statement, &[&id, &numbers.0, &numbers.1, &numbers.2, &at, revenue]).await?;
    assert_eq!(count, 1);
    Ok(())
}

async fn verify(session: &Session, writers: &mut [Writer], round: usize) {
    let found = session
        .rows("SELECT writer, batch, count(*), count(DISTINCT seq), count(DISTINCT event_id) FROM events GROUP BY writer, batch")
        .await;
    let mut counts: BTreeMap<(usize, usize), [usize; 3]> = BTreeMap::new();
    for row in found {
        let number = |column: usize| row[column].parse::<usize>().expect("a number");
        counts.insert((number(0), number(1)), [number(2), number(3), number(4)]);
    }
    for writer in writers.iter_mut() {
        for (batch, known) in &mut writer.batches {
            let count = counts.remove(&(writer.number, *batch)).unwrap_or_default();
            let whole = [known.rows; 3];
            let place = format!("round {round}, writer {}, batch {batch} of {} rows", writer.number, known.rows);
            match known.fate {
                Fate::There => assert_eq!(count, whole, "{place}: acknowledged (or found before), so whole and exactly once"),
                Fate::Absent => assert_eq!(count, [0; 3], "{place}: never committed (or found missing before), so absent"),
                Fate::Open if count == whole => known.fate = Fate::There,
                Fate::Open => {
                    assert_eq!(count, [0; 3], "{place}: without an answer, so whole or absent");
                    known.fate = Fate::Absent;
                }
            }
        }
    }
    assert!(counts.is_empty(), "round {round}: batches that nobody sent: {counts:?}");
    assert_eq!(session.value("SELECT count(*) FROM \"events$late\"").await, "0", "round {round}: no row was very late");
    for (view, query) in VIEWS {
        session.assert_view(view, query, &format!("round {round}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_events_survive_kills_exactly_once() {
    let kills: usize = std::env::var("VERUS_TEST_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let mut random = StdRng::seed_from_u64(20);
    let mut server = Server::start_with(Options::busy()).await;
    let session = server.connect().await;
    session
        .rows(
            "CREATE TABLE events (event_id uuid NOT NULL, writer integer NOT NULL, batch bigint NOT NULL, seq integer NOT NULL, at timestamptz NOT NULL, \
             revenue numeric(12,2), WATERMARK FOR at AS at - INTERVAL '5 minutes') WITH (partition_by = 'writer')",
        )
        .await;
    // Writer 3 is of no team, writer 1 of two.
    session.rows("CREATE TABLE teams (member integer, team text)").await;
    session.rows("INSERT INTO teams VALUES (0, 'red'), (1, 'red'), (1, 'blue'), (2, 'blue')").await;
    for (view, query) in VIEWS {
        session.rows(&format!("CREATE MATERIALIZED VIEW {view} AS {query}")).await;
    }
    drop(session);

    let mut writers: Vec<Writer> =
        (0..WRITERS).map(|number| Writer { number, batches: BTreeMap::new(), random: StdRng::seed_from_u64(number as u64) }).collect();
    for round in 0..kills {
        let stop = Arc::new(AtomicBool::new(false));
        let port = server.port;
        let running: Vec<_> = writers
            .drain(..)
            .map(|mut writer| {
                let stop = Arc::clone(&stop);
                tokio::spawn(async move {
                    writer.write(port, &stop).await;
                    writer
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(random.random_range(100..500))).await;
        server.kill();
        stop.store(true, Ordering::Relaxed);
        for task in running {
            writers.push(task.await.expect("the writer did not panic"));
        }
        if round % 4 == 3 {
            server.relaunch();
            tokio::time::sleep(Duration::from_millis(random.random_range(5..250))).await;
            server.kill();
        }
        server.restart().await;
        verify(&server.connect().await, &mut writers, round).await;
    }
    let acknowledged: usize = writers.iter().flat_map(|writer| writer.batches.values()).filter(|batch| batch.fate == Fate::There).count();
    for writer in &writers {
        let there = writer.batches.values().filter(|batch| batch.fate == Fate::There).count();
        assert!(there > 0, "writer {} got nothing acknowledged: the test tested nothing of it", writer.number);
    }
    println!("{kills} kills, {acknowledged} batches acknowledged");
}
