//! The README and the book: short where a reader begins, complete where one looks something up, and nothing in
//! them that leads nowhere.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use outrigger::observe::{
    health::{Condition, Vitals, judge},
    runbook,
    status::{Counted, Divergence, Phase, RecentWrites, Unshowable},
};

use crate::support::book::{page, pages};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_readme_is_short_and_begins_with_two_commands() {
    let readme = page("README.md");

    let words = readme.text.split_whitespace().count();
    assert!(words <= 900, "{words} words; what is more belongs into docs/");
    let commands: Vec<_> =
        readme.blocks("sh").iter().flat_map(|of| of.lines()).map(str::to_owned).collect();
    assert!(commands[0].starts_with("make demo ") && commands[1].starts_with("make test "));
    let limits = readme.text.find("docs/limits.md").unwrap();
    assert!(readme.text.find("## Install").unwrap() < limits, "limits come after the start");
}

/// It was once cut off in its middle, and nobody noticed.
#[test]
fn contributing_names_every_script_and_every_target_of_make() {
    let text = page("CONTRIBUTING.md").text;
    let scripts = std::fs::read_dir(root().join("scripts")).unwrap();
    let scripts = scripts.map(|of| format!("`scripts/{}", of.unwrap().file_name().display()));
    let makefile = page("Makefile").text;
    let phony = makefile.lines().find_map(|line| line.strip_prefix(".PHONY: ")).unwrap();
    // What they do is in their names, or they are parts of one that is named.
    let plain =
        ["demo", "demo-postgres", "demo-outbox", "build", "clean", "fmt", "clippy", "deny", "doc"];
    let parts = ["nightly-", "bench-copy", "deb"];
    let targets = phony
        .split(' ')
        .filter(|name| !plain.contains(name) && !parts.iter().any(|part| name.starts_with(part)));
    let targets = targets.map(|name| format!("`make {name}"));
    let missing: Vec<_> = scripts.chain(targets).filter(|name| !text.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// `a/b/../c` as `a/c`.
fn plain(path: &Path) -> PathBuf {
    let mut parts = PathBuf::new();
    for part in path.components() {
        if part.as_os_str() == ".." {
            assert!(parts.pop(), "{} leads out of the repository", path.display());
        } else {
            parts.push(part);
        }
    }
    parts
}

#[test]
fn every_link_in_the_readme_and_the_book_leads_somewhere() {
    let mut checked = 0;
    for from in pages() {
        for link in from.links() {
            if link.starts_with("https://") || link.starts_with("http://") {
                continue;
            }
            let (target, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = match target {
                "" => PathBuf::from(&from.path),
                _ => plain(&Path::new(&from.path).parent().unwrap().join(target)),
            };
            assert!(root().join(&target).is_file(), "{} links to {link}", from.path);
            // As a web site the book has its own folder and nothing else.
            let is_of_book = from.path.starts_with("docs/");
            assert!(!is_of_book || target.starts_with("docs"), "{} links to {link}", from.path);
            if !anchor.is_empty() {
                let anchors = page(target.to_str().unwrap()).anchors();
                assert!(
                    anchors.iter().any(|of| of == anchor),
                    "{}: {link}: {anchors:?}",
                    from.path
                );
            }
            checked += 1;
        }
    }
    assert!(checked > 60, "{checked}");
}

#[test]
fn every_page_of_the_book_stands_in_its_summary_once() {
    let summary = page("docs/SUMMARY.md").links();
    let listed: BTreeSet<_> = summary.iter().map(|link| format!("docs/{link}")).collect();
    let there: BTreeSet<_> = pages()
        .into_iter()
        .map(|page| page.path)
        .filter(|path| path.starts_with("docs/") && path != "docs/SUMMARY.md")
        .collect();

    assert_eq!(listed, there);
    assert_eq!(summary.len(), listed.len(), "twice");
}

/// Everything at once that can be wrong.
fn all_conditions() -> Vec<Condition> {
    let long = Duration::from_secs(3600);
    let divergence = |counted| Divergence { ns: String::new(), local: 1, atlas: 0, counted };
    let vitals = Vitals {
        phase: Phase::Failed,
        lag: long,
        queue_size: 1_000_000,
        lag_of_retries: Duration::ZERO,
        recent_writes: RecentWrites { applied: 0, rejected: 100 },
        backlog: 0,
        is_backlog_unknown: false,
        local_silence: long,
        atlas_silence: long,
        uncommitted: long,
        local_delay: long,
        is_paused: false,
        breaker_open: true,
        reading_stopped: Some(String::new()),
        oplog_window: Some(Duration::ZERO),
        unshowable: Some(Unshowable::Failing(String::new())),
        local_denied: Some(String::new()),
        atlas_denied: Some(String::new()),
        is_put_back: true,
        is_fenced: true,
        has_lost_source: false,
        refused_deletes: vec![String::new()],
        not_ours: vec![(String::new(), String::new())],
        divergences: vec![divergence(Counted::All), divergence(Counted::Gone)],
        dead_letters: 1,
    };
    judge(&vitals, &outrigger::config::Config::default().alerts).1
}

#[test]
fn each_alert_has_a_page_that_says_what_it_means_and_what_to_do_and_no_page_is_without_one() {
    let alerts: BTreeSet<_> = all_conditions().iter().map(|of| of.name.to_owned()).collect();
    let there: BTreeSet<_> = std::fs::read_dir(root().join("docs/alerts"))
        .unwrap()
        .map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(alerts, there);
    let served: BTreeSet<_> = runbook::alerts().map(str::to_owned).collect();
    assert_eq!(alerts, served);

    let table = page("docs/operate.md");
    for name in alerts {
        let own = page(&format!("docs/alerts/{name}.md"));
        assert_eq!(runbook::page(&name), Some(own.text.as_str()));
        assert!(own.text.starts_with(&format!("# `{name}`\n")), "{name}");
        for part in ["## What it means\n", "## The data\n", "## Do\n"] {
            assert!(own.text.contains(part), "{name}: {part}");
        }
        assert!(table.text.contains(&format!("| [`{name}`](alerts/{name}.md) |")), "{name}");
    }
}

#[test]
fn the_book_explains_each_phase_and_log_field_and_has_the_roles_to_paste() {
    let operate = page("docs/operate.md").text;
    for phase in ["starting", "copying", "streaming", "paused", "stopping", "failed"] {
        assert!(operate.contains(&format!("| `{phase}` |")), "{phase} is not explained");
    }
    let logs = page("docs/monitoring.md").text;
    for (name, _) in outrigger::observe::logging::FIELDS {
        assert!(logs.contains(&format!("`{name}`")), "the field {name} is not listed");
    }
    let roles = page("deploy/roles.js").text;
    let book = page("docs/configure.md").text;
    let pasted =
        roles.lines().filter(|line| line.contains("\"actions\"") || line.contains("\"db\": \""));
    for line in pasted {
        assert!(book.contains(line), "{line}");
    }
}

/// Lines for a shell that no test types, each with the reason. The rest is typed by `newcomer`, page by page.
const NOT_TYPED: &[(&str, &str)] = &[
    ("make demo", "some minutes of a compiler; its program is built by `make test`"),
    ("make test", "this is it"),
    ("cargo install --path .", "a release build, of what is tested here as a debug build"),
    ("apt install ", "changes the machine; `package` installs into a folder"),
    ("install -m 600 ", "root's, and opens an editor"),
    ("editor ", "opens an editor"),
    ("systemctl ", "there is no systemd"),
    ("docker ", "there is no engine; `deployment` looks at the file"),
    ("kubectl ", "there is no cluster; `kubernetes` checks the file"),
];

/// Pages whose blocks for a shell are typed from the first to the last line.
const TYPED: [&str; 3] = ["docs/start.md", "docs/restore.md", "docs/migrate.md"];

#[test]
fn every_block_for_a_shell_is_typed_by_a_test_or_named_with_the_reason_why_not() {
    let typed: BTreeSet<_> = TYPED
        .iter()
        .flat_map(|path| page(path).blocks("sh"))
        .flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let mut lines = 0;
    for from in pages().iter().filter(|page| !TYPED.contains(&page.path.as_str())) {
        for line in from.blocks("sh").iter().flat_map(|block| block.lines()) {
            let is_named = NOT_TYPED.iter().any(|(begin, _)| line.starts_with(begin));
            // The same line with or without its remark.
            let bare = line.split("  #").next().unwrap().trim_end();
            let is_typed =
                typed.iter().any(|of| of.split("  #").next().unwrap().trim_end() == bare);
            assert!(is_named || is_typed, "{}: nobody types `{line}`", from.path);
            lines += 1;
        }
    }
    assert!(lines >= 10, "{lines}");
}

#[test]
fn every_command_that_the_readme_and_the_book_name_is_one() {
    let mut known = BTreeSet::new();
    for from in pages() {
        for command in from.commands() {
            let words = command.replace(['[', ']', '\''], "");
            let stands_for = [("ID", "1"), ("NS", "shop.orders"), ("D", "5s"), ("SHELL", "bash")];
            let words: Vec<_> = words
                .split_whitespace()
                .skip(1)
                .map(|word| stands_for.iter().find(|(of, _)| *of == word).map_or(word, |of| of.1))
                .take_while(|word| !word.starts_with(['|', '>', '…']))
                .collect();
            // What the parser does not know it says before it shows its help.
            let program = std::process::Command::new(env!("CARGO_BIN_EXE_outrigger"))
                .args(&words)
                .arg("--help")
                .output()
                .unwrap();
            let error = String::from_utf8_lossy(&program.stderr).into_owned();
            assert!(program.status.success(), "{}: `{command}`: {error}", from.path);
            known.insert(words.join(" "));
        }
    }
    assert!(known.len() > 30, "{known:?}");
}
