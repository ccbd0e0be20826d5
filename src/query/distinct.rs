//! COUNT(DISTINCT) beside other aggregates.
//!
//! *Place*: stands in for DataFusion's rule in both of the engine's rule lists.
//!
//! That rule turns one DISTINCT aggregate into two groupings and sums the others' partial sums again. Here `sum` has a wider
//! type than its argument, so a sum of sums would have another type than the query announced: such plans keep one grouping, and
//! texts are counted by [`CountDistinct`]. DataFusion's accumulator of texts begins with a table for 512 of them, for each group, which it
//! does not count as memory: a million groups would take forty gigabytes unnoticed.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, AsArray, BinaryArray, StringViewArray};
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::tree_node::Transformed;
use datafusion::common::utils::SingleRowListArrayBuilder;
use datafusion::common::{Result, ScalarValue, internal_err};
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{
    Accumulator, Aggregate, AggregateUDF, AggregateUDFImpl, Expr, ExprSchemable, LogicalPlan, Signature, Volatility,
};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::single_distinct_to_groupby::SingleDistinctToGroupBy;
use datafusion::optimizer::{Optimizer, OptimizerConfig, OptimizerRule};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use xxhash_rust::xxh3::xxh3_64;

/// DataFusion's rule, for plans whose other aggregates keep their type.
#[derive(Debug, Default)]
pub struct SingleDistinct(SingleDistinctToGroupBy);

impl OptimizerRule for SingleDistinct {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        self.0.apply_order()
    }

    fn supports_rewrite(&self) -> bool {
        true
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let done = match &plan {
            LogicalPlan::Aggregate(aggregate) if aggregate.aggr_expr.iter().any(changes_type) => Transformed::no(plan),
            _ => self.0.rewrite(plan, config)?,
        };
        if done.transformed { Ok(done) } else { count_texts(done.data) }
    }
}

fn changes_type(expression: &Expr) -> bool {
    match expression {
        Expr::Alias(alias) => changes_type(&alias.expr),
        Expr::AggregateFunction(call) => !call.params.distinct && !matches!(call.func.name(), "min" | "max"),
        _ => true,
    }
}

/// Puts [`CountDistinct`] in the place of `count(DISTINCT text)`.
fn count_texts(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let LogicalPlan::Aggregate(aggregate) = plan else { return Ok(Transformed::no(plan)) };
    let is_text = |call: &AggregateFunction| {
        let [argument] = call.params.args.as_slice() else { return false };
        let counts = call.params.distinct && call.params.order_by.is_empty() && call.func.name() == "count";
        counts && matches!(argument.get_type(aggregate.input.schema()), Ok(DataType::Utf8View | DataType::Binary))
    };
    let is_meant = |expression: &Expr| match expression {
        Expr::Alias(alias) => matches!(alias.expr.as_ref(), Expr::AggregateFunction(call) if is_text(call)),
        Expr::AggregateFunction(call) => is_text(call),
        _ => false,
    };
    if !aggregate.aggr_expr.iter().any(is_meant) {
        return Ok(Transformed::no(LogicalPlan::Aggregate(aggregate)));
    }
    let replaced = aggregate.aggr_expr.iter().map(|expression| {
        if !is_meant(expression) {
            return expression.clone();
        }
        let name = expression.schema_name().to_string();
        let call = expression.clone().unalias();
        let Expr::AggregateFunction(mut call) = call else { return expression.clone() };
        call.func = count_distinct();
        call.params.distinct = false;
        Expr::AggregateFunction(call).alias(name)
    });
    let replaced: Vec<Expr> = replaced.collect();
    let Aggregate { input, group_expr, schema, .. } = aggregate;
    Aggregate::try_new_with_schema(input, group_expr, replaced, schema).map(|aggregate| Transformed::yes(LogicalPlan::Aggregate(aggregate)))
}

fn count_distinct() -> Arc<AggregateUDF> {
    static FUNCTION: LazyLock<Arc<AggregateUDF>> =
        LazyLock::new(|| Arc::new(AggregateUDF::new_from_impl(CountDistinct { signature: Signature::any(1, Volatility::Immutable) })));
    Arc::clone(&FUNCTION)
}

