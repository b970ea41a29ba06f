//! Makes a dynamic disk of 1 GiB with a mark in it, and a child over it: `make PARENT CHILD`.

use std::error::Error;
use std::fs::File;
use std::sync::Arc;

use failback_vhdx::{ChildOptions, CreateOptions, Image, Kind};

fn main() -> Result<(), Box<dyn Error>> {
    let mut paths = std::env::args_os().skip(1);
    let (Some(parent), Some(child)) = (paths.next(), paths.next()) else {
        return Err("usage: make PARENT CHILD".into());
    };
    let new_file = |path| {
        File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
    };
    let image = Image::create(
        Arc::new(new_file(&parent)?),
        &CreateOptions::new(1 << 30, Kind::Dynamic),
    )?;
    image.write_at(0, &[b'p'; 4096])?;
    image.close()?;
    drop(image);

    let image = Arc::new(Image::open(Arc::new(File::open(&parent)?))?);
    let name = format!(".\\{}", parent.to_string_lossy());
    let child = Image::create_child(
        Arc::new(new_file(&child)?),
        image,
        &ChildOptions::new(&name),
    )?;
    child.write_at(512, &[b'c'; 512])?;
    // Durable from here on; the close leaves the log empty as well.
    child.flush()?;
    child.close()?;
    Ok(())
}
