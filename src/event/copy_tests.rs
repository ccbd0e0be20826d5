//! COPY decoding: what PostgreSQL accepts and refuses, cut anywhere.

use arrow::array::Array;
use proptest::prelude::*;

use super::*;
use crate::event::{Cutter, Encoder};
use crate::types::SqlType;
use crate::types::text::{Style, Writer};

fn text_options() -> CopyOptions {
    CopyOptions {
        format: CopyFormat::Text,
        delimiter: b'\t',
        null: "\\N".into(),
        header: Header::Off,
        quote: b'"',
        escape: b'"',
        force_quote: Vec::new(),
        force_not_null: Vec::new(),
        force_null: Vec::new(),
        default: None,
    }
}

fn csv_options() -> CopyOptions {
    CopyOptions { format: CopyFormat::Csv, delimiter: b',', null: String::new(), ..text_options() }
}

fn decoder(types: &[&str], options: CopyOptions) -> Decoder {
    let target = |(index, name): (usize, &&str)| Target { name: format!("c{index}"), sql_type: SqlType::parse(name).unwrap() };
    Decoder::new("t", types.iter().enumerate().map(target).collect(), options, Zone::UTC).unwrap()
}

/// Rows as text, NULL as `~`, fields between bars.
fn shown_rows(batch: &RecordBatch) -> Vec<String> {
    let types: Vec<_> = batch.schema().fields().iter().map(|field| SqlType::of_field(field)).collect();
    let cell = |row: usize, column: usize| {
        let mut out = Vec::new();
        let array = batch.column(column);
        if array.is_null(row) {
            return "~".to_owned();
        }
        Writer::new(array.as_ref(), &types[column], &Style::default()).unwrap().write(row, &mut out);
        String::from_utf8(out).unwrap()
    };
    (0..batch.num_rows()).map(|row| (0..types.len()).map(|column| cell(row, column)).collect::<Vec<_>>().join("|")).collect()
}

fn decode(decoder: &Decoder, input: &[u8]) -> Result<Vec<String>> {
    let line_end = Cutter::new(decoder.options()).finish(input);
    decoder.decode(input, line_end, true).map(|decoded| shown_rows(&decoded.batch)).map_err(|failure| failure.at("t", 0))
}

#[track_caller]
fn check(types: &[&str], options: CopyOptions, input: &str, expected: &[&str]) {
    assert_eq!(decode(&decoder(types, options), input.as_bytes()).unwrap(), expected, "{input:?}");
}

#[track_caller]
fn check_error(types: &[&str], options: CopyOptions, input: &[u8], state: &str, message: &str, context: &str) {
    let error = decode(&decoder(types, options), input).unwrap_err();
    let report = error.report();
    assert_eq!((report.state.0, report.message.as_str(), report.context.as_deref()), (state, message, Some(context)));
}

#[test]
fn text_format() {
    let two = ["text", "text"];
    check(&two, text_options(), "a\tb\n\t\\N\n", &["a|b", "|~"]);
    check(&two, text_options(), "a\\tb\tc\\\\d\n\\\\N\te\\\nf\n", &["a\tb|c\\d", "\\N|e\nf"]);
    check(&two, text_options(), "\\101\\x42\\q\t\\303\\xa4\\u\n", &["ABq|äu"]);
    check(&two, text_options(), "a\\\tb\tc", &["a\tb|c"]);
    check(&two, text_options(), "a\tb\r\nc\td\r\n", &["a|b", "c|d"]);
    check(&two, text_options(), "a\tb\rc\td\r", &["a|b", "c|d"]);
    check(&two, text_options(), "a\tb\n\\.\nnot data", &["a|b"]);
    check(&two, text_options(), "a\tb\\.\nnot data", &["a|b"]);
    check(&two, text_options(), "a\\\nb\tc\\", &["a\nb|c"]);
    check(&["text"], text_options(), "a\n\nb\n", &["a", "", "b"]);
    check(&["text"], text_options(), "", &[]);
    check(&two, CopyOptions { delimiter: b'|', null: "none".into(), header: Header::On, ..text_options() }, "x|y|z\nnone|\\N\n", &["~|N"]);
    let types = ["boolean", "integer", "numeric(6,2)", "timestamp with time zone", "uuid", "integer[]", "jsonb", "double precision"];
    let line = "t\t-7\t1.5\t2024-01-02 03:04:05.5+02\tA0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11\t{1,NULL}\t{\"a\":1}\t1e5\n\\N\t\\N\t\\N\t\\N\t\\N\t\\N\t\\N\t\\N\n";
    check(
        &types,
        text_options(),
        line,
        &["t|-7|1.50|2024-01-02 01:04:05.5+00|a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11|{1,NULL}|{\"a\": 1}|100000", "~|~|~|~|~|~|~|~"],
    );
}

