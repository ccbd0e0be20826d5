//! The shipped commerce schema, on a directory that has never held anything.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::command::{self, Response};
use crate::error::{Error, Result};
use crate::session::{Services, Session};
use crate::sql;
use crate::task::Runtimes;

const COMMERCE: &str = include_str!("../../sql/commerce.sql");

/// Runs `sql/commerce.sql` once, in one transaction, unless the configuration says `--no-template`.
pub fn apply(runtimes: &Runtimes, services: &Arc<Services>) -> Result<()> {
    let never_used = services.store.snapshot().next_lsn <= 1;
    if !services.config.template || !never_used {
        return Ok(());
    }
    let now = services.clock.now();
    let registration = services.registry.enter("verus", "verus", None, now, false);
    let mut session = Session::new(Arc::clone(services), registration);
    let text = format!("BEGIN;\n{COMMERCE}\n;COMMIT");
    runtimes.block_on(async {
        for parsed in sql::parse(&text)? {
            let prepared = command::prepare(&mut session, Some(parsed), &[])?;
            match command::execute(&mut session, &prepared, &[], CancellationToken::new()).await? {
                Response::Done(_) | Response::Empty => {}
                _ => return Err(Error::internal("the shipped schema may only create objects")),
            }
        }
        Ok(())
    })
}
