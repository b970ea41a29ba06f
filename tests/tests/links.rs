//! Goal: a limit on the rate of a connection holds for whoever names it, and the disk is right.
//! Method: real processes on loopback TCP; the time that the bytes on the link take at least.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test states its expectations by it")]

use failback_engine::transport::link::tcp;
use failback_engine::transport::{
    Access, Apply, Compress, Digest, HashKind, LinkGroup, Message, MessageReceiver, MessageSender,
    OpenRequest, Role, SessionParams, Task, VerifyLevel, handshake_ahead, split,
};
use failback_tests::agent::{Agent, Via};
use failback_tests::{cli, disk, report};
use tempfile::TempDir;

const DISK_LEN: u64 = 12 << 20;
const RATE: f64 = (8 << 20) as f64;
const RATE_TEXT: &str = "8M";

/// A full copy to an agent; the report, and that the disk is the source's.
fn copy(client: &[&str], server: &[&str]) -> serde_json::Value {
    let dir = TempDir::new().unwrap();
    let (source, target) = (dir.path().join("new.raw"), dir.path().join("old.raw"));
    disk::write_raw(&source, DISK_LEN, 100, 9);
    let grant = format!("disk={}:rw,max=1G", target.display());
    let agent = Agent::start_with(Via::Tcp, dir.path(), &[grant], server);
    let mut args = vec!["sync".to_owned(), source.display().to_string()];
    args.push(agent.endpoint("disk"));
    args.extend(["--json", "--compress", "off"].map(str::to_owned));
    args.extend(client.iter().copied().map(str::to_owned));
    let report = cli::failback(args).exits(0).json();
    report::assert_done(&report);
    assert!(std::fs::read(&source).unwrap() == std::fs::read(&target).unwrap());
    report
}

/// What the copy took of the time that its bytes need at that rate.
fn ratio(report: &serde_json::Value) -> f64 {
    let bytes = report::count(report, "/bytes/wire_out") as f64;
    report["seconds"]["total"].as_f64().unwrap() / (bytes / RATE)
}

#[test]
fn a_client_and_an_agent_keep_to_their_limit() {
    let limit = ["--limit-rate", RATE_TEXT];
    for (client, server) in [(&limit[..], &[][..]), (&[], &limit)] {
        let ratio = ratio(&copy(client, server));
        // The sockets hold some bytes that the limited end has not yet taken.
        assert!(
            ratio > 0.7,
            "{ratio} of the time it should take: {client:?}"
        );
        assert!(
            ratio < 3.0,
            "{ratio} of the time it should take: {client:?}"
        );
    }
}

#[test]
fn both_ends_may_be_far_and_slow() {
    let far = ["--limit-rate", "64M", "--link-delay", "20ms"];
    let report = copy(&far, &far);
    // Hello and Open go together; then Start, the end and its answer: two round trips.
    assert!(report["seconds"]["total"].as_f64().unwrap() > 0.08);
}

#[test]
fn a_verify_is_limited_too() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.raw");
    disk::write_raw(&path, DISK_LEN, 100, 9);
    let agent = Agent::start(Via::Unix, dir.path(), &[format!("a={}", path.display())]);
    let args = ["verify", &path.display().to_string(), &agent.endpoint("a")].map(str::to_owned);
    let more = ["--limit-rate", "16K", "--block-size", "64K"].map(str::to_owned);
    let begun = std::time::Instant::now();
    let run = cli::failback(args.into_iter().chain(more));
    drop(run.exits(0));
    // 192 hashes are 6 KiB.
    assert!(begun.elapsed().as_secs_f64() > 0.3);
}

#[test]
fn several_connections_carry_one_sync() {
    let limit = ["--limit-rate", "4M"];
    let one = copy(&["--no-map"], &limit);
    let four = copy(&["--links", "4", "--no-map"], &limit);
    let [one, four] = [one, four].map(|report| report["seconds"]["copy"].as_f64().unwrap());
    assert!(four < 0.6 * one, "{one} s by one, {four} s by four");
}

