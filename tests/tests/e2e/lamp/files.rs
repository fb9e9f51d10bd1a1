//! Every task through both layouts of files and both families of templates: who is asked and with which answers.

use super::*;
use std::path::{Path, PathBuf};

const TASKS: [(&str, &str, &str); 8] = [
    ("citation", "LaMP_1", "citation"),
    ("news_category", "LaMP_2N", "news_categorize"),
    ("movie_tag", "LaMP_2M", "movie_tagging"),
    ("rating", "LaMP_3", "product_rating"),
    ("headline", "LaMP_4", "news_headline"),
    ("scholarly_title", "LaMP_5", "scholarly_title"),
    ("email_subject", "LaMP_6", "email_subject"),
    ("tweet_paraphrase", "LaMP_7", "tweet_paraphrase"),
];

fn fixtures() -> PathBuf {
    crate::process::root().join("trainer/tests/fixtures/lamp")
}

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// Ids and answers of a file of outputs, by id.
fn outputs(path: &Path) -> Vec<(String, String)> {
    let value = json(path);
    let list = value.get("golds").unwrap_or(&value).as_array().unwrap().clone();
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let mut all: Vec<_> = list.iter().map(|g| (text(&g["id"]), text(&g["output"]))).collect();
    all.sort();
    all
}

/// Ids and golds of what an arm was asked, by id.
fn golds_of(story: &Story, run: &str, arm: &str) -> Vec<(String, String)> {
    let text = story.text(&format!("{run}/predictions/{arm}.jsonl"));
    let of = |p: &Value, key: &str| p[key].as_str().unwrap().to_owned();
    let mut all: Vec<_> =
        predictions(&text).iter().map(|p| (of(p, "query"), of(p, "gold"))).collect();
    all.sort();
    all
}

/// A story whose config is over `data`, paths and all.
fn over(data: &str, template: (&str, &str), sections: &str) -> Story {
    let story = world(RATING, "");
    story.put("config.toml", config_over(data, template, sections).as_bytes());
    story
}

const WITHOUT_POPULATION: [&str; 2] =
    ["population.enabled=false", "run.arms=['base', 'rag', 'personal']"];

#[test]
fn every_task_of_lamp_with_users_by_time() {
    let mut settings = ["bm25-lamp", "recency"].iter().cycle();
    for (task, id, _) in TASKS {
        let folder = fixtures().join(id).join("time");
        let data = format!(
            "source = 'lamp'\ntask = '{id}'\npersonal = '{0}/dev_questions.json'\n\
             personal_outputs = '{0}/dev_outputs.json'",
            folder.display()
        );
        let story = over(&data, ("lamp", task), "");
        let retriever = format!("prompt.retriever={}", settings.next().unwrap());
        let keys = [&WITHOUT_POPULATION[..], &[&retriever, "individual.epochs=4"]].concat();
        run(&story, "run", 0, &keys).must(0);
        let expected = outputs(&folder.join("dev_outputs.json"));
        for arm in ["base", "rag", "personal"] {
            assert_eq!(golds_of(&story, "run", arm), expected, "{arm} of {task}");
        }
        let answers = story.answers("run");
        // Two users, of whom one asks twice.
        let users: std::collections::BTreeSet<String> =
            asked(&answers["base"]).into_iter().map(|(user, _)| user).collect();
        assert_eq!((expected.len(), users.len()), (3, 2), "{task}");
        assert_ne!(answers["rag"], answers["personal"], "{task}: nothing was learned");
    }
}

#[test]
fn every_task_of_oppu_with_its_own_names() {
    for (task, _, name) in TASKS {
        let folder = fixtures().join("oppu").join(name);
        let users = if task == "tweet_paraphrase" { "more" } else { "top" };
        let users = format!("{}/user_{users}_100_history", folder.display());
        let data = format!(
            "source = 'oppu'\ntask = '{name}'\npersonal = '{users}.json'\n\
             personal_outputs = '{users}_label.json'\n\
             personal_profiles = '{0}/profile_user_100.json'\npopulation = '{0}/user_others.json'\n\
             population_profiles = '{0}/profile_user_others.json'",
            folder.display()
        );
        let story = over(&data, ("oppu", task), "[profile]\nsource = 'file'\n");
        run(&story, "run", 0, &["prompt.max_length=1000"]).must(0);
        let expected = outputs(Path::new(&format!("{users}_label.json")));
        for (arm, text) in story.answers("run") {
            assert_eq!(golds_of(&story, "run", &arm), expected, "{arm} of {task}");
            assert!(!text.is_empty());
        }
        let answers = story.answers("run");
        assert_eq!(answers.len(), 6);
        if task != "citation" {
            assert_ne!(answers["rag"], answers["pag"], "{task}: the profile text is not shown");
        }
    }
}

#[test]
fn questions_without_users_and_a_population_of_the_training_split() {
    for (task, id, train) in [
        ("rating", "LaMP_3", "train_questions.jsonl"),
        ("news_category", "LaMP_2N", "train_questions.json"),
    ] {
        let folder = fixtures().join(id).join("user");
        let data = format!(
            "source = 'lamp'\ntask = '{task}'\npersonal = '{0}/dev_questions.json'\n\
             personal_outputs = '{0}/dev_outputs.json'\npopulation = '{0}/{train}'\n\
             population_outputs = '{0}/train_outputs.json'",
            folder.display()
        );
        let story = over(&data, ("lamp", task), "");
        let arms = "run.arms=['base', 'rag', 'population', 'personal', 'permuted']";
        run(&story, "run", 2, &[arms, "prompt.max_length=1000"]).must(0);
        let expected = outputs(&folder.join("dev_outputs.json"));
        for (arm, text) in story.answers("run") {
            assert_eq!(golds_of(&story, "run", &arm), expected, "{arm} of {task}");
            assert!(asked(&text).iter().all(|(user, query)| user == query), "{text}");
        }
        assert!(story.path("run/population/merged.myriad").exists());
    }
}

#[test]
fn one_set_of_people_in_both_layouts_gives_the_same_answers() {
    let story = world(RATING, "");
    let people = RATING.people(PEOPLE);
    put(&story, "questions.json", &questions(&people));
    let keys = [&WITHOUT_POPULATION[..], &["prompt.retrieved=2"]].concat();
    run(&story, "oppu", 0, &keys).must(0);
    let data = "source = 'lamp'\ntask = 'LaMP_3'\npersonal = 'questions.json'\n\
                personal_outputs = 'labels.json'\npersonal_profiles = 'profiles.json'";
    story.put("config.toml", config_over(data, ("oppu", "rating"), "").as_bytes());
    run(&story, "lamp", 3, &keys).must(0);
    let answers = story.answers("oppu");
    assert!(story.answers("lamp") == answers);
    run(&story, "recency", 0, &[&keys[..], &["prompt.retriever=recency"]].concat()).must(0);
    let recency = story.answers("recency");
    assert_eq!(recency["base"], answers["base"]);
    assert_ne!(recency["rag"], answers["rag"]);
    assert_ne!(recency["personal"], answers["personal"]);
    // Files may move while a run goes on.
    for name in ["questions.json", "labels.json", "profiles.json"] {
        std::fs::rename(story.path(name), story.path(&format!("moved_{name}"))).unwrap();
    }
    let moved =
        data.replace("= 'questions", "= 'moved_questions").replace("= 'labels", "= 'moved_labels");
    let moved = moved.replace("= 'profiles", "= 'moved_profiles");
    story.put("config.toml", config_over(&moved, ("oppu", "rating"), "").as_bytes());
    run(&story, "lamp", 0, &keys).must(0);
}
