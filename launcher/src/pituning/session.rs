//! Everything a PITuning run stands on: config, folder, event logs, windows, the models' forms. The same on every rank.

use crate::device::Device;
use crate::env::Env;
use crate::exit::Fails;
use crate::ground::{Ground, Purpose};
use crate::plan::room::Room;
use serde_json::json;
use std::path::PathBuf;
use trainer::comm::Communicator;
use trainer::config::Effect;
use trainer::config::pituning::{EventConfig, EventSourceKind, ModelShape, SECTIONS, Tune};
use trainer::data::events::generator::{Options, Truth, generate};
use trainer::data::events::{EventData, Format, Part, Split, read};
use trainer::data::{DataError, OnBad};
use trainer::lora::{AdapterSpec, SiteList, SiteLists, Target, WholeTensor};
use trainer::model::event::{Combine, EventSpec, History, Prediction, Product};
use trainer::prompt::Example;
use trainer::stage::individual::PackRules;
use trainer::stage::own::whole_spec;
use trainer::stage::windows::Windows;
use trainer::store::Manifest;

/// Rows of a chunk of a person's micro-batch: part of the arithmetic, so never derived from memory or machine.
const CHUNK_ROWS: usize = 2048;

const DATA_HINT: &str = "docs/guides/pituning.md says what every reader expects";

/// A run that may begin.
#[derive(Debug)]
pub(crate) struct EventSession {
    pub(crate) config: EventConfig,
    pub(crate) folder: PathBuf,
    ground: Ground,
    /// How much of its GPU the rank may take; none on processors.
    pub(crate) room: Option<Room>,
    pub(crate) data: EventData,
    /// Where the data are generated.
    pub(crate) truth: Option<Truth>,
    pub(crate) windows: Windows,
    pub(crate) teacher: EventSpec,
    /// The population model's own form where distilling is off.
    pub(crate) student: EventSpec,
    /// The sites of people's adapters.
    pub(crate) lists: SiteLists,
    pub(crate) lora: AdapterSpec,
    pub(crate) rules: PackRules,
    /// What the person should know of the data.
    pub(crate) notes: Vec<String>,
}

impl EventSession {
    /// Opens the device, reads or generates the data and fits everything to it.
    pub(crate) fn open(
        config: EventConfig,
        purpose: Purpose,
        env: &Env,
        comm: &dyn Communicator,
    ) -> anyhow::Result<Self> {
        let ground = Ground::bare(&config.engine, purpose, (env, comm))?;
        let room = ground.room(&config.engine, purpose, (env, comm))?;
        let (mut data, truth, notes) = data_of(&config)?;
        data.users.truncate(config.data.users.unwrap_or(usize::MAX));
        anyhow::ensure!(!data.users.is_empty(), "no person is left in the data");
        let teacher = spec(&config.model, &data);
        let student = if config.distill.enabled {
            let d = &config.distill;
            EventSpec {
                hidden: d.hidden,
                layers: d.layers,
                heads: d.heads,
                intermediate: d.intermediate,
                head_hidden: d.head_hidden,
                ..teacher.clone()
            }
        } else {
            teacher.clone()
        };
        for (section, spec) in [("[model]", &teacher), ("[distill]", &student)] {
            spec.validate().map_err(|e| anyhow::anyhow!("{section}: {e}")).input("see the key")?;
        }
        let (lora, lists) = adapters(&config, &student)?;
        let windows = Windows::new(&data, config.model.window)?;
        let session = Self {
            folder: config.run.out_dir.clone(),
            ground,
            room,
            rules: PackRules {
                chunk_rows: CHUNK_ROWS.max(config.model.window),
                share_prefixes: false,
            },
            data,
            truth,
            windows,
            teacher,
            student,
            lists,
            lora,
            notes,
            config,
        };
        // Whatever is wrong with a config is told before there is a run folder.
        session.pretrained()?;
        Ok(session)
    }

