//! How a commit changes a snapshot: catalog changes, hot rows, view deltas.
//!
//! *Place*: `store::commit` publishes with it, `store::recover` replays with it, `Store::overlay` shows a transaction its own
//! rows with it. One function for all three, so that replay cannot differ from the commit.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;

use crate::catalog::bind::Binder;
use crate::catalog::{Catalog, Change, Oid, View};
use crate::error::{Error, Result};
use crate::store::snapshot::{HotBatch, Snapshot, TableState};
use crate::view;

/// Accepted rows of one table with their LSNs.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The table.
    pub table: Oid,
    /// The table's schema, without the hidden LSN.
    pub rows: RecordBatch,
    /// LSN of the first row.
    pub first_lsn: u64,
}

impl Accepted {
    /// One past the last row's LSN.
    pub fn next_lsn(&self) -> u64 {
        self.first_lsn + self.rows.num_rows() as u64
    }
}

/// Batches smaller than this are put together before the views see them: each call has a fixed cost.
const VIEW_BATCH_ROWS: usize = 4_096;

/// Applies catalog changes as of `lsn`. New views start empty with everything below `lsn` still to be backfilled.
pub fn changes(snapshot: &mut Snapshot, changes: &[Change], lsn: u64, binder: &dyn Binder) -> Result<()> {
    for change in changes {
        let catalog = Arc::new(snapshot.catalog.with(change)?);
        match change {
            Change::CreateTable(table) => {
                snapshot.tables.insert(table.oid, Arc::new(TableState::empty(Arc::clone(table))));
            }
            Change::AlterTable(table) => {
                if let Some(state) = snapshot.table_mut(table.oid) {
                    state.widen(Arc::clone(table))?;
                }
            }
            Change::DropTable(oid) => {
                let late = snapshot.catalog.table(*oid).and_then(|table| table.late_oid);
                snapshot.tables.remove(oid);
                late.map(|late| snapshot.tables.remove(&late));
            }
            Change::Truncate(oid) => {
                if let Some(state) = snapshot.table_mut(*oid) {
                    state.truncate(lsn);
                }
                for view in catalog.views_of(*oid) {
                    let emptied = compile(binder, &catalog, view)?;
                    snapshot.views.insert(view.oid, Arc::new(view::Version::empty(emptied, lsn)));
                }
            }
            Change::CreateView(view) => {
                let spec = compile(binder, &catalog, view)?;
                snapshot.views.insert(view.oid, Arc::new(view::Version::empty(spec, lsn)));
            }
            Change::ViewReady(_) => {}
            Change::AlterView(_) => {}
            Change::DropView(oid) => {
                snapshot.views.remove(oid);
            }
        }
        snapshot.catalog = catalog;
    }
    Ok(())
}

/// Compiles a view's definition against a catalog.
pub fn compile(binder: &dyn Binder, catalog: &Arc<Catalog>, view: &Arc<View>) -> Result<Arc<view::Spec>> {
    let table = catalog.table(view.table).ok_or_else(|| Error::internal(format!("view {} has lost its table", view.name)))?;
    Ok(Arc::new(view::Spec::compile(binder, catalog, table, view)?))
}

/// The deltas that accepted rows mean for the views of a snapshot, by view. Computed before the snapshot is changed, beside the
/// sync of the log. A view whose delta cannot be computed gets the error: it fails when it is read, the commit does not.
pub fn deltas(snapshot: &Snapshot, accepted: &[Accepted], threads: usize) -> HashMap<Oid, Vec<Result<view::Delta>>> {
    let mut deltas: HashMap<Oid, Vec<Result<view::Delta>>> = HashMap::new();
    let mut by_table: Vec<(Oid, Vec<&Accepted>)> = Vec::new();
    for rows in accepted.iter().filter(|rows| rows.rows.num_rows() > 0) {
        match by_table.iter_mut().find(|(table, _)| *table == rows.table) {
            Some((_, list)) => list.push(rows),
            None => by_table.push((rows.table, vec![rows])),
        }
    }
    for (table, batches) in by_table {
        let specs: Vec<Arc<view::Spec>> =
            snapshot.catalog.views_of(table).filter_map(|view| snapshot.views.get(&view.oid)).map(|version| version.spec()).collect();
        if specs.is_empty() {
            continue;
        }
        for run in runs(&batches) {
            let first_lsn = run[0].first_lsn;
            let next_lsn = run[run.len() - 1].next_lsn();
            let outcome = concat(run).map(|rows| view::apply(&specs, &rows, first_lsn, next_lsn, threads));
            match outcome {
                Ok(outcomes) => {
                    for (spec, delta) in specs.iter().zip(outcomes) {
                        if let Some(delta) = delta.transpose() {
                            deltas.entry(spec.oid()).or_default().push(delta);
                        }
                    }
                }
                Err(error) => specs.iter().for_each(|spec| deltas.entry(spec.oid()).or_default().push(Err(error.clone()))),
            }
        }
    }
    deltas
}

/// Puts small neighbours together; a large batch stays alone, so that it is not copied.
fn runs<'a>(batches: &'a [&'a Accepted]) -> Vec<&'a [&'a Accepted]> {
    let mut runs = Vec::new();
    let mut start = 0;
    let mut rows = 0;
    for (index, batch) in batches.iter().enumerate() {
        rows += batch.rows.num_rows();
        if rows >= VIEW_BATCH_ROWS || index + 1 == batches.len() {
            runs.push(&batches[start..=index]);
            start = index + 1;
            rows = 0;
        }
    }
    runs
}

fn concat(run: &[&Accepted]) -> Result<RecordBatch> {
    if let [single] = run {
        return Ok(single.rows.clone());
    }
    let schema = run[0].rows.schema();
    concat_batches(&schema, run.iter().map(|accepted| &accepted.rows)).map_err(|error| Error::internal(error.to_string()))
}

/// Adds accepted rows and their deltas.
pub fn rows(
    snapshot: &mut Snapshot,
    accepted: &[Accepted],
    hot: Vec<HotBatch>,
    deltas: HashMap<Oid, Vec<Result<view::Delta>>>,
) -> Result<()> {
    for (accepted, batch) in accepted.iter().zip(hot) {
        if let Some(table) = snapshot.table_mut(accepted.table) {
            table.push(batch)?;
        }
    }
    for (view, deltas) in deltas {
        if let Some(version) = snapshot.views.get_mut(&view) {
            for delta in deltas {
                *version = Arc::new(match delta.and_then(|delta| version.with_delta(delta)) {
                    Ok(next) => next,
                    Err(error) => version.broken(error),
                });
            }
        }
    }
    Ok(())
}
