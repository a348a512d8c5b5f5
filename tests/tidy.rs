//! The layers of `src/lib.rs` as data, and that nothing climbs over them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// From the top down: folders of `src/`, and rooms of theirs that stand in a row of their own. One uses those
/// below its row, and, within a row, only itself, except where `MAY` says so.
const LAYERS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["admin"],
    &["agent"],
    &["tailer", "worker", "sync"],
    &["sync/state", "sync/unproven", "schema/watch"],
    &["side"],
    &["source", "sink", "queue"],
    &["mongo", "postgres"],
    &["runtime"],
    &["observe"],
    &["gate"],
    &["policy", "schema", "config"],
    &["model"],
];

/// Uses within a row, or upwards, that are meant, each with its reason.
const MAY: &[(&str, &str, &str)] = &[];

/// Files of a folder that name each other in a circle, as far as that is known, each with its reason. A file is part
/// of the `mod.rs` above it, so that what it takes from there is no arrow.
const CIRCLES: &[(&[&str], &str)] = &[];

/// Most files that a type's own methods are spread over: beyond it a file says nothing of what its code may touch.
const FILES_OF_A_TYPE_MAX: usize = 4;

/// Types that are spread over more, and over how many, each with its reason.
const SPREAD: &[(&str, &str, usize, &str)] = &[
    ("agent", "Agent", 6, "a life in stages, each in a file"),
    ("mongo", "Mongo", 6, "each file is a kind of command; all of them are sent by one method"),
];

/// Crates that some folders alone may name.
const OWNERS: &[(&str, &[&str])] = &[
    ("sled::", &["queue"]),
    ("bincode::", &["queue"]),
    ("axum::", &["admin"]),
    // Our own module has the crate's name, so only an import from the root counts.
    ("use backoff::", &["policy"]),
    ("mongodb::", &["mongo", "source", "sink"]),
    ("tokio_postgres::", &["postgres", "sink", "source"]),
    ("deadpool_postgres::", &["postgres"]),
    ("clap::", &["cli", "config", "main"]),
    ("ureq::", &["agent", "cli"]),
    ("fast_float::", &["config"]),
    ("indicatif::", &["cli"]),
    ("comfy_table::", &["cli"]),
    ("prometheus::", &["admin", "observe"]),
    ("hyper::", &["admin"]),
];

/// Who writes to Atlas, by what stands in the code: a call of the sink that changes something, or a command of one's own.
/// With a reason each, since every other path there would be one that no lease, no order and no limit is kept on.
const WRITES: &[&str] = &[
    "sink.write(",
    "sink.write_changes(",
    ".change_schema(",
    ".try_change(",
    "sink.alter(",
    "sink.loosen(",
    "sink.drop_emptied(",
    "schema.alter(",
    "notes.write(",
    "notes.drop(",
    "store()?.",
    "atlas.command(",
    ".command_within(",
];
const WRITERS: &[(&str, &str)] = &[
    ("worker/write.rs", "the documents of the queue"),
    ("worker/conflict.rs", "an index that is only prepared to become unique lets documents in"),
    ("worker/in_the_way.rs", "a collection is made in the place of a view"),
    ("worker/schema.rs", "changes of collections, in their order among the documents"),
    ("sync/copy.rs", "the copy into an empty collection"),
    ("sync/full/first.rs", "the collection is made before it is copied"),
    ("sync/full/reconcile.rs", "what a comparison has to make anew is dropped"),
    ("sync/full/run.rs", "sends what these two make and drop, under their permit"),
    ("sync/keeper/", "indexes are built beside the documents; emptied databases go"),
    ("sync/schema.rs", "options and indexes, of a copy and of a restore"),
    ("side/mongodb/alter.rs", "sends what these two change"),
    ("sync/restore.rs", "of the local database, where a person restores it"),
    ("sync/ownership/", "the lease"),
];

