//! Formats of strings that schemas may ask for; others are ignored, as upstream does.

use std::net::{Ipv4Addr, Ipv6Addr};

use base64::Engine as _;
use jiff::{Timestamp, civil::Date};

/// A format that is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    BsonObjectId,
    Byte,
    Cidr,
    CreditCard,
    Date,
    DateTime,
    Duration,
    Email,
    Float,
    HexColor,
    Hostname,
    Int32,
    Int64,
    Ipv4,
    Ipv6,
    Isbn,
    Isbn10,
    Isbn13,
    LongName,
    Mac,
    Password,
    RgbColor,
    ShortName,
    Ssn,
    Uri,
    Uuid(Option<u8>),
}

impl Format {
    /// The format called `name` for values of `kind`; `None` if it is not checked.
    pub fn parse(kind: &str, name: &str) -> Option<Self> {
        match kind {
            "integer" => {
                return match name {
                    "int32" => Some(Self::Int32),
                    "int64" => Some(Self::Int64),
                    _ => None,
                };
            }
            "number" => return (name == "float").then_some(Self::Float),
            "" | "string" => (),
            _ => return None,
        }
        Some(match name.replace('-', "").as_str() {
            "bsonobjectid" => Self::BsonObjectId,
            "byte" => Self::Byte,
            "cidr" => Self::Cidr,
            "creditcard" => Self::CreditCard,
            "date" => Self::Date,
            "datetime" => Self::DateTime,
            "duration" => Self::Duration,
            "email" => Self::Email,
            "hexcolor" => Self::HexColor,
            "hostname" => Self::Hostname,
            "ipv4" => Self::Ipv4,
            "ipv6" => Self::Ipv6,
            "isbn" => Self::Isbn,
            "isbn10" => Self::Isbn10,
            "isbn13" => Self::Isbn13,
            "k8slongname" => Self::LongName,
            "k8sshortname" => Self::ShortName,
            "mac" => Self::Mac,
            "password" => Self::Password,
            "rgbcolor" => Self::RgbColor,
            "ssn" => Self::Ssn,
            "uri" => Self::Uri,
            "uuid" => Self::Uuid(None),
            "uuid3" => Self::Uuid(Some(3)),
            "uuid4" => Self::Uuid(Some(4)),
            "uuid5" => Self::Uuid(Some(5)),
            _ => return None,
        })
    }

    /// As messages name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::BsonObjectId => "bsonobjectid",
            Self::Byte => "byte",
            Self::Cidr => "cidr",
            Self::CreditCard => "creditcard",
            Self::Date => "date",
            Self::DateTime => "date-time",
            Self::Duration => "duration",
            Self::Email => "email",
            Self::Float => "float",
            Self::HexColor => "hexcolor",
            Self::Hostname => "hostname",
            Self::Int32 => "int32",
            Self::Int64 => "int64",
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Isbn => "isbn",
            Self::Isbn10 => "isbn10",
            Self::Isbn13 => "isbn13",
            Self::LongName => "k8s-long-name",
            Self::Mac => "mac",
            Self::Password => "password",
            Self::RgbColor => "rgbcolor",
            Self::ShortName => "k8s-short-name",
            Self::Ssn => "ssn",
            Self::Uri => "uri",
            Self::Uuid(None) => "uuid",
            Self::Uuid(Some(3)) => "uuid3",
            Self::Uuid(Some(5)) => "uuid5",
            Self::Uuid(_) => "uuid4",
        }
    }

    /// Whether `text` is of the format. Formats of numbers hold for every text.
    pub fn holds(self, text: &str) -> bool {
        match self {
            Self::BsonObjectId => text.len() == 24 && is_hex(text),
            Self::Byte => base64::engine::general_purpose::STANDARD.decode(text).is_ok(),
            Self::Cidr => is_cidr(text),
            Self::CreditCard => is_credit_card(text),
            Self::Date => text.len() == 10 && text.parse::<Date>().is_ok(),
            Self::DateTime => is_date_time(text),
            Self::Duration => is_duration(text),
            Self::Email => is_email(text),
            Self::HexColor => {
                let digits = text.strip_prefix('#').unwrap_or(text);
                matches!(digits.len(), 3 | 6) && is_hex(digits)
            }
            Self::Hostname => is_hostname(text),
            Self::Float | Self::Int32 | Self::Int64 | Self::Password => true,
            Self::Ipv4 => text.parse::<Ipv4Addr>().is_ok(),
            Self::Ipv6 => text.parse::<Ipv6Addr>().is_ok(),
            Self::Isbn => is_isbn10(text) || is_isbn13(text),
            Self::Isbn10 => is_isbn10(text),
            Self::Isbn13 => is_isbn13(text),
            Self::LongName => insula_api::names::is_dns1123_subdomain(text),
            Self::Mac => is_mac(text),
            Self::RgbColor => is_rgb(text),
            Self::ShortName => insula_api::names::is_dns1123_label(text),
            Self::Ssn => is_ssn(text),
            Self::Uri => is_uri(text),
            Self::Uuid(version) => is_uuid(text, version),
        }
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_cidr(text: &str) -> bool {
    text.contains('/') && text.parse::<ipnet::IpNet>().is_ok()
}

fn is_date_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    let separated = matches!(bytes.get(10), Some(b'T' | b't' | b' '));
    // A zone is asked for, and no more than RFC 3339 has.
    separated && !text.contains('[') && text.parse::<Timestamp>().is_ok()
}

