//! Bad data in every kind of file: named with file, record and key, skipped and counted, or an end at once under
//! `data.strict`; and configs that ask for what the data does not have.

use super::*;

/// A file of the story as JSON, changed.
fn change(story: &Story, name: &str, change: impl FnOnce(&mut Value)) {
    let mut value = story.json(name);
    change(&mut value);
    put(story, name, &value);
}

fn remove(value: &mut Value, key: &str) {
    value.as_object_mut().unwrap().remove(key).unwrap();
}

/// The lines of a text that are not about these users.
fn without<'a>(text: &'a str, users: &[&str]) -> Vec<&'a str> {
    let other = |l: &&str| {
        let prediction: Value = serde_json::from_str(l).unwrap();
        !users.contains(&prediction["user"].as_str().unwrap())
    };
    text.lines().filter(other).collect()
}

const ALONE: [&str; 2] =
    ["population.enabled=false", "run.arms=['base', 'rag', 'pag', 'personal', 'permuted']"];

#[test]
fn a_bad_record_of_any_file_is_skipped_and_counted() {
    let story = world(MOVIE, "[profile]\nsource = 'file'\n");
    run(&story, "clean", 0, &ALONE).must(0);
    let clean = story.answers("clean");

    // Two users, an item, a label, a profile text.
    change(&story, "people.json", |people| {
        remove(&mut people[1], "profile");
        remove(&mut people[4]["profile"][2], "tag");
        let again = people[0].clone();
        people.as_array_mut().unwrap().push(again);
    });
    change(&story, "labels.json", |labels| remove(&mut labels["golds"][5], "output"));
    change(&story, "profiles.json", |texts| remove(&mut texts[3], "output"));
    let said: [(&str, &[&str]); 5] = [
        ("people.json", &["record 2 at byte ", "user 21", "no `profile`"]),
        (
            "people.json",
            &["item left out: ", "record 5 at byte ", "user 24", "profile[2] has no `tag`"],
        ),
        ("people.json", &["record 9 at byte ", "user 20", "a second record of this user"]),
        ("labels.json", &["record 6 at byte ", "no `output`"]),
        ("profiles.json", &["record 4 at byte ", "no `output`"]),
    ];
    for (folder, ranks, keys) in
        [("solo", 0, &ALONE[..]), ("ranks", 2, &ALONE), ("base", 0, &["run.arms=['base']"])]
    {
        let ended = run(&story, folder, ranks, keys).must(5);
        for (file, parts) in said {
            let named = |l: &str| l.contains(file) && parts.iter().all(|part| l.contains(part));
            let count = ended.stderr.lines().filter(|l| named(l)).count();
            assert_eq!(count, 1, "{folder}: {file}: {parts:?} in\n{}", ended.stderr);
        }
    }
    let ended = run(&story, "solo", 0, &ALONE).must(5).says(&["1 of 7 users have no profile text"]);
    assert!(ended.stdout.contains("Leak check"), "{}", ended.stdout);
    // Who is not hit answers as before; 24 has lost an item, 23 the profile text.
    let now = story.answers("solo");
    assert!(now == story.answers("ranks"));
    assert_eq!(without(&now["base"], &[]), without(&clean["base"], &["21"]));
    assert_eq!(without(&now["rag"], &["24"]), without(&clean["rag"], &["21", "24"]));
    for arm in ["pag", "personal"] {
        let others = without(&clean[arm], &["21", "23", "24"]);
        assert_eq!(without(&now[arm], &["23", "24"]), others, "{arm}");
        assert_ne!(without(&now[arm], &["24"]), without(&clean[arm], &["21", "24"]), "{arm}");
    }

    for ranks in [0, 2] {
        let keys = [&ALONE[..], &["data.strict=true"]].concat();
        let ended = run(&story, "strict", ranks, &keys).must(3);
        ended.says(&["labels.json: record 6 at byte ", "the record has no `output`", "hint:"]);
        assert!(!story.path("strict").exists());
    }
}

#[test]
fn an_item_that_lacks_a_field_is_left_out_alone() {
    let story = world(MOVIE, "");
    change(&story, "people.json", |people| {
        remove(&mut people[4]["profile"][2], "tag");
        people[4]["profile"][3]["description"] = Value::Null;
    });
    let named = ["people.json: record 5 at byte ", "user 24: profile[2] has no `tag`"];
    let keys = ["population.enabled=false", "run.arms=['base', 'personal']"];
    // Nobody is put aside.
    let ended = run(&story, "run", 0, &keys).must(0).says(&named);
    ended.says(&["item left out: ", "and 1 more items of these users"]);
    for text in story.answers("run").values() {
        assert_eq!(asked(text).len(), PEOPLE.len() * QUERIES);
    }
    let strict = [&keys[..], &["data.strict=true"]].concat();
    run(&story, "strict", 0, &strict).must(3).says(&named).says(&["hint:"]);
    let args = ["prepare", "--from", "oppu=people.json", "--task", "movie_tag"];
    let stats = [&args[..], &["--stats", "stats.json"]].concat();
    story.launcher(&stats).run().must(0).says(&named);
    let left_out = &story.json("stats.json")["left_out"];
    assert_eq!(left_out["history items without an id or a field of the task"], 2, "{left_out}");
    story.launcher(&[&args[..], &["--strict"]].concat()).run().must(3).says(&named);
}

