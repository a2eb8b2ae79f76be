//! Files and the files they include.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, Read},
    path::{Component, Path, PathBuf},
    string::FromUtf8Error,
};

use crate::{
    diagnostic::{Code, Diagnostic, Diagnostics},
    source::{Sources, Span},
    syntax::{self, ast::Item},
};

/// How deep files may include files.
const DEPTH_MAX: usize = 32;

/// How many files a policy may consist of.
const FILES_MAX: usize = 1_000;

/// Bytes of the longest file.
const LEN_MAX: usize = 64 << 20;

/// Where files come from.
pub trait Loader {
    /// What is in a file.
    ///
    /// # Errors
    /// Those of reading it.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// What is the same for all paths of a file.
    fn identity(&self, path: &Path) -> PathBuf {
        lexical(path)
    }
}

/// A path without `.` and `..`, as far as that can be told from its text.
fn lexical(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if plain.file_name().is_some() => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}

/// The file system. Files of more than 64 MiB are refused.
#[derive(Clone, Copy, Debug, Default)]
pub struct Files;

impl Loader for Files {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(LEN_MAX as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > LEN_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it has more than 64 MiB"));
        }
        Ok(bytes)
    }

    fn identity(&self, path: &Path) -> PathBuf {
        path.canonicalize().unwrap_or_else(|_| path.to_owned())
    }
}

/// Texts in memory, by their paths.
#[derive(Clone, Debug, Default)]
pub struct Texts(HashMap<PathBuf, Vec<u8>>);

impl<P: Into<PathBuf>, T: Into<Vec<u8>>> FromIterator<(P, T)> for Texts {
    fn from_iter<I: IntoIterator<Item = (P, T)>>(texts: I) -> Texts {
        Texts(texts.into_iter().map(|(path, text)| (lexical(&path.into()), text.into())).collect())
    }
}

impl Loader for Texts {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.0.get(&lexical(path)).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// What a file and all it includes consist of, in order.
pub(super) fn load(
    main: &Path,
    loader: &dyn Loader,
    sources: &mut Sources,
    diagnostics: &mut Diagnostics,
) -> Vec<Item> {
    let mut loading = Loading { loader, sources, diagnostics, taken: HashSet::new(), items: Vec::new() };
    loading.file(main, None, 0);
    loading.items
}

struct Loading<'a> {
    loader: &'a dyn Loader,
    sources: &'a mut Sources,
    diagnostics: &'a mut Diagnostics,
    taken: HashSet<PathBuf>,
    items: Vec<Item>,
}

impl Loading<'_> {
    /// Takes in a file, unless it has been; `asked` is where it is included.
    fn file(&mut self, path: &Path, asked: Option<Span>, depth: usize) {
        if !self.taken.insert(self.loader.identity(path)) {
            return;
        }
        let name = path.display().to_string();
        let bytes = match self.loader.read(path) {
            Ok(bytes) => bytes,
            Err(error) => {
                let span = asked.unwrap_or_else(|| Span::new(self.sources.add(name.as_str(), ""), 0..0));
                let message = format!("cannot read `{}`: {error}", name.escape_debug());
                let diagnostic = Diagnostic::new(Code::CannotRead, span, message);
                self.diagnostics.push(match asked {
                    Some(_) => diagnostic.hint("paths are relative to the file that includes"),
                    None => diagnostic,
                });
                return;
            }
        };
        let source = match String::from_utf8(bytes) {
            Ok(text) => self.sources.add(name, text),
            Err(error) => return self.not_text(name, &error),
        };
        let parsed = syntax::parse(source, &self.sources.get(source).text, self.diagnostics);
        for item in parsed {
            match item {
                Item::Include(included) if depth == DEPTH_MAX => {
                    let message = format!("files include files deeper than {DEPTH_MAX}");
                    self.diagnostics.push(Diagnostic::new(Code::TooDeep, included.span, message));
                }
                Item::Include(included) if self.taken.len() >= FILES_MAX => {
                    let message = format!("the policy consists of more than {FILES_MAX} files");
                    self.diagnostics.push(Diagnostic::new(Code::TooMany, included.span, message));
                }
                Item::Include(included) => {
                    let folder = path.parent().unwrap_or(Path::new(""));
                    self.file(&folder.join(&included.value), Some(included.span), depth + 1);
                }
                item => self.items.push(item),
            }
        }
    }

    /// Says that a file is not in UTF-8, and where.
    fn not_text(&mut self, name: String, error: &FromUtf8Error) {
        let place = error.utf8_error().valid_up_to();
        let source = self.sources.add(name, String::from_utf8_lossy(error.as_bytes()));
        let span = Span::new(source, place..place + char::REPLACEMENT_CHARACTER.len_utf8());
        let diagnostic = Diagnostic::new(Code::NotUtf8, span, "this file is not text in UTF-8");
        self.diagnostics.push(diagnostic.label("these bytes are none"));
    }
}
