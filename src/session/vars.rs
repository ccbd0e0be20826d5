//! Session variables.
/// Session variables with their defaults, and SET LOCAL values that end with the transaction.
#[derive(Debug, Default)]
pub struct Vars {}
