//! What a job told while it ran, in a file of its directory: `events.jsonl`, one event a line with
//! its time. A record for people: nothing is decided by it, so it is not flushed, and a line that a
//! crash tore is passed over.
//!
//! The file stays below [`EVENTS_LEN_MAX`]: when it is full, every other sample of progress goes,
//! and where that is not enough the oldest lines do. A long job keeps its whole course, coarser.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use super::place::Jobs;
use crate::error::Result;
use crate::event::{Event, Observer, Stamped};
use crate::system::keep_private;

/// Bytes of a job's events, at most.
pub const EVENTS_LEN_MAX: u64 = 4 << 20;
/// Name of the file in the job's directory.
pub const EVENTS_NAME: &str = "events.jsonl";
/// The thinned file, until it takes the other's place.
const EVENTS_NEW_NAME: &str = "events.jsonl.new";
/// Time between two samples of the progress of one disk.
const SAMPLE_EVERY_MS: u64 = 1000;

/// Writes what it hears, and passes it on.
pub(crate) struct Recording<'a> {
    to: &'a dyn Observer,
    state: Mutex<State>,
}

struct State {
    directory: PathBuf,
    /// `None`: it cannot be written, which must not end the job that it is about.
    file: Option<File>,
    len: u64,
    /// When the progress of each disk was written last.
    sampled: HashMap<String, u64>,
}

impl<'a> Recording<'a> {
    /// Goes on with the file in `directory`, or begins it.
    pub(crate) fn open(directory: &Path, to: &'a dyn Observer) -> Self {
        let mut state = State {
            directory: directory.to_owned(),
            file: None,
            len: 0,
            sampled: HashMap::new(),
        };
        state.reopen();
        Self {
            to,
            state: Mutex::new(state),
        }
    }
}

/// Events of a job that is begun anew are none of the one before.
pub(crate) fn forget(directory: &Path) {
    drop(fs::remove_file(directory.join(EVENTS_NAME)));
}

impl Observer for Recording<'_> {
    fn event(&self, event: &Event) {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .record(event);
        self.to.event(event);
    }
}

impl State {
    fn record(&mut self, event: &Event) {
        let stamped = Stamped::now(event);
        if let Some(disk) = progress_of(event) {
            let last = self.sampled.get(disk).copied();
            // A clock that was set back must not silence it for long.
            if last.is_some_and(|last| stamped.at_ms.abs_diff(last) < SAMPLE_EVERY_MS) {
                return;
            }
            self.sampled.insert(disk.to_owned(), stamped.at_ms);
        }
        let Ok(mut line) = serde_json::to_vec(&stamped) else {
            return;
        };
        line.push(b'\n');
        let len = line.len() as u64;
        if self.len.saturating_add(len) > EVENTS_LEN_MAX {
            self.thin();
        }
        let Some(file) = &mut self.file else {
            return;
        };
        match file.write_all(&line) {
            Ok(()) => self.len += len,
            Err(_) => self.file = None,
        }
    }

    fn reopen(&mut self) {
        let mut options = File::options();
        options.create(true).read(true).append(true);
        // Hooks say what is nobody else's business.
        keep_private(&mut options);
        let path = self.directory.join(EVENTS_NAME);
        self.file = options.open(path).ok();
        self.len = 0;
        let Some(file) = &mut self.file else {
            return;
        };
        self.len = file.seek(SeekFrom::End(0)).unwrap_or(0);
        let mut last = [b'\n'];
        if self.len > 0 {
            drop(file.seek(SeekFrom::Start(self.len - 1)));
            drop(file.read_exact(&mut last));
        }
        // The process before this one died in the middle of a line.
        if last != [b'\n'] && file.write_all(b"\n").is_ok() {
            self.len += 1;
        }
    }

    fn thin(&mut self) {
        self.file = None;
        let text = read_text(&self.directory);
        let new = self.directory.join(EVENTS_NEW_NAME);
        let thinned = thinned(&text, EVENTS_LEN_MAX / 2);
        let mut options = File::options();
        options.create(true).write(true).truncate(true);
        keep_private(&mut options);
        let replaced = options
            .open(&new)
            .and_then(|mut file| file.write_all(thinned.as_bytes()))
            .and_then(|()| fs::rename(&new, self.directory.join(EVENTS_NAME)));
        if replaced.is_ok() {
            self.reopen();
        }
    }
}

/// The disk of which this is progress; empty where there is one only.
fn progress_of(event: &Event) -> Option<&str> {
    match event {
        Event::Progress { .. } => Some(""),
        Event::OfDisk { disk, of } => progress_of(of).map(|_| disk.as_str()),
        _ => None,
    }
}

/// At most `len_max` bytes of these lines.
fn thinned(text: &str, len_max: u64) -> String {
    let mut seen: HashMap<String, u64> = HashMap::new();
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| {
            let Some(of) = sample_of(line) else {
                return true;
            };
            let count = seen.entry(of).or_default();
            *count += 1;
            *count % 2 == 1
        })
        .collect();
    let mut len = 0;
    let newest = lines.iter().rev().take_while(|line| {
        len += line.len() as u64 + 1;
        len <= len_max
    });
    let kept = newest.count();
    let mut thinned = String::new();
    for line in &lines[lines.len() - kept..] {
        thinned.push_str(line);
        thinned.push('\n');
    }
    thinned
}

