//! Functions that give sets of rows, in FROM: `unnest`, `jsonb_each`, `regexp_matches` and their like, also over columns of the
//! relations before them (LATERAL).
//!
//! *Place*: [`rewrite`] prepares a SELECT's FROM; [`Sets`] plans the relations, asked by DataFusion's SQL planner through
//! `query::scope`.
//!
//! A function of this list gives a list, which is unnested beside the columns of the relation before it. That relation has to be
//! at hand when the function is planned: so a FROM with such a function becomes nested joins whose last one it is.

use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, ListArray};
use arrow::datatypes::{DataType, Field, Fields};
use datafusion::common::{Column, DFSchema, NullHandling, Result, TableReference, UnnestOptions};
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, ScalarUDF};
use sqlparser::ast::{
    self, FunctionArg, FunctionArgExpr, Ident, Join, JoinConstraint, JoinOperator, ObjectName, Select, SelectItem, TableAlias, TableFactor,
    TableWithJoins, VisitMut, VisitorMut,
};

use super::functions::repeated::rows_of_lists;
use super::functions::{Function, undefined};
use super::using;
use crate::error::{Error, SqlState};
use crate::types::SqlType;

/// The functions, and the names of their columns where those are not the function's own name.
const FUNCTIONS: [(&str, &[&str]); 15] = [
    ("unnest", &[]),
    ("generate_series", &[]),
    ("json_array_elements", &["value"]),
    ("jsonb_array_elements", &["value"]),
    ("json_array_elements_text", &["value"]),
    ("jsonb_array_elements_text", &["value"]),
    ("json_object_keys", &[]),
    ("jsonb_object_keys", &[]),
    ("json_each", &["key", "value"]),
    ("jsonb_each", &["key", "value"]),
    ("json_each_text", &["key", "value"]),
    ("jsonb_each_text", &["key", "value"]),
    ("regexp_matches", &[]),
    ("regexp_split_to_table", &[]),
    ("string_to_table", &[]),
];

/// Begins the names of the lists that are unnested.
const LIST: &str = "\u{1}list";

/// Whether a function gives a set of rows.
pub fn gives_rows(name: &str) -> bool {
    FUNCTIONS.iter().any(|(known, _)| *known == name)
}

/// A call of such a function in FROM.
struct Call {
    name: String,
    arguments: Vec<ast::Expr>,
    ordinality: bool,
    alias: Option<TableAlias>,
}

impl Call {
    /// The call of a function of rows that a table factor is, or the factor itself.
    fn of(factor: TableFactor) -> Result<Call, Box<TableFactor>> {
        Call::any(factor).and_then(|(call, factor)| if gives_rows(&call.name) { Ok(call) } else { Err(factor) })
    }

    /// The call of any function that a table factor is, with the factor; or the factor itself.
    fn any(factor: TableFactor) -> Result<(Call, Box<TableFactor>), Box<TableFactor>> {
        let plain = |args: &[FunctionArg]| {
            args.iter()
                .map(|arg| match arg {
                    FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr.clone()),
                    _ => None,
                })
                .collect::<Option<Vec<_>>>()
        };
        let call = match &factor {
            TableFactor::UNNEST { alias, array_exprs, with_offset: false, with_ordinality, .. } => {
                Some(Call { name: "unnest".to_owned(), arguments: array_exprs.clone(), ordinality: *with_ordinality, alias: alias.clone() })
            }
            TableFactor::Table { name, alias, args: Some(args), with_ordinality, .. } => plain(&args.args)
                .and_then(|arguments| Some(Call { name: folded(name)?, arguments, ordinality: *with_ordinality, alias: alias.clone() })),
            TableFactor::Function { name, args, with_ordinality, alias, .. } => plain(args)
                .and_then(|arguments| Some(Call { name: folded(name)?, arguments, ordinality: *with_ordinality, alias: alias.clone() })),
            _ => None,
        };
        match call {
            Some(call) => Ok((call, Box::new(factor))),
            None => Err(Box::new(factor)),
        }
    }

    /// Whether an argument names a column, which can only be one of the relations before.
    fn is_lateral(&self) -> bool {
        self.arguments.iter().any(|argument| {
            let names = ast::visit_expressions(argument, |expression| match expression {
                ast::Expr::Identifier(_) | ast::Expr::CompoundIdentifier(_) => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            });
            names.is_break()
        })
    }

    fn alias_name(&self) -> String {
        self.alias.as_ref().map_or_else(|| self.name.clone(), |alias| ident(&alias.name))
    }
}

