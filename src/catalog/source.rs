//! Sources: topics of Kafka whose messages become rows of a table.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::Oid;

/// A source's definition. How far it has come is not part of it: see `store::progress`.
#[derive(Clone, Serialize, Deserialize)]
pub struct EventSource {
    /// Stable identity.
    pub oid: Oid,
    /// Lower-case unless it was quoted.
    pub name: String,
    /// The table that its messages become rows of.
    pub table: Oid,
    /// What may be shown: options that are no secrets as they are.
    pub shown: BTreeMap<String, String>,
    /// All options, sealed.
    pub sealed: Vec<u8>,
    /// It reads nothing, and nothing that it has read is committed.
    pub paused: bool,
}

/// Without what is sealed.
impl fmt::Debug for EventSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventSource").field("oid", &self.oid).field("name", &self.name).field("table", &self.table).finish_non_exhaustive()
    }
}
