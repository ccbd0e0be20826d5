//! A view equals its query, however its state came about.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Decimal128Array, Float64Array, Int64Array, StringViewArray, TimestampMicrosecondArray};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::datasource::MemTable;
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::prelude::{SessionConfig, SessionContext, col, lit};
use proptest::prelude::*;

use super::*;
use crate::catalog::bind::Binder;
use crate::catalog::{Catalog, Change, Column, Maintenance, Table, TableKind, TableOptions, View, Watermark};
use crate::config::limits::ViewLimits;
use crate::error::{Error, Result, SqlState};
use crate::state::{Batch, State};
use crate::types::SqlType;

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Binds with DataFusion alone.
#[derive(Debug)]
struct TestBinder;

fn session(catalog: &Catalog, rows: Vec<RecordBatch>) -> SessionContext {
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2));
    for table in catalog.tables() {
        let table_rows = MemTable::try_new(table.schema(), vec![rows.clone()]).unwrap();
        context.register_table(table.name.as_str(), Arc::new(table_rows)).unwrap();
    }
    context
}

impl Binder for TestBinder {
    fn bind_query(&self, catalog: &Arc<Catalog>, query: &str) -> Result<LogicalPlan> {
        let state = session(catalog, Vec::new()).state();
        let plan = |error: datafusion::error::DataFusionError| Error::internal(error.to_string());
        let unresolved = block_on(state.create_logical_plan(query)).map_err(plan)?;
        state.analyzer().execute_and_check(unresolved, state.config_options(), |_, _| {}).map_err(plan)
    }

    fn bind_expressions(
        &self,
        _: &SchemaRef,
        _: &[String],
        _: &[Option<arrow::datatypes::DataType>],
    ) -> Result<Vec<Arc<dyn PhysicalExpr>>> {
        Err(Error::internal("not needed here"))
    }

    fn session_state(&self) -> SessionState {
        SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2)).state()
    }
}

fn catalog() -> (Arc<Catalog>, Arc<Table>) {
    let column = |name: &str, sql_type, nullable| Column {
        name: String::from(name),
        sql_type,
        nullable,
        default: None,
        generated: None,
        fill: None,
    };
    let table = Arc::new(Table {
        oid: 20_000,
        name: String::from("events"),
        kind: TableKind::Event,
        columns: vec![
            column("event_time", SqlType::Timestamptz, false),
            column("store_id", SqlType::Text, true),
            column("event_type", SqlType::Text, false),
            column("user_id", SqlType::Text, true),
            column("quantity", SqlType::BigInt, true),
            column("revenue", SqlType::Numeric(Some((12, 2))), true),
            column("score", SqlType::Double, true),
        ],
        checks: Vec::new(),
        primary_key: Vec::new(),
        unique: Vec::new(),
        watermark: Some(Watermark { column: 0, lateness_us: 0 }),
        options: TableOptions { partition_by: Some(1), ..TableOptions::default() },
        late_oid: None,
    });
    let catalog = Catalog::default().with(&Change::CreateTable(Arc::clone(&table))).unwrap();
    (Arc::new(catalog), table)
}

fn rows(table: &Table, count: usize, seed: u64) -> RecordBatch {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = |below: u64| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 11) % below
    };
    let numbers: Vec<[u64; 7]> = (0..count).map(|_| [next(90_000), next(9), next(3), next(40), next(50), next(10_000), next(64)]).collect();
    let some = |value: u64, of: u64| (value != of).then_some(value);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(TimestampMicrosecondArray::from_iter_values(numbers.iter().map(|n| n[0] as i64 * 1_000_000)).with_timezone("UTC")),
        Arc::new(StringViewArray::from_iter(numbers.iter().map(|n| some(n[1], 8).map(|s| format!("store number {s}"))))),
        Arc::new(StringViewArray::from_iter_values(numbers.iter().map(|n| ["view", "cart", "purchase"][n[2] as usize]))),
        Arc::new(StringViewArray::from_iter(numbers.iter().map(|n| some(n[3], 7).map(|u| format!("u{u}"))))),
        Arc::new(Int64Array::from_iter(numbers.iter().map(|n| some(n[4], 3).map(|q| q as i64 - 10)))),
        Arc::new(
            Decimal128Array::from_iter(numbers.iter().map(|n| some(n[5], 5).map(i128::from))).with_precision_and_scale(12, 2).unwrap(),
        ),
        Arc::new(Float64Array::from_iter(numbers.iter().map(|n| some(n[6], 1).map(|s| s as f64)))),
    ];
    RecordBatch::try_new(table.schema(), columns).unwrap()
}

