//! The lines of a container's log file: `<time> stdout|stderr F|P <text>`.

use jiff::Timestamp;

/// One line of the file. `P` marks a part of a longer line that the runtime has cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line<'a> {
    pub time: &'a str,
    pub is_stderr: bool,
    /// Another part of the same line follows.
    pub is_partial: bool,
    pub text: &'a [u8],
}

impl<'a> Line<'a> {
    /// Takes a line without its line break. `None` if it is not of that form, as when the machine
    /// lost power while it was written.
    pub(super) fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(4, |&byte| byte == b' ');
        let time = std::str::from_utf8(fields.next()?).ok()?;
        let is_stderr = match fields.next()? {
            b"stdout" => false,
            b"stderr" => true,
            _ => return None,
        };
        let tags = fields.next()?;
        let is_partial = match tags.split(|&byte| byte == b':').next()? {
            b"P" => true,
            b"F" => false,
            _ => return None,
        };
        Some(Self { time, is_stderr, is_partial, text: fields.next().unwrap_or_default() })
    }

    pub(super) fn timestamp(&self) -> Option<Timestamp> {
        self.time.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let line = Line::parse(b"2026-11-21T02:31:13.123456789Z stderr F a b").unwrap();
        assert_eq!((line.is_stderr, line.is_partial, line.text), (true, false, &b"a b"[..]));
        assert_eq!(line.timestamp().unwrap().subsec_nanosecond(), 123_456_789);
        let part = Line::parse(b"2026-11-21T02:31:13+01:00 stdout P x").unwrap();
        assert!(part.is_partial && part.timestamp().is_some());
        assert_eq!(Line::parse(b"t stdout F ").unwrap().text, b"");
        assert_eq!(Line::parse(b"t stdout F").unwrap().text, b"");
        for bad in [&b""[..], b"x", b"t stdin F x", b"t stdout Q x", b"\xff stdout F x"] {
            assert_eq!(Line::parse(bad), None);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_upset_the_parser(bytes: Vec<u8>) {
            let _ = Line::parse(&bytes);
        }
    }
}
