//! Schema `verus`: what an operator wants to know.

use datafusion::common::ScalarValue;

use super::objects::{self, cold};
use super::rows::{Rows, Value};
use super::{LogRow, SessionRow, World};
use crate::catalog::{Table, TableKind, View};
use crate::clock::Micros;

/// Fills a relation of `verus`.
pub fn fill(name: &str, world: &World, rows: &mut Rows) {
    match name {
        "tables" => tables(world, rows),
        "views" => views(world, rows),
        "watermarks" => watermarks(world, rows),
        "files" => files(world, rows),
        "late_events" => late_events(world, rows),
        "ingest_tokens" => ingest_tokens(world, rows),
        "sessions" => sessions(world, rows),
        "query_log" => query_log(world, rows),
        "jobs" => jobs(world, rows),
        "metrics" => metrics(&world.activity.metrics(), rows),
        _ => {}
    }
}

fn tables(world: &World, rows: &mut Rows) {
    for table in world.context.snapshot.catalog.tables() {
        let name = |column: usize| table.columns.get(column).map(|column| column.name.as_str());
        let (memory_rows, file_rows) = world.row_counts(table.oid);
        let (memory_bytes, file_bytes) = world.byte_counts(table.oid);
        let version = world.context.snapshot.tables.get(&table.oid).and_then(|state| cold(state));
        let watermark = world.activity.watermark(table.oid);
        let kind = match table.kind {
            TableKind::Event => "event",
            TableKind::Late => "late",
            TableKind::Plain => "plain",
        };
        rows.add([
            ("table_name", table.name.as_str().into()),
            ("kind", kind.into()),
            ("oid", table.oid.into()),
            ("partition_by", table.options.partition_by.and_then(name).into()),
            ("event_time", table.watermark.and_then(|watermark| name(watermark.column)).into()),
            ("lateness", table.watermark.map_or(Value::Null, |watermark| Value::Span(watermark.lateness_us))),
            ("watermark_min", watermark.map_or(Value::Null, |watermark| Value::Time(watermark.least))),
            ("watermark_max", watermark.map_or(Value::Null, |watermark| Value::Time(watermark.greatest))),
            ("partitions", watermark.map(|watermark| watermark.partitions).into()),
            ("idle_timeout", table.options.idle_timeout_us.map_or(Value::Null, Value::Span)),
            ("idle_partitions", watermark.map(|watermark| watermark.idle).into()),
            ("closed_until", watermark.map_or(Value::Null, |watermark| Value::Time(watermark.closed_until))),
            ("late", watermark.map(|watermark| watermark.lateness.late).into()),
            ("very_late", watermark.map(|watermark| watermark.lateness.diverted + watermark.lateness.applied).into()),
            ("dedup_key", table.options.dedup_key.and_then(name).into()),
            ("dedup_window", table.options.dedup_key.map_or(Value::Null, |_| Value::Span(table.options.dedup_window_us))),
            ("max_future", Value::Span(table.options.max_future_us)),
            ("retention", table.options.retention_us.map_or(Value::Null, Value::Span)),
            ("late_rows", objects::late_rows(table).into()),
            ("compression", objects::compression(table).into()),
            ("rows", (memory_rows + file_rows).into()),
            ("hot_rows", memory_rows.into()),
            ("hot_bytes", memory_bytes.into()),
            ("files", version.map_or(0, |version| version.files.len()).into()),
            ("file_rows", file_rows.into()),
            ("file_bytes", file_bytes.into()),
            ("flushed_lsn", version.map_or(0, |version| version.flushed_lsn).into()),
            ("version", version.map_or(0, |version| version.version).into()),
        ]);
    }
}

