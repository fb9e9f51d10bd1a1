//! Times as logs write them.

use crate::data::lamp::day_number;
use serde::{Deserialize, Serialize};

/// How times are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeFormat {
    /// Seconds since 1970, UTC; a decimal fraction may follow.
    UnixSeconds,
    /// Milliseconds since 1970, UTC, a whole number.
    UnixMillis,
    /// ISO 8601 `YYYY-MM-DD`, then `T` or a space, `HH:MM`, `:SS`, a fraction, and `Z` or an offset `+HH:MM`,
    /// `+HHMM`, `+HH` if there.
    #[default]
    Iso,
    /// `YYYY-MM-DD HH:MM:SS` and nothing else.
    DateTime,
    /// `YYYYMMDDHHMMSS`.
    Compact,
}

impl TimeFormat {
    /// For messages.
    pub(super) fn example(self) -> &'static str {
        match self {
            Self::UnixSeconds => "seconds since 1970",
            Self::UnixMillis => "milliseconds since 1970",
            Self::Iso => "2013-03-27T06:00:00-05:00",
            Self::DateTime => "2013-03-27 06:00:00",
            Self::Compact => "20130327060000",
        }
    }
}

/// Which clock the time of day and the weekday are read from.
///
/// In a config `as_written` or an offset from UTC such as `+08:00`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum TimeZone {
    /// What stands there is the person's local time, whatever offset follows it; numbers are read as UTC.
    #[default]
    AsWritten,
    /// The moment is shown in a zone of so many minutes east of UTC; a time without an offset is UTC.
    Offset(i16),
}

impl TryFrom<String> for TimeZone {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == "as_written" {
            return Ok(Self::AsWritten);
        }
        let minutes =
            offset(&text).ok_or("a time zone is `as_written` or an offset such as +08:00");
        minutes.map(Self::Offset)
    }
}

impl From<TimeZone> for String {
    fn from(zone: TimeZone) -> Self {
        match zone {
            TimeZone::AsWritten => "as_written".to_owned(),
            TimeZone::Offset(minutes) => written_offset(minutes),
        }
    }
}

/// A point in time, and the offset it was written with or is shown in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    /// Milliseconds since 1970, UTC; local time where there is no offset.
    pub(super) ms: i64,
    /// Minutes east of UTC, where they are known.
    pub(super) offset: Option<i16>,
}

const DAY_MS: i64 = 86_400_000;
/// 0001-01-01 up to the end of 9999, with a day to spare for offsets on either side.
const RANGE_MS: std::ops::RangeInclusive<i64> =
    -719_162 * DAY_MS + DAY_MS..=2_932_896 * DAY_MS - DAY_MS;

impl Moment {
    /// Reads a time; `None` where it is not written so.
    pub(super) fn parse(text: &str, format: TimeFormat, zone: TimeZone) -> Option<Self> {
        let moment = match format {
            TimeFormat::UnixSeconds => Self { ms: unix_seconds(text)?, offset: None },
            TimeFormat::UnixMillis => Self { ms: text.parse().ok()?, offset: None },
            TimeFormat::Iso => iso(text)?,
            TimeFormat::DateTime => date_time(text)?,
            TimeFormat::Compact => compact(text)?,
        };
        let moment = match zone {
            TimeZone::AsWritten => moment,
            TimeZone::Offset(minutes) => Self { offset: Some(minutes), ..moment },
        };
        RANGE_MS.contains(&moment.ms).then_some(moment)
    }

    /// Seconds since 1970 of the local clock, rounded down.
    pub(super) fn local_seconds(self) -> i64 {
        self.ms.div_euclid(1000) + i64::from(self.offset.unwrap_or(0)) * 60
    }

    /// ISO 8601, read back by [`TimeFormat::Iso`] under [`TimeZone::AsWritten`] as the same moment.
    pub(super) fn written(self) -> String {
        let seconds = self.local_seconds();
        let (year, month, of_month) = civil(seconds.div_euclid(86_400));
        let of_day = seconds.rem_euclid(86_400);
        let (hours, minutes, seconds) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        let mut text =
            format!("{year:04}-{month:02}-{of_month:02}T{hours:02}:{minutes:02}:{seconds:02}");
        let ms = self.ms.rem_euclid(1000);
        if ms > 0 {
            text.push_str(&format!(".{ms:03}"));
        }
        text.push_str(&self.offset.map(written_offset).unwrap_or_default());
        text
    }
}

fn written_offset(minutes: i16) -> String {
    let sign = if minutes < 0 { '-' } else { '+' };
    let minutes = minutes.unsigned_abs();
    format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60)
}

/// `12`, `-12`, `12.345`; digits beyond milliseconds are cut off.
fn unix_seconds(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let ms = millis(fraction)?;
    let seconds: i64 = whole.parse().ok()?;
    // The fraction of a negative number points away from zero.
    let ms = if whole.starts_with('-') { -ms } else { ms };
    seconds.checked_mul(1000)?.checked_add(ms)
}

