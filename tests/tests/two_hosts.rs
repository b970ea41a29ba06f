//! Goal: a machine comes home from another host by the command alone. Method: `failback serve
//! --control` and `failback job` with machines that are shell scripts; a script that starts a
//! machine notes when the other one runs.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use failback_tests::agent::{Agent, Via};
use failback_tests::schema::assert_valid;
use failback_tests::{cli, disk, place};
use serde_json::Value;
use tempfile::TempDir;

const DISK_LEN: u64 = 16 << 20;
/// The least of a disk that travels.
const PIECE_LEN: u64 = 64 << 10;

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
{}[[pair.web.disk]]
id = "os"
path = "{}"
"#,
            self.show("cloud.power"),
            self.machine("cloud", "home"),
            snapshots("pair.web"),
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
        self.job_with(agent, "delete_source_disks = true", "")
    }

    /// The same with this policy, and this of the target.
    fn job_with(&self, agent: &Agent, policy: &str, target: &str) -> String {
        let text = format!(
            r#"name = "web"
[policy]
{policy}
[source]
control = "{}"
[target.machine]
{}{target}[[disk]]
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

    /// Writes the definition of a job that takes the machine away from home without any agent; its
    /// path.
    fn local_job(&self) -> String {
        let text = format!(
            r#"name = "away"
pair = "web"
[source]
side = "primary"
[source.machine]
{}[target]
side = "recovery"
[target.machine]
{}[[disk]]
id = "os"
source = "{}"
target = "{}"
"#,
            self.machine("home", "cloud"),
            self.machine("cloud", "home"),
            self.show("home.raw"),
            self.show("cloud.raw")
        );
        fs::write(self.at("away.toml"), text).expect("definition");
        self.show("away.toml")
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

/// Snapshots by copying, of a side.
fn snapshots(of: &str) -> String {
    format!(
        r#"[{of}.snapshots]
kind = "hooks"
create = ["sh", "-c", "S=$FAILBACK_IMAGE.snap.$FAILBACK_SNAPSHOT; cp $FAILBACK_IMAGE $S && echo $S"]
release = ["sh", "-c", "rm -f $FAILBACK_IMAGE.snap.$FAILBACK_SNAPSHOT"]
"#
    )
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

// Goal: a link that is lost once the source is stopped keeps nobody's machine down: the process
// that completes tells when it tries again, and hears who does not wait for that. Method: an agent
// that is killed by its own `shut_down`, and started anew.
#[test]
fn an_agent_that_dies_during_the_stop_is_waited_for() {
    let hosts = Hosts::new();
    let control = hosts.control();
    let stop = "echo $FAILBACK_STEP >> ";
    let dies = format!("kill -9 $PPID; {stop}");
    fs::write(hosts.at("control.toml"), control.replace(stop, &dies)).expect("control file");
    let agent = hosts.serve(Via::Unix);
    let definition = hosts.job(&agent);
    hosts.failback_job(&["start", &definition, "--no-wait"], 0);
    let state = hosts.show("job-state");
    let args = |verb: &'static str| ["job", verb, "web", "--state-dir", &state, "--json"];

    let completing = cli::start(args("complete"));

    let until = Instant::now() + cli::RUN_MAX;
    let stands = loop {
        let shown = cli::failback(args("show")).exits(0).json();
        if !shown["retry"].is_null() {
            break shown;
        }
        assert!(Instant::now() < until, "{shown}");
        std::thread::sleep(Duration::from_millis(50));
    };
    let now = (
        &stands["phase"],
        &stands["worked_on"],
        &stands["retry"]["attempt"],
    );
    let wanted = (&"stopping_source".into(), &true.into(), &1.into());
    assert_eq!(now, wanted, "{stands}");
    assert_eq!(
        (&*hosts.power("cloud"), &*hosts.power("home")),
        ("off", "off")
    );
    drop(agent);
    fs::remove_file(hosts.at("agent.sock")).expect("socket");
    fs::write(hosts.at("control.toml"), control).expect("control file");
    let _agent = hosts.serve(Via::Unix);
    hosts.failback_job(&["resume", "web"], 0);
    let completed = completing.wait().exits(0);
    assert!(
        completed.stderr.contains("tries again at"),
        "{}",
        completed.stderr
    );
    assert_eq!(completed.json()["phase"], "commit_pending");
    assert!(same(&hosts.at("cloud.raw"), &hosts.at("home.raw")));
    hosts.assert_never_both();
}

// Goal: the machine goes back to the other host, which only gets what changed since it left, and
// does not read its disks for that; each host knows who is in charge, whichever runs the job.
// Method: a job from an agent, accepted, with its disks kept; an agent at home that serves what the
// command prints; the way back from the other host, begun too early, with the agent there still up,
// and then as it should be.
#[test]
fn a_machine_goes_back_to_another_host() {
    let hosts = Hosts::new();
    let agent = hosts.serve(Via::Tcp);
    let definition = hosts.job_with(&agent, "", &snapshots("target"));
    let back = |endpoint: &str, code| {
        let (control, state) = (hosts.show("control.toml"), hosts.show("agent-state"));
        let mut args = vec![
            "pair",
            "reverse",
            "web",
            "--no-wait",
            "--json",
            "--key",
            "k",
        ];
        args.extend(["--control", &control, "--source", endpoint]);
        args.extend(["--state-dir", &state]);
        cli::failback(args).exits(code).json()
    };
    let too_early = back("tcp://127.0.0.1:1/web", 3);
    assert_eq!(too_early["error"]["kind"], "refused", "{too_early}");
    hosts.failback_job(&["start", &definition, "--no-wait"], 0);
    hosts.failback_job(&["complete", "web"], 0);
    let state = hosts.show("job-state");
    // An undo may still want the machine back.
    let printed = cli::failback(["pair", "control", "web", "--state-dir", &state]);
    assert!(printed.exits(3).error_line().contains("commit_pending"));
    let control = hosts.show("control.toml");
    let mut serve = vec!["serve", "--listen", "tcp://127.0.0.1:0"];
    serve.extend(["--control", &control, "--state-dir", &state]);
    assert!(
        cli::failback(serve)
            .exits(3)
            .error_line()
            .contains("commit_pending")
    );
    hosts.failback_job(&["commit", "web"], 0);
    disk::write_changes(&hosts.at("home.raw"), &disk::changes(DISK_LEN, 5, 7));
    let here = cli::failback(["pair", "reverse", "web", "--json", "--state-dir", &state]);
    let here = here.exits(3).json();
    let said = here["error"]["message"].as_str().expect("message");
    assert!(said.contains("failback pair control web"), "{said}");
    let printed = cli::failback(["pair", "control", "web", "--state-dir", &state]);
    let printed = printed.exits(0).stdout;
    fs::write(hosts.at("home.toml"), &printed).expect("control file");
    let json = ["pair", "control", "web", "--state-dir", &state, "--json"];
    let document = cli::failback(json).exits(0).json();
    assert_valid("job", &document);
    let toml = document["toml"].as_str().expect("the file");
    assert_eq!(toml.trim_end(), printed.trim_end());
    let in_use = back("tcp://127.0.0.1:1/web", 3);
    assert_eq!(in_use["error"]["kind"], "in_use", "{in_use}");
    drop(agent);
    let more = ["--control", &hosts.show("home.toml"), "--state-dir", &state];
    let home = Agent::start_with::<String>(Via::Tcp, hosts.dir.path(), &[], &more);

    let waits = back(&home.endpoint("web"), 0);

    assert_eq!(waits["phase"], "waiting", "{waits}");
    assert_eq!(waits["reasons"][0], "map_trusted", "{waits}");
    let again = back(&home.endpoint("web"), 0);
    let now = (&again["key"], &again["passes"]);
    assert_eq!(now, (&Value::from("k"), &waits["passes"]), "{again}");
    let sent = waits["disks"][0]["sent"].as_u64().expect("bytes");
    assert!((1..=5 * PIECE_LEN).contains(&sent), "{sent} bytes sent");
    let job = |args: &[&str]| {
        let state = hosts.show("agent-state");
        let more = ["--state-dir", &state, "--json"];
        let all = ["job"].iter().chain(args).chain(&more);
        cli::failback(all).exits(0).json()
    };
    let pends = job(&["complete", "web-reverse"]);
    assert_eq!(pends["phase"], "commit_pending", "{pends}");
    assert_eq!(
        (&*hosts.power("cloud"), &*hosts.power("home")),
        ("on", "off")
    );
    assert!(same(&hosts.at("cloud.raw"), &hosts.at("home.raw")));
    assert_eq!(job(&["commit", "web-reverse"])["phase"], "finished");
    hosts.assert_never_both();
    // Home knows it, too: what begins there finds another in charge.
    drop(home);
    let again = hosts.failback_job(&["start", &hosts.local_job(), "--no-wait"], 3);
    let said = again["error"]["message"].as_str().expect("message");
    assert!(said.contains("recovery is"), "{said}");
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
