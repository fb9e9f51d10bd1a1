//! Formulas by hand, every case on processors and on the emulator, what is refused.

use super::*;
use emulator::{Emulator, Mode};
use kernels::gpu::Gpu;

/// Smaller than any shape, of every operation.
const TINY: &str = "rows=24,d=16,n=24,kv=8,adapters=3,lora_rank=4,groups=2,sequences=2,length=5,keys=7,heads=2,\
                    kv_heads=1,head_dim=16,f=24,ranges=3,v=50,every=3,hidden=8,intents=5,classes=5,slots=2,params=40";

const ALL: [&str; 32] = [
    "linear_forward",
    "linear_backward",
    "linear_weight_gradient",
    "refresh",
    "wide_forward",
    "wide_backward",
    "lora_forward",
    "lora_backward",
    "adapted_forward",
    "adapted_backward",
    "attention_forward",
    "attention_backward",
    "attention_decode",
    "norm_forward",
    "norm_backward",
    "norm_param_gradient",
    "rope",
    "activation_forward",
    "activation_backward",
    "pool_mean",
    "pool_mean_backward",
    "embed",
    "gather",
    "scatter",
    "lookup",
    "lookup_gradient",
    "head_loss",
    "class_loss",
    "softmax",
    "intent_forward",
    "intent_backward",
    "adamw",
];

fn work_of(op: &str, sizes: &str, act: f64) -> Work {
    let ops = ops::<Cpu>();
    let op = ops.iter().find(|known| known.name == op).unwrap();
    (op.work)(&Sizes::parse(sizes).unwrap(), act)
}

/// A call's operation and shape, bytes of a GPU's form and operations, counted by hand: products and adapters.
const PRODUCTS: &[(&str, &str, f64, f64)] = &[
    // 2 (3 · 4096²); 2 · 4096³.
    ("linear_forward", "rows=4096,d=4096,n=4096", 100_663_296.0, 137_438_953_472.0),
    ("linear_backward", "rows=2,d=3,n=5", 2.0 * (6.0 + 15.0 + 10.0), 60.0),
    // 2 · 4096 · 1536 + 8 · 768².
    ("linear_weight_gradient", "rows=4096,d=768,n=768", 17_301_504.0, 4_831_838_208.0),
    ("refresh", "d=4,n=4", 96.0, 0.0),
    // 2 · 8192 (4096 + 2 · 6144) + 4 · 16 (3 · 4096 + 6144); 2 · 8192 · 16 · 18432.
    (
        "lora_forward",
        "rows=8192,d=4096,n=4096,kv=1024,adapters=1,lora_rank=16",
        269_615_104.0,
        4_831_838_208.0,
    ),
    // 2 · 8192 (3 · 4096 + 6144) + 12 · 16 · 18432; 2 · 8192 · 16 (3 · 12288 + 2 · 6144).
    (
        "lora_backward",
        "rows=8192,d=4096,n=4096,kv=1024,adapters=1,lora_rank=16",
        305_528_832.0,
        12_884_901_888.0,
    ),
    // 2 (8192 (4096 + 6144) + 4096 · 6144) + 64 · 18432; 2 · 8192 · 4096 · 6144 and the adapter's.
    (
        "adapted_forward",
        "rows=8192,d=4096,n=4096,kv=1024,adapters=1,lora_rank=16",
        219_283_456.0,
        412_316_860_416.0 + 4_831_838_208.0,
    ),
    // 2 (8192 (8192 + 6144) + 4096 · 6144) + 192 · 18432.
    (
        "adapted_backward",
        "rows=8192,d=4096,n=4096,kv=1024,adapters=1,lora_rank=16",
        288_751_616.0,
        412_316_860_416.0 + 12_884_901_888.0,
    ),
    ("wide_forward", "rows=2,d=3,n=5", 2.0 * (6.0 + 15.0) + 40.0, 60.0),
    ("wide_backward", "rows=2,d=3,n=5", 2.0 * (10.0 + 15.0) + 24.0, 60.0),
];

