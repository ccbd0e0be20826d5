//! The session variables that Verus knows: their types, defaults and rules.
//!
//! *Place*: `session::vars` keeps the values; this file says which are allowed. A new variable is one line of [`VARIABLES`].
//!
//! *Invariants*: (1) a value is kept as SHOW prints it; (2) a setting that could not be honoured is refused, never swallowed.

use crate::error::{Error, Result, SqlState};
use crate::types::zone::Zone;

/// A variable's definition.
#[derive(Debug)]
pub struct Variable {
    /// Its name as PostgreSQL prints it; looked up without regard to case.
    pub name: &'static str,
    /// Which values it takes.
    pub kind: Kind,
    /// The value before any SET.
    pub default: &'static str,
    /// Changes are told to the client in a ParameterStatus.
    pub reported: bool,
    /// One line for SHOW ALL and pg_settings.
    pub description: &'static str,
}

/// Which values a variable takes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// on or off.
    Boolean,
    /// A whole number between two bounds.
    Integer(i64, i64),
    /// A duration between 0 and i32::MAX milliseconds; 0 is none.
    Milliseconds,
    /// One of these words.
    Words(&'static [&'static str]),
    /// One of these words, or unset (the empty text).
    WordsOrUnset(&'static [&'static str]),
    /// Any text.
    Text,
    /// An IANA name, an offset or a POSIX zone.
    TimeZone,
    /// ISO output with any order of day, month and year on input.
    DateStyle,
    /// UTF8 and nothing else.
    Encoding,
    /// The word that PostgreSQL would also take other values for, which Verus has not.
    Only(&'static str),
    /// Set by the server.
    Fixed,
}

const ISOLATION: Kind = Kind::Words(&["serializable", "repeatable read", "read committed", "read uncommitted"]);

const fn variable(name: &'static str, kind: Kind, default: &'static str, reported: bool, description: &'static str) -> Variable {
    Variable { name, kind, default, reported, description }
}

/// The version that clients see: the PostgreSQL whose behaviour Verus follows.
pub const SERVER_VERSION: &str = "16.6";

