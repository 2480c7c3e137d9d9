//! Schedules in the form of cron, as Kubernetes reads them: five fields of numbers, names, ranges,
//! lists and steps, or one of few descriptors.

use std::time::Duration;

use jiff::{
    Timestamp, Zoned,
    civil::{Date, DateTime},
    tz::{AmbiguousOffset, TimeZone},
};

const MONTHS: &[&str] =
    &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// So far ahead it is looked for a time that matches: the 29th of February comes within eight
/// years.
const YEARS: i16 = 8;

/// Why a text is no schedule, in upstream's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CronError(String);

/// When something is to be done again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    when: When,
    /// The zone that the text itself names; Kubernetes lets none do so that is new.
    pub zone: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum When {
    /// At times of day, on some days.
    Fields(Fields),
    /// After so long.
    Every(Duration),
}

/// Bit `n` says that `n` matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fields {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Neither kind of day is left open: then one of both is enough.
    is_either_day: bool,
}

impl Schedule {
    /// Reads a schedule.
    pub fn parse(text: &str) -> Result<Self, CronError> {
        let (zone, text) = match text.split_once(' ') {
            Some((zone, rest)) if zone.starts_with("TZ=") || zone.starts_with("CRON_TZ=") => {
                (zone.split_once('=').map(|(_, zone)| zone.to_owned()), rest.trim())
            }
            _ => (None, text),
        };
        let when = match text.strip_prefix('@') {
            Some(name) => descriptor(text, name)?,
            None => When::Fields(fields(text)?),
        };
        Ok(Self { when, zone })
    }

    /// The first time after `after` that matches, in the clock of `zone`; `None` if there is none
    /// for years. Times that a clock leaves out are left out; those that it shows twice come once.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let fields = match &self.when {
            When::Every(period) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                return whole.checked_add(*period).ok();
            }
            When::Fields(fields) => fields,
        };
        let mut from = after.to_zoned(zone.clone()).datetime();
        let last = from.year().saturating_add(YEARS);
        loop {
            let found = fields.next(from, last)?;
            match zone.to_ambiguous_zoned(found).offset() {
                AmbiguousOffset::Gap { .. } => (),
                _ => {
                    let at = zone.to_ambiguous_zoned(found).earlier().ok();
                    if let Some(at) = at.as_ref().map(Zoned::timestamp).filter(|at| after < *at) {
                        return Some(at);
                    }
                }
            }
            from = found;
        }
    }
}

impl Fields {
    /// The first minute after `after` that matches, before the end of year `last`.
    fn next(&self, after: DateTime, last: i16) -> Option<DateTime> {
        let mut date = after.date();
        // Of the day it begins on, only what is left.
        let mut rest =
            u32::try_from(after.hour()).ok()? * 60 + u32::try_from(after.minute()).ok()?;
        rest += 1;
        loop {
            if has(self.months, date.month()) {
                if self.is_on(date)
                    && let Some((hour, minute)) = self.time_from(rest)
                {
                    return Some(date.at(hour, minute, 0, 0));
                }
                date = date.tomorrow().ok()?;
            } else {
                date = date.first_of_month().checked_add(jiff::Span::new().months(1)).ok()?;
            }
            rest = 0;
            if last < date.year() {
                return None;
            }
        }
    }

    fn is_on(&self, date: Date) -> bool {
        let by_day = has(self.days, date.day());
        let by_weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        if self.is_either_day { by_day || by_weekday } else { by_day && by_weekday }
    }

    /// The first hour and minute that match, from a minute of the day on.
    fn time_from(&self, minute_of_day: u32) -> Option<(i8, i8)> {
        let first = minute_of_day / 60;
        for hour in (first..24).filter(|hour| self.hours >> hour & 1 != 0) {
            let from = if hour == first { minute_of_day % 60 } else { 0 };
            if let Some(minute) = (from..60).find(|minute| self.minutes >> minute & 1 != 0) {
                return Some((i8::try_from(hour).ok()?, i8::try_from(minute).ok()?));
            }
        }
        None
    }
}

fn has(bits: u64, at: i8) -> bool {
    u32::try_from(at).is_ok_and(|at| bits >> at & 1 != 0)
}

fn descriptor(text: &str, name: &str) -> Result<When, CronError> {
    let spelled = match name {
        "yearly" | "annually" => "0 0 1 1 *",
        "monthly" => "0 0 1 * *",
        "weekly" => "0 0 * * 0",
        "daily" | "midnight" => "0 0 * * *",
        "hourly" => "0 * * * *",
        _ => {
            let Some(period) = name.strip_prefix("every ") else {
                return Err(CronError(format!("unrecognized descriptor: {text}")));
            };
            let period = crate::time::go_duration(period).ok_or_else(|| {
                CronError(format!(
                    "failed to parse duration {text}: time: invalid duration {period:?}"
                ))
            })?;
            // Parts of a second are left out, and it is never at once.
            return Ok(When::Every(Duration::from_secs(period.as_secs().max(1))));
        }
    };
    fields(spelled).map(When::Fields)
}