/// Bytes of a GPU's form and operations, counted by hand.
#[test]
fn bytes_and_operations() {
    let cases: &[(&str, &str, f64, f64)] = &[
        // 8192 rows of 2 · 576 + 2 · 192 and 9 sums; 64 · 128 · 129 / 2 pairs of 4 · 576.
        (
            "attention_forward",
            "groups=64,prefix=0,sequences=1,length=128,heads=9,kv_heads=3,head_dim=64",
            25_460_736.0,
            1_217_396_736.0,
        ),
        // 256 rows; 64 · 65 / 2 + 8 (24 · 25 / 2 + 24 · 64) = 16768 pairs of 10 · 16.
        (
            "attention_backward",
            "groups=1,prefix=64,sequences=8,length=24,heads=2,kv_heads=1,head_dim=8",
            256.0 * (2.0 * 4.0 * 24.0 + 8.0),
            2_682_880.0,
        ),
        // 64 (2 · 576 + 2 · 1024 · 192) of two bytes and 64 · 9 sums.
        (
            "attention_decode",
            "sequences=64,keys=1024,heads=9,kv_heads=3,head_dim=64",
            50_481_408.0,
            150_994_944.0,
        ),
        ("norm_forward", "rows=2,d=8,centred=0", 96.0, 64.0),
        ("norm_forward", "rows=2,d=8,centred=1", 128.0, 128.0),
        ("norm_backward", "rows=2,d=8,centred=0", 160.0, 160.0),
        ("norm_param_gradient", "rows=2,d=8,centred=1", 192.0, 144.0),
        // 64 numbers in and out, 4 positions, 4 rows of 8 angles.
        ("rope", "rows=4,heads=2,head_dim=8,length=512", 256.0 + 16.0 + 128.0, 192.0),
        ("activation_forward", "rows=2,f=8,gated=1", 96.0, 80.0),
        ("activation_forward", "rows=2,f=8,gated=0", 64.0, 144.0),
        ("activation_backward", "rows=2,f=8,gated=1", 160.0, 160.0),
        ("activation_backward", "rows=2,f=8,gated=0", 96.0, 288.0),
        ("pool_mean", "ranges=3,length=4,d=8", 264.0, 96.0),
        ("pool_mean_backward", "ranges=3,length=4,d=8", 264.0, 96.0),
        ("embed", "rows=4,d=8,v=100,positions=0", 144.0, 0.0),
        ("embed", "rows=4,d=8,v=100,positions=2", 224.0, 32.0),
        ("gather", "rows=4,d=8,every=4", 144.0, 0.0),
        ("scatter", "rows=4,d=8,every=4,accumulate=1", 208.0, 32.0),
        ("scatter", "rows=4,d=8,every=4,accumulate=0", 144.0, 0.0),
        ("lookup", "rows=4,d=8,v=3", 176.0, 0.0),
        ("lookup_gradient", "rows=4,d=8,v=3", 272.0, 32.0),
        // 2 (2 · 1024 · 4096 + 4096 · 128256) + 12 · 1024.
        ("head_loss", "rows=1024,d=4096,v=128256", 1_067_462_656.0, 2_151_778_615_296.0),
        ("class_loss", "rows=2,classes=5,teacher=0", 80.0 + 80.0, 60.0),
        ("class_loss", "rows=2,classes=5,teacher=1", 120.0 + 80.0, 120.0),
        ("softmax", "rows=2,classes=5", 80.0, 50.0),
        // 91 parameters: 12 of V, 5 · 12 of W1, 15 of b1, slope and w2, b2, 3 of c.
        ("intent_forward", "rows=2,intents=3,d=4,hidden=5,outer=0,users=0", 404.0, 400.0),
        ("intent_forward", "rows=2,intents=3,d=4,hidden=5,outer=0,users=2", 524.0, 400.0),
        ("intent_backward", "rows=2,intents=3,d=4,hidden=5,outer=0,users=0", 1148.0, 1040.0),
        // The mix takes 5 · 16, and W1 has 24 columns: 151 parameters.
        ("intent_forward", "rows=2,intents=3,d=4,hidden=5,outer=1,users=0", 644.0, 640.0),
        ("adamw", "slots=2,params=1000", 72_000.0, 32_000.0),
    ];
    for &(op, sizes, bytes, flop) in PRODUCTS.iter().chain(cases) {
        let work = work_of(op, sizes, 2.0);
        assert_eq!((work.bytes, work.flop), (bytes, flop), "{op} {sizes}");
    }
    for op in ALL {
        assert!(
            PRODUCTS.iter().chain(cases).any(|case| case.0 == op),
            "{op} is not counted by hand"
        );
    }
    let processors = work_of("linear_forward", "rows=4096,d=4096,n=4096", 4.0);
    assert!((processors.bytes - 201_326_592.0).abs() < 0.5, "{processors:?}");
}

