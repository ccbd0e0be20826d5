//! Prepared statements: what a statement was typed to, and the plans of recent texts.
//!
//! *Place*: made by `command::prepare`; kept here by name (Parse, PREPARE) and by text ([`Plans`]).
//!
//! *Invariants*: (1) a plan is used only with the catalog and the settings that it was made under, compared by address; (2) at most
//! `limits.query.plan_cache_max` texts are kept.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;

use crate::catalog::Catalog;
use crate::query::Bound;
use crate::session::vars::Values;
use crate::sql::Parsed;
use crate::types::SqlType;

/// A statement prepared for execution: parsed, and typed where it is a query.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The statement; none for an empty text.
    pub parsed: Option<Parsed>,
    /// Its plan, for statements that DataFusion plans.
    pub bound: Option<Arc<Bound>>,
    /// Parameter types.
    pub parameters: Vec<SqlType>,
    /// Output columns, or none when it returns no rows.
    pub schema: Option<SchemaRef>,
    /// Parameter types as the client declared them, to type the statement again.
    pub declared: Vec<Option<SqlType>>,
    /// The objects that the plan knows.
    pub catalog: Arc<Catalog>,
    /// The settings that it was typed under.
    pub settings: Values,
}

impl Prepared {
    /// Whether the plan still stands.
    pub fn fits(&self, catalog: &Arc<Catalog>, settings: &Values) -> bool {
        self.bound.is_none() || (Arc::ptr_eq(&self.catalog, catalog) && Arc::ptr_eq(&self.settings, settings))
    }
}

/// Texts longer than this are not kept: they are not the short queries of a dashboard.
const TEXT_BYTES_MAX: usize = 16 * 1024;

/// The typed plans of a session's recent query texts.
#[derive(Debug)]
pub struct Plans {
    entries: HashMap<Arc<str>, Entry>,
    entries_max: usize,
    tick: u64,
}

#[derive(Debug)]
struct Entry {
    prepared: Arc<Prepared>,
    used: u64,
}

impl Plans {
    /// An empty cache.
    pub(crate) fn new(entries_max: usize) -> Self {
        Self { entries: HashMap::new(), entries_max, tick: 0 }
    }

    /// The plan of a text, when it still stands and was made for the same declared types.
    pub fn get(&mut self, text: &str, declared: &[Option<SqlType>], catalog: &Arc<Catalog>, settings: &Values) -> Option<Arc<Prepared>> {
        self.tick += 1;
        let entry = self.entries.get_mut(text)?;
        if entry.prepared.declared != declared || !entry.prepared.fits(catalog, settings) {
            return None;
        }
        entry.used = self.tick;
        Some(Arc::clone(&entry.prepared))
    }

    /// Whether a plan of the text is kept at all, standing or not.
    pub fn knows(&self, text: &str) -> bool {
        self.entries.contains_key(text)
    }

    /// Keeps a plan; the least recently used one makes room.
    pub fn put(&mut self, text: &str, prepared: &Arc<Prepared>) {
        if prepared.bound.is_none() || text.len() > TEXT_BYTES_MAX || self.entries_max == 0 {
            return;
        }
        if self.entries.len() >= self.entries_max
            && !self.entries.contains_key(text)
            && let Some(oldest) = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(text, _)| Arc::clone(text))
        {
            self.entries.remove(&oldest);
        }
        self.entries.insert(Arc::from(text), Entry { prepared: Arc::clone(prepared), used: self.tick });
    }

    /// DISCARD PLANS.
    pub fn clear(&mut self) {
        self.entries.clear();
    }
}
