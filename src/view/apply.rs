//! A batch of rows to one delta per view.
//!
//! *Place*: `store::commit` calls it while the log syncs; it is the hot path of ingestion.
//!
//! Views are put together by filter, then by keys: a filter is evaluated once, its rows are cut out once (only the columns
//! that are read), keys are interned once, and equal aggregates are computed once. What remains per view is its own
//! accumulators. With more threads, the (filter, keys) sets are shared out. Rows of views that hop are multiplied between filter
//! and keys, once for equal windows, and in slices when they are many.
//!
//! *On failure* of an expression the batch is halved until the row is found; it marks its group, or the view when even its
//! filter or keys cannot be computed. Ingestion goes on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use arrow::array::{ArrayRef, AsArray, BooleanArray, NullArray};
use arrow::compute::FilterBuilder;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::logical_expr::EmitTo;
use parking_lot::Mutex;

use super::delta::{self, Delta, Work};
use super::expand::Expansion;
use super::failure::{failure, to_text};
use super::groups::{Interner, state_batch};
use super::session::Sessions;
use super::spec::{Expression, Spec};
use crate::error::{Error, Result};

/// Below this many rows further threads cost more than they bring.
const PARALLEL_ROWS_MIN: usize = 4_096;

/// Computes the deltas of several views of one table for the same rows (table schema, without LSN), sharing filter, key
/// and grouping work between them. One entry per spec, none where no row passes. Runs on the caller's thread; up to
/// `threads` more help when the batch is large.
///
/// No row makes it fail: see the module. An error is a broken invariant.
pub fn apply(specs: &[Arc<Spec>], rows: &RecordBatch, first_lsn: u64, next_lsn: u64, threads: usize) -> Result<Vec<Option<Delta>>> {
    let slice_rows = specs.iter().filter_map(|spec| spec.expansion.as_ref()).map(Expansion::rows_max).min();
    match slice_rows {
        Some(slice_rows) if rows.num_rows() > slice_rows => in_slices(specs, rows, slice_rows, (first_lsn, next_lsn), threads),
        _ => at_once(specs, rows, first_lsn, next_lsn, threads),
    }
}

/// Applies rows to views that hop a slice at a time, to the others at once.
fn in_slices(
    specs: &[Arc<Spec>],
    rows: &RecordBatch,
    slice_rows: usize,
    (first_lsn, next_lsn): (u64, u64),
    threads: usize,
) -> Result<Vec<Option<Delta>>> {
    let mut parts: Vec<Vec<Arc<Delta>>> = specs.iter().map(|_| Vec::new()).collect();
    for hopping in [false, true] {
        let chosen: Vec<usize> = (0..specs.len()).filter(|index| specs[*index].expansion.is_some() == hopping).collect();
        let members: Vec<Arc<Spec>> = chosen.iter().map(|index| Arc::clone(&specs[*index])).collect();
        let step = if hopping { slice_rows } else { rows.num_rows() };
        for start in (0..rows.num_rows()).step_by(step) {
            let slice = rows.slice(start, step.min(rows.num_rows() - start));
            for (index, delta) in chosen.iter().zip(at_once(&members, &slice, first_lsn, next_lsn, threads)?) {
                parts[*index].extend(delta.map(Arc::new));
            }
        }
    }
    let merged = specs.iter().zip(parts).map(|(spec, mut parts)| match parts.len() {
        0 => None,
        1 => parts.pop().map(Arc::unwrap_or_clone),
        // What does not merge is heard by who reads the view.
        _ => Some(delta::merge(spec, &parts).unwrap_or_else(|error| {
            let rows = RecordBatch::new_empty(Arc::clone(&spec.state_schema));
            Delta { poison: Some(error), work: delta::work_of(&parts), ..Delta::new(rows, first_lsn, next_lsn) }
        })),
    });
    Ok(merged.collect())
}

fn at_once(specs: &[Arc<Spec>], rows: &RecordBatch, first_lsn: u64, next_lsn: u64, threads: usize) -> Result<Vec<Option<Delta>>> {
    let mut deltas: Vec<Option<Delta>> = specs.iter().map(|_| None).collect();
    if rows.num_rows() == 0 || specs.is_empty() {
        return Ok(deltas);
    }
    let (sets, mut failed) = plan(specs, rows);
    let results = run(specs, &sets, if rows.num_rows() < PARALLEL_ROWS_MIN { 0 } else { threads });
    for (index, result, work) in results {
        match result {
            Ok(rows) => deltas[index] = Some(Delta { work, ..Delta::new(rows, first_lsn, next_lsn) }),
            Err(_) => failed.push(index),
        }
    }
    for index in failed {
        deltas[index] = isolate(&specs[index], rows, first_lsn, next_lsn)?;
    }
    Ok(deltas)
}

