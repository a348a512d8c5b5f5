//! What faults leave behind at the agent and at both servers: nothing that stays.

use mongodb::{
    Client,
    bson::{Document, doc},
};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::support::{
    PATIENCE,
    agent::Agent,
    equal::equal,
    eventually,
    mongod::Mongod,
    orders, pair,
    proxy::{Line, Proxy},
    seed,
};

/// What goes wrong, at either end.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The line is cut.
    Cut,
    /// Nobody answers any more, until the wait is given up.
    NoAnswer,
    /// The server closes the connection on which it was asked.
    Closed,
    /// The server refuses the command.
    Refused(i32),
    /// The change stream's cursor is gone, or Atlas has no primary.
    Gone,
}

const FAULTS: [Fault; 10] = [
    Fault::Cut,
    Fault::Cut,
    Fault::NoAnswer,
    Fault::Closed,
    Fault::Closed,
    Fault::Refused(189),
    Fault::Refused(10107),
    Fault::Refused(11602),
    Fault::Refused(50),
    Fault::Gone,
];

/// What is open and held, in this order.
const NAMES: [&str; 9] = [
    "files",
    "threads",
    "MiB",
    "local connections",
    "local cursors",
    "local sessions",
    "Atlas's connections",
    "Atlas's cursors",
    "Atlas's sessions",
];

/// By how much more of it there may be after a hundred faults than after ten, but for cursors and sessions.
const MAY_GROW: [i64; 9] = [8, 8, 60, 8, 0, 0, 8, 0, 0];

/// A driver does not end a session whose connection broke, nor the cursor that was opened in it, and the server keeps both
/// for half an hour. Of those there may be one more for each fault of that end, and so no more than half an hour has
/// faults.
const OF_SESSIONS: [usize; 4] = [4, 5, 7, 8];

struct Stage {
    servers: [Mongod; 2],
    lines: [Proxy; 2],
    agent: Agent,
    n: i32,
}

impl Stage {
    async fn held(&self) -> [i64; 9] {
        let kept = |folder: &str| {
            let folder = format!("/proc/{}/{folder}", self.agent.id());
            i64::try_from(std::fs::read_dir(folder).unwrap().count()).unwrap()
        };
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.agent.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let resident = line.trim().trim_end_matches(" kB").parse::<i64>().unwrap() / 1024;
        let mut held = [kept("fd"), kept("task"), resident, 0, 0, 0, 0, 0, 0];
        for (server, n) in self.servers.iter().zip([3, 6]) {
            held[n..n + 3].copy_from_slice(&at_a_server(&server.client).await);
        }
        held
    }

    /// Has the fault meet something.
    async fn deal(&mut self, end: usize, fault: Fault) {
        self.n += 1;
        let (server, line) = (&self.servers[end], &self.lines[end]);
        let (struck, given_up, logged) = (line.struck(), line.given_up(), server.logged());
        // What had no answer before is not inserted, but written over.
        let commands: &[&str] = if end == 0 { &["getMore"] } else { &["insert", "update"] };
        let fails = async |how: Document| {
            let mut data = doc! { "failCommands": commands };
            data.extend(how);
            server.fail(data, 1).await;
        };
        match fault {
            Fault::Cut => line.set(Line::Cut),
            Fault::NoAnswer => line.set(Line::Mute),
            Fault::Closed => fails(doc! { "closeConnection": true }).await,
            Fault::Refused(code) => fails(doc! { "errorCode": code }).await,
            Fault::Gone => fails(doc! { "errorCode": if end == 0 { 43 } else { 13435 } }).await,
        }
        orders(&self.servers[0]).insert_one(doc! { "_id": self.n }).await.unwrap();
        eventually(&format!("{fault:?} meets something"), PATIENCE, async || match fault {
            Fault::Cut => line.struck() > struck,
            Fault::NoAnswer => line.given_up() > given_up,
            _ => commands.iter().any(|command| server.failed_since(logged, command) > 0),
        })
        .await;
        line.set(Line::Up);
    }
}

/// How many of these operations there are at a server.
async fn count(client: &Client, of: Document, ours: Document) -> i64 {
    let counted = [of, doc! { "$match": ours }, doc! { "$count": "n" }];
    let mut found = client.database("admin").aggregate(counted).await.unwrap();
    if !found.advance().await.unwrap() {
        return 0;
    }
    i64::from(found.deserialize_current().unwrap().get_i32("n").unwrap())
}

