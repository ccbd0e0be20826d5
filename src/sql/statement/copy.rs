//! `COPY {t [(columns)] | (query) | (SUBSCRIBE ...)} {FROM | TO} {STDIN | STDOUT | 'file' | PROGRAM 'command'} [[WITH] options] [WHERE ...]`.
//!
//! Options in parentheses, or PostgreSQL's old way without (`WITH CSV HEADER DELIMITER ';'`).

use sqlparser::tokenizer::Token;

use super::{Copy, CopyDirection, CopyFormat, CopyOptions, CopySource, Header, Statement};
use crate::error::{Error, Result, SqlState};
use crate::sql::reader::Reader;

/// What COPY knows, for the hint of an error.
const OPTIONS: [&str; 11] =
    ["FORMAT", "DELIMITER", "NULL", "QUOTE", "ESCAPE", "HEADER", "ENCODING", "FORCE_QUOTE", "FORCE_NOT_NULL", "FORCE_NULL", "FREEZE"];

pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Statement> {
    reader.expect(&["COPY"])?;
    let old_binary = reader.accept(&["BINARY"]);
    let (source, columns) = if reader.accept_token(&Token::LParen) {
        let source = match reader.sees(&["SUBSCRIBE"]) {
            true => CopySource::Subscribe(super::subscribe::subscribe(reader)?),
            false => CopySource::Query(reader.query()?),
        };
        reader.expect_token(&Token::RParen)?;
        (source, Vec::new())
    } else {
        (CopySource::Table(reader.name()?), reader.column_list()?)
    };
    let from = reader.accept(&["FROM"]);
    if from && !matches!(source, CopySource::Table(_)) {
        return Err(reader.unexpected());
    }
    if !from {
        reader.expect(&["TO"])?;
    }
    let direction = direction(reader, from)?;
    let mut given = Given { format: old_binary.then_some(CopyFormat::Binary), ..Given::default() };
    let with = reader.accept(&["WITH"]);
    if reader.accept_token(&Token::LParen) {
        given.parenthesised(reader)?;
    } else {
        given.old(reader, with)?;
    }
    if reader.sees(&["WHERE"]) {
        return Err(Error::unsupported("COPY FROM with WHERE is not supported"));
    }
    Ok(Statement::Copy(Copy { source, columns, direction, options: given.resolve(from)? }))
}

fn direction(reader: &mut Reader<'_>, from: bool) -> Result<CopyDirection> {
    // PostgreSQL takes STDIN and STDOUT for each other.
    if reader.accept_one(&["STDIN", "STDOUT"]).is_some() {
        return Ok(if from { CopyDirection::FromStdin } else { CopyDirection::ToStdout });
    }
    reader.accept(&["PROGRAM"]);
    reader.string()?;
    Ok(CopyDirection::ServerFile)
}

/// Options as given; what is missing depends on the format.
#[derive(Default)]
struct Given {
    format: Option<CopyFormat>,
    delimiter: Option<String>,
    null: Option<String>,
    default: Option<String>,
    header: Option<Header>,
    quote: Option<String>,
    escape: Option<String>,
    force_quote: Option<Vec<String>>,
    force_not_null: Option<Vec<String>>,
    force_null: Option<Vec<String>>,
    seen: Vec<String>,
}

impl Given {
    fn parenthesised(&mut self, reader: &mut Reader<'_>) -> Result<()> {
        loop {
            let place = reader.raise(Error::syntax("conflicting or redundant options"));
            let name = reader.label()?;
            if self.seen.contains(&name) {
                return Err(place);
            }
            self.option(reader, &name)?;
            self.seen.push(name);
            if !reader.accept_token(&Token::Comma) {
                return reader.expect_token(&Token::RParen);
            }
        }
    }

    fn option(&mut self, reader: &mut Reader<'_>, name: &str) -> Result<()> {
        match name {
            "format" => {
                let value = reader.option_value()?;
                self.format = Some(match value.to_ascii_lowercase().as_str() {
                    "text" => CopyFormat::Text,
                    "csv" => CopyFormat::Csv,
                    "binary" => CopyFormat::Binary,
                    _ => return Err(invalid(format!("COPY format \"{value}\" not recognized"))),
                });
            }
            "delimiter" => self.delimiter = Some(reader.string()?),
            "null" => self.null = Some(reader.string()?),
            "default" => self.default = Some(reader.string()?),
            "quote" => self.quote = Some(reader.string()?),
            "escape" => self.escape = Some(reader.string()?),
            "header" => self.header = Some(header(reader)?),
            "encoding" => encoding(&reader.option_value()?)?,
            "force_quote" => {
                self.force_quote = Some(match reader.accept_token(&Token::Mul) {
                    true => vec!["*".to_owned()],
                    false => columns(reader)?,
                });
            }
            "force_not_null" => self.force_not_null = Some(columns(reader)?),
            "force_null" => self.force_null = Some(columns(reader)?),
            "freeze" => refuse_true(reader, "FREEZE")?,
            "on_error" | "log_verbosity" | "reject_limit" => {
                return Err(Error::unsupported(format!("COPY option {} is not supported", name.to_ascii_uppercase())));
            }
            _ => {
                let error = Error::syntax(format!("option \"{name}\" not recognized"));
                return Err(reader.raise(error.hint(format!("Known are {}.", OPTIONS.join(", ")))));
            }
        }
        Ok(())
    }

