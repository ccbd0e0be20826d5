//! The error that a client sees.
//!
//! *Place*: below everything; knows nobody. Storage modules have an enum of their own and convert it here with
//! an exhaustive match; the SQL layers build it directly.
//!
//! Messages follow PostgreSQL's style: lower case, no full stop, naming the object. Detail and hint are sentences.

use std::collections::BTreeSet;
use std::fmt;

use parking_lot::Mutex;

/// Result with Verus's client-facing [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A five-character SQLSTATE (PostgreSQL manual, appendix A).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState(pub &'static str);

macro_rules! states {
    ($($name:ident = $code:literal;)*) => {
        #[allow(missing_docs, reason = "the names are PostgreSQL's own condition names")]
        impl SqlState { $(pub const $name: SqlState = SqlState($code);)* }
    };
}

states! {
    WARNING = "01000";
    FEATURE_NOT_SUPPORTED = "0A000";
    PROTOCOL_VIOLATION = "08P01";
    CONNECTION_FAILURE = "08006";
    CARDINALITY_VIOLATION = "21000";
    DATA_EXCEPTION = "22000";
    STRING_DATA_RIGHT_TRUNCATION = "22001";
    NUMERIC_VALUE_OUT_OF_RANGE = "22003";
    INVALID_DATETIME_FORMAT = "22007";
    DATETIME_FIELD_OVERFLOW = "22008";
    INVALID_TIME_ZONE_DISPLACEMENT = "22009";
    DIVISION_BY_ZERO = "22012";
    INTERVAL_FIELD_OVERFLOW = "22015";
    CHARACTER_NOT_IN_REPERTOIRE = "22021";
    UNTRANSLATABLE_CHARACTER = "22P05";
    INVALID_PARAMETER_VALUE = "22023";
    INVALID_TEXT_REPRESENTATION = "22P02";
    INVALID_BINARY_REPRESENTATION = "22P03";
    BAD_COPY_FILE_FORMAT = "22P04";
    NOT_NULL_VIOLATION = "23502";
    UNIQUE_VIOLATION = "23505";
    CHECK_VIOLATION = "23514";
    ACTIVE_SQL_TRANSACTION = "25001";
    READ_ONLY_SQL_TRANSACTION = "25006";
    NO_ACTIVE_SQL_TRANSACTION = "25P01";
    IN_FAILED_SQL_TRANSACTION = "25P02";
    INVALID_SQL_STATEMENT_NAME = "26000";
    INVALID_AUTHORIZATION_SPECIFICATION = "28000";
    INVALID_PASSWORD = "28P01";
    DEPENDENT_OBJECTS_STILL_EXIST = "2BP01";
    INVALID_CURSOR_NAME = "34000";
    INVALID_CATALOG_NAME = "3D000";
    INVALID_SCHEMA_NAME = "3F000";
    SERIALIZATION_FAILURE = "40001";
    DEADLOCK_DETECTED = "40P01";
    INSUFFICIENT_PRIVILEGE = "42501";
    SYNTAX_ERROR = "42601";
    INVALID_COLUMN_DEFINITION = "42611";
    INVALID_NAME = "42602";
    UNDEFINED_COLUMN = "42703";
    AMBIGUOUS_COLUMN = "42702";
    UNDEFINED_OBJECT = "42704";
    DUPLICATE_COLUMN = "42701";
    DUPLICATE_OBJECT = "42710";
    GROUPING_ERROR = "42803";
    DATATYPE_MISMATCH = "42804";
    WRONG_OBJECT_TYPE = "42809";
    GENERATED_ALWAYS = "428C9";
    INVALID_COLUMN_REFERENCE = "42P10";
    UNDEFINED_FUNCTION = "42883";
    UNDEFINED_TABLE = "42P01";
    UNDEFINED_PARAMETER = "42P02";
    DUPLICATE_CURSOR = "42P03";
    DUPLICATE_PREPARED_STATEMENT = "42P05";
    DUPLICATE_TABLE = "42P07";
    INVALID_TABLE_DEFINITION = "42P16";
    INVALID_OBJECT_DEFINITION = "42P17";
    INDETERMINATE_DATATYPE = "42P18";
    WINDOWING_ERROR = "42P20";
    INSUFFICIENT_RESOURCES = "53000";
    DISK_FULL = "53100";
    OUT_OF_MEMORY = "53200";
    TOO_MANY_CONNECTIONS = "53300";
    CONFIGURATION_LIMIT_EXCEEDED = "53400";
    PROGRAM_LIMIT_EXCEEDED = "54000";
    STATEMENT_TOO_COMPLEX = "54001";
    OBJECT_IN_USE = "55006";
    OBJECT_NOT_IN_PREREQUISITE_STATE = "55000";
    CANT_CHANGE_RUNTIME_PARAM = "55P02";
    LOCK_NOT_AVAILABLE = "55P03";
    QUERY_CANCELED = "57014";
    ADMIN_SHUTDOWN = "57P01";
    CANNOT_CONNECT_NOW = "57P03";
    SYSTEM_ERROR = "58000";
    IO_ERROR = "58030";
    INTERNAL_ERROR = "XX000";
    DATA_CORRUPTED = "XX001";
}

