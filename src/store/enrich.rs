//! What accepted rows are joined with: rows of plain tables, for the views that look them up.
//!
//! *Place*: `store::commit` and `Store::overlay` find it before the views see the rows, `store::backfill` for rows that were there
//! before; `store::recover` reads it from the log.
//!
//! *Invariants*: (1) a row is joined with the plain tables as of the snapshot that its commit extends, its own transaction's rows
//! among them; (2) what was found goes into the commit's log record, so that a replay gives the same whatever has become of the
//! plain tables since.
//!
//! A table is put in order for looking up once for each of its versions.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use arrow::record_batch::RecordBatch;
use datafusion::physical_plan::collect;
use parking_lot::Mutex;

use crate::catalog::{Catalog, Maintenance, Oid, TableKind};
use crate::error::{Error, Result, SqlState};
use crate::store::apply::Accepted;
use crate::store::backfill::unreadable;
use crate::store::snapshot::TableState;
use crate::store::{Parts, Snapshot};
use crate::view::{Join, Lookup, Step};

/// What some views' joins found for the rows of one batch.
#[derive(Clone, Debug)]
pub struct Found {
    /// Views whose joins are the same.
    pub views: Vec<Oid>,
    /// Row numbers and columns: see [`Join::find`].
    pub rows: RecordBatch,
}

/// Plain tables in order for looking up, by [`Step::identity`]: each as of one version of the table.
#[derive(Debug, Default)]
pub struct Lookups {
    known: Mutex<Known>,
}

type Known = HashMap<u64, (Weak<TableState>, Arc<Lookup>)>;

impl Lookups {
    /// What a join looks up in, as of a snapshot. With `keep` it is kept for the next call.
    pub fn of(&self, parts: &Parts, snapshot: &Snapshot, join: &Join, keep: bool) -> Result<Vec<Arc<Lookup>>> {
        join.steps().iter().map(|step| self.one(parts, snapshot, step, keep)).collect()
    }

    fn one(&self, parts: &Parts, snapshot: &Snapshot, step: &Step, keep: bool) -> Result<Arc<Lookup>> {
        let gone = || Error::internal("a table that a view joins is gone");
        let table = snapshot.tables.get(&step.table).ok_or_else(gone)?;
        if let Some((version, lookup)) = self.known.lock().get(&step.identity())
            && std::ptr::eq(version.as_ptr(), Arc::as_ptr(table))
        {
            return Ok(Arc::clone(lookup));
        }
        within_limit(parts, table, 0)?;
        let lookup = Arc::new(step.lookup(&table.table.schema(), &rows_of(parts, table)?)?);
        if keep {
            let mut known = self.known.lock();
            known.retain(|_, (version, _)| version.strong_count() > 0);
            known.insert(step.identity(), (Arc::downgrade(table), Arc::clone(&lookup)));
        }
        Ok(lookup)
    }
}

/// Refuses more rows of a joined table than are kept in order for looking up.
pub fn within_limit(parts: &Parts, table: &TableState, added: usize) -> Result<()> {
    let rows_max = parts.limits.view.join_rows_max;
    let rows = table.hot_rows() as u64 + table.files().iter().map(|file| file.rows).sum::<u64>() + added as u64;
    if rows <= rows_max as u64 {
        return Ok(());
    }
    parts.metrics.limit_hit("limits.view.join_rows_max");
    let message = format!("table \"{}\" has too many rows to be joined in materialized views", table.table.name);
    Err(Error::new(SqlState::CONFIGURATION_LIMIT_EXCEEDED, message)
        .detail(format!("A table that a view looks up can have {rows_max} rows."))
        .hint("Raise limits.view.join_rows_max or the memory of the server."))
}

/// All rows of a plain table, its declared columns.
fn rows_of(parts: &Parts, table: &TableState) -> Result<Vec<RecordBatch>> {
    let declared: Vec<usize> = (0..table.table.columns.len()).collect();
    let mut rows = Vec::new();
    let session = parts.binder.session_state();
    if let Some(scan) = table.scan_cold(&session, Some(&declared), &[], None)? {
        // On a thread of its own: the caller may be a worker of a runtime, which must not wait for one.
        let read = || parts.spawner.cpu_handle().block_on(collect(scan, session.task_ctx()));
        let joined = std::thread::scope(|scope| scope.spawn(read).join());
        let read = joined.map_err(|_| Error::internal("reading a joined table panicked"))?.map_err(unreadable)?;
        let schema = table.table.schema();
        for batch in read {
            rows.push(RecordBatch::try_new(Arc::clone(&schema), batch.columns().to_vec()).map_err(unfit)?);
        }
    }
    for batch in &table.hot {
        rows.push(batch.rows().project(&declared).map_err(unfit)?);
    }
    Ok(rows)
}

fn unfit(error: arrow::error::ArrowError) -> Error {
    Error::internal(format!("rows of a joined table do not fit: {error}"))
}

/// Whether some view's state looks a plain table up.
pub fn is_joined(catalog: &Catalog, table: Oid) -> bool {
    let plain = catalog.table(table).is_some_and(|table| table.kind == TableKind::Plain);
    plain && catalog.views().any(|view| view.maintenance == Maintenance::State && view.reads(table))
}

/// The different joins of a table's views, with the views that have them.
fn joins_of(snapshot: &Snapshot, table: Oid) -> Vec<(Arc<Join>, Vec<Oid>)> {
    let mut joins: Vec<(Arc<Join>, Vec<Oid>)> = Vec::new();
    for view in snapshot.catalog.views_of(table) {
        let Some(join) = snapshot.views.get(&view.oid).and_then(|version| version.spec.join()) else { continue };
        match joins.iter_mut().find(|(known, _)| known.identity() == join.identity()) {
            Some((_, views)) => views.push(view.oid),
            None => joins.push((Arc::clone(join), vec![view.oid])),
        }
    }
    joins
}

/// 54000 for a table whose rows views join, or that views look up: what was joined goes into the log with the rows, and a table that
/// is looked up has to fit memory.
pub fn refuse_staging(snapshot: &Snapshot, table: Oid) -> Result<()> {
    if joins_of(snapshot, table).is_empty() && !is_joined(&snapshot.catalog, table) {
        return Ok(());
    }
    Err(Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "the statement's rows are too large")
        .detail("A materialized view joins them, so they have to fit the memory of one statement.")
        .hint("Split it into several statements."))
}

/// Whether any of the rows are of a table that views join.
pub fn is_needed(snapshot: &Snapshot, accepted: &[Accepted]) -> bool {
    accepted.iter().any(|rows| !joins_of(snapshot, rows.table).is_empty())
}

/// Looks up for accepted rows, over a snapshot that has the plain tables' rows as they are to be seen.
pub fn find(parts: &Parts, lookups: &Lookups, snapshot: &Snapshot, accepted: &mut [Accepted], keep: bool) -> Result<()> {
    for batch in accepted {
        for (join, views) in joins_of(snapshot, batch.table) {
            let rows = join.find(&batch.rows, &lookups.of(parts, snapshot, &join, keep)?)?;
            if rows.num_rows() > parts.limits.store.group_rows_max.max(64 * batch.rows.num_rows()) {
                parts.metrics.limit_hit("limits.store.group_rows_max");
                return Err(Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "too many rows match in the join of a materialized view")
                    .detail(format!("{} rows have {} matches.", batch.rows.num_rows(), rows.num_rows()))
                    .hint("Give the joined table a key that is unique."));
            }
            if rows.num_rows() > 0 {
                batch.found.push(Found { views, rows });
            }
        }
    }
    Ok(())
}
