//! The open transaction: its status, catalog changes and rows.
/// An open transaction, or none.
#[derive(Debug, Default)]
pub struct State {}
