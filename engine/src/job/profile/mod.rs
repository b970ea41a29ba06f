//! What a platform can take, as versioned data: limits that its pages printed, each with its
//! source. A rule that an image shows is looked at; one that it cannot show is told, to be asked of
//! the host.

mod partitions;
#[cfg(unix)]
#[cfg(test)]
pub(super) mod sample;

use std::sync::OnceLock;

use serde::Deserialize;

use super::preflight::Finding;
use super::spec::DiskSpec;
use crate::disk::{OpenOptions, Source, open_source};
use crate::error::{Error, ErrorKind, Result};
use crate::operation::ImageInfo;
use crate::units::ByteOffset;
pub use partitions::{
    BITLOCKER, BITLOCKER_AT, ENTRY_COUNT_MAX, HEAD_LEN, Partition, Partitions, Scheme, Use,
};

/// All platforms that are known.
const PLATFORMS: [&str; 1] = [include_str!("azure-hyperv.toml")];
/// Bytes behind the disk in a fixed VHD.
const FOOTER_LEN: u64 = 512;
const MIB: u64 = 1 << 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Platform {
    platform: String,
    version: Vec<Version>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Version {
    name: String,
    title: String,
    date: String,
    rule: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    id: String,
    check: Check,
    says: String,
    #[serde(default)]
    min: u64,
    #[serde(default)]
    max: u64,
    #[serde(default)]
    allowed: Vec<String>,
    /// Where it is from, unless from the version's page.
    source: Option<String>,
}

/// How a rule is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Check {
    OsDiskSize,
    DataDiskSize,
    DataDiskCount,
    Generation,
    #[serde(rename = "gen2_os_disk")]
    SecondGenerationOsDisk,
    EfiPartitions,
    #[serde(rename = "sectors_4k")]
    Sectors,
    NoBitlocker,
    StorageSpaces,
    SameSize,
    Format,
    UploadSize,
    AskHost,
}

/// The limits of one platform, as one page had them.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    platform: &'static Platform,
    version: &'static Version,
}

/// What is seen of a disk.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The disk.
    pub id: String,
    /// Bytes of the virtual disk.
    pub size: u64,
    /// Bytes of the disk that it is made equal to, where that is known.
    pub other_size: Option<u64>,
    /// `raw`, `vhd`, `vhdx`.
    pub format: String,
    /// Logical and physical sector, where the format states them.
    pub sectors: Option<(u32, u32)>,
    /// Partitions, and whether one begins as BitLocker's volumes do; `None`: it could not be read.
    pub content: Option<(Partitions, bool)>,
}

impl Seen {
    /// Looks at an image.
    pub(crate) fn of(
        disk: &DiskSpec,
        info: &ImageInfo,
        other: Option<&ImageInfo>,
        (path, open): (&std::path::Path, &OpenOptions),
    ) -> Self {
        let sectors = info.vhdx.as_ref().and_then(|vhdx| {
            let logical = info.logical_sector_size?;
            Some((logical, vhdx.physical_sector_size))
        });
        // Of an image that somebody writes to, nothing is read.
        let source = open_source(path, open).ok();
        let logical = info.logical_sector_size.unwrap_or(512);
        Self {
            id: disk.id.clone(),
            size: info.virtual_size,
            other_size: other.map(|other| other.virtual_size),
            format: info.format.clone(),
            sectors,
            content: source.and_then(|source| content(source.as_ref(), logical).ok()),
        }
    }
}

