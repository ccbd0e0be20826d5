//! `array_agg` and `string_agg` of DISTINCT values: sorted, as PostgreSQL, which tells values apart by sorting, gives them.
//!
//! *Place*: `query::typing` puts them in the place of DataFusion's, in queries and views alike.
//!
//! The order is the function's own and no ORDER BY of the call. DataFusion would sort the rows below the aggregation by that, or turn it
//! around where another call has the opposite order, which its lists of distinct values do not turn back.

use std::sync::Arc;

use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Result, internal_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, Signature};
use datafusion::physical_expr::PhysicalSortExpr;

/// A list of distinct values by the name of the aggregate, if it is one.
pub fn distinct_list(function: &Arc<AggregateUDF>, options: SortOptions) -> Option<Arc<AggregateUDF>> {
    let name = match (function.name(), options.descending, options.nulls_first) {
        ("array_agg", false, false) => "array_agg_distinct",
        ("array_agg", false, true) => "array_agg_distinct_nulls_first",
        ("array_agg", true, true) => "array_agg_distinct_desc",
        ("array_agg", true, false) => "array_agg_distinct_desc_nulls_last",
        // NULLs are in no text.
        ("string_agg", false, _) => "string_agg_distinct",
        ("string_agg", true, _) => "string_agg_distinct_desc",
        _ => return None,
    };
    Some(Arc::new(AggregateUDF::new_from_impl(DistinctList { name, list: Arc::clone(function), options })))
}

/// One name for each function and order, as states are kept by name.
#[derive(Debug, PartialEq, Eq, Hash)]
struct DistinctList {
    name: &'static str,
    list: Arc<AggregateUDF>,
    options: SortOptions,
}

impl AggregateUDFImpl for DistinctList {
    fn name(&self) -> &'static str {
        self.name
    }

    fn signature(&self) -> &Signature {
        self.list.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.list.return_type(types)
    }

    fn return_field(&self, fields: &[FieldRef]) -> Result<FieldRef> {
        self.list.return_field(fields)
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        self.list.state_fields(StateFieldsArgs { is_distinct: true, ordering_fields: &[], ..args })
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let Some(value) = args.exprs.first() else { return internal_err!("a list of no value") };
        let order = [PhysicalSortExpr::new(Arc::clone(value), self.options)];
        self.list.accumulator(AccumulatorArgs { is_distinct: true, order_bys: &order, ..args })
    }
}
