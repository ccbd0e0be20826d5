//! Regular expressions: regexp_match, regexp_matches, regexp_replace, regexp_split_*, substring(text from pattern), SIMILAR TO.
//!
//! *Place*: called by name; `query::rewrite` writes SIMILAR TO and SUBSTRING as calls. The engine is Rust's: alternatives are taken
//! in their order rather than by length, back references and look-around are refused (2201B).

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, ListBuilder, StringViewArray, StringViewBuilder};
use arrow::datatypes::{DataType, Field};
use datafusion::logical_expr::ScalarUDF;
use regex::{Regex, RegexBuilder};

use super::text::strings;
use super::{Function, Typed, is_text, undefined};
use crate::error::{Error, SqlState};

/// Bytes that a compiled pattern may take.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// The functions.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    vec![
        Function::new("regexp_match", |types| texts("regexp_match", types, 2..=3, text_list()), matched).udf(),
        Function::new(
            "regexp_matches",
            |types| texts("regexp_matches", types, 2..=3, DataType::List(Arc::new(Field::new("item", text_list(), true)))),
            all_matches,
        )
        .udf(),
        Function::new("regexp_replace", |types| texts("regexp_replace", types, 3..=4, DataType::Utf8View), replaced).udf(),
        Function::new("regexp_split_to_array", |types| texts("regexp_split_to_array", types, 2..=3, text_list()), split).udf(),
        Function::new("regexp_split_to_table", |types| texts("regexp_split_to_table", types, 2..=3, text_list()), split).udf(),
        Function::new(
            "regexp_substr",
            |types| texts("regexp_substr", types, 2..=2, DataType::Utf8View),
            |args, _| each_text(args, |regex, text| regex.find(text).map(|found| found.as_str().to_owned())),
        )
        .udf(),
        substring().udf(),
        similar().udf(),
    ]
}

fn text_list() -> DataType {
    DataType::List(Arc::new(Field::new("item", DataType::Utf8View, true)))
}

fn texts(name: &str, types: &[DataType], count: std::ops::RangeInclusive<usize>, result: DataType) -> Result<Typed, Error> {
    match count.contains(&types.len()) && types.iter().all(|data_type| is_text(data_type) || data_type.is_null()) {
        true => Ok((vec![DataType::Utf8View; types.len()], result)),
        false => Err(undefined(name, types)),
    }
}

/// Patterns compiled for one batch.
#[derive(Default)]
struct Patterns(HashMap<(String, String), (Regex, bool)>);

impl Patterns {
    /// The pattern and whether the flags ask for all matches.
    fn get(&mut self, pattern: &str, flags: &str) -> Result<&(Regex, bool), Error> {
        match self.0.entry((pattern.to_owned(), flags.to_owned())) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(free) => Ok(free.insert(compile(pattern, flags)?)),
        }
    }
}

/// A pattern with PostgreSQL's flags: the dot matches a line's end unless told otherwise.
fn compile(pattern: &str, flags: &str) -> Result<(Regex, bool), Error> {
    let (mut insensitive, mut all, mut lines, mut dot, mut spaced) = (false, false, false, true, false);
    for flag in flags.chars() {
        match flag {
            'i' => insensitive = true,
            'c' => insensitive = false,
            'g' => all = true,
            'n' | 'm' => (lines, dot) = (true, false),
            'p' => (lines, dot) = (false, false),
            'w' => (lines, dot) = (true, true),
            's' => (lines, dot) = (false, true),
            'x' => spaced = true,
            't' => spaced = false,
            other => {
                return Err(Error::new(SqlState::INVALID_PARAMETER_VALUE, format!("invalid regular expression option: \"{other}\"")));
            }
        }
    }
    let regex = RegexBuilder::new(&boundaries(pattern))
        .case_insensitive(insensitive)
        .multi_line(lines)
        .dot_matches_new_line(dot)
        .ignore_whitespace(spaced)
        .size_limit(PATTERN_BYTES_MAX)
        .build()
        .map_err(|error| {
            let detail = error.to_string();
            let reason = detail.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            Error::new(SqlState("2201B"), format!("invalid regular expression: {reason}"))
        })?;
    Ok((regex, all))
}

/// PostgreSQL's names of word boundaries in Rust's.
fn boundaries(pattern: &str) -> Cow<'_, str> {
    if !["\\m", "\\M", "\\y", "\\Y", "\\Z"].iter().any(|escape| pattern.contains(escape)) {
        return Cow::Borrowed(pattern);
    }
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut characters = pattern.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            out.push(character);
            continue;
        }
        match characters.next() {
            Some('m') => out.push_str("\\b{start}"),
            Some('M') => out.push_str("\\b{end}"),
            Some('y') => out.push_str("\\b"),
            Some('Y') => out.push_str("\\B"),
            Some('Z') => out.push_str("\\z"),
            Some(other) => out.extend(['\\', other]),
            None => out.push('\\'),
        }
    }
    Cow::Owned(out)
}

