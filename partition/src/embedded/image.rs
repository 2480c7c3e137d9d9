//! A whole partition as rows of bytes, for checkpoints and for members that are too far behind.
//!
//! ```text
//! row: collection length u16, bytes | key length u16, bytes | modified u64 | value length u32, bytes
//! ```

use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;

use crate::{
    codec::{Reader, put_bytes, put_text},
    snapshot::Entry,
    state::Image,
    store::{Collection, Revision},
    text::Templates,
};

/// Appends one row.
pub(crate) fn put_row(out: &mut Vec<u8>, collection: &Collection, key: &str, entry: &Entry) {
    put_text(out, collection.as_str());
    put_text(out, key);
    out.extend_from_slice(&entry.modified.0.to_le_bytes());
    put_bytes(out, &entry.value.stored());
}

/// Puts an image together from rows ordered by collection.
#[derive(Debug)]
pub(crate) struct Builder {
    revision: Revision,
    collections: Vec<(Collection, OrdMap<Arc<str>, Entry>)>,
    templates: Templates,
}

impl Builder {
    pub(crate) fn new(revision: Revision) -> Self {
        Self { revision, collections: Vec::new(), templates: Templates::new() }
    }

    pub(crate) fn add(&mut self, collection: &str, key: &str, entry: Entry) {
        if self.collections.last().is_none_or(|(last, _)| last.as_str() != collection) {
            self.collections.push((Collection::of(collection), OrdMap::new()));
        }
        if let Some((_, entries)) = self.collections.last_mut() {
            entries.insert(key.into(), entry);
        }
    }

    /// Adds all rows in `data`; `None` if it is not rows alone.
    pub(crate) fn add_rows(&mut self, data: &[u8]) -> Option<()> {
        let mut reader = Reader::new(data);
        while !reader.is_empty() {
            let (collection, key) = (reader.text()?, reader.text()?);
            let modified = Revision(reader.u64()?);
            let value = Bytes::copy_from_slice(reader.bytes()?);
            let value = self.templates.keep(collection, key, value);
            self.add(collection, key, Entry { value, modified });
        }
        Some(())
    }

    pub(crate) fn finish(self) -> Image {
        Image { revision: self.revision, collections: self.collections }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Rows = std::collections::BTreeMap<(String, String), (u64, Vec<u8>)>;

    fn rows() -> impl Strategy<Value = Rows> {
        let key = ("[a-c]/[a-c]", ".{0,12}");
        let value = (any::<u64>(), prop::collection::vec(any::<u8>(), 0..40));
        prop::collection::btree_map(key, value, 0..20)
    }

    fn build(revision: u64, rows: &Rows) -> Image {
        let mut builder = Builder::new(Revision(revision));
        for ((collection, key), (modified, value)) in rows {
            let value = Bytes::from(value.clone());
            builder.add(
                collection,
                key,
                Entry { value: value.into(), modified: Revision(*modified) },
            );
        }
        builder.finish()
    }

    fn flat(image: &Image) -> Vec<(String, String, Entry)> {
        let rows = image.collections.iter().flat_map(|(collection, entries)| {
            entries.iter().map(move |(key, entry)| {
                (collection.as_str().to_owned(), key.to_string(), entry.clone())
            })
        });
        rows.collect()
    }

    fn encode(image: &Image) -> Vec<u8> {
        let mut out = Vec::new();
        for (collection, entries) in &image.collections {
            entries.iter().for_each(|(key, entry)| put_row(&mut out, collection, key, entry));
        }
        out
    }

    proptest! {
        #[test]
        fn an_image_reads_back(revision in any::<u64>(), rows in rows()) {
            let image = build(revision, &rows);
            let mut builder = Builder::new(image.revision);
            builder.add_rows(&encode(&image)).unwrap();
            let read = builder.finish();
            prop_assert_eq!(read.revision, image.revision);
            prop_assert_eq!(flat(&read), flat(&image));
        }

        #[test]
        fn noise_never_panics(data in prop::collection::vec(any::<u8>(), 0..200)) {
            Builder::new(Revision(0)).add_rows(&data);
        }
    }
}
