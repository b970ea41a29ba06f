//! The files of a comparison.

use std::fmt;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

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

    /// A new target each time: who fills holes must not leave that to the next one.
    pub(crate) fn reset(&self, case: Case, reads: Reads) -> Result<()> {
        self.clean()?;
        if case == Case::Delta && reads == Reads::Target {
            let copy = ["--sparse=always", "--reflink=never"];
            succeed(
                Command::new("cp")
                    .args(copy)
                    .arg(self.old())
                    .arg(self.target()),
            )?;
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
        let state = self.dir.join(".failback");
        if state.exists() {
            fs::remove_dir_all(state)?;
        }
        Ok(())
    }
}
