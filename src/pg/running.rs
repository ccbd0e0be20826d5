//! A running statement, and what stops it: a cancel, statement_timeout, the server's end, a client that has gone, its own panic.
//!
//! *Invariants*: (1) whatever stops a statement drops its future, and with it its plan; (2) a commit under way is waited for, because
//! an error after it would be a lie; (3) a panic ends the statement, not the session.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use futures::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, SqlState};
use crate::pg::error::Fault;
use crate::pg::frame::Reader;

/// One statement (or one message of several) from its start to its last row.
#[derive(Debug)]
pub(super) struct Running {
    /// Fired by a cancel; statements watch it too.
    pub(super) cancel: CancellationToken,
    /// When statement_timeout ends it.
    pub(super) deadline: Option<Instant>,
    /// pg_terminate_backend() or the server's end.
    pub(super) terminate: CancellationToken,
    /// True while the store commits for this session.
    pub(super) committing: Arc<AtomicBool>,
}

impl Running {
    /// Runs a part of the statement while the socket is watched.
    pub(super) async fn guard<T, F>(&self, reader: &mut Reader, work: F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let stop = async {
            tokio::select! {
                fault = self.stopped() => fault,
                () = reader.gone() => Fault::Closed,
            }
        };
        self.until(stop, work).await
    }

    /// Resolves when something other than the socket stops the statement.
    pub(super) async fn stopped(&self) -> Fault {
        let timeout = async {
            match self.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.terminate.cancelled() => Fault::Fatal(terminated()),
            () = self.cancel.cancelled() => Fault::Statement(canceled("user request")),
            () = timeout => Fault::Statement(canceled("statement timeout")),
        }
    }

    async fn until<T, S, F>(&self, stop: S, work: F) -> Result<T, Fault>
    where
        S: Future<Output = Fault>,
        F: Future<Output = Result<T, Fault>>,
    {
        let mut work = pin!(AssertUnwindSafe(work).catch_unwind());
        let mut stop = pin!(stop);
        let mut stopped = None;
        poll_fn(|context| {
            if let Poll::Ready(outcome) = work.as_mut().poll(context) {
                return Poll::Ready(match (outcome, stopped.take()) {
                    (Err(panic), _) => Err(Fault::Statement(panicked(&*panic))),
                    // The token ended the plan before this loop did: the reason is the one that fired it.
                    (Ok(Err(Fault::Statement(error))), Some(fault)) if error.state() == SqlState::QUERY_CANCELED => Err(fault),
                    (Ok(outcome), _) => outcome,
                });
            }
            if stopped.is_none()
                && let Poll::Ready(fault) = stop.as_mut().poll(context)
            {
                self.cancel.cancel();
                stopped = Some(fault);
            }
            if !self.committing.load(Ordering::Acquire)
                && let Some(fault) = stopped.take()
            {
                return Poll::Ready(Err(fault));
            }
            Poll::Pending
        })
        .await
    }
}

fn canceled(why: &str) -> Error {
    Error::new(SqlState::QUERY_CANCELED, format!("canceling statement due to {why}"))
}

/// What a session is told when the server or an administrator ends it.
pub(super) fn terminated() -> Error {
    Error::new(SqlState::ADMIN_SHUTDOWN, "terminating connection due to administrator command")
}

fn panicked(panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    let text = text.unwrap_or_default();
    tracing::error!(panic = %text, "a statement panicked");
    Error::internal("the statement failed by a fault of the server").detail(format!("Panic: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> Running {
        Running {
            cancel: CancellationToken::new(),
            deadline: None,
            terminate: CancellationToken::new(),
            committing: Arc::new(AtomicBool::new(false)),
        }
    }

    #[tokio::test]
    async fn a_panic_is_an_error_of_the_statement() {
        let outcome: Result<(), _> = running().until(std::future::pending(), async { panic!("boom") }).await;
        assert!(matches!(outcome, Err(Fault::Statement(error)) if error.state() == SqlState::INTERNAL_ERROR));
    }

    #[tokio::test]
    async fn a_cancel_stops_a_plan_but_not_a_commit() {
        let running = running();
        running.cancel.cancel();
        let outcome: Result<(), _> = running.until(running.stopped(), std::future::pending()).await;
        assert!(matches!(outcome, Err(Fault::Statement(error)) if error.state() == SqlState::QUERY_CANCELED));

        running.committing.store(true, Ordering::Release);
        let commit = async {
            tokio::task::yield_now().await;
            Ok(7)
        };
        assert!(matches!(running.until(running.stopped(), commit).await, Ok(7)));
    }
}
