//! Plans for GPUs, on machines that need not have one: parts that add up, sizes that fit, refusals with numbers.

use crate::process::{Ended, Start, root};
use crate::story::Story;
use std::path::{Path, PathBuf};

const PARTS: [&str; 7] =
    ["base", "activations", "adapters", "optimiser", "workspace", "tables", "reserve"];

fn plan(story: &Story, more: &[&str]) -> Ended {
    let start = ["plan", "--config", "config.toml", "--set", "engine.device=cuda"];
    story.launcher(&[&start[..], more].concat()).run()
}

/// GB in the line of a plan that begins with a name.
fn gb(plan: &str, name: &str) -> f64 {
    let line = plan.lines().find(|line| line.starts_with(name));
    let line = line.unwrap_or_else(|| panic!("{name:?} is missing in\n{plan}"));
    let number = line.strip_prefix(name).unwrap().split_whitespace().next().unwrap();
    number.parse().unwrap_or_else(|_| panic!("{line:?} has no number"))
}

/// The parts add up to the total, which is what the plan says that it needs.
fn check_sum(plan: &str) -> f64 {
    let total = gb(plan, "GPU memory");
    let sum: f64 = PARTS.iter().map(|part| gb(plan, &format!("  {part} "))).sum();
    // Each is printed in steps of 0.01.
    assert!((sum - total).abs() <= 0.04, "{sum} of {total}\n{plan}");
    total
}

/// A number before a word, in the line on what is in flight.
fn in_flight(plan: &str, before: &str) -> usize {
    let line = plan.lines().find(|line| line.starts_with("in flight")).unwrap();
    let words: Vec<&str> = line.split([' ', ',']).filter(|word| !word.is_empty()).collect();
    let at = words.iter().position(|word| *word == before).unwrap();
    words[at - 1].parse().unwrap()
}

#[test]
fn a_plan_for_a_gpu_needs_none() {
    let story = Story::new();
    let large = plan(&story, &["--gpu", "h100"]).must(0).stdout;
    let total = check_sum(&large);
    assert!(total < 10.0, "{large}");
    assert!(large.contains("--gpu has 84.83 GB"), "{large}");
    assert!(large.contains("packs of 8192 rows, 2 of 2 blocks stored"), "{large}");
    assert_eq!(in_flight(&large, "users"), 12);
    for line in ["population stage  ", "predictions       ", "host memory       "] {
        assert!(large.contains(line), "{line:?} is missing in\n{large}");
    }
    let key = plan(&story, &["--set", "engine.gpu_memory_gb=84.8"]).must(0).stdout;
    assert!(key.contains("engine.gpu_memory_gb is 84.80"), "{key}");
    let both = ["--gpu", "h200", "--set", "engine.gpu_memory_gb=20"];
    let both = plan(&story, &both).must(0).stdout;
    assert!(both.contains("engine.gpu_memory_gb is 20.00"), "the smaller counts: {both}");
    let two_ranks =
        ["plan", "--config", "config.toml", "--set", "engine.device=cuda", "--gpu", "h100"];
    let two = Start::new(story.root(), 2, &two_ranks).run().must(0).stdout;
    assert!(two.contains("ranks             2 with 1 threads, up to 6 users each"), "{two}");
    check_sum(&two);
    // Between GPUs gradients are gathered; a rank alone and the host's sums have none there.
    assert!(two.contains("\n  gradient sums ") && !large.contains("gradient sums"), "{two}");
    let host = [&two_ranks[..], &["--set", "engine.gradient_sum=host"]].concat();
    let host = Start::new(story.root(), 2, &host).run().must(0).stdout;
    assert!(!host.contains("gradient sums"), "{host}");
    assert!(!story.path("run").exists(), "a plan starts nothing");
    assert!(!story.path("cache").exists(), "a plan for a GPU converts no base");
}

