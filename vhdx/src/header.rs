//! The two headers (section 2.2.2): which one counts, and how both are replaced.

use std::ops::Range;

use uuid::Uuid;
use zerocopy::{FromZeros, IntoBytes, transmute};

use crate::error::{Error, ErrorKind, Result};
use crate::file::FileAt;
use crate::format::{
    HEADER_SECTION_LEN, HEADER_VERSION, HEADERS_AT, LOG_LEN_MAX, MIB, PAGE_LEN, RawHeader,
    is_sealed, seal,
};
use crate::image::Warning;
use crate::storage::Storage;

/// What the current header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) sequence: u64,
    pub(crate) file_write_guid: Uuid,
    pub(crate) data_write_guid: Uuid,
    /// Nil when the log is empty.
    pub(crate) log_guid: Uuid,
    /// Byte range of the log in the file; may be empty.
    pub(crate) log: Range<u64>,
}

/// The current header and which of the two places holds it.
#[derive(Debug)]
pub(crate) struct Headers {
    pub(crate) current: Header,
    slot: usize,
}

impl Headers {
    /// Reads both headers and chooses: the only valid one, or the one with the greater sequence
    /// number. Two with the same number must be the same to the byte: one known program
    /// (Disk2vhd) writes such pairs, and nothing else tells which is newer.
    pub(crate) fn read(file: &dyn FileAt, warnings: &mut Vec<Warning>) -> Result<Self> {
        let mut raw = [[0_u8; PAGE_LEN]; 2];
        for (bytes, at) in raw.iter_mut().zip(HEADERS_AT) {
            file.read_at(at, bytes)
                .map_err(|error| Error::io("read header", error).of("header").offset(at))?;
        }
        let identical = raw[0] == raw[1];
        let valid = raw.each_ref().map(is_valid);
        let raw: [RawHeader; 2] = raw.map(|bytes| transmute!(bytes));
        let slot = match valid {
            [false, false] => {
                return Err(
                    Error::damaged("header", "both copies are damaged").offset(HEADERS_AT[0])
                );
            }
            [true, false] => 0,
            [false, true] => 1,
            [true, true] if identical => 0,
            [true, true] => match raw[0].sequence.get().cmp(&raw[1].sequence.get()) {
                std::cmp::Ordering::Greater => 0,
                std::cmp::Ordering::Less => 1,
                std::cmp::Ordering::Equal => {
                    return Err(
                        Error::damaged("header", "two differ under one sequence number")
                            .offset(HEADERS_AT[0]),
                    );
                }
            },
        };
        if !valid[1 - slot] {
            warnings.push(Warning::HeaderDamaged {
                at: HEADERS_AT[1 - slot],
            });
        }
        let current =
            parse(&raw[slot]).map_err(|error| error.of("header").offset(HEADERS_AT[slot]))?;
        Ok(Self { current, slot })
    }

    /// Changes both headers, the older copy first, each durable before the next is touched: at
    /// any moment one of them is whole, and in the end both carry the same GUIDs.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] before anything is written when sequence numbers run out, else
    /// those of the file, after which any of the two may be damaged.
    pub(crate) fn update(&mut self, storage: &Storage, change: impl Fn(&mut Header)) -> Result<()> {
        if self.current.sequence > u64::MAX - 2 {
            return Err(Error::unsupported("no sequence number left").of("header"));
        }
        let mut next = self.current.clone();
        change(&mut next);
        for _ in HEADERS_AT {
            next.sequence += 1;
            let slot = 1 - self.slot;
            storage.write_at(HEADERS_AT[slot], encode(&next).as_bytes())?;
            storage.sync()?;
            self.slot = slot;
            self.current = next.clone();
        }
        Ok(())
    }
}

/// Both headers of a new image, with the offsets where they go.
pub(crate) fn pair(header: &Header) -> [(u64, RawHeader); 2] {
    let second = Header {
        sequence: header.sequence + 1,
        ..header.clone()
    };
    [
        (HEADERS_AT[0], encode(header)),
        (HEADERS_AT[1], encode(&second)),
    ]
}

fn encode(header: &Header) -> RawHeader {
    let mut raw = RawHeader::new_zeroed();
    raw.signature = *SIGNATURE;
    raw.sequence.set(header.sequence);
    raw.file_write_guid = header.file_write_guid.to_bytes_le();
    raw.data_write_guid = header.data_write_guid.to_bytes_le();
    raw.log_guid = header.log_guid.to_bytes_le();
    raw.version.set(HEADER_VERSION);
    let log_len = header.log.end - header.log.start;
    raw.log_len
        .set(u32::try_from(log_len).expect("at most LOG_LEN_MAX"));
    raw.log_at.set(header.log.start);
    seal(raw.as_mut_bytes());
    raw
}

