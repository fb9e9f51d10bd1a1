//! What `bench tune` tunes, as files for another program to tune the same: `scripts/compare/pituning_tune_torch.py`.
//!
//! `case.json` says the student's form, the table of events, the adapter's tensors, and for each person the passes: windows,
//! losses, the windows of each step, its learning rate, and what our loss was. `student.bin` and `adapters.bin` are
//! parameters at the start, little-endian `f32`: the student's tensor after tensor, the adapters person after person.

use crate::exit::Fails;
use crate::pituning::EventSession;
use anyhow::Context;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use trainer::config::Recipe;
use trainer::ids::{Step, UserId};
use trainer::lora::{Half, SiteList, initialise};
use trainer::model::event::Places;
use trainer::optim::{Order, Schedule, steps_per_user};
use trainer::stage::tune::{Lesson, Person, Tuning};
use trainer::store::{ModelFile, write_atomic};

/// Everybody's losses, step by step.
pub(super) type Losses = BTreeMap<UserId, Vec<f32>>;

/// What was tuned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case<'a> {
    pub(super) session: &'a EventSession,
    pub(super) student: &'a ModelFile,
    pub(super) tuning: &'a Tuning,
    pub(super) losses: &'a Losses,
}

/// Refuses what the files have no place for.
pub(super) fn check(tuning: &Tuning) -> anyhow::Result<()> {
    for recipe in [&tuning.unlearn, &tuning.learn] {
        for (told, what, hint) in [
            (recipe.dropout > 0.0, "dropout", "set individual.dropout to 0"),
            (recipe.early_stop.enabled, "early stopping", "set early_stop.enabled to false"),
        ] {
            if told {
                return Err(anyhow::anyhow!("{what} cannot be dumped")).input(hint);
            }
        }
    }
    Ok(())
}

impl Case<'_> {
    /// Writes the files.
    pub(super) fn write(&self, folder: &Path, people: &[Person]) -> anyhow::Result<()> {
        let tuning = self.tuning;
        std::fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
        let sites = &self.session.lists.lists()[0];
        let lora_rank = tuning.lora.lora_rank as usize;
        let (mut all, mut adapters) = (Vec::new(), Vec::new());
        for person in people.iter().filter(|person| person.unusable.is_none()) {
            let mut params = vec![0.0; sites.params(lora_rank)];
            let second = person.unlearn.windows.is_empty();
            initialise(sites, lora_rank, tuning.key(&person.user, second), &mut params)?;
            adapters.extend(params);
            all.push(self.person(person)?);
        }
        let places = Places::new(&self.student.spec);
        let tensors = places.tensors().iter().map(|p| json!({"name": p.name, "dims": p.dims}));
        let table = self.session.windows.table();
        let events = (0u32..).map_while(|number| table.row(number)).collect::<Vec<&[u32]>>();
        let case = json!({
            "spec": self.student.spec,
            "tensors": tensors.collect::<Vec<Value>>(),
            "events": events,
            "scale": tuning.lora.scale(),
            "adapter": adapter(sites, lora_rank),
            "people": all,
        });
        write_atomic(&folder.join("case.json"), &serde_json::to_vec(&case)?)?;
        write_atomic(&folder.join("student.bin"), &bytes(&self.student.params))?;
        Ok(write_atomic(&folder.join("adapters.bin"), &bytes(&adapters))?)
    }

    fn person(&self, person: &Person) -> anyhow::Result<Value> {
        let Person { user, unlearn, learn, .. } = person;
        let (tuning, mut passes) = (self.tuning, Vec::new());
        for (lesson, recipe, second) in
            [(unlearn, &tuning.unlearn, false), (learn, &tuning.learn, true)]
        {
            if !lesson.windows.is_empty() {
                passes.push(pass(lesson, recipe, tuning.key(user, second))?);
            }
        }
        let losses = self.losses.get(user);
        Ok(json!({"user": user.as_str(), "passes": passes, "losses": losses}))
    }
}

/// Names and forms of an adapter's tensors, in the order of its flat vector.
fn adapter(sites: &SiteList, lora_rank: usize) -> Vec<Value> {
    let matrices = sites.tensors(lora_rank).map(|(site, half, _)| {
        let (half, dims) = match half {
            Half::A => ("A", [lora_rank, site.in_dim]),
            Half::B => ("B", [site.out_dim, lora_rank]),
        };
        let (layer, target) = (site.layer, site.target.block_path());
        json!({"layer": layer, "target": target, "half": half, "dims": dims})
    });
    let whole = sites.whole().iter().map(|t| json!({"name": t.name, "dims": t.dims}));
    matrices.chain(whole).collect()
}

fn pass(lesson: &Lesson, recipe: &Recipe, key: [u32; 2]) -> anyhow::Result<Value> {
    let windows = u32::try_from(lesson.windows.len())?;
    let total = steps_per_user(lesson.windows.len(), recipe.batch_size, recipe.epochs)?;
    let orders = (0..recipe.epochs).map(|epoch| Order::new(windows, recipe.batch_size, epoch, key));
    let steps: Vec<Vec<u32>> =
        orders.flat_map(|o| o.batches().map(<[u32]>::to_vec).collect::<Vec<_>>()).collect();
    let schedule = Schedule::new(recipe, total);
    let rates: Vec<f64> = (0..total).map(|done| schedule.rate(Step(done))).collect();
    let row = |l: &trainer::pack::ClassLoss| {
        let r = l.row;
        json!({"kind": r.kind, "target": r.target, "soft": r.soft, "beta": r.beta, "margin": r.margin,
            "teacher": l.teacher})
    };
    Ok(json!({
        "windows": lesson.windows.iter().map(|w| &w.tokens[..]).collect::<Vec<_>>(),
        "rows": lesson.losses.iter().map(row).collect::<Vec<Value>>(),
        "steps": steps,
        "rates": rates,
        "betas": recipe.betas,
        "eps": recipe.eps,
        "weight_decay": recipe.weight_decay,
        "clip_norm": recipe.clip_norm,
    }))
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}
