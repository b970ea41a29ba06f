//! Programs by others that read VHDX.

use std::fs;
use std::io::{BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::support::run;

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Whether all of them are installed; says so loudly where not.
pub(crate) fn are_there() -> bool {
    let is_there = |tool: &str, args: &[&str]| {
        let output = Command::new(tool).args(args).output();
        let found = output.is_ok_and(|output| output.status.success());
        if !found {
            eprintln!("SKIPPED: no {tool} {args:?}");
        }
        found
    };
    is_there("qemu-img", &["--version"])
        && is_there("qemu-io", &["--version"])
        && is_there("stdbuf", &["--version"])
        && is_there("7zz", &["i"])
        && is_there(PYTHON, &["-c", "import pyvhdi"])
}

/// Fails unless QEMU finds the image clean.
pub(crate) fn assert_clean(image: &Path, what: &str) {
    let (clean, output) = run("qemu-img", &["check", "-f", "vhdx", text(image)]);
    assert!(clean, "{what}: {output}");
}

/// The whole disk as QEMU reads it.
pub(crate) fn qemu(image: &Path) -> Vec<u8> {
    let raw = image.with_extension("raw");
    let paths = [text(image), text(&raw)];
    let convert = ["convert", "-f", "vhdx", "-O", "raw", paths[0], paths[1]];
    let (done, output) = run("qemu-img", &convert);
    assert!(done, "{output}");
    let bytes = fs::read(&raw).unwrap();
    fs::remove_file(&raw).unwrap();
    bytes
}

/// The whole disk as 7-Zip reads it, the strictest of all.
pub(crate) fn seven_zip(image: &Path, what: &str) -> Vec<u8> {
    let output = Command::new("7zz")
        .args(["e", "-tvhdx", "-so", text(image)])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: 7zz: {said}");
    output.stdout
}

/// libvhdi in a process that stays.
pub(crate) struct Libvhdi {
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Libvhdi {
    pub(crate) fn start() -> Self {
        let mut process = Command::new(PYTHON)
            .args(["-c", SERVER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            requests: process.stdin.take().unwrap(),
            answers: BufReader::new(process.stdout.take().unwrap()),
            process,
        }
    }

    /// So many bytes from `at` on.
    pub(crate) fn read(&mut self, image: &Path, at: u64, len: usize) -> Vec<u8> {
        writeln!(self.requests, "{}\t{at}\t{len}", text(image)).unwrap();
        self.requests.flush().unwrap();
        let mut bytes = vec![0; len];
        self.answers.read_exact(&mut bytes).unwrap();
        bytes
    }
}

impl Drop for Libvhdi {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Debian's own Python: another one on the search path does not see its packages.
const PYTHON: &str = "/usr/bin/python3";
const SERVER: &str = "
import sys, pyvhdi
for line in sys.stdin:
    path, at, length = line.rstrip('\\n').split('\\t')
    image = pyvhdi.file()
    image.open(path)
    image.seek(int(at))
    left = int(length)
    while left:
        data = image.read(min(left, 1 << 20))
        if not data:
            sys.exit('short read')
        sys.stdout.buffer.write(data)
        left -= len(data)
    sys.stdout.buffer.flush()
    image.close()
";
