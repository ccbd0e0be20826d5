//! From a bound plan to one that can be optimized: parameters, NOW() and the like become values, relations become
//! providers of the snapshot.
//!
//! *Place*: first step of `Engine::run`; `query::bind` uses [`values`] alone for expressions kept in the catalog.

use std::sync::Arc;

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Result, ScalarValue};
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::expr::{Placeholder, ScalarFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{BinaryExpr, Expr, LogicalPlan, Operator, TableScan};

use super::Context;
use super::functions::session::{Values, kind_of};
use super::functions::{time, zone};
use super::provider::{Relation, Unresolved};
use super::system::SystemTables;
use super::typing::casts::to;
use crate::error::{Error, SqlState};
use crate::types::SqlType;

/// Where relations are read: the snapshot, DataFusion's state for their scans, the system schemas.
pub type Relations<'a> = (&'a Context, &'a Arc<SessionState>, Option<&'a Arc<dyn SystemTables>>);

/// What replaces the open parts of a plan.
#[derive(Debug)]
pub struct Resolver<'a> {
    /// NOW(), time zone, user.
    pub values: Option<Values<'a>>,
    /// Time zone alone, where `values` is none.
    pub time_zone: &'a str,
    /// Parameter values, already of their declared types.
    pub parameters: &'a [ScalarValue],
    /// Snapshot and system tables; none leaves relations as they are.
    pub relations: Option<Relations<'a>>,
}

impl Resolver<'_> {
    /// Resolves a plan and its subqueries.
    pub fn plan(&self, plan: LogicalPlan) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(|plan| self.node(plan)).map(|resolved| resolved.data)
    }

    fn node(&self, plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
        if let LogicalPlan::TableScan(scan) = plan {
            return self.scan(scan);
        }
        let names = NamePreserver::new(&plan);
        plan.map_expressions(|expression| {
            if !self.is_open(&expression)? {
                return Ok(Transformed::no(expression));
            }
            let name = names.save(&expression);
            Ok(self.expression(expression)?.update_data(|expression| name.restore(expression)))
        })
    }

    fn is_open(&self, expression: &Expr) -> Result<bool> {
        expression.exists(|expression| {
            Ok(match expression {
                Expr::Placeholder(_) => true,
                Expr::ScalarFunction(function) => kind_of(function).is_some(),
                _ => false,
            })
        })
    }

    fn scan(&self, mut scan: TableScan) -> Result<Transformed<LogicalPlan>> {
        let (Some(unresolved), Some((context, state, system))) = (scan.source.downcast_ref::<Unresolved>(), &self.relations) else {
            return Ok(Transformed::no(LogicalPlan::TableScan(scan)));
        };
        let resolved = match &unresolved.relation {
            Relation::Series(arguments) => {
                let arguments = arguments.iter().map(|argument| Ok(self.expression(argument.clone())?.data)).collect::<Result<Vec<_>>>()?;
                let schema = datafusion::logical_expr::TableSource::schema(unresolved);
                Unresolved::new(Relation::Series(arguments), unresolved.name.clone(), schema).resolve(context, state, *system)?
            }
            _ => unresolved.resolve(context, state, *system)?,
        };
        scan.source = resolved;
        Ok(Transformed::yes(LogicalPlan::TableScan(scan)))
    }

    /// Resolves an expression.
    pub fn expression(&self, expression: Expr) -> Result<Transformed<Expr>> {
        expression.transform_up(|expression| {
            Ok(match expression {
                Expr::Placeholder(placeholder) => Transformed::yes(self.parameter(placeholder)?),
                Expr::ScalarFunction(function) => self.function(function)?,
                other => Transformed::no(other),
            })
        })
    }

    fn parameter(&self, placeholder: Placeholder) -> Result<Expr> {
        let number: Option<usize> = placeholder.id.trim_start_matches('$').parse().ok();
        let value = number.and_then(|number| self.parameters.get(number.checked_sub(1)?));
        let Some(value) = value else {
            return Err(Error::new(SqlState::UNDEFINED_PARAMETER, format!("there is no parameter {}", placeholder.id)).into());
        };
        let value = match &placeholder.field {
            Some(field) if field.data_type() != &value.data_type() => value.cast_to(field.data_type())?,
            _ => value.clone(),
        };
        Ok(Expr::Literal(value, None))
    }

    fn function(&self, function: ScalarFunction) -> Result<Transformed<Expr>> {
        if let Some(kind) = kind_of(&function) {
            return Ok(match (&self.values, kind) {
                (Some(values), kind) => Transformed::yes(Expr::Literal(values.value(kind, &function.args)?, None)),
                (None, super::functions::session::Kind::TimeZone) => {
                    Transformed::yes(Expr::Literal(ScalarValue::Utf8View(Some(self.time_zone.to_owned())), None))
                }
                (None, _) => Transformed::no(Expr::ScalarFunction(function)),
            });
        }
        match function.func.name() {
            // In UTC only the type changes, not the number.
            zone::LOCAL if is_utc(function.args.first()) => {
                Ok(Transformed::yes(last_as(function, DataType::Timestamp(TimeUnit::Microsecond, None))?))
            }
            zone::INSTANT if is_utc(function.args.first()) => Ok(Transformed::yes(last_as(function, SqlType::Timestamptz.arrow())?)),
            time::TRUNCATE_IN_ZONE if is_utc(function.args.get(2)) => {
                let mut args = function.args;
                args.truncate(2);
                Ok(Transformed::yes(time::truncate().call(args)))
            }
            zone::ADD if is_utc(function.args.get(2)) => Ok(Transformed::yes(plain(function, Operator::Plus)?)),
            zone::SUBTRACT if is_utc(function.args.get(2)) => Ok(Transformed::yes(plain(function, Operator::Minus)?)),
            _ => Ok(Transformed::no(Expr::ScalarFunction(function))),
        }
    }
}

fn is_utc(zone: Option<&Expr>) -> bool {
    match zone {
        Some(Expr::Literal(value, _)) => {
            value.try_as_str().flatten().is_some_and(|name| zone::parse(name).is_ok_and(crate::types::zone::Zone::is_utc))
        }
        _ => false,
    }
}

fn last_as(mut function: ScalarFunction, data_type: DataType) -> Result<Expr> {
    match function.args.pop() {
        Some(argument) => Ok(to(argument, data_type)),
        None => Err(Error::internal("a conversion between zones without a time").into()),
    }
}

/// In UTC an interval is added as DataFusion adds it, which its optimizer knows.
fn plain(function: ScalarFunction, operator: Operator) -> Result<Expr> {
    let [instant, interval, _] =
        <[Expr; 3]>::try_from(function.args).map_err(|_| Error::internal("an interval is added without its zone"))?;
    Ok(Expr::BinaryExpr(BinaryExpr::new(Box::new(instant), operator, Box::new(interval))))
}
