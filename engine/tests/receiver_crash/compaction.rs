//! Goal: a stage that is taken up again and again does not grow without end, and is never lost when
//! it is written anew. Method: runs that are cut off before their seal, with other bytes in every
//! block each time; one more is recorded for the crash matrix.

use failback_engine::state::{Barriers, Word};
use failback_engine::sync::Task;
use failback_engine::transport::Apply;
use failback_vhdx::FileAt;

use crate::scenario::{
    BLOCK, Disk, Record, WINDOW, after, pattern, position_of, raw_disk, record_sync, staging, sync,
};
use crate::world::{Host, World};

/// Bytes of a stage that holds every block of the disk once, and of one record.
const RECORD_LEN: u64 = 2 * BLOCK as u64 + 4096;
const RUNS: usize = 50;
/// So many runs leave more dead records than living ones.
const RUNS_TO_COMPACT: usize = 3;

/// The disk with other bytes in every whole block for each run.
fn in_run(disk: &Disk, run: usize) -> Disk {
    let mut disk = disk.clone();
    for (block, bytes) in disk.new.chunks_exact_mut(BLOCK).enumerate() {
        bytes.copy_from_slice(&pattern(u8::try_from(60 + 2 * block).unwrap(), BLOCK));
        let shift = u8::try_from(5 * run + 1).unwrap();
        bytes
            .iter_mut()
            .for_each(|byte| *byte = byte.wrapping_add(shift));
    }
    disk
}

/// The host after a run on `base` that was cut off just before its seal.
fn cut_before_seal(disk: &Disk, base: &Host) -> Host {
    let world = World::on(base);
    let barriers = Barriers::new();
    sync(&world, disk, barriers, Task::Delta, Apply::Stage).unwrap();
    let ops = world.ops();
    after(base, &ops[..position_of(base, &ops, Word::Staged)])
}

fn stage_len(host: &Host) -> u64 {
    host.files[host.names["stage"]].len().unwrap()
}

/// Records a sync that finds a stage which is mostly dead.
pub(crate) fn record_compacted(barriers: Barriers) -> Record {
    let disk = raw_disk();
    let runs = (0..RUNS_TO_COMPACT).map(|run| in_run(&disk, run));
    let base = runs.fold(disk.host.clone(), |host, disk| {
        cut_before_seal(&disk, &host)
    });
    let disk = in_run(&disk, RUNS_TO_COMPACT - 1);
    let disk = Disk { host: base, ..disk };
    let record = record_sync(&disk, barriers, Task::Delta, Apply::Stage);
    assert!(
        record.ops.iter().any(|op| op.makes("stage.new")),
        "it was compacted"
    );
    record
}

#[test]
fn fifty_runs_keep_the_stage_below_twice_what_counts() {
    let disk = raw_disk();
    let mut host = disk.host.clone();
    let mut live = 0;
    let (mut taken_up_max, mut cut_off_max, mut compacted) = (0, 0, 0);
    for run in 0..RUNS {
        let disk = in_run(&disk, run);
        host = cut_before_seal(&disk, &host);
        let len = stage_len(&host);
        if run == 0 {
            live = len;
        }
        let world = World::like(&host);
        let barriers = Barriers::new().with_window(WINDOW);
        let (again, _) = staging(&world, &disk, barriers).unwrap();
        assert_eq!(again.resumed_blocks(), 9);
        let taken_up = stage_len(&world.host());
        compacted += usize::from(taken_up < len);
        taken_up_max = taken_up_max.max(taken_up);
        cut_off_max = cut_off_max.max(len);
        assert!(!world.host().names.contains_key("stage.new"));
    }
    println!(
        "{RUNS} runs, {live} bytes count: at most {taken_up_max} taken up, {cut_off_max} when cut \
         off; compacted {compacted} times"
    );
    assert!(taken_up_max <= 2 * live + RECORD_LEN);
    // A run adds what counts once at most.
    assert!(cut_off_max <= 3 * live + RECORD_LEN);
}
