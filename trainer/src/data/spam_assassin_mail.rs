//! A mail from its bytes: headers, the plain text of its body, its time.
//!
//! Owns: as much of RFC 2822 and MIME as mail of 2002 needs. Reads any bytes without an error: what is
//! not there is `None`. Must never know: who the person is, what a good subject is.

/// Parts within parts are followed this deep.
const MAX_DEPTH: usize = 4;

/// Headers and undecoded body.
#[derive(Debug)]
pub(super) struct Mail {
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Mail {
    /// Parses; folded headers become one line, an mbox `From ` line is passed over.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let mut headers: Vec<(String, String)> = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (line, after) = split_line(rest);
            rest = after;
            if line.is_empty() {
                break;
            }
            let line = decoded(line);
            match (line.starts_with([' ', '\t']), headers.last_mut(), line.split_once(':')) {
                (true, Some((_, value)), _) => {
                    value.push(' ');
                    value.push_str(line.trim());
                }
                (false, _, Some((name, value))) if !line.starts_with("From ") => {
                    headers.push((name.trim().to_lowercase(), value.trim().to_owned()));
                }
                _ => {}
            }
        }
        Self { headers, body: rest.to_vec() }
    }

    /// The first header of a name (in lower case).
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The first plain text in the body, transfer encoding undone.
    pub(super) fn text(&self) -> Option<String> {
        self.text_at(0)
    }

    fn text_at(&self, depth: usize) -> Option<String> {
        let content = self.header("content-type").unwrap_or("text/plain");
        let kind = content.split(';').next().unwrap_or_default().trim().to_lowercase();
        if kind.starts_with("multipart/") {
            let boundary = parameter(content, "boundary").filter(|b| !b.is_empty())?;
            let parts = parts(&self.body, boundary.as_bytes());
            let deeper = |part: &[u8]| Self::parse(part).text_at(depth + 1);
            return if depth < MAX_DEPTH { parts.into_iter().find_map(deeper) } else { None };
        }
        // `text` alone and an empty type stand in old mail for plain text.
        if !matches!(kind.as_str(), "text/plain" | "text" | "") {
            return None;
        }
        let encoding = self.header("content-transfer-encoding").unwrap_or_default().to_lowercase();
        match encoding.trim() {
            "quoted-printable" => Some(decoded(&quoted_printable(&self.body))),
            "base64" => base64(&self.body).map(|bytes| decoded(&bytes)),
            _ => Some(decoded(&self.body)),
        }
    }

    /// The `Date` header as `YYYY-MM-DDThh:mm:ssZ`, its zone applied.
    pub(super) fn date(&self) -> Option<String> {
        date(self.header("date")?)
    }
}

/// The display name and the address (in lower case) of the first person of an address header.
///
/// `Ann Bee <a@x.org>`, `"Bee, Ann" <a@x.org>`, `a@x.org (Ann Bee)`, `a@x.org`.
pub(super) fn person(header: &str) -> Option<(String, String)> {
    let plain = |text: &str| text.trim().trim_matches('"').trim().to_owned();
    let (name, address) = if let Some((before, after)) = header.rsplit_once('<') {
        (plain(before), after.split('>').next().unwrap_or_default().to_owned())
    } else if let Some((before, after)) = header.split_once('(') {
        (plain(after.split(')').next().unwrap_or_default()), before.to_owned())
    } else {
        (String::new(), header.to_owned())
    };
    let address = address.trim().to_lowercase();
    let whole = address.split_once('@').is_some_and(|(a, b)| !a.is_empty() && !b.is_empty());
    (whole && !address.contains(char::is_whitespace)).then_some((name, address))
}

/// UTF-8, or Windows-1252 where it is not: mail of the time often does not say, or says wrong.
pub(super) fn decoded(bytes: &[u8]) -> String {
    const HIGH: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž',
        '\u{8f}', '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}',
        'ž', 'Ÿ',
    ];
    let windows = |b: &u8| match b {
        0x80..=0x9f => HIGH[usize::from(b - 0x80)],
        b => char::from(*b),
    };
    std::str::from_utf8(bytes).map_or_else(|_| bytes.iter().map(windows).collect(), str::to_owned)
}

/// The line without its end, and what follows.
fn split_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    let (line, rest) = match bytes.iter().position(|b| *b == b'\n') {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, &[][..]),
    };
    (line.strip_suffix(b"\r").unwrap_or(line), rest)
}

/// `boundary="a b"; …` -> `a b`.
fn parameter(content: &str, name: &str) -> Option<String> {
    content.split(';').skip(1).find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key.trim().eq_ignore_ascii_case(name)).then(|| value.trim().trim_matches('"').to_owned())
    })
}

