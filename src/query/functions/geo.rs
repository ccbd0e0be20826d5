//! Where an address is: `geo_country(ip)`, `geo_region(ip)`, `geo_city(ip)`, from a database file in MaxMind's format.
//!
//! *Place*: called by name; `server` opens the file that `geo_database` names. Without one every address is unknown, which is NULL.
//!
//! The functions are volatile: another file gives other answers, so they are for defaults and queries, and not for views and generated columns.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use datafusion::logical_expr::ScalarUDF;
use maxminddb::{PathElement, Reader};

use super::Function;
use super::enrich::{rows, texts};
use crate::error::{Error, Result, SqlState};

/// A process has one: functions are registered before any configuration is read.
static DATABASE: OnceLock<Reader<Vec<u8>>> = OnceLock::new();

/// Reads the file into memory. 58P01 when there is none, XX001 when it is not what it should be.
pub fn open(path: &Path) -> Result<()> {
    let shown = path.display();
    let bytes = std::fs::read(path)
        .map_err(|error| Error::new(SqlState("58P01"), format!("the geo_database \"{shown}\" cannot be read: {error}")))?;
    let reader = Reader::from_source(bytes).map_err(|error| {
        Error::new(SqlState::DATA_CORRUPTED, format!("the geo_database \"{shown}\" is not in MaxMind's format: {error}"))
    })?;
    tracing::info!(path = %shown, kind = %reader.metadata().database_type, "geo database opened");
    // A second one of the same process changes nothing.
    let _ = DATABASE.set(reader);
    Ok(())
}

/// The functions.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    // The country of a database of cities and of one of countries alike.
    let country = Function::new(
        "geo_country",
        |types| texts::<1>("geo_country", types),
        |args, _| rows(args, |row| find(row[0]?, &[PathElement::Key("country"), PathElement::Key("iso_code")]).map(Into::into)),
    );
    let region = Function::new(
        "geo_region",
        |types| texts::<1>("geo_region", types),
        |args, _| {
            rows(args, |row| {
                find(row[0]?, &[PathElement::Key("subdivisions"), PathElement::Index(0), PathElement::Key("iso_code")]).map(Into::into)
            })
        },
    );
    let city = Function::new(
        "geo_city",
        |types| texts::<1>("geo_city", types),
        |args, _| {
            rows(args, |row| find(row[0]?, &[PathElement::Key("city"), PathElement::Key("names"), PathElement::Key("en")]).map(Into::into))
        },
    );
    [country, region, city].into_iter().map(|function| function.volatile().udf()).collect()
}

/// A text of what the database says about an address; none for what is no address, unknown, or damaged in the file.
fn find(address: &str, path: &[PathElement<'_>]) -> Option<String> {
    let address: IpAddr = address.trim().parse().ok()?;
    DATABASE.get()?.lookup(address.to_canonical()).ok()?.decode_path::<String>(path).ok()?
}