    /// The syntax before PostgreSQL 9.0: `[BINARY] [DELIMITER [AS] 'x'] [NULL [AS] 'x'] [CSV [HEADER] [QUOTE [AS] 'x'] ...]`.
    fn old(&mut self, reader: &mut Reader<'_>, with: bool) -> Result<()> {
        if reader.accept(&["USING"]) {
            reader.expect(&["DELIMITERS"])?;
            self.delimiter = Some(old_string(reader)?);
        }
        let mut options = 0;
        while let Some(word) = reader.word(0) {
            if !["BINARY", "CSV", "HEADER", "DELIMITER", "NULL", "QUOTE", "ESCAPE", "ENCODING", "FORCE", "FREEZE"].contains(&word.as_str())
            {
                break;
            }
            reader.expect(&[&word])?;
            options += 1;
            match word.as_str() {
                "BINARY" => self.format = Some(CopyFormat::Binary),
                "CSV" => self.format = Some(CopyFormat::Csv),
                "HEADER" => self.header = Some(Header::On),
                "DELIMITER" => self.delimiter = Some(old_string(reader)?),
                "NULL" => self.null = Some(old_string(reader)?),
                "QUOTE" => self.quote = Some(old_string(reader)?),
                "ESCAPE" => self.escape = Some(old_string(reader)?),
                "ENCODING" => encoding(&reader.string()?)?,
                "FORCE" => self.old_force(reader)?,
                _ => return Err(Error::unsupported("COPY option FREEZE is not supported")),
            }
        }
        if with && options == 0 { Err(reader.unexpected()) } else { Ok(()) }
    }

    fn old_force(&mut self, reader: &mut Reader<'_>) -> Result<()> {
        if reader.accept(&["QUOTE"]) {
            self.force_quote = Some(match reader.accept_token(&Token::Mul) {
                true => vec!["*".to_owned()],
                false => reader.separated(Reader::identifier)?,
            });
        } else if reader.accept(&["NOT", "NULL"]) {
            self.force_not_null = Some(reader.separated(Reader::identifier)?);
        } else {
            reader.expect(&["NULL"])?;
            self.force_null = Some(reader.separated(Reader::identifier)?);
        }
        Ok(())
    }

    /// Fills in the format's defaults and refuses what does not go together, in PostgreSQL's words.
    fn resolve(self, from: bool) -> Result<CopyOptions> {
        let format = self.format.unwrap_or(CopyFormat::Text);
        let csv = format == CopyFormat::Csv;
        if format == CopyFormat::Binary {
            let given = [(self.delimiter.is_some(), "DELIMITER"), (self.null.is_some(), "NULL"), (self.default.is_some(), "DEFAULT")];
            if let Some((_, option)) = given.iter().find(|(given, _)| *given) {
                return Err(Error::syntax(format!("cannot specify {option} in BINARY mode")));
            }
            if self.header.is_some_and(|header| header != Header::Off) {
                return Err(Error::unsupported("cannot specify HEADER in BINARY mode"));
            }
        }
        let csv_only = [
            (self.quote.is_some(), "COPY quote available only in CSV mode"),
            (self.escape.is_some(), "COPY escape available only in CSV mode"),
            (self.force_quote.is_some(), "COPY force quote available only in CSV mode"),
            (self.force_not_null.is_some(), "COPY force not null available only in CSV mode"),
            (self.force_null.is_some(), "COPY force null available only in CSV mode"),
        ];
        if let Some((_, message)) = csv_only.iter().find(|(given, _)| *given && !csv) {
            return Err(Error::unsupported(*message));
        }
        let direction_only = [
            (self.force_quote.is_some() && from, "COPY force quote only available using COPY TO"),
            (self.force_not_null.is_some() && !from, "COPY force not null only available using COPY FROM"),
            (self.force_null.is_some() && !from, "COPY force null only available using COPY FROM"),
            (self.default.is_some() && !from, "COPY DEFAULT cannot be used with COPY TO"),
            (self.header == Some(Header::Match) && !from, "cannot use \"match\" with HEADER in COPY TO"),
        ];
        if let Some((_, message)) = direction_only.iter().find(|(given, _)| *given) {
            return Err(Error::unsupported(*message));
        }
        let delimiter =
            one_byte(self.delimiter.as_deref(), if csv { b',' } else { b'\t' }, "COPY delimiter must be a single one-byte character")?;
        let quote = one_byte(self.quote.as_deref(), b'"', "COPY quote must be a single one-byte character")?;
        let escape = one_byte(self.escape.as_deref(), quote, "COPY escape must be a single one-byte character")?;
        let null = self.null.unwrap_or_else(|| if csv { String::new() } else { "\\N".to_owned() });
        let options = CopyOptions {
            format,
            delimiter,
            null,
            default: self.default,
            header: self.header.unwrap_or(Header::Off),
            quote,
            escape,
            force_quote: self.force_quote.unwrap_or_default(),
            force_not_null: self.force_not_null.unwrap_or_default(),
            force_null: self.force_null.unwrap_or_default(),
        };
        check(&options)?;
        Ok(options)
    }
}

