//! PostgreSQL's texts, both ways.

use arrow::array::{ArrayRef, TimestampNanosecondArray, UInt64Array};
use datafusion::common::ScalarValue;
use proptest::prelude::*;

use super::*;
use crate::types::SqlType;

fn berlin() -> Zone {
    Zone::parse("europe/berlin").unwrap()
}

fn show(value: &ScalarValue, sql_type: &SqlType, style: &Style) -> String {
    let array: ArrayRef = value.to_array().unwrap();
    let mut out = Vec::new();
    write(array.as_ref(), 0, sql_type, style, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// Reads in, writes, and compares; then once more with what was written.
#[track_caller]
fn check(sql_type: &str, text: &str, expected: &str) {
    let sql_type = SqlType::parse(sql_type).unwrap();
    let style = Style::default();
    let value = parse_scalar(&sql_type, text, &Zone::UTC).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(value.data_type(), sql_type.arrow(), "{text}");
    assert_eq!(show(&value, &sql_type, &style), expected, "{text}");
    assert_eq!(parse_scalar(&sql_type, expected, &Zone::UTC).unwrap(), value, "{text} read back");
}

#[track_caller]
fn check_error(sql_type: &str, text: &str, state: &str, message: &str) {
    let error = parse_scalar(&SqlType::parse(sql_type).unwrap(), text, &Zone::UTC).unwrap_err();
    assert_eq!((error.state().0, error.report().message.as_str()), (state, message), "{text}");
}

#[test]
fn numbers() {
    for (sql_type, text, expected) in [
        ("integer", " +42 ", "42"),
        ("integer", "-2147483648", "-2147483648"),
        ("bigint", "-9223372036854775808", "-9223372036854775808"),
        ("bigint", "0000000000000000000000012", "12"),
        ("double precision", "1e20", "1e+20"),
        ("double precision", "100000000000000", "100000000000000"),
        ("double precision", "1000000000000000", "1e+15"),
        ("double precision", "0.0001", "0.0001"),
        ("double precision", "0.00001234", "1.234e-05"),
        ("double precision", "-0", "-0"),
        ("double precision", "0.1", "0.1"),
        ("double precision", "1.7976931348623157e308", "1.7976931348623157e+308"),
        ("double precision", "5e-324", "5e-324"),
        ("double precision", "-inf", "-Infinity"),
        ("double precision", "123456.789", "123456.789"),
        ("real", "1234567", "1.234567e+06"),
        ("real", "100000", "100000"),
        ("real", "3.4028235e38", "3.4028235e+38"),
        ("numeric(12,2)", "1.005", "1.01"),
        ("numeric(12,2)", "-1.005", "-1.01"),
        ("numeric(12,2)", ".5", "0.50"),
        ("numeric(12,2)", "1.5e3", "1500.00"),
        ("numeric(12,2)", "0.004999999999999999999999999999", "0.00"),
        ("numeric(12,2)", "9999999999.99", "9999999999.99"),
        ("numeric(38,0)", "99999999999999999999999999999999999999", "99999999999999999999999999999999999999"),
        ("numeric", "1.50", "1.5"),
        ("numeric", "-123456789012345678901.123456789", "-123456789012345678901.123456789"),
        ("numeric", "1e-10", "0"),
        ("numeric", "100", "100"),
    ] {
        check(sql_type, text, expected);
    }
    check_error("integer", "x", "22P02", "invalid input syntax for type integer: \"x\"");
    check_error("integer", "1 2", "22P02", "invalid input syntax for type integer: \"1 2\"");
    check_error("integer", "9999999999", "22003", "value \"9999999999\" is out of range for type integer");
    check_error("smallint", "-32769", "22003", "value \"-32769\" is out of range for type smallint");
    check_error("bigint", "9223372036854775808", "22003", "value \"9223372036854775808\" is out of range for type bigint");
    check_error("double precision", "1e400", "22003", "\"1e400\" is out of range for type double precision");
    check_error("real", "1e-60", "22003", "\"1e-60\" is out of range for type real");
    check_error("double precision", "", "22P02", "invalid input syntax for type double precision: \"\"");
    check_error("numeric(12,2)", "9999999999.995", "22003", "numeric field overflow");
    check_error("numeric(12,2)", "1e1000000000000", "22003", "numeric field overflow");
    check_error("numeric(12,2)", "1.2.3", "22P02", "invalid input syntax for type numeric: \"1.2.3\"");
    let overflow = parse_scalar(&SqlType::Numeric(Some((12, 2))), "1e11", &Zone::UTC).unwrap_err();
    assert_eq!(
        overflow.report().detail.as_deref(),
        Some("A field with precision 12, scale 2 must round to an absolute value less than 10^10.")
    );
}

#[test]
fn fewer_float_digits() {
    let shown = |value: f64, digits| {
        show(&ScalarValue::Float64(Some(value)), &SqlType::Double, &Style { extra_float_digits: digits, ..Style::default() })
    };
    assert_eq!(shown(0.1 + 0.2, 1), "0.30000000000000004");
    assert_eq!(shown(0.1 + 0.2, 0), "0.3");
    assert_eq!(shown(1e20, 0), "1e+20");
    assert_eq!(shown(123456.0, -12), "1.23e+05");
}

#[test]
fn dates_and_times() {
    for (sql_type, text, expected) in [
        ("date", "2024-02-29", "2024-02-29"),
        ("date", "1/8/1999", "1999-01-08"),
        ("date", "January 8, 1999", "1999-01-08"),
        ("date", "8-Jan-99", "1999-01-08"),
        ("date", "19990108", "1999-01-08"),
        ("date", "0044-03-15 BC", "0044-03-15 BC"),
        ("date", "12345-01-01", "12345-01-01"),
        ("date", "2024-01-02 23:59:59", "2024-01-02"),
        ("time without time zone", "4:05", "04:05:00"),
        ("time without time zone", "04:05:06.7890", "04:05:06.789"),
        ("time without time zone", "040506", "04:05:06"),
        ("time without time zone", "04:05 PM", "16:05:00"),
        ("time without time zone", "24:00:00", "24:00:00"),
        ("timestamp without time zone", "2024-01-02", "2024-01-02 00:00:00"),
        ("timestamp without time zone", "2024-01-02T03:04:05.1+05", "2024-01-02 03:04:05.1"),
        ("timestamp without time zone", "2024-01-02 03:04:05.1234567", "2024-01-02 03:04:05.123457"),
        ("timestamp without time zone", "1969-12-31 23:59:59.999999", "1969-12-31 23:59:59.999999"),
        ("timestamp without time zone", "2024-01-02 03:04:60", "2024-01-02 03:05:00"),
        ("timestamp without time zone", "0001-01-01 00:00:00 BC", "0001-01-01 00:00:00 BC"),
        ("timestamp without time zone", "Mon Jan 02 2006 15:04:05", "2006-01-02 15:04:05"),
        ("timestamp with time zone", "2024-01-02T03:04:05Z", "2024-01-02 03:04:05+00"),
        ("timestamp with time zone", "2024-01-02 03:04:05+05:30", "2024-01-01 21:34:05+00"),
        ("timestamp with time zone", "2024-01-02 03:04:05.5 -0800", "2024-01-02 11:04:05.5+00"),
        ("timestamp with time zone", "2024-01-02 03:04:05 PST", "2024-01-02 11:04:05+00"),
        ("timestamp with time zone", "2024-07-02 03:04:05 Europe/Berlin", "2024-07-02 01:04:05+00"),
        ("timestamp with time zone", "20240102T030405Z", "2024-01-02 03:04:05+00"),
        ("timestamp with time zone", "2024-01-02+02", "2024-01-01 22:00:00+00"),
        ("timestamp with time zone", "2024-01-02 24:00", "2024-01-03 00:00:00+00"),
        ("timestamp with time zone", "Jan 8 1999 BC", "1999-01-08 00:00:00+00 BC"),
        ("timestamp with time zone", "epoch", "1970-01-01 00:00:00+00"),
    ] {
        check(sql_type, text, expected);
    }
    check_error("date", "2024-02-30", "22008", "date/time field value out of range: \"2024-02-30\"");
    check_error("timestamp with time zone", "13/13/2024", "22008", "date/time field value out of range: \"13/13/2024\"");
    check_error("timestamp with time zone", "2024-01-02 25:00:00", "22008", "date/time field value out of range: \"2024-01-02 25:00:00\"");
    check_error("timestamp with time zone", "soon", "22007", "invalid input syntax for type timestamp with time zone: \"soon\"");
    check_error("timestamp without time zone", "10:00", "22007", "invalid input syntax for type timestamp: \"10:00\"");
    for text in ["2024-01-02 03", "2024-01-02 03:04:05 foo", "4 PM"] {
        check_error("timestamp without time zone", text, "22007", &format!("invalid input syntax for type timestamp: \"{text}\""));
    }
    for text in ["0000-01-01", "99-01-08", "2024-01-02 13:00 PM", "99999-13-01"] {
        check_error("timestamp without time zone", text, "22008", &format!("date/time field value out of range: \"{text}\""));
    }
    check_error("timestamp without time zone", "294277-01-01", "22008", "timestamp out of range: \"294277-01-01\"");
    check_error("time without time zone", "24:00:01", "22008", "date/time field value out of range: \"24:00:01\"");
    check_error(
        "timestamp with time zone",
        "2024-01-02 03:04:05+16",
        "22009",
        "time zone displacement out of range: \"2024-01-02 03:04:05+16\"",
    );
    check_error("date", "", "22007", "invalid input syntax for type date: \"\"");
    check_error("timestamp with time zone", "2024-01-02 00:00 Mars/Base", "22023", "time zone \"mars/base\" not recognized");
    check_error("timestamp with time zone", "infinity", "0A000", "date/time value \"infinity\" is not supported");
}

#[test]
fn zones() {
    let zoned = |text: &str, zone| {
        let value = parse_scalar(&SqlType::Timestamptz, text, &zone).unwrap();
        show(&value, &SqlType::Timestamptz, &Style { time_zone: zone, ..Style::default() })
    };
    assert_eq!(zoned("2024-07-01 12:00", berlin()), "2024-07-01 12:00:00+02");
    // Skipped hour: the offset before the change. Repeated hour: standard time.
    assert_eq!(zoned("2024-03-31 02:30", berlin()), "2024-03-31 03:30:00+02");
    assert_eq!(zoned("2024-10-27 02:30", berlin()), "2024-10-27 02:30:00+01");
    assert_eq!(zoned("2024-01-01 00:00Z", Zone::parse("Asia/Kolkata").unwrap()), "2024-01-01 05:30:00+05:30");
    assert_eq!(zoned("2024-01-01 00:00Z", Zone::parse("-5").unwrap()), "2023-12-31 19:00:00-05");
    assert_eq!(zoned("2024-01-01 00:00Z", Zone::parse("UTC+3").unwrap()), "2023-12-31 21:00:00-03");
    assert_eq!(Zone::parse("+05:30").unwrap().to_string(), "<+05:30>-05:30");
    assert_eq!(Zone::parse(&Zone::Fixed(-18_000).to_string()).unwrap(), Zone::Fixed(-18_000));
    assert_eq!(Zone::parse("Nowhere").unwrap_err().state().0, "22023");
}

#[test]
fn intervals() {
    for (text, expected) in [
        ("1 year 2 mons 3 days 04:05:06", "1 year 2 mons 3 days 04:05:06"),
        ("P1Y2M3DT4H5M6.5S", "1 year 2 mons 3 days 04:05:06.5"),
        ("1.5 days", "1 day 12:00:00"),
        ("1.5 months", "1 mon 15 days"),
        ("2 weeks", "14 days"),
        ("-1 day +02:03:04", "-1 days +02:03:04"),
        ("1 day ago", "-1 days"),
        ("1-2", "1 year 2 mons"),
        ("3 4:05:06", "3 days 04:05:06"),
        ("30", "00:00:30"),
        ("5m", "00:05:00"),
        ("-00:00:01.5", "-00:00:01.5"),
        ("0", "00:00:00"),
        ("PT", "00:00:00"),
        ("1.1 mons", "1 mon 3 days"),
        ("-0.00001 days", "-00:00:00.864"),
        ("1.2345678 s", "00:00:01.234568"),
        ("12:00:00.5 ago", "-12:00:00.5"),
        ("1 dec", "10 years"),
        ("-1-2", "-1 years -2 mons"),
        ("100:00:00", "100:00:00"),
    ] {
        check("interval", text, expected);
    }
    let iso = Style { interval_style: IntervalStyle::Iso8601, ..Style::default() };
    for (text, expected) in [("1 year 2 mons 3 days 04:05:06.5", "P1Y2M3DT4H5M6.5S"), ("0", "PT0S"), ("-1 day -0.5 s", "P-1DT-0.5S")] {
        let value = parse_scalar(&SqlType::Interval, text, &Zone::UTC).unwrap();
        assert_eq!(show(&value, &SqlType::Interval, &iso), expected);
        assert_eq!(parse_scalar(&SqlType::Interval, expected, &Zone::UTC).unwrap(), value);
    }
    check_error("interval", "1 2", "22007", "invalid input syntax for type interval: \"1 2\"");
    check_error("interval", "1 fortnight", "22007", "invalid input syntax for type interval: \"1 fortnight\"");
    check_error("interval", "99999999999 years", "22015", "interval field value out of range: \"99999999999 years\"");
}

#[test]
fn everything_else() {
    for (sql_type, text, expected) in [
        ("boolean", " YES ", "t"),
        ("boolean", "of", "f"),
        ("boolean", "tru", "t"),
        ("text", " as it is ", " as it is "),
        ("character varying(3)", "äöü  ", "äöü"),
        ("character(5)", "ab ", "ab   "),
        ("oid", "-1", "4294967295"),
        ("uuid", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ("uuid", "{a0eebc999c0b4ef8-bb6d6bb9bd380a11}", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ("bytea", "\\x 00fF", "\\x00ff"),
        ("bytea", "a\\\\b\\001", "\\x615c6201"),
        ("json", "{\"b\":1, \"a\" :2}", "{\"b\":1, \"a\" :2}"),
        ("jsonb", "{\"bb\":1, \"a\" :[1e2,-0,true,null,\"\\u00e9\\n\"],\"a\":2.50}", "{\"a\": 2.50, \"bb\": 1}"),
        ("jsonb", " [1e2, -0, 1.5e-3, 0.05e1, 12.345E2,{} ,[], \"\\u00e9\\n\\/\"] ", "[100, 0, 0.0015, 0.5, 1234.5, {}, [], \"é\\n/\"]"),
        ("integer[]", "{1, NULL ,3}", "{1,NULL,3}"),
        ("integer[]", "{}", "{}"),
        ("text[]", "{a,\"b c\",\"\",\"null\",\"q\\\"\\\\\"}", "{a,\"b c\",\"\",\"null\",\"q\\\"\\\\\"}"),
        ("integer[][]", "{{1,2},{3}}", "{{1,2},{3}}"),
    ] {
        check(sql_type, text, expected);
    }
    check_error("boolean", "o", "22P02", "invalid input syntax for type boolean: \"o\"");
    check_error("character varying(3)", "abcd", "22001", "value too long for type character varying(3)");
    check_error("uuid", "a0eebc99", "22P02", "invalid input syntax for type uuid: \"a0eebc99\"");
    check_error("integer[]", "{1,2", "22P02", "malformed array literal: \"{1,2\"");
    check_error("integer[]", "{1,,2}", "22P02", "malformed array literal: \"{1,,2}\"");
    for text in
        ["{", "{\"a\"}", "[1,]", "01", "tru", "\"a\nb\"", "", "{} x", "\"a", ".5", "[1 2]", "{a:1}", "\"\\ud800\"", "[\"\\q\"]", "1e"]
    {
        check_error("jsonb", text, "22P02", "invalid input syntax for type json");
        check_error("json", text, "22P02", "invalid input syntax for type json");
    }
    check_error("jsonb", &"[".repeat(100_000), "54000", "json is nested more than 256 levels deep");
    check_error("text", "a\0", "22021", "invalid byte sequence for encoding \"UTF8\": 0x00");
}

#[test]
fn other_arrow_types() {
    let mut out = Vec::new();
    let style = Style::default();
    let huge = UInt64Array::from(vec![u64::MAX]);
    write(&huge, 0, &SqlType::BigInt, &style, &mut out).unwrap();
    out.push(b' ');
    let nanoseconds = TimestampNanosecondArray::from(vec![1_500]);
    write(&nanoseconds, 0, &SqlType::Timestamp, &style, &mut out).unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), "18446744073709551615 1970-01-01 00:00:00.000001");
}

/// One value of each type, at random.
fn any_value() -> impl Strategy<Value = (SqlType, ScalarValue)> {
    let micros = -200_000_000_000_000_000i64..9_000_000_000_000_000_000;
    prop_oneof![
        any::<i64>().prop_map(|value| (SqlType::BigInt, ScalarValue::Int64(Some(value)))),
        any::<f64>()
            .prop_filter("NaN is not equal to itself", |value| !value.is_nan())
            .prop_map(|value| (SqlType::Double, ScalarValue::Float64(Some(value)))),
        any::<f32>()
            .prop_filter("NaN is not equal to itself", |value| !value.is_nan())
            .prop_map(|value| (SqlType::Real, ScalarValue::Float32(Some(value)))),
        (any::<i64>(), 0i8..18).prop_map(|(value, scale)| {
            (SqlType::Numeric(Some((38, scale))), ScalarValue::Decimal128(Some(i128::from(value)), 38, scale))
        }),
        (-1_700_000i32..2_000_000).prop_map(|days| (SqlType::Date, ScalarValue::Date32(Some(days)))),
        micros.clone().prop_map(|at| (SqlType::Timestamp, ScalarValue::TimestampMicrosecond(Some(at), None))),
        micros.prop_map(|at| (SqlType::Timestamptz, ScalarValue::TimestampMicrosecond(Some(at), Some("UTC".into())))),
        (-100_000i32..100_000, any::<i32>(), any::<i32>()).prop_map(|(months, days, us)| {
            let value = arrow::datatypes::IntervalMonthDayNano::new(months, days, i64::from(us) * 1_000_000);
            (SqlType::Interval, ScalarValue::IntervalMonthDayNano(Some(value)))
        }),
        any::<[u8; 16]>().prop_map(|value| (SqlType::Uuid, ScalarValue::FixedSizeBinary(16, Some(value.to_vec())))),
        any::<Vec<u8>>().prop_map(|value| (SqlType::Bytea, ScalarValue::Binary(Some(value)))),
        proptest::collection::vec(proptest::option::of("[a-zN\"\\\\{}, ]{0,6}"), 0..4).prop_map(|items| {
            let quoted = |item: &String| format!("\"{}\"", item.replace('\\', "\\\\").replace('"', "\\\""));
            let literal: Vec<String> = items.iter().map(|item| item.as_ref().map_or("NULL".to_owned(), quoted)).collect();
            let sql_type = SqlType::Array(Box::new(SqlType::Text));
            let value = parse_scalar(&sql_type, &format!("{{{}}}", literal.join(",")), &Zone::UTC).unwrap();
            (sql_type, value)
        }),
    ]
}

proptest! {
    #[test]
    fn written_reads_back((sql_type, value) in any_value(), iso: bool, escape: bool) {
        let style = Style {
            time_zone: berlin(),
            interval_style: if iso { IntervalStyle::Iso8601 } else { IntervalStyle::Postgres },
            bytea_output: if escape { ByteaOutput::Escape } else { ByteaOutput::Hex },
            extra_float_digits: 1,
        };
        let text = show(&value, &sql_type, &style);
        // An hour that comes twice has the same text but for the offset, which is written.
        prop_assert_eq!(parse_scalar(&sql_type, &text, &style.time_zone).unwrap(), value, "{}", text);
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,24}", numeric in "[-+0-9.eE:TZ /a-z]{0,24}") {
        for name in ["integer", "real", "numeric(5,2)", "date", "time without time zone", "timestamp with time zone", "interval", "uuid", "bytea", "jsonb", "integer[]", "boolean", "character varying(3)"] {
            for text in [&text, &numeric] {
                _ = parse_scalar(&SqlType::parse(name).unwrap(), text, &Zone::UTC);
            }
        }
    }
}
