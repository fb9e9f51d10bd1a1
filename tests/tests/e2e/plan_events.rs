//! Plans of PITuning configs for GPUs, on machines that need not have one: stages and parts that add up, sizes that fit,
//! refusals with numbers; on processors nothing is other than before.

use crate::pituning::story;
use crate::process::{Ended, Start, root};
use crate::story::Story;
use std::path::Path;

const PARTS: usize = 6;
const STAGES: [&str; 6] =
    ["population", "its answers", "distil", "student's answers", "tuning", "predictions"];

fn plan(story: &Story, more: &[&str]) -> Ended {
    let start = ["plan", "--config", "config.toml", "--set", "engine.device=cuda"];
    story.launcher(&[&start[..], more].concat()).run()
}

/// MB of a stage by part, and the whole; its rows.
fn stage(plan: &str, name: &str) -> ([f64; PARTS], f64, usize) {
    let start = format!("  {name:<18}");
    let line = plan.lines().find_map(|line| line.strip_prefix(start.as_str()));
    let line = line.unwrap_or_else(|| panic!("{name:?} is missing in\n{plan}"));
    let numbers: Vec<f64> = line.split_whitespace().map(|n| n.parse().unwrap()).collect();
    assert_eq!(numbers.len(), PARTS + 2, "{line:?}");
    let rows = line.split_whitespace().next().unwrap().parse().unwrap();
    (numbers[1..=PARTS].try_into().unwrap(), numbers[PARTS + 1], rows)
}

/// Each stage's parts add up to its whole, and the most of these is what the plan says that a rank needs: GB.
fn check_sums(plan: &str, stages: &[&str]) -> f64 {
    let mut most: f64 = 0.0;
    for name in stages {
        let (parts, whole, _) = stage(plan, name);
        // Each is printed in steps of 0.1; the reserve is a GB.
        let sum = parts.iter().sum::<f64>() + 1000.0;
        assert!((sum - whole).abs() <= 0.4, "{name}: {sum} of {whole}\n{plan}");
        most = most.max(whole);
    }
    let line = plan.lines().find_map(|line| line.strip_prefix("GPU memory")).unwrap();
    let total: f64 = line.split_whitespace().next().unwrap().parse().unwrap();
    assert!((total * 1e3 - most).abs() <= 5.1, "{total} GB of {most} MB\n{plan}");
    total
}

/// Rows of a pack and people in flight while people are tuned.
fn tuning(plan: &str) -> (usize, usize) {
    let line = plan.lines().find(|line| line.starts_with("tuning ")).unwrap();
    let number = |word: &str| word.parse::<usize>().ok();
    let numbers: Vec<usize> = line.split_whitespace().filter_map(number).collect();
    (numbers[0], numbers[1])
}

#[test]
fn a_plan_for_a_gpu_needs_none() {
    let story = story();
    let large = plan(&story, &["--gpu", "h100"]).must(0).stdout;
    assert!(check_sums(&large, &STAGES) < 2.0, "{large}");
    assert!(large.contains("; --gpu has 84.83 GB\n"), "{large}");
    assert_eq!(tuning(&large), (8192, 12), "{large}");
    assert!(large.contains("\nhost memory       "), "{large}");
    for (name, rows) in [("population", 2048), ("distil", 2048), ("tuning", 8192)] {
        assert_eq!(stage(&large, name).2, rows, "{large}");
    }
    let whole = plan(&story, &["--gpu", "h100", "--set", "individual.tune=all"]).must(0).stdout;
    check_sums(&whole, &STAGES[..5]);
    assert!(!whole.contains("people in flight") && !whole.contains("predictions"), "{whole}");
    let alone =
        ["--gpu", "h100", "--set", "distill.enabled=false", "--set", "run.arms=[\"population\"]"];
    let alone = plan(&story, &alone).must(0).stdout;
    check_sums(&alone, &["population", "student's answers"]);
    assert!(!alone.contains("distil") && !alone.contains("people in flight"), "{alone}");
    let key = plan(&story, &["--set", "engine.gpu_memory_gb=40"]).must(0).stdout;
    assert!(key.contains("engine.gpu_memory_gb is 40.00"), "{key}");
    let two = ["plan", "--config", "config.toml", "--set", "engine.device=cuda", "--gpu", "h100"];
    let two = Start::new(story.root(), 2, &two).run().must(0).stdout;
    assert_eq!(tuning(&two), (8192, 6), "{two}");
    check_sums(&two, &STAGES);
    assert!(!story.path("run").exists(), "a plan starts nothing");
}

