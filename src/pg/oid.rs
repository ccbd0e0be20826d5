//! Types by the OIDs that clients declare for parameters.

use crate::error::{Error, Result, SqlState};
use crate::types::SqlType;

/// The types that a parameter can have; arrays of them too.
fn scalar_types() -> [SqlType; 20] {
    [
        SqlType::Boolean,
        SqlType::SmallInt,
        SqlType::Integer,
        SqlType::BigInt,
        SqlType::Real,
        SqlType::Double,
        SqlType::Numeric(None),
        SqlType::Text,
        SqlType::Varchar(None),
        SqlType::Bytea,
        SqlType::Uuid,
        SqlType::Date,
        SqlType::Time,
        SqlType::Timestamp,
        SqlType::Timestamptz,
        SqlType::Interval,
        SqlType::Json,
        SqlType::Jsonb,
        SqlType::Oid,
        SqlType::Name,
    ]
}

const UNKNOWN: u32 = 705;
const BPCHAR: u32 = 1042;
const BPCHAR_ARRAY: u32 = 1014;

/// The type that an OID stands for; none where the client left it open. 42704 for one that Verus has not.
pub(super) fn parameter_type(oid: u32) -> Result<Option<SqlType>> {
    match oid {
        0 | UNKNOWN => return Ok(None),
        // char(n) says its length only in a typmod, which parameters have not: the value is taken as it is.
        BPCHAR => return Ok(Some(SqlType::Varchar(None))),
        BPCHAR_ARRAY => return Ok(Some(SqlType::Array(Box::new(SqlType::Varchar(None))))),
        _ => {}
    }
    for scalar in scalar_types() {
        if scalar.oid() == oid {
            return Ok(Some(scalar));
        }
        let array = SqlType::Array(Box::new(scalar));
        if array.oid() == oid {
            return Ok(Some(array));
        }
    }
    Err(Error::new(SqlState::UNDEFINED_OBJECT, format!("type with OID {oid} does not exist")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oids_lead_back_to_their_types() {
        for scalar in scalar_types() {
            assert_eq!(parameter_type(scalar.oid()).unwrap(), Some(scalar.clone()));
            let array = SqlType::Array(Box::new(scalar));
            assert_eq!(parameter_type(array.oid()).unwrap(), Some(array));
        }
        assert_eq!(parameter_type(705).unwrap(), None);
        assert!(parameter_type(600).is_err());
    }
}
