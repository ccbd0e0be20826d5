//! One session's variables: SET, SET LOCAL, RESET, and what a transaction's end does to them.
//!
//! *Place*: kept in `Session`; `command::{set, show, discard}` change it, `query::Context` carries its map.
//!
//! *Invariants*: (1) every map holds every variable of [`VARIABLES`], keyed in lower case; (2) a rolled back SET leaves no
//! trace, a SET LOCAL none past its transaction; (3) equal maps are the same allocation until one is changed, so that a cached
//! plan can be tied to its settings by address.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::catalog::LateRows;
use crate::error::{Error, Result, SqlState};
use crate::session::variable::{self, VARIABLES};
use crate::types::text::{ByteaOutput, IntervalStyle, Style};
use crate::types::zone::Zone;

/// Values by lower-case name.
pub type Values = Arc<BTreeMap<String, String>>;

/// Session variables with their defaults, and SET LOCAL values that end with the transaction.
#[derive(Clone, Debug)]
pub struct Vars {
    /// What holds now.
    current: Values,
    /// What COMMIT leaves.
    kept: Values,
    /// What ROLLBACK restores.
    at_begin: Values,
    /// What RESET restores: the defaults under the startup packet's values.
    reset: Values,
    typed: Typed,
}

/// The values that are asked for with every statement, parsed when they change.
#[derive(Clone, Debug)]
struct Typed {
    statement_timeout: Option<Duration>,
    idle_in_transaction: Option<Duration>,
    idle: Option<Duration>,
    style: Style,
    time_zone: String,
    late_rows: Option<LateRows>,
}

/// The maps at a savepoint.
#[derive(Clone, Debug)]
pub struct Saved {
    current: Values,
    kept: Values,
}

impl Default for Vars {
    fn default() -> Self {
        let defaults: Values =
            Arc::new(VARIABLES.iter().map(|variable| (variable.name.to_ascii_lowercase(), variable.default.to_owned())).collect());
        let typed = Typed::of(&defaults);
        Self { current: Arc::clone(&defaults), kept: Arc::clone(&defaults), at_begin: Arc::clone(&defaults), reset: defaults, typed }
    }
}

impl Vars {
    /// All values, by lower-case name.
    pub fn values(&self) -> &Values {
        &self.current
    }

    /// A value as SHOW prints it. 42704 when there is no such variable.
    pub fn get(&self, name: &str) -> Result<&str> {
        match self.current.get(&name.to_ascii_lowercase()) {
            Some(value) => Ok(value),
            None => Err(variable::unknown(name)),
        }
    }

    /// SET and SET LOCAL. 42704, 22023, 55P02, 0A000 as [`variable`] says.
    pub fn set(&mut self, name: &str, value: &str, local: bool) -> Result<()> {
        let value = match variable::find(name) {
            Some(variable) => variable.normalize(value)?,
            None if variable::is_custom(name) => value.to_owned(),
            None => return Err(variable::unknown(name)),
        };
        self.put(name.to_ascii_lowercase(), value, local);
        Ok(())
    }

    /// SET ... TO DEFAULT and RESET. Custom variables become empty, as in PostgreSQL.
    pub fn reset(&mut self, name: &str, local: bool) -> Result<()> {
        match variable::find(name) {
            Some(variable) if matches!(variable.kind, variable::Kind::Fixed) => {
                return Err(Error::new(SqlState::CANT_CHANGE_RUNTIME_PARAM, format!("parameter \"{}\" cannot be changed", variable.name)));
            }
            Some(_) => {}
            None if variable::is_custom(name) => {}
            None => return Err(variable::unknown(name)),
        }
        let name = name.to_ascii_lowercase();
        let value = self.reset.get(&name).cloned().unwrap_or_default();
        self.put(name, value, local);
        Ok(())
    }

