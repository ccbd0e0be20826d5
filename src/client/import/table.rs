//! The table that is loaded into, as the server describes it.

use super::super::wire::Connection;
use super::super::{Error, Result};
use crate::event::Target;
use crate::sql::statement::quote_identifier;
use crate::types::SqlType;

/// A table.
#[derive(Debug)]
pub struct Table {
    pub name: String,
    pub oid: i64,
    pub columns: Vec<Column>,
}

/// One of its columns.
#[derive(Debug)]
pub struct Column {
    pub name: String,
    pub sql_type: SqlType,
    pub has_default: bool,
    pub generated: bool,
}

impl Table {
    /// Asks the server.
    pub async fn find(connection: &Connection, name: &str) -> Result<Table> {
        let name = name.strip_prefix("public.").unwrap_or(name);
        let rows = connection
            .client
            .query(
                "SELECT c.oid::bigint, a.attname::text, format_type(a.atttypid, a.atttypmod), a.atthasdef, a.attgenerated::text \
                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid \
                 WHERE n.nspname = 'public' AND c.relname = $1 AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped \
                 ORDER BY a.attnum",
                &[&name],
            )
            .await?;
        let oid = rows.first().map(|row| row.get(0)).ok_or_else(|| Error::Setup(format!("table \"{name}\" does not exist")))?;
        let column = |row: &tokio_postgres::Row| {
            let declared: String = row.get(2);
            let unknown = || Error::Wrong(format!("type {declared} is not known here: this program is older than the server"));
            let generated = row.get::<_, Option<String>>(4).is_some_and(|kind| !kind.is_empty());
            Ok(Column { name: row.get(1), sql_type: SqlType::parse(&declared).ok_or_else(unknown)?, has_default: row.get(3), generated })
        };
        let columns = rows.iter().map(column).collect::<Result<Vec<_>>>()?;
        Ok(Table { name: name.to_owned(), oid, columns })
    }

    /// COPY of some columns.
    pub fn copy(&self, columns: &[&str], options: &str) -> String {
        let columns: Vec<String> = columns.iter().map(|column| quote_identifier(column)).collect();
        format!("COPY {} ({}) FROM STDIN ({options})", quote_identifier(&self.name), columns.join(", "))
    }

    /// Which of a file's columns are loaded: all that the table has and does not compute itself. Unknown ones are an error that lists
    /// them, unless they are to be left out.
    pub fn choose(&self, file: &str, names: &[String], wanted: &[String], skip_unknown: bool) -> Result<Vec<bool>> {
        let missing: Vec<&str> = wanted.iter().filter(|name| !names.contains(name)).map(String::as_str).collect();
        if !missing.is_empty() {
            return Err(Error::Setup(format!("{file} has no column {}; it has {}", missing.join(", "), names.join(", "))));
        }
        if let Some(twice) = names.iter().enumerate().find(|(index, name)| names[..*index].contains(name)) {
            return Err(Error::Setup(format!("{file} has two columns {}", twice.1)));
        }
        let known = |name: &String| self.columns.iter().find(|column| column.name == *name);
        let unknown: Vec<&str> =
            names.iter().filter(|name| (wanted.is_empty() || wanted.contains(name)) && known(name).is_none()).map(String::as_str).collect();
        if !unknown.is_empty() && !skip_unknown {
            return Err(Error::Setup(format!(
                "table {} has no column {}; --skip-unknown leaves out what the table does not have, --columns names what is loaded",
                self.name,
                unknown.join(", ")
            )));
        }
        let chosen = |name: &String| (wanted.is_empty() || wanted.contains(name)) && known(name).is_some_and(|column| !column.generated);
        let chosen: Vec<bool> = names.iter().map(chosen).collect();
        match chosen.contains(&true) {
            true => Ok(chosen),
            false => Err(Error::Setup(format!("{file} has no column of table {}", self.name))),
        }
    }

    /// The columns that can be given, and which of them have a default.
    pub fn targets(&self) -> (Vec<Target>, Vec<usize>) {
        let given: Vec<&Column> = self.columns.iter().filter(|column| !column.generated).collect();
        let told = given.iter().enumerate().filter(|(_, column)| column.has_default).map(|(index, _)| index).collect();
        let target = |column: &&Column| Target { name: column.name.clone(), sql_type: column.sql_type.clone() };
        (given.iter().map(target).collect(), told)
    }
}