    /// What computes.
    ///
    /// # Errors
    /// In a plan for a GPU.
    pub(crate) fn device(&self) -> anyhow::Result<&Device> {
        self.ground.device()
    }

    /// Whether histories are means of hidden states.
    pub(crate) fn of_mean(&self) -> bool {
        self.student.history == History::Mean
    }

    /// A person's windows of a part, with the numbers of their targets.
    pub(crate) fn of(&self, number: usize, part: Part) -> Vec<(usize, Example)> {
        let data = &self.config.data;
        let most = if part == Part::Test { data.max_test_windows } else { data.max_windows };
        self.windows.of((number, &self.data.users[number]), part, most)
    }

    /// The windows of a part of all people of the population stage.
    pub(crate) fn population(&self, part: Part) -> Vec<Example> {
        (0..self.data.users.len())
            .filter(|&number| !self.data.users[number].cold)
            .flat_map(|number| self.of(number, part))
            .map(|(_, window)| window)
            .collect()
    }

    /// Training targets by intent: of the population's people, and of one person.
    pub(crate) fn counts(&self, number: Option<usize>) -> Vec<u64> {
        let mut counts = vec![0; self.data.vocabulary.intents.len()];
        let whose = |n: &usize| number.map_or(!self.data.users[*n].cold, |one| one == *n);
        for n in (0..self.data.users.len()).filter(whose) {
            for window in self.data.users[n].windows(Part::Train, 1) {
                counts[window.intent as usize] += 1;
            }
        }
        counts
    }

    /// What the run is made of, for resume and for the reader of the folder.
    pub(crate) fn manifest(&self, env: &Env, comm: &dyn Communicator) -> anyhow::Result<Manifest> {
        let environment = crate::session::environment(env, comm);
        let config: toml::Table = self.config.to_toml()?.parse()?;
        let mut binding = json!(config);
        // Where things lie and how work is laid out may change between two starts of one run.
        for section in SECTIONS {
            let Some(table) = binding.get_mut(section.name).and_then(|t| t.as_object_mut()) else {
                continue;
            };
            for key in section.keys.iter().filter(|key| key.effect == Effect::Placement) {
                table.remove(key.name);
            }
        }
        Ok(Manifest {
            format_version: trainer::store::manifest::FORMAT_VERSION,
            run_id: self.config.run.name.clone(),
            config_hash: self.config.result_hash()?.to_string(),
            config: binding,
            base_hash: forms_hash(&self.teacher, &self.student)?,
            merged_hash: None,
            data_fingerprint: self.fingerprint(),
            tokenizer_hash: blake3::hash(format!("{:?}", self.data.vocabulary).as_bytes())
                .to_hex()
                .to_string(),
            environment,
        })
    }

