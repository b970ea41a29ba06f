//! A job whose source is behind an agent: the agent is served by this process, on loopback.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use failback_engine::agent::{Grants, Pair, serve};
use failback_engine::disk::OpenOptions;
use failback_engine::job::{Ask, Fact, Job, JobSpec, Phase, Position, RemoteHost, Sides, Stay};
use failback_engine::machine::{Call, FakeMachine, Power};
use failback_engine::track::ChangeTracker;
use failback_engine::transport::link::{Shape, tcp};
use failback_engine::{CancelToken, ErrorKind, Result, Silent};

use super::crashes::{self, Fuse, at_every_point, die_and_be_taken_up};
use super::hinted::{HONEST, facts};
use super::relay::Relay;
use super::scene::{Copies, Scene, ask, count_met, run};
use super::telling::Waited;
use super::watched::Watched;

/// A machine that looks at the other one after everything it does: never both on.
fn watching(inner: &FakeMachine, other: &FakeMachine) -> Arc<Watched> {
    let both = [inner.clone(), other.clone()];
    Arc::new(Watched::new(inner, move |_| {
        let powers = both.each_ref().map(FakeMachine::real_power);
        assert_ne!(powers, [Power::On, Power::On], "both sides run");
    }))
}

/// The state directory of the agent.
pub(crate) fn agent_state(scene: &Scene) -> PathBuf {
    scene.dir.path().join("agent")
}

pub(crate) fn grants(scene: &Scene) -> Result<Grants> {
    grants_tracked_by(scene, None)
}

fn grants_tracked_by(scene: &Scene, tracker: Option<Arc<dyn ChangeTracker>>) -> Result<Grants> {
    let machine = watching(&scene.source, &scene.target);
    let mut pair = Pair::new("recovery", machine, Some(Arc::new(Copies)));
    if let Some(tracker) = tracker {
        pair = pair.tracked_by(tracker);
    }
    for disk in &scene.disks {
        pair = pair.disk(disk, &scene.source_of(disk), OpenOptions::default());
    }
    let mut grants = Grants::new();
    grants.add_pair("web", pair, &agent_state(scene))?;
    Ok(grants)
}

/// Runs a test against an agent, whose address it is told. The agent is gone when this returns.
pub(crate) fn with_agent<T>(scene: &Scene, test: impl FnOnce(&str) -> T) -> T {
    with_agent_of(&grants(scene).unwrap(), ANYWHERE, test)
}

/// The same with something that knows what changed, where an agent was before.
pub(crate) fn with_tracking_agent<T>(
    scene: &Scene,
    (at, tracker): (&str, impl ChangeTracker + 'static),
    test: impl FnOnce(&str) -> T,
) -> T {
    let grants = grants_tracked_by(scene, Some(Arc::new(tracker)));
    with_agent_of(&grants.unwrap(), at, test)
}

/// Where nobody listens yet.
pub(crate) const ANYWHERE: &str = "127.0.0.1:0";

/// The same of any grants.
pub(crate) fn with_agent_of<T>(grants: &Grants, at: &str, test: impl FnOnce(&str) -> T) -> T {
    let listener = tcp::listen(at).unwrap();
    let address = listener
        .local_addr()
        .trim_start_matches("tcp://")
        .to_owned();
    let cancel = CancelToken::new();
    std::thread::scope(|scope| {
        scope.spawn(|| serve(&listener, grants, Shape::default(), &Silent, &cancel));
        // Also when the test fails, which is passed on.
        let _over = Over(&cancel);
        test(&address)
    })
}

struct Over<'a>(&'a CancelToken);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

pub(crate) fn spec(scene: &Scene, address: &str) -> JobSpec {
    let local = scene.spec();
    let disks = scene.disks.iter();
    let mut spec = disks.fold(JobSpec::new("web"), |spec, disk| {
        spec.agent_disk(disk, scene.target_of(disk))
    });
    spec.policy = local.policy;
    spec.source.control = Some(format!("tcp://{address}/web"));
    spec
}

pub(crate) fn sides(scene: &Scene, address: &str) -> Sides {
    let endpoint = format!("tcp://{address}/web").parse().unwrap();
    Sides {
        source: Arc::new(RemoteHost::new(endpoint, "recovery").unwrap()),
        target: watching(&scene.target, &scene.source),
    }
}

