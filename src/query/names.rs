//! The names of output columns that were not given one, as PostgreSQL's FigureColname chooses them.

use std::ops::ControlFlow;

use sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, SelectItem, SetExpr, TrimWhereField, Value, VisitMut, VisitorMut,
};

use super::functions::cast::WRITTEN;
use crate::types::SqlType;

const UNNAMED: &str = "?column?";

/// The name of an expression's column.
pub fn of(expression: &Expr) -> String {
    strong(expression).or_else(|| weak(expression)).unwrap_or_else(|| UNNAMED.to_owned())
}

/// An expression as it was written.
pub fn text(expression: &Expr) -> String {
    struct Casts;
    impl VisitorMut for Casts {
        type Break = ();
        fn post_visit_expr(&mut self, expression: &mut Expr) -> ControlFlow<()> {
            if let Expr::Function(function) = expression
                && let Some(cast) = written(function).cloned()
            {
                *expression = cast;
            }
            ControlFlow::Continue(())
        }
    }
    let mut expression = expression.clone();
    let _ = expression.visit(&mut Casts);
    expression.to_string()
}

/// The cast that [`WRITTEN`] is around.
fn written(function: &Function) -> Option<&Expr> {
    let FunctionArguments::List(list) = &function.args else { return None };
    let [FunctionArg::Unnamed(FunctionArgExpr::Expr(cast)), _] = list.args.as_slice() else { return None };
    (function.name.0.last()?.as_ident()?.value == WRITTEN).then_some(cast)
}

fn folded(ident: &sqlparser::ast::Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

/// Names that come from a column or a function.
fn strong(expression: &Expr) -> Option<String> {
    Some(match expression {
        Expr::Identifier(ident) => folded(ident),
        Expr::CompoundIdentifier(idents) => folded(idents.last()?),
        Expr::Nested(inner) | Expr::Collate { expr: inner, .. } => return strong(inner),
        Expr::CompoundFieldAccess { root, .. } => return strong(root),
        Expr::Function(function) => match written(function) {
            Some(cast) => return strong(cast),
            None => folded(function.name.0.last()?.as_ident()?),
        },
        Expr::Cast { expr, .. } => return strong(expr),
        Expr::AtTimeZone { .. } => "timezone".to_owned(),
        Expr::Extract { .. } => "extract".to_owned(),
        Expr::Position { .. } => "position".to_owned(),
        Expr::Substring { shorthand: true, .. } => "substr".to_owned(),
        Expr::Substring { .. } => "substring".to_owned(),
        Expr::Overlay { .. } => "overlay".to_owned(),
        Expr::Trim { trim_where: Some(TrimWhereField::Leading), .. } => "ltrim".to_owned(),
        Expr::Trim { trim_where: Some(TrimWhereField::Trailing), .. } => "rtrim".to_owned(),
        Expr::Trim { .. } => "btrim".to_owned(),
        Expr::Ceil { .. } => "ceil".to_owned(),
        Expr::Floor { .. } => "floor".to_owned(),
        Expr::Exists { .. } => "exists".to_owned(),
        Expr::Array(_) => "array".to_owned(),
        Expr::Subquery(query) => match query.body.as_ref() {
            SetExpr::Select(select) => match select.projection.first()? {
                SelectItem::UnnamedExpr(inner) => of(inner),
                SelectItem::ExprWithAlias { alias, .. } => folded(alias),
                _ => return None,
            },
            _ => return None,
        },
        Expr::Case { else_result: Some(result), .. } => return strong(result),
        _ => return None,
    })
}

/// Names that come from the form of the expression.
fn weak(expression: &Expr) -> Option<String> {
    Some(match expression {
        Expr::Nested(inner) => return weak(inner),
        Expr::Case { .. } => "case".to_owned(),
        Expr::Cast { expr, data_type, .. } => return type_name(data_type).or_else(|| weak(expr)),
        Expr::Function(function) => return weak(written(function)?),
        Expr::TypedString(typed) => return type_name(&typed.data_type),
        Expr::Interval(_) => "interval".to_owned(),
        Expr::Value(value) if matches!(value.value, Value::Boolean(_)) => "bool".to_owned(),
        _ => return None,
    })
}

/// `pg_type.typname`.
fn type_name(data_type: &sqlparser::ast::DataType) -> Option<String> {
    let sql_type = match crate::sql::sql_type(data_type).ok()? {
        SqlType::Array(element) => *element,
        other => other,
    };
    Some(
        match sql_type {
            SqlType::Boolean => "bool",
            SqlType::SmallInt => "int2",
            SqlType::Integer => "int4",
            SqlType::BigInt => "int8",
            SqlType::Real => "float4",
            SqlType::Double => "float8",
            SqlType::Numeric(_) => "numeric",
            SqlType::Varchar(_) => "varchar",
            SqlType::Char(_) => "bpchar",
            SqlType::Time => "time",
            SqlType::Timestamp => "timestamp",
            SqlType::Timestamptz => "timestamptz",
            other => return Some(other.to_string()),
        }
        .to_owned(),
    )
}
