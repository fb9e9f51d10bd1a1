//! One golden case on disk.

use kernels::Cpu;
use kernels::lora::Segment;
use kernels::optim::Update;
use safetensors::SafeTensors;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use trainer::config::Recipe;
use trainer::ids::UserId;
use trainer::lora::{AdapterSpec, Half, SiteList, SiteLists, Target};
use trainer::model::cache::MappedBase;
use trainer::model::network::Network;
use trainer::pack::{Packer, Piece, Share};
use trainer::prompt::Example;
use trainer::stage::engine::Engine;
use trainer::stage::individual::{PackRules, Watch};
use trainer::stage::trainee::{Job, Outcome, Trainee};

pub(crate) struct Case {
    pub(crate) examples: Vec<Example>,
    batches: Vec<Vec<usize>>,
    pub(crate) lora: AdapterSpec,
    pub(crate) sites: SiteList,
    pub(crate) lists: SiteLists,
    pub(crate) adapter: Vec<f32>,
    base: MappedBase,
    expected: Vec<u8>,
    _cache: tempfile::TempDir,
}

pub(crate) fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .fold(0.0, |m, (x, y)| if (x - y).is_nan() { f32::INFINITY } else { m.max((x - y).abs()) })
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

impl Case {
    pub(crate) fn open(name: &str) -> Self {
        Self::open_spelled(name, "base")
    }

