//! [`TableLog`] in the Delta Lake protocol.
//!
//! On disk, below the table's directory:
//!
//! ```text
//! _delta_log/00000000000000000042.json                 one commit: lines of JSON, see `action`
//! _delta_log/00000000000000000064.checkpoint.parquet   everything up to commit 64, see `checkpoint`
//! _delta_log/_last_checkpoint                          {"version":64,"size":..,"sizeInBytes":..,"verusXxh3":".."}
//! ```
//!
//! Reader version 1 and writer version 2, which every implementation has; tables with a timestamp without time zone need
//! the feature `timestampNtz` and so versions 3 and 7.
//!
//! *Invariants*: (1) commit N+1 is put if absent, so two writers cannot both have it; (2) only the checkpoint that
//! `_last_checkpoint` names and vouches for is read, and no entry after it is ever deleted; (3) an entry that is missing,
//! or whose checksum does not fit, stops the table: what was acknowledged is never passed over.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};
use serde_json::json;
use xxhash_rust::xxh3::xxh3_64;

use super::action::{self, Action, Add, CommitInfo, Format, MetaData, Protocol, Remove, Txn};
use super::{Change, Listing, TableLog, checkpoint, stats};
use crate::clock::{Clock, SystemClock};
use crate::columnar::error::{ColumnarError, Result};
use crate::columnar::physical::{delta_type, has_timestamp_ntz};
use crate::columnar::publish::{Created, Publish, UNFINISHED};
use crate::columnar::{DataFile, Layout, Version};

/// Directory of the log.
pub const LOG_DIR: &str = "_delta_log";
const LAST_CHECKPOINT: &str = "_delta_log/_last_checkpoint";

/// What the log says about the table itself.
#[derive(Clone, Debug)]
pub struct Header {
    pub(super) protocol: Protocol,
    pub(super) meta: MetaData,
    /// Commit of the newest checkpoint.
    checkpoint: Option<u64>,
}

/// The log of one table.
#[derive(Debug)]
pub struct DeltaLog {
    table: String,
    store: Arc<dyn ObjectStore>,
    publish: Arc<dyn Publish>,
    checkpoint_commits: u64,
}

/// Content of `_last_checkpoint`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LastCheckpoint {
    version: u64,
    /// Actions.
    size: u64,
    size_in_bytes: u64,
    /// xxh3-64 of the checkpoint file, hexadecimal.
    #[serde(default)]
    verus_xxh3: String,
}

/// The state while actions are applied to it.
#[derive(Default)]
struct Replay {
    protocol: Option<Protocol>,
    meta: Option<MetaData>,
    files: BTreeMap<String, Add>,
    flushed_lsn: u64,
}

fn entry_path(version: u64) -> String {
    format!("{LOG_DIR}/{version:020}.json")
}

fn checkpoint_path(version: u64) -> String {
    format!("{LOG_DIR}/{version:020}.checkpoint.parquet")
}

fn now_ms() -> i64 {
    SystemClock.now() / 1000
}

impl DeltaLog {
    /// The log of `table` in `store`; a checkpoint is written every `checkpoint_commits` commits.
    pub fn new(table: &str, store: Arc<dyn ObjectStore>, publish: Arc<dyn Publish>, checkpoint_commits: u64) -> DeltaLog {
        DeltaLog { table: table.to_owned(), store, publish, checkpoint_commits }
    }

