//! Goal: a target becomes equal to its source whatever the two formats are, and a second run sends
//! nothing. Method: the target is an older copy of which 1,000 scattered pages changed since; QEMU
//! and 7-Zip judge.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};

use failback_tests::qemu::Format::{self, Dynamic, Fixed, Raw, VhdDynamic, VhdFixed};
use failback_tests::{cli, disk, place, qemu, report, sevenzip, sha256, skip_without};
use tempfile::TempDir;

const DISK_LEN: u64 = 192 << 20;
/// Of one of many pairs: three of the largest blocks.
const PAIR_LEN: u64 = 96 << 20;
const CHANGES: usize = 1_000;

macro_rules! pairs {
    ($($name:ident: $source:expr => $target:expr;)+) => {$(
        #[test]
        fn $name() {
            skip_without!("qemu-img", "7zz");
            let pair = Pair::new($source, $target, PAIR_LEN);
            pair.assert_syncs();
        }
    )+};
}

pairs! {
    raw_to_raw: Raw => Raw;
    raw_to_small_blocks: Raw => Dynamic(1);
    raw_to_large_blocks: Raw => Dynamic(32);
    raw_to_fixed: Raw => Fixed;
    small_blocks_to_raw: Dynamic(1) => Raw;
    small_blocks_to_small_blocks: Dynamic(1) => Dynamic(1);
    small_blocks_to_large_blocks: Dynamic(1) => Dynamic(32);
    small_blocks_to_fixed: Dynamic(1) => Fixed;
    large_blocks_to_raw: Dynamic(32) => Raw;
    large_blocks_to_small_blocks: Dynamic(32) => Dynamic(1);
    large_blocks_to_large_blocks: Dynamic(32) => Dynamic(32);
    large_blocks_to_fixed: Dynamic(32) => Fixed;
    fixed_to_raw: Fixed => Raw;
    fixed_to_small_blocks: Fixed => Dynamic(1);
    fixed_to_large_blocks: Fixed => Dynamic(32);
    fixed_to_fixed: Fixed => Fixed;
    raw_to_dynamic_vhd: Raw => VhdDynamic;
    raw_to_fixed_vhd: Raw => VhdFixed;
    vhdx_to_dynamic_vhd: Dynamic(32) => VhdDynamic;
    vhdx_to_fixed_vhd: Dynamic(1) => VhdFixed;
    dynamic_vhd_to_raw: VhdDynamic => Raw;
    dynamic_vhd_to_vhdx: VhdDynamic => Dynamic(1);
    dynamic_vhd_to_fixed_vhd: VhdDynamic => VhdFixed;
    fixed_vhd_to_vhdx: VhdFixed => Dynamic(32);
    fixed_vhd_to_dynamic_vhd: VhdFixed => VhdDynamic;
}

#[test]
fn only_dirty_pages_travel() {
    skip_without!("qemu-img");
    let pair = Pair::new(Dynamic(2), Dynamic(2), DISK_LEN);

    let done = cli::sync(&pair.source, &pair.target).exits(0).json();

    let changed = report::count(&done, "/bytes/changed");
    let most = (CHANGES * disk::PAGE_LEN) as u64;
    // A new page can happen to equal the old one only where both are the same run of text: never.
    assert_eq!(changed, most);
    assert!(
        report::count(&done, "/bytes/sent") <= most + most / 8,
        "{done}"
    );
    assert!(report::count(&done, "/bytes/written") <= 2 * most, "{done}");
}

#[test]
fn a_missing_target_is_made_by_its_suffix() {
    skip_without!("qemu-img", "7zz");
    for (name, format) in [
        ("new.vhdx", Dynamic(2)),
        ("new.vhd", VhdFixed),
        ("new.raw", Raw),
        ("new.img", Raw),
    ] {
        let pair = Pair::new(Dynamic(2), Raw, DISK_LEN);
        let target = pair.dir.path().join(name);

        let done = cli::sync(&pair.source, &target).exits(0).json();

        report::assert_done(&done);
        assert_eq!(done["target"]["format"], format.name());
        qemu::assert_identical((&pair.source, Dynamic(2)), (&target, format));
        qemu::assert_clean(&target, format);
    }
}

#[test]
fn a_small_block_of_a_vhd_is_no_block_of_a_vhdx() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let [source, target] = place::paths(dir.path(), ["a.vhd", "b.vhdx"]);
    let made = ["create", "--kind=dynamic", "--block-size=512K", "--size=9M"].map(as_str);
    let _ = cli::failback(made.into_iter().chain([source.as_path()])).exits(0);

    let run = cli::sync(&source, &target).exits(0);

    report::assert_done(&run.json());
}

#[test]
fn a_disk_with_large_sectors_becomes_no_vhd() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let [source, target] = place::paths(dir.path(), ["a.vhdx", "b.vhd"]);
    let made = ["create", "--sector-size=4096", "--size=9M"].map(as_str);
    let _ = cli::failback(made.into_iter().chain([source.as_path()])).exits(0);

    let run = cli::sync(&source, &target).exits(3);

    report::assert_failure(&run.json(), "refused");
    assert_eq!(place::names(dir.path()), ["a.vhdx"]);
}

#[test]
fn a_new_vhd_is_what_azure_takes() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let image = dir.path().join("a.vhd");

    let run = cli::failback([
        as_str("create"),
        &image,
        as_str("--size=20M"),
        as_str("--json"),
    ]);

    let said = run.exits(0).json();
    assert_eq!(said["vhd"]["kind"], "fixed");
    assert_eq!(said["vhd"]["size_rule"], "current_size");
    assert_eq!(said["vhd"]["warnings"], serde_json::json!([]));
    assert_eq!(fs::metadata(&image).expect("image").len(), (20 << 20) + 512);
}

