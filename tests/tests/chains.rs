//! Goal: differencing images are read, written and merged over the parents that the operator named
//! or let follow, no other file is opened, and no write breaks a child. Method: the real chain by
//! Windows and chains made here, read again by 7-Zip and checked by qemu-img.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};

use failback_tests::cli::failback;
use failback_tests::{cli, disk, images, place, qemu, report, sevenzip, sha256};
use tempfile::TempDir;

const LEN: u64 = 64 << 20;

/// The chain by Windows: folder, parent, child, and what is known of the child.
fn real_chain() -> Option<(TempDir, PathBuf, PathBuf, images::Image)> {
    let dir = tempfile::tempdir().expect("temporary folder");
    let (_, parent) = images::unpack("fat-parent.vhdx", dir.path())?;
    let (image, child) = images::unpack("fat-differential.vhdx", dir.path())?;
    Some((dir, parent, child, image))
}

/// A parent made by QEMU with content, and a child of it with changes, made here; the raw files
/// hold what each has to read as.
struct Chain {
    dir: TempDir,
    parent: PathBuf,
    child: PathBuf,
    old: PathBuf,
    new: PathBuf,
}

impl Chain {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary folder");
        let [parent, child, old, new] =
            place::paths(dir.path(), ["base.vhdx", "top.avhdx", "old.raw", "new.raw"]);
        disk::write_raw(&old, LEN, 40, 7);
        fs::copy(&old, &new).expect("copy");
        disk::write_changes(&new, &disk::changes(LEN, 60, 9));
        qemu::convert(&old, &parent, qemu::Format::Dynamic(1));
        drop(
            failback([
                "create".as_ref(),
                child.as_os_str(),
                "--parent".as_ref(),
                parent.as_os_str(),
            ])
            .exits(0),
        );
        Self {
            dir,
            parent,
            child,
            old,
            new,
        }
    }

    /// Makes the child equal to the new content, by delta.
    fn fill(&self) {
        let run = sync_with(&self.new, &self.child, &["--follow-parents"]).exits(0);
        report::assert_done(&run.json());
    }
}

fn sync_with(source: &Path, target: &Path, options: &[&str]) -> cli::Run {
    let command = ["sync".as_ref(), source.as_os_str(), target.as_os_str()];
    let options = options.iter().map(AsRef::as_ref);
    failback(
        command
            .into_iter()
            .chain(options)
            .chain(["--json".as_ref()]),
    )
}

#[test]
fn the_chain_by_windows_is_read_over_a_named_and_a_followed_parent() {
    let Some((dir, parent, child, image)) = real_chain() else {
        return;
    };
    let before = sha256::of_file(&parent);
    let parent_name = parent.to_str().expect("a plain path");
    for options in [&["--follow-parents"][..], &["--source-parent", parent_name]] {
        let target = dir.path().join("out.raw");
        let run = sync_with(&child, &target, options).exits(0);
        report::assert_done(&run.json());
        assert_eq!(sha256::of_file(&target), image.content_sha256);
        fs::remove_file(target).expect("remove");
    }
    assert_eq!(sha256::of_file(&child), image.file_sha256);
    assert_eq!(sha256::of_file(&parent), before);
}