/// What is there to be displayed, as the fields of `observe::status::State`: who decides something asks its owner.
const DISPLAYED: &[&str] = &[
    "phase",
    "unshowable",
    "consistent_as_of",
    "sync",
    "sync_problems",
    "left_out",
    "divergences",
    "oplog_window_s",
];
/// Who may read it among those that decide ([`DECIDERS`]), each with what it reads and the reason.
const DISPLAY_READERS: &[(&str, &str, &str)] = &[
    ("sync/full/run.rs", "sync", "a dry run keeps nothing else of what it would refuse"),
    ("sync/full/verdict.rs", "sync", "when the run began that is told of"),
];
const DECIDERS: &[&str] =
    &["tailer/", "worker/", "sync/", "sink/", "source/", "queue/", "mongo/", "gate/"];

/// Pure policies: no clock, no I/O, no async. A folder, or files of it.
const PURE: &[&str] = &[
    "policy/",
    "model/delta/",
    "schema/mod.rs",
    "schema/steps.rs",
    "schema/value.rs",
    "schema/versions.rs",
    "admin/collections.rs",
    "admin/difference.rs",
    "observe/health.rs",
    "observe/alerts.rs",
    "observe/marks.rs",
    "observe/trend.rs",
    "observe/verdict.rs",
    "observe/progress.rs",
    "gate/past.rs",
    "sync/keeper/due.rs",
    "tailer/intake.rs",
    "tailer/limits.rs",
];
const IMPURE: &[&str] =
    &["Instant::now(", "SystemTime", "std::fs", "std::net", "async ", "tokio", "fastrand"];

/// Longest file, so that each can be read in one sitting. Tests stand beside what they test.
const LINES_MAX: usize = 500;

fn row(room: &str) -> usize {
    LAYERS
        .iter()
        .position(|row| row.contains(&room))
        .unwrap_or_else(|| panic!("`{room}` has no layer; add it to the table and to src/lib.rs"))
}

/// The room of a path: `sync/state` where that has a row of its own, else `sync`.
fn room(parts: &[String]) -> String {
    let narrow = parts.iter().take(2).cloned().collect::<Vec<_>>().join("/");
    if LAYERS.iter().any(|row| row.contains(&narrow.as_str())) { narrow } else { parts[0].clone() }
}

/// A file of `src/`.
struct File {
    name: String,
    room: String,
    text: String,
}

impl File {
    fn folder(&self) -> &str {
        self.room.split('/').next().unwrap()
    }
}

fn sources() -> Vec<File> {
    let mut files = Vec::new();
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
            if name == "lib.rs" || name.starts_with("fuzz/") {
                continue;
            }
            let parts: Vec<_> =
                name.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
            let text = fs::read_to_string(&path).unwrap();
            files.push(File { room: room(&parts), name, text });
        }
    }
    files
}

fn without_tests(name: &str, text: &str) -> String {
    if name.contains("/tests") {
        return String::new();
    }
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let lines: Vec<_> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    lines.join("\n")
}

/// The paths of one tree of a `use`, or a path in the code: `a::{b, c::{d, e}}` is `a/b`, `a/c/d`, `a/c/e`.
fn paths(tree: &str, before: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut path = before.to_vec();
    let mut at = 0;
    while let Some(c) = tree[at..].chars().next() {
        match c {
            c if c.is_alphanumeric() || c == '_' => {
                let len = tree[at..]
                    .find(|c: char| !c.is_alphanumeric() && c != '_')
                    .unwrap_or(tree.len() - at);
                path.push(tree[at..at + len].to_owned());
                at += len;
                // A path ends where no `::` follows.
                if !tree[at..].starts_with("::") {
                    found.push(path);
                    return at + tree[at..].find([',', '}', ';']).unwrap_or(0);
                }
                at += "::".len();
            }
            '{' => {
                at += 1;
                while !tree[at..].is_empty() && !tree[at..].starts_with('}') {
                    at += paths(&tree[at..], &path, found);
                    at += usize::from(tree[at..].starts_with(','));
                    at += tree[at..].len() - tree[at..].trim_start().len();
                }
                return at + 1;
            }
            '}' | ',' | ';' => return at,
            c if c.is_whitespace() => at += c.len_utf8(),
            _ => {
                found.push(path);
                return at + c.len_utf8();
            }
        }
    }
    at
}

