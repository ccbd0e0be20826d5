//! The plan that reads a view.
//!
//! *Place*: `query::provider` puts it under a query.
//!
//! Blocks are pruned by the filters over keys; what is left is divided into units with disjoint keys (time groups, and slot
//! ranges of large ones), so that a unit's groups fit in memory. A unit is merged oldest first, evaluated, finished (HAVING,
//! projection) and given out in batches of at most 8192 rows. A look-up by partition key is one unit over slices of cached blocks.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::FilterBuilder;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::context::SessionState;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::stream;

use super::blocks::Block;
use super::checkpoint::{chunk_of, slot_range};
use super::failure::failure;
use super::finish::{Finish, Projected};
use super::groups::{Groups, indices};
use super::portion::{Portion, counted};
use super::prune::Pruning;
use super::slots::places;
use super::spec::Spec;
use super::version::Version;
use crate::error::{Error, Result};

/// State rows of a unit, about; fewer where they are large.
const UNIT_ROWS: usize = 131_072;

/// Rows of an output batch, at most.
const BATCH_ROWS: usize = 8_192;

/// State rows: columns of the state schema and perhaps errors. Columns that a scan does not need may be of another length.
#[derive(Clone, Debug)]
struct Rows {
    columns: Vec<ArrayRef>,
    count: usize,
}

/// Blocks and delta rows that hold all states of some keys.
#[derive(Debug)]
struct Unit {
    slot_first: u8,
    slot_last: u8,
    blocks: Vec<Arc<Block>>,
    rows: Vec<Rows>,
}

/// Everything that a scan knows.
#[derive(Debug)]
struct Scan {
    spec: Arc<Spec>,
    finish: Arc<Finish>,
    projected: Projected,
    /// Per aggregate.
    wanted: Vec<bool>,
    /// Per column of the state schema.
    needed: Vec<bool>,
    pruning: Pruning,
    units: Vec<Unit>,
    limit: usize,
    poison: Option<Error>,
    blocks_total: usize,
    blocks_read: usize,
    deltas: usize,
}

impl Version {
    /// A plan that reads the view: the output columns by `projection`, groups merged, pruned by `filters` over output columns.
    /// Filters for which [`Spec::filters_exactly`] holds are applied; others are ignored, and with them `limit`. Evicted windows are
    /// left out: see [`Version::asked_of_rows`].
    pub fn scan(
        &self,
        state: &SessionState,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let pruning = Pruning::new(&self.spec, state, filters, self.kept())?;
        let limit = limit.filter(|_| pruning.exact);
        let scan = self.prepared(Arc::clone(&self.spec.finish), projection, pruning, limit)?;
        Ok(Arc::new(ViewScan::new(scan, state.config().target_partitions())))
    }

    /// A plan that reads the groups for which `filters` (over `k0`, `k1`, ...) hold, by `projection` of keys and aggregates as they are
    /// under the view's HAVING and projections. `schema` has their fields. Evicted windows are left out.
    pub fn values(
        &self,
        session: &SessionState,
        schema: &SchemaRef,
        projection: Option<&Vec<usize>>,
        mut filters: Vec<Expr>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        filters.extend(self.kept());
        let pruning = Pruning::of_keys(&self.spec, session, filters)?;
        let finish = Finish::nothing(Arc::clone(schema), self.spec.key_schema.fields().len());
        let scan = self.prepared(Arc::new(finish), projection, pruning, None)?;
        Ok(Arc::new(ViewScan::new(scan, session.config().target_partitions())))
    }

    /// Shows all output rows, part by part.
    pub(super) fn each(
        &self,
        state: &SessionState,
        reservation: &MemoryReservation,
        mut show: impl FnMut(RecordBatch) -> Result<()>,
    ) -> Result<()> {
        let pruning = Pruning::new(&self.spec, state, &[], self.kept())?;
        let scan = self.prepared(Arc::clone(&self.spec.finish), None, pruning, None)?;
        for unit in &scan.units {
            let (rows, _) = scan.run(unit, reservation).map_err(failure)?;
            reservation.free();
            show(rows)?;
        }
        Ok(())
    }

