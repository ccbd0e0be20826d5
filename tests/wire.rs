//! The protocol as drivers use it, and the life of the process: what `.slt` files cannot say.

use std::time::{Duration, Instant};

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, Utc};
use tokio_postgres::NoTls;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::harness::raw::{Raw, bind, describe, execute, flush, message, parse};
use crate::harness::{Options, SOON, Server, Session, free_port, verus};

const CREATE: &str =
    "CREATE TABLE e (id integer, at timestamptz NOT NULL, note text, amount numeric(10,2), WATERMARK FOR at AS at - INTERVAL '1 hour')";

#[tokio::test(flavor = "multi_thread")]
async fn binary_values_arrive_as_sent() {
    let server = Server::start().await;
    let client = server.connect().await.client;
    let uuid = Uuid::from_u128(0xa0ee_bc99_9c0b_4ef8_bb6d_6bb9_bd38_0a11);
    let date = NaiveDate::from_ymd_opt(2024, 2, 29).unwrap();
    let time = NaiveTime::from_hms_micro_opt(23, 59, 59, 999_999).unwrap();
    let moment: DateTime<Utc> = "2024-05-01T10:34:56.789012Z".parse().unwrap();
    let local: NaiveDateTime = moment.naive_utc();
    let row = client
        .query_one(
            "SELECT $1::boolean, $2::smallint, $3::integer, $4::bigint, $5::real, $6::double precision, $7::text, $8::uuid, $9::date, $10::time, \
             $11::timestamp, $12::timestamptz, $13::bytea, $14::varchar(5)",
            &[
                &true,
                &-32_768_i16,
                &i32::MIN,
                &i64::MAX,
                &1.5_f32,
                &-0.1_f64,
                &"grüße ☃",
                &uuid,
                &date,
                &time,
                &local,
                &moment,
                &vec![0xde_u8, 0xad],
                &"abcde",
            ],
        )
        .await
        .unwrap();
    assert!(row.get::<_, bool>(0));
    assert_eq!((row.get::<_, i16>(1), row.get::<_, i32>(2), row.get::<_, i64>(3)), (-32_768, i32::MIN, i64::MAX));
    assert_eq!((row.get::<_, f32>(4), row.get::<_, f64>(5)), (1.5, -0.1));
    assert_eq!((row.get::<_, &str>(6), row.get::<_, Uuid>(7), row.get::<_, NaiveDate>(8)), ("grüße ☃", uuid, date));
    assert_eq!((row.get::<_, NaiveTime>(9), row.get::<_, NaiveDateTime>(10), row.get::<_, DateTime<Utc>>(11)), (time, local, moment));
    assert_eq!((row.get::<_, Vec<u8>>(12), row.get::<_, &str>(13)), (vec![0xde, 0xad], "abcde"));

    let row = client.query_one("SELECT NULL::integer, NULL::text, $1::integer IS NULL", &[&None::<i32>]).await.unwrap();
    assert_eq!((row.get::<_, Option<i32>>(0), row.get::<_, Option<&str>>(1), row.get::<_, bool>(2)), (None, None, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_are_described_and_reused() {
    let server = Server::start().await;
    let session = server.connect().await;
    session.rows(CREATE).await;
    let client = &session.client;
    let put = client.prepare("INSERT INTO e (id, at, note, amount) VALUES ($1, $2, $3, $4::text::numeric)").await.unwrap();
    assert_eq!(put.params(), [Type::INT4, Type::TIMESTAMPTZ, Type::TEXT, Type::TEXT]);
    assert!(put.columns().is_empty());
    let at: DateTime<Utc> = "2024-05-01T10:00:00Z".parse().unwrap();
    for id in 0..10_i32 {
        assert_eq!(client.execute(&put, &[&id, &at, &format!("note {id}"), &"12.50"]).await.unwrap(), 1);
    }
    let find = client.prepare("SELECT id, note, at, amount FROM e WHERE id >= $1 AND note LIKE $2 ORDER BY id LIMIT $3").await.unwrap();
    let types: Vec<_> = find.columns().iter().map(|column| (column.name().to_owned(), column.type_().clone())).collect();
    assert_eq!(
        types,
        [
            ("id".to_owned(), Type::INT4),
            ("note".to_owned(), Type::TEXT),
            ("at".to_owned(), Type::TIMESTAMPTZ),
            ("amount".to_owned(), Type::NUMERIC)
        ]
    );
    let rows = client.query(&find, &[&3_i32, &"note%", &2_i64]).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.get::<_, i32>(0)).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(rows[0].get::<_, DateTime<Utc>>(2), at);

    // A column added behind its back does not break it.
    session.rows("ALTER TABLE e ADD COLUMN more text").await;
    assert_eq!(client.query(&find, &[&9_i32, &"%", &5_i64]).await.unwrap().len(), 1);

    // Errors at each step carry their SQLSTATE, and the connection goes on.
    let state = |error: tokio_postgres::Error| error.code().map(|code| code.code().to_owned()).unwrap_or_default();
    assert_eq!(state(client.prepare("SELECT nowhere FROM e").await.unwrap_err()), "42703");
    assert_eq!(state(client.prepare("SELEC 1").await.unwrap_err()), "42601");
    assert_eq!(state(client.query("SELECT 1 / $1::integer", &[&0_i32]).await.unwrap_err()), "22012");
    assert_eq!(client.query_one("SELECT 1", &[]).await.unwrap().get::<_, i32>(0), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_portal_gives_its_rows_in_parts() {
    let server = Server::start().await;
    let mut session = server.connect().await;
    let transaction = session.client.transaction().await.unwrap();
    let statement = transaction.prepare("SELECT x FROM generate_series(1, 10) AS s(x) ORDER BY x").await.unwrap();
    let portal = transaction.bind(&statement, &[]).await.unwrap();
    let mut counts = Vec::new();
    for _ in 0..4 {
        counts.push(transaction.query_portal(&portal, 4).await.unwrap().len());
    }
    assert_eq!(counts, [4, 4, 2, 0]);
    transaction.commit().await.unwrap();
}

/// A driver may ask with Flush and read the answer before it sends its Sync: an error does not wait for that.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_is_sent_before_its_sync() {
    let server = Server::start().await;
    let cases: [(&str, Vec<Vec<u8>>, &str); 8] = [
        ("a statement that is wrong", vec![parse("s", "SELECT nope"), describe(b'S', "s"), flush()], "E42703"),
        ("text that is no statement", vec![parse("", "SELEC"), flush()], "E42601"),
        ("no Flush either", vec![parse("", "SELECT nope")], "E42703"),
        ("Describe of no statement", vec![describe(b'S', "s"), flush()], "E26000"),
        ("Describe of no portal", vec![describe(b'P', "p"), flush()], "E34000"),
        ("Bind of no statement", vec![bind("s"), execute(), flush()], "E26000"),
        ("an Execute that fails", vec![parse("", "SELECT 1/0"), bind(""), execute(), flush()], "1 2 E22012"),
        ("all is well", vec![parse("", "SELECT 1"), bind(""), describe(b'P', ""), execute(), flush()], "1 2 T D C"),
    ];
    for (what, messages, expected) in cases {
        let mut raw = Raw::open(server.port).await;
        raw.send(&messages.concat()).await;
        assert_eq!(raw.answers(expected.split(' ').count()).await, expected, "{what}");
        // What follows an error is skipped until Sync.
        raw.send(&[parse("", "SELECT 2"), describe(b'S', ""), message(b'S', b"")].concat()).await;
        let after = if expected.contains('E') { "Z" } else { "1 t T Z" };
        assert_eq!(raw.answers(after.split(' ').count()).await, after, "{what}");
        raw.send(&[parse("", "SELECT 2"), bind(""), execute(), message(b'S', b"")].concat()).await;
        assert_eq!(raw.answers(5).await, "1 2 D C Z", "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_carry_position_detail_and_hint() {
    let server = Server::start().await;
    let session = server.connect().await;
    session.rows(CREATE).await;
    let error = session.client.simple_query("SELECT 1;  SELEC 2").await.unwrap_err();
    let report = error.as_db_error().unwrap();
    assert_eq!(report.position(), Some(&tokio_postgres::error::ErrorPosition::Original(12)), "{report:?}");
    let error = session.failure("INSERT INTO e (id) VALUES (1)").await;
    assert_eq!(error.state, "23502");
    assert!(error.detail.starts_with("Failing row contains"), "{error:?}");
    let error = session.failure("CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n FROM e WHERE id = 1, GROUP BY id").await;
    assert!(!error.hint.is_empty(), "the listing's stray comma is answered with a hint: {error:?}");
    let error =
        session.failure("CREATE TABLE x (at timestamptz, WATERMARK FOR at AS at - INTERVAL '1 hour') WITH (retentoin = '1 day')").await;
    assert!(error.hint.contains("retention") || error.detail.contains("retention"), "the known options are listed: {error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn very_late_rows_are_told_in_a_notice() {
    let server = Server::start().await;
    let mut session = server.connect().await;
    session.rows(CREATE).await;
    session.rows("INSERT INTO e (id, at) VALUES (1, '2024-05-01 12:00:00+00')").await;
    assert!(session.notices().await.is_empty());
    session.rows("INSERT INTO e (id, at) VALUES (2, '2024-05-01 10:00:00+00'), (3, '2024-05-01 12:00:00+00')").await;
    let notices = session.notices().await;
    assert!(notices.len() == 1 && notices[0].message == "1 row behind the watermark was diverted to e$late", "{notices:?}");
    // The same for a block, which is told of each of its tables.
    session.rows(&CREATE.replace("TABLE e", "TABLE other")).await;
    session.rows("INSERT INTO other (id, at) VALUES (1, '2024-05-01 12:00:00+00')").await;
    session.rows("BEGIN; INSERT INTO e (id, at) VALUES (4, '2024-05-01 10:00:00+00'); INSERT INTO e (id, at) VALUES (5, '2024-05-01 10:00:00+00')").await;
    session.rows("INSERT INTO other (id, at) VALUES (2, '2024-05-01 10:00:00+00')").await;
    assert!(session.notices().await.is_empty());
    session.rows("COMMIT").await;
    let messages: Vec<String> = session.notices().await.into_iter().map(|notice| notice.message).collect();
    assert_eq!(messages, ["2 rows behind the watermark were diverted to e$late", "1 row behind the watermark was diverted to other$late"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_in_and_out() {
    let server = Server::start().await;
    let session = server.connect().await;
    session.rows("CREATE TABLE e (id integer, at timestamptz NOT NULL, note text, amount numeric(10,2), day date GENERATED ALWAYS AS (at::date) STORED, WATERMARK FOR at AS at - INTERVAL '1 hour')").await;
    let text = "1\t2024-05-01 10:00:00+00\ttab\\there\t1.50\n2\t2024-05-01 10:00:01+00\t\\N\t\\N\n\\.\n";
    assert_eq!(session.copy("COPY e (id, at, note, amount) FROM STDIN", text).await, Ok(2));
    let csv = "at,id,note\r\n2024-05-01 10:00:02+00,3,\"a \"\"quoted\"\", text\r\nof two lines\"\r\n2024-05-01 10:00:03+00,4,\r\n2024-05-01 10:00:04+00,5,\"\"\r\n";
    assert_eq!(session.copy("COPY e (at, id, note) FROM STDIN WITH (FORMAT csv, HEADER)", csv).await, Ok(3));
    let semicolons = "6;2024-05-01 10:00:05+00;nil;'it''s'\n";
    let options = "WITH (FORMAT csv, DELIMITER ';', NULL 'nil', QUOTE '''')";
    assert_eq!(session.copy(&format!("COPY e (id, at, amount, note) FROM STDIN {options}"), semicolons).await, Ok(1));
    assert_eq!(
        session.rows("SELECT id, note, amount, day FROM e ORDER BY id").await,
        [
            ["1", "tab\there", "1.50", "2024-05-01"],
            ["2", "NULL", "NULL", "2024-05-01"],
            ["3", "a \"quoted\", text\r\nof two lines", "NULL", "2024-05-01"],
            ["4", "NULL", "NULL", "2024-05-01"],
            ["5", "", "NULL", "2024-05-01"],
            ["6", "it's", "NULL", "2024-05-01"],
        ]
    );
    let out = session.copy_out("COPY (SELECT id, note, amount FROM e WHERE id < 3 ORDER BY id) TO STDOUT").await;
    assert_eq!(out.unwrap(), "1\ttab\\there\t1.50\n2\t\\N\t\\N\n");
    let out = session.copy_out("COPY (SELECT id, note FROM e WHERE id IN (2, 5, 6) ORDER BY id) TO STDOUT WITH (FORMAT csv, HEADER)").await;
    assert_eq!(out.unwrap(), "id,note\n2,\n5,\"\"\n6,it's\n");
    assert_eq!(session.copy_out("COPY e TO STDOUT").await.unwrap().lines().count(), 6, "a line break inside a text is written \\\\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_copy_leaves_nothing() {
    let server = Server::start().await;
    let session = server.connect().await;
    session.rows(CREATE).await;
    let good: String = (0..5_000).map(|id| format!("{id},2024-05-01 10:00:00+00,x,1\n")).collect();
    for (bad, state) in [
        ("x,2024-05-01 10:00:00+00,x,1\n", "22P02"),
        ("1,,x,1\n", "23502"),
        ("1,2024-05-01 10:00:00+00\n", "22P04"),
        ("1,2024-05-01 10:00:00+00,x,1,2\n", "22P04"),
        ("1,2024-05-01 10:00:00+00,\"unterminated,1\n", "22P04"),
        ("1,2024-05-01 10:00:00+00,x,123456789012\n", "22003"),
    ] {
        let error = session.copy("COPY e FROM STDIN WITH (FORMAT csv)", &format!("{good}{bad}")).await.unwrap_err();
        assert_eq!(error.state, state, "{bad}: {error}");
        assert_eq!(session.value("SELECT count(*) FROM e").await, "0", "after {bad}");
    }
    // Given up half way by the client.
    let sink = session.client.copy_in::<_, bytes::Bytes>("COPY e FROM STDIN WITH (FORMAT csv)").await.unwrap();
    drop(sink);
    assert_eq!(session.value("SELECT count(*) FROM e").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_and_timeout_stop_a_running_plan() {
    const LONG: &str =
        "SELECT count(*) FROM generate_series(1, 100000000) AS a(x), generate_series(1, 100000000) AS b(y) WHERE (x * 7 + y) % 11 = 3";
    let server = Server::start().await;
    let session = server.connect().await;
    session.rows("SET statement_timeout = '300ms'").await;
    assert_eq!(session.failure(LONG).await.state, "57014");
    session.rows("RESET statement_timeout").await;

    let token = session.client.cancel_token();
    let other = server.connect().await;
    let canceller = tokio::spawn(async move {
        other.until("SELECT count(*) = 1 FROM verus.sessions WHERE state = 'active' AND query LIKE 'SELECT count(*) FROM generate%'").await;
        token.cancel_query(NoTls).await.unwrap();
    });
    assert_eq!(session.failure(LONG).await.state, "57014");
    canceller.await.unwrap();
    assert_eq!(session.value("SELECT 1").await, "1");
    no_plan_runs(&server).await;
}

/// Waits until no operator of any plan exists any more. The server answers a cancelled statement at once, so this is what tells
/// whether the plan has stopped too.
async fn no_plan_runs(server: &Server) {
    let begin = Instant::now();
    loop {
        let (_, metrics) = server.get("/metrics").await;
        if metrics.lines().any(|line| line == "verus_plan_streams 0") {
            return;
        }
        assert!(begin.elapsed() < SOON, "a plan runs on:\n{metrics}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Plans that would run for hours and hardly ever wait for anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_plan_ends() {
    const BIG: &str = "(SELECT x FROM generate_series(1, 2000000) AS s(x))";
    let server = Server::start().await;
    let session = server.connect().await;
    session.rows("SET statement_timeout = '200ms'").await;
    for query in [
        format!("SELECT count(*) FROM {BIG} a, {BIG} b"),
        format!("SELECT count(*) FROM {BIG} a JOIN {BIG} b ON a.x + b.x < 0"),
        format!("SELECT count(*) FROM {BIG} a LEFT JOIN {BIG} b ON a.x + b.x < 0"),
        format!("SELECT count(*) FROM {BIG} a WHERE EXISTS (SELECT 1 FROM {BIG} b WHERE a.x + b.x < 0)"),
        format!(
            "SELECT count(*) FROM (SELECT x / 2000000 AS k, x FROM {BIG} q) a JOIN (SELECT x / 2000000 AS k, x FROM {BIG} q) b USING (k) WHERE a.x + b.x < 0"
        ),
        format!("SELECT sum(a.x) OVER (ORDER BY b.x) FROM {BIG} a, {BIG} b"),
        format!("SELECT a.x FROM {BIG} a, {BIG} b ORDER BY a.x * b.x LIMIT 1"),
        format!("EXPLAIN ANALYZE SELECT count(*) FROM {BIG} a JOIN {BIG} b ON a.x + b.x < 0"),
    ] {
        assert_eq!(session.failure(&query).await.state, "57014", "{query}");
        no_plan_runs(&server).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_analyze_tells_what_was_pruned() {
    let limits = ["VERUS_LIMITS_STORE_FLUSH_ROWS", "VERUS_LIMITS_COLUMNAR_PAGE_ROWS", "VERUS_LIMITS_COLUMNAR_DATE_ROWS_MIN"];
    let env = limits.into_iter().zip(["2000".to_owned(), "100".to_owned(), "10".to_owned()]).collect();
    let server = Server::start_with(Options { template: false, env }).await;
    let session = server.connect().await;
    let table =
        "CREATE TABLE e (store text, at timestamptz NOT NULL, WATERMARK FOR at AS at - INTERVAL '3 days') WITH (partition_by = 'store')";
    session.rows(table).await;
    // Two days, each a file of a thousand rows, ten pages of them; ten stores.
    session
        .rows("INSERT INTO e SELECT 's' || i % 10, timestamptz '2024-05-01 00:00+00' + i * INTERVAL '1 minute' FROM generate_series(0, 2879) AS g(i)")
        .await;
    let flushed = "SELECT coalesce(sum(rows), 0) = 2880 AND count(*) = 2 FROM verus.files WHERE table_name = 'e'";
    session.until(flushed).await;
    let plan = session.rows("EXPLAIN ANALYZE SELECT count(at) FROM e WHERE store = 's3' AND at >= '2024-05-02 00:00+00'").await;
    let plan: Vec<String> = plan.into_iter().flatten().collect();
    let read = plan.iter().find(|line| line.starts_with("Rows read: ")).unwrap();
    let told = |what: &str| {
        let (_, after) = read.split_once(what).unwrap_or_else(|| panic!("{what:?} is missing in {read}"));
        after.trim().split(',').next().unwrap().parse::<u64>().unwrap()
    };
    assert!(read.starts_with("Rows read: 0 hot, 144 from Parquet, 0 from view state"), "{read}");
    assert_eq!(told("files pruned"), 1, "{read}");
    // Of some fifteen pages of the other file, the store's rows are in two or three.
    assert!(told("page index pages pruned") >= 10, "{read}");
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_means_visible_everywhere() {
    let server = Server::start().await;
    let (writer, reader) = (server.connect().await, server.connect().await);
    writer.rows(CREATE).await;
    writer.rows("CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n FROM e").await;
    for id in 1..=200 {
        writer.rows(&format!("INSERT INTO e (id, at) VALUES ({id}, '2024-05-01 10:00:00+00')")).await;
        assert_eq!(reader.rows("SELECT (SELECT count(*) FROM e), (SELECT n FROM v)").await, [[id.to_string(), id.to_string()]]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_statements_on_many_connections() {
    let server = Server::start().await;
    let session = server.connect().await;
    session.rows(CREATE).await;
    session.rows("CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n, sum(amount) AS amount FROM e").await;
    let writers: Vec<_> = (0..16)
        .map(|writer| {
            let port = server.port;
            tokio::spawn(async move {
                let session = Session::open(port).await.unwrap();
                for id in 0..25 {
                    session.rows(&format!("INSERT INTO e VALUES ({}, '2024-05-01 10:00:00+00', 'x', 0.25)", writer * 1000 + id)).await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(session.rows("SELECT * FROM v").await, [["400", "100.00"]]);
    assert_eq!(session.value("SELECT count(DISTINCT id) FROM e").await, "400");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_is_there_after_every_kind_of_end() {
    let mut server = Server::start().await;
    let session = server.connect().await;
    session.rows(CREATE).await;
    session
        .rows("CREATE MATERIALIZED VIEW v AS SELECT TUMBLE(at, INTERVAL '1' MINUTE) AS minute, count(*) AS n FROM e GROUP BY minute")
        .await;
    session.rows("INSERT INTO e VALUES (1, '2024-05-01 10:00:00+00', 'one', 1.5)").await;
    server.kill();
    server.restart().await;
    let session = server.connect().await;
    session.rows("INSERT INTO e VALUES (2, '2024-05-01 10:01:00+00', 'two', 2.5)").await;
    assert_eq!(server.terminate(SOON).await.code(), Some(0), "{}", server.log());
    server.restart().await;
    let session = server.connect().await;
    assert_eq!(session.rows("SELECT id, note FROM e ORDER BY id").await, [["1", "one"], ["2", "two"]]);
    assert_eq!(session.rows("SELECT n FROM v ORDER BY minute").await, [["1"], ["1"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_finishes_what_is_under_way() {
    let mut server = Server::start().await;
    server.connect().await.rows(CREATE).await;
    let port = server.port;
    let writer = tokio::spawn(async move {
        let session = Session::open(port).await.unwrap();
        let mut acknowledged = 0;
        while session.query(&format!("INSERT INTO e (id, at) VALUES ({acknowledged}, '2024-05-01 10:00:00+00')")).await.is_ok() {
            acknowledged += 1;
        }
        acknowledged
    });
    server.connect().await.until("SELECT count(*) > 0 FROM e").await;
    assert_eq!(server.terminate(SOON).await.code(), Some(0), "{}", server.log());
    let acknowledged: u64 = writer.await.unwrap();
    server.restart().await;
    let there: u64 = server.connect().await.value("SELECT count(*) FROM e").await.parse().unwrap();
    assert!(acknowledged > 0 && (there == acknowledged || there == acknowledged + 1), "{acknowledged} acknowledged, {there} there");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_directory_has_one_server() {
    let server = Server::start().await;
    let (status, said) = server.rival();
    assert!(!status.success());
    assert!(said.contains(&server.pid().to_string()), "it says who holds the directory: {said}");
    assert_eq!(server.connect().await.value("SELECT 1").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_are_asked_for_and_never_told() {
    let options = Options { env: vec![("VERUS_PASSWORD", "correct horse".to_owned())], ..Options::default() };
    let dir = tempfile::tempdir().unwrap();
    let (port, http) = (free_port(), free_port());
    let mut child = verus(&["serve", "--no-template", "--listen", &format!("127.0.0.1:{port}"), "--http", &format!("127.0.0.1:{http}")])
        .args(["--log", "debug", "--data-dir"])
        .arg(dir.path().join("data"))
        .envs(options.env)
        .stderr(std::fs::File::create(dir.path().join("log")).unwrap())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    let open = |user: &'static str, password: &'static str| async move {
        Session::open_with(&format!("host=127.0.0.1 port={port} user={user} dbname=verus password='{password}'")).await
    };
    while begin.elapsed() < Duration::from_secs(30) && tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(open("verus", "correct horse").await.expect("the right password").value("SELECT 1").await, "1");
    let wrong = open("verus", "wrong").await.err().expect("a wrong password");
    let stranger = open("mallory", "correct horse").await.err().expect("a missing user");
    assert_eq!((wrong.state.as_str(), stranger.state.as_str()), ("28P01", "28P01"), "a missing user looks like a wrong password");
    let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
    assert!(!log.contains("correct horse"), "{log}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn settings_that_mean_nothing_or_open_the_door_are_refused() {
    for (arguments, said) in [
        (vec!["serve", "--listen", "0.0.0.0:5432"], "without a password"),
        (vec!["serve", "--http", "0.0.0.0:8080"], "without a password"),
        (vec!["serve", "--data-dirr", "x"], "--data-dir"),
        (vec!["serve", "--memory", "lots"], "memory"),
        (vec!["serve", "--config", "/no/such/file.toml"], "/no/such/file.toml"),
    ] {
        let output = verus(&arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(said), "{arguments:?}: {text}");
    }
    let output = verus(&["serve"]).env("VERUS_DATADIR", "x").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("VERUS_DATA_DIR"));
    for arguments in [vec!["serve", "--help"], vec!["bench", "--help"], vec!["demo", "--help"], vec!["version"]] {
        assert!(verus(&arguments).output().unwrap().status.success(), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_metrics_tell_what_happened() {
    let server = Server::start().await;
    let session = server.connect().await;
    session.rows(CREATE).await;
    session.rows("INSERT INTO e (id, at) VALUES (1, '2024-05-01 10:00:00+00'), (2, '2024-05-01 10:00:00+00')").await;
    session.failure("SELECT nowhere").await;
    let (status, body) = server.get("/health").await;
    assert!(status.contains("200") && body.contains("\"status\":\"ready\""), "{status} {body}");
    let (status, body) = server.get("/metrics").await;
    assert!(status.contains("200"), "{status}");
    for line in ["verus_rows_accepted_total 2", "verus_errors_total{class=\"42\"} 1", "verus_commit_seconds_count"] {
        assert!(body.contains(line), "{line} is missing in\n{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_server_has_the_commerce_schema_and_the_listings_run() {
    let server = Server::start_with(Options { template: true, ..Options::default() }).await;
    let session = server.connect().await;
    let listings = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("sql/listings");
    let mut files: Vec<_> = std::fs::read_dir(listings).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        session.rows(&std::fs::read_to_string(file).unwrap()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_is_refused_and_a_torn_tail_is_cut() {
    let mut server = Server::start().await;
    let session = server.connect().await;
    session.rows(CREATE).await;
    for id in 0..50 {
        session.rows(&format!("INSERT INTO e (id, at) VALUES ({id}, '2024-05-01 10:00:00+00')")).await;
    }
    server.kill();
    let segment = newest_segment(&server.data_dir()).expect("a log segment");
    let length = std::fs::metadata(&segment).unwrap().len();
    // A write that was under way when the power went: bytes that are no record.
    let mut torn = std::fs::read(&segment).unwrap();
    torn.extend_from_slice(&[0x5a; 37]);
    std::fs::write(&segment, &torn).unwrap();
    server.restart().await;
    assert_eq!(server.connect().await.value("SELECT count(*) FROM e").await, "50");
    server.kill();
    // A flipped bit in the middle of what was acknowledged.
    let mut damaged = std::fs::read(&segment).unwrap();
    let middle = usize::try_from(length / 2).unwrap();
    damaged[middle] ^= 0x10;
    std::fs::write(&segment, &damaged).unwrap();
    let (status, said) = server.rival();
    assert!(!status.success() && !said.contains("panicked"), "damage is refused with a clear message: {said}");
}

fn newest_segment(data_dir: &std::path::Path) -> Option<std::path::PathBuf> {
    let directory =
        std::fs::read_dir(data_dir).ok()?.filter_map(Result::ok).map(|entry| entry.path()).find(|path| path.ends_with("wal"))?;
    let mut segments: Vec<_> =
        std::fs::read_dir(directory).ok()?.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    segments.sort();
    segments.into_iter().rev().find(|path| path.metadata().is_ok_and(|data| data.len() > 0))
}

#[tokio::test]
async fn copy_takes_defaults() {
    let server = Server::start().await;
    let session = server.connect().await;
    session.rows("CREATE TABLE t (id integer, name text DEFAULT 'none', n integer DEFAULT 7, bare text)").await;
    let text = "1\t\\D\t\\D\tx\n2\t\\N\t5\t\\N\n3\t\\\\D\t\\D\tz\n";
    assert_eq!(session.copy("COPY t FROM STDIN (DEFAULT '\\D')", text).await, Ok(3));
    assert_eq!(session.copy("COPY t (name, id) FROM STDIN (FORMAT csv, DEFAULT 'dft')", "dft,4\n\"dft\",5\n").await, Ok(2));
    let rows = session.rows("SELECT * FROM t ORDER BY id").await;
    let expected = [
        ["1", "none", "7", "x"],
        ["2", "NULL", "5", "NULL"],
        ["3", "\\D", "7", "z"],
        ["4", "none", "7", "NULL"],
        ["5", "dft", "7", "NULL"],
    ];
    assert_eq!(rows, expected);
    let error = session.copy("COPY t FROM STDIN (FORMAT csv, DEFAULT 'd')", "1,d,1,x\n1,x,1,d\n").await.unwrap_err();
    assert_eq!((error.state.as_str(), error.message.as_str()), ("22P04", "unexpected default marker in COPY data"));
    assert_eq!(error.detail, "Column \"bare\" has no default value.");
    for (options, state) in [
        ("FROM STDIN (FORMAT binary, DEFAULT 'x')", "42601"),
        ("TO STDOUT (DEFAULT 'x')", "0A000"),
        ("FROM STDIN (DEFAULT '\\N')", "22023"),
        ("FROM STDIN (FORMAT csv, DEFAULT 'a,b')", "22023"),
        ("FROM STDIN (FORMAT csv, DEFAULT 'a\"b')", "22023"),
    ] {
        assert_eq!(session.failure(&format!("COPY t {options}")).await.state, state, "{options}");
    }
}

/// Conditions are evaluated while files are read too: their errors are those of a query in memory.
#[tokio::test(flavor = "multi_thread")]
async fn errors_of_conditions_over_files_keep_their_states() {
    let mut server = Server::start().await;
    let session = server.connect().await;
    session.rows("CREATE TABLE f (n integer, t text, at timestamptz NOT NULL, WATERMARK FOR at AS at - INTERVAL '1 hour')").await;
    session.rows("INSERT INTO f VALUES (1, 'one', '2024-05-01 10:00+00'), (2, '2', '2024-05-01 10:01+00')").await;
    server.restart_from_files("f").await;
    let session = server.connect().await;
    let conditions = [
        ("1 / (n - 1) > 0", "22012"),
        ("t::integer > 1", "22P02"),
        ("n * 2000000000 > 5", "22003"),
        ("at > 'garbage'", "22007"),
        ("t ~ '('", "2201B"),
        ("sqrt(1 - n) > 0", "2201F"),
        ("at AT TIME ZONE t > '2024-01-01'", "22023"),
    ];
    for (condition, state) in conditions {
        let error = session.query(&format!("SELECT count(*) FROM f WHERE {condition}")).await.expect_err(condition);
        assert_eq!((error.state.as_str(), condition), (state, condition), "{error}");
        assert!(!error.to_string().contains("Report"), "{error}");
    }
}

#[tokio::test]
async fn a_copy_shows_its_progress() {
    let server = Server::start().await;
    let (session, watcher) = (server.connect().await, server.connect().await);
    session.rows("CREATE TABLE t (id integer, at timestamptz NOT NULL, WATERMARK FOR at AS at)").await;
    let progress = "SELECT command, type, relid = (SELECT oid FROM pg_class WHERE relname = 't'), datname, bytes_total, bytes_processed > 0 \
                    AND tuples_processed > 0, tuples_excluded FROM pg_stat_progress_copy";
    assert!(watcher.rows(progress).await.is_empty());
    {
        let sink = session.client.copy_in::<_, bytes::Bytes>("COPY t FROM STDIN (FORMAT csv)").await.unwrap();
        futures::pin_mut!(sink);
        let lines = bytes::Bytes::from("1,2024-05-01 10:00\n".repeat(100_000));
        for _ in 0..2 {
            futures::SinkExt::send(&mut sink, lines.clone()).await.unwrap();
            futures::SinkExt::flush(&mut sink).await.unwrap();
        }
        watcher.until("SELECT count(*) = 1 FROM pg_stat_progress_copy WHERE tuples_processed > 0").await;
        assert_eq!(watcher.rows(progress).await, [["COPY FROM", "PIPE", "t", "verus", "0", "t", "0"]]);
        let pid = watcher.value("SELECT pid FROM pg_stat_progress_copy").await;
        assert_eq!(watcher.value(&format!("SELECT state FROM pg_stat_activity WHERE pid = {pid}")).await, "active");
        assert_eq!(sink.finish().await.unwrap(), 200_000);
    }
    assert!(watcher.rows(progress).await.is_empty());
    // One that is given up leaves nothing behind either.
    assert!(session.copy("COPY t FROM STDIN (FORMAT csv)", "x,y\n").await.is_err());
    assert!(watcher.rows(progress).await.is_empty());
}
