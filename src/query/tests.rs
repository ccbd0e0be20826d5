//! One-line SQL checks over an in-memory snapshot with the commerce table.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use datafusion::common::ScalarValue;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::{Context, Engine};
use crate::catalog::bind::Binder;
use crate::catalog::{Catalog, Change, Column, FIRST_USER_OID, LateRows, Table, TableKind, TableOptions, View, Watermark};
use crate::clock::ManualClock;
use crate::config::limits::QueryLimits;
use crate::error::{Error, Result};
use crate::store::{HotBatch, Snapshot, TableState};
use crate::task::Spawner;
use crate::telemetry::Metrics;
use crate::types::SqlType;
use crate::types::text::{Style, Writer, parse_scalar};
use crate::types::zone::Zone;

/// 2015-06-15 12:00:00 UTC.
const NOW: i64 = 1_434_369_600_000_000;

const COLUMNS: [(&str, &str); 21] = [
    ("event_id", "uuid"),
    ("event_type", "text"),
    ("event_time", "timestamp with time zone"),
    ("server_timestamp", "timestamp with time zone"),
    ("user_id", "text"),
    ("session_id", "text"),
    ("store_id", "text"),
    ("device_type", "text"),
    ("country", "text"),
    ("referrer", "text"),
    ("utm_source", "text"),
    ("utm_medium", "text"),
    ("utm_campaign", "text"),
    ("page", "text"),
    ("product_id", "text"),
    ("product_category", "text"),
    ("order_id", "text"),
    ("quantity", "integer"),
    ("revenue", "numeric(12,2)"),
    ("properties", "jsonb"),
    ("event_date", "date"),
];

/// event_id suffix, type, time, user, store, device, category, order, quantity, revenue, properties.
const ROWS: [[&str; 11]; 5] = [
    ["01", "page_view", "2015-06-15 10:00:00+00", "u1", "store_123", "mobile", "shoes", "", "", "", r#"{"a":{"b":[1,2]}}"#],
    ["02", "purchase", "2015-06-15 10:00:30+00", "u1", "store_123", "mobile", "shoes", "o1", "2", "19.98", r#"{"coupon":"X1"}"#],
    ["03", "purchase", "2015-06-15 10:01:10+00", "u2", "store_123", "desktop", "hats", "o2", "1", "5.00", ""],
    ["04", "purchase", "2015-06-08 09:00:00+00", "u1", "store_123", "mobile", "shoes", "o0", "1", "9.99", ""],
    ["05", "add_to_cart", "2015-06-15 23:59:59.5+00", "u3", "store_9", "tablet", "hats", "", "3", "", ""],
];

struct Harness {
    engine: Arc<Engine>,
    context: Context,
    _dir: tempfile::TempDir,
}

fn column(name: &str, type_name: &str) -> Column {
    let sql_type = SqlType::parse(type_name).expect("a type's own name");
    Column { name: name.to_owned(), sql_type, nullable: true, default: None, generated: None, fill: None }
}

fn events() -> Table {
    Table {
        oid: FIRST_USER_OID,
        name: "events".to_owned(),
        kind: TableKind::Event,
        columns: COLUMNS.iter().map(|(name, type_name)| column(name, type_name)).collect(),
        checks: Vec::new(),
        primary_key: Vec::new(),
        unique: Vec::new(),
        watermark: Some(Watermark { column: 2, lateness_us: 300_000_000 }),
        options: TableOptions { late_rows: LateRows::Divert, ..TableOptions::default() },
        late_oid: None,
    }
}

fn rows(table: &Table) -> RecordBatch {
    let value = |row: &[&str; 11], name: &str| -> Option<String> {
        let text = match name {
            "event_id" => format!("00000000-0000-0000-0000-0000000000{}", row[0]),
            "event_type" => row[1].to_owned(),
            "event_time" | "server_timestamp" => row[2].to_owned(),
            "event_date" => row[2][..10].to_owned(),
            "user_id" => row[3].to_owned(),
            "session_id" => format!("s-{}", row[3]),
            "store_id" => row[4].to_owned(),
            "device_type" => row[5].to_owned(),
            "product_category" => row[6].to_owned(),
            "order_id" => row[7].to_owned(),
            "quantity" => row[8].to_owned(),
            "revenue" => row[9].to_owned(),
            "properties" => row[10].to_owned(),
            _ => String::new(),
        };
        (!text.is_empty()).then_some(text)
    };
    let mut arrays: Vec<ArrayRef> = Vec::new();
    for column in &table.columns {
        let values = ROWS.iter().map(|row| match value(row, &column.name) {
            Some(text) => parse_scalar(&column.sql_type, &text, &Zone::UTC).unwrap(),
            None => ScalarValue::try_from(column.sql_type.arrow()).unwrap(),
        });
        arrays.push(ScalarValue::iter_to_array(values).unwrap());
    }
    arrays.push(Arc::new(Int64Array::from_iter_values(1..=ROWS.len() as i64)));
    RecordBatch::try_new(with_lsn(table), arrays).unwrap()
}

fn with_lsn(table: &Table) -> Arc<Schema> {
    let mut fields: Vec<_> = table.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new("_lsn", DataType::Int64, false)));
    Arc::new(Schema::new(fields))
}

