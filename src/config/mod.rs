//! Settings and limits: flags, then `VERUS_*`, then `verus.toml`, then the defaults.
//!
//! *Place*: read once by `main`, handed to `server`; every component takes its section of [`Limits`].
//!
//! *Invariants*: (1) a key that means nothing is an error that names the nearest one, wherever it stands; (2) without a
//! password every address is a loopback address; (3) a [`Secret`] never reaches a log, an error or a `Debug` output.

pub mod flags;
pub mod limits;
pub mod network;
mod sources;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

pub use flags::ServeFlags;
pub use limits::Limits;
pub use network::{ClientAddresses, Network};

/// All settings of a server, resolved and checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Everything that has to survive lives below it; made if missing.
    pub data_dir: PathBuf,
    /// Where the PostgreSQL protocol is spoken.
    pub listen: SocketAddr,
    /// Where `/health`, `/metrics`, `/views` and `/v1` are.
    pub http: SocketAddr,
    /// The password of user `verus`; none trusts everybody on this machine.
    pub password: Option<Secret>,
    /// Origins (`https://shop.example`) whose pages may send events; `*` for all.
    pub http_origins: Vec<String>,
    /// Proxies whose X-Forwarded-For is believed.
    pub trusted_proxies: Vec<Network>,
    /// What is kept of the addresses of those who send events.
    pub client_addresses: ClientAddresses,
    /// File in MaxMind's format that the geo functions look addresses up in.
    pub geo_database: Option<PathBuf>,
    /// A fresh data directory gets the commerce schema (`sql/commerce.sql`).
    pub template: bool,
    /// Filter of the log on standard error, in tracing's syntax (`info`, `verus=debug`).
    pub log: String,
    /// Threads that plan, decode and execute; at least 1.
    pub cores: usize,
    /// The memory budget that [`Limits::divide`] was given, bytes.
    pub memory_bytes: usize,
    /// Notification channels may call addresses of this machine and of private networks.
    pub allow_private_channels: bool,
    /// Networks that they may call although they are not public.
    pub channel_networks: Vec<Network>,
    /// Named maxima of every queue, batch and buffer.
    pub limits: Limits,
}

/// A value that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// What is wrong with the settings. `main` prints it and exits with 1.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A key that means nothing.
    #[error("unknown setting {key} in {origin}; the nearest is {nearest}")]
    Unknown {
        /// As it was written.
        key: String,
        /// The file or the environment.
        origin: String,
        /// The known key that looks most like it.
        nearest: String,
    },
    /// A value that does not fit its key. The value itself is not repeated: it may be a secret in the wrong place.
    #[error("invalid value for {key} in {origin}: {reason}")]
    Invalid {
        /// The key.
        key: String,
        /// The file, the environment or the command line.
        origin: String,
        /// What is expected.
        reason: String,
    },
    /// The file cannot be read or is not TOML.
    #[error("cannot read the configuration file {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's or the TOML parser's message.
        reason: String,
    },
    /// An address that others can reach, without a password.
    #[error(
        "refusing to listen on {address} ({key}) without a password: only loopback addresses are allowed then; \
         set a password with --password, VERUS_PASSWORD or `password` in verus.toml"
    )]
    OpenAddress {
        /// `listen` or `http`.
        key: &'static str,
        /// The address.
        address: SocketAddr,
    },
}

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value, for comparing or deriving; never for printing.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("./verus-data"),
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5432),
            http: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080),
            password: None,
            http_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            client_addresses: ClientAddresses::Truncate,
            geo_database: None,
            template: true,
            log: "info".to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: limits::MEMORY_BYTES_DEFAULT,
            allow_private_channels: false,
            channel_networks: Vec::new(),
            limits: Limits::divide(limits::MEMORY_BYTES_DEFAULT),
        }
    }
}

/// The file that is read when none is named and it exists.
const DEFAULT_FILE: &str = "verus.toml";

