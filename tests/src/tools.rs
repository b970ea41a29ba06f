//! Foreign programs: found, or missed aloud.

use std::env;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// Leaves the test when one of the programs is missing; with `CI` set it fails instead.
#[macro_export]
macro_rules! skip_without {
    ($($name:literal),+ $(,)?) => {
        if !$crate::tools::are_there(&[$($name),+]) {
            return;
        }
    };
}

/// Whether every program is on the search path, or `root` (the name) is who runs this.
///
/// # Panics
///
/// When one is missing and `CI` is set: a run that skips its judges must not look green.
pub fn are_there(names: &[&str]) -> bool {
    names.iter().all(|name| {
        let there = if *name == "root" {
            is_root()
        } else {
            find(name).is_some()
        };
        assert!(
            there || env::var_os("CI").is_none(),
            "{name} is missing: run tests/setup.sh"
        );
        if !there {
            say(&format!(
                "SKIP: {name} is missing; tests/setup.sh installs it"
            ));
        }
        there
    })
}

/// Where the program is, or `None`.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// Runs a program without input and returns what it said, whatever its exit code.
///
/// # Panics
///
/// When it cannot be started.
pub fn output<S: AsRef<OsStr>>(name: &str, args: impl IntoIterator<Item = S>) -> Output {
    let program = find(name).unwrap_or_else(|| PathBuf::from(name));
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("cannot start {name}: {e}"))
}

/// The same; returns its standard output.
///
/// # Panics
///
/// When it cannot be started or does not exit with 0.
pub fn run<S: AsRef<OsStr>>(name: &str, args: impl IntoIterator<Item = S>) -> String {
    let done = output(name, args);
    assert!(
        done.status.success(),
        "{name}: {}\n{}{}",
        done.status,
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8_lossy(&done.stdout).into_owned()
}

fn is_root() -> bool {
    run("id", ["-u"]).trim() == "0"
}

/// Says a line to whoever runs the tests.
#[allow(clippy::print_stderr)] // A skipped test has to be heard; the kit has no other voice.
pub fn say(line: &str) {
    eprintln!("{line}");
}
