//! COPY.
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::command::Response;
use crate::error::Result;
use crate::session::Session;
use crate::sql::statement::Copy;

/// COPY in every direction: answers `CopyIn` or `CopyOut`, or 42501 for a file of the server.
pub async fn execute(session: &mut Session, statement: &Copy, cancel: CancellationToken) -> Result<Response> {
    let _ = (session, statement, cancel);
    unimplemented!()
}

/// A COPY FROM STDIN under way.
#[derive(Debug)]
pub struct CopyIn {}

impl CopyIn {
    /// Columns, for CopyInResponse.
    pub fn columns(&self) -> usize {
        unimplemented!()
    }
    /// Binary format, for CopyInResponse.
    pub fn binary(&self) -> bool {
        unimplemented!()
    }
    /// One CopyData message.
    pub async fn push(&mut self, bytes: Bytes) -> Result<()> {
        let _ = bytes;
        unimplemented!()
    }
    /// CopyDone: commits; the command tag.
    pub async fn finish(self, session: &mut Session) -> Result<String> {
        let _ = session;
        unimplemented!()
    }
}

/// A COPY TO STDOUT under way.
#[derive(Debug)]
pub struct CopyOut {}

impl CopyOut {
    /// Columns, for CopyOutResponse.
    pub fn columns(&self) -> usize {
        unimplemented!()
    }
    /// Binary format, for CopyOutResponse.
    pub fn binary(&self) -> bool {
        unimplemented!()
    }
    /// The next CopyData payload, header first; none at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        unimplemented!()
    }
    /// After the end: the command tag.
    pub fn tag(&self) -> String {
        unimplemented!()
    }
}