/// The first three digits of a decimal fraction.
fn millis(fraction: &str) -> Option<i64> {
    let all = !fraction.is_empty() && fraction.bytes().all(|b| b.is_ascii_digit());
    let digits = fraction.bytes().chain(*b"000").take(3);
    all.then(|| digits.fold(0, |ms, digit| ms * 10 + i64::from(digit - b'0')))
}

/// Minutes east of UTC of `Z`, `+HH`, `+HHMM`, `+HH:MM`; at most 18 hours, as ISO 8601's readers have it.
fn offset(text: &str) -> Option<i16> {
    if matches!(text, "Z" | "z") {
        return Some(0);
    }
    let sign = match text.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = match text.as_bytes() {
        [_, h @ ..] if h.len() == 2 => (number(h)?, 0),
        [_, h1, h2, m @ ..] if m.len() == 2 => (number(&[*h1, *h2])?, number(m)?),
        [_, h1, h2, b':', m @ ..] if m.len() == 2 => (number(&[*h1, *h2])?, number(m)?),
        _ => return None,
    };
    let minutes = (minutes < 60).then_some(hours * 60 + minutes).filter(|m| *m <= 18 * 60)?;
    i16::try_from(sign * minutes).ok()
}

/// A number of ASCII digits alone.
fn number(digits: &[u8]) -> Option<i64> {
    let all = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    all.then(|| digits.iter().fold(0, |n, digit| n * 10 + i64::from(digit - b'0')))
}

/// Milliseconds since 1970 of a day and a time of day that exist; second 60 is the next minute's 0.
fn at(date: [i64; 3], time: [i64; 3]) -> Option<i64> {
    let [year, month, of_month] = date;
    let [hours, minutes, seconds] = time;
    let next = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
    ((1..=9999).contains(&year) && (1..=12).contains(&month)).then_some(())?;
    let day = day_number(year, month, of_month);
    (of_month >= 1 && day < day_number(next.0, next.1, 1)).then_some(())?;
    (hours < 24 && minutes < 60 && seconds <= 60).then_some(())?;
    Some(day * DAY_MS + ((hours * 60 + minutes) * 60 + seconds) * 1000)
}

/// `YYYY-MM-DD`.
fn date(text: &[u8]) -> Option<[i64; 3]> {
    match text {
        [y @ .., b'-', m1, m2, b'-', d1, d2] if y.len() == 4 => {
            Some([number(y)?, number(&[*m1, *m2])?, number(&[*d1, *d2])?])
        }
        _ => None,
    }
}

/// `HH:MM` or `HH:MM:SS`.
fn time_of_day(text: &[u8]) -> Option<[i64; 3]> {
    match text {
        [h1, h2, b':', m1, m2] => Some([number(&[*h1, *h2])?, number(&[*m1, *m2])?, 0]),
        [h1, h2, b':', m1, m2, b':', s1, s2] => {
            Some([number(&[*h1, *h2])?, number(&[*m1, *m2])?, number(&[*s1, *s2])?])
        }
        _ => None,
    }
}

fn date_time(text: &str) -> Option<Moment> {
    let (day, time) = text.split_once(' ').filter(|(_, time)| time.len() == 8)?;
    let ms = at(date(day.as_bytes())?, time_of_day(time.as_bytes())?)?;
    Some(Moment { ms, offset: None })
}

fn compact(text: &str) -> Option<Moment> {
    let digits = text.as_bytes();
    let part = |from: usize, to: usize| number(digits.get(from..to)?);
    (digits.len() == 14).then_some(())?;
    let day = [part(0, 4)?, part(4, 6)?, part(6, 8)?];
    let ms = at(day, [part(8, 10)?, part(10, 12)?, part(12, 14)?])?;
    Some(Moment { ms, offset: None })
}

fn iso(text: &str) -> Option<Moment> {
    let Some((day, rest)) = text.split_once(['T', ' ']) else {
        let ms = at(date(text.as_bytes())?, [0; 3])?;
        return Some(Moment { ms, offset: None });
    };
    let split = rest.find(['+', '-', 'Z', 'z']);
    let (clock, zone) = split.map_or((rest, None), |at| (&rest[..at], Some(&rest[at..])));
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let local = at(date(day.as_bytes())?, time_of_day(clock.as_bytes())?)? + millis(fraction)?;
    let offset = match zone {
        Some(zone) => Some(offset(zone)?),
        None => None,
    };
    Some(Moment { ms: local - i64::from(offset.unwrap_or(0)) * 60_000, offset })
}

/// Year, month, day of month of a number of days since 1970, the way back of `day_number` (Hinnant).
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, of_month)
}