    /// The case with the config of folder `spelling`.
    pub(crate) fn open_spelled(name: &str, spelling: &str) -> Self {
        let folder = folder(name);
        let json = |path: &str| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(folder.join(path)).unwrap()).unwrap()
        };
        let cache = tempfile::tempdir().unwrap();
        let base_folder = cache.path().join("base");
        std::fs::create_dir(&base_folder).unwrap();
        std::fs::copy(folder.join(spelling).join("config.json"), base_folder.join("config.json"))
            .unwrap();
        std::fs::copy(folder.join("base/model.safetensors"), base_folder.join("model.safetensors"))
            .unwrap();
        let source = trainer::model::weights::open(&base_folder).unwrap();
        let base = MappedBase::load(&Cpu, source.as_ref(), &cache.path().join("prepared")).unwrap();
        let config = json("adapter/adapter_config.json");
        let names: Vec<String> = serde_json::from_value(config["target_modules"].clone()).unwrap();
        let lora = AdapterSpec {
            lora_rank: serde_json::from_value(config["r"].clone()).unwrap(),
            alpha: config["lora_alpha"].as_f64().unwrap(),
            rslora: false,
            dropout: 0.0,
            targets: Target::parse_all(&names).unwrap(),
        };
        let sites = SiteList::of_base(base.spec(), &lora.targets).unwrap();
        let input = json("input.json");
        let examples = input["examples"].as_array().unwrap().iter().map(|e| Example {
            tokens: serde_json::from_value(e["tokens"].clone()).unwrap(),
            prompt_len: serde_json::from_value(e["prompt_len"].clone()).unwrap(),
        });
        let mut case = Self {
            examples: examples.collect(),
            batches: serde_json::from_value(input["batches"].clone()).unwrap(),
            adapter: vec![f32::NAN; sites.params(lora.lora_rank as usize)],
            expected: std::fs::read(folder.join("expected.safetensors")).unwrap(),
            lora,
            lists: SiteLists::of_targets(base.spec(), [sites.targets().as_slice()]).unwrap(),
            sites,
            base,
            _cache: cache,
        };
        let bytes = std::fs::read(folder.join("adapter/adapter_model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let mut adapter = case.adapter.clone();
        case.for_each_tensor(|key, range| {
            adapter[range].copy_from_slice(&floats(tensors.tensor(key).unwrap().data()))
        });
        case.adapter = adapter;
        case
    }

    pub(crate) fn network(&self) -> Network<Cpu> {
        Network::new(Cpu, &self.base, 64).unwrap()
    }

    pub(crate) fn expected(&self, key: &str) -> Vec<f32> {
        floats(SafeTensors::deserialize(&self.expected).unwrap().tensor(key).unwrap().data())
    }

    pub(crate) fn expected_ids(&self, key: &str) -> Vec<u32> {
        let tensors = SafeTensors::deserialize(&self.expected).unwrap();
        let bytes = tensors.tensor(key).unwrap().data().to_vec();
        bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    /// Every tensor's PEFT key and its place in the flat adapter.
    pub(crate) fn for_each_tensor(&self, mut f: impl FnMut(&str, Range<usize>)) {
        for e in self.sites.entries() {
            let range = self.sites.range(&e.site, self.lora.lora_rank as usize);
            f(&e.spec.peft_key(Half::A), range.a);
            f(&e.spec.peft_key(Half::B), range.b);
        }
    }

    pub(crate) fn segment(&self, template: Segment) -> Segment {
        Segment { lora_rank: self.lora.lora_rank, scale: self.lora.scale(), ..template }
    }

    pub(crate) fn pieces(&self, batch: usize) -> Vec<Piece<'_>> {
        let piece =
            |&i: &usize| Piece::supervised(&self.examples[i].tokens, self.examples[i].prompt_len);
        self.batches[batch].iter().map(piece).collect()
    }

    /// The case's ten batches, step by step: losses, norms, the adapter at the end.
    pub(crate) fn train(
        &self,
        engine: &mut Engine<'_, Cpu>,
        share_prefixes: bool,
    ) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let slot = engine.slabs.take().unwrap();
        engine.load(slot, &self.adapter).unwrap();
        let (mut losses, mut norms) = (Vec::new(), Vec::new());
        for s in 0..10u8 {
            let pieces = self.pieces(usize::from(s));
            let rate = if s == 0 { 0.0 } else { 0.01 * f32::from(10 - s) / 9.0 };
            let (loss, norm) = self.step(engine, share_prefixes, &pieces, u32::from(s), rate);
            losses.push(loss);
            norms.push(norm);
        }
        let mut adapter = vec![0.0; self.adapter.len()];
        engine.read(slot, &mut adapter).unwrap();
        (losses, norms, adapter)
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "small counts, a mean of f32"
    )]
    fn step(
        &self,
        engine: &mut Engine<'_, Cpu>,
        share: bool,
        pieces: &[Piece<'_>],
        step: u32,
        rate: f32,
    ) -> (f32, f32) {
        let slot = trainer::ids::Slot(0);
        let supervised: usize = pieces.iter().map(|p| p.targets.len()).sum();
        let mut packer = Packer::new(share);
        let adapter = Some(self.segment(engine.segment(slot, slot)));
        packer.add(&Share {
            adapter,
            layout: 0,
            pieces,
            weight: 1.0 / supervised as f32,
            first_token: 0,
        });
        let sum: f64 = engine.train(&packer).unwrap().iter().map(|&l| f64::from(l)).sum();
        let update = Update {
            offset: 0,
            len: u32::try_from(self.adapter.len()).unwrap(),
            step: step + 1,
            learning_rate: rate,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            clip_norm: 0.3,
        };
        let mut norm = [0.0];
        engine.update(&[update], &mut norm).unwrap();
        ((sum / supervised as f64) as f32, norm[0])
    }

    /// Ten steps on all examples at once, without the stage.
    pub(crate) fn train_whole(&self, net: &Network<Cpu>, recipe: &Recipe) -> Vec<f32> {
        let size =
            trainer::model::activations::StepSize { rows: 256, stored_blocks: 9, backward: true };
        let mut engine = Engine::new(net, &self.lists, size, (1, self.adapter.len())).unwrap();
        let slot = engine.slabs.take().unwrap();
        engine.load(slot, &self.adapter).unwrap();
        let pieces: Vec<_> =
            self.examples.iter().map(|e| Piece::supervised(&e.tokens, e.prompt_len)).collect();
        for s in 0..recipe.epochs {
            #[expect(clippy::cast_possible_truncation, reason = "a rate rounded once")]
            let rate = if s == 0 { 0.0 } else { (0.01 * f64::from(10 - s) / 9.0) as f32 };
            self.step(&mut engine, false, &pieces, s, rate);
        }
        let mut adapter = vec![0.0; self.adapter.len()];
        engine.read(slot, &mut adapter).unwrap();
        adapter
    }

    /// The same through the individual stage, beside two other users.
    pub(crate) fn train_staged(
        &self,
        engine: &mut Engine<'_, Cpu>,
        recipe: &Recipe,
        stop: &AtomicBool,
    ) -> Vec<f32> {
        let job = |user: &str, examples: &[Example]| Job {
            user: UserId::new(user),
            examples: examples.to_vec(),
            lora: self.lora.clone(),
            recipe: recipe.clone(),
            losses: Vec::new(),
            of_mean: false,
            unusable: None,
            seed: 1,
            start: Some(self.adapter.clone()),
        };
        let jobs = [
            job("a", &self.examples[..3]),
            job("golden", &self.examples),
            job("z", &self.examples[5..]),
        ];
        let mut kept = Kept(Vec::new());
        let rules = PackRules { chunk_rows: 200, share_prefixes: true };
        trainer::stage::individual::run(engine, rules, &mut jobs.into_iter(), &mut kept, stop)
            .unwrap();
        kept.0
    }
}

struct Kept(Vec<f32>);

impl Watch for Kept {
    fn pack(&mut self, _: usize, _: usize, _: usize) {}
    fn step(&mut self, _: &Trainee, _: f32, _: f32) {}
    fn left(&mut self, outcome: Outcome) -> trainer::stage::Result<()> {
        match outcome {
            Outcome::Trained { user, params, .. } if user.as_str() == "golden" => self.0 = params,
            Outcome::Trained { .. } => {}
            Outcome::Quarantined { user, reason, .. } => panic!("{user}: {reason}"),
        }
        Ok(())
    }
}
