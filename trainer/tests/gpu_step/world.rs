//! Tiny bases on two backends, users of all kinds, and one step of them.

use crate::device::TestDevice;
use emulator::Mode;
use half::bf16;
use kernels::gpu::Gpu;
use kernels::lora::Segment;
use kernels::random::philox;
use kernels::{Cpu, Ops};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use trainer::ids::Slot;
use trainer::lora::{AdapterSpec, SiteList, SiteLists, Target};
use trainer::model::activations::StepSize;
use trainer::model::cache::MappedBase;
use trainer::model::network::Network;
use trainer::pack::{Packer, Piece, Share};
use trainer::prompt::Example;
use trainer::stage::engine::Engine;

/// Tied head, GQA 2; untied head, GQA 3, scaled rotary positions; GPT-2 with learned positions and biases; [`odd`].
pub(crate) const BASES: [&str; 4] = ["llama_tied", "llama_untied", "gpt2", "odd"];

/// The emulator, or a GPU with `MYRIAD_TEST_DEVICE=cuda`.
pub(crate) type Emulated = Gpu<TestDevice>;

pub(crate) fn emulated(mode: Mode, faults: &[&str]) -> Emulated {
    Gpu::new(TestDevice::open(mode, faults)).unwrap()
}

/// A user of the tests: an adapter (of rank zero for the base alone) and what it is trained on.
#[derive(Debug, Clone)]
pub(crate) struct User {
    pub(crate) lora: AdapterSpec,
    pub(crate) sites: SiteList,
    pub(crate) layout: usize,
    pub(crate) params: Vec<f32>,
    pub(crate) examples: Vec<Example>,
}

impl User {
    /// The base alone: has losses, trains nothing.
    pub(crate) fn bare(&self) -> bool {
        self.params.is_empty()
    }

    pub(crate) fn pieces(&self) -> Vec<Piece<'_>> {
        self.examples.iter().map(|e| Piece::supervised(&e.tokens, e.prompt_len)).collect()
    }

    pub(crate) fn supervised(&self) -> usize {
        self.pieces().iter().map(|p| p.targets.len()).sum()
    }
}

pub(crate) struct World {
    pub(crate) base: MappedBase,
    pub(crate) lists: SiteLists,
    pub(crate) examples: Vec<Example>,
    pub(crate) users: Vec<User>,
    folder: tempfile::TempDir,
}

/// A number in (-1, 1).
fn symmetric(counter: [u32; 4]) -> f32 {
    let word = philox([0x5e_ed, 0x6b_50], counter)[0] >> 8;
    f32::from_bits(0x3f80_0000 | (word >> 1)).mul_add(2.0, -3.0)
}

