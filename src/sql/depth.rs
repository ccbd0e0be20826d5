//! Bounds the syntax tree before it exists: tokens, nesting, and the length of operator chains.
//!
//! *Place*: called by `sql::reader` on a statement's tokens. A chain `1 + 1 + ...` is flat in the text but as deep as it is
//! long in the tree, and everything behind the parser (planning, comparing, even dropping it) recurses over that depth.

use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::{Token, TokenWithSpan};

use crate::config::limits::WireLimits;
use crate::error::{Error, Result, SqlState};

/// Depth of one expression's tree.
const CHAIN_MAX: usize = 2_000;
/// Joins and set operations of one SELECT: each is a level of the plan.
const RELATIONS_MAX: usize = 500;
/// sqlparser's own recursion: every pair of parentheses takes a few levels, every prefix operator one.
pub(super) const RECURSION_MAX: usize = 4_000;

/// Refuses (54001) what could become too deep a tree.
pub(super) fn check(tokens: &[TokenWithSpan]) -> Result<()> {
    let limits = WireLimits::default();
    let mut levels = vec![Level::default()];
    let mut count = 0_usize;
    for token in tokens {
        if matches!(token.token, Token::Whitespace(_)) {
            continue;
        }
        count += 1;
        match &token.token {
            Token::LParen | Token::LBracket | Token::LBrace => levels.push(Level::default()),
            Token::RParen | Token::RBracket | Token::RBrace => close(&mut levels),
            Token::Word(word) if word.keyword == Keyword::CASE => levels.push(Level::default()),
            Token::Word(word) if word.keyword == Keyword::END => close(&mut levels),
            Token::Word(word) if word.quote_style.is_none() => keyword(&mut levels, word.keyword),
            Token::Comma => top(&mut levels).comma(),
            token if is_operator(token) => top(&mut levels).operators += 1,
            _ => {}
        }
        let level = top(&mut levels);
        if level.relations > RELATIONS_MAX || level.bound() > CHAIN_MAX || levels.len() > limits.depth_max {
            return Err(too_deep());
        }
    }
    if count > limits.tokens_max {
        return Err(Error::new(SqlState::STATEMENT_TOO_COMPLEX, "statement has too many tokens")
            .detail(format!("The limit is {} tokens.", limits.tokens_max))
            .hint("Load many rows with COPY, or with INSERT of literal values."));
    }
    Ok(())
}

/// 54001 in PostgreSQL's words.
pub(super) fn too_deep() -> Error {
    Error::new(SqlState::STATEMENT_TOO_COMPLEX, "stack depth limit exceeded")
        .hint("Split the statement, or replace a long chain of operators by IN (...) or = ANY (...).")
}

/// What may become one expression: an upper bound on the depth of its tree, by precedence (a chain of ORs holds chains of
/// ANDs, which hold chains of operators).
#[derive(Default)]
struct Level {
    ors: usize,
    ands: usize,
    ands_max: usize,
    operators: usize,
    operators_max: usize,
    nested_max: usize,
    relations: usize,
    in_from: bool,
}

impl Level {
    fn bound(&self) -> usize {
        self.ors + self.ands_max.max(self.ands) + self.operators_max.max(self.operators) + self.nested_max
    }

    fn cut_operators(&mut self) {
        self.operators_max = self.operators_max.max(std::mem::take(&mut self.operators));
    }

    fn cut_ands(&mut self) {
        self.cut_operators();
        self.ands_max = self.ands_max.max(std::mem::take(&mut self.ands));
    }

    /// Another expression begins: only the relations go on.
    fn cut(&mut self) {
        *self = Level { relations: self.relations, in_from: self.in_from, ..Level::default() };
    }

    fn comma(&mut self) {
        self.relations += usize::from(self.in_from);
        self.cut();
    }
}

fn top(levels: &mut [Level]) -> &mut Level {
    levels.last_mut().expect("the outermost level is never closed")
}

fn close(levels: &mut Vec<Level>) {
    if levels.len() > 1
        && let Some(level) = levels.pop()
    {
        let parent = top(levels);
        parent.nested_max = parent.nested_max.max(level.bound() + 1);
    }
}

fn keyword(levels: &mut [Level], keyword: Keyword) {
    let level = top(levels);
    match keyword {
        Keyword::OR => {
            level.cut_ands();
            level.ors += 1;
        }
        Keyword::AND => {
            level.cut_operators();
            level.ands += 1;
        }
        Keyword::NOT
        | Keyword::IS
        | Keyword::IN
        | Keyword::LIKE
        | Keyword::ILIKE
        | Keyword::SIMILAR
        | Keyword::BETWEEN
        | Keyword::COLLATE
        | Keyword::AT
        | Keyword::OPERATOR
        | Keyword::NOTNULL => level.operators += 1,
        Keyword::UNION | Keyword::INTERSECT | Keyword::EXCEPT | Keyword::JOIN => {
            level.relations += 1;
            level.cut();
        }
        Keyword::FROM => {
            level.in_from = true;
            level.cut();
        }
        Keyword::SELECT | Keyword::WHERE | Keyword::GROUP | Keyword::HAVING | Keyword::ORDER | Keyword::LIMIT | Keyword::VALUES => {
            level.in_from = false;
            level.cut();
        }
        Keyword::ON | Keyword::WHEN | Keyword::THEN | Keyword::ELSE => level.cut(),
        _ => {}
    }
}

fn is_operator(token: &Token) -> bool {
    !matches!(
        token,
        Token::EOF
            | Token::Word(_)
            | Token::Number(_, _)
            | Token::Char(_)
            | Token::SingleQuotedString(_)
            | Token::EscapedStringLiteral(_)
            | Token::UnicodeStringLiteral(_)
            | Token::NationalStringLiteral(_)
            | Token::HexStringLiteral(_)
            | Token::SingleQuotedByteStringLiteral(_)
            | Token::DollarQuotedString(_)
            | Token::Placeholder(_)
            | Token::Period
            | Token::SemiColon
    )
}