fn fields(text: &str) -> Result<Fields, CronError> {
    let parts: Vec<&str> = text.split_whitespace().collect();
    let [minutes, hours, days, months, weekdays] = parts.as_slice() else {
        return Err(CronError(format!(
            "expected exactly 5 fields, found {}: [{}]",
            parts.len(),
            parts.join(" ")
        )));
    };
    let (minutes, _) = field(minutes, 0, 59, &[])?;
    let (hours, _) = field(hours, 0, 23, &[])?;
    let (days, any_day) = field(days, 1, 31, &[])?;
    let (months, _) = field(months, 1, 12, MONTHS)?;
    let (weekdays, any_weekday) = field(weekdays, 0, 6, DAYS)?;
    let is_either_day = !any_day && !any_weekday;
    Ok(Fields { minutes, hours, days, months, weekdays, is_either_day })
}

/// The bits of a field, and whether it leaves everything open.
fn field(text: &str, low: u32, high: u32, names: &[&str]) -> Result<(u64, bool), CronError> {
    let (mut bits, mut is_open) = (0, false);
    for part in text.split(',').filter(|it| !it.is_empty()) {
        let (more, is_star) = range(part, low, high, names).map_err(CronError)?;
        bits |= more;
        is_open |= is_star;
    }
    Ok((bits, is_open))
}

fn range(part: &str, low: u32, high: u32, names: &[&str]) -> Result<(u64, bool), String> {
    let number = |text: &str| -> Result<u32, String> {
        let name = text.to_ascii_lowercase();
        if let Some(index) = names.iter().position(|it| *it == name) {
            return Ok(u32::try_from(index).unwrap_or(u32::MAX).saturating_add(low));
        }
        text.parse().map_err(|_| {
            format!(
                "failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax"
            )
        })
    };
    let (range, step) = match part.split_once('/') {
        Some((_, step)) if step.contains('/') => return Err(format!("too many slashes: {part}")),
        Some((range, step)) => (range, number(step)?),
        None => (part, 1),
    };
    let is_star = range == "*" || range == "?";
    let (start, end) = match range.split_once('-') {
        _ if is_star => (low, high),
        Some((_, end)) if end.contains('-') => return Err(format!("too many hyphens: {part}")),
        Some((start, end)) => (number(start)?, number(end)?),
        None => {
            let start = number(range)?;
            (start, if part.contains('/') { high } else { start })
        }
    };
    if start < low {
        return Err(format!("beginning of range ({start}) below minimum ({low}): {part}"));
    }
    if high < end {
        return Err(format!("end of range ({end}) above maximum ({high}): {part}"));
    }
    if end < start {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {part}"));
    }
    let Some(step_size) = usize::try_from(step).ok().filter(|it| *it != 0) else {
        return Err(format!("step of range should be a positive number: {part}"));
    };
    let bits = (start..=end).step_by(step_size).fold(0, |bits, at| bits | 1_u64 << at);
    Ok((bits, is_star && step == 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_schedule() {
        for good in [
            "* * * * *",
            "*/5 0-3 1,15 JAN-mar SUN",
            "@daily",
            "@every 1h",
            "0 0 * * ?",
            "5/15 * * * *",
            "TZ=Asia/Tokyo 30 04 * * *",
        ] {
            assert!(Schedule::parse(good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("a * * * *", "failed to parse int from a"),
            ("@often", "unrecognized descriptor: @often"),
            ("@every soon", "failed to parse duration @every soon"),
        ] {
            let error = Schedule::parse(bad).unwrap_err().to_string();
            assert!(error.starts_with(why), "{bad}: {error}");
        }
    }

    #[track_caller]
    fn check(text: &str, zone: &str, after: &str, expected: &[&str]) {
        let (schedule, zone) = (Schedule::parse(text).unwrap(), TimeZone::get(zone).unwrap());
        let mut at: Timestamp = after.parse().unwrap();
        for expected in expected {
            at = schedule.next(at, &zone).unwrap();
            assert_eq!(at, expected.parse().unwrap(), "{text} after {after}");
        }
    }

    #[test]
    fn the_times_that_match() {
        check(
            "*/15 9-17 * * mon-fri",
            "UTC",
            "2026-11-20T17:44:59Z",
            &["2026-11-20T17:45:00Z", "2026-11-23T09:00:00Z"],
        );
        check("0 0 29 2 *", "UTC", "2096-03-01T00:00:00Z", &["2104-02-29T00:00:00Z"]);
        check(
            "0 12 13 * fri",
            "UTC",
            "2026-11-10T00:00:00Z",
            &["2026-11-13T12:00:00Z", "2026-11-20T12:00:00Z"],
        );
        check("0 12 */2 * fri", "UTC", "2026-11-14T13:00:00Z", &["2026-11-15T12:00:00Z"]);
        check("@every 90m", "UTC", "2026-01-01T00:00:00.5Z", &["2026-01-01T01:30:00Z"]);
        check("0 9 * * *", "Asia/Tokyo", "2026-01-01T00:00:00Z", &["2026-01-02T00:00:00Z"]);
        let never = Schedule::parse("0 0 31 2 *").unwrap();
        assert_eq!(never.next(Timestamp::UNIX_EPOCH, &TimeZone::UTC), None);
    }

    #[test]
    fn clocks_that_are_set_forth_and_back() {
        let zone = "America/New_York";
        // There is no half past two on the 8th of March 2026, and two of half past one on the 1st
        // of November.
        check("30 2 * * *", zone, "2026-03-07T12:00:00Z", &["2026-03-09T06:30:00Z"]);
        check(
            "30 1 * * *",
            zone,
            "2026-10-31T12:00:00Z",
            &["2026-11-01T05:30:00Z", "2026-11-02T06:30:00Z"],
        );
    }
}
