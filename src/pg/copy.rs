//! The COPY sub-protocol.
//!
//! *Invariants*: (1) COPY data is handed on as it comes, never collected here; the load's own bound holds a fast client back; (2) after
//! an error the rest of the client's data is swallowed (by the main loop), as PostgreSQL does.

use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::PgWireFrontendMessage as Message;
use pgwire::messages::copy::{CopyDone, CopyInResponse, CopyOutResponse};

use crate::command::copy::{CopyIn, CopyOut};
use crate::error::{Error, SqlState};
use crate::pg::connection::Connection;
use crate::pg::error::Fault;
use crate::pg::frame::Frame;
use crate::pg::running::{Running, terminated};

impl Connection {
    /// COPY FROM STDIN: the client's data until CopyDone, then the commit. Returns the tag.
    pub(super) async fn copy_in(&mut self, running: &Running, mut load: Box<CopyIn>) -> Result<String, Fault> {
        let (format, columns, formats) = shape(load.binary(), load.columns());
        self.sink.put(&PgWireBackendMessage::CopyInResponse(CopyInResponse::new(format, columns, formats)));
        self.sink.flush().await?;
        let bytes_max = self.session.services.config.limits.wire.message_bytes_max;
        loop {
            let frame = tokio::select! {
                biased;
                fault = running.stopped() => return Err(fault),
                frame = self.reader.message(bytes_max) => frame?,
            };
            let message = match frame {
                Frame::Message(message) => message,
                Frame::Malformed(_, error) => return Err(error.into()),
            };
            match message {
                Message::CopyData(copy) => {
                    self.session.services.metrics.copy_received.inc_by(copy.data.len() as u64);
                    let load = &mut load;
                    running.guard(&mut self.reader, async { load.push(copy.data).await.map_err(Fault::from) }).await?;
                }
                Message::CopyDone(_) => {
                    let session = &mut self.session;
                    return running.guard(&mut self.reader, async { load.finish(session).await.map_err(Fault::from) }).await;
                }
                Message::CopyFail(fail) => {
                    return Err(Error::new(SqlState::QUERY_CANCELED, format!("COPY from stdin failed: {}", fail.message)).into());
                }
                // Sent ahead by clients that do not wait to hear that it is a COPY.
                Message::Flush(_) | Message::Sync(_) => {}
                Message::Terminate(_) => return Err(Fault::Closed),
                _ => return Err(Fault::Fatal(Error::new(SqlState::PROTOCOL_VIOLATION, "unexpected message during COPY from stdin"))),
            }
        }
    }

    /// COPY TO STDOUT. Returns the tag. One whose rows come as they arise has no end to wait for when the server stops.
    pub(super) async fn copy_out(&mut self, running: &Running, mut copy: Box<CopyOut>) -> Result<String, Fault> {
        let (format, columns, formats) = shape(copy.binary(), copy.columns());
        self.sink.put(&PgWireBackendMessage::CopyOutResponse(CopyOutResponse::new(format, columns, formats)));
        let (sink, metrics, live) = (&mut self.sink, &self.session.services.metrics, copy.is_live());
        let stopping = async {
            match live {
                true => self.shutdown.cancelled().await,
                false => std::future::pending().await,
            }
        };
        let send = async {
            if live {
                sink.flush().await?;
            }
            while let Some((data, ends)) = copy.next().await? {
                metrics.copy_sent.inc_by(data.len() as u64);
                let mut start = 0;
                for end in ends {
                    sink.put_raw(b'd', &data[start..end]);
                    sink.flush_if_full().await?;
                    start = end;
                }
                if live {
                    sink.flush().await?;
                }
            }
            sink.put(&PgWireBackendMessage::CopyDone(CopyDone::new()));
            Ok(copy.tag())
        };
        let work = async {
            tokio::select! {
                biased;
                () = stopping => Err(Fault::Fatal(terminated())),
                outcome = send => outcome,
            }
        };
        running.guard(&mut self.reader, work).await
    }
}

/// Overall format, column count and each column's format.
fn shape(binary: bool, columns: usize) -> (i8, i16, Vec<i16>) {
    let count = i16::try_from(columns).unwrap_or(i16::MAX);
    (i8::from(binary), count, vec![i16::from(binary); usize::from(count.unsigned_abs())])
}
