//! What an undo takes away, and says that it does.

use std::fs;
use std::path::Path;

use failback_engine::disk::{OpenOptions, open_source};
use failback_engine::hook::Hook;
use failback_engine::job::{Ask, Fact, Job, JobReport, Phase};
use failback_engine::machine::Power;
use failback_engine::operation::Writes;
use failback_engine::plan::Strategy;
use failback_engine::units::ByteOffset;

use super::hinted::HONEST;
use super::scene::{DISK_LEN, Scene, ask, bring_home, overwrite, run};

const BLOCK: u64 = 1 << 20;

fn lost<'a>(report: &'a JobReport, disk: &str) -> Option<&'a Writes> {
    let disk = report.disks.iter().find(|found| found.id == disk);
    disk.unwrap().lost.as_ref()
}

fn none() -> Writes {
    Writes {
        bytes: Some(0),
        ..Writes::default()
    }
}

/// A job whose target runs.
fn accepted_by_nobody(scene: &Scene, strategy: Strategy, is_tracked: bool) -> Job {
    let (mut spec, sides) = match is_tracked {
        true => scene.tracked(HONEST),
        false => (scene.spec(), scene.sides()),
    };
    spec.policy.strategy = strategy;
    spec.policy.export_on_undo = Some(scene.dir.path().join("undone"));
    fs::create_dir(scene.dir.path().join("undone")).unwrap();
    let mut job = Job::start(&scene.jobs(), spec, None, sides).unwrap();
    bring_home(&mut job);
    assert_eq!(scene.target.real_power(), Power::On);
    job
}

fn exports(scene: &Scene) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(scene.dir.path().join("undone")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.is_file()).collect()
}

fn bytes_of(image: &Path) -> Vec<u8> {
    let disk = open_source(image, &OpenOptions::default()).unwrap();
    let mut bytes = vec![0; usize::try_from(disk.info().virtual_size).unwrap()];
    disk.read(ByteOffset(0), &mut bytes).unwrap();
    bytes
}

// Goal: G4 as far as a failback loses anything: what the target's guest wrote before an undo is
// listed to the block, kept elsewhere where that was asked for, and only then gone; the source runs
// before all that. Method: writes to two blocks of one disk of two, after a full copy and after
// passes with a tracker and without; the copy is the disk as the guest left it.
#[test]
fn what_an_undo_takes_away_is_listed_and_kept() {
    for (strategy, is_tracked) in [
        (Strategy::Full, false),
        (Strategy::Delta, false),
        (Strategy::Delta, true),
    ] {
        let scene = Scene::new(&["os", "data"]);
        let mut job = accepted_by_nobody(&scene, strategy, is_tracked);
        overwrite(&scene.target_of("data"), 4096, &[0x77; 4096]);
        overwrite(&scene.target_of("data"), DISK_LEN - 8192, &[0x78; 4096]);
        let left = fs::read(scene.target_of("data")).unwrap();

        ask(&mut job, Ask::Undo);

        let report = job.report();
        assert_eq!(report.phase, "undone", "{report:?}");
        assert_eq!(scene.source.real_power(), Power::On);
        assert_eq!(lost(&report, "os"), Some(&none()), "{strategy:?}");
        let wanted = Writes {
            any: true,
            bytes: Some(2 * BLOCK),
            ranges: vec![(0, BLOCK), (2 * BLOCK, BLOCK)],
            is_cut: false,
        };
        assert_eq!(lost(&report, "data"), Some(&wanted), "{strategy:?}");
        let kept = exports(&scene);
        assert_eq!(kept.len(), 1, "{kept:?}");
        let name = kept[0].file_name().unwrap().to_str().unwrap();
        assert!(
            name.starts_with("web-data-2") && name.ends_with("Z.raw"),
            "{name}"
        );
        assert!(bytes_of(&kept[0]) == left, "not what the guest left");
        let page = report.to_html(&[]);
        assert!(
            page.contains(kept[0].to_str().unwrap()),
            "the page does not say where"
        );
        assert!(page.contains("0+1048576, 2097152+1048576"), "nor what");
        let at = |wanted: &dyn Fn(&Fact) -> bool| {
            let facts = report.timeline.iter().map(|moment| moment.fact.as_ref());
            facts
                .into_iter()
                .rposition(|fact| fact.is_some_and(wanted))
                .unwrap()
        };
        let started = at(&|fact| matches!(fact, Fact::Started { side, .. } if side == "recovery"));
        let listed = at(&|fact| matches!(fact, Fact::Lost { disk, .. } if disk == "data"));
        let is = |fact: &Fact, wanted| matches!(fact, Fact::Item { item, .. } if item == wanted);
        let exported = at(&|fact| is(fact, "export:data"));
        let restored = at(&|fact| is(fact, "restore:data"));
        assert!(started < listed && listed < exported && exported < restored);
    }
}

// Goal: a guest may have run although its start was not seen to succeed: what it wrote is listed
// and kept all the same. Method: a probe that fails, then writes, then an undo.
#[test]
fn what_a_guest_wrote_that_no_probe_saw_is_listed_and_kept() {
    let scene = Scene::new(&["os"]);
    let mut spec = scene.spec();
    spec.policy.export_on_undo = Some(scene.dir.path().join("undone"));
    spec.target.probe = Some(Hook::new(["false"]));
    fs::create_dir(scene.dir.path().join("undone")).unwrap();
    let mut job = Job::start(&scene.jobs(), spec, None, scene.sides()).unwrap();
    run(&mut job);
    ask(&mut job, Ask::Complete);
    let at = job.position();
    assert_eq!((at.phase, at.is_suspended), (Phase::StartingTarget, true));
    assert_eq!(scene.target.real_power(), Power::On);
    overwrite(&scene.target_of("os"), 4096, &[0x77; 4096]);

    ask(&mut job, Ask::Undo);

    let report = job.report();
    assert_eq!(report.phase, "undone", "{report:?}");
    assert_eq!(lost(&report, "os").unwrap().bytes, Some(BLOCK));
    assert_eq!(exports(&scene).len(), 1);
    assert_eq!(scene.target_bytes(), scene.old_target());
}

// Goal: where the map of what the target was is gone, an undo says that something was written, and
// does not name blocks that it cannot know; a guest that never ran lost nothing. Method: the map
// removed; a target that is held.
#[test]
fn what_is_not_known_is_not_named() {
    let scene = Scene::new(&["os"]);
    let mut job = accepted_by_nobody(&scene, Strategy::Full, false);
    overwrite(&scene.target_of("os"), 4096, &[0x77; 4096]);
    let directory = scene.jobs().directory("web").unwrap();
    fs::remove_file(directory.join("os.map")).unwrap();
    ask(&mut job, Ask::Undo);
    let wanted = Writes {
        any: true,
        ..Writes::default()
    };
    assert_eq!(lost(&job.report(), "os"), Some(&wanted));
    assert_eq!(scene.target_bytes(), scene.old_target());

    let scene = Scene::new(&["os"]);
    let mut job = scene.start();
    run(&mut job);
    ask(&mut job, Ask::Hold);
    ask(&mut job, Ask::Undo);
    assert_eq!(job.position().phase, Phase::Undone, "{:?}", job.report());
    assert_eq!(lost(&job.report(), "os"), None);
}
