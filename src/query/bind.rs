//! From syntax to a typed plan: names resolved, parameters typed, output columns named.
//!
//! *Place*: `Engine::bind` for statements, and the catalog's `Binder` for what is kept as SQL text.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{DFSchema, Result as PlanResult};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Cast, Expr, ExprSchemable, LogicalPlan, Projection};
use datafusion::optimizer::Analyzer;
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::sql::planner::{ParserOptions, PlannerContext, SqlToRel};
use sqlparser::ast;

use super::error::from_datafusion;
use super::functions::session::Values;
use super::resolve::Resolver;
use super::scope::Scope;
use super::{Bound, catalogs, guards, parameters, rewrite, typing, windows};
use crate::clock::Micros;
use crate::error::{Error, Result, SqlState};
use crate::types::{SqlType, UTC};

/// Types a query. `declared` are the parameter types that the client gave.
pub fn query(scope: &Scope<'_>, query: &ast::Query, declared: &[Option<SqlType>]) -> Result<Bound> {
    let mut query = query.clone();
    catalogs::rewrite::query(&mut query);
    catalogs::rewrite::query(&mut query);
    rewrite::query(&mut query)?;
    let count = parameters::count(&query)?.max(declared.len());
    let mut types: Vec<Option<SqlType>> = declared.to_vec();
    types.resize(count, None);
    parameters::places(&query, &mut types);
    if types.iter().any(Option::is_none) {
        let mut probed = query.clone();
        let lists = parameters::probe(&mut probed, &types);
        let inferred = parameters::inferred(&plan(scope, probed, &types)?)?;
        for (index, known) in types.iter_mut().enumerate() {
            if known.is_none() {
                // What the operators around a parameter do not say is text, as in PostgreSQL.
                let found = inferred.get(&(index + 1)).cloned().unwrap_or(SqlType::Text);
                *known = Some(if lists.contains(&(index + 1)) { SqlType::Array(Box::new(found)) } else { found });
            }
        }
    }
    let plan = self::plan(scope, query, &types)?;
    let plan = guards::apply(analyze(scope, plan)?).and_then(windows::normalize).map_err(from_datafusion)?;
    let (plan, schema) = output(plan)?;
    Ok(Bound { plan, schema, parameters: types.into_iter().flatten().collect(), explain: None })
}

/// DataFusion's plan, typed as PostgreSQL would, not yet coerced.
fn plan(scope: &Scope<'_>, query: ast::Query, types: &[Option<SqlType>]) -> Result<LogicalPlan> {
    let fields: Vec<Option<FieldRef>> =
        types.iter().map(|known| known.as_ref().map(|sql_type| Arc::new(sql_type.field("", true)))).collect();
    let planner = SqlToRel::new_with_options(scope, parser_options());
    let mut context = PlannerContext::new().with_prepare_param_data_types(fields);
    let plan = planner.sql_statement_to_plan_with_context(ast::Statement::Query(Box::new(query)), &mut context).map_err(from_datafusion)?;
    typing::apply(plan).map_err(from_datafusion)
}

fn parser_options() -> ParserOptions {
    ParserOptions::new().with_parse_float_as_decimal(true).with_map_string_types_to_utf8view(true)
}

fn analyze(scope: &Scope<'_>, plan: LogicalPlan) -> Result<LogicalPlan> {
    Analyzer::new().execute_and_check(plan, scope.state.config_options(), |_, _| {}).map_err(from_datafusion)
}

/// Gives every output column the one Arrow type of its SQL type, and the schema that a client sees.
pub fn output(plan: LogicalPlan) -> Result<(LogicalPlan, SchemaRef)> {
    let mut changed = false;
    let mut columns = Vec::with_capacity(plan.schema().fields().len());
    let mut fields = Vec::with_capacity(columns.capacity());
    for (qualifier, field) in plan.schema().iter() {
        let sql_type = match field.data_type() {
            DataType::Null => SqlType::Text,
            _ => SqlType::of_field(field),
        };
        let target = canonical(field.data_type(), &sql_type);
        let column = Expr::Column((qualifier, field).into());
        columns.push(match target == *field.data_type() {
            true => column,
            false => {
                changed = true;
                let cast = Expr::Cast(Cast::new_from_field(Box::new(column), Arc::new(sql_type.field("", true))));
                cast.alias_qualified(qualifier.cloned(), field.name())
            }
        });
        fields.push(sql_type.field(rewrite::shown(field.name()), true));
    }
    let schema = Arc::new(Schema::new(fields));
    if !changed {
        return Ok((plan, schema));
    }
    let plan = Projection::try_new(columns, Arc::new(plan)).map(LogicalPlan::Projection).map_err(from_datafusion)?;
    Ok((plan, schema))
}

