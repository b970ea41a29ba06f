//! Runs of the command, as an operator makes them.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::tools;

/// A run that takes longer hangs, for all that a test can tell.
pub const RUN_MAX: Duration = Duration::from_secs(150);

/// How often a running command is looked at; also how long a peak of memory may stay unseen.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What a run left behind.
#[derive(Debug)]
pub struct Run {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
    /// Most memory it held at once (VmHWM), in bytes.
    pub peak_bytes: u64,
    /// Time that it had a processor, all threads together: others who use the machine too change
    /// little of it.
    pub cpu: Duration,
}

/// A run that is still going on.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: JoinHandle<String>,
    stderr: JoinHandle<String>,
    started: Instant,
}

/// Path of the command: the release build in the target folder of this test.
///
/// # Panics
///
/// When it was not built.
pub fn binary() -> PathBuf {
    let test = env::current_exe().expect("path of the test");
    // target/PROFILE/deps/TEST; doc tests and benches stand elsewhere and do not use this.
    let target = test.ancestors().nth(3).expect("target folder");
    let binary = target.join("release/failback");
    assert!(
        binary.is_file(),
        "{} is missing: run tests/run.sh",
        binary.display()
    );
    binary
}

/// Runs `failback ARGS` to its end.
///
/// # Panics
///
/// When it cannot be started, or hangs.
pub fn failback<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Run {
    start(args).wait()
}

/// The same, started in a folder.
///
/// # Panics
///
/// As [`failback`].
pub fn failback_in<S: AsRef<OsStr>>(folder: &Path, args: impl IntoIterator<Item = S>) -> Run {
    let mut command = Command::new(binary());
    command.current_dir(folder);
    command.args(args.into_iter().map(|arg| OsString::from(arg.as_ref())));
    start_command(command).wait()
}

/// Runs `failback sync SOURCE TARGET --json`.
///
/// # Panics
///
/// As [`failback`].
pub fn sync(source: impl AsRef<OsStr>, target: impl AsRef<OsStr>) -> Run {
    failback([
        OsStr::new("sync"),
        source.as_ref(),
        target.as_ref(),
        OsStr::new("--json"),
    ])
}

/// Starts `failback ARGS` without input, its output collected.
///
/// # Panics
///
/// When it cannot be started.
pub fn start<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Running {
    let mut command = Command::new(binary());
    command.args(args.into_iter().map(|arg| OsString::from(arg.as_ref())));
    start_command(command)
}

/// Runs a program that runs the command (`strace`) to its end.
///
/// # Panics
///
/// When it cannot be started, or hangs.
pub fn run_program(name: &str, args: &[String]) -> Run {
    let program = tools::find(name).unwrap_or_else(|| PathBuf::from(name));
    let mut command = Command::new(program);
    command.args(args);
    start_command(command).wait()
}

fn start_command(mut command: Command) -> Running {
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
    let stdout = collect(child.stdout.take().expect("piped"));
    let stderr = collect(child.stderr.take().expect("piped"));
    Running {
        child,
        stdout,
        stderr,
        started,
    }
}

impl Running {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its name (`STOP`, `CONT`, `TERM`, `KILL`).
    ///
    /// # Panics
    ///
    /// When the process is gone.
    pub fn signal(&self, name: &str) {
        tools::run("kill", [format!("-{name}"), self.child.id().to_string()]);
    }

    /// Ends it at once, if it still runs.
    ///
    /// # Panics
    ///
    /// When that is not possible.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
    }

    /// Whether it has ended by itself.
    ///
    /// # Panics
    ///
    /// When the system does not tell.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("state of the child").is_some()
    }

    /// Waits until the process holds a lock on the file and stops it there.
    ///
    /// # Panics
    ///
    /// When it ends, or [`RUN_MAX`] passes, before that.
    pub fn stop_when_it_locks(&mut self, path: &Path) {
        while !crate::place::is_locked(path) {
            assert!(
                self.started.elapsed() < RUN_MAX,
                "never locked {}",
                path.display()
            );
            let ended = self.child.try_wait().expect("state of the child");
            assert!(
                ended.is_none(),
                "ended before a lock on {} was seen",
                path.display()
            );
        }
        self.signal("STOP");
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// When it takes longer than [`RUN_MAX`]; it is killed then.
    pub fn wait(mut self) -> Run {
        let (mut peak_bytes, mut cpu) = (0, Duration::ZERO);
        let status = loop {
            peak_bytes = peak_bytes.max(peak_of(self.child.id()));
            cpu = cpu.max(cpu_of(self.child.id()));
            if let Some(status) = self.child.try_wait().expect("state of the child") {
                break status;
            }
            if self.started.elapsed() > RUN_MAX {
                self.child.kill().expect("kill");
                self.child.wait().expect("end");
                let stderr = self.stderr.join().expect("collected");
                panic!("failback hangs; it said: {stderr}");
            }
            thread::sleep(LOOK_EVERY);
        };
        Run {
            code: status.code(),
            took: self.started.elapsed(),
            stdout: self.stdout.join().expect("collected"),
            stderr: self.stderr.join().expect("collected"),
            peak_bytes,
            cpu,
        }
    }
}

impl Run {
    /// Fails unless the exit code is this one; hands the run on.
    ///
    /// # Panics
    ///
    /// As said.
    #[must_use]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// The one JSON document on standard output.
    ///
    /// # Panics
    ///
    /// When there is none, or anything besides it.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}\n{}", self.stdout, self.stderr))
    }

    /// The error line: the only line on standard error, starting with `error: `.
    ///
    /// # Panics
    ///
    /// When there is more, less, or a panic's text.
    pub fn error_line(&self) -> &str {
        let lines: Vec<&str> = self.stderr.lines().collect();
        assert_eq!(lines.len(), 1, "one line wanted: {}", self.stderr);
        assert!(lines[0].starts_with("error: "), "{}", lines[0]);
        assert!(!lines[0].contains("panicked"), "{}", lines[0]);
        lines[0]
    }
}

/// Runs `failback ARGS` on a terminal that `script` plays; returns what the terminal got.
///
/// # Panics
///
/// When the run does not exit with 0.
pub fn on_terminal(args: &[&str]) -> String {
    let mut line = binary().to_str().expect("UTF-8").to_owned();
    for arg in args {
        line.push_str(&format!(" '{arg}'"));
    }
    tools::run("script", ["-q", "-e", "-c", &line, "/dev/null"])
}

fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).expect("output of the child");
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// User and system time, in the ticks of /proc: a hundredth of a second each; 0 when there is no
/// process any more.
fn cpu_of(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may hold spaces; what follows its bracket begins with the third field.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .flat_map(str::parse::<u64>)
        .sum();
    Duration::from_millis(ticks * 10)
}

/// VmHWM in bytes, or 0 when the process has none any more.
pub(crate) fn peak_of(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}