    /// RESET ALL.
    pub fn reset_all(&mut self) {
        let transaction = ["transaction_isolation", "transaction_read_only"].map(|name| (name, self.current.get(name).cloned()));
        let mut values = (*self.reset).clone();
        for (name, value) in transaction {
            values.extend(value.map(|value| (name.to_owned(), value)));
        }
        self.current = Arc::new(values);
        self.kept = Arc::clone(&self.current);
        self.typed = Typed::of(&self.current);
    }

    /// Sets what the server decides (session_authorization) or the startup packet says: it is also what RESET restores.
    pub(crate) fn initialize(&mut self, name: &str, value: &str) -> Result<()> {
        let fixed = variable::find(name).is_some_and(|variable| matches!(variable.kind, variable::Kind::Fixed));
        if fixed {
            self.put(name.to_ascii_lowercase(), value.to_owned(), false);
        } else {
            self.set(name, value, false)?;
        }
        self.reset = Arc::clone(&self.current);
        self.at_begin = Arc::clone(&self.current);
        Ok(())
    }

    fn put(&mut self, name: String, value: String, local: bool) {
        if self.current.get(&name) != Some(&value) {
            Arc::make_mut(&mut self.current).insert(name.clone(), value.clone());
            self.typed = Typed::of(&self.current);
        }
        if !local {
            if Arc::ptr_eq(&self.kept, &self.at_begin) && self.kept.get(&name) == Some(&value) {
                return;
            }
            Arc::make_mut(&mut self.kept).insert(name, value);
            if *self.kept == *self.current {
                self.kept = Arc::clone(&self.current);
            }
        }
    }

    /// A transaction starts, with the session's default isolation and access mode.
    pub(crate) fn begin(&mut self) {
        for (name, default) in
            [("transaction_isolation", "default_transaction_isolation"), ("transaction_read_only", "default_transaction_read_only")]
        {
            if self.current.get(name) != self.current.get(default) {
                let value = self.current.get(default).cloned().unwrap_or_default();
                self.put(name.to_owned(), value, false);
            }
        }
        self.kept = Arc::clone(&self.current);
        self.at_begin = Arc::clone(&self.current);
    }

    /// The transaction ends well: SET LOCAL ends, SET stays.
    pub(crate) fn commit(&mut self) {
        let kept = Arc::clone(&self.kept);
        self.replace(kept);
    }

    /// The transaction is undone: so is its SET.
    pub(crate) fn rollback(&mut self) {
        let before = Arc::clone(&self.at_begin);
        self.replace(before);
    }

    fn replace(&mut self, values: Values) {
        if !Arc::ptr_eq(&self.current, &values) {
            self.typed = Typed::of(&values);
        }
        self.current = Arc::clone(&values);
        self.kept = Arc::clone(&values);
        self.at_begin = values;
    }

    /// At SAVEPOINT.
    pub(crate) fn save(&self) -> Saved {
        Saved { current: Arc::clone(&self.current), kept: Arc::clone(&self.kept) }
    }

    /// At ROLLBACK TO.
    pub(crate) fn restore(&mut self, saved: &Saved) {
        self.current = Arc::clone(&saved.current);
        self.kept = Arc::clone(&saved.kept);
        self.typed = Typed::of(&self.current);
    }

    /// statement_timeout, or none.
    pub fn statement_timeout(&self) -> Option<Duration> {
        self.typed.statement_timeout
    }

    /// idle_in_transaction_session_timeout, or none.
    pub fn idle_in_transaction_timeout(&self) -> Option<Duration> {
        self.typed.idle_in_transaction
    }

    /// idle_session_timeout, or none.
    pub fn idle_timeout(&self) -> Option<Duration> {
        self.typed.idle
    }

    /// How values are written: TimeZone, IntervalStyle, bytea_output, extra_float_digits.
    pub fn style(&self) -> &Style {
        &self.typed.style
    }

    /// TimeZone as an IANA name or an offset such as `+02:00`.
    pub fn time_zone(&self) -> &str {
        &self.typed.time_zone
    }