/// With less memory fewer rows and fewer stored blocks, and never more than there is.
#[test]
fn sizes_follow_the_memory() {
    let story = Story::new();
    let many = ["--set", "engine.users_in_flight=12", "--set", "individual.lora_rank=64"];
    let (mut rows, mut fitted, mut refused) = (usize::MAX, 0, 0);
    for room in ["2", "1.2", "1.1", "1.075", "1.06", "1.04", "1.01"] {
        let ended = plan(&story, &[&["--gpu", room], &many[..]].concat());
        if ended.code != 0 {
            let there = format!("--gpu has {:.2} GB", room.parse::<f64>().unwrap());
            ended.must(3).says(&["GB: base ", ", activations ", &there, "hint: lower engine."]);
            refused += 1;
            continue;
        }
        assert_eq!(refused, 0, "{room} GB do and more do not");
        let text = ended.stdout;
        assert!(check_sum(&text) <= room.parse::<f64>().unwrap() + 0.005, "{text}");
        let now = in_flight(&text, "rows");
        assert!(now <= rows && now >= 2048, "{text}");
        (rows, fitted) = (now, fitted + 1);
    }
    assert!(fitted >= 2 && refused >= 1, "{fitted} fit, {refused} refused");
    assert!(rows < 8192, "no plan took smaller packs");
    // What is asked for is kept or refused, never changed.
    let asked = ["--gpu", "1.25", "--set", "engine.pack_tokens=60000"];
    plan(&story, &[&asked[..], &many[..]].concat())
        .must(3)
        .says(&["packs of 60000 rows and 12 users in flight need "]);
}

#[test]
fn what_is_told_wrong_is_refused() {
    let story = Story::new();
    for bad in ["h300", "0", "-3", "80GB"] {
        let gpu = format!("--gpu={bad}");
        plan(&story, &[&gpu]).must(2).says(&["a100-40, a100-80, h100, h200"]);
    }
    let cpu = ["plan", "--config", "config.toml", "--gpu", "h100"];
    story.launcher(&cpu).run().must(3).says(&["engine.device is \"cpu\"", "hint: "]);
    plan(&story, &["--set", "engine.gpu_memory_gb=-1"]).must(3).says(&["engine.gpu_memory_gb"]);
    if Path::new("/dev/nvidia0").exists() {
        eprintln!("SKIPPED: this machine has a GPU");
        return;
    }
    let untold = ["nothing says how much memory the GPU has", "no GPU on ", "hint: ", "--gpu"];
    plan(&story, &[]).must(3).says(&untold);
    story.run(&["--dry-run", "--set", "engine.device=cuda"]).must(3).says(&untold);
    // The key bounds a device; it does not stand for one when something is to be computed.
    let run = ["--set", "engine.device=cuda", "--set", "engine.gpu_memory_gb=10"];
    story.run(&run).must(3).says(&["no GPU on "]);
    assert!(!story.path("run").exists());
}

#[expect(clippy::disallowed_methods, reason = "tests read where set-up put the model")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// SmolLM2-135M for real people on the GPUs that there are: seconds, and numbers that can be checked by hand.
#[test]
fn the_real_model_on_every_gpu() {
    if variable("MYRIAD_TEST_QUICK").is_some() {
        eprintln!("SKIPPED: MYRIAD_TEST_QUICK leaves out the real model");
        return;
    }
    let home = || PathBuf::from(variable("HOME").unwrap()).join(".cache/myriad");
    let cache = variable("MYRIAD_CACHE").map_or_else(home, PathBuf::from);
    let story = Story::new();
    let config = root().join("configs/oppu_ml100k_cpu.toml");
    let of = |gpu: &str| {
        let out = format!("run.out_dir={}", story.path("run").display());
        let base = format!("base.cache_dir={}", story.path("prepared").display());
        let mut args = vec!["plan", "--config", config.to_str().unwrap(), "--gpu", gpu];
        for set in ["engine.device=cuda", "engine.threads=1", &out, &base] {
            args.extend(["--set", set]);
        }
        Start::new(story.root(), 0, &args).env("MYRIAD_CACHE", &cache).run().must(0).stdout
    };
    for (gpu, gib) in [("a100-40", 39.0), ("h200", 139.0)] {
        let text = of(gpu);
        let there = gib * f64::from(1 << 30) / 1e9;
        assert!(check_sum(&text) <= there, "{text}");
        // 134.5 million weights of two bytes, most of them in blocks that they do not fill.
        assert!((0.27..=0.31).contains(&gb(&text, "  base ")), "{text}");
        assert!(text.contains("packs of 8192 rows, 30 of 30 blocks stored"), "{text}");
    }
    let small = of("4");
    assert!(check_sum(&small) <= 4.0, "{small}");
    assert!(in_flight(&small, "rows") < 8192 || !small.contains("30 of 30"), "{small}");
    assert!(!story.path("prepared").exists(), "a plan converts nothing");
}
