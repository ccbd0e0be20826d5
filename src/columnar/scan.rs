//! The plan that reads files.
//!
//! *Place*: `ColumnTable::scan`, for `query::provider`.
//!
//! Files are pruned here, against the table log's statistics; row groups, pages and rows by DataFusion's Parquet source,
//! which gets the predicate from the optimizer's filter pushdown. The metrics `files_total` and `files_pruned` of the plan tell
//! what was pruned here.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, UInt64Array};
use arrow::datatypes::SchemaRef;
use datafusion::common::stats::Precision;
use datafusion::common::{Column, ColumnStatistics, DFSchema, ScalarValue, Statistics};
use datafusion::config::TableParquetOptions;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, FileSource, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::context::SessionState;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::expr_rewriter::unnormalize_col;
use datafusion::logical_expr::utils::conjunction;
use datafusion::physical_expr::expressions as physical;
use datafusion::physical_optimizer::pruning::{PruningPredicateBuilder, PruningStatistics};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::FilterExecBuilder;
use datafusion::physical_plan::metrics::{MetricBuilder, MetricType};
use datafusion::physical_plan::union::UnionExec;

use super::deleted::{Deleted, Live};
use super::error::{ColumnarError, Result};
use super::log::stats::is_exact;
use super::reads::{Readers, Reads};
use super::{DataFile, Layout, Version};

/// What a scan is made of.
pub struct Scan<'a> {
    /// Columns of the table.
    pub layout: &'a Layout,
    /// Name of the table's object store in plans.
    pub url: &'a ObjectStoreUrl,
    /// How files are read.
    pub reads: &'a Arc<Reads>,
    /// The files.
    pub version: &'a Version,
    /// Rows of them that are not to be seen.
    pub deleted: &'a Deleted,
}

impl Scan<'_> {
    /// The plan; `filters` only prune, `limit` holds only without them.
    pub fn plan(
        &self,
        state: &SessionState,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        state.runtime_env().register_object_store(self.url.as_ref(), Arc::clone(self.reads.store()));
        let files = self.pruned(state, filters);
        let limit = limit.filter(|_| filters.is_empty());
        let pruned = self.version.files.len() - files.len();
        if self.deleted.is_empty() {
            return self.read(state, files, pruned, projection, limit);
        }
        let (stale, clean): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| self.deleted.meets(file));
        if stale.is_empty() {
            return self.read(state, clean, pruned, projection, limit);
        }
        let whole = clean.is_empty();
        let living = self.living(state, stale, if whole { pruned } else { 0 }, projection)?;
        if whole {
            return Ok(living);
        }
        let clean = self.read(state, clean, pruned, projection, limit)?;
        UnionExec::try_new(vec![clean, living]).map_err(ColumnarError::encoding("plan a scan of"))
    }

    /// Reads files some rows of which are dead: with their LSNs, by which they are left out.
    fn living(
        &self,
        state: &SessionState,
        files: Vec<Arc<DataFile>>,
        pruned: usize,
        projection: Option<&Vec<usize>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let refused = |error| ColumnarError::encoding("plan a scan of")(error);
        let lsn = self.layout.schema.fields().len() - 1;
        let wanted: Vec<usize> = projection.cloned().unwrap_or_else(|| (0..=lsn).collect());
        let mut columns = wanted.clone();
        let at = columns.iter().position(|column| *column == lsn).unwrap_or_else(|| {
            columns.push(lsn);
            columns.len() - 1
        });
        let input = self.read(state, files, pruned, Some(&columns), None)?;
        let lsn = Arc::new(physical::Column::new(self.layout.schema.field(lsn).name(), at));
        let live = Arc::new(Live::new(lsn, self.deleted.clone()));
        let filter = FilterExecBuilder::new(live, input).apply_projection(Some((0..wanted.len()).collect()));
        Ok(Arc::new(filter.and_then(FilterExecBuilder::build).map_err(refused)?))
    }

    fn read(
        &self,
        state: &SessionState,
        files: Vec<Arc<DataFile>>,
        pruned: usize,
        projection: Option<&Vec<usize>>,
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let refused = |error| ColumnarError::encoding("plan a scan of")(error);
        let mut options = TableParquetOptions::new();
        options.global = state.config_options().execution.parquet.clone();
        options.global.pruning = true;
        options.global.enable_page_index = true;
        options.global.bloom_filter_on_read = true;
        options.global.pushdown_filters = true;
        let source = ParquetSource::new(Arc::clone(&self.layout.schema))
            .with_table_parquet_options(options)
            .with_parquet_file_reader_factory(Arc::new(Readers(Arc::clone(self.reads))));
        let count = |name: &'static str, value: usize| {
            MetricBuilder::new(source.metrics()).with_type(MetricType::Summary).global_counter(name).add(value);
        };
        count("files_total", files.len() + pruned);
        count("files_pruned", pruned);

        let statistics: Vec<Statistics> = files.iter().map(|file| self.statistics(file)).collect();
        let total = match files.len() {
            0 => Statistics::new_unknown(&self.layout.schema).with_num_rows(Precision::Exact(0)),
            _ => Statistics::try_merge_iter(&statistics, &self.layout.schema).map_err(refused)?,
        };
        let listed = files.iter().zip(statistics).map(|(file, statistics)| {
            PartitionedFile::new(file.path.clone(), file.bytes).with_extension(Arc::clone(file)).with_statistics(Arc::new(statistics))
        });
        let mut groups = FileGroup::new(listed.collect()).split_files(state.config().target_partitions().max(1));
        if groups.is_empty() {
            groups.push(FileGroup::new(Vec::new()));
        }
        let config = FileScanConfigBuilder::new(self.url.clone(), Arc::new(source))
            .with_file_groups(groups)
            .with_statistics(total)
            .with_limit(limit)
            .with_expr_adapter(Some(Arc::new(self.layout.fills.clone())))
            .with_projection_indices(projection.cloned())
            .map_err(refused)?
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }

    /// The files that may hold rows that pass all filters. A filter that cannot be evaluated prunes nothing.
    fn pruned(&self, state: &SessionState, filters: &[Expr]) -> Vec<Arc<DataFile>> {
        let all = || self.version.files.clone();
        let Some(predicate) = conjunction(filters.iter().cloned().map(unnormalize_col)) else { return all() };
        let Ok(schema) = DFSchema::try_from(Arc::clone(&self.layout.schema)) else { return all() };
        let Ok(predicate) = state.create_physical_expr(predicate, &schema) else { return all() };
        let Some(predicate) = PruningPredicateBuilder::new().with_file_schema(Arc::clone(&self.layout.schema)).build(predicate) else {
            return all();
        };
        match predicate.prune(&FileStatistics { schema: &self.layout.schema, files: &self.version.files }) {
            Ok(keep) => self.version.files.iter().zip(keep).filter(|(_, keep)| *keep).map(|(file, _)| Arc::clone(file)).collect(),
            Err(error) => {
                tracing::debug!(%error, "files could not be pruned");
                all()
            }
        }
    }

    fn statistics(&self, file: &DataFile) -> Statistics {
        let fits = file.stats.len() == self.layout.schema.fields().len();
        let columns = self.layout.schema.fields().iter().enumerate().map(|(index, _)| {
            let Some(stats) = file.stats.get(index).and_then(Option::as_ref).filter(|_| fits) else {
                return ColumnStatistics::new_unknown();
            };
            ColumnStatistics {
                null_count: Precision::Exact(saturated(stats.nulls)),
                min_value: precision(&stats.min),
                max_value: precision(&stats.max),
                ..ColumnStatistics::new_unknown()
            }
        });
        Statistics {
            num_rows: Precision::Exact(saturated(file.rows)),
            total_byte_size: Precision::Inexact(saturated(file.bytes)),
            column_statistics: columns.collect(),
        }
    }
}

