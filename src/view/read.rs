//! The plan that reads a view: prune, slice, merge states, evaluate, put out.
//!
//! *Place*: `query::provider` asks [`Version::scan`] for it.
//!
//! *Invariants*: (1) a unit of work holds whole groups: units differ in time group or slots, so memory is bounded by a unit and
//! units can run side by side; (2) states are merged oldest first: blocks in LSN order, then deltas.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::compute::FilterBuilder;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::common::Result as DataFusionResult;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::execution::context::SessionState;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use futures::StreamExt;

use super::blocks::Block;
use super::checkpoint::{chunk_of, slot_range};
use super::failure::{arrow_failure, failure, from_text};
use super::finish::Projected;
use super::groups::{Groups, indices};
use super::prune::Pruning;
use super::slots::places;
use super::spec::Spec;
use super::version::Version;
use crate::error::Result;

/// State rows merged at a time.
const UNIT_ROWS: usize = 131_072;

/// Rows of an output batch.
const BATCH_ROWS: usize = 8_192;

/// State rows that one unit merges.
#[derive(Debug, Default)]
struct Unit {
    /// Blocks, oldest first.
    blocks: Vec<Arc<Block>>,
    /// Slots to read of them, inclusive.
    slots: (u8, u8),
    /// Filtered rows of deltas, oldest first.
    deltas: Vec<Vec<ArrayRef>>,
}

/// Everything that the partitions of a scan share.
#[derive(Debug)]
struct Scan {
    spec: Arc<Spec>,
    pruning: Pruning,
    projected: Projected,
    /// Which aggregates are read.
    wanted: Vec<bool>,
}

/// Reads one version of a view.
#[derive(Debug)]
struct ViewScan {
    scan: Arc<Scan>,
    units: Arc<Vec<Unit>>,
    blocks_total: usize,
    blocks_read: usize,
    deltas: usize,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl Version {
    /// A plan that reads the view: the output columns by `projection`, groups merged. Filters over key columns are applied exactly
    /// (see [`Spec::filters_exactly`]), others not at all. `limit` bounds the rows of each partition.
    pub fn scan(
        &self,
        state: &SessionState,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if let Some(error) = &self.poison {
            return Err(error.clone());
        }
        let spec = Arc::clone(&self.spec);
        let projected = spec.finish.project(projection)?;
        let keys = spec.key_schema.fields().len();
        let wanted: Vec<bool> = (0..spec.aggregates.len()).map(|index| projected.reads(keys + index)).collect();
        let pruning = Pruning::new(&spec, filters, state.execution_props())?;
        let scan = Scan { spec, pruning, projected, wanted };
        let (units, blocks_read) = self.units(&scan)?;
        let partitions = units.len().clamp(1, state.config().target_partitions());
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&scan.projected.schema)),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(Arc::new(ViewScan {
            scan: Arc::new(scan),
            units: Arc::new(units),
            blocks_total: self.blocks.values().map(Vec::len).sum(),
            blocks_read,
            deltas: self.deltas.len(),
            properties: Arc::new(properties),
            metrics: ExecutionPlanMetricsSet::new(),
        }))
    }

    /// Least LSN that only the deltas hold; none when there are no deltas.
    pub fn first_delta_lsn(&self) -> Option<u64> {
        self.deltas.iter().map(|delta| delta.first_lsn).min()
    }

    /// The work of a scan, and the number of blocks in it.
    fn units(&self, scan: &Scan) -> Result<(Vec<Unit>, usize)> {
        let mut groups: Vec<(i64, Vec<Arc<Block>>)> = Vec::new();
        for (group, blocks) in self.blocks.iter().filter(|(group, _)| scan.pruning.wants_group(&scan.spec, **group)) {
            let wanted: Vec<_> = blocks.iter().filter(|block| scan.pruning.wants_block(block)).cloned().collect();
            if !wanted.is_empty() {
                groups.push((*group, wanted));
            }
        }
        let blocks_read = groups.iter().map(|(_, blocks)| blocks.len()).sum();
        let deltas = self.matching_deltas(scan)?;
        let delta_rows: usize = deltas.iter().map(|columns| rows_of(columns)).sum();
        let block_rows: usize = groups.iter().flat_map(|(_, blocks)| blocks).map(|block| block.entry.rows as usize).sum();
        let selective = scan.pruning.slot_ranges(0, u8::MAX).len() < 64 && scan.pruning.slot_ranges(0, u8::MAX) != vec![(0, u8::MAX)];
        if selective || block_rows + delta_rows <= UNIT_ROWS {
            // Groups of different time do not share keys, so their order among each other is free.
            let blocks = groups.into_iter().flat_map(|(_, blocks)| blocks).collect();
            return Ok((vec![Unit { blocks, slots: (0, u8::MAX), deltas }], blocks_read));
        }
        Ok((split(scan, groups, &deltas)?, blocks_read))
    }

    /// The rows of the deltas that the filters over keys leave.
    fn matching_deltas(&self, scan: &Scan) -> Result<Vec<Vec<ArrayRef>>> {
        let mut matching = Vec::with_capacity(self.deltas.len());
        for delta in &self.deltas {
            let columns = filtered(scan, delta.rows.columns(), delta.rows.num_rows())?;
            if rows_of(&columns) > 0 {
                matching.push(columns);
            }
        }
        Ok(matching)
    }
}

