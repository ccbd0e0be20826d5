//! CHECK MATERIALIZED VIEW.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, Int64Array, NullArray, RecordBatch, RecordBatchOptions, StringViewArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use datafusion::execution::SendableRecordBatchStream;
use futures::TryStreamExt;
use tokio_util::sync::CancellationToken;

use crate::catalog::{Catalog, Column, Maintenance, Oid, View};
use crate::command::{Response, relation};
use crate::error::{Error, Result};
use crate::ingest::ledger::REJECTED_EVENTS;
use crate::query::route::ROUTE;
use crate::query::{Context, error, provider};
use crate::session::{Session, engine_error};
use crate::sql::Statement;
use crate::sql::statement::{Name, quote_identifier};
use crate::store::Snapshot;
use crate::types::{SqlType, UTC};
use crate::view::Spec;

/// Output columns, for Describe.
pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        SqlType::Text.field("view", false),
        SqlType::BigInt.field("groups", false),
        SqlType::BigInt.field("differing", false),
        SqlType::Boolean.field("ok", false),
        SqlType::BigInt.field("applied", true),
        SqlType::BigInt.field("late", true),
        SqlType::BigInt.field("filtered", true),
        SqlType::BigInt.field("rejected", true),
        SqlType::BigInt.field("raw", true),
        SqlType::Text.field("note", true),
    ]))
}

/// What became of the rows that were sent to a view's table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// In the table, and the view counts them.
    applied: i64,
    /// In the table's late companion.
    late: i64,
    /// In the table, and the view's WHERE leaves them out.
    filtered: i64,
    /// In `verus.rejected_events`.
    rejected: i64,
    /// All, counted apart.
    raw: i64,
}

/// `CHECK MATERIALIZED VIEW v`: runs the defining query on the snapshot that the view is read from and counts the rows that
/// only one of them has; and accounts for every row that was sent to the view's table. A refreshed view is refreshed first.
pub async fn execute(session: &mut Session, name: &Name, cancel: CancellationToken) -> Result<Response> {
    let view = relation::view(&session.snapshot()?.catalog, name)?;
    if view.maintenance == Maintenance::Refreshed {
        session.services.store.refresh(view.oid).await?;
    }
    let mut context = session.context()?;
    // A view's query is one in UTC, whatever the session shows times in.
    context.time_zone = UTC.to_owned();
    // The defining query must not be answered from the view that it is compared with.
    Arc::make_mut(&mut context.settings).insert(ROUTE.to_owned(), "scan".to_owned());
    let joins = context.snapshot.views.get(&view.oid).is_some_and(|version| version.spec.join().is_some());
    let removed = removed(&context.snapshot, &view);
    let mut check = Check { session, context, cancel };
    let (groups, differing) = check.compare(&view, &removed).await?;
    let counts = check.account(&view).await?;
    let adds_up = counts.is_none_or(|counts| counts.applied + counts.late + counts.filtered + counts.rejected == counts.raw);
    let count = |of: fn(&Counts) -> i64| Arc::new(Int64Array::from(vec![counts.as_ref().map(of)])) as ArrayRef;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringViewArray::from_iter_values([view.name.as_str()])),
        Arc::new(Int64Array::from(vec![groups])),
        Arc::new(Int64Array::from(vec![differing])),
        Arc::new(BooleanArray::from(vec![differing == 0 && adds_up])),
        count(|counts| counts.applied),
        count(|counts| counts.late),
        count(|counts| counts.filtered),
        count(|counts| counts.rejected),
        count(|counts| counts.raw),
        Arc::new(StringViewArray::from_iter([note(&view, joins, &removed)])),
    ];
    let batch = RecordBatch::try_new(schema(), columns).map_err(|error| Error::internal(error.to_string()))?;
    Ok(Response::of_batch(batch, "CHECK"))
}

/// What one has to know to read the outcome.
fn note(view: &View, joins: bool, removed: &Removed) -> Option<String> {
    let removed = match removed {
        Removed::Nothing => None,
        Removed::Before { shown, .. } => {
            Some(format!("rows were removed by retention, and the view keeps their windows: compared from {shown} on"))
        }
        Removed::Anywhere => {
            Some("rows were removed by retention, and the view still counts them: its groups were not compared".to_owned())
        }
    };
    let notes: Vec<String> = [removed, nature(view, joins)].into_iter().flatten().collect();
    (!notes.is_empty()).then(|| notes.join("; "))
}

fn nature(view: &View, joins: bool) -> Option<String> {
    match (view.maintenance, view.from_lsn) {
        _ if joins => Some("rows are joined as of their arrival: compared with the joined tables as they are now".to_owned()),
        (Maintenance::Refreshed, _) => Some("a refreshed view: refreshed, then compared".to_owned()),
        (Maintenance::State, from_lsn @ 1..) => Some(format!("made from the rows from LSN {from_lsn} on: compared with those")),
        _ => None,
    }
}

