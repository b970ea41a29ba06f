//! Goal: two processes do what one does, in both directions; grants decide; an agent outlives bad
//! callers. Method: `failback serve` on a Unix socket and on loopback TCP as a child; QEMU judges
//! the content.
#![cfg(unix)]

use std::path::{Path, PathBuf};

use failback_tests::agent::{Agent, Via};
use failback_tests::peer::{self, Manner};
use failback_tests::qemu::Format::{Dynamic, Raw};
use failback_tests::{cli, disk, place, qemu, report, skip_without};
use tempfile::TempDir;

const DISK_LEN: u64 = 64 << 20;
const CHANGES: usize = 200;

#[test]
fn agent_is_target_over_tcp() {
    skip_without!("qemu-img");
    assert_agent_is_target(Via::Tcp);
}

#[test]
fn agent_is_target_over_unix_socket() {
    skip_without!("qemu-img");
    assert_agent_is_target(Via::Unix);
}

#[test]
fn agent_is_source_over_tcp() {
    skip_without!("qemu-img");
    assert_agent_is_source(Via::Tcp);
}

#[test]
fn agent_is_source_over_unix_socket() {
    skip_without!("qemu-img");
    assert_agent_is_source(Via::Unix);
}

#[test]
fn two_agents_of_two_hosts_sync_one_after_the_other() {
    skip_without!("qemu-img");
    let disks = Disks::new();
    let mut agent = Agent::start(Via::Tcp, disks.dir(), &[disks.grant("rw")]);

    let first = cli::sync(&disks.source, agent.endpoint("disk"))
        .exits(0)
        .json();
    let second = cli::sync(&disks.source, agent.endpoint("disk"))
        .exits(0)
        .json();

    report::assert_done(&first);
    report::assert_nothing_sent(&second);
    agent.assert_alive();
}

#[test]
fn both_ends_behind_agents() {
    skip_without!("qemu-img");
    let disks = Disks::new();
    let new = disks.dir().join("relayed.vhdx");
    let grants = [
        disks.grant("ro"),
        format!("new={}:rw,max=1G", new.display()),
    ];
    let here = Agent::start(Via::Unix, disks.dir(), &grants[..1]);
    let there = Agent::start(Via::Tcp, disks.dir(), &grants[1..]);

    let first = cli::sync(here.endpoint("disk"), there.endpoint("new"))
        .exits(0)
        .json();
    let second = cli::sync(here.endpoint("disk"), there.endpoint("new"))
        .exits(0)
        .json();

    report::assert_done(&first);
    report::assert_nothing_sent(&second);
    drop((here, there));
    qemu::assert_identical((&disks.target, Dynamic(2)), (&new, Dynamic(2)));
}

#[test]
fn a_missing_target_is_made_within_its_grant() {
    skip_without!("qemu-img");
    let disks = Disks::new();
    let new = disks.dir().join("new.vhdx");
    let grant = format!("new={}:rw,max=1G", new.display());
    let agent = Agent::start(Via::Tcp, disks.dir(), &[grant]);

    let done = cli::sync(&disks.source, agent.endpoint("new"))
        .exits(0)
        .json();

    report::assert_done(&done);
    drop(agent);
    qemu::assert_identical((&disks.source, Dynamic(2)), (&new, Dynamic(2)));
    qemu::assert_clean(&new, Dynamic(2));
}

#[test]
fn a_target_larger_than_its_grant_is_refused() {
    skip_without!("qemu-img");
    let disks = Disks::new();
    let new = disks.dir().join("new.vhdx");
    let grant = format!("new={}:rw,max=1M", new.display());
    let agent = Agent::start(Via::Tcp, disks.dir(), &[grant]);

    let run = cli::sync(&disks.source, agent.endpoint("new")).exits(3);

    report::assert_failure(&run.json(), "refused");
    assert!(!new.exists());
}