impl SqlState {
    /// The state of a code that the server has written itself. None where it is no code.
    fn named(code: &str) -> Option<SqlState> {
        static CODES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
        if code.len() != 5 || !code.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase()) {
            return None;
        }
        let mut codes = CODES.lock();
        if let Some(known) = codes.get(code) {
            return Some(SqlState(known));
        }
        // Once for each of the server's own codes, of which there are a hundred.
        let code: &'static str = Box::leak(code.to_owned().into_boxed_str());
        codes.insert(code);
        Some(SqlState(code))
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// What the client is told when a statement fails. Boxed: it travels in every `Result`.
#[derive(Clone, PartialEq, Eq)]
pub struct Error(Box<Report>);

/// The fields of an ErrorResponse or NoticeResponse.
#[derive(Clone, PartialEq, Eq)]
pub struct Report {
    /// The SQLSTATE.
    pub state: SqlState,
    /// One line, lower case, no full stop.
    pub message: String,
    /// Whole sentences, or none.
    pub detail: Option<String>,
    /// What the user should type instead, or none.
    pub hint: Option<String>,
    /// Where in the input it happened (`COPY events, line 3, column revenue: "abc"`), or none.
    pub context: Option<String>,
    /// 1-based character position in the statement text, or none.
    pub position: Option<u32>,
}

/// What stands before the fields in the text that `Debug` writes.
const WRITTEN: &str = "Report {";

/// As JSON, so that [`Error::written_in`] can read it: the Parquet reader passes on errors of its filters as such text alone.
impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { state, message, detail, hint, context, position } = self;
        let fields = serde_json::json!({
            "state": state.0, "message": message, "detail": detail, "hint": hint, "context": context, "position": position
        });
        write!(f, "Report {fields}")
    }
}

impl Error {
    /// The error whose `Debug` text is part of a text.
    pub fn written_in(text: &str) -> Option<Error> {
        let start = text.find(WRITTEN)? + WRITTEN.len() - 1;
        let fields = serde_json::Deserializer::from_str(&text[start..]).into_iter::<serde_json::Value>().next()?.ok()?;
        let field = |name: &str| fields.get(name).and_then(|value| value.as_str()).map(str::to_owned);
        Some(Error(Box::new(Report {
            state: SqlState::named(&field("state")?)?,
            message: field("message")?,
            detail: field("detail"),
            hint: field("hint"),
            context: field("context"),
            position: fields.get("position").and_then(serde_json::Value::as_u64).and_then(|position| u32::try_from(position).ok()),
        })))
    }

    /// An error with a state and a message.
    pub fn new(state: SqlState, message: impl Into<String>) -> Self {
        Error(Box::new(Report { state, message: message.into(), detail: None, hint: None, context: None, position: None }))
    }

    /// A broken invariant of Verus itself (XX000).
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(SqlState::INTERNAL_ERROR, message)
    }

    /// Something that PostgreSQL has and Verus has not (0A000).
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(SqlState::FEATURE_NOT_SUPPORTED, message)
    }

    /// A syntax error (42601) at a 1-based character position.
    pub fn syntax(message: impl Into<String>) -> Self {
        Self::new(SqlState::SYNTAX_ERROR, message)
    }

    /// The same error with another state.
    #[must_use]
    pub fn with_state(mut self, state: SqlState) -> Self {
        self.0.state = state;
        self
    }

    /// Adds the detail.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.0.detail = Some(detail.into());
        self
    }

    /// Adds the hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds the place in the input.
    #[must_use]
    pub fn context(mut self, context: impl Into<String>) -> Self {
        self.0.context = Some(context.into());
        self
    }

    /// Adds the 1-based character position in the statement.
    #[must_use]
    pub fn position(mut self, position: u32) -> Self {
        self.0.position = Some(position);
        self
    }

    /// The SQLSTATE.
    pub fn state(&self) -> SqlState {
        self.0.state
    }

    /// All fields, for the wire.
    pub fn report(&self) -> &Report {
        &self.0
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::error::Error for Error {}

/// So that an [`Error`] raised inside DataFusion (a function, a provider) comes out as itself: see
/// `query::error::from_datafusion`, which looks for it in the chain of causes.
impl From<Error> for datafusion::error::DataFusionError {
    fn from(error: Error) -> Self {
        datafusion::error::DataFusionError::External(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_read_from_its_debug_text() {
        let error = Error::new(SqlState("2201F"), "no \"root\" of {-1}\n").detail("D: }").hint("H").position(7);
        let around = format!("filter: External({error:?}), 1");
        assert_eq!(Error::written_in(&around), Some(error));
        assert_eq!(Error::written_in("Report {\"state\": \"too long\", \"message\": \"\"}"), None);
        assert_eq!(Error::written_in("Report { state: 22003 }"), None);
    }
}
