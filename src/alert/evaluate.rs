//! Evaluations: what an alert's query gives becomes observations of its instances, and these become transitions and messages.
//!
//! *Place*: [`super::Alerts`] runs one when a window has closed, when EVERY says so, and after late rows.
//!
//! *Invariants*: (1) a window is looked at once, after it is closed, in the order of windows; windows that closed while the server was
//! down are looked at after its start; (2) the snapshot has every row of the windows that are looked at; (3) a first evaluation looks at
//! the newest closed window of each partition alone, and one that finds a new partition at its newest and those that closed since the
//! first: history does not fire; (4) memory is bounded by the rows of new windows, and those
//! by `limits.alert.rows_max`.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::Array;
use arrow::record_batch::RecordBatch;
use datafusion::common::ScalarValue;
use futures::StreamExt;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::closings::Closings;
use super::gate::Until;
use super::ledger::{Book, Changes, Entry, Progress};
use super::lifecycle::{Instance, Kind, Observation, Phase, Transition, is_silenced};
use super::notify::Message;
use super::plan::{Compiled, Role, fires, starts};
use super::{Parts, span::Span};
use crate::catalog::{Alert, NoData, Oid};
use crate::clock::Micros;
use crate::error::{Error, Result, SqlState};
use crate::query::{Bound, Context};
use crate::store::Snapshot;
use crate::types::text::to_json::JsonWriter;
use crate::types::text::{Style, Writer};
use crate::types::{SqlType, UTC};

/// Windows of one series that are looked for rows at once: beyond, after a jump of the clock, the oldest are not.
const MISSING_MAX: usize = 1_000;

/// A row of an alert's query.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its keys.
    pub key: Map<String, Value>,
    /// The partition of the event table.
    pub partition: Option<String>,
    /// The start of its window.
    pub window: Option<Micros>,
    /// Whether the condition holds.
    pub fires: bool,
    /// The other columns.
    pub values: Map<String, Value>,
}

/// Rows by instance and window.
pub type Series = BTreeMap<String, (Map<String, Value>, Option<String>, BTreeMap<Option<Micros>, Row>)>;

/// Runs an alert's query: the rows of windows that `wanted` takes.
pub async fn rows(
    parts: &Parts,
    compiled: &Compiled,
    snapshot: &Arc<Snapshot>,
    (until, oldest): (Arc<Until>, Micros),
    wanted: &(dyn Fn(Option<&String>, Option<Micros>) -> bool + Sync),
    cancel: CancellationToken,
) -> Result<Series> {
    compiled.gate.set(&until);
    let context = Context {
        snapshot: Arc::clone(snapshot),
        now: parts.clock.now(),
        time_zone: UTC.to_owned(),
        user: "verus".to_owned(),
        backend: 0,
        settings: Arc::default(),
    };
    let (parameters, values) = match compiled.bounded {
        true => (vec![SqlType::Timestamptz], vec![ScalarValue::TimestampMicrosecond(Some(oldest), Some(UTC.into()))]),
        false => (Vec::new(), Vec::new()),
    };
    let bound = Bound { plan: compiled.plan.clone(), schema: Arc::clone(&compiled.schema), parameters, explain: None };
    let mut stream = parts.engine.run(&context, &bound, &values, cancel).await?;
    let mut series = Series::new();
    let mut count = 0;
    while let Some(batch) = stream.next().await {
        let batch = batch.map_err(crate::query::error::from_datafusion)?;
        for row in read(compiled, &batch, wanted)? {
            count += 1;
            if count > parts.limits.rows_max {
                parts.metrics.limit_hit("limits.alert.rows_max");
                return Err(Error::new(SqlState::CONFIGURATION_LIMIT_EXCEEDED, "the alert's query gives too many rows")
                    .detail(format!("An evaluation looks at {} rows.", parts.limits.rows_max)));
            }
            let key = Value::Object(row.key.clone()).to_string();
            let (_, _, windows) = series.entry(key).or_insert_with(|| (row.key.clone(), row.partition.clone(), BTreeMap::new()));
            // Of several rows of one instance, one that fires stands for all.
            match windows.get(&row.window) {
                Some(other) if other.fires || !row.fires => {}
                _ => drop(windows.insert(row.window, row)),
            }
        }
    }
    Ok(series)
}

