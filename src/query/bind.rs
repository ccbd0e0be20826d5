//! From syntax to a typed plan: names resolved, parameters typed, output columns named.
//!
//! *Place*: `Engine::bind` for statements, and the catalog's `Binder` for what is kept as SQL text.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::common::{DFSchema, Result as PlanResult};
use datafusion::logical_expr::{Cast, Expr, ExprSchemable, LogicalPlan, Projection};
use datafusion::optimizer::Analyzer;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::sql::planner::{ParserOptions, PlannerContext, SqlToRel};
use sqlparser::ast;

use super::error::from_datafusion;
use super::functions::session::Values;
use super::provider::{Relation, Unresolved};
use super::resolve::Resolver;
use super::scope::Scope;
use super::{Bound, catalogs, rewrite, typing, windows};
use crate::clock::Micros;
use crate::error::{Error, Result, SqlState};
use crate::types::{SqlType, UTC};

/// Most parameters of a statement (they are counted in 16 bits on the wire).
const PARAMETERS_MAX: usize = 65_535;

/// Types a query. `declared` are the parameter types that the client gave.
pub fn query(scope: &Scope<'_>, query: &ast::Query, declared: &[Option<SqlType>]) -> Result<Bound> {
    let mut query = query.clone();
    catalogs::rewrite::query(&mut query);
    catalogs::rewrite::query(&mut query);
    rewrite::query(&mut query)?;
    let count = count_parameters(&query)?.max(declared.len());
    let mut types: Vec<Option<SqlType>> = declared.to_vec();
    types.resize(count, None);
    cast_parameters(&query, &mut types);
    let mut plan = plan(scope, query.clone(), &types)?;
    if types.iter().any(Option::is_none) {
        // What the operators around a parameter do not say is text, as in PostgreSQL.
        let inferred = inferred(&plan)?;
        for (index, known) in types.iter_mut().enumerate() {
            if known.is_none() {
                *known = Some(inferred.get(&(index + 1)).cloned().unwrap_or(SqlType::Text));
            }
        }
        plan = self::plan(scope, query, &types)?;
    }
    let plan = windows::normalize(analyze(scope, plan)?).map_err(from_datafusion)?;
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

/// A parameter that is cast where it stands has the type of the cast, as in PostgreSQL.
fn cast_parameters(query: &ast::Query, types: &mut [Option<SqlType>]) {
    let number = |expression: &ast::Expr| match expression {
        ast::Expr::Value(value) => match &value.value {
            ast::Value::Placeholder(name) => name.strip_prefix('$').and_then(|number| number.parse::<usize>().ok()),
            _ => None,
        },
        _ => None,
    };
    let _: ControlFlow<()> = ast::visit_expressions(query, |expression| {
        let cast = match expression {
            ast::Expr::Cast { expr, data_type, .. } => number(expr).zip(crate::sql::sql_type(data_type).ok()),
            // A cast to regclass and its like is a call by now, of the object's name.
            other => catalogs::rewrite::registered(other).and_then(number).map(|number| (number, SqlType::Text)),
        };
        if let Some((number, sql_type)) = cast
            && let Some(open @ None) = types.get_mut(number.wrapping_sub(1))
        {
            *open = Some(sql_type);
        }
        ControlFlow::Continue(())
    });
}

/// The number of the highest parameter.
fn count_parameters(query: &ast::Query) -> Result<usize> {
    struct Find(usize, Option<String>);
    impl ast::Visitor for Find {
        type Break = ();
        fn pre_visit_value(&mut self, value: &ast::ValueWithSpan) -> ControlFlow<()> {
            if let ast::Value::Placeholder(name) = &value.value {
                match name.strip_prefix('$').and_then(|number| number.parse::<usize>().ok()) {
                    Some(number @ 1..=PARAMETERS_MAX) => self.0 = self.0.max(number),
                    _ => self.1 = Some(name.clone()),
                }
            }
            ControlFlow::Continue(())
        }
    }
    let mut find = Find(0, None);
    let _ = ast::Visit::visit(query, &mut find);
    match find.1 {
        Some(name) => Err(Error::new(SqlState::UNDEFINED_PARAMETER, format!("there is no parameter {name}"))),
        None => Ok(find.0),
    }
}

/// Types that the planner found for parameters, by number.
fn inferred(plan: &LogicalPlan) -> Result<BTreeMap<usize, SqlType>> {
    use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
    let mut types: BTreeMap<usize, SqlType> = BTreeMap::new();
    let mut conflict = None;
    plan.apply_with_subqueries(|plan| {
        for (placeholder, sql_type) in counted(plan) {
            types.entry(placeholder).or_insert(sql_type);
        }
        plan.apply_expressions(|expression| {
            expression.apply(|expression| {
                if let Expr::Placeholder(placeholder) = expression
                    && let Some(field) = &placeholder.field
                    && !matches!(field.data_type(), DataType::Null)
                    && let Ok(number) = placeholder.id.trim_start_matches('$').parse::<usize>()
                {
                    let found = SqlType::of_field(field);
                    if let Some(known) = types.insert(number, found.clone())
                        && known.oid() != found.oid()
                    {
                        conflict = Some((number, known, found));
                    }
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })
    .map_err(from_datafusion)?;
    match conflict {
        Some((number, known, found)) if !widens(&known, &found) => {
            Err(Error::new(SqlState("42P08"), format!("inconsistent types deduced for parameter ${number}"))
                .detail(format!("{known} versus {found}")))
        }
        Some((number, known, found)) => {
            types.insert(number, if rank(&known) > rank(&found) { known } else { found });
            Ok(types)
        }
        None => Ok(types),
    }
}

/// Parameters of LIMIT, OFFSET and generate_series, whose place says their type.
fn counted(plan: &LogicalPlan) -> Vec<(usize, SqlType)> {
    let number = |expression: &Expr| match expression {
        Expr::Placeholder(placeholder) if placeholder.field.is_none() => placeholder.id.trim_start_matches('$').parse::<usize>().ok(),
        _ => None,
    };
    match plan {
        LogicalPlan::Limit(limit) => {
            let counts = limit.skip.iter().chain(&limit.fetch);
            counts.filter_map(|count| Some((number(count)?, SqlType::BigInt))).collect()
        }
        LogicalPlan::TableScan(scan) => match scan.source.downcast_ref::<Unresolved>() {
            Some(Unresolved { relation: Relation::Series(arguments), .. }) => {
                let item = SqlType::of_arrow(scan.source.schema().field(0).data_type());
                let of = |index| match item {
                    SqlType::Timestamp | SqlType::Timestamptz if index == 2 => SqlType::Interval,
                    _ => item.clone(),
                };
                arguments.iter().enumerate().filter_map(|(index, argument)| Some((number(argument)?, of(index)))).collect()
            }
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

fn rank(sql_type: &SqlType) -> u8 {
    match sql_type {
        SqlType::SmallInt => 1,
        SqlType::Integer => 2,
        SqlType::BigInt => 3,
        SqlType::Numeric(_) => 4,
        SqlType::Real => 5,
        SqlType::Double => 6,
        SqlType::Varchar(_) | SqlType::Char(_) | SqlType::Name => 1,
        SqlType::Text => 2,
        _ => 0,
    }
}

fn widens(one: &SqlType, other: &SqlType) -> bool {
    let number = |sql_type: &SqlType| sql_type.arrow().is_numeric();
    let text = |sql_type: &SqlType| matches!(sql_type, SqlType::Varchar(_) | SqlType::Char(_) | SqlType::Name | SqlType::Text);
    (number(one) && number(other)) || (text(one) && text(other))
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
        physical.push(scope.state.create_physical_expr(bound, &input).map_err(from_datafusion)?);
    }
    Ok(physical)
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
