//! What a statement answers, on the wire: rows, a tag, or a COPY.

use std::time::Duration;

use crate::command::Response;
use crate::error::{Error, SqlState};
use crate::pg::connection::Connection;
use crate::pg::error::Fault;
use crate::pg::rows::{self, Encoder};
use crate::pg::running::Running;
use crate::session::{Progress, Rows};

impl Connection {
    /// Sends a whole response and returns its command tag; none for an empty text. `describe`: a RowDescription goes first.
    pub(super) async fn respond(
        &mut self,
        running: &Running,
        response: Response,
        formats: &[i16],
        describe: bool,
    ) -> Result<Option<String>, Fault> {
        Ok(match response {
            Response::Empty => None,
            Response::Done(tag) => Some(tag),
            Response::Rows { schema, stream, tag } => {
                let mut rows = Rows::new(schema, stream, tag);
                let sent = self.send_rows(running, &mut rows, formats, describe, usize::MAX).await?;
                Some(tag_of(tag, sent))
            }
            Response::Fetch { cursor, rows_max } => Some(self.fetch(running, &cursor, formats, describe, rows_max).await?),
            Response::CopyIn(load) => Some(self.copy_in(running, load).await?),
            Response::CopyOut(copy) => Some(self.copy_out(running, copy).await?),
        })
    }

    /// Sends at most `rows_max` rows.
    pub(super) async fn send_rows(
        &mut self,
        running: &Running,
        rows: &mut Rows,
        formats: &[i16],
        describe: bool,
        rows_max: usize,
    ) -> Result<u64, Fault> {
        rows::check_formats(formats, rows.schema.fields().len())?;
        if describe {
            self.sink.put(&rows::description(&rows.schema, formats));
        }
        let started = self.session.services.clock.now();
        let encoder = Encoder::new(&rows.schema, formats, *self.session.vars.style());
        let sink = &mut self.sink;
        let sent = running.guard(&mut self.reader, encoder.send(sink, rows, rows_max)).await?;
        let services = &self.session.services;
        let elapsed = u64::try_from(services.clock.now() - started).unwrap_or(0);
        services.metrics.queries.inc();
        services.metrics.query.observe(Duration::from_micros(elapsed));
        Ok(sent)
    }

    /// FETCH: the cursor leaves the session while it runs, and is gone when it fails.
    async fn fetch(&mut self, running: &Running, name: &str, formats: &[i16], describe: bool, rows_max: usize) -> Result<String, Fault> {
        let missing = || Error::new(SqlState::INVALID_CURSOR_NAME, format!("cursor \"{name}\" does not exist"));
        let mut portal = self.session.portals.remove(name).ok_or_else(missing)?;
        let sent = match &mut portal.progress {
            Progress::Open(rows) => self.send_rows(running, rows, formats, describe, rows_max).await?,
            _ => return Err(Error::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, format!("portal \"{name}\" cannot be run")).into()),
        };
        self.session.portals.insert(name.to_owned(), portal);
        Ok(tag_of("FETCH", sent))
    }
}

/// The tag with its row count, where it has one.
pub(super) fn tag_of(word: &str, rows: u64) -> String {
    match word {
        "INSERT" => format!("INSERT 0 {rows}"),
        "SELECT" | "FETCH" | "UPDATE" | "DELETE" => format!("{word} {rows}"),
        _ => word.to_owned(),
    }
}
