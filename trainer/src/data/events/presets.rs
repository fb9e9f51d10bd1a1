//! Formats of known logs, and what is assumed of each.
//!
//! # `lsapp`
//! LSApp (Aliannejadi et al., TOIS 2021, github.com/aliannejadi/LSApp): `lsapp.tsv`, inside the tar archive
//! `lsapp.tsv.gz`; 3,658,589 rows of 292 people. Tabs, with the header `user_id session_id timestamp app_name
//! event_type`, times as `2018-01-16 06:01:05` without an offset, event types `Opened`, `Closed`, `User Interaction`
//! and `Broken` (header, times and types: the authors' own notebook `data_prep.ipynb`, which also reads the file with
//! a reader that undoes quotes). Assumed: times are the person's local time; nothing says which zone they are in.
//! Taken: `Opened` rows alone. The notebook joins the rows of one app into an interaction until another app comes, or
//! until it is opened again after more than a minute; so here an app opened again within a minute is the same event.
//! Its sessions end with a pause of more than five minutes; `gap_seconds = 300` gives those.
//!
//! # `tsinghua-app-usage`
//! The App usage data of Tsinghua University (Yu et al., IMWUT 2018, fi.ee.tsinghua.edu.cn/appusage):
//! `App_usage_trace.txt`, 1,000 people in one week from 2016-04-20. No header; separated by single spaces (three
//! public readers of the file agree; runs of spaces or tabs are taken too): user, time as `YYYYMMDDHHMMSS`, base
//! station, app, bytes of traffic. Assumed: local time of the one city all are in; stations and apps are numbers that
//! are names. Taken: the app as the event, the station as the context `location`; traffic is left out. The readers drop
//! what is the same to the minute; so here an app seen again within a minute is the same event.
//!
//! # `studentlife-activity`
//! `sampledata/sl_activity.csv` of the package niimpy 1.3.0 (StudentLife, Wang et al. 2014): 38 students, one row for
//! every hour from 2013-03-26 to 2013-05-31, 55,907 in all; header `timestamp,user,activity,group`, times as
//! `2013-03-27 06:00:00-05:00`, activity 0 to 5. 63 % of the rows repeat the one before. `group` is the severity of
//! depression: it is one value for a person and about health, and is left out.
//!
//! # `ml100k-genre`
//! The next genre from MovieLens 100k ratings, read by `genre.rs`, which says what an event is.

use super::clock::TimeFormat;
use super::error::EventsError;
use super::format::{ColumnRef, Columns, Duplicates, Format, Keep, Kind};

/// The names of the presets.
pub const PRESETS: [&str; 4] =
    ["lsapp", "tsinghua-app-usage", "studentlife-activity", "ml100k-genre"];

/// The format of a known log.
///
/// # Errors
/// No such preset.
pub fn preset(name: &str) -> Result<Format, EventsError> {
    match name {
        "lsapp" => Ok(lsapp()),
        "tsinghua-app-usage" => Ok(tsinghua()),
        "studentlife-activity" => Ok(studentlife()),
        "ml100k-genre" => Ok(Format { kind: Kind::Ml100kGenre, ..Format::default() }),
        _ => Err(EventsError::Preset { name: name.to_owned() }),
    }
}

fn lsapp() -> Format {
    let columns = Columns {
        user: "user_id".into(),
        time: "timestamp".into(),
        event: "app_name".into(),
        ..Columns::default()
    };
    Format {
        kind: Kind::Tsv,
        columns,
        keep: vec![Keep { column: "event_type".into(), values: vec!["Opened".to_owned()] }],
        time: TimeFormat::DateTime,
        duplicates: Duplicates::DropExact,
        collapse_seconds: Some(60),
        ..Format::default()
    }
}

fn tsinghua() -> Format {
    let columns = Columns {
        user: ColumnRef::Number(0),
        time: ColumnRef::Number(1),
        event: ColumnRef::Number(3),
        contexts: vec![("location".to_owned(), ColumnRef::Number(2))],
        intent: None,
    };
    Format {
        kind: Kind::Spaced,
        header: false,
        columns,
        time: TimeFormat::Compact,
        duplicates: Duplicates::DropExact,
        collapse_seconds: Some(60),
        ..Format::default()
    }
}

fn studentlife() -> Format {
    let columns =
        Columns { time: "timestamp".into(), event: "activity".into(), ..Columns::default() };
    Format { kind: Kind::Csv, columns, time: TimeFormat::Iso, ..Format::default() }
}
