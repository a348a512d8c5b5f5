//! A real pooler in front of a PostgreSQL: each transaction gets whichever connection is free.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use super::{
    eventually, free_port,
    postgres::Postgres,
    proof::{Need, not_proved},
    root,
};

/// A process of pgbouncer in transaction mode, with fewer connections than an agent asks for. Killed when dropped.
pub struct Pooler {
    port: u16,
    program: PathBuf,
    dir: TempDir,
    child: Option<Child>,
}

impl Pooler {
    /// `None`, and said so, where there is no pgbouncer.
    pub async fn before(target: &Postgres) -> Option<Self> {
        let script = root().join("scripts/pgbouncer");
        let output = Command::new(script).stderr(Stdio::inherit()).output().expect("it runs");
        if !output.status.success() {
            not_proved(Need::Pgbouncer);
            return None;
        }
        let program = String::from_utf8(output.stdout).unwrap().trim().into();
        let (port, dir) = (free_port(), TempDir::new().unwrap());
        // It never works as root, and reads its file as whoever it is then.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).unwrap();
        let config = format!(
            "[databases]\npostgres = host=127.0.0.1 port={} dbname=postgres user=outrigger password=outrigger\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = transaction\ndefault_pool_size = 3\nserver_login_retry = 1\n",
            target.port
        );
        std::fs::write(dir.path().join("pgbouncer.ini"), config).unwrap();
        let mut pooler = Self { port, program, dir, child: None };
        pooler.resume().await;
        Some(pooler)
    }

    /// Starts it again, after [`kill`](Self::kill).
    pub async fn resume(&mut self) {
        let mut command = Command::new(&self.program);
        if rustix::process::getuid().is_root() {
            command.args(["--user", "nobody"]);
        }
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        command.arg(self.dir.path().join("pgbouncer.ini")).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().expect("pgbouncer starts"));
        eventually("the pooler", Duration::from_secs(30), async || {
            tokio_postgres::connect(&self.uri(), tokio_postgres::NoTls).await.is_ok()
        })
        .await;
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// As Outrigger is given it.
    pub fn uri(&self) -> String {
        Postgres::uri_at(self.port)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.kill();
    }
}