    fn prepared(&self, finish: Arc<Finish>, projection: Option<&Vec<usize>>, pruning: Pruning, limit: Option<usize>) -> Result<Scan> {
        let spec = &self.spec;
        let projected = finish.project(projection)?;
        let keys = spec.key_schema.fields().len();
        let last_time = spec.session.as_ref().map(|session| session.aggregate);
        let wanted: Vec<bool> = (0..spec.aggregates.len()).map(|index| projected.reads(keys + index) || Some(index) == last_time).collect();
        let mut needed = vec![true; keys];
        for (aggregate, wanted) in spec.aggregates.iter().zip(&wanted) {
            needed.extend(std::iter::repeat_n(*wanted, aggregate.state.len()));
        }
        let blocks_total = self.blocks.values().map(Vec::len).sum();
        let mut scan = Scan {
            spec: Arc::clone(spec),
            finish,
            projected,
            wanted,
            needed,
            limit: limit.unwrap_or(usize::MAX),
            pruning,
            units: Vec::new(),
            poison: self.poison.clone(),
            blocks_total,
            blocks_read: 0,
            deltas: self.deltas.len(),
        };
        scan.divide(self)?;
        Ok(scan)
    }
}

impl Rows {
    fn filter(&self, predicate: &dyn PhysicalExpr, scan: &Scan) -> DataFusionResult<Rows> {
        if self.count == 0 {
            return Ok(self.clone());
        }
        let keys = scan.spec.key_schema.fields().len();
        let options = RecordBatchOptions::new().with_row_count(Some(self.count)).with_match_field_names(false);
        let batch = RecordBatch::try_new_with_options(Arc::clone(&scan.spec.key_schema), self.columns[..keys].to_vec(), &options)?;
        let mask = predicate.evaluate(&batch)?.into_array(self.count)?;
        let mask = mask.as_boolean();
        let count = mask.true_count();
        if count == self.count {
            return Ok(self.clone());
        }
        let filter = FilterBuilder::new(mask).optimize().build();
        let columns = self.map(scan, |column| Ok(filter.filter(column)?))?;
        Ok(Rows { columns, count })
    }

    fn take(&self, rows: &[usize], scan: &Scan) -> DataFusionResult<Rows> {
        let rows = indices(rows.iter().copied());
        let columns = self.map(scan, |column| Ok(arrow::compute::take(column, &rows, None)?))?;
        Ok(Rows { columns, count: rows.len() })
    }

    fn map(&self, scan: &Scan, each: impl Fn(&ArrayRef) -> DataFusionResult<ArrayRef>) -> DataFusionResult<Vec<ArrayRef>> {
        let one = |(index, column): (usize, &ArrayRef)| {
            if scan.needed.get(index).copied().unwrap_or(true) { each(column) } else { Ok(Arc::clone(column)) }
        };
        self.columns.iter().enumerate().map(one).collect()
    }
}

/// Time groups that share units: several small ones, or one in several slot ranges.
struct Share {
    group_last: i64,
    first_unit: usize,
    chunks: usize,
}

impl Scan {
    /// Finds the blocks and divides them and the deltas into units.
    fn divide(&mut self, version: &Version) -> Result<()> {
        let mut weights: BTreeMap<i64, usize> = BTreeMap::new();
        let mut blocks: Vec<&Arc<Block>> = Vec::new();
        for (group, present) in version.blocks.iter() {
            for block in present.iter().filter(|block| self.pruning.admits(block)) {
                *weights.entry(*group).or_default() += self.pruning.weight(block);
                blocks.push(block);
            }
        }
        self.blocks_read = blocks.len();
        let mut deltas = Vec::new();
        for delta in &version.deltas {
            let rows = Rows { columns: delta.rows.columns().to_vec(), count: delta.rows.num_rows() };
            let rows = match &self.pruning.predicate {
                Some(predicate) => rows.filter(predicate.as_ref(), self).map_err(failure)?,
                None => rows,
            };
            if rows.count > 0 {
                deltas.push(rows);
            }
        }
        let total: usize = weights.values().sum::<usize>() + deltas.iter().map(|rows| rows.count).sum::<usize>();
        let keyless = self.spec.keys.is_empty();
        if total == 0 && !keyless {
            return Ok(());
        }
        if total <= UNIT_ROWS || keyless {
            let blocks = blocks.into_iter().cloned().collect();
            self.units.push(Unit { slot_first: 0, slot_last: u8::MAX, blocks, rows: deltas });
            return Ok(());
        }
        self.divide_many(weights, blocks, deltas).map_err(failure)
    }