fn ident(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

fn folded(name: &ObjectName) -> Option<String> {
    match name.0.as_slice() {
        [name] => name.as_ident().map(ident),
        [schema, name] if schema.as_ident().is_some_and(|schema| ident(schema) == super::system::PG_CATALOG) => name.as_ident().map(ident),
        _ => None,
    }
}

// -- the syntax ---------------------------------------------------------------------------------------

/// Nests a FROM whose functions read columns of the relations before them, and resolves the names of functions' rows.
pub fn rewrite(select: &mut Select) {
    let calls: Vec<Call> = factors(&select.from).filter_map(|factor| Call::of(factor.clone()).ok()).collect();
    if !calls.is_empty() {
        name_rows(select, &calls);
    }
    let computed = factors(&select.from).any(|factor| computed(factor).is_some());
    if computed || calls.iter().any(Call::is_lateral) || select.from.iter().flat_map(|from| &from.joins).any(using::is_own) {
        nest(select);
    }
}

fn factors(from: &[TableWithJoins]) -> impl Iterator<Item = &TableFactor> {
    from.iter().flat_map(|from| std::iter::once(&from.relation).chain(from.joins.iter().map(|join| &join.relation)))
}

/// The select list and the name of `LATERAL (SELECT a + b AS c) AS t`, which is one row of expressions for each row before it.
fn computed(factor: &TableFactor) -> Option<(&[SelectItem], &TableAlias)> {
    let TableFactor::Derived { lateral: true, subquery, alias: Some(alias), .. } = factor else { return None };
    let ast::SetExpr::Select(select) = subquery.body.as_ref() else { return None };
    let plain = subquery.with.is_none()
        && subquery.limit_clause.is_none()
        && select.from.is_empty()
        && select.selection.is_none()
        && select.having.is_none()
        && select.distinct.is_none()
        && select.qualify.is_none()
        && matches!(&select.group_by, ast::GroupByExpr::Expressions(keys, _) if keys.is_empty());
    let expressions = select.projection.iter().all(|item| match item {
        SelectItem::UnnamedExpr(expression) | SelectItem::ExprWithAlias { expr: expression, .. } => is_scalar(expression),
        _ => false,
    });
    (plain && expressions).then_some((select.projection.as_slice(), alias))
}

/// Neither an aggregate or window, nor a set of rows, nor a subquery.
fn is_scalar(expression: &ast::Expr) -> bool {
    const AGGREGATES: [&str; 14] = [
        "count",
        "sum",
        "avg",
        "min",
        "max",
        "array_agg",
        "string_agg",
        "bool_and",
        "bool_or",
        "jsonb_agg",
        "json_agg",
        "mode",
        "stddev",
        "variance",
    ];
    let found = ast::visit_expressions(expression, |expression| match expression {
        ast::Expr::Function(function) => {
            let name = folded(&function.name).unwrap_or_default();
            match function.over.is_some() || gives_rows(&name) || AGGREGATES.contains(&name.as_str()) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        }
        ast::Expr::Subquery(_) | ast::Expr::Exists { .. } | ast::Expr::InSubquery { .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    found.is_continue()
}

/// `SELECT e FROM jsonb_array_elements(...) e` means `e.value`.
fn name_rows(select: &mut Select, calls: &[Call]) {
    struct Rows(Vec<(String, &'static str)>);
    impl VisitorMut for Rows {
        type Break = ();
        fn post_visit_expr(&mut self, expression: &mut ast::Expr) -> ControlFlow<()> {
            if let ast::Expr::Identifier(name) = expression
                && let Some((_, column)) = self.0.iter().find(|(row, _)| *row == ident(name))
            {
                *expression = ast::Expr::CompoundIdentifier(vec![name.clone(), Ident::new(*column)]);
            }
            ControlFlow::Continue(())
        }
    }
    let mut rows = Rows(Vec::new());
    for call in calls {
        let columns = FUNCTIONS.iter().find(|(name, _)| *name == call.name).map_or(&[][..], |(_, columns)| *columns);
        if let ([column], Some(alias)) = (columns, &call.alias)
            && alias.columns.is_empty()
        {
            rows.0.push((ident(&alias.name), *column));
        }
    }
    if rows.0.is_empty() {
        return;
    }
    for item in &mut select.projection {
        // The column is called as it was written.
        if let SelectItem::UnnamedExpr(ast::Expr::Identifier(name)) = item
            && rows.0.iter().any(|(row, _)| *row == ident(name))
        {
            *item = SelectItem::ExprWithAlias { expr: ast::Expr::Identifier(name.clone()), alias: name.clone() };
        }
        let _ = item.visit(&mut rows);
    }
    for factor in &mut select.from {
        let _ = factor.visit(&mut rows);
    }
    let _ = select.selection.visit(&mut rows);
    let _ = select.group_by.visit(&mut rows);
    let _ = select.having.visit(&mut rows);
    let _ = select.qualify.visit(&mut rows);
}

/// One relation of nested joins, each ending with a function that reads columns.
fn nest(select: &mut Select) {
    let mut before: Option<TableWithJoins> = None;
    for TableWithJoins { relation, joins } in std::mem::take(&mut select.from) {
        let own = joins.into_iter();
        let mut current = match before {
            None => TableWithJoins { relation, joins: Vec::new() },
            Some(mut all) => {
                all.joins.push(Join { relation, global: false, join_operator: JoinOperator::CrossJoin(JoinConstraint::None) });
                closed(all)
            }
        };
        for join in own {
            current.joins.push(join);
            current = closed(current);
        }
        before = Some(current);
    }
    select.from.extend(before);
}

/// Ends a nested join with a function that reads columns, or with one whose columns are merged here.
fn closed(joined: TableWithJoins) -> TableWithJoins {
    let lateral = joined.joins.last().is_some_and(|join| {
        using::is_own(join) || computed(&join.relation).is_some() || Call::of(join.relation.clone()).is_ok_and(|call| call.is_lateral())
    });
    match lateral {
        true => TableWithJoins { relation: TableFactor::NestedJoin { table_with_joins: Box::new(joined), alias: None }, joins: Vec::new() },
        false => joined,
    }
}

// -- the plan -----------------------------------------------------------------------------------------

/// Plans functions of rows.
#[derive(Debug)]
pub struct Sets;

impl RelationPlanner for Sets {
    fn plan_relation(&self, relation: TableFactor, context: &mut dyn RelationPlannerContext) -> Result<RelationPlanning> {
        let relation = match relation {
            TableFactor::NestedJoin { table_with_joins, alias: None } => return lateral(*table_with_joins, context),
            other => other,
        };
        match Call::of(relation) {
            // A series is a relation of its own, made row by row.
            Ok(call) if call.name != "generate_series" || call.ordinality => {
                let input = LogicalPlanBuilder::empty(true).build()?;
                planned(unnested(input, call, NullHandling::Drop, context)?)
            }
            Ok(call) => Ok(RelationPlanning::Original(Box::new(series(call)))),
            Err(factor) => one_row(*factor, context),
        }
    }
}

fn planned(plan: LogicalPlan) -> Result<RelationPlanning> {
    Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, None))))
}

/// A function of one value in FROM is one row.
fn one_row(factor: TableFactor, context: &mut dyn RelationPlannerContext) -> Result<RelationPlanning> {
    let (call, factor) = match Call::any(factor) {
        Ok(call) => call,
        Err(factor) => {
            // Named arguments are those of operators, which were planned before.
            let (TableFactor::Table { name, args: Some(_), .. } | TableFactor::Function { name, .. }) = factor.as_ref() else {
                return Ok(RelationPlanning::Original(factor));
            };
            let error = Error::new(SqlState::UNDEFINED_FUNCTION, format!("function {name} does not exist"));
            return Err(error.hint("No function matches the given name and argument types.").into());
        }
    };
    let Some(function) = context.context_provider().get_function_meta(&call.name).filter(|_| !call.ordinality) else {
        return Ok(RelationPlanning::Original(factor));
    };
    let schema = DFSchema::empty();
    let arguments = call.arguments.iter().map(|argument| context.sql_to_expr(argument.clone(), &schema)).collect::<Result<Vec<_>>>()?;
    let column = call.alias.iter().flat_map(|alias| &alias.columns).next().map_or_else(|| call.alias_name(), |column| ident(&column.name));
    let value = function.call(arguments).alias_qualified(Some(TableReference::bare(call.alias_name())), column);
    planned(LogicalPlanBuilder::empty(true).project(vec![value])?.build()?)
}

/// A series as it was written.
fn series(call: Call) -> TableFactor {
    let args = call.arguments.into_iter().map(|argument| FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))).collect();
    TableFactor::Function {
        lateral: false,
        name: ObjectName::from(vec![Ident::new(call.name)]),
        args,
        with_ordinality: call.ordinality,
        alias: call.alias,
    }
}

