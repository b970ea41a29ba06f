//! The files of a comparison.

use std::fmt;
use std::fs::{self, File};
use std::io::{Error, ErrorKind, Read, Result};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;
use failback_engine::hash::is_zero;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use rustix::fs::FallocateFlags;

use crate::Case;
use crate::contender::{Reads, succeed};

/// How the changed blocks lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layout {
    Scattered,
    Clustered,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layout::Scattered => "scattered",
            Layout::Clustered => "clustered",
        })
    }
}

/// What the page cache holds when a run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cache {
    Hot,
    Cold,
}

/// An older disk, a newer one, and where the target is made.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) dir: PathBuf,
    pub(crate) percent: String,
    pub(crate) layout: Layout,
    pub(crate) size: u64,
}

/// Makes what is not there yet.
pub(crate) fn prepare(dir: &Path, gib: u64, percent: &str, layout: Layout) -> Result<Place> {
    fs::create_dir_all(dir)?;
    let place = Place {
        dir: dir.to_path_buf(),
        percent: percent.to_string(),
        layout,
        size: gib << 30,
    };
    let has_old = fs::metadata(place.old()).is_ok_and(|old| old.len() == place.size);
    if !has_old {
        python("make_disk.py", &[&place.old()], &[&gib.to_string()])?;
    }
    let made_with = format!("{gib} {percent} {layout}");
    let note = dir.join("made-with");
    if !has_old || fs::read_to_string(&note).ok().as_ref() != Some(&made_with) {
        let files = [place.old(), place.source()];
        let files: Vec<&PathBuf> = files.iter().collect();
        python(
            "change_disk.py",
            &files,
            &[percent, "7", &layout.to_string()],
        )?;
        let vhdx = [place.source(), place.source_vhdx()];
        succeed(
            Command::new("qemu-img")
                .args(["convert", "-O", "vhdx"])
                .args(vhdx),
        )
        .map_or_else(
            |error| {
                println!("no VHDX: {error}");
            },
            drop,
        );
        fs::write(note, made_with)?;
    }
    Ok(place)
}

fn python(script: &str, files: &[&PathBuf], rest: &[&str]) -> Result<()> {
    let script = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/peers")).join(script);
    let output = succeed(Command::new("python3").arg(script).args(files).args(rest))?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

impl Place {
    pub(crate) fn old(&self) -> PathBuf {
        self.dir.join("old.raw")
    }

    pub(crate) fn source(&self) -> PathBuf {
        self.dir.join("new.raw")
    }

    pub(crate) fn source_vhdx(&self) -> PathBuf {
        self.dir.join("new.vhdx")
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.dir.join("target.raw")
    }

    pub(crate) fn target_vhdx(&self) -> PathBuf {
        self.dir.join("target.vhdx")
    }

    fn targets(&self) -> [PathBuf; 2] {
        [self.target(), self.target_vhdx()]
    }

    /// The older disk as the target. One that is still there is mended where it differs, so that
    /// its pages stay where they are in memory: how fast these are read differs by up to two times
    /// from place to place. Pieces of zeros are holes again: who fills them must not leave that to
    /// the next one.
    pub(crate) fn reset(&self, case: Case, reads: Reads) -> Result<()> {
        if case == Case::Delta && reads == Reads::Target {
            self.remove_state()?;
            restore(&self.old(), &self.target())?;
        } else {
            self.clean()?;
        }
        // What other files still have to write must not be written in somebody's time.
        nix::unistd::sync();
        Ok(())
    }

    /// Reads all that is read into the page cache, or takes it out of it.
    pub(crate) fn bring(&self, cache: Cache, case: Case) -> Result<()> {
        let source = match case {
            Case::Vhdx => self.source_vhdx(),
            _ => self.source(),
        };
        for path in [source, self.target()] {
            let Ok(mut file) = File::open(path) else {
                continue;
            };
            match cache {
                Cache::Hot => {
                    let mut buf = vec![0; 1 << 20];
                    while file.read(&mut buf)? > 0 {}
                }
                Cache::Cold => {
                    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
                }
            }
        }
        Ok(())
    }

    /// Until the target is on its medium.
    pub(crate) fn flush(&self) -> Result<()> {
        for path in self.targets() {
            match File::options().write(true).open(path) {
                Ok(file) => file.sync_all()?,
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The target is the source, says a program that is not in the comparison.
    pub(crate) fn check(&self, case: Case) -> Result<()> {
        match case {
            Case::Vhdx => {
                let images = [self.source_vhdx(), self.target_vhdx()];
                succeed(Command::new("qemu-img").arg("compare").args(images))
            }
            _ => succeed(Command::new("cmp").arg(self.source()).arg(self.target())),
        }?;
        Ok(())
    }

    pub(crate) fn clean(&self) -> Result<()> {
        for path in self.targets() {
            if path.exists() {
                fs::remove_file(path)?;
            }
        }
        self.remove_state()
    }

    fn remove_state(&self) -> Result<()> {
        let state = self.dir.join(".failback");
        if state.exists() {
            fs::remove_dir_all(state)?;
        }
        Ok(())
    }
}

/// Makes `target` equal to `old`: what differs is written, and pieces of zeros are holes.
fn restore(old: &Path, target: &Path) -> Result<()> {
    const PIECE: usize = 64 << 10;
    let old = File::open(old)?;
    let mut open = File::options();
    open.read(true).write(true).create(true).truncate(false);
    let target = open.open(target)?;
    let len = old.metadata()?.len();
    target.set_len(len)?;
    let punch = |range: &Range<u64>| match range.is_empty() {
        true => Ok(()),
        false => {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&target, flags, range.start, range.end - range.start)
        }
    };
    let (mut new, mut seen) = (vec![0; PIECE], vec![0; PIECE]);
    let mut zeros = 0..0;
    for start in (0..len).step_by(PIECE) {
        let end = len.min(start + PIECE as u64);
        let piece = usize::try_from(end - start).map_err(Error::other)?;
        let (new, seen) = (&mut new[..piece], &mut seen[..piece]);
        old.read_exact_at(new, start)?;
        if is_zero(new) {
            if zeros.end != start {
                zeros.start = start;
            }
            zeros.end = end;
            continue;
        }
        punch(&std::mem::take(&mut zeros))?;
        target.read_exact_at(seen, start)?;
        if new != seen {
            target.write_all_at(new, start)?;
        }
    }
    Ok(punch(&zeros)?)
}
