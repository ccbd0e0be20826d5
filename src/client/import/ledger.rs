//! What has been loaded: a plain table of the server, a row for each portion.

use std::collections::HashMap;

use super::super::Result;
use super::super::wire::Connection;
use super::Mark;
use super::table::Table;

/// The table's name.
pub const TABLE: &str = "verus_imports";

/// Makes the table where it is not there.
pub async fn create(connection: &Connection) -> Result<()> {
    connection
        .run(&format!(
            "CREATE TABLE IF NOT EXISTS {TABLE} (table_oid bigint, again text, hash text, position bigint NOT NULL, \
             table_name text NOT NULL, file text NOT NULL, rows bigint NOT NULL, imported_at timestamptz NOT NULL DEFAULT now(), \
             PRIMARY KEY (table_oid, again, hash))"
        ))
        .await
}

/// Up to where files have been loaded.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// By position, since a hash is only worth computing there.
    marks: HashMap<u64, Vec<u128>>,
}

impl Known {
    /// Whether some file was loaded up to this position.
    pub fn is_place(&self, position: u64) -> bool {
        self.marks.contains_key(&position)
    }

    /// All such positions.
    pub fn places(&self) -> impl Iterator<Item = u64> {
        self.marks.keys().copied()
    }

    /// Whether this file was.
    pub fn has(&self, mark: Mark) -> bool {
        self.marks.get(&mark.position).is_some_and(|hashes| hashes.contains(&mark.hash))
    }
}

/// All that has been loaded into a table.
pub async fn known(connection: &Connection, table: &Table, again: &str) -> Result<Known> {
    let statement = &format!("SELECT position, hash FROM {TABLE} WHERE table_oid = $1 AND again = $2");
    let mut known = Known::default();
    for row in connection.client.query(statement.as_str(), &[&table.oid, &again]).await? {
        let (position, hash): (i64, String) = (row.get(0), row.get(1));
        if let (Ok(position), Ok(hash)) = (u64::try_from(position), u128::from_str_radix(&hash, 16)) {
            known.marks.entry(position).or_default().push(hash);
        }
    }
    Ok(known)
}

/// The statement that takes a portion down. 23505 when it is there.
pub fn insert(table: &Table, again: &str, file: &str, end: Mark, rows: u64) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
    format!(
        "INSERT INTO {TABLE} (table_oid, again, hash, position, table_name, file, rows) VALUES ({}, {}, '{:032x}', {}, {}, {}, {rows})",
        table.oid,
        quoted(again),
        end.hash,
        end.position,
        quoted(&table.name),
        quoted(file)
    )
}
