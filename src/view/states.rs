//! The plan that reads a view's raw states: what [`super::rollup`] merges.
//!
//! *Place*: `query::provider::states` puts it under a routed query.
//!
//! Blocks and deltas are pruned by the filters over keys as in `read`, and given out unmerged, in as many partitions as are worth
//! it: the aggregation above merges them, together with states of raw rows if there are any. The columns are the keys
//! (`k0`, `k1`, ...) and, for each aggregate, one struct of its state columns (`s0`, `s1`, ...).

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::FilterBuilder;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Statistics, internal_err};
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::context::SessionState;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, ExprSchemable};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::stream;

use super::blocks::Block;
use super::failure::from_text;
use super::prune::Pruning;
use super::rollup::{in_type, packed};
use super::spec::Spec;
use super::version::Version;
use crate::error::{Error, Result};

/// State rows that are worth a partition of their own.
const PARTITION_ROWS: usize = 65_536;

impl Spec {
    /// The columns of [`Version::states`]: keys, then one struct for each aggregate.
    pub fn states_schema(&self) -> SchemaRef {
        let nullable = |key: usize| {
            let known = self.matching.as_ref().and_then(|matching| matching.keys[key].nullable(matching.normalizer.schema()).ok());
            known.unwrap_or(true)
        };
        let keys = self.key_schema.fields().iter().enumerate();
        let keys = keys.map(|(key, field)| Field::new(format!("k{key}"), field.data_type().clone(), nullable(key)));
        let states = self.aggregates.iter().enumerate();
        let states = states.map(|(index, aggregate)| Field::new(format!("s{index}"), aggregate.state_type(), true));
        Arc::new(Schema::new(keys.chain(states).collect::<Vec<_>>()))
    }

    /// Whether a filter over the columns of [`Spec::states_schema`] reads keys alone.
    pub fn is_over_keys(&self, filter: &Expr) -> bool {
        let keys = self.key_schema.fields().len();
        filter
            .column_refs()
            .iter()
            .all(|column| column.name.strip_prefix('k').and_then(|key| key.parse().ok()).is_some_and(|key: usize| key < keys))
    }
}

/// States that are read: a block, or rows in memory.
#[derive(Debug)]
enum Piece {
    Block(Arc<Block>),
    Rows(RecordBatch),
}

impl Version {
    /// Bytes of the state rows for which `filters` (over `k0`, `k1`, ...) hold, about; those of deltas all.
    pub fn state_bytes(&self, session: &SessionState, filters: Vec<Expr>) -> Result<usize> {
        let pruning = Pruning::of_keys(&self.spec, session, filters)?;
        let blocks = self.blocks.values().flatten().filter(|block| pruning.admits(block)).map(|block| pruning.bytes(block));
        Ok(blocks.chain(self.deltas.iter().map(|delta| delta.bytes())).sum())
    }

    /// A plan that reads the state rows for which `filters` (over `k0`, `k1`, ...) hold, by `projection` of [`Spec::states_schema`].
    pub fn states(&self, session: &SessionState, projection: Option<&Vec<usize>>, filters: Vec<Expr>) -> Result<Arc<dyn ExecutionPlan>> {
        let pruning = Pruning::of_keys(&self.spec, session, filters)?;
        let mut pieces = Vec::new();
        let mut rows = 0;
        for block in self.blocks.values().flatten().filter(|block| pruning.admits(block)) {
            let count = pruning.rows(block);
            rows += count;
            pieces.push((count, Piece::Block(Arc::clone(block))));
        }
        let blocks_read = pieces.len();
        for delta in &self.deltas {
            rows += delta.rows.num_rows();
            pieces.push((delta.rows.num_rows(), Piece::Rows(delta.rows.clone())));
        }
        let count = session.config().target_partitions().min(rows.div_ceil(PARTITION_ROWS)).max(1);
        let mut partitions: Vec<(usize, Vec<Piece>)> = (0..count).map(|_| (0, Vec::new())).collect();
        for (rows, piece) in pieces {
            if let Some((weight, pieces)) = partitions.iter_mut().min_by_key(|(weight, _)| *weight) {
                *weight += rows;
                pieces.push(piece);
            }
        }
        let whole = self.spec.states_schema();
        let columns: Vec<usize> = projection.cloned().unwrap_or_else(|| (0..whole.fields().len()).collect());
        let schema = Arc::new(whole.project(&columns).map_err(super::failure::arrow_failure)?);
        let scan = Scan {
            spec: Arc::clone(&self.spec),
            columns,
            schema: Arc::clone(&schema),
            pruning,
            partitions: partitions.into_iter().map(|(_, pieces)| pieces).collect(),
            poison: self.poison.clone(),
            rows,
            blocks_total: self.blocks.values().map(Vec::len).sum(),
            blocks_read,
            deltas: self.deltas.len(),
        };
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(count),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(Arc::new(StateScan { scan: Arc::new(scan), properties: Arc::new(properties), metrics: ExecutionPlanMetricsSet::new() }))
    }
}

