//! `verus import`, `verus bench` and `verus demo`: clients that drive a server over the wire.
//!
//! *Place*: called by `main`. Nothing here reaches into the server: what they measure and show is what any client gets.

pub mod bench;
pub mod broker;
pub mod demo;
pub mod event;
pub mod import;
pub mod wire;

use std::io;

pub use bench::{BenchArgs, bench};
pub use demo::{DemoArgs, demo};
pub use import::{ImportArgs, import};

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection.
    #[error("cannot connect to {address}")]
    Connect {
        /// Host and port.
        address: String,
        /// What the driver says.
        source: tokio_postgres::Error,
    },
    /// The server refused a statement, or the connection broke.
    #[error("the server did not do what it was asked to")]
    Server(#[from] tokio_postgres::Error),
    /// Threads, files, processes.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// An answer that is not what it must be.
    #[error("wrong answer: {0}")]
    Wrong(String),
    /// What was asked for cannot be done as things are.
    #[error("{0}")]
    Setup(String),
}

/// Result with the clients' [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
