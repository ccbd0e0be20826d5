//! What every row passes on its way in: column order, coercion, defaults, generated columns, NOT NULL, CHECK, max_future.
//!
//! *Place*: called on the connection's own task by `command::insert` and `command::copy`, and for events from the web by
//! `web::events`, and for messages from Kafka by [`source`]; the rows then go to `store::commit`.
//!
//! [`Pipeline`] holds the rules of one table, bound once a statement; [`CopyLoad`] drives the decoder of `event` and the
//! pipeline over a stream of bytes, in parallel; [`events`] takes JSON whose events are refused one by one, and [`ledger`] keeps what
//! was refused and what was answered.

pub mod defaults;
pub mod events;
pub mod ledger;
mod load;
mod pipeline;
mod sift;
pub mod source;

#[cfg(test)]
mod tests;

pub use load::CopyLoad;
pub use pipeline::{Pipeline, Refusal};