/// What retention has removed of the rows that a view counts.
enum Removed {
    Nothing,
    /// Only rows of groups below a bound in one of its columns.
    Before {
        column: usize,
        shown: String,
    },
    /// Rows of any group.
    Anywhere,
}

/// What a view still counts that its query cannot read any more. A view over another reads that one's groups, which are all there.
fn removed(snapshot: &Snapshot, view: &View) -> Removed {
    let reads_table = view.from_lsn > 0 || view.sources.is_empty() || view.sources.iter().any(|source| source.oid == view.table);
    let dropped_us = snapshot.tables.get(&view.table).and_then(|table| table.dropped_us);
    let (Some(version), Some(dropped_us), true) = (snapshot.views.get(&view.oid), dropped_us, reads_table) else { return Removed::Nothing };
    let bound = version.spec.whole_from(dropped_us);
    match bound.and_then(|(column, from_us)| Some((column, chrono::DateTime::from_timestamp_micros(from_us)?))) {
        Some((column, from)) => Removed::Before { column, shown: from.format("%Y-%m-%d %H:%M:%S%.f+00").to_string() },
        None => Removed::Anywhere,
    }
}

/// A column as it is compared. The last digits of a floating-point value depend on the order in which its parts were added: seven count.
fn compared((index, column): (usize, &Column)) -> String {
    match column.sql_type {
        SqlType::Real | SqlType::Double => {
            format!(
                "CASE WHEN c{index} BETWEEN float8 '-1e38' AND float8 '1e38' THEN (c{index}::real)::float8 ELSE c{index} END AS c{index}"
            )
        }
        _ => format!("c{index}"),
    }
}

struct Check<'a> {
    session: &'a mut Session,
    context: Context,
    cancel: CancellationToken,
}