/// The parts between `--boundary` lines; a missing end is the end of the body.
fn parts<'a>(body: &'a [u8], boundary: &[u8]) -> Vec<&'a [u8]> {
    let (mut parts, mut start, mut rest) = (Vec::new(), None, body);
    while !rest.is_empty() {
        let at = body.len() - rest.len();
        let (line, after) = split_line(rest);
        rest = after;
        if let Some(tail) = line.strip_prefix(b"--").and_then(|l| l.strip_prefix(boundary)) {
            if let Some(from) = start.take() {
                parts.push(&body[from..at]);
            }
            if tail.starts_with(b"--") {
                return parts;
            }
            start = Some(body.len() - rest.len());
        }
    }
    parts.extend(start.map(|from| &body[from..]));
    parts
}

/// `=E9` and soft line breaks; anything else after `=` stays as it is.
fn quoted_printable(body: &[u8]) -> Vec<u8> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let (mut out, mut at) = (Vec::with_capacity(body.len()), 0);
    while let Some(&byte) = body.get(at) {
        let next = (body.get(at + 1).copied(), body.get(at + 2).copied());
        let (taken, meant) = match (byte, next) {
            (b'=', (Some(b'\n'), _)) => (2, None),
            (b'=', (Some(b'\r'), Some(b'\n'))) => (3, None),
            (b'=', (Some(a), Some(b))) => match (digit(a), digit(b)) {
                (Some(high), Some(low)) => (3, Some(high << 4 | low)),
                _ => (1, Some(byte)),
            },
            _ => (1, Some(byte)),
        };
        out.extend(meant);
        at += taken;
    }
    out
}

/// `None` if it is not base64.
fn base64(body: &[u8]) -> Option<Vec<u8>> {
    let (mut out, mut bits, mut held) = (Vec::new(), 0u32, 0u32);
    for byte in body.iter().filter(|b| !b.is_ascii_whitespace()) {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => break,
            _ => return None,
        };
        bits = bits << 6 | u32::from(six);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.extend(u8::try_from(bits >> held & 0xff));
            bits &= (1 << held) - 1;
        }
    }
    Some(out)
}

/// `Tue, 08 Oct 2002 09:00:04 +0100 (IST)` -> `2002-10-08T08:00:04Z`; a zone that is not known is UTC.
fn date(header: &str) -> Option<String> {
    const MONTHS: [&str; 12] =
        ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    let after_weekday = header.split_once(',').map_or(header, |(_, rest)| rest);
    let mut words = after_weekday.split_whitespace();
    let day: i64 = words.next()?.parse().ok()?;
    let month = words.next()?.to_lowercase();
    let month = (1i64..).zip(MONTHS).find(|(_, m)| month.starts_with(m))?.0;
    let year = match words.next()?.parse::<i64>().ok()? {
        y @ 0..50 => y + 2000,
        y @ 50..100 => y + 1900,
        y => y,
    };
    let mut clock = words.next()?.split(':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next().unwrap_or(Some(0))?);
    let fits = (1..=31).contains(&day)
        && (1970..=9999).contains(&year)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..=60).contains(&second);
    let local = (days(year, month, day) * 24 + hour) * 3600 + minute * 60 + second;
    fits.then(|| written(local - offset_s(words.next().unwrap_or_default())))
}

/// Seconds east of Greenwich.
fn offset_s(zone: &str) -> i64 {
    let hours = match zone.to_uppercase().as_str() {
        "EDT" => -4,
        "EST" | "CDT" => -5,
        "CST" | "MDT" => -6,
        "MST" | "PDT" => -7,
        "PST" => -8,
        "BST" | "IST" | "CET" => 1,
        "CEST" | "EET" => 2,
        other => {
            let (sign, digits) = match other.split_at_checked(1) {
                Some(("+", digits)) => (1, digits),
                Some(("-", digits)) => (-1, digits),
                _ => return 0,
            };
            let number: i64 = if digits.len() == 4 { digits.parse().unwrap_or(0) } else { 0 };
            return sign * (number / 100 * 3600 + number % 100 * 60);
        }
    };
    hours * 3600
}