/// The relation before a function, with the function's rows.
fn lateral(mut joined: TableWithJoins, context: &mut dyn RelationPlannerContext) -> Result<RelationPlanning> {
    let original =
        |joined| Ok(RelationPlanning::Original(Box::new(TableFactor::NestedJoin { table_with_joins: Box::new(joined), alias: None })));
    let Some(last) = joined.joins.last() else { return original(joined) };
    if using::is_own(last) {
        return planned(using::planned(joined, context)?);
    }
    if let Some((items, alias)) = computed(&last.relation)
        && matches!(joins(&last.join_operator), Some((_, None)))
    {
        let (items, alias) = (items.to_vec(), alias.clone());
        return planned(beside(joined, &items, &alias, context)?);
    }
    let Ok(call) = Call::of(last.relation.clone()) else { return original(joined) };
    if !call.is_lateral() {
        return original(joined);
    }
    let Some((outer, condition)) = joins(&last.join_operator) else {
        let error = Error::unsupported(format!("this kind of join with {}() is not supported", call.name))
            .hint("Use CROSS JOIN LATERAL, or LEFT JOIN LATERAL ... ON true.");
        return Err(error.into());
    };
    joined.joins.pop();
    let input = context.plan(before(joined))?;
    let nulls = if outer { NullHandling::PreserveAndExpandEmpty } else { NullHandling::Drop };
    let plan = unnested(input, call, nulls, context)?;
    match condition {
        None => planned(plan),
        Some(condition) => {
            let condition = context.sql_to_expr(condition, plan.schema())?;
            planned(LogicalPlanBuilder::from(plan).filter(condition)?.build()?)
        }
    }
}

