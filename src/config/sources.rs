//! Where settings come from, and how they become a [`Config`].
//!
//! *Place*: called by [`Config::load`] only. The known keys are not listed anywhere: they are what the default settings
//! serialize to, so a limit that is added to its struct can be set at once.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::Value;

use super::{ClientAddresses, Config, ConfigError, Limits, Network, Secret, limits};

/// One setting from one source.
pub(super) struct Entry {
    /// Dotted key of the file's form: `limits.store.flush_rows`. From the environment: the variable's name.
    key: String,
    value: Value,
    origin: Origin,
}

enum Origin {
    File(String),
    Environment,
    Flag,
}

/// The settings in the shape of the file. Empty text stands for "none".
#[derive(Serialize, Deserialize)]
struct Settings {
    data_dir: String,
    listen: String,
    http: String,
    password: String,
    /// Separated by commas.
    http_origins: String,
    /// Separated by commas.
    trusted_proxies: String,
    client_addresses: String,
    geo_database: String,
    template: bool,
    log: String,
    cores: usize,
    memory: usize,
    allow_private_channels: bool,
    /// Networks, separated by commas.
    channel_networks: String,
    limits: Limits,
}

const PREFIX: &str = "VERUS_";

impl Entry {
    pub(super) fn flag(key: &str, value: String) -> Self {
        Self { key: key.to_owned(), value: Value::String(value), origin: Origin::Flag }
    }

    /// The file's key that this entry sets, or none.
    fn resolve<'a>(&self, known: &'a BTreeMap<String, Value>) -> Option<&'a String> {
        match self.origin {
            Origin::Environment => known.keys().find(|key| variable(key) == self.key),
            Origin::File(_) | Origin::Flag => known.get_key_value(&self.key).map(|(key, _)| key),
        }
    }

    fn origin(&self) -> String {
        match &self.origin {
            Origin::File(path) => path.clone(),
            Origin::Environment => "the environment".to_owned(),
            Origin::Flag => "the command line".to_owned(),
        }
    }

    fn invalid(&self, reason: impl Into<String>) -> ConfigError {
        ConfigError::Invalid { key: self.key.clone(), origin: self.origin(), reason: reason.into() }
    }

    fn unknown(&self, known: &BTreeMap<String, Value>) -> ConfigError {
        let names = known.keys().map(|key| match self.origin {
            Origin::Environment => variable(key),
            Origin::File(_) | Origin::Flag => key.clone(),
        });
        let nearest = names.max_by(|a, b| strsim::jaro_winkler(a, &self.key).total_cmp(&strsim::jaro_winkler(b, &self.key)));
        ConfigError::Unknown { key: self.key.clone(), origin: self.origin(), nearest: nearest.unwrap_or_default() }
    }

    /// The value in the type of the default that it replaces.
    fn coerce(&self, key: &str, default: &Value) -> Result<Value, ConfigError> {
        match (default, &self.value) {
            (Value::Boolean(_), Value::Boolean(_)) => Ok(self.value.clone()),
            (Value::Boolean(_), Value::String(text)) => match text.as_str() {
                "true" | "on" | "yes" | "1" => Ok(Value::Boolean(true)),
                "false" | "off" | "no" | "0" => Ok(Value::Boolean(false)),
                _ => Err(self.invalid("true or false is expected")),
            },
            (Value::Boolean(_), _) => Err(self.invalid("true or false is expected")),
            (Value::Integer(_), value) => {
                let is_size = key == "memory" || key.ends_with("_bytes") || key.ends_with("_bytes_max");
                let number = match value {
                    Value::Integer(number) => Some(*number),
                    Value::String(text) if is_size => size(text),
                    Value::String(text) => text.trim().parse().ok(),
                    _ => None,
                };
                match number.filter(|number| *number > 0) {
                    Some(number) => Ok(Value::Integer(number)),
                    None if is_size => Err(self.invalid("a number of bytes above 0, such as 67108864 or '64MiB', is expected")),
                    None => Err(self.invalid("a whole number above 0 is expected")),
                }
            }
            (_, Value::String(_)) => Ok(self.value.clone()),
            _ => Err(self.invalid("a text is expected")),
        }
    }
}