/// Cuts work by time group and slots into units of at most about [`UNIT_ROWS`].
fn split(scan: &Scan, mut groups: Vec<(i64, Vec<Arc<Block>>)>, deltas: &[Vec<ArrayRef>]) -> Result<Vec<Unit>> {
    let keys = scan.spec.key_schema.fields().len();
    let places: Vec<_> = deltas.iter().map(|columns| places(&scan.spec, &columns[..keys], rows_of(columns))).collect();
    for place in places.iter().flatten() {
        if let Err(position) = groups.binary_search_by_key(&place.group, |(group, _)| *group) {
            groups.insert(position, (place.group, Vec::new()));
        }
    }
    let mut delta_rows = vec![0_usize; groups.len()];
    for place in places.iter().flatten() {
        if let Ok(position) = groups.binary_search_by_key(&place.group, |(group, _)| *group) {
            delta_rows[position] += 1;
        }
    }
    let mut units = Vec::new();
    for ((group, blocks), delta_rows) in groups.into_iter().zip(delta_rows) {
        let rows = blocks.iter().map(|block| block.entry.rows as usize).sum::<usize>() + delta_rows;
        let chunks = rows.div_ceil(UNIT_ROWS).clamp(1, 256);
        for chunk in 0..chunks {
            let (first, last) = slot_range(chunk, chunks);
            let blocks = blocks.iter().filter(|block| block.name.slot <= last && block.entry.slot_last >= first).cloned().collect();
            let mut unit = Unit { blocks, slots: (first, last), deltas: Vec::new() };
            for (columns, places) in deltas.iter().zip(&places).filter(|_| delta_rows > 0) {
                let own = |place: &super::slots::Place| place.group == group && chunk_of(place.slot, chunks) == chunk;
                let rows: Vec<usize> = (0..places.len()).filter(|row| own(&places[*row])).collect();
                if !rows.is_empty() {
                    unit.deltas.push(arrow::compute::take_arrays(columns, &indices(rows), None).map_err(arrow_failure)?);
                }
            }
            units.push(unit);
        }
    }
    Ok(units)
}

fn rows_of(columns: &[ArrayRef]) -> usize {
    columns.first().map_or(0, |column| column.len())
}

/// The columns of state rows that match the filters over keys. State columns that nobody reads are cut to length only.
fn filtered(scan: &Scan, columns: &[ArrayRef], rows: usize) -> Result<Vec<ArrayRef>> {
    let keys = scan.spec.key_schema.fields().len();
    let Some(mask) = scan.pruning.mask(&scan.spec, &columns[..keys], rows)? else { return Ok(columns.to_vec()) };
    let filter = FilterBuilder::new(&mask).optimize().build();
    let count = filter.count();
    if count == rows {
        return Ok(columns.to_vec());
    }
    let mut read = vec![true; keys];
    for (aggregate, wanted) in scan.spec.aggregates.iter().zip(&scan.wanted) {
        read.extend(std::iter::repeat_n(*wanted, aggregate.state.len()));
    }
    columns
        .iter()
        .enumerate()
        .map(|(index, column)| match read.get(index) {
            Some(false) => Ok(column.slice(0, count)),
            _ => filter.filter(column).map_err(arrow_failure),
        })
        .collect()
}

impl Scan {
    /// Merges a unit and puts out its rows.
    fn run(&self, unit: &Unit, state_rows: &Count) -> Result<Vec<RecordBatch>> {
        let mut groups = Groups::with(&self.spec, self.wanted.clone()).map_err(failure)?;
        for block in &unit.blocks {
            let decoded = block.read(self.spec.fingerprint)?;
            for (first, last) in self.pruning.slot_ranges(unit.slots.0, unit.slots.1) {
                let range = decoded.range(first, last);
                if range.is_empty() {
                    continue;
                }
                state_rows.add(range.len());
                let columns: Vec<_> = decoded.columns.iter().map(|column| column.slice(range.start, range.len())).collect();
                let columns = filtered(self, &columns, range.len())?;
                groups.merge(&columns, rows_of(&columns)).map_err(failure)?;
            }
        }
        for columns in &unit.deltas {
            state_rows.add(rows_of(columns));
            groups.merge(columns, rows_of(columns)).map_err(failure)?;
        }
        if let Some(error) = groups.error() {
            return Err(from_text(error));
        }
        let (keys, values, rows) = groups.values().map_err(failure)?;
        let columns = keys.into_iter().map(Some).chain(values).collect();
        let output = self.spec.finish.run(&self.projected, columns, rows)?;
        Ok((0..output.num_rows())
            .step_by(BATCH_ROWS)
            .map(|start| output.slice(start, BATCH_ROWS.min(output.num_rows() - start)))
            .collect())
    }
}

impl DisplayAs for ViewScan {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let view = &self.scan.spec.view.name;
        write!(f, "ViewScan: view={view}, blocks={} of {}, deltas={}", self.blocks_read, self.blocks_total, self.deltas)
    }
}

impl ExecutionPlan for ViewScan {
    fn name(&self) -> &'static str {
        "ViewScan"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DataFusionResult<TreeNodeRecursion>,
    ) -> DataFusionResult<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, _: Arc<TaskContext>) -> DataFusionResult<SendableRecordBatchStream> {
        let partitions = self.properties.output_partitioning().partition_count();
        let output_rows = MetricBuilder::new(&self.metrics).output_rows(partition);
        let state_rows = MetricBuilder::new(&self.metrics).counter("state_rows", partition);
        let (scan, units) = (Arc::clone(&self.scan), Arc::clone(&self.units));
        let schema: SchemaRef = Arc::clone(&self.scan.projected.schema);
        let own = (partition..units.len()).step_by(partitions);
        let batches = futures::stream::iter(own).flat_map(move |unit| {
            let batches = match scan.run(&units[unit], &state_rows) {
                Ok(batches) => batches.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error.into())],
            };
            batches.iter().flatten().for_each(|batch: &RecordBatch| output_rows.add(batch.num_rows()));
            futures::stream::iter(batches)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}
