//! Whether a view can answer a query's aggregation, and how.
//!
//! *Place*: [`super`] asks it for each view of the table.
//!
//! *Invariants*: (1) what is not proved is refused, with the reason; (2) a proof holds for the rows that the view's state covers:
//! which these are is [`super::coverage`]'s matter; (3) HAVING and what else stands above a view's aggregation does not matter,
//! its state has every group.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::{DFSchema, DFSchemaRef, ScalarValue, TableReference};
use datafusion::execution::context::SessionState;
use datafusion::functions::core::expr_fn::{get_field, named_struct, nullif};
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::{Cast, Expr, ExprSchemable, lit};
use datafusion::sql::unparser::Unparser;

use super::derive::Keys;
use super::imply::implied;
use super::query::{Query, Range};
use crate::catalog::Table;
use crate::error::Result;
use crate::query::error::from_datafusion;
use crate::view::{Aggregate, Bucket, Matching, Spec, Takes, row_arguments};

/// How a view answers.
#[derive(Debug)]
pub struct Proof {
    /// The query's grouping over the view's keys.
    pub keys: Vec<Expr>,
    /// The query's aggregates.
    pub parts: Vec<Part>,
    /// Leftover conjuncts over the view's keys, but for the range.
    pub filters: Vec<Expr>,
    /// Event times that the query asks for.
    pub range: Range,
    /// The bucket by which state can be cut to ranges of event time.
    pub bucket: Option<Bucket>,
}

/// How one aggregate is computed from state rows.
#[derive(Debug)]
pub struct Part {
    /// Its accumulators.
    pub aggregate: Arc<Aggregate>,
    /// What its arguments over state rows are.
    pub takes: Takes,
    /// Over the scan of states.
    pub arguments: Vec<Expr>,
    /// Which state rows count: FILTER over keys.
    pub filter: Option<Expr>,
}

/// Why a view cannot answer.
#[derive(Debug)]
pub enum Reason {
    /// Its filter keeps fewer rows.
    Narrower(Expr),
    /// The query filters by what the view does not keep.
    Filter(Expr),
    /// The query groups by what the view does not keep.
    Key(Expr),
    /// An aggregate whose state the view does not have.
    Call(Box<AggregateFunction>),
    /// An aggregate whose value depends on the order of rows.
    Order(Box<AggregateFunction>),
    /// Event time is bounded, but the view has no time bucket.
    NoBucket,
    /// Anything else, in words.
    Other(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Narrower(filter) => write!(f, "it keeps only rows where {}", shown(filter)),
            Reason::Filter(filter) => write!(f, "its keys do not decide {}", shown(filter)),
            Reason::Key(key) => write!(f, "its keys do not determine {}", shown(key)),
            Reason::Call(call) => write!(f, "it does not keep {}", shown(&Expr::AggregateFunction(call.as_ref().clone()))),
            Reason::Order(call) => {
                write!(f, "{} depends on the order of rows that it leaves open", shown(&Expr::AggregateFunction(call.as_ref().clone())))
            }
            Reason::NoBucket => f.write_str("it has no time bucket of fixed width to cut by event time"),
            Reason::Other(text) => f.write_str(text),
        }
    }
}

/// An expression as SQL, as far as it can be written so.
fn shown(expr: &Expr) -> String {
    let unparser = Unparser::default().with_pretty(true);
    unparser.expr_to_sql(expr).map_or_else(|_| expr.human_display().to_string(), |sql| sql.to_string())
}

/// What the proofs of one query have in common.
pub struct Prover<'a> {
    /// DataFusion's state.
    pub session: &'a SessionState,
    /// The table.
    pub table: &'a Table,
    /// The query.
    pub query: &'a Query,
    /// The aggregation's output.
    pub schema: &'a DFSchemaRef,
}

/// Aggregates whose value depends on the order of rows.
const ORDERED: [&str; 5] = ["array_agg", "string_agg", "first_value", "last_value", "nth_value"];

