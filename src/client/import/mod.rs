//! `verus import`: files of events into a table of a running server, each row once.
//!
//! *Place*: called by `main`. [`file`] opens and decompresses, [`records`] finds lines, [`csv`], [`json`] and [`parquet_file`] cut a file into portions of COPY data,
//! [`ledger`] remembers which are committed, [`send`] commits them, [`progress`] shows how far it is.
//!
//! *Invariants*: (1) a portion's rows and the ledger's row about it are one transaction, so after a kill of either side a second run goes on
//! behind what is committed; (2) the ledger's key is a hash of all that the file holds up to the portion's end, so a portion is committed
//! once however often and from wherever the file is loaded, and a file that has grown since is loaded from where it had ended; (3) what
//! is read ahead is bounded: [`PORTION_BYTES`] and `--batch` rows a portion, [`PORTIONS_AHEAD`] of them.

mod csv;
mod file;
mod json;
mod ledger;
mod parquet_file;
mod progress;
mod records;
mod send;
mod table;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use clap::{Args, ValueEnum};

use super::wire::Address;
use super::{Error, Result};
use crate::task::{Runtimes, Spawner};
use file::Input;
use progress::Progress;
use table::Table;

/// Bytes of a portion: what is loaded again after a kill.
const PORTION_BYTES: usize = 8 * 1024 * 1024;

/// Portions that are read while another is committed.
const PORTIONS_AHEAD: usize = 2;

/// Loads files into a table of a running server; a second run goes on where the first ended.
#[derive(Debug, Args)]
#[command(after_help = "\
CSV has a header that names the columns; NDJSON has an event a line, by the rules of POST /v1/events. Files may end in .gz or .zst. '-' reads
standard input (with --format). What is loaded is kept in the table verus_imports: loading a file again adds what it has got since.")]
pub struct ImportArgs {
    /// Files to load, in this order
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Table to load into
    #[arg(long, default_value = "events")]
    table: String,
    /// Form of the files [default: by their names: .csv, .ndjson, .jsonl, .json, .parquet]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Only these columns of the files, separated by commas (CSV and Parquet)
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    columns: Vec<String>,
    /// Leave out columns that the table does not have
    #[arg(long)]
    skip_unknown: bool,
    /// Character between the fields of CSV
    #[arg(long, default_value = ",")]
    delimiter: String,
    /// Unquoted text of CSV that stands for NULL
    #[arg(long, default_value = "", value_name = "TEXT")]
    null: String,
    /// Time zone of times without an offset
    #[arg(long, default_value = "UTC", value_name = "ZONE")]
    time_zone: String,
    /// What becomes of events behind the watermark
    #[arg(long, value_enum, default_value_t = LateRows::Apply)]
    late_rows: LateRows,
    /// Rows that are committed together, if they are not more than 8 MiB
    #[arg(long, default_value_t = 50_000, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    batch: u64,
    /// Load files that have been loaded before once more, under a name by which a second run of this import goes on
    #[arg(long, default_value = "", value_name = "NAME", hide_default_value = true)]
    again: String,
    /// Host of the server
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port of the server's PostgreSQL protocol
    #[arg(long, default_value_t = 5432)]
    port: u16,
    /// Password of user verus
    #[arg(long, env = "VERUS_PASSWORD", hide_env_values = true, value_name = "PASSWORD")]
    password: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Fields between commas, with a header
    Csv,
    /// An object a line
    Ndjson,
    /// Parquet
    Parquet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LateRows {
    /// Accepted, and every view is corrected
    Apply,
    /// Into the table's $late companion
    Divert,
    /// The import fails
    Error,
}

impl LateRows {
    fn text(self) -> &'static str {
        match self {
            LateRows::Apply => "apply",
            LateRows::Divert => "divert",
            LateRows::Error => "error",
        }
    }
}

/// Rows of a file, as COPY data.
#[derive(Debug)]
struct Portion {
    data: Bytes,
    rows: u64,
    /// All that the file holds up to here: how far that is, and its hash.
    end: Mark,
    /// From which line of the data which line of the file is: where the file's lines are not one after the other in the data, there are several.
    lines: Vec<(u64, u64)>,
}

/// A place in a file and the hash of what stands before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Mark {
    /// Bytes, decompressed; rows of a Parquet file.
    position: u64,
    hash: u128,
}

/// What a file's reader gives.
#[derive(Debug)]
enum Step {
    /// Rows that are committed already.
    Known(u64),
    /// Rows to commit.
    New(Portion),
}

/// A file on its way.
trait Source: Send {
    /// The COPY statement that takes its portions.
    fn statement(&self) -> &str;
    /// The next rows; none at the end.
    fn next(&mut self) -> Result<Option<Step>>;
}

/// Runs `verus import`.
pub fn import(args: &ImportArgs) -> Result<()> {
    let runtimes = Runtimes::start(2)?;
    let spawner = runtimes.spawner();
    let outcome = runtimes.block_on(async {
        tokio::select! {
            outcome = run(args, &spawner) => outcome,
            _ = tokio::signal::ctrl_c() => Err(Error::Setup("interrupted; the same command goes on where it was".to_owned())),
        }
    });
    runtimes.shutdown();
    outcome
}

async fn run(args: &ImportArgs, spawner: &Spawner) -> Result<()> {
    let address = Address { host: args.host.clone(), port: args.port, password: args.password.clone() };
    let (zone, late_rows) = (args.time_zone.replace('\'', "''"), args.late_rows.text());
    let settings = format!("SET timezone = '{zone}'; SET verus.late_rows = '{late_rows}'");
    let door = send::Door { address, settings, spawner: spawner.clone() };
    let connection = door.open().await?;
    let table = Arc::new(Table::find(&connection, &args.table).await?);
    // Before anything is loaded: a file that is missing is not found out after hours.
    let inputs = args.files.iter().map(|path| Input::of(path, args.format)).collect::<Result<Vec<_>>>()?;
    ledger::create(&connection).await?;
    let progress = Progress::start(inputs.iter().map(|input| input.bytes).sum());
    let mut sender = send::Sender::new(door, connection, Arc::clone(&table), &args.again);
    let mut sum = send::Sum::default();
    for input in inputs {
        let known = sender.known().await?;
        let name = input.name.clone();
        progress.file(&name);
        let source = open(args, &table, input, known, &progress)?;
        let one = sender.send(&name, source, &progress).await?;
        progress.told(&one.line(&name));
        sum = sum.and(one);
    }
    progress.end();
    if args.files.len() > 1 {
        println!("{}", sum.line("all"));
    }
    Ok(())
}

fn open(args: &ImportArgs, table: &Arc<Table>, input: Input, known: ledger::Known, progress: &Progress) -> Result<Box<dyn Source>> {
    Ok(match input.format {
        Format::Csv => Box::new(csv::Csv::open(args, table, input, known, progress)?),
        Format::Ndjson => Box::new(json::Ndjson::open(args, table, input, known, progress)?),
        Format::Parquet => Box::new(parquet_file::Parquet::open(args, table, input, known, progress)?),
    })
}
