//! What DataFusion and Arrow report, as Verus's errors.
//!
//! *Place*: every boundary between this room and an expression, an accumulator or a kernel.

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;

use crate::error::{Error, SqlState};

/// The client's error for one of DataFusion's: an [`Error`] raised inside comes out as itself.
pub(super) fn failure(error: DataFusionError) -> Error {
    match error {
        DataFusionError::External(cause) => match cause.downcast::<Error>() {
            Ok(own) => *own,
            Err(other) => Error::internal(other.to_string()),
        },
        DataFusionError::ArrowError(cause, _) => arrow_failure(*cause),
        DataFusionError::Context(_, cause) | DataFusionError::Diagnostic(_, cause) => failure(*cause),
        DataFusionError::Shared(cause) => shared(&cause),
        DataFusionError::ResourcesExhausted(message) => Error::new(SqlState::OUT_OF_MEMORY, message),
        DataFusionError::NotImplemented(message) => Error::unsupported(message),
        DataFusionError::Plan(message) => Error::new(SqlState::INVALID_COLUMN_REFERENCE, message),
        DataFusionError::Execution(message) if message.contains("verflow") => Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, message),
        DataFusionError::Execution(message) => Error::new(SqlState::DATA_EXCEPTION, message),
        other => Error::internal(other.to_string()),
    }
}

fn shared(error: &DataFusionError) -> Error {
    match error.find_root() {
        DataFusionError::External(cause) => match cause.downcast_ref::<Error>() {
            Some(own) => own.clone(),
            None => Error::internal(cause.to_string()),
        },
        other => Error::internal(other.to_string()),
    }
}

/// The client's error for one of Arrow's.
pub(super) fn arrow_failure(error: ArrowError) -> Error {
    match error {
        ArrowError::DivideByZero => Error::new(SqlState::DIVISION_BY_ZERO, "division by zero"),
        ArrowError::ArithmeticOverflow(_) => {
            Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "value out of range").detail(error.to_string())
        }
        ArrowError::CastError(message) => Error::new(SqlState::INVALID_TEXT_REPRESENTATION, message),
        ArrowError::ParseError(message) => Error::new(SqlState::INVALID_TEXT_REPRESENTATION, message),
        ArrowError::InvalidArgumentError(message) | ArrowError::ComputeError(message) => Error::new(SqlState::DATA_EXCEPTION, message),
        ArrowError::ExternalError(cause) => match cause.downcast::<Error>() {
            Ok(own) => *own,
            Err(other) => match other.downcast::<DataFusionError>() {
                Ok(inner) => failure(*inner),
                Err(other) => Error::internal(other.to_string()),
            },
        },
        other => Error::internal(other.to_string()),
    }
}

/// An error as it is kept in state: its SQLSTATE and message.
pub(super) fn to_text(error: &Error) -> String {
    format!("{}{}", error.state().0, error.report().message)
}

/// The inverse of [`to_text`]. States that expressions do not raise come back as 22000.
pub(super) fn from_text(text: &str) -> Error {
    const STATES: [SqlState; 9] = [
        SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
        SqlState::DIVISION_BY_ZERO,
        SqlState::INVALID_TEXT_REPRESENTATION,
        SqlState::INVALID_DATETIME_FORMAT,
        SqlState::DATETIME_FIELD_OVERFLOW,
        SqlState::INVALID_PARAMETER_VALUE,
        SqlState::STRING_DATA_RIGHT_TRUNCATION,
        SqlState::INTERNAL_ERROR,
        SqlState::FEATURE_NOT_SUPPORTED,
    ];
    let (code, message) = text.split_at_checked(5).unwrap_or(("", text));
    let state = STATES.into_iter().find(|state| state.0 == code).unwrap_or(SqlState::DATA_EXCEPTION);
    Error::new(state, message)
}
