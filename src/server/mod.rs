//! The only place that builds and joins components.
