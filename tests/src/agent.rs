//! `failback serve` as a child process.
//!
//! Contract: once it accepts connections it prints one line on standard output,
//! `listening on tcp://127.0.0.1:PORT` or `listening on unix:///PATH`. Port 0 asks for a free one.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::cli;

/// The line's start; the address follows.
const LISTENING: &str = "listening on ";

/// A running agent; dropped, it is killed.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    address: String,
    grant_sign: char,
}

/// Over what the agent is reached.
#[derive(Clone, Copy, Debug)]
pub enum Via {
    /// Loopback TCP, a free port.
    Tcp,
    /// A Unix socket in the test's folder.
    Unix,
}

impl Agent {
    /// Starts an agent with grants (`NAME=PATH:rw`) and waits for its line. Its socket, if it has
    /// one, is made in `dir`.
    ///
    /// # Panics
    ///
    /// When it ends or says something else.
    pub fn start<G: fmt::Display>(via: Via, dir: &Path, grants: &[G]) -> Self {
        Self::start_with(via, dir, grants, &[])
    }

    /// The same with more arguments.
    ///
    /// # Panics
    ///
    /// As [`Agent::start`].
    pub fn start_with<G: fmt::Display>(via: Via, dir: &Path, grants: &[G], more: &[&str]) -> Self {
        let (listen, grant_sign) = match via {
            Via::Tcp => ("tcp://127.0.0.1:0".to_owned(), '/'),
            Via::Unix => (format!("unix://{}/agent.sock", dir.display()), '#'),
        };
        let mut command = Command::new(cli::binary());
        command.args(["serve", "--listen", &listen]);
        for grant in grants {
            command.arg("--grant").arg(grant.to_string());
        }
        command.args(more);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("agent starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("line of the agent");
        let address = line.trim_end().strip_prefix(LISTENING);
        let address = address
            .unwrap_or_else(|| panic!("agent said: {line:?}"))
            .to_owned();
        Self {
            child,
            address,
            grant_sign,
        }
    }

    /// Ends it at once.
    ///
    /// # Panics
    ///
    /// When that is not possible.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("end");
    }

    /// The endpoint of a grant.
    pub fn endpoint(&self, grant: &str) -> String {
        format!("{}{}{grant}", self.address, self.grant_sign)
    }

    /// `HOST:PORT` or the path of the socket.
    pub fn address(&self) -> &str {
        self.address
            .trim_start_matches("tcp://")
            .trim_start_matches("unix://")
    }

    /// Most memory it held at once (VmHWM), in bytes.
    pub fn peak_bytes(&self) -> u64 {
        cli::peak_of(self.child.id())
    }

    /// Fails unless it still runs.
    ///
    /// # Panics
    ///
    /// As said.
    pub fn assert_alive(&mut self) {
        let ended = self.child.try_wait().expect("state of the agent");
        assert!(ended.is_none(), "the agent ended: {ended:?}");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