impl Config {
    /// Resolves the settings from `flags`, `environment` (all variables of the process; those that begin with `VERUS_`
    /// count) and the file that the flags or `VERUS_CONFIG` name, else `./verus.toml` when it exists.
    pub fn load(flags: &ServeFlags, environment: impl IntoIterator<Item = (String, String)>) -> Result<Config, ConfigError> {
        let (named_file, environment) = sources::environment(environment);
        let file = match flags.config.clone().or(named_file.map(PathBuf::from)) {
            Some(path) => sources::file(&path)?,
            None if Path::new(DEFAULT_FILE).exists() => sources::file(Path::new(DEFAULT_FILE))?,
            None => Vec::new(),
        };
        let config = sources::resolve(file.into_iter().chain(environment).chain(flags.entries()))?;
        config.check_addresses()?;
        Ok(config)
    }

    fn check_addresses(&self) -> Result<(), ConfigError> {
        if self.password.is_some() {
            return Ok(());
        }
        for (key, address) in [("listen", self.listen), ("http", self.http)] {
            if !address.ip().to_canonical().is_loopback() {
                return Err(ConfigError::OpenAddress { key, address });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, environment: &[(&str, &str)], flags: ServeFlags) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("verus.toml");
        std::fs::write(&path, file).unwrap();
        let environment = environment.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Config::load(&ServeFlags { config: Some(path), ..flags }, environment)
    }

    fn failure(file: &str, environment: &[(&str, &str)]) -> String {
        load(file, environment, ServeFlags::default()).unwrap_err().to_string()
    }

    #[test]
    fn flags_win_over_environment_over_file() {
        let file = "listen = '127.0.0.1:1'\nhttp = '127.0.0.1:1'\ndata_dir = 'file'\nlog = 'warn'\n[limits.store]\nflush_rows = 7\n";
        let environment = [("VERUS_HTTP", "127.0.0.1:2"), ("VERUS_DATA_DIR", "environment"), ("VERUS_LIMITS_WIRE_DEPTH_MAX", "9")];
        let flags = ServeFlags { data_dir: Some("flag".into()), no_template: true, ..ServeFlags::default() };
        let config = load(file, &environment, flags).unwrap();
        assert_eq!(config.listen.port(), 1);
        assert_eq!(config.http.port(), 2);
        assert_eq!(config.data_dir, PathBuf::from("flag"));
        assert_eq!(config.log, "warn");
        assert!(!config.template);
        assert_eq!((config.limits.store.flush_rows, config.limits.wire.depth_max), (7, 9));
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        assert!(failure("lisen = 'x'", &[]).contains("the nearest is listen"));
        assert!(failure("[limits.store]\nflush_row = 1", &[]).contains("the nearest is limits.store.flush_rows"));
        assert!(failure("", &[("VERUS_DATADIR", "x")]).contains("unknown setting VERUS_DATADIR"));
        assert!(failure("", &[("VERUS_DATADIR", "x")]).contains("the nearest is VERUS_DATA_DIR"));
    }

    #[test]
    fn a_wrong_value_names_its_key_and_is_not_repeated() {
        for (file, key) in [
            ("template = 'hunter2'", "template"),
            ("memory = 'hunter2'", "memory"),
            ("[limits.store]\nflush_rows = 0", "limits.store.flush_rows"),
            ("[limits.store]\nflush_rows = -1", "limits.store.flush_rows"),
            ("listen = 'hunter2'", "listen"),
            ("log = 'a=b=hunter2'", "log"),
            ("limits = 3", "limits"),
        ] {
            let message = failure(file, &[]);
            assert!(message.contains(&format!("invalid value for {key} ")), "{message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
    }

    #[test]
    fn without_a_password_only_loopback() {
        assert!(failure("listen = '0.0.0.0:5432'", &[]).contains("without a password"));
        assert!(failure("http = '[::]:8080'", &[]).contains("(http) without a password"));
        let config = load("listen = '0.0.0.0:5432'", &[("VERUS_PASSWORD", "hunter2")], ServeFlags::default()).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
        assert_eq!(config.password.unwrap().expose(), "hunter2");
    }

    #[test]
    fn memory_is_divided_and_a_limit_given_by_name_wins() {
        let config = load("memory = '1GiB'\n[limits.query]\nmemory_bytes = '100MiB'", &[], ServeFlags::default()).unwrap();
        assert_eq!(config.memory_bytes, 1 << 30);
        assert_eq!(config.limits.query.memory_bytes, 100 << 20);
        assert_eq!(config.limits.store.hot_bytes_max, Limits::divide(1 << 30).store.hot_bytes_max);
    }
}
