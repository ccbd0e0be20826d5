//! Columns that a file was written without, and LSNs that it does not know.
//!
//! *Place*: the scan's expressions and compaction; a [`super::Layout`] carries the values.
//!
//! *Invariants*: (1) an added column has one value in all rows that were stored before it, NULL unless [`Fills`] says
//! otherwise; (2) nothing is known of such a column from a file's statistics, so that nobody prunes by them, here or elsewhere: other
//! readers of the table format see NULL there until compaction has rewritten the file.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, UInt32Array, new_null_array};
use arrow::compute::take;
use arrow::datatypes::{Field, SchemaRef};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{Result as DataFusionResult, ScalarValue};
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, lit};
use datafusion::physical_expr_adapter::{DefaultPhysicalExprAdapterFactory, PhysicalExprAdapter, PhysicalExprAdapterFactory};

use super::error::{ColumnarError, Result};
use super::reads::LSN_BASE;
use crate::types::LSN_COLUMN;

/// By name, the values of added columns in files that lack them.
#[derive(Clone, Debug, Default)]
pub struct Fills(Arc<BTreeMap<String, ScalarValue>>);

impl Fills {
    /// Says what a column is in files without it.
    pub fn add(&mut self, column: &str, value: ScalarValue) {
        Arc::make_mut(&mut self.0).insert(column.to_owned(), value);
    }

    /// Whether a column is something else than NULL in files without it.
    pub fn has(&self, column: &str) -> bool {
        self.0.contains_key(column)
    }

    /// A column of a file without it.
    pub fn column(&self, field: &Field, rows: usize) -> Result<ArrayRef> {
        let Some(value) = self.0.get(field.name()) else { return Ok(new_null_array(field.data_type(), rows)) };
        let one = value.to_array().map_err(ColumnarError::encoding("fill"))?;
        take(&one, &UInt32Array::from(vec![0; rows]), None).map_err(ColumnarError::encoding("fill"))
    }
}

/// Puts the values in place of the columns that a file lacks; the rest is DataFusion's.
impl PhysicalExprAdapterFactory for Fills {
    fn create(&self, logical: SchemaRef, physical: SchemaRef) -> DataFusionResult<Arc<dyn PhysicalExprAdapter>> {
        let rest = DefaultPhysicalExprAdapterFactory.create(logical, Arc::clone(&physical))?;
        let base = physical.metadata().get(LSN_BASE).and_then(|base| base.parse().ok());
        Ok(Arc::new(Adapter { fills: self.clone(), physical, base, rest }))
    }
}

#[derive(Debug)]
struct Adapter {
    fills: Fills,
    physical: SchemaRef,
    /// To be added to the LSNs of the file.
    base: Option<i64>,
    rest: Arc<dyn PhysicalExprAdapter>,
}

impl PhysicalExprAdapter for Adapter {
    fn rewrite(&self, expression: Arc<dyn PhysicalExpr>) -> DataFusionResult<Arc<dyn PhysicalExpr>> {
        let filled = expression
            .transform_up(|node| {
                let Some(column) = node.downcast_ref::<Column>() else { return Ok(Transformed::no(node)) };
                if let (LSN_COLUMN, Some(base)) = (column.name(), self.base) {
                    let sum = BinaryExpr::new(Arc::clone(&node), Operator::Plus, lit(base));
                    return Ok(Transformed::yes(Arc::new(sum) as Arc<dyn PhysicalExpr>));
                }
                let missing = self.physical.index_of(column.name()).is_err();
                Ok(match self.fills.0.get(column.name()).filter(|_| missing) {
                    Some(value) => Transformed::yes(lit(value.clone())),
                    None => Transformed::no(node),
                })
            })
            .data()?;
        self.rest.rewrite(filled)
    }
}