/// `count(DISTINCT value)` of texts and bytes, in as much memory as they take.
#[derive(Debug, PartialEq, Eq, Hash)]
struct CountDistinct {
    signature: Signature,
}

impl AggregateUDFImpl for CountDistinct {
    fn name(&self) -> &'static str {
        "count_distinct"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Int64)
    }

    fn is_nullable(&self) -> bool {
        false
    }

    fn default_value(&self, _: &DataType) -> Result<ScalarValue> {
        Ok(ScalarValue::Int64(Some(0)))
    }

    /// The values as a list.
    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let item = Field::new_list_field(args.input_fields[0].data_type().clone(), true);
        Ok(vec![Arc::new(Field::new_list(format_state_name(args.name, "values"), item, false))])
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(Values { is_text: args.expr_fields[0].data_type() == &DataType::Utf8View, values: HashTable::new(), bytes: 0 }))
    }
}

/// Each value once.
#[derive(Debug)]
struct Values {
    is_text: bool,
    values: HashTable<Box<[u8]>>,
    /// Their lengths.
    bytes: usize,
}

/// What the allocator takes besides for each value, about.
const VALUE_OVERHEAD_BYTES: usize = 16;

impl Values {
    fn add(&mut self, value: &[u8]) {
        let hash = xxh3_64(value);
        if let Entry::Vacant(place) = self.values.entry(hash, |known| known.as_ref() == value, |known| xxh3_64(known)) {
            place.insert(value.into());
            self.bytes += value.len() + VALUE_OVERHEAD_BYTES;
        }
    }
}

impl Accumulator for Values {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        if let Some(texts) = values[0].as_string_view_opt() {
            texts.iter().flatten().for_each(|text| self.add(text.as_bytes()));
        } else if let Some(bytes) = values[0].as_binary_opt::<i32>() {
            bytes.iter().flatten().for_each(|bytes| self.add(bytes));
        } else {
            return internal_err!("values of {} are not counted here", values[0].data_type());
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Int64(Some(self.values.len() as i64)))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.values.allocation_size() + self.bytes
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let known = self.values.iter();
        let values: ArrayRef = match self.is_text {
            true => Arc::new(known.map(|value| str::from_utf8(value).ok()).collect::<StringViewArray>()),
            false => Arc::new(known.map(|value| Some(value.as_ref())).collect::<BinaryArray>()),
        };
        Ok(vec![ScalarValue::List(Arc::new(SingleRowListArrayBuilder::new(values).build_list_array()))])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let Some(lists) = states[0].as_list_opt::<i32>() else { return internal_err!("the state of a count is no list") };
        lists.iter().flatten().try_for_each(|values| self.update_batch(&[values]))
    }
}

/// DataFusion's rules with this one in its place.
pub fn rules() -> Vec<Arc<dyn OptimizerRule + Send + Sync>> {
    let own: Arc<dyn OptimizerRule + Send + Sync> = Arc::new(SingleDistinct::default());
    Optimizer::new().rules.into_iter().map(|rule| if rule.name() == own.name() { Arc::clone(&own) } else { rule }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Values {
        Values { is_text: true, values: HashTable::new(), bytes: 0 }
    }

    #[test]
    fn texts_are_counted_once_in_the_memory_they_take() {
        let texts = |texts: &[Option<&str>]| vec![Arc::new(texts.iter().copied().collect::<StringViewArray>()) as ArrayRef];
        let mut left = values();
        assert!(left.size() < 128, "an empty group is small: {}", left.size());
        left.update_batch(&texts(&[Some("a"), None, Some(""), Some("a text longer than twelve bytes")])).unwrap();
        assert!(left.size() < 512, "{}", left.size());
        let mut right = values();
        right.update_batch(&texts(&[Some("b"), Some("a")])).unwrap();
        let state = right.state().unwrap()[0].to_array().unwrap();
        left.merge_batch(&[state]).unwrap();
        left.merge_batch(&[values().state().unwrap()[0].to_array().unwrap()]).unwrap();
        assert_eq!(left.evaluate().unwrap(), ScalarValue::Int64(Some(4)));
    }
}
