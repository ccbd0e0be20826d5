//! Rows of values by number, so that an event takes four bytes for them.
//!
//! *Place*: [`super::path`] keeps what entities are grouped by, and what has to be the same along a chain.

use std::collections::HashMap;
use std::mem::size_of;
use std::sync::Arc;

use arrow::array::{ArrayRef, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::FieldRef;
use arrow::row::{RowConverter, SortField};
use datafusion::common::Result;

use super::chain::NEVER;
use crate::error::Error;

/// Rows of values by number: equal rows have one.
#[derive(Debug)]
pub struct Interned {
    converter: RowConverter,
    numbers: HashMap<Arc<[u8]>, u32>,
    /// By number.
    pub rows: Vec<Arc<[u8]>>,
    /// What is held.
    pub bytes: usize,
}

impl Interned {
    /// Rows of columns of these types.
    pub fn new(fields: &[FieldRef]) -> Result<Self> {
        let fields = fields.iter().map(|field| SortField::new(field.data_type().clone())).collect();
        Ok(Self { converter: RowConverter::new(fields)?, numbers: HashMap::new(), rows: Vec::new(), bytes: 0 })
    }

    /// The number of a row in the bytes of `arrow::row`.
    pub fn number(&mut self, row: &[u8]) -> Result<u32> {
        if let Some(number) = self.numbers.get(row) {
            return Ok(*number);
        }
        let number =
            u32::try_from(self.rows.len()).ok().filter(|number| *number < NEVER).ok_or_else(|| Error::internal("too many values"))?;
        let row: Arc<[u8]> = row.into();
        self.bytes += row.len() + size_of::<(Arc<[u8]>, u32)>() * 3;
        self.numbers.insert(Arc::clone(&row), number);
        self.rows.push(row);
        Ok(number)
    }

    /// Forgets all rows: whoever has numbers has none that count.
    pub fn clear(&mut self) {
        self.numbers = HashMap::new();
        self.rows = Vec::new();
        self.bytes = 0;
    }

    /// The numbers of some rows of columns.
    pub fn numbers(&mut self, columns: &[ArrayRef]) -> Result<Vec<u32>> {
        let rows = self.converter.convert_columns(columns)?;
        rows.iter().map(|row| self.number(row.as_ref())).collect()
    }

    /// The columns of numbered rows; NULLs for [`NEVER`].
    pub fn columns(&mut self, numbers: &[u32], fields: &[FieldRef]) -> Result<Vec<ArrayRef>> {
        let mut places: HashMap<u32, u32> = HashMap::new();
        let mut used = Vec::new();
        let indices: UInt32Array = numbers
            .iter()
            .map(|number| {
                (*number != NEVER).then(|| {
                    *places.entry(*number).or_insert_with(|| {
                        used.push(*number);
                        used.len() as u32 - 1
                    })
                })
            })
            .collect();
        if used.is_empty() {
            return Ok(fields.iter().map(|field| arrow::array::new_null_array(field.data_type(), numbers.len())).collect());
        }
        let parser = self.converter.parser();
        let columns = self.converter.convert_rows(used.iter().map(|number| parser.parse(&self.rows[*number as usize])))?;
        columns.iter().map(|column| Ok(take(column, &indices, None)?)).collect()
    }
}
