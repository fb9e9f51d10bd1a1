//! Dates of items as moments, and the order they give.

use crate::data::Item;

/// Milliseconds since 1970 of a date as the released files write it: `YYYY`, `YYYY-MM`, `YYYY-MM-DD`
/// (then ` ` or `T`, `HH:MM`, `:SS`, fraction and `Z` if there), or an integer: four digits are a year,
/// other integers are seconds, beyond 10^11 milliseconds.
pub(crate) fn moment(text: &str) -> Option<i64> {
    let text = text.trim();
    if let Ok(number) = text.parse::<i64>() {
        return match number {
            1000..=9999 if text.len() == 4 => Some(day(number, 1, 1) * DAY_MS),
            _ if number.unsigned_abs() >= 100_000_000_000 => Some(number),
            _ => Some(number * 1000),
        };
    }
    let (date, time) = match text.find([' ', 'T']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let mut parts = date.split('-');
    let year = digits(parts.next()?, 4)?;
    let month = digits(parts.next()?, 2)?;
    let of_month = parts.next().map(|d| digits(d, 2));
    if parts.next().is_some() || (of_month.is_none() && time.is_some()) {
        return None;
    }
    let of_month = of_month.unwrap_or(Some(1))?;
    let valid = (1..=12).contains(&month) && (1..=31).contains(&of_month);
    valid.then_some(())?;
    Some(day(year, month, of_month) * DAY_MS + time.map_or(Some(0), clock)?)
}

const DAY_MS: i64 = 86_400_000;

/// Exactly `n` decimal digits.
fn digits(text: &str, n: usize) -> Option<i64> {
    let all = text.len() == n && text.bytes().all(|b| b.is_ascii_digit());
    all.then(|| text.parse().ok())?
}

/// Milliseconds of `HH:MM[:SS[.fraction]][Z]`.
fn clock(text: &str) -> Option<i64> {
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let mut parts = whole.split(':');
    let hours = digits(parts.next()?, 2).filter(|h| *h < 24)?;
    let minutes = digits(parts.next()?, 2).filter(|m| *m < 60)?;
    let seconds = parts.next().map_or(Some(0), |s| digits(s, 2)).filter(|s| *s <= 60)?;
    if parts.next().is_some() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let padded = format!("{fraction:0<3}");
    let ms = digits(padded.get(..3)?, 3)?;
    Some(((hours * 60 + minutes) * 60 + seconds) * 1000 + ms)
}

/// Days from 1970-01-01 to a day of the Gregorian calendar (Hinnant, "chrono-compatible low-level
/// date algorithms"): years are counted from March, so that the leap day is a year's last.
pub(in crate::data) fn day(year: i64, month: i64, of_month: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + of_month - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Sorts oldest first where every item has a `date` that can be read; items of one moment, and all
/// items otherwise, stay as they are.
pub(crate) fn sort(items: &mut [Item]) {
    let dates: Option<Vec<i64>> = items.iter().map(|i| moment(i.field("date")?)).collect();
    let Some(dates) = dates else { return };
    if dates.is_sorted() {
        return;
    }
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|&i| dates[i]);
    // `order[to] = from`: cycles of swaps put each item into its place.
    let mut target = vec![0; order.len()];
    order.iter().enumerate().for_each(|(to, &from)| target[from] = to);
    for i in 0..target.len() {
        while target[i] != i {
            let to = target[i];
            items.swap(i, to);
            target.swap(i, to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let cases = [
            ("1970-01-01", Some(0)),
            ("1970", Some(0)),
            ("1970-02", Some(31 * DAY_MS)),
            ("2000-02-29", Some(951_782_400_000)),
            ("2000-03-01", Some(951_868_800_000)),
            ("1969-12-31", Some(-DAY_MS)),
            ("2012-07-09 10:20:30", Some(1_341_829_230_000)),
            ("2012-07-09T10:20:30.5Z", Some(1_341_829_230_500)),
            ("2012-07-09 10:20", Some(1_341_829_200_000)),
            ("881250949", Some(881_250_949_000)),
            ("1341829230500", Some(1_341_829_230_500)),
            ("-5", Some(-5000)),
            (" 2015 ", Some(1_420_070_400_000)),
            ("2015-13", None),
            ("2015-1-2", None),
            ("2015-01-02-03", None),
            ("2015-01 10:00", None),
            ("2015-01-02 25:00", None),
            ("2015-01-02 10:00:00.é", None),
            ("", None),
            ("May 2015", None),
            ("é015-01-02", None),
        ];
        for (text, expected) in cases {
            assert_eq!(moment(text), expected, "{text:?}");
        }
    }

    #[test]
    fn stable_and_all_or_nothing() {
        let item = |id: &str, date: &str| Item {
            id: id.to_owned(),
            fields: [("date".to_owned(), date.to_owned())].into(),
        };
        let order = |dates: &[(&str, &str)]| {
            let mut items: Vec<Item> = dates.iter().map(|(id, date)| item(id, date)).collect();
            sort(&mut items);
            items.into_iter().map(|i| i.id).collect::<String>()
        };
        let mixed = [("a", "2012-05-01"), ("b", "2010"), ("c", "2012-04"), ("d", "2010-01-01")];
        assert_eq!(order(&mixed), "bdca");
        assert_eq!(order(&[("a", "2012"), ("b", "soon"), ("c", "2010")]), "abc");
        assert_eq!(order(&[]), "");
        let many: Vec<(String, String)> =
            (0..50).map(|i| (format!("{i} "), format!("{}", 2000 + i * 7 % 50))).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        let mut expected: Vec<usize> = (0..50).collect();
        expected.sort_by_key(|i| i * 7 % 50);
        assert_eq!(order(&many), expected.iter().map(|i| format!("{i} ")).collect::<String>());
    }
}
