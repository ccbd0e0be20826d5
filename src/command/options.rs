//! WITH (...) options of tables and views: names, values, units.

use arrow::datatypes::IntervalMonthDayNano;

use crate::catalog::{Column, Compression, LateRows, Maintenance, TableOptions, View};
use crate::error::{Error, Result, SqlState};
use crate::types::text::interval::interval;

/// Names of a table's options, as errors list them.
const TABLE_OPTIONS: [&str; 8] =
    ["compression", "dedup_key", "dedup_window", "idle_timeout", "late_rows", "max_future", "partition_by", "retention"];

/// Names of a view's options.
const VIEW_OPTIONS: [&str; 2] = ["refresh_interval", "ttl"];

/// Reads a table's options. 22023 for an unknown one or a bad value, 42703 for a column that is not there.
pub fn table(given: &[(String, String)], columns: &[Column], event: bool) -> Result<TableOptions> {
    let mut options = TableOptions::default();
    let column = |name: &str| {
        columns
            .iter()
            .position(|column| column.name == name)
            .ok_or_else(|| Error::new(SqlState::UNDEFINED_COLUMN, format!("column \"{name}\" does not exist")))
    };
    for (key, value) in given {
        if TABLE_OPTIONS.contains(&key.as_str()) && !event && key != "compression" {
            return Err(invalid(format!("option \"{key}\" needs an event table"))
                .hint("Declare the event time with WATERMARK FOR column AS column - INTERVAL '5 minutes'."));
        }
        match key.as_str() {
            "partition_by" => options.partition_by = Some(column(value)?),
            "dedup_key" => options.dedup_key = Some(column(value)?),
            "dedup_window" => options.dedup_window_us = duration(key, value)?,
            "retention" => options.retention_us = Some(duration(key, value)?),
            "max_future" => options.max_future_us = duration(key, value)?,
            "idle_timeout" => options.idle_timeout_us = Some(duration(key, value)?),
            "late_rows" => options.late_rows = late_rows(value)?,
            "compression" => {
                options.compression = match value.to_ascii_lowercase().as_str() {
                    "snappy" => Compression::Snappy,
                    "zstd" => Compression::Zstd,
                    _ => {
                        return Err(
                            invalid(format!("invalid value for option \"compression\": \"{value}\"")).hint("Known are snappy and zstd.")
                        );
                    }
                }
            }
            _ => return Err(unknown(key, &TABLE_OPTIONS)),
        }
    }
    if options.dedup_key.is_none() && given.iter().any(|(key, _)| key == "dedup_window") {
        return Err(invalid("option \"dedup_window\" needs a dedup_key".to_owned())
            .hint("Name the column that is different for every event: dedup_key = 'column'."));
    }
    Ok(options)
}

/// A view's options; none where not given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ViewOptions {
    /// Windows older than this leave the state, microseconds.
    pub ttl_us: Option<i64>,
    /// Least time between two refreshes, microseconds.
    pub refresh_us: Option<i64>,
}

/// Reads a view's options. 22023 for an unknown one or a bad value, 0A000 for one that does not fit how the view is kept.
pub fn view(given: &[(String, String)], view: &View) -> Result<ViewOptions> {
    let mut options = ViewOptions::default();
    for (key, value) in given {
        match key.as_str() {
            "ttl" => options.ttl_us = Some(duration(key, value)?),
            "refresh_interval" => options.refresh_us = Some(duration(key, value)?),
            _ => return Err(unknown(key, &VIEW_OPTIONS)),
        }
    }
    if options.refresh_us.is_some() && view.maintenance != Maintenance::Refreshed {
        return Err(Error::unsupported("option \"refresh_interval\" is for refreshed views")
            .detail("This view is kept incrementally: it is fresh at every commit."));
    }
    if options.ttl_us.is_some() && view.by_entity {
        return Err(Error::unsupported("option \"ttl\" is for views of windows")
            .detail("This view follows entities, whose first and last events may be as far apart as they like."));
    }
    if options.ttl_us.is_some() && view.maintenance != Maintenance::State {
        return Err(Error::unsupported("option \"ttl\" is for views with aggregate state of their own")
            .detail("This view keeps no windows: it is computed from what it reads."));
    }
    Ok(options)
}

fn late_rows(value: &str) -> Result<LateRows> {
    match value.to_ascii_lowercase().as_str() {
        "divert" => Ok(LateRows::Divert),
        "apply" => Ok(LateRows::Apply),
        "error" => Ok(LateRows::Error),
        _ => Err(invalid(format!("invalid value for option \"late_rows\": \"{value}\"")).hint("Known are divert, apply and error.")),
    }
}

/// An interval of fixed length, more than nothing, in microseconds. A month counts 30 days, as PostgreSQL's `extract(epoch)` has it.
fn duration(key: &str, value: &str) -> Result<i64> {
    let parsed =
        interval(value).map_err(|error| invalid(format!("invalid value for option \"{key}\": \"{value}\"")).detail(format!("{error}.")))?;
    match microseconds(parsed) {
        Some(us) if us > 0 => Ok(us),
        _ => Err(invalid(format!("option \"{key}\" must be a positive interval, not \"{value}\""))),
    }
}

/// The length of an interval, months as 30 days; none when it does not fit.
pub fn microseconds(interval: IntervalMonthDayNano) -> Option<i64> {
    const DAY_US: i64 = 86_400_000_000;
    let days = i64::from(interval.months).checked_mul(30)?.checked_add(i64::from(interval.days))?;
    days.checked_mul(DAY_US)?.checked_add(interval.nanoseconds / 1_000)
}

fn unknown(key: &str, known: &[&str]) -> Error {
    invalid(format!("unrecognized option \"{key}\"")).hint(format!("Known are {}.", known.join(", ")))
}

fn invalid(message: String) -> Error {
    Error::new(SqlState::INVALID_PARAMETER_VALUE, message)
}
