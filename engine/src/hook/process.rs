//! One run of a command in a process group of its own.
//!
//! ```text
//! spawn --> listen, look, wait a little --> it ended: take what the pipes hold, reap it
//!                |
//!                +-- timeout, cancel --> SIGTERM to the group --> it ended, or 2 s --> SIGKILL
//! ```
//! No thread: both pipes are read without waiting. The program stays a zombie until the last signal
//! was sent, so that the number of its group is nobody else's.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::abort::CancelToken;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Exit(i32),
    Signal(i32),
    /// It was killed for taking too long.
    Timeout,
    /// It was killed because the caller cancelled.
    Cancelled,
}

/// A run that is over.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) ending: Ending,
    /// The first [`STDOUT_MAX`] bytes of standard output.
    pub(super) stdout: Vec<u8>,
    /// There was more.
    pub(super) is_cut: bool,
    /// The last [`TAIL_MAX`] bytes of both streams, as they came.
    pub(super) tail: Vec<u8>,
}

impl Ended {
    pub(super) fn is_success(&self) -> bool {
        self.ending == Ending::Exit(0)
    }
}

/// Runs `command` for at most `limit`. Nothing is left of it that has to be waited for.
///
/// # Errors
/// The system's, when it cannot be started or watched.
pub(super) fn run(
    command: &mut Command,
    limit: Duration,
    cancel: &CancelToken,
) -> io::Result<Ended> {
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let from = Instant::now();
    let mut running = Running::start(command)?;
    let mut heard = Heard::of(&mut running.child)?;
    let stopped = loop {
        let has_news = heard.listen()?;
        if running.has_ended()? {
            break None;
        }
        if cancel.is_cancelled() {
            break Some(Ending::Cancelled);
        }
        if from.elapsed() >= limit {
            break Some(Ending::Timeout);
        }
        if !has_news {
            sleep(LOOK_EVERY);
        }
    };
    let ending = match stopped {
        None => {
            let status = running.reap()?;
            status.code().map_or_else(
                || Ending::Signal(status.signal().unwrap_or_default()),
                Ending::Exit,
            )
        }
        Some(ending) => {
            running.stop(|| heard.listen())?;
            ending
        }
    };
    heard.take_rest()?;
    Ok(Ended {
        ending,
        stdout: heard.stdout,
        is_cut: heard.is_cut,
        tail: heard.tail,
    })
}

/// A program that was started and not yet waited for; dropped, it is killed with its group.
struct Running {
    child: Child,
    group: Pid,
    is_reaped: bool,
}

impl Running {
    fn start(command: &mut Command) -> io::Result<Self> {
        let child = command.process_group(0).spawn()?;
        Ok(Self {
            group: Pid::from_child(&child),
            child,
            is_reaped: false,
        })
    }

    /// Whether it ended; it stays to be reaped.
    fn has_ended(&self) -> io::Result<bool> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let found = rustix::io::retry_on_intr(|| waitid(WaitId::Pid(self.group), options))?;
        Ok(found.is_some())
    }

    /// Ends the group: politely at first, calling `meanwhile` so that nobody in it waits for a
    /// full pipe.
    fn stop(&mut self, mut meanwhile: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
        self.signal(Signal::TERM);
        let from = Instant::now();
        while !self.has_ended()? && from.elapsed() < POLITE {
            if !meanwhile()? {
                sleep(LOOK_EVERY);
            }
        }
        self.kill()
    }

    fn kill(&mut self) -> io::Result<()> {
        self.signal(Signal::KILL);
        let from = Instant::now();
        while !self.has_ended()? {
            if from.elapsed() > KILL_MAX {
                return Err(io::Error::other("it was killed, and does not end"));
            }
            sleep(LOOK_EVERY);
        }
        self.reap().map(drop)
    }

    fn signal(&self, signal: Signal) {
        // It fails only when nobody is left to get it.
        let _gone = kill_process_group(self.group, signal);
    }

    /// Takes its status once it ended.
    fn reap(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait()?;
        self.is_reaped = true;
        Ok(status)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_reaped {
            // An error is on its way already; this one would say the same.
            let _told = self.kill();
        }
    }
}

/// What a program has said so far.
struct Heard {
    out: Option<ChildStdout>,
    err: Option<ChildStderr>,
    stdout: Vec<u8>,
    is_cut: bool,
    tail: Vec<u8>,
}

impl Heard {
    fn of(child: &mut Child) -> io::Result<Self> {
        let (out, err) = (child.stdout.take(), child.stderr.take());
        out.as_ref().map_or(Ok(()), never_wait)?;
        err.as_ref().map_or(Ok(()), never_wait)?;
        Ok(Self {
            out,
            err,
            stdout: Vec::new(),
            is_cut: false,
            tail: Vec::new(),
        })
    }

    /// Takes some of what is there; whether there was anything.
    fn listen(&mut self) -> io::Result<bool> {
        let mut piece = [0; PIECE];
        let out = read_some(&mut self.out, &mut piece)?;
        let room = (STDOUT_MAX - self.stdout.len()).min(out);
        self.stdout.extend_from_slice(&piece[..room]);
        self.is_cut |= room < out;
        self.keep_tail(&piece[..out]);
        let err = read_some(&mut self.err, &mut piece)?;
        self.keep_tail(&piece[..err]);
        Ok(out + err > 0)
    }

    /// Takes what the pipes hold now. Others may have them open, and go on writing: what a pipe can
    /// hold at once is all that can be of the program that ended.
    fn take_rest(&mut self) -> io::Result<()> {
        for _ in 0..PIPE_MAX / PIECE {
            if !self.listen()? {
                break;
            }
        }
        Ok(())
    }

    fn keep_tail(&mut self, piece: &[u8]) {
        self.tail.extend_from_slice(piece);
        let excess = self.tail.len().saturating_sub(TAIL_MAX);
        self.tail.drain(..excess);
    }
}

fn never_wait(pipe: &impl AsFd) -> io::Result<()> {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    let flags = fcntl_getfl(pipe)?;
    Ok(fcntl_setfl(pipe, flags | OFlags::NONBLOCK)?)
}

/// Bytes read; 0 when nothing is there now, and for ever once the pipe is at its end.
fn read_some(pipe: &mut Option<impl Read>, piece: &mut [u8]) -> io::Result<usize> {
    let Some(open) = pipe else {
        return Ok(0);
    };
    match open.read(piece) {
        Ok(0) => {
            *pipe = None;
            Ok(0)
        }
        Ok(len) => Ok(len),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            Ok(0)
        }
        Err(e) => Err(e),
    }
}

/// Bytes of standard output that are kept: answers are a line, or a list of some.
const STDOUT_MAX: usize = 64 << 10;
/// Bytes of both streams that are kept for the report.
const TAIL_MAX: usize = 4 << 10;
/// Bytes of one read.
const PIECE: usize = 4 << 10;
/// The most that a pipe holds, by the kernel's own limit (`/proc/sys/fs/pipe-max-size`).
const PIPE_MAX: usize = 1 << 20;
/// How often a program is looked at: also how much later than it could be its end is seen.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long a program has after it was asked to end.
const POLITE: Duration = Duration::from_secs(2);
/// How long the kernel has to end what was killed: a process in a system call on a dead disk does
/// not end.
const KILL_MAX: Duration = Duration::from_secs(10);
