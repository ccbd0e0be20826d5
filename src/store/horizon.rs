//! Horizons: event times before which no row comes any more, so that states of views need not have what decides nothing without one.
//!
//! *Place*: the background work draws one before a checkpoint and merges a view's states under it; [`admit`] lets commits pass.
//!
//! *Way*: a table's horizon is the least watermark of its partitions that were heard from lately. That is no promise: a partition that is
//! new or was silent may bring older rows, and with `late_rows = 'apply'` everybody may. A commit that has such a row waits until the
//! view is made anew from the table, with all that counts; then the view rests uncut for a while, so that an import costs one such
//! turn and not one a commit.
//!
//! *Invariants*: (1) no row is committed that is older than the horizon of a state that has left something out; (2) a horizon is not after
//! the rows of a commit that is under way: each says what it brings before it is sent, until it is visible; (3) states are merged under
//! a horizon only where they have all rows of the commits that were visible when it was drawn; (4) where retention has removed rows,
//! which could not be put back, there is no horizon.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::catalog::{LateRows, Oid};
use crate::clock::Micros;
use crate::error::{Error, Result, SqlState};
use crate::store::apply::Accepted;
use crate::store::backfill;
use crate::store::classify::event_times;
use crate::store::{Shared, Snapshot, Staged, Transaction};
use crate::view::Version;

/// How long a partition has to be silent until a table does not wait for it: making views anew costs commits more than a week's states.
const SILENT_US: i64 = 7 * 86_400_000_000;

/// How many times as long a view rests as it took to merge all its states, or to make it anew, where that is more than the limit.
pub const REST_FACTOR: u32 = 50;

/// How long a view stays whole for retention to see it so, and when one that could not be made whole is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(600);

/// What is known of all views' horizons.
#[derive(Debug, Default)]
pub struct Horizons {
    known: Mutex<Known>,
    /// Held by whoever makes a view anew.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    views: HashMap<Oid, Horizon>,
    /// By number: the tables that commits under way write to, and the least event times of what they bring.
    under_way: BTreeMap<u64, Vec<(Oid, Micros)>>,
    next: u64,
}

/// Of one view.
#[derive(Clone, Copy, Debug)]
struct Horizon {
    table: Oid,
    /// What its states have left something out for.
    cut: Option<Micros>,
    /// The one that was drawn last, and one past the LSN of the newest row that was visible then.
    drawn: Option<(Micros, u64)>,
    rests_until: Option<Instant>,
    /// When all its states are to be merged next.
    due: Option<Instant>,
    /// When it was last begun to make it whole before retention.
    tried: Option<Instant>,
}

impl Known {
    fn view(&mut self, view: Oid, table: Oid) -> &mut Horizon {
        self.views.entry(view).or_insert(Horizon { table, cut: None, drawn: None, rests_until: None, due: None, tried: None })
    }

    /// Takes back what was drawn and is after rows; gives the views whose states have left out what these rows need.
    fn behind(&mut self, floors: &[(Oid, Micros)]) -> Vec<Oid> {
        let mut behind = Vec::new();
        for (view, horizon) in &mut self.views {
            let Some((_, floor)) = floors.iter().find(|(table, _)| *table == horizon.table) else { continue };
            if horizon.drawn.is_some_and(|(drawn, _)| drawn > *floor) {
                horizon.drawn = None;
            }
            if horizon.cut.is_some_and(|cut| cut > *floor) {
                behind.push(*view);
            }
        }
        behind
    }
}

impl Horizons {
    /// What a view's stored states have left something out for.
    pub fn restore(&self, view: Oid, table: Oid, cut: Micros) {
        self.known.lock().view(view, table).cut = Some(cut);
    }

    /// The horizon for a merge of all of a view's states, which have all rows below an LSN. From here on the view is cut.
    pub fn take(&self, view: Oid, applied_lsn: u64) -> Option<Micros> {
        let mut known = self.known.lock();
        let horizon = known.views.get_mut(&view)?;
        let (drawn, lsn) = horizon.drawn.filter(|(_, lsn)| *lsn <= applied_lsn)?;
        (horizon.cut, horizon.drawn) = (horizon.cut.max(Some(drawn)), None);
        tracing::debug!(view, drawn, lsn, "states of a view are merged under a horizon");
        Some(drawn)
    }

    /// Whether all of a view's states are to be merged only because more of them can be left out.
    pub fn is_due(&self, view: Oid, applied_lsn: u64) -> bool {
        let known = self.known.lock();
        known.views.get(&view).is_some_and(|horizon| {
            let moved = |(drawn, lsn)| lsn <= applied_lsn && horizon.cut.is_none_or(|cut| cut < drawn);
            horizon.drawn.is_some_and(moved) && horizon.due.is_some_and(|due| due <= Instant::now())
        })
    }

