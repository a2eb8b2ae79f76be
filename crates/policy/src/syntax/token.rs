//! Text to tokens. What a word means is the parser's to say: no word is reserved.

use logos::Logos;

use crate::{
    diagnostic::{Code, Diagnostic, Diagnostics, quoted},
    source::{SourceId, Span},
};

/// A token's kind. Its text is in the source.
#[derive(Logos, Clone, Copy, Debug, PartialEq, Eq)]
#[logos(skip r"[ \t\r\f\u{feff}]+")]
#[logos(skip(r"#[^\n]*", allow_greedy = true))]
#[logos(skip r"\\[ \t\r]*\n")]
pub(crate) enum Token {
    #[token("\n")]
    Newline,
    #[token(";")]
    Semicolon,
    #[token("{")]
    OpenBrace,
    #[token("}")]
    CloseBrace,
    #[token("(")]
    OpenParenthesis,
    #[token(")")]
    CloseParenthesis,
    #[token(",")]
    Comma,
    #[token(":")]
    Colon,
    #[token("/")]
    Slash,
    #[token("-")]
    Minus,
    #[token("|")]
    Pipe,
    #[token("&")]
    Ampersand,
    #[token("=")]
    Assign,
    #[token("==")]
    Equal,
    #[token("!=")]
    NotEqual,
    #[token("<")]
    Less,
    #[token("<=")]
    LessOrEqual,
    #[token(">")]
    Greater,
    #[token(">=")]
    GreaterOrEqual,
    #[token("5-tuple")]
    FiveTuple,
    #[regex(r"[A-Za-z_][A-Za-z0-9_.\-]*", priority = 2)]
    Word,
    /// `$name`
    #[regex(r"\$[A-Za-z0-9_]+")]
    Constant,
    /// `@name`
    #[regex(r"@[A-Za-z0-9_]+")]
    Table,
    #[regex(r"[0-9]+|0[xX][0-9A-Fa-f]+", priority = 10)]
    Number,
    #[regex(r"[0-9]+(\.[0-9]+)?(s|ms|us|ns)", priority = 9)]
    Time,
    #[regex(r"[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+", priority = 8)]
    Ipv4,
    /// An IPv6 or MAC address.
    #[regex(r"[0-9A-Fa-f]*(:[0-9A-Fa-f]*){2,}(\.[0-9]+)*", priority = 11)]
    Address,
    #[regex(r"[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}", priority = 12)]
    Uuid,
    #[regex(r#""([^"\\\n]|\\["\\])*""#)]
    Text,
    #[regex(r#""([^"\\\n]|\\["\\])*"#)]
    OpenText,
    /// Starts like a number and is none.
    #[regex(r"[0-9][0-9A-Za-z_.]*", priority = 1)]
    BadNumber,
    /// A comment, elsewhere.
    #[regex(r"//[^\n]*", allow_greedy = true)]
    #[regex(r"/\*([^*]|\*[^/])*\*/")]
    ForeignComment,
    /// Nothing that can be in a policy. It has been said.
    Bad,
    /// After the last one.
    End,
}

