//! Goal: a program of its own does all of a failback with the library alone, two machines at once,
//! and goes on when it was killed. Method: the examples `source_agent` and `target_agent` as
//! processes; what they run from is compared, and what they left.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

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
    mount: Mount,
}

impl Scene {
    fn new() -> Self {
        let scene = Self {
            mount: Mount::in_file("xfs", 512),
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
        self.mount.path().join(side).join(machine)
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
        let mut command = example("source_agent");
        command.arg(self.mount.path().join("cloud-state"));
        let mut agent = Agent::start(command.args(self.images("cloud")));
        let address = agent.line().expect("an address");
        (agent, address)
    }

    fn target(&self, address: &str) -> Command {
        let mut command = example("target_agent");
        command.arg(self.mount.path().join("home-state"));
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
            let kept = fs::read_dir(self.mount.path().join(side)).expect("folder");
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
