//! What an agent's host and its line are like where it is poor: a clock that jumps, a disk that fails, and
//! a line that breaks all the time.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use mongodb::{
    Client,
    bson::{Document, doc},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio_util::sync::CancellationToken;

use crate::support::{
    PATIENCE,
    agent::Agent,
    equal::equal,
    eventually,
    honesty::Honesty,
    orders, pair,
    proof::{Need, not_proved},
    proxy::{Line, Proxy},
    router::Router,
    seed,
    slow_line::{Shape, SlowLine},
    unasked::Unasked::{Cursors, NewQueue, Repair, Retries},
};

/// A library that stands between a program and the system. `None` where there is no C compiler.
fn built(dir: &Path, source: &str) -> Option<PathBuf> {
    let (from, to) = (dir.join("between.c"), dir.join("between.so"));
    std::fs::write(&from, source).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&to).arg(&from).status();
    if built.is_ok_and(|status| status.success()) {
        return Some(to);
    }
    not_proved(Need::CCompiler);
    None
}

/// The time of day is so many seconds off as the file `clock` says.
const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static int64_t *off;
__attribute__((constructor)) static void begin(void) {
    int fd = open("clock", O_RDONLY);
    off = fd < 0 ? 0 : mmap(0, 8, PROT_READ, MAP_SHARED, fd, 0);
}
int clock_gettime(clockid_t which, struct timespec *at) {
    int done = syscall(SYS_clock_gettime, which, at);
    if (done == 0 && which == CLOCK_REALTIME && off && off != MAP_FAILED) at->tv_sec += *off;
    return done;
}
"#;

/// In the middle of a wait for another attempt, of which the time is noted; and while changes flow.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_either_way_holds_nothing_up() {
    const HOUR: i64 = 3_600;
    let (local, atlas) = pair().await;
    let config = "[worker]\nretry_delays = [\"2s\"]\n";
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), config);
    agent.may(&[Retries], "Atlas refuses each first attempt");
    let Some(library) = built(agent.dir.path(), CLOCK) else { return };
    let clock = agent.dir.path().join("clock");
    // In place: the program has it mapped.
    let jump = |seconds: i64| {
        let mut file = std::fs::File::options();
        let file = file.write(true).create(true).truncate(false).open(&clock).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &seconds.to_ne_bytes(), 0).unwrap();
    };
    jump(0);
    agent.set_env("LD_PRELOAD", library.to_str().unwrap());
    agent.start(&[]);
    agent.streaming().await;
    orders(&local).insert_one(doc! { "_id": "first" }).await.unwrap();
    equal(&local, &atlas, PATIENCE).await;

    for (n, off) in [-2 * HOUR, HOUR, 30 * 24 * HOUR, 0].into_iter().enumerate() {
        let refused =
            doc! { "failCommands": ["insert"], "namespace": "shop.orders", "errorCode": 121 };
        atlas.fail(refused, 1).await;
        let n = i32::try_from(n).unwrap();
        orders(&local).insert_one(doc! { "_id": n }).await.unwrap();
        eventually("a wait", PATIENCE, async || {
            let list = agent.cli_json(&["queue", "list"]).unwrap_or_default();
            list.as_array().is_some_and(|list| list.iter().any(|entry| entry["retryCount"] == 1))
        })
        .await;
        jump(off);
        orders(&local).insert_one(doc! { "_id": 100 + n }).await.unwrap();
        orders(&local)
            .update_one(doc! { "_id": "first" }, doc! { "$set": { "n": n } })
            .await
            .unwrap();
        equal(&local, &atlas, PATIENCE).await;
        assert!(agent.cli(&["flush"]).status.success(), "{off}");
        // By the agent's own clock, which has jumped and not only been told to.
        let health = agent.health().unwrap();
        let last = mongodb::bson::DateTime::parse_rfc3339_str(health["lastSync"].as_str().unwrap());
        let ahead =
            last.unwrap().timestamp_millis() - mongodb::bson::DateTime::now().timestamp_millis();
        assert!((ahead / 1_000 - off).abs() < HOUR / 2, "{ahead} ms ahead, and not {off} s");
    }
    assert!(agent.stop().success());
}