/// What a line is a sample of, if it is one.
fn sample_of(line: &str) -> Option<String> {
    let value: Value = serde_json::from_str(line).ok()?;
    let (inner, disk) = match value["event"].as_str()? {
        "of_disk" => (&value["of"], value["disk"].as_str().unwrap_or_default()),
        _ => (&value, ""),
    };
    let kind = inner["event"].as_str()?;
    matches!(kind, "progress" | "job_progress").then(|| format!("{kind} {disk}"))
}

/// A line of a job's events, as it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// `job_phase`, `hook_ran`.
    pub kind: String,
    /// All of it.
    pub event: Value,
}

/// What a job told, as far as its event file has it; in order.
///
/// # Errors
/// `Usage` for what cannot be a job's name.
pub fn events(jobs: &Jobs, name: &str) -> Result<Vec<Recorded>> {
    Ok(recorded(&jobs.directory(name)?))
}

/// The events of the job in `directory`, in order; none where there is no such file.
pub(crate) fn recorded(directory: &Path) -> Vec<Recorded> {
    let of_line = |line: &str| {
        let event: Value = serde_json::from_str(line).ok()?;
        Some(Recorded {
            at_ms: event["at_ms"].as_u64()?,
            kind: event["event"].as_str()?.to_owned(),
            event,
        })
    };
    read_text(directory).lines().filter_map(of_line).collect()
}

fn read_text(directory: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(directory.join(EVENTS_NAME)) {
        drop(file.take(2 * EVENTS_LEN_MAX).read_to_end(&mut bytes));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Silent;

    fn warning(message: &str) -> Event {
        Event::Warning {
            message: message.to_owned(),
        }
    }

    fn progress(disk: &str, done: u64) -> Event {
        Event::OfDisk {
            disk: disk.to_owned(),
            of: Box::new(Event::Progress {
                phase: "copy",
                done,
                total: 9,
                sent: 0,
                differing: 0,
                backlog: 0,
                seconds: 0.0,
            }),
        }
    }

    // Goal: events survive the process, also one that died in a line, and progress is sampled by
    // disk. Method: two recordings of one directory, with half a line between.
    #[test]
    fn events_are_kept_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let first = Recording::open(dir.path(), &Silent);
        for done in 0..5 {
            first.event(&progress("os", done));
            first.event(&progress("data", done));
        }
        first.event(&warning("one"));
        drop(first);
        let mut file = File::options()
            .append(true)
            .open(dir.path().join(EVENTS_NAME))
            .unwrap();
        file.write_all(b"{\"at_ms\":1,\"event\":\"torn").unwrap();
        let second = Recording::open(dir.path(), &Silent);
        second.event(&warning("two"));
        let kinds: Vec<_> = recorded(dir.path())
            .into_iter()
            .map(|it| (it.kind, it.event["message"].as_str().map(str::to_owned)))
            .collect();
        let of_disk = || ("of_disk".to_owned(), None);
        let told = |text: &str| ("warning".to_owned(), Some(text.to_owned()));
        assert_eq!(kinds, [of_disk(), of_disk(), told("one"), told("two")]);
        forget(dir.path());
        assert_eq!(recorded(dir.path()), []);
    }

    // Goal: the file is bounded, whatever is told, and the newest stays. Method: three times more
    // than fits.
    #[test]
    fn a_recording_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let recording = Recording::open(dir.path(), &Silent);
        let text = "x".repeat(64 << 10);
        let count = 3 * EVENTS_LEN_MAX / (64 << 10);
        for number in 0..count {
            recording.event(&warning(&format!("{number} {text}")));
            let len = fs::metadata(dir.path().join(EVENTS_NAME)).unwrap().len();
            assert!(len <= EVENTS_LEN_MAX, "{len}");
        }
        let all = recorded(dir.path());
        let last = all.last().unwrap().event["message"].as_str().unwrap();
        assert!(last.starts_with(&format!("{} ", count - 1)));
        assert!(all.len() >= 16, "{}", all.len());
    }

    // Goal: thinning takes samples before it takes anything else, and from each disk alike. Method:
    // two disks and a warning between.
    #[test]
    fn thinning_keeps_the_course() {
        let line = |event: &Event| serde_json::to_string(&Stamped { at_ms: 1, event }).unwrap();
        let lines: Vec<_> = (0..8)
            .flat_map(|done| [line(&progress("os", done)), line(&progress("data", done))])
            .chain([line(&warning("kept"))])
            .collect();
        let all = thinned(&lines.join("\n"), 1 << 20);
        let count = |text: &str| all.matches(text).count();
        assert_eq!(
            (count("\"os\""), count("\"data\""), count("kept")),
            (4, 4, 1)
        );
        assert_eq!(thinned(&lines.join("\n"), 90).matches("kept").count(), 1);
        assert_eq!(thinned(&lines.join("\n"), 0), "");
    }
}
