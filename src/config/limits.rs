//! Named maxima of every queue, batch, buffer and pool. One memory budget, divided here.
//!
//! *Place*: each component takes its section. A field is at once a key of `verus.toml` (`[limits.store] flush_rows = N`) and a
//! variable (`VERUS_LIMITS_STORE_FLUSH_ROWS`): the names come from serde.

use serde::{Deserialize, Serialize};

/// The limits of one server. Each component takes its section.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Limits {
    /// The log.
    pub wal: WalLimits,
    /// Parquet files and their table log.
    pub columnar: ColumnarLimits,
    /// Commit, hot rows, flush.
    pub store: StoreLimits,
    /// View state.
    pub view: ViewLimits,
    /// Query execution.
    pub query: QueryLimits,
    /// Connections and statements.
    pub wire: WireLimits,
    /// Events from the web.
    pub ingest: IngestLimits,
    /// Sources that read Kafka.
    pub kafka: KafkaLimits,
    /// Alerts and their messages.
    pub alert: AlertLimits,
}

/// Limits of the log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WalLimits {
    /// A segment is closed past this size.
    pub segment_bytes_max: u64,
}

/// Limits of Parquet files and their table log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ColumnarLimits {
    /// A file is closed at the first row group past this size.
    pub file_bytes_max: usize,
    /// Rows of a row group; one is encoded in memory at a time.
    pub row_group_rows: usize,
    /// Rows of a data page: what is read at least for one partition's rows of a file.
    pub page_rows: usize,
    /// Bytes of a column's dictionary in a row group. A column with more values is written plain, which zstd makes smaller than a large
    /// dictionary, and which spares the reader of a few rows the whole dictionary.
    pub dictionary_bytes_max: usize,
    /// A date with fewer rows shares a file with the dates after it.
    pub date_rows_min: usize,
    /// Tasks that encode the columns of one row group.
    pub encode_tasks: usize,
    /// Distinct partition values for which a row group's bloom filter is sized at most.
    pub bloom_distinct_max: u64,
    /// Decoded footers and page indexes kept of one table, bytes.
    pub metadata_bytes_max: usize,
    /// Files of one table that are kept open.
    pub open_files_max: usize,
    /// Commits between two checkpoints of the table log.
    pub checkpoint_commits: u64,
    /// Files of one size and date from which compaction merges them.
    pub merge_files_min: usize,
    /// Files of one date that may cover the same (partition, time).
    pub overlap_max: usize,
    /// UTC days that one file may hold at most, a power of two; an eighth of the table's retention where that is less.
    pub span_days_max: i64,
    /// Rows of files of several days in one place: a question about one of the days but no partition reads them all.
    pub span_rows_max: u64,
    /// Rows of one merge, which goes on partition range by partition range.
    pub merge_rows_max: u64,
    /// Rows of one such range, less where memory is short: nothing else is flushed or merged meanwhile.
    pub step_rows_max: u64,
    /// Time without new files after which a window of days is merged into one sorted run even if events may still come, milliseconds.
    pub settle_ms: i64,
}

/// Limits of commit and flush.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoreLimits {
    /// Transactions waiting for the sequencer.
    pub commit_queue_max: usize,
    /// Rows of one group commit.
    pub group_rows_max: usize,
    /// Hot rows of one table after which a flush starts.
    pub flush_rows: usize,
    /// Hot bytes of all tables after which commits wait for the flush.
    pub hot_bytes_max: usize,
    /// Age of the oldest hot row after which a flush starts, milliseconds.
    pub flush_age_ms: u64,
    /// Time between view checkpoints, milliseconds.
    pub checkpoint_ms: u64,
    /// Bytes of one statement's rows in memory; COPY and INSERT go on in files beyond it.
    pub statement_bytes_max: usize,
    /// Least time between two refreshes of a view that does not say its own, milliseconds.
    pub refresh_interval_ms: u64,
    /// How often all states of a view that become smaller are merged, if they were not anyway, milliseconds.
    pub settle_ms: u64,
    /// How long the states of a view stay whole at least after older rows came than they could tell apart, milliseconds.
    pub whole_states_ms: u64,
    /// Bytes of the files of one such statement.
    pub staged_bytes_max: u64,
    /// Keys seen lately (`dedup_key`) in memory, bytes; beyond it they go to disk, of which a fifteenth stays in memory.
    pub dedup_bytes_max: usize,
    /// Keys of PRIMARY KEY and UNIQUE constraints of all tables, about 40 bytes each.
    pub unique_keys_max: usize,
    /// Times that a statement is evaluated again because rows that it was to change had changed.
    pub retries_max: usize,
    /// Age of a deletion after which the files that hold its rows are rewritten without them, milliseconds.
    pub erase_age_ms: u64,
}

