//! Frames: bytes of the socket to whole, well-formed messages.
//!
//! *Place*: `pg::connection` and `pg::startup` read with it.
//!
//! *Invariants*: (1) a length is checked against its cap before a byte of the body is kept; (2) a body is walked before pgwire decodes
//! it, because its decoder trusts counts and lengths and takes any bytes for text; (3) every read can be given up and resumed: what
//! has arrived stays in the buffer.

use bytes::{Buf, BytesMut};
use pgwire::messages::{DecodeContext, PgWireFrontendMessage, ProtocolVersion};
use tokio::io::AsyncReadExt;
use tokio::net::tcp::OwnedReadHalf;

use crate::error::{Error, Result, SqlState};
use crate::pg::error::Fault;

/// Bytes read ahead while a statement runs; then only the statement's end lets reading go on.
const READ_AHEAD_BYTES_MAX: usize = 64 * 1024;

/// Least room offered to a read.
const READ_BYTES: usize = 16 * 1024;

/// The read half of a connection.
#[derive(Debug)]
pub(super) struct Reader {
    half: OwnedReadHalf,
    buffer: BytesMut,
    decode: DecodeContext,
}

/// One frame after login.
#[derive(Debug)]
pub(super) enum Frame {
    /// A message.
    Message(PgWireFrontendMessage),
    /// Its frame was whole, its body was not what its type (the byte) asks for.
    Malformed(u8, Error),
}

impl Reader {
    pub(super) fn new(half: OwnedReadHalf) -> Self {
        let mut decode = DecodeContext::new(ProtocolVersion::PROTOCOL3_0);
        decode.awaiting_frontend_ssl = false;
        decode.awaiting_frontend_startup = false;
        Self { half, buffer: BytesMut::new(), decode }
    }

    /// A packet before login: length and body, without a type. None when the client went away instead.
    pub(super) async fn startup_packet(&mut self, bytes_max: usize) -> Result<Option<BytesMut>, Fault> {
        loop {
            if let Some(length) = self.length_at(0) {
                if !(8..=bytes_max).contains(&length) {
                    return Err(Fault::Fatal(Error::new(SqlState::PROTOCOL_VIOLATION, "invalid length of startup packet")));
                }
                if self.buffer.len() >= length {
                    let mut packet = self.buffer.split_to(length);
                    packet.advance(4);
                    return Ok(Some(packet));
                }
            }
            match self.fill().await {
                Ok(()) => {}
                Err(Fault::Closed) => return Ok(None),
                Err(fault) => return Err(fault),
            }
        }
    }

