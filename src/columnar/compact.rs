//! Which files to merge.
//!
//! *Place*: `merge`, which does it.
//!
//! A file belongs to the smallest *window* of days that holds all its event times: a UTC date, or an aligned window of
//! [`spans`]. What one merge writes is one sorted *run*, however many files that is: of it a partition lies in one file, two at
//! most. Within a window:
//!
//! 1. As soon as `merge_files_min` runs are of one size class, they and all smaller ones are merged, so a row is rewritten once a
//!    size class.
//! 2. When more than `overlap_max` files of a date cover one (partition, time), these are merged, as long as they are few rows.
//! 3. When a window has settled (the newest event is a day past it, or nothing has been written into it for `settle_ms`), all runs in
//!    it become one, the widest window of at most `span_rows_max` rows first: the rows of one partition then lie in one or two
//!    files a window, whatever the number of dates. A run that is more than four times what has come since stays.
//!
//! Windows are short against the table's retention, which drops whole files, and rows in them few, because a question about a date but
//! no partition reads the whole window. When nothing is to be merged, files with dead rows are rewritten without them, the one
//! with most first. Whatever is rewritten loses its dead rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::Int64Type;
use datafusion::common::ScalarValue;
use uuid::Uuid;

use super::cluster::DAY_US;
use super::error::{ColumnarError, Result};
use super::log::stats::micros_range;
use super::{DataFile, Dead, Deleted, Layout};
use crate::config::limits::ColumnarLimits;

/// Rows of the smallest size class; each further class is four times as large.
const CLASS_ROWS: u64 = 4_096;

/// A window's days are an eighth of the retention at most.
const RETENTION_PARTS: i64 = 8;

/// A run is left alone while what is to be merged with it is smaller by more than this.
const GROWTH_PART: u64 = 4;

/// Event times of a file in microseconds.
fn times(layout: &Layout, file: &DataFile) -> Option<(i64, i64)> {
    micros_range(file.stats.get(layout.event_time?)?.as_ref()?)
}

/// The greatest event time of a file in microseconds.
pub fn last_time(layout: &Layout, file: &DataFile) -> Option<i64> {
    times(layout, file).map(|(_, last)| last)
}

/// Files of which every row is older than `retain_from`.
pub fn expired(layout: &Layout, files: &[Arc<DataFile>], retain_from: i64) -> Vec<Arc<DataFile>> {
    files.iter().filter(|file| times(layout, file).is_some_and(|(_, last)| last < retain_from)).cloned().collect()
}

/// Days of a table's windows, the widest first, the last a single date. Each is a whole number of the next.
pub fn spans(layout: &Layout, limits: &ColumnarLimits) -> Vec<i64> {
    let retained = layout.retention_us.map_or(i64::MAX, |us| us / DAY_US / RETENTION_PARTS);
    let most = limits.span_days_max.min(retained).max(1);
    let widest = 1_i64 << most.ilog2().min(16);
    let wide = std::iter::successors(Some(widest), |days| Some(days / 4)).take_while(|days| *days >= 4);
    wide.chain([1]).collect()
}

/// Aligned days: their number, and how many such lie between 1970 and them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Window {
    days: i64,
    index: i64,
}

impl Window {
    /// The smallest window that holds two times.
    fn around(first: i64, last: i64, spans: &[i64]) -> Option<Window> {
        let day = |time: i64| time.div_euclid(DAY_US);
        let whole = spans.iter().rev().find(|days| day(first).div_euclid(**days) == day(last).div_euclid(**days))?;
        Some(Window { days: *whole, index: day(first).div_euclid(*whole) })
    }

    /// The smallest window that holds all rows of some files.
    pub fn of(layout: &Layout, files: &[Arc<DataFile>], spans: &[i64]) -> Option<Window> {
        let mut times = files.iter().map(|file| times(layout, file));
        let (mut first, mut last) = times.next()??;
        for time in times {
            let (from, to) = time?;
            (first, last) = (first.min(from), last.max(to));
        }
        Window::around(first, last, spans)
    }

    /// The first microsecond after it.
    fn end(&self) -> i64 {
        (self.index + 1).saturating_mul(self.days).saturating_mul(DAY_US)
    }
}

/// Files that one merge wrote, or one that no merge did.
struct Run<'a> {
    files: Vec<&'a Arc<DataFile>>,
    rows: u64,
}

/// The runs of some files, the smallest first.
fn runs<'a>(files: impl Iterator<Item = &'a Arc<DataFile>>) -> Vec<Run<'a>> {
    let mut named: BTreeMap<Uuid, Run<'a>> = BTreeMap::new();
    let mut runs = Vec::new();
    for file in files {
        match file.run {
            None => runs.push(Run { files: vec![file], rows: file.rows }),
            Some(run) => {
                let run = named.entry(run).or_insert(Run { files: Vec::new(), rows: 0 });
                run.files.push(file);
                run.rows += file.rows;
            }
        }
    }
    runs.extend(named.into_values());
    runs.sort_by_key(|run| (run.rows, run.files[0].lsn_range));
    runs
}