const VIEWS: [&str; 10] = [
    "SELECT store_id, date_trunc('minute', event_time) AS w, count(*) AS n, sum(revenue) AS total, avg(revenue) AS mean, \
     min(revenue) AS least, max(user_id) AS greatest, count(DISTINCT user_id) AS users, sum(quantity) AS items \
     FROM events GROUP BY store_id, date_trunc('minute', event_time)",
    "SELECT date_trunc('hour', event_time) AS w, store_id, count(*) AS n, sum(revenue) FILTER (WHERE quantity > 5) AS big, \
     count(DISTINCT quantity) AS d, sum(DISTINCT quantity) AS sd FROM events WHERE event_type = 'purchase' \
     GROUP BY 1, 2 HAVING count(*) > 1",
    "SELECT count(*) AS n, sum(score) AS s, max(event_time) AS last, bool_or(quantity > 30) AS any, approx_distinct(user_id) AS a FROM events",
    "SELECT DISTINCT store_id, event_type FROM events",
    "SELECT user_id, 2 * sum(quantity) + 1 AS x, first_value(revenue ORDER BY event_time, revenue) AS f, \
     array_agg(quantity ORDER BY quantity, event_time) AS a FROM events GROUP BY user_id",
    "SELECT e.k, median(e.score) AS m, string_agg(e.store_id, ',' ORDER BY e.store_id) AS s \
     FROM (SELECT upper(event_type) AS k, score, store_id FROM events WHERE quantity > 0) e GROUP BY e.k",
    "SELECT event_time::date AS day, event_type FROM events GROUP BY 1, 2",
    "SELECT count(*) AS n, stddev(score) AS sd FROM events WHERE event_type = 'none'",
    "SELECT count(DISTINCT revenue) AS d, count(DISTINCT user_id) AS u, count(*) AS n, max(revenue) AS most FROM events",
    "SELECT store_id, count(DISTINCT event_time) AS t, sum(quantity) AS s, count(DISTINCT revenue) FILTER (WHERE quantity > 9) AS d \
     FROM events WHERE store_id <> 'store number 3' OR revenue > 90 GROUP BY store_id",
];

struct Bench {
    catalog: Arc<Catalog>,
    table: Arc<Table>,
    state: Arc<State>,
    home: Arc<Blocks>,
    specs: Vec<Arc<Spec>>,
    versions: Vec<Version>,
    stale: Vec<Version>,
    all: Vec<RecordBatch>,
    lsn: u64,
    mirrors: Vec<Mirror>,
    _dir: tempfile::TempDir,
}

/// A view as its changes tell it: rows by their keys.
struct Mirror {
    shown: Arc<Version>,
    lsn: u64,
    rows: BTreeMap<String, String>,
}

fn limits() -> ViewLimits {
    ViewLimits { block_cache_bytes: 1 << 20, block_rows_max: 64, ..ViewLimits::default() }
}

fn spec(catalog: &Arc<Catalog>, table: &Table, oid: u32, query: &str) -> Result<Spec> {
    let view = View { oid, name: format!("v{oid}"), ..describe(&TestBinder, catalog, query)? };
    if view.maintenance != Maintenance::State {
        return Err(Error::unsupported(view.reason.unwrap_or_default()));
    }
    Spec::compile(&TestBinder, catalog, table, &Arc::new(view))
}

