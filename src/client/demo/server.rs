//! A server of the demo's own: this executable as a child process.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::super::wire::{Address, Connection};
use super::super::{Error, Result};
use crate::task::Spawner;

/// How long a start may take, recovery included, and an orderly end.
const READY_WITHIN: Duration = Duration::from_secs(60);
const END_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    child: Child,
}

impl Server {
    /// Starts it, with warnings and errors on this process's standard error.
    pub fn start(data_dir: &Path, listen: &str, http: &str, password: Option<&str>) -> Result<Server> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", "--listen", listen, "--http", http, "--log", "warn", "--data-dir"]).arg(data_dir);
        if let Some(password) = password {
            // Not as an argument, which others could see.
            command.env("VERUS_PASSWORD", password);
        }
        // In a process group of its own, so that Ctrl-C ends the traffic first and then the server.
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0).spawn()?;
        println!("server: process {}, data in {}", child.id(), data_dir.display());
        Ok(Server { child })
    }

    /// A connection as soon as it answers.
    pub async fn ready(&mut self, address: &Address, spawner: &Spawner) -> Result<Connection> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Err(Error::Setup(format!("the server ended with {status}")));
            }
            match Connection::open(address, "verus demo", spawner).await {
                Ok(connection) if connection.run("SELECT 1").await.is_ok() && self.child.try_wait()?.is_none() => return Ok(connection),
                Err(error) if begin.elapsed() > READY_WITHIN => return Err(error),
                _ if begin.elapsed() > READY_WITHIN => return Err(Error::Setup("the server does not answer".to_owned())),
                _ => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.ended() {
            return;
        }
        // The standard library only knows SIGKILL, and the shell's own kill is there even where the program is not.
        let asked = Command::new("sh").arg("-c").arg(format!("kill -TERM {}", self.child.id())).status();
        let begin = Instant::now();
        while asked.as_ref().is_ok_and(|status| status.success()) && begin.elapsed() < END_WITHIN {
            if self.ended() {
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        eprintln!("the server does not stop and is killed; it will recover at its next start");
        // Either fails only where it has just ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
