//! Incremental views: compile a query, apply batches to it, merge and store its state, read it back.
//!
//! *Place*: `store::commit` applies, `store::background` checkpoints, merges and sweeps, `query::provider` reads.
//!
//! *Invariants*: (1) a view's state at a snapshot equals its query over the rows accepted so far; (2) blocks and the applied
//! LSN go in one RocksDB batch; (3) a delta or block is immutable; (4) states are merged oldest LSN first; (5) no row can stop
//! ingestion: one whose expressions fail marks its group (or the view), and the error is raised to who reads that.
//!
//! Life of state: a commit's rows become one [`Delta`] per view (unmerged partial aggregates); small deltas are merged with
//! their neighbours as they pile up; about once a second the deltas of a view are merged, cut by time bucket and slot
//! range and appended to RocksDB as blocks; background merges keep few blocks a bucket; readers merge on read.
//!
//! | file | what it is |
//! |---|---|
//! | `compile`, `source`, `window` | a defining SELECT to a [`Spec`]; what it reads; which key is its time bucket |
//! | `join` | plain tables looked up for each row, as of its commit |
//! | `nested` | an aggregate over the groups of another one, which are what is kept |
//! | `layer`, `tally`, `fold` | the upper aggregation of a nested view: its parts, aggregates that give rows back, its groups in memory |
//! | `combine` | an aggregate over a view's groups as one over its rows |
//! | `aggregate`, `distinct`, `groups` | DataFusion's accumulators over interned groups; COUNT(DISTINCT) as value lists |
//! | `portion` | large sets of distinct values, a part of their values at a time |
//! | `apply` | a batch of rows to one [`Delta`] per view, sharing work between views |
//! | `expand`, `session` | rows that count in several windows; fragments that join to sessions |
//! | `delta`, `version` | deltas in memory; a view's state as of a snapshot |
//! | `replace` | states made anew for groups that lost rows |
//! | `block`, `blocks`, `cache` | a block's bytes; where blocks live; decoded blocks in memory |
//! | `evict` | windows that leave the state and come back |
//! | `checkpoint`, `slots` | deltas to blocks, blocks to fewer blocks, rows read again to blocks; clustering |
//! | `read`, `prune`, `finish` | the plan that reads a view; which blocks it needs; states to output columns |
//! | `recomputed`, `result`, `local` | views without aggregate state: their query; the stored result of a refreshed one; its windows |
//! | `changes` | which groups changed between two versions |
//! | `members` | what a version has of some groups |
//! | `states`, `rollup`, `matching` | the plan that reads raw states; aggregates over them; what queries are compared with |
//! | `failure` | what DataFusion and Arrow report, as Verus's errors |

mod aggregate;
mod apply;
mod block;
mod blocks;
mod cache;
mod changes;
mod checkpoint;
mod combine;
mod compile;
mod delta;
mod distinct;
mod evict;
mod expand;
mod failure;
mod finish;
mod fold;
mod groups;
mod join;
mod layer;
mod local;
mod matching;
mod members;
mod nested;
mod portion;
mod prune;
mod read;
mod recomputed;
mod replace;
mod result;
mod rollup;
mod session;
mod slots;
mod source;
mod spec;
mod states;
mod tally;
#[cfg(test)]
mod tests;
mod version;
mod window;

pub use aggregate::{Aggregate, row_arguments};
pub use apply::apply;
pub use blocks::Blocks;
pub use changes::{ChangeKind, Changed, Changes, Selection, Since};
pub use checkpoint::{Backfill, Checkpoint, Merged};
pub use compile::describe;
pub use delta::{Delta, MergedDeltas, Work};
pub use distinct::UNITING_GROWTH;
pub use evict::Evicted;
pub use join::{Join, Lookup, Step};
pub use local::Local;
pub use matching::{Bucket, Grain, Matching, Normalizer};
pub use nested::Upper;
pub use recomputed::Recomputed;
pub use replace::Replacement;
pub use result::{Position, Stored, Writer};
pub use rollup::{Gives, Takes, rollup};
pub use spec::Spec;
pub use version::{Coverage, Size, Version};