/// Views with equal filter and keys, and the rows that pass.
struct Set {
    input: Arc<Input>,
    specs: Vec<usize>,
    /// What each of them has for the filter and the windows.
    prepared: Work,
}

/// Rows that pass a filter, with the columns and expressions computed from them so far.
struct Input {
    rows: RecordBatch,
    memo: Mutex<Vec<(Expression, ArrayRef)>>,
}

impl Input {
    fn new(rows: RecordBatch) -> Self {
        Self { rows, memo: Mutex::new(Vec::new()) }
    }

    /// An expression's values, computed once for equal expressions.
    fn evaluate(&self, expression: &Expression) -> DataFusionResult<ArrayRef> {
        if let Some((_, array)) = self.memo.lock().iter().find(|(known, _)| known == expression) {
            return Ok(Arc::clone(array));
        }
        let array = expression.physical.evaluate(&self.rows)?.into_array(self.rows.num_rows())?;
        self.memo.lock().push((expression.clone(), Arc::clone(&array)));
        Ok(array)
    }
}

/// Sets of views to compute, and the views whose filter failed.
fn plan(specs: &[Arc<Spec>], rows: &RecordBatch) -> (Vec<Set>, Vec<usize>) {
    let mut filters: Vec<(Option<&Expression>, Vec<usize>)> = Vec::new();
    for (index, spec) in specs.iter().enumerate() {
        match filters.iter_mut().find(|(filter, _)| *filter == spec.filter.as_ref()) {
            Some((_, members)) => members.push(index),
            None => filters.push((spec.filter.as_ref(), vec![index])),
        }
    }
    let mut sets: Vec<Set> = Vec::new();
    let mut failed = Vec::new();
    for (filter, members) in filters {
        let started = Instant::now();
        let selected = match selected(specs, &members, filter, rows) {
            Ok(Some(selected)) => selected,
            Ok(None) => continue,
            Err(_) => {
                failed.extend(members);
                continue;
            }
        };
        let filtered_ns = nanoseconds(started) / members.len() as u64;
        let mut expansions: Vec<(Option<&Expansion>, Vec<usize>)> = Vec::new();
        for index in members {
            let expansion = specs[index].expansion.as_ref();
            match expansions.iter_mut().find(|(known, _)| *known == expansion) {
                Some((_, members)) => members.push(index),
                None => expansions.push((expansion, vec![index])),
            }
        }
        for (expansion, members) in expansions {
            let started = Instant::now();
            match expanded(specs, &members, expansion, &selected) {
                Ok(Some(input)) => {
                    let cpu_ns = filtered_ns + nanoseconds(started) / members.len() as u64;
                    let prepared = Work { rows: selected.num_rows() as u64, cpu_ns };
                    share(specs, members, &Arc::new(Input::new(input)), prepared, &mut sets);
                }
                Ok(None) => {}
                Err(_) => failed.extend(members),
            }
        }
    }
    (sets, failed)
}

/// Puts views that read the same rows into sets with equal keys.
fn share(specs: &[Arc<Spec>], members: Vec<usize>, input: &Arc<Input>, prepared: Work, sets: &mut Vec<Set>) {
    let from = sets.len();
    for index in members {
        let spec = &specs[index];
        let same = |set: &&mut Set| {
            let other = &specs[set.specs[0]];
            other.keys_hash == spec.keys_hash && other.keys == spec.keys && other.session_of_rows() == spec.session_of_rows()
        };
        match sets[from..].iter_mut().find(same) {
            Some(set) => set.specs.push(index),
            None => sets.push(Set { input: Arc::clone(input), specs: vec![index], prepared }),
        }
    }
}

/// One row per row and window, of those that a filter over windows lets pass.
fn expanded(
    specs: &[Arc<Spec>],
    members: &[usize],
    expansion: Option<&Expansion>,
    rows: &RecordBatch,
) -> DataFusionResult<Option<RecordBatch>> {
    let Some(expansion) = expansion else { return Ok(Some(rows.clone())) };
    let needed = |column: usize| members.iter().any(|index| specs[*index].columns.binary_search(&column).is_ok());
    let expanded = expansion.expand(rows, needed)?;
    if expanded.num_rows() == 0 {
        return Ok(None);
    }
    selected(specs, members, expansion.filter.as_ref(), &expanded)
}