    /// A hash of every event of every person.
    fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("myriad 2026 event data");
        for user in &self.data.users {
            hasher.update(&user.id.key().0);
            for number in &user.rows {
                hasher.update(&number.to_le_bytes());
            }
            for intent in &user.intents {
                hasher.update(&intent.unwrap_or(u32::MAX).to_le_bytes());
            }
            for part in &user.parts {
                hasher.update(&(part.start as u64).to_le_bytes());
                hasher.update(&(part.end as u64).to_le_bytes());
            }
            hasher.update(&[u8::from(user.cold)]);
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// A hash of what the population model and the student are; their parameters have hashes of their own.
pub(super) fn forms_hash(teacher: &EventSpec, student: &EventSpec) -> anyhow::Result<String> {
    let forms = serde_json::to_vec(&(teacher, student))?;
    Ok(blake3::hash(&forms).to_hex().to_string())
}

/// The logs, the truth where they are generated, and what was left out.
fn data_of(config: &EventConfig) -> anyhow::Result<(EventData, Option<Truth>, Vec<String>)> {
    let source = &config.data;
    match source.source {
        EventSourceKind::Generated => {
            let mut table = source.generator.clone();
            let seed = toml::Value::Integer(i64::try_from(config.run.seed).unwrap_or(i64::MAX));
            table.entry("seed").or_insert(seed);
            table.entry("cold").or_insert(toml::Value::Float(source.cold));
            let split = [source.train, source.validation].map(toml::Value::Float).to_vec();
            table.entry("split").or_insert(toml::Value::Array(split));
            let hint = "docs/guides/pituning.md lists the generator's options";
            let options: Options = toml::Value::Table(table).try_into().input(hint)?;
            let (data, truth) = generate(&options).input(hint)?;
            Ok((data, Some(truth), Vec::new()))
        }
        EventSourceKind::Log => {
            let format =
                Format::resolve(source.preset.as_deref(), &source.format).input(DATA_HINT)?;
            let split = Split {
                train: source.train,
                validation: source.validation,
                cold_share: source.cold,
                seed: config.run.seed,
                ..Split::default()
            };
            let on_bad = if source.strict { OnBad::Stop } else { OnBad::Quarantine };
            let (data, tally) = read(&source.files, &format, &split, on_bad)
                .map_err(|error| of_files(error, &source.files))
                .input(DATA_HINT)?;
            let mut notes: Vec<String> =
                tally.problems.iter().map(|problem| format!("skipped: {problem}")).collect();
            if tally.bad_rows > 0 {
                notes.push(format!(
                    "{} of {} rows are bad and were skipped",
                    tally.bad_rows, tally.rows
                ));
            }
            if tally.short_users > 0 {
                notes.push(format!("{} people have too few events", tally.short_users));
            }
            Ok((data, None, notes))
        }
    }
}

/// Errors of a log as a whole, with the files it is of.
fn of_files(error: DataError, files: &[PathBuf]) -> anyhow::Error {
    match error {
        DataError::Events(error) => {
            let files: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
            anyhow::anyhow!("{}: {error}", files.join(", "))
        }
        other => other.into(),
    }
}

/// A model of this shape for these data.
fn spec(shape: &ModelShape, data: &EventData) -> EventSpec {
    let form = EventSpec {
        columns: Vec::new(),
        intents: 0,
        window: shape.window,
        hidden: shape.hidden,
        layers: shape.layers,
        heads: shape.heads,
        intermediate: shape.intermediate,
        combine: if shape.combine == "sum" { Combine::Sum } else { Combine::Concat },
        history: if shape.history == "mean" { History::Mean } else { History::Last },
        product: if shape.product == "outer" { Product::Outer } else { Product::Elementwise },
        head_hidden: shape.head_hidden,
        prediction: if shape.prediction == "linear" {
            Prediction::Linear
        } else {
            Prediction::Scalar
        },
        norm_eps: 1e-5,
    };
    EventSpec::of(&data.vocabulary, &form)
}

/// The shape of people's adapters, and their sites.
fn adapters(config: &EventConfig, student: &EventSpec) -> anyhow::Result<(AdapterSpec, SiteLists)> {
    let (recipe, trunk) = (&config.individual.training, student.trunk());
    let mut lists = SiteLists::new(&trunk);
    if config.individual.tune == Tune::All {
        return Ok((whole_spec(), lists));
    }
    let hint = "targets of the event model are GPT-2's: c_attn, attn_c_proj, c_fc, mlp_c_proj";
    let targets = Target::parse_all(&recipe.targets).input(hint)?;
    let mut sites = SiteList::of_base(&trunk, &targets).input(hint)?;
    if config.individual.tune == Tune::AdaptersAndHead {
        let (n, d) = (student.intents, student.hidden);
        let tensor =
            |name: &str, dims: &[usize]| WholeTensor { name: name.into(), dims: dims.into() };
        let changes = [tensor("intent.table.change", &[n, d]), tensor("intent.bias.change", &[n])];
        sites = sites.with_whole(changes.to_vec());
    }
    lists.add(&sites).input(hint)?;
    Ok((trainer::stage::recipe::adapter(recipe, &targets), lists))
}
