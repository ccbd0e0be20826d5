//! From a directory to a database: open, read positions, replay the log from the oldest, each consumer skipping what it has.
//!
//! *Place*: called once by `Store::open`. There is no repair step: killed here, it starts again from the same files.
//!
//! *Invariants*: (1) replay changes the snapshot by the functions that the commit used (`store::apply`); (2) a row enters the hot
//! rows if its table's flushed LSN is not past it, and a view if that view's applied LSN is not past it; (3) a view that
//! was not ready is dropped: its creator never heard that it exists.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use arrow::buffer::Buffer;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::catalog::{Change, Maintenance, Oid};
use crate::columnar::{ColumnTable, DataFile};
use crate::error::{Error, Result, SqlState};
use crate::state::{Family, State};
use crate::store::apply::{self, Accepted, Gone, Retired, Tools};
use crate::store::dedupe::Bounds;
use crate::store::enrich::{Found, Lookups};
use crate::store::erased::Keys;
use crate::store::flush::{layout, table_dir};
use crate::store::horizon::Horizons;
use crate::store::positions::{self, Positions, Saved};
use crate::store::record::Decoded;
use crate::store::snapshot::{Published, Snapshot, TableState};
use crate::store::{Parts, Shared, backfill, progress, recent, record, refresh, staging, ttl, unique};
use crate::view;
use crate::wal::{Record, Wal};

/// Where keys go that are too many for memory.
pub fn key_bounds(parts: &Parts) -> Bounds {
    Bounds { dir: parts.dir.join("keys"), bytes_max: parts.limits.store.dedup_bytes_max }
}

/// An open database before its threads start.
#[derive(Debug)]
pub struct Recovered {
    /// Everything but the log.
    pub shared: Arc<Shared>,
    /// The log, positioned after its last record.
    pub wal: Wal,
    /// The next LSN.
    pub next_lsn: u64,
}

/// Rows that are put together before the views see them.
const REPLAY_ROWS: usize = 65_536;

struct Replay<'a> {
    parts: &'a Parts,
    state: Arc<State>,
    tools: Tools,
    snapshot: Snapshot,
    positions: Positions,
    saved: Saved,
    retired: Retired,
    pending: Vec<Accepted>,
    pending_rows: usize,
    /// Files named by the log that cannot be read: table, LSN and why. What follows in the log may have dropped them.
    unread: Vec<(Oid, u64, Error)>,
}

