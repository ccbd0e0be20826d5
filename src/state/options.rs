//! How RocksDB is set up.

use rocksdb::{BlockBasedOptions, Cache, DBCompressionType, DBRecoveryMode, LogLevel, Options};

use super::Family;

/// Table and blob files kept open.
const OPEN_FILES_MAX: i32 = 256;
/// Flushes and compactions at once.
const BACKGROUND_JOBS: i32 = 2;
/// Values from this size on live in blob files, where a compaction of keys does not copy them.
const BLOB_BYTES_MIN: u64 = 8 * 1024;
const BLOB_FILE_BYTES: u64 = 32 * 1024 * 1024;
/// Collection looks at this part of the blob files, the oldest ones...
const BLOB_COLLECTED: f64 = 0.5;
/// ... and starts by itself when this part of them is garbage.
const BLOB_GARBAGE_MAX: f64 = 0.4;
/// Part of the memory that goes to memtables; the rest is the block cache.
const MEMTABLE_PART: usize = 2;

/// Settings of the database as a whole.
pub(super) fn database(memory_bytes: usize) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_paranoid_checks(true);
    // The log is not synced at every write, so after a power failure it ends anywhere, in any of its files: what is there up
    // to the first gap is a consistent state, and Verus's own log has the rest. That nothing is missing which had been
    // synced is checked by the caller, since this mode takes damage for an end.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_db_write_buffer_size(memory_bytes / MEMTABLE_PART);
    options.set_max_total_wal_size(memory_bytes as u64);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_max_background_jobs(BACKGROUND_JOBS);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1024 * 1024);
    options.set_stats_dump_period_sec(0);
    options.set_bytes_per_sync(1024 * 1024);
    options
}

/// The cache that all families share.
pub(super) fn cache(memory_bytes: usize) -> Cache {
    Cache::new_lru_cache(memory_bytes - memory_bytes / MEMTABLE_PART)
}

/// Settings of a column family.
pub(super) fn family(family: Family, memory_bytes: usize, cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    // Otherwise indexes and filters would be memory beside the budget.
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_bloom_filter(10.0, false);
    table.set_format_version(5);

    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    match family {
        Family::Meta | Family::Index | Family::Alerts => options.set_write_buffer_size((memory_bytes / 16).max(64 * 1024)),
        Family::Blocks => {
            options.set_write_buffer_size((memory_bytes / 4).max(64 * 1024));
            // Blocks are a hundred kilobytes to a megabyte, written once and deleted by the next merge: in the tree every
            // compaction would copy them. Measured with blocks of 400 kB: a third of the time for a read, half the disk.
            options.set_enable_blob_files(true);
            options.set_min_blob_size(BLOB_BYTES_MIN);
            options.set_blob_file_size(BLOB_FILE_BYTES);
            options.set_blob_compression_type(DBCompressionType::Lz4);
            options.set_enable_blob_gc(true);
            options.set_blob_gc_age_cutoff(BLOB_COLLECTED);
            options.set_blob_gc_force_threshold(BLOB_GARBAGE_MAX);
        }
    }
    options
}
