//! A real `mongod`, as a replica set of one.

use std::{
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use mongodb::{
    Client,
    bson::{Document, doc},
};
use tempfile::TempDir;

use super::{
    eventually, free_port,
    pool::{self, Idle, Looks},
    root,
};

/// The program, as `scripts/mongod` finds or fetches it.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let script = root().join("scripts/mongod");
        let output =
            Command::new(script).stderr(Stdio::inherit()).output().expect("scripts/mongod runs");
        assert!(output.status.success(), "scripts/mongod found no mongod");
        String::from_utf8(output.stdout).unwrap().trim().into()
    })
}

/// The program of one version, as `scripts/mongod VERSION` fetches it; or the one at a path.
pub fn program_of(version: &str) -> PathBuf {
    if version.contains('/') {
        assert!(Path::new(version).is_file(), "{version}, of MONGODS, is no program");
        return version.into();
    }
    let script = root().join("scripts/mongod");
    let output = Command::new(script).arg(version).stderr(Stdio::inherit()).output();
    let output = output.expect("scripts/mongod runs");
    assert!(output.status.success(), "scripts/mongod found no mongod {version}");
    String::from_utf8(output.stdout).unwrap().trim().into()
}

/// A server process with its data in a folder of its own. When it is dropped it is [handed on](pool) to another test, where
/// nobody can have changed its ways, or killed.
pub struct Mongod {
    pub port: u16,
    /// Gone when it is dropped.
    dir: Option<TempDir>,
    args: Vec<String>,
    program: PathBuf,
    /// What a connection string must have beside the usual, for TLS.
    pub options: String,
    child: Option<Child>,
    /// Connects past the replica set's discovery. Not bound to the agent's client in any way.
    pub client: Client,
    /// How it was after its start, of one that may be handed on.
    first: Option<Looks>,
    is_touched: AtomicBool,
}

impl Mongod {
    /// A server that is a replica set of one, ready for writes, and empty. What it has counted and logged may be of another
    /// test.
    pub async fn start() -> Self {
        if let Some(server) = pool::take().await {
            return server;
        }
        let mut server = Self::start_fresh().await;
        server.first = Some(pool::look(&server.client).await.unwrap());
        server
    }

    /// As [`start`](Self::start), one that nobody has used before.
    pub async fn start_fresh() -> Self {
        let server = Self::start_with(&["--replSet", "rs"]).await;
        server.initiate().await;
        server
    }

    /// One that was [started](Self::start) for another test, whose client says that it is `taker`.
    pub async fn of(idle: Idle, taker: &str) -> Self {
        let Idle { child, dir, port, first, .. } = idle;
        Self {
            port,
            dir: Some(dir),
            args: ["--replSet", "rs"].map(str::to_owned).into(),
            program: program().to_owned(),
            options: String::new(),
            child: Some(child),
            client: client_of(port, &format!("&appName={taker}")).await,
            first: Some(first),
            is_touched: AtomicBool::new(false),
        }
    }

    /// How it was after its start, of one that may be handed on.
    pub fn first(&self) -> Option<&Looks> {
        self.first.as_ref().filter(|_| !self.is_touched.load(Ordering::SeqCst))
    }

    /// Lets go of it, where it may be handed on.
    pub fn left(&mut self) -> Option<Idle> {
        let first = self.first()?.clone();
        let (child, dir) = (self.child.take()?, self.dir.take()?);
        Some(Idle { child, dir, port: self.port, first, since: Instant::now() })
    }

    /// Nobody else gets it: something is done to it that it does not tell.
    pub fn is_touched(&self) {
        self.is_touched.store(true, Ordering::SeqCst);
    }

    /// As [`start`](Self::start), of one version; TTL indexes are looked at every second.
    pub async fn start_of(version: &str) -> Self {
        let args = ["--replSet", "rs", "--setParameter", "ttlMonitorSleepSecs=1"];
        let server = Self::start_program(program_of(version), &args, "").await;
        server.initiate().await;
        server
    }