#[test]
fn the_vhd_chain_by_windows_is_read_described_and_checked() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let Some((_, parent)) = images::unpack("fat-parent.vhd", dir.path()) else {
        return;
    };
    let Some((image, child)) = images::unpack("fat-differential.vhd", dir.path()) else {
        return;
    };
    let parent = parent.to_str().expect("a plain path");
    let target = dir.path().join("out.vhdx");
    drop(sync_with(&child, &target, &[]).exits(3));
    for options in [&["--follow-parents"][..], &["--source-parent", parent]] {
        let run = sync_with(&child, &target, options).exits(0);
        report::assert_done(&run.json());
        let content = sevenzip::content_sha256(&target, qemu::Format::Dynamic(32));
        assert_eq!(content, image.content_sha256);
        fs::remove_file(&target).expect("remove");
    }
    let command = ["info".as_ref(), child.as_os_str(), "--json".as_ref()];
    let info = failback(command).exits(0).json();
    assert!(info["chain"][0]["path"].is_null());
    let command = ["check".as_ref(), child.as_os_str(), "--json".as_ref()];
    let check = failback(command).exits(0).json();
    assert_eq!(
        (&check["outcome"], &check["format"]),
        (&"sound".into(), &"vhd".into())
    );
    place::scribble(&child, 20, b"spoilt");
    let check = failback(["check".as_ref(), child.as_os_str()]).exits(0);
    assert!(check.stdout.contains("footer copy"), "{}", check.stdout);
    assert!(
        check.stdout.contains(" [footer-checksum]"),
        "{}",
        check.stdout
    );
    let len = fs::metadata(&child).expect("child").len();
    place::scribble(&child, len - 500, b"spoilt");
    drop(failback(["check".as_ref(), child.as_os_str()]).exits(1));
}

#[test]
fn a_vhd_child_made_here_takes_the_changes() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let [raw, parent, child, new, flat] = place::paths(
        dir.path(),
        ["old.raw", "base.vhd", "top.vhd", "new.raw", "flat.raw"],
    );
    disk::write_raw(&raw, LEN, 30, 3);
    drop(sync_with(&raw, &parent, &[]).exits(0));
    let before = sha256::of_file(&parent);
    let command = ["create".as_ref(), child.as_os_str(), "--parent".as_ref()];
    drop(failback(command.into_iter().chain([parent.as_os_str()])).exits(0));
    fs::copy(&raw, &new).expect("copy");
    disk::write_changes(&new, &disk::changes(LEN, 40, 5));
    let run = sync_with(&new, &child, &["--follow-parents"]).exits(0);
    report::assert_done(&run.json());
    drop(sync_with(&child, &flat, &["--follow-parents"]).exits(0));
    assert_eq!(sha256::of_file(&flat), sha256::of_file(&new));
    assert_eq!(sha256::of_file(&parent), before);
}

#[test]
fn a_child_without_its_parent_or_with_another_is_refused() {
    let Some((dir, parent, child, _)) = real_chain() else {
        return;
    };
    let [other, out] = place::paths(dir.path(), ["other.vhdx", "out.raw"]);
    drop(
        failback([
            "create".as_ref(),
            other.as_os_str(),
            "--size".as_ref(),
            "4M".as_ref(),
        ])
        .exits(0),
    );
    let other = other.to_str().expect("a plain path");
    let alone = sync_with(&child, &out, &[]).exits(3);
    assert!(
        alone.error_line().contains("needs its parent"),
        "{}",
        alone.error_line()
    );
    let wrong = sync_with(&child, &out, &["--source-parent", other]).exits(3);
    assert!(
        wrong.error_line().contains("DataWriteGuid"),
        "{}",
        wrong.error_line()
    );
    let itself = child.to_str().expect("a plain path");
    drop(sync_with(&child, &out, &["--source-parent", itself]).exits(3));
    // One too many, and one for an image that has none.
    let parent = parent.to_str().expect("a plain path");
    let more = ["--source-parent", parent, "--source-parent", other];
    drop(sync_with(&child, &out, &more).exits(2));
    drop(sync_with(Path::new(parent), &out, &["--source-parent", other]).exits(2));
    assert!(!out.exists());
}

