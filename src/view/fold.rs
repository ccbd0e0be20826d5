//! The upper aggregation of a nested view, kept in memory as of one version of the view's entities and moved to others.
//!
//! *Place*: all versions of a view share one [`Fold`]. `query::provider` reads it, `store::keep` moves it along with the commits, so that
//! a reader finds little left to do.
//!
//! *How*: to move it from one version to another, what the entities that may differ brought in the one is taken back, and what they
//! bring in the other is added ([`super::changes`] says which they are). That goes forth and back: a reader of an older snapshot moves it
//! back. It is made of all entities when it is first read, and after a start.
//!
//! *Invariants*: (1) it is exact as of its version: what is added can be taken back exactly ([`super::tally`]), and what is the same on both
//! sides is neither; (2) its version is one that was committed; (3) nothing durable depends on it.
//!
//! *On failure*, and beyond [`super::Blocks::fold_bytes_max`], it is given up: the view is then computed from its entities.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{ArrayRef, AsArray};
use arrow::compute::concat;
use arrow::datatypes::DataType;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use arrow::row::{RowConverter, SortField};
use datafusion::execution::context::SessionState;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use parking_lot::Mutex;

use super::changes::{Selection, Since};
use super::failure::{arrow_failure, failure};
use super::layer::{Contributions, Layer};
use super::tally::{Step, Tally};
use super::version::Version;
use crate::error::{Error, Result, SqlState};

/// What a group takes beside its key: the box, the place, its row count, its share of the map's nodes.
const PLACE_BYTES: usize = 64;

/// What all versions of a view share.
#[derive(Default)]
pub(super) struct Fold {
    folded: Mutex<Option<Folded>>,
    /// It was too large: there is none from here on.
    is_refused: AtomicBool,
}

impl fmt::Debug for Fold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fold").field("is_refused", &self.is_refused).finish_non_exhaustive()
    }
}

/// The upper aggregation as of a version.
struct Folded {
    /// Without this fold in it: nothing holds itself.
    version: Arc<Version>,
    lsn: u64,
    keys: RowConverter,
    whole: RowConverter,
    /// The place of each group that has rows.
    places: BTreeMap<Box<[u8]>, usize>,
    /// What these take, about.
    places_bytes: usize,
    /// By place.
    rows: Vec<i64>,
    free: Vec<usize>,
    tallies: Vec<Tally>,
    /// Of the version.
    shown: Option<RecordBatch>,
}

impl Version {
    /// Whether the upper aggregation can be had by [`Version::folded`].
    pub fn folds(&self) -> bool {
        self.layer().is_some() && !self.fold.is_refused.load(Ordering::Relaxed)
    }

    fn layer(&self) -> Option<&Layer> {
        self.spec.upper().and_then(|upper| upper.layer.as_ref())
    }

    /// Whether a fold is there that is of an earlier LSN, or none where `from_nothing`.
    pub fn is_behind(&self, lsn: u64, from_nothing: bool) -> bool {
        self.folds() && self.fold.folded.try_lock().is_some_and(|folded| folded.as_ref().map_or(from_nothing, |folded| folded.lsn < lsn))
    }

    /// The groups of the upper aggregation as of this version, the newest one at `lsn`. It must be of a published snapshot.
    pub fn folded(self: &Arc<Self>, lsn: u64, session: &SessionState, pool: &Arc<dyn MemoryPool>) -> Result<RecordBatch> {
        self.with_fold(lsn, session, pool, |folded, layer| folded.groups(layer))
    }

    /// Moves the fold to this version, as [`Version::folded`] does; not back.
    pub fn fold(self: &Arc<Self>, lsn: u64, session: &SessionState, pool: &Arc<dyn MemoryPool>) -> Result<()> {
        match self.folds() && self.is_behind(lsn, true) {
            true => self.with_fold(lsn, session, pool, |_, _| Ok(())),
            false => Ok(()),
        }
    }