/// The shipped config, and one at the paper's sizes.
#[test]
fn shipped_configs_are_planned() {
    let story = story();
    let of = |more: &[&str]| {
        let config = root().join("configs/pituning_generated_cpu.toml");
        let out = format!("run.out_dir={}", story.path("run").display());
        let start = ["plan", "--config", config.to_str().unwrap(), "--gpu", "h100"];
        let sets = ["--set", "engine.device=cuda", "--set", "engine.threads=1", "--set", &out];
        let args = [&start[..], &sets[..], more].concat();
        Start::new(story.root(), 0, &args).run().must(0).stdout
    };
    let small = of(&[]);
    let total = check_sums(&small, &STAGES);
    assert_eq!(tuning(&small), (8192, 256), "{small}");
    // A model that trains whole has a gradient and two moments, a model that is asked has none to speak of.
    let ([base, _, gradient, moments, ..], ..) = stage(&small, "population");
    assert!(gradient > 1.4 && (moments - 2.0 * gradient).abs() <= 0.2, "{small}");
    let ([asked, _, none, ..], ..) = stage(&small, "its answers");
    assert_eq!((asked, none), (base, 0.0), "{small}");
    let large = of(&["--variant", "gpt2-small", "--variant", "paper-student"]);
    assert!(check_sums(&large, &STAGES) > total, "{large}");
    // 85 million parameters: four bytes each, two of the blocks' form for products; their gradient.
    let ([base, _, gradient, moments, ..], ..) = stage(&large, "population");
    assert!((450.0..700.0).contains(&base) && (335.0..360.0).contains(&gradient), "{large}");
    assert!((moments - 2.0 * gradient).abs() < 3.0, "{large}");
}

/// With less memory fewer people and smaller packs, never more than there is; what is asked for is kept or refused.
#[test]
fn sizes_follow_the_memory() {
    let story = story();
    let (mut before, mut fitted, mut refused) = ((usize::MAX, usize::MAX), 0, 0);
    for room in ["2", "1.07", "1.06", "1.055", "1.052", "1.045", "1.04"] {
        let ended = plan(&story, &["--gpu", room]);
        if ended.code != 0 {
            let there = format!("--gpu has {:.2} GB", room.parse::<f64>().unwrap());
            ended.must(3).says(&[
                "packs of ",
                "GB: base ",
                ", activations ",
                &there,
                "hint: lower ",
            ]);
            refused += 1;
            continue;
        }
        assert_eq!(refused, 0, "{room} GB do and more do not");
        let text = ended.stdout;
        assert!(check_sums(&text, &STAGES) <= room.parse::<f64>().unwrap() + 0.005, "{text}");
        let now = tuning(&text);
        assert!(now.0 <= before.0 && now.1 <= before.1 && now.0 >= 2048, "{text}");
        (before, fitted) = (now, fitted + 1);
    }
    assert!(fitted >= 2 && refused >= 1, "{fitted} fit, {refused} refused");
    assert!(before.0 < 8192, "no plan took smaller packs");
    let asked = ["--gpu", "1.3", "--set", "engine.pack_tokens=600000"];
    plan(&story, &asked).must(3).says(&["population: packs of 600000 rows need "]);
    let asked = ["--gpu", "1.3", "--set", "engine.users_in_flight=7"];
    assert_eq!(tuning(&plan(&story, &asked).must(0).stdout).1, 7);
}

#[test]
fn what_is_told_wrong_is_refused() {
    let story = story();
    let cpu = ["plan", "--config", "config.toml", "--gpu", "h100"];
    story.launcher(&cpu).run().must(3).says(&["engine.device is \"cpu\"", "hint: "]);
    if Path::new("/dev/nvidia0").exists() {
        eprintln!("SKIPPED: this machine has a GPU");
        return;
    }
    plan(&story, &[]).must(3).says(&[
        "nothing says how much memory the GPU has",
        "hint: ",
        "--gpu",
    ]);
    let run = ["--set", "engine.device=cuda", "--set", "engine.gpu_memory_gb=10"];
    story.run(&run).must(3).says(&["no GPU on "]);
    assert!(!story.path("run").exists());
}
