//! The only reader of the environment.
#![expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]

use std::collections::BTreeMap;
use std::path::PathBuf;

/// What the launcher takes from its environment.
#[derive(Debug, Clone)]
pub(crate) struct Env {
    /// `MYRIAD_CACHE`, or `$HOME/.cache/myriad`: model, data, prepared weights.
    pub(crate) cache: PathBuf,
    /// Whether a launcher (mpirun, srun with PMI) started this process as one of several.
    pub(crate) started_by_mpi: bool,
    /// Processes that the MPI launcher started, if it says.
    pub(crate) ranks_in_job: Option<usize>,
    /// Processors this process may use (affinity and cgroup), or `SLURM_CPUS_PER_TASK`.
    pub(crate) processors: usize,
}

fn number(name: &str) -> Option<usize> {
    std::env::var(name).ok()?.trim().parse().ok()
}

/// Whether the MPI launcher bound this rank to processors of its own: it may use others than its parent,
/// the launcher's daemon, may.
fn bound_to_own_processors() -> bool {
    let allowed = |process: &str| -> Option<String> {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        status.lines().find(|l| l.starts_with("Cpus_allowed_list:")).map(str::to_owned)
    };
    let parent = allowed(&std::os::unix::process::parent_id().to_string());
    parent.is_some() && parent != allowed("self")
}

impl Env {
    pub(crate) fn read() -> Self {
        let home = std::env::var("HOME").map_or_else(|_| PathBuf::from("."), PathBuf::from);
        let cache = std::env::var("MYRIAD_CACHE")
            .map_or_else(|_| home.join(".cache/myriad"), PathBuf::from);
        let mpi = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "MPI_LOCALNRANKS"];
        let available = std::thread::available_parallelism().map_or(1, usize::from);
        let per_task = number("SLURM_CPUS_PER_TASK");
        let ranks_on_node = number("OMPI_COMM_WORLD_LOCAL_SIZE")
            .or_else(|| number("MPI_LOCALNRANKS"))
            .unwrap_or(1)
            .max(1);
        // Ranks that are not bound share the node's processors.
        let share = if bound_to_own_processors() { available } else { available / ranks_on_node };
        Self {
            cache,
            started_by_mpi: mpi.iter().any(|name| std::env::var_os(name).is_some()),
            processors: per_task.unwrap_or(share.max(1)),
            ranks_in_job: number("OMPI_COMM_WORLD_SIZE").or_else(|| number("PMI_SIZE")),
        }
    }

    /// Variables a config may name as `${NAME}`.
    pub(crate) fn variables(&self) -> BTreeMap<String, String> {
        let mut variables: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
            .collect();
        variables.insert("MYRIAD_CACHE".to_owned(), self.cache.display().to_string());
        variables
    }
}
