//! The parent locator (section 2.6.2.6): how a differencing image names its parent.

use std::collections::HashSet;

use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

use crate::error::{Error, Result};
use crate::format::{
    ITEM_LEN_MAX, LOCATOR_PAIRS_MAX, LOCATOR_VHDX, RawLocator, RawLocatorEntry, to_usize,
};

/// Keys and values by which a differencing image names its parent, in the order of the file.
///
/// The values are texts of another system, to be shown and compared: nothing here opens a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentLocator {
    entries: Vec<(String, String)>,
    linkage: Uuid,
    linkage2: Option<Uuid>,
}

impl ParentLocator {
    /// What the parent's data write GUID was when this image was made.
    pub fn linkage(&self) -> Uuid {
        self.linkage
    }

    /// A second GUID the parent may have: while a merge runs it has two identities. `None` where
    /// the key is missing and where its value is all zero, as Windows writes it.
    pub fn linkage2(&self) -> Option<Uuid> {
        self.linkage2
    }

    /// The value of a key, which is case-sensitive.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.entries()
            .find(|(found, _)| *found == key)
            .map(|(_, value)| value)
    }

    /// All keys and values, in the order of the file.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &str)> {
        let entries = self.entries.iter();
        entries.map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Path of the parent from the folder of this image. The first path to be tried.
    pub fn relative_path(&self) -> Option<&str> {
        self.get(RELATIVE_PATH)
    }

    /// Path of the parent that begins with the GUID of a volume. The second path to be tried.
    pub fn volume_path(&self) -> Option<&str> {
        self.get(VOLUME_PATH)
    }

    /// Path of the parent from a drive letter on. The last path to be tried.
    pub fn absolute_win32_path(&self) -> Option<&str> {
        self.get(ABSOLUTE_WIN32_PATH)
    }

    /// A locator with these paths, keys in the order of Windows.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) without any path, and for one that
    /// is empty or longer than the format can say.
    pub(crate) fn new(
        linkage: Uuid,
        relative: Option<&str>,
        absolute: Option<&str>,
    ) -> Result<Self> {
        if relative.is_none() && absolute.is_none() {
            return Err(Error::invalid("no path to the parent"));
        }
        let mut entries = vec![(LINKAGE.to_owned(), braced(linkage))];
        for (key, path) in [(ABSOLUTE_WIN32_PATH, absolute), (RELATIVE_PATH, relative)] {
            let Some(path) = path else { continue };
            let len = path.encode_utf16().count() * 2;
            if len == 0 || len > usize::from(u16::MAX) {
                return Err(Error::invalid(
                    "path to the parent is empty or above 65534 bytes",
                ));
            }
            entries.push((key.to_owned(), path.to_owned()));
        }
        entries.push((LINKAGE2.to_owned(), braced(Uuid::nil())));
        Ok(Self {
            entries,
            linkage,
            linkage2: None,
        })
    }

    /// The same with another second GUID; the nil GUID means none. Where the key is new to a
    /// locator at the limits of [`parse`](Self::parse), the result is beyond them.
    pub(crate) fn with_linkage2(&self, guid: Uuid) -> Self {
        let mut next = self.clone();
        next.linkage2 = (!guid.is_nil()).then_some(guid);
        match next.entries.iter_mut().find(|(key, _)| key == LINKAGE2) {
            Some((_, value)) => *value = braced(guid),
            None => next.entries.push((LINKAGE2.to_owned(), braced(guid))),
        }
        next
    }

    /// The same for a parent that is known by `linkage` now and is about to be known by `linkage2`.
    pub(crate) fn between(&self, linkage: Uuid, linkage2: Uuid) -> Self {
        let mut next = self.with_linkage2(linkage2);
        next.linkage = linkage;
        for (key, value) in &mut next.entries {
            if key == LINKAGE {
                *value = braced(linkage);
            }
        }
        next
    }

    /// Reads the content of the metadata item.
    ///
    /// # Errors
    /// [`Damaged`](crate::ErrorKind::Damaged) for lengths and places that cannot be, texts that
    /// are not UTF-16, a key that is there twice, a linkage that is missing or no GUID, and for a
    /// locator without any path; [`Unsupported`](crate::ErrorKind::Unsupported) for another type
    /// of locator. Offsets of errors are those in `bytes`.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let Ok((head, table)) = RawLocator::ref_from_prefix(bytes) else {
            return Err(damaged("shorter than its header"));
        };
        let kind = Uuid::from_bytes_le(head.kind);
        if kind != LOCATOR_VHDX {
            let error = Error::unsupported(format!("type {kind} is not known"));
            return Err(error.of(STRUCTURE).offset(0));
        }
        let count = head.pair_count.get();
        if count > LOCATOR_PAIRS_MAX {
            return Err(damaged(format!("{count} keys")));
        }
        let entry_len = size_of::<RawLocatorEntry>();
        if table.len() < usize::from(count) * entry_len {
            return Err(damaged("its keys end behind it"));
        }
        let mut text_len = 0;
        let mut entries = Vec::new();
        for (entry, raw) in (0_u64..).zip(table.chunks_exact(entry_len).take(count.into())) {
            let raw = RawLocatorEntry::ref_from_bytes(raw).expect("an entry of 12 bytes");
            let at = (size_of::<RawLocator>() + to_usize(entry) * entry_len) as u64;
            text_len += u32::from(raw.key_len.get()) + u32::from(raw.value_len.get());
            // Texts that share bytes are not forbidden, yet must not fill the memory.
            if text_len > ITEM_LEN_MAX {
                return Err(damaged("longer than an item can be").offset(at));
            }
            let key = text(bytes, raw.key_at.get(), raw.key_len.get());
            let value = text(bytes, raw.value_at.get(), raw.value_len.get());
            match (key, value) {
                (Ok(key), Ok(value)) => entries.push((key, value)),
                (Err(detail), _) | (_, Err(detail)) => return Err(damaged(detail).offset(at)),
            }
        }
        Self::from_entries(entries)
    }

    /// The content of the metadata item: header, table, then each key before its value.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let head = RawLocator {
            kind: LOCATOR_VHDX.to_bytes_le(),
            reserved: 0.into(),
            pair_count: u16::try_from(self.entries.len())
                .expect("at most LOCATOR_PAIRS_MAX")
                .into(),
        };
        let mut bytes = head.as_bytes().to_vec();
        let mut texts = Vec::new();
        let texts_at = bytes.len() + self.entries.len() * size_of::<RawLocatorEntry>();
        for (key, value) in &self.entries {
            let mut put = |text: &str| {
                let at = u32::try_from(texts_at + texts.len()).expect("an item of 1 MiB at most");
                let before = texts.len();
                texts.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
                let len = u16::try_from(texts.len() - before).expect("checked when it came in");
                (at, len)
            };
            let ((key_at, key_len), (value_at, value_len)) = (put(key), put(value));
            let raw = RawLocatorEntry {
                key_at: key_at.into(),
                value_at: value_at.into(),
                key_len: key_len.into(),
                value_len: value_len.into(),
            };
            bytes.extend_from_slice(raw.as_bytes());
        }
        bytes.append(&mut texts);
        bytes
    }

    fn from_entries(entries: Vec<(String, String)>) -> Result<Self> {
        let mut seen = HashSet::new();
        if !entries.iter().all(|(key, _)| seen.insert(key)) {
            return Err(damaged("one key twice"));
        }
        let value = |wanted| entries.iter().find(|(key, _)| key == wanted);
        let guid = |wanted, text| parse_guid(text).ok_or_else(|| not_a_guid(wanted));
        let (_, linkage) = value(LINKAGE).ok_or_else(|| damaged("no parent_linkage"))?;
        let linkage = guid(LINKAGE, linkage)?;
        let linkage2 = match value(LINKAGE2) {
            Some((_, text)) => Some(guid(LINKAGE2, text)?).filter(|guid| !guid.is_nil()),
            None => None,
        };
        if PATHS.iter().all(|key| value(key).is_none()) {
            return Err(damaged("no path to the parent"));
        }
        Ok(Self {
            entries,
            linkage,
            linkage2,
        })
    }
}

