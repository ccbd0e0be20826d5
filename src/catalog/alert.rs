//! Alerts and the channels that they are told over.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Oid, Source};
use crate::clock::Micros;

/// How a channel reaches somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChannelKind {
    /// JSON by HTTP POST, signed.
    Webhook,
    /// Slack's incoming webhooks.
    Slack,
    /// Mail by SMTP.
    Email,
    /// NOTIFY, for sessions that LISTEN.
    Notify,
}

impl ChannelKind {
    /// All of them.
    pub const ALL: [ChannelKind; 4] = [ChannelKind::Webhook, ChannelKind::Slack, ChannelKind::Email, ChannelKind::Notify];

    /// The word after TYPE.
    pub fn name(self) -> &'static str {
        match self {
            ChannelKind::Webhook => "webhook",
            ChannelKind::Slack => "slack",
            ChannelKind::Email => "email",
            ChannelKind::Notify => "notify",
        }
    }
}

/// A notification channel.
#[derive(Clone, Serialize, Deserialize)]
pub struct Channel {
    /// Stable identity.
    pub oid: Oid,
    /// Lower-case unless it was quoted.
    pub name: String,
    /// How it reaches somebody.
    pub kind: ChannelKind,
    /// What may be shown: options that are no secrets as they are, of addresses their scheme and host.
    pub shown: BTreeMap<String, String>,
    /// All options, sealed.
    pub sealed: Vec<u8>,
}

/// Without what is sealed.
impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("oid", &self.oid).field("name", &self.name).field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// What a series without a row in a closed window is taken for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoData {
    /// The condition does not hold.
    #[default]
    Ok,
    /// It does.
    Alert,
    /// It is as it was.
    Keep,
}

impl NoData {
    /// The word after ON NO DATA.
    pub fn name(self) -> &'static str {
        match self {
            NoData::Ok => "OK",
            NoData::Alert => "ALERT",
            NoData::Keep => "KEEP",
        }
    }
}

/// An alert's definition.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Alert {
    /// Stable identity.
    pub oid: Oid,
    /// Lower-case unless it was quoted.
    pub name: String,
    /// The SELECT as SQL text, as printed by the parser.
    pub query: String,
    /// The tables and views that it reads.
    pub sources: Vec<Source>,
    /// Where it is told, in order.
    pub channels: Vec<Oid>,
    /// Time between evaluations, microseconds; none for whenever a window closes.
    pub every_us: Option<Micros>,
    /// How long the condition must hold, microseconds.
    pub for_us: Micros,
    /// Time between reminders while it fires, microseconds; none for no reminders.
    pub repeat_us: Option<Micros>,
    /// What missing rows mean.
    pub no_data: NoData,
    /// False while it is disabled.
    pub enabled: bool,
    /// Nobody is told before this time.
    pub silenced_until: Option<Micros>,
}
