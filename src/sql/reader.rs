//! A statement's tokens, read by keyword; expressions, types and queries go to sqlparser.
//!
//! *Place*: made by `sql::parse` for each statement, passed to `sql::statement::*`.
//!
//! *Invariants*: (1) every error is 42601 in PostgreSQL's words with its place in the whole text; (2) no token is parsed
//! before [`super::depth`] has bounded the tree that can come of it.

use std::collections::HashSet;

use sqlparser::ast;
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};

use super::dialect::{Budget, VerusDialect};
use super::statement::{Name, Statement};
use super::{depth, query, tokens};
use crate::error::{Error, Result, SqlState};

static DIALECT: VerusDialect = VerusDialect;

/// PostgreSQL's reserved words: they are no names unless quoted. Sorted.
pub(super) const RESERVED: [&str; 77] = [
    "all",
    "analyse",
    "analyze",
    "and",
    "any",
    "array",
    "as",
    "asc",
    "asymmetric",
    "both",
    "case",
    "cast",
    "check",
    "collate",
    "column",
    "constraint",
    "create",
    "current_catalog",
    "current_date",
    "current_role",
    "current_time",
    "current_timestamp",
    "current_user",
    "default",
    "deferrable",
    "desc",
    "distinct",
    "do",
    "else",
    "end",
    "except",
    "false",
    "fetch",
    "for",
    "foreign",
    "from",
    "grant",
    "group",
    "having",
    "in",
    "initially",
    "intersect",
    "into",
    "lateral",
    "leading",
    "limit",
    "localtime",
    "localtimestamp",
    "not",
    "null",
    "offset",
    "on",
    "only",
    "or",
    "order",
    "placing",
    "primary",
    "references",
    "returning",
    "select",
    "session_user",
    "some",
    "symmetric",
    "table",
    "then",
    "to",
    "trailing",
    "true",
    "union",
    "unique",
    "user",
    "using",
    "variadic",
    "when",
    "where",
    "window",
    "with",
];

/// One statement under way. `text` is the statement's own.
pub(super) struct Reader<'a> {
    parser: Parser<'static>,
    budget: Budget,
    text: &'a str,
    offset: u32,
}

impl<'a> Reader<'a> {
    /// Tokenizes a statement that starts `offset` characters into the whole text.
    pub(super) fn new(text: &'a str, offset: u32) -> Result<Self> {
        let tokens = tokenize(text).map_err(|error| {
            let at = byte_at(text, error.location);
            Error::syntax(format!("syntax error at or near \"{}\"", &text[at..])).position(offset + super::position_of(text, at))
        })?;
        depth::check(&tokens)?;
        let budget = Budget::new(tokens.len());
        let parser = Parser::new(&DIALECT).with_recursion_limit(depth::RECURSION_MAX).with_tokens_with_locations(tokens);
        Ok(Self { parser, budget, text, offset })
    }

    /// The unquoted word `ahead` tokens from here, in upper case.
    pub(super) fn word(&self, ahead: usize) -> Option<String> {
        match &self.parser.peek_nth_token_ref(ahead).token {
            Token::Word(word) if word.quote_style.is_none() => Some(word.value.to_ascii_uppercase()),
            _ => None,
        }
    }