#[test]
fn a_missing_target_without_a_limit_is_refused() {
    skip_without!("qemu-img");
    let disks = Disks::new();
    let new = disks.dir().join("new.vhdx");
    let grant = format!("new={}:rw", new.display());
    let agent = Agent::start(Via::Tcp, disks.dir(), &[grant]);

    let run = cli::sync(&disks.source, agent.endpoint("new")).exits(3);

    report::assert_failure(&run.json(), "refused");
    assert!(!new.exists());
}

#[test]
fn a_grant_to_read_is_no_grant_to_write() {
    skip_without!("qemu-img");
    let disks = Disks::new();
    let before = std::fs::read(&disks.target).expect("target");
    let mut agent = Agent::start(Via::Tcp, disks.dir(), &[disks.grant("ro")]);

    let run = cli::sync(&disks.source, agent.endpoint("disk")).exits(3);

    report::assert_failure(&run.json(), "refused");
    let _ = run.error_line();
    assert_eq!(std::fs::read(&disks.target).expect("target"), before);
    agent.assert_alive();
}

#[test]
fn reading_is_the_default_of_a_grant() {
    skip_without!("qemu-img");
    let disks = Disks::new();
    let grant = format!("disk={}", disks.target.display());
    let agent = Agent::start(Via::Tcp, disks.dir(), &[grant]);

    let run = cli::sync(&disks.source, agent.endpoint("disk")).exits(3);

    report::assert_failure(&run.json(), "refused");
}

#[test]
fn an_unknown_name_is_refused() {
    skip_without!("qemu-img");
    let disks = Disks::new();
    let mut agent = Agent::start(Via::Tcp, disks.dir(), &[disks.grant("rw")]);

    let run = cli::sync(&disks.source, agent.endpoint("other")).exits(3);

    report::assert_failure(&run.json(), "refused");
    let _ = run.error_line();
    agent.assert_alive();
}

#[test]
fn a_path_is_no_name() {
    skip_without!("qemu-img");
    let disks = Disks::new();
    let agent = Agent::start(Via::Unix, disks.dir(), &[disks.grant("rw")]);
    let endpoint = agent.endpoint(disks.target.to_str().expect("UTF-8"));

    let run = cli::sync(&disks.source, endpoint);

    // Refused by the agent, or not even a name on this side.
    assert!([Some(2), Some(3)].contains(&run.code), "{run:?}");
}

#[test]
fn agent_lives_on_after_bad_callers() {
    skip_without!("qemu-img");
    let disks = Disks::new();
    let mut agent = Agent::start(Via::Tcp, disks.dir(), &[disks.grant("rw")]);

    peer::false_client(agent.address(), Manner::Vanishes);
    peer::false_client(agent.address(), Manner::SendsGarbage);
    peer::false_client(agent.address(), Manner::EchoesHalf);
    let done = cli::sync(&disks.source, agent.endpoint("disk"))
        .exits(0)
        .json();

    report::assert_done(&done);
    agent.assert_alive();
}

#[test]
fn agent_lives_on_after_a_killed_client() {
    skip_without!("qemu-img");
    let disks = Disks::new();
    let mut agent = Agent::start(Via::Tcp, disks.dir(), &[disks.grant("rw")]);
    let endpoint = agent.endpoint("disk");

    let mut client = cli::start([
        "sync".as_ref(),
        disks.source.as_os_str(),
        endpoint.as_ref(),
        "--json".as_ref(),
    ]);
    client.stop_when_it_locks(&disks.source);
    client.signal("KILL");
    assert_eq!(client.wait().code, None);
    let done = sync_until_free(&disks.source, &endpoint);

    report::assert_done(&done.exits(0).json());
    agent.assert_alive();
    drop(agent);
    disks.assert_equal();
}

