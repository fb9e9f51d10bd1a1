//! `launcher bench kernels`: what is listed, measured on processors, written as JSON, refused.

use crate::process::{Ended, Start};
use serde_json::Value;
use std::path::Path;

fn bench(folder: &Path, args: &[&str]) -> Ended {
    Start::new(folder, 0, &[&["bench", "kernels"], args].concat()).run()
}

fn results(json: &Value) -> &[Value] {
    assert_eq!(json["schema"], 1);
    json["results"].as_array().unwrap()
}

#[test]
fn the_list_needs_no_machine() {
    let folder = tempfile::tempdir().unwrap();
    let table = bench(folder.path(), &["--list"]).must(0).stdout;
    let json = bench(folder.path(), &["--list", "--json"]).must(0).stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert!(json["device"].is_null() && json["models"].as_array().unwrap().len() == 3, "{json}");
    for result in results(&json) {
        let (op, name) = (result["op"].as_str().unwrap(), result["for"].as_str().unwrap());
        let row = table.lines().filter(|l| l.starts_with(&format!("{op} ")));
        assert!(row.clone().any(|l| l.contains(&format!(" {name} "))), "{op} for {name}\n{table}");
        assert!(result["measured"].is_null() && result["gpu_work"]["bytes"].as_f64() > Some(0.0));
        for model in ["A100", "H100", "H200"] {
            let bound = &result["bounds"][model];
            assert!(bound["seconds"].as_f64() > Some(0.0), "{result}");
            assert!(bound["binds"] == "bytes" || bound["binds"] == "flop", "{result}");
        }
    }
    // By hand: 2 · 3 · 4096² bytes, 2 · 4096³ operations at 312 TFLOP/s.
    let of = |r: &&Value| r["op"] == "linear_forward" && r["for"] == "llama7b_o";
    let square = results(&json).iter().find(of).unwrap();
    assert_eq!(square["gpu_work"]["bytes"], 100_663_296.0);
    assert_eq!(square["gpu_work"]["flop"], 137_438_953_472.0);
    assert_eq!(square["bounds"]["A100"]["binds"], "flop");
    let seconds = square["bounds"]["A100"]["seconds"].as_f64().unwrap();
    assert!((seconds - 440.5e-6).abs() < 1e-6, "{seconds}");
}

/// One operation of each kind of case at a small shape; a comparator where there is one.
#[test]
fn operations_are_timed_on_processors() {
    let folder = tempfile::tempdir().unwrap();
    let ops = ["--op", "lora", "--op", "norm_forward,adamw"];
    let shape = "rows=64,d=32,n=32,kv=16,adapters=4,lora_rank=4,slots=2,params=1000";
    let rules = ["--shape", shape, "--runs", "2", "--milliseconds", "0", "--json", "out.json"];
    let table = bench(folder.path(), &[&ops[..], &rules].concat()).must(0).stdout;
    let json = std::fs::read(folder.path().join("out.json")).unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["device"]["kind"], "cpu");
    assert!(table.contains("linear_per_adapter"), "{table}");
    let mut seen = Vec::new();
    for result in results(&json) {
        let measured = &result["measured"];
        assert_eq!(measured["repetitions"], 2, "{result}");
        let [least, median, most] =
            ["least_s", "seconds", "most_s"].map(|key| measured[key].as_f64().unwrap());
        assert!(0.0 < least && least <= median && median <= most, "{result}");
        // In f32 there are more bytes than on a GPU, and as many operations.
        let [here, gpu] = [&measured["work"], &result["gpu_work"]];
        assert!(here["bytes"].as_f64() >= gpu["bytes"].as_f64() && here["flop"] == gpu["flop"]);
        let rivals = result["comparators"].as_array().unwrap();
        let plain = result["family"] == "lora" && result["shape"]["dropout"] == 0.0;
        assert_eq!(rivals.len(), usize::from(plain), "{result}");
        seen.push(result["op"].as_str().unwrap());
    }
    seen.dedup();
    assert_eq!(seen, ["lora_forward", "lora_backward", "norm_forward", "adamw"]);
}

#[test]
fn what_is_unknown_is_refused_with_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |args: &[&str], says: &[&str]| {
        bench(folder.path(), args).must(3).says(says).says(&["hint:", "--list"]);
    };
    refused(&["--op", "lorra"], &["`lorra`", "lora_forward", "attention"]);
    refused(&["--op", "lora", "--shape", "row=3"], &["`row`", "rows, d, n, kv, adapters"]);
    refused(&["--shape", "rows=few"], &["`few`"]);
    let odd = ["--op", "rope", "--shape", "rows=2,head_dim=3", "--milliseconds", "0"];
    refused(&odd, &["could not be measured", "head_dim"]);
    bench(folder.path(), &["--device", "tpu"]).must(2);
}

/// No GPU is visible, be there one or not.
#[test]
fn without_a_gpu_it_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let none = Path::new("");
    let start = Start::new(folder.path(), 0, &["bench", "kernels", "--device", "cuda"]);
    start.env("CUDA_VISIBLE_DEVICES", none).run().must(3).says(&["no GPU", "hint:"]);
}
