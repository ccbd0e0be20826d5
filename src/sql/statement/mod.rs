//! The statements that Verus knows.
//!
//! *Place*: made by `sql::parse`, executed by `command`, one file each there. Each submodule reads one statement or a few
//! that belong together; this file has what they say, and the first keyword's choice.

mod alert;
mod copy;
mod create_table;
mod create_view;
mod cursor;
mod delete;
mod drop;
mod explain;
mod ingest_token;
mod insert;
mod listen;
mod prepare;
mod set;
mod source;
mod subscribe;
mod transaction;
mod update;

use std::fmt;
use std::ops::Range;

use sqlparser::ast;
use sqlparser::tokenizer::Token;

use super::reader::{RESERVED, Reader};
use crate::error::{Error, Result};
use crate::types::SqlType;
pub use crate::types::copy::{CopyFormat, CopyOptions, Header};
pub use alert::{AlertStatement, CreateAlert};
pub use source::SourceStatement;

/// A statement. Names are already folded to lower case unless quoted. What is not here is refused.
#[derive(Clone, Debug)]
pub enum Statement {
    /// SELECT, VALUES, WITH, TABLE.
    Query(Box<ast::Query>),
    /// `EXPLAIN [ANALYZE] [VERBOSE] [(options)] statement`.
    Explain(Explain),
    /// `INSERT INTO t [(columns)] VALUES (literals), ...`, recognised without a syntax tree.
    InsertLiterals(InsertLiterals),
    /// Any other INSERT.
    Insert(Insert),
    /// UPDATE.
    Update(Update),
    /// DELETE.
    Delete(Delete),
    /// COPY in every direction.
    Copy(Copy),
    /// `SUBSCRIBE TO v`.
    Subscribe(Subscribe),
    /// CREATE TABLE.
    CreateTable(CreateTable),
    /// CREATE MATERIALIZED VIEW.
    CreateView(CreateView),
    /// DROP TABLE and DROP MATERIALIZED VIEW.
    Drop(Drop),
    /// `CREATE INGEST TOKEN name [FOR STORE 'store']`.
    CreateIngestToken {
        /// The token's name.
        name: String,
        /// The only store whose events it may send.
        store: Option<String>,
    },
    /// `DROP INGEST TOKEN [IF EXISTS] name`.
    DropIngestToken {
        /// The token's name.
        name: String,
        /// IF EXISTS.
        if_exists: bool,
    },
    /// `TRUNCATE [TABLE] name [, ...]`.
    Truncate(Vec<Name>),
    /// `ALTER TABLE t ADD [COLUMN] [IF NOT EXISTS] column [, ...]`.
    AlterTable(AlterTable),
    /// `ALTER MATERIALIZED VIEW v SET (ttl = ...)`.
    AlterView {
        /// The view.
        name: Name,
        /// Key and value as written.
        options: Vec<(String, String)>,
    },
    /// `REFRESH MATERIALIZED VIEW v`.
    RefreshView(Name),
    /// `CHECK MATERIALIZED VIEW v`.
    CheckView(Name),
    /// Alerts and their channels.
    Alert(AlertStatement),
    /// Sources of events.
    Source(SourceStatement),
    /// BEGIN, START TRANSACTION.
    Begin {
        /// Whether it was written START TRANSACTION, which its tag repeats.
        start: bool,
        /// The isolation level that was asked for, in lower case.
        isolation: Option<String>,
        /// READ ONLY or READ WRITE.
        read_only: Option<bool>,
    },
    /// COMMIT, END.
    Commit,
    /// ROLLBACK, ABORT.
    Rollback,
    /// `SAVEPOINT name`.
    Savepoint(String),
    /// `RELEASE [SAVEPOINT] name`.
    Release(String),
    /// `ROLLBACK TO [SAVEPOINT] name`.
    RollbackTo(String),
    /// `SET [SESSION | LOCAL] name {= | TO} value | DEFAULT`, SET TIME ZONE, SET TRANSACTION and SESSION CHARACTERISTICS.
    Set {
        /// Lower case, dots kept (`verus.route`).
        name: String,
        /// The value, lists joined with ", "; none for DEFAULT.
        value: Option<String>,
        /// SET LOCAL: until the end of the transaction.
        local: bool,
    },
    /// `SHOW name | ALL`.
    Show(String),
    /// `SHOW CREATE TABLE name`, `SHOW CREATE MATERIALIZED VIEW name`.
    ShowCreate(Name),
    /// `RESET name | ALL`.
    Reset(String),
    /// DISCARD ALL, PLANS, SEQUENCES, TEMP.
    Discard(String),
    /// `PREPARE name [(types)] AS statement`.
    Prepare {
        /// Name of the prepared statement.
        name: String,
        /// Declared parameter types.
        types: Vec<SqlType>,
        /// Text of the statement.
        text: String,
    },
    /// `EXECUTE name [(arguments)]`.
    Execute {
        /// Name of the prepared statement.
        name: String,
        /// Argument expressions.
        arguments: Vec<ast::Expr>,
    },
    /// `DEALLOCATE [PREPARE] name | ALL`.
    Deallocate(Option<String>),
    /// `DECLARE name [BINARY] [NO SCROLL] CURSOR [WITH | WITHOUT HOLD] FOR query`.
    Declare {
        /// Cursor name.
        name: String,
        /// Text of the query.
        text: String,
        /// WITH HOLD.
        hold: bool,
    },
    /// `FETCH [count | ALL | NEXT | FORWARD n] [FROM | IN] name`.
    Fetch {
        /// Cursor name.
        name: String,
        /// Rows, none for ALL.
        count: Option<u64>,
    },
    /// `CLOSE name | ALL`.
    Close(Option<String>),
    /// `LISTEN channel`.
    Listen(String),
    /// `UNLISTEN channel | *`; none for all.
    Unlisten(Option<String>),
    /// `NOTIFY channel [, 'payload']`.
    Notify {
        /// The channel.
        channel: String,
        /// The text, perhaps empty.
        payload: String,
    },
    /// CHECKPOINT, ANALYZE, VACUUM: accepted where harmless, by command tag.
    NoOperation(&'static str),
}

/// A possibly schema-qualified name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name {
    /// `public`, `verus`, `pg_catalog`; none when not written.
    pub schema: Option<String>,
    /// The object.
    pub name: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(schema) = &self.schema {
            write!(f, "{}.", quote_identifier(schema))?;
        }
        f.write_str(&quote_identifier(&self.name))
    }
}

