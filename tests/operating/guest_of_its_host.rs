//! The agent on its host: a log that nobody reads, signals at any time, a disk that is slow at the end.

use std::{
    io::{BufRead, BufReader, PipeReader},
    path::{Path, PathBuf},
    process::Command,
};

use mongodb::bson::doc;
use serde_json::Value;

use crate::support::{
    PATIENCE,
    agent::Agent,
    api::Api,
    equal::equal,
    eventually, orders, pair,
    proof::{Need, not_proved},
    proxy::{Line, Proxy},
};

/// An agent whose log goes into a pipe.
fn into_a_pipe(agent: &mut Agent) -> PipeReader {
    let (reader, writer) = std::io::pipe().unwrap();
    agent.start_with_log(&[], writer.into());
    reader
}

/// Lines at `debug`, one for each document, as long as it takes until some find no room.
async fn overflow(local: &crate::support::mongod::Mongod, api: &Api) {
    let orders = orders(local);
    eventually("lines that are dropped", PATIENCE, async || {
        orders.insert_many((0..5_000).map(|n| doc! { "n": n })).await.unwrap();
        let metrics = api.get("/metrics").1;
        let mut lines = metrics.as_str().unwrap().lines();
        let dropped =
            lines.find_map(|line| line.strip_prefix("outrigger_log_lines_dropped_total "));
        dropped.unwrap().parse::<f64>().unwrap() > 0.0
    })
    .await;
}

const TALKATIVE: &str = "[log]\nlevel = \"debug\"\nformat = \"json\"\n";

/// A container's log driver hangs, or somebody pressed Ctrl-S.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_holds_up_nothing_and_tells_what_it_lost() {
    let (local, atlas) = pair().await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), TALKATIVE);
    let log = into_a_pipe(&mut agent);
    agent.streaming().await;

    overflow(&local, &Api::of(&agent)).await;

    equal(&local, &atlas, PATIENCE).await;
    assert!(agent.health().is_some());
    // Whoever reads it again gets whole lines, is told of the gap, and misses nothing of the end.
    let (got, lines) = std::sync::mpsc::channel::<Value>();
    std::thread::spawn(move || {
        for line in BufReader::new(log).lines().map(Result::unwrap) {
            got.send(serde_json::from_str(&line).expect(&line)).unwrap();
        }
    });
    eventually("a line that tells", PATIENCE, async || {
        lines.try_iter().any(|line| line["dropped"].as_u64() > Some(0))
    })
    .await;
    assert_eq!(agent.stop().code(), Some(0));
    let last = lines.iter().last().unwrap();
    assert!(last["message"].as_str().unwrap().starts_with("stopped;"), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_does_not_hold_up_the_end_either() {
    let (local, atlas) = pair().await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), TALKATIVE);
    let log = into_a_pipe(&mut agent);
    agent.streaming().await;
    overflow(&local, &Api::of(&agent)).await;

    agent.signal("TERM");
    let ended = agent.ended(PATIENCE).await;

    assert_eq!(ended.code(), Some(0));
    drop(log);
    // And what fails says so although its log is full: to nobody.
    agent.set_env("MONGODB_LOCAL_URI", "mongodb://127.0.0.1:1/?directConnection=true");
    let log = into_a_pipe(&mut agent);
    assert_eq!(agent.ended(PATIENCE).await.code(), Some(3));
    let said: Vec<_> = BufReader::new(log).lines().map(Result::unwrap).collect();
    assert!(said.iter().any(|line| line.starts_with("error: ")), "{said:?}");
}

/// True once the process has a handler for SIGHUP.
fn hears_hang_ups(agent: &Agent) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.id())).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(caught.trim(), 16).unwrap() & 1 == 1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_up_is_a_line_in_the_log_and_nothing_else() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(local.port).await;
    line.set(Line::Silent);
    let mut agent = Agent::new(&line.uri(), &atlas.uri(), "");

    // While it starts: the local server does not answer yet.
    agent.start(&[]);
    let told = |times: usize| agent.log().matches("SIGHUP is ignored").count() >= times;
    eventually("a handler", PATIENCE, async || hears_hang_ups(&agent)).await;
    agent.signal("HUP");
    eventually("a line", PATIENCE, async || told(1)).await;
    line.set(Line::Up);
    agent.streaming().await;
    agent.signal("HUP");
    eventually("another line", PATIENCE, async || told(2)).await;
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    equal(&local, &atlas, PATIENCE).await;

    assert_eq!(agent.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_an_agent_that_is_still_connecting() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(local.port).await;
    line.set(Line::Silent);
    let mut agent = Agent::new(&line.uri(), &atlas.uri(), "");
    agent.replace_setting("[local]\ntimeout = \"5s\"", "[local]\ntimeout = \"10m\"");
    agent.start(&[]);
    eventually("a handler", PATIENCE, async || hears_hang_ups(&agent)).await;

    agent.signal("TERM");

    assert_eq!(agent.ended(PATIENCE).await.code(), Some(0));
}

