//! `FUNNEL(events, steps := [a, b, ...], ...)`: how many entities get from step to step.
//!
//! *Place*: an operator (see [`super`]). Paper: section 4.2, listings 12 and 13.
//!
//! Output, long: the columns of `group_by`, then `step int, step_name text, entities bigint, conversion double, step_conversion double,
//! median_seconds double`, a row for each step of each group that somebody entered. `step_name` is the step's text, `conversion` is of
//! step 1, `step_conversion` and `median_seconds` of the step before (NULL at step 1). Wide: the columns of `group_by`, then
//! `step_1 ... step_n bigint`.
//!
//! Lowered to two aggregations. Rows are hashed by entity; [`path`] keeps of each event what it takes (its time, the order of its
//! arrival, the steps that it satisfies as bits) and searches the entity's chain ([`chain`]) once they are all there. [`summary`] counts
//! the paths of a group. Both are aggregate functions, so DataFusion partitions, parallelizes and spills them.
//!
//! Rows that satisfy no step are filtered out before that, in the scan where it can, unless they matter: in mode strict, and where
//! an entity's group is that of its first or last event, whichever that is. Rows without a time or without `by` belong to nobody.

mod chain;
mod interned;
mod one;
mod path;
mod settled;
mod sliding;
mod state;
mod summary;
#[cfg(test)]
mod tests;

use arrow::datatypes::DataType;
use datafusion::common::{Column, Result, ScalarValue};
use datafusion::functions::core::expr_fn::get_field;
use datafusion::functions_aggregate::count::count_udaf;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, lit, when};
use sqlparser::ast;

use super::{Argument, Call, Operator};
use crate::error::{Error, SqlState};
use crate::query::functions::repeated::rows_of_lists;
use crate::query::names;
use crate::query::rewrite::SUFFIX;
use crate::query::typing::casts;
use chain::{Mode, Rules};
use path::{Attribution, GAPS, REACHED, Shape, key_name};
pub use settled::settle;

const STEPS_MAX: usize = 64;
/// Whose path it is where nothing is said.
const BY: &str = "session_id";

/// The operator.
#[derive(Debug)]
pub struct Funnel;

impl Operator for Funnel {
    fn name(&self) -> &'static str {
        "FUNNEL"
    }

    fn arguments(&self) -> &'static [Argument] {
        const ARGUMENTS: [Argument; 13] = [
            Argument::required("steps"),
            Argument::optional("window"),
            Argument::optional("window_from"),
            Argument::optional("by"),
            Argument::optional("time"),
            Argument::optional("group_by"),
            Argument::optional("attribution"),
            Argument::optional("mode"),
            Argument::optional("repeat"),
            Argument::optional("exclude"),
            Argument::optional("having_same"),
            Argument::optional("filters"),
            Argument::optional("format"),
        ];
        &ARGUMENTS
    }

    fn example(&self) -> &'static str {
        "FUNNEL(events, steps := [event_type = 'product_view', event_type = 'purchase'], window := INTERVAL '30' MINUTE)"
    }

    fn plan(&self, mut call: Call<'_>) -> Result<LogicalPlan> {
        let parts = Parts::of(&mut call)?;
        let paths = parts.paths(&call)?;
        match parts.wide {
            true => parts.wide(paths),
            false => parts.long(paths),
        }
    }
}

/// The arguments.
struct Parts {
    names: Vec<String>,
    steps: Vec<Expr>,
    window: Expr,
    by: Vec<Expr>,
    time: Expr,
    /// What an entity is grouped by, with the names of the columns.
    keys: Vec<(String, Expr)>,
    exclude: Vec<Expr>,
    same: Vec<Expr>,
    filters: Vec<Expr>,
    shape: Shape,
    wide: bool,
}

impl Parts {
    fn of(call: &mut Call<'_>) -> Result<Self> {
        let names: Vec<String> = call.items("steps").iter().map(names::text).collect();
        if names.is_empty() || names.len() > STEPS_MAX {
            return Err(call.wrong("steps", format!("must be 1 to {STEPS_MAX} conditions, not {}", names.len())).into());
        }
        let steps = call.conditions("steps")?;
        let from_first = call.choice("window_from", &["previous", "first"])? == 1;
        let window =
            call.interval_us("window")?.unwrap_or_else(|| casts::to(Expr::Literal(ScalarValue::Int64(None), None), DataType::Int64));
        let by = by(call)?;
        let time = call.time("time")?;
        let wide = call.choice("format", &["long", "wide"])? == 1;
        let own = if wide { (1..=names.len()).map(step_name).collect() } else { summary::COLUMNS.map(str::to_owned).to_vec() };
        let key_names = call.names("group_by", &own.iter().map(String::as_str).collect::<Vec<_>>())?;
        let keys: Vec<_> = key_names.into_iter().zip(call.expressions("group_by")?).collect();
        let attribution = match call.choice("attribution", &["first", "last", "step_1"])? {
            0 => Attribution::First,
            1 => Attribution::Last,
            _ => Attribution::Step1,
        };
        let mode = match call.choice("mode", &["ordered", "strict", "any"])? {
            0 => Mode::Ordered,
            1 => Mode::Strict,
            _ => Mode::Any,
        };
        let rules = Rules { steps: steps.len(), mode, from_first, repeat: call.flag("repeat", true)? };
        let same = call.expressions("having_same")?;
        let (exclude, filters) = (call.conditions("exclude")?, call.conditions("filters")?);
        let shape = Shape { rules, attribution, keys: keys.len(), sames: same.len(), excludes: !exclude.is_empty() };
        Ok(Self { names, steps, window, by, time, keys, exclude, same, filters, shape, wide })
    }

