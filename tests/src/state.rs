//! What `failback` keeps about a target, seen from outside: its word, its journal, its stage.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cli;
use crate::scene::args_of;

/// Bytes of a page of the journal; each entry of these tests takes one.
pub const PAGE_LEN: u64 = 4096;
/// Where in its page an entry is once more.
pub const SECOND_COPY: u64 = 2048;

/// What `info` says of a target's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// A word of docs/states.md, if there is any state.
    pub word: Option<String>,
    /// Neither the old disk nor the new one.
    pub is_mixed: bool,
}

impl Look {
    /// The word, `none` where there is none.
    pub fn name(&self) -> &str {
        self.word.as_deref().unwrap_or("none")
    }
}

/// Asks for the state of a target.
///
/// # Panics
///
/// When `info` fails.
pub fn look(target: &Path) -> Look {
    let info = json_of("info", target);
    Look {
        word: info["state"].as_str().map(str::to_owned),
        is_mixed: info["is_mixed"].as_bool().expect("is_mixed"),
    }
}

/// What `info` warns of in a target's state.
///
/// # Panics
///
/// When `info` fails.
pub fn warnings(target: &Path) -> Vec<String> {
    let info = json_of("info", target);
    let texts = info["state_warnings"].as_array().into_iter().flatten();
    texts.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Asks for the state of a target and fails unless it is true, given the roots of the old disk and
/// of the new one.
///
/// # Panics
///
/// As said; `context` is how it came about.
pub fn look_true(target: &Path, old_root: &str, new_root: &str, context: &str) -> Look {
    let look = look(target);
    let may_be: &[&str] = match (look.is_mixed, look.word.as_deref()) {
        (true, _) => return look,
        (_, None | Some("staging" | "staged" | "aborted" | "old_restored")) => &[old_root],
        (_, Some("new_unverified" | "new_verified" | "done")) => &[new_root],
        // A new file that takes the target's name does so in one step.
        (_, Some(_)) => &[old_root, new_root],
    };
    let root = root_of(target);
    assert!(
        may_be.contains(&root.as_str()),
        "{look:?}, {root}; {context}"
    );
    look
}

/// Root of what an image holds.
///
/// # Panics
///
/// When it cannot be read.
pub fn root_of(image: &Path) -> String {
    let map = json_of("map", image);
    map["root"].as_str().expect("a root").to_owned()
}

fn json_of(command: &str, image: &Path) -> Value {
    let run = cli::failback(args_of(command, &[image], &["--json"]));
    run.exits(0).json()
}

/// The state directory of a target, if there is one.
///
/// # Panics
///
/// When the target has no name.
pub fn directory(target: &Path) -> Option<PathBuf> {
    directory_below(&target.with_file_name(".failback"), target)
}

/// The same for a target whose state is kept below `base`.
///
/// # Panics
///
/// When the target has no name.
pub fn directory_below(base: &Path, target: &Path) -> Option<PathBuf> {
    let name = target.file_name().expect("name of the target");
    let start = format!("{}-", name.to_str().expect("UTF-8"));
    let entries = fs::read_dir(base).ok()?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    paths.find(|path| {
        path.file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with(&start))
    })
}

/// Entries of a target's journal so far.
pub fn journal_pages(target: &Path) -> u64 {
    let path = directory(target).map(|directory| directory.join("journal"));
    let meta = path.and_then(|path| fs::metadata(path).ok());
    meta.map_or(0, |meta| meta.len() / PAGE_LEN)
}
