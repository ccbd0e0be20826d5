//! Statements that have ended, the newest of all sessions: `verus.query_log`.
//!
//! *Place*: `pg` adds what it tells its client; `query::catalogs` shows it. In memory: it begins with the server.
//!
//! *Invariant*: bounded in statements (`limits.wire.query_log_max`) and in the bytes of each ([`TEXT_BYTES_MAX`]); secrets are masked
//! before a text comes here.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::clock::Micros;

/// Bytes of a text that are kept.
const TEXT_BYTES_MAX: usize = 4 * 1024;

/// A statement that has ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// pg_backend_pid().
    pub backend: i32,
    /// The login's user.
    pub user: String,
    /// The login's database.
    pub database: String,
    /// `application_name`.
    pub application: String,
    /// Client address and port.
    pub client: Option<SocketAddr>,
    /// When it began.
    pub started: Micros,
    /// How long it took, with sending its rows.
    pub took_us: Micros,
    /// What the client sent, or its first part.
    pub query: Arc<str>,
    /// Its command tag, or its error's SQLSTATE and message.
    pub outcome: Result<String, (String, String)>,
}

/// The newest of them.
#[derive(Debug)]
pub struct History {
    most: usize,
    finished: Mutex<VecDeque<Arc<Finished>>>,
}

impl History {
    /// Keeps so many.
    pub fn new(most: usize) -> History {
        History { most, finished: Mutex::default() }
    }

    /// Adds one in the place of the oldest.
    pub fn add(&self, mut finished: Finished) {
        if self.most == 0 {
            return;
        }
        if finished.query.len() > TEXT_BYTES_MAX {
            finished.query = Arc::from(&finished.query[..finished.query.floor_char_boundary(TEXT_BYTES_MAX)]);
        }
        let mut all = self.finished.lock();
        if all.len() >= self.most {
            all.pop_front();
        }
        all.push_back(Arc::new(finished));
    }

    /// All of them, the oldest first.
    pub fn all(&self) -> Vec<Arc<Finished>> {
        self.finished.lock().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_with_the_beginning_of_long_texts() {
        let history = History::new(2);
        for number in 0..5 {
            history.add(Finished {
                backend: 1,
                user: String::new(),
                database: String::new(),
                application: String::new(),
                client: None,
                started: number,
                took_us: 1,
                query: Arc::from("é".repeat(TEXT_BYTES_MAX)),
                outcome: Ok("SELECT 1".to_owned()),
            });
        }
        let kept = history.all();
        assert_eq!(kept.iter().map(|finished| finished.started).collect::<Vec<_>>(), [3, 4]);
        assert!(kept.iter().all(|finished| finished.query.len() == TEXT_BYTES_MAX));
    }
}
