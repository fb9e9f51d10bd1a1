//! The config in a run folder, and its copy in the manifest: overrides name users.

use crate::env::Env;
use crate::exit::Fails;
use anyhow::Context;
use serde_json::Value;
use std::path::Path;
use trainer::config::Config;
use trainer::ids::UserId;
use trainer::store::{Manifest, write_atomic};

/// The name of the resolved config.
const FILE: &str = "config.toml";
const HINT: &str =
    "take the id out of individual.override in the folder's config.toml and manifest.json by hand";

/// How many overrides name the user.
///
/// # Errors
/// They do, and the files cannot be written anew: another version made them.
pub(super) fn look(run: &Path, user: &UserId, env: &Env) -> anyhow::Result<usize> {
    Ok(changed(run, user, env)?.count)
}

/// Writes both without the user; how many overrides named it. An override of nobody else goes whole.
pub(super) fn remove(run: &Path, user: &UserId, env: &Env) -> anyhow::Result<usize> {
    let Changed { count, manifest, config } = changed(run, user, env)?;
    if let Some(manifest) = manifest {
        manifest.save(run)?;
    }
    // The config last: the manifest is made from it.
    if let Some(config) = config {
        write_atomic(&run.join(FILE), config.to_toml()?.as_bytes())?;
    }
    Ok(count)
}

/// The two files as they shall be; none where they are so already.
#[derive(Default)]
struct Changed {
    count: usize,
    manifest: Option<Manifest>,
    config: Option<Config>,
}

fn changed(run: &Path, user: &UserId, env: &Env) -> anyhow::Result<Changed> {
    let mut changed = Changed::default();
    let manifest = Manifest::load(run).input("the run folder is damaged: launcher verify")?;
    let named = |m: &Manifest| overrides(&m.config).iter().any(|o| names(o, user));
    let in_manifest = manifest.as_ref().is_some_and(named);
    let path = run.join(FILE);
    let text = match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !in_manifest => return Ok(changed),
        text => text.with_context(|| format!("{}", path.display())).input(HINT)?,
    };
    // Read as it is first: a config of another version that does not name the user may stay.
    let whole: Value = toml::from_str(&text)
        .with_context(|| format!("{}", path.display()))
        .input("the run folder is damaged: its config.toml is no TOML")?;
    let in_config = overrides(&whole).iter().filter(|o| names(o, user)).count();
    if in_config == 0 && !in_manifest {
        return Ok(changed);
    }
    let mut config = crate::adapters::config(run, env)
        .context("an override names the user, and the config cannot be written anew")
        .input(HINT)?;
    for list in &mut config.individual.overrides {
        list.users.retain(|u| u != user);
    }
    config.individual.overrides.retain(|o| !o.users.is_empty());
    if let Some(mut manifest) = manifest.filter(|_| in_manifest) {
        drop_user(&mut manifest.config, user);
        let template = serde_json::from_value(manifest.config["template"].clone())
            .context("an override names the user, and the manifest cannot be written anew")
            .input(HINT)?;
        manifest.config_hash = crate::session::result_hash(&config, &template)?;
        changed.manifest = Some(manifest);
    }
    changed.count = in_config.max(usize::from(in_manifest));
    changed.config = Some(config).filter(|_| in_config > 0);
    Ok(changed)
}

fn overrides(config: &Value) -> &[Value] {
    config["individual"]["override"].as_array().map_or(&[], Vec::as_slice)
}

fn names(of: &Value, user: &UserId) -> bool {
    let users = of["users"].as_array();
    users.is_some_and(|users| users.iter().any(|u| u.as_str() == Some(user.as_str())))
}

fn drop_user(config: &mut Value, user: &UserId) {
    let Some(individual) = config.get_mut("individual").and_then(Value::as_object_mut) else {
        return;
    };
    let Some(list) = individual.get_mut("override").and_then(Value::as_array_mut) else { return };
    for of in list.iter_mut() {
        if let Some(users) = of.get_mut("users").and_then(Value::as_array_mut) {
            users.retain(|u| u.as_str() != Some(user.as_str()));
        }
    }
    list.retain(|of| of["users"].as_array().is_none_or(|users| !users.is_empty()));
    if list.is_empty() {
        individual.remove("override");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_user_leaves_the_overrides_and_an_empty_one_goes() {
        let mut config = json!({"individual": {"epochs": 1, "override": [
            {"users": ["ann", "bob"], "epochs": 2}, {"users": ["cy"], "epochs": 3}]}});
        let user = UserId::new("ann");
        assert_eq!(overrides(&config).iter().filter(|o| names(o, &user)).count(), 1);
        drop_user(&mut config, &user);
        assert_eq!(overrides(&config)[0]["users"], json!(["bob"]));
        drop_user(&mut config, &UserId::new("cy"));
        assert_eq!(overrides(&config).len(), 1);
        drop_user(&mut config, &UserId::new("bob"));
        assert_eq!(config, json!({"individual": {"epochs": 1}}));
        drop_user(&mut config, &user);
        drop_user(&mut json!([]), &user);
    }
}
