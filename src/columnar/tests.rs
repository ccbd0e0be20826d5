//! The table as its callers see it: written, committed, reopened, scanned, damaged, merged.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use arrow::array::*;
use arrow::compute::concat_batches;
use arrow::datatypes::{IntervalMonthDayNano, Schema};
use datafusion::physical_plan::collect;
use datafusion::physical_plan::metrics::MetricsSet;
use datafusion::prelude::{SessionConfig, SessionContext, col, lit};
use tempfile::TempDir;

use super::*;
use crate::error::SqlState;
use crate::types::{LSN_COLUMN, SqlType, UTC};

mod merging;

/// 2024-02-01 00:00:00 UTC.
const DAY: i64 = 1_706_745_600_000_000;

fn events() -> Layout {
    let fields = vec![
        SqlType::Uuid.field("id", false),
        SqlType::Text.field("store", false),
        SqlType::Timestamptz.field("at", false),
        SqlType::Numeric(Some((12, 2))).field("revenue", true),
        SqlType::BigInt.field(LSN_COLUMN, false),
    ];
    Layout {
        schema: Arc::new(Schema::new(fields)),
        partition_by: Some(1),
        event_time: Some(2),
        zstd: true,
        fills: Fills::default(),
        retention_us: None,
    }
}

/// `rows` events from `lsn` on, a second apart from `from`, over ten stores; every third without revenue.
fn batch(lsn: i64, rows: i64, from: i64) -> RecordBatch {
    let range = lsn..lsn + rows;
    let ids = range.clone().map(|row| xxhash_rust::xxh3::xxh3_128(&row.to_le_bytes()).to_le_bytes());
    let revenue = range.clone().map(|row| (row % 3 != 0).then_some(i128::from(row) * 7));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(FixedSizeBinaryArray::try_from_iter(ids).unwrap()),
        Arc::new(StringViewArray::from_iter_values(range.clone().map(|row| format!("a store with a long name {}", row % 10)))),
        Arc::new(TimestampMicrosecondArray::from_iter_values((0..rows).map(|row| from + row * 1_000_000)).with_timezone(UTC)),
        Arc::new(revenue.collect::<Decimal128Array>().with_precision_and_scale(12, 2).unwrap()),
        Arc::new(Int64Array::from_iter_values(range)),
    ];
    RecordBatch::try_new(events().schema, columns).unwrap()
}

fn context() -> SessionContext {
    SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2))
}

/// All rows of the newest version that pass `filter`, in LSN order, and the plan's metrics.
async fn rows(table: &ColumnTable, filter: Option<Expr>) -> Result<(RecordBatch, BTreeMap<String, usize>)> {
    living(table, &Deleted::default(), filter).await
}

/// [`rows`] without those that are dead.
async fn living(table: &ColumnTable, deleted: &Deleted, filter: Option<Expr>) -> Result<(RecordBatch, BTreeMap<String, usize>)> {
    let context = context();
    let state = context.state();
    let filters: Vec<Expr> = filter.into_iter().collect();
    let scan = table.scan(&state, &table.version(), deleted, None, &filters, None)?;
    let mut plan: Arc<dyn ExecutionPlan> = Arc::clone(&scan);
    for filter in filters {
        let schema = datafusion::common::DFSchema::try_from(scan.schema()).unwrap();
        let predicate = state.create_physical_expr(filter, &schema).unwrap();
        plan = Arc::new(datafusion::physical_plan::filter::FilterExec::try_new(predicate, plan).unwrap());
    }
    for rule in state.physical_optimizers() {
        plan = rule.optimize(plan, state.config_options()).unwrap();
    }
    let batches = collect(Arc::clone(&plan), context.task_ctx()).await.map_err(|error| {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(at) = cause {
            if let Some(found) = at.downcast_ref::<crate::error::Error>() {
                return found.clone();
            }
            cause = at.source();
        }
        crate::error::Error::internal(error.to_string())
    })?;
    let mut metrics = BTreeMap::new();
    for metric in scan.metrics().iter().flat_map(MetricsSet::iter) {
        let sum: &mut usize = metrics.entry(metric.value().name().to_owned()).or_default();
        // Among them are points in time.
        *sum = sum.wrapping_add(metric.value().as_usize());
    }
    let all = concat_batches(&scan.schema(), &batches).unwrap();
    let lsns = all.column_by_name(LSN_COLUMN).unwrap();
    let order = arrow::compute::sort_to_indices(lsns, None, None).unwrap();
    Ok((arrow::compute::take_record_batch(&all, &order).unwrap(), metrics))
}

