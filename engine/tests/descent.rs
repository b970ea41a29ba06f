//! Goal: what is found from the roots down is what a comparison of all leaves finds, for few
//! digests and few round trips, and nothing that a peer says is believed unseen. Method: two saved
//! maps, the questions of one answered by the other.
#![allow(clippy::unwrap_used, reason = "a test states its expectations by it")]

use std::collections::VecDeque;
use std::path::Path;

use failback_engine::ErrorKind;
use failback_engine::hash::{Digest, HashKind, Hasher};
use failback_engine::map::descent::{DEPTH, Descent, Difference, Question, Step, WIDTH};
use failback_engine::map::{MapBuilder, MapFile, MapKey, MapWriter, Noted};
use failback_engine::tree::Leaf;
use failback_engine::units::{BlockSize, Geometry};
use proptest::prelude::*;

const BLOCK: u64 = 64 << 10;

fn geometry(len: u64) -> Geometry {
    Geometry::new(len, BlockSize::new(BLOCK).unwrap()).unwrap()
}

/// A map of a disk of `len` bytes in small blocks, of which each holds what `leaf` says.
fn saved(path: &Path, len: u64, kind: HashKind, leaf: impl Fn(u64) -> Option<u64>) -> MapFile {
    let geometry = geometry(len);
    let key = MapKey::of([7; 32]);
    let writer = MapWriter::create(path, geometry, kind).unwrap();
    let mut map = MapBuilder::new(&Hasher::new(kind), geometry, Some(writer));
    for block in 0..geometry.block_count().0 {
        map.push(leaf(block).map_or(Leaf::Zero, |seed| data(kind, seed)), 1);
    }
    let (root, writer) = map.finish();
    let noted = Noted {
        root,
        facts: None,
        key: &key,
    };
    writer.unwrap().finish(&noted).unwrap();
    MapFile::open(path, &key).unwrap()
}

/// A digest that stands for some content.
fn data(kind: HashKind, seed: u64) -> Leaf {
    let digest = blake3::hash(&seed.to_le_bytes());
    Leaf::Data(Digest::from_slice(&digest.as_bytes()[..kind.digest_len()]).unwrap())
}

/// What a descent came to.
#[derive(Debug, Default)]
struct Found {
    differences: Vec<Difference>,
    digests: usize,
    rounds: usize,
    held_max: usize,
}

/// Runs a descent where all answers to what is asked at a time come at the same time.
fn descend(ours: &MapFile, theirs: &MapFile) -> Found {
    let mut found = Found::default();
    let mut descent = Descent::new(ours, theirs.root()).unwrap();
    let mut asked: VecDeque<Question> = VecDeque::new();
    loop {
        let step = descent.step().unwrap();
        asked.extend(descent.questions());
        found.held_max = found.held_max.max(descent.held());
        match step {
            Step::Differs(difference) => found.differences.push(difference),
            Step::Ends => {
                assert!(asked.is_empty() && descent.held() == 0);
                return found;
            }
            Step::Waits(_) => {
                assert!(!asked.is_empty(), "waits for nothing");
                found.rounds += 1;
                for question in std::mem::take(&mut asked) {
                    let answer = question.answer(theirs).unwrap();
                    found.digests += answer.len();
                    let first = question.indices[0];
                    descent.answer(question.level, first, &answer).unwrap();
                    asked.extend(descent.questions());
                    found.held_max = found.held_max.max(descent.held());
                }
            }
        }
    }
}

/// The same by the definition.
fn compared(ours: &MapFile, theirs: &MapFile) -> Vec<Difference> {
    let leaves = |map: &MapFile| -> Vec<Leaf> {
        let runs = map.walk().unwrap().map(Result::unwrap);
        let spread = |(leaf, count)| std::iter::repeat_n(leaf, usize::try_from(count).unwrap());
        runs.flat_map(spread).collect()
    };
    let pairs = leaves(ours).into_iter().zip(leaves(theirs));
    let numbered = (0_u64..).zip(pairs);
    numbered
        .filter(|(_, (ours, theirs))| ours != theirs)
        .map(|(block, (ours, theirs))| Difference {
            block,
            ours,
            theirs,
        })
        .collect()
}

