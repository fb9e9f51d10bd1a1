//! What a PITuning run is told: refused where it is wrong, by file and key, without a trace; printed and planned.

use crate::pituning::{sets, story};
use crate::pituning_parts::of_log;
use crate::process::Start;

const HEADER: &str = "user,time,event,location\n";

#[test]
fn what_is_wrong_is_named_and_leaves_nothing() {
    let story = story();
    let wrong = |key: &str, says: &[&str]| {
        story.run(&["--set", key]).must(3).says(says);
        assert!(!story.path("run").exists(), "{key}");
    };
    wrong("model.hidden=25", &["model.heads", "= 2 does not divide model.hidden = 25"]);
    wrong("distill.heads=3", &["distill.heads", "distill.hidden = 16"]);
    wrong("model.widow=8", &["model.widow", "did you mean `window`?"]);
    wrong("run.arms=[\"permuted\"]", &["run.arms", "permuted", "personal"]);
    wrong("run.arms=[\"nobody\"]", &["run.arms", "nobody"]);
    wrong("run.method=\"other\"", &["run.method", "other"]);
    wrong("individual.targets=[\"q\"]", &["individual.targets", "c_attn"]);
    wrong("data.generator.intents=1", &["intents", "hint:"]);
    wrong("data.generator.peple=1", &["peple", "hint:"]);
    wrong("data.train=0.95", &["data.train", "data.validation"]);
    wrong("data.preset=\"lsapp\"", &["data.preset", "source = \"generated\""]);
    wrong("model.pretrained=\"nowhere\"", &["nowhere", "hint:"]);
}

#[test]
fn a_budget_that_is_too_small_may_be_raised() {
    let story = story();
    let keys = ["model.hidden=96", "population.epochs=1", "run.arms=[\"teacher\", \"population\"]"];
    let with = |memory| sets(&[&keys[..], &[memory]].concat());
    story
        .run(&with("engine.memory_gb=0.01"))
        .must(3)
        .says(&["GB are needed", "engine.memory_gb is 0.01"]);
    assert!(!story.path("run/population").exists());
    story.run(&with("engine.memory_gb=1.0")).must(0);
}

#[test]
fn logs_that_cannot_be_read_are_named() {
    let row = "a,1700000000,sit,home\n";
    // Content of the log, a key over the config, what is said.
    for (log, key, says) in [
        ("user,time,location\n", None, &["log.csv", "event"][..]),
        ("", None, &["log.csv"]),
        (HEADER, None, &["log.csv"]),
        (row, None, &["log.csv", "user"]),
        (
            &format!("{HEADER}{row}"),
            Some("data.format.columns.event=\"what\""),
            &["log.csv", "what"],
        ),
        (&format!("{HEADER}{row}"), Some("data.preset=\"lsap\""), &["lsap", "lsapp"]),
        (&format!("{HEADER}{row}"), Some("data.format.colums=1"), &["colums", "columns"]),
        (&format!("{HEADER}{row}"), Some("data.files=[\"nolog.csv\"]"), &["nolog.csv"]),
        (
            &format!("{HEADER}a,yesterday,sit,home\n"),
            Some("data.strict=true"),
            &["log.csv:2", "yesterday"],
        ),
    ] {
        let story = of_log(log.as_bytes());
        let key = key.map_or_else(Vec::new, |key| sets(&[key]));
        story.run(&key).must(3).says(says).says(&["hint:"]);
        assert!(!story.path("run").exists(), "{log:?} {key:?}");
    }
}

#[test]
fn every_rank_ends_where_one_finds_the_fault() {
    let story = of_log(b"user,time,location\n");
    story.run_on(2, &[]).run().must(3).says(&["log.csv", "event"]);
    assert!(!story.path("run").exists());
}

#[test]
fn another_config_or_log_is_refused_with_the_difference() {
    let story = story();
    story.run(&[]).must(0);
    let before = story.files("run");
    for (key, says) in [
        ("individual.learning_rate=0.009", ["individual.learning_rate", "0.005", "0.009"]),
        ("data.generator.noise=0.1", ["data_fingerprint", "data.generator", "0.1"]),
        ("distill.hidden=18", ["base_hash", "distill.hidden", "18"]),
        ("population.frozen_blocks=1", ["population.frozen_blocks", "0", "1"]),
    ] {
        story.run(&["--set", key]).must(3).says(&says).says(&["hint:"]);
        story.run_on(2, &["--set", key]).run().must(3).says(&says);
    }
    assert!(before == story.files("run"), "a refused run left something");
}

#[test]
fn a_plan_and_a_printed_config_start_nothing() {
    let story = story();
    let plan = story.run(&["--dry-run"]).must(0).stdout;
    for line in [
        "people            12, ",
        "intents           12",
        "population model  ",
        "student           ",
    ] {
        assert!(plan.contains(line), "{line:?} is missing in\n{plan}");
    }
    assert_eq!(story.launcher(&["plan", "--config", "config.toml"]).run().must(0).stdout, plan);
    let two = story.run_on(2, &["--dry-run"]).run().must(0).stdout;
    assert!(two.contains("ranks             2 with"), "{two}");
    let printed = story.run(&["--set", "unlearn.beta=0.5", "--print-config"]).must(0).stdout;
    assert!(printed.contains("beta = 0.5"), "{printed}");
    story.put("printed.toml", printed.as_bytes());
    let again = story.launcher(&["run", "--config", "printed.toml", "--print-config"]).run();
    assert_eq!(again.must(0).stdout, printed);
    assert!(!story.path("run").exists());
}

