//! Rows in file order to the bytes of Parquet files.
//!
//! *Place*: the second half of `ColumnTable::write`.
//!
//! One row group at a time is gathered and encoded, its columns spread over tasks, so memory is bounded by a row group's
//! columns and one file's bytes. Per type: strings by dictionary (Parquet falls back by itself where that does not pay), LSN and
//! timestamps as binary-packed differences, fixed bytes (uuids) plain. The Arrow schema is left out of the footer: readers
//! that know fewer types than this one then see plain Parquet.

use std::sync::Arc;

use arrow::array::UInt32Array;
use arrow::compute::take;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use bytes::Bytes;
use parquet::arrow::ArrowSchemaConverter;
use parquet::arrow::arrow_writer::{ArrowColumnChunk, ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnPath;

use super::Layout;
use super::cluster::Clustered;
use super::error::{ColumnarError, Result};
use super::log::stats::STRING_MAX;
use crate::config::limits::ColumnarLimits;
use crate::task::Spawner;

/// False positives of a bloom filter.
const BLOOM_FALSE_POSITIVES: f64 = 0.01;

/// Rows below which spreading columns over tasks costs more than it saves.
const PARALLEL_ROWS_MIN: usize = 8_192;

/// One finished file.
#[derive(Debug)]
pub struct Encoded {
    /// The whole file.
    pub bytes: Bytes,
    /// Its footer.
    pub footer: ParquetMetaData,
    /// Least and greatest LSN.
    pub lsn_range: (i64, i64),
    /// Rows.
    pub rows: u64,
}

/// Encodes cuts of clustered rows, file by file.
#[derive(Debug)]
pub struct Encoder {
    schema: SchemaRef,
    properties: Arc<WriterProperties>,
    rows: Arc<Clustered>,
    limits: ColumnarLimits,
}

impl Encoder {
    /// An encoder of `rows`, whose columns are those of `schema`.
    pub fn new(layout: &Layout, schema: SchemaRef, rows: Arc<Clustered>, limits: &ColumnarLimits) -> Result<Encoder> {
        let properties = Arc::new(properties(layout, &schema, rows.partitions, limits)?);
        Ok(Encoder { schema, properties, rows, limits: limits.clone() })
    }

    /// Encodes rows of `cut` from `from` on until the cut ends or the file is large enough. Returns the file and the first
    /// row that is not in it.
    pub async fn file(&self, cut: &std::ops::Range<usize>, from: usize) -> Result<(Encoded, usize)> {
        let refused = |error| ColumnarError::encoding("encode")(error);
        let parquet_schema = ArrowSchemaConverter::new().convert(&self.schema).map_err(refused)?;
        let mut writer =
            SerializedFileWriter::new(Vec::new(), parquet_schema.root_schema_ptr(), Arc::clone(&self.properties)).map_err(refused)?;
        let factory = ArrowRowGroupWriterFactory::new(&writer, Arc::clone(&self.schema));
        let (mut at, mut group) = (from, 0);
        while at < cut.end && writer.bytes_written() < self.limits.file_bytes_max {
            let to = cut.end.min(at + self.limits.row_group_rows);
            let writers = factory.create_column_writers(group).map_err(refused)?;
            let chunks = self.columns(at..to, writers).await?;
            let mut row_group = writer.next_row_group().map_err(refused)?;
            for chunk in chunks {
                chunk.append_to_row_group(&mut row_group).map_err(refused)?;
            }
            row_group.close().map_err(refused)?;
            (at, group) = (to, group + 1);
        }
        let footer = writer.finish().map_err(refused)?;
        let bytes = std::mem::take(writer.inner_mut());
        let lsns = self.rows.order[from..at].iter().map(|row| self.rows.lsns[*row as usize]);
        let lsn_range = lsns.fold((i64::MAX, i64::MIN), |(least, greatest), lsn| (least.min(lsn), greatest.max(lsn)));
        Ok((Encoded { bytes: bytes.into(), footer, lsn_range, rows: (at - from) as u64 }, at))
    }

    /// Gathers and encodes one row group, column by column. Every stored type has one leaf, so writers and columns pair up.
    async fn columns(&self, range: std::ops::Range<usize>, writers: Vec<ArrowColumnWriter>) -> Result<Vec<ArrowColumnChunk>> {
        let tasks = if range.len() < PARALLEL_ROWS_MIN { 1 } else { self.limits.encode_tasks.max(1) };
        let indices = Arc::new(UInt32Array::from(self.rows.order[range].to_vec()));
        let mut shares: Vec<Vec<(usize, ArrowColumnWriter)>> = (0..tasks).map(|_| Vec::new()).collect();
        for (column, writer) in writers.into_iter().enumerate() {
            shares[column % tasks].push((column, writer));
        }
        let spawner = Spawner::current();
        let running = shares.into_iter().map(|share| {
            let (rows, schema, indices) = (Arc::clone(&self.rows), Arc::clone(&self.schema), Arc::clone(&indices));
            spawner.blocking(move || encode_share(&rows, &schema, &indices, share))
        });
        let mut chunks = Vec::with_capacity(self.schema.fields().len());
        for task in running.collect::<Vec<_>>() {
            let done = task.await.map_err(|stopped| ColumnarError::Invariant(format!("encoding was cut off: {stopped}")))?;
            chunks.extend(done?);
        }
        chunks.sort_by_key(|(column, _)| *column);
        Ok(chunks.into_iter().map(|(_, chunk)| chunk).collect())
    }
}

fn encode_share(
    rows: &Clustered,
    schema: &Schema,
    indices: &UInt32Array,
    share: Vec<(usize, ArrowColumnWriter)>,
) -> Result<Vec<(usize, ArrowColumnChunk)>> {
    share
        .into_iter()
        .map(|(column, mut writer)| {
            let values = take(&rows.columns[column], indices, None).map_err(ColumnarError::encoding("gather"))?;
            for leaf in compute_leaves(schema.field(column), &values).map_err(ColumnarError::encoding("encode"))? {
                writer.write(&leaf).map_err(ColumnarError::encoding("encode"))?;
            }
            Ok((column, writer.close().map_err(ColumnarError::encoding("encode"))?))
        })
        .collect()
}

fn properties(layout: &Layout, schema: &Schema, partitions: usize, limits: &ColumnarLimits) -> Result<WriterProperties> {
    let compression = if layout.zstd {
        Compression::ZSTD(ZstdLevel::try_new(1).map_err(ColumnarError::encoding("encode"))?)
    } else {
        Compression::SNAPPY
    };
    let mut builder = WriterProperties::builder()
        .set_created_by(concat!("verus version ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_compression(compression)
        .set_max_row_group_row_count(Some(limits.row_group_rows))
        .set_data_page_row_count_limit(limits.page_rows)
        .set_dictionary_page_size_limit(limits.dictionary_bytes_max)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_statistics_truncate_length(Some(STRING_MAX))
        .set_column_index_truncate_length(Some(STRING_MAX));
    for (index, field) in schema.fields().iter().enumerate() {
        let path = ColumnPath::from(vec![field.name().clone()]);
        match field.data_type() {
            DataType::Timestamp(_, _) => {
                builder = builder
                    .set_column_dictionary_enabled(path.clone(), false)
                    .set_column_encoding(path.clone(), Encoding::DELTA_BINARY_PACKED);
            }
            DataType::Int64 if index + 1 == schema.fields().len() => {
                builder = builder
                    .set_column_dictionary_enabled(path.clone(), false)
                    .set_column_encoding(path.clone(), Encoding::DELTA_BINARY_PACKED);
            }
            DataType::FixedSizeBinary(_) => builder = builder.set_column_dictionary_enabled(path.clone(), false),
            // Statistics pass over NaN, which sorts above every number: a bound would prune rows that match.
            DataType::Float32 | DataType::Float64 => {
                builder = builder.set_column_statistics_enabled(path.clone(), EnabledStatistics::None);
            }
            _ => {}
        }
        if layout.partition_by == Some(index) && !matches!(field.data_type(), DataType::Boolean | DataType::List(_)) {
            let distinct = (partitions as u64).clamp(1, limits.bloom_distinct_max);
            builder = builder
                .set_column_bloom_filter_enabled(path.clone(), true)
                .set_column_bloom_filter_fpp(path.clone(), BLOOM_FALSE_POSITIVES)
                .set_column_bloom_filter_max_ndv(path, distinct);
        }
    }
    Ok(builder.build())
}