/// Runs of blocks: how long, and what they hold on each side.
type Run = (u64, Option<u8>, Option<u8>);

fn runs() -> impl Strategy<Value = Vec<Run>> {
    let content = || prop_oneof![Just(None), (0..4_u8).prop_map(Some)];
    let run = (0..3_u32, 0..40_u64, content(), content(), any::<bool>());
    let run = run.prop_map(|(kind, len, ours, theirs, is_equal)| {
        let len = 1 + if kind == 0 { len } else { len % 3 };
        (len, ours, if is_equal { ours } else { theirs })
    });
    prop::collection::vec(run, 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    // Goal: the blocks that differ are those of the lists of leaves, in order, with their contents.
    // Method: random runs of zeros and data on both sides, any count, a short last block, both
    // hashes, against a comparison leaf by leaf; cost within the bound of the head of `descent`.
    #[test]
    fn finds_what_a_comparison_of_leaves_finds(
        runs in runs(),
        tail in 0_u64..3,
        kind in prop::sample::select(vec![HashKind::Blake3, HashKind::Xxh3]),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let blocks: Vec<_> = runs
            .iter()
            .flat_map(|&(len, ours, theirs)| (0..len).map(move |_| (ours, theirs)))
            .collect();
        let len = (blocks.len() as u64 * BLOCK).saturating_sub(tail * 512);
        let side = |name: &str, is_ours: bool| {
            saved(&dir.path().join(name), len, kind, |block| {
                let (ours, theirs) = blocks[usize::try_from(block).unwrap()];
                if is_ours { ours } else { theirs }.map(u64::from)
            })
        };
        let (ours, theirs) = (side("ours", true), side("theirs", false));

        let found = descend(&ours, &theirs);

        let expected = compared(&ours, &theirs);
        let levels = ours.shape().level_count();
        let rounds = steps(levels);
        prop_assert!(found.rounds <= rounds, "{} rounds", found.rounds);
        prop_assert!(found.digests <= (expected.len().max(1) * rounds) << DEPTH);
        prop_assert_eq!(found.differences, expected);
    }
}

/// Questions on the way from the root to a leaf of a tree of so many levels.
fn steps(levels: u32) -> usize {
    (levels.saturating_sub(1).div_ceil(DEPTH).max(1)) as usize
}

// Goal: a tree of a million blocks costs what differs in it. Method: count digests and round trips
// for some numbers of blocks that differ, scattered; the bound is 16 digests a step of 4 levels.
#[test]
fn cost_follows_what_differs() {
    const BLOCKS: u64 = (1 << 20) + 3;
    let dir = tempfile::tempdir().unwrap();
    let len = BLOCKS * BLOCK;
    let ours = saved(&dir.path().join("ours"), len, HashKind::Blake3, Some);
    for count in [0, 1, 3, 16, 400] {
        let every = BLOCKS.checked_div(count).unwrap_or(u64::MAX);
        let theirs = |block| match block % every == every / 2 && block / every < count {
            true => Some(block + BLOCKS),
            false => Some(block),
        };
        let path = dir.path().join("theirs");
        let theirs = saved(&path, len, HashKind::Blake3, theirs);
        std::fs::remove_file(&path).unwrap();

        let found = descend(&ours, &theirs);

        let count = usize::try_from(count).unwrap();
        let rounds = if count == 0 { 0 } else { steps(22) };
        assert_eq!(found.differences.len(), count);
        assert_eq!(found.rounds, rounds, "{count} blocks");
        assert!(
            found.digests <= count * rounds * 16,
            "{count} blocks: {}",
            found.digests
        );
    }
}

// Goal: where everything differs memory stays bounded, and the digests are not many more than the
// leaves. Method: two maps without a block in common, and one against an empty one, both ways.
#[test]
fn all_that_differs_is_found_in_bounded_memory() {
    const BLOCKS: u64 = 300_001;
    let dir = tempfile::tempdir().unwrap();
    let make = |name, leaf: fn(u64) -> Option<u64>| {
        saved(
            &dir.path().join(name),
            BLOCKS * BLOCK,
            HashKind::Blake3,
            leaf,
        )
    };
    let one = make("one", Some);
    let other = make("other", |block| Some(block + BLOCKS));
    let empty = make("empty", |_| None);
    let all = usize::try_from(BLOCKS).unwrap();
    for (ours, theirs, digests_max) in [
        (&one, &other, all + all / 14),
        (&empty, &other, all + all / 14),
        (&one, &empty, 16),
    ] {
        let found = descend(ours, theirs);

        assert_eq!(found.differences, compared(ours, theirs));
        assert!(found.digests <= digests_max, "{} digests", found.digests);
        assert!(found.held_max <= 5 * WIDTH, "{} held", found.held_max);
    }
}

// Goal: an answer that is not what was asked for, or not what the root stands for, is refused.
// Method: break the answers to a descent in each way once, at each step of it.
#[test]
fn answers_are_held_against_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let make = |name, leaf: fn(u64) -> Option<u64>| {
        saved(&dir.path().join(name), 777 * BLOCK, HashKind::Blake3, leaf)
    };
    let ours = make("ours", Some);
    let theirs = make("theirs", |block| Some(if block == 300 { 0 } else { block }));
    type Break = fn(&mut u32, &mut u64, &mut Vec<Digest>);
    let breaks: [Break; 7] = [
        |level, _, _| *level += 1,
        |_, first, _| *first += 1,
        |_, _, digests| digests.truncate(digests.len() - 1),
        |_, _, digests| digests.push(digests[0]),
        |_, _, digests| digests.clear(),
        |_, _, digests| digests.swap(0, 1),
        |_, _, digests| *digests.last_mut().unwrap() = Digest::from([1; 32]),
    ];
    for broken in breaks {
        for at in 0..steps(11) {
            let mut descent = Descent::new(&ours, theirs.root()).unwrap();
            for step in 0.. {
                let [question] = &descent.questions()[..] else {
                    panic!("one path is one question a step");
                };
                let (mut level, mut first) = (question.level, question.indices[0]);
                let mut answer = question.answer(&theirs).unwrap();
                if step == at {
                    broken(&mut level, &mut first, &mut answer);
                }
                let taken = descent.answer(level, first, &answer);
                if step == at {
                    assert_eq!(taken.unwrap_err().kind(), ErrorKind::Protocol);
                    break;
                }
                taken.unwrap();
            }
        }
    }
    let mut descent = Descent::new(&ours, ours.root()).unwrap();
    assert!(descent.questions().is_empty());
    let unasked = descent.answer(3, 0, &[Digest::from([1; 32])]);
    assert_eq!(unasked.unwrap_err().kind(), ErrorKind::Protocol);
}

