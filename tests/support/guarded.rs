//! A server with access control.

use std::os::unix::fs::PermissionsExt;

use mongodb::{
    Client,
    bson::{Bson, Document, doc},
};
use tempfile::TempDir;

use super::{PATIENCE, certificates::Certificates, eventually, mongod::Mongod};

/// The password of every user here, for tests that look for it where it must not be.
pub const PASSWORD: &str = "s3cret";

/// What lets nobody in: the key that members of a set know one another by, and TLS where it is asked for.
pub struct Guard {
    key: TempDir,
    args: Vec<String>,
    options: String,
}

impl Guard {
    fn new(args: Vec<String>, options: String) -> Self {
        let key = TempDir::new().unwrap();
        let file = key.path().join("key");
        std::fs::write(&file, "c2VjcmV0IG9mIHRoZSByZXBsaWNhIHNldA==").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        Self { key, args, options }
    }

    /// And nobody may come without TLS.
    pub fn with_tls(certificates: &Certificates) -> Self {
        Self::new(certificates.server_args(), certificates.options())
    }

    /// Starts a server of a set.
    pub async fn member(&self, set: &str) -> Mongod {
        let key = self.key.path().join("key");
        let of_set = ["--replSet", set, "--auth", "--keyFile", key.to_str().unwrap()];
        let args: Vec<&str> =
            of_set.into_iter().chain(self.args.iter().map(String::as_str)).collect();
        Mongod::start_with_options(&args, &self.options).await
    }

    /// What a connection string must have beside a user.
    pub fn options(&self) -> &str {
        &self.options
    }

    /// Makes `root`, and `outrigger` with these roles; returns the client of `root`.
    pub async fn let_in(&self, primary: &Mongod, roles: Vec<Bson>) -> Client {
        // The first user may be made from this machine without being one.
        primary.admin(user("root", vec!["root".into()])).await;
        let root = Client::with_uri_str(uri(primary, "root", PASSWORD)).await.unwrap();
        root.database("admin").run_command(user("outrigger", roles)).await.unwrap();
        root
    }
}

/// A replica set of one in which nobody may do anything but `root`, and `outrigger` with its roles.
pub struct Guarded {
    pub server: Mongod,
    pub root: Client,
    guard: Guard,
}

impl Guarded {
    pub async fn start(roles: Vec<Bson>) -> Self {
        Self::start_with(roles, Guard::new(vec![], String::new())).await
    }

    /// As [`start`](Self::start), and nobody may come without TLS.
    pub async fn start_tls(roles: Vec<Bson>, certificates: &Certificates) -> Self {
        Self::start_with(roles, Guard::with_tls(certificates)).await
    }

    async fn start_with(roles: Vec<Bson>, guard: Guard) -> Self {
        let server = guard.member("rs").await;
        server.initiate().await;
        let root = guard.let_in(&server, roles).await;
        Self { server, root, guard }
    }

    /// Goes on with its data at another place, which its set is told.
    pub async fn move_elsewhere(&mut self) {
        self.server.start_elsewhere().await;
        self.root = Client::with_uri_str(uri(&self.server, "root", PASSWORD)).await.unwrap();
        self.server.initiate_again(&self.root).await;
    }

    /// Starts another server that follows this one, and never becomes the primary.
    pub async fn join(&self) -> Mongod {
        let second = self.guard.member("rs").await;
        let admin = self.root.database("admin");
        let found = admin.run_command(doc! { "replSetGetConfig": 1 }).await.unwrap();
        let mut config = found.get_document("config").unwrap().clone();
        config.insert("version", config.get_i32("version").unwrap() + 1);
        let host = format!("127.0.0.1:{}", second.port);
        let added = doc! { "_id": 1, "host": host, "votes": 0, "priority": 0 };
        config.get_array_mut("members").unwrap().push(added.into());
        admin.run_command(doc! { "replSetReconfig": config }).await.unwrap();
        eventually("a secondary", PATIENCE, async || {
            let hello = second.client.database("admin").run_command(doc! { "hello": 1 }).await;
            hello.is_ok_and(|hello| hello.get_bool("secondary").unwrap_or(false))
        })
        .await;
        second
    }

    /// The connection string of `outrigger` to another member.
    pub fn uri_of(member: &Mongod) -> String {
        uri(member, "outrigger", PASSWORD)
    }

    /// The connection string of `outrigger`.
    pub fn uri(&self) -> String {
        uri(&self.server, "outrigger", PASSWORD)
    }

    /// Runs a command on `admin` as `root`.
    pub async fn admin(&self, command: Document) {
        self.root.database("admin").run_command(command).await.unwrap();
    }
}

fn user(name: &str, roles: Vec<Bson>) -> Document {
    doc! { "createUser": name, "pwd": PASSWORD, "roles": roles }
}

fn uri(server: &Mongod, name: &str, password: &str) -> String {
    let (port, options) = (server.port, &server.options);
    format!("mongodb://{name}:{password}@127.0.0.1:{port}/?directConnection=true{options}")
}
