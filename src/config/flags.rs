//! The flags of `verus serve`.
//!
//! *Place*: parsed by `main`, resolved by [`Config::load`](super::Config::load). A flag that is not given leaves the word to the environment,
//! the file and the default, so every one is optional here.

use std::path::PathBuf;

use super::sources::Entry;

/// Starts the server.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = "\
Each option is also a variable and a key of the file: --data-dir, VERUS_DATA_DIR, data_dir = '...'.
--no-template is VERUS_TEMPLATE=false or template = false. Limits are set by VERUS_LIMITS_STORE_FLUSH_ROWS=N
or in the file under [limits.store]. Flags win over the environment, the environment over the file.")]
pub struct ServeFlags {
    /// Configuration file [default: ./verus.toml when it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of all data, made if missing [default: ./verus-data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// Address of the PostgreSQL protocol [default: 127.0.0.1:5432]
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Address of /health, /metrics, /views and /v1 [default: 127.0.0.1:8080]
    #[arg(long, value_name = "HOST:PORT")]
    pub http: Option<String>,
    /// Leave a fresh data directory empty instead of giving it the commerce schema
    #[arg(long)]
    pub no_template: bool,
    /// Password of user verus; others see a command line, so prefer VERUS_PASSWORD. Without one, only loopback addresses
    /// are listened on and everybody on this machine is trusted
    #[arg(long, value_name = "PASSWORD")]
    pub password: Option<String>,
    /// Let notification channels call addresses of this machine and of private networks
    #[arg(long)]
    pub allow_private_channels: bool,
    /// Memory budget, such as 2GiB, divided between hot rows, view state and queries [default: 2GiB]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Threads that decode, plan and execute [default: the machine's cores]
    #[arg(long, value_name = "N")]
    pub cores: Option<usize>,
    /// Filter of the log on standard error, such as warn or info,verus::store=debug [default: info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

impl ServeFlags {
    /// The flags that were given, as settings.
    pub(super) fn entries(&self) -> Vec<Entry> {
        let texts = [
            ("data_dir", self.data_dir.clone()),
            ("listen", self.listen.clone()),
            ("http", self.http.clone()),
            ("password", self.password.clone()),
            ("memory", self.memory.clone()),
            ("cores", self.cores.map(|cores| cores.to_string())),
            ("log", self.log.clone()),
            ("allow_private_channels", self.allow_private_channels.then(|| "true".to_owned())),
            ("template", self.no_template.then(|| "false".to_owned())),
        ];
        texts.into_iter().filter_map(|(key, value)| Some(Entry::flag(key, value?))).collect()
    }
}
