//! Makes a running plan end when its statement does: every operator that can work on its own looks at the statement's token.
//!
//! *Place*: `query::engine` wraps each physical plan before it runs; `query::stream` fires the token when the statement is
//! cancelled or its result is dropped.
//!
//! A task that runs a plan is aborted where it yields, and an operator yields when its input makes it wait. A join multiplies
//! its input: for one batch of rows it may give a million, or give none and compare as many, without ever waiting. So
//! (1) each operator's stream ends with 57014 at the next batch after the token has fired; (2) so does the filter of a join,
//! which is computed for at most a batch of pairs at a time; (3) streams of joins yield now and then, and a join that
//! compares without giving anything leaves its worker to others, so that they get their turn.
//!
//! What is left is a single step of one operator: a hash table built from rows that are all in memory, the groups of an
//! aggregate put out at once.

use std::cell::Cell;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arrow::array::BooleanArray;
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::coop::make_cooperative;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::utils::JoinFilter;
use datafusion::physical_plan::joins::{HashJoinExec, NestedLoopJoinExec, NestedLoopJoinExecBuilder};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::{Stream, StreamExt};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio_util::sync::CancellationToken;

use super::error::canceled;
use crate::telemetry::Gauge;

/// The name of a wrapper in a printed plan; see [`unwrapped`].
const NAME: &str = "WatchExec";

/// What running operators look at.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Fires when the statement ends before its plan does.
    pub cancel: CancellationToken,
    /// Streams of operators that exist.
    pub streams: Gauge,
}

impl Watch {
    fn check(&self) -> Result<()> {
        if self.cancel.is_cancelled() { Err(canceled().into()) } else { Ok(()) }
    }
}

/// The plan, with every operator watching.
pub fn watched(plan: Arc<dyn ExecutionPlan>, watch: &Watch) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        // These do a bounded piece of work for each batch of an input that is watched.
        if node.is::<FilterExec>() || node.is::<ProjectionExec>() {
            return Ok(Transformed::no(node));
        }
        let inner = with_watched_filter(node, watch)?;
        Ok(Transformed::yes(Arc::new(WatchExec { inner, watch: watch.clone() }) as Arc<dyn ExecutionPlan>))
    })
    .data()
}

/// A join with its filter watching. Other nodes as they are.
fn with_watched_filter(node: Arc<dyn ExecutionPlan>, watch: &Watch) -> Result<Arc<dyn ExecutionPlan>> {
    let wrap = |filter: &JoinFilter| {
        let expression = Arc::new(WatchExpr { inner: Arc::clone(filter.expression()), watch: watch.clone() });
        Some(JoinFilter::new(expression, filter.column_indices().to_vec(), Arc::clone(filter.schema())))
    };
    if let Some(join) = node.downcast_ref::<NestedLoopJoinExec>()
        && let Some(filter) = join.filter()
    {
        let join = NestedLoopJoinExecBuilder::new(Arc::clone(join.left()), Arc::clone(join.right()), *join.join_type())
            .with_projection_ref(join.projection().clone())
            .with_filter(wrap(filter))
            .build()?;
        return Ok(Arc::new(join));
    }
    if let Some(join) = node.downcast_ref::<HashJoinExec>()
        && let Some(filter) = join.filter()
    {
        return join.builder().with_filter(wrap(filter)).build_exec();
    }
    Ok(node)
}

/// A printed plan without the wrappers' lines.
pub fn unwrapped(plan: &str) -> String {
    let mut text = String::with_capacity(plan.len());
    // Depths of the wrappers around the present line.
    let mut wrappers: Vec<usize> = Vec::new();
    for line in plan.lines() {
        let bare = line.trim_start();
        let depth = line.len() - bare.len();
        wrappers.retain(|wrapper| *wrapper < depth);
        if bare.starts_with(NAME) {
            wrappers.push(depth);
            continue;
        }
        text.push_str(&line[(2 * wrappers.len()).min(depth)..]);
        text.push('\n');
    }
    text
}

