//! The tripwire: the bytes of each message are pinned. A change of the format needs a new version
//! in `hello.rs`, new lines in `golden.txt` and a new docs/wire.md, in one commit.

use crate::kit::{encode, name, samples};

/// `NAME HEX` for each sample, each as first frame of a link. Made by printing `current()`.
const GOLDEN: &str = include_str!("golden.txt");

// Goal: the format cannot change unnoticed. Method: compare with the file, line by line.
#[test]
fn encoded_bytes_are_pinned() {
    let current = current();
    assert_eq!(
        current.lines().collect::<Vec<_>>(),
        GOLDEN.lines().collect::<Vec<_>>(),
        "{current}"
    );
}

// Goal: no message is forgotten here. Method: `name` matches all variants; all names are present.
#[test]
fn every_message_has_a_sample() {
    let mut names: Vec<_> = samples().iter().map(name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 33);
}

fn current() -> String {
    let hex = |bytes: Vec<u8>| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    samples()
        .into_iter()
        .map(|sample| format!("{} {}\n", name(&sample), hex(encode(&[sample]))))
        .collect()
}
