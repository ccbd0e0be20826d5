//! PostgreSQL's text format of values, both ways.
