//! What every row passes on its way in: column order, coercion, defaults, generated columns, NOT NULL, CHECK, max_future.
//!
//! *Place*: called on the connection's own task by `command::insert` and `command::copy`; the rows then go to
//! `store::commit`.
//!
//! [`Pipeline`] holds the rules of one table, bound once a statement; [`CopyLoad`] drives the decoder of `event` and the
//! pipeline over a stream of bytes, in parallel.

mod load;
mod pipeline;

#[cfg(test)]
mod tests;

pub use load::CopyLoad;
pub use pipeline::{Pipeline, Refusal};
