//! `repeat`, `lpad` and `rpad`, whose results may be far larger than what they are given.
//!
//! *Place*: in place of DataFusion's, which make a value of any size before anybody can refuse it.
//!
//! *Invariant*: no call makes more than [`BATCH_BYTES_MAX`] for a batch of rows (54000).

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringViewBuilder};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use datafusion::logical_expr::ScalarUDF;

use super::text::strings;
use super::{Function, Typed, is_text, undefined};
use crate::error::{Error, SqlState};

/// Most bytes that one call makes for a batch.
const BATCH_BYTES_MAX: usize = 256 << 20;

/// The functions.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    let repeat = Function::new(
        "repeat",
        |types| typed("repeat", types, 2),
        |args, _| {
            each(args, |text, count, _| {
                check(text.len().saturating_mul(count))?;
                Ok(text.repeat(count))
            })
        },
    );
    let lpad = Function::new(
        "lpad",
        |types| typed("lpad", types, 3),
        |args, _| each(args, |text, width, fill| padding(text, width, fill).map(|(kept, padding)| padding + kept)),
    );
    let rpad = Function::new(
        "rpad",
        |types| typed("rpad", types, 3),
        |args, _| each(args, |text, width, fill| padding(text, width, fill).map(|(kept, padding)| kept.to_owned() + &padding)),
    );
    vec![repeat.udf(), lpad.udf(), rpad.udf()]
}

fn typed(name: &str, types: &[DataType], arguments_max: usize) -> Result<Typed, Error> {
    let text = |data_type: &DataType| is_text(data_type) || data_type.is_null();
    match types {
        [first, count, rest @ ..]
            if types.len() <= arguments_max && text(first) && (count.is_integer() || count.is_null()) && rest.iter().all(text) =>
        {
            let coerced = [DataType::Utf8View, DataType::Int64].into_iter().chain(rest.iter().map(|_| DataType::Utf8View));
            Ok((coerced.collect(), DataType::Utf8View))
        }
        _ => Err(undefined(name, types)),
    }
}

/// Calls `make` with text, count and fill of each row without NULL; a negative count is none.
fn each(args: &[ArrayRef], make: impl Fn(&str, usize, &str) -> Result<String, Error>) -> Result<ArrayRef, Error> {
    let texts = strings(&args[0])?;
    let counts = cast(&args[1], &DataType::Int64).map_err(|error| Error::internal(error.to_string()))?;
    let counts = counts.as_primitive::<Int64Type>();
    let fills = args.get(2).map(strings).transpose()?;
    let mut made = StringViewBuilder::with_capacity(args[0].len());
    let mut bytes = 0_usize;
    for (row, (text, count)) in texts.iter().zip(counts.iter()).enumerate() {
        let fill = fills.as_ref().map_or(Some(" "), |fills| fills.is_valid(row).then(|| fills.value(row)));
        let (Some(text), Some(count), Some(fill)) = (text, count, fill) else {
            made.append_null();
            continue;
        };
        let value = make(text, usize::try_from(count.max(0)).unwrap_or(usize::MAX), fill)?;
        bytes = bytes.saturating_add(value.len());
        check(bytes)?;
        made.append_value(value);
    }
    Ok(Arc::new(made.finish()))
}

/// What stays of `text` in a width of characters, and what fills it up.
fn padding<'a>(text: &'a str, width: usize, fill: &str) -> Result<(&'a str, String), Error> {
    let length = text.chars().count();
    if length >= width {
        let end = text.char_indices().nth(width).map_or(text.len(), |(at, _)| at);
        return Ok((&text[..end], String::new()));
    }
    if fill.is_empty() {
        return Ok((text, String::new()));
    }
    check((width - length).saturating_mul(fill.chars().map(char::len_utf8).max().unwrap_or(1)))?;
    Ok((text, fill.chars().cycle().take(width - length).collect()))
}

fn check(bytes: usize) -> Result<(), Error> {
    if bytes <= BATCH_BYTES_MAX {
        return Ok(());
    }
    Err(Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "requested length too large")
        .detail(format!("The rows of one batch would need more than {BATCH_BYTES_MAX} bytes.")))
}