/// An adapter without rows is not read.
#[test]
fn adapters_without_rows_cost_nothing() {
    let of = |adapters: usize, act| {
        let sizes = format!("rows=1,d=8,n=8,kv=0,adapters={adapters},lora_rank=2,skew=1");
        work_of("lora_forward", &sizes, act).bytes
    };
    assert_eq!(of(1, 2.0).to_bits(), of(50, 2.0).to_bits());
    assert_eq!(of(1, 2.0).to_bits(), (2.0f64 * 24.0 + 4.0 * 32.0).to_bits());
}

#[test]
fn operations_are_the_contracts() {
    let names: Vec<&str> = ops::<Cpu>().iter().map(|op| op.name).collect();
    assert_eq!(names, ALL);
    for op in ops::<Cpu>() {
        let shapes = op.shapes(&Sizes::parse("").unwrap()).unwrap();
        assert_eq!(shapes.len(), op.presets.len(), "{} has a shape twice", op.name);
        for (_, sizes) in &shapes {
            assert!(sizes.keys().eq(shapes[0].1.keys()), "{}: {sizes} has other keys", op.name);
            assert!((op.work)(sizes, 2.0).bytes > 0.0, "{}", op.name);
        }
    }
}

/// Every operation at tiny shapes beside its comparators.
fn run_all<B: Subject>(b: &B, kind: &'static str) {
    let chosen = choose::<B>(&[], &Sizes::parse(TINY).unwrap()).unwrap();
    let rules = Rules { runs: 1, time: Duration::ZERO };
    let place =
        Place { kind: Some(kind), name: String::new(), model: None, peak: None, threads: 1 };
    let entries = measured(b, &chosen, (&place, rules), true).unwrap();
    failures(&entries).unwrap();
    for entry in &entries {
        let times = entry.times.unwrap();
        assert!(times.least > 0.0 && times.median.is_finite(), "{entry:?}");
        let names: Vec<&str> = entry.rivals.iter().map(|(name, _)| *name).collect();
        let wanted = match (entry.family, kind) {
            ("lora", _) if entry.sizes.real("dropout") > 0.0 => vec![],
            ("lora", "cpu") => vec!["linear_per_adapter"],
            ("lora", _) => vec!["library_per_adapter"],
            ("adapted", "cuda") => vec!["product_first"],
            _ if entry.op == "attention_forward"
                && b.takes_flash()
                && entry.sizes.count("prefix") == 0 =>
            {
                vec!["flash_attn"]
            }
            _ => vec![],
        };
        assert_eq!(names, wanted, "{entry:?}");
    }
    let json = table::json(&place, rules, &entries);
    let json: serde_json::Value = serde_json::from_str(&json.to_string()).unwrap();
    for op in ALL {
        let mut of_op = json["results"].as_array().unwrap().iter().filter(|r| r["op"] == op);
        assert!(of_op.all(|result| result["measured"]["seconds"].as_f64().unwrap() > 0.0), "{op}");
    }
}

#[test]
fn every_operation_runs_on_processors() {
    run_all(&Cpu, "cpu");
}

#[test]
fn every_operation_runs_on_the_emulator() {
    let emulator = Emulator::open(Mode::Fast, &[]).unwrap().with_flash();
    run_all(&Gpu::new(emulator).unwrap(), "cuda");
}

