//! A value as it lies in memory: what is long is packed, if that makes it much shorter.
//!
//! Long values are definitions, manifests and documents: text that repeats itself, read rarely,
//! and by each tenant its own. Packed they take a tenth, now and in the history.
//! LZ4 (block format), because packing is done where all writes of a partition pass.
//!
//! What many tenants have alike is packed too, against the value of one of them (`alike.rs`), and
//! what has lain still for long, against a neighbour (`state/settle.rs`).
//!
//! What is sealed lies sealed, and is opened for whoever looks at it ([`crate::seal`]). Whatever
//! puts a value on a disk or on the wire takes it as it is stored, see `Text::stored`.

mod alike;

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use lz4_flex::block;

use self::alike::Alike;
pub(crate) use self::alike::Templates;
use crate::{seal::Shut, store::StoreError};

/// Values from this length on are packed, in bytes.
pub(crate) const LONG: usize = 16 << 10;

/// See the module.
#[derive(Debug, Clone)]
pub struct Text(Form);

#[derive(Debug, Clone)]
enum Form {
    Plain(Bytes),
    /// Apart, so that both fit where a plain one has its own.
    Costly(Costly),
}

/// What has to be made before it can be looked at.
#[derive(Debug, Clone)]
enum Costly {
    Packed {
        bytes: Arc<[u8]>,
        /// Of what it was made of.
        length: u32,
    },
    Alike(Arc<Alike>),
    Sealed(Arc<Shut>),
}

impl Text {
    /// A value that will lie there for a while.
    fn kept(value: Bytes) -> Self {
        let Some(length) = u32::try_from(value.len()).ok().filter(|_| LONG <= value.len()) else {
            return value.into();
        };
        let packed = block::compress(&value);
        match packed.len() <= value.len() / 2 {
            true => Self(Form::Costly(Costly::Packed { bytes: packed.into(), length })),
            false => value.into(),
        }
    }

    /// A value that differs little from another.
    fn alike(it: Arc<Alike>) -> Self {
        Self(Form::Costly(Costly::Alike(it)))
    }

    /// A sealed value.
    pub(crate) fn shut(it: Shut) -> Self {
        Self(Form::Costly(Costly::Sealed(Arc::new(it))))
    }