/// The rooms that `use crate::…` and paths in the code name.
fn used(code: &str) -> BTreeSet<String> {
    let mut found = Vec::new();
    for (at, path) in code.match_indices("crate::") {
        paths(&code[at + path.len()..], &[], &mut found);
    }
    found.iter().filter(|path| !path.is_empty()).map(|path| room(path)).collect()
}

#[test]
fn the_paths_of_a_use_are_found_whole() {
    let code =
        "use crate::{a::b, sync::{self, state::{State, notes}, run}};\nlet x = crate::model::y(1);";
    let mut found = Vec::new();
    for (at, path) in code.match_indices("crate::") {
        paths(&code[at + path.len()..], &[], &mut found);
    }
    let found: Vec<_> = found.iter().map(|path| path.join("/")).collect();
    let expected =
        ["a/b", "sync/self", "sync/state/State", "sync/state/notes", "sync/run", "model/y"];
    assert_eq!(found, expected);
}

#[test]
fn a_room_uses_only_what_is_below_it() {
    let mut climbed = Vec::new();
    for file in sources() {
        for target in used(&without_tests(&file.name, &file.text)) {
            let fine = target == file.room
                || row(&target) > row(&file.room)
                || MAY.iter().any(|(from, to, _)| (*from, *to) == (&file.room, &target));
            if !fine {
                climbed.push(format!("{} uses {target}", file.name));
            }
        }
    }
    assert!(climbed.is_empty(), "{climbed:#?}");
}

#[test]
fn no_folder_is_used_by_one_that_it_uses() {
    let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in sources() {
        let targets = used(&without_tests(&file.name, &file.text));
        let targets = targets.iter().map(|room| room.split('/').next().unwrap().to_owned());
        let folder = file.folder().to_owned();
        arrows.entry(folder.clone()).or_default().extend(targets.filter(|to| *to != folder));
    }
    let mut circles = Vec::new();
    for (from, targets) in &arrows {
        // Whatever can be reached leads back nowhere.
        let (mut seen, mut next) = (BTreeSet::new(), targets.iter().collect::<Vec<_>>());
        while let Some(to) = next.pop() {
            if !seen.insert(to) {
                continue;
            }
            if arrows.get(to).is_some_and(|back| back.contains(from)) {
                circles.push(format!("{from} and {to}"));
            }
            next.extend(arrows.get(to).into_iter().flatten());
        }
    }
    assert!(circles.is_empty(), "{circles:#?}");
}

/// The module of a file: that of `sync/full/mod.rs` is `sync`, `full`.
fn module(name: &str) -> Vec<String> {
    let mut parts: Vec<_> = name.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    parts
}

/// The paths from the root that a module's code names with `crate::`, `super::` or `self::`.
fn named(code: &str, module: &[String]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for root in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(root) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let (mut rest, mut base) = (&code[at..], module);
            match root {
                "crate::" => base = &[],
                "self::" => {}
                _ => {
                    while let Some(more) = rest.strip_prefix(root) {
                        (rest, base) = (more, &base[..base.len().saturating_sub(1)]);
                    }
                }
            }
            paths(rest.strip_prefix(root).unwrap_or(rest), base, &mut found);
        }
    }
    found
}

/// Which of the modules lead to which, of all files.
fn arrows_between_files() -> BTreeMap<String, BTreeSet<String>> {
    let files = sources();
    let modules: BTreeSet<_> = files.iter().map(|file| module(&file.name).join("/")).collect();
    let owner = |path: &[String]| {
        (1..=path.len()).rev().map(|n| path[..n].join("/")).find(|name| modules.contains(name))
    };
    let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in &files {
        let from = module(&file.name);
        let targets = named(&without_tests(&file.name, &file.text), &from);
        let from = from.join("/");
        let targets = targets.iter().filter_map(|path| owner(path));
        let is_above = |to: &String| from == *to || from.starts_with(&format!("{to}/"));
        let targets: Vec<_> = targets.filter(|to| !is_above(to)).collect();
        arrows.entry(from.clone()).or_default().extend(targets);
    }
    arrows
}

