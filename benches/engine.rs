//! The engine's parts without the wire: decoding, committing, maintaining views, writing Parquet, reading a view.
//!
//! `cargo bench --bench engine`; `benches/README.md` says more. The events are those of `verus bench`.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput};
use futures::TryStreamExt;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use verus::catalog::{LateRows, Table};
use verus::client::bench::chunk::{Maker, Traffic};
use verus::client::bench::schema;
use verus::client::event::{COLUMNS, Form};
use verus::columnar::{ColumnTable, Fills, Layout};
use verus::command::{self, Response};
use verus::config::Config;
use verus::event::{Decoder, LineEnd};
use verus::ingest::Pipeline;
use verus::server;
use verus::session::{Services, Session};
use verus::sql::{self, Statement};
use verus::store::{HotBatch, Transaction, Write};
use verus::task::Runtimes;
use verus::telemetry::Metrics;
use verus::types::zone::Zone;

/// Events of a chunk, as `verus bench` sends them.
const EVENTS: u64 = 10_000;
/// 2026-01-01 00:00:00 UTC.
const START_US: i64 = 1_767_225_600_000_000;
/// Maintained views, of `verus bench`'s list.
const VIEWS: u64 = 20;
const VIEW_READ: &str =
    "SELECT w, sum(n) AS orders, sum(revenue) AS revenue FROM bench_v01 WHERE store_id = 'store_1' GROUP BY w ORDER BY w";

/// A server without listeners, with the table and views of `verus bench`.
struct House {
    runtimes: Runtimes,
    services: Arc<Services>,
    session: Session,
    dir: TempDir,
}

impl House {
    fn open(views: u64) -> House {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let runtimes = Runtimes::start(2).expect("threads");
        let spawner = runtimes.spawner();
        let config = Config { data_dir: dir.path().join("data"), ..Config::default() };
        let services = server::build(config, &spawner, Arc::new(Metrics::default())).expect("a server");
        let registration = services.registry.enter("verus", "verus", None, services.clock.now(), false);
        let session = Session::new(Arc::clone(&services), registration);
        let mut house = House { runtimes, services, session, dir };
        house.run(schema::TABLE);
        for view in schema::views(views) {
            house.run(&view);
        }
        house
    }

    /// Runs a statement and drains its rows: how many there were.
    fn run(&mut self, text: &str) -> usize {
        let parsed = sql::parse(text).expect("SQL").into_iter().next();
        let prepared = command::prepare(&mut self.session, parsed, &[]).expect("a plan");
        self.runtimes.block_on(async {
            match command::execute(&mut self.session, &prepared, &[], CancellationToken::new()).await.expect("an answer") {
                Response::Rows { stream, .. } => {
                    let batches: Vec<_> = stream.try_collect().await.expect("rows");
                    batches.iter().map(arrow::record_batch::RecordBatch::num_rows).sum()
                }
                _ => 0,
            }
        })
    }

    fn table(&self) -> Arc<Table> {
        let snapshot = self.services.store.snapshot();
        let table = snapshot.catalog.tables().find(|table| table.name == "bench_events").expect("the table was made");
        Arc::clone(table)
    }

    /// The rules of COPY's columns, and the decoder for them.
    fn intake(&self) -> (Pipeline, Decoder) {
        let table = self.table();
        let position = |name: &str| table.columns.iter().position(|column| column.name == name).expect("a column of the table");
        let columns: Vec<usize> = COLUMNS.split(", ").map(|name| position(name.trim())).collect();
        let pipeline = Pipeline::new(self.services.binder.as_ref(), &table, &columns, self.services.clock.now()).expect("rules");
        let parsed = sql::parse("COPY bench_events FROM STDIN (FORMAT csv)").expect("SQL").remove(0);
        let Statement::Copy(copy) = &*parsed.statement else { panic!("COPY is parsed as COPY") };
        let decoder = Decoder::new("bench_events", pipeline.targets().to_vec(), copy.options.clone(), Zone::UTC).expect("a decoder");
        (pipeline, decoder)
    }