    /// The value. What is plain costs nothing. What cannot be opened is empty, which no reader
    /// takes for an object: where it may come to a client, ask [`Text::opened`].
    pub fn bytes(&self) -> Cow<'_, Bytes> {
        match &self.0 {
            Form::Plain(bytes) => Cow::Borrowed(bytes),
            Form::Costly(Costly::Packed { bytes, length }) => Cow::Owned(unpack(bytes, *length)),
            Form::Costly(Costly::Alike(it)) => Cow::Owned(sound(it.bytes())),
            Form::Costly(Costly::Sealed(it)) => Cow::Owned(it.open().unwrap_or_default()),
        }
    }

    pub fn into_bytes(self) -> Bytes {
        match self.0 {
            Form::Plain(bytes) => bytes,
            Form::Costly(Costly::Packed { bytes, length }) => unpack(&bytes, length),
            Form::Costly(Costly::Alike(it)) => sound(it.bytes()),
            Form::Costly(Costly::Sealed(it)) => it.open().unwrap_or_default(),
        }
    }

    /// The value as it is stored: what is sealed stays so.
    pub(crate) fn stored(&self) -> Cow<'_, Bytes> {
        match &self.0 {
            Form::Costly(Costly::Sealed(it)) => Cow::Borrowed(it.stored()),
            _ => self.bytes(),
        }
    }

    /// The same value, opened if it is sealed; an error says why it cannot be.
    pub fn opened(self) -> Result<Self, StoreError> {
        match self.0 {
            Form::Costly(Costly::Sealed(it)) => it.open().map(Self::from),
            _ => Ok(self),
        }
    }

    /// The value, or, if it cannot be opened, what can be read of it without its key: its kind and
    /// metadata, without annotations and managers. Never to be written back.
    pub fn glance(&self) -> Cow<'_, Bytes> {
        match &self.0 {
            Form::Costly(Costly::Sealed(it)) => Cow::Owned(it.open().unwrap_or_else(|_| it.husk())),
            _ => self.bytes(),
        }
    }

    /// As [`Text::glance`], to be kept.
    pub fn glanced(self) -> Self {
        match &self.0 {
            Form::Costly(Costly::Sealed(_)) => self.glance().into_owned().into(),
            _ => self,
        }
    }

    /// Length in bytes of what is stored.
    pub fn len(&self) -> usize {
        match &self.0 {
            Form::Plain(bytes) => bytes.len(),
            Form::Costly(Costly::Packed { length, .. }) => *length as usize,
            Form::Costly(Costly::Alike(it)) => it.length as usize,
            Form::Costly(Costly::Sealed(it)) => it.stored().len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether looking at it costs something.
    pub fn is_packed(&self) -> bool {
        !matches!(self.0, Form::Plain(_))
    }

    /// Whether it lies as what differs from another.
    pub(crate) fn is_alike(&self) -> bool {
        matches!(self.0, Form::Costly(Costly::Alike(_)))
    }

    /// `value` as what differs from a `template`, if that is less than half of it.
    pub(crate) fn like(template: &Bytes, value: &Bytes) -> Option<Self> {
        alike::alike(template, value).map(Self::alike)
    }

    /// What it lies as a difference from, if it does.
    pub(crate) fn template(&self) -> Option<&Bytes> {
        match &self.0 {
            Form::Costly(Costly::Alike(it)) => Some(&it.template),
            _ => None,
        }
    }

    /// Where it lies, and how long it is: while somebody holds it, nothing else has the same. Nothing
    /// for what is sealed, whose text is nobody's to keep.
    pub fn place(&self) -> Option<(usize, usize)> {
        let at = match &self.0 {
            Form::Plain(bytes) => bytes.as_ptr().addr(),
            Form::Costly(Costly::Packed { bytes, .. }) => bytes.as_ptr().addr(),
            Form::Costly(Costly::Alike(it)) => Arc::as_ptr(it).addr(),
            Form::Costly(Costly::Sealed(_)) => return None,
        };
        Some((at, self.len()))
    }

    /// Whether it is sealed.
    pub fn is_sealed(&self) -> bool {
        matches!(self.0, Form::Costly(Costly::Sealed(_)))
    }

    /// Bytes that lie there as they came.
    pub(crate) fn as_plain(&self) -> Option<&Bytes> {
        match &self.0 {
            Form::Plain(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The bytes that it takes.
    pub(crate) fn held(&self) -> usize {
        match &self.0 {
            Form::Plain(bytes) => bytes.len(),
            Form::Costly(Costly::Packed { bytes, .. }) => bytes.len(),
            Form::Costly(Costly::Alike(it)) => it.held(),
            Form::Costly(Costly::Sealed(it)) => it.stored().len() + size_of::<Shut>(),
        }
    }
}

fn unpack(bytes: &[u8], length: u32) -> Bytes {
    sound(block::decompress(bytes, length as usize).map(Bytes::from).ok())
}

/// What was unpacked. It was packed by this very process and nobody can change it: if that fails,
/// memory is broken.
fn sound(value: Option<Bytes>) -> Bytes {
    value.unwrap_or_else(|| {
        tracing::error!("a packed value is damaged in memory");
        Bytes::new()
    })
}

impl From<Bytes> for Text {
    fn from(value: Bytes) -> Self {
        Self(Form::Plain(value))
    }
}

impl From<String> for Text {
    fn from(value: String) -> Self {
        Bytes::from(value).into()
    }
}

impl From<&'static str> for Text {
    fn from(value: &'static str) -> Self {
        Bytes::from(value).into()
    }
}

impl Default for Text {
    fn default() -> Self {
        Bytes::new().into()
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.stored() == other.stored()
    }
}

impl Eq for Text {}

impl PartialEq<Bytes> for Text {
    fn eq(&self, other: &Bytes) -> bool {
        *self.bytes() == *other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_and_repeats_itself_is_packed() {
        let value: Bytes = r#"{"type":"string","description":"what it is"},"#.repeat(5000).into();
        let text = Text::kept(value.clone());
        assert!(text.held() * 10 < value.len(), "{} of {}", text.held(), value.len());
        assert_eq!((text.len(), &*text.bytes()), (value.len(), &value));
        assert_eq!(text.clone().into_bytes(), value);
        assert_eq!(text, Text::from(value));
    }

    #[test]
    fn what_is_short_or_like_noise_stays_as_it_is() {
        let noise: Vec<u8> = (0..100_000_u64)
            .map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8 ^ (n >> 3) as u8)
            .scan(7_u64, |state, it| {
                *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(u64::from(it));
                Some((*state >> 40) as u8)
            })
            .collect();
        for value in [Bytes::new(), Bytes::from(vec![b'a'; LONG - 1]), noise.into()] {
            let at = value.as_ptr();
            let text = Text::kept(value.clone());
            assert_eq!((text.held(), text.len()), (value.len(), value.len()));
            assert_eq!((text.bytes().as_ptr(), &*text.bytes()), (at, &value));
        }
    }

    #[test]
    fn an_entry_is_no_larger_for_it() {
        assert_eq!(size_of::<Text>(), size_of::<Bytes>());
    }
}