#[test]
fn what_an_image_names_outside_of_its_folder_is_not_opened() {
    let Some((dir, parent, child, _)) = real_chain() else {
        return;
    };
    let out = dir.path().join("out.raw");
    let away = tempfile::tempdir().expect("temporary folder");
    let moved = away.path().join("fat-parent.vhdx");
    fs::rename(&parent, &moved).expect("move");
    drop(sync_with(&child, &out, &["--follow-parents"]).exits(6));
    std::os::unix::fs::symlink(&moved, &parent).expect("link");
    let link = sync_with(&child, &out, &["--follow-parents"]).exits(3);
    assert!(
        link.error_line().contains("no regular file"),
        "{}",
        link.error_line()
    );
    fs::remove_file(&parent).expect("remove");
    // Opening a pipe would wait for its writer.
    let made = std::process::Command::new("mkfifo").arg(&parent).status();
    assert!(made.expect("mkfifo").success());
    drop(sync_with(&child, &out, &["--follow-parents"]).exits(3));
}

#[test]
fn a_parent_of_a_file_beside_it_is_not_written() {
    let Some((dir, parent, child, _)) = real_chain() else {
        return;
    };
    let [zeros, hidden] = place::paths(dir.path(), ["zeros.raw", "checkpoint.AVHDX"]);
    disk::write_raw(&zeros, 4 << 20, 0, 1);
    let before = sha256::of_file(&parent);
    let run = sync_with(&zeros, &parent, &[]).exits(3);
    assert!(
        run.error_line().contains("fat-differential.vhdx")
            && run.error_line().contains("--no-sibling-check"),
        "{}",
        run.error_line()
    );
    fs::rename(&child, &hidden).expect("rename");
    drop(sync_with(&zeros, &parent, &[]).exits(3));
    assert_eq!(sha256::of_file(&parent), before);
    // A damaged neighbour is a warning; the operator's word is enough.
    fs::write(dir.path().join("junk.vhdx"), b"vhdxfile and nothing else").expect("junk");
    let run = sync_with(&zeros, &parent, &["--no-sibling-check"]).exits(0);
    report::assert_done(&run.json());
    fs::remove_file(&hidden).expect("remove");
    let run = sync_with(&zeros, &parent, &[]).exits(0);
    report::assert_nothing_sent(&run.json());
}

#[test]
fn a_child_made_here_takes_the_changes_and_leaves_its_parent_alone() {
    let chain = Chain::new();
    let before = sha256::of_file(&chain.parent);
    chain.fill();
    assert_eq!(sha256::of_file(&chain.parent), before);
    let content = sha256::of_file(&chain.new);
    assert_eq!(
        sevenzip::content_sha256(&chain.child, qemu::Format::Dynamic(1)),
        content
    );
    assert_ne!(sha256::of_file(&chain.old), content);
    let size = fs::metadata(&chain.child).expect("child").len();
    assert!(
        size < LEN,
        "a child of {size} bytes holds more than what changed"
    );
    let again = sync_with(&chain.new, &chain.child, &["--follow-parents"]).exits(0);
    report::assert_nothing_sent(&again.json());
    let flat = chain.dir.path().join("flat.vhdx");
    let run = sync_with(&chain.child, &flat, &["--follow-parents"]).exits(0);
    report::assert_done(&run.json());
    qemu::assert_identical(
        (&chain.new, qemu::Format::Raw),
        (&flat, qemu::Format::Dynamic(1)),
    );
    qemu::assert_clean(&flat, qemu::Format::Dynamic(1));
}

