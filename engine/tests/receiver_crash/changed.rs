//! Somebody else writes to the target between two runs, and nothing but its bytes tells: as on a
//! device, which has no time of change.

use failback_engine::state::{Barriers, Journal, Word};
use failback_engine::sync::Task;
use failback_engine::transport::Apply;
use failback_engine::{ErrorKind, Result};
use failback_vhdx::FileAt;

use crate::disk::Format;
use crate::scenario::{
    BLOCK, Disk, after, at_word, content, finish, position_of, record_sync, roll_back, staging,
    sync,
};
use crate::world::{Op, TARGET, World};

/// A host whose journal says `word`, and of whose target one byte is another one.
fn changed(disk: &Disk, apply: Apply, word: Word, at: usize) -> World {
    let whole = record_sync(disk, Barriers::new(), Task::Delta, apply);
    let world = World::like(&at_word(&whole.base, &whole.ops, word));
    world.change_behind(at as u64);
    world
}

fn word(world: &World) -> Option<Word> {
    let journal = Journal::open(world, Barriers::new()).unwrap();
    journal.map(|journal| journal.word())
}

/// What was staged for another disk ends, and the next sync begins anew.
pub(crate) fn check_resume(disk: &Disk) {
    // Of a staged block, outside what is staged of it.
    for at in [6 * BLOCK, 6 * BLOCK + 60_500] {
        let world = changed(disk, Apply::Stage, Word::Staged, at);
        let again = || sync(&world, disk, Barriers::new(), Task::Delta, Apply::Stage);

        let refused = again().unwrap_err();

        assert_eq!(refused.kind(), ErrorKind::Refused, "{}", refused.chain());
        assert_eq!(word(&world), Some(Word::Aborted));
        again().unwrap();
        assert_eq!(content(&world, disk.format).unwrap(), disk.new);
    }
}

/// A target that was written to since it was staged for is left as it is, whatever its bytes are; a
/// sync begins anew.
pub(crate) fn check_touched(disk: &Disk) {
    let whole = record_sync(disk, Barriers::new(), Task::Delta, Apply::Stage);
    let world = World::like(&at_word(&whole.base, &whole.ops, Word::Staged));
    let target = world.target().unwrap();
    let mut byte = [0];
    target.read_at(9, &mut byte).unwrap();
    target.write_at(9, &byte).unwrap();

    let refused = finish(&world, disk.format).unwrap_err();

    assert_eq!(refused.kind(), ErrorKind::Refused, "{}", refused.chain());
    assert_eq!(word(&world), Some(Word::Staged));
    assert_eq!(content(&world, disk.format).unwrap(), disk.old);
    let (staging, _) = staging(&world, disk, Barriers::new()).unwrap();
    assert_eq!(staging.resumed_blocks(), 0);
    assert_eq!(word(&world), Some(Word::Aborted));
}

/// Old bytes do not go over a disk that somebody else wrote to.
pub(crate) fn check_roll_back(disk: &Disk) {
    // Not staged; of a staged block outside what is staged of it.
    for at in [4 * BLOCK, 6 * BLOCK] {
        let world = changed(disk, Apply::StageKeepUndo, Word::NewVerified, at);
        let before = content(&world, disk.format).unwrap();

        let refused = roll_back(&world, disk.format).unwrap_err();

        assert_eq!(refused.kind(), ErrorKind::Refused, "{}", refused.chain());
        assert_eq!(word(&world), Some(Word::NewVerified));
        assert_eq!(content(&world, disk.format).unwrap(), before);
    }
    // Where the old bytes go.
    let world = changed(disk, Apply::StageKeepUndo, Word::NewVerified, BLOCK + 9);
    roll_back(&world, disk.format).unwrap();
    assert_eq!(content(&world, disk.format).unwrap(), disk.old);
}

