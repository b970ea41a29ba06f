//! An open VHD, and reading from it.

use std::ops::Range;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use failback_vhdx::{CHAIN_LEN_MAX, FileAt, Severity};
use uuid::Uuid;

use super::SECTOR;
use super::anatomy::{Anatomy, Blocks};
use super::bitmap::{Bitmap, Bitmaps};
use super::check;
use super::footer::{Footer, SizeRule, VhdKind};
use super::geometry::{Chs, Layout};
use super::header::Header;
use super::table::Table;
use super::writing::Writer;
use crate::disk::{Extent, ExtentKind};
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::units::ByteOffset;

/// An open VHD. Methods take `&self` and run on many threads at once.
///
/// # What is read
/// A stored block of a dynamic disk reads as it is stored, whatever its bitmap says: writers make
/// unwritten sectors of it zero, and QEMU goes by the table alone as well. In a differencing disk
/// the bitmap decides, and what it lacks is the parent's; past the parent's end it is zero.
#[derive(Debug)]
pub struct VhdImage {
    pub(super) file: Arc<dyn FileAt>,
    pub(super) footer: Footer,
    pub(super) len: u64,
    size_rule: SizeRule,
    pub(super) body: Body,
    depth: u32,
    warnings: Vec<String>,
    pub(super) writer: Option<Writer>,
}

#[derive(Debug)]
pub(super) enum Body {
    Fixed,
    Sparse(Box<Sparse>),
}

/// What an image with a block table has.
#[derive(Debug)]
pub(super) struct Sparse {
    pub(super) header: Header,
    pub(super) layout: Layout,
    pub(super) is_differencing: bool,
    pub(super) parent: Option<Arc<VhdImage>>,
    state: RwLock<State>,
}

/// What changes while blocks are stored.
#[derive(Debug)]
pub(super) struct State {
    pub(super) table: Table,
    pub(super) bitmaps: Bitmaps,
}

/// Where the bytes of a run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the file, from this byte on.
    File { at: u64 },
    /// Nowhere: zeros.
    Zero,
    /// In the parent, at the same offset of the disk.
    Parent,
}

/// A run of the disk that lies in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) disk: Range<u64>,
    pub(super) place: Place,
}

/// What an image is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Read,
    Write,
    /// Looked at: a child may be without its parent.
    Inspect,
}

impl VhdImage {
    /// Opens for reading. The file is not changed.
    ///
    /// # Errors
    /// `Damaged` for what the format forbids; `Unsupported` for what is beyond the limits of this
    /// release and for a differencing disk, whose parent is named in the text; `Io`.
    pub fn open(file: Arc<dyn FileAt>) -> Result<Self> {
        Self::assemble(file, None, Mode::Read)
    }

    /// Opens for writing. Not one byte changes before the first change of the disk.
    ///
    /// # Errors
    /// As [`VhdImage::open`]; `Unsupported` for a block table that does not begin with a sector,
    /// `Damaged` for the text of a locator that does not lie before the footer.
    pub fn open_rw(file: Arc<dyn FileAt>) -> Result<Self> {
        Self::assemble(file, None, Mode::Write)
    }

    /// Opens a differencing disk over its parent, for reading.
    ///
    /// # Errors
    /// As [`VhdImage::open`]; `Refused` when `parent` is not the one that the child was made of,
    /// or the child is none; `Unsupported` for a chain of more than [`CHAIN_LEN_MAX`] images.
    pub fn open_child(file: Arc<dyn FileAt>, parent: Arc<Self>) -> Result<Self> {
        Self::assemble(file, Some(parent), Mode::Read)
    }

    /// Opens a differencing disk over its parent, for writing. The parent is only read.
    ///
    /// # Errors
    /// As [`VhdImage::open_child`] and [`VhdImage::open_rw`].
    pub fn open_child_rw(file: Arc<dyn FileAt>, parent: Arc<Self>) -> Result<Self> {
        Self::assemble(file, Some(parent), Mode::Write)
    }

    /// Opens to look at structures; a differencing disk is opened without its parent, and reading
    /// what it lacks fails with `Unsupported`.
    ///
    /// # Errors
    /// As [`VhdImage::open`], but for differencing disks.
    pub fn inspect(file: Arc<dyn FileAt>) -> Result<Self> {
        Self::assemble(file, None, Mode::Inspect)
    }