/// A key or value from its place in the item.
fn text(bytes: &[u8], at: u32, len: u16) -> std::result::Result<String, &'static str> {
    if at == 0 || len == 0 || !len.is_multiple_of(2) {
        return Err("a key or value has no place, no length or an odd one");
    }
    let at = to_usize(at.into());
    let text = bytes
        .get(at..)
        .and_then(|rest| rest.get(..usize::from(len)));
    let (units, _) = text
        .ok_or("a key or value ends behind it")?
        .as_chunks::<2>();
    let units = units.iter().map(|unit| u16::from_le_bytes(*unit));
    char::decode_utf16(units)
        .collect::<std::result::Result<String, _>>()
        .map_err(|_| "a key or value is not UTF-16")
}

/// A GUID as Windows writes it, in braces. Either case will do, and so will no braces: both are
/// the one GUID to whoever has to find the parent.
fn parse_guid(text: &str) -> Option<Uuid> {
    let inner = text
        .strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'));
    let digits = inner.unwrap_or(text);
    (digits.len() == GUID_TEXT_LEN)
        .then(|| Uuid::try_parse(digits).ok())
        .flatten()
}

fn braced(guid: Uuid) -> String {
    guid.braced().to_string()
}

fn damaged(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::damaged(STRUCTURE, detail)
}

fn not_a_guid(key: &str) -> Error {
    damaged(format!("{key} is not a GUID"))
}

