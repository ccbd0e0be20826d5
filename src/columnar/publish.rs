//! Writing whole objects so that they outlive a power cut.
//!
//! *Place*: data files and log entries are written through [`Publish`]. `object_store`'s local files are never synced, and
//! one that was cut off by a crash is visible; a remote store has neither problem, so the difference sits behind this trait.
//!
//! *Invariants*: (1) an object becomes visible whole or not at all; (2) when a call returns, the object and its name are
//! durable.
//!
//! *On failure*: a failed sync is never retried; the caller must treat the outcome as unknown.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path as FilePath, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use super::error::{ColumnarError, Result};
use crate::task::Spawner;

/// Ending of a file that is being written.
pub const UNFINISHED: &str = ".tmp";

/// Whether [`Publish::create`] made the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// It did.
    Yes,
    /// An object of that name was there already; nothing was changed.
    Exists,
}

/// Durable, atomic writes of whole objects. Paths are relative to the table.
#[async_trait]
pub trait Publish: Debug + Send + Sync {
    /// Put if absent.
    async fn create(&self, path: &str, bytes: Bytes) -> Result<Created>;

    /// Put, replacing what is there.
    async fn replace(&self, path: &str, bytes: Bytes) -> Result<()>;
}

/// [`Publish`] for a local directory.
#[derive(Debug)]
pub struct LocalPublish {
    root: PathBuf,
    next: AtomicU64,
}

impl LocalPublish {
    /// For objects below `root`, making it and `directories` in it, durably.
    pub fn open(root: &FilePath, directories: &[&str]) -> io::Result<LocalPublish> {
        for directory in directories {
            fs::create_dir_all(root.join(directory))?;
        }
        sync_directory(root)?;
        if let Some(parent) = root.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_directory(parent)?;
        }
        Ok(LocalPublish { root: root.to_owned(), next: AtomicU64::new(0) })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        path: &str,
        work: impl FnOnce(&FilePath, &FilePath) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let target = self.root.join(path);
        let unfinished = self.root.join(format!("{path}.{}{UNFINISHED}", self.next.fetch_add(1, Ordering::Relaxed)));
        Spawner::current()
            .blocking(move || {
                let done = work(&unfinished, &target);
                if done.is_err() {
                    // The failure itself is what matters; a leftover is collected later.
                    let _ = fs::remove_file(&unfinished);
                }
                done
            })
            .await
            .map_err(|stopped| ColumnarError::Invariant(format!("writing a table file was cut off: {stopped}")))?
            .map_err(ColumnarError::io("write", path))
    }
}

#[async_trait]
impl Publish for LocalPublish {
    async fn create(&self, path: &str, bytes: Bytes) -> Result<Created> {
        self.blocking(path, move |unfinished, target| {
            write_synced(unfinished, &bytes)?;
            let created = match fs::hard_link(unfinished, target) {
                Ok(()) => Created::Yes,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Created::Exists,
                Err(error) => return Err(error),
            };
            fs::remove_file(unfinished)?;
            sync_parent(target)?;
            Ok(created)
        })
        .await
    }

    async fn replace(&self, path: &str, bytes: Bytes) -> Result<()> {
        self.blocking(path, move |unfinished, target| {
            write_synced(unfinished, &bytes)?;
            fs::rename(unfinished, target)?;
            sync_parent(target)
        })
        .await
    }
}

fn write_synced(path: &FilePath, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_parent(path: &FilePath) -> io::Result<()> {
    path.parent().map_or(Ok(()), sync_directory)
}

fn sync_directory(path: &FilePath) -> io::Result<()> {
    File::open(path)?.sync_all()
}
