//! Logs and laws as text, for readers and for people.

use super::{DAY, HOUR, MINUTE, START, Truth, WIDTH};
use crate::data::events::{CONTEXTS, EVENT, EventData};
use serde::Serialize;
use std::io::{self, Write};

/// Writes the logs as CSV: `user,time,event,location,intent`, people in order, each in order of time; times are local,
/// `2024-01-01T08:15:00`. A log of events read from it has the same rows.
///
/// # Errors
/// What the writer refuses; data without names for its numbers.
pub fn write_csv(data: &EventData, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "user,time,event,location,intent")?;
    let name = |column: usize, value: u32| {
        let known = data.vocabulary.columns.get(column);
        known.and_then(|c| c.values.get(value as usize)).ok_or_else(nameless)
    };
    for user in &data.users {
        if user.rows.len() != WIDTH * user.times.len() {
            return Err(nameless());
        }
        for (n, &time) in user.times.iter().enumerate() {
            let row = user.row(n);
            let (event, location) = (name(EVENT, row[EVENT])?, name(CONTEXTS, row[CONTEXTS])?);
            let intent = user.intents.get(n).copied().flatten();
            let intent = intent.and_then(|i| data.vocabulary.intents.get(i as usize));
            let intent = intent.map_or("", String::as_str);
            writeln!(out, "{},{},{event},{location},{intent}", user.id, local(time))?;
        }
    }
    Ok(())
}

fn nameless() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not the data of a generator")
}

/// A line of the truth's file.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line<'a> {
    Process {
        options: &'a super::Options,
        long_tail: [u32; 2],
    },
    Person {
        user: &'a str,
        cold: bool,
        own_share: f64,
        components: &'a [f64],
        early: &'a [super::Own],
        late: &'a [super::Own],
    },
}

/// Writes the laws as JSON lines: the process, then a line a person.
///
/// # Errors
/// What the writer refuses.
pub fn write_truth(data: &EventData, truth: &Truth, out: &mut impl Write) -> io::Result<()> {
    let tail = truth.tail();
    let process = Line::Process { options: &truth.options, long_tail: [tail.start, tail.end] };
    let people = data.users.iter().zip(&truth.laws).map(|(user, law)| Line::Person {
        user: user.id.as_str(),
        cold: user.cold,
        own_share: law.own_share,
        components: &law.components,
        early: &law.early.own,
        late: &law.late.own,
    });
    for line in std::iter::once(process).chain(people) {
        serde_json::to_writer(&mut *out, &line)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// A local time as ISO 8601, without a zone.
fn local(time: i64) -> String {
    let since = time - START;
    let (days, second) = (since.div_euclid(DAY), since.rem_euclid(DAY));
    let (year, month, day) = date(days);
    let (h, m, s) = (second / HOUR, second % HOUR / MINUTE, second % MINUTE);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}")
}

/// The date `days` after 1 January 2024, by Howard Hinnant's `civil_from_days`.
fn date(days: i64) -> (i64, i64, i64) {
    let z = days + START / DAY + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        // Python: datetime(2024, 1, 1) + timedelta(days).
        for (days, expected) in [
            (0, (2024, 1, 1)),
            (59, (2024, 2, 29)),
            (60, (2024, 3, 1)),
            (366, (2025, 1, 1)),
            (27_849, (2100, 4, 1)),
            (-19_723, (1970, 1, 1)),
        ] {
            assert_eq!(date(days), expected, "{days}");
        }
        assert_eq!(local(START + 8 * HOUR + 15 * MINUTE + 7), "2024-01-01T08:15:07");
    }
}