    /// Whether the next tokens are these unquoted words.
    pub(super) fn sees(&self, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(ahead, wanted)| match &self.parser.peek_nth_token_ref(ahead).token {
            Token::Word(word) => word.quote_style.is_none() && word.value.eq_ignore_ascii_case(wanted),
            _ => false,
        })
    }

    /// Takes these words when they come next.
    pub(super) fn accept(&mut self, words: &[&str]) -> bool {
        let found = self.sees(words);
        if found {
            words.iter().for_each(|_| self.parser.advance_token());
        }
        found
    }

    /// Takes one of these words when it comes next.
    pub(super) fn accept_one(&mut self, words: &[&'static str]) -> Option<&'static str> {
        words.iter().copied().find(|word| self.accept(&[word]))
    }

    /// Takes these words or fails at the first that differs.
    pub(super) fn expect(&mut self, words: &[&str]) -> Result<()> {
        words.iter().try_for_each(|word| if self.accept(&[word]) { Ok(()) } else { Err(self.unexpected()) })
    }

    /// Whether the next token is this one.
    pub(super) fn sees_token(&self, token: &Token) -> bool {
        self.parser.peek_token_ref().token == *token
    }

    /// Takes a punctuation token when it comes next.
    pub(super) fn accept_token(&mut self, token: &Token) -> bool {
        self.parser.consume_token(token)
    }

    /// Takes a punctuation token or fails.
    pub(super) fn expect_token(&mut self, token: &Token) -> Result<()> {
        if self.accept_token(token) { Ok(()) } else { Err(self.unexpected()) }
    }

    /// Whether all tokens are taken.
    pub(super) fn at_end(&self) -> bool {
        self.sees_token(&Token::EOF)
    }

    /// Fails unless all tokens are taken.
    pub(super) fn finish(&self) -> Result<()> {
        if self.at_end() { Ok(()) } else { Err(self.unexpected()) }
    }

    /// A name that is not a reserved word, folded.
    pub(super) fn identifier(&mut self) -> Result<String> {
        if self.sees_reserved() {
            return Err(self.unexpected());
        }
        self.label()
    }

    /// Any name, reserved or not, folded.
    pub(super) fn label(&mut self) -> Result<String> {
        let Token::Word(word) = &self.parser.peek_token_ref().token else { return Err(self.unexpected()) };
        let name = fold(&word.value, word.quote_style);
        if name.is_empty() {
            return Err(self.raise(Error::syntax("zero-length delimited identifier at or near \"\"\"\"")));
        }
        self.parser.advance_token();
        Ok(name)
    }

    /// Whether the next token is a reserved word.
    pub(super) fn sees_reserved(&self) -> bool {
        self.word(0).is_some_and(|word| RESERVED.binary_search(&word.to_ascii_lowercase().as_str()).is_ok())
    }

    /// `[schema.]name`.
    pub(super) fn name(&mut self) -> Result<Name> {
        let first = self.identifier()?;
        if !self.accept_token(&Token::Period) {
            return Ok(Name { schema: None, name: first });
        }
        let second = self.label()?;
        if !self.accept_token(&Token::Period) {
            return Ok(Name { schema: Some(first), name: second });
        }
        let third = self.label()?;
        Err(Error::unsupported(format!("cross-database references are not implemented: \"{first}.{second}.{third}\"")))
    }

    /// Names in parentheses, when they come next.
    pub(super) fn column_list(&mut self) -> Result<Vec<String>> {
        if !self.accept_token(&Token::LParen) {
            return Ok(Vec::new());
        }
        let columns = self.separated(Self::identifier)?;
        self.expect_token(&Token::RParen)?;
        Ok(columns)
    }

    /// One or more of something, separated by commas.
    pub(super) fn separated<T>(&mut self, mut one: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let mut all = vec![one(self)?];
        while self.accept_token(&Token::Comma) {
            all.push(one(self)?);
        }
        Ok(all)
    }

    /// A string literal.
    pub(super) fn string(&mut self) -> Result<String> {
        let value = match &self.parser.peek_token_ref().token {
            Token::SingleQuotedString(value) | Token::EscapedStringLiteral(value) => value.clone(),
            Token::DollarQuotedString(value) => value.value.clone(),
            _ => return Err(self.unexpected()),
        };
        self.parser.advance_token();
        Ok(value)
    }

    /// A whole number that is not negative.
    pub(super) fn count(&mut self) -> Result<u64> {
        let Token::Number(digits, _) = &self.parser.peek_token_ref().token else { return Err(self.unexpected()) };
        let Ok(value) = digits.parse() else { return Err(self.unexpected()) };
        self.parser.advance_token();
        Ok(value)
    }

    /// `(key [= value], ...)` as after WITH: keys folded, values as text, a key alone is `true`.
    pub(super) fn options(&mut self) -> Result<Vec<(String, String)>> {
        self.expect_token(&Token::LParen)?;
        let mut seen = HashSet::new();
        let options = self.separated(|reader| {
            let mut key = reader.label()?;
            while reader.accept_token(&Token::Period) {
                key = format!("{key}.{}", reader.label()?);
            }
            if !seen.insert(key.clone()) {
                return Err(
                    Error::syntax("conflicting or redundant options").detail(format!("Option \"{key}\" is specified more than once."))
                );
            }
            let value = if reader.accept_token(&Token::Eq) { reader.option_value()? } else { "true".to_owned() };
            Ok((key, value))
        })?;
        self.expect_token(&Token::RParen)?;
        Ok(options)
    }

    /// A string, number or word as text.
    pub(super) fn option_value(&mut self) -> Result<String> {
        let sign = if self.accept_token(&Token::Minus) { "-" } else { "" };
        match &self.parser.peek_token_ref().token {
            Token::Number(digits, _) => {
                let value = format!("{sign}{digits}");
                self.parser.advance_token();
                Ok(value)
            }
            Token::Word(_) if sign.is_empty() => self.label(),
            _ if sign.is_empty() => self.string(),
            _ => Err(self.unexpected()),
        }
    }

    /// A SELECT, VALUES, WITH or TABLE, checked against what Verus knows.
    pub(super) fn query(&mut self) -> Result<Box<ast::Query>> {
        if self.sees(&["TABLE"]) {
            return self.table_query();
        }
        let mut parsed = self.run(|parser| parser.parse_query())?;
        query::check(&mut parsed)?;
        Ok(parsed)
    }

    /// `TABLE name` is `SELECT * FROM name`.
    fn table_query(&mut self) -> Result<Box<ast::Query>> {
        self.expect(&["TABLE"])?;
        let name = self.name()?;
        super::parse_query(&format!("SELECT * FROM {name}")).map(Box::new)
    }

    /// Whether a query comes next.
    pub(super) fn sees_query(&self) -> bool {
        self.sees_token(&Token::LParen) || ["SELECT", "WITH", "VALUES", "TABLE"].iter().any(|word| self.sees(&[word]))
    }

    /// Runs a rule of sqlparser and rewords its errors.
    pub(super) fn run<T>(&mut self, rule: impl FnOnce(&mut Parser<'static>) -> Result<T, ParserError>) -> Result<T> {
        let outcome = self.budget.spend(|| rule(&mut self.parser));
        outcome.map_err(|error| self.reword(&error))
    }

    /// Whether a number comes next.
    pub(super) fn sees_number(&self) -> bool {
        matches!(self.parser.peek_token_ref().token, Token::Number(_, _))
    }

    /// An expression up to a word outside of its parentheses, which is not taken. The word may be one that an interval goes on with
    /// (`INTERVAL '1-2' YEAR TO MONTH`).
    pub(super) fn expression_before(&mut self, word: &str) -> Result<ast::Expr> {
        const FIELDS: [&str; 6] = ["YEAR", "MONTH", "DAY", "HOUR", "MINUTE", "SECOND"];
        let start = self.byte();
        let mut depth = 0_usize;
        loop {
            match &self.parser.peek_token_ref().token {
                Token::EOF => return Err(self.unexpected()),
                Token::LParen | Token::LBracket => depth += 1,
                Token::RParen | Token::RBracket => depth = depth.saturating_sub(1),
                _ if depth == 0 && self.sees(&[word]) && !self.word(1).is_some_and(|next| FIELDS.contains(&next.as_str())) => break,
                _ => {}
            }
            self.parser.advance_token();
        }
        let text = &self.text[start..self.byte()];
        let mut reader = Reader::new(text, self.offset + super::position_of(self.text, start) - 1)?;
        let expression = reader.run(|parser| parser.parse_expr())?;
        reader.finish()?;
        Ok(expression)
    }

    /// The text from the next token to the end, all taken, parsed as a statement that `accept` may refuse.
    pub(super) fn rest_parsed(&mut self, accept: impl FnOnce(&Statement) -> Result<()>) -> Result<String> {
        let start = self.byte();
        while !self.at_end() {
            self.parser.advance_token();
        }
        let text = &self.text[start..];
        accept(&super::parse_one(text, self.offset + super::position_of(self.text, start) - 1)?)?;
        Ok(text.to_owned())
    }

    /// `syntax error at or near` the next token.
    pub(super) fn unexpected(&self) -> Error {
        self.error_at(self.parser.peek_token_ref().span.start)
    }

    /// Puts the next token's place into an error.
    pub(super) fn raise(&self, error: Error) -> Error {
        error.position(self.offset + super::position_of(self.text, self.byte()))
    }

    fn byte(&self) -> usize {
        byte_at(self.text, self.parser.peek_token_ref().span.start)
    }

    fn reword(&self, error: &ParserError) -> Error {
        let (ParserError::ParserError(message) | ParserError::TokenizerError(message)) = error else {
            return depth::too_deep();
        };
        if message.contains("found: EOF") {
            return self.error_at(Location { line: 0, column: 0 });
        }
        match location_in(message) {
            Some(location) => self.error_at(location),
            None => self.unexpected(),
        }
    }

    fn error_at(&self, location: Location) -> Error {
        let at = byte_at(self.text, location);
        let position = self.offset + super::position_of(self.text, at);
        let tokens = tokenize(self.text).unwrap_or_default();
        let found = tokens.iter().position(|token| location.line > 0 && token.span.start == location && token.token != Token::EOF);
        let Some(index) = found else {
            return Error::syntax("syntax error at end of input").position(position);
        };
        let end = byte_at(self.text, tokens[index].span.end);
        let error = Error::syntax(format!("syntax error at or near \"{}\"", &self.text[at..end])).position(position);
        if stray_comma(&tokens, index) { error.hint("Remove the comma before GROUP BY.") } else { error }
    }
}

/// Listing 3 as printed has `WHERE ..., GROUP BY`: the error is at the comma or at GROUP.
fn stray_comma(tokens: &[TokenWithSpan], index: usize) -> bool {
    let mut code = tokens.iter().enumerate().filter(|(_, token)| !matches!(token.token, Token::Whitespace(_))).peekable();
    while let Some((at, token)) = code.next() {
        if token.token == Token::Comma
            && let Some((next, following)) = code.peek()
            && matches!(&following.token, Token::Word(word) if word.keyword == Keyword::GROUP)
            && (at == index || *next == index)
        {
            return true;
        }
    }
    false
}

fn tokenize(text: &str) -> Result<Vec<TokenWithSpan>, sqlparser::tokenizer::TokenizerError> {
    Tokenizer::new(&DIALECT, text).tokenize_with_location().map(tokens::mended)
}

/// A name as the catalog keeps it: lower case unless quoted (ASCII only, as PostgreSQL folds).
pub(super) fn fold(value: &str, quote: Option<char>) -> String {
    if quote.is_some() { value.to_owned() } else { value.to_ascii_lowercase() }
}

/// The byte at a line and column of `text`; its length for the end of input.
fn byte_at(text: &str, location: Location) -> usize {
    if location.line == 0 {
        return text.len();
    }
    let mut line_start = 0;
    for _ in 1..location.line {
        match memchr::memchr(b'\n', &text.as_bytes()[line_start..]) {
            Some(length) => line_start += length + 1,
            None => return text.len(),
        }
    }
    let column = usize::try_from(location.column.saturating_sub(1)).unwrap_or(usize::MAX);
    text[line_start..].char_indices().nth(column).map_or(text.len(), |(index, _)| line_start + index)
}

/// sqlparser puts the place at the end of its message.
fn location_in(message: &str) -> Option<Location> {
    let (_, place) = message.rsplit_once(" at Line: ")?;
    let (line, column) = place.split_once(", Column: ")?;
    let digits = column.find(|ch: char| !ch.is_ascii_digit()).unwrap_or(column.len());
    Some(Location { line: line.parse().ok()?, column: column[..digits].parse().ok()? })
}

/// An object name of a syntax tree, folded.
pub(super) fn name_of(name: &ast::ObjectName) -> Result<Name> {
    let mut parts = Vec::with_capacity(2);
    for part in &name.0 {
        match part {
            ast::ObjectNamePart::Identifier(ident) => parts.push(fold(&ident.value, ident.quote_style)),
            ast::ObjectNamePart::Function(_) => return Err(Error::new(SqlState::INVALID_NAME, format!("invalid name: {name}"))),
        }
    }
    match <[String; 1]>::try_from(parts) {
        Ok([name]) => Ok(Name { schema: None, name }),
        Err(parts) => match <[String; 2]>::try_from(parts) {
            Ok([schema, name]) => Ok(Name { schema: Some(schema), name }),
            Err(_) => Err(Error::unsupported(format!("cross-database references are not implemented: \"{name}\""))),
        },
    }
}