fn is_valid(bytes: &[u8; PAGE_LEN]) -> bool {
    bytes.starts_with(SIGNATURE) && is_sealed(bytes)
}

fn parse(raw: &RawHeader) -> Result<Header> {
    if raw.version.get() != HEADER_VERSION {
        return Err(Error::unsupported(format!("version {}", raw.version)));
    }
    let log_guid = Uuid::from_bytes_le(raw.log_guid);
    if !log_guid.is_nil() && raw.log_version.get() != 0 {
        return Err(Error::unsupported(format!(
            "log version {}",
            raw.log_version
        )));
    }
    let (at, len) = (raw.log_at.get(), u64::from(raw.log_len.get()));
    if at % MIB != 0 || len % MIB != 0 || (len > 0 && at < HEADER_SECTION_LEN) {
        return Err(Error::new(
            ErrorKind::Damaged,
            "log is not where a log can be",
        ));
    }
    if len > LOG_LEN_MAX {
        return Err(Error::unsupported(format!("log of {len} bytes")));
    }
    let end = at.checked_add(len);
    let end = end.ok_or_else(|| Error::new(ErrorKind::Damaged, "log ends past any file"))?;
    Ok(Header {
        sequence: raw.sequence.get(),
        file_write_guid: Uuid::from_bytes_le(raw.file_write_guid),
        data_write_guid: Uuid::from_bytes_le(raw.data_write_guid),
        log_guid,
        log: at..end,
    })
}

pub(crate) const SIGNATURE: &[u8; 4] = b"head";

#[cfg(test)]
mod tests {
    // Goal: the choice between two headers. Method: write pairs, damage them, read.
    use std::sync::Arc;

    use super::*;
    use crate::file::MemoryFile;

    fn header(sequence: u64) -> Header {
        Header {
            sequence,
            file_write_guid: Uuid::from_u128(1),
            data_write_guid: Uuid::from_u128(2),
            log_guid: Uuid::nil(),
            log: MIB..2 * MIB,
        }
    }

    fn pair(first: &Header, second: &Header) -> MemoryFile {
        let file = MemoryFile::new();
        file.write_at(HEADERS_AT[0], encode(first).as_bytes())
            .unwrap();
        file.write_at(HEADERS_AT[1], encode(second).as_bytes())
            .unwrap();
        file
    }

    #[test]
    fn the_greater_sequence_number_wins() {
        let file = pair(&header(8), &header(7));
        let headers = Headers::read(&file, &mut Vec::new()).unwrap();
        assert_eq!(headers.current, header(8));
    }

    #[test]
    fn a_damaged_header_is_reported_and_not_used() {
        let file = pair(&header(8), &header(7));
        file.write_at(HEADERS_AT[0] + 9, &[1]).unwrap();
        let mut warnings = Vec::new();
        let headers = Headers::read(&file, &mut warnings).unwrap();
        assert_eq!(headers.current, header(7));
        assert_eq!(warnings, [Warning::HeaderDamaged { at: HEADERS_AT[0] }]);
    }

    #[test]
    fn equal_numbers_need_equal_bytes() {
        let mut other = header(7);
        other.data_write_guid = Uuid::from_u128(3);
        let same = Headers::read(&pair(&header(7), &header(7)), &mut Vec::new());
        let different = Headers::read(&pair(&header(7), &other), &mut Vec::new());
        assert_eq!(same.unwrap().current, header(7));
        assert_eq!(different.unwrap_err().kind(), ErrorKind::Damaged);
    }

    #[test]
    fn an_update_reaches_both_copies() {
        let file = Arc::new(pair(&header(8), &header(7)));
        let mut headers = Headers::read(&*file, &mut Vec::new()).unwrap();
        let storage = Storage::new(file.clone(), None).unwrap();
        headers
            .update(&storage, |header| header.log_guid = Uuid::from_u128(9))
            .unwrap();
        file.zero(HEADERS_AT[0]..HEADERS_AT[0] + 8).unwrap();
        let left = Headers::read(&*file, &mut Vec::new()).unwrap().current;
        assert_eq!((left.sequence, left.log_guid), (9, Uuid::from_u128(9)));
    }
}