fn read(compiled: &Compiled, batch: &RecordBatch, wanted: &(dyn Fn(Option<&String>, Option<Micros>) -> bool + Sync)) -> Result<Vec<Row>> {
    let style = Style::default();
    let windows = compiled.window.map(|(index, _)| starts(batch.column(index)));
    let schema = batch.schema();
    let partition = match compiled.partition {
        Some(index) => {
            Some((batch.column(index), Writer::new(batch.column(index).as_ref(), &SqlType::of_field(schema.field(index)), &style)?))
        }
        None => None,
    };
    let writers = (0..compiled.names.len())
        .map(|index| JsonWriter::new(batch.column(index).as_ref(), &SqlType::of_field(schema.field(index)), &style))
        .collect::<Result<Vec<_>>>()?;
    let fires = fires(batch, compiled.flagged);
    let mut rows = Vec::new();
    let mut text = Vec::new();
    for row in 0..batch.num_rows() {
        let window = windows.as_ref().and_then(|windows| windows[row]);
        let partition = partition.as_ref().filter(|(values, _)| !values.is_null(row)).map(|(_, writer)| {
            text.clear();
            writer.write(row, &mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        if !wanted(partition.as_ref(), window) {
            continue;
        }
        let (mut key, mut values) = (Map::new(), Map::new());
        for ((name, role), writer) in compiled.names.iter().zip(&compiled.roles).zip(&writers) {
            let columns = match role {
                Role::Window => continue,
                Role::Key => &mut key,
                Role::Measure => &mut values,
            };
            text.clear();
            writer.write(row, &mut text);
            columns.insert(name.clone(), serde_json::from_slice(&text).unwrap_or(Value::Null));
        }
        rows.push(Row { key, partition, window, fires: fires.is_valid(row) && fires.value(row), values });
    }
    Ok(rows)
}

/// How far each partition was looked at, and how far it can be.
#[derive(Clone, Copy, Debug)]
pub struct Reach<'a> {
    /// Whether rows tell their partition.
    partitioned: bool,
    span: Span,
    until: &'a Until,
    from: From<'a>,
}

/// Where what is looked at begins.
#[derive(Clone, Copy, Debug)]
enum From<'a> {
    /// Behind what was looked at.
    Progress(&'a Progress),
    /// At a time.
    Time(Micros),
}

impl<'a> Reach<'a> {
    /// From where an alert has come to what is closed.
    pub fn new(compiled: &Compiled, progress: &'a Progress, until: &'a Until, span: Span) -> Reach<'a> {
        Reach { partitioned: compiled.partition.is_some(), span, until, from: From::Progress(progress) }
    }

    /// Every partition from a time on, as far as it is closed.
    pub fn since(compiled: &Compiled, until: &'a Until, from: Micros, span: Span) -> Reach<'a> {
        Reach { partitioned: compiled.partition.is_some(), span, until, from: From::Time(from) }
    }

    /// The range of a partition: windows that end after the first and at or before the second time. None where it is not known.
    pub fn of(&self, partition: Option<&str>) -> Option<(Micros, Micros)> {
        let closed = if self.partitioned { self.until.known(partition)? } else { self.until.all };
        Some((self.from(partition, closed), closed))
    }

    fn from(&self, partition: Option<&str>, closed: Micros) -> Micros {
        match self.from {
            From::Time(from) => from,
            From::Progress(progress) => {
                let name = partition.filter(|_| self.partitioned);
                let known = name.map_or(progress.all, |name| progress.partitions.get(name).copied());
                // Of a partition that comes later everything after the first evaluation is seen, and its newest window in any case.
                known.filter(|_| progress.begun).unwrap_or_else(|| {
                    let newest = self.span.ended(i64::MIN, closed, 1).last().map_or(closed, |start| self.span.end(*start) - 1);
                    if progress.begun { newest.min(progress.floor) } else { newest }
                })
            }
        }
    }

    /// Whether a window of a partition lies in its range.
    pub fn has(&self, partition: Option<&str>, window: Micros) -> bool {
        self.of(partition).is_some_and(|(from, to)| (from.saturating_add(1)..=to).contains(&self.span.end(window)))
    }

    /// All partitions.
    fn each(&self) -> impl Iterator<Item = (Option<&'a str>, Micros)> {
        let until = self.until;
        let partitions = self.partitioned.then(|| until.each());
        partitions.into_iter().flatten().chain((!self.partitioned).then_some((None, until.all)))
    }

    /// The start of the oldest window that has closed; none where none has.
    pub fn oldest(&self) -> Option<Micros> {
        let ranges = self.each().map(|(partition, to)| (self.from(partition, to), to));
        let fresh = ranges.filter(|(from, to)| !self.span.ended(*from, *to, 1).is_empty());
        fresh.map(|(from, _)| self.span.earliest(from)).min()
    }

    /// What is remembered of it.
    pub fn progress(&self, before: &Progress) -> Progress {
        let mut after = before.clone();
        for (partition, to) in self.each() {
            let known = partition.and_then(|name| after.partitions.get_mut(name));
            match (known, partition) {
                (Some(known), _) => *known = to,
                (None, Some(name)) => drop(after.partitions.insert(name.to_owned(), to)),
                (None, None) => after.all = Some(to),
            }
        }
        if !before.begun {
            after.floor = self.each().map(|(_, to)| to).max().unwrap_or(i64::MIN);
        }
        after.begun = true;
        after
    }
}

/// The observations of one series in its range, in the order of windows.
pub fn observations(
    compiled: &Compiled,
    span: Span,
    range: (Micros, Micros),
    rows: &BTreeMap<Option<Micros>, Row>,
    known: bool,
) -> Vec<Observation> {
    let mut seen: BTreeMap<Micros, Observation> = BTreeMap::new();
    for row in rows.values() {
        let Some(window) = row.window.filter(|window| (range.0 + 1..=range.1).contains(&span.end(*window))) else { continue };
        seen.insert(window, Observation { at: span.end(window), window: Some(window), holds: Some(row.fires), values: row.values.clone() });
    }
    let first = seen.keys().next().copied();
    for window in span.ended(range.0, range.1, MISSING_MAX) {
        if known || first.is_some_and(|first| first < window) {
            // Where the condition is no column, a row that is not there is one for which it does not hold.
            let holds = if compiled.flagged { None } else { Some(false) };
            seen.entry(window).or_insert_with(|| Observation { at: span.end(window), window: Some(window), holds, values: Map::new() });
        }
    }
    seen.into_values().collect()
}

/// Collects what an evaluation changes.
#[derive(Debug)]
pub struct Recorder<'a> {
    /// The alert.
    pub alert: &'a Alert,
    /// The server's clock.
    pub now: Micros,
    /// So far.
    pub changes: Changes,
}

impl Recorder<'_> {
    /// A change of state, a message, or both.
    pub fn record(
        &mut self,
        key: &str,
        instance: &Instance,
        at: Micros,
        what: (Option<Transition>, Option<Kind>),
        told: Option<Map<String, Value>>,
    ) {
        let (transition, kind) = what;
        if let Some(Transition { from, to }) = transition {
            self.changes.history.push(Entry {
                alert: self.alert.oid,
                instance: instance.key.clone(),
                from,
                to,
                at,
                recorded_at: self.now,
                window: instance.window,
                values: instance.values.clone(),
                reason: instance.reason.clone(),
                silenced: is_silenced(self.alert, self.now),
            });
        }
        if let Some(kind) = kind {
            let message = Message {
                id: id(self.alert.oid, key, instance.serial),
                kind,
                alert: self.alert.name.clone(),
                instance: instance.key.clone(),
                at,
                window: instance.window,
                values: instance.values.clone(),
                told,
                reason: instance.reason.clone(),
            };
            self.changes.messages.extend(self.alert.channels.iter().map(|channel| (*channel, message.clone())));
        }
    }
}