#[derive(Debug)]
struct Scan {
    spec: Arc<Spec>,
    /// Of the states' schema.
    columns: Vec<usize>,
    schema: SchemaRef,
    pruning: Pruning,
    partitions: Vec<Vec<Piece>>,
    poison: Option<Error>,
    /// State rows, about.
    rows: usize,
    blocks_total: usize,
    blocks_read: usize,
    deltas: usize,
}

impl Scan {
    /// The rows of a piece that pass, as batches of the output.
    fn read(&self, piece: &Piece, batches: &mut Vec<RecordBatch>) -> DataFusionResult<()> {
        match piece {
            Piece::Rows(rows) => batches.extend(self.output(rows.columns(), rows.num_rows())?),
            Piece::Block(block) => {
                let decoded = block.read(self.spec.fingerprint)?;
                for (first, last) in self.ranges(block) {
                    let range = decoded.range(first, last);
                    if range.is_empty() {
                        continue;
                    }
                    let columns: Vec<ArrayRef> = decoded.columns.iter().map(|column| column.slice(range.start, range.len())).collect();
                    batches.extend(self.output(&columns, range.len())?);
                }
            }
        }
        Ok(())
    }

    /// Slot ranges of a block that can hold matching rows.
    fn ranges(&self, block: &Block) -> Vec<(u8, u8)> {
        let held = block.name.slot..=block.entry.slot_last;
        match &self.pruning.slots {
            None => vec![(block.name.slot, block.entry.slot_last)],
            Some(slots) => slots.iter().filter(|slot| held.contains(slot)).map(|slot| (*slot, *slot)).collect(),
        }
    }

    /// `columns` are those of the state schema and perhaps errors.
    fn output(&self, columns: &[ArrayRef], rows: usize) -> DataFusionResult<Option<RecordBatch>> {
        let keys = self.spec.key_schema.fields().len();
        let filter = match &self.pruning.predicate {
            None => None,
            Some(predicate) => {
                let options = RecordBatchOptions::new().with_row_count(Some(rows)).with_match_field_names(false);
                let batch = RecordBatch::try_new_with_options(Arc::clone(&self.spec.key_schema), columns[..keys].to_vec(), &options)?;
                let mask = predicate.evaluate(&batch)?.into_array(rows)?;
                let mask = mask.as_boolean();
                match mask.true_count() {
                    0 => return Ok(None),
                    all if all == rows => None,
                    _ => Some(FilterBuilder::new(mask).optimize().build()),
                }
            }
        };
        let count = filter.as_ref().map_or(rows, |filter| filter.count());
        let kept = |column: &ArrayRef| match &filter {
            Some(filter) => Ok(filter.filter(column)?),
            None => Ok::<_, DataFusionError>(Arc::clone(column)),
        };
        if let Some(errors) = columns.get(self.spec.state_schema.fields().len()) {
            let errors = kept(errors)?;
            if let Some(error) = errors.as_string_view().iter().flatten().next() {
                return Err(from_text(error).into());
            }
        }
        let mut output = Vec::with_capacity(self.columns.len());
        for (column, field) in self.columns.iter().zip(self.schema.fields()) {
            if *column < keys {
                output.push(in_type(&kept(&columns[*column])?, field.data_type())?);
                continue;
            }
            let index = *column - keys;
            let first = keys + self.spec.aggregates[..index].iter().map(|aggregate| aggregate.state.len()).sum::<usize>();
            let width = self.spec.aggregates[index].state.len();
            let states = columns[first..first + width].iter().map(kept).collect::<DataFusionResult<Vec<_>>>()?;
            let DataType::Struct(fields) = field.data_type() else { return internal_err!("states are no struct") };
            output.push(Arc::new(packed(fields, states)?));
        }
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        Ok(Some(RecordBatch::try_new_with_options(Arc::clone(&self.schema), output, &options)?))
    }
}

