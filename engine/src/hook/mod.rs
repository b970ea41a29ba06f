//! Commands of the operator, run for a step of a job.
//!
//! A hook is a program and its arguments; no shell is between. What it is asked for comes in its
//! environment, what it answers is read from its standard output, and whether it did what it was
//! asked to is its exit code.

mod period;
#[cfg(unix)]
mod process;
#[cfg(not(unix))]
#[path = "process_absent.rs"]
mod process;

use std::fmt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use self::process::{Ended, Ending};
use crate::abort::CancelToken;
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::event::Event;
use crate::step::Step;
use crate::system::is_executable;

/// A command of the operator.
///
/// Written as a list, `["virsh", "start", "web"]`, or with more to say about it:
/// `{ run = ["virsh", "start", "web"], timeout = "2m", env = { LIBVIRT_DEFAULT_URI = "..." } }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// The program, looked for in the search path, and its arguments, as they are.
    pub command: Vec<String>,
    /// How long it may take; it is killed then, with all that it started.
    pub timeout: Duration,
    /// Variables on top of the environment that this process has.
    pub env: Vec<(String, String)>,
}

impl Hook {
    /// How long a hook may take that does not say so.
    pub const TIMEOUT: Duration = Duration::from_secs(60);

    /// A hook that may take [`Hook::TIMEOUT`].
    pub fn new<S: Into<String>>(command: impl IntoIterator<Item = S>) -> Self {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            timeout: Self::TIMEOUT,
            env: Vec::new(),
        }
    }

    /// The same with another limit.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Why the hook that is called `name` cannot be run on this host, if that can be told without
    /// running it. May take some seconds.
    #[must_use]
    pub fn fault(&self, name: &str) -> Option<String> {
        let Some(program) = self.command.first().filter(|program| !program.is_empty()) else {
            return Some(format!("hook {name} names no program"));
        };
        let at = Path::new(program);
        let is_found = match at.iter().count() {
            1 => self.is_in_search_path(program),
            _ => is_executable(at),
        };
        let shown = one_line(program);
        (!is_found).then(|| format!("hook {name}: no program `{shown}` is there to be run"))
    }

    /// Asks a shell that has the hook's environment: this library reads none. Where there is no
    /// shell nothing is known against it.
    fn is_in_search_path(&self, program: &str) -> bool {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "command -v \"$1\"", "sh", program]);
        shell.envs(self.env.iter().map(|(key, value)| (key, value)));
        let answer = process::run(&mut shell, LOOKUP_MAX, &CancelToken::new());
        answer.map_or(true, |ended| ended.is_success())
    }

    /// Runs it under the name of its program, as [`Hook::run_as`].
    ///
    /// # Errors
    /// As [`Hook::run_as`].
    pub fn run(&self, step: &Step<'_>, extra_env: &[(&str, &str)]) -> Result<Said> {
        let program = self.command.first().map_or("", String::as_str);
        let name = Path::new(program).file_name();
        let name = name.map_or_else(|| program.into(), |name| name.to_string_lossy());
        self.run_as(&name, step, extra_env)
    }

    /// Runs it and waits for its end. `name` is what events and errors call it.
    ///
    /// Its environment is that of this process, then the hook's own, then `extra_env`, then
    /// `FAILBACK_JOB`, `FAILBACK_STEP` and `FAILBACK_HOOK`. It has no input. At its timeout, and
    /// when the step is cancelled, it and everything that it started in its process group is asked
    /// to end (SIGTERM) and two seconds later killed. What it leaves running when it ends by
    /// itself lives on, but nobody reads what that says any more.
    ///
    /// # Errors
    /// `Refused` when it ends with another code than 0, `Io` when it cannot be started, is ended by
    /// a signal or takes too long, `Cancelled`, `Usage` without a program, `Unsupported` on systems
    /// other than Unix.
    pub fn run_as(&self, name: &str, step: &Step<'_>, extra_env: &[(&str, &str)]) -> Result<Said> {
        self.run_within(name, step, extra_env, self.timeout, Tells::All)
    }

    /// The same for a question that is asked again and again: an event only when it fails.
    pub(crate) fn ask(&self, name: &str, step: &Step<'_>) -> Result<Said> {
        self.run_within(name, step, &[], self.timeout, Tells::Failures)
    }

    /// The same in no more than `limit`, if that is less than its own.
    pub(crate) fn run_within(
        &self,
        name: &str,
        step: &Step<'_>,
        extra_env: &[(&str, &str)],
        limit: Duration,
        tells: Tells,
    ) -> Result<Said> {
        step.check()?;
        let Some((program, arguments)) = self.command.split_first() else {
            let message = format!("hook {name} names no program");
            return Err(Error::new(ErrorKind::Usage, message));
        };
        let mut command = Command::new(program);
        command.args(arguments);
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        command.envs(extra_env.iter().copied());
        command.env("FAILBACK_JOB", step.job);
        command.env("FAILBACK_STEP", step.name);
        command.env("FAILBACK_HOOK", name);
        let limit = limit.min(self.timeout);
        let from = Instant::now();
        let ran = process::run(&mut command, limit, step.cancel);
        let seconds = from.elapsed().as_secs_f64();
        let is_told = tells == Tells::All || !matches!(&ran, Ok(ended) if ended.is_success());
        if is_told {
            step.observer.event(&Event::HookRan {
                hook: name.to_owned(),
                step: step.name.to_owned(),
                seconds,
                outcome: outcome(&ran),
                output: ran
                    .as_ref()
                    .map_or_else(|_| String::new(), |e| lines(&e.tail)),
            });
        }
        verdict(name, program, limit, ran)
    }
}