/// The file's tensors, each number rounded to `bf16`.
fn rounded(file: &[u8]) -> Vec<u8> {
    let tensors = SafeTensors::deserialize(file).unwrap();
    let round = |b: &[u8]| bf16::from_f32(f32::from_le_bytes(b.try_into().unwrap())).to_le_bytes();
    let all: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .tensors()
        .into_iter()
        .map(|(name, t)| {
            assert_eq!(t.dtype(), Dtype::F32, "{name}");
            (name, t.shape().to_vec(), t.data().chunks_exact(4).flat_map(round).collect())
        })
        .collect();
    let views = all.iter().map(|(name, shape, data)| {
        (name, TensorView::new(Dtype::BF16, shape.clone(), data).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

fn write(path: &Path, bytes: &[u8]) {
    File::create(path).unwrap().write_all(bytes).unwrap();
}

/// A Llama with biases and widths that no 16-byte access divides: rows and columns of windows begin anywhere.
fn odd(folder: &Path) {
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 101, "hidden_size": 37,
        "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10,
        "intermediate_size": 51, "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "attention_bias": true, "mlp_bias": false,
        "bos_token_id": 1, "eos_token_id": 2
    });
    write(&folder.join("config.json"), config.to_string().as_bytes());
    let (d, q, kv, f, vocab) = (37, 30, 10, 51, 101);
    let mut all: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_tokens.weight".into(), vec![vocab, d]),
        ("lm_head.weight".into(), vec![vocab, d]),
        ("model.norm.weight".into(), vec![d]),
    ];
    for layer in 0..2 {
        let mut add = |part: &str, dims: &[usize]| {
            all.push((format!("model.layers.{layer}.{part}"), dims.to_vec()));
        };
        add("input_layernorm.weight", &[d]);
        add("post_attention_layernorm.weight", &[d]);
        for (part, out, of) in [("q", q, d), ("k", kv, d), ("v", kv, d), ("o", d, q)] {
            add(&format!("self_attn.{part}_proj.weight"), &[out, of]);
            add(&format!("self_attn.{part}_proj.bias"), &[out]);
        }
        for (part, out, of) in [("gate", f, d), ("up", f, d), ("down", d, f)] {
            add(&format!("mlp.{part}_proj.weight"), &[out, of]);
        }
    }
    let values = |(number, (name, dims)): (u32, &(String, Vec<usize>))| -> Vec<u8> {
        let of = f32::from(u16::try_from(*dims.last().unwrap()).unwrap());
        let scale = if dims.len() == 2 { (3.0 / of).sqrt() } else { 0.2 };
        let middle = f32::from(u8::from(name.contains("norm")));
        (0..u32::try_from(dims.iter().product::<usize>()).unwrap())
            .map(|i| scale.mul_add(symmetric([number, i, 1, 0]), middle))
            .flat_map(|v| bf16::from_f32(v).to_le_bytes())
            .collect()
    };
    let data: Vec<Vec<u8>> = (0..).zip(&all).map(values).collect();
    let views = all.iter().zip(&data).map(|((name, dims), data)| {
        (name, TensorView::new(Dtype::BF16, dims.clone(), data).unwrap())
    });
    let file = safetensors::serialize(views, None).unwrap();
    write(&folder.join("model.safetensors"), &file);
}

impl World {
    pub(crate) fn open(name: &str) -> Self {
        let golden = |name: &str| {
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
        };
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("base");
        std::fs::create_dir(&own).unwrap();
        let golden = if name == "odd" {
            odd(&own);
            golden("llama_tied")
        } else {
            let golden = golden(name);
            std::fs::copy(golden.join("base/config.json"), own.join("config.json")).unwrap();
            let file = std::fs::read(golden.join("base/model.safetensors")).unwrap();
            write(&own.join("model.safetensors"), &rounded(&file));
            golden
        };
        let source = trainer::model::weights::open(&own).unwrap();
        let base = MappedBase::load(&Cpu, source.as_ref(), &folder.path().join("cpu")).unwrap();
        let input: serde_json::Value =
            serde_json::from_slice(&std::fs::read(golden.join("input.json")).unwrap()).unwrap();
        let examples = input["examples"].as_array().unwrap().iter().map(|e| Example {
            tokens: serde_json::from_value(e["tokens"].clone()).unwrap(),
            prompt_len: serde_json::from_value(e["prompt_len"].clone()).unwrap(),
        });
        let (examples, lists) = (examples.collect(), SiteLists::new(base.spec()));
        let mut world = Self { base, lists, examples, users: Vec::new(), folder };
        world.settle();
        world
    }

    /// Everybody: mixed LoRA ranks and targets, a shared prefix, one row, no row, no adapter.
    fn settle(&mut self) {
        let names: &[&str] = match self.base.spec().rope {
            Some(_) => &["q", "k", "v", "o", "gate", "up", "down"],
            None => &["c_attn", "c_proj", "c_fc"],
        };
        let all = Target::parse_all(names).unwrap();
        let one = |i: usize| vec![all[i % all.len()]];
        let examples = self.examples.clone();
        let some = |picked: &[usize]| -> Vec<Example> {
            picked.iter().map(|&i| examples[i].clone()).collect()
        };
        let single = Example { tokens: examples[5].tokens[..2].to_vec(), prompt_len: 1 };
        let nothing = Example { tokens: examples[5].tokens[..1].to_vec(), prompt_len: 1 };
        let (last, first) = (one(all.len() - 1), vec![all[0], all[2]]);
        self.join(4, all.clone(), some(&[0, 1, 3]));
        self.join(1, first, some(&[8, 9]));
        self.join(7, all.clone(), some(&[5, 6, 7]));
        self.join(16, last, some(&[11]));
        self.join(3, all.clone(), vec![single, nothing]);
        self.join(5, one(1), Vec::new());
        self.join(0, all.clone(), some(&[10]));
        self.join(33, all, some(&[4]));
    }

    fn join(&mut self, lora_rank: u32, targets: Vec<Target>, examples: Vec<Example>) {
        let sites = SiteList::of_base(self.base.spec(), &targets).unwrap();
        let mut params = vec![0.0; sites.params(lora_rank as usize)];
        let user = u32::try_from(self.users.len()).unwrap();
        for (site, half, range) in sites.tensors(lora_rank as usize) {
            // B is not zero: gradients of A would be.
            let width = if half == trainer::lora::Half::A { site.in_dim } else { 64 };
            let bound = (f32::from(u16::try_from(width).unwrap())).sqrt().recip();
            for i in range {
                params[i] = bound * symmetric([user, u32::try_from(i).unwrap(), 0, 0]);
            }
        }
        let layout = self.lists.add(&sites).unwrap();
        let alpha = f64::from(lora_rank.max(1));
        let lora = AdapterSpec { lora_rank, alpha, rslora: false, dropout: 0.0, targets };
        self.users.push(User { lora, sites, layout, params, examples });
    }

    pub(crate) fn cpu(&self) -> Network<Cpu> {
        Network::new(Cpu, &self.base, 64).unwrap()
    }

    /// The base on a device. It takes prepared weights in its own form.
    pub(crate) fn gpu(&self, gpu: &Emulated) -> Network<Emulated> {
        let folder = self.folder.path();
        let source = trainer::model::weights::open(&folder.join("base")).unwrap();
        let base = MappedBase::load(gpu, source.as_ref(), &folder.join("gpu")).unwrap();
        Network::new(gpu.clone(), &base, 64).unwrap()
    }

    pub(crate) fn engine<'a, B: Ops>(
        &'a self,
        net: &'a Network<B>,
        stored_blocks: usize,
    ) -> Engine<'a, B> {
        let size = StepSize { rows: 160, stored_blocks, backward: true };
        let most = self.users.iter().map(|u| u.params.len()).max().unwrap();
        // One slot more than users, which nobody trains.
        let slots = u32::try_from(self.users.len()).unwrap() + 1;
        let mut engine = Engine::new(net, &self.lists, size, (slots, most)).unwrap();
        for (user, slot) in self.users.iter().zip((0..).map(Slot)) {
            engine.load(slot, &user.params).unwrap();
        }
        engine.load(Slot(slots - 1), &vec![1.0; most]).unwrap();
        engine
    }

    /// These users in this order, each with its slot's adapter.
    pub(crate) fn pack<B: Ops>(
        &self,
        engine: &Engine<'_, B>,
        who: &[usize],
        (dropout, step): (f32, u32),
    ) -> Packer {
        let mut packer = Packer::new(true);
        for &i in who {
            let (user, number) = (&self.users[i], u32::try_from(i).unwrap());
            let segment = Segment {
                lora_rank: user.lora.lora_rank,
                scale: user.lora.scale(),
                dropout,
                step,
                key: [number, 0x0d0d],
                ..engine.segment(Slot(number), Slot(number))
            };
            let supervised = u16::try_from(user.supervised().max(1)).unwrap();
            packer.add(&Share {
                adapter: (!user.bare()).then_some(segment),
                layout: user.layout,
                pieces: &user.pieces(),
                weight: f32::from(supervised).recip(),
                first_token: 0,
            });
        }
        packer
    }
}