/// Reads a version's raw states.
#[derive(Debug)]
struct StateScan {
    scan: Arc<Scan>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl DisplayAs for StateScan {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scan = &self.scan;
        write!(f, "StateScan: view={}, blocks={}", scan.spec.view.name, scan.blocks_total)?;
        write!(f, ", pruned={}, deltas={}", scan.blocks_total - scan.blocks_read, scan.deltas)?;
        if let Some(predicate) = &scan.pruning.predicate {
            write!(f, ", filter={predicate}")?;
        }
        Ok(())
    }
}

impl ExecutionPlan for StateScan {
    fn name(&self) -> &str {
        "StateScan"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DataFusionResult<TreeNodeRecursion>,
    ) -> DataFusionResult<TreeNodeRecursion> {
        self.scan.pruning.predicate.as_ref().map_or(Ok(TreeNodeRecursion::Continue), f)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn partition_statistics(&self, partition: Option<usize>) -> DataFusionResult<Arc<Statistics>> {
        let rows = self.scan.rows / partition.map_or(1, |_| self.scan.partitions.len());
        Ok(Arc::new(Statistics::new_unknown(&self.scan.schema).with_num_rows(Precision::Inexact(rows))))
    }

    fn execute(&self, partition: usize, _context: Arc<TaskContext>) -> DataFusionResult<SendableRecordBatchStream> {
        if let Some(error) = &self.scan.poison {
            return Err(DataFusionError::from(error.clone()));
        }
        let reader = Reader {
            scan: Arc::clone(&self.scan),
            partition,
            next: 0,
            ready: Vec::new(),
            baseline: BaselineMetrics::new(&self.metrics, partition),
            state_rows: MetricBuilder::new(&self.metrics).counter("state_rows", partition),
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), stream::iter(reader))))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// One partition's pieces.
struct Reader {
    scan: Arc<Scan>,
    partition: usize,
    next: usize,
    /// Output that is not given out yet, last first.
    ready: Vec<RecordBatch>,
    baseline: BaselineMetrics,
    state_rows: Count,
}

impl Reader {
    fn pull(&mut self) -> DataFusionResult<Option<RecordBatch>> {
        let time = self.baseline.elapsed_compute().clone();
        let _timer = time.timer();
        while self.ready.is_empty() {
            let Some(piece) = self.scan.partitions[self.partition].get(self.next) else { return Ok(None) };
            self.next += 1;
            self.scan.read(piece, &mut self.ready)?;
            self.ready.reverse();
        }
        let batch = self.ready.pop();
        let rows = batch.as_ref().map_or(0, RecordBatch::num_rows);
        self.state_rows.add(rows);
        self.baseline.record_output(rows);
        Ok(batch)
    }
}

impl Iterator for Reader {
    type Item = DataFusionResult<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let pulled = self.pull();
        if pulled.is_err() {
            self.next = usize::MAX;
            self.ready.clear();
        }
        pulled.transpose()
    }
}