    fn with_fold<T>(
        self: &Arc<Self>,
        lsn: u64,
        session: &SessionState,
        pool: &Arc<dyn MemoryPool>,
        read: impl FnOnce(&mut Folded, &Layer) -> Result<T>,
    ) -> Result<T> {
        let layer = self.layer().ok_or_else(|| Error::internal("a view without an upper aggregation is folded"))?;
        if let Some(error) = &self.poison {
            return Err(error.clone());
        }
        let mut place = self.fold.folded.lock();
        // What fails half-way is given up: it is taken out first.
        let mut folded = match place.take().filter(|folded| Arc::ptr_eq(&folded.version.spec, &self.spec)) {
            Some(mut folded) => {
                folded.go_to(self, lsn, layer, session, pool)?;
                folded
            }
            None => Folded::made(self, lsn, layer, session, pool).inspect_err(|error| {
                // The next reader does without it.
                self.fold.is_refused.fetch_or(error.state() == SqlState::OUT_OF_MEMORY, Ordering::Relaxed);
            })?,
        };
        let outcome = read(&mut folded, layer)?;
        if folded.bytes() <= self.home.fold_bytes_max {
            *place = Some(folded);
        } else {
            self.fold.is_refused.store(true, Ordering::Relaxed);
            tracing::warn!(
                view = self.spec.view.name,
                "limits.view.fold_bytes_max is reached: the view is computed from its entities when it is read"
            );
        }
        Ok(outcome)
    }

    /// This version for a fold to hold: without the fold.
    fn alone(&self) -> Arc<Version> {
        let mut version = self.clone();
        version.fold = Arc::default();
        Arc::new(version)
    }
}

fn reservation(pool: &Arc<dyn MemoryPool>) -> MemoryReservation {
    MemoryConsumer::new("FoldedView").register(pool)
}

impl Folded {
    fn made(version: &Arc<Version>, lsn: u64, layer: &Layer, session: &SessionState, pool: &Arc<dyn MemoryPool>) -> Result<Folded> {
        let fields = |types: Vec<DataType>| types.into_iter().map(SortField::new).collect::<Vec<_>>();
        let converter = |types| RowConverter::new(fields(types)).map_err(arrow_failure);
        let mut folded = Folded {
            version: version.alone(),
            lsn,
            keys: converter(layer.key_types.clone())?,
            whole: converter(layer.contribution_types().collect())?,
            places: BTreeMap::new(),
            places_bytes: 0,
            rows: Vec::new(),
            free: Vec::new(),
            tallies: layer.aggregates.iter().map(Tally::new).collect::<Result<_>>()?,
            shown: None,
        };
        let held = reservation(pool);
        version.each(session, &reservation(pool), |entities| {
            let contributions = layer.contributions(&entities)?;
            let steps: Vec<(usize, i64)> = (0..contributions.rows).map(|row| (row, 1)).collect();
            folded.apply(&contributions, layer, &steps)?;
            held.try_resize(folded.bytes()).map_err(failure)
        })?;
        Ok(folded)
    }

    /// What it takes in memory, about.
    fn bytes(&self) -> usize {
        self.places_bytes + self.tallies.iter().map(Tally::bytes).sum::<usize>()
    }

    /// Moves to another version of the same view.
    fn go_to(&mut self, version: &Arc<Version>, lsn: u64, layer: &Layer, session: &SessionState, pool: &Arc<dyn MemoryPool>) -> Result<()> {
        if self.lsn == lsn && self.version.replacements() == version.replacements() {
            // What has been written or merged meanwhile is not held any longer.
            self.version = version.alone();
            return Ok(());
        }
        let selection = Arc::new(Selection::new(version, session, &[], None)?);
        let forth = self.lsn <= lsn;
        let (new, old, since) = if forth { (version, &self.version, self.lsn) } else { (&self.version, version, lsn) };
        let changes = new.changes(Since::Version(Arc::clone(old), since), &selection, reservation(pool))?;
        self.shown = None;
        changes.each_pair(|new, old| {
            let (comes, goes) = if forth { (new, old) } else { (old, new) };
            let (comes, goes) = (layer.contributions(comes)?, layer.contributions(goes)?);
            let (both, steps) = self.difference(&comes, &goes)?;
            self.apply(&both, layer, &steps)
        })?;
        (self.version, self.lsn) = (version.alone(), lsn);
        Ok(())
    }