    /// A server of one version that a set may be made of.
    pub async fn start_of_set(version: &str, set: &str) -> Self {
        Self::start_program(program_of(version), &["--replSet", set], "").await
    }

    /// Starts a server with these arguments, and waits until it answers.
    pub async fn start_with(args: &[&str]) -> Self {
        Self::start_with_options(args, "").await
    }

    /// As [`start_with`](Self::start_with), for a server that is reached with further `options` only.
    pub async fn start_with_options(args: &[&str], options: &str) -> Self {
        Self::start_program(program().to_owned(), args, options).await
    }

    async fn start_program(program: PathBuf, args: &[&str], options: &str) -> Self {
        for _ in 0..3 {
            let port = free_port();
            let mut server = Self {
                port,
                dir: Some(TempDir::new().unwrap()),
                args: args.iter().map(|arg| (*arg).to_owned()).collect(),
                program: program.clone(),
                options: options.to_owned(),
                child: None,
                client: client_of(port, options).await,
                first: None,
                is_touched: AtomicBool::new(false),
            };
            if server.launch().await {
                return server;
            }
            // Somebody else took the port in between.
        }
        panic!("mongod ends at once, three times; its log is above")
    }

    pub async fn initiate(&self) {
        let member = doc! { "_id": 0, "host": format!("127.0.0.1:{}", self.port) };
        self.admin(doc! { "replSetInitiate": { "_id": "rs", "members": [member] } }).await;
        self.wait_for_primary().await;
    }

    async fn wait_for_primary(&self) {
        eventually("a primary", Duration::from_secs(60), async || {
            let hello = self.client.database("admin").run_command(doc! { "hello": 1 }).await;
            hello.is_ok_and(|hello| hello.get_bool("isWritablePrimary").unwrap_or(false))
        })
        .await;
    }

    /// Starts the process again, after [`kill`](Self::kill) or [`terminate`](Self::terminate).
    pub async fn resume(&mut self) {
        assert!(self.launch().await, "mongod ended at once; its log is above");
    }

    /// Goes on with the same data as another version.
    pub async fn turn_into(&mut self, version: &str) {
        self.terminate();
        self.program = program_of(version);
        self.resume().await;
    }

    /// Goes on with the same data at another port, of which its set knows nothing yet.
    pub async fn start_elsewhere(&mut self) {
        self.terminate();
        self.port = free_port();
        self.client = client_of(self.port, &self.options).await;
        self.resume().await;
    }

    /// Has it be a set of one at its present place, whatever it was before. `client` may do that.
    pub async fn initiate_again(&self, client: &Client) {
        let admin = client.database("admin");
        let found = admin.run_command(doc! { "replSetGetConfig": 1 }).await.unwrap();
        let mut config = found.get_document("config").unwrap().clone();
        let member = doc! { "_id": 0, "host": format!("127.0.0.1:{}", self.port) };
        config.insert("members", [member]);
        config.insert("version", config.get_i32("version").unwrap() + 1);
        admin.run_command(doc! { "replSetReconfig": config, "force": true }).await.unwrap();
        self.wait_for_primary().await;
    }

    /// Has it be one of three, of which the others are not there: there is no primary any more. [`initiate_again`](Self::initiate_again) ends it.
    pub async fn loses_its_majority(&self) {
        let found = self.admin(doc! { "replSetGetConfig": 1 }).await;
        let mut config = found.get_document("config").unwrap().clone();
        let member = |id: i32, port: u16| doc! { "_id": id, "host": format!("127.0.0.1:{port}") };
        let members = [member(0, self.port), member(1, free_port()), member(2, free_port())];
        config.insert("members", members.to_vec());
        config.insert("version", config.get_i32("version").unwrap() + 1);
        self.admin(doc! { "replSetReconfig": config, "force": true }).await;
    }

