//! Hot rows to Parquet.
//!
//! *Place*: called by `store::background` for one table at a time, and before a table's files are needed in a certain shape.
//!
//! *Invariants*: (1) the files and the flushed LSN become visible to other readers in one commit of the table log; (2) a reader of
//! Verus sees each row once: hot batches leave the snapshot in the same publication that brings their files.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::catalog::{Compression, Oid, Table};
use crate::columnar::{ColumnTable, DataFile, Fills, Layout};
use crate::error::Result;
use crate::store::Shared;
use crate::store::recover::open_columns;
use crate::store::snapshot::{TableState, with_lsn};

/// Where a table's files are: its name for people and other engines, its OID because names come back.
pub fn table_dir(shared_dir: &std::path::Path, table: &Table) -> PathBuf {
    let name: String = table.name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).take(64).collect();
    shared_dir.join("tables").join(format!("{name}-{}", table.oid))
}

/// The shape of a table's files.
pub fn layout(table: &Table) -> Result<Layout> {
    let mut fills = Fills::default();
    for column in &table.columns {
        if let Some(value) = column.fill_value()? {
            fills.add(&column.name, value);
        }
    }
    Ok(Layout {
        schema: with_lsn(&table.schema()),
        partition_by: table.options.partition_by,
        event_time: table.watermark.map(|watermark| watermark.column),
        zstd: table.options.compression == Compression::Zstd,
        fills,
        retention_us: table.options.retention_us,
    })
}

impl Shared {
    /// The files of a table, to be written to: opened once, whoever needs them first.
    pub(super) async fn columns(&self, state: &TableState) -> Result<Arc<ColumnTable>> {
        let mut opened = self.opened.lock().await;
        let found = state.cold.as_ref().map(|cold| &cold.columns).or_else(|| opened.get(&state.table.oid));
        let columns = match found {
            Some(columns) if columns.layout().schema == with_lsn(&state.table.schema()) => return Ok(Arc::clone(columns)),
            Some(columns) => {
                let mut wider = (**columns).clone();
                wider.evolve(layout(&state.table)?).await?;
                Arc::new(wider)
            }
            None => Arc::new(open_columns(&self.parts, &state.table).await?),
        };
        opened.insert(state.table.oid, Arc::clone(&columns));
        Ok(columns)
    }
}

/// Writes the hot rows as files. In portions: rows are copied to be put in order, and under load there are many more of them
/// than make a flush.
async fn write(columns: &ColumnTable, table: &TableState, rows_max: usize, clean_lsn: u64) -> Result<Vec<DataFile>> {
    let mut files = Vec::new();
    let mut portion = Vec::new();
    let mut rows = 0;
    for (index, batch) in table.hot.iter().enumerate() {
        portion.push(batch.rows().clone());
        rows += batch.num_rows();
        if rows < rows_max && index + 1 < table.hot.len() {
            continue;
        }
        match columns.write(std::mem::take(&mut portion), clean_lsn).await {
            Ok(written) => files.extend(written),
            Err(error) => {
                columns.abandon(&files);
                return Err(error);
            }
        }
        rows = 0;
    }
    Ok(files)
}

/// Writes the hot rows of a table as of now into Parquet. Returns whether there were any.
pub async fn flush(shared: &Shared, oid: Oid) -> Result<bool> {
    // The batches below this LSN are sealed: coalescing must not move rows across the boundary while they are written.
    let sealed = shared.published.update(|snapshot| {
        let next_lsn = snapshot.next_lsn;
        Ok(snapshot.table_mut(oid).filter(|table| !table.hot.is_empty() || !table.staged.is_empty()).map(|table| {
            table.flushing_lsn = next_lsn;
            (next_lsn, table.clone())
        }))
    })?;
    let Some((flushed_lsn, table)) = sealed else { return Ok(false) };
    let started = std::time::Instant::now();
    let columns = shared.columns(&table).await?;
    let rows = table.hot_rows();
    let mut files = write(&columns, &table, shared.parts.limits.store.flush_rows, flushed_lsn).await?;
    let staged = table.staged.iter().filter(|file| file.lsn_range.1.unsigned_abs() < flushed_lsn);
    files.extend(staged.map(|file| DataFile::clone(file)));
    let version = columns.commit(files, &[], flushed_lsn).await?;
    shared.published.update(|snapshot| {
        if let Some(state) = snapshot.table_mut(oid) {
            state.hot.retain(|batch| batch.first_lsn >= flushed_lsn);
            state.staged.retain(|file| file.lsn_range.1.unsigned_abs() >= flushed_lsn);
            // The table may have got columns while the files were written.
            let columns = match Arc::ptr_eq(&state.table, &table.table) {
                true => columns,
                false => Arc::new(columns.reading(layout(&state.table)?)),
            };
            state.set_cold(columns, version);
        }
        shared.hot_bytes.store(snapshot.hot_bytes(), Ordering::Release);
        Ok(())
    })?;
    shared.hot_released.notify_waiters();
    shared.parts.metrics.flush.observe(started.elapsed());
    shared.parts.metrics.rows_flushed.inc_by(rows as u64);
    Ok(true)
}
