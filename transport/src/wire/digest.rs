//! A hash value of one of the two lengths in use.

use std::fmt;

use bytes::{BufMut, BytesMut};

use super::field::{Fault, Field, HeadReader};

/// The hash of a block or of a whole disk: 32 bytes of BLAKE3 or 16 bytes of XXH3-128.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest {
    /// 16 or 32.
    len: u8,
    /// The hash, then zeros, so that equal digests are equal structs.
    bytes: [u8; 32],
}

impl Digest {
    /// The digest with these bytes, or `None` when there are neither 16 nor 32 of them.
    #[must_use]
    pub fn from_slice(hash: &[u8]) -> Option<Self> {
        let len = match hash.len() {
            16 => 16,
            32 => 32,
            _ => return None,
        };
        let mut bytes = [0; 32];
        bytes[..hash.len()].copy_from_slice(hash);
        Some(Self { len, bytes })
    }

    /// The 16 or 32 bytes of the hash.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self { len: 32, bytes }
    }
}

impl From<[u8; 16]> for Digest {
    fn from(hash: [u8; 16]) -> Self {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&hash);
        Self { len: 16, bytes }
    }
}

impl std::str::FromStr for Digest {
    type Err = &'static str;

    /// Of 32 or 64 hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "a digest has 32 or 64 hexadecimal digits";
        let digit = |digit: &u8| {
            char::from(*digit)
                .to_digit(16)
                .and_then(|it| u8::try_from(it).ok())
        };
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let bytes: Option<Vec<u8>> = pairs
            .iter()
            .map(|[high, low]| Some(digit(high)? << 4 | digit(low)?))
            .collect();
        let bytes = bytes.filter(|_| rest.is_empty());
        bytes
            .and_then(|bytes| Self::from_slice(&bytes))
            .ok_or(wrong)
    }
}

/// Hexadecimal, lower case.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes()
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl Field for Digest {
    fn put(&self, out: &mut BytesMut) {
        self.len.put(out);
        out.put_slice(self.as_bytes());
    }

    fn take(input: &mut HeadReader<'_>) -> Result<Self, Fault> {
        let len = usize::from(u8::take(input)?);
        if len != 16 && len != 32 {
            return Err("a hash has neither 16 nor 32 bytes");
        }
        Self::from_slice(input.bytes(len)?).ok_or("a hash has neither 16 nor 32 bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: what was printed is read again, and nothing else. Method: both lengths; digits that are
    // missing, too many, none.
    #[test]
    fn a_printed_digest_is_read() {
        for digest in [Digest::from([0x5a; 16]), Digest::from([0xf0; 32])] {
            let text = digest.to_string();
            assert_eq!(text.parse(), Ok(digest));
            assert_eq!(text.to_uppercase().parse(), Ok(digest));
            let (odd, long, none) = (&text[1..], format!("{text}00"), format!("{}g", &text[1..]));
            for wrong in [odd, &text[2..], &long, &none, "", &"\u{e4}".repeat(16)] {
                assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
            }
        }
    }
}
