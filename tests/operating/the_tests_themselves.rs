//! That the tests bite: what they say where they cannot prove something, what they do with words that they do not
//! understand, and what the scripts around them take for an answer.

use std::{
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use futures_util::FutureExt;
use mongodb::bson::{Document, doc};
use tempfile::TempDir;

use crate::support::{
    PATIENCE,
    agent::Agent,
    equal::equal,
    eventually,
    mongod::Mongod,
    orders, pair, pool,
    proof::{Need, may_lack},
    write_program,
};

fn script(name: &str) -> Command {
    let mut command =
        Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name));
    command.env_remove("CI").env_remove("OUTRIGGER_MAY_LACK");
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn in_ci_what_is_not_proved_fails_but_for_what_is_named() {
    assert!(may_lack(Need::Mounts, false, "").is_ok());
    assert!(may_lack(Need::Mounts, true, "").unwrap_err().contains("no mounts here"));
    assert!(may_lack(Need::Mounts, true, "root, chromium").is_err());
    assert!(may_lack(Need::Mounts, true, "root, mounts").is_ok());
    // A word that names nothing would excuse nothing, and nobody would notice.
    assert!(may_lack(Need::Mounts, false, "mount").unwrap_err().contains("`mount`"));
}

/// Set for this program, which is run once more: the variable, and what it must say.
const READS: &str = "OUTRIGGER_TEST_READS";

#[test]
fn a_word_that_is_not_understood_ends_a_test_and_is_no_default() {
    if let Ok(kind) = std::env::var(READS) {
        match kind.as_str() {
            "seed" => drop(crate::support::seed()),
            "need" => crate::support::proof::not_proved(Need::Root),
            _ => drop(crate::support::from_env::<u64>("OUTRIGGER_SOAK_SECONDS")),
        }
        return;
    }
    let name = "the_tests_themselves::a_word_that_is_not_understood_ends_a_test_and_is_no_default";
    let run = |kind: &str, variable: &str, value: &str| {
        let mut program = Command::new(std::env::current_exe().unwrap());
        program.args(["--exact", name]).env(READS, kind).env(variable, value);
        program.env_remove("CI").output().unwrap()
    };
    for (kind, variable, good, bad) in [
        ("seed", "OUTRIGGER_SEED", "13313997902051060551", "1331399790205106055133"),
        ("soak", "OUTRIGGER_SOAK_SECONDS", "600", "10m"),
        ("need", "OUTRIGGER_MAY_LACK", "root,mounts", "root,mount"),
    ] {
        assert!(run(kind, variable, good).status.success(), "{variable}={good}");
        let refused = run(kind, variable, bad);
        assert!(!refused.status.success(), "{variable}={bad}: {}", said(&refused));
        assert!(said(&refused).contains(variable), "{}", said(&refused));
    }
    // What is said passes by the harness, which shows nothing of a test that passed.
    let excused = said(&run("need", "OUTRIGGER_MAY_LACK", "root"));
    assert!(excused.contains(&format!("NOT PROVED: {name}: there is no root here")), "{excused}");
}

#[test]
fn the_script_that_runs_them_understands_its_numbers_or_ends() {
    for (name, value) in
        [("TEST_JOBS", "two"), ("TEST_JOBS", "0"), ("TEST_JOBS", "7"), ("TEST_THREADS", "")]
    {
        // With a cargo that builds nothing, should the number be taken.
        let output = script("test").env(name, value).env("CARGO", "false").output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}={value}: {}", said(&output));
        assert!(said(&output).contains(name), "{}", said(&output));
    }
}