fn content(disk: &dyn Source, sector: u32) -> Result<(Partitions, bool)> {
    let size = disk.info().virtual_size;
    let len = usize::try_from(size).map_or(HEAD_LEN, |size| size.min(HEAD_LEN));
    let mut head = vec![0; len];
    disk.read(ByteOffset(0), &mut head)?;
    let partitions = Partitions::of(&head, sector);
    // A disk without a table may be one volume.
    let starts = partitions.all.iter().map(|partition| partition.start);
    let mut is_encrypted = false;
    for start in starts.chain([0]).take(ENTRY_COUNT_MAX + 1) {
        let mut name = [0; BITLOCKER.len()];
        let at = start.saturating_add(BITLOCKER_AT);
        if at.saturating_add(name.len() as u64) <= size {
            disk.read(ByteOffset(at), &mut name)?;
            is_encrypted |= &name == BITLOCKER;
        }
    }
    Ok((partitions, is_encrypted))
}

/// Whether a rule holds, and what was seen; `None`: nothing in an image shows it.
type Look = Option<(bool, String)>;

impl Profile {
    /// The profile of this name: a platform and a version, `azure-hyperv/2020-01`.
    ///
    /// # Errors
    /// `Usage` with the names that there are.
    pub fn named(name: &str) -> Result<Self> {
        let all = || Self::all().into_iter();
        all().find(|it| it.name() == name).ok_or_else(|| {
            let names: Vec<_> = all().map(Self::name).collect();
            let shown = crate::error::one_line(name);
            let message = format!("no profile `{shown}`; there are {}", names.join(", "));
            Error::new(ErrorKind::Usage, message)
        })
    }