/// A name as it has to be written: in double quotes where it would be folded or is reserved.
pub fn quote_identifier(name: &str) -> String {
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        && name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit())
        && RESERVED.binary_search(&name).is_err();
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// Statements of PostgreSQL, or to come, that are refused by name.
const REFUSED: [&str; 16] = [
    "CALL", "CLUSTER", "COMMENT", "DO", "GRANT", "IMPORT", "LOAD", "LOCK", "MERGE", "MOVE", "REASSIGN", "REINDEX", "REPLACE", "REVOKE",
    "SECURITY", "USE",
];

/// Reads one statement. The caller checks that nothing follows.
pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Statement> {
    if reader.sees_query() {
        return Ok(Statement::Query(reader.query()?));
    }
    let Some(word) = reader.word(0) else { return Err(reader.unexpected()) };
    match word.as_str() {
        "EXPLAIN" => explain::parse(reader),
        "INSERT" => insert::parse(reader),
        "UPDATE" => update::parse(reader),
        "DELETE" => delete::parse(reader),
        "COPY" => copy::parse(reader),
        "SUBSCRIBE" => subscribe::parse(reader),
        "CREATE" => create(reader),
        "DROP" if reader.sees(&["DROP", "INGEST"]) => ingest_token::parse_drop(reader),
        "DROP" | "TRUNCATE" | "ALTER" => drop::parse(reader),
        "REFRESH" => create_view::parse_refresh(reader),
        "CHECK" => create_view::parse_check(reader),
        "BEGIN" | "START" | "COMMIT" | "END" | "ROLLBACK" | "ABORT" | "SAVEPOINT" | "RELEASE" => transaction::parse(reader),
        "SET" | "SHOW" | "RESET" | "DISCARD" => set::parse(reader),
        "TEST" | "SILENCE" | "BACKTEST" => alert::parse(reader),
        "PREPARE" | "EXECUTE" | "DEALLOCATE" => prepare::parse(reader),
        "DECLARE" | "FETCH" | "CLOSE" => cursor::parse(reader),
        "LISTEN" | "UNLISTEN" | "NOTIFY" => listen::parse(reader),
        "CHECKPOINT" | "ANALYZE" | "ANALYSE" | "VACUUM" => no_operation(reader, &word),
        refused if REFUSED.binary_search(&refused).is_ok() => Err(Error::unsupported(format!("{refused} is not supported"))),
        _ => Err(reader.unexpected()),
    }
}

