//! What can go wrong with cold rows.
//!
//! *Place*: used by every file of `columnar`; converted to the client's error at its public functions.

use std::error::Error as _;
use std::io;

use crate::error::{Error, SqlState};

/// An error of the columnar storage.
#[derive(Debug, thiserror::Error)]
pub enum ColumnarError {
    /// Bytes read back are not what was written.
    #[error("table file \"{path}\" is damaged: {problem}")]
    Damaged {
        /// Path below the table's directory.
        path: String,
        /// What does not fit.
        problem: String,
    },
    /// The object store refused.
    #[error("could not {action} table file \"{path}\"")]
    Storage {
        /// Verb for the message.
        action: &'static str,
        /// Path below the table's directory.
        path: String,
        /// The cause.
        source: object_store::Error,
    },
    /// The file system refused.
    #[error("could not {action} table file \"{path}\"")]
    Io {
        /// Verb for the message.
        action: &'static str,
        /// Path below the table's directory.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// Somebody else committed first, or a file to be removed is no longer listed.
    #[error("table \"{table}\" was changed by another writer: {problem}")]
    Conflict {
        /// The table.
        table: String,
        /// What was found.
        problem: String,
    },
    /// A commit may or may not be in the log.
    #[error("could not commit to the log of table \"{table}\"")]
    Unknown {
        /// The table.
        table: String,
        /// The cause.
        source: Box<ColumnarError>,
    },
    /// An earlier commit may or may not be in the log.
    #[error("table \"{table}\" takes no commits after a failed one")]
    Unsettled {
        /// The table.
        table: String,
    },
    /// The log was written by something that Verus does not understand, or for other columns.
    #[error("table log of \"{table}\" does not fit: {problem}")]
    Incompatible {
        /// The table.
        table: String,
        /// What does not fit.
        problem: String,
    },
    /// Arrow or Parquet refused what Verus gave it.
    #[error("could not {action} columns: {source}")]
    Encoding {
        /// Verb for the message.
        action: &'static str,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A broken invariant.
    #[error("{0}")]
    Invariant(String),
}

/// Result with [`ColumnarError`].
pub type Result<T, E = ColumnarError> = std::result::Result<T, E>;

impl ColumnarError {
    /// Wraps an error of Arrow, Parquet or JSON; for `map_err`.
    pub fn encoding<E>(action: &'static str) -> impl FnOnce(E) -> ColumnarError
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        move |source| ColumnarError::Encoding { action, source: source.into() }
    }

    /// Wraps an error of the object store; for `map_err`.
    pub fn storage(action: &'static str, path: impl Into<String>) -> impl FnOnce(object_store::Error) -> ColumnarError {
        let path = path.into();
        move |source| ColumnarError::Storage { action, path, source }
    }

    /// Wraps an error of the file system; for `map_err`.
    pub fn io(action: &'static str, path: impl Into<String>) -> impl FnOnce(io::Error) -> ColumnarError {
        let path = path.into();
        move |source| ColumnarError::Io { action, path, source }
    }

    /// A file whose content is wrong.
    pub fn damaged(path: impl Into<String>, problem: impl Into<String>) -> ColumnarError {
        ColumnarError::Damaged { path: path.into(), problem: problem.into() }
    }
}

/// Whether the disk is full, anywhere in the chain of causes.
fn disk_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return matches!(io.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        }
        cause = error.source();
    }
    false
}

impl From<ColumnarError> for Error {
    fn from(error: ColumnarError) -> Self {
        let state = match &error {
            ColumnarError::Damaged { .. } => SqlState::DATA_CORRUPTED,
            ColumnarError::Storage { source, .. } if disk_full(source) => SqlState::DISK_FULL,
            ColumnarError::Io { source, .. } if disk_full(source) => SqlState::DISK_FULL,
            ColumnarError::Storage { .. } | ColumnarError::Io { .. } => SqlState::IO_ERROR,
            ColumnarError::Conflict { .. } => SqlState::SERIALIZATION_FAILURE,
            ColumnarError::Unknown { .. } | ColumnarError::Unsettled { .. } => SqlState::IO_ERROR,
            ColumnarError::Incompatible { .. } => SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            ColumnarError::Encoding { .. } | ColumnarError::Invariant(_) => SqlState::INTERNAL_ERROR,
        };
        let cause = error.source().filter(|_| !matches!(error, ColumnarError::Encoding { .. })).map(ToString::to_string);
        let hint = match &error {
            ColumnarError::Damaged { .. } => Some("Restore the file from a backup; nothing was changed."),
            ColumnarError::Unknown { .. } | ColumnarError::Unsettled { .. } => {
                Some("Restart the server: it reads from the log what was committed.")
            }
            _ => None,
        };
        let mut told = Error::new(state, error.to_string());
        if let Some(cause) = cause {
            told = told.detail(cause);
        }
        match hint {
            Some(hint) => told.hint(hint),
            None => told,
        }
    }
}
