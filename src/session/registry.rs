//! Who is connected: for CancelRequest, `verus.sessions`, pg_stat_activity and shutdown.
//!
//! *Place*: one in `Services`; `pg` enters a session at login, the entry leaves with its last [`Registration`].
//!
//! *Invariants*: (1) a cancel key is 32 random bytes (4 for protocol 3.0, which has no room for more) and is compared whole; (2) a
//! cancel reaches only the statement that runs when it arrives, never the next one.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::bus::Pending;
use crate::clock::Micros;
use crate::session::history::Finished;

/// Bytes of a cancel key from protocol 3.2 on.
const KEY_BYTES: usize = 32;

/// All sessions of a server.
#[derive(Debug, Default)]
pub struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    sessions: HashMap<i32, Arc<Entry>>,
    next_backend: i32,
}

/// What others may know of one session, and how they stop it.
pub struct Entry {
    /// pg_backend_pid().
    pub backend: i32,
    /// The login's user.
    pub user: String,
    /// The login's database.
    pub database: String,
    /// Where the client is, when it came by TCP.
    pub client: Option<SocketAddr>,
    /// When it connected.
    pub connected: Micros,
    key: Vec<u8>,
    /// Ends the session: 57P01 at the next chance.
    pub terminate: CancellationToken,
    activity: Mutex<Activity>,
    copying: Mutex<Option<Arc<Copying>>>,
    /// What the open transaction is going to say to listeners: its own statements add to it, and functions inside its queries.
    pub notifications: Mutex<Pending>,
}

#[derive(Debug, Clone)]
struct Activity {
    application: String,
    state: State,
    query: Arc<str>,
    query_start: Option<Micros>,
    transaction_start: Option<Micros>,
    cancel: CancellationToken,
}

/// A COPY under way: pg_stat_progress_copy.
#[derive(Debug)]
pub struct Copying {
    /// OID of its table, 0 for a query.
    pub table: u32,
    /// COPY FROM.
    pub from: bool,
    /// Bytes that have come or gone.
    pub bytes: AtomicU64,
    /// Rows that have been decoded or encoded.
    pub rows: Arc<AtomicU64>,
}

/// A COPY's place in its session's entry: dropping it leaves.
#[derive(Debug)]
pub struct CopyingNow {
    entry: Arc<Entry>,
    progress: Arc<Copying>,
}

impl CopyingNow {
    /// So many bytes more.
    pub fn bytes(&self, bytes: u64) {
        self.progress.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for CopyingNow {
    fn drop(&mut self) {
        let mut copying = self.entry.copying.lock();
        if copying.as_ref().is_some_and(|now| Arc::ptr_eq(now, &self.progress)) {
            *copying = None;
        }
    }
}

/// What a session is doing, as pg_stat_activity says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum State {
    /// Waiting for a command outside a transaction.
    #[default]
    Idle,
    /// Running a statement.
    Active,
    /// Waiting for a command inside a transaction.
    IdleInTransaction,
    /// The same after an error.
    IdleInFailedTransaction,
}

impl State {
    /// pg_stat_activity.state.
    pub fn name(self) -> &'static str {
        match self {
            State::Idle => "idle",
            State::Active => "active",
            State::IdleInTransaction => "idle in transaction",
            State::IdleInFailedTransaction => "idle in transaction (aborted)",
        }
    }
}

/// One row of `verus.sessions`.
#[derive(Clone, Debug)]
pub struct Row {
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
    /// When it connected.
    pub connected: Micros,
    /// What it is doing.
    pub state: State,
    /// The running statement, or the last one.
    pub query: Arc<str>,
    /// When that statement started.
    pub query_start: Option<Micros>,
    /// When the open transaction started.
    pub transaction_start: Option<Micros>,
    /// Its COPY.
    pub copying: Option<Arc<Copying>>,
}

/// A session's place in the registry: dropping it leaves.
#[derive(Debug)]
pub struct Registration {
    registry: Arc<Registry>,
    /// The entry.
    pub entry: Arc<Entry>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.inner.lock().sessions.remove(&self.entry.backend);
    }
}

impl Registry {
    /// Enters a session. `wide_key` is true from protocol 3.2 on.
    pub fn enter(
        self: &Arc<Self>,
        user: &str,
        database: &str,
        client: Option<SocketAddr>,
        connected: Micros,
        wide_key: bool,
    ) -> Registration {
        let key: [u8; KEY_BYTES] = rand::random();
        let mut inner = self.inner.lock();
        // Backend ids are positive and wrap around; one in use is skipped.
        let backend = loop {
            inner.next_backend = if inner.next_backend == i32::MAX { 1 } else { inner.next_backend + 1 };
            if !inner.sessions.contains_key(&inner.next_backend) {
                break inner.next_backend;
            }
        };
        let entry = Arc::new(Entry {
            backend,
            user: user.to_owned(),
            database: database.to_owned(),
            client,
            connected,
            key: key[..if wide_key { KEY_BYTES } else { 4 }].to_vec(),
            terminate: CancellationToken::new(),
            activity: Mutex::new(Activity {
                application: String::new(),
                state: State::Idle,
                query: Arc::from(""),
                query_start: None,
                transaction_start: None,
                cancel: CancellationToken::new(),
            }),
            copying: Mutex::default(),
            notifications: Mutex::default(),
        });
        inner.sessions.insert(backend, Arc::clone(&entry));
        Registration { registry: Arc::clone(self), entry }
    }

