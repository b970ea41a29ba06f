//! Goal: `failback check` tells an operator all that is wrong with an image, changes nothing, and
//! says by its exit code what to think of it.
//! Method: real images as they are and with two damages each; look at code, lines and report.
#![cfg(unix)]

use std::path::Path;

use failback_tests::{cli, images, place, sha256};
use serde_json::Value;
use tempfile::TempDir;

/// In images by Windows: the second region table, and the second entry of the BAT.
const REGION_TABLE: u64 = 256 << 10;
const BAT_ENTRY: u64 = (3 << 20) + 8;

#[test]
fn real_images_are_sound() {
    let folder = TempDir::new().expect("folder");
    for name in [
        "fat-parent.vhdx",
        "ntfs-dynamic.vhdx",
        "ext2.vhdx",
        "fat-differential.vhdx",
    ] {
        let Some((image, path)) = images::unpack(name, folder.path()) else {
            return;
        };
        let run = cli::failback([Path::new("check"), &path]).exits(0);
        let verdict = run.stdout.lines().last().expect("a verdict");
        assert!(verdict.starts_with("sound: "), "{verdict}");
        assert_eq!(sha256::of_file(&path), image.file_sha256, "{name}");
    }
}

#[test]
fn two_damages_are_both_told() {
    let folder = TempDir::new().expect("folder");
    let Some((_, path)) = images::unpack("fat-parent.vhdx", folder.path()) else {
        return;
    };
    place::scribble(&path, REGION_TABLE + 1000, &[1]);
    place::scribble(&path, BAT_ENTRY, &[4]);
    let before = sha256::of_file(&path);
    let run = cli::failback([Path::new("check"), &path]).exits(1);
    let lines: Vec<&str> = run.stdout.lines().collect();
    let warning = "warning: region table at 0x40000: ";
    let error = "error: BAT entry at 0x300008: ";
    let has = |start: &str, end: &str| {
        lines
            .iter()
            .any(|line| line.starts_with(start) && line.ends_with(end))
    };
    assert!(has(warning, " [region-table-checksum]"), "{}", run.stdout);
    assert!(has(error, " [bat-state]"), "{}", run.stdout);
    assert!(lines.last().expect("a verdict").starts_with("damaged: "));
    assert!(run.stderr.is_empty(), "{}", run.stderr);
    assert_eq!(sha256::of_file(&path), before);
}

#[test]
fn the_report_says_the_same_to_programs() {
    let folder = TempDir::new().expect("folder");
    let Some((_, path)) = images::unpack("fat-parent.vhdx", folder.path()) else {
        return;
    };
    place::scribble(&path, BAT_ENTRY, &[4]);
    let report = cli::failback([Path::new("check"), &path, Path::new("--json")]);
    let report = report.exits(1).json();
    assert_eq!(report["schema"], "failback.check/1");
    assert_eq!(report["outcome"], "damaged");
    assert_eq!(
        (&report["errors"], &report["omitted"]),
        (&1.into(), &0.into())
    );
    assert_eq!(report["summary"]["kind"], "fixed");
    let errors = errors_of(&report);
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0]["structure"], "BAT entry");
    assert_eq!(errors[0]["offset"], BAT_ENTRY);
    assert_eq!(errors[0]["rule"], "bat-state");
}

#[test]
fn an_image_that_cannot_be_opened_is_damaged() {
    let folder = TempDir::new().expect("folder");
    let Some((_, path)) = images::unpack("fat-parent.vhdx", folder.path()) else {
        return;
    };
    for header in [64 << 10, 128 << 10] {
        place::scribble(&path, header + 100, &[1]);
    }
    let run = cli::failback([Path::new("check"), &path]).exits(1);
    assert_eq!(run.stdout.matches("[header-checksum]").count(), 2);
}

#[test]
fn a_child_and_its_parent_are_compared() {
    let folder = TempDir::new().expect("folder");
    let Some((_, child)) = images::unpack("fat-differential.vhdx", folder.path()) else {
        return;
    };
    let unpacked = ["fat-parent.vhdx", "ext2.vhdx"].map(|name| {
        images::unpack(name, folder.path())
            .expect("beside the child")
            .1
    });
    let [parent, other] = unpacked;
    let check =
        |parent: &Path| cli::failback([Path::new("check"), &child, Path::new("--parent"), parent]);
    let right = check(&parent).exits(0);
    assert!(!right.stdout.contains("parent-"), "{}", right.stdout);
    let wrong = check(&other).exits(1);
    assert!(
        wrong.stdout.contains("[parent-linkage]"),
        "{}",
        wrong.stdout
    );
}

#[test]
fn what_is_no_image_is_not_judged() {
    let folder = TempDir::new().expect("folder");
    let files: [(&str, &[u8]); 2] = [
        ("disk.raw", &[7; 8192]),
        ("disk.qcow2", b"QFI\xfb and so on"),
    ];
    for (name, bytes) in files {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("file");
        let run = cli::failback([Path::new("check"), &path]).exits(4);
        assert!(run.error_line().contains(name), "{}", run.stderr);
    }
}

#[test]
fn a_missing_file_is_an_error_of_the_system() {
    let folder = TempDir::new().expect("folder");
    let missing = folder.path().join("missing.vhdx");
    let run = cli::failback([Path::new("check"), &missing]).exits(6);
    assert!(run.error_line().contains("missing.vhdx"));
}

fn errors_of(report: &Value) -> Vec<&Value> {
    let findings = report["findings"].as_array().expect("findings");
    let errors = findings.iter();
    errors
        .filter(|finding| finding["severity"] == "error")
        .collect()
}
