//! The parents of a differencing image: which files they are.
//!
//! An image can name any file as its parent, so what it says is text to be shown. Files are opened
//! because the operator named them, or, when asked to follow, because they are regular files in
//! the very directory of the image.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use failback_vhdx::{CHAIN_LEN_MAX, Image, ParentLocator};

use super::vhdx::convert;
use super::{Format, OpenOptions, VhdDisk, probe};
use crate::error::{Error, ErrorKind, Result};
use crate::system::{Access, HostFile};

/// Opens the parents of the image in `file`, nearest first: those named in the options, then,
/// where following is asked for, those that the images name. The nearest may have another access
/// than the others.
///
/// # Errors
/// `Refused` for a file twice in the chain, for one that an image names outside of its directory,
/// and for more than [`CHAIN_LEN_MAX`] images; else those of opening.
pub(crate) fn open_parents(
    file: &Arc<HostFile>,
    options: &OpenOptions,
    nearest: Access,
    others: Access,
) -> Result<Vec<Arc<HostFile>>> {
    let mut chain = vec![file.clone()];
    let access = |chain: &[_]| if chain.len() == 1 { nearest } else { others };
    for path in &options.parents {
        let access = access(&chain);
        push(&mut chain, path, HostFile::open, access)?;
    }
    if options.follow_parents {
        while let Some(path) = named_parent(&chain[chain.len() - 1])? {
            let access = access(&chain);
            push(&mut chain, &path, HostFile::open_unlinked, access)?;
        }
    }
    chain.remove(0);
    Ok(chain)
}

fn push(
    chain: &mut Vec<Arc<HostFile>>,
    path: &Path,
    open: fn(&Path, Access) -> Result<HostFile>,
    access: Access,
) -> Result<()> {
    let refused = |message: String| Err(Error::new(ErrorKind::Refused, message).path(path));
    if chain.len() >= CHAIN_LEN_MAX as usize {
        return refused(format!("chain of more than {CHAIN_LEN_MAX} images"));
    }
    let file = open(path, access)?;
    if chain.iter().any(|other| other.is_same_file(&file)) {
        return refused("is in its own chain of parents".to_owned());
    }
    chain.push(Arc::new(file));
    Ok(())
}

/// The parent that an image names, as a file beside it; `None` for an image without parent.
fn named_parent(file: &Arc<HostFile>) -> Result<Option<PathBuf>> {
    let named = match probe(file)? {
        Format::Vhdx => {
            let found = Image::inspect(file.clone()).map_err(|e| convert(&e, file))?;
            let path = |locator: ParentLocator| locator.relative_path().map(str::to_owned);
            found
                .locator
                .map(|locator| path(locator).unwrap_or_default())
        }
        Format::Vhd => {
            let found = VhdDisk::inspect(file.clone())?;
            let paths = found.image().parent_paths();
            let plain = paths.into_iter().find(|path| plain_name(path).is_some());
            found.image().parent_id().map(|_| plain.unwrap_or_default())
        }
        _ => None,
    };
    let Some(named) = named else {
        return Ok(None);
    };
    let refused = |message: &str| {
        let message = format!("{message}: {named}");
        Error::new(ErrorKind::Refused, crate::error::one_line(&message)).path(file.path())
    };
    let name = plain_name(&named)
        .ok_or_else(|| refused("names no parent in its own directory; name it yourself"))?;
    let path = match file.path().parent() {
        Some(directory) => directory.join(name),
        None => PathBuf::from(name),
    };
    // Not followed and not opened: a link can lead anywhere, and a pipe would wait for a writer.
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_file() => Ok(Some(path)),
        Ok(_) => Err(refused("names a parent that is no regular file")),
        Err(e) => Err(Error::io(e, "look up the parent").path(&path)),
    }
}

/// The file name in a relative path by Windows, `.\NAME`, when it leads nowhere else.
fn plain_name(path: &str) -> Option<&str> {
    let name = path
        .strip_prefix(".\\")
        .or_else(|| path.strip_prefix("./"))
        .unwrap_or(path);
    let is_plain = !matches!(name, "" | "." | "..")
        && !name.contains(['/', '\\', ':', '\0'])
        && !name.chars().any(char::is_control);
    is_plain.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: only a plain name is followed. Method: names and ways out.
    #[test]
    fn paths_that_lead_elsewhere_are_no_names() {
        assert_eq!(plain_name(".\\base.vhdx"), Some("base.vhdx"));
        assert_eq!(plain_name("base disk.vhdx"), Some("base disk.vhdx"));
        let others = [
            "",
            ".",
            "..",
            ".\\..",
            "..\\base.vhdx",
            ".\\a\\b.vhdx",
            "./../x",
            "/etc/passwd",
            "C:base.vhdx",
            "\\\\host\\share\\x",
            "a\0b",
            ".\\.\\x",
            "a\nb",
        ];
        for path in others {
            assert_eq!(plain_name(path), None, "{path:?}");
        }
    }
}