/// The rows for which `filter` is true, with the columns that `members` read; the others are of type Null, in place.
fn selected(
    specs: &[Arc<Spec>],
    members: &[usize],
    filter: Option<&Expression>,
    rows: &RecordBatch,
) -> DataFusionResult<Option<RecordBatch>> {
    let Some(filter) = filter else { return Ok(Some(rows.clone())) };
    let mask = filter.physical.evaluate(rows)?.into_array(rows.num_rows())?;
    let mask = mask.as_boolean();
    match mask.true_count() {
        0 => return Ok(None),
        all if all == rows.num_rows() => return Ok(Some(rows.clone())),
        _ => {}
    }
    let needed = |column: usize| members.iter().any(|index| specs[*index].columns.binary_search(&column).is_ok());
    let predicate = FilterBuilder::new(mask).optimize().build();
    let count = predicate.count();
    let absent: ArrayRef = Arc::new(NullArray::new(count));
    let mut fields = Vec::with_capacity(rows.num_columns());
    let mut columns = Vec::with_capacity(rows.num_columns());
    for (index, (column, field)) in rows.columns().iter().zip(rows.schema_ref().fields()).enumerate() {
        if needed(index) {
            fields.push(Arc::clone(field));
            columns.push(predicate.filter(column)?);
        } else {
            fields.push(Arc::new(Field::new(field.name(), DataType::Null, true)));
            columns.push(Arc::clone(&absent));
        }
    }
    let options = RecordBatchOptions::new().with_row_count(Some(count));
    Ok(Some(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?))
}

