//! One stream of series: gathers a series, computes it, gives its rows out.
//!
//! *Invariants*: (1) one series is in memory at a time, beside one batch of rows that wait to be given out; (2) all memory that grows with
//! a series is reserved from the query's pool before it is used.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, TimestampMicrosecondArray, UInt64Array};
use arrow::compute::{concat, partition, take};
use arrow::datatypes::{DataType, Float64Type, SchemaRef, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use arrow::row::{OwnedRow, RowConverter, SortField};
use chrono::DateTime;
use datafusion::common::Result;
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream};
use futures::{Stream, StreamExt};

use super::Spec;
use super::analysis::{Rows, Worker, failure};
use super::exec::Frame;
use crate::anomaly::grid::{Grid, Unfilled};
use crate::clock::Micros;
use crate::error::{Error, SqlState};

/// Rows of a batch that is given out.
const BATCH_ROWS: usize = 8_192;
/// Memory of one point while a series is computed: gathered, filled, its parts, and the decomposition's scratch space.
const POINT_BYTES: usize = 200;

/// The series of one partition.
pub struct SeriesStream {
    input: SendableRecordBatchStream,
    spec: Arc<Spec>,
    schema: SchemaRef,
    frame: Arc<Frame>,
    /// Streams of the computation.
    streams: usize,
    reservation: MemoryReservation,
    converter: RowConverter,
    worker: Worker,
    grid: Option<Grid>,
    current: Option<Current>,
    /// Rows of a batch that wait until the series before them have been given out.
    rest: Option<RecordBatch>,
    output: Output,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Reading,
    Draining,
    Ended,
}

/// The series that is gathered.
struct Current {
    /// The keys, to compare with; none where there are no key columns.
    row: Option<OwnedRow>,
    /// One row of the key columns.
    keys: Vec<ArrayRef>,
    times: Vec<Micros>,
    /// NaN where there is none.
    values: Vec<f64>,
}

/// Rows to be given out.
#[derive(Default)]
struct Output {
    /// Key columns and number of rows of each series.
    series: Vec<(Vec<ArrayRef>, usize)>,
    rows: Rows,
    /// Rows that have been given out already.
    given: usize,
}

impl SeriesStream {
    /// Over rows sorted by keys and time.
    pub fn new(
        input: SendableRecordBatchStream,
        spec: Arc<Spec>,
        schema: SchemaRef,
        frame: Arc<Frame>,
        streams: usize,
        reservation: MemoryReservation,
    ) -> Result<Self> {
        let fields = input.schema().fields().iter().take(spec.keys).map(|field| SortField::new(field.data_type().clone())).collect();
        let (converter, worker) = (RowConverter::new(fields)?, spec.analysis.worker());
        let (grid, current, rest, output) = (None, None, None, Output::default());
        Ok(Self { input, spec, schema, frame, streams, reservation, converter, worker, grid, current, rest, output, state: State::Reading })
    }

    /// Takes the rows of a batch, and computes the series that end in it.
    fn read(&mut self, batch: &RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let keys = &batch.columns()[..self.spec.keys];
        let rows = if keys.is_empty() { None } else { Some(self.converter.convert_columns(keys)?) };
        let ranges = match keys {
            [] => std::iter::once(0..batch.num_rows()).collect(),
            keys => partition(keys)?.ranges(),
        };
        let times = batch.column(self.spec.keys).as_primitive::<TimestampMicrosecondType>();
        let values = batch.column(self.spec.keys + 1).as_primitive::<Float64Type>();
        for range in ranges {
            let row = rows.as_ref().map(|rows| rows.row(range.start));
            let same = |current: &Current| current.row.as_ref().map(OwnedRow::row) == row;
            if !self.current.as_ref().is_some_and(same) {
                self.finish()?;
                if self.output.waiting() >= BATCH_ROWS {
                    self.rest = Some(batch.slice(range.start, batch.num_rows() - range.start));
                    return Ok(());
                }
                let keys = keys.iter().map(|column| column.slice(range.start, 1)).collect();
                let row = row.map(|row| row.owned());
                self.current = Some(Current { row, keys, times: Vec::new(), values: Vec::new() });
            }
            let Some(current) = &mut self.current else { continue };
            for index in range {
                // Rows without a time belong nowhere.
                if times.is_valid(index) {
                    current.times.push(times.value(index));
                    current.values.push(if values.is_valid(index) { values.value(index) } else { f64::NAN });
                }
            }
            if current.times.len() > self.frame.points_max {
                return Err(too_long(self.spec.operator, current.times.len() as u64, self.frame.points_max).into());
            }
            self.reservation.try_resize(current.times.len() * POINT_BYTES)?;
        }
        Ok(())
    }