    fn assemble(file: Arc<dyn FileAt>, parent: Option<Arc<Self>>, mode: Mode) -> Result<Self> {
        let mut findings = Vec::new();
        let anatomy = Anatomy::read(file.as_ref(), &mut findings)?;
        let (errors, warnings): (Vec<_>, Vec<_>) = findings
            .into_iter()
            .partition(|finding| finding.severity == Severity::Error);
        if let Some(error) = errors.into_iter().next() {
            return Err(check::into_error(&error));
        }
        let anatomy = anatomy.ok_or_else(|| {
            Error::new(ErrorKind::Damaged, "VHD has neither footer nor copy of it")
        })?;
        let mut warnings: Vec<String> = warnings.iter().map(check::line).collect();
        let blocks = anatomy.blocks.as_ref();
        check_linkage(blocks, &anatomy, parent.as_deref(), mode, &mut warnings)?;
        let writer = match mode {
            Mode::Write => Some(Writer::new(&anatomy)?),
            _ => None,
        };
        Ok(Self {
            file,
            depth: 1 + parent.as_ref().map_or(0, |parent| parent.depth),
            len: anatomy.len,
            size_rule: anatomy.size_rule,
            body: match anatomy.blocks {
                None => Body::Fixed,
                Some(blocks) => Body::Sparse(Box::new(Sparse {
                    is_differencing: anatomy.footer.kind == VhdKind::Differencing,
                    header: blocks.header,
                    layout: blocks.layout,
                    parent,
                    state: RwLock::new(State {
                        table: blocks.table,
                        bitmaps: Bitmaps::default(),
                    }),
                })),
            },
            footer: anatomy.footer,
            warnings: warnings.iter().map(|line| one_line(line)).collect(),
            writer,
        })
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.len
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> VhdKind {
        self.footer.kind
    }

    /// Bytes of a block; `None` for a fixed disk.
    #[must_use]
    pub fn block_size(&self) -> Option<u32> {
        self.sparse().map(|sparse| sparse.header.block_size)
    }

    /// The id by which children know it.
    #[must_use]
    pub fn unique_id(&self) -> Uuid {
        self.footer.unique_id
    }

    /// When the image was made, in seconds since 2000-01-01 UTC.
    #[must_use]
    pub fn timestamp(&self) -> u32 {
        self.footer.timestamp
    }

    /// Program that made the image, its version, and its system; foreign text, escaped.
    #[must_use]
    pub fn creator(&self) -> String {
        let text = |bytes: &[u8; 4]| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            one_line(text.trim_end_matches([' ', '\0']))
        };
        let (app, host) = (
            text(&self.footer.creator_app),
            text(&self.footer.creator_host),
        );
        let version = self.footer.creator_version;
        format!("{app} {}.{} on {host}", version >> 16, version & 0xffff)
    }

    /// The geometry in the footer.
    #[must_use]
    pub fn geometry(&self) -> Chs {
        self.footer.chs
    }

    /// Which field of the footer the size was taken from.
    #[must_use]
    pub fn size_rule(&self) -> SizeRule {
        self.size_rule
    }

    /// The name of the parent as the header of a differencing disk states it; foreign text,
    /// escaped.
    #[must_use]
    pub fn parent_name(&self) -> Option<&str> {
        let sparse = self.sparse().filter(|sparse| sparse.is_differencing)?;
        Some(&sparse.header.parent_name)
    }

    /// The id of the parent of a differencing disk.
    #[must_use]
    pub fn parent_id(&self) -> Option<Uuid> {
        let sparse = self.sparse().filter(|sparse| sparse.is_differencing)?;
        Some(sparse.header.parent_id)
    }

    /// The paths at which a differencing disk looks for its parent; foreign text, escaped. None of
    /// them is ever opened here.
    #[must_use]
    pub fn parent_paths(&self) -> Vec<String> {
        let locators = self.sparse().map(|sparse| sparse.header.locators.iter());
        let texts = locators.into_iter().flatten();
        texts
            .filter_map(|locator| locator.text(self.file.as_ref()))
            .collect()
    }

    /// Blocks of the disk and those that are stored; `None` for a fixed disk.
    #[must_use]
    pub fn block_counts(&self) -> Option<(u64, u64)> {
        let sparse = self.sparse()?;
        let stored = sparse.state().table.used_count();
        Some((sparse.layout.block_count(), stored))
    }

