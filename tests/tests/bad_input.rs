//! Goal: bad images, bad places and bad peers get one clear error line and the right exit code; no
//! panic, no hang, and what was there stays as it was.
//! Method: break one thing at a time, run a sync, look at code, line, report and files.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};

use failback_tests::peer::{self, Manner};
use failback_tests::place::{self, Holder, Mount};
use failback_tests::qemu::Format::{Dynamic, Raw};
use failback_tests::{cli, disk, qemu, report, sha256, skip_without};
use serde_json::Value;
use tempfile::TempDir;

const DISK_LEN: u64 = 32 << 20;
const KIB: u64 = 1 << 10;
/// Where MS-VHDX 2.2 puts the two headers.
const HEADERS: [u64; 2] = [64 * KIB, 128 * KIB];
/// Where it puts the two region tables.
const REGION_TABLES: [u64; 2] = [192 * KIB, 256 * KIB];

#[test]
fn a_vhdx_cut_in_its_blocks_is_damaged() {
    skip_without!("qemu-img");
    let disks = Disks::new();
    let len = fs::metadata(&disks.source).expect("source").len();
    cut(&disks.source, len / 2);
    disks.assert_fails(4, "failed");
}

#[test]
fn a_vhdx_cut_in_its_headers_is_damaged() {
    skip_without!("qemu-img");
    let disks = Disks::new();
    cut(&disks.source, 100 * KIB);
    disks.assert_fails(4, "failed");
}

#[test]
fn a_damaged_target_is_not_overwritten() {
    skip_without!("qemu-img");
    let disks = Disks::new();
    HEADERS
        .iter()
        .for_each(|at| place::scribble(&disks.target, at + 100, &[0xff]));
    disks.assert_fails(4, "failed");
}

#[test]
fn a_vhdx_with_two_wrong_header_sums_is_damaged() {
    skip_without!("qemu-img");
    let disks = Disks::new();
    HEADERS
        .iter()
        .for_each(|at| place::scribble(&disks.source, at + 100, &[0xff]));
    let error = disks.assert_fails(4, "failed");
    assert_eq!(error["path"], disks.source.to_str().expect("UTF-8"));
}

#[test]
fn a_vhdx_with_one_wrong_header_sum_is_read() {
    skip_without!("qemu-img");
    let disks = Disks::new();
    place::scribble(&disks.source, HEADERS[0] + 100, &[0xff]);
    let run = cli::sync(&disks.source, &disks.target);
    report::assert_done(&run.exits(0).json());
}

#[test]
fn a_vhdx_with_two_wrong_region_tables_is_damaged() {
    skip_without!("qemu-img");
    let disks = Disks::new();
    REGION_TABLES
        .iter()
        .for_each(|at| place::scribble(&disks.source, at + 30, &[0xff]));
    disks.assert_fails(4, "failed");
}

#[test]
fn junk_under_the_name_of_a_vhdx_is_not_read_as_raw() {
    skip_without!("qemu-img");
    let disks = Disks::new();
    disk::write_raw(&disks.source, DISK_LEN, 100, 3);
    disks.assert_fails(4, "failed");
    let run = cli::failback(args(["sync"], &disks.source, &disks.target)).exits(4);
    assert!(
        run.error_line().contains("--source-format raw"),
        "{}",
        run.stderr
    );
}

#[test]
fn a_target_without_a_telling_suffix_needs_a_format() {
    skip_without!("qemu-img");
    let disks = Disks::new();
    let target = disks.dir.path().join("copy");
    let run = cli::failback(args(["sync"], &disks.source, &target)).exits(2);
    assert!(
        run.error_line().contains("--target-format"),
        "{}",
        run.stderr
    );
    assert!(!target.exists());
}

#[test]
fn junk_that_is_said_to_be_a_vhdx_is_damaged() {
    skip_without!("qemu-img");
    let disks = Disks::new();
    let junk = disks.dir.path().join("junk");
    disk::write_raw(&junk, DISK_LEN, 100, 3);

    let run = cli::failback(args(
        ["sync", "--json", "--source-format", "vhdx"],
        &junk,
        &disks.target,
    ));

    disks.assert_failed(&run, 4, "failed");
}

#[test]
fn an_image_is_read_as_raw_only_when_told() {
    skip_without!("qemu-img");
    let disks = Disks::new();
    let target = disks.dir.path().join("copy.raw");

    let run = cli::failback(args(
        ["sync", "--json", "--source-format", "raw"],
        &disks.source,
        &target,
    ));

    report::assert_done(&run.exits(0).json());
    assert_eq!(sha256::of_file(&disks.source), sha256::of_file(&target));
}

#[test]
fn sizes_that_differ_are_refused() {
    skip_without!("qemu-img");
    let disks = Disks::new();
    fs::remove_file(&disks.target).expect("remove");
    qemu::create(&disks.target, Dynamic(1), DISK_LEN + (1 << 20));
    let error = disks.assert_fails(3, "refused");
    assert_eq!(error["kind"], "geometry_mismatch");
}

