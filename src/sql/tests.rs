//! What parses to what, and what is refused how.

use sqlparser::ast;

use super::*;
use crate::error::Error;
use crate::error::SqlState;
use crate::sql::statement::{CopyDirection, CopyFormat, Header, Name};
use crate::types::SqlType;

fn one(text: &str) -> Statement {
    let parsed = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(parsed.len(), 1, "{text}");
    (*parsed[0].statement).clone()
}

#[track_caller]
fn refused(text: &str, state: SqlState, message: &str) -> Error {
    let error = parse(text).map(|statements| panic!("{text} gave {statements:?}")).unwrap_err();
    assert_eq!((error.state(), error.to_string().as_str()), (state, message), "{text}");
    error
}

#[test]
fn named_arguments_keep_the_whole_expression() {
    let Statement::Query(query) = one("SELECT * FROM FUNNEL(events, f := a = 1 AND b = 2, window := INTERVAL '30' MINUTE)") else {
        panic!("not a query")
    };
    let ast::SetExpr::Select(select) = query.body.as_ref() else { panic!("not a SELECT") };
    let ast::TableFactor::Table { args: Some(arguments), .. } = &select.from[0].relation else { panic!("not a call: {:?}", select.from) };
    let named: Vec<String> = arguments
        .args
        .iter()
        .filter_map(|argument| match argument {
            ast::FunctionArg::Named { name, arg, operator: ast::FunctionArgOperator::Assignment } => Some(format!("{name} <- {arg}")),
            _ => None,
        })
        .collect();
    assert_eq!(named, ["f <- a = 1 AND b = 2", "window <- INTERVAL '30' MINUTE"]);
}

#[test]
fn statements_are_split_with_their_places() {
    let parsed = parse("select ';' ; /* ; */ insert into t values (1, 'a;b'); -- end;\n begin").unwrap();
    let texts: Vec<(&str, u32)> = parsed.iter().map(|parsed| (&*parsed.text, parsed.offset)).collect();
    assert_eq!(texts[0], ("select ';'", 0));
    assert!(matches!(&*parsed[2].statement, Statement::Begin { read_only: false }), "{parsed:?}");
    assert!(parse("").unwrap().is_empty());
    assert!(parse(" ;; ").unwrap().is_empty());
}

#[test]
fn an_event_table() {
    let Statement::CreateTable(table) =
        one("CREATE TABLE IF NOT EXISTS Events (id uuid NOT NULL, kind text CHECK (kind <> ''), at timestamptz NOT NULL, \
         revenue numeric(12,2) DEFAULT 0, day date GENERATED ALWAYS AS (at::date) STORED, CHECK (revenue >= 0), \
         WATERMARK FOR at AS at - INTERVAL '5 minutes') WITH (partition_by = 'kind', retention = '400 days')")
    else {
        panic!("not a table")
    };
    assert_eq!(table.name, Name { schema: None, name: "events".to_owned() });
    let columns: Vec<_> = table.columns.iter().map(|column| (column.name.as_str(), column.sql_type.clone(), column.not_null)).collect();
    assert_eq!(columns[0], ("id", SqlType::Uuid, true));
    assert_eq!(columns[3], ("revenue", SqlType::Numeric(Some((12, 2))), false));
    assert!(table.columns[4].generated.is_some() && table.columns[3].default.as_deref() == Some("0"));
    assert_eq!(table.checks, [(None, "revenue >= 0".to_owned())]);
    assert_eq!(table.watermark.as_ref().map(|(column, _)| column.as_str()), Some("at"));
    assert_eq!(table.options, [("partition_by".to_owned(), "kind".to_owned()), ("retention".to_owned(), "400 days".to_owned())]);
}

#[test]
fn a_view_and_its_text() {
    let Statement::CreateView(view) = one(
        "CREATE MATERIALIZED VIEW v WITH (ttl = '7 days') AS SELECT s, TUMBLE(t, INTERVAL '1' MINUTE) AS window FROM e GROUP BY s, window WITH NO DATA",
    ) else {
        panic!("not a view")
    };
    assert!(!view.with_data && !view.if_not_exists);
    let text = view.query.to_string();
    assert_eq!(parse_query(&text).unwrap().to_string(), text);
}

#[test]
fn copy_in_both_syntaxes() {
    for text in
        ["COPY t (a, b) FROM STDIN WITH (FORMAT csv, HEADER, DELIMITER ';')", "copy t (a, b) from stdin with delimiter ';' csv header"]
    {
        let Statement::Copy(copy) = one(text) else { panic!("{text}") };
        assert_eq!(
            (copy.direction, copy.options.format, copy.options.delimiter),
            (CopyDirection::FromStdin, CopyFormat::Csv, b';'),
            "{text}"
        );
        assert_eq!((copy.options.header, copy.columns), (Header::On, vec!["a".to_owned(), "b".to_owned()]), "{text}");
    }
    assert!(matches!(one("COPY t TO '/etc/passwd'"), Statement::Copy(copy) if copy.direction == CopyDirection::ServerFile));
    assert!(matches!(one("COPY t FROM PROGRAM 'id'"), Statement::Copy(copy) if copy.direction == CopyDirection::ServerFile));
}

#[test]
fn syntax_errors_name_the_place() {
    assert_eq!(refused("SELECT 1 +", SqlState::SYNTAX_ERROR, "syntax error at end of input").report().position, Some(11));
    let error = refused("selec 1", SqlState::SYNTAX_ERROR, "syntax error at or near \"selec\"");
    assert_eq!(error.report().position, Some(1));
    let listing = "CREATE MATERIALIZED VIEW v AS SELECT a FROM e WHERE k = 'purchase', GROUP BY a";
    assert!(parse(listing).unwrap_err().report().hint.is_some(), "the paper's stray comma gets a hint");
}

#[test]
fn what_is_not_listed_cannot_run() {
    for text in [
        "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '/'",
        "UPDATE t SET a = 1",
        "DELETE FROM t",
        "GRANT ALL ON t TO x",
        "CREATE FUNCTION f() RETURNS int AS 'select 1' LANGUAGE sql",
        "LOAD 'x'",
    ] {
        let error = parse(text).map(|statements| panic!("{text} gave {statements:?}")).unwrap_err();
        assert!([SqlState::FEATURE_NOT_SUPPORTED, SqlState::SYNTAX_ERROR].contains(&error.state()), "{text}: {error:?}");
    }
}

#[test]
fn depth_is_limited_before_anything_recurses() {
    let nested = format!("SELECT {}1{}", "(".repeat(100_000), ")".repeat(100_000));
    assert_eq!(parse(&nested).unwrap_err().state(), SqlState::STATEMENT_TOO_COMPLEX);
    let chain = format!("SELECT 1{}", " + 1".repeat(50_000));
    assert_eq!(parse(&chain).unwrap_err().state(), SqlState::STATEMENT_TOO_COMPLEX);
}
