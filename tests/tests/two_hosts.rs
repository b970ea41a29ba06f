//! Goal: a machine comes home from another host by the command alone. Method: `failback serve
//! --control` and `failback job` with machines that are shell scripts; a script that starts a
//! machine notes when the other one runs.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};

use failback_tests::agent::{Agent, Via};
use failback_tests::{cli, disk, place};
use serde_json::Value;
use tempfile::TempDir;

const DISK_LEN: u64 = 16 << 20;

struct Hosts {
    dir: TempDir,
}

impl Hosts {
    fn new() -> Self {
        let hosts = Self {
            dir: place::in_memory(),
        };
        disk::write_raw(&hosts.at("cloud.raw"), DISK_LEN, 60, 1);
        fs::copy(hosts.at("cloud.raw"), hosts.at("home.raw")).expect("copy");
        disk::write_changes(&hosts.at("cloud.raw"), &disk::changes(DISK_LEN, 40, 2));
        fs::write(hosts.at("cloud.power"), "on\n").expect("power");
        fs::write(hosts.at("home.power"), "off\n").expect("power");
        fs::write(hosts.at("control.toml"), hosts.control()).expect("control file");
        hosts
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn show(&self, name: &str) -> String {
        self.at(name).display().to_string()
    }

    /// Hooks of a machine: its power is a file.
    fn machine(&self, own: &str, other: &str) -> String {
        let (own, other) = (self.show(own), self.show(other));
        let both = self.show("both-ran");
        format!(
            r#"kind = "hooks"
power = ["cat", "{own}.power"]
shut_down = ["sh", "-c", "echo off > {own}.power; echo $FAILBACK_STEP >> {own}.stops"]
power_off = ["sh", "-c", "echo off > {own}.power"]
start = ["sh", "-c", "if grep -q on {other}.power; then touch {both}; fi; echo on > {own}.power"]
"#
        )
    }

    fn control(&self) -> String {
        format!(
            r#"[pair.web]
probe = ["grep", "-q", "on", "{}"]
delete_disk = ["sh", "-c", "echo $FAILBACK_DISK >> $FAILBACK_IMAGE.deleted; rm -f $FAILBACK_IMAGE"]
[pair.web.machine]
{}
[pair.web.snapshots]
kind = "hooks"
create = ["sh", "-c", "S=$FAILBACK_IMAGE.snap.$FAILBACK_SNAPSHOT; cp $FAILBACK_IMAGE $S && echo $S"]
release = ["sh", "-c", "rm -f $FAILBACK_IMAGE.snap.$FAILBACK_SNAPSHOT"]
[[pair.web.disk]]
id = "os"
path = "{}"
"#,
            self.show("cloud.power"),
            self.machine("cloud", "home"),
            self.show("cloud.raw")
        )
    }

    fn serve(&self, via: Via) -> Agent {
        let (control, state) = (self.show("control.toml"), self.show("agent-state"));
        let more = ["--control", &control, "--state-dir", &state];
        Agent::start_with::<String>(via, self.dir.path(), &[], &more)
    }

    /// Writes the job's definition; its path.
    fn job(&self, agent: &Agent) -> String {
        let text = format!(
            r#"name = "web"
[policy]
delete_source_disks = true
[source]
control = "{}"
[target.machine]
{}[[disk]]
id = "os"
target = "{}"
"#,
            agent.endpoint("web"),
            self.machine("home", "cloud"),
            self.show("home.raw")
        );
        fs::write(self.at("job.toml"), text).expect("definition");
        self.show("job.toml")
    }

    fn failback_job(&self, args: &[&str], code: i32) -> Value {
        let state = self.show("job-state");
        let more = ["--state-dir", &state, "--json"];
        cli::failback(["job"].iter().chain(args).chain(&more))
            .exits(code)
            .json()
    }

    fn power(&self, of: &str) -> String {
        let text = fs::read_to_string(self.at(&format!("{of}.power"))).expect("power");
        text.trim().to_owned()
    }

    fn assert_never_both(&self) {
        assert!(!self.at("both-ran").exists(), "both machines ran");
    }
}

fn same(a: &Path, b: &Path) -> bool {
    fs::read(a).expect("disk") == fs::read(b).expect("disk")
}

fn comes_home(via: Via) {
    let hosts = Hosts::new();
    let agent = hosts.serve(via);
    let definition = hosts.job(&agent);

    let waits = hosts.failback_job(&["start", &definition, "--no-wait"], 0);
    assert_eq!(waits["phase"], "waiting", "{waits}");
    disk::write_changes(&hosts.at("cloud.raw"), &disk::changes(DISK_LEN, 5, 3));
    let pends = hosts.failback_job(&["complete", "web"], 0);
    assert_eq!(pends["phase"], "commit_pending", "{pends}");
    assert_eq!(
        (&*hosts.power("cloud"), &*hosts.power("home")),
        ("off", "on")
    );
    assert!(same(&hosts.at("cloud.raw"), &hosts.at("home.raw")));
    let ends = hosts.failback_job(&["commit", "web"], 0);

    assert_eq!(ends["phase"], "finished", "{ends}");
    let deleted = fs::read_to_string(hosts.at("cloud.raw.deleted")).expect("note");
    assert_eq!(deleted, "os\n");
    assert!(!hosts.at("cloud.raw").exists());
    assert_eq!(ends["disks"][0]["source"], agent.endpoint("web/os"));
    let stops = fs::read_to_string(hosts.at("cloud.stops")).expect("stops");
    assert_eq!(stops, "stop-source\n");
    let left = place::names(hosts.dir.path());
    assert!(left.iter().all(|name| !name.contains(".snap.")), "{left:?}");
    hosts.assert_never_both();
    // The agent knows that it was handed over, and a job that begins anew is refused.
    let state = hosts.show("other-state");
    let again = cli::failback(["job", "start", &definition, "--state-dir", &state, "--json"]);
    let again = again.exits(3).json();
    assert_eq!(again["phase"], "preflight", "{again}");
    assert_eq!(hosts.power("cloud"), "off");
}

#[test]
fn a_machine_comes_home_over_tcp() {
    comes_home(Via::Tcp);
}

#[test]
fn a_machine_comes_home_over_a_unix_socket() {
    comes_home(Via::Unix);
}

// Goal: an agent that dies suspends the job; with the next one it goes on, and an undo brings the
// source back. Method: kill -9 between the phases, a restart elsewhere (another port) is another
// endpoint, so the socket is a file.
#[test]
fn an_agent_that_dies_suspends_the_job() {
    let hosts = Hosts::new();
    let mut agent = hosts.serve(Via::Unix);
    let definition = hosts.job(&agent);
    let old = fs::read(hosts.at("home.raw")).expect("disk");
    hosts.failback_job(&["start", &definition, "--no-wait"], 0);
    agent.kill();

    let stands = hosts.failback_job(&["complete", "web"], 5);

    assert_eq!(stands["suspended"], true, "{stands}");
    assert_eq!(stands["error"]["kind"], "peer_gone");
    assert_eq!(
        (&*hosts.power("cloud"), &*hosts.power("home")),
        ("on", "off")
    );
    drop(fs::remove_file(hosts.at("agent.sock")));
    let _agent = hosts.serve(Via::Unix);
    let pends = hosts.failback_job(&["resume", "web"], 0);
    assert_eq!(pends["phase"], "commit_pending", "{pends}");
    let undone = hosts.failback_job(&["undo", "web"], 0);
    assert_eq!(undone["phase"], "undone", "{undone}");
    assert_eq!(
        (&*hosts.power("cloud"), &*hosts.power("home")),
        ("on", "off")
    );
    assert!(fs::read(hosts.at("home.raw")).expect("disk") == old);
    hosts.assert_never_both();
}

// Goal: what is wrong with a file is told before anything is served. Method: near misses.
#[test]
fn a_bad_control_file_is_a_usage_error() {
    let hosts = Hosts::new();
    let serve = |file: &str| {
        cli::failback([
            "serve",
            "--listen",
            "tcp://127.0.0.1:0",
            "--control",
            file,
            "--state-dir",
            &hosts.show("agent-state"),
        ])
    };
    fs::write(
        hosts.at("bad.toml"),
        hosts.control().replace("probe", "prob"),
    )
    .expect("file");
    let run = serve(&hosts.show("bad.toml")).exits(2);
    assert!(
        run.error_line().contains("(line 2)"),
        "{}",
        run.error_line()
    );
    let run = serve(&hosts.show("missing.toml")).exits(6);
    assert!(run.error_line().contains("read control file"));
    let held = hosts.serve(Via::Tcp);
    let run = serve(&hosts.show("control.toml")).exits(3);
    assert!(run.error_line().starts_with("error: "));
    drop(held);
}
