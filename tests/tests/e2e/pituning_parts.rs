//! What people have of a PITuning run: put aside, export, verify, forget.

use crate::base::Random;
use crate::pituning::{PEOPLE, Results, TUNED, export, person, reference, stage, story};
use crate::story::{Story, exported, numbers};
use serde_json::Value;
use std::path::PathBuf;

const NUMBER: usize = 4;

/// A finished run.
fn finished() -> Story {
    let story = story();
    story.run(&[]).must(0);
    story
}

fn position(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

/// Files below the run folder that hold `bytes`.
fn holding(story: &Story, bytes: &[u8]) -> Vec<PathBuf> {
    let files = story.files("run").into_keys();
    files.filter(|f| position(&std::fs::read(f).unwrap(), bytes).is_some()).collect()
}

/// A log of eight people with forty events each, and one with three: too few for a training window.
fn log(with_the_short: bool) -> Vec<u8> {
    let mut text = String::from("user,time,event,location\n");
    let mut random = Random(9);
    for user in 0..8 {
        for n in 0..40 {
            let event = ["sit", "walk", "run", "talk", "eat"][(random.below(3) + user + n / 3) % 5];
            let place = ["home", "work"][random.below(2)];
            text += &format!(
                "user {user},{},{event},{place}\n",
                1_700_000_000 + 3600 * (40 * user + n)
            );
        }
    }
    if with_the_short {
        for n in 0..3 {
            text += &format!("short,{},sit,home\n", 1_700_000_000 + 3600 * n);
        }
    }
    text.into_bytes()
}

/// The story with a log in the place of generated people.
pub(crate) fn of_log(log: &[u8]) -> Story {
    let story = story();
    story.edit_config("\"permuted\", \"truth\"", "\"permuted\"");
    story.edit_config("source = \"generated\"", "source = \"log\"\nfiles = [\"log.csv\"]");
    story.edit_config(
        "[data.generator]\nusers = 12\nevents = [40, 60]\nintents = 12\nown_intents = 2\nlocations = 3\n",
        "[data.format]\ntime = \"unix_seconds\"\nmin_events = 2\ncolumns.contexts = [[\"location\", \"location\"]]\n",
    );
    story.edit_config("cold = 0.2", "cold = 0.0");
    story.put("log.csv", log);
    story
}

#[test]
fn a_person_without_training_windows_is_put_aside() {
    let story = of_log(&log(false));
    story.run(&[]).must(0);
    let expected = Results::of(&story, "run", &TUNED);
    assert_eq!(expected.parts.len(), TUNED.len() * 8);
    for (ranks, folder) in [(0, "one"), (2, "two")] {
        story.put("log.csv", &log(true));
        let out = format!("run.out_dir={folder}");
        let run = story.run_on(ranks, &["--set", &out]).run().must(5);
        let run = run.says(&["put aside: user short", "no training window"]);
        // Everybody else's, to the byte; in the table are the windows that every arm answers.
        let parts = Results::of(&story, folder, &TUNED).parts;
        assert!(parts == expected.parts, "{folder}: other parts");
        for arm in ["personal", "unlearned", "finetune"] {
            let of = |run: &str| story.text(&format!("{run}/predictions/{arm}.jsonl"));
            assert!(of(folder) == of("run"), "{folder}: other predictions of {arm}");
        }
        assert!(run.stdout.contains("targets of 8 people"), "{}", run.stdout);
        story.launcher(&["verify", "--run", folder]).run().must(0);
        // Put aside for good: the same command says so again.
        story.run_on(ranks, &["--set", &out]).run().must(5);
    }
}

fn json(path: &std::path::Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn exports_are_peft_folders_that_say_what_they_belong_to() {
    let story = finished();
    let user = person(NUMBER);
    story.launcher(&["export", "--run", "run", "--out", "out"]).run().must(0);
    let weights = exported(&story.path("out"));
    assert_eq!(weights.len(), PEOPLE);
    let parts = &reference().parts;
    assert!(
        weights[&user] == parts[&("personal".to_owned(), user.clone())],
        "not PITuning's own arm"
    );
    let folder = std::fs::read_dir(story.path("out"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.is_dir())
        .unwrap();
    let config = json(&folder.join("adapter_config.json"));
    assert_eq!(config["peft_type"], "LORA");
    assert_eq!(config["r"], 8);
    assert_eq!(config["fan_in_fan_out"], true);
    let base = config["base_model_name_or_path"].as_str().unwrap();
    assert!(base.ends_with("student/model.safetensors"), "{base}");
    let modules: Vec<String> = serde_json::from_value(config["target_modules"].clone()).unwrap();
    for name in ["c_attn", "c_fc", "c_proj"] {
        assert!(modules.iter().any(|m| m.ends_with(name)), "{name} is not in {modules:?}");
    }
    // One block of width 16: four products with A and B, and the head's own two.
    let bytes = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.len(), 2 * 4 + 2);
    let a = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight";
    assert_eq!(tensors.tensor(a).unwrap().shape(), [8, 16]);
    let readme = json(&story.path("out/README.json"));
    assert_eq!(readme["arm"], "personal");
    let (_, student) =
        safetensors::SafeTensors::read_metadata(&story.read("run/student/model.safetensors"))
            .unwrap();
    assert_eq!(readme["base"]["hash"], student.metadata().as_ref().unwrap()["myriad.hash"]);
    let whole = readme["whole_tensors"].as_array().unwrap();
    assert_eq!(whole.len(), 2);
    for tensor in whole {
        let there = tensors.tensor(tensor["key"].as_str().unwrap()).unwrap();
        assert_eq!(serde_json::json!(there.shape()), tensor["dims"]);
        let of = tensor["added_to"].as_str().unwrap();
        assert_eq!(student.info(of).unwrap().shape, there.shape(), "{of}");
    }
    some_people_and_other_arms(&story, &user);
}

fn some_people_and_other_arms(story: &Story, user: &str) {
    let one = ["export", "--run", "run", "--out", "one", "--user", user, "--arm", "focal"];
    story.launcher(&[&one[..], &["--base-name", "some/base"]].concat()).run().must(0);
    let weights = exported(&story.path("one"));
    let parts = &reference().parts;
    assert!(weights.len() == 1 && weights[user] == parts[&("focal".to_owned(), user.to_owned())]);
    assert_eq!(json(&story.path("one/README.json"))["base"]["name"], "some/base");
    let bad = |more: &[&str], says: &[&str]| {
        let args = [&["export", "--run", "run", "--out", "bad"], more].concat();
        story.launcher(&args).run().must(3).says(says);
        assert!(!story.path("bad").exists());
    };
    bad(&["--user", "nobody"], &["hint:"]);
    bad(&["--arm", "population"], &["population", "focal, oversample"]);
    let import = ["import", "--run", "run", "--adapter", "one", "--user", "guest"];
    story.launcher(&import).run().must(3).says(&["PITuning", "hint:"]);
}

/// The whole model of every person is no adapter, and does not pass for one.
#[test]
fn whole_models_are_exported_without_an_adapter_config() {
    let story = story();
    let keys = ["individual.tune=\"all\"", "run.arms=[\"population\", \"personal\"]"];
    story.run(&crate::pituning::sets(&keys)).must(0);
    let user = person(NUMBER);
    story.launcher(&["export", "--run", "run", "--out", "out", "--user", &user]).run().must(0);
    let weights = exported(&story.path("out")).remove(&user).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&weights).unwrap();
    let (_, student) =
        safetensors::SafeTensors::read_metadata(&story.read("run/student/model.safetensors"))
            .unwrap();
    assert_eq!(tensors.len(), student.tensors().len());
    let readme = json(&story.path("out/README.json"));
    for tensor in readme["whole_tensors"].as_array().unwrap() {
        let of = tensor["instead_of"].as_str().unwrap();
        let there = tensors.tensor(tensor["key"].as_str().unwrap()).unwrap();
        assert_eq!(student.info(of).unwrap().shape, there.shape(), "{of}");
    }
    let key =
        json(&story.path("out/users.json"))["users"][0]["folder"].as_str().unwrap().to_owned();
    assert!(!story.path("out").join(key).join("adapter_config.json").exists());
}

#[test]
fn verify_names_one_flipped_bit() {
    let story = finished();
    let verify = |code: i32| story.launcher(&["verify", "--run", "run"]).run().must(code);
    let said = verify(0).stdout;
    assert!(said.contains(&format!("{} adapters", TUNED.len() * PEOPLE)), "{said}");
    let user = person(NUMBER);
    for (arm, file) in [
        ("personal", "run/store/rank-0000/seg-000001.myr"),
        ("focal", "run/arms/focal/store/rank-0000/seg-000001.myr"),
    ] {
        let good = story.read(file);
        let weights = &reference().parts[&(arm.to_owned(), user.clone())];
        let mut bad = good.clone();
        bad[position(&good, weights).unwrap() + weights.len() / 2] ^= 0x10;
        story.put(file, &bad);
        verify(4).says(&[file.strip_prefix("run/").unwrap(), &user]);
        story.put(file, &good);
    }
    for file in ["run/population/model.safetensors", "run/student/model.safetensors"] {
        let good = story.read(file);
        for at in [good.len() - 3, good.len() / 2, 60, 2] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            story.put(file, &bad);
            verify(4).says(&[file.strip_prefix("run/").unwrap()]);
        }
        std::fs::remove_file(story.path(file)).unwrap();
        verify(4).says(&[file.strip_prefix("run/").unwrap(), "missing"]);
        story.put(file, &good);
    }
    verify(0);
    // A sound model that is not the one people's parts belong to.
    story.run(&["--set", "run.out_dir=other", "--set", "run.seed=7"]).must(0);
    let student = story.read("run/student/model.safetensors");
    story.put("run/student/model.safetensors", &story.read("other/student/model.safetensors"));
    verify(4).says(&["of another student", &user]);
    story.put("run/student/model.safetensors", &student);
    std::fs::remove_dir_all(story.path("run/arms/focal")).unwrap();
    verify(4).says(&["arms/focal/store", "missing"]);
}