/// Limits of view state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ViewLimits {
    /// Decoded blocks kept in memory, bytes.
    pub block_cache_bytes: usize,
    /// Rows of one stored block.
    pub block_rows_max: usize,
    /// RocksDB memtables and block cache, bytes.
    pub rocksdb_bytes: usize,
    /// Rows of a plain table that a view looks up: they are kept in order in memory.
    pub join_rows_max: usize,
    /// Views one over the other: reading the last plans all of them.
    pub nesting_max: usize,
    /// Memory of what a view of an operator adds up of its entities, bytes; beyond it the view is computed from them when it is read.
    pub fold_bytes_max: usize,
}

/// Limits of query execution.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct QueryLimits {
    /// Memory of all running queries, bytes; beyond it they spill.
    pub memory_bytes: usize,
    /// Spilled bytes on disk.
    pub spill_bytes_max: u64,
    /// Analyzed plans that a session keeps of its recent texts.
    pub plan_cache_max: usize,
    /// Query texts, without their strings, whose plans all sessions share.
    pub shared_plans_max: usize,
    /// One in so many queries that a view answers is run again from the table, beside the clients; 0 for none.
    pub verify_every: u64,
    /// Percent of one core's time that this may take.
    pub verify_percent: u64,
    /// Groups of a result that is verified.
    pub verify_groups_max: usize,
    /// Points of one series of ANOMALIES and FORECAST, its gaps among them.
    pub series_points_max: usize,
}

/// Limits of alerts and their messages.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AlertLimits {
    /// Alerts.
    pub alerts_max: usize,
    /// Notification channels.
    pub channels_max: usize,
    /// Instances of one alert.
    pub instances_max: usize,
    /// Rows of new windows that one evaluation looks at.
    pub rows_max: usize,
    /// Time of one evaluation, milliseconds.
    pub evaluate_ms_max: u64,
    /// Changes of state that are kept of one alert.
    pub history_max: usize,
    /// Messages that wait for one channel.
    pub outbox_max: usize,
    /// Messages that are kept after they were delivered or given up.
    pub delivered_max: usize,
    /// Time before a message is sent again after a first failure, milliseconds; doubled with each.
    pub retry_ms_min: u64,
    /// The most that it is doubled to.
    pub retry_ms_max: u64,
    /// Age at which a message is given up, milliseconds.
    pub give_up_ms: u64,
}

/// Limits of connections and statements.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WireLimits {
    /// Connections; the next is refused with 53300.
    pub connections_max: usize,
    /// A message before login.
    pub startup_bytes_max: usize,
    /// A message after login.
    pub message_bytes_max: usize,
    /// Tokens of a statement that is parsed into a tree.
    pub tokens_max: usize,
    /// Nesting depth of a statement.
    pub depth_max: usize,
    /// Undecoded COPY bytes of one connection.
    pub copy_in_flight_bytes_max: usize,
    /// Prepared statements and portals of one session.
    pub prepared_max: usize,
    /// Statements that `verus.query_log` remembers.
    pub query_log_max: usize,
    /// Seconds for a login.
    pub login_seconds_max: u64,
    /// Notifications (LISTEN) that wait for one session, or that one transaction sends, bytes.
    pub notify_bytes_max: usize,
    /// HTTP connections; the next wait to be accepted.
    pub http_connections_max: usize,
    /// Subscriptions to views, SQL's and HTTP's; the next is refused with 53400.
    pub subscribers_max: usize,
    /// Subscriptions over HTTP; the next is refused with 503. Fewer than connections, so that probes get through.
    pub http_subscribers_max: usize,
}