/// What is joined, without its last join.
fn before(joined: TableWithJoins) -> TableFactor {
    match joined.joins.is_empty() {
        true => joined.relation,
        false => TableFactor::NestedJoin { table_with_joins: Box::new(joined), alias: None },
    }
}

/// Whether a join keeps rows without a match, and its condition where that is not just true; none for one that cannot be lateral.
fn joins(operator: &JoinOperator) -> Option<(bool, Option<ast::Expr>)> {
    match operator {
        JoinOperator::CrossJoin(_) => Some((false, None)),
        JoinOperator::Join(JoinConstraint::On(condition)) | JoinOperator::Inner(JoinConstraint::On(condition)) => {
            Some((false, Some(condition.clone()).filter(|condition| !is_true(condition))))
        }
        JoinOperator::Left(JoinConstraint::On(condition)) | JoinOperator::LeftOuter(JoinConstraint::On(condition))
            if is_true(condition) =>
        {
            Some((true, None))
        }
        _ => None,
    }
}

/// The columns before, and expressions over them.
fn beside(
    mut joined: TableWithJoins,
    items: &[SelectItem],
    alias: &TableAlias,
    context: &mut dyn RelationPlannerContext,
) -> Result<LogicalPlan> {
    joined.joins.pop();
    let input = context.plan(before(joined))?;
    let schema = Arc::clone(input.schema());
    let table = TableReference::bare(ident(&alias.name));
    let mut columns: Vec<Expr> = schema.columns().into_iter().map(Expr::Column).collect();
    for (index, item) in items.iter().enumerate() {
        let (expression, own) = match item {
            SelectItem::ExprWithAlias { expr, alias } => (expr, ident(alias)),
            SelectItem::UnnamedExpr(expr) => (expr, super::names::of(expr)),
            _ => return Err(Error::internal("a select list of expressions has something else").into()),
        };
        let name = alias.columns.get(index).map_or(own, |column| ident(&column.name));
        columns.push(context.sql_to_expr(expression.clone(), &schema)?.alias_qualified(Some(table.clone()), name));
    }
    LogicalPlanBuilder::from(input).project(columns)?.build()
}