/// Each write to a file fails, and each sync, while there is a file `broken`, with the error that it names. Where the error
/// is that all has become read-only, nothing can be opened for writing either.
const BROKEN: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>
static int is_broken(void) {
    char text[8] = "";
    int fd = syscall(SYS_openat, AT_FDCWD, "broken", O_RDONLY, 0);
    if (fd < 0) return 0;
    ssize_t n = syscall(SYS_read, fd, text, 7);
    syscall(SYS_close, fd);
    return n > 0 ? (errno = atoi(text), 1) : 0;
}
int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    int mode = va_arg(rest, int);
    va_end(rest);
    if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && is_broken() && errno == EROFS) return -1;
    return syscall(SYS_openat, AT_FDCWD, path, flags | O_LARGEFILE, mode);
}
ssize_t pwrite64(int fd, const void *bytes, size_t n, off_t at) {
    return is_broken() ? -1 : syscall(SYS_pwrite64, fd, bytes, n, at);
}
ssize_t pwrite(int fd, const void *bytes, size_t n, off_t at) { return pwrite64(fd, bytes, n, at); }
int fsync(int fd) { return is_broken() ? -1 : syscall(SYS_fsync, fd); }
int fdatasync(int fd) { return is_broken() ? -1 : syscall(SYS_fdatasync, fd); }
int sync_file_range(int fd, off_t at, off_t n, unsigned flags) {
    return is_broken() ? -1 : syscall(SYS_sync_file_range, fd, at, n, flags);
}
"#;

/// Once it fails, and once the system has made it read-only.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_and_comes_back_loses_nothing() {
    const EIO: &str = "5";
    const EROFS: &str = "30";
    let (local, atlas) = pair().await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "");
    agent.may(
        &[NewQueue, Cursors],
        "its disk fails, and it begins anew while an answer is under way",
    );
    let Some(library) = built(agent.dir.path(), BROKEN) else { return };
    agent.set_env("LD_PRELOAD", library.to_str().unwrap());
    agent.start(&[]);
    agent.streaming().await;
    let broken = agent.dir.path().join("broken");
    for (round, error) in [EIO, EROFS].into_iter().enumerate() {
        // Whole at once.
        std::fs::write(broken.with_extension("new"), error).unwrap();
        std::fs::rename(broken.with_extension("new"), &broken).unwrap();
        let first = i32::try_from(round).unwrap() * 1_000;
        let some =
            |from: i32| (from..from + 200).map(|id| doc! { "_id": id, "x": "x".repeat(3_000) });
        orders(&local).insert_many(some(first)).await.unwrap();
        orders(&local).delete_one(doc! { "_id": first - 999 }).await.unwrap();
        eventually("it is told", PATIENCE, async || {
            agent.log().matches("the queue failed").count() > round
        })
        .await;
        assert!(agent.is_running(), "{}", agent.log());
        std::fs::remove_file(&broken).unwrap();
        equal(&local, &atlas, PATIENCE).await;
    }
    assert!(agent.stop().success());
}

/// Neither line is reset, so that every wait is as long as it is by default: 30 s for an answer, and between the tries up
/// to a minute.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_both_sides_is_found_out_and_gone_through_with_every_wait_as_by_default() {
    let (local, atlas) = pair().await;
    let lines = [Proxy::to(local.port).await, Proxy::to(atlas.port).await];
    let mut agent = Agent::new(&lines[0].uri(), &lines[1].uri(), "");
    agent.waits_as_by_default();
    agent.start(&[]);
    agent.streaming().await;
    orders(&local).insert_many((0..50).map(|id| doc! { "_id": id })).await.unwrap();
    equal(&local, &atlas, PATIENCE).await;
    // What waits while Atlas is away.
    lines[1].set(Line::Silent);
    orders(&local).update_many(doc! {}, doc! { "$inc": { "n": 1 } }).await.unwrap();
    agent.queued(1).await;
    lines[0].set(Line::Silent);
    orders(&local).delete_one(doc! { "_id": 1 }).await.unwrap();

    eventually("both are told", 2 * PATIENCE, async || {
        agent.health().is_some_and(|health| {
            !health["localError"].is_null() && !health["atlasError"].is_null()
        })
    })
    .await;
    assert_ne!(agent.health().unwrap()["status"], "healthy");
    for line in &lines {
        line.set(Line::Up);
    }
    orders(&local).insert_one(doc! { "_id": 100 }).await.unwrap();
    equal(&local, &atlas, 3 * PATIENCE).await;
    assert!(agent.cli(&["flush"]).status.success());
    assert!(agent.stop().success());
}

