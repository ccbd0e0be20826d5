//! A TCP listener that bounds how many connections there are and how long each may last.
//!
//! *Place*: between the socket and axum, which has no such bounds of its own.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

/// The listener.
pub(super) struct Bounded {
    listener: TcpListener,
    permits: Arc<Semaphore>,
    lifetime: Duration,
}

/// What a request may ask of its connection.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    streams: Arc<AtomicUsize>,
    renewed: Arc<AtomicBool>,
    peer: SocketAddr,
}

/// While it lives, what is written prolongs the connection.
#[derive(Debug)]
pub(super) struct Streaming(Arc<AtomicUsize>);

impl Lease {
    /// The connection lives as long as its client takes what is written.
    pub(super) fn stream(&self) -> Streaming {
        self.streams.fetch_add(1, Ordering::AcqRel);
        Streaming(Arc::clone(&self.streams))
    }

    /// The connection's time begins anew.
    pub(super) fn renew(&self) {
        self.renewed.store(true, Ordering::Release);
    }

    /// Who is at the other end.
    pub(super) fn peer(&self) -> SocketAddr {
        self.peer
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Connected<IncomingStream<'_, Bounded>> for Lease {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Lease {
        stream.io().lease.clone()
    }
}

/// One connection; its permit returns when it is dropped.
pub(super) struct Connection {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    lifetime: Duration,
    lease: Lease,
    _permit: OwnedSemaphorePermit,
}

impl Bounded {
    pub(super) fn new(listener: TcpListener, connections_max: usize, lifetime: Duration) -> Self {
        Self { listener, permits: Arc::new(Semaphore::new(connections_max)), lifetime }
    }
}

impl axum::serve::Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let permit = Arc::clone(&self.permits).acquire_owned().await.expect("the semaphore is never closed");
        // axum's own implementation retries failed accepts (out of file descriptors) after a pause.
        let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
        let (lifetime, lease) = (self.lifetime, Lease { streams: Arc::default(), renewed: Arc::default(), peer: address });
        (Connection { stream, deadline: Box::pin(tokio::time::sleep(lifetime)), lifetime, lease, _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Connection {
    fn expired(&mut self, context: &mut Context<'_>) -> bool {
        if self.lease.renewed.swap(false, Ordering::AcqRel) {
            self.prolong();
        }
        self.deadline.as_mut().poll(context).is_ready()
    }

    fn prolong(&mut self) {
        let deadline = tokio::time::Instant::now() + self.lifetime;
        self.deadline.as_mut().reset(deadline);
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.expired(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.expired(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if matches!(written, Poll::Ready(Ok(count)) if count > 0) && self.lease.streams.load(Ordering::Acquire) > 0 {
            self.prolong();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