/// Limits of events from the web.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IngestLimits {
    /// Bytes of a request's body, as it comes and once more when it is decompressed; a longer one is refused with 413.
    pub body_bytes_max: usize,
    /// Bytes of all bodies that are not yet committed; the next request is refused with 429.
    pub in_flight_bytes_max: usize,
    /// Requests that are not yet answered; the next is refused with 429.
    pub requests_max: usize,
    /// Events of one request that may be refused one by one; with more, the request is refused as a whole.
    pub refused_max: usize,
    /// Bytes of a refused event that are kept.
    pub rejected_event_bytes_max: usize,
    /// Bytes of `verus.rejected_events`, in memory and in files; beyond it the older half goes.
    pub rejected_bytes_max: usize,
    /// Days for which refused events are kept.
    pub rejected_days: usize,
    /// Seconds for which an Idempotency-Key is known.
    pub idempotency_seconds: usize,
    /// Idempotency keys that are known, about 100 bytes each; the oldest go first.
    pub idempotency_keys_max: usize,
}

/// Limits of sources that read Kafka.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KafkaLimits {
    /// Sources.
    pub sources_max: usize,
    /// Partitions of one topic.
    pub partitions_max: usize,
    /// Bytes of all sources that are asked for or fetched and not yet committed; a source waits for room.
    pub in_flight_bytes_max: usize,
    /// Bytes that one request asks for, of all partitions that a broker leads. A first batch that is longer comes all the same.
    pub fetch_bytes: usize,
    /// Bytes of one answer; a source whose broker sends a longer one fails.
    pub frame_bytes_max: usize,
    /// Bytes of one batch of messages when it is decompressed; a source whose topic has a longer one fails.
    pub batch_bytes_max: usize,
    /// Bytes of messages that are decoded and committed together.
    pub commit_bytes: usize,
    /// Messages that are decoded and committed together.
    pub commit_messages_max: usize,
    /// Such commits that are under way, of all sources; the next wait.
    pub commits_max: usize,
    /// Time that a broker may wait for messages before it answers that there are none, milliseconds.
    pub wait_ms: u64,
    /// Time between two looks at a topic's partitions and their leaders, milliseconds.
    pub refresh_ms: u64,
    /// Time before a source tries again after a failure, milliseconds; doubled with each.
    pub retry_ms_min: u64,
    /// The most that it is doubled to.
    pub retry_ms_max: u64,
}

const MIB: usize = 1024 * 1024;

/// The memory budget of a server that is told nothing, bytes.
pub const MEMORY_BYTES_DEFAULT: usize = 2048 * MIB;

/// The least budget: below it the shares are too small to work with.
pub const MEMORY_BYTES_MIN: usize = 256 * MIB;

impl Limits {
    /// Divides a memory budget. In sixteenths: three for hot rows, one and a half for decoded view blocks, half a one for
    /// RocksDB, five for running queries, two for the rows of one statement, one for the keys of `dedup_key`, half a one for bodies of
    /// HTTP requests, a quarter for what Kafka sources have fetched; two and a quarter are left to the work on what is in these shares (decoding, encoding files), to connections and to
    /// the allocator. What is not
    /// memory keeps its default.
    pub fn divide(memory_bytes: usize) -> Limits {
        let share = memory_bytes / 32;
        Limits {
            store: StoreLimits {
                hot_bytes_max: 6 * share,
                statement_bytes_max: 4 * share,
                dedup_bytes_max: 2 * share,
                unique_keys_max: memory_bytes / 1024,
                ..StoreLimits::default()
            },
            view: ViewLimits { block_cache_bytes: 3 * share, rocksdb_bytes: share, ..ViewLimits::default() },
            query: QueryLimits { memory_bytes: 10 * share, ..QueryLimits::default() },
            ingest: IngestLimits { in_flight_bytes_max: share, ..IngestLimits::default() },
            kafka: KafkaLimits { in_flight_bytes_max: share / 2, ..KafkaLimits::default() },
            ..Limits::default()
        }
    }
}

impl Default for WalLimits {
    fn default() -> Self {
        Self { segment_bytes_max: 64 * MIB as u64 }
    }
}