fn watermarks(world: &World, rows: &mut Rows) {
    for table in world.context.snapshot.catalog.tables().filter(|table| table.watermark.is_some()) {
        let mut partitions = world.activity.partitions(table.oid);
        partitions.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        for partition in partitions {
            rows.add([
                ("table_name", table.name.as_str().into()),
                ("partition", partition.key.map(String::from).into()),
                ("newest_event_time", Value::Time(partition.newest)),
                ("watermark", Value::Time(partition.watermark)),
                ("last_row_at", Value::Time(partition.heard)),
                ("idle", partition.idle.into()),
                ("closed_until", Value::Time(partition.closed_until)),
            ]);
        }
    }
}

fn views(world: &World, rows: &mut Rows) {
    let snapshot = &world.context.snapshot;
    for view in snapshot.catalog.views() {
        let table = event_table(world, view);
        let recomputed = snapshot.recomputed.get(&view.oid);
        let result = recomputed.and_then(|recomputed| recomputed.result.as_ref());
        let maintenance = if view.is_incremental() { "incremental" } else { "refreshed" };
        let interval = view.refresh_us.unwrap_or_else(|| world.activity.refresh_interval_us());
        let watermark = world.activity.watermark(view.table);
        let version = snapshot.views.get(&view.oid);
        let size = version.map(|version| version.size()).unwrap_or_default();
        let work = version.map(|version| version.work()).unwrap_or_default();
        let closed_until = watermark.map(|watermark| watermark.closed_until);
        let coverage = version.map(|version| version.coverage()).unwrap_or_default();
        let evicted = coverage.evicted;
        rows.add([
            ("view_name", view.name.as_str().into()),
            ("table_name", table.into()),
            ("oid", view.oid.into()),
            ("ready", view.ready.into()),
            ("maintenance", maintenance.into()),
            ("maintenance_reason", reason(view, recomputed.is_some_and(|recomputed| recomputed.local.is_some())).into()),
            ("refreshed_at", result.map_or(Value::Null, |result| Value::Time(result.position.refreshed_at))),
            ("refresh_interval", if view.is_incremental() { Value::Null } else { Value::Span(interval) }),
            ("refresh_duration", result.map_or(Value::Null, |result| Value::Span(result.position.took_us))),
            ("refresh_error", world.activity.refresh_failure(view.oid).into()),
            ("watermark_min", watermark.map_or(Value::Null, |watermark| Value::Time(watermark.least))),
            ("watermark_max", watermark.map_or(Value::Null, |watermark| Value::Time(watermark.greatest))),
            ("watermark", closed_until.map_or(Value::Null, Value::Time)),
            ("lag", closed_until.map_or(Value::Null, |closed| Value::Span(world.activity.now().saturating_sub(closed)))),
            ("rows_applied", work.rows.into()),
            ("late", watermark.map_or(0, |watermark| watermark.lateness.late).into()),
            ("very_late", watermark.map_or(0, |watermark| watermark.lateness.diverted + watermark.lateness.applied).into()),
            ("cost", Value::Span(i64::try_from(work.cpu_ns / 1_000).unwrap_or(i64::MAX))),
            ("snapshot_lsn", result.map_or(snapshot.next_lsn, |result| result.position.lsn).into()),
            ("checkpointed_lsn", version.map(|version| version.applied_lsn()).into()),
            ("state_rows", result.map_or(size.block_rows, |result| result.rows()).into()),
            ("state_bytes", result.map_or(size.block_bytes, |result| result.bytes()).into()),
            ("memory_rows", size.delta_rows.into()),
            ("memory_bytes", size.delta_bytes.into()),
            ("groups", result.map_or(size.block_rows + size.delta_rows, |result| result.rows()).into()),
            ("deltas", size.deltas.into()),
            ("blocks", result.map_or(size.blocks, |result| result.blocks()).into()),
            ("ttl", view.ttl_us.map_or(Value::Null, Value::Span)),
            (
                "evicted_from",
                evicted.filter(|evicted| evicted.from_us != i64::MIN).map_or(Value::Null, |evicted| Value::Time(evicted.from_us)),
            ),
            ("evicted_to", evicted.map_or(Value::Null, |evicted| Value::Time(evicted.to_us))),
            ("since_lsn", view.from_lsn.into()),
            ("routing", routing(version.map(|version| &*version.spec)).into()),
            ("definition", view.query.as_str().into()),
        ]);
    }
}