/// Opens the directory of `parts`.
pub fn recover(parts: &Parts) -> Result<Recovered> {
    let started = std::time::Instant::now();
    let state = Arc::new(State::open(&parts.dir.join("state"), parts.limits.view.rocksdb_bytes)?);
    let tools = Tools { binder: Arc::clone(&parts.binder), blocks: view::Blocks::new(Arc::clone(&state), &parts.limits.view) };
    let saved = match state.get(Family::Meta, Saved::KEY)? {
        Some(bytes) => Saved::decode(&bytes)?,
        None => Saved::default(),
    };
    let mut replay = Replay {
        parts,
        state: Arc::clone(&state),
        tools,
        snapshot: Snapshot { next_lsn: saved.next_lsn.max(1), catalog: Arc::new(saved.catalog.clone()), ..Snapshot::empty() },
        positions: Positions {
            next_lsn: saved.next_lsn,
            watermarks: saved.watermarks.clone(),
            sources: saved.sources.clone(),
            bounds: Some(key_bounds(parts)),
            ..Positions::default()
        },
        saved,
        retired: Retired::default(),
        pending: Vec::new(),
        pending_rows: 0,
        unread: Vec::new(),
    };
    replay.open_saved()?;
    let wal = Wal::open(&parts.dir.join("wal"), parts.limits.wal.segment_bytes_max, 0, &mut |record| replay.record(record))?;
    replay.views_catch_up()?;
    replay.miss_nothing()?;
    replay.drop_unfinished()?;
    replay.remember_keys()?;
    replay.remember_unique()?;
    replay.show_sources();
    let Replay { snapshot, positions, retired, tools, .. } = replay;
    let next_lsn = snapshot.next_lsn;
    let rebuild: Vec<Oid> = snapshot.views.iter().filter(|(_, version)| version.must_rebuild()).map(|(oid, _)| *oid).collect();
    let hot_bytes = AtomicUsize::new(snapshot.hot_bytes());
    let shared = Arc::new(Shared {
        parts: parts.clone(),
        state,
        tools,
        published: Published::new(snapshot),
        positions: Mutex::new(positions),
        hot_bytes,
        hot_released: Notify::new(),
        retired: Mutex::new(retired),
        opened: tokio::sync::Mutex::default(),
        locks: Arc::default(),
        erasing: tokio::sync::Mutex::default(),
        fatal: Mutex::new(None),
        refresh: refresh::Refreshing::default(),
        lookups: Lookups::default(),
        backfills: Arc::default(),
        horizons: Horizons::default(),
        opened_at: parts.clock.now(),
    });
    for (view, version) in &shared.published.load().views {
        if let Some(cut) = version.coverage().horizon_us {
            shared.horizons.restore(*view, version.spec.view.table, cut);
        }
    }
    remove_strays(&shared)?;
    delete_unnamed(&shared)?;
    for view in rebuild {
        tracing::info!(view, "view state is of another format; rebuilding it from the rows");
        parts.spawner.io_handle().block_on(backfill::run(&shared, view, next_lsn))?;
        shared.horizons.forget(view);
    }
    tracing::info!(next_lsn, seconds = started.elapsed().as_secs_f64(), "recovered");
    Ok(Recovered { shared, wal, next_lsn })
}

