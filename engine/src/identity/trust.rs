//! The one place that decides whether a saved map may stand for a read of the disk.
//!
//! A map is trusted when the disk was sealed when the map was made and is sealed now, in the same
//! state. Sealed: nobody else has it open for writing (whoever takes facts holds the lock) and its
//! log is empty. Each condition alone can be deceived:
//!
//! - `DataWriteGuid` changes once per *opening* for writing: a writer that had the image open when
//!   the map was made changes it no more. So the file's own times count as well.
//! - A file's mtime can be set at will. Its ctime cannot, short of setting the clock back.
//! - ctime has the grain of the kernel's tick. A write in the same tick as the recorded ctime does
//!   not show, so facts that were taken less than [`GRAIN_NS`] after it are refused ("racy", as in
//!   git's index); where times are whole seconds, [`COARSE_GRAIN_NS`]. Whoever makes a map waits
//!   that long.
//! - After a power cut a file can hold what was written to it and have lost the time of it. A VHDX
//!   is told by its `DataWriteGuid`, durable before its first write; the others are trusted within
//!   one start of the system only.
//!
//! Pure: looks at facts, does no I/O and reads no clock.

use crate::hash::HashKind;
use crate::identity::{Facts, ImageFacts};
use crate::units::Geometry;

/// Two ticks of the slowest usual kernel clock, 100 Hz.
pub(super) const GRAIN_NS: i64 = 20_000_000;
/// Two steps of the coarsest file system that keeps times, FAT, and some to spare.
pub(super) const COARSE_GRAIN_NS: i64 = 4_000_000_000;
const SECOND_NS: i64 = 1_000_000_000;

/// What a map says it is.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// Its MAC is that of this host's key.
    pub is_authentic: bool,
    /// Hash of its leaves.
    pub hash: HashKind,
    /// The disk, cut into blocks.
    pub geometry: Geometry,
    /// The disk when the map was made; `None`: nothing was noted.
    pub facts: Option<&'a Facts>,
}

/// Why a map is not trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The file is no map of this version.
    Format,
    /// The MAC is not right, or a node is not the one that the root stands for.
    Mac,
    /// Made with a hash that whoever writes inside the guest can deceive.
    HashNotCryptographic,
    /// Made with another hash than the session's.
    Hash,
    /// Made with other blocks than the session's.
    BlockSize,
    /// Nothing is noted of the disk, now or then: a device, or a system that does not tell.
    NoFacts,
    /// The disk, or its file, has another length.
    Size,
    /// The image has another format.
    ImageFormat,
    /// Sectors of another size.
    SectorSize,
    /// Another file, or a copy of it.
    FileId,
    /// Another virtual disk.
    DiskId,
    /// The image was opened for writing since.
    DataWriteGuid,
    /// A log waits to be replayed, or did when the map was made.
    LogNotEmpty,
    /// Headers older than when the map was made.
    HeaderSequence,
    /// Bytes of the file were written since.
    Mtime,
    /// The file was changed since, whatever its mtime says.
    Ctime,
    /// The map was made too soon after the last change to tell a later one from it.
    RacyCtime,
    /// The file is kept by another system, whose clock says nothing here.
    FileSystem,
    /// The system was started anew since, and the format has nothing that survives a power cut.
    Boot,
    /// The chain of parents is another, or one of them does not pass.
    ParentChain,
    /// A block that was read does not have its hash.
    Audit,
}

