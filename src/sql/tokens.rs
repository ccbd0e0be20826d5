//! Tokens as PostgreSQL's lexer cuts them, where sqlparser's cuts otherwise.
//!
//! *Place*: `sql::reader` passes the tokens of every statement through [`mended`].
//!
//! An operator of several characters does not end in `+` or `-` unless it has one of `~ ! @ # % ^ & | ? ` and the backquote in it
//! (manual, 4.1.3); strings that only whitespace with a line break separates are one (4.1.2.1); `x ISNULL` is `x IS NULL`.

use sqlparser::tokenizer::{Span, Token, TokenWithSpan, Tokenizer, Whitespace};

use super::dialect::VerusDialect;

/// What lets an operator end in a sign.
const SPECIAL: [char; 10] = ['~', '!', '@', '#', '%', '^', '&', '|', '`', '?'];

/// Cuts and joins tokens.
pub(super) fn mended(tokens: Vec<TokenWithSpan>) -> Vec<TokenWithSpan> {
    let foreign = |(index, token): (usize, &TokenWithSpan)| match &token.token {
        Token::CustomBinaryOperator(_) | Token::DoubleEq => true,
        Token::Word(_) => null_test(&token.token).is_some(),
        Token::SingleQuotedString(_) => continued(&tokens[..index]).is_some(),
        _ => false,
    };
    if !tokens.iter().enumerate().any(foreign) {
        return tokens;
    }
    let mut mended: Vec<TokenWithSpan> = Vec::with_capacity(tokens.len() + 8);
    let mut tokens = tokens.into_iter().peekable();
    while let Some(TokenWithSpan { token, span }) = tokens.next() {
        match token {
            Token::CustomBinaryOperator(operator) => cut(&operator, span, &mut mended),
            // No operator of PostgreSQL's.
            Token::DoubleEq => mended.push(TokenWithSpan { token: Token::CustomBinaryOperator("==".to_owned()), span }),
            Token::SingleQuotedString(text) => match continued(&mended) {
                Some(index) => {
                    // The line break between them is used up.
                    mended.truncate(index + 1);
                    append(&mut mended[index].token, &text);
                }
                None => mended.push(TokenWithSpan { token: Token::SingleQuotedString(text), span }),
            },
            token => match null_test(&token) {
                Some(words) if follows_operand(&mended) && tokens.peek().is_none_or(|next| next.token != Token::LParen) => {
                    mended.extend(words.iter().map(|word| TokenWithSpan { token: Token::make_keyword(word), span }));
                }
                _ => mended.push(TokenWithSpan { token, span }),
            },
        }
    }
    mended
}

/// An operator and the signs after it.
fn cut(operator: &str, span: Span, tokens: &mut Vec<TokenWithSpan>) {
    let end = match operator.contains(SPECIAL) {
        true => operator.len(),
        false => operator.trim_end_matches(['+', '-']).len().max(1),
    };
    let (operator, signs) = operator.split_at(end);
    let mut at = span.start;
    let mut push = |token: Token, width: usize| {
        let start = at;
        at.column += width as u64;
        tokens.push(TokenWithSpan { token, span: Span { start, end: at } });
    };
    match Tokenizer::new(&VerusDialect, operator).tokenize() {
        Ok(parts) if !signs.is_empty() => match <[Token; 1]>::try_from(parts) {
            Ok([part]) => push(part, operator.len()),
            Err(_) => push(Token::CustomBinaryOperator(operator.to_owned()), operator.len()),
        },
        _ => push(Token::CustomBinaryOperator(operator.to_owned()), operator.len()),
    }
    for sign in signs.chars() {
        push(if sign == '+' { Token::Plus } else { Token::Minus }, 1);
    }
}

/// The string that one after these tokens goes on with.
fn continued(before: &[TokenWithSpan]) -> Option<usize> {
    let mut lines = false;
    for (index, token) in before.iter().enumerate().rev() {
        match &token.token {
            Token::Whitespace(Whitespace::Newline | Whitespace::SingleLineComment { .. }) => lines = true,
            Token::Whitespace(Whitespace::Space | Whitespace::Tab) => {}
            Token::SingleQuotedString(_) | Token::EscapedStringLiteral(_) if lines => return Some(index),
            _ => return None,
        }
    }
    None
}

fn append(token: &mut Token, more: &str) {
    if let Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text) = token {
        text.push_str(more);
    }
}

fn null_test(token: &Token) -> Option<&'static [&'static str]> {
    match token {
        Token::Word(word) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case("isnull") => Some(&["IS", "NULL"]),
        Token::Word(word) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case("notnull") => Some(&["IS", "NOT", "NULL"]),
        _ => None,
    }
}

/// Whether something comes before that can be tested: no label, no member of a schema.
fn follows_operand(before: &[TokenWithSpan]) -> bool {
    let last = before.iter().rev().map(|token| &token.token).find(|token| !matches!(token, Token::Whitespace(_)));
    match last {
        None | Some(Token::Period | Token::Comma | Token::LParen) => false,
        Some(Token::Word(word)) => word.quote_style.is_some() || !word.value.eq_ignore_ascii_case("as"),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let tokens = Tokenizer::new(&VerusDialect, text).tokenize_with_location().unwrap();
        let mended = mended(tokens);
        let shown = mended.iter().filter(|token| !matches!(token.token, Token::Whitespace(_))).map(|token| token.token.to_string());
        assert_eq!(shown.collect::<Vec<_>>().join(" "), expected, "{text}");
    }

    #[test]
    fn signs_are_cut_from_operators() {
        check("a>-1", "a > - 1");
        check("a<>-1 a>=-1 a<=+1", "a <> - 1 a >= - 1 a <= + 1");
        check("5-+1", "5 - + 1");
        check("7%-3", "7 %- 3");
        check("a->-1", "a -> - 1");
        check("1 == 1", "1 == 1");
    }

    #[test]
    fn strings_go_on_over_lines() {
        check("'a' \n 'b' -- c\n 'd' 'e'", "'abd' 'e'");
        check("'a' 'b'", "'a' 'b'");
    }

    #[test]
    fn null_tests_of_one_word() {
        check("a isnull", "a IS NULL");
        check("(1) NOTNULL", "(1) IS NOT NULL".replace("(1)", "( 1 )").as_str());
        check("1 as isnull", "1 as isnull");
        check("\"isnull\" isnull(1)", "\"isnull\" isnull ( 1 )");
    }
}