impl Bench {
    fn new(queries: &[&str]) -> Bench {
        let (catalog, table) = catalog();
        let dir = tempfile::tempdir().unwrap();
        let state = Arc::new(State::open(dir.path(), 8 << 20).unwrap());
        let home = Blocks::new(Arc::clone(&state), &limits());
        let specs: Vec<_> = queries
            .iter()
            .enumerate()
            .map(|(index, query)| Arc::new(spec(&catalog, &table, 30_000 + index as u32, query).unwrap()))
            .collect();
        let versions: Vec<_> = specs.iter().map(|spec| Version::new(Arc::clone(spec), &home)).collect();
        // A view without keys has a row from the start.
        let mirror = |version: &Version| Mirror {
            shown: Arc::new(version.clone()),
            lsn: 0,
            rows: lines(&read(version, None, &[]).unwrap()).into_iter().map(|line| (String::new(), line)).collect(),
        };
        let mirrors = versions.iter().map(mirror).collect();
        Bench { catalog, table, state, home, specs, stale: versions.clone(), versions, all: Vec::new(), lsn: 0, mirrors, _dir: dir }
    }

    /// Brings the mirrors up to date, from the version that they have seen or from its LSN alone, and compares.
    fn follow(&mut self, resume: bool) {
        let session = SessionContext::new().state();
        for (version, mirror) in self.versions.iter().zip(&mut self.mirrors) {
            let version = Arc::new(version.clone());
            let selection = Arc::new(Selection::new(&version, &session, &[], None).unwrap());
            let outputs = &version.spec.finish.output_keys;
            let keys: Vec<usize> = (0..outputs.len()).filter(|column| outputs[*column].is_some() || !version.shows_keys()).collect();
            let since = match resume && version.shows_keys() && mirror.lsn >= version.changes_from() {
                true => Since::Lsn(mirror.lsn),
                false => Since::Version(Arc::clone(&mirror.shown), mirror.lsn),
            };
            let exact = matches!(since, Since::Version(..)) && !version.spec.view.query.contains("score");
            let pool: Arc<dyn datafusion::execution::memory_pool::MemoryPool> =
                Arc::new(datafusion::execution::memory_pool::UnboundedMemoryPool::default());
            let reservation = datafusion::execution::memory_pool::MemoryConsumer::new("test").register(&pool);
            for changed in version.changes(since, &selection, reservation).unwrap() {
                let Changed { change, rows } = changed.unwrap();
                for row in 0..rows.num_rows() {
                    let row = rows.slice(row, 1);
                    let (key, line) = (lines(&[row.project(&keys).unwrap()]), lines(&[row]));
                    match change {
                        ChangeKind::Update => {
                            let before = mirror.rows.insert(key.concat(), line.concat());
                            assert!(!exact || before.as_deref() != Some(&line.concat()), "{line:?} is sent though it has not changed");
                        }
                        ChangeKind::Delete => drop(mirror.rows.remove(&key.concat())),
                    }
                }
            }
            (mirror.shown, mirror.lsn) = (Arc::clone(&version), self.lsn);
            let mut found: Vec<_> = mirror.rows.values().cloned().collect();
            found.sort();
            assert_eq!(found, lines(&read(&version, None, &[]).unwrap()), "{}", version.spec.view.query);
        }
    }

    fn commit(&mut self, rows: RecordBatch) {
        let next = self.lsn + rows.num_rows() as u64;
        let deltas = apply(&self.specs, &rows, self.lsn, next, 1).unwrap();
        for (version, delta) in self.versions.iter_mut().zip(deltas) {
            if let Some(delta) = delta {
                *version = version.with_delta(delta).unwrap();
            }
        }
        self.lsn = next;
        self.all.push(rows);
    }

