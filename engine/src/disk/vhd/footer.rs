//! The footer: 512 bytes at the end of every VHD, with a copy at the start of those that have a
//! block table.

use failback_vhdx::Finding;
use uuid::Uuid;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::check;
use super::geometry::Chs;
use super::{NO_OFFSET, SECTOR};
use crate::units::DISK_LEN_MAX;

/// What a VHD is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VhdKind {
    /// The bytes of the disk, then the footer.
    Fixed,
    /// Blocks, stored once they are written.
    Dynamic,
    /// Blocks of a child; what it lacks is its parent's.
    Differencing,
}

impl VhdKind {
    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Dynamic => "dynamic",
            Self::Differencing => "differencing",
        }
    }

    fn of_number(number: u32) -> Option<Self> {
        match number {
            2 => Some(Self::Fixed),
            3 => Some(Self::Dynamic),
            4 => Some(Self::Differencing),
            _ => None,
        }
    }

    fn number(self) -> u32 {
        match self {
            Self::Fixed => 2,
            Self::Dynamic => 3,
            Self::Differencing => 4,
        }
    }
}

/// Which field of the footer is the size of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeRule {
    /// The field "current size".
    CurrentSize,
    /// Cylinders times heads times sectors: Virtual PC and old releases of QEMU.
    Geometry,
}

impl SizeRule {
    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::CurrentSize => "current_size",
            Self::Geometry => "geometry",
        }
    }
}

/// A footer whose sum is right and whose fields make sense.
#[derive(Clone, Debug)]
pub(super) struct Footer {
    /// As on disk: written again as it was, unknown bytes included.
    bytes: [u8; FOOTER_LEN],
    pub(super) kind: VhdKind,
    /// Where the header lies; `NO_OFFSET` in a fixed image.
    pub(super) data_offset: u64,
    /// Seconds since 2000-01-01 UTC.
    pub(super) timestamp: u32,
    pub(super) creator_app: [u8; 4],
    pub(super) creator_version: u32,
    pub(super) creator_host: [u8; 4],
    pub(super) current_size: u64,
    pub(super) chs: Chs,
    pub(super) unique_id: Uuid,
}

/// What a new footer says.
pub(super) struct NewFooter {
    pub(super) kind: VhdKind,
    pub(super) len: u64,
    pub(super) timestamp: u32,
    pub(super) unique_id: Uuid,
}

impl Footer {
    /// Reads a footer of 512 or, in old files, 511 bytes that lies at `at`. What is wrong goes to
    /// `findings`; `None` when one of them is an error.
    pub(super) fn parse(bytes: &[u8], at: u64, findings: &mut Vec<Finding>) -> Option<Self> {
        let mut whole = [0; FOOTER_LEN];
        whole
            .get_mut(..bytes.len())
            .expect("a footer is at most 512 bytes")
            .copy_from_slice(bytes);
        let raw = RawFooter::ref_from_bytes(&whole).expect("the length is that of the struct");
        let first = findings.len();
        if !is_footer(&whole) {
            let detail = "does not begin with the magic `conectix`";
            findings.push(check::error(STRUCTURE, at, RULE_SIGNATURE, detail));
            return None;
        }
        let kind = VhdKind::of_number(raw.kind.get());
        raw.find_errors(at, kind, findings);
        if findings.len() > first {
            return None;
        }
        raw.find_oddities(at, findings);
        Some(Self {
            bytes: whole,
            kind: kind?,
            data_offset: raw.data_offset.get(),
            timestamp: raw.timestamp.get(),
            creator_app: raw.creator_app,
            creator_version: raw.creator_version.get(),
            creator_host: raw.creator_host,
            current_size: raw.current_size.get(),
            chs: raw.chs(),
            unique_id: Uuid::from_bytes(raw.unique_id),
        })
    }