/// A third file and more at once only where the others leave the cores idle, and never against what is asked for.
#[test]
fn the_script_that_runs_them_runs_more_at_once_only_while_the_cores_are_idle() {
    let decides = |jobs: Option<&str>, running: u32, idle: f64| {
        let load = format!(
            "from importlib.machinery import SourceFileLoader as S; m = S('t', {:?}).load_module(); print(m.is_room({running}, {idle}))",
            crate::support::root().join("scripts/test").display().to_string()
        );
        let mut python = Command::new("python3");
        python.args(["-B", "-W", "ignore", "-c", &load]).env_remove("TEST_JOBS");
        if let Some(jobs) = jobs {
            python.env("TEST_JOBS", jobs);
        }
        said(&python.output().unwrap()).trim() == "True"
    };
    assert!(decides(None, 1, 0.0), "two at once however busy");
    assert!(decides(None, 2, 0.5) && !decides(None, 2, 0.2) && decides(None, 5, 0.5));
    assert!(!decides(None, 3, 0.2) && !decides(None, 6, 1.0), "there are ports for six");
    assert!(!decides(Some("2"), 2, 1.0) && decides(Some("4"), 3, 0.0));
}

/// What runs at night only is not seen to be gone by day.
#[test]
fn what_runs_at_night_runs_the_shipped_program_at_its_own_times() {
    let root = crate::support::root();
    let told = Command::new("make").args(["-n", "nightly"]).current_dir(root).output().unwrap();
    let lines = said(&told);
    assert!(told.status.success(), "{lines}");
    for part in [
        "build --locked --release",
        "--test faults soak::",
        "--test faults fault_matrix::",
        "scripts/settings",
        "scripts/aarch64",
        "--keep-going",
        "memory_of_the_unit::",
        "version_matrix::",
    ] {
        assert!(lines.contains(part), "{part}: {lines}");
    }
    let makefile = std::fs::read_to_string(root.join("Makefile")).unwrap();
    assert!(makefile.contains("export OUTRIGGER_BIN := $(CURDIR)/target/release/outrigger"));
    assert!(makefile.contains("export OUTRIGGER_TEST_UNSCALED := yes"));
    let weekly = std::fs::read_to_string(root.join(".github/workflows/ci.yml")).unwrap();
    assert!(weekly.contains("make nightly "));
}

/// On somebody's own machine, `make test` leaves the system as it is.
#[test]
fn nothing_is_installed_into_the_system_unasked() {
    let dir = TempDir::new().unwrap();
    let told = dir.path().join("told");
    for name in ["apt-get", "sudo", "id"] {
        let path = dir.path().join(name);
        // Rights would be there.
        let text = format!("#!/bin/sh\necho 0\necho \"$0 $*\" >> {}\n", told.display());
        write_program(&path, &text);
    }
    for name in ["bash", "dirname", "mkdir", "flock"] {
        let path = format!("/usr/bin/{name}");
        std::os::unix::fs::symlink(path, dir.path().join(name)).unwrap();
    }

    let run = script("chromium").env("PATH", dir.path()).output().unwrap();

    assert_eq!(run.status.code(), Some(1), "{}", said(&run));
    assert!(said(&run).contains("OUTRIGGER_MAY_INSTALL"), "{}", said(&run));
    assert!(!told.exists(), "{}", std::fs::read_to_string(&told).unwrap());
    // Whoever else installs something says where, and is asked to.
    for entry in std::fs::read_dir(crate::support::root().join("scripts")).unwrap() {
        let path = entry.unwrap().path();
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let installs = text.lines().any(|line| {
            let line = line.trim_start();
            line.contains("apt-get install") && !line.contains("hint:") && !line.starts_with('#')
        });
        let asks = text.contains("OUTRIGGER_MAY_INSTALL") || text.contains("in_root apt-get");
        assert!(!installs || asks, "{}", path.display());
    }
}