async fn table(dir: &TempDir) -> ColumnTable {
    ColumnTable::open(dir.path(), "public.Events", events()).await.unwrap()
}

async fn append(table: &ColumnTable, batch: RecordBatch) -> Arc<Version> {
    let flushed = table.version().flushed_lsn + batch.num_rows() as u64;
    let files = table.write(vec![batch], 0).await.unwrap();
    table.commit(files, &[], flushed).await.unwrap()
}

fn data_files(dir: &TempDir) -> Vec<PathBuf> {
    fs::read_dir(dir.path().join(DATA_DIR)).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test]
async fn every_type_comes_back_as_it_was() {
    let extremes = |values: [i64; 3]| values.map(Some).into_iter().chain([None]);
    let times = [-62_135_596_800_000_001, i64::MAX, 1];
    let interval = |months, days, nanos| Some(IntervalMonthDayNano::new(months, days, nanos));
    let mut list = ListBuilder::new(StringViewBuilder::new());
    list.append_value([Some("a text longer than twelve bytes"), None]);
    list.append_null();
    list.append_value([Some("b")]);
    list.append(true);
    let mut uuids = ListBuilder::new(FixedSizeBinaryBuilder::new(16)).with_field(match SqlType::Array(Box::new(SqlType::Uuid)).arrow() {
        arrow::datatypes::DataType::List(item) => item,
        _ => unreachable!(),
    });
    uuids.values().append_value([7; 16]).unwrap();
    uuids.append(true);
    uuids.append_null();
    uuids.append_null();
    uuids.append(true);
    let texts = || Arc::new(StringViewArray::from(vec![Some(""), Some("zoë, more than twelve bytes"), Some("{}"), None]));
    let columns: Vec<(SqlType, ArrayRef)> = vec![
        (SqlType::Boolean, Arc::new(BooleanArray::from(vec![Some(true), Some(false), Some(true), None]))),
        (SqlType::SmallInt, Arc::new(Int16Array::from(vec![Some(i16::MIN), Some(i16::MAX), Some(0), None]))),
        (SqlType::Integer, Arc::new(Int32Array::from(vec![Some(i32::MIN), Some(i32::MAX), Some(0), None]))),
        (SqlType::BigInt, Arc::new(extremes([i64::MIN, i64::MAX, 0]).collect::<Int64Array>())),
        (SqlType::Real, Arc::new(Float32Array::from(vec![Some(f32::MIN), Some(f32::INFINITY), Some(-0.0), None]))),
        (SqlType::Double, Arc::new(Float64Array::from(vec![Some(f64::MAX), Some(f64::NEG_INFINITY), Some(0.1), None]))),
        (
            SqlType::Numeric(Some((12, 2))),
            Arc::new(Decimal128Array::from(vec![Some(-999_999_999_999), Some(1), Some(0), None]).with_precision_and_scale(12, 2).unwrap()),
        ),
        (
            SqlType::Numeric(None),
            Arc::new(Decimal128Array::from(vec![Some(-(10i128.pow(37))), Some(1), Some(0), None]).with_precision_and_scale(38, 9).unwrap()),
        ),
        (SqlType::Text, texts()),
        (SqlType::Varchar(Some(40)), texts()),
        (SqlType::Jsonb, texts()),
        (SqlType::Bytea, Arc::new(BinaryArray::from(vec![Some(&b""[..]), Some(&[0xff, 0][..]), Some(b"x"), None]))),
        (
            SqlType::Uuid,
            Arc::new(
                FixedSizeBinaryArray::try_from_sparse_iter_with_size([Some([1u8; 16]), Some([255; 16]), None, None].into_iter(), 16)
                    .unwrap(),
            ),
        ),
        (SqlType::Date, Arc::new(Date32Array::from(vec![Some(-1_000_000), Some(2_000_000), Some(0), None]))),
        (SqlType::Time, Arc::new(extremes([0, 86_399_999_999, 1]).collect::<Time64MicrosecondArray>())),
        (SqlType::Timestamp, Arc::new(extremes(times).collect::<TimestampMicrosecondArray>())),
        (SqlType::Timestamptz, Arc::new(extremes(times).collect::<TimestampMicrosecondArray>().with_timezone(UTC))),
        (
            SqlType::Interval,
            Arc::new(IntervalMonthDayNanoArray::from(vec![
                interval(-14, 3, -3_600_000_000_001),
                interval(0, 0, 0),
                interval(i32::MAX, i32::MIN, i64::MAX),
                None,
            ])),
        ),
        (SqlType::Oid, Arc::new(UInt32Array::from(vec![Some(u32::MAX), Some(0), Some(1), None]))),
        (SqlType::Array(Box::new(SqlType::Text)), Arc::new(list.finish())),
        (SqlType::Array(Box::new(SqlType::Uuid)), Arc::new(uuids.finish())),
    ];
    let mut fields: Vec<_> = columns.iter().enumerate().map(|(index, (sql, _))| sql.field(&format!("c{index}"), true)).collect();
    fields.push(SqlType::BigInt.field(LSN_COLUMN, false));
    let schema = Arc::new(Schema::new(fields));
    let mut arrays: Vec<ArrayRef> = columns.into_iter().map(|(_, array)| array).collect();
    arrays.push(Arc::new(Int64Array::from(vec![0, 1, 2, 3])));
    let written = RecordBatch::try_new(Arc::clone(&schema), arrays).unwrap();

    for partition_by in [None, Some(8), Some(12), Some(3)] {
        let dir = TempDir::new().unwrap();
        let layout = Layout {
            schema: Arc::clone(&schema),
            partition_by,
            event_time: Some(16),
            zstd: partition_by.is_none(),
            fills: Fills::default(),
            retention_us: None,
        };
        let open = || ColumnTable::open(dir.path(), "types", layout.clone());
        append(&open().await.unwrap(), written.clone()).await;
        let reopened = open().await.unwrap();
        assert_eq!(rows(&reopened, None).await.unwrap().0, written);
        // Read and written again by a merge.
        let files = reopened.version().files.clone();
        let merged = reopened.merge(files, &Dead { deleted: &Deleted::default(), clean_lsn: 0, thorough: false }).await.unwrap();
        assert_eq!(merged.files.iter().map(|file| file.rows).sum::<u64>(), 4);
        assert_eq!(rows(&reopened, None).await.unwrap().0, written);
    }
}