pub(crate) fn start(scene: &Scene, address: &str) -> Job {
    let (spec, sides) = (spec(scene, address), sides(scene, address));
    Job::start(&scene.jobs(), spec, None, sides).unwrap()
}

fn phase(job: &Job) -> Phase {
    job.position().phase
}

fn powers(scene: &Scene) -> (Power, Power) {
    (scene.source.real_power(), scene.target.real_power())
}

// Goal: the whole way home from another host; the agent lets go of what it served. Method: as on
// one host, one disk and two, with a guest that writes until it is stopped.
#[test]
fn a_machine_comes_home_from_another_host() {
    for disks in [&["os"][..], &["os", "data"]] {
        let scene = Scene::new(disks);
        with_agent(&scene, |address| {
            let mut job = start(&scene, address);
            run(&mut job);
            assert_eq!(phase(&job), Phase::Waiting, "{:?}", job.report());
            scene.guest_writes("os", 3, 0xaa);

            ask(&mut job, Ask::Complete);

            assert_eq!(phase(&job), Phase::CommitPending, "{:?}", job.report());
            assert_eq!(scene.target_bytes(), scene.source_bytes());
            assert_eq!(scene.target_bytes()[0][3 * 4096], 0xaa);
            assert_eq!(powers(&scene), (Power::Off, Power::On));

            ask(&mut job, Ask::Commit);

            assert_eq!(phase(&job), Phase::Finished, "{:?}", job.report());
            assert_eq!(scene.leftovers(), Vec::<String>::new());
            assert_eq!(scene.source.count(Call::Start), 0);
        });
    }
}

// Goal: G5 over two hosts: cancel and undo give back what was, and the pair can be moved again.
// Method: both, each followed by another job.
#[test]
fn cancel_and_undo_over_two_hosts() {
    for (completes, give_up, end) in [
        (false, Ask::Cancel, Phase::Cancelled),
        (true, Ask::Undo, Phase::Undone),
    ] {
        let scene = Scene::new(&["os"]);
        let old = scene.target_bytes();
        with_agent(&scene, |address| {
            let mut job = start(&scene, address);
            run(&mut job);
            if completes {
                ask(&mut job, Ask::Complete);
                assert_eq!(phase(&job), Phase::CommitPending, "{:?}", job.report());
            }
            ask(&mut job, give_up);
            assert_eq!(phase(&job), end, "{:?}", job.report());
            assert_eq!(scene.target_bytes(), old);
            assert_eq!(powers(&scene), (Power::On, Power::Off));
            assert_eq!(scene.leftovers(), Vec::<String>::new());
            drop(job);

            let mut again = start(&scene, address);
            run(&mut again);
            assert_eq!(phase(&again), Phase::Waiting, "{:?}", again.report());
        });
    }
}

// Goal: a machine that is off is moved from its own disks. Method: one that never ran, which stays
// off when the job is undone.
#[test]
fn a_machine_that_is_off_comes_home() {
    let scene = Scene::new(&["os"]);
    scene.source.set_power(Power::Off);
    with_agent(&scene, |address| {
        let mut job = start(&scene, address);
        run(&mut job);
        ask(&mut job, Ask::Complete);
        assert_eq!(phase(&job), Phase::CommitPending, "{:?}", job.report());
        assert_eq!(scene.target_bytes(), scene.source_bytes());
        ask(&mut job, Ask::Undo);
        assert_eq!(phase(&job), Phase::Undone, "{:?}", job.report());
        assert_eq!(powers(&scene), (Power::Off, Power::Off));
    });
}

/// A job over two hosts whose process dies at `point`, of its records and what it does to the
/// target, and one that takes it up.
fn die_at(point: usize, wish: crashes::Wish) -> bool {
    let scene = Scene::small(&["os"]);
    with_tracking_agent(&scene, (ANYWHERE, HONEST), |address| {
        let fuse = Fuse::at(point);
        let burning = fuse.clone();
        let both = [&scene.source, &scene.target].map(FakeMachine::clone);
        let target = Watched::new(&scene.target, move |call| {
            let powers = both.each_ref().map(FakeMachine::real_power);
            assert_ne!(powers, [Power::On, Power::On], "both sides run");
            // To be asked for its power does nothing to it.
            if call != Call::Power {
                burning.burn();
            }
        });
        let next = sides(&scene, address);
        let mortal = Sides {
            target: Arc::new(target),
            ..sides(&scene, address)
        };
        let spec = spec(&scene, address);
        die_and_be_taken_up(&scene, spec, (mortal, next), &fuse, wish)
    })
}

