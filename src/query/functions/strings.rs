//! Text functions that DataFusion has not, or has otherwise: format, string_to_table, num_nulls.
//!
//! *Place*: called by name; the typing rules give [`TAKES_TEXT`] their arguments as text.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int32Array, ListBuilder, StringViewArray, StringViewBuilder};
use arrow::datatypes::DataType;
use datafusion::logical_expr::ScalarUDF;

use super::json::text_list;
use super::text::strings;
use super::{Function, Typed, is_text, undefined};
use crate::error::{Error, SqlState};
use crate::sql::quote_identifier;

/// Functions that read each argument as its text, whatever its type.
pub const TAKES_TEXT: [&str; 3] = ["format", "concat", "concat_ws"];

/// Most characters that a width of format() may ask for.
const WIDTH_MAX: usize = 1 << 20;

/// The functions.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    vec![
        Function::new(
            "format",
            |types| match types.first() {
                Some(template) if is_text(template) || template.is_null() => {
                    let coerced = types.iter().map(|each| if is_text(each) { DataType::Utf8View } else { each.clone() });
                    Ok((coerced.collect(), DataType::Utf8View))
                }
                _ => Err(undefined("format", types)),
            },
            format_rows,
        )
        .udf(),
        Function::new("string_to_table", string_to_table_types, string_to_table).udf(),
        Function::new(
            "parse_ident",
            |types| match types {
                [name] if is_text(name) => Ok((vec![DataType::Utf8View], text_list())),
                _ => Err(undefined("parse_ident", types)),
            },
            |args, _| {
                let names = strings(&args[0])?;
                let mut lists = ListBuilder::new(StringViewBuilder::new());
                for name in &names {
                    for part in name.map(identifiers).transpose()?.into_iter().flatten() {
                        lists.values().append_value(part);
                    }
                    lists.append(name.is_some());
                }
                Ok(Arc::new(lists.finish()) as ArrayRef)
            },
        )
        .udf(),
        Function::new("num_nulls", |types| Ok((types.to_vec(), DataType::Int32)), |args, _| count_nulls(args, true)).udf(),
        Function::new("num_nonnulls", |types| Ok((types.to_vec(), DataType::Int32)), |args, _| count_nulls(args, false)).udf(),
    ]
}

fn count_nulls(args: &[ArrayRef], nulls: bool) -> Result<ArrayRef, Error> {
    let rows = args.first().map_or(0, |first| first.len());
    let of_row = |row: usize| args.iter().filter(|arg| (arg.data_type().is_null() || arg.is_null(row)) == nulls).count();
    Ok(Arc::new((0..rows).map(|row| i32::try_from(of_row(row)).ok()).collect::<Int32Array>()))
}

fn string_to_table_types(types: &[DataType]) -> Result<Typed, Error> {
    match types.len() {
        2 | 3 if types.iter().all(|each| is_text(each) || each.is_null()) => Ok((vec![DataType::Utf8View; types.len()], text_list())),
        _ => Err(undefined("string_to_table", types)),
    }
}

/// The parts of a text between separators; characters where the separator is NULL.
fn string_to_table(args: &[ArrayRef], _: &DataType) -> Result<ArrayRef, Error> {
    let texts = args.iter().map(strings).collect::<Result<Vec<_>, _>>()?;
    let mut lists = ListBuilder::new(StringViewBuilder::new());
    for row in 0..texts[0].len() {
        if texts[0].is_null(row) {
            lists.append(false);
            continue;
        }
        let text = texts[0].value(row);
        let parts: Vec<String> = match texts[1].is_null(row) {
            _ if text.is_empty() => Vec::new(),
            true => text.chars().map(String::from).collect(),
            false if texts[1].value(row).is_empty() => vec![text.to_owned()],
            false => text.split(texts[1].value(row)).map(str::to_owned).collect(),
        };
        let null = texts.get(2).filter(|null| null.is_valid(row)).map(|null| null.value(row));
        for part in parts {
            lists.values().append_option((null != Some(part.as_str())).then_some(part));
        }
        lists.append(true);
    }
    Ok(Arc::new(lists.finish()))
}

/// The parts of a qualified name; those without quotes fold to lower case.
fn identifiers(name: &str) -> Result<Vec<String>, Error> {
    let invalid = || Error::new(SqlState::INVALID_PARAMETER_VALUE, format!("string is not a valid identifier: \"{name}\""));
    let (mut parts, mut rest) = (Vec::new(), name.trim());
    loop {
        if let Some(quoted) = rest.strip_prefix('"') {
            let end = quoted.find('"').ok_or_else(invalid)?;
            parts.push(quoted[..end].to_owned());
            rest = quoted[end + 1..].trim_start();
        } else {
            let after = rest.trim_start_matches(|character: char| character.is_alphanumeric() || character == '_' || character == '$');
            let part = &rest[..rest.len() - after.len()];
            if part.chars().next().is_none_or(|first| first.is_ascii_digit() || first == '$') {
                return Err(invalid());
            }
            parts.push(part.to_lowercase());
            rest = after.trim_start();
        }
        match rest.strip_prefix('.') {
            Some(next) => rest = next.trim_start(),
            None if rest.is_empty() => return Ok(parts),
            None => return Err(invalid()),
        }
    }
}

