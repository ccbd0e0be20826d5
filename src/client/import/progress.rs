//! How far an import is: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Shared by whoever reads and whoever commits.
#[derive(Clone, Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    begin: Instant,
    bytes: AtomicU64,
    bytes_all: u64,
    rows: AtomicU64,
    last_line: Mutex<Instant>,
}

impl Progress {
    /// Nothing of `bytes_all` is read; 0 when that is not known.
    pub fn start(bytes_all: u64) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = match bytes_all {
                0 => ProgressBar::new_spinner(),
                _ => ProgressBar::new(bytes_all),
            };
            bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
            let template = match bytes_all {
                0 => "{spinner} {bytes} {msg}",
                _ => "[{bar:30}] {percent:>3}% of {total_bytes}, {eta} left, {msg}",
            };
            // The templates are right: what is not leaves the style that a bar begins with.
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        });
        let now = Instant::now();
        let shared = Shared { begin: now, bytes: AtomicU64::new(0), bytes_all, rows: AtomicU64::new(0), last_line: Mutex::new(now) };
        Progress { bar, shared: Arc::new(shared) }
    }

    /// A file begins.
    pub fn file(&self, name: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(name.to_owned());
        }
    }

    /// Bytes have been read.
    pub fn bytes(&self, bytes: u64) {
        self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    /// Rows have been committed.
    pub fn rows(&self, name: &str, rows: u64) {
        let shared = &self.shared;
        let rows = shared.rows.fetch_add(rows, Ordering::Relaxed) + rows;
        let rate = rows as f64 / shared.begin.elapsed().as_secs_f64().max(0.001);
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{name}: {} rows, {}/s", grouped(rows), grouped(rate as u64)));
            return;
        }
        let mut last = shared.last_line.lock();
        if last.elapsed() >= LINE_EVERY {
            *last = Instant::now();
            let percent = shared.bytes.load(Ordering::Relaxed).saturating_mul(100).checked_div(shared.bytes_all);
            let percent = percent.map(|percent| format!("{}%, ", percent.min(100))).unwrap_or_default();
            eprintln!("{name}: {percent}{} rows, {}/s", grouped(rows), grouped(rate as u64));
        }
    }

    /// Says a line above the bar.
    pub fn told(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| println!("{line}")),
            None => println!("{line}"),
        }
    }

    /// Takes the bar away.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A number with its thousands apart.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
