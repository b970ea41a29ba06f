//! Fields of a frame's head: little-endian, in order, without padding, each read checked.

use bytes::{BufMut, BytesMut};

use super::limit::TEXT_LEN_MAX;

/// What is wrong with a message. Its place is added by whoever knows the frame.
pub(super) type Fault = &'static str;

/// A value with one way to be written into a head.
pub(super) trait Field: Sized {
    /// Appends the value. Its limits were checked by [`Message::check`](super::Message::check).
    fn put(&self, out: &mut BytesMut);

    /// Reads the value back; takes no more memory than [`TEXT_LEN_MAX`] without a limit of its own.
    fn take(input: &mut HeadReader<'_>) -> Result<Self, Fault>;
}

/// The bytes of a head that are not read yet.
pub(super) struct HeadReader<'a> {
    rest: &'a [u8],
}

impl<'a> HeadReader<'a> {
    pub(super) fn new(head: &'a [u8]) -> Self {
        Self { rest: head }
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or("head ends within a field")?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (taken, rest) = self
            .rest
            .split_first_chunk()
            .ok_or("head ends within a field")?;
        self.rest = rest;
        Ok(*taken)
    }

    /// Every byte must have had a meaning.
    pub(super) fn finish(self) -> Result<(), Fault> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err("head has bytes after its last field")
        }
    }
}

macro_rules! integers {
    ($($integer:ty => $put:ident),*) => {$(
        impl Field for $integer {
            fn put(&self, out: &mut BytesMut) {
                out.$put(*self);
            }

            fn take(input: &mut HeadReader<'_>) -> Result<Self, Fault> {
                Ok(Self::from_le_bytes(input.array()?))
            }
        }
    )*};
}

integers!(u8 => put_u8, i8 => put_i8, u16 => put_u16_le, u32 => put_u32_le, u64 => put_u64_le);

impl Field for bool {
    fn put(&self, out: &mut BytesMut) {
        out.put_u8(u8::from(*self));
    }

    fn take(input: &mut HeadReader<'_>) -> Result<Self, Fault> {
        match u8::take(input)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("a flag is neither 0 nor 1"),
        }
    }
}

impl<T: Field> Field for Option<T> {
    fn put(&self, out: &mut BytesMut) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }

    fn take(input: &mut HeadReader<'_>) -> Result<Self, Fault> {
        if bool::take(input)? {
            Ok(Some(T::take(input)?))
        } else {
            Ok(None)
        }
    }
}

impl Field for String {
    fn put(&self, out: &mut BytesMut) {
        u16::try_from(self.len())
            .expect("texts were checked against TEXT_LEN_MAX")
            .put(out);
        out.put_slice(self.as_bytes());
    }

    fn take(input: &mut HeadReader<'_>) -> Result<Self, Fault> {
        let len = usize::from(u16::take(input)?);
        if len > TEXT_LEN_MAX {
            return Err("a text is too long");
        }
        let text = str::from_utf8(input.bytes(len)?).map_err(|_| "a text is not UTF-8")?;
        Ok(text.to_owned())
    }
}

/// Makes a struct a [`Field`]: its fields, in the order given.
macro_rules! fields {
    ($name:ident { $($field:ident),* $(,)? }) => {
        impl $crate::wire::field::Field for $name {
            fn put(&self, out: &mut ::bytes::BytesMut) {
                $($crate::wire::field::Field::put(&self.$field, out);)*
            }

            fn take(
                input: &mut $crate::wire::field::HeadReader<'_>,
            ) -> Result<Self, $crate::wire::field::Fault> {
                Ok(Self { $($field: $crate::wire::field::Field::take(input)?),* })
            }
        }
    };
}
pub(super) use fields;

/// Makes an enum without data a [`Field`]: one byte.
macro_rules! codes {
    ($name:ident { $($variant:ident = $code:literal),* $(,)? }) => {
        impl $crate::wire::field::Field for $name {
            fn put(&self, out: &mut ::bytes::BytesMut) {
                let code: u8 = match self { $(Self::$variant => $code),* };
                $crate::wire::field::Field::put(&code, out);
            }

            fn take(
                input: &mut $crate::wire::field::HeadReader<'_>,
            ) -> Result<Self, $crate::wire::field::Fault> {
                match <u8 as $crate::wire::field::Field>::take(input)? {
                    $($code => Ok(Self::$variant),)*
                    _ => Err(concat!("unknown ", stringify!($name))),
                }
            }
        }
    };
}
pub(super) use codes;
