//! The only place that builds and joins components.
//!
//! *Place*: called by `main` for `verus serve`.
//!
//! *Order*: HTTP first, so that a probe can tell "starting" from "dead"; then recovery; then the shipped schema on a new
//! directory; then the PostgreSQL listener. SIGTERM and SIGINT turn it around: no new connections, running statements finish, the
//! store closes.

mod activity;
mod alerts;
mod sources;
mod template;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::alert::notify::guard::Guard;
use crate::alert::{self, Alerts};
use crate::bus::Bus;
use crate::catalog::bind::Binder;
use crate::catalog::vault::Vault;
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::error::{Error, Result, SqlState};
use crate::ingest::source::{self, Sources};
use crate::query::Engine;
use crate::query::catalogs::SystemCatalogs;
use crate::query::functions::geo;
use crate::session::history::History;
use crate::session::shared::SharedPlans;
use crate::session::{Registry, Services};
use crate::store::{Parts, Runner, Store};
use crate::task::{Runtimes, Spawner};
use crate::telemetry::Metrics;
use crate::{pg, web};

/// How long running statements may take to finish after SIGTERM before they are cancelled.
const FINISH_WITHIN: Duration = Duration::from_secs(8);

/// Runs a server until SIGTERM or SIGINT. An error says why it did not start, or that storage failed.
pub fn run(config: Config) -> Result<()> {
    let runtimes =
        Runtimes::start(config.cores).map_err(|error| Error::new(SqlState::SYSTEM_ERROR, format!("cannot start threads: {error}")))?;
    let outcome = start_and_serve(&runtimes, config);
    runtimes.shutdown();
    outcome
}

fn start_and_serve(runtimes: &Runtimes, config: Config) -> Result<()> {
    let spawner = runtimes.spawner();
    let metrics = Arc::new(Metrics::default());
    let health = Arc::new(health::State::default());
    let (shutdown, stop) = (CancellationToken::new(), CancellationToken::new());
    let door = web::Door::new(config.limits.wire.http_subscribers_max, stop.clone());
    let (http, listener) =
        runtimes.block_on(async { Ok::<_, Error>((bind(config.http, "HTTP").await?, bind(config.listen, "PostgreSQL").await?)) })?;
    let intake = Arc::new(web::Intake::new(&config.limits.ingest));
    let serve_http = web::serve(
        http,
        config.limits.wire.http_connections_max,
        Arc::clone(&health) as Arc<dyn web::Health>,
        Arc::clone(&metrics),
        Arc::clone(&door),
        Arc::clone(&intake),
        shutdown.clone().cancelled_owned(),
    );
    spawner.io(async move {
        if let Err(error) = serve_http.await {
            tracing::error!(%error, "the HTTP listener ended");
        }
    });
    let services = build(config, &spawner, metrics)?;
    template::apply(runtimes, &services)?;
    services.alerts.start();
    let room = sources::Room { prune: intake.prune(), services: Arc::downgrade(&services) };
    services.sources.start(Arc::new(room));
    health.ready(Arc::clone(&services.store));
    door.open(Arc::clone(&services));
    tracing::info!(listen = %services.config.listen, http = %services.config.http, "ready");
    let outcome = runtimes.block_on(serve(listener, &services, &health, (&stop, &shutdown)));
    runtimes.block_on(services.sources.stop());
    runtimes.block_on(services.alerts.stop());
    runtimes.block_on(services.store.close());
    tracing::info!("stopped");
    match services.store.fatal() {
        Some(error) => Err(error),
        None => outcome,
    }
}

async fn bind(address: SocketAddr, what: &str) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| Error::new(SqlState::CONNECTION_FAILURE, format!("cannot listen on {address} for {what}: {error}")))
}

