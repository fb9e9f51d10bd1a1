//! Hugging Face PEFT folders: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Export writes what PEFT loads without a warning (checked with 0.21.2) and old versions understand; import takes
//! what is exactly a plain LoRA of our base and refuses, by name, everything it would have to ignore. PEFT itself
//! accepts missing layers, unknown keys and NaN quietly. Pickle files are never read.

mod config;
mod export;
mod import;

pub use export::{ExportOptions, Exported, Naming, export};
pub use import::{Imported, import};

/// Name of the config file.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Name of the weights file.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// Name of the list of users in an export's folder.
pub const USERS_FILE: &str = "users.json";
