//! Goal: what travels follows what a guest wrote: 1,000 pages of 4 KiB, scattered over 16 GiB, cost
//! their compressed bytes, a tenth more, and 3 MB. Method: two sparse raw files with 64 KiB of the
//! same data around each page, target behind an agent; bytes as the report counts them, both ways.
#![cfg(unix)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use failback_tests::agent::{Agent, Via};
use failback_tests::report::count;
use failback_tests::{cli, place, report};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

const SIZE: u64 = 16 << 30;
const PLACES: u64 = 1_000;
const PAGE: usize = 4 << 10;
const AROUND: u64 = 64 << 10;
const OVERHEAD_MAX: u64 = 3_000_000;
const PEAK_MAX: u64 = 256 << 20;

#[test]
fn random_pages_cost_what_they_are() {
    let sent = wire_bytes(|page| {
        let seed = page[..8].try_into().map(u64::from_le_bytes);
        SmallRng::seed_from_u64(seed.expect("8 bytes")).fill_bytes(page);
    });
    let pages = PLACES * PAGE as u64;
    assert!(sent > pages, "{sent} bytes for {pages} that do not shrink");
    assert!(sent <= pages * 11 / 10 + OVERHEAD_MAX, "{sent} bytes");
}

// Compressed they are next to nothing.
#[test]
fn pages_of_text_cost_next_to_nothing() {
    let words = b"the quick brown fox jumps over the lazy dog, and does so again; ";
    let sent = wire_bytes(|page| {
        page.chunks_mut(words.len())
            .for_each(|line| line.copy_from_slice(&words[..line.len()]));
    });
    assert!(sent <= OVERHEAD_MAX, "{sent} bytes");
}

/// Makes a page from the one that was there.
type Page<'a> = dyn Fn(&mut [u8]) + 'a;

/// Both ways, of a sync over TCP with all defaults.
fn wire_bytes(fill: impl Fn(&mut [u8])) -> u64 {
    let dir = tempfile::tempdir().expect("temporary folder");
    let [source, target] = place::paths(dir.path(), ["source.raw", "target.raw"]);
    make(&source, Some(&fill));
    make(&target, None);
    let grant = format!("disk={}:rw", target.display());
    let agent = Agent::start(Via::Tcp, dir.path(), &[grant]);

    let run = cli::sync(&source, agent.endpoint("disk")).exits(0);

    let told = run.json();
    report::assert_done(&told);
    assert_eq!(
        count(&told, "/bytes/changed"),
        PLACES * PAGE as u64,
        "{told}"
    );
    let wire = count(&told, "/bytes/wire_out") + count(&told, "/bytes/wire_in");
    assert!(run.peak_bytes <= PEAK_MAX, "{} MiB", run.peak_bytes >> 20);
    wire
}

/// Without `page` all places keep what is around it.
fn make(path: &Path, page: Option<&Page<'_>>) {
    let file = File::create_new(path).expect("a new file");
    file.set_len(SIZE).expect("a sparse file");
    let mut random = SmallRng::seed_from_u64(5);
    let mut bytes = vec![0; usize::try_from(AROUND).expect("64 KiB")];
    for place in 0..PLACES {
        random.fill_bytes(&mut bytes);
        let within = usize::try_from(place % 16).expect("a page") * PAGE;
        if let Some(page) = page {
            page(&mut bytes[within..][..PAGE]);
        }
        let at = place * (SIZE / PLACES / AROUND * AROUND);
        file.write_all_at(&bytes, at).expect("room for the data");
    }
}
