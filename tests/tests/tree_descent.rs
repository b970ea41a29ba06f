//! Goal: where the saved maps of both sides are believed only what differs crosses the link,
//! whoever is where, and all of it comes right. Method: sparse disks with a page in each of some
//! small blocks, mapped after they were edited; syncs by the command, bytes by the report.
#![cfg(unix)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use failback_tests::agent::{Agent, Via};
use failback_tests::report::count;
use failback_tests::{cli, place, report};
use serde_json::Value;
use tempfile::TempDir;

const BLOCK: u64 = 64 << 10;
const SMALL: [&str; 2] = ["--block-size", "64K"];

/// Two raw disks, and what tells what each of their blocks holds.
struct Disks {
    dir: TempDir,
    source: PathBuf,
    target: PathBuf,
}

impl Disks {
    /// Disks of `blocks` blocks, of which every `every`th has a page that its side's seed tells.
    fn new(blocks: u64, every: u64, page: impl Fn(u64) -> [Option<u64>; 2]) -> Self {
        let dir = place::in_memory();
        let [source, target] = place::paths(dir.path(), ["source.raw", "target.raw"]);
        let files = [&source, &target].map(|path| File::create(path).expect("a new file"));
        for file in &files {
            file.set_len(blocks * BLOCK).expect("a sparse file");
        }
        for block in (0..blocks).step_by(usize::try_from(every).expect("a small number")) {
            for (file, seed) in files.iter().zip(page(block)) {
                if let Some(seed) = seed {
                    let at = block * BLOCK + (seed % 16) * 4096;
                    file.write_all_at(&page_of(seed), at).expect("room");
                }
            }
        }
        Self {
            dir,
            source,
            target,
        }
    }

    /// Makes the maps of both anew.
    fn map(&self) {
        for path in [&self.source, &self.target] {
            let args = ["map", text(path), "--save", "--json"];
            let made = cli::failback(args.iter().chain(&SMALL)).exits(0).json();
            assert_eq!(made["is_for_sync"], true);
        }
    }

    fn agent(&self) -> Agent {
        let grants = [
            format!("source={}:rw", self.source.display()),
            format!("target={}:rw", self.target.display()),
        ];
        Agent::start(Via::Unix, self.dir.path(), &grants)
    }

    fn assert_equal_by_full_read(&self) {
        let args = ["verify", text(&self.source), text(&self.target)];
        let _equal = cli::failback(args.iter().chain(&SMALL)).exits(0);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn page_of(seed: u64) -> [u8; 4096] {
    let mut page = [0; 4096];
    for (at, word) in (0_u64..).zip(page.chunks_exact_mut(8)) {
        let mixed = (seed << 9 | at | 1 << 63).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&mixed.to_le_bytes());
    }
    page
}

fn sync(source: &str, target: &str, more: &[&str]) -> Value {
    let args = ["sync", source, target, "--json"];
    let args = args.iter().chain(&SMALL).chain(more);
    let report = cli::failback(args).exits(0).json();
    report::assert_done(&report);
    for side in ["/map/source/state", "/map/target/state"] {
        assert_eq!(report.pointer(side), Some(&"trusted".into()), "{report}");
    }
    report
}

// A stream of all hashes has 280 KiB here: 2 Ki blocks of data, and the runs between them.
#[test]
fn three_blocks_of_a_tebibyte_cost_some_kilobytes() {
    const BLOCKS: u64 = 1 << 24;
    let disks = Disks::new(BLOCKS, 1 << 13, |block| [Some(block), Some(block)]);
    let agent = disks.agent();
    let [source, target] = ["source", "target"].map(|name| agent.endpoint(name));
    let ends = [
        (text(&disks.source), target.as_str()),
        (source.as_str(), text(&disks.target)),
        (source.as_str(), target.as_str()),
        (text(&disks.source), text(&disks.target)),
    ];
    for (round, (from, to)) in (1_u64..).zip(ends) {
        for block in [3, BLOCKS / 2 + 7 * round, BLOCKS - 1] {
            place::scribble(&disks.source, block * BLOCK + round * 4096, b"new");
        }
        disks.map();

        let report = sync(from, to, &["--verify", "changed"]);

        assert_eq!(count(&report, "/blocks/differing"), 3, "{report}");
        let wire = count(&report, "/bytes/wire_out") + count(&report, "/bytes/wire_in");
        // 16 digests for each of 6 steps to each block: 9 KiB; sums and pages: 15 KiB; words.
        let links = if from == source && to == target { 2 } else { 1 };
        assert!(wire < links * (32 << 10), "{wire} bytes on the wire");
    }
    disks.assert_equal_by_full_read();
}

// More blocks differ than may be unsettled at a time, and in all ways.
#[test]
fn very_many_blocks_that_differ_come_right() {
    const BLOCKS: u64 = 25 << 10;
    for apply in ["in-place", "stage"] {
        let disks = Disks::new(BLOCKS, 1, |block| match block % 5 {
            _ if block < BLOCKS / 2 => [Some(block), Some(block + BLOCKS)],
            _ if block < BLOCKS * 3 / 4 => [None, Some(block)],
            0 => [Some(block), None],
            1 => [None, None],
            _ => [Some(block), Some(block)],
        });
        disks.map();
        let agent = disks.agent();

        let report = sync(
            text(&disks.source),
            &agent.endpoint("target"),
            &["--apply", apply],
        );

        let differing = BLOCKS / 2 + BLOCKS / 4 + BLOCKS / 4 / 5;
        assert_eq!(count(&report, "/blocks/differing"), differing, "{report}");
        disks.assert_equal_by_full_read();
    }
}