    /// All of a view's states were merged, and are to be again after a time.
    pub fn settled(&self, view: Oid, after: Duration) {
        if let Some(horizon) = self.known.lock().views.get_mut(&view) {
            horizon.due = Instant::now().checked_add(after);
        }
    }

    /// Whether a view's states may have left something out.
    pub fn is_cut(&self, view: Oid) -> bool {
        self.known.lock().views.get(&view).is_some_and(|horizon| horizon.cut.is_some())
    }

    /// Whether a view may be made whole before retention: an attempt that failed is not repeated at once.
    fn may_try(&self, view: Oid) -> bool {
        let mut known = self.known.lock();
        let Some(horizon) = known.views.get_mut(&view) else { return false };
        let may = horizon.tried.is_none_or(|tried| tried.elapsed() >= RETRY_AFTER);
        if may {
            horizon.tried = Some(Instant::now());
        }
        may
    }

    /// The view has all that counts again; it rests if that was for rows that came.
    pub fn forget(&self, view: Oid) {
        self.known.lock().views.remove(&view);
    }

    fn rest(&self, view: Oid, table: Oid, time: Duration) {
        self.known.lock().view(view, table).rests_until = Instant::now().checked_add(time);
    }
}

/// What a commit brings, from before it is sent until it is visible.
#[derive(Debug)]
pub struct Admitted {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.shared.horizons.known.lock().under_way.remove(&self.number);
    }
}

/// Draws a horizon for every view that has use for one.
pub fn draw(shared: &Shared) {
    let snapshot = shared.published.load();
    let views = snapshot.views.iter().filter(|(_, version)| version.spec.settles() && !version.must_rebuild());
    let drawn: Vec<(Oid, Oid, Option<Micros>)> = {
        let positions = shared.positions.lock();
        let since = shared.parts.clock.now().saturating_sub(SILENT_US);
        let of_table = |oid: Oid| {
            let table = snapshot.tables.get(&oid).filter(|table| table.dropped_us.is_none() && !positions.expired.contains_key(&oid))?;
            positions.watermarks.get(&oid)?.least_since(&table.table, since)
        };
        views.map(|(view, version)| (*view, version.spec.view.table, of_table(version.spec.view.table))).collect()
    };
    let mut known = shared.horizons.known.lock();
    // What has left those that are under way is visible here, but for what was logged and could not be shown.
    if shared.fatal.lock().is_some() {
        return known.views.values_mut().for_each(|horizon| horizon.drawn = None);
    }
    let lsn = shared.published.load().next_lsn;
    known.views.retain(|view, _| snapshot.views.contains_key(view));
    for (view, table, time) in drawn {
        let floor = known.under_way.values().flatten().filter(|(written, _)| *written == table).map(|(_, floor)| *floor).min();
        let horizon = known.view(view, table);
        horizon.due = horizon.due.or_else(|| Instant::now().checked_add(Duration::from_millis(shared.parts.limits.store.settle_ms)));
        let rests = horizon.rests_until.is_some_and(|until| until > Instant::now());
        horizon.drawn = time.filter(|_| !rests).map(|time| (floor.map_or(time, |floor| floor.min(time)), lsn));
    }
}

/// Lets a commit pass: views that have left out what its rows need are made anew first.
pub async fn admit(shared: &Arc<Shared>, transaction: &Transaction) -> Result<Option<Admitted>> {
    let mut floors = floors(shared, transaction, false)?;
    if floors.is_empty() {
        return Ok(None);
    }
    let (admitted, mut behind) = {
        let mut known = shared.horizons.known.lock();
        let number = known.next;
        known.next += 1;
        known.under_way.insert(number, floors.clone());
        (Admitted { shared: Arc::clone(shared), number }, known.behind(&floors))
    };
    if !behind.is_empty() {
        // Those that will be diverted do not count. What is late by now stays late.
        floors = self::floors(shared, transaction, true)?;
        behind = shared.horizons.known.lock().behind(&floors);
    }
    while !behind.is_empty() {
        let _turn = shared.horizons.turn.lock().await;
        // Somebody else may have had the same need.
        behind = shared.horizons.known.lock().behind(&floors);
        for view in behind.drain(..) {
            make_whole(shared, view, "older rows came", Duration::ZERO).await?;
        }
        behind = shared.horizons.known.lock().behind(&floors);
    }
    Ok(Some(admitted))
}

