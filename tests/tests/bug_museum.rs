//! Goal: what bit other programs does not bite this one. Method: each of their bugs as a small
//! case, held against bytes that the test wrote itself, or against QEMU.
//!
//! | seen in | here, or where it is tested already |
//! |---|---|
//! | bdsync #39: last byte of a zero block | `bdsync_39_*`; `engine/src/hash.rs` |
//! | nbdcopy CVE-2022-0485, migratekit | `syscall_faults.rs` (each kind), `power_cuts.rs` |
//! | zsync2 #85, coldsnap: sizes | `zsync2_85_*` |
//! | zfs hole_birth, VMware KB 2090639 | `hole_birth_*` (past 128 GB, 2 TB); no tracker yet |
//! | rsync #217, owncloud #6382 | `rsync_217_*` |
//! | rsync #799, #152 | `sync_formats.rs` (not densified), `block_device.rs` (not truncated) |
//! | longhorn #2507, ovirt-imageio #76 | `longhorn_2507_*` (many holes), `huge_disk.rs` (64 TiB) |
//! | longhorn #8737, migratekit #22 | `longhorn_8737_*`, `resume.rs` |
//! | desync #178, dattobd #209 | not applicable yet: no map is trusted, nothing tracks |
//! | amis #123, Azure `conectix` | `amis_123_*`; `engine/tests/vhd_image.rs` |
//! | velero #10302, mayastor #1806 | `velero_10302_*`, `resume.rs`; no planner yet |
//! | DRBD 9.2.17, crucible #1146, #893 | not applicable yet: one link, no live copies |
//! | QEMU #727: growth | `power_cuts.rs` (QEMU reads, checks), `vhdx/tests/crash_states` |
//! | VHDX identity | `identity_*`; log, headers, parents: `vhdx/tests/mutations.rs`, `chains.rs` |
//! | rsync CVE-2024-12084, -12085 | `fuzz` (`wire_frames`), `transport/tests` |
//! | UrBackup #148, syncthing #10388 | `urbackup_148_*` |
//!
//! `FAILBACK_HOLES=1000000` and `FAILBACK_EQUAL_BLOCKS=65536` make the cases larger.
#![cfg(unix)]
#![allow(clippy::print_stderr, reason = "the measured numbers are asked for")]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use failback_tests::agent::{Agent, Via};
use failback_tests::cli::{self, Run};
use failback_tests::disk::{self, PAGE_LEN};
use failback_tests::kill::{self, count_from, wait_until_free};
use failback_tests::middleman::{Direction, Harm, Middleman};
use failback_tests::qemu::Format::{Dynamic, Raw, VhdDynamic, VhdFixed};
use failback_tests::report::{self, count};
use failback_tests::scene::{LOG, Scene, args_of};
use failback_tests::{place, qemu, skip_without, state};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;
/// Blocks of a disk of zeros.
const BLOCKS: u64 = 32;
const BLOCK_SIZES: [&str; 7] = ["64K", "128K", "256K", "512K", "1M", "2M", "4M"];
/// What at most is sent again.
const WINDOW: u64 = 16 * MIB;

// Every block of the source is zero but for one byte, which goes round: first, last, at each side
// of each page's edge. Then the same the other way: the target has it, the source has zeros.
#[test]
fn bdsync_39_one_byte_in_a_block_of_zeros() {
    BLOCK_SIZES.into_iter().zip(0..).for_each(|(name, shift)| {
        let block = (64 * KIB) << shift;
        let pair = Pair::new_in(place::in_memory(), BLOCKS * block);
        let places = odd_places(block);
        pair.write_source(
            (0..BLOCKS).map(|at| at * block + places[index(at * 7 + shift) % places.len()]),
            0x80,
        );

        let there = pair.sync(&["--block-size", name]).exits(0).json();
        pair.assert_equal();
        pair.zero_source();
        let back = pair.sync(&["--block-size", name]).exits(0).json();
        pair.assert_equal();

        assert_eq!(count(&there, "/blocks/differing"), BLOCKS, "{name}");
        assert_eq!(count(&back, "/blocks/differing"), BLOCKS, "{name}");
    });
}

