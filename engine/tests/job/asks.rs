//! What another process asks of a job while a pass takes its time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use failback_engine::job::{Ask, Job, LocalHost, Phase, Sides, ask_another};
use failback_engine::snapshot::{SnapshotId, SnapshotProvider};
use failback_engine::{CancelToken, ErrorKind, Result, Step};

use super::hinted::HONEST;
use super::scene::{Copies, Scene, run};
use super::slow_scan::SlowScan;

/// Freezes for a pass only when it is let.
#[derive(Clone, Debug, Default)]
struct Slow {
    is_asked: Arc<AtomicBool>,
    may: Arc<AtomicBool>,
}

impl Slow {
    fn wait_until_asked(&self) {
        while !self.is_asked.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl SnapshotProvider for Slow {
    fn create(&self, image: &Path, id: &SnapshotId, step: &Step<'_>) -> Result<PathBuf> {
        self.is_asked.store(true, Ordering::SeqCst);
        while !self.may.load(Ordering::SeqCst) {
            step.wait(Duration::from_millis(2))?;
        }
        Copies.create(image, id, step)
    }

    fn release(&self, image: &Path, id: &SnapshotId, step: &Step<'_>) -> Result<()> {
        Copies.release(image, id, step)
    }

    fn list(&self, image: &Path, job: &str, step: &Step<'_>) -> Result<Vec<SnapshotId>> {
        Copies.list(image, job, step)
    }
}

fn job_of(scene: &Scene, slow: &Slow) -> Job {
    let machine = Arc::new(scene.source.clone());
    let sides = Sides {
        source: Arc::new(LocalHost::new(machine, Some(Arc::new(slow.clone())))),
        ..scene.sides()
    };
    Job::start(&scene.jobs(), scene.spec(), None, sides).unwrap()
}

// Goal: to complete is accepted during a pass, at once, and done at its end; to cancel ends the
// pass, also when completing was asked before. Method: a pass that takes as long as the test wants.
#[test]
fn a_pass_under_way_hears_what_is_asked() {
    for (then, end) in [
        (None, Phase::CommitPending),
        (Some(Ask::Cancel), Phase::Cancelled),
    ] {
        let (scene, slow) = (Scene::new(&["os"]), Slow::default());
        let mut job = job_of(&scene, &slow);
        let ask = |ask| ask_another(&scene.jobs(), "web", ask, &CancelToken::new()).unwrap();
        std::thread::scope(|scope| {
            let running = scope.spawn(|| run(&mut job));
            slow.wait_until_asked();
            let started = Instant::now();
            ask(Ask::Complete);
            then.map(ask);
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "{:?}",
                started.elapsed()
            );
            slow.may.store(true, Ordering::SeqCst);
            running.join().unwrap();
        });
        assert_eq!(job.position().phase, end, "{:?}", job.report());
    }
}

// Goal: what was asked of a job that is over is not asked of the next one of its name. Method: word
// that is left when nobody hears any more.
#[test]
fn a_new_job_hears_nothing_of_the_one_before() {
    let scene = Scene::new(&["os"]);
    let mut job = scene.start();
    run(&mut job);
    job.ask(Ask::Cancel).unwrap();
    run(&mut job);
    drop(job);
    let directory = scene.jobs().directory("web").unwrap();
    std::fs::write(directory.join("ask.complete"), b"").unwrap();
    let mut job = scene.start();
    run(&mut job);
    assert_eq!(job.position().phase, Phase::Waiting, "{:?}", job.report());
}

// Goal: who asks for what is refused is told so, and the scan that it was refused for goes on: it
// does not begin again. Method: to commit, asked while the rest of the source is read; word of it
// that was left all the same is heard at the end.
#[test]
fn a_refused_ask_ends_no_scan() {
    let scene = Scene::in_memory(&["os"]);
    let (spec, sides) = scene.tracked(HONEST);
    let slow = SlowScan::new(sides.source);
    let sides = Sides {
        source: Arc::new(slow.clone()),
        target: sides.target,
    };
    let mut job = Job::start(&scene.jobs(), spec, None, sides).unwrap();
    run(&mut job);
    scene.guest_writes("os", 3, 0x33);
    job.ask(Ask::Complete).unwrap();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run(&mut job));
        while slow.begun.load(Ordering::SeqCst) == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
        let asked = ask_another(&scene.jobs(), "web", Ask::Commit, &CancelToken::new());
        let directory = scene.jobs().directory("web").unwrap();
        std::fs::write(directory.join("ask.commit"), b"").unwrap();
        // The process looks every 50 ms.
        std::thread::sleep(Duration::from_millis(400));
        slow.may.store(true, Ordering::SeqCst);
        running.join().unwrap();
        let refused = asked.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Refused, "{refused}");
        assert!(refused.chain().contains("being read"), "{refused}");
    });
    assert_eq!(slow.begun.load(Ordering::SeqCst), 1);
    assert_eq!(job.position().phase, Phase::Finished, "{:?}", job.report());
}

// Goal: an ask that was taken away and is not in the journal was not done. Method: a process that
// drops what it is asked for.
#[test]
fn an_ask_that_was_dropped_is_refused() {
    let scene = Scene::new(&["os"]);
    let mut job = scene.start();
    run(&mut job);
    let word = scene.jobs().directory("web").unwrap().join("ask.cancel");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while std::fs::remove_file(&word).is_err() {
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let asked = ask_another(&scene.jobs(), "web", Ask::Cancel, &CancelToken::new());
        assert_eq!(asked.unwrap_err().kind(), ErrorKind::Refused);
    });
    assert_eq!(job.position().phase, Phase::Waiting);
}

// Goal: whether the target is started is what was asked last, also when it was asked twice while
// nobody heard; only one word is there then.
// Method: both in either order during a pass.
#[test]
fn the_last_word_of_completing_counts() {
    for (asks, end) in [
        ([Ask::Hold, Ask::Complete], Phase::CommitPending),
        ([Ask::Complete, Ask::Hold], Phase::StartingTarget),
    ] {
        let (scene, slow) = (Scene::new(&["os"]), Slow::default());
        let mut job = job_of(&scene, &slow);
        let directory = scene.jobs().directory("web").unwrap();
        let words = || ["complete", "hold"].map(|it| directory.join(format!("ask.{it}")).exists());
        let seen = std::thread::scope(|scope| {
            let running = scope.spawn(|| run(&mut job));
            slow.wait_until_asked();
            let seen = asks.map(|ask| {
                ask_another(&scene.jobs(), "web", ask, &CancelToken::new()).unwrap();
                words()
            });
            slow.may.store(true, Ordering::SeqCst);
            running.join().unwrap();
            seen
        });
        let wanted = asks.map(|ask| [ask == Ask::Complete, ask == Ask::Hold]);
        assert_eq!((seen, words()), (wanted, [false, false]));
        assert_eq!(job.position().phase, end, "{:?}", job.report());
    }
}
