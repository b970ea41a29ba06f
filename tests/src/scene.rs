//! A target that is to become a source: what it was, what it becomes, and what may be found when
//! the work on it was cut short.

use std::env;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tempfile::TempDir;

use crate::cli::{self, Run};
use crate::qemu::Format;
use crate::{disk, qemu, state, tools};

/// A log of changes beside the target.
pub const LOG: &[&str] = &["--stage", "log"];
/// A clone that takes the target's place (XFS, btrfs).
pub const CLONE: &[&str] = &["--stage", "clone"];
/// A new file that takes the target's place, for a full copy.
pub const NEW_FILE: &[&str] = &["--stage", "file", "--strategy", "full"];

/// Length of the disk.
pub const DISK_LEN: u64 = 64 << 20;
const MIB: u64 = 1 << 20;
/// What the names of new files begin with.
const NEW_FILE_PREFIX: &str = ".failback-new.";
/// What the target has at first: everything below, nothing from there on.
const OLD_END: u64 = 28 * MIB;

/// Both sides and their roots. The target can be put back as often as needed.
#[derive(Debug)]
pub struct Scene {
    dir: TempDir,
    /// The source, a raw disk.
    pub source: PathBuf,
    /// The target.
    pub target: PathBuf,
    /// How the target is stored.
    pub format: Format,
    /// An image with what the target has at first.
    pub template: PathBuf,
    /// Arguments that every sync gets: what the new disk is kept in until all of it is there.
    pub way: &'static [&'static str],
    /// Root of what the target has at first.
    pub old_root: String,
    /// Root of the source.
    pub new_root: String,
}

impl Scene {
    /// A target of this format; the source has zeros where it has data, data where it has nothing,
    /// other blocks and, in some blocks, other pages: 24 MiB and a bit.
    ///
    /// # Panics
    ///
    /// When something cannot be made.
    pub fn new(format: Format, seed: u64) -> Self {
        Self::new_in(&env::temp_dir(), format, seed)
    }

    /// The same in a folder of its own below `base`.
    ///
    /// # Panics
    ///
    /// When something cannot be made.
    pub fn new_in(base: &Path, format: Format, seed: u64) -> Self {
        let dir = TempDir::new_in(base).expect("temporary folder");
        let path = |name: &str| dir.path().join(name);
        let (old, source) = (path("old.raw"), path("source.raw"));
        disk::write_raw(&old, OLD_END, 100, seed);
        let file = OpenOptions::new().write(true).open(&old).expect("old disk");
        file.set_len(DISK_LEN).expect("length of the old disk");
        copy(&old, &source);
        change(&source, seed + 1);
        let template = path(&format!("template.{}", suffix(format)));
        let target = path(&format!("target.{}", suffix(format)));
        qemu::convert(&old, &template, format);
        let scene = Self {
            old_root: state::root_of(&old),
            new_root: state::root_of(&source),
            dir,
            source,
            target,
            format,
            template,
            way: &[],
        };
        assert_ne!(scene.old_root, scene.new_root);
        scene.reset();
        scene
    }

