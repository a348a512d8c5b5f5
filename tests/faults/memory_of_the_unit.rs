//! The whole agent in as much memory as its unit allows, while large documents wait, are changed, and go to Atlas.
//!
//! `make memory` runs it with three times as much as the unit's memory; among the other tests it is made small, and shows
//! that it works at all.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mongodb::{
    Client,
    bson::{Binary, RawDocumentBuf, doc, spec::BinarySubtype},
};
use rand::{RngCore, SeedableRng, rngs::StdRng};

use crate::support::{
    PATIENCE,
    agent::{Agent, is_running, may_mount, signal},
    equal::equal,
    eventually,
    mongod::Mongod,
    orders, pair,
    proof::{Need, not_proved},
    unasked::Unasked::Memory,
};

/// `2000x1000000,100x15000000`: documents, and bytes of each.
const SIZES: (&str, &str) = ("OUTRIGGER_MEMORY", "60x1000000,6x15000000");
/// Bytes that the agent may take. Its unit allows 1 GiB; with this little to do it peaks at 500 to 700 MB, built as tests are.
const LIMIT: (&str, &str) = ("OUTRIGGER_MEMORY_LIMIT", "850000000");

fn setting((name, default): (&str, &str)) -> String {
    std::env::var(name).unwrap_or_else(|_| default.into())
}

/// A control group with a limit of memory, removed when dropped.
struct Group(PathBuf);

impl Group {
    /// `None` where none can be made: without root, in most containers.
    fn of(limit: u64) -> Option<Self> {
        let name = format!("outrigger-test-{}", std::process::id());
        let root = Path::new("/sys/fs/cgroup");
        let (path, file) = if root.join("cgroup.controllers").exists() {
            (root.join(name), "memory.max")
        } else {
            (root.join("memory").join(name), "memory.limit_in_bytes")
        };
        fs::create_dir(&path).ok()?;
        let group = Self(path);
        fs::write(group.0.join(file), limit.to_string()).ok()?;
        // Where there is swap, it would be taken instead.
        let _ = fs::write(group.0.join("memory.swap.max"), "0");
        Some(group)
    }

