//! The house rules as tests: layers, module docs, banned calls, sizes. Lexical, so it needs no build of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Lowest layer first; modules of one line do not know each other. `src/lib.rs` says what they are.
const LAYERS: &[&[&str]] = &[
    &["clock"],
    &["error"],
    &["config", "telemetry", "task"],
    &["types", "bus"],
    &["sql", "event"],
    &["wal", "state", "columnar", "anomaly", "kafka"],
    &["catalog"],
    &["view"],
    &["store"],
    &["query", "ingest"],
    &["alert"],
    &["session"],
    &["command"],
    &["pg", "web"],
    &["server"],
    &["client"],
];

/// What may stand only in some places: text, where it may, and what to use instead.
const BANNED: &[(&str, &[&str], &str)] = &[
    ("SystemTime::now", &["clock.rs"], "ask the Clock"),
    ("Utc::now", &["clock.rs"], "ask the Clock"),
    ("tokio::spawn", &["task.rs"], "use task::Spawner"),
    ("std::thread::spawn", &["task.rs"], "use task::Spawner"),
    ("thread::Builder", &["task.rs"], "use task::Spawner"),
    ("spawn_blocking", &["task.rs"], "use task::Spawner"),
    ("println!", &["main.rs", "client/"], "use tracing"),
    ("print!", &["main.rs", "client/"], "use tracing"),
    ("eprintln!", &["main.rs", "client/"], "use tracing"),
    ("dbg!", &[], "use tracing"),
    (".unwrap()", &[], "return an error, or state the invariant with expect"),
    ("todo!", &[], "finish it or refuse it"),
    ("unimplemented!", &[], "finish it or refuse it"),
    ("TODO", &[], "finish it or say so in the commit"),
    ("FIXME", &[], "finish it or say so in the commit"),
    ("rocksdb::", &["state/"], "only state knows RocksDB"),
    ("parquet::", &["columnar/"], "only columnar knows Parquet"),
    ("pgwire::", &["pg/"], "only pg knows pgwire"),
    ("tokio_postgres::", &["client/"], "only client is a client"),
];

const FILE_LINES_MAX: usize = 700;

const DRAWERS: &[&str] = &["utils", "util", "common", "helpers", "helper", "manager", "misc"];

struct Source {
    /// Path below `src/`, or below the repository for tests.
    name: String,
    text: String,
}

fn sources(dir: &str) -> Vec<Source> {
    fn walk(root: &Path, dir: PathBuf, found: &mut Vec<Source>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, path, found);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
                found.push(Source { name, text: fs::read_to_string(&path).unwrap() });
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
    let mut found = Vec::new();
    walk(&root, root.clone(), &mut found);
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

impl Source {
    /// Lines of production code with their numbers: no comments, nothing from `#[cfg(test)]` on.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let numbered = self.text.lines().enumerate().map(|(index, line)| (index + 1, line));
        let own = numbered.take_while(|(_, line)| !line.trim_start().starts_with("#[cfg(test)]"));
        own.filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    fn is_test(&self) -> bool {
        self.name.ends_with("/tests.rs") || self.name.ends_with("_tests.rs") || self.name.contains("/tests/")
    }

    fn module(&self) -> &str {
        self.name.split('/').next().unwrap_or_default().trim_end_matches(".rs")
    }
}

fn fail_if_any(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// The module names that follow each `crate::` of a line, also inside braces.
fn crate_uses(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let (list, one_name) = match rest.strip_prefix('{') {
            Some(inner) => (inner, false),
            None => (rest, true),
        };
        let mut depth = 0;
        let mut word = String::new();
        let mut is_at_name = true;
        for c in list.chars() {
            match c {
                'a'..='z' | 'A'..='Z' | '0'..='9' | '_' if is_at_name => word.push(c),
                _ => {
                    if is_at_name && !word.is_empty() {
                        found.push(std::mem::take(&mut word));
                    }
                    is_at_name = c.is_whitespace() && is_at_name && word.is_empty();
                    if one_name {
                        break;
                    }
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => is_at_name = true,
                        _ => {}
                    }
                }
            }
        }
    }
    found
}

#[test]
fn the_scan_for_uses_sees_groups() {
    let found = crate_uses("use crate::{clock, sql::{parse, ast}, view::Spec};\nlet x = crate::error::Error::new();");
    assert_eq!(found, ["clock", "sql", "view", "error"]);
}

#[test]
fn modules_use_only_what_is_below_them() {
    let rank: BTreeMap<&str, usize> =
        LAYERS.iter().enumerate().flat_map(|(rank, names)| names.iter().map(move |name| (*name, rank))).collect();
    let mut complaints = Vec::new();
    for source in sources("src") {
        let module = source.module();
        if matches!(module, "lib" | "main") || source.is_test() {
            continue;
        }
        let Some(own) = rank.get(module) else {
            complaints.push(format!("src/{}: module {module} has no layer in tests/tidy.rs and src/lib.rs", source.name));
            continue;
        };
        let code: String = source.code().flat_map(|(_, line)| [line, "\n"]).collect();
        for used in crate_uses(&code) {
            if used != module && rank.get(used.as_str()).is_some_and(|other| other >= own) {
                complaints.push(format!("src/{}: uses {used}, which is not below {module}", source.name));
            }
        }
    }
    fail_if_any(complaints);
}

#[test]
fn the_map_lists_every_module() {
    let map = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let missing = |name: &&str| !map.contains(&format!("[`{name}`]")) || !map.contains(&format!("pub mod {name};"));
    fail_if_any(LAYERS.iter().copied().flatten().copied().filter(missing).map(|name| format!("src/lib.rs: {name} is missing")).collect());
}

#[test]
fn every_file_says_what_it_is() {
    let all = ["src", "tests", "benches"].into_iter().flat_map(|dir| sources(dir).into_iter().map(move |source| (dir, source)));
    let silent = all.filter(|(_, source)| !source.text.starts_with("//!"));
    fail_if_any(silent.map(|(dir, source)| format!("{dir}/{}: begins without module docs", source.name)).collect());
}

#[test]
fn banned_calls_stay_in_their_rooms() {
    let mut complaints = Vec::new();
    for source in sources("src").iter().filter(|source| !source.is_test()) {
        for (number, line) in source.code() {
            for (text, allowed, instead) in BANNED {
                if has_word(line, text) && !allowed.iter().any(|place| source.name.starts_with(place)) {
                    complaints.push(format!("src/{}:{number}: {text}: {instead}", source.name));
                }
            }
        }
    }
    fail_if_any(complaints);
}

/// `text` in `line`, not as the end of a longer name (`eprintln!` is not `println!`) nor below a path (`datafusion::parquet::`
/// counts, `my_parquet::` does not).
fn has_word(line: &str, text: &str) -> bool {
    let code = line.split(" // ").next().unwrap_or(line);
    code.match_indices(text).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        text.starts_with('.') || !before.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_')
    })
}

#[test]
fn files_are_short_and_drawers_absent() {
    let mut complaints = Vec::new();
    for dir in ["src", "tests", "benches"] {
        for source in sources(dir) {
            let lines = source.text.lines().count();
            if lines > FILE_LINES_MAX {
                complaints.push(format!("{dir}/{}: {lines} lines, more than {FILE_LINES_MAX}: look for the seam", source.name));
            }
            if let Some(drawer) = source.name.split(['/', '.']).find(|part| DRAWERS.contains(part)) {
                complaints.push(format!("{dir}/{}: \"{drawer}\" does not say what is inside", source.name));
            }
        }
    }
    fail_if_any(complaints);
}
