//! SUBSCRIBE: a snapshot with the changes put over it is the view, at every progress, through restarts and resumptions.
//!
//! Nothing waits by the clock: a commit is acknowledged, and the subscription is read until its progress has reached it.

use std::collections::BTreeMap;
use std::pin::Pin;

use futures::{Stream, StreamExt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::NoTls;

use crate::harness::{Options, SOON, Server, Session, SqlError};

const TABLE: &str = "CREATE TABLE e (id bigint NOT NULL, at timestamptz NOT NULL, shop text, n integer, \
                     WATERMARK FOR at AS at - INTERVAL '1 hour') WITH (partition_by = 'shop')";

/// A line of a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    lsn: u64,
    kind: String,
    values: Vec<String>,
}

/// A subscription that is read line by line, and what the view is by what it has said. The first columns are the keys.
struct Mirror {
    session: Session,
    lines: Pin<Box<dyn Stream<Item = Result<bytes::Bytes, tokio_postgres::Error>> + Send>>,
    text: String,
    keys: usize,
    rows: BTreeMap<Vec<String>, Vec<String>>,
    /// Of the last progress.
    lsn: u64,
}

impl Mirror {
    async fn open(server: &Server, sql: &str, keys: usize) -> Mirror {
        Mirror::try_open(server, sql, keys).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    async fn try_open(server: &Server, sql: &str, keys: usize) -> Result<Mirror, SqlError> {
        let session = server.connect().await;
        let lines = session.client.copy_out(sql).await?;
        Ok(Mirror { session, lines: Box::pin(lines), text: String::new(), keys, rows: BTreeMap::new(), lsn: 0 })
    }

    async fn line(&mut self) -> Result<Option<Line>, SqlError> {
        while !self.text.contains('\n') {
            match self.lines.next().await {
                Some(bytes) => self.text.push_str(std::str::from_utf8(&bytes?).unwrap()),
                None => return Ok(None),
            }
        }
        let rest = self.text.split_off(self.text.find('\n').unwrap() + 1);
        let line = std::mem::replace(&mut self.text, rest);
        let mut fields = line.trim_end_matches('\n').split('\t').map(str::to_owned);
        let (lsn, kind) = (fields.next().unwrap().parse().unwrap(), fields.next().unwrap());
        Ok(Some(Line { lsn, kind, values: fields.collect() }))
    }

    /// Reads until everything below `lsn` has come; what came, without progress.
    async fn until(&mut self, lsn: u64) -> Vec<Line> {
        let mut lines = Vec::new();
        while self.lsn < lsn {
            let line = self.line().await.unwrap().expect("a subscription does not end by itself");
            assert!(line.lsn > self.lsn || line.kind == "progress", "{line:?} after progress {}", self.lsn);
            match line.kind.as_str() {
                "progress" => self.lsn = line.lsn,
                "delete" => {
                    self.rows.remove(&line.values[..self.keys]);
                    lines.push(line);
                }
                "snapshot" | "update" => {
                    self.rows.insert(line.values[..self.keys].to_vec(), line.values.clone());
                    lines.push(line);
                }
                other => panic!("{other}"),
            }
        }
        lines
    }

    /// Reads up to now and compares with the view.
    async fn check(&mut self, session: &Session, view: &str, what: &str) -> Vec<Line> {
        let lines = self.until(newest(session).await).await;
        let mut expected = session.rows(&format!("SELECT * FROM {view}")).await;
        expected.iter_mut().flatten().filter(|value| *value == "NULL").for_each(|value| *value = "\\N".to_owned());
        let mut found: Vec<_> = self.rows.values().cloned().collect();
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "{what}: {view}");
        lines
    }

    /// The error that ends it.
    async fn ends_with(&mut self) -> String {
        loop {
            match self.line().await {
                Ok(Some(_)) => {}
                Ok(None) => return "the end".to_owned(),
                Err(error) => return error.state,
            }
        }
    }
}

/// One past the newest LSN.
async fn newest(session: &Session) -> u64 {
    session.value("SELECT max(snapshot_lsn) FROM verus.views").await.parse().unwrap()
}

fn insert(id: u64, minute: u64, shop: Option<&str>, n: i64) -> String {
    let shop = shop.map_or("NULL".to_owned(), |shop| format!("'{shop}'"));
    format!("INSERT INTO e VALUES ({id}, '2024-05-01 {:02}:{:02}:00+00', {shop}, {n})", 10 + minute / 60, minute % 60)
}

