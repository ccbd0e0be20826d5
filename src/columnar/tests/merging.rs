//! Merging over dates and in slices: whatever is written, deleted, merged, expired and reopened, in any order, a scan gives each
//! living row once, with any filter, and merging comes to an end.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const DAY_US: i64 = 86_400_000_000;

/// What the table should hold: LSN to store and time.
type Model = BTreeMap<i64, (Option<String>, i64)>;

fn layout(retention_us: Option<i64>) -> Layout {
    let fields = vec![
        SqlType::Text.field("store", true),
        SqlType::Timestamptz.field("at", false),
        SqlType::Text.field("note", false),
        SqlType::BigInt.field(LSN_COLUMN, false),
    ];
    Layout {
        schema: Arc::new(Schema::new(fields)),
        partition_by: Some(0),
        event_time: Some(1),
        zstd: true,
        fills: Fills::default(),
        retention_us,
    }
}

/// Stores of which some have no name, and some names that only differ beyond what statistics keep.
fn store(number: u64) -> Option<String> {
    match number {
        0 => None,
        1..4 => Some(format!("a name that is longer than what is kept of a bound {number}")),
        _ => Some(format!("store {number:03}")),
    }
}

fn written(layout: &Layout, rows: &Model) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(rows.values().map(|(store, _)| store.as_deref()).collect::<StringViewArray>()),
        Arc::new(TimestampMicrosecondArray::from_iter_values(rows.values().map(|(_, at)| *at)).with_timezone(UTC)),
        Arc::new(StringViewArray::from_iter_values(
            rows.keys().map(|lsn| format!("{:x}", lsn.wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64))),
        )),
        Arc::new(Int64Array::from_iter_values(rows.keys().copied())),
    ];
    RecordBatch::try_new(Arc::clone(&layout.schema), columns).unwrap()
}

struct Case {
    dir: TempDir,
    limits: ColumnarLimits,
    layout: Layout,
    table: ColumnTable,
    random: StdRng,
    stores: u64,
    rows: Model,
    deleted: Deleted,
    next_lsn: i64,
    rows_max: u64,
}

impl Case {
    async fn new(seed: u64) -> Case {
        let mut random = StdRng::seed_from_u64(seed);
        let limits = ColumnarLimits {
            file_bytes_max: [4_096, 64 * 1024 * 1024][random.random_range(0..2)],
            row_group_rows: random.random_range(50..600),
            page_rows: random.random_range(8..64),
            date_rows_min: random.random_range(0..80),
            span_days_max: [1, 4, 16, 32][random.random_range(0..4)],
            span_rows_max: random.random_range(500..5_000),
            merge_rows_max: random.random_range(500..20_000),
            settle_ms: [0, i64::MAX][random.random_range(0..2)],
            ..ColumnarLimits::default()
        };
        let dir = TempDir::new().unwrap();
        let layout = layout(random.random_bool(0.3).then_some(48 * DAY_US));
        let table = ColumnTable::open_with(dir.path(), "merging", layout.clone(), limits.clone()).await.unwrap();
        let (stores, rows_max) = (random.random_range(1..30), random.random_range(100..1_500));
        let (rows, deleted) = (Model::new(), Deleted::default());
        Case { dir, limits, layout, table, random, stores, rows, deleted, next_lsn: 1, rows_max }
    }

    async fn append(&mut self) {
        let (from, days) = (self.random.random_range(0..60), [1, 1, 3, 40][self.random.random_range(0..4)]);
        let mut rows = Model::new();
        for _ in 0..self.random.random_range(1..400) {
            let at = DAY + from * DAY_US + self.random.random_range(0..days * DAY_US);
            rows.insert(self.next_lsn, (store(self.random.random_range(0..self.stores)), at));
            self.next_lsn += 1;
        }
        let files = self.table.write(vec![written(&self.layout, &rows)], self.next_lsn as u64).await.unwrap();
        self.table.commit(files, &[], self.next_lsn as u64).await.unwrap();
        self.rows.extend(rows);
    }

    fn delete(&mut self) {
        let part = [0.002, 0.3][self.random.random_range(0..2)];
        let lsns: Vec<i64> = self.rows.keys().copied().filter(|_| self.random.random_bool(part)).collect();
        lsns.iter().for_each(|lsn| drop(self.rows.remove(lsn)));
        let committed = self.next_lsn as u64;
        self.next_lsn += 1;
        self.deleted.add(Arc::new(lsns.into_iter().map(|lsn| lsn as u64).collect::<LsnSet>()), committed);
    }

    /// A step of compaction, perhaps with retention. Whether there is more to do.
    async fn compact(&mut self, thorough: bool) -> bool {
        let newest = self.rows.values().map(|(_, at)| *at).max();
        let retain_from = newest.zip(self.layout.retention_us).map(|(newest, us)| newest - us);
        if let Some(until) = retain_from.filter(|from| self.table.expires(*from).is_some()) {
            let kept = |file: &&Arc<DataFile>| compact::last_time(&self.layout, file).is_none_or(|last| last >= until);
            let version = self.table.version();
            let files: Vec<_> = version.files.iter().filter(kept).collect();
            let mut left = Model::new();
            for file in files {
                for batch in self.table.read(file).await.unwrap() {
                    let lsns = batch.column(3).as_primitive::<arrow::datatypes::Int64Type>().values();
                    left.extend(lsns.iter().filter_map(|lsn| Some((*lsn, self.rows.get(lsn)?.clone()))));
                }
            }
            assert!(self.rows.iter().all(|(lsn, (_, at))| *at < until || left.contains_key(lsn)), "rows within retention stay");
            self.rows = left;
        }
        let dead = Dead { deleted: &self.deleted, clean_lsn: self.next_lsn as u64, thorough };
        let done = self.table.compact(retain_from, self.rows_max, &dead).await.unwrap().is_some();
        self.deleted.forget_absent(&self.table.version().files);
        done || self.table.is_merging().await
    }

