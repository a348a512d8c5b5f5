//! Servers that a test hands on to the next one of its process: to start one costs a core the better part of a second.
//!
//! A server is handed on as a test leaves it, and looked at when it is taken. It goes on only when all that it tells of
//! itself is as after its start: its parameters, fail points among them, its set, the collections of `local` and `admin`; and
//! nobody is connected any more. Whatever a test has put into it is dropped then. What the test had in its hands otherwise,
//! its process or its folder, is not handed on at all, and neither is what a test leaves that fails.
//!
//! What a server has counted and logged goes on with it: a test that looks at that takes a [fresh](Mongod::start_fresh) one.

use std::{
    io::Write,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{LazyLock, Mutex},
    time::{Duration, Instant},
};

use mongodb::{
    Client, Database,
    bson::{Bson, Document, doc, oid::ObjectId},
};
use tempfile::TempDir;

use super::{ends, mongod::Mongod};

/// Most servers that wait for a test: as many as a file's tests have in use at once. Each takes memory.
const IDLE_MAX: usize = 6;

/// What a test has left may still send something when its server is dropped: it ends within a moment.
const RESTS: Duration = Duration::from_millis(500);

/// Of the clock ahead of which a test may have set the set's.
const TIME_MAX: u64 = 5;

/// What a server tells of itself, by what it was asked.
pub type Looks = Document;

/// A server that nobody has.
pub struct Idle {
    pub child: Child,
    pub dir: TempDir,
    pub port: u16,
    pub first: Looks,
    pub since: Instant,
}

static IDLE: Mutex<Vec<Idle>> = Mutex::new(Vec::new());

/// Takes a server that a test has left.
pub fn hand_on(mut idle: Idle) {
    let mut all = IDLE.lock().unwrap();
    if all.len() < IDLE_MAX {
        all.push(idle);
    } else {
        let _ = idle.child.kill();
        let _ = idle.child.wait();
    }
}

/// One that is as after its start.
pub async fn take() -> Option<Mongod> {
    loop {
        let idle = {
            let mut all = IDLE.lock().unwrap();
            let is_fit = |idle: &Idle| idle.since.elapsed() >= RESTS && !ends::is_copied(idle.port);
            let at = all.iter().position(is_fit)?;
            all.remove(at)
        };
        let (server, looked) = looked_at(idle).await;
        match looked {
            Ok(()) => return Some(server),
            Err(why) => {
                println!("a server is not handed on: {why}");
                server.is_touched();
            }
        }
    }
}

/// Whether a server is as after its start, once what is in it was dropped; and why not.
pub async fn looked_at(idle: Idle) -> (Mongod, Result<(), String>) {
    // A name that no other client has: what the last test has left of its own is told from this one.
    let taker = format!("taker-{}", ObjectId::new());
    let server = Mongod::of(idle, &taker).await;
    let looked = cleaned(&server, &taker).await;
    (server, looked)
}

/// Drops what is there, and looks whether anything else is left.
async fn cleaned(server: &Mongod, taker: &str) -> Result<(), String> {
    let admin = server.client.database("admin");
    let said =
        async |command: Document| admin.run_command(command).await.map_err(|e| e.to_string());
    alone(&admin, taker).await?;
    said(doc! { "killAllSessions": [] }).await?;
    for name in server.client.list_database_names().await.map_err(|error| error.to_string())? {
        if !["admin", "config", "local"].contains(&name.as_str()) {
            let dropped = server.client.database(&name).drop().await;
            dropped.map_err(|error| format!("`{name}` is not dropped: {error}"))?;
        }
    }
    let now = look(&server.client).await.map_err(|error| error.to_string())?;
    let first = server.first().expect("it is one that is handed on");
    if now != *first {
        return Err(format!("not as after its start: {}", differing(first, &now).join(", ")));
    }
    let status = said(doc! { "serverStatus": 1 }).await?;
    let open = status.get_document("metrics").and_then(|of| of.get_document("cursor"));
    let open = open.and_then(|of| of.get_document("open")).and_then(|of| of.get_i64("total"));
    if !matches!(open, Ok(0)) {
        return Err(format!("cursors are open: {open:?}"));
    }
    let time = status.get_timestamp("operationTime").map_err(|error| error.to_string())?.time;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let ahead = u64::from(time).saturating_sub(now);
    if ahead > TIME_MAX {
        return Err(format!("its time is {ahead} s ahead"));
    }
    alone(&admin, taker).await
}

