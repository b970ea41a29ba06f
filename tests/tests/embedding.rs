//! Goal: a program of its own does all of a failback with the library alone, two machines at once,
//! and goes on when it was killed. Method: the examples `source_agent` and `target_agent` as
//! processes; what they run from is compared, and what they left.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use failback_engine::job::{Ask, Job, JobSpec, Jobs, Phase, RemoteHost, Sides, Stay};
use failback_engine::machine::{FakeMachine, Power};
use failback_engine::{CancelToken, Silent};
use failback_tests::place::Mount;
use failback_tests::skip_without;

const MACHINES: [&str; 2] = ["web", "db"];
const LEN: usize = 8 << 20;

/// Built with this test: the directory of examples is beside that of tests.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().expect("this test");
    let target = test.ancestors().nth(2).expect("the profile's directory");
    let program = target.join("examples").join(name);
    assert!(program.exists(), "no {program:?}: build with --examples");
    Command::new(program)
}

/// A process and what it says; dropped, it is killed.
struct Agent {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Agent {
    fn start(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("agent");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, lines }
    }

    fn line(&mut self) -> Option<String> {
        self.lines.next().map(|line| line.expect("UTF-8"))
    }

    fn wait_for(&mut self, wanted: &str) {
        while let Some(line) = self.line() {
            if line == wanted {
                return;
            }
        }
        panic!("no `{wanted}`");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

struct Scene {
    dir: PathBuf,
    // Unmounted when the last of its scenes is gone.
    _mount: Arc<Mount>,
}

impl Scene {
    fn new() -> Self {
        Self::within(&Arc::new(Mount::in_file("xfs", 512)), "scene")
    }

    fn within(mount: &Arc<Mount>, name: &str) -> Self {
        let scene = Self {
            dir: mount.path().join(name),
            _mount: mount.clone(),
        };
        for (seed, machine) in MACHINES.iter().enumerate() {
            let old: Vec<u8> = (0..LEN)
                .map(|at| (at / 4096 + seed).to_le_bytes()[0])
                .collect();
            let mut new = old.clone();
            for block in (0..LEN).step_by(1 << 20) {
                new[block..block + 4096].fill(0xee);
            }
            for (side, bytes, power) in [("cloud", &new, "on"), ("home", &old, "off")] {
                let image = scene.image(side, machine);
                fs::create_dir_all(image.parent().expect("folder")).expect("folder");
                fs::write(&image, bytes).expect("image");
                fs::write(image.with_added_extension("power"), power).expect("power");
            }
        }
        scene
    }

    fn image(&self, side: &str, machine: &str) -> PathBuf {
        self.dir.join(side).join(machine)
    }

    fn power(&self, side: &str, machine: &str) -> String {
        let file = self.image(side, machine).with_added_extension("power");
        fs::read_to_string(file).expect("power")
    }

    fn images(&self, side: &str) -> impl Iterator<Item = String> {
        let image = move |machine| format!("{machine}={}", self.image(side, machine).display());
        MACHINES.into_iter().map(image)
    }

    fn source(&self) -> (Agent, String) {
        self.source_at("127.0.0.1:0")
    }

    fn source_at(&self, address: &str) -> (Agent, String) {
        let mut command = example("source_agent");
        command.arg(address).arg(self.dir.join("cloud-state"));
        let mut agent = Agent::start(command.args(self.images("cloud")));
        let address = agent.line().expect("an address");
        (agent, address)
    }

    fn target(&self, address: &str) -> Command {
        let mut command = example("target_agent");
        command.arg(self.dir.join("home-state"));
        command.arg(address).args(self.images("home"));
        command
    }

    fn assert_home(&self) {
        for machine in MACHINES {
            let [cloud, home] = ["cloud", "home"].map(|side| self.image(side, machine));
            let bytes = |path: &Path| fs::read(path).expect("image");
            assert!(bytes(&cloud) == bytes(&home), "{machine}");
            assert_eq!(
                [self.power("cloud", machine), self.power("home", machine)],
                ["off", "on"],
                "{machine}"
            );
        }
        // The images and what says their power.
        for side in ["cloud", "home"] {
            let kept = fs::read_dir(self.dir.join(side)).expect("folder");
            let names = kept.map(|entry| entry.expect("entry").file_name().into_string());
            let mut names: Vec<_> = names.map(|name| name.expect("UTF-8")).collect();
            names.retain(|name| !name.ends_with(".failback"));
            names.sort();
            assert_eq!(names, ["db", "db.power", "web", "web.power"], "{side}");
        }
    }
}

#[test]
fn two_machines_come_home_at_once() {
    skip_without!("root", "mkfs.xfs");
    let scene = Scene::new();
    let (mut source, address) = scene.source();

    let mut target = Agent::start(&mut scene.target(&address));
    let mut said = String::new();
    while let Some(line) = target.line() {
        said += &line;
        said += "\n";
    }

    assert!(target.child.wait().expect("end").success(), "{said}");
    for machine in MACHINES {
        let home = format!("{machine}: finished after a downtime of ");
        assert!(said.contains(&home), "{said}");
    }
    scene.assert_home();
    // It ends when its input does.
    drop(source.child.stdin.take());
    assert!(source.child.wait().expect("end").success());
}

#[test]
fn a_killed_agent_goes_on() {
    skip_without!("root", "mkfs.xfs");
    for phase in ["presync", "stopping_source", "applying", "starting_target"] {
        let scene = Scene::new();
        let (_source, address) = scene.source();
        let mut target = Agent::start(&mut scene.target(&address));
        target.wait_for(&format!("db: {phase}"));
        drop(target);

        let ended = scene.target(&address).output().expect("agent");

        let said = String::from_utf8_lossy(&ended.stdout).into_owned();
        assert!(ended.status.success(), "{phase}: {said} {ended:?}");
        scene.assert_home();
    }
}

/// A job of this process, whose agent is killed at record `at` and started again once the job
/// stands. Whether it came to that.
fn lose_the_agent(scene: &Scene, at: usize, wish: Ask) -> bool {
    let (agent, address) = scene.source();
    let agent = Arc::new(Mutex::new(Some(agent)));
    let image = scene.image("home", "web");
    let control = format!("{address}/web");
    let mut spec = JobSpec::new("web").agent_disk("os", &image);
    spec.source.control = Some(control.clone());
    let home = FakeMachine::new(Power::Off);
    let host = RemoteHost::new(control.parse().expect("endpoint"), "recovery");
    let sides = Sides {
        source: Arc::new(host.expect("host")),
        target: Arc::new(home.clone()),
    };
    let jobs = Jobs::below(&scene.dir.join("job-state"));
    let mut job = Job::start(&jobs, spec, None, sides).expect("job");
    let (count, killed) = (AtomicUsize::new(0), agent.clone());
    job.on_record(Arc::new(move |_| {
        if count.fetch_add(1, Ordering::SeqCst) == at {
            drop(killed.lock().expect("agent").take());
        }
    }));
    let stay = Stay {
        leaves_waiting: true,
        ..Stay::default()
    };
    let mut was_killed = false;
    for _ in 0..20 {
        job.run(stay, &Silent, &CancelToken::new()).expect("run");
        let both = (scene.power("cloud", "web"), home.real_power());
        assert_ne!(both, ("on".to_owned(), Power::On), "both sides run");
        let mut running = agent.lock().expect("agent");
        if running.is_none() {
            let at = address.trim_start_matches("tcp://");
            *running = Some(scene.source_at(at).0);
            was_killed = true;
        }
        drop(running);
        let here = job.position();
        let ask = match here.phase {
            phase if phase.is_end() => break,
            _ if here.is_suspended => Ask::Resume,
            Phase::Waiting if wish == Ask::Cancel => Ask::Cancel,
            Phase::Waiting => Ask::Complete,
            Phase::CommitPending => wish,
            phase => panic!("rests in {phase:?}"),
        };
        job.ask(ask).expect("ask");
    }
    let read = |side| fs::read(scene.image(side, "web")).expect("image");
    let (is_equal, powers) = (
        read("cloud") == read("home"),
        (scene.power("cloud", "web"), home.real_power()),
    );
    let (phase, equal, power) = match wish {
        Ask::Commit => (Phase::Finished, true, ("off", Power::On)),
        Ask::Undo => (Phase::Undone, false, ("on", Power::Off)),
        _ => (Phase::Cancelled, false, ("on", Power::Off)),
    };
    let report = job.report();
    assert_eq!(job.position().phase, phase, "record {at}: {report:?}");
    assert_eq!(
        (is_equal, (&*powers.0, powers.1)),
        (equal, power),
        "record {at}: {report:?}"
    );
    // The base keeps its map, in a directory of its own.
    let left = fs::read_dir(scene.dir.join("cloud")).expect("folder");
    let left = left.filter(|entry| entry.as_ref().expect("entry").file_name() != ".failback");
    assert_eq!(left.count(), 4, "record {at}: a snapshot stays");
    was_killed
}

// Goal: the agent is killed at any moment, and the job is accepted, cancelled, undone all the same.
// Method: at each record of the journal, a real process each time; several jobs of this process at
// once.
#[test]
fn a_job_outlives_its_agent_at_every_record() {
    skip_without!("root", "mkfs.xfs");
    let mount = Arc::new(Mount::in_file("xfs", 2048));
    for wish in [Ask::Commit, Ask::Cancel, Ask::Undo] {
        let (next, lost) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    loop {
                        let at = next.fetch_add(1, Ordering::SeqCst);
                        let scene = Scene::within(&mount, &format!("{}-{at}", wish.name()));
                        let was_lost = lose_the_agent(&scene, at, wish);
                        fs::remove_dir_all(&scene.dir).expect("folder");
                        if !was_lost {
                            return;
                        }
                        lost.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        let lost = lost.into_inner();
        assert!(
            lost > 15,
            "{lost} records of a job that ends with {}",
            wish.name()
        );
    }
}