#[test]
fn a_merged_parent_has_the_content_of_the_chain() {
    let chain = Chain::new();
    chain.fill();
    let second = chain.dir.path().join("second.vhdx");
    let merge = |more: &[&str]| {
        let command = [
            "merge".as_ref(),
            chain.child.as_os_str(),
            "--follow-parents".as_ref(),
        ];
        failback(command.into_iter().chain(more.iter().map(AsRef::as_ref)))
    };
    drop(
        failback([
            "create".as_ref(),
            second.as_os_str(),
            "--parent".as_ref(),
            chain.parent.as_os_str(),
        ])
        .exits(0),
    );
    let refused = merge(&[]).exits(3);
    assert!(
        refused.error_line().contains("second.vhdx"),
        "{}",
        refused.error_line()
    );
    fs::remove_file(&second).expect("remove");
    // A copy of the child has its identity, and is not its parent.
    let copy = chain.dir.path().join("copy.vhdx");
    fs::copy(&chain.child, &copy).expect("copy");
    let command = [
        "merge".as_ref(),
        chain.child.as_os_str(),
        "--parent".as_ref(),
    ];
    let options = [
        copy.as_os_str(),
        "--parent".as_ref(),
        chain.parent.as_os_str(),
    ];
    let options = options.into_iter().chain(["--no-sibling-check".as_ref()]);
    let wrong = failback(command.into_iter().chain(options)).exits(3);
    assert!(
        wrong.error_line().contains("is a copy"),
        "{}",
        wrong.error_line()
    );
    fs::remove_file(&copy).expect("remove");
    let done = merge(&["--json"]).exits(0).json();
    assert_eq!(done["outcome"], "done");
    qemu::assert_identical(
        (&chain.new, qemu::Format::Raw),
        (&chain.parent, qemu::Format::Dynamic(1)),
    );
    qemu::assert_clean(&chain.parent, qemu::Format::Dynamic(1));
    assert_eq!(
        merge(&["--json"]).exits(0).json()["outcome"],
        "already_merged"
    );
}

#[test]
fn a_merge_warns_of_images_that_name_the_child_as_their_parent() {
    let chain = Chain::new();
    chain.fill();
    let [above, other] = place::paths(chain.dir.path(), ["above.avhdx", "other.vhdx"]);
    let create = |image: &Path, options: &[&std::ffi::OsStr]| {
        let command = ["create".as_ref(), image.as_os_str()];
        drop(failback(command.into_iter().chain(options.iter().copied())).exits(0));
    };
    let option = "--parent".as_ref();
    let [child, parent] = [chain.child.as_os_str(), chain.parent.as_os_str()];
    create(&above, &[option, child, option, parent]);
    create(&other, &["--size".as_ref(), "4M".as_ref()]);
    let command = ["merge".as_ref(), chain.child.as_os_str()];
    let options = ["--follow-parents".as_ref(), "--json".as_ref()];
    let run = failback(command.into_iter().chain(options)).exits(0);
    let warnings = run.json()["warnings"].clone();
    assert_eq!(warnings.as_array().map(Vec::len), Some(1), "{warnings}");
    let warning = warnings[0].as_str().expect("a text");
    assert!(
        warning.contains("above.avhdx names") && warning.contains("top.avhdx as its parent"),
        "{warning}"
    );
    let told = format!("warning: {warning}\n");
    assert_eq!(run.stderr.matches(&told).count(), 1, "{}", run.stderr);
    // It reads over the parent, which is what the child was.
    let flat = chain.dir.path().join("flat.raw");
    let parent = chain.parent.to_str().expect("a plain path");
    drop(sync_with(&above, &flat, &["--source-parent", parent]).exits(0));
    assert_eq!(sha256::of_file(&flat), sha256::of_file(&chain.new));
}

#[test]
fn info_tells_the_chain_and_opens_only_what_it_may() {
    let Some((_dir, parent, child, _)) = real_chain() else {
        return;
    };
    let info = |more: &[&str]| {
        let command = ["info".as_ref(), child.as_os_str(), "--json".as_ref()];
        failback(command.into_iter().chain(more.iter().map(AsRef::as_ref)))
            .exits(0)
            .json()
    };
    let alone = info(&[]);
    assert_eq!(alone["vhdx"]["kind"], "differencing");
    assert!(alone["chain"][0]["path"].is_null());
    let named = alone["chain"][0]["named"].as_str().expect("a text");
    assert!(named.ends_with("fat-parent.vhdx"), "{named}");
    let whole = info(&["--follow-parents"]);
    let path = whole["chain"][0]["path"].as_str().expect("a path");
    assert_eq!(Path::new(path), parent);
    assert_eq!(whole["chain"].as_array().map(Vec::len), Some(1));
}
