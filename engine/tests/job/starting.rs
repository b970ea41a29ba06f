//! Which jobs begin: none beside one that it shares anything with, none where others can write, and
//! what is refused leaves nothing behind.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Barrier;

use failback_engine::ErrorKind;
use failback_engine::job::{Ask, Job, JobSpec, Jobs};

use super::scene::{Scene, ask, run};
use super::two_hosts;

/// Another job, whose disks and pair are its own.
fn other(scene: &Scene) -> JobSpec {
    let at = |name: &str| scene.dir.path().join(name);
    for name in ["other-cloud.raw", "other-home.raw"] {
        fs::copy(scene.source_of("os"), at(name)).unwrap();
    }
    let source = at("other-cloud.raw").to_str().unwrap().to_owned();
    JobSpec::new("other").disk("os", source, at("other-home.raw"))
}

fn start(scene: &Scene, spec: &JobSpec) -> Result<Job, (ErrorKind, String)> {
    let job = Job::start(&scene.jobs(), spec.clone(), None, scene.sides());
    job.map_err(|error| (error.kind(), error.chain()))
}

fn text(path: &Path) -> Option<String> {
    Some(path.to_str().unwrap().to_owned())
}

// Goal: jobs that are not over share no disk, in whatever role and by whatever name, and no pair;
// who is refused leaves nothing. Method: a job that waits, and others that each share one thing.
#[test]
fn jobs_share_nothing() {
    let scene = Scene::new(&["os"]);
    let mut job = scene.start();
    run(&mut job);
    let link = scene.dir.path().join("link.raw");
    symlink(scene.target_of("os"), &link).unwrap();
    let share = |change: &dyn Fn(&mut JobSpec)| {
        let mut spec = other(&scene);
        change(&mut spec);
        let refused = start(&scene, &spec).unwrap_err();
        assert_eq!(refused.0, ErrorKind::Refused, "{refused:?}");
        assert!(
            refused.1.contains("job `web`, which is not over"),
            "{refused:?}"
        );
        assert_eq!(scene.jobs().names().unwrap(), ["web"]);
        assert!(!scene.jobs().directory("other").unwrap().exists());
    };
    share(&|spec| spec.pair = Some("web".to_owned()));
    share(&|spec| spec.disks[0].target = scene.target_of("os"));
    share(&|spec| spec.disks[0].target = scene.source_of("os"));
    share(&|spec| spec.disks[0].target.clone_from(&link));
    share(&|spec| spec.disks[0].source = text(&scene.source_of("os")));
    share(&|spec| spec.disks[0].source = text(&scene.target_of("os")));
    share(&|spec| spec.disks[0].source = text(&link));
    start(&scene, &other(&scene)).unwrap();

    ask(&mut job, Ask::Cancel);
    drop(job);
    let mut spec = other(&scene);
    spec.name = "third".to_owned();
    spec.disks[0] = scene.spec().disks.remove(0);
    start(&scene, &spec).unwrap();
}

// Goal: what is missing, and what is behind an agent, has a name as well. Method: a target that is
// to be made, by a link to its folder; the same grant twice.
#[test]
fn what_is_not_here_is_shared_by_name() {
    let scene = Scene::new(&["os"]);
    let folder = scene.dir.path().join("folder");
    symlink(scene.dir.path(), &folder).unwrap();
    let mut first = other(&scene);
    first.disks[0].source = Some("tcp://127.0.0.1:1/os".to_owned());
    first.disks[0].target = scene.dir.path().join("new.raw");
    start(&scene, &first).unwrap();
    for (source, target) in [
        ("tcp://127.0.0.1:1/os", "mine.raw"),
        ("tcp://127.0.0.1:1/data", "folder/new.raw"),
    ] {
        let mut spec = JobSpec::new("second").disk("os", source, scene.dir.path().join(target));
        assert_eq!(start(&scene, &spec).unwrap_err().0, ErrorKind::Refused);
        spec.disks[0].source = Some("tcp://127.0.0.1:1/data".to_owned());
        spec.disks[0].target = scene.dir.path().join("mine.raw");
        spec.check().unwrap();
    }
}

