//! The project's own source text, as the tests of tidiness and of imports read it.

use std::fs;
use std::path::{Path, PathBuf};

/// A file of Rust code.
#[derive(Debug)]
pub struct RustFile {
    /// Path from the root of the workspace.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// A function and its length.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Lines from `fn` to the closing brace.
    pub lines: usize,
}

/// Root of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("workspace")
        .to_owned()
}

/// All files of Rust code below a folder of the workspace.
///
/// # Panics
///
/// When one cannot be read.
pub fn rust_files(folder: &str) -> Vec<RustFile> {
    let root = root();
    let mut files = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.expect("entry").path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|suffix| suffix == "rs") {
                let text = fs::read_to_string(&path).expect("source text");
                let path = path.strip_prefix(&root).expect("below the root");
                files.push(RustFile {
                    path: path.to_string_lossy().into_owned(),
                    text,
                });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

impl RustFile {
    /// The text without comments, and with empty strings and characters: what is left of a brace
    /// or a word is code. Lines stay where they are.
    pub fn code(&self) -> String {
        strip(&self.text)
    }

    /// [`RustFile::code`] up to the tests, which stand at the end of a file.
    pub fn shipped_code(&self) -> String {
        let code = self.code();
        let end = code.find("#[cfg(test)]\nmod ").unwrap_or(code.len());
        code[..end].to_owned()
    }

    /// Every function with a body.
    pub fn functions(&self) -> Vec<Function> {
        functions(&self.code())
    }
}

fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let is_word = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let rest = &code[at + 3..];
        let name: String = rest
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        let open = rest
            .find(['{', ';'])
            .filter(|open| rest[*open..].starts_with('{'));
        if let Some(open) = open.filter(|_| is_word && !name.is_empty()) {
            let lines = rest[..open + body_len(&rest[open..])].lines().count();
            found.push(Function { name, lines });
        }
    }
    found
}

/// Length of the text from its first `{` to the brace that closes it.
fn body_len(text: &str) -> usize {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => continue,
        }
        if depth == 0 {
            return at + 1;
        }
    }
    text.len()
}

fn strip(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(len) = raw_string_len(rest, &out) {
            len
        } else if c == '"' {
            quoted_len(rest, '"')
        } else if c == '\'' {
            char_len(rest)
        } else {
            0
        };
        if skipped == 0 {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            out.extend(rest[..skipped].chars().filter(|c| *c == '\n'));
            rest = &rest[skipped..];
        }
    }
    out
}

fn raw_string_len(text: &str, before: &str) -> Option<usize> {
    let in_word = before.ends_with(|c: char| (c.is_alphanumeric() && c != 'b') || c == '_');
    let hashes = text
        .strip_prefix('r')?
        .chars()
        .take_while(|c| *c == '#')
        .count();
    let open = 1 + hashes;
    let is_raw = text[open..].starts_with('"') && !in_word;
    let close = format!("\"{}", "#".repeat(hashes));
    let end = text[open..].get(1..)?.find(&close)?;
    is_raw.then_some(open + 1 + end + close.len())
}

fn quoted_len(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if !is_escaped && c == quote {
            return at + 1;
        }
        is_escaped = !is_escaped && c == '\\';
    }
    text.len()
}

/// Length of a character literal, or 0 for a lifetime.
fn char_len(text: &str) -> usize {
    let mut chars = text.chars().skip(1);
    let is_literal = chars.next() == Some('\\') || chars.next() == Some('\'');
    if is_literal {
        quoted_len(text, '\'')
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: braces in text are no code. Method: one of each kind of text, and a lifetime.
    #[test]
    fn text_is_stripped_and_code_is_kept() {
        let text = "a('{', \"}\\\"\", r#\"\"{\"#, 'x); /* } */ b // {\n'\\'' c";

        assert_eq!(strip(text), "a(, , , 'x);  b \n c");
    }

    // Goal: lengths count from `fn` to the closing brace. Method: nested, and a declaration.
    #[test]
    fn functions_are_measured() {
        let code = "fn a();\nfn b() {\n  if x {\n  }\n}\nlet f: fn (u8);\n";

        assert_eq!(
            functions(code),
            [Function {
                name: "b".into(),
                lines: 4
            }]
        );
    }
}