    /// A footer for a new image. The creator is `win `: a name that makes every reader take the
    /// size from its field and not from the geometry; see docs/decisions/0010-vhd.md.
    pub(super) fn new(new: &NewFooter) -> Self {
        let chs = Chs::for_len(new.len);
        let mut raw = RawFooter {
            cookie: *COOKIE,
            features: U32::new(FEATURE_RESERVED),
            version: U32::new(VERSION),
            data_offset: U64::new(match new.kind {
                VhdKind::Fixed => NO_OFFSET,
                _ => SECTOR,
            }),
            timestamp: U32::new(new.timestamp),
            creator_app: *CREATOR_APP,
            creator_version: U32::new(CREATOR_VERSION),
            creator_host: *b"Wi2k",
            original_size: U64::new(new.len),
            current_size: U64::new(new.len),
            cylinders: U16::new(chs.cylinders),
            heads: chs.heads,
            sectors: chs.sectors,
            kind: U32::new(new.kind.number()),
            checksum: U32::new(0),
            unique_id: *new.unique_id.as_bytes(),
            saved_state: 0,
            reserved: [0; 427],
        };
        raw.checksum = U32::new(checksum(raw.as_bytes(), CHECKSUM_AT));
        let mut findings = Vec::new();
        Self::parse(raw.as_bytes(), 0, &mut findings).expect("what is written here is sound")
    }

    /// The bytes on disk.
    pub(super) fn bytes(&self) -> &[u8; FOOTER_LEN] {
        &self.bytes
    }

    /// Bytes of the disk, and which field says so.
    ///
    /// Virtual PC, and QEMU unless told otherwise, meant the geometry, and rounded the disk to it;
    /// the largest geometry says nothing, since it also stands for all larger disks. Everybody
    /// else means the size.
    pub(super) fn virtual_size(&self) -> (u64, SizeRule) {
        let is_by_geometry = GEOMETRY_CREATORS.contains(&&self.creator_app);
        match is_by_geometry && self.chs != Chs::MAX && !self.chs.is_empty() {
            true => (self.chs.len(), SizeRule::Geometry),
            false => (self.current_size, SizeRule::CurrentSize),
        }
    }
}

/// Whether these bytes begin like a footer.
pub(super) fn is_footer(bytes: &[u8]) -> bool {
    bytes.starts_with(COOKIE)
}

/// Whether a footer, sound or not, says that the image is fixed.
pub(super) fn claims_fixed(bytes: &[u8]) -> bool {
    is_footer(bytes) && bytes.get(60..64) == Some(&[0, 0, 0, 2])
}

/// The sum that footer and header carry: the bytes added up, the sum itself left out, all bits
/// turned over.
pub(super) fn checksum(bytes: &[u8], sum_at: usize) -> u32 {
    let is_counted = |at: usize| !(sum_at..sum_at + 4).contains(&at);
    let counted = bytes.iter().enumerate().filter(|(at, _)| is_counted(*at));
    !counted.fold(0_u32, |sum, (_, byte)| sum.wrapping_add((*byte).into()))
}

/// 512 bytes, big-endian; drawn in docs/formats.md.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct RawFooter {
    cookie: [u8; 8],
    /// Bit 1 is always set; bit 0: temporary.
    features: U32,
    /// Major version in the upper half.
    version: U32,
    /// Of the header; all ones in a fixed image.
    data_offset: U64,
    timestamp: U32,
    creator_app: [u8; 4],
    creator_version: U32,
    creator_host: [u8; 4],
    original_size: U64,
    current_size: U64,
    cylinders: U16,
    heads: u8,
    sectors: u8,
    kind: U32,
    checksum: U32,
    unique_id: [u8; 16],
    saved_state: u8,
    reserved: [u8; 427],
}

const _: () = assert!(size_of::<RawFooter>() == FOOTER_LEN);

impl RawFooter {
    fn chs(&self) -> Chs {
        Chs {
            cylinders: self.cylinders.get(),
            heads: self.heads,
            sectors: self.sectors,
        }
    }

    fn find_errors(&self, at: u64, kind: Option<VhdKind>, findings: &mut Vec<Finding>) {
        let mut error = |rule, detail: String| {
            findings.push(check::error(STRUCTURE, at, rule, detail));
        };
        let (found, expected) = (self.checksum.get(), checksum(self.as_bytes(), CHECKSUM_AT));
        if found != expected {
            let detail = format!("sum is {found:#010x}, its bytes give {expected:#010x}");
            error("footer-checksum", detail);
        }
        if self.version.get() >> 16 != VERSION >> 16 {
            let detail = format!("version {:#010x} is unknown", self.version.get());
            error("footer-version", detail);
        }
        if kind.is_none() {
            let detail = format!("disk type {} is unknown", self.kind.get());
            error("footer-kind", detail);
        }
        let size = self.current_size.get();
        if size == 0 || !size.is_multiple_of(SECTOR) {
            let detail = format!("{size} bytes are no whole number of sectors");
            error("footer-size", detail);
        }
        if size > DISK_LEN_MAX {
            let detail = format!("{size} bytes are more than the 64 TiB a disk can have");
            error("footer-size-beyond-limit", detail);
        }
    }

