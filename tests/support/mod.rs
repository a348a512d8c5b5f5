//! What tests, benches and the demo share: real `mongod`s, the real agent, a proxy that breaks.
//!
//! Everything listens on 127.0.0.1 and ends with the value that holds it.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod agent;
pub mod api;
pub mod book;
#[cfg(not(demo))]
pub mod browser;
pub mod calls;
pub mod certificates;
pub mod ends;
pub mod equal;
pub mod guarded;
pub mod hashes;
#[cfg(not(demo))]
pub mod honesty;
pub mod mongod;
pub mod name_service;
pub mod names;
pub mod odd;
pub mod odd_values;
pub mod odd_work;
#[cfg(not(demo))]
pub mod outbox;
pub mod pool;
#[cfg(not(demo))]
pub mod pooler;
pub mod postgres;
pub mod proof;
pub mod proxy;
#[cfg(not(demo))]
pub mod receiver;
pub mod replica_set;
pub mod router;
#[cfg(not(demo))]
pub mod rows;
pub mod said;
pub mod schemas;
pub mod slow_line;
pub mod strangers;
pub mod unasked;
pub mod workload;

use std::{
    str::FromStr,
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

/// How long a test waits for what must happen, on a machine that is shared and slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The repository.
pub fn root() -> &'static std::path::Path {
    let manifest = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    // The demo is a package below it.
    if cfg!(demo) { manifest.parent().expect("a folder") } else { manifest }
}

/// A local database and a stand-in for Atlas, each a replica set of one.
pub async fn pair() -> (mongod::Mongod, mongod::Mongod) {
    tokio::join!(mongod::Mongod::start(), mongod::Mongod::start())
}

/// As [`pair`], of servers whose counters and logs begin with the test.
pub async fn fresh_pair() -> (mongod::Mongod, mongod::Mongod) {
    tokio::join!(mongod::Mongod::start_fresh(), mongod::Mongod::start_fresh())
}

/// The collection that most tests work on.
pub fn orders(server: &mongod::Mongod) -> mongodb::Collection<mongodb::bson::Document> {
    server.client.database("shop").collection("orders")
}

/// Copies a folder, such as a queue as a crash would leave it.
pub fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Writes a program, to be run at once. Another process does it: a file that was open for writing here may be open still in a
/// process that another test has just forked, and until that one runs its own program the system refuses to run the file
/// ("Text file busy").
pub fn write_program(path: &std::path::Path, text: &str) {
    let written = std::process::Command::new("sh")
        .args(["-c", r#"printf %s "$2" > "$1" && chmod 755 "$1""#, "sh"])
        .args([path.as_os_str(), text.as_ref()])
        .status();
    assert!(written.unwrap().success(), "{} is not written", path.display());
}

/// A port that is free, that no other test of this process is given, and that the system hands out to nobody: it
/// takes those for outgoing connections, and for listeners that name none, from 32768 on. So it also stays free
/// while a server is down that is to come back.
pub fn free_port() -> u16 {
    // `scripts/test` gives each program that runs beside others a slot, and with it ports of its own.
    const FIRST: u32 = 12_000;
    const PORTS: u32 = 3_400;
    const SLOTS: u32 = 6;
    static SLOT: LazyLock<u32> =
        LazyLock::new(|| from_env("OUTRIGGER_TEST_SLOT").unwrap_or_else(std::process::id) % SLOTS);
    // A process begins where another that was started without a slot is not likely to be.
    static NEXT: LazyLock<AtomicU32> =
        LazyLock::new(|| AtomicU32::new(std::process::id().wrapping_mul(613)));
    loop {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + *SLOT * PORTS + n % PORTS;
        let port = u16::try_from(port).expect("all of them are below 32768");
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Waits until `done` says so, at most `patience`.
///
/// # Panics
/// When it does not: `what` was waited for.
pub async fn eventually(what: &str, patience: Duration, mut done: impl AsyncFnMut() -> bool) {
    let give_up = Instant::now() + patience;
    while !done().await {
        assert!(Instant::now() < give_up, "{what}: not within {patience:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What a variable of the environment says; `None` where it is not set.
///
/// # Panics
/// When it says something else: a run with another seed or length than was asked for would mislead.
pub fn from_env<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var_os(name)?.into_string();
    let value = text.as_ref().map(|text| text.parse());
    match value {
        Ok(Ok(value)) => Some(value),
        _ => panic!("{name}: {text:?} is no {}", std::any::type_name::<T>()),
    }
}

/// The seed of a random test: `OUTRIGGER_SEED` or a new one, printed so that a failure can be
/// repeated.
pub fn seed() -> u64 {
    let seed = from_env("OUTRIGGER_SEED").unwrap_or_else(rand::random);
    println!("OUTRIGGER_SEED={seed}");
    seed
}
