//! Segment files: their names, and making one that is ready to be written.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use super::disk::Disk;

const SUFFIX: &str = ".log";
const RETIRED: &str = ".old";
const PARTIAL: &str = ".new";

/// Path of a segment in use, or prepared to be used next.
pub(crate) fn path(dir: &Path, segment: u64) -> PathBuf {
    dir.join(format!("{segment:016x}{SUFFIX}"))
}

/// Path of a segment whose content nobody needs any more.
fn retired_path(dir: &Path, segment: u64) -> PathBuf {
    dir.join(format!("{segment:016x}{RETIRED}"))
}

/// What a log directory holds, in order.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) segments: Vec<u64>,
    pub(crate) retired: Vec<PathBuf>,
}

/// Reads a log directory. Files of other names are left alone, except that halves of new segments
/// are removed.
pub(crate) fn list(dir: &Path) -> io::Result<Listing> {
    let mut listing = Listing::default();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if let Some(number) = name.strip_suffix(SUFFIX) {
            listing.segments.extend(u64::from_str_radix(number, 16).ok());
        } else if name.ends_with(RETIRED) {
            listing.retired.push(path);
        } else if name.ends_with(PARTIAL) {
            fs::remove_file(path)?;
        }
    }
    listing.segments.sort_unstable();
    Ok(listing)
}

/// Makes the file of `segment` with `size` bytes that all read as nothing written: a new one, or
/// `recycled`, whose old batches the new number makes invalid.
pub(crate) fn prepare(
    disk: &dyn Disk,
    dir: &Path,
    segment: u64,
    size: u64,
    recycled: Option<&Path>,
) -> io::Result<File> {
    let target = path(dir, segment);
    let recycled = recycled.map(|old| Ok::<_, io::Error>((old, writable(old)?))).transpose()?;
    let file = match recycled {
        // Segments may once have been smaller.
        Some((old, file)) if file.metadata()?.len() == size => {
            disk.write_at(&file, &[0; super::frame::SEGMENT_HEADER], 0)?;
            disk.sync_data(&file)?;
            fs::rename(old, &target)?;
            file
        }
        other => {
            if let Some((old, _)) = other {
                fs::remove_file(old)?;
            }
            // Filled under another name: a half-filled file must not look like a segment.
            let partial = dir.join(format!("{segment:016x}{PARTIAL}"));
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(true).open(&partial)?;
            let filled = disk.fill(&file, size).and_then(|()| fs::rename(&partial, &target));
            if let Err(error) = filled {
                // Whoever is short of space should not also find this in the way.
                fs::remove_file(&partial)?;
                return Err(error);
            }
            file
        }
    };
    sync_dir(dir)?;
    Ok(file)
}

/// Opens a segment to go on writing it.
pub(crate) fn writable(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Takes `segment` out of use; returns where it waits to be recycled.
pub(crate) fn retire(dir: &Path, segment: u64) -> io::Result<PathBuf> {
    let retired = retired_path(dir, segment);
    fs::rename(path(dir, segment), &retired)?;
    Ok(retired)
}

/// Makes creations, renames and removals in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
