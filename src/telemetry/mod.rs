//! Every metric once: name, unit, meaning.
/// Verus's metrics.
#[derive(Debug, Default)]
pub struct Metrics {}