/// The device table: parameters as the plan counts them, time and memory of both models, the adapters' below the whole.
#[test]
fn the_device_table_has_both_models() {
    let story = story();
    let plan = story.run(&["--dry-run"]).must(0).stdout;
    let planned = |line: &str| -> u64 {
        let line = plan.lines().find(|l| l.starts_with(line)).unwrap();
        line.split_whitespace().find_map(|word| word.parse().ok()).unwrap()
    };
    let table =
        story.launcher(&["bench", "device", "--config", "config.toml"]).run().must(0).stdout;
    let numbers = |name: &str| -> Vec<f64> {
        let row = table.lines().find_map(|l| l.strip_prefix(name));
        let row = row.unwrap_or_else(|| panic!("no {name} in\n{table}"));
        row.split_whitespace().filter_map(|word| word.parse().ok()).collect()
    };
    #[expect(clippy::cast_precision_loss, reason = "some thousand parameters")]
    let exactly = |n: u64| n as f64;
    let (teacher, adapters) = (numbers("population model "), numbers("student, adapters"));
    let student = numbers("student          ");
    assert_eq!(teacher[..2], [exactly(planned("population model")); 2]);
    assert_eq!(student[..2], [exactly(planned("student")); 2]);
    assert_eq!(adapters[..2], [student[0], exactly(planned("a person's part"))]);
    for row in [&teacher, &student, &adapters] {
        assert!(row.len() == 4 && row[2] > 0.0 && row[2] < 1000.0 && row[3] > 0.0, "{table}");
    }
    assert!(student[3] < teacher[3], "{table}");
    partly(&story, &teacher);
    let bench = ["bench", "device", "--config", "config.toml"];
    for flag in ["--print-config", "--dry-run"] {
        let of =
            |command: &[&str]| story.launcher(&[command, &[flag]].concat()).run().must(0).stdout;
        assert_eq!(of(&bench), of(&["run", "--config", "config.toml"]), "{flag}");
    }
    assert!(!story.path("run").exists());
    // A language model's config has no such table.
    let other = crate::story::Story::new();
    let bench = Start::new(other.root(), 0, &["bench", "device", "--config", "config.toml"]);
    bench.run().must(3).says(&["hint:"]);
}

/// With one block of two frozen: a row more, of fewer parameters and less memory, as the plan has them.
fn partly(story: &crate::story::Story, teacher: &[f64]) {
    let frozen = ["--set", "population.frozen_blocks=1"];
    let bench = ["bench", "device", "--config", "config.toml"];
    let table = story.launcher(&[&bench[..], &frozen].concat()).run().must(0).stdout;
    let row = table.lines().find_map(|l| l.strip_prefix("population, partly")).unwrap();
    let row: Vec<f64> = row.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert_eq!(row[..1], teacher[..1], "{table}");
    assert!(row[1] < teacher[1] && row[3] < teacher[3], "{table}");
    let plan = story.run(&[&["--dry-run"], &frozen[..]].concat()).must(0).stdout;
    let counts = format!("population model  {} parameters, {} of them trained", row[0], row[1]);
    assert!(plan.contains(&counts), "{counts} is missing in\n{plan}");
    let too_many = ["--set", "population.frozen_blocks=3", "--dry-run"];
    story.run(&too_many).must(3).says(&["population.frozen_blocks", "model.layers = 2"]);
}

/// What scripts/compare/pituning gives to PyTorch: everybody's steps, with as many losses, and as many parameters as said.
#[test]
fn what_is_tuned_can_be_dumped() {
    let story = story();
    let bench = ["bench", "tune", "--config", "config.toml", "--users", "4", "--repetitions", "1"];
    let dump = [&bench[..], &["--dump", "case", "--json", "result.json"]].concat();
    story.launcher(&dump).run().must(3).says(&["dropout", "hint: set individual.dropout to 0"]);
    assert!(!story.path("case").exists());
    story.launcher(&[&dump[..], &["--set", "individual.dropout=0"]].concat()).run().must(0);
    let json = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(story.path(name)).unwrap()).unwrap()
    };
    let (case, result) = (json("case/case.json"), json("result.json"));
    let count = |value: &serde_json::Value| value.as_array().unwrap().len();
    let number = |key: &str| usize::try_from(result[key].as_u64().unwrap()).unwrap();
    assert_eq!((count(&case["people"]), number("users")), (4, 4));
    let mut all = 0;
    for person in case["people"].as_array().unwrap() {
        let passes = person["passes"].as_array().unwrap();
        let steps: usize = passes.iter().map(|pass| count(&pass["steps"])).sum();
        let rates: usize = passes.iter().map(|pass| count(&pass["rates"])).sum();
        assert_eq!((steps, rates), (count(&person["losses"]), steps), "{person}");
        all += steps;
    }
    assert_eq!(all, number("one_by_one_steps"));
    let size = |name: &str| std::fs::read(story.path("case").join(name)).unwrap().len() / 4;
    assert_eq!(size("student.bin"), number("student_parameters"));
    assert_eq!(size("adapters.bin"), 4 * number("own_parameters"));
}