fn view(oid: u32, name: &str, ready: bool) -> View {
    View {
        oid,
        name: name.to_owned(),
        query: String::new(),
        table: FIRST_USER_OID,
        columns: [
            ("store_id", "text"),
            ("window_start", "timestamp with time zone"),
            ("order_count", "bigint"),
            ("total_revenue", "numeric(22,2)"),
        ]
        .iter()
        .map(|(name, type_name)| column(name, type_name))
        .collect(),
        ready,
        ..View::default()
    }
}

impl Harness {
    async fn new() -> Harness {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(NOW));
        let engine = Engine::new(&QueryLimits::default(), dir.path(), &Spawner::current(), clock, &Metrics::default()).unwrap();
        let table = Arc::new(events());
        let catalog = Catalog::default()
            .with(&Change::CreateTable(Arc::clone(&table)))
            .and_then(|catalog| catalog.with(&Change::CreateView(Arc::new(view(FIRST_USER_OID + 1, "mv_revenue_by_minute", true)))))
            .and_then(|catalog| catalog.with(&Change::CreateView(Arc::new(view(FIRST_USER_OID + 2, "building", false)))))
            .unwrap();
        let rows = rows(&table);
        let hot = vec![Arc::new(HotBatch::of_rows(rows, 1, 6))];
        let state = TableState { hot, ..TableState::empty(Arc::clone(&table)) };
        let tables = HashMap::from([(table.oid, Arc::new(state))]);
        let snapshot = Arc::new(Snapshot { next_lsn: 6, catalog: Arc::new(catalog), tables, ..Snapshot::empty() });
        let context = Context {
            snapshot,
            now: NOW,
            time_zone: "UTC".to_owned(),
            user: "ada".to_owned(),
            backend: 7,
            settings: Arc::new(BTreeMap::from([("application_name".to_owned(), "tests".to_owned())])),
        };
        Harness { engine, context, _dir: dir }
    }

    async fn rows(&self, sql: &str, parameters: &[(SqlType, &str)]) -> Result<String> {
        let parsed = crate::sql::parse(sql)?;
        let bound = self.engine.bind(&self.context, &parsed[0].statement, &[])?;
        let zone = Zone::parse(&self.context.time_zone)?;
        let values = parameters.iter().map(|(sql_type, text)| parse_scalar(sql_type, text, &zone)).collect::<Result<Vec<_>>>()?;
        let mut stream = self.engine.run(&self.context, &bound, &values, CancellationToken::new()).await?;
        let style = Style { time_zone: zone, ..Style::default() };
        let mut lines = Vec::new();
        while let Some(batch) = stream.next().await {
            let batch = batch.map_err(super::error::from_datafusion)?;
            assert_eq!(batch.schema(), bound.schema);
            let writers: Vec<Writer> = batch
                .columns()
                .iter()
                .zip(bound.schema.fields())
                .map(|(array, field)| Writer::new(array, &SqlType::of_field(field), &style))
                .collect::<Result<_>>()?;
            for row in 0..batch.num_rows() {
                let cells = writers.iter().map(|writer| match writer.is_null(row) {
                    true => "NULL".to_owned(),
                    false => {
                        let mut text = Vec::new();
                        writer.write(row, &mut text);
                        String::from_utf8(text).unwrap()
                    }
                });
                lines.push(cells.collect::<Vec<_>>().join("|"));
            }
        }
        Ok(lines.join("; "))
    }

    /// What is wrong with the answer, if anything.
    async fn differs(&self, sql: &str, expected: &str) -> Option<String> {
        match self.rows(sql, &[]).await {
            Ok(found) if found == expected => None,
            Ok(found) => Some(format!("{sql}\n  expected {expected}\n  found    {found}")),
            Err(error) => Some(format!("{sql}\n  {:?}", error.report())),
        }
    }

    async fn check(&self, sql: &str, expected: &str) {
        if let Some(difference) = self.differs(sql, expected).await {
            panic!("{difference}");
        }
    }

    async fn fails_otherwise(&self, sql: &str, state: &str, message: &str) -> Option<String> {
        match self.rows(sql, &[]).await {
            Ok(found) => Some(format!("{sql}\n  gave {found}")),
            Err(error) if error.state().0 == state && error.to_string() == message => None,
            Err(error) => Some(format!("{sql}\n  expected {state} {message}\n  found    {:?}", error.report())),
        }
    }

    fn columns(&self, sql: &str) -> Result<String> {
        let parsed = crate::sql::parse(sql)?;
        let bound = self.engine.bind(&self.context, &parsed[0].statement, &[])?;
        let shown = bound.schema.fields().iter().map(|field| format!("{} {}", field.name(), SqlType::of_field(field)));
        Ok(shown.collect::<Vec<_>>().join(", "))
    }
}