    /// What is odd about the image and was got over, one line each.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Fills `buf` with the bytes from `at` on.
    ///
    /// # Errors
    /// `Usage` past the end of the disk, `Io` with the offset, `Unsupported` for what only the
    /// parent holds that [`VhdImage::inspect`] did without.
    pub fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let mut rest = buf;
        for Run { disk, place } in self.resolve(at, rest.len() as u64)? {
            let len = usize::try_from(disk.end - disk.start).expect("inside the buffer");
            let (piece, behind) = rest.split_at_mut(len);
            match place {
                Place::Zero => piece.fill(0),
                Place::File { at } => self
                    .file
                    .read_at(at, piece)
                    .map_err(|e| Error::io(e, format!("read {len} bytes")).at(at))?,
                Place::Parent => self.read_parent(disk.start, piece)?,
            }
            rest = behind;
        }
        Ok(())
    }

    /// The run of like kind that holds byte `at` of the disk. May be cut short, never says zero of
    /// data.
    ///
    /// # Errors
    /// As [`VhdImage::read_at`].
    pub fn extent_at(&self, at: u64) -> Result<Extent> {
        self.checked(at, 1)?;
        let run = self.run_at(at, self.len)?;
        let (kind, end) = match run.place {
            Place::Zero => (ExtentKind::Absent, run.disk.end),
            Place::File { at: file_at } => {
                let found = self
                    .file
                    .extent_at(file_at)
                    .map_err(|e| Error::io(e, "find data").at(file_at))?;
                let end = at.saturating_add(found.end.saturating_sub(file_at).max(1));
                match (found.is_hole, self.sparse()) {
                    (false, _) => (ExtentKind::Data, end),
                    (true, None) => (ExtentKind::Absent, end),
                    (true, Some(_)) => (ExtentKind::Zero, end),
                }
            }
            Place::Parent => {
                let found = self.parent()?.extent_at(at)?;
                (found.kind, found.end.0)
            }
        };
        Ok(Extent {
            kind,
            end: ByteOffset(end.min(run.disk.end)),
        })
    }

    /// Where the bytes of a range of the disk are, in order, without gap.
    pub(super) fn resolve(&self, at: u64, len: u64) -> Result<Vec<Run>> {
        let end = self.checked(at, len)?;
        let mut runs: Vec<Run> = Vec::new();
        let mut at = at;
        while at < end {
            let run = self.run_at(at, end)?;
            at = run.disk.end;
            match runs.last_mut().filter(|last| last.continues_with(&run)) {
                Some(last) => last.disk.end = run.disk.end,
                None => runs.push(run),
            }
        }
        Ok(runs)
    }

    /// The end of a range that lies in the disk.
    pub(super) fn checked(&self, at: u64, len: u64) -> Result<u64> {
        let end = at.checked_add(len).filter(|end| *end <= self.len);
        end.ok_or_else(|| Error::new(ErrorKind::Usage, "range past the end of the disk").at(at))
    }

    pub(super) fn sparse(&self) -> Option<&Sparse> {
        match &self.body {
            Body::Fixed => None,
            Body::Sparse(sparse) => Some(sparse),
        }
    }

    /// The run that begins at `at`, which lies before `limit`, and ends there at the latest.
    fn run_at(&self, at: u64, limit: u64) -> Result<Run> {
        let Some(sparse) = self.sparse() else {
            return Ok(Run {
                disk: at..limit,
                place: Place::File { at },
            });
        };
        let layout = sparse.layout;
        let block = layout.block_of(at);
        let Some(entry) = sparse.state().table.entry(block) else {
            let last = layout.block_of(limit - 1);
            let end = sparse
                .state()
                .table
                .next_used(block, last.saturating_add(1));
            return Ok(self.outside(at..layout.start_of(end).min(limit)));
        };
        let start = layout.start_of(block);
        let limit = layout.end_of(block).min(limit);
        let (is_own, end) = match sparse.is_differencing {
            false => (true, limit),
            true => self.own_run(sparse, block, entry, at..limit)?,
        };
        match is_own {
            true => Ok(Run {
                disk: at..end,
                place: Place::File {
                    at: layout.payload_at(entry) + (at - start),
                },
            }),
            false => Ok(self.outside(at..end)),
        }
    }

    /// A run that is not stored here: the parent's as far as it reaches, then zeros.
    fn outside(&self, disk: Range<u64>) -> Run {
        let Some(sparse) = self.sparse().filter(|sparse| sparse.is_differencing) else {
            return Run {
                disk,
                place: Place::Zero,
            };
        };
        // Without its parent, reading fails when it comes to it.
        let parent_len = sparse.parent.as_ref().map_or(u64::MAX, |parent| parent.len);
        let (place, end) = match disk.start < parent_len {
            true => (Place::Parent, disk.end.min(parent_len)),
            false => (Place::Zero, disk.end),
        };
        Run {
            disk: disk.start..end,
            place,
        }
    }

    /// Whether the sector at the start of `range` is the child's own, and where that ends.
    fn own_run(
        &self,
        sparse: &Sparse,
        block: u32,
        entry: u32,
        range: Range<u64>,
    ) -> Result<(bool, u64)> {
        let start = sparse.layout.start_of(block);
        let sector =
            |at: u64| usize::try_from((at - start) / SECTOR).expect("a block has few sectors");
        let [first, end] = [
            sector(range.start),
            sector(range.end.next_multiple_of(SECTOR)),
        ];
        let (is_own, run_end) = self.with_bitmap(sparse, block, entry, |bitmap| match bitmap {
            None => (true, end),
            Some(bitmap) => (bitmap.is_set(first), bitmap.run_end(first, end)),
        })?;
        Ok((is_own, (start + run_end as u64 * SECTOR).min(range.end)))
    }

    /// Hands the bitmap of a stored block to `use_it`, read from the file if need be; `None`: all
    /// of its sectors are set.
    fn with_bitmap<T>(
        &self,
        sparse: &Sparse,
        block: u32,
        entry: u32,
        use_it: impl FnOnce(Option<&Bitmap>) -> T,
    ) -> Result<T> {
        {
            let state = sparse.state();
            if state.bitmaps.is_full(block) {
                return Ok(use_it(None));
            }
            if let Some(bitmap) = state.bitmaps.loaded(block) {
                return Ok(use_it(Some(bitmap)));
            }
        }
        let mut state = sparse.state_mut();
        self.load_bitmap(sparse, &mut state, block, entry)?;
        Ok(use_it(state.bitmaps.loaded(block)))
    }

    /// Makes the bitmap of a stored block be in memory, or known as full.
    pub(super) fn load_bitmap(
        &self,
        sparse: &Sparse,
        state: &mut State,
        block: u32,
        entry: u32,
    ) -> Result<()> {
        if state.bitmaps.is_full(block) || state.bitmaps.loaded(block).is_some() {
            return Ok(());
        }
        let at = Layout::bitmap_at(entry);
        let mut bytes = vec![0; sparse.layout.bitmap_len()];
        self.file
            .read_at(at, &mut bytes)
            .map_err(|e| Error::io(e, "read sector bitmap").at(at))?;
        let sectors = sparse.layout.sectors_of(block);
        state.bitmaps.insert(block, Bitmap::new(bytes), sectors);
        Ok(())
    }

    pub(super) fn parent(&self) -> Result<&Self> {
        let parent = self.sparse().and_then(|sparse| sparse.parent.as_deref());
        parent.ok_or_else(|| needs_parent(self.parent_name().unwrap_or_default()))
    }

    fn read_parent(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.parent()?
            .read_at(at, buf)
            .map_err(|e| Error::new(e.kind(), "read parent").at(at).caused_by(e))
    }
}

