//! Somebody else writes to the target between two runs, and nothing but its bytes tells: as on a
//! device, which has no time of change.

use failback_engine::ErrorKind;
use failback_engine::state::{Barriers, Journal, Word};
use failback_engine::sync::Task;
use failback_engine::transport::Apply;
use failback_vhdx::FileAt;

use crate::scenario::{BLOCK, Disk, at_word, content, record_sync, roll_back, sync};
use crate::world::World;

/// A host whose journal says `word`, and of whose target one byte is another one.
fn changed(disk: &Disk, apply: Apply, word: Word, at: usize) -> World {
    let whole = record_sync(disk, Barriers::new(), Task::Delta, apply);
    let world = World::like(&at_word(&whole.base, &whole.ops, word));
    let mut byte = [0];
    let target = world.target().unwrap();
    target.read_at(at as u64, &mut byte).unwrap();
    target.write_at(at as u64, &[byte[0] ^ 1]).unwrap();
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
