//! Goal: what this crate writes reads the same in QEMU, 7-Zip and libvhdi, and what QEMU writes,
//! killed or not, reads the same here. Method: images of random shape and random changes of them,
//! told by a seed, against a plain vector of bytes and against the readers in turn.
//!
//! `FAILBACK_SEQUENCES=10000` makes the run of random changes longer.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    reason = "tests state and say what they find"
)]

mod readers;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use failback_vhdx::{ChildOptions, CreateOptions, FileAt, Image, Kind, LogState, MemoryFile};
use readers::{Libvhdi, assert_clean, qemu, seven_zip, text};
use support::{MIB, open_file, read_all, run};

/// A small generator of numbers: xorshift64*.
struct Random(u64);

impl Random {
    /// Seeds that are close to each other begin far apart.
    fn new(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) % limit
    }
}

/// A disk that is changed, and what it must read.
struct Subject {
    file: Arc<MemoryFile>,
    parent: Option<(Arc<MemoryFile>, Arc<Image>)>,
    kind: Kind,
    sector: u64,
    block: u64,
    model: Vec<u8>,
}

impl Subject {
    /// A random shape: kind, size of block and sector, and a length near a multiple of the block.
    fn random(random: &mut Random) -> Self {
        let block = MIB << [0, 0, 0, 1, 2, 3, 4, 5, 8][random.below(9) as usize];
        let sector = [512, 512, 512, 4096][random.below(4) as usize];
        let kind = match random.below(4) {
            0 if block <= 8 * MIB => Kind::Fixed,
            1 => Kind::Differencing,
            _ => Kind::Dynamic,
        };
        let count = 1 + random.below((SIZE_MAX / block).clamp(1, 4));
        let near = [0, sector, 0, MIB / 2][random.below(4) as usize];
        let size = (count * block - near).min(SIZE_MAX - near);
        let file = Arc::new(MemoryFile::new());
        let mut model = vec![0; usize::try_from(size).unwrap()];
        let options = |kind, block: u64| CreateOptions {
            block_size: Some(u32::try_from(block).unwrap()),
            logical_sector_size: u32::try_from(sector).unwrap(),
            ..CreateOptions::new(size, kind)
        };
        let mut parent = None;
        if kind == Kind::Differencing {
            let below = Arc::new(MemoryFile::new());
            let image = Image::create(below.clone(), &options(Kind::Dynamic, MIB)).unwrap();
            let len = (size / 2 / sector * sector).max(sector);
            image
                .write_at(0, &vec![200; usize::try_from(len).unwrap()])
                .unwrap();
            image.close().unwrap();
            model[..usize::try_from(len).unwrap()].fill(200);
            let image = Arc::new(Image::open(below.clone()).unwrap());
            let child = ChildOptions {
                block_size: Some(u32::try_from(block).unwrap()),
                ..ChildOptions::new(".\\parent.vhdx")
            };
            Image::create_child(file.clone(), image.clone(), &child).unwrap();
            parent = Some((below, image));
        } else {
            Image::create(file.clone(), &options(kind, block)).unwrap();
        }
        Self {
            file,
            parent,
            kind,
            sector,
            block,
            model,
        }
    }

    fn open(&self) -> Image {
        match &self.parent {
            None => Image::open_rw(self.file.clone()).unwrap(),
            Some((_, parent)) => Image::open_child_rw(self.file.clone(), parent.clone()).unwrap(),
        }
    }

    /// Some blocks without a place say undefined or discarded, as Windows leaves them.
    fn scatter_states(&self, random: &mut Random) {
        if self.kind != Kind::Dynamic {
            return;
        }
        for slot in 0..self.model.len() as u64 / self.block {
            let state = [0_u8, 0, 1, 2, 3][random.below(5) as usize];
            self.file.write_at(BAT_AT + slot * 8, &[state]).unwrap();
        }
    }