/// The least event times of what a transaction brings, by event table; without what lies behind the watermark now where that is asked.
fn floors(shared: &Shared, transaction: &Transaction, judged: bool) -> Result<Vec<(Oid, Micros)>> {
    let mut floors: HashMap<Oid, Micros> = HashMap::new();
    let catalog = Arc::clone(&shared.published.load().catalog);
    for write in &transaction.writes {
        let Some(table) = catalog.table(write.table) else { continue };
        let Some(watermark) = table.watermark else { continue };
        for rows in &write.rows {
            let late = match judged && write.late_rows != LateRows::Apply {
                true => shared.positions.lock().watermarks.get(&table.oid).map_or(Ok(None), |marks| marks.late(table, rows))?,
                false => None,
            };
            let times = event_times(rows, watermark.column)?.iter().enumerate();
            let counted = times.filter(|(row, _)| late.as_ref().is_none_or(|late| !late.value(*row)));
            if let Some(least) = counted.map(|(_, time)| *time).min() {
                floors.entry(table.oid).and_modify(|floor| *floor = least.min(*floor)).or_insert(least);
            }
        }
    }
    if let Some((table, least)) = transaction.staged.as_ref().map(|staged| staged.floor()).transpose()?.flatten() {
        floors.insert(table, least);
    }
    Ok(floors.into_iter().collect())
}

/// Makes a view's states anew from the table's rows, if something is left out of them, and lets it rest.
async fn make_whole(shared: &Arc<Shared>, view: Oid, reason: &str, least_rest: Duration) -> Result<()> {
    let began = Instant::now();
    // Asked when nobody else changes its state: once it is whole, retention may have removed rows.
    while shared.horizons.is_cut(view) {
        let snapshot = shared.published.load();
        let Some(version) = snapshot.views.get(&view) else {
            shared.horizons.forget(view);
            return Ok(());
        };
        tracing::info!(view = version.spec.view.name, reason, "a view whose states have left out what did not count is made anew");
        match backfill::rebuild(shared, view, move |shared| shared.horizons.is_cut(view)).await {
            Ok(()) => {
                let rest = Duration::from_millis(shared.parts.limits.store.whole_states_ms).max(began.elapsed() * REST_FACTOR);
                shared.horizons.rest(view, version.spec.view.table, rest.max(least_rest));
                return Ok(());
            }
            Err(error) if error.state() == SqlState::OBJECT_IN_USE => tokio::time::sleep(backfill::REFRESH_POLL).await,
            // Of another state, which came in the place of that one, nothing is left out.
            Err(_) if !is_present(shared, version) => shared.horizons.forget(view),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether a version's state was not emptied or dropped since.
fn is_present(shared: &Shared, version: &Version) -> bool {
    let newest = shared.published.load();
    newest.views.get(&version.spec.view.oid).is_some_and(|present| Arc::ptr_eq(&present.spec, &version.spec))
}

/// Whether retention can remove rows of a table: its views have all that counts. Else they are made whole beside, for a later round.
pub fn before_retention(shared: &Arc<Shared>, table: Oid) -> bool {
    let snapshot = shared.published.load();
    let cut: Vec<Oid> = snapshot.catalog.views_of(table).map(|view| view.oid).filter(|view| shared.horizons.is_cut(*view)).collect();
    for view in cut.iter().copied().filter(|view| shared.horizons.may_try(*view)) {
        let shared = Arc::clone(shared);
        let spawner = shared.parts.spawner.clone();
        drop(spawner.io(async move {
            if let Err(error) = make_whole(&shared, view, "before retention removes rows", RETRY_AFTER).await {
                tracing::error!(%error, view, "rows past their retention are kept: a view could not be made anew from them");
            }
        }));
    }
    cut.is_empty()
}

/// Hides views from an open transaction whose own rows need what is left out: the commit will make them anew.
pub fn hide_views(snapshot: &mut Snapshot, own: &[Accepted], staged: Option<&Staged>) -> Result<()> {
    let mut floors = Vec::new();
    for rows in own.iter().filter(|rows| rows.rows.num_rows() > 0) {
        let Some(watermark) = snapshot.tables.get(&rows.table).and_then(|state| state.table.watermark) else { continue };
        floors.extend(event_times(&rows.rows, watermark.column)?.iter().min().map(|floor| (rows.table, *floor)));
    }
    floors.extend(staged.map(Staged::floor).transpose()?.flatten());
    for (table, floor) in floors {
        for version in snapshot.views.values_mut().filter(|version| version.spec.view.table == table) {
            if version.coverage().horizon_us.is_some_and(|horizon| horizon > floor) {
                let name = &version.spec.view.name;
                let message =
                    format!("cannot read materialized view \"{name}\" with rows of the same transaction that are older than its window");
                *version = Arc::new(version.failing(Error::unsupported(message).hint("COMMIT first.")));
            }
        }
    }
    Ok(())
}
