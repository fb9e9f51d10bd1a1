//! `launcher prepare`: statistics of known data, conversions there and back, bad records, real corpora's
//! formats in small.

use crate::story::{Story, USERS, lines, user};
use serde_json::{Value, json};
use std::path::Path;

/// All files of a folder by name, with their bytes.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut files: Vec<_> = entries
        .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
        .collect();
    files.sort();
    files
}

fn names(folder: &Path) -> Vec<String> {
    files(folder).into_iter().map(|(name, _)| name).collect()
}

/// `prepare --from FROM --to KIND --out OUT MORE…` that must succeed.
fn convert(story: &Story, from: &str, to: &str, out: &str, more: &[&str]) {
    let args = ["prepare", "--from", from, "--to", to, "--out", out];
    story.launcher(&[&args[..], more].concat()).run().must(0);
}

#[test]
fn conversions_there_and_back_give_the_same_records() {
    let story = Story::new();
    let rating = ["--task", "product_rating"];
    let others = ["--population-file", "population.jsonl"];
    let first = [&rating[..], &others, &["--ids-with-user"]].concat();
    convert(&story, "jsonl=personal.jsonl", "oppu", "oppu", &first);
    let oppu = ["user_others.json", "user_top_100_history.json", "user_top_100_history_label.json"];
    assert_eq!(names(&story.path("oppu")), oppu);
    // Questions have gained their text and ids of their own; from here on nothing changes any more.
    convert(&story, "oppu=oppu", "jsonl", "a", &rating);
    convert(&story, "jsonl=a", "lamp", "lamp", &rating);
    let lamp =
        ["dev_outputs.json", "dev_questions.json", "train_outputs.json", "train_questions.json"];
    assert_eq!(names(&story.path("lamp")), lamp);
    convert(&story, "lamp=lamp", "jsonl", "b", &rating);
    convert(&story, "jsonl=b", "oppu", "c", &rating);
    assert_eq!(files(&story.path("a")), files(&story.path("b")));
    assert_eq!(files(&story.path("oppu")), files(&story.path("c")));
    // The files one by one instead of the folder.
    let apart = [
        "--task",
        "LaMP_3",
        "--answers",
        "lamp/dev_outputs.json",
        "--population-file",
        "lamp/train_questions.json",
        "--population-answers",
        "lamp/train_outputs.json",
    ];
    convert(&story, "lamp=lamp/dev_questions.json", "jsonl", "d", &apart);
    assert_eq!(files(&story.path("a")), files(&story.path("d")));
    // What went in is what came out.
    let records: Vec<Value> =
        story.text("a/personal.jsonl").lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(records.len(), USERS);
    for (number, record) in records.iter().enumerate() {
        let expected = user(number);
        assert_eq!(record["id"], expected["id"]);
        for (list, answer) in [("history", "score"), ("queries", "gold")] {
            let pairs =
                record[list].as_array().unwrap().iter().zip(expected[list].as_array().unwrap());
            for (got, wanted) in pairs {
                assert_eq!(got["text"], wanted["text"]);
                assert_eq!(got[answer], wanted["score"].to_string());
            }
            let lengths = [record, &expected].map(|r| r[list].as_array().unwrap().len());
            assert_eq!(lengths[0], lengths[1]);
        }
        assert!(record["queries"][0]["input"].as_str().unwrap().contains("review: "));
    }
    assert_eq!(story.text("a/population.jsonl").lines().count(), 4);
}