#[tokio::test]
async fn statistics_prune_files_and_survive_the_log() {
    let dir = TempDir::new().unwrap();
    let written = table(&dir).await;
    for day in 0..4 {
        append(&written, batch(day * 1000, 1000, DAY + day * 86_400_000_000)).await;
    }
    let reopened = table(&dir).await;
    let version = reopened.version();
    assert_eq!((version.files.len(), version.flushed_lsn), (4, 4000));
    for (old, new) in written.version().files.iter().zip(&version.files) {
        assert_eq!((&old.path, old.rows, old.checksum, old.lsn_range), (&new.path, new.rows, new.checksum, new.lsn_range));
        for (old, new) in old.stats.iter().zip(&new.stats) {
            let flat = |stats: &Option<ColumnStats>| stats.as_ref().map(|stats| (stats.min.clone(), stats.max.clone(), stats.nulls));
            assert_eq!(flat(old), flat(new));
        }
    }
    let time = ScalarValue::TimestampMicrosecond(Some(DAY + 3 * 86_400_000_000 + 990_000_000), Some(UTC.into()));
    let (found, metrics) = rows(&reopened, Some(col("at").gt_eq(lit(time)))).await.unwrap();
    assert_eq!((found.num_rows(), metrics["files_total"], metrics["files_pruned"]), (10, 4, 3));
    let (found, _) = rows(&reopened, Some(col("store").eq(lit("a store with a long name 3")))).await.unwrap();
    assert_eq!(found.num_rows(), 400);
    let (found, metrics) = rows(&reopened, Some(col("store").eq(lit("b")))).await.unwrap();
    assert_eq!((found.num_rows(), metrics["files_pruned"]), (0, 4));
}

