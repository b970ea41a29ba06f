//! What a delta and a full copy cost. Pure: numbers in, numbers out.
//!
//! ```text
//!          the source          the link            the target
//! delta    scan, re-read,      changed bytes,      scan, re-read and patch, keep     the slowest
//!          pack                hashes back
//!          then, where a log keeps the changes: read it, write the target, read that back
//! full     read, hash, pack    all bytes           write and read back               the slowest
//! ```
//! The three columns go on at the same time. Within one column work is added up: a column is one
//! disk and the processors beside it. What was measured on both sides at once has the other side's
//! share of a common machine in it.

use std::time::Duration;

use crate::hash::PIECE_LEN;
use crate::units::{BlockSize, SUB_BLOCK_LEN};

use super::number::{float, whole};

/// What is known, or assumed, of a job. Rates are bytes per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Facts {
    /// The disk that is read.
    pub source: SideFacts,
    /// The disk that is made equal.
    pub target: SideFacts,
    /// How much of the source differs.
    pub change: Change,
    /// The way between them; `None` within one process.
    pub link: Option<LinkFacts>,
    /// Compression of what travels; `None` without.
    pub packing: Option<Packing>,
    /// How fast the target's disk takes bytes.
    pub disk: DiskRates,
    /// How a delta changes the target.
    pub delta_way: Way,
    /// How a full copy does.
    pub full_way: Way,
    /// Whether what was written is read back.
    pub proof: Proof,
    /// Unit of comparison.
    pub block_size: BlockSize,
    /// Bytes of a hash.
    pub hash_len: usize,
}

/// One side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SideFacts {
    /// Bytes that have to be read to be known.
    pub allocated: u64,
    /// Reading and hashing.
    pub scan_rate: f64,
    /// A saved map stands for the reading.
    pub is_mapped: bool,
}

/// Shares of the source's allocated bytes, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// In blocks that differ.
    pub blocks: f64,
    /// In pieces of 64 KiB that differ: what of such a block is read again.
    pub pieces: f64,
    /// In sub-blocks of 4 KiB that differ, those that became zero included.
    pub bytes: f64,
    /// In sub-blocks that differ and are not zero: what travels.
    pub sent: f64,
    /// In sub-blocks that are zero, changed or not: a full copy does not send them.
    pub zeros: f64,
}

/// A link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkFacts {
    /// Towards the target; taken for the way back, too, where little travels.
    pub rate: f64,
    /// There and back.
    pub round_trip: Duration,
}

/// Compression.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Packing {
    /// Bytes after it for each byte before.
    pub ratio: f64,
    /// Bytes of input per second, on all threads of the source.
    pub rate: f64,
}

/// How fast a disk takes bytes until they are on the medium, and gives them back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DiskRates {
    /// Into a log, flushed and looked at again: old and new bytes together.
    pub log: f64,
    /// One after the other, flushed.
    pub write: f64,
    /// In blocks here and there, flushed.
    pub scattered_write: f64,
    /// Past the page cache.
    pub read_back: f64,
}

impl Default for DiskRates {
    /// Assumed where nothing is known: planning writes nothing, so it cannot measure writing, and
    /// no sync was seen to write. What a cloud disk on solid state does, as measured in
    /// docs/decisions/0020; a rotating disk does a third of it, and a delta with a log suffers more
    /// from that than a full copy.
    fn default() -> Self {
        Self {
            log: 300.0 * MIB,
            write: 300.0 * MIB,
            scattered_write: 120.0 * MIB,
            read_back: 1000.0 * MIB,
        }
    }
}

/// How a target is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Each byte is written once, where it belongs: in place, into a clone, into a new file.
    Once,
    /// Into a log, from there to the target.
    Logged {
        /// What the target had goes into the log, too.
        keeps_old: bool,
    },
}

/// What is read back of the target at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// What was written.
    Changed,
    /// All of it.
    Full,
    /// Nothing.
    Off,
}

/// What a job is expected to take.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// From start to end.
    pub seconds: f64,
    /// Payload on the link, after compression.
    pub bytes: u64,
    /// All bytes on the link, in both directions.
    pub link_bytes: u64,
    /// Seconds for which the machine that uses the source has to stand still.
    pub downtime: f64,
}

const MIB: f64 = (1_u64 << 20) as f64;