#[test]
fn statistics_of_a_known_file() {
    let story = Story::new();
    let users = [
        json!({"id": "ann", "history": [
            {"text": "one two three four", "score": 1, "date": "2020-01-01"},
            {"text": "one two", "score": 5, "date": "2020-01-02"},
            {"text": "one two three four", "score": 1, "date": "2020-01-03"}],
            "queries": [{"text": "one two three four", "score": 2}, {"text": "new", "gold": "5"}]}),
        json!({"id": "bob", "history": [{"text": "one two three four five six seven", "score": 5}]}),
    ];
    story.put("known.jsonl", &lines(users));
    let args = ["prepare", "--from", "jsonl=known.jsonl", "--stats", "stats.json"];
    let said = story.launcher(&args).run().must(0).stdout;
    let stats = story.json("stats.json");
    assert_eq!((&stats["unit"], &stats["bad_records"]), (&json!("words"), &json!(0)));
    let personal = &stats["statistics"]["personal"];
    for (name, count) in [
        ("users", 2),
        ("history_items", 4),
        ("queries", 2),
        ("dated_users", 1),
        ("answered_queries", 2),
        ("repeated_items", 1),
        ("known_queries", 1),
    ] {
        assert_eq!(personal[name], count, "{name}");
    }
    // Text and score together: 5, 3, 5 and 8 words.
    let items = json!({"count": 4, "min": 3, "p10": 3, "p25": 3, "p50": 5, "p75": 5, "p90": 8, "p99": 8, "max": 8, "mean": 5.25});
    assert_eq!(personal["history_item_length"], items);
    assert_eq!(personal["question_length"]["max"], 4);
    assert_eq!(personal["answer_length"]["mean"], 1.0);
    assert_eq!(personal["history_labels"], json!({"1": 2, "5": 2}));
    assert_eq!(personal["query_labels"], json!({"2": 1, "5": 1}));
    assert_eq!(stats["statistics"]["population"]["users"], 0);
    for line in
        ["personal users                            2", "1 50.0 %, 5 50.0 %", "history item, words"]
    {
        assert!(said.contains(line), "{line:?} is not in\n{said}");
    }
    // Again: the same words, and nothing is overwritten.
    let told = story.launcher(&args[..3]).run().must(0).stdout;
    assert_eq!(told, said);
    story.launcher(&args).run().must(3).says(&["stats.json exists", "hint: "]);
    // A base counts tokens.
    let tokens = [&args[..3], &["--base", "base", "--stats", "tokens.json"]].concat();
    let said = story.launcher(&tokens).run().must(0).stdout;
    assert!(said.contains("history item, tokens"), "{said}");
    let longer = &story.json("tokens.json")["statistics"]["personal"]["history_item_length"];
    assert!(longer["max"].as_u64().unwrap() >= 8, "{longer}");
}

#[test]
fn bad_records_are_counted_and_strict_stops() {
    let story = Story::new();
    let mut file = lines((0..3).map(user));
    file.extend(
        b"{\"id\": \"broken\"\n{\"id\": \"user 1\", \"history\": [{\"text\": \"again\"}]}\n",
    );
    story.put("bad.jsonl", &file);
    let args = [
        "prepare",
        "--from",
        "jsonl=bad.jsonl",
        "--stats",
        "s.json",
        "--to",
        "jsonl",
        "--out",
        "out",
    ];
    let ended = story.launcher(&args).run().must(5);
    let ended = ended.says(&["bad.jsonl:4: ", "bad.jsonl:5: user user 1: "]);
    assert!(ended.stdout.contains("2  bad records"), "{}", ended.stdout);
    assert_eq!(story.json("s.json")["bad_records"], 2);
    assert_eq!(story.text("out/personal.jsonl").lines().count(), 3);
    let strict =
        ["prepare", "--from", "jsonl=bad.jsonl", "--to", "jsonl", "--out", "other", "--strict"];
    story.launcher(&strict).run().must(3).says(&["bad.jsonl:4: "]);
    let left = names(&story.path("out"));
    assert_eq!(left, ["personal.jsonl"]);
    let entries = std::fs::read_dir(story.root()).unwrap();
    let strays =
        entries.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().contains("other"));
    assert_eq!(strays.count(), 0, "a failed command leaves something behind");
}

#[test]
fn refusals_name_their_reason() {
    let story = Story::new();
    std::fs::create_dir(story.path("there")).unwrap();
    let jsonl = ["--from", "jsonl=personal.jsonl"];
    let refused = |args: &[&str], parts: &[&str]| {
        story.launcher(&[&["prepare"], args].concat()).run().must(3).says(parts);
    };
    refused(&[&jsonl[..], &["--to", "jsonl", "--out", "there"]].concat(), &["there exists"]);
    refused(
        &[&jsonl[..], &["--to", "csv", "--out", "o"]].concat(),
        &["\"csv\"", "jsonl, lamp, oppu"],
    );
    refused(&[&jsonl[..], &["--to", "lamp", "--out", "o"]].concat(), &["--task"]);
    refused(
        &[&jsonl[..], &["--to", "lamp", "--out", "o", "--task", "rating"]].concat(),
        &["q0", "--ids-with-user"],
    );
    refused(&[&jsonl[..], &["--task", "LaMP_2"]].concat(), &["names two tasks"]);
    refused(&[&jsonl[..], &["--users", "13"]].concat(), &["13 users are asked for, 12 qualify"]);
    refused(&[&jsonl[..], &["--min-history", "11"]].concat(), &["no user that qualifies"]);
    refused(&[&jsonl[..], &["--split-population", "half"]].concat(), &["\"half\""]);
    refused(
        &[&jsonl[..], &["--split-population", "1", "--population-file", "population.jsonl"]]
            .concat(),
        &["a file of its own"],
    );
    refused(&["--from", "csv=x"], &["\"csv\""]);
    refused(&["--from", "personal.jsonl"], &["KIND=PATH"]);
    refused(&["--from", "lamp=there", "--task", "rating"], &["dev_questions.json"]);
    refused(&["--from", "chitchat=there"], &["dataset.json", "tried"]);
    refused(&["--from", "spam-assassin=there"], &["email_subject"]);
    refused(&["--from", "spam-assassin=there", "--task", "headline"], &["easy-ham-1"]);
    for usage in [
        &[][..],
        &["--check", "x", "--from", "jsonl=y"],
        &["--to", "jsonl"],
        &["--out", "x"],
        &["--population", "--from", "jsonl=x"],
    ] {
        story.launcher(&[&["prepare"], usage].concat()).run().must(2);
    }
    assert!(!story.path("o").exists());
}