fn is_true(condition: &ast::Expr) -> bool {
    match condition {
        ast::Expr::Value(value) => value.value == ast::Value::Boolean(true),
        ast::Expr::Nested(inner) => is_true(inner),
        _ => false,
    }
}

/// One column of a function's rows.
struct Output {
    value: Expr,
    name: String,
    sql_type: SqlType,
}

/// The input's columns beside the function's.
fn unnested(input: LogicalPlan, call: Call, nulls: NullHandling, context: &mut dyn RelationPlannerContext) -> Result<LogicalPlan> {
    let schema = Arc::clone(input.schema());
    let table = TableReference::bare(call.alias_name());
    let lists = lists(&call, &schema, context)?;
    let mut outputs = Vec::new();
    for (index, (_, item)) in lists.iter().enumerate() {
        let column = Expr::Column(Column::from_name(format!("{LIST}{index}")));
        match item.data_type() {
            DataType::Struct(fields) => outputs.extend(members(&column, fields)),
            _ => outputs.push(Output { value: column, name: call.name.clone(), sql_type: SqlType::of_field(item) }),
        }
    }
    if call.ordinality {
        let ordinal = Expr::Column(Column::from_name(format!("{LIST}{}", lists.len())));
        outputs.push(Output { value: ordinal, name: "ordinality".to_owned(), sql_type: SqlType::BigInt });
    }
    named(&call, &mut outputs)?;
    let mut columns: Vec<Expr> = schema.columns().into_iter().map(Expr::Column).collect();
    let kept = columns.clone();
    let mut names = Vec::new();
    let ordinals = call.ordinality.then(|| ordinals().call(lists.iter().take(1).map(|(list, _)| list.clone()).collect()));
    for (index, list) in lists.into_iter().map(|(list, _)| list).chain(ordinals).enumerate() {
        let name = format!("{LIST}{index}");
        columns.push(list.alias(&name));
        names.push(Column::from_name(name));
    }
    let shown = kept.into_iter().chain(outputs.into_iter().map(|output| {
        let value = typed(output.value, &output.sql_type);
        value.alias_qualified(Some(table.clone()), output.name)
    }));
    let rows = LogicalPlanBuilder::from(input)
        .project(columns)?
        .unnest_columns_with_options(names, UnnestOptions::new().with_null_handling(nulls))?
        .build()?;
    LogicalPlanBuilder::from(rows_of_lists(rows)?).project(shown.collect::<Vec<_>>())?.build()
}

/// The lists of a call, with what is in them.
fn lists(call: &Call, schema: &DFSchema, context: &mut dyn RelationPlannerContext) -> Result<Vec<(Expr, Arc<Field>)>> {
    let arguments = call.arguments.iter().map(|argument| context.sql_to_expr(argument.clone(), schema)).collect::<Result<Vec<_>>>()?;
    if arguments.is_empty() {
        return Err(undefined(&call.name, &[]).into());
    }
    let lists = match call.name.as_str() {
        "unnest" => arguments,
        name => match context.context_provider().get_function_meta(name) {
            Some(function) => vec![function.call(arguments)],
            None => return Err(undefined(name, &[]).into()),
        },
    };
    let mut typed = Vec::with_capacity(lists.len());
    for list in lists {
        let list = super::typing::expression(list, schema)?.data;
        match list.get_type(schema)? {
            DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => typed.push((list, item)),
            other => return Err(undefined(&call.name, &[other]).into()),
        }
    }
    Ok(typed)
}