    /// False when the process ends before it answers.
    async fn launch(&mut self) -> bool {
        assert!(self.child.is_none(), "it runs already");
        let log = std::fs::File::create(self.folder().join("log")).unwrap();
        let mut command = Command::new(&self.program);
        command
            .args(["--bind_ip", "127.0.0.1", "--nounixsocket"])
            .args(["--setParameter", "enableTestCommands=1"])
            .args(["--setParameter", "diagnosticDataCollectionEnabled=false"])
            .args(["--port", &self.port.to_string()])
            .args(&self.args)
            .arg("--dbpath")
            .arg(self.folder())
            .stdout(log)
            .stderr(Stdio::null());
        // The server takes none of them twice.
        for (name, default) in [("--oplogSize", "200"), ("--wiredTigerCacheSizeGB", "0.5")] {
            if !self.args.iter().any(|arg| arg == name) {
                command.args([name, default]);
            }
        }
        let child = command.spawn().expect("mongod starts");
        pool::is_started(child.id(), self.folder());
        self.child = Some(child);
        let client = self.client.clone();
        let mut ended = None;
        let child = self.child.as_mut().expect("it was just started");
        eventually("mongod", Duration::from_secs(60), async || {
            ended = child.try_wait().unwrap();
            ended.is_some()
                || client.database("admin").run_command(doc! { "hello": 1 }).await.is_ok()
        })
        .await;
        if let Some(ended) = ended {
            self.child = None;
            let log = std::fs::read_to_string(self.folder().join("log")).unwrap_or_default();
            let last: Vec<_> = log.lines().rev().take(12).collect();
            eprintln!("mongod ended at once, {ended}: {last:#?}");
            return false;
        }
        // Who answers may be somebody else, and this process about to find the port taken.
        let admin = client.database("admin");
        if let Ok(status) = admin.run_command(doc! { "serverStatus": 1 }).await
            && status.get_i64("pid").unwrap() != i64::from(self.pid())
        {
            self.kill();
            return false;
        }
        if self.args.iter().any(|arg| arg == "--replSet") && self.is_alone_in_its_set().await {
            self.wait_for_primary().await;
        }
        true
    }