/// Ten people who write ten messages each, and one who writes two.
fn conversations() -> Vec<u8> {
    let mut all = serde_json::Map::new();
    for person in 0..11 {
        let number = if person == 10 { 2 } else { 10 };
        let message = |i: usize| {
            let text = format!("Sooo u like person {person} and number {i}, lol!!");
            json!({"text": text, "timestamp": format!("2018-05-02T19:38:{i:02}Z"), "sender": format!("person {person}")})
        };
        let messages: Vec<Value> = (0..number).map(message).collect();
        all.insert(format!("conversation {person}"), json!({"messages": [messages], "start": "x"}));
    }
    serde_json::to_vec(&all).unwrap()
}

fn ids(story: &Story, file: &str) -> Vec<String> {
    let line = |line: &str| {
        serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned()
    };
    story.text(file).lines().map(line).collect()
}

#[test]
fn conversations_become_restyling_users() {
    let story = Story::new();
    story.put("dataset.json", &conversations());
    let from = "chitchat=dataset.json";
    let few = ["--min-history", "4", "--users", "3"];
    convert(&story, from, "jsonl", "a", &[&few[..], &["--split-population", "0.5"]].concat());
    convert(
        &story,
        from,
        "jsonl",
        "b",
        &[&few[..], &["--split-population", "2", "--seed", "1"]].concat(),
    );
    let (personal, population) =
        (ids(&story, "a/personal.jsonl"), ids(&story, "a/population.jsonl"));
    assert_eq!((personal.len(), population.len()), (3, 5));
    assert_eq!(ids(&story, "b/personal.jsonl"), personal, "they do not depend on the population");
    assert!(ids(&story, "b/population.jsonl").iter().all(|id| population.contains(id)));
    assert!(population.iter().all(|id| !personal.contains(id)));
    let seeds: std::collections::BTreeSet<Vec<String>> = (2..6)
        .map(|seed| {
            let out = format!("seed{seed}");
            convert(
                &story,
                from,
                "jsonl",
                &out,
                &[&few[..], &["--seed", &seed.to_string()]].concat(),
            );
            ids(&story, &format!("{out}/personal.jsonl"))
        })
        .collect();
    assert!(seeds.len() > 1, "the seed chooses nobody");
    let records = |file: &str| -> Vec<Value> {
        story.text(file).lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    };
    let sizes = |user: &Value| ["history", "queries"].map(|l| user[l].as_array().unwrap().len());
    assert!(records("a/personal.jsonl").iter().all(|user| sizes(user) == [8, 2]));
    assert!(records("a/population.jsonl").iter().all(|user| sizes(user) == [5, 5]));
    let query = &records("a/personal.jsonl")[0]["queries"][0];
    let gold = query["gold"].as_str().unwrap();
    assert!(gold.starts_with("Sooo u like person ") && gold.ends_with(" and number 8, lol!!"));
    assert!(query["text"].as_str().unwrap().starts_with("so you like person "), "{query}");
    assert!(!story.text("a/personal.jsonl").contains("\"person 1\""));
    // Through the benchmark's files and back.
    convert(&story, "jsonl=a", "oppu", "oppu", &["--task", "tweet_paraphrase"]);
    assert!(story.path("oppu/user_more_100_history.json").exists());
    convert(&story, "oppu=oppu", "jsonl", "back", &["--task", "LaMP_7"]);
    assert_eq!(files(&story.path("a")), files(&story.path("back")));
}

