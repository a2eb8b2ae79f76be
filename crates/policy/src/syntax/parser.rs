//! Tokens to what is written there: one function for each rule of the grammar.
//!
//! What cannot be read is said, once, and left out: a rule or a declaration up to its end.

use super::{
    ast::{
        Action, Block, Body, Condition, Define, Element, Item, Key, Kind, Literal, LiteralKind, Pattern, PatternKind,
        Rule, Spanned, Subject, SubjectKind, Table, Test, Value, ValueKind, direction,
    },
    literal,
    token::{Token, tokens},
};
use crate::{
    diagnostic::{Code, Diagnostic, Diagnostics, alternatives, closest, quoted},
    field::{Field, FieldKind},
    foreign,
    hook::{Ability, Direction, Hook, NetfilterFamily, NetfilterHook},
    policy::{Comparison, Hardware, InterfaceDirection, Layer},
    source::{SourceId, Span},
    words::{self, HeaderWord},
};

/// How deep parentheses and `not` may go.
const DEPTH_MAX: usize = 64;

/// What to write instead of `||`.
const OR: &str = "write `or`";

/// What to write instead of `80:443`.
const RANGE: &str = "a range is written `80-443`";

/// What to write instead of `-p tcp --dport 22`.
const NO_OPTIONS: &str = "there are no options: a rule is its tests and what to do, `tcp dport 22 drop`";

/// What to write instead of a list of interfaces.
const EACH_INTERFACE: &str = "write a test for each interface: `(iif \"eth0\" or iif \"eth1\")`";

/// Words that start what is outside of blocks.
const ITEMS: &[&str] =
    &["include", "key", "define", "set", "map", "xdp", "tc", "netfilter", "cgroup", "match", "steer"];

/// Why there is no result: it has been said.
struct Said;

type Parsed<T> = Result<T, Said>;

/// Reads a file.
pub(crate) fn parse(source: SourceId, text: &str, diagnostics: &mut Diagnostics) -> Vec<Item> {
    let tokens = tokens(source, text, diagnostics);
    Parser { text, tokens, place: 0, open: 0, depth: 0, hook: None, diagnostics }.file()
}

/// What a text in quotes says.
pub(crate) fn text(quoted: &str) -> String {
    literal::text(quoted)
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<(Token, Span)>,
    place: usize,
    /// Braces of lists and parentheses around this place: line ends do not count inside of them.
    open: usize,
    /// Parentheses and `not` around this place.
    depth: usize,
    /// Of the block around this place.
    hook: Option<Hook>,
    diagnostics: &'a mut Diagnostics,
}

impl<'a> Parser<'a> {
    // What comes next.

    fn peek(&mut self) -> Token {
        if self.open > 0 {
            self.newlines();
        }
        self.tokens[self.place].0
    }

    fn span(&mut self) -> Span {
        self.peek();
        self.tokens[self.place].1
    }

