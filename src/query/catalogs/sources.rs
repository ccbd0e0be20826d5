//! Schema `verus`: sources and their partitions. Offsets and counts are those of the query's snapshot, like the rows; what only the brokers
//! know is as of their last answer.

use serde_json::Value as Json;

use super::World;
use super::rows::{Rows, Value};
use crate::catalog::EventSource;
use crate::clock::Micros;
use crate::store::progress::Position;

/// What is known of a source beside its definition and its offsets.
#[derive(Clone, Debug, Default)]
pub struct SourceRow {
    /// The last attempt failed, and the next one follows.
    pub failed: bool,
    /// Why it failed last, or what it waited for.
    pub error: Option<(String, Micros)>,
    /// When it tries again.
    pub retry_at: Option<Micros>,
    /// By number.
    pub partitions: Vec<PartitionRow>,
}

/// A partition, as its broker told last.
#[derive(Clone, Debug, Default)]
pub struct PartitionRow {
    /// Its number.
    pub partition: i32,
    /// The broker that leads it.
    pub leader: String,
    /// One past its last message.
    pub high_watermark: Option<i64>,
    /// Its first message.
    pub log_start: Option<i64>,
}

/// Fills a relation of `verus`; false where it is none of these.
pub fn fill(name: &str, world: &World, rows: &mut Rows) -> bool {
    let add = match name {
        "sources" => add_source,
        "source_partitions" => add_partitions,
        _ => return false,
    };
    world.context.snapshot.catalog.sources().for_each(|source| add(world, source, rows));
    true
}

/// A partition that is known, and where it is.
type Known = (PartitionRow, Option<Position>);

/// All of a source, by number.
fn partitions(world: &World, source: &EventSource, known: &SourceRow) -> Vec<Known> {
    let positions = world.context.snapshot.sources.get(&source.oid);
    let mut all: Vec<Known> = known.partitions.iter().map(|row| (row.clone(), None)).collect();
    for (partition, position) in positions.into_iter().flatten() {
        match all.iter_mut().find(|(row, _)| row.partition == *partition) {
            Some((_, found)) => *found = Some(*position),
            None => all.push((PartitionRow { partition: *partition, ..PartitionRow::default() }, Some(*position))),
        }
    }
    all.sort_unstable_by_key(|(row, _)| row.partition);
    all
}

/// Messages that are on the broker and not committed here.
fn lag(row: &PartitionRow, position: Option<&Position>) -> Option<i64> {
    Some((row.high_watermark? - position?.offset).max(0))
}

fn add_source(world: &World, source: &EventSource, rows: &mut Rows) {
    let known = world.activity.source(source.oid);
    let partitions = partitions(world, source, &known);
    let option = |key: &str| source.shown.get(key).map(String::as_str);
    let options = source.shown.iter().map(|(key, value)| (key.clone(), Json::String(value.clone()))).collect();
    let sum = |of: &dyn Fn(&Position) -> u64| partitions.iter().filter_map(|(_, position)| position.as_ref()).map(of).sum::<u64>();
    // Of all partitions or of none: half a sum would look like an answer.
    let every = |of: &dyn Fn(&Known) -> Option<i64>| {
        let all: Option<Vec<i64>> = partitions.iter().map(of).collect();
        all.filter(|all| !all.is_empty()).map(|all| all.iter().sum::<i64>())
    };
    let last = partitions.iter().filter_map(|(_, position)| position.map(|position| position.at)).max();
    let state = match (source.paused, known.failed) {
        (true, _) => "paused",
        (false, true) => "failed",
        (false, false) => "running",
    };
    let (error, error_at) = known.error.clone().unzip();
    let time = |time: Option<Micros>| time.map_or(Value::Null, Value::Time);
    rows.add([
        ("source_name", source.name.as_str().into()),
        ("oid", source.oid.into()),
        ("table_name", world.context.snapshot.catalog.table(source.table).map(|table| table.name.as_str()).into()),
        ("topic", option("topic").into()),
        ("brokers", option("brokers").into()),
        ("format", option("format").unwrap_or("json").into()),
        ("state", state.into()),
        ("partitions", partitions.len().into()),
        ("next_offset", every(&|(_, position)| position.map(|position| position.offset)).into()),
        ("high_watermark", every(&|(row, _)| row.high_watermark).into()),
        ("lag", every(&|(row, position)| lag(row, position.as_ref())).into()),
        ("accepted", sum(&|position| position.accepted).into()),
        ("late", sum(&|position| position.late).into()),
        ("duplicates", sum(&|position| position.duplicates).into()),
        ("rejected", sum(&|position| position.rejected).into()),
        ("tombstones", sum(&|position| position.tombstones).into()),
        ("lost", sum(&|position| position.lost).into()),
        ("last_commit_at", time(last)),
        ("last_error", error.into()),
        ("last_error_at", time(error_at)),
        ("retry_at", time(known.retry_at.filter(|_| !source.paused))),
        ("options", super::alerts::object(&options)),
    ]);
}

fn add_partitions(world: &World, source: &EventSource, rows: &mut Rows) {
    let known = world.activity.source(source.oid);
    for (row, position) in partitions(world, source, &known) {
        let count = |of: &dyn Fn(&Position) -> u64| position.as_ref().map(of);
        rows.add([
            ("source_name", source.name.as_str().into()),
            ("partition", row.partition.into()),
            ("leader", Some(row.leader.clone()).filter(|leader| !leader.is_empty()).into()),
            ("log_start", row.log_start.into()),
            ("next_offset", position.map(|position| position.offset).into()),
            ("high_watermark", row.high_watermark.into()),
            ("lag", lag(&row, position.as_ref()).into()),
            ("accepted", count(&|position| position.accepted).into()),
            ("late", count(&|position| position.late).into()),
            ("duplicates", count(&|position| position.duplicates).into()),
            ("rejected", count(&|position| position.rejected).into()),
            ("tombstones", count(&|position| position.tombstones).into()),
            ("lost", count(&|position| position.lost).into()),
            ("last_commit_at", position.map_or(Value::Null, |position| Value::Time(position.at))),
        ]);
    }
}
