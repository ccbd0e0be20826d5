//! Errors and notices as the wire says them, and what ends a connection.

use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::response::{ErrorResponse, NoticeResponse};

use crate::error::{Error, SqlState};

/// Why something could not be done.
#[derive(Debug)]
pub(super) enum Fault {
    /// The statement failed; the session lives.
    Statement(Error),
    /// The session ends with this error.
    Fatal(Error),
    /// The client is gone: nobody to tell.
    Closed,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Statement(error)
    }
}

impl From<std::io::Error> for Fault {
    fn from(_: std::io::Error) -> Self {
        Fault::Closed
    }
}

/// An ErrorResponse of severity ERROR or FATAL.
pub(super) fn response(severity: &str, error: &Error) -> PgWireBackendMessage {
    PgWireBackendMessage::ErrorResponse(ErrorResponse::new(fields(severity, error)))
}

/// Whether a notice is a WARNING rather than a NOTICE.
pub(super) fn is_warning(notice: &Error) -> bool {
    let state = notice.state();
    state.0.starts_with("01") || state == SqlState::ACTIVE_SQL_TRANSACTION || state == SqlState::NO_ACTIVE_SQL_TRANSACTION
}

/// A NoticeResponse.
pub(super) fn notice(notice: &Error) -> PgWireBackendMessage {
    let severity = if is_warning(notice) { "WARNING" } else { "NOTICE" };
    PgWireBackendMessage::NoticeResponse(NoticeResponse::new(fields(severity, notice)))
}

fn fields(severity: &str, error: &Error) -> Vec<(u8, String)> {
    let report = error.report();
    let mut fields = vec![
        (b'S', severity.to_owned()),
        (b'V', severity.to_owned()),
        (b'C', report.state.0.to_owned()),
        // A zero byte would end the field early.
        (b'M', report.message.replace('\0', "")),
    ];
    fields.extend(report.detail.as_ref().map(|detail| (b'D', detail.replace('\0', ""))));
    fields.extend(report.hint.as_ref().map(|hint| (b'H', hint.replace('\0', ""))));
    fields.extend(report.context.as_ref().map(|context| (b'W', context.replace('\0', ""))));
    fields.extend(report.position.map(|position| (b'P', position.to_string())));
    fields
}
