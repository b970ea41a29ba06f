use super::partitions::tests::{EFI, POOL, gpt_of};
use super::*;

const GIB: u64 = 1 << 30;

fn seen(id: &str, size: u64) -> Seen {
    let head = vec![0; HEAD_LEN];
    Seen {
        id: id.to_owned(),
        size,
        other_size: Some(size),
        format: "vhdx".to_owned(),
        sectors: Some((512, 4096)),
        content: Some((Partitions::of(&head, 512), false)),
    }
}

fn with_gpt(disk: Seen, types: &[uuid::Uuid]) -> Seen {
    Seen {
        content: Some((Partitions::of(&gpt_of(types, 512), 512), false)),
        ..disk
    }
}

/// Ids of the rules that do not hold.
fn broken(version: &str, disks: &[Seen]) -> Vec<String> {
    let profile = Profile::named(&format!("azure-hyperv/{version}")).unwrap();
    let found = profile.examine(disks);
    assert!(found.iter().all(|it| it.source.is_some()));
    let broken = found.into_iter().filter(|it| !it.holds);
    let id = |it: Finding| it.rule.rsplit(':').next().unwrap().to_owned();
    broken.map(id).collect()
}

// Goal: the data is what the table of the platform's pages says, version by version. Method: a disk
// at each limit, and one byte beyond.
#[test]
fn limits_are_those_that_were_printed() {
    for (version, os, data) in [
        ("2014-06", 127, 1024),
        ("2017-01", 1023, 1023),
        ("2018-08", 2048, 4095),
        ("2020-01", 2048, 4095),
    ] {
        let at = |os, data| [seen("os", os), seen("data", data)];
        let none: [&str; 0] = [];
        assert_eq!(
            broken(version, &at(os * GIB, data * GIB)),
            none,
            "{version}"
        );
        let over = at((os + 1) * GIB, (data + 1) * GIB);
        assert_eq!(broken(version, &over), ["os_disk_size", "data_disk_size"]);
        let many: Vec<_> = (0..18).map(|_| seen("data", GIB)).collect();
        assert_eq!(broken(version, &many), ["data_disk_count"]);
        assert_eq!(broken(version, &many[1..]), none);
    }
    assert_eq!(Profile::all().len(), 4);
    let error = Profile::named("azure-hyperv/1999-01").unwrap_err();
    assert!(error.message().contains("azure-hyperv/2020-01"));
}

// Goal: what partitions tell differs by version as printed. Method: EFI, Storage Spaces, BitLocker,
// many partitions.
#[test]
fn partitions_are_held_against_the_rules() {
    let efi = || with_gpt(seen("os", 299 * GIB), &[EFI]);
    assert_eq!(broken("2014-06", &[efi()]), ["os_disk_size", "generation"]);
    let none: [&str; 0] = [];
    assert_eq!(broken("2017-01", &[efi()]), none);
    let large = with_gpt(seen("os", 300 * GIB), &[EFI]);
    assert_eq!(broken("2020-01", &[large]), ["generation_2"]);
    let pool = with_gpt(seen("os", GIB), &[POOL]);
    assert_eq!(broken("2018-08", std::slice::from_ref(&pool)), none);
    assert_eq!(broken("2020-01", &[pool]), ["storage_spaces"]);
    let many = with_gpt(seen("os", GIB), &[EFI; 6]);
    assert_eq!(broken("2018-08", std::slice::from_ref(&many)), none);
    assert_eq!(broken("2020-01", &[many]), ["efi_partitions"]);
    let mut encrypted = seen("os", GIB);
    encrypted.content = encrypted.content.map(|(partitions, _)| (partitions, true));
    assert_eq!(broken("2020-01", &[encrypted]), ["bitlocker"]);
}

// Goal: what an image cannot show is told and holds; the rest of the rules are looked at. Method: a
// disk that could not be read, and one that breaks the rest.
#[test]
fn what_cannot_be_seen_is_asked_of_the_host() {
    let unread = Seen {
        content: None,
        sectors: None,
        other_size: None,
        ..seen("os", GIB)
    };
    let found = Profile::named("azure-hyperv/2020-01")
        .unwrap()
        .examine(&[unread]);
    assert!(found.iter().all(|it| it.holds));
    let asked = found
        .iter()
        .filter(|it| it.said.starts_with("ask the host"));
    assert_eq!(asked.count(), 10);
    let wrong = Seen {
        size: GIB + 512,
        format: "raw".to_owned(),
        sectors: Some((4096, 4096)),
        ..seen("os", GIB)
    };
    assert_eq!(
        broken("2020-01", &[wrong]),
        ["sectors", "resize", "format", "upload_size"]
    );
}

// Goal: BitLocker's volumes are found where a partition begins, and a table that leads past the end
// is no error. Method: a disk in memory.
#[test]
fn volumes_are_looked_at_where_they_begin() {
    let head = gpt_of(&[EFI, POOL], 512);
    let mut bytes = vec![0; 3 << 20];
    bytes[..head.len()].copy_from_slice(&head);
    let look = |bytes: &[u8]| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        std::fs::write(&path, bytes).unwrap();
        let disk = open_source(&path, &OpenOptions::default()).unwrap();
        content(disk.as_ref(), 512).unwrap()
    };
    let (partitions, is_encrypted) = look(&bytes);
    assert_eq!((partitions.all.len(), is_encrypted), (2, false));
    let at = (2 << 20) + 3;
    bytes[at..at + 8].copy_from_slice(BITLOCKER);
    assert!(look(&bytes).1);
    assert!(!look(&bytes[..2 << 20]).1);
    assert_eq!(look(&[0; 512]).0.scheme, Scheme::None);
}