/// All variables, by name.
pub static VARIABLES: &[Variable] = &[
    variable("application_name", Kind::Text, "", true, "Sets the application name to be reported in statistics and logs."),
    variable("bytea_output", Kind::Words(&["escape", "hex"]), "hex", false, "Sets the output format for bytea."),
    variable("client_encoding", Kind::Encoding, "UTF8", true, "Sets the client's character set encoding."),
    variable(
        "client_min_messages",
        Kind::Words(&["debug5", "debug4", "debug3", "debug2", "debug1", "log", "notice", "warning", "error"]),
        "notice",
        false,
        "Sets the message levels that are sent to the client.",
    ),
    variable("DateStyle", Kind::DateStyle, "ISO, MDY", true, "Sets the display format for date and time values."),
    variable("default_table_access_method", Kind::Only("heap"), "heap", false, "Sets the default table access method for new tables."),
    variable(
        "default_transaction_isolation",
        ISOLATION,
        "read committed",
        false,
        "Sets the transaction isolation level of each new transaction.",
    ),
    variable("default_transaction_read_only", Kind::Boolean, "off", true, "Sets the default read-only status of new transactions."),
    variable("extra_float_digits", Kind::Integer(-15, 3), "1", false, "Sets the number of digits displayed for floating-point values."),
    variable(
        "idle_in_transaction_session_timeout",
        Kind::Milliseconds,
        "0",
        false,
        "Sets the maximum allowed idle time between queries, when in a transaction.",
    ),
    variable(
        "idle_session_timeout",
        Kind::Milliseconds,
        "0",
        false,
        "Sets the maximum allowed idle time between queries, when not in a transaction.",
    ),
    variable("in_hot_standby", Kind::Fixed, "off", true, "Shows whether hot standby is currently active."),
    variable("integer_datetimes", Kind::Fixed, "on", true, "Shows whether datetimes are integer based."),
    variable("IntervalStyle", Kind::Words(&["postgres", "iso_8601"]), "postgres", true, "Sets the display format for interval values."),
    variable("is_superuser", Kind::Fixed, "on", true, "Shows whether the current user is a superuser."),
    variable("jit", Kind::Boolean, "off", false, "Allow JIT compilation. Verus compiles no queries, whatever it says."),
    variable("lc_collate", Kind::Fixed, "C", false, "Shows the collation order locale."),
    variable("lc_ctype", Kind::Fixed, "C", false, "Shows the character classification and case conversion locale."),
    variable("lock_timeout", Kind::Milliseconds, "0", false, "Sets the maximum allowed duration of any wait for a lock."),
    variable("max_identifier_length", Kind::Fixed, "63", false, "Shows the maximum identifier length."),
    variable("max_index_keys", Kind::Fixed, "32", false, "Shows the maximum number of index keys."),
    variable("row_security", Kind::Boolean, "on", false, "Enable row security. There are no policies to enforce."),
    variable(
        "search_path",
        Kind::Text,
        "\"$user\", public",
        false,
        "Sets the schema search order for names that are not schema-qualified.",
    ),
    variable("server_encoding", Kind::Fixed, "UTF8", true, "Shows the server (database) character set encoding."),
    variable("server_version", Kind::Fixed, SERVER_VERSION, true, "Shows the server version."),
    variable("server_version_num", Kind::Fixed, "160006", false, "Shows the server version as an integer."),
    variable("session_authorization", Kind::Fixed, "verus", true, "Shows the session user name."),
    variable("standard_conforming_strings", Kind::Only("on"), "on", true, "Causes '...' strings to treat backslashes literally."),
    variable("statement_timeout", Kind::Milliseconds, "0", false, "Sets the maximum allowed duration of any statement."),
    variable("TimeZone", Kind::TimeZone, "UTC", true, "Sets the time zone for displaying and interpreting time stamps."),
    variable("transaction_isolation", ISOLATION, "read committed", false, "Sets the current transaction's isolation level."),
    variable("transaction_read_only", Kind::Boolean, "off", false, "Sets the current transaction's read-only status."),
    variable(
        "verus.late_rows",
        Kind::WordsOrUnset(&["divert", "apply", "error"]),
        "",
        false,
        "Sets what happens to rows behind the watermark; unset, each table's own option.",
    ),
    variable(
        "verus.route",
        Kind::Words(&["auto", "scan"]),
        "auto",
        false,
        "Sets whether queries of event tables are answered from materialized views where these have the answer.",
    ),
    variable(
        "verus.verify_route",
        Kind::Boolean,
        "off",
        false,
        "Runs queries that materialized views answer from their tables too, and fails them when the answers differ.",
    ),
];

/// Finds a variable without regard to case.
pub fn find(name: &str) -> Option<&'static Variable> {
    VARIABLES.iter().find(|variable| variable.name.eq_ignore_ascii_case(name))
}

/// Whether a name is of the form `a.b` that PostgreSQL lets anybody set; `verus.` is taken, and what the engine below has is not the client's.
pub fn is_custom(name: &str) -> bool {
    let part = |text: &str| {
        text.starts_with(|first: char| first.is_alphabetic() || first == '_')
            && text.chars().all(|each| each.is_alphanumeric() || each == '_' || each == '$')
    };
    let lower = name.to_ascii_lowercase();
    let taken = ["verus.", "datafusion."].iter().any(|prefix| lower.starts_with(prefix));
    name.contains('.') && !taken && name.split('.').all(part)
}

/// The error for a name that is no variable (42704), with the nearest one.
pub fn unknown(name: &str) -> Error {
    let error = Error::new(SqlState::UNDEFINED_OBJECT, format!("unrecognized configuration parameter \"{name}\""));
    let lower = name.to_ascii_lowercase();
    let nearest = VARIABLES
        .iter()
        .map(|variable| (strsim::jaro_winkler(&variable.name.to_ascii_lowercase(), &lower), variable.name))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|left, right| left.0.total_cmp(&right.0));
    match nearest {
        Some((_, nearest)) => error.hint(format!("Perhaps you meant \"{nearest}\".")),
        None => error,
    }
}

