//! EXPLAIN: the plan as text lines, with what was read when it is run.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::StringViewArray;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::catalog::memory::{DataSourceExec, MemorySourceConfig};
use datafusion::common::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::metrics::MetricValue;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, displayable, execute_stream};
use futures::StreamExt;

use super::rewrite::SUFFIX;
use super::watch::unwrapped;

/// What EXPLAIN shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExplainOptions {
    /// Runs the statement and shows what it did.
    pub analyze: bool,
    /// Shows the logical plan too.
    pub verbose: bool,
    /// Shows which views were looked at and what was decided, and no plan.
    pub route: bool,
}

/// The lines of EXPLAIN, `routes` among them, as a stream that runs the plan first where ANALYZE asks for it.
pub fn stream(
    options: ExplainOptions,
    logical: LogicalPlan,
    physical: Arc<dyn ExecutionPlan>,
    routes: Vec<String>,
    context: Arc<TaskContext>,
    schema: SchemaRef,
) -> SendableRecordBatchStream {
    let shown = SchemaRef::clone(&schema);
    let lines = futures::stream::once(async move { lines(options, &logical, physical, routes, context).await }).map(move |lines| {
        // Names that no client can type begin with a character that none can read.
        let lines = StringViewArray::from_iter_values(lines?.into_iter().map(|line| line.replace(SUFFIX, "")));
        Ok(RecordBatch::try_new(SchemaRef::clone(&shown), vec![Arc::new(lines)])?)
    });
    Box::pin(RecordBatchStreamAdapter::new(schema, lines))
}

async fn lines(
    options: ExplainOptions,
    logical: &LogicalPlan,
    physical: Arc<dyn ExecutionPlan>,
    routes: Vec<String>,
    context: Arc<TaskContext>,
) -> Result<Vec<String>> {
    if options.route {
        return Ok(routes);
    }
    let mut lines = Vec::new();
    if options.verbose {
        lines.push("Logical Plan".to_owned());
        lines.extend(logical.display_indent().to_string().lines().map(|line| format!("  {line}")));
        lines.push("Physical Plan".to_owned());
    }
    if !options.analyze {
        lines.extend(displayable(physical.as_ref()).indent(options.verbose).to_string().lines().map(str::to_owned));
        lines.extend(routes);
        return Ok(lines);
    }
    let started = Instant::now();
    let mut rows = 0;
    let mut batches = execute_stream(Arc::clone(&physical), context)?;
    while let Some(batch) = batches.next().await {
        rows += batch?.num_rows();
    }
    let elapsed = started.elapsed();
    let plan = datafusion::physical_plan::display::DisplayableExecutionPlan::with_metrics(physical.as_ref());
    lines.extend(unwrapped(&plan.indent(options.verbose).to_string()).lines().map(str::to_owned));
    lines.extend(routes);
    lines.extend(sources(physical.as_ref()));
    lines.push(format!("Rows: {rows}"));
    lines.push(format!("Execution Time: {:.3} ms", elapsed.as_secs_f64() * 1e3));
    Ok(lines)
}

/// What the scans read: rows from memory, from Parquet, and what was pruned.
fn sources(plan: &dyn ExecutionPlan) -> Vec<String> {
    let mut totals = Totals::default();
    totals.add(plan);
    let mut text = format!("Rows read: {} hot, {} from Parquet, {} from view state", totals.hot, totals.cold, totals.state);
    for (name, value) in &totals.pruned {
        // Writing to a String cannot fail.
        let _ = write!(text, ", {} {value}", name.replace('_', " "));
    }
    vec![text]
}

fn in_memory(plan: &dyn ExecutionPlan) -> Option<usize> {
    let source = plan.downcast_ref::<DataSourceExec>()?.data_source();
    let memory = source.downcast_ref::<MemorySourceConfig>()?;
    Some(memory.partitions().iter().flatten().map(RecordBatch::num_rows).sum())
}

#[derive(Default)]
struct Totals {
    hot: usize,
    cold: usize,
    state: usize,
    pruned: Vec<(String, usize)>,
}

impl Totals {
    fn add(&mut self, plan: &dyn ExecutionPlan) {
        if plan.children().is_empty() {
            let metrics = plan.metrics().unwrap_or_default();
            // Batches in memory are handed over without being counted.
            let rows = metrics.output_rows().or_else(|| in_memory(plan)).unwrap_or(0);
            let shown = displayable(plan).one_line().to_string();
            match shown.as_str() {
                parquet if parquet.contains("parquet") => self.cold += rows,
                memory if memory.starts_with("DataSourceExec") => self.hot += rows,
                _ => self.state += rows,
            }
            for metric in metrics.aggregate_by_name().iter() {
                let name = metric.value().name();
                match metric.value() {
                    MetricValue::PruningMetrics { pruning_metrics, .. } => self.count(name, pruning_metrics.pruned()),
                    value if name.contains("pruned") => self.count(name, value.as_usize()),
                    _ => {}
                }
            }
        }
        for child in plan.children() {
            self.add(child.as_ref());
        }
    }

    fn count(&mut self, name: &str, value: usize) {
        match self.pruned.iter_mut().find(|(known, _)| known == name) {
            Some((_, total)) => *total += value,
            None => self.pruned.push((name.to_owned(), value)),
        }
    }
}
