//! LISTEN, UNLISTEN and NOTIFY: parts of the transaction, in force when it commits.

use crate::bus::Message;
use crate::command::Response;
use crate::error::Result;
use crate::session::Session;
use crate::session::transaction::Listening;

/// LISTEN. 22023 for a name that is too long.
pub fn listen(session: &mut Session, channel: &str) -> Result<Response> {
    Message::new(channel, "")?;
    session.listening(Listening::To(channel.to_owned()));
    Ok(Response::Done("LISTEN".to_owned()))
}

/// UNLISTEN; of everything without a channel.
pub fn unlisten(session: &mut Session, channel: Option<&str>) -> Result<Response> {
    session.listening(channel.map_or(Listening::Nothing, |channel| Listening::No(channel.to_owned())));
    Ok(Response::Done("UNLISTEN".to_owned()))
}

/// NOTIFY.
pub fn notify(session: &mut Session, channel: &str, payload: &str) -> Result<Response> {
    session.notify(Message::new(channel, payload)?)?;
    Ok(Response::Done("NOTIFY".to_owned()))
}
