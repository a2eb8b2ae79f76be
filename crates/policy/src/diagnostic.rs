//! What is wrong with a policy, or looks wrong: said to people ([`Diagnostic::render`]) and to machines ([`Report`]).

use std::collections::HashSet;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde::Serialize;

use crate::source::{Sources, Span};

/// How many diagnostics one check gives. It stops looking for more when it has this many.
pub const DIAGNOSTICS_MAX: usize = 100;

/// Of a line, what is farther away than this from what it is shown for is left out; in bytes.
const SHOWN_AROUND: usize = 1_000;

/// Whether a policy is refused for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Severity {
    /// It is.
    Error,
    /// It is not.
    Warning,
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $severity:ident $variant:ident $name:literal,)+) => {
        /// What kind of mistake it is. The names are stable.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Code {
            /// Every code.
            pub const ALL: &[Code] = &[$(Code::$variant),+];

            /// Its name, for people and machines.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Code::$variant => $name,)+
                }
            }

            /// Whether a policy is refused for it.
            pub const fn severity(self) -> Severity {
                match self {
                    $(Code::$variant => Severity::$severity,)+
                }
            }
        }
    };
}

codes! {
    /// A file cannot be read.
    Error CannotRead "cannot-read",
    /// A file is not text in UTF-8.
    Error NotUtf8 "not-utf8",
    /// There is more of something than a policy can have.
    Error TooMany "too-many",
    /// Parentheses, `not` or files in files go too deep.
    Error TooDeep "too-deep",
    /// Something else belongs here.
    Error Syntax "syntax",
    /// A word that means nothing here.
    Error UnknownWord "unknown-word",
    /// What looks like a number, address, time or text is none.
    Error BadConstant "bad-constant",
    /// A name that cannot be one.
    Error BadName "bad-name",
    /// A name that nothing has.
    Error UnknownName "unknown-name",
    /// Something is there twice.
    Error Duplicate "duplicate",
    /// Types do not agree.
    Error TypeMismatch "type-mismatch",
    /// A value that the field or key cannot have.
    Error OutOfRange "out-of-range",
    /// A prefix with bits behind it.
    Error HostBits "host-bits",
    /// Ranges of a set or map overlap.
    Error Overlap "overlap",
    /// A list without an element.
    Error Empty "empty",
    /// The hook cannot do it.
    Error HookCannot "hook-cannot",
    /// Something follows the end of a rule's doing.
    Error AfterVerdict "after-verdict",
    /// A rule does nothing.
    Error NoAction "no-action",
    /// The registry has the key in another way.
    Error KeyHeld "key-held",
    /// The registry has no room for the key.
    Error NoRoom "no-room",
    /// No packet comes to the rule.
    Warning Unreachable "unreachable",
    /// No packet passes the condition.
    Warning NeverHolds "never-holds",
    /// An element is there twice.
    Warning Repeated "repeated",
    /// Nothing uses it.
    Warning Unused "unused",
    /// It is read in another way than those would expect who know nftables.
    Warning Misleading "misleading",
    /// A chain or the kernel may have a netfilter program's priority.
    Warning TakenPriority "taken-priority",
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Diagnostic {
    /// What kind of mistake.
    pub code: Code,
    /// What is wrong, in one line.
    pub message: String,
    /// Where.
    pub span: Span,
    /// Said below the place; may be empty.
    pub label: String,
    /// Other places that have to do with it, and what they have to do with it.
    pub related: Vec<(Span, String)>,
    /// What to do.
    pub hints: Vec<String>,
}

impl Diagnostic {
    /// One with a message only.
    pub fn new(code: Code, span: Span, message: impl Into<String>) -> Diagnostic {
        Diagnostic { code, message: message.into(), span, label: String::new(), related: Vec::new(), hints: Vec::new() }
    }

    /// The same with something said below the place.
    #[must_use]
    pub fn label(self, label: impl Into<String>) -> Diagnostic {
        Diagnostic { label: label.into(), ..self }
    }

    /// The same with another place.
    #[must_use]
    pub fn related(mut self, span: Span, what: impl Into<String>) -> Diagnostic {
        self.related.push((span, what.into()));
        self
    }

    /// The same with one more hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Diagnostic {
        self.hints.push(hint.into());
        self
    }

    /// Whether the policy is refused for it.
    pub const fn severity(&self) -> Severity {
        self.code.severity()
    }

    /// Message, place, source line and hints, as text of several lines; in colour if that is asked for.
    pub fn render(&self, sources: &Sources, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let level = match self.severity() {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut group = Group::with_title(level.primary_title(self.message.as_str()).id(self.code.name()));
        let primary = (AnnotationKind::Primary, self.span, self.label.as_str());
        let others = self.related.iter().map(|(span, what)| (AnnotationKind::Context, *span, what.as_str()));
        let mut excerpts: Vec<Excerpt<'_>> = Vec::new();
        for annotation in [primary].into_iter().chain(others) {
            match excerpts.iter_mut().find(|excerpt| excerpt.has(annotation.1)) {
                Some(excerpt) => excerpt.annotations.push(annotation),
                None => excerpts.push(Excerpt::new(sources, annotation)),
            }
        }
        // of what could not be read there is nothing to show
        excerpts.retain(|excerpt| !sources.get(excerpt.shown.source).text.is_empty());
        for excerpt in excerpts {
            let span = excerpt.annotations[0].1;
            let path = sources.get(span.source).name.as_str();
            let (line, column) = sources.line_column(span.source, span.start);
            let annotations = excerpt.annotations.iter().map(|(kind, span, label)| {
                kind.span(excerpt.range(*span)).label(Some(*label).filter(|label| !label.is_empty()))
            });
            let snippet = Snippet::source(excerpt.text).line_start(line).annotations(annotations);
            group = if excerpt.shown.start == excerpt.whole_line.start {
                group.element(snippet.path(path))
            } else {
                // the column is not that in what is shown
                group.element(Origin::path(path).line(line).char_column(column)).element(snippet)
            };
        }
        for hint in &self.hints {
            group = group.element(Level::HELP.message(hint.as_str()));
        }
        renderer.render(&[group])
    }

    /// For machines.
    pub fn report(&self, sources: &Sources) -> Report {
        let place = |span: Span| {
            let position = |byte| {
                let (line, column) = sources.line_column(span.source, byte);
                Position { line, column }
            };
            let Position { line, column } = position(span.start);
            Place { file: sources.get(span.source).name.clone(), line, column, end: position(span.end) }
        };
        Report {
            severity: self.severity(),
            code: self.code.name(),
            message: self.message.clone(),
            place: place(self.span),
            label: self.label.clone(),
            related: self
                .related
                .iter()
                .map(|(span, message)| Related { message: message.clone(), place: place(*span) })
                .collect(),
            hints: self.hints.clone(),
        }
    }
}

/// A diagnostic for machines. Lines and columns are from 1, columns count characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// `error` or `warning`.
    pub severity: Severity,
    /// The code's name.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// Said of the place; may be empty.
    pub label: String,
    /// Other places.
    pub related: Vec<Related>,
    /// What to do.
    pub hints: Vec<String>,
}

