//! Merging files, in steps that are bounded in memory and time.
//!
//! *Place*: the store's background work calls [`ColumnTable::compact`] again and again; `compact` picks, `slice` cuts.
//!
//! A merge of more rows than are to be in memory at once is done partition range by partition range, one a call. Its files are
//! written but not listed until the last; then one commit puts them in the place of what was merged.
//!
//! *Invariants*: (1) rows read and rows written of a merge add up to what its files say, or it is not committed; (2) what was
//! merged stays listed until then, so that its dead rows are remembered (see [`Deleted::forget_absent`]): a row that is deleted
//! between two steps is dead in the new file by the same LSN; (3) one merge of a table at a time.
//!
//! *On failure*: what was written for a merge that ends early is nobody's, and [`ColumnTable::collect`] deletes it.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use super::cluster::Cuts;
use super::compact::{self, Picking, Window};
use super::error::{self, ColumnarError};
use super::slice::{self, Pages, Slice};
use super::{ColumnTable, DataFile, Deleted, Version};
use crate::clock::{Clock, SystemClock};
use crate::error::Result;

/// What a round of compaction knows of dead rows.
#[derive(Clone, Copy, Debug)]
pub struct Dead<'a> {
    /// The dead rows: all that commits below `clean_lsn` deleted, perhaps more.
    pub deleted: &'a Deleted,
    /// See [`DataFile::clean_lsn`].
    pub clean_lsn: u64,
    /// Files with any dead row are rewritten; otherwise only those of which a large part is dead.
    pub thorough: bool,
}

/// Sets of files that could not be cut into slices and are not tried again: so many, the oldest forgotten first.
const REFUSED_MAX: usize = 256;

/// A slice is planned by the statistics of pages, each of which may belong to its neighbours: it is made smaller by a part of
/// this many, and it may turn out larger by half.
const SLACK_PARTS: u64 = 4;

/// The merge under way, and what could not be merged.
#[derive(Debug, Default)]
pub struct Merging {
    job: Option<Job>,
    /// Hashes of the paths.
    refused: VecDeque<u64>,
}

/// A merge under way.
#[derive(Debug)]
struct Job {
    picked: Vec<Arc<DataFile>>,
    /// What is still to be done. None: all rows at once.
    slices: VecDeque<Option<Arc<Slice>>>,
    cuts: Cuts,
    clean_lsn: u64,
    adds: Vec<DataFile>,
    /// Rows read, and how many of them were dead.
    read: u64,
    removed: u64,
}

fn key(files: &[Arc<DataFile>]) -> u64 {
    let mut paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
    paths.sort_unstable();
    xxh3_64(paths.concat().as_bytes())
}

impl ColumnTable {
    /// Whether files of a version hold nothing but rows before `retain_from` (microseconds of event time).
    pub fn has_expired(&self, version: &Version, retain_from: i64) -> bool {
        !compact::expired(&self.layout, &version.files, retain_from).is_empty()
    }

    /// The greatest event time, microseconds, of what [`ColumnTable::compact`] would unlist for `retain_from`; none when nothing.
    pub fn expires(&self, retain_from: i64) -> Option<i64> {
        let expired = compact::expired(&self.layout, &self.version().files, retain_from);
        expired.iter().filter_map(|file| compact::last_time(&self.layout, file)).max()
    }

    /// One step: unlists files whose rows all lie before `retain_from` (microseconds of event time); then goes on with the merge under
    /// way, or picks files that are better merged, or one with dead rows, and begins. The new version when there is one.
    /// `rows_max` bounds the rows of a step; a merge of more takes several, see [`ColumnTable::is_merging`].
    pub async fn compact(&self, retain_from: Option<i64>, rows_max: u64, dead: &Dead<'_>) -> Result<Option<Arc<Version>>> {
        let mut done = None;
        if let Some(retain_from) = retain_from {
            let expired = compact::expired(&self.layout, &self.version().files, retain_from);
            if !expired.is_empty() {
                done = Some(self.commit_change(Vec::new(), expired, None, true).await?);
            }
        }
        let mut merging = self.shared.merging.lock().await;
        let mut job = merging.job.take();
        if let Some(unwanted) = job.take_if(|job| !self.is_wanted(job)) {
            self.abandon(&unwanted.adds);
        }
        if job.is_none() {
            job = self.next_job(&mut merging, rows_max, dead).await?;
        }
        let Some(mut job) = job else { return Ok(done) };
        match self.step(&mut job, rows_max, dead).await {
            Ok(true) => {}
            // More rows of a slice than its pages said: as it is, then.
            Ok(false) => {
                self.abandon(&job.adds);
                refuse(&mut merging, &job.picked);
                return Ok(done);
            }
            Err(error) => {
                self.abandon(&job.adds);
                return Err(error.into());
            }
        }
        if !job.slices.is_empty() {
            merging.job = Some(job);
            return Ok(done);
        }
        Ok(Some(self.finish(job).await?))
    }

    /// Whether a merge has begun that further calls of [`ColumnTable::compact`] go on with.
    pub async fn is_merging(&self) -> bool {
        self.shared.merging.lock().await.job.is_some()
    }