/// Days since 1970-01-01. *Source*: H. Hinnant, `days_from_civil`.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, month) = (year.div_euclid(400), (month + 9) % 12);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * month + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Seconds since 1970 as `YYYY-MM-DDThh:mm:ssZ`. *Source*: H. Hinnant, `civil_from_days`.
fn written(seconds: i64) -> String {
    let (day, time) = (seconds.div_euclid(86_400) + 719_468, seconds.rem_euclid(86_400));
    let (era, of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let years = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * years + years / 4 - years / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = years + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_fold_and_the_mbox_line_goes() {
        let mail = Mail::parse(
            b"From a@x  Thu Aug 22 14:23:39 2002\r\nSubject: One\r\n  two\r\nFROM: Ann <A@X.org>\n\nbody: no header\n",
        );
        assert_eq!(mail.header("subject"), Some("One two"));
        assert_eq!(mail.header("from"), Some("Ann <A@X.org>"));
        assert_eq!(mail.header("body"), None);
        assert_eq!(mail.text().unwrap(), "body: no header\n");
    }

    #[test]
    fn people() {
        let of = |name: &str, address: &str| Some((name.to_owned(), address.to_owned()));
        assert_eq!(person("Ann Bee <Ann@X.org>"), of("Ann Bee", "ann@x.org"));
        assert_eq!(person("\"Bee, Ann\" <a@x.org>, b@x.org"), of("Bee, Ann", "a@x.org"));
        assert_eq!(person("a@x.org (Ann Bee)"), of("Ann Bee", "a@x.org"));
        assert_eq!(person(" a@x.org "), of("", "a@x.org"));
        for nobody in ["", "Ann", "<>", "@", "a@ b", "undisclosed-recipient: ;"] {
            assert_eq!(person(nobody), None, "{nobody}");
        }
    }

    #[test]
    fn the_first_plain_part_is_found_and_decoded() {
        let nested = b"Content-Type: multipart/mixed;\n boundary=\"out\"\n\npreamble\n--out\n\
            Content-Type: multipart/alternative; boundary=in\n\n--in\nContent-Type: text/html\n\n<p>no\n\
            --in\nContent-Type: Text/Plain; charset=x\nContent-Transfer-Encoding: Quoted-Printable\n\n\
            caf=C3=A9 soft=\nly =zz\n--in--\n--out\n\nlater\n--out--\nepilogue";
        assert_eq!(Mail::parse(nested).text().unwrap(), "café softly =zz\n");
        let html = b"Content-Type: text/html\n\n<p>";
        assert_eq!(Mail::parse(html).text(), None);
        let open = b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\nno end";
        assert_eq!(Mail::parse(open).text().unwrap(), "no end");
        let base64 = b"Content-Transfer-Encoding: base64\n\naGVs\nbG8=\n";
        assert_eq!(Mail::parse(base64).text().unwrap(), "hello");
        assert_eq!(Mail::parse(b"Content-Transfer-Encoding: base64\n\n***").text(), None);
        assert_eq!(Mail::parse(b"A: b\n\n\xa380m \x93x\x94").text().unwrap(), "£80m “x”");
        // A part that is its own parent's shape for ever ends.
        let deep = |levels: usize| -> Option<String> {
            let open = |i| format!("Content-Type: multipart/mixed; boundary=b{i}x\n\n--b{i}x\n");
            let mail: String = (0..levels).map(open).chain(["\ntext".to_owned()]).collect();
            Mail::parse(mail.as_bytes()).text()
        };
        assert_eq!((deep(4).as_deref(), deep(5), deep(5000)), (Some("text"), None, None));
    }

    #[test]
    fn dates_are_universal() {
        for (header, expected) in [
            ("Tue, 08 Oct 2002 09:00:04 +0100 (IST)", Some("2002-10-08T08:00:04Z")),
            ("8 Oct 2002 00:30 -0430", Some("2002-10-08T05:00:00Z")),
            ("Thu, 31 Dec 98 23:59:60 EST", Some("1999-01-01T05:00:00Z")),
            ("Thu, 29 Feb 2024 01:00:00 +0200", Some("2024-02-28T23:00:00Z")),
            ("1 Mar 2000 00:00:00 +0001", Some("2000-02-29T23:59:00Z")),
            ("1 January 1970 00:00:00 GMT", Some("1970-01-01T00:00:00Z")),
            ("Tue, 08 Foo 2002 09:00:04", None),
            ("Tue, 08 Oct 2002 25:00:04", None),
            ("Tue, 08 Oct 99999 09:00:04", None),
            ("Tue, 08 Oct 2002", None),
            ("", None),
        ] {
            assert_eq!(date(header).as_deref(), expected, "{header}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(0u8..=255, 0..200)) {
            let mail = Mail::parse(&bytes);
            let _ = (mail.text(), mail.date());
            let _ = quoted_printable(&bytes);
        }

        #[test]
        fn any_header_is_read(header in "\\PC{0,40}") {
            let _ = (date(&header), person(&header), parameter(&header, "boundary"));
            let _ = offset_s(&header);
        }
    }
}
