//! What goes wrong with the log.

use std::io;
use std::path::PathBuf;

use crate::error::{Error, SqlState};

/// An error of the log.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
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
    /// A durable part of the log is not what was written.
    #[error("write-ahead log file \"{path}\" is damaged at offset {offset}: {what}", path = path.display())]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where the bad header or record begins.
        offset: u64,
        /// What is wrong with it.
        what: String,
    },
    /// A newer Verus wrote it.
    #[error("write-ahead log file \"{path}\" has format {found}, this server reads format {known}", path = path.display())]
    Format {
        /// The segment.
        path: PathBuf,
        /// Its format version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// The record is larger than recovery would accept.
    #[error("log record of {bytes} bytes exceeds the limit of {max} bytes")]
    TooLarge {
        /// Its payload.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// The record does not continue the log.
    #[error("log record {first_lsn}..{next_lsn} does not continue the log at {expected}")]
    OutOfOrder {
        /// Its first LSN.
        first_lsn: u64,
        /// One past its last.
        next_lsn: u64,
        /// Where the log ends.
        expected: u64,
    },
    /// An earlier failure left the end of the log unknown.
    #[error("write-ahead log is closed after an earlier failure: {0}")]
    Poisoned(String),
}

impl WalError {
    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> WalError {
        let path = path.into();
        move |source| WalError::Io { action, path, source }
    }
}

impl From<WalError> for Error {
    fn from(error: WalError) -> Self {
        let message = error.to_string();
        match error {
            WalError::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::new(SqlState::DISK_FULL, message),
                _ => Error::new(SqlState::IO_ERROR, message),
            },
            WalError::Damaged { .. } => Error::new(SqlState::DATA_CORRUPTED, message)
                .detail("Acknowledged data may be missing from here on. Nothing has been changed.")
                .hint("Restore the file from a backup or a replica of the data directory."),
            WalError::Format { .. } => Error::new(SqlState::DATA_CORRUPTED, message),
            WalError::TooLarge { .. } => Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, message),
            WalError::OutOfOrder { .. } => Error::internal(message),
            WalError::Poisoned(_) => Error::new(SqlState::IO_ERROR, message),
        }
    }
}
