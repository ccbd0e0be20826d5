//! One server a directory.
//!
//! *On failure*: the error names the process that holds the directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;

use crate::error::{Error, Result, SqlState};

/// Held as long as the store is open; the operating system releases it with the process, however that ends.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Makes the directory if needed and locks it, or says who holds it (55006).
    pub fn acquire(dir: &Path) -> Result<DirectoryLock> {
        let failed = |what: &str, error: std::io::Error| {
            Error::new(SqlState::IO_ERROR, format!("cannot {what} data directory \"{}\": {error}", dir.display()))
        };
        std::fs::create_dir_all(dir).map_err(|error| failed("create", error))?;
        let path = dir.join("verus.lock");
        let mut file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).map_err(|error| failed("open", error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Only for the message: an unreadable file leaves the holder unnamed.
                let _ = file.read_to_string(&mut holder);
                let holder = if holder.trim().is_empty() { "another process" } else { holder.trim() };
                return Err(Error::new(SqlState::OBJECT_IN_USE, format!("data directory \"{}\" is in use by {holder}", dir.display()))
                    .hint("Stop that server, or start this one with another --data-dir."));
            }
            Err(TryLockError::Error(error)) => return Err(failed("lock", error)),
        }
        file.set_len(0)
            .and_then(|()| write!(file, "verus process {}", std::process::id()))
            .and_then(|()| file.sync_all())
            .map_err(|error| failed("lock", error))?;
        Ok(DirectoryLock { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_holder_is_told_who_is_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirectoryLock::acquire(dir.path()).unwrap();
        let refused = DirectoryLock::acquire(dir.path()).unwrap_err();
        assert_eq!(refused.state(), SqlState::OBJECT_IN_USE);
        assert!(refused.to_string().contains(&std::process::id().to_string()), "{refused}");
        drop(first);
        DirectoryLock::acquire(dir.path()).unwrap();
    }
}