/// Round trips of a session that cannot overlap: hello, start, the first hashes and their answer,
/// the end and the result.
const ROUND_TRIPS: u32 = 4;
/// Opening, threads, the flushes of a journal: what the smallest job takes.
const SETTLE: f64 = 0.03;
/// Share of the disk that the source reads a second time at most: where more differs it keeps what
/// it read (docs/decisions/0016).
const READ_AGAIN_MAX: f64 = 0.15;
/// The final pass of a delta finds that so much was changed while the one before it ran. An
/// assumption: what a guest will write nobody knows.
const FINAL_CHANGE: f64 = 0.01;
/// Bytes on the link for each block of data beside its payload: frame, head, question.
const MESSAGE_LEN: f64 = 160.0;
/// Bytes of the sum of a sub-block.
const SUM_LEN: f64 = 8.0;
/// Bytes of the name of a piece that differs or not, in the question for a block.
const NAME_LEN: f64 = 8.0;
/// What a scan of two disks in one process takes of the time in which both are hashed: one is, and
/// the bytes of the other are compared. BLAKE3, and XXH3, which costs little beside the reading
/// (docs/decisions/0017).
const BESIDE: [f64; 2] = [0.75, 0.95];

/// What a delta costs. Its downtime is that of the last pass: those before it run while the source
/// is used.
#[must_use]
pub fn delta(facts: &Facts) -> Cost {
    let pass = delta_pass(facts);
    let last = Facts {
        change: facts.change.at_most(FINAL_CHANGE),
        ..*facts
    };
    Cost {
        downtime: delta_pass(&last).seconds.min(pass.seconds),
        ..pass
    }
}

fn delta_pass(facts: &Facts) -> Cost {
    let (source, target) = (&facts.source, &facts.target);
    let change = &facts.change;
    let allocated = float(source.allocated);
    let changed = allocated * change.bytes;
    let raw = allocated * change.sent;
    let in_blocks = allocated * change.blocks;
    let in_pieces = allocated * change.pieces;
    let packed = facts.packed(raw);
    let blocks = |len: f64| len / float(facts.block_size.len() as u64);

    let at_source = source.scan_time() * facts.scan_share()
        + in_pieces.min(allocated * READ_AGAIN_MAX) / source.scan_rate
        + facts.packing_time(raw);
    let kept = match facts.delta_way {
        Way::Once => changed / facts.disk.scattered_write + facts.proof_time(changed),
        Way::Logged { keeps_old: true } => 2.0 * changed / facts.disk.log,
        Way::Logged { keeps_old: false } => changed / facts.disk.log,
    };
    let at_target = target.scan_time() * facts.scan_share() + in_pieces / target.scan_rate + kept;
    let hashes = float(facts.hash_len as u64) * blocks(float(target.allocated));
    let sums = in_pieces / float(SUB_BLOCK_LEN as u64) * SUM_LEN;
    let names = in_blocks / float(PIECE_LEN as u64) * NAME_LEN;
    let forth = packed + blocks(in_blocks) * MESSAGE_LEN + names;
    let back = hashes + sums;
    let mut seconds = at_source.max(at_target).max(facts.link_time(forth, back));
    if matches!(facts.delta_way, Way::Logged { .. }) {
        seconds += changed / facts.disk.read_back
            + changed / facts.disk.scattered_write
            + facts.proof_time(changed);
    }
    facts.cost(seconds, packed, forth + back)
}

/// What a full copy costs. The source has to stand still all the time.
#[must_use]
pub fn full(facts: &Facts) -> Cost {
    let allocated = float(facts.source.allocated);
    let raw = allocated * (1.0 - facts.change.zeros).max(0.0);
    let packed = facts.packed(raw);
    let at_source = allocated / facts.source.scan_rate + facts.packing_time(raw);
    let (kept, after) = match facts.full_way {
        Way::Once => (raw / facts.disk.write + facts.proof_time(raw), 0.0),
        Way::Logged { keeps_old } => {
            let copies = if keeps_old { 2.0 } else { 1.0 };
            let applied = raw / facts.disk.read_back + raw / facts.disk.write;
            (
                copies * raw / facts.disk.log,
                applied + facts.proof_time(raw),
            )
        }
    };
    let forth = packed + raw / float(facts.block_size.len() as u64) * MESSAGE_LEN;
    let seconds = at_source.max(kept).max(facts.link_time(forth, 0.0)) + after;
    let cost = facts.cost(seconds, packed, forth);
    Cost {
        downtime: cost.seconds,
        ..cost
    }
}

impl Facts {
    fn packed(&self, raw: f64) -> f64 {
        self.packing
            .map_or(raw, |packing| raw * packing.ratio.min(1.0))
    }

    /// How much of the time of a scan of both disks is left, where they are beside each other.
    fn scan_share(&self) -> f64 {
        let is_beside = self.link.is_none() && !self.source.is_mapped && !self.target.is_mapped;
        let [blake3, xxh3] = BESIDE;
        match (is_beside, self.hash_len) {
            (false, _) => 1.0,
            (true, 32) => blake3,
            (true, _) => xxh3,
        }
    }

