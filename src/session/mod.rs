//! One connection's state: variables, transaction, prepared statements, portals, cancellation.
//!
//! *Place*: made by `pg` for each connection, passed to `command`.
//!
//! *Invariants*: (1) prepared statements and portals are bounded (`limits.wire.prepared_max`); (2) a session is used by one task at a
//! time; others reach it only through its [`registry::Entry`].

pub mod history;
pub mod portal;
pub mod prepared;
pub mod registry;
pub mod shared;
pub mod transaction;
pub mod variable;
pub mod vars;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::alert::Alerts;
use crate::bus::{Bus, Listener, Message};
use crate::catalog::bind::Binder;
use crate::clock::Clock;
use crate::config::Config;
use crate::error::{Error, Result, SqlState};
use crate::ingest::source::Sources;
use crate::query::{Context, Engine};
use crate::store::Store;
use crate::task::Spawner;
use crate::telemetry::Metrics;
use history::History;

pub use portal::{Portal, Progress, Rows};
pub use prepared::Prepared;
pub use registry::Registry;

/// What every session shares: built once by `server`.
#[derive(Debug)]
pub struct Services {
    /// Tables, views, commits.
    pub store: Arc<Store>,
    /// Planning and execution.
    pub engine: Arc<Engine>,
    /// The engine as the storage layers see it.
    pub binder: Arc<dyn Binder>,
    /// Settings and limits.
    pub config: Arc<Config>,
    /// Counters and histograms.
    pub metrics: Arc<Metrics>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Runtimes.
    pub spawner: Spawner,
    /// Who is connected.
    pub registry: Arc<Registry>,
    /// Plans of repeated texts.
    pub plans: shared::SharedPlans,
    /// Places for subscriptions, `limits.wire.subscribers_max` of them.
    pub subscribers: Arc<tokio::sync::Semaphore>,
    /// LISTEN and NOTIFY.
    pub bus: Arc<Bus>,
    /// Alerts and their channels.
    pub alerts: Arc<Alerts>,
    /// Statements that have ended.
    pub history: Arc<History>,
    /// Sources of events.
    pub sources: Arc<Sources>,
}

/// One connection.
#[derive(Debug)]
pub struct Session {
    /// Shared parts.
    pub services: Arc<Services>,
    /// Session variables.
    pub vars: vars::Vars,
    /// Open transaction, if any.
    pub transaction: transaction::State,
    /// pg_backend_pid().
    pub backend: i32,
    /// Notices to send before the next response completes.
    pub notices: Vec<crate::error::Error>,
    /// Prepared statements by name, of Parse and PREPARE alike; the unnamed one is "".
    pub statements: HashMap<String, Arc<Prepared>>,
    /// Portals and cursors by name; the unnamed one is "".
    pub portals: HashMap<String, Portal>,
    /// Typed plans of recent query texts.
    pub plans: prepared::Plans,
    /// What it listens to, and what has come.
    pub listener: Listener,
    registration: registry::Registration,
    committing: Arc<AtomicBool>,
}

impl Session {
    /// A session for a client that has logged in.
    pub fn new(services: Arc<Services>, registration: registry::Registration) -> Self {
        let plans = prepared::Plans::new(services.config.limits.query.plan_cache_max);
        Self {
            listener: services.bus.listener(),
            services,
            vars: vars::Vars::default(),
            transaction: transaction::State::default(),
            backend: registration.entry.backend,
            notices: Vec::new(),
            statements: HashMap::new(),
            portals: HashMap::new(),
            plans,
            registration,
            committing: Arc::default(),
        }
    }

    /// What others see of this session.
    pub fn entry(&self) -> &Arc<registry::Entry> {
        &self.registration.entry
    }

    /// A statement has ended as its client is being told.
    pub fn ended(&self, outcome: std::result::Result<&str, &Error>) {
        let outcome = outcome.map(str::to_owned).map_err(|error| (error.state().0.to_owned(), error.report().message.to_string()));
        self.services.history.add(self.entry().finished(self.services.clock.now(), outcome));
    }

    /// True while the store commits for this session: nothing may stop the statement then, because an error after it would be a lie.
    pub fn committing(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.committing)
    }

    /// CURRENT_USER.
    pub fn user(&self) -> &str {
        &self.registration.entry.user
    }

    /// What a statement may know: one snapshot, the transaction's time, the settings. Take it once a statement.
    pub fn context(&mut self) -> Result<Context> {
        let snapshot = self.snapshot()?;
        let now = match self.transaction.status() {
            transaction::Status::Idle => self.services.clock.now(),
            _ => self.transaction.now(),
        };
        Ok(Context {
            snapshot,
            now,
            time_zone: self.vars.time_zone().to_owned(),
            user: self.user().to_owned(),
            backend: self.backend,
            settings: Arc::clone(self.vars.values()),
        })
    }

    /// Names a prepared statement. 42P05 when the name is taken (the unnamed one is replaced).
    pub fn add_statement(&mut self, name: &str, prepared: Arc<Prepared>) -> Result<()> {
        if !name.is_empty() && self.statements.contains_key(name) {
            return Err(Error::new(SqlState::DUPLICATE_PREPARED_STATEMENT, format!("prepared statement \"{name}\" already exists")));
        }
        self.bounded(self.statements.len())?;
        self.statements.insert(name.to_owned(), prepared);
        Ok(())
    }

    /// A prepared statement by name (26000).
    pub fn statement(&self, name: &str) -> Result<&Arc<Prepared>> {
        self.statements.get(name).ok_or_else(|| {
            let what = if name.is_empty() { "unnamed prepared statement".to_owned() } else { format!("prepared statement \"{name}\"") };
            Error::new(SqlState::INVALID_SQL_STATEMENT_NAME, format!("{what} does not exist"))
        })
    }

    /// Names a portal. 42P03 when the name is taken (the unnamed one is replaced).
    pub fn add_portal(&mut self, name: &str, portal: Portal) -> Result<()> {
        if !name.is_empty() && self.portals.contains_key(name) {
            return Err(Error::new(SqlState::DUPLICATE_CURSOR, format!("cursor \"{name}\" already exists")));
        }
        self.bounded(self.portals.len())?;
        self.portals.insert(name.to_owned(), portal);
        Ok(())
    }

    /// NOTIFY: said when the transaction commits. 54000 when it says too much.
    pub fn notify(&self, message: Message) -> Result<()> {
        self.entry().notifications.lock().add(message, self.services.bus.bytes_max())
    }

    fn bounded(&self, count: usize) -> Result<()> {
        let most = self.services.config.limits.wire.prepared_max;
        if count < most {
            return Ok(());
        }
        self.services.metrics.limit_hit("limits.wire.prepared_max");
        Err(Error::new(SqlState::CONFIGURATION_LIMIT_EXCEEDED, "too many prepared statements or portals")
            .detail(format!("A session can hold {most} of each."))
            .hint("DEALLOCATE ALL or CLOSE ALL frees them."))
    }

    /// Adds a warning that is sent with the statement's response.
    pub fn warn(&mut self, state: SqlState, message: impl Into<String>) {
        self.notices.push(Error::new(state, message));
    }
}

/// The client's error in an error of the engine.
pub(crate) fn engine_error(error: datafusion::error::DataFusionError) -> Error {
    crate::query::error::from_datafusion(error)
}
