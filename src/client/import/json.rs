//! NDJSON: an event a line, read here by the rules of `POST /v1/events` and sent as COPY's text format.

use std::sync::Arc;

use super::super::{Error, Result};
use super::file::Input;
use super::ledger::Known;
use super::progress::Progress;
use super::records::{Lines, Records};
use super::table::Table;
use super::{ImportArgs, PORTION_BYTES, Portion, Source, Step};
use crate::event::{Encoder, JsonDecoder};
use crate::types::copy::{CopyFormat, CopyOptions, Header};
use crate::types::text::Style;
use crate::types::zone::Zone;

/// Stands for the default of a column that an event does not have.
const DEFAULT: &str = "\\D";

/// An NDJSON file under way.
pub struct Ndjson {
    name: String,
    records: Records,
    known: Known,
    batch: u64,
    statement: String,
    decoder: JsonDecoder,
    told: Vec<usize>,
}

/// COPY's text format as it is without options.
pub fn text_format(default: Option<&str>) -> CopyOptions {
    CopyOptions {
        format: CopyFormat::Text,
        delimiter: b'\t',
        null: "\\N".to_owned(),
        default: default.map(str::to_owned),
        header: Header::Off,
        quote: b'"',
        escape: b'"',
        force_quote: Vec::new(),
        force_not_null: Vec::new(),
        force_null: Vec::new(),
    }
}

impl Ndjson {
    /// Ready to read.
    pub fn open(args: &ImportArgs, table: &Arc<Table>, input: Input, known: Known, progress: &Progress) -> Result<Ndjson> {
        if !args.columns.is_empty() {
            return Err(Error::Setup("--columns is for CSV and Parquet; an event's fields go where their names say".to_owned()));
        }
        let (targets, told) = table.targets();
        let columns: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
        let statement = table.copy(&columns, &format!("FORMAT text, DEFAULT '{DEFAULT}'"));
        let zone = Zone::parse(&args.time_zone).map_err(|error| Error::Setup(error.to_string()))?;
        let decoder = JsonDecoder::new(&table.name, targets, told.clone(), zone);
        let decoder = if args.skip_unknown { decoder.lenient() } else { decoder };
        let records = Records::new(&input.name, input.read(progress)?, None);
        Ok(Ndjson { name: input.name, records, known, batch: args.batch, statement, decoder, told })
    }

    /// Events as COPY data. A first event that does not fit is an error with its line.
    fn encode(&self, text: Vec<u8>, lines: &[(u64, u64)]) -> Result<Vec<u8>> {
        let line_of = |line: u64| lines.iter().rev().find(|(data, _)| *data <= line).map_or(line, |(data, file)| file + (line - data));
        let refuse = |line: u64, error: &crate::error::Error| {
            let report = error.report();
            let mut text = format!("{}, line {}\n  {error} ({})", self.name, line_of(line), report.state.0);
            let more = [&report.context, &report.detail, &report.hint];
            more.into_iter().flatten().for_each(|more| text.push_str(&format!("\n  {more}")));
            Error::Setup(text)
        };
        let text = String::from_utf8(text).map_err(|error| {
            let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = line_of(memchr::memchr_iter(b'\n', before).count() as u64 + 1);
            Error::Setup(format!("{}, line {line}: not UTF-8", self.name))
        })?;
        if text.trim_start().starts_with('[') {
            return Err(Error::Setup(format!(
                "{}, line {}: a list, where an event a line is read; jq -c '.[]' makes that of it",
                self.name,
                line_of(1)
            )));
        }
        let rows = self.decoder.decode(&text, usize::MAX).map_err(|error| refuse(line_in(&error).unwrap_or(1), &error))?;
        if let Some(refused) = rows.refused.first() {
            let before = text.get(..refused.span.start).unwrap_or_default();
            return Err(refuse(memchr::memchr_iter(b'\n', before.as_bytes()).count() as u64 + 1, &refused.error));
        }
        let failed = |error: crate::error::Error| Error::Setup(format!("{}: {error}", self.name));
        let encoder =
            Encoder::new(&rows.batch.schema(), text_format(Some(DEFAULT)), Style::default()).map_err(failed)?.with_told(&self.told);
        let (mut data, mut ends) = (Vec::with_capacity(text.len()), Vec::new());
        encoder.rows(&rows.batch, &mut data, &mut ends).map_err(failed)?;
        Ok(data)
    }
}

/// The line that an error's context names.
fn line_in(error: &crate::error::Error) -> Option<u64> {
    let (_, rest) = error.report().context.as_deref()?.split_once(", line ")?;
    rest[..rest.bytes().take_while(u8::is_ascii_digit).count()].parse().ok()
}

impl Source for Ndjson {
    fn statement(&self) -> &str {
        &self.statement
    }

    fn next(&mut self) -> Result<Option<Step>> {
        let (mut text, mut rows, mut lines) = (Vec::new(), 0, Lines::default());
        while let Some(record) = self.records.next()? {
            text.extend_from_slice(&self.records.text()[record.content.clone()]);
            text.push(b'\n');
            lines.add(record.line, 1);
            rows += 1;
            if self.known.is_place(self.records.position()) && self.known.has(self.records.mark()) {
                return Ok(Some(Step::Known(rows)));
            }
            if rows == self.batch || text.len() >= PORTION_BYTES {
                break;
            }
        }
        if rows == 0 {
            return Ok(None);
        }
        let end = self.records.mark();
        let lines = lines.into_pairs();
        let data = self.encode(text, &lines)?;
        Ok(Some(Step::New(Portion { data: data.into(), rows, end, lines })))
    }
}