/// The tokens of a source and where they are. What is none is said and becomes [`Token::Bad`].
pub(crate) fn tokens(source: SourceId, text: &str, diagnostics: &mut Diagnostics) -> Vec<(Token, Span)> {
    let mut tokens: Vec<(Token, Span)> = Vec::new();
    for (token, range) in Token::lexer(text).spanned() {
        let span = Span::new(source, range);
        let slice = &text[span.start..span.end];
        let bad = |diagnostics: &mut Diagnostics, diagnostic| {
            diagnostics.push(diagnostic);
            Token::Bad
        };
        let token = match token {
            Ok(Token::BadNumber) => {
                let message = format!("{} is not a number, an address or a time", quoted(slice));
                bad(diagnostics, Diagnostic::new(Code::BadConstant, span, message))
            }
            Ok(Token::OpenText) => {
                let diagnostic = Diagnostic::new(Code::BadConstant, span, "a text has no closing quote")
                    .label("it must end in the same line")
                    .hint(r#"inside a text, write \" for a quote and \\ for a backslash"#);
                bad(diagnostics, diagnostic)
            }
            Ok(Token::ForeignComment) => {
                let span = Span { end: span.start + 2, ..span };
                let message = format!("{} starts no comment", quoted(&slice[..2]));
                let diagnostic = Diagnostic::new(Code::Syntax, span, message);
                diagnostics.push(diagnostic.hint("a comment starts with `#` and goes to the end of the line"));
                continue;
            }
            Ok(Token::Address) if super::literal::address(slice).is_none() => {
                // `fd00::1: 7` in a map
                if let Some(address) = slice.strip_suffix(':').filter(|rest| super::literal::address(rest).is_some()) {
                    let middle = span.start + address.len();
                    tokens.push((Token::Address, Span { end: middle, ..span }));
                    tokens.push((Token::Colon, Span { start: middle, ..span }));
                    continue;
                }
                let message = format!("{} is not an IPv6 or MAC address", quoted(slice));
                let hint = "a ':' between other things than an address's parts needs a space in front";
                bad(diagnostics, Diagnostic::new(Code::BadConstant, span, message).hint(hint))
            }
            Ok(token) => token,
            Err(()) => match tokens.last_mut() {
                // one complaint for all that stands together
                Some((Token::Bad, last)) if last.end == span.start => {
                    last.end = span.end;
                    continue;
                }
                _ => {
                    let message = format!("{} cannot be in a policy", quoted(slice));
                    bad(diagnostics, Diagnostic::new(Code::Syntax, span, message))
                }
            },
        };
        tokens.push((token, span));
    }
    tokens.push((Token::End, Span::new(source, text.len()..text.len())));
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<Token> {
        let mut diagnostics = Diagnostics::default();
        let mut kinds: Vec<Token> = tokens(SourceId(0), text, &mut diagnostics).into_iter().map(|t| t.0).collect();
        assert_eq!(kinds.pop(), Some(Token::End));
        assert_eq!(diagnostics.has_errors(), kinds.contains(&Token::Bad), "{text}");
        kinds
    }

    #[test]
    fn constants_are_told_from_words_and_from_each_other() {
        use Token::*;
        for (text, expected) in [
            ("10 0x1f 0", vec![Number, Number, Number]),
            ("8000-8100", vec![Number, Minus, Number]),
            ("22:1", vec![Number, Colon, Number]),
            ("0x102:0x80", vec![Number, Colon, Number]),
            ("1.5s 90s 20ms 5ns", vec![Time, Time, Time, Time]),
            ("10.0.0.0/8", vec![Ipv4, Slash, Number]),
            ("10.2.3.4: 9", vec![Ipv4, Colon, Number]),
            ("fd00::/8", vec![Address, Slash, Number]),
            ("fd00::1 : 7", vec![Address, Colon, Number]),
            ("fd00::1: 7", vec![Address, Colon, Number]),
            ("::", vec![Address]),
            ("::ffff:10.0.0.1", vec![Address]),
            ("02:00:00:00:00:0a", vec![Address]),
            ("2001:db8:1:2:3:4:5:6", vec![Address]),
            ("6ba7b810-9dad-11d1-80b4-00c04fd430c8", vec![Uuid]),
            ("abcdef01-9dad-11d1-80b4-00c04fd430c8", vec![Uuid]),
            ("abcdef01-9dad echo-request keep-first a.b", vec![Word, Word, Word, Word]),
            ("syn|ack==syn", vec![Word, Pipe, Word, Equal, Word]),
            ("hash(5-tuple)", vec![Word, OpenParenthesis, FiveTuple, CloseParenthesis]),
            ("$a-$b @c", vec![Constant, Minus, Constant, Table]),
            (r#""a \" b" # "c"#, vec![Text]),
            ("a \\\n b\nc;", vec![Word, Word, Newline, Word, Semicolon]),
            ("10x 1.2.3 fd00:::1 \"open\n", vec![Bad, Bad, Bad, Bad, Newline]),
            ("a €€ \0 $ b", vec![Word, Bad, Bad, Bad, Word]),
        ] {
            assert_eq!(kinds(text), expected, "{text}");
        }
    }
}