fn format_rows(args: &[ArrayRef], _: &DataType) -> Result<ArrayRef, Error> {
    let texts = args.iter().map(strings).collect::<Result<Vec<_>, _>>()?;
    let values = (0..texts[0].len()).map(|row| match texts[0].is_null(row) {
        true => Ok(None),
        false => {
            let arguments: Vec<Option<&str>> =
                texts[1..].iter().map(|text| if text.is_null(row) { None } else { Some(text.value(row)) }).collect();
            formatted(texts[0].value(row), &arguments).map(Some)
        }
    });
    Ok(Arc::new(values.collect::<Result<StringViewArray, Error>>()?))
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(SqlState::INVALID_PARAMETER_VALUE, message)
}

/// `format(template, arguments)`: `%[position$][flags][width]type` with the types s, I, L (PostgreSQL manual, 9.4.1).
fn formatted(template: &str, arguments: &[Option<&str>]) -> Result<String, Error> {
    let mut out = String::with_capacity(template.len() + 16);
    let mut rest = template;
    let mut next = 0;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        if let (Some(position), after) = number(rest)
            && let Some(after) = after.strip_prefix('$')
        {
            next = position.checked_sub(1).ok_or_else(|| invalid("format specifies argument 0, but arguments are numbered from 1"))?;
            rest = after;
        }
        let mut left = rest.starts_with('-');
        rest = rest.trim_start_matches('-');
        let (mut width, after) = number(rest);
        rest = after;
        if let Some(after) = rest.strip_prefix('*') {
            let argument = argument(arguments, next)?.unwrap_or("0");
            let given: i64 = argument.parse().map_err(|_| invalid(format!("invalid input syntax for type integer: \"{argument}\"")))?;
            left |= given < 0;
            width = usize::try_from(given.unsigned_abs()).ok();
            next += 1;
            rest = after;
        }
        let kind =
            rest.chars().next().ok_or_else(|| invalid("unterminated format() type specifier").hint("For a single \"%\" use \"%%\"."))?;
        rest = &rest[kind.len_utf8()..];
        if !matches!(kind, 's' | 'I' | 'L') {
            return Err(invalid(format!("unrecognized format() type specifier \"{kind}\"")).hint("For a single \"%\" use \"%%\"."));
        }
        let value = argument(arguments, next)?;
        next += 1;
        let text = match (kind, value) {
            ('s', value) => value.unwrap_or_default().to_owned(),
            ('I', Some(value)) => quote_identifier(value),
            ('I', None) => return Err(Error::new(SqlState("22004"), "null values cannot be formatted as an SQL identifier")),
            (_, Some(value)) => literal(value),
            (_, None) => "NULL".to_owned(),
        };
        let width = width.unwrap_or(0);
        if width > WIDTH_MAX {
            return Err(Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "requested length too large"));
        }
        let blanks = " ".repeat(width.saturating_sub(text.chars().count()));
        out.push_str(&if left { text + &blanks } else { blanks + &text });
    }
    out.push_str(rest);
    Ok(out)
}

fn argument<'a>(arguments: &[Option<&'a str>], index: usize) -> Result<Option<&'a str>, Error> {
    arguments.get(index).copied().ok_or_else(|| invalid("too few arguments for format()"))
}

fn number(text: &str) -> (Option<usize>, &str) {
    let rest = text.trim_start_matches(|character: char| character.is_ascii_digit());
    (text[..text.len() - rest.len()].parse().ok(), rest)
}

fn literal(value: &str) -> String {
    let escaped = value.replace('\'', "''");
    if escaped.contains('\\') { format!("E'{}'", escaped.replace('\\', "\\\\")) } else { format!("'{escaped}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(template: &str, arguments: &[Option<&str>], expected: &str) {
        assert_eq!(formatted(template, arguments).unwrap(), expected);
    }

    #[test]
    fn formats_are_postgres() {
        check("%s-%s", &[Some("a"), Some("1")], "a-1");
        check("%I.%L", &[Some("a b"), Some("it's")], "\"a b\".'it''s'");
        check("|%5s|%-5s|", &[Some("a"), Some("b")], "|    a|b    |");
        check("%2$s %1$s", &[Some("a"), Some("b")], "b a");
        check("%s%%", &[None], "%");
        check("%*s", &[Some("-3"), Some("a")], "a  ");
    }

    #[test]
    fn names_have_parts() {
        assert_eq!(identifiers("A.\"B c\"").unwrap(), ["a", "B c"]);
        assert!(identifiers("1a").is_err() && identifiers("a.").is_err() && identifiers("\"a").is_err());
    }

    #[test]
    fn bad_templates_are_refused() {
        for template in ["%x", "%", "%s", "%0$s"] {
            assert!(formatted(template, &[]).is_err(), "{template}");
        }
    }
}