const STRUCTURE: &str = "parent locator";
const LINKAGE: &str = "parent_linkage";
const LINKAGE2: &str = "parent_linkage2";
const RELATIVE_PATH: &str = "relative_path";
const VOLUME_PATH: &str = "volume_path";
const ABSOLUTE_WIN32_PATH: &str = "absolute_win32_path";
const PATHS: [&str; 3] = [RELATIVE_PATH, VOLUME_PATH, ABSOLUTE_WIN32_PATH];
/// Characters of a GUID with hyphens, without braces.
const GUID_TEXT_LEN: usize = 36;

#[cfg(test)]
mod tests {
    // Goal: locators by Windows are understood and written alike, all else is refused by name.
    // Method: the item of a real image, one change each, and a round trip of any texts.

    use std::path::Path;
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;
    use crate::ErrorKind;

    const PARENT: Uuid = Uuid::from_u128(0xf88d_4d92_6fcc_408d_9bef_9b7c_89f1_5c89);

    fn sample() -> ParentLocator {
        ParentLocator::new(PARENT, Some(".\\a.vhdx"), Some("C:\\a.vhdx")).unwrap()
    }

    fn with_entries(entries: &[(&str, &str)]) -> Vec<u8> {
        let entries = entries.iter();
        let entries = entries.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let locator = ParentLocator {
            entries: entries.collect(),
            ..sample()
        };
        locator.encode()
    }

    /// The item of the real differencing image, or `None` with a loud word where it is not there.
    fn real_item() -> Option<Vec<u8>> {
        let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/images");
        let packed = images.join("fat-differential.vhdx.gz");
        if !packed.is_file() {
            eprintln!("SKIPPED: no {}", packed.display());
            return None;
        }
        let output = Command::new("gzip").arg("-dc").arg(packed).output();
        if cfg!(windows) && output.is_err() {
            eprintln!("SKIPPED: no gzip on this Windows");
            return None;
        }
        // Metadata region at 2 MiB, locator behind the five other items.
        let at = (2 << 20) + 0x10028;
        Some(output.unwrap().stdout[at..at + 0x2a2].to_vec())
    }

    #[test]
    fn the_locator_of_a_real_image_is_read_and_written_alike() {
        let Some(item) = real_item() else { return };
        let locator = ParentLocator::parse(&item).unwrap();
        assert_eq!((locator.linkage(), locator.linkage2()), (PARENT, None));
        assert_eq!(locator.relative_path(), Some(".\\fat-parent.vhdx"));
        assert_eq!(
            locator.absolute_win32_path(),
            Some("C:\\Projects\\dfvfs\\test_data\\fat-parent.vhdx")
        );
        assert!(locator.volume_path().unwrap().starts_with("\\\\?\\Volume{"));
        assert_eq!(locator.encode(), item);
    }

    #[test]
    fn new_locators_have_the_order_of_windows() {
        let locator = ParentLocator::parse(&sample().encode()).unwrap();
        let keys: Vec<&str> = locator.entries().map(|(key, _)| key).collect();
        assert_eq!(
            keys,
            [
                "parent_linkage",
                "absolute_win32_path",
                "relative_path",
                "parent_linkage2"
            ]
        );
        assert_eq!(
            locator.get("parent_linkage"),
            Some("{f88d4d92-6fcc-408d-9bef-9b7c89f15c89}")
        );
        assert_eq!(locator, sample());
    }

    #[test]
    fn a_locator_leads_somewhere() {
        let kind = |relative: Option<&str>| {
            let error = ParentLocator::new(PARENT, relative, None).unwrap_err();
            error.kind()
        };
        assert_eq!(kind(None), ErrorKind::InvalidArgument);
        assert_eq!(kind(Some("")), ErrorKind::InvalidArgument);
        assert_eq!(kind(Some(&"x".repeat(1 << 15))), ErrorKind::InvalidArgument);
        assert!(ParentLocator::new(PARENT, Some(&"x".repeat((1 << 15) - 1)), None).is_ok());
    }

    #[test]
    fn a_second_linkage_is_replaced_or_added() {
        let other = Uuid::from_u128(5);
        let replaced = sample().with_linkage2(other);
        assert_eq!(replaced.linkage2(), Some(other));
        assert_eq!(replaced.entries().count(), 4);
        assert_eq!(replaced.with_linkage2(Uuid::nil()), sample());
        let without = with_entries(&[("parent_linkage", &braced(PARENT)), ("relative_path", "a")]);
        let added = ParentLocator::parse(&without).unwrap().with_linkage2(other);
        let read = ParentLocator::parse(&added.encode()).unwrap();
        assert_eq!((read.linkage2(), read.entries().count()), (Some(other), 3));
    }