/// A part of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The file's path.
    pub file: String,
    /// Its first line.
    pub line: usize,
    /// Its first column.
    pub column: usize,
    /// Where what comes after it starts.
    pub end: Position,
}

/// A place in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

/// Another place that a diagnostic speaks of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Related {
    /// What it has to do with it.
    pub message: String,
    /// Where.
    #[serde(flatten)]
    pub place: Place,
}

/// The line that a span starts in, or the part of a long line around it, and what is said of it.
struct Excerpt<'a> {
    whole_line: Span,
    shown: Span,
    text: &'a str,
    annotations: Vec<(AnnotationKind, Span, &'a str)>,
}

impl<'a> Excerpt<'a> {
    fn new(sources: &'a Sources, annotation: (AnnotationKind, Span, &'a str)) -> Excerpt<'a> {
        let span = annotation.1;
        let text = &sources.get(span.source).text;
        let start = text[..span.start].rfind('\n').map_or(0, |newline| newline + 1);
        let end = text[span.start..].find('\n').map_or(text.len(), |newline| span.start + newline);
        let whole_line = Span::new(span.source, start..end);
        let boundary = |byte: &usize| text.is_char_boundary(*byte);
        let from = (start.max(span.start.saturating_sub(SHOWN_AROUND))..=span.start).find(boundary);
        let to = (span.start..=end.min(span.start + SHOWN_AROUND)).rfind(boundary);
        let (from, to) = (from.unwrap_or(span.start), to.unwrap_or(end));
        let shown = Span::new(span.source, from..to);
        Excerpt { whole_line, shown, text: &text[from..to], annotations: vec![annotation] }
    }

    fn has(&self, span: Span) -> bool {
        span.source == self.shown.source && self.shown.start <= span.start && span.start <= self.shown.end
    }

    /// The part of a span that is shown.
    fn range(&self, span: Span) -> std::ops::Range<usize> {
        let place = |byte: usize| byte.clamp(self.shown.start, self.shown.end) - self.shown.start;
        place(span.start)..place(span.end.min(self.whole_line.end))
    }
}

