//! Functions that stand for what the session decides: NOW(), CURRENT_USER, the time zone.
//!
//! *Place*: bound plans contain their calls; `query::resolve` replaces each by its value when a plan is run, so that
//! a cached plan never keeps an old one.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

use super::zone;
use crate::clock::{CLOCK_FUNCTION, Micros};
use crate::error::{Error, SqlState};
use crate::types::{SqlType, UTC};

/// What a call stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The transaction's start, as timestamptz.
    Now,
    /// The same in the session's time zone, as timestamp.
    LocalTimestamp,
    /// The same, as time.
    LocalTime,
    /// The same, as date.
    CurrentDate,
    /// The user.
    User,
    /// The database's name.
    Database,
    /// The first schema of the search path.
    Schema,
    /// pg_backend_pid().
    Backend,
    /// The session's time zone.
    TimeZone,
    /// `current_setting(name [, missing_ok])`.
    Setting,
    /// `set_config(name, value, is_local)`: `command::select` sets it, this is the value that it answers.
    SetSetting,
    /// As `Now`, where it says whether a period has ended: unlike NOW() it may be in a view, which is refreshed as the clock goes on.
    Clock,
}

/// A name under which a [`Kind`] is called.
#[derive(Debug)]
pub struct SessionFunction {
    name: &'static str,
    kind: Kind,
    signature: Signature,
}

const NAMES: [(&str, Kind); 19] = [
    ("now", Kind::Now),
    ("current_timestamp", Kind::Now),
    ("transaction_timestamp", Kind::Now),
    ("statement_timestamp", Kind::Now),
    ("localtimestamp", Kind::LocalTimestamp),
    ("localtime", Kind::LocalTime),
    ("current_time", Kind::LocalTime),
    ("current_date", Kind::CurrentDate),
    ("today", Kind::CurrentDate),
    ("current_user", Kind::User),
    ("session_user", Kind::User),
    ("user", Kind::User),
    ("current_database", Kind::Database),
    ("current_catalog", Kind::Database),
    ("current_schema", Kind::Schema),
    ("pg_backend_pid", Kind::Backend),
    (TIME_ZONE, Kind::TimeZone),
    ("current_setting", Kind::Setting),
    ("set_config", Kind::SetSetting),
];

const TIME_ZONE: &str = "session_time_zone";

/// The functions.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    NAMES.iter().map(|(name, kind)| Arc::new(ScalarUDF::new_from_impl(SessionFunction::new(name, *kind)))).collect()
}

/// A call that stands for the session's time zone.
pub fn time_zone() -> Expr {
    Expr::ScalarFunction(ScalarFunction::new_udf(
        Arc::new(ScalarUDF::new_from_impl(SessionFunction::new(TIME_ZONE, Kind::TimeZone))),
        Vec::new(),
    ))
}

/// A call that stands for the session's current date.
pub fn today() -> Expr {
    Expr::ScalarFunction(ScalarFunction::new_udf(
        Arc::new(ScalarUDF::new_from_impl(SessionFunction::new("current_date", Kind::CurrentDate))),
        Vec::new(),
    ))
}

/// A call that stands for the time at which a query is run, in a view too.
pub fn clock() -> Expr {
    Expr::ScalarFunction(ScalarFunction::new_udf(
        Arc::new(ScalarUDF::new_from_impl(SessionFunction::new(CLOCK_FUNCTION, Kind::Clock))),
        Vec::new(),
    ))
}

/// What a call stands for, if it is one of these functions.
pub fn kind_of(function: &ScalarFunction) -> Option<Kind> {
    function.func.inner().downcast_ref::<SessionFunction>().map(|function| function.kind)
}

/// The value that is cast.
fn uncast(expression: &Expr) -> &Expr {
    match expression {
        Expr::Cast(cast) => uncast(&cast.expr),
        other => other,
    }
}

/// What a call of `set_config` sets: name, value, whether only for the transaction. None where one of them is NULL.
pub fn setting_of(arguments: &[Expr], parameters: &[ScalarValue]) -> Result<Option<(String, String, bool)>, Error> {
    let constant = |argument: &Expr| match uncast(argument) {
        Expr::Literal(value, _) => Some(value.clone()),
        Expr::Placeholder(placeholder) => {
            let number: usize = placeholder.id.trim_start_matches('$').parse().ok()?;
            parameters.get(number.checked_sub(1)?).cloned()
        }
        _ => None,
    };
    let values: Option<Vec<ScalarValue>> = arguments.iter().map(constant).collect();
    let Some([name, value, local]) = values.as_deref() else {
        return Err(Error::unsupported("set_config() needs constant arguments"));
    };
    let text = |value: &ScalarValue| value.try_as_str().flatten().map(str::to_owned);
    let local = matches!(local, ScalarValue::Boolean(Some(true)));
    Ok(text(name).zip(text(value)).map(|(name, value)| (name.to_lowercase(), value, local)))
}

