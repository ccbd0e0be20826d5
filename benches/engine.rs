//! Benchmarks of the engine's parts.

fn main() {}
