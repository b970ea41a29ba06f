//! Goal: QEMU and this crate read and write each other's images. Method: make an image on one
//! side, read, check or recover it on the other.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests state and say what they find"
)]

mod support;

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use failback_vhdx::{CreateOptions, FileAt, Image, Kind, LogState};
use support::{MIB, content_hash, file_hash, has_qemu, new_file, open_file, read_all, run};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Some writes over the disk: at both ends, across block ends, and a zeroed block.
fn write_pattern(image: &Image, raw: &File) {
    let size = image.virtual_size();
    raw.set_len(size).unwrap();
    for (index, at) in [
        0,
        MIB - 512,
        3 * MIB,
        size / 2 / MIB * MIB - 4096,
        size - 8192,
    ]
    .iter()
    .enumerate()
    {
        let data = vec![u8::try_from(index + 1).unwrap(); 8192];
        image.write_at(*at, &data).unwrap();
        FileAt::write_at(raw, *at, &data).unwrap();
    }
    let block = u64::from(image.block_size());
    image.zero(block..2 * block).unwrap();
    FileAt::zero(raw, block..2 * block).unwrap();
}

#[test]
fn qemu_accepts_and_reads_what_is_written_here() {
    if !has_qemu() {
        return;
    }
    let cases = [
        (Kind::Dynamic, 64 * MIB, 1 << 20),
        (Kind::Dynamic, 70 * MIB + 512, 32 << 20),
        (Kind::Fixed, 64 * MIB, 2 << 20),
    ];
    for (kind, size, block_size) in cases {
        let dir = tempfile::tempdir().unwrap();
        let (path, raw_path) = (dir.path().join("a.vhdx"), dir.path().join("a.raw"));
        let options = CreateOptions {
            block_size: Some(block_size),
            ..CreateOptions::new(size, kind)
        };
        let image = Image::create(new_file(&path), &options).unwrap();
        write_pattern(&image, &new_file(&raw_path));
        image.close().unwrap();
        drop(image);
        let (sound, output) = run("qemu-img", &["check", "-f", "vhdx", text(&path)]);
        assert!(sound, "{kind:?} {size}: {output}");
        let pair = [
            "compare",
            "-f",
            "vhdx",
            "-F",
            "raw",
            text(&path),
            text(&raw_path),
        ];
        let (same, output) = run("qemu-img", &pair);
        assert!(same, "{kind:?} {size}: {output}");
    }
}

#[test]
fn what_qemu_writes_is_read_and_written_here() {
    if !has_qemu() {
        return;
    }
    let cases = [
        "block_size=1M",
        "block_size=32M",
        "block_size=8M,block_state_zero=off",
        "subformat=fixed",
        "subformat=fixed,block_state_zero=off",
    ];
    for options in cases {
        let dir = tempfile::tempdir().unwrap();
        let (path, raw_path) = (dir.path().join("a.vhdx"), dir.path().join("a.raw"));
        let create = ["create", "-f", "vhdx", "-o", options, text(&path), "65M"];
        assert!(run("qemu-img", &create).0);
        let writes = ["-c", "write -P 7 512 70000", "-c", "write -P 9 40M 1M"];
        let writes = writes.map(|word| word.replace("70000", "69632"));
        let mut args = vec!["-f", "vhdx"];
        args.extend(writes.iter().map(String::as_str));
        args.push(text(&path));
        let (written, output) = run("qemu-io", &args);
        assert!(written, "{output}");
        let convert = [
            "convert",
            "-f",
            "vhdx",
            "-O",
            "raw",
            text(&path),
            text(&raw_path),
        ];
        assert!(run("qemu-img", &convert).0);
        let image = Image::open_rw(open_file(&path)).unwrap();
        assert_eq!(content_hash(&image), file_hash(&raw_path), "{options}");
        let raw = open_file(&raw_path);
        for at in [0, 20 * MIB, 64 * MIB] {
            image.write_at(at, &[3; 4096]).unwrap();
            FileAt::write_at(&*raw, at, &[3; 4096]).unwrap();
        }
        image.close().unwrap();
        drop(image);
        let (sound, output) = run("qemu-img", &["check", "-f", "vhdx", text(&path)]);
        assert!(sound, "{options}: {output}");
        let pair = [
            "compare",
            "-f",
            "vhdx",
            "-F",
            "raw",
            text(&path),
            text(&raw_path),
        ];
        let (same, output) = run("qemu-img", &pair);
        assert!(same, "{options}: {output}");
    }
}