// Disks that end a sector or a byte beside a block, whose last byte differs.
#[test]
fn zsync2_85_sizes_beside_a_block() {
    let lens = [1, 3].into_iter().flat_map(|blocks| {
        [-512, -1, 0, 1, 512].map(|more: i64| (blocks * 64 * KIB).strict_add_signed(more))
    });
    lens.chain([1, 511, 513, MIB - 1, MIB + 1]).for_each(|len| {
        let pair = Pair::new(len);
        pair.write_source([len - 1], 0x7f);
        let missing = pair.dir.path().join("new.raw");

        let _ = pair.sync(&["--block-size", "64K"]).exits(0);
        let new = cli::sync(&pair.source, &missing).exits(0);

        pair.assert_equal();
        let same =
            fs::read(&missing).expect("new target") == fs::read(&pair.source).expect("source");
        assert!(same, "{len}");
        report::assert_done(&new.json());
    });
}

// Random writes and holes on a sparse disk of 5 TiB, near the places where others counted wrong.
// The oracle is what the test wrote; nobody asks the file system what changed.
#[test]
fn hole_birth_writes_and_holes_past_two_terabytes() {
    skip_without!("fallocate", "qemu-img", "qemu-io");
    let edges = [
        0,
        4 << 30,
        128 << 30,
        TIB,
        2 * TIB,
        4 * TIB,
        5 * TIB - 4 * MIB,
    ];
    let pair = Pair::new(5 * TIB);
    let vhdx = pair.dir.path().join("target.vhdx");
    let mut rng = StdRng::seed_from_u64(95);
    let mut oracle = BTreeMap::new();

    (0..4).for_each(|round| {
        (0..25).for_each(|_| {
            let edge = edges[rng.random_range(0..edges.len())];
            let at = (edge + rng.random_range(0..32) * 64 * KIB).saturating_sub(MIB);
            let byte = rng.random_range(0..4_u8) * 40;
            pair.fill_source(at, 64 * KIB, byte);
            oracle.insert(at, byte);
        });
        let _ = pair.sync(&["--strategy", "delta"]).exits(0);
        let _ = cli::sync(&pair.source, &vhdx).exits(0);

        let reads = oracle
            .iter()
            .map(|(at, byte)| format!("read -q -P {byte} {at} 64k"));
        let reads = reads.collect::<Vec<_>>();
        qemu::io(&pair.target, Raw, &reads);
        qemu::io(&vhdx, Dynamic(32), &reads);
        let stored = fs::metadata(&pair.target).expect("target").blocks() * 512;
        assert!(
            stored < 64 * MIB,
            "round {round}: {stored} bytes are stored"
        );
    });
}

// Blocks that are all the same on each side, and differ: whoever looks matches up by content has
// them all in one bucket. Four times as many may take four times as long, not sixteen.
#[test]
fn rsync_217_equal_blocks_take_linear_time() {
    let most = count_from("FAILBACK_EQUAL_BLOCKS", 4096) as u64;
    let took = [most / 4, most].map(|blocks| {
        let memory = place::in_memory();
        let pair = Pair::new_in(memory, blocks * 64 * KIB);
        pair.fill_source(0, blocks * 64 * KIB, 0xaa);
        fill(&pair.target, 0, blocks * 64 * KIB, 0x55);
        let run = pair.sync(&["--block-size", "64K", "--no-undo"]).exits(0);
        assert_eq!(count(&run.json(), "/blocks/differing"), blocks);
        eprintln!(
            "{blocks} equal blocks: {:?}, {:?} of them at work",
            run.took, run.cpu
        );
        run.cpu
    });
    // Twice as much is noise.
    let linear = took[0] * 4 + Duration::from_millis(200);
    assert!(took[1] < linear * 2, "{took:?}");
}

// Data and holes by turns: a list of extents that is asked for again and again, or kept, grows
// without bound.
#[test]
fn longhorn_2507_many_holes() {
    let holes = count_from("FAILBACK_HOLES", 20_000) as u64;
    let pair = Pair::new_in(place::in_memory(), holes * 64 * KIB);
    pair.write_source((0..holes).map(|hole| hole * 64 * KIB + 4 * KIB), 1);

    let first = pair.sync(&[]).exits(0);
    let second = pair.sync(&[]).exits(0);

    report::assert_nothing_sent(&second.json());
    let stored = |path: &Path| fs::metadata(path).expect("disk").blocks();
    let (there, here) = (stored(&pair.source), stored(&pair.target));
    eprintln!(
        "{holes} holes: {:?}, then {:?}; {there} and {here} sectors",
        first.cpu, second.cpu
    );
    assert!(here <= there * 2, "the target was densified");
    let most = Duration::from_millis(4000 + holes);
    assert!(first.cpu < most && second.cpu < most);
    assert!(first.peak_bytes.max(second.peak_bytes) < 256 * MIB);
}

