//! Users as they really come: broken lines, strange ids, data that cannot be learned, adapters that diverge. One
//! user's trouble is named and is that user's alone.

use crate::story::{Story, USERS, lines, numbers, reference, user};
use serde_json::json;

const LONG_ID: usize = 4096;

fn renamed(number: usize, id: &str) -> serde_json::Value {
    let mut user = user(number);
    user["id"] = id.into();
    user
}

/// The usual users with bad lines between them; names of what must be said about each bad line.
fn hostile_file() -> (Vec<u8>, Vec<(usize, &'static str)>) {
    let mut bad_item = user(20);
    bad_item["id"] = "long winded".into();
    bad_item["history"][1]["text"] = "word ".repeat(100).into();
    let mut empty = renamed(21, "no past");
    empty["history"] = json!([]);
    let mut typo = renamed(22, "typo");
    typo["querys"] = typo.as_object_mut().unwrap().remove("queries").unwrap();
    let mut lines_of: Vec<(Vec<u8>, &str)> = (0..USERS).map(|n| (lines([user(n)]), "")).collect();
    let mut insert = |at: usize, bytes: Vec<u8>, said| lines_of.insert(at, (bytes, said));
    insert(
        1,
        lines([user(0)]),
        "user user 0: a second record of this user (the first is on line 1)",
    );
    insert(3, b"{\"id\": \"\xff\xfe\"}\n".to_vec(), "not UTF-8 at byte 8");
    insert(4, lines([empty]), "user no past: the history is empty");
    insert(6, lines([typo]), "unknown key \"querys\"");
    insert(7, b"{\"id\": \"cut\", \"history\": [{\"te\n".to_vec(), "not valid JSON");
    insert(9, lines([renamed(23, &"n".repeat(LONG_ID + 1))]), "4097 bytes, at most 4096");
    insert(10, b"[[[[[[[[[[[[[[[[\n".to_vec(), "must be an object");
    insert(11, lines([renamed(24, "")]), "is empty");
    let said =
        lines_of.iter().enumerate().filter(|(_, l)| !l.1.is_empty()).map(|(i, l)| (i + 1, l.1));
    let said = said.collect();
    let mut file: Vec<u8> = lines_of.into_iter().flat_map(|l| l.0).collect();
    // Strange, but users like any other.
    for (n, id) in STRANGE.iter().enumerate() {
        file.extend(lines([renamed(30 + n, id)]));
    }
    file.extend(lines([renamed(40, &"n".repeat(LONG_ID)), bad_item]));
    (file, said)
}

const STRANGE: [&str; 6] = ["../../x", "/etc/x", "nul\0l", "a\nb\u{1b}[2J", "..", "con.txt:$DATA"];

#[test]
fn bad_users_are_put_aside_and_the_others_are_untouched() {
    let story = Story::new();
    let (file, said) = hostile_file();
    story.put("personal.jsonl", &file);
    for ranks in [0, 2] {
        let folder = format!("run{ranks}");
        let ended = story.run_on(ranks, &["--set", &format!("run.out_dir={folder}")]).run().must(5);
        for (line, what) in &said {
            let place = format!("personal.jsonl:{line}: ");
            let found = ended.stderr.lines().any(|l| l.contains(&place) && l.contains(what));
            assert!(found, "line {line} ({what}) is not named in\n{}", ended.stderr);
        }
        let ended = ended.says(&["user long winded", "no supervised token is left"]);
        assert!(!ended.stderr.contains('\u{1b}'), "an id reached the terminal unescaped");
        let adapters = story.adapters(&folder);
        assert_eq!(adapters.len(), USERS + STRANGE.len() + 1);
        for n in 0..USERS {
            let name = format!("user {n}");
            assert!(adapters[&name] == reference().adapters[&name], "{name} got another adapter");
        }
        for id in STRANGE {
            assert!(adapters.contains_key(id), "{id:?} has no adapter");
        }
        story.launcher(&["verify", "--run", &folder]).run().must(0);
        // Nothing is trained again, and the answer stays the same.
        let before = story.files(&format!("{folder}/store"));
        story.run_on(ranks, &["--set", &format!("run.out_dir={folder}")]).run().must(5);
        assert_eq!(before, story.files(&format!("{folder}/store")));
    }
    let stray = |name: &str| name == "x" || name.starts_with("nul") || name.starts_with("con.txt");
    for path in story.files(".").keys() {
        let name = path.file_name().unwrap().to_string_lossy();
        assert!(!stray(&name) && name.len() < 100, "an id became a file: {}", path.display());
    }
    for above in ["../x", "../../x"] {
        assert!(!story.path(above).exists(), "written outside the run folder");
    }
}

#[test]
fn strict_stops_at_the_first() {
    let story = Story::new();
    story.put("personal.jsonl", &hostile_file().0);
    let strict = ["--set", "data.strict=true"];
    story.run(&strict).must(3).says(&["personal.jsonl:2: ", "a second record"]);
    story.run_on(2, &strict).run().must(3).says(&["personal.jsonl:2: "]);
    assert!(!story.path("run").exists());
    // Readable, but not trainable.
    let mut users: Vec<_> = (0..3).map(user).collect();
    users[1]["history"][2]["text"] = "word ".repeat(100).into();
    story.put("personal.jsonl", &lines(users));
    story.run(&strict).must(3).says(&["user 1", "no supervised token is left"]);
}

#[test]
fn check_lists_everything() {
    let story = Story::new();
    let (file, said) = hostile_file();
    story.put("personal.jsonl", &file);
    let check = ["prepare", "--check", "personal.jsonl"];
    let listed = story.launcher(&check).run().must(5);
    for (line, what) in &said {
        let place = format!("personal.jsonl:{line}: ");
        let found = listed.stderr.lines().any(|l| l.contains(&place) && l.contains(what));
        assert!(found, "line {line} ({what}) is not named in\n{}", listed.stderr);
    }
    assert_eq!(listed.stderr.lines().count(), said.len(), "{}", listed.stderr);
    assert!(listed.stdout.contains(&format!("{} problems", said.len())), "{}", listed.stdout);
    story.launcher(&[&check[..], &["--strict"]].concat()).run().must(3);
    story.put("personal.jsonl", &lines((0..USERS).map(user)));
    let good = story.launcher(&check).run().must(0);
    assert!(good.stdout.contains("12 users"), "{}", good.stdout);
    assert_eq!(good.stderr, "");
}

#[test]
fn nobody_left_is_an_error() {
    let story = Story::new();
    story.put("personal.jsonl", b"");
    story.run(&[]).must(3).says(&["personal.jsonl"]);
}

#[test]
fn a_diverging_user_is_put_aside_alone() {
    let story = Story::new();
    // Decay with lr * wd = 100 grows every weight 99-fold a step, until it overflows.
    let text = "[engine]";
    let wild = "[[individual.override]]\nusers = [\"user 5\"]\nlearning_rate = 10.0\nweight_decay = 10.0\n\
                clip_norm = 0.0\nepochs = 40\nschedule = \"constant\"\n\n[engine]";
    story.edit_config(text, wild);
    for ranks in [0, 2] {
        let folder = format!("run{ranks}");
        let set = format!("run.out_dir={folder}");
        story
            .run_on(ranks, &["--set", &set])
            .run()
            .must(5)
            .says(&["put aside: user user 5: step "]);
        // The config names the wild user, so its hash in the head of every adapter is another one.
        let adapters = story.adapters(&folder);
        for (user, weights) in &reference().adapters {
            let now = adapters.get(user).map(|w| numbers(w));
            let expected = (user != "user 5").then_some(numbers(weights));
            assert!(now == expected, "{user} beside a diverging user");
        }
        let predictions = story.predictions(&folder);
        assert!(predictions["base"] == reference().predictions["base"]);
        let kept: String = reference().predictions["personal"]
            .lines()
            .filter(|l| !l.contains("\"user 5\""))
            .flat_map(|l| [l, "\n"])
            .collect();
        assert!(predictions["personal"] == kept);
        let aside =
            |e: &&serde_json::Value| e["event"] == "user_quarantined" && e["user"] == "user 5";
        assert_eq!(story.events(&folder).iter().filter(aside).count(), 1);
        story.run_on(ranks, &["--set", &set]).run().must(5);
        assert_eq!(story.events(&folder).iter().filter(aside).count(), 1, "tried again");
    }
}

#[test]
fn a_diverging_population_is_an_error_with_a_hint() {
    let story = Story::new();
    let wild = [
        "learning_rate=10.0",
        "weight_decay=10.0",
        "clip_norm=0.0",
        "epochs=20",
        "schedule=constant",
    ]
    .map(|set| format!("population.{set}"));
    let sets: Vec<&str> = wild.iter().flat_map(|set| ["--set", set]).collect();
    for ranks in [0, 2] {
        story
            .run_on(ranks, &sets)
            .run()
            .must(3)
            .says(&["diverged", "hint: lower population.learning_rate"]);
    }
    assert!(!story.path("run/population/merged.myriad").exists());
}

#[test]
fn a_population_of_nobody_is_an_error_with_a_hint() {
    let story = Story::new();
    // The same people in both files: they must not teach what all share, so nobody is left.
    story.put("population.jsonl", &story.read("personal.jsonl"));
    story.run(&[]).must(3).says(&["the population has no usable example", "population.enabled"]);
    let without = ["--set", "population.enabled=false", "--set", "run.out_dir=alone"];
    let arms = ["--set", "run.arms=[\"base\", \"personal\"]"];
    story.run(&[&without[..], &arms].concat()).must(5).says(&["also among the personal users"]);
    assert_eq!(story.adapters("alone").len(), USERS);
}
