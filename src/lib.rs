//! Verus: a PostgreSQL-wire database for commerce events that keeps materialized views fresh.
//!
//! # The map, lowest layer first
//!
//! A module uses only what stands above it in this list; modules of one line do not know each other
//! (`tests/tidy.rs` holds this).
//!
//! | layer | module | what it is |
//! |---|---|---|
//! | 1 | [`clock`] | where time comes from |
//! | 2 | [`error`] | the error that a client sees: SQLSTATE, message, detail, hint, position |
//! | 3 | [`config`], [`telemetry`], [`task`] | settings and limits; every metric once; the only spawner |
//! | 4 | [`types`], [`bus`] | SQL types, their Arrow form, text and binary values; LISTEN and NOTIFY |
//! | 5 | [`sql`], [`event`] | text to statement; bytes to Arrow batch |
//! | 6 | [`wal`], [`state`], [`columnar`], [`anomaly`], [`kafka`] | the log; RocksDB; Parquet and the Delta table log; arithmetic of time series; the Kafka protocol |
//! | 7 | [`catalog`] | what objects exist |
//! | 8 | [`view`] | incremental view state: compile, apply, merge, read |
//! | 9 | [`store`] | commit, snapshot, flush, recovery: what a table is |
//! | 10 | [`query`], [`ingest`] | planning and running SQL; checks and defaults on the way in |
//! | 11 | [`alert`] | what is watched: evaluate, lifecycle, outbox, channels |
//! | 12 | [`session`] | one connection's variables, transaction, prepared statements |
//! | 13 | [`command`] | one file a statement: execute(session, statement) -> response |
//! | 14 | [`pg`], [`web`] | the PostgreSQL wire; HTTP |
//! | 15 | [`server`] | the only place that builds and joins components |
//! | 16 | [`client`] | `verus import`, `verus bench` and `verus demo`: they drive a server over the wire |
//!
//! # The two ways through the house
//!
//! An event's: `pg::copy` or `command::insert` -> `ingest::pipeline` -> `store::commit` ->
//! (`wal`, `view::apply`) -> acknowledged.
//!
//! A query's: `pg::simple` -> `sql` -> `command::select` -> `query::bind` -> `query::route` -> DataFusion -> `pg::encode`.
//!
//! # Words
//!
//! *LSN*: a row's sequence number, never reused. *Commit*: a contiguous range of LSNs, one log record.
//! *Snapshot*: the database as of one LSN. *Hot rows*: accepted rows not yet in Parquet. *Delta*: a view's
//! partial aggregates of one commit. *Block*: merged deltas in RocksDB. *Slot*: hash of the partition key, 0..256.
//! *Watermark*: a partition's greatest event time less the allowed lateness.

pub mod alert;
pub mod anomaly;
pub mod bus;
pub mod catalog;
pub mod client;
pub mod clock;
pub mod columnar;
pub mod command;
pub mod config;
pub mod error;
pub mod event;
pub mod ingest;
pub mod kafka;
pub mod pg;
pub mod query;
pub mod server;
pub mod session;
pub mod sql;
pub mod state;
pub mod store;
pub mod task;
pub mod telemetry;
pub mod types;
pub mod view;
pub mod wal;
pub mod web;
