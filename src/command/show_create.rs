//! `SHOW CREATE TABLE name`, `SHOW CREATE MATERIALIZED VIEW name`: the statement that would make the object again.

use std::fmt::Write;
use std::sync::Arc;

use arrow::array::StringViewArray;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::record_batch::RecordBatch;

use crate::catalog::{Compression, LateRows, Table, TableOptions, View};
use crate::command::Response;
use crate::error::{Error, Result, SqlState};
use crate::session::Session;
use crate::sql::statement::Name;
use crate::types::SqlType;

/// Output columns, for Describe.
pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![SqlType::Text.field("name", false), SqlType::Text.field("create_statement", false)]))
}

/// SHOW CREATE of a table or view.
pub fn execute(session: &mut Session, name: &Name) -> Result<Response> {
    let catalog = Arc::clone(&session.snapshot()?.catalog);
    let text = match (catalog.table_named(&name.name), catalog.view_named(&name.name)) {
        _ if name.schema.as_deref().is_some_and(|schema| schema != "public") => return Err(missing(name)),
        (Some(table), _) => of_table(table),
        (None, Some(view)) => of_view(view),
        (None, None) => return Err(missing(name)),
    };
    answer(&name.name, &text)
}

/// An object's name and its statement.
pub fn answer(name: &str, text: &str) -> Result<Response> {
    let columns: [Arc<dyn arrow::array::Array>; 2] =
        [Arc::new(StringViewArray::from_iter_values([name])), Arc::new(StringViewArray::from_iter_values([text]))];
    let batch = RecordBatch::try_new(schema(), columns.to_vec()).map_err(|error| Error::internal(error.to_string()))?;
    Ok(Response::of_batch(batch, "SHOW"))
}

fn missing(name: &Name) -> Error {
    Error::new(SqlState::UNDEFINED_TABLE, format!("relation \"{}\" does not exist", name.name))
}

fn of_table(table: &Table) -> String {
    let mut lines: Vec<String> = Vec::new();
    for column in &table.columns {
        let mut line = format!("{} {}", quote(&column.name), column.sql_type);
        if !column.nullable {
            line.push_str(" NOT NULL");
        }
        if let Some(default) = &column.default {
            let _ = write!(line, " DEFAULT {default}");
        }
        if let Some(generated) = &column.generated {
            let _ = write!(line, " GENERATED ALWAYS AS ({generated}) STORED");
        }
        lines.push(line);
    }
    for unique in &table.unique {
        let names: Vec<_> = unique.columns.iter().map(|at| quote(&table.columns[*at].name)).collect();
        let kind = if unique.primary { "PRIMARY KEY" } else { "UNIQUE" };
        lines.push(format!("CONSTRAINT {} {kind} ({})", quote(&unique.name), names.join(", ")));
    }
    for check in &table.checks {
        lines.push(format!("CONSTRAINT {} CHECK ({})", quote(&check.name), check.expression));
    }
    if let Some(watermark) = table.watermark {
        let name = quote(&table.columns[watermark.column].name);
        lines.push(format!("WATERMARK FOR {name} AS {name} - INTERVAL '{}'", duration(watermark.lateness_us)));
    }
    let options = options(table);
    let with = if options.is_empty() { String::new() } else { format!(" WITH (\n    {}\n)", options.join(",\n    ")) };
    format!("CREATE TABLE {} (\n    {}\n){with}", quote(&table.name), lines.join(",\n    "))
}

/// The options that differ from the defaults.
fn options(table: &Table) -> Vec<String> {
    let (options, default) = (&table.options, TableOptions::default());
    let mut list = Vec::new();
    let mut add = |name: &str, value: &str| list.push(format!("{name} = '{value}'"));
    if let Some(column) = options.partition_by {
        add("partition_by", &table.columns[column].name);
    }
    if let Some(column) = options.dedup_key {
        add("dedup_key", &table.columns[column].name);
        add("dedup_window", &duration(options.dedup_window_us));
    }
    if let Some(retention) = options.retention_us {
        add("retention", &duration(retention));
    }
    if options.max_future_us != default.max_future_us {
        add("max_future", &duration(options.max_future_us));
    }
    if let Some(timeout) = options.idle_timeout_us {
        add("idle_timeout", &duration(timeout));
    }
    match options.late_rows {
        LateRows::Divert => {}
        LateRows::Apply => add("late_rows", "apply"),
        LateRows::Error => add("late_rows", "error"),
    }
    match options.compression {
        Compression::Zstd => {}
        Compression::Snappy => add("compression", "snappy"),
    }
    list
}

fn of_view(view: &View) -> String {
    let given = [("ttl", view.ttl_us), ("refresh_interval", view.refresh_us)];
    let given: Vec<_> = given.iter().filter_map(|(key, us)| us.map(|us| format!("{key} = '{}'", duration(us)))).collect();
    let with = if given.is_empty() { String::new() } else { format!(" WITH ({})", given.join(", ")) };
    format!("CREATE MATERIALIZED VIEW {}{with} AS {}", quote(&view.name), view.query)
}

/// Microseconds in the greatest unit that divides them.
pub fn duration(micros: i64) -> String {
    const UNITS: [(&str, i64); 5] =
        [("days", 86_400_000_000), ("hours", 3_600_000_000), ("minutes", 60_000_000), ("seconds", 1_000_000), ("milliseconds", 1_000)];
    match UNITS.iter().find(|(_, size)| micros != 0 && micros % size == 0) {
        Some((unit, size)) => format!("{} {unit}", micros / size),
        None if micros == 0 => "0 seconds".to_owned(),
        None => format!("{micros} microseconds"),
    }
}

/// A name as it has to be typed.
fn quote(name: &str) -> String {
    let plain = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
        && name.chars().all(|each| each.is_ascii_lowercase() || each.is_ascii_digit() || each == '_');
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_names_read_back() {
        assert_eq!(duration(300_000_000), "5 minutes");
        assert_eq!(duration(400 * 86_400_000_000), "400 days");
        assert_eq!(duration(1_500_000), "1500 milliseconds");
        assert_eq!(quote("events"), "events");
        assert_eq!(quote("events$late"), "\"events$late\"");
    }
}
