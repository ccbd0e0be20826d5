//! The write half of a connection, with its one bounded buffer.
//!
//! *Invariants*: (1) rows are flushed as soon as [`FLUSH_BYTES`] wait, so a result is never held whole; (2) a flush that is given up
//! half-way keeps the unsent rest, so the stream of frames stays whole.

use std::io;

use bytes::BytesMut;
use pgwire::messages::PgWireBackendMessage;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;

/// Bytes after which a result is sent on.
pub(super) const FLUSH_BYTES: usize = 64 * 1024;

/// Collects messages and sends them.
#[derive(Debug)]
pub(super) struct Sink {
    half: OwnedWriteHalf,
    /// Encoded frames; those before `sent` are with the socket already.
    pub(super) buffer: Vec<u8>,
    sent: usize,
    scratch: BytesMut,
}

impl Sink {
    pub(super) fn new(half: OwnedWriteHalf) -> Self {
        Self { half, buffer: Vec::with_capacity(8 * 1024), sent: 0, scratch: BytesMut::new() }
    }

    /// Appends a message.
    pub(super) fn put(&mut self, message: &PgWireBackendMessage) {
        self.scratch.clear();
        match message.encode(&mut self.scratch) {
            Ok(()) => self.buffer.extend_from_slice(&self.scratch),
            Err(error) => tracing::error!(%error, "a message could not be encoded"),
        }
    }

    /// Appends a message that is only a type and a body.
    pub(super) fn put_raw(&mut self, kind: u8, body: &[u8]) {
        let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
        self.buffer.push(kind);
        self.buffer.extend_from_slice(&length.to_be_bytes());
        self.buffer.extend_from_slice(body);
    }

    /// Sends what waits, when it is enough to be worth it.
    pub(super) async fn flush_if_full(&mut self) -> io::Result<()> {
        if self.buffer.len() - self.sent >= FLUSH_BYTES { self.flush().await } else { Ok(()) }
    }

    /// Sends what waits.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.buffer.len() {
            match self.half.write(&self.buffer[self.sent..]).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => self.sent += written,
            }
        }
        self.buffer.clear();
        // One large row must not keep its memory for the connection's life.
        self.buffer.shrink_to(4 * FLUSH_BYTES);
        self.sent = 0;
        Ok(())
    }
}