impl Prover<'_> {
    /// Proves that the states of `spec`, scanned as `relation`, answer the query.
    pub fn prove(&self, spec: &Spec, matching: &Matching, relation: &TableReference) -> Result<Result<Proof, Reason>> {
        let keys = Keys::new(matching, relation);
        if let Some(filter) = matching.filters.iter().find(|filter| !implied(&self.query.filters, filter)) {
            return Ok(Err(Reason::Narrower(filter.clone())));
        }
        let mut filters = Vec::new();
        let mut range = Range::ALL;
        for (filter, times) in self.query.filters.iter().zip(&self.query.ranges) {
            if matching.filters.contains(filter) {
                continue;
            }
            match times {
                Some(times) if !matching.buckets.is_empty() => range = range.and(*times),
                Some(_) => return Ok(Err(Reason::NoBucket)),
                None => match keys.derive(filter) {
                    Some(derived) => filters.push(derived),
                    None => return Ok(Err(Reason::Filter(filter.clone()))),
                },
            }
        }
        let mut group = Vec::with_capacity(self.query.keys.len());
        for key in &self.query.keys {
            match keys.derive(key) {
                Some(derived) => group.push(derived),
                None => return Ok(Err(Reason::Key(key.clone()))),
            }
        }
        let mut parts = Vec::with_capacity(self.query.calls.len());
        for (index, call) in self.query.calls.iter().enumerate() {
            let output = self.schema.field(self.query.keys.len() + index).data_type();
            match self.part(spec, matching, &keys, call, output)? {
                Ok(part) => parts.push(part),
                Err(reason) => return Ok(Err(reason)),
            }
        }
        Ok(Ok(Proof { keys: group, parts, filters, range, bucket: matching.buckets.first().copied() }))
    }

    fn part(
        &self,
        spec: &Spec,
        matching: &Matching,
        keys: &Keys<'_>,
        call: &AggregateFunction,
        output: &DataType,
    ) -> Result<Result<Part, Reason>> {
        let missing = || Reason::Call(Box::new(call.clone()));
        if self.depends_on_order(call) {
            return Ok(Err(Reason::Order(Box::new(call.clone()))));
        }
        let kept = |wanted: &AggregateFunction| {
            let fits =
                |(_, (known, aggregate)): &(usize, (&AggregateFunction, &Arc<Aggregate>))| *known == wanted && aggregate.output() == output;
            matching.calls.iter().zip(spec.aggregates()).enumerate().find(fits).map(|(index, (_, aggregate))| (index, aggregate))
        };
        let of_state = |(index, aggregate): (usize, &Arc<Aggregate>), filter: Option<Expr>| {
            Ok(Part { aggregate: Arc::clone(aggregate), takes: Takes::States, arguments: vec![keys.state(index)], filter })
        };
        if let Some(found) = kept(call) {
            return Ok(of_state(found, None));
        }
        // FILTER over keys decides whole state rows.
        let mut plain = call.clone();
        let filter = match plain.params.filter.take() {
            None => None,
            Some(filter) => match keys.derive(&filter) {
                Some(derived) => Some(derived),
                None => return Ok(Err(missing())),
            },
        };
        if filter.is_some()
            && let Some(found) = kept(&plain)
        {
            return Ok(of_state(found, filter));
        }
        if let Some(part) = self.over_keys(spec, matching, keys, &plain, output, filter.clone())? {
            return Ok(Ok(part));
        }
        match self.average(spec, matching, keys, &plain, output, filter)? {
            Some(part) => Ok(Ok(part)),
            None => Ok(Err(missing())),
        }
    }

    /// Whether rows that are equal in a call's ORDER BY could change its value.
    fn depends_on_order(&self, call: &AggregateFunction) -> bool {
        if !ORDERED.contains(&call.func.name()) {
            return false;
        }
        let ordered_by = |expr: &Expr| call.params.order_by.iter().any(|order| order.expr == *expr);
        let key = self.table.options.dedup_key.and_then(|column| self.table.columns.get(column));
        let by_key = key.is_some_and(|key| {
            call.params.order_by.iter().any(|order| matches!(&order.expr, Expr::Column(column) if column.name == key.name))
        });
        !by_key && !call.params.args.iter().all(|argument| matches!(argument, Expr::Literal(..)) || ordered_by(argument))
    }

    /// An aggregate to which repeated rows make no difference, of expressions over keys: every state row stands for rows with
    /// these values.
    fn over_keys(
        &self,
        spec: &Spec,
        matching: &Matching,
        keys: &Keys<'_>,
        call: &AggregateFunction,
        output: &DataType,
        filter: Option<Expr>,
    ) -> Result<Option<Part>> {
        let idempotent = matches!(call.func.name(), "min" | "max" | "bool_and" | "bool_or" | "bit_and" | "bit_or" | "approx_distinct")
            || (call.params.distinct && matches!(call.func.name(), "count" | "sum" | "avg"));
        if !idempotent || !call.params.order_by.is_empty() {
            return Ok(None);
        }
        let Some(arguments) = call.params.args.iter().map(|argument| keys.derive(argument)).collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        let aggregate = matching.normalizer.aggregate(self.session, call, output)?;
        let mut over = call.clone();
        over.params.args = arguments;
        let schema = DFSchema::try_from_qualified_schema(keys.relation().clone(), &spec.states_schema()).map_err(from_datafusion)?;
        let arguments = row_arguments(&over, &schema)?;
        Ok(Some(Part { aggregate, takes: Takes::Rows, arguments, filter }))
    }

    /// `avg(x)` from the states of `sum(x)` and `count(x)`.
    fn average(
        &self,
        spec: &Spec,
        matching: &Matching,
        keys: &Keys<'_>,
        call: &AggregateFunction,
        output: &DataType,
        filter: Option<Expr>,
    ) -> Result<Option<Part>> {
        if call.func.name() != "avg" || call.params.distinct || call.params.args.len() != 1 {
            return Ok(None);
        }
        let schema = matching.normalizer.schema();
        let exact = |expr: &Expr| without_exact_casts(expr, &|expr| expr.get_type(schema).ok()).clone();
        let argument = exact(&call.params.args[0]);
        let counted = argument.nullable(schema).is_ok_and(|nullable| !nullable);
        let mut count = None;
        let mut sum = None;
        for (index, known) in matching.calls.iter().enumerate() {
            let params = &known.params;
            if params.distinct || params.filter.is_some() || params.args.len() != 1 {
                continue;
            }
            match known.func.name() {
                "count" if exact(&params.args[0]) == argument || (counted && params.args[0] == lit(1_i64)) => count = Some(index),
                "sum" if exact(&params.args[0]) == argument => sum = Some(index),
                _ => {}
            }
        }
        let (Some(count), Some(sum)) = (count, sum) else { return Ok(None) };
        let aggregate = matching.normalizer.aggregate(self.session, call, output)?;
        // As DataFusion keeps an average: how many, then the sum.
        let fields = aggregate.state_fields();
        let [count_field, sum_field] = fields.as_ref() else { return Ok(None) };
        let kept = |index: usize| spec.aggregates()[index].state_fields();
        let [_] = kept(count).as_ref() else { return Ok(None) };
        let [sum_kept] = kept(sum).as_ref().first_chunk::<1>().cloned().unwrap_or_else(|| [Arc::clone(sum_field)]);
        let floats = sum_field.data_type().is_floating();
        let exact_cast = match (sum_kept.data_type(), sum_field.data_type()) {
            (DataType::Float64, DataType::Float64) => floats,
            (from, DataType::Decimal128(_, scale)) => {
                from.is_integer() || matches!(from, DataType::Decimal128(_, own) | DataType::Decimal256(_, own) if own <= scale)
            }
            _ => false,
        };
        if kept(sum).len() != 1 || !exact_cast || !count_field.data_type().is_integer() {
            return Ok(None);
        }
        let part = |index: usize, kind: &DataType| Expr::Cast(Cast::new(Box::new(get_field(keys.state(index), "0")), kind.clone()));
        // An average of nothing has no count either: it would be divided by.
        let nothing = lit(ScalarValue::new_zero(count_field.data_type()).map_err(from_datafusion)?);
        let state = named_struct(vec![
            lit(ScalarValue::Utf8(Some("0".to_owned()))),
            nullif(part(count, count_field.data_type()), nothing),
            lit(ScalarValue::Utf8(Some("1".to_owned()))),
            part(sum, sum_field.data_type()),
        ]);
        Ok(Some(Part { aggregate, takes: Takes::States, arguments: vec![state], filter }))
    }
}

/// An expression without the casts around it that keep its value exactly: integers and decimals to decimals of no fewer digits
/// after the point, integers to wider ones.
fn without_exact_casts<'a>(expr: &'a Expr, kind_of: &dyn Fn(&Expr) -> Option<DataType>) -> &'a Expr {
    let Expr::Cast(cast) = expr else { return expr };
    let Some(from) = kind_of(&cast.expr) else { return expr };
    let exact = match (&from, cast.field.data_type()) {
        (from, DataType::Decimal128(_, scale)) if from.is_integer() => *scale >= 0,
        (DataType::Decimal128(_, own), DataType::Decimal128(_, scale)) => own <= scale,
        (DataType::Int16 | DataType::Int32 | DataType::Int64, DataType::Int64) => true,
        _ => false,
    };
    if exact { without_exact_casts(&cast.expr, kind_of) } else { expr }
}