/// Waits until nobody is connected but `taker`.
async fn alone(admin: &Database, taker: &str) -> Result<(), String> {
    let all = doc! { "$currentOp": { "allUsers": true, "idleConnections": true } };
    // Some connections are the server's own, to itself.
    let others = doc! { "$match": {
        "client": { "$exists": true },
        "appName": { "$ne": taker },
        "clientMetadata.driver.name": { "$not": { "$regex": "^NetworkInterface" } },
    } };
    let mut left = String::new();
    for _ in 0..20 {
        let mut found =
            admin.aggregate([all.clone(), others.clone()]).await.map_err(|e| e.to_string())?;
        if !found.advance().await.map_err(|error| error.to_string())? {
            return Ok(());
        }
        left = found.deserialize_current().map(|of| of.to_string()).unwrap_or_default();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(format!("somebody is connected: {left}"))
}

/// Which of its answers are others.
fn differing(first: &Looks, now: &Looks) -> Vec<String> {
    let mut names = Vec::new();
    for (name, value) in first {
        match (value, now.get(name)) {
            (Bson::Document(first), Some(Bson::Document(now))) => {
                names.extend(differing(first, now).iter().map(|inner| format!("{name}.{inner}")));
            }
            (value, other) if other != Some(value) => names.push(name.clone()),
            _ => {}
        }
    }
    names.extend(now.keys().filter(|name| !first.contains_key(name)).cloned());
    names
}

/// What a server tells of itself that does not change by what it is used for.
pub async fn look(client: &Client) -> mongodb::error::Result<Looks> {
    let admin = client.database("admin");
    let mut looks = Looks::new();
    for command in [
        doc! { "getParameter": "*" },
        doc! { "profile": -1 },
        doc! { "replSetGetConfig": 1 },
        doc! { "hello": 1 },
    ] {
        let name = command.keys().next().expect("it has one").clone();
        let mut answer = admin.run_command(command).await?;
        // The time, and what a connection is told of itself.
        for changing in [
            "$clusterTime",
            "operationTime",
            "lastWrite",
            "localTime",
            "connectionId",
            "topologyVersion",
        ] {
            answer.remove(changing);
        }
        looks.insert(name, answer);
    }
    for db in ["admin", "local"] {
        let names = doc! { "listCollections": 1 };
        let mut batch = client.database(db).run_cursor_command(names).await?;
        let mut collections = Document::new();
        while batch.advance().await? {
            let mut of: Document = batch.deserialize_current()?;
            of.remove("idIndex");
            let name = of.get_str("name").unwrap_or_default().to_owned();
            // Made by the server itself, some time after its start.
            if name != "system.keys" {
                collections.insert(name, of);
            }
        }
        looks.insert(db, collections);
    }
    Ok(looks)
}

/// Ends servers that are left when this process has ended, however it did, and removes their folders: a static value is
/// never dropped, and a process that is killed drops nothing.
static REAPER: LazyLock<Mutex<Child>> = LazyLock::new(|| {
    // Told `PID FOLDER` for each server, until the pipe is closed by the end of this process.
    let script = r#"trap '' INT TERM HUP
        while read -r line; do all+=("$line"); done
        for line in "${all[@]}"; do
          folder=${line#* }
          case $(tr '\0' ' ' < "/proc/${line%% *}/cmdline" || ps -o args= -p "${line%% *}") in *"$folder"*)
            kill -KILL "${line%% *}"
            for _ in {1..100}; do kill -0 "${line%% *}" || break; sleep 0.05; done ;;
          esac
          rm -rf "$folder"
        done"#;
    let mut reaper = Command::new("bash");
    reaper.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    Mutex::new(reaper.spawn().expect("bash runs"))
});

/// A server runs with its data in this folder.
pub fn is_started(pid: u32, dir: &Path) {
    if !cfg!(test) {
        return;
    }
    let line = format!("{pid} {}\n", dir.display());
    let mut reaper = REAPER.lock().unwrap();
    let told = reaper.stdin.as_mut().expect("it was asked for").write_all(line.as_bytes());
    told.expect("it lives as long as this process");
}
