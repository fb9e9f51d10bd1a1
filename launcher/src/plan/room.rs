//! How much of a GPU a rank may take, and who says so.

use crate::exit::Fails;
use trainer::config::Engine;

/// What plans may be made for by name, with the memory that CUDA reports of them in whole GiB, rounded down.
const KNOWN: [(&str, usize); 4] = [("a100-40", 39), ("a100-80", 79), ("h100", 79), ("h200", 139)];

/// Memory of a rank's GPU; no two ranks share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) bytes: usize,
    pub(crate) source: Source,
}

/// Who bounds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The device, of which so much was free when it was opened.
    Free,
    /// `engine.gpu_memory_gb`.
    Key,
    /// `--gpu`.
    Named,
}

impl Room {
    /// The smaller of what there is and what the config allows; the device is asked only if nobody else says.
    ///
    /// # Errors
    /// When nobody says, and asking fails.
    pub(crate) fn of(
        engine: &Engine,
        there: Option<Self>,
        ask: impl FnOnce() -> anyhow::Result<usize>,
    ) -> anyhow::Result<Self> {
        let key = (engine.gpu_memory_gb > 0.0)
            .then(|| Self { bytes: super::bytes(engine.gpu_memory_gb), source: Source::Key });
        match (there, key) {
            (Some(there), Some(key)) if there.bytes > key.bytes => Ok(key),
            (Some(there), _) => Ok(there),
            (None, Some(key)) => Ok(key),
            (None, None) => Ok(Self { bytes: ask()?, source: Source::Free }),
        }
    }

    /// For people: `the device has 42.00 GB free`.
    pub(crate) fn says(self) -> String {
        let there = super::gigabytes(self.bytes);
        match self.source {
            Source::Free => format!("the device has {there:.2} GB free"),
            Source::Key => format!("engine.gpu_memory_gb is {there:.2}"),
            Source::Named => format!("--gpu has {there:.2} GB"),
        }
    }
}

/// Bytes of a GPU by its name, or by its size in 10^9 bytes.
pub(crate) fn named(text: &str) -> Result<usize, String> {
    if let Some((_, gib)) = KNOWN.iter().find(|(name, _)| *name == text) {
        return Ok(gib << 30);
    }
    match text.parse::<f64>() {
        Ok(number) if (0.01..=1e6).contains(&number) => Ok(super::bytes(number)),
        _ => {
            let names: Vec<&str> = KNOWN.iter().map(|(name, _)| *name).collect();
            Err(format!("give one of {}, or its memory in GB", names.join(", ")))
        }
    }
}

/// What to do when a plan finds no GPU.
const NO_GPU: &str = "launcher plan --gpu NAME|GB plans for a GPU that is elsewhere (a100-40, a100-80, h100, h200, or its memory), as does engine.gpu_memory_gb";

/// The error of a plan that finds no GPU and is told of none.
pub(crate) fn untold<T>(asked: anyhow::Result<T>) -> anyhow::Result<T> {
    asked.map_err(|error| error.context("nothing says how much memory the GPU has")).input(NO_GPU)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_has_a_name_or_a_size() {
        assert_eq!(named("h200"), Ok(139 << 30));
        assert_eq!(named("a100-40"), Ok(39 << 30));
        assert_eq!(named("24"), Ok(24_000_000_000));
        assert_eq!(named("0.5"), Ok(500_000_000));
        for bad in ["h300", "", "0", "-1", "NaN", "inf", "1e9", "80GB"] {
            let said = named(bad).unwrap_err();
            assert!(said.contains("a100-40, a100-80, h100, h200"), "{bad:?}: {said}");
        }
    }

    #[test]
    fn the_smaller_of_device_and_config_counts() {
        let text = "device = \"cuda\"\nmemory_gb = 4.0\ngpu_memory_gb = 10.0\nusers_in_flight = 0\n\
                    pack_tokens = 0\nthreads = 0\nrecompute = \"auto\"\nshared_prefix = true\n\
                    gradient_sum = \"device\"\ngraphs = false\n";
        let engine: Engine = toml::from_str(text).unwrap();
        let free = |bytes| Some(Room { bytes, source: Source::Free });
        let of = |engine: &Engine, there| Room::of(engine, there, || Ok(7)).unwrap();
        let key = Room { bytes: 10_000_000_000, source: Source::Key };
        assert_eq!(of(&engine, free(40 << 30)), key);
        assert_eq!(Some(of(&engine, free(1 << 30))), free(1 << 30));
        assert_eq!(of(&engine, None), key);
        let open = Engine { gpu_memory_gb: 0.0, ..engine };
        assert_eq!(of(&open, None), Room { bytes: 7, source: Source::Free });
        assert_eq!(Some(of(&open, free(5))), free(5));
        assert_eq!(key.says(), "engine.gpu_memory_gb is 10.00");
        assert_eq!(of(&open, free(5_500_000_000)).says(), "the device has 5.50 GB free");
        let failed = untold(Room::of(&open, None, || Err(anyhow::anyhow!("no driver"))));
        let (exit, hint) = crate::exit::read(&failed.unwrap_err());
        assert_eq!(exit, crate::exit::Exit::Input);
        assert!(hint.is_some_and(|hint| hint.contains("--gpu")));
    }
}
