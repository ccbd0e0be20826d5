//! Events as JSON: what they become, and what is refused.

use arrow::util::pretty::pretty_format_batches;

use super::*;

fn decoder(columns: &[(&str, &str)]) -> JsonDecoder {
    let target = |(name, sql_type): &(&str, &str)| Target { name: (*name).to_owned(), sql_type: SqlType::parse(sql_type).unwrap() };
    JsonDecoder::new("events", columns.iter().map(target).collect(), vec![0], Zone::UTC)
}

fn columns() -> JsonDecoder {
    decoder(&[
        ("id", "integer"),
        ("name", "text"),
        ("price", "numeric(8,2)"),
        ("at", "timestamp with time zone"),
        ("tags", "text[]"),
        ("page.url", "text"),
        ("ok", "boolean"),
        ("properties", "jsonb"),
    ])
}

/// The rows as text, and the refused events with position and SQLSTATE.
fn decode(decoder: &JsonDecoder, text: &str) -> (Vec<Vec<String>>, Vec<(usize, &'static str)>) {
    let rows = decoder.decode(text, 10_000).unwrap();
    let shown = pretty_format_batches(std::slice::from_ref(&rows.batch)).unwrap().to_string();
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    let found: Vec<Vec<String>> = shown.lines().filter(|line| line.starts_with("| ")).skip(1).map(cells).collect();
    assert_eq!((rows.positions.len(), rows.spans.len()), (rows.batch.num_rows(), rows.batch.num_rows()));
    (found, rows.refused.iter().map(|refused| (refused.position, refused.error.state().0)).collect())
}

#[test]
fn values_by_name_in_every_form() {
    let text = r#" [ {"id": 1, "name": "a \"b\" \u00e4", "price": 12.5, "at": "2024-01-02T03:04:05Z", "tags": ["x", null, "y,\"z"],
        "page": {"url": "/p", "title": "T"}, "ok": true, "extra": [1, {"a": 2}], "properties": {"b": 1, "extra": 2}},
        {"name": null, "id": 3.0, "price": "7", "page.url": "/q"} , {}]"#;
    let (rows, refused) = decode(&columns(), text);
    assert!(refused.is_empty());
    assert_eq!(rows.len(), 3);
    let first = ["1", "a \"b\" ä", "12.50", "2024-01-02T03:04:05Z", "[x, , y,\"z]", "/p", "true"];
    assert_eq!(rows[0][..7], first);
    assert_eq!(rows[0][7], r#"{"b": 1, "page": {"title": "T"}, "extra": 2}"#);
    assert_eq!(rows[0][8], "true");
    assert_eq!(rows[1][..8], ["3", "", "7.00", "", "", "/q", "", ""]);
    assert_eq!(rows[2][0], "");
    assert_eq!(rows[2][8], "false");
}

#[test]
fn objects_may_follow_each_other() {
    let decoder = columns();
    assert_eq!(decode(&decoder, "{\"id\":1}\n{\"id\":2}\r\n\n{\"id\":3}\n").0.len(), 3);
    assert_eq!(decode(&decoder, "[]").0.len(), 0);
    let many: String = (0..5_000).map(|id| format!("{{\"id\":{id},\"name\":\"n{id}\"}}\n")).collect();
    let (rows, _) = decode(&decoder, &many);
    assert_eq!((rows.len(), rows[4_999][0].as_str(), rows[4_999][1].as_str()), (5_000, "4999", "n4999"));
}