#[test]
fn a_target_is_not_densified() {
    skip_without!("qemu-img");
    let dir = tempfile::tempdir().expect("temporary folder");
    let [raw, source, target] = place::paths(dir.path(), ["a.raw", "a.vhdx", "b.vhdx"]);
    disk::write_raw(&raw, 1 << 20, 100, 3);
    fs::OpenOptions::new()
        .write(true)
        .open(&raw)
        .and_then(|file| file.set_len(1 << 33))
        .expect("8 GiB");
    qemu::convert(&raw, &source, Dynamic(2));

    let run = cli::sync(&source, &target).exits(0);

    report::assert_done(&run.json());
    assert!(fs::metadata(&target).expect("target").len() < 32 << 20);
}

#[test]
fn a_second_run_over_a_gib_sends_less_than_64_kib() {
    skip_without!("qemu-img", "7zz");
    let pair = Pair::new(Dynamic(2), Dynamic(32), 1 << 30);
    pair.assert_syncs();
}

#[test]
fn zeros_replace_old_data() {
    skip_without!("qemu-img");
    let dir = tempfile::tempdir().expect("temporary folder");
    let [raw, source, target] = place::paths(dir.path(), ["a.raw", "a.vhdx", "b.vhdx"]);
    disk::write_raw(&raw, DISK_LEN, 60, 5);
    qemu::convert(&raw, &target, Dynamic(1));
    qemu::create(&source, Dynamic(32), DISK_LEN);

    let done = cli::sync(&source, &target).exits(0).json();

    report::assert_done(&done);
    assert_eq!(report::count(&done, "/bytes/sent"), 0);
    assert!(report::count(&done, "/blocks/zeroed") > 0);
    qemu::assert_identical((&source, Dynamic(32)), (&target, Dynamic(1)));
    qemu::assert_clean(&target, Dynamic(1));
}

#[test]
fn verify_tells_equal_from_different() {
    skip_without!("qemu-img");
    let pair = Pair::new(Dynamic(1), Raw, DISK_LEN);

    let before = cli::failback([
        as_str("verify"),
        &pair.source,
        &pair.target,
        as_str("--json"),
    ]);
    let before = before.exits(1).json();
    let _ = cli::sync(&pair.source, &pair.target).exits(0);
    let after = cli::failback([
        as_str("verify"),
        &pair.source,
        &pair.target,
        as_str("--json"),
    ]);
    let after = after.exits(0).json();

    assert_eq!(before["outcome"], "different");
    assert_eq!(after["outcome"], "equal");
    assert_eq!(after["root"]["source"], after["root"]["target"]);
}

#[test]
fn the_root_is_the_same_in_every_format() {
    skip_without!("qemu-img");
    let dir = tempfile::tempdir().expect("temporary folder");
    let raw = dir.path().join("a.raw");
    disk::write_raw(&raw, DISK_LEN, 40, 9);
    let images = [Dynamic(1), Dynamic(32), Fixed, VhdDynamic, VhdFixed].map(|format| {
        let image = dir.path().join(format!("{format:?}.vhdx"));
        qemu::convert(&raw, &image, format);
        image
    });

    let roots = images.map(|image| root_of(&image));

    assert_eq!(roots, [(); 5].map(|()| root_of(&raw)));
}

/// A source, and a target that is an older copy of it.
struct Pair {
    dir: TempDir,
    source: PathBuf,
    target: PathBuf,
    formats: (Format, Format),
    /// Sum of the source's content.
    content: String,
}

impl Pair {
    fn new(source_format: Format, target_format: Format, len: u64) -> Self {
        let dir = tempfile::tempdir().expect("temporary folder");
        let [raw, source, target] = place::paths(dir.path(), ["disk", "source", "target"]);
        disk::write_raw(&raw, len, if len > DISK_LEN { 10 } else { 45 }, 1);
        qemu::convert(&raw, &target, target_format);
        disk::write_changes(&raw, &disk::changes(len, CHANGES, 2));
        qemu::convert(&raw, &source, source_format);
        let content = sha256::of_file(&raw);
        fs::remove_file(raw).expect("remove");
        Self {
            dir,
            source,
            target,
            formats: (source_format, target_format),
            content,
        }
    }

    fn assert_syncs(&self) {
        let source_file = sha256::of_file(&self.source);

        let first = cli::sync(&self.source, &self.target).exits(0).json();
        report::assert_done(&first);
        assert!(report::count(&first, "/bytes/written") > 0, "{first}");
        self.assert_equal();
        let target_file = sha256::of_file(&self.target);

        let second = cli::sync(&self.source, &self.target).exits(0).json();
        report::assert_nothing_sent(&second);
        assert_eq!(first["root"], second["root"]);
        assert_eq!(
            sha256::of_file(&self.source),
            source_file,
            "the source file changed"
        );
        assert_eq!(
            sha256::of_file(&self.target),
            target_file,
            "an equal target was written to"
        );
    }

    fn assert_equal(&self) {
        let (source, target) = (&self.source, &self.target);
        qemu::assert_identical((source, self.formats.0), (target, self.formats.1));
        qemu::assert_clean(target, self.formats.1);
        assert_eq!(
            sevenzip::content_sha256(target, self.formats.1),
            self.content
        );
    }
}

fn root_of(image: &Path) -> String {
    let run = cli::failback([as_str("map"), image, as_str("--json")]).exits(0);
    run.json()["root"].as_str().expect("root").to_owned()
}

fn as_str(text: &str) -> &Path {
    Path::new(text)
}