    fn change(&mut self, random: &mut Random) {
        let mut image = self.open();
        let sectors = self.model.len() as u64 / self.sector;
        for step in 0..4 + random.below(12) {
            let first = random.below(sectors);
            let most = [4, 4, 64, sectors][random.below(4) as usize];
            let count = (1 + random.below(most)).min(sectors - first);
            let bytes = first * self.sector..(first + count) * self.sector;
            let [from, to] = [bytes.start, bytes.end].map(|at| usize::try_from(at).unwrap());
            let block = bytes.start / self.block * self.block;
            let block = block..(block + self.block).min(self.model.len() as u64);
            match random.below(10) {
                0..=4 => {
                    let byte = u8::try_from(step + 1).unwrap();
                    self.model[from..to].fill(byte);
                    image.write_at(bytes.start, &self.model[from..to]).unwrap();
                }
                5 => {
                    self.model[from..to].fill(0);
                    image.zero(bytes).unwrap();
                }
                6 | 7 => {
                    let [from, to] =
                        [block.start, block.end].map(|at| usize::try_from(at).unwrap());
                    self.model[from..to].fill(0);
                    image.zero(block).unwrap();
                }
                8 => image.flush().unwrap(),
                _ => {
                    image.close().unwrap();
                    image = self.open();
                }
            }
        }
        image.close().unwrap();
    }
}

/// One sequence, from its seed to its judges.
fn sequence(seed: u64, dir: &Path, libvhdi: &mut Libvhdi) {
    let random = &mut Random::new(seed);
    let mut subject = Subject::random(random);
    subject.scatter_states(random);
    subject.change(random);
    let what = format!(
        "seed {seed}: {:?}, {} bytes, blocks of {}, sectors of {}",
        subject.kind,
        subject.model.len(),
        subject.block,
        subject.sector
    );
    assert!(read_all(&subject.open()) == subject.model, "{what}: here");
    let path = dir.join("image.vhdx");
    save(&subject.file, &path);
    if let Some((file, _)) = &subject.parent {
        save(file, &dir.join("parent.vhdx"));
    }
    let for_qemu = subject.kind != Kind::Differencing && subject.sector == 512;
    if for_qemu {
        assert_clean(&path, &what);
    }
    // 7-Zip 22.01 opens no disk whose length is not a multiple of 1 MiB, made by whomever.
    let for_seven_zip = (subject.model.len() as u64).is_multiple_of(MIB);
    let (name, found) = match seed % 3 {
        _ if subject.parent.is_some() && for_seven_zip => ("7-Zip", seven_zip(&path, &what)),
        0 if for_qemu => ("qemu", qemu(&path)),
        2 if for_seven_zip => ("7-Zip", seven_zip(&path, &what)),
        // libvhdi 20210425 takes a zero block of a child for one that is with the parent.
        _ if subject.parent.is_some() => return,
        _ => {
            let len = subject.model.len();
            ("libvhdi", libvhdi.read(&path, 0, len))
        }
    };
    assert_eq!(found.len(), subject.model.len(), "{what}: {name}");
    if let Some(at) = found.iter().zip(&subject.model).position(|(a, b)| a != b) {
        let (found, wanted) = (found[at], subject.model[at]);
        panic!("{what}: {name} reads {found} at {at:#x}, not {wanted}");
    }
}

/// Writes what a file holds, and leaves its holes.
fn save(file: &MemoryFile, path: &Path) {
    let _ = fs::remove_file(path);
    let target = support::new_file(path);
    let len = file.len().unwrap();
    target.set_len(len).unwrap();
    let mut at = 0;
    while at < len {
        let extent = file.extent_at(at).unwrap();
        if !extent.is_hole {
            let mut bytes = vec![0; usize::try_from(extent.end - at).unwrap()];
            file.read_at(at, &mut bytes).unwrap();
            FileAt::write_at(&*target, at, &bytes).unwrap();
        }
        at = extent.end;
    }
}

fn count_from(variable: &str, in_ci: u64) -> u64 {
    match std::env::var(variable) {
        Ok(count) => count.parse().unwrap(),
        Err(_) => in_ci,
    }
}