#[tokio::test]
async fn uncommitted_files_are_invisible_and_collected_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let first = table(&dir).await;
    append(&first, batch(0, 100, DAY)).await;
    let held = first.write(vec![batch(100, 100, DAY)], 0).await.unwrap();
    assert_eq!(first.collect().await.unwrap(), 0, "a write under way is kept");
    drop(held);
    let second = table(&dir).await;
    assert_eq!(rows(&second, None).await.unwrap().0, batch(0, 100, DAY));
    assert_eq!(second.collect().await.unwrap(), 1);
    assert_eq!(data_files(&dir).len(), 1);
}

#[tokio::test]
async fn damage_is_an_error_that_names_the_file() {
    let dir = TempDir::new().unwrap();
    append(&table(&dir).await, batch(0, 1000, DAY)).await;
    let path = data_files(&dir).remove(0);
    let whole = fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 3] ^= 1;
    for bytes in [&flipped[..], &whole[..whole.len() - 1]] {
        fs::write(&path, bytes).unwrap();
        let error = rows(&table(&dir).await, None).await.unwrap_err();
        assert_eq!(error.state(), SqlState::DATA_CORRUPTED);
        assert!(error.to_string().contains(path.file_name().unwrap().to_str().unwrap()), "{error}");
    }
    fs::write(&path, whole).unwrap();
    assert_eq!(rows(&table(&dir).await, None).await.unwrap().0.num_rows(), 1000);

    let entry = dir.path().join("_delta_log/00000000000000000001.json");
    let text = fs::read_to_string(&entry).unwrap();
    fs::write(&entry, text.replace("\"version\":1000", "\"version\":1001")).unwrap();
    let error = ColumnTable::open(dir.path(), "events", events()).await.unwrap_err();
    assert_eq!(error.state(), SqlState::DATA_CORRUPTED);
}

#[tokio::test]
async fn of_two_writers_one_loses() {
    let dir = TempDir::new().unwrap();
    let (one, other) = (table(&dir).await, table(&dir).await);
    append(&one, batch(0, 10, DAY)).await;
    let files = other.write(vec![batch(0, 10, DAY)], 0).await.unwrap();
    assert_eq!(other.commit(files, &[], 10).await.unwrap_err().state(), SqlState::SERIALIZATION_FAILURE);
    assert_eq!(table(&dir).await.version().files.len(), 1);
}

#[tokio::test]
async fn compaction_keeps_rows_and_checkpoints_bound_the_log() {
    let dir = TempDir::new().unwrap();
    let limits = ColumnarLimits { checkpoint_commits: 8, ..ColumnarLimits::default() };
    let open = || ColumnTable::open_with(dir.path(), "events", events(), limits.clone());
    let table = open().await.unwrap();
    let mut expected = Vec::new();
    for part in 0..40 {
        let rows = batch(part * 50, 50, DAY + (part % 2) * 86_400_000_000);
        append(&table, rows.clone()).await;
        expected.push(rows);
    }
    let expected = concat_batches(&events().schema, &expected).unwrap();
    let before = table.version();
    let nothing = Deleted::default();
    let dead = Dead { deleted: &nothing, clean_lsn: 0, thorough: false };
    while table.compact(None, 1_000_000, &dead).await.unwrap().is_some() {}
    let version = table.version();
    assert_eq!((before.files.len(), version.files.len(), version.flushed_lsn), (40, 2, 2000));
    assert_eq!(table.collect().await.unwrap(), 0, "an old version is held");
    drop(before);
    assert_eq!(table.collect().await.unwrap(), 40);
    let reopened = open().await.unwrap();
    assert_eq!(reopened.version().version, version.version);
    assert_eq!(rows(&reopened, None).await.unwrap().0, expected);
    assert!(fs::read_dir(dir.path().join(LOG_DIR)).unwrap().count() < 25);

    reopened.compact(Some(DAY + 86_400_000_000), 1_000_000, &dead).await.unwrap();
    assert_eq!(rows(&reopened, None).await.unwrap().0.num_rows(), 1000);
}