fn check(options: &CopyOptions) -> Result<()> {
    let CopyOptions { format, delimiter, null, default, quote, .. } = options;
    if matches!(delimiter, b'\n' | b'\r') {
        return Err(invalid("COPY delimiter cannot be newline or carriage return".into()));
    }
    if null.contains(['\n', '\r']) {
        return Err(invalid("COPY null representation cannot use newline or carriage return".into()));
    }
    if *format == CopyFormat::Text && (delimiter.is_ascii_lowercase() || delimiter.is_ascii_digit() || matches!(delimiter, b'\\' | b'.')) {
        return Err(invalid(format!("COPY delimiter cannot be \"{}\"", char::from(*delimiter))));
    }
    if *format == CopyFormat::Csv && delimiter == quote {
        return Err(invalid("COPY delimiter and quote must be different".into()));
    }
    if *format != CopyFormat::Binary && null.as_bytes().contains(delimiter) {
        return Err(invalid("COPY delimiter character must not appear in the NULL specification".into()));
    }
    if *format == CopyFormat::Csv && null.as_bytes().contains(quote) {
        return Err(invalid("CSV quote character must not appear in the NULL specification".into()));
    }
    let Some(default) = default else { return Ok(()) };
    if default.contains(['\n', '\r']) {
        return Err(invalid("COPY default representation cannot use newline or carriage return".into()));
    }
    if default.as_bytes().contains(delimiter) {
        return Err(invalid("COPY delimiter character must not appear in the DEFAULT specification".into()));
    }
    if *format == CopyFormat::Csv && default.as_bytes().contains(quote) {
        return Err(invalid("CSV quote character must not appear in the DEFAULT specification".into()));
    }
    if default == null {
        return Err(invalid("NULL specification and DEFAULT specification cannot be the same".into()));
    }
    Ok(())
}

fn invalid(message: String) -> Error {
    Error::new(SqlState::INVALID_PARAMETER_VALUE, message)
}

fn one_byte(given: Option<&str>, default: u8, message: &str) -> Result<u8> {
    match given.map(str::as_bytes) {
        None => Ok(default),
        Some([byte]) => Ok(*byte),
        Some(_) => Err(Error::unsupported(message)),
    }
}

fn columns(reader: &mut Reader<'_>) -> Result<Vec<String>> {
    match reader.sees_token(&Token::LParen) {
        true => reader.column_list(),
        false => Err(reader.unexpected()),
    }
}

fn old_string(reader: &mut Reader<'_>) -> Result<String> {
    reader.accept(&["AS"]);
    reader.string()
}

fn header(reader: &mut Reader<'_>) -> Result<Header> {
    if reader.sees_token(&Token::Comma) || reader.sees_token(&Token::RParen) {
        return Ok(Header::On);
    }
    match reader.option_value()?.to_ascii_lowercase().as_str() {
        "true" | "on" | "1" => Ok(Header::On),
        "false" | "off" | "0" => Ok(Header::Off),
        "match" => Ok(Header::Match),
        _ => Err(Error::syntax("header requires a Boolean value or \"match\"")),
    }
}

fn refuse_true(reader: &mut Reader<'_>, option: &str) -> Result<()> {
    let alone = reader.sees_token(&Token::Comma) || reader.sees_token(&Token::RParen);
    if !alone && matches!(reader.option_value()?.to_ascii_lowercase().as_str(), "false" | "off" | "0") {
        return Ok(());
    }
    Err(Error::unsupported(format!("COPY option {option} is not supported")))
}

fn encoding(name: &str) -> Result<()> {
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    match plain.to_ascii_lowercase().as_str() {
        "utf8" | "unicode" => Ok(()),
        _ => Err(Error::unsupported(format!("COPY encoding \"{name}\" is not supported")).hint("Send UTF8.")),
    }
}
