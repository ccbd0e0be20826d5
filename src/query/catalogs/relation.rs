//! The relations of the system schemas, as declared in `relations.txt`.
//!
//! *Place*: everything in `query::catalogs` reads names, OIDs and columns from here, so that `pg_attribute` describes the very
//! columns that a scan yields.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use arrow::datatypes::{Schema, SchemaRef};

use crate::catalog::Oid;
use crate::types::SqlType;

/// One table or view of a system schema.
#[derive(Debug)]
pub struct Relation {
    /// `pg_catalog`, `information_schema` or `verus`.
    pub schema: &'static str,
    /// Lower case.
    pub name: &'static str,
    /// `pg_class.oid`.
    pub oid: Oid,
    /// `pg_class.relkind`: `r` or `v`.
    pub kind: &'static str,
    /// In order.
    pub columns: Vec<Attribute>,
}

/// One column of a system relation.
#[derive(Debug)]
pub struct Attribute {
    /// Lower case.
    pub name: &'static str,
    /// What its values are.
    pub sql_type: SqlType,
    /// OID of the type that PostgreSQL declares, which has some that Verus shows as text.
    pub type_oid: Oid,
    /// Never NULL.
    pub not_null: bool,
}

impl Relation {
    /// The Arrow schema of its rows.
    pub fn arrow_schema(&self) -> SchemaRef {
        let fields: Vec<_> = self.columns.iter().map(|column| column.sql_type.field(column.name, !column.not_null)).collect();
        Arc::new(Schema::new(fields))
    }
}

static RELATIONS: LazyLock<BTreeMap<(&'static str, &'static str), Relation>> = LazyLock::new(|| {
    let mut relations: BTreeMap<_, Relation> = BTreeMap::new();
    let mut current: Option<Relation> = None;
    for line in include_str!("relations.txt").lines().filter(|line| !line.starts_with('#')) {
        match (line.strip_prefix("  "), &mut current) {
            (Some(columns), Some(relation)) => relation.columns.extend(columns.split(',').filter_map(attribute)),
            _ => {
                if let Some(done) = std::mem::replace(&mut current, header(line)) {
                    relations.insert((done.schema, done.name), done);
                }
            }
        }
    }
    relations.extend(current.map(|done| ((done.schema, done.name), done)));
    relations
});

/// A relation by name.
pub fn relation(schema: &str, name: &str) -> Option<&'static Relation> {
    // The key's lifetime is that of the text, so a borrowed pair cannot be looked up directly.
    RELATIONS.values().find(|relation| relation.schema == schema && relation.name == name)
}

/// All relations, by schema and name.
pub fn relations() -> impl Iterator<Item = &'static Relation> {
    RELATIONS.values()
}

fn header(line: &'static str) -> Option<Relation> {
    let mut words = line.split(' ');
    let (schema, name, oid, kind) = (words.next()?, words.next()?, words.next()?, words.next()?);
    Some(Relation { schema, name, oid: oid.parse().ok()?, kind, columns: Vec::new() })
}

fn attribute(text: &'static str) -> Option<Attribute> {
    let (name, declared) = text.trim().split_once(' ')?;
    let (declared, not_null) = declared.strip_suffix('!').map_or((declared, false), |declared| (declared, true));
    let (type_oid, sql_type) = declared_type(declared)?;
    Some(Attribute { name, sql_type, type_oid, not_null })
}

/// PostgreSQL's OID of a type and the type that Verus shows in its place. Names of functions and types stand for their OIDs,
/// as they do in the output of psql.
fn declared_type(name: &str) -> Option<(Oid, SqlType)> {
    let array = |element| SqlType::Array(Box::new(element));
    Some(match name {
        "char" => (18, SqlType::Text),
        "xid" => (28, SqlType::Oid),
        "regproc" => (24, SqlType::Text),
        "regtype" => (2206, SqlType::Oid),
        "pg_node_tree" => (194, SqlType::Text),
        "pg_lsn" => (3220, SqlType::Text),
        "inet" => (869, SqlType::Text),
        "anyarray" => (2277, SqlType::Text),
        "aclitem[]" => (1034, array(SqlType::Text)),
        "char[]" => (1002, array(SqlType::Text)),
        "oidvector" => (30, SqlType::OidVector),
        "int2vector" => (22, SqlType::SmallIntVector),
        "varchar" => (1043, SqlType::Varchar(None)),
        "float8" => (701, SqlType::Double),
        "timestamptz" => (1184, SqlType::Timestamptz),
        other => {
            let sql_type = SqlType::parse(other)?;
            (sql_type.oid(), sql_type)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_understood() {
        let text = include_str!("relations.txt");
        let headers = text.lines().filter(|line| !line.starts_with(['#', ' ']) && !line.is_empty()).count();
        assert_eq!(relations().count(), headers);
        let columns: usize = relations().map(|relation| relation.columns.len()).sum();
        let declared =
            text.lines().filter(|line| line.starts_with("  ")).flat_map(|line| line.split(',')).filter(|column| !column.trim().is_empty());
        assert_eq!(columns, declared.count());
        assert_eq!(relation("pg_catalog", "pg_class").map(|class| (class.oid, class.columns.len())), Some((1259, 33)));
    }
}
