//! The structures of a VHD, read once from both ends of the file and checked against each other.

use std::ops::Range;

use failback_vhdx::{FileAt, Finding, Severity};

use super::check;
use super::footer::{self, FOOTER_LEN, Footer, SizeRule, VhdKind};
use super::geometry::{Chs, Layout};
use super::header::{HEADER_LEN, Header};
use super::table::Table;
use super::{AZURE_UNIT, SECTOR};
use crate::error::{Error, Result};
use crate::units::DISK_LEN_MAX;

/// A VHD without its content.
#[derive(Debug)]
pub(super) struct Anatomy {
    pub(super) file_len: u64,
    /// The footer that counts: the one at the end, or its copy where that one is lost.
    pub(super) footer: Footer,
    /// Where the footer at the end begins; `None`: it is lost.
    pub(super) footer_at: Option<u64>,
    /// Whether the first 512 bytes are the footer that counts.
    pub(super) is_copy_same: bool,
    /// Bytes of the disk.
    pub(super) len: u64,
    pub(super) size_rule: SizeRule,
    /// What images with a block table have.
    pub(super) blocks: Option<Blocks>,
}

/// Header, cut and block table.
#[derive(Debug)]
pub(super) struct Blocks {
    pub(super) header: Header,
    pub(super) layout: Layout,
    pub(super) table: Table,
}

impl Anatomy {
    /// Reads and checks everything but content and parent. `None` when an error among `findings`
    /// leaves nothing to go on with; the caller refuses the image for any error.
    ///
    /// # Errors
    /// `Io`; damage is a finding.
    pub(super) fn read(file: &dyn FileAt, findings: &mut Vec<Finding>) -> Result<Option<Self>> {
        let file_len = file.len().map_err(|e| Error::io(e, "read length"))?;
        let Some(Footers {
            footer,
            footer_at,
            is_copy_same,
        }) = Footers::read(file, file_len, findings)?
        else {
            return Ok(None);
        };
        let (len, size_rule) = footer.virtual_size();
        let mut anatomy = Self {
            file_len,
            footer,
            footer_at,
            is_copy_same,
            len,
            size_rule,
            blocks: None,
        };
        anatomy.find_size_faults(findings);
        match anatomy.footer.kind {
            VhdKind::Fixed => anatomy.find_fixed_faults(findings),
            _ => {
                anatomy.blocks = Blocks::read(file, &anatomy, findings)?;
                if anatomy.blocks.is_none() {
                    return Ok(None);
                }
            }
        }
        Ok(Some(anatomy))
    }

    /// Where blocks have to end: at the footer, or at the end of the file when that one is lost.
    pub(super) fn content_end(&self) -> u64 {
        self.footer_at.unwrap_or(self.file_len)
    }

    /// What is odd but harms nobody: space that nothing refers to, a geometry that others read
    /// otherwise, locators that lead nowhere.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn find_loose_ends(
        &self,
        file: &dyn FileAt,
        findings: &mut Vec<Finding>,
    ) -> Result<()> {
        let at = self.footer_at.unwrap_or(0);
        if self.footer.chs != Chs::for_len(self.footer.current_size) {
            let detail = format!(
                "geometry is {:?}, {:?} belongs to {} bytes",
                self.footer.chs,
                Chs::for_len(self.footer.current_size),
                self.footer.current_size
            );
            let rule = "footer-geometry";
            findings.push(check::warning("footer", at, rule, detail));
        }
        let Some(blocks) = &self.blocks else {
            return Ok(());
        };
        blocks.find_locator_faults(file, self.content_end(), findings);
        blocks.find_stray_entries(findings);
        let loose = self.loose_space(blocks);
        if loose > 0 {
            let detail = format!("{loose} bytes belong to nothing");
            let rule = "unreferenced-space";
            findings.push(Finding {
                at: None,
                ..check::warning("file", 0, rule, detail)
            });
        }
        Ok(())
    }

    fn find_size_faults(&self, findings: &mut Vec<Finding>) {
        let at = self.footer_at.unwrap_or(0);
        if self.size_rule == SizeRule::Geometry && self.len != self.footer.current_size {
            let detail = format!(
                "made by a program that goes by the geometry: {} bytes, the size field says {}",
                self.len, self.footer.current_size
            );
            let rule = "footer-sizes-differ";
            findings.push(check::warning("footer", at, rule, detail));
        }
        debug_assert!(self.len <= DISK_LEN_MAX, "the footer was checked");
    }

    fn find_fixed_faults(&self, findings: &mut Vec<Finding>) {
        let end = self.content_end();
        if self.len > end {
            let detail = format!(
                "the disk has {} bytes, the file {end} before the footer: cut short?",
                self.len
            );
            let rule = "disk-past-end";
            findings.push(check::error("file", end, rule, detail));
        }
        if self.len < end {
            let detail = format!(
                "{} bytes lie between the disk and the footer",
                end - self.len
            );
            let rule = "space-before-footer";
            findings.push(check::warning("file", self.len, rule, detail));
        }
        if !self.len.is_multiple_of(AZURE_UNIT) {
            let detail = "the disk is not a whole number of MiB: Azure refuses it".to_owned();
            let rule = "size-not-whole-mib";
            findings.push(check::warning("footer", end, rule, detail));
        }
    }

    fn loose_space(&self, blocks: &Blocks) -> u64 {
        let mut used = blocks.structures();
        used.push(self.content_end()..self.file_len);
        used.extend(blocks.header.locators.iter().map(|locator| {
            let len = u64::from(locator.space.max(locator.len));
            locator.at..locator.at.saturating_add(len)
        }));
        used.extend(blocks.table.places(blocks.layout).map(|(_, range)| range));
        used.sort_unstable_by_key(|range| range.start);
        let (mut at, mut loose) = (0, 0);
        for range in used {
            let gap = range.start.min(self.file_len).saturating_sub(at);
            loose += if gap > FILLER_MAX { gap } else { 0 };
            at = at.max(range.end);
        }
        loose
    }
}