/// The id of a message: the same when the same transition is made again after a crash.
fn id(alert: Oid, key: &str, serial: u64) -> String {
    let hash = xxhash_rust::xxh3::xxh3_128(format!("{alert}\n{serial}\n{key}").as_bytes());
    uuid::Builder::from_custom_bytes(hash.to_be_bytes()).into_uuid().to_string()
}

/// What is new of a window-driven alert. None where nothing is.
pub async fn on_close(
    parts: &Parts,
    alert: &Alert,
    compiled: &Compiled,
    book: &Book,
    closed: &Closings,
    (snapshot, cancel): (&Arc<Snapshot>, CancellationToken),
) -> Result<Option<Changes>> {
    let (Some((_, span)), Some(until)) = (compiled.window, closed.until(compiled)) else { return Ok(None) };
    let reach = Reach::new(compiled, &book.progress, &until, span);
    let deleted = closed.deleted_lsn;
    let changed = book.progress.begun && (book.progress.very_late, book.progress.deleted_lsn) != (closed.very_late, deleted);
    let fired = |instance: &Instance| instance.fired.as_ref().and_then(|fired| fired.window);
    let again: Vec<Micros> = match changed {
        true => book
            .instances
            .values()
            .filter(|instance| fired(instance).is_some())
            .flat_map(|instance| [fired(instance), instance.window])
            .flatten()
            .collect(),
        false => Vec::new(),
    };
    let oldest = reach.oldest().into_iter().chain(again.iter().copied()).min();
    if oldest.is_none() && book.progress.begun {
        // How far nothing was found is not worth a write of its own.
        return Ok(None);
    }
    let mut progress = reach.progress(&book.progress);
    (progress.very_late, progress.deleted_lsn) = (closed.very_late, deleted);
    let now = parts.clock.now();
    let mut recorder = Recorder { alert, now, changes: Changes::default() };
    if let Some(oldest) = oldest {
        let wanted = |partition: Option<&String>, window: Option<Micros>| {
            window.is_some_and(|window| again.contains(&window) || reach.has(partition.map(String::as_str), window))
        };
        let mut series = rows(parts, compiled, snapshot, (Arc::clone(&until), oldest), &wanted, cancel).await?;
        for (key, instance) in &book.instances {
            // Of a partition in which nothing has closed there is nothing to see.
            let range = reach.of(instance.partition.as_deref());
            if !series.contains_key(key) && (changed || range.is_some_and(|(from, to)| !span.ended(from, to, 1).is_empty())) {
                series.insert(key.clone(), (instance.key.clone(), instance.partition.clone(), BTreeMap::new()));
            }
        }
        recorder.changes.forgotten = make_room(parts, alert, book, &series)?;
        recorder.changes.forgotten.iter().for_each(|key| drop(series.remove(key)));
        for (key, (columns, partition, rows)) in series {
            let known = book.instances.get(&key);
            let mut instance =
                known.cloned().unwrap_or_else(|| Instance { key: columns, partition: partition.clone(), ..Instance::default() });
            if changed {
                undo(&mut recorder, &key, &mut instance, &rows, span);
            }
            let range = reach.of(partition.as_deref()).unwrap_or((0, 0));
            for seen in observations(compiled, span, range, &rows, known.is_some()) {
                let what = instance.observe(alert, &seen, now);
                recorder.record(&key, &instance, seen.at, what, None);
            }
            if known != Some(&instance) {
                recorder.changes.instances.insert(key, instance);
            }
        }
        progress.evaluated_at = Some(now);
        progress.evaluations += 1;
    }
    recorder.changes.progress = Some(progress);
    Ok(Some(recorder.changes))
}