/// Calls `body` with the pattern of each row; rows with a NULL give none.
fn each<T>(
    args: &[ArrayRef],
    flags_at: usize,
    mut body: impl FnMut(&Regex, bool, &str, usize) -> Result<Option<T>, Error>,
    mut put: impl FnMut(Option<T>),
) -> Result<(), Error> {
    let (subjects, patterns) = (strings(&args[0])?, strings(&args[1])?);
    let flags = args.get(flags_at).map(strings).transpose()?;
    let mut compiled = Patterns::default();
    for row in 0..subjects.len() {
        if args.iter().any(|arg| arg.is_null(row)) {
            put(None);
            continue;
        }
        let flags = flags.as_ref().map_or("", |flags| flags.value(row));
        let (regex, all) = compiled.get(patterns.value(row), flags)?;
        put(body(regex, *all, subjects.value(row), row)?);
    }
    Ok(())
}

fn each_text(args: &[ArrayRef], body: impl Fn(&Regex, &str) -> Option<String>) -> Result<ArrayRef, Error> {
    let mut values = StringViewBuilder::with_capacity(args[0].len());
    each(args, 2, |regex, _, text, _| Ok(body(regex, text)), |value| values.append_option(value))?;
    Ok(Arc::new(values.finish()))
}

/// The groups of a match, or the whole of it where there are none.
fn groups(captures: &regex::Captures<'_>) -> Vec<Option<String>> {
    let from = usize::from(captures.len() > 1);
    captures.iter().skip(from).map(|group| group.map(|group| group.as_str().to_owned())).collect()
}

fn matched(args: &[ArrayRef], _: &DataType) -> Result<ArrayRef, Error> {
    let mut lists = ListBuilder::new(StringViewBuilder::new());
    let find = |regex: &Regex, all: bool, text: &str, _| match all {
        true => Err(Error::new(SqlState::INVALID_PARAMETER_VALUE, "regexp_match() does not support the \"global\" option")
            .hint("Use the regexp_matches function instead.")),
        false => Ok(regex.captures(text).map(|captures| groups(&captures))),
    };
    each(args, 2, find, |found| {
        let present = found.is_some();
        found.into_iter().flatten().for_each(|group| lists.values().append_option(group));
        lists.append(present);
    })?;
    Ok(Arc::new(lists.finish()))
}

fn all_matches(args: &[ArrayRef], _: &DataType) -> Result<ArrayRef, Error> {
    let mut lists = ListBuilder::new(ListBuilder::new(StringViewBuilder::new()));
    let find = |regex: &Regex, all: bool, text: &str, _| {
        let count = if all { usize::MAX } else { 1 };
        Ok(Some(regex.captures_iter(text).take(count).map(|captures| groups(&captures)).collect::<Vec<_>>()))
    };
    each(args, 2, find, |found| {
        let present = found.is_some();
        for groups in found.into_iter().flatten() {
            groups.into_iter().for_each(|group| lists.values().values().append_option(group));
            lists.values().append(true);
        }
        lists.append(present);
    })?;
    Ok(Arc::new(lists.finish()))
}

fn split(args: &[ArrayRef], _: &DataType) -> Result<ArrayRef, Error> {
    let mut lists = ListBuilder::new(StringViewBuilder::new());
    let cut = |regex: &Regex, _, text: &str, _| {
        let mut parts = Vec::new();
        let mut from = 0;
        // An empty match at either end cuts nothing off.
        for found in regex.find_iter(text).filter(|found| found.end() > found.start() || (found.start() > 0 && found.end() < text.len())) {
            parts.push(text[from..found.start()].to_owned());
            from = found.end();
        }
        parts.push(text[from..].to_owned());
        Ok(Some(parts))
    };
    each(args, 2, cut, |parts| {
        let present = parts.is_some();
        parts.into_iter().flatten().for_each(|part| lists.values().append_value(part));
        lists.append(present);
    })?;
    Ok(Arc::new(lists.finish()))
}

fn replaced(args: &[ArrayRef], _: &DataType) -> Result<ArrayRef, Error> {
    let replacements = strings(&args[2])?;
    let mut values = StringViewBuilder::with_capacity(args[0].len());
    let replace = |regex: &Regex, all: bool, text: &str, row: usize| {
        let replacement = replacement(replacements.value(row));
        let count = usize::from(!all);
        Ok(Some(regex.replacen(text, count, replacement.as_str()).into_owned()))
    };
    each(args, 3, replace, |value| values.append_option(value))?;
    Ok(Arc::new(values.finish()))
}

