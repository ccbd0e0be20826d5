//! Parameter values of Bind, in text and binary, to scalars of their type's Arrow form.

use datafusion::common::ScalarValue;

use crate::error::Result;
use crate::types::SqlType;
use crate::types::binary::{read_scalar, text};
use crate::types::text::parse_scalar;
use crate::types::zone::Zone;

/// Reads one value. 22P02 and its kind for text, 22P03 and 08P01 for bytes that do not fit the type.
pub(super) fn read(sql_type: &SqlType, binary: bool, value: Option<&[u8]>, zone: &Zone) -> Result<ScalarValue> {
    match value {
        None => ScalarValue::try_from(&sql_type.arrow()).map_err(crate::session::engine_error),
        Some(bytes) if binary => read_scalar(sql_type, bytes),
        Some(bytes) => parse_scalar(sql_type, text(bytes)?, zone),
    }
}
