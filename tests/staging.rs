//! Statements of more rows than memory: staged in files, committed by one record.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use futures::SinkExt;

use crate::harness::{Options, SOON, Server, Session};

const COPY: &str = "COPY events (id, at, store, kind, revenue) FROM STDIN WITH (FORMAT csv)";

const VIEWS: &[(&str, &str)] = &[
    (
        "by_minute",
        "SELECT store, TUMBLE(at, INTERVAL '1' MINUTE) AS minute, count(*) AS n, sum(revenue) AS revenue, count(DISTINCT id) AS ids \
         FROM events GROUP BY store, minute",
    ),
    ("by_kind", "SELECT kind, count(*) AS n, min(at) AS first, max(at) AS last FROM events WHERE revenue > 1 GROUP BY kind"),
];

/// Memory for a statement's rows so small that everything beyond a few thousand is staged, in several chunks.
fn options() -> Options {
    let mut options = Options::busy();
    options.env.push(("VERUS_LIMITS_STORE_STATEMENT_BYTES_MAX", "1000000".to_owned()));
    options
}

async fn tables(session: &Session) {
    session
        .rows(
            "CREATE TABLE events (id bigint NOT NULL, at timestamptz NOT NULL, store text NOT NULL, kind text NOT NULL, revenue numeric(12,2) NOT NULL, \
             WATERMARK FOR at AS at - INTERVAL '5 minutes') WITH (partition_by = 'store', dedup_key = 'id', dedup_window = '30 days')",
        )
        .await;
    for (view, query) in VIEWS {
        session.rows(&format!("CREATE MATERIALIZED VIEW {view} AS {query}")).await;
    }
}

/// Rows of ten stores, a second apart.
fn lines(ids: std::ops::Range<u32>) -> String {
    let mut text = String::new();
    for id in ids {
        let at = chrono::DateTime::from_timestamp(1_714_500_000 + i64::from(id), 0).unwrap().to_rfc3339();
        writeln!(text, "{id},{at},store {},kind {},{}.{:02}", id % 10, id % 3, id % 50, id % 100).unwrap();
    }
    text
}

async fn check_views(session: &Session, what: &str) {
    for (view, query) in VIEWS {
        session.assert_view(view, query, what).await;
    }
}

/// The Parquet files of `events` on disk.
fn on_disk(server: &Server) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for table in std::fs::read_dir(server.data_dir().join("tables")).into_iter().flatten().flatten() {
        for file in std::fs::read_dir(table.path().join("data")).into_iter().flatten().flatten() {
            found.insert(file.file_name().to_string_lossy().into_owned());
        }
    }
    found
}