    /// All profiles.
    #[must_use]
    pub fn all() -> Vec<Self> {
        static PARSED: OnceLock<Vec<Platform>> = OnceLock::new();
        let platforms = PARSED.get_or_init(|| {
            let parse = |text| toml::from_str(text).expect("checked by a test");
            PLATFORMS.into_iter().map(parse).collect()
        });
        platforms
            .iter()
            .flat_map(|platform| {
                let of = |version| Self { platform, version };
                platform.version.iter().map(of)
            })
            .collect()
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> String {
        format!("{}/{}", self.platform.platform, self.version.name)
    }

    /// Holds its rules against the disks of a machine; the first is the one that it boots from.
    /// Pure.
    #[must_use]
    pub fn examine(self, disks: &[Seen]) -> Vec<Finding> {
        let mut found = Vec::new();
        for rule in &self.version.rule {
            let mut find = |disk: &str, look: Look| {
                let (holds, said) = match look {
                    Some((holds, saw)) => (holds, format!("{}; seen: {saw}", rule.says)),
                    None => (true, format!("ask the host: {}", rule.says)),
                };
                let page = &self.version;
                let of_page = || format!("{} ({})", page.title, page.date);
                found.push(Finding {
                    rule: format!("{}:{}", self.name(), rule.id),
                    disk: disk.to_owned(),
                    holds,
                    said,
                    source: Some(rule.source.clone().unwrap_or_else(of_page)),
                });
            };
            match rule.check {
                Check::AskHost => find("", None),
                Check::DataDiskCount => {
                    let count = disks.len().saturating_sub(1) as u64;
                    find("", Some((count <= rule.max, format!("{count}"))));
                }
                _ => {
                    for (at, disk) in disks.iter().enumerate() {
                        if let Some(look) = rule.look(disk, at == 0) {
                            find(&disk.id, look);
                        }
                    }
                }
            }
        }
        found
    }
}

impl Rule {
    /// `None`: it is no rule for this disk.
    fn look(&self, disk: &Seen, boots: bool) -> Option<Look> {
        let content = disk.content.as_ref();
        let has = |wanted| content.map(|(partitions, _)| partitions.has(wanted));
        let is_efi = has(Use::EfiSystem);
        let size = || format!("{} bytes", disk.size);
        let look = match self.check {
            Check::OsDiskSize if boots => Some((disk.size <= self.max, size())),
            Check::DataDiskSize if !boots => Some((disk.size <= self.max, size())),
            Check::Generation if boots => is_efi.map(|is_efi| {
                let generation = if is_efi { "2" } else { "1" };
                let is_allowed = self.allowed.iter().any(|it| it == generation);
                (is_allowed, format!("generation {generation}"))
            }),
            Check::SecondGenerationOsDisk if boots => is_efi.map(|is_efi| {
                let is_dynamic = has(Use::Dynamic) == Some(true);
                let is_small = disk.size < self.max;
                let kind = if is_dynamic { "dynamic" } else { "basic" };
                let efi = if is_efi { "EFI" } else { "no EFI" };
                let holds = !is_efi || (is_small && !is_dynamic);
                (holds, format!("{efi}, {kind}, {}", size()))
            }),
            Check::EfiPartitions if boots => content.map(|(partitions, _)| {
                let count = partitions.all.len() as u64;
                let is_efi = partitions.has(Use::EfiSystem);
                let efi = if is_efi { "EFI" } else { "no EFI" };
                let holds = !is_efi || count <= self.max;
                (holds, format!("{efi}, {count} partitions"))
            }),
            Check::Sectors => disk.sectors.map(|(logical, physical)| {
                let holds = (logical, physical) != (4096, 4096);
                (holds, format!("{logical} logical, {physical} physical"))
            }),
            Check::NoBitlocker => content.and_then(|(_, is_encrypted)| {
                // Without the sign a volume may still be: of another kind, or not yet.
                is_encrypted.then(|| (false, "its signature".to_owned()))
            }),
            Check::StorageSpaces => has(Use::StorageSpaces).map(|is_member| {
                let saw = if is_member { "a member" } else { "none" };
                (self.max > 0 || !is_member, saw.to_owned())
            }),
            Check::SameSize => disk
                .other_size
                .map(|other| (disk.size == other, format!("{} and {other}", disk.size))),
            Check::Format => {
                let is_allowed = self.allowed.contains(&disk.format);
                Some((is_allowed, disk.format.clone()))
            }
            Check::UploadSize => {
                let file = disk.size.saturating_add(FOOTER_LEN);
                let is_whole = disk.size.is_multiple_of(MIB);
                let holds = is_whole && (self.min..=self.max).contains(&file);
                Some((holds, format!("{file} bytes")))
            }
            _ => return None,
        };
        Some(look)
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::sample::{EFI, POOL, gpt_of};
    use super::*;

    const GIB: u64 = 1 << 30;

    fn seen(id: &str, size: u64) -> Seen {
        let head = vec![0; HEAD_LEN];
        Seen {
            id: id.to_owned(),
            size,
            other_size: Some(size),
            format: "vhdx".to_owned(),
            sectors: Some((512, 4096)),
            content: Some((Partitions::of(&head, 512), false)),
        }
    }

    fn with_gpt(disk: Seen, types: &[uuid::Uuid]) -> Seen {
        Seen {
            content: Some((Partitions::of(&gpt_of(types, 512), 512), false)),
            ..disk
        }
    }

    /// Ids of the rules that do not hold.
    fn broken(version: &str, disks: &[Seen]) -> Vec<String> {
        let profile = Profile::named(&format!("azure-hyperv/{version}")).unwrap();
        let found = profile.examine(disks);
        assert!(found.iter().all(|it| it.source.is_some()));
        let broken = found.into_iter().filter(|it| !it.holds);
        let id = |it: Finding| it.rule.rsplit(':').next().unwrap().to_owned();
        broken.map(id).collect()
    }

    // Goal: the data is what the table of the platform's pages says, version by version. Method: a
    // disk at each limit, and one byte beyond.
    #[test]
    fn limits_are_those_that_were_printed() {
        for (version, os, data) in [
            ("2014-06", 127, 1024),
            ("2017-01", 1023, 1023),
            ("2018-08", 2048, 4095),
            ("2020-01", 2048, 4095),
        ] {
            let at = |os, data| [seen("os", os), seen("data", data)];
            let none: [&str; 0] = [];
            assert_eq!(
                broken(version, &at(os * GIB, data * GIB)),
                none,
                "{version}"
            );
            let over = at((os + 1) * GIB, (data + 1) * GIB);
            assert_eq!(broken(version, &over), ["os_disk_size", "data_disk_size"]);
            let many: Vec<_> = (0..18).map(|_| seen("data", GIB)).collect();
            assert_eq!(broken(version, &many), ["data_disk_count"]);
            assert_eq!(broken(version, &many[1..]), none);
        }
        assert_eq!(Profile::all().len(), 4);
        let error = Profile::named("azure-hyperv/1999-01").unwrap_err();
        assert!(error.message().contains("azure-hyperv/2020-01"));
    }

    // Goal: what partitions tell differs by version as printed. Method: EFI, Storage Spaces,
    // BitLocker, many partitions.
    #[test]
    fn partitions_are_held_against_the_rules() {
        let efi = || with_gpt(seen("os", 299 * GIB), &[EFI]);
        assert_eq!(broken("2014-06", &[efi()]), ["os_disk_size", "generation"]);
        let none: [&str; 0] = [];
        assert_eq!(broken("2017-01", &[efi()]), none);
        let large = with_gpt(seen("os", 300 * GIB), &[EFI]);
        assert_eq!(broken("2020-01", &[large]), ["generation_2"]);
        let pool = with_gpt(seen("os", GIB), &[POOL]);
        assert_eq!(broken("2018-08", std::slice::from_ref(&pool)), none);
        assert_eq!(broken("2020-01", &[pool]), ["storage_spaces"]);
        let many = with_gpt(seen("os", GIB), &[EFI; 6]);
        assert_eq!(broken("2018-08", std::slice::from_ref(&many)), none);
        assert_eq!(broken("2020-01", &[many]), ["efi_partitions"]);
        let mut encrypted = seen("os", GIB);
        encrypted.content = encrypted.content.map(|(partitions, _)| (partitions, true));
        assert_eq!(broken("2020-01", &[encrypted]), ["bitlocker"]);
    }

    // Goal: what an image cannot show is told and holds; the rest of the rules are looked at.
    // Method: a disk that could not be read, and one that breaks the rest.
    #[test]
    fn what_cannot_be_seen_is_asked_of_the_host() {
        let unread = Seen {
            content: None,
            sectors: None,
            other_size: None,
            ..seen("os", GIB)
        };
        let found = Profile::named("azure-hyperv/2020-01")
            .unwrap()
            .examine(&[unread]);
        assert!(found.iter().all(|it| it.holds));
        let asked = found
            .iter()
            .filter(|it| it.said.starts_with("ask the host"));
        assert_eq!(asked.count(), 10);
        let wrong = Seen {
            size: GIB + 512,
            format: "raw".to_owned(),
            sectors: Some((4096, 4096)),
            ..seen("os", GIB)
        };
        assert_eq!(
            broken("2020-01", &[wrong]),
            ["sectors", "resize", "format", "upload_size"]
        );
    }

    // Goal: BitLocker's volumes are found where a partition begins, and a table that leads past the
    // end is no error. Method: a disk in memory.
    #[test]
    fn volumes_are_looked_at_where_they_begin() {
        let head = gpt_of(&[EFI, POOL], 512);
        let mut bytes = vec![0; 3 << 20];
        bytes[..head.len()].copy_from_slice(&head);
        let look = |bytes: &[u8]| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("disk.raw");
            std::fs::write(&path, bytes).unwrap();
            let disk = open_source(&path, &OpenOptions::default()).unwrap();
            content(disk.as_ref(), 512).unwrap()
        };
        let (partitions, is_encrypted) = look(&bytes);
        assert_eq!((partitions.all.len(), is_encrypted), (2, false));
        let at = (2 << 20) + 3;
        bytes[at..at + 8].copy_from_slice(BITLOCKER);
        assert!(look(&bytes).1);
        assert!(!look(&bytes[..2 << 20]).1);
        assert_eq!(look(&[0; 512]).0.scheme, Scheme::None);
    }
}
