//! `ATTRIBUTION(input, conversion := ..., channel := ... [, options])`: what each channel has contributed to conversions (paper 6.2).
//!
//! *Place*: reads the arguments and lowers them. [`journeys`] walks through an entity's rows, [`credit`] divides, [`markov`] and
//! [`removal`] are the model that needs all journeys at once.
//!
//! Lowered to: filter to rows that convert or touch; aggregate by entity, which gives each channel's parts; sum by channel; shares. By
//! removal, the entities give steps, whose sums are one small table that becomes parts.
//!
//! Output: `channel`, `conversions double precision` (in parts of 10^-9, which add up to the number of conversions),
//! `attributed_value numeric` (which adds up to the value of all conversions, exactly), `share double precision` (of that value). Conversions
//! without a touch have a row of their own, with no channel. The greatest values come first.

mod credit;
mod journeys;
mod markov;
mod removal;

use std::sync::Arc;

use arrow::datatypes::{DECIMAL128_MAX_PRECISION, DataType};
use datafusion::common::{Column, NullHandling, Result, ScalarValue, UnnestOptions};
use datafusion::functions_aggregate::sum::sum_udaf;
use datafusion::logical_expr::expr::{AggregateFunction, WindowFunction};
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{
    BinaryExpr, Expr, ExprFunctionExt, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Operator as Op, WindowFunctionDefinition, lit, when,
};
use sqlparser::ast;

use super::gather::{Kernel, gather};
use super::order::ordered;
use super::{Argument, Call, Operator};
use crate::error::{Error, SqlState};
use crate::query::functions::type_name;
use crate::query::rewrite::SUFFIX;
use crate::query::typing::casts::to;
use credit::{MODELS, Model};
use journeys::{CHANNEL, CREDIT, Journeys, KIND, PARTS, Settings, TO, VALUE};
use removal::Removal;

/// Where `by` is not given.
const ENTITY: &str = "user_id";
/// Days, where `lookback` is not given.
const LOOKBACK_US: i64 = 30 * 86_400_000_000;
/// Days, where `half_life` is not given.
const HALF_LIFE_US: i64 = 7 * 86_400_000_000;
/// Digits after the point of a value that is a double.
const DOUBLE_SCALE: i8 = 9;
/// Digits after the point that money has; a value that has fewer, such as a number of pieces, is divided as if it had more.
const MONEY_SCALE: i8 = 2;
/// What it has then.
const DIVIDED_SCALE: i8 = 6;

/// The operator.
#[derive(Debug)]
pub struct Attribution;

impl Operator for Attribution {
    fn name(&self) -> &'static str {
        "ATTRIBUTION"
    }

    fn arguments(&self) -> &'static [Argument] {
        const ARGUMENTS: [Argument; 10] = [
            Argument::required("conversion"),
            Argument::required("channel"),
            Argument::optional("value"),
            Argument::optional("touch"),
            Argument::optional("by"),
            Argument::optional("lookback"),
            Argument::optional("model"),
            Argument::optional("half_life"),
            Argument::optional("time"),
            Argument::optional("filters"),
        ];
        &ARGUMENTS
    }

    fn example(&self) -> &'static str {
        "ATTRIBUTION(events, conversion := event_type = 'purchase', value := revenue, touch := utm_source IS NOT NULL, \
         channel := utm_source, by := user_id, lookback := INTERVAL '30 days', model := 'linear')"
    }

    fn plan(&self, mut call: Call<'_>) -> Result<LogicalPlan> {
        let model = Model::at(call.choice("model", &MODELS)?);
        let conversion = call.condition("conversion")?.ok_or_else(|| Error::internal("attribution without a conversion"))?;
        let channel = call.expression("channel")?.ok_or_else(|| Error::internal("attribution without a channel"))?;
        let touch = call.condition("touch")?.unwrap_or_else(|| channel.clone().is_not_null());
        let (value, scale) = value(&mut call, &conversion)?;
        let entity = entity(&mut call)?;
        let time = call.time("time")?;
        let lookback = call.interval_us("lookback")?.unwrap_or_else(|| lit(LOOKBACK_US));
        let half_life = call.interval_us("half_life")?;
        if half_life.is_some() && model != Model::TimeDecay {
            return Err(call.wrong("half_life", "is for model := 'time_decay' alone").into());
        }
        let half_life = half_life.unwrap_or_else(|| lit(HALF_LIFE_US));
        let mut filters = call.conditions("filters")?;
        filters.push(conversion.clone().or(touch.clone()));
        let settings = Settings { model, scale, lookback_us: constant(&lookback), half_life_us: constant(&half_life) };
        let nobody = entity.clone().is_null();
        let mut arguments = vec![time, call.input.order(), conversion, touch, channel, nobody];
        arguments.extend(value);
        arguments.extend(
            [(settings.lookback_us, lookback), (settings.half_life_us, half_life)]
                .into_iter()
                .filter_map(|(known, length)| known.is_none().then_some(length)),
        );
        let rows = match conjunction(filters) {
            Some(filter) => LogicalPlanBuilder::from(call.input.plan.clone()).filter(filter)?,
            None => LogicalPlanBuilder::from(call.input.plan.clone()),
        };
        let by_entity = vec![entity.alias(hidden("entity"))];
        let parts = match model {
            Model::Markov => {
                let steps = gathered(rows, by_entity, Journeys(settings), arguments, &[CHANNEL, TO, KIND, CREDIT, VALUE])?;
                let steps = steps.aggregate(
                    [CHANNEL, TO, KIND].map(|name| column(&hidden(name))).to_vec(),
                    vec![sum(CREDIT).alias(hidden("steps")), sum(VALUE).alias(hidden("worth"))],
                )?;
                let mut columns = [CHANNEL, TO, KIND].map(|name| column(&hidden(name))).to_vec();
                columns.push(to(column(&hidden("steps")), DataType::Int64));
                columns.push(column(&hidden("worth")));
                gathered(steps, Vec::new(), Removal, columns, &[CHANNEL, CREDIT, VALUE])?
            }
            _ => gathered(rows, by_entity, Journeys(settings), arguments, &[CHANNEL, CREDIT, VALUE])?,
        };
        shown(parts)
    }
}