#[test]
fn a_raw_target_that_is_a_sector_short_is_refused() {
    skip_without!("qemu-img");
    let mut disks = Disks::new();
    disks.target = disks.dir.path().join("target.raw");
    disk::write_raw(&disks.target, DISK_LEN - 512, 50, 3);
    let error = disks.assert_fails(3, "refused");
    assert_eq!(error["kind"], "geometry_mismatch");
}

#[test]
fn a_target_that_is_marked_read_only_is_refused() {
    skip_without!("qemu-img");
    let disks = Disks::new();
    place::make_read_only(&disks.target);
    disks.assert_fails(3, "refused");
}

#[test]
fn a_target_on_a_read_only_file_system_is_refused() {
    skip_without!("qemu-img", "root");
    let mut disks = Disks::new();
    let mount = Mount::read_only(disks.dir.path());
    disks.target = mount.path().join("target.vhdx");
    disks.assert_fails(3, "refused");
}

#[test]
fn a_target_that_another_program_locks_is_refused() {
    skip_without!("qemu-img", "python3");
    let disks = Disks::new();
    let _holder = Holder::lock(&disks.target);
    disks.assert_fails(3, "refused");
}

#[test]
fn a_target_that_qemu_has_open_is_refused() {
    skip_without!("qemu-img", "qemu-io");
    let disks = Disks::new();
    let _holder = Holder::qemu(&disks.target, Dynamic(1));
    disks.assert_fails(3, "refused");
}

#[test]
fn a_source_that_qemu_writes_to_is_refused() {
    skip_without!("qemu-img", "qemu-io");
    let disks = Disks::new();
    let _holder = Holder::qemu(&disks.source, Dynamic(2));
    disks.assert_fails(3, "refused");
}

#[test]
fn a_target_of_another_sync_is_refused() {
    skip_without!("qemu-img");
    let disks = Disks::new();
    let mut first = cli::start(args(["sync", "--json"], &disks.source, &disks.target));
    first.stop_when_it_locks(&disks.target);

    let second = cli::sync(&disks.source, &disks.target).exits(3);

    report::assert_failure(&second.json(), "refused");
    let _ = second.error_line();
    first.signal("CONT");
    report::assert_done(&first.wait().exits(0).json());
}

#[test]
fn source_and_target_are_not_the_same_file() {
    skip_without!("qemu-img");
    let disks = Disks::new();
    let before = sha256::of_file(&disks.source);
    let link = disks.dir.path().join("link.vhdx");
    fs::hard_link(&disks.source, &link).expect("link");

    let run = cli::sync(&disks.source, &link).exits(3);

    report::assert_failure(&run.json(), "refused");
    assert_eq!(sha256::of_file(&disks.source), before);
}

#[test]
fn a_full_disk_is_an_error_of_this_host() {
    skip_without!("qemu-img", "root");
    let mut disks = Disks::new();
    let mount = Mount::small(8 << 20);
    disks.target = mount.path().join("new.vhdx");

    let run = cli::sync(&disks.source, &disks.target).exits(6);

    report::assert_failure(&run.json(), "failed");
    let _ = run.error_line();
    // What was copied waits for the same sync, under a name of its own, or goes with a roll-back.
    assert!(!disks.target.exists(), "a name before it is whole");
    assert_eq!(place::names(mount.path()).len(), 1);
    let _ = cli::failback(["rollback".as_ref(), disks.target.as_os_str()]).exits(0);
    assert_eq!(
        place::names(mount.path()),
        Vec::<String>::new(),
        "a sync that was given up left a file"
    );
}

#[test]
fn a_disk_that_fills_up_under_a_growing_target_is_an_error_of_this_host() {
    skip_without!("qemu-img", "root");
    let mut disks = Disks::new();
    let mount = Mount::small(8 << 20);
    disks.target = mount.path().join("old.vhdx");
    qemu::create(&disks.target, Dynamic(1), DISK_LEN);

    let run = cli::sync(&disks.source, &disks.target).exits(6);

    report::assert_failure(&run.json(), "failed");
    let _ = run.error_line();
    // What could be written is a sound image still.
    let info = cli::failback(["info".as_ref(), disks.target.as_os_str(), "--json".as_ref()]);
    let _ = info.exits(0);
}

#[test]
fn a_peer_that_vanishes_is_an_error_of_the_network() {
    skip_without!("qemu-img");
    assert_peer_fails(Manner::Vanishes);
}

#[test]
fn a_peer_that_sends_garbage_is_an_error_of_the_network() {
    skip_without!("qemu-img");
    assert_peer_fails(Manner::SendsGarbage);
}

