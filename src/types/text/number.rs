//! Numbers: integers, floats and decimals, read and written without a detour through floats.

use crate::error::{Error, Result, SqlState};

/// Powers of ten that fit a Decimal128.
const POWERS: [i128; 39] = {
    let mut powers = [1i128; 39];
    let mut index = 1;
    while index < 39 {
        powers[index] = powers[index - 1] * 10;
        index += 1;
    }
    powers
};

/// Digits that always fit an i64: the fast paths take no more.
const FAST_DIGITS_MAX: usize = 18;

/// 22P02 as PostgreSQL words it.
pub(crate) fn malformed(type_name: &str, text: &str) -> Error {
    Error::new(SqlState::INVALID_TEXT_REPRESENTATION, format!("invalid input syntax for type {type_name}: \"{text}\""))
}

fn out_of_range(type_name: &str, text: &str) -> Error {
    Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, format!("value \"{text}\" is out of range for type {type_name}"))
}

/// `smallint`.
#[inline]
pub fn smallint(text: &str) -> Result<i16> {
    i16::try_from(whole(text, "smallint")?).map_err(|_| out_of_range("smallint", text))
}

/// `integer`.
#[inline]
pub fn integer(text: &str) -> Result<i32> {
    i32::try_from(whole(text, "integer")?).map_err(|_| out_of_range("integer", text))
}

/// `bigint`.
#[inline]
pub fn bigint(text: &str) -> Result<i64> {
    whole(text, "bigint")
}

/// `oid`.
pub fn oid(text: &str) -> Result<u32> {
    let value = whole(text, "oid")?;
    // As in PostgreSQL, -1 is the greatest oid.
    let unsigned = i32::try_from(value).map_or(value, |negative| i64::from(negative as u32));
    u32::try_from(unsigned).map_err(|_| out_of_range("oid", text))
}

#[inline]
fn whole(text: &str, type_name: &str) -> Result<i64> {
    let bytes = text.as_bytes();
    let (negative, digits) = match bytes.first() {
        Some(b'-') => (true, &bytes[1..]),
        _ => (false, bytes),
    };
    if digits.is_empty() || digits.len() > FAST_DIGITS_MAX {
        return whole_slowly(text, type_name);
    }
    let mut value = 0i64;
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return whole_slowly(text, type_name);
        }
        value = value * 10 + i64::from(digit);
    }
    Ok(if negative { -value } else { value })
}

#[cold]
fn whole_slowly(text: &str, type_name: &str) -> Result<i64> {
    let trimmed = text.trim_matches(is_space);
    let digits = trimmed.strip_prefix(['-', '+']).unwrap_or(trimmed);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed(type_name, text));
    }
    // Only the size can be wrong now.
    trimmed.parse().map_err(|_| out_of_range(type_name, text))
}

/// C's isspace.
pub(crate) fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

/// `real`.
pub fn real(text: &str) -> Result<f32> {
    let trimmed = float_syntax(text, "real")?;
    let value: f32 = trimmed.parse().map_err(|_| malformed("real", text))?;
    if lost(f64::from(value), trimmed) {
        return Err(Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, format!("\"{text}\" is out of range for type real")));
    }
    Ok(value)
}

/// `double precision`.
pub fn double(text: &str) -> Result<f64> {
    let trimmed = float_syntax(text, "double precision")?;
    let value: f64 = trimmed.parse().map_err(|_| malformed("double precision", text))?;
    if lost(value, trimmed) {
        return Err(Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, format!("\"{text}\" is out of range for type double precision")));
    }
    Ok(value)
}

fn float_syntax<'a>(text: &'a str, type_name: &str) -> Result<&'a str> {
    let trimmed = text.trim_matches(is_space);
    if trimmed.is_empty() { Err(malformed(type_name, text)) } else { Ok(trimmed) }
}

/// True when a number was written that became infinite or zero.
fn lost(value: f64, text: &str) -> bool {
    if value.is_infinite() {
        return text.bytes().any(|byte| byte.is_ascii_digit());
    }
    value == 0.0 && text.bytes().take_while(|byte| !matches!(byte, b'e' | b'E')).any(|byte| matches!(byte, b'1'..=b'9'))
}

/// `numeric(precision, scale)` as the unscaled integer of a Decimal128, rounded half away from zero as PostgreSQL does.
/// `declared` is false for bare `numeric`, whose overflow has another wording.
#[inline]
pub fn numeric(text: &str, precision: u8, scale: i8, declared: bool) -> Result<i128> {
    match numeric_fast(text.as_bytes(), precision, scale) {
        Some(value) => Ok(value),
        None => numeric_slowly(text, precision, scale, declared),
    }
}