impl Refusal {
    /// The reason code of reports and events.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Format => "map_rejected:format",
            Self::Mac => "map_rejected:mac",
            Self::HashNotCryptographic => "map_rejected:hash_not_cryptographic",
            Self::Hash => "map_rejected:hash",
            Self::BlockSize => "map_rejected:block_size",
            Self::NoFacts => "map_rejected:no_facts",
            Self::Size => "map_rejected:size",
            Self::ImageFormat => "map_rejected:image_format",
            Self::SectorSize => "map_rejected:sector_size",
            Self::FileId => "map_rejected:file_id",
            Self::DiskId => "map_rejected:disk_id",
            Self::DataWriteGuid => "map_rejected:data_write_guid",
            Self::LogNotEmpty => "map_rejected:log_not_empty",
            Self::HeaderSequence => "map_rejected:header_sequence",
            Self::Mtime => "map_rejected:mtime",
            Self::Ctime => "map_rejected:ctime",
            Self::RacyCtime => "map_rejected:racy_ctime",
            Self::FileSystem => "map_rejected:file_system",
            Self::Boot => "map_rejected:boot",
            Self::ParentChain => "map_rejected:parent_chain",
            Self::Audit => "map_rejected:audit",
        }
    }

    /// Every refusal; the position is its number on the wire, so new ones go to the end.
    pub const ALL: [Self; 21] = [
        Self::Format,
        Self::Mac,
        Self::HashNotCryptographic,
        Self::Hash,
        Self::BlockSize,
        Self::NoFacts,
        Self::Size,
        Self::ImageFormat,
        Self::SectorSize,
        Self::FileId,
        Self::DiskId,
        Self::DataWriteGuid,
        Self::LogNotEmpty,
        Self::HeaderSequence,
        Self::Mtime,
        Self::Ctime,
        Self::RacyCtime,
        Self::FileSystem,
        Self::Boot,
        Self::ParentChain,
        Self::Audit,
    ];
}

/// Whether what a map claims holds for the disk as it is now, in blocks and with the hash of a
/// session.
///
/// # Errors
/// The first condition that is not met.
pub fn judge(
    then: &Claim<'_>,
    now: Option<&Facts>,
    hash: HashKind,
    geometry: Geometry,
) -> Result<(), Refusal> {
    let met = |condition: bool, refusal| if condition { Ok(()) } else { Err(refusal) };
    met(then.is_authentic, Refusal::Mac)?;
    met(then.hash == HashKind::Blake3, Refusal::HashNotCryptographic)?;
    met(then.hash == hash, Refusal::Hash)?;
    met(
        then.geometry.block_size() == geometry.block_size(),
        Refusal::BlockSize,
    )?;
    met(then.geometry == geometry, Refusal::Size)?;
    let (Some(then), Some(now)) = (then.facts, now) else {
        return Err(Refusal::NoFacts);
    };
    let (Some((image, parents)), Some((image_now, parents_now))) =
        (then.images.split_first(), now.images.split_first())
    else {
        return Err(Refusal::NoFacts);
    };
    judge_image(then, image, now, image_now)?;
    met(image.disk_len == geometry.disk_len(), Refusal::Size)?;
    met(parents.len() == parents_now.len(), Refusal::ParentChain)?;
    let mut pairs = parents.iter().zip(parents_now);
    let is_sound =
        pairs.all(|(parent, parent_now)| judge_image(then, parent, now, parent_now).is_ok());
    met(is_sound, Refusal::ParentChain)
}

/// Whether facts that are being taken can be told from those after a later change, and if not, how
/// many nanoseconds that takes from the moment they were taken. `None`: they never can.
#[must_use]
pub(crate) fn racy_for(facts: &Facts) -> Option<i64> {
    let waits = facts.images.iter().map(|image| {
        let is_in_future = image.ctime_ns > facts.taken_ns;
        let wait = grain(image).saturating_sub(facts.taken_ns.saturating_sub(image.ctime_ns));
        (!is_in_future).then_some(wait.max(0))
    });
    waits.max_by_key(|wait| wait.unwrap_or(i64::MAX)).flatten()
}

fn grain(image: &ImageFacts) -> i64 {
    match image.ctime_ns % SECOND_NS == 0 && image.mtime_ns % SECOND_NS == 0 {
        true => COARSE_GRAIN_NS,
        false => GRAIN_NS,
    }
}