#[test]
fn text_errors() {
    let two = ["integer", "integer"];
    let bad = "22P04";
    check_error(&two, text_options(), b"1\t2\n3\n", bad, "missing data for column \"c1\"", "COPY t, line 2: \"3\"");
    check_error(&two, text_options(), b"1\t2\t3\n", bad, "extra data after last expected column", "COPY t, line 1: \"1\t2\t3\"");
    check_error(
        &two,
        text_options(),
        b"1\t2\n1\tx\n",
        "22P02",
        "invalid input syntax for type integer: \"x\"",
        "COPY t, line 2, column c1: \"x\"",
    );
    // The first line's error though another line's column comes first, and before a broken line.
    check_error(
        &two,
        text_options(),
        b"1\tx\ny\t2\n3\n",
        "22P02",
        "invalid input syntax for type integer: \"x\"",
        "COPY t, line 1, column c1: \"x\"",
    );
    check_error(&two, text_options(), b"1\t2\n3\t4\r\n", bad, "literal carriage return found in data", "COPY t, line 2");
    check_error(&two, text_options(), b"1\t2\r\n3\t4\n", bad, "literal newline found in data", "COPY t, line 2");
    check_error(
        &["text"],
        text_options(),
        b"ok\n\xe4\t1\n",
        "22021",
        "invalid byte sequence for encoding \"UTF8\": 0xe4 0x09 0x31",
        "COPY t, line 2",
    );
    check_error(&["text"], text_options(), b"ok\na\0b\n", "22021", "invalid byte sequence for encoding \"UTF8\": 0x00", "COPY t, line 2");
    check_error(
        &["text"],
        text_options(),
        b"\\xe4\n",
        "22021",
        "invalid byte sequence for encoding \"UTF8\": 0xe4",
        "COPY t, line 1: \"\\xe4\"",
    );
    check_error(&two, text_options(), b"1\t2\n\\.x\n", bad, "end-of-copy marker corrupt", "COPY t, line 2");
    check_error(&["integer"], text_options(), b"\xff", "22021", "invalid byte sequence for encoding \"UTF8\": 0xff", "COPY t, line 1");
}

#[test]
fn csv_format() {
    let two = ["text", "text"];
    check(&two, csv_options(), "a,b\n,\"\"\n", &["a|b", "~|"]);
    check(&two, csv_options(), "\"a,b\",\"c \"\"d\"\"\"\n\"e\nf\",\"\"\"\"\n", &["a,b|c \"d\"", "e\nf|\""]);
    check(&two, csv_options(), "x\"a,b\"y,\"p\"q\"r\"\n", &["xa,by|pqr"]);
    check(&two, csv_options(), " a , \" b\" \n", &[" a |  b "]);
    check(&two, csv_options(), "a,b\r\n\"c\r\nd\",\"e\"\r\n", &["a|b", "c\r\nd|e"]);
    check(&two, csv_options(), "a,\"b\"", &["a|b"]);
    check(&two, csv_options(), "a,", &["a|~"]);
    check(&two, csv_options(), "a,\\N\n\\.\nrest", &["a|\\N"]);
    check(&["text"], csv_options(), "a\n\n\"\"\n", &["a", "~", ""]);
    check(&["text"], csv_options(), "a\n\\.\n", &["a"]);
    let escaped = CopyOptions { escape: b'\\', quote: b'\'', delimiter: b';', ..csv_options() };
    check(&two, escaped, "'a\\'b';'c\\\\d\\e'\n", &["a'b|c\\d\\e"]);
    let forced = CopyOptions { force_not_null: vec!["c0".into()], force_null: vec!["c1".into()], ..csv_options() };
    check(&two, forced, ",\"\"\n", &["|~"]);
    let null = CopyOptions { null: "NULL".into(), header: Header::On, ..csv_options() };
    check(&two, null, "a,\"b\nb\"\nNULL,\"NULL\"\n", &["~|NULL"]);
    check(&two, CopyOptions { header: Header::Match, ..csv_options() }, "c0,\"c1\"\nx,y\n", &["x|y"]);
}