/// Opens the store and joins all components; nothing listens, watches or reads yet. Not to be called on a runtime's worker thread.
pub fn build(config: Config, spawner: &Spawner, metrics: Arc<Metrics>) -> Result<Arc<Services>> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let spill = config.data_dir.join("spill");
    std::fs::create_dir_all(&spill)
        .map_err(|error| Error::new(SqlState::IO_ERROR, format!("cannot create \"{}\": {error}", spill.display())))?;
    let engine = Engine::new(&config.limits.query, &spill, spawner, Arc::clone(&clock), &metrics)?;
    engine.set_metrics(&metrics);
    let binder: Arc<dyn Binder> = Arc::clone(&engine) as Arc<dyn Binder>;
    let store = Store::open(Parts {
        dir: config.data_dir.clone(),
        limits: config.limits.clone(),
        binder: Arc::clone(&binder),
        clock: Arc::clone(&clock),
        spawner: spawner.clone(),
        metrics: Arc::clone(&metrics),
    })?;
    let registry = Arc::new(Registry::default());
    let bus = Bus::new(config.limits.wire.notify_bytes_max);
    let alerts_of_activity = Arc::new(std::sync::OnceLock::new());
    let history = Arc::new(History::new(config.limits.wire.query_log_max));
    let sources_of_activity = Arc::new(std::sync::OnceLock::new());
    let running = activity::Running {
        registry: Arc::clone(&registry),
        history: Arc::clone(&history),
        store: Arc::downgrade(&store),
        metrics: Arc::clone(&metrics),
        bus: Arc::clone(&bus),
        alerts: Arc::clone(&alerts_of_activity),
        sources: Arc::clone(&sources_of_activity),
        refresh_interval_ms: config.limits.store.refresh_interval_ms,
        clock: Arc::clone(&clock),
    };
    if let Some(path) = &config.geo_database {
        geo::open(path)?;
    }
    engine.set_system(Arc::new(SystemCatalogs::new(Arc::new(running))));
    store.keep_fresh(Arc::clone(&engine) as Arc<dyn Runner>);
    let vault = Arc::new(Vault::new(&config.data_dir));
    let guard = Guard { private: config.allow_private_channels, allowed: config.channel_networks.clone() };
    let alerts = Alerts::open(alert::Parts {
        store: Arc::clone(&store),
        engine: Arc::clone(&engine),
        clock: Arc::clone(&clock),
        spawner: spawner.clone(),
        metrics: Arc::clone(&metrics),
        bus: Arc::clone(&bus),
        vault: Arc::clone(&vault),
        guard: Arc::new(guard),
        limits: config.limits.alert.clone(),
    })?;
    // Set once, just made.
    let _ = alerts_of_activity.set(Arc::downgrade(&alerts));
    let sources = Sources::new(source::Parts {
        store: Arc::clone(&store),
        binder: Arc::clone(&binder),
        clock: Arc::clone(&clock),
        spawner: spawner.clone(),
        metrics: Arc::clone(&metrics),
        vault,
        limits: config.limits.clone(),
    });
    let _ = sources_of_activity.set(Arc::downgrade(&sources));
    let config = Arc::new(config);
    let plans = SharedPlans::new(config.limits.query.shared_plans_max);
    let subscribers = Arc::new(Semaphore::new(config.limits.wire.subscribers_max));
    Ok(Arc::new(Services {
        store,
        engine,
        binder,
        config,
        metrics,
        clock,
        spawner: spawner.clone(),
        registry,
        plans,
        subscribers,
        bus,
        alerts,
        history,
        sources,
    }))
}

/// `stop` ends connections and streams, `shutdown` HTTP once they have ended.
async fn serve(
    listener: TcpListener,
    services: &Arc<Services>,
    health: &health::State,
    (stop, shutdown): (&CancellationToken, &CancellationToken),
) -> Result<()> {
    let connections = services.spawner.io(pg::serve(listener, Arc::clone(services), stop.clone()));
    wait_for_the_end(services).await;
    health.stopping();
    stop.cancel();
    let outcome = match tokio::time::timeout(FINISH_WITHIN, connections).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => Err(Error::internal(format!("the PostgreSQL listener ended: {error}"))),
        Err(_) => {
            tracing::warn!("statements still running were cancelled");
            Ok(())
        }
    };
    shutdown.cancel();
    outcome
}

/// Waits for a signal, or for the store to fail.
async fn wait_for_the_end(services: &Services) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::error!("signals cannot be handled");
        return;
    };
    let mut look = tokio::time::interval(Duration::from_millis(200));
    loop {
        tokio::select! {
            _ = terminate.recv() => return,
            _ = interrupt.recv() => return,
            _ = look.tick() => if services.store.fatal().is_some() { return },
        }
    }
}

mod health {
    //! What `/health` tells.

    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use arc_swap::ArcSwapOption;

    use crate::store::Store;
    use crate::web::{Health, Report, Status};

    #[derive(Debug, Default)]
    pub struct State {
        store: ArcSwapOption<Store>,
        stopping: AtomicBool,
    }

    impl State {
        pub fn ready(&self, store: Arc<Store>) {
            self.store.store(Some(store));
        }

        pub fn stopping(&self) {
            self.stopping.store(true, Ordering::Relaxed);
        }
    }

    impl Health for State {
        fn report(&self) -> Report {
            let Some(store) = self.store.load_full() else { return Report { status: Status::Starting, next_lsn: 0 } };
            let status = if store.fatal().is_some() {
                Status::Failed
            } else if self.stopping.load(Ordering::Relaxed) {
                Status::Stopping
            } else {
                Status::Ready
            };
            Report { status, next_lsn: store.snapshot().next_lsn }
        }
    }
}