fn files_of(runs: &[Run<'_>]) -> Vec<Arc<DataFile>> {
    runs.iter().flat_map(|run| run.files.iter().map(|file| Arc::clone(file))).collect()
}

/// What is known besides the files.
pub struct Picking<'a> {
    /// The table's.
    pub layout: &'a Layout,
    /// The table's.
    pub limits: &'a ColumnarLimits,
    /// Rows that are merged at once; more are merged in slices.
    pub rows_max: u64,
    /// Milliseconds since 1970.
    pub now_ms: i64,
    /// Sets of files that cannot be cut into slices.
    pub refused: &'a dyn Fn(&[Arc<DataFile>]) -> bool,
}

impl Picking<'_> {
    /// The files that are to be merged next: at least two; none when all is well.
    pub fn pick(&self, files: &[Arc<DataFile>]) -> Vec<Arc<DataFile>> {
        let spans = spans(self.layout, self.limits);
        let mut windows: BTreeMap<Option<(i64, Window)>, Vec<&Arc<DataFile>>> = BTreeMap::new();
        for file in files {
            let window = times(self.layout, file).and_then(|(first, last)| Window::around(first, last, &spans));
            windows.entry(window.map(|window| (window.end(), window))).or_default().push(file);
        }
        // The newest first: it is what most queries read, and where small files come in.
        let groups = || windows.iter().rev().map(|(window, group)| (window.map(|(_, window)| window), group));
        let first = groups().map(|(window, group)| self.within(window, group)).find(|picked| !picked.is_empty());
        first.unwrap_or_else(|| {
            let within: Vec<_> = groups().filter_map(|(window, group)| Some((window?, group))).collect();
            self.settled(files, &within, &spans)
        })
    }

    fn within(&self, window: Option<Window>, group: &[&Arc<DataFile>]) -> Vec<Arc<DataFile>> {
        let mut picked = Vec::new();
        if window.is_some() && self.layout.partition_by.is_some() {
            picked = self.tier(group);
        }
        if picked.is_empty() {
            picked = self.small(group);
        }
        if picked.is_empty() && window.is_some_and(|window| window.days == 1) {
            picked = self.overlapping(group);
        }
        picked
    }

    /// The runs of the smallest class that is full, with all smaller ones.
    fn tier(&self, group: &[&Arc<DataFile>]) -> Vec<Arc<DataFile>> {
        let runs = runs(group.iter().copied());
        for full in runs.chunk_by(|left, right| class(left.rows) == class(right.rows)) {
            if full.len() >= self.limits.merge_files_min.max(2) {
                let last = full[full.len() - 1].rows;
                let upto = runs.partition_point(|run| run.rows <= last);
                let picked = files_of(&runs[..upto]);
                if self.fits(&picked) {
                    return picked;
                }
            }
        }
        Vec::new()
    }

    /// Whether some files can be merged in slices.
    fn fits(&self, files: &[Arc<DataFile>]) -> bool {
        rows_of(files) <= self.limits.merge_rows_max.max(self.rows_max) && !(self.refused)(files)
    }

    /// As [`Picking::tier`], but for files that have to be merged all at once.
    fn small(&self, group: &[&Arc<DataFile>]) -> Vec<Arc<DataFile>> {
        // Files that were closed for their size are as large as files get; parts of a run are not for themselves.
        let is_whole = |file: &DataFile| file.run.is_none() && file.bytes < self.limits.file_bytes_max as u64 / 2;
        let mut mergeable: Vec<_> = group.iter().filter(|file| is_whole(file)).collect();
        mergeable.sort_by_key(|file| (file.rows, file.lsn_range));
        for full in mergeable.chunk_by(|left, right| class(left.rows) == class(right.rows)) {
            if full.len() >= self.limits.merge_files_min.max(2) {
                let last = full[full.len() - 1].rows;
                let picked = bounded(mergeable.iter().filter(|file| file.rows <= last).map(|file| **file), self.rows_max);
                if picked.len() >= 2 && !(self.refused)(&picked) {
                    return picked;
                }
            }
        }
        Vec::new()
    }

    /// The files around the (partition, time) that most files cover, when they are too many. Parts of one sorted sequence
    /// never count as overlapping more than three times: see [`Span`].
    fn overlapping(&self, group: &[&Arc<DataFile>]) -> Vec<Arc<DataFile>> {
        let mut spans: Vec<(Span, &Arc<DataFile>)> = group.iter().filter_map(|file| Some((Span::of(self.layout, file)?, *file))).collect();
        spans.sort_by_key(|(_, file)| (file.rows, file.lsn_range));
        let covering = |point: &Key| spans.iter().filter(|(span, _)| span.covers(point)).count();
        let deepest = spans.iter().map(|(span, _)| &span.first).max_by_key(|point| covering(point));
        let Some(point) = deepest.filter(|point| covering(point) > self.limits.overlap_max) else { return Vec::new() };
        let picked = bounded(spans.iter().filter(|(span, _)| span.covers(point)).map(|(_, file)| *file), self.rows_max);
        if picked.len() < 2 || (self.refused)(&picked) { Vec::new() } else { picked }
    }

    /// All files of a settled window whose runs are to become one.
    fn settled(&self, files: &[Arc<DataFile>], groups: &[(Window, &Vec<&Arc<DataFile>>)], spans: &[i64]) -> Vec<Arc<DataFile>> {
        let Some(newest) = files.iter().filter_map(|file| last_time(self.layout, file)).max() else { return Vec::new() };
        for days in spans {
            let mut windows: BTreeMap<i64, Vec<&Arc<DataFile>>> = BTreeMap::new();
            for (window, group) in groups.iter().filter(|(window, _)| window.days <= *days) {
                windows.entry((window.index * window.days).div_euclid(*days)).or_default().extend(group.iter().copied());
            }
            for (index, group) in windows.into_iter().rev() {
                let window = Window { days: *days, index };
                let written_ms = group.iter().map(|file| file.written_ms).max().unwrap_or(i64::MAX);
                let has_settled =
                    window.end().saturating_add(DAY_US) <= newest || written_ms.saturating_add(self.limits.settle_ms) <= self.now_ms;
                if has_settled && let Some(picked) = self.joined(window, group) {
                    return picked;
                }
            }
        }
        Vec::new()
    }

    /// The files of a window, when making one run of them is worth it.
    fn joined(&self, window: Window, group: Vec<&Arc<DataFile>>) -> Option<Vec<Arc<DataFile>>> {
        let runs = runs(group.into_iter());
        let (largest, rest) = runs.split_last()?;
        let rows: u64 = rest.iter().map(|run| run.rows).sum();
        let most = match (window.days, self.layout.partition_by) {
            // Without partitions rows are in order of time: all that is won is fewer files.
            (_, None) => self.limits.row_group_rows as u64,
            (1, Some(_)) => self.limits.merge_rows_max,
            (_, Some(_)) => self.limits.span_rows_max,
        };
        let is_worth = !rest.is_empty() && rows.saturating_mul(GROWTH_PART) >= largest.rows && rows + largest.rows <= most;
        let picked = is_worth.then(|| files_of(&runs))?;
        self.fits(&picked).then_some(picked)
    }
}