#[test]
fn a_peer_that_stops_in_a_frame_is_an_error_of_the_network() {
    skip_without!("qemu-img");
    assert_peer_fails(Manner::EchoesHalf);
}

#[test]
fn nobody_at_the_address_is_an_error_of_the_network() {
    skip_without!("qemu-img");
    let disks = Disks::new();
    // Port 9 of the loopback (discard) is served nowhere.
    let run = cli::sync(&disks.source, "tcp://127.0.0.1:9/disk");
    disks.assert_failed(&run, 5, "failed");
}

#[test]
fn a_missing_source_is_an_error_of_this_host() {
    skip_without!("qemu-img");
    let mut disks = Disks::new();
    disks.source = disks.dir.path().join("nowhere.vhdx");
    let error = disks.assert_fails(6, "failed");
    assert_eq!(error["path"], disks.source.to_str().expect("UTF-8"));
}

#[test]
fn a_new_target_without_a_known_suffix_is_a_matter_of_usage() {
    skip_without!("qemu-img");
    let mut disks = Disks::new();
    disks.target = disks.dir.path().join("target.bin");
    let run = cli::sync(&disks.source, &disks.target).exits(2);
    assert!(run.error_line().contains("target.bin"), "{}", run.stderr);
    assert!(!disks.target.exists());
}

#[test]
fn wrong_usage_exits_with_2() {
    let wrong: [&[&str]; 7] = [
        &[],
        &["sink"],
        &["sync"],
        &["sync", "only-one"],
        &["sync", "a", "b", "--no-such-flag"],
        &["create", "x.vhdx", "--size", "5MB"],
        &[
            "serve",
            "--listen",
            "tcp://127.0.0.1:0",
            "--grant",
            "no-path",
        ],
    ];
    for args in wrong {
        let run = cli::failback(args).exits(2);
        assert!(
            !run.stderr.is_empty() && !run.stderr.contains("panicked"),
            "{args:?}"
        );
    }
    assert!(!Path::new("x.vhdx").exists());
}

#[test]
fn help_is_worth_reading() {
    let all = cli::failback(["--help"]).exits(0).stdout;
    for command in ["info", "create", "map", "sync", "verify", "serve"] {
        let own = cli::failback([command, "--help"]).exits(0).stdout;
        assert!(
            all.contains(command) && own.lines().count() > 5,
            "{command}: {own}"
        );
    }
}

fn assert_peer_fails(manner: Manner) {
    let disks = Disks::new();
    let run = cli::sync(&disks.source, peer::false_server(manner));
    disks.assert_failed(&run, 5, "failed");
    let run = cli::sync(peer::false_server(manner), &disks.target);
    disks.assert_failed(&run, 5, "failed");
}

/// A dynamic VHDX and an older copy of it.
struct Disks {
    dir: TempDir,
    source: PathBuf,
    target: PathBuf,
    /// Sum of the old target's file.
    intact: PathBuf,
}

impl Disks {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary folder");
        let names = ["disk.raw", "source.vhdx", "target.vhdx"];
        let [raw, source, target] = place::paths(dir.path(), names);
        disk::write_raw(&raw, DISK_LEN, 60, 1);
        qemu::convert(&raw, &target, Dynamic(1));
        disk::write_changes(&raw, &disk::changes(DISK_LEN, 100, 2));
        qemu::convert(&raw, &source, Dynamic(2));
        qemu::assert_identical((&raw, Raw), (&source, Dynamic(2)));
        fs::remove_file(raw).expect("remove");
        Self {
            dir,
            source,
            intact: target.clone(),
            target,
        }
    }

    /// Syncs, expects this failure and both files untouched; returns the error of the report.
    fn assert_fails(&self, code: i32, outcome: &str) -> Value {
        let sum = |path: &Path| path.exists().then(|| sha256::of_file(path));
        let before = (sum(&self.source), sum(&self.target), sum(&self.intact));

        let run = cli::sync(&self.source, &self.target);

        let error = self.assert_failed(&run, code, outcome);
        assert_eq!(
            (sum(&self.source), sum(&self.target), sum(&self.intact)),
            before
        );
        error
    }

    fn assert_failed(&self, run: &cli::Run, code: i32, outcome: &str) -> Value {
        assert_eq!(run.code, Some(code), "{}\n{}", run.stdout, run.stderr);
        let _ = run.error_line();
        report::assert_failure(&run.json(), outcome);
        assert!(self.dir.path().is_dir());
        run.json()["error"].clone()
    }
}

fn args<const N: usize>(first: [&str; N], source: &Path, target: &Path) -> Vec<PathBuf> {
    let mut args = Vec::from(first.map(PathBuf::from));
    args.extend([source.to_owned(), target.to_owned()]);
    args
}

fn cut(path: &Path, len: u64) {
    let file = fs::OpenOptions::new()
        .write(true)
        .open(path)
        .expect("image");
    file.set_len(len).expect("cut");
}
