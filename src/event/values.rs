//! The row list of a literal INSERT: `(1, 'it''s', NULL, TRUE, -1.5), (...)`.
//!
//! Literals are typed as PostgreSQL types them: a string literal takes the column's type, a number is converted by an
//! assignment cast (so 1.5 becomes 2 in an integer column, and is refused in a date's, 42804).

use std::sync::Arc;

use arrow::datatypes::Schema;
use arrow::record_batch::RecordBatch;
use memchr::{memchr, memchr_iter};

use crate::error::{Error, Result, SqlState};
use crate::event::Target;
use crate::event::column::ColumnBuilder;
use crate::event::fields::{CHUNK_BYTES_MAX, Fields};
use crate::types::SqlType;
use crate::types::text::number::{numeric, write_numeric};
use crate::types::text::scalar::refuse_nul;
use crate::types::zone::Zone;

/// Rows whose fields are found before columns read them.
const BLOCK_ROWS: usize = 1024;

/// Decodes a row list into a batch of the targets' columns. 42601 where rows and targets differ in width, 42804 where a
/// literal is of another type, and what the types' own syntax says.
pub fn decode(rows: &str, targets: &[Target], zone: Zone) -> Result<RecordBatch> {
    if rows.len() > CHUNK_BYTES_MAX {
        return Err(Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "the list of values is too long"));
    }
    refuse_nul(rows)?;
    let mut reader = ValuesReader { text: rows, at: 0, targets };
    let capacity = memchr_iter(b'(', rows.as_bytes()).count();
    let mut columns: Vec<_> = targets.iter().map(|target| ColumnBuilder::new(&target.sql_type, zone, capacity)).collect();
    let mut fields = Fields::new(rows, targets.len());
    let mut more = true;
    while more {
        fields.clear();
        while more && fields.rows() < BLOCK_ROWS {
            more = reader.row(&mut fields)?;
        }
        let mut first: Option<(usize, Error)> = None;
        for (index, column) in columns.iter_mut().enumerate() {
            if let Err(misfit) = column.append(fields.column(index))
                && first.as_ref().is_none_or(|(row, _)| misfit.row < *row)
            {
                first = Some((misfit.row, misfit.error));
            }
        }
        if let Some((_, error)) = first {
            return Err(error);
        }
    }
    let schema: Vec<_> = targets.iter().map(|target| target.sql_type.field(&target.name, true)).collect();
    let arrays = columns.into_iter().map(ColumnBuilder::finish).collect::<Result<Vec<_>>>()?;
    RecordBatch::try_new(Arc::new(Schema::new(schema)), arrays).map_err(|error| Error::internal(error.to_string()))
}

struct ValuesReader<'a, 't> {
    text: &'a str,
    at: usize,
    targets: &'t [Target],
}