#[test]
fn between_jobs_others_may_use_the_image() {
    skip_without!("qemu-img", "qemu-io");
    let disks = Disks::new();
    let agent = Agent::start(Via::Tcp, disks.dir(), &[disks.grant("rw")]);
    let _ = cli::sync(&disks.source, agent.endpoint("disk")).exits(0);

    // Fails if the agent still holds its lock.
    qemu::io(&disks.target, Dynamic(1), &["write -P 9 1M 64k".to_owned()]);
    let done = cli::sync(&disks.source, agent.endpoint("disk"))
        .exits(0)
        .json();

    assert_eq!(report::count(&done, "/blocks/differing"), 1);
    drop(agent);
    disks.assert_equal();
}

#[test]
fn an_address_beyond_loopback_is_refused() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let raw = dir.path().join("a.raw");
    disk::write_raw(&raw, 1 << 20, 50, 1);

    let to = cli::sync(&raw, "tcp://192.0.2.1:9/disk");
    let serve = cli::failback([
        "serve",
        "--listen",
        "tcp://0.0.0.0:0",
        "--grant",
        "disk=/dev/null",
    ]);

    assert!([Some(2), Some(3)].contains(&to.code), "{to:?}");
    assert!([Some(2), Some(3)].contains(&serve.code), "{serve:?}");
}

fn assert_agent_is_target(via: Via) {
    let disks = Disks::new();
    let mut agent = Agent::start(via, disks.dir(), &[disks.grant("rw")]);

    let first = cli::sync(&disks.source, agent.endpoint("disk"))
        .exits(0)
        .json();
    let second = cli::sync(&disks.source, agent.endpoint("disk"))
        .exits(0)
        .json();

    report::assert_done(&first);
    assert_eq!(
        report::count(&first, "/bytes/changed"),
        (CHANGES * disk::PAGE_LEN) as u64
    );
    assert!(report::count(&first, "/bytes/wire_out") > report::count(&first, "/bytes/sent"));
    report::assert_nothing_sent(&second);
    agent.assert_alive();
    drop(agent);
    disks.assert_equal();
}

fn assert_agent_is_source(via: Via) {
    let disks = Disks::new();
    let grant = format!("disk={}", disks.source.display());
    let mut agent = Agent::start(via, disks.dir(), &[grant]);

    let first = cli::sync(agent.endpoint("disk"), &disks.target)
        .exits(0)
        .json();
    let second = cli::sync(agent.endpoint("disk"), &disks.target)
        .exits(0)
        .json();

    report::assert_done(&first);
    assert_eq!(
        report::count(&first, "/bytes/changed"),
        (CHANGES * disk::PAGE_LEN) as u64
    );
    report::assert_nothing_sent(&second);
    agent.assert_alive();
    drop(agent);
    disks.assert_equal();
}

/// A dynamic VHDX, and an older copy of it with other blocks.
struct Disks {
    dir: TempDir,
    source: PathBuf,
    target: PathBuf,
}

impl Disks {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary folder");
        let [raw, source, target] = place::paths(dir.path(), ["raw", "source.vhdx", "target.vhdx"]);
        disk::write_raw(&raw, DISK_LEN, 50, 1);
        qemu::convert(&raw, &target, Dynamic(1));
        disk::write_changes(&raw, &disk::changes(DISK_LEN, CHANGES, 2));
        qemu::convert(&raw, &source, Dynamic(2));
        qemu::assert_identical((&raw, Raw), (&source, Dynamic(2)));
        Self {
            dir,
            source,
            target,
        }
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn grant(&self, access: &str) -> String {
        format!("disk={}:{access}", self.target.display())
    }

    fn assert_equal(&self) {
        qemu::assert_identical((&self.source, Dynamic(2)), (&self.target, Dynamic(1)));
        qemu::assert_clean(&self.target, Dynamic(1));
    }
}

/// The agent may take a moment to see that its caller is gone; until then the disk is in use (3).
fn sync_until_free(source: &Path, endpoint: &str) -> cli::Run {
    let tries = (0..50).map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        cli::sync(source, endpoint)
    });
    let mut tries = tries.skip_while(|run| run.code == Some(3));
    tries.next().expect("the disk is free within seconds")
}
