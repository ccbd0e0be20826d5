//! Figures of a measurement: aligned lines as they come, JSON at the end.

use std::time::Duration;

use serde_json::{Map, Value};

/// A measurement's figures. Each is printed when it is added.
pub struct Report {
    values: Map<String, Value>,
}

/// Widest label.
const LABEL_CHARS: usize = 24;

impl Report {
    /// Prints the heading.
    pub fn new(name: &str, options: &str) -> Report {
        println!("{name}  {options}");
        let mut values = Map::new();
        values.insert("bench".to_owned(), name.into());
        values.insert("options".to_owned(), options.into());
        Report { values }
    }

    /// A number with its unit.
    pub fn number(&mut self, key: &str, number: f64, unit: &str) {
        let digits = if number.fract() == 0.0 || number >= 1_000.0 { 0 } else { 2 };
        line(key, &format!("{number:>12.digits$} {unit}"));
        // No more digits than are worth reading.
        self.values.insert(key.to_owned(), ((number * 1_000.0).round() / 1_000.0).into());
    }

    /// Percentiles of times, in milliseconds.
    pub fn times(&mut self, key: &str, times: &mut [Duration]) {
        times.sort_unstable();
        let at = |percent: usize| millis(times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))));
        let (p50, p95, p99, max) = (at(50), at(95), at(99), millis(times.last()));
        line(key, &format!("{p50:>12.2} ms p50  {p95:>8.2} p95  {p99:>8.2} p99  {max:>8.2} max   ({} of them)", times.len()));
        for (name, value) in [("p50", p50), ("p95", p95), ("p99", p99), ("max", max)] {
            self.values.insert(format!("{key}_{name}_ms"), ((value * 1_000.0).round() / 1_000.0).into());
        }
    }

    /// A figure of the paper, beside the one that was just measured.
    pub fn paper(&mut self, key: &str, figure: &str) {
        line("", &format!("{figure:>12} in the paper"));
        self.values.insert(format!("{key}_paper"), figure.into());
    }

    /// Ends it: what was compared with what was acknowledged.
    pub fn checked(&self, what: &str) {
        line("checked", what);
        println!();
    }

    /// All figures.
    pub fn json(&self) -> Value {
        Value::Object(self.values.clone())
    }
}

fn line(key: &str, text: &str) {
    println!("  {:<LABEL_CHARS$}{text}", key.replace('_', " "));
}

fn millis(time: Option<&Duration>) -> f64 {
    time.map_or(0.0, |time| time.as_secs_f64() * 1_000.0)
}
