//! The checksum map of a disk: one digest for each block, and the tree over them.
//!
//! ```text
//!   leaves in disk order --> MapBuilder --> root
//!                                 |
//!                             MapWriter --> file: header with root, facts and MAC; all levels
//!                                             |
//!   judge(facts then, facts now) <--------- MapFile --> nodes, each checked on its path
//! ```
//! A map is written under a temporary name, flushed and renamed, never changed: whoever has one
//! open keeps it. Nodes over zero blocks alone are holes, so that the map of an empty disk of any
//! size takes no room. Opening one costs the same at any size.

mod audit;
mod builder;
mod carried;
pub mod descent;
mod file;
mod format;
mod key;
mod store;
mod window;
mod writer;

pub use audit::Audit;
pub(crate) use audit::miss_probability;
pub use builder::MapBuilder;
pub use carried::CarriedMap;
pub use file::{Children, MapFile, Walk};
pub use format::MAP_MAGIC;
pub use key::MapKey;
pub use store::{MapStore, MapWish, TrustedMap};
pub use writer::{MapWriter, Noted};

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use proptest::prelude::*;

    use super::*;
    use crate::disk::MemoryDisk;
    use crate::error::{Error, ErrorKind, Result};
    use crate::hash::{Digest, HashKind, Hasher};
    use crate::identity::{Facts, ImageFacts, Refusal};
    use crate::tree::{Leaf, Place};
    #[cfg(unix)]
    use crate::units::BlockIndex;
    use crate::units::{BlockSize, Geometry};

    const BLOCK_LEN: usize = 64 << 10;

    fn key() -> MapKey {
        MapKey::of([7; 32])
    }

    fn facts() -> Facts {
        Facts {
            taken_ns: 9_000_000_000,
            boot: Some("boot".into()),
            images: vec![ImageFacts {
                format: "raw".into(),
                file_id: "1:2".into(),
                file_len: 5,
                mtime_ns: 3,
                ctime_ns: 4,
                is_local: true,
                disk_len: 5,
                sector_size: 0,
                disk_id: String::new(),
                data_write_guid: String::new(),
                is_log_empty: true,
                header_sequence: 0,
            }],
            is_settled: false,
        }
    }

    fn geometry_of(disk: &[u8]) -> Geometry {
        let block = BlockSize::new(BLOCK_LEN as u64).unwrap();
        Geometry::new(disk.len() as u64, block).unwrap()
    }

    fn leaves_of(disk: &[u8], hasher: &Hasher) -> Vec<Leaf> {
        let leaf = |block: &[u8]| match crate::hash::is_zero(block) {
            true => Leaf::Zero,
            false => Leaf::Data(hasher.leaf(block)),
        };
        disk.chunks(BLOCK_LEN).map(leaf).collect()
    }

    fn save(dir: &Path, disk: &[u8], kind: HashKind) -> (PathBuf, Digest) {
        let path = dir.join("disk.map");
        let (hasher, geometry) = (Hasher::new(kind), geometry_of(disk));
        let writer = MapWriter::create(&path, geometry, kind).unwrap();
        let mut map = MapBuilder::new(&hasher, geometry, Some(writer));
        for leaf in leaves_of(disk, &hasher) {
            map.push(leaf, 1);
        }
        let (root, writer) = map.finish();
        let noted = Noted {
            root,
            facts: Some(facts()),
            key: &key(),
        };
        writer.unwrap().finish(&noted).unwrap();
        (path, root)
    }

    /// Four data blocks, zeros between them, a short last block.
    fn small_disk() -> Vec<u8> {
        let mut disk = vec![0; 6 * BLOCK_LEN + 512];
        for (at, byte) in [(0, 1), (1, 2), (4, 3), (6, 4)] {
            disk[at * BLOCK_LEN] = byte;
        }
        disk
    }

    /// All that a map says, each node by its own path and the leaves by a walk.
    fn all_of(map: &MapFile) -> Result<(Vec<Leaf>, Vec<Option<Digest>>)> {
        let mut leaves = Vec::new();
        for run in map.walk()? {
            let (leaf, count) = run?;
            leaves.extend(std::iter::repeat_n(leaf, usize::try_from(count).unwrap()));
        }
        let mut nodes = Vec::new();
        for level in 0..map.shape().level_count() {
            for index in 0..map.shape().width(level) {
                nodes.push(map.node(Place { level, index })?);
            }
        }
        Ok((leaves, nodes))
    }

    /// The levels of the tree by their definition.
    fn naive_levels(disk: &[u8], hasher: &Hasher) -> Vec<Option<Digest>> {
        let mut level: Vec<Digest> = disk
            .chunks(BLOCK_LEN)
            .map(|block| hasher.leaf(block))
            .collect();
        let mut all = level.clone();
        while level.len() > 1 {
            let join = |pair: &[Digest]| match pair {
                [left, right] => hasher.node(left, right),
                _ => pair[0],
            };
            level = level.chunks(2).map(join).collect();
            all.extend(&level);
        }
        all.into_iter().map(Some).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        // Goal: the file has the tree of the definition. Method: random patterns of zero and data
        // blocks, a short tail, both hashes; every node by its path, every leaf by a walk.
        #[test]
        fn matches_naive(
            pattern in prop::collection::vec(any::<Option<u8>>(), 0..24),
            tail in 0usize..3,
            kind in prop::sample::select(vec![HashKind::Blake3, HashKind::Xxh3]),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut disk: Vec<u8> = Vec::new();
            for fill in pattern {
                disk.extend(std::iter::repeat_n(fill.unwrap_or(0), BLOCK_LEN));
            }
            disk.extend(std::iter::repeat_n(u8::from(tail == 2), tail * 512));
            let hasher = Hasher::new(kind);

            let (path, root) = save(dir.path(), &disk, kind);
            let map = MapFile::open(&path, &key()).unwrap();
            let (leaves, nodes) = all_of(&map).unwrap();

            prop_assert_eq!(&leaves, &leaves_of(&disk, &hasher));
            prop_assert_eq!(nodes, naive_levels(&disk, &hasher));
            prop_assert_eq!(map.root(), root);
            let data_count = leaves.iter().filter(|leaf| **leaf != Leaf::Zero).count();
            prop_assert_eq!(map.data_count(), data_count as u64);
            prop_assert_eq!(map.claim().facts, Some(&facts()));
            prop_assert!(map.claim().is_authentic);
        }
    }

    // Goal: a damaged map is noticed wherever the damage matters. Method: flip each byte of a small
    // map; opened, it is refused, or not authentic, or an error, or says what the sound one says.
    #[test]
    fn every_flipped_byte_is_noticed_or_does_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        let disk = small_disk();
        let (path, _) = save(dir.path(), &disk, HashKind::Blake3);
        let sound = std::fs::read(&path).unwrap();
        let expected = all_of(&MapFile::open(&path, &key()).unwrap()).unwrap();
        let source = MemoryDisk::new(disk);
        let flipped = dir.path().join("flipped.map");
        std::fs::write(&flipped, &sound).unwrap();
        let file = std::fs::File::options().write(true).open(&flipped).unwrap();
        let (mut noticed, mut harmless) = (0, 0);
        let put = |at: usize, byte: u8| failback_vhdx::FileAt::write_at(&file, at as u64, &[byte]);
        // All bytes that are in use, and some of each run that is not.
        let is_used = |at: &usize| *at < 1024 || sound[*at] != 0 || at.is_multiple_of(61);
        for at in (0..sound.len()).filter(is_used) {
            put(at, sound[at] ^ 0x10).unwrap();
            let said = MapFile::open(&flipped, &key()).and_then(|map| {
                let audited = audit::audit(&map, &source, Audit::Full);
                match map.claim().is_authentic && audited.is_ok() {
                    true => all_of(&map),
                    false => Err(Error::new(ErrorKind::Damaged, "refused")),
                }
            });
            match said {
                Ok(said) => {
                    assert!(said == expected, "byte {at}");
                    harmless += 1;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Damaged, "byte {at}");
                    noticed += 1;
                }
            }
            put(at, sound[at]).unwrap();
        }
        assert!(noticed > 500 && harmless > 500, "{noticed} {harmless}");
    }

    // Goal: lengths that lie cost nothing and are refused. Method: a map cut and lengthened, and
    // headers that name huge disks, many blocks and long facts.
    #[test]
    fn hostile_lengths_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = save(dir.path(), &small_disk(), HashKind::Blake3);
        let sound = std::fs::read(&path).unwrap();
        let kind = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let opened = MapFile::open(&path, &key()).map(|map| map.claim().is_authentic);
            // What opens is not believed.
            opened.map_or_else(
                |error| error.kind(),
                |is_authentic| {
                    assert!(!is_authentic);
                    ErrorKind::Damaged
                },
            )
        };
        for len in [0, 1, 143, 144, 4096, 65535, 65536, sound.len() - 1] {
            assert_eq!(kind(&sound[..len]), ErrorKind::Damaged, "{len}");
        }
        let longer: Vec<u8> = sound.iter().copied().chain([0]).collect();
        assert_eq!(kind(&longer), ErrorKind::Damaged);
        // Block size, disk, blocks, facts.
        for (at, len) in [(12, 4), (16, 8), (24, 8), (40, 4)] {
            for byte in [0, 0x7f, 0xff] {
                let mut bytes = sound.clone();
                bytes[at..at + len].fill(byte);
                assert_eq!(kind(&bytes), ErrorKind::Damaged, "{at} {byte}");
            }
        }
    }

    // Goal: the map of a sparse disk of any size takes next to no room, and opening it costs as
    // much as of a small one. Method: 64 TiB with two data blocks.
    #[cfg(unix)]
    #[test]
    fn the_map_of_a_sparse_disk_is_small() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.map");
        let geometry = Geometry::new(64 << 40, BlockSize::DEFAULT).unwrap();
        let hasher = Hasher::new(HashKind::Blake3);
        let data = Leaf::Data(hasher.leaf(b"x"));
        let writer = MapWriter::create(&path, geometry, HashKind::Blake3).unwrap();
        let mut map = MapBuilder::new(&hasher, geometry, Some(writer));
        map.push(Leaf::Zero, 12_345_678);
        map.push(data, 1);
        map.push(Leaf::Zero, (1 << 26) - 12_345_678 - 2);
        map.push(data, 1);
        let (root, writer) = map.finish();
        let noted = Noted {
            root,
            facts: None,
            key: &key(),
        };
        writer.unwrap().finish(&noted).unwrap();

        let map = MapFile::open(&path, &key()).unwrap();

        assert!(path.metadata().unwrap().blocks() * 512 < 512 << 10);
        assert_eq!(
            map.walk().unwrap().map(|run| run.unwrap().1).sum::<u64>(),
            1 << 26
        );
        assert_eq!(map.leaf(BlockIndex(12_345_678)).unwrap(), Some(data));
        assert_eq!(map.leaf(BlockIndex(12_345_677)).unwrap(), Some(Leaf::Zero));
        assert_eq!(map.leaf(BlockIndex(1 << 26)).unwrap(), None);
    }

    // Goal: a map of another key is not believed, nor are its facts looked at. Method: another key.
    #[test]
    fn another_key_does_not_believe() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = save(dir.path(), &small_disk(), HashKind::Blake3);
        let map = MapFile::open(&path, &MapKey::of([8; 32])).unwrap();
        assert!(!map.claim().is_authentic);
        assert!(map.facts().is_none());
    }

    // Goal: a name of the operator's that is no map is not written over; an older map is. Method:
    // both.
    #[test]
    fn only_maps_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (path, root) = save(dir.path(), &small_disk(), HashKind::Blake3);
        let geometry = geometry_of(&small_disk());
        let again = || {
            let mut map = MapBuilder::new(
                &Hasher::new(HashKind::Blake3),
                geometry,
                Some(MapWriter::create(&path, geometry, HashKind::Blake3).unwrap()),
            );
            map.push(Leaf::Zero, geometry.block_count().0);
            map.finish().1.unwrap().finish(&Noted {
                root,
                facts: None,
                key: &key(),
            })
        };
        std::fs::write(&path, b"FBCKMAP\x01 of an older release").unwrap();
        again().unwrap();
        std::fs::write(&path, b"a letter").unwrap();
        assert_eq!(again().unwrap_err().kind(), ErrorKind::Refused);
        assert_eq!(std::fs::read(&path).unwrap(), b"a letter");
    }

    // Goal: lies are found with the chance that is reported. Method: a disk of 200 data blocks, all
    // of which are looked at, one of them changed; then all of them, and time for some.
    #[test]
    fn an_audit_finds_what_was_changed() {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = vec![0; 201 * BLOCK_LEN];
        for block in 0..200_u8 {
            disk[usize::from(block) * BLOCK_LEN + 9] = block + 1;
        }
        let (path, _) = save(dir.path(), &disk, HashKind::Blake3);
        let map = MapFile::open(&path, &key()).unwrap();
        let audited = |disk: &[u8], how| audit::audit(&map, &MemoryDisk::new(disk.to_vec()), how);
        assert_eq!(audited(&disk, Audit::Full), Ok(200));
        assert!(audited(&disk, Audit::Quick).unwrap() > 0);
        let mut changed = disk.clone();
        changed[77 * BLOCK_LEN + 5] ^= 1;
        assert_eq!(audited(&changed, Audit::Full), Err(Refusal::Audit));
        changed.fill(0);
        assert_eq!(audited(&changed, Audit::Quick), Err(Refusal::Audit));
        assert_eq!(miss_probability(0, 0), 0.0);
        assert!((miss_probability(459, 1000) - 0.01).abs() < 0.001);
    }
}