impl Variable {
    /// Checks a value and brings it into the form that SHOW prints.
    pub fn normalize(&self, value: &str) -> Result<String> {
        match self.kind {
            Kind::Fixed => Err(Error::new(SqlState::CANT_CHANGE_RUNTIME_PARAM, format!("parameter \"{}\" cannot be changed", self.name))),
            Kind::Text => Ok(value.to_owned()),
            Kind::Boolean => match boolean(value) {
                Some(true) => Ok("on".to_owned()),
                Some(false) => Ok("off".to_owned()),
                None => Err(invalid(format!("parameter \"{}\" requires a Boolean value", self.name))),
            },
            Kind::Integer(least, greatest) => {
                let number: i64 = value.trim().parse().map_err(|_| self.invalid(value))?;
                if (least..=greatest).contains(&number) {
                    Ok(number.to_string())
                } else {
                    Err(invalid(format!("{number} is outside the valid range for parameter \"{}\" ({least} .. {greatest})", self.name)))
                }
            }
            Kind::Milliseconds => {
                let milliseconds = milliseconds(value).ok_or_else(|| {
                    self.invalid(value).hint("Valid units for this parameter are \"us\", \"ms\", \"s\", \"min\", \"h\", and \"d\".")
                })?;
                if !(0..=i64::from(i32::MAX)).contains(&milliseconds) {
                    return Err(invalid(format!(
                        "{milliseconds} ms is outside the valid range for parameter \"{}\" (0 ms .. {} ms)",
                        self.name,
                        i32::MAX
                    )));
                }
                Ok(show_milliseconds(milliseconds))
            }
            Kind::Words(words) => self.word(words, value),
            Kind::WordsOrUnset(_) if value.is_empty() => Ok(String::new()),
            Kind::WordsOrUnset(words) => self.word(words, value),
            Kind::TimeZone => match value.trim().to_ascii_lowercase().as_str() {
                "default" | "local" => Ok(self.default.to_owned()),
                name => Zone::parse(name).map(|zone| zone.to_string()).map_err(|_| self.invalid(value)),
            },
            Kind::DateStyle => self.date_style(value),
            Kind::Encoding => match value.to_ascii_lowercase().replace(['-', '_', ' ', '\''], "").as_str() {
                "utf8" | "unicode" => Ok("UTF8".to_owned()),
                _ => Err(self.invalid(value).hint("The only client encoding is UTF8.")),
            },
            Kind::Only(word) => {
                let normal = match boolean(value) {
                    Some(true) => "on",
                    Some(false) => "off",
                    None => value,
                };
                if normal.eq_ignore_ascii_case(word) {
                    Ok(word.to_owned())
                } else {
                    Err(Error::unsupported(format!("parameter \"{}\" can only be \"{word}\"", self.name)))
                }
            }
        }
    }

    fn word(&self, words: &[&str], value: &str) -> Result<String> {
        match words.iter().find(|word| word.eq_ignore_ascii_case(value.trim())) {
            Some(word) => Ok((*word).to_owned()),
            None => Err(self.invalid(value).hint(format!("Available values: {}.", words.join(", ")))),
        }
    }

    fn date_style(&self, value: &str) -> Result<String> {
        for part in value.split(',').map(str::trim) {
            match part.to_ascii_uppercase().as_str() {
                "ISO" | "MDY" | "US" | "NONEURO" | "NONEUROPEAN" | "DEFAULT" => {}
                "SQL" | "POSTGRES" | "GERMAN" | "DMY" | "EURO" | "EUROPEAN" | "YMD" => {
                    return Err(Error::unsupported(format!("DateStyle \"{value}\" is not supported"))
                        .hint("Dates are read and written as \"ISO, MDY\": 2026-11-23 is unambiguous."));
                }
                _ => return Err(self.invalid(value).detail("Unrecognized key word in DateStyle.")),
            }
        }
        Ok("ISO, MDY".to_owned())
    }

    fn invalid(&self, value: &str) -> Error {
        invalid(format!("invalid value for parameter \"{}\": \"{value}\"", self.name))
    }
}

fn invalid(message: String) -> Error {
    Error::new(SqlState::INVALID_PARAMETER_VALUE, message)
}

