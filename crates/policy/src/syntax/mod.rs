//! From text to what is written there.
//!
//! `logos` makes tokens; the grammar is descended by hand. Parser combinators (`chumsky`, `winnow`) were looked at:
//! this grammar has no reserved words, joins by standing side by side (`and` may be left out, actions follow conditions
//! without a mark), and hides line ends inside brackets, so that most of its errors are a word in the wrong place.
//! Saying which words could stand there, going on at the next line, and a limit to nesting need a hand on every step
//! anyway.

pub(crate) mod ast;
mod literal;
mod parser;
mod token;

pub(crate) use parser::{parse, text};