    fn take(&self, process: u32) {
        fs::write(self.0.join("cgroup.procs"), process.to_string()).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let until = Instant::now() + Duration::from_secs(5);
        // A process that was killed leaves it a moment later.
        while fs::remove_dir(&self.0).is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The most memory that the process took, in MiB.
fn peak(agent: &Agent) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("it runs");
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

async fn fill(local: &Client) -> u64 {
    let files = local.database("shop").collection("files");
    let mut rng = StdRng::seed_from_u64(1);
    let mut id = 0;
    for size in setting(SIZES).split(',') {
        let (n, bytes) = size.split_once('x').expect("so many x bytes");
        for _ in 0..n.parse::<u64>().unwrap() {
            // Nothing that could be packed.
            let mut content = vec![0; bytes.parse().unwrap()];
            rng.fill_bytes(&mut content);
            let content = Binary { subtype: BinarySubtype::Generic, bytes: content };
            files.insert_one(doc! { "_id": id as i64, "content": content }).await.unwrap();
            id += 1;
        }
    }
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn large_documents_wait_are_changed_and_go_in_the_memory_of_the_unit() {
    let limit = setting(LIMIT).parse().unwrap();
    let Some(group) = Group::of(limit) else {
        return not_proved(Need::ControlGroup);
    };
    let args = ["--replSet", "rs", "--oplogSize", "6000"];
    let local = Mongod::start_with(&args).await;
    local.initiate().await;
    let mut atlas = Mongod::start_with(&["--replSet", "rs", "--oplogSize", "990"]).await;
    atlas.initiate().await;
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[Memory], "it may have as much as its unit");
    let patience = Duration::from_secs(1_200);
    let began = Instant::now();
    let tell = |step: &str, agent: &Agent| {
        println!("{step}: {} MiB at the most, after {:?}", peak(agent), began.elapsed());
    };
    group.take(agent.id());
    agent.streaming().await;
    atlas.kill();

    let n = fill(&local.client).await;
    let waits = async |agent: &Agent, n: u64| {
        eventually("all that waits", patience, async || {
            assert!(agent.is_running(), "{}", agent.log());
            agent.health().is_some_and(|health| health["queueSize"].as_u64() >= Some(n))
        })
        .await;
    };
    waits(&agent, n).await;
    tell("filled", &agent);

    agent.kill();
    agent.start(&[]);
    group.take(agent.id());
    waits(&agent, n).await;
    tell("opened", &agent);

    let files = local.client.database("shop").collection::<RawDocumentBuf>("files");
    files.update_many(doc! {}, doc! { "$set": { "touched": 1 } }).await.unwrap();
    // What is read last.
    let last = local.client.database("shop").collection("others");
    last.insert_one(doc! { "_id": 1 }).await.unwrap();
    waits(&agent, n + 2).await;
    tell("changed", &agent);

    agent.kill();
    agent.start(&[]);
    group.take(agent.id());
    atlas.resume().await;
    eventually("an empty queue", patience, async || {
        assert!(agent.is_running(), "{}", agent.log());
        agent.health().is_some_and(|health| {
            health["phase"] == "streaming" && health["queueSize"] == 0 && health["deadLetters"] == 0
        })
    })
    .await;
    tell("drained", &agent);
    equal(&local, &atlas, patience).await;
}

/// Ends a process of which nobody else is the parent.
struct Ends(u32);

impl Drop for Ends {
    fn drop(&mut self) {
        if is_running(self.0) {
            signal(self.0, "KILL");
        }
    }
}

/// As containers have it: the first process there, of a user that has neither a name nor a home, in little memory.
#[tokio::test(flavor = "multi_thread")]
async fn in_a_container_it_is_process_one_of_a_user_without_a_name_in_256_mib() {
    const NOBODY: u32 = 12_345;
    const MIB: u64 = 256;
    if !rustix::process::geteuid().is_root() {
        return not_proved(Need::Root);
    }
    if may_mount() != Some(&["--mount"]) {
        return not_proved(Need::Mounts);
    }
    let (local, mut atlas) = pair().await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "");
    std::os::unix::fs::chown(agent.dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    // Where the program is need not be a place that everybody may look into.
    agent.wrapper = Some(format!(
        "touch program && mount --bind \"$0\" program && \
         exec unshare --pid --fork --mount-proc setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups \
         env -u HOME -u USER ./program \"$@\""
    ));
    agent.start(&[]);
    agent.streaming().await;
    let children = format!("/proc/{0}/task/{0}/children", agent.id());
    let first = Ends(fs::read_to_string(children).unwrap().trim().parse().unwrap());
    // Where there is none, the most that it took is looked at.
    let group = Group::of(MIB << 20);
    if let Some(group) = &group {
        group.take(first.0);
    }
    atlas.kill();
    let files = local.client.database("shop").collection("files");
    for id in 0..60 {
        files.insert_one(doc! { "_id": id, "content": "x".repeat(1_000_000) }).await.unwrap();
    }
    orders(&local).insert_many((0..2_000).map(|id| doc! { "_id": id })).await.unwrap();
    agent.queued(2_060).await;
    atlas.resume().await;
    equal(&local, &atlas, PATIENCE).await;
    assert!(agent.cli(&["status"]).status.success());

    let status = fs::read_to_string(format!("/proc/{}/status", first.0)).unwrap();
    let line = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!((line("NSpid:")[1].as_str(), line("Uid:")[1].as_str()), ("1", "12345"));
    let peak = line("VmHWM:")[0].parse::<u64>().unwrap() >> 10;
    println!("{peak} MiB at the most");
    assert!(peak < MIB, "{peak} MiB");
    signal(first.0, "TERM");
    assert!(agent.ended(PATIENCE).await.success(), "{}", agent.log());
}
