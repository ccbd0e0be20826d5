//! Parquet: columns as text, which the server reads by the types of its table.
//!
//! A Parquet file is written once, so its marks are made of the hash of the whole file and of a number of rows.

use std::io::Read;
use std::sync::Arc;

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::super::{Error, Result};
use super::file::Input;
use super::json::text_format;
use super::ledger::Known;
use super::progress::Progress;
use super::table::Table;
use super::{ImportArgs, Mark, PORTION_BYTES, Portion, Source, Step};
use crate::columnar::foreign::{ForeignFile, ForeignRows};
use crate::event::Encoder;
use crate::types::text::Style;

/// Rows that are decoded at once.
const BATCH_ROWS: usize = 10_000;

/// A Parquet file under way.
pub struct Parquet {
    name: String,
    hash: u128,
    rows: ForeignRows,
    encoder: Encoder,
    statement: String,
    /// Rows read.
    position: u64,
    /// Rows that are committed already, until they have been told.
    known: u64,
    batch: u64,
}

impl Parquet {
    /// Reads the footer, and the whole file for its hash.
    pub fn open(args: &ImportArgs, table: &Arc<Table>, input: Input, known: Known, progress: &Progress) -> Result<Parquet> {
        let failed = |error: crate::error::Error| Error::Setup(error.to_string());
        let file = ForeignFile::open(&input.path).map_err(failed)?;
        let names: Vec<String> = file.schema().fields().iter().map(|field| field.name().clone()).collect();
        let chosen = table.choose(&input.name, &names, &args.columns, args.skip_unknown)?;
        let indexes: Vec<usize> = (0..names.len()).filter(|index| chosen[*index]).collect();
        let columns: Vec<&str> = indexes.iter().map(|index| names[*index].as_str()).collect();
        let statement = table.copy(&columns, "FORMAT text");
        let schema = file.schema().project(&indexes).map_err(|error| Error::Setup(format!("{}: {error}", input.name)))?;
        let encoder = Encoder::new(&Arc::new(schema), text_format(None), Style::default()).map_err(failed)?;
        let hash = hash(&input, progress)?;
        let position = known.places().filter(|position| *position <= file.rows() && known.has(mark(hash, *position))).max().unwrap_or(0);
        let rows = file.read(&indexes, position, BATCH_ROWS).map_err(failed)?;
        Ok(Parquet { name: input.name, hash, rows, encoder, statement, position, known: position, batch: args.batch })
    }
}

impl Source for Parquet {
    fn statement(&self) -> &str {
        &self.statement
    }

    fn next(&mut self) -> Result<Option<Step>> {
        if self.known > 0 {
            return Ok(Some(Step::Known(std::mem::take(&mut self.known))));
        }
        let failed = |error: crate::error::Error| Error::Setup(format!("{}: {error}", self.name));
        let (mut data, mut ends) = (Vec::new(), Vec::new());
        let first = self.position + 1;
        while (ends.len() as u64) < self.batch && data.len() < PORTION_BYTES {
            let Some(batch) = self.rows.next() else { break };
            self.encoder.rows(&batch.map_err(failed)?, &mut data, &mut ends).map_err(failed)?;
        }
        let rows = ends.len() as u64;
        self.position += rows;
        let end = mark(self.hash, self.position);
        Ok((rows > 0).then(|| Step::New(Portion { data: data.into(), rows, end, lines: vec![(1, first)] })))
    }
}

fn mark(file: u128, position: u64) -> Mark {
    let bytes = [&file.to_le_bytes()[..], &position.to_le_bytes()[..]].concat();
    Mark { position, hash: xxh3_128(&bytes) }
}

fn hash(input: &Input, progress: &Progress) -> Result<u128> {
    let mut reader = input.read(progress)?;
    let (mut hash, mut step) = (Xxh3::new(), vec![0; PORTION_BYTES]);
    loop {
        match reader.read(&mut step) {
            Ok(0) => return Ok(hash.digest128()),
            Ok(read) => hash.update(&step[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::Setup(format!("{}: {error}", input.name))),
        }
    }
}
