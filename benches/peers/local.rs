//! Contenders that open both files in one process, or work through files.

use std::io::Result;
use std::path::Path;
use std::process::Command;

use crate::contender::{Contender, succeed, timed};
use crate::disk::Place;
use crate::link::timed_command;
use crate::{Outcome, Run};

/// An older target becomes the source's equal.
pub(crate) fn delta(binary: &Path) -> Vec<Contender> {
    let in_place = ["--apply", "in-place", "--verify", "off"];
    vec![
        failback(binary, &in_place),
        failback(binary, &[]),
        cp().from_nothing(),
        Contender::new("qemu-img convert -n", &["qemu-img"], |place| {
            let options = ["convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw"];
            qemu_img(place, &options, &[&place.source(), &place.target()])
        }),
        Contender::new("qemu-img compare", &["qemu-img"], |place| {
            let mut compare = Command::new("qemu-img");
            compare.args(["compare", "-f", "raw", "-F", "raw"]);
            let (seconds, _) = timed(place, || {
                // 1: they differ, where it found that; so this is a lower bound.
                compare.arg(place.source()).arg(place.target()).output()
            })?;
            std::fs::remove_file(place.target())?;
            succeed(Command::new("cp").arg(place.source()).arg(place.target()))?;
            Ok(of(seconds))
        }),
        Contender::new("rdiff", &["rdiff"], rdiff),
        Contender::new("casync", &["casync"], casync),
    ]
}

/// A missing raw file is made.
pub(crate) fn full(binary: &Path) -> Vec<Contender> {
    vec![
        failback(binary, &["--verify", "off"]).from_nothing(),
        failback(binary, &["--hash", "xxh3", "--verify", "off"]).from_nothing(),
        failback(binary, &[]).from_nothing(),
        cp(),
        Contender::new("qemu-img convert -W", &["qemu-img"], |place| {
            let options = ["convert", "-W", "-m", "16", "-f", "raw", "-O", "raw"];
            qemu_img(place, &options, &[&place.source(), &place.target()])
        }),
    ]
}

/// A missing dynamic VHDX is made of one.
pub(crate) fn vhdx(binary: &Path) -> Vec<Contender> {
    let failback = |options: &'static [&'static str]| {
        let binary = binary.to_path_buf();
        let name = format!("failback local {}", options.join(" "));
        Contender::new(name, &[], move |place| {
            let images = [place.source_vhdx(), place.target_vhdx()];
            timed_command(
                place,
                Command::new(&binary).arg("sync").args(images).args(options),
            )
        })
    };
    let convert = |name: &'static str, options: &'static [&'static str]| {
        Contender::new(name, &["qemu-img"], move |place| {
            qemu_img(
                place,
                options,
                &[&place.source_vhdx(), &place.target_vhdx()],
            )
        })
    };
    let plain = &["convert", "-f", "vhdx", "-O", "vhdx"];
    let wide = &["convert", "-W", "-m", "16", "-f", "vhdx", "-O", "vhdx"];
    vec![
        failback(&["--verify", "off"]),
        failback(&["--hash", "xxh3", "--verify", "off"]),
        failback(&[]),
        convert("qemu-img convert", plain),
        convert("qemu-img convert -W", wide),
    ]
}

fn failback(binary: &Path, options: &[&str]) -> Contender {
    let binary = binary.to_path_buf();
    let options: Vec<String> = options.iter().copied().map(str::to_string).collect();
    let name = format!("failback local {}", options.join(" "));
    Contender::new(name.trim_end(), &[], move |place| {
        let disks = [place.source(), place.target()];
        timed_command(
            place,
            Command::new(&binary).arg("sync").args(disks).args(&options),
        )
    })
}

fn cp() -> Contender {
    Contender::new("cp", &["cp"], |place| {
        let files = [place.source(), place.target()];
        timed_command(place, Command::new("cp").arg("--sparse=auto").args(files))
    })
}

fn qemu_img(place: &Place, options: &[&str], images: &[&Path]) -> Run {
    timed_command(place, Command::new("qemu-img").args(options).args(images))
}

/// Signature of the old disk, delta to the new one, and a patched copy.
fn rdiff(place: &Place) -> Run {
    let at = |name: &str| place.dir.join(name);
    let (signature, delta, patched) = (at("rdiff.sig"), at("rdiff.delta"), at("rdiff.new"));
    let run = |step: &str, files: &[&Path]| {
        succeed(Command::new("rdiff").args(["--force", step]).args(files)).map(drop)
    };
    let (seconds, ()) = timed(place, || {
        run("signature", &[&place.target(), &signature])?;
        run("delta", &[&signature, &place.source(), &delta])?;
        run("patch", &[&place.target(), &delta, &patched])?;
        std::fs::rename(&patched, place.target())
    })?;
    remove(&[&signature, &delta])?;
    Ok(of(seconds))
}

/// Chunks of the new disk into a store, and a new file from the store with the old disk as seed.
fn casync(place: &Place) -> Run {
    let at = |name: &str| place.dir.join(name);
    let (store, index, extracted) = (at("casync.store"), at("casync.caibx"), at("casync.new"));
    let in_store = format!("--store={}", store.display());
    let seed = format!("--seed={}", place.target().display());
    let (seconds, ()) = timed(place, || {
        let mut make = Command::new("casync");
        succeed(
            make.args(["make", &in_store])
                .arg(&index)
                .arg(place.source()),
        )?;
        let mut extract = Command::new("casync");
        succeed(
            extract
                .args(["extract", &in_store, &seed])
                .arg(&index)
                .arg(&extracted),
        )?;
        std::fs::rename(&extracted, place.target())
    })?;
    std::fs::remove_dir_all(store)?;
    remove(&[&index])?;
    Ok(of(seconds))
}

fn remove(files: &[&Path]) -> Result<()> {
    files.iter().try_for_each(std::fs::remove_file)
}

fn of(seconds: f64) -> Outcome {
    Outcome {
        seconds,
        ..Outcome::default()
    }
}
