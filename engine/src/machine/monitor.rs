//! A conversation with the monitor of a QEMU process (QMP), by the crate `qapi`.
//!
//! QEMU talks to one client at a time, so a conversation is short: connect, greet, say one thing,
//! close.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use qapi::qmp::{self, RunState};
use qapi::{Command, ExecuteError, Qmp, Stream};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::qmp::{Order, Status};
use crate::error::{Error, ErrorKind, Result, one_line};

/// A greeted monitor.
pub(super) struct Monitor {
    qmp: Qmp<Stream<BufReader<Limited>, Limited>>,
}

impl Monitor {
    /// Connects and greets; `None` when nobody listens there: no such file in a directory that is
    /// there, or one that a dead process left. Of a process that ends while it is greeted it waits
    /// for that.
    ///
    /// # Errors
    /// `Io` when it cannot be told whether somebody does, or when that is no monitor.
    pub(super) fn connect(path: &Path) -> Result<Option<Self>> {
        let failed = |e| Error::io(e, "connect to the monitor").path(path);
        let until = Instant::now() + ENDING_MAX;
        loop {
            let Some(stream) = dial(path).map_err(failed)? else {
                return Ok(None);
            };
            let mut monitor = Self::over(stream).map_err(failed)?;
            match monitor.greet() {
                Ok(()) => return Ok(Some(monitor)),
                Err(e) if is_end(&e) && Instant::now() < until => std::thread::sleep(LINE_PAUSE),
                Err(e) => return Err(unwilling(e).path(path)),
            }
        }
    }

    fn over(stream: UnixStream) -> io::Result<Self> {
        let until = Instant::now() + ANSWER_MAX;
        let limited = |stream| Limited {
            stream,
            until,
            left: ANSWER_LEN_MAX,
        };
        let (reader, writer) = (limited(stream.try_clone()?), limited(stream));
        Ok(Self {
            qmp: Qmp::new(Stream::new(BufReader::new(reader), writer)),
        })
    }

    fn greet(&mut self) -> io::Result<()> {
        // The crate takes a greeting for granted, and a process that ends gives none.
        if self.qmp.inner_mut().fill_buf()?.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.qmp.handshake().map(drop).map_err(io::Error::from)
    }

    /// What the machine does; `None` when the process hung up: it ends, or it does not.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn status(&mut self) -> Result<Option<Status>> {
        let Some(found) = self.say(&qmp::query_status {})? else {
            return Ok(None);
        };
        Ok(Some(match found.status {
            RunState::running => Status::Running,
            RunState::shutdown => Status::ShutDown,
            RunState::paused | RunState::prelaunch => Status::Waiting,
            RunState::inmigrate
            | RunState::restore_vm
            | RunState::save_vm
            | RunState::finish_migrate => Status::Busy,
            other => Status::Stuck(format!("{other:?}").replace('_', "-")),
        }))
    }

    /// Says what is to be done; false when the process hung up, and so was perhaps not told. One
    /// that hangs up instead of answering `Quit` was.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn order(&mut self, order: Order) -> Result<bool> {
        Ok(match order {
            Order::PowerDown => self.say(&qmp::system_powerdown {})?.is_some(),
            Order::Go => self.say(&qmp::cont {})?.is_some(),
            Order::Quit => {
                self.say(&qmp::quit {})?;
                true
            }
        })
    }

    /// The answer; `None` when the process hung up.
    fn say<C: Command>(&mut self, command: &C) -> Result<Option<C::Ok>> {
        match self.qmp.execute(command) {
            Ok(answer) => Ok(Some(answer)),
            Err(ExecuteError::Io(e)) if is_end(&e) => Ok(None),
            Err(e) => Err(refused(C::NAME, &e)),
        }
    }
}

/// A stream that takes neither for ever nor an answer without end.
struct Limited {
    stream: UnixStream,
    until: Instant,
    left: usize,
}

impl Limited {
    fn rest(&self) -> io::Result<Duration> {
        let rest = self.until.saturating_duration_since(Instant::now());
        match rest.is_zero() {
            false => Ok(rest),
            true => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Read for Limited {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.rest()?))?;
        let len = buf.len().min(self.left);
        if len == 0 {
            return Err(io::Error::other("it says too much"));
        }
        let got = self.stream.read(&mut buf[..len])?;
        self.left -= got;
        Ok(got)
    }
}

impl Write for Limited {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.rest()?))?;
        self.stream.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Connects without waiting in line for long: the line is one or two long, and who stands in it
/// would wait for as long as another client talks.
fn dial(path: &Path) -> io::Result<Option<UnixStream>> {
    let address = SocketAddrUnix::new(path)?;
    let until = Instant::now() + ANSWER_MAX;
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match connect(&socket, &address) {
            Ok(()) => {
                let stream = UnixStream::from(socket);
                stream.set_nonblocking(false)?;
                return Ok(Some(stream));
            }
            Err(Errno::CONNREFUSED) if is_socket(path)? => return Ok(None),
            Err(Errno::NOENT) if has_directory(path) => return Ok(None),
            Err(Errno::AGAIN) if Instant::now() < until => std::thread::sleep(LINE_PAUSE),
            Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Files of other kinds refuse as well: that says nothing of a machine. One that went away just now
/// belonged to one that did.
fn is_socket(path: &Path) -> io::Result<bool> {
    match path.metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(has_directory(path)),
        found => Ok(found?.file_type().is_socket()),
    }
}

/// A path that leads nowhere says nothing of a machine: its author mistook himself, or something is
/// not mounted.
fn has_directory(path: &Path) -> bool {
    let directory = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    directory.unwrap_or(Path::new(".")).is_dir()
}

fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

fn unwilling(source: io::Error) -> Error {
    let message = match source.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            "the monitor does not answer; it serves one client at a time, is another connected?"
        }
        _ => "greet the monitor",
    };
    Error::new(ErrorKind::Io, message).caused_by(source)
}

fn refused(command: &str, error: &ExecuteError) -> Error {
    let text = one_line(&error.to_string());
    Error::new(ErrorKind::Io, format!("monitor command {command}: {text}"))
}

/// From hanging up to letting go of the socket.
pub(super) const ENDING_MAX: Duration = Duration::from_secs(2);
/// From connecting to the answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Bytes of greeting, events and answer together; they are some hundred.
const ANSWER_LEN_MAX: usize = 1 << 20;
const LINE_PAUSE: Duration = Duration::from_millis(50);