async fn nothing_is_left(server: &Server) {
    let begin = Instant::now();
    while !on_disk(server).is_empty() {
        assert!(begin.elapsed() < SOON, "files are left: {:?}", on_disk(server));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_more_than_memory_is_one_commit() {
    let mut server = Server::start_with(options()).await;
    let session = server.connect().await;
    tables(&session).await;
    // Known keys, rows that are late for their store, and duplicates among themselves far apart.
    session.rows("INSERT INTO events VALUES (7, '2024-04-30 18:00:07+00', 'store 7', 'x', 2), (1000000, '2024-05-01 12:00:00+00', 'store 1', 'x', 2)").await;
    let mut text = lines(0..60_000);
    text.push_str(&lines(0..100));
    let late = (0..60_000_u32).filter(|id| id % 10 == 1 && 1_714_500_000 + id < 1_714_564_800 - 300).count();
    let copied = session.copy(COPY, &text).await.unwrap();
    assert_eq!(copied as usize, 60_000 - 1 - late);
    assert_eq!(session.value("SELECT count(*) FROM events").await, (60_000 - 1 - late + 2).to_string());
    assert_eq!(session.value("SELECT count(*) FROM \"events$late\"").await, late.to_string());
    assert_eq!(session.value("SELECT count(DISTINCT id) FROM events").await, session.value("SELECT count(*) FROM events").await);
    check_views(&session, "after the copy").await;
    let sum = session.value("SELECT sum(revenue * id) FROM events").await;

    // Sent again, everything is a duplicate: the late rows too.
    assert_eq!(session.copy(COPY, &text).await, Ok(0));
    for round in 0..3 {
        drop(server.connect().await.query("INSERT INTO events VALUES (2000000, '2024-05-01 12:00:00+00', 'store 2', 'y', 1)").await);
        server.kill();
        server.restart().await;
        let session = server.connect().await;
        assert_eq!(session.value("SELECT sum(revenue * id) FROM events WHERE id < 2000000").await, sum, "round {round}");
        assert_eq!(session.value("SELECT count(*) FROM \"events$late\"").await, late.to_string());
        check_views(&session, &format!("after kill {round}")).await;
        assert_eq!(session.copy(COPY, &text).await, Ok(0), "the keys are known after a restart");
    }
}

/// Stores whose clocks are years apart: what is sent again is a duplicate of either, in one statement, later, and after a restart that reads the
/// keys back from files.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_again_is_told_by_the_clock_of_its_store() {
    let mut server = Server::start_with(options()).await;
    let session = server.connect().await;
    tables(&session).await;
    let old = lines(0..20_000).replace(",store ", ",old store ").replace("2024-", "2019-");
    assert_eq!(session.copy(COPY, &old).await, Ok(20_000));
    // Its times are years ahead, and some rows were there already: the key is the table's.
    assert_eq!(session.copy(COPY, &lines(19_000..40_000)).await, Ok(20_000));
    for round in 0..2 {
        let session = server.connect().await;
        assert_eq!(session.copy(COPY, &old).await, Ok(0), "round {round}");
        assert_eq!(session.copy(COPY, &lines(20_000..40_000)).await, Ok(0), "round {round}");
        let few: String = old.split_inclusive('\n').take(100).collect();
        assert_eq!(session.copy(COPY, &few).await, Ok(0), "in memory, round {round}");
        assert_eq!(session.value("SELECT count(*) FROM \"events$late\"").await, "0");
        check_views(&session, &format!("round {round}")).await;
        server.kill();
        server.restart().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_staged_statement_that_fails_leaves_nothing() {
    let server = Server::start_with(options()).await;
    let session = server.connect().await;
    tables(&session).await;
    for (bad, state) in [("x,2024-05-01,s,k,1\n", "22P02"), ("1,,s,k,1\n", "23502"), ("1,2999-01-01,s,k,1\n", "22008")] {
        let error = session.copy(COPY, &(lines(0..40_000) + bad)).await.unwrap_err();
        assert_eq!(error.state, state, "{error}");
        assert_eq!(session.value("SELECT count(*) FROM events").await, "0");
        nothing_is_left(&server).await;
    }
    // Given up by the client.
    let sink = session.client.copy_in::<_, bytes::Bytes>(COPY).await.unwrap();
    futures::pin_mut!(sink);
    sink.send(lines(0..40_000).into()).await.unwrap();
    drop(server.connect().await);
    session.client.cancel_token().cancel_query(tokio_postgres::NoTls).await.unwrap();
    assert!(sink.finish().await.is_err());
    nothing_is_left(&server).await;
    // A late row is an error when that is asked for.
    session.rows("INSERT INTO events VALUES (1000000, '2024-05-01 12:00:00+00', 'store 1', 'x', 2)").await;
    session.rows("SET verus.late_rows = 'error'").await;
    assert_eq!(session.copy(COPY, &lines(0..40_000)).await.unwrap_err().state, "22008");
    assert_eq!(session.value("SELECT count(*) FROM events").await, "1");
    check_views(&session, "after failures").await;
    // After another change of its block rows are kept in memory, and that has an end.
    session.rows("SET verus.late_rows = 'divert'; BEGIN; CREATE TABLE other (a integer)").await;
    assert_eq!(session.copy(COPY, &lines(0..40_000)).await.unwrap_err().state, "54000");
    session.rows("ROLLBACK").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_more_than_memory_in_a_block() {
    let mut server = Server::start_with(options()).await;
    let (session, other) = (server.connect().await, server.connect().await);
    tables(&session).await;
    session.rows("CREATE TABLE small (a integer)").await;
    let seen = "SELECT count(*), sum(revenue), count(DISTINCT store) FROM events";
    for end in ["ROLLBACK", "ROLLBACK TO s", "COMMIT"] {
        session.rows("BEGIN; SAVEPOINT s").await;
        assert_eq!(session.copy(COPY, &lines(0..40_000)).await, Ok(40_000), "{end}");
        assert_eq!(session.rows(seen).await[0][0], "40000", "its own rows");
        assert_eq!(session.value("SELECT sum(n) FROM by_minute").await, "40000");
        session.rows("SET LOCAL verus.route = 'scan'").await;
        assert_eq!(session.value("SELECT count(*) FROM events WHERE store = 'store 3'").await, "4000");
        assert_eq!(other.value("SELECT count(*) FROM events").await, "0", "nobody else's yet");
        match end {
            "ROLLBACK" => {
                assert_eq!(session.failure("INSERT INTO small VALUES (1)").await.state, "0A000");
                assert_eq!(session.failure("SELECT 1").await.state, "25P02");
                session.rows("ROLLBACK").await;
            }
            "ROLLBACK TO s" => {
                session.rows("ROLLBACK TO s; INSERT INTO small VALUES (2)").await;
                assert_eq!(session.value("SELECT count(*) FROM events").await, "0");
                session.rows("COMMIT").await;
            }
            _ => {
                // Another one brings a key meanwhile: which row is the duplicate COMMIT decides.
                other.rows("INSERT INTO events VALUES (123, '2024-04-30 18:02:03+00', 'store 3', 'theirs', 5)").await;
                session.rows("COMMIT").await;
                assert_eq!(session.value("SELECT kind FROM events WHERE id = 123").await, "theirs");
            }
        }
        assert_eq!(session.value("SELECT count(*) FROM events").await, if end == "COMMIT" { "40000" } else { "0" });
        if end != "COMMIT" {
            nothing_is_left(&server).await;
        }
        check_views(&session, end).await;
    }
    server.kill();
    server.restart().await;
    let session = server.connect().await;
    assert_eq!(session.value("SELECT count(*) FROM events").await, "40000");
    assert_eq!(session.value("SELECT sum(a) FROM small").await, "2");
    check_views(&session, "after a kill").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_a_copy_of_more_than_memory() {
    const KEYED: &str = "COPY keyed FROM STDIN WITH (FORMAT csv)";
    let mut server = Server::start_with(options()).await;
    let (session, other) = (server.connect().await, server.connect().await);
    session
        .rows(
            "CREATE TABLE keyed (id bigint PRIMARY KEY, at timestamptz, store text, kind text, revenue numeric(12,2), UNIQUE (at, store))",
        )
        .await;
    session.rows("INSERT INTO keyed VALUES (39000, '2020-01-01 00:00:00+00', 'x', 'y', 1)").await;
    let error = session.copy(KEYED, &lines(0..40_000)).await.unwrap_err();
    assert_eq!((error.state.as_str(), error.detail.as_str()), ("23505", "Key (id)=(39000) already exists."));
    session.rows("DELETE FROM keyed").await;
    let error = session.copy(KEYED, &(lines(0..40_000) + &lines(5..6))).await.unwrap_err();
    assert_eq!((error.state.as_str(), error.detail.as_str()), ("23505", "Key (id)=(5) already exists."));
    let error = session.copy(KEYED, &(lines(0..40_000) + &lines(5..6).replacen('5', "50000", 1))).await.unwrap_err();
    assert!(error.state == "23505" && error.message.contains("keyed_at_store_key"), "{error}");
    assert_eq!(session.value("SELECT count(*) FROM keyed").await, "0");
    // Somebody else takes a key before the rows are committed.
    session.rows("BEGIN").await;
    assert_eq!(session.copy(KEYED, &lines(0..40_000)).await, Ok(40_000));
    other.rows("INSERT INTO keyed VALUES (20000, '2020-01-01 00:00:00+00', 'x', 'y', 1)").await;
    let error = session.failure("COMMIT").await;
    assert_eq!((error.state.as_str(), error.detail.as_str()), ("23505", "Key (id)=(20000) already exists."));
    assert_eq!(session.value("SELECT count(*) FROM keyed").await, "1");
    session.rows("TRUNCATE keyed").await;
    assert_eq!(session.copy(KEYED, &lines(0..40_000)).await, Ok(40_000));
    for _ in 0..2 {
        let session = server.connect().await;
        assert_eq!(session.rows("SELECT count(*), sum(id) FROM keyed").await, [["40000", "799980000"]]);
        assert_eq!(session.failure("INSERT INTO keyed VALUES (39999)").await.state, "23505");
        session.rows("INSERT INTO keyed VALUES (7) ON CONFLICT (id) DO UPDATE SET kind = 'again'").await;
        assert_eq!(session.value("SELECT kind FROM keyed WHERE id = 7").await, "again");
        session.rows("DELETE FROM keyed WHERE id = 8; INSERT INTO keyed VALUES (8)").await;
        server.kill();
        server.restart().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn insert_select_of_more_than_memory() {
    let mut server = Server::start_with(options()).await;
    let session = server.connect().await;
    tables(&session).await;
    let insert = "INSERT INTO events SELECT x, TIMESTAMPTZ '2024-05-01 00:00:00+00' + x * INTERVAL '1 second', 'store ' || x % 10, 'kind', 2 \
                  FROM generate_series(1, 50000) AS s(x)";
    session.rows(insert).await;
    assert_eq!(session.value("SELECT count(*) FROM events").await, "50000");
    check_views(&session, "after INSERT SELECT").await;
    assert_eq!(session.failure(&insert.replace("50000", "80000").replace("'kind', 2", "'kind', 1 / (x - 70000)")).await.state, "22012");
    session.rows("CREATE TABLE plain (id bigint, note text DEFAULT 'x')").await;
    session.rows("INSERT INTO plain (id) SELECT id FROM events").await;
    session.rows("ALTER TABLE plain ADD COLUMN more integer NOT NULL DEFAULT 7").await;
    server.kill();
    server.restart().await;
    let session = server.connect().await;
    assert_eq!(session.rows("SELECT count(*), sum(id), min(note), sum(more) FROM plain").await, [["50000", "1250025000", "x", "350000"]]);
    check_views(&session, "after a kill").await;
    session.rows("TRUNCATE events").await;
    assert_eq!(session.value("SELECT count(*) FROM events").await, "0");
    session.rows(insert).await;
    session.rows("DROP TABLE events CASCADE").await;
    server.kill();
    server.restart().await;
    assert_eq!(server.connect().await.value("SELECT count(*) FROM plain").await, "50000");
}

/// Other commits bring a key that is staged already, and move a watermark past rows that are.
#[tokio::test(flavor = "multi_thread")]
async fn commits_between_staging_and_its_commit() {
    let server = Server::start_with(options()).await;
    let (session, other) = (server.connect().await, server.connect().await);
    tables(&session).await;
    let sink = session.client.copy_in::<_, bytes::Bytes>(COPY).await.unwrap();
    futures::pin_mut!(sink);
    for part in 0..40 {
        sink.send(lines(part * 1_000..part * 1_000 + 1_000).into()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let begin = Instant::now();
    while on_disk(&server).is_empty() {
        assert!(begin.elapsed() < SOON, "nothing is staged");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    other.rows("INSERT INTO events VALUES (123, '2024-04-30 18:02:03+00', 'store 3', 'mine', 5)").await;
    other.rows("INSERT INTO events VALUES (1000000, '2024-05-02 00:00:00+00', 'store 4', 'mine', 5)").await;
    other.rows("CREATE MATERIALIZED VIEW born AS SELECT kind, count(*) AS n FROM events GROUP BY kind").await;
    let copied = sink.finish().await.unwrap();
    assert_eq!(copied, 40_000 - 4_000 - 1, "store 4 is late, and 123 was there first");
    assert_eq!(other.value("SELECT kind FROM events WHERE id = 123").await, "mine");
    assert_eq!(other.value("SELECT count(*) FROM \"events$late\"").await, "4000");
    assert_eq!(other.value("SELECT count(*) FROM events").await, (36_000 - 1 + 2).to_string());
    check_views(&other, "after commits between").await;
    other.assert_view("born", "SELECT kind, count(*) AS n FROM events GROUP BY kind", "a view made between").await;
    let live: BTreeSet<String> =
        other.rows("SELECT path FROM verus.files").await.into_iter().map(|row| row[0].rsplit('/').next().unwrap().to_owned()).collect();
    assert!(live.is_subset(&on_disk(&server)));
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_leave_all_or_nothing_of_a_staged_copy() {
    let mut server = Server::start_with(options()).await;
    tables(&server.connect().await).await;
    let text = lines(0..50_000);
    let (mut there, mut absent) = (0, 0);
    for round in 0..8_u64 {
        let session = server.connect().await;
        let before: u64 = session.value("SELECT count(*) FROM events").await.parse().unwrap();
        if before > 0 {
            session.rows("TRUNCATE events").await;
        }
        let data = text.clone();
        let copying = tokio::spawn(async move { session.copy(COPY, &data).await.is_ok() });
        tokio::time::sleep(Duration::from_millis(150 + round * 350)).await;
        server.kill();
        let acknowledged = copying.await.unwrap();
        server.restart().await;
        let session = server.connect().await;
        let count: u64 = session.value("SELECT count(*) FROM events").await.parse().unwrap();
        assert!(count == 50_000 || (count == 0 && !acknowledged), "round {round}: {count} rows");
        check_views(&session, &format!("round {round}")).await;
        if count == 0 {
            absent += 1;
            if before == 0 {
                let live = session.rows("SELECT path FROM verus.files").await;
                assert_eq!((live.len(), on_disk(&server).len()), (0, 0), "round {round}: files that nobody names are deleted at the start");
            }
            // Those of rows that TRUNCATE has taken out go when the background work comes to them.
            nothing_is_left(&server).await;
        } else {
            there += 1;
        }
    }
    println!("{there} whole, {absent} absent");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_of_a_staged_file_is_told() {
    let mut server = Server::start_with(options()).await;
    let session = server.connect().await;
    session.rows("CREATE TABLE plain (id bigint, at timestamptz, store text, kind text, revenue numeric(12,2))").await;
    let copied = session.copy("COPY plain FROM STDIN WITH (FORMAT csv)", &lines(0..40_000)).await;
    assert_eq!(copied, Ok(40_000));
    assert_eq!(session.value("SELECT sum(id) FROM plain").await, "799980000");
    server.kill();
    let path = std::fs::read_dir(server.data_dir().join("tables")).unwrap().flatten().next().unwrap().path().join("data");
    let path = std::fs::read_dir(path).unwrap().flatten().next().unwrap().path();
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    server.restart().await;
    let session = server.connect().await;
    assert_eq!(session.failure("SELECT sum(id) FROM plain").await.state, "XX001");
    assert_eq!(session.value("SELECT 1").await, "1");
}