    /// A CancelRequest: stops the running statement of the session that has this id and key. Anything else is ignored, as
    /// PostgreSQL does, so that nothing can be learned by trying.
    pub fn cancel(&self, backend: i32, key: &[u8]) {
        let entry = self.inner.lock().sessions.get(&backend).cloned();
        if let Some(entry) = entry
            && entry.key.len() == key.len()
            && entry.key.iter().zip(key).fold(0, |difference, (left, right)| difference | (left ^ right)) == 0
        {
            entry.cancel();
        }
    }

    /// pg_cancel_backend(): false when there is no such session.
    pub fn cancel_backend(&self, backend: i32) -> bool {
        let entry = self.inner.lock().sessions.get(&backend).cloned();
        entry.map(|entry| entry.cancel()).is_some()
    }

    /// pg_terminate_backend(): false when there is no such session.
    pub fn terminate_backend(&self, backend: i32) -> bool {
        let entry = self.inner.lock().sessions.get(&backend).cloned();
        entry.map(|entry| entry.terminate.cancel()).is_some()
    }

    /// A session by pg_backend_pid().
    pub fn entry(&self, backend: i32) -> Option<Arc<Entry>> {
        self.inner.lock().sessions.get(&backend).cloned()
    }

    /// Ends every session.
    pub fn terminate_all(&self) {
        for entry in self.inner.lock().sessions.values() {
            entry.terminate.cancel();
        }
    }

    /// Number of sessions.
    pub fn count(&self) -> usize {
        self.inner.lock().sessions.len()
    }

    /// All sessions, by backend id.
    pub fn rows(&self) -> Vec<Row> {
        let entries: Vec<_> = self.inner.lock().sessions.values().cloned().collect();
        let mut rows: Vec<_> = entries.iter().map(|entry| entry.row()).collect();
        rows.sort_by_key(|row| row.backend);
        rows
    }
}

impl Entry {
    /// The cancel key, for BackendKeyData.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// A statement starts: returns the token that a cancel fires.
    pub fn statement_starts(&self, query: Arc<str>, now: Micros, transaction_start: Micros) -> CancellationToken {
        let token = CancellationToken::new();
        let mut activity = self.activity.lock();
        activity.state = State::Active;
        activity.query = query;
        activity.query_start = Some(now);
        activity.transaction_start = Some(transaction_start);
        activity.cancel = token.clone();
        token
    }

    /// The statement that runs, as ended now.
    pub fn finished(&self, now: Micros, outcome: Result<String, (String, String)>) -> Finished {
        let activity = self.activity.lock();
        let started = activity.query_start.unwrap_or(now);
        Finished {
            backend: self.backend,
            user: self.user.clone(),
            database: self.database.clone(),
            application: activity.application.clone(),
            client: self.client,
            started,
            took_us: now.saturating_sub(started),
            query: Arc::clone(&activity.query),
            outcome,
        }
    }

    /// The session waits for its client: a late cancel finds nothing to stop.
    pub fn waits(&self, state: State) {
        let mut activity = self.activity.lock();
        activity.state = state;
        activity.cancel = CancellationToken::new();
        if state == State::Idle {
            activity.transaction_start = None;
        }
    }

    /// `application_name` was set.
    pub fn set_application(&self, name: &str) {
        self.activity.lock().application = name.to_owned();
    }

    /// A COPY begins, whose rows somebody counts.
    pub fn copying(self: &Arc<Self>, table: u32, from: bool, rows: Arc<AtomicU64>) -> CopyingNow {
        let progress = Arc::new(Copying { table, from, bytes: AtomicU64::new(0), rows });
        *self.copying.lock() = Some(Arc::clone(&progress));
        CopyingNow { entry: Arc::clone(self), progress }
    }

    fn cancel(&self) {
        self.activity.lock().cancel.cancel();
    }

    fn row(&self) -> Row {
        let activity = self.activity.lock().clone();
        Row {
            backend: self.backend,
            user: self.user.clone(),
            database: self.database.clone(),
            application: activity.application,
            client: self.client,
            connected: self.connected,
            state: activity.state,
            query: activity.query,
            query_start: activity.query_start,
            transaction_start: activity.transaction_start,
            copying: self.copying.lock().clone(),
        }
    }
}

/// Without the key.
impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("backend", &self.backend).field("user", &self.user).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancel_needs_the_key_and_stops_only_the_running_statement() {
        let registry = Arc::new(Registry::default());
        let session = registry.enter("verus", "verus", None, 0, true);
        let token = session.entry.statement_starts(Arc::from("select 1"), 0, 0);
        registry.cancel(session.entry.backend, &[0; KEY_BYTES]);
        registry.cancel(session.entry.backend, &session.entry.key()[..4]);
        assert!(!token.is_cancelled());
        registry.cancel(session.entry.backend, session.entry.key());
        assert!(token.is_cancelled());
        session.entry.waits(State::Idle);
        registry.cancel(session.entry.backend, session.entry.key());
        assert!(!session.entry.statement_starts(Arc::from("select 2"), 0, 0).is_cancelled());
        assert_eq!(registry.count(), 1);
        drop(session);
        assert_eq!(registry.count(), 0);
    }
}