impl<'a> ValuesReader<'a, '_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    #[inline]
    fn blank(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    /// Reads one row; true when another follows.
    fn row(&mut self, fields: &mut Fields<'a>) -> Result<bool> {
        self.blank();
        self.expect(b'(')?;
        loop {
            let column = fields.pending();
            if column == 0 && self.targets.is_empty() {
                return Err(self.syntax());
            }
            self.blank();
            self.literal(column, fields)?;
            self.blank();
            match self.peek() {
                Some(b',') if column + 1 < self.targets.len() => self.at += 1,
                Some(b',') => return Err(Error::syntax("INSERT has more expressions than target columns")),
                Some(b')') if column + 1 == self.targets.len() => break,
                Some(b')') => return Err(Error::syntax("INSERT has more target columns than expressions")),
                _ => return Err(self.syntax()),
            }
        }
        self.at += 1;
        self.blank();
        match self.peek() {
            None => Ok(false),
            Some(b',') => {
                self.at += 1;
                Ok(true)
            }
            Some(_) => Err(self.syntax()),
        }
    }

    fn expect(&mut self, byte: u8) -> Result<()> {
        if self.peek() != Some(byte) {
            return Err(self.syntax());
        }
        self.at += 1;
        Ok(())
    }

    fn syntax(&self) -> Error {
        let rest = &self.text[self.at.min(self.text.len())..];
        match rest.split_whitespace().next() {
            Some(word) => Error::syntax(format!("syntax error at or near \"{}\"", crate::event::copy::shown(word))),
            None => Error::syntax("syntax error at end of input"),
        }
    }

    fn literal(&mut self, column: usize, fields: &mut Fields<'a>) -> Result<()> {
        match self.peek() {
            Some(b'\'') => self.string(fields),
            Some(b'n' | b'N') => {
                self.word("null")?;
                fields.push_null();
                Ok(())
            }
            Some(b't' | b'T') => self.boolean("true", column, fields),
            Some(b'f' | b'F') => self.boolean("false", column, fields),
            Some(b'+' | b'-' | b'.' | b'0'..=b'9') => self.number(column, fields),
            _ => Err(self.syntax()),
        }
    }

    fn word(&mut self, word: &str) -> Result<()> {
        let end = self.at + word.len();
        if !self.text.get(self.at..end).is_some_and(|found| found.eq_ignore_ascii_case(word)) {
            return Err(self.syntax());
        }
        self.at = end;
        Ok(())
    }

    #[inline]
    fn string(&mut self, fields: &mut Fields<'a>) -> Result<()> {
        let bytes = self.text.as_bytes();
        let start = self.at + 1;
        let mut piece = start;
        let mut scratch = None;
        loop {
            let from = self.at + 1;
            let Some(length) = bytes.get(from..).and_then(|rest| memchr(b'\'', rest)) else {
                return Err(Error::syntax("unterminated quoted string"));
            };
            let quote = from + length;
            if bytes.get(quote + 1) == Some(&b'\'') {
                scratch.get_or_insert(fields.scratch().len());
                fields.scratch().push_str(&self.text[piece..=quote]);
                piece = quote + 2;
                self.at = quote + 1;
                continue;
            }
            self.at = quote + 1;
            match scratch {
                None => fields.push(start, quote),
                Some(from) => {
                    fields.scratch().push_str(&self.text[piece..quote]);
                    fields.push_scratch(from);
                }
            }
            return Ok(());
        }
    }

    fn boolean(&mut self, word: &'static str, column: usize, fields: &mut Fields<'a>) -> Result<()> {
        self.word(word)?;
        let target = &self.targets[column];
        if target.sql_type != SqlType::Boolean && !is_text(&target.sql_type) {
            return Err(mismatch(target, "boolean"));
        }
        let from = fields.scratch().len();
        fields.scratch().push_str(word);
        fields.push_scratch(from);
        Ok(())
    }

    #[inline]
    fn number(&mut self, column: usize, fields: &mut Fields<'a>) -> Result<()> {
        let bytes = self.text.as_bytes();
        let start = self.at;
        let mut end = start + 1;
        while let Some(byte) = bytes.get(end) {
            let sign_of_exponent = matches!(byte, b'+' | b'-') && matches!(bytes[end - 1], b'e' | b'E');
            if !(byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E') || sign_of_exponent) {
                break;
            }
            end += 1;
        }
        self.at = end;
        let start = start + usize::from(bytes[start] == b'+');
        let literal = &self.text[start..end];
        let digits = literal.strip_prefix('-').unwrap_or(literal);
        let whole = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let target = &self.targets[column];
        match &target.sql_type {
            SqlType::SmallInt | SqlType::Integer | SqlType::BigInt | SqlType::Oid if whole => fields.push(start, end),
            SqlType::SmallInt | SqlType::Integer | SqlType::BigInt | SqlType::Oid => rewrite(literal, 0, false, fields)?,
            SqlType::Real | SqlType::Double | SqlType::Numeric(_) => fields.push(start, end),
            sql_type if is_text(sql_type) => {
                if whole && (!digits.starts_with('0') || digits == "0") {
                    fields.push(start, end);
                } else {
                    let scale = literal.split_once('.').map_or(0, |(_, fraction)| fraction.len());
                    rewrite(literal, i8::try_from(scale).unwrap_or(38).min(37), literal.contains(['e', 'E']), fields)?;
                }
            }
            _ => {
                let known = if !whole {
                    "numeric"
                } else if literal.parse::<i32>().is_ok() {
                    "integer"
                } else {
                    "bigint"
                };
                return Err(mismatch(target, known));
            }
        }
        Ok(())
    }
}

