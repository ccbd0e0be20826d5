//! Reading the state of `funnel_path()`.
//!
//! *Place*: [`super::path`] writes it and says what is in it.

use datafusion::common::Result;

use super::chain::NEVER;
use super::interned::Interned;
use crate::error::Error;

/// XX000: bytes that are no state.
pub fn damaged() -> Error {
    Error::internal("the state of funnel_path() cannot be read")
}

/// The bytes that are left to read.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(damaged)?;
        self.0 = rest;
        Ok(taken)
    }

    /// 8 bytes, little-endian.
    pub fn number(&mut self) -> Result<i64> {
        let bytes = self.bytes(8)?.try_into().map_err(|_| damaged())?;
        Ok(i64::from_le_bytes(bytes))
    }

    /// A value, by its number among `rows`.
    pub fn tag(&mut self, rows: &mut Interned) -> Result<u32> {
        let length = u32::from_le_bytes(self.bytes(4)?.try_into().map_err(|_| damaged())?);
        if length == NEVER { Ok(NEVER) } else { rows.number(self.bytes(length as usize)?) }
    }
}