    /// Deletes the rows of one commit.
    fn erase(&mut self, index: usize) {
        if self.all.is_empty() {
            return;
        }
        let gone = self.all.remove(index % self.all.len());
        for version in &mut self.versions {
            if let Some(mut replacement) = Replacement::new(&version.spec, std::slice::from_ref(&gone)).unwrap() {
                self.all.iter().for_each(|rows| replacement.add(rows).unwrap());
                *version = version.with_delta(replacement.finish(self.lsn).unwrap()).unwrap();
            }
        }
        self.lsn += 1;
    }

    fn checkpoint(&mut self, versions: &[Version], lsn: u64) {
        for (newest, version) in self.versions.iter_mut().zip(versions) {
            let mut batch = Batch::default();
            let checkpoint = version.checkpoint(lsn, &mut batch).unwrap();
            self.state.write(batch).unwrap();
            *newest = newest.checkpointed(&checkpoint);
        }
    }

    fn merge(&mut self) {
        for version in &mut self.versions {
            let mut batch = Batch::default();
            if let Some(merging) = version.mergeable() {
                let merged = version.merge(merging, None, &mut batch).unwrap();
                self.state.write(batch).unwrap();
                *version = version.merged(&merged);
            }
        }
    }

    /// Everything is written, then read again.
    fn reopen(&mut self) {
        let versions = self.versions.clone();
        self.checkpoint(&versions, self.lsn);
        self.home = Blocks::new(Arc::clone(&self.state), &limits());
        self.versions = self.specs.iter().map(|spec| Version::open(Arc::clone(spec), &self.home).unwrap()).collect();
        assert!(self.versions.iter().all(|version| version.applied_lsn() == self.lsn && !version.must_rebuild()));
        self.stale = self.versions.clone();
    }

    fn check(&self) {
        let oracle = session(&self.catalog, self.all.clone());
        for version in &self.versions {
            let expected = block_on(block_on(oracle.sql(&version.spec.view.query)).unwrap().collect()).unwrap();
            assert_eq!(lines(&read(version, None, &[]).unwrap()), lines(&expected), "{}", version.spec.view.query);
        }
    }
}

fn read(version: &Version, projection: Option<&Vec<usize>>, filters: &[datafusion::logical_expr::Expr]) -> Result<Vec<RecordBatch>> {
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2));
    let plan = version.scan(&context.state(), projection, filters, None)?;
    block_on(datafusion::physical_plan::collect(plan, context.task_ctx())).map_err(super::failure::failure)
}

/// Rows as sorted text; floats by nine digits, because addition's order differs.
fn lines(batches: &[RecordBatch]) -> Vec<String> {
    let options = FormatOptions::default().with_null("NULL");
    let mut lines = Vec::new();
    for batch in batches {
        let columns: Vec<_> = batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
        for row in 0..batch.num_rows() {
            let value = |(column, array): (&ArrayFormatter<'_>, &ArrayRef)| match array.data_type() {
                arrow::datatypes::DataType::Float64 => {
                    column.value(row).to_string().parse::<f64>().map_or_else(|_| String::from("NULL"), |value| format!("{value:.9}"))
                }
                _ => column.value(row).to_string(),
            };
            lines.push(columns.iter().zip(batch.columns()).map(value).collect::<Vec<_>>().join("|"));
        }
    }
    lines.sort_unstable();
    lines
}

/// A string literal as the analyzer leaves it.
fn text(value: &str) -> datafusion::logical_expr::Expr {
    lit(datafusion::common::ScalarValue::Utf8View(Some(String::from(value))))
}