#[test]
fn longhorn_8737_cut_at_99_percent_does_not_begin_anew() {
    let pair = Pair::new_in(place::in_memory(), 128 * MIB);
    let mut bytes = vec![0; index(128 * MIB)];
    StdRng::seed_from_u64(96).fill(&mut bytes[..]);
    fs::write(&pair.source, &bytes).expect("source");
    let missing = pair.dir.path().join("new.raw");
    [&pair.target, &missing].into_iter().for_each(|target| {
        let grant = format!("disk={}:rw,max=1G", target.display());
        let agent = Agent::start(Via::Tcp, pair.dir.path(), &[grant]);
        let middleman = Middleman::before(agent.address());
        let endpoint = PathBuf::from(middleman.endpoint("disk"));
        let args = args_of(
            "sync",
            &[&pair.source, &endpoint],
            &["--json", "--compress", "off"],
        );

        middleman.harm_next(Some(Harm::Cut(Direction::ToAgent, 128 * MIB / 100 * 99)));
        let _ = cli::failback(&args).exits(5);
        wait_until_free(target);
        let again = cli::failback(&args).exits(0).json();

        let sent = count(&again, "/bytes/sent");
        eprintln!("{}: {sent} of {} sent again", target.display(), 128 * MIB);
        assert!(sent <= WINDOW + 2 * MIB, "{again}");
        assert!(fs::read(target).expect("target") == bytes);
    });
}

#[test]
fn amis_123_a_vhd_under_another_name_is_a_vhd() {
    skip_without!("qemu-img");
    let (dir, raw) = small_disk();
    let root = state::root_of(&raw);
    [VhdFixed, VhdDynamic].into_iter().for_each(|format| {
        let named_raw = dir.path().join("image.raw");
        qemu::convert(&raw, &named_raw, format);

        let run = cli::failback(args_of("info", &[&named_raw], &["--json"])).exits(0);

        assert_eq!(run.json()["format"], "vhd");
        assert_eq!(state::root_of(&named_raw), root);
        fs::remove_file(named_raw).expect("remove");
    });
}

#[test]
fn amis_123_a_raw_disk_is_no_vhd_and_a_dynamic_one_not_fixed() {
    skip_without!("qemu-img");
    let (dir, raw) = small_disk();
    let named_vhd = dir.path().join("image.vhd");
    fs::copy(&raw, &named_vhd).expect("copy");
    assert_not_read(&named_vhd, 4);

    fs::remove_file(&named_vhd).expect("remove");
    qemu::convert(&raw, &named_vhd, VhdDynamic);
    let len = fs::metadata(&named_vhd).expect("image").len();
    // Disk type and sum of the footer at the end; its copy at the start says dynamic still.
    let mut footer = place::bytes_at(&named_vhd, len - 512, 512);
    footer[60..68].copy_from_slice(&[0, 0, 0, 2, 0, 0, 0, 0]);
    let sum = !footer.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    footer[64..68].copy_from_slice(&sum.to_be_bytes());
    place::scribble(&named_vhd, len - 512, &footer);
    assert_not_read(&named_vhd, 4);
}

#[test]
fn amis_123_a_missing_footer_is_told_and_its_copy_read() {
    skip_without!("qemu-img");
    let (dir, raw) = small_disk();
    let image = dir.path().join("image.vhd");
    qemu::convert(&raw, &image, VhdDynamic);
    let len = fs::metadata(&image).expect("image").len();
    let file = OpenOptions::new().write(true).open(&image);
    file.and_then(|file| file.set_len(len - 512)).expect("cut");

    let run = cli::failback(args_of("info", &[&image], &["--json"])).exits(0);

    assert_eq!(state::root_of(&image), state::root_of(&raw));
    assert!(
        run.stdout
            .contains("its copy at the start stands in for it"),
        "{}",
        run.stdout
    );
}