#[test]
fn random_sequences_read_the_same_elsewhere() {
    if !readers::are_there() {
        return;
    }
    let count = count_from("FAILBACK_SEQUENCES", 400);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            scope.spawn(move || {
                let dir = tempfile::tempdir().unwrap();
                let mut libvhdi = Libvhdi::start();
                for seed in (thread..count).step_by(2) {
                    sequence(seed, dir.path(), &mut libvhdi);
                }
            });
        }
    });
    eprintln!("{count} sequences");
}

#[test]
fn disks_around_the_ends_of_chunks_read_the_same_elsewhere() {
    if !readers::are_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut libvhdi = Libvhdi::start();
    for (shift, sector) in (20..=28).flat_map(|shift| [(shift, 512), (shift, 4096)]) {
        let block = 1_u64 << shift;
        let ratio = (sector << 23) / block;
        for count in [ratio - 1, ratio, ratio + 1, 2 * ratio + 1] {
            let size = count * block - sector;
            let file = Arc::new(MemoryFile::new());
            let options = CreateOptions {
                block_size: Some(1 << shift),
                logical_sector_size: u32::try_from(sector).unwrap(),
                ..CreateOptions::new(size, Kind::Dynamic)
            };
            let image = Image::create(file.clone(), &options).unwrap();
            let ends = [block, ratio * block, 2 * ratio * block];
            let places = ends.iter().flat_map(|end| [end - sector, *end]);
            let places: Vec<u64> = places
                .chain([size - sector])
                .filter(|at| *at < size)
                .collect();
            for (mark, at) in (1..).zip(&places) {
                let data = vec![mark; usize::try_from(sector).unwrap()];
                image.write_at(*at, &data).unwrap();
            }
            image.close().unwrap();
            let path = dir.path().join("image.vhdx");
            save(&file, &path);
            let what = format!("{count} blocks of {block}, sectors of {sector}");
            let expected = |at: u64| {
                let is_last = |place: &u64| *place == at;
                places
                    .iter()
                    .rposition(is_last)
                    .map_or(0, |place| place + 1)
            };
            if sector == 512 {
                assert_clean(&path, &what);
                let mut args = vec!["-f".to_owned(), "vhdx".to_owned(), "-r".to_owned()];
                for at in &places {
                    args.extend([
                        "-c".to_owned(),
                        format!("read -P {} {at} 512", expected(*at)),
                    ]);
                }
                args.push(text(&path).to_owned());
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                let (read, output) = run("qemu-io", &args);
                assert!(read && !output.contains("failed"), "{what}: {output}");
            }
            for at in &places {
                let found = libvhdi.read(&path, *at, 512);
                assert_eq!(
                    usize::from(found[7]),
                    expected(*at),
                    "{what}: libvhdi at {at:#x}"
                );
            }
        }
    }
}

/// Random writes as words for qemu-io.
fn qemu_writes(random: &mut Random, count: u64, mib: u64) -> Vec<String> {
    let mut words = Vec::new();
    for step in 0..count {
        let sectors = mib * 2048;
        let first = random.below(sectors);
        let len = (1 + random.below(64)).min(sectors - first);
        words.push(match random.below(8) {
            0 => format!("write -z {} {}", first * 512, len * 512),
            1 => "flush".to_owned(),
            _ => format!("write -P {} {} {}", step % 250 + 1, first * 512, len * 512),
        });
    }
    words
}

fn qemu_create(path: &Path, random: &mut Random, mib: u64) {
    let options = [
        "block_size=1M",
        "block_size=2M,block_state_zero=off",
        "block_size=8M,log_size=2M",
        "block_size=256M",
        "block_size=1M,subformat=fixed",
        "block_size=1M,subformat=fixed,block_state_zero=off",
    ];
    let options = options[random.below(6) as usize];
    let size = format!("{mib}M");
    let create = ["create", "-f", "vhdx", "-o", options, text(path), &size];
    let (done, output) = run("qemu-img", &create);
    assert!(done, "{output}");
}

