//! The real binary, as an operator runs it.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use super::{
    PATIENCE,
    ends::{self, Run},
    eventually, free_port,
    postgres::Postgres,
    unasked::{self, Cursors, Figures, Unasked},
};

/// Sends a signal by process id.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status();
    assert!(status.expect("kill runs").success());
}

/// The program. An example has no binary of its own to name; it is told by the environment.
pub fn program() -> PathBuf {
    std::env::var_os("OUTRIGGER_BIN")
        .map(PathBuf::from)
        .or_else(|| option_env!("CARGO_BIN_EXE_outrigger").map(PathBuf::from))
        .expect("OUTRIGGER_BIN names the program")
}

/// Whether there is such a process, and it has not ended.
pub fn is_running(pid: u32) -> bool {
    // One that has ended and was not waited for is a zombie.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.starts_with(" Z")))
}

/// Whether it was told to stop where it is (`SIGSTOP`).
pub fn is_stopped(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T")))
}

/// How `unshare` gives a mount namespace here: as root, or as anybody; `None` where neither is allowed,
/// as in some containers.
pub fn may_mount() -> Option<&'static [&'static str]> {
    const WAYS: [&[&str]; 2] = [&["--mount"], &["--user", "--map-root-user", "--mount"]];
    WAYS.into_iter().find(|way| {
        let mut command = Command::new("unshare");
        command.args(*way).args(["mount", "-t", "tmpfs", "tmpfs", "/mnt"]);
        command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    })
}

/// An agent with a folder of its own: configuration, queue, token, log. Killed when dropped.
pub struct Agent {
    pub dir: TempDir,
    pub admin_port: u16,
    env: Vec<(String, String)>,
    /// Runs before the program and in its place, as `sh -c` takes it: a mount, a limit.
    pub wrapper: Option<String>,
    child: Option<Child>,
    run: Option<Arc<Run>>,
    letters_are_meant: Arc<AtomicBool>,
    /// What its processes did that is no part of replication that works, and what the test says may be so.
    unasked: Vec<(Unasked, String)>,
    /// As its process found them.
    cursors: Option<Cursors>,
    may: Mutex<BTreeMap<Unasked, &'static str>>,
    /// Where its heartbeats come.
    #[cfg(not(demo))]
    pub heartbeats: Option<super::receiver::Receiver>,
}

impl Agent {
    /// What the test provokes, and why: it is no fault of the agent when it is dropped.
    pub fn may(&self, what: &[Unasked], reason: &'static str) {
        self.may.lock().unwrap().extend(what.iter().map(|what| (*what, reason)));
    }