    /// A chunk's rows as the table holds them.
    fn rows(&self) -> arrow::record_batch::RecordBatch {
        let (pipeline, decoder) = self.intake();
        let data = Maker::new(1, START_US, Traffic::default()).chunk(EVENTS, Form::Csv, None).data(0);
        let decoded = decoder.decode(&data, LineEnd::Lf, true).expect("csv");
        pipeline.complete(decoded.batch).expect("rows that keep the rules")
    }

    fn commit(&self, rows: arrow::record_batch::RecordBatch, table: &Table) -> u64 {
        let write = Write { table: table.oid, rows: vec![rows], late_rows: LateRows::Apply };
        let transaction = Transaction { writes: vec![write], ..Transaction::default() };
        self.runtimes.block_on(self.services.store.commit(transaction)).expect("a commit").accepted
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.runtimes.block_on(self.services.store.close());
    }
}

fn decode(criterion: &mut Criterion) {
    let house = House::open(0);
    let (pipeline, decoder) = house.intake();
    let data = Maker::new(1, START_US, Traffic::default()).chunk(EVENTS, Form::Csv, None).data(0);
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(EVENTS));
    group.bench_function("csv", |bencher| {
        bencher.iter(|| decoder.decode(black_box(&data), LineEnd::Lf, true).expect("csv"));
    });
    let decoded = decoder.decode(&data, LineEnd::Lf, true).expect("csv").batch;
    group.bench_function("rules", |bencher| {
        bencher.iter(|| pipeline.complete(black_box(decoded.clone())).expect("rows that keep the rules"));
    });
    group.finish();
}

fn commit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("commit");
    group.throughput(Throughput::Elements(EVENTS)).sample_size(20);
    for views in [0, 1, 5, VIEWS] {
        let house = House::open(views);
        let (rows, table) = (house.rows(), house.table());
        group.bench_function(format!("{views} views"), |bencher| {
            bencher.iter_batched(|| rows.clone(), |rows| house.commit(rows, &table), BatchSize::SmallInput);
        });
    }
    group.finish();
}

fn view_apply(criterion: &mut Criterion) {
    let house = House::open(VIEWS);
    let rows = house.rows();
    let snapshot = house.services.store.snapshot();
    let mut specs: Vec<_> = snapshot.views.values().map(|version| Arc::clone(&version.spec)).collect();
    specs.sort_by_key(|spec| spec.view.oid);
    let mut group = criterion.benchmark_group("view apply");
    group.throughput(Throughput::Elements(EVENTS));
    for views in [1, 5, VIEWS as usize] {
        group.bench_function(format!("{views} views"), |bencher| {
            bencher.iter(|| verus::view::apply(&specs[..views], black_box(&rows), 1, 1 + EVENTS, 1).expect("deltas"));
        });
    }
    group.finish();
}

fn parquet_write(criterion: &mut Criterion) {
    let house = House::open(0);
    let rows = HotBatch::new(&house.rows(), 1).expect("rows with LSNs").rows().clone();
    let table = house.table();
    let layout = Layout {
        schema: rows.schema(),
        partition_by: table.options.partition_by,
        event_time: table.watermark.map(|watermark| watermark.column),
        zstd: false,
        fills: Fills::default(),
        retention_us: None,
    };
    let files = house.dir.path().join("files");
    let columns = house.runtimes.block_on(ColumnTable::open(&files, "bench_events", layout)).expect("a table of files");
    let mut group = criterion.benchmark_group("parquet");
    group.throughput(Throughput::Elements(EVENTS)).sample_size(20);
    group.bench_function("write", |bencher| {
        bencher.iter(|| {
            let written = house.runtimes.block_on(columns.write(vec![rows.clone()], 0)).expect("files");
            columns.abandon(&written);
        });
    });
    group.finish();
}

fn view_read(criterion: &mut Criterion) {
    let mut house = House::open(1);
    let (rows, table) = (house.rows(), house.table());
    for _ in 0..20 {
        house.commit(rows.clone(), &table);
    }
    assert!(house.run(VIEW_READ) > 0, "the view has rows");
    criterion.bench_function("view read, one store", |bencher| bencher.iter(|| house.run(VIEW_READ)));
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    decode(&mut criterion);
    commit(&mut criterion);
    view_apply(&mut criterion);
    parquet_write(&mut criterion);
    view_read(&mut criterion);
    criterion.final_summary();
}