/// The variable of a key: `limits.store.flush_rows` is `VERUS_LIMITS_STORE_FLUSH_ROWS`.
fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "_").to_uppercase())
}

/// Reads `64`, `64kB`, `64KiB`, `64MB`, `64MiB`, `2GiB`. As in PostgreSQL, kB, MB and GB are powers of 1024 too.
fn size(text: &str) -> Option<i64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let factor = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1_i64 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return None,
    };
    text[..digits].parse::<i64>().ok()?.checked_mul(factor)
}

/// The `VERUS_*` variables, and apart from them the file that `VERUS_CONFIG` names.
pub(super) fn environment(variables: impl IntoIterator<Item = (String, String)>) -> (Option<String>, Vec<Entry>) {
    let mut file = None;
    let mut entries = Vec::new();
    for (key, value) in variables {
        if key == "VERUS_CONFIG" {
            file = Some(value);
        } else if key.starts_with(PREFIX) {
            entries.push(Entry { key, value: Value::String(value), origin: Origin::Environment });
        }
    }
    (file, entries)
}

/// The settings of a file, sections flattened to dotted keys.
pub(super) fn file(path: &Path) -> Result<Vec<Entry>, ConfigError> {
    let failed = |reason: String| ConfigError::File { path: path.to_owned(), reason };
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    // The parser's `message` alone: its `Display` quotes the line, which may hold the password.
    let table: toml::Table = toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        failed(format!("line {line}: {}", error.message()))
    })?;
    let mut flat = BTreeMap::new();
    flatten("", table, &mut flat);
    let origin = path.display().to_string();
    Ok(flat.into_iter().map(|(key, value)| Entry { key, value, origin: Origin::File(origin.clone()) }).collect())
}

fn flatten(prefix: &str, table: toml::Table, flat: &mut BTreeMap<String, Value>) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(inner) => flatten(&key, inner, flat),
            value => {
                flat.insert(key, value);
            }
        }
    }
}

fn nest(flat: BTreeMap<String, Value>) -> toml::Table {
    let mut root = toml::Table::new();
    for (key, value) in flat {
        let mut table = &mut root;
        let mut parts = key.split('.').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                table.insert(part.to_owned(), value);
                break;
            }
            let inner = table.entry(part).or_insert_with(|| Value::Table(toml::Table::new()));
            table = inner.as_table_mut().expect("a section's key never is a value's key: both come from one struct");
        }
    }
    root
}

fn defaults(memory: usize) -> BTreeMap<String, Value> {
    let config = Config::default();
    let settings = Settings {
        data_dir: config.data_dir.display().to_string(),
        listen: config.listen.to_string(),
        http: config.http.to_string(),
        password: String::new(),
        http_origins: String::new(),
        trusted_proxies: String::new(),
        client_addresses: "truncate".to_owned(),
        geo_database: String::new(),
        template: config.template,
        log: config.log,
        cores: config.cores,
        memory,
        allow_private_channels: false,
        channel_networks: String::new(),
        limits: Limits::divide(memory),
    };
    let table = toml::Table::try_from(&settings).expect("the default settings are plain TOML values");
    let mut flat = BTreeMap::new();
    flatten("", table, &mut flat);
    flat
}

