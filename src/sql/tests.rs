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
    assert!(matches!(&*parsed[2].statement, Statement::Begin { start: false, isolation: None, read_only: None }), "{parsed:?}");
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
        "MERGE INTO t USING s ON t.a = s.a WHEN MATCHED THEN DELETE",
        "INSTALL httpfs",
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
    for chain in
        [format!("SELECT 1{}", " + 1".repeat(2_100)), format!("SELECT {}a", "NOT ".repeat(300)), format!("SELECT {}1", "- ".repeat(300))]
    {
        assert_eq!(parse(&chain).unwrap_err().state(), SqlState::STATEMENT_TOO_COMPLEX);
    }
}

/// Shapes that recurse, backtrack or grow deep trees: each is answered, whatever the answer, and the tree can be printed,
/// compared and dropped on a worker's stack.
#[test]
fn no_shape_takes_the_process_or_the_evening() {
    let nested = |open: &str, core: &str, close: &str, depth: usize| format!("{}{core}{}", open.repeat(depth), close.repeat(depth));
    let mut texts = Vec::new();
    for core in ["1", "1 1 1", "case +", "interval"] {
        for (open, close) in [
            ("(", ")"),
            ("f(", ")"),
            ("(SELECT ", ")"),
            ("CASE WHEN ", " THEN 1 END"),
            ("CASE WHEN a THEN 1 ELSE ", " END"),
            ("ARRAY[", "]"),
            ("CAST(", " AS int)"),
            ("EXTRACT(year FROM ", ")"),
            ("POSITION(", " IN a)"),
            ("SUBSTRING(", " FROM 1)"),
            ("TRIM(BOTH ", " FROM a)"),
            ("CEIL(", ")"),
            ("EXISTS (SELECT 1 WHERE ", ")"),
            ("1 IN (SELECT ", ")"),
            ("INTERVAL (", ")"),
            ("NOT (", ")"),
            ("(case + ", ")"),
            ("(end + ", ")"),
            ("(1, ", ")"),
        ] {
            texts.push(format!("SELECT {}", nested(open, core, close, 90)));
        }
        for (open, close) in
            [("(", ")"), ("(SELECT * FROM ", ") x"), ("(t JOIN ", " ON true)"), ("LATERAL (SELECT * FROM ", ") x"), ("f(", ")")]
        {
            texts.push(format!("SELECT * FROM {}", nested(open, core, close, 90)));
            texts.push(format!("SELECT * FROM {}", nested(open, "t", close, 90)));
        }
    }
    for (operand, times) in [
        (" + 1", 1_900),
        (" OR a", 1_900),
        (" UNION ALL SELECT 1", 490),
        (" + where", 60_000),
        (" + a.on", 40_000),
        (" NOT LIKE where", 40_000),
        (" IS DISTINCT FROM a", 30_000),
        (" IS NULL", 60_000),
        (" BETWEEN 1 AND 2", 900),
        (" AT TIME ZONE 'x'", 1_900),
        ("::int", 60_000),
        ("::int[][]", 30_000),
        ("[1]", 50_000),
        (".b", 60_000),
        (" , date", 50_000),
    ] {
        texts.push(format!("SELECT (a){}", operand.repeat(times)));
    }
    for (prefix, times) in [("NOT ", 1_900), ("- ", 1_900), ("interval ", 1_900), ("interval ", 60_000), ("date ", 60_000), ("a.", 60_000)]
    {
        texts.push(format!("SELECT {}1", prefix.repeat(times)));
    }
    texts.push(format!("SELECT 1{}", format!("{} + or", " + and".repeat(1_000)).repeat(60)));
    texts.push(format!("SELECT a::{}", nested("array<", "int", ">", 900)));
    texts.push(format!("CREATE TABLE t (a int{})", "[]".repeat(50_000)));
    texts.push(format!("EXPLAIN {}", "EXPLAIN ".repeat(60_000)));
    texts.push(format!("PREPARE a AS {}SELECT 1", "PREPARE a AS ".repeat(40_000)));
    const STACK_BYTES: usize = 16 * 1024 * 1024;
    for text in texts {
        let begun = std::time::Instant::now();
        let shown = format!("{text:.70}");
        let worker = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            for parsed in parse(&text).unwrap_or_default() {
                if let Statement::Query(query) = &*parsed.statement {
                    assert!(query.clone() == *query && !query.to_string().is_empty());
                }
            }
        });
        worker.unwrap().join().unwrap_or_else(|_| panic!("{shown}"));
        assert!(begun.elapsed().as_secs() < 10, "{shown} took {:?}", begun.elapsed());
    }
}

/// What people and their tools write stays inside the limits.
#[test]
fn long_statements_of_everyday_are_accepted() {
    for text in [
        format!("SELECT * FROM t WHERE {} a = 1", "a.b = 1 AND c <> 'x' OR ".repeat(900)),
        format!("SELECT 1 WHERE a IN ({}1)", "1, ".repeat(50_000)),
        format!("SELECT 1{}", " + 1".repeat(200)),
        format!("SELECT 'a'{}", " || b".repeat(900)),
        format!("SELECT a{}", ", -a * (b + c) / NULLIF(d, 0)".repeat(1_000)),
        format!("SELECT CASE {} END", "WHEN a.b = 1 THEN 'x' ".repeat(400)),
        format!("SELECT * FROM t{}", " LEFT JOIN u AS v ON t.a = v.b".repeat(400)),
        format!("SELECT a{} FROM t", ", sum(b) FILTER (WHERE c = 'x' AND d IS NOT NULL) AS e".repeat(1_000)),
        format!("INSERT INTO t VALUES {}(now(), -1)", "(now() - interval '1 day', a + b), ".repeat(10_000)),
    ] {
        assert!(parse(&text).is_ok(), "{text:.70}: {:?}", parse(&text).err());
    }
}
