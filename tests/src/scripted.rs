//! A machine of scripts: its power is a file, its snapshots are copies.

use std::fs;
use std::path::{Path, PathBuf};

use crate::disk;

const MIB: u64 = 1 << 20;

/// A job of one disk whose machines and snapshots are files and scripts.
///
/// # Panics
///
/// When the folder cannot be written to.
pub fn define(dir: &Path) -> PathBuf {
    let at = dir.display();
    let machine = |side: &str| {
        format!(
            "[{side}.machine]\nkind = \"hooks\"\n\
             power = [\"cat\", \"{at}/{side}-power\"]\n\
             start = [\"sh\", \"-c\", \"echo starting '<b>'; echo on > {at}/{side}-power\"]\n\
             shut_down = [\"sh\", \"-c\", \"echo off > {at}/{side}-power\"]\n"
        )
    };
    let snapshots = "[source.snapshots]\nkind = \"hooks\"\n\
        create = [\"sh\", \"-c\", \"cp -n $FAILBACK_IMAGE $FAILBACK_IMAGE.$FAILBACK_SNAPSHOT; \
        echo $FAILBACK_IMAGE.$FAILBACK_SNAPSHOT\"]\n\
        release = [\"sh\", \"-c\", \"rm -f $FAILBACK_IMAGE.$FAILBACK_SNAPSHOT\"]\n";
    let definition = format!(
        "name = \"web\"\n{}{snapshots}{}[[disk]]\nid = \"os\"\nsource = \"{at}/from.raw\"\n\
         target = \"{at}/to.raw\"\n",
        machine("source"),
        machine("target")
    );
    fs::write(dir.join("source-power"), "on\n").expect("power");
    fs::write(dir.join("target-power"), "off\n").expect("power");
    disk::write_raw(&dir.join("from.raw"), 32 * MIB, 60, 1);
    disk::write_raw(&dir.join("to.raw"), 32 * MIB, 60, 2);
    let path = dir.join("job.toml");
    fs::write(&path, definition).expect("definition");
    path
}