#[derive(Clone, Debug)]
enum Step {
    Commit(usize, u64),
    Erase(usize),
    Checkpoint,
    /// Of an older version than the newest.
    StaleCheckpoint,
    Merge,
    Sweep,
    Reopen,
    /// True: from an LSN alone.
    Follow(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1..60_usize, any::<u64>()).prop_map(|(count, seed)| Step::Commit(count, seed)),
        1 => any::<usize>().prop_map(Step::Erase),
        3 => Just(Step::Checkpoint),
        1 => Just(Step::StaleCheckpoint),
        2 => Just(Step::Merge),
        1 => Just(Step::Sweep),
        1 => Just(Step::Reopen),
        4 => any::<bool>().prop_map(Step::Follow),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_view_equals_its_query(steps in proptest::collection::vec(step(), 1..40)) {
        let mut bench = Bench::new(&VIEWS);
        let mut stale_lsn = 0;
        for step in steps {
            match step {
                Step::Commit(count, seed) => bench.commit(rows(&bench.table, count, seed)),
                Step::Checkpoint => {
                    bench.stale = bench.versions.clone();
                    stale_lsn = bench.lsn;
                    let versions = bench.versions.clone();
                    bench.checkpoint(&versions, bench.lsn);
                    bench.stale = bench.versions.clone();
                }
                Step::StaleCheckpoint => {
                    let stale = bench.stale.clone();
                    bench.checkpoint(&stale, stale_lsn);
                    bench.stale = bench.versions.clone();
                    stale_lsn = bench.lsn;
                }
                Step::Erase(index) => bench.erase(index),
                Step::Merge => bench.merge(),
                Step::Follow(resume) => bench.follow(resume),
                Step::Sweep => {
                    bench.home.sweep().unwrap();
                }
                Step::Reopen => {
                    bench.reopen();
                    stale_lsn = bench.lsn;
                }
            }
        }
        bench.follow(false);
        bench.check();
        bench.reopen();
        bench.check();
        bench.follow(true);
    }
}

#[test]
fn many_commits_merge_and_shadowed_blocks_go() {
    let mut bench = Bench::new(&VIEWS[..2]);
    bench.commit(rows(&bench.table, 20, 1));
    let (early, early_lsn) = (bench.versions.clone(), bench.lsn);
    for seed in 2..40 {
        bench.commit(rows(&bench.table, 20, seed));
    }
    assert!(bench.versions[0].size().deltas < 20, "{:?}", bench.versions[0].size());
    // Deltas merged across the checkpoint's end: its blocks are shadowed, and go with the next one.
    bench.checkpoint(&early, early_lsn);
    bench.check();
    bench.reopen();
    bench.check();
    for seed in 40..60 {
        bench.commit(rows(&bench.table, 20, seed));
        let versions = bench.versions.clone();
        bench.checkpoint(&versions, bench.lsn);
        bench.merge();
    }
    bench.home.sweep().unwrap();
    bench.check();
}

#[test]
fn look_ups_prune_and_project() {
    let mut bench = Bench::new(&VIEWS[..1]);
    for seed in 1..8 {
        bench.commit(rows(&bench.table, 400, seed));
    }
    bench.reopen();
    bench.commit(rows(&bench.table, 400, 9));
    let version = &bench.versions[0];
    let from = lit(datafusion::common::ScalarValue::TimestampMicrosecond(Some(40_000_000_000), Some("UTC".into())));
    let filters = [col("store_id").eq(text("store number 3")), col("w").gt_eq(from)];
    assert!(filters.iter().all(|filter| version.spec.filters_exactly(filter)));
    assert!(!version.spec.filters_exactly(&col("n").gt(lit(1))));
    let plan = version.scan(&TestBinder.session_state(), None, &filters, None).unwrap();
    let shown = datafusion::physical_plan::displayable(plan.as_ref()).one_line().to_string();
    assert!(shown.contains("deltas=1") && !shown.contains("pruned=0"), "{shown}");
    let found = lines(&read(version, Some(&vec![1, 2]), &filters).unwrap());
    let oracle = session(&bench.catalog, bench.all.clone());
    let query = format!(
        "SELECT w, n FROM ({}) WHERE store_id = 'store number 3' AND w >= to_timestamp_micros(40000000000)::timestamptz",
        version.spec.view.query
    );
    let expected = block_on(block_on(oracle.sql(&query)).unwrap().collect()).unwrap();
    assert!(!found.is_empty());
    assert_eq!(found, lines(&expected));
}

