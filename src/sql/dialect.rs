//! PostgreSQL's dialect with named arguments by `:=`.
//!
//! *Place*: used by `sql` for every text; `query` hands it to DataFusion's planner where that asks for a dialect.
//!
//! The stock PostgreSQL dialect treats `:=` as a binary operator and parses argument names as expressions, so that
//! `f := a = 1 AND b = 2` silently becomes `(f := a = 1) AND (b = 2)`.
//!
//! *Invariant*: [`Dialect::dialect`] answers with PostgreSQL's type, because the parser asks for it in many places.

use std::any::TypeId;

use sqlparser::dialect::{Dialect, PostgreSqlDialect, Precedence};
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};

/// The dialect of all SQL that Verus reads and prints.
#[derive(Clone, Copy, Debug, Default)]
pub struct VerusDialect;

const BASE: PostgreSqlDialect = PostgreSqlDialect {};

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
        BASE.is_reserved_for_identifier(keyword)
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
