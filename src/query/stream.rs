//! The stream of batches that a statement reads: computed on the cpu runtime, ended by cancellation.
//!
//! *Invariants*: (1) dropping the stream stops the plan, its operators at their next batch; (2) after the first error nothing follows; (3) batches have the
//! schema that was announced; (4) at most [`BATCHES_MAX`] finished batches wait for the reader.

use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::common::Result;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream};
use futures::{FutureExt, Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

use super::error::{canceled, from_datafusion};
use crate::error::Error;
use crate::task::Spawner;

/// Finished batches that wait for the reader.
const BATCHES_MAX: usize = 2;

/// Batches as the client sees them.
pub struct Output {
    schema: SchemaRef,
    batches: mpsc::Receiver<Result<RecordBatch>>,
    canceled: Pin<Box<WaitForCancellationFutureOwned>>,
    done: bool,
    /// Ends the plan's operators when the stream is dropped.
    _operators: DropGuard,
    /// Aborts the producer when the stream is dropped.
    _producer: Producer,
}

struct Producer(tokio::task::JoinHandle<()>);

impl Drop for Producer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs `input` on the cpu runtime. `held` is held until the plan has ended: with a snapshot, the files that it reads stay as long.
/// `operators` is what the plan's operators watch: it fires with `cancel`, and when the stream is dropped.
pub fn start(
    input: SendableRecordBatchStream,
    schema: SchemaRef,
    held: impl Send + 'static,
    spawner: &Spawner,
    cancel: CancellationToken,
    operators: CancellationToken,
) -> SendableRecordBatchStream {
    let (sender, batches) = mpsc::channel(BATCHES_MAX);
    let producer = spawner.cpu(async move {
        let _held = held;
        let outcome = std::panic::AssertUnwindSafe(forward(input, &sender)).catch_unwind().await;
        if outcome.is_err() {
            let error = Error::internal("the query ended by a panic");
            let _ = sender.send(Err(error.into())).await;
        }
    });
    Box::pin(Output {
        schema,
        batches,
        canceled: Box::pin(cancel.cancelled_owned()),
        done: false,
        _operators: operators.drop_guard(),
        _producer: Producer(producer),
    })
}

async fn forward(mut input: SendableRecordBatchStream, sender: &mpsc::Sender<Result<RecordBatch>>) {
    while let Some(batch) = input.next().await {
        let failed = batch.is_err();
        let batch = batch.map_err(|error| from_datafusion(error).into());
        if sender.send(batch).await.is_err() || failed {
            return;
        }
    }
}

impl Output {
    fn shown(&self, batch: RecordBatch) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(RecordBatch::try_new_with_options(SchemaRef::clone(&self.schema), batch.columns().to_vec(), &options)?)
    }
}

impl Stream for Output {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        if self.done {
            return Poll::Ready(None);
        }
        if self.canceled.as_mut().poll_unpin(task).is_ready() {
            self.done = true;
            self.batches.close();
            self._producer.0.abort();
            return Poll::Ready(Some(Err(canceled().into())));
        }
        match self.batches.poll_recv(task) {
            Poll::Ready(Some(Ok(batch))) => Poll::Ready(Some(self.shown(batch))),
            Poll::Ready(Some(Err(error))) => {
                self.done = true;
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                self.done = true;
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl RecordBatchStream for Output {
    fn schema(&self) -> SchemaRef {
        SchemaRef::clone(&self.schema)
    }
}
