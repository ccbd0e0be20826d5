//! How a commit changes a snapshot: catalog changes, deleted rows, hot rows, view deltas.
//!
//! *Place*: `store::commit` publishes with it, `store::recover` replays with it, `Store::overlay` shows a transaction its own
//! rows with it. One function for all three, so that replay cannot differ from the commit.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;

use crate::catalog::bind::Binder;
use crate::catalog::{Catalog, Change, Maintenance, Oid, View};
use crate::columnar::LsnSet;
use crate::error::{Error, Result};
use crate::store::backfill::Rebuilt;
use crate::store::enrich::Found;
use crate::store::snapshot::{HotBatch, Snapshot, TableState};
use crate::store::staging::Files;
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
    /// What views join the rows with.
    pub found: Vec<Found>,
    /// How many of them were behind the watermark and accepted all the same.
    pub very_late: u64,
}

impl Accepted {
    /// One past the last row's LSN.
    pub fn next_lsn(&self) -> u64 {
        self.first_lsn + self.rows.num_rows() as u64
    }
}

/// Batches smaller than this are put together before the views see them: each call has a fixed cost.
const VIEW_BATCH_ROWS: usize = 4_096;

/// What applying changes needs besides the snapshot.
#[derive(Clone, Debug)]
pub struct Tools {
    /// Binds view definitions.
    pub binder: Arc<dyn Binder>,
    /// Where view blocks live.
    pub blocks: Arc<view::Blocks>,
}

/// What changes have put out of use; the background work deletes what it holds on disk.
#[derive(Clone, Debug, Default)]
pub struct Retired {
    /// State of dropped and emptied views.
    pub views: Vec<Arc<view::Version>>,
    /// Results of dropped refreshed views.
    pub results: Vec<Arc<view::Stored>>,
    /// Dropped and emptied tables.
    pub tables: Vec<Arc<TableState>>,
}

impl Retired {
    /// Adds what more has been put out of use.
    pub fn add(&mut self, more: Retired) {
        self.views.extend(more.views);
        self.results.extend(more.results);
        self.tables.extend(more.tables);
    }
}

/// Applies catalog changes as of `lsn`. New views start empty, with everything below `lsn` still to be backfilled.
pub fn changes(snapshot: &mut Snapshot, changes: &[Change], lsn: u64, tools: &Tools) -> Result<Retired> {
    let mut retired = Retired::default();
    for change in changes {
        let change = &placed(change, lsn);
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
                retired.tables.extend([Some(*oid), late].into_iter().flatten().filter_map(|oid| snapshot.tables.remove(&oid)));
            }
            Change::Truncate(oid) => {
                if let Some(state) = snapshot.tables.get_mut(oid) {
                    retired.tables.push(Arc::clone(state));
                    Arc::make_mut(state).truncate(lsn);
                }
                for view in catalog.views_of(*oid) {
                    // In a replay, state that was stored after the truncation stays.
                    if snapshot.views.get(&view.oid).is_some_and(|version| version.applied_lsn() <= lsn) {
                        let emptied =
                            Arc::new(view::Version::new(compile(&*tools.binder, &catalog, view)?, &tools.blocks).replaced_at(lsn));
                        retired.views.extend(snapshot.views.insert(view.oid, emptied));
                    }
                }
            }
            Change::CreateView(view) if view.maintenance != Maintenance::State => {
                let recomputed = view::Recomputed::bind(&*tools.binder, &catalog, view)?;
                snapshot.recomputed.insert(view.oid, Arc::new(recomputed));
            }
            Change::CreateView(view) => {
                let spec = compile(&*tools.binder, &catalog, view)?;
                snapshot.views.insert(view.oid, Arc::new(view::Version::new(spec, &tools.blocks).replaced_at(lsn)));
            }
            Change::ViewReady(_) | Change::AlterView(_) | Change::CreateIngestToken(_) | Change::DropIngestToken(_) => {}
            // They have no rows: `alert` looks at the catalog.
            Change::CreateChannel(_) | Change::DropChannel(_) => {}
            Change::CreateAlert(_) | Change::AlterAlert(_) | Change::DropAlert(_) => {}
            Change::CreateSource(_) | Change::AlterSource(_) | Change::DropSource(_) => {}
            Change::DropView(oid) => {
                retired.views.extend(snapshot.views.remove(oid));
                retired.results.extend(snapshot.recomputed.remove(oid).and_then(|recomputed| recomputed.result.clone()));
            }
        }
        snapshot.catalog = catalog;
    }
    Ok(retired)
}

/// A view that starts from now has the rows from the LSN on at which it is created.
fn placed(change: &Change, lsn: u64) -> Change {
    match change {
        Change::CreateView(view) if view.ready && view.maintenance == Maintenance::State => {
            Change::CreateView(Arc::new(View { from_lsn: lsn, ..View::clone(view) }))
        }
        other => other.clone(),
    }
}

/// Compiles a view's definition against a catalog.
pub fn compile(binder: &dyn Binder, catalog: &Arc<Catalog>, view: &Arc<View>) -> Result<Arc<view::Spec>> {
    let table = catalog.table(view.table).ok_or_else(|| Error::internal(format!("view {} has lost its table", view.name)))?;
    Ok(Arc::new(view::Spec::compile(binder, catalog, table, view)?))
}

/// Deltas by view, in LSN order.
pub type Deltas = HashMap<Oid, Vec<view::Delta>>;