/// How many clients of the agent watch the server: each keeps a question for news of it.
async fn watchers(client: &Client) -> i64 {
    let ours = doc! { "appName": "outrigger", "command.hello": 1, "active": true };
    count(client, doc! { "$currentOp": { "allUsers": true } }, ours).await
}

/// Connections and cursors of the agent, and sessions of whomever.
async fn at_a_server(client: &Client) -> [i64; 3] {
    let all = |what: &str| doc! { "$currentOp": { "allUsers": true, what: true } };
    // One that is idle does not say whose it is.
    let whose = [doc! { "appName": "outrigger" }, doc! { "type": "idleCursor" }];
    let cursors = doc! { "cursor": { "$exists": true }, "$or": whose.to_vec() };
    [
        count(client, all("idleConnections"), doc! { "appName": "outrigger" }).await,
        count(client, all("idleCursors"), cursors).await,
        count(client, doc! { "$listLocalSessions": { "allUsers": true } }, doc! {}).await,
    ]
}

/// Each is dealt as often as any other, in an order of its own.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_hundred_faults_no_more_is_held_than_after_ten() {
    let (local, atlas) = pair().await;
    let lines = [Proxy::to(local.port).await, Proxy::to(atlas.port).await];
    let mut agent = Agent::new(&lines[0].uri(), &lines[1].uri(), "");
    for section in ["allow_insecure = true", "[local]"] {
        agent.replace_setting(
            &format!("{section}\ntimeout = \"5s\""),
            &format!("{section}\ntimeout = \"1s\""),
        );
    }
    agent.start(&[]);
    agent.streaming().await;
    // What makes the collection in Atlas has its answer: one that stays out has everything in it compared.
    orders(&local).insert_one(doc! { "_id": 0 }).await.unwrap();
    equal(&local, &atlas, PATIENCE).await;
    let mut stage = Stage { servers: [local, atlas], lines, agent, n: 0 };
    let mut rng = StdRng::seed_from_u64(seed());
    let mut first = None;
    for round in 0..10_i64 {
        let mut faults = FAULTS;
        faults.shuffle(&mut rng);
        for (n, fault) in faults.into_iter().enumerate() {
            stage.deal((n + usize::try_from(round).unwrap()) % 2, fault).await;
        }
        let [local, atlas] = &stage.servers;
        equal(local, atlas, PATIENCE).await;
        // A connection whose answers were swallowed stands until it is reset, and the driver awaits what was asked over it: up
        // to three for each client that was given up.
        stage.lines.iter().for_each(Proxy::reset_mute);
        let then = *first.get_or_insert(stage.held().await);
        let mut last = None;
        // What was given up is still being closed.
        eventually("no more is held", PATIENCE, async || {
            let now = stage.held().await;
            if last.replace(now) != Some(now) {
                println!("after {}: {NAMES:?} {now:?}", (round + 1) * 10);
            }
            let may = |at: usize| if OF_SESSIONS.contains(&at) { round * 5 } else { MAY_GROW[at] };
            (0..NAMES.len()).all(|at| now[at] <= then[at] + may(at))
        })
        .await;
    }
}

/// What the driver asks to end a client is lost as well, and so are connections that it is making.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_was_given_up_watches_its_server_no_longer_though_it_has_no_answer_either() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(local.port).await;
    // A client that is made while nobody answers tries again after this.
    let uri = format!("{}&connectTimeoutMS=2000", line.uri());
    let mut agent = Agent::new(&uri, &atlas.uri(), "");
    agent.replace_setting("[local]\ntimeout = \"5s\"", "[local]\ntimeout = \"1s\"");
    agent.start(&[]);
    agent.streaming().await;
    for n in 0..4 {
        let given_up = line.given_up();
        line.set(Line::Mute);
        orders(&local).insert_one(doc! { "_id": n }).await.unwrap();
        eventually("the line is given up", PATIENCE, async || line.given_up() > given_up).await;
        let struck = line.struck();
        eventually("the end is lost too", PATIENCE, async || line.struck() > struck + 2).await;
        line.set(Line::Up);
        equal(&local, &atlas, PATIENCE).await;
    }

    let watched = async || watchers(&local.client).await == 1;
    eventually("one client watches", 2 * PATIENCE, watched).await;
}