/// `\1` and `\&` in Rust's words.
fn replacement(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '$' => out.push_str("$$"),
            '\\' => match characters.next() {
                Some('&') => out.push_str("${0}"),
                Some(digit @ '0'..='9') => out.push_str(&format!("${{{digit}}}")),
                Some('\\') | None => out.push('\\'),
                Some(other) => out.extend(['\\', other]),
            },
            other => out.push(other),
        }
    }
    out
}

/// `substring(text from pattern)`: the first group, or the whole match.
pub fn substring() -> Function {
    Function::new(
        "substring_regex",
        |types| texts("substring", types, 2..=2, DataType::Utf8View),
        |args, _| {
            each_text(args, |regex, text| {
                let captures = regex.captures(text)?;
                let group = if captures.len() > 1 { captures.get(1) } else { captures.get(0) };
                group.map(|group| group.as_str().to_owned())
            })
        },
    )
}

/// `text SIMILAR TO pattern [ESCAPE character]`.
pub fn similar() -> Function {
    Function::new(
        "similar_to",
        |types| texts("similar_to", types, 2..=3, DataType::Boolean),
        |args, _| {
            let (subjects, patterns) = (strings(&args[0])?, strings(&args[1])?);
            let escapes = args.get(2).map(strings).transpose()?;
            let mut compiled: HashMap<(String, Option<char>), Regex> = HashMap::new();
            let values = (0..subjects.len()).map(|row| {
                if args.iter().any(|arg| arg.is_null(row)) {
                    return Ok(None);
                }
                let escape = escape_of(escapes.as_ref(), row)?;
                let pattern = patterns.value(row);
                let regex = match compiled.entry((pattern.to_owned(), escape)) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(free) => free.insert(compile(&translated(pattern, escape)?, "")?.0),
                };
                Ok(Some(regex.is_match(subjects.value(row))))
            });
            Ok(Arc::new(values.collect::<Result<BooleanArray, Error>>()?) as ArrayRef)
        },
    )
}

fn escape_of(escapes: Option<&StringViewArray>, row: usize) -> Result<Option<char>, Error> {
    let Some(escapes) = escapes else { return Ok(Some('\\')) };
    let mut characters = escapes.value(row).chars();
    match (characters.next(), characters.next()) {
        (escape, None) => Ok(escape),
        _ => Err(Error::new(SqlState("22019"), "invalid escape string").hint("Escape string must be empty or one character.")),
    }
}

/// A pattern of SIMILAR TO as a regular expression (PostgreSQL manual, 9.7.2).
fn translated(pattern: &str, escape: Option<char>) -> Result<String, Error> {
    let mut out = String::with_capacity(pattern.len() + 8);
    out.push_str("^(?:");
    let mut characters = pattern.chars();
    let mut in_class = false;
    while let Some(character) = characters.next() {
        if Some(character) == escape {
            let next = characters.next().ok_or_else(|| Error::new(SqlState("22025"), "LIKE pattern must not end with escape character"))?;
            out.push_str(&regex::escape(&next.to_string()));
            continue;
        }
        match character {
            ']' if in_class => {
                in_class = false;
                out.push(']');
            }
            '\\' | '[' if in_class => out.extend(['\\', character]),
            other if in_class => out.push(other),
            '[' => {
                in_class = true;
                out.push('[');
            }
            '%' => out.push_str(".*"),
            '_' => out.push('.'),
            '(' => out.push_str("(?:"),
            '|' | '*' | '+' | '?' | '{' | '}' | ')' => out.push(character),
            '.' | '^' | '$' | '\\' => out.extend(['\\', character]),
            other => out.push(other),
        }
    }
    out.push_str(")$");
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn similar(text: &str, pattern: &str) -> bool {
        compile(&translated(pattern, Some('\\')).unwrap(), "").unwrap().0.is_match(text)
    }

    #[test]
    fn similar_to_is_anchored_and_has_its_own_wildcards() {
        assert!(similar("abc", "(a|b)%"));
        assert!(!similar("abc", "a"));
        assert!(similar("a.c", "a.c") && !similar("abc", "a.c"));
        assert!(similar("a%c", "a\\%c") && !similar("abc", "a\\%c"));
        assert!(similar("a1", "[a-z][0-9]") && !similar("A1", "[a-z][0-9]"));
    }

    #[test]
    fn replacements_name_groups() {
        assert_eq!(replacement("<\\1$\\&>"), "<${1}$$${0}>");
    }

    #[test]
    fn unknown_flags_are_refused() {
        assert!(compile("a", "z").is_err());
        assert!(compile("(", "").is_err());
    }
}
