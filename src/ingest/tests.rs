//! Rules on the way in: defaults, generated columns, NOT NULL, CHECK, lengths.

use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Date32Type, Decimal128Type, Int32Type, SchemaRef};
use bytes::Bytes;
use datafusion::common::DFSchema;
use datafusion::execution::context::{SessionContext, SessionState};
use datafusion::logical_expr::{LogicalPlan, cast};
use datafusion::physical_expr::PhysicalExpr;

use super::*;
use crate::catalog::bind::Binder;
use crate::catalog::{Catalog, Check, Column, Table, TableKind, TableOptions, Watermark};
use crate::error::{Error, Result};
use crate::sql::statement::{CopyFormat, CopyOptions, Header};
use crate::task::Spawner;
use crate::types::SqlType;

/// DataFusion alone, which suffices for the expressions of these tests.
#[derive(Debug)]
struct PlainBinder;

impl Binder for PlainBinder {
    fn bind_query(&self, _: &Arc<Catalog>, _: &str) -> Result<LogicalPlan> {
        Err(Error::internal("no queries here"))
    }

    fn bind_expressions(&self, schema: &SchemaRef, texts: &[String], targets: &[Option<DataType>]) -> Result<Vec<Arc<dyn PhysicalExpr>>> {
        let context = SessionContext::new();
        let schema = DFSchema::try_from(schema.as_ref().clone()).unwrap();
        let bind = |(text, target): (&String, &Option<DataType>)| {
            let expression = context.parse_sql_expr(text, &schema).unwrap();
            let expression = target.clone().map_or(expression.clone(), |target| cast(expression, target));
            context.create_physical_expr(expression, &schema).unwrap()
        };
        Ok(texts.iter().zip(targets).map(bind).collect())
    }

    fn session_state(&self) -> SessionState {
        SessionContext::new().state()
    }
}

fn table() -> Arc<Table> {
    let column = |name: &str, sql_type: &str, nullable: bool| Column {
        name: name.into(),
        sql_type: SqlType::parse(sql_type).unwrap(),
        nullable,
        default: None,
        generated: None,
        fill: None,
    };
    Arc::new(Table {
        oid: 16_384,
        name: "events".into(),
        kind: TableKind::Event,
        columns: vec![
            column("id", "integer", false),
            column("event_time", "timestamp with time zone", false),
            Column { default: Some("1 + 1".into()), ..column("quantity", "integer", true) },
            column("country", "character varying(2)", true),
            column("revenue", "numeric(12,2)", true),
            Column { generated: Some("event_time".into()), ..column("event_date", "date", true) },
        ],
        checks: vec![Check { name: "events_revenue_check".into(), expression: "revenue >= 0".into() }],
        primary_key: Vec::new(),
        unique: Vec::new(),
        watermark: Some(Watermark { column: 1, lateness_us: 0 }),
        options: TableOptions::default(),
        late_oid: None,
    })
}

/// 2024-01-02 00:00 UTC.
const NOW: i64 = 1_704_153_600_000_000;

fn pipeline(columns: &[usize]) -> Result<Pipeline> {
    Pipeline::new(&PlainBinder, &table(), columns, NOW)
}

#[track_caller]
fn check_error(columns: &[usize], rows: &str, state: &str, message: &str, detail: Option<&str>) {
    let error = pipeline(columns).and_then(|pipeline| pipeline.literals(rows)).unwrap_err();
    let report = error.report();
    assert_eq!((report.state.0, report.message.as_str(), report.detail.as_deref()), (state, message, detail));
}

#[test]
fn rows_are_completed() {
    let batch = pipeline(&[3, 0, 1]).unwrap().literals("('de', 1, '2024-01-01 12:00Z'), ('fr  ', 2, '2023-12-31')").unwrap();
    assert_eq!(batch.schema(), table().schema());
    assert_eq!(batch.column(0).as_primitive::<Int32Type>().values().to_vec(), [1, 2]);
    assert_eq!(batch.column(2).as_primitive::<Int32Type>().values().to_vec(), [2, 2]);
    assert_eq!(batch.column(3).as_string_view().iter().flatten().collect::<Vec<_>>(), ["de", "fr"]);
    assert_eq!(batch.column(4).as_primitive::<Decimal128Type>().null_count(), 2);
    assert_eq!(batch.column(5).as_primitive::<Date32Type>().values().to_vec(), [19_723, 19_722]);
}