/// As Go reads durations (`1h30m`), and with words for units (`22 ns`, `3 weeks`).
fn is_duration(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if unsigned == "0" {
        return true;
    }
    const UNITS: &[&str] = &[
        "ns",
        "us",
        "\u{b5}s",
        "\u{3bc}s",
        "ms",
        "s",
        "m",
        "h",
        "d",
        "w",
        "nano",
        "nanos",
        "nanosecond",
        "nanoseconds",
        "micro",
        "micros",
        "microsecond",
        "microseconds",
        "milli",
        "millis",
        "millisecond",
        "milliseconds",
        "sec",
        "secs",
        "second",
        "seconds",
        "min",
        "mins",
        "minute",
        "minutes",
        "hr",
        "hour",
        "hours",
        "day",
        "days",
        "week",
        "weeks",
    ];
    let mut rest = unsigned;
    let mut parts = 0;
    while !rest.is_empty() {
        let end = rest.find(|it: char| !it.is_ascii_digit() && it != '.').unwrap_or(rest.len());
        let (number, behind) = rest.split_at(end);
        if number.is_empty() || number == "." || 1 < number.matches('.').count() {
            return false;
        }
        let behind = behind.trim_start_matches(' ');
        let end = behind.find(|it: char| it.is_ascii_digit() || it == '.').unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(end);
        if !UNITS.contains(&unit.trim()) {
            return false;
        }
        rest = behind;
        parts += 1;
    }
    0 < parts
}

fn is_email(text: &str) -> bool {
    // `Name <address>` is an address as well.
    let address = match text.split_once('<') {
        Some((_, rest)) => match rest.strip_suffix('>') {
            Some(address) => address,
            None => return false,
        },
        None => text,
    };
    let Some((local, domain)) = address.rsplit_once('@') else { return false };
    let is_atom = |it: &str| {
        !it.is_empty()
            && it.chars().all(|it| {
                it.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(it) || !it.is_ascii()
            })
    };
    let quoted = local.len() > 2 && local.starts_with('"') && local.ends_with('"');
    let bracketed = domain.starts_with('[') && domain.ends_with(']');
    (quoted || local.split('.').all(is_atom)) && (bracketed || domain.split('.').all(is_atom))
}

fn is_hostname(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    text.len() <= 255
        && text.split('.').all(|label| {
            let alnum = |it: char| it.is_alphanumeric();
            label.len() <= 63
                && label.chars().next().is_some_and(alnum)
                && label.chars().next_back().is_some_and(alnum)
                && label.chars().all(|it| alnum(it) || it == '-')
        })
}

fn is_mac(text: &str) -> bool {
    let of = |separator: char, width: usize, lengths: &[usize]| {
        let parts: Vec<&str> = text.split(separator).collect();
        lengths.contains(&parts.len()) && parts.iter().all(|it| it.len() == width && is_hex(it))
    };
    of(':', 2, &[6, 8, 20]) || of('-', 2, &[6, 8, 20]) || of('.', 4, &[3, 4, 10])
}

fn is_rgb(text: &str) -> bool {
    let inner = text.strip_prefix("rgb(").and_then(|it| it.strip_suffix(')'));
    let Some(inner) = inner else { return false };
    let parts: Vec<&str> = inner.split(',').map(str::trim).collect();
    parts.len() == 3 && parts.iter().all(|it| it.parse::<u8>().is_ok())
}

fn is_ssn(text: &str) -> bool {
    let digits: String = text.chars().filter(|it| !matches!(it, '-' | ' ')).collect();
    let rest = text.get(3..).unwrap_or_default();
    digits.len() == 9
        && is_digits(&digits)
        && is_digits(text.get(..3).unwrap_or_default())
        && rest.len() <= 8
}

fn is_credit_card(text: &str) -> bool {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    let starts = |prefixes: &[&str]| prefixes.iter().any(|it| digits.starts_with(it));
    match digits.len() {
        13 => starts(&["4"]),
        14 => starts(&["300", "301", "302", "303", "304", "305", "36", "38"]),
        15 => starts(&["34", "37", "2131", "1800"]),
        16 => starts(&["4", "51", "52", "53", "54", "55", "6011", "65", "35"]),
        _ => false,
    }
}