/// CREATE what?
fn create(reader: &mut Reader<'_>) -> Result<Statement> {
    if reader.sees(&["CREATE", "TABLE"]) {
        return create_table::parse(reader);
    }
    if reader.sees(&["CREATE", "MATERIALIZED"]) {
        return create_view::parse(reader);
    }
    if reader.sees(&["CREATE", "INGEST"]) {
        return ingest_token::parse_create(reader);
    }
    if reader.sees(&["CREATE", "SOURCE"]) {
        return source::create(reader);
    }
    if reader.sees(&["CREATE", "ALERT"]) || reader.sees(&["CREATE", "NOTIFICATION", "CHANNEL"]) {
        return alert::create(reader);
    }
    let known = [
        "AGGREGATE",
        "CAST",
        "COLLATION",
        "DATABASE",
        "DOMAIN",
        "EXTENSION",
        "EXTERNAL",
        "FOREIGN",
        "FUNCTION",
        "GLOBAL",
        "INDEX",
        "LOCAL",
        "OR",
        "POLICY",
        "PROCEDURE",
        "PUBLICATION",
        "ROLE",
        "RULE",
        "SCHEMA",
        "SEQUENCE",
        "SERVER",
        "STATISTICS",
        "TEMP",
        "TEMPORARY",
        "TRIGGER",
        "TYPE",
        "UNIQUE",
        "UNLOGGED",
        "USER",
        "VIEW",
    ];
    refuse_known(reader, "CREATE", &known)
}

/// 0A000 when the word after `verb` is one of `known`, else a syntax error there.
fn refuse_known(reader: &mut Reader<'_>, verb: &str, known: &[&str]) -> Result<Statement> {
    reader.expect(&[verb])?;
    match reader.word(0) {
        Some(word) if known.contains(&word.as_str()) => Err(Error::unsupported(format!("{verb} {word} is not supported"))),
        _ => Err(reader.unexpected()),
    }
}

/// CHECKPOINT, `ANALYZE ...`, `VACUUM ...`: nothing to do here, so accepted.
fn no_operation(reader: &mut Reader<'_>, word: &str) -> Result<Statement> {
    reader.expect(&[word])?;
    let tag = match word {
        "CHECKPOINT" => "CHECKPOINT",
        word => {
            if reader.sees_token(&Token::LParen) {
                reader.options()?;
            }
            while reader.accept_one(&["FULL", "FREEZE", "VERBOSE", "ANALYZE", "ANALYSE"]).is_some() {}
            if !reader.at_end() {
                reader.separated(|reader| Ok((reader.name()?, reader.column_list()?)))?;
            }
            if word == "VACUUM" { "VACUUM" } else { "ANALYZE" }
        }
    };
    Ok(Statement::NoOperation(tag))
}

/// See [`Statement::Explain`].
#[derive(Clone, Debug)]
pub struct Explain {
    /// Runs the statement.
    pub analyze: bool,
    /// Shows logical plans too.
    pub verbose: bool,
    /// Shows the route alone.
    pub route: bool,
    /// What to explain.
    pub statement: Box<Statement>,
}

/// See [`Statement::InsertLiterals`].
#[derive(Clone, Debug)]
pub struct InsertLiterals {
    /// Target.
    pub table: Name,
    /// Column list, or empty for all in order.
    pub columns: Vec<String>,
    /// Byte range of the row list (from the first parenthesis on) in the statement's text.
    pub rows: Range<usize>,
    /// Values of each row, the same in all.
    pub width: usize,
}

/// See [`Statement::Insert`].
#[derive(Clone, Debug)]
pub struct Insert {
    /// Target.
    pub table: Name,
    /// Column list, or empty for all in order.
    pub columns: Vec<String>,
    /// VALUES or SELECT; none for DEFAULT VALUES.
    pub source: Option<Box<ast::Query>>,
    /// RETURNING items.
    pub returning: Option<Vec<ast::SelectItem>>,
    /// `AS alias` of the target, for ON CONFLICT and RETURNING.
    pub alias: Option<String>,
    /// ON CONFLICT, for plain tables.
    pub on_conflict: Option<OnConflict>,
}

/// `ON CONFLICT [(columns) | ON CONSTRAINT name] {DO NOTHING | DO UPDATE SET ... [WHERE ...]}`.
#[derive(Clone, Debug)]
pub struct OnConflict {
    /// Which constraint it is about; none for all of them.
    pub target: Option<ConflictTarget>,
    /// DO UPDATE; none for DO NOTHING.
    pub update: Option<ConflictUpdate>,
}

/// See [`OnConflict`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConflictTarget {
    /// The constraint over exactly these columns.
    Columns(Vec<String>),
    /// The constraint of this name.
    Constraint(String),
}

/// See [`OnConflict`].
#[derive(Clone, Debug)]
pub struct ConflictUpdate {
    /// What SET says.
    pub assignments: Vec<Assignment>,
    /// WHERE.
    pub selection: Option<ast::Expr>,
}

/// `column = value`, one of SET's.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// Column of the target.
    pub column: String,
    /// The value; none for DEFAULT.
    pub value: Option<ast::Expr>,
}

/// See [`Statement::Update`].
#[derive(Clone, Debug)]
pub struct Update {
    /// Target.
    pub table: Name,
    /// `AS alias`.
    pub alias: Option<String>,
    /// What SET says.
    pub assignments: Vec<Assignment>,
    /// FROM, or empty.
    pub from: Vec<ast::TableWithJoins>,
    /// WHERE.
    pub selection: Option<ast::Expr>,
    /// RETURNING items.
    pub returning: Option<Vec<ast::SelectItem>>,
}