/// A view, its states, and what they took.
type Outcome = (usize, DataFusionResult<RecordBatch>, Work);

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn run(specs: &[Arc<Spec>], sets: &[Set], threads: usize) -> Vec<Outcome> {
    let helpers = threads.min(sets.len().saturating_sub(1));
    if helpers == 0 {
        return sets.iter().flat_map(|set| compute(specs, set)).collect();
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut outcomes = Vec::new();
        while let Some(set) = sets.get(next.fetch_add(1, Ordering::Relaxed)) {
            outcomes.extend(compute(specs, set));
        }
        outcomes
    };
    std::thread::scope(|scope| {
        let helpers: Vec<_> = (0..helpers).map(|_| scope.spawn(work)).collect();
        let mut outcomes = work();
        for helper in helpers {
            match helper.join() {
                Ok(more) => outcomes.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        outcomes
    })
}

/// The states of a set's views; an error of a shared step is every member's.
fn compute(specs: &[Arc<Spec>], set: &Set) -> Vec<Outcome> {
    let started = Instant::now();
    let shared = intern(&specs[set.specs[0]], &set.input);
    let shared_ns = nanoseconds(started) / set.specs.len() as u64;
    let mut states: Vec<(&str, Vec<ArrayRef>)> = Vec::new();
    set.specs
        .iter()
        .map(|index| {
            let spec = &specs[*index];
            let started = Instant::now();
            let outcome = match &shared {
                Ok(grouped) => aggregate(spec, &set.input, grouped, &mut states),
                Err(error) => Err(DataFusionError::Execution(error.to_string())),
            };
            let mut work = set.prepared;
            work.cpu_ns += shared_ns + nanoseconds(started);
            (*index, outcome, work)
        })
        .collect()
}

/// Rows with their group numbers, and each group's keys.
struct Grouped {
    ids: Vec<usize>,
    keys: Vec<ArrayRef>,
    count: usize,
}

fn intern(spec: &Spec, input: &Input) -> DataFusionResult<Grouped> {
    let keys = spec.keys.iter().map(|key| input.evaluate(key)).collect::<DataFusionResult<Vec<_>>>()?;
    if let Some(session) = &spec.session {
        let mut sessions = Sessions::new(spec, session)?;
        sessions.add(&keys, &keys[session.key], input.rows.num_rows())?;
        let (ids, keys, count) = sessions.join()?;
        return Ok(Grouped { ids, keys, count });
    }
    let mut interner = Interner::new(&spec.key_schema)?;
    let mut ids = Vec::new();
    interner.intern(&keys, input.rows.num_rows(), &mut ids)?;
    let count = interner.len();
    Ok(Grouped { ids, keys: interner.emit()?, count })
}

fn aggregate<'a>(
    spec: &'a Spec,
    input: &Input,
    grouped: &Grouped,
    done: &mut Vec<(&'a str, Vec<ArrayRef>)>,
) -> DataFusionResult<RecordBatch> {
    let mut columns = grouped.keys.clone();
    for aggregate in &spec.aggregates {
        if let Some((_, states)) = done.iter().find(|(identity, _)| *identity == aggregate.identity) {
            columns.extend(states.iter().cloned());
            continue;
        }
        let arguments = aggregate.arguments.iter().map(|argument| input.evaluate(argument)).collect::<DataFusionResult<Vec<_>>>()?;
        let filter = aggregate.filter.as_ref().map(|filter| input.evaluate(filter)).transpose()?;
        let filter: Option<&BooleanArray> = filter.as_ref().map(|filter| filter.as_boolean());
        let mut accumulator = aggregate.accumulator()?;
        accumulator.update_batch(&arguments, &grouped.ids, filter, grouped.count)?;
        let states = accumulator.state(EmitTo::All)?;
        columns.extend(states.iter().cloned());
        done.push((&aggregate.identity, states));
    }
    state_batch(spec, columns, grouped.count, &BTreeMap::new())
}

/// One view's delta, alone.
fn alone(spec: &Arc<Spec>, rows: &RecordBatch) -> DataFusionResult<Option<RecordBatch>> {
    let Some(input) = input_of(spec, rows)? else { return Ok(None) };
    let grouped = intern(spec, &input)?;
    aggregate(spec, &input, &grouped, &mut Vec::new()).map(Some)
}

/// The rows that one view groups.
fn input_of(spec: &Arc<Spec>, rows: &RecordBatch) -> DataFusionResult<Option<Input>> {
    let specs = std::slice::from_ref(spec);
    let Some(selected) = selected(specs, &[0], spec.filter.as_ref(), rows)? else { return Ok(None) };
    Ok(expanded(specs, &[0], spec.expansion.as_ref(), &selected)?.map(Input::new))
}

/// A delta from rows some of which fail.
fn isolate(spec: &Arc<Spec>, rows: &RecordBatch, first_lsn: u64, next_lsn: u64) -> Result<Option<Delta>> {
    let started = Instant::now();
    let count = rows.num_rows() as u64;
    let mut parts = Vec::new();
    let mut poison = None;
    let mut open = vec![rows.clone()];
    // Taken from the end, so the later half is pushed first: parts come out in row order.
    while let Some(rows) = open.pop() {
        match alone(spec, &rows) {
            Ok(part) => parts.extend(part),
            Err(error) if rows.num_rows() == 1 => match failed_group(spec, &rows, &failure(error)) {
                Ok(part) => parts.extend(part),
                Err(error) => poison = poison.or(Some(failure(error))),
            },
            Err(_) => {
                let half = rows.num_rows() / 2;
                open.push(rows.slice(half, rows.num_rows() - half));
                open.push(rows.slice(0, half));
            }
        }
    }
    if parts.is_empty() && poison.is_none() {
        return Ok(None);
    }
    let part = |rows| Arc::new(Delta::new(rows, first_lsn, next_lsn));
    let parts: Vec<_> = parts.into_iter().map(part).collect();
    let merged = delta::merge(spec, &parts)?;
    // Which of the rows passed the filter is not known apart: all count.
    let work = Work { rows: count, cpu_ns: nanoseconds(started) };
    Ok(Some(Delta { poison, work, ..Delta::new(merged.rows, first_lsn, next_lsn) }))
}

/// The groups of a row whose aggregates fail, with the error; an error of filter or keys comes back.
fn failed_group(spec: &Arc<Spec>, row: &RecordBatch, error: &Error) -> DataFusionResult<Option<RecordBatch>> {
    let Some(input) = input_of(spec, row)? else { return Ok(None) };
    let grouped = intern(spec, &input)?;
    let mut columns = grouped.keys.clone();
    for aggregate in &spec.aggregates {
        let mut accumulator = aggregate.accumulator()?;
        let empty: Vec<_> = aggregate.state.iter().map(arrow::array::new_empty_array).collect();
        accumulator.merge_batch(&empty, &[], grouped.count)?;
        columns.extend(accumulator.state(EmitTo::All)?);
    }
    let errors = (0..grouped.count).map(|group| (group, to_text(error))).collect();
    state_batch(spec, columns, grouped.count, &errors).map(Some)
}
