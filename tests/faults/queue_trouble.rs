//! The queue's disk and directory make trouble: nothing is lost, nothing panics, the disk is not filled.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use mongodb::bson::doc;
use rand::{
    Rng, SeedableRng,
    rngs::StdRng,
    seq::{IndexedMutRandom, IndexedRandom},
};

use crate::support::{
    PATIENCE,
    agent::{Agent, may_mount},
    equal::equal,
    eventually,
    mongod::Mongod,
    orders, pair,
    proof::{Need, not_proved},
    proxy::{Line, Proxy},
    seed,
    unasked::Unasked::{NewQueue, Repair},
};

/// False where nothing may be mounted. The test then says that it proves nothing.
fn has_small_disks() -> bool {
    let may = may_mount().is_some();
    if !may {
        not_proved(Need::Mounts);
    }
    may
}

/// An agent whose queue is on a disk of its own, of so many megabytes.
fn on_a_small_disk(local: &str, atlas: &str, megabytes: u32, config: &str) -> Agent {
    let mut agent = Agent::new(local, atlas, config);
    agent.wrapper =
        Some(format!("mkdir -p queue && mount -t tmpfs -o size={megabytes}m tmpfs queue"));
    agent
}

/// The queue's folder as the agent sees it.
fn inside(agent: &Agent) -> PathBuf {
    let cwd = agent.dir.path().strip_prefix("/").unwrap();
    PathBuf::from(format!("/proc/{}/root", agent.id())).join(cwd).join("queue")
}

