//! Children of a VHDX that is about to be written.
//!
//! A VHDX does not know its children, and each of them names it by a GUID that changes with its
//! content: writing to a parent breaks every checkpoint made of it. So the images beside it are
//! asked whether they stand on it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use failback_vhdx::{Description, Image};

use super::vhdx::convert;
use super::{Format, OpenOptions, decide_format};
use crate::error::{Error, ErrorKind, Remedy, Result, one_line};
use crate::snapshot::is_clone_name;
use crate::system::{Access, HostFile};

/// Images of a directory that are looked at.
const SIBLINGS_MAX: usize = 1000;
/// Bytes of a log in use that is replayed in memory for that; writers make 1 MiB.
const LOG_LEN_MAX: u64 = 16 << 20;

/// Refuses when an image beside `file` stands on it, as [`find_children`] finds. Returns what
/// could not be looked at, a line each.
///
/// # Errors
/// `Refused` with the child's path.
pub(crate) fn refuse_children(
    file: &Arc<HostFile>,
    found: &Description,
    allowed: &[Arc<HostFile>],
) -> Result<Vec<String>> {
    let Children { paths, notes } = find_children(file, found, allowed)?;
    let Some(child) = paths.first() else {
        return Ok(notes);
    };
    let message = format!(
        "is the parent of {}, which a write would break; merge or delete that first",
        one_line(&child.to_string_lossy())
    );
    let refused = Error::new(ErrorKind::Refused, message).path(file.path());
    Err(refused.remedy_is(Remedy::SkipSiblingCheck))
}

/// Images beside the one at `path` that stand on it, as [`find_children`] finds them; none where it
/// is no VHDX, and where they are not to be looked for.
///
/// # Errors
/// As [`find_children`]; `Damaged`, `Unsupported`.
pub(crate) fn children_of(path: &Path, options: &OpenOptions) -> Result<Children> {
    if options.skip_sibling_check {
        return Ok(Children::default());
    }
    let file = Arc::new(HostFile::open(path, Access::Inspect)?);
    if decide_format(&file, options.format)? != Format::Vhdx {
        return Ok(Children::default());
    }
    let found = Image::inspect(file.clone()).map_err(|e| convert(&e, &file))?;
    find_children(&file, &found, &[])
}

/// Children of an image that lie beside it.
#[derive(Debug, Default)]
pub(crate) struct Children {
    /// Where they are.
    pub(crate) paths: Vec<PathBuf>,
    /// What could not be looked at, a line each.
    pub(crate) notes: Vec<String>,
}

/// The regular `*.vhdx` and `*.avhdx` files in the directory of `file` that name it as their
/// parent, by GUID or by name, but for those `allowed` and this program's snapshots. Only headers,
/// a log in use and metadata are read, no link is followed.
///
/// # Errors
/// `Io` and `Refused` when `file` has no directory to look in.
pub(crate) fn find_children(
    file: &Arc<HostFile>,
    found: &Description,
    allowed: &[Arc<HostFile>],
) -> Result<Children> {
    let mut children = Children::default();
    // The file itself may be reached through a link from another directory.
    let place = file.path().canonicalize();
    let place = place.map_err(|e| Error::io(e, "look for children of").path(file.path()))?;
    let (Some(directory), Some(name)) = (place.parent(), place.file_name()) else {
        let message = "has no directory to look for its children in";
        return Err(Error::new(ErrorKind::Refused, message).path(file.path()));
    };
    let listed = match directory.read_dir() {
        Ok(listed) => listed,
        Err(e) => {
            children.notes.push(format!(
                "the directory cannot be read ({e}): children of this image were not looked for"
            ));
            return Ok(children);
        }
    };
    let images = listed.flatten().filter(|entry| {
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        // A snapshot of a child names the same parent; it is the child that a write would break.
        let is_image = is_file && !is_clone_name(&entry.file_name());
        is_image && Format::of_suffix(&entry.path()) == Some(Format::Vhdx)
    });
    for (count, entry) in images.enumerate() {
        if count >= SIBLINGS_MAX {
            children.notes.push(format!(
                "more than {SIBLINGS_MAX} images beside this one: the others were not looked at"
            ));
            break;
        }
        let path = entry.path();
        match inspect(&path, file, allowed) {
            Ok(None) => {}
            Ok(Some(sibling)) if is_child(&sibling, found, &name.to_string_lossy()) => {
                children.paths.push(path);
            }
            Ok(Some(_)) => {}
            Err(error) => children
                .notes
                .push(format!("not looked at: {}", error.chain())),
        }
    }
    Ok(children)
}

/// What a sibling says of itself; `None` for the file itself and for allowed children.
fn inspect(
    path: &Path,
    file: &Arc<HostFile>,
    allowed: &[Arc<HostFile>],
) -> Result<Option<Description>> {
    // Some systems have no file ids here; names that are the same in full are the same file.
    let is_this =
        |known: &Arc<HostFile>| known.path().canonicalize().is_ok_and(|known| known == path);
    if is_this(file) || allowed.iter().any(is_this) {
        return Ok(None);
    }
    let sibling = Arc::new(HostFile::open_unlinked(path, Access::Inspect)?);
    if sibling.is_same_file(file) || allowed.iter().any(|child| child.is_same_file(&sibling)) {
        return Ok(None);
    }
    let found = Image::inspect_within(sibling.clone(), LOG_LEN_MAX);
    found.map(Some).map_err(|e| convert(&e, &sibling))
}

fn is_child(sibling: &Description, parent: &Description, name: &str) -> bool {
    let Some(locator) = &sibling.locator else {
        return false;
    };
    let guid = parent.data_write_guid;
    let paths = [
        locator.relative_path(),
        locator.volume_path(),
        locator.absolute_win32_path(),
    ];
    let names_it = |path: &str| {
        let last = path.rsplit(['\\', '/']).next();
        last.is_some_and(|last| last.eq_ignore_ascii_case(name))
    };
    locator.linkage() == guid
        || locator.linkage2() == Some(guid)
        || paths.into_iter().flatten().any(names_it)
}
