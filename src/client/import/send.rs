//! Commits portions: rows and the ledger's row in one transaction, while the next are read on another thread.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio_postgres::Statement;
use tokio_postgres::error::SqlState;

use super::super::wire::{Address, Connection};
use super::super::{Error, Result};
use super::progress::{Progress, grouped};
use super::table::Table;
use super::{PORTIONS_AHEAD, Portion, Source, Step, ledger};
use crate::task::Spawner;

/// What became of a file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    rows: u64,
    known: u64,
    seconds: f64,
}

impl Sum {
    /// With another's.
    pub fn and(self, other: Sum) -> Sum {
        Sum { rows: self.rows + other.rows, known: self.known + other.known, seconds: self.seconds + other.seconds }
    }

    /// As it is told.
    pub fn line(&self, name: &str) -> String {
        let rate = grouped((self.rows as f64 / self.seconds.max(0.001)) as u64);
        let known = match self.known {
            0 => String::new(),
            known => format!("; {} were loaded before", grouped(known)),
        };
        match self.rows {
            0 if self.known > 0 => format!("{name}: nothing new; {} rows were loaded before", grouped(self.known)),
            rows => format!("{name}: {} rows in {:.1} s, {rate}/s{known}", grouped(rows), self.seconds),
        }
    }
}

/// Sends portions of files to one table.
pub struct Sender {
    door: Door,
    connection: Connection,
    table: Arc<Table>,
    again: String,
}

/// How a connection is made.
pub struct Door {
    pub address: Address,
    /// Settings of the session.
    pub settings: String,
    pub spawner: Spawner,
}

impl Door {
    /// A connection with its settings.
    pub async fn open(&self) -> Result<Connection> {
        let connection = Connection::open(&self.address, "verus import", &self.spawner).await?;
        connection.run(&self.settings).await?;
        Ok(connection)
    }
}

impl Sender {
    /// Over a connection that `door` has opened.
    pub fn new(door: Door, connection: Connection, table: Arc<Table>, again: &str) -> Sender {
        Sender { door, connection, table, again: again.to_owned() }
    }

    /// All that has been loaded into the table.
    pub async fn known(&self) -> Result<ledger::Known> {
        ledger::known(&self.connection, &self.table, &self.again).await
    }

    /// Loads a file.
    pub async fn send(&mut self, name: &str, mut source: Box<dyn Source>, progress: &Progress) -> Result<Sum> {
        let begin = Instant::now();
        let statement = source.statement().to_owned();
        // A statement that cannot be is found out before anything is read.
        let mut copy = self.connection.client.prepare(&statement).await?;
        let (sender, mut portions) = mpsc::channel(PORTIONS_AHEAD);
        let reader = self.door.spawner.blocking(move || {
            while let Some(step) = source.next()? {
                if sender.blocking_send(step).is_err() {
                    break;
                }
            }
            Ok::<_, Error>(())
        });
        let mut sum = Sum::default();
        while let Some(step) = portions.recv().await {
            match step {
                Step::Known(rows) => sum.known += rows,
                Step::New(portion) => match self.commit(name, &copy, &portion).await {
                    Ok(()) => {
                        sum.rows += portion.rows;
                        progress.rows(name, portion.rows);
                    }
                    // The portion may be there all the same: another import was faster, or the answer got lost.
                    Err(error) => match self.reconnect(&statement).await {
                        Ok(fresh) if is_known(&error) || self.known().await?.has(portion.end) => {
                            sum.known += portion.rows;
                            copy = fresh;
                        }
                        _ => return Err(explain(error, name, &portion, sum)),
                    },
                },
            }
        }
        reader.await.map_err(|error| Error::Wrong(format!("reading {name} panicked: {error}")))??;
        sum.seconds = begin.elapsed().as_secs_f64();
        Ok(sum)
    }

    /// A driver whose COPY has failed is out of step with the server.
    async fn reconnect(&mut self, statement: &str) -> Result<Statement> {
        self.connection = self.door.open().await?;
        Ok(self.connection.client.prepare(statement).await?)
    }

    async fn commit(&self, name: &str, copy: &Statement, portion: &Portion) -> Result<()> {
        // The key comes first: it is looked at before the rows are sent.
        let insert = ledger::insert(&self.table, &self.again, name, portion.end, portion.rows);
        self.connection.run(&format!("BEGIN; {insert}")).await?;
        let taken = self.connection.copy(copy, portion.data.clone()).await?;
        if taken != portion.rows {
            return Err(Error::Wrong(format!("{taken} rows were taken of {}", portion.rows)));
        }
        self.connection.run("COMMIT").await
    }
}

/// Whether the key that was in the way is the ledger's, not one of the table's own: another import has just loaded the portion.
fn is_known(error: &Error) -> bool {
    let Error::Server(error) = error else { return false };
    error.as_db_error().is_some_and(|report| {
        *report.code() == SqlState::UNIQUE_VIOLATION && report.message().contains(&format!("\"{}_pkey\"", ledger::TABLE))
    })
}

/// An error with the file and its line, and what to do.
fn explain(error: Error, name: &str, portion: &Portion, sum: Sum) -> Error {
    let behind = format!("{} rows are loaded; the same command goes on behind them", grouped(sum.rows + sum.known));
    let Error::Server(server) = &error else { return error };
    let Some(report) = server.as_db_error() else {
        return Error::Setup(format!("{name}: the connection to the server broke: {server}\n  {behind}"));
    };
    let context = report.where_().unwrap_or_default();
    let place = match context.split_once(", line ") {
        None => name.to_owned(),
        Some((_, rest)) => {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let line = rest[..digits].parse().map_or(0, |line| portion.line(line));
            format!("{name}, line {line}{}", &rest[digits..])
        }
    };
    let mut text = format!("{place}\n  {} ({})", report.message(), report.code().code());
    report.detail().iter().for_each(|detail| text.push_str(&format!("\n  {detail}")));
    report.hint().iter().for_each(|hint| text.push_str(&format!("\n  {hint}")));
    Error::Setup(format!("{text}\n  {behind}"))
}

impl Portion {
    /// Which line of the file (which row of a Parquet file) a line of the data is.
    fn line(&self, line: u64) -> u64 {
        let (data, file) = self.lines.iter().rev().find(|(data, _)| *data <= line).copied().unwrap_or((1, 1));
        file + (line - data.min(line))
    }
}
