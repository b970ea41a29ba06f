//! Goal: `failback job` says what is so, to people and programs, and does to the job what it was
//! started with, wherever it is called. Method: jobs of scripts through the command.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use failback_tests::cli::{self, Run};
use failback_tests::schema::assert_valid;
use failback_tests::scripted::define;

struct Scene {
    dir: tempfile::TempDir,
    definition: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("folder");
        let definition = define(dir.path());
        Self { dir, definition }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn args(&self, args: &[&str]) -> Vec<String> {
        let state = self.at("state");
        let more = ["--state-dir", text(&state)];
        let all = ["job"].iter().chain(args).chain(&more);
        all.map(|arg| (*arg).to_owned()).collect()
    }

    fn job(&self, args: &[&str]) -> Run {
        cli::failback(self.args(args))
    }

    fn start(&self) -> Run {
        self.job(&["start", text(&self.definition), "--no-wait"])
    }

    /// Asks how the job is until it is so.
    fn show_until(&self, args: &[&str], is_so: impl Fn(&Run) -> bool) -> Run {
        let until = Instant::now() + cli::RUN_MAX;
        loop {
            let shown = self.job(args);
            if is_so(&shown) {
                return shown;
            }
            assert!(Instant::now() < until, "{}", shown.stdout);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

// Goal: a job is about the disks that it was begun with, wherever it is completed. Method: a
// definition of relative paths, a state directory that is relative as well, and another folder with
// disks of the same names.
#[test]
fn a_job_is_completed_from_another_folder() {
    let (here, there) = (Scene::new(), Scene::new());
    let whole = fs::read_to_string(&here.definition).expect("definition");
    let at = here.dir.path().display();
    let relative = ["from.raw", "to.raw"].iter().fold(whole, |text, name| {
        text.replace(&format!("\"{at}/{name}\""), &format!("\"{name}\""))
    });
    assert!(relative.contains("target = \"to.raw\""), "{relative}");
    fs::write(&here.definition, relative).expect("definition");
    let theirs = fs::read(there.at("to.raw")).expect("disk");
    let start = [
        "job",
        "start",
        "job.toml",
        "--no-wait",
        "--state-dir",
        "state",
    ];
    let _ = cli::failback_in(here.dir.path(), start).exits(0);

    let complete = here.args(&["complete", "web"]);
    let _ = cli::failback_in(there.dir.path(), complete).exits(0);

    let disk = |name: &str| fs::read(here.at(name)).expect("disk");
    assert!(disk("from.raw") == disk("to.raw"), "not the same");
    assert!(fs::read(there.at("to.raw")).expect("disk") == theirs);
}

// Goal: who asked for documents gets one, also of a refusal. Method: each command of a job that is
// not there; a definition that is none, and none at all.
#[test]
fn refusals_are_documents() {
    let scene = Scene::new();
    let kind = |run: Run, code: i32| {
        let document = run.exits(code).json();
        assert_valid("job", &document);
        assert_eq!(document["schema"], "failback.job_error/1");
        document["error"]["kind"].as_str().expect("kind").to_owned()
    };
    for verb in [
        "show", "report", "complete", "cancel", "commit", "undo", "resume",
    ] {
        assert_eq!(
            kind(scene.job(&[verb, "none", "--json"]), 3),
            "refused",
            "{verb}"
        );
    }
    let state = scene.at("state");
    let reverse = [
        "pair",
        "reverse",
        "none",
        "--json",
        "--state-dir",
        text(&state),
    ];
    assert_eq!(kind(cli::failback(reverse), 3), "refused");
    let missing = scene.at("none.toml");
    assert_eq!(
        kind(scene.job(&["start", text(&missing), "--json"]), 6),
        "io"
    );
    fs::write(&missing, "name = 7").expect("definition");
    assert_eq!(
        kind(scene.job(&["start", text(&missing), "--json"]), 2),
        "usage"
    );
    let plan = ["job", "plan", text(&missing), "--json"];
    assert_eq!(kind(cli::failback(plan), 2), "usage");
    assert_valid("job", &scene.job(&["list", "--json"]).exits(0).json());
}

// Goal: a job that nobody works on does not look as if it ran, and a second start says how it goes
// on. Method: a job that waits with a process, and without.
#[test]
fn a_job_without_a_process_says_so() {
    let scene = Scene::new();
    let definition = text(&scene.definition);
    let running = cli::start(scene.args(&["start", definition]));
    let waits = |run: &Run| run.code == Some(0) && run.json()["phase"] == "waiting";
    let shown = scene.show_until(&["show", "web", "--json"], waits).json();
    assert_valid("job", &shown);
    assert_eq!(shown["worked_on"], true);
    let second = scene.start().exits(3).stderr;
    assert!(second.contains("works on job `web`"), "{second}");
    assert!(!second.contains("target"), "{second}");
    assert!(
        !scene
            .job(&["show", "web"])
            .exits(0)
            .stdout
            .contains("no process")
    );
    running.signal("TERM");
    let _ = running.wait();

    let alone = "no process works on it: `failback job resume web`";
    for verb in [&["show", "web"][..], &["list"]] {
        let said = scene.job(verb).exits(0).stdout;
        assert!(said.contains(alone), "{said}");
    }
    let shown = scene.job(&["show", "web", "--json"]).exits(0).json();
    assert_eq!(shown["worked_on"], false);
    let jobs = scene.job(&["list", "--json"]).exits(0).json();
    assert_valid("job", &jobs);
    assert_eq!(jobs["jobs"][0]["worked_on"], false);
    let second = scene.start().exits(3).stderr;
    assert!(second.contains("`resume` takes it up"), "{second}");
    let resumed = scene
        .job(&["resume", "web", "--no-wait", "--json"])
        .exits(0);
    assert_eq!(resumed.json()["phase"], "waiting");
}

// Goal: a deadline is told as people tell moments, and who reads one line only does not make an
// error of it. Method: a job that is to be accepted in a day; a pipe that nobody reads.
#[test]
fn a_job_is_shown_to_people() {
    let scene = Scene::new();
    let definition = fs::read_to_string(&scene.definition).expect("definition");
    let policy = "\n[policy]\ncommit_after = \"24h\"\n";
    fs::write(&scene.definition, definition + policy).expect("definition");
    let _ = scene.start().exits(0);
    let completing = cli::start(scene.args(&["complete", "web"]));
    let shown = scene.show_until(&["show", "web"], |run| run.stdout.contains("deadline"));
    completing.signal("TERM");
    let _ = completing.wait();
    let deadline = shown.stdout.lines().find(|line| line.contains("deadline"));
    let at = deadline.expect("it was there").trim_start();
    assert!(at.starts_with("deadline   commit at 2"), "{at}");
    assert!(at.ends_with('Z') && at.contains('T'), "{at}");

    for args in [&["show", "web"][..], &["show", "web", "--json"], &["list"]] {
        let (code, said) = (scene.at("code"), scene.at("said"));
        let quoted: Vec<_> = scene
            .args(args)
            .iter()
            .map(|arg| format!("'{arg}'"))
            .collect();
        let script = format!(
            "{{ sleep 0.3; '{}' {} 2> '{}'; echo $? > '{}'; }} | true; sleep 1",
            cli::binary().display(),
            quoted.join(" "),
            said.display(),
            code.display()
        );
        let _ = cli::run_program("sh", &["-c".to_owned(), script]);
        assert_eq!(fs::read_to_string(&said).expect("stderr"), "", "{args:?}");
        assert_eq!(fs::read_to_string(&code).expect("code"), "0\n", "{args:?}");
    }
}