// Goal: G1 to G7 over two hosts: a job whose process dies is taken up where it was. Method: every
// record of a job that is accepted, cancelled, undone.
#[test]
fn a_job_over_two_hosts_that_dies_ends_as_it_would_have() {
    at_every_point(|point| die_at(point, crashes::Wish::Accept));
    for after_commit in [false, true] {
        at_every_point(|point| die_at(point, crashes::Wish::GiveUp { after_commit }));
    }
}

/// What an operator wants in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Accept,
    /// Undone once the target runs.
    Undo,
    /// Given up as soon as it stands, and else undone.
    GiveUp,
}

/// Asks what leads to the wish, and to go on whenever the job stands, in a process of its own each
/// time, until it is over. How often it stood. Before it accepts or gives up, that is told.
fn drive(
    mut job: Job,
    (scene, sides): (&Scene, &Sides),
    wish: Wish,
    mut gives_up: impl FnMut(),
) -> (Job, usize) {
    let mut stood = 0;
    for _ in 0..20 {
        run(&mut job);
        assert_ne!(powers(scene), (Power::On, Power::On), "both sides run");
        let at = job.position();
        let next = match (at.phase, wish) {
            (_, wish) if at.is_suspended => {
                let error = job.report().error.unwrap();
                assert!(error.is_transient, "{error:?}");
                stood += 1;
                drop(job);
                job = reopen(scene, sides);
                let allowed = at.allowed();
                let is_allowed = |ask: &Ask| wish == Wish::GiveUp && allowed.contains(ask);
                let give_up = [Ask::Cancel, Ask::Undo].into_iter().find(is_allowed);
                give_up.unwrap_or(Ask::Resume)
            }
            (phase, _) if phase.is_end() => return (job, stood),
            (Phase::Waiting, _) => Ask::Complete,
            (Phase::CommitPending, Wish::Accept) => Ask::Commit,
            (Phase::CommitPending, _) => Ask::Undo,
            (phase, _) => panic!("rests in {phase:?}"),
        };
        if matches!(next, Ask::Commit | Ask::Cancel | Ask::Undo) {
            gives_up();
        }
        job.ask(next).unwrap();
    }
    panic!("does not end: {:?}", job.report());
}

/// Takes the job up. A process that another thread is about to start holds all locks for a moment.
fn reopen(scene: &Scene, sides: &Sides) -> Job {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match Job::open(&scene.jobs(), "web", sides.clone()) {
            Err(error) if error.kind() == ErrorKind::InUse && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(5));
            }
            opened => return opened.unwrap(),
        }
    }
}

/// A job whose link is cut in place of control message `cut`. How many messages there were before
/// it was accepted or given up, and whether it was cut.
fn cut_and_go_on(cut: usize, wish: Wish) -> (usize, bool) {
    let scene = Scene::small(&["os"]);
    with_agent(&scene, |address| {
        let relay = Relay::to(address, cut);
        let mut spec = spec(&scene, &relay.address());
        spec.policy.delete_source_machine = true;
        let sides = sides(&scene, &relay.address());
        let job = Job::start(&scene.jobs(), spec, None, sides.clone()).unwrap();
        let mut said = 0;
        let (job, stood) = drive(job, (&scene, &sides), wish, || said = relay.said());
        let (ends, power) = match wish {
            Wish::Accept => (&[Phase::Finished][..], (Power::Off, Power::On)),
            Wish::Undo => (&[Phase::Undone][..], (Power::On, Power::Off)),
            Wish::GiveUp => (
                &[Phase::Cancelled, Phase::Undone][..],
                (Power::On, Power::Off),
            ),
        };
        assert!(ends.contains(&phase(&job)), "cut {cut}: {:?}", phase(&job));
        assert_eq!(powers(&scene), power, "cut {cut}: {:?}", job.report());
        let wanted = match wish {
            Wish::Accept => scene.source_bytes(),
            Wish::GiveUp | Wish::Undo => scene.old_target(),
        };
        assert_eq!(scene.target_bytes(), wanted, "cut {cut}");
        assert_eq!(scene.leftovers(), Vec::<String>::new(), "cut {cut}");
        assert_eq!(scene.source.is_deleted(), wish == Wish::Accept, "cut {cut}");
        // What is lost behind an answer is nobody's loss.
        let failed = facts(&job)
            .into_iter()
            .filter(|fact| matches!(fact, Fact::Failed { .. }));
        let failed: Vec<_> = failed.collect();
        assert!(
            stood <= usize::from(relay.was_cut()),
            "cut {cut}: {failed:?}"
        );
        (said, relay.was_cut())
    })
}