    /// Changes its configuration, for the next start.
    pub fn replace_setting(&self, old: &str, new: &str) {
        let path = self.dir.path().join("config.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(old), "{old}");
        std::fs::write(path, text.replace(old, new)).unwrap();
    }

    /// Longer than an Atlas takes that is told to take its time.
    pub fn waits_long_for_atlas(&self) {
        let setting = |time: &str| format!("allow_insecure = true\ntimeout = \"{time}\"");
        self.replace_setting(&setting("5s"), &setting("30s"));
    }

    /// Prepares an agent between two URIs; `config` is added to a configuration for tests.
    pub fn new(local: &str, atlas: &str, config: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let admin_port = free_port();
        let text = format!(
            "[admin]\nlisten = \"127.0.0.1:{admin_port}\"\n[atlas]\nallow_insecure = true\ntimeout = \"5s\"\n\
             [local]\ntimeout = \"5s\"\n[breaker]\nopen_for = \"200ms\"\nopen_for_max = \"1s\"\n{config}"
        );
        std::fs::write(dir.path().join("config.toml"), text).unwrap();
        let env = [("MONGODB_LOCAL_URI", local), ("MONGODB_ATLAS_URI", atlas)];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let agent = Self {
            dir,
            admin_port,
            env,
            wrapper: None,
            child: None,
            run: None,
            letters_are_meant: Arc::default(),
            unasked: Vec::new(),
            cursors: None,
            may: Mutex::default(),
            #[cfg(not(demo))]
            heartbeats: None,
        };
        if std::env::var_os("OUTRIGGER_TEST_UNSCALED").is_some() {
            // `make nightly`.
            agent.waits_as_by_default();
        }
        agent
    }

    /// Takes the shortened waits out of its configuration, so that those count that it has by default.
    pub fn waits_as_by_default(&self) {
        self.replace_setting("allow_insecure = true\ntimeout = \"5s\"", "allow_insecure = true");
        let shortened =
            "[local]\ntimeout = \"5s\"\n[breaker]\nopen_for = \"200ms\"\nopen_for_max = \"1s\"\n";
        self.replace_setting(shortened, "");
    }

    /// Prepares one that replicates into PostgreSQL.
    pub fn into_postgres(local: &str, target: &str, config: &str) -> Self {
        let agent = Self::new(local, "", "");
        agent.replace_setting(
            "[atlas]\nallow_insecure = true\n",
            "[target]\nkind = \"postgres\"\n[atlas]\n",
        );
        let path = agent.dir.path().join("config.toml");
        let text = std::fs::read_to_string(&path).unwrap() + config;
        std::fs::write(&path, text).unwrap();
        let mut agent = agent;
        agent.env.retain(|(name, _)| name != "MONGODB_ATLAS_URI");
        agent.set_env("POSTGRES_URI", target);
        agent
    }

    /// Prepares one that reads an outbox, whose table is made as `outbox init` prints it; `config` has its `[[route]]`.
    pub async fn from_outbox(source: &Postgres, atlas: &str, config: &str) -> Self {
        let agent = Self::unprepared_outbox(&source.uri(), atlas, config);
        let printed = agent.cli(&["outbox", "init"]);
        let told = String::from_utf8_lossy(&printed.stderr);
        assert!(printed.status.success(), "{told}");
        source.ask(&String::from_utf8(printed.stdout).unwrap()).await;
        agent
    }

    /// As [`from_outbox`](Self::from_outbox), where nobody has made the table.
    pub fn unprepared_outbox(source: &str, atlas: &str, config: &str) -> Self {
        let config = format!("[source]\nkind = \"outbox\"\n[outbox]\npoll = \"100ms\"\n{config}");
        let mut agent = Self::new("", atlas, &config);
        agent.env.retain(|(name, _)| name != "MONGODB_LOCAL_URI");
        agent.set_env("OUTBOX_URI", source);
        agent
    }

    /// Has it send a heartbeat each second, from its next start on.
    #[cfg(not(demo))]
    pub fn beats(&mut self) {
        let receiver = super::receiver::Receiver::start();
        let path = self.dir.path().join("config.toml");
        let mut text = std::fs::read_to_string(&path).unwrap();
        let url = format!("http://127.0.0.1:{}/beat", receiver.port);
        let alerts = format!("\n[alerts]\nheartbeat_every = \"1s\"\nheartbeat_url = \"{url}\"\n");
        text.push_str(&alerts);
        std::fs::write(path, text).unwrap();
        self.heartbeats = Some(receiver);
    }

    /// One that is started at once and [beats](Self::beats), for who watches what it says.
    #[cfg(not(demo))]
    pub fn watched(local: &str, atlas: &str, config: &str) -> Self {
        let mut agent = Self::new(local, atlas, config);
        agent.beats();
        agent.start(&[]);
        agent
    }

    /// An agent that is started at once.
    pub fn started(local: &str, atlas: &str) -> Self {
        let mut agent = Self::new(local, atlas, "");
        agent.start(&[]);
        agent
    }

    /// The program, from the environment of the test that includes this file.
    pub fn command(&self) -> Command {
        let program = program();
        let mut command = match &self.wrapper {
            None => Command::new(program),
            Some(wrapper) => {
                let mut command = Command::new("unshare");
                // In a mount namespace of its own, and in place of the shell: the id stays.
                command.args(may_mount().expect("the test asked first")).args(["sh", "-c"]);
                command.arg(format!("{wrapper} && exec \"$0\" \"$@\"")).arg(program);
                command
            }
        };
        command.current_dir(self.dir.path()).envs(self.env.clone());
        command
    }

    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    pub fn start(&mut self, args: &[&str]) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .unwrap();
        self.start_with_log(args, log.into());
    }

    /// Starts it with its log elsewhere.
    pub fn start_with_log(&mut self, args: &[&str], log: Stdio) {
        assert!(self.child.is_none(), "it runs already");
        let named = |name: &str| {
            let of_name = |(other, _): &&(String, String)| other == name;
            self.env.iter().rev().find(of_name).map_or("", |(_, uri)| uri)
        };
        let (local, atlas) = (named("MONGODB_LOCAL_URI"), named("MONGODB_ATLAS_URI"));
        // In a set of several the members have cursors on one another.
        let alone = [local, atlas].map(ends::servers).into_iter().filter(|of| of.len() == 1);
        self.cursors = Some(Cursors::of(alone.flatten()));
        let child = self.command().arg("run").args(args).stdout(Stdio::null()).stderr(log).spawn();
        let child = child.expect("the agent starts");
        let pid = child.id();
        self.run = Some(Run::begins((pid, self.admin_port), local, atlas, &self.letters_are_meant));
        self.child = Some(child);
    }