fn isbn_digits(text: &str) -> Vec<u32> {
    let kept = text.chars().filter(|it| !matches!(it, '-' | ' '));
    kept.map(|it| if it == 'X' { 10 } else { it.to_digit(10).unwrap_or(99) }).collect()
}

fn is_isbn10(text: &str) -> bool {
    let digits = isbn_digits(text);
    let (Some(body), 10) = (digits.get(..9), digits.len()) else { return false };
    let sum: u32 = digits.iter().zip((1..=10).rev()).map(|(digit, weight)| digit * weight).sum();
    body.iter().all(|it| *it < 10) && digits[9] <= 10 && sum.is_multiple_of(11)
}

fn is_isbn13(text: &str) -> bool {
    let digits = isbn_digits(text);
    let weighted =
        digits.iter().zip([1, 3].into_iter().cycle()).map(|(digit, weight)| digit * weight);
    digits.len() == 13 && digits.iter().all(|it| *it < 10) && weighted.sum::<u32>() % 10 == 0
}

/// An absolute URI, or an absolute path.
fn is_uri(text: &str) -> bool {
    if text.is_empty() || text.chars().any(|it| it.is_control() || it == ' ') {
        return false;
    }
    if text.starts_with('/') {
        return true;
    }
    let Some((scheme, rest)) = text.split_once(':') else { return false };
    let mut letters = scheme.chars();
    let well_named = letters.next().is_some_and(|it| it.is_ascii_alphabetic())
        && letters.all(|it| it.is_ascii_alphanumeric() || "+-.".contains(it));
    let escaped = text.split('%').skip(1).all(|it| it.get(..2).is_some_and(is_hex));
    well_named && !rest.is_empty() && escaped
}

fn is_uuid(text: &str, version: Option<u8>) -> bool {
    let digits: String = text.chars().filter(|it| *it != '-').collect();
    let dashes = [8, 13, 18, 23];
    let placed = text.len() == 32
        || text.bytes().enumerate().all(|(at, byte)| byte != b'-' || dashes.contains(&at));
    let of_version = version.is_none_or(|it| {
        let variant = digits.as_bytes().get(16).map(u8::to_ascii_lowercase);
        digits.as_bytes().get(12) == Some(&(b'0' + it))
            && (it == 3 || matches!(variant, Some(b'8' | b'9' | b'a' | b'b')))
    });
    digits.len() == 32 && is_hex(&digits) && placed && of_version
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, good: &[&str], bad: &[&str]) {
        let format = Format::parse("string", name).unwrap();
        for text in good {
            assert!(format.holds(text), "{name} {text:?}");
        }
        for text in bad {
            assert!(!format.holds(text), "{name} {text:?}");
        }
    }

    #[test]
    fn formats() {
        check("date", &["2026-11-21"], &["2026-13-01", "2026-11-21T00:00:00Z", "x"]);
        check(
            "date-time",
            &["2026-11-21T10:00:00Z", "2026-11-21T10:00:00.5+02:00"],
            &["2026-11-21", "x"],
        );
        check("duration", &["1h30m", "22 ns", "0", "-1.5s", "3 weeks"], &["", "1", "h", "1x"]);
        check("email", &["a@b.c", "N <a@b>"], &["a", "@b", "a@", "a b@c"]);
        check("hostname", &["a.b-c.d", "x"], &["-a", "a..b", ""]);
        check("ipv4", &["1.2.3.4"], &["1.2.3", "::1"]);
        check("ipv6", &["::1", "fe80::1"], &["1.2.3.4"]);
        check("cidr", &["10.0.0.0/8", "fe80::/10"], &["10.0.0.0", "10.0.0.0/33"]);
        check("mac", &["00:11:22:33:44:55", "0011.2233.4455"], &["00:11"]);
        check("uri", &["http://a/b", "urn:x", "/p"], &["", "a b", "x"]);
        check("uuid", &["123e4567-e89b-12d3-a456-426614174000"], &["123"]);
        check(
            "uuid4",
            &["123e4567-e89b-42d3-a456-426614174000"],
            &["123e4567-e89b-12d3-a456-426614174000"],
        );
        check("byte", &["YQ=="], &["*"]);
        check("isbn", &["0321751043", "978-0321751041"], &["0321751044"]);
        check("hexcolor", &["#fff", "a0b1c2"], &["#ffff"]);
        check("ssn", &["111-22-3333"], &["11-22-3333x"]);
        check("k8s-short-name", &["a-b"], &["a.b"]);
    }

    #[test]
    fn unknown_formats_are_not_checked() {
        assert_eq!(Format::parse("string", "int-or-string"), None);
        assert_eq!(Format::parse("integer", "uuid"), None);
        assert_eq!(Format::parse("number", "double"), None);
    }
}