/// Losses of each user in a pack, in its order, and every slot's gradient, its whole capacity.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Measured {
    pub(crate) losses: Vec<Vec<f32>>,
    pub(crate) gradients: Vec<Vec<f32>>,
}

pub(crate) fn gradients<B: Ops>(engine: &Engine<'_, B>) -> Vec<Vec<f32>> {
    let read = |slot| {
        let mut gradient = vec![f32::NAN; engine.slabs.capacity()];
        engine.read_gradient(slot, &mut gradient).unwrap();
        gradient
    };
    (0..engine.slabs.num_slots()).map(Slot).map(read).collect()
}

pub(crate) fn split(packer: &Packer, losses: &[f32]) -> Vec<Vec<f32>> {
    let of = |range: Range<usize>| losses[range].to_vec();
    (0..packer.num_shares()).map(|share| of(packer.targets(share))).collect()
}

/// One forward and backward from fresh slots.
pub(crate) fn measure<B: Ops>(
    world: &World,
    net: &Network<B>,
    who: &[usize],
    (dropout, stored_blocks): (f32, usize),
) -> trainer::stage::Result<Measured> {
    let mut engine = world.engine(net, stored_blocks);
    let packer = world.pack(&engine, who, (dropout, 3));
    // The engine refuses a backward through a pack that trains nobody.
    let trains = |&i: &usize| !world.users[i].bare() && world.users[i].supervised() > 0;
    let trains = who.iter().any(trains);
    let losses = if trains { engine.train(&packer)? } else { engine.losses(&packer)? };
    let losses = split(&packer, losses);
    Ok(Measured { losses, gradients: gradients(&engine) })
}

/// Everybody in the order in which they joined.
pub(crate) fn everybody(world: &World) -> Vec<usize> {
    (0..world.users.len()).collect()
}