async fn fill(local: &Mongod, from: i32, documents: i32) {
    let orders = orders(local);
    let document = |n| doc! { "_id": n, "x": "x".repeat(5_000) };
    for part in 0..documents / 100 {
        let from = from + part * 100;
        orders.insert_many((from..from + 100).map(document)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_stops_reading_before_the_disk_is_full_and_loses_nothing() {
    if !has_small_disks() {
        return;
    }
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    let config = "[queue]\nmin_free_disk = \"100MiB\"\n";
    let mut agent = on_a_small_disk(&local.uri(), &line.uri(), 200, config);
    agent.start(&[]);
    agent.streaming().await;
    line.set(Line::Cut);

    fill(&local, 0, 20_000).await;
    eventually("an alert", PATIENCE, async || {
        agent.health().is_some_and(|health| health["alerts"].to_string().contains("min_free_disk"))
    })
    .await;
    line.set(Line::Up);
    let least = std::sync::atomic::AtomicU64::new(u64::MAX);
    let watched = async {
        loop {
            let free = outrigger::queue::free_disk(&inside(&agent)).unwrap_or(u64::MAX);
            least.fetch_min(free, std::sync::atomic::Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = equal(&local, &atlas, 3 * PATIENCE) => {}
        () = watched => {}
    }

    let least = least.into_inner() >> 20;
    // One reply of the stream, 16 MiB, may be on its way when the limit is met.
    assert!(least > 50, "{least} MiB were left");
    assert!(agent.is_running());
    assert!(!agent.log().contains("the queue failed"), "{}", agent.log());
}

/// Somebody else fills the disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_ends_nothing_and_loses_nothing() {
    if !has_small_disks() {
        return;
    }
    let (local, atlas) = pair().await;
    let config = "[queue]\nmin_free_disk = \"0B\"\n";
    let mut agent = on_a_small_disk(&local.uri(), &atlas.uri(), 100, config);
    agent.may(&[NewQueue], "its disk is full");
    agent.start(&[]);
    agent.streaming().await;
    fill(&local, 0, 200).await;
    equal(&local, &atlas, PATIENCE).await;

    for round in 1..4 {
        let filler = inside(&agent).join("filler");
        let free = outrigger::queue::free_disk(&inside(&agent)).unwrap();
        // Until there is no byte left; so the last write may fall short.
        let _ = std::fs::write(&filler, vec![7; usize::try_from(free).unwrap()]);
        fill(&local, 10_000 * round, 1_000).await;
        orders(&local).delete_many(doc! { "_id": { "$lt": 50 * round } }).await.unwrap();
        eventually("a queue that stops or fails", PATIENCE, async || {
            let log = agent.log();
            let told = log.matches("the queue failed").count()
                + log.matches("reading has stopped").count();
            told >= usize::try_from(round).unwrap()
        })
        .await;
        assert!(agent.is_running(), "{}", agent.log());
        std::fs::remove_file(&filler).unwrap();

        equal(&local, &atlas, 2 * PATIENCE).await;
    }
    assert!(agent.is_running());
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
    assert!(agent.stop().success());
}

/// Somebody else has taken them all with small files; there is room enough.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_takes_no_further_file_ends_nothing_and_loses_nothing() {
    if !has_small_disks() {
        return;
    }
    let (local, atlas) = pair().await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "");
    agent.may(&[NewQueue], "its disk takes no file");
    let disk = "mount -t tmpfs -o size=2g,nr_inodes=100 tmpfs queue";
    agent.wrapper = Some(format!("mkdir -p queue && {disk}"));
    agent.start(&[]);
    agent.streaming().await;
    let filler = inside(&agent).join("filler");
    std::fs::create_dir(&filler).unwrap();
    let mut taken = 0;
    while std::fs::write(filler.join(taken.to_string()), "").is_ok() {
        taken += 1;
    }
    assert!(taken > 10, "{taken} files");

    // Small ones, and one that the queue's store keeps in a file of its own.
    fill(&local, 0, 1_000).await;
    orders(&local).insert_one(doc! { "_id": "large", "x": "x".repeat(15_000_000) }).await.unwrap();
    orders(&local).delete_many(doc! { "_id": { "$lt": 500 } }).await.unwrap();
    let is_read = async || {
        let there = orders(&atlas).count_documents(doc! { "_id": "large" }).await.unwrap() == 1;
        let log = agent.log();
        there || log.contains("the queue failed") || log.contains("reading has stopped")
    };
    eventually("the large one is read, or the queue says why not", PATIENCE, is_read).await;
    assert!(agent.is_running(), "{}", agent.log());
    std::fs::remove_dir_all(&filler).unwrap();

    equal(&local, &atlas, 2 * PATIENCE).await;
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
    assert!(agent.stop().success());
}

/// A file system of one's own, which is to become read-only: in a file, behind a loop device. False where there can be none.
fn makes_a_disk(agent: &mut Agent) -> bool {
    let disk = agent.dir.path().join("disk");
    std::fs::File::create(&disk).and_then(|file| file.set_len(64 << 20)).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk).status();
    let mounts = |way: &&[&str]| {
        let mut mount = Command::new("unshare");
        mount.args(*way).args(["mount", "-o", "loop"]).arg(&disk).arg("/mnt");
        mount.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    if !made.is_ok_and(|status| status.success()) || !may_mount().as_ref().is_some_and(mounts) {
        not_proved(Need::Mounts);
        return false;
    }
    agent.wrapper = Some("mkdir -p queue && mount -o loop disk queue".to_owned());
    true
}

/// As a kernel does with a disk that it does not trust any more (`errors=remount-ro`): what was open before cannot be written
/// to either, and it stays so until somebody has looked after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_the_system_makes_read_only_is_told_of_and_loses_nothing() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    // What was not written before it is gone with it, so that everything may be compared, what was deleted meanwhile too.
    let config = "[queue]\nmin_free_disk = \"0B\"\n[sync]\nmax_delete_ratio = 1.0\n";
    let mut agent = Agent::new(&local.uri(), &line.uri(), config);
    agent.may(
        &[NewQueue, Repair],
        "its disk becomes read-only, and what it had not written is gone",
    );
    if !makes_a_disk(&mut agent) {
        return;
    }
    agent.start(&[]);
    agent.streaming().await;
    fill(&local, 0, 200).await;
    equal(&local, &atlas, PATIENCE).await;
    line.set(Line::Cut);
    fill(&local, 1_000, 200).await;
    agent.queued(200).await;

    let within = format!("--mount=/proc/{}/ns/mnt", agent.id());
    let queue = inside(&agent);
    let seen = agent.dir.path().join("queue");
    let mut broken = Command::new("nsenter");
    broken.arg(within).args(["mount", "-o", "remount,abort"]).arg(&seen);
    assert!(broken.status().unwrap().success());
    let refused = std::fs::write(queue.join("new"), "").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    fill(&local, 2_000, 200).await;
    orders(&local).delete_many(doc! { "_id": { "$lt": 1_100 } }).await.unwrap();
    eventually("it is told", PATIENCE, async || agent.log().contains("the queue failed")).await;
    line.set(Line::Up);
    // It is not given up, and not taken for damage either.
    let told = "cannot be opened: Read-only file system";
    eventually("a try", PATIENCE, async || agent.log().matches(told).count() > 1).await;
    assert!(agent.is_running() && !agent.log().contains("moved aside"), "{}", agent.log());
    // What it knew when it was stopped is on the disk, as far as that was written.
    agent.stop();
    agent.start(&[]);

    equal(&local, &atlas, PATIENCE).await;
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
    assert!(agent.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_of_another_process_and_one_that_is_read_only_are_left_alone_and_told() {
    let (local, atlas) = pair().await;
    let first = Agent::started(&local.uri(), &atlas.uri());
    first.streaming().await;
    let queue = first.dir.path().join("queue");
    let config = format!("[queue]\npath = \"{}\"\n", queue.display());

    let output = Agent::new(&local.uri(), &atlas.uri(), &config).cli(&["run"]);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("in use by another process"), "{told}");
    assert!(first.health().is_some(), "the first one goes on");

    if !has_small_disks() {
        return;
    }
    let mut third = Agent::new(&local.uri(), &atlas.uri(), "");
    third.wrapper = Some("mkdir queue && mount -t tmpfs -o ro tmpfs queue".to_owned());
    let output = third.cli(&["run"]);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("cannot be opened") && told.contains("permissions"), "{told}");
}

/// Bytes flipped, files cut off and files missing, at random places, while changes wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_damaged_anywhere_is_rebuilt_and_loses_nothing() {
    let mut rng = StdRng::seed_from_u64(seed());
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    let mut agent = Agent::started(&local.uri(), &line.uri());
    agent.may(&[NewQueue, Repair], "the disk makes trouble");
    agent.streaming().await;
    let mut rebuilt = 0;
    for round in 0..15 {
        line.set(Line::Cut);
        let documents = (0..50).map(|n| doc! { "_id": round * 100 + n, "x": "x".repeat(500) });
        orders(&local).insert_many(documents).await.unwrap();
        orders(&local).delete_one(doc! { "_id": round * 100 - 99 }).await.unwrap();
        agent.queued(40).await;
        agent.kill();
        let files: Vec<PathBuf> = std::fs::read_dir(agent.dir.path().join("queue"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
            .collect();
        // Some of the files hold nothing: the first time it is the one that holds everything.
        let (file, damage) = match round {
            0 => (files.iter().find(|file| file.ends_with("db")).unwrap(), 0),
            _ => (files.choose(&mut rng).unwrap(), rng.random_range(0..3)),
        };
        let mut bytes = std::fs::read(file).unwrap();
        match damage {
            0 => std::fs::remove_file(file).unwrap(),
            1 => {
                bytes.truncate(rng.random_range(0..=bytes.len()));
                std::fs::write(file, &bytes).unwrap();
            }
            _ => {
                for _ in 0..rng.random_range(1..20) {
                    if let Some(byte) = bytes.choose_mut(&mut rng) {
                        *byte ^= 1 << rng.random_range(0..8);
                    }
                }
                std::fs::write(file, &bytes).unwrap();
            }
        }
        println!("round {round}: {} damaged in way {damage}", file.display());
        line.set(Line::Up);
        agent.start(&[]);
        equal(&local, &atlas, PATIENCE).await;
        agent.streaming().await;
        assert!(agent.is_running(), "{}", agent.log());
        rebuilt = agent.log().matches("moved aside").count();
    }
    println!("{rebuilt} of 15 were rebuilt");
    assert!(rebuilt > 0, "no damage was of consequence");
}

/// Whoever pauses the agent may do it to keep what Atlas has. The disk that fails then must not have all of it compared, and
/// overwritten.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_outlives_a_queue_that_is_damaged() {
    let (local, atlas) = pair().await;
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[NewQueue, Repair], "the disk makes trouble");
    agent.streaming().await;
    assert!(agent.cli(&["pause", "--reason", "Atlas is what is right"]).status.success());
    orders(&local).delete_one(doc! { "_id": 1 }).await.unwrap();
    agent.queued(1).await;
    agent.kill();
    std::fs::remove_file(agent.dir.path().join("queue/db")).unwrap();

    agent.start(&[]);
    eventually("the pause", PATIENCE, async || {
        agent.health().is_some_and(|of| of["pause"]["reason"] == "Atlas is what is right")
    })
    .await;
    assert!(agent.log().contains("moved aside"), "{}", agent.log());
    // In three seconds what is not paused has compared everything long since.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(orders(&atlas).count_documents(doc! {}).await.unwrap(), 1, "{}", agent.log());

    assert!(agent.cli(&["resume"]).status.success());
    equal(&local, &atlas, PATIENCE).await;
    assert!(agent.stop().success());
    agent.start(&[]);
    agent.streaming().await;
    assert!(agent.health().unwrap()["pause"].is_null(), "a pause that has ended stays over");
    assert!(agent.stop().success());
}
