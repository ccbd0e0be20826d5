//! Events as JSON, for one table: decoded, completed, and those that break a rule set apart.
//!
//! *Place*: called by `web::events` and `ingest::source`, on the cpu runtime; what it gives is committed by its caller.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{BooleanArray, Scalar};
use arrow::compute::filter_record_batch;
use arrow::compute::kernels::boolean::is_null;
use arrow::compute::kernels::cmp::eq;
use arrow::compute::kernels::zip::zip;
use arrow::record_batch::RecordBatch;

use super::Pipeline;
use super::defaults::Client;
use crate::catalog::Table;
use crate::catalog::bind::Binder;
use crate::clock::Micros;
use crate::error::{Error, Result, SqlState};
use crate::event::{JsonDecoder, JsonRows, RefusedEvent, too_many_refused};
use crate::types::text::parse_scalar;
use crate::types::zone::Zone;

/// Takes events for one table, as it is defined at one moment.
#[derive(Debug)]
pub struct Events {
    pipeline: Pipeline,
    decoder: JsonDecoder,
}

/// The events of one input.
#[derive(Debug)]
pub struct Taken {
    /// Rows to commit.
    pub rows: Vec<RecordBatch>,
    /// How many they are.
    pub accepted: usize,
    /// The others, by position.
    pub refused: Vec<RefusedEvent>,
}

impl Events {
    /// Binds the table's rules. `now` is the time of defaults and of `max_future`.
    pub fn new(binder: &dyn Binder, table: &Arc<Table>, now: Micros) -> Result<Events> {
        let pipeline = Pipeline::of_events(binder, table, now)?;
        let decoder = JsonDecoder::new(&table.name, pipeline.targets().to_vec(), pipeline.told(), Zone::UTC);
        Ok(Events { pipeline, decoder })
    }

    /// The table.
    pub fn table(&self) -> &Arc<Table> {
        self.pipeline.table()
    }

    /// Reads an input. With `partition` every event is of this partition: it is filled in where an event does not say, and an event that
    /// says another is refused (42501). An error refuses the whole input; so does (22000) when more than `refused_max` events are refused.
    pub fn take(&self, text: &str, partition: Option<&str>, refused_max: usize) -> Result<Taken> {
        self.take_from(text, partition, &Client::default(), refused_max)
    }

    /// The same, of a client that is known: defaults may name it.
    pub fn take_from(&self, text: &str, partition: Option<&str>, client: &Client, refused_max: usize) -> Result<Taken> {
        let mut rows = self.decoder.decode(text, refused_max)?;
        if let Some(partition) = partition {
            self.confine(&mut rows, partition)?;
        }
        self.keep_rules(rows, client, refused_max)
    }

    /// Reads messages, each a part of `text` and one event: what cannot be read or breaks a rule is refused alone.
    pub fn take_messages(&self, text: &str, messages: &[Range<usize>]) -> Result<Taken> {
        self.keep_rules(self.decoder.decode_messages(text, messages)?, &Client::default(), usize::MAX)
    }

    fn keep_rules(&self, rows: JsonRows, client: &Client, refused_max: usize) -> Result<Taken> {
        let JsonRows { batch, positions, spans, mut refused } = rows;
        let sifted = self.pipeline.sift(&batch, client, refused_max);
        let accepted = sifted.rows.iter().map(RecordBatch::num_rows).sum();
        let broken =
            sifted.refused.into_iter().map(|(row, error)| RefusedEvent { position: positions[row], span: spans[row].clone(), error });
        refused.extend(broken);
        refused.sort_by_key(|refused| refused.position);
        if refused.len() > refused_max {
            return Err(too_many_refused(&refused, refused_max));
        }
        Ok(Taken { rows: sifted.rows, accepted, refused })
    }

    fn confine(&self, rows: &mut JsonRows, partition: &str) -> Result<()> {
        let table = self.table();
        let column = table.options.partition_by.map(|column| &table.columns[column]).ok_or_else(|| {
            Error::new(
                SqlState::INSUFFICIENT_PRIVILEGE,
                format!("the token is for one store, and table \"{}\" has no partitions", table.name),
            )
        })?;
        let internal = |error: arrow::error::ArrowError| Error::internal(error.to_string());
        let target = self.pipeline.targets().iter().position(|target| target.name == column.name);
        let target = target.ok_or_else(|| {
            Error::new(SqlState::INSUFFICIENT_PRIVILEGE, "a token cannot be for a store where the partition is generated")
        })?;
        let own = parse_scalar(&column.sql_type, partition, &Zone::UTC)?.to_array().map_err(|error| Error::internal(error.to_string()))?;
        let given = rows.batch.column(target);
        // Without NULLs: what is missing has the store's value.
        let missing = is_null(given).map_err(internal)?;
        let filled = zip(&missing, &Scalar::new(Arc::clone(&own)), given).map_err(internal)?;
        let same = eq(&filled, &Scalar::new(own)).map_err(internal)?;
        let mut columns = rows.batch.columns().to_vec();
        columns[target] = filled;
        if let Some(told) = self.pipeline.told().iter().position(|told| *told == target) {
            // Given, whatever its default is.
            columns[self.pipeline.targets().len() + told] = Arc::new(BooleanArray::from(vec![true; rows.batch.num_rows()]));
        }
        rows.batch = RecordBatch::try_new(rows.batch.schema(), columns).map_err(internal)?;
        if same.false_count() == 0 {
            return Ok(());
        }
        for row in (0..same.len()).filter(|row| !same.value(*row)) {
            let message = format!("the token may not send events with another {} than its own", column.name);
            let error = Error::new(SqlState::INSUFFICIENT_PRIVILEGE, message);
            rows.refused.push(RefusedEvent { position: rows.positions[row], span: rows.spans[row].clone(), error });
        }
        rows.batch = filter_record_batch(&rows.batch, &same).map_err(internal)?;
        let mut kept = same.values().iter();
        rows.positions.retain(|_| kept.next().unwrap_or(false));
        let mut kept = same.values().iter();
        rows.spans.retain(|_| kept.next().unwrap_or(false));
        Ok(())
    }
}