fn members(column: &Expr, fields: &Fields) -> Vec<Output> {
    let member = |field: &Arc<Field>| Output {
        value: datafusion::functions::core::get_field().call(vec![column.clone(), datafusion::logical_expr::lit(field.name().as_str())]),
        name: field.name().clone(),
        sql_type: SqlType::of_field(field),
    };
    fields.iter().map(member).collect()
}

/// Gives the columns the names of the alias, or those that the function has of itself.
fn named(call: &Call, outputs: &mut [Output]) -> Result<()> {
    let own = FUNCTIONS.iter().find(|(name, _)| *name == call.name).map_or(&[][..], |(_, columns)| *columns);
    let columns: Vec<String> = call.alias.iter().flat_map(|alias| alias.columns.iter().map(|column| ident(&column.name))).collect();
    if columns.len() > outputs.len() {
        let message =
            format!("table \"{}\" has {} columns available but {} columns specified", call.alias_name(), outputs.len(), columns.len());
        return Err(Error::new(SqlState::INVALID_COLUMN_REFERENCE, message).into());
    }
    let count = outputs.len() - usize::from(call.ordinality);
    for (index, output) in outputs.iter_mut().enumerate() {
        output.name = match (columns.get(index), own.get(index)) {
            (Some(column), _) => column.clone(),
            (None, Some(own)) if index < count => (*own).to_owned(),
            // A function with one column without a name of its own is called as the table is.
            (None, None) if index < count && count == 1 => call.alias_name(),
            _ => output.name.clone(),
        };
    }
    if count > 1 && own.is_empty() && columns.is_empty() {
        // Several lists have the function's name each; a number keeps them apart.
        for (index, output) in outputs.iter_mut().take(count).enumerate().skip(1) {
            output.name = format!("{}{}{index}", output.name, super::rewrite::SUFFIX);
        }
    }
    Ok(())
}

/// The value with the SQL type that unnesting loses.
fn typed(value: Expr, sql_type: &SqlType) -> Expr {
    match sql_type {
        SqlType::Json => retyped(SqlType::Json).call(vec![value]),
        SqlType::Jsonb => retyped(SqlType::Jsonb).call(vec![value]),
        SqlType::Uuid => retyped(SqlType::Uuid).call(vec![value]),
        _ => value,
    }
}

fn retyped(sql_type: SqlType) -> Function {
    let name = match sql_type {
        SqlType::Json => "as_json",
        SqlType::Jsonb => "as_jsonb",
        _ => "as_uuid",
    };
    let types: fn(&[DataType]) -> Result<super::functions::Typed, Error> = |types| match types {
        [one] => Ok((types.to_vec(), one.clone())),
        _ => Err(undefined("unnest", types)),
    };
    Function::new(name, types, |args, _| Ok(Arc::clone(&args[0]))).giving(sql_type)
}

/// The places of a list's elements, from 1.
fn ordinals() -> Function {
    Function::new(
        "list_ordinals",
        |types| match types {
            [DataType::List(_)] => Ok((types.to_vec(), DataType::List(Arc::new(Field::new("item", DataType::Int64, true))))),
            _ => Err(undefined("unnest", types)),
        },
        |args, result| {
            let lists = args[0].as_list::<i32>();
            let DataType::List(item) = result else { return Err(Error::internal("ordinals are a list")) };
            let lengths = (0..lists.len()).map(|row| if lists.is_null(row) { 0 } else { lists.value(row).len() });
            let lengths: Vec<usize> = lengths.collect();
            let numbers: Int64Array = lengths.iter().flat_map(|length| 1..=i64::try_from(*length).unwrap_or(i64::MAX)).collect();
            let offsets = arrow::buffer::OffsetBuffer::from_lengths(lengths);
            let list = ListArray::try_new(Arc::clone(item), offsets, Arc::new(numbers), lists.nulls().cloned());
            list.map(|list| Arc::new(list) as ArrayRef).map_err(|error| Error::internal(error.to_string()))
        },
    )
}

/// The functions that plans of sets are made of.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    [SqlType::Json, SqlType::Jsonb, SqlType::Uuid].into_iter().map(retyped).chain([ordinals()]).map(Function::udf).collect()
}
