//! `pg_proc`: the functions of types and those that can be called, as declared in `functions.txt`.
//!
//! *Place*: drivers join it with `pg_type` to tell arrays from other types, psql lists it by `\df` and `\da`; `catalogs::functions` casts
//! to and from `regproc` by it.
//!
//! It describes functions and decides nothing: which there are and what they take is with `query::functions`.

use std::sync::LazyLock;

use super::objects::{PG_CATALOG_OID, ROLE_OID};
use super::pg_type;
use super::rows::{Rows, Value};
use crate::catalog::Oid;

/// `pg_language.oid` of `internal`.
const INTERNAL_OID: Oid = 12;

/// A function.
#[derive(Debug)]
pub struct Procedure {
    /// `pg_proc.oid`.
    pub oid: Oid,
    /// `pg_proc.proname`.
    pub name: &'static str,
    /// `pg_proc.prokind`: `f`, `a` or `w`.
    kind: &'static str,
    volatility: &'static str,
    strict: bool,
    set: bool,
    variadic: Oid,
    result: Oid,
    arguments: Vec<Oid>,
}

static PROCEDURES: LazyLock<Vec<Procedure>> = LazyLock::new(|| {
    let lines = include_str!("functions.txt").lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| parse(&line.split(' ').collect::<Vec<_>>())).collect()
});

fn parse(words: &[&'static str]) -> Option<Procedure> {
    let [oid, name, kind, volatility, strict, set, variadic, result, arguments] = words else { return None };
    let arguments = arguments.split(',').filter(|argument| *argument != "-").map(|argument| argument.parse().ok());
    Some(Procedure {
        oid: oid.parse().ok()?,
        name,
        kind,
        volatility,
        strict: *strict == "t",
        set: *set == "t",
        variadic: variadic.parse().ok()?,
        result: result.parse().ok()?,
        arguments: arguments.collect::<Option<_>>()?,
    })
}

impl Procedure {
    /// `pg_get_function_result(oid)`.
    pub fn result(&self) -> String {
        let result = pg_type::format(self.result, None);
        if self.set { format!("SETOF {result}") } else { result }
    }

    /// `pg_get_function_arguments(oid)`: the types alone, since arguments have no names.
    pub fn arguments(&self) -> String {
        let last = self.arguments.len().saturating_sub(1);
        let typed = self.arguments.iter().enumerate().map(|(at, argument)| {
            let name = pg_type::format(*argument, None);
            if self.variadic != 0 && at == last { format!("VARIADIC {name}") } else { name }
        });
        typed.collect::<Vec<_>>().join(", ")
    }
}

/// A function by OID.
pub fn by_oid(oid: Oid) -> Option<&'static Procedure> {
    PROCEDURES.iter().find(|known| known.oid == oid)
}

/// The functions of a name, which may be written with its schema.
pub fn named(written: &str) -> impl Iterator<Item = &'static Procedure> {
    let name = written.strip_prefix("pg_catalog.").unwrap_or(written).to_lowercase();
    PROCEDURES.iter().filter(move |known| known.name == name)
}

/// Fills `pg_proc`.
pub fn fill(rows: &mut Rows) {
    for known in PROCEDURES.iter() {
        rows.add([
            ("oid", known.oid.into()),
            ("proname", known.name.into()),
            ("pronamespace", PG_CATALOG_OID.into()),
            ("proowner", ROLE_OID.into()),
            ("prolang", INTERNAL_OID.into()),
            ("procost", Value::Float(1.0)),
            ("prorows", Value::Float(if known.set { 1000.0 } else { 0.0 })),
            ("provariadic", known.variadic.into()),
            ("prosupport", "-".into()),
            ("prokind", known.kind.into()),
            ("proisstrict", known.strict.into()),
            ("proretset", known.set.into()),
            ("provolatile", known.volatility.into()),
            ("proparallel", "s".into()),
            ("pronargs", known.arguments.len().into()),
            ("prorettype", known.result.into()),
            ("proargtypes", Value::List(known.arguments.iter().map(|argument| Value::from(*argument)).collect())),
            ("prosrc", known.name.into()),
        ]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_understood() {
        let lines = include_str!("functions.txt").lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        assert_eq!(PROCEDURES.len(), lines.count());
        for known in PROCEDURES.iter() {
            assert!(!known.result().contains("???") && !known.arguments().contains("???"), "{known:?}");
        }
    }
}
