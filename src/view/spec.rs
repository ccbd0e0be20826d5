//! A compiled view: what it filters, groups by, aggregates and puts out.
//!
//! *Place*: made by `compile`; everything else here reads it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, OnceLock};

use arrow::array::AsArray;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::utils::collect_columns;

use super::aggregate::Aggregate;
use super::expand::Expansion;
use super::failure::{arrow_failure, failure};
use super::finish::Finish;
use super::join::Join;
use super::matching::Matching;
use super::nested::Upper;
use super::session::Session;
use super::window::TimeKey;
use crate::catalog::View;
use crate::clock::Micros;
use crate::error::Result;

const DAY_US: Micros = 86_400_000_000;

/// A compiled view: filter, keys, aggregates, output.
///
/// State rows have the columns of [`Spec::state_schema`]: keys, then every aggregate's state columns, and in a batch that
/// holds failed groups a last column with their errors.
#[derive(Debug)]
pub struct Spec {
    /// Its definition.
    pub view: Arc<View>,
    /// Rows for which this is not true do not count.
    pub(super) filter: Option<Expression>,
    /// Rows are multiplied by HOP before they are grouped.
    pub(super) expansion: Option<Expansion>,
    /// One of the keys is the start of a session.
    pub(super) session: Option<Session>,
    /// Grouping expressions over the table's rows, or over expanded rows; none for one group over all rows.
    pub(super) keys: Vec<Expression>,
    /// Hash of the keys taken together.
    pub(super) keys_hash: u64,
    /// `k0`, `k1`, ... with the keys' types.
    pub(super) key_schema: SchemaRef,
    /// In the order of their state columns.
    pub(super) aggregates: Vec<Arc<Aggregate>>,
    /// Keys, then states.
    pub(super) state_schema: SchemaRef,
    /// The key that is the time bucket.
    pub(super) time: Option<TimeKey>,
    /// The keys whose hash gives the slot: the table's partition key when it is among them, else all but the time bucket.
    pub(super) slot_keys: Vec<usize>,
    /// From merged aggregates to output columns.
    pub(super) finish: Arc<Finish>,
    /// What the view is over these groups, where they are not what it shows.
    pub(super) upper: Option<Upper>,
    /// Whether states become smaller as event time goes on.
    pub(super) settles: bool,
    /// Columns of the table that keys and aggregates read, ascending.
    pub(super) columns: Vec<usize>,
    /// Of everything that gives stored state its meaning.
    pub(super) fingerprint: u64,
    /// The plain tables that each row is joined with first: filter, keys and aggregates are over the rows after that.
    pub(super) join: Option<Arc<Join>>,
    /// What queries are compared with; none for views whose shape is not routed to.
    pub(super) matching: Option<Matching>,
    /// Set when an answer from the state was found to differ from the table's.
    pub(super) distrusted: OnceLock<String>,
}

impl Spec {
    /// Whether it groups by sessions, whose bounds depend on each other.
    pub fn has_sessions(&self) -> bool {
        self.session.is_some()
    }

    /// What the view is over the groups that it keeps, where they are not what it shows.
    pub fn upper(&self) -> Option<&Upper> {
        self.upper.as_ref()
    }

    /// Whether states that have all of an entity's rows can leave out what decides nothing for rows that are not older than some event
    /// time. Not where rows are joined: what they were joined with is lost with them.
    pub fn settles(&self) -> bool {
        self.settles
    }

    /// State rows that have all of their groups' rows, without what decides nothing: no row older than a horizon comes.
    pub(super) fn settled(&self, rows: &RecordBatch, horizon: Micros) -> Result<RecordBatch> {
        if rows.num_rows() == 0 || !self.settles {
            return Ok(rows.clone());
        }
        let mut columns = rows.columns().to_vec();
        let mut place = self.key_schema.fields().len();
        for aggregate in &self.aggregates {
            let own = place..place + aggregate.state.len();
            if let Some(settle) = aggregate.settling() {
                let states = settle.settle(&columns[own.clone()], horizon).map_err(failure)?;
                columns.splice(own.clone(), states);
            }
            place = own.end;
        }
        RecordBatch::try_new(rows.schema(), columns).map_err(arrow_failure)
    }

