//! Configs: printed as they are meant, refused where they are wrong, without a trace on disk.

use crate::story::Story;

#[test]
fn a_printed_config_is_that_config() {
    let story = Story::new();
    let sets = ["--set", "individual.learning_rate=0.005", "--set", "predict.top_k=7"];
    let first = story.run(&[&sets[..], &["--print-config"]].concat()).must(0).stdout;
    assert!(first.contains("learning_rate = 0.005"), "{first}");
    story.put("printed.toml", first.as_bytes());
    let again =
        story.launcher(&["run", "--config", "printed.toml", "--print-config"]).run().must(0);
    assert_eq!(again.stdout, first);
    assert!(!story.path("run").exists());
    assert!(!story.path("cache").exists(), "printing a config prepared the base");
}

#[test]
fn shipped_configs_resolve() {
    let story = Story::new();
    let (mut methods, mut cached) = (std::collections::BTreeMap::new(), 0);
    for entry in std::fs::read_dir(crate::process::root().join("configs")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let (method, _) = name.split_once('_').unwrap();
        let command = if method == "study" { "study" } else { "run" };
        let print = |path: &str| {
            let config = [command, "--config", path, "--print-config"];
            story.launcher(&config).run().must(0).stdout
        };
        let printed = print(path.to_str().unwrap());
        // Logs of one's own and generated people need nothing of the cache; whoever names it gets it.
        if std::fs::read_to_string(&path).unwrap().contains("${MYRIAD_CACHE}")
            || method != "pituning"
        {
            assert!(printed.contains(story.path("cache").to_str().unwrap()), "{name}: {printed}");
            cached += 1;
        }
        assert_eq!(printed.contains("method = \"pituning\""), method == "pituning", "{name}");
        if method == "pituning" {
            story.put("printed.toml", printed.as_bytes());
            assert_eq!(print("printed.toml"), printed, "{name}");
        }
        *methods.entry(method.to_owned()).or_insert(0) += 1;
    }
    for (method, least) in [("lamp", 8), ("oppu", 10), ("study", 8), ("pituning", 5)] {
        assert!(methods.get(method).is_some_and(|n| *n >= least), "{method}: {methods:?}");
    }
    assert!(cached > 20, "{cached}");
}

#[test]
fn a_plan_starts_nothing() {
    let story = Story::new();
    let plan = story.launcher(&["plan", "--config", "config.toml"]).run().must(0).stdout;
    for line in ["users", "12 to personalise", "optimiser steps", "memory  "] {
        assert!(plan.contains(line), "{line:?} is missing in\n{plan}");
    }
    assert_eq!(story.run(&["--dry-run"]).must(0).stdout, plan);
    let three = story.run_on(3, &["--dry-run"]).run().must(0).stdout;
    assert!(three.contains("up to 4 users each"), "{three}");
    assert!(!story.path("run").exists());
}

#[test]
fn a_wrong_config_is_named_with_file_and_line() {
    let story = Story::new();
    story.edit_config("virtual_shards = 4", "virtual_shard = 4");
    let line =
        story.text("config.toml").lines().position(|l| l.starts_with("virtual_shard")).unwrap() + 1;
    let place = format!("config.toml:{line}: ");
    let said = [place.as_str(), "population.virtual_shard", "did you mean `virtual_shards`?"];
    story.run(&[]).must(3).says(&said);
    story.run_on(2, &[]).run().must(3).says(&said);
    story.edit_config("virtual_shard = 4", "virtual_shards = 0");
    story.run(&[]).must(3).says(&[&place, "population.virtual_shards", "allowed is"]);
    story.edit_config("virtual_shards = 0", "virtual_shards = ");
    story.run(&[]).must(3).says(&[&place]);
    assert!(!story.path("run").exists());
}

#[test]
fn what_is_missing_is_named() {
    let story = Story::new();
    story.launcher(&["run", "--config", "no.toml"]).run().must(3).says(&["no.toml", "hint:"]);
    story.run(&["--set", "base.path=nobase"]).must(3).says(&["nobase", "hint:"]);
    story.run(&["--set", "data.personal=nobody.jsonl"]).must(3).says(&["nobody.jsonl", "hint:"]);
    story.run(&["--set", "prompt.template=no.toml"]).must(3).says(&["no.toml", "hint:"]);
    story.run(&["--set", "individual.learning_rte=1"]).must(3).says(&["--set", "learning_rate"]);
    story.run(&["--set", "nothing"]).must(3).says(&["section.key=value"]);
    story.run(&["--set", "data.source=ml-100k"]).must(3).says(&["hint:"]);
    story.run(&["--set", "engine.memory_gb=0.01"]).must(3).says(&["budget", "engine.memory_gb"]);
    story.launcher(&["verify", "--run", "nowhere"]).run().must(3).says(&["nowhere", "hint:"]);
    let files =
        "source = \"jsonl\"\npersonal = \"personal.jsonl\"\npopulation = \"population.jsonl\"";
    story.edit_config(files, "source = \"ml-100k\"\npath = \"nofilms\"");
    story.run(&[]).must(3).says(&["personal_users", "hint:"]);
    story.run(&["--set", "data.personal_users=2"]).must(3).says(&["nofilms", "hint:"]);
}

