//! The `verus` program: reads the command line and hands over to the library.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use verus::client::{BenchArgs, DemoArgs, ImportArgs};
use verus::config::{Config, ServeFlags};

/// Less fragmentation than the system's allocator under Arrow's large short-lived buffers.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Real-time commerce analytics: a PostgreSQL-wire database that keeps materialized views of events fresh
#[derive(Parser)]
#[command(name = "verus", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start the server; SIGTERM and SIGINT stop it
    Serve(ServeFlags),
    /// Load files of events into a table of a running server
    Import(ImportArgs),
    /// Send live shop traffic to a server and show what can be asked of it
    Demo(DemoArgs),
    /// Measure a server over the wire
    Bench(BenchArgs),
    /// Print the version
    Version,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("verus: {error}");
            if let Some(error) = error.downcast_ref::<verus::error::Error>() {
                let report = error.report();
                report.detail.iter().for_each(|detail| eprintln!("  detail: {detail}"));
                report.hint.iter().for_each(|hint| eprintln!("  hint: {hint}"));
            }
            let mut cause = error.source();
            while let Some(inner) = cause {
                eprintln!("  because: {inner}");
                cause = inner.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Box<dyn std::error::Error>> {
    match command {
        Command::Serve(flags) => serve(load(&flags)?),
        Command::Import(args) => Ok(verus::client::import(&args)?),
        Command::Demo(args) => Ok(verus::client::demo(&args)?),
        Command::Bench(args) => Ok(verus::client::bench(&args)?),
        Command::Version => {
            println!("verus {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    }
}

fn load(flags: &ServeFlags) -> Result<Config, Box<dyn std::error::Error>> {
    let environment = std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
    Ok(Config::load(flags, environment)?)
}

fn serve(config: Config) -> Result<(), Box<dyn std::error::Error>> {
    verus::telemetry::log::start(&config.log);
    verus::server::run(config)?;
    Ok(())
}
