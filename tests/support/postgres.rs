//! A real PostgreSQL.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

use super::free_port;

/// A server process with its data in a folder of its own. Killed when dropped.
pub struct Postgres {
    pub port: u16,
    dir: TempDir,
    child: Option<Child>,
    settings: &'static [&'static str],
}

impl Postgres {
    /// Starts a server, and waits until it answers.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// As [`start`](Self::start), with further settings, each `name=value`.
    pub async fn start_with(settings: &'static [&'static str]) -> Self {
        let dir = TempDir::new().unwrap();
        open_to_others(&dir);
        let mut server = Self { port: free_port(), dir, child: None, settings };
        server.resume().await;
        server
    }

    /// Starts the process again, after [`kill`](Self::kill). What is left of the old one may be in its way for a moment.
    pub async fn resume(&mut self) {
        self.child = Some(self.launch());
        let give_up = Instant::now() + Duration::from_secs(120);
        while self.try_connect().await.is_none() {
            assert!(Instant::now() < give_up, "PostgreSQL does not answer");
            if self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some()) {
                self.child = Some(self.launch());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn launch(&self) -> Child {
        let script = super::root().join("scripts/postgres");
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        Command::new(script)
            .arg("run")
            .arg(self.dir.path().join("data"))
            .arg(self.port.to_string())
            .args(["-c", "fsync=off", "-c", "shared_buffers=32MB"])
            // Else one that is killed leaves its segments in /dev/shm.
            .args(["-c", "dynamic_shared_memory_type=mmap"])
            .args(self.settings.iter().flat_map(|setting| ["-c", setting]))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("scripts/postgres runs")
    }

    /// Of the process whose children are its connections.
    pub fn id(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Ends it as a crash does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Ends it in order, so that its files are those of one moment.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            super::agent::signal(child.id(), "INT");
            assert!(child.wait().unwrap().success());
        }
    }

    /// Its files, as a backup has them. It must be stopped.
    pub fn back_up(&self) -> TempDir {
        assert!(self.child.is_none(), "it runs");
        let backup = TempDir::new().unwrap();
        copy(&self.dir.path().join("data"), &backup.path().join("data"));
        backup
    }

    /// Has the files of a backup in place of its own. It must be stopped.
    pub fn put_back(&self, backup: &TempDir) {
        assert!(self.child.is_none(), "it runs");
        let data = self.dir.path().join("data");
        std::fs::remove_dir_all(&data).unwrap();
        copy(&backup.path().join("data"), &data);
    }

    /// A replica of it that follows it. It is down for a moment, so that its files are those of one moment.
    pub async fn replica(&mut self) -> Self {
        self.stop();
        let dir = self.back_up();
        open_to_others(&dir);
        self.resume().await;
        let mut replica = Self { port: free_port(), dir, child: None, settings: &[] };
        replica.becomes_a_standby();
        let of = format!("host=127.0.0.1 port={} user=outrigger password=outrigger", self.port);
        let settings = replica.dir.path().join("data/postgresql.auto.conf");
        let kept = std::fs::read_to_string(&settings).unwrap();
        std::fs::write(&settings, format!("{kept}primary_conninfo = '{of}'\n")).unwrap();
        replica.resume().await;
        replica
    }

    /// From its next start on it takes no writes, as one that follows another.
    pub fn becomes_a_standby(&self) {
        std::fs::write(self.dir.path().join("data/standby.signal"), "").unwrap();
    }

    /// As Outrigger is given it.
    pub fn uri(&self) -> String {
        Self::uri_at(self.port)
    }

    /// By another port, which leads there.
    pub fn uri_at(port: u16) -> String {
        format!("postgres://outrigger:outrigger@127.0.0.1:{port}/postgres?sslmode=disable")
    }

    /// A connection of one's own.
    pub async fn client(&self) -> Client {
        self.try_connect().await.expect("PostgreSQL answers")
    }

    /// `None` where nobody answers, or no connection is left.
    pub async fn try_connect(&self) -> Option<Client> {
        let (client, connection) = tokio_postgres::connect(&self.uri(), NoTls).await.ok()?;
        tokio::spawn(connection);
        Some(client)
    }

    /// The rows of a query, each with its values as text, in one line.
    pub async fn ask(&self, sql: &str) -> Vec<String> {
        self.try_ask(sql).await.unwrap()
    }

    /// # Errors
    /// What the server says, of a table that is gone by now, say.
    pub async fn try_ask(&self, sql: &str) -> Result<Vec<String>, tokio_postgres::Error> {
        let messages = self.client().await.simple_query(sql).await?;
        let rows = messages.iter().filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(rows
            .map(|row| {
                let values: Vec<_> =
                    (0..row.len()).map(|at| row.get(at).unwrap_or("NULL")).collect();
                values.join("|")
            })
            .collect())
    }
}

/// The folder is this user's alone, and the server may be another's.
fn open_to_others(dir: &TempDir) {
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).unwrap();
}

/// With their owner, who need not be this user.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.expect("cp runs").success());
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
    }
}

/// As PostgreSQL's `encode(…, 'hex')` has it.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
