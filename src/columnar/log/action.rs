//! The actions of the Delta protocol that Verus writes and reads, and the text of a log entry.
//!
//! *Place*: `log::delta` and `log::checkpoint`.
//!
//! *Invariants*: an entry's first line is its `commitInfo` with the xxh3-64 of all bytes after that line: JSON has no
//! checksum of its own, and a flipped digit of the flushed LSN would lose or double rows silently.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// Tag of an `add` with the file's xxh3-64 in hexadecimal.
pub const TAG_CHECKSUM: &str = "verus.xxh3";
/// Tag of an `add` with the least LSN.
pub const TAG_LSN_MIN: &str = "verus.lsnMin";
/// Tag of an `add` with the greatest LSN.
pub const TAG_LSN_MAX: &str = "verus.lsnMax";
/// Tag of an `add` with the number that is added to the LSNs in the file, where it is not zero.
pub const TAG_LSN_BASE: &str = "verus.lsnBase";
/// Tag of an `add` with the LSN below which no commit deleted a row of the file; absent: zero.
pub const TAG_CLEAN_LSN: &str = "verus.cleanLsn";
/// Tag of an `add` with the name of the sorted run that the file is a part of; absent: it is one by itself.
pub const TAG_RUN: &str = "verus.run";
/// Application of the `txn` action that carries the flushed LSN.
pub const APP_ID: &str = "verus";
/// Feature of tables with timestamps without time zone.
pub const FEATURE_TIMESTAMP_NTZ: &str = "timestampNtz";

/// One line of a log entry or one row of a checkpoint: exactly one member is set. Kinds not listed here are skipped.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names are the protocol's own")]
pub struct Action {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit_info: Option<CommitInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta_data: Option<MetaData>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub txn: Option<Txn>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add: Option<Add>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remove: Option<Remove>,
}

/// Who committed, and the entry's checksum.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names are the protocol's own")]
pub struct CommitInfo {
    pub timestamp: i64,
    pub operation: String,
    #[serde(default)]
    pub operation_parameters: BTreeMap<String, String>,
    #[serde(default)]
    pub engine_info: String,
    /// Unlike any other commit's: tells whether an entry that is "already there" is one's own.
    #[serde(default)]
    pub txn_id: String,
    /// xxh3-64 of the rest of the entry, hexadecimal.
    #[serde(default)]
    pub verus_xxh3: String,
}

/// What a reader and a writer must understand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names are the protocol's own")]
pub struct Protocol {
    pub min_reader_version: i32,
    pub min_writer_version: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reader_features: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writer_features: Option<Vec<String>>,
}

/// The table's columns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names are the protocol's own")]
pub struct MetaData {
    pub id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub format: Format,
    pub schema_string: String,
    pub partition_columns: Vec<String>,
    #[serde(default)]
    pub configuration: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_time: Option<i64>,
}

/// Always Parquet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the protocol's own")]
pub struct Format {
    pub provider: String,
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// How far an application has come.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names are the protocol's own")]
pub struct Txn {
    pub app_id: String,
    pub version: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_updated: Option<i64>,
}

/// A file that is now listed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names are the protocol's own")]
pub struct Add {
    pub path: String,
    #[serde(default)]
    pub partition_values: BTreeMap<String, String>,
    pub size: i64,
    pub modification_time: i64,
    pub data_change: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<String>,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// A file that is no longer listed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names are the protocol's own")]
pub struct Remove {
    pub path: String,
    pub deletion_timestamp: i64,
    pub data_change: bool,
    #[serde(default)]
    pub extended_file_metadata: bool,
    #[serde(default)]
    pub partition_values: BTreeMap<String, String>,
    pub size: i64,
}

/// The bytes of a log entry.
pub fn encode(mut info: CommitInfo, actions: &[Action]) -> serde_json::Result<Vec<u8>> {
    let mut rest = Vec::new();
    for action in actions {
        serde_json::to_writer(&mut rest, action)?;
        rest.push(b'\n');
    }
    info.verus_xxh3 = format!("{:016x}", xxh3_64(&rest));
    let mut entry = serde_json::to_vec(&Action { commit_info: Some(info), ..Action::default() })?;
    entry.push(b'\n');
    entry.extend_from_slice(&rest);
    Ok(entry)
}

/// Reads a log entry; an error says what is wrong with it.
pub fn decode(entry: &[u8]) -> Result<(CommitInfo, Vec<Action>), String> {
    let end = memchr::memchr(b'\n', entry).ok_or("it has no complete line")?;
    let (first, rest) = (&entry[..end], &entry[end + 1..]);
    let first: Action = serde_json::from_slice(first).map_err(|error| error.to_string())?;
    let info = first.commit_info.ok_or("it does not begin with its commit information")?;
    if info.verus_xxh3 != format!("{:016x}", xxh3_64(rest)) {
        return Err("its checksum does not fit".to_owned());
    }
    let lines = rest.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let actions = lines.map(serde_json::from_slice).collect::<serde_json::Result<Vec<Action>>>();
    Ok((info, actions.map_err(|error| error.to_string())?))
}