/// At the shipped timeouts, within which the line carries some 960 kB.
#[tokio::test(flavor = "multi_thread")]
async fn a_local_database_behind_a_slow_line_is_copied_and_followed_with_few_cursors() {
    let (local, atlas) = pair().await;
    let mut rng = StdRng::seed_from_u64(seed());
    let mut some = |ids: std::ops::Range<i32>| -> Vec<Document> {
        let mut text = || (0..4_000).map(|_| rng.random_range(' '..'~')).collect::<String>();
        ids.map(|id| doc! { "_id": id, "x": text() }).collect()
    };
    orders(&local).insert_many(some(0..40)).await.unwrap();
    let shape = Shape { round_trip: Duration::from_millis(500), bits_per_second: 256_000 };
    let line = SlowLine::to(local.port, shape).await;
    let mut agent = Agent::new(&line.uri(), &atlas.uri(), "");
    agent.may(&[Repair], "markers come while they are copied, which takes this line seconds");
    agent.beats();
    agent.waits_as_by_default();
    agent.start(&[]);
    eventually("an agent that answers", PATIENCE, async || agent.health().is_some()).await;
    let honesty = Honesty::watch(&local.client, &atlas.client, &agent);
    // What the test itself has open at the most: none that it leaves.
    let (stop, client) = (CancellationToken::new(), local.client.clone());
    let most = tokio::spawn({
        let stop = stop.clone();
        async move {
            let mut most = 0;
            while !stop.is_cancelled() {
                most = most.max(open_cursors(&client).await);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            most
        }
    });
    agent.streaming().await;
    orders(&local).insert_many(some(1_000..1_040)).await.unwrap();
    orders(&local)
        .update_many(doc! { "_id": { "$lt": 30 } }, doc! { "$set": { "n": 1 } })
        .await
        .unwrap();
    orders(&local).delete_many(doc! { "_id": { "$gte": 1_020 } }).await.unwrap();

    equal(&local, &atlas, 2 * PATIENCE).await;
    // Each is fourteen seconds on the line: while the second is, all of the first is in Atlas and nothing waits, and still
    // the agent is a quarter of a minute behind.
    orders(&local).insert_many(some(2_000..2_110)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    orders(&local).insert_many(some(3_000..3_110)).await.unwrap();
    equal(&local, &atlas, 2 * PATIENCE).await;
    let judged = honesty.end().await;
    assert!(judged.over_an_old_marker > 0, "{judged:?}");
    stop.cancel();
    let most = most.await.unwrap();
    let (_, came) = line.carried();
    println!("at most {most} cursors were open, {came} bytes came");
    assert!(came > 300_000, "not all of it went over the line: {came}");
    assert!((1..=8).contains(&most), "{most} cursors");
    assert!(
        !agent.log().contains("reading from the local database interrupted"),
        "{}",
        agent.log()
    );
}

/// Cursors that are open at a server. One that is idle does not say whose it is.
async fn open_cursors(client: &Client) -> i64 {
    let all = doc! { "$currentOp": { "allUsers": true, "idleCursors": true } };
    let whose = [doc! { "appName": "outrigger" }, doc! { "type": "idleCursor" }];
    let ours = doc! { "$match": { "cursor": { "$exists": true }, "$or": whose.to_vec() } };
    let admin = client.database("admin");
    let mut found = admin.aggregate([all, ours, doc! { "$count": "n" }]).await.unwrap();
    if !found.advance().await.unwrap() {
        return 0;
    }
    found.deserialize_current().unwrap().get_i32("n").unwrap().into()
}

/// What waits is far more than the line carries within `atlas.timeout`, and cannot be packed.
#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_carries_less_within_the_timeout_than_what_waits_carries_all_of_it() {
    let (local, atlas) = pair().await;
    let shape = Shape { round_trip: Duration::from_millis(500), bits_per_second: 256_000 };
    let line = SlowLine::to(atlas.port, shape).await;
    let agent = Agent::started(&local.uri(), &line.uri());
    agent.may(&[Retries], "the line carries less in time than what is sent");
    agent.streaming().await;
    assert!(agent.cli(&["pause"]).status.success());
    let mut rng = StdRng::seed_from_u64(seed());
    let mut some = || (0..8_000).map(|_| rng.random_range(' '..'~')).collect::<String>();
    let documents: Vec<Document> = (0..60).map(|id| doc! { "_id": id, "x": some() }).collect();
    orders(&local).insert_many(documents).await.unwrap();
    agent.queued(60).await;
    assert!(agent.cli(&["resume"]).status.success());

    equal(&local, &atlas, 2 * PATIENCE).await;
}

/// With the timeouts that an agent has by itself, the driver's monitor gives up what waits for an answer, long before they
/// do. That is a write that may come late all the same, over a later one.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_driver_gives_up_on_a_silent_line_is_written_once_more_when_the_line_is_back() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    let mut agent = Agent::new(&local.uri(), &line.uri(), "");
    agent.waits_long_for_atlas();
    agent.start(&[]);
    agent.streaming().await;
    let orders = orders(&local);
    orders.insert_one(doc! { "_id": 1, "v": 0 }).await.unwrap();
    equal(&local, &atlas, PATIENCE).await;

    line.set(Line::Silent);
    orders.update_one(doc! { "_id": 1 }, doc! { "$set": { "v": 1 } }).await.unwrap();
    eventually("the write is given up", PATIENCE, async || {
        agent.health().is_some_and(|health| health["breaker"] != "closed")
    })
    .await;
    let log = agent.log();
    assert!(log.contains("server monitor timeout"), "it was not the driver: {log}");
    orders.update_one(doc! { "_id": 1 }, doc! { "$set": { "v": 2 } }).await.unwrap();
    line.set(Line::Up);

    eventually("it is written once more", PATIENCE, async || {
        agent.log().contains("what had no answer may have been done late")
    })
    .await;
    equal(&local, &atlas, PATIENCE).await;
}