/// Why a view is not kept by aggregate state, and what is recomputed of it.
fn reason(view: &View, by_window: bool) -> Option<String> {
    let which = if by_window { ", only the windows that got rows" } else { "" };
    view.reason.as_ref().map(|reason| format!("{reason}{which}"))
}

/// The event table below a view, through other views; of a refreshed view over several sources, the first one's name.
fn event_table<'a>(world: &'a World, view: &View) -> Option<&'a str> {
    let catalog = &world.context.snapshot.catalog;
    let mut open: Vec<_> = view.sources.iter().rev().map(|source| source.oid).chain([view.table]).collect();
    while let Some(oid) = open.pop() {
        if let Some(table) = catalog.table(oid) {
            return Some(table.name.as_str());
        }
        if let Some(lower) = catalog.view(oid) {
            open.extend(lower.sources.iter().rev().map(|source| source.oid).chain([lower.table]));
        }
    }
    None
}

/// Whether queries of the table are answered from a view: `on`, or why not.
fn routing(spec: Option<&crate::view::Spec>) -> String {
    match spec {
        Some(spec) if spec.matching().is_none() => "off: views of its shape are not routed to".to_owned(),
        Some(spec) => spec.distrusted().map_or_else(|| "on".to_owned(), |reason| format!("off: {reason}")),
        None => "off".to_owned(),
    }
}

fn files(world: &World, rows: &mut Rows) {
    for (oid, state) in &world.context.snapshot.tables {
        let Some(table) = world.context.snapshot.catalog.table(*oid) else { continue };
        for file in cold(state).map(|version| version.files.iter()).into_iter().flatten() {
            let times = event_times(table, file);
            rows.add([
                ("table_name", table.name.as_str().into()),
                ("path", file.path.as_str().into()),
                ("rows", file.rows.into()),
                ("bytes", file.bytes.into()),
                ("min_lsn", file.lsn_range.0.into()),
                ("max_lsn", file.lsn_range.1.into()),
                ("min_event_time", times.0),
                ("max_event_time", times.1),
                ("checksum", format!("{:016x}", file.checksum).into()),
            ]);
        }
    }
}

fn event_times(table: &Table, file: &crate::columnar::DataFile) -> (Value, Value) {
    let time = |value: &ScalarValue| match value {
        ScalarValue::TimestampMicrosecond(Some(micros), _) => Value::Time(*micros),
        _ => Value::Null,
    };
    let stats = table.watermark.and_then(|watermark| file.stats.get(watermark.column)).and_then(Option::as_ref);
    stats.map_or((Value::Null, Value::Null), |stats| (time(&stats.min), time(&stats.max)))
}

fn late_events(world: &World, rows: &mut Rows) {
    for table in world.context.snapshot.catalog.tables() {
        let Some(late) = table.late_oid.and_then(|oid| world.context.snapshot.catalog.table(oid)) else { continue };
        let (memory, files) = world.row_counts(late.oid);
        rows.add([
            ("table_name", table.name.as_str().into()),
            ("late_table", late.name.as_str().into()),
            ("rows", (memory + files).into()),
            ("hot_rows", memory.into()),
            ("file_rows", files.into()),
        ]);
    }
}

/// Without their hashes.
fn ingest_tokens(world: &World, rows: &mut Rows) {
    for token in world.context.snapshot.catalog.tokens() {
        rows.add([
            ("name", token.name.as_str().into()),
            ("store", token.store.as_deref().into()),
            ("created_at", Value::Time(token.created_at)),
        ]);
    }
}

