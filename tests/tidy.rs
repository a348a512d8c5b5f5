//! The layers of `src/lib.rs` as data, and that nothing climbs over them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// From the top down. A module uses those below its own row, and, within a row, only itself, except
/// where `MAY` says so. The last row are the words, which are defined by one another.
const LAYERS: &[&[&str]] = &[
    &["main"],
    &["cli", "commands"],
    &["agent", "admin", "logging"],
    &["tailer", "worker", "sync"],
    &["sync_state", "schema_watch", "unproven"],
    &["source", "sink", "queue", "dead_letter"],
    &["mongo"],
    &[
        "coalesce",
        "delta",
        "backoff",
        "breaker",
        "insert_mode",
        "horizon",
        "impasse",
        "limiter",
        "late",
        "schema",
        "health",
        "alerts",
        "history",
        "overlap",
        "past",
    ],
    &[
        "event",
        "write_op",
        "namespace",
        "document_key",
        "checkpoint",
        "raw",
        "config",
        "status",
        "metrics",
        "recent",
        "report",
        "lease",
        "foreign",
        "gate",
        "shutdown",
        "crash",
        "progress",
        "position",
        "majority",
        "repaired",
        "trust",
        "files",
    ],
];

/// Uses within a row, or upwards, that are meant, each with its reason.
const MAY: &[(&str, &str, &str)] = &[
    ("commands", "cli", "what was typed"),
    ("agent", "admin", "the agent starts the API"),
    ("admin", "agent", "the API works with the agent's handles"),
    ("admin", "logging", "how many lines were dropped"),
    ("queue", "dead_letter", "an entry that was given up"),
    ("dead_letter", "queue", "an entry that was given up"),
    ("coalesce", "delta", "merging applies deltas"),
    ("event", "delta", "an update carries its delta"),
    ("write_op", "delta", "an update carries its delta"),
    ("cli", "config", "one flag is a configured value"),
    ("alerts", "health", "an alert is a condition that holds"),
];

/// Crates that one module alone may name.
const OWNERS: &[(&str, &[&str])] = &[
    ("sled::", &["queue"]),
    ("bincode::", &["queue"]),
    ("axum::", &["admin"]),
    // Our own module has the crate's name, so only an import from the root counts.
    ("use backoff::", &["backoff"]),
    ("mongodb::", &["mongo", "source", "sink", "sync"]),
    ("clap::", &["cli", "commands", "config", "main"]),
    ("ureq::", &["agent", "commands"]),
    ("fast_float::", &["config"]),
    ("indicatif::", &["commands"]),
    ("prometheus::", &["admin", "metrics"]),
    ("hyper::", &["admin"]),
];

/// Pure policies: no clock, no I/O, no async.
const PURE: &[&str] = &[
    "coalesce",
    "delta",
    "backoff",
    "breaker",
    "insert_mode",
    "horizon",
    "impasse",
    "limiter",
    "late",
    "schema",
    "health",
    "alerts",
    "history",
    "overlap",
    "past",
    "progress",
    "position",
    "majority",
];
const IMPURE: &[&str] =
    &["Instant::now(", "SystemTime", "std::fs", "std::net", "async ", "tokio", "fastrand"];

/// Longest file, so that each can be read in one sitting. Tests stand beside what they test.
const LINES_MAX: usize = 500;

fn row(module: &str) -> usize {
    LAYERS
        .iter()
        .position(|row| row.contains(&module))
        .unwrap_or_else(|| panic!("`{module}` has no layer; add it to the table and to src/lib.rs"))
}

/// Module → its files' text without their tests.
fn sources() -> BTreeMap<String, Vec<(String, String)>> {
    let mut modules: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            // `fuzz` is above all layers, and there with its feature only.
            if name == "lib.rs" || name == "fuzz.rs" {
                continue;
            }
            let module = name.split(['/', '.']).next().unwrap().to_owned();
            modules.entry(module).or_default().push((name, fs::read_to_string(&path).unwrap()));
        }
    }
    modules
}

fn without_tests(name: &str, text: &str) -> String {
    if name.contains("/tests") {
        return String::new();
    }
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let lines: Vec<_> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    lines.join("\n")
}

/// The modules that `use crate::…` and paths in the code name.
fn used(code: &str) -> Vec<String> {
    let mut used = Vec::new();
    let flat = code.replace('\n', " ");
    for (at, _) in flat.match_indices("crate::") {
        let rest = &flat[at + "crate::".len()..];
        if let Some(list) = rest.strip_prefix('{') {
            // The first word of each part at the outermost level of the braces.
            let (mut depth, mut part) = (0_usize, String::new());
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => used.push(std::mem::take(&mut part)),
                    c if depth == 0 => part.push(c),
                    _ => {}
                }
            }
            used.push(part);
        } else {
            used.push(rest.to_owned());
        }
    }
    used.iter()
        .map(|path| {
            path.trim()
                .chars()
                .take_while(|c| c.is_ascii_lowercase() || *c == '_')
                .collect::<String>()
        })
        .filter(|module| !module.is_empty())
        .collect()
}