/// PostgreSQL's parse_bool: unique prefixes of true, false, yes, no, on, off; 1 and 0.
pub fn boolean(value: &str) -> Option<bool> {
    let value = value.trim().to_ascii_lowercase();
    let prefix = |word: &str, least: usize| value.len() >= least && word.starts_with(&value);
    if value == "1" || prefix("true", 1) || prefix("yes", 1) || value == "on" {
        Some(true)
    } else if value == "0" || prefix("false", 1) || prefix("no", 1) || prefix("off", 2) {
        Some(false)
    } else {
        None
    }
}

/// Units of durations, greatest first, in milliseconds.
const UNITS: [(&str, f64); 6] = [("d", 86_400_000.0), ("h", 3_600_000.0), ("min", 60_000.0), ("s", 1_000.0), ("ms", 1.0), ("us", 0.001)];

/// Reads `5s`, `100 ms`, `1.5min`, `250`; none when it is no duration.
pub fn milliseconds(value: &str) -> Option<i64> {
    let value = value.trim();
    let digits = value.find(|each: char| !(each.is_ascii_digit() || matches!(each, '.' | '-' | '+' | 'e' | 'E'))).unwrap_or(value.len());
    let (number, unit) = value.split_at(digits);
    let number: f64 = number.parse().ok()?;
    let factor = match unit.trim() {
        "" => 1.0,
        unit => UNITS.iter().find(|(name, _)| *name == unit)?.1,
    };
    let milliseconds = (number * factor).round();
    // Beyond this a float no longer holds every whole number; the range check that follows refuses it anyway.
    (milliseconds.abs() < 9e15).then_some(milliseconds as i64)
}

fn show_milliseconds(milliseconds: i64) -> String {
    const SHOWN: [(&str, i64); 4] = [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000)];
    match SHOWN.iter().find(|(_, factor)| milliseconds != 0 && milliseconds % factor == 0) {
        Some((unit, factor)) => format!("{}{unit}", milliseconds / factor),
        None if milliseconds == 0 => "0".to_owned(),
        None => format!("{milliseconds}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, value: &str, expected: Result<&str, &str>) {
        let variable = find(name).unwrap();
        let actual = variable.normalize(value);
        match (&actual, expected) {
            (Ok(actual), Ok(expected)) => assert_eq!(actual, expected, "{name} = {value}"),
            (Err(actual), Err(expected)) => assert_eq!(actual.state().0, expected, "{name} = {value}"),
            _ => panic!("{name} = {value}: {actual:?}"),
        }
    }

    #[test]
    fn values_are_checked_and_shown_as_postgresql_shows_them() {
        check("STATEMENT_TIMEOUT", "5000", Ok("5s"));
        check("statement_timeout", "1500", Ok("1500ms"));
        check("statement_timeout", "2 min", Ok("2min"));
        check("statement_timeout", "0", Ok("0"));
        check("statement_timeout", "-1", Err("22023"));
        check("statement_timeout", "5 parsecs", Err("22023"));
        check("jit", "of", Ok("off"));
        check("jit", "o", Err("22023"));
        check("datestyle", "iso", Ok("ISO, MDY"));
        check("datestyle", "German", Err("0A000"));
        check("datestyle", "stardate", Err("22023"));
        check("client_encoding", "utf-8", Ok("UTF8"));
        check("client_encoding", "'utf-8'", Ok("UTF8"));
        check("client_encoding", "'latin1'", Err("22023"));
        check("timezone", "europe/berlin", Ok("Europe/Berlin"));
        check("timezone", "Mars/Olympus", Err("22023"));
        check("extra_float_digits", "4", Err("22023"));
        check("server_version", "17", Err("55P02"));
        check("standard_conforming_strings", "off", Err("0A000"));
        check("verus.late_rows", "APPLY", Ok("apply"));
        check("verus.late_rows", "sometimes", Err("22023"));
    }

    #[test]
    fn unknown_names_get_the_nearest() {
        let error = unknown("statement_timeut");
        assert_eq!(error.state(), SqlState::UNDEFINED_OBJECT);
        assert_eq!(error.report().hint.as_deref(), Some("Perhaps you meant \"statement_timeout\"."));
        assert!(is_custom("my.app_user") && !is_custom("verus.nothing") && !is_custom("nothing"));
    }
}
