//! The PostgreSQL wire: the only importer of `pgwire`.