    fn packing_time(&self, raw: f64) -> f64 {
        self.packing.map_or(0.0, |packing| raw / packing.rate)
    }

    fn proof_time(&self, written: f64) -> f64 {
        match self.proof {
            Proof::Changed => written / self.disk.read_back,
            Proof::Full | Proof::Off => 0.0,
        }
    }

    /// Both directions go on at once.
    fn link_time(&self, forth: f64, back: f64) -> f64 {
        self.link.map_or(0.0, |link| forth.max(back) / link.rate)
    }

    fn cost(&self, seconds: f64, packed: f64, link_bytes: f64) -> Cost {
        let waiting = self.link.map_or(Duration::ZERO, |link| link.round_trip) * ROUND_TRIPS;
        let whole_proof = match self.proof {
            Proof::Full => float(self.source.allocated) / self.disk.read_back,
            Proof::Changed | Proof::Off => 0.0,
        };
        Cost {
            seconds: seconds + whole_proof + waiting.as_secs_f64() + SETTLE,
            bytes: whole(packed),
            link_bytes: self.link.map_or(0, |_| whole(link_bytes)),
            downtime: 0.0,
        }
    }
}

impl SideFacts {
    fn scan_time(&self) -> f64 {
        match self.is_mapped {
            true => 0.0,
            false => float(self.allocated) / self.scan_rate,
        }
    }
}

impl Change {
    /// What there would be if so much more differed.
    #[must_use]
    pub(crate) fn times(self, factor: f64) -> Self {
        let times = |share: f64| (share * factor).min(1.0);
        Self {
            blocks: times(self.blocks),
            pieces: times(self.pieces),
            bytes: times(self.bytes),
            sent: times(self.sent),
            zeros: self.zeros,
        }
    }