// Goal: questions about nodes that there are not are refused, and a damaged map gives no answer.
// Method: levels and indices just past the tree; a byte flipped in the last leaf.
#[test]
fn questions_are_held_against_the_tree() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("map");
    let map = saved(&path, 100 * BLOCK, HashKind::Blake3, Some);
    let ask = |level, down, index| {
        let question = Question {
            level,
            down,
            indices: vec![index],
        };
        let answer = question.answer(&map);
        answer.map(|digests| digests.len()).map_err(|e| e.kind())
    };
    assert_eq!(ask(7, 4, 0), Ok(13));
    assert_eq!(ask(7, 0, 0), Ok(1));
    assert_eq!(ask(0, 0, 99), Ok(1));
    assert_eq!(ask(4, 4, 6), Ok(4));
    for (level, down, index) in [(8, 4, 0), (7, 5, 0), (3, 4, 0), (0, 0, 100), (4, 4, 7)] {
        assert_eq!(ask(level, down, index), Err(ErrorKind::Protocol));
    }
    let leaf = match data(HashKind::Blake3, 99) {
        Leaf::Data(digest) => digest,
        Leaf::Zero => panic!("data"),
    };
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(32).position(|bytes| bytes == leaf.as_bytes());
    bytes[at.unwrap()] ^= 1;
    let damaged = dir.path().join("damaged");
    std::fs::write(&damaged, &bytes).unwrap();
    let damaged = MapFile::open(&damaged, &MapKey::of([7; 32])).unwrap();
    let question = |index| Question {
        level: 4,
        down: 4,
        indices: vec![index],
    };
    assert!(question(5).answer(&damaged).is_ok());
    let answer = question(6).answer(&damaged);
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::Damaged);
}
