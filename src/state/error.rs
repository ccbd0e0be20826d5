//! What goes wrong with the state database.

use std::io;
use std::path::PathBuf;

use rocksdb::ErrorKind;

use crate::error::{Error, SqlState};

/// An error of the state database.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// RocksDB refused.
    #[error("could not {action} view state: {source}")]
    Rocks {
        /// A verb.
        action: &'static str,
        /// RocksDB's words.
        source: rocksdb::Error,
    },
    /// The file system refused.
    #[error("could not {action} \"{path}\": {source}", path = path.display())]
    Io {
        /// A verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// RocksDB's own log has lost writes that had been synced.
    #[error("view state in \"{path}\" ends at write {found}, {synced} had been synced", path = path.display())]
    Lost {
        /// The database's directory.
        path: PathBuf,
        /// Newest write that is there.
        found: u64,
        /// Newest write that was synced.
        synced: u64,
    },
    /// The file that says what was synced is not what was written.
    #[error("view state file \"{path}\" is damaged", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

impl StateError {
    pub(super) fn rocks(action: &'static str) -> impl FnOnce(rocksdb::Error) -> StateError {
        move |source| StateError::Rocks { action, source }
    }

    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> StateError {
        let path = path.into();
        move |source| StateError::Io { action, path, source }
    }
}

impl From<StateError> for Error {
    fn from(error: StateError) -> Self {
        let state = match &error {
            StateError::Rocks { source, .. } => match source.kind() {
                ErrorKind::Corruption => SqlState::DATA_CORRUPTED,
                // RocksDB has no code for a full disk, only the system's words.
                _ if source.as_ref().contains("No space left") || source.as_ref().contains("quota exceeded") => SqlState::DISK_FULL,
                _ if source.as_ref().contains("LOCK") => SqlState::OBJECT_IN_USE,
                _ => SqlState::IO_ERROR,
            },
            StateError::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => SqlState::DISK_FULL,
                _ => SqlState::IO_ERROR,
            },
            StateError::Lost { .. } | StateError::Damaged { .. } => SqlState::DATA_CORRUPTED,
        };
        Error::new(state, error.to_string())
    }
}
