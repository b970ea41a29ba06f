//! Goal: a far link costs a sync a few round trips, not one for every few blocks. Method: real
//! sessions in this process over a loopback of 20 MiB/s, without a delay and with 25 ms each way,
//! disks made from a formula; the time with the delay is at most 1.1 times the other one and ten
//! round trips.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test states its expectations, and what it measured"
)]

mod kit;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use failback_engine::disk::{DiskInfo, Extent, ExtentKind, MemoryDisk, Source, Target};
use failback_engine::hash::HashKind;
use failback_engine::sync::SessionOptions;
use failback_engine::system::MediumAccess;
use failback_engine::transport::VerifyLevel;
use failback_engine::transport::link::{Shape, loopback, shaped};
use failback_engine::units::{BlockSize, ByteOffset};
use failback_engine::{Abort, Result};
use kit::{PAGE, delta, run_over};

const RATE: u64 = 20 << 20;
const DELAY: Duration = Duration::from_millis(25);
const BLOCK_LEN: u64 = 1 << 20;

/// Which bytes of a disk of so many blocks are new.
#[derive(Clone, Copy, Debug)]
struct Changes {
    blocks: u64,
    /// One block in so many.
    one_in: u64,
    /// Bytes of it, from its middle on or all.
    changed_len: u64,
}

/// A disk made from a formula: the old one, or the new one. What is written is counted on by
/// nobody: the roots are those of what was sent.
#[derive(Debug)]
struct Formula {
    changes: Changes,
    is_new: bool,
}

impl Changes {
    fn is_changed(&self, at: u64) -> bool {
        let within = at % BLOCK_LEN;
        let first = (BLOCK_LEN - self.changed_len) / 2;
        (at / BLOCK_LEN).is_multiple_of(self.one_in)
            && (first..first + self.changed_len).contains(&within)
    }
}

impl Source for Formula {
    fn info(&self) -> DiskInfo {
        DiskInfo {
            virtual_size: self.changes.blocks * BLOCK_LEN,
            ..MemoryDisk::new(Vec::new()).info()
        }
    }

    fn read(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        for (page, at) in buf.chunks_mut(PAGE).zip((at.0..).step_by(PAGE)) {
            let byte = u8::try_from(at / BLOCK_LEN % 100).unwrap();
            match self.is_new && self.changes.is_changed(at) {
                true => page.fill(byte + 101),
                false => page.fill(byte + 1),
            }
        }
        Ok(())
    }

    fn extent_at(&self, _at: ByteOffset) -> Result<Extent> {
        Ok(Extent {
            kind: ExtentKind::Data,
            end: ByteOffset(self.changes.blocks * BLOCK_LEN),
        })
    }
}

impl Target for Formula {
    fn write(&self, _at: ByteOffset, _data: &[u8]) -> Result<()> {
        Ok(())
    }

    fn zero(&self, _range: Range<ByteOffset>) -> Result<()> {
        Ok(())
    }

    fn zero_undefined(&self) -> Result<u64> {
        Ok(0)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn read_back(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.read(at, buf)
    }

    fn medium(&self) -> MediumAccess {
        MediumAccess::Cache
    }

    fn mark(&self) -> Result<Option<String>> {
        Ok(None)
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// Seconds of a sync over a link with that delay at both ends.
fn seconds(changes: Changes, delay: Duration) -> f64 {
    let shape = Shape {
        bytes_per_second: Some(RATE),
        delay,
    };
    let (near, far) = loopback::pair();
    let link = (shaped(near, shape).unwrap(), shaped(far, shape).unwrap());
    let [source, target] = [true, false].map(|is_new| Formula { changes, is_new });
    let options = SessionOptions {
        hash: HashKind::Xxh3,
        block_size: BlockSize::new(BLOCK_LEN).unwrap(),
        verify: VerifyLevel::Off,
        ..delta()
    };
    let begun = Instant::now();
    let ended = run_over(
        link,
        &source,
        &target,
        options,
        false,
        &Arc::new(Abort::new()),
    );
    let seconds = begun.elapsed().as_secs_f64();
    let (end, result) = ended.source.unwrap();
    assert!(result.equal);
    let differing = changes.blocks.div_ceil(changes.one_in);
    assert_eq!(end.differing_blocks, differing);
    assert_eq!(end.sent_bytes, differing * changes.changed_len);
    seconds
}

fn assert_costs_few_round_trips(changes: Changes) {
    // The best of two: other programs run too.
    let best = |delay| seconds(changes, delay).min(seconds(changes, delay));
    let (near, far) = (best(Duration::ZERO), best(DELAY));
    let limit = 1.1 * near + 10.0 * 2.0 * DELAY.as_secs_f64();
    println!("{near:.3} s near, {far:.3} s far, limit {limit:.3} s");
    assert!(far <= limit, "{near} s near, {far} s far, limit {limit} s");
}

#[test]
fn one_block_in_twenty() {
    assert_costs_few_round_trips(Changes {
        blocks: 256,
        one_in: 20,
        changed_len: BLOCK_LEN,
    });
}

// Few bytes of many blocks: each of them asks the target for its sums.
#[test]
fn a_few_pages_of_one_block_in_four() {
    assert_costs_few_round_trips(Changes {
        blocks: 1024,
        one_in: 4,
        changed_len: 4 * PAGE as u64,
    });
}

// So many that they are kept while they wait.
#[test]
fn a_few_pages_of_every_block() {
    assert_costs_few_round_trips(Changes {
        blocks: 512,
        one_in: 1,
        changed_len: 4 * PAGE as u64,
    });
}