    /// Both sides in one, and the rows that one has more often than the other.
    fn difference(&self, comes: &Contributions, goes: &Contributions) -> Result<(Contributions, Vec<(usize, i64)>)> {
        let columns = comes.columns.iter().zip(&goes.columns).map(|(comes, goes)| concat(&[comes.as_ref(), goes.as_ref()]));
        let columns = columns.collect::<Result<Vec<_>, _>>().map_err(arrow_failure)?;
        let rows = self.whole.convert_columns(&columns).map_err(arrow_failure)?;
        let mut net: HashMap<&[u8], (usize, i64)> = HashMap::new();
        let both = comes.rows + goes.rows;
        let encoded: Vec<_> = (0..both).map(|row| rows.row(row)).collect();
        for (row, bytes) in encoded.iter().enumerate() {
            net.entry(bytes.data()).or_insert((row, 0)).1 += if row < comes.rows { 1 } else { -1 };
        }
        let mut steps: Vec<(usize, i64)> = net.into_values().filter(|(_, weight)| *weight != 0).collect();
        steps.sort_unstable();
        Ok((Contributions { columns, rows: both }, steps))
    }

    /// Adds rows, or takes them back.
    fn apply(&mut self, contributions: &Contributions, layer: &Layer, steps: &[(usize, i64)]) -> Result<()> {
        if steps.is_empty() {
            return Ok(());
        }
        let width = layer.key_types.len();
        let keys = (width > 0).then(|| self.keys.convert_columns(&contributions.columns[..width]).map_err(arrow_failure)).transpose()?;
        let mut placed = Vec::with_capacity(steps.len());
        for (row, weight) in steps {
            let bytes: &[u8] = keys.as_ref().map_or(&[], |keys| keys.row(*row).data());
            let group = match self.places.get(bytes) {
                Some(group) => *group,
                None => {
                    let group = self.free.pop().unwrap_or_else(|| {
                        self.rows.push(0);
                        self.rows.len() - 1
                    });
                    self.places_bytes += bytes.len() + PLACE_BYTES;
                    self.places.insert(Box::from(bytes), group);
                    group
                }
            };
            self.rows[group] += weight;
            placed.push(Step { row: *row, group, weight: *weight });
        }
        let mut next = width;
        for (tally, aggregate) in self.tallies.iter_mut().zip(&layer.aggregates) {
            let arguments = &contributions.columns[next..next + aggregate.arguments.len()];
            next += arguments.len();
            let filter = aggregate.filter.as_ref().map(|_| {
                next += 1;
                contributions.columns[next - 1].as_boolean()
            });
            tally.apply(arguments, filter, &placed, self.rows.len())?;
        }
        for step in placed.iter().filter(|step| self.rows[step.group] == 0) {
            let bytes: &[u8] = keys.as_ref().map_or(&[], |keys| keys.row(step.row).data());
            if let Some(group) = self.places.remove(bytes) {
                self.places_bytes -= bytes.len() + PLACE_BYTES;
                self.free.push(group);
            }
        }
        Ok(())
    }

    /// The aggregation's output.
    fn groups(&mut self, layer: &Layer) -> Result<RecordBatch> {
        if let Some(shown) = &self.shown {
            return Ok(shown.clone());
        }
        let groups: Vec<usize> = self.places.values().copied().collect();
        let is_nothing = groups.is_empty() && layer.key_types.is_empty();
        let mut columns: Vec<ArrayRef> = Vec::new();
        if !layer.key_types.is_empty() {
            let parser = self.keys.parser();
            columns = self.keys.convert_rows(self.places.keys().map(|bytes| parser.parse(bytes))).map_err(arrow_failure)?;
        }
        for (tally, aggregate) in self.tallies.iter_mut().zip(&layer.aggregates) {
            columns.push(match is_nothing {
                // Without keys there is one group even over nobody.
                true => aggregate.checked(&aggregate.over_nothing().map_err(failure)?)?,
                false => tally.values(&groups)?,
            });
        }
        let columns = columns.iter().zip(layer.schema.fields());
        let columns = columns.map(|(column, field)| super::finish::declared(column, field.data_type())).collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(if is_nothing { 1 } else { groups.len() }));
        let shown = RecordBatch::try_new_with_options(Arc::clone(&layer.schema), columns, &options).map_err(arrow_failure)?;
        self.shown = Some(shown.clone());
        Ok(shown)
    }
}