impl Run {
    fn continues_with(&self, next: &Self) -> bool {
        match (self.place, next.place) {
            (Place::File { at }, Place::File { at: next_at }) => {
                at + (self.disk.end - self.disk.start) == next_at
            }
            (place, next_place) => place == next_place,
        }
    }
}

impl Sparse {
    pub(super) fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Refuses a child without its parent, with another one, and a parent that nobody asked for.
fn check_linkage(
    blocks: Option<&Blocks>,
    anatomy: &Anatomy,
    parent: Option<&VhdImage>,
    mode: Mode,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let child = blocks.filter(|_| anatomy.footer.kind == VhdKind::Differencing);
    let refused = |message: String| Err(Error::new(ErrorKind::Refused, message));
    match (child.map(|blocks| &blocks.header), parent) {
        (None, None) => Ok(()),
        (None, Some(_)) => {
            let message = "image has no parent, yet one was given";
            Err(Error::new(ErrorKind::Usage, message))
        }
        (Some(_), None) if mode == Mode::Inspect => Ok(()),
        (Some(header), None) => Err(needs_parent(&header.parent_name)),
        (Some(header), Some(parent)) if header.parent_id != parent.unique_id() => refused(format!(
            "was made of the disk {} (`{}`), the parent given is {}",
            header.parent_id,
            header.parent_name,
            parent.unique_id()
        )),
        (Some(_), Some(parent)) if parent.depth >= CHAIN_LEN_MAX => {
            let message = format!("a chain of more than {CHAIN_LEN_MAX} images is not supported");
            Err(Error::new(ErrorKind::Unsupported, message))
        }
        (Some(header), Some(parent)) => {
            // Windows 10 writes 0; others the footer's time, or that of the file.
            if ![0, parent.timestamp()].contains(&header.parent_timestamp) {
                warnings.push(format!(
                    "header: states another time for its parent ({}) than the parent does ({}): \
                     changed since?",
                    header.parent_timestamp,
                    parent.timestamp()
                ));
            }
            Ok(())
        }
    }
}

fn needs_parent(name: &str) -> Error {
    let message = format!("differencing image, needs its parent: {}", one_line(name));
    Error::new(ErrorKind::Refused, message)
}
