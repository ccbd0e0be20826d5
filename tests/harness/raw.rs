//! The frames of the protocol themselves: what a driver sends in an order of its own, and the kinds of the answers.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::SOON;

/// A socket that has logged in.
pub struct Raw {
    stream: TcpStream,
}

impl Raw {
    /// Connects as user and database `verus`.
    pub async fn open(port: u16) -> Raw {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the port is open");
        let mut raw = Raw { stream };
        let startup = [&196_608_i32.to_be_bytes()[..], b"user\0verus\0database\0verus\0\0"].concat();
        raw.send(&[&(startup.len() as i32 + 4).to_be_bytes()[..], &startup].concat()).await;
        while raw.answers(1).await != "Z" {}
        raw
    }

    /// Sends frames as they are.
    pub async fn send(&mut self, frames: &[u8]) {
        self.stream.write_all(frames).await.expect("the server reads");
    }

    /// The kinds of the next answers; an error with its SQLSTATE.
    pub async fn answers(&mut self, count: usize) -> String {
        let mut kinds = Vec::new();
        for _ in 0..count {
            let read = tokio::time::timeout(SOON, self.answer()).await;
            kinds.push(read.unwrap_or_else(|_| panic!("no answer after {kinds:?}")));
        }
        kinds.join(" ")
    }

    async fn answer(&mut self) -> String {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head).await.expect("the server answers");
        let length = i32::from_be_bytes(head[1..].try_into().expect("four bytes"));
        let mut body = vec![0; usize::try_from(length).expect("a length") - 4];
        self.stream.read_exact(&mut body).await.expect("a whole answer");
        let kind = char::from(head[0]);
        let state = body.split(|byte| *byte == 0).find_map(|field| field.strip_prefix(b"C")).filter(|_| kind == 'E');
        format!("{kind}{}", String::from_utf8_lossy(state.unwrap_or_default()))
    }
}

/// A frame.
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind][..], &(body.len() as i32 + 4).to_be_bytes(), body].concat()
}

/// Parse, with no types declared.
pub fn parse(statement: &str, text: &str) -> Vec<u8> {
    message(b'P', format!("{statement}\0{text}\0\0\0").as_bytes())
}

/// Bind of the unnamed portal, with no parameters.
pub fn bind(statement: &str) -> Vec<u8> {
    message(b'B', format!("\0{statement}\0\0\0\0\0\0\0").as_bytes())
}

/// Describe of a statement (`S`) or a portal (`P`).
pub fn describe(what: u8, name: &str) -> Vec<u8> {
    message(b'D', &[&[what][..], name.as_bytes(), b"\0"].concat())
}

/// Execute of the unnamed portal, to its end.
pub fn execute() -> Vec<u8> {
    message(b'E', b"\0\0\0\0\0")
}

/// Flush.
pub fn flush() -> Vec<u8> {
    message(b'H', b"")
}