/// A router that gives up the server behind it answers, and the server may do what it was handed all the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_router_hands_on_late_is_written_once_more() {
    let of_a_write = doc! {
        "n": 0, "nModified": 0, "ok": 1.0,
        "writeErrors": [{ "index": 0, "code": 50, "errmsg": "operation exceeded time limit" }],
    };
    let of_the_command =
        doc! { "ok": 0.0, "errmsg": "socket", "code": 6, "codeName": "HostUnreachable" };
    let it_stops =
        doc! { "ok": 0.0, "errmsg": "stopping", "code": 91, "codeName": "ShutdownInProgress" };
    let (local, atlas) = pair().await;
    let router = Router::to(atlas.port).await;
    let mut agent = Agent::new(&local.uri(), &router.uri(), "[worker]\nmax_retries = 0\n");
    agent.may(&[Retries], "a router gives up what it has handed on");
    agent.start(&[]);
    agent.streaming().await;
    let orders = orders(&local);
    for (id, reply) in [(1, of_a_write), (2, of_the_command), (3, it_stops)] {
        orders.insert_one(doc! { "_id": id, "v": 0 }).await.unwrap();
        equal(&local, &atlas, PATIENCE).await;
        router.hold("update", "orders", &reply);
        orders.update_one(doc! { "_id": id }, doc! { "$set": { "v": 1 } }).await.unwrap();
        eventually("the router has it", PATIENCE, async || router.has_held()).await;
        orders.update_one(doc! { "_id": id }, doc! { "$set": { "v": 2 } }).await.unwrap();
        let theirs = crate::support::orders(&atlas);
        let in_atlas = async || {
            let found = theirs.find_one(doc! { "_id": id }).await.unwrap().unwrap();
            found.get_i32("v").unwrap()
        };
        eventually("the later one", PATIENCE, async || in_atlas().await == 2).await;

        router.let_go().await;
        assert_eq!(in_atlas().await, 1, "it did not come late");

        equal(&local, &atlas, PATIENCE).await;
    }
}

/// It cannot be sent in parts. Who is told nothing of it looks for a fault of the line, which answers all else.
#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_the_line_never_carries_in_time_is_told_of_with_the_setting_that_helps() {
    let (local, atlas) = pair().await;
    let shape = Shape { round_trip: Duration::from_millis(50), bits_per_second: 256_000 };
    let line = SlowLine::to(atlas.port, shape).await;
    let mut agent = Agent::new(&local.uri(), &line.uri(), "");
    agent.replace_setting("timeout = \"5s\"\n[local]", "timeout = \"2s\"\n[local]");
    agent.may(&[Retries], "the line carries less in time than one document");
    agent.start(&[]);
    agent.streaming().await;
    let mut rng = StdRng::seed_from_u64(seed());
    let some = (0..160_000).map(|_| rng.random_range(' '..'~')).collect::<String>();
    orders(&local).insert_one(doc! { "_id": 1, "x": some }).await.unwrap();

    eventually("the advice", PATIENCE, async || {
        agent.health().is_some_and(|health| {
            let cause = health["verdict"]["cause"].as_str().unwrap_or_default();
            cause.contains("a document of 160 kB waits") && cause.contains("`atlas.timeout`")
        })
    })
    .await;
    agent.stop();
    agent.replace_setting("timeout = \"2s\"\n[local]", "timeout = \"15s\"\n[local]");
    agent.start(&[]);
    equal(&local, &atlas, PATIENCE).await;
}