    async fn is_alone_in_its_set(&self) -> bool {
        let hello = self.client.database("admin").run_command(doc! { "hello": 1 }).await.unwrap();
        hello.get_array("hosts").is_ok_and(|hosts| hosts.len() == 1)
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.is_touched();
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks it to stop, and waits until it has.
    pub fn terminate(&mut self) {
        self.is_touched();
        if let Some(mut child) = self.child.take() {
            super::agent::signal(child.id(), "TERM");
            let _ = child.wait();
        }
    }

    /// Its files, as a backup has them. It must be stopped.
    pub fn back_up(&self) -> TempDir {
        assert!(self.child.is_none(), "it runs");
        let backup = TempDir::new().unwrap();
        super::copy_dir(self.path(), backup.path());
        backup
    }

    /// Has the files of a backup in place of its own. It must be stopped.
    pub fn put_back(&self, backup: &TempDir) {
        self.wipe();
        super::copy_dir(backup.path(), self.path());
    }

    /// Has an empty folder, as after the loss of a disk. It must be stopped.
    pub fn wipe(&self) {
        assert!(self.child.is_none(), "it runs");
        std::fs::remove_dir_all(self.path()).unwrap();
        std::fs::create_dir(self.path()).unwrap();
    }

    /// Where its data is.
    pub fn path(&self) -> &Path {
        self.is_touched();
        self.folder()
    }

    fn folder(&self) -> &Path {
        self.dir.as_ref().expect("it is not dropped").path()
    }

    /// The process id, for a fault that needs it.
    pub fn id(&self) -> u32 {
        self.is_touched();
        self.pid()
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    pub fn uri(&self) -> String {
        format!("mongodb://127.0.0.1:{}/?directConnection=true", self.port)
    }

    /// Runs a command on `admin`.
    pub async fn admin(&self, command: Document) -> Document {
        self.client.database("admin").run_command(command).await.unwrap()
    }

    /// Has commands of the agent fail as `data` says, `times` times.
    pub async fn fail(&self, data: Document, times: i32) {
        // Not every version tells how often one was met.
        self.is_touched();
        let mut data = data;
        data.insert("appName", "outrigger");
        let mode = doc! { "times": times };
        self.admin(doc! { "configureFailPoint": "failCommand", "mode": mode, "data": data }).await;
    }

    /// Ends [`fail`](Self::fail); returns how often a command has failed since the server started.
    pub async fn end_failing(&self) -> i64 {
        let off = doc! { "configureFailPoint": "failCommand", "mode": "off" };
        match self.admin(off).await.get("count") {
            Some(mongodb::bson::Bson::Int32(n)) => i64::from(*n),
            Some(mongodb::bson::Bson::Int64(n)) => *n,
            other => panic!("count: {other:?}"),
        }
    }

    /// How far its log goes by now, for [`failed_since`](Self::failed_since).
    pub fn logged(&self) -> u64 {
        std::fs::metadata(self.folder().join("log")).unwrap().len()
    }

    /// How often [`fail`](Self::fail) has met this command since its log went so far. All commands of a fail point share
    /// one count, and the log names each.
    pub fn failed_since(&self, logged: u64, command: &str) -> usize {
        let mut log = std::fs::File::open(self.folder().join("log")).unwrap();
        log.seek(SeekFrom::Start(logged)).unwrap();
        let mut text = Vec::new();
        log.read_to_end(&mut text).unwrap();
        let named = format!("\"command\":\"{command}\"");
        let is_met =
            |line: &&str| line.contains("Activating 'failCommand'") && line.contains(&named);
        String::from_utf8_lossy(&text).lines().filter(is_met).count()
    }

    /// Waits until the server has such a command under way.
    pub async fn is_at(&self, command: Document) {
        let pipeline = [doc! { "$currentOp": {} }, doc! { "$match": command }];
        super::eventually("the command", super::PATIENCE, async || {
            let admin = self.client.database("admin");
            admin.aggregate(pipeline.clone()).await.unwrap().advance().await.unwrap()
        })
        .await;
    }

    /// How many commands of this name the server was asked for.
    pub async fn commands(&self, name: &str) -> i64 {
        let status = self.admin(doc! { "serverStatus": 1 }).await;
        let commands = status.get_document("metrics").unwrap().get_document("commands").unwrap();
        commands.get_document(name).unwrap().get_i64("total").unwrap()
    }

    /// How many `insert` commands the server was asked for.
    pub async fn insert_commands(&self) -> i64 {
        self.commands("insert").await
    }

    /// As [`writes`](Self::writes), without the agent's lease, which it renews every ten seconds.
    pub async fn document_writes(&self) -> i64 {
        let oplog = self.client.database("local").collection::<Document>("oplog.rs");
        let of_record = doc! { "ns": "outrigger.replicas", "op": { "$in": ["i", "u", "d"] } };
        loop {
            let records = oplog.count_documents(of_record.clone()).await.unwrap();
            let writes = self.writes().await;
            // Renewed between the two looks.
            if oplog.count_documents(of_record.clone()).await.unwrap() == records {
                return writes - records as i64;
            }
        }
    }

    /// The total number of writes that the server was asked for: inserts, updates, deletes.
    pub async fn writes(&self) -> i64 {
        let status = self.admin(doc! { "serverStatus": 1 }).await;
        let counters = status.get_document("opcounters").unwrap();
        let count = |name| match counters.get(name) {
            Some(mongodb::bson::Bson::Int32(n)) => i64::from(*n),
            Some(mongodb::bson::Bson::Int64(n)) => *n,
            other => panic!("{name}: {other:?}"),
        };
        count("insert") + count("update") + count("delete")
    }
}

async fn client_of(port: u16, options: &str) -> Client {
    let uri = "directConnection=true&serverSelectionTimeoutMS=30000";
    let uri = format!("mongodb://127.0.0.1:{port}/?{uri}{options}");
    Client::with_uri_str(uri).await.unwrap()
}

impl Drop for Mongod {
    fn drop(&mut self) {
        if cfg!(test)
            && !std::thread::panicking()
            && let Some(idle) = self.left()
        {
            pool::hand_on(idle);
        }
        self.kill();
    }
}