    /// The test has Atlas refuse something for good: dead letters are no fault of the agent.
    pub fn means_dead_letters(&self, are_meant: bool) {
        self.letters_are_meant.store(are_meant, Ordering::SeqCst);
        self.may(&[Unasked::DeadLetters], "Atlas refuses something for good");
    }

    /// Takes down what its process did, while it still runs.
    fn look_back(&mut self, is_asked: bool) {
        if let Some(child) = &self.child {
            let figures = Figures::of(child.id(), is_asked.then_some(self.admin_port));
            self.unasked.extend(figures.unasked());
            if let Some(cursors) = self.cursors.as_ref().filter(|_| is_asked) {
                self.unasked.extend(cursors.too_many());
            }
        }
    }

    fn is_over(&mut self) {
        if let Some(run) = self.run.take() {
            run.ends();
        }
    }

    /// Everything that it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        // Not asked, which would choose the moment.
        self.look_back(false);
        self.is_over();
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and the end of it.
    pub fn stop(&mut self) -> ExitStatus {
        self.look_back(true);
        self.is_over();
        let mut child = self.child.take().expect("it runs");
        signal(child.id(), "TERM");
        let status = child.wait().unwrap();
        // One that is not stopped in order leaves its cursors to the server, which has patience; so does an exchange that broke.
        let log = self.log();
        let is_broken = ["interrupted", "the queue failed", "is not available"];
        if let Some(cursors) = self.cursors.take()
            && !is_broken.iter().any(|words| log.contains(words))
        {
            self.unasked.extend(cursors.left());
        }
        status
    }

    pub fn signal(&self, name: &str) {
        signal(self.id(), name);
    }

    pub fn id(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// False once the process has ended by itself; [`ended`](Self::ended) tells how.
    pub fn is_running(&self) -> bool {
        is_running(self.id())
    }

    /// Waits for a process that ends by itself.
    pub async fn ended(&mut self, patience: Duration) -> ExitStatus {
        // Taken only at its end: one that goes on is killed with the rest of a test that fails.
        let child = self.child.as_mut().expect("it runs");
        let mut status = None;
        eventually("the agent's end", patience, async || {
            status = child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        self.child = None;
        self.is_over();
        status.unwrap()
    }

    /// The way out that a refused local database names: the queue is put aside, and the target adopted.
    pub fn adopt(&mut self) {
        let (queue, aside) = (self.dir.path().join("queue"), tempfile::TempDir::new_in(&self.dir));
        std::fs::rename(queue, aside.unwrap().keep().join("queue")).unwrap();
        self.start(&["--adopt"]);
    }

    /// Starts an agent that refuses, with exit code 1; returns everything that it has logged.
    pub async fn refused(&mut self, args: &[&str]) -> String {
        self.start(args);
        assert_eq!(self.ended(PATIENCE).await.code(), Some(1), "{}", self.log());
        self.log()
    }

    /// Starts another command of the CLI, and does not wait for it.
    pub fn spawn(&self, args: &[&str]) -> Child {
        let mut command = self.command();
        command.args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Runs another command of the CLI.
    pub fn cli(&self, args: &[&str]) -> Output {
        self.command().args(args).output().unwrap()
    }

    /// Its JSON, if it answers.
    pub fn cli_json(&self, args: &[&str]) -> Option<Value> {
        let output = self.cli(&[args, &["--json"]].concat());
        serde_json::from_slice(&output.stdout).ok()
    }

    /// The health that the agent itself tells.
    pub fn health(&self) -> Option<Value> {
        let url = format!("http://127.0.0.1:{}/api/sync/health", self.admin_port);
        let text = ureq::get(url).call().ok()?.body_mut().read_to_string().ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Waits for the first copy to be done.
    pub async fn streaming(&self) {
        eventually("the phase `streaming`", Duration::from_secs(120), async || {
            // One that refuses to start will not come, however long it is waited for.
            assert!(self.child.is_none() || self.is_running(), "the agent has ended");
            self.health().is_some_and(|health| health["phase"] == "streaming")
        })
        .await;
    }

    /// Waits until so many documents wait in the queue.
    pub async fn queued(&self, at_least: u64) {
        eventually("a filled queue", Duration::from_secs(60), async || {
            self.health().is_some_and(|health| health["queueSize"].as_u64() >= Some(at_least))
        })
        .await;
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.look_back(true);
        self.kill();
        let log = self.log();
        if std::thread::panicking() {
            eprintln!("--- the agent's log ---\n{log}");
            return;
        }
        let found = unasked::told(&log);
        let may = self.may.lock().unwrap();
        let left = unasked::left(found.iter().chain(&self.unasked), &may);
        if !left.is_empty() {
            eprintln!("--- the agent's log ---\n{log}");
        }
        assert!(left.is_empty(), "nobody asked for it (tests/support/unasked.rs): {left:#?}");
    }
}