/// A story whose config is `own.toml`, over the story's own, with two variants.
fn varied() -> Story {
    let story = Story::new();
    let own = "extends = 'shared/parts.toml'\n\
        [run]\nname = 'own'\nout_dir = 'own'\n\
        [variant.short]\nindividual.epochs = 1\npopulation.enabled = false\nrun.arms = ['base', 'personal']\n\
        [variant.short-r2.individual]\nlora_rank = 2\n";
    std::fs::create_dir(story.path("shared")).unwrap();
    let parts = story.text("config.toml");
    // Paths start at the file that says them.
    let parts = ["base", "personal.jsonl", "population.jsonl"].iter().fold(parts, |text, path| {
        text.replace(&format!("= \"{path}\""), &format!("= \"../{path}\""))
    });
    story.put("shared/parts.toml", parts.as_bytes());
    story.put("own.toml", own.as_bytes());
    story
}

#[test]
fn variants_over_files_that_are_extended() {
    let story = varied();
    let print = |more: &[&str]| {
        let args = [&["run", "--config", "own.toml", "--print-config"], more].concat();
        story.launcher(&args).run().must(0).stdout
    };
    let root = story.root().to_str().unwrap().to_owned();
    let plain = print(&[]);
    for line in ["name = \"own\"", "epochs = 2", &format!("path = \"{root}/base\"")] {
        assert!(plain.lines().any(|l| l == line), "{line:?} is not in\n{plain}");
    }
    let both =
        print(&["--variant", "short", "--variant", "short-r2", "--set", "individual.alpha=3"]);
    let folder = format!("out_dir = \"{root}/own-short-short-r2\"");
    let individual = both.split("[individual]").nth(1).unwrap();
    for (text, line) in [
        (both.as_str(), "name = \"own-short-short-r2\""),
        (&both, &folder),
        (individual, "epochs = 1"),
        (individual, "lora_rank = 2"),
        (individual, "alpha = 3.0"),
    ] {
        assert!(text.lines().any(|l| l == line), "{line:?} is not in\n{both}");
    }
    // What is printed is that run, without its parts.
    story.put("printed.toml", both.as_bytes());
    let again = story.launcher(&["run", "--config", "printed.toml", "--print-config"]).run();
    assert_eq!(again.must(0).stdout, both);

    let unknown = ["run", "--config", "own.toml", "--variant", "shirt"];
    story.launcher(&unknown).run().must(3).says(&[
        "own.toml: no variant `shirt`; there are: short, short-r2; did you mean `short`?",
        "hint:",
    ]);
    let ranks = crate::process::Start::new(story.root(), 2, &unknown).run();
    ranks.must(3).says(&["no variant `shirt`"]);

    // A variant is a run of its own, beside the others.
    let short = ["run", "--config", "own.toml", "--variant", "short"];
    story.launcher(&short).run().must(0).says(&["own-short"]);
    let arms: Vec<String> = story.answers("own-short").into_keys().collect();
    assert_eq!(arms, ["base", "personal"]);
    assert!(!story.path("own").exists() && !story.path("shared/own-short").exists());
    story.launcher(&["verify", "--run", "own-short"]).run().must(0);
}

#[test]
fn a_users_examples_may_be_shorter() {
    let story = Story::new();
    let tokens = |most: &str| {
        let set = format!("individual.max_length={most}");
        let plan = story.launcher(&["plan", "--config", "config.toml", "--set", &set]);
        let plan = plan.run().must(0).stdout;
        let line = plan.lines().find(|l| l.starts_with("individual stage")).unwrap().to_owned();
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|w| w.starts_with("tokens")).unwrap();
        words[at - 1].parse::<usize>().unwrap()
    };
    // Longer than the run's limit says nothing.
    assert_eq!(tokens("0"), tokens("100000"));
    assert!(tokens("20") < tokens("0"));
}