    /// Whether events that satisfy no step decide something.
    fn needs_all(&self) -> bool {
        self.shape.rules.mode == Mode::Strict || (!self.keys.is_empty() && self.shape.attribution != Attribution::Step1)
    }

    /// A row for each entity that reaches step 1: how far it gets, its times, its group.
    fn paths(&self, call: &Call<'_>) -> Result<LogicalPlan> {
        let mut counted =
            self.filters.iter().cloned().chain([self.time.clone().is_not_null()]).chain(self.by.iter().map(|by| by.clone().is_not_null()));
        let counted = counted.by_ref().reduce(Expr::and);
        let matching = self.steps.iter().chain(&self.exclude).cloned().reduce(Expr::or).filter(|_| !self.needs_all());
        let (path, entity) = (hidden("path"), |index| hidden(&format!("entity{index}")));
        let mut arguments = vec![
            self.time.clone(),
            call.input.order(),
            self.window.clone(),
            self.exclude.iter().cloned().reduce(Expr::or).unwrap_or_else(|| lit(false)),
        ];
        arguments.extend(self.steps.iter().cloned());
        arguments.extend(self.keys.iter().map(|(_, key)| key.clone()));
        arguments.extend(self.same.iter().cloned());
        let aggregate = AggregateFunction::new_udf(self.shape.clone().function(), arguments, false, None, Vec::new(), None);
        let mut input = LogicalPlanBuilder::from(call.input.plan.clone());
        for filter in counted.into_iter().chain(matching) {
            input = input.filter(filter)?;
        }
        let entities = self.by.iter().enumerate().map(|(index, by)| by.clone().alias(entity(index)));
        let field = |name: &str| get_field(Expr::Column(Column::new_unqualified(&path)), name);
        let mut columns = vec![field(REACHED).alias(hidden(REACHED)), field(GAPS).alias(hidden(GAPS))];
        columns.extend(self.keys.iter().enumerate().map(|(index, (name, _))| field(&key_name(index)).alias(name)));
        input
            .aggregate(entities, vec![Expr::AggregateFunction(aggregate).alias(&path)])?
            .project(columns)?
            .filter(column(&hidden(REACHED)).gt(lit(0)))?
            .build()
    }

    fn groups(&self) -> Vec<Expr> {
        self.keys.iter().map(|(name, _)| column(name)).collect()
    }

    fn long(&self, paths: LogicalPlan) -> Result<LogicalPlan> {
        let list = hidden("steps");
        let arguments = vec![column(&hidden(REACHED)), column(&hidden(GAPS))];
        let summary = AggregateFunction::new_udf(summary::function(self.names.clone()), arguments, false, None, Vec::new(), None);
        let mut columns = self.groups();
        columns.extend(summary::COLUMNS.iter().map(|name| get_field(column(&list), *name).alias(*name)));
        let steps = LogicalPlanBuilder::from(paths)
            .aggregate(self.groups(), vec![Expr::AggregateFunction(summary).alias(&list)])?
            .unnest_column(Column::new_unqualified(&list))?
            .build()?;
        LogicalPlanBuilder::from(rows_of_lists(steps)?).project(columns)?.build()
    }

    fn wide(&self, paths: LogicalPlan) -> Result<LogicalPlan> {
        let name = |index: usize| step_name(index + 1);
        let counts = (0..self.steps.len()).map(|index| {
            let reached = when(column(&hidden(REACHED)).gt(lit(index as i32)), lit(1)).end()?;
            let count = AggregateFunction::new_udf(count_udaf(), vec![reached], false, None, Vec::new(), None);
            Ok(Expr::AggregateFunction(count).alias(name(index)))
        });
        let counted = LogicalPlanBuilder::from(paths).aggregate(self.groups(), counts.collect::<Result<Vec<_>>>()?)?;
        let columns = self.groups().into_iter().chain((0..self.steps.len()).map(|index| column(&name(index))));
        // Without groups there is one of nobody too.
        counted.filter(column(&name(0)).gt(lit(0)))?.project(columns.collect::<Vec<_>>())?.build()
    }
}

/// The column of a step's number where each step is a column.
fn step_name(number: usize) -> String {
    format!("step_{number}")
}

/// A name that no column of the user has.
fn hidden(name: &str) -> String {
    format!("{SUFFIX}{name}")
}

fn column(name: &str) -> Expr {
    Expr::Column(Column::new_unqualified(name))
}

/// Whose path it is.
fn by(call: &mut Call<'_>) -> Result<Vec<Expr>> {
    let by = call.expressions("by")?;
    if !by.is_empty() {
        return Ok(by);
    }
    if call.syntax("by").is_some() {
        return Err(call.wrong("by", "must be one expression at least").into());
    }
    let schema = std::sync::Arc::clone(call.input.schema());
    if schema.index_of_column_by_name(None, BY).is_none() && !schema.fields().iter().any(|field| field.name() == BY) {
        let error = Error::new(SqlState::UNDEFINED_COLUMN, format!("column \"{BY}\" does not exist"))
            .detail("FUNNEL follows sessions unless it is told otherwise.")
            .hint("Say whose path it is with by := ...");
        return Err(error.into());
    }
    Ok(vec![call.planned(ast::Expr::Identifier(ast::Ident::new(BY)), &schema)?])
}