    fn divide_many(&mut self, mut weights: BTreeMap<i64, usize>, blocks: Vec<&Arc<Block>>, deltas: Vec<Rows>) -> DataFusionResult<()> {
        let keys = self.spec.key_schema.fields().len();
        let places: Vec<_> = deltas.iter().map(|rows| places(&self.spec, &rows.columns[..keys], rows.count)).collect();
        for place in places.iter().flatten() {
            *weights.entry(place.group).or_default() += 1;
        }
        let shares = self.share(&weights);
        let share_of = |group: i64| &shares[shares.partition_point(|share| share.group_last < group)];
        for block in blocks {
            let share = share_of(block.name.group);
            let (first, last) = (chunk_of(block.name.slot, share.chunks), chunk_of(block.entry.slot_last, share.chunks));
            for unit in &mut self.units[share.first_unit + first..=share.first_unit + last] {
                unit.blocks.push(Arc::clone(block));
            }
        }
        for (rows, places) in deltas.iter().zip(&places) {
            let mut by_unit: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            for (row, place) in places.iter().enumerate() {
                let share = share_of(place.group);
                by_unit.entry(share.first_unit + chunk_of(place.slot, share.chunks)).or_default().push(row);
            }
            for (unit, chosen) in by_unit {
                let part = rows.take(&chosen, self)?;
                self.units[unit].rows.push(part);
            }
        }
        Ok(())
    }

    /// Makes the empty units.
    fn share(&mut self, weights: &BTreeMap<i64, usize>) -> Vec<Share> {
        let mut shares: Vec<Share> = Vec::new();
        let mut open_rows = usize::MAX;
        for (group, rows) in weights {
            if let Some(open) = shares.last_mut()
                && open.chunks == 1
                && open_rows.saturating_add(*rows) <= UNIT_ROWS
            {
                open.group_last = *group;
                open_rows += rows;
                continue;
            }
            let chunks = rows.div_ceil(UNIT_ROWS).clamp(1, 256);
            shares.push(Share { group_last: *group, first_unit: self.units.len(), chunks });
            open_rows = *rows;
            for chunk in 0..chunks {
                let (slot_first, slot_last) = slot_range(chunk, chunks);
                self.units.push(Unit { slot_first, slot_last, blocks: Vec::new(), rows: Vec::new() });
            }
        }
        shares
    }

    /// The output of a unit, and how many state rows it took.
    fn run(&self, unit: &Unit, reservation: &MemoryReservation) -> DataFusionResult<(RecordBatch, usize)> {
        let counts = self.spec.aggregates.iter().zip(&self.wanted).any(|(aggregate, wanted)| *wanted && aggregate.is_set());
        let portions = if counts { self.portions(unit) } else { 1 };
        let mut taken = 0;
        let (keys, values, rows) = counted(&self.spec, &self.wanted, portions, |portion, groups| {
            taken += self.merge(unit, portion, groups, reservation)?;
            Ok(())
        })?;
        let mut columns: Vec<Option<ArrayRef>> = keys.into_iter().map(Some).collect();
        for (aggregate, values) in self.spec.aggregates.iter().zip(values) {
            columns.push(values.map(|values| aggregate.checked(&values)).transpose()?);
        }
        Ok((self.finish.run(&self.projected, columns, rows)?, taken))
    }

    /// In how many portions its sets are counted: as they are cut, so that a portion's lists are counted as they lie; but what is not cut
    /// is looked at with each portion.
    fn portions(&self, unit: &Unit) -> usize {
        let (mut cut, mut whole, mut finest) = (0, 1, 1);
        for block in &unit.blocks {
            let bytes = block.bytes_in(unit.slot_first, unit.slot_last);
            let count = block.entry.portion.count();
            *(if count > 1 { &mut cut } else { &mut whole }) += bytes;
            finest = finest.max(count);
        }
        whole += unit.rows.iter().map(|rows| self.spec.set_bytes(&rows.columns, rows.count, &self.needed)).sum::<usize>();
        let worth = 1 << ((cut + whole) / whole).ilog2();
        Portion::to_count(cut + whole).max(finest.min(worth))
    }

    /// Merges a portion of a unit; how many state rows it took.
    fn merge(&self, unit: &Unit, portion: Portion, groups: &mut Groups<'_>, reservation: &MemoryReservation) -> DataFusionResult<usize> {
        let mut taken = 0;
        for block in unit.blocks.iter().filter(|block| block.entry.portion.meets(portion)) {
            let decoded = block.read(self.spec.fingerprint)?;
            for (first, last) in self.ranges(unit) {
                let range = decoded.range(first, last);
                if range.is_empty() {
                    continue;
                }
                let whole = Rows { columns: decoded.columns.clone(), count: range.len() };
                let columns = whole.map(self, |column| Ok(column.slice(range.start, range.len())))?;
                let mut rows = Rows { columns, count: range.len() };
                taken += rows.count;
                if let Some(predicate) = &self.pruning.predicate {
                    rows = rows.filter(predicate.as_ref(), self)?;
                }
                groups.merge_portion(portion, block.entry.portion, &rows.columns, rows.count)?;
            }
            reservation.try_resize(groups.size())?;
        }
        for rows in &unit.rows {
            taken += rows.count;
            groups.merge_portion(portion, Portion::ALL, &rows.columns, rows.count)?;
            reservation.try_resize(groups.size())?;
        }
        Ok(taken)
    }