    fn at_most(self, share: f64) -> Self {
        Self {
            blocks: self.blocks.min(share),
            pieces: self.pieces.min(share),
            bytes: self.bytes.min(share),
            sent: self.sent.min(share),
            zeros: self.zeros,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    /// 64 GiB on both sides, read at 1 GiB/s, 1 % changed.
    fn facts() -> Facts {
        let side = SideFacts {
            allocated: 64 * GIB,
            scan_rate: 1024.0 * MIB,
            is_mapped: false,
        };
        Facts {
            source: side,
            target: side,
            change: changed(0.01),
            link: None,
            packing: None,
            disk: DiskRates::default(),
            delta_way: Way::Logged { keeps_old: true },
            full_way: Way::Once,
            proof: Proof::Changed,
            block_size: BlockSize::DEFAULT,
            hash_len: 32,
        }
    }

    fn changed(share: f64) -> Change {
        Change {
            blocks: share,
            pieces: share,
            bytes: share,
            sent: share,
            zeros: 0.0,
        }
    }

    fn link(mib_per_second: f64) -> Option<LinkFacts> {
        Some(LinkFacts {
            rate: mib_per_second * MIB,
            round_trip: Duration::from_millis(20),
        })
    }

    // Goal: each term counts where it is the slowest. Method: a table of jobs that one thing
    // dominates, with the seconds worked out by hand, to a tenth.
    #[test]
    fn the_slowest_part_decides() {
        let base = facts();
        let slow = |rate: f64| SideFacts {
            scan_rate: rate * MIB,
            ..base.source
        };
        let mapped = SideFacts {
            is_mapped: true,
            ..base.source
        };
        let half = Some(Packing {
            ratio: 0.5,
            rate: 1e12,
        });
        #[rustfmt::skip]
        let table: [(&str, Facts, f64, f64); 8] = [
            // 48 s of scan beside each other, 655 MiB twice to the log, then read, written, read
            // back; and 64 GiB at 300 and 1000 MiB/s.
            ("nothing slow", base, 59.8, 284.0),
            ("source", Facts { source: slow(100.0), ..base }, 504.8, 655.4),
            ("target", Facts { target: slow(100.0), ..base }, 509.2, 284.0),
            // 655 MiB, and 64 GiB
            ("link", Facts { link: link(1.0), ..base }, 662.2, 65536.0),
            ("link, packed", Facts { link: link(1.0), packing: half, ..base }, 334.5, 32768.0),
            ("both mapped", Facts { source: mapped, target: mapped, ..base }, 11.8, 284.0),
            ("all changed", Facts { change: changed(1.0), ..base }, 1226.1, 284.0),
            ("once", Facts { change: changed(1.0), delta_way: Way::Once, ..base }, 723.7, 284.0),
        ];
        for (what, facts, delta_seconds, full_seconds) in table {
            for (name, cost, wanted) in [
                ("delta", delta(&facts), delta_seconds),
                ("full", full(&facts), full_seconds),
            ] {
                let seconds = cost.seconds;
                assert!(
                    (seconds - wanted).abs() < wanted / 10.0,
                    "{what}: {name} takes {seconds}, not {wanted}"
                );
            }
        }
    }

    // Goal: bytes are what travels. Method: an eighth of the disk is zeros, a half changed.
    #[test]
    fn bytes_are_those_of_the_payload() {
        let change = Change {
            blocks: 1.0,
            pieces: 1.0,
            bytes: 0.5,
            sent: 0.25,
            zeros: 0.125,
        };
        let facts = Facts {
            change,
            link: link(100.0),
            ..facts()
        };
        let (delta, full) = (delta(&facts), full(&facts));
        assert_eq!((delta.bytes, full.bytes), (16 * GIB, 56 * GIB));
        // A hash of 32 bytes and 256 sums of 8 for each of 64 Ki blocks, and the frames.
        let beside = delta.link_bytes - delta.bytes;
        assert!((130 << 20..160 << 20).contains(&beside), "{beside}");
        assert!(full.link_bytes > full.bytes);
    }

    // Goal: a delta's downtime is its last pass, a full copy's all of it. Method: much changed, and
    // little.
    #[test]
    fn downtime_is_the_last_pass() {
        let much = Facts {
            change: changed(0.8),
            ..facts()
        };
        let little = delta(&facts());
        assert!((delta(&much).downtime - little.seconds).abs() < 1e-9);
        assert!((little.downtime - little.seconds).abs() < 1e-9);
        assert!((full(&much).downtime - full(&much).seconds).abs() < 1e-9);
    }

    fn any_facts() -> impl Strategy<Value = Facts> {
        let side = || (0..1_u64 << 46, 1e6..1e10_f64, any::<bool>());
        let way = || {
            prop_oneof![
                Just(Way::Once),
                any::<bool>().prop_map(|keeps_old| Way::Logged { keeps_old }),
            ]
        };
        let link = prop::option::of((1e4..1e10_f64, 0..1000_u64));
        let packing = prop::option::of((0.1..1.5_f64, 1e7..1e10_f64));
        let shape = (way(), way(), 0..7_u32);
        (side(), side(), link, packing, shape).prop_map(|(source, target, link, packing, shape)| {
            let side = |(allocated, scan_rate, is_mapped)| SideFacts {
                allocated,
                scan_rate,
                is_mapped,
            };
            Facts {
                source: side(source),
                target: side(target),
                link: link.map(|(rate, millis)| LinkFacts {
                    rate,
                    round_trip: Duration::from_millis(millis),
                }),
                packing: packing.map(|(ratio, rate)| Packing { ratio, rate }),
                delta_way: shape.0,
                full_way: shape.1,
                block_size: BlockSize::new(1 << (16 + shape.2)).unwrap(),
                ..facts()
            }
        })
    }

    proptest! {
        // Goal: more changes never make a delta cheaper, nor touch a full copy. Method: two shares.
        #[test]
        fn more_changes_cost_no_less(facts in any_facts(), a in 0.0..1.0_f64, b in 0.0..1.0_f64) {
            let with = |share| Facts { change: changed(share), ..facts };
            let (less, more) = (with(a.min(b)), with(a.max(b)));
            prop_assert!(delta(&less).seconds <= delta(&more).seconds);
            prop_assert!(delta(&less).bytes <= delta(&more).bytes);
            prop_assert!(delta(&less).downtime <= delta(&more).downtime);
            prop_assert_eq!(full(&less), full(&more));
        }

        // Goal: a faster link never makes anything slower, nor changes what travels. Method: two
        // rates in both directions.
        #[test]
        fn a_faster_link_costs_no_more(
            facts in any_facts(),
            a in 1e4..1e10_f64,
            b in 1e4..1e10_f64,
        ) {
            let with = |rate: f64| Facts {
                link: Some(LinkFacts {
                    rate,
                    round_trip: Duration::from_millis(1),
                }),
                ..facts
            };
            let (slow, fast) = (with(a.min(b)), with(a.max(b)));
            for cost in [delta, full] {
                prop_assert!(cost(&slow).seconds >= cost(&fast).seconds);
                prop_assert_eq!(cost(&slow).link_bytes, cost(&fast).link_bytes);
            }
        }

        // Goal: no facts give a cost that is no number, or a downtime over the whole. Method: any.
        #[test]
        fn costs_are_numbers(facts in any_facts(), share in 0.0..1.0_f64) {
            let facts = Facts { change: changed(share), ..facts };
            for cost in [delta(&facts), full(&facts)] {
                prop_assert!(cost.seconds.is_finite() && cost.seconds > 0.0);
                prop_assert!(cost.downtime <= cost.seconds);
            }
        }
    }
}