#[test]
fn bad_records_of_the_population() {
    let story = world(MOVIE, "");
    let arms = "run.arms=['base', 'population', 'personal']";
    change(&story, "others.json", |others| remove(&mut others[1]["query"][0], "gold"));
    change(&story, "other_profiles.json", |texts| remove(&mut texts[0], "id"));
    run(&story, "run", 2, &[arms]).must(5).says(&[
        "others.json: record 2 at byte ",
        "user 11: question \"1190\" has no answer",
        "other_profiles.json: record 1 at byte ",
        "the record has no `id`",
    ]);
    for arm in ["base", "population", "personal"] {
        let text = story.text(&format!("run/predictions/{arm}.jsonl"));
        assert_eq!(asked(&text).len(), PEOPLE.len() * QUERIES, "{arm}");
    }
    run(&story, "strict", 0, &[arms, "data.strict=true"]).must(3).says(&["other_profiles.json"]);
}

#[test]
fn questions_without_answers_are_asked_and_not_counted() {
    let story = world(RATING, "");
    put(&story, "questions.json", &questions(&RATING.people(PEOPLE)));
    change(&story, "labels.json", |labels| {
        let golds = labels["golds"].as_array_mut().unwrap();
        golds.remove(3);
        golds.push(json!({"id": "nobody's", "output": "3"}));
    });
    let data = "source = 'lamp'\ntask = 'LaMP_3'\npersonal = 'questions.json'\n\
                personal_outputs = 'labels.json'";
    story.put("config.toml", config_over(data, ("lamp", "rating"), "").as_bytes());
    let keys = ["population.enabled=false", "run.arms=['base', 'personal']"];
    let ended = run(&story, "run", 0, &keys)
        .must(5)
        .says(&["labels.json: ids do not match: 1 questions without an answer: \"2191\"; \
         1 answers without a question: \"nobody's\""]);
    assert!(ended.stdout.contains("2 predictions without gold left out"), "{}", ended.stdout);
    for text in story.answers("run").values() {
        assert_eq!(asked(text).len(), PEOPLE.len() * QUERIES);
        let bare = predictions(text).into_iter().filter(|p| p["gold"].is_null());
        assert_eq!(bare.map(|p| p["query"].clone()).collect::<Vec<_>>(), ["2191"]);
    }
    let strict = [&keys[..], &["data.strict=true"]].concat();
    run(&story, "strict", 0, &strict).must(3).says(&["ids do not match", "hint:"]);
}

#[test]
fn files_of_another_task_are_refused() {
    let story = world(MOVIE, "[profile]\nsource = 'file'\n");
    change(&story, "labels.json", |labels| labels["task"] = "LaMP_3".into());
    let said = ["labels.json: `task` is \"LaMP_3\", not movie_tag", "hint:"];
    run(&story, "run", 0, &[]).must(3).says(&said);
    run(&story, "run", 2, &[]).must(3).says(&said);
    put(&story, "labels.json", &golds(&MOVIE.people(PEOPLE), "LaMP_8"));
    run(&story, "run", 0, &["data.task=rating"]).must(3).says(&["LaMP_8", "not rating"]);
    run(&story, "run", 0, &["data.task=LaMP_2"]).must(3).says(&["LaMP_2M", "LaMP_2N", "hint:"]);
    run(&story, "run", 0, &["data.task=films"]).must(3).says(&["no task is called \"films\""]);
    // Without labels only the questions tell.
    change(&story, "labels.json", |labels| remove(labels, "task"));
    run(&story, "run", 0, &["data.task=headline", "prompt.template=oppu/headline"])
        .must(3)
        .says(&["no user to personalise", "is the task right?"]);
    assert!(!story.path("run").exists());
}

