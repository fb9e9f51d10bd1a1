//! The committed files of all tasks: read in both layouts, written in both, read again.

use super::*;
use crate::data::{
    Dataset, Index, LampSet, OnBad, Selection, Source, Tally, UserRecord, jsonl, load,
};
use std::fs::File;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lamp")
}

fn set(folder: &Path, name: &str) -> LampSet {
    let lines = folder.join(format!("{name}_questions.jsonl"));
    let array = folder.join(format!("{name}_questions.json"));
    LampSet {
        questions: if lines.exists() { lines } else { array },
        outputs: Some(folder.join(format!("{name}_outputs.json"))),
        profiles: None,
    }
}

fn user_split(task: LampTask) -> Source {
    let folder = root().join(task.lamp_id()).join("user");
    let (personal, population) = (set(&folder, "dev"), Some(set(&folder, "train")));
    Source::Lamp { task, personal, population, selection: Selection::default() }
}

fn time_split(task: LampTask) -> Source {
    let personal = set(&root().join(task.lamp_id()).join("time"), "dev");
    Source::Lamp { task, personal, population: None, selection: Selection::default() }
}

fn oppu(task: LampTask) -> Source {
    let folder = root().join("oppu").join(task.oppu_name().unwrap_or(task.name()));
    let more = task == LampTask::TweetParaphrase;
    let top = if more { "user_more_100_history" } else { "user_top_100_history" };
    Source::Oppu {
        task,
        personal: folder.join(format!("{top}.json")),
        labels: Some(folder.join(format!("{top}_label.json"))),
        profiles: Some(folder.join("profile_user_100.json")),
        population: Some(folder.join("user_others.json")),
        population_profiles: Some(folder.join("profile_user_others.json")),
        selection: Selection::default(),
    }
}

fn strict(source: &Source) -> Dataset {
    load(source, OnBad::Stop).unwrap_or_else(|e| panic!("{e}"))
}

fn users(data: &Dataset) -> Vec<UserRecord> {
    data.users().map(Result::unwrap).collect()
}

/// What every record of a task must be.
fn check(task: LampTask, users: &[UserRecord], index: &Index) {
    for (user, summary) in users.iter().zip(&index.personal) {
        assert_eq!((&user.id, user.history.len()), (&summary.id, summary.num_history));
        for item in &user.history {
            assert!(task.required_fields().iter().all(|f| item.field(f).is_some()), "{item:?}");
        }
        let dates = user.history.iter().filter_map(|i| i.field("date"));
        assert!(dates.is_sorted(), "{user:?}");
        for query in &user.queries {
            let names: Vec<&str> = query.fields.keys().map(String::as_str).collect();
            let mut expected = [task.payload_fields(), &["gold", "input"]].concat();
            expected.sort_unstable();
            assert_eq!(names, expected);
            let gold = query.field("gold").unwrap();
            assert!(task.is_free_text() || task.labels().contains(&gold), "{gold}");
            assert!(
                query.field("input").unwrap().contains(query.field(task.input_field()).unwrap())
            );
        }
    }
}

#[test]
fn every_task_in_every_layout() {
    for task in LampTask::ALL {
        let data = strict(&user_split(task));
        let ours = users(&data);
        check(task, &ours, data.index());
        let shape: Vec<_> = ours.iter().map(|u| (u.history.len(), u.queries.len())).collect();
        assert_eq!(shape, [(3, 1), (3, 1)], "{task}");
        assert!(ours.iter().all(|u| u.id.as_str() == u.queries[0].id));
        assert_eq!(data.population().map(Result::unwrap).count(), 2);

        let data = strict(&time_split(task));
        let ours = users(&data);
        check(task, &ours, data.index());
        let shape: Vec<_> = ours.iter().map(|u| (u.history.len(), u.queries.len())).collect();
        assert_eq!(shape, [(3, 2), (3, 1)], "{task}");
        let leaked_items = u64::from(task == LampTask::Headline);
        assert_eq!(data.index().tally, Tally { leaked_items, ..Tally::default() });

        let data = strict(&oppu(task));
        let ours = users(&data);
        check(task, &ours, data.index());
        let profile = |user: &UserRecord| user.profile.clone().unwrap();
        assert_eq!(profile(&ours[0]), format!("Writes like user 0 of {task}."));
        assert_eq!(profile(&ours[1]), format!("Writes like user 1 of {task}."));
        let others: Vec<_> = data.population().map(Result::unwrap).collect();
        assert_eq!(profile(&others[0]), "The first of the others.");
        assert_eq!(profile(&others[1]), "The second of the others.");
        assert_eq!((others[0].history.len(), others[1].history.len()), (2, 0));
        for number in [1, 0] {
            assert_eq!(data.user(number).unwrap(), ours[number]);
            assert_eq!(data.population_user(number).unwrap(), others[number]);
        }
    }
}

/// One record in full: integers as text, the label file's answers, dates sorted.
#[test]
fn a_rating_user() {
    let user = strict(&oppu(LampTask::Rating)).user(0).unwrap();
    assert_eq!(user.id.as_str(), "4003");
    let history: Vec<_> = user
        .history
        .iter()
        .map(|i| (i.id.as_str(), ["date", "score", "text"].map(|f| i.field(f).unwrap())))
        .collect();
    let expected = [
        ("401", ["20091130", "1", "Broke on day two."]),
        ("402", ["20100228", "5", "My third pair. Still the best."]),
        ("400", ["20110504", "3", "The kettle sings, but off key."]),
    ];
    assert_eq!(history, expected);
    let golds: Vec<_> = user.queries.iter().map(|q| q.field("gold").unwrap()).collect();
    assert_eq!(golds, ["2", "5"]);
    assert_eq!(user.queries[0].field("text"), Some("The lid never fits."));
}

