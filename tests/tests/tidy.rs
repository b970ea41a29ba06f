//! Goal: what the house style wants and a machine can see.
//! Method: read every file of the workspace as text; a rule broken is named with its place.
#![cfg(unix)]

use std::fs;

use failback_tests::source::{self, RustFile};
use failback_tests::tools;

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 100;
const LINE_LEN_MAX: usize = 100;

const FOLDERS: &[&str] = &[
    "vhdx",
    "transport",
    "engine",
    "cli",
    "benches",
    "fuzz",
    "tests",
];
const SHIPPED: &[&str] = &["vhdx/src", "transport/src", "engine/src", "cli/src"];
const WITHOUT_UNSAFE: &[&str] = &["vhdx/src/lib.rs", "transport/src/lib.rs", "cli/src/main.rs"];

/// Calls that wait for the medium, and where they may stand: a barrier that is asked for in
/// passing is one that no crash test leaves out.
const BARRIERS: &[&str] = &[
    ".sync_all()",
    ".sync_data()",
    ".sync()",
    ".write_through(",
    "fdatasync(",
    "fsync(",
];
const MAY_SYNC: &[&str] = &["vhdx/src/", "engine/src/system/", "engine/src/disk/"];
/// Where they stand behind an id, so that a test can leave each out: on a line with the closure
/// that `Barriers::pass` takes.
const BEHIND_AN_ID: &[&str] = &[
    "engine/src/state/",
    "engine/src/stage/",
    "engine/src/commit/",
];

/// What must not be left in code that ships.
const LEFT_OVERS: &[&str] = &["todo!(", "unimplemented!(", ".unwrap()", "dbg!("];

#[test]
fn files_are_short() {
    assert_none(&all_files(), |file| {
        let lines = file.text.lines().count();
        let is_long = lines > FILE_LINES_MAX;
        Vec::from_iter(is_long.then(|| format!("{lines} lines, {FILE_LINES_MAX} at most")))
    });
}

#[test]
fn functions_are_short() {
    assert_none(&all_files(), |file| {
        let functions = file.functions().into_iter();
        let long = functions.filter(|function| function.lines > FUNCTION_LINES_MAX);
        long.map(|function| format!("fn {} has {} lines", function.name, function.lines))
            .collect()
    });
}

#[test]
fn lines_are_ascii_and_fit_the_page() {
    assert_none(&all_files(), |file| {
        let lines = file.text.lines().enumerate();
        let wrong = lines.filter(|(_, line)| line.len() > LINE_LEN_MAX || !line.is_ascii());
        wrong
            .map(|(at, line)| format!("line {}: {line}", at + 1))
            .collect()
    });
}

#[test]
fn docs_are_ascii() {
    let listed = tools::run(
        "git",
        ["-C", &root(), "ls-files", "*.md", "*.toml", "*.sh", ".ci"],
    );
    for name in listed.lines() {
        let text = fs::read_to_string(source::root().join(name)).unwrap_or_default();
        let wrong = text.lines().find(|line| !line.is_ascii());
        assert_eq!(wrong, None, "{name}");
    }
}

#[test]
fn shipped_code_has_no_left_overs() {
    assert_none(&files_of(SHIPPED), |file| {
        let code = file.shipped_code();
        let found = LEFT_OVERS.iter().filter(|left| code.contains(**left));
        found.map(|left| format!("has {left}")).collect()
    });
}

#[test]
fn crates_forbid_unsafe_code() {
    for path in WITHOUT_UNSAFE {
        let text = fs::read_to_string(source::root().join(path)).expect("root of the crate");
        assert!(
            text.contains("#![forbid(unsafe_code)]"),
            "{path} does not forbid unsafe code"
        );
    }
}

#[test]
fn barriers_stand_in_their_modules() {
    assert_none(&files_of(SHIPPED), |file| {
        let code = file.shipped_code();
        let is_in = |modules: &[&str]| modules.iter().any(|m| file.path.starts_with(m));
        let (may_sync, has_id) = (is_in(MAY_SYNC), is_in(BEHIND_AN_ID));
        let lines = code
            .lines()
            .filter(|line| !(may_sync || has_id && line.contains("|| ")));
        let calls = lines.filter(|line| BARRIERS.iter().any(|call| line.contains(call)));
        calls
            .map(|line| format!("waits: {}", line.trim()))
            .collect()
    });
}

#[test]
fn libraries_read_no_environment() {
    assert_none(
        &files_of(&["vhdx/src", "transport/src", "engine/src"]),
        |file| {
            let code = file.shipped_code();
            let found = ["env::var", "println!(", "process::exit("].into_iter();
            found
                .filter(|call| code.contains(call))
                .map(|call| format!("calls {call}"))
                .collect()
        },
    );
}

#[test]
fn names_of_files_are_nouns_of_the_field() {
    assert_none(&files_of(SHIPPED), |file| {
        let stem = file.path.rsplit('/').next().unwrap_or_default();
        let vague = [
            "utils.rs",
            "util.rs",
            "common.rs",
            "types.rs",
            "misc.rs",
            "helpers.rs",
        ];
        Vec::from_iter(
            vague
                .contains(&stem)
                .then(|| "says nothing by its name".to_owned()),
        )
    });
}

#[test]
fn project_names_no_place_of_a_machine() {
    let listed = tools::run("git", ["-C", &root(), "ls-files"]);
    for name in listed.lines() {
        let text = fs::read(source::root().join(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let places = ["/work/", "/root/", "/home/"].map(|place| (place, text.contains(place)));
        // This file names them to look for them.
        let is_here = name == "tests/tests/tidy.rs";
        assert!(
            is_here || places.iter().all(|(_, found)| !found),
            "{name}: {places:?}"
        );
    }
}

fn root() -> String {
    source::root().to_str().expect("UTF-8").to_owned()
}

fn all_files() -> Vec<RustFile> {
    files_of(FOLDERS)
}

fn files_of(folders: &[&str]) -> Vec<RustFile> {
    folders
        .iter()
        .flat_map(|folder| source::rust_files(folder))
        .collect()
}

fn assert_none(files: &[RustFile], wrong: impl Fn(&RustFile) -> Vec<String>) {
    let broken: Vec<String> = files
        .iter()
        .flat_map(|file| {
            wrong(file)
                .into_iter()
                .map(|what| format!("{}: {what}", file.path))
        })
        .collect();
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}