    /// The next message.
    pub(super) async fn message(&mut self, bytes_max: usize) -> Result<Frame, Fault> {
        loop {
            if let Some(frame) = self.take(bytes_max)? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }

    /// Whether the next message has arrived whole and is a Sync: nothing else is asked of the open transaction.
    pub(super) fn sync_is_next(&self) -> bool {
        self.buffer.first() == Some(&b'S') && self.buffer.len() >= 5
    }

    /// Returns when the client has gone. Reads ahead meanwhile, up to a bound.
    pub(super) async fn gone(&mut self) {
        while self.buffer.len() < READ_AHEAD_BYTES_MAX {
            if self.fill().await.is_err() {
                return;
            }
        }
        std::future::pending().await
    }

    async fn fill(&mut self) -> Result<(), Fault> {
        self.buffer.reserve(READ_BYTES);
        match self.half.read_buf(&mut self.buffer).await {
            Ok(0) | Err(_) => Err(Fault::Closed),
            Ok(_) => Ok(()),
        }
    }

    fn length_at(&self, at: usize) -> Option<usize> {
        let bytes = self.buffer.get(at..at + 4)?;
        // A negative length becomes a huge one, which the caps refuse.
        Some(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
    }

    fn take(&mut self, bytes_max: usize) -> Result<Option<Frame>, Fault> {
        let Some(length) = self.length_at(1) else { return Ok(None) };
        let kind = self.buffer[0];
        if !is_known(kind) {
            return Err(Fault::Fatal(Error::new(SqlState::PROTOCOL_VIOLATION, format!("invalid frontend message type {kind}"))));
        }
        if !(4..=bytes_max).contains(&length) {
            let error = Error::new(SqlState::PROTOCOL_VIOLATION, "invalid message length");
            return Err(Fault::Fatal(error.detail(format!("A message can have {bytes_max} bytes."))));
        }
        if self.buffer.len() < length + 1 {
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(length + 1);
        if let Err(error) = validate(kind, &frame[5..]) {
            return Ok(Some(Frame::Malformed(kind, error)));
        }
        Ok(Some(match PgWireFrontendMessage::decode(&mut frame, &self.decode) {
            Ok(Some(message)) => Frame::Message(message),
            Ok(None) => Frame::Malformed(kind, malformed()),
            Err(error) => Frame::Malformed(kind, malformed().detail(error.to_string())),
        }))
    }
}

fn is_known(kind: u8) -> bool {
    b"QPBCDEHSXcdfp".contains(&kind)
}

fn malformed() -> Error {
    Error::new(SqlState::PROTOCOL_VIOLATION, "invalid message format")
}

/// Walks a body as the protocol describes it.
fn validate(kind: u8, body: &[u8]) -> Result<()> {
    let mut walk = Walk(body);
    match kind {
        b'Q' | b'f' => walk.text()?,
        b'P' => {
            walk.text()?;
            walk.text()?;
            let types = walk.count()?;
            walk.skip(types * 4)?;
        }
        b'B' => {
            walk.text()?;
            walk.text()?;
            let formats = walk.count()?;
            walk.skip(formats * 2)?;
            for _ in 0..walk.count()? {
                walk.value()?;
            }
            let formats = walk.count()?;
            walk.skip(formats * 2)?;
        }
        b'C' | b'D' => {
            if !matches!(body.first(), Some(b'S' | b'P')) {
                return Err(malformed());
            }
            walk.skip(1)?;
            walk.text()?;
        }
        b'E' => {
            walk.text()?;
            walk.skip(4)?;
        }
        // Opaque bytes.
        b'd' | b'p' => return Ok(()),
        _ => {}
    }
    if walk.0.is_empty() { Ok(()) } else { Err(malformed()) }
}

struct Walk<'a>(&'a [u8]);

impl Walk<'_> {
    fn skip(&mut self, bytes: usize) -> Result<()> {
        self.0 = self.0.get(bytes..).ok_or_else(malformed)?;
        Ok(())
    }

    fn text(&mut self) -> Result<()> {
        let end = memchr::memchr(0, self.0).ok_or_else(malformed)?;
        if let Err(error) = std::str::from_utf8(&self.0[..end]) {
            let bad = self.0[error.valid_up_to()];
            return Err(Error::new(
                SqlState::CHARACTER_NOT_IN_REPERTOIRE,
                format!("invalid byte sequence for encoding \"UTF8\": 0x{bad:02x}"),
            ));
        }
        self.skip(end + 1)
    }

    fn count(&mut self) -> Result<usize> {
        let bytes: [u8; 2] = self.0.get(..2).and_then(|bytes| bytes.try_into().ok()).ok_or_else(malformed)?;
        self.skip(2)?;
        Ok(usize::from(u16::from_be_bytes(bytes)))
    }

    fn value(&mut self) -> Result<()> {
        let bytes: [u8; 4] = self.0.get(..4).and_then(|bytes| bytes.try_into().ok()).ok_or_else(malformed)?;
        self.skip(4)?;
        match i32::from_be_bytes(bytes) {
            -1 => Ok(()),
            length => self.skip(usize::try_from(length).map_err(|_| malformed())?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_that_would_panic_the_decoder_are_refused() {
        assert!(validate(b'Q', b"select 1\0").is_ok());
        assert!(validate(b'B', b"\0\0\0\0\0\x01\0\0\0\x01x\0\0").is_ok());
        for (kind, body) in [
            (b'Q', &b"select 1"[..]),
            (b'Q', b"select 1\0more"),
            (b'P', b"\0select 1\0\xff\xff"),
            (b'P', b"\0select 1\0"),
            (b'B', b"\0\0\0\0\0\x01\0\0\0\xffx\0\0"),
            (b'B', b"\0\0\0\0\0\x01\xff\xff\xff\xfe\0\0"),
            (b'B', b"\0\0\0\0\0\0\0\x05\0"),
            (b'D', b""),
            (b'D', b"X\0"),
            (b'E', b"\0\0\0"),
            (b'S', b"x"),
        ] {
            assert_eq!(validate(kind, body).unwrap_err().state(), SqlState::PROTOCOL_VIOLATION, "{kind} {body:?}");
        }
        assert_eq!(validate(b'Q', b"\xff\0").unwrap_err().state(), SqlState::CHARACTER_NOT_IN_REPERTOIRE);
    }
}
