//! What clients read from the system catalogs.

use std::collections::BTreeMap;

use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::TryStreamExt;
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::catalog::{Catalog, Change, Check, Column, Table, TableKind, TableOptions, Unique, View, Watermark};
use crate::clock::SystemClock;
use crate::config::limits::QueryLimits;
use crate::query::Engine;
use crate::sql::Statement;
use crate::store::{Lateness, PartitionClosing, Snapshot, WatermarkRange};
use crate::task::Spawner;
use crate::telemetry::Metrics;
use crate::types::SqlType;

#[derive(Debug)]
struct Quiet;

impl Activity for Quiet {
    fn source(&self, _: crate::catalog::Oid) -> super::sources::SourceRow {
        super::sources::SourceRow::default()
    }

    fn alert(&self, _: &crate::catalog::Alert) -> super::alerts::AlertRow {
        super::alerts::AlertRow::default()
    }

    fn alert_history(&self) -> crate::error::Result<Vec<super::alerts::HistoryRow>> {
        Ok(Vec::new())
    }

    fn notifications(&self) -> Vec<super::alerts::NotificationRow> {
        Vec::new()
    }

    fn query_log(&self) -> Vec<super::LogRow> {
        Vec::new()
    }

    fn signal(&self, _: i32, _: super::signal::Signal) -> bool {
        false
    }

    fn notify(&self, _: i32, _: &str, _: &str) -> crate::error::Result<()> {
        Ok(())
    }

    fn sessions(&self) -> Vec<SessionRow> {
        vec![SessionRow { backend: 7, user: "verus".into(), state: "active", query: "SELECT 1".into(), ..Default::default() }]
    }

    fn now(&self) -> Micros {
        120_000_000
    }

    fn watermark(&self, _table: Oid) -> Option<WatermarkRange> {
        let lateness = Lateness { late: 3, diverted: 2, applied: 1 };
        Some(WatermarkRange { least: 0, greatest: 60_000_000, partitions: 2, idle: 1, closed_until: 60_000_000, lateness })
    }

    fn partitions(&self, _table: Oid) -> Vec<PartitionClosing> {
        Vec::new()
    }

    fn refresh_failure(&self, _view: Oid) -> Option<String> {
        None
    }

    fn refresh_interval_us(&self) -> i64 {
        1_000_000
    }

    fn backfill(&self, _view: Oid) -> Option<crate::store::Progress> {
        None
    }

    fn metrics(&self) -> String {
        "# HELP verus_commits Commits acknowledged.\n# TYPE verus_commits counter\nverus_commits_total 3\n# EOF\n".to_owned()
    }
}

fn column(name: &str, sql_type: SqlType, nullable: bool) -> Column {
    Column { name: name.to_owned(), sql_type, nullable, default: None, generated: None, fill: None }
}

/// An event table with every kind of thing that hangs on one, and a view.
fn context() -> Context {
    let mut columns = vec![
        column("event_id", SqlType::Uuid, false),
        column("event_type", SqlType::Text, false),
        column("event_time", SqlType::Timestamptz, false),
        column("revenue", SqlType::Numeric(Some((12, 2))), true),
        column("code", SqlType::Varchar(Some(40)), true),
        column("tags", SqlType::Array(Box::new(SqlType::Text)), true),
        column("quantity", SqlType::Integer, true),
        column("event_date", SqlType::Date, true),
    ];
    columns[6].default = Some("1".into());
    columns[7].generated = Some("event_time::date".into());
    let table = Table {
        oid: 16_384,
        name: "events".into(),
        kind: TableKind::Event,
        columns,
        checks: vec![Check { name: "events_event_type_check".into(), expression: "event_type <> ''".into() }],
        primary_key: vec![0],
        unique: vec![Unique { name: "events_pkey".into(), columns: vec![0], primary: true }],
        watermark: Some(Watermark { column: 2, lateness_us: 300_000_000 }),
        options: TableOptions { partition_by: Some(1), ..Default::default() },
        late_oid: None,
    };
    let view = View {
        oid: 16_385,
        name: "by_type".into(),
        query: "SELECT event_type, count(*) AS n FROM events GROUP BY event_type".into(),
        table: 16_384,
        columns: vec![column("event_type", SqlType::Text, true), column("n", SqlType::BigInt, true)],
        ready: true,
        ..View::default()
    };
    let catalog = Catalog::default().with(&Change::CreateTable(Arc::new(table))).unwrap();
    let catalog = Arc::new(catalog.with(&Change::CreateView(Arc::new(view))).unwrap());
    Context {
        snapshot: Arc::new(Snapshot { next_lsn: 1, catalog, ..Snapshot::empty() }),
        now: 0,
        time_zone: "UTC".into(),
        user: "verus".into(),
        backend: 7,
        settings: Arc::new(BTreeMap::from([
            ("search_path".to_owned(), "\"$user\", public".to_owned()),
            ("default_table_access_method".to_owned(), "verus".to_owned()),
        ])),
    }
}