/// Applies the entries in order, the later over the earlier, to the defaults.
pub(super) fn resolve(entries: impl Iterator<Item = Entry>) -> Result<Config, ConfigError> {
    let known = defaults(limits::MEMORY_BYTES_DEFAULT);
    let mut given: BTreeMap<String, (Value, Entry)> = BTreeMap::new();
    for entry in entries {
        let Some(key) = entry.resolve(&known) else {
            let is_section = known.keys().any(|key| key.strip_prefix(&entry.key).is_some_and(|rest| rest.starts_with('.')));
            return Err(if is_section { entry.invalid("a section is expected") } else { entry.unknown(&known) });
        };
        let value = entry.coerce(key, &known[key])?;
        given.insert(key.clone(), (value, entry));
    }
    let memory = match given.get("memory") {
        Some((Value::Integer(bytes), entry)) => match usize::try_from(*bytes).ok().filter(|bytes| *bytes >= limits::MEMORY_BYTES_MIN) {
            Some(bytes) => bytes,
            None => return Err(entry.invalid("at least 256MiB are needed")),
        },
        _ => limits::MEMORY_BYTES_DEFAULT,
    };
    let mut flat = defaults(memory);
    flat.extend(given.iter().map(|(key, (value, _))| (key.clone(), value.clone())));
    let settings: Settings = nest(flat).try_into().map_err(|error: toml::de::Error| ConfigError::Invalid {
        key: "limits".to_owned(),
        origin: "the settings".to_owned(),
        reason: error.message().to_owned(),
    })?;
    let address = |key: &str, text: &str| -> Result<SocketAddr, ConfigError> {
        let found = text.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
        found.ok_or_else(|| match given.get(key) {
            Some((_, entry)) => entry.invalid("an address such as 127.0.0.1:5432 is expected"),
            None => unreachable!("the default addresses are numeric"),
        })
    };
    if let Some((_, entry)) = given.get("log")
        && settings.log.parse::<tracing_subscriber::filter::Targets>().is_err()
    {
        return Err(entry.invalid("a filter such as info or info,verus::store=debug is expected"));
    }
    let http_origins: Vec<String> =
        settings.http_origins.split(',').map(|origin| origin.trim().to_owned()).filter(|origin| !origin.is_empty()).collect();
    let is_origin = |origin: &String| {
        origin == "*"
            || origin.split_once("://").is_some_and(|(scheme, host)| !scheme.is_empty() && !host.is_empty() && !host.contains('/'))
    };
    if let Some((_, entry)) = given.get("http_origins")
        && !http_origins.iter().all(is_origin)
    {
        return Err(entry.invalid("origins such as https://shop.example, separated by commas, or * are expected"));
    }
    let networks = |key: &str, text: &str| -> Result<Vec<Network>, ConfigError> {
        let networks = text.split(',').filter(|text| !text.trim().is_empty()).map(str::parse).collect();
        match (networks, given.get(key)) {
            (Ok(networks), _) => Ok(networks),
            (Err(()), Some((_, entry))) => Err(entry.invalid("networks such as 10.1.0.0/16, 192.168.1.7 are expected")),
            (Err(()), None) => Ok(Vec::new()),
        }
    };
    let client_addresses = match (settings.client_addresses.parse(), given.get("client_addresses")) {
        (Ok(kept), _) => kept,
        (Err(()), Some((_, entry))) => return Err(entry.invalid("keep, truncate or drop is expected")),
        (Err(()), None) => ClientAddresses::Truncate,
    };
    Ok(Config {
        http_origins,
        trusted_proxies: networks("trusted_proxies", &settings.trusted_proxies)?,
        client_addresses,
        geo_database: (!settings.geo_database.is_empty()).then(|| PathBuf::from(&settings.geo_database)),
        data_dir: PathBuf::from(&settings.data_dir),
        listen: address("listen", &settings.listen)?,
        http: address("http", &settings.http)?,
        password: (!settings.password.is_empty()).then(|| Secret::new(settings.password)),
        template: settings.template,
        log: settings.log,
        cores: settings.cores,
        memory_bytes: memory,
        allow_private_channels: settings.allow_private_channels,
        channel_networks: networks("channel_networks", &settings.channel_networks)?,
        limits: settings.limits,
    })
}