/// A pass over the target that was cut off does not go on over what somebody else wrote.
pub(crate) fn check_apply(disk: &Disk) {
    // Where new bytes go, torn or not; beside them in a staged block; where zeros go.
    for at in [BLOCK + 9, 6 * BLOCK, 6 * BLOCK + 60_500, 2 * BLOCK + 70] {
        for written in 0..4 {
            let world = cut_off(disk, Apply::Stage, written);
            world.change_behind(at as u64);
            let before = content(&world, disk.format).unwrap();
            for end in [finish as fn(&World, Format) -> Result<Word>, roll_back] {
                let refused = end(&world, disk.format).unwrap_err();

                assert_eq!(refused.kind(), ErrorKind::Refused, "{}", refused.chain());
                assert!(refused.chain().contains("neither the old disk's nor"));
                assert_eq!(word(&world), Some(Word::Committing));
                assert_eq!(content(&world, disk.format).unwrap(), before);
            }
        }
    }
}

/// The same where the old bytes were not kept: as long as nothing of a block was written, and
/// always beside what is.
pub(crate) fn check_apply_without_undo(disk: &Disk) {
    for (at, written) in [(BLOCK + 9, 0), (6 * BLOCK, 0), (6 * BLOCK, 5)] {
        let world = cut_off(disk, Apply::StageNoUndo, written);
        world.change_behind(at as u64);
        let before = content(&world, disk.format).unwrap();

        let refused = finish(&world, disk.format).unwrap_err();

        assert_eq!(refused.kind(), ErrorKind::Refused, "{}", refused.chain());
        assert_eq!(word(&world), Some(Word::Committing));
        assert_eq!(content(&world, disk.format).unwrap(), before);
    }
}

/// A host on which so many writes to the target came after COMMIT.
fn cut_off(disk: &Disk, apply: Apply, written: usize) -> World {
    let whole = record_sync(disk, Barriers::new(), Task::Delta, apply);
    let commit = position_of(&whole.base, &whole.ops, Word::Committing) + 1;
    let target = whole.base.names[TARGET];
    let is_write = |op: &&Op| op.file() == Some(target) && !op.is_sync();
    let mut host = after(&whole.base, &whole.ops[..commit]);
    let writes = whole.ops[commit..].iter().filter(is_write);
    writes.take(written).for_each(|op| host.apply(op, |_| true));
    World::like(&host)
}

/// A byte of one half of a record has rotted after COMMIT: the other half is a way out.
pub(crate) fn check_rotted_half(disk: &Disk) {
    let whole = record_sync(disk, Barriers::new(), Task::Delta, Apply::Stage);
    let base = at_word(&whole.base, &whole.ops, Word::Committing);
    // Block 1 changes whole.
    let rotted = |half: &[u8]| {
        let world = World::like(&base);
        let stage = world.file(world.number_of("stage").unwrap());
        let mut bytes = vec![0; usize::try_from(stage.len().unwrap()).unwrap()];
        stage.read_at(0, &mut bytes).unwrap();
        let half = &half[BLOCK..][..BLOCK];
        let mut pages = (0..bytes.len()).step_by(4096);
        let at = pages.find(|at| bytes[*at..].starts_with(half)).unwrap();
        stage.write_at(at as u64, &[bytes[at] ^ 1]).unwrap();
        world
    };

    let (without_old, without_new) = (rotted(&disk.old), rotted(&disk.new));
    finish(&without_old, disk.format).unwrap();
    roll_back(&without_new, disk.format).unwrap();

    assert_eq!(content(&without_old, disk.format).unwrap(), disk.new);
    assert_eq!(content(&without_new, disk.format).unwrap(), disk.old);
    let damaged = [
        roll_back(&rotted(&disk.old), disk.format),
        finish(&rotted(&disk.new), disk.format),
    ];
    for error in damaged {
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Damaged);
    }
}

/// What memory has of the stage is not what the medium has.
pub(crate) fn check_rotted_medium(disk: &Disk) {
    let world = World::rotting(&disk.host, "stage", 5000);

    let found = sync(&world, disk, Barriers::new(), Task::Delta, Apply::Stage).unwrap_err();

    assert_eq!(found.kind(), ErrorKind::Damaged, "{}", found.chain());
    assert_eq!(word(&world), Some(Word::Staging));
    assert_eq!(content(&world, disk.format).unwrap(), disk.old);
}
