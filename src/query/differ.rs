//! What has become of a query's rows since they were shown: for views without state that tells it.
//!
//! *Place*: `query::follow`, which runs the query again when something may have changed.
//!
//! *Invariants*: (1) rows are compared to the last bit, NULLs equal, equal rows by their number; (2) what is held, the rows shown, those of a run
//! under way, and those to be given out, is counted against the memory of queries (53200).

use std::collections::HashMap;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::MemoryReservation;
use futures::TryStreamExt;

use super::error::from_datafusion;
use crate::error::{Error, Result};
use crate::view::{ChangeKind, Changed};

/// Rows of a batch that is given out.
const BATCH_ROWS: usize = 8_192;

/// Memory of a row beside its bytes: its place in the map and its allocation.
const ROW_BYTES: usize = 64;

/// The rows as they were shown, and what is to be said of newer ones.
#[derive(Debug)]
pub struct Differ {
    schema: SchemaRef,
    converter: RowConverter,
    shown: Rows,
    coming: Rows,
    /// New rows, then those that do not hold any more; the last is given out first.
    waiting: Vec<(ChangeKind, Vec<Box<[u8]>>)>,
    reservation: MemoryReservation,
}

/// Encoded rows with their numbers.
#[derive(Debug, Default)]
struct Rows {
    counts: HashMap<Box<[u8]>, u64>,
    bytes: usize,
}

impl Differ {
    /// Nothing was shown yet. 0A000 where rows of these types cannot be compared.
    pub fn new(schema: &Schema, reservation: MemoryReservation) -> Result<Differ> {
        let nullable = schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
        let schema = Schema::new(nullable.collect::<Vec<_>>());
        let fields: Vec<_> = schema.fields().iter().map(|field| SortField::new(field.data_type().clone())).collect();
        if !RowConverter::supports_fields(&fields) {
            return Err(Error::unsupported("SUBSCRIBE to a view with columns that cannot be compared is not supported"));
        }
        let converter = RowConverter::new(fields).map_err(internal)?;
        let (shown, coming) = (Rows::default(), Rows::default());
        Ok(Differ { schema: schema.into(), converter, shown, coming, waiting: Vec::new(), reservation })
    }

    /// Rows of the run that is under way.
    pub fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        let rows = self.converter.convert_columns(batch.columns()).map_err(internal)?;
        let before = self.coming.bytes;
        for row in &rows {
            match self.coming.counts.get_mut(row.data()) {
                Some(count) => *count += 1,
                None => {
                    self.coming.counts.insert(row.data().into(), 1);
                    self.coming.bytes += row.data().len() + ROW_BYTES;
                }
            }
        }
        self.reservation.try_grow(self.coming.bytes - before).map_err(from_datafusion)
    }

    /// All rows of a run.
    pub async fn read(&mut self, mut rows: SendableRecordBatchStream) -> Result<()> {
        while let Some(batch) = rows.try_next().await.map_err(from_datafusion)? {
            self.add(&batch)?;
        }
        Ok(())
    }

    /// The run is through, and its rows are taken for shown.
    pub fn settle(&mut self) {
        self.reservation.shrink(self.shown.bytes);
        self.shown = std::mem::take(&mut self.coming);
    }

    /// The run is through: what differs comes from [`Differ::next`].
    pub fn compare(&mut self) -> Result<()> {
        for (change, one, other) in [(ChangeKind::Update, &self.coming, &self.shown), (ChangeKind::Delete, &self.shown, &self.coming)] {
            for row in excess(one, other) {
                self.reservation.try_grow(row.len() + ROW_BYTES).map_err(from_datafusion)?;
                match self.waiting.last_mut() {
                    Some((last, rows)) if *last == change && rows.len() < BATCH_ROWS => rows.push(row.into()),
                    _ => self.waiting.push((change, vec![row.into()])),
                }
            }
        }
        self.settle();
        Ok(())
    }

    /// Some rows that are gone, or, after all of those, new ones.
    pub fn next(&mut self) -> Result<Option<Changed>> {
        let Some((change, rows)) = self.waiting.pop() else { return Ok(None) };
        self.reservation.shrink(rows.iter().map(|row| row.len() + ROW_BYTES).sum());
        let parser = self.converter.parser();
        let columns = self.converter.convert_rows(rows.iter().map(|row| parser.parse(row))).map_err(internal)?;
        let rows = RecordBatch::try_new(SchemaRef::clone(&self.schema), columns).map_err(internal)?;
        Ok(Some(Changed { change, rows }))
    }
}

/// The rows that `one` has more often than `other`, as often as it has them more.
fn excess<'a>(one: &'a Rows, other: &'a Rows) -> impl Iterator<Item = &'a [u8]> {
    one.counts.iter().flat_map(|(row, count)| {
        let more = count.saturating_sub(other.counts.get(row).copied().unwrap_or(0));
        (0..more).map(|_| row.as_ref())
    })
}

fn internal(error: arrow::error::ArrowError) -> Error {
    Error::internal(format!("rows of a subscription: {error}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::{DataType, Field, Int64Type};
    use datafusion::execution::memory_pool::{GreedyMemoryPool, MemoryConsumer, MemoryPool};
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
    use futures::stream;

    use super::*;
    use crate::error::SqlState;

    fn batch(values: &[Option<i64>]) -> RecordBatch {
        let schema = Schema::new(vec![Field::new("n", DataType::Int64, true)]);
        RecordBatch::try_new(schema.into(), vec![Arc::new(Int64Array::from(values.to_vec()))]).unwrap()
    }

    async fn compare(differ: &mut Differ, values: &[Option<i64>]) -> Result<Vec<(ChangeKind, Vec<Option<i64>>)>> {
        let batch = batch(values);
        let rows =
            RecordBatchStreamAdapter::new(batch.schema(), stream::iter([Ok(batch.slice(0, 1)), Ok(batch.slice(1, values.len() - 1))]));
        differ.read(Box::pin(rows)).await?;
        differ.compare()?;
        let mut found = Vec::new();
        while let Some(Changed { change, rows }) = differ.next()? {
            let mut values: Vec<_> = rows.column(0).as_primitive::<Int64Type>().iter().collect();
            values.sort();
            found.push((change, values));
        }
        Ok(found)
    }

    #[tokio::test]
    async fn rows_are_compared_by_their_number() {
        use ChangeKind::{Delete, Update};
        let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(2_000));
        let first = batch(&[Some(1), Some(1), Some(2), None]);
        let mut differ = Differ::new(&first.schema(), MemoryConsumer::new("test").register(&pool)).unwrap();
        differ.add(&first).unwrap();
        differ.settle();
        let found = compare(&mut differ, &[Some(3), Some(1), None, None, Some(3)]).await.unwrap();
        assert_eq!(found, [(Delete, vec![Some(1), Some(2)]), (Update, vec![None, Some(3), Some(3)])]);
        assert_eq!(compare(&mut differ, &[None, Some(1), Some(3), None, Some(3)]).await.unwrap(), []);
        assert_eq!(pool.reserved(), differ.shown.bytes, "what was given out is free");
        let many: Vec<_> = (0..100).map(Some).collect();
        assert_eq!(compare(&mut differ, &many).await.unwrap_err().state(), SqlState::OUT_OF_MEMORY);
    }
}