fn reached<'a>(from: &str, arrows: &'a BTreeMap<String, BTreeSet<String>>) -> BTreeSet<&'a String> {
    let (mut seen, mut next) = (BTreeSet::new(), arrows[from].iter().collect::<Vec<_>>());
    while let Some(to) = next.pop() {
        if seen.insert(to) {
            next.extend(&arrows[to]);
        }
    }
    seen
}

#[test]
fn no_files_name_each_other_in_a_circle() {
    let arrows = arrows_between_files();
    let reached: BTreeMap<_, _> =
        arrows.keys().map(|from| (from, reached(from, &arrows))).collect();
    let mut circles: BTreeSet<Vec<&str>> = BTreeSet::new();
    for (from, targets) in &reached {
        let back = targets.iter().filter(|to| reached[**to].contains(from));
        let circle: Vec<_> = back.map(|to| to.as_str()).collect();
        if !circle.is_empty() {
            circles.insert(circle);
        }
    }
    let known: BTreeSet<Vec<&str>> = CIRCLES.iter().map(|(files, _)| files.to_vec()).collect();
    let new: Vec<_> = circles.difference(&known).collect();
    assert!(new.is_empty(), "{new:#?}");
    let gone: Vec<_> = known.difference(&circles).collect();
    assert!(gone.is_empty(), "in the table, and opened: {gone:#?}");
}

#[test]
fn the_paths_of_a_module_are_found_from_the_root() {
    let module = module("sync/full/run.rs");
    let code = "use super::{plan::Plan};\nuse super::super::ends::End;\nlet y = crate::a::b(c);";
    let found: Vec<_> = named(code, &module).iter().map(|path| path.join("/")).collect();

    assert!(found.contains(&"a/b".to_owned()), "{found:?}");
    assert!(found.contains(&"sync/full/plan/Plan".to_owned()), "{found:?}");
    assert!(found.contains(&"sync/ends/End".to_owned()), "{found:?}");
}

/// The type that a line gives methods of its own.
fn own_type(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("impl").filter(|_| !line.contains(" for "))?;
    let mut depth = 0;
    let after = rest.find(|c| {
        depth += i32::from(c == '<') - i32::from(c == '>');
        depth == 0 && c != '>'
    })?;
    let name = rest[after..].trim_start();
    let len = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
    (len > 0).then(|| &name[..len])
}