#[test]
fn a_forgotten_person_is_gone_from_every_arm() {
    let story = finished();
    let (user, parts) = (person(NUMBER), &reference().parts);
    let id = format!("\"{user}\"");
    let mine = |arm: &str| numbers(&parts[&(arm.to_owned(), user.clone())]).to_vec();
    for arm in TUNED {
        assert!(!holding(&story, &mine(arm)).is_empty(), "{arm}");
    }
    let answers = story.answers("run");
    story.launcher(&["forget", "--run", "run", "--user", &user]).run().must(0);
    let gone = || {
        for arm in TUNED {
            let mine = mine(arm);
            assert_eq!(holding(&story, &mine), Vec::<PathBuf>::new(), "{arm}");
            assert_eq!(holding(&story, &mine[mine.len() - 64..]), Vec::<PathBuf>::new(), "{arm}");
            let left = export(&story, "run", arm);
            assert_eq!(left.len(), PEOPLE - 1);
            for (other, part) in left {
                assert!(part == parts[&(arm.to_owned(), other.clone())], "{arm}: {other} changed");
            }
        }
        assert_eq!(holding(&story, id.as_bytes()), Vec::<PathBuf>::new());
        for (arm, text) in story.answers("run") {
            let others: String = answers[&arm]
                .lines()
                .filter(|l| !l.contains(&id))
                .flat_map(|l| [l, "\n"])
                .collect();
            assert!(arm == "permuted" || text == others, "{arm}: other people's answers changed");
        }
    };
    gone();
    assert!(!story.path("run/table.txt").exists() && !story.path("run/plots").exists());
    story.launcher(&["verify", "--run", "run"]).run().must(0);
    // The same command does not bring the person back, not even where answers are made again.
    std::fs::remove_dir_all(story.path("run/predictions")).unwrap();
    let again = story.run(&[]).must(0);
    assert!(again.stdout.contains(&format!("of {} people", PEOPLE - 1)), "{}", again.stdout);
    gone();
    story.launcher(&["forget", "--run", "run", "--user", "nobody"]).run().must(3);
}

/// Forgotten while some arms are still to come.
#[test]
fn a_person_forgotten_half_way_is_not_tuned_again() {
    let story = story();
    stage(&story, "individual");
    for arm in ["unlearned", "oversample"] {
        std::fs::remove_dir_all(story.path("run/arms").join(arm)).unwrap();
    }
    story.launcher(&["forget", "--run", "run", "--user", &person(NUMBER)]).run().must(0);
    story.run(&[]).must(0);
    for arm in TUNED {
        let left = export(&story, "run", arm);
        assert!(left.len() == PEOPLE - 1 && !left.contains_key(&person(NUMBER)), "{arm}");
    }
    let id = format!("\"{}\"", person(NUMBER));
    assert_eq!(holding(&story, id.as_bytes()), Vec::<PathBuf>::new());
}
