//! One connection's state: variables, transaction, prepared statements, portals, cancellation.
//!
//! *Place*: made by `pg` for each connection, passed to `command`.

pub mod transaction;
pub mod vars;

use std::sync::Arc;

use crate::catalog::bind::Binder;
use crate::clock::Clock;
use crate::config::Config;
use crate::query::Engine;
use crate::store::Store;
use crate::task::Spawner;
use crate::telemetry::Metrics;

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
}
