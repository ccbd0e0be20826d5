//! Which windows of a view are in its state, and which the table's rows answer for.
//!
//! *Place*: `store::background` calls it in every round, and before retention drops rows.
//!
//! *Invariants*: (1) a window is evicted only while every row of it is in the table; (2) rows are dropped only when no evicted window
//! needs them: such windows come back into the state first; (3) the bound down to which rows may have been dropped is stored and
//! published before they are, so that no query is routed to state that has more rows than the table.

use std::sync::Arc;

use crate::catalog::{Oid, View};
use crate::clock::Micros;
use crate::error::{Error, Result};
use crate::state::{Batch, Family, State};
use crate::store::apply::Retired;
use crate::store::{Shared, Snapshot, backfill, horizon};
use crate::view::{Evicted, Version};

/// Moves every view's windows into or out of its state as its `ttl` says, and the newest event time.
pub fn evict(shared: &Arc<Shared>) -> Result<()> {
    let snapshot = shared.published.load();
    for view in snapshot.catalog.views() {
        let Some(wanted) = wanted(shared, &snapshot, view) else { continue };
        let Some(version) = snapshot.views.get(&view.oid) else { continue };
        let present = version.coverage().evicted;
        if present != wanted && (grows_over_rows(version, wanted) || present.is_some_and(|present| !present.without(wanted).is_empty())) {
            // The next checkpoint settles what is not settled now.
            change(shared, view.oid, wanted)?;
        }
    }
    Ok(())
}

/// The windows that are to be evicted; none at all for a view that has no say in it.
fn wanted(shared: &Shared, snapshot: &Snapshot, view: &View) -> Option<Option<Evicted>> {
    let ttl_us = view.ttl_us?;
    let version = snapshot.views.get(&view.oid).filter(|version| view.ready && is_sound(version))?;
    let grain = version.spec.bucket()?.grain;
    let newest = newest(shared, view.table)?;
    let table = snapshot.tables.get(&view.table)?;
    let to_us = grain.floor(newest.checked_sub(ttl_us)?)?;
    let from_us = match table.dropped_us {
        Some(dropped_us) => grain.ceil(dropped_us)?,
        None => i64::MIN,
    };
    Some(Evicted::new(from_us, to_us))
}

/// Whether the state has rows of windows that are to be evicted and are not yet.
fn grows_over_rows(version: &Version, wanted: Option<Evicted>) -> bool {
    let present = version.coverage().evicted;
    wanted.is_some_and(|wanted| wanted.without(present).iter().any(|more| version.has_windows(more.from_us, more.to_us)))
}

fn is_sound(version: &Version) -> bool {
    !version.must_rebuild() && !version.has_failed()
}

fn newest(shared: &Shared, table: Oid) -> Option<Micros> {
    shared.positions.lock().watermarks.get(&table)?.range().map(|(_, newest)| newest)
}

/// Prepares a table for the loss of rows older than `retain_from`: their windows come back into the states of its views, and
/// the bound is stored and published. False when they have to wait, for a checkpoint or for views that are made anew.
pub fn before_retention(shared: &Arc<Shared>, table: Oid, retain_from: Micros) -> Result<bool> {
    let snapshot = shared.published.load();
    let Some(state) = snapshot.tables.get(&table) else { return Ok(true) };
    let expires =
        state.table.watermark.is_some() && state.cold.as_ref().is_some_and(|cold| cold.columns.has_expired(&cold.version, retain_from));
    if !expires || state.dropped_us.is_some_and(|dropped_us| dropped_us >= retain_from) {
        return Ok(true);
    }
    if !horizon::before_retention(shared, table) {
        return Ok(false);
    }
    for view in snapshot.catalog.views_of(table) {
        let Some(version) = snapshot.views.get(&view.oid) else { continue };
        let Some(evicted) = version.coverage().evicted else { continue };
        let Some(from_us) = version.spec.bucket().and_then(|bucket| bucket.grain.ceil(retain_from)) else { continue };
        if evicted.from_us < from_us && !change(shared, view.oid, Evicted::new(from_us, evicted.to_us))? {
            return Ok(false);
        }
    }
    let mut batch = Batch::default();
    batch.put(Family::Meta, dropped_key(table), retain_from.to_be_bytes());
    shared.state.write(batch)?;
    shared.published.update(|snapshot| {
        if let Some(state) = snapshot.table_mut(table) {
            state.dropped_us = Some(retain_from);
        }
        Ok(true)
    })
}

/// The stored bound below which rows of a table may have been dropped.
pub fn dropped(state: &State, table: Oid) -> Result<Option<Micros>> {
    match state.get(Family::Meta, &dropped_key(table))? {
        None => Ok(None),
        Some(bytes) => match bytes.try_into() {
            Ok(bytes) => Ok(Some(i64::from_be_bytes(bytes))),
            Err(_) => Err(Error::new(crate::error::SqlState::DATA_CORRUPTED, "the stored bound of dropped rows is damaged")),
        },
    }
}

fn dropped_key(table: Oid) -> Vec<u8> {
    [b"dropped/".as_slice(), &table.to_be_bytes()].concat()
}

/// Changes which windows of a view are evicted. False when it has to wait for a checkpoint.
fn change(shared: &Arc<Shared>, view: Oid, evicted: Option<Evicted>) -> Result<bool> {
    // Nor while the state is being replaced.
    Ok(shared.backfills.store(view, || move_windows(shared, view, evicted))?.unwrap_or(false))
}

fn move_windows(shared: &Arc<Shared>, view: Oid, evicted: Option<Evicted>) -> Result<bool> {
    // While this turn lasts no commit publishes: later deltas are not merged with those that are there.
    let sealed = shared.published.update(|snapshot| {
        let version = snapshot.views.get(&view).cloned();
        if let Some(version) = &version {
            version.seal(snapshot.next_lsn);
        }
        Ok(version.map(|version| (version, snapshot.clone())))
    })?;
    let Some((version, snapshot)) = sealed else { return Ok(true) };
    if !version.is_settled(snapshot.next_lsn) {
        return Ok(false);
    }
    let returning = version.coverage().evicted.map(|present| present.without(evicted)).unwrap_or_default();
    let back = match returning.is_empty() {
        true => None,
        false => {
            let work = backfill::windows(Arc::clone(shared), Arc::clone(&version), snapshot.clone(), returning);
            Some(shared.parts.spawner.background_handle().block_on(work)?)
        }
    };
    let mut batch = Batch::default();
    let checkpoint = version.cover(snapshot.next_lsn, evicted, back, &mut batch)?;
    shared.state.write(batch)?;
    let published = shared.published.update(|newest| {
        Ok(match newest.views.get_mut(&view) {
            Some(present) if Arc::ptr_eq(&present.spec, &version.spec) => {
                *present = Arc::new(present.checkpointed(&checkpoint));
                true
            }
            _ => false,
        })
    })?;
    if !published {
        // The view was dropped or emptied meanwhile.
        shared.retire(Retired { views: vec![Arc::new(version.checkpointed(&checkpoint))], ..Retired::default() });
    }
    tracing::info!(view, ?evicted, "windows of a view moved between its state and the table's rows");
    Ok(true)
}
