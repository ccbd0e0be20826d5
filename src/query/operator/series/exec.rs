//! The physical nodes: one that sees all times, one that computes series by series.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arrow::array::{Array, AsArray};
use arrow::compute::SortOptions;
use arrow::datatypes::{SchemaRef, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use datafusion::common::Result;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{
    Distribution, EquivalenceProperties, LexRequirement, OrderingRequirements, Partitioning, PhysicalExpr, PhysicalSortRequirement,
};
use datafusion::physical_plan::execution_plan::EmissionType;
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, InputDistributionRequirements, PlanProperties};
use futures::{Stream, StreamExt};
use parking_lot::Mutex;

use super::Spec;
use super::stream::SeriesStream;
use crate::anomaly::decompose::Unjudged;
use crate::anomaly::grid::Spacing;
use crate::clock::Micros;
use crate::error::Error;
use crate::types::zone::Zone;

/// What all streams of one computation know.
#[derive(Debug)]
pub struct Frame {
    /// Whose days and months are counted.
    pub zone: Zone,
    /// Windows that end later are open.
    pub now: Micros,
    /// Most points of a series.
    pub points_max: usize,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    spacing: Spacing,
    /// Streams that have ended.
    ended: usize,
    /// Series that were computed.
    computed: u64,
    /// Why the first one that could not be could not, and its length.
    unjudged: Option<(Unjudged, usize)>,
}

impl Frame {
    /// Before anything was seen.
    pub fn new(zone: Zone, now: Micros, points_max: usize) -> Arc<Frame> {
        let seen = Seen { spacing: Spacing::new(zone), ended: 0, computed: 0, unjudged: None };
        Arc::new(Frame { zone, now, points_max, seen: Mutex::new(seen) })
    }

    /// What is common to all times.
    pub fn spacing(&self) -> Spacing {
        self.seen.lock().spacing
    }

    /// Counts a series.
    pub fn computed(&self) {
        self.seen.lock().computed += 1;
    }

    /// Notes a series that could not be judged.
    pub fn unjudged(&self, reason: Unjudged, points: usize) {
        self.seen.lock().unjudged.get_or_insert((reason, points));
    }

    /// The end of a stream. The last one of `streams` hears why no series at all was judged.
    pub fn ended(&self, streams: usize) -> Option<(Unjudged, usize)> {
        let mut seen = self.seen.lock();
        seen.ended += 1;
        if seen.ended == streams && seen.computed == 0 { seen.unjudged.take() } else { None }
    }
}

/// Sees the times of the rows that pass.
#[derive(Debug)]
pub struct Observed {
    input: Arc<dyn ExecutionPlan>,
    time: usize,
    frame: Arc<Frame>,
    properties: Arc<PlanProperties>,
}

impl Observed {
    /// Over an input whose column `time` has the times.
    pub fn new(input: Arc<dyn ExecutionPlan>, time: usize, frame: Arc<Frame>) -> Self {
        let below = input.properties();
        // No order is claimed, whatever the input has: see the module.
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(input.schema()),
            Partitioning::UnknownPartitioning(below.partitioning.partition_count()),
            below.emission_type,
            below.boundedness,
        ));
        Self { input, time, frame, properties }
    }
}

impl DisplayAs for Observed {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SeriesGrid")
    }
}

impl ExecutionPlan for Observed {
    fn name(&self) -> &str {
        "SeriesGrid"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(&self, _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children.pop().ok_or_else(|| Error::internal("a grid without its input"))?;
        Ok(Arc::new(Self::new(input, self.time, Arc::clone(&self.frame))))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        let spacing = Spacing::new(self.frame.zone);
        Ok(Box::pin(Watching { input, time: self.time, spacing, frame: Arc::clone(&self.frame) }))
    }
}

struct Watching {
    input: SendableRecordBatchStream,
    time: usize,
    spacing: Spacing,
    frame: Arc<Frame>,
}

impl Stream for Watching {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.input.poll_next_unpin(context);
        match &polled {
            Poll::Ready(Some(Ok(batch))) => {
                let times = batch.column(self.time).as_primitive::<TimestampMicrosecondType>().clone();
                match times.null_count() {
                    0 => times.values().iter().for_each(|time| self.spacing.add(*time)),
                    _ => times.iter().flatten().for_each(|time| self.spacing.add(time)),
                }
            }
            // Before the end is known above.
            Poll::Ready(None) => self.frame.seen.lock().spacing.merge(&self.spacing),
            _ => {}
        }
        polled
    }
}

impl RecordBatchStream for Watching {
    fn schema(&self) -> SchemaRef {
        self.input.schema()
    }
}

/// Computes series by series.
#[derive(Debug)]
pub struct SeriesExec {
    input: Arc<dyn ExecutionPlan>,
    spec: Arc<Spec>,
    schema: SchemaRef,
    frame: Arc<Frame>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl SeriesExec {
    /// Over an input of keys, time and value.
    pub fn new(input: Arc<dyn ExecutionPlan>, spec: Arc<Spec>, schema: SchemaRef, frame: Arc<Frame>) -> Result<Self> {
        let below = input.properties();
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(below.partitioning.partition_count()),
            EmissionType::Incremental,
            below.boundedness,
        ));
        Ok(Self { input, spec, schema, frame, properties, metrics: ExecutionPlanMetricsSet::new() })
    }

    fn columns(&self, count: usize) -> Vec<Arc<dyn PhysicalExpr>> {
        let schema = self.input.schema();
        let column = |index: usize| Arc::new(Column::new(schema.field(index).name(), index)) as Arc<dyn PhysicalExpr>;
        (0..count).map(column).collect()
    }
}

impl DisplayAs for SeriesExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Series: {} {}", self.spec.operator, self.spec)
    }
}

impl ExecutionPlan for SeriesExec {
    fn name(&self) -> &str {
        "Series"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        InputDistributionRequirements::new(vec![match self.spec.keys {
            0 => Distribution::SinglePartition,
            keys => Distribution::KeyPartitioned(self.columns(keys)),
        }])
    }

    fn required_input_ordering(&self) -> Vec<Option<OrderingRequirements>> {
        let options = SortOptions { descending: false, nulls_first: false };
        let keys = self.columns(self.spec.keys + 1).into_iter().map(|column| PhysicalSortRequirement::new(column, Some(options)));
        vec![LexRequirement::new(keys).map(OrderingRequirements::new)]
    }

    fn apply_expressions(&self, _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children.pop().ok_or_else(|| Error::internal("a computation over series without its input"))?;
        Ok(Arc::new(Self::new(input, Arc::clone(&self.spec), Arc::clone(&self.schema), Arc::clone(&self.frame))?))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, Arc::clone(&context))?;
        let reservation = MemoryConsumer::new(format!("{}[{partition}]", self.spec.operator)).register(context.memory_pool());
        let streams = self.properties.partitioning.partition_count();
        let stream =
            SeriesStream::new(input, Arc::clone(&self.spec), Arc::clone(&self.schema), Arc::clone(&self.frame), streams, reservation)?;
        Ok(Box::pin(stream))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}
