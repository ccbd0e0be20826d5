//! Schema `verus`: alerts, their instances and history, notifications and their channels.

use serde_json::{Map, Value as Json};

use super::World;
use super::rows::{Rows, Value};
use crate::catalog::{Alert, Oid};
use crate::clock::Micros;
use crate::error::Result;
use crate::types::text::json::normalize_jsonb;

/// What is known of an alert beside its definition.
#[derive(Clone, Debug, Default)]
pub struct AlertRow {
    /// Its series.
    pub instances: Vec<InstanceRow>,
    /// Evaluations so far.
    pub evaluations: u64,
    /// When the last one was.
    pub evaluated_at: Option<Micros>,
    /// When the next one is due, with EVERY.
    pub due_at: Option<Micros>,
    /// Windows that end at or before this were looked at.
    pub evaluated_until: Option<Micros>,
    /// How long the last evaluation took, microseconds.
    pub took_us: Micros,
    /// Why it failed.
    pub failure: Option<String>,
}

/// A series of an alert.
#[derive(Clone, Debug)]
pub struct InstanceRow {
    /// The columns that tell it from others.
    pub key: Map<String, Json>,
    /// `ok`, `pending`, `firing`, `resolved`.
    pub state: &'static str,
    /// Since when; 0 for always.
    pub since: Micros,
    /// Since when the condition holds.
    pub pending_since: Option<Micros>,
    /// When it fired last.
    pub fired_at: Option<Micros>,
    /// When it was resolved last.
    pub resolved_at: Option<Micros>,
    /// The window looked at last.
    pub window: Option<Micros>,
    /// The row looked at last.
    pub values: Map<String, Json>,
    /// Why, where the row does not say.
    pub reason: Option<String>,
    /// When somebody was told last.
    pub told_at: Option<Micros>,
    /// How often.
    pub notifications: u64,
}

/// A change of state.
#[derive(Clone, Debug)]
pub struct HistoryRow {
    /// The alert.
    pub alert: Oid,
    /// The columns that tell the instance from others.
    pub instance: Map<String, Json>,
    /// From this state.
    pub from: &'static str,
    /// To this one.
    pub to: &'static str,
    /// The end of the window, or the time of the evaluation.
    pub at: Micros,
    /// The start of the window.
    pub window: Option<Micros>,
    /// The row.
    pub values: Map<String, Json>,
    /// Why, where the row does not say.
    pub reason: Option<String>,
    /// Nobody was told.
    pub silenced: bool,
    /// When it was written.
    pub recorded_at: Micros,
}

/// A message to a channel.
#[derive(Clone, Debug)]
pub struct NotificationRow {
    /// The same whenever it is sent again.
    pub id: String,
    /// The alert's name; empty for a test.
    pub alert: String,
    /// The channel.
    pub channel: Oid,
    /// `firing`, `reminder`, `resolved`, `correction`, `test`.
    pub kind: &'static str,
    /// The columns that tell the instance from others.
    pub instance: Map<String, Json>,
    /// `pending`, `delivered`, `dead`.
    pub state: &'static str,
    /// Attempts so far.
    pub attempts: u32,
    /// When it was made.
    pub created_at: Micros,
    /// When it is tried next, while it waits.
    pub due_at: Option<Micros>,
    /// When it was delivered or given up.
    pub done_at: Option<Micros>,
    /// Why the last attempt failed.
    pub failure: Option<String>,
    /// All of it.
    pub message: Json,
}

/// Fills a relation of `verus`; false where it is none of these.
pub fn fill(name: &str, world: &World, rows: &mut Rows) -> Result<bool> {
    match name {
        "alerts" => world.context.snapshot.catalog.alerts().for_each(|alert| add_alert(world, alert, rows)),
        "alert_instances" => instances(world, rows),
        "alert_history" => history(world, rows)?,
        "notifications" => notifications(world, rows),
        "notification_channels" => channels(world, rows),
        _ => return Ok(false),
    }
    Ok(true)
}

fn time(at: Option<Micros>) -> Value {
    at.map_or(Value::Null, Value::Time)
}

fn span(us: Option<Micros>) -> Value {
    us.map_or(Value::Null, Value::Span)
}

pub(super) fn object(columns: &Map<String, Json>) -> Value {
    Value::Text(jsonb(columns))
}

/// Columns as jsonb shows them.
pub fn jsonb(columns: &Map<String, Json>) -> String {
    let text = serde_json::to_string(columns).unwrap_or_default();
    let mut shown = String::with_capacity(text.len());
    match normalize_jsonb(&text, &mut shown) {
        Ok(()) => shown,
        Err(_) => text,
    }
}