#[test]
fn an_item_without_its_answer_is_left_out_and_its_user_trained() {
    let story = world(MOVIE, "[profile]\nsource = 'file'\n");
    let keys = [&ALONE[..], &["run.arms=['base', 'personal']", "prompt.retrieved=0"]].concat();
    change(&story, "people.json", |people| {
        people[2]["profile"][0]["tag"] = "".into();
        people[2]["profile"][1]["tag"] = "no such tag".into();
    });
    let said = "user 22: 2 items left out, the first: item ";
    run(&story, "oppu", 0, &keys).must(0).says(&[said]);
    assert_eq!(asked(&story.text("oppu/predictions/personal.jsonl")).len(), 2 * PEOPLE.len());

    // In a JSONL file an item may have any fields; one that cannot be shown stands in front of nobody's question.
    let mut people: Vec<Value> = PEOPLE.map(|n| plain(MOVIE, n)).collect();
    let data = "source = 'jsonl'\npersonal = 'people.jsonl'";
    story.put("config.toml", config_over(data, ("oppu", "movie_tag"), "").as_bytes());
    story.put("people.jsonl", &crate::story::lines(people.clone()));
    let keys =
        ["population.enabled=false", "run.arms=['base', 'rag', 'personal']", "prompt.retrieved=2"];
    run(&story, "clean", 0, &keys).must(0);
    remove(&mut people[2]["history"][1], "tag");
    story.put("people.jsonl", &crate::story::lines(people));
    run(&story, "jsonl", 0, &keys).must(0).says(&["user 22: 1 items left out, the first: item "]);
    let (now, clean) = (story.answers("jsonl"), story.answers("clean"));
    for (arm, text) in &now {
        assert_eq!(asked(text), asked(&clean["base"]), "{arm}: a query is lost");
        assert_eq!(without(text, &["22"]), without(&clean[arm], &["22"]), "{arm}");
    }
    // Nor is it drawn for anybody else.
    for retriever in ["full_random", "ranbm25"] {
        let drawn = format!("prompt.retriever={retriever}");
        let keys = [&keys[..], &[&drawn, "prompt.pool_items=1000"]].concat();
        run(&story, retriever, 0, &keys).must(0);
        for (arm, text) in story.answers(retriever) {
            assert_eq!(asked(&text), asked(&clean["base"]), "{retriever}, {arm}: a query is lost");
        }
    }
}

/// A person as Myriad's own format has it.
fn plain(form: Form, number: usize) -> Value {
    let mut person = form.person(number);
    let query = |q: &Value| {
        let text = q["input"].as_str().unwrap().strip_prefix(form.question).unwrap();
        let mut item = json!({"id": q["id"]});
        item[form.input] = text.into();
        item[form.answer] = q["gold"].clone();
        item
    };
    let queries: Vec<Value> = person["query"].as_array().unwrap().iter().map(query).collect();
    json!({"id": number.to_string(), "history": person["profile"].take(), "queries": queries})
}

#[test]
fn what_the_data_does_not_have_is_said_before_anything_is_trained() {
    let story = world(MOVIE, "[profile]\nsource = 'file'\n");
    // One user has nobody to swap with.
    run(&story, "run", 0, &[&ALONE[..], &["data.personal_users=1"]].concat()).must(3).says(&[
        "`permuted` swaps adapters",
        "1 user",
        "hint:",
    ]);
    run(&story, "run", 0, &["data.personal_users=9"]).must(3).says(&["9 users", "8 qualify"]);
    // The base writes no text where the request leaves no room.
    let generate = ["profile.source=generate", "profile.max_new_tokens=690"];
    run(&story, "room", 2, &generate).must(3).says(&["profile.max_new_tokens", "hint:"]);
    // No texts at all.
    let text = story.text("config.toml").replace("personal_profiles = 'profiles.json'\n", "");
    story.put("config.toml", text.as_bytes());
    run(&story, "run", 0, &[])
        .must(3)
        .says(&["`profile.source`: is \"file\", but data.personal_profiles is not set"]);
    let users = |numbers: Range<usize>| crate::story::lines(numbers.map(|n| plain(MOVIE, n)));
    story.put("people.jsonl", &users(PEOPLE));
    story.put("others.jsonl", &users(OTHERS));
    let data = "source = 'jsonl'\npersonal = 'people.jsonl'\npopulation = 'others.jsonl'";
    let sections = "[profile]\nsource = 'file'\n";
    story.put("config.toml", config_over(data, ("oppu", "movie_tag"), sections).as_bytes());
    run(&story, "run", 0, &[]).must(3).says(&["no user has a profile text", "hint:"]);
    // A template without labels has none to score.
    let written = ["profile.source=none", "prompt.template=oppu/headline"];
    run(&story, "run", 0, &[&written[..], &["run.arms=['population', 'personal']"]].concat())
        .must(3)
        .says(&["the template has no labels", "hint:"]);
    assert!(!story.path("run").exists());
}
