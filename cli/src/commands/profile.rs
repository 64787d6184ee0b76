//! `trunkline profile`: lists, shows and chooses profiles. Secrets are not printed.

use crate::args::{self, Output, ProfileCommand};
use crate::print;
use crate::profiles::{self, Profile};
use anyhow::{Result, bail};
use serde_json::{Map, Value, json};

/// What is printed instead of a secret.
const HIDDEN: &str = "***";

/// Runs the subcommand.
pub fn run(output: Output, profile: &args::Profile) -> Result<()> {
    let dir = profiles::dir()?;
    match &profile.command {
        ProfileCommand::List => {
            let chosen = profiles::chosen(&dir)?;
            let names = profiles::names(&dir)?;
            let items: Vec<Value> = names
                .iter()
                .map(|name| list_item(name, chosen.as_deref(), profiles::read(&dir, name)))
                .collect();
            print::items(output, &items, &["profile", "in_use", "kafka", "registry", "problem"])
        }
        ProfileCommand::Show(show) => {
            let name = match &show.name {
                Some(name) => Some(name.clone()),
                None => profiles::chosen(&dir)?,
            };
            let Some(name) = name else {
                bail!("no profile is in use; name one, or choose one with `trunkline profile use NAME`");
            };
            let values = shown(&profiles::read(&dir, &name)?);
            let items: Vec<Value> = values
                .iter()
                .map(|(key, value)| json!({ "key": key, "value": value }))
                .collect();
            print::items(output, &items, &["key", "value"])
        }
        ProfileCommand::Use(chosen) => profiles::choose(&dir, chosen.name.as_deref()),
    }
}

/// One line of the list. A profile that cannot be read does not hide the others.
fn list_item(name: &str, chosen: Option<&str>, profile: Result<Profile>) -> Value {
    let in_use = if chosen == Some(name) { "yes" } else { "" };
    match profile {
        Ok(profile) => json!({
            "profile": name,
            "in_use": in_use,
            "kafka": profile.kafka.map(|kafka| kafka.brokers),
            "registry": profile.registry.and_then(|registry| registry.url),
        }),
        Err(error) => json!({ "profile": name, "in_use": in_use, "problem": format!("{error:#}") }),
    }
}

/// The settings of a profile by key. Every value that may contain a secret is hidden; settings of librdkafka are shown only
/// if they are known to contain none.
fn shown(profile: &Profile) -> Map<String, Value> {
    const PUBLIC: [&str; 6] = [
        "security.protocol",
        "sasl.mechanism",
        "sasl.mechanisms",
        "sasl.username",
        "ssl.ca.location",
        "client.id",
    ];
    let mut values = Map::new();
    let mut put = |key: String, value: Option<String>| {
        if let Some(value) = value {
            values.insert(key, value.into());
        }
    };
    let hidden = |is_set: bool| is_set.then(|| HIDDEN.to_owned());
    if let Some(kafka) = &profile.kafka {
        put("kafka.brokers".to_owned(), Some(kafka.brokers.clone()));
        for (name, value) in &kafka.settings {
            let is_public = PUBLIC.contains(&name.as_str());
            let value = if is_public { value.expose() } else { HIDDEN };
            put(format!("kafka.settings.{name}"), Some(value.to_owned()));
        }
        let replication = kafka.replication.map(|replication| replication.to_string());
        put("kafka.replication".to_owned(), replication);
    }
    if let Some(registry) = &profile.registry {
        put("registry.url".to_owned(), registry.url.as_deref().map(without_password));
        put("registry.user".to_owned(), registry.user.clone());
        put("registry.password".to_owned(), hidden(registry.password.is_some()));
    }
    let client = &profile.client;
    let path = |path: &Option<std::path::PathBuf>| path.as_ref().map(|path| path.display().to_string());
    put("client.admin_token".to_owned(), hidden(client.token.is_some()));
    put("client.admin_token_file".to_owned(), path(&client.token_file));
    put("client.admin_ca".to_owned(), path(&client.ca));
    values
}

/// A URL without the user and the password before its host.
fn without_password(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let authority = rest.find('/').unwrap_or(rest.len());
            match rest.get(..authority).and_then(|authority| authority.rfind('@')) {
                Some(at) => format!("{scheme}://{HIDDEN}{}", rest.get(at..).unwrap_or_default()),
                None => url.to_owned(),
            }
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("profiles")).unwrap();
        let text = r#"
[kafka]
brokers = "kafka:9093"
settings = { "sasl.username" = "ada", "sasl.password" = "hunter2", "ssl.key.pem" = "hunter2", "x.y" = "hunter2" }
[registry]
url = "https://ada:hunter2@registry/api"
user = "ada"
password = "hunter2"
[client]
admin_token = "hunter2"
admin_ca = "ca.pem"
"#;
        std::fs::write(dir.path().join("profiles/prod.toml"), text).unwrap();
        let values = shown(&profiles::read(dir.path(), "prod").unwrap());
        let text = Value::Object(values.clone()).to_string();
        assert!(!text.contains("hunter2"), "{text}");
        for (key, value) in [
            ("kafka.brokers", "kafka:9093"),
            ("kafka.settings.sasl.username", "ada"),
            ("kafka.settings.sasl.password", HIDDEN),
            ("registry.url", "https://***@registry/api"),
            ("registry.password", HIDDEN),
            ("client.admin_token", HIDDEN),
            ("client.admin_ca", "ca.pem"),
        ] {
            assert_eq!(values.get(key).and_then(Value::as_str), Some(value), "{key}");
        }
    }

    #[test]
    fn profile_that_cannot_be_read_is_listed_with_its_problem() {
        let item = list_item("typo", Some("typo"), Err(anyhow::anyhow!("unknown field kafca")));
        assert_eq!(item.get("in_use").and_then(Value::as_str), Some("yes"));
        assert_eq!(item.get("problem").and_then(Value::as_str), Some("unknown field kafca"));
    }
}
