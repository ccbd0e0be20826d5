//! What tests of the operators' aggregate functions share.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::{Field, FieldRef, Schema};
use datafusion::logical_expr::function::AccumulatorArgs;
use datafusion::logical_expr::{AggregateUDF, GroupsAccumulator};

/// Fields of the types of some columns.
pub fn fields(arrays: &[ArrayRef]) -> Vec<FieldRef> {
    arrays.iter().map(|array| Arc::new(Field::new("", array.data_type().clone(), true))).collect()
}

/// The accumulator of a function over columns of these types.
pub fn accumulator(function: &AggregateUDF, arrays: &[ArrayRef]) -> Box<dyn GroupsAccumulator> {
    let fields = fields(arrays);
    let args = AccumulatorArgs {
        return_field: function.return_field(&fields).unwrap(),
        schema: &Schema::empty(),
        ignore_nulls: false,
        order_bys: &[],
        is_reversed: false,
        name: "aggregate",
        is_distinct: false,
        exprs: &[],
        expr_fields: &fields,
    };
    function.create_groups_accumulator(args).unwrap()
}
