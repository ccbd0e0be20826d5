//! The rules of `segment_events` and `segment_columns`, read again when the tables have changed.

use std::sync::{Arc, Weak};

use arrow::array::AsArray;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::super::keys;
use super::message::Mapping;
use crate::command::{self, Response};
use crate::error::{Error, Result};
use crate::session::{Services, Session};
use crate::store::TableState;

const SCRIPT: &str = include_str!("../../../../sql/segment.sql");

/// Times that the tables are looked for after they have been made: other requests make them too.
const ATTEMPTS_MAX: usize = 3;

/// Rules, and the versions of the tables that they were read from.
#[derive(Debug, Default)]
pub struct Rules {
    known: Mutex<Option<(Versions, Arc<Mapping>)>>,
}

type Versions = [Weak<TableState>; 2];

impl Rules {
    /// The rules as they are now.
    pub async fn now(&self, services: &Arc<Services>) -> Result<Arc<Mapping>> {
        for _ in 0..ATTEMPTS_MAX {
            let Some(versions) = versions(services) else {
                // Another request may have made them at the same moment: then they are there the next time.
                if let Err(error) = make(services).await {
                    tracing::debug!(%error, "the tables of Segment's rules could not be made");
                }
                continue;
            };
            let same = |known: &Versions| known.iter().zip(&versions).all(|(known, now)| known.ptr_eq(now));
            if let Some((known, mapping)) = &*self.known.lock()
                && same(known)
            {
                return Ok(Arc::clone(mapping));
            }
            let mapping = Arc::new(read(services).await?);
            *self.known.lock() = Some((versions, Arc::clone(&mapping)));
            return Ok(mapping);
        }
        Err(Error::internal("the tables segment_events and segment_columns cannot be made"))
    }
}

fn versions(services: &Services) -> Option<Versions> {
    let snapshot = services.store.snapshot();
    let version = |name: &str| {
        let table = snapshot.catalog.table_named(name)?;
        snapshot.tables.get(&table.oid).map(Arc::downgrade)
    };
    Some([version("segment_events")?, version("segment_columns")?])
}

async fn read(services: &Services) -> Result<Mapping> {
    let mut mapping = Mapping::default();
    for batch in keys::rows(services, "SELECT type, event, event_type, item_type FROM segment_events").await? {
        let column = |index: usize| batch.column(index).as_string_view();
        let item_types = column(3);
        for row in 0..batch.num_rows() {
            let item_type = item_types.iter().nth(row).flatten();
            mapping.add_kind(column(0).value(row), column(1).value(row), column(2).value(row), item_type);
        }
    }
    // In one order, whatever the table's is.
    let query = "SELECT column_name, event_type, paths FROM segment_columns ORDER BY column_name, event_type";
    for batch in keys::rows(services, query).await? {
        let (columns, types, paths) =
            (batch.column(0).as_string_view(), batch.column(1).as_string_view(), batch.column(2).as_list::<i32>());
        for row in 0..batch.num_rows() {
            let own = paths.value(row);
            mapping.add_column(columns.value(row), types.value(row), own.as_string_view().iter().flatten());
        }
    }
    Ok(mapping)
}

/// Runs `sql/segment.sql`, in one transaction.
async fn make(services: &Arc<Services>) -> Result<()> {
    let registration = services.registry.enter("verus", "verus", None, services.clock.now(), false);
    let mut session = Session::new(Arc::clone(services), registration);
    for parsed in crate::sql::parse(&format!("BEGIN;\n{SCRIPT}\n;COMMIT"))? {
        let prepared = command::prepare(&mut session, Some(parsed), &[])?;
        match command::execute(&mut session, &prepared, &[], CancellationToken::new()).await? {
            Response::Done(_) | Response::Empty => {}
            _ => return Err(Error::internal("sql/segment.sql may only create and fill tables")),
        }
    }
    Ok(())
}
