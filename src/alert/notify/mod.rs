//! Channels: one file each. A message goes out over one of them, or fails with the reason.
//!
//! *Place*: `outbox` sends over them, `command` checks the options of new ones.
//!
//! A new kind: a file here with its options and its `send`, an arm in [`check`] and in [`send`], a variant of `catalog::ChannelKind`.

mod email;
pub mod guard;
mod http;
mod listen;
mod slack;
mod webhook;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::lifecycle::Kind;
use crate::bus::Bus;
use crate::catalog::ChannelKind;
use crate::catalog::vault::Options;
use crate::clock::Micros;
use crate::error::{Error, Result, SqlState};
use guard::Guard;

/// Per channel and minute, unless its option says otherwise.
const PER_MINUTE_DEFAULT: u32 = 60;

/// What all channels know.
const RATE: &str = "messages_per_minute";

/// What somebody is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// The same whenever it is sent again.
    pub id: String,
    /// What it is about.
    pub kind: Kind,
    /// The alert; empty for a test.
    pub alert: String,
    /// The columns that tell the instance from others.
    pub instance: Map<String, Value>,
    /// The end of the window, or the time of the evaluation.
    pub at: Micros,
    /// The start of the window.
    pub window: Option<Micros>,
    /// The row.
    pub values: Map<String, Value>,
    /// Of a correction: the row that had been told.
    pub told: Option<Map<String, Value>>,
    /// Why, where the row does not say.
    pub reason: Option<String>,
}

impl Message {
    /// As JSON: what webhooks and listeners get.
    pub fn json(&self) -> Value {
        let mut object = json!({
            "id": self.id,
            "kind": self.kind.name(),
            "alert": self.alert,
            "instance": self.instance,
            "at": shown(self.at),
            "values": self.values,
        });
        if let Value::Object(fields) = &mut object {
            fields.extend(self.window.map(|window| ("window_start".to_owned(), json!(shown(window)))));
            fields.extend(self.told.as_ref().map(|told| ("told".to_owned(), json!(told))));
            fields.extend(self.reason.as_ref().map(|reason| ("reason".to_owned(), json!(reason))));
        }
        object
    }

    /// In one line: `order_drop fires: store_id = s1`.
    pub fn title(&self) -> String {
        let what = match self.kind {
            Kind::Firing => "fires",
            Kind::Reminder => "still fires",
            Kind::Resolved => "is resolved",
            Kind::Correction => "is corrected: late rows undid what was told",
            Kind::Test => return "Verus: a test of this notification channel".to_owned(),
        };
        let instance = pairs(&self.instance);
        let (colon, instance) = if instance.is_empty() { ("", String::new()) } else { (": ", instance.join(", ")) };
        format!("{} {what}{colon}{instance}", self.alert)
    }

    /// The row and what belongs to it, a line each.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = pairs(&self.values);
        lines.extend(self.told.iter().map(|told| format!("told before: {}", pairs(told).join(", "))));
        lines.extend(self.window.map(|window| format!("window of {}", shown(window))));
        lines.extend(self.reason.clone());
        lines
    }
}

fn pairs(columns: &Map<String, Value>) -> Vec<String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    columns.iter().map(|(name, value)| format!("{name} = {}", text(value))).collect()
}

/// A time in ISO 8601.
pub fn shown(at: Micros) -> String {
    chrono::DateTime::from_timestamp_micros(at).map_or_else(String::new, |at| at.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true))
}

/// What is needed to send.
#[derive(Clone, Debug)]
pub struct Tools {
    /// Which addresses may be called.
    pub guard: Arc<Guard>,
    /// NOTIFY.
    pub bus: Arc<Bus>,
}

/// The options of a kind of channel: those that must be given, and the others.
fn known(kind: ChannelKind) -> (&'static [&'static str], &'static [&'static str]) {
    match kind {
        ChannelKind::Webhook => (&["url"], &["secret"]),
        ChannelKind::Slack => (&["url"], &[]),
        ChannelKind::Email => (&["smtp", "to"], &["from"]),
        ChannelKind::Notify => (&["channel"], &[]),
    }
}

/// Checks the options of a new channel: what may be shown of them. 22023 for an unknown one, a missing one, or a bad value, which is
/// not repeated.
pub fn check(kind: ChannelKind, options: &Options) -> Result<BTreeMap<String, String>> {
    let (needed, others) = known(kind);
    let all = || needed.iter().chain(others).copied().chain([RATE]);
    if let Some(key) = options.keys().find(|key| !all().any(|known| known == key.as_str())) {
        return Err(invalid(format!("unrecognized option \"{key}\"")).hint(format!("Known are {}.", all().collect::<Vec<_>>().join(", "))));
    }
    if let Some(missing) = needed.iter().find(|key| options.get(**key).is_none_or(String::is_empty)) {
        return Err(invalid(format!("option \"{missing}\" is missing")).detail(format!(
            "{} {} channel needs it.",
            if kind == ChannelKind::Email { "An" } else { "A" },
            kind.name()
        )));
    }
    per_minute(options)?;
    let mut shown = match kind {
        ChannelKind::Webhook => webhook::check(options)?,
        ChannelKind::Slack => slack::check(options)?,
        ChannelKind::Email => email::check(options)?,
        ChannelKind::Notify => listen::check(options)?,
    };
    shown.extend(options.get(RATE).map(|rate| (RATE.to_owned(), rate.clone())));
    Ok(shown)
}

/// How many messages a minute a channel takes.
pub fn per_minute(options: &Options) -> Result<u32> {
    let Some(rate) = options.get(RATE) else { return Ok(PER_MINUTE_DEFAULT) };
    let rate = rate.parse().ok().filter(|rate| (1..=60_000).contains(rate));
    rate.ok_or_else(|| invalid(format!("invalid value for option \"{RATE}\"")).detail("It is a number from 1 to 60000."))
}

/// Sends a message.
pub async fn send(kind: ChannelKind, options: &Options, message: &Message, tools: &Tools) -> Result<()> {
    match kind {
        ChannelKind::Webhook => webhook::send(options, message, &tools.guard).await,
        ChannelKind::Slack => slack::send(options, message, &tools.guard).await,
        ChannelKind::Email => email::send(options, message, &tools.guard).await,
        ChannelKind::Notify => listen::send(options, message, &tools.bus).await,
    }
}

fn option<'a>(options: &'a Options, key: &str) -> Result<&'a str> {
    options.get(key).map(String::as_str).ok_or_else(|| invalid(format!("option \"{key}\" is missing")))
}

fn invalid(message: String) -> Error {
    Error::new(SqlState::INVALID_PARAMETER_VALUE, message)
}
