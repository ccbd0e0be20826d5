//! Plain tables under concurrency and kills: no update is lost, no key is taken twice, nothing deleted comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::harness::{Options, Server, Session, SqlError};

const CONNECTIONS: usize = 5;
const ROUNDS: usize = 30;

/// Adds up: single statements, upserts, and transactions of two updates that meet in opposite order.
async fn count(port: u16, number: usize) {
    let session = Session::open(port).await.unwrap();
    for round in 0..ROUNDS {
        session.rows("UPDATE counters SET n = n + 1 WHERE id = 1").await;
        session.rows("INSERT INTO counters VALUES (2, 1) ON CONFLICT (id) DO UPDATE SET n = counters.n + excluded.n").await;
        let (first, second) = if (number + round).is_multiple_of(2) { (3, 4) } else { (4, 3) };
        loop {
            match transfer(&session, first, second).await {
                Ok(()) => break,
                Err(error) => {
                    assert!(matches!(error.state.as_str(), "40P01" | "40001"), "{error}");
                    session.rows("ROLLBACK").await;
                }
            }
        }
    }
}

async fn transfer(session: &Session, first: usize, second: usize) -> Result<(), SqlError> {
    session.query("BEGIN").await?;
    session.query(&format!("UPDATE counters SET n = n + 1 WHERE id = {first}")).await?;
    session.query(&format!("UPDATE counters SET n = n + 1 WHERE id = {second}")).await?;
    session.query("COMMIT").await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_updates_add_up() {
    let server = Server::start_with(Options::busy()).await;
    let session = server.connect().await;
    session.rows("CREATE TABLE counters (id integer PRIMARY KEY, n bigint NOT NULL)").await;
    session.rows("INSERT INTO counters VALUES (1, 0), (3, 0), (4, 0)").await;
    let running: Vec<_> = (0..CONNECTIONS).map(|number| tokio::spawn(count(server.port, number))).collect();
    for connection in running {
        connection.await.unwrap();
    }
    let total = (CONNECTIONS * ROUNDS).to_string();
    let expected: Vec<Vec<String>> = (1..=4).map(|id: usize| vec![id.to_string(), total.clone()]).collect();
    assert_eq!(session.rows("SELECT id, n FROM counters ORDER BY id").await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_kept_does_not_overwrite() {
    let server = Server::start().await;
    let (one, other) = (server.connect().await, server.connect().await);
    one.rows("CREATE TABLE t (id integer PRIMARY KEY, n integer)").await;
    one.rows("INSERT INTO t VALUES (1, 1)").await;
    one.rows("BEGIN ISOLATION LEVEL REPEATABLE READ").await;
    assert_eq!(one.value("SELECT n FROM t").await, "1");
    other.rows("UPDATE t SET n = 2").await;
    assert_eq!(one.value("SELECT n FROM t").await, "1");
    assert_eq!(one.failure("UPDATE t SET n = n + 1").await.state, "40001");
    one.rows("ROLLBACK").await;
    // Of two that insert one key only one is heard.
    one.rows("BEGIN").await;
    one.rows("INSERT INTO t VALUES (2, 1)").await;
    other.rows("INSERT INTO t VALUES (2, 2)").await;
    let refused = one.failure("COMMIT").await;
    assert_eq!((refused.state.as_str(), refused.detail.as_str()), ("23505", "Key (id)=(2) already exists."));
    assert_eq!(one.value("SELECT sum(n) FROM t").await, "4");
}

/// One writer's own rows: what it has been told, and what it does not know.
struct Writer {
    number: usize,
    random: StdRng,
    /// Acknowledged increments of its counter.
    acknowledged: i64,
    /// An increment without an answer.
    open: bool,
}

impl Writer {
    /// Moves money, counts, deletes and inserts until the connection breaks.
    async fn write(&mut self, port: u16, stop: &AtomicBool) {
        let Ok(session) = Session::open(port).await else { return };
        while !stop.load(Ordering::Relaxed) {
            let (from, to) = (self.random.random_range(0..8), self.random.random_range(0..8));
            let number = self.number;
            // The counter moves with the money: both or neither.
            let statements = [
                "BEGIN".to_owned(),
                format!("UPDATE accounts SET balance = balance - 1 WHERE id = {from}"),
                format!("UPDATE accounts SET balance = balance + 1 WHERE id = {to}"),
                format!(
                    "DELETE FROM journal WHERE writer = {number} AND entry <= (SELECT max(entry) - 3 FROM journal WHERE writer = {number})"
                ),
                format!("UPDATE counters SET n = n + 1 WHERE writer = {number}"),
                format!("INSERT INTO journal SELECT writer, n FROM counters WHERE writer = {number}"),
            ];
            let mut outcome = Ok(());
            for statement in &statements {
                outcome = session.query(statement).await.map(drop);
                if outcome.is_err() {
                    break;
                }
            }
            if outcome.is_ok() {
                self.open = true;
                outcome = session.query("COMMIT").await.map(drop);
            }
            match outcome {
                Ok(()) => {
                    self.open = false;
                    self.acknowledged += 1;
                }
                Err(error) if matches!(error.state.as_str(), "40001" | "40P01") => {
                    self.open = false;
                    if session.query("ROLLBACK").await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    assert!(matches!(&error.state[..2], "08" | "57"), "only a broken connection is expected: {error} {}", error.detail);
                    return;
                }
            }
        }
    }

    /// What is found after a restart is what was told, or one more where the answer never came.
    async fn verify(&mut self, session: &Session, round: usize) {
        let number = self.number;
        let found: i64 = session.value(&format!("SELECT n FROM counters WHERE writer = {number}")).await.parse().unwrap();
        let place = format!("round {round}, writer {number}: {found} found, {} acknowledged", self.acknowledged);
        assert!(found == self.acknowledged || (self.open && found == self.acknowledged + 1), "{place}");
        (self.acknowledged, self.open) = (found, false);
        let journal =
            session.value(&format!("SELECT string_agg(entry::text, ',' ORDER BY entry) FROM journal WHERE writer = {number}")).await;
        let first = (found - 3).max(1);
        let expected: Vec<String> = (first..=found).map(|entry| entry.to_string()).collect();
        assert_eq!(journal, if found == 0 { "NULL".to_owned() } else { expected.join(",") }, "{place}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_and_deletes_survive_kills() {
    let mut options = Options::busy();
    options.env.push(("VERUS_LIMITS_STORE_ERASE_AGE_MS", "300".to_owned()));
    let mut server = Server::start_with(options).await;
    let session = server.connect().await;
    session.rows("CREATE TABLE accounts (id integer PRIMARY KEY, balance bigint NOT NULL)").await;
    session.rows("CREATE TABLE counters (writer integer PRIMARY KEY, n bigint NOT NULL)").await;
    session.rows("CREATE TABLE journal (writer integer, entry bigint, PRIMARY KEY (writer, entry))").await;
    session.rows("INSERT INTO accounts SELECT id, 100 FROM generate_series(0, 7) AS s (id)").await;
    session.rows("INSERT INTO counters VALUES (0, 0), (1, 0), (2, 0)").await;
    drop(session);
    let writer = |number| Writer { number, random: StdRng::seed_from_u64(number as u64), acknowledged: 0, open: false };
    let mut writers: Vec<Writer> = (0..3).map(writer).collect();
    let mut random = StdRng::seed_from_u64(7);
    for round in 0..6 {
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
        tokio::time::sleep(Duration::from_millis(random.random_range(300..1200))).await;
        server.kill();
        stop.store(true, Ordering::Relaxed);
        for writer in running {
            writers.push(writer.await.unwrap());
        }
        server.restart().await;
        let session = server.connect().await;
        assert_eq!(session.value("SELECT sum(balance) FROM accounts").await, "800", "round {round}");
        assert_eq!(session.value("SELECT count(*) FROM accounts").await, "8", "round {round}");
        for writer in &mut writers {
            writer.verify(&session, round).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_rows_leave_the_disk() {
    let mut options = Options::busy();
    options.env.push(("VERUS_LIMITS_STORE_ERASE_AGE_MS", "100".to_owned()));
    let mut server = Server::start_with(options).await;
    let session = server.connect().await;
    session.rows("CREATE TABLE p (id integer PRIMARY KEY, secret text)").await;
    session.rows("INSERT INTO p SELECT id, 'value ' || id FROM generate_series(1, 2000) AS s (id)").await;
    session.until("SELECT coalesce(sum(rows), 0) = 2000 FROM verus.files WHERE table_name = 'p'").await;
    session.rows("DELETE FROM p WHERE id % 100 = 7").await;
    assert_eq!(session.value("SELECT count(*) FROM p").await, "1980");
    session.until("SELECT sum(rows) = 1980 FROM verus.files WHERE table_name = 'p'").await;
    drop(session);
    server.kill();
    server.restart().await;
    let session = server.connect().await;
    assert_eq!(session.value("SELECT count(*) FROM p WHERE id % 100 = 7").await, "0");
    assert_eq!(session.failure("INSERT INTO p VALUES (8, 'again')").await.state, "23505");
    session.rows("INSERT INTO p VALUES (7, 'again')").await;
}