/// Of a file with fewer dead rows than one in this many the rewriting can wait.
const DEAD_ONE_IN: u64 = 8;

/// The file with most dead rows, when it is due.
pub fn most_dead(files: &[Arc<DataFile>], dead: &Dead<'_>) -> Option<Arc<DataFile>> {
    let stale = files.iter().filter(|file| dead.deleted.meets(file)).map(|file| (dead.deleted.rows_in(file), file));
    let due = stale.filter(|(rows, file)| dead.thorough || rows.saturating_mul(DEAD_ONE_IN) >= file.rows);
    due.max_by_key(|(rows, _)| *rows).map(|(_, file)| Arc::clone(file))
}

/// The rows of a batch (LSN last) that live.
pub fn living(batch: &RecordBatch, deleted: &Deleted) -> Result<RecordBatch> {
    let lsns = batch.columns().last().and_then(|column| column.as_primitive_opt::<Int64Type>());
    let lsns = lsns.ok_or_else(|| ColumnarError::Invariant("the last column of a layout is the LSN".to_owned()))?;
    match deleted.live(lsns.values()) {
        None => Ok(batch.clone()),
        Some(live) => filter_record_batch(batch, &live).map_err(ColumnarError::encoding("filter")),
    }
}

/// Rows of some files.
pub fn rows_of(files: &[Arc<DataFile>]) -> u64 {
    files.iter().map(|file| file.rows).sum()
}

fn class(rows: u64) -> u32 {
    rows.div_ceil(CLASS_ROWS).max(1).ilog2() / 2
}

fn bounded<'a>(files: impl Iterator<Item = &'a Arc<DataFile>>, rows_max: u64) -> Vec<Arc<DataFile>> {
    let mut rows = 0;
    let fitting = files.take_while(|file| {
        rows += file.rows;
        rows <= rows_max
    });
    fitting.cloned().collect()
}

/// A place in the order of rows within one date.
type Key = (Option<ScalarValue>, i64);

/// From (least partition, least time) to (greatest partition, greatest time): at least what a file covers, and exactly
/// that for a file of one partition.
struct Span {
    first: Key,
    last: Key,
}

impl Span {
    fn of(layout: &Layout, file: &DataFile) -> Option<Span> {
        let (first, last) = times(layout, file)?;
        let (least, greatest) = match layout.partition_by {
            None => (None, None),
            Some(index) => {
                let stats = file.stats.get(index)?.as_ref()?;
                (Some(stats.min.clone()), Some(stats.max.clone()))
            }
        };
        Some(Span { first: (least, first), last: (greatest, last) })
    }

    fn covers(&self, point: &Key) -> bool {
        self.first <= *point && *point <= self.last
    }
}