/// Of a long output CI shows the beginning and the end.
#[test]
fn the_script_that_runs_them_ends_with_each_failure_and_its_reason() {
    let dir = TempDir::new().unwrap();
    let program = |name: &str, text: &str| {
        let path = dir.path().join(name);
        write_program(&path, &format!("#!/bin/sh\n{text}"));
        path.display().to_string()
    };
    let tests = program(
        "tests",
        "cat <<'END'\n\
         NOT PROVED: good::lacking: there is no lintian here\n\
         test good ... ok\n\
         test good::lacking ... ok\n\
         test bad::one ... FAILED\n\
         test bad::two ... FAILED\n\
         \nfailures:\n\n\
         ---- bad::one stdout ----\n\
         OUTRIGGER_SEED=1\n\
         \nthread 'bad::one' (7) panicked at tests/faults/bad.rs:1:2:\n\
         a reason\nmore of it\n\
         thread 'other' panicked at tests/faults/bad.rs:9:9:\nafterwards\n\n\
         ---- bad::two stdout ----\n\
         Error: no panic\n\n\
         \nfailures:\n    bad::one\n    bad::two\n\n\
         test result: FAILED. 2 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
         END\nexit 101\n",
    );
    let died = program("died", "echo 'test bad::three ... '\nkill -9 $$\n");
    let built = |name: &str, executable: &str| {
        format!(
            r#"{{"reason":"compiler-artifact","profile":{{"test":true}},"executable":"{executable}","target":{{"name":"{name}","kind":["lib"]}}}}"#
        )
    };
    let doc = "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0s";
    let cargo = program(
        "cargo",
        &format!(
            "case \"$*\" in\n*--no-run*) cat <<'END'\n{}\n{}\nEND\n;;\n*) echo '{doc}';;\nesac\n",
            built("faults", &tests),
            built("died", &died),
        ),
    );

    let output = script("test").env("CARGO", cargo).output().unwrap();

    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let end: Vec<_> = text.lines().rev().take(6).collect();
    assert!(end[1].ends_with(" s"), "{text}");
    assert!(text.contains("---- faults: 0 s, 0 s of the cores\n"), "{text}");
    assert_eq!(
        [end[5], end[4], end[3], end[2], end[0]],
        [
            "FAILED bad::one: tests/faults/bad.rs:1:2: a reason more of it",
            "FAILED bad::two: Error: no panic",
            "died ended with -9",
            "NOT PROVED: good::lacking: there is no lintian here",
            "2 passed, 3 failed, 1 skipped",
        ],
        "{text}"
    );
}

/// A cargo-deny that answers as it is told to: what the fetch of the advisories ends with, and what they say.
fn deny(fetch: &str, advisories: &str, ci: &[(&str, &str)]) -> Output {
    let dir = TempDir::new().unwrap();
    let tool = dir.path().join("cargo-deny");
    let text = format!(
        "#!/bin/sh\ncase \"$*\" in\n*\" fetch db\") {fetch};;\n*advisories*) {advisories};;\nesac\n"
    );
    write_program(&tool, &text);
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    script("deny").env("PATH", path).envs(ci.iter().copied()).output().unwrap()
}

#[test]
fn only_a_failure_to_fetch_the_advisories_counts_as_one() {
    let bad = "echo 'error[vulnerability]: a peer on the network, failed to connect' >&2; exit 1";
    let (cannot, ci) = ("echo 'could not resolve' >&2; exit 1", ("CI", "true"));

    assert!(deny("exit 0", "exit 0", &[ci]).status.success());
    let found = deny("exit 0", bad, &[]);
    assert!(!found.status.success(), "{}", said(&found));
    let left_out = deny(cannot, bad, &[]);
    assert!(left_out.status.success() && said(&left_out).contains("NOT PROVED: advisories"));
    assert!(!deny(cannot, bad, &[ci]).status.success());
    let named = [ci, ("OUTRIGGER_MAY_LACK", "root,advisories")];
    assert!(deny(cannot, bad, &named).status.success());
}