    #[test]
    fn guids_are_taken_in_either_case_and_without_braces() {
        let text = PARENT.hyphenated().to_string();
        for text in [text.to_uppercase(), format!("{{{}}}", text.to_uppercase())] {
            let item = with_entries(&[("parent_linkage", &text), ("volume_path", "v")]);
            assert_eq!(ParentLocator::parse(&item).unwrap().linkage(), PARENT);
        }
        let simple = PARENT.simple().to_string();
        let odd = [format!("{{{text}"), format!("urn:uuid:{text}"), simple];
        for text in odd {
            let item = with_entries(&[("parent_linkage", &text), ("volume_path", "v")]);
            assert!(ParentLocator::parse(&item).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_missing_or_double_is_refused() {
        let guid = braced(PARENT);
        let rows: [&[(&str, &str)]; 5] = [
            &[],
            &[("relative_path", "a")],
            &[("parent_linkage", &guid)],
            &[("parent_linkage", &guid), ("Relative_path", "a")],
            &[
                ("parent_linkage", &guid),
                ("relative_path", "a"),
                ("relative_path", "a"),
            ],
        ];
        for row in rows {
            let error = ParentLocator::parse(&with_entries(row)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damaged, "{row:?}");
        }
        let bad_second = with_entries(&[
            ("parent_linkage", &guid),
            ("relative_path", "a"),
            ("parent_linkage2", "none"),
        ]);
        assert!(ParentLocator::parse(&bad_second).is_err());
    }

    #[test]
    fn fields_that_cannot_be_are_refused() {
        // Byte offset in the item, new bytes: kind, count, then the first entry.
        let rows: [(usize, &[u8], ErrorKind); 10] = [
            (0, &[0; 16], ErrorKind::Unsupported),
            (18, &[1, 1], ErrorKind::Damaged),
            (18, &[255, 0], ErrorKind::Damaged),
            (20, &[0; 4], ErrorKind::Damaged),
            (20, &[0xFF; 4], ErrorKind::Damaged),
            (24, &[0; 4], ErrorKind::Damaged),
            (28, &[0, 0], ErrorKind::Damaged),
            (28, &[27, 0], ErrorKind::Damaged),
            (30, &[0, 0], ErrorKind::Damaged),
            (30, &[0xFE, 0xFF], ErrorKind::Damaged),
        ];
        for (at, bytes, kind) in rows {
            let mut item = sample().encode();
            item[at..at + bytes.len()].copy_from_slice(bytes);
            let error = ParentLocator::parse(&item).unwrap_err();
            assert_eq!(error.kind(), kind, "{at}: {bytes:?}");
        }
        for len in [0, 19, 20, 40] {
            assert!(ParentLocator::parse(&sample().encode()[..len]).is_err());
        }
    }

    #[test]
    fn a_lone_surrogate_is_refused() {
        let mut item = sample().encode();
        let text_at = 20 + 4 * 12;
        item[text_at..text_at + 2].copy_from_slice(&0xD800_u16.to_le_bytes());
        assert!(ParentLocator::parse(&item).is_err());
    }

    #[test]
    fn texts_that_share_bytes_cannot_fill_the_memory() {
        let mut item = vec![b'a'; 1 << 20];
        item[..16].copy_from_slice(&LOCATOR_VHDX.to_bytes_le());
        item[16..20].copy_from_slice(&[0, 0, 0, 1]);
        for entry in 0..256 {
            let raw: Vec<u8> = [[0, 1, 0, 0], [0, 1, 0, 0], [0xFE, 0xFF, 0xFE, 0xFF]].concat();
            item[20 + entry * 12..32 + entry * 12].copy_from_slice(&raw);
        }
        let error = ParentLocator::parse(&item).unwrap_err();
        assert!(error.to_string().contains("longer than an item can be"));
    }

    proptest! {
        #[test]
        fn any_texts_round_trip(
            linkage in any::<u128>(),
            relative in "[^\\x00]{1,40}",
            absolute in proptest::option::of("\\PC{1,40}"),
            second in any::<u128>(),
        ) {
            let linkage = Uuid::from_u128(linkage);
            let locator = ParentLocator::new(linkage, Some(&relative), absolute.as_deref());
            let locator = locator.unwrap().with_linkage2(Uuid::from_u128(second));
            let read = ParentLocator::parse(&locator.encode()).unwrap();
            prop_assert_eq!(&read, &locator);
            prop_assert_eq!(read.relative_path(), Some(relative.as_str()));
        }

        #[test]
        fn any_bytes_are_met_without_panic(at in 0..200_usize, bytes in any::<[u8; 6]>()) {
            let mut item = sample().encode();
            let end = item.len().min(at + bytes.len());
            item[at..end].copy_from_slice(&bytes[..end - at]);
            if let Ok(locator) = ParentLocator::parse(&item) {
                prop_assert_eq!(ParentLocator::parse(&locator.encode()).unwrap(), locator);
            }
        }
    }
}