impl Blocks {
    fn read(
        file: &dyn FileAt,
        anatomy: &Anatomy,
        findings: &mut Vec<Finding>,
    ) -> Result<Option<Self>> {
        let at = anatomy.footer.data_offset;
        let limit = anatomy.content_end();
        let is_inside = |end: Option<u64>| end.is_some_and(|end| end <= limit);
        if at < SECTOR || !is_inside(at.checked_add(HEADER_LEN as u64)) {
            let detail = format!("the header cannot lie at {at:#x}");
            let rule = "header-place";
            findings.push(check::error("footer", 0, rule, detail));
            return Ok(None);
        }
        let mut bytes = [0; HEADER_LEN];
        file.read_at(at, &mut bytes)
            .map_err(|e| Error::io(e, "read header").at(at))?;
        let Some(header) = Header::parse(&bytes, at, findings) else {
            return Ok(None);
        };
        let layout = Layout {
            len: anatomy.len,
            block_size: header.block_size,
        };
        let table = header.table_at..header.table_at.saturating_add(header.table_len());
        if !is_inside(Some(table.end)) {
            let detail = format!("ends at {:#x}, past the end of the file", table.end);
            let rule = "table-past-end";
            findings.push(check::error("block table", table.start, rule, detail));
            return Ok(None);
        }
        if table.start < at + HEADER_LEN as u64 && at < table.end {
            let detail = format!("lies over the header at {at:#x}");
            let rule = "table-over-header";
            findings.push(check::error("block table", table.start, rule, detail));
            return Ok(None);
        }
        if u64::from(header.entry_count) < layout.block_count() {
            let detail = format!(
                "has {} entries, the disk has {} blocks",
                header.entry_count,
                layout.block_count()
            );
            let rule = "table-small";
            findings.push(check::error("block table", table.start, rule, detail));
            return Ok(None);
        }
        let table = Table::load(file, &header)?;
        let blocks = Self {
            header,
            layout,
            table,
        };
        let structures = blocks.structures();
        blocks
            .table
            .find_faults(layout, &structures, limit, findings);
        Ok(Some(blocks))
    }

    /// What blocks must not lie over, but for the footer at the end: the copy, the header, the
    /// table, the texts of locators.
    pub(super) fn structures(&self) -> Vec<Range<u64>> {
        let header = &self.header;
        let mut structures = vec![
            0..SECTOR,
            header.at..header.at + HEADER_LEN as u64,
            header.table_at..header.table_at + header.table_len(),
        ];
        let texts = header.locators.iter().filter(|locator| locator.len > 0);
        structures
            .extend(texts.map(|locator| locator.at..locator.at.saturating_add(locator.len.into())));
        structures
    }

    fn find_locator_faults(&self, file: &dyn FileAt, limit: u64, findings: &mut Vec<Finding>) {
        for locator in &self.header.locators {
            let end = locator.at.saturating_add(locator.len.into());
            if end > limit {
                let detail = format!("ends at {end:#x}, the content of the file at {limit:#x}");
                let rule = "locator-past-end";
                findings.push(check::warning("locator", locator.at, rule, detail));
            } else if locator.text(file).is_none() {
                let detail = format!("has the code {:x?}", locator.code);
                let rule = "locator-unknown";
                findings.push(check::warning("locator", locator.at, rule, detail));
            }
        }
    }

    fn find_stray_entries(&self, findings: &mut Vec<Finding>) {
        let stray = self.table.used_past(self.layout.block_count());
        if stray > 0 {
            let detail = format!("{stray} entries past the end of the disk are used");
            let rule = "table-beyond-disk";
            let at = self.header.table_at;
            findings.push(check::warning("block table", at, rule, detail));
        }
    }
}