fn judge_image(
    facts: &Facts,
    then: &ImageFacts,
    facts_now: &Facts,
    now: &ImageFacts,
) -> Result<(), Refusal> {
    let is_racy = facts.taken_ns.saturating_sub(then.ctime_ns) < grain(then);
    // Durable before the first write of whoever changes the content.
    let has_guid = !then.data_write_guid.is_empty();
    let is_same_boot = facts.boot.is_some() && facts.boot == facts_now.boot;
    let conditions = [
        (then.format == now.format, Refusal::ImageFormat),
        (then.is_local && now.is_local, Refusal::FileSystem),
        (then.file_id == now.file_id, Refusal::FileId),
        (then.disk_id == now.disk_id, Refusal::DiskId),
        (
            then.data_write_guid == now.data_write_guid,
            Refusal::DataWriteGuid,
        ),
        (
            (then.file_len, then.disk_len) == (now.file_len, now.disk_len),
            Refusal::Size,
        ),
        (then.sector_size == now.sector_size, Refusal::SectorSize),
        (then.is_log_empty && now.is_log_empty, Refusal::LogNotEmpty),
        (
            then.header_sequence <= now.header_sequence,
            Refusal::HeaderSequence,
        ),
        (then.mtime_ns == now.mtime_ns, Refusal::Mtime),
        (then.ctime_ns == now.ctime_ns, Refusal::Ctime),
        (!is_racy, Refusal::RacyCtime),
        (has_guid || is_same_boot, Refusal::Boot),
    ];
    match conditions.iter().find(|(is_met, _)| !is_met) {
        Some((_, refusal)) => Err(*refusal),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::BlockSize;

    const DISK_LEN: u64 = 8 << 20;

    fn image() -> ImageFacts {
        ImageFacts {
            format: "vhdx".into(),
            file_id: "1:2".into(),
            file_len: 9 << 20,
            mtime_ns: 1_000_000_007,
            ctime_ns: 1_000_000_009,
            is_local: true,
            disk_len: DISK_LEN,
            sector_size: 512,
            disk_id: "id".into(),
            data_write_guid: "guid".into(),
            is_log_empty: true,
            header_sequence: 7,
        }
    }

    fn facts() -> Facts {
        let parent = ImageFacts {
            file_id: "1:3".into(),
            ..image()
        };
        Facts {
            taken_ns: 5_000_000_000,
            boot: Some("boot".into()),
            images: vec![image(), parent],
            is_settled: true,
        }
    }

    fn geometry(len: u64, block: u64) -> Geometry {
        Geometry::new(len, BlockSize::new(block).unwrap()).unwrap()
    }

    struct Case {
        is_authentic: bool,
        hash: HashKind,
        wanted: HashKind,
        geometry: Geometry,
        then: Option<Facts>,
        now: Option<Facts>,
    }

    impl Case {
        fn sound() -> Self {
            Self {
                is_authentic: true,
                hash: HashKind::Blake3,
                wanted: HashKind::Blake3,
                geometry: geometry(DISK_LEN, 1 << 20),
                then: Some(facts()),
                now: Some(facts()),
            }
        }

        fn judged(&self) -> Result<(), Refusal> {
            let claim = Claim {
                is_authentic: self.is_authentic,
                hash: self.hash,
                geometry: self.geometry,
                facts: self.then.as_ref(),
            };
            let now = self.now.as_ref();
            judge(&claim, now, self.wanted, geometry(DISK_LEN, 1 << 20))
        }
    }

    fn then(change: impl FnOnce(&mut ImageFacts)) -> Case {
        let mut case = Case::sound();
        change(&mut case.then.as_mut().unwrap().images[0]);
        case
    }

    fn now(change: impl FnOnce(&mut ImageFacts)) -> Case {
        let mut case = Case::sound();
        change(&mut case.now.as_mut().unwrap().images[0]);
        case
    }

    fn both(change: impl Fn(&mut Facts)) -> Case {
        let mut case = Case::sound();
        change(case.then.as_mut().unwrap());
        change(case.now.as_mut().unwrap());
        case
    }

    fn is_raw(facts: &mut Facts) {
        facts.images.truncate(1);
        let image = &mut facts.images[0];
        image.format = "raw".into();
        (image.disk_id, image.data_write_guid) = (String::new(), String::new());
    }

    fn of_session(change: impl FnOnce(&mut Case)) -> Case {
        let mut case = Case::sound();
        change(&mut case);
        case
    }

    // Goal: each condition refuses by itself. Method: facts that pass, and one departure a row.
    #[test]
    fn each_departure_is_refused() {
        let table = [
            (of_session(|case| case.is_authentic = false), Refusal::Mac),
            (
                of_session(|case| (case.hash, case.wanted) = (HashKind::Xxh3, HashKind::Xxh3)),
                Refusal::HashNotCryptographic,
            ),
            (
                of_session(|case| case.wanted = HashKind::Xxh3),
                Refusal::Hash,
            ),
            (
                of_session(|case| case.geometry = geometry(DISK_LEN, 2 << 20)),
                Refusal::BlockSize,
            ),
            (
                of_session(|case| case.geometry = geometry(DISK_LEN + 512, 1 << 20)),
                Refusal::Size,
            ),
            (of_session(|case| case.then = None), Refusal::NoFacts),
            (of_session(|case| case.now = None), Refusal::NoFacts),
            (both(|facts| facts.images.clear()), Refusal::NoFacts),
            (both(|facts| facts.images[0].disk_len += 1), Refusal::Size),
            (now(|image| image.disk_len += 1), Refusal::Size),
            (now(|image| image.file_len += 1), Refusal::Size),
            (
                now(|image| image.format = "vhd".into()),
                Refusal::ImageFormat,
            ),
            (now(|image| image.sector_size = 4096), Refusal::SectorSize),
            (now(|image| image.file_id.push('0')), Refusal::FileId),
            (now(|image| image.disk_id.push('0')), Refusal::DiskId),
            (
                now(|image| image.data_write_guid.push('0')),
                Refusal::DataWriteGuid,
            ),
            (
                now(|image| image.is_log_empty = false),
                Refusal::LogNotEmpty,
            ),
            (
                then(|image| image.is_log_empty = false),
                Refusal::LogNotEmpty,
            ),
            (
                now(|image| image.header_sequence = 6),
                Refusal::HeaderSequence,
            ),
            (now(|image| image.mtime_ns += 1), Refusal::Mtime),
            (now(|image| image.ctime_ns += 1), Refusal::Ctime),
            (now(|image| image.ctime_ns -= 1), Refusal::Ctime),
            (now(|image| image.is_local = false), Refusal::FileSystem),
            (then(|image| image.is_local = false), Refusal::FileSystem),
            (
                both(|facts| facts.taken_ns = facts.images[0].ctime_ns + GRAIN_NS - 1),
                Refusal::RacyCtime,
            ),
            (
                both(|facts| facts.taken_ns = facts.images[0].ctime_ns - 1),
                Refusal::RacyCtime,
            ),
            (
                both(|facts| {
                    let image = &mut facts.images[0];
                    (image.mtime_ns, image.ctime_ns) = (2 * SECOND_NS, 2 * SECOND_NS);
                }),
                Refusal::RacyCtime,
            ),
            (
                of_session(|case| case.now.as_mut().unwrap().images.truncate(1)),
                Refusal::ParentChain,
            ),
            (
                of_session(|case| case.now.as_mut().unwrap().images[1].ctime_ns += 1),
                Refusal::ParentChain,
            ),
        ];
        assert_eq!(Case::sound().judged(), Ok(()));
        for (row, (case, refusal)) in table.into_iter().enumerate() {
            assert_eq!(case.judged(), Err(refusal), "row {row}");
        }
    }

    // Goal: a raw disk is not trusted across starts of the system, a VHDX is. Method: both, with
    // and without another start between.
    #[test]
    fn a_start_between_tells_formats_apart() {
        let restarted = |mut case: Case| {
            case.now.as_mut().unwrap().boot = Some("later".into());
            case.judged()
        };
        assert_eq!(both(is_raw).judged(), Ok(()));
        assert_eq!(restarted(both(is_raw)), Err(Refusal::Boot));
        assert_eq!(restarted(Case::sound()), Ok(()));
        let nameless = both(|facts| {
            is_raw(facts);
            facts.boot = None;
        });
        assert_eq!(nameless.judged(), Err(Refusal::Boot));
    }

    // Goal: whoever takes facts knows how long to wait until they will be trusted. Method: the wait
    // that is named, and one nanosecond less.
    #[test]
    fn the_wait_that_is_named_is_enough_and_needed() {
        let mut facts = facts();
        facts.taken_ns = facts.images[0].ctime_ns + 5;
        let wait = racy_for(&facts).unwrap();
        let judged_after =
            |wait: i64| both(|later| later.taken_ns = facts.taken_ns + wait).judged();
        assert_eq!(judged_after(wait), Ok(()));
        assert_eq!(judged_after(wait - 1), Err(Refusal::RacyCtime));
        facts.taken_ns = facts.images[0].ctime_ns - 1;
        assert_eq!(racy_for(&facts), None);
    }

    // Goal: codes are what docs/report.md lists, each once. Method: all of them.
    #[test]
    fn codes_are_distinct_and_listed() {
        let codes = Refusal::ALL.map(Refusal::code);
        let distinct: std::collections::HashSet<_> = codes.into_iter().collect();
        assert_eq!(distinct.len(), Refusal::ALL.len());
        assert!(codes.iter().all(|code| code.starts_with("map_rejected:")));
    }
}
