//! The only spawner.
//!
//! *Place*: everybody who runs something beside the caller comes here.
//!
//! *Invariants*: (1) connections and timers run on the `io` runtime, queries and decoding on the `cpu` runtime, so that
//! a long plan never delays a ping; (2) what rewrites stored data (checkpoints of views, Parquet files while memory is plentiful) runs on threads of low
//! priority: as fast as ever beside idle cores, and hardly felt beside busy ones; (3) queries that watch (alerts) run where cores are idle, and whoever
//! gives them work has to see to it that they come on; (4) a task that panics is reported in the log and in its caller's result, never swallowed.

mod priority;

use std::future::Future;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;

/// How long tasks may take to end when the server does.
const SHUTDOWN_WITHIN: Duration = Duration::from_millis(900);

/// The runtimes of a server. Dropping it stops them without waiting.
#[derive(Debug)]
pub struct Runtimes {
    io: Runtime,
    cpu: Runtime,
    background: Runtime,
    watch: Runtime,
}

/// A cheap handle to the runtimes, passed to every component that spawns.
#[derive(Clone, Debug)]
pub struct Spawner {
    io: Handle,
    cpu: Handle,
    background: Handle,
    watch: Handle,
}

/// Stack of a worker that plans and runs SQL: deep expression trees recurse.
const CPU_STACK_BYTES: usize = 16 * 1024 * 1024;

impl Runtimes {
    /// Starts the runtimes. `cores` is the number of CPU workers, at least 1.
    pub fn start(cores: usize) -> std::io::Result<Self> {
        let io = Builder::new_multi_thread()
            .worker_threads(cores.clamp(1, 4))
            .thread_name("verus-io")
            .on_thread_start(priority::prompt)
            .enable_all()
            .build()?;
        let cpu = Builder::new_multi_thread()
            .worker_threads(cores.max(1))
            .thread_name("verus-cpu")
            .thread_stack_size(CPU_STACK_BYTES)
            .on_thread_start(priority::prompt)
            .enable_all()
            .build()?;
        let background = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("verus-background")
            .thread_stack_size(CPU_STACK_BYTES)
            .on_thread_start(priority::low)
            .enable_all()
            .build()?;
        let watch = Builder::new_multi_thread()
            .worker_threads(cores.clamp(1, 2))
            .thread_name("verus-watch")
            .thread_stack_size(CPU_STACK_BYTES)
            .on_thread_start(priority::idle)
            .enable_all()
            .build()?;
        Ok(Self { io, cpu, background, watch })
    }

    /// A handle for components.
    pub fn spawner(&self) -> Spawner {
        Spawner {
            io: self.io.handle().clone(),
            cpu: self.cpu.handle().clone(),
            background: self.background.handle().clone(),
            watch: self.watch.handle().clone(),
        }
    }

    /// Runs `future` on the io runtime from a thread that belongs to neither.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.io.block_on(future)
    }

    /// Stops them and waits (not for ever) until their tasks are dropped: what they hold, RocksDB above all, must be closed before
    /// the process takes down its C++ globals.
    pub fn shutdown(self) {
        self.watch.shutdown_timeout(SHUTDOWN_WITHIN);
        self.background.shutdown_timeout(SHUTDOWN_WITHIN);
        self.cpu.shutdown_timeout(SHUTDOWN_WITHIN);
        self.io.shutdown_timeout(SHUTDOWN_WITHIN);
    }
}

impl Spawner {
    /// A spawner over the runtime of the caller, for tests.
    pub fn current() -> Self {
        Self { io: Handle::current(), cpu: Handle::current(), background: Handle::current(), watch: Handle::current() }
    }

    /// The same, with queries on the threads that watch. While all cores are busy these stand nearly still, with what they hold: no lock that others
    /// wait for may be held for more than a few instructions.
    #[must_use]
    pub fn watching(&self) -> Self {
        Self { cpu: self.watch.clone(), ..self.clone() }
    }

    /// The same, with queries on the threads of the background, which have a small share of busy cores.
    #[must_use]
    pub fn behind(&self) -> Self {
        Self { cpu: self.background.clone(), ..self.clone() }
    }

    /// Runs connection and timer work.
    pub fn io<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.io.spawn(future)
    }

    /// Runs planning, decoding and query execution.
    pub fn cpu<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.cpu.spawn(future)
    }

    /// Runs code that blocks (files, RocksDB) on a thread of its own pool.
    pub fn blocking<F, T>(&self, work: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.io.spawn_blocking(work)
    }

    /// Starts a named thread that lives as long as the server.
    pub fn thread<F>(&self, name: &str, body: F) -> std::io::Result<std::thread::JoinHandle<()>>
    where
        F: FnOnce() + Send + 'static,
    {
        start(name, priority::prompt, body)
    }

    /// The same for what nobody waits for.
    pub fn background_thread<F>(&self, name: &str, body: F) -> std::io::Result<std::thread::JoinHandle<()>>
    where
        F: FnOnce() + Send + 'static,
    {
        start(name, priority::low, body)
    }

    /// The runtime of what nobody waits for: its threads, those of [`Spawner::blocking`] within it too, have a lower priority. They hold
    /// no lock that others wait for.
    pub fn background_handle(&self) -> &Handle {
        &self.background
    }

    /// The cpu runtime's handle, for DataFusion's own spawns.
    pub fn cpu_handle(&self) -> &Handle {
        &self.cpu
    }

    /// The io runtime's handle.
    pub fn io_handle(&self) -> &Handle {
        &self.io
    }
}

fn start<F>(name: &str, priority: fn(), body: F) -> std::io::Result<std::thread::JoinHandle<()>>
where
    F: FnOnce() + Send + 'static,
{
    std::thread::Builder::new().name(format!("verus-{name}")).stack_size(CPU_STACK_BYTES).spawn(move || {
        priority();
        body();
    })
}