    /// The slot ranges of a unit that can hold matching rows.
    fn ranges(&self, unit: &Unit) -> Vec<(u8, u8)> {
        match &self.pruning.slots {
            None => vec![(unit.slot_first, unit.slot_last)],
            Some(slots) => {
                slots.iter().filter(|slot| (unit.slot_first..=unit.slot_last).contains(slot)).map(|slot| (*slot, *slot)).collect()
            }
        }
    }
}

/// Reads a view as of one version.
#[derive(Debug)]
struct ViewScan {
    scan: Arc<Scan>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl ViewScan {
    fn new(scan: Scan, partitions: usize) -> Self {
        let partitions = partitions.min(scan.units.len()).max(1);
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&scan.projected.schema)),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Incremental,
            Boundedness::Bounded,
        ));
        Self { scan: Arc::new(scan), properties, metrics: ExecutionPlanMetricsSet::new() }
    }
}

impl DisplayAs for ViewScan {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scan = &self.scan;
        write!(f, "ViewScan: view={}, blocks={}", scan.spec.view.name, scan.blocks_total)?;
        write!(f, ", pruned={}, deltas={}", scan.blocks_total - scan.blocks_read, scan.deltas)?;
        if let Some(predicate) = &scan.pruning.predicate {
            write!(f, ", filter={predicate}")?;
        }
        if scan.limit < usize::MAX {
            write!(f, ", limit={}", scan.limit)?;
        }
        write!(f, ", maintenance=incremental")
    }
}

impl ExecutionPlan for ViewScan {
    fn name(&self) -> &str {
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
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DataFusionResult<TreeNodeRecursion>,
    ) -> DataFusionResult<TreeNodeRecursion> {
        self.scan.pruning.predicate.as_ref().map_or(Ok(TreeNodeRecursion::Continue), f)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> DataFusionResult<SendableRecordBatchStream> {
        if let Some(error) = &self.scan.poison {
            return Err(DataFusionError::from(error.clone()));
        }
        let partitions = self.properties.partitioning.partition_count();
        let reader = Reader {
            scan: Arc::clone(&self.scan),
            unit: partition,
            step: partitions,
            pending: None,
            left: self.scan.limit,
            reservation: MemoryConsumer::new("ViewScan").register(context.memory_pool()),
            baseline: BaselineMetrics::new(&self.metrics, partition),
            state_rows: MetricBuilder::new(&self.metrics).counter("state_rows", partition),
        };
        let batches = stream::iter(reader);
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), batches)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// One partition's units, every `step`th.
struct Reader {
    scan: Arc<Scan>,
    unit: usize,
    step: usize,
    /// Output that is not given out yet.
    pending: Option<RecordBatch>,
    left: usize,
    reservation: MemoryReservation,
    baseline: BaselineMetrics,
    state_rows: Count,
}

impl Reader {
    fn pull(&mut self) -> DataFusionResult<Option<RecordBatch>> {
        let time = self.baseline.elapsed_compute().clone();
        let _timer = time.timer();
        let schema: SchemaRef = Arc::clone(&self.scan.projected.schema);
        // Small units are put together, up to a batch.
        let mut parts: Vec<RecordBatch> = self.pending.take().into_iter().collect();
        let mut rows: usize = parts.iter().map(RecordBatch::num_rows).sum();
        while rows < BATCH_ROWS.min(self.left) {
            let Some(unit) = self.scan.units.get(self.unit) else { break };
            self.unit += self.step;
            let (part, taken) = self.scan.run(unit, &self.reservation)?;
            self.state_rows.add(taken);
            self.reservation.free();
            rows += part.num_rows();
            parts.push(part);
        }
        if rows == 0 || self.left == 0 {
            return Ok(None);
        }
        let whole = if parts.len() == 1 { parts.remove(0) } else { arrow::compute::concat_batches(&schema, &parts)? };
        let count = rows.min(BATCH_ROWS).min(self.left);
        if count < rows {
            self.pending = Some(whole.slice(count, rows - count));
        }
        self.left -= count;
        self.baseline.record_output(count);
        Ok(Some(whole.slice(0, count)))
    }
}

impl Iterator for Reader {
    type Item = DataFusionResult<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let pulled = self.pull();
        if pulled.is_err() {
            self.unit = usize::MAX - self.step;
            self.left = 0;
        }
        pulled.transpose()
    }
}