/// Cuts at each message, from where the wishes part for one of them, until a job ends before the
/// cut comes: how many passes it makes is a matter of time, and so the number of messages is.
fn at_every_cut(wish: Wish) {
    let (until_parted, _) = cut_and_go_on(usize::MAX, wish);
    let cuts = match wish {
        Wish::Accept => 0..CUTS_MAX,
        Wish::Undo => until_parted..CUTS_MAX,
        Wish::GiveUp => 0..until_parted,
    };
    let (first, last) = (cuts.start, cuts.end);
    let count = count_met(cuts, |cut| cut_and_go_on(cut, wish).1);
    assert!(
        count > 5 && first + count < CUTS_MAX,
        "{count} from {first} to {last}"
    );
}

/// More than a job says.
const CUTS_MAX: usize = 1000;

// Goal: G1 and the ends of a job whose link breaks anywhere: it stands with a transient error, and
// goes on to the end that it would have had. Method: in place of each control message of a job that
// is accepted, undone, or given up because of it.
#[test]
fn a_link_that_breaks_before_a_job_is_accepted() {
    at_every_cut(Wish::Accept);
}

#[test]
fn a_link_that_breaks_and_a_job_that_is_given_up() {
    at_every_cut(Wish::GiveUp);
}

#[test]
fn a_link_that_breaks_before_a_job_is_undone() {
    at_every_cut(Wish::Undo);
}

/// A job whose link is cut in place of control message `cut`, and that nobody resumes once its
/// source is being stopped. Whether it was cut, and whether it went on by itself.
fn cut_and_left_alone(cut: usize) -> (bool, bool) {
    let scene = Scene::small(&["os"]);
    with_agent(&scene, |address| {
        let relay = Relay::to(address, cut);
        let (spec, sides) = (
            spec(&scene, &relay.address()),
            sides(&scene, &relay.address()),
        );
        let mut job = Job::start(&scene.jobs(), spec, None, sides).unwrap();
        job.wait_by(Arc::new(Waited::default()));
        let stay = Stay {
            leaves_waiting: true,
            retries_while_off: true,
            ..Stay::default()
        };
        job.ask(Ask::Complete).unwrap();
        job.run(stay, &Silent, &CancelToken::new()).unwrap();
        let facts = facts(&job);
        let is_off = facts.iter().any(|it| matches!(it, Fact::Stopping { .. }));
        let tries = facts.iter().filter(|it| matches!(it, Fact::Retry { .. }));
        let tries = tries.count();
        let at = job.position();
        if is_off {
            assert_eq!(at, Position::at(Phase::CommitPending), "cut {cut}");
            assert_eq!(powers(&scene), (Power::Off, Power::On), "cut {cut}");
        } else {
            assert!(at.is_suspended, "cut {cut}: {at:?}");
            assert_eq!((tries, scene.source.real_power()), (0, Power::On));
        }
        (relay.was_cut(), tries > 0)
    })
}

// Goal: a link that breaks while the machine is off on both sides costs a minute, and waits for
// nobody; before that the job stands, and the machine runs. Method: in place of each control
// message, with a clock that does not wait.
#[test]
fn a_link_that_breaks_while_the_machine_is_off_is_tried_again() {
    let tried = AtomicUsize::new(0);
    let count = count_met(0..CUTS_MAX, |cut| {
        let (was_cut, was_tried) = cut_and_left_alone(cut);
        tried.fetch_add(usize::from(was_tried), Ordering::SeqCst);
        was_cut
    });
    let tried = tried.into_inner();
    assert!(tried > 5 && tried < count, "{tried} of {count}");
}