impl Default for ColumnarLimits {
    fn default() -> Self {
        Self {
            file_bytes_max: 64 * MIB,
            row_group_rows: 131_072,
            page_rows: 8_192,
            dictionary_bytes_max: 64 * 1024,
            date_rows_min: 16_384,
            encode_tasks: 2,
            bloom_distinct_max: 65_536,
            metadata_bytes_max: 64 * MIB,
            open_files_max: 128,
            checkpoint_commits: 32,
            merge_files_min: 4,
            overlap_max: 4,
            span_days_max: 32,
            span_rows_max: 2_097_152,
            merge_rows_max: 16_777_216,
            step_rows_max: 1_048_576,
            settle_ms: 60_000,
        }
    }
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self {
            commit_queue_max: 1024,
            group_rows_max: 131_072,
            flush_rows: 262_144,
            hot_bytes_max: 384 * MIB,
            flush_age_ms: 10_000,
            checkpoint_ms: 1_000,
            statement_bytes_max: 256 * MIB,
            staged_bytes_max: 64 * 1024 * MIB as u64,
            dedup_bytes_max: 128 * MIB,
            refresh_interval_ms: 1_000,
            settle_ms: 600_000,
            whole_states_ms: 3_600_000,
            unique_keys_max: 2048 * 1024,
            retries_max: 100,
            erase_age_ms: 30_000,
        }
    }
}

impl Default for ViewLimits {
    fn default() -> Self {
        Self {
            block_cache_bytes: 192 * MIB,
            block_rows_max: 16_384,
            rocksdb_bytes: 64 * MIB,
            join_rows_max: 1_000_000,
            nesting_max: 32,
            fold_bytes_max: 128 * MIB,
        }
    }
}

impl Default for QueryLimits {
    fn default() -> Self {
        Self {
            memory_bytes: 640 * MIB,
            spill_bytes_max: 32 * 1024 * MIB as u64,
            plan_cache_max: 256,
            shared_plans_max: 1_024,
            verify_every: 1_000,
            verify_percent: 1,
            verify_groups_max: 1_000_000,
            series_points_max: 200_000,
        }
    }
}

impl Default for AlertLimits {
    fn default() -> Self {
        Self {
            alerts_max: 1_024,
            channels_max: 256,
            instances_max: 10_000,
            rows_max: 1_000_000,
            evaluate_ms_max: 60_000,
            history_max: 10_000,
            outbox_max: 10_000,
            delivered_max: 1_000,
            retry_ms_min: 1_000,
            retry_ms_max: 300_000,
            give_up_ms: 86_400_000,
        }
    }
}

impl Default for WireLimits {
    fn default() -> Self {
        Self {
            connections_max: 500,
            startup_bytes_max: 16 * 1024,
            message_bytes_max: 64 * MIB,
            tokens_max: 200_000,
            depth_max: 200,
            copy_in_flight_bytes_max: 32 * MIB,
            prepared_max: 1024,
            query_log_max: 2_000,
            login_seconds_max: 60,
            notify_bytes_max: 4 * MIB,
            http_connections_max: 256,
            subscribers_max: 256,
            http_subscribers_max: 48,
        }
    }
}

impl Default for IngestLimits {
    fn default() -> Self {
        Self {
            body_bytes_max: 16 * MIB,
            in_flight_bytes_max: 64 * MIB,
            requests_max: 256,
            refused_max: 10_000,
            rejected_event_bytes_max: 16 * 1024,
            rejected_bytes_max: 256 * MIB,
            rejected_days: 30,
            idempotency_seconds: 86_400,
            idempotency_keys_max: 100_000,
        }
    }
}

impl Default for KafkaLimits {
    fn default() -> Self {
        Self {
            sources_max: 64,
            partitions_max: 1_024,
            in_flight_bytes_max: 32 * MIB,
            fetch_bytes: 8 * MIB,
            frame_bytes_max: 64 * MIB,
            batch_bytes_max: 64 * MIB,
            commit_bytes: 2 * MIB,
            commit_messages_max: 16_384,
            commits_max: 4,
            wait_ms: 500,
            refresh_ms: 30_000,
            retry_ms_min: 200,
            retry_ms_max: 30_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_limits_are_the_default_budget_divided() {
        assert_eq!(format!("{:?}", Limits::default()), format!("{:?}", Limits::divide(MEMORY_BYTES_DEFAULT)));
    }
}