    async fn read(&self, path: &str) -> Result<Option<Bytes>> {
        match self.store.get(&Path::from(path)).await {
            Ok(found) => Ok(Some(found.bytes().await.map_err(ColumnarError::storage("read", path))?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(ColumnarError::storage("read", path)(error)),
        }
    }

    async fn names(&self) -> Result<Vec<String>> {
        let listed = self.store.list(Some(&Path::from(LOG_DIR)));
        let names = listed.map_ok(|object| object.location.filename().unwrap_or_default().to_owned());
        names.try_collect().await.map_err(ColumnarError::storage("list", LOG_DIR))
    }

    async fn load_checkpoint(&self, replay: &mut Replay) -> Result<Option<u64>> {
        let Some(last) = self.read(LAST_CHECKPOINT).await? else { return Ok(None) };
        let last: LastCheckpoint =
            serde_json::from_slice(&last).map_err(|error| ColumnarError::damaged(LAST_CHECKPOINT, error.to_string()))?;
        let path = checkpoint_path(last.version);
        let bytes = self.read(&path).await?.ok_or_else(|| ColumnarError::damaged(&path, "it is missing"))?;
        if format!("{:016x}", xxh3_64(&bytes)) != last.verus_xxh3 {
            return Err(ColumnarError::damaged(path, "its checksum does not fit"));
        }
        for action in checkpoint::decode(bytes).map_err(|problem| ColumnarError::damaged(&path, problem))? {
            replay.apply(action, &path)?;
        }
        Ok(Some(last.version))
    }

    /// Replays checkpoint and entries; none when the log is empty.
    async fn load(&self, schema: &SchemaRef) -> Result<Option<Listing>> {
        let names = self.names().await?;
        let mut replay = Replay::default();
        let checkpoint = self.load_checkpoint(&mut replay).await?;
        let first = checkpoint.map_or(0, |version| version + 1);
        let mut entries: Vec<u64> =
            names.iter().filter_map(|name| name.strip_suffix(".json")?.parse().ok()).filter(|version| *version >= first).collect();
        entries.sort_unstable();
        for (expected, version) in (first..).zip(&entries) {
            if expected != *version {
                return Err(ColumnarError::damaged(entry_path(expected), "it is missing"));
            }
            let path = entry_path(*version);
            let bytes = self.read(&path).await?.ok_or_else(|| ColumnarError::damaged(&path, "it is missing"))?;
            let (_, actions) = action::decode(&bytes).map_err(|problem| ColumnarError::damaged(&path, problem))?;
            for action in actions {
                replay.apply(action, &path)?;
            }
        }
        self.delete_unfinished(&names).await?;
        match entries.last().copied().or(checkpoint) {
            None => Ok(None),
            Some(version) => replay.listing(&self.table, version, checkpoint, schema).map(Some),
        }
    }

    async fn delete_unfinished(&self, names: &[String]) -> Result<()> {
        for name in names.iter().filter(|name| name.ends_with(UNFINISHED)) {
            let path = format!("{LOG_DIR}/{name}");
            self.store.delete(&Path::from(path.as_str())).await.map_err(ColumnarError::storage("delete", path))?;
        }
        Ok(())
    }

    /// Puts entry `version`; whoever finds it there already and not his own has lost.
    async fn append(&self, version: u64, operation: &str, actions: &[Action]) -> Result<()> {
        let txn_id = uuid::Uuid::new_v4().to_string();
        let info = CommitInfo {
            timestamp: now_ms(),
            operation: operation.to_owned(),
            operation_parameters: BTreeMap::new(),
            engine_info: concat!("verus/", env!("CARGO_PKG_VERSION")).to_owned(),
            txn_id: txn_id.clone(),
            verus_xxh3: String::new(),
        };
        let entry = action::encode(info, actions).map_err(ColumnarError::encoding("log"))?;
        let path = entry_path(version);
        match self.publish.create(&path, entry.into()).await {
            Ok(Created::Yes) => return Ok(()),
            Ok(Created::Exists) => {}
            // Known to have failed only when it is known not to be there.
            Err(error) => match self.store.head(&Path::from(path.as_str())).await {
                Err(object_store::Error::NotFound { .. }) => return Err(error),
                _ => return Err(ColumnarError::Unknown { table: self.table.clone(), source: Box::new(error) }),
            },
        }
        // A remote store may report its own first attempt, whose answer was lost.
        let found = self.read(&path).await?.and_then(|bytes| action::decode(&bytes).ok());
        match found {
            Some((info, _)) if info.txn_id == txn_id => Ok(()),
            _ => Err(ColumnarError::Conflict { table: self.table.clone(), problem: format!("commit {version} exists") }),
        }
    }

    /// Writes a checkpoint when one is due. A failure costs only replay time, so it is told and the next commit tries again.
    async fn checkpoint_if_due(&self, listing: &mut Listing) {
        let version = listing.version.version;
        let since = listing.header.checkpoint.map_or(version + 1, |last| version - last);
        if since < self.checkpoint_commits {
            return;
        }
        match self.checkpoint(listing).await {
            Ok(()) => listing.header.checkpoint = Some(version),
            Err(error) => tracing::warn!(table = %self.table, %error, "could not write a checkpoint of the table log"),
        }
    }

    async fn checkpoint(&self, listing: &Listing) -> Result<()> {
        let version = listing.version.version;
        let actions = checkpoint_actions(listing);
        let size = actions.len() as u64;
        let bytes = checkpoint::encode(&actions)?;
        let last = LastCheckpoint { version, size, size_in_bytes: bytes.len() as u64, verus_xxh3: format!("{:016x}", xxh3_64(&bytes)) };
        // Replaced, not created: an attempt that was cut off may have left one.
        self.publish.replace(&checkpoint_path(version), bytes.into()).await?;
        let last = serde_json::to_vec(&last).map_err(ColumnarError::encoding("log"))?;
        self.publish.replace(LAST_CHECKPOINT, last.into()).await?;
        self.delete_before(listing.header.checkpoint.unwrap_or(0)).await
    }

    /// Deletes what the checkpoint before the newest made unnecessary. One older checkpoint stays for other readers that
    /// have just looked up its name.
    async fn delete_before(&self, version: u64) -> Result<()> {
        for name in self.names().await? {
            let stem = name.strip_suffix(".json").or_else(|| name.strip_suffix(".checkpoint.parquet"));
            if stem.and_then(|stem| stem.parse::<u64>().ok()).is_some_and(|found| found < version) {
                let path = format!("{LOG_DIR}/{name}");
                self.store.delete(&Path::from(path.as_str())).await.map_err(ColumnarError::storage("delete", path))?;
            }
        }
        Ok(())
    }

    async fn create(&self, schema: &SchemaRef) -> Result<Listing> {
        let protocol = protocol_for(schema, None);
        let fields: Vec<_> = schema.fields().iter().map(|field| logged_field(field, field.is_nullable())).collect();
        let meta = MetaData {
            id: uuid::Uuid::new_v4().to_string(),
            name: Some(self.table.clone()),
            format: Format { provider: "parquet".to_owned(), options: BTreeMap::new() },
            schema_string: schema_string(&fields),
            partition_columns: Vec::new(),
            configuration: BTreeMap::new(),
            created_time: Some(now_ms()),
        };
        let actions = [
            Action { protocol: Some(protocol.clone()), ..Action::default() },
            Action { meta_data: Some(meta.clone()), ..Action::default() },
        ];
        self.append(0, "CREATE TABLE", &actions).await?;
        let version = Version { version: 0, files: Vec::new(), flushed_lsn: 0 };
        Ok(Listing { version: Arc::new(version), schema: Arc::clone(schema), header: Header { protocol, meta, checkpoint: None } })
    }
}

#[async_trait]
impl TableLog for DeltaLog {
    async fn open(&self, layout: &Layout) -> Result<Listing> {
        match self.load(&layout.schema).await? {
            None => self.create(&layout.schema).await,
            Some(listing) => self.widen(&listing, layout).await,
        }
    }

    async fn commit(&self, base: &Listing, change: Change) -> Result<Listing> {
        let now = now_ms();
        let version = base.version.version + 1;
        let mut actions = Vec::with_capacity(change.adds.len() + change.removes.len() + 1);
        if change.flushed_lsn != base.version.flushed_lsn {
            actions.push(Action { txn: Some(txn(change.flushed_lsn, Some(now))), ..Action::default() });
        }
        for file in &change.removes {
            let remove = Remove {
                path: file.path.clone(),
                deletion_timestamp: now,
                data_change: change.data_change,
                extended_file_metadata: true,
                partition_values: BTreeMap::new(),
                size: signed(file.bytes),
            };
            actions.push(Action { remove: Some(remove), ..Action::default() });
        }
        for file in &change.adds {
            actions.push(Action { add: Some(add(file, &base.schema, change.data_change)), ..Action::default() });
        }
        let operation = if change.data_change { "WRITE" } else { "OPTIMIZE" };
        self.append(version, operation, &actions).await?;

        let removed: std::collections::HashSet<&str> = change.removes.iter().map(|file| file.path.as_str()).collect();
        let mut files: Vec<Arc<DataFile>> =
            base.version.files.iter().filter(|file| !removed.contains(file.path.as_str())).cloned().collect();
        files.extend(change.adds.into_iter().map(Arc::new));
        let mut listing = Listing {
            version: Arc::new(Version { version, files, flushed_lsn: change.flushed_lsn }),
            schema: Arc::clone(&base.schema),
            header: base.header.clone(),
        };
        self.checkpoint_if_due(&mut listing).await;
        Ok(listing)
    }

    async fn widen(&self, base: &Listing, layout: &Layout) -> Result<Listing> {
        let schema = &layout.schema;
        let meta = &base.header.meta;
        let wider = widened_schema_string(&self.table, &meta.schema_string, schema)?;
        let files = base.version.files.iter().map(|file| {
            let stats = stats::under_schema(&base.schema, &file.stats, file.rows, schema, &|column| !layout.fills.has(column));
            Arc::new(DataFile { stats, ..DataFile::clone(file) })
        });
        let mut version = Version { files: files.collect(), ..*base.version };
        let mut header = base.header.clone();
        if let Some(schema_string) = wider {
            let mut actions = Vec::new();
            let protocol = protocol_for(schema, Some(&header.protocol));
            if protocol != header.protocol {
                actions.push(Action { protocol: Some(protocol.clone()), ..Action::default() });
                header.protocol = protocol;
            }
            header.meta.schema_string = schema_string;
            actions.push(Action { meta_data: Some(header.meta.clone()), ..Action::default() });
            version.version += 1;
            self.append(version.version, "ADD COLUMNS", &actions).await?;
        }
        Ok(Listing { version: Arc::new(version), schema: Arc::clone(schema), header })
    }
}

impl Replay {
    fn apply(&mut self, action: Action, path: &str) -> Result<()> {
        if let Some(protocol) = action.protocol {
            self.protocol = Some(protocol);
        }
        if let Some(meta) = action.meta_data {
            self.meta = Some(meta);
        }
        if let Some(txn) = action.txn.filter(|txn| txn.app_id == action::APP_ID) {
            self.flushed_lsn = u64::try_from(txn.version).map_err(|_| ColumnarError::damaged(path, "its LSN is negative"))?;
        }
        if let Some(remove) = action.remove
            && self.files.remove(&remove.path).is_none()
        {
            return Err(ColumnarError::damaged(path, format!("it removes \"{}\", which is not listed", remove.path)));
        }
        if let Some(add) = action.add {
            self.files.insert(add.path.clone(), add);
        }
        Ok(())
    }

    fn listing(self, table: &str, version: u64, checkpoint: Option<u64>, schema: &SchemaRef) -> Result<Listing> {
        let missing = |what: &str| ColumnarError::damaged(LOG_DIR, format!("it has no {what}"));
        let protocol = self.protocol.ok_or_else(|| missing("protocol"))?;
        let meta = self.meta.ok_or_else(|| missing("metadata"))?;
        refuse_unknown(table, &protocol, &meta)?;
        let mut files = self.files.into_values().map(|add| file(add, schema).map(Arc::new)).collect::<Result<Vec<_>>>()?;
        files.sort_by_key(|file| file.lsn_range);
        Ok(Listing {
            version: Arc::new(Version { version, files, flushed_lsn: self.flushed_lsn }),
            schema: Arc::clone(schema),
            header: Header { protocol, meta, checkpoint },
        })
    }
}

/// Refuses what only other writers make: a table that is read without understanding it gives wrong answers.
fn refuse_unknown(table: &str, protocol: &Protocol, meta: &MetaData) -> Result<()> {
    let features = protocol.reader_features.iter().chain(&protocol.writer_features).flatten();
    let unknown = features.filter(|feature| *feature != action::FEATURE_TIMESTAMP_NTZ).cloned().collect::<Vec<_>>();
    let problem = if protocol.min_reader_version > 3 || protocol.min_writer_version > 7 {
        format!("protocol {}/{} is unknown", protocol.min_reader_version, protocol.min_writer_version)
    } else if !unknown.is_empty() {
        format!("table features {} are unknown", unknown.join(", "))
    } else if !meta.partition_columns.is_empty() {
        "it has partition columns".to_owned()
    } else {
        return Ok(());
    };
    Err(ColumnarError::Incompatible { table: table.to_owned(), problem })
}

fn protocol_for(schema: &Schema, present: Option<&Protocol>) -> Protocol {
    let ntz = schema.fields().iter().any(|field| has_timestamp_ntz(field.data_type()))
        || present.is_some_and(|present| present.reader_features.is_some());
    let features = ntz.then(|| vec![action::FEATURE_TIMESTAMP_NTZ.to_owned()]);
    Protocol {
        min_reader_version: if ntz { 3 } else { 1 },
        min_writer_version: if ntz { 7 } else { 2 },
        reader_features: features.clone(),
        writer_features: features,
    }
}

/// A column as Spark writes it.
fn logged_field(field: &Field, nullable: bool) -> serde_json::Value {
    json!({"name": field.name(), "type": delta_type(field.data_type()), "nullable": nullable, "metadata": field.metadata()})
}

fn schema_string(fields: &[serde_json::Value]) -> String {
    json!({"type": "struct", "fields": fields}).to_string()
}

/// The new schema string when `schema` has columns that the log lacks; none when it has not. Columns of both must agree.
fn widened_schema_string(table: &str, present: &str, schema: &Schema) -> Result<Option<String>> {
    let incompatible = |problem: String| ColumnarError::Incompatible { table: table.to_owned(), problem };
    let parsed: serde_json::Value =
        serde_json::from_str(present).map_err(|error| incompatible(format!("its schema cannot be read: {error}")))?;
    let logged = parsed["fields"].as_array().cloned().unwrap_or_default();
    let find = |name: &str| logged.iter().find(|field| field["name"] == name);
    let mut wider = false;
    let mut fields = Vec::with_capacity(logged.len());
    for field in schema.fields() {
        match find(field.name()) {
            Some(found) if found["type"] == delta_type(field.data_type()) => fields.push(found.clone()),
            Some(found) => {
                return Err(incompatible(format!("column \"{}\" is of type {} there", field.name(), found["type"])));
            }
            None => {
                wider = true;
                fields.push(logged_field(field, true));
            }
        }
    }
    let kept = logged.iter().filter(|field| schema.fields().iter().all(|column| field["name"] != column.name().as_str()));
    fields.extend(kept.cloned());
    Ok(wider.then(|| schema_string(&fields)))
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn txn(flushed_lsn: u64, last_updated: Option<i64>) -> Txn {
    Txn { app_id: action::APP_ID.to_owned(), version: signed(flushed_lsn), last_updated }
}

fn add(file: &DataFile, schema: &Schema, data_change: bool) -> Add {
    let mut tags = vec![
        (action::TAG_CHECKSUM, format!("{:016x}", file.checksum)),
        (action::TAG_LSN_MIN, file.lsn_range.0.to_string()),
        (action::TAG_LSN_MAX, file.lsn_range.1.to_string()),
        (action::TAG_CLEAN_LSN, file.clean_lsn.to_string()),
    ];
    if file.lsn_base != 0 {
        tags.push((action::TAG_LSN_BASE, file.lsn_base.to_string()));
    }
    if let Some(run) = file.run {
        tags.push((action::TAG_RUN, run.simple().to_string()));
    }
    Add {
        path: file.path.clone(),
        partition_values: BTreeMap::new(),
        size: signed(file.bytes),
        modification_time: file.written_ms,
        data_change,
        stats: Some(stats::to_json(schema, file.rows, &file.stats)),
        tags: tags.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
    }
}

/// A file's `add` action as text.
pub fn describe(file: &DataFile, schema: &Schema) -> Result<String> {
    serde_json::to_string(&add(file, schema, true)).map_err(ColumnarError::encoding("describe"))
}

/// Reads what [`describe`] wrote.
pub fn described(text: &str, schema: &Schema) -> Result<DataFile> {
    let add: Add = serde_json::from_str(text).map_err(|error| ColumnarError::damaged(LOG_DIR, error.to_string()))?;
    file(add, schema)
}

/// A file from its `add` action; one without Verus's tags was written by somebody else.
fn file(add: Add, schema: &Schema) -> Result<DataFile> {
    let foreign = || ColumnarError::damaged(&add.path, "the table log has no checksum for it");
    let tag = |key: &str| add.tags.get(key).ok_or_else(foreign);
    let checksum = u64::from_str_radix(tag(action::TAG_CHECKSUM)?, 16).map_err(|_| foreign())?;
    let lsn_min = tag(action::TAG_LSN_MIN)?.parse().map_err(|_| foreign())?;
    let lsn_max = tag(action::TAG_LSN_MAX)?.parse().map_err(|_| foreign())?;
    let lsn_base = add.tags.get(action::TAG_LSN_BASE).map_or(Ok(0), |base| base.parse()).map_err(|_| foreign())?;
    let clean_lsn = add.tags.get(action::TAG_CLEAN_LSN).map_or(Ok(0), |lsn| lsn.parse()).map_err(|_| foreign())?;
    let run = add.tags.get(action::TAG_RUN).map(|run| run.parse()).transpose().map_err(|_| foreign())?;
    let (rows, stats) = stats::from_json(schema, add.stats.as_deref().unwrap_or("{}"))
        .map_err(|error| ColumnarError::damaged(&add.path, format!("its statistics cannot be read: {error}")))?;
    Ok(DataFile {
        bytes: add.size.unsigned_abs(),
        rows,
        checksum,
        lsn_range: (lsn_min, lsn_max),
        stats,
        written_ms: add.modification_time,
        clean_lsn,
        path: add.path,
        lsn_base,
        run,
    })
}

fn checkpoint_actions(listing: &Listing) -> Vec<Action> {
    let header = &listing.header;
    let mut actions = vec![
        Action { protocol: Some(header.protocol.clone()), ..Action::default() },
        Action { meta_data: Some(header.meta.clone()), ..Action::default() },
        Action { txn: Some(txn(listing.version.flushed_lsn, None)), ..Action::default() },
    ];
    let adds = listing.version.files.iter().map(|file| add(file, &listing.schema, false));
    actions.extend(adds.map(|add| Action { add: Some(add), ..Action::default() }));
    actions
}
