//! The integration tests: one binary, because each further one would link DataFusion and RocksDB again.
//!
//! Every test but `tidy` starts the real server on a temporary directory and free ports and speaks to it over the wire.
//! Environment: `VERUS_SHARED_DATA` (directory of the real data sets), `VERUS_SLT` (run only `.slt` files whose name
//! contains it), `VERUS_TEST_KILLS`, `VERUS_TANSU` (a Kafka broker's binary), `VERUS_PROPERTY_CASES`, `VERUS_PROPERTY_SEED`,
//! `VERUS_ROUTING_CASES`, `VERUS_ROUTING_SEED`, `VERUS_SEGMENT_PYTHON`, `VERUS_SEGMENT_NODE` (see `segment`).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod alerts;
mod attribution;
mod changes_http;
mod check;
mod cohort;
mod crash;
mod distinct;
mod enrich;
mod erasure;
mod funnel;
mod harness;
mod import;
mod ingest_http;
mod kafka;
mod listen;
mod maintained;
mod operators;
mod plain;
mod property;
mod real_data;
mod routing;
mod segment;
mod slt;
mod staging;
mod subscribe;
mod tidy;
mod wire;