#[test]
fn a_type_is_not_sliced_into_many_files() {
    let mut files: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for file in sources() {
        for line in without_tests(&file.name, &file.text).lines() {
            if let Some(name) = own_type(line) {
                let of = (file.folder().to_owned(), name.to_owned());
                files.entry(of).or_default().insert(file.name.clone());
            }
        }
    }
    let mut wrong = Vec::new();
    for ((folder, name), files) in &files {
        let spread = SPREAD.iter().find(|(of, what, ..)| of == folder && what == name);
        let max = spread.map_or(FILES_OF_A_TYPE_MAX, |(_, _, max, _)| *max);
        if files.len() > max {
            wrong.push(format!("{folder}/{name} is spread over {} files", files.len()));
        }
        if spread.is_some() && files.len() <= FILES_OF_A_TYPE_MAX {
            wrong.push(format!("{folder}/{name} needs no exception any more"));
        }
    }
    for (line, name) in [("impl<K: Sink> Run<'_, K> {", "Run"), ("impl Queue {", "Queue")] {
        assert_eq!(own_type(line), Some(name));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_module_lies_flat_beside_the_layers() {
    let flat: Vec<_> = sources()
        .into_iter()
        .filter(|file| !file.name.contains('/'))
        .map(|file| file.name)
        .collect();
    assert_eq!(flat, ["main.rs"], "besides lib.rs, the map");
}

#[test]
fn a_crate_is_named_only_where_it_belongs() {
    let mut strayed = Vec::new();
    for file in sources() {
        let code = without_tests(&file.name, &file.text);
        for (path, owners) in OWNERS {
            let named = code.match_indices(path).any(|(at, _)| {
                let before = code[..at].chars().next_back();
                !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
            });
            if named && !owners.contains(&file.folder()) {
                strayed.push(format!("{} names {path}", file.name));
            }
        }
    }
    assert!(strayed.is_empty(), "{strayed:#?}");
}

#[test]
fn only_who_is_listed_writes_to_atlas() {
    let mut strayed = Vec::new();
    let mut idle: BTreeSet<_> = WRITERS.iter().map(|(writer, _)| *writer).collect();
    for file in sources() {
        if file.folder() == "sink" || file.folder() == "mongo" {
            continue;
        }
        // As one line, so that a chain of calls is found whole.
        let code: String = without_tests(&file.name, &file.text).split_whitespace().collect();
        for call in WRITES.iter().filter(|call| code.contains(**call)) {
            match WRITERS.iter().find(|(writer, _)| file.name.starts_with(writer)) {
                Some((writer, _)) => drop(idle.remove(writer)),
                None => strayed.push(format!("{}: {call}", file.name)),
            }
        }
    }
    assert!(strayed.is_empty(), "{strayed:#?}");
    assert!(idle.is_empty(), "in the table, and they write nothing: {idle:?}");
}

/// Else what is copied and compared would have to be a MongoDB at both ends.
#[test]
fn a_sync_sees_of_each_end_no_more_than_a_side() {
    let mut found = Vec::new();
    for file in sources().iter().filter(|file| file.folder() == "sync") {
        let code = without_tests(&file.name, &file.text);
        if used(&code).contains("mongo") {
            found.push(format!("{} uses mongo", file.name));
        }
        let makers = ["MongoSide", "classify", "inspect(", "source_id("];
        let named = makers.iter().filter(|maker| code.contains(**maker));
        found.extend(named.map(|maker| format!("{}: {maker}", file.name)));
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn policies_are_pure() {
    let mut found = Vec::new();
    let mut pure: BTreeSet<_> = PURE.iter().collect();
    for file in sources() {
        let Some(policy) = PURE.iter().find(|pure| file.name.starts_with(**pure)) else {
            continue;
        };
        pure.remove(policy);
        let code = without_tests(&file.name, &file.text);
        let words = IMPURE.iter().filter(|word| code.contains(**word));
        found.extend(words.map(|word| format!("{}: {word}", file.name)));
    }
    assert!(found.is_empty(), "{found:#?}");
    assert!(pure.is_empty(), "in the table, and nowhere else: {pure:?}");
}

/// Else a test that holds the timers sees a wait pass, and nothing that was decided by it.
#[test]
fn a_loop_takes_the_time_of_its_timers() {
    let mut found = Vec::new();
    for file in sources() {
        if ["worker/", "tailer/", "sync/"].iter().any(|loops| file.name.starts_with(loops)) {
            let code = without_tests(&file.name, &file.text);
            let words = ["Instant::now", ".elapsed()", "SystemTime"];
            let named = words.iter().filter(|word| code.contains(**word));
            found.extend(
                named.map(|word| format!("{}: {word}, and not `runtime::clock`", file.name)),
            );
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_panic_names_its_invariant() {
    let mut found = Vec::new();
    for File { name, text, .. } in sources() {
        let code = without_tests(&name, &text);
        for word in [".unwrap()", "panic!()", "todo!", "unimplemented!", "unreachable!()", "dbg!"] {
            if code.contains(word) {
                found.push(format!("{name}: {word}"));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_file_opens_with_what_it_is_for_and_is_no_longer_than_a_sitting() {
    let mut found = Vec::new();
    for File { name, text, .. } in sources() {
        if !text.starts_with("//!") && !name.contains("/tests") {
            found.push(format!("{name} has no module doc"));
        }
        if text.lines().count() > LINES_MAX {
            found.push(format!("{name} has {} lines", text.lines().count()));
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
        outrigger::observe::logging::FIELDS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let mut used = BTreeSet::new();
    for File { name, text, .. } in sources() {
        {
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
    for room in LAYERS.iter().flat_map(|row| row.iter()).filter(|room| **room != "main") {
        assert!(map.contains(&format!("[`{room}`]")), "`{room}` is missing in src/lib.rs");
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
        // A folder there has programs of its own.
        if path.is_dir() {
            continue;
        }
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

/// What is given the queue in async code, and asks it only what is answered at once, or off the async threads.
const GIVEN_THE_QUEUE: &[&str] = &["is_all_held_up", "keep_consistency", "look_up", "identify"];

/// Where the bracket that opens at `at` closes.
fn closed(code: &str, at: usize) -> usize {
    let mut depth = 0;
    for (n, c) in code[at..].char_indices() {
        match c {
            '(' | '{' => depth += 1,
            ')' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + n;
        }
    }
    code.len()
}

/// Names behind `before`, as far as they go, each with its place.
fn names_behind<'a>(
    code: &'a str,
    before: &'a str,
) -> impl Iterator<Item = (usize, &'a str, &'a str)> {
    code.match_indices(before).map(move |(at, _)| {
        let rest = &code[at + before.len()..];
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        (at, &rest[..end], &rest[end..])
    })
}

/// Another task may walk through the whole store meanwhile, on a slow disk. A task that waits for it keeps its thread
/// from all others: from the agent's own proofs and heartbeats, and then everything stands still.
#[test]
fn the_queue_is_asked_off_the_async_threads_but_for_what_it_answers_at_once() {
    let at_once = ["progress", "reserve"].map(str::to_owned);
    let (mut at_once, mut all) = (BTreeSet::from(at_once), BTreeSet::new());
    let mut files = Vec::new();
    for file in sources() {
        let code = without_tests(&file.name, &file.text);
        if !file.name.starts_with("queue/") {
            files.push((file.name, code));
            continue;
        }
        let methods = |of: &str, found: &mut BTreeSet<String>| {
            for (at, _) in code.match_indices(of) {
                let body = &code[at..closed(&code, at + of.len() - 1)];
                found.extend(names_behind(body, "pub fn ").map(|(_, name, _)| name.to_owned()));
            }
        };
        methods("impl Queue {", &mut all);
        methods("impl Front {", &mut at_once);
    }
    assert!(at_once.len() > 20 && all.len() > 30, "they are found");
    let mut found = Vec::new();
    for (name, code) in files {
        let mut is_async = vec![false; code.len()];
        for (at, _) in code.match_indices("async ") {
            let rest = &code[at..];
            let open = match rest.strip_prefix("async fn") {
                // Behind the arguments, and what is returned.
                Some(_) => rest.find('(').and_then(|open| {
                    let arguments = closed(&code, at + open);
                    code[arguments..].find(['{', ';']).map(|open| arguments + open)
                }),
                None => rest.find('{').map(|open| at + open),
            };
            if let Some(open) = open.filter(|open| code[*open..].starts_with('{')) {
                is_async[open..closed(&code, open)].fill(true);
            }
        }
        for off in ["blocking(", "with_queue("] {
            for (at, _) in code.match_indices(off) {
                let open = at + off.len() - 1;
                is_async[open..closed(&code, open)].fill(false);
            }
        }
        let squeezed = |rest: &str| rest.trim_start().to_owned();
        for (at, word, rest) in names_behind(&code, "queue") {
            if !word.is_empty() || !is_async[at] {
                continue;
            }
            let rest = squeezed(rest);
            if let Some(method) = rest.strip_prefix('.') {
                let method = method.split('(').next().unwrap();
                if all.contains(method) && !at_once.contains(method) {
                    found.push(format!("{name}: {method}"));
                }
                continue;
            }
            // Given to another function, by reference.
            let before =
                code[..at].trim_end_matches(|c: char| c.is_alphanumeric() || "_.".contains(c));
            if !before.ends_with('&') || !rest.starts_with([',', ')']) {
                continue;
            }
            let mut depth = 0;
            let open = before.char_indices().rev().find(|(_, c)| {
                depth += i32::from(*c == ')') - i32::from(*c == '(');
                depth < 0
            });
            let Some((open, _)) = open else { continue };
            let function = before[..open].rsplit(|c: char| !c.is_alphanumeric() && c != '_').next();
            let function = function.unwrap_or_default();
            if !function.is_empty() && !GIVEN_THE_QUEUE.contains(&function) {
                found.push(format!("{name}: {function} is given the queue"));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// The fields of the state of `status` that the code reads: where one stands behind it and is not set.
fn displayed_that_are_read(code: &str) -> BTreeSet<&'static str> {
    let mut read = BTreeSet::new();
    for field in DISPLAYED {
        for before in ["status.state().", "state.", "status."] {
            for (at, word, rest) in names_behind(code, before) {
                let is_own =
                    code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '.');
                // The state of a run or of the queue has fields of the same name; those are not the status's.
                let is_status = before == "status.state()."
                    || code[..at].rfind("fn ").is_some_and(|from| {
                        let name = before.trim_end_matches('.');
                        code[from..at].contains(&format!("{name} = self.cx.status.state()"))
                            || code[from..at].contains(&format!("{name} = status.state()"))
                            || code[from..at].contains(&format!("{name} = cx.status.state()"))
                            || code[from..at].contains(&format!("{name} = self.status.state()"))
                    });
                let rest = rest.trim_start();
                let is_set = (rest.starts_with('=') && !rest.starts_with("=="))
                    || [".as_mut(", ".clone_from(", ".insert(", ".retain(", ".entry(", ".look("]
                        .iter()
                        .any(|set| rest.starts_with(set));
                let path = code[..at]
                    .trim_end_matches(|c: char| c.is_alphanumeric() || "_.()".contains(c));
                let is_set = is_set || path.ends_with("&mut ");
                if word == *field
                    && is_status
                    && !is_set
                    && (before == "status.state()." || !is_own)
                {
                    read.insert(*field);
                }
            }
        }
    }
    read
}

#[test]
fn nothing_decides_by_reading_what_is_there_to_be_displayed() {
    let mut found = Vec::new();
    let mut used = BTreeSet::new();
    for file in sources() {
        if !DECIDERS.iter().any(|folder| file.name.starts_with(folder)) {
            continue;
        }
        let code = without_tests(&file.name, &file.text);
        for field in displayed_that_are_read(&code) {
            let may =
                DISPLAY_READERS.iter().position(|(of, what, _)| *of == file.name && *what == field);
            match may {
                Some(row) => drop(used.insert(row)),
                None => found.push(format!("{}: {field}", file.name)),
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
    assert_eq!(used.len(), DISPLAY_READERS.len(), "a row that nobody needs any more: {used:?}");
    let code = "fn a(&self) { let x = self.cx.status.state().phase; let state = self.cx.status.state(); \
                state.divergences = None; state.unshowable.is_some() }";
    assert_eq!(displayed_that_are_read(code), ["phase", "unshowable"].into());
}

/// Most types of one name: beyond it a name says nothing without its module.
const TYPES_OF_A_NAME_MAX: usize = 3;

#[test]
fn a_name_stands_for_few_types() {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in sources().iter().filter(|file| !file.name.contains("/tests")) {
        for line in file.text.lines() {
            let words: Vec<_> = line.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
            // Types of a trait's are indented, and named by the trait.
            let is_of_the_file = !line.starts_with([' ', '/', '#']);
            let at = words.iter().position(|w| ["struct", "enum", "trait", "type"].contains(w));
            if let Some(name) = at.filter(|_| is_of_the_file).and_then(|at| words.get(at + 1)) {
                found.entry((*name).to_owned()).or_default().push(file.name.clone());
            }
        }
    }
    found.retain(|_, files| files.len() > TYPES_OF_A_NAME_MAX);
    assert!(found.is_empty(), "{found:#?}");
}