#[test]
fn shares_are_of_what_the_place_can_do() {
    let sizes = Sizes::parse("rows=4096,d=4096,n=4096").unwrap();
    let (gpu, here) = (work_of("linear_forward", &sizes.to_string(), 2.0), 137.438_953_472e9);
    let times = Times { median: 0.5, least: 0.4, most: 0.6, runs: 5, calls: 1 };
    let entry = |work| Entry {
        op: "linear_forward",
        family: "linear",
        preset: "llama7b_o",
        sizes: sizes.clone(),
        gpu: work,
        here: work,
        times: Some(times),
        rivals: vec![("other", Times { median: 1.0, ..times })],
        error: None,
    };
    let place =
        |peak, model| Place { kind: Some("cpu"), name: "x".into(), model, peak, threads: 1 };
    let share = |place: &Place, work| {
        let json = table::json(place, Rules { runs: 5, time: Duration::ZERO }, &[entry(work)]);
        assert_eq!(json["results"][0]["comparators"][0]["times_as_long"], 2.0);
        json["results"][0]["measured"]["share"].as_f64()
    };
    let close = |a: Option<f64>, b: f64| assert!((a.unwrap() / b - 1.0).abs() < 1e-9, "{a:?} {b}");
    close(share(&place(Some(100.0), None), gpu), here / 0.5 / 100e9);
    close(share(&place(None, Some(&model::MODELS[1])), gpu), here / 989e12 / 0.5);
    assert_eq!(share(&place(None, None), gpu), None);
    // What is no product has no share of the products' rate.
    assert_eq!(share(&place(Some(100.0), None), Work { unit: model::Unit::F32, ..gpu }), None);
}

#[test]
fn families_and_operations_are_chosen() {
    let names = |ops: &[&str]| -> Vec<&str> {
        let ops: Vec<String> = ops.iter().map(|&op| op.to_owned()).collect();
        let chosen = choose::<Cpu>(&ops, &Sizes::parse("").unwrap()).unwrap();
        chosen.iter().map(|(op, _)| op.name).collect()
    };
    assert_eq!(names(&["lora"]), ["lora_forward", "lora_backward"]);
    assert_eq!(names(&["softmax", "rope", "rope"]), ["rope", "softmax"]);
    assert_eq!(names(&[]), ALL);
}

#[test]
fn what_is_not_there_is_named() {
    let error = |op: &str, shape: &str| {
        let chosen = choose::<Cpu>(&[op.to_owned()], &Sizes::parse(shape).unwrap());
        chosen.map(|chosen| chosen.len()).unwrap_err().to_string()
    };
    let text = error("lorra", "");
    assert!(text.contains("`lorra`") && text.contains("lora_forward") && text.contains("pool"));
    let text = error("lora", "row=3");
    let keys = "rows, d, n, kv, adapters, lora_rank, skew, dropout";
    assert_eq!(text, format!("no size `row`; lora_forward, lora_backward have {keys}"));
    assert_eq!(error("adamw", "rows=3"), "no size `rows`; adamw has slots, params");
}

/// Shapes that differ in nothing after an override are one.
#[test]
fn an_override_leaves_no_shape_twice() {
    let chosen = |shape: &str| {
        let chosen = choose::<Cpu>(&["softmax".to_owned()], &Sizes::parse(shape).unwrap()).unwrap();
        chosen[0].1.iter().map(|(_, sizes)| sizes.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(chosen("rows=3"), ["rows=3,classes=30", "rows=3,classes=32000"]);
    assert_eq!(chosen("rows=3,classes=7"), ["rows=3,classes=7"]);
}

/// What a kernel refuses fails alone.
#[test]
fn a_failure_is_told_at_the_end() {
    let wanted = Sizes::parse("rows=4,heads=1,head_dim=3,length=4").unwrap();
    let chosen = choose::<Cpu>(&["rope".to_owned(), "softmax".to_owned()], &wanted).unwrap();
    let place =
        Place { kind: Some("cpu"), name: String::new(), model: None, peak: None, threads: 1 };
    let rules = Rules { runs: 1, time: Duration::ZERO };
    let entries = measured(&Cpu, &chosen, (&place, rules), true).unwrap();
    let error = failures(&entries).unwrap_err().to_string();
    assert!(error.starts_with("1 of 3 could not be measured, the first rope of"), "{error}");
    assert!(error.contains("head_dim"), "{error}");
    assert!(entries.iter().filter(|e| e.op == "softmax").all(|e| e.times.is_some()));
}
