//! Which node has which image, and how large it is.

use std::{collections::HashMap, sync::Arc};

use k8s_openapi::api::core::v1::ContainerImage;

use crate::tally::RowMap;

/// Changes between two looks for images that no node has.
const SWEEP_EVERY: u64 = 64;

#[derive(Debug, Default)]
struct Image {
    name: Arc<str>,
    /// Bytes, by row.
    sizes: RowMap<i64>,
}

/// The images of all rows.
#[derive(Debug, Default)]
pub(crate) struct Images {
    numbers: HashMap<Arc<str>, u32>,
    images: Vec<Image>,
    unused: Vec<u32>,
    of_row: Vec<Vec<u32>>,
    n_changes: u64,
    version: u64,
}

impl Images {
    /// Sets the images of a row. Returns whether they were others before.
    pub(crate) fn set(&mut self, row: usize, images: &[ContainerImage]) -> bool {
        if self.of_row.len() <= row {
            if images.is_empty() {
                return false;
            }
            self.of_row.resize_with(row + 1, Vec::new);
        }
        let key = u32::try_from(row).unwrap_or(u32::MAX);
        let mut now: Vec<(u32, i64)> = Vec::new();
        for image in images {
            for name in image.names.iter().flatten() {
                now.push((self.number(name), image.size_bytes.unwrap_or(0)));
            }
        }
        now.sort_unstable();
        now.dedup_by_key(|(number, _)| *number);
        let before = &self.of_row[row];
        let is_same = before.len() == now.len()
            && now.iter().zip(before).all(|((number, size), old)| {
                number == old && self.images[*old as usize].sizes.get(&key) == Some(size)
            });
        if is_same {
            return false;
        }
        self.n_changes += 1;
        for old in std::mem::take(&mut self.of_row[row]) {
            self.images[old as usize].sizes.remove(&key);
        }
        for (number, size) in &now {
            self.images[*number as usize].sizes.insert(key, *size);
        }
        self.of_row[row] = now.into_iter().map(|(number, _)| number).collect();
        if self.n_changes.is_multiple_of(SWEEP_EVERY) {
            self.sweep();
        }
        true
    }

    /// Gives up the numbers of images that no row has.
    fn sweep(&mut self) {
        for (number, image) in self.images.iter_mut().enumerate() {
            if image.sizes.is_empty() && !image.name.is_empty() {
                self.version += 1;
                self.numbers.remove(&image.name);
                image.name = "".into();
                self.unused.push(u32::try_from(number).unwrap_or(u32::MAX));
            }
        }
    }

    fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        self.version += 1;
        let name: Arc<str> = name.into();
        let image = Image { name: name.clone(), sizes: RowMap::default() };
        let number = match self.unused.pop() {
            Some(number) => {
                self.images[number as usize] = image;
                number
            }
            None => {
                self.images.push(image);
                u32::try_from(self.images.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.numbers.insert(name, number);
        number
    }

    /// Grows whenever numbers of images come to mean something else.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The number of an image that some row has or had.
    pub(crate) fn number_of(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).copied()
    }

    /// How large an image is on a row; 0 if it is not there.
    pub(crate) fn size_on(&self, number: u32, row: usize) -> i64 {
        let row = u32::try_from(row).unwrap_or(u32::MAX);
        self.images.get(number as usize).and_then(|it| it.sizes.get(&row)).copied().unwrap_or(0)
    }

    /// How many rows have an image.
    pub(crate) fn n_rows_with(&self, number: u32) -> usize {
        self.images.get(number as usize).map_or(0, |it| it.sizes.len())
    }
}

/// An image's name with the tag that is meant if it has none.
pub(crate) fn normalized(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') || last.contains('@') {
        name.to_owned()
    } else {
        format!("{name}:latest")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str, size: i64) -> ContainerImage {
        ContainerImage { names: Some(vec![name.to_owned()]), size_bytes: Some(size) }
    }

    #[test]
    fn images_come_and_go() {
        let mut images = Images::default();
        images.set(0, &[image("a:1", 5), image("b:1", 6)]);
        images.set(2, &[image("a:1", 5)]);
        let a = images.number_of("a:1").unwrap();
        assert_eq!((images.n_rows_with(a), images.size_on(a, 2), images.size_on(a, 1)), (2, 5, 0));
        let before = images.version();
        assert!(!images.set(2, &[image("a:1", 5)]));
        assert!(images.set(0, &[]));
        assert_eq!((images.n_rows_with(a), images.size_on(a, 0)), (1, 0));
        assert_eq!(images.version(), before, "numbers mean what they did");
        for n in 0..1000 {
            images.set(0, &[image(&format!("c:{n}"), 1)]);
        }
        assert!(images.images.len() < 80, "{}", images.images.len());
    }

    #[test]
    fn names() {
        assert_eq!(normalized("a"), "a:latest");
        assert_eq!(normalized("host:80/a"), "host:80/a:latest");
        assert_eq!(normalized("a:1"), "a:1");
        assert_eq!(normalized("a@sha256:0"), "a@sha256:0");
    }
}