/// Who a session is of.
fn client(session: &SessionRow) -> [(&'static str, Value); 6] {
    [
        ("pid", session.backend.into()),
        ("user_name", session.user.as_str().into()),
        ("database_name", session.database.as_str().into()),
        ("application_name", session.application.as_str().into()),
        ("client_addr", session.client.map(|client| client.ip().to_string()).into()),
        ("client_port", session.client.map(|client| i64::from(client.port())).into()),
    ]
}

fn sessions(world: &World, rows: &mut Rows) {
    let time = |time: Option<Micros>| time.map_or(Value::Null, Value::Time);
    for session in world.activity.sessions() {
        rows.add(client(&session).into_iter().chain([
            ("backend_start", Value::Time(session.connected)),
            ("transaction_start", time(session.transaction_start)),
            ("query_start", time(session.query_start)),
            ("state", session.state.into()),
            ("query", session.query.as_ref().into()),
        ]));
    }
}

fn query_log(world: &World, rows: &mut Rows) {
    for LogRow { session, took_us, outcome } in world.activity.query_log() {
        let (command, count) = match &outcome {
            Ok(tag) => {
                let words: Vec<_> = tag.split(' ').collect();
                let count = words.last().and_then(|word| word.parse::<i64>().ok());
                // `INSERT 0 5` names an OID that nothing has.
                let named = words.iter().take_while(|word| word.parse::<i64>().is_err()).copied().collect::<Vec<_>>();
                (Some(named.join(" ")), count)
            }
            Err(_) => (None, None),
        };
        let error = outcome.err();
        rows.add(client(&session).into_iter().chain([
            ("started_at", session.query_start.map_or(Value::Null, Value::Time)),
            ("duration", Value::Span(took_us)),
            ("state", if error.is_some() { "failed" } else { "finished" }.into()),
            ("command", command.into()),
            ("rows", count.into()),
            ("sqlstate", error.as_ref().map(|(state, _)| state.clone()).into()),
            ("error", error.map(|(_, message)| message).into()),
            ("query", session.query.as_ref().into()),
        ]));
    }
}

/// Work under way as the snapshot shows it: views that are being built, and how many rows they are built from.
fn jobs(world: &World, rows: &mut Rows) {
    for view in world.context.snapshot.catalog.views().filter(|view| !view.ready) {
        job(world, view, rows);
    }
    for view in world.context.snapshot.catalog.views().filter(|view| view.ready) {
        if world.activity.backfill(view.oid).is_some() {
            job(world, view, rows);
        }
    }
}

fn job(world: &World, view: &View, rows: &mut Rows) {
    let progress = world.activity.backfill(view.oid);
    let (memory, files) = world.row_counts(view.table);
    rows.add([
        ("kind", if view.is_incremental() { "backfill" } else { "refresh" }.into()),
        ("object_name", view.name.as_str().into()),
        ("state", "running".into()),
        ("rows", progress.map_or(memory + files, |progress| progress.total).into()),
        ("rows_done", progress.map(|progress| progress.done.min(progress.total)).into()),
        ("started_at", progress.map_or(Value::Null, |progress| Value::Time(progress.started_at))),
    ]);
}

/// One row a sample of Prometheus's text format: `name{labels} value`, after its `# HELP`, `# TYPE` and `# UNIT`.
fn metrics(text: &str, rows: &mut Rows) {
    let (mut help, mut kind, mut unit) = ("", "", "");
    let mut family = "";
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (what, name, value) = (words.next().unwrap_or(""), words.next().unwrap_or(""), words.next().unwrap_or(""));
            if name != family {
                (family, help, kind, unit) = (name, "", "", "");
            }
            match what {
                "HELP" => help = value,
                "TYPE" => kind = value,
                "UNIT" => unit = value,
                _ => {}
            }
            continue;
        }
        let Some((sample, value)) = line.rsplit_once(' ') else { continue };
        let Ok(value) = value.parse::<f64>() else { continue };
        let (name, labels) = sample.split_once('{').map_or((sample, ""), |(name, labels)| (name, labels.trim_end_matches('}')));
        rows.add([
            ("name", name.into()),
            ("labels", labels.into()),
            ("unit", unit.into()),
            ("kind", kind.into()),
            ("value", Value::Float(value)),
            ("help", help.into()),
        ]);
    }
}
