//! CSV with a header: records as they stand in the file, or some of their fields.

use std::ops::Range;
use std::sync::Arc;

use super::super::{Error, Result};
use super::file::Input;
use super::ledger::Known;
use super::progress::Progress;
use super::records::{Lines, Record, Records};
use super::table::Table;
use super::{ImportArgs, PORTION_BYTES, Portion, Source, Step};

const QUOTE: u8 = b'"';

/// What some programs write in front of UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A CSV file under way.
pub struct Csv {
    name: String,
    records: Records,
    known: Known,
    batch: u64,
    statement: String,
    delimiter: u8,
    /// By column of the file; none when all are loaded.
    chosen: Option<Vec<bool>>,
}

impl Csv {
    /// Reads the header.
    pub fn open(args: &ImportArgs, table: &Arc<Table>, input: Input, known: Known, progress: &Progress) -> Result<Csv> {
        let [delimiter] = *args.delimiter.as_bytes() else {
            return Err(Error::Setup("--delimiter is one character of one byte".to_owned()));
        };
        let mut records = Records::new(&input.name, input.read(progress)?, Some(QUOTE));
        let Some(header) = records.next()? else { return Err(Error::Setup(format!("{} is empty", input.name))) };
        let text = &records.text()[header.content.clone()];
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
        let field =
            |field: Range<usize>| unquoted(&text[field]).ok_or_else(|| Error::Setup(format!("the header of {} is not UTF-8", input.name)));
        let names = fields(text, delimiter).map(field).collect::<Result<Vec<_>>>()?;
        let chosen = table.choose(&input.name, &names, &args.columns, args.skip_unknown)?;
        let columns: Vec<&str> = names.iter().zip(&chosen).filter(|(_, chosen)| **chosen).map(|(name, _)| name.as_str()).collect();
        let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
        let options = format!("FORMAT csv, DELIMITER {}, NULL {}", quoted(&args.delimiter), quoted(&args.null));
        let statement = table.copy(&columns, &options);
        let chosen = chosen.contains(&false).then_some(chosen);
        Ok(Csv { name: input.name, records, known, batch: args.batch, statement, delimiter, chosen })
    }

    /// Appends a record, or what is loaded of it. Returns its lines in the data.
    fn append(&self, record: &Record, data: &mut Vec<u8>) -> Result<u64> {
        let text = &self.records.text()[record.content.clone()];
        let from = data.len();
        match &self.chosen {
            None => data.extend_from_slice(text),
            Some(chosen) => {
                let mut count = 0;
                let mut first = true;
                for field in fields(text, self.delimiter) {
                    if chosen.get(count).copied().unwrap_or(false) {
                        if !std::mem::take(&mut first) {
                            data.push(self.delimiter);
                        }
                        data.extend_from_slice(&text[field]);
                    }
                    count += 1;
                }
                if count != chosen.len() {
                    let (name, line, columns) = (&self.name, record.line, chosen.len());
                    return Err(Error::Setup(format!("{name}, line {line}: {count} fields where the header has {columns}")));
                }
            }
        }
        data.push(b'\n');
        Ok(memchr::memchr_iter(b'\n', &data[from..]).count() as u64)
    }
}

impl Source for Csv {
    fn statement(&self) -> &str {
        &self.statement
    }

    fn next(&mut self) -> Result<Option<Step>> {
        let (mut data, mut rows, mut lines) = (Vec::new(), 0, Lines::default());
        while let Some(record) = self.records.next()? {
            let count = self.append(&record, &mut data)?;
            lines.add(record.line, count);
            rows += 1;
            if self.known.is_place(self.records.position()) && self.known.has(self.records.mark()) {
                return Ok(Some(Step::Known(rows)));
            }
            if rows == self.batch || data.len() >= PORTION_BYTES {
                break;
            }
        }
        let end = self.records.mark();
        Ok((rows > 0).then(|| Step::New(Portion { data: data.into(), rows, end, lines: lines.into_pairs() })))
    }
}

/// The fields of a record, with their quotes.
fn fields(record: &[u8], delimiter: u8) -> impl Iterator<Item = Range<usize>> {
    let mut next = Some(0);
    std::iter::from_fn(move || {
        let start = next?;
        let (mut at, mut quoted) = (start, false);
        while let Some(found) = memchr::memchr2(delimiter, QUOTE, &record[at..]) {
            let found = at + found;
            if record[found] == QUOTE {
                quoted = !quoted;
            } else if !quoted {
                next = Some(found + 1);
                return Some(start..found);
            }
            at = found + 1;
        }
        next = None;
        Some(start..record.len())
    })
}

/// The text of a field; none when it is not UTF-8.
fn unquoted(field: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(field).ok()?;
    Some(match text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        Some(inner) => inner.replace("\"\"", "\""),
        None => text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_their_text() {
        let record = br#"a,"b,""c""",,d""#;
        let shown: Vec<_> = fields(record, b',').map(|field| unquoted(&record[field]).unwrap()).collect();
        assert_eq!(shown, ["a", "b,\"c\"", "", "d\""]);
        assert_eq!(fields(b"", b',').count(), 1);
        assert_eq!(fields(b"a;", b';').count(), 2);
    }
}
