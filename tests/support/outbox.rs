//! An application that keeps its data in PostgreSQL, writes a row of an outbox with each change, and has MongoDB as the
//! copy. The model is its own table, which each transaction changes together with its row.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    time::Duration,
};

use mongodb::bson::{Bson, Document, doc};
use outrigger::config::{self, Config};
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use super::{PATIENCE, agent::program, eventually, free_port, mongod::Mongod, postgres::Postgres};

const ROUTES: &str = r#"
[[route]]
event = "todo.*"
collection = "app.todos"
key = "entity_id"
op = "replace"
[[route]]
event = "todo.changed"
collection = "app.todos"
key = "entity_id"
op = "merge"
[[route]]
event = "todo.deleted"
collection = "app.todos"
key = "entity_id"
op = "delete"
"#;

/// Both databases, with the tables in the one, and a folder for queues.
pub struct World {
    pub postgres: Postgres,
    pub mongod: Mongod,
    pub dir: TempDir,
}

impl World {
    pub async fn start() -> Self {
        let (postgres, mongod) = tokio::join!(Postgres::start(), Mongod::start());
        let world = Self { postgres, mongod, dir: TempDir::new().unwrap() };
        let file = world.dir.path().join("config.toml");
        std::fs::write(&file, world.text("")).unwrap();
        let printed = Command::new(program())
            .arg("--config")
            .arg(&file)
            .args(["outbox", "init"])
            .output()
            .unwrap();
        world.postgres.ask(&String::from_utf8(printed.stdout).unwrap()).await;
        world.postgres.ask("CREATE TABLE todos (id text PRIMARY KEY, doc jsonb)").await;
        world
    }

    pub fn text(&self, more: &str) -> String {
        format!(
            "[source]\nkind = \"outbox\"\n[outbox]\nbatch_size = 100\npoll = \"100ms\"\n{more}\n\
             [atlas]\nuri = \"{}\"\nallow_insecure = true\n{ROUTES}",
            self.mongod.uri()
        )
    }

    pub fn config(&self, more: &str) -> Config {
        let uri = self.postgres.uri();
        let env = |name: &str| (name == "OUTBOX_URI").then(|| uri.clone());
        config::parse(&self.text(more), Path::new("config.toml"), env).unwrap()
    }

