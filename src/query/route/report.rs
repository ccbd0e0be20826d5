//! What the router decided, for EXPLAIN.

use std::fmt::Write as _;

use chrono::DateTime;

use super::cover::Cover;
use super::query::Range;

/// The three routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// All from view state.
    View,
    /// View state, and the table's rows for the rest.
    Merged,
    /// The table's rows.
    Scan,
}

/// The decision for one aggregation.
#[derive(Clone, Debug)]
pub struct Route {
    /// Which route.
    pub kind: Kind,
    /// The view, unless it is a scan.
    pub view: Option<String>,
    /// Which rows come from where.
    pub cover: Option<Cover>,
    /// Views that were not taken and why.
    pub rejected: Vec<(String, String)>,
    /// Why it is a scan, where no view was looked at.
    pub reason: Option<String>,
}

impl Route {
    /// A scan for a reason that has nothing to do with views.
    pub fn scan(reason: impl Into<String>) -> Route {
        Route { kind: Kind::Scan, view: None, cover: None, rejected: Vec::new(), reason: Some(reason.into()) }
    }

    /// The lines of EXPLAIN.
    pub fn lines(&self) -> Vec<String> {
        let name = match self.kind {
            Kind::View => "view",
            Kind::Merged => "merged",
            Kind::Scan => "scan",
        };
        let mut lines = vec![match &self.reason {
            Some(reason) => format!("Route: {name} ({reason})"),
            None => format!("Route: {name}"),
        }];
        if let Some(view) = &self.view {
            lines.push(format!("  View: {view}"));
        }
        if let Some(cover) = &self.cover {
            lines.push(format!("  Coverage: {}", coverage(cover)));
        }
        lines.extend(self.rejected.iter().map(|(view, reason)| format!("  Rejected: {view}: {reason}")));
        lines
    }
}

fn coverage(cover: &Cover) -> String {
    let mut text = format!("state has event times {}", ranges(&cover.state));
    if let Some(lsn) = cover.below_lsn {
        // Writing to a String cannot fail.
        let _ = write!(text, " from LSN {lsn} on");
    }
    let _ = match (cover.raw.is_empty(), cover.below_lsn) {
        (true, None) => return text,
        (false, None) => write!(text, "; rows of {}", ranges(&cover.raw)),
        (true, Some(lsn)) => write!(text, "; rows below LSN {lsn}"),
        (false, Some(lsn)) => write!(text, "; rows of {} or below LSN {lsn}", ranges(&cover.raw)),
    };
    text
}

fn ranges(ranges: &[Range]) -> String {
    ranges.iter().map(|range| shown(*range)).collect::<Vec<_>>().join(" and ")
}

fn shown(range: Range) -> String {
    let time = |time_us: i64| DateTime::from_timestamp_micros(time_us).map(|time| time.format("%Y-%m-%d %H:%M:%S%.f+00").to_string());
    match (range.low, range.high) {
        (i64::MIN, i64::MAX) => "(all)".to_owned(),
        (i64::MIN, high) => format!("(.., {})", time(high).unwrap_or_default()),
        (low, i64::MAX) => format!("[{}, ..)", time(low).unwrap_or_default()),
        (low, high) => format!("[{}, {})", time(low).unwrap_or_default(), time(high).unwrap_or_default()),
    }
}
