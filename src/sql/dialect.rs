//! PostgreSQL's dialect with named arguments by `:=`.
//!
//! *Place*: used by `sql` for every text; `query` hands it to DataFusion's planner where that asks for a dialect.
//!
//! The stock PostgreSQL dialect treats `:=` as a binary operator and parses argument names as expressions, so that
//! `f := a = 1 AND b = 2` silently becomes `(f := a = 1) AND (b = 2)`.
//!
//! sqlparser goes back and tries again wherever a word may be a keyword or a name (`CASE`, `EXTRACT(`, `INTERVAL`). Nested, and
//! wrong at the innermost place, that doubles the work at every level: forty levels are a day. So every operand that the parser
//! begins is counted, and a [`Budget`] in proportion to the text ends the attempt.
//!
//! *Invariant*: [`Dialect::dialect`] answers with PostgreSQL's type, because the parser asks for it in many places.

use std::any::TypeId;
use std::cell::Cell;

use sqlparser::ast::{BinaryOperator, Expr};
use sqlparser::dialect::{Dialect, PostgreSqlDialect, Precedence};
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::Token;

/// The dialect of all SQL that Verus reads and prints.
#[derive(Clone, Copy, Debug, Default)]
pub struct VerusDialect;

/// Operands for each token: a text that parses needs about one.
const OPERANDS_PER_TOKEN: u64 = 16;
/// For the shortest texts.
const OPERANDS_MIN: u64 = 1_024;

thread_local! {
    /// Operands that the parser on this thread may still begin.
    static OPERANDS: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// What parsing one statement may cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget(u64);

impl Budget {
    /// For a statement of so many tokens.
    pub(super) fn new(tokens: usize) -> Self {
        Self(u64::try_from(tokens).unwrap_or(u64::MAX).saturating_mul(OPERANDS_PER_TOKEN).saturating_add(OPERANDS_MIN))
    }

    /// Runs a rule, which fails once the budget is spent.
    pub(super) fn spend<T>(&mut self, rule: impl FnOnce() -> T) -> T {
        let outer = OPERANDS.replace(self.0);
        let result = rule();
        self.0 = OPERANDS.replace(outer);
        result
    }
}

const BASE: PostgreSqlDialect = PostgreSqlDialect {};

impl VerusDialect {
    /// The bounds after BETWEEN and its word.
    fn between(self, parser: &mut Parser, expr: &Expr, negated: bool, symmetric: bool) -> Result<Expr, ParserError> {
        let precedence = self.prec_value(Precedence::Between);
        let low = parser.parse_subexpr(precedence)?;
        parser.expect_keyword(Keyword::AND)?;
        let high = parser.parse_subexpr(precedence)?;
        let between = |low: &Expr, high: &Expr, negated| Expr::Between {
            expr: Box::new(expr.clone()),
            negated,
            low: Box::new(low.clone()),
            high: Box::new(high.clone()),
        };
        if !symmetric {
            return Ok(between(&low, &high, negated));
        }
        let op = if negated { BinaryOperator::And } else { BinaryOperator::Or };
        let (left, right) = (Box::new(between(&low, &high, negated)), Box::new(between(&high, &low, negated)));
        Ok(Expr::Nested(Box::new(Expr::BinaryOp { left, op, right })))
    }
}

/// Methods that answer as PostgreSQL's dialect does. Those that are missing here are the trait's defaults there too.
macro_rules! as_postgres {
    ($($name:ident),* $(,)?) => { $(fn $name(&self) -> bool { BASE.$name() })* };
}

impl Dialect for VerusDialect {
    fn dialect(&self) -> TypeId {
        TypeId::of::<PostgreSqlDialect>()
    }

    fn supports_named_fn_args_with_assignment_operator(&self) -> bool {
        true
    }

    fn supports_named_fn_args_with_expr_name(&self) -> bool {
        false
    }

    fn supports_named_fn_args_with_colon_operator(&self) -> bool {
        false
    }

    fn parse_prefix(&self, _parser: &mut Parser) -> Option<Result<Expr, ParserError>> {
        match OPERANDS.get().checked_sub(1) {
            Some(left) => {
                OPERANDS.set(left);
                None
            }
            None => Some(Err(ParserError::RecursionLimitExceeded)),
        }
    }

    /// `x BETWEEN SYMMETRIC a AND b`: between a and b or between b and a.
    fn parse_infix(&self, parser: &mut Parser, expr: &Expr, _precedence: u8) -> Option<Result<Expr, ParserError>> {
        let sees = |ahead: usize, wanted: &str| match &parser.peek_nth_token_ref(ahead).token {
            Token::Word(word) => word.quote_style.is_none() && word.value.eq_ignore_ascii_case(wanted),
            _ => false,
        };
        let negated = sees(0, "NOT");
        let at = usize::from(negated);
        let symmetric = sees(at + 1, "SYMMETRIC");
        if !sees(at, "BETWEEN") || !(symmetric || sees(at + 1, "ASYMMETRIC")) {
            return None;
        }
        (0..at + 2).for_each(|_| parser.advance_token());
        Some(self.between(parser, expr, negated, symmetric))
    }

    fn identifier_quote_style(&self, identifier: &str) -> Option<char> {
        BASE.identifier_quote_style(identifier)
    }

    fn is_delimited_identifier_start(&self, ch: char) -> bool {
        BASE.is_delimited_identifier_start(ch)
    }

    fn is_identifier_start(&self, ch: char) -> bool {
        BASE.is_identifier_start(ch)
    }

    fn is_identifier_part(&self, ch: char) -> bool {
        BASE.is_identifier_part(ch)
    }

    fn is_reserved_for_identifier(&self, keyword: Keyword) -> bool {
        // No names in PostgreSQL either: an error inside them is the error, without a second attempt.
        matches!(keyword, Keyword::CASE | Keyword::CAST | Keyword::NOT | Keyword::ARRAY) || BASE.is_reserved_for_identifier(keyword)
    }

    fn is_custom_operator_part(&self, ch: char) -> bool {
        BASE.is_custom_operator_part(ch)
    }

    fn get_next_precedence(&self, parser: &Parser) -> Option<Result<u8, ParserError>> {
        BASE.get_next_precedence(parser)
    }

    fn prec_value(&self, precedence: Precedence) -> u8 {
        BASE.prec_value(precedence)
    }

    as_postgres! {
        supports_unicode_string_literal, supports_filter_during_aggregation, supports_group_by_expr, allow_extract_custom,
        allow_extract_single_quotes, supports_create_index_with_clause, supports_explain_with_utility_options,
        supports_listen_notify, supports_factorial_operator, supports_bitwise_shift_operators, supports_comment_on,
        supports_load_extension, supports_empty_projections, supports_nested_comments, supports_string_escape_constant,
        supports_numeric_literal_underscores, supports_array_typedef_with_brackets, supports_geometric_types, supports_set_names,
        supports_alter_column_type_using, supports_notnull_operator, supports_interval_options, supports_insert_table_alias,
        supports_create_table_like_parenthesized, supports_select_wildcard_with_alias, supports_comma_separated_trim,
        supports_xml_expressions, supports_comment_optimizer_hint,
    }
}
