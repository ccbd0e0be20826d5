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
/// What a prefix operator counts: `NOT NOT ...` recurses on the right, where neither parser nor planner grows its stack.
const PREFIX_WEIGHT: usize = 10;
/// Joins and set operations of one SELECT: each is a level of the plan.
const RELATIONS_MAX: usize = 500;
/// sqlparser's own recursion: every pair of parentheses takes a few levels, every prefix operator one.
pub(super) const RECURSION_MAX: usize = 4_000;

/// Refuses (54001) what could become too deep a tree.
pub(super) fn check(tokens: &[TokenWithSpan]) -> Result<()> {
    let limits = WireLimits::default();
    let mut levels = vec![Level::default()];
    let mut count = 0_usize;
    let mut before = &Token::EOF;
    for token in tokens.iter().map(|token| &token.token).filter(|token| !matches!(token, Token::Whitespace(_))) {
        count += 1;
        step(&mut levels, before, token);
        before = token;
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

fn step(levels: &mut Vec<Level>, before: &Token, token: &Token) {
    match token {
        Token::LParen | Token::LBrace => levels.push(Level::default()),
        // `a[1][1]` is a chain as well as nesting.
        Token::LBracket => {
            top(levels).operators += 1;
            levels.push(Level::default());
        }
        Token::RParen | Token::RBracket | Token::RBrace => while close(levels) == Some(true) {},
        Token::Word(word) if word.quote_style.is_none() && word.keyword != Keyword::NoKeyword => keyword(levels, before, word.keyword),
        Token::Word(_) => top(levels).operators += usize::from(matches!(before, Token::Word(_))),
        Token::Comma => top(levels).comma(),
        token if is_operator(token) => top(levels).operators += weight(before, token),
        _ => {}
    }
}

fn weight(before: &Token, operator: &Token) -> usize {
    match operator {
        Token::Period | Token::DoubleColon | Token::Colon => 1,
        _ if !ends_operand(before) => PREFIX_WEIGHT,
        _ => 1,
    }
}

/// Whether an operand is complete, so that a keyword that follows is one. sqlparser takes most keywords for names where it
/// expects an operand: in `a + where + where` there is no clause, and nothing to start counting anew for.
fn ends_operand(token: &Token) -> bool {
    match token {
        Token::Word(word) => {
            word.quote_style.is_some()
                || matches!(word.keyword, Keyword::NoKeyword | Keyword::NULL | Keyword::TRUE | Keyword::FALSE | Keyword::END)
        }
        Token::RParen | Token::RBracket => true,
        other => is_literal(other),
    }
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
    case: bool,
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
        *self = Level { relations: self.relations, in_from: self.in_from, case: self.case, ..Level::default() };
    }

    fn comma(&mut self) {
        self.relations += usize::from(self.in_from);
        self.cut();
    }
}

fn top(levels: &mut [Level]) -> &mut Level {
    levels.last_mut().expect("the outermost level is never closed")
}

/// Ends the innermost level; says whether that was a CASE. The outermost stays.
fn close(levels: &mut Vec<Level>) -> Option<bool> {
    if levels.len() == 1 {
        return None;
    }
    let level = levels.pop()?;
    let parent = top(levels);
    parent.nested_max = parent.nested_max.max(level.bound() + 1);
    Some(level.case)
}

fn keyword(levels: &mut Vec<Level>, before: &Token, keyword: Keyword) {
    if keyword == Keyword::CASE {
        return levels.push(Level { case: true, ..Level::default() });
    }
    if keyword == Keyword::END && top(levels).case {
        close(levels);
        return;
    }
    let level = top(levels);
    level.relations += usize::from(matches!(keyword, Keyword::UNION | Keyword::INTERSECT | Keyword::EXCEPT | Keyword::JOIN));
    if !ends_operand(before) {
        level.operators += if keyword == Keyword::NOT { PREFIX_WEIGHT } else { 1 };
        return;
    }
    match keyword {
        Keyword::OR => {
            level.cut_ands();
            level.ors += 1;
        }
        Keyword::AND => {
            level.cut_operators();
            level.ands += 1;
        }
        Keyword::UNION | Keyword::INTERSECT | Keyword::EXCEPT | Keyword::JOIN | Keyword::ON => level.cut(),
        Keyword::WHEN | Keyword::THEN | Keyword::ELSE => level.cut(),
        Keyword::FROM => {
            level.in_from = true;
            level.cut();
        }
        Keyword::SELECT | Keyword::WHERE | Keyword::GROUP | Keyword::HAVING | Keyword::ORDER | Keyword::LIMIT | Keyword::VALUES => {
            level.in_from = false;
            level.cut();
        }
        _ => level.operators += 1,
    }
}

fn is_literal(token: &Token) -> bool {
    matches!(
        token,
        Token::Number(_, _)
            | Token::Char(_)
            | Token::SingleQuotedString(_)
            | Token::EscapedStringLiteral(_)
            | Token::UnicodeStringLiteral(_)
            | Token::NationalStringLiteral(_)
            | Token::HexStringLiteral(_)
            | Token::SingleQuotedByteStringLiteral(_)
            | Token::DollarQuotedString(_)
            | Token::Placeholder(_)
    )
}

fn is_operator(token: &Token) -> bool {
    !is_literal(token) && !matches!(token, Token::EOF | Token::SemiColon)
}