/// Plain digits with an optional point, at most 18 of them, no rounding needed, far from the precision's bound.
#[inline]
fn numeric_fast(bytes: &[u8], precision: u8, scale: i8) -> Option<i128> {
    let (negative, digits) = match bytes.first()? {
        b'-' => (true, &bytes[1..]),
        _ => (false, bytes),
    };
    if digits.is_empty() || digits.len() > FAST_DIGITS_MAX + 1 {
        return None;
    }
    let mut value = 0i64;
    let mut point = digits.len();
    for (index, byte) in digits.iter().enumerate() {
        let digit = byte.wrapping_sub(b'0');
        if digit <= 9 {
            value = value * 10 + i64::from(digit);
        } else if *byte == b'.' && point == digits.len() {
            point = index;
        } else {
            return None;
        }
    }
    let fraction = digits.len().saturating_sub(point + 1);
    let count = digits.len() - usize::from(point < digits.len());
    if count == 0 || count > FAST_DIGITS_MAX {
        return None;
    }
    let up = usize::try_from(scale).ok()?.checked_sub(fraction)?;
    if count + up > usize::from(precision) {
        return None;
    }
    let value = if up + count <= FAST_DIGITS_MAX { i128::from(value * POWERS[up] as i64) } else { i128::from(value) * POWERS[up] };
    Some(if negative { -value } else { value })
}

#[cold]
fn numeric_slowly(text: &str, precision: u8, scale: i8, declared: bool) -> Result<i128> {
    let syntax = || malformed("numeric", text);
    let trimmed = text.trim_matches(is_space);
    let (negative, unsigned) = match trimmed.as_bytes().first() {
        Some(b'-') => (true, &trimmed[1..]),
        Some(b'+') => (false, &trimmed[1..]),
        _ => (false, trimmed),
    };
    if ["nan", "infinity", "inf"].iter().any(|word| unsigned.eq_ignore_ascii_case(word)) {
        return Err(Error::unsupported(format!("{trimmed} is not supported in type numeric"))
            .hint("Use double precision for values that are not numbers."));
    }
    let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
        Some(at) => (&unsigned[..at], exponent(&unsigned[at + 1..]).ok_or_else(syntax)?),
        None => (unsigned, 0),
    };
    let (before, after) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if before.len() + after.len() == 0 || !all_digits(before) || !all_digits(after) {
        return Err(syntax());
    }
    // The value is 0.d1d2d3... x 10^point.
    let mut digits = before.bytes().chain(after.bytes()).map(|byte| byte - b'0');
    let mut point = i64::try_from(before.len()).unwrap_or(i64::MAX).saturating_add(exponent);
    let mut first = digits.next();
    while first == Some(0) {
        point = point.saturating_sub(1);
        first = digits.next();
    }
    let Some(first) = first else { return Ok(0) };
    let kept = point.saturating_add(i64::from(scale));
    let overflow = || numeric_overflow(precision, scale, declared);
    let mut value = 0i128;
    if kept >= 0 {
        let mut digits = std::iter::once(first).chain(digits).chain(std::iter::repeat(0));
        for _ in 0..kept {
            value = value.checked_mul(10).and_then(|value| value.checked_add(i128::from(digits.next()?))).ok_or_else(overflow)?;
        }
        if digits.next() >= Some(5) {
            value += 1;
        }
    }
    if value >= POWERS[usize::from(precision.min(38))] {
        return Err(overflow());
    }
    Ok(if negative { -value } else { value })
}

fn exponent(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // Beyond any precision the exact size does not matter.
    Some(text.parse::<i64>().unwrap_or(if text.starts_with('-') { i64::MIN / 4 } else { i64::MAX / 4 }).clamp(-1_000_000, 1_000_000))
}

/// 22003 as PostgreSQL words it for a declared and a bare numeric.
pub(crate) fn numeric_overflow(precision: u8, scale: i8, declared: bool) -> Error {
    let whole = i32::from(precision) - i32::from(scale);
    if declared {
        let bound = if whole == 0 { "1".to_owned() } else { format!("10^{whole}") };
        Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "numeric field overflow")
            .detail(format!("A field with precision {precision}, scale {scale} must round to an absolute value less than {bound}."))
    } else {
        Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "value overflows numeric format")
            .detail(format!("A numeric without precision holds {whole} digits before the decimal point."))
    }
}

/// Appends a whole number.
#[inline]
pub fn write_integer(value: i64, out: &mut Vec<u8>) {
    if value < 0 {
        out.push(b'-');
    }
    write_unsigned(u128::from(value.unsigned_abs()), 1, out);
}

/// Appends digits, with zeros in front up to `width`.
#[inline]
pub(crate) fn write_unsigned(value: u128, width: usize, out: &mut Vec<u8>) {
    let mut buffer = [b'0'; 40];
    let mut start = buffer.len();
    let mut wide = value;
    // Division of u128 is a call: in steps of 18 digits, then u64.
    while wide >= POWERS[18] as u128 {
        let mut low = (wide % POWERS[18] as u128) as u64;
        wide /= POWERS[18] as u128;
        for _ in 0..18 {
            start -= 1;
            buffer[start] = b'0' + (low % 10) as u8;
            low /= 10;
        }
    }
    let mut low = wide as u64;
    while low > 0 {
        start -= 1;
        buffer[start] = b'0' + (low % 10) as u8;
        low /= 10;
    }
    out.extend_from_slice(&buffer[start.min(buffer.len() - width.min(buffer.len()))..]);
}