#[test]
fn an_event_that_does_not_fit_is_refused_alone() {
    let text = r#"{"id":1} {"id":"x","price":"y"} 5 {"id":2.5} {"price":12345678.9} {"name":"\u0000"} {"tags":[[1]]} {"properties":"s"}
        {"at":17} {"id":4} "#;
    let (rows, refused) = decode(&columns(), text);
    assert_eq!(rows.iter().map(|row| row[0].as_str()).collect::<Vec<_>>(), ["1", "", "4"]);
    assert_eq!(rows[1][7], "\"s\"");
    assert_eq!(refused, [(1, "22P02"), (2, "22023"), (3, "22P02"), (4, "22003"), (5, "22P05"), (6, "0A000"), (8, "22007")]);
    let error = columns().decode(r#"{"id":"x"}"#, 100).unwrap().refused.remove(0).error;
    assert_eq!(error.report().context.as_deref(), Some("column id: \"x\""));
    let (rows, refused) = decode(&decoder(&[("id", "integer")]), r#"[{"id":1,"other":2},{"id":2}]"#);
    assert_eq!((rows.len(), refused), (1, vec![(0, "42703")]));
    // Many of them cost no more than as many good ones.
    let many: String = (0..3_000).map(|id| format!("{{\"id\":\"{}\"}}", if id % 2 == 0 { "x" } else { "7" })).collect();
    let (rows, refused) = decode(&columns(), &many);
    assert_eq!((rows.len(), refused.len(), refused[1].0), (1_500, 1_500, 2));
}

#[test]
fn what_is_not_json_is_refused_with_its_place() {
    for (text, place) in [
        ("", None),
        ("  \n", None),
        ("{\"id\":1}\n{\"other\":\n {\"id\":}}", Some("event 1, line 3, character 8")),
        ("{\n\"other\":[\n{\"id\":1},\n{\"id\":}]}", Some("event 0, line 4, character 7")),
        ("[{\"id\":1},]", Some("event 1, line 1, character 11")),
        ("[{\"id\":1} {\"id\":1}]", Some("event 0, line 1, character 11")),
        ("{\"id\":1},{\"id\":1}", Some("event 1, line 1, character 9")),
        ("{\"ä\":1 \"id\":1}", Some("event 0, line 1, character 8")),
        ("{\"name\":\"open", Some("event 0, line 1, character 9")),
        ("{\"other\":{\"a\":[1,2}}", Some("event 0, line 1, character 19")),
        ("[] x", Some("event 0, line 1, character 4")),
        ("nonsense", Some("event 0, line 1, character 1")),
    ] {
        let error = columns().decode(text, 100).unwrap_err();
        assert_eq!(error.state().0, "22P02", "{text}");
        assert_eq!(error.report().context.as_deref().map(|context| context.trim_start_matches("JSON data, ")), place, "{text}");
    }
    let deep = format!("{{\"other\":{}1{}}}", "[".repeat(1_000), "]".repeat(1_000));
    assert_eq!(columns().decode(&deep, 100).unwrap_err().state().0, "54000");
}

#[test]
fn a_broken_line_is_refused_alone() {
    let text =
        "{\"id\":1}\r\n{\"id\":2\n\n  {\"id\":3} {\"id\":4}\n{\"id\":5} nonsense {\"id\":6}\n{\"name\":\"open}\n{\"other\":[{\n{\"id\":7}";
    let (rows, refused) = decode(&columns(), text);
    assert_eq!(rows.iter().map(|row| row[0].as_str()).collect::<Vec<_>>(), ["1", "3", "4", "5", "7"]);
    assert_eq!(refused, [(1, "22P02"), (5, "22P02"), (6, "22P02"), (7, "22P02")]);
    let refused = columns().decode(text, 100).unwrap().refused;
    assert_eq!(&text[refused[1].span.clone()], "nonsense {\"id\":6}");
    assert_eq!(refused[0].error.report().context.as_deref(), Some("JSON data, event 1, line 2, character 8"));
    // Each costs its own line.
    let many = "{\"id\":1}\n".repeat(5_000) + &"{\"other\":[\n".repeat(5_000);
    assert_eq!(columns().decode(&many, 5_000).unwrap().refused.len(), 5_000);
    assert_eq!(columns().decode(&many, 100).unwrap_err().state().0, "22000");
}

#[test]
fn an_input_with_too_many_refused_events_goes_no_further() {
    let text = "[".to_owned() + &vec!["1"; 1_000].join(",") + ", not json";
    let error = columns().decode(&text, 100).unwrap_err();
    assert_eq!((error.state().0, error.to_string().as_str()), ("22000", "more than 100 events of the request break a rule"));
    assert_eq!(columns().decode(r#"[1, 2, {"id": 1}]"#, 2).unwrap().refused.len(), 2);
}

#[test]
fn messages_are_read_one_by_one() {
    let decoder = decoder(&[("id", "bigint"), ("properties", "jsonb")]);
    let messages = [
        "{\"id\":1,\"a\":{\"b\":[1]}}",
        "{\"id\":",
        "2}",
        "",
        "[]",
        " {\"id\":3} ",
        "{\"id\":4}{\"id\":5}",
        "{\"id\":\"x\"}",
        "{\"id\":6}",
        "nul",
    ];
    let mut text = String::new();
    let spans: Vec<_> = messages
        .iter()
        .map(|message| {
            let start = text.len();
            text.push_str(message);
            let end = text.len();
            text.push('\n');
            start..end
        })
        .collect();
    let rows = decoder.decode_messages(&text, &spans).unwrap();
    assert_eq!(rows.positions, [0, 5, 8]);
    let refused: Vec<_> = rows.refused.iter().map(|refused| (refused.position, refused.error.state().0)).collect();
    let expected = [(1, "22P02"), (2, "22P02"), (3, "22P02"), (4, "22023"), (6, "22P02"), (7, "22P02"), (9, "22P02")];
    assert_eq!(refused, expected);
    assert_eq!(rows.refused[1].error.report().context.as_deref(), Some("JSON data, character 2"));
    assert_eq!(&text[rows.spans[1].clone()], " {\"id\":3} ");
}