fn kinds(lines: &[Line]) -> Vec<(&str, Vec<&str>)> {
    let mut kinds: Vec<_> =
        lines.iter().map(|line| (line.kind.as_str(), line.values.iter().map(String::as_str).collect::<Vec<_>>())).collect();
    kinds.sort();
    kinds
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_comes_first_and_then_only_what_changes() {
    let server = Server::start().await;
    let session = server.connect().await;
    session.rows(TABLE).await;
    session.rows("CREATE MATERIALIZED VIEW v AS SELECT shop, count(*) AS n, sum(n) AS total FROM e GROUP BY shop").await;
    session.rows(&insert(1, 0, Some("a"), 5)).await;
    session.rows(&insert(2, 0, Some("b"), 7)).await;
    session.rows(&insert(3, 0, None, 1)).await;

    let mut mirror = Mirror::open(&server, "SUBSCRIBE TO v", 1).await;
    let lines = mirror.check(&session, "v", "the snapshot").await;
    assert_eq!(kinds(&lines), [("snapshot", vec!["\\N", "1", "1"]), ("snapshot", vec!["a", "1", "5"]), ("snapshot", vec!["b", "1", "7"])]);

    session.rows(&insert(4, 1, Some("a"), 10)).await;
    let lines = mirror.check(&session, "v", "one group").await;
    assert_eq!(kinds(&lines), [("update", vec!["a", "2", "15"])]);
    session.rows(&insert(5, 1, None, 2)).await;
    session.rows(&insert(6, 1, Some("c"), 3)).await;
    let lines = mirror.check(&session, "v", "a NULL key and a new one").await;
    assert_eq!(kinds(&lines), [("update", vec!["\\N", "2", "3"]), ("update", vec!["c", "1", "3"])]);

    session.rows("TRUNCATE e").await;
    let lines = mirror.check(&session, "v", "nothing is left").await;
    assert_eq!(lines.iter().filter(|line| line.kind == "delete").count(), 4, "{lines:?}");
    session.rows(&insert(7, 1, Some("a"), 1)).await;
    assert_eq!(kinds(&mirror.check(&session, "v", "afterwards").await), [("update", vec!["a", "1", "1"])]);
    assert_eq!(session.value("SELECT count(*) FROM verus.sessions WHERE state = 'active' AND query = 'SUBSCRIBE TO v'").await, "1");

    session.rows("DROP MATERIALIZED VIEW v").await;
    assert_eq!(mirror.ends_with().await, "42P01");
    assert_eq!(mirror.session.value("SELECT 1").await, "1", "the session goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn options_say_what_comes_first_and_when_it_ends() {
    let server = Server::start().await;
    let session = server.connect().await;
    session.rows(TABLE).await;
    session.rows("CREATE MATERIALIZED VIEW v AS SELECT shop, count(*) AS n FROM e GROUP BY shop").await;
    session.rows(&insert(1, 0, Some("a"), 5)).await;
    session.rows(&insert(2, 0, Some("b, c"), 5)).await;
    let before = newest(&session).await;
    session.rows(&insert(3, 1, Some("a"), 5)).await;
    let now = newest(&session).await;

    let all = session.copy_out(&format!("SUBSCRIBE TO v WITH (up_to = {now})")).await.unwrap();
    let mut lines: Vec<&str> = all.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, [format!("{now}\tprogress\t\\N\t\\N"), format!("{now}\tsnapshot\ta\t2"), format!("{now}\tsnapshot\tb, c\t1")]);
    let changed = session.copy_out(&format!("SUBSCRIBE TO v WITH (from_lsn = {before}, progress = false, up_to = {now})")).await.unwrap();
    assert_eq!(changed, format!("{now}\tupdate\ta\t2\n"));
    let csv = format!("COPY (SUBSCRIBE v WITH (since = {before}, up_to {now}) WHERE shop = 'a') TO STDOUT (FORMAT csv, HEADER)");
    assert_eq!(session.failure(&csv).await.state, "42601");
    let csv = format!("COPY (SUBSCRIBE v WITH (since = {before}, up_to = {now}) WHERE shop = 'a') TO STDOUT (FORMAT csv, HEADER)");
    assert_eq!(session.copy_out(&csv).await.unwrap(), format!("lsn,kind,shop,n\n{now},update,a,2\n{now},progress,,\n"));
    let quoted = format!("COPY (SUBSCRIBE TO v WITH (progress = off, up_to = {now}) WHERE n = 1) TO STDOUT WITH CSV");
    assert_eq!(session.copy_out(&quoted).await.unwrap(), format!("{now},snapshot,\"b, c\",1\n"));
    let nothing = session.copy_out(&format!("SUBSCRIBE TO v WITH (snapshot = false, progress = false, up_to = {now})")).await.unwrap();
    assert_eq!(nothing, "");
    let binary = session.client.copy_out(&format!("COPY (SUBSCRIBE TO v WITH (up_to = {now})) TO STDOUT (FORMAT binary)")).await.unwrap();
    let bytes: Vec<u8> = binary.map(|part| part.unwrap().to_vec()).concat().await;
    assert!(bytes.starts_with(b"PGCOPY\n\xff\r\n\0") && bytes.ends_with(&[0xff, 0xff]), "{bytes:?}");

    let mut filtered = Mirror::open(&server, "SUBSCRIBE TO v WITH (snapshot = false) WHERE n > 2 AND shop <> 'z'", 1).await;
    assert!(filtered.until(now).await.is_empty());
    session.rows(&insert(4, 1, Some("a"), 5)).await;
    session.rows(&insert(5, 1, Some("b, c"), 5)).await;
    session.rows("INSERT INTO e VALUES (6, '2024-05-01 10:02+00', 'z', 1), (7, '2024-05-01 10:02+00', 'z', 1), (8, '2024-05-01 10:02+00', 'z', 1)").await;
    assert_eq!(kinds(&filtered.until(newest(&session).await).await), [("update", vec!["a", "3"])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_of_every_shape_are_followed() {
    let server = Server::start_with(Options::busy()).await;
    let session = server.connect().await;
    session.rows(TABLE).await;
    let views = [
        ("keyless", 0, "SELECT count(*) AS n, sum(n) AS total, max(at) AS last FROM e"),
        ("between", 1, "SELECT shop, sum(n) AS total FROM e GROUP BY shop HAVING sum(n) BETWEEN 5 AND 20"),
        (
            "minutes",
            2,
            "SELECT TUMBLE(at, INTERVAL '1 minute') AS w, shop, count(*) AS n, array_agg(n ORDER BY id) AS every FROM e GROUP BY w, shop",
        ),
        ("keys", 2, "SELECT n, date_trunc('hour', at) AS hour FROM e GROUP BY 1, 2"),
    ];
    let mut mirrors = Vec::new();
    for (name, keys, query) in views {
        session.rows(&format!("CREATE MATERIALIZED VIEW {name} AS {query}")).await;
        mirrors.push((name, Mirror::open(&server, &format!("SUBSCRIBE TO {name}"), keys).await));
    }
    // Without its key a view's old rows are named by their values.
    session.rows("CREATE MATERIALIZED VIEW hidden AS SELECT count(*) AS n FROM e GROUP BY shop").await;
    let mut hidden = Mirror::open(&server, "SUBSCRIBE TO hidden", 1).await;
    for (id, shop, n) in [(1, "a", 3), (2, "a", 4), (3, "b", 30), (4, "a", 14), (5, "b", -12), (6, "a", 0), (7, "b", -18)] {
        session.rows(&insert(id, id * 25, Some(shop), n)).await;
        for (name, mirror) in &mut mirrors {
            mirror.check(&session, name, &format!("row {id}")).await;
        }
    }
    let lines = hidden.until(newest(&session).await).await;
    let balance = lines.iter().fold(BTreeMap::new(), |mut counts: BTreeMap<&str, i32>, line| {
        *counts.entry(&line.values[0]).or_default() += if line.kind == "delete" { -1 } else { 1 };
        counts
    });
    assert_eq!(balance.into_iter().filter(|(_, count)| *count != 0).collect::<Vec<_>>(), [("3", 1), ("4", 1)]);
    let failure = session.failure(&format!("SUBSCRIBE TO hidden WITH (from_lsn = {})", newest(&session).await)).await;
    assert_eq!(failure.state, "55000");
    session.rows("TRUNCATE e").await;
    for (name, mirror) in &mut mirrors {
        mirror.check(&session, name, "emptied").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn views_of_which_no_state_tells_changes_are_followed() {
    let server = Server::start_with(Options::busy()).await;
    let session = server.connect().await;
    session.rows(TABLE).await;
    session.rows("CREATE MATERIALIZED VIEW v AS SELECT shop, count(*) AS n FROM e GROUP BY shop").await;
    let views = [
        ("sessions", "SELECT shop, SESSION(at, INTERVAL '30 minutes') AS s, count(*) AS n FROM e GROUP BY shop, s"),
        ("derived", "SELECT shop, n + 1 AS more FROM v"),
        ("ladder", "SELECT * FROM FUNNEL(e, steps := [n >= 0, n > 3], by := shop, window := INTERVAL '1 day')"),
    ];
    let mut mirrors = Vec::new();
    for (name, query) in views {
        session.rows(&format!("CREATE MATERIALIZED VIEW {name} AS {query}")).await;
        // Rows are told apart by all their values.
        let columns = format!("SELECT count(*) FROM information_schema.columns WHERE table_schema = 'public' AND table_name = '{name}'");
        let columns = session.value(&columns).await.parse().unwrap();
        mirrors.push((name, Mirror::open(&server, &format!("SUBSCRIBE TO {name}"), columns).await));
    }
    let mut one = Mirror::open(&server, "SUBSCRIBE TO derived WITH (snapshot = false) WHERE shop = 'b'", 2).await;
    let events = [(1, 50, "a", 3), (2, 45, "a", 4), (3, 55, "b", 30), (4, 10, "a", 14), (5, 5, "b", 1), (6, 52, "a", 0), (7, 8, "b", 8)];
    for (id, minute, shop, n) in events {
        session.rows(&insert(id, minute, Some(shop), n)).await;
        for (name, mirror) in &mut mirrors {
            mirror.check(&session, name, &format!("row {id}")).await;
        }
    }
    // Two sessions of a shop become one.
    session.rows(&insert(8, 31, Some("b"), 1)).await;
    let lines = mirrors[0].1.check(&session, "sessions", "joined").await;
    assert_eq!(lines.iter().map(|line| line.kind.as_str()).collect::<Vec<_>>(), ["delete", "delete", "update"], "{lines:?}");
    session.rows("DELETE FROM e WHERE id IN (3, 4)").await;
    for (name, mirror) in &mut mirrors {
        mirror.check(&session, name, "after a deletion").await;
    }
    one.until(newest(&session).await).await;
    assert_eq!(one.rows.keys().cloned().collect::<Vec<_>>(), [["b", "4"]], "what the condition takes");

    let now = newest(&session).await;
    let nothing = session.copy_out(&format!("SUBSCRIBE TO derived WITH (from_lsn = {now}, up_to = {now}, progress = false)")).await;
    assert_eq!(nothing.unwrap(), "");
    assert_eq!(session.failure(&format!("SUBSCRIBE TO derived WITH (from_lsn = {})", now - 1)).await.state, "55000");
    assert_eq!(session.failure("SUBSCRIBE TO derived WHERE more IN (SELECT 1)").await.state, "0A000");

    session
        .rows("CREATE MATERIALIZED VIEW refreshed AS SELECT DISTINCT a.shop FROM e AS a JOIN e AS b ON a.id = b.id ORDER BY a.shop LIMIT 3")
        .await;
    let mut mirror = Mirror::open(&server, "SUBSCRIBE TO refreshed", 1).await;
    // A refresh has no commit of its own: the row after it makes sure that what it brought has been told.
    for (id, shop) in [(9, "0"), (10, "1"), (11, "2")] {
        session.rows(&insert(id, 100, Some(shop), 1)).await;
        session.rows("REFRESH MATERIALIZED VIEW refreshed").await;
        session.rows(&insert(id + 10, 100, Some("z"), 1)).await;
        mirror.until(newest(&session).await).await;
        assert!(mirror.rows.contains_key(&vec![shop.to_owned()]), "{:?}", mirror.rows);
        assert!(mirror.rows.len() <= 3, "{:?}", mirror.rows);
    }
    session.rows("DROP MATERIALIZED VIEW ladder").await;
    assert_eq!(mirrors[2].1.ends_with().await, "42P01");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_subscriptions_are_refused_with_a_reason() {
    let server =
        Server::start_with(Options { env: vec![("VERUS_LIMITS_WIRE_SUBSCRIBERS_MAX", "1".to_owned())], ..Options::default() }).await;
    let session = server.connect().await;
    session.rows(TABLE).await;
    session.rows(&insert(1, 0, Some("a"), 5)).await;
    session.rows("CREATE MATERIALIZED VIEW v AS SELECT shop, count(*) AS n FROM e GROUP BY shop").await;
    let created = newest(&session).await;
    for (sql, state) in [
        ("SUBSCRIBE TO nowhere", "42P01"),
        ("SUBSCRIBE TO e", "42809"),
        ("SUBSCRIBE", "42601"),
        ("SUBSCRIBE TO v WITH", "42601"),
        ("SUBSCRIBE TO v WHERE", "42601"),
        ("SUBSCRIBE TO v LIMIT 1", "42601"),
        ("SUBSCRIBE TO v WITH (fast)", "22023"),
        ("SUBSCRIBE TO v WITH (snapshot = maybe)", "22023"),
        ("SUBSCRIBE TO v WITH (from_lsn = -1)", "22023"),
        ("SUBSCRIBE TO v WITH (from_lsn = 99999999)", "22023"),
        ("SUBSCRIBE TO v WITH (from_lsn = 1)", "55000"),
        ("SUBSCRIBE TO v WITH (from_lsn = 1, since = 2)", "42601"),
        ("SUBSCRIBE TO v WITH (from_lsn = 1, snapshot = true)", "22023"),
        ("SUBSCRIBE TO v WHERE nothing = 1", "42703"),
        ("SUBSCRIBE TO v WHERE n = 'x'", "22P02"),
        ("SUBSCRIBE TO v WHERE n IN (SELECT 1)", "0A000"),
        ("SUBSCRIBE TO v WHERE random() < 0.5", "0A000"),
        ("COPY (SUBSCRIBE TO v) FROM STDIN", "42601"),
        ("COPY (SUBSCRIBE TO v) TO '/tmp/x'", "42501"),
        ("COPY (SUBSCRIBE TO v) TO STDOUT (FORMAT xml)", "22023"),
        ("EXPLAIN SUBSCRIBE TO v", "0A000"),
    ] {
        assert_eq!(session.failure(sql).await.state, state, "{sql}");
    }
    let failure = session.failure("SUBSCRIBE TO v WITH (fast)").await;
    assert!(failure.hint.contains("snapshot, from_lsn"), "{failure:?}");
    session.rows("BEGIN ISOLATION LEVEL REPEATABLE READ").await;
    assert_eq!(session.failure("SUBSCRIBE TO v").await.state, "25001");
    session.rows("ROLLBACK").await;
    session.rows(&format!("BEGIN; {}", insert(2, 0, Some("b"), 1))).await;
    assert_eq!(session.failure("SUBSCRIBE TO v").await.state, "25001");
    session.rows("ROLLBACK").await;
    // Drivers begin a transaction by themselves.
    session.rows("BEGIN").await;
    assert_eq!(session.copy_out(&format!("SUBSCRIBE TO v WITH (up_to = {created})")).await.unwrap().lines().count(), 2);
    session.rows("COMMIT").await;
    session.rows("SET statement_timeout = 200").await;
    assert_eq!(session.copy_out("SUBSCRIBE TO v").await.unwrap_err().state, "57014");
    session.rows("RESET statement_timeout").await;

    let _only = Mirror::open(&server, "SUBSCRIBE TO v", 1).await;
    assert_eq!(session.copy_out("SUBSCRIBE TO v").await.unwrap_err().state, "53400");
    // Made again under the same name it is another view.
    session.rows("DROP MATERIALIZED VIEW v").await;
    session.rows("CREATE MATERIALIZED VIEW v AS SELECT shop, sum(n) AS n FROM e GROUP BY shop").await;
    until_metric(&server, "verus_subscribers", |count| count == 0).await;
    let failure = session.failure(&format!("SUBSCRIBE TO v WITH (from_lsn = {created})")).await;
    assert_eq!(failure.state, "55000");
}

/// A connection by hand, which can be broken.
async fn raw(server: &Server, sql: &str) -> tokio::net::TcpStream {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
    let parameters = b"user\0verus\0database\0verus\0\0";
    stream.write_all(&u32::try_from(parameters.len() + 8).unwrap().to_be_bytes()).await.unwrap();
    stream.write_all(&196_608_u32.to_be_bytes()).await.unwrap();
    stream.write_all(parameters).await.unwrap();
    stream.write_all(b"Q").await.unwrap();
    stream.write_all(&u32::try_from(sql.len() + 5).unwrap().to_be_bytes()).await.unwrap();
    stream.write_all(format!("{sql}\0").as_bytes()).await.unwrap();
    stream
}

async fn metric(server: &Server, name: &str) -> u64 {
    let (_, body) = server.get("/metrics").await;
    let line = body.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("{name} is missing in\n{body}")).parse().unwrap()
}

/// Looks at a metric until it is as wanted.
pub async fn until_metric(server: &Server, name: &str, wanted: impl Fn(u64) -> bool) {
    for _ in 0..3_000 {
        if wanted(metric(server, name).await) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{name} is {}", metric(server, name).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_ends_by_cancel_hangup_and_shutdown() {
    let mut server = Server::start().await;
    let session = server.connect().await;
    session.rows(TABLE).await;
    session.rows("CREATE MATERIALIZED VIEW v AS SELECT shop, count(*) AS n FROM e GROUP BY shop").await;

    let mut mirror = Mirror::open(&server, "SUBSCRIBE TO v", 1).await;
    mirror.until(newest(&session).await).await;
    mirror.session.client.cancel_token().cancel_query(NoTls).await.unwrap();
    assert_eq!(mirror.ends_with().await, "57014");
    until_metric(&server, "verus_subscribers", |count| count == 0).await;

    let mut hanging = raw(&server, "SUBSCRIBE TO v").await;
    let mut answer = Vec::new();
    while !answer.windows(8).any(|window| window == b"progress") {
        assert!(hanging.read_buf(&mut answer).await.unwrap() > 0);
    }
    until_metric(&server, "verus_subscribers", |count| count == 1).await;
    drop(hanging);
    until_metric(&server, "verus_subscribers", |count| count == 0).await;

    let mut mirror = Mirror::open(&server, "SUBSCRIBE TO v", 1).await;
    mirror.until(newest(&session).await).await;
    assert!(server.terminate(SOON).await.success());
    assert!(!server.log().contains("did not end by themselves"), "a subscription does not hold up the end: {}", server.log());
    assert_eq!(mirror.ends_with().await, "57P01");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_skips_snapshots_and_delays_nobody() {
    let server = Server::start().await;
    let session = server.connect().await;
    session.rows(TABLE).await;
    session.rows("CREATE MATERIALIZED VIEW v AS SELECT id, repeat('x', 1000) AS text, count(*) AS n FROM e GROUP BY id").await;
    let mut slow = raw(&server, "SUBSCRIBE TO v").await;
    let mut answer = Vec::new();
    while !answer.windows(8).any(|window| window == b"progress") {
        assert!(slow.read_buf(&mut answer).await.unwrap() > 0);
    }
    // Far more than the sockets take: the subscriber stands still with its first comparison, commits go on.
    for round in 0..40 {
        let rows = (0..2_000).map(|id| format!("({id}, '2024-05-01 10:{round:02}:00+00', 'a', 1)")).collect::<Vec<_>>().join(", ");
        session.rows(&format!("INSERT INTO e VALUES {rows}")).await;
    }
    let lsn = newest(&session).await;
    let mut tail = Vec::new();
    let wanted = format!("{lsn}\tprogress");
    let mut read = 0;
    while !tail.windows(wanted.len()).any(|window| window == wanted.as_bytes()) {
        let keep = tail.len().saturating_sub(wanted.len());
        tail.drain(..keep);
        read += slow.read_buf(&mut tail).await.unwrap();
    }
    assert!(read < 40 * 2_000 * 1_000, "{read} bytes: intermediate values were skipped");
    assert!(metric(&server, "verus_snapshots_skipped_total").await > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mirror_equals_the_view_through_restarts() {
    let cases = std::env::var("VERUS_PROPERTY_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let first = std::env::var("VERUS_PROPERTY_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    for seed in first..first + cases {
        println!("seed {seed}");
        case(seed).await;
    }
}

async fn case(seed: u64) {
    const VIEWS: [(&str, usize, &str); 4] = [
        ("total", 0, "SELECT count(*) AS n, sum(n) AS total FROM e"),
        ("shops", 1, "SELECT shop, count(*) AS n, count(DISTINCT n) AS distinct_n FROM e GROUP BY shop HAVING sum(n) % 3 <> 0"),
        (
            "minutes",
            2,
            "SELECT shop, TUMBLE(at, INTERVAL '1 minute') AS w, count(*) AS n, sum(n) AS total, min(id) AS least FROM e GROUP BY shop, w",
        ),
        ("rows", 1, "SELECT id, max(n) AS n FROM e WHERE n > 2 GROUP BY id"),
    ];
    let mut random = StdRng::seed_from_u64(seed);
    let mut server = Server::start_with(Options::busy()).await;
    let mut session = server.connect().await;
    session.rows(TABLE).await;
    let mut mirrors = Vec::new();
    for (name, keys, query) in VIEWS {
        session.rows(&format!("CREATE MATERIALIZED VIEW {name} AS {query}")).await;
        mirrors.push(Mirror::open(&server, &format!("SUBSCRIBE TO {name}"), keys).await);
    }
    let mut minute = 0;
    for step in 0..60 {
        let what = format!("seed {seed}, step {step}");
        match random.random_range(0..20) {
            // The connections break, and each mirror goes on from its last progress.
            0 | 1 => {
                if random.random_bool(0.5) {
                    server.kill();
                } else {
                    assert!(server.terminate(SOON).await.success(), "{what}");
                }
                server.restart().await;
                session = server.connect().await;
                if random.random_bool(0.3) {
                    session.rows(&insert(random.random_range(0..500), minute, Some("s1"), 1)).await;
                }
                for (mirror, (name, keys, _)) in mirrors.iter_mut().zip(VIEWS) {
                    let since = if mirror.lsn > 0 { format!(" WITH (from_lsn = {})", mirror.lsn) } else { String::new() };
                    match Mirror::try_open(&server, &format!("SUBSCRIBE TO {name}{since}"), keys).await {
                        Ok(resumed) => {
                            let old = std::mem::replace(mirror, resumed);
                            if old.lsn > 0 {
                                (mirror.rows, mirror.lsn) = (old.rows, old.lsn);
                            }
                        }
                        // A deletion has removed groups since, or the table was emptied.
                        Err(error) => {
                            assert_eq!(error.state, "55000", "{what}: {error}");
                            *mirror = Mirror::open(&server, &format!("SUBSCRIBE TO {name}"), keys).await;
                        }
                    }
                }
            }
            3 => {
                // Rows of some groups, or all of them.
                let condition = match random.random_range(0..3) {
                    0 => format!("n = {}", random.random_range(0..9)),
                    1 => format!("shop = 's{}'", random.random_range(0..5)),
                    _ => format!("id < {}", random.random_range(0..500)),
                };
                session.rows(&format!("DELETE FROM e WHERE {condition}")).await;
                for (mirror, (name, _, _)) in mirrors.iter_mut().zip(VIEWS) {
                    mirror.check(&session, name, &what).await;
                }
            }
            2 if random.random_bool(0.3) => {
                session.rows("TRUNCATE e").await;
                for (mirror, (name, _, _)) in mirrors.iter_mut().zip(VIEWS) {
                    mirror.check(&session, name, &what).await;
                }
            }
            _ => {
                let rows: Vec<String> = (0..random.random_range(1..80))
                    .map(|_| {
                        minute += u64::from(random.random_bool(0.05));
                        let shop = random.random_range(0..6);
                        let shop = if shop == 5 { "NULL".to_owned() } else { format!("'s{shop}'") };
                        let (id, n) = (random.random_range(0..500), random.random_range(0..9));
                        format!("({id}, '2024-05-01 {:02}:{:02}:00+00', {shop}, {n})", 10 + minute / 60, minute % 60)
                    })
                    .collect();
                session.rows(&format!("INSERT INTO e VALUES {}", rows.join(", "))).await;
            }
        }
        if random.random_bool(0.4) {
            for (mirror, (name, _, _)) in mirrors.iter_mut().zip(VIEWS) {
                mirror.check(&session, name, &what).await;
            }
        }
    }
    for (mirror, (name, _, _)) in mirrors.iter_mut().zip(VIEWS) {
        mirror.check(&session, name, &format!("seed {seed}, the end")).await;
    }
}