    /// The groups' Arrow schema: the view's declared columns, unless there is an [`Upper`].
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.finish.schema)
    }

    /// Whether a row counts in several groups (HOP), or in one that depends on other rows (SESSION): such a view's groups cannot be
    /// put together to coarser ones.
    pub fn overlaps(&self) -> bool {
        self.expansion.is_some() || self.session.is_some()
    }

    /// What, besides the keys' expressions, says to which group a row belongs.
    pub(super) fn session_of_rows(&self) -> Option<(usize, i64)> {
        self.session.as_ref().map(|session| (session.key, session.gap_us))
    }

    /// Width of the time bucket in microseconds, when it is fixed: none for windows that overlap and for buckets of local time.
    pub fn bucket_us(&self) -> Option<i64> {
        self.time.as_ref().and_then(|time| time.width_us)
    }

    /// The output column that is the time bucket, if there is one.
    pub fn bucket_column(&self) -> Option<usize> {
        let key = self.time.as_ref()?.key;
        self.finish.output_keys.iter().position(|output| *output == Some(key))
    }

    /// Where rows older than a time may be gone: the output column that is the time bucket, and the bound from which on its buckets have none
    /// of them. None where no column tells.
    pub fn whole_from(&self, gone_before_us: Micros) -> Option<(usize, Micros)> {
        let session = self.session_of_rows();
        let column = match session {
            Some((key, _)) => self.finish.output_keys.iter().position(|output| *output == Some(key))?,
            None => self.bucket_column().filter(|_| self.upper.is_none())?,
        };
        let from_us = match (self.bucket(), session) {
            (Some(bucket), None) => bucket.grain.ceil(gone_before_us)?,
            // What is left of a session begins later than the session did.
            (_, Some((_, gap_us))) => gone_before_us.checked_add(gap_us)?,
            (None, None) => match self.bucket_us() {
                Some(width_us) => gone_before_us.checked_add(width_us)?,
                // A bucket of local time is up to a day ahead of its rows.
                None => gone_before_us.checked_add(DAY_US)?,
            },
        };
        Some((column, from_us))
    }

    /// The plain tables that each row is joined with.
    pub fn join(&self) -> Option<&Arc<Join>> {
        self.join.as_ref()
    }

    /// Whether a column of the rows after the join is read.
    pub fn reads(&self, column: usize) -> bool {
        self.columns.binary_search(&column).is_ok()
            || self.filter.iter().any(|filter| collect_columns(&filter.physical).iter().any(|read| read.index() == column))
    }

    /// Columns of the table that decide whether a row counts, ascending.
    pub fn filter_columns(&self) -> Vec<usize> {
        let read = self.filter.iter().flat_map(|filter| collect_columns(&filter.physical));
        let mut columns: Vec<usize> = read.map(|column| column.index()).collect();
        columns.sort_unstable();
        columns.dedup();
        columns
    }

    /// How many of these rows count: rows of the table, of which only [`Spec::filter_columns`] are looked at.
    pub fn counted(&self, rows: &RecordBatch) -> Result<u64> {
        let Some(filter) = &self.filter else { return Ok(rows.num_rows() as u64) };
        let mask = filter.physical.evaluate(rows).and_then(|mask| mask.into_array(rows.num_rows())).map_err(failure)?;
        Ok(mask.as_boolean().true_count() as u64)
    }

    /// What queries are compared with; none for views whose shape is not routed to.
    pub fn matching(&self) -> Option<&Matching> {
        self.matching.as_ref()
    }

    /// No query is routed to the view from here on: what differed is the reason.
    pub fn distrust(&self, reason: &str) {
        // The first reason stays.
        let _ = self.distrusted.set(reason.to_owned());
    }

    /// Why no query is routed to the view, if an answer of it was found wrong.
    pub fn distrusted(&self) -> Option<&str> {
        self.distrusted.get().map(String::as_str)
    }

    /// The aggregates whose state is kept.
    pub fn aggregates(&self) -> &[Arc<Aggregate>] {
        &self.aggregates
    }

    /// Whether a filter over output columns is applied exactly by [`super::Version::scan`].
    pub fn filters_exactly(&self, filter: &datafusion::logical_expr::Expr) -> bool {
        super::prune::over_keys(self, filter).is_some()
    }
}

/// A physical expression with its hash, so that equal ones of several views are found cheaply.
#[derive(Clone, Debug)]
pub(super) struct Expression {
    pub(super) physical: Arc<dyn PhysicalExpr>,
    pub(super) hash: u64,
}

impl Expression {
    pub(super) fn new(physical: Arc<dyn PhysicalExpr>) -> Self {
        let mut hasher = DefaultHasher::new();
        physical.hash(&mut hasher);
        Self { hash: hasher.finish(), physical }
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && (Arc::ptr_eq(&self.physical, &other.physical) || *self.physical == *other.physical)
    }
}
