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
use crate::columnar::Layout;
use crate::error::Result;
use crate::store::Shared;
use crate::store::recover::open_columns;
use crate::store::snapshot::{ColdRows, with_lsn};

/// Where a table's files are: its name for people and other engines, its OID because names come back.
pub fn table_dir(shared_dir: &std::path::Path, table: &Table) -> PathBuf {
    let name: String = table.name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).take(64).collect();
    shared_dir.join("tables").join(format!("{name}-{}", table.oid))
}

/// The shape of a table's files.
pub fn layout(table: &Table) -> Layout {
    Layout {
        schema: with_lsn(&table.schema()),
        partition_by: table.options.partition_by,
        event_time: table.watermark.map(|watermark| watermark.column),
        zstd: table.options.compression == Compression::Zstd,
    }
}

/// Writes the hot rows of a table as of now into Parquet. Returns whether there were any.
pub async fn flush(shared: &Shared, oid: Oid) -> Result<bool> {
    // The batches below this LSN are sealed: coalescing must not move rows across the boundary while they are written.
    let sealed = shared.published.update(|snapshot| {
        let next_lsn = snapshot.next_lsn;
        Ok(snapshot.table_mut(oid).filter(|table| !table.hot.is_empty()).map(|table| {
            table.flushing_lsn = next_lsn;
            (next_lsn, table.clone())
        }))
    })?;
    let Some((flushed_lsn, table)) = sealed else { return Ok(false) };
    let started = std::time::Instant::now();
    let columns = match &table.cold {
        Some(ColdRows { columns, .. }) if columns.layout().schema == layout(&table.table).schema => Arc::clone(columns),
        _ => Arc::new(open_columns(&shared.parts, &table.table).await?),
    };
    let rows = table.hot_rows();
    let files = columns.write(table.hot.iter().map(|batch| batch.rows.clone()).collect()).await?;
    let version = columns.commit(files, &[], flushed_lsn).await?;
    shared.published.update(|snapshot| {
        if let Some(state) = snapshot.table_mut(oid) {
            state.hot.retain(|batch| batch.first_lsn >= flushed_lsn);
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