/// Why both sides are not taken for equal; the comparison must give up soon.
async fn doubt(local: &Mongod, atlas: &Mongod) -> String {
    let looked = equal(local, atlas, Duration::from_secs(1));
    let panic = std::panic::AssertUnwindSafe(looked).catch_unwind().await.unwrap_err();
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

/// The other half of `odd_schema::the_comparison_of_the_random_suites_finds_a_difference_of_every_kind`: both sides hold the
/// same in each of these.
#[tokio::test(flavor = "multi_thread")]
async fn equal_sides_are_not_believed_while_changes_wait_letters_are_dead_or_one_cannot_be_read() {
    let (local, atlas) = pair().await;
    orders(&local).insert_one(doc! { "_id": 1, "v": 1 }).await.unwrap();
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "[worker]\nmax_retries = 0\n");
    agent.start(&[]);
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;

    assert!(agent.cli(&["pause"]).status.success());
    for v in [2, 1] {
        orders(&local).update_one(doc! { "_id": 1 }, doc! { "$set": { "v": v } }).await.unwrap();
    }
    agent.queued(1).await;
    let why = doubt(&local, &atlas).await;
    assert!(why.contains("1 changes wait"), "{why}");
    assert!(agent.cli(&["resume"]).status.success());
    equal(&local, &atlas, PATIENCE).await;

    let refused =
        doc! { "failCommands": ["insert", "update"], "namespace": "shop.orders", "errorCode": 121 };
    atlas.fail(refused, i32::MAX).await;
    orders(&local).insert_one(doc! { "_id": 2 }).await.unwrap();
    eventually("a dead letter", PATIENCE, async || agent.health().unwrap()["deadLetters"] == 1)
        .await;
    atlas.end_failing().await;
    orders(&atlas).insert_one(doc! { "_id": 2 }).await.unwrap();
    let why = doubt(&local, &atlas).await;
    assert!(why.contains("1 dead letters"), "{why}");
    agent.means_dead_letters(true);
    equal(&local, &atlas, PATIENCE).await;

    let no_indexes = |mode: &str| {
        let data = doc! { "failCommands": ["listIndexes"], "errorCode": 8 };
        doc! { "configureFailPoint": "failCommand", "mode": mode, "data": data }
    };
    atlas.admin(no_indexes("alwaysOn")).await;
    let why = doubt(&local, &atlas).await;
    assert!(why.contains("cannot be read"), "{why}");
    atlas.admin(no_indexes("off")).await;
    equal(&local, &atlas, PATIENCE).await;
}

/// The server as another test would get it, if it is not refused with these words; then as the test goes on with it.
async fn passed_on(mut server: Mongod, refused: Option<&str>) -> Mongod {
    let idle = server.left().expect("nobody has touched it");
    // Its client ends with the test that has it, and not by being dropped.
    let client = server.client.clone();
    drop(server);
    client.shutdown().await;
    let (server, looked) = pool::looked_at(idle).await;
    match refused {
        None => looked.unwrap(),
        Some(words) => {
            let why = looked.expect_err(words);
            assert!(why.contains(words), "{why}");
        }
    }
    server
}

/// What a test has left would be found by the next one, which one that is being chance.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_goes_to_another_test_only_as_it_was_after_its_start_and_without_what_is_in_it() {
    let mut server = Mongod::start().await;
    orders(&server).insert_one(doc! { "_id": 1 }).await.unwrap();
    server = passed_on(server, None).await;
    assert_eq!(server.client.list_database_names().await.unwrap(), ["admin", "config", "local"]);

    let parameter = |ms: i32| doc! { "setParameter": 1, "cursorTimeoutMillis": ms };
    server.admin(parameter(1_000)).await;
    server = passed_on(server, Some("getParameter.cursorTimeoutMillis")).await;
    server.admin(parameter(600_000)).await;
    server = passed_on(server, None).await;

    let fail_point = |mode: &str| {
        let data = doc! { "failCommands": ["insert"], "errorCode": 121, "appName": "nobody" };
        doc! { "configureFailPoint": "failCommand", "mode": mode, "data": data }
    };
    server.admin(fail_point("alwaysOn")).await;
    server = passed_on(server, Some("getParameter.failpoint.failCommand")).await;
    server.is_touched();
    assert!(server.left().is_none(), "one that a test has had in its hands is not even asked");

    let mut server = Mongod::start().await;
    server.admin(doc! { "profile": 0, "slowms": 7 }).await;
    server = passed_on(server, Some("profile")).await;
    server.admin(doc! { "profile": 0, "slowms": 100 }).await;

    let users = server.client.database("admin");
    users.create_collection("somebody").await.unwrap();
    server = passed_on(server, Some("admin.somebody")).await;
    server.client.database("admin").collection::<Document>("somebody").drop().await.unwrap();

    let somebody = mongodb::Client::with_uri_str(server.uri()).await.unwrap();
    somebody.database("shop").run_command(doc! { "ping": 1 }).await.unwrap();
    server = passed_on(server, Some("somebody is connected")).await;
    somebody.shutdown().await;
    passed_on(server, None).await;
}
