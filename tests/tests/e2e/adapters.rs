//! What can be done with a finished run: export, import, verify, forget.

use crate::story::{Story, exported, numbers};
use std::path::PathBuf;

const USER: &str = "user 4";

/// A finished run.
fn finished() -> Story {
    let story = Story::new();
    story.run(&[]).must(0);
    story
}

/// Files below the run folder that hold `bytes`.
fn holding(story: &Story, bytes: &[u8]) -> Vec<PathBuf> {
    let files = story.files("run").into_keys();
    files.filter(|f| position(&std::fs::read(f).unwrap(), bytes).is_some()).collect()
}

fn position(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

#[test]
fn exports_are_peft_folders() {
    let story = finished();
    let export = ["export", "--run", "run", "--out", "out", "--user", USER, "--user", "user 3"];
    let name = ["--base-name", "some/base"];
    story.launcher(&[&export[..], &name].concat()).run().must(0).says(&["population"]);
    let users = story.json("out/users.json");
    assert_eq!(exported(&story.path("out")).len(), 2);
    let mut folders = 0;
    for entry in std::fs::read_dir(story.path("out")).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.is_dir() {
            continue;
        }
        folders += 1;
        let config = std::fs::read(folder.join("adapter_config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["peft_type"], "LORA");
        assert_eq!(config["base_model_name_or_path"], "some/base");
        let weights = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&weights).unwrap();
        // Two layers, two products, A and B.
        assert_eq!(tensors.len(), 8);
        let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
        let rank = tensors.tensor(name).unwrap().shape()[0];
        assert_eq!(config["r"], rank);
        assert!(rank == 8 || rank == 3, "{users}");
    }
    assert_eq!(folders, 2);
    let again = ["export", "--run", "run", "--out", "out"];
    story.launcher(&again).run().must(3).says(&["not empty"]);
    let nobody = ["export", "--run", "run", "--out", "other", "--user", "nobody"];
    story.launcher(&nobody).run().must(3);
    assert!(!story.path("other").exists());
}

#[test]
fn an_adapter_travels_to_another_run_and_back() {
    let story = finished();
    let one = |run: &str, user: &str, out: &str| {
        story.launcher(&["export", "--run", run, "--out", out, "--user", user]).run().must(0);
        let mut inside = std::fs::read_dir(story.path(out)).unwrap().map(|e| e.unwrap().path());
        let folder = inside.find(|p| p.is_dir()).unwrap();
        let config = std::fs::read(folder.join("adapter_config.json")).unwrap();
        (folder, config, exported(&story.path(out)).remove(user).unwrap())
    };
    let import = |run: &str, folder: &std::path::Path, user: &str| {
        let folder = folder.to_str().unwrap();
        let args = ["import", "--run", run, "--adapter", folder, "--user", user];
        story.launcher(&args).run().must(0);
    };
    story.put("personal.jsonl", &crate::story::lines([crate::story::user(1)]));
    story.run(&["--set", "run.out_dir=second"]).must(0);
    for user in [USER, "user 3"] {
        let (folder, config, weights) = one("run", user, &format!("out {user}"));
        let guest = format!("../{user}");
        import("second", &folder, &guest);
        story.launcher(&["verify", "--run", "second"]).run().must(0);
        let (folder, config_2, weights_2) = one("second", &guest, &format!("out2 {user}"));
        // Head and owner are the second run's; the numbers and what PEFT reads are the same bytes.
        assert!(numbers(&weights) == numbers(&weights_2), "changed on the way");
        assert!(config == config_2);
        import("run", &folder, user);
        import("run", &folder, user);
        let (_, config_3, weights_3) = one("run", user, &format!("out3 {user}"));
        assert!(numbers(&weights) == numbers(&weights_3) && config == config_3);
    }
    assert_eq!(story.adapters("second").len(), 3);
    assert_eq!(story.adapters("run").len(), 12);
    story.launcher(&["verify", "--run", "run"]).run().must(0);
}

/// The folder of a user's adapter, exported from a run.
fn peft_folder(story: &Story, run: &str, user: &str, out: &str) -> PathBuf {
    story.launcher(&["export", "--run", run, "--out", out, "--user", user]).run().must(0);
    let mut inside = std::fs::read_dir(story.path(out)).unwrap().map(|e| e.unwrap().path());
    inside.find(|p| p.is_dir()).unwrap()
}

fn target_modules(folder: &std::path::Path) -> Vec<String> {
    let config = std::fs::read(folder.join("adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    serde_json::from_value(config["target_modules"].clone()).unwrap()
}

/// Targets are a user's own: same numbers as in a run of those targets alone, own modules in the export, and in another
/// run a guest whose answers are those of the run it comes from.
#[test]
fn users_have_targets_of_their_own() {
    let story = Story::new();
    let own = "[[individual.override]]\nusers = [\"user 5\"]\ntargets = [\"k\", \"o\", \"down\"]\nlora_rank = 2\n";
    story.edit_config("[engine]", &format!("{own}\n[engine]"));
    story.run(&["--set", "engine.users_in_flight=12"]).must(0);
    let mixed = story.adapters("run");
    let common = &crate::story::reference().adapters;
    for number in (0..12).filter(|&n| n != 5) {
        let user = format!("user {number}");
        assert!(
            numbers(&mixed[&user]) == numbers(&common[&user]),
            "{user} noticed the targets of user 5"
        );
    }
    story.put("personal.jsonl", &crate::story::lines([crate::story::user(5)]));
    let sets =
        ["--set", "individual.targets=[\"k\", \"o\", \"down\"]", "--set", "individual.lora_rank=2"];
    story.edit_config(own, "");
    story.run(&[&sets[..], &["--set", "run.out_dir=alone"]].concat()).must(0);
    assert!(numbers(&mixed["user 5"]) == numbers(&story.adapters("alone")["user 5"]));
    let folder = peft_folder(&story, "run", "user 5", "out");
    assert_eq!(target_modules(&folder), ["k_proj", "o_proj", "down_proj"]);
    assert_eq!(target_modules(&peft_folder(&story, "run", USER, "out 4")), ["q_proj", "v_proj"]);
    // A run that adapts q and v takes the adapter and answers with it.
    story.run(&["--set", "run.out_dir=guest"]).must(0);
    let answers = |run: &str| story.text(&format!("{run}/predictions/personal.jsonl"));
    assert_ne!(answers("guest"), answers("alone"));
    let import = ["import", "--run", "guest", "--adapter", folder.to_str().unwrap()];
    story.launcher(&[&import[..], &["--user", "user 5"]].concat()).run().must(0);
    std::fs::remove_file(story.path("guest/predictions/personal.jsonl")).unwrap();
    story.run(&["--set", "run.out_dir=guest"]).must(0);
    assert_eq!(answers("guest"), answers("alone"));
    story.launcher(&["verify", "--run", "guest"]).run().must(0);
}

/// The population adapter is merged, so a run trained by another population recipe has another base.
#[test]
fn an_adapter_of_another_base_is_refused() {
    let story = finished();
    let other = ["--set", "run.out_dir=other", "--set", "population.learning_rate=0.002"];
    story.put("personal.jsonl", &crate::story::lines([crate::story::user(1)]));
    story.run(&other).must(0);
    let folder = peft_folder(&story, "other", "user 1", "out");
    let import =
        ["import", "--run", "run", "--adapter", folder.to_str().unwrap(), "--user", "user 1"];
    let before = story.files("run/store");
    story.launcher(&import).run().must(3).says(&["trained on the base", "hint:", "--any-base"]);
    assert_eq!(before, story.files("run/store"));
    let said = story.launcher(&[&import[..], &["--any-base"]].concat()).run().must(0);
    said.says(&["trained on the base"]);
    assert!(
        numbers(&story.adapters("run")["user 1"])
            == numbers(&exported(&story.path("out"))["user 1"])
    );
    // PEFT writes no such record: taken, and said.
    let file = folder.join("adapter_model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    crate::story::put(&file, &safetensors::serialize(tensors.tensors(), None).unwrap());
    story.launcher(&import).run().must(0).says(&["does not say which base"]);
    // One's own needs no word.
    let home = peft_folder(&story, "run", USER, "out 4");
    let import = ["import", "--run", "run", "--adapter", home.to_str().unwrap(), "--user", USER];
    let said = story.launcher(&import).run().must(0);
    assert!(!said.stderr.contains("base"), "{}", said.stderr);
}

#[test]
fn what_is_no_adapter_is_not_imported() {
    let story = finished();
    let before = story.files("run/store");
    for adapter in ["base", "nowhere", "run"] {
        let import = ["import", "--run", "run", "--adapter", adapter, "--user", "x"];
        story.launcher(&import).run().must(3).says(&["hint:"]);
    }
    assert_eq!(before, story.files("run/store"));
}

#[test]
fn verify_finds_one_flipped_bit() {
    let story = finished();
    story.launcher(&["verify", "--run", "run"]).run().must(0);
    let weights = &crate::story::reference().adapters[USER];
    let file = "run/store/rank-0000/seg-000001.myr";
    let good = story.read(file);
    let at = position(&good, weights).unwrap();
    for (offset, named) in [(at + weights.len() / 2, true), (3, false), (good.len() - 1, false)] {
        let mut bad = good.clone();
        bad[offset] ^= 0x10;
        story.put(file, &bad);
        let ended =
            story.launcher(&["verify", "--run", "run"]).run().must(4).says(&["seg-000001.myr"]);
        if named {
            ended.says(&[USER]);
        }
    }
    story.put(file, &good[..good.len() - 10]);
    story.launcher(&["verify", "--run", "run"]).run().must(4).says(&["seg-000001.myr"]);
    story.put(file, &good);
    story.launcher(&["verify", "--run", "run"]).run().must(0);
}

#[test]
fn verify_finds_a_changed_base_and_a_changed_merge() {
    let story = finished();
    let merged = story.read("run/population/merged.myriad");
    let mut bad = merged.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    story.put("run/population/merged.myriad", &bad);
    story.launcher(&["verify", "--run", "run"]).run().must(4);
    story.put("run/population/merged.myriad", &merged);
    let mut weights = story.read("base/model.safetensors");
    let last = weights.len() - 4;
    weights[last] ^= 1;
    story.put("base/model.safetensors", &weights);
    story.launcher(&["verify", "--run", "run"]).run().must(4);
}

#[test]
fn a_forgotten_user_is_gone() {
    let story = finished();
    let weights = &crate::story::reference().adapters[USER];
    let id = format!("\"{USER}\"");
    assert!(!holding(&story, weights).is_empty() && holding(&story, id.as_bytes()).len() >= 4);
    story.launcher(&["forget", "--run", "run", "--user", USER]).run().must(0);
    // Neither the whole adapter, nor a piece of it, nor the id, anywhere in the folder.
    assert_eq!(holding(&story, weights), Vec::<PathBuf>::new());
    assert_eq!(holding(&story, &weights[weights.len() - 64..]), Vec::<PathBuf>::new());
    assert_eq!(holding(&story, id.as_bytes()), Vec::<PathBuf>::new());
    story.launcher(&["verify", "--run", "run"]).run().must(0);
    let others: Vec<usize> = (0..12).filter(|&n| n != 4).collect();
    story.same_adapters("run", &others, "after forgetting another");
    let export = ["export", "--run", "run", "--out", "out", "--user", USER];
    story.launcher(&export).run().must(3);
    // The same command does not bring the user back.
    let ended = story.run(&[]);
    assert!(ended.code == 0, "{}", ended.stderr);
    assert_eq!(holding(&story, id.as_bytes()), Vec::<PathBuf>::new());
    story.same_adapters("run", &others, "after a rerun");
    story.launcher(&["forget", "--run", "run", "--user", "nobody"]).run().must(3);
}