#[test]
fn mails_become_subject_users() {
    let story = Story::new();
    for group in ["easy-ham-1", "easy-ham-2", "hard-ham-1"] {
        std::fs::create_dir_all(story.path("mails").join(group)).unwrap();
    }
    for number in 0..10 {
        let mail = format!(
            "From: Ann Bee <ann@x.org>\nSubject: Report {number}\nDate: {} Oct 2002 10:00:00 +0000\n\n\
             The printer of Ann Bee smokes again, number {number}.\n-- \nann@x.org\n",
            number + 1
        );
        story.put(&format!("mails/easy-ham-1/{number:05}.txt"), mail.as_bytes());
    }
    let task = ["--task", "LaMP_6"];
    convert(&story, "spam-assassin=mails", "lamp", "lamp", &task);
    let questions = story.json("lamp/dev_questions.json");
    assert_eq!(questions.as_array().unwrap().len(), 2);
    assert_eq!(questions[0]["profile"].as_array().unwrap().len(), 8);
    assert_eq!(
        questions[1]["input"],
        "Generate a subject for the following email: The printer of [name] smokes again, number 9."
    );
    assert_eq!(story.json("lamp/dev_outputs.json")["golds"][1]["output"], "Report 9");
    assert!(!story.text("lamp/dev_questions.json").contains("ann@x.org"));
    convert(&story, "lamp=lamp", "jsonl", "a", &task);
    convert(&story, "spam-assassin=mails", "jsonl", "b", &task);
    assert_eq!(files(&story.path("a")), files(&story.path("b")));
}

#[test]
fn event_logs_there_and_back_with_their_statistics() {
    let story = Story::new();
    let log = "who\twhen\twhat\twhere\n\
        ada\t1970-01-02 10:00:00\tmail\thome\n\
        ada\t1970-01-02 09:00:00\tradio\t\n\
        bob\t1970-01-02 09:00:00\t\"say \"\"hi\"\"\"\twork\n\
        ada\tyesterday\tmail\thome\n\
        bob\t1970-01-02 10:00:00\tmail\twork\n";
    let keys = "kind = \"tsv\"\nmin_events = 2\n\
        columns = { user = \"who\", time = \"when\", event = \"what\", contexts = [[\"where\", \"where\"]] }\n\
        [split]\ntrain = 1.0\nvalidation = 0.0\n";
    for (name, text) in [("log.tsv", log), ("keys.toml", keys)] {
        story.put(name, text.as_bytes());
    }
    let own = ["prepare", "--from", "events=log.tsv", "--format", "keys.toml"];
    let strict = story.launcher(&[&own[..], &["--strict"]].concat()).run();
    strict.must(3).says(&["log.tsv:5: user ada: column \"when\": \"yesterday\" is no time"]);
    let to = ["--to", "events-csv", "--out", "a", "--stats", "stats.json"];
    story.launcher(&[&own[..], &to].concat()).run().must(5);
    let csv = "user,time,event,where,intent\n\
        ada,1970-01-02T09:00:00,radio,,radio\n\
        ada,1970-01-02T10:00:00,mail,home,mail\n\
        bob,1970-01-02T09:00:00,\"say \"\"hi\"\"\",work,\"say \"\"hi\"\"\"\n\
        bob,1970-01-02T10:00:00,mail,work,mail\n";
    assert_eq!(story.text("a/events.csv"), csv);
    let stats: Value = serde_json::from_str(&story.text("stats.json")).unwrap();
    assert_eq!(stats["format"], "myriad-event-statistics/1");
    assert_eq!(stats["statistics"]["events"], 4);
    assert_eq!(stats["statistics"]["train"]["windows"], 2);
    assert_eq!(stats["left_out"]["bad_rows"], 1);
    // Of two events the usual split trains on one, and nothing can be learned.
    let from = ["prepare", "--from", "events-csv=a/events.csv"];
    story.launcher(&from).run().must(3).says(&["no event with an intent and one before it"]);
    story.put("all.toml", b"[split]\ntrain = 1.0\nvalidation = 0.0\n");
    let all = ["--format", "all.toml", "--strict"];
    convert(&story, "events-csv=a/events.csv", "events-jsonl", "b", &all);
    convert(&story, "events-jsonl=b/events.jsonl", "events-csv", "c", &all);
    assert_eq!(story.text("c/events.csv"), csv);
    // What is not for event logs, and a log without a format.
    let wrong: [&[&str]; 4] = [
        &["--from", "events=log.tsv"],
        &["--from", "events-csv=a/events.csv", "--users", "1"],
        &["--from", "events-csv=a/events.csv", "--to", "lamp", "--out", "d"],
        &["--from", "jsonl=personal.jsonl", "--format", "keys.toml"],
    ];
    for args in wrong {
        story.launcher(&[&["prepare"], args].concat()).run().must(3);
    }
    assert!(!story.path("d").exists());
}