/// The footer that counts, and how its two copies fare.
struct Footers {
    footer: Footer,
    footer_at: Option<u64>,
    is_copy_same: bool,
}

impl Footers {
    /// The footer at the end counts. Its copy stands in for it in images with a block table, where
    /// a crash while the file grew, or a cut file, lost the one at the end.
    fn read(file: &dyn FileAt, file_len: u64, findings: &mut Vec<Finding>) -> Result<Option<Self>> {
        let (at, bytes) = last_bytes(file, file_len)?;
        let mut at_end = Vec::new();
        let end = Footer::parse(&bytes, at, &mut at_end);
        if let Some(footer) = end.as_ref().filter(|footer| footer.kind == VhdKind::Fixed) {
            findings.append(&mut at_end);
            find_other_kind(file, file_len, footer, findings)?;
            return Ok(Some(Self {
                footer: footer.clone(),
                footer_at: Some(at),
                is_copy_same: true,
            }));
        }
        let mut at_start = Vec::new();
        let copy = first_bytes(file, file_len)?
            .and_then(|bytes| Footer::parse(&bytes, 0, &mut at_start))
            .filter(|copy| copy.kind != VhdKind::Fixed);
        findings.append(&mut at_end);
        match (end, copy) {
            (Some(footer), Some(copy)) => {
                let is_copy_same = copy.bytes() == footer.bytes();
                if !is_copy_same {
                    let detail = "differs from the footer at the end, which counts";
                    let rule = "footer-copies-differ";
                    findings.push(check::warning("footer copy", 0, rule, detail));
                }
                Ok(Some(Self {
                    footer,
                    footer_at: Some(at),
                    is_copy_same,
                }))
            }
            (Some(footer), None) => {
                findings.extend(at_start.into_iter().map(as_warning_of_the_copy));
                Ok(Some(Self {
                    footer,
                    footer_at: Some(at),
                    is_copy_same: false,
                }))
            }
            // A fixed disk whose guest stores a VHD at its start is not that VHD.
            (None, Some(footer)) if !footer::claims_fixed(&bytes) => {
                for finding in findings.iter_mut() {
                    finding.severity = Severity::Warning;
                    finding.detail += "; its copy at the start stands in for it";
                }
                Ok(Some(Self {
                    footer,
                    footer_at: None,
                    is_copy_same: true,
                }))
            }
            (None, _) => {
                let told = |finding: &Finding| finding.rule != footer::RULE_SIGNATURE;
                findings.extend(at_start.into_iter().filter(told));
                Ok(None)
            }
        }
    }
}

/// A fixed disk has no copy of its footer: what looks like one belongs to its guest. One with the
/// same id does not: the image has a block table, and its footer at the end is wrong. Read as a
/// fixed disk it would show its own structures.
fn find_other_kind(
    file: &dyn FileAt,
    file_len: u64,
    footer: &Footer,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let start = first_bytes(file, file_len)?;
    let copy = start.and_then(|bytes| Footer::parse(&bytes, 0, &mut Vec::new()));
    let is_same_image = |copy: &Footer| copy.unique_id == footer.unique_id;
    if copy.is_some_and(|copy| copy.kind != VhdKind::Fixed && is_same_image(&copy)) {
        let detail = "says that there is a block table, the footer at the end that there is none";
        let rule = "footer-kinds-differ";
        findings.push(check::error("footer copy", 0, rule, detail));
    }
    Ok(())
}

fn as_warning_of_the_copy(finding: Finding) -> Finding {
    Finding {
        structure: "footer copy",
        severity: Severity::Warning,
        ..finding
    }
}

/// The bytes at the end of the file that should be the footer: 512, or 511 where those begin like
/// one and the 512 do not.
fn last_bytes(file: &dyn FileAt, file_len: u64) -> Result<(u64, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut at = file_len;
    for len in [FOOTER_LEN, FOOTER_LEN - 1] {
        let Some(start) = file_len.checked_sub(len as u64) else {
            continue;
        };
        let mut candidate = vec![0; len];
        file.read_at(start, &mut candidate)
            .map_err(|e| Error::io(e, "read footer").at(start))?;
        if bytes.is_empty() || footer::is_footer(&candidate) {
            (at, bytes) = (start, candidate);
        }
        if footer::is_footer(&bytes) {
            break;
        }
    }
    Ok((at, bytes))
}

fn first_bytes(file: &dyn FileAt, file_len: u64) -> Result<Option<[u8; FOOTER_LEN]>> {
    let mut bytes = [0; FOOTER_LEN];
    if file_len < FOOTER_LEN as u64 {
        return Ok(None);
    }
    file.read_at(0, &mut bytes)
        .map_err(|e| Error::io(e, "read copy of the footer").at(0))?;
    Ok(Some(bytes))
}

/// Bytes that usual writers leave at most between two structures: each is aligned to 4 KiB.
const FILLER_MAX: u64 = 8192;
