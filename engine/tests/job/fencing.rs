//! What an agent that controls a machine refuses: epochs that are over, jobs that were overtaken,
//! peers that ask for what is not in its file, or in a way that is none.

use std::time::Duration;

use failback_engine::job::{
    Ask, Charge, DiskSpec, Fence, Job, Jobs, Phase, RemoteHost, Sides, SourceHost,
};
use failback_engine::machine::{Behaviour, Call, Power};
use failback_engine::operation::{SyncRequest, sync};
use failback_engine::report::Report;
use failback_engine::snapshot::SnapshotId;
use failback_engine::transport::link::tcp;
use failback_engine::transport::{
    Access, ControlAsk, ControlRequest, ControlTask, Digest, Message, OpenRequest, handshake, split,
};
use failback_engine::{CancelToken, Error, ErrorKind, Result, Silent, Step};

use super::scene::{Scene, ask, bring_home, run};
use super::two_hosts::{self, grants, sides, spec, start, with_agent};

/// Does something for the step `name` of job `web`.
fn in_step<T>(name: &str, act: impl FnOnce(&Step<'_>) -> T) -> T {
    act(&Step {
        job: "web",
        name,
        observer: &Silent,
        cancel: &CancelToken::new(),
    })
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

pub(crate) fn host(address: &str) -> RemoteHost {
    let endpoint = format!("tcp://{address}/web").parse().unwrap();
    RemoteHost::new(endpoint, "recovery").unwrap()
}

fn charge(epoch: u64, job: u8) -> Charge {
    Charge {
        epoch,
        token: [job; 16],
    }
}

pub(crate) fn advance(host: &RemoteHost, epoch: u64, side: Option<&str>, job: u8) -> Result<()> {
    host.act_for(charge(epoch, job));
    in_step("fence", |step| host.advance(epoch, side, step))
}

// Goal: G1: a machine that was handed over is not started, in no epoch, also by an agent that was
// restarted; a job of an epoch that is over is refused. Method: a pair that is moved by hand, and
// looked at before and after a restart.
#[test]
fn a_source_that_was_handed_over_does_not_start() {
    let scene = Scene::new(&["os"]);
    scene.source.set_power(Power::Off);
    let start = |host: &RemoteHost| in_step("start", |step| host.machine().start(step));
    with_agent(&scene, |address| {
        let host = host(address);
        assert_eq!(kind(start(&host)), ErrorKind::Refused, "no epoch yet");
        advance(&host, 4, Some("recovery"), 1).unwrap();
        start(&host).unwrap();
        scene.source.set_power(Power::Off);
        advance(&host, 5, None, 1).unwrap();
        assert_eq!(
            kind(start(&host)),
            ErrorKind::Refused,
            "nobody is in charge"
        );
        advance(&host, 6, Some("primary"), 1).unwrap();
        assert_eq!(kind(start(&host)), ErrorKind::Refused, "handed over");
    });
    with_agent(&scene, |address| {
        let host = host(address);
        for epoch in [0, 4, 5, 6, 7, u64::MAX] {
            host.act_for(charge(epoch, 1));
            assert_eq!(kind(start(&host)), ErrorKind::Refused, "epoch {epoch}");
        }
        for epoch in [4, 5] {
            let late = advance(&host, epoch, Some("recovery"), 1);
            assert_eq!(kind(late), ErrorKind::Refused, "epoch {epoch}");
        }
        // The same once more is the same; another of that number is not.
        advance(&host, 6, Some("primary"), 1).unwrap();
        assert_eq!(
            kind(advance(&host, 6, Some("recovery"), 1)),
            ErrorKind::Refused
        );
        assert_eq!(
            kind(advance(&host, 7, Some("recovery"), 2)),
            ErrorKind::Refused
        );
        assert_eq!(scene.source.real_power(), Power::Off);
        advance(&host, 7, Some("recovery"), 1).unwrap();
        start(&host).unwrap();
    });
    assert_eq!(scene.source.count(Call::Start), 2);
}

// Goal: two hosts that both move a pair do not both go on: the later one has it, as long as the
// source is in charge; on its way it stays with its job. Method: two state directories, one agent,
// jobs of the same name.
#[test]
fn a_job_that_was_overtaken_is_refused() {
    let scene = Scene::new(&["os"]);
    with_agent(&scene, |address| {
        let mut first = start(&scene, address);
        run(&mut first);
        assert_eq!(first.position().phase, Phase::Waiting);

        let elsewhere = Jobs::below(&scene.dir.path().join("elsewhere"));
        let mut other = spec(&scene, address);
        other.disks[0].target = scene.dir.path().join("elsewhere.raw");
        let mut second =
            Job::start(&elsewhere, other.clone(), None, sides(&scene, address)).unwrap();
        run(&mut second);
        assert_eq!(
            second.position().phase,
            Phase::Waiting,
            "{:?}",
            second.report()
        );

        ask(&mut first, Ask::Complete);
        let report = first.report();
        assert_eq!((report.phase, report.suspended), ("stopping_source", true));
        let error = report.error.unwrap();
        assert_eq!(error.kind, "refused");
        assert!(
            error.message.contains("is not the present one"),
            "{error:?}"
        );
        assert_eq!(scene.source.real_power(), Power::On);
        assert_eq!(scene.target.real_power(), Power::Off);

        ask(&mut second, Ask::Complete);
        assert_eq!(
            second.position().phase,
            Phase::CommitPending,
            "{:?}",
            second.report()
        );
        drop(second);
        let third = Jobs::below(&scene.dir.path().join("third"));
        other.disks[0].target = scene.dir.path().join("third.raw");
        scene.target.set_power(Power::Off);
        let mut third = Job::start(&third, other, None, sides(&scene, address)).unwrap();
        run(&mut third);
        let report = third.report();
        assert_eq!((report.phase, report.suspended), ("preflight", true));
        assert!(report.error.unwrap().message.contains("not in charge"));
    });
}

// Goal: an agent has its pairs alone. Method: two that keep state in one place.
#[test]
fn one_agent_serves_a_pair() {
    let scene = Scene::new(&["os"]);
    let held = grants(&scene).unwrap();
    assert_eq!(kind(grants(&scene)), ErrorKind::InUse);
    drop(held);
    grants(&scene).unwrap();
}

/// Reads what is granted under that name.
fn read(scene: &Scene, address: &str, name: &str) -> Report {
    let to = scene.dir.path().join("read.raw");
    let from = format!("tcp://{address}/{name}").parse().unwrap();
    sync(
        &SyncRequest::new(from, to.to_str().unwrap().parse().unwrap()),
        &Silent,
        &CancelToken::new(),
    )
}

fn error_of(report: Report) -> &'static str {
    report.error.map_or("none", |error| error.kind)
}

// Goal: a disk can be read while its machine is off and was not handed over, a snapshot while it
// exists, nothing else ever. Method: names at each time.
#[test]
fn disks_can_be_read_in_their_time() {
    let scene = Scene::new(&["os"]);
    with_agent(&scene, |address| {
        let host = host(address);
        let disk = DiskSpec::new("os", "unused");
        let id = SnapshotId::new("web", "pass-1").unwrap();
        let error = |name: &str| error_of(read(&scene, address, name));
        assert_eq!(error("web/os"), "in_use");
        assert_eq!(error("web/os@web.pass-1"), "not_granted");
        let frozen = in_step("pass-1", |step| host.snapshot(&disk, &id, step)).unwrap();
        assert_eq!(frozen.name(), Some("web/os@web.pass-1"));
        assert_eq!(error("web/os@web.pass-1"), "none");
        in_step("pass-1", |step| host.release(&disk, &id, step)).unwrap();
        assert_eq!(error("web/os@web.pass-1"), "not_granted");
        scene.source.set_power(Power::Off);
        assert_eq!(error("web/os"), "none");
        for name in [
            "web",
            "web/",
            "web/data",
            "web/os@",
            "web/@web.pass-1",
            "web/../web/os",
            "web//os",
            "other/os",
            "/os",
            "web/os/../../etc/passwd",
            "web/os@../../etc/passwd",
        ] {
            assert_eq!(error(name), "not_granted", "{name}");
        }
        advance(&host, 1, Some("primary"), 1).unwrap();
        assert_eq!(error("web/os"), "refused");
    });
}

/// What an agent answers to a client that says these after the handshake, if not a failure.
fn answers(
    address: &str,
    script: &[Message],
) -> Vec<std::result::Result<Message, ErrorKindNumber>> {
    let (mut sender, mut receiver, _, _) = split(tcp::connect(address).unwrap());
    handshake(&mut sender, &mut receiver, "script").unwrap();
    let mut heard = Vec::new();
    for message in script {
        sender.send(message).unwrap();
        sender.flush().unwrap();
        match receiver.recv() {
            Ok(Message::Failure(failure)) => {
                heard.push(Err(failure.kind));
                return heard;
            }
            Ok(message) => heard.push(Ok(message)),
            Err(_) => return heard,
        }
    }
    heard
}

type ErrorKindNumber = u16;
const USAGE: ErrorKindNumber = 0;
const NOT_GRANTED: ErrorKindNumber = 4;
const REFUSED: ErrorKindNumber = 5;
const PROTOCOL: ErrorKindNumber = 9;

fn control(name: &str, job: &str) -> Message {
    Message::Control(ControlRequest {
        name: name.to_owned(),
        job: job.to_owned(),
        epoch: 0,
        token: Digest::from([7; 16]),
    })
}

fn question(step: &str, what: ControlTask) -> Message {
    Message::Ask(ControlAsk {
        step: step.to_owned(),
        what,
    })
}

fn open(name: &str) -> Message {
    Message::Open(OpenRequest {
        name: name.to_owned(),
        access: Access::Read,
        create: None,
        map: None,
        links: None,
    })
}

// Goal: nothing is reached that is not in the agent's file, by no name and no order of messages,
// and each peer hears why. Method: a scripted client; the machine and the folder are as before.
#[test]
fn a_hostile_client_of_a_control_link() {
    let scene = Scene::new(&["os"]);
    scene.source.set_power(Power::Off);
    let before = std::fs::read_dir(scene.dir.path()).unwrap().count();
    let list = |disk: &str| ControlTask::List {
        disk: disk.to_owned(),
    };
    let freeze = |disk: &str, snapshot: &str| ControlTask::Snapshot {
        disk: disk.to_owned(),
        snapshot: snapshot.to_owned(),
    };
    let table = [
        (vec![control("db", "web")], NOT_GRANTED),
        (vec![control("web/os", "web")], NOT_GRANTED),
        (vec![control("../web", "web")], NOT_GRANTED),
        (vec![control("web", "../web")], REFUSED),
        (vec![control("web", "a b")], REFUSED),
        (
            vec![control("web", "web"), question("../up", ControlTask::Power)],
            REFUSED,
        ),
        (
            vec![control("web", "web"), question("s", list("data"))],
            NOT_GRANTED,
        ),
        (
            vec![control("web", "web"), question("s", list("../os"))],
            NOT_GRANTED,
        ),
        (
            vec![
                control("web", "web"),
                question("s", freeze("os", "../../x")),
            ],
            USAGE,
        ),
        (
            vec![
                control("web", "web"),
                question("s", freeze("os-cloud.raw", "x")),
            ],
            NOT_GRANTED,
        ),
        // Who only looks changes nothing.
        (
            vec![control("web", "web"), question("s", ControlTask::PowerOff)],
            REFUSED,
        ),
        (
            vec![control("web", "web"), question("s", ControlTask::Delete)],
            REFUSED,
        ),
        (
            vec![
                control("web", "web"),
                question("s", ControlTask::Start { epoch: 0 }),
            ],
            REFUSED,
        ),
        (
            vec![
                control("web", "web"),
                question(
                    "s",
                    ControlTask::ShutDown {
                        limit_ms: 86_400_000,
                    },
                ),
            ],
            REFUSED,
        ),
        // Questions of the other kind of link.
        (vec![question("s", ControlTask::Power)], PROTOCOL),
        (
            vec![open("web/os"), question("s", ControlTask::Power)],
            PROTOCOL,
        ),
        (vec![open("web/os"), control("web", "web")], PROTOCOL),
        (vec![control("web", "web"), open("web/os")], PROTOCOL),
        (vec![control("web", "web"), control("web", "web")], PROTOCOL),
    ];
    with_agent(&scene, |address| {
        for (script, wanted) in table {
            let heard = answers(address, &script);
            assert_eq!(heard.len(), script.len(), "{script:?}: {heard:?}");
            assert_eq!(heard.last(), Some(&Err(wanted)), "{script:?}");
        }
        let looks = [control("web", "web"), question("s", ControlTask::Power)];
        assert!(
            answers(address, &looks)
                .iter()
                .all(std::result::Result::is_ok)
        );
    });
    let changes = [Call::Start, Call::ShutDown, Call::PowerOff, Call::Delete];
    assert!(changes.iter().all(|call| scene.source.count(*call) == 0));
    let after = std::fs::read_dir(scene.dir.path()).unwrap().count();
    // The agent's own state.
    assert_eq!(after, before + 1);
}

// Goal: a job that is cancelled does not wait for an agent's hook, and what runs there for a link
// that is gone ends. Method: a guest that ignores the request to shut down, for ten minutes.
#[test]
fn a_question_that_takes_long_can_be_cancelled() {
    let scene = Scene::new(&["os"]);
    scene.source.always(Call::ShutDown, Behaviour::Ignores);
    with_agent(&scene, |address| {
        let host = host(address);
        advance(&host, 1, Some("recovery"), 1).unwrap();
        let cancel = CancelToken::new();
        let step = Step {
            job: "web",
            name: "stop",
            observer: &Silent,
            cancel: &cancel,
        };
        let from = std::time::Instant::now();
        let ended: Result<Power> = std::thread::scope(|scope| {
            let asking = scope.spawn(|| host.machine().shut_down(&step, Duration::from_secs(600)));
            std::thread::sleep(Duration::from_millis(300));
            cancel.cancel();
            asking.join().unwrap()
        });
        assert_eq!(kind(ended), ErrorKind::Cancelled);
        assert!(
            from.elapsed() < Duration::from_secs(5),
            "{:?}",
            from.elapsed()
        );
        // The next question waits for the end of that one, some seconds.
        let power = in_step("look", |step| host.machine().power(step));
        assert_eq!(power.unwrap(), Power::On);
        assert!(
            from.elapsed() < Duration::from_secs(20),
            "{:?}",
            from.elapsed()
        );
    });
}

// Goal: what a definition says of an agent fits, before anything is asked. Method: near misses.
#[test]
fn a_definition_with_an_agent_is_checked() {
    let scene = Scene::new(&["os"]);
    let right = spec(&scene, "127.0.0.1:1");
    right.check().unwrap();
    Sides::of(&right).unwrap_err();
    let wrong = |change: &dyn Fn(&mut failback_engine::job::JobSpec)| {
        let mut spec = right.clone();
        change(&mut spec);
        let error: Error = spec.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
    };
    wrong(&|spec| spec.source.control = Some("/a/path".to_owned()));
    wrong(&|spec| spec.source.control = Some("tcp://127.0.0.1:1/db".to_owned()));
    wrong(&|spec| spec.source.control = Some("tcp://127.0.0.1:1".to_owned()));
    wrong(&|spec| spec.pair = Some("db".to_owned()));
    wrong(&|spec| spec.target.control = spec.source.control.clone());
    wrong(&|spec| spec.source.probe = Some(failback_engine::hook::Hook::new(["true"])));
    wrong(&|spec| spec.disks[0].source = Some("/vm/os.vhdx".to_owned()));
    wrong(&|spec| spec.disks[0].source_format = Some("raw".to_owned()));
    wrong(&|spec| spec.policy.stop_timeout = Duration::from_hours(25));
    wrong(&|spec| spec.source.control = None);
}

// Goal: a machine that another job moved on is not stopped by an undo of the one before. Method: a
// job that waits to be accepted, and a later epoch of somebody else; then the machine is stopped.
#[test]
fn an_undo_does_not_stop_what_is_not_its_own_any_more() {
    let scene = Scene::new(&["os"]);
    let mut job = scene.start();
    bring_home(&mut job);
    drop(job);
    let mut fence = Fence::open(&scene.dir.path().join("state/pairs/web")).unwrap();
    fence.advance(99, Some("primary"), "later").unwrap();
    drop(fence);
    let mut job = Job::open(&scene.jobs(), "web", scene.sides()).unwrap();

    ask(&mut job, Ask::Undo);

    let report = job.report();
    assert_eq!((report.phase, report.suspended), ("undoing", true));
    assert_eq!(report.error.unwrap().kind, "refused");
    assert_eq!(scene.target.real_power(), Power::On);
    assert_eq!(scene.source.real_power(), Power::Off);
    // Once its owner stopped it the job ends, and starts nothing.
    scene.target.set_power(Power::Off);
    ask(&mut job, Ask::Resume);
    assert_eq!(job.position().phase, Phase::Undone, "{:?}", job.report());
    assert_eq!(scene.target_bytes(), scene.old_target());
    assert_eq!(scene.source.real_power(), Power::Off);
}

// Goal: no peer uses a pair's epochs up: a number that leaves none is refused before either side
// has written anything, and an honest one far ahead is followed. Method: an agent that is told the
// last epoch; homes that hear it, or one within the bound, from an agent.
#[test]
fn no_peer_uses_up_the_epochs() {
    const BOUND: u64 = 1 << 32;
    for (theirs, is_honest) in [(BOUND + 1, true), (BOUND + 2, false), (u64::MAX, false)] {
        let scene = Scene::new(&["os"]);
        let pair = two_hosts::agent_state(&scene).join("pairs/web");
        let mut fence = Fence::open(&pair).unwrap();
        fence.advance(theirs, Some("recovery"), "before").unwrap();
        drop(fence);
        with_agent(&scene, |address| {
            let mut job = start(&scene, address);
            run(&mut job);
            let report = job.report();
            let kind = report.error.map(|error| error.kind);
            let wanted = match is_honest {
                true => ("waiting", None),
                false => ("preflight", Some("refused".to_owned())),
            };
            assert_eq!((report.phase, kind), wanted);
        });
        let home = scene.jobs().epoch("web").unwrap().unwrap();
        let wanted = if is_honest { theirs + 1 } else { 1 };
        assert_eq!(home.epoch, wanted);
    }
    let scene = Scene::new(&["os"]);
    with_agent(&scene, |address| {
        let host = host(address);
        for epoch in [u64::MAX, BOUND + 1] {
            let refused = advance(&host, epoch, Some("recovery"), 1);
            assert_eq!(kind(refused), ErrorKind::Refused, "epoch {epoch}");
        }
        advance(&host, BOUND, Some("recovery"), 1).unwrap();
        let refused = advance(&host, u64::MAX, None, 1);
        assert_eq!(kind(refused), ErrorKind::Refused);
        advance(&host, BOUND + 1, Some("recovery"), 1).unwrap();
    });
}

// Goal: a machine that its host is in charge of is not deleted, whoever asks. Method: a peer of the
// present epoch, while the machine is off; the same once it was handed over.
#[test]
fn a_machine_in_charge_is_not_deleted() {
    let scene = Scene::new(&["os"]);
    scene.source.set_power(Power::Off);
    with_agent(&scene, |address| {
        let host = host(address);
        let delete = || in_step("delete-source", |step| host.machine().delete(step));
        advance(&host, 1, Some("recovery"), 1).unwrap();
        assert_eq!(kind(delete()), ErrorKind::Refused);
        assert!(!scene.source.is_deleted());
        advance(&host, 2, Some("primary"), 1).unwrap();
        delete().unwrap();
    });
    assert!(scene.source.is_deleted());
}