#[test]
fn rules_are_kept() {
    let all = [0, 1, 2, 3, 4];
    check_error(
        &all,
        "(1, '2024-01-01', 1, 'de', 2.5), (2, NULL, 1, NULL, -1)",
        "23502",
        "null value in column \"event_time\" of relation \"events\" violates not-null constraint",
        Some("Failing row contains (2, null, 1, null, -1.00, null)."),
    );
    check_error(
        &all,
        "(1, '2024-01-01', 1, 'de', -2.5), (2, NULL, 1, NULL, 1)",
        "23514",
        "new row for relation \"events\" violates check constraint \"events_revenue_check\"",
        Some("Failing row contains (1, 2024-01-01 00:00:00+00, 1, de, -2.50, 2024-01-01)."),
    );
    check_error(&[0, 1, 3], "(1, '2024-01-01', 'deu')", "22001", "value too long for type character varying(2)", None);
    check_error(
        &[0, 1],
        "(1, '2024-01-03 00:00:01Z')",
        "22008",
        "event_time 2024-01-03 00:00:01+00 lies too far in the future for relation \"events\"",
        Some("Failing row contains (1, 2024-01-03 00:00:01+00, 2, null, null, 2024-01-03)."),
    );
    check_error(
        &[0, 5],
        "",
        "428C9",
        "cannot insert a non-DEFAULT value into column \"event_date\"",
        Some("Column \"event_date\" is a generated column."),
    );
    check_error(&[0, 0], "", "42701", "column \"id\" specified more than once", None);
}

fn load(columns: &[usize]) -> CopyLoad {
    let options = CopyOptions {
        format: CopyFormat::Csv,
        delimiter: b',',
        null: String::new(),
        header: Header::On,
        quote: b'"',
        escape: b'"',
        force_quote: Vec::new(),
        force_not_null: Vec::new(),
        force_null: Vec::new(),
        default: None,
    };
    let pipeline = Arc::new(pipeline(columns).unwrap());
    CopyLoad::new(pipeline, options, "UTC".into(), Spawner::current(), 4 << 20).unwrap()
}

async fn push_all(load: &mut CopyLoad, input: &str, step: usize) -> Result<()> {
    for piece in input.as_bytes().chunks(step) {
        load.push(Bytes::copy_from_slice(piece)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_load_keeps_the_order() {
    let rows = 60_000;
    let mut input = String::from("id,event_time,country\n");
    (0..rows).for_each(|row| input.push_str(&format!("{row},2024-01-01 10:00:00,\"d\"\n")));
    let mut load = load(&[0, 1, 3]);
    push_all(&mut load, &input, 10_000).await.unwrap();
    let batches = load.finish().await.unwrap();
    assert!(batches.len() > 2);
    let ids: Vec<i32> = batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int32Type>().values().to_vec()).collect();
    assert_eq!(ids, (0..rows).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_load_names_the_line() {
    for (line, state, context) in [
        ("x,2024-01-01,de", "22P02", ", column id: \"x\""),
        ("1,,de", "23502", ": \"1,,de\""),
        ("1,2024-01-01,deu", "22001", ", column country: \"deu\""),
    ] {
        let mut input = String::from("id,event_time,country\n");
        (0..40_000).for_each(|row| input.push_str(&format!("{row},2024-01-01 10:00:00,\"d\"\n")));
        input.push_str(line);
        let mut load = load(&[0, 1, 3]);
        let pushed = push_all(&mut load, &(input + "\n"), 100_000).await;
        let error = match pushed {
            Ok(()) => load.finish().await.unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(error.state().0, state);
        assert_eq!(error.report().context.as_deref(), Some(format!("COPY events, line 40002{context}").as_str()));
    }
}

#[tokio::test]
async fn a_load_is_bounded() {
    let mut bounded = load(&[0]).with_bytes_max(10);
    assert_eq!(bounded.push(Bytes::from_static(b"id\n1\n2\n3\n4\n5\n")).await.unwrap_err().state().0, "54000");
    let mut endless = load(&[0]);
    let error = loop {
        if let Err(error) = endless.push(Bytes::from(vec![b'1'; 1 << 20])).await {
            break error;
        }
    };
    assert_eq!(error.report().message, "a line of COPY data is too long");
}