#[test]
fn qemu_recovers_what_was_flushed_and_not_closed() {
    if !has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.vhdx");
    let options = CreateOptions {
        block_size: Some(1 << 20),
        ..CreateOptions::new(64 * MIB, Kind::Dynamic)
    };
    let image = Image::create(new_file(&path), &options).unwrap();
    write_pattern(&image, &new_file(&dir.path().join("a.raw")));
    image.flush().unwrap();
    let here = read_all(&image);
    drop(image);
    let (repaired, output) = run(
        "qemu-img",
        &["check", "-f", "vhdx", "-r", "all", text(&path)],
    );
    assert!(repaired, "{output}");
    let image = Image::open(open_file(&path)).unwrap();
    assert_eq!(image.log_state(), LogState::Empty);
    assert!(read_all(&image) == here);
}

#[test]
fn qemu_finds_blocks_of_later_chunks() {
    if !has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.vhdx");
    let options = CreateOptions {
        block_size: Some(1 << 20),
        ..CreateOptions::new(13 << 30, Kind::Dynamic)
    };
    let image = Image::create(new_file(&path), &options).unwrap();
    let mut args = vec!["-f".to_owned(), "vhdx".to_owned(), "-r".to_owned()];
    // A chunk is 4 GiB here.
    for (fill, gib) in [(1, 4), (2, 8), (3, 12)] {
        for (fill, at) in [(fill, (gib << 30) - MIB), (fill + 100, gib << 30)] {
            image.write_at(at, &[fill; 4096]).unwrap();
            args.extend(["-c".to_owned(), format!("read -P {fill} {at} 4096")]);
            args.extend(["-c".to_owned(), format!("read -P 0 {} 4096", at + 4096)]);
        }
    }
    image.close().unwrap();
    args.push(text(&path).to_owned());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (read, output) = run("qemu-io", &args);
    assert!(read && !output.contains("failed"), "{output}");
    assert_eq!(output.matches("read 4096/4096").count(), 12, "{output}");
}

#[test]
fn what_a_killed_qemu_leaves_reads_as_qemu_recovers_it() {
    if !has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for wait_ms in (20..80).step_by(8) {
        let path = dir.path().join(format!("{wait_ms}.vhdx"));
        let create = [
            "create",
            "-f",
            "vhdx",
            "-o",
            "block_size=1M",
            text(&path),
            "64M",
        ];
        assert!(run("qemu-img", &create).0);
        let mut command = Command::new("qemu-io");
        command.args(["-f", "vhdx"]).stdout(Stdio::null());
        for block in 0..64 {
            command.args(["-c", &format!("write -P 5 {block}M 512")]);
        }
        let mut child = command.arg(&path).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(wait_ms));
        child.kill().unwrap();
        child.wait().unwrap();
        // QEMU names a log in the headers before it writes an entry to it. Killed in between, it
        // leaves what the format calls corrupt and QEMU itself opens: nothing to compare then.
        let image = match Image::open(open_file(&path)) {
            Ok(image) => image,
            Err(error) => {
                assert!(error.to_string().contains("no entry is valid"), "{error}");
                continue;
            }
        };
        eprintln!("killed after {wait_ms} ms: {:?}", image.log_state());
        let here = read_all(&image);
        let check = ["check", "-f", "vhdx", "-r", "all", text(&path)];
        let (repaired, output) = run("qemu-img", &check);
        assert!(repaired, "{output}");
        assert!(read_all(&Image::open(open_file(&path)).unwrap()) == here);
    }
}

#[test]
fn sectors_of_4096_bytes_are_written_and_read_here() {
    // QEMU opens no such image: only this crate is the judge.
    let file: Arc<dyn FileAt> = Arc::new(failback_vhdx::MemoryFile::new());
    let options = CreateOptions {
        logical_sector_size: 4096,
        block_size: Some(1 << 20),
        ..CreateOptions::new(40 << 30, Kind::Dynamic)
    };
    let image = Image::create(file.clone(), &options).unwrap();
    image.write_at((33 << 30) + 4096, &[6; 4096]).unwrap();
    assert!(image.write_at(512, &[6; 512]).is_err());
    image.close().unwrap();
    let image = Image::open(file).unwrap();
    let mut bytes = [0; 8192];
    image.read_at(33 << 30, &mut bytes).unwrap();
    assert_eq!(
        (bytes[4095], bytes[4096], image.logical_sector_size()),
        (0, 6, 4096)
    );
}
