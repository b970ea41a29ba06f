//! Contenders with a link between two processes.

use std::io::{BufRead, BufReader, Error, Result};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Run;
use crate::contender::{Contender, Outcome, succeed, timed};
use crate::disk::Place;

const IN_PLACE: [&str; 4] = ["--apply", "in-place", "--verify", "off"];

/// An older target becomes the source's equal.
pub(crate) fn delta(binary: &Path) -> Vec<Contender> {
    let mut all = Vec::new();
    for hash in ["xxh3", "blake3"] {
        let hash = ["--hash", hash];
        all.push(failback(binary, &[&hash[..], &IN_PLACE].concat()));
        all.push(failback(binary, &hash));
    }
    let rsync = |mode: &'static str| {
        Contender::new(format!("rsync {mode}"), &["rsync"], move |place| {
            let mode = ["--inplace", mode];
            let mut rsync = Command::new("rsync");
            timed_command(
                place,
                rsync.args(mode).arg(place.source()).arg(place.target()),
            )
        })
    };
    all.push(rsync("--no-whole-file"));
    all.push(rsync("--whole-file"));
    all.push(nbdcopy());
    all.push(socket());
    all
}

/// A missing target is made.
pub(crate) fn full(binary: &Path) -> Vec<Contender> {
    let failback = |hash| failback(binary, &["--hash", hash, "--verify", "off"]).from_nothing();
    vec![
        failback("xxh3"),
        failback("blake3"),
        nbdcopy().from_nothing(),
    ]
}

/// An agent that serves the target on loopback TCP, and a client that reads the source.
pub(crate) fn failback(binary: &Path, options: &[&str]) -> Contender {
    let binary = binary.to_path_buf();
    let options: Vec<String> = options.iter().copied().map(str::to_string).collect();
    let name = format!("failback tcp {}", options.join(" "));
    Contender::new(name, &[], move |place| {
        let grant = format!("disk={}:rw,max={}", place.target().display(), place.size);
        let mut serve = Command::new(&binary);
        serve.args(["serve", "--listen", "tcp://127.0.0.1:0", "--grant", &grant]);
        let mut agent = Server::start(serve.stdout(Stdio::piped()))?;
        let address = agent.first_line()?;
        let mut sync = Command::new(&binary);
        sync.arg("sync").arg(place.source());
        sync.arg(format!("{address}/disk"))
            .arg("--json")
            .args(&options);
        let (seconds, output) = timed(place, || succeed(&mut sync))?;
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let bytes = |direction| report["bytes"][direction].as_u64();
        let both = bytes("wire_out").zip(bytes("wire_in"));
        Ok(Outcome {
            seconds,
            wire_bytes: both.map(|(out, back)| out + back),
            ..Outcome::default()
        })
    })
}

/// The whole disk, holes left out, from one NBD server to another, which is on TCP.
fn nbdcopy() -> Contender {
    Contender::new("nbdcopy tcp", &["nbdcopy", "qemu-nbd"], |place| {
        let socket = place.dir.join("source.socket");
        let mut from = Command::new("qemu-nbd");
        from.args([
            "--persistent",
            "--read-only",
            "--format=raw",
            "--shared=8",
            "--socket",
        ]);
        let _from = Server::start(from.arg(&socket).arg(place.source()))?;
        if !place.target().exists() {
            std::fs::File::create(place.target())?.set_len(place.size)?;
        }
        let port = free_port()?.to_string();
        let mut to = Command::new("qemu-nbd");
        to.args([
            "--persistent",
            "--format=raw",
            "--cache=writeback",
            "--shared=8",
        ]);
        to.args(["--bind=127.0.0.1", "--discard=unmap", "--port", &port]);
        let _to = Server::start(to.arg(place.target()))?;
        wait_until(|| {
            socket.exists() && std::net::TcpStream::connect(("127.0.0.1", free(&port))).is_ok()
        })?;
        let from = format!("nbd+unix:///?socket={}", socket.display());
        let to = format!("nbd://127.0.0.1:{port}");
        timed_command(place, Command::new("nbdcopy").args(["--flush", &from, &to]))
    })
}

/// The raw bytes of the whole disk through one socket, compared and hashed by nobody.
fn socket() -> Contender {
    Contender::new("dd and socat", &["socat"], |place| {
        let port = free_port()?;
        let receive = format!(
            "socat -u -b 1048576 TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr - \
             | dd of='{}' bs=1M iflag=fullblock conv=notrunc status=none",
            place.target().display()
        );
        let mut receiver = Server::start(Command::new("sh").args(["-c", &receive]))?;
        let send = format!(
            "dd if='{}' bs=1M status=none \
             | socat -u -b 1048576 - TCP:127.0.0.1:{port},retry=50,interval=0.02",
            place.source().display()
        );
        let (seconds, ()) = timed(place, || {
            succeed(Command::new("sh").args(["-c", &send]))?;
            receiver.child.wait().map(drop)
        })?;
        Ok(Outcome {
            seconds,
            ..Outcome::default()
        })
    })
}

pub(crate) fn timed_command(place: &Place, command: &mut Command) -> Run {
    let (seconds, _) = timed(place, || succeed(command))?;
    Ok(Outcome {
        seconds,
        ..Outcome::default()
    })
}

/// A process that is ended when it is let go of.
struct Server {
    child: Child,
}

impl Server {
    fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(Self { child })
    }

    /// The address in what it says first.
    fn first_line(&mut self) -> Result<String> {
        let stdout = self
            .child
            .stdout
            .as_mut()
            .ok_or(Error::other("no output"))?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line.split_whitespace().last().map(str::to_string);
        address.ok_or(Error::other("the agent did not start"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.child.wait();
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn free(port: &str) -> u16 {
    port.parse().unwrap_or_default()
}

fn wait_until(is_so: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        if Instant::now() > deadline {
            return Err(Error::other("a server did not start"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