/// A query's rows as `a|b|c`, NULL as nothing.
async fn rows(sql: &str) -> Result<Vec<String>> {
    let spill = tempfile::TempDir::new().unwrap();
    let engine =
        Engine::new(&QueryLimits::default(), spill.path(), &Spawner::current(), Arc::new(SystemClock), &Metrics::default()).unwrap();
    engine.set_system(Arc::new(SystemCatalogs::new(Arc::new(Quiet))));
    let statement = Parser::parse_sql(&PostgreSqlDialect {}, sql).unwrap().remove(0);
    let sqlparser::ast::Statement::Query(query) = statement else { panic!("not a query: {sql}") };
    let context = context();
    let bound = engine.bind(&context, &Statement::Query(query), &[])?;
    let stream = engine.run(&context, &bound, &[], CancellationToken::new()).await?;
    let batches: Vec<RecordBatch> = stream.try_collect().await.map_err(crate::query::error::from_datafusion)?;
    let mut rows = Vec::new();
    for batch in batches {
        let options = FormatOptions::default();
        let columns: Vec<_> = batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
        rows.extend(
            (0..batch.num_rows()).map(|row| columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join("|")),
        );
    }
    Ok(rows)
}

async fn check(sql: &str, expected: &[&str]) {
    let found = rows(sql).await.unwrap_or_else(|error| panic!("{sql}\n{error}"));
    assert_eq!(found, expected, "{sql}");
}

#[test]
fn every_relation_can_be_read() {
    let world = World { context: context(), activity: Arc::new(Quiet) };
    for relation in relation::relations() {
        let rows = batch(relation, &world).unwrap();
        let empty = relation.schema == PG_CATALOG && pg_catalog::is_always_empty(relation.name);
        assert!(!empty || rows.num_rows() == 0, "{} is not always empty", relation.name);
    }
}

/// Every query that psql 15 sends for its `\d` commands, as `psql -E` shows them.
#[tokio::test(flavor = "multi_thread")]
async fn psql_commands() {
    run_all(include_str!("psql.sql")).await;
}

/// What SQLAlchemy 2.1, psycopg and pgcli ask when they look at a database.
#[tokio::test(flavor = "multi_thread")]
async fn other_clients() {
    run_all(include_str!("clients.sql")).await;
}