#[test]
fn what_qemu_writes_at_random_reads_the_same_here() {
    if !readers::are_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.vhdx");
    for seed in 0..QEMU_SEQUENCES {
        let random = &mut Random::new(seed);
        let mib = 1 + random.below(12);
        qemu_create(&path, random, mib);
        let mut args = vec!["-f".to_owned(), "vhdx".to_owned()];
        for words in qemu_writes(random, 30, mib) {
            args.extend(["-c".to_owned(), words]);
        }
        args.push(text(&path).to_owned());
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let (written, output) = run("qemu-io", &args);
        assert!(
            written && !output.contains("failed"),
            "seed {seed}: {output}"
        );
        let image = Image::open(open_file(&path)).unwrap();
        image.scan_allocation().unwrap();
        assert!(read_all(&image) == qemu(&path), "seed {seed}");
        fs::remove_file(&path).unwrap();
    }
}

/// Writes through qemu-io and kills it soon after so many answers, in the middle of a write.
fn write_and_kill(path: &Path, words: &[String], answers: u64) {
    // It would keep its words to itself in a pipe.
    let mut command = Command::new("stdbuf");
    command.args(["-oL", "qemu-io", "-f", "vhdx"]);
    for word in words {
        command.args(["-c", word]);
    }
    command
        .arg(path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let wrote = lines
        .map_while(io::Result::ok)
        .filter(|line| line.contains("wrote"));
    let wrote = wrote.take(usize::try_from(answers).unwrap()).count();
    std::thread::sleep(Duration::from_micros(wrote as u64 % 7 * 150));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn what_qemu_leaves_when_killed_reads_here_as_it_recovers_it() {
    if !readers::are_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.vhdx");
    let (mut replayed, mut clean, mut without_entry) = (0, 0, 0);
    for seed in 0..count_from("FAILBACK_QEMU_KILLS", KILLS_IN_CI) {
        let random = &mut Random::new(seed);
        qemu_create(&path, random, 24);
        // A new block with nearly every word, so that there is nearly always something in the log.
        let mut words = qemu_writes(random, 4, 24);
        words.extend((0..24).map(|mib| format!("write -P {} {mib}M 4k", mib + 1)));
        write_and_kill(&path, &words, 1 + random.below(20));
        let here = match Image::open(open_file(&path)) {
            Ok(image) => {
                match image.log_state() {
                    LogState::Replayed { .. } => replayed += 1,
                    LogState::Empty => clean += 1,
                }
                image.scan_allocation().unwrap();
                Some(read_all(&image))
            }
            // QEMU names a log in the headers before it writes an entry to it. Killed in between,
            // it leaves what the format calls corrupt and QEMU itself opens.
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("no entry is valid"), "seed {seed}: {error}");
                without_entry += 1;
                None
            }
        };
        let repair = ["check", "-f", "vhdx", "-r", "all", text(&path)];
        let (repaired, output) = run("qemu-img", &repair);
        assert!(repaired, "seed {seed}: {output}");
        let recovered = qemu(&path);
        // Without an entry QEMU has nothing to replay, and leaves the log in the headers.
        if let Some(here) = here {
            assert!(here == recovered, "seed {seed}");
            let again = read_all(&Image::open(open_file(&path)).unwrap());
            assert!(again == recovered, "seed {seed}: recovered");
        }
        fs::remove_file(&path).unwrap();
    }
    eprintln!("{replayed} replayed, {clean} clean, {without_entry} with a log but no entry");
    assert!(
        replayed + without_entry > 0,
        "no kill hit a change of the log"
    );
}

/// Bytes of a disk that is compared as a whole.
const SIZE_MAX: u64 = 9 << 20;
/// Where this crate puts the BAT.
const BAT_AT: u64 = 3 * MIB;
const QEMU_SEQUENCES: u64 = 60;
const KILLS_IN_CI: u64 = 24;