#[test]
fn a_backfill_is_the_state() {
    let mut bench = Bench::new(&VIEWS);
    let mut fills: Vec<_> = bench.versions.iter().map(Backfill::new).collect();
    for seed in 1..12 {
        let rows = rows(&bench.table, 100, seed);
        for (fill, delta) in fills.iter_mut().zip(apply(&bench.specs, &rows, 0, 0, 1).unwrap()) {
            delta.into_iter().for_each(|delta| fill.add(delta).unwrap());
        }
        bench.all.push(rows);
    }
    bench.lsn = 1_100;
    for (version, fill) in bench.versions.iter_mut().zip(fills) {
        let mut batch = Batch::default();
        let checkpoint = fill.finish(1_100, &mut batch).unwrap();
        bench.state.write(batch).unwrap();
        *version = version.checkpointed(&checkpoint);
    }
    bench.check();
    bench.commit(rows(&bench.table, 50, 77));
    bench.reopen();
    bench.check();
}

#[test]
fn overflow_is_raised_to_readers_only() {
    let queries = [
        "SELECT store_id, sum(quantity) AS s FROM events GROUP BY store_id",
        "SELECT store_id, sum(100 / quantity) AS s, count(*) AS n FROM events GROUP BY store_id",
        "SELECT 100 / quantity AS k, count(*) AS n FROM events GROUP BY 1",
    ];
    let mut bench = Bench::new(&queries);
    let batch = rows(&bench.table, 3, 5);
    let mut columns = batch.columns().to_vec();
    columns[1] = Arc::new(StringViewArray::from(vec!["a", "a", "b"]));
    columns[4] = Arc::new(Int64Array::from(vec![i64::MAX, i64::MAX, 0]));
    bench.commit(RecordBatch::try_new(batch.schema(), columns).unwrap());
    for _ in 0..2 {
        let read =
            |view: usize, store: &str| read(&bench.versions[view], None, &[col("store_id").eq(text(store))]).map(|batches| lines(&batches));
        assert_eq!(read(0, "b").unwrap(), ["b|0"]);
        assert_eq!(read(0, "a").unwrap_err().state(), SqlState::NUMERIC_VALUE_OUT_OF_RANGE);
        assert_eq!(read(1, "a").unwrap(), ["a|0|2"]);
        assert_eq!(read(1, "b").unwrap_err().state(), SqlState::DIVISION_BY_ZERO);
        assert_eq!(super::tests::read(&bench.versions[2], None, &[]).unwrap_err().state(), SqlState::DIVISION_BY_ZERO);
        bench.reopen();
    }
}

#[test]
fn what_cannot_be_kept_says_why() {
    let (catalog, table) = catalog();
    let refused = BTreeMap::from([
        ("SELECT * FROM events", "GROUP BY"),
        ("SELECT count(*) AS n FROM events a JOIN events b ON a.user_id = b.user_id", "join"),
        ("SELECT store_id, count(*) AS n FROM events GROUP BY store_id ORDER BY 2 LIMIT 3", "LIMIT"),
        ("SELECT count(*) AS n FROM events WHERE event_time > now()", "now()"),
        ("SELECT store_id, rank() OVER (ORDER BY count(*)) AS r FROM events GROUP BY store_id", "window function"),
        ("SELECT max(n) AS m FROM (SELECT count(*) AS n FROM events GROUP BY store_id)", "aggregate over an aggregate"),
        ("SELECT last_value(revenue) AS l FROM events", "without ORDER BY"),
        ("SELECT count(*) AS n FROM events WHERE quantity > (SELECT avg(quantity) FROM events)", "subquery"),
    ]);
    for (query, reason) in refused {
        let error = spec(&catalog, &table, 1, query).unwrap_err();
        assert_eq!(error.state(), SqlState::FEATURE_NOT_SUPPORTED, "{query}: {error}");
        assert!(error.to_string().contains(reason), "{query}: {error}");
    }
    let minute = spec(&catalog, &table, 1, VIEWS[0]).unwrap();
    assert_eq!((minute.bucket_us(), minute.bucket_column()), (Some(60_000_000), Some(1)));
}
