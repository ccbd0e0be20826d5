//! The log: one line an event, on standard error.
//!
//! *Place*: started once by `main`. Everybody writes to it through `tracing`.

use std::io::IsTerminal;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

/// Starts the log with a filter such as `info` or `info,verus::store=debug`; one that cannot be read (the configuration
/// has checked it) means `info`. A second call changes nothing.
pub fn start(filter: &str) {
    let targets = filter.parse::<Targets>().unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO));
    let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).with_filter(targets);
    let _already_started = tracing_subscriber::registry().with(layer).try_init();
}