    fn slice(&self, span: Span) -> &'a str {
        &self.text[span.start..span.end]
    }

    /// The word that comes next.
    fn word(&mut self) -> Option<&'a str> {
        (self.peek() == Token::Word).then(|| self.slice(self.tokens[self.place].1))
    }

    /// The word behind the next token.
    fn next_word(&self) -> Option<&'a str> {
        let (token, span) = self.tokens.get(self.place + 1)?;
        (*token == Token::Word).then(|| self.slice(*span))
    }

    fn next(&mut self) -> (Token, Span) {
        self.peek();
        let token = self.tokens[self.place];
        // the last one, the end, stays
        self.place = (self.place + 1).min(self.tokens.len() - 1);
        token
    }

    fn eat(&mut self, token: Token) -> bool {
        let there = self.peek() == token;
        if there {
            self.next();
        }
        there
    }

    fn eat_word(&mut self, word: &str) -> bool {
        let there = self.word() == Some(word);
        if there {
            self.next();
        }
        there
    }

    fn newlines(&mut self) {
        while self.tokens[self.place].0 == Token::Newline {
            self.place += 1;
        }
    }

    /// From `start` to what was read last.
    fn since(&self, start: Span) -> Span {
        // line ends inside of brackets may have been passed over since
        let read = self.tokens[..self.place].iter().rfind(|(token, _)| *token != Token::Newline);
        match read {
            Some((_, last)) if last.start >= start.start => start.to(*last),
            _ => start,
        }
    }

    fn at_line_end(&mut self) -> bool {
        matches!(self.peek(), Token::Newline | Token::Semicolon | Token::CloseBrace | Token::End)
    }

    /// Something that is not indented and starts what is outside of blocks: whatever was open before was forgotten.
    fn at_item(&self) -> bool {
        let (token, span) = self.tokens[self.place];
        let unindented = span.start == 0 || self.text.as_bytes()[span.start - 1] == b'\n';
        token == Token::Word && unindented && self.slice(span) != "set" && ITEMS.contains(&self.slice(span))
    }

    // What is wrong.

    fn say(&mut self, diagnostic: Diagnostic) -> Said {
        self.diagnostics.push(diagnostic);
        Said
    }

    /// Something else should come next.
    fn expected(&mut self, what: &str) -> Said {
        match self.missing(what) {
            Some(diagnostic) => self.say(diagnostic),
            None => Said,
        }
    }

    /// The same, with what to write instead.
    fn expected_but(&mut self, what: &str, hint: impl Into<String>) -> Said {
        match self.missing(what) {
            Some(diagnostic) => self.say(diagnostic.hint(hint)),
            None => Said,
        }
    }

    /// That something else should come next, unless what comes has been complained of.
    fn missing(&mut self, what: &str) -> Option<Diagnostic> {
        let span = self.span();
        let found = match self.peek() {
            Token::Bad => return None,
            Token::End => "the end of the file".to_owned(),
            Token::Newline => "the end of the line".to_owned(),
            _ => quoted(self.slice(span)),
        };
        Some(Diagnostic::new(Code::Syntax, span, format!("expected {what}, found {found}")))
    }

    /// The word that comes next is none of those that could.
    fn unknown(&mut self, what: &str, words: &[&'static str]) -> Said {
        let Some(word) = self.word() else { return self.expected(what) };
        let span = self.span();
        let diagnostic = Diagnostic::new(Code::UnknownWord, span, format!("expected {what}, found {}", quoted(word)));
        let diagnostic = match foreign::hint(word) {
            Some(hint) => diagnostic.hint(hint),
            None => self.meant(diagnostic, word, words),
        };
        self.say(diagnostic)
    }

    /// Adds which word may have been meant.
    fn meant(&self, diagnostic: Diagnostic, word: &str, words: &[&'static str]) -> Diagnostic {
        match closest(word, words.iter().copied()) {
            Some(meant) => diagnostic.hint(format!("did you mean `{meant}`?")),
            None if (2..=12).contains(&words.len()) => {
                diagnostic.hint(format!("it could be {}", alternatives(words.iter().copied())))
            }
            None => diagnostic,
        }
    }

    fn expect(&mut self, token: Token, what: &str) -> Parsed<Span> {
        if self.peek() == token { Ok(self.next().1) } else { Err(self.expected(what)) }
    }

    fn expect_word(&mut self, word: &'static str) -> Parsed<()> {
        if self.eat_word(word) { Ok(()) } else { Err(self.unknown(&format!("`{word}`"), &[word])) }
    }

    /// Goes to the end of a rule or declaration that could not be read.
    fn recover(&mut self) {
        let mut open = std::mem::take(&mut self.open);
        self.depth = 0;
        loop {
            match self.tokens[self.place].0 {
                Token::End => return,
                _ if self.at_item() && self.place > 0 && self.tokens[self.place - 1].0 == Token::Newline => return,
                Token::Semicolon | Token::CloseBrace if open == 0 => return,
                Token::Newline if open == 0 || self.drops_inherited() => return,
                Token::OpenBrace | Token::OpenParenthesis => open += 1,
                Token::CloseBrace | Token::CloseParenthesis => open = open.saturating_sub(1),
                _ => {}
            }
            self.place += 1;
        }
    }

    /// Whether the line behind this line end, inside of brackets, starts a rule: a bracket was not closed.
    fn drops_inherited(&self) -> bool {
        let token = |place: Option<usize>| place.and_then(|place| self.tokens.get(place));
        let word = |place| match token(place) {
            Some((Token::Word, span)) => Some(self.slice(*span)),
            _ => None,
        };
        let (before, after) = (self.place.checked_sub(1), Some(self.place + 1));
        let goes_on = matches!(token(before), Some((Token::Comma | Token::OpenBrace | Token::OpenParenthesis, _)))
            || matches!(word(before), Some("and" | "or" | "not"));
        let rule = word(after).is_some_and(|word| {
            words::ACTIONS.contains(&word)
                || words::TEST_STARTS.contains(&word)
                || words::header(word).is_some()
                || words::lookup(words::BARE_FIELDS, word).is_some()
        });
        rule && !goes_on
    }

    // Outside of blocks.

    fn file(mut self) -> Vec<Item> {
        let mut items = Vec::new();
        loop {
            while matches!(self.peek(), Token::Newline | Token::Semicolon) {
                self.next();
            }
            if self.peek() == Token::End || self.diagnostics.is_full() {
                return items;
            }
            let start = self.place;
            let item = self.item();
            match item {
                Ok(item) => {
                    let block = matches!(item, Item::Block(_));
                    items.push(item);
                    if !(self.at_line_end() && self.peek() != Token::CloseBrace || block && self.at_item()) {
                        self.expected("the end of the line");
                        self.recover();
                    }
                }
                Err(Said) => {
                    items.extend(self.broken(start));
                    self.recover();
                }
            }
            // whatever stopped it must not stop it for good
            if self.place == start || self.peek() == Token::CloseBrace {
                if self.place != start {
                    self.expected("a declaration or a block");
                }
                self.next();
            }
        }
    }

    /// What a declaration that starts at `place` and could not be read was to declare.
    fn broken(&mut self, place: usize) -> Option<Item> {
        let &[(Token::Word, kind), (Token::Word, name), ..] = self.tokens.get(place..)? else { return None };
        let kind = match self.slice(kind) {
            "key" => Kind::Key,
            "define" => Kind::Define,
            "set" | "map" => Kind::Table,
            _ => return None,
        };
        Some(Item::Broken(kind, Spanned { value: self.slice(name).to_owned(), span: name }))
    }

    fn item(&mut self) -> Parsed<Item> {
        let start = self.span();
        let Some(word) = self.word() else {
            const WHAT: &str = "a declaration or a block";
            return Err(match self.peek() {
                Token::Minus => self.expected_but(WHAT, NO_OPTIONS),
                _ => self.expected(WHAT),
            });
        };
        match word {
            "include" => {
                self.next();
                let span = self.expect(Token::Text, "a path in quotes")?;
                Ok(Item::Include(Spanned { value: literal::text(self.slice(span)), span }))
            }
            "key" => {
                self.next();
                self.key(start).map(Item::Key)
            }
            "define" => {
                self.next();
                self.define().map(Item::Define)
            }
            "set" | "map" => {
                self.next();
                self.table(word == "map").map(Item::Table)
            }
            "xdp" | "tc" | "netfilter" | "cgroup" | "match" | "steer" => self.block().map(Item::Block),
            _ if words::ACTIONS.contains(&word) || self.starts_test() => {
                let message = format!("{} starts a rule, and rules stand in a block", quoted(word));
                let hint = "a block is `xdp { … }`, `tc ingress { … }`, `netfilter input priority -1 { … }`, …";
                Err(self.say(Diagnostic::new(Code::Syntax, start, message).hint(hint)))
            }
            _ => Err(self.unknown("a declaration or a block", ITEMS)),
        }
    }

    /// A name of a set, map, counter, constant or program.
    fn name(&mut self, what: &str) -> Parsed<Spanned<String>> {
        let span = self.expect(Token::Word, what)?;
        Ok(self.checked_name(self.slice(span), span))
    }

    fn checked_name(&mut self, name: &str, span: Span) -> Spanned<String> {
        const LEN_MAX: usize = 31;
        let good = name.len() <= LEN_MAX
            && name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
            && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_');
        if !good {
            let message = format!("{} cannot be a name", quoted(name));
            let hint = "a name has 1 to 31 of a-z, 0-9 and '_', and does not start with a digit";
            self.say(Diagnostic::new(Code::BadName, span, message).hint(hint));
        }
        Spanned { value: name.to_owned(), span }
    }

    fn spanned_word(&mut self, what: &str) -> Parsed<Spanned<String>> {
        let span = self.expect(Token::Word, what)?;
        Ok(Spanned { value: self.slice(span).to_owned(), span })
    }

    fn key(&mut self, start: Span) -> Parsed<Key> {
        let name = self.spanned_word("a key's name")?;
        let key_type = self.spanned_word("a type")?;
        let merge = if self.peek() == Token::Word { Some(self.spanned_word("a merge policy")?) } else { None };
        let description = (self.peek() == Token::Text).then(|| {
            let span = self.next().1;
            Spanned { value: literal::text(self.slice(span)), span }
        });
        Ok(Key { name, key_type, merge, description, span: self.since(start) })
    }

    fn define(&mut self) -> Parsed<Define> {
        let name = self.name("a name")?;
        self.expect(Token::Assign, "`=`")?;
        self.newlines();
        let body = if self.peek() == Token::OpenBrace {
            let (elements, span) = self.list(false)?;
            Body::List(elements, span)
        } else {
            Body::One(self.pattern("a constant or a list in braces")?)
        };
        Ok(Define { name, body })
    }

    fn table(&mut self, map: bool) -> Parsed<Table> {
        let name = self.name("a name")?;
        let written =
            if map { "map NAME TYPE : TYPE = { KEY : VALUE, … }" } else { "set NAME TYPE = { ELEMENT, … }" };
        if self.peek() == Token::OpenBrace {
            return Err(self.expected_but("a type", format!("it is written `{written}`")));
        }
        let key = self.spanned_word("a type")?;
        let value = if map {
            if !self.eat(Token::Colon) {
                return Err(
                    self.expected_but("`:` and the type of the values", format!("a map is written `{written}`"))
                );
            }
            self.newlines();
            Some(self.spanned_word("a type")?)
        } else {
            None
        };
        self.expect(Token::Assign, "`=`")?;
        self.newlines();
        let (elements, list) = self.list(map)?;
        Ok(Table { name, key, value, elements, list })
    }

    /// `{ element, … }`; a comma may follow the last one.
    fn list(&mut self, map: bool) -> Parsed<(Vec<Element>, Span)> {
        let start = self.expect(Token::OpenBrace, "`{`")?;
        self.open += 1;
        let mut elements = Vec::new();
        while self.peek() != Token::CloseBrace {
            let pattern = self.pattern("an element or `}`")?;
            let value = if map {
                self.expect(Token::Colon, "`:` and a value")?;
                Some(self.literal("a value")?)
            } else {
                None
            };
            elements.push(Element { pattern, value });
            if !self.eat(Token::Comma) && self.peek() != Token::CloseBrace {
                return Err(match self.peek() {
                    Token::Colon => self.expected_but("`,` or `}`", format!("{RANGE}; pairs stand in a `map`")),
                    _ => self.expected("`,` or `}`"),
                });
            }
        }
        self.next();
        self.open -= 1;
        Ok((elements, self.since(start)))
    }

    fn pattern(&mut self, what: &str) -> Parsed<Pattern> {
        self.pattern_of(what, false)
    }

    /// Flags of TCP, which nftables joins by `,`, too, and behind which `/` stands in front of a mask.
    fn flags(&mut self, what: &str) -> Parsed<Pattern> {
        self.pattern_of(what, true)
    }

    fn pattern_of(&mut self, what: &str, flags: bool) -> Parsed<Pattern> {
        let start = self.span();
        let first = self.literal(what)?;
        let kind = match self.peek() {
            Token::Minus => {
                self.next();
                PatternKind::Range(first, self.literal("the end of the range")?)
            }
            Token::Slash if !flags => {
                self.next();
                PatternKind::Prefix(first, self.literal("the length of the prefix")?)
            }
            token if token == Token::Pipe || flags && token == Token::Comma => {
                let mut bits = vec![first];
                while self.eat(Token::Pipe) || flags && self.eat(Token::Comma) {
                    if self.peek() == Token::Pipe {
                        return Err(self.expected_but("a flag", OR));
                    }
                    bits.push(self.literal("a flag")?);
                }
                PatternKind::Bits(bits)
            }
            _ => PatternKind::One(first),
        };
        Ok(Pattern { kind, span: self.since(start) })
    }

    fn literal(&mut self, what: &str) -> Parsed<Literal> {
        let span = self.span();
        let bad = |parser: &mut Self, message: String| {
            parser.next();
            Err(parser.say(Diagnostic::new(Code::BadConstant, span, message)))
        };
        let slice = self.slice(span);
        let kind = match self.peek() {
            Token::Number => match literal::number(slice) {
                Some(number) => {
                    if slice.len() > 1
                        && slice.bytes().all(|digit| matches!(digit, b'0'..=b'7'))
                        && slice.starts_with('0')
                    {
                        let message =
                            format!("{} is {number} here; nftables reads it as an octal number", quoted(slice));
                        let hint = format!("write `{number}`");
                        self.say(Diagnostic::new(Code::Misleading, span, message).hint(hint));
                    }
                    LiteralKind::Number(number)
                }
                None => return bad(self, format!("{} has more than 128 bits", quoted(slice))),
            },
            Token::Minus => {
                self.next();
                let digits = self.expect(Token::Number, "a number after `-`")?;
                let span = span.to(digits);
                return match literal::number(self.slice(digits)) {
                    Some(number) => Ok(Literal { kind: LiteralKind::Negative(number), span }),
                    None => {
                        let message = format!("{} has more than 128 bits", quoted(self.slice(span)));
                        Err(self.say(Diagnostic::new(Code::BadConstant, span, message)))
                    }
                };
            }
            Token::Time => match literal::time(slice) {
                Some(time) => LiteralKind::Time(time),
                None => {
                    return bad(self, format!("{} is not a whole number of nanoseconds in 64 bits", quoted(slice)));
                }
            },
            Token::Ipv4 => match literal::ipv4(slice) {
                Some(address) => LiteralKind::Ipv4(address),
                None => return bad(self, format!("{} is not an IPv4 address", quoted(slice))),
            },
            Token::Address => match literal::address(slice) {
                Some(kind) => kind,
                None => return bad(self, format!("{} is not an IPv6 or MAC address", quoted(slice))),
            },
            Token::Uuid => LiteralKind::Uuid(literal::uuid(slice).unwrap_or_default()),
            Token::Text => LiteralKind::Text,
            Token::Word => LiteralKind::Word,
            Token::Constant => LiteralKind::Name,
            _ => return Err(self.expected(what)),
        };
        self.next();
        Ok(Literal { kind, span })
    }

    fn number(&mut self, what: &str) -> Parsed<Spanned<u128>> {
        let span = self.span();
        if self.peek() != Token::Number {
            return Err(self.expected(what));
        }
        match self.literal(what)?.kind {
            LiteralKind::Number(value) => Ok(Spanned { value, span }),
            _ => Err(self.expected(what)),
        }
    }

    // Blocks.

    fn block(&mut self) -> Parsed<Block> {
        let start = self.span();
        let word = self.word();
        self.next();
        let (hook, named) = match word {
            Some("tc") => (Hook::Tc(self.direction()?), false),
            Some("cgroup") => (Hook::Cgroup(self.direction()?), false),
            Some("netfilter") => (self.netfilter()?, false),
            Some("match") => (Hook::Match, true),
            Some("steer") => (Hook::Steer, true),
            _ => (Hook::Xdp, false),
        };
        let inherits = hook == Hook::Xdp && self.word() == Some(words::INHERIT);
        if inherits {
            self.next();
        }
        let name = if self.peek() == Token::Word {
            Some(self.spanned_word("a name")?)
        } else if named {
            return Err(self.expected("a name, by which it is pinned"));
        } else {
            None
        };
        if let Some(name) = name.as_ref().filter(|name| hook == Hook::Xdp && name.value == "frags") {
            let message = "`frags` names the program; nothing is chosen by it";
            let hint = "leave it out: packets in several buffers are taken without being asked for";
            self.say(Diagnostic::new(Code::Misleading, name.span, message).hint(hint));
        }
        if let Some(name) = name.as_ref().filter(|name| hook != Hook::Xdp && name.value == words::INHERIT) {
            let message = "`inherit` names the program; nothing is chosen by it";
            let hint = "leave it out: only an `xdp` block drops inherited traits";
            self.say(Diagnostic::new(Code::Misleading, name.span, message).hint(hint));
        }
        if let Some(name) = name.as_ref().filter(|name| foreign::looks_like_interface(&name.value)) {
            let message = format!("{} names the program, not an interface", quoted(&name.value));
            let hint =
                format!("choose the interface when you bring the policy up: `traits up FILE --dev {}`", name.value);
            self.say(Diagnostic::new(Code::Misleading, name.span, message).hint(hint));
        }
        let span = self.since(start);
        if !matches!(self.peek(), Token::OpenBrace | Token::Bad) && name.is_none() {
            return Err(self.expected("a name or `{`"));
        }
        self.expect(Token::OpenBrace, "`{`")?;
        self.hook = Some(hook);
        let mut rules = Vec::new();
        loop {
            while matches!(self.peek(), Token::Newline | Token::Semicolon) {
                self.next();
            }
            if self.eat(Token::CloseBrace) || self.diagnostics.is_full() {
                break;
            }
            if self.peek() == Token::End || self.at_item() {
                let missing = Diagnostic::new(Code::Syntax, span, "this block is not closed");
                let missing = missing.label("its `}` is missing");
                let end = self.span();
                self.say(if end.start == end.end { missing } else { missing.related(end, "it must end before this") });
                break;
            }
            let before = self.place;
            match self.rule() {
                Ok(rule) => rules.push(rule),
                Err(Said) => self.recover(),
            }
            if self.place == before {
                self.next();
            }
        }
        Ok(Block { hook, inherits, name, rules, span })
    }

    fn direction(&mut self) -> Parsed<Direction> {
        match self.word().and_then(direction) {
            Some(direction) => {
                self.next();
                Ok(direction)
            }
            None => Err(self.unknown("`ingress` or `egress`", &["ingress", "egress"])),
        }
    }

    fn netfilter(&mut self) -> Parsed<Hook> {
        let family = match self.word() {
            Some("ip") => Some(NetfilterFamily::Ipv4),
            Some("ip6") => Some(NetfilterFamily::Ipv6),
            _ => None,
        };
        if family.is_some() {
            self.next();
        }
        let word = self.word();
        let Some(hook) = NetfilterHook::ALL.into_iter().find(|hook| Some(hook.name()) == word) else {
            let names = NetfilterHook::ALL.map(NetfilterHook::name);
            return Err(self.unknown("a netfilter hook", &names));
        };
        self.next();
        self.expect_word("priority")?;
        let start = self.span();
        let negative = self.eat(Token::Minus);
        if self.peek() == Token::Word {
            let hint = "nftables' `raw` is -300, `mangle` -150, `dstnat` -100, `filter` 0, `security` 50, `srcnat` 100; \
                        use a number next to it";
            return Err(self.expected_but("a priority, a number", hint));
        }
        let number = self.number("a priority, a number")?;
        let span = self.since(start);
        let number = i128::try_from(number.value).ok().map(|number| if negative { -number } else { number });
        // NF_IP_PRI_FIRST and NF_IP_PRI_LAST are refused (bpf_nf_check_pf_and_hooks in net/netfilter/nf_bpf_link.c).
        match number.and_then(|number| i32::try_from(number).ok()).filter(|n| !matches!(*n, i32::MIN | i32::MAX)) {
            Some(priority) => Ok(Hook::Netfilter { family, hook, priority }),
            None => {
                let message = format!("{} is out of range for a priority", quoted(self.slice(span)));
                let hint = "priorities go from -2147483647 to 2147483646; nft's `filter` has 0, `raw` -300";
                Err(self.say(Diagnostic::new(Code::OutOfRange, span, message).hint(hint)))
            }
        }
    }

    fn rule(&mut self) -> Parsed<Rule> {
        let start = self.span();
        let condition = if self.starts_test() { Some(self.any()?) } else { None };
        let mut actions = Vec::new();
        while self.word().is_some_and(|word| words::ACTIONS.contains(&word)) {
            let start = self.span();
            let action = self.action()?;
            let action = Spanned { value: action, span: self.since(start) };
            if condition.is_none() && actions.is_empty() {
                self.not_a_test(&action);
            }
            actions.push(action);
        }
        if !self.at_line_end() {
            return Err(self.not_in_rule(condition.is_some(), actions.last()));
        }
        if let [before @ .., Spanned { value: Action::Accept | Action::Drop, .. }] = actions.as_slice() {
            let warned = usize::from(condition.is_none());
            before.iter().skip(warned).for_each(|action| self.not_a_test(action));
        }
        Ok(Rule { condition, actions, span: self.since(start) })
    }

    /// Warns of an action at the start of a rule, or in front of `accept` or `drop`, that would be a test in nftables.
    fn not_a_test(&mut self, action: &Spanned<Action>) {
        let (Action::Mark(value) | Action::Priority(value)) = &action.value else { return };
        let words = self.slice(action.span);
        let word = words.split_whitespace().next().unwrap_or_default();
        let setting = words.split_whitespace().nth(1) == Some("set");
        // that it cannot be done here is said elsewhere
        let cannot = self.hook.is_some_and(|hook| !hook.can(Ability::MarkAndPriority));
        if setting || cannot || !matches!(value.kind, ValueKind::Constant(_)) {
            return;
        }
        let message = format!("`{word}` sets the packet's {word} here; in nftables this would be a test");
        let hint = format!(
            "write `{word} set {}` to set it; policies cannot test a packet's {word}, but can test traits",
            self.slice(value.span)
        );
        self.say(Diagnostic::new(Code::Misleading, action.span, message).hint(hint));
    }

    /// What comes next does not go on with a rule.
    fn not_in_rule(&mut self, condition: bool, last: Option<&Spanned<Action>>) -> Said {
        let span = self.span();
        if let Some(last) = last {
            if self.starts_test() || matches!(self.word(), Some("and" | "or")) {
                let diagnostic = Diagnostic::new(Code::Syntax, span, "a condition comes in front of all actions");
                let diagnostic = diagnostic.related(last.span, "this is an action");
                return self.say(match last.value {
                    Action::Mark(_) | Action::Priority(_) => {
                        diagnostic.hint("policies set a packet's mark and priority, but cannot test them")
                    }
                    _ => diagnostic,
                });
            }
            if let Action::Set(key, None) = &last.value
                && self.peek() != Token::Word
                && let Some(diagnostic) = self.missing("`=` and a value, an action or the end of the line")
            {
                let hint = match key.value.as_str() {
                    of_packet @ ("mark" | "priority") => format!("the packet's is set by `{of_packet} set VALUE`"),
                    key => format!("a value is set by `set {key} = VALUE`"),
                };
                return self.say(diagnostic.hint(hint));
            }
            return self.unknown("an action or the end of the line", words::ACTIONS);
        }
        let instead = match self.peek() {
            Token::Ampersand => Some("write `and`, or nothing: tests in a row must all hold"),
            Token::Pipe => Some(OR),
            Token::Comma => Some(self.list_hint()),
            Token::Colon => Some(RANGE),
            Token::Minus => Some(NO_OPTIONS),
            _ => None,
        };
        match instead {
            Some(hint) if condition => return self.expected_but("a test or an action", hint),
            Some(NO_OPTIONS) => return self.expected_but("a rule", NO_OPTIONS),
            _ => {}
        }
        if !condition
            && self.word() == Some("type")
            && let (Some(diagnostic), Some(hint)) = (self.missing("a rule"), foreign::hint("hook"))
        {
            return self.say(diagnostic.hint(hint));
        }
        let mut could: Vec<&'static str> = words::ACTIONS.to_vec();
        could.extend(words::TEST_STARTS);
        could.extend(words::HEADERS.iter().map(|header| header.word));
        could.extend(words::BARE_FIELDS.iter().map(|(word, _)| *word));
        if condition {
            could.extend(["and", "or"]);
            // `tcp dprot 22` asks for the header and goes on with an unknown word
            if let Some((Token::Word, before)) = self.place.checked_sub(1).map(|place| self.tokens[place])
                && let Some(header) = words::header(self.slice(before))
            {
                could.extend(header.fields.iter().map(|(word, _)| *word));
            }
            return self.unknown("a test or an action", &could);
        }
        self.unknown("a rule", &could)
    }

    // Conditions.

    /// What is written instead of what comes before a comma, and after it.
    fn list_hint(&self) -> &'static str {
        let before = |back: usize| self.place.checked_sub(back).map(|place| self.tokens[place]);
        let text = |token: Option<(Token, Span)>| token.map(|(_, span)| self.slice(span)).unwrap_or_default();
        match text(before(1)) {
            header if words::header(header).is_some() => "write `or` between tests: `(tcp or udp)`",
            _ if matches!(text(before(2)), "iif" | "oif") => EACH_INTERFACE,
            _ => "several values stand in braces: `{ 80, 443 }`",
        }
    }

    fn starts_test(&mut self) -> bool {
        self.peek() == Token::OpenParenthesis
            || self.word().is_some_and(|word| {
                words::TEST_STARTS.contains(&word)
                    || words::header(word).is_some()
                    || words::lookup(words::BARE_FIELDS, word).is_some()
            })
    }

    fn any(&mut self) -> Parsed<Condition> {
        let mut parts = vec![self.all()?];
        while self.eat_word("or") {
            self.newlines();
            parts.push(self.all()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Condition::Any(parts) })
    }

    fn all(&mut self) -> Parsed<Condition> {
        let mut parts = vec![self.negation()?];
        loop {
            if self.eat_word("and") {
                self.newlines();
            } else if self.starts_test() {
                self.not_of_header(parts.last());
            } else {
                break;
            }
            parts.push(self.negation()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Condition::All(parts) })
    }

    /// Warns of a test behind a header's word, without `and`, that would be of that header in nftables.
    fn not_of_header(&mut self, before: Option<&Condition>) {
        let Some(Condition::Test(test)) = before else { return };
        let Test::Header(header) = test.value else { return };
        let (header_span, span) = (test.span, self.span());
        let (header_word, word) = (self.slice(header_span), self.word().unwrap_or_default());
        let (message, hint) = if word == "length" {
            let message = format!("`length` is the length of the packet, not a field of `{header_word}`");
            (message, format!("write `{header_word} and {word} …` to test both"))
        } else if foreign::is_tunnel(header.kind)
            && let Some(other) = words::header(word).filter(|other| other.itself != FieldKind::Incomplete)
        {
            let message = format!("{} is the outer header here; in nftables it would be the inner one", quoted(word));
            let hint = match other.itself.may_be_inner() {
                true => format!("write `inner {word} …`, or `{header_word} and {word} …` for the outer one"),
                false => format!(
                    "inner headers of that kind cannot be tested; write `{header_word} and {word} …` to test both"
                ),
            };
            (message, hint)
        } else {
            return;
        };
        let diagnostic =
            Diagnostic::new(Code::Misleading, span, message).related(header_span, "this tests for a header");
        self.say(diagnostic.hint(hint));
    }

    fn negation(&mut self) -> Parsed<Condition> {
        let depth = self.depth;
        while self.eat_word("not") {
            self.newlines();
            self.deeper()?;
        }
        let negations = self.depth - depth;
        let mut condition = if self.peek() == Token::OpenParenthesis {
            self.deeper()?;
            self.next();
            self.open += 1;
            let condition = self.any()?;
            if self.peek() != Token::CloseParenthesis {
                return Err(self.expected("a test, `and`, `or` or `)`"));
            }
            self.next();
            self.open -= 1;
            condition
        } else if self.starts_test() {
            Condition::Test(Box::new(self.test()?))
        } else {
            let mut could: Vec<&'static str> = words::TEST_STARTS.to_vec();
            could.extend(words::HEADERS.iter().map(|header| header.word));
            could.extend(words::BARE_FIELDS.iter().map(|(word, _)| *word));
            return Err(self.unknown("a test", &could));
        };
        for _ in 0..negations {
            condition = Condition::Not(Box::new(condition));
        }
        self.depth = depth;
        Ok(condition)
    }

    fn deeper(&mut self) -> Parsed<()> {
        self.depth += 1;
        if self.depth <= DEPTH_MAX {
            return Ok(());
        }
        let span = self.span();
        let message = format!("parentheses and `not` go deeper than {DEPTH_MAX}");
        Err(self.say(Diagnostic::new(Code::TooDeep, span, message)))
    }

    fn test(&mut self) -> Parsed<Spanned<Test>> {
        let start = self.span();
        let value = match self.word() {
            Some("iif") => self.interface(InterfaceDirection::In)?,
            Some("oif") => self.interface(InterfaceDirection::Out)?,
            _ => match self.subject_or_header()? {
                Ok(subject) => self.question(subject)?,
                Err(header) => Test::Header(header),
            },
        };
        Ok(Spanned { value, span: self.since(start) })
    }

    fn interface(&mut self, direction: InterfaceDirection) -> Parsed<Test> {
        self.next();
        let negated = self.eat(Token::NotEqual);
        if !negated {
            self.eat(Token::Equal);
        }
        let interface = self.interface_literal()?;
        Ok(Test::Interface { direction, negated, interface })
    }

    fn interface_literal(&mut self) -> Parsed<Literal> {
        const WHAT: &str = "an interface: its name in quotes or its index";
        match self.peek() {
            Token::Text | Token::Number | Token::Constant => self.literal(WHAT),
            Token::Word => {
                let word = self.word().unwrap_or_default();
                let hint = match word {
                    "in" => EACH_INTERFACE.to_owned(),
                    word => format!("write \"{word}\""),
                };
                Err(self.expected_but(WHAT, hint))
            }
            Token::OpenBrace => Err(self.expected_but(WHAT, EACH_INTERFACE)),
            _ => Err(self.expected(WHAT)),
        }
    }

    /// A field or trait; or, as the error, a header alone.
    fn subject_or_header(&mut self) -> Parsed<Result<Subject, Field>> {
        let start = self.span();
        if self.eat_word("trait") {
            let key = self.spanned_word("a key's name")?;
            return Ok(Ok(Subject { kind: SubjectKind::Trait(key), span: self.since(start) }));
        }
        let layer = if self.eat_word("inner") { Layer::Inner } else { Layer::Outer };
        let word = self.word().unwrap_or_default();
        let (kind, itself) = if let Some(kind) = words::lookup(words::BARE_FIELDS, word) {
            self.next();
            (kind, None)
        } else if let Some(header) = words::header(word) {
            self.next();
            match self.field(header)? {
                Some(kind) => (kind, words::narrows(kind).then_some(header.itself)),
                None => {
                    self.inner(layer, header.itself, start)?;
                    return Ok(Err(Field { layer, kind: header.itself }));
                }
            }
        } else {
            let mut could: Vec<&'static str> = words::HEADERS.iter().map(|header| header.word).collect();
            could.extend(words::BARE_FIELDS.iter().map(|(word, _)| *word));
            return Err(self.unknown("a header or a field", &could));
        };
        self.inner(layer, kind, start)?;
        let requires = itself.map(|kind| Field { layer, kind });
        Ok(Ok(Subject { kind: SubjectKind::Field(Field { layer, kind }, requires), span: self.since(start) }))
    }

    /// The field of a header that comes next, if one does.
    fn field(&mut self, header: &HeaderWord) -> Parsed<Option<FieldKind>> {
        let Some(word) = self.word() else { return Ok(None) };
        if header.word == "geneve" && word == words::OPTION {
            self.next();
            let class = self.number("an option's class and type, such as 0x0102:0x80")?;
            self.expect(Token::Colon, "`:` and the option's type")?;
            let kind = self.number("the option's type")?;
            let fits = |parser: &mut Self, number: Spanned<u128>, max: u128, what: &str| {
                if number.value > max {
                    let message = format!("{} is out of range for {what}", number.value);
                    parser
                        .say(Diagnostic::new(Code::OutOfRange, number.span, message).hint(format!("at most {max:#x}")));
                }
                number.value.min(max)
            };
            return Ok(Some(FieldKind::GeneveOption {
                class: fits(self, class, 0xffff, "an option's class") as u16,
                kind: fits(self, kind, 0xff, "an option's type") as u8,
            }));
        }
        let kind = words::lookup(header.fields, word);
        if kind.is_some() {
            self.next();
        }
        Ok(kind)
    }

    /// Refuses `inner` for what is never inside.
    fn inner(&mut self, layer: Layer, kind: FieldKind, start: Span) -> Parsed<()> {
        if layer == Layer::Outer || kind.may_be_inner() {
            return Ok(());
        }
        let span = self.since(start);
        let message = format!("{} is looked for in the outer headers only", quoted(self.slice(span)));
        Err(self.say(Diagnostic::new(Code::Syntax, span, message).hint("leave `inner` out")))
    }

    fn subject(&mut self) -> Parsed<Subject> {
        match self.subject_or_header()? {
            Ok(subject) => Ok(subject),
            Err(header) => {
                let fields: Vec<&'static str> = words::HEADERS
                    .iter()
                    .filter(|word| word.itself == header.kind)
                    .flat_map(|word| word.fields.iter().map(|(field, _)| *field))
                    .collect();
                let what = format!("a field of `{}`", words::header_text(header).unwrap_or_default());
                let hint = match fields.as_slice() {
                    [] => "it has no fields, and stands alone".to_owned(),
                    fields => format!("its fields are {}", alternatives(fields.iter().copied())),
                };
                Err(self.expected_but(&what, hint))
            }
        }
    }

    /// What is asked of a field or trait.
    fn question(&mut self, subject: Subject) -> Parsed<Test> {
        if self.eat_word("is") {
            if self.word() == Some("not") {
                let span = self.span();
                let hint = format!("write `not {} is set`", self.slice(subject.span));
                return Err(self.say(Diagnostic::new(Code::Syntax, span, "expected `set`, found `not`").hint(hint)));
            }
            self.expect_word("set")?;
            return Ok(Test::IsSet(subject));
        }
        if self.eat_word("in") {
            return match self.peek() {
                Token::OpenBrace | Token::Table => self.membership(subject, false),
                Token::Constant => {
                    let pattern = self.pattern("a list")?;
                    Ok(Test::Compare { subject, operator: None, pattern })
                }
                _ => Err(self.expected("a list in braces or `@` and a set's name")),
            };
        }
        if self.eat(Token::Ampersand) {
            // nftables prints parentheses
            let parenthesis = self.eat(Token::OpenParenthesis);
            let mask = self.flags("the bits to look at")?;
            if parenthesis {
                self.expect(Token::CloseParenthesis, "`)`")?;
            } else if matches!(mask.kind, PatternKind::Bits(_)) {
                let message = "nftables reads `&` before `|`: there this mask would be its first flag alone";
                let hint = format!("write `({})`", self.slice(mask.span));
                self.say(Diagnostic::new(Code::Misleading, mask.span, message).hint(hint));
            }
            let negated = match self.peek() {
                Token::Equal => false,
                Token::NotEqual => true,
                _ => return Err(self.expected("`==` or `!=`")),
            };
            self.next();
            let value = self.pattern("the bits that are to be set")?;
            return Ok(Test::Masked { subject, mask, negated, value });
        }
        let operator = match self.peek() {
            Token::Equal => Some(Comparison::Equal),
            Token::NotEqual => Some(Comparison::NotEqual),
            Token::Less => Some(Comparison::Less),
            Token::LessOrEqual => Some(Comparison::LessOrEqual),
            Token::Greater => Some(Comparison::Greater),
            Token::GreaterOrEqual => Some(Comparison::GreaterOrEqual),
            Token::Assign => {
                return Err(self.expected_but("a comparison", "to compare, write `==`"));
            }
            _ => None,
        };
        let operator = operator.map(|value| Spanned { value, span: self.next().1 });
        if matches!(self.peek(), Token::OpenBrace | Token::Table) {
            match operator {
                None | Some(Spanned { value: Comparison::Equal | Comparison::NotEqual, .. }) => {}
                Some(operator) => {
                    let message = "a set can be compared with by `==` and `!=` only";
                    return Err(self.say(Diagnostic::new(Code::Syntax, operator.span, message)));
                }
            }
            let negated = operator.is_some_and(|operator| operator.value == Comparison::NotEqual);
            return self.membership(subject, negated);
        }
        self.not_a_value(&subject)?;
        const WHAT: &str = "a value, a comparison or `is set`";
        if !matches!(subject.kind, SubjectKind::Field(Field { kind: FieldKind::TcpFlags, .. }, _)) {
            let pattern = self.pattern(WHAT)?;
            return Ok(Test::Compare { subject, operator, pattern });
        }
        let value = self.flags(WHAT)?;
        if self.peek() != Token::Slash {
            return Ok(Test::Compare { subject, operator, pattern: value });
        }
        // `tcp flags syn / fin,syn,rst,ack`
        let negated = match operator {
            None | Some(Spanned { value: Comparison::Equal, .. }) => false,
            Some(Spanned { value: Comparison::NotEqual, .. }) => true,
            Some(_) => return Err(self.expected("the end of the test")),
        };
        self.next();
        let mask = self.flags("the flags to look at")?;
        Ok(Test::Masked { subject, mask, negated, value })
    }

    /// Refuses words that go on with the rule where a value must be: `ip saddr drop`.
    fn not_a_value(&mut self, subject: &Subject) -> Parsed<()> {
        let Some(word) = self.word() else { return Ok(()) };
        let values = match subject.kind {
            SubjectKind::Field(field, _) => words::values(field.kind),
            SubjectKind::Trait(_) => &[],
        };
        if words::lookup(values, word).is_some()
            || !(words::ACTIONS.contains(&word) || matches!(word, "and" | "or" | "not"))
        {
            return Ok(());
        }
        let written = self.slice(subject.span);
        let negated_set = word == "not" && self.next_word() == Some("set");
        let hint = match (word, &subject.kind) {
            ("not", _) if negated_set => format!("write `not {written} is set`"),
            ("not", _) => format!("write `{written} != VALUE`, or `not {written} is set`"),
            ("set", SubjectKind::Trait(key)) => format!("write `set {} = VALUE`", key.value),
            ("set", SubjectKind::Field(..)) => "policies set traits, and not fields of packets".to_owned(),
            (_, SubjectKind::Field(Field { kind: FieldKind::Fragment, .. }, _)) => {
                format!(
                    "of fragments, write `{written} != none`; of the first or of later ones, `{written} first` or `later`"
                )
            }
            _ => format!("to ask whether it is there, write `{written} is set`"),
        };
        Err(self.expected_but(&format!("a value of `{written}`"), hint))
    }

    fn membership(&mut self, subject: Subject, negated: bool) -> Parsed<Test> {
        if self.peek() == Token::Table {
            let table = self.table_name()?;
            return Ok(Test::InTable { subject, negated, table });
        }
        let (elements, list) = self.list(false)?;
        Ok(Test::InList { subject, negated, elements, list })
    }

    fn table_name(&mut self) -> Parsed<Spanned<String>> {
        let span = self.expect(Token::Table, "`@` and a name")?;
        Ok(Spanned { value: self.slice(span)[1..].to_owned(), span })
    }

    // Actions.

    fn action(&mut self) -> Parsed<Action> {
        let word = self.word().unwrap_or_default();
        self.next();
        Ok(match word {
            "set" => {
                let key = self.spanned_word("a key's name")?;
                let value = if self.eat(Token::Assign) {
                    self.newlines();
                    Some(self.value()?)
                } else {
                    None
                };
                Action::Set(key, value)
            }
            "delete" => Action::Delete(self.spanned_word("a key's name")?),
            "count" => match self.word() {
                Some("by") => return Err(self.expected("the counter's name in front of `by`")),
                Some(word) if !words::ACTIONS.contains(&word) => {
                    let name = self.name("a counter's name")?;
                    let by = if self.eat_word("by") { Some(self.subject()?) } else { None };
                    Action::Count(Some((name, by)))
                }
                _ => Action::Count(None),
            },
            "log" => {
                let text = match self.peek() {
                    Token::Text | Token::Constant => Some(self.literal("a text")?),
                    _ => None,
                };
                let sample = if self.eat_word("sample") { Some(self.sample()?) } else { None };
                Action::Log { text, sample }
            }
            "mark" => {
                self.eat_word("set");
                Action::Mark(self.value()?)
            }
            "priority" => {
                self.eat_word("set");
                Action::Priority(self.value()?)
            }
            "queue" => Action::Queue(self.value()?),
            "accept" => Action::Accept,
            "drop" => Action::Drop,
            "redirect" => match self.word() {
                Some("cpu") => {
                    self.next();
                    Action::RedirectCpu(self.value()?)
                }
                Some("xsk") => {
                    self.next();
                    Action::RedirectXsk(if self.at_line_end() { None } else { Some(self.value()?) })
                }
                Some(word) => {
                    let hint = match closest(word, ["cpu", "xsk"]) {
                        Some(meant) => format!("did you mean `{meant}`?"),
                        None if word == "to" => "ports are not redirected; an interface is written \"eth1\"".to_owned(),
                        None => format!("an interface is written \"{word}\""),
                    };
                    return Err(self.expected_but("an interface's name in quotes, `cpu` or `xsk`", hint));
                }
                None => Action::RedirectDevice(self.interface_literal()?),
            },
            _ => Action::Member(self.value()?),
        })
    }

    /// `1/N`
    fn sample(&mut self) -> Parsed<Spanned<(u128, u128)>> {
        const WHAT: &str = "a part of all, such as 1/100";
        let start = self.span();
        let one = self.number(WHAT)?;
        self.expect(Token::Slash, WHAT)?;
        let of = self.number(WHAT)?;
        Ok(Spanned { value: (one.value, of.value), span: self.since(start) })
    }

    fn value(&mut self) -> Parsed<Value> {
        const WHAT: &str = "a value";
        let start = self.span();
        let kind = match self.word() {
            Some("unique") => {
                self.next();
                ValueKind::Unique
            }
            Some("time") => {
                self.next();
                ValueKind::Time
            }
            Some("hash") => {
                self.next();
                self.expect(Token::OpenParenthesis, "`(5-tuple)` or `(inner 5-tuple)`")?;
                self.open += 1;
                let layer = if self.eat_word("inner") { Layer::Inner } else { Layer::Outer };
                self.expect(Token::FiveTuple, "`5-tuple`")?;
                self.expect(Token::CloseParenthesis, "`)`")?;
                self.open -= 1;
                ValueKind::Hash(layer)
            }
            Some("hardware") => {
                self.next();
                let which = match self.word() {
                    Some("timestamp") => Hardware::Timestamp,
                    Some("hash") => Hardware::Hash,
                    Some("vlan") => Hardware::VlanId,
                    _ => return Err(self.unknown("what the hardware says", &["timestamp", "hash", "vlan"])),
                };
                self.next();
                ValueKind::Hardware(which)
            }
            Some(_) if self.starts_subject() => {
                let subject = self.subject()?;
                if self.eat_word("map") {
                    match self.peek() {
                        Token::Table => ValueKind::InTable(subject, self.table_name()?),
                        Token::OpenBrace => {
                            let (elements, list) = self.list(true)?;
                            ValueKind::InList(subject, elements, list)
                        }
                        _ => return Err(self.expected("`@` and a map's name, or `{ KEY : VALUE, … }`")),
                    }
                } else {
                    ValueKind::Subject(subject)
                }
            }
            Some(word) => {
                let mut could = vec!["unique", "hash", "time", "hardware", "trait", "inner"];
                could.extend(words::HEADERS.iter().map(|header| header.word));
                could.extend(words::BARE_FIELDS.iter().map(|(word, _)| *word));
                let _ = word;
                return Err(self.unknown(WHAT, &could));
            }
            None => ValueKind::Constant(self.literal(WHAT)?),
        };
        Ok(Value { kind, span: self.since(start) })
    }

    fn starts_subject(&mut self) -> bool {
        self.word().is_some_and(|word| {
            matches!(word, "inner" | "trait")
                || words::header(word).is_some()
                || words::lookup(words::BARE_FIELDS, word).is_some()
        })
    }
}
