//! `verus import`: CSV, NDJSON and Parquet, compressed or not; kill -9 of either side; wrong input.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Decimal128Array, Int64Array, StringArray, TimestampMillisecondArray};
use arrow::record_batch::RecordBatch;
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::harness::{Server, Session, verus};

const TABLE: &str = "CREATE TABLE clicks (id bigint NOT NULL, at timestamptz NOT NULL, page text DEFAULT 'none', revenue numeric(12,2), \
    seen timestamptz NOT NULL DEFAULT now(), properties jsonb, day date GENERATED ALWAYS AS (at::date) STORED, \
    WATERMARK FOR at AS at - INTERVAL '1 minute')";

fn command(server: &Server, arguments: &[&str]) -> Command {
    let port = server.port.to_string();
    verus(&[&["import", "--port", &port], arguments].concat())
}

/// Runs an import: what it printed, or the error.
fn import(server: &Server, arguments: &[&str]) -> Result<String, String> {
    let Output { status, stdout, stderr } = command(server, arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if status.success() { Ok(text(stdout)) } else { Err(text(stderr)) }
}

#[track_caller]
fn assert_says(outcome: &Result<String, String>, part: &str) {
    let (Ok(text) | Err(text)) = outcome;
    assert!(text.contains(part), "{part:?} is not in {outcome:?}");
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    path
}

fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn csv_is_loaded_by_its_header_and_once() {
    let server = Server::start().await;
    let session = server.connect().await;
    session.rows(TABLE).await;
    session
        .rows(
            "CREATE MATERIALIZED VIEW by_day AS SELECT date_trunc('day', at) AS d, count(*) AS n, sum(revenue) AS r FROM clicks GROUP BY 1",
        )
        .await;
    // The watermark is far ahead of what is imported.
    session.rows("INSERT INTO clicks (id, at) VALUES (0, now())").await;
    let dir = tempfile::tempdir().unwrap();
    let csv = write(dir.path(), "a.csv", "id,revenue,at,page\n1,1.50,2024-01-01 10:00,\"a,\"\"b\"\"\nc\"\n2,,2024-01-02 10:00:00+02,\n");
    let outcome = import(&server, &["--table", "clicks", arg(&csv)]);
    assert_says(&outcome, "a.csv: 2 rows in ");
    let rows =
        session.rows("SELECT id, at, page, revenue, day, seen > now() - interval '1 minute' FROM clicks WHERE id > 0 ORDER BY id").await;
    assert_eq!(rows[0], ["1", "2024-01-01 10:00:00+00", "a,\"b\"\nc", "1.50", "2024-01-01", "t"]);
    assert_eq!(rows[1], ["2", "2024-01-02 08:00:00+00", "NULL", "NULL", "2024-01-02", "t"]);
    session
        .assert_view("by_day", "SELECT date_trunc('day', at) AS d, count(*) AS n, sum(revenue) AS r FROM clicks GROUP BY 1", "imported")
        .await;
    // Again, and when it has grown.
    assert_says(&import(&server, &["--table", "clicks", arg(&csv)]), "nothing new; 2 rows were loaded before");
    let grown = fs::read_to_string(&csv).unwrap() + "3,7,2024-01-03,x\n\n4,8,2024-01-04,y";
    let grown = write(dir.path(), "grown.csv", &grown);
    assert_says(&import(&server, &["--table", "clicks", arg(&grown)]), "2 rows in ");
    let grown = write(dir.path(), "grown.csv", &(fs::read_to_string(&grown).unwrap() + "\n5,8,2024-01-04,y\n"));
    assert_says(&import(&server, &["--table", "clicks", arg(&grown)]), "1 rows in ");
    assert_eq!(session.value("SELECT string_agg(id::text, ' ' ORDER BY id) FROM clicks").await, "0 1 2 3 4 5");
    assert_says(&import(&server, &["--table", "clicks", "--again", "twice", arg(&grown)]), "5 rows in ");
    assert_says(&import(&server, &["--table", "clicks", "--again", "twice", arg(&grown)]), "nothing new");
    assert_eq!(session.value("SELECT count(*) FROM clicks").await, "11");
    // A table of the same name is another table.
    session.rows("DROP TABLE clicks CASCADE").await;
    session.rows(TABLE).await;
    assert_says(&import(&server, &["--table", "clicks", arg(&csv), arg(&grown)]), "all: 5 rows in");
}

#[tokio::test]
async fn what_cannot_be_loaded_is_said() {
    let server = Server::start().await;
    let session = server.connect().await;
    session.rows(TABLE).await;
    let dir = tempfile::tempdir().unwrap();
    let csv = write(dir.path(), "a.csv", "id,color,at,size\n1,red,2024-01-01,\"x\ny\"\n2,blue,2024-01-01,\"z\"\nx,blue,2024-01-02,q\n");
    let refused = import(&server, &["--table", "clicks", arg(&csv)]);
    assert_says(&refused, "table clicks has no column color, size");
    // The line is the file's, whatever is left out of it.
    let refused = import(&server, &["--table", "clicks", "--skip-unknown", "--batch", "1", arg(&csv)]);
    assert_says(&refused, "a.csv, line 5, column id: \"x\"");
    assert_says(&refused, "invalid input syntax for type bigint: \"x\" (22P02)");
    assert_says(&refused, "2 rows are loaded; the same command goes on behind them");
    // Mended, it goes on.
    let csv = write(dir.path(), "a.csv", &fs::read_to_string(&csv).unwrap().replace("\nx,", "\n3,"));
    assert_says(&import(&server, &["--table", "clicks", "--skip-unknown", arg(&csv)]), "1 rows in ");
    assert_eq!(session.value("SELECT string_agg(id::text, ' ' ORDER BY id) FROM clicks").await, "1 2 3");
    for (arguments, text) in [
        (vec!["--table", "none", arg(&csv)], "table \"none\" does not exist"),
        (vec!["--table", "clicks", "missing.csv"], "missing.csv: No such file"),
        (vec!["--table", "clicks", arg(dir.path())], "the name does not tell the form"),
        (vec!["--table", "clicks", "--columns", "id,nope", arg(&csv)], "has no column nope; it has id, color, at, size"),
        (vec!["--table", "clicks", "--columns", "color", "--skip-unknown", arg(&csv)], "has no column of table clicks"),
        (vec!["--table", "clicks", "--delimiter", "", arg(&csv)], "--delimiter is one character"),
        (vec!["--table", "clicks", "--time-zone", "Mars", arg(&csv)], "did not do what it was asked to"),
    ] {
        assert_says(&import(&server, &arguments), text);
    }
    let ragged = write(dir.path(), "b.csv", "id,color,at\n1,red,2024-01-01\n2,red\n");
    assert_says(&import(&server, &["--table", "clicks", "--skip-unknown", arg(&ragged)]), "b.csv, line 3: 2 fields where the header has 3");
    let open = write(dir.path(), "c.csv", "id,at\n1,\"2024-01-01\n2,red\n");
    assert_says(&import(&server, &["--table", "clicks", arg(&open)]), "c.csv, line 2: a quote is not closed");
    let json = write(dir.path(), "d.ndjson", "{\"id\":7,\"at\":\"2024-01-01\"}\n\n{\"id\":8,\n");
    assert_says(&import(&server, &["--table", "clicks", arg(&json)]), "d.ndjson, line 3");
    let json = write(dir.path(), "d.ndjson", "{\"id\":7,\"at\":\"2024-01-01\"}\n\n{\"id\":\"no\"}\n");
    assert_says(&import(&server, &["--table", "clicks", arg(&json)]), "d.ndjson, line 3\n  invalid input syntax for type bigint");
    let list = write(dir.path(), "e.json", "[{\"id\":7}]\n");
    assert_says(&import(&server, &["--table", "clicks", arg(&list)]), "e.json, line 1: a list");
    let parquet = write(dir.path(), "f.parquet", "nothing of the kind");
    assert_says(&import(&server, &["--table", "clicks", arg(&parquet)]), "f.parquet\" is not a readable Parquet file");
    assert_eq!(session.value("SELECT count(*) FROM clicks").await, "3");
}

#[tokio::test]
async fn ndjson_follows_the_rules_of_http() {
    let server = Server::start().await;
    let session = server.connect().await;
    session.rows(TABLE).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.ndjson.gz");
    let mut gz = GzEncoder::new(fs::File::create(&path).unwrap(), Compression::default());
    let lines = [
        r#"{"id":1,"at":"2024-01-01 10:00","page":"tab\tslash\\D","color":"red","properties":{"size":3}}"#,
        "",
        r#"{"id":"2","at":"2024-01-01T10:00:00Z","page":null,"revenue":"7.5"}"#,
        r#"{"id":3,"at":"2024-01-01","page":"\\D"}"#,
        r#"{"id":4,"at":"2024-01-01","revenue":1e2,"seen":"2024-01-02"}"#,
    ];
    gz.write_all(lines.join("\r\n").as_bytes()).unwrap();
    gz.finish().unwrap();
    assert_says(&import(&server, &["--table", "clicks", "--time-zone", "Europe/Berlin", arg(&path)]), "a.ndjson.gz: 4 rows in ");
    let rows = session.rows("SELECT id, at, page, revenue, properties, seen < '2025-01-01' FROM clicks ORDER BY id").await;
    assert_eq!(rows[0], ["1", "2024-01-01 09:00:00+00", "tab\tslash\\D", "NULL", r#"{"size": 3, "color": "red"}"#, "f"]);
    assert_eq!(rows[1], ["2", "2024-01-01 10:00:00+00", "NULL", "7.50", "NULL", "f"]);
    assert_eq!(rows[2][2], "\\D");
    assert_eq!(rows[3][2..], ["none", "100.00", "NULL", "t"]);
    // Standard input; a plain table without properties.
    session.rows("CREATE TABLE shops (name text PRIMARY KEY, city text)").await;
    let zst = dir.path().join("shops.jsonl.zst");
    fs::write(&zst, zstd::encode_all(&b"{\"name\":\"a\",\"city\":\"Ulm\",\"color\":1}\n"[..], 1).unwrap()).unwrap();
    assert_says(&import(&server, &["--table", "shops", arg(&zst)]), "column \"color\" of relation \"shops\" does not exist");
    assert_says(&import(&server, &["--table", "shops", "--skip-unknown", arg(&zst)]), "1 rows in ");
    let mut child = command(&server, &["--table", "shops", "--format", "csv", "--delimiter", ";", "--null", "-", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"\xef\xbb\xbfcity;name\n-;b\n").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(session.rows("SELECT * FROM shops ORDER BY name").await, [["a", "Ulm"], ["b", "NULL"]]);
}

#[tokio::test]
async fn parquet_is_loaded_and_goes_on() {
    let server = Server::start().await;
    let session = server.connect().await;
    session.rows(TABLE).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let n: i64 = 25_000;
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(Int64Array::from_iter_values(1..=n))),
        (
            "at",
            Arc::new(TimestampMillisecondArray::from_iter_values((0..n).map(|row| 1_704_067_200_000 + row * 1_000)).with_timezone("UTC")),
        ),
        ("page", Arc::new(StringArray::from_iter((0..n).map(|row| (row % 2 == 0).then(|| format!("p\t{row}")))))),
        ("revenue", Arc::new(Decimal128Array::from_iter_values((0..n).map(i128::from)).with_precision_and_scale(10, 2).unwrap())),
        ("day", Arc::new(StringArray::from_iter_values((0..n).map(|_| "computed")))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(fs::File::create(&path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    // A row that is there keeps its key: the second portion fails, and what is committed stays.
    session.rows("CREATE TABLE keyed (id bigint PRIMARY KEY, page text)").await;
    session.rows("INSERT INTO keyed VALUES (15000)").await;
    let options = ["--table", "keyed", "--columns", "id,page", "--batch", "10000"];
    let refused = import(&server, &[&options[..], &[arg(&path)]].concat());
    assert_says(&refused, "duplicate key value violates unique constraint");
    assert_says(&refused, "10,000 rows are loaded");
    session.rows("DELETE FROM keyed WHERE id = 15000").await;
    let outcome = import(&server, &[&options[..], &[arg(&path)]].concat());
    assert_says(&outcome, "15,000 rows in ");
    assert_says(&outcome, "10,000 were loaded before");
    assert_eq!(session.rows("SELECT count(*), count(page), sum(id) FROM keyed").await, [["25000", "12500", "312512500"]]);
    assert_says(&import(&server, &["--table", "clicks", arg(&path)]), "25,000 rows in ");
    let found = session.rows("SELECT count(*), max(at), sum(revenue), min(page), min(day) FROM clicks").await;
    assert_eq!(found, [["25000", "2024-01-01 06:56:39+00", "3124875.00", "p\t0", "2024-01-01"]]);
}

const ECOM: &str = "CREATE TABLE ecom (user_id text, session_id text, event text, \"timestamp\" timestamptz NOT NULL, platform text, \
    acquisition_channel text, user_cohort text, user_lifecycle text, WATERMARK FOR \"timestamp\" AS \"timestamp\" - INTERVAL '1 hour') \
    WITH (partition_by = 'platform')";

/// Rows, users and sessions of the real file.
const ECOM_FACTS: &str = "SELECT count(*), count(DISTINCT user_id), count(DISTINCT session_id) FROM ecom";

async fn rows_of(session: &Session) -> u64 {
    session.value("SELECT count(*) FROM ecom").await.parse().unwrap()
}

/// Starts an import and waits until the table has so many rows.
async fn begin(server: &Server, session: &Session, arguments: &[&str], rows: u64) -> std::process::Child {
    let mut child = command(server, arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while rows_of(session).await < rows {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    child
}

#[tokio::test]
async fn a_killed_import_goes_on() {
    let Some(file) = crate::real_data::shared("ecom.csv.gz") else { return };
    let mut server = Server::start().await;
    let session = server.connect().await;
    session.rows(ECOM).await;
    session.rows("CREATE MATERIALIZED VIEW by_event AS SELECT event, platform, count(*) AS n, count(DISTINCT user_id) AS u FROM ecom GROUP BY 1, 2").await;
    let all = {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut flate2::read::MultiGzDecoder::new(fs::File::open(&file).unwrap()), &mut text).unwrap();
        text.lines().count() as u64 - 1
    };
    let arguments = ["--table", "ecom", "--batch", "250", arg(&file)];
    let mut child = begin(&server, &session, &arguments, 5_000).await;
    child.kill().unwrap();
    child.wait().unwrap();
    let there = rows_of(&session).await;
    assert!(there % 250 == 0 && there < all, "{there} rows after the kill");
    // Then the server, as often as it takes.
    let child = begin(&server, &session, &arguments, there + 5_000).await;
    server.kill();
    let said = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
    assert!(said.contains("the same command goes on behind them"), "{said}");
    server.restart().await;
    let session = server.connect().await;
    let there = rows_of(&session).await;
    assert!(there % 250 == 0 && there < all, "{there} rows after the server's kill");
    // Two at the same time share the rest.
    let rival = command(&server, &arguments).stdout(Stdio::null()).spawn().unwrap();
    assert_says(&import(&server, &arguments), "were loaded before");
    assert!(rival.wait_with_output().unwrap().status.success());
    assert_eq!(rows_of(&session).await, all);
    let facts = session.rows(ECOM_FACTS).await;
    session
        .assert_view("by_event", "SELECT event, platform, count(*) AS n, count(DISTINCT user_id) AS u FROM ecom GROUP BY 1, 2", "imported")
        .await;
    assert_says(&import(&server, &["--table", "ecom", arg(&file)]), "nothing new");
    assert_eq!(session.rows(ECOM_FACTS).await, facts);
}