/// The version that opening found, one that was widened away before any other was asked for, and one with files of its own: each
/// is held by a reader only while the files of all are merged.
#[tokio::test]
async fn files_stay_while_any_version_that_lists_them_is_held() {
    let dir = TempDir::new().unwrap();
    let first = table(&dir).await;
    for part in 0..20 {
        append(&first, batch(part * 10, 10, DAY)).await;
    }
    let mut table = table(&dir).await;
    let found = table.version();
    for part in 20..40 {
        append(&table, batch(part * 10, 10, DAY)).await;
    }
    let before = table.version();
    let mut fields: Vec<_> = events().schema.fields().iter().cloned().collect();
    fields.insert(4, Arc::new(SqlType::Timestamp.field("seen", true)));
    table.evolve(Layout { schema: Arc::new(Schema::new(fields)), ..events() }).await.unwrap();
    let derived = table.with_files(&table.version(), table.version().files[35..].to_vec());
    let nothing = Deleted::default();
    let dead = Dead { deleted: &nothing, clean_lsn: 0, thorough: false };
    while table.compact(None, 1_000_000, &dead).await.unwrap().is_some() {}
    assert_eq!((found.files.len(), before.files.len(), table.version().files.len()), (20, 40, 1));

    for (held, left) in [(before, 26), (found, 6), (derived, 1)] {
        table.collect().await.unwrap();
        let there = data_files(&dir);
        for file in &held.files {
            assert!(there.iter().any(|path| path.ends_with(&file.path)), "{held:?}: {there:?}");
        }
        drop(held);
        assert!(table.has_let_go());
        table.collect().await.unwrap();
        assert_eq!(data_files(&dir).len(), left);
        assert!(!table.has_let_go());
    }
}

#[tokio::test]
async fn added_columns_are_null_in_older_rows() {
    let dir = TempDir::new().unwrap();
    let old = table(&dir).await;
    append(&old, batch(0, 10, DAY)).await;
    let mut fields: Vec<_> = events().schema.fields().iter().cloned().collect();
    fields.insert(4, Arc::new(SqlType::Timestamp.field("seen", true)));
    let layout = Layout { schema: Arc::new(Schema::new(fields)), ..events() };
    let mut wide = old.clone();
    wide.evolve(layout.clone()).await.unwrap();
    let mut columns = batch(10, 10, DAY).columns().to_vec();
    columns.insert(4, Arc::new(TimestampMicrosecondArray::from(vec![5; 10])));
    append(&wide, RecordBatch::try_new(Arc::clone(&layout.schema), columns).unwrap()).await;

    for table in [wide, ColumnTable::open(dir.path(), "events", layout).await.unwrap()] {
        let (found, _) = rows(&table, None).await.unwrap();
        assert_eq!((found.num_rows(), found.column(4).null_count()), (20, 10));
        let (found, _) = rows(&table, Some(col("seen").is_null())).await.unwrap();
        assert_eq!(found.num_rows(), 10);
    }
    assert_eq!(rows(&old, None).await.unwrap().0.num_columns(), 5, "the old handle reads by the old layout");
}

