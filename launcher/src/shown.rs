//! What stands in front of a question: the config's words as a retrieval, and the users a pool draws from.

use crate::exit::Fails;
use std::borrow::Cow;
use std::collections::BTreeMap;
use trainer::config::{AblationKind, Arm, Config, OrderKind, RetrieverKind};
use trainer::data::{DataError, Dataset, Index, Item, LampTask};
use trainer::ids::UserKey;
use trainer::prompt::Ablation;
use trainer::retrieval::{Amount, Order, Others, Retrieval, Retriever, study_pool};

/// Which parts of a prompt an arm gets; training gets what `personal` gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shown {
    /// The retrieved items.
    pub(crate) items: bool,
    /// The text about the user.
    pub(crate) profile: bool,
}

impl Shown {
    /// All that the config says.
    pub(crate) const ALL: Self = Self { items: true, profile: true };

    /// What an arm is shown.
    pub(crate) fn to(arm: Arm) -> Self {
        Self { items: arm != Arm::Base, profile: !matches!(arm, Arm::Base | Arm::Rag) }
    }
}

/// The retrieval of a config.
pub(crate) fn retrieval(config: &Config) -> anyhow::Result<Retrieval> {
    let prompt = &config.prompt;
    let mixed = prompt.retriever == RetrieverKind::Mixed;
    let (first, outputs) = if mixed {
        (prompt.input_retriever, Some(retriever(prompt.output_retriever)))
    } else {
        (prompt.retriever, None)
    };
    let number = if prompt.retrieved_share > 0.0 {
        Amount::Share(prompt.retrieved_share)
    } else {
        Amount::Count(prompt.retrieved)
    };
    let offset = if prompt.offset == 0.0 {
        Amount::Count(0)
    } else {
        Amount::try_from(prompt.offset)
            .input("prompt.offset is a share below 1, or a whole number")?
    };
    let order = match prompt.order {
        OrderKind::Start => Order::Start,
        OrderKind::End => Order::End,
        OrderKind::Middle => Order::Middle,
        OrderKind::Random => Order::Random,
    };
    let pool = prompt.pool_items.or_else(|| of_task(config)).unwrap_or(0);
    let seed = prompt.retrieval_seed.unwrap_or(config.run.seed);
    let retriever = retriever(first);
    let retrieval =
        Retrieval { retriever, outputs, number, offset, order, pool, exclude_self: false, seed };
    retrieval.check().input("set prompt.pool_items, the number of items ranbm25 ranks")?;
    Ok(retrieval)
}

fn retriever(kind: RetrieverKind) -> Retriever {
    match kind {
        RetrieverKind::Bm25Okapi => Retriever::Bm25Okapi,
        RetrieverKind::Bm25Lamp => Retriever::Bm25Lamp,
        RetrieverKind::Bm25Study => Retriever::Bm25Study,
        RetrieverKind::Recency => Retriever::Recency,
        RetrieverKind::RandomLamp => Retriever::RandomLamp,
        RetrieverKind::FullRandom => Retriever::FullRandom,
        RetrieverKind::RanBm25 => Retriever::RanBm25,
        // `mixed` is two of the others; config lets none of the two be `mixed`.
        RetrieverKind::Random | RetrieverKind::Mixed => Retriever::Random,
    }
}

/// The study's pool of the config's task.
fn of_task(config: &Config) -> Option<usize> {
    let task = LampTask::parse(config.data.task.as_deref()?).ok()?;
    let digits = task.lamp_id().trim_start_matches("LaMP_").trim_end_matches(char::is_alphabetic);
    study_pool(digits.parse().ok()?)
}

/// What of the retrieved items a config shows.
pub(crate) fn ablation(config: &Config) -> Ablation {
    match config.prompt.ablation {
        AblationKind::Both => Ablation::Both,
        AblationKind::OnlyInput => Ablation::OnlyInput,
        AblationKind::OnlyOutput => Ablation::OnlyOutput,
        AblationKind::Decouple => Ablation::Decouple,
    }
}

/// All users of a data set, personal ones first, as the study draws over train and dev.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Everybody<'a> {
    pub(crate) data: &'a Dataset,
    /// [`Everybody::numbers`] of the data.
    pub(crate) numbers: &'a BTreeMap<UserKey, usize>,
}

impl Everybody<'_> {
    /// The number of every user.
    pub(crate) fn numbers(data: &Dataset) -> BTreeMap<UserKey, usize> {
        let Index { personal, population, .. } = data.index();
        let keys = personal.iter().chain(population).map(|user| user.key);
        keys.enumerate().map(|(number, key)| (key, number)).collect()
    }
}

impl Others for Everybody<'_> {
    fn users(&self) -> usize {
        self.numbers.len()
    }

    fn items_of(&self, user: usize) -> usize {
        let Index { personal, population, .. } = self.data.index();
        let record = personal.get(user).or_else(|| population.get(user - personal.len()));
        record.map_or(0, |user| user.num_history)
    }

    fn history(&self, user: usize) -> Result<Cow<'_, [Item]>, DataError> {
        let personal = self.data.index().personal.len();
        let record = match user.checked_sub(personal) {
            None => self.data.user(user)?,
            Some(other) => self.data.population_user(other)?,
        };
        Ok(Cow::Owned(record.history))
    }

    fn number_of(&self, user: UserKey) -> Option<usize> {
        self.numbers.get(&user).copied()
    }
}