#[test]
fn velero_10302_a_stage_that_does_not_fit_has_its_reason() {
    skip_without!("qemu-img");
    let scene = Scene::new(Raw, 97).in_this_way(LOG);
    kill::cut_when_staged(&scene, 8 * MIB, &[]);

    let run = scene.sync(&["--json", "--hash", "xxh3"]).exits(0).json();

    let reasons = run["reasons"].as_array().expect("reasons");
    assert!(
        reasons.iter().any(|reason| reason == "options_changed"),
        "{run}"
    );
    assert_eq!(count(&run, "/blocks/resumed"), 0);
    qemu::assert_identical((&scene.target, Raw), (&scene.source, Raw));
}

#[test]
fn velero_10302_a_way_that_cannot_be_had_is_refused_by_name() {
    let pair = Pair::new(MIB);
    pair.write_source([77], 1);
    let other_name = pair.dir.path().join("other");
    fs::hard_link(&pair.target, &other_name).expect("link");

    let asked = pair
        .sync(&["--strategy", "full", "--stage", "file"])
        .exits(3);
    let auto = pair.sync(&["--strategy", "full"]).exits(0).json();

    report::assert_failure(&asked.json(), "refused");
    assert_eq!(auto["stage"], "log", "{auto}");
    assert!(fs::read(other_name).expect("link") == fs::read(&pair.source).expect("source"));
}

// Same GUIDs, other data: somebody edited the file behind the format's back.
#[test]
fn identity_equal_ids_do_not_stand_for_equal_data() {
    skip_without!("qemu-img");
    let (dir, raw) = small_disk();
    let [source, target] = place::paths(dir.path(), ["source.vhdx", "target.vhdx"]);
    qemu::convert(&raw, &source, Dynamic(1));
    fs::copy(&source, &target).expect("copy");
    let image = fs::read(&target).expect("target");
    let data = disk::first_data(&image, &fs::read(&raw).expect("raw"));
    place::scribble(&target, data + 3 * KIB, b"edited behind the format's back");

    let run = cli::sync(&source, &target).exits(0).json();

    assert_eq!(count(&run, "/blocks/differing"), 1);
    qemu::assert_identical((&target, Dynamic(1)), (&raw, Raw));
}

// Other GUIDs, same data: nothing but hashes travels, and the image keeps its ids.
#[test]
fn identity_other_ids_do_not_stand_for_other_data() {
    skip_without!("qemu-img");
    let (dir, raw) = small_disk();
    let [source, target] = place::paths(dir.path(), ["source.vhdx", "target.vhdx"]);
    qemu::convert(&raw, &source, Dynamic(1));
    qemu::convert(&raw, &target, Dynamic(1));
    let before = fs::read(&target).expect("target");
    assert!(
        before != fs::read(&source).expect("source"),
        "QEMU gives each its ids"
    );

    let run = cli::sync(&source, &target).exits(0).json();

    report::assert_nothing_sent(&run);
    assert!(before == fs::read(&target).expect("target"));
}

// One page of each MiB, in a disk of 64 MiB: what travels is these pages and little else. A release
// that sends more has to say why.
#[test]
fn urbackup_148_what_a_small_change_costs_does_not_grow() {
    let pair = Pair::new(64 * MIB);
    let mut bytes = vec![0; index(64 * MIB)];
    let mut rng = StdRng::seed_from_u64(98);
    rng.fill(&mut bytes[..]);
    fs::write(&pair.target, &bytes).expect("target");
    for page in (0..64).map(|block| index(block * MIB) + 37 * PAGE_LEN) {
        rng.fill(&mut bytes[page..page + PAGE_LEN]);
    }
    fs::write(&pair.source, &bytes).expect("source");
    let grant = format!("disk={}:rw", pair.target.display());
    let agent = Agent::start(Via::Unix, pair.dir.path(), &[grant]);
    let endpoint = PathBuf::from(agent.endpoint("disk"));

    let run = cli::sync(&pair.source, &endpoint).exits(0).json();

    let [out, back] = ["/bytes/wire_out", "/bytes/wire_in"].map(|field| count(&run, field));
    let pages = 64 * PAGE_LEN as u64;
    eprintln!("{pages} bytes changed: {out} out, {back} back");
    assert_eq!(count(&run, "/bytes/changed"), pages);
    // Each differing block is asked for with the names of its 16 pieces, 8 bytes each, so that only
    // the 16 sums of one piece come back, where it were 256; and a hash of 32 bytes of any block.
    assert!(out < pages + 64 * 16 * 8 + WIRE_OUT_MAX, "{out}");
    assert!(back < 64 * (16 * 8 + 32) + WIRE_BACK_MAX, "{back}");
}