/// The deltas that accepted rows mean for the views of a snapshot. Computed before the snapshot is changed, beside the sync of
/// the log. A row that a view cannot digest makes that view fail when it is read, never the commit.
pub fn deltas(snapshot: &Snapshot, accepted: &[Accepted], threads: usize) -> Result<Deltas> {
    let mut deltas = Deltas::new();
    let mut by_table: Vec<(Oid, Vec<&Accepted>)> = Vec::new();
    for rows in accepted.iter().filter(|rows| rows.rows.num_rows() > 0) {
        match by_table.iter_mut().find(|(table, _)| *table == rows.table) {
            Some((_, list)) => list.push(rows),
            None => by_table.push((rows.table, vec![rows])),
        }
    }
    for (table, batches) in by_table {
        let specs: Vec<Arc<view::Spec>> = snapshot
            .catalog
            .views_of(table)
            .filter_map(|view| snapshot.views.get(&view.oid))
            .map(|version| Arc::clone(&version.spec))
            .filter(|spec| spec.join().is_none())
            .collect();
        for batch in &batches {
            joined(snapshot, batch, threads, &mut deltas)?;
        }
        if specs.is_empty() {
            continue;
        }
        for run in runs(&batches) {
            let outcomes = view::apply(&specs, &concat(run)?, run[0].first_lsn, run[run.len() - 1].next_lsn(), threads)?;
            for (spec, delta) in specs.iter().zip(outcomes) {
                deltas.entry(spec.view.oid).or_default().extend(delta);
            }
        }
    }
    Ok(deltas)
}

/// The deltas of the views that join a batch's rows.
fn joined(snapshot: &Snapshot, batch: &Accepted, threads: usize, deltas: &mut Deltas) -> Result<()> {
    for found in &batch.found {
        let present = found.views.iter().filter_map(|view| snapshot.views.get(view));
        let specs: Vec<Arc<view::Spec>> = present.map(|version| Arc::clone(&version.spec)).collect();
        let Some(join) = specs.first().and_then(|spec| spec.join()) else { continue };
        let rows = join.rows(&batch.rows, &found.rows, |column| specs.iter().any(|spec| spec.reads(column)))?;
        let outcomes = view::apply(&specs, &rows, batch.first_lsn, batch.next_lsn(), threads)?;
        for (spec, delta) in specs.iter().zip(outcomes) {
            deltas.entry(spec.view.oid).or_default().extend(delta);
        }
    }
    Ok(())
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

/// Rows of one table that a commit deletes.
#[derive(Clone, Debug)]
pub struct Gone {
    /// The table.
    pub table: Oid,
    /// The rows.
    pub rows: Arc<LsnSet>,
    /// LSN of the commit.
    pub lsn: u64,
}

/// Takes deleted rows out.
pub fn deletes(snapshot: &mut Snapshot, gone: &[Gone]) -> Result<()> {
    for Gone { table, rows, lsn } in gone {
        if let Some(state) = snapshot.table_mut(*table).filter(|state| state.truncated_lsn <= *lsn) {
            state.delete(rows, *lsn)?;
        }
    }
    Ok(())
}

/// Gives the views of a table whose rows an open transaction has deleted an error in place of their rows: they are corrected when
/// it commits.
pub fn hide_views(snapshot: &mut Snapshot, table: Oid) {
    for view in snapshot.catalog.views_of(table) {
        if let Some(version) = snapshot.views.get_mut(&view.oid) {
            let message =
                format!("cannot read materialized view \"{}\" after deleting rows that it counts in the same transaction", view.name);
            *version = Arc::new(version.failing(Error::unsupported(message).hint("COMMIT first.")));
        }
    }
}

/// Adds the files of a commit.
pub fn files(snapshot: &mut Snapshot, files: Vec<Files>) {
    for Files { table, columns, chunks } in files {
        if let Some(state) = snapshot.table_mut(table) {
            state.stage(&columns, chunks.into_iter().flatten().map(Arc::new).collect());
        }
    }
}

/// Puts new states in the place of those of groups that lose rows.
pub fn corrections(snapshot: &mut Snapshot, corrections: Vec<(Oid, view::Delta)>) -> Result<()> {
    for (view, delta) in corrections {
        if let Some(version) = snapshot.views.get_mut(&view) {
            *version = Arc::new(version.with_delta(delta)?);
        }
    }
    Ok(())
}

/// Puts states of whole views in the place of those that count rows which the commit at `lsn` deletes.
pub fn rebuilt(snapshot: &mut Snapshot, rebuilt: &mut [Rebuilt], lsn: u64) {
    for rebuilt in rebuilt {
        if let Some(version) = snapshot.views.get_mut(&rebuilt.view()) {
            *version = Arc::new(rebuilt.take_place(version, lsn));
        }
    }
}

/// Adds accepted rows and their deltas.
pub fn rows(snapshot: &mut Snapshot, hot: Vec<(Oid, HotBatch)>, deltas: Deltas) -> Result<()> {
    for (table, batch) in hot {
        if let Some(table) = snapshot.table_mut(table) {
            table.push(batch)?;
        }
    }
    for (view, deltas) in deltas {
        if let Some(version) = snapshot.views.get_mut(&view) {
            for delta in deltas {
                *version = Arc::new(version.with_delta(delta)?);
            }
        }
    }
    Ok(())
}

/// The accepted rows as hot batches.
pub fn hot(accepted: &[Accepted]) -> Result<Vec<(Oid, HotBatch)>> {
    accepted.iter().map(|rows| Ok((rows.table, HotBatch::new(&rows.rows, rows.first_lsn)?))).collect()
}