#[tokio::test]
async fn added_columns_have_their_fill_in_older_rows() {
    let dir = TempDir::new().unwrap();
    let old = table(&dir).await;
    append(&old, batch(0, 10, DAY)).await;
    let mut fields: Vec<_> = events().schema.fields().iter().cloned().collect();
    fields.insert(4, Arc::new(SqlType::Text.field("source", false)));
    let mut fills = Fills::default();
    fills.add("source", ScalarValue::Utf8View(Some("a value that is longer than any bound kept".to_owned())));
    let layout = Layout { schema: Arc::new(Schema::new(fields)), fills, ..events() };
    let unlogged = old.reading(layout.clone());
    let mut wide = old.clone();
    wide.evolve(layout.clone()).await.unwrap();
    let mut columns = batch(10, 10, DAY).columns().to_vec();
    columns.insert(4, Arc::new(StringViewArray::from_iter_values(std::iter::repeat_n("b", 10))));
    append(&wide, RecordBatch::try_new(Arc::clone(&layout.schema), columns).unwrap()).await;
    // Written by a handle that knows nothing of the column, after the log got it.
    append(&old, batch(20, 10, DAY)).await;

    let reopened = ColumnTable::open(dir.path(), "events", layout).await.unwrap();
    for table in [&unlogged, &wide, &reopened] {
        let (found, _) = rows(table, None).await.unwrap();
        assert_eq!((found.num_rows(), found.column(4).null_count()), (30, 0));
        for (filter, count) in [
            (col("source").eq(lit("b")), 10),
            (col("source").lt(lit("b")), 20),
            (col("source").is_null(), 0),
            (col("source").not_eq(lit("b")).and(col("store").eq(lit("a store with a long name 3"))), 2),
        ] {
            assert_eq!(rows(table, Some(filter.clone())).await.unwrap().0.num_rows(), count, "{filter}");
        }
    }
    let expected = rows(&reopened, None).await.unwrap().0;
    let nothing = Deleted::default();
    let dead = Dead { deleted: &nothing, clean_lsn: 0, thorough: false };
    while reopened.compact(None, 1_000_000, &dead).await.unwrap().is_some() {}
    assert_eq!(rows(&reopened, None).await.unwrap().0, expected, "compaction writes the value down");
}

#[tokio::test]
async fn files_written_before_their_lsns_are_known() {
    let dir = TempDir::new().unwrap();
    let table = table(&dir).await;
    append(&table, batch(0, 10, DAY)).await;
    let files = table.write(vec![batch(0, 10, DAY), batch(15, 5, DAY)], 0).await.unwrap();
    let described: Vec<String> = files.into_iter().map(|file| table.describe(&file.rebased(1_000)).unwrap()).collect();
    let files: Vec<DataFile> = described.iter().map(|text| table.described(text).unwrap()).collect();
    assert_eq!((files[0].lsn_base, files[0].lsn_range), (1_000, (1_000, 1_019)));
    let own: Vec<i64> = table.read(&files[0]).await.unwrap()[0].column(4).as_primitive::<arrow::datatypes::Int64Type>().values().to_vec();
    assert_eq!(own.iter().min(), Some(&1_000));
    table.commit(files, &[], 2_000).await.unwrap();

    let lsns = |found: &RecordBatch| found.column(4).as_primitive::<arrow::datatypes::Int64Type>().values().to_vec();
    let expected: Vec<i64> = (0..10).chain(1_000..1_010).chain(1_015..1_020).collect();
    let reopened = ColumnTable::open(dir.path(), "events", events()).await.unwrap();
    for table in [&table, &reopened] {
        assert_eq!(lsns(&rows(table, None).await.unwrap().0), expected);
        assert_eq!(lsns(&rows(table, Some(col(LSN_COLUMN).gt_eq(lit(1_005_i64)))).await.unwrap().0), expected[15..]);
        assert_eq!(rows(table, Some(col("store").eq(lit("a store with a long name 3")))).await.unwrap().0.num_rows(), 2);
    }
    let unlisted = reopened.write(vec![batch(0, 10, DAY)], 0).await.unwrap();
    reopened.discard(&unlisted).await;
    assert_eq!(reopened.collect().await.unwrap(), 0, "they are gone already");
}