/// The union of both profiles, without what the first question asks about.
#[test]
fn a_user_of_two_questions() {
    let user = strict(&time_split(LampTask::Headline)).user(0).unwrap();
    assert_eq!(user.id.as_str(), "5007");
    assert_eq!(
        user.history.iter().map(|i| i.id.as_str()).collect::<Vec<_>>(),
        ["501", "502", "500"]
    );
    assert_eq!(user.queries.iter().map(|q| q.id.as_str()).collect::<Vec<_>>(), ["50020", "50022"]);
    assert_eq!(user.queries[1].field("gold"), Some("Cider Sunday"));
}

fn create(path: &Path) -> File {
    File::create(path).unwrap()
}

/// Writes the personal users in one layout and reads them.
fn again(
    task: LampTask,
    data: &Dataset,
    lamp: bool,
    side_files: bool,
    ids: QuestionIds,
) -> Vec<UserRecord> {
    let folder = tempfile::tempdir().unwrap();
    let [main, answers, profiles] = ["m.json", "a.json", "p.json"].map(|n| folder.path().join(n));
    let has_profiles = users(data).iter().any(|u| u.profile.is_some());
    let (mut m, mut a, mut p) = (create(&main), create(&answers), create(&profiles));
    let second: Option<&mut dyn std::io::Write> = if side_files { Some(&mut a) } else { None };
    let third: Option<&mut dyn std::io::Write> = if has_profiles { Some(&mut p) } else { None };
    let written = if lamp {
        let files = LampFiles { questions: &mut m, outputs: second, profiles: third };
        write_lamp(task, data.users(), ids, files)
    } else {
        let files = OppuFiles { users: &mut m, labels: second, profiles: third };
        write_oppu(task, data.users(), ids, files)
    };
    assert_eq!(written.unwrap().users, data.index().personal.len() as u64);
    let (answers, profiles) = (side_files.then_some(answers), has_profiles.then_some(profiles));
    let selection = Selection::default();
    users(&strict(&if lamp {
        let personal = LampSet { questions: main, outputs: answers, profiles };
        Source::Lamp { task, personal, population: None, selection }
    } else {
        Source::Oppu {
            task,
            personal: main,
            labels: answers,
            profiles,
            population: None,
            population_profiles: None,
            selection,
        }
    }))
}

#[test]
fn what_is_written_reads_back_the_same() {
    for task in LampTask::ALL {
        for source in [user_split(task), time_split(task), oppu(task)] {
            let data = strict(&source);
            for (lamp, side_files) in [(true, true), (true, false), (false, true), (false, false)] {
                let back = again(task, &data, lamp, side_files, QuestionIds::Own);
                assert_eq!(back, users(&data), "{task} lamp {lamp} side files {side_files}");
            }
        }
    }
}

/// JSONL users of a task, whose queries have no `input`, through both layouts.
#[test]
fn jsonl_becomes_questions() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("u.jsonl");
    let mut file = create(&path);
    for id in ["a", "b"] {
        let line = format!(
            r#"{{"id":"{id}","history":[{{"id":"1","text":"x","score":1,"date":"2020"}}],"queries":[{{"text":"y: z","score":2,"date":"2021"}},{{"text":"w","gold":4}}]}}"#
        );
        std::io::Write::write_all(&mut file, format!("{line}\n").as_bytes()).unwrap();
    }
    let (selection, max_line_bytes) = (Selection::default(), jsonl::MAX_LINE_BYTES);
    let data =
        strict(&Source::Jsonl { personal: path, population: None, max_line_bytes, selection });
    let task = LampTask::Rating;
    for lamp in [true, false] {
        let back = again(task, &data, lamp, true, QuestionIds::WithUser);
        for (user, before) in back.iter().zip(users(&data)) {
            assert_eq!((&user.id, &user.history), (&before.id, &before.history));
            let [first, second] = &user.queries[..] else { panic!("{user:?}") };
            assert_eq!(first.id, format!("{}:q0", user.id));
            let of = |f: &str| first.field(f).map(str::to_owned);
            assert_eq!(
                ["text", "gold", "date", "score"].map(of),
                [Some("y: z"), Some("2"), Some("2021"), None].map(|t| t.map(str::to_owned))
            );
            assert_eq!((second.field("text"), second.field("gold")), (Some("w"), Some("4")));
        }
    }
    let files = OppuFiles { users: &mut Vec::new(), labels: None, profiles: None };
    let error = write_oppu(task, data.users(), QuestionIds::Own, files).unwrap_err();
    assert!(matches!(error, WriteError::DuplicateQuestion { .. }), "{error}");
    let files = OppuFiles { users: &mut Vec::new(), labels: None, profiles: None };
    let error = write_oppu(LampTask::Headline, data.users(), QuestionIds::Own, files).unwrap_err();
    assert!(matches!(error, WriteError::NoField { field: "title", .. }), "{error}");
}