async fn run_all(statements: &str) {
    let statements = statements.split(";\n").map(str::trim).filter(|statement| !statement.is_empty());
    let mut failed = Vec::new();
    for statement in statements {
        if let Err(error) = rows(statement).await {
            failed.push(format!("{statement}\n=> {error}\n"));
        }
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_and_constraints() {
    check(
        "SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull, \
                (SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid) FROM pg_catalog.pg_attrdef d \
                 WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum AND a.atthasdef), a.attgenerated \
         FROM pg_catalog.pg_attribute a WHERE a.attrelid = 'events'::regclass AND a.attnum > 3 ORDER BY a.attnum",
        &[
            "revenue|numeric(12,2)|false||",
            "code|character varying(40)|false||",
            "tags|text[]|false||",
            "quantity|integer|false|1|",
            "event_date|date|false|event_time::date|s",
        ],
    )
    .await;
    check(
        "SELECT conname, contype, pg_get_constraintdef(oid) FROM pg_constraint ORDER BY 1",
        &["events_event_type_check|c|CHECK (event_type <> '')", "events_pkey|p|PRIMARY KEY (event_id)"],
    )
    .await;
    check(
        "SELECT column_name, data_type, udt_name, numeric_precision, character_maximum_length, is_nullable \
         FROM information_schema.columns WHERE table_name = 'events' AND ordinal_position BETWEEN 3 AND 6 ORDER BY ordinal_position",
        &[
            "event_time|timestamp with time zone|timestamptz|||NO",
            "revenue|numeric|numeric|12||YES",
            "code|character varying|varchar||40|YES",
            "tags|ARRAY|_text|||YES",
        ],
    )
    .await;
    check("SELECT definition FROM pg_matviews", &["SELECT event_type, count(*) AS n FROM events GROUP BY event_type;"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn registered_types() {
    check(
        "SELECT oid::regclass, 'events'::regclass, 'events'::regclass::oid FROM pg_class WHERE oid = 'by_type'::regclass",
        &["by_type|events|16384"],
    )
    .await;
    check("SELECT relname FROM pg_class WHERE oid::regclass = 'public.events'::regclass", &["events"]).await;
    check("SELECT relname FROM pg_class WHERE oid::regclass::text = 'events'", &["events"]).await;
    check("SELECT 'int4'::regtype::oid, 1184::regtype, 'timestamp with time zone'::regtype::oid", &["23|timestamp with time zone|1184"])
        .await;
    check("SELECT to_regclass('nothing'), to_regclass('events')", &["|16384"]).await;
    check("SELECT c.tableoid::regclass, c.tableoid FROM pg_class c WHERE c.relname = 'events'", &["pg_class|1259"]).await;
    let error = rows("SELECT 'nothing'::regclass").await.unwrap_err();
    assert_eq!(error.state(), crate::error::SqlState::UNDEFINED_TABLE);
}

#[tokio::test(flavor = "multi_thread")]
async fn shapes() {
    check("SELECT relname FROM pg_class WHERE relkind = ANY ('{m,p}') AND relname OPERATOR(pg_catalog.~) '^by'", &["by_type"]).await;
    check("SELECT count(*) FROM pg_policy", &["0"]).await;
    check(
        "SELECT ARRAY(SELECT attname FROM pg_attribute a WHERE a.attrelid = c.oid ORDER BY 1) FROM pg_class c WHERE relname = 'by_type'",
        &["[event_type, n]"],
    )
    .await;
    check(
        "SELECT pg_size_pretty(10240), pg_size_pretty(1536), quote_ident('a B'), (current_schemas(true))[1]",
        &["10 kB|1536 bytes|\"a B\"|pg_catalog"],
    )
    .await;
    check("SELECT unnest(indkey), generate_subscripts(indkey, 1) FROM pg_index", &["1|0"]).await;
    check(
        "SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg/_' || '%' ESCAPE '/' ORDER BY 1",
        &["information_schema", "public", "verus"],
    )
    .await;
    check("SELECT json_build_object('a', 1, 'b', NULL, 'c', true)", &[r#"{"a" : 1, "b" : null, "c" : true}"#]).await;
    check("SELECT conname FROM pg_constraint WHERE contype = 'f'", &[]).await;
    check("SELECT name, kind, value FROM verus.metrics", &["verus_commits_total|counter|3.0"]).await;
    check("SELECT table_name, kind, partition_by, event_time FROM verus.tables", &["events|event|event_type|event_time"]).await;
}