/// Seconds since 1970 of a date or time given as an option, on the local clock.
pub(super) fn local(text: &str) -> Option<i64> {
    let moment = Moment::parse(text, TimeFormat::Iso, TimeZone::AsWritten)?;
    moment.offset.is_none().then(|| moment.local_seconds())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iso_ms(text: &str) -> Option<(i64, Option<i16>)> {
        Moment::parse(text, TimeFormat::Iso, TimeZone::AsWritten).map(|m| (m.ms, m.offset))
    }

    #[test]
    fn iso_forms() {
        // Seconds from `date -u -d ... +%s`.
        let noon = 1_364_385_600_000;
        let cases = [
            ("2013-03-27T12:00:00Z", Some((noon, Some(0)))),
            ("2013-03-27 12:00:00", Some((noon, None))),
            ("2013-03-27 12:00", Some((noon, None))),
            ("2013-03-27", Some((noon - 43_200_000, None))),
            ("2013-03-27 06:00:00-05:00", Some((noon - 3_600_000, Some(-300)))),
            ("2013-03-27T17:30:00.25+0530", Some((noon + 250, Some(330)))),
            ("2013-03-27T14:00:00.123456789+02", Some((noon + 123, Some(120)))),
            ("2012-02-29", Some((1_330_473_600_000, None))),
            ("1969-12-31T23:59:60Z", Some((0, Some(0)))),
        ];
        for (text, expected) in cases {
            assert_eq!(iso_ms(text), expected, "{text}");
        }
        let wrong = [
            "",
            "now",
            "2013-02-29",
            "2013-13-01",
            "2013-00-01",
            "2013-01-00",
            "2013-1-1",
            "2013-03-27T24:00",
            "2013-03-27T12:60",
            "2013-03-27T12",
            "2013-03-27T12:00:00.",
            "2013-03-27T12:00:00+19:00",
            "2013-03-27T12:00:00+05:60",
            "2013-03-27T12:00:00+5",
            "2013-03-27T12:00:00 UTC",
            "0000-01-01",
            "２013-03-27",
            "2013-03-27T1é:00",
            "-013-03-27",
            "2013-03-27T+2:00",
            "2013-03-27T12:00+é0",
        ];
        for text in wrong {
            assert_eq!(iso_ms(text), None, "{text}");
        }
    }

    #[test]
    fn other_forms() {
        let ms = |text, format| Moment::parse(text, format, TimeZone::AsWritten).map(|m| m.ms);
        assert_eq!(ms("881250949", TimeFormat::UnixSeconds), Some(881_250_949_000));
        assert_eq!(ms("881250949.0", TimeFormat::UnixSeconds), Some(881_250_949_000));
        assert_eq!(ms("-1.5", TimeFormat::UnixSeconds), Some(-1500));
        assert_eq!(ms("-0.5", TimeFormat::UnixSeconds), Some(-500));
        assert_eq!(ms("1364385600123", TimeFormat::UnixMillis), Some(1_364_385_600_123));
        assert_eq!(ms("20160420000000", TimeFormat::Compact), Some(1_461_110_400_000));
        assert_eq!(ms("2018-01-16 06:01:05", TimeFormat::DateTime), Some(1_516_082_465_000));
        for text in [
            "NaN",
            "inf",
            "1e9",
            "",
            ".",
            "1.",
            "99999999999999999999",
            "9223372036854775807",
            "1 ",
        ] {
            assert_eq!(ms(text, TimeFormat::UnixSeconds), None, "{text}");
            assert_eq!(ms(text, TimeFormat::Compact), None, "{text}");
        }
        for text in ["1.5", "9223372036854775807", "-9223372036854775808"] {
            assert_eq!(ms(text, TimeFormat::UnixMillis), None, "{text}");
        }
        for text in
            ["2018-01-16T06:01:05", "2018-01-16 06:01", "2018-01-16  6:01:05", "20160431000000"]
        {
            assert_eq!(ms(text, TimeFormat::DateTime), None, "{text}");
            assert_eq!(ms(text, TimeFormat::Compact), None, "{text}");
        }
    }

    #[test]
    fn zones() {
        let hour = |text, zone: &str| {
            let zone = TimeZone::try_from(zone.to_owned()).unwrap();
            Moment::parse(text, TimeFormat::Iso, zone).unwrap().local_seconds() / 3600 % 24
        };
        assert_eq!(hour("2013-03-27T06:00:00-05:00", "as_written"), 6);
        assert_eq!(hour("2013-03-27T06:00:00-05:00", "+08:00"), 19);
        assert_eq!(hour("2013-03-27T06:00:00-05:00", "Z"), 11);
        assert_eq!(hour("2013-03-27T06:00:00", "as_written"), 6);
        assert_eq!(hour("2013-03-27T06:00:00", "+08:00"), 14);
        for wrong in ["", "UTC", "08:00", "+8", "+24:00", "Europe/Berlin"] {
            assert!(TimeZone::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
        for minutes in [-570, -5, 0, 5, 480] {
            let text = String::from(TimeZone::Offset(minutes));
            assert_eq!(TimeZone::try_from(text), Ok(TimeZone::Offset(minutes)));
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read_back(ms in RANGE_MS, minutes in proptest::option::of(-1080..=1080i16)) {
            let moment = Moment { ms, offset: minutes };
            let read = Moment::parse(&moment.written(), TimeFormat::Iso, TimeZone::AsWritten);
            proptest::prop_assert_eq!(read, Some(moment));
        }
    }
}