/// An operator whose streams end when the statement does.
#[derive(Debug)]
struct WatchExec {
    inner: Arc<dyn ExecutionPlan>,
    watch: Watch,
}

impl DisplayAs for WatchExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAME)
    }
}

impl ExecutionPlan for WatchExec {
    fn name(&self) -> &str {
        NAME
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.inner.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.inner]
    }

    fn apply_expressions(&self, _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match children.pop() {
            Some(inner) => Ok(Arc::new(WatchExec { inner, watch: self.watch.clone() })),
            None => Ok(self),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.watch.check()?;
        let stream = Box::pin(WatchStream::new(self.inner.execute(partition, context)?, self.watch.clone()));
        Ok(if self.inner.children().len() > 1 { make_cooperative(stream) } else { stream })
    }
}

struct WatchStream {
    inner: SendableRecordBatchStream,
    watch: Watch,
    ended: bool,
}

impl WatchStream {
    fn new(inner: SendableRecordBatchStream, watch: Watch) -> Self {
        watch.streams.inc();
        Self { inner, watch, ended: false }
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        self.watch.streams.dec();
    }
}

impl Stream for WatchStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Err(error) = self.watch.check() {
            self.ended = true;
            return Poll::Ready(Some(Err(error)));
        }
        POLLED.set(Some(Instant::now()));
        self.inner.poll_next_unpin(task)
    }
}

impl RecordBatchStream for WatchStream {
    fn schema(&self) -> SchemaRef {
        self.inner.schema()
    }
}

/// How long an operator may keep a worker of the runtime from everybody else.
const TURN: Duration = Duration::from_millis(10);

thread_local! {
    /// When an operator was last asked for a batch on this thread.
    static POLLED: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Does a step of an operator that cannot yield. When it has had its turn, another thread takes over the worker, so that
/// the sessions (that of this statement, which may want to end it, among them) go on.
fn aside<T>(step: impl FnOnce() -> T) -> T {
    let is_over = POLLED.get().is_some_and(|polled| polled.elapsed() > TURN);
    let is_worker = || Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
    if is_over && is_worker() { tokio::task::block_in_place(step) } else { step() }
}

/// An expression that fails when the statement has ended.
#[derive(Debug)]
struct WatchExpr {
    inner: Arc<dyn PhysicalExpr>,
    watch: Watch,
}

impl fmt::Display for WatchExpr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl PartialEq for WatchExpr {
    fn eq(&self, other: &Self) -> bool {
        self.inner.eq(&other.inner)
    }
}

impl Eq for WatchExpr {}

impl Hash for WatchExpr {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

impl PhysicalExpr for WatchExpr {
    fn data_type(&self, schema: &Schema) -> Result<DataType> {
        self.inner.data_type(schema)
    }

    fn nullable(&self, schema: &Schema) -> Result<bool> {
        self.inner.nullable(schema)
    }

    fn return_field(&self, schema: &Schema) -> Result<FieldRef> {
        self.inner.return_field(schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        self.watch.check()?;
        aside(|| self.inner.evaluate(batch))
    }

    fn evaluate_selection(&self, batch: &RecordBatch, selection: &BooleanArray) -> Result<ColumnarValue> {
        self.watch.check()?;
        aside(|| self.inner.evaluate_selection(batch, selection))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.inner]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        match children.pop() {
            Some(inner) => Ok(Arc::new(WatchExpr { inner, watch: self.watch.clone() })),
            None => Ok(self),
        }
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt_sql(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_are_not_shown() {
        let printed = "WatchExec\n  Sort\n    WatchExec, metrics=[]\n      Join\n        WatchExec\n          Left\n        Right\n";
        assert_eq!(unwrapped(printed), "Sort\n  Join\n    Left\n    Right\n");
    }
}
