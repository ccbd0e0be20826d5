//! Parquet files that somebody else has written, on the local disk.
//!
//! *Place*: `client::import` loads them. They are no table's: nothing of Verus's own is expected in them.

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use crate::error::{Error, Result, SqlState};

/// A file whose footer has been read.
#[derive(Debug)]
pub struct ForeignFile {
    path: PathBuf,
    metadata: ArrowReaderMetadata,
}

/// Its rows from some row on.
pub struct ForeignRows {
    path: PathBuf,
    reader: ParquetRecordBatchReader,
}

impl std::fmt::Debug for ForeignRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ForeignRows").field("path", &self.path).finish_non_exhaustive()
    }
}

impl ForeignFile {
    /// Reads the footer. 58030 for a file that cannot be read, 22000 for one that is not Parquet.
    pub fn open(path: &Path) -> Result<ForeignFile> {
        let file = open(path)?;
        let metadata = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new()).map_err(|error| damaged(path, &error))?;
        Ok(ForeignFile { path: path.to_owned(), metadata })
    }

    /// Its columns.
    pub fn schema(&self) -> &SchemaRef {
        self.metadata.schema()
    }

    /// How many rows it has.
    pub fn rows(&self) -> u64 {
        u64::try_from(self.metadata.metadata().file_metadata().num_rows()).unwrap_or(0)
    }

    /// Reads some of its columns, in the file's order, from a row on.
    pub fn read(&self, columns: &[usize], from: u64, batch_rows: usize) -> Result<ForeignRows> {
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(open(&self.path)?, self.metadata.clone());
        let mask = ProjectionMask::roots(builder.parquet_schema(), columns.iter().copied());
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        let reader = builder.with_projection(mask).with_offset(from).with_batch_size(batch_rows).build();
        Ok(ForeignRows { path: self.path.clone(), reader: reader.map_err(|error| damaged(&self.path, &error))? })
    }
}

impl Iterator for ForeignRows {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.reader.next().map(|batch| batch.map_err(|error| damaged(&self.path, &error)))
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| Error::new(SqlState::IO_ERROR, format!("could not read \"{}\": {error}", path.display())))
}

fn damaged(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::new(SqlState::DATA_EXCEPTION, format!("\"{}\" is not a readable Parquet file: {error}", path.display()))
}
