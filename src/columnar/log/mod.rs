//! The table log: which files are the table, in which order that came about, and how far the flush has come.
//!
//! *Place*: `ColumnTable` opens and commits; only this module knows the log's format. [`TableLog`] is the seam at which
//! another implementation of the protocol can take over.

pub mod action;
pub mod checkpoint;
pub mod delta;
pub mod stats;

use std::fmt::Debug;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;

use super::error::Result;
use super::{DataFile, Layout, Version};

/// The table as of one commit.
#[derive(Clone, Debug)]
pub struct Listing {
    /// What readers see.
    pub version: Arc<Version>,
    /// The columns that the statistics of the files follow.
    pub schema: SchemaRef,
    /// What the log keeps besides.
    pub header: delta::Header,
}

/// What one commit does.
#[derive(Debug)]
pub struct Change {
    /// Files to list.
    pub adds: Vec<DataFile>,
    /// Files to unlist; the caller has checked that they are listed.
    pub removes: Vec<Arc<DataFile>>,
    /// Rows with an LSN below this are in the files.
    pub flushed_lsn: u64,
    /// False when the rows of the table stay the same (compaction).
    pub data_change: bool,
}

/// A log of commits, each all or nothing, in one order.
#[async_trait]
pub trait TableLog: Debug + Send + Sync {
    /// The newest state, for readers of `layout`; writes the first commit when there is none. Columns that the log does not
    /// have yet are added to it; columns that it has besides are left alone.
    async fn open(&self, layout: &Layout) -> Result<Listing>;

    /// Appends one commit after `base`; a conflict when somebody else was there first.
    async fn commit(&self, base: &Listing, change: Change) -> Result<Listing>;

    /// Adds the columns of `layout` that the log lacks, nullable whatever they are in Verus: files before them hold NULL for others.
    async fn widen(&self, base: &Listing, layout: &Layout) -> Result<Listing>;
}