    /// The same with arguments for every sync.
    #[must_use]
    pub fn in_this_way(self, way: &'static [&'static str]) -> Self {
        Self { way, ..self }
    }

    /// The folder of all of it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Puts the target back as it was, without any state.
    ///
    /// # Panics
    ///
    /// When it cannot be written.
    pub fn reset(&self) {
        // Both may be missing.
        let _ = fs::remove_dir_all(self.dir().join(".failback"));
        let _ = fs::remove_file(&self.target);
        let _ = fs::remove_file(self.new_file());
        copy(&self.template, &self.target);
    }

    /// A grant of the target named `disk`.
    pub fn grant(&self) -> String {
        format!("disk={}:rw", self.target.display())
    }

    /// A sync of one process, with more arguments.
    pub fn sync_args(&self, more: &[&str]) -> Vec<String> {
        let more = [self.way, more].concat();
        args_of("sync", &[&self.source, &self.target], &more)
    }

    /// Runs it.
    ///
    /// # Panics
    ///
    /// As [`cli::failback`].
    pub fn sync(&self, more: &[&str]) -> Run {
        cli::failback(self.sync_args(more))
    }

    /// Runs `recover`, `rollback` or `commit` on the target.
    ///
    /// # Panics
    ///
    /// As [`cli::failback`].
    pub fn end_by(&self, command: &str) -> Run {
        cli::failback(args_of(command, &[&self.target], &[]))
    }

    /// What the target is said to be; fails unless that is what it is.
    ///
    /// # Panics
    ///
    /// As said; `context` is how it came about.
    pub fn look(&self, context: &str) -> state::Look {
        state::look_true(&self.target, &self.old_root, &self.new_root, context)
    }

    /// The file that is to take the target's place, if it is there.
    ///
    /// # Panics
    ///
    /// When the folder cannot be read.
    pub fn new_file(&self) -> PathBuf {
        let names = crate::place::names(self.dir());
        let found = names.iter().find(|name| name.starts_with(NEW_FILE_PREFIX));
        self.dir()
            .join(found.map_or(NEW_FILE_PREFIX, String::as_str))
    }

    /// A file of the target's state, there or not.
    pub fn state_file(&self, name: &str) -> PathBuf {
        let directory = state::directory(&self.target);
        directory.unwrap_or_else(|| self.dir().into()).join(name)
    }

    /// Fails unless the target has the source's content.
    ///
    /// # Panics
    ///
    /// As said; `context` is how it came about.
    pub fn assert_new(&self, context: &str) {
        assert_eq!(state::root_of(&self.target), self.new_root, "{context}");
    }

    /// Fails unless the target has its first content.
    ///
    /// # Panics
    ///
    /// As said; `context` is how it came about.
    pub fn assert_old(&self, context: &str) {
        assert_eq!(state::root_of(&self.target), self.old_root, "{context}");
    }

    /// Runs the sync once more and fails unless it ends well, with the right content and word.
    ///
    /// # Panics
    ///
    /// As said; `context` is how it came about.
    pub fn assert_ends_equal(&self, context: &str) -> Run {
        let run = self.sync(&["--json"]);
        assert_eq!(run.code, Some(0), "{context}\n{}", run.stderr);
        self.assert_new(context);
        let look = self.look(context);
        assert!(!look.is_mixed, "{look:?}; {context}");
        let stage = self.state_file("stage");
        assert!(!stage.exists(), "the stage is left over; {context}");
        let new_file = self.new_file();
        assert!(!new_file.exists(), "the new file is left over; {context}");
        run
    }
}

/// Arguments of a command: paths, then words.
pub fn args_of(command: &str, paths: &[&Path], more: &[&str]) -> Vec<String> {
    let paths = paths
        .iter()
        .map(|path| path.to_str().expect("paths of tests are UTF-8"));
    [command]
        .into_iter()
        .chain(paths)
        .chain(more.iter().copied())
        .map(str::to_owned)
        .collect()
}

/// Copies a file with its holes.
///
/// # Panics
///
/// When it cannot be copied.
pub fn copy(from: &Path, to: &Path) {
    tools::run("cp", ["--sparse=always".as_ref(), from, to]);
}

fn suffix(format: Format) -> &'static str {
    match format.name() {
        "vhdx" => "vhdx",
        "vhd" => "vhd",
        _ => "raw",
    }
}

fn change(path: &Path, seed: u64) {
    let file = OpenOptions::new().write(true).open(path).expect("source");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut fill = |from: u64, to: u64| {
        let mut bytes = vec![0; usize::try_from(MIB).expect("small")];
        for at in from..to {
            rng.fill_bytes(&mut bytes);
            file.write_all_at(&bytes, at * MIB).expect("new data");
        }
    };
    fill(8, 20);
    fill(36, 48);
    let zeros = vec![0; usize::try_from(4 * MIB).expect("small")];
    file.write_all_at(&zeros, 4 * MIB).expect("zeros");
    let mut pages = disk::changes(8 * MIB, 40, seed);
    pages.iter_mut().for_each(|change| change.at += 20 * MIB);
    disk::write_changes(path, &pages);
}