    /// Computes the series that has been gathered.
    fn finish(&mut self) -> Result<()> {
        let Some(mut current) = self.current.take() else { return Ok(()) };
        let grid = *self.grid.get_or_insert_with(|| grid(&self.frame, &self.spec));
        let closed = current.times.partition_point(|time| grid.until.is_none_or(|until| *time <= until));
        current.times.truncate(closed);
        current.values.truncate(closed);
        let filled = grid.fill(&current.times, &current.values).map_err(|reason| self.unfilled(reason))?;
        if filled.times.is_empty() {
            return Ok(());
        }
        self.reservation.try_resize(filled.times.len() * POINT_BYTES)?;
        let points = filled.times.len();
        let kept = if self.spec.keys == 0 { None } else { Some(filled.clone()) };
        let rows = match (self.worker.compute(filled, grid.step, grid.zone), kept) {
            (Ok(rows), _) => {
                self.frame.computed();
                rows
            }
            (Err(reason), None) => return Err(failure(self.spec.operator, reason, points).into()),
            (Err(reason), Some(series)) => {
                self.frame.unjudged(reason, points);
                self.worker.unjudged(series)
            }
        };
        self.output.push(current.keys, rows);
        Ok(())
    }

    fn unfilled(&self, reason: Unfilled) -> Error {
        match reason {
            Unfilled::Twice(time) => {
                let shown =
                    DateTime::from_timestamp_micros(time).map_or_else(|| time.to_string(), |time| time.format("%F %T%.6f").to_string());
                let message = format!("a series of {} has more than one value at {shown}", self.spec.operator);
                Error::new(SqlState::INVALID_PARAMETER_VALUE, message)
                    .hint("Group the input by the time, and give partition_by the columns that tell the series apart.")
            }
            Unfilled::TooLong(points) => too_long(self.spec.operator, points, self.frame.points_max),
        }
    }

    /// The next batch of what waits, or of what is left when `all` is to go.
    fn give(&mut self, all: bool) -> Result<Option<RecordBatch>> {
        let waiting = self.output.waiting();
        if waiting == 0 || (waiting < BATCH_ROWS && !all) {
            if waiting == 0 {
                self.output = Output::default();
            }
            return Ok(None);
        }
        self.output.batch(waiting.min(BATCH_ROWS), &self.schema, self.spec.keys).map(Some)
    }
}

/// What all series of a computation have in common, when all their times have been seen.
fn grid(frame: &Frame, spec: &Spec) -> Grid {
    let spacing = frame.spacing();
    let step = spacing.step();
    // The last window that has ended. How late rows may come says nothing of how late they do come, so the clock alone decides.
    let closed = match step {
        Some(step) => step.after(frame.now, -1, frame.zone),
        None => Some(frame.now),
    };
    let until = spacing.newest().map(|newest| closed.map_or(newest, |closed| newest.min(closed)));
    Grid { step, zone: frame.zone, fill: spec.fill, until, points_max: frame.points_max }
}