/// Tells of what late rows or deletions have undone.
fn undo(recorder: &mut Recorder<'_>, key: &str, instance: &mut Instance, rows: &BTreeMap<Option<Micros>, Row>, span: Span) {
    let Some(fired) = instance.fired.clone().filter(|fired| fired.window.is_some()) else { return };
    let now_there = rows.get(&fired.window);
    // What fired for want of rows is undone by a row as well.
    if now_there.map_or(fired.values.is_empty(), |row| row.fires) {
        return;
    }
    let newest = rows.get(&instance.window).filter(|row| row.fires && row.window != fired.window);
    let still = newest.and_then(|row| {
        let window = row.window?;
        Some(Observation { at: span.end(window), window: Some(window), holds: Some(true), values: row.values.clone() })
    });
    let before = (instance.window, std::mem::take(&mut instance.values));
    let what = instance.correct(recorder.alert, still.as_ref(), fired.at, recorder.now);
    // The message shows the window that it is about.
    instance.window = fired.window;
    instance.values = now_there.map(|row| row.values.clone()).unwrap_or_default();
    recorder.record(key, instance, fired.at, what, Some(fired.values.clone()));
    if fired.window != before.0 {
        (instance.window, instance.values) = before;
    }
}

/// Of the newest deletion in an event table.
pub fn deletions(snapshot: &Snapshot, table: Oid) -> u64 {
    snapshot.tables.get(&table).map_or(0, |table| table.deleted_lsn.max(table.truncated_lsn))
}