fn hidden(name: &str) -> String {
    format!("{SUFFIX}{name}")
}

fn column(name: &str) -> Expr {
    Expr::Column(Column::new_unqualified(name))
}

fn sum(name: &str) -> Expr {
    Expr::AggregateFunction(AggregateFunction::new_udf(sum_udaf(), vec![column(&hidden(name))], false, None, Vec::new(), None))
}

/// A length that is known when the statement is planned.
fn constant(length: &Expr) -> Option<i64> {
    match length {
        Expr::Literal(ScalarValue::Int64(us), _) => *us,
        _ => None,
    }
}

/// Whose path it is.
fn entity(call: &mut Call<'_>) -> Result<Expr> {
    if let Some(entity) = call.expression("by")? {
        return Ok(entity);
    }
    let schema = Arc::clone(call.input.schema());
    if !schema.has_column_with_unqualified_name(ENTITY) {
        let error = Error::new(SqlState::UNDEFINED_FUNCTION, "ATTRIBUTION needs the argument \"by\"");
        return Err(error.detail(format!("The input has no column {ENTITY}, which it would be.")).into());
    }
    call.planned(ast::Expr::Identifier(ast::Ident::new(ENTITY)), &schema)
}

/// What a conversion is worth, as numeric of 38 digits, and its scale. Evaluated for conversions alone.
fn value(call: &mut Call<'_>, conversion: &Expr) -> Result<(Option<Expr>, Option<i8>)> {
    let Some(value) = call.expression("value")? else { return Ok((None, None)) };
    let found = value.get_type(call.input.schema())?;
    let scale = match &found {
        DataType::Decimal128(_, scale) if *scale >= MONEY_SCALE => *scale,
        // As far as every value fits.
        DataType::Decimal128(precision, scale) => {
            let room = i8::try_from(DECIMAL128_MAX_PRECISION - precision).unwrap_or(0);
            DIVIDED_SCALE.min(scale.saturating_add(room))
        }
        DataType::Float32 | DataType::Float64 => DOUBLE_SCALE,
        integer if integer.is_integer() => DIVIDED_SCALE,
        other => {
            return Err(call
                .wrong("value", format!("must be a number, not type {}", type_name(other)))
                .with_state(SqlState::DATATYPE_MISMATCH)
                .into());
        }
    };
    let data_type = DataType::Decimal128(DECIMAL128_MAX_PRECISION, scale);
    let none = Expr::Literal(ScalarValue::try_from(&data_type)?, None);
    let value = when(conversion.clone(), to(value, data_type)).otherwise(none)?;
    Ok((Some(value), Some(scale)))
}

/// Gathers by keys, and unnests the result's fields under hidden names.
fn gathered(
    plan: LogicalPlanBuilder,
    keys: Vec<Expr>,
    kernel: impl Kernel,
    arguments: Vec<Expr>,
    fields: &[&str],
) -> Result<LogicalPlanBuilder> {
    let list = hidden("list");
    let call = AggregateFunction::new_udf(gather(Arc::new(kernel)), arguments, false, None, Vec::new(), None);
    let field = |name: &&str| datafusion::functions::core::get_field().call(vec![column(&list), lit(*name)]).alias(hidden(name));
    let options = UnnestOptions::new().with_null_handling(NullHandling::Drop);
    plan.aggregate(keys, vec![Expr::AggregateFunction(call).alias(&list)])?
        .project(vec![column(&list)])?
        .unnest_columns_with_options(vec![Column::new_unqualified(&list)], options)?
        .project(fields.iter().map(field).collect::<Vec<_>>())
}

/// Sums by channel, shares, order.
fn shown(parts: LogicalPlanBuilder) -> Result<LogicalPlan> {
    let (credits, values, all) = (hidden("credits"), hidden("values"), hidden("all"));
    let total = WindowFunction::new(WindowFunctionDefinition::AggregateUDF(sum_udaf()), vec![column(&values)]);
    let plan = parts
        .aggregate(vec![column(&hidden(CHANNEL))], vec![sum(CREDIT).alias(&credits), sum(VALUE).alias(&values)])?
        .window(vec![Expr::from(total).partition_by(Vec::new()).build()?.alias(&all)])?;
    let double = |expr: Expr| Box::new(to(expr, DataType::Float64));
    let divided = |left: Box<Expr>, right: Box<Expr>| Expr::BinaryExpr(BinaryExpr::new(left, Op::Divide, right));
    // A share of nothing is none.
    let nothing = Box::new(Expr::Literal(ScalarValue::Float64(Some(0.0)), None));
    let is_nothing = Expr::BinaryExpr(BinaryExpr::new(double(column(&all)), Op::Eq, nothing));
    let share = when(is_nothing, Expr::Literal(ScalarValue::Float64(None), None))
        .otherwise(divided(double(column(&values)), double(column(&all))))?;
    let conversions = divided(double(column(&credits)), double(lit(PARTS)));
    let order = vec![column(&values).sort(false, false), column(&credits).sort(false, false), column(&hidden(CHANNEL)).sort(true, false)];
    ordered(plan, order)?
        .project(vec![
            column(&hidden(CHANNEL)).alias("channel"),
            conversions.alias("conversions"),
            column(&values).alias("attributed_value"),
            share.alias("share"),
        ])?
        .build()
}
