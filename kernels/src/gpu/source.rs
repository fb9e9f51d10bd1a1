//! The device code, embedded: a binary needs no file beside it.

/// One compilation unit.
#[derive(Debug, Clone, Copy)]
pub struct Module {
    /// `norm` of `norm.cu`.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

macro_rules! modules {
    ($($name:literal),* $(,)?) => {
        /// Every module, `kernels/cu/<name>.cu`.
        pub const MODULES: &[Module] = &[$(Module {
            name: $name,
            text: include_str!(concat!("../../cu/", $name, ".cu")),
        }),*];
    };
}

macro_rules! headers {
    ($($name:literal),* $(,)?) => {
        /// Every header as `(name, text)`, by the name after `#include`.
        pub const HEADERS: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../../cu/", $name)))),*];
    };
}

modules! {
    "activation",
    "attention",
    "attention_backward",
    "classify",
    "embedding",
    "intent",
    "intent_gradient",
    "intent_outer",
    "linear",
    "loss",
    "lora_expand",
    "lora_gradient",
    "lora_shrink",
    "norm",
    "optim",
    "pool",
    "random",
    "rope",
    "shards",
}

headers! {
    "attention.cuh",
    "attention_tiles.cuh",
    "common.cuh",
    "lora.cuh",
    "intent.cuh",
    "ptx.cuh",
    "random.cuh",
}

/// The module of that name.
pub fn module(name: &str) -> Option<&'static Module> {
    MODULES.iter().find(|module| module.name == name)
}

/// The text of the header of that name.
pub fn header(name: &str) -> Option<&'static str> {
    HEADERS.iter().find(|(there, _)| *there == name).map(|(_, text)| *text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_device_code_is_embedded() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/cu");
        for entry in std::fs::read_dir(folder).unwrap() {
            let file = entry.unwrap().file_name().into_string().unwrap();
            if file == "limits.toml" {
                continue;
            }
            match file.strip_suffix(".cu") {
                Some(name) => assert!(module(name).is_some(), "{file} is not a module"),
                None => assert!(header(&file).is_some(), "{file} is not a header"),
            }
        }
    }
}
