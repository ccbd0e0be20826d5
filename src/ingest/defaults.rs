//! Defaults that are computed from the row and from who sent it: `device_type text DEFAULT device_type(client_user_agent)`.
//!
//! *Place*: `ingest::pipeline` computes them, `command` binds them to prove a table's definition.
//!
//! *Invariants*: such a default sees what the row gives and what defaults of the other kind give; of columns with such a default it
//! sees what is given and else NULL, of generated columns NULL. So their order does not matter.

use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use sqlparser::ast;

use crate::catalog::Table;
use crate::error::Result;

/// What a default can name beside the table's columns.
pub const CLIENT_COLUMNS: [&str; 2] = ["client_ip", "client_user_agent"];

/// Who sent an event, as far as that is known and may be kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// The address.
    pub ip: Option<String>,
    /// The program.
    pub user_agent: Option<String>,
}

/// Whether a default names a column of its table, or who sent the event.
pub fn is_of_row(table: &Table, expression: &str) -> Result<bool> {
    let tree = crate::sql::parse_expression(expression)?;
    let found = ast::visit_expressions(&tree, |expression| {
        let ident = match expression {
            ast::Expr::Identifier(ident) => Some(ident),
            ast::Expr::CompoundIdentifier(idents) => idents.last(),
            _ => None,
        };
        let name = ident.map(|ident| if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_ascii_lowercase() });
        match name.is_some_and(|name| table.column(&name).is_some() || CLIENT_COLUMNS.contains(&name.as_str())) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    Ok(found.is_break())
}

/// What such a default is bound over: the table's columns, all nullable, and who sent the event.
pub fn schema(table: &Table) -> SchemaRef {
    let own = table.schema();
    let client = CLIENT_COLUMNS.iter().filter(|name| table.column(name).is_none()).map(|name| Field::new(*name, DataType::Utf8View, true));
    let fields = own.fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).chain(client);
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}