// The client's limit is for all of them together.
#[test]
fn several_connections_share_a_limit() {
    let ratio = ratio(&copy(&["--links", "4", "--limit-rate", RATE_TEXT], &[]));
    assert!(ratio > 0.7, "{ratio} of the time it should take");
}

#[test]
fn an_agent_is_source_over_several_connections() {
    let dir = TempDir::new().unwrap();
    let (source, target) = (dir.path().join("new.raw"), dir.path().join("old.raw"));
    disk::write_raw(&source, DISK_LEN, 60, 9);
    disk::write_raw(&target, DISK_LEN, 80, 10);
    let mut agent = Agent::start(Via::Unix, dir.path(), &[format!("a={}", source.display())]);
    let endpoint = agent.endpoint("a");
    for links in ["8", "2"] {
        let target = target.display().to_string();
        let args = ["sync", &endpoint, &target, "--links", links, "--json"];
        report::assert_done(&cli::failback(args).exits(0).json());
    }
    assert!(std::fs::read(&source).unwrap() == std::fs::read(&target).unwrap());
    agent.assert_alive();
}

/// A connection to the agent on which hello has been said, and `first` after it.
fn raw(address: &str, first: &Message) -> (MessageSender, MessageReceiver) {
    let link = tcp::connect(address).unwrap();
    let (mut sender, mut receiver, _, _) = split(link);
    handshake_ahead(&mut sender, &mut receiver, "a test", Some(first)).unwrap();
    (sender, receiver)
}

fn failure(receiver: &mut MessageReceiver) -> String {
    match receiver.recv().unwrap() {
        Message::Failure(failure) => failure.message,
        other => panic!("{other:?}"),
    }
}

// Goal: nobody comes into a session by a token that was not named, nor more often than was asked
// for, and a session does not start without its connections. Method: a client by hand.
#[test]
fn only_who_was_named_joins() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.raw");
    disk::write_raw(&path, DISK_LEN, 100, 9);
    let mut agent = Agent::start(Via::Tcp, dir.path(), &[format!("a={}", path.display())]);
    let address = agent.address().to_owned();
    let [right, wrong] = [1, 2].map(|byte| Message::Join {
        token: Digest::from([byte; 16]),
    });
    let nobody = failure(&mut raw(&address, &right).1);
    assert!(nobody.contains("no session waits"), "{nobody}");
    let open = Message::Open(OpenRequest {
        name: "a".to_owned(),
        access: Access::Read,
        create: None,
        map: None,
        links: Some(LinkGroup {
            count: 2,
            token: Digest::from([1; 16]),
        }),
    });
    let (mut sender, mut receiver) = raw(&address, &open);
    assert!(matches!(receiver.recv().unwrap(), Message::Opened(_)));
    let stranger = failure(&mut raw(&address, &wrong).1);
    assert!(stranger.contains("no session waits"), "{stranger}");
    let mut joined = raw(&address, &right);
    assert_eq!(joined.1.recv().unwrap(), Message::Joined);
    let start = Message::Start(SessionParams {
        task: Task::Compare,
        hash: HashKind::Xxh3,
        block_size: 1 << 20,
        verify: VerifyLevel::Off,
        compress: Compress::Off,
        sub_hash_seed: 0,
        peer_role: Role::Source,
        apply: Apply::InPlace,
        container: None,
        goes_on: false,
        source_mark: 0,
        target_root: None,
        may_send_whole: false,
    });
    sender.send(&start).unwrap();
    sender.flush().unwrap();
    let early = failure(&mut receiver);
    assert!(early.contains("before all of its connections"), "{early}");
    // The session is over, and so is its token.
    assert!(joined.1.recv().is_err());
    let late = failure(&mut raw(&address, &right).1);
    assert!(late.contains("no session waits"), "{late}");
    agent.assert_alive();
}