/// See [`Statement::Delete`].
#[derive(Clone, Debug)]
pub struct Delete {
    /// Target.
    pub table: Name,
    /// `AS alias`.
    pub alias: Option<String>,
    /// USING, or empty.
    pub using: Vec<ast::TableWithJoins>,
    /// WHERE.
    pub selection: Option<ast::Expr>,
    /// RETURNING items.
    pub returning: Option<Vec<ast::SelectItem>>,
}

/// See [`Statement::Copy`].
#[derive(Clone, Debug)]
pub struct Copy {
    /// A table or a query.
    pub source: CopySource,
    /// Column list, or empty.
    pub columns: Vec<String>,
    /// FROM or TO.
    pub direction: CopyDirection,
    /// The format and its options.
    pub options: CopyOptions,
}

/// What is copied.
#[derive(Clone, Debug)]
pub enum CopySource {
    /// A table or view.
    Table(Name),
    /// `COPY (query) TO`.
    Query(Box<ast::Query>),
    /// `COPY (SUBSCRIBE ...) TO`.
    Subscribe(Subscribe),
}

/// See [`Statement::Subscribe`].
#[derive(Clone, Debug)]
pub struct Subscribe {
    /// The view.
    pub view: Name,
    /// WITH options as written.
    pub options: Vec<(String, String)>,
    /// `SELECT * FROM view [WHERE ...]`.
    pub query: Box<ast::Query>,
}

/// Where from or to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyDirection {
    /// FROM STDIN.
    FromStdin,
    /// TO STDOUT.
    ToStdout,
    /// From or to a file or program of the server: refused (42501).
    ServerFile,
}

/// See [`Statement::CreateTable`].
#[derive(Clone, Debug)]
pub struct CreateTable {
    /// New name.
    pub name: Name,
    /// IF NOT EXISTS.
    pub if_not_exists: bool,
    /// In order.
    pub columns: Vec<ColumnDefinition>,
    /// Table constraints: (name or none, expression text).
    pub checks: Vec<(Option<String>, String)>,
    /// PRIMARY KEY and UNIQUE constraints.
    pub unique: Vec<UniqueDefinition>,
    /// `WATERMARK FOR column AS expression`: column name and the expression.
    pub watermark: Option<(String, ast::Expr)>,
    /// WITH options as written: key and value.
    pub options: Vec<(String, String)>,
}

/// A PRIMARY KEY or UNIQUE constraint of CREATE TABLE, the table's or a column's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UniqueDefinition {
    /// CONSTRAINT name, or none.
    pub name: Option<String>,
    /// Its columns.
    pub columns: Vec<String>,
    /// PRIMARY KEY.
    pub primary: bool,
}

/// A column of CREATE TABLE or ADD COLUMN.
#[derive(Clone, Debug)]
pub struct ColumnDefinition {
    /// Its name.
    pub name: String,
    /// Its type.
    pub sql_type: SqlType,
    /// NOT NULL.
    pub not_null: bool,
    /// DEFAULT expression text.
    pub default: Option<String>,
    /// GENERATED ALWAYS AS (...) STORED expression text.
    pub generated: Option<String>,
    /// CHECK constraints: (name or none, expression text).
    pub checks: Vec<(Option<String>, String)>,
}

/// See [`Statement::CreateView`].
#[derive(Clone, Debug)]
pub struct CreateView {
    /// New name.
    pub name: Name,
    /// IF NOT EXISTS.
    pub if_not_exists: bool,
    /// Column names, or empty.
    pub columns: Vec<String>,
    /// WITH options as written.
    pub options: Vec<(String, String)>,
    /// The defining query.
    pub query: Box<ast::Query>,
    /// False for WITH NO DATA.
    pub with_data: bool,
}

/// See [`Statement::Drop`].
#[derive(Clone, Debug)]
pub struct Drop {
    /// True for MATERIALIZED VIEW.
    pub view: bool,
    /// IF EXISTS.
    pub if_exists: bool,
    /// What to drop.
    pub names: Vec<Name>,
    /// CASCADE.
    pub cascade: bool,
}

/// See [`Statement::AlterTable`].
#[derive(Clone, Debug)]
pub struct AlterTable {
    /// The table.
    pub name: Name,
    /// In order.
    pub columns: Vec<AddColumn>,
    /// New defaults of columns, none for DROP DEFAULT.
    pub defaults: Vec<(String, Option<String>)>,
}

/// An action of ALTER TABLE.
#[derive(Clone, Debug)]
pub struct AddColumn {
    /// IF NOT EXISTS.
    pub if_not_exists: bool,
    /// The new column.
    pub column: ColumnDefinition,
}
