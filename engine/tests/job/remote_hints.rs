//! Jobs whose agent knows what changed: as `hinted`, with the disks on another host.

use std::fs;
use std::os::unix::fs::FileExt;

use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::path::Path;
use std::sync::Arc;

use failback_engine::job::{Ask, Fact, Job, JobReport, Phase};
use failback_engine::machine::Power;
use failback_engine::track::ChangeTracker;

use super::hinted::{Concealing, HONEST, facts, large_scene};
use super::scene::{Scene, ask, run};
use super::two_hosts::{ANYWHERE, agent_state, sides, start, with_agent, with_tracking_agent};

/// A job up to where it waits, with this at the agent.
fn with_passes<T>(
    scene: &Scene,
    tracker: impl ChangeTracker + 'static,
    test: impl FnOnce(&str, Job) -> T,
) -> T {
    with_tracking_agent(scene, (ANYWHERE, tracker), |address| {
        let mut job = start(scene, address);
        run(&mut job);
        assert_eq!(job.position().phase, Phase::Waiting, "{:?}", job.report());
        test(address, job)
    })
}

fn guest_writes(scene: &Scene, block: u64) {
    let image = fs::File::options().write(true).open(scene.source_of("os"));
    let written = image.and_then(|image| image.write_all_at(&[7; 4096], block << 20));
    written.unwrap();
}

/// Maps that the agent keeps.
fn maps(scene: &Scene) -> Vec<String> {
    let kept = fs::read_dir(agent_state(scene).join("pairs/web")).unwrap();
    let names = kept.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".map")).collect()
}

fn completed(job: &mut Job) -> JobReport {
    ask(job, Ask::Complete);
    let report = job.report();
    assert_eq!(report.phase, "commit_pending", "{report:?}");
    report
}

fn assert_hinted(report: &JobReport) {
    let last = report.disks[0].final_copy.as_ref().unwrap();
    assert!(last.hinted, "{report:?}");
    assert!(last.source_read <= 2 << 20, "{last:?}");
    assert_eq!(last.changed, 4096);
}

fn scanned(job: &Job) -> bool {
    let is_scan = |fact: &Fact| matches!(fact, Fact::Scanned { .. });
    facts(job).iter().any(is_scan)
}

// Goal: the downtime has what changed, over two hosts as well; nothing of it is left at the agent.
// Method: one page of three blocks changes between the last pass and the stop; commit.
#[test]
fn an_agent_reads_what_changed_before_the_start_and_the_rest_afterwards() {
    let scene = Scene::in_memory(&["os"]);
    with_passes(&scene, HONEST, |_, mut job| {
        guest_writes(&scene, 2);

        let report = completed(&mut job);

        assert_hinted(&report);
        assert!(!report.suspended && scanned(&job), "{report:?}");
        assert_eq!(scene.target_bytes(), scene.source_bytes());
        ask(&mut job, Ask::Commit);
        assert_eq!(job.position().phase, Phase::Finished, "{:?}", job.report());
        assert_eq!(scene.leftovers(), Vec::<String>::new());
        assert_eq!(maps(&scene), Vec::<String>::new());
    });
}

// Goal: G9 over two hosts. Method: one block of 1,024 is concealed; the audit may meet it, and if
// not, the scan does, and undo is the way back.
#[test]
fn an_agent_whose_tracker_lies_is_caught() {
    let was_caught_late = (0..4).any(|_| {
        let scene = large_scene();
        with_passes(&scene, Concealing, |_, mut job| {
            guest_writes(&scene, 77);
            let report = completed(&mut job);
            if !report.suspended {
                let rejected = |fact: &Fact| matches!(fact, Fact::HintRejected { .. });
                assert!(facts(&job).iter().any(rejected), "{report:?}");
                return false;
            }
            let error = report.error.unwrap();
            assert_eq!(error.kind, "verify_failed");
            assert!(error.message.contains("from block 77 on"), "{error:?}");
            ask(&mut job, Ask::Undo);
            assert_eq!(job.position().phase, Phase::Undone, "{:?}", job.report());
            let powers = (scene.source.real_power(), scene.target.real_power());
            assert_eq!(powers, (Power::On, Power::Off));
            true
        })
    });
    assert!(was_caught_late, "the scan was never needed");
}

// Goal: an agent that is started again goes on from its maps, and where they are lost their root
// tells. Method: another agent before the stop, and one before the scan, whose maps are gone or
// damaged; the job's process dies with each.
#[test]
fn maps_outlive_the_agent_and_are_not_missed() {
    outlive_the_agent(|map| fs::remove_file(map).unwrap());
    outlive_the_agent(|map| {
        let len = fs::metadata(map).unwrap().len();
        let file = fs::File::options().write(true).open(map).unwrap();
        for at in (MAP_HEAD_LEN..len).step_by(4096) {
            file.write_all_at(&[0x5a; 32], at).unwrap();
        }
    });
}

/// Bytes of a map before its nodes.
const MAP_HEAD_LEN: u64 = 64 << 10;

fn outlive_the_agent(lose: impl Fn(&Path)) {
    let scene = Scene::in_memory(&["os"]);
    let at = with_passes(&scene, HONEST, |address, _| address.to_owned());
    guest_writes(&scene, 2);
    let open = |address: &str| Job::open(&scene.jobs(), "web", sides(&scene, address)).unwrap();

    let before_the_scan = with_tracking_agent(&scene, (&at, HONEST), |address| {
        let mut job = open(address);
        job.on_record(Arc::new(|record| {
            if record.position.phase == Phase::CommitPending {
                panic_any("killed");
            }
        }));
        let died = catch_unwind(AssertUnwindSafe(|| ask(&mut job, Ask::Complete)));
        assert!(died.is_err(), "{:?}", job.report());
        job.report()
    });
    for map in maps(&scene) {
        lose(&agent_state(&scene).join("pairs/web").join(map));
    }
    let after = with_tracking_agent(&scene, (&at, HONEST), |address| {
        let mut job = open(address);
        run(&mut job);
        assert!(scanned(&job), "{:?}", job.report());
        job.report()
    });

    assert_hinted(&before_the_scan);
    assert!(!after.suspended, "{after:?}");
    assert_eq!(scene.target_bytes(), scene.source_bytes());
}

// Goal: who has no tracker says so, and all is read. Method: the same without one.
#[test]
fn an_agent_without_a_tracker_reads_all() {
    let scene = Scene::in_memory(&["os"]);
    with_agent(&scene, |address| {
        let mut job = start(&scene, address);
        run(&mut job);
        let report = completed(&mut job);
        let last = report.disks[0].final_copy.as_ref().unwrap();
        assert!(!last.hinted && last.source_read == 3 << 20, "{last:?}");
        assert!(!scanned(&job));
    });
}