/// How long a shell may look for a program: some are on disks that have to wake up.
const LOOKUP_MAX: Duration = Duration::from_secs(10);

/// What of a hook is told to the observer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tells {
    All,
    Failures,
}

/// What a hook answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// What it wrote to its standard output, at most 64 KiB; bytes that are no text are replaced.
    pub stdout: String,
    /// It wrote more than that.
    pub is_cut: bool,
}

impl Said {
    /// The one line that it said, without white space around it.
    ///
    /// # Errors
    /// `Refused` when there is none, or more than one. `name` is the hook's.
    pub fn line(&self, name: &str) -> Result<&str> {
        let line = self.stdout.trim();
        match line.is_empty() || self.is_cut || line.contains(char::is_control) {
            false => Ok(line),
            true => {
                let start: String = line.chars().take(80).collect();
                let message = format!("hook {name} has to print one line, and printed {start:?}");
                Err(Error::new(ErrorKind::Refused, message))
            }
        }
    }
}

fn outcome(ran: &std::io::Result<Ended>) -> String {
    match ran {
        Err(error) => one_line(&format!("not started: {error}")),
        Ok(ended) => match ended.ending {
            Ending::Exit(code) => format!("exit {code}"),
            Ending::Signal(number) => format!("signal {number}"),
            Ending::Timeout => "timeout".to_owned(),
            Ending::Cancelled => "cancelled".to_owned(),
        },
    }
}

fn verdict(
    name: &str,
    program: &str,
    limit: Duration,
    ran: std::io::Result<Ended>,
) -> Result<Said> {
    let ended = ran.map_err(|source| match source.kind() {
        std::io::ErrorKind::Unsupported => {
            let message = format!("hook {name}: hooks do not run on this system");
            Error::new(ErrorKind::Unsupported, message)
        }
        _ => {
            let message = one_line(&format!("hook {name}: cannot run {program}"));
            Error::new(ErrorKind::Io, message).caused_by(source)
        }
    })?;
    let said = lines(&ended.tail);
    let last = said.lines().rev().find(|line| !line.trim().is_empty());
    let last = last.map_or_else(
        || " and said nothing".to_owned(),
        |last| format!(": {last}"),
    );
    let (kind, message) = match ended.ending {
        Ending::Exit(0) => {
            let stdout = String::from_utf8_lossy(&ended.stdout).into_owned();
            let is_cut = ended.is_cut;
            return Ok(Said { stdout, is_cut });
        }
        Ending::Exit(code) => (
            ErrorKind::Refused,
            format!("ended with exit code {code}{last}"),
        ),
        Ending::Signal(number) => (ErrorKind::Io, format!("was ended by signal {number}{last}")),
        Ending::Timeout => {
            let limit = period::show(limit);
            let message = format!("did not end within {limit} and was killed{last}");
            (ErrorKind::Io, message)
        }
        Ending::Cancelled => (ErrorKind::Cancelled, "was killed: cancelled".to_owned()),
    };
    Err(Error::new(kind, format!("hook {name} {message}")))
}

/// Foreign text in lines, all other control characters escaped.
fn lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<String> = text.lines().map(one_line).collect();
    lines.join("\n")
}

/// A hook as it is written in full.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    run: Vec<String>,
    timeout: Option<String>,
    #[serde(default)]
    env: std::collections::BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Hook {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        from.deserialize_any(HookVisitor)
    }
}

struct HookVisitor;

impl<'de> Visitor<'de> for HookVisitor {
    type Value = Hook;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a command as a list of words, or a table with `run`, `timeout` and `env`")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> std::result::Result<Hook, A::Error> {
        let run = Vec::deserialize(SeqAccessDeserializer::new(list))?;
        checked(Hook::new::<String>(run))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Hook, A::Error> {
        let written = Written::deserialize(MapAccessDeserializer::new(map))?;
        let timeout = written.timeout.as_deref().map(period::parse).transpose();
        checked(Hook {
            command: written.run,
            timeout: timeout
                .map_err(serde::de::Error::custom)?
                .unwrap_or(Hook::TIMEOUT),
            env: written.env.into_iter().collect(),
        })
    }
}

/// Refuses what the system could not run under any circumstances, while its author is there.
fn checked<E: serde::de::Error>(hook: Hook) -> std::result::Result<Hook, E> {
    if hook.command.first().is_none_or(String::is_empty) {
        return Err(E::custom("a hook has to name its program"));
    }
    let env = hook.env.iter();
    let is_wrong = |(key, value): &(String, String)| {
        key.is_empty() || key.contains(['=', '\0']) || value.contains('\0')
    };
    match env.clone().any(is_wrong) || hook.command.iter().any(|word| word.contains('\0')) {
        false => Ok(hook),
        true => Err(E::custom(
            "a hook has a word or variable that cannot be given to a program",
        )),
    }
}

impl Serialize for Hook {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        let mut fields = to.serialize_struct("Hook", 3)?;
        fields.serialize_field("run", &self.command)?;
        fields.serialize_field("timeout", &period::show(self.timeout))?;
        let env: std::collections::BTreeMap<_, _> =
            self.env.iter().map(|(key, value)| (key, value)).collect();
        fields.serialize_field("env", &env)?;
        fields.end()
    }
}