#[test]
fn a_module_uses_only_what_is_below_it() {
    let mut climbed = Vec::new();
    for (module, files) in sources() {
        for (name, text) in files {
            for target in used(&without_tests(&name, &text)) {
                let fine = target == module
                    || row(&target) > row(&module)
                    || row(&target) == LAYERS.len() - 1
                    || MAY.iter().any(|(from, to, _)| (*from, *to) == (&module, &target));
                if !fine {
                    climbed.push(format!("{name} uses {target}"));
                }
            }
        }
    }
    assert!(climbed.is_empty(), "{climbed:#?}");
}

#[test]
fn a_crate_is_named_only_where_it_belongs() {
    let mut strayed = Vec::new();
    for (module, files) in sources() {
        for (name, text) in files {
            let code = without_tests(&name, &text);
            for (path, owners) in OWNERS {
                let named = code.match_indices(path).any(|(at, _)| {
                    let before = code[..at].chars().next_back();
                    !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
                });
                if named && !owners.contains(&module.as_str()) {
                    strayed.push(format!("{name} names {path}"));
                }
            }
        }
    }
    assert!(strayed.is_empty(), "{strayed:#?}");
}

#[test]
fn policies_are_pure() {
    let mut found = Vec::new();
    for (module, files) in sources() {
        if !PURE.contains(&module.as_str()) {
            continue;
        }
        for (name, text) in files {
            let code = without_tests(&name, &text);
            found.extend(
                IMPURE
                    .iter()
                    .filter(|word| code.contains(**word))
                    .map(|word| format!("{name}: {word}")),
            );
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_panic_names_its_invariant() {
    let mut found = Vec::new();
    for files in sources().into_values() {
        for (name, text) in files {
            let code = without_tests(&name, &text);
            for word in
                [".unwrap()", "panic!()", "todo!", "unimplemented!", "unreachable!()", "dbg!"]
            {
                if code.contains(word) {
                    found.push(format!("{name}: {word}"));
                }
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_file_opens_with_what_it_is_for_and_is_no_longer_than_a_sitting() {
    let mut found = Vec::new();
    for files in sources().into_values() {
        for (name, text) in files {
            if !text.starts_with("//!") && !name.contains("/tests") {
                found.push(format!("{name} has no module doc"));
            }
            if text.lines().count() > LINES_MAX {
                found.push(format!("{name} has {} lines", text.lines().count()));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// The field names in the arguments of a log macro: what stands before a `=`, or the name itself.
fn fields_of(arguments: &str) -> Vec<String> {
    let (mut parts, mut part) = (Vec::new(), String::new());
    let (mut depth, mut in_text, mut escaped) = (0_i32, false, false);
    for c in arguments.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if in_text => escaped = true,
            '"' => in_text = !in_text,
            _ if in_text => {}
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' if depth == 0 => break,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(std::mem::take(&mut part));
                continue;
            }
            _ => {}
        }
        part.push(c);
    }
    parts.push(part);
    parts
        .iter()
        .map(|part| part.trim())
        .filter(|part| !part.is_empty() && !part.starts_with('"'))
        .map(|part| {
            let name = part.split('=').next().unwrap().trim().trim_start_matches(['%', '?']);
            name.rsplit('.').next().unwrap().trim().to_owned()
        })
        .collect()
}

#[test]
fn every_log_line_uses_the_fixed_list_of_fields() {
    let listed: BTreeSet<_> =
        outrigger::logging::FIELDS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let mut used = BTreeSet::new();
    for (_, files) in sources() {
        for (name, text) in files {
            let code = without_tests(&name, &text);
            for (at, _) in code.match_indices("tracing::") {
                let rest = &code[at + "tracing::".len()..];
                if let Some((level, arguments)) = rest.split_once("!(")
                    && ["error", "warn", "info", "debug", "trace"].contains(&level)
                {
                    used.extend(fields_of(arguments));
                }
            }
        }
    }

    // The one that is an argument of a message.
    used.remove("message");
    assert_eq!(used, listed);
}

#[test]
fn every_layer_of_the_table_is_in_the_map_of_the_crate() {
    let map = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    for module in LAYERS.iter().flat_map(|row| row.iter()).filter(|module| **module != "main") {
        assert!(map.contains(&format!("[`{module}`]")), "`{module}` is missing in src/lib.rs");
    }
}

#[test]
fn every_dependency_says_why_it_is_there() {
    let manifest =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let mut section = "";
    let mut before = "";
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line;
        } else if section.contains("dependencies") && line.contains(" = ") {
            assert!(before.starts_with("# "), "no reason for: {line}");
        }
        before = line;
    }
}

/// They come from where the package managers of the machine say: a mirror, a proxy, whatever is set up there.
#[test]
fn no_script_names_a_host_that_packages_come_from() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for entry in fs::read_dir(root.join("scripts")).unwrap() {
        let path = entry.unwrap().path();
        for line in fs::read_to_string(&path).unwrap().lines() {
            if ["http:", "https:", "ftp:"]
                .iter()
                .any(|scheme| line.contains(&format!("{scheme}//")))
            {
                found.push(format!("{}: {line}", path.display()));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}