/// Bytes around the pages, and around sums and hashes: heads of messages, the session.
const WIRE_OUT_MAX: u64 = 12 * KIB;
const WIRE_BACK_MAX: u64 = 6 * KIB;

/// Two sparse raw disks.
struct Pair {
    dir: TempDir,
    source: PathBuf,
    target: PathBuf,
}

impl Pair {
    fn new(len: u64) -> Self {
        Self::new_in(tempfile::tempdir().expect("folder"), len)
    }

    fn new_in(dir: TempDir, len: u64) -> Self {
        let [source, target] = place::paths(dir.path(), ["source.raw", "target.raw"]);
        for path in [&source, &target] {
            let file = File::create(path).and_then(|file| file.set_len(len));
            file.expect("sparse disk");
        }
        Self {
            dir,
            source,
            target,
        }
    }

    fn sync(&self, more: &[&str]) -> Run {
        let more = [&["--json"], more].concat();
        cli::failback(args_of("sync", &[&self.source, &self.target], &more))
    }

    /// One byte at each place.
    fn write_source(&self, places: impl IntoIterator<Item = u64>, byte: u8) {
        let file = OpenOptions::new()
            .write(true)
            .open(&self.source)
            .expect("source");
        for at in places {
            file.write_all_at(&[byte], at).expect("byte");
        }
    }

    /// Bytes, or a hole for zeros.
    fn fill_source(&self, at: u64, len: u64, byte: u8) {
        match byte {
            0 => {
                let range = [format!("--offset={at}"), format!("--length={len}")];
                let path = self.source.to_str().expect("UTF-8").to_owned();
                let args = ["--punch-hole".to_owned()].into_iter().chain(range);
                failback_tests::tools::run("fallocate", args.chain([path]));
            }
            byte => fill(&self.source, at, len, byte),
        }
    }

    fn zero_source(&self) {
        let len = fs::metadata(&self.source).expect("source").len();
        let file = OpenOptions::new().write(true).open(&self.source);
        file.and_then(|file| file.set_len(0).and_then(|()| file.set_len(len)))
            .expect("zeros");
    }

    fn assert_equal(&self) {
        let same =
            fs::read(&self.source).expect("source") == fs::read(&self.target).expect("target");
        assert!(same, "source and target differ");
    }
}

fn fill(path: &Path, at: u64, len: u64, byte: u8) {
    let file = OpenOptions::new().write(true).open(path).expect("disk");
    let piece = vec![byte; index(len.min(MIB))];
    for at in (at..at + len).step_by(piece.len()) {
        file.write_all_at(&piece, at).expect("bytes");
    }
}

/// Places of a block at which a byte is overlooked easily.
fn odd_places(block: u64) -> Vec<u64> {
    let page = PAGE_LEN as u64;
    let pages = (0..block / page)
        .step_by(index(block / page / 16))
        .map(|at| at * page);
    let edges = pages.flat_map(|at| [at, at + 1, at + page / 2 + 13, at + page - 1]);
    edges.chain([block - 1, block - 2, 31, 63]).collect()
}

/// A raw disk of whole MiB with data.
fn small_disk() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("folder");
    let raw = dir.path().join("disk.raw");
    disk::write_raw(&raw, 6 * MIB, 80, 99);
    (dir, raw)
}

fn assert_not_read(image: &Path, code: i32) {
    let target = image.with_file_name("copy.raw");
    let run = cli::sync(image, &target).exits(code);
    report::assert_failure(&run.json(), "failed");
    assert!(!target.exists());
}

fn index(at: u64) -> usize {
    usize::try_from(at).expect("fits in memory")
}
