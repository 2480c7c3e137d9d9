//! Processes that believe in another time.
//!
//! The C library's clock functions are replaced by those of `libfaketime`, which reads the offset
//! from a file, so that it can change while the process runs. Only wall clocks are moved:
//! monotonic ones go on, as they do when an operator sets a clock. Programs that do not ask the C
//! library for the time (those written in Go) are not fooled.

use std::{
    fs,
    path::{Path, PathBuf},
};

use jiff::SignedDuration;

use crate::error::{LabError, Result};

/// Where packages put the library.
pub(crate) fn library() -> Result<PathBuf> {
    let places =
        ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib", "/usr/lib64"];
    places
        .iter()
        .map(|place| Path::new(place).join("faketime/libfaketimeMT.so.1"))
        .find(|path| path.exists())
        .ok_or_else(|| LabError::Missing {
            tool: "libfaketime".into(),
            source: std::io::ErrorKind::NotFound.into(),
        })
}

/// Sets the offset that processes with [`environment`] of `file` see, within a second.
pub(crate) fn set(file: &Path, offset: SignedDuration) -> Result<()> {
    let seconds = offset.as_secs_f64();
    fs::write(file, format!("{seconds:+.3}\n"))
        .map_err(|source| LabError::io("write", file, source))
}

/// What a process needs in its environment to be fooled.
pub(crate) fn environment(file: &Path) -> Result<Vec<(String, String)>> {
    let pair = |name: &str, value: String| (name.to_owned(), value);
    Ok(vec![
        pair("LD_PRELOAD", library()?.to_string_lossy().into_owned()),
        pair("FAKETIME_TIMESTAMP_FILE", file.to_string_lossy().into_owned()),
        pair("FAKETIME_CACHE_DURATION", "1".into()),
        pair("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
    ])
}