impl Replay<'_> {
    /// The tables and views of the saved catalog, as far as they are stored.
    fn open_saved(&mut self) -> Result<()> {
        let catalog = Arc::clone(&self.snapshot.catalog);
        for table in catalog.tables() {
            let mut state = TableState::empty(Arc::clone(table));
            state.truncated_lsn = self.saved.truncated.get(&table.oid).copied().unwrap_or(0);
            state.dropped_us = ttl::dropped(self.tools.blocks.state(), table.oid)?;
            (state.deleted, state.deleted_lsn) = positions::saved_deleted(&self.state, table.oid)?;
            self.positions.expired.extend(positions::saved_expired(&self.state, table.oid)?.map(|until| (table.oid, until)));
            self.open_cold(&mut state)?;
            self.snapshot.tables.insert(table.oid, Arc::new(state));
        }
        for view in catalog.views() {
            if view.maintenance != Maintenance::State {
                let recomputed = view::Recomputed::bind(&*self.tools.binder, &catalog, view)?.open(&self.tools.blocks)?;
                self.snapshot.recomputed.insert(view.oid, Arc::new(recomputed));
                continue;
            }
            let spec = apply::compile(&*self.tools.binder, &catalog, view)?;
            let version = view::Version::open(spec, &self.tools.blocks)?;
            self.snapshot.views.insert(view.oid, Arc::new(version));
        }
        Ok(())
    }

    fn open_cold(&self, state: &mut TableState) -> Result<()> {
        let dir = table_dir(&self.parts.dir, &state.table);
        if !dir.join("_delta_log").is_dir() {
            return Ok(());
        }
        let open = open_columns(self.parts, &state.table);
        let columns = self.parts.spawner.cpu_handle().block_on(open)?;
        let version = columns.version();
        state.set_cold(Arc::new(columns), version);
        Ok(())
    }

    fn record(&mut self, record: Record) -> Result<()> {
        let (first_lsn, next_lsn) = (record.first_lsn, record.next_lsn);
        let Decoded { header, messages, deletes, corrections, erased } = record::decode(record.payload)?;
        if !header.changes.is_empty() && first_lsn >= self.saved.catalog_lsn {
            self.views_catch_up()?;
            self.changes(&header.changes, first_lsn)?;
        }
        if !corrections.is_empty() {
            self.views_catch_up()?;
            let lagging = corrections.into_iter().filter(|(view, _)| {
                self.snapshot.views.get(view).is_some_and(|version| version.applied_lsn() <= first_lsn && !version.must_rebuild())
            });
            let lagging = lagging.map(|(view, rows)| (view, view::Delta::correction(rows, first_lsn))).collect();
            apply::corrections(&mut self.snapshot, lagging)?;
        }
        self.rebuilt(&header.rebuilt, first_lsn)?;
        let mut found = self.found(&header, messages.found)?;
        for (index, (rows, message)) in header.rows.iter().zip(messages.rows).enumerate() {
            let Some(state) = self.snapshot.tables.get(&rows.table) else { continue };
            let table = Arc::clone(&state.table);
            let flushed = state.cold.as_ref().map_or(0, |cold| cold.version.flushed_lsn).max(state.truncated_lsn);
            let batch = record::decode_rows(&table, rows.columns, message)?;
            let found = found.remove(&index).unwrap_or_default();
            let (first_lsn, very_late) = (rows.first_lsn, rows.very_late);
            let accepted = Accepted { table: rows.table, rows: batch, first_lsn, very_late, found };
            if rows.first_lsn >= self.saved.next_lsn {
                let owner = self.snapshot.catalog.tables().find(|owner| owner.late_oid == Some(table.oid)).unwrap_or(&table);
                self.positions.advance(owner, &accepted, header.committed_at)?;
            }
            if rows.first_lsn >= flushed {
                let hot = apply::hot(std::slice::from_ref(&accepted))?;
                apply::rows(&mut self.snapshot, hot, apply::Deltas::new())?;
            }
            self.pending_rows += accepted.rows.num_rows();
            self.pending.push(accepted);
        }
        if first_lsn >= self.saved.next_lsn {
            progress::advance(&mut self.positions.sources, &header.sources);
        }
        self.staged(&header, first_lsn, messages.newest.as_ref())?;
        let gone =
            header.deletes.iter().zip(deletes).map(|(deletes, rows)| Gone { table: deletes.table, rows: Arc::new(rows), lsn: first_lsn });
        apply::deletes(&mut self.snapshot, &gone.collect::<Vec<_>>())?;
        for keys in erased {
            if self.snapshot.tables.get(&keys.table).is_some_and(|state| state.truncated_lsn <= first_lsn) {
                self.positions.erased.add(first_lsn, keys);
            }
        }
        self.snapshot.next_lsn = self.snapshot.next_lsn.max(next_lsn);
        self.positions.next_lsn = self.snapshot.next_lsn;
        if self.pending_rows >= REPLAY_ROWS {
            self.views_catch_up()?;
        }
        Ok(())
    }

    /// A deletion has made views anew. Of those whose new state no checkpoint has listed, nothing can be used.
    fn rebuilt(&mut self, views: &[Oid], lsn: u64) -> Result<()> {
        if !views.is_empty() {
            self.views_catch_up()?;
        }
        for view in views {
            if let Some(version) = self.snapshot.views.get_mut(view)
                && version.applied_lsn() <= lsn
                && !version.must_rebuild()
            {
                *version = Arc::new(version.discarded()?);
            }
        }
        Ok(())
    }

    /// What the record's batches were joined with, by batch, for the views that there still are.
    fn found(&self, header: &record::Header, messages: Vec<Buffer>) -> Result<HashMap<usize, Vec<Found>>> {
        let mut found: HashMap<usize, Vec<Found>> = HashMap::new();
        for (head, message) in header.found.iter().zip(messages) {
            let present = head.views.iter().find_map(|view| self.snapshot.views.get(view));
            let Some(join) = present.and_then(|version| version.spec.join()) else { continue };
            let schema = join.found_schema();
            let rows = record::decode_batch(schema, message)?;
            found.entry(head.batch).or_default().push(Found { views: head.views.clone(), rows });
        }
        Ok(found)
    }

    /// The files that a record names, for those who do not have them yet; the views read them chunk by chunk.
    fn staged(&mut self, header: &record::Header, first_lsn: u64, newest: Option<&Buffer>) -> Result<()> {
        if header.staged.is_empty() {
            return Ok(());
        }
        self.views_catch_up()?;
        if let (Some(rows), Some(message), true) = (&header.newest, newest, first_lsn >= self.saved.next_lsn)
            && let Some(state) = self.snapshot.tables.get(&rows.table)
        {
            let table = Arc::clone(&state.table);
            let newest = record::decode_rows(&table, rows.columns, message.clone())?;
            self.positions.advance_staged(&table, Some(&newest), header.lateness, header.committed_at)?;
        }
        for staged in &header.staged {
            let Some(state) = self.snapshot.tables.get(&staged.table) else { continue };
            if first_lsn < state.truncated_lsn {
                continue;
            }
            let mut state = (**state).clone();
            if state.cold.is_none() {
                self.open_cold(&mut state)?;
            }
            let Some(cold) = &state.cold else {
                self.unread.push((staged.table, first_lsn, lost(&state.table.name)));
                continue;
            };
            let (columns, flushed) = (Arc::clone(&cold.columns), cold.version.flushed_lsn);
            let files = staging::Files::described(columns, staged)?;
            for chunk in &files.chunks {
                if let Err(error) = self.show_chunk(&files, chunk, first_lsn) {
                    self.unread.push((staged.table, first_lsn, error));
                }
            }
            if first_lsn >= flushed {
                files.columns.adopt(files.chunks.iter().flatten());
                state.stage(&files.columns, files.chunks.into_iter().flatten().map(Arc::new).collect());
                self.snapshot.tables.insert(staged.table, Arc::new(state));
            }
        }
        Ok(())
    }

    /// Shows the rows of a chunk to the views that have not stored them.
    fn show_chunk(&mut self, files: &staging::Files, chunk: &[DataFile], lsn: u64) -> Result<()> {
        let mut lagging = self.snapshot.clone();
        lagging.views.retain(|_, version| version.applied_lsn() <= lsn && !version.must_rebuild());
        if !lagging.catalog.views_of(files.table).any(|view| lagging.views.contains_key(&view.oid)) {
            return Ok(());
        }
        let rows = self.parts.spawner.cpu_handle().block_on(staging::read(&files.columns, chunk))?;
        let first_lsn = files.chunks.iter().flatten().map(|file| file.lsn_range.0.unsigned_abs()).min().unwrap_or(lsn);
        let next_lsn = files.chunks.iter().flatten().map(|file| file.lsn_range.1.unsigned_abs() + 1).max().unwrap_or(lsn);
        let deltas = staging::deltas(&lagging, files.table, vec![rows], first_lsn, next_lsn)?;
        apply::rows(&mut self.snapshot, Vec::new(), deltas)
    }

    fn changes(&mut self, changes: &[Change], lsn: u64) -> Result<()> {
        for change in changes {
            if let Change::DropTable(oid) | Change::Truncate(oid) = change {
                self.positions.forget(*oid, lsn);
            }
            let retired = apply::changes(&mut self.snapshot, std::slice::from_ref(change), lsn, &self.tools)?;
            self.retired.views.extend(retired.views);
            self.retired.results.extend(retired.results);
            self.retired.tables.extend(retired.tables);
            match change {
                Change::CreateTable(table) => {
                    let mut state = TableState::empty(Arc::clone(table));
                    state.dropped_us = ttl::dropped(self.tools.blocks.state(), table.oid)?;
                    self.open_cold(&mut state)?;
                    self.snapshot.tables.insert(table.oid, Arc::new(state));
                }
                Change::AlterTable(table) => {
                    if let Some(state) = self.snapshot.tables.get(&table.oid) {
                        let mut state = (**state).clone();
                        self.open_cold(&mut state)?;
                        self.snapshot.tables.insert(table.oid, Arc::new(state));
                    }
                }
                Change::CreateView(view) if view.maintenance != Maintenance::State => {
                    let created = view::Recomputed::clone(&self.snapshot.recomputed[&view.oid]);
                    self.snapshot.recomputed.insert(view.oid, Arc::new(created.open(&self.tools.blocks)?));
                }
                Change::CreateView(view) => {
                    let created = Arc::clone(&self.snapshot.views[&view.oid]);
                    let stored = view::Version::open(Arc::clone(&created.spec), &self.tools.blocks)?;
                    // Without a stored position, all that a view created in the log has is what follows in the log.
                    if !stored.must_rebuild() && stored.applied_lsn() > 0 {
                        self.snapshot.views.insert(view.oid, Arc::new(stored));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Shows the views the rows that have piled up, each view only those that its blocks do not have.
    fn views_catch_up(&mut self) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        self.pending_rows = 0;
        let positions: Vec<u64> = self.snapshot.views.values().map(|version| version.applied_lsn()).collect();
        let Some(last) = pending.last().map(Accepted::next_lsn) else { return Ok(()) };
        let least = positions.iter().copied().min().unwrap_or(u64::MAX);
        let split = positions.iter().any(|applied| *applied > pending[0].first_lsn && *applied < last);
        if split {
            // A position lies among these rows: commits are shown one by one, so that none is shown twice.
            for accepted in pending.into_iter().filter(|accepted| accepted.first_lsn >= least) {
                self.show(&[accepted])?;
            }
            return Ok(());
        }
        self.show(&pending)
    }

    fn show(&mut self, accepted: &[Accepted]) -> Result<()> {
        let Some(first) = accepted.first() else { return Ok(()) };
        let mut lagging = self.snapshot.clone();
        lagging.views.retain(|_, version| version.applied_lsn() <= first.first_lsn && !version.must_rebuild());
        let deltas = apply::deltas(&lagging, accepted, 1)?;
        apply::rows(&mut self.snapshot, Vec::new(), deltas)
    }

    /// An error when files that the log names are gone and their rows are still wanted.
    fn miss_nothing(&mut self) -> Result<()> {
        let wanted = |(table, lsn, _): &(Oid, u64, Error)| self.snapshot.tables.get(table).is_some_and(|state| state.truncated_lsn <= *lsn);
        self.unread.iter().find(|unread| wanted(unread)).map_or(Ok(()), |(_, _, error)| Err(error.clone()))
    }

    fn show_sources(&mut self) {
        progress::forget(&mut self.positions.sources, &self.snapshot.catalog);
        self.snapshot.sources = Arc::new(self.positions.sources.clone());
    }

    fn drop_unfinished(&mut self) -> Result<()> {
        let catalog = Arc::clone(&self.snapshot.catalog);
        let mut unfinished: Vec<Oid> = catalog.views().filter(|view| !view.ready).flat_map(|view| catalog.family(view)).collect();
        unfinished.sort_unstable_by_key(|oid| std::cmp::Reverse(*oid));
        unfinished.dedup();
        let unfinished: Vec<Change> = unfinished.into_iter().map(Change::DropView).collect();
        let lsn = self.snapshot.next_lsn;
        let retired = apply::changes(&mut self.snapshot, &unfinished, lsn, &self.tools)?;
        self.retired.views.extend(retired.views);
        self.retired.results.extend(retired.results);
        Ok(())
    }

    /// The keys of PRIMARY KEY and UNIQUE, read back from the rows.
    fn remember_unique(&mut self) -> Result<()> {
        for (oid, state) in self.snapshot.tables.iter().filter(|(_, state)| !state.table.unique.is_empty()) {
            let taken = self.parts.spawner.cpu_handle().block_on(unique::read_back(self.parts, state))?;
            self.positions.unique.insert(*oid, taken);
        }
        Ok(())
    }

    /// The keys of the `dedup_window`, read back from the rows, the late ones among them.
    fn remember_keys(&mut self) -> Result<()> {
        for state in self.snapshot.tables.values() {
            let table = &state.table;
            if table.options.dedup_key.is_none() {
                continue;
            }
            let reach = self.positions.key_reach(table);
            let late = table.late_oid.and_then(|late| self.snapshot.tables.get(&late));
            for source in [Some(state), late].into_iter().flatten() {
                let rows = recent::recent_keys(self.parts, table, source, &reach);
                for batch in self.parts.spawner.cpu_handle().block_on(rows)? {
                    self.positions.remember_keys(table, &batch)?;
                }
                for batch in &source.hot {
                    self.positions.remember(table, batch.rows())?;
                }
            }
        }
        self.remember_erased()
    }

    /// The keys of deleted rows: of the log, and saved before it was cut.
    fn remember_erased(&mut self) -> Result<()> {
        let mut erased = std::mem::take(&mut self.positions.erased);
        let tables = &self.snapshot.tables;
        let owner = |table: Oid| tables.get(&table).filter(|state| state.table.options.dedup_key.is_some());
        let wanted = |table: Oid, lsn: u64| owner(table).is_some_and(|state| state.truncated_lsn <= lsn);
        let positions = &mut self.positions;
        let mut remember = |keys: &Keys| {
            if let Some(state) = owner(keys.table) {
                positions.remember_erased(&state.table, keys);
            }
        };
        erased.open(&self.state, wanted, &mut remember)?;
        erased.fresh().for_each(remember);
        self.positions.erased = erased;
        Ok(())
    }
}

fn lost(table: &str) -> Error {
    Error::new(SqlState::DATA_CORRUPTED, format!("the files of table \"{table}\" are missing"))
        .detail("The log names files of it that hold acknowledged rows.")
        .hint("Restore the data directory from a backup.")
}

/// Opens a table's files with its present layout, widening the table log where the table has grown.
pub async fn open_columns(parts: &Parts, table: &crate::catalog::Table) -> Result<ColumnTable> {
    let wanted = layout(table)?;
    let (dir, name) = (table_dir(&parts.dir, table), format!("{}-{}", table.name, table.oid));
    let mut columns = ColumnTable::open_with(&dir, &name, wanted.clone(), parts.limits.columnar.clone()).await?;
    if columns.layout().schema != wanted.schema {
        columns.evolve(wanted).await?;
    }
    Ok(columns)
}

/// Deletes the files of statements that did not come to be committed: neither the table log nor the log names them.
fn delete_unnamed(shared: &Shared) -> Result<()> {
    for state in shared.published.load().tables.values() {
        if let Some(cold) = &state.cold {
            shared.parts.spawner.cpu_handle().block_on(cold.columns.collect())?;
        }
    }
    Ok(())
}

/// Deletes the directories of tables that no catalog knows: dropped shortly before the last stop.
fn remove_strays(shared: &Shared) -> Result<()> {
    let snapshot = shared.published.load();
    let known: Vec<_> = snapshot.tables.values().map(|table| table_dir(&shared.parts.dir, &table.table)).collect();
    let Ok(entries) = std::fs::read_dir(shared.parts.dir.join("tables")) else { return Ok(()) };
    for entry in entries.flatten() {
        if !known.contains(&entry.path())
            && let Err(error) = std::fs::remove_dir_all(entry.path())
        {
            return Err(Error::internal(format!("cannot delete the files of a dropped table: {error}")));
        }
    }
    Ok(())
}