fn add_alert(world: &World, alert: &Alert, rows: &mut Rows) {
    let catalog = &world.context.snapshot.catalog;
    let known = world.activity.alert(alert);
    let count = |state: &str| known.instances.iter().filter(|instance| instance.state == state).count();
    let (pending, firing) = (count("pending"), count("firing"));
    let state = match (alert.enabled, firing, pending) {
        (false, ..) => "disabled",
        (true, 1.., _) => "firing",
        (true, 0, 1..) => "pending",
        (true, 0, 0) => "ok",
    };
    let channels = alert.channels.iter().filter_map(|oid| catalog.channel(*oid)).map(|channel| channel.name.as_str().into());
    rows.add([
        ("alert_name", alert.name.as_str().into()),
        ("oid", alert.oid.into()),
        ("enabled", alert.enabled.into()),
        ("state", state.into()),
        ("every", span(alert.every_us)),
        ("hold", span(Some(alert.for_us).filter(|us| *us > 0))),
        ("repeat_every", span(alert.repeat_us)),
        ("no_data", alert.no_data.name().to_lowercase().into()),
        ("channels", Value::List(channels.collect())),
        ("silenced_until", time(alert.silenced_until.filter(|until| *until > world.activity.now()))),
        ("instances", known.instances.len().into()),
        ("pending", pending.into()),
        ("firing", firing.into()),
        ("evaluations", known.evaluations.into()),
        ("last_evaluated_at", time(known.evaluated_at)),
        ("next_evaluation_at", time(known.due_at)),
        ("evaluated_until", time(known.evaluated_until)),
        ("last_duration", span(known.evaluated_at.map(|_| known.took_us))),
        ("last_error", known.failure.into()),
        ("definition", alert.query.as_str().into()),
    ]);
}

fn instances(world: &World, rows: &mut Rows) {
    for alert in world.context.snapshot.catalog.alerts() {
        for instance in world.activity.alert(alert).instances {
            rows.add([
                ("alert_name", alert.name.as_str().into()),
                ("instance", object(&instance.key)),
                ("state", instance.state.into()),
                ("since", time(Some(instance.since).filter(|since| *since != 0))),
                ("pending_since", time(instance.pending_since)),
                ("fired_at", time(instance.fired_at)),
                ("resolved_at", time(instance.resolved_at)),
                ("window_start", time(instance.window)),
                ("data", object(&instance.values)),
                ("reason", instance.reason.into()),
                ("told_at", time(instance.told_at)),
                ("notifications", instance.notifications.into()),
            ]);
        }
    }
}

fn history(world: &World, rows: &mut Rows) -> Result<()> {
    for entry in world.activity.alert_history()? {
        rows.add([
            ("alert_name", world.context.snapshot.catalog.alert(entry.alert).map(|alert| alert.name.as_str()).into()),
            ("instance", object(&entry.instance)),
            ("from_state", entry.from.into()),
            ("to_state", entry.to.into()),
            ("at", Value::Time(entry.at)),
            ("window_start", time(entry.window)),
            ("data", object(&entry.values)),
            ("reason", entry.reason.into()),
            ("silenced", entry.silenced.into()),
            ("recorded_at", Value::Time(entry.recorded_at)),
        ]);
    }
    Ok(())
}

fn notifications(world: &World, rows: &mut Rows) {
    for row in world.activity.notifications() {
        rows.add([
            ("id", row.id.into()),
            ("alert_name", Some(row.alert).filter(|name| !name.is_empty()).into()),
            ("channel_name", world.context.snapshot.catalog.channel(row.channel).map(|channel| channel.name.as_str()).into()),
            ("kind", row.kind.into()),
            ("instance", object(&row.instance)),
            ("state", row.state.into()),
            ("attempts", Value::Int(row.attempts.into())),
            ("created_at", Value::Time(row.created_at)),
            ("next_attempt_at", time(row.due_at)),
            ("done_at", time(row.done_at)),
            ("last_error", row.failure.into()),
            ("message", row.message.as_object().map_or(Value::Null, object)),
        ]);
    }
}

fn channels(world: &World, rows: &mut Rows) {
    let waiting = world.activity.notifications();
    for channel in world.context.snapshot.catalog.channels() {
        let options = channel.shown.iter().map(|(key, value)| (key.clone(), Json::String(value.clone()))).collect();
        rows.add([
            ("channel_name", channel.name.as_str().into()),
            ("oid", channel.oid.into()),
            ("type", channel.kind.name().into()),
            ("options", object(&options)),
            ("waiting", waiting.iter().filter(|row| row.channel == channel.oid && row.state == "pending").count().into()),
        ]);
    }
}