fn saturated(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn precision(bound: &ScalarValue) -> Precision<ScalarValue> {
    match bound {
        bound if bound.is_null() => Precision::Absent,
        bound if is_exact(bound) => Precision::Exact(bound.clone()),
        bound => Precision::Inexact(bound.clone()),
    }
}

/// The log's statistics as DataFusion's pruning wants them: one element a file.
struct FileStatistics<'a> {
    schema: &'a SchemaRef,
    files: &'a [Arc<DataFile>],
}

impl FileStatistics<'_> {
    /// `pick` of every file's statistics of a column, NULL where unknown.
    fn column(&self, column: &Column, pick: impl Fn(&super::ColumnStats) -> &ScalarValue) -> Option<ArrayRef> {
        let index = self.schema.index_of(&column.name).ok()?;
        let data_type = self.schema.field(index).data_type();
        let unknown = ScalarValue::try_from(data_type).ok()?;
        let values = self.files.iter().map(|file| match self.stats(file, index).map(&pick) {
            Some(value) if value.data_type() == *data_type => value.clone(),
            _ => unknown.clone(),
        });
        ScalarValue::iter_to_array(values).ok()
    }

    fn stats<'f>(&self, file: &'f DataFile, index: usize) -> Option<&'f super::ColumnStats> {
        // A file listed under a wider layout than this reader's has its statistics in other places.
        if file.stats.len() != self.schema.fields().len() {
            return None;
        }
        file.stats.get(index)?.as_ref()
    }
}

impl PruningStatistics for FileStatistics<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.column(column, |stats| &stats.min)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.column(column, |stats| &stats.max)
    }

    fn num_containers(&self) -> usize {
        self.files.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        let index = self.schema.index_of(&column.name).ok()?;
        let counts = self.files.iter().map(|file| self.stats(file, index).map(|stats| stats.nulls));
        Some(Arc::new(counts.collect::<UInt64Array>()))
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::new(self.files.iter().map(|file| Some(file.rows)).collect::<UInt64Array>()))
    }

    fn contained(&self, _column: &Column, _values: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}
