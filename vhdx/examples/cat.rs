//! Writes the content of a disk to stdout: `cat IMAGE [PARENT [ITS_PARENT ...]]`.

use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use failback_vhdx::Image;

fn main() -> Result<(), Box<dyn Error>> {
    let paths: Vec<_> = std::env::args_os().skip(1).collect();
    // The lowest parent first, each image on top of the one before.
    let mut below: Option<Arc<Image>> = None;
    for path in paths.iter().rev() {
        let file = Arc::new(File::open(path)?);
        let image = match below {
            None => Image::open(file)?,
            Some(parent) => Image::open_child(file, parent)?,
        };
        below = Some(Arc::new(image));
    }
    let image = below.ok_or("usage: cat IMAGE [PARENT ...]")?;
    let mut buf = vec![0; 1 << 20];
    let mut out = io::stdout().lock();
    let mut at = 0;
    while at < image.virtual_size() {
        let count = usize::try_from(image.virtual_size() - at)
            .map_or(buf.len(), |left| left.min(buf.len()));
        image.read_at(at, &mut buf[..count])?;
        out.write_all(&buf[..count])?;
        at += count as u64;
    }
    Ok(())
}