/// Collects diagnostics: each place and message once, and not more than [`DIAGNOSTICS_MAX`].
#[derive(Debug, Default)]
pub(crate) struct Diagnostics {
    all: Vec<Diagnostic>,
    seen: HashSet<(Span, String)>,
    errors: usize,
}

impl Diagnostics {
    pub(crate) fn push(&mut self, diagnostic: Diagnostic) {
        let error = diagnostic.severity() == Severity::Error;
        self.errors += usize::from(error);
        if self.all.len() < DIAGNOSTICS_MAX && self.seen.insert((diagnostic.span, diagnostic.message.clone())) {
            self.all.push(diagnostic);
        } else if error && self.errors == 1 {
            // Warnings must not keep the only error out.
            self.all[DIAGNOSTICS_MAX - 1] = diagnostic;
        }
    }

    /// Whether there is no use in looking for more.
    pub(crate) fn is_full(&self) -> bool {
        self.has_errors() && self.all.len() >= DIAGNOSTICS_MAX
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// All of them, by their places.
    pub(crate) fn finish(mut self) -> Vec<Diagnostic> {
        self.all.sort_by_key(|diagnostic| (diagnostic.span.source, diagnostic.span.start));
        self.all
    }
}

/// A part of a policy as a message has it: in quotes, short, in one line.
pub(crate) fn quoted(text: &str) -> String {
    const LEN_MAX: usize = 48;
    let mut shown = String::from("`");
    for (place, character) in text.chars().enumerate() {
        if place == LEN_MAX {
            shown.push('…');
            break;
        }
        if character.is_control() { shown.extend(character.escape_default()) } else { shown.push(character) }
    }
    shown.push('`');
    shown
}

/// Words one after the other: `a, b or c`.
pub(crate) fn alternatives<'w>(words: impl IntoIterator<Item = &'w str>) -> String {
    let words: Vec<&'w str> = words.into_iter().collect();
    match words.as_slice() {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [rest @ .., last] => format!("{} or {last}", rest.join(", ")),
    }
}

/// The word that was probably meant. From one of fewer than four letters too many others differ in a letter: there it is
/// one of the same letters.
pub(crate) fn closest<'w>(word: &str, words: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    const WORD_LEN_MAX: usize = 40;
    const SHORT_LEN_MAX: usize = 3;
    if word.len() > WORD_LEN_MAX {
        return None;
    }
    if word.len() <= SHORT_LEN_MAX {
        let sorted = |word: &str| {
            let mut letters = word.as_bytes().to_vec();
            letters.sort_unstable();
            letters
        };
        return words.into_iter().find(|other| *other != word && sorted(other) == sorted(word));
    }
    let distance = |other: &&str| strsim::damerau_levenshtein(word, other);
    words.into_iter().min_by_key(distance).filter(|other| distance(other) <= 1.max(word.chars().count() / 3))
}