/// Lists keep their items' types: casting them would copy for nothing.
fn canonical(data_type: &DataType, sql_type: &SqlType) -> DataType {
    match (data_type, sql_type) {
        (DataType::List(item), SqlType::Array(element))
            if *item.data_type() == element.arrow() && *item.metadata() == *element.field("", true).metadata() =>
        {
            data_type.clone()
        }
        _ => sql_type.arrow(),
    }
}

/// A query kept in the catalog: bound in UTC, output columns canonical, without parameters.
pub fn stored_query(scope: &Scope<'_>, text: &str) -> Result<LogicalPlan> {
    let query = crate::sql::parse_query(text)?;
    let bound = self::query(scope, &query, &[])?;
    if !bound.parameters.is_empty() {
        return Err(Error::new(SqlState::UNDEFINED_PARAMETER, "there is no parameter $1"));
    }
    let resolver = Resolver { values: None, time_zone: UTC, parameters: &[], relations: None };
    resolver.plan(bound.plan).map_err(from_datafusion)
}

/// Expressions kept in the catalog, over rows of `schema`.
pub fn stored_expressions(
    scope: &Scope<'_>,
    schema: &SchemaRef,
    expressions: &[String],
    targets: &[Option<DataType>],
    now: Micros,
) -> Result<Vec<Arc<dyn PhysicalExpr>>> {
    let empty = BTreeMap::new();
    let resolver = Resolver {
        values: Some(Values { now, time_zone: UTC, user: "verus", backend: 0, settings: &empty }),
        time_zone: UTC,
        parameters: &[],
        relations: None,
    };
    let input = DFSchema::try_from(Arc::clone(schema)).map_err(from_datafusion)?;
    let planner = SqlToRel::new_with_options(scope, parser_options());
    let mut physical = Vec::with_capacity(expressions.len());
    for (index, text) in expressions.iter().enumerate() {
        let mut tree = crate::sql::parse_expression(text)?;
        rewrite::expression(&mut tree)?;
        let target = targets.get(index).and_then(Option::as_ref);
        let bound = expression(&planner, tree, &input, target, &resolver).map_err(from_datafusion)?;
        let bound = if depends_on_simplifying(&bound).map_err(from_datafusion)? {
            let options = Arc::clone(scope.state.config_options());
            let context = SimplifyContext::builder().with_schema(Arc::new(input.clone())).with_config_options(options).build();
            ExprSimplifier::new(context).simplify(bound).map_err(from_datafusion)?
        } else {
            bound
        };
        physical.push(scope.state.create_physical_expr(bound, &input).map_err(from_datafusion)?);
    }
    Ok(physical)
}

/// Whether a call is among it that does not look at all of its arguments (COALESCE): DataFusion runs it as the CASE that its simplifier makes of
/// it.
fn depends_on_simplifying(expression: &Expr) -> PlanResult<bool> {
    expression.exists(|each| Ok(matches!(each, Expr::ScalarFunction(call) if call.func.short_circuits())))
}

fn expression(
    planner: &SqlToRel<'_, Scope<'_>>,
    tree: ast::Expr,
    input: &DFSchema,
    target: Option<&DataType>,
    resolver: &Resolver<'_>,
) -> PlanResult<Expr> {
    let expression = planner.sql_to_expr(tree, input, &mut PlannerContext::new())?;
    let mut typed = typing::expression(expression, input)?.data;
    if let Some(target) = target {
        let found = typed.get_type(input)?;
        if found != *target {
            typed = typing::casts::assignment(typed, &found, target, input)?;
        }
    }
    Ok(resolver.expression(typed)?.data)
}

/// The one column of EXPLAIN.
pub fn explain_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("QUERY PLAN", DataType::Utf8View, true)]))
}
