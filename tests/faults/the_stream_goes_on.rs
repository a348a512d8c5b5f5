//! What is asked of the local server's change stream: as much as is needed, and at a price that the
//! application can pay.

use std::{sync::Arc, time::Duration};

use mongodb::bson::{Bson, Document, RawDocumentBuf, Timestamp, doc};
use outrigger::{
    config::Uri,
    model::{
        checkpoint::{ClusterTime, ResumeToken},
        event::{Change, ChangeEvent, SchemaChange},
        namespace::{Namespace, NamespaceFilter},
    },
    mongo::{Connect, Mongo, documents},
    queue::{Queue, QueueOptions},
    runtime::shutdown::Stop,
    source::{ChangeStreamSource, EventStream, Source, SourceInfo, StartFrom, inspect},
    sync::state::SyncState,
    tailer::{Identity, QueueLimits, Tailer},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::support::{
    PATIENCE,
    agent::Agent,
    equal::equal,
    eventually,
    mongod::Mongod,
    orders, pair,
    proxy::{Line, Proxy},
    seed,
    unasked::Unasked::{Doubt, Repair},
};

async fn connect(server: &Mongod) -> Mongo {
    let connect = Connect {
        timeout: Duration::from_secs(30),
        select_for: Duration::from_secs(30),
        ..Connect::default()
    };
    Mongo::connect(&Uri::parse(&server.uri()).unwrap(), &connect).await.unwrap()
}

const DATABASES: &[&str] = &["shop", "shop2", "a-b", "a{2}", "aa", "it's", "été", "sh(o)p", "x+"];
const COLLECTIONS: &[&str] = &[
    "orders",
    "Orders",
    "orders.2024",
    "orders 2024",
    "or\nders",
    "a{2}",
    "aa",
    "it's",
    "x+y",
    "[x]",
    "x",
    "été",
    "q\"q",
    "back\\slash",
    "#h",
    "~a&b",
];

/// Random filters.
const ROUNDS: usize = 50;

/// What the queue gets to see of an event.
fn seen(event: ChangeEvent, filter: &NamespaceFilter) -> Option<String> {
    match event.change {
        Change::Document { ns, key, .. } => filter.matches(&ns).then(|| format!("{ns} {key:?}")),
        Change::Schema(SchemaChange::Rename { from, to, .. }) => {
            (filter.matches(&from) || filter.matches(&to)).then(|| format!("rename {from} to {to}"))
        }
        Change::Schema(change) => {
            filter.matches(change.ns()).then(|| format!("{} {}", change.name(), change.ns()))
        }
        Change::DatabaseDropped { db } => Some(format!("drop of {db}")),
        Change::Refused { .. } => unreachable!("a MongoDB refuses nothing"),
        Change::Ignored { ns: Some(ns), .. } if !filter.matches(&ns) => None,
        Change::Ignored { ns, kind } => Some(format!("{kind} {ns:?}")),
    }
}

fn is_end(event: &ChangeEvent) -> bool {
    matches!(&event.change, Change::DatabaseDropped { db } if db == "end")
}

/// Everything up to the drop of the database `end`.
async fn read_all(source: &ChangeStreamSource, from: StartFrom) -> Vec<ChangeEvent> {
    let mut stream = source.open(&from).await.unwrap();
    let mut events = Vec::new();
    loop {
        events.extend(stream.next().await.unwrap().events);
        if events.last().is_some_and(is_end) {
            return events;
        }
    }
}

/// The `$match` as it was before names went as values.
fn former_match(include: &[String], exclude: &[String]) -> Document {
    let regex = |glob: &str| {
        let mut pattern = String::from("(?s)^");
        for c in glob.chars() {
            match c {
                '*' => pattern.push_str(".*"),
                '?' => pattern.push('.'),
                c => pattern.push_str(&regex::escape(&c.to_string())),
            }
        }
        pattern.push('$');
        Bson::RegularExpression(mongodb::bson::Regex {
            pattern: pattern.try_into().unwrap(),
            options: "".try_into().unwrap(),
        })
    };
    let parts = |glob: &String| {
        let (db, coll) = glob.split_once('.').unwrap();
        (regex(db), regex(coll))
    };
    let clause = |field: &str| {
        let (db_field, coll_field) = (format!("{field}.db"), format!("{field}.coll"));
        let mut all = Vec::new();
        if !include.is_empty() {
            let ways = include.iter().map(parts);
            let ways: Vec<_> =
                ways.map(|(db, coll)| doc! { &db_field: db, &coll_field: coll }).collect();
            all.push(doc! { "$or": ways });
        }
        for (db, coll) in exclude.iter().map(parts) {
            let ways = [doc! { &db_field: { "$not": db } }, doc! { &coll_field: { "$not": coll } }];
            all.push(doc! { "$or": ways.to_vec() });
        }
        all.push(doc! { &coll_field: { "$exists": true } });
        doc! { "$and": all }
    };
    doc! { "$or": [clause("ns"), clause("to"), { "operationType": "dropDatabase" }] }
}

/// The tokens at which a stream with the former `$match` may have been left, each with the number of events that
/// it had behind that; none where the server does not take that `$match`.
async fn former_tokens(
    (mongo, info): (&Mongo, &SourceInfo),
    from: Timestamp,
    (include, exclude): (&[String], &[String]),
) -> Vec<(ResumeToken, usize)> {
    let mut stage = doc! { "allChangesForCluster": true, "startAtOperationTime": from };
    if info.major >= 6 {
        stage.extend(doc! { "showExpandedEvents": true, "showRawUpdateDescription": true });
    }
    let command = doc! {
        "aggregate": 1, "cursor": { "batchSize": 7 },
        "pipeline": [{ "$changeStream": stage }, { "$match": former_match(include, exclude) }],
    };
    let command = RawDocumentBuf::try_from(&command).unwrap();
    let Ok(mut cursor) = mongo.tail("admin", command, Duration::from_secs(1), 7).await else {
        return Vec::new();
    };
    let (mut tokens, mut count) = (Vec::new(), 0_usize);
    loop {
        let reply = cursor.next().await.unwrap().unwrap();
        for event in documents(&reply).unwrap() {
            count += 1;
            if is_end(&ChangeEvent::parse(event).unwrap()) {
                return tokens.into_iter().map(|(token, n)| (token, count - n)).collect();
            }
            tokens.push((ResumeToken::from_raw(event.get_document("_id").unwrap()), count));
        }
        let cursor = reply.as_raw_document().get_document("cursor").unwrap();
        let position = cursor.get_document("postBatchResumeToken").unwrap();
        tokens.push((ResumeToken::from_raw(position), count));
    }
}

fn pattern(rng: &mut StdRng) -> String {
    let mut part = |names: &[&str]| {
        let name: Vec<char> = names.choose(rng).unwrap().chars().collect();
        let at = rng.random_range(0..name.len());
        match rng.random_range(0..10) {
            0..=2 => "*".to_owned(),
            3 => name[..at].iter().chain(&['*']).collect(),
            4 => ['*'].iter().chain(&name[at..]).collect(),
            5 => name[..at].iter().chain(&['?']).chain(&name[at + 1..]).collect(),
            _ => name.iter().collect(),
        }
    };
    format!("{}.{}", part(DATABASES), part(COLLECTIONS))
}

/// Makes collections of all names with a document each, renames some, and ends with the drop of a database.
async fn make_history(server: &Mongod, rng: &mut StdRng) -> Timestamp {
    let from = server.admin(doc! { "ping": 1 }).await.get_timestamp("operationTime").unwrap();
    let mut made = Vec::new();
    for db in DATABASES {
        for coll in COLLECTIONS {
            let collection = server.client.database(db).collection(coll);
            collection.insert_one(doc! { "_id": 1 }).await.unwrap();
            made.push(Namespace::new(db, coll));
        }
    }
    for _ in 0..40 {
        let (from, to) = (made.choose(rng).unwrap(), made.choose(rng).unwrap());
        // Fails where the old name is gone by now.
        let rename = doc! {
            "renameCollection": from.as_str(), "to": to.as_str(), "dropTarget": true,
        };
        let _ = server.client.database("admin").run_command(rename).await;
        let collection = server.client.database(to.db()).collection(to.coll());
        let _ = collection.insert_one(doc! { "_id": rng.random::<i64>() }).await;
    }
    server.client.database("aa").drop().await.unwrap();
    let end = server.client.database("end");
    end.collection("x").insert_one(doc! { "_id": 1 }).await.unwrap();
    end.drop().await.unwrap();
    from
}

/// Names without wildcards are looked for by the server as values, renames all pass, and some names the server
/// cannot look for: none of which may change what the queue gets, or where an older version's checkpoint leads.
#[tokio::test(flavor = "multi_thread")]
async fn the_servers_filter_and_the_agents_let_through_what_is_chosen_and_old_tokens_stay_good() {
    let mut rng = StdRng::seed_from_u64(seed());
    let server = Mongod::start().await;
    let from = make_history(&server, &mut rng).await;
    let mongo = connect(&server).await;
    let info = inspect(&mongo).await.unwrap();
    let stream_of =
        |filter: &NamespaceFilter| ChangeStreamSource::new(mongo.clone(), filter.clone(), &info);
    let start = StartFrom::Time(ClusterTime::from(from));
    let no_filter = stream_of(&NamespaceFilter::new(&[], &[]).unwrap());
    let everything = read_all(&no_filter, start.clone()).await;
    let (mut resumed, mut kept_away) = (0, 0);

    for _ in 0..ROUNDS {
        let mut some = |most| -> Vec<String> {
            let count = rng.random_range(0..=most);
            (0..count).map(|_| pattern(&mut rng)).collect()
        };
        let (include, exclude) = (some(5), some(4));
        let filter = NamespaceFilter::new(&include, &exclude).unwrap();
        let chosen = |events: &[ChangeEvent]| -> Vec<String> {
            events.iter().cloned().filter_map(|event| seen(event, &filter)).collect()
        };
        let source = stream_of(&filter);

        let passed = read_all(&source, start.clone()).await;

        let expected = chosen(&everything);
        assert_eq!(chosen(&passed), expected, "include {include:?}, exclude {exclude:?}");
        kept_away += everything.len() - passed.len();
        let tokens = former_tokens((&mongo, &info), from, (&include, &exclude)).await;
        if let Some((token, left)) = tokens.choose(&mut rng) {
            resumed += 1;
            let rest = chosen(&read_all(&source, StartFrom::Token(token.clone())).await);
            let n = expected.len() - left;
            assert_eq!(rest, expected[n..], "from {token:?}: {include:?}, {exclude:?}");
        }
    }

    assert!(resumed > ROUNDS / 5, "{resumed} old tokens");
    assert!(kept_away > everything.len() * ROUNDS / 4, "{kept_away} events stayed at the server");
}

/// Patterns that cost the server a millisecond for each entry that none of them matches, so that a few thousand
/// entries take it as long as some millions do with an ordinary filter. Where the server shows what it works on, it
/// cuts the pipeline by bytes, most likely within one of these letters.
fn costly_filter() -> String {
    let patterns: Vec<_> = (0..60).map(|n| format!("\"a?{n}x𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞*.b?{n}*\"")).collect();
    format!("[namespaces]\ninclude = [\"shop.*\", {}]\n", patterns.join(", "))
}

/// The server looks through its oplog for far longer than any answer is waited for. Each attempt used to be given
/// up and begun anew. The line breaks without a word while it does so, and that is still noticed.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_takes_the_server_long_to_resume_is_waited_for_and_status_says_so() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(local.port).await;
    orders(&local).insert_one(doc! { "_id": 0 }).await.unwrap();
    let mut agent = Agent::new(&line.uri(), &atlas.uri(), &costly_filter());
    agent.replace_setting("[local]\ntimeout = \"5s\"", "[local]\ntimeout = \"1s\"");
    agent.start(&[]);
    agent.streaming().await;
    assert!(agent.stop().success());
    let noise = local.client.database("other").collection("noise");
    noise.insert_many((0..1_500).map(|n| doc! { "n": n })).await.unwrap();
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();

    agent.start(&[]);
    eventually("the scan in `status`", PATIENCE, async || {
        let status = agent.cli(&["status"]);
        String::from_utf8_lossy(&status.stdout).contains("looking through its oplog")
    })
    .await;
    // The question is under way, and its answer is lost.
    line.set(Line::Mute);
    eventually("the loss of the line", PATIENCE, async || {
        agent.log().contains("reading from the local database interrupted")
    })
    .await;
    line.set(Line::Up);

    eventually("what is behind the checkpoint", PATIENCE, async || {
        orders(&atlas).count_documents(doc! {}).await.unwrap() == 2
    })
    .await;
    let asked = agent.log().matches("reading from the local database interrupted").count();
    assert_eq!(asked, 1, "{}", agent.log());
}

