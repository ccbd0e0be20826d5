//! `like_escape(pattern, escape)`: a pattern of LIKE with the backslash in the place of its escape character.
//!
//! *Place*: `query::rewrite` puts it around the pattern of `LIKE ... ESCAPE`; by name it is PostgreSQL's function of that name.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, StringViewArray};
use arrow::datatypes::DataType;
use datafusion::logical_expr::ScalarUDF;

use super::text::strings;
use super::{Function, Typed, is_text, undefined};
use crate::error::{Error, SqlState};

/// The function's name.
pub const ESCAPE: &str = "like_escape";

/// The functions.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    vec![Function::new(ESCAPE, types, escape).udf()]
}

fn types(types: &[DataType]) -> Result<Typed, Error> {
    match types {
        [_, _] if types.iter().all(|data_type| is_text(data_type) || data_type.is_null()) => {
            Ok((vec![DataType::Utf8View; 2], DataType::Utf8View))
        }
        _ => Err(undefined(ESCAPE, types)),
    }
}

fn escape(args: &[ArrayRef], _: &DataType) -> Result<ArrayRef, Error> {
    let (patterns, escapes) = (strings(&args[0])?, strings(&args[1])?);
    let each = (0..patterns.len()).map(|row| {
        if patterns.is_null(row) || escapes.is_null(row) {
            return Ok(None);
        }
        with_backslash(patterns.value(row), escapes.value(row)).map(Some)
    });
    Ok(Arc::new(each.collect::<Result<StringViewArray, Error>>()?))
}

/// Without an escape character every backslash stands for itself. 22025 for more than one character.
fn with_backslash(pattern: &str, escape: &str) -> Result<String, Error> {
    let mut characters = escape.chars();
    let character = characters.next();
    if characters.next().is_some() {
        let error = Error::new(SqlState("22025"), "invalid escape string");
        return Err(error.hint("Escape string must be empty or one character."));
    }
    if character == Some('\\') {
        return Ok(pattern.to_owned());
    }
    let mut plain = String::with_capacity(pattern.len() + 2);
    // What follows an escape character is taken as it is, itself included.
    let mut escaped = false;
    for letter in pattern.chars() {
        match letter {
            letter if !escaped && Some(letter) == character => {
                plain.push('\\');
                escaped = true;
                continue;
            }
            '\\' if !escaped => plain.push_str("\\\\"),
            letter => plain.push(letter),
        }
        escaped = false;
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let check = |pattern, escape, expected: &str| assert_eq!(with_backslash(pattern, escape).unwrap(), expected);
        check("a/%b%", "/", "a\\%b%");
        check("a//b", "/", "a\\/b");
        check("a\\b", "/", "a\\\\b");
        check("a/\\b", "/", "a\\\\b");
        check("a\\%", "", "a\\\\%");
        check("a\\%", "\\", "a\\%");
        assert_eq!(with_backslash("a", "ab").unwrap_err().state().0, "22025");
    }
}
