//! A machine of two disks with two sides, all of it in one folder: guests that write are calls of
//! the test, snapshots are copies.

use std::fs::{self, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use failback_engine::job::{Ask, Job, JobSpec, Jobs, LocalHost, Policy, Sides, Stay, TrackerSpec};
use failback_engine::machine::{FakeMachine, Machine, Power};
use failback_engine::snapshot::{SnapshotId, SnapshotProvider};
use failback_engine::track::ChangeTracker;
use failback_engine::{CancelToken, Result, Silent, Step};

/// Bytes of each disk.
pub(crate) const DISK_LEN: usize = 3 << 20;
/// Of each small one: a block and a part of one.
const SMALL_DISK_LEN: usize = (1 << 20) + (256 << 10);

/// Snapshots by copying: as a clone would be, on any file system.
#[derive(Debug)]
pub(crate) struct Copies;

impl Copies {
    fn path(image: &Path, id: &SnapshotId) -> PathBuf {
        let mut name = image.file_name().unwrap().to_os_string();
        name.push(format!(".{id}.snap"));
        image.with_file_name(name)
    }
}

impl SnapshotProvider for Copies {
    fn create(&self, image: &Path, id: &SnapshotId, _step: &Step<'_>) -> Result<PathBuf> {
        let at = Self::path(image, id);
        if !at.exists() {
            copy(image, &at);
        }
        Ok(at)
    }

    fn release(&self, image: &Path, id: &SnapshotId, _step: &Step<'_>) -> Result<()> {
        drop(fs::remove_file(Self::path(image, id)));
        Ok(())
    }

    fn list(&self, image: &Path, job: &str, _step: &Step<'_>) -> Result<Vec<SnapshotId>> {
        let name = image.file_name().unwrap().to_str().unwrap();
        let entries = fs::read_dir(image.parent().unwrap()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let ids = names.filter_map(|found| {
            let id = found
                .strip_prefix(&format!("{name}."))?
                .strip_suffix(".snap")?;
            let (of, which) = id.split_once('.')?;
            (of == job).then(|| SnapshotId::new(of, which).unwrap())
        });
        Ok(ids.collect())
    }
}

/// See the module's head.
pub(crate) struct Scene {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) source: FakeMachine,
    pub(crate) target: FakeMachine,
    pub(crate) disks: Vec<&'static str>,
    disk_len: usize,
}

impl Scene {
    pub(crate) fn new(disks: &[&'static str]) -> Self {
        Self::within(tempfile::tempdir().unwrap(), disks, DISK_LEN)
    }

    /// The same in memory, where it exists: for tests that say nothing of flushes.
    pub(crate) fn in_memory(disks: &[&'static str]) -> Self {
        Self::within(memory(), disks, DISK_LEN)
    }

    /// Small ones in memory: for tests that bring many home.
    pub(crate) fn small(disks: &[&'static str]) -> Self {
        Self::within(memory(), disks, SMALL_DISK_LEN)
    }

    fn within(dir: tempfile::TempDir, disks: &[&'static str], disk_len: usize) -> Self {
        let scene = Self {
            dir,
            source: FakeMachine::new(Power::On),
            target: FakeMachine::new(Power::Off),
            disks: disks.to_vec(),
            disk_len,
        };
        for disk in disks {
            fs::write(scene.source_of(disk), scene.pattern(1)).unwrap();
            fs::write(scene.target_of(disk), scene.pattern(2)).unwrap();
        }
        scene
    }

    pub(crate) fn source_of(&self, disk: &str) -> PathBuf {
        self.dir.path().join(format!("{disk}-cloud.raw"))
    }

    pub(crate) fn target_of(&self, disk: &str) -> PathBuf {
        self.dir.path().join(format!("{disk}-home.raw"))
    }

    pub(crate) fn jobs(&self) -> Jobs {
        Jobs::below(&self.dir.path().join("state"))
    }

    pub(crate) fn spec(&self) -> JobSpec {
        let path = |path: PathBuf| path.to_str().unwrap().to_owned();
        let spec = self.disks.iter().fold(JobSpec::new("web"), |spec, disk| {
            spec.disk(disk, path(self.source_of(disk)), self.target_of(disk))
        });
        spec.policy(Policy {
            stop_timeout: Duration::from_secs(2),
            keep_warm: Duration::from_secs(3600),
            ..Policy::default()
        })
    }

    pub(crate) fn sides(&self) -> Sides {
        let machine: Arc<dyn Machine> = Arc::new(self.source.clone());
        Sides {
            source: Arc::new(LocalHost::new(machine, Some(Arc::new(Copies)))),
            target: Arc::new(self.target.clone()),
        }
    }

    /// The other way.
    pub(crate) fn sides_back(&self) -> Sides {
        let machine: Arc<dyn Machine> = Arc::new(self.target.clone());
        Sides {
            source: Arc::new(LocalHost::new(machine, Some(Arc::new(Copies)))),
            target: Arc::new(self.source.clone()),
        }
    }

    /// The same with something that knows what changed.
    pub(crate) fn tracked(&self, tracker: impl ChangeTracker + 'static) -> (JobSpec, Sides) {
        let machine: Arc<dyn Machine> = Arc::new(self.source.clone());
        let host = LocalHost::new(machine, Some(Arc::new(Copies)));
        let sides = Sides {
            source: Arc::new(host.tracked_by(Arc::new(tracker))),
            target: Arc::new(self.target.clone()),
        };
        let mut spec = self.spec();
        spec.source.tracker = Some(TrackerSpec::Extents);
        (spec, sides)
    }

    pub(crate) fn start(&self) -> Job {
        Job::start(&self.jobs(), self.spec(), None, self.sides()).unwrap()
    }

    /// The guest writes a page, if it has power.
    pub(crate) fn guest_writes(&self, disk: &str, page: usize, byte: u8) {
        assert_eq!(self.source.real_power(), Power::On);
        overwrite(&self.source_of(disk), page * 4096, &[byte; 4096]);
    }

    pub(crate) fn source_bytes(&self) -> Vec<Vec<u8>> {
        self.disks
            .iter()
            .map(|disk| fs::read(self.source_of(disk)).unwrap())
            .collect()
    }

    pub(crate) fn target_bytes(&self) -> Vec<Vec<u8>> {
        self.disks
            .iter()
            .map(|disk| fs::read(self.target_of(disk)).unwrap())
            .collect()
    }

    /// What the sources had at first.
    pub(crate) fn old_source(&self) -> Vec<Vec<u8>> {
        self.disks.iter().map(|_| self.pattern(1)).collect()
    }

    /// What the targets had before the job.
    pub(crate) fn old_target(&self) -> Vec<Vec<u8>> {
        self.disks.iter().map(|_| self.pattern(2)).collect()
    }

    /// A disk of pages that differ, half of them alike for all seeds.
    fn pattern(&self, seed: u8) -> Vec<u8> {
        let mut bytes = vec![0; self.disk_len];
        for (number, page) in bytes.chunks_mut(4096).enumerate() {
            let byte = u8::try_from(number % 251).unwrap();
            page.fill(if number.is_multiple_of(2) {
                byte
            } else {
                byte ^ seed
            });
        }
        bytes
    }

    /// Snapshots, stages and new files that are still there.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter(|name| name.ends_with(".snap") || name.starts_with(".failback-new"))
            .collect()
    }
}

fn memory() -> tempfile::TempDir {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    dir.unwrap()
}

/// Holes stay holes.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp")
        .arg("--sparse=always")
        .args([from, to])
        .status();
    assert!(copied.unwrap().success());
}

pub(crate) fn run(job: &mut Job) {
    job.run(
        Stay {
            leaves_waiting: true,
            ..Stay::default()
        },
        &Silent,
        &CancelToken::new(),
    )
    .unwrap();
}

pub(crate) fn ask(job: &mut Job, ask: Ask) {
    job.ask(ask).unwrap();
    run(job);
}

/// Passes, a stop, a start: the job waits to be accepted.
pub(crate) fn bring_home(job: &mut Job) {
    run(job);
    ask(job, Ask::Complete);
    let report = job.report();
    assert_eq!(
        (report.phase, report.suspended),
        ("commit_pending", false),
        "{report:?}"
    );
}

/// Runs for every number of these until it says that there was nothing to be met any more, some at
/// a time: most of the time they wait. How often it met something.
pub(crate) fn count_met(numbers: Range<usize>, meets: impl Fn(usize) -> bool + Sync) -> usize {
    const AT_ONCE: usize = 5;
    let (next, met) = (AtomicUsize::new(numbers.start), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    if number >= numbers.end || !meets(number) {
                        return;
                    }
                    met.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    met.into_inner()
}

pub(crate) fn overwrite(path: &Path, at: usize, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, at as u64).unwrap();
}