/// Writes a number with another scale into the scratch.
fn rewrite(literal: &str, scale: i8, trimmed: bool, fields: &mut Fields<'_>) -> Result<()> {
    let value = numeric(literal, 38, scale, false)?;
    let mut text = Vec::with_capacity(40);
    write_numeric(value, scale, trimmed, &mut text);
    let from = fields.scratch().len();
    fields.scratch().extend(text.into_iter().map(char::from));
    fields.push_scratch(from);
    Ok(())
}

fn is_text(sql_type: &SqlType) -> bool {
    matches!(sql_type, SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_) | SqlType::Name)
}

fn mismatch(target: &Target, literal: &str) -> Error {
    Error::new(
        SqlState::DATATYPE_MISMATCH,
        format!("column \"{}\" is of type {} but expression is of type {literal}", target.name, target.sql_type),
    )
    .hint("You will need to rewrite or cast the expression.")
}

#[cfg(test)]
mod tests {
    use arrow::util::pretty::pretty_format_batches;

    use super::*;

    fn targets(types: &[&str]) -> Vec<Target> {
        let target = |(index, name): (usize, &&str)| Target { name: format!("c{index}"), sql_type: SqlType::parse(name).unwrap() };
        types.iter().enumerate().map(target).collect()
    }

    #[track_caller]
    fn check_error(types: &[&str], rows: &str, state: &str, message: &str) {
        let error = decode(rows, &targets(types), Zone::UTC).unwrap_err();
        assert_eq!((error.state().0, error.report().message.as_str()), (state, message));
    }

    #[test]
    fn literals() {
        let types = ["integer", "text", "boolean", "numeric(6,2)", "timestamp with time zone"];
        let rows = "(1, 'it''s', NULL, TRUE, '2024-01-02') ";
        check_error(&types, rows, "42804", "column \"c3\" is of type numeric(6,2) but expression is of type boolean");
        let rows = "(1, 'it''s, (ok)', NULL, -1.5, '2024-01-02T03:04:05Z'),\n( 2.5 ,'',false,'1e2',null),(-1.4, -007.50, tRuE, +3, NULL)";
        let batch = decode(rows, &targets(&types), Zone::UTC).unwrap();
        let shown = pretty_format_batches(&[batch]).unwrap().to_string();
        let cells: Vec<Vec<&str>> =
            shown.lines().filter(|line| line.starts_with("| ")).skip(1).map(|line| line.split('|').map(str::trim).collect()).collect();
        assert_eq!(
            cells,
            [
                vec!["", "1", "it's, (ok)", "", "-1.50", "2024-01-02T03:04:05Z", ""],
                vec!["", "3", "", "false", "100.00", "", ""],
                vec!["", "-1", "-7.50", "true", "3.00", "", ""],
            ]
        );
    }

    #[test]
    fn refusals() {
        check_error(&["date"], "(5)", "42804", "column \"c0\" is of type date but expression is of type integer");
        check_error(&["integer"], "(1, 2)", "42601", "INSERT has more expressions than target columns");
        check_error(&["integer", "text"], "(1)", "42601", "INSERT has more target columns than expressions");
        check_error(&["integer"], "(1) x", "42601", "syntax error at or near \"x\"");
        check_error(&["integer"], "(now())", "42601", "syntax error at or near \"now())\"");
        check_error(&["integer"], "('a'), ('b')", "22P02", "invalid input syntax for type integer: \"a\"");
        check_error(&["smallint"], "(40000)", "22003", "value \"40000\" is out of range for type smallint");
        // The first row's error, though its column comes later.
        check_error(&["integer", "integer"], "(1, 'x'), ('y', 1)", "22P02", "invalid input syntax for type integer: \"x\"");
    }
}