// Goal: of two starts at once one is refused. Method: two jobs with one target, many times.
#[test]
fn two_starts_at_once_do_not_both_pass() {
    let scene = Scene::in_memory(&["os"]);
    for round in 0..32 {
        let jobs = Jobs::below(&scene.dir.path().join(format!("state-{round}")));
        let both = Barrier::new(2);
        let begin = |name: &str| {
            let mut spec = scene.spec();
            spec.name = name.to_owned();
            both.wait();
            Job::start(&jobs, spec, None, scene.sides()).map_err(|error| error.kind())
        };
        let (a, b) = std::thread::scope(|scope| {
            let other = scope.spawn(|| begin("b").map(drop));
            (begin("a").map(drop), other.join().unwrap())
        });
        let refused = [a, b].into_iter().filter_map(Result::err);
        assert_eq!(refused.collect::<Vec<_>>(), [ErrorKind::Refused]);
    }
}

// Goal: one journal that cannot be read does not keep all others from starting, only its own name.
// Method: a journal of noise.
#[test]
fn a_journal_that_cannot_be_read_is_passed_over() {
    let scene = Scene::new(&["os"]);
    start(&scene, &other(&scene)).unwrap();
    let journal = scene.jobs().directory("other").unwrap().join("job");
    fs::write(&journal, [0x5a; 8192]).unwrap();

    let refused = start(&scene, &other(&scene)).unwrap_err();
    start(&scene, &scene.spec()).unwrap();

    assert_eq!(refused.0, ErrorKind::Damaged, "{refused:?}");
    assert_eq!(fs::read(&journal).unwrap(), [0x5a; 8192]);
}

// Goal: an agent serves a pair whatever became of the journals of other pairs; of its own, or where
// nobody can tell, it refuses, and names the job. Method: a journal of noise, of a job of another
// pair, of the same one, of that one after another one, and without the note of its pair.
#[test]
fn an_agent_passes_over_what_it_cannot_read_of_other_pairs() {
    let scene = Scene::new(&["os"]);
    let jobs = Jobs::below(&two_hosts::agent_state(&scene));
    let directory = jobs.directory("other").unwrap();
    let journal = directory.join("job");
    let begin = |pair: &str| {
        let mut spec = other(&scene);
        spec.pair = Some(pair.to_owned());
        drop(fs::remove_file(&journal));
        drop(Job::start(&jobs, spec, None, scene.sides()).unwrap());
        fs::write(&journal, [0x5a; 8192]).unwrap();
    };
    let refused = || {
        let error = two_hosts::grants(&scene).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
        let said = error.chain();
        let names_both =
            said.contains("job `other`") && said.contains(text(&directory).unwrap().as_str());
        assert!(names_both, "{said}");
    };
    begin("other");
    two_hosts::grants(&scene).unwrap();
    begin("web");
    refused();
    begin("other");
    two_hosts::grants(&scene).unwrap();
    fs::remove_file(directory.join("pair.other")).unwrap();
    refused();
}

// Goal: whoever can rename what jobs are kept in can put hooks there that run as this user: then
// nothing begins, and nothing goes on. Method: each directory, writable for the group, for others.
#[test]
fn what_others_can_write_to_is_refused() {
    let scene = Scene::new(&["os"]);
    drop(scene.start());
    let root = scene.dir.path().join("state");
    let open = || Job::open(&scene.jobs(), "web", scene.sides());
    for directory in [root.clone(), root.join("jobs"), root.join("pairs")] {
        for mode in [0o720, 0o702] {
            fs::set_permissions(&directory, Permissions::from_mode(mode)).unwrap();
            let refused = start(&scene, &other(&scene)).unwrap_err();
            assert_eq!(refused.0, ErrorKind::Refused, "{directory:?} {refused:?}");
            assert_eq!(open().unwrap_err().kind(), ErrorKind::Refused);
        }
        fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
        open().unwrap();
    }
    let relative = Jobs::below(Path::new("state"));
    let refused = Job::start(&relative, scene.spec(), None, scene.sides()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Usage);
}

// Goal: who starts a job that is there learns what to do, and whether it is worked on. Method: a
// second start while the first has it, and after.
#[test]
fn a_second_start_says_how_it_goes_on() {
    let scene = Scene::new(&["os"]);
    let job = scene.start();
    let is_worked_on = || scene.jobs().is_worked_on("web").unwrap();
    assert!(is_worked_on());
    let (kind, said) = start(&scene, &scene.spec()).unwrap_err();
    assert_eq!(kind, ErrorKind::InUse);
    assert!(said.contains("works on job `web`"), "{said}");
    assert!(!said.contains("target"), "{said}");
    drop(job);
    assert!(!is_worked_on());
    let (kind, said) = start(&scene, &scene.spec()).unwrap_err();
    assert_eq!(kind, ErrorKind::Refused);
    assert!(said.contains("`resume`"), "{said}");
}