/// What an agent's reading is made of, at a queue that has come to an entry that the server cannot show: a document with
/// a field `$v` at its top that a pipeline replaces. The server (6.0.5) answers with an error where the stream would show
/// that, and at everything behind it.
struct Unshowable {
    server: Mongod,
    source: Arc<ChangeStreamSource>,
    queue: Arc<Queue>,
    dir: tempfile::TempDir,
}

impl Unshowable {
    async fn start() -> Self {
        let server = Mongod::start().await;
        let mongo = connect(&server).await;
        let info = inspect(&mongo).await.unwrap();
        let filter = NamespaceFilter::new(&[], &[]).unwrap();
        let dir = tempfile::TempDir::new().unwrap();
        let queue = Queue::open(&QueueOptions::new(dir.path().join("queue"))).unwrap();
        let source = Arc::new(ChangeStreamSource::new(mongo, filter, &info));
        let this = Self { server, source, queue: Arc::new(queue), dir };
        orders(&this.server).insert_one(doc! { "_id": 1 }).await.unwrap();
        this.tailer(Duration::MAX).take_position().await.unwrap();
        let replaced = doc! { "_id": 1, "$v": 2, "n": 1 };
        let pipeline = vec![doc! { "$replaceWith": { "$literal": replaced } }];
        orders(&this.server).update_one(doc! { "_id": 1 }, pipeline).await.unwrap();
        this
    }

