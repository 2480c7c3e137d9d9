//! A host's own disk: a file system in memory of a fixed size, which can be filled.

use std::{fs, io::Write as _, path::Path};

use crate::{
    error::{LabError, Result},
    tool::run,
};

/// What fills a disk.
const FILLER: &str = "filler";

pub(crate) fn mount(at: &Path, size: &str) -> Result<()> {
    let valid = !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if !valid {
        return Err(LabError::Invalid(format!("{size:?} is no disk size; say 64m or 1g")));
    }
    run(&format!("mount -t tmpfs -o size={size},mode=700 lab {}", at.display())).map(drop)
}

pub(crate) fn unmount(at: &Path) -> Result<()> {
    run(&format!("umount -l {}", at.display())).map(drop)
}

/// Writes until nothing more fits.
pub(crate) fn fill(disk: &Path) -> Result<()> {
    let path = disk.join(FILLER);
    let failed = |source| LabError::io("write", &path, source);
    let mut file = fs::OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
    for size in [1 << 20, 4096] {
        let block = vec![0_u8; size];
        loop {
            match file.write_all(&block) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                Err(error) => return Err(failed(error)),
            }
        }
    }
    Ok(())
}

/// Gives the space back.
pub(crate) fn free(disk: &Path) -> Result<()> {
    let path = disk.join(FILLER);
    let failed = |source| LabError::io("remove", &path, source);
    match fs::OpenOptions::new().write(true).open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        // A file that is only removed may keep its space a little longer.
        opened => opened.and_then(|file| file.set_len(0)).map_err(failed)?,
    }
    fs::remove_file(&path).map_err(failed)
}