/// Appends a decimal with `scale` digits after the point; `trimmed` leaves out zeros at the end (bare `numeric`, which has
/// no scale of its own to show).
pub fn write_numeric(value: i128, scale: i8, trimmed: bool, out: &mut Vec<u8>) {
    if value < 0 {
        out.push(b'-');
    }
    let magnitude = value.unsigned_abs();
    if scale <= 0 {
        write_unsigned(magnitude, 1, out);
        if magnitude > 0 {
            out.extend(std::iter::repeat_n(b'0', usize::from(scale.unsigned_abs())));
        }
        return;
    }
    let power = POWERS[usize::from(scale.unsigned_abs()).min(38)] as u128;
    let (whole, mut fraction, mut width) = (magnitude / power, magnitude % power, usize::from(scale.unsigned_abs()));
    write_unsigned(whole, 1, out);
    while trimmed && width > 0 && fraction.is_multiple_of(10) {
        fraction /= 10;
        width -= 1;
    }
    if width > 0 {
        out.push(b'.');
        write_unsigned(fraction, width, out);
    }
}

/// Appends a `double precision` as PostgreSQL prints it: the shortest text that reads back to the same value, or
/// `15 + extra_float_digits` significant digits when that is not positive.
pub fn write_double(value: f64, extra_float_digits: i32, out: &mut Vec<u8>) {
    if !write_special(value, out) {
        if extra_float_digits > 0 {
            let mut buffer = ryu::Buffer::new();
            write_shortest(buffer.format_finite(value), 15, out);
        } else {
            write_significant(value, 15 + extra_float_digits, out);
        }
    }
}

/// Appends a `real`, as [`write_double`].
pub fn write_real(value: f32, extra_float_digits: i32, out: &mut Vec<u8>) {
    if !write_special(f64::from(value), out) {
        if extra_float_digits > 0 {
            let mut buffer = ryu::Buffer::new();
            write_shortest(buffer.format_finite(value), 6, out);
        } else {
            write_significant(f64::from(value), 6 + extra_float_digits, out);
        }
    }
}

fn write_special(value: f64, out: &mut Vec<u8>) -> bool {
    let text: &[u8] = if value.is_nan() {
        b"NaN"
    } else if value == f64::INFINITY {
        b"Infinity"
    } else if value == f64::NEG_INFINITY {
        b"-Infinity"
    } else {
        return false;
    };
    out.extend_from_slice(text);
    true
}

/// Lays out the digits of `text` (any decimal notation) as PostgreSQL does: an exponent below -4 and from `fixed_max` on.
fn write_shortest(text: &str, fixed_max: i32, out: &mut Vec<u8>) {
    let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let (negative, mantissa) = mantissa.strip_prefix('-').map_or((false, mantissa), |rest| (true, rest));
    let (before, after) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mut digits = [0u8; 40];
    let mut count = 0;
    let mut leading = 0i32;
    for byte in before.bytes().chain(after.bytes()) {
        if count == 0 && byte == b'0' {
            leading += 1;
        } else if count < digits.len() {
            digits[count] = byte;
            count += 1;
        }
    }
    while count > 0 && digits[count - 1] == b'0' {
        count -= 1;
    }
    if negative {
        out.push(b'-');
    }
    if count == 0 {
        out.push(b'0');
        return;
    }
    let digits = &digits[..count];
    // Of the first digit: value = d.ddd x 10^power.
    let power = exponent.parse::<i32>().unwrap_or(0) + before.len() as i32 - 1 - leading;
    if power < -4 || power >= fixed_max {
        out.push(digits[0]);
        if count > 1 {
            out.push(b'.');
            out.extend_from_slice(&digits[1..]);
        }
        out.extend_from_slice(if power < 0 { b"e-" } else { b"e+" });
        write_unsigned(u128::from(power.unsigned_abs()), 2, out);
    } else if power < 0 {
        out.extend_from_slice(b"0.");
        out.extend(std::iter::repeat_n(b'0', power.unsigned_abs() as usize - 1));
        out.extend_from_slice(digits);
    } else {
        let whole = power as usize + 1;
        out.extend_from_slice(&digits[..count.min(whole)]);
        out.extend(std::iter::repeat_n(b'0', whole.saturating_sub(count)));
        if count > whole {
            out.push(b'.');
            out.extend_from_slice(&digits[whole..]);
        }
    }
}

/// C's `%.{digits}g`.
fn write_significant(value: f64, digits: i32, out: &mut Vec<u8>) {
    let digits = digits.max(1);
    let text = format!("{value:.*e}", digits.unsigned_abs() as usize - 1);
    write_shortest(&text, digits, out);
}