    fn tailer(&self, impasse_patience: Duration) -> Tailer<ChangeStreamSource> {
        Tailer {
            queue: self.queue.clone(),
            source: self.source.clone(),
            status: Arc::default(),
            reading: Arc::default(),
            filter: NamespaceFilter::new(&[], &[]).unwrap(),
            limits: QueueLimits { max_bytes: 1 << 30, max_documents: 1_000, min_free_disk: 0 },
            identity: Identity { source_id: "this".to_owned(), pipeline: "one".to_owned() },
            disk: self.dir.path().to_owned(),
            compare: Arc::default(),
            gate: Arc::default(),
            tells_of_schema: true,
            watch: Arc::default(),
            impasse_patience,
        }
    }

    fn is_passed_over(&self) -> bool {
        SyncState::is_unshowable(&self.queue).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_the_server_cannot_show_ends_in_a_new_position_and_a_comparison() {
    let at = Unshowable::start().await;
    let (server, queue) = (&at.server, &at.queue);
    let tailer = at.tailer(Duration::from_secs(1));
    let before = queue.checkpoint().unwrap().unwrap().cluster_time;

    let (status, stop) = (tailer.status.clone(), Stop::default());
    let running = tokio::spawn({
        let stop = stop.clone();
        async move { tailer.run(&stop).await }
    });
    eventually("the fault in `status`", PATIENCE, async || status.faults.local.is_any()).await;
    eventually("a new position", PATIENCE, async || at.is_passed_over()).await;

    orders(server).insert_one(doc! { "_id": 2 }).await.unwrap();
    eventually("what is behind it", PATIENCE, async || queue.pending().0 == 1).await;
    assert!(queue.checkpoint().unwrap().unwrap().cluster_time > before);
    assert!(SyncState::is_owed(queue).unwrap());
    assert_eq!(status.faults.local.get(), None);
    stop.drain.cancel();
    running.await.unwrap().unwrap();
}

/// Whoever looks after a process may end one that is not healthy long before its patience ends, and start it again.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_started_again_and_again_gets_past_such_an_entry_too() {
    let at = Unshowable::start().await;
    // Longer than any of the lives.
    let patience = Duration::from_secs(5);
    let mut lives = 0;

    eventually("a new position", PATIENCE, async || {
        let (tailer, stop) = (at.tailer(patience), Stop::default());
        let status = tailer.status.clone();
        let running = tokio::spawn({
            let stop = stop.clone();
            async move { tailer.run(&stop).await }
        });
        eventually("a failure", PATIENCE, async || status.state().unshowable.is_some()).await;
        stop.drain.cancel();
        running.await.unwrap().unwrap();
        lives += 1;
        at.is_passed_over()
    })
    .await;

    assert!(lives > 2, "{lives} lives");
    assert!(SyncState::is_owed(&at.queue).unwrap());
}

/// The stream can be opened, and says each time that its history is lost: thirty lines and thirty new positions
/// a second used to come of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_stays_lost_is_one_line_in_the_log() {
    let (local, atlas) = pair().await;
    orders(&local).insert_one(doc! { "_id": 0 }).await.unwrap();
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[Doubt, Repair], "the stream is broken on purpose");
    agent.streaming().await;

    local.fail(doc! { "failCommands": ["getMore"], "errorCode": 286 }, 10_000).await;
    eventually("what is wrong in `status`", PATIENCE, async || {
        let status = agent.cli(&["status"]);
        String::from_utf8_lossy(&status.stdout).contains("the oplog no longer reaches back")
    })
    .await;
    local.end_failing().await;
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();

    equal(&local, &atlas, PATIENCE).await;
    let lines = agent.log().matches("the stream cannot go on from the checkpoint").count();
    assert_eq!(lines, 1, "{}", agent.log());
}

/// Each of the questions of a start in turn finds its connection closed.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_at_the_start_does_not_end_the_agent() {
    let (local, atlas) = pair().await;
    orders(&local).insert_one(doc! { "_id": 0 }).await.unwrap();
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "");
    for command in
        ["buildInfo", "replSetGetConfig", "listDatabases", "listCollections", "aggregate", "find"]
    {
        local.fail(doc! { "failCommands": [command], "closeConnection": true }, 1).await;
        agent.start(&[]);
        agent.streaming().await;
        assert!(agent.stop().success(), "{command}: {}", agent.log());
    }
    assert!(agent.log().contains("the start waits for the local database"));
}