fn too_long(operator: &str, points: u64, points_max: usize) -> Error {
    Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, format!("a series of {operator} has {points} points, more than {points_max}"))
        .detail("The points lie on a grid whose step all times of the input are multiples of; its gaps count.")
        .hint("Group the input by a window, such as date_trunc('hour', event_time), or read a shorter time.")
}

impl Output {
    fn waiting(&self) -> usize {
        self.rows.times.len() - self.given
    }

    fn push(&mut self, keys: Vec<ArrayRef>, rows: Rows) {
        self.series.push((keys, rows.times.len()));
        self.rows.times.extend(rows.times);
        self.rows.flags.extend(rows.flags);
        if self.rows.numbers.is_empty() {
            self.rows.numbers = rows.numbers;
        } else {
            for (column, numbers) in self.rows.numbers.iter_mut().zip(rows.numbers) {
                column.extend(numbers);
            }
        }
    }

    fn batch(&mut self, count: usize, schema: &SchemaRef, keys: usize) -> Result<RecordBatch> {
        let range = self.given..self.given + count;
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
        if keys > 0 {
            let (mut chosen, mut indices, mut start) = (Vec::new(), Vec::with_capacity(count), 0);
            for (series, (arrays, rows)) in self.series.iter().enumerate() {
                let end = start + rows;
                let here = end.min(range.end).saturating_sub(start.max(range.start));
                if start < range.end && here > 0 {
                    indices.extend(std::iter::repeat_n(chosen.len() as u64, here));
                    chosen.push((series, arrays));
                }
                start = end;
            }
            let indices = UInt64Array::from(indices);
            for key in 0..keys {
                let values: Vec<&dyn Array> = chosen.iter().map(|(_, arrays)| arrays[key].as_ref()).collect();
                columns.push(take(&concat(&values)?, &indices, None)?);
            }
        }
        let times = TimestampMicrosecondArray::from(self.rows.times[range.clone()].to_vec());
        columns.push(Arc::new(times.with_data_type(schema.field(keys).data_type().clone())));
        for numbers in &self.rows.numbers {
            let numbers = numbers[range.clone()].iter().map(|number| (!number.is_nan()).then_some(*number));
            columns.push(Arc::new(Float64Array::from_iter(numbers)));
        }
        if schema.fields().last().is_some_and(|field| *field.data_type() == DataType::Boolean) {
            columns.push(Arc::new(BooleanArray::from(self.rows.flags[range.clone()].to_vec())));
        }
        self.given = range.end;
        Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
    }
}

impl Stream for SeriesStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match self.state {
                State::Ended => return Poll::Ready(None),
                State::Draining => match self.give(true) {
                    Ok(Some(batch)) => return Poll::Ready(Some(Ok(batch))),
                    Ok(None) => {
                        self.state = State::Ended;
                        self.reservation.free();
                        let reason = self.frame.ended(self.streams);
                        return Poll::Ready(reason.map(|(reason, points)| Err(failure(self.spec.operator, reason, points).into())));
                    }
                    Err(error) => return self.fail(error),
                },
                State::Reading => {}
            }
            match self.give(false) {
                Ok(Some(batch)) => return Poll::Ready(Some(Ok(batch))),
                Ok(None) => {}
                Err(error) => return self.fail(error),
            }
            let read = match self.rest.take() {
                Some(rest) => self.read(&rest),
                None => match ready!(self.input.poll_next_unpin(context)) {
                    Some(Ok(batch)) => self.read(&batch),
                    Some(Err(error)) => Err(error),
                    None => {
                        self.state = State::Draining;
                        self.finish()
                    }
                },
            };
            if let Err(error) = read {
                return self.fail(error);
            }
        }
    }
}

impl SeriesStream {
    fn fail(&mut self, error: datafusion::common::DataFusionError) -> Poll<Option<Result<RecordBatch>>> {
        self.state = State::Ended;
        self.reservation.free();
        Poll::Ready(Some(Err(error)))
    }
}

impl RecordBatchStream for SeriesStream {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}