    /// Whether all files of a merge are still listed and its new files have this handle's columns.
    fn is_wanted(&self, job: &Job) -> bool {
        let version = self.version();
        let listed: HashSet<&str> = version.files.iter().map(|file| file.path.as_str()).collect();
        let columns = self.layout.schema.fields().len();
        let fits = job.adds.iter().all(|file| file.stats.len() == columns);
        fits && job.picked.iter().all(|file| listed.contains(file.path.as_str()))
    }

    async fn next_job(&self, merging: &mut Merging, rows_max: u64, dead: &Dead<'_>) -> error::Result<Option<Job>> {
        let version = self.version();
        loop {
            let refused = |files: &[Arc<DataFile>]| merging.refused.contains(&key(files));
            let limits = &self.shared.limits;
            let picking = Picking { layout: &self.layout, limits, rows_max, now_ms: SystemClock.now() / 1000, refused: &refused };
            let mut picked = picking.pick(&version.files);
            if picked.is_empty() {
                picked.extend(compact::most_dead(&version.files, dead));
            }
            if picked.is_empty() {
                return Ok(None);
            }
            // One file was written at once, too.
            let slices = if picked.len() == 1 || compact::rows_of(&picked) <= rows_max {
                Some(VecDeque::from([None]))
            } else {
                self.slices(&picked, rows_max).await?
            };
            let Some(slices) = slices else {
                refuse(merging, &picked);
                continue;
            };
            let spans = compact::spans(&self.layout, limits);
            let cuts = match Window::of(&self.layout, &picked, &spans) {
                Some(_) => Cuts::None,
                None => Cuts::Dates { rows_min: limits.date_rows_min, days: spans[0] },
            };
            return Ok(Some(Job { picked, slices, cuts, clean_lsn: dead.clean_lsn, adds: Vec::new(), read: 0, removed: 0 }));
        }
    }

    /// Slices of the partitions of some files; none when they cannot be cut.
    async fn slices(&self, picked: &[Arc<DataFile>], rows_max: u64) -> error::Result<Option<VecDeque<Option<Arc<Slice>>>>> {
        let mut pages = Vec::with_capacity(picked.len());
        for file in picked {
            let footer = self.shared.reads.footer(file).await?;
            let Some(of_file) = Pages::of(&self.layout, &footer)? else { return Ok(None) };
            pages.push(of_file);
        }
        let slices = slice::slices(&pages, rows_max - rows_max / SLACK_PARTS, rows_max)?;
        Ok(slices.map(|slices| slices.into_iter().map(|slice| Some(Arc::new(slice))).collect()))
    }

    /// Merges the next slice. False when it is too large.
    async fn step(&self, job: &mut Job, rows_max: u64, dead: &Dead<'_>) -> error::Result<bool> {
        let Some(slice) = job.slices.pop_front() else { return Ok(true) };
        let mut batches = Vec::new();
        let mut rows = 0;
        for file in &job.picked {
            for batch in self.rows_of(file, slice.clone()).await? {
                rows += batch.num_rows() as u64;
                let live = compact::living(&batch, dead.deleted)?;
                job.removed += (batch.num_rows() - live.num_rows()) as u64;
                batches.push(live);
            }
            if slice.is_some() && rows > rows_max + rows_max / 2 {
                return Ok(false);
            }
        }
        job.read += rows;
        job.adds.extend(self.write_cut(batches, job.clean_lsn, job.cuts).await?);
        Ok(true)
    }

    async fn finish(&self, job: Job) -> error::Result<Arc<Version>> {
        let Job { picked, mut adds, read, removed, cuts, .. } = job;
        let after: u64 = adds.iter().map(|file| file.rows).sum();
        let listed = compact::rows_of(&picked);
        if read != listed || listed != after + removed {
            self.abandon(&adds);
            let problem = format!("merging {listed} rows of \"{}\", {removed} of them dead, made {after}", self.shared.name);
            return Err(ColumnarError::Invariant(problem));
        }
        // What takes the place of a part of a run is a part of it.
        let part = picked.first().and_then(|file| file.run).filter(|run| picked.iter().all(|file| file.run == Some(*run)));
        let run = part.or_else(|| (adds.len() > 1 && cuts == Cuts::None).then(Uuid::now_v7));
        for file in &mut adds {
            file.run = run;
        }
        let unlisted = adds.clone();
        match self.commit_change(adds, picked, None, removed > 0).await {
            Ok(version) => Ok(version),
            Err(error) => {
                // After an unknown outcome they may be listed: they stay, and the next start knows.
                if !matches!(error, ColumnarError::Unknown { .. }) {
                    self.abandon(&unlisted);
                }
                Err(error)
            }
        }
    }

    /// Merges some files at once.
    #[cfg(test)]
    pub(super) async fn merge(&self, picked: Vec<Arc<DataFile>>, dead: &Dead<'_>) -> Result<Arc<Version>> {
        let slices = VecDeque::from([None]);
        let mut job = Job { picked, slices, cuts: Cuts::None, clean_lsn: dead.clean_lsn, adds: Vec::new(), read: 0, removed: 0 };
        self.step(&mut job, u64::MAX / 2, dead).await?;
        Ok(self.finish(job).await?)
    }
}

fn refuse(merging: &mut Merging, files: &[Arc<DataFile>]) {
    if merging.refused.len() >= REFUSED_MAX {
        merging.refused.pop_front();
    }
    merging.refused.push_back(key(files));
}