    /// `verus.late_rows`; none leaves it to each table.
    pub fn late_rows(&self) -> Option<LateRows> {
        self.typed.late_rows
    }

    /// Whether messages of this level (`notice`, `warning`) are sent: client_min_messages.
    pub fn sends(&self, warning: bool) -> bool {
        match self.current.get("client_min_messages").map(String::as_str) {
            Some("error") => false,
            Some("warning") => warning,
            _ => true,
        }
    }

    /// Whether the transaction keeps one snapshot: REPEATABLE READ.
    pub(crate) fn repeatable_read(&self) -> bool {
        self.current.get("transaction_isolation").is_some_and(|level| level == "repeatable read")
    }

    /// Whether the transaction may change nothing.
    pub fn read_only(&self) -> bool {
        self.current.get("transaction_read_only").is_some_and(|value| value == "on")
    }
}

impl Typed {
    fn of(values: &BTreeMap<String, String>) -> Self {
        let text = |name: &str| values.get(name).map_or("", String::as_str);
        let duration = |name: &str| {
            variable::milliseconds(text(name))
                .and_then(|milliseconds| u64::try_from(milliseconds).ok())
                .filter(|milliseconds| *milliseconds > 0)
                .map(Duration::from_millis)
        };
        let zone = Zone::parse(text("timezone")).unwrap_or(Zone::UTC);
        Self {
            statement_timeout: duration("statement_timeout"),
            idle_in_transaction: duration("idle_in_transaction_session_timeout"),
            idle: duration("idle_session_timeout"),
            style: Style {
                time_zone: zone,
                interval_style: if text("intervalstyle") == "iso_8601" { IntervalStyle::Iso8601 } else { IntervalStyle::Postgres },
                bytea_output: if text("bytea_output") == "escape" { ByteaOutput::Escape } else { ByteaOutput::Hex },
                extra_float_digits: text("extra_float_digits").parse().unwrap_or(1),
            },
            time_zone: match zone {
                Zone::Named(zone) => zone.name().to_owned(),
                Zone::Fixed(seconds) => offset(seconds),
            },
            late_rows: match text("verus.late_rows") {
                "divert" => Some(LateRows::Divert),
                "apply" => Some(LateRows::Apply),
                "error" => Some(LateRows::Error),
                _ => None,
            },
        }
    }
}

fn offset(seconds_east: i32) -> String {
    let sign = if seconds_east < 0 { '-' } else { '+' };
    let minutes = seconds_east.abs() / 60;
    format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_keep_and_undo_settings() {
        let mut vars = Vars::default();
        vars.begin();
        vars.set("statement_timeout", "5s", false).unwrap();
        vars.set("statement_timeout", "1s", true).unwrap();
        assert_eq!(vars.statement_timeout(), Some(Duration::from_secs(1)));
        vars.commit();
        assert_eq!(vars.statement_timeout(), Some(Duration::from_secs(5)));

        vars.begin();
        vars.set("TIMEZONE", "Europe/Berlin", false).unwrap();
        let saved = vars.save();
        vars.set("my.thing", "one", false).unwrap();
        vars.restore(&saved);
        assert!(vars.get("my.thing").is_err());
        assert_eq!(vars.time_zone(), "Europe/Berlin");
        vars.rollback();
        assert_eq!(vars.get("TimeZone").unwrap(), "UTC");

        vars.begin();
        vars.reset("statement_timeout", false).unwrap();
        vars.commit();
        assert_eq!(vars.get("statement_timeout").unwrap(), "0");
    }

    #[test]
    fn a_map_stays_the_same_allocation_while_nothing_changes() {
        let mut vars = Vars::default();
        let before = Arc::clone(vars.values());
        vars.begin();
        vars.set("jit", "off", false).unwrap();
        vars.commit();
        assert!(Arc::ptr_eq(&before, vars.values()));
    }
}