impl Check<'_> {
    /// The view's rows, and how many differ from its query's.
    async fn compare(&mut self, view: &View, removed: &Removed) -> Result<(i64, i64)> {
        let own = quote_identifier(&view.name);
        let below = if view.from_lsn > 0 { shadows(&self.context.snapshot.catalog, view) } else { String::new() };
        let names: Vec<String> = (0..view.columns.len()).map(|index| format!("c{index}")).collect();
        let whole = match removed {
            Removed::Nothing => String::new(),
            Removed::Before { column, shown } => format!(" WHERE c{column}::timestamptz >= timestamptz '{shown}'"),
            Removed::Anywhere => return Ok((self.number(&format!("SELECT count(*) FROM {own}"), (view.table, 0)).await?, 0)),
        };
        let (names, compared) = (names.join(", "), view.columns.iter().enumerate().map(compared).collect::<Vec<_>>().join(", "));
        // Rows are compared as sets, their numbers apart: a row that one side has twice shows in the counts. By one grouping, which
        // spills, and reads either side once.
        let query = format!(
            "WITH kept AS (SELECT {compared} FROM (SELECT * FROM {own}) AS k ({names}){whole}), \
             {below}expected AS (SELECT {compared} FROM ({query}) AS e ({names}){whole}), \
             sides AS (SELECT {names}, 1 AS of_kept, 0 AS of_expected FROM kept \
             UNION ALL SELECT {names}, 0, 1 FROM expected), \
             counted AS (SELECT {names}, sum(of_kept) AS k, sum(of_expected) AS e FROM sides GROUP BY {names}) \
             SELECT coalesce(sum(k), 0)::bigint, coalesce(sum(e), 0)::bigint, \
             count(*) FILTER (WHERE e = 0), count(*) FILTER (WHERE k = 0) FROM counted",
            query = view.query
        );
        let counts = self.numbers(&query, (view.table, view.from_lsn)).await?;
        let [groups, expected, surplus, missing] = counts[..] else { return Err(Error::internal("the check gave no counts")) };
        Ok((groups, surplus.max(missing).max((groups - expected).abs())))
    }

    /// What became of the rows sent to the table of a view with aggregate state; of another one, to the table of the view below it.
    async fn account(&mut self, view: &View) -> Result<Option<Counts>> {
        let snapshot = Arc::clone(&self.context.snapshot);
        let mut lower = view.oid;
        while let Some(derived) = snapshot.catalog.view(lower).filter(|view| view.maintenance == Maintenance::Derived) {
            lower = derived.sources.first().map_or(0, |source| source.oid);
        }
        let Some(version) = snapshot.views.get(&lower) else { return Ok(None) };
        let spec = &version.spec;
        if spec.join().is_some() {
            // Whether a row counts depends on what it was joined with.
            return Ok(None);
        }
        let Some(table) = snapshot.catalog.table(spec.view.table) else { return Ok(None) };
        let since = (table.oid, spec.view.from_lsn);
        let name = quote_identifier(&table.name);
        let mut counts = Counts::default();
        let accepted = self.number(&format!("SELECT count(*) FROM {name}"), since).await?;
        if let Some(late) = table.late_oid.and_then(|late| snapshot.catalog.table(late)) {
            let query = format!("SELECT count(*) FROM {}", quote_identifier(&late.name));
            counts.late = self.number(&query, (late.oid, spec.view.from_lsn)).await?;
        }
        if let Some(rejected) = snapshot.catalog.table_named(REJECTED_EVENTS) {
            let query = format!("SELECT count(*) FROM {REJECTED_EVENTS} WHERE table_name = '{}'", table.name.replace('\'', "''"));
            counts.rejected = self.number(&query, (rejected.oid, spec.view.from_lsn)).await?;
        }
        let (applied, seen) = self.applied(spec, &name, since).await?;
        (counts.applied, counts.filtered) = (applied, seen - applied);
        counts.raw = accepted + counts.late + counts.rejected;
        Ok(Some(counts))
    }

    /// How many of the table's rows the view counts, of how many.
    async fn applied(&mut self, spec: &Spec, table: &str, since: (Oid, u64)) -> Result<(i64, i64)> {
        let columns = &self.context.snapshot.catalog.table(since.0).ok_or_else(|| Error::internal("the table is gone"))?.columns;
        let read = spec.filter_columns();
        let names: Vec<String> =
            read.iter().filter_map(|column| columns.get(*column)).map(|column| quote_identifier(&column.name)).collect();
        let width = columns.len();
        let list = if names.is_empty() { "1 AS one".to_owned() } else { names.join(", ") };
        let mut rows = self.run(&format!("SELECT {list} FROM {table}"), since).await?;
        let (mut applied, mut seen) = (0, 0);
        while let Some(batch) = rows.try_next().await.map_err(engine_error)? {
            applied += spec.counted(&in_place(&batch, &read, width)?)? as i64;
            seen += batch.num_rows() as i64;
        }
        Ok((applied, seen))
    }

    async fn number(&mut self, query: &str, since: (Oid, u64)) -> Result<i64> {
        self.numbers(query, since).await?.first().copied().ok_or_else(|| Error::internal("the check gave no count"))
    }

    /// The one row of a query over a table's rows from an LSN on.
    async fn numbers(&mut self, query: &str, since: (Oid, u64)) -> Result<Vec<i64>> {
        let batches: Vec<RecordBatch> = self.run(query, since).await?.try_collect().await.map_err(engine_error)?;
        let row = batches.iter().find(|batch| batch.num_rows() == 1).ok_or_else(|| Error::internal("the check gave no row"))?;
        let numbers = row.columns().iter().map(|column| column.as_primitive_opt::<Int64Type>().map(|values| values.value(0)));
        numbers.collect::<Option<_>>().ok_or_else(|| Error::internal("the check gave no number"))
    }

    async fn run(&mut self, query: &str, (table, lsn): (Oid, u64)) -> Result<SendableRecordBatchStream> {
        let engine = Arc::clone(&self.session.services.engine);
        let statement = Statement::Query(Box::new(crate::sql::parse_query(query)?));
        let mut bound = engine.bind(&self.context, &statement, &[])?;
        if lsn > 0 {
            bound.plan = provider::since(bound.plan, table, lsn).map_err(error::from_datafusion)?;
        }
        engine.run(&self.context, &bound, &[], self.cancel.clone()).await
    }
}

/// The views below one as CTEs over the table, lowest first: what they are over the rows that count for it.
fn shadows(catalog: &Catalog, view: &View) -> String {
    let lower = view.sources.iter().filter_map(|source| catalog.view(source.oid));
    let shadow = |lower: &Arc<View>| {
        let columns: Vec<String> = lower.columns.iter().map(|column| quote_identifier(&column.name)).collect();
        format!("{}{} ({}) AS ({}), ", shadows(catalog, lower), quote_identifier(&lower.name), columns.join(", "), lower.query)
    };
    lower.map(shadow).collect()
}

/// Columns of a table, in a batch as wide as the table.
fn in_place(batch: &RecordBatch, columns: &[usize], width: usize) -> Result<RecordBatch> {
    let rows = batch.num_rows();
    let absent: ArrayRef = Arc::new(NullArray::new(rows));
    let mut arrays = vec![absent; width];
    for (column, array) in columns.iter().zip(batch.columns()) {
        arrays[*column] = Arc::clone(array);
    }
    let fields: Vec<Field> = arrays
        .iter()
        .enumerate()
        .map(|(index, array)| {
            let data_type: &DataType = array.data_type();
            Field::new(format!("c{index}"), data_type.clone(), true)
        })
        .collect();
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options).map_err(|error| Error::internal(error.to_string()))
}