    async fn reopen(&mut self) {
        self.table = ColumnTable::open_with(self.dir.path(), "merging", self.layout.clone(), self.limits.clone()).await.unwrap();
        self.table.collect().await.unwrap();
        assert_eq!(data_files(&self.dir).len(), self.table.version().files.len());
    }

    async fn check(&mut self) {
        let (found, _) = living(&self.table, &self.deleted, None).await.unwrap();
        assert_eq!(found, written(&self.layout, &self.rows));
        for _ in 0..4 {
            let name = store(self.random.random_range(0..self.stores + 1));
            let from = DAY + self.random.random_range(-1..60) * DAY_US;
            let to = from + [1, 10, 100][self.random.random_range(0..3)] * DAY_US;
            let time = |at: i64| lit(ScalarValue::TimestampMicrosecond(Some(at), Some(UTC.into())));
            let (filter, expected): (Expr, Model) = {
                let of_store = name.as_deref().map_or_else(|| col("store").is_null(), |name| col("store").eq(lit(name)));
                let within = col("at").gt_eq(time(from)).and(col("at").lt(time(to)));
                let kind = self.random.random_range(0..3);
                let matches = |row: &(Option<String>, i64)| (kind == 1 || row.0 == name) && (kind == 0 || (from..to).contains(&row.1));
                let expected = self.rows.iter().filter(|(_, row)| matches(row)).map(|(lsn, row)| (*lsn, row.clone())).collect();
                ([of_store.clone(), within.clone(), of_store.and(within)][kind].clone(), expected)
            };
            let (found, _) = living(&self.table, &self.deleted, Some(filter.clone())).await.unwrap();
            assert_eq!(found, written(&self.layout, &expected), "{filter}");
        }
    }

    /// Until nothing is left to do.
    async fn settle(&mut self) {
        let mut steps = 0;
        while self.compact(true).await {
            steps += 1;
            assert!(steps < 2_000, "merging comes to an end: {:?}", self.table.version().files.len());
        }
    }
}

#[tokio::test]
async fn whatever_is_merged_each_living_row_is_there_once() {
    for seed in 0..8 {
        let mut case = Case::new(seed).await;
        for _ in 0..50 {
            match case.random.random_range(0..12) {
                0..4 => case.append().await,
                4 => case.delete(),
                5 => case.reopen().await,
                6 => case.check().await,
                7 => drop(case.table.collect().await.unwrap()),
                _ => drop(case.compact(false).await),
            }
        }
        case.check().await;
        case.settle().await;
        case.check().await;
        case.reopen().await;
        case.check().await;
        assert!(case.deleted.is_empty() || case.table.version().files.iter().all(|file| !case.deleted.meets(file)));
    }
}

/// A quarter of a year of 40 stores: a store lies in a few files, and each of its windows in no more than two.
#[tokio::test]
async fn a_partition_comes_to_lie_in_few_files() {
    let dir = TempDir::new().unwrap();
    let limits = ColumnarLimits { page_rows: 64, row_group_rows: 1_000, settle_ms: 0, ..ColumnarLimits::default() };
    let layout = layout(None);
    let table = ColumnTable::open_with(dir.path(), "merging", layout.clone(), limits).await.unwrap();
    let mut lsn = 0;
    for day in 0..90 {
        let rows: Model =
            (lsn..lsn + 400).map(|lsn| (lsn, (store(10 + lsn as u64 % 40), DAY + day * DAY_US + lsn % 400 * 1_000_000))).collect();
        lsn += 400;
        let files = table.write(vec![written(&layout, &rows)], 0).await.unwrap();
        table.commit(files, &[], lsn as u64).await.unwrap();
    }
    let of_store = || col("store").eq(lit("store 017"));
    let files_read = |metrics: &BTreeMap<String, usize>| metrics["files_total"] - metrics["files_pruned"];
    let (before, metrics) = rows(&table, Some(of_store())).await.unwrap();
    assert_eq!((before.num_rows(), files_read(&metrics)), (900, 90));
    let dead = Dead { deleted: &Deleted::default(), clean_lsn: 0, thorough: false };
    let mut versions = 0;
    loop {
        let done = table.compact(None, 4_000, &dead).await.unwrap().is_some();
        if !done && !table.is_merging().await {
            break;
        }
        versions += usize::from(done);
    }
    let (after, metrics) = rows(&table, Some(of_store())).await.unwrap();
    assert_eq!(after, before);
    assert!(files_read(&metrics) <= 4, "{metrics:?}");
    assert!(versions <= 4, "each row is rewritten once: {versions}");
    assert!(table.version().files.iter().all(|file| file.rows <= 6_000), "a step holds no more than it may");
}
