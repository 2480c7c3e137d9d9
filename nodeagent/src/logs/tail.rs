//! The end of a file, found from its end.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use super::line::Line;

const BLOCK: u64 = 64 << 10;

/// Where the last `n_lines` lines begin, and how many of them there are.
pub(super) fn last_lines(file: &mut File, n_lines: u64) -> io::Result<(u64, u64)> {
    let end = file.seek(SeekFrom::End(0))?;
    if n_lines == 0 {
        return Ok((end, 0));
    }
    let mut block = Vec::new();
    let mut n_found = 0;
    let mut at = end;
    while at > 0 {
        let length = at.min(BLOCK);
        at -= length;
        file.seek(SeekFrom::Start(at))?;
        block.clear();
        file.by_ref().take(length).read_to_end(&mut block)?;
        for (index, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let after = at + index as u64 + 1;
            // The break at the very end closes the last line and opens none.
            if after == end {
                continue;
            }
            n_found += 1;
            if n_found == n_lines {
                return Ok((after, n_found));
            }
        }
    }
    Ok((0, n_found + u64::from(end > 0)))
}

/// The last lines of a container's log as text: at most so many lines and bytes.
pub(crate) fn last_text(path: &Path, max_lines: u64, max_bytes: usize) -> io::Result<String> {
    let mut file = File::open(path)?;
    let (start, _) = last_lines(&mut file, max_lines)?;
    // Each line has a head of some 45 bytes, which does not count.
    let end = file.seek(SeekFrom::End(0))?;
    let most = (max_bytes as u64).saturating_add(max_lines.saturating_mul(64));
    let start = start.max(end.saturating_sub(most));
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    let mut text = Vec::new();
    for line in bytes.split(|&byte| byte == b'\n').filter_map(Line::parse) {
        text.extend_from_slice(line.text);
        if !line.is_partial {
            text.push(b'\n');
        }
    }
    let text = &text[text.len().saturating_sub(max_bytes)..];
    Ok(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[track_caller]
    fn check(text: &str, n_lines: u64, expected: &str, n_expected: u64) {
        let file = file(text);
        let (start, n) = last_lines(&mut File::open(file.path()).unwrap(), n_lines).unwrap();
        assert_eq!((&text[usize::try_from(start).unwrap()..], n), (expected, n_expected));
    }

    #[test]
    fn lines_from_the_end() {
        check("a\nb\nc\n", 2, "b\nc\n", 2);
        check("a\nb\nc\n", 9, "a\nb\nc\n", 3);
        check("a\nb", 1, "b", 1);
        check("a\n", 0, "", 0);
        check("", 3, "", 0);
        let long = "x".repeat(100_000);
        check(&format!("{long}\n{long}\ny\n"), 2, &format!("{long}\ny\n"), 2);
    }

    #[test]
    fn last_words() {
        let file = file("t stdout F a\nt stderr P b\nt stderr F c\n");
        assert_eq!(last_text(file.path(), 80, 2048).unwrap(), "a\nbc\n");
        assert_eq!(last_text(file.path(), 1, 2048).unwrap(), "c\n");
        assert_eq!(last_text(file.path(), 80, 2).unwrap(), "c\n");
    }
}