#[test]
fn csv_errors() {
    let two = ["text", "integer"];
    let bad = "22P04";
    check_error(&two, csv_options(), b"a,1\nb\n", bad, "missing data for column \"c1\"", "COPY t, line 2: \"b\"");
    check_error(&two, csv_options(), b"a,1,\n", bad, "extra data after last expected column", "COPY t, line 1: \"a,1,\"");
    check_error(
        &two,
        csv_options(),
        b"\"a\nb\",x\n",
        "22P02",
        "invalid input syntax for type integer: \"x\"",
        "COPY t, line 2, column c1: \"x\"",
    );
    check_error(&two, csv_options(), b"a,\"1\n", bad, "unterminated CSV quoted field", "COPY t, line 2: \"a,\"1\"");
    check_error(&two, csv_options(), b"a,1\nb,2\r\n", bad, "unquoted carriage return found in data", "COPY t, line 2");
    let matching = CopyOptions { header: Header::Match, ..csv_options() };
    let message = "column name mismatch in header line field 2: got \"x\", expected \"c1\"";
    check_error(&two, matching.clone(), b"c0,x\n", bad, message, "COPY t, line 1: \"c0,x\"");
    check_error(&two, matching, b"c0\n", bad, "wrong number of fields in header line: got 1, expected 2", "COPY t, line 1: \"c0\"");
}

#[test]
fn more_rows_than_a_block() {
    let input: String = (0..5000).map(|row| format!("{row},\"a long string number {row}\"\n")).collect();
    let rows = decode(&decoder(&["bigint", "text"], csv_options()), input.as_bytes()).unwrap();
    assert_eq!(rows.len(), 5000);
    assert_eq!(rows[4999], "4999|a long string number 4999");
    let context = "COPY t, line 5001, column c0: \"x\"";
    check_error(
        &["bigint", "text"],
        csv_options(),
        (input + "x,y\n").as_bytes(),
        "22P02",
        "invalid input syntax for type bigint: \"x\"",
        context,
    );
}

/// Cuts `input` wherever the cutter allows, showing it `step` bytes at a time.
fn decode_in_pieces(decoder: &Decoder, input: &[u8], step: usize) -> Result<Vec<String>> {
    let mut cutter = Cutter::new(decoder.options());
    let (mut buffer, mut rows, mut lines, mut first) = (Vec::new(), Vec::new(), 0, true);
    let mut chunk = |bytes: &[u8], line_end, first: bool| -> Result<()> {
        let decoded = decoder.decode(bytes, line_end, first).map_err(|failure| failure.at("t", lines))?;
        lines += decoded.lines;
        rows.extend(shown_rows(&decoded.batch));
        Ok(())
    };
    for piece in input.chunks(step) {
        buffer.extend_from_slice(piece);
        let length = cutter.cut(&buffer);
        if length > 0 {
            let rest = buffer.split_off(length);
            chunk(&buffer, cutter.line_end(), first)?;
            (buffer, first) = (rest, false);
        }
    }
    let line_end = cutter.finish(&buffer);
    chunk(&buffer, line_end, first)?;
    Ok(rows)
}

