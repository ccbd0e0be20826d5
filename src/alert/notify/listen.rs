//! NOTIFY: sessions that LISTEN get the message as JSON.
//!
//! Options: `channel`, of LISTEN. Who does not listen at the moment does not get it. A payload has fewer than 8000 bytes: of a larger
//! message the row is left out, which `verus.alert_history` has.

use std::collections::BTreeMap;

use super::{Message, option};
use crate::bus::{self, Bus, PAYLOAD_BYTES_END, Pending};
use crate::catalog::vault::Options;
use crate::error::Result;

/// The sender, as sessions see it: not one of them.
const SERVER: i32 = 0;

/// What may be shown: all of it.
pub fn check(options: &Options) -> Result<BTreeMap<String, String>> {
    let channel = option(options, "channel")?;
    bus::Message::new(channel, "")?;
    Ok([("channel".to_owned(), channel.to_owned())].into())
}

/// Notifies. 54000 where a listener's queue is full.
pub async fn send(options: &Options, message: &Message, bus: &Bus) -> Result<()> {
    let mut payload = message.json().to_string();
    if payload.len() >= PAYLOAD_BYTES_END {
        payload = Message { values: serde_json::Map::new(), told: None, ..message.clone() }.json().to_string();
    }
    if payload.len() >= PAYLOAD_BYTES_END {
        payload =
            Message { values: serde_json::Map::new(), told: None, instance: serde_json::Map::new(), ..message.clone() }.json().to_string();
    }
    let mut pending = Pending::default();
    pending.add(bus::Message::new(option(options, "channel")?, &payload)?, bus.bytes_max())?;
    let turn = bus.turn().await;
    turn.admit(&pending)?;
    turn.publish(SERVER, &pending);
    Ok(())
}