    fn find_oddities(&self, at: u64, findings: &mut Vec<Finding>) {
        let mut warning = |rule, detail: String| {
            findings.push(check::warning(STRUCTURE, at, rule, detail));
        };
        let features = self.features.get();
        if features & FEATURE_RESERVED == 0 || features & !FEATURES_KNOWN != 0 {
            let detail = format!("features are {features:#x}, 2 or 3 expected");
            warning("footer-features", detail);
        }
        if self.saved_state != 0 {
            let detail = "belongs to a machine in saved state: resuming it after a change of the \
                          disk damages the guest";
            warning("footer-saved-state", detail.into());
        }
        if self.reserved.iter().any(|byte| *byte != 0) {
            warning("footer-reserved", "some are not".into());
        }
        let is_fixed = self.kind.get() == VhdKind::Fixed.number();
        if is_fixed && ![NO_OFFSET, NO_OFFSET >> 32].contains(&self.data_offset.get()) {
            let detail = format!("data offset is {:#x}", self.data_offset.get());
            warning("footer-data-offset", detail);
        }
    }
}

/// Bytes of a footer; old files may have one byte less.
pub(super) const FOOTER_LEN: usize = 512;
/// The rule that a file without footer breaks.
pub(super) const RULE_SIGNATURE: &str = "footer-signature";
const STRUCTURE: &str = "footer";
const COOKIE: &[u8; 8] = b"conectix";
const CHECKSUM_AT: usize = 64;
const VERSION: u32 = 0x0001_0000;
const FEATURE_RESERVED: u32 = 2;
const FEATURES_KNOWN: u32 = 3;
const CREATOR_APP: &[u8; 4] = b"win ";
/// Ours; the programs of Windows that use the same name begin at 6.0.
const CREATOR_VERSION: u32 = 0x0001_0000;
const GEOMETRY_CREATORS: [&[u8; 4]; 2] = [b"vpc ", b"qemu"];

#[cfg(test)]
mod tests {
    use super::*;

    fn new(len: u64) -> Footer {
        Footer::new(&NewFooter {
            kind: VhdKind::Fixed,
            len,
            timestamp: 1,
            unique_id: Uuid::from_u128(7),
        })
    }

    fn findings_of(bytes: &[u8]) -> Vec<Finding> {
        let mut findings = Vec::new();
        let parsed = Footer::parse(bytes, 0, &mut findings);
        assert_eq!(parsed.is_none(), !findings.is_empty());
        findings
    }

    // Goal: damage of any byte is noticed. Method: each byte of a footer changed in turn.
    #[test]
    fn every_changed_byte_is_noticed() {
        let footer = new(5 << 20);
        for at in 0..FOOTER_LEN {
            let mut bytes = *footer.bytes();
            bytes[at] ^= 0x41;
            assert!(!findings_of(&bytes).is_empty(), "byte {at}");
        }
    }

    // Goal: a footer of 511 bytes is as good as one of 512. Method: the last byte left out.
    #[test]
    fn a_footer_of_511_bytes_is_read() {
        assert!(findings_of(&new(1 << 20).bytes()[..511]).is_empty());
    }

    // Goal: the size is taken from the field that its creator meant. Method: creators of both
    // kinds, with a geometry below the size and with the largest one.
    #[test]
    fn the_creator_decides_what_the_size_is() {
        let mut footer = new(10 << 20);
        assert_eq!(footer.virtual_size(), (10 << 20, SizeRule::CurrentSize));
        for creator in [b"vpc ", b"qemu"] {
            footer.creator_app = *creator;
            let by_geometry = (301 * 4 * 17 * 512, SizeRule::Geometry);
            assert_eq!(footer.virtual_size(), by_geometry);
        }
        footer.chs = Chs::MAX;
        assert_eq!(footer.virtual_size(), (10 << 20, SizeRule::CurrentSize));
    }
}