#[test]
fn binary_format() {
    let types = ["integer", "text", "numeric(6,2)", "timestamp with time zone", "uuid", "integer[]", "jsonb", "boolean"];
    let lines = "1\täu\t1.5\t2024-01-02 03:04:05.5+02\tA0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11\t{1,NULL}\t{\"a\":1}\tt\n\\N\t\\N\t\\N\t\\N\t\\N\t\\N\t\\N\t\\N\n";
    let source = decoder(&types, text_options()).decode(lines.repeat(2000).as_bytes(), LineEnd::Lf, true).unwrap().batch;
    let options = CopyOptions { format: CopyFormat::Binary, ..text_options() };
    let binary = decoder(&types, options.clone());
    let encoder = Encoder::new(&source.schema(), options, Style::default()).unwrap();
    let mut written = Vec::new();
    encoder.header(&mut written);
    encoder.rows(&source, &mut written, &mut Vec::new()).unwrap();
    let rows_end = written.len();
    encoder.trailer(&mut written);
    assert_eq!(decode(&binary, &written).unwrap(), shown_rows(&source));
    assert_eq!(decode_in_pieces(&binary, &written, 1000).unwrap(), shown_rows(&source));
    let failure = |bytes: &[u8]| {
        let error = binary.decode(bytes, LineEnd::Lf, true).unwrap_err().at("t", 0);
        format!("{} {error} ({})", error.state().0, error.report().context.as_deref().unwrap_or(""))
    };
    assert_eq!(failure(&written[..rows_end - 1]), "22P04 unexpected EOF in COPY data (COPY t, line 4000)");
    assert_eq!(failure(b"id,name\n"), "22P04 COPY file signature not recognized (COPY t, line 1)");
    written[rows_end + 1] = 3;
    assert_eq!(failure(&written), "22P04 invalid field size (COPY t, line 4001)");
    written[19 + 2 + 3] = 3;
    assert_eq!(&failure(&written)[..5], "22P04");
}

proptest! {
    /// What is written reads back, whole or in pieces.
    #[test]
    fn round_trip(
        rows in proptest::collection::vec(proptest::collection::vec(proptest::option::of("[ab,;\"'\\\\\t\n\r|N.é]{0,6}"), 3), 0..20),
        csv: bool, other: bool, step in 1usize..40,
    ) {
        let mut options = if csv { csv_options() } else { text_options() };
        if other {
            options = CopyOptions { delimiter: b';', quote: b'\'', escape: b'\\', header: Header::Match, ..options };
            // In text a value that is the null text reads back as NULL; in csv it is quoted.
            options.null = if csv { "NN".into() } else { "none".into() };
        }
        let decoder = decoder(&["text", "text", "text"], options.clone());
        let columns = (0..3).map(|column| {
            let array: arrow::array::StringViewArray = rows.iter().map(|row| row[column].clone()).collect();
            Arc::new(array) as arrow::array::ArrayRef
        });
        let batch = RecordBatch::try_new(Arc::clone(decoder.schema()), columns.collect()).unwrap();
        let encoder = Encoder::new(decoder.schema(), options, Style::default()).unwrap();
        let mut written = Vec::new();
        encoder.header(&mut written);
        encoder.rows(&batch, &mut written, &mut Vec::new()).unwrap();
        let expected = shown_rows(&batch);
        prop_assert_eq!(&decode(&decoder, &written).unwrap(), &expected, "{}", String::from_utf8_lossy(&written));
        prop_assert_eq!(&decode_in_pieces(&decoder, &written, step).unwrap(), &expected);
    }

    /// Any bytes decode or are refused, and the pieces agree with the whole.
    #[test]
    fn no_input_panics(input in "[a,\"\\\\\t\n\rNx.]{0,40}", csv: bool, step in 1usize..10) {
        let decoder = decoder(&["text", "text"], if csv { csv_options() } else { text_options() });
        let whole = decode(&decoder, input.as_bytes());
        let pieces = decode_in_pieces(&decoder, input.as_bytes(), step);
        // `\.` and line ends that differ end a stream, not a piece.
        if !input.contains("\\.") && !input.contains('\r') {
            prop_assert_eq!(whole, pieces);
        }
    }
}