/// What an alert with EVERY sees now.
pub async fn now(
    parts: &Parts,
    alert: &Alert,
    compiled: &Compiled,
    book: &Book,
    closed: Option<&Closings>,
    (snapshot, cancel): (&Arc<Snapshot>, CancellationToken),
) -> Result<Changes> {
    let now = parts.clock.now();
    let until = closed.and_then(|closed| closed.until(compiled)).unwrap_or_else(|| Arc::new(Until::never()));
    let newest = |partition: Option<&str>| {
        let closed = until.of(partition);
        compiled.window.and_then(|(_, span)| span.ended(i64::MIN, closed, 1).pop())
    };
    let oldest = match compiled.partition {
        Some(_) => until.each().filter_map(|(partition, _)| newest(partition)).min(),
        None => newest(None),
    };
    let wanted = |partition: Option<&String>, window: Option<Micros>| {
        compiled.window.is_none()
            || (window.is_some() && window == newest(partition.filter(|_| compiled.partition.is_some()).map(String::as_str)))
    };
    let mut series = rows(parts, compiled, snapshot, (Arc::clone(&until), oldest.unwrap_or(i64::MIN)), &wanted, cancel).await?;
    for (key, instance) in &book.instances {
        series.entry(key.clone()).or_insert_with(|| (instance.key.clone(), instance.partition.clone(), BTreeMap::new()));
    }
    let mut recorder = Recorder { alert, now, changes: Changes::default() };
    recorder.changes.forgotten = make_room(parts, alert, book, &series)?;
    recorder.changes.forgotten.iter().for_each(|key| drop(series.remove(key)));
    for (key, (columns, partition, rows)) in series {
        let known = book.instances.get(&key);
        let mut instance = known.cloned().unwrap_or_else(|| Instance { key: columns, partition, ..Instance::default() });
        let seen = match rows.into_values().next_back() {
            Some(row) => Observation { at: now, window: row.window, holds: Some(row.fires), values: row.values },
            None => Observation { at: now, window: None, holds: if compiled.flagged { None } else { Some(false) }, values: Map::new() },
        };
        let what = instance.observe(alert, &seen, now);
        recorder.record(&key, &instance, now, what, None);
        if known != Some(&instance) {
            recorder.changes.instances.insert(key, instance);
        }
    }
    let progress = Progress { begun: true, evaluated_at: Some(now), evaluations: book.progress.evaluations + 1, ..book.progress.clone() };
    recorder.changes.progress = Some(progress);
    Ok(recorder.changes)
}

/// Reminders, and what was not told while the alert was silent.
pub fn reminders(alert: &Alert, open: Vec<(String, Instance)>, now: Micros) -> Option<Changes> {
    let mut recorder = Recorder { alert, now, changes: Changes::default() };
    for (key, mut instance) in open {
        if let Some(kind) = instance.remind(alert, now) {
            recorder.record(&key, &instance, now, (None, Some(kind)), None);
            recorder.changes.instances.insert(key, instance);
        }
    }
    (!recorder.changes.instances.is_empty()).then_some(recorder.changes)
}

/// Makes room for new instances: of those that have no row now and of which nobody has to be told anything, the ones that were looked at
/// longest ago are forgotten. 53400 where that is not enough.
fn make_room(parts: &Parts, alert: &Alert, book: &Book, series: &Series) -> Result<Vec<String>> {
    let fresh = series.keys().filter(|key| !book.instances.contains_key(*key)).count();
    let most = parts.limits.instances_max;
    let over = (book.instances.len() + fresh).saturating_sub(most);
    if over == 0 {
        return Ok(Vec::new());
    }
    let has_rows = |key: &String| series.get(key).is_some_and(|(_, _, rows)| !rows.is_empty());
    // Where silence is what is watched for, a series without rows is not one that has ended.
    let calm = |instance: &Instance| {
        alert.no_data != NoData::Alert && matches!(instance.phase, Phase::Ok | Phase::Resolved) && !instance.is_open()
    };
    let mut old: Vec<_> = book.instances.iter().filter(|(key, instance)| calm(instance) && !has_rows(key)).collect();
    if old.len() < over {
        parts.metrics.limit_hit("limits.alert.instances_max");
        return Err(Error::new(SqlState::CONFIGURATION_LIMIT_EXCEEDED, "the alert has too many instances")
            .detail(format!("An alert can have {most} that have rows or fire; rows are told apart by the columns that are no measures.")));
    }
    old.sort_by_key(|(_, instance)| (instance.window, instance.since));
    Ok(old.into_iter().take(over).map(|(key, _)| key.clone()).collect())
}