    pub fn queue(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub async fn write(&self, event: &str, id: &str, payload: &str) {
        let sql = format!(
            "INSERT INTO outbox (event_type, entity_id, payload) VALUES ('{event}', '{id}', '{payload}')"
        );
        self.postgres.ask(&sql).await;
    }

    pub async fn todos(&self) -> BTreeMap<String, Document> {
        let mut all = BTreeMap::new();
        let todos = self.mongod.client.database("app").collection::<Document>("todos");
        let mut cursor = todos.find(doc! {}).await.unwrap();
        while cursor.advance().await.unwrap() {
            let mut document = cursor.deserialize_current().unwrap();
            let id = document.remove("_id").unwrap().as_str().unwrap().to_owned();
            all.insert(id, document);
        }
        all
    }

    /// What the application's table holds.
    pub async fn model(&self) -> BTreeMap<String, Document> {
        let rows = self.postgres.ask("SELECT id, doc::text FROM todos WHERE doc IS NOT NULL").await;
        let pairs = rows.iter().map(|row| {
            let (id, text) = row.split_once('|').unwrap();
            let json: serde_json::Value = serde_json::from_str(text).unwrap();
            let Bson::Document(document) = Bson::try_from(json).unwrap() else { panic!("{text}") };
            (id.to_owned(), document)
        });
        pairs.collect()
    }

    /// Waits until the copy is what the model is.
    pub async fn equal(&self) {
        eventually("the copy is the model", PATIENCE, async || {
            let waiting =
                self.postgres.ask("SELECT count(*) FROM outbox WHERE processed_at IS NULL");
            waiting.await == ["0"] && sorted(self.todos().await) == sorted(self.model().await)
        })
        .await;
    }
}

/// The order of fields is none of JSON's.
fn sorted(documents: BTreeMap<String, Document>) -> BTreeMap<String, BTreeMap<String, Bson>> {
    documents.into_iter().map(|(id, document)| (id, document.into_iter().collect())).collect()
}

/// A transaction of the application: the entity and its row, after the entity's lock; perhaps long, perhaps in vain.
pub async fn transaction(client: &mut Client, n: u64) -> Result<(), tokio_postgres::Error> {
    let ids: Vec<String> =
        (0..fastrand::usize(1..3)).map(|_| fastrand::u8(0..12).to_string()).collect();
    let mut ids = ids;
    ids.sort();
    ids.dedup();
    let transaction = client.transaction().await?;
    for id in &ids {
        let kind = fastrand::u8(0..10);
        let (event, payload, change) = match kind {
            0..=1 => ("todo.deleted", None, "NULL".to_owned()),
            2..=5 => {
                let payload =
                    format!(r#"{{"n": {n}, "title": "t{n}", "tags": ["a", null, {{"x": 1.5}}]}}"#);
                ("todo.saved", Some(payload.clone()), format!("'{payload}'::jsonb"))
            }
            _ => {
                let payload = format!(r#"{{"f{}": {n}, "n": {n}}}"#, fastrand::u8(0..4));
                (
                    "todo.changed",
                    Some(payload.clone()),
                    format!("coalesce(todos.doc, '{{}}') || '{payload}'::jsonb"),
                )
            }
        };
        let sql = format!(
            "INSERT INTO todos (id, doc) VALUES ('{id}', {}) ON CONFLICT (id) DO UPDATE SET doc = {change}",
            payload.as_ref().map_or("NULL".to_owned(), |payload| format!("'{payload}'::jsonb"))
        );
        transaction.batch_execute(&sql).await?;
        let payload = payload.map_or("NULL".to_owned(), |payload| format!("'{payload}'"));
        let sql = format!(
            "INSERT INTO outbox (event_type, entity_id, payload) VALUES ('{event}', '{id}', {payload})"
        );
        transaction.batch_execute(&sql).await?;
        if fastrand::u8(0..8) == 0 {
            tokio::time::sleep(Duration::from_millis(fastrand::u64(1..60))).await;
        }
    }
    if fastrand::u8(0..6) == 0 { transaction.rollback().await } else { transaction.commit().await }
}

pub async fn work(world: &World, writers: u64, transactions: u64) -> JoinSet<()> {
    let mut writing = JoinSet::new();
    for writer in 0..writers {
        let mut client = world.postgres.client().await;
        writing.spawn(async move {
            for n in 0..transactions {
                transaction(&mut client, writer * transactions + n).await.unwrap();
            }
        });
    }
    writing
}

/// The program, with a folder of its own below that of the world. Killed when dropped.
pub struct Program {
    pub dir: PathBuf,
    pub port: u16,
    uri: String,
    child: Option<Child>,
}

impl Program {
    /// `more` stands behind the configuration of the world, in sections of its own.
    pub fn new(world: &World, name: &str, more: &str) -> Self {
        let (dir, port) = (world.dir.path().join(name), free_port());
        std::fs::create_dir(&dir).unwrap();
        let text = format!(
            "{}{more}\n[admin]\nlisten = \"127.0.0.1:{port}\"\n[breaker]\nopen_for_max = \"1s\"\n",
            world.text("")
        );
        std::fs::write(dir.join("config.toml"), text).unwrap();
        Self { dir, port, uri: world.postgres.uri(), child: None }
    }

    /// One that runs.
    pub fn started(world: &World, name: &str, more: &str) -> Self {
        let mut program = Self::new(world, name, more);
        program.start();
        program
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(args).current_dir(&self.dir).env("OUTBOX_URI", &self.uri);
        command
    }

    /// Another command: its exit code, and all that it says.
    pub fn run(&self, args: &[&str]) -> (i32, String) {
        let output = self.command(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout) + &text(&output.stderr))
    }

    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// With these in its environment.
    pub fn start_with(&mut self, env: &[(&str, &str)]) {
        let log = self.dir.join("log");
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        let mut run = self.command(&["run"]);
        run.envs(env.iter().copied());
        self.child = Some(run.stderr(log).spawn().unwrap());
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    pub fn id(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// What it answers at an address of its API.
    pub fn get(&self, path: &str) -> Option<Value> {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let text = ureq::get(url).call().ok()?.body_mut().read_to_string().ok()?;
        serde_json::from_str(&text).ok()
    }

    /// What it tells of itself, if it answers.
    pub fn health(&self) -> Option<Value> {
        self.get("/api/sync/health")
    }

    pub fn metrics(&self) -> String {
        let url = format!("http://127.0.0.1:{}/metrics", self.port);
        ureq::get(url).call().unwrap().body_mut().read_to_string().unwrap()
    }

    /// How it has ended, if it has.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut().expect("it runs").try_wait().unwrap();
        if status.is_some() {
            self.child = None;
        }
        status
    }

    /// Waits for a process that ends by itself; its exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("the agent's end", PATIENCE, async || {
            status = self.has_ended();
            status.is_some()
        })
        .await;
        status.unwrap().code()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- the log in {} ---\n{}", self.dir.display(), self.log());
        }
    }
}