/// A library in front of the system's: while the file `slow` is there, the disk takes ten minutes for what it is
/// asked to keep. `None` where there is no C compiler, though Rust itself needs one.
fn slow_disk(dir: &Path) -> Option<PathBuf> {
    let source = "#include <sys/types.h>\n#include <unistd.h>\n\
        static int wait_for_it(void) { int n = 0; while (access(\"slow\", F_OK) == 0 && n++ < 6000) usleep(100000); return 0; }\n\
        int fsync(int fd) { return wait_for_it(); }\n\
        int fdatasync(int fd) { return wait_for_it(); }\n\
        int sync_file_range(int fd, off_t at, off_t n, unsigned flags) { return wait_for_it(); }\n";
    let (from, to) = (dir.join("slow.c"), dir.join("slow.so"));
    std::fs::write(&from, source).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&to).arg(&from).status();
    built.is_ok_and(|status| status.success()).then_some(to)
}

/// With one signal the end is bounded by the configuration, with two by nothing but a moment.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_slow_does_not_hold_up_the_end() {
    let (local, atlas) = pair().await;
    orders(&local).insert_one(doc! { "by": "nobody" }).await.unwrap();
    for (drain_for, signals) in [("1s", 1), ("10m", 2)] {
        let config = format!("[shutdown]\ndrain_for = \"{drain_for}\"\n");
        let mut agent = Agent::new(&local.uri(), &atlas.uri(), &config);
        let Some(library) = slow_disk(agent.dir.path()) else {
            not_proved(Need::CCompiler);
            return;
        };
        agent.set_env("LD_PRELOAD", library.to_str().unwrap());
        agent.start(&["--adopt"]);
        agent.streaming().await;
        std::fs::write(agent.dir.path().join("slow"), "").unwrap();
        orders(&local).insert_one(doc! { "by": drain_for }).await.unwrap();
        equal(&local, &atlas, PATIENCE).await;

        agent.signal("TERM");
        if signals == 2 {
            eventually("the first is heard", PATIENCE, async || agent.log().contains("stopping:"))
                .await;
            agent.signal("TERM");
        }
        let ended = agent.ended(PATIENCE).await;

        assert_eq!(ended.code(), Some(0), "{}", agent.log());
        // Nothing is lost: the next one goes on.
        std::fs::remove_file(agent.dir.path().join("slow")).unwrap();
        orders(&local).insert_one(doc! { "after": drain_for }).await.unwrap();
        agent.start(&["--adopt"]);
        equal(&local, &atlas, PATIENCE).await;
        assert_eq!(agent.stop().code(), Some(0));
    }
}

/// What a process of its own does, for the test below: logging and panics are of a whole process.
const PANICS: &str = "OUTRIGGER_TEST_PANICS";

/// The driver is asked while the runtime of its tasks is gone, as a task of it is that is still at work when that goes.
fn the_driver_without_its_runtime() {
    let options = mongodb::options::ClientOptions::default();
    std::thread::spawn(|| mongodb::Client::with_options(options)).join().unwrap_err();
}

fn panics() {
    outrigger::observe::logging::take_panics();
    outrigger::observe::logging::start("info", outrigger::config::LogFormat::Text);
    let ours = |when: &'static str| {
        std::thread::spawn(move || panic!("a bug of ours {when}")).join().unwrap_err();
    };
    ours("while it runs");
    the_driver_without_its_runtime();
    outrigger::observe::logging::leave();
    the_driver_without_its_runtime();
    ours("at the end");
    outrigger::observe::logging::flush();
}

/// A backtrace of the driver used to stand below an outcome that was good.
#[test]
fn what_the_driver_panics_of_when_the_process_ends_is_not_told_and_what_is_our_own_bug_is() {
    if std::env::var_os(PANICS).is_some() {
        return panics();
    }
    let name = "guest_of_its_host::what_the_driver_panics_of_when_the_process_ends_is_not_told_and_what_is_our_own_bug_is";
    let mut child = Command::new(std::env::current_exe().unwrap());

    let output = child.args(["--exact", name, "--nocapture"]).env(PANICS, "1").output().unwrap();

    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{told}");
    let panics = told.lines().filter(|line| line.contains("panicked at"));
    assert_eq!(panics.filter(|line| line.contains("/mongodb-")).count(), 1, "{told}");
    for when in ["while it runs", "at the end"] {
        assert!(told.contains(&format!("a bug of ours {when}")), "{told}");
    }
}

/// Whoever may write beside the queue could have the agent write where only it may.
#[tokio::test(flavor = "multi_thread")]
async fn the_agents_id_is_not_written_through_a_link() {
    let (local, atlas) = pair().await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "");
    let (id, target) = (agent.dir.path().join("queue.id"), agent.dir.path().join("theirs"));
    std::fs::write(&target, "of somebody else").unwrap();
    std::os::unix::fs::symlink(&target, &id).unwrap();

    agent.start(&[]);
    agent.streaming().await;

    assert_eq!(std::fs::read_to_string(&target).unwrap(), "of somebody else");
    assert!(std::fs::symlink_metadata(&id).unwrap().is_file());
    assert_eq!(std::fs::read_to_string(&id).unwrap().trim().len(), 36);
    assert!(agent.stop().success());
}