macro_rules! checks {
    ($harness:ident, $($sql:literal => $expected:literal,)*) => {
        let mut wrong = Vec::new();
        $(wrong.extend($harness.differs($sql, $expected).await);)*
        assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    };
}

macro_rules! failures {
    ($harness:ident, $($sql:literal => $state:literal $message:literal,)*) => {
        let mut wrong = Vec::new();
        $(wrong.extend($harness.fails_otherwise($sql, $state, $message).await);)*
        assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    };
}

macro_rules! types {
    ($harness:ident, $($sql:literal => $expected:literal,)*) => {
        let mut wrong = Vec::new();
        $(match $harness.columns($sql) {
            Ok(found) if found == $expected => {}
            Ok(found) => wrong.push(format!("{}\n  expected {}\n  found    {found}", $sql, $expected)),
            Err(error) => wrong.push(format!("{}\n  {:?}", $sql, error.report())),
        })*
        assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn types_are_postgresqls() {
    let harness = Harness::new().await;
    types! { harness,
        "SELECT 1, 2147483648, 1.5, 'a', true, NULL" => "?column? integer, ?column? bigint, ?column? numeric(2,1), ?column? text, bool boolean, ?column? text",
        "SELECT count(*), sum(quantity), sum(order_count), avg(quantity) FROM events, mv_revenue_by_minute" => "count bigint, sum bigint, sum numeric(29,0), avg numeric(38,16)",
        "SELECT sum(revenue), avg(revenue), min(event_time), max(event_id) FILTER (WHERE false) IS NULL FROM events WHERE false" => "sum numeric(22,2), avg numeric(27,16), min timestamp with time zone, ?column? boolean",
        "SELECT quantity + 1, quantity * 2::bigint, quantity / 2, revenue / 2 FROM events" => "?column? integer, ?column? bigint, ?column? integer, ?column? numeric(38,16)",
        "SELECT now(), current_date, now() - interval '1 hour', event_time - now() FROM events" => "now timestamp with time zone, current_date date, ?column? timestamp with time zone, ?column? interval",
        "SELECT event_id, properties, event_date + 1, event_date - event_date FROM events" => "event_id uuid, properties jsonb, ?column? date, ?column? integer",
        "SELECT row_number() OVER (ORDER BY event_time), rank() OVER (ORDER BY store_id) FROM events" => "row_number bigint, rank bigint",
        "SELECT x::date, 1::int8, 'a'::varchar(3), extract(year FROM now()), upper('a'), CASE WHEN true THEN 1 END FROM (SELECT now() AS x) s" => "x date, int8 bigint, varchar character varying(3), extract numeric(20,0), upper text, case integer",
        "SELECT sum(CASE WHEN event_type = 'purchase' THEN 1 ELSE 0 END) FROM events" => "sum bigint",
        "SELECT count(*), count(*) FROM events" => "count bigint, count bigint",
        "SELECT gen_random_uuid(), array[1,2]" => "gen_random_uuid uuid, array integer[]",
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_are_postgresqls() {
    let harness = Harness::new().await;
    checks! { harness,
        "SELECT 7 / 2, -7 / 2, 7 % 3, 10.0 / 4, 1 + 1.5" => "3|-3|1|2.5000000000000000|2.5",
        "SELECT 1 WHERE 'a' < 'B'" => "",
        "SELECT x FROM (VALUES (2), (NULL), (1)) v(x) ORDER BY x" => "1; 2; NULL",
        "SELECT x FROM (VALUES (2), (NULL), (1)) v(x) ORDER BY x DESC" => "NULL; 2; 1",
        "SELECT avg(x), sum(x) FROM (VALUES (1), (2)) v(x)" => "1.5000000000000000|3",
        "SELECT sum(x) FROM (VALUES (9223372036854775807), (1)) v(x)" => "9223372036854775808",
        "SELECT '2.6'::float8::int, 2.5::int, (-2.5)::int, 3.5::float8::int" => "3|3|-3|4",
        "SELECT date '2024-01-31' + 1, date '2024-03-01' - date '2024-02-01', date '2024-01-01' - 1" => "2024-02-01|29|2023-12-31",
        "SELECT timestamp '2024-03-10 00:00' - timestamp '2024-03-01 12:00'" => "8 days 12:00:00",
        "SELECT date '2024-01-31' + interval '1 month', interval '1 day' * 1.5" => "2024-02-29 00:00:00|1 day 12:00:00",
        "SELECT timestamp '9999-12-31 23:59:59.999999', date '0044-03-15'" => "9999-12-31 23:59:59.999999|0044-03-15",
        "SELECT date_trunc('hour', timestamptz '1500-01-01 10:30:00+00')" => "1500-01-01 10:00:00+00",
        "SELECT extract(year FROM timestamp '2015-06-15 10:00:30.25'), extract(second FROM timestamp '2015-06-15 10:00:30.25'), date_part('dow', date '2015-06-15')" => "2015|30.250000|1",
        "SELECT date_diff('week', timestamp '2015-06-14', timestamp '2015-06-15'), date_diff('month', date '2015-01-31', date '2015-02-01')" => "1|1",
        "SELECT tumble(timestamptz '2015-06-15 10:07:59+00', interval '5 minutes'), tumble_end(timestamptz '2015-06-15 10:07:59+00', interval '5 minutes')" => "2015-06-15 10:05:00+00|2015-06-15 10:10:00+00",
        "SELECT tumble(timestamptz '2015-06-15 10:07:59+00', interval '1 hour', interval '15 minutes')" => "2015-06-15 09:15:00+00",
        "SELECT date_bin(interval '15 minutes', timestamptz '2015-06-15 10:07:59+00', timestamptz '2000-01-01 00:00+00')" => "2015-06-15 10:00:00+00",
        "SELECT '00000000-0000-0000-0000-000000000001'::uuid::text, 1.0::float8::text, true::text, now()::text" => "00000000-0000-0000-0000-000000000001|1|true|2015-06-15 12:00:00+00",
        "SELECT current_user, current_database(), current_schema(), pg_backend_pid(), pg_typeof(1.5), current_setting('application_name')" => "ada|verus|public|7|numeric|tests",
        "SELECT 'abcdef'::varchar(3), coalesce(NULL, 'x'), 'a' || 1" => "abc|x|a1",
        "SELECT to_timestamp(0), round(2.567, 2), abs(-3), greatest(1, 2, 3)" => "1970-01-01 00:00:00+00|2.57|3|3",
        "SELECT '{\"a\":{\"b\":[1,2]}}'::jsonb -> 'a' -> 'b' ->> 1, '{\"k\":\"v\"}'::json ->> 'k'" => "2|v",
        "SELECT to_char(timestamp '2015-06-15 10:00:00', 'YYYY-MM-DD HH24:MI:SS.MS FMMonth Dy \"q\"Q')" => "2015-06-15 10:00:00.000 June Mon q2",
        "SELECT age(timestamp '2024-03-01', timestamp '2023-01-15 12:00'), mod(7, 3), sign(-2)" => "1 year 1 mon 16 days 12:00:00|1|-1",
        "SELECT 1e10, 6::float8 / 4, '5' + 1" => "10000000000|1.5|6",
        "SELECT d::date FROM generate_series('2024-01-01'::date, '2024-01-02'::date, '1 day') d" => "2024-01-01; 2024-01-02",
        "SELECT * FROM generate_series(1, 3)" => "1; 2; 3",
        "SELECT n FROM generate_series(3, 1, -1) AS n" => "3; 2; 1",
        "SELECT count(*) FROM generate_series(timestamp '2024-01-31', timestamp '2024-05-31', interval '1 month') g" => "5",
        "SELECT generate_series(1, 2)" => "1; 2",
        "SELECT DISTINCT ON (k) k, v FROM (VALUES (1, 'a'), (1, 'b'), (2, 'c')) t(k, v) ORDER BY k, v DESC" => "1|b; 2|c",
        "SELECT 1 AS a UNION ALL SELECT 2 ORDER BY a DESC LIMIT 1" => "2",
        "SELECT substring('Thomas' FROM 2 FOR 3), position('om' IN 'Thomas'), trim('  x '), string_agg(x, ',' ORDER BY x) FROM (VALUES ('b'), ('a')) v(x)" => "hom|3|x|a,b",
    }
    assert!(harness.rows("SELECT version()", &[]).await.unwrap().starts_with("PostgreSQL 16.6"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_are_read_as_of_the_snapshot() {
    let harness = Harness::new().await;
    checks! { harness,
        "SELECT count(*) FROM events" => "5",
        "SELECT count(*) FROM public.events WHERE event_date = '2015-06-15' AND device_type = 'mobile'" => "2",
        "SELECT event_type FROM events WHERE event_id = '00000000-0000-0000-0000-000000000003'" => "purchase",
        "SELECT store_id, sum(revenue), avg(quantity) FROM events GROUP BY store_id ORDER BY 1" => "store_123|34.97|1.3333333333333333; store_9|NULL|3.0000000000000000",
        "SELECT event_type AS kind, count(*) n FROM events GROUP BY kind HAVING n > 1" => "purchase|3",
        "SELECT properties ->> 'coupon' FROM events WHERE properties ? 'coupon'" => "X1",
        "SELECT user_id, n FROM (SELECT user_id, count(*) AS n, rank() OVER (ORDER BY count(*) DESC) AS r FROM events GROUP BY user_id HAVING r = 1) s" => "u1|3",
        "SELECT date_trunc('day', event_time), count(*) FROM events GROUP BY 1 ORDER BY 1" => "2015-06-08 00:00:00+00|1; 2015-06-15 00:00:00+00|4",
        "SELECT tumble(event_time, interval '1 minute') AS window, count(*) FROM events WHERE event_type = 'purchase' GROUP BY window ORDER BY window" => "2015-06-08 09:00:00+00|1; 2015-06-15 10:00:00+00|1; 2015-06-15 10:01:00+00|1",
        "SELECT DISTINCT lower(event_type) FROM events ORDER BY lower(event_type)" => "add_to_cart; page_view; purchase",
        "SELECT DISTINCT user_id, exists(SELECT 1 FROM events p WHERE p.user_id = e.user_id AND p.event_type = 'purchase') FROM events e ORDER BY 1" => "u1|t; u2|t; u3|f",
        "SELECT count(*) FROM events WHERE event_time >= now() - interval '2 hours'" => "4",
        "SELECT (SELECT max(e2.revenue) FROM events e2 WHERE e2.user_id = e.user_id) FROM events e WHERE e.order_id = 'o1'" => "19.98",
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 3) SELECT sum(n) FROM t" => "6",
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_are_postgresqls() {
    let harness = Harness::new().await;
    failures! { harness,
        "SELECT 1 / 0" => "22012" "division by zero",
        "SELECT 1::float8 / 0" => "22012" "division by zero",
        "SELECT sum(x * 1.00000000) FROM (VALUES (90000000000000000000000000000.0), (90000000000000000000000000000.0)) v(x)" => "22003" "numeric field overflow",
        "SELECT 'abc' ~ '('" => "2201B" "invalid regular expression",
        "SELECT 1 LIMIT 1.5" => "42804" "argument of LIMIT must be type bigint, not type numeric",
        "SELECT * FROM events WHERE quantity = 'x'" => "22P02" "invalid input syntax for type integer: \"x\"",
        "SELECT 1.0 / 0" => "22012" "division by zero",
        "SELECT 2147483647 + 1" => "22003" "integer out of range",
        "SELECT 9223372036854775807 * 2" => "22003" "bigint out of range",
        "SELECT 300000::smallint" => "22003" "smallint out of range",
        "SELECT 'abc'::int" => "22P02" "invalid input syntax for type integer: \"abc\"",
        "SELECT 'x'::uuid" => "22P02" "invalid input syntax for type uuid: \"x\"",
        "SELECT 'x'::date" => "22007" "invalid input syntax for type date: \"x\"",
        "SELECT * FROM events WHERE event_id = 'x'" => "22P02" "invalid input syntax for type uuid: \"x\"",
        "SELECT * FROM nowhere" => "42P01" "relation \"nowhere\" does not exist",
        "SELECT * FROM building" => "55000" "materialized view \"building\" has not been populated",
        "SELECT * FROM s.t" => "42P01" "relation \"s.t\" does not exist",
        "SELECT store FROM events" => "42703" "column \"store\" does not exist",
        "SELECT e.store FROM events e" => "42703" "column e.store does not exist",
        "SELECT x.store_id FROM events" => "42P01" "missing FROM-clause entry for table \"x\"",
        "SELECT nope(1)" => "42883" "function nope(integer) does not exist",
        "SELECT user_id = 1 FROM events" => "42883" "operator does not exist: text = integer",
        "SELECT event_date + 'x' FROM events" => "22007" "invalid input syntax for type interval: \"x\"",
        "SELECT store_id, count(*) FROM events" => "42803" "column \"events.store_id\" must appear in the GROUP BY clause or be used in an aggregate function",
        "SELECT 1 FROM events WHERE row_number() OVER () = 1" => "42P20" "window functions are not allowed in WHERE",
        "SELECT event_type, sum(count(*)) OVER () AS n FROM events GROUP BY 1 HAVING max(n) > 1" => "42803" "aggregate function calls cannot contain window function calls",
        "SELECT event_type, count(*) AS n FROM events GROUP BY 1 QUALIFY n > 1" => "42P20" "QUALIFY requires a window function in the select list or in its condition",
        "SELECT 1 FROM events WHERE quantity" => "42804" "argument of WHERE must be type boolean, not type integer",
        "SELECT count(*) FROM events WHERE hop(event_time, interval '1 minute', interval '5 minutes') > now()" => "42803" "HOP is not allowed outside of GROUP BY",
        "SELECT tumble(event_time, interval '1 month') FROM events" => "22023" "window size must have a fixed length: months and years are not allowed",
        "SELECT date_trunc('fortnight', now())" => "22023" "unit \"fortnight\" not recognized for type timestamp",
        "SELECT a.store_id FROM events a JOIN events b ON a.user_id = b.user_id WHERE store_id = 'x'" => "42702" "column reference \"store_id\" is ambiguous",
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sessions_zone_and_parameters_are_late() {
    let mut harness = Harness::new().await;
    let sql = "SELECT date_trunc('day', event_time), event_time::date FROM events WHERE event_type = 'add_to_cart'";
    harness.check(sql, "2015-06-15 00:00:00+00|2015-06-15").await;
    harness.context.time_zone = "Europe/Berlin".to_owned();
    harness.check(sql, "2015-06-16 00:00:00+02|2015-06-16").await;
    harness
        .check(
            "SELECT extract(hour FROM timestamptz '2015-06-15 10:00:00+00'), '2015-06-15 10:00'::timestamptz",
            "12|2015-06-15 10:00:00+02",
        )
        .await;
    harness
        .check(
            "SELECT timestamptz '2015-06-15 10:00:00+00' AT TIME ZONE 'America/New_York', current_date",
            "2015-06-15 06:00:00|2015-06-15",
        )
        .await;
    harness.context.time_zone = "UTC".to_owned();
    let found = harness
        .rows(
            "SELECT event_type FROM events WHERE event_id = $1 AND revenue > $2 ORDER BY 1 LIMIT $3",
            &[(SqlType::Uuid, "00000000-0000-0000-0000-000000000002"), (SqlType::Numeric(Some((12, 2))), "1.00"), (SqlType::BigInt, "10")],
        )
        .await;
    assert_eq!(found.unwrap(), "purchase");
    let found = harness.rows("SELECT $1, n FROM generate_series(1, $2::int) n", &[(SqlType::Text, "x"), (SqlType::Integer, "2")]).await;
    assert_eq!(found.unwrap(), "x|1; x|2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_papers_listings_plan() {
    let harness = Harness::new().await;
    harness
        .check(
            "SELECT product_category, COUNT(*) AS views, COUNT(DISTINCT session_id) AS sessions,
             SUM(CASE WHEN event_type = 'purchase' THEN 1 ELSE 0 END) AS purchases
             FROM events WHERE store_id = 'store_123' AND event_date = '2015-06-15' AND device_type = 'mobile'
             GROUP BY product_category ORDER BY views DESC LIMIT 20",
            "shoes|2|1|1",
        )
        .await;
    types! { harness,
        "SELECT window_start, SUM(order_count) AS orders, SUM(total_revenue) AS revenue FROM mv_revenue_by_minute
         WHERE store_id = 'store_123' AND window_start >= NOW() - INTERVAL '1' HOUR GROUP BY window_start ORDER BY window_start" =>
        "window_start timestamp with time zone, orders numeric(29,0), revenue numeric(32,2)",
    }
    harness
        .check(
            "WITH cohorts AS (SELECT user_id, DATE_TRUNC('week', MIN(event_time)) AS cohort_week FROM events
               WHERE event_type = 'purchase' AND store_id = 'store_123' GROUP BY user_id),
             activity AS (SELECT e.user_id, c.cohort_week, DATE_TRUNC('week', e.event_time) AS activity_week
               FROM events e JOIN cohorts c ON e.user_id = c.user_id WHERE e.event_type = 'purchase' AND e.store_id = 'store_123')
             SELECT cohort_week, DATE_DIFF('week', cohort_week, activity_week) AS weeks_since_cohort,
               COUNT(DISTINCT user_id) AS active_users FROM activity
             GROUP BY cohort_week, weeks_since_cohort ORDER BY cohort_week, weeks_since_cohort",
            "2015-06-08 00:00:00+00|0|1; 2015-06-08 00:00:00+00|1|1; 2015-06-15 00:00:00+00|0|1",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_shows_lines() {
    let harness = Harness::new().await;
    assert!(harness.rows("EXPLAIN SELECT count(*) FROM events WHERE quantity > 1", &[]).await.unwrap().contains("DataSourceExec"));
    let analyzed = harness.rows("EXPLAIN ANALYZE SELECT * FROM events", &[]).await.unwrap();
    assert!(analyzed.contains("5 hot, 0 from Parquet") && analyzed.contains("Execution Time"), "{analyzed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelling_ends_a_query() {
    let harness = Harness::new().await;
    let parsed = crate::sql::parse("SELECT pg_sleep(1000)").unwrap();
    let bound = harness.engine.bind(&harness.context, &parsed[0].statement, &[]).unwrap();
    let cancel = CancellationToken::new();
    let mut stream = harness.engine.run(&harness.context, &bound, &[], cancel.clone()).await.unwrap();
    cancel.cancel();
    let error: Error = super::error::from_datafusion(stream.next().await.unwrap().unwrap_err());
    assert_eq!(error.state().0, "57014");
    assert!(stream.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_expressions_are_bound_in_utc() {
    let harness = Harness::new().await;
    let table = events();
    let schema = table.schema();
    let expressions = harness
        .engine
        .bind_expressions(
            &schema,
            &["event_time::date".to_owned(), "event_type <> ''".to_owned(), "now()".to_owned(), "quantity * 2".to_owned()],
            &[Some(DataType::Date32), None, None, Some(DataType::Decimal128(12, 2))],
        )
        .unwrap();
    let batch = rows(&table).project(&(0..schema.fields().len()).collect::<Vec<_>>()).unwrap();
    let dates = expressions[0].evaluate(&batch).unwrap().into_array(5).unwrap();
    assert_eq!(&dates, batch.column(20));
    assert_eq!(expressions[3].evaluate(&batch).unwrap().into_array(5).unwrap().data_type(), &DataType::Decimal128(12, 2));
    let plan = harness
        .engine
        .bind_query(
            &harness.context.snapshot.catalog,
            "SELECT store_id, tumble(event_time, INTERVAL '1' MINUTE) AS window, count(*) AS n, sum(revenue) AS r FROM events
             WHERE event_type = 'purchase' AND event_time > '2015-01-01' GROUP BY store_id, window",
        )
        .unwrap();
    assert!(plan.display_indent().to_string().contains("TableScan: events"), "{}", plan.display_indent());
}