/// The values that the calls stand for.
#[derive(Debug)]
pub struct Values<'a> {
    /// NOW().
    pub now: Micros,
    /// IANA name or offset.
    pub time_zone: &'a str,
    /// CURRENT_USER.
    pub user: &'a str,
    /// pg_backend_pid().
    pub backend: i32,
    /// For current_setting().
    pub settings: &'a std::collections::BTreeMap<String, String>,
}

impl Values<'_> {
    /// The value of a call.
    pub fn value(&self, kind: Kind, arguments: &[Expr]) -> Result<ScalarValue, Error> {
        let text = |value: &str| ScalarValue::Utf8View(Some(value.to_owned()));
        let local = || zone::local_of(self.now, zone::parse(self.time_zone)?);
        const DAY_US: i64 = 86_400_000_000;
        Ok(match kind {
            Kind::Now | Kind::Clock => ScalarValue::TimestampMicrosecond(Some(self.now), Some(UTC.into())),
            Kind::LocalTimestamp => ScalarValue::TimestampMicrosecond(Some(local()?), None),
            Kind::LocalTime => ScalarValue::Time64Microsecond(Some(local()?.rem_euclid(DAY_US))),
            Kind::CurrentDate => ScalarValue::Date32(i32::try_from(local()?.div_euclid(DAY_US)).ok()),
            Kind::User => text(self.user),
            Kind::Database => text("verus"),
            Kind::Schema => text("public"),
            Kind::Backend => ScalarValue::Int32(Some(self.backend)),
            Kind::TimeZone => text(self.time_zone),
            Kind::Setting => self.setting(arguments)?,
            Kind::SetSetting => match setting_of(arguments, &[])? {
                Some((_, value, _)) => text(&value),
                None => ScalarValue::Utf8View(None),
            },
        })
    }

    fn setting(&self, arguments: &[Expr]) -> Result<ScalarValue, Error> {
        let name = match arguments.first().map(uncast) {
            Some(Expr::Literal(value, _)) => value.try_as_str().flatten().map(str::to_lowercase),
            _ => return Err(Error::unsupported("current_setting() needs a constant name")),
        };
        let missing_ok = matches!(arguments.get(1), Some(Expr::Literal(ScalarValue::Boolean(Some(true)), _)));
        match name {
            None => Ok(ScalarValue::Utf8View(None)),
            Some(name) => match self.settings.get(&name) {
                Some(value) => Ok(ScalarValue::Utf8View(Some(value.clone()))),
                None if missing_ok => Ok(ScalarValue::Utf8View(None)),
                None => Err(Error::new(SqlState::UNDEFINED_OBJECT, format!("unrecognized configuration parameter \"{name}\""))),
            },
        }
    }
}

impl SessionFunction {
    fn new(name: &'static str, kind: Kind) -> Self {
        let signature = match kind {
            Kind::Setting => Signature::variadic_any(Volatility::Stable),
            Kind::SetSetting => Signature::any(3, Volatility::Stable),
            Kind::Clock => Signature::nullary(Volatility::Immutable),
            _ => Signature::nullary(Volatility::Stable),
        };
        Self { name, kind, signature }
    }
}

impl PartialEq for SessionFunction {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for SessionFunction {}

impl Hash for SessionFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for SessionFunction {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(match self.kind {
            Kind::Now | Kind::Clock => SqlType::Timestamptz.arrow(),
            Kind::LocalTimestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            Kind::LocalTime => SqlType::Time.arrow(),
            Kind::CurrentDate => DataType::Date32,
            Kind::Backend => DataType::Int32,
            Kind::User | Kind::Database | Kind::Schema | Kind::TimeZone | Kind::Setting | Kind::SetSetting => DataType::Utf8View,
        })
    }

    fn invoke_with_args(&self, _args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Err(Error::internal(format!("{}() was not replaced by its value", self.name)).into())
    }
}
