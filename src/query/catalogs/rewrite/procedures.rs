//! Columns of type regproc: names to look at, OIDs to compare with.
//!
//! Such a column holds the function's name, as clients want to see it. Where it is compared with anything but a name, or cast to a number,
//! the OID that the name stands for takes its place: `pg_proc.oid = pg_type.typreceive`.

use sqlparser::ast::{DataType, Expr};

use super::{call, folded, literal_text, null, system_name};

/// The columns of relations that have rows.
const COLUMNS: [&str; 11] = [
    "typinput",
    "typoutput",
    "typreceive",
    "typsend",
    "typmodin",
    "typmodout",
    "typanalyze",
    "typsubscript",
    "amhandler",
    "prosupport",
    "oprcode",
];

/// Whether an expression is such a column, with or without its table.
pub fn is_procedure(expr: &Expr) -> bool {
    match expr {
        Expr::Identifier(name) => COLUMNS.contains(&folded(name).as_str()),
        Expr::CompoundIdentifier(parts) => parts.last().is_some_and(|name| COLUMNS.contains(&folded(name).as_str())),
        _ => false,
    }
}

/// A comparison with such a column: by name where both sides have one, else by OID.
pub fn compare(left: &mut Expr, right: &mut Expr) {
    let named = |expr: &Expr| is_procedure(expr) || literal_text(expr).is_some_and(|text| text.parse::<u32>().is_err());
    let (by_left, by_right) = (is_procedure(left) && !named(right), is_procedure(right) && !named(left));
    if by_left {
        to_oid(left);
    }
    if by_right {
        to_oid(right);
    }
}

/// `typreceive::oid`.
pub fn cast(operand: &mut Expr, data_type: &DataType) {
    let number = match data_type {
        DataType::Integer(_) | DataType::BigInt(_) | DataType::Int(_) => true,
        DataType::Custom(name, _) => system_name(name).as_deref() == Some("oid"),
        _ => false,
    };
    if number && is_procedure(operand) {
        to_oid(operand);
    }
}

fn to_oid(column: &mut Expr) {
    let name = std::mem::replace(column, null());
    *column = call("regproc", vec![name]);
}
